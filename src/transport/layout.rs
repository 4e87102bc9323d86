//! What a topic's partitions, as the transport knows them, are to the core. Must not know stripes.

use std::collections::BTreeSet;

use super::contract::Partition;
use crate::core::place::KnownPartition;

/// What a topic's brokers allow a profile to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// How many domains its partitions lie in.
    pub domains: usize,
    /// Whether every acknowledgement proves two domains.
    pub replicated: bool,
}

impl Layout {
    /// Of the partitions as the transport knows them; `None` while the topic is unknown.
    pub fn of(partitions: &[Partition]) -> Option<Self> {
        let names: BTreeSet<&str> =
            partitions.iter().map(|partition| &*partition.domain.0).filter(|name| !name.is_empty()).collect();
        let replicated = partitions.iter().all(|partition| partition.copies >= 2);
        (!partitions.is_empty()).then_some(Self { domains: names.len().max(1), replicated })
    }
}

/// Partitions as the core judges them by.
pub fn known(partitions: &[Partition]) -> Vec<KnownPartition> {
    let known = |partition: &Partition| KnownPartition {
        number: partition.id.number,
        domain: partition.domain.0.clone(),
        up: partition.up,
        copies: partition.copies,
    };
    partitions.iter().map(known).collect()
}
