//! A cluster and a topic as they were found: plain data that plans are compared with.
//!
//! Owns what a domain is (a rack where brokers declare one, else a broker), and which brokers a topic's replicas go to. Must
//! not ask anybody.

use std::collections::{BTreeMap, BTreeSet};

use super::Layout;

/// A broker's number.
pub type BrokerId = i32;

/// How many domains a cluster has unless somebody says otherwise: with three, one may be lost for half a copy more.
pub const USUAL_DOMAINS: usize = 3;

/// What a broker fails with: its rack where it declares one, else itself.
pub(in crate::transport) fn domain(broker: BrokerId, rack: Option<&str>) -> String {
    match rack.filter(|rack| !rack.is_empty()) {
        Some(rack) => format!("rack {rack}"),
        None => format!("broker {broker}"),
    }
}

/// A broker, as the cluster lists it and as it answered.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Broker {
    /// Its number.
    pub id: BrokerId,
    /// Its `broker.rack`; `None` when it declares none, does not answer, or may not be asked.
    pub rack: Option<String>,
    /// Whether it answered: a broker that died is listed for a while.
    pub answers: bool,
}

/// A cluster's brokers, ascending by number.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cluster {
    /// Those that the cluster lists.
    pub brokers: Vec<Broker>,
}

impl Cluster {
    /// Brokers that answer, by what they fail with.
    pub fn domains(&self) -> BTreeMap<String, Vec<BrokerId>> {
        let mut domains: BTreeMap<String, Vec<BrokerId>> = BTreeMap::new();
        for broker in self.brokers.iter().filter(|broker| broker.answers) {
            domains.entry(domain(broker.id, broker.rack.as_deref())).or_default().push(broker.id);
        }
        domains
    }

    /// The numbers of those that answer, ascending.
    pub fn answering(&self) -> Vec<BrokerId> {
        self.brokers.iter().filter(|broker| broker.answers).map(|broker| broker.id).collect()
    }

    /// The numbers of those that are listed and do not answer, ascending.
    pub fn silent(&self) -> Vec<BrokerId> {
        self.brokers.iter().filter(|broker| !broker.answers).map(|broker| broker.id).collect()
    }

    /// What a broker fails with; one that is not listed, with itself.
    pub fn domain_of(&self, id: BrokerId) -> String {
        let rack = self.brokers.iter().find(|broker| broker.id == id).and_then(|broker| broker.rack.as_deref());
        domain(id, rack)
    }

    /// Where the replicas of one partition for each answering broker go, its own broker first. Further replicas are in other
    /// domains as long as there are any, and spread over the brokers. Fewer than `factor` when there are fewer brokers.
    pub fn assignment(&self, layout: Layout) -> Vec<Vec<BrokerId>> {
        let brokers = self.answering();
        let factor = layout.factor();
        let one = |first: usize| {
            let mut rest: Vec<BrokerId> = brokers.iter().cycle().skip(first).take(brokers.len()).copied().collect();
            let mut replicas: Vec<BrokerId> = Vec::new();
            while replicas.len() < factor && !rest.is_empty() {
                let used: BTreeSet<String> = replicas.iter().map(|id| self.domain_of(*id)).collect();
                let next = rest.iter().position(|id| !used.contains(&self.domain_of(*id))).unwrap_or(0);
                replicas.push(rest.remove(next));
            }
            replicas
        };
        (0..brokers.len()).map(one).collect()
    }
}

/// A partition as the cluster's metadata has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPartition {
    /// Its number.
    pub number: i32,
    /// Who leads it, if anybody.
    pub leader: Option<BrokerId>,
    /// Where its replicas are, the preferred leader first.
    pub replicas: Vec<BrokerId>,
}

/// A topic as it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundTopic {
    /// Its partitions, ascending.
    pub partitions: Vec<FoundPartition>,
    /// Its settings by Kafka's names, as far as they may be read.
    pub settings: BTreeMap<String, String>,
}

impl FoundTopic {
    /// Which layout it has: replicated when every partition has two replicas or more.
    pub fn layout(&self) -> Layout {
        match self.partitions.iter().map(|partition| partition.replicas.len()).min() {
            Some(least @ 2..) => Layout::Replicated { factor: u16::try_from(least).unwrap_or(u16::MAX) },
            _ => Layout::PinnedToEach,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(racks: &[&str]) -> Cluster {
        let broker = |(id, rack): (i32, &&str)| Broker {
            id,
            rack: Some((*rack).to_owned()).filter(|rack| !rack.is_empty()),
            answers: true,
        };
        Cluster { brokers: (1..).zip(racks).map(broker).collect() }
    }

    #[test]
    fn a_partition_is_pinned_to_each_broker_that_answers() {
        let mut three = cluster(&["", "", ""]);
        assert_eq!(three.assignment(Layout::PinnedToEach), [[1], [2], [3]]);
        three.brokers[1].answers = false;
        assert_eq!(three.assignment(Layout::PinnedToEach), [[1], [3]]);
        assert_eq!((three.answering(), three.silent()), (vec![1, 3], vec![2]));
    }

    #[test]
    fn replicas_are_in_other_racks_as_long_as_there_are_any() {
        let racks = cluster(&["a", "a", "b", "b", "c"]);
        for replicas in racks.assignment(Layout::Replicated { factor: 3 }) {
            let domains: BTreeSet<String> = replicas.iter().map(|id| racks.domain_of(*id)).collect();
            assert_eq!(domains.len(), 3, "{replicas:?}");
        }
        let two = cluster(&["a", "a", "b"]);
        assert_eq!(two.assignment(Layout::Replicated { factor: 3 }), [[1, 3, 2], [2, 3, 1], [3, 1, 2]]);
        assert_eq!(cluster(&["", ""]).assignment(Layout::Replicated { factor: 3 }), [[1, 2], [2, 1]]);
    }

    #[test]
    fn a_domain_is_a_rack_or_a_broker_without_one() {
        let mixed = cluster(&["a", "", "a"]);
        let domains: Vec<_> = mixed.domains().into_iter().collect();
        assert_eq!(domains, [("broker 2".to_owned(), vec![2]), ("rack a".to_owned(), vec![1, 3])]);
    }
}
