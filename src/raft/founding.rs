//! Whether this node may take part in its group: found it, wait for it, or refuse because its disk is older than what the
//! others saw from it (R12).
//!
//! Owns these decisions, as pure functions of what the store and the peers say. Must not call anybody.

use std::collections::BTreeMap;

use crate::core::id::{Incarnation, NodeName};

/// What a node says about itself in one group, and what it remembers of the node that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// The node that answers.
    pub node: NodeName,
    /// Its store's incarnation.
    pub incarnation: Incarnation,
    /// Whether it ever voted, or took a term, in this group.
    pub has_vote: bool,
    /// Whether its log has an entry.
    pub has_log: bool,
    /// Its term.
    pub term: u64,
    /// Index of its last log entry; 0 when there is none.
    pub last_index: u64,
    /// Term of its last log entry; 0 when there is none.
    pub last_term: u64,
    /// The leader that it knows.
    pub leader: Option<NodeName>,
    /// What it remembers of the asker in its present life.
    pub seen: SeenOfAsker,
    /// The Raft id that the membership which it knows gives to the asker's incarnation; 0 when none.
    pub asker_id: u64,
    /// The version of the directory in force there.
    pub directory_version: u64,
    /// Whether it is ending: it takes the lead from nobody.
    pub leaving: bool,
}

/// What a node remembers of another one's votes and log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SeenOfAsker {
    /// The highest term.
    pub term: u64,
    /// Whether a vote was given in it.
    pub voted: bool,
    /// Term of the highest log entry that was acknowledged; 0 when none was.
    pub log_term: u64,
    /// Its index.
    pub log_index: u64,
}

/// What this node's own store says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Own {
    /// The term of its vote, if it has one.
    pub vote_term: Option<u64>,
    /// Term and index of its last log entry, if there is one.
    pub last: Option<(u64, u64)>,
}

impl Own {
    /// Whether the store has taken part in the group at all.
    pub fn is_fresh(&self) -> bool {
        self.vote_term.is_none() && self.last.is_none()
    }

    /// Why this store is older than what a peer saw from it; none when there is no such evidence.
    pub fn older_than(&self, seen: &SeenOfAsker) -> Option<String> {
        let term = self.vote_term.unwrap_or(0);
        if seen.term > term {
            return Some(format!("it saw this node in term {}, the store knows term {term}", seen.term));
        }
        // A log may be cut by a later leader. A vote that is later than the entry proves that the store is too.
        let last = self.last.unwrap_or_default();
        let entry = (seen.log_term, seen.log_index);
        if entry > last && seen.log_term >= term {
            return Some(format!("it saw this node's log reach {}, the store's ends at {}", entry.1, last.1));
        }
        None
    }
}

/// What a store that never took part does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Founding {
    /// Not all voters have answered; these are awaited.
    Await(Vec<NodeName>),
    /// Nobody has a vote or a log, and this node is the first of the voters: found the group with these stores.
    Found(BTreeMap<NodeName, Incarnation>),
    /// Another voter founds it, or the group knows this store already: wait for its leader.
    Join,
    /// The group exists and does not know this store.
    Unknown {
        /// Who says so.
        by: NodeName,
    },
}

/// Decides for a fresh store. `voters` are the founding voters in the order of their names; `answers` are by node.
pub(super) fn founding(
    own: &NodeName,
    incarnation: Incarnation,
    voters: &[NodeName],
    answers: &BTreeMap<NodeName, ProbeAnswer>,
) -> Founding {
    let established = answers.values().filter(|answer| answer.has_log);
    let mut unknown = None;
    for answer in established {
        if answer.asker_id != 0 {
            return Founding::Join;
        }
        unknown = Some(answer.node.clone());
    }
    if let Some(by) = unknown {
        return Founding::Unknown { by };
    }
    let missing: Vec<_> =
        voters.iter().filter(|voter| *voter != own && !answers.contains_key(*voter)).cloned().collect();
    if !missing.is_empty() {
        return Founding::Await(missing);
    }
    if voters.first() != Some(own) || answers.values().any(|answer| answer.has_vote) {
        return Founding::Join;
    }
    let mut stores: BTreeMap<_, _> = answers.values().map(|answer| (answer.node.clone(), answer.incarnation)).collect();
    stores.insert(own.clone(), incarnation);
    Founding::Found(stores)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        NodeName::new(text).expect("a name")
    }

    fn answer(node: &str) -> ProbeAnswer {
        ProbeAnswer {
            node: name(node),
            incarnation: Incarnation([node.as_bytes()[0]; 16]),
            has_vote: false,
            has_log: false,
            term: 0,
            last_index: 0,
            last_term: 0,
            leader: None,
            seen: SeenOfAsker::default(),
            asker_id: 0,
            directory_version: 0,
            leaving: false,
        }
    }

    fn decide(own: &str, answers: &[ProbeAnswer]) -> Founding {
        let voters = ["a", "b", "c"].map(name);
        let answers = answers.iter().map(|answer| (answer.node.clone(), answer.clone())).collect();
        founding(&name(own), Incarnation([9; 16]), &voters, &answers)
    }

    #[test]
    fn r12_only_the_first_voter_founds_and_only_when_all_are_new() {
        assert_eq!(decide("a", &[answer("b")]), Founding::Await(vec![name("c")]));
        assert!(matches!(decide("a", &[answer("b"), answer("c")]), Founding::Found(stores) if stores.len() == 3));
        assert_eq!(decide("b", &[answer("a"), answer("c")]), Founding::Join);
        let voted = ProbeAnswer { has_vote: true, ..answer("b") };
        assert_eq!(decide("a", &[voted, answer("c")]), Founding::Join);
    }

    #[test]
    fn r12_a_new_store_does_not_take_the_place_of_an_old_one() {
        let there = ProbeAnswer { has_vote: true, has_log: true, ..answer("b") };
        assert_eq!(decide("a", std::slice::from_ref(&there)), Founding::Unknown { by: name("b") });
        let knows = ProbeAnswer { asker_id: 1, ..there };
        assert_eq!(decide("a", &[knows]), Founding::Join);
    }

    #[test]
    fn r12_a_restored_disk_is_noticed_and_a_log_cut_by_a_leader_is_not_taken_for_one() {
        let own = Own { vote_term: Some(3), last: Some((3, 20)) };
        let seen = SeenOfAsker { term: 3, voted: true, log_term: 3, log_index: 20 };
        assert_eq!(own.older_than(&seen), None);
        assert!(own.older_than(&SeenOfAsker { term: 4, ..seen }).is_some());
        assert!(own.older_than(&SeenOfAsker { log_index: 21, ..seen }).is_some());
        assert_eq!(own.older_than(&SeenOfAsker { log_term: 2, log_index: 90, ..seen }), None);
        let cut = Own { vote_term: Some(4), last: Some((2, 8)) };
        assert_eq!(cut.older_than(&SeenOfAsker { log_term: 3, log_index: 10, ..seen }), None);
    }
}
