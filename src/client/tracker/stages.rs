//! What moves a transaction on: the brokers have a stripe, a majority signed a fate or has forgotten it, its parcel was sealed
//! anew, waiting has lasted long enough. Tells handles at once and leaves to the outbox what it must remember.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::super::handle::{Ended, Progress, Receipt, Withheld};
use super::state::{State, Tracked, TrackedParcel};
use super::{Finished, Tracker};
use crate::core::id::{DestinationName, Fate, ParcelId, Ticket, TransactionId};
use crate::store::outbox::{Outcome, ParcelRow, TransactionRow};
use crate::telemetry::logs::parcel_span;
use crate::telemetry::names;
use crate::transport::publisher::StripeId;

/// How long a committed transaction is kept for the sake of *complete* before the outbox forgets it.
const WAIT_FOR_COMPLETE: Duration = Duration::from_secs(600);

impl Tracker {
    /// A publisher says that a stripe is accepted.
    pub fn stripe_accepted(&self, destination: &DestinationName, stripe: StripeId) {
        let mut state = self.state();
        let Some(parcel) = state.parcels.get_mut(&stripe.parcel) else { return };
        parcel.accepted.entry(destination.clone()).or_default().insert(stripe.index);
        if parcel.refused.remove(destination).is_some() {
            self.say_refused(&state, stripe.parcel, destination, None);
        }
        self.check_accepted(&mut state, stripe.parcel, destination);
    }

    pub(super) fn check_accepted(&self, state: &mut State, id: ParcelId, destination: &DestinationName) {
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
            self.reached("accepted", took, Fate::Committed);
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

    /// Counts a stage; a rejection with its reason.
    pub(super) fn reached(&self, stage: &'static str, took: Option<Duration>, fate: Fate) {
        let mut kept = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, seconds) = kept.entry(stage).or_default();
        let meter = || self.meter.with("stage", stage);
        match fate {
            Fate::Rejected(reason) => meter().count_as(names::CLIENT_TRANSACTIONS, "reason", reason.word()),
            _ => count.get_or_insert_with(|| meter().counter(names::CLIENT_TRANSACTIONS)).increment(1),
        }
        if let Some(took) = took {
            let seconds = seconds.get_or_insert_with(|| meter().histogram(names::CLIENT_STAGE_SECONDS));
            seconds.record(took.as_secs_f64());
        }
    }

    /// A publisher says that the brokers refuse a stripe until somebody mends something. Whether that is news.
    pub fn stripe_refused(&self, destination: &DestinationName, stripe: StripeId, cause: &str) -> bool {
        let mut state = self.state();
        let Some(parcel) = state.parcels.get_mut(&stripe.parcel) else { return false };
        if parcel.refused.get(destination).is_some_and(|known| **known == *cause) {
            return false;
        }
        let cause: Arc<str> = cause.into();
        parcel.refused.insert(destination.clone(), cause.clone());
        self.say_refused(&state, stripe.parcel, destination, Some(&cause));
        true
    }

    fn say_refused(&self, state: &State, parcel: ParcelId, destination: &DestinationName, cause: Option<&Arc<str>>) {
        let ids = state.parcels.get(&parcel).map(|parcel| parcel.transactions.as_slice()).unwrap_or_default();
        for way in ids.iter().filter_map(|id| state.transactions.get(id)?.ways.get(destination)) {
            way.send_if_modified(|progress| {
                let news = progress.outcome == Outcome::Submitted && progress.refused.as_ref() != cause;
                if news {
                    progress.refused = cause.cloned();
                }
                news
            });
        }
    }

    /// A publisher says that *accepted* is withheld at a destination for want of domains, or no longer.
    pub fn withheld(&self, destination: &DestinationName, withheld: &Withheld) {
        let mut state = self.state();
        state.withheld.insert(destination.clone(), withheld.clone());
        for tracked in state.transactions.values() {
            if let Some(way) = tracked.ways.get(destination) {
                way.send_if_modified(|progress| {
                    let news = progress.outcome == Outcome::Submitted && progress.withheld != *withheld;
                    if news {
                        progress.withheld = withheld.clone();
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
        // Its id may have been submitted again since this was counted.
        if tracked.row.ticket(destination) != receipt.ticket {
            return Vec::new();
        }
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
            self.reached(receipt_stage(outcome), took, receipt.fate);
        }
        if matches!(outcome, Outcome::Complete(_)) {
            self.reached("complete", took, receipt.fate);
        }
        // Before anybody hears of it: who then submits the next one finds the place.
        if tracked.row.decided() {
            tracked._place = None;
        }
        if let Some(way) = tracked.ways.get(destination) {
            way.send_modify(|progress| {
                progress.outcome = outcome;
                progress.receipt = Some(receipt.clone());
                progress.withheld = Withheld::default();
                progress.refused = None;
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
        let row = tracked.row.clone();
        state.order.stands(&row, destination, outcome);
        let finished = state.finish(&row, destination);
        state.settle(row);
        drop(state);
        self.changed.notify_one();
        finished
    }

    /// A majority of the nodes has forgotten what became of this ticket, and so does the outbox.
    pub fn forgotten(&self, ticket: &Ticket) -> Vec<Finished> {
        let mut state = self.state();
        let forget = |progress: &mut Progress| progress.ended = Some(Ended::Forgotten);
        if let Some(way) = state.others.remove(ticket) {
            way.send_modify(forget);
        }
        let Some(tracked) = state.transactions.get_mut(&ticket.transaction) else { return Vec::new() };
        if tracked.row.ticket(&ticket.destination) != *ticket {
            return Vec::new();
        }
        self.meter.count_as(names::CLIENT_TRANSACTIONS, "stage", "forgotten");
        tracked.row.outcomes.retain(|at| at.destination != ticket.destination);
        if tracked.row.decided() {
            tracked._place = None;
        }
        if let Some(way) = tracked.ways.remove(&ticket.destination) {
            way.send_modify(forget);
        }
        let row = tracked.row.clone();
        state.order.leave(&row, &ticket.destination);
        let finished = state.finish(&row, &ticket.destination);
        state.settle(row);
        drop(state);
        self.changed.notify_one();
        finished
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
                            progress.refused = None;
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
}

pub(super) fn end<'a>(ways: impl Iterator<Item = &'a watch::Sender<Progress>>, why: Ended) {
    ways.for_each(|way| way.send_modify(|progress| progress.ended = progress.ended.or(Some(why))));
}

fn receipt_stage(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Rejected(_) => "rejected",
        Outcome::Expired => "expired",
        _ => "committed",
    }
}

fn outcome_of(receipt: &Receipt, complete: bool) -> Outcome {
    match (receipt.fate, receipt.position) {
        (Fate::Rejected(reason), _) => Outcome::Rejected(reason),
        (Fate::Expired, _) => Outcome::Expired,
        (Fate::Committed, position) if complete => Outcome::Complete(position.unwrap_or_default()),
        (Fate::Committed, position) => Outcome::Committed(position.unwrap_or_default()),
    }
}
