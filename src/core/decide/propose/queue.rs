//! Staged parcels on the leader's table, and for each of their transactions what it waits for.
//!
//! Owns the indices that make a transaction ready when its predecessor is decided, held or past its deadline, without
//! looking at the others. Must not write entries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::core::decide::manifest::{Manifest, ManifestItem, Predecessor};
use crate::core::id::{Digest, Incarnation, NodeName, ParcelId, Position, Release, SenderName, Time, TransactionId};

/// What a quorum must agree on (R10).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct ParcelKey {
    pub(super) parcel: ParcelId,
    pub(super) digest: Digest,
    pub(super) manifest_digest: Digest,
}

/// One transaction of one parcel: the place of its item in the manifest.
pub(super) type ItemKey = (ParcelKey, usize);

/// What keeps a transaction single.
pub(super) type TransactionKey = (SenderName, TransactionId);

/// What a transaction waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// To be looked at.
    Fresh,
    /// Its predecessor has no fate.
    Waiting,
    /// Every voter must hold this position first (release on complete).
    Holding(Position),
    /// To be proposed.
    Ready,
    /// Proposed by this leader, and not applied.
    InFlight,
    /// It has a fate or is expired.
    Done,
}

#[derive(Debug)]
pub(super) struct Parcel {
    /// Counts arrivals: who came first is proposed first.
    pub(super) arrival: u64,
    pub(super) reporters: BTreeMap<NodeName, Incarnation>,
    /// Known from the first reporter that sent it until everything in it is decided.
    pub(super) manifest: Option<Arc<Manifest>>,
    states: Vec<State>,
    /// How many of `states` are not done.
    open: usize,
    /// Which items are ready.
    pub(super) ready: BTreeSet<usize>,
    /// Whether everything in it is decided. Kept while somebody still reports it, so that nothing is asked for twice.
    finished: bool,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) parcels: BTreeMap<ParcelKey, Parcel>,
    arrivals: u64,
    unfinished: usize,
    /// Parcels whose reporters or manifest changed: whether they have a quorum is to be looked at.
    pub(super) touched: BTreeSet<ParcelKey>,
    /// Items to be looked at.
    pub(super) fresh: BTreeSet<ItemKey>,
    /// Parcels with ready items, by arrival.
    pub(super) ready: BTreeSet<(u64, ParcelKey)>,
    /// Who waits for this predecessor's fate.
    waiting: BTreeSet<(TransactionKey, ItemKey)>,
    /// Who waits for this position to be held everywhere.
    holding: BTreeSet<(Position, ItemKey)>,
    /// When group time passes these deadlines (an item's own, its predecessor's), the item is to be looked at.
    deadlines: BTreeSet<(Time, ItemKey)>,
    /// All items of one transaction: several parcels may bring it.
    by_transaction: BTreeSet<(TransactionKey, ItemKey)>,
}

/// The items of a transaction.
fn items_of<'a>(
    all: &'a BTreeSet<(TransactionKey, ItemKey)>,
    transaction: &'a TransactionKey,
) -> impl Iterator<Item = ItemKey> + 'a {
    let zeros = Digest([0; 32]);
    let least = ParcelKey { parcel: ParcelId::from_parts(Time(0), [0; 10]), digest: zeros, manifest_digest: zeros };
    let from = (transaction.clone(), (least, 0));
    all.range(from..).take_while(move |(of, _)| of == transaction).map(|(_, item)| *item)
}

impl Queue {
    /// Whether anything reported has no fate.
    pub(super) fn undecided(&self) -> bool {
        self.unfinished > 0
    }

    /// A node reports a parcel. Gives whether its manifest is wanted.
    pub(super) fn add(&mut self, key: ParcelKey, node: &NodeName, incarnation: Incarnation) -> bool {
        let (arrivals, unfinished) = (&mut self.arrivals, &mut self.unfinished);
        let parcel = self.parcels.entry(key).or_insert_with(|| {
            *arrivals += 1;
            *unfinished += 1;
            Parcel {
                arrival: *arrivals,
                reporters: BTreeMap::new(),
                manifest: None,
                states: Vec::new(),
                open: 0,
                ready: BTreeSet::new(),
                finished: false,
            }
        });
        if parcel.reporters.insert(node.clone(), incarnation) != Some(incarnation) && !parcel.finished {
            self.touched.insert(key);
        }
        !parcel.finished && parcel.manifest.is_none()
    }

    /// A node no longer reports a parcel.
    pub(super) fn withdraw(&mut self, key: ParcelKey, node: &NodeName) {
        let Some(parcel) = self.parcels.get_mut(&key) else { return };
        parcel.reporters.remove(node);
        if parcel.reporters.is_empty() {
            for at in 0..parcel.states.len() {
                self.finish(&(key, at));
            }
            if let Some(parcel) = self.parcels.remove(&key)
                && !parcel.finished
            {
                self.unfinished -= 1;
            }
            self.touched.remove(&key);
        }
    }

    /// Takes a manifest whose digest was checked.
    pub(super) fn learn(&mut self, key: ParcelKey, manifest: Arc<Manifest>) {
        let Some(parcel) = self.parcels.get_mut(&key) else { return };
        if parcel.finished || parcel.manifest.is_some() {
            return;
        }
        for (at, item) in manifest.items.iter().enumerate() {
            let transaction = (manifest.sender.clone(), item.transaction);
            self.by_transaction.insert((transaction, (key, at)));
            self.deadlines.insert((item.deadline, (key, at)));
            if let Some(predecessor) = item.predecessor {
                self.deadlines.insert((predecessor.deadline, (key, at)));
            }
        }
        parcel.open = manifest.items.len();
        parcel.states = vec![State::Fresh; parcel.open];
        parcel.manifest = Some(manifest);
        self.touched.insert(key);
        self.fresh.extend((0..self.parcels.get(&key).map_or(0, |parcel| parcel.open)).map(|at| (key, at)));
    }

    pub(super) fn item(&self, (key, at): &ItemKey) -> Option<(&Manifest, &ManifestItem)> {
        let manifest = self.parcels.get(key)?.manifest.as_deref()?;
        Some((manifest, manifest.items.get(*at)?))
    }

    pub(super) fn state(&self, (key, at): &ItemKey) -> State {
        self.parcels.get(key).and_then(|parcel| parcel.states.get(*at)).copied().unwrap_or(State::Done)
    }

    /// Takes an item out of the index of its state; puts it into that of another.
    pub(super) fn set(&mut self, item: &ItemKey, state: State) {
        let before = self.state(item);
        if before == state || before == State::Done {
            return;
        }
        let predecessor = self.item(item).and_then(|(manifest, entry)| {
            entry.predecessor.map(|predecessor| (manifest.sender.clone(), predecessor.transaction))
        });
        match before {
            State::Fresh => {
                self.fresh.remove(item);
            }
            State::Waiting => {
                if let Some(predecessor) = &predecessor {
                    self.waiting.remove(&(predecessor.clone(), *item));
                }
            }
            State::Holding(position) => {
                self.holding.remove(&(position, *item));
            }
            State::Ready | State::InFlight | State::Done => {}
        }
        match state {
            State::Fresh => {
                self.fresh.insert(*item);
            }
            State::Waiting => {
                if let Some(predecessor) = predecessor {
                    self.waiting.insert((predecessor, *item));
                }
            }
            State::Holding(position) => {
                self.holding.insert((position, *item));
            }
            State::Ready | State::InFlight | State::Done => {}
        }
        let Some(parcel) = self.parcels.get_mut(&item.0) else { return };
        if let Some(slot) = parcel.states.get_mut(item.1) {
            *slot = state;
        }
        if state == State::Ready {
            parcel.ready.insert(item.1);
            self.ready.insert((parcel.arrival, item.0));
        } else if parcel.ready.remove(&item.1) && parcel.ready.is_empty() {
            self.ready.remove(&(parcel.arrival, item.0));
        }
    }

    /// An item needs nothing any more. The last one of a parcel finishes it.
    pub(super) fn finish(&mut self, item: &ItemKey) {
        if self.state(item) == State::Done {
            return;
        }
        if let Some((manifest, entry)) = self.item(item) {
            let transaction = (manifest.sender.clone(), entry.transaction);
            let (deadline, predecessor) = (entry.deadline, entry.predecessor);
            self.deadlines.remove(&(deadline, *item));
            if let Some(predecessor) = predecessor {
                self.deadlines.remove(&(predecessor.deadline, *item));
            }
            self.by_transaction.remove(&(transaction, *item));
        }
        self.set(item, State::Done);
        let Some(parcel) = self.parcels.get_mut(&item.0) else { return };
        parcel.open = parcel.open.saturating_sub(1);
        if parcel.open == 0 {
            parcel.finished = true;
            parcel.manifest = None;
            parcel.states = Vec::new();
            self.unfinished -= 1;
            self.touched.remove(&item.0);
        }
    }

    /// All items that bring this transaction.
    pub(super) fn bringing(&self, transaction: &TransactionKey) -> Vec<ItemKey> {
        items_of(&self.by_transaction, transaction).collect()
    }

    /// All items that wait for this transaction's fate, with what they ask of it.
    pub(super) fn waiters(&self, transaction: &TransactionKey) -> Vec<(ItemKey, Predecessor)> {
        let waiting = items_of(&self.waiting, transaction);
        waiting.filter_map(|item| Some((item, self.item(&item)?.1.predecessor?))).collect()
    }

    /// A transaction has a fate, at a position when it is committed: nobody brings it any more, and who waited goes on.
    pub(super) fn decided(&mut self, transaction: &TransactionKey, committed: Option<Position>) {
        for item in self.bringing(transaction) {
            self.finish(&item);
        }
        for (item, predecessor) in self.waiters(transaction) {
            self.set(
                &item,
                match (predecessor.release, committed) {
                    (Release::Complete, Some(position)) => State::Holding(position),
                    _ => State::Ready,
                },
            );
        }
    }

    /// Every voter holds everything up to here: who waited for that goes on.
    pub(super) fn held(&mut self, complete: Position) {
        while let Some(&(position, item)) = self.holding.first().filter(|(position, _)| *position <= complete) {
            self.set(&item, State::Ready);
            self.holding.remove(&(position, item));
        }
    }

    /// Group time moves on: what waits and has passed a deadline is to be looked at.
    pub(super) fn time_passed(&mut self, time: Time) {
        while let Some(&(deadline, item)) =
            self.deadlines.first().filter(|(deadline, _)| crate::core::decide::expired(time, *deadline))
        {
            self.deadlines.remove(&(deadline, item));
            if self.state(&item) != State::InFlight {
                self.set(&item, State::Fresh);
            }
        }
    }
}
