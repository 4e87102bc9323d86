//! What consensus replicates, and between whom.

use std::fmt;

use bytes::Bytes;
use openraft::RaftTypeConfig;
use openraft::vote::RaftLeaderId;

use crate::core::id::{Incarnation, NodeName};

/// An encoded `core::decide::Entry`. Consensus does not look inside.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(from = "Vec<u8>", into = "Vec<u8>")]
pub struct EntryBytes(pub Bytes);

impl From<Vec<u8>> for EntryBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<EntryBytes> for Vec<u8> {
    fn from(entry: EntryBytes) -> Self {
        entry.0.into()
    }
}

impl fmt::Display for EntryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Debug for EntryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a proposer learns: the index at which its entry was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AppliedIndex(pub u64);

impl fmt::Display for AppliedIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A member of a group: a node in one life of its store. A Raft id belongs to both and is never used for another (R12).
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Member {
    /// The node's name.
    pub name: Option<NodeName>,
    /// Its store's incarnation.
    pub incarnation: Option<Incarnation>,
}

openraft::declare_raft_types!(
    /// The types of a group's consensus.
    pub TypeConfig:
        D = EntryBytes,
        R = AppliedIndex,
        NodeId = u64,
        Node = Member,
);

/// One entry of the log.
pub type LogEntry = <TypeConfig as RaftTypeConfig>::Entry;
type CommittedLeaderId = <<TypeConfig as RaftTypeConfig>::LeaderId as RaftLeaderId>::Committed;
pub(crate) type LogId = openraft::LogId<CommittedLeaderId>;
pub(crate) type Vote = <TypeConfig as RaftTypeConfig>::Vote;
pub(crate) type StoredMembership = openraft::StoredMembership<CommittedLeaderId, u64, Member>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, u64, Member>;
pub(crate) type RaftSnapshot = openraft::Snapshot<CommittedLeaderId, u64, Member, ()>;
