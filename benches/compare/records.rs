//! The arms that are not Sealcast: one record, or eight, straight to Kafka, and readers that put together, open, store and
//! answer, as their arm asks.
//!
//! Owns these producers, consumers and stores. Must not decide what is sent when.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer, DefaultConsumerContext};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use redb::{Database, TableDefinition};

use crate::Failure;
use crate::figures::words::Arm;
use crate::flights::Flights;
use crate::sealed::Seal;

/// What clients of all arms have in common; Sealcast's own are the same.
const COMMON: &[(&str, &str)] = &[
    ("reconnect.backoff.ms", "50"),
    ("reconnect.backoff.max.ms", "500"),
    ("retry.backoff.ms", "50"),
    ("retry.backoff.max.ms", "250"),
    ("socket.timeout.ms", "6000"),
    ("socket.connection.setup.timeout.ms", "2000"),
    ("topic.metadata.refresh.interval.ms", "10000"),
];
const PRODUCER: &[(&str, &str)] = &[
    ("acks", "all"),
    ("enable.idempotence", "false"),
    ("queue.buffering.max.kbytes", "1048576"),
    ("message.max.bytes", "67108864"),
];
const CONSUMER: &[(&str, &str)] = &[
    ("fetch.wait.max.ms", "100"),
    ("fetch.queue.backoff.ms", "5"),
    ("fetch.error.backoff.ms", "100"),
    ("check.crcs", "true"),
    ("max.partition.fetch.bytes", "33554432"),
    ("group.id", "compare"),
    ("enable.auto.commit", "false"),
    ("auto.offset.reset", "earliest"),
];
/// The tuning of all arms, for people.
pub const TUNING: &str = "All arms: acks=all, not idempotent, linger.ms=0, no compression, fetch.wait.max.ms=100, \
fetch.queue.backoff.ms=5, the same back-offs and socket time-outs; topics of replication 3 have min.insync.replicas=2. Each arm \
has topics, one producer (Sealcast: one for each broker) and three readers of its own; every topic has one partition led by each \
broker, used in turn, and keeps 96 MiB of it, in files of 32 MiB";

/// How much a partition keeps, of any arm: far more than is under way, and little enough for a usual disk.
const KEPT: [(&str, &str); 2] = [("retention.bytes", "100663296"), ("segment.bytes", "33554432")];
/// Partitions of a topic: one led by each broker.
const PARTITIONS: usize = 3;
/// Pieces of the arms that cut.
const PIECES: usize = 8;
/// A reader takes so many records and bytes at once, as far as they are there.
const AT_ONCE: (usize, usize) = (4096, 8 << 20);
const LOOK: Duration = Duration::from_millis(50);
const STORED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("stored");

fn config(brokers: &str, own: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("log_level", "0");
    for (name, value) in COMMON.iter().chain(own) {
        config.set(*name, *value);
    }
    config
}

/// Makes topics whose partitions are led by one broker each.
pub async fn make_topics(brokers: &str, topics: &[(String, usize)]) -> Result<(), Failure> {
    let admin: AdminClient<DefaultClientContext> = config(brokers, &[]).create()?;
    for (name, factor) in topics {
        let replicas =
            |first: usize| -> Vec<i32> { (0..*factor).map(|next| ((first + next) % PARTITIONS) as i32 + 1).collect() };
        let assignment: Vec<Vec<i32>> = (0..PARTITIONS).map(replicas).collect();
        let assignment: Vec<&[i32]> = assignment.iter().map(Vec::as_slice).collect();
        let in_sync = if *factor == 1 { "1" } else { "2" };
        let [bytes, segment] = KEPT;
        let topic = NewTopic::new(name, PARTITIONS as i32, TopicReplication::Variable(&assignment))
            .set(bytes.0, bytes.1)
            .set(segment.0, segment.1)
            .set("min.insync.replicas", in_sync)
            .set("max.message.bytes", "67108864");
        for made in admin.create_topics([&topic], &AdminOptions::new()).await? {
            made.map_err(|(name, code)| format!("topic {name}: {code}"))?;
        }
    }
    Ok(())
}

/// Topics that were made elsewhere keep as little as those made here; nothing else about them changes.
pub async fn keep_little(brokers: &str, topics: &[String]) -> Result<(), Failure> {
    let admin: AdminClient<DefaultClientContext> = config(brokers, &[]).create()?;
    for topic in topics {
        let of = ResourceSpecifier::Topic(topic);
        let found = admin.describe_configs([&of], &AdminOptions::new()).await?;
        let mut wanted = AlterConfig::new(ResourceSpecifier::Topic(topic));
        // A setting that is not named goes back to the cluster's.
        let own: Vec<(String, String)> = found
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map_err(|code| format!("topic {topic}: {code}"))?
            .into_iter()
            .flat_map(|resource| resource.entries)
            .filter(|entry| entry.source == ConfigSource::DynamicTopic)
            .filter(|entry| KEPT.iter().all(|(kept, _)| *kept != entry.name))
            .map(|entry| Ok((entry.name, entry.value.ok_or("a topic's setting has no value")?)))
            .collect::<Result<_, Failure>>()?;
        for (name, value) in own.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(KEPT) {
            wanted = wanted.set(name, value);
        }
        for altered in admin.alter_configs([&wanted], &AdminOptions::new()).await? {
            altered.map_err(|(_, code)| format!("topic {topic}: {code}"))?;
        }
    }
    Ok(())
}

/// A record's key: which message, and which piece of how many. Answers have the reader for the piece.
fn key(number: u64, piece: usize, pieces: usize) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key[8..10].copy_from_slice(&(piece as u16).to_be_bytes());
    key[10..].copy_from_slice(&(pieces as u16).to_be_bytes());
    key
}

fn read_key(key: &[u8]) -> Option<(u64, usize, usize)> {
    let number = u64::from_be_bytes(key.get(..8)?.try_into().ok()?);
    let short = |from: usize| Some(usize::from(u16::from_be_bytes(key.get(from..from + 2)?.try_into().ok()?)));
    Some((number, short(8)?, short(10)?))
}

/// Tells the flights of acknowledgements.
struct Acks(Option<Arc<Flights>>);

impl ClientContext for Acks {}

impl ProducerContext for Acks {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        // One that fails is never acknowledged, and counted so.
        if let (Some(flights), Ok(_)) = (&self.0, result) {
            flights.acknowledged(number as u64);
        }
    }
}

/// One way of bringing payloads over plain Kafka.
pub struct Records {
    topic: String,
    producer: ThreadedProducer<Acks>,
    seal: Option<Arc<Seal>>,
    pieces: usize,
    sent: AtomicUsize,
    flights: Arc<Flights>,
    readers: Readers,
}

/// What an arm's readers do with what they opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Forget,
    /// They store it.
    Store,
    /// They store it and answer.
    StoreAndAnswer,
}

/// How an arm is set up.
pub struct Setup<'a> {
    /// Which.
    pub arm: Arm,
    /// Its topic.
    pub topic: &'a str,
    /// What its readers do.
    pub then: Then,
    /// How long a record waits for others, in milliseconds.
    pub linger: &'a str,
    /// A folder for stores.
    pub folder: &'a Path,
}

/// The topic for answers to an arm's topic.
pub fn answers_of(topic: &str) -> String {
    format!("{topic}.answers")
}

impl Records {
    /// Starts its producer and its readers. Its topics are there.
    pub fn start(brokers: &str, setup: &Setup<'_>, seal: &Arc<Seal>, flights: &Arc<Flights>) -> Result<Self, Failure> {
        let &Setup { arm, topic, then, linger, folder } = setup;
        let seal = (!matches!(arm, Arm::PlainOne | Arm::PlainThree)).then(|| seal.clone());
        let producer = |acks: Acks| {
            let mut config = config(brokers, PRODUCER);
            config.set("linger.ms", linger);
            ThreadedProducer::from_config_and_context(&config, acks)
        };
        let mut readers = Readers::default();
        for reader in 0..flights.readers() {
            let store = match then {
                Then::Forget => None,
                Then::Store | Then::StoreAndAnswer => Some(Database::create(folder.join(format!("{topic}.{reader}")))?),
            };
            let answers = match then {
                Then::StoreAndAnswer => Some((producer(Acks(None))?, answers_of(topic))),
                Then::Forget | Then::Store => None,
            };
            let mut work =
                Reading { reader, seal: seal.clone(), flights: flights.clone(), store, answers, half: BTreeMap::new() };
            readers.start(brokers, topic, arm, move |records| work.take(records))?;
        }
        if then == Then::StoreAndAnswer {
            let flights = flights.clone();
            readers.start(brokers, &answers_of(topic), arm, move |records| {
                for (number, reader, _) in records.iter().filter_map(|record| read_key(record.key()?)) {
                    flights.answered(number, reader);
                }
                Ok(())
            })?;
        }
        let pieces = if matches!(arm, Arm::ChunksOne | Arm::ChunksThree) { PIECES } else { 1 };
        let (producer, flights) = (producer(Acks(Some(flights.clone())))?, flights.clone());
        Ok(Self { topic: topic.to_owned(), producer, seal, pieces, sent: AtomicUsize::new(0), flights, readers })
    }

    /// Seals a message and hands it over.
    pub fn send(&self, number: u64, payload: &[u8]) -> Result<(), Failure> {
        let sealed = self.seal.as_ref().map(|seal| seal.seal(number, payload)).transpose()?;
        let body = sealed.as_deref().unwrap_or(payload);
        let turn = self.sent.fetch_add(1, Ordering::Relaxed);
        let length = body.len().div_ceil(self.pieces).max(1);
        self.flights.in_records(number, self.pieces);
        let mut pieces = body.chunks(length);
        for piece in 0..self.pieces {
            let key = key(number, piece, self.pieces);
            let record = BaseRecord::with_opaque_to(&self.topic, number as usize)
                .partition(((turn + piece) % PARTITIONS) as i32)
                .key(&key[..])
                .payload(pieces.next().unwrap_or_default());
            self.producer.send(record).map_err(|(error, _)| error)?;
        }
        Ok(())
    }

    /// Ends its readers. Errors: what a reader failed with.
    pub fn end(self) -> Result<(), Failure> {
        // What waits for a broker that is gone is of no use to anybody.
        self.producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
        self.readers.end()
    }
}

/// Threads that read.
#[derive(Default)]
struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<(), Failure>>>,
}

impl Readers {
    /// Reads all of a topic from its beginning, and hands over what comes, many records at once where many are there.
    fn start(
        &mut self,
        brokers: &str,
        topic: &str,
        arm: Arm,
        mut take: impl FnMut(&[BorrowedMessage<'_>]) -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), Failure> {
        let consumer: BaseConsumer =
            FromClientConfigAndContext::from_config_and_context(&config(brokers, CONSUMER), DefaultConsumerContext)?;
        let mut all = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            all.add_partition_offset(topic, partition as i32, Offset::Beginning)?;
        }
        consumer.assign(&all)?;
        let stop = self.stop.clone();
        let read = move || {
            while !stop.load(Ordering::Relaxed) {
                let mut records = Vec::new();
                let (mut wait, mut bytes) = (LOOK, 0);
                // A broker that does not answer is an error here and no reason to stop.
                while records.len() < AT_ONCE.0
                    && bytes < AT_ONCE.1
                    && let Some(polled) = consumer.poll(wait)
                {
                    if let Ok(record) = polled {
                        bytes += record.payload_len();
                        records.push(record);
                    }
                    wait = Duration::ZERO;
                }
                take(&records).map_err(|error| format!("a reader of {}: {error}", arm.word()))?;
            }
            Ok(())
        };
        self.threads.push(std::thread::Builder::new().name("reader".to_owned()).spawn(read)?);
        Ok(())
    }

    fn end(self) -> Result<(), Failure> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| "a reader panicked")??;
        }
        Ok(())
    }
}

/// One reader's work.
struct Reading {
    reader: usize,
    seal: Option<Arc<Seal>>,
    flights: Arc<Flights>,
    store: Option<Database>,
    answers: Option<(ThreadedProducer<Acks>, String)>,
    /// Pieces of messages that are not whole.
    half: BTreeMap<u64, Vec<Option<Vec<u8>>>>,
}

impl Reading {
    fn take(&mut self, records: &[BorrowedMessage<'_>]) -> Result<(), Failure> {
        let mut numbers = Vec::new();
        for record in records {
            let (Some(key), Some(payload)) = (record.key().and_then(read_key), record.payload()) else { continue };
            let (number, piece, pieces) = key;
            if pieces == 1 {
                self.opened(number, payload)?;
            } else if let Some(whole) = self.piece(number, piece, pieces, payload) {
                self.opened(number, &whole)?;
            }
            numbers.push((number, payload));
        }
        let (Some(store), false) = (&self.store, numbers.is_empty()) else { return Ok(()) };
        let writing = store.begin_write()?;
        {
            let mut table = writing.open_table(STORED)?;
            for (number, payload) in &numbers {
                table.insert(number, *payload)?;
            }
        }
        // Durable: redb syncs the file.
        writing.commit()?;
        for (number, _) in numbers {
            self.flights.stored(number, self.reader);
            if let Some((producer, topic)) = &self.answers {
                let key = key(number, self.reader, self.flights.readers());
                let partition = (number % PARTITIONS as u64) as i32;
                let answer =
                    BaseRecord::with_opaque_to(topic, 0).partition(partition).key(&key[..]).payload(&[1_u8][..]);
                producer.send(answer).map_err(|(error, _)| error)?;
            }
        }
        Ok(())
    }

    fn piece(&mut self, number: u64, piece: usize, pieces: usize, payload: &[u8]) -> Option<Vec<u8>> {
        let half = self.half.entry(number).or_insert_with(|| vec![None; pieces]);
        *half.get_mut(piece)? = Some(payload.to_vec());
        if half.iter().any(Option::is_none) {
            return None;
        }
        let half = self.half.remove(&number)?;
        Some(half.into_iter().flatten().flatten().collect())
    }

    fn opened(&self, number: u64, body: &[u8]) -> Result<(), Failure> {
        if let Some(seal) = &self.seal {
            seal.open(number, body)?;
        }
        self.flights.delivered(number, self.reader);
        Ok(())
    }
}
