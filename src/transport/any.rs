//! The transport that the configuration names.

use std::sync::Arc;
use std::time::Duration;

use super::adversary::{Adversary, AdversaryOptions};
use super::contract::{Ack, Batch, Full, Offset, Partition, PartitionId, Pending, ReadError, Record, Topic, Transport};
use super::embedded::{Embedded, EmbeddedOptions};
use super::kafka::{Kafka, KafkaError, KafkaOptions};
use crate::config::TransportSettings;
use crate::seams::{BoxFuture, Seams};
use crate::store::records::RecordsError;

/// Which transport, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransportOptions {
    /// A Kafka cluster.
    Kafka(KafkaOptions),
    /// A folder of this machine, in this process.
    Embedded(EmbeddedOptions),
}

impl From<TransportSettings> for TransportOptions {
    fn from(settings: TransportSettings) -> Self {
        match settings {
            TransportSettings::Kafka { brokers, properties } => {
                Self::Kafka(KafkaOptions { properties, ..KafkaOptions::new(brokers.join(",")) })
            }
            TransportSettings::Embedded { path } => Self::Embedded(EmbeddedOptions::new(path)),
        }
    }
}

/// Why there is no transport.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The cluster, or how to reach it.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The embedded transport's folder.
    #[error("the embedded transport: {0}")]
    Embedded(#[from] RecordsError),
}

impl TransportError {
    /// Whether the same call can succeed later by itself.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Kafka(error) => error.retryable(),
            Self::Embedded(error) => error.retryable(),
        }
    }
}

/// One of the transports. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub enum AnyTransport {
    /// A Kafka cluster.
    Kafka(Kafka),
    /// In one process, durable.
    Embedded(Embedded),
    /// A hostile one around another.
    Adversary(Box<Adversary<AnyTransport>>),
}

impl AnyTransport {
    /// Opens the transport that the options name; a cluster need not be there yet. Errors: [`TransportError`].
    pub fn open(options: &TransportOptions, seams: &Seams) -> Result<Self, TransportError> {
        Ok(match options {
            TransportOptions::Kafka(options) => Self::Kafka(Kafka::connect(options, seams)?),
            TransportOptions::Embedded(options) => Self::Embedded(Embedded::open(options, seams)?),
        })
    }

    /// The same behind an adversary. Its count and moods are reached through the variant.
    pub fn behind_adversary(self, options: AdversaryOptions, seams: &Seams) -> Self {
        Self::Adversary(Box::new(Adversary::new(self, options, seams)))
    }

    /// The transport without its adversaries.
    pub fn innermost(&self) -> &Self {
        match self {
            Self::Adversary(adversary) => adversary.inner().innermost(),
            other => other,
        }
    }

    /// The partitions of a topic, waiting up to `within` for the transport to learn of it; empty when it did not.
    pub async fn known(&self, topic: &Topic, within: Duration, seams: &Seams) -> Arc<[Partition]> {
        let began = seams.clock.monotonic();
        loop {
            let partitions = self.partitions(topic);
            if !partitions.is_empty() || seams.clock.monotonic().saturating_sub(began) >= within {
                return partitions;
            }
            seams.clock.sleep(Duration::from_millis(20)).await;
        }
    }

    /// Why a topic has no partitions, as far as it is known, and what to do; nothing while there are some, or while nobody had
    /// time to find out.
    pub fn trouble(&self, topic: &Topic) -> Option<String> {
        match self.innermost() {
            Self::Kafka(kafka) => kafka.trouble(topic),
            _ => None,
        }
    }

    /// Tells the brokers how far a group of readers came, for tools that show lag. Best effort: nothing depends on it, and
    /// nobody but this process sees an embedded transport.
    pub fn commit_offsets(&self, group: &str, offsets: &[(PartitionId, Offset)]) {
        if let Self::Kafka(kafka) = self.innermost() {
            kafka.commit_offsets(group, offsets);
        }
    }
}

impl Transport for AnyTransport {
    fn partitions(&self, topic: &Topic) -> Arc<[Partition]> {
        match self {
            Self::Kafka(kafka) => kafka.partitions(topic),
            Self::Embedded(embedded) => embedded.partitions(topic),
            Self::Adversary(adversary) => adversary.partitions(topic),
        }
    }

    fn append(&self, to: PartitionId, record: Record) -> Result<Pending<Ack>, Full<Record>> {
        match self {
            Self::Kafka(kafka) => kafka.append(to, record),
            Self::Embedded(embedded) => embedded.append(to, record),
            Self::Adversary(adversary) => adversary.append(to, record),
        }
    }

    async fn read(&self, from: PartitionId, at: Offset) -> Result<Batch, ReadError> {
        match self {
            Self::Kafka(kafka) => kafka.read(from, at).await,
            Self::Embedded(embedded) => embedded.read(from, at).await,
            Self::Adversary(adversary) => read_adversary(adversary, from, at).await,
        }
    }
}

/// Boxed, because an adversary can stand around another.
fn read_adversary(
    adversary: &Adversary<AnyTransport>,
    from: PartitionId,
    at: Offset,
) -> BoxFuture<'_, Result<Batch, ReadError>> {
    Box::pin(adversary.read(from, at))
}
