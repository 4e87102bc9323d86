//! What this client knows of everything undecided: which stage each transaction has reached, which parcels carry it, and who
//! follows whom. It moves on events (a stripe accepted, a fate verified: `stages`), tells handles at once (`waiting`), and
//! gathers what the outbox must remember. Must not talk to brokers or verify anything.

mod order;
mod stages;
mod state;
mod waiting;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use stages::end;
use state::{State, Tracked, TrackedParcel};
pub use waiting::{Known, Open, Wanted};

use super::error::ClientError;
use super::handle::{Ended, Handle, Progress, Receipt};
use super::window::{Window, WindowPlace};
use crate::core::id::{DestinationName, Fate, ParcelId, Release, Ticket, Time, TransactionId};
use crate::seams::Clock;
use crate::store::outbox::{Contents, Outbox, OutboxError, Outcome, OutcomeRow, ParcelRow, TransactionRow};
use crate::telemetry::logs::transaction_span;
use crate::telemetry::{Meter, names};

/// Publishing of this parcel at this destination is over: all its transactions have a fate there.
pub type Finished = (ParcelId, DestinationName);

/// What counts a stage, and what takes down how long it took.
type Reached = (Option<metrics::Counter>, Option<metrics::Histogram>);

/// The tracker.
pub struct Tracker {
    state: Mutex<State>,
    outbox: Outbox,
    clock: Arc<dyn Clock>,
    meter: Meter,
    /// What counts each stage: every transaction passes most of them.
    reached: Mutex<BTreeMap<&'static str, Reached>>,
    changed: Notify,
}

fn receipt_of(row: &TransactionRow, at: &OutcomeRow) -> Option<Receipt> {
    let (fate, position) = match at.outcome {
        Outcome::Submitted | Outcome::Accepted => return None,
        Outcome::Committed(position) | Outcome::Complete(position) => (Fate::Committed, Some(position)),
        Outcome::Rejected(reason) => (Fate::Rejected(reason), None),
        Outcome::Expired => (Fate::Expired, None),
    };
    Some(Receipt {
        ticket: row.ticket(&at.destination),
        fate,
        position,
        signers: at.signers.clone(),
        voters: at.voters.into(),
        directory_version: at.directory_version,
        first: at.first,
        times: BTreeMap::new(),
    })
}

impl Tracker {
    /// Starts with what the outbox holds from former runs.
    pub fn new(outbox: Outbox, contents: Contents, window: &Window, clock: Arc<dyn Clock>, meter: Meter) -> Self {
        let mut state = State::default();
        for row in contents.parcels {
            state.parcels.insert(row.parcel, TrackedParcel { row: Some(row), ..TrackedParcel::default() });
        }
        for row in contents.transactions {
            if let Some(parcel) = state.parcels.get_mut(&row.parcel) {
                parcel.transactions.push(row.id);
            }
            state.numbers = state.numbers.max(row.number);
            for at in &row.outcomes {
                state.order.stands(&row, &at.destination, at.outcome);
            }
            let place = (!row.decided()).then(|| window.occupy(row.payload_bytes));
            let way = |at: &OutcomeRow| {
                let mut progress = Progress::new(at.outcome);
                progress.parcel = Some(row.parcel);
                progress.receipt = receipt_of(&row, at);
                (at.destination.clone(), watch::Sender::new(progress))
            };
            let ways = row.outcomes.iter().map(way).collect();
            state.transactions.insert(row.id, Tracked { row, started: None, ways, _place: place });
        }
        // A crash may have come between adding a parcel that was sealed anew and forgetting the old one.
        let empty = state.parcels.iter().filter(|(_, parcel)| parcel.transactions.is_empty());
        let empty: Vec<ParcelId> = empty.map(|(id, _)| *id).collect();
        for id in empty {
            state.parcels.remove(&id);
            state.change.forget_parcels.push(id);
        }
        let changed = Notify::new();
        changed.notify_one();
        Self { state: Mutex::new(state), outbox, clock, meter, reached: Mutex::default(), changed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a submission that found no room.
    pub fn given_back(&self, error: &ClientError) {
        let reason = match error {
            ClientError::WindowFull { .. } => "window",
            ClientError::Outbox(OutboxError::Full { .. }) => "outbox",
            ClientError::Outbox(OutboxError::DiskFull { .. }) => "disk",
            _ => return,
        };
        self.meter.count_as(names::CLIENT_GIVEN_BACK, "reason", reason);
    }

    /// Parcels with the destinations where they are undecided, ascending.
    pub fn undecided(&self) -> Vec<(ParcelRow, Vec<DestinationName>)> {
        let state = self.state();
        let rows = state.parcels.values().filter_map(|parcel| parcel.row.as_ref());
        rows.map(|row| (row.clone(), state.undecided_at(row.parcel, &row.destinations)))
            .filter(|(_, destinations)| !destinations.is_empty())
            .collect()
    }

    /// A parcel's row, if it is undecided at this destination.
    pub fn undecided_parcel(&self, parcel: ParcelId, destination: &DestinationName) -> Option<ParcelRow> {
        let state = self.state();
        let row = state.parcels.get(&parcel)?.row.clone()?;
        state.undecided_at(parcel, std::slice::from_ref(destination)).first().map(|_| row)
    }

    /// From which offset of each notices partition on something may be said about what is undecided or incomplete.
    pub fn notices_from(&self) -> BTreeMap<i32, i64> {
        let mut from = BTreeMap::new();
        for row in self.state().parcels.values().filter_map(|parcel| parcel.row.as_ref()) {
            for (partition, offset) in &row.notices_from {
                let least = from.entry(*partition).or_insert(*offset);
                *least = (*least).min(*offset);
            }
        }
        from
    }

    /// The earliest time at which something undecided was submitted.
    pub fn earliest(&self) -> Option<Time> {
        self.state()
            .transactions
            .values()
            .filter(|tracked| !tracked.row.done())
            .map(|tracked| tracked.row.submitted)
            .min()
    }

    /// The next place in the order of submissions.
    pub fn next_number(&self) -> u64 {
        let mut state = self.state();
        state.numbers += 1;
        state.numbers
    }

    /// The ticket that the next transaction of this key follows at this destination (R9): the latest that is not known to be
    /// decided; when all are, and it is asked for, the latest that is not known to be complete.
    pub fn predecessor(&self, destination: &DestinationName, key: &[u8], release: Release) -> Option<Ticket> {
        let state = self.state();
        let id = state.order.latest(destination, key, release)?;
        state.transactions.get(&id).map(|tracked| tracked.row.ticket(destination))
    }

    /// A parcel's stripes may be accepted from now on, though it is not sealed yet.
    pub fn begin(&self, parcel: ParcelId) {
        self.state().parcels.entry(parcel).or_default();
    }

    /// Its sealing failed.
    pub fn abandon(&self, parcel: ParcelId) {
        self.state().parcels.remove(&parcel);
    }

    /// A parcel with its transactions is durable in the outbox; one handle for each transaction and destination, in order.
    pub fn add(&self, row: ParcelRow, transactions: Vec<(TransactionRow, Duration, WindowPlace)>) -> Vec<Vec<Handle>> {
        let mut state = self.state();
        let mut handles = Vec::new();
        let parcel = state.parcels.entry(row.parcel).or_default();
        parcel.transactions = transactions.iter().map(|(row, _, _)| row.id).collect();
        parcel.row = Some(row.clone());
        let mut bytes = 0;
        for (transaction, started, place) in transactions {
            self.reached("submitted", None, Fate::Committed);
            bytes += transaction.payload_bytes;
            transaction_span("submit", Some(row.parcel), transaction.id)
                .in_scope(|| tracing::debug!(bytes = transaction.payload_bytes, "submitted"));
            let mut ways = BTreeMap::new();
            let mut of_this = Vec::new();
            for at in &transaction.outcomes {
                state.order.stands(&transaction, &at.destination, at.outcome);
                let mut progress = Progress::new(at.outcome);
                progress.parcel = Some(transaction.parcel);
                progress.withheld = state.withheld.get(&at.destination).cloned().unwrap_or_default();
                let parcel = state.parcels.get(&transaction.parcel);
                progress.refused = parcel.and_then(|parcel| parcel.refused.get(&at.destination)).cloned();
                progress.ended = state.closed.then_some(Ended::Closed);
                let (way, listener) = watch::channel(progress);
                of_this.push(self.handle_of(&transaction, &at.destination, listener));
                ways.insert(at.destination.clone(), way);
            }
            let tracked = Tracked { row: transaction, started: Some(started), ways, _place: Some(place) };
            state.transactions.insert(tracked.row.id, tracked);
            handles.push(of_this);
        }
        self.meter.count(names::CLIENT_PAYLOAD_BYTES, bytes);
        for destination in &row.destinations {
            self.check_accepted(&mut state, row.parcel, destination);
        }
        drop(state);
        handles
    }

    /// The parcel that a transaction travels in, or did; `None` for tickets of other processes.
    pub fn parcel_of(&self, transaction: TransactionId) -> Option<ParcelId> {
        self.state().transactions.get(&transaction).map(|tracked| tracked.row.parcel)
    }

    /// An undecided parcel with its transactions, ascending by their place in it.
    pub fn parcel(&self, id: ParcelId) -> Option<(ParcelRow, Vec<TransactionRow>)> {
        let state = self.state();
        let parcel = state.parcels.get(&id)?;
        let rows = parcel.transactions.iter().filter_map(|id| state.transactions.get(id));
        let mut rows: Vec<TransactionRow> = rows.map(|tracked| tracked.row.clone()).collect();
        rows.sort_by_key(|row| row.index);
        Some((parcel.row.clone()?, rows))
    }

    /// The client is closed: nothing more will be known here.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        end(state.transactions.values().flat_map(|tracked| tracked.ways.values()), Ended::Closed);
        end(state.others.values(), Ended::Closed);
    }

    /// A newer directory is to be remembered.
    pub fn remember_directory(&self, bytes: Vec<u8>) {
        self.state().change.directory = Some(bytes);
        self.changed.notify_one();
    }

    /// Waits until there is something that the outbox must remember.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Writes to the outbox what changed since the last call. Errors: [`OutboxError`].
    pub async fn record(&self) -> Result<(), OutboxError> {
        let change = {
            let mut state = self.state();
            let mut change = std::mem::take(&mut state.change);
            change.transactions = std::mem::take(&mut state.changed_rows).into_values().collect();
            change
        };
        self.outbox.change(change).await
    }
}
