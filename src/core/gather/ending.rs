//! How gathering ends or waits: refusals, ends, expiry, deferrals of whole parcels, and what time alone calls for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::action::{Action, Equivocation, Missing};
use super::deferred::{Entry, Whose};
use super::endings::Ended;
use super::parcel::{Parcel, Slot};
use super::reason::DeferReason;
use super::reassembler::Reassembler;
use super::{Address, Addresses, ParcelKey};
use crate::core::directory::Directory;
use crate::core::id::{Digest, RefusalReason, Time, VerifyingKeyBytes};
use crate::core::split::segment::VerifiedSegment;

/// A parcel of which nothing came for this long is asked for, and waits outside memory.
pub const STALLED_AFTER: Duration = Duration::from_secs(10);

/// A parcel that is opened in part and has not moved on for this long is let go of: what was opened is dropped, and its
/// records are read again when anything new of it comes, or by and by. Long enough that what was put off for want of memory
/// is tried some times before.
pub const LET_GO_AFTER: Duration = Duration::from_secs(600);

/// The sender is asked again for the same parcel after this long.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// A segment of a parcel that ended this long ago was sent again: what is merely late comes sooner.
pub const REPEATED_AFTER: Duration = Duration::from_secs(10);

impl Reassembler {
    /// The driver found, when it opened the parcel, that its bytes must be refused. [`Action::Refuse`] follows as soon as D
    /// is known, which may need headers that are still to come.
    pub fn refuse(&mut self, key: &ParcelKey, reason: RefusalReason, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(parcel) = self.parcels.get_mut(key) else { return actions };
        parcel.refused = Some(reason);
        for ((stripe, digest), slot) in &mut parcel.slots {
            slot.recovering = false;
            self.evictable.remove(&(*key, *stripe, *digest));
            for held in std::mem::take(&mut slot.held).into_values() {
                self.admission.give_back(&key.sender, held.cost);
            }
        }
        self.advance(key, now, &mut actions);
        self.reread_for_memory(now, &mut actions);
        actions
    }

    /// The parcel that is D is durable in the store as staged or decided (and held, if committed): its addresses pass, and
    /// later segments of it pass at once. Also for parcels that the store knows from before.
    pub fn end(&mut self, key: &ParcelKey, digest: Digest, expiry: Time, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        self.finish(key, Ended::new(digest, expiry, false, now), now, &mut actions);
        actions
    }

    pub(super) fn finish(&mut self, key: &ParcelKey, ended: Ended, now: Time, actions: &mut Vec<Action>) {
        // Records that contradict what is refused are not refused with it (R1): they are gathered now.
        let rivals = if ended.refused { self.book.of_reason(key, DeferReason::Equivocation) } else { Vec::new() };
        if self.group_time <= ended.expiry && rivals.is_empty() {
            self.ended.insert(*key, ended);
        }
        let passed = self.forget(key, &rivals);
        if !passed.is_empty() {
            actions.push(Action::Pass(passed));
        }
        if !rivals.is_empty() {
            self.book.read_all(&rivals, now);
            actions.push(Action::Reread(rivals));
        }
        self.reread_for_memory(now, actions);
    }

    /// Whether nothing of this segment is wanted, because its parcel ended. A last header that is not D contradicts it: after
    /// a refusal that other parcel is gathered, else it is only told of, once (R1).
    pub(super) fn is_of_an_end(&mut self, segment: &VerifiedSegment, now: Time, actions: &mut Vec<Action>) -> bool {
        let header = segment.header();
        let key = ParcelKey::of(&header.core);
        let Some(ended) = self.ended.get_mut(&key) else { return false };
        if now >= ended.quiet_until {
            ended.quiet_until = now.after(REPEATED_AFTER);
            actions.push(Action::Repeated(key));
        }
        if !header.last || segment.digest() == ended.digest {
            return true;
        }
        let (first, second) = (ended.digest, segment.digest());
        if !std::mem::replace(&mut ended.contradicted, true) {
            actions.push(Action::Equivocation(Equivocation { parcel: key, stripe: header.stripe, first, second }));
        }
        let gathered = ended.refused && self.group_time <= header.core.expiry;
        if gathered {
            self.ended.remove(&key);
        }
        !gathered
    }

    /// Drops everything about a parcel and gives all its addresses, deferred ones too, but for these.
    fn forget(&mut self, key: &ParcelKey, but: &[Address]) -> Addresses {
        let mut passed: Addresses = self.book.remove_parcel(key, but).into_iter().collect();
        if let Some(parcel) = self.remove(key) {
            self.admission.end_turn(&key.sender);
            passed.extend(&parcel.addresses);
            passed.extend(&parcel.noted);
        }
        passed
    }

    fn remove(&mut self, key: &ParcelKey) -> Option<Parcel> {
        let parcel = self.parcels.remove(key)?;
        self.open_by_expiry.remove(&(parcel.expiry, *key));
        self.admission.give_back(&key.sender, parcel.charged);
        self.admission.note(&key.sender, parcel.noted_charged, 0);
        for ((stripe, digest), slot) in &parcel.slots {
            self.evictable.remove(&(*key, *stripe, *digest));
            slot.held.values().for_each(|held| self.admission.give_back(&key.sender, held.cost));
        }
        Some(parcel)
    }

    /// A fault of this node keeps the parcel from being staged now (R21): everything of it is deferred and gathered again.
    /// The driver has dropped what it opened.
    pub fn defer_parcel(&mut self, key: &ParcelKey, reason: DeferReason, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        self.drop_parcel(key, reason, now, &mut actions);
        self.admission.end_turn(&key.sender);
        self.reread_for_memory(now, &mut actions);
        actions
    }

    /// Forgets a parcel and defers all of its addresses.
    pub(super) fn drop_parcel(&mut self, key: &ParcelKey, reason: DeferReason, now: Time, actions: &mut Vec<Action>) {
        let Some(parcel) = self.remove(key) else { return };
        let (of, cost) = (Some((*key, 0)), parcel.segment_cost());
        let stalls = parcel.stalls;
        for at in parcel.addresses.iter().chain(parcel.noted.iter()) {
            let entry = Entry { reason, whose: Whose::Sender(key.sender), of, cost, tried: false, stalls };
            self.defer(at, entry, now, actions);
        }
    }

    /// Addresses that the store has noted from before: due at once.
    pub fn restore(&mut self, notes: impl IntoIterator<Item = (Address, DeferReason)>) {
        for (at, reason) in notes {
            self.book.restore(at, reason);
        }
    }

    /// The reason has ended: what was deferred for it is read again.
    pub fn lifted(&mut self, reason: DeferReason, now: Time) -> Vec<Action> {
        match self.book.lifted(reason, now) {
            again if again.is_empty() => Vec::new(),
            again => vec![Action::Reread(again)],
        }
    }

    /// Another directory is in force: records of senders and keys that were unknown are read again.
    pub fn set_directory(&mut self, directory: Arc<Directory>, now: Time) -> Vec<Action> {
        self.directory = directory;
        let mut actions = self.lifted(DeferReason::UnknownSender, now);
        actions.extend(self.lifted(DeferReason::KeyMissing, now));
        actions.extend(self.lifted(DeferReason::DirectoryEnded, now));
        actions
    }

    /// Group time has moved on: parcels past their expiry are dropped.
    pub fn set_group_time(&mut self, group_time: Time, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        self.group_time = self.group_time.max(group_time);
        while let Some(&(expiry, key)) = self.open_by_expiry.first().filter(|(expiry, _)| *expiry < self.group_time) {
            self.open_by_expiry.remove(&(expiry, key));
            actions.push(Action::Abandon { parcel: key, because: None });
            let passed = self.forget(&key, &[]);
            if !passed.is_empty() {
                actions.push(Action::Pass(passed));
            }
        }
        self.ended.expire(self.group_time);
        if !actions.is_empty() {
            self.reread_for_memory(now, &mut actions);
        }
        actions
    }

    /// What the node's wall clock says: it only tells which ids are far ahead.
    pub fn set_wall(&mut self, wall: Time) {
        self.wall = wall;
    }

    /// Nothing comes of an [`Action::Reread`]: these are tried again at this time, else when the usual time has passed.
    pub fn not_read(&mut self, addresses: &[Address], at_time: Option<Time>) {
        self.book.put_back(addresses, at_time);
    }

    /// A partition is not the one that was read (R17): what its offsets stood for is forgotten, so that no parcel's end
    /// passes, and no note names, what lies there now. The driver has set its cursor back; [`Action::Pass`] removes notes.
    /// What was handed out stays so; what is still there is read again.
    pub fn partition_restarted(&mut self, partition: i32, now: Time) -> Vec<Action> {
        let mut gone: Addresses = self.book.remove_partition(partition).into_iter().collect();
        let keys: Vec<ParcelKey> = self.parcels.keys().copied().collect();
        for key in keys {
            let Some(parcel) = self.parcels.get_mut(&key) else { continue };
            gone.extend(&parcel.addresses.remove_partition(partition));
            gone.extend(&parcel.noted.remove_partition(partition));
            parcel.unsee();
            let refused = parcel.refused.is_some();
            let waits_for_d = |slot: &Slot| refused || slot.refused.is_some();
            for ((stripe, digest), slot) in &mut parcel.slots {
                for held in slot.held.values_mut().filter(|held| held.at.is_some_and(|at| at.partition == partition)) {
                    held.at = None;
                }
                if slot.recovering {
                    continue;
                }
                for (_, held) in slot.held.extract_if(.., |_, held| held.at.is_none()) {
                    self.admission.give_back(&key.sender, held.cost);
                }
                if slot.held.is_empty() {
                    self.evictable.remove(&(key, *stripe, *digest));
                }
            }
            parcel.slots.retain(|_, slot| waits_for_d(slot) || slot.recovering || !slot.held.is_empty());
            self.settle(&key);
        }
        let mut actions = Vec::new();
        if !gone.is_empty() {
            actions.push(Action::Pass(gone));
        }
        self.reread_for_memory(now, &mut actions);
        actions
    }

    /// What time alone calls for; to be called about every second. Records deferred for [`super::deferred::READ_AGAIN_AFTER`]
    /// are read again. Parcels of which nothing came for [`STALLED_AFTER`] are asked for, leave memory, and have their
    /// addresses noted, so that no cursor waits for them; those that have not moved on for [`LET_GO_AFTER`] are let go of.
    pub fn due(&mut self, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        let let_go: Vec<ParcelKey> = self
            .parcels
            .iter()
            .filter(|(_, parcel)| parcel.is_half_opened() && now.since(parcel.moved) >= LET_GO_AFTER)
            .filter(|(_, parcel)| parcel.can_be_dropped())
            .map(|(key, _)| *key)
            .collect();
        for key in let_go {
            actions.push(Action::Abandon { parcel: key, because: Some(DeferReason::Stalled) });
            let deferred = self.book.remove_parcel(&key, &[]);
            if let Some(parcel) = self.parcels.get_mut(&key) {
                parcel.stalls = parcel.stalls.saturating_add(1);
                parcel.noted.extend(&deferred.into_iter().collect());
            }
            self.drop_parcel(&key, DeferReason::Stalled, now, &mut actions);
            self.admission.end_turn(&key.sender);
        }
        let stalled: Vec<ParcelKey> = self
            .parcels
            .iter()
            .filter(|(_, parcel)| !parcel.is_whole() && now.since(parcel.touched) >= STALLED_AFTER)
            .filter(|(_, parcel)| parcel.slots.values().all(|slot| !slot.recovering))
            .map(|(key, _)| *key)
            .collect();
        for key in stalled {
            self.ask_for(&key, now, &mut actions);
            self.park(&key, now, &mut actions);
            self.admission.end_turn(&key.sender);
        }
        let due = self.book.due(now);
        if !due.is_empty() {
            actions.push(Action::Reread(due));
        }
        self.reread_for_memory(now, &mut actions);
        actions
    }

    fn ask_for(&mut self, key: &ParcelKey, now: Time, actions: &mut Vec<Action>) {
        let Some(parcel) = self.parcels.get_mut(key) else { return };
        if parcel.asked.is_some_and(|asked| now.since(asked) < ASK_AGAIN_AFTER) {
            return;
        }
        parcel.asked = Some(now);
        let stripe = parcel.next();
        let (following, _) = parcel.next_headers();
        let held = following
            .iter()
            .filter_map(|digest| parcel.slots.get(&(stripe, *digest)))
            .flat_map(|slot| slot.held.keys().copied())
            .collect::<BTreeSet<_>>();
        actions.push(Action::Missing(Missing { parcel: *key, stripe, held: held.into_iter().collect() }));
    }

    fn park(&mut self, key: &ParcelKey, now: Time, actions: &mut Vec<Action>) {
        let slots: Vec<_> = match self.parcels.get(key) {
            Some(parcel) if parcel.refused.is_none() => {
                parcel.slots.iter().filter(|(_, slot)| slot.refused.is_none()).map(|(place, _)| *place).collect()
            }
            _ => Vec::new(),
        };
        for (stripe, digest) in slots {
            self.evict((*key, stripe, digest), DeferReason::Stalled, now, actions);
        }
        // What was handed out stays handed out; without that, nothing of it needs to stay in memory.
        if self.parcels.get(key).is_some_and(|parcel| parcel.tip.is_none() && parcel.slots.is_empty()) {
            self.drop_parcel(key, DeferReason::Stalled, now, actions);
            return;
        }
        let deferred = self.admission.caps().deferred;
        let noted = self.admission.noted(&key.sender) + self.book.count(&key.sender);
        let Some(parcel) = self.parcels.get_mut(key) else { return };
        // Of more than may be noted the cursors wait until it goes on, ends, or is let go of.
        if !parcel.addresses.is_empty() && noted + parcel.addresses.len() <= deferred {
            let addresses = std::mem::take(&mut parcel.addresses);
            parcel.noted.extend(&addresses);
            actions.push(Action::Defer { addresses, reason: DeferReason::Stalled });
        }
        self.settle(key);
    }

    /// Bytes held half-gathered.
    pub fn held_bytes(&self) -> usize {
        self.admission.total()
    }

    /// Bytes held for one sender.
    pub fn held_bytes_of(&self, sender: &VerifyingKeyBytes) -> usize {
        self.admission.held(sender)
    }

    /// Parcels being gathered.
    pub fn open_parcels(&self) -> usize {
        self.parcels.len()
    }

    /// Whether nothing of this parcel is wanted any more.
    pub fn has_ended(&self, key: &ParcelKey) -> bool {
        self.ended.contains(key)
    }

    /// Deferred addresses.
    pub fn deferred(&self) -> usize {
        self.book.len()
    }

    /// Deferred addresses of one sender.
    pub fn deferred_of(&self, sender: &VerifyingKeyBytes) -> usize {
        self.book.count(sender)
    }

    /// Deferred addresses for each reason.
    pub fn deferred_by_reason(&self) -> BTreeMap<DeferReason, usize> {
        self.book.reasons()
    }

    /// Addresses that went because their sender's bound was reached, since the start.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }
}
