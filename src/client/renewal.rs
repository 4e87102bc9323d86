//! Seals anew what a majority refused (R22): the same transactions, with the same ids, in another parcel. Each transaction
//! keeps its one fate whichever parcel brings it (R6). Must not decide that something is refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::counting::Refused;
use super::publishing::Publishing;
use super::sealing::Sealer;
use super::tracker::Tracker;
use crate::core::id::{ParcelId, TransactionId};
use crate::seams::Seams;
use crate::store::outbox::Outbox;

/// Before a transaction is sealed a third time, and at most.
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

impl Renewal {
    /// Runs until the client is closed.
    pub async fn run(self, mut refused: mpsc::UnboundedReceiver<Refused>, tasks: TaskTracker) {
        let attempts: Arc<Mutex<BTreeMap<TransactionId, u32>>> = Arc::default();
        loop {
            let next = tokio::select! {
                next = refused.recv() => next,
                () = self.closing.cancelled() => None,
            };
            let Some((parcel, _)) = next else { return };
            let (renewal, attempts) = (self.clone(), attempts.clone());
            tasks.spawn(async move {
                let closing = renewal.closing.clone();
                tokio::select! {
                    () = renewal.renew(parcel, &attempts) => {}
                    () = closing.cancelled() => {}
                }
            });
        }
    }

    async fn renew(&self, parcel: ParcelId, attempts: &Mutex<BTreeMap<TransactionId, u32>>) {
        let Some((_, rows)) = self.tracker.parcel(parcel) else { return };
        let attempt = {
            let mut attempts = attempts.lock().unwrap_or_else(PoisonError::into_inner);
            let attempt = rows.iter().filter_map(|row| attempts.get(&row.id)).max().copied().unwrap_or(0);
            attempts.extend(rows.iter().map(|row| (row.id, attempt + 1)));
            attempt
        };
        if attempt > 0 {
            let patience = PATIENCE.0.saturating_mul(1 << (attempt - 1).min(10)).min(PATIENCE.1);
            self.seams.clock.sleep(patience).await;
        }
        // Things may have changed in the meantime.
        let Some((row, rows)) = self.tracker.parcel(parcel) else { return };
        let (sealer, outbox) = (self.sealer.clone(), self.outbox.clone());
        let sealed = self.seams.work.run(move || sealer.renew(&row, &rows, &outbox)).await;
        let new = match sealed {
            Ok(Ok(new)) => new,
            Ok(Err(error)) => {
                tracing::error!(%parcel, %error, "a refused parcel cannot be sealed anew");
                return;
            }
            Err(_) => return,
        };
        let transactions = new.transactions.clone();
        match self.outbox.add(vec![new]).await {
            Ok(added) => {
                for row in added {
                    tracing::info!(%parcel, anew = %row.parcel, "sealed anew what a majority refused");
                    let finished = self.tracker.replace(parcel, row.clone(), transactions.clone());
                    self.publishing.forget(&finished);
                    self.publishing.send_kept(&row);
                }
            }
            Err(error) => tracing::error!(%parcel, %error, "a refused parcel cannot be sealed anew"),
        }
    }
}
