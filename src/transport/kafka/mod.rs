//! Kafka: the only place that knows rdkafka.
//!
//! One non-idempotent producer for each broker with its own credit (R15), consumers with a bounded queue for each
//! partition, and a thread that keeps the picture of the cluster. Blocking calls run on threads of their own or in the
//! work seam; nothing here holds up an async thread.

mod access;
mod board;
mod lane;
mod properties;
mod reader;
mod refresh;
mod topics;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError as NativeError;
use rdkafka::{Offset as NativeOffset, TopicPartitionList};

use super::contract::{
    self, Ack, AppendError, Batch, Full, Offset, Partition, PartitionId, Pending, ReadError, Record, Topic, Transport,
    Trouble,
};
use crate::seams::Seams;
use access::Access;
use board::{Board, BrokerId, Route};
use lane::{GIVE_UP, Lane};
use reader::Readers;
use refresh::{Asking, Quiet};

/// How long who ends waits for the consumers that told lag tools of offsets.
const LEAVE: Duration = Duration::from_secs(1);

/// How to reach a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaOptions {
    /// `host:port`, comma-separated: some of the brokers; the others are learned from them.
    pub brokers: String,
    /// librdkafka's properties, passed on verbatim; those that would break a guarantee are refused by name.
    pub properties: BTreeMap<String, String>,
    /// Bytes that may be under way to one broker before appends are given back.
    pub credit_bytes: usize,
}

impl std::fmt::Debug for KafkaOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values can be passwords.
        let names: Vec<_> = self.properties.keys().collect();
        let mut shown = f.debug_struct("KafkaOptions");
        shown
            .field("brokers", &self.brokers)
            .field("properties", &names)
            .field("credit_bytes", &self.credit_bytes)
            .finish()
    }
}

impl KafkaOptions {
    /// Whether the properties are such that a transport can be set up. Errors: [`KafkaError::Property`], by name and with
    /// the reason.
    pub fn check(&self) -> Result<(), KafkaError> {
        properties::check(&self.properties)
    }

    /// These brokers, no properties, 8 MiB of credit for each broker.
    pub fn new(brokers: impl Into<String>) -> Self {
        Self { brokers: brokers.into(), properties: BTreeMap::new(), credit_bytes: 8 << 20 }
    }
}

/// What goes wrong with a cluster, apart from single records.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KafkaError {
    /// A property that is refused, unknown or out of its range.
    #[error("Kafka property {name}: {reason}")]
    Property {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// librdkafka could not be set up.
    #[error("the Kafka client: {cause}")]
    Client {
        /// What it said.
        cause: String,
    },
    /// The cluster does not answer, or not yet.
    #[error("Kafka does not answer: {cause}; are the brokers right, and running?")]
    Unavailable {
        /// What is known.
        cause: String,
    },
    /// The brokers answer, and there is no way in: credentials, certificates, who signed theirs. The mend is in the text.
    #[error("Kafka at {brokers} cannot be used: {cause}")]
    Barred {
        /// The bootstrap brokers.
        brokers: String,
        /// What the connection said, and what to do.
        cause: String,
    },
    /// The cluster refused.
    #[error("Kafka refuses to {what}: {cause}")]
    Rejected {
        /// What was asked.
        what: &'static str,
        /// What it said, and what to do.
        cause: String,
    },
    /// The transport is closing.
    #[error("the transport is closed")]
    Closed,
}

impl KafkaError {
    /// Whether the same call can succeed later by itself.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// The transport. Clones share it; the last one to go closes it.
#[derive(Clone)]
pub struct Kafka {
    shared: Arc<Shared>,
}

struct Shared {
    options: KafkaOptions,
    seams: Seams,
    board: Arc<Board>,
    asking: Arc<Asking>,
    lanes: Arc<Mutex<BTreeMap<BrokerId, Arc<Lane>>>>,
    readers: Readers,
    committers: Mutex<BTreeMap<String, Arc<BaseConsumer<Quiet>>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.board.close();
        let committers = std::mem::take(self.committers.get_mut().unwrap_or_else(PoisonError::into_inner));
        if committers.is_empty() {
            return;
        }
        // They end once their commits are answered, which takes as long as no broker answers. Who ends waits for a moment;
        // without a thread that goes on, for all of it.
        let (leaving, left) = std::sync::mpsc::channel::<()>();
        let leave = move || {
            drop(committers);
            drop(leaving);
        };
        match thread::Builder::new().name("kafka-leaves".to_owned()).spawn(leave) {
            Ok(_) => drop(left.recv_timeout(LEAVE)),
            Err(error) => tracing::debug!(%error, "no thread to leave with"),
        }
    }
}

impl std::fmt::Debug for Kafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kafka").field("brokers", &self.shared.options.brokers).finish_non_exhaustive()
    }
}

impl Kafka {
    /// Sets up a transport to a cluster, which need not be there yet. Errors: [`KafkaError::Property`],
    /// [`KafkaError::Client`].
    pub fn connect(options: &KafkaOptions, seams: &Seams) -> Result<Self, KafkaError> {
        properties::check(&options.properties)?;
        let board = Arc::new(Board::new(seams.clock.clone(), Access::new(&options.brokers, &options.properties)));
        let asking = Arc::new(Asking::new(&properties::asking(&options.brokers, &options.properties), &board)?);
        let lanes = Arc::default();
        refresh::start(board.clone(), asking.clone(), seams.clone())?;
        watch_lanes(&board, &lanes)?;
        let config = properties::reader(&options.brokers, &options.properties);
        let readers = Readers::new(config, board.clone(), asking.clone(), seams.clone());
        let (options, seams) = (options.clone(), seams.clone());
        let shared = Shared { options, seams, board, asking, lanes, readers, committers: Mutex::default() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Tells the brokers how far a group of readers came, for tools that show lag. Best effort: does not wait for them.
    pub fn commit_offsets(&self, group: &str, offsets: &[(PartitionId, Offset)]) {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            let offset = NativeOffset::Offset(*offset);
            if let Err(error) = list.add_partition_offset(partition.topic.as_str(), partition.number, offset) {
                tracing::debug!(%partition, %error, "an offset that cannot be committed");
            }
        }
        let committed = self.committer(group).and_then(|committer| {
            committer.commit(&list, CommitMode::Async)?;
            while committer.poll(Duration::ZERO).is_some() {}
            Ok(())
        });
        if let Err(error) = committed {
            tracing::debug!(group, %error, "offsets for lag tools were not committed");
        }
    }

    fn committer(&self, group: &str) -> Result<Arc<BaseConsumer<Quiet>>, NativeError> {
        let mut committers = self.shared.committers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(committer) = committers.get(group) {
            return Ok(committer.clone());
        }
        let options = &self.shared.options;
        let config = properties::committer(&options.brokers, &options.properties, group);
        let committer = Arc::new(BaseConsumer::from_config_and_context(&config, Quiet)?);
        committers.insert(group.to_owned(), committer.clone());
        Ok(committer)
    }

    fn asking(&self) -> &Arc<Asking> {
        &self.shared.asking
    }

    /// Says which brokers do not answer, and why as far as it is known.
    fn explained(&self, error: KafkaError) -> KafkaError {
        match error {
            KafkaError::Unavailable { cause } => self.access().unreached(self.shared.board.failure(), cause),
            other => other,
        }
    }

    fn access(&self) -> &Access {
        self.shared.board.access()
    }

    /// The brokers' addresses as they were given, for commands that people type.
    fn bootstrap(&self) -> &str {
        &self.shared.options.brokers
    }

    fn seams(&self) -> &Seams {
        &self.shared.seams
    }

    /// Has a topic looked at anew, at once.
    fn forget(&self, topic: &Topic) {
        self.shared.board.forget(topic);
    }

    fn lane(&self, broker: BrokerId) -> Result<Arc<Lane>, KafkaError> {
        let shared = &self.shared;
        let mut lanes = shared.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(&broker) {
            return Ok(lane.clone());
        }
        let config = properties::producer(&shared.options.brokers, &shared.options.properties);
        let credit = shared.options.credit_bytes;
        let lane = Arc::new(Lane::new(broker, &config, &shared.board, &shared.seams.clock, credit)?);
        lanes.insert(broker, lane.clone());
        Ok(lane)
    }
}

/// Starts the thread that gives up, in time, what waits for an absent leader. It rests while all is well.
fn watch_lanes(board: &Arc<Board>, lanes: &Arc<Mutex<BTreeMap<BrokerId, Arc<Lane>>>>) -> Result<(), KafkaError> {
    let (board, lanes) = (board.clone(), lanes.clone());
    let watch = move || {
        while !board.closed() {
            if board.troubled() {
                let all: Vec<_> = lanes.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
                all.iter().for_each(|lane| lane.give_up(&board));
            }
            thread::sleep(GIVE_UP / 10);
        }
    };
    let spawned = thread::Builder::new().name("kafka-lanes".to_owned()).spawn(watch);
    spawned.map(|_| ()).map_err(|error| KafkaError::Client { cause: format!("cannot start a thread: {error}") })
}

impl Transport for Kafka {
    fn partitions(&self, topic: &Topic) -> Arc<[Partition]> {
        self.shared.board.partitions(topic)
    }

    fn trouble(&self, topic: &Topic) -> Option<Trouble> {
        self.shared.board.trouble(topic)
    }

    fn append(&self, to: PartitionId, record: Record) -> Result<Pending<Ack>, Full<Record>> {
        let shared = &self.shared;
        let told = match (contract::fits(&record), shared.board.route(&to)) {
            (Err(cause), _) | (_, Route::Refused(cause)) => AppendError::Refused { partition: to, cause },
            (_, Route::Absent(cause)) => AppendError::Absent { partition: to, cause },
            (_, Route::Broker(broker)) => {
                let now = shared.seams.clock.monotonic();
                let down = shared.board.down_since(broker).is_some_and(|since| now.saturating_sub(since) >= GIVE_UP);
                match self.lane(broker) {
                    Ok(_) if down => {
                        AppendError::Absent { partition: to, cause: "its broker cannot be reached".to_owned() }
                    }
                    Ok(lane) => return lane.append(to, record, &shared.board),
                    Err(error) => AppendError::Refused { partition: to, cause: error.to_string() },
                }
            }
        };
        let (answer, pending) = Pending::new();
        // The receiver is in `pending`.
        let _ = answer.send(Err(told));
        Ok(pending)
    }

    async fn read(&self, from: PartitionId, at: Offset) -> Result<Batch, ReadError> {
        self.shared.readers.read(from, at).await
    }
}
