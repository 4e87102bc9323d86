//! Which transactions the parcels brought that were decided in this run, the latest of them: a parcel that is sent again is
//! answered from here, so many a second.
//!
//! Owns that memory alone. Must not say anything.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::core::gather::ParcelKey;
use crate::core::id::TransactionId;

/// Transactions that are remembered; the oldest parcels go first. Senders that hear nothing also ask, by transaction.
const TRANSACTIONS: usize = 32_768;
/// Transactions after which nothing more is said again in the same second; one parcel is always said whole.
const A_SECOND: usize = 4096;

/// Parcels that were decided lately.
#[derive(Debug, Default)]
pub(super) struct Recent {
    parcels: BTreeMap<ParcelKey, Vec<TransactionId>>,
    order: VecDeque<ParcelKey>,
    transactions: usize,
    /// The second in which so many were said again.
    said: (u64, usize),
}

impl Recent {
    /// A transaction that this parcel brought has its fate.
    pub fn note(&mut self, parcel: ParcelKey, transaction: TransactionId) {
        let of = self.parcels.entry(parcel).or_default();
        if of.is_empty() {
            self.order.push_back(parcel);
        }
        of.push(transaction);
        self.transactions += 1;
        while self.transactions > TRANSACTIONS
            && let Some(first) = self.order.pop_front()
        {
            self.transactions -= self.parcels.remove(&first).map_or(0, |gone| gone.len());
        }
    }

    /// What this parcel brought, to be said again `now` (monotonic); nothing when too much was in this second.
    pub fn again(&mut self, parcel: &ParcelKey, now: Duration) -> &[TransactionId] {
        if self.said.0 != now.as_secs() {
            self.said = (now.as_secs(), 0);
        }
        match self.parcels.get(parcel) {
            Some(of) if self.said.1 < A_SECOND => {
                self.said.1 += of.len();
                of
            }
            _ => &[],
        }
    }
}
