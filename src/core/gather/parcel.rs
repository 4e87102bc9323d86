//! One parcel as far as it was gathered: stripes kept apart by the digest of their header, the end of the chain that was
//! handed out, and the addresses that wait for the parcel's end.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Address, Addresses, ParcelKey};
use crate::core::id::{Digest, RefusalReason, Time};
use crate::core::limits;
use crate::core::split::header::{Core, StripeHeader};
use crate::core::split::segment::VerifiedSegment;

/// What a parcel costs beside its shards, in bytes: rounded up from the sizes of these types, and of the nodes of trees that
/// have room for eleven where one is.
const PARCEL_BYTES: usize = 1024;
/// What a stripe costs beside its shards, in bytes, likewise.
const SLOT_BYTES: usize = 1024;
/// What a run of addresses, or a stripe of which not all shards came, costs in bytes.
const RUN_BYTES: usize = 32;
/// What an address costs that waits: its part of an entry of the cursor, in bytes.
const ADDRESS_BYTES: usize = 2;
/// So many further copies of each shard wait, taken over all of them.
const COPIES: u64 = 2;

/// What a held segment costs beside its record, in bytes: its header is kept parsed.
const SEGMENT_BYTES: usize = 512;

/// What the half-opened bytes of a parcel cost, in bytes: buffers, the window of a decompression, an open file. At most a
/// [`LANES`]th of what one sender may hold.
const LANE_BYTES: usize = 256 * 1024;
/// So many parcels of one sender can be half-opened at least, whatever its cap.
const LANES: usize = 64;
/// What opening holds beside that counts at most this part of what one sender may hold, so that one parcel always goes on.
const OPENED_PART: usize = 4;
/// Below this cap of one sender they count nothing: there may be no more room than for one stripe.
const COUNTED_FROM: usize = 512 * 1024;

/// The most that taking this segment can cost, in bytes.
pub(super) fn cost_at_most(segment: &VerifiedSegment) -> usize {
    PARCEL_BYTES + SLOT_BYTES + 2 * RUN_BYTES + segment_cost(segment)
}

/// What holding this segment costs, in bytes.
pub(super) fn segment_cost(segment: &VerifiedSegment) -> usize {
    SEGMENT_BYTES + 2 * segment.header_bytes().len() + segment.shard().len()
}

/// A stripe under one signed header. Of one sender, the lowest comes first.
pub(super) type StripeKey = (ParcelKey, u32, Digest);

/// A segment in memory.
#[derive(Debug)]
pub(super) struct Held {
    /// Apart, so that a stripe of which few shards came keeps no room for many.
    pub segment: Box<VerifiedSegment>,
    /// Where it lies; `None` when its partition is another by now.
    pub at: Option<Address>,
    pub cost: usize,
}

/// A stripe that was not handed out yet, under one signed header.
#[derive(Debug)]
pub(super) struct Slot {
    pub header: Arc<StripeHeader>,
    pub held: BTreeMap<u16, Held>,
    /// The shards that came of it: those held, and those beyond k.
    pub seen: Shards,
    pub recovering: bool,
    /// Why the directory rules its core out, whatever its bytes: then no shard of it is needed, only its headers.
    pub refused: Option<RefusalReason>,
}

/// A set of shard indexes: a stripe has at most 64.
type Shards = u64;

const _: () = assert!(limits::DATA_SHARDS + limits::PARITY_SHARDS <= Shards::BITS as usize);

fn shard(index: u16) -> Shards {
    (1 as Shards).checked_shl(index.into()).unwrap_or(0)
}

fn all_shards(header: &StripeHeader) -> Shards {
    shard(u16::try_from(header.core.profile.n()).unwrap_or(u16::MAX)).wrapping_sub(1)
}

impl Slot {
    fn k(&self) -> usize {
        self.header.core.profile.k()
    }

    pub fn see(&mut self, index: u16) {
        self.seen |= shard(index);
    }

    /// Whether it has the shards that rebuild it.
    pub fn is_complete(&self) -> bool {
        self.held.len() >= self.k()
    }
}

/// The last stripe of the chain that was handed out (or, in a refused parcel, followed by its links alone).
#[derive(Debug, Clone)]
pub(super) struct Tip {
    pub header: Arc<StripeHeader>,
    pub digest: Digest,
}

/// Where a segment belongs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It adds a shard; `contradicts` names another header of the same stripe, if this one is new beside it.
    New { contradicts: Option<Digest> },
    /// Nothing needs it; its address waits for the parcel's end.
    Surplus,
    /// The same shard came before, and its address waits.
    Repeated,
    /// Its header contradicts those that are followed.
    Rival,
}

#[derive(Debug)]
pub(super) struct Parcel {
    pub expiry: Time,
    pub tip: Option<Tip>,
    pub slots: BTreeMap<(u32, Digest), Slot>,
    /// The shards that came of the stripes that were handed out, from `seen_from` on; of those that are not here all came.
    seen: BTreeMap<u32, Shards>,
    /// What came of the stripes before this one is not known any more.
    seen_from: u32,
    /// Wait for the parcel's end; cursors stand before them.
    pub addresses: Addresses,
    /// Wait for the parcel's end; durably noted, so cursors passed them.
    pub noted: Addresses,
    /// How many shards came, and how many further copies of them were made to wait.
    shards: u64,
    copies: u64,
    /// Why the chain that ends with the tip is refused.
    pub refused: Option<RefusalReason>,
    /// When its first segment came; `None` when something of it had come before and was put off.
    pub since: Option<Time>,
    /// When something last helped it on.
    pub touched: Time,
    /// When it last moved on: a stripe was handed out, or a segment came that was not read before.
    pub moved: Time,
    /// How often it was let go of, opened in part, because it stood still.
    pub stalls: u8,
    /// When the sender was last asked for what is missing.
    pub asked: Option<Time>,
    /// What its opening holds beside what every half-opened parcel does, in bytes, as far as the driver said.
    pub opened: usize,
    /// What admission counts for it beside held segments.
    pub charged: usize,
    /// The notes that admission counts for it.
    pub noted_charged: usize,
}

impl Parcel {
    pub fn new(expiry: Time, now: Time, since: Option<Time>) -> Self {
        Self {
            expiry,
            tip: None,
            slots: BTreeMap::new(),
            seen: BTreeMap::new(),
            seen_from: 0,
            addresses: Addresses::default(),
            noted: Addresses::default(),
            shards: 0,
            copies: 0,
            refused: None,
            since,
            touched: now,
            moved: now,
            stalls: 0,
            asked: None,
            opened: 0,
            charged: 0,
            noted_charged: 0,
        }
    }

    /// The index of the stripe to hand out next.
    pub fn next(&self) -> u32 {
        self.tip.as_ref().map_or(0, |tip| tip.header.stripe.saturating_add(1))
    }

    /// Whether every stripe was handed out.
    pub fn is_whole(&self) -> bool {
        self.tip.as_ref().is_some_and(|tip| tip.header.last)
    }

    /// Whether this header can be the next of the chain: right index, previous digest and core.
    pub fn follows(&self, header: &StripeHeader) -> bool {
        match &self.tip {
            None => header.stripe == 0,
            Some(tip) => {
                !tip.header.last
                    && header.stripe == self.next()
                    && header.previous == tip.digest
                    && header.core == tip.header.core
            }
        }
    }

    /// What was found of this core when its first segment came: `None` when none came, else why it is refused, if it is.
    /// Headers of other cores are judged for themselves, so that none is let in, or refused, for another (R22).
    pub fn judged(&self, core: &Core) -> Option<Option<RefusalReason>> {
        if self.tip.as_ref().is_some_and(|tip| tip.header.core == *core) {
            return Some(self.refused);
        }
        self.slots.values().find(|slot| slot.header.core == *core).map(|slot| slot.refused)
    }

    /// Among these headers of the next stripe, one to follow because the directory rules all of them out.
    pub fn ruled_out(&self, following: &[Digest]) -> Option<(Digest, RefusalReason)> {
        let refused = |digest: &Digest| self.slots.get(&(self.next(), *digest)).and_then(|slot| slot.refused);
        let first = following.first().and_then(|digest| Some((*digest, refused(digest)?)));
        first.filter(|_| following.iter().all(|digest| refused(digest).is_some()))
    }

    /// Where a segment belongs.
    pub fn place(&self, segment: &VerifiedSegment) -> Place {
        let header = segment.header();
        if self.tip.is_some() && header.stripe < self.next() {
            let at_tip = self.tip.as_ref().filter(|tip| tip.header.stripe == header.stripe);
            let first = self.seen.get(&header.stripe).is_some_and(|seen| seen & shard(segment.index()) == 0);
            return match at_tip {
                Some(tip) if tip.digest != segment.digest() => Place::Rival,
                _ if first || header.stripe < self.seen_from => Place::Surplus,
                _ => Place::Repeated,
            };
        }
        if self.is_whole() || (header.stripe == self.next() && !self.follows(header)) {
            return Place::Rival;
        }
        if let Some(slot) = self.slots.get(&(header.stripe, segment.digest())) {
            if slot.seen & shard(segment.index()) != 0 {
                return Place::Repeated;
            }
            let refused = self.refused.is_some() || slot.refused.is_some();
            let needless = slot.is_complete() || slot.held.contains_key(&segment.index()) || refused;
            return if needless { Place::Surplus } else { Place::New { contradicts: None } };
        }
        let mut others = self.headers_of(header.stripe);
        let contradicts = others.next();
        if contradicts.is_some() && others.count() + 2 > limits::HEADERS_PER_STRIPE {
            return Place::Rival;
        }
        Place::New { contradicts }
    }

    /// Whether this address waits for the parcel's end.
    pub fn waits(&self, at: Address) -> bool {
        self.addresses.contains(at) || self.noted.contains(at)
    }

    /// Makes a further copy of a shard wait too, if it lies in another partition than the first, as far as that is known: the
    /// domain of the first may be lost before the parcel's end, with the sender, and the copy is there for that (R14). Of
    /// copies that somebody replays, only so many wait as senders make when brokers are late or away. Whether it waits.
    /// It is `noted` when it was put off before.
    pub fn waits_too(&mut self, segment: &VerifiedSegment, at: Address, noted: bool) -> bool {
        let slot = self.slots.get(&(segment.header().stripe, segment.digest()));
        let first = slot.and_then(|slot| slot.held.get(&segment.index())).and_then(|held| held.at);
        if first.is_some_and(|first| first.partition == at.partition) || self.copies >= COPIES * self.shards {
            return false;
        }
        self.copies += 1;
        if noted {
            self.noted.insert(at)
        } else {
            self.addresses.insert(at)
        };
        true
    }

    /// This segment's address waits now.
    pub fn see(&mut self, segment: &VerifiedSegment) {
        self.shards += 1;
        let (stripe, index) = (segment.header().stripe, segment.index());
        if let Some(slot) = self.slots.get_mut(&(stripe, segment.digest())) {
            slot.see(index);
        } else if let Some(seen) = self.seen.get_mut(&stripe) {
            *seen |= shard(index);
            if *seen == all_shards(segment.header()) {
                self.seen.remove(&stripe);
            }
        }
    }

    /// Some of its addresses wait no more: no shard counts as one that came.
    pub fn unsee(&mut self) {
        self.seen.clear();
        self.seen_from = self.next();
        self.slots.values_mut().for_each(|slot| slot.seen = 0);
    }

    /// The next stripe is handed out, or followed by its link alone: it is the tip now.
    pub fn hand_out(&mut self, slot: Slot, digest: Digest) {
        if slot.seen != all_shards(&slot.header) {
            self.seen.insert(slot.header.stripe, slot.seen);
        }
        self.tip = Some(Tip { header: slot.header, digest });
    }

    fn headers_of(&self, stripe: u32) -> impl Iterator<Item = Digest> + '_ {
        self.slots.range((stripe, Digest([0; 32]))..=(stripe, Digest([0xff; 32]))).map(|((_, digest), _)| *digest)
    }

    /// The headers of the next stripe, those that follow the chain and those that do not.
    pub fn next_headers(&self) -> (Vec<Digest>, Vec<Digest>) {
        let next = self.next();
        self.headers_of(next)
            .partition(|digest| self.slots.get(&(next, *digest)).is_some_and(|slot| self.follows(&slot.header)))
    }

    /// What it costs beside held segments, in bytes, where one sender may hold so many.
    pub fn overhead(&self, sender_bytes: usize) -> usize {
        let counted = self.is_half_opened() && sender_bytes >= COUNTED_FROM;
        let opened = self.opened.min(sender_bytes / OPENED_PART);
        let lane = if counted { LANE_BYTES.min(sender_bytes / LANES) + opened } else { 0 };
        let runs = self.addresses.run_count() + self.noted.run_count();
        let addresses = ADDRESS_BYTES * self.addresses.len();
        PARCEL_BYTES + SLOT_BYTES * self.slots.len() + RUN_BYTES * (runs + self.seen.len()) + addresses + lane
    }

    /// Whether stripes were handed out and more are to come: the driver keeps what it opened.
    pub fn is_half_opened(&self) -> bool {
        self.refused.is_none() && self.tip.as_ref().is_some_and(|tip| !tip.header.last)
    }

    /// About what each of its segments costs when it is gathered again, in bytes.
    pub fn segment_cost(&self) -> usize {
        let header = self.tip.as_ref().map(|tip| &tip.header).or(self.slots.values().next().map(|slot| &slot.header));
        PARCEL_BYTES + SLOT_BYTES + SEGMENT_BYTES + header.map_or(0, |header| header.shard_bytes())
    }

    /// Whether it may be dropped for want of memory: nothing of it is being recovered or staged.
    pub fn can_be_dropped(&self) -> bool {
        !self.is_whole() && self.slots.values().all(|slot| !slot.recovering)
    }

    /// Whether nothing would be lost with it.
    pub fn is_void(&self) -> bool {
        self.tip.is_none()
            && self.refused.is_none()
            && self.slots.is_empty()
            && self.addresses.is_empty()
            && self.noted.is_empty()
    }
}
