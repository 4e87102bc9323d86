//! Admission: how much memory each sender and all together hold half-gathered, by bytes received, never by bytes claimed
//! (R16). Numbers only: what to drop is the reassembler's business.

use std::collections::BTreeMap;

use super::deferred::DeferReason;
use crate::core::id::VerifyingKeyBytes;
use crate::core::limits;

/// The caps of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Bytes that one sender may hold.
    pub sender_bytes: usize,
    /// Bytes that all may hold together.
    pub total_bytes: usize,
    /// Deferred addresses kept for each sender.
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

/// What is held, by sender and in total.
#[derive(Debug)]
pub(super) struct Admission {
    caps: Caps,
    total: usize,
    held_by_sender: BTreeMap<VerifyingKeyBytes, usize>,
}

impl Admission {
    pub fn new(caps: Caps) -> Self {
        Self { caps, total: 0, held_by_sender: BTreeMap::new() }
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

    /// Room that a sender has for records that are read again: up to half of each cap, so that reading again and dropping
    /// again do not take turns.
    pub fn room(&self, sender: &VerifyingKeyBytes) -> usize {
        let own = (self.caps.sender_bytes / 2).saturating_sub(self.held(sender));
        let all = (self.caps.total_bytes / 2).saturating_sub(self.total);
        own.min(all)
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
    fn the_caps_hold_each_and_together() {
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
}
