//! Brokers in simulated time: each takes records at its own speed, and can be slow, silent with its port open, or dead. What
//! of it is known follows what the Kafka transport does: a lost connection is known at once and what waits for it is given
//! up after 200 ms; silence is known when the message timeout of 5 s passes; one that is back is noticed within 500 ms.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use sealcast::core::id::Time;
use sealcast::seams::Clock;
use sealcast::transport::{
    Ack, AppendError, Batch, Domain, Full, Offset, Partition, PartitionId, Pending, ReadError, Record, Topic, Transport,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
const GIVE_UP: Duration = Duration::from_millis(200);
const PROBE: Duration = Duration::from_millis(500);
/// What a healthy broker takes.
const LATENCY: Duration = Duration::from_millis(2);
const BYTES_PER_SECOND: f64 = 100e6;
/// Bytes that may be under way to one broker.
pub const CREDIT: usize = 2 << 20;

/// Tokio's clock, which can be paused.
pub struct Paused(Instant);

impl Paused {
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Clock for Paused {
    fn now(&self) -> Time {
        Time(1_700_000_000_000).after(self.monotonic())
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, duration: Duration) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// What a broker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Everything takes this much longer.
    Slow(Duration),
    /// Its port is open, and nothing is taken or answered.
    Silent,
    Dead,
}

impl Mood {
    fn works(self) -> bool {
        matches!(self, Self::Well | Self::Slow(_))
    }
}

type Answer = oneshot::Sender<Result<Ack, AppendError>>;

struct Flight {
    record: Record,
    size: usize,
    began: Instant,
    taken: Instant,
    answer: Option<Answer>,
}

struct Broker {
    mood: Mood,
    since: Instant,
    /// Whether the transport knows that it is up.
    known_up: bool,
    flights: VecDeque<Flight>,
    bytes: usize,
    free_at: Instant,
    /// Keys of what it has, and acknowledged.
    disk: BTreeSet<Bytes>,
    last_stored: Instant,
}

/// Three brokers and a topic with a partition on each.
#[derive(Clone)]
pub struct Brokers {
    all: Arc<Mutex<Vec<Broker>>>,
    pub topic: Topic,
    /// The most bytes that were under way to each, since they were last asked for.
    most: Arc<Mutex<BTreeMap<usize, usize>>>,
}

impl Brokers {
    /// Starts them; they run until the test's runtime ends.
    pub fn start(count: usize) -> Self {
        let now = Instant::now();
        let broker = |_| Broker {
            mood: Mood::Well,
            since: now,
            known_up: true,
            flights: VecDeque::new(),
            bytes: 0,
            free_at: now,
            disk: BTreeSet::new(),
            last_stored: now,
        };
        let topic = Topic::segments(&"test".parse().unwrap(), &"orders".parse().unwrap());
        let all = Arc::new(Mutex::new((0..count).map(broker).collect()));
        let brokers = Self { all, topic, most: Arc::default() };
        let running = brokers.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                running.all().iter_mut().for_each(step);
            }
        });
        brokers
    }

    fn all(&self) -> MutexGuard<'_, Vec<Broker>> {
        self.all.lock().unwrap()
    }

    pub fn set(&self, number: usize, mood: Mood) {
        let broker = &mut self.all()[number];
        let now = Instant::now();
        if mood.works() && !broker.mood.works() {
            // What was under way through a silence is taken now.
            broker.free_at = now;
            for flight in &mut broker.flights {
                broker.free_at += serving(flight.size);
                flight.taken = broker.free_at;
            }
        }
        (broker.mood, broker.since) = (mood, now);
        broker.known_up &= mood != Mood::Dead;
    }

    pub fn works(&self, number: usize) -> bool {
        self.all()[number].mood.works()
    }

    /// Whether a broker took anything since this moment.
    pub fn took_since(&self, number: usize, moment: Instant) -> bool {
        self.all()[number].last_stored > moment
    }

    /// Which shards of this stripe each broker has; keys begin with the stripe's number.
    pub fn shards(&self, stripe: u32) -> Vec<BTreeSet<u8>> {
        let first = Bytes::copy_from_slice(&stripe.to_be_bytes());
        let end = Bytes::copy_from_slice(&(stripe + 1).to_be_bytes());
        self.all()
            .iter()
            .map(|broker| broker.disk.range(first.clone()..end.clone()).map(|key| key[4]).collect())
            .collect()
    }

    /// The most bytes that were under way to a broker since this was last asked.
    pub fn most_under_way(&self, number: usize) -> usize {
        self.most.lock().unwrap().remove(&number).unwrap_or(0)
    }
}

fn serving(size: usize) -> Duration {
    Duration::from_secs_f64(size as f64 / BYTES_PER_SECOND)
}

fn absent(flight: &mut Flight) {
    if let Some(answer) = flight.answer.take() {
        let partition = PartitionId { topic: Topic::named("lost"), number: 0 };
        // The one who appended may have stopped waiting.
        let _ = answer.send(Err(AppendError::Absent { partition, cause: "no acknowledgement".to_owned() }));
    }
}

/// One millisecond of a broker and of what is known of it.
fn step(broker: &mut Broker) {
    let now = Instant::now();
    match broker.mood {
        Mood::Well | Mood::Slow(_) => {
            let late = if let Mood::Slow(by) = broker.mood { by } else { Duration::ZERO };
            if !broker.known_up && now - broker.since >= PROBE {
                broker.known_up = true;
            }
            while let Some(flight) = broker.flights.front()
                && flight.taken + LATENCY + late <= now
            {
                let mut flight = broker.flights.pop_front().unwrap();
                broker.bytes -= flight.size;
                broker.disk.insert(flight.record.key.clone());
                broker.last_stored = now;
                if let Some(answer) = flight.answer.take() {
                    let _ = answer.send(Ok(Ack { offset: 0, took: now - flight.began }));
                }
            }
        }
        Mood::Silent => {
            if broker.flights.front().is_some_and(|flight| now - flight.began >= MESSAGE_TIMEOUT) {
                broker.known_up = false;
            }
        }
        Mood::Dead => {}
    }
    let broken = !broker.mood.works() && !broker.known_up;
    if broken {
        let Broker { flights, bytes, since, mood, .. } = broker;
        flights.retain_mut(|flight| {
            let given_up = match mood {
                Mood::Dead => now - flight.began.max(*since) >= GIVE_UP,
                _ => now - flight.began >= GIVE_UP,
            };
            if given_up {
                *bytes -= flight.size;
                absent(flight);
            }
            !given_up
        });
    }
}

impl Transport for Brokers {
    fn partitions(&self, topic: &Topic) -> Arc<[Partition]> {
        let partition = |(number, broker): (i32, &Broker)| Partition {
            id: PartitionId { topic: topic.clone(), number },
            domain: Domain(format!("broker-{number}").into()),
            up: broker.known_up,
            copies: 1,
        };
        (0..).zip(self.all().iter()).map(partition).collect()
    }

    fn append(&self, to: PartitionId, record: Record) -> Result<Pending<Ack>, Full<Record>> {
        let (answer, pending) = Pending::new();
        let mut all = self.all();
        let broker = &mut all[to.number as usize];
        if !broker.known_up {
            let cause = "its broker cannot be reached".to_owned();
            answer.send(Err(AppendError::Absent { partition: to, cause })).unwrap();
            return Ok(pending);
        }
        let size = record.key.len() + record.value.len();
        if broker.bytes > 0 && broker.bytes + size > CREDIT {
            return Err(Full(record));
        }
        let now = Instant::now();
        broker.bytes += size;
        let mut most = self.most.lock().unwrap();
        let most = most.entry(to.number as usize).or_default();
        *most = (*most).max(broker.bytes);
        broker.free_at = broker.free_at.max(now) + serving(size);
        let taken = broker.free_at;
        broker.flights.push_back(Flight { record, size, began: now, taken, answer: Some(answer) });
        Ok(pending)
    }

    async fn read(&self, from: PartitionId, _at: Offset) -> Result<Batch, ReadError> {
        Err(ReadError::Absent { partition: from, cause: "not in this test".to_owned() })
    }
}

/// Bytes that count while they live.
#[derive(Clone, Default)]
pub struct Memory {
    live: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

struct Counted(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0.len(), Ordering::Relaxed);
    }
}

impl Memory {
    pub fn bytes(&self, length: usize) -> Bytes {
        let live = self.live.fetch_add(length, Ordering::Relaxed) + length;
        self.most.fetch_max(live, Ordering::Relaxed);
        Bytes::from_owner(Counted(vec![0; length], self.live.clone()))
    }

    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    pub fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }
}
