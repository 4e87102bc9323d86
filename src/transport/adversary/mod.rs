//! A hostile transport for tests and the demo: wraps another and drops, duplicates, delays, reorders, corrupts, truncates,
//! replays and withholds records, and loses, silences or slows whole domains. What it does to a record follows from a seed.
//!
//! Owns the moods, what comes of each fault, and the count of them; which fault strikes is up to `fault`. Must not look inside
//! a record: what belongs together is told by the caller.

mod fault;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

pub use self::fault::{Classifier, Group, Rates};

use self::fault::{Fault, History};
use super::contract::{
    Ack, AppendError, Batch, Domain, Full, Offset, Partition, PartitionId, Pending, READ_WAIT, ReadError, Record,
    Topic, Transport,
};
use crate::seams::Seams;

/// Old records kept for replays.
const REPLAYS: usize = 64;

/// How an adversary behaves.
#[derive(Clone)]
pub struct AdversaryOptions {
    /// Where its decisions come from.
    pub seed: u64,
    /// How often it strikes.
    pub rates: Rates,
    /// The longest delay.
    pub delay: Duration,
    /// Bounds what is lost or damaged of each group; without it, nothing is bounded.
    pub classifier: Option<Classifier>,
}

impl AdversaryOptions {
    /// Harmless: passes everything on.
    pub fn harmless(seed: u64) -> Self {
        Self { seed, rates: Rates::default(), delay: Duration::from_millis(50), classifier: None }
    }
}

/// What a domain does, beside the faults of single records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mood {
    /// It works.
    #[default]
    Well,
    /// It is gone: not up, appends fail, reads fail.
    Away,
    /// Its connection stands and nothing comes back: appends are neither made nor acknowledged, reads wait.
    Silent,
    /// Everything waits until it has another mood, and happens then.
    Held,
    /// Everything takes this much longer.
    Slow(Duration),
}

macro_rules! deeds {
    ($($(#[$doc:meta])* $field:ident),* $(,)?) => {
        /// What an adversary did so far, in records.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Deeds { $($(#[$doc])* pub $field: u64),* }

        #[derive(Debug, Default)]
        struct Count { $($field: AtomicU64),* }

        impl Count {
            fn now(&self) -> Deeds {
                Deeds { $($field: self.$field.load(Ordering::Relaxed)),* }
            }
        }
    };
}

deeds! {
    /// Given to it.
    appended,
    /// Dropped.
    dropped,
    /// Corrupted.
    corrupted,
    /// Truncated.
    truncated,
    /// Withheld from readers, each reader's attempt counted once.
    withheld,
    /// Duplicated.
    duplicated,
    /// Replayed.
    replayed,
    /// Delayed.
    delayed,
    /// Put behind later ones.
    reordered,
}

impl Deeds {
    /// Records that were lost or damaged on the way in.
    pub fn hurt(&self) -> u64 {
        self.dropped + self.corrupted + self.truncated
    }
}

/// The adversary around a transport. Clones share the inner transport, the moods and the count.
pub struct Adversary<T> {
    inner: Arc<T>,
    options: AdversaryOptions,
    seams: Seams,
    state: Arc<Mutex<State>>,
    /// Changes with every mood.
    changed: Arc<watch::Sender<()>>,
    count: Arc<Count>,
}

#[derive(Default)]
struct State {
    moods: BTreeMap<Domain, Mood>,
    history: History,
    past: VecDeque<(PartitionId, Record)>,
    last: BTreeMap<PartitionId, Offset>,
}

impl<T> Clone for Adversary<T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            options: self.options.clone(),
            seams: self.seams.clone(),
            state: self.state.clone(),
            changed: self.changed.clone(),
            count: self.count.clone(),
        }
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Adversary<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adversary")
            .field("inner", &self.inner)
            .field("deeds", &self.count.now())
            .finish_non_exhaustive()
    }
}

impl<T: Transport> Adversary<T> {
    /// Wraps a transport.
    pub fn new(inner: T, options: AdversaryOptions, seams: &Seams) -> Self {
        let (state, count, changed) = (Arc::default(), Arc::default(), Arc::new(watch::Sender::new(())));
        Self { inner: Arc::new(inner), options, seams: seams.clone(), state, changed, count }
    }

    /// The transport inside, which the adversary does not touch.
    pub fn inner(&self) -> &T {
        &self.inner
    }

    /// Sets what a domain does from now on.
    pub fn set_mood(&self, domain: &Domain, mood: Mood) {
        self.state().moods.insert(domain.clone(), mood);
        self.changed.send_replace(());
    }

    /// Waits while the partition's domain is held.
    async fn released(&self, of: &PartitionId) {
        let mut changed = self.changed.subscribe();
        while self.mood(of) == Mood::Held {
            // The sender is this value's.
            let _ = changed.changed().await;
        }
    }

    /// Appends when the domain is held no more; whatever it does then.
    fn append_released(&self, to: PartitionId, record: Record) -> Pending<Ack> {
        let (fulfil, pending) = Pending::new();
        let adversary = self.clone();
        let began = self.seams.clock.monotonic();
        tokio::spawn(async move {
            adversary.released(&to).await;
            let mut record = record;
            let answer = loop {
                match adversary.append(to.clone(), record) {
                    Ok(pending) => break pending.await,
                    Err(Full(back)) => record = back,
                }
                adversary.seams.clock.sleep(Duration::from_millis(5)).await;
            };
            let took = adversary.seams.clock.monotonic().saturating_sub(began);
            // The one who appended may have stopped waiting.
            let _ = fulfil.send(answer.map(|ack| Ack { took, ..ack }));
        });
        pending
    }

    /// What it did so far.
    pub fn deeds(&self) -> Deeds {
        self.count.now()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mood(&self, of: &PartitionId) -> Mood {
        let partitions = self.inner.partitions(&of.topic);
        let found = partitions.iter().find(|partition| partition.id == *of);
        found.and_then(|partition| self.state().moods.get(&partition.domain).copied()).unwrap_or_default()
    }

    /// Appends later, and again when there is no credit then.
    fn append_after(&self, wait: Duration, to: PartitionId, record: Record) -> Pending<Ack> {
        let (fulfil, pending) = Pending::new();
        let (inner, clock) = (self.inner.clone(), self.seams.clock.clone());
        let began = clock.monotonic();
        tokio::spawn(async move {
            clock.sleep(wait).await;
            let mut record = record;
            let answer = loop {
                match inner.append(to.clone(), record) {
                    Ok(pending) => break pending.await,
                    Err(Full(back)) => record = back,
                }
                clock.sleep(Duration::from_millis(5)).await;
            };
            let took = clock.monotonic().saturating_sub(began);
            // The one who appended may have stopped waiting.
            let _ = fulfil.send(answer.map(|ack| Ack { took, ..ack }));
        });
        pending
    }

    fn on_the_side(&self, to: PartitionId, record: Record) {
        // A duplicate or replay for which there is no credit does not happen.
        drop(self.inner.append(to, record));
    }
}

/// What is read of a domain that is away.
fn away(partition: PartitionId) -> ReadError {
    ReadError::Absent { partition, cause: "the domain is away".to_owned() }
}

/// What is read of a domain that says nothing.
fn nothing(at: Offset) -> Batch {
    Batch { next: at, end: at, ..Batch::default() }
}

impl<T: Transport> Transport for Adversary<T> {
    fn partitions(&self, topic: &Topic) -> Arc<[Partition]> {
        let partitions = self.inner.partitions(topic);
        let state = self.state();
        if state.moods.is_empty() {
            return partitions;
        }
        let away = |domain: &Domain| state.moods.get(domain) == Some(&Mood::Away);
        partitions.iter().map(|known| Partition { up: known.up && !away(&known.domain), ..known.clone() }).collect()
    }

    fn append(&self, to: PartitionId, record: Record) -> Result<Pending<Ack>, Full<Record>> {
        let count = &self.count;
        let add = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let slow = match self.mood(&to) {
            Mood::Well => Duration::ZERO,
            Mood::Slow(by) => by,
            Mood::Held => return Ok(self.append_released(to, record)),
            Mood::Away => {
                let (fulfil, pending) = Pending::new();
                let lost = AppendError::Absent { partition: to, cause: "the domain is away".to_owned() };
                // The receiver is in `pending`.
                let _ = fulfil.send(Err(lost));
                return Ok(pending);
            }
            Mood::Silent => {
                let (fulfil, pending) = Pending::new();
                let clock = self.seams.clock.clone();
                tokio::spawn(async move {
                    clock.sleep(Duration::from_secs(5)).await;
                    let lost = AppendError::Absent { partition: to, cause: "no acknowledgement in time".to_owned() };
                    // The one who appended may have stopped waiting.
                    let _ = fulfil.send(Err(lost));
                });
                return Ok(pending);
            }
        };
        add(&count.appended);
        let (fault, detail) = self.state().history.strike(&self.options, &record);
        let mut record = record;
        let mut wait = slow;
        match fault {
            Some(Fault::Drop) => {
                add(&count.dropped);
                let (fulfil, pending) = Pending::new();
                let offset = self.state().last.get(&to).copied().unwrap_or(0);
                // The receiver is in `pending`.
                let _ = fulfil.send(Ok(Ack { offset, took: slow }).map_err(|never: AppendError| never));
                return Ok(pending);
            }
            Some(Fault::Corrupt) if !record.value.is_empty() => {
                add(&count.corrupted);
                let mut value = record.value.to_vec();
                let at = (detail >> 3) as usize % value.len();
                if let Some(byte) = value.get_mut(at) {
                    *byte ^= 1 << (detail & 7);
                }
                record.value = Bytes::from(value);
            }
            Some(Fault::Truncate) if !record.value.is_empty() => {
                add(&count.truncated);
                record.value.truncate(detail as usize % record.value.len());
            }
            Some(Fault::Duplicate) => {
                add(&count.duplicated);
                self.on_the_side(to.clone(), record.clone());
            }
            Some(Fault::Replay) => {
                let old = {
                    let state = self.state();
                    let places = state.past.len().max(1);
                    state.past.get(detail as usize % places).cloned()
                };
                if let Some((at, old)) = old {
                    add(&count.replayed);
                    self.on_the_side(at, old);
                }
            }
            Some(Fault::Delay) => {
                add(&count.delayed);
                wait += self.options.delay.mul_f64((detail % 1000) as f64 / 1000.0);
            }
            Some(Fault::Reorder) => {
                add(&count.reordered);
                wait += self.options.delay;
            }
            _ => {}
        }
        if self.options.rates.replay > 0.0 {
            let mut state = self.state();
            state.past.push_back((to.clone(), record.clone()));
            if state.past.len() > REPLAYS {
                state.past.pop_front();
            }
        }
        if wait.is_zero() { self.inner.append(to, record) } else { Ok(self.append_after(wait, to, record)) }
    }

    async fn read(&self, from: PartitionId, at: Offset) -> Result<Batch, ReadError> {
        match self.mood(&from) {
            Mood::Well => {}
            Mood::Held => {
                tokio::select! {
                    () = self.released(&from) => {}
                    () = self.seams.clock.sleep(READ_WAIT) => {}
                }
                return Ok(nothing(at));
            }
            Mood::Slow(by) => self.seams.clock.sleep(by).await,
            Mood::Away => {
                self.seams.clock.sleep(READ_WAIT).await;
                return Err(away(from));
            }
            Mood::Silent => {
                self.seams.clock.sleep(READ_WAIT).await;
                return Ok(nothing(at));
            }
        }
        let read = self.inner.read(from.clone(), at).await;
        // Nor is anything delivered that was being read when the mood changed.
        self.released(&from).await;
        match self.mood(&from) {
            Mood::Away => return Err(away(from)),
            Mood::Silent => return Ok(nothing(at)),
            _ => {}
        }
        let mut batch = read?;
        let mut state = self.state();
        state.last.insert(from, batch.end);
        if state.history.withholds_any() {
            let before = batch.records.len();
            batch.records.retain(|found| {
                let value = found.value.clone().unwrap_or_default();
                !state.history.withholds(&Record { key: found.key.clone(), value })
            });
            self.count.withheld.fetch_add((before - batch.records.len()) as u64, Ordering::Relaxed);
        }
        Ok(batch)
    }
}
