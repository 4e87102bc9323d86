//! Reading: one librdkafka consumer with a queue for each partition, so that no partition waits for another and each is
//! bounded by itself. Partitions are assigned by hand; reading on where the last batch ended costs nothing extra.
//!
//! A consumer has one place in a partition. Several readers of one partition (nodes in one process, a second look at older
//! records) get a consumer each, up to [`MOST_READERS`].

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError as NativeError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset as NativeOffset, TopicPartitionList};
use tokio::sync::{Notify, OwnedMutexGuard};

use super::KafkaError;
use super::access::{Access, On, Operation};
use super::board::{Board, Route};
use super::refresh::{Asking, Watch};
use crate::core::id::Time;
use crate::seams::Seams;
use crate::transport::contract::{Batch, Fetched, Offset, PartitionId, READ_BYTES, READ_WAIT, ReadError, Topic};

/// Most consumers of one transport.
const MOST_READERS: usize = 6;
/// A place that nobody read from for this long may be moved before a further consumer is made.
const IDLE: Duration = Duration::from_secs(2);
/// How often a waiting read looks at its queue though nobody called it.
const LOOK: Duration = Duration::from_millis(100);
/// How often the thread that serves a consumer looks whether it is still needed.
const SERVE: Duration = Duration::from_millis(500);
/// How long a question for watermarks may take.
const ANSWER: Duration = Duration::from_secs(2);

/// The consumers of a transport.
pub(super) struct Readers {
    config: ClientConfig,
    board: Arc<Board>,
    asking: Arc<Asking>,
    seams: Seams,
    all: Mutex<Vec<Arc<Reader>>>,
}

struct Reader {
    consumer: Arc<BaseConsumer<Stats>>,
    cursors: Mutex<BTreeMap<PartitionId, Arc<tokio::sync::Mutex<Cursor>>>>,
    /// Partitions of which a record came by the wrong queue: their place must be taken anew.
    strays: Arc<Mutex<BTreeMap<PartitionId, Arc<AtomicBool>>>>,
}

/// A consumer's place in a partition.
#[derive(Default)]
struct Cursor {
    /// Where the queue goes on; `None` when it must be taken anew.
    next: Option<Offset>,
    queue: Option<PartitionQueue<Stats>>,
    called: Arc<Notify>,
    stray: Arc<AtomicBool>,
    used: Duration,
}

/// A consumer's context: watermarks from the statistics, the rest as everywhere.
pub(super) struct Stats {
    watch: Watch,
    board: Weak<Board>,
}

#[derive(serde::Deserialize)]
struct Statistics {
    #[serde(default)]
    topics: HashMap<String, TopicStatistics>,
}

#[derive(serde::Deserialize)]
struct TopicStatistics {
    #[serde(default)]
    partitions: HashMap<String, PartitionStatistics>,
}

#[derive(serde::Deserialize)]
struct PartitionStatistics {
    partition: i32,
    lo_offset: i64,
    hi_offset: i64,
}

impl ClientContext for Stats {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.watch.log(level, facility, line);
    }

    fn error(&self, error: NativeError, reason: &str) {
        self.watch.error(error, reason);
    }

    fn stats_raw(&self, json: &[u8]) {
        let (Some(board), Ok(found)) = (self.board.upgrade(), serde_json::from_slice::<Statistics>(json)) else {
            return;
        };
        for (topic, found) in found.topics {
            for partition in found.partitions.into_values().filter(|partition| partition.partition >= 0) {
                let id = PartitionId { topic: Topic::named(&topic), number: partition.partition };
                board.set_watermarks(id, partition.lo_offset, partition.hi_offset);
            }
        }
    }
}

impl ConsumerContext for Stats {}

impl Reader {
    fn new(config: &ClientConfig, board: &Arc<Board>) -> Result<Arc<Self>, KafkaError> {
        let stats = Stats { watch: Watch(Arc::downgrade(board)), board: Arc::downgrade(board) };
        let consumer = BaseConsumer::from_config_and_context(config, stats)
            .map_err(|error| KafkaError::Client { cause: error.to_string() })?;
        let consumer = Arc::new(consumer);
        let strays: Arc<Mutex<BTreeMap<PartitionId, Arc<AtomicBool>>>> = Arc::default();
        let (board, served, marks) = (board.clone(), consumer.clone(), strays.clone());
        // Serves logs, errors and statistics, and keeps the consumer until the transport is closed.
        let serve = move || {
            while !board.closed() {
                if let Some(Ok(message)) = served.poll(SERVE) {
                    let id = PartitionId { topic: Topic::named(message.topic()), number: message.partition() };
                    if let Some(stray) = marks.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
                        stray.store(true, Ordering::Release);
                    }
                }
            }
        };
        thread::Builder::new()
            .name("kafka-reader".to_owned())
            .spawn(serve)
            .map_err(|error| KafkaError::Client { cause: format!("cannot start a thread: {error}") })?;
        Ok(Arc::new(Self { consumer, cursors: Mutex::default(), strays }))
    }

    fn cursor(&self, partition: &PartitionId) -> Arc<tokio::sync::Mutex<Cursor>> {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let cursor = Cursor::default();
            let mut strays = self.strays.lock().unwrap_or_else(PoisonError::into_inner);
            strays.insert(partition.clone(), cursor.stray.clone());
            Arc::new(tokio::sync::Mutex::new(cursor))
        };
        cursors.entry(partition.clone()).or_insert_with(new).clone()
    }

    /// Takes a place in a partition. Blocks for as long as librdkafka's own threads need, well below a millisecond.
    fn assign(&self, partition: &PartitionId, at: Offset, cursor: &mut Cursor) -> Result<(), NativeError> {
        let (topic, number) = (partition.topic.as_str(), partition.number);
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, number);
        if cursor.queue.take().is_some() {
            self.consumer.incremental_unassign(&list)?;
        }
        // The queue is parted from the consumer's own before anything can arrive in it.
        let queue = self.consumer.split_partition_queue(topic, number);
        let mut queue = queue.ok_or_else(|| NativeError::Subscription("no such partition".to_owned()))?;
        let called = cursor.called.clone();
        queue.set_nonempty_callback(move || called.notify_one());
        list.set_partition_offset(topic, number, NativeOffset::Offset(at))?;
        self.consumer.incremental_assign(&list)?;
        cursor.queue = Some(queue);
        cursor.stray.store(false, Ordering::Release);
        Ok(())
    }
}

/// What draining a queue came to.
enum Drained {
    Records(Vec<Fetched>, Offset),
    Nothing,
    /// The place is lost: take it anew.
    Lost,
    Refused(String),
}

impl Cursor {
    /// Takes what the queue holds. The cursor has no place until it is told its new one.
    fn drain(&mut self, at: Offset, from: &PartitionId, access: &Access) -> Drained {
        let Some(queue) = &self.queue else { return Drained::Lost };
        if self.stray.load(Ordering::Acquire) {
            return Drained::Lost;
        }
        let (mut records, mut bytes, mut next) = (Vec::new(), 0, at);
        while bytes < READ_BYTES
            && let Some(polled) = queue.poll(Duration::ZERO)
        {
            match polled {
                Ok(message) if message.offset() < next => {}
                Ok(message) => {
                    let millis = message.timestamp().to_millis().and_then(|millis| u64::try_from(millis).ok());
                    let value = message.payload().map(Bytes::copy_from_slice);
                    // librdkafka gives no pointer for an empty value and for none; Sealcast's records are never tombstones.
                    let value = Some(value.unwrap_or_default());
                    let key = message.key().map(Bytes::copy_from_slice).unwrap_or_default();
                    bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
                    next = message.offset() + 1;
                    let time = Time(millis.unwrap_or(0));
                    records.push(Fetched { offset: message.offset(), time, key, value });
                }
                Err(NativeError::PartitionEOF(_)) => {}
                Err(error) => {
                    let code = error.rdkafka_error_code();
                    if !records.is_empty() {
                        break;
                    }
                    match code {
                        // The log was cut, or is another topic's.
                        Some(
                            RDKafkaErrorCode::AutoOffsetReset
                            | RDKafkaErrorCode::OffsetOutOfRange
                            | RDKafkaErrorCode::LogTruncation
                            | RDKafkaErrorCode::UnknownTopicId,
                        ) => return Drained::Lost,
                        Some(code) => match access.mend(code, Operation::Read, On::Topic(from.topic.as_str())) {
                            Some(cause) => return Drained::Refused(cause),
                            None => tracing::debug!(%error, "a reader's trouble"),
                        },
                        None => tracing::debug!(%error, "a reader's trouble"),
                    }
                }
            }
        }
        if records.is_empty() { Drained::Nothing } else { Drained::Records(records, next) }
    }
}

impl Readers {
    pub(super) fn new(config: ClientConfig, board: Arc<Board>, asking: Arc<Asking>, seams: Seams) -> Self {
        Self { config, board, asking, seams, all: Mutex::default() }
    }

    /// A consumer's place for this read: the one that stands there, else one that nobody uses, else a new one.
    async fn take(&self, from: &PartitionId, at: Offset) -> Result<(Arc<Reader>, OwnedMutexGuard<Cursor>), KafkaError> {
        let now = self.seams.clock.monotonic();
        let mut oldest: Option<(Arc<Reader>, OwnedMutexGuard<Cursor>)> = None;
        let readers = self.all.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for reader in &readers {
            let Ok(cursor) = reader.cursor(from).try_lock_owned() else { continue };
            if cursor.next == Some(at) {
                return Ok((reader.clone(), cursor));
            }
            let rank = |cursor: &Cursor| cursor.next.map(|_| cursor.used);
            if oldest.as_ref().is_none_or(|(_, other)| rank(&cursor) < rank(other)) {
                oldest = Some((reader.clone(), cursor));
            }
        }
        if let Some((reader, cursor)) = oldest
            && (cursor.next.is_none() || now.saturating_sub(cursor.used) >= IDLE || readers.len() >= MOST_READERS)
        {
            return Ok((reader, cursor));
        }
        let reader = match readers.last() {
            Some(last) if readers.len() >= MOST_READERS => last.clone(),
            _ => {
                let reader = Reader::new(&self.config, &self.board)?;
                self.all.lock().unwrap_or_else(PoisonError::into_inner).push(reader.clone());
                reader
            }
        };
        let cursor = reader.cursor(from).lock_owned().await;
        Ok((reader, cursor))
    }

    /// Reads as the contract says.
    pub(super) async fn read(&self, from: PartitionId, at: Offset) -> Result<Batch, ReadError> {
        let absent = |cause: String| ReadError::Absent { partition: from.clone(), cause };
        if self.board.closed() {
            return Err(ReadError::Closed);
        }
        match self.board.route(&from) {
            Route::Broker(_) => {}
            Route::Absent(cause) => {
                self.seams.clock.sleep(LOOK).await;
                return Err(absent(cause));
            }
            Route::Refused(cause) => return Err(ReadError::Refused { partition: from, cause }),
        }
        let (reader, mut cursor) = self.take(&from, at).await.map_err(|error| absent(error.to_string()))?;
        cursor.used = self.seams.clock.monotonic();
        if cursor.next != Some(at) {
            cursor.next = None;
            let (asking, asked) = (self.asking.clone(), from.clone());
            let ask = move || asking.client.fetch_watermarks(asked.topic.as_str(), asked.number, ANSWER);
            let answer = self.seams.work.run(ask).await.map_err(|_| ReadError::Closed)?;
            let (low, end) = answer.map_err(|error| {
                let on = On::Topic(from.topic.as_str());
                let access = self.board.access();
                match error.rdkafka_error_code().and_then(|code| access.mend(code, Operation::Describe, on)) {
                    Some(cause) => ReadError::Refused { partition: from.clone(), cause },
                    None => absent(format!("its watermarks: {error}")),
                }
            })?;
            self.board.learn_watermarks(from.clone(), low, end);
            if !(low..=end).contains(&at) {
                return Err(ReadError::OutOfRange { partition: from, asked: at, low, end });
            }
            reader.assign(&from, at, &mut cursor).map_err(|error| absent(error.to_string()))?;
            cursor.next = Some(at);
        }
        let began = self.seams.clock.monotonic();
        loop {
            let batch = |records, next| {
                let (low, end) = self.board.watermarks(&from);
                Batch { records, next, low: low.min(at), end: end.max(next), session: 0 }
            };
            // No await stands between taking records and giving them, so a dropped read loses none.
            match cursor.drain(at, &from, self.board.access()) {
                Drained::Records(records, next) => {
                    cursor.next = Some(next);
                    cursor.used = self.seams.clock.monotonic();
                    return Ok(batch(records, next));
                }
                Drained::Nothing => {}
                Drained::Lost => {
                    cursor.next = None;
                    return Err(absent("the reader lost its place and takes it anew".to_owned()));
                }
                Drained::Refused(cause) => {
                    cursor.next = None;
                    return Err(ReadError::Refused { partition: from, cause });
                }
            }
            let waited = self.seams.clock.monotonic().saturating_sub(began);
            if waited >= READ_WAIT {
                cursor.used = self.seams.clock.monotonic();
                return match self.board.route(&from) {
                    Route::Broker(leader) if self.board.down_since(leader).is_none() => Ok(batch(Vec::new(), at)),
                    Route::Broker(_) => Err(absent("its broker cannot be reached".to_owned())),
                    Route::Absent(cause) | Route::Refused(cause) => Err(absent(cause)),
                };
            }
            let called = cursor.called.clone();
            tokio::select! {
                () = called.notified() => {}
                () = self.seams.clock.sleep(LOOK.min(READ_WAIT - waited)) => {}
            }
        }
    }
}
