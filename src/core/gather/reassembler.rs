//! The reassembler of one destination: verified segments in, actions out. The driver carries the actions out in their order
//! and hands results back.
//!
//! A parcel is known by (sender, epoch, parcel id) and followed along the chain of its headers' digests. Of headers that
//! contradict each other, at most [`limits::HEADERS_PER_STRIPE`] are gathered apart; the first to follow the chain and be
//! complete is followed, the others are deferred. A node so stages one D for a parcel; when a majority staged another, it
//! learns so from the log and fetches (R1, R11).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::action::{Action, Delivery, Equivocation, RecoverJob, Recovered, Refused};
use super::admission::{Admission, Caps};
use super::deferred::{Book, Entry, Whose};
use super::endings::{Ended, Endings};
use super::gate::Skip;
use super::parcel::{Held, Parcel, Place, Slot, StripeKey, cost_at_most, segment_cost};
use super::reason::DeferReason;
use super::{Address, ParcelKey};
use crate::core::directory::{Directory, KeyState, Validity};
use crate::core::id::{DestinationTag, Digest, RefusalReason, Time};
use crate::core::limits;
use crate::core::split::header::{Core, StripeHeader};
use crate::core::split::segment::VerifiedSegment;

/// Gathers the parcels of one destination. Pure: segments and time come in, actions go out. `now` only measures waiting:
/// it is a time that never goes back, from any beginning; fates follow group time.
#[derive(Debug)]
pub struct Reassembler {
    pub(super) directory: Arc<Directory>,
    pub(super) tag: DestinationTag,
    pub(super) group_time: Time,
    /// The node's wall clock, as it was told last.
    pub(super) wall: Time,
    pub(super) parcels: BTreeMap<ParcelKey, Parcel>,
    /// Ended parcels.
    pub(super) ended: Endings,
    pub(super) open_by_expiry: BTreeSet<(Time, ParcelKey)>,
    /// Stripes whose shards can be dropped.
    pub(super) evictable: BTreeSet<StripeKey>,
    pub(super) admission: Admission,
    pub(super) book: Book,
    pub(super) overflowed: u64,
}

impl Reassembler {
    /// Starts with nothing gathered, for the destination of this tag.
    pub fn new(directory: Arc<Directory>, tag: DestinationTag, caps: Caps) -> Self {
        Self {
            directory,
            tag,
            group_time: Time::default(),
            wall: Time::default(),
            parcels: BTreeMap::new(),
            ended: Endings::default(),
            open_by_expiry: BTreeSet::new(),
            evictable: BTreeSet::new(),
            admission: Admission::new(caps),
            book: Book::default(),
            overflowed: 0,
        }
    }

    /// Takes what the gate said of the record at this address.
    pub fn take(&mut self, checked: Result<VerifiedSegment, Skip>, at: Address, now: Time) -> Vec<Action> {
        let skip = match checked {
            Ok(segment) => return self.receive(segment, at, now),
            Err(skip) => skip,
        };
        let mut actions = Vec::new();
        let before = self.book.remove(at);
        let (tried, stalls) = (before.is_some(), before.map_or(0, |entry| entry.stalls));
        match skip.deferral() {
            None => actions.push(Action::Pass(at.into())),
            Some(reason) => {
                let entry = Entry { reason, whose: Whose::Unknown, of: None, cost: 0, tried, stalls };
                self.defer(at, entry, now, &mut actions);
            }
        }
        actions
    }

    /// Takes a verified segment.
    pub fn receive(&mut self, segment: VerifiedSegment, at: Address, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        let before = self.book.remove(at);
        let (tried, stalls) = (before.is_some(), before.map_or(0, |entry| entry.stalls));
        let key = ParcelKey::of(&segment.header().core);
        let expiry = segment.header().core.expiry;
        if self.is_of_an_end(&segment, now, &mut actions) {
            actions.push(Action::Pass(at.into()));
            return actions;
        }
        if self.group_time > expiry {
            actions.push(Action::Pass(at.into()));
            return actions;
        }
        let stripe = segment.header().stripe;
        let cost = cost_at_most(&segment);
        let whose = Whose::Sender(key.sender);
        let entry = |reason| Entry { reason, whose, of: Some((key, stripe)), cost, tried, stalls };
        let known = self.parcels.get(&key);
        let refused = match known.and_then(|parcel| parcel.judged(&segment.header().core)) {
            Some(judged) => judged,
            None => match self.judge(&segment.header().core) {
                Ok(()) => None,
                Err(Judgement::Refused(reason)) => Some(reason),
                Err(Judgement::Deferred(reason)) => {
                    self.defer(at, entry(reason), now, &mut actions);
                    return actions;
                }
            },
        };
        let place = known.map_or(Place::New { contradicts: None }, |parcel| parcel.place(&segment));
        // The copy that came first waits, or is noted: others may go, so that nobody gains by replaying them.
        if place == Place::Repeated {
            let parcel = self.parcels.get_mut(&key).filter(|parcel| !parcel.waits(at));
            match parcel.map(|parcel| parcel.waits_too(&segment, at, tried)) {
                Some(true) => self.settle(&key),
                Some(false) => actions.push(Action::Pass(at.into())),
                None => {}
            }
            return actions;
        }
        if place == Place::Rival {
            self.alarm_rival(&key, &segment, &mut actions);
            self.defer(at, entry(DeferReason::Equivocation), now, &mut actions);
            return actions;
        }
        let digest = segment.digest();
        if let Err(reason) = self.make_room((key, stripe, digest), cost, now, &mut actions) {
            self.defer(at, entry(reason), now, &mut actions);
            self.settle(&key);
            return actions;
        }
        // Making room may have dropped this parcel's other stripes, and the parcel with them.
        let known_before = tried || self.book.holds(&key);
        let since = (!known_before).then_some(now);
        let parcel = self.parcels.entry(key).or_insert_with(|| Parcel::new(expiry, now, since));
        // Headers that contradict each other may name other times; the parcel has that of its first.
        self.open_by_expiry.insert((parcel.expiry, key));
        parcel.stalls = parcel.stalls.max(stalls);
        // What was read again is noted since it was put off.
        if tried {
            parcel.noted.insert(at)
        } else {
            parcel.addresses.insert(at)
        };
        parcel.see(&segment);
        if let Place::New { contradicts } = place {
            parcel.touched = now;
            if !tried {
                parcel.moved = now;
            }
            if let Some(first) = contradicts {
                actions.push(Action::Equivocation(Equivocation { parcel: key, stripe, first, second: digest }));
            }
            let slot = parcel.slots.entry((stripe, digest)).or_insert_with(|| Slot {
                header: Arc::new(segment.header().clone()),
                held: BTreeMap::new(),
                seen: 0,
                recovering: false,
                refused,
            });
            slot.see(segment.index());
            if refused.is_none() {
                let cost = segment_cost(&segment);
                self.admission.take(&key.sender, cost);
                let (index, segment) = (segment.index(), Box::new(segment));
                slot.held.insert(index, Held { segment, at: Some(at), cost });
                self.evictable.insert((key, stripe, digest));
            }
        }
        self.settle(&key);
        self.advance(&key, now, &mut actions);
        actions
    }

    /// Whether the directory in force lets this parcel in, whatever its sealed bytes (R22).
    fn judge(&self, core: &Core) -> Result<(), Judgement> {
        if self.directory.validity(self.group_time) == Validity::GraceEnded {
            return Err(Judgement::Deferred(DeferReason::DirectoryEnded));
        }
        // Group time may lag far behind after a long outage, and a node's clock may be wrong: the later of both counts, if either
        // is known.
        let present = self.group_time.max(self.wall);
        let reach = present.after(Duration::from_millis(limits::AHEAD_MILLIS));
        if present > Time::default() && core.parcel.time() > reach {
            return Err(Judgement::Deferred(DeferReason::FarAhead));
        }
        let missing = Judgement::Deferred(DeferReason::KeyMissing);
        let (Some(entry), Some(destination)) =
            (self.directory.destination_by_tag(&self.tag), core.destination(&self.tag))
        else {
            return Err(missing);
        };
        let key = entry.key(&destination.key).ok_or(missing)?;
        if core.suite < entry.minimum_suite || core.suite != key.suite {
            return Err(Judgement::Refused(RefusalReason::Suite));
        }
        if key.state == KeyState::Retired {
            return Err(Judgement::Refused(RefusalReason::RetiredKey));
        }
        if core.life() > entry.max_life + Duration::from_millis(limits::EXPIRY_SLACK_MILLIS) {
            return Err(Judgement::Refused(RefusalReason::ExpiryTooFar));
        }
        Ok(())
    }

    fn alarm_rival(&self, key: &ParcelKey, segment: &VerifiedSegment, actions: &mut Vec<Action>) {
        let stripe = segment.header().stripe;
        let first = self.parcels.get(key).and_then(|parcel| {
            let beside = parcel.slots.keys().find(|(index, _)| *index == stripe).map(|(_, digest)| *digest);
            beside.or_else(|| parcel.tip.as_ref().map(|tip| tip.digest))
        });
        if let Some(first) = first {
            actions.push(Action::Equivocation(Equivocation { parcel: *key, stripe, first, second: segment.digest() }));
        }
    }

    /// Notes an address in the book; over the bound the newest one goes (R16): the sender's outbox has it.
    pub(super) fn defer(&mut self, at: Address, entry: Entry, now: Time, actions: &mut Vec<Action>) {
        // What is noted with open parcels counts against the same bound.
        let most = match &entry.whose {
            Whose::Sender(sender) => self.admission.caps().deferred.saturating_sub(self.admission.noted(sender)),
            _ => self.admission.caps().deferred,
        };
        if let Some(gone) = self.book.note(at, entry, now, most, self.admission.caps().deferred) {
            self.overflowed += 1;
            actions.push(Action::Pass(gone.into()));
            if gone == at {
                return;
            }
        }
        match actions.last_mut() {
            Some(Action::Defer { addresses, reason }) if *reason == entry.reason => {
                addresses.insert(at);
            }
            _ => actions.push(Action::Defer { addresses: at.into(), reason: entry.reason }),
        }
    }

    /// Brings what admission counts for a parcel up to date, and forgets a parcel of which nothing is left.
    pub(super) fn settle(&mut self, key: &ParcelKey) {
        let Some(parcel) = self.parcels.get_mut(key) else { return };
        let noted = parcel.noted.len();
        self.admission.note(&key.sender, parcel.noted_charged, noted);
        parcel.noted_charged = noted;
        if parcel.is_void() {
            self.admission.give_back(&key.sender, parcel.charged);
            self.open_by_expiry.remove(&(parcel.expiry, *key));
            self.parcels.remove(key);
            return;
        }
        let overhead = parcel.overhead(self.admission.caps().sender_bytes);
        if overhead > parcel.charged {
            self.admission.take(&key.sender, overhead - parcel.charged);
        } else {
            self.admission.give_back(&key.sender, parcel.charged - overhead);
        }
        parcel.charged = overhead;
    }

    /// What the driver opened of a parcel holds so many bytes of memory beside what every parcel that is opened in part does.
    /// They count against its sender, whose latest parcels make room; this one too, unless it is its sender's earliest.
    pub fn opened(&mut self, key: &ParcelKey, bytes: usize, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(parcel) = self.parcels.get_mut(key).filter(|parcel| parcel.opened != bytes) else { return actions };
        let grown = bytes > parcel.opened;
        parcel.opened = bytes;
        let asking = (*key, parcel.next(), Digest([0; 32]));
        self.settle(key);
        if !grown {
            self.reread_for_memory(now, &mut actions);
        } else if let Err(reason) = self.make_room(asking, 0, now, &mut actions)
            && self.first_of(&key.sender).is_some_and(|first| first != *key)
            && self.parcels.get(key).is_some_and(Parcel::can_be_dropped)
        {
            actions.push(Action::Abandon { parcel: *key, because: Some(reason) });
            self.drop_parcel(key, reason, now, &mut actions);
        }
        actions
    }

    /// Moves a parcel on as far as it goes by itself.
    pub(super) fn advance(&mut self, key: &ParcelKey, now: Time, actions: &mut Vec<Action>) {
        loop {
            let Some(parcel) = self.parcels.get_mut(key) else { return };
            let next = parcel.next();
            let (following, contradicting) = parcel.next_headers();
            let reason = parcel.refused;
            for digest in contradicting {
                self.evict((*key, next, digest), DeferReason::Equivocation, now, actions);
            }
            let Some(parcel) = self.parcels.get_mut(key) else { return };
            match reason {
                Some(reason) => {
                    if let Some(tip) = parcel.tip.as_ref().filter(|tip| tip.header.last) {
                        let (digest, expiry) = (tip.digest, tip.header.core.expiry);
                        actions.push(Action::Refuse(Refused { parcel: *key, digest, reason, expiry }));
                        self.finish(key, Ended::new(digest, expiry, true, now), now, actions);
                        return;
                    }
                    let Some(&digest) = following.first() else { return };
                    if let Some(slot) = parcel.slots.remove(&(next, digest)) {
                        parcel.hand_out(slot, digest);
                    }
                    self.settle(key);
                }
                None => {
                    let Some((digest, reason)) = parcel.ruled_out(&following) else {
                        self.start_recovery(key, &following, now, actions);
                        return;
                    };
                    let Some(slot) = parcel.slots.remove(&(next, digest)) else { return };
                    parcel.hand_out(slot, digest);
                    parcel.refused = Some(reason);
                    self.settle(key);
                }
            }
        }
    }

    /// Starts the recovery of the next stripe when it is complete; reads deferred shards again when they complete it.
    fn start_recovery(&mut self, key: &ParcelKey, following: &[Digest], now: Time, actions: &mut Vec<Action>) {
        let Some(parcel) = self.parcels.get_mut(key) else { return };
        let next = parcel.next();
        if following.iter().any(|digest| parcel.slots.get(&(next, *digest)).is_some_and(|slot| slot.recovering)) {
            return;
        }
        for &digest in following {
            if let Some(slot) = parcel.slots.get_mut(&(next, digest)).filter(|slot| slot.is_complete()) {
                slot.recovering = true;
                self.evictable.remove(&(*key, next, digest));
                let segments = slot.held.values().map(|held| VerifiedSegment::clone(&held.segment)).collect();
                actions.push(Action::Recover(RecoverJob { parcel: *key, stripe: next, digest, segments }));
                return;
            }
        }
        let k = parcel.tip.as_ref().map(|tip| &tip.header).or(parcel.slots.values().next().map(|slot| &slot.header));
        let Some(k) = k.map(|header| header.core.profile.k()) else { return };
        let held = following.iter().filter_map(|digest| parcel.slots.get(&(next, *digest))).map(|s| s.held.len()).max();
        let deferred = self.book.untried(key, next);
        if !deferred.is_empty() && held.unwrap_or(0) + deferred.len() >= k {
            self.book.read_all(&deferred, now);
            actions.push(Action::Reread(deferred));
        }
    }

    /// Takes the result of a recovery.
    pub fn recovered(&mut self, recovered: Recovered, now: Time) -> Vec<Action> {
        let Recovered { parcel: key, stripe, digest, result } = recovered;
        let mut actions = Vec::new();
        let Some(parcel) = self.parcels.get_mut(&key) else { return actions };
        match parcel.slots.get_mut(&(stripe, digest)) {
            Some(slot) if slot.recovering => slot.recovering = false,
            _ => return actions,
        }
        (parcel.touched, parcel.moved) = (now, now);
        match result {
            Ok(sealed) => {
                let since = parcel.since;
                if let Some(header) = self.take_tip(&key, stripe, digest) {
                    actions.push(Action::Deliver(Delivery { parcel: key, header, digest, sealed, since }));
                }
                self.advance_past(&key, stripe, now, &mut actions);
            }
            Err(error) => match error.refusal() {
                Some(reason) => {
                    self.take_tip(&key, stripe, digest);
                    actions.extend(self.refuse(&key, reason, now));
                }
                None => self.evict((key, stripe, digest), DeferReason::Local, now, &mut actions),
            },
        }
        self.reread_for_memory(now, &mut actions);
        actions
    }

    /// Makes this stripe the tip; its shards leave memory, their addresses wait for the parcel's end.
    fn take_tip(&mut self, key: &ParcelKey, stripe: u32, digest: Digest) -> Option<Arc<StripeHeader>> {
        self.evictable.remove(&(*key, stripe, digest));
        let parcel = self.parcels.get_mut(key)?;
        let slot = parcel.slots.remove(&(stripe, digest))?;
        for held in slot.held.values() {
            self.admission.give_back(&key.sender, held.cost);
        }
        let header = Arc::clone(&slot.header);
        parcel.hand_out(slot, digest);
        self.settle(key);
        Some(header)
    }

    /// After a stripe was handed out: other headers of it contradict the chain. Then on.
    fn advance_past(&mut self, key: &ParcelKey, stripe: u32, now: Time, actions: &mut Vec<Action>) {
        let stale: Vec<_> = match self.parcels.get(key) {
            Some(parcel) if parcel.is_whole() => parcel.slots.keys().copied().collect(),
            Some(parcel) => parcel.slots.keys().copied().take_while(|(index, _)| *index <= stripe).collect(),
            None => return,
        };
        for (index, digest) in stale {
            self.evict((*key, index, digest), DeferReason::Equivocation, now, actions);
        }
        self.advance(key, now, actions);
    }

    pub(super) fn reread_for_memory(&mut self, now: Time, actions: &mut Vec<Action>) {
        let again = self.book.for_memory(now, &self.admission);
        if !again.is_empty() {
            actions.push(Action::Reread(again));
        }
    }
}

enum Judgement {
    Refused(RefusalReason),
    Deferred(DeferReason),
}
