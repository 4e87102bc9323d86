//! Collecting segments until a stripe can be rebuilt, within limits, and knowing which offsets are done (design, section 6).
//! Must not do I/O: records, verified segments and time come in, actions go out.
//!
//! ```text
//! record -> Gate::check -> VerifiedSegment -> Reassembler::receive -> actions
//!                 |                                 Recover -> (blocking work) -> recovered -> Deliver, Refuse
//!                 '-> Skip: passed or deferred      Defer, Pass -> notes in the store, Cursor::pass
//! ```

mod action;
pub mod addresses;
pub mod admission;
pub mod cursor;
pub mod deferred;
mod ending;
mod endings;
pub mod gate;
mod parcel;
mod reason;
mod reassembler;
mod room;
mod skip;

pub use action::{Action, Delivery, Equivocation, Missing, RecoverJob, Recovered, Refused};
pub use addresses::Addresses;
pub use admission::Caps;
pub use cursor::{Cursor, Gap, Identity, Mark};
pub use ending::{ASK_AGAIN_AFTER, LET_GO_AFTER, REPEATED_AFTER, STALLED_AFTER};
pub use gate::{Gate, Skip};
pub use reason::DeferReason;
pub use reassembler::Reassembler;
pub use skip::{GapReason, SkipReason};

use crate::core::id::{Epoch, ParcelId, Time, VerifyingKeyBytes};
use crate::core::split::header::Core;

/// Where a record lies in a destination's segments topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Partition number, from 0.
    pub partition: i32,
    /// Offset in it, from 0.
    pub offset: i64,
}

/// What a node calls a parcel before it knows D: two senders, or two starts of one, never share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParcelKey {
    /// Who signed its headers.
    pub sender: VerifyingKeyBytes,
    /// Which start of the sender's client.
    pub epoch: Epoch,
    /// The parcel's id.
    pub parcel: ParcelId,
}

impl ParcelKey {
    /// The key of the parcel with this core.
    pub fn of(core: &Core) -> Self {
        Self { sender: core.sender, epoch: core.epoch, parcel: core.parcel }
    }

    /// Not above any key of this sender.
    fn first_of(sender: &VerifyingKeyBytes) -> Self {
        Self { sender: *sender, epoch: Epoch([0; 8]), parcel: ParcelId::from_parts(Time(0), [0; 10]) }
    }

    /// Not below any key of this sender.
    fn last_of(sender: &VerifyingKeyBytes) -> Self {
        let parcel = ParcelId::from_parts(Time((1 << 48) - 1), [0xff; 10]);
        Self { sender: *sender, epoch: Epoch([0xff; 8]), parcel }
    }
}
