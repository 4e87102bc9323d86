//! Making topics as Sealcast needs them, and saying what is wrong with one.
//!
//! Owns what a right topic looks like. Must not know who calls (the command line, the demo, tests).

mod cluster;
mod compare;
mod outlook;

pub(super) use cluster::domain;
pub use cluster::{Broker, BrokerId, Cluster, FoundPartition, FoundTopic, USUAL_DOMAINS};
pub use compare::listed;
pub(super) use compare::{Comparison, copies};
pub use outlook::{Disk, Load, Outlook, alerts_to_exclude};

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

impl Layout {
    /// Replicas of each partition.
    pub fn factor(self) -> usize {
        match self {
            Self::PinnedToEach => 1,
            Self::Replicated { factor } => factor.into(),
        }
    }
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
    /// What: a setting's name, or `topic`, `leader`, `replication`, `partitions`, `racks`, `domains`.
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
    /// Which layout it has, where a cluster was asked and has it.
    pub layout: Option<Layout>,
    /// How long it keeps records: `None` when that is not known; [`Duration::MAX`] for ever.
    pub retention: Option<Duration>,
    /// What is wrong with it; empty when all is right.
    pub mismatches: Vec<Mismatch>,
}

impl TopicState {
    pub(super) fn of(partitions: Vec<Partition>, found: &FoundTopic, mismatches: Vec<Mismatch>) -> Self {
        let retention = found.settings.get("retention.ms").and_then(|text| text.parse::<i64>().ok());
        let retention = retention.map(|millis| u64::try_from(millis).map_or(Duration::MAX, Duration::from_millis));
        Self { partitions, layout: Some(found.layout()), retention, mismatches }
    }

    pub(super) fn absent() -> Self {
        Self { partitions: Vec::new(), layout: None, retention: None, mismatches: vec![absent_topic()] }
    }
}

/// Makes a topic as planned, on the brokers that answer, unless it exists. Errors: [`TransportError`].
pub async fn init(transport: &AnyTransport, plan: &TopicPlan) -> Result<Made, TransportError> {
    match transport.innermost() {
        AnyTransport::Kafka(kafka) => Ok(kafka.init_topic(plan).await?),
        AnyTransport::Embedded(embedded) => match embedded.create_topic(&plan.topic, EMBEDDED_PARTITIONS).await {
            Ok(()) => Ok(Made::Created),
            Err(RecordsError::TopicExists { .. }) => Ok(Made::Exists),
            Err(other) => Err(other.into()),
        },
        AnyTransport::Attached(attached) => {
            let new = attached.create_topic(&plan.topic, EMBEDDED_PARTITIONS).await?;
            Ok(if new { Made::Created } else { Made::Exists })
        }
        // `innermost` never gives one.
        AnyTransport::Adversary(_) => Ok(Made::Exists),
    }
}

/// Adds a partition on each answering broker that is not the first of one, and gives how many those are. Nothing is moved.
/// Errors: [`TransportError`]; a topic that is not there is one.
pub async fn grow(transport: &AnyTransport, plan: &TopicPlan) -> Result<usize, TransportError> {
    match transport.innermost() {
        AnyTransport::Kafka(kafka) => Ok(kafka.grow_topic(plan).await?),
        // It has all domains that it will ever have.
        AnyTransport::Embedded(_) | AnyTransport::Attached(_) | AnyTransport::Adversary(_) => Ok(0),
    }
}

/// Which brokers there are, and which of them answer, each asked now; `None` where there are none to ask. Errors:
/// [`TransportError`] when nobody answers.
pub async fn cluster(transport: &AnyTransport) -> Result<Option<Cluster>, TransportError> {
    match transport.innermost() {
        AnyTransport::Kafka(kafka) => Ok(Some(kafka.cluster().await?)),
        AnyTransport::Embedded(_) | AnyTransport::Attached(_) | AnyTransport::Adversary(_) => Ok(None),
    }
}

/// Whether the cluster would make this topic now; nothing is made. `None` when that cannot be known: the topic is there, the
/// right is missing, or there is no cluster. Errors: [`TransportError`] when nobody answers.
pub async fn permits(transport: &AnyTransport, plan: &TopicPlan) -> Result<Option<bool>, TransportError> {
    match transport.innermost() {
        AnyTransport::Kafka(kafka) => Ok(kafka.permits(plan).await?),
        AnyTransport::Embedded(_) | AnyTransport::Attached(_) | AnyTransport::Adversary(_) => Ok(None),
    }
}

/// How a topic is compared with its plan.
#[derive(Debug, Clone, Copy, Default)]
pub struct Look<'a> {
    /// The brokers, when they were asked just now ([`cluster`]); otherwise they are asked again.
    pub cluster: Option<&'a Cluster>,
    /// Take the layout that the topic has for the planned one: pinned and replicated topics are both right by themselves.
    pub as_found: bool,
}

/// Compares a topic with its plan; the brokers are asked now, each by itself, because what a cluster lists may have died a
/// moment ago. Errors: [`TransportError`] when it cannot be looked at; what is wrong with the topic is no error but the answer.
pub async fn check(transport: &AnyTransport, plan: &TopicPlan) -> Result<TopicState, TransportError> {
    look(transport, plan, Look::default()).await
}

/// The same as [`check`], with more to say about how.
pub async fn look(transport: &AnyTransport, plan: &TopicPlan, how: Look<'_>) -> Result<TopicState, TransportError> {
    match transport.innermost() {
        AnyTransport::Kafka(kafka) => Ok(kafka.look_at_topic(plan, how).await?),
        AnyTransport::Embedded(embedded) => Ok(embedded_state(embedded.partitions(&plan.topic).to_vec())),
        AnyTransport::Attached(attached) => {
            attached.ready().await?;
            Ok(embedded_state(attached.partitions(&plan.topic).to_vec()))
        }
        AnyTransport::Adversary(_) => Ok(TopicState::absent()),
    }
}

/// On an embedded transport a topic that is there is right.
fn embedded_state(partitions: Vec<Partition>) -> TopicState {
    let state = TopicState { partitions, layout: None, retention: None, mismatches: Vec::new() };
    if state.partitions.is_empty() { TopicState::absent() } else { state }
}

/// The topic is not there.
fn absent_topic() -> Mismatch {
    Mismatch {
        what: "topic".to_owned(),
        found: "absent".to_owned(),
        wanted: "there".to_owned(),
        mend: "make it with `sealcast topic init`".to_owned(),
    }
}
