//! The book of deferred addresses: records whose bytes were dropped for a local reason, and when to read them again (R16).
//! The store keeps the same notes durably; this is the working copy.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use super::admission::Admission;
use super::reason::DeferReason;
use super::{Address, ParcelKey};
use crate::core::id::{Time, VerifyingKeyBytes};

/// Every deferred record is read again after this long, whatever else happens; those of a parcel that was opened
/// in part and let go of, those of which nothing could be verified, and those far ahead of group time, wait twice as long each
/// time, up to [`READ_AGAIN_AT_MOST`]. What ends their reason calls for them at once.
pub const READ_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The longest that a deferred record waits to be read again.
pub const READ_AGAIN_AT_MOST: Duration = Duration::from_secs(3600);

/// So many records that only time calls for are read again side by side: the rest is due when those have come.
pub(super) const DUE_AT_ONCE: usize = 4096;

/// The bound of all senders together is so many times that of one.
pub(super) const SENDERS_AT_BOUND: usize = 2;

/// Whose bound a deferred record counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Whose {
    /// A sender's, whose signature was verified or is looked for.
    Sender(VerifyingKeyBytes),
    /// Unverified, a sender's name is only a claim: all who are not known share one bound.
    Unknown,
    /// Of a time before the start, not read since: the bounds of that time held.
    Before,
}

/// One deferred record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub reason: DeferReason,
    pub whose: Whose,
    /// Its parcel and stripe, where they were verified.
    pub of: Option<(ParcelKey, u32)>,
    /// Bytes of memory that it will ask for.
    pub cost: usize,
    /// Whether it was read again and deferred again: then only time or freed memory calls for it.
    pub tried: bool,
    /// How often its parcel was let go of, opened in part, because it stood still; of a record that could not be verified, or
    /// is far ahead of group time, how often it was read again in vain.
    pub stalls: u8,
}

impl Entry {
    fn again(&self, now: Time) -> Time {
        let doublings = match self.reason {
            DeferReason::Stalled => self.stalls.saturating_sub(1).min(6),
            reason if reason.grows_rare() => self.stalls.min(6),
            _ => 0,
        };
        now.after(READ_AGAIN_AFTER.saturating_mul(1 << doublings).min(READ_AGAIN_AT_MOST))
    }
}

#[derive(Debug)]
struct Kept {
    entry: Entry,
    again: Time,
    reading: bool,
}

/// Above every (parcel, stripe, address) of this sender.
fn last_of(sender: &VerifyingKeyBytes) -> (ParcelKey, u32, Address) {
    let address = Address { partition: i32::MAX, offset: i64::MAX };
    (ParcelKey::last_of(sender), u32::MAX, address)
}

/// Deferred records by address, with what is needed to find those whose reason has ended.
#[derive(Debug, Default)]
pub(super) struct Book {
    kept_by_address: BTreeMap<Address, Kept>,
    by_parcel: BTreeSet<(ParcelKey, u32, Address)>,
    /// Those of `by_parcel` that only wait for memory.
    waiting_for_memory: BTreeSet<(ParcelKey, u32, Address)>,
    /// Those that are not being read.
    by_time: BTreeSet<(Time, Address)>,
    /// Of each, what counts against its bound; the newest are last.
    by_age: BTreeMap<Whose, BTreeSet<Age>>,
    reading: usize,
}

/// Orders addresses by about how old they are: the partitions of a topic grow together.
type Age = (i64, i32);

fn age(at: Address) -> Age {
    (at.offset, at.partition)
}

fn newest(of: &BTreeSet<Age>) -> Option<Address> {
    of.last().map(|&(offset, partition)| Address { partition, offset })
}

impl Book {
    /// Notes a record. Over its sender's bound `own`, or that of all together, the newest address goes (R16): that is given
    /// back, this or another. `most`: the bound of a sender of which nothing is noted elsewhere.
    pub fn note(&mut self, at: Address, entry: Entry, now: Time, own: usize, most: usize) -> Option<Address> {
        self.remove(at);
        self.insert(at, entry, entry.again(now));
        let of = |whose: &Whose| self.by_age.get(whose).filter(|of| of.len() > own);
        let largest =
            || self.by_age.iter().filter(|(whose, _)| **whose != Whose::Before).max_by_key(|(_, of)| of.len());
        let over = match of(&entry.whose) {
            Some(of) => Some(of),
            None if self.len() > most.saturating_mul(SENDERS_AT_BOUND) => largest().map(|(_, of)| of),
            None => None,
        };
        let gone = newest(over?)?;
        self.remove(gone);
        Some(gone)
    }

    fn insert(&mut self, at: Address, entry: Entry, again: Time) {
        if let Some((parcel, stripe)) = entry.of {
            self.by_parcel.insert((parcel, stripe, at));
            if entry.reason.is_memory() {
                self.waiting_for_memory.insert((parcel, stripe, at));
            }
        }
        self.by_age.entry(entry.whose).or_default().insert(age(at));
        self.by_time.insert((again, at));
        self.kept_by_address.insert(at, Kept { entry, again, reading: false });
    }

    /// Notes a record found in the store at start: due at once.
    pub fn restore(&mut self, at: Address, reason: DeferReason) {
        self.remove(at);
        let entry = Entry { reason, whose: Whose::Before, of: None, cost: 0, tried: false, stalls: 0 };
        self.insert(at, entry, Time(0));
    }

    /// Takes a record out.
    pub fn remove(&mut self, at: Address) -> Option<Entry> {
        let Kept { entry, again, reading } = self.kept_by_address.remove(&at)?;
        self.by_time.remove(&(again, at));
        self.reading -= usize::from(reading);
        if let Some((parcel, stripe)) = entry.of {
            self.by_parcel.remove(&(parcel, stripe, at));
            self.waiting_for_memory.remove(&(parcel, stripe, at));
        }
        if let Some(of) = self.by_age.get_mut(&entry.whose) {
            of.remove(&age(at));
            if of.is_empty() {
                self.by_age.remove(&entry.whose);
            }
        }
        Some(entry)
    }

    /// Whether anything of a parcel is deferred.
    pub fn holds(&self, parcel: &ParcelKey) -> bool {
        let first = (*parcel, 0, Address { partition: i32::MIN, offset: i64::MIN });
        self.by_parcel.range(first..).next().is_some_and(|(key, ..)| key == parcel)
    }

    /// All of a parcel.
    fn of_parcel(&self, parcel: &ParcelKey) -> impl Iterator<Item = Address> {
        let first = (*parcel, 0, Address { partition: i32::MIN, offset: i64::MIN });
        self.by_parcel.range(first..).take_while(move |(key, ..)| key == parcel).map(|&(.., at)| at)
    }

    /// Those of a parcel that were deferred for this reason, ascending.
    pub fn of_reason(&self, parcel: &ParcelKey, reason: DeferReason) -> Vec<Address> {
        let is_it = |at: &Address| self.kept_by_address.get(at).is_some_and(|kept| kept.entry.reason == reason);
        let mut of: Vec<_> = self.of_parcel(parcel).filter(is_it).collect();
        of.sort_unstable();
        of
    }

    /// Takes out all of a parcel, but for these, which ascend.
    pub fn remove_parcel(&mut self, parcel: &ParcelKey, but: &[Address]) -> Vec<Address> {
        let of: Vec<_> = self.of_parcel(parcel).filter(|at| but.binary_search(at).is_err()).collect();
        for at in &of {
            self.remove(*at);
        }
        of
    }

    /// Takes out all of a partition.
    pub fn remove_partition(&mut self, partition: i32) -> Vec<Address> {
        let all = Address { partition, offset: i64::MIN }..=Address { partition, offset: i64::MAX };
        let of: Vec<_> = self.kept_by_address.range(all).map(|(&at, _)| at).collect();
        for at in &of {
            self.remove(*at);
        }
        of
    }

    /// Marks a record as being read again: until it has come, or is put back, nothing else calls for it.
    fn read(&mut self, at: Address, now: Time) {
        if let Some(kept) = self.kept_by_address.get_mut(&at) {
            self.by_time.remove(&(kept.again, at));
            if kept.entry.reason.grows_rare() {
                kept.entry.stalls = kept.entry.stalls.saturating_add(1);
            }
            kept.again = kept.entry.again(now);
            self.reading += usize::from(!std::mem::replace(&mut kept.reading, true));
            if let Some((parcel, stripe)) = kept.entry.of {
                self.waiting_for_memory.remove(&(parcel, stripe, at));
            }
        }
    }

    /// Nothing came of reading these: they are due when the usual time since then has passed, or at this time.
    pub fn put_back(&mut self, addresses: &[Address], at_time: Option<Time>) {
        for &at in addresses {
            if let Some(kept) = self.kept_by_address.get_mut(&at).filter(|kept| kept.reading) {
                kept.reading = false;
                kept.again = at_time.unwrap_or(kept.again);
                self.reading -= 1;
                self.by_time.insert((kept.again, at));
            }
        }
    }

    /// What is due, the longest first: at most as many as are read side by side.
    pub fn due(&mut self, now: Time) -> Vec<Address> {
        let end = (now, Address { partition: i32::MAX, offset: i64::MAX });
        let most = DUE_AT_ONCE.saturating_sub(self.reading);
        let due: Vec<Address> = self.by_time.range(..=end).take(most).map(|(_, at)| *at).collect();
        self.read_all(&due, now);
        due
    }

    /// What was deferred for a reason that has ended.
    pub fn lifted(&mut self, reason: DeferReason, now: Time) -> Vec<Address> {
        let lifted: Vec<_> = self
            .kept_by_address
            .iter()
            .filter(|(_, kept)| kept.entry.reason == reason && !kept.reading)
            .map(|(&at, _)| at)
            .collect();
        self.read_all(&lifted, now);
        lifted
    }

    /// Records of this stripe that were not tried since they were deferred.
    pub fn untried(&self, parcel: &ParcelKey, stripe: u32) -> Vec<Address> {
        let first = (*parcel, stripe, Address { partition: i32::MIN, offset: i64::MIN });
        self.by_parcel
            .range(first..)
            .take_while(|(key, index, _)| key == parcel && *index == stripe)
            .map(|&(.., at)| at)
            .filter(|at| self.kept_by_address.get(at).is_some_and(|kept| !kept.entry.tried && !kept.reading))
            .collect()
    }

    /// Marks these as being read again.
    pub fn read_all(&mut self, addresses: &[Address], now: Time) {
        addresses.iter().for_each(|&at| self.read(at, now));
    }

    /// Records deferred for want of memory: senders by their turn, of each the earliest parcels and stripes, as many as fit
    /// into the room there is. They count as being read again.
    pub fn for_memory(&mut self, now: Time, admission: &Admission) -> Vec<Address> {
        let mut senders = Vec::new();
        let mut from = Bound::Unbounded;
        while let Some((parcel, ..)) = self.waiting_for_memory.range((from, Bound::Unbounded)).next() {
            senders.push((admission.turn(&parcel.sender), from));
            from = Bound::Excluded(last_of(&parcel.sender));
        }
        senders.sort_unstable_by_key(|(turn, _)| *turn);
        let mut chosen = Vec::new();
        let mut room = admission.room();
        for ((_, sender), from) in senders {
            let mut own = admission.room_of(&sender);
            for (parcel, _, at) in self.waiting_for_memory.range((from, Bound::Unbounded)) {
                let cost = self.kept_by_address.get(at).map_or(0, |kept| kept.entry.cost);
                if parcel.sender != sender || cost > own.min(room) {
                    break;
                }
                (own, room) = (own - cost, room - cost);
                chosen.push(*at);
            }
        }
        self.read_all(&chosen, now);
        chosen
    }

    /// How many records are deferred.
    pub fn len(&self) -> usize {
        self.kept_by_address.len()
    }

    /// How many of this sender.
    pub fn count(&self, sender: &VerifyingKeyBytes) -> usize {
        self.by_age.get(&Whose::Sender(*sender)).map_or(0, BTreeSet::len)
    }

    /// How many for each reason.
    pub fn reasons(&self) -> BTreeMap<DeferReason, usize> {
        let mut counts = BTreeMap::new();
        for kept in self.kept_by_address.values() {
            *counts.entry(kept.entry.reason).or_default() += 1;
        }
        counts
    }
}
