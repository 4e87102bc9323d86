//! Seals anew what a majority refused (R22): the same transactions, with the same ids, in another parcel. Each transaction
//! keeps its one fate whichever parcel brings it (R6). Must not decide that something is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::counting::Refused;
use super::error::ClientError;
use super::publishing::Publishing;
use super::sealing::Sealer;
use super::tracker::Tracker;
use crate::core::id::{DestinationName, ParcelId, TransactionId};
use crate::seams::Seams;
use crate::store::outbox::{Outbox, Outcome};

/// Before a transaction is sealed a third time, or again after sealing failed: at first, and at most.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// What sealing anew needs. Cheap to clone.
#[derive(Clone)]
pub struct Renewal {
    /// Seals.
    pub sealer: Arc<Sealer>,
    /// Tracks.
    pub tracker: Arc<Tracker>,
    /// Keeps.
    pub outbox: Outbox,
    /// Publishes.
    pub publishing: Publishing,
    /// The machine.
    pub seams: Seams,
    /// Ends it.
    pub closing: CancellationToken,
}

/// What is under way, and what was tried.
#[derive(Default)]
struct Tried {
    /// Parcels that are being sealed anew: for all their destinations at once.
    under_way: BTreeSet<ParcelId>,
    /// How often each undecided transaction was sealed anew, or could not be.
    attempts: BTreeMap<TransactionId, u32>,
}

fn lock(tried: &Mutex<Tried>) -> MutexGuard<'_, Tried> {
    tried.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Renewal {
    /// Runs until the client is closed.
    pub async fn run(self, mut refused: mpsc::UnboundedReceiver<Refused>, tasks: TaskTracker) {
        let tried: Arc<Mutex<Tried>> = Arc::default();
        loop {
            let next = tokio::select! {
                next = refused.recv() => next,
                () = self.closing.cancelled() => None,
            };
            let Some((parcel, _)) = next else { return };
            if !lock(&tried).under_way.insert(parcel) {
                continue;
            }
            let (renewal, tried) = (self.clone(), tried.clone());
            tasks.spawn(async move {
                let closing = renewal.closing.clone();
                tokio::select! {
                    () = renewal.renew(parcel, &tried) => {}
                    () = closing.cancelled() => {}
                }
                lock(&tried).under_way.remove(&parcel);
            });
        }
    }

    /// Until the parcel is replaced or needs no replacing any more: what hinders now (a full outbox, a full disk, a directory
    /// that has ended) can pass, and nobody says the refusal again.
    async fn renew(&self, parcel: ParcelId, tried: &Mutex<Tried>) {
        while let Some((_, rows)) = self.tracker.parcel(parcel) {
            let attempt = {
                let mut tried = lock(tried);
                let attempt = rows.iter().filter_map(|row| tried.attempts.get(&row.id)).max().copied().unwrap_or(0);
                tried.attempts.retain(|id, _| self.tracker.parcel_of(*id).is_some());
                tried.attempts.extend(rows.iter().map(|row| (row.id, attempt + 1)));
                attempt
            };
            if attempt > 0 {
                let patience = PATIENCE.0.saturating_mul(1 << (attempt - 1).min(10)).min(PATIENCE.1);
                self.seams.clock.sleep(patience).await;
            }
            match self.once(parcel).await {
                Ok(()) => return,
                Err(error) if error.retryable() => {
                    tracing::warn!(%parcel, %error, "a refused parcel cannot be sealed anew yet");
                }
                Err(error) => tracing::error!(%parcel, %error, "a refused parcel cannot be sealed anew"),
            }
        }
    }

    async fn once(&self, parcel: ParcelId) -> Result<(), ClientError> {
        // Things may have changed in the meantime.
        let Some((row, rows)) = self.tracker.parcel(parcel) else { return Ok(()) };
        let (sealer, outbox) = (self.sealer.clone(), self.outbox.clone());
        let Ok(sealed) = self.seams.work.run(move || sealer.renew(&row, &rows, &outbox)).await else { return Ok(()) };
        let mut new = sealed?;
        // No broker has the new bytes yet, whatever became of the old ones.
        for at in new.transactions.iter_mut().flat_map(|row| &mut row.outcomes) {
            if at.outcome == Outcome::Accepted {
                at.outcome = Outcome::Submitted;
            }
        }
        let transactions = new.transactions.clone();
        for row in self.outbox.add(vec![new]).await? {
            let Some(finished) = self.tracker.replace(parcel, row.clone(), transactions.clone()) else {
                tracing::debug!(%parcel, "decided while it was sealed anew");
                continue;
            };
            tracing::info!(%parcel, anew = %row.parcel, "sealed anew what a majority refused");
            self.publishing.forget(&finished);
            self.publishing.send_kept(&row);
            // Where it has its fates, by now or for long, it is not wanted.
            let decided = |name: &&DestinationName| self.tracker.undecided_parcel(row.parcel, name).is_none();
            let decided = row.destinations.iter().filter(decided).map(|name| (row.parcel, name.clone()));
            self.publishing.forget(&decided.collect::<Vec<_>>());
        }
        Ok(())
    }
}
