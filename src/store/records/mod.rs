//! A durable log of records in topics and partitions, in one folder of one machine: what the embedded transport stands on.
//!
//! All partitions share append-only files, so that whatever waits becomes durable with one fdatasync, large records lie
//! there once, and the file system is the only other party (a database would round large values up and write them twice).
//! A record is acknowledged after the fdatasync that covers it; its checksum is verified whenever it is read. Retention
//! removes whole files, oldest first.
//!
//! Owns the folder and its files. Must not look inside a record.

mod frame;
mod index;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::core::id::Time;
use crate::core::limits;
use crate::seams::{DiskFile, Seams};
use index::LogFile;

/// Where a record lies in its partition, from 0.
pub type Offset = i64;

/// Longest name of a topic, in bytes, as on Kafka.
pub const TOPIC_NAME_BYTES: usize = 249;

/// Records that a partition keeps in memory for readers close to its end, in bytes.
const RECENT_BYTES: usize = 2 << 20;

/// How the log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// A file that reached this many bytes is followed by a new one; 4 KiB to 1 GiB.
    pub file_bytes: u64,
    /// A file is removed when all of its records are older; `None` keeps everything.
    pub retention: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self { file_bytes: 128 << 20, retention: None }
    }
}

/// A record as the log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Where it lies.
    pub offset: Offset,
    /// When it was appended.
    pub time: Time,
    /// Its key, perhaps empty.
    pub key: Bytes,
    /// Its bytes, perhaps none.
    pub value: Bytes,
}

/// What a read gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Records without a gap, from the offset asked for; empty at the end.
    pub records: Vec<Stored>,
    /// The first offset that the partition still has.
    pub low: Offset,
    /// The offset after its last record.
    pub end: Offset,
}

/// What goes wrong with the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordsError {
    /// The system refused an operation on a file.
    #[error("{path}: cannot {action}: {cause}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        cause: String,
    },
    /// A file does not hold what was written. Restore it, or remove the folder and start anew.
    #[error("{path}: damaged at byte {at}: {cause}; restore the file, or remove the folder and start anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        at: u64,
        /// What is wrong.
        cause: String,
    },
    /// Another process (or another handle of this one) has the folder open.
    #[error("{folder}: in use by another process; stop it, or name another folder")]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// No such topic.
    #[error("topic {topic} does not exist; make it with `sealcast topic init`")]
    UnknownTopic {
        /// Its name.
        topic: String,
    },
    /// The topic has no such partition.
    #[error("topic {topic} has no partition {partition}: it has {partitions}")]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// The number asked for.
        partition: i32,
        /// How many it has.
        partitions: usize,
    },
    /// The topic is there already.
    #[error("topic {topic} exists already, with {partitions} partitions")]
    TopicExists {
        /// Its name.
        topic: String,
        /// How many partitions it has.
        partitions: usize,
    },
    /// A name or number of partitions that topics do not have.
    #[error("topic {topic:?}: a topic has a name of 1 to 249 bytes and 1 to 1024 partitions")]
    BadTopic {
        /// What was given as its name.
        topic: String,
    },
    /// The key or the value is too long.
    #[error(
        "a record has a key of at most {} and a value of at most {} bytes",
        limits::KEY_BYTES,
        limits::SEGMENT_BYTES
    )]
    TooLong,
    /// The offset is below the first or above the end.
    #[error("offset {asked} is outside {low}..={end}")]
    OutOfRange {
        /// The offset asked for.
        asked: Offset,
        /// The first offset there is.
        low: Offset,
        /// The end.
        end: Offset,
    },
    /// What was written may not be durable: nothing more is taken until the folder is opened again.
    #[error("the log failed and takes no more records until it is opened again: {cause}")]
    Failed {
        /// The first failure.
        cause: String,
    },
    /// The log is closing.
    #[error("the log is closed")]
    Closed,
}

impl RecordsError {
    /// Whether the same call can succeed later by itself (space was freed, the other process ended).
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::InUse { .. })
    }
}

/// Called once with a record's offset when it is durable, or with why it is not. Runs on the writer's thread: be short.
pub type Done = Box<dyn FnOnce(Result<Offset, RecordsError>) + Send>;

/// The log, open for this process alone. Clones share it; the last one to go closes it.
#[derive(Debug, Clone)]
pub struct RecordLog {
    shared: Arc<Shared>,
    writer: Arc<Writer>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    topics: BTreeMap<Arc<str>, Arc<TopicState>>,
    files: BTreeMap<u64, Arc<LogFile>>,
    failed: Option<String>,
}

#[derive(Debug)]
struct TopicState {
    id: u32,
    name: Arc<str>,
    partitions: Vec<PartitionState>,
}

#[derive(Debug)]
struct PartitionState {
    end: watch::Sender<Offset>,
    low: AtomicI64,
    recent: Mutex<(VecDeque<Stored>, usize)>,
}

enum Command {
    Append { topic: Arc<TopicState>, partition: u32, key: Bytes, value: Bytes, done: Done },
    Create { name: Arc<str>, partitions: u32, done: Done },
}

#[derive(Debug)]
struct Writer {
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A writer that panicked has told everybody who waited, by dropping their answers.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TopicState {
    fn new(id: u32, name: Arc<str>, ends: &[u64]) -> Self {
        let partition = |end: &u64| PartitionState {
            end: watch::Sender::new(*end as Offset),
            low: AtomicI64::new(0),
            recent: Mutex::default(),
        };
        Self { id, name, partitions: ends.iter().map(partition).collect() }
    }

    fn partition(&self, number: i32) -> Result<(u32, &PartitionState), RecordsError> {
        let found = u32::try_from(number).ok().and_then(|number| Some((number, self.partitions.get(number as usize)?)));
        found.ok_or_else(|| RecordsError::UnknownPartition {
            topic: self.name.to_string(),
            partition: number,
            partitions: self.partitions.len(),
        })
    }
}

impl PartitionState {
    /// The records from `at` to before `end`, if memory still has the first. A record is here a moment before the end moves
    /// past it: who was given it at once would ask for what follows it, and hear that this is out of range.
    fn recent(&self, at: Offset, end: Offset, most: usize) -> Vec<Stored> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let first = recent.0.front().map_or(Offset::MAX, |record| record.offset);
        let Ok(skip) = usize::try_from(at.saturating_sub(first)) else { return Vec::new() };
        let mut left = most;
        let mut taken = Vec::new();
        for record in recent.0.iter().skip(skip).take_while(|record| record.offset < end) {
            let size = record.key.len() + record.value.len();
            if !taken.is_empty() && size > left {
                break;
            }
            left = left.saturating_sub(size);
            taken.push(record.clone());
        }
        taken
    }

    fn remember(&self, record: Stored) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.1 += record.key.len() + record.value.len();
        recent.0.push_back(record);
        while recent.1 > RECENT_BYTES
            && let Some(oldest) = recent.0.pop_front()
        {
            recent.1 -= oldest.key.len() + oldest.value.len();
        }
    }
}

impl RecordLog {
    /// Opens a folder, or makes it. Blocks: checks the last file and cuts off what a crash left torn. Errors: as
    /// [`RecordsError`] says; above all [`RecordsError::InUse`] and [`RecordsError::Damaged`].
    pub fn open(folder: &Path, seams: &Seams, options: Options) -> Result<Self, RecordsError> {
        let failed = |path: &Path, action: &'static str, error: std::io::Error| RecordsError::Io {
            path: path.to_owned(),
            action,
            cause: error.to_string(),
        };
        let disk = &seams.disk;
        disk.create_folder(folder).map_err(|error| failed(folder, "make the folder", error))?;
        let lock = lock(folder, seams)?;
        let mut files = Vec::new();
        for path in disk.list(folder).map_err(|error| failed(folder, "list", error))? {
            let Some(number) = file_number(&path) else { continue };
            let file = disk.open(&path).map_err(|error| failed(&path, "open", error))?;
            files.push((number, path, file));
        }
        let last = files.last().map(|(number, ..)| *number);
        let mut state = State::default();
        let mut ends = Vec::new();
        for (number, path, file) in files {
            match LogFile::open(number, path.clone(), file)? {
                Some((file, topics)) => {
                    ends = topics;
                    state.files.insert(number, Arc::new(file));
                }
                // Only the newest file can have been begun and never used.
                None if Some(number) == last => {
                    disk.remove(&path).map_err(|error| failed(&path, "remove the unused file", error))?;
                }
                None => {
                    return Err(RecordsError::Damaged {
                        path,
                        at: 0,
                        cause: "the first frame is not whole".to_owned(),
                    });
                }
            }
        }
        let length = match state.files.last_key_value() {
            Some((_, file)) => Some(file.scan(&mut ends)?),
            None => None,
        };
        for topic in &ends {
            let name: Arc<str> = topic.name.as_str().into();
            state.topics.insert(name.clone(), Arc::new(TopicState::new(topic.id, name, &topic.next)));
        }
        state.settle_low();
        let shared = Arc::new(Shared { state: Mutex::new(state) });
        let (commands, queue) = mpsc::channel();
        let thread = writer::start(shared.clone(), queue, folder, seams, options, length, lock)?;
        Ok(Self { shared, writer: Arc::new(Writer { commands: Some(commands), thread: Some(thread) }) })
    }

    /// Every topic with its number of partitions, sorted by name.
    pub fn topics(&self) -> Vec<(String, usize)> {
        let state = self.shared.state();
        state.topics.values().map(|topic| (topic.name.to_string(), topic.partitions.len())).collect()
    }

    /// How many partitions a topic has; `None` when there is no such topic.
    pub fn partitions(&self, topic: &str) -> Option<usize> {
        self.shared.state().topics.get(topic).map(|topic| topic.partitions.len())
    }

    /// Why the log takes no more records, if that is so.
    pub fn failure(&self) -> Option<String> {
        self.shared.state().failed.clone()
    }

    /// Makes a topic; `done` is called when it is durable. Errors, through `done`: [`RecordsError::TopicExists`],
    /// [`RecordsError::BadTopic`], and those of the disk.
    pub fn create(&self, topic: &str, partitions: u32, done: Done) {
        if !(1..=TOPIC_NAME_BYTES).contains(&topic.len()) || !(1..=frame::PARTITIONS).contains(&partitions) {
            return done(Err(RecordsError::BadTopic { topic: topic.to_owned() }));
        }
        self.send(Command::Create { name: topic.into(), partitions, done });
    }

    /// Appends a record; `done` is called when it is durable. Does not block, and does not bound what waits: the caller
    /// does. Errors, through `done`: unknown topic or partition, too long, and those of the disk.
    pub fn append(&self, topic: &str, partition: i32, key: Bytes, value: Bytes, done: Done) {
        let found = self.topic(topic).and_then(|topic| {
            let (partition, _) = topic.partition(partition)?;
            if key.len() > limits::KEY_BYTES || value.len() > limits::SEGMENT_BYTES {
                return Err(RecordsError::TooLong);
            }
            Ok((topic, partition))
        });
        match found {
            Ok((topic, partition)) => self.send(Command::Append { topic, partition, key, value, done }),
            Err(error) => done(Err(error)),
        }
    }

    fn send(&self, command: Command) {
        let refused = match &self.writer.commands {
            Some(commands) => commands.send(command).err().map(|mpsc::SendError(command)| command),
            None => Some(command),
        };
        if let Some(Command::Append { done, .. } | Command::Create { done, .. }) = refused {
            let cause = self.failure();
            done(Err(cause.map_or(RecordsError::Closed, |cause| RecordsError::Failed { cause })));
        }
    }

    fn topic(&self, topic: &str) -> Result<Arc<TopicState>, RecordsError> {
        let found = self.shared.state().topics.get(topic).cloned();
        found.ok_or_else(|| RecordsError::UnknownTopic { topic: topic.to_owned() })
    }

    /// Tells of every move of a partition's end. Errors: unknown topic or partition.
    pub fn watch(&self, topic: &str, partition: i32) -> Result<watch::Receiver<Offset>, RecordsError> {
        Ok(self.topic(topic)?.partition(partition)?.1.end.subscribe())
    }

    /// Reads from memory alone: `None` when the records at `at` are no longer there and [`RecordLog::read`] must fetch
    /// them. Does not block. Errors: unknown topic or partition, [`RecordsError::OutOfRange`].
    pub fn read_recent(
        &self,
        topic: &str,
        partition: i32,
        at: Offset,
        most: usize,
    ) -> Result<Option<Read>, RecordsError> {
        let topic = self.topic(topic)?;
        let (_, partition) = topic.partition(partition)?;
        let (low, end) = partition.range(at)?;
        let records = if at == end { Vec::new() } else { partition.recent(at, end, most) };
        Ok((at == end || !records.is_empty()).then_some(Read { records, low, end }))
    }

    /// Reads up to about `most` bytes of records (at least one, if there is one). Blocks on the disk. Errors: unknown topic
    /// or partition, [`RecordsError::OutOfRange`], [`RecordsError::Damaged`], [`RecordsError::Io`].
    pub fn read(&self, topic: &str, partition: i32, at: Offset, most: usize) -> Result<Read, RecordsError> {
        let topic = self.topic(topic)?;
        let (number, partition) = topic.partition(partition)?;
        let slot = (topic.id, number);
        let (low, end) = partition.range(at)?;
        let files: Vec<_> = self.shared.state().files.values().cloned().collect();
        // The last file that begins at or below the offset has it, unless the partition rested during that file.
        let begins = |file: &LogFile| file.starts.get(&slot).copied().unwrap_or(0);
        let mut next = files.partition_point(|file| begins(file) <= at).saturating_sub(1);
        let (mut records, mut left, mut wanted) = (Vec::new(), most, at);
        while let Some(file) = files.get(next)
            && wanted < end
        {
            let skip = usize::try_from(wanted - begins(file)).unwrap_or(usize::MAX);
            for spot in file.spots(slot, skip, left)? {
                // The end moves a moment after a record's place is noted; see `PartitionState::recent`.
                if wanted >= end || !records.is_empty() && spot.length as usize > left {
                    return Ok(Read { records, low, end });
                }
                left = left.saturating_sub(spot.length as usize);
                records.push(file.read(slot, wanted, spot)?);
                wanted += 1;
            }
            if left == 0 {
                break;
            }
            next += 1;
        }
        Ok(Read { records, low, end })
    }
}

impl PartitionState {
    /// Low watermark and end. Errors: [`RecordsError::OutOfRange`] when `asked` is not within.
    fn range(&self, asked: Offset) -> Result<(Offset, Offset), RecordsError> {
        let (low, end) = (self.low.load(Ordering::Acquire), *self.end.borrow());
        if (low..=end).contains(&asked) { Ok((low, end)) } else { Err(RecordsError::OutOfRange { asked, low, end }) }
    }
}

impl State {
    /// The low watermarks: where each partition stood when the oldest file was begun.
    fn settle_low(&self) {
        let Some((_, oldest)) = self.files.first_key_value() else { return };
        for topic in self.topics.values() {
            for (number, partition) in topic.partitions.iter().enumerate() {
                let low = oldest.starts.get(&(topic.id, number as u32)).copied().unwrap_or(0);
                partition.low.store(low, Ordering::Release);
            }
        }
    }
}

fn file_number(path: &Path) -> Option<u64> {
    (path.extension()? == "records").then_some(())?;
    path.file_stem()?.to_str()?.parse().ok()
}

fn lock(folder: &Path, seams: &Seams) -> Result<Box<dyn DiskFile>, RecordsError> {
    let path = folder.join("lock");
    let failed =
        |error: std::io::Error| RecordsError::Io { path: path.clone(), action: "lock", cause: error.to_string() };
    let file = match seams.disk.create_new(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => seams.disk.open(&path),
        other => other,
    };
    let file = file.map_err(failed)?;
    if file.try_lock().map_err(failed)? { Ok(file) } else { Err(RecordsError::InUse { folder: folder.to_owned() }) }
}
