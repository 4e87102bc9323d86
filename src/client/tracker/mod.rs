//! What this client knows of everything undecided: which stage each transaction has reached, which parcels carry it, and who
//! follows whom. It moves on events (a stripe accepted, a fate verified), tells handles at once, and gathers what the outbox
//! must remember. Must not talk to brokers or verify anything.

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use state::{State, Tracked, TrackedParcel};

use super::error::ClientError;
use super::handle::{Ended, Handle, Progress, Receipt};
use super::window::{Window, WindowPlace};
use crate::core::id::{DestinationName, Fate, ParcelId, PayloadTag, Release, Ticket, Time, TransactionId};
use crate::seams::Clock;
use crate::store::outbox::{Contents, LastTicket, Outbox, OutboxError, Outcome, OutcomeRow, ParcelRow, TransactionRow};
use crate::telemetry::logs::{parcel_span, transaction_span};
use crate::telemetry::{Meter, names};
use crate::transport::publisher::StripeId;

/// How long a committed transaction is kept for the sake of *complete* before the outbox forgets it.
const WAIT_FOR_COMPLETE: Duration = Duration::from_secs(600);

/// Publishing of this parcel at this destination is over: all its transactions have a fate there.
pub type Finished = (ParcelId, DestinationName);

/// The tracker.
pub struct Tracker {
    state: Mutex<State>,
    outbox: Outbox,
    clock: Arc<dyn Clock>,
    meter: Meter,
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

fn outcome_of(receipt: &Receipt, complete: bool) -> Outcome {
    match (receipt.fate, receipt.position) {
        (Fate::Rejected(reason), _) => Outcome::Rejected(reason),
        (Fate::Expired, _) => Outcome::Expired,
        (Fate::Committed, position) if complete => Outcome::Complete(position.unwrap_or_default()),
        (Fate::Committed, position) => Outcome::Committed(position.unwrap_or_default()),
    }
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
        for last in contents.last {
            // One whose transaction is done with has nobody who could say that it needs not be named any more.
            if state.transactions.contains_key(&last.ticket.transaction) {
                state.last.insert((last.ticket.destination.clone(), last.ordering_key.clone()), last);
            } else {
                state.change.forget_last.push(last);
            }
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
        Self { state: Mutex::new(state), outbox, clock, meter, changed }
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
        self.meter.count_as(names::CLIENT_FULL, "reason", reason);
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

    /// The ticket that a transaction of this key follows at this destination (R9); none when what came last is known to be
    /// decided, or complete where that is asked for.
    pub fn predecessor(&self, destination: &DestinationName, key: &[u8], release: Release) -> Option<Ticket> {
        let state = self.state();
        let last = state.last.get(&(destination.clone(), key.to_vec()))?;
        (!last.committed || release == Release::Complete).then(|| last.ticket.clone())
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
    pub fn add(
        &self,
        row: ParcelRow,
        transactions: Vec<(TransactionRow, Duration, WindowPlace)>,
        last: &[LastTicket],
    ) -> Vec<Vec<Handle>> {
        let mut state = self.state();
        for last in last {
            let place = (last.ticket.destination.clone(), last.ordering_key.clone());
            state.last.insert(place, last.clone());
        }
        let mut handles = Vec::new();
        let parcel = state.parcels.entry(row.parcel).or_default();
        parcel.transactions = transactions.iter().map(|(row, _, _)| row.id).collect();
        parcel.row = Some(row.clone());
        for (transaction, started, place) in transactions {
            self.meter.count_as(names::CLIENT_TRANSACTIONS, "stage", "submitted");
            self.meter.count(names::CLIENT_PAYLOAD_BYTES, transaction.payload_bytes);
            transaction_span("submit", Some(row.parcel), transaction.id)
                .in_scope(|| tracing::debug!(bytes = transaction.payload_bytes, "submitted"));
            let mut ways = BTreeMap::new();
            let mut of_this = Vec::new();
            for at in &transaction.outcomes {
                let mut progress = Progress::new(at.outcome);
                progress.parcel = Some(transaction.parcel);
                progress.withheld = state.withheld.get(&at.destination).cloned().unwrap_or_default();
                progress.ended = state.closed.then_some(Ended::Closed);
                let (way, listener) = watch::channel(progress);
                of_this.push(self.handle(transaction.ticket(&at.destination), transaction.submitted, listener));
                ways.insert(at.destination.clone(), way);
            }
            let tracked = Tracked { row: transaction, started: Some(started), ways, _place: Some(place) };
            state.transactions.insert(tracked.row.id, tracked);
            handles.push(of_this);
        }
        for destination in &row.destinations {
            self.check_accepted(&mut state, row.parcel, destination);
        }
        drop(state);
        handles
    }

    fn handle(&self, ticket: Ticket, submitted: Time, progress: watch::Receiver<Progress>) -> Handle {
        Handle { ticket, submitted, progress, clock: self.clock.clone() }
    }

    /// Whether a transaction of this id is in the outbox.
    pub fn knows(&self, id: TransactionId) -> bool {
        self.state().transactions.contains_key(&id)
    }

    /// Handles for a transaction that is submitted again while it is in the outbox (R6): those of the first time; `None` when it
    /// is not there. Errors: [`ClientError::Transaction`] when it is not the same.
    pub fn again(
        &self,
        id: TransactionId,
        destinations: &[DestinationName],
        tag: PayloadTag,
    ) -> Option<Result<Vec<Handle>, ClientError>> {
        let state = self.state();
        let tracked = state.transactions.get(&id)?;
        let wrong = |problem: String| Some(Err(ClientError::Transaction { field: "id", problem }));
        if tracked.row.payload_tag != tag {
            return wrong("another payload was submitted under it: give this one an id of its own".to_owned());
        }
        let mut handles = Vec::new();
        for name in destinations {
            let Some(way) = tracked.ways.get(name) else {
                return wrong(format!("it was submitted without {name} before: give it an id of its own there"));
            };
            handles.push(self.handle(tracked.row.ticket(name), tracked.row.submitted, way.subscribe()));
        }
        Some(Ok(handles))
    }

    /// A handle for a ticket that this outbox knows.
    pub fn attach(&self, ticket: &Ticket) -> Option<Handle> {
        let state = self.state();
        let tracked = state.transactions.get(&ticket.transaction)?;
        let way = tracked.ways.get(&ticket.destination)?;
        Some(self.handle(tracked.row.ticket(&ticket.destination), tracked.row.submitted, way.subscribe()))
    }

    /// A handle for a ticket that this outbox does not know: receipts alone tell. True when nobody waited for it before.
    pub fn attach_other(&self, ticket: &Ticket) -> (Handle, bool) {
        let mut state = self.state();
        let (mut new, closed) = (false, state.closed);
        let way = state.others.entry(ticket.clone()).or_insert_with(|| {
            new = true;
            let mut progress = Progress::new(Outcome::Submitted);
            progress.ended = closed.then_some(Ended::Closed);
            watch::Sender::new(progress)
        });
        let listener = way.subscribe();
        (self.handle(ticket.clone(), ticket.transaction.time(), listener), new)
    }

    /// The ticket as it is known here, if receipts about this transaction at this destination still matter.
    pub fn wanted(&self, destination: &DestinationName, transaction: TransactionId) -> Option<Ticket> {
        let state = self.state();
        if let Some(tracked) = state.transactions.get(&transaction) {
            let at = tracked.row.outcomes.iter().find(|at| at.destination == *destination)?;
            return (!at.outcome.done()).then(|| tracked.row.ticket(destination));
        }
        let least = Ticket { destination: destination.clone(), transaction, deadline: Time(0) };
        let (ticket, way) = state.others.range(least..).next()?;
        let same = ticket.destination == *destination && ticket.transaction == transaction;
        (same && !way.borrow().outcome.done()).then(|| ticket.clone())
    }

    /// Tickets without a fate, with the time of their submission and the payload tag where it is known here.
    pub fn open_tickets(&self) -> BTreeMap<Ticket, (Time, Option<PayloadTag>)> {
        let state = self.state();
        let mut open = BTreeMap::new();
        for tracked in state.transactions.values() {
            for at in tracked.row.outcomes.iter().filter(|at| !at.outcome.decided()) {
                let known = (tracked.row.submitted, Some(tracked.row.payload_tag));
                open.insert(tracked.row.ticket(&at.destination), known);
            }
        }
        for (ticket, way) in &state.others {
            if !way.borrow().outcome.decided() {
                open.insert(ticket.clone(), (ticket.transaction.time(), None));
            }
        }
        open
    }

    /// A majority of the nodes has forgotten what became of this ticket, and so does the outbox.
    pub fn forgotten(&self, ticket: &Ticket) -> Vec<Finished> {
        let mut state = self.state();
        let forget = |progress: &mut Progress| progress.ended = Some(Ended::Forgotten);
        if let Some(way) = state.others.remove(ticket) {
            way.send_modify(forget);
        }
        let Some(tracked) = state.transactions.get_mut(&ticket.transaction) else { return Vec::new() };
        tracked.row.outcomes.retain(|at| at.destination != ticket.destination);
        if let Some(way) = tracked.ways.remove(&ticket.destination) {
            way.send_modify(forget);
        }
        if tracked.row.decided() {
            tracked._place = None;
        }
        let row = tracked.row.clone();
        state.forget_last(&row, &ticket.destination);
        let finished = state.finish(&row, &ticket.destination);
        state.settle(row);
        drop(state);
        self.changed.notify_one();
        finished
    }

    /// The payload tag that receipts must name it by; `None` for tickets of other processes.
    pub fn payload_tag(&self, transaction: TransactionId) -> Option<PayloadTag> {
        self.state().transactions.get(&transaction).map(|tracked| tracked.row.payload_tag)
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

    /// The transactions of `old` were sealed anew and travel in another parcel now, which no broker has yet: what was
    /// accepted is submitted again. Gives what needs no publishing any more; `None` when all had their fates in the meantime,
    /// and the new parcel is given up.
    pub fn replace(&self, old: ParcelId, row: ParcelRow, transactions: Vec<TransactionRow>) -> Option<Vec<Finished>> {
        let mut state = self.state();
        let state = &mut *state;
        let replaced = state.parcels.remove(&old).is_some();
        state.change.forget_parcels.push(if replaced { old } else { row.parcel });
        let ids = transactions.iter().map(|row| row.id).collect();
        for new in transactions {
            let Some(tracked) = state.transactions.get_mut(&new.id) else {
                // Forgotten already, and written once more with the new parcel.
                state.change.forget_transactions.push(new.id);
                continue;
            };
            if replaced {
                (tracked.row.parcel, tracked.row.index) = (new.parcel, new.index);
                tracked.row.wrapped_key = new.wrapped_key;
                for at in &mut tracked.row.outcomes {
                    if at.outcome == Outcome::Accepted {
                        (at.outcome, at.since) = (Outcome::Submitted, self.clock.now());
                    }
                }
                for (destination, way) in &tracked.ways {
                    way.send_modify(|progress| {
                        progress.parcel = Some(new.parcel);
                        if progress.outcome == Outcome::Accepted {
                            progress.outcome = Outcome::Submitted;
                            progress.times.accepted = None;
                            progress.withheld = state.withheld.get(destination).cloned().unwrap_or_default();
                        }
                    });
                }
            }
            let row = tracked.row.clone();
            state.change_row(row);
        }
        let finished = row.destinations.iter().map(|name| (old, name.clone())).collect();
        if replaced {
            let parcel = TrackedParcel { row: Some(row.clone()), transactions: ids, ..TrackedParcel::default() };
            state.parcels.insert(row.parcel, parcel);
        }
        self.changed.notify_one();
        replaced.then_some(finished)
    }

    /// A publisher says that a stripe is accepted.
    pub fn stripe_accepted(&self, destination: &DestinationName, stripe: StripeId) {
        let mut state = self.state();
        let Some(parcel) = state.parcels.get_mut(&stripe.parcel) else { return };
        parcel.accepted.entry(destination.clone()).or_default().insert(stripe.index);
        self.check_accepted(&mut state, stripe.parcel, destination);
    }

    fn check_accepted(&self, state: &mut State, id: ParcelId, destination: &DestinationName) {
        let Some(parcel) = state.parcels.get(&id) else { return };
        let Some(row) = &parcel.row else { return };
        if parcel.accepted.get(destination).map_or(0, BTreeSet::len) < row.stripes as usize {
            return;
        }
        let now = self.clock.monotonic();
        let wall = self.clock.now();
        let _in = parcel_span("publish", id).entered();
        for id in parcel.transactions.clone() {
            let Some(tracked) = state.transactions.get_mut(&id) else { continue };
            let Some(at) = tracked.row.outcomes.iter_mut().find(|at| at.destination == *destination) else { continue };
            if at.outcome != Outcome::Submitted {
                continue;
            }
            (at.outcome, at.since) = (Outcome::Accepted, wall);
            let took = tracked.started.map(|started| now.saturating_sub(started));
            tracing::debug!(transaction = %id, %destination, "the brokers have it");
            self.reached("accepted", took);
            if let Some(way) = tracked.ways.get(destination) {
                way.send_modify(|progress| {
                    progress.outcome = Outcome::Accepted;
                    progress.times.accepted = took;
                });
            }
            let row = tracked.row.clone();
            state.change_row(row);
        }
        self.changed.notify_one();
    }

    fn reached(&self, stage: &'static str, took: Option<Duration>) {
        self.meter.count_as(names::CLIENT_TRANSACTIONS, "stage", stage);
        if let Some(took) = took {
            self.meter.with("stage", stage).took(names::CLIENT_STAGE_SECONDS, took);
        }
    }

    /// A publisher says that *accepted* is withheld at a destination for want of these domains, or no longer.
    pub fn withheld(&self, destination: &DestinationName, names: Vec<Arc<str>>) {
        let names: Arc<[Arc<str>]> = names.into();
        let mut state = self.state();
        state.withheld.insert(destination.clone(), names.clone());
        for tracked in state.transactions.values() {
            if let Some(way) = tracked.ways.get(destination) {
                way.send_if_modified(|progress| {
                    let news = progress.outcome == Outcome::Submitted && progress.withheld != names;
                    if news {
                        progress.withheld = names.clone();
                    }
                    news
                });
            }
        }
    }

    /// A fate was verified. Gives what needs no publishing any more. A later word about the same ticket can only make it
    /// complete.
    pub fn decided(&self, receipt: &Receipt, complete: bool) -> Vec<Finished> {
        let mut state = self.state();
        let outcome = outcome_of(receipt, complete);
        let destination = &receipt.ticket.destination;
        // Somebody may have attached before it was submitted here.
        if let Some(way) = state.others.get(&receipt.ticket) {
            way.send_modify(|progress| {
                progress.outcome = outcome;
                progress.receipt = Some(receipt.clone());
            });
        }
        let Some(tracked) = state.transactions.get_mut(&receipt.ticket.transaction) else { return Vec::new() };
        let Some(at) = tracked.row.outcomes.iter_mut().find(|at| at.destination == *destination) else {
            return Vec::new();
        };
        if at.outcome.done() {
            return Vec::new();
        }
        let first_word = !at.outcome.decided();
        (at.outcome, at.since, at.first) = (outcome, self.clock.now(), receipt.first);
        at.signers.clone_from(&receipt.signers);
        (at.voters, at.directory_version) = (receipt.voters as u16, receipt.directory_version);
        let took = tracked.started.map(|started| self.clock.monotonic().saturating_sub(started));
        if first_word {
            self.reached(receipt_stage(outcome), took);
        }
        if matches!(outcome, Outcome::Complete(_)) {
            self.reached("complete", took);
        }
        if let Some(way) = tracked.ways.get(destination) {
            way.send_modify(|progress| {
                progress.outcome = outcome;
                progress.receipt = Some(receipt.clone());
                progress.withheld = Arc::new([]);
                let committed = matches!(outcome, Outcome::Committed(_) | Outcome::Complete(_));
                if committed && progress.times.committed.is_none() {
                    progress.times.committed = took;
                    progress.times.accepted = progress.times.accepted.or(took);
                }
                if matches!(outcome, Outcome::Complete(_)) {
                    progress.times.complete = took;
                }
            });
        }
        if tracked.row.decided() {
            tracked._place = None;
        }
        let row = tracked.row.clone();
        state.follow_on(&row, destination, outcome);
        let finished = state.finish(&row, destination);
        state.settle(row);
        drop(state);
        self.changed.notify_one();
        finished
    }

    /// Forgets what is committed everywhere and has waited long enough for *complete*, and tickets nobody waits for.
    pub fn sweep(&self) {
        let now = self.clock.now();
        let mut state = self.state();
        let old = |tracked: &Tracked| {
            tracked.row.decided()
                && tracked.row.outcomes.iter().all(|at| at.outcome.done() || now.since(at.since) > WAIT_FOR_COMPLETE)
        };
        let ids: Vec<TransactionId> =
            state.transactions.iter().filter(|(_, tracked)| old(tracked)).map(|(id, _)| *id).collect();
        let ids: Vec<TransactionId> = ids.into_iter().filter(|id| !state.travels(*id)).collect();
        for id in &ids {
            if let Some(tracked) = state.transactions.get(id) {
                end(tracked.ways.values(), Ended::Incomplete);
            }
            state.forget(*id);
        }
        state.others.retain(|_, way| way.receiver_count() > 0);
        if !ids.is_empty() {
            self.changed.notify_one();
        }
        let (bytes, _) = self.outbox.bytes();
        self.meter.set(names::CLIENT_OUTBOX_TRANSACTIONS, state.transactions.len() as f64);
        self.meter.set(names::CLIENT_OUTBOX_BYTES, bytes as f64);
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

fn end<'a>(ways: impl Iterator<Item = &'a watch::Sender<Progress>>, why: Ended) {
    ways.for_each(|way| way.send_modify(|progress| progress.ended = progress.ended.or(Some(why))));
}

fn receipt_stage(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Rejected(_) => "rejected",
        Outcome::Expired => "expired",
        _ => "committed",
    }
}
