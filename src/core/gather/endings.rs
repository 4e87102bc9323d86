//! Parcels that ended and are remembered until they expire, so that their late segments cost nothing. An end is that of one
//! D: what else the same sender signed under the same parcel id is told from it by the header of its last stripe (R1).

use std::collections::{BTreeMap, BTreeSet};

use super::ParcelKey;
use super::ending::REPEATED_AFTER;
use crate::core::id::{Digest, Time};
use crate::core::limits;

/// A parcel that ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub expiry: Time,
    /// D.
    pub digest: Digest,
    /// Whether it was refused: that says nothing of another D.
    pub refused: bool,
    /// Whether another D was seen and told of.
    pub contradicted: bool,
    /// Until then its segments pass without a word.
    pub quiet_until: Time,
    /// The how manieth end it is.
    turn: u64,
}

impl Ended {
    /// It is staged, decided, or refused.
    pub fn new(digest: Digest, expiry: Time, refused: bool, now: Time) -> Self {
        Self { expiry, digest, refused, contradicted: false, quiet_until: now.after(REPEATED_AFTER), turn: 0 }
    }
}

/// The parcels that ended, at most [`limits::ENDED_PARCELS`]. Over it, those that ended first are forgotten, whatever their
/// expiry: late segments come soon after the end, and long deadlines of one sender must not crowd out the others.
#[derive(Debug, Default)]
pub(super) struct Endings {
    by_key: BTreeMap<ParcelKey, Ended>,
    by_expiry: BTreeSet<(Time, ParcelKey)>,
    by_turn: BTreeMap<u64, ParcelKey>,
    turns: u64,
}

impl Endings {
    /// Remembers an end; of several ends of one parcel the last.
    pub fn insert(&mut self, key: ParcelKey, mut ended: Ended) {
        self.remove(&key);
        self.turns += 1;
        ended.turn = self.turns;
        self.by_turn.insert(ended.turn, key);
        self.by_expiry.insert((ended.expiry, key));
        self.by_key.insert(key, ended);
        while self.by_key.len() > limits::ENDED_PARCELS {
            let Some((_, first)) = self.by_turn.pop_first() else { break };
            self.remove(&first);
        }
    }

    /// Forgets an end.
    pub fn remove(&mut self, key: &ParcelKey) {
        if let Some(ended) = self.by_key.remove(key) {
            self.by_expiry.remove(&(ended.expiry, *key));
            self.by_turn.remove(&ended.turn);
        }
    }

    /// Forgets what has expired by this group time.
    pub fn expire(&mut self, group_time: Time) {
        while let Some(&(_, key)) = self.by_expiry.first().filter(|(expiry, _)| *expiry < group_time) {
            self.remove(&key);
        }
    }

    pub fn get_mut(&mut self, key: &ParcelKey) -> Option<&mut Ended> {
        self.by_key.get_mut(key)
    }

    pub fn contains(&self, key: &ParcelKey) -> bool {
        self.by_key.contains_key(key)
    }
}
