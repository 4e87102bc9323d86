//! What is tracked, and how its parts depend on each other. Must not tell handles or count time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::super::handle::{Progress, Withheld};
use super::super::window::WindowPlace;
use super::Finished;
use super::order::Order;
use crate::core::id::{DestinationName, ParcelId, Ticket, TransactionId};
use crate::store::outbox::{Change, ParcelRow, TransactionRow};

pub(super) struct Tracked {
    pub(super) row: TransactionRow,
    /// When it was submitted, in monotonic time; `None` when a former run did.
    pub(super) started: Option<Duration>,
    pub(super) ways: BTreeMap<DestinationName, watch::Sender<Progress>>,
    /// Given back with the fate.
    pub(super) _place: Option<WindowPlace>,
}

#[derive(Default)]
pub(super) struct TrackedParcel {
    /// `None` while it is being sealed.
    pub(super) row: Option<ParcelRow>,
    pub(super) transactions: Vec<TransactionId>,
    pub(super) accepted: BTreeMap<DestinationName, BTreeSet<u32>>,
    /// Why the brokers refuse it, where they do.
    pub(super) refused: BTreeMap<DestinationName, Arc<str>>,
    /// How many of `transactions`, from the first, are known to have their fates: none loses it again.
    pub(super) decided_first: BTreeMap<DestinationName, usize>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) transactions: BTreeMap<TransactionId, Tracked>,
    pub(super) parcels: BTreeMap<ParcelId, TrackedParcel>,
    /// Whom the next transaction of a key follows: some of those above, each as long as it stands there.
    pub(super) order: Order,
    /// Submissions so far, those of former runs that are still here among them.
    pub(super) numbers: u64,
    /// Tickets of other processes that somebody here waits for.
    pub(super) others: BTreeMap<Ticket, watch::Sender<Progress>>,
    pub(super) withheld: BTreeMap<DestinationName, Withheld>,
    pub(super) changed_rows: BTreeMap<TransactionId, TransactionRow>,
    pub(super) change: Change,
    /// The client is closed.
    pub(super) closed: bool,
}

impl State {
    /// What is tracked under exactly this ticket.
    pub(super) fn tracked(&self, ticket: &Ticket) -> Option<&Tracked> {
        self.transactions.get(&ticket.transaction).filter(|tracked| tracked.row.deadline == ticket.deadline)
    }

    pub(super) fn undecided_at(&self, parcel: ParcelId, destinations: &[DestinationName]) -> Vec<DestinationName> {
        let Some(parcel) = self.parcels.get(&parcel) else { return Vec::new() };
        let undecided = |destination: &&DestinationName| {
            parcel.transactions.iter().filter_map(|id| self.transactions.get(id)).any(|tracked| {
                tracked.row.outcomes.iter().any(|at| at.destination == **destination && !at.outcome.decided())
            })
        };
        destinations.iter().filter(undecided).cloned().collect()
    }

    /// Whether anything of a parcel has no fate at this destination. In all calls together each of its transactions is passed
    /// once.
    fn is_undecided_at(&mut self, parcel: ParcelId, destination: &DestinationName) -> bool {
        let Some(parcel) = self.parcels.get_mut(&parcel) else { return false };
        if !parcel.decided_first.contains_key(destination) {
            parcel.decided_first.insert(destination.clone(), 0);
        }
        let Some(first) = parcel.decided_first.get_mut(destination) else { return false };
        let undecided = |id: &TransactionId| {
            self.transactions.get(id).is_some_and(|tracked| {
                tracked.row.outcomes.iter().any(|at| at.destination == *destination && !at.outcome.decided())
            })
        };
        let rest = parcel.transactions.get(*first..).unwrap_or_default();
        *first += rest.iter().take_while(|id| !undecided(id)).count();
        *first < parcel.transactions.len()
    }

    /// Whether a parcel needs no publishing at this destination any more; its bytes go when that is so everywhere.
    pub(super) fn finish(&mut self, row: &TransactionRow, destination: &DestinationName) -> Vec<Finished> {
        if self.is_undecided_at(row.parcel, destination) {
            return Vec::new();
        }
        let Some(parcel) = self.parcels.get(&row.parcel) else { return Vec::new() };
        let destinations = parcel.row.as_ref().map(|row| row.destinations.clone()).unwrap_or_default();
        if !destinations.iter().any(|destination| self.is_undecided_at(row.parcel, destination))
            && let Some(parcel) = self.parcels.remove(&row.parcel)
        {
            self.change.forget_parcels.push(row.parcel);
            let done = |id: &TransactionId| self.transactions.get(id).is_some_and(|tracked| tracked.row.done());
            let done: Vec<TransactionId> = parcel.transactions.into_iter().filter(done).collect();
            done.into_iter().for_each(|id| self.forget(id));
        }
        vec![(row.parcel, destination.clone())]
    }

    /// Whether its parcel is still held: with it goes whatever sealing anew would need.
    pub(super) fn travels(&self, id: TransactionId) -> bool {
        self.transactions.get(&id).is_some_and(|tracked| self.parcels.contains_key(&tracked.row.parcel))
    }

    /// Remembers a changed row, unless nothing more can become of it and nothing needs it.
    pub(super) fn settle(&mut self, row: TransactionRow) {
        if row.done() && !self.travels(row.id) {
            self.forget(row.id);
        } else {
            self.change_row(row);
        }
    }

    pub(super) fn change_row(&mut self, row: TransactionRow) {
        self.changed_rows.insert(row.id, row);
    }

    pub(super) fn forget(&mut self, id: TransactionId) {
        if let Some(Tracked { row, .. }) = self.transactions.remove(&id) {
            row.outcomes.iter().for_each(|at| self.order.leave(&row, &at.destination));
        }
        self.changed_rows.remove(&id);
        self.change.forget_transactions.push(id);
    }
}
