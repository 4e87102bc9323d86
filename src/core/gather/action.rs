//! What the reassembler tells its driver, and the one job whose result comes back.

use std::sync::Arc;

use bytes::Bytes;

use super::reason::DeferReason;
use super::{Address, Addresses, ParcelKey};
use crate::core::id::{Digest, RefusalReason, Time};
use crate::core::split::header::StripeHeader;
use crate::core::split::segment::VerifiedSegment;
use crate::core::split::stripe::{self, RecoverError};

/// k shards of the next stripe of a parcel: run it where blocking work runs, then hand [`Recovered`] back.
#[derive(Debug)]
pub struct RecoverJob {
    pub(super) parcel: ParcelKey,
    pub(super) stripe: u32,
    pub(super) digest: Digest,
    pub(super) segments: Vec<VerifiedSegment>,
}

impl RecoverJob {
    /// Which parcel it is for: jobs of different parcels may run side by side.
    pub fn parcel(&self) -> ParcelKey {
        self.parcel
    }

    /// Bytes of memory that running it takes beside the shards that it was given: all n shards, the data among them.
    pub fn bytes(&self) -> usize {
        let of = |segment: &VerifiedSegment| segment.header().core.profile.n() * segment.header().shard_bytes();
        self.segments.first().map_or(0, of)
    }

    /// Whether a data shard is missing, so that parity stands in for it.
    pub fn needs_parity(&self) -> bool {
        self.segments.iter().any(|segment| usize::from(segment.index()) >= segment.header().core.profile.k())
    }

    /// Rebuilds all n shards, recomputes the root and checks the padding (R2).
    pub fn run(self) -> Recovered {
        let Self { parcel, stripe, digest, segments } = self;
        Recovered { parcel, stripe, digest, result: stripe::recover(&segments) }
    }
}

/// The result of a [`RecoverJob`].
#[derive(Debug)]
pub struct Recovered {
    pub(super) parcel: ParcelKey,
    pub(super) stripe: u32,
    pub(super) digest: Digest,
    pub(super) result: Result<Bytes, RecoverError>,
}

/// A stripe's sealed bytes, in order.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Whose.
    pub parcel: ParcelKey,
    /// The stripe's header; its `last` ends the parcel, its core is that of all stripes.
    pub header: Arc<StripeHeader>,
    /// The header's digest: D, when it is the last.
    pub digest: Digest,
    /// The sealed bytes, without padding.
    pub sealed: Bytes,
    /// When the parcel's first segment came, by the `now` of its call, which is no wall clock; `None` when that is not known, because something of
    /// the parcel had come before and was put off.
    pub since: Option<Time>,
}

/// A parcel refused by its own bytes, once its D is known (R22). To be made durable, then published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Which parcel.
    pub parcel: ParcelKey,
    /// D.
    pub digest: Digest,
    /// Why.
    pub reason: RefusalReason,
    /// When nobody needs to remember it any more.
    pub expiry: Time,
}

/// What a parcel waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Which parcel.
    pub parcel: ParcelKey,
    /// The stripe to hand out next.
    pub stripe: u32,
    /// The shards of it that are here or deferred, ascending; of a deferred one the index is not known.
    pub held: Vec<u16>,
}

/// Two signed headers that cannot both be the parcel's (R1): raise an alarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Equivocation {
    /// Which parcel.
    pub parcel: ParcelKey,
    /// Which stripe.
    pub stripe: u32,
    /// The header that was there first: of the same stripe, or the end of the chain that it does not follow.
    pub first: Digest,
    /// The other.
    pub second: Digest,
}

/// What the driver is to do, in this order.
#[derive(Debug)]
pub enum Action {
    /// Run the job in blocking work and hand the result back.
    Recover(RecoverJob),
    /// Open these bytes; after the last, stage the parcel and say `Reassembler::end`, or `Reassembler::refuse`.
    Deliver(Delivery),
    /// Make the refusal durable and publish it.
    Refuse(Refused),
    /// Drop what was opened of this parcel.
    Abandon {
        /// Which.
        parcel: ParcelKey,
        /// It makes room for earlier ones and is gathered again later; `None`: it expired.
        because: Option<DeferReason>,
    },
    /// Note these addresses durably, with the reason; only then may their cursors pass.
    Defer {
        /// Which.
        addresses: Addresses,
        /// Why.
        reason: DeferReason,
    },
    /// These are done: remove their notes, pass them at their cursors.
    Pass(Addresses),
    /// Read these again and hand the records to the gate.
    Reread(Vec<Address>),
    /// A segment came of a parcel that ended [`super::REPEATED_AFTER`] ago or longer: whoever sends it again has not heard
    /// what became of it. Said at most once in that time for a parcel.
    Repeated(ParcelKey),
    /// Ask the sender for more of this parcel (signed and rate-limited).
    Missing(Missing),
    /// Raise the alarm.
    Equivocation(Equivocation),
}
