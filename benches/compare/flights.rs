//! What is under way: each message's intended time, and the moments at which readers, brokers and stores had it.
//!
//! Owns the bookkeeping that all arms share. Must not know Kafka, nor of Sealcast more than how many are a majority.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::sealcast::core::directory::quorum;
use tokio::sync::OwnedSemaphorePermit;

use crate::figures::results::Outcome;
use crate::figures::words::Arm;

/// How often a wait looks.
const LOOK: Duration = Duration::from_millis(5);

/// When a message counts as done: the wait ends and its place goes to the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// All readers opened it, the brokers took it, and who confirms has confirmed.
    Everything,
    /// A majority of the readers opened it.
    Delivered,
    /// All readers have stored it.
    Stored,
}

struct Flight {
    arm: Arm,
    block: usize,
    due: Instant,
    until: Until,
    /// By each of the readers, as `stored` and `answers`.
    delivered: Vec<Option<Duration>>,
    stored: Vec<Option<Duration>>,
    accepted: Option<Duration>,
    unacknowledged: usize,
    answers: Vec<bool>,
    committed: Option<Duration>,
    /// Its place among those that may be under way.
    place: Option<OwnedSemaphorePermit>,
}

impl Flight {
    fn is_done(&self) -> bool {
        match self.until {
            Until::Everything => {
                self.delivered.iter().all(Option::is_some)
                    && self.accepted.is_some()
                    && (self.committed.is_some() || !self.arm.commits())
            }
            Until::Delivered => self.delivered.iter().flatten().count() >= quorum(self.delivered.len()),
            Until::Stored => self.stored.iter().all(Option::is_some),
        }
    }
}

/// Everything under way. What comes for a message that nobody waits for any more is ignored.
pub struct Flights {
    /// How many readers open each message: nodes, or consumers.
    readers: usize,
    next: AtomicU64,
    all: Mutex<BTreeMap<u64, Flight>>,
    /// Messages of Sealcast by transaction.
    transactions: Mutex<BTreeMap<String, u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flights {
    /// Nothing under way yet; so many readers open each message.
    pub fn new(readers: usize) -> Self {
        Self { readers, next: AtomicU64::default(), all: Mutex::default(), transactions: Mutex::default() }
    }

    /// How many readers open each message.
    pub fn readers(&self) -> usize {
        self.readers
    }

    /// A message that is to be sent at `due`; gives its number.
    pub fn begin(
        &self,
        arm: Arm,
        block: usize,
        due: Instant,
        until: Until,
        place: Option<OwnedSemaphorePermit>,
    ) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let flight = Flight {
            arm,
            block,
            due,
            until,
            delivered: vec![None; self.readers],
            stored: vec![None; self.readers],
            accepted: None,
            unacknowledged: 0,
            answers: vec![false; self.readers],
            committed: None,
            place,
        };
        lock(&self.all).insert(number, flight);
        number
    }

    /// Under which transaction a message travels.
    pub fn travels_as(&self, number: u64, transaction: String) {
        lock(&self.transactions).insert(transaction, number);
    }

    /// A reader opened a transaction.
    pub fn opened(&self, transaction: &str, reader: usize) {
        let now = Instant::now();
        let number = lock(&self.transactions).get(transaction).copied();
        if let Some(number) = number {
            self.change(number, |flight| set(flight.delivered.get_mut(reader), now, flight.due));
        }
    }

    fn change(&self, number: u64, change: impl FnOnce(&mut Flight)) {
        let freed = {
            let mut all = lock(&self.all);
            let Some(flight) = all.get_mut(&number) else { return };
            change(flight);
            if flight.is_done() { flight.place.take() } else { None }
        };
        // Whoever waits for the place wakes up outside of the lock.
        drop(freed);
    }

    /// A reader opened it.
    pub fn delivered(&self, number: u64, reader: usize) {
        let now = Instant::now();
        self.change(number, |flight| set(flight.delivered.get_mut(reader), now, flight.due));
    }

    /// A reader has it in its store.
    pub fn stored(&self, number: u64, reader: usize) {
        let now = Instant::now();
        self.change(number, |flight| set(flight.stored.get_mut(reader), now, flight.due));
    }

    /// It was handed over in so many records.
    pub fn in_records(&self, number: u64, records: usize) {
        self.change(number, |flight| flight.unacknowledged = records);
    }

    /// The brokers acknowledged one of its records.
    pub fn acknowledged(&self, number: u64) {
        let now = Instant::now();
        self.change(number, |flight| {
            flight.unacknowledged = flight.unacknowledged.saturating_sub(1);
            if flight.unacknowledged == 0 {
                set(Some(&mut flight.accepted), now, flight.due);
            }
        });
    }

    /// A consumer of the pipeline answered that it has stored it.
    pub fn answered(&self, number: u64, reader: usize) {
        let now = Instant::now();
        self.change(number, |flight| {
            if let Some(answer) = flight.answers.get_mut(reader) {
                *answer = true;
            }
            let answers = flight.answers.iter().filter(|answer| **answer).count();
            if answers >= quorum(flight.answers.len()) {
                set(Some(&mut flight.committed), now, flight.due);
            }
        });
    }

    /// The brokers have it, by what its client says.
    pub fn accepted(&self, number: u64) {
        let now = Instant::now();
        self.change(number, |flight| set(Some(&mut flight.accepted), now, flight.due));
    }

    /// A majority signed that it is committed and held.
    pub fn committed(&self, number: u64) {
        let now = Instant::now();
        self.change(number, |flight| {
            set(Some(&mut flight.committed), now, flight.due);
            // Committed is accepted, whatever the brokers said.
            set(Some(&mut flight.accepted), now, flight.due);
        });
    }

    /// All nodes signed so.
    pub fn complete(&self, number: u64) {
        let now = Instant::now();
        self.change(number, |flight| {
            for stored in &mut flight.stored {
                set(Some(stored), now, flight.due);
            }
        });
    }

    /// Messages of arms that `counts` that are not done.
    pub fn waiting(&self, counts: impl Fn(Arm) -> bool) -> usize {
        lock(&self.all).values().filter(|flight| counts(flight.arm) && !flight.is_done()).count()
    }

    /// Waits until all messages of arms that `counts` are done, at most so long; gives whether they are.
    pub fn wait(&self, patience: Duration, counts: impl Fn(Arm) -> bool) -> bool {
        let end = Instant::now() + patience;
        loop {
            if self.waiting(&counts) == 0 {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until whatever somebody confirms is confirmed, at most so long.
    pub fn settle(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let unsettled = |flight: &Flight| flight.arm.is_sealcast() && flight.committed.is_none();
        while lock(&self.all).values().any(unsettled) && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
    }

    /// Ends all waiting and gives what became of each message.
    pub fn take(&self) -> Vec<Outcome> {
        let all = std::mem::take(&mut *lock(&self.all));
        lock(&self.transactions).clear();
        let outcome = |flight: Flight| Outcome {
            arm: flight.arm,
            block: flight.block,
            delivered: flight.delivered.into_iter().map(milliseconds).collect(),
            accepted: milliseconds(flight.accepted),
            committed: milliseconds(flight.committed),
            waited: flight.due.elapsed().as_secs_f64() * 1e3,
        };
        all.into_values().map(outcome).collect()
    }
}

/// The first time counts: what is sent again comes again.
fn set(slot: Option<&mut Option<Duration>>, now: Instant, due: Instant) {
    if let Some(slot) = slot
        && slot.is_none()
    {
        *slot = Some(now.saturating_duration_since(due));
    }
}

fn milliseconds(time: Option<Duration>) -> Option<f64> {
    time.map(|time| time.as_secs_f64() * 1e3)
}
