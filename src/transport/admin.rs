//! Making topics as Sealcast needs them, and saying what is wrong with one.
//!
//! Owns what a right topic looks like. Must not know who calls (the command line, the demo, tests).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::any::{AnyTransport, TransportError};
use super::contract::{Partition, Topic, Transport};
use crate::core::limits;
use crate::store::records::RecordsError;

/// How many partitions the embedded transport makes for [`Layout::PinnedToEach`]: the three domains of a small cluster.
pub const EMBEDDED_PARTITIONS: u32 = 3;

/// A record's framing on a Kafka topic may add this many bytes to its key and value (batch header, varints).
const FRAMING_BYTES: usize = 512;

/// How a topic's partitions lie on the brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Replication 1, one partition pinned to each broker: the erasure code, or a second copy elsewhere, is the redundancy.
    PinnedToEach,
    /// One partition for each broker, each with this many replicas, of which at least two must be in sync.
    Replicated {
        /// Replicas of each partition, 2 or more.
        factor: u16,
    },
}

/// A topic as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPlan {
    /// Its name.
    pub topic: Topic,
    /// Where its partitions lie.
    pub layout: Layout,
    /// How long records stay: above the longest deadline plus the outage to be survived (R18).
    pub retention: Duration,
}

impl TopicPlan {
    /// Its settings by Kafka's names: what `init` sets and `check` compares.
    pub fn settings(&self) -> BTreeMap<&'static str, String> {
        let in_sync = match self.layout {
            Layout::PinnedToEach => 1,
            Layout::Replicated { .. } => 2,
        };
        BTreeMap::from([
            ("cleanup.policy", "delete".to_owned()),
            ("compression.type", "producer".to_owned()),
            ("max.message.bytes", (limits::SEGMENT_BYTES + limits::KEY_BYTES + FRAMING_BYTES).to_string()),
            ("message.timestamp.type", "LogAppendTime".to_owned()),
            ("min.insync.replicas", in_sync.to_string()),
            ("retention.bytes", "-1".to_owned()),
            ("retention.ms", self.retention.as_millis().to_string()),
            ("unclean.leader.election.enable", "false".to_owned()),
        ])
    }
}

/// What `init` did with one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Made {
    /// It was made.
    Created,
    /// It was there already and was left as it is; `check` says whether it is right.
    Exists,
}

/// One thing that is wrong with a topic.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Mismatch {
    /// What: a setting's name, or `topic`, `partitions`, `replication`, `leader`, `domains`.
    pub what: String,
    /// How it is.
    pub found: String,
    /// How it should be.
    pub wanted: String,
    /// What to do.
    pub mend: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: is {}, should be {}: {}", self.what, self.found, self.wanted, self.mend)
    }
}

/// A topic as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicState {
    /// Its partitions, as the transport sees them; empty when there is no such topic.
    pub partitions: Vec<Partition>,
    /// What is wrong with it; empty when all is right.
    pub mismatches: Vec<Mismatch>,
}

/// Makes a topic as planned, unless it exists. Errors: [`TransportError`].
pub async fn init(transport: &AnyTransport, plan: &TopicPlan) -> Result<Made, TransportError> {
    match transport.innermost() {
        AnyTransport::Kafka(kafka) => Ok(kafka.init_topic(plan).await?),
        AnyTransport::Embedded(embedded) => match embedded.create_topic(&plan.topic, EMBEDDED_PARTITIONS).await {
            Ok(()) => Ok(Made::Created),
            Err(RecordsError::TopicExists { .. }) => Ok(Made::Exists),
            Err(other) => Err(other.into()),
        },
        // `innermost` never gives one.
        AnyTransport::Adversary(_) => Ok(Made::Exists),
    }
}

/// Compares a topic with its plan. Errors: [`TransportError`] when it cannot be looked at; what is wrong with the topic is
/// no error but the answer.
pub async fn check(transport: &AnyTransport, plan: &TopicPlan) -> Result<TopicState, TransportError> {
    match transport.innermost() {
        AnyTransport::Kafka(kafka) => Ok(kafka.check_topic(plan).await?),
        AnyTransport::Embedded(embedded) => {
            let partitions = embedded.partitions(&plan.topic).to_vec();
            let mismatches = if partitions.is_empty() { vec![absent(plan)] } else { Vec::new() };
            Ok(TopicState { partitions, mismatches })
        }
        AnyTransport::Adversary(_) => Ok(TopicState { partitions: Vec::new(), mismatches: Vec::new() }),
    }
}

/// The topic is not there.
pub(super) fn absent(plan: &TopicPlan) -> Mismatch {
    Mismatch {
        what: "topic".to_owned(),
        found: "absent".to_owned(),
        wanted: plan.topic.to_string(),
        mend: "make it with `sealcast topic init`".to_owned(),
    }
}
