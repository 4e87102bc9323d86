//! What a group is opened with and what it says: options, stages, roles, errors.
//!
//! Owns their shapes. Must not act.

use std::time::Duration;

use crate::core::id::{DestinationTag, Incarnation, NodeName};
use crate::store::StoreError;

/// Whose group it is and how patient it is.
#[derive(Debug, Clone)]
pub struct GroupOptions {
    /// This node.
    pub node: NodeName,
    /// The group: its destination's tag.
    pub group: DestinationTag,
    /// The voters of the newest directory.
    pub voters: Vec<NodeName>,
    /// Shortest and longest wait for a leader before an election: 1 to 2 s.
    pub election: (Duration, Duration),
    /// How often a leader shows that it is there: 250 ms.
    pub heartbeat: Duration,
}

impl GroupOptions {
    /// With the design's times.
    pub fn new(node: NodeName, group: DestinationTag, mut voters: Vec<NodeName>) -> Self {
        voters.sort();
        let election = (Duration::from_secs(1), Duration::from_secs(2));
        Self { node, group, voters, election, heartbeat: Duration::from_millis(250) }
    }
}

/// Why a group cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The store's.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory does not list this node for the destination.
    #[error("node {node} is no voter of group {group}: the directory lists {voters:?}")]
    NotAVoter {
        /// This node.
        node: NodeName,
        /// The group.
        group: DestinationTag,
        /// Who is.
        voters: Vec<NodeName>,
    },
    /// The times make no sense together, or consensus's own rows are damaged.
    #[error("consensus cannot start: {cause}")]
    Consensus {
        /// What openraft said.
        cause: String,
    },
}

impl GroupError {
    /// Whether opening again can succeed by itself.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Store(error) if error.retryable())
    }
}

/// How far the group's start on this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// It asks its peers what they saw of it, or waits to found or to join; for people, what it waits for.
    Starting(String),
    /// It takes part.
    Running,
    /// It must not take part; why, and what to do.
    Refused(String),
    /// It took part and stopped for an error: the process must end.
    Failed(String),
}

/// Who leads, as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The leader.
    pub leader: Option<NodeName>,
    /// Its term.
    pub term: u64,
    /// Whether it is this node.
    pub own: bool,
}

/// A node's part in consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It leads.
    Leader,
    /// It follows.
    Follower,
    /// It stands for election.
    Candidate,
    /// It receives the log and does not vote.
    Learner,
    /// It is not taking part yet.
    Starting,
    /// It does not take part any more.
    Stopped,
}

/// One member as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its name.
    pub node: NodeName,
    /// Its Raft id.
    pub raft_id: u64,
    /// Its store's incarnation.
    pub incarnation: Incarnation,
    /// Whether it votes.
    pub voter: bool,
    /// Index of the last log entry that it is known to have; the leader knows it of all, a node of itself.
    pub matched: Option<u64>,
}

/// How the group stands on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// How far its start is.
    pub stage: Stage,
    /// This node's part.
    pub role: Role,
    /// Its Raft id.
    pub raft_id: u64,
    /// Its term.
    pub term: u64,
    /// The leader that it knows.
    pub leader: Option<NodeName>,
    /// Index of its last log entry.
    pub last_index: u64,
    /// Index of the last entry that it knows to be committed.
    pub committed: u64,
    /// Index of the last entry that it applied.
    pub applied: u64,
    /// The members, by name.
    pub members: Vec<MemberStatus>,
    /// How long ago a majority last answered the leader; only on the leader.
    pub quorum_silent: Option<Duration>,
}

/// Why an entry was not proposed, or is not known to be committed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead; nothing was appended.
    #[error("this node does not lead the group; {}", leader.as_ref().map_or("no leader is known".to_owned(), |leader| format!("{leader} does")))]
    NotLeader {
        /// Who does.
        leader: Option<NodeName>,
    },
    /// It lost the lead meanwhile: the entry may yet be committed, or never.
    #[error("the lead was lost before the entry was committed: its fate is unknown")]
    Unknown {
        /// Who leads now.
        leader: Option<NodeName>,
    },
    /// The group is not running here.
    #[error("the group is not running here: {cause}")]
    NotRunning {
        /// Why.
        cause: String,
    },
}

impl ProposeError {
    /// Whether proposing again, here or at the leader, is right: for everything but a group that has stopped.
    pub fn retryable(&self) -> bool {
        !matches!(self, Self::NotRunning { .. })
    }
}

/// Why there is no read index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadIndexError {
    /// This node does not lead.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who does.
        leader: Option<NodeName>,
    },
    /// No majority answered.
    #[error("no majority confirmed the lead: {cause}")]
    NoQuorum {
        /// What openraft said.
        cause: String,
    },
    /// The group is not running here.
    #[error("the group is not running here: {cause}")]
    NotRunning {
        /// Why.
        cause: String,
    },
}

impl ReadIndexError {
    /// Whether asking again, here or at the leader, can succeed.
    pub fn retryable(&self) -> bool {
        !matches!(self, Self::NotRunning { .. })
    }
}
