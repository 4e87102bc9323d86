//! Whom the next transaction of an ordering key follows (R9): the latest one that has no fate, wherever in the order of
//! submissions those stand that have one. Must not know how fates come.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::id::{DestinationName, Release, TransactionId};
use crate::store::outbox::{Outcome, TransactionRow};

/// In the order of submissions; the id tells rows apart that an earlier version wrote without their place.
type InOrder = BTreeSet<(u64, TransactionId)>;

#[derive(Default)]
struct OfKey {
    undecided: InOrder,
    /// Committed and not complete.
    incomplete: InOrder,
}

/// Transactions with an ordering key about which more is to be known, by destination and key: each for as long as it is
/// tracked, at most.
#[derive(Default)]
pub(super) struct Order(BTreeMap<DestinationName, BTreeMap<Vec<u8>, OfKey>>);

impl Order {
    /// A transaction stands at this destination as `outcome` says.
    pub(super) fn stands(&mut self, row: &TransactionRow, destination: &DestinationName, outcome: Outcome) {
        let Some(key) = &row.ordering_key else { return };
        if outcome.done() {
            return self.leave(row, destination);
        }
        if !self.0.contains_key(destination) {
            self.0.insert(destination.clone(), BTreeMap::new());
        }
        let Some(keys) = self.0.get_mut(destination) else { return };
        let of_key = keys.entry(key.clone()).or_default();
        let (enters, leaves) = match outcome.decided() {
            true => (&mut of_key.incomplete, &mut of_key.undecided),
            false => (&mut of_key.undecided, &mut of_key.incomplete),
        };
        leaves.remove(&(row.number, row.id));
        enters.insert((row.number, row.id));
    }

    /// Nobody needs to follow it at this destination any more.
    pub(super) fn leave(&mut self, row: &TransactionRow, destination: &DestinationName) {
        let Some(key) = &row.ordering_key else { return };
        let Some(keys) = self.0.get_mut(destination) else { return };
        let Some(of_key) = keys.get_mut(key) else { return };
        of_key.undecided.remove(&(row.number, row.id));
        of_key.incomplete.remove(&(row.number, row.id));
        if of_key.undecided.is_empty() && of_key.incomplete.is_empty() {
            keys.remove(key);
        }
    }

    /// Whom the next one follows. While something is undecided, that is committed later than all that is committed now, so
    /// that it alone is waited for where *complete* is asked for too.
    pub(super) fn latest(&self, destination: &DestinationName, key: &[u8], release: Release) -> Option<TransactionId> {
        let of_key = self.0.get(destination)?.get(key)?;
        let incomplete = of_key.incomplete.last().filter(|_| release == Release::Complete);
        of_key.undecided.last().or(incomplete).map(|(_, id)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::{ParcelId, PayloadTag, Position, Time};

    fn row(number: u64, id: u8) -> TransactionRow {
        TransactionRow {
            id: TransactionId::from_parts(Time(1_700_000_000_000), [id; 10]),
            deadline: Time(5),
            submitted: Time(1),
            number,
            parcel: ParcelId::from_parts(Time(1_700_000_000_000), [9; 10]),
            index: 0,
            payload_bytes: 1,
            payload_tag: PayloadTag([3; 32]),
            wrapped_key: Vec::new(),
            ordering_key: Some(b"k".to_vec()),
            outcomes: Vec::new(),
        }
    }

    #[test]
    fn r09_the_latest_that_has_no_fate_is_followed_and_then_the_latest_that_is_not_complete() {
        let orders: DestinationName = "orders".parse().expect("a name");
        // Ids may say another order than the submissions.
        let rows = [row(1, 7), row(2, 8), row(3, 1), row(4, 2)];
        let mut order = Order::default();
        for row in &rows {
            order.stands(row, &orders, Outcome::Submitted);
        }
        let follows = |order: &Order, release| order.latest(&orders, b"k", release);
        let (early, complete) = (Release::Committed, Release::Complete);
        assert_eq!(follows(&order, early), Some(rows[3].id));
        order.stands(&rows[3], &orders, Outcome::Expired);
        order.stands(&rows[0], &orders, Outcome::Accepted);
        assert_eq!(follows(&order, early), Some(rows[2].id));
        order.stands(&rows[2], &orders, Outcome::Committed(Position::default()));
        assert_eq!([follows(&order, early), follows(&order, complete)], [Some(rows[1].id); 2]);
        order.leave(&rows[1], &orders);
        order.leave(&rows[0], &orders);
        assert_eq!([follows(&order, early), follows(&order, complete)], [None, Some(rows[2].id)]);
        assert_eq!(order.latest(&"bills".parse().expect("a name"), b"k", complete), None);
        order.stands(&rows[2], &orders, Outcome::Complete(Position::default()));
        assert_eq!(follows(&order, complete), None);
        assert!(order.0[&orders].is_empty(), "nothing is kept of a key with nothing open");
    }
}
