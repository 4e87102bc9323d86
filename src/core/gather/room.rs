//! Making room under the caps: what is dropped from memory for whom (R16). All that is dropped is deferred and gathered again.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::ParcelKey;
use super::action::Action;
use super::deferred::{Entry, Whose};
use super::parcel::{StripeKey, cost_at_most};
use super::reason::DeferReason;
use super::reassembler::Reassembler;
use crate::core::id::{Digest, Time, VerifyingKeyBytes};

/// What can be dropped from memory.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Stripe(StripeKey),
    Parcel(ParcelKey),
}

impl Victim {
    fn sender(&self) -> VerifyingKeyBytes {
        match self {
            Self::Stripe((key, ..)) | Self::Parcel(key) => key.sender,
        }
    }

    fn is_after(&self, asking: &StripeKey) -> bool {
        match self {
            Self::Stripe(stripe) => stripe > asking,
            Self::Parcel(key) => *key > asking.0,
        }
    }
}

fn stripes_of(sender: &VerifyingKeyBytes) -> RangeInclusive<StripeKey> {
    (ParcelKey::first_of(sender), 0, Digest([0; 32]))..=(ParcelKey::last_of(sender), u32::MAX, Digest([0xff; 32]))
}

fn parcels_of(sender: &VerifyingKeyBytes) -> RangeInclusive<ParcelKey> {
    ParcelKey::first_of(sender)..=ParcelKey::last_of(sender)
}

impl Reassembler {
    /// Drops stripes and then parcels, with all that was handed out of them, until `bytes` more fit:
    ///
    /// 1. under the total cap, of the sender that holds the most, if it would still hold more than the one that asks;
    /// 2. what is later of the sender that asks, so that its earliest always comes in and moves on;
    /// 3. for a sender's earliest stripe, under the total cap, of the senders whose turn is later: of several that each hold
    ///    a part of a stripe, one gets the room to complete it.
    ///
    /// The latest goes first. Never the earliest of a sender whose turn is before that of the one that asks.
    pub(super) fn make_room(
        &mut self,
        asking: StripeKey,
        bytes: usize,
        now: Time,
        actions: &mut Vec<Action>,
    ) -> Result<(), DeferReason> {
        let sender = asking.0.sender;
        while let Some(reason) = self.admission.refuses(&sender, bytes) {
            let shared = reason == DeferReason::TotalMemory;
            let of_others = |choose: &dyn Fn() -> Option<Victim>| if shared { choose() } else { None };
            let victim = of_others(&|| self.victim_of_largest(&sender, bytes))
                .or_else(|| self.latest_of(&sender).find(|victim| victim.is_after(&asking)))
                .or_else(|| of_others(&|| self.victim_of_later_turn(&asking)));
            match victim {
                Some(Victim::Stripe(stripe)) => self.evict(stripe, reason, now, actions),
                Some(Victim::Parcel(key)) => {
                    actions.push(Action::Abandon { parcel: key, because: Some(reason) });
                    self.drop_parcel(&key, reason, now, actions);
                }
                None => return Err(reason),
            }
        }
        Ok(())
    }

    /// What can be dropped of a sender: the latest stripe, then the latest parcel.
    fn latest_of(&self, sender: &VerifyingKeyBytes) -> impl Iterator<Item = Victim> {
        let stripe = self.evictable.range(stripes_of(sender)).next_back().copied();
        let parcel = self
            .parcels
            .range(parcels_of(sender))
            .rev()
            .find(|(_, parcel)| parcel.can_be_dropped())
            .map(|(key, _)| *key);
        stripe.map(Victim::Stripe).into_iter().chain(parcel.map(Victim::Parcel))
    }

    /// A sender's earliest parcel.
    pub(super) fn first_of(&self, sender: &VerifyingKeyBytes) -> Option<ParcelKey> {
        self.parcels.range(parcels_of(sender)).next().map(|(key, _)| *key)
    }

    fn victim_of_largest(&self, sender: &VerifyingKeyBytes, bytes: usize) -> Option<Victim> {
        let largest = self.admission.largest()?;
        if self.admission.held(&largest) <= self.admission.held(sender) + bytes {
            return None;
        }
        let first = self.admission.turn(&largest) < self.admission.turn(sender);
        self.latest_of(&largest).find(|victim| !first || !self.is_earliest(victim))
    }

    /// Whether it is the earliest of its sender, on which the sender's moving on depends.
    fn is_earliest(&self, victim: &Victim) -> bool {
        let sender = victim.sender();
        let stripe = self.evictable.range(stripes_of(&sender)).next();
        match victim {
            Victim::Stripe(victim) => stripe == Some(victim),
            Victim::Parcel(victim) => {
                self.first_of(&sender) == Some(*victim) || stripe.is_some_and(|(key, ..)| key == victim)
            }
        }
    }

    fn victim_of_later_turn(&self, asking: &StripeKey) -> Option<Victim> {
        let sender = asking.0.sender;
        if self.evictable.range(stripes_of(&sender)).next().is_some_and(|first| first < asking) {
            return None;
        }
        let turn = self.admission.turn(&sender);
        let others: BTreeSet<_> = self.admission.turns().filter(|other| *other > turn).collect();
        let victims = || others.iter().rev().flat_map(|(_, other)| self.latest_of(other));
        victims().find(|victim| matches!(victim, Victim::Stripe(_))).or_else(|| victims().next())
    }

    /// Drops a stripe's shards from memory and defers their addresses.
    pub(super) fn evict(
        &mut self,
        (key, stripe, digest): StripeKey,
        reason: DeferReason,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        self.evictable.remove(&(key, stripe, digest));
        let Some(parcel) = self.parcels.get_mut(&key) else { return };
        let Some(slot) = parcel.slots.remove(&(stripe, digest)) else { return };
        let mut dropped = Vec::with_capacity(slot.held.len());
        let stalls = parcel.stalls;
        for held in slot.held.into_values() {
            self.admission.give_back(&key.sender, held.cost);
            if let Some(at) = held.at {
                parcel.addresses.remove(at);
                parcel.noted.remove(at);
                dropped.push((at, cost_at_most(&held.segment)));
            }
        }
        for (at, cost) in dropped {
            let of = Some((key, stripe));
            let entry = Entry { reason, whose: Whose::Sender(key.sender), of, cost, tried: false, stalls };
            self.defer(at, entry, now, actions);
        }
        self.settle(&key);
    }
}
