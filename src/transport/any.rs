//! The transport that the configuration names.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::adversary::{Adversary, AdversaryOptions};
use super::contract::{
    Ack, Batch, Full, Offset, Partition, PartitionId, Pending, ReadError, Record, Topic, Transport, Trouble,
};
use super::embedded::{Attached, Embedded, EmbeddedOptions, Service, SocketError};
use super::kafka::{Kafka, KafkaError, KafkaOptions};
use crate::config::TransportSettings;
use crate::seams::{BoxFuture, Seams};
use crate::store::records::RecordsError;

/// Which transport, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransportOptions {
    /// A Kafka cluster.
    Kafka(KafkaOptions),
    /// A folder of this machine, in this process, which then has it alone.
    Embedded(EmbeddedOptions),
    /// A folder of this machine that another process has open and serves.
    Attached(PathBuf),
}

impl TransportOptions {
    /// For a process that runs nodes: an embedded folder is its own.
    pub fn for_nodes(settings: TransportSettings) -> Self {
        match settings {
            TransportSettings::Kafka { brokers, properties } => {
                Self::Kafka(KafkaOptions { properties, ..KafkaOptions::new(brokers.join(",")) })
            }
            TransportSettings::Embedded { path } => Self::Embedded(EmbeddedOptions::new(path)),
        }
    }

    /// For a process that runs none: an embedded folder is that of the process that does.
    pub fn for_clients(settings: TransportSettings) -> Self {
        match settings {
            TransportSettings::Embedded { path } => Self::Attached(path),
            settings => Self::for_nodes(settings),
        }
    }
}

/// How often a process that finds an embedded folder open, and not served yet, looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long it looks: a process that has just opened it serves it after that.
const LOOK_FOR: Duration = Duration::from_secs(3);

/// Why there is no transport.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The cluster, or how to reach it.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The embedded transport's folder.
    #[error("the embedded transport: {0}")]
    Embedded(#[from] RecordsError),
    /// The embedded transport of another process, or sharing one's own.
    #[error("the embedded transport: {0}")]
    Socket(#[from] SocketError),
}

impl TransportError {
    /// Whether the same call can succeed later by itself.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Kafka(error) => error.retryable(),
            Self::Embedded(error) => error.retryable(),
            Self::Socket(error) => error.retryable(),
        }
    }
}

/// One of the transports. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub enum AnyTransport {
    /// A Kafka cluster.
    Kafka(Kafka),
    /// In this process, durable.
    Embedded(Embedded),
    /// In another process of this machine, durable.
    Attached(Attached),
    /// A hostile one around another.
    Adversary(Box<Adversary<AnyTransport>>),
}

impl AnyTransport {
    /// Opens the transport that the options name; a cluster need not be there yet, a process to attach to must. Must be called
    /// inside a runtime. Errors: [`TransportError`].
    pub fn open(options: &TransportOptions, seams: &Seams) -> Result<Self, TransportError> {
        Ok(match options {
            TransportOptions::Kafka(options) => Self::Kafka(Kafka::connect(options, seams)?),
            TransportOptions::Embedded(options) => Self::Embedded(Embedded::open(options, seams)?),
            TransportOptions::Attached(folder) => Self::Attached(Attached::open(folder, seams)?),
        })
    }

    /// Opens the transport, and attaches to whoever has its embedded folder open. Errors: [`TransportError`]; that somebody
    /// has it open and does not serve it is [`RecordsError::InUse`].
    pub async fn open_or_attach(settings: TransportSettings, seams: &Seams) -> Result<Self, TransportError> {
        let attaching = TransportOptions::for_clients(settings.clone());
        let opening = TransportOptions::for_nodes(settings);
        let began = seams.clock.monotonic();
        loop {
            let in_use = match Self::open(&opening, seams) {
                Err(error @ TransportError::Embedded(RecordsError::InUse { .. })) => error,
                other => return other,
            };
            match Self::open(&attaching, seams) {
                Err(TransportError::Socket(SocketError::NobodyServes { .. })) => {}
                other => return other,
            }
            if seams.clock.monotonic().saturating_sub(began) >= LOOK_FOR {
                return Err(in_use);
            }
            seams.clock.sleep(LOOK_AGAIN).await;
        }
    }

    /// Serves an embedded transport of this process to others, as long as the service is kept; `None` for any other.
    /// Errors: [`TransportError::Socket`].
    pub fn serve(&self, seams: &Seams) -> Result<Option<Service>, TransportError> {
        match self.innermost() {
            Self::Embedded(embedded) => Ok(Some(Service::start(embedded, seams)?)),
            _ => Ok(None),
        }
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
            Self::Attached(attached) => attached.partitions(topic),
            Self::Adversary(adversary) => adversary.partitions(topic),
        }
    }

    fn trouble(&self, topic: &Topic) -> Option<Trouble> {
        match self.innermost() {
            Self::Kafka(kafka) => kafka.trouble(topic),
            Self::Embedded(embedded) => embedded.trouble(topic),
            Self::Attached(attached) => attached.trouble(topic),
            Self::Adversary(adversary) => adversary.inner().trouble(topic),
        }
    }

    fn append(&self, to: PartitionId, record: Record) -> Result<Pending<Ack>, Full<Record>> {
        match self {
            Self::Kafka(kafka) => kafka.append(to, record),
            Self::Embedded(embedded) => embedded.append(to, record),
            Self::Attached(attached) => attached.append(to, record),
            Self::Adversary(adversary) => adversary.append(to, record),
        }
    }

    async fn read(&self, from: PartitionId, at: Offset) -> Result<Batch, ReadError> {
        match self {
            Self::Kafka(kafka) => kafka.read(from, at).await,
            Self::Embedded(embedded) => embedded.read(from, at).await,
            Self::Attached(attached) => attached.read(from, at).await,
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
