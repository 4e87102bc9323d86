//! How a client counts: a majority of the voters of one directory version, by node name, saying the same (R13, R22).
//!
//! Owns the counting of receipts and refusals. Must not verify signatures: it takes only what was verified.

use std::collections::{BTreeMap, BTreeSet};

use super::Directories;
use super::notice::{Refusal, Verified};
use super::statement::{StageTimes, Statement, Verdict};
use crate::core::directory::DestinationEntry;
use crate::core::id::{DestinationTag, Digest, NodeName, PayloadTag, RefusalReason, Rejection, SenderName, Ticket};
use crate::core::limits;

/// What became of a receipt that was given to a [`Counter`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Added {
    /// It counts.
    Counted,
    /// This node said so before.
    Again,
    /// It is about another destination, sender, transaction, deadline or payload.
    Elsewhere,
    /// This node said something else before. Neither changes the count: the first stays, and people should look at the
    /// node.
    Contradiction,
    /// This node has said this under as many directory versions as are kept, all of them later.
    TooMany,
}

/// What a majority says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// What they say; D and group time are those of the first signer by name.
    pub verdict: Verdict,
    /// The directory version whose voters were counted.
    pub directory: u64,
    /// The voters that say so, and how long it took on each.
    pub signers: BTreeMap<NodeName, StageTimes>,
    /// The voters that have not said so yet.
    pub lacking: Vec<NodeName>,
}

impl Agreed {
    /// Whether all voters say so.
    pub fn is_complete(&self) -> bool {
        self.lacking.is_empty()
    }
}

/// Counts the receipts of one transaction in one destination.
#[derive(Clone, Debug)]
pub struct Counter {
    ticket: Ticket,
    destination: DestinationTag,
    sender: SenderName,
    payload_tag: Option<PayloadTag>,
    /// By node, then by the directory version that it names. There are few, and a client has a counter for each transaction
    /// on its way: one list of them costs less than maps.
    said: Vec<Said>,
}

/// What a node said under a directory version.
#[derive(Clone, Debug)]
struct Said {
    node: NodeName,
    directory: u64,
    verdict: Verdict,
    times: StageTimes,
}

impl Counter {
    /// For a ticket of this sender. Without a payload tag (who attaches with a ticket alone does not know it) signers need
    /// only agree on one, and what they say to holders of another payload, rejected(id-reuse), is not counted.
    pub fn new(
        ticket: Ticket,
        destination: DestinationTag,
        sender: SenderName,
        payload_tag: Option<PayloadTag>,
    ) -> Self {
        Self { ticket, destination, sender, payload_tag, said: Vec::new() }
    }

    /// Takes a receipt. It need not be known yet whether its node is a voter: that is judged by
    /// [`Counter::agreed`], when the directory that it names is known.
    pub fn add(&mut self, receipt: &Verified<Statement>) -> Added {
        let Statement { sender, transaction, deadline, directory, verdict, times } = receipt.said();
        let mine = receipt.destination() == self.destination
            && *sender == self.sender
            && *transaction == self.ticket.transaction
            && *deadline == self.ticket.deadline
            && match (verdict, verdict.decided(), self.payload_tag) {
                (_, Some(decided), Some(tag)) => decided.payload_tag == tag,
                // It is said to who holds another payload; the ticket's own fate is that of the payload that came first.
                (Verdict::Rejected(_, Rejection::IdReuse), _, None) => false,
                (Verdict::Expired { group_time } | Verdict::Forgotten { group_time }, ..) => group_time > deadline,
                _ => true,
            };
        if !mine {
            return Added::Elsewhere;
        }
        let node = receipt.node();
        let first = self.said.partition_point(|said| said.node < *node);
        let of_node = self.said.iter().skip(first).take_while(|said| said.node == *node);
        // Having forgotten is no fate, so it contradicts none.
        let contradicts = |before: &Verdict| {
            before.fate().is_some() && verdict.fate().is_some() && before.essence() != verdict.essence()
        };
        let (mut number, mut before, mut same) = (0, 0, None);
        for said in of_node {
            if contradicts(&said.verdict) {
                return Added::Contradiction;
            }
            number += 1;
            before += usize::from(said.directory < *directory);
            if said.directory == *directory {
                same = Some(said.verdict.fate().is_some());
            }
        }
        let said = Said { node: node.clone(), directory: *directory, verdict: *verdict, times: *times };
        let at = first + before;
        match same {
            Some(fate) if fate || verdict.fate().is_none() => return Added::Again,
            Some(_) => {
                self.said.splice(at..=at, [said]);
            }
            None if number < limits::STATEMENTS_PER_NODE => self.said.insert(at, said),
            // The oldest gives way: nodes that are asked again say it under the version in force then, and must come
            // together in one in the end.
            None if before == 0 => return Added::TooMany,
            None => {
                self.said.insert(at, said);
                self.said.remove(first);
            }
        }
        Added::Counted
    }

    /// What a majority of the voters of one of these directories says; the one with the most signers, if there are several.
    /// Directories that are not known are not counted: what they would decide is unknown.
    pub fn agreed(&self, directories: &Directories) -> Option<Agreed> {
        let essences: Vec<Verdict> = self.said.iter().map(|said| said.verdict.essence()).collect();
        let like = |directory: u64, essence: Verdict| {
            let all = self.said.iter().zip(&essences);
            all.filter(move |(said, other)| said.directory == directory && **other == essence).map(|(said, _)| said)
        };
        let mut best: Option<(usize, u64, Verdict)> = None;
        for (said, essence) in self.said.iter().zip(&essences) {
            let Some(group) = voters(directories, said.directory, self.destination) else { continue };
            let signers = like(said.directory, *essence).filter(|other| group.has_node(&other.node)).count();
            if signers >= group.quorum()
                && best.is_none_or(|(most, newest, _)| (signers, said.directory) > (most, newest))
            {
                best = Some((signers, said.directory, *essence));
            }
        }
        let (_, directory, essence) = best?;
        let group = voters(directories, directory, self.destination)?;
        let voters = || like(directory, essence).filter(|said| group.has_node(&said.node));
        let signers: BTreeMap<NodeName, StageTimes> = voters().map(|said| (said.node.clone(), said.times)).collect();
        let lacking = group.nodes.iter().filter(|node| !signers.contains_key(*node)).cloned().collect();
        Some(Agreed { verdict: voters().next()?.verdict, directory, signers, lacking })
    }

    /// Who said what so far, majority or not: for people.
    pub fn said(&self) -> impl Iterator<Item = (&NodeName, &Verdict)> {
        let last = self.said.chunk_by(|one, next| one.node == next.node).filter_map(<[Said]>::last);
        last.map(|said| (&said.node, &said.verdict))
    }
}

/// Counts refusals of one parcel: with a majority, its sender seals the transactions anew (R22).
#[derive(Clone, Debug)]
pub struct Refusals {
    destination: DestinationTag,
    digest: Digest,
    said: BTreeMap<u64, BTreeMap<NodeName, RefusalReason>>,
}

impl Refusals {
    /// For the parcel that is D.
    pub fn new(destination: DestinationTag, digest: Digest) -> Self {
        Self { destination, digest, said: BTreeMap::new() }
    }

    /// Takes a refusal; whether it is about this parcel.
    pub fn add(&mut self, refusal: &Verified<Refusal>) -> bool {
        let mine = refusal.destination() == self.destination && refusal.said().digest == self.digest;
        if mine {
            let nodes = self.said.entry(refusal.directory()).or_default();
            nodes.insert(refusal.node().clone(), refusal.said().reason);
        }
        mine
    }

    /// Who refuses it and why, when they are a majority of the voters of one of these directories. A node is counted under
    /// the directory version that it signed under.
    pub fn refused(&self, directories: &Directories) -> Option<BTreeMap<NodeName, RefusalReason>> {
        self.said.iter().rev().find_map(|(version, nodes)| {
            let group = voters(directories, *version, self.destination)?;
            let nodes: BTreeMap<_, _> =
                nodes.iter().filter(|(node, _)| group.has_node(node)).map(|(node, why)| (node.clone(), *why)).collect();
            (nodes.keys().collect::<BTreeSet<_>>().len() >= group.quorum()).then_some(nodes)
        })
    }
}

fn voters(directories: &Directories, version: u64, destination: DestinationTag) -> Option<&DestinationEntry> {
    directories.get(&version)?.destination_by_tag(&destination)
}
