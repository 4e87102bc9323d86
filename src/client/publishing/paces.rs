//! When a parcel is sent to a destination once more because nobody has said anything about it for long, and how often nodes that
//! miss some of it are followed.
//!
//! Owns the times of it; what a node says or a fate ends comes from outside. Must not send.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::core::id::{DestinationName, ParcelId};

/// Without a word from the nodes a parcel is sent again after this long, then after twice as long, and so on.
const FIRST_PATIENCE: Duration = Duration::from_secs(30);

/// The longest wait between two sendings of the same parcel.
const LONGEST_PATIENCE: Duration = Duration::from_secs(600);

/// *Missing* notices about a parcel are followed at most this often.
const MISSING_EVERY: Duration = Duration::from_secs(5);

/// Of one parcel at one destination.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// When it is sent again.
    due: Duration,
    /// How long it waits after that.
    patience: Duration,
    /// When nodes that miss some of it were last followed.
    missing_at: Option<Duration>,
}

/// Of all parcels without a fate.
#[derive(Debug, Default)]
pub(super) struct Paces(BTreeMap<(ParcelId, DestinationName), Pace>);

impl Paces {
    /// Begins anew with a parcel that is sent now.
    pub(super) fn begin(&mut self, parcel: ParcelId, destination: DestinationName, now: Duration) {
        let pace = Pace { due: now + FIRST_PATIENCE, patience: FIRST_PATIENCE, missing_at: None };
        self.0.insert((parcel, destination), pace);
    }

    /// Whether nodes that miss some of a parcel are followed now. If so it counts as sent, and is not due for a while.
    pub(super) fn follows_missing(&mut self, parcel: ParcelId, destination: &DestinationName, now: Duration) -> bool {
        let Some(pace) = self.0.get_mut(&(parcel, destination.clone())) else { return false };
        if pace.missing_at.is_some_and(|at| now.saturating_sub(at) < MISSING_EVERY) {
            return false;
        }
        pace.missing_at = Some(now);
        pace.due = now + pace.patience;
        true
    }

    /// A parcel needs no sending any more.
    pub(super) fn end(&mut self, parcel: ParcelId, destination: &DestinationName) {
        self.0.remove(&(parcel, destination.clone()));
    }

    /// What is to be sent again now; each then waits twice as long as before.
    pub(super) fn take_due(&mut self, now: Duration) -> Vec<(ParcelId, DestinationName)> {
        let mut due = Vec::new();
        for (key, pace) in self.0.iter_mut().filter(|(_, pace)| pace.due <= now) {
            pace.patience = (pace.patience * 2).min(LONGEST_PATIENCE);
            pace.due = now + pace.patience;
            due.push(key.clone());
        }
        due
    }
}
