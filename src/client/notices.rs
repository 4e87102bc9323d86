//! Follows what nodes say: every partition of the notices topic, from where something may be said about what is undecided.
//! Hands records on and remembers positions. Must not judge what a record says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::counting::Counting;
use crate::core::id::Time;
use crate::seams::Clock;
use crate::transport::{Batch, Offset, PartitionId, ReadError, Topic, Transport};

/// Clocks of senders and brokers may differ by this much where a place in the topic is looked up by time.
const SKEW: Duration = Duration::from_secs(600);

/// How long to wait after a partition could not be read.
const PAUSE: Duration = Duration::from_millis(200);

/// How much longer than the first partition the others are waited for when a client starts: a broker that is there has answered
/// by then, and one that is not must hold nobody up (R15).
const OTHERS: Duration = Duration::from_millis(250);

/// How often what somebody must mend is told again.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// How often new partitions are looked for.
const LOOK: Duration = Duration::from_secs(5);

/// Fewer records than this are read rather than searched.
const NEAR: Offset = 256;

/// How far each partition was read: shared with whoever submits.
#[derive(Debug, Clone, Default)]
pub struct Positions {
    next: Arc<Mutex<BTreeMap<i32, Offset>>>,
    changed: Arc<Notify>,
}

impl Positions {
    /// The offset to be read next, for each partition that was reached.
    pub fn all(&self) -> Vec<(i32, Offset)> {
        let next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        next.iter().map(|(partition, offset)| (*partition, *offset)).collect()
    }

    fn set(&self, partition: i32, next: Offset) {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, next);
        self.changed.notify_waiters();
    }

    /// Waits until this many partitions were reached.
    async fn reached(&self, count: usize) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.all().len() >= count {
                return;
            }
            changed.await;
        }
    }
}

/// Where following starts in a partition.
#[derive(Debug, Clone, Default)]
pub struct From {
    /// Offsets that the outbox names.
    pub offsets: BTreeMap<i32, Offset>,
    /// Partitions without one start at this time; without a time they start at their end.
    pub time: Option<Time>,
}

/// Follows the notices topic.
pub struct Follower<T> {
    transport: Arc<T>,
    topic: Topic,
    counting: Arc<Counting>,
    positions: Positions,
    /// Whether something may have been submitted since the start.
    open: Arc<AtomicBool>,
    clock: Arc<dyn Clock>,
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl<T> Clone for Follower<T> {
    fn clone(&self) -> Self {
        Self {
            transport: self.transport.clone(),
            topic: self.topic.clone(),
            counting: self.counting.clone(),
            positions: self.positions.clone(),
            open: self.open.clone(),
            clock: self.clock.clone(),
            closing: self.closing.clone(),
            tasks: self.tasks.clone(),
        }
    }
}

impl<T: Transport> Follower<T> {
    /// Will follow this topic.
    pub fn new(
        transport: Arc<T>,
        topic: Topic,
        counting: Arc<Counting>,
        positions: Positions,
        clock: Arc<dyn Clock>,
        closing: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        Self { transport, topic, counting, positions, open: Arc::default(), clock, closing, tasks }
    }

    /// Follows until the client is closed: partitions that appear later, too.
    pub async fn run(self, from: From) {
        let started = self.clock.now();
        let mut followed = BTreeSet::new();
        loop {
            for partition in self.transport.partitions(&self.topic).iter() {
                if followed.insert(partition.id.number) {
                    self.tasks.spawn(self.clone().follow(partition.id.clone(), from.clone(), started));
                }
            }
            let pause = if followed.is_empty() { PAUSE } else { LOOK };
            tokio::select! {
                () = self.clock.sleep(pause) => {}
                () = self.closing.cancelled() => return,
            }
        }
    }

    /// Something may be submitted from now on: a partition whose end was not learned by now is read from when the client
    /// started, because what nodes say may stand before that end.
    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    /// Waits until every known partition was reached once, at most this long, and at most [`OTHERS`] longer than for the first
    /// of them: then receipts of what is submitted afterwards are seen without a search. The partitions of a broker that is
    /// away are read from the client's start when it is back.
    pub async fn reached(&self, at_most: Duration) {
        let reached = async {
            self.positions.reached(1).await;
            let all = self.positions.reached(self.transport.partitions(&self.topic).len());
            tokio::select! {
                () = all => {}
                () = self.clock.sleep(OTHERS) => {}
            }
        };
        tokio::select! {
            () = reached => {}
            () = self.clock.sleep(at_most) => {}
        }
    }

    async fn follow(self, partition: PartitionId, from: From, started: Time) {
        let closing = self.closing.clone();
        tokio::select! {
            () = self.read_on(partition, from, started) => {}
            () = closing.cancelled() => {}
        }
    }

    /// Waits before a partition that could not be read is read again; says what somebody must mend.
    async fn pause(&self, partition: &PartitionId, error: &ReadError, told: &mut Option<Duration>) {
        let now = self.clock.monotonic();
        if !error.retryable() && told.is_none_or(|told| now.saturating_sub(told) >= TELL_EVERY) {
            *told = Some(now);
            tracing::warn!("what nodes say cannot be read, fates stay unknown: {error}");
        } else {
            tracing::debug!(%partition, %error, "notices cannot be read now");
        }
        self.clock.sleep(PAUSE).await;
    }

    async fn read_on(self, partition: PartitionId, from: From, started: Time) {
        let mut told = None;
        let mut at = self.start(&partition, &from, started).await;
        self.positions.set(partition.number, at);
        loop {
            match self.transport.read(partition.clone(), at).await {
                Ok(batch) => {
                    for record in &batch.records {
                        self.counting.notice(&record.key, record.value.as_ref().unwrap_or(&Bytes::new()));
                    }
                    at = batch.next.max(at);
                    self.positions.set(partition.number, at);
                }
                Err(ReadError::OutOfRange { low, end, .. }) => {
                    tracing::warn!(%partition, at, low, end, "notices were lost before they were read");
                    // Behind an end that went back lies a topic made anew: all of it was said since.
                    at = low;
                }
                Err(ReadError::Closed) => return,
                Err(error) => self.pause(&partition, &error, &mut told).await,
            }
        }
    }

    async fn start(&self, partition: &PartitionId, from: &From, started: Time) -> Offset {
        if let Some(offset) = from.offsets.get(&partition.number) {
            return *offset;
        }
        if let Some(time) = from.time {
            return self.by_time(partition, time.min(started)).await;
        }
        let (_, end) = self.bounds(partition).await;
        // Asked after the end is known: only an end that was learned before anything was submitted will do.
        if self.open.load(Ordering::SeqCst) { self.by_time(partition, started).await } else { end }
    }

    /// The first offset and the end, however long it takes to learn them.
    async fn bounds(&self, partition: &PartitionId) -> (Offset, Offset) {
        let mut told = None;
        loop {
            match self.transport.read(partition.clone(), 0).await {
                Ok(Batch { low, end, .. }) | Err(ReadError::OutOfRange { low, end, .. }) => return (low, end),
                Err(error) => self.pause(partition, &error, &mut told).await,
            }
        }
    }

    /// An offset before which nothing was said at `time` or later, allowing for clocks that differ.
    async fn by_time(&self, partition: &PartitionId, time: Time) -> Offset {
        let time = Time(time.0.saturating_sub(SKEW.as_millis() as u64));
        let (mut low, mut high) = self.bounds(partition).await;
        while high - low > NEAR {
            let middle = low + (high - low) / 2;
            match self.transport.read(partition.clone(), middle).await {
                Ok(batch) => match batch.records.first() {
                    Some(record) if record.time < time => low = middle,
                    _ => high = middle,
                },
                Err(ReadError::OutOfRange { low: first, .. }) if middle < first => low = first,
                Err(ReadError::Closed) => return low,
                Err(_) => self.clock.sleep(PAUSE).await,
            }
        }
        low
    }

    /// Reads everything said since `time` once more, for a ticket that nobody here waited for before. A partition that cannot
    /// be read holds up no other (R15): what is said lies in two.
    pub async fn search(self, time: Time) {
        let search = async {
            // A client that has just started may not know the topic yet.
            let mut partitions = self.transport.partitions(&self.topic);
            while partitions.is_empty() {
                self.clock.sleep(PAUSE).await;
                partitions = self.transport.partitions(&self.topic);
            }
            let all = partitions.iter().map(|partition| self.search_in(&partition.id, time));
            futures_util::future::join_all(all).await;
        };
        tokio::select! {
            () = search => {}
            () = self.closing.cancelled() => {}
        }
    }

    async fn search_in(&self, partition: &PartitionId, time: Time) {
        let mut at = self.by_time(partition, time).await;
        let (_, end) = self.bounds(partition).await;
        tracing::debug!(%partition, from = at, to = end, "what was said is read again");
        while at < end {
            match self.transport.read(partition.clone(), at).await {
                Ok(batch) => {
                    for record in &batch.records {
                        self.counting.again(&record.key, record.value.as_ref().unwrap_or(&Bytes::new()));
                    }
                    at = batch.next.max(at);
                }
                Err(ReadError::OutOfRange { low, .. }) if at < low => at = low,
                Err(ReadError::OutOfRange { .. } | ReadError::Closed) => break,
                Err(_) => self.clock.sleep(PAUSE).await,
            }
        }
        tracing::debug!(%partition, to = at, "what was said was read again");
    }
}
