//! The publishing of a parcel that is still being sealed: its stripes go to the brokers as they become durable, and from the
//! outbox where those are slower than the sealing.
//!
//! Owns what is known of a parcel that grows. Must not read the outbox, nor seal.

use std::time::Duration;

use tokio::sync::watch;

use super::jobs::{Job, SoFar, Source, Why};
use super::{Publishing, lock, records};
use crate::core::id::DestinationName;
use crate::core::split::stripe::Stripe;
use crate::store::outbox::ParcelRow;
use crate::telemetry::logs;

/// A fresh stripe waits this long for credit; after that the outbox takes over.
const CREDIT_PATIENCE: Duration = Duration::from_secs(1);

impl Publishing {
    /// Starts the publishing of a parcel that is still being sealed.
    pub fn feed(&self, row: ParcelRow) -> Feed {
        let lanes = row.destinations.iter().map(|name| (name.clone(), false)).collect();
        let parcel = row.parcel;
        let (so_far, seen) = watch::channel(SoFar { row, ended: false });
        lock(&self.shared.growing).insert(parcel, seen);
        Feed { publishing: self.clone(), lanes, so_far }
    }
}

/// The publishing of a parcel that is still being sealed.
pub struct Feed {
    publishing: Publishing,
    /// Destinations, and whether the outbox has taken over there.
    lanes: Vec<(DestinationName, bool)>,
    so_far: watch::Sender<SoFar>,
}

impl Feed {
    /// Publishes a stripe that is durable in the outbox, whose row is now `row`. Waits a moment for credit, so that sealing
    /// runs no faster than the brokers; where there is none for long, the stripe is sent from the outbox later.
    pub async fn stripe(&mut self, row: ParcelRow, stripe: &Stripe) {
        let index = stripe.header.stripe;
        self.so_far.send_modify(|so_far| so_far.row = row);
        for (destination, behind) in &mut self.lanes {
            let lane = self.publishing.lane(destination);
            if *behind {
                lane.wake.notify_one();
                continue;
            }
            let sent = tokio::select! {
                biased;
                sent = lane.publisher.publish(records(stripe), false) => sent.is_ok(),
                () = self.publishing.shared.clock.sleep(CREDIT_PATIENCE) => false,
            };
            if !sent {
                *behind = true;
                let source = Source::Growing(self.so_far.subscribe());
                self.publishing.push_job(destination, Job::new(source, index..u32::MAX, Why::Behind));
            }
        }
    }

    /// Its sealing has ended well: it is undecided from now on.
    pub fn finish(self, row: &ParcelRow) {
        let span = logs::parcel_span("publish", row.parcel);
        for (destination, _) in &self.lanes {
            span.in_scope(|| tracing::debug!(%destination, stripes = row.stripes, "handed to the publisher"));
            self.publishing.pace(row.parcel, destination);
        }
        self.so_far.send_modify(|so_far| so_far.row = row.clone());
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.so_far.send_modify(|so_far| so_far.ended = true);
        let parcel = self.so_far.borrow().row.parcel;
        lock(&self.publishing.shared.growing).remove(&parcel);
        for (destination, behind) in &self.lanes {
            if *behind {
                self.publishing.lane(destination).wake.notify_one();
            }
        }
    }
}
