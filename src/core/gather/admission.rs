//! Admission: how much memory each sender and all together hold half-gathered, by bytes received, never by bytes claimed
//! (R16), and whose turn it is when it does not suffice for all. Numbers only: what to drop is the reassembler's business.

use std::collections::BTreeMap;

use super::reason::DeferReason;
use crate::core::id::VerifyingKeyBytes;
use crate::core::limits;

/// The caps of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Bytes that one sender may hold.
    pub sender_bytes: usize,
    /// Bytes that all may hold together.
    pub total_bytes: usize,
    /// Deferred addresses kept for each sender; for all together twice as many.
    pub deferred: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            sender_bytes: limits::GATHER_BYTES_PER_SENDER,
            total_bytes: limits::GATHER_BYTES,
            deferred: limits::DEFERRED_PER_SENDER,
        }
    }
}

impl Caps {
    /// Those of each of so many destinations, so that all of them together stay within these; but never less than
    /// [`limits::GATHER_BYTES_LEAST`] for each, with which every stripe can come together.
    pub fn shared_by(self, destinations: usize) -> Self {
        let least = limits::GATHER_BYTES_LEAST.min(self.total_bytes);
        let total_bytes = (self.total_bytes / destinations.max(1)).max(least);
        let deferred = (self.deferred / destinations.max(1)).max(1);
        Self { total_bytes, sender_bytes: self.sender_bytes.min(total_bytes), deferred }
    }
}

/// What is held, by sender and in total.
#[derive(Debug)]
pub(super) struct Admission {
    caps: Caps,
    total: usize,
    held_by_sender: BTreeMap<VerifyingKeyBytes, usize>,
    /// Addresses of each sender that are noted with parcels that are open, beside the book.
    noted_by_sender: BTreeMap<VerifyingKeyBytes, usize>,
    /// When a sender's turn ended, as a count of turns. One that had none comes first. Grows with the directory's senders.
    ended_turns: BTreeMap<VerifyingKeyBytes, u64>,
    ended: u64,
}

/// A sender's place in the queue for memory: lower goes first.
pub(super) type Turn = (u64, VerifyingKeyBytes);

impl Admission {
    pub fn new(caps: Caps) -> Self {
        let (held_by_sender, noted_by_sender) = (BTreeMap::new(), BTreeMap::new());
        Self { caps, total: 0, held_by_sender, noted_by_sender, ended_turns: BTreeMap::new(), ended: 0 }
    }

    pub fn caps(&self) -> Caps {
        self.caps
    }

    /// Bytes held by all.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Bytes held by one sender.
    pub fn held(&self, sender: &VerifyingKeyBytes) -> usize {
        self.held_by_sender.get(sender).copied().unwrap_or(0)
    }

    /// Addresses of one sender that are noted with parcels that are open.
    pub fn noted(&self, sender: &VerifyingKeyBytes) -> usize {
        self.noted_by_sender.get(sender).copied().unwrap_or(0)
    }

    /// So many addresses of a sender were noted with an open parcel before, so many are now.
    pub fn note(&mut self, sender: &VerifyingKeyBytes, before: usize, now: usize) {
        let noted = (self.noted(sender) + now).saturating_sub(before);
        if noted == 0 {
            self.noted_by_sender.remove(sender);
        } else if before != now {
            self.noted_by_sender.insert(*sender, noted);
        }
    }

    /// Which cap stands against `bytes` more of this sender.
    pub fn refuses(&self, sender: &VerifyingKeyBytes, bytes: usize) -> Option<DeferReason> {
        if self.held(sender) + bytes > self.caps.sender_bytes {
            Some(DeferReason::SenderMemory)
        } else if self.total + bytes > self.caps.total_bytes {
            Some(DeferReason::TotalMemory)
        } else {
            None
        }
    }

    /// The sender that holds the most.
    pub fn largest(&self) -> Option<VerifyingKeyBytes> {
        self.held_by_sender.iter().max_by_key(|(_, held)| **held).map(|(sender, _)| *sender)
    }

    /// A sender's turn. Were there no order among senders that hold about the same, each could hold a part of a stripe in the
    /// room that another needs to complete one.
    pub fn turn(&self, sender: &VerifyingKeyBytes) -> Turn {
        (self.ended_turns.get(sender).copied().unwrap_or(0), *sender)
    }

    /// The turns of all that hold anything.
    pub fn turns(&self) -> impl Iterator<Item = Turn> + '_ {
        self.held_by_sender.keys().map(|sender| self.turn(sender))
    }

    /// A parcel of this sender ended, or stands still: the others go first now.
    pub fn end_turn(&mut self, sender: &VerifyingKeyBytes) {
        self.ended += 1;
        self.ended_turns.insert(*sender, self.ended);
    }

    /// Room that all senders together have for records that are read again: up to half of the cap, so that reading again
    /// and dropping again do not take turns.
    pub fn room(&self) -> usize {
        (self.caps.total_bytes / 2).saturating_sub(self.total)
    }

    /// Room that one sender has under its own cap for records that are read again: up to half of it.
    pub fn room_of(&self, sender: &VerifyingKeyBytes) -> usize {
        (self.caps.sender_bytes / 2).saturating_sub(self.held(sender))
    }

    pub fn take(&mut self, sender: &VerifyingKeyBytes, bytes: usize) {
        self.total += bytes;
        *self.held_by_sender.entry(*sender).or_default() += bytes;
    }

    pub fn give_back(&mut self, sender: &VerifyingKeyBytes, bytes: usize) {
        self.total = self.total.saturating_sub(bytes);
        if let Some(held) = self.held_by_sender.get_mut(sender) {
            *held = held.saturating_sub(bytes);
            if *held == 0 {
                self.held_by_sender.remove(sender);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_share_the_caps() {
        let caps = Caps { sender_bytes: 10 << 20, total_bytes: 24 << 20, deferred: 12 };
        assert_eq!(caps.shared_by(1), caps);
        assert_eq!(caps.shared_by(3), Caps { sender_bytes: 8 << 20, total_bytes: 8 << 20, deferred: 4 });
        assert_eq!(Caps { deferred: 16_000, ..Caps::default() }.shared_by(16).total_bytes, limits::GATHER_BYTES_LEAST);
    }

    #[test]
    fn r16_however_many_share_the_caps_a_stripe_has_room_for_each() {
        let header = crate::core::split::header::HEADER_BYTES;
        for destinations in 1..=100 {
            let each = Caps::default().shared_by(destinations);
            // What is read again for want of memory is read into half of it; a quarter is what opening holds.
            let segments = limits::DATA_SHARDS * (1024 + 2 * header);
            assert!(each.sender_bytes / 2 >= limits::STRIPE_BYTES + segments, "{destinations}: {each:?}");
        }
    }

    #[test]
    fn r16_the_caps_hold_each_and_together() {
        let (a, b) = (VerifyingKeyBytes([1; 32]), VerifyingKeyBytes([2; 32]));
        let mut admission = Admission::new(Caps { sender_bytes: 10, total_bytes: 15, deferred: 1 });
        admission.take(&a, 9);
        assert_eq!(admission.refuses(&a, 2), Some(DeferReason::SenderMemory));
        assert_eq!(admission.refuses(&b, 7), Some(DeferReason::TotalMemory));
        assert_eq!(admission.refuses(&b, 6), None);
        assert_eq!(admission.largest(), Some(a));
        admission.give_back(&a, 9);
        assert_eq!((admission.total(), admission.held(&a), admission.largest()), (0, 0, None));
    }

    #[test]
    fn turns_go_round() {
        let (a, b) = (VerifyingKeyBytes([1; 32]), VerifyingKeyBytes([2; 32]));
        let mut admission = Admission::new(Caps::default());
        assert!(admission.turn(&a) < admission.turn(&b));
        admission.end_turn(&a);
        assert!(admission.turn(&b) < admission.turn(&a));
        admission.end_turn(&b);
        assert!(admission.turn(&a) < admission.turn(&b));
    }
}
