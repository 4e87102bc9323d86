//! How many transactions of a sender may be here without a fate, and which parcel waits because there are more.
//!
//! Owns the count of those that are on their way into the store. Must not open anything, nor put a parcel off itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::core::decide::{Manifest, View, expired};
use crate::core::id::SenderName;
use crate::node::group::GroupContext;
use crate::store::StoreError;

/// How many transactions of each sender are on their way into the store: they are opened and no rows yet, and count as
/// undecided all the same.
#[derive(Debug, Default)]
pub struct OnTheWay(Mutex<BTreeMap<SenderName, usize>>);

/// Some of them, as long as it lives.
pub(super) struct Counted {
    all: Arc<OnTheWay>,
    sender: SenderName,
    count: usize,
}

impl OnTheWay {
    fn senders(&self) -> MutexGuard<'_, BTreeMap<SenderName, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds so many of a sender: how many it has now.
    pub(super) fn add(self: &Arc<Self>, sender: &SenderName, count: usize) -> (Counted, usize) {
        let mut senders = self.senders();
        let of = senders.entry(sender.clone()).or_default();
        *of += count;
        (Counted { all: self.clone(), sender: sender.clone(), count }, *of)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut senders = self.all.senders();
        if let Some(of) = senders.get_mut(&self.sender) {
            *of = of.saturating_sub(self.count);
            if *of == 0 {
                senders.remove(&self.sender);
            }
        }
    }
}

/// Why a parcel must wait until others of its sender have their fates; `None` when it may be staged. Half of the room is for
/// parcels in which something can be decided at once: what they release makes room. `coming`: the sender's transactions on
/// their way into the store, this parcel's among them.
pub(super) fn too_many(
    context: &GroupContext,
    manifest: &Manifest,
    coming: usize,
) -> Result<Option<String>, StoreError> {
    let most = context.undecided_per_sender;
    if context.store.progress().borrow().counts.undecided.saturating_add(coming as u64) <= most as u64 {
        return Ok(None);
    }
    let snapshot = context.store.snapshot()?;
    let there = snapshot.undecided_of(&manifest.sender, 2 * most + 1)?;
    if there + coming <= most {
        return Ok(None);
    }
    let cause = format!("{there} transactions of {} have no fate yet: more of them wait", manifest.sender);
    if there + coming > 2 * most {
        return Ok(Some(cause));
    }
    for item in &manifest.items {
        let Some(before) = &item.predecessor else { return Ok(None) };
        let gone = expired(snapshot.group_time(), before.deadline);
        if gone || snapshot.transaction(&manifest.sender, before.transaction)?.is_some() {
            return Ok(None);
        }
    }
    Ok(Some(cause))
}
