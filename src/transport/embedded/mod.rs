//! The embedded transport: topics in a folder of this machine. For a first run, for development, and for one machine. What it
//! acknowledged survives a crash of the process and of the machine.
//!
//! One process has the folder open ([`Embedded`]), and can serve it to others of this machine ([`Service`]), which reach it
//! through a Unix socket in the folder ([`Attached`]).
//!
//! Owns waiting, credit and how a folder's log looks through the contract; the log itself is [`crate::store::records`].

mod attached;
mod serve;
mod socket;

pub use attached::Attached;
pub use serve::Service;
pub use socket::{SocketError, path as socket_path};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::contract::{
    self, Ack, AppendError, Batch, Domain, Fetched, Full, Offset, Partition, PartitionId, Pending, READ_BYTES,
    READ_WAIT, ReadError, Record, Topic, Transport, Trouble,
};
use crate::seams::Seams;
use crate::store::records::{self, RecordLog, RecordsError};

#[allow(missing_docs, clippy::all, reason = "generated; what each item means stands in proto/sealcast/embedded/v1")]
mod proto {
    tonic::include_proto!("sealcast.embedded.v1");
}

/// Bytes that wait for the disk (or, attached, for an answer) in each partition before appends are given back.
const CREDIT_BYTES: usize = 16 << 20;

/// How an embedded transport is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddedOptions {
    /// Where; made if it is not there. One process at a time.
    pub folder: PathBuf,
    /// Records older than this go, whole files at a time; `None` keeps everything.
    pub retention: Option<Duration>,
    /// A file that reached this many bytes is followed by a new one.
    pub file_bytes: u64,
}

impl EmbeddedOptions {
    /// This folder, everything kept.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let records::Options { file_bytes, retention } = records::Options::default();
        Self { folder: folder.into(), retention, file_bytes }
    }
}

/// The transport. Clones share it; the last one to go closes the folder.
#[derive(Clone)]
pub struct Embedded {
    log: RecordLog,
    folder: Arc<Path>,
    seams: Seams,
    known: Arc<Mutex<BTreeMap<Topic, Known>>>,
    /// Changes whenever a topic is made.
    made: Arc<watch::Sender<()>>,
}

/// What is fixed about a topic once it exists.
#[derive(Clone)]
struct Known {
    partitions: Arc<[Partition]>,
    waiting: Arc<[AtomicUsize]>,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").field("log", &self.log).finish_non_exhaustive()
    }
}

impl Embedded {
    /// Opens the folder. Blocks shortly: what a crash left torn is cut off. Errors: those of [`RecordLog::open`].
    pub fn open(options: &EmbeddedOptions, seams: &Seams) -> Result<Self, RecordsError> {
        let kept = records::Options { file_bytes: options.file_bytes, retention: options.retention };
        let log = RecordLog::open(&options.folder, seams, kept)?;
        let made = Arc::new(watch::Sender::new(()));
        Ok(Self { log, folder: options.folder.as_path().into(), seams: seams.clone(), known: Arc::default(), made })
    }

    /// Makes a topic, durably. Each of its partitions is a domain of its own, so that coded profiles work as on a cluster.
    /// Errors: [`RecordsError::TopicExists`], [`RecordsError::BadTopic`], and those of the disk.
    pub async fn create_topic(&self, topic: &Topic, partitions: u32) -> Result<(), RecordsError> {
        let (done, created) = tokio::sync::oneshot::channel();
        let done = Box::new(move |answer| {
            // Somebody who stopped waiting does not need the answer.
            let _ = done.send(answer);
        });
        self.log.create(topic.as_str(), partitions, done);
        let created = created.await.unwrap_or(Err(RecordsError::Closed)).map(|_| ());
        self.made.send_replace(());
        created
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Tells of every topic that is made.
    fn made(&self) -> watch::Receiver<()> {
        self.made.subscribe()
    }

    /// Every topic with its number of partitions.
    pub fn topics(&self) -> Vec<(String, usize)> {
        self.log.topics()
    }

    fn known(&self, topic: &Topic) -> Option<Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(topic) {
            return Some(found.clone());
        }
        let count = self.log.partitions(topic.as_str())?;
        let found = Known {
            partitions: partitions(topic, count, true),
            waiting: (0..count).map(|_| AtomicUsize::new(0)).collect(),
        };
        known.insert(topic.clone(), found.clone());
        Some(found)
    }
}

/// The partitions of a topic: each fails by itself as far as placing knows, so that the erasure code has its three domains.
fn partitions(topic: &Topic, count: usize, up: bool) -> Arc<[Partition]> {
    let partition = |number| Partition {
        id: PartitionId { topic: topic.clone(), number },
        domain: Domain(format!("embedded-{number}").into()),
        up,
        copies: 1,
    };
    (0..i32::try_from(count).unwrap_or(i32::MAX)).map(partition).collect()
}

/// That there is no such topic.
fn missing(topic: &Topic) -> Trouble {
    Trouble { cause: format!("there is no topic {topic}: make it with `sealcast topic init`"), missing: true }
}

impl Transport for Embedded {
    fn partitions(&self, topic: &Topic) -> Arc<[Partition]> {
        self.known(topic).map_or_else(|| Arc::from([]), |known| known.partitions)
    }

    fn trouble(&self, topic: &Topic) -> Option<Trouble> {
        self.known(topic).is_none().then(|| missing(topic))
    }

    fn append(&self, to: PartitionId, record: Record) -> Result<Pending<Ack>, Full<Record>> {
        if let Err(cause) = contract::fits(&record) {
            let (fulfil, pending) = Pending::new();
            // The receiver is in `pending`.
            let _ = fulfil.send(Err(AppendError::Refused { partition: to, cause }));
            return Ok(pending);
        }
        let size = record.key.len() + record.value.len();
        let waiting = self.known(&to.topic).map(|known| known.waiting);
        let index = usize::try_from(to.number).unwrap_or(usize::MAX);
        let credit = waiting.clone().and_then(|waiting| {
            let before = waiting.get(index)?.fetch_add(size, Ordering::AcqRel);
            Some((waiting, before))
        });
        let give_back = move |waiting: &Arc<[AtomicUsize]>| {
            if let Some(waiting) = waiting.get(index) {
                waiting.fetch_sub(size, Ordering::AcqRel);
            }
        };
        // One record always fits, however large.
        if let Some((waiting, before)) = &credit
            && *before > 0
            && before + size > CREDIT_BYTES
        {
            give_back(waiting);
            return Err(Full(record));
        }
        let (fulfil, pending) = Pending::new();
        let (clock, began) = (self.seams.clock.clone(), self.seams.clock.monotonic());
        let partition = to.clone();
        let done = Box::new(move |answer: Result<Offset, RecordsError>| {
            if let Some((waiting, _)) = &credit {
                give_back(waiting);
            }
            let took = clock.monotonic().saturating_sub(began);
            // An append whose waiter is gone is durable all the same.
            let _ =
                fulfil.send(answer.map(|offset| Ack { offset, took }).map_err(|error| append_error(partition, error)));
        });
        self.log.append(to.topic.as_str(), to.number, record.key, record.value, done);
        Ok(pending)
    }

    async fn read(&self, from: PartitionId, at: Offset) -> Result<Batch, ReadError> {
        let (topic, number) = (from.topic.as_str(), from.number);
        let failed = |error| read_error(&from, error);
        let mut end = self.log.watch(topic, number).map_err(failed)?;
        if *end.borrow_and_update() == at {
            let more = async { end.wait_for(|end| *end > at).await.is_ok() };
            tokio::select! {
                biased;
                grown = more => if !grown { return Err(ReadError::Closed) },
                () = self.seams.clock.sleep(READ_WAIT) => {}
            }
        }
        let read = match self.log.read_recent(topic, number, at, READ_BYTES).map_err(failed)? {
            Some(read) => read,
            None => {
                let (log, from) = (self.log.clone(), from.clone());
                let job = move || log.read(from.topic.as_str(), from.number, at, READ_BYTES);
                self.seams.work.run(job).await.map_err(|_| ReadError::Closed)?.map_err(failed)?
            }
        };
        let next = read.records.last().map_or(at, |last| last.offset + 1);
        let fetched = |stored: records::Stored| Fetched {
            offset: stored.offset,
            time: stored.time,
            key: stored.key,
            value: Some(stored.value),
        };
        let records = read.records.into_iter().map(fetched).collect();
        Ok(Batch { records, next, low: read.low, end: read.end, session: 0 })
    }
}

fn append_error(partition: PartitionId, error: RecordsError) -> AppendError {
    let cause = error.to_string();
    match error {
        RecordsError::Closed => AppendError::Closed,
        error if error.retryable() => AppendError::Absent { partition, cause },
        _ => AppendError::Refused { partition, cause },
    }
}

fn read_error(from: &PartitionId, error: RecordsError) -> ReadError {
    let (partition, cause) = (from.clone(), error.to_string());
    match error {
        RecordsError::Closed => ReadError::Closed,
        RecordsError::OutOfRange { asked, low, end } => ReadError::OutOfRange { partition, asked, low, end },
        error if error.retryable() => ReadError::Absent { partition, cause },
        _ => ReadError::Refused { partition, cause },
    }
}
