//! The contract that every transport fulfils. One conformance suite (tests/parts/transport) runs on all of them.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::core::id::{DestinationName, EnvironmentName, Time};
use crate::core::limits;

/// A topic's name, as the transport knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

impl Topic {
    /// The segments topic of a destination: `sealcast.<environment>.<destination>.segments`.
    pub fn segments(environment: &EnvironmentName, destination: &DestinationName) -> Self {
        Self(format!("sealcast.{environment}.{destination}.segments").into())
    }

    /// What nodes say in an environment: `sealcast.<environment>.notices`.
    pub fn notices(environment: &EnvironmentName) -> Self {
        Self(format!("sealcast.{environment}.notices").into())
    }

    /// A topic by the name that a transport gave.
    pub fn named(name: &str) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId {
    /// Its topic.
    pub topic: Topic,
    /// Its number, from 0.
    pub number: i32,
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.number)
    }
}

/// What fails together: a rack where brokers declare one, else a broker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(pub Arc<str>);

/// A partition as the transport sees it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Which one.
    pub id: PartitionId,
    /// What it fails with: that of its leader. Empty when there is no leader.
    pub domain: Domain,
    /// Whether a leader is known and its connection stands.
    pub up: bool,
    /// In how many domains an acknowledged record lies: 1 for the embedded transport and replication 1; 2 for a replicated
    /// topic under acks=all and min ISR of at least 2 (R14).
    pub copies: u8,
}

/// How long a read waits for a first record.
pub const READ_WAIT: Duration = Duration::from_millis(500);

/// How many bytes of records a read gives, about; always at least one record, if there is one.
pub const READ_BYTES: usize = 1 << 20;

/// Where a record lies in its partition, from 0.
pub type Offset = i64;

/// What is appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The record's key: a segment's UUID, or who a notice is for; at most `limits::KEY_BYTES`. An empty key and none are
    /// the same.
    pub key: Bytes,
    /// The record's bytes, at most `limits::SEGMENT_BYTES`.
    pub value: Bytes,
}

/// A record's place, once the transport has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Its offset.
    pub offset: Offset,
    /// From append to acknowledgement.
    pub took: Duration,
}

/// The transport took no record because its credit for that partition's domain is used up: here it is again. Wait, or
/// place it elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the transport's credit for this partition is used up")]
pub struct Full<T>(pub T);

impl<T> Full<T> {
    /// Whether the same append can succeed later: when the domain has acknowledged something.
    pub fn retryable(&self) -> bool {
        true
    }
}

/// Why an appended record has no acknowledgement. The record may be there all the same; appending it again is harmless.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// No leader, or its connection is lost, or no acknowledgement within the message timeout: place it elsewhere.
    #[error("{partition}: not acknowledged: {cause}")]
    Absent {
        /// Where it was to go.
        partition: PartitionId,
        /// What the transport said.
        cause: String,
    },
    /// The transport refuses this record for good: too large, no such topic, no right. The mend is in the text.
    #[error("{partition}: refused: {cause}")]
    Refused {
        /// Where it was to go.
        partition: PartitionId,
        /// What the transport said, and what to do.
        cause: String,
    },
    /// The transport is closing.
    #[error("the transport is closed")]
    Closed,
}

impl AppendError {
    /// Whether the same record can be appended later or elsewhere.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Absent { .. })
    }
}

/// An acknowledgement on its way: resolves when the transport has the record durably (as its profile means it) or gave
/// up. Dropping it does not take the record back.
#[derive(Debug)]
pub struct Pending<T>(oneshot::Receiver<Result<T, AppendError>>);

impl<T> Pending<T> {
    /// A pending acknowledgement and the means to fulfil it.
    pub fn new() -> (oneshot::Sender<Result<T, AppendError>>, Self) {
        let (fulfil, pending) = oneshot::channel();
        (fulfil, Self(pending))
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, AppendError>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(AppendError::Closed)))
    }
}

/// One record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Where it lies.
    pub offset: Offset,
    /// When the broker appended it (LogAppendTime, R18).
    pub time: Time,
    /// Its key; empty for a null key.
    pub key: Bytes,
    /// Its bytes; `None` for a tombstone.
    pub value: Option<Bytes>,
}

/// What a read gives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// Records in order of their offsets, the first at or after the offset asked for. Offsets may skip (control records,
    /// retention at the front); they never repeat.
    pub records: Vec<Fetched>,
    /// The offset to ask for next.
    pub next: Offset,
    /// The first offset that the partition still has.
    pub low: Offset,
    /// The offset after the last record that the partition has (for lag).
    pub end: Offset,
    /// Which session of the transport it comes from, where sessions can end without a read that fails. A later one may be
    /// with another log: who goes on behind an offset first compares the record before it (R17).
    pub session: u64,
}

/// Why a read gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The offset is below the first or above the end that the partition has (R17).
    #[error("{partition}: offset {asked} is outside {low}..={end}")]
    OutOfRange {
        /// Where.
        partition: PartitionId,
        /// The offset asked for.
        asked: Offset,
        /// The first offset there is.
        low: Offset,
        /// The end.
        end: Offset,
    },
    /// The partition cannot be reached now; read again.
    #[error("{partition}: {cause}")]
    Absent {
        /// Where.
        partition: PartitionId,
        /// What the transport said.
        cause: String,
    },
    /// Reading will not succeed until somebody mends something: no such topic, no right. The mend is in the text.
    #[error("{partition}: {cause}")]
    Refused {
        /// Where.
        partition: PartitionId,
        /// What the transport said, and what to do.
        cause: String,
    },
    /// The transport is closing.
    #[error("the transport is closed")]
    Closed,
}

impl ReadError {
    /// Whether the same read can succeed later by itself.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Absent { .. })
    }
}

/// Whether a record is within what every transport carries. Errors: the mend, for [`AppendError::Refused`].
pub(super) fn fits(record: &Record) -> Result<(), String> {
    let (key, value) = (record.key.len(), record.value.len());
    if key > limits::KEY_BYTES {
        return Err(format!("a key of {key} bytes: the most is {}", limits::KEY_BYTES));
    }
    if value > limits::SEGMENT_BYTES {
        return Err(format!("a record of {value} bytes: the most is {}; use smaller shards", limits::SEGMENT_BYTES));
    }
    Ok(())
}

/// Why a topic has no partitions. Displays as the cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What is wrong and what to do, for people.
    pub cause: String,
    /// Whether it is that there is no such topic. All else (nobody answers, no way in, a right that is missing) says nothing
    /// about that.
    pub missing: bool,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

/// Partitions only: append to one, read one from an offset. Policy lives in the core.
pub trait Transport: Send + Sync + 'static {
    /// The partitions of a topic as known now, ascending by number; empty while the topic is unknown. Does not block:
    /// implementations refresh in the background.
    fn partitions(&self, topic: &Topic) -> Arc<[Partition]>;

    /// Why a topic has no partitions, as far as it is known; nothing while there are some, while nobody had time to find out,
    /// and from a transport that cannot tell.
    fn trouble(&self, _topic: &Topic) -> Option<Trouble> {
        None
    }

    /// Appends a record. Does not block. Errors: [`Full`] gives the record back when the partition's domain has no credit.
    fn append(&self, to: PartitionId, record: Record) -> Result<Pending<Ack>, Full<Record>>;

    /// Reads from an offset on: waits until there is at least one record or about half a second has passed (then the batch
    /// is empty). At most about a mebibyte a call. Reading from where the last batch ended is the fast way.
    fn read(&self, from: PartitionId, at: Offset) -> impl Future<Output = Result<Batch, ReadError>> + Send;
}
