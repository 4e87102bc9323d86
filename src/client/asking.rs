//! Asks the nodes about tickets of which nobody says anything, and about those whose receipts are not complete because some
//! were lost: signed queries on the segments topic, with growing patience. What they answer comes as receipts. Must not
//! count them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::counting::Directories;
use super::tracker::{Open, Tracker};
use crate::core::id::{DestinationName, Epoch, PayloadTag, Ticket, Time, TransactionId};
use crate::core::limits;
use crate::core::receipt::Query;
use crate::core::sign::SecretKey;
use crate::seams::Clock;

/// A ticket is asked about when nothing was heard of it for this long, or, without a fate, as soon as its deadline has passed.
const FIRST: Duration = Duration::from_secs(30);

/// After the deadline group time may lag behind the wall for a moment.
const AFTER_DEADLINE: Duration = Duration::from_secs(2);

/// Between two questions about the same ticket: at first, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// Hands a query to the transport.
pub type Append = Box<dyn Fn(&DestinationName, Vec<u8>) + Send + Sync>;

#[derive(Debug, Clone, Copy)]
struct Pace {
    next: Duration,
    patience: Duration,
    /// Whether it was committed when it was asked about.
    decided: bool,
}

/// Asks.
pub struct Asking {
    key: SecretKey,
    epoch: Epoch,
    directories: Arc<Directories>,
    tracker: Arc<Tracker>,
    clock: Arc<dyn Clock>,
    append: Append,
    paces: Mutex<BTreeMap<Ticket, Pace>>,
    /// The time in the last query: the wall may be put back, queries never go back.
    asked: Mutex<Time>,
}

impl Asking {
    /// Will ask in this sender's name, as this start of it.
    pub fn new(
        key: SecretKey,
        epoch: Epoch,
        directories: Arc<Directories>,
        tracker: Arc<Tracker>,
        clock: Arc<dyn Clock>,
        append: Append,
    ) -> Self {
        Self { key, epoch, directories, tracker, clock, append, paces: Mutex::default(), asked: Mutex::default() }
    }

    /// Asks every second about what is due, until the client is closed.
    pub async fn run(self, closing: CancellationToken) {
        loop {
            tokio::select! {
                () = self.clock.sleep(Duration::from_secs(1)) => {}
                () = closing.cancelled() => return,
            }
            self.ask();
        }
    }

    fn due(&self) -> BTreeMap<DestinationName, Vec<(TransactionId, Time, Option<PayloadTag>)>> {
        let (now, wall) = (self.clock.monotonic(), self.clock.now());
        let open = self.tracker.open_tickets();
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        paces.retain(|ticket, _| open.contains_key(ticket));
        let mut due: BTreeMap<DestinationName, Vec<_>> = BTreeMap::new();
        let (committed, undecided): (Vec<_>, Vec<_>) = open.into_iter().partition(|(_, open)| open.decided);
        // Those without a fate come first: what is committed is safe.
        for (ticket, Open { since, decided, tag }) in undecided.into_iter().chain(committed) {
            let late = !decided && wall > ticket.deadline.after(AFTER_DEADLINE);
            let silent = wall.since(since) > FIRST || late;
            let pace = paces.get(&ticket).copied().filter(|pace| pace.decided == decided);
            if !silent || pace.is_some_and(|pace| pace.next > now) {
                continue;
            }
            let of_destination = due.entry(ticket.destination.clone()).or_default();
            if of_destination.len() < limits::TICKETS_PER_QUERY {
                of_destination.push((ticket.transaction, ticket.deadline, tag));
                let patience = pace.map_or(AGAIN.0, |pace| (pace.patience * 2).min(AGAIN.1));
                paces.insert(ticket, Pace { next: now + patience, patience, decided });
            }
        }
        due
    }

    fn ask(&self) {
        let directory = self.directories.current();
        for (destination, asked) in self.due() {
            let Some(entry) = directory.destinations.get(&destination) else { continue };
            tracing::debug!(%destination, tickets = asked.len(), "asking what became of them");
            let query = Query { epoch: self.epoch, time: self.next_time(), asked };
            (self.append)(&destination, query.sign(&self.key, entry.tag));
        }
    }

    /// The wall's time, but later than that of the last query.
    fn next_time(&self) -> Time {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        *asked = self.clock.now().max(Time(asked.0.saturating_add(1)));
        *asked
    }
}
