//! Which shard goes to which partition, what to do about domains that are slow or away, and when a stripe is accepted
//! (R14, R15).
//!
//! [`Domains`] watches how the domains of one topic do; [`Placement`] follows one stripe. Must not talk to a transport:
//! partitions, acknowledgements and monotonic time come in, placements go out.

mod domains;
mod stripe;

pub use domains::{Domains, KnownPartition, SendToken, Standing};
pub use stripe::{Acceptance, Place, Placement};

use std::time::Duration;

/// A domain that is up is never called late while its acknowledgements take less than this: below it, the noise of one
/// machine's scheduler would be mistaken for slowness and copied around.
pub const NEVER_LATE: Duration = Duration::from_millis(20);

/// A domain whose usual time, or oldest record on its way, is longer than this is late while no other that is up has
/// acknowledged anything it could be compared with (R15).
pub const ALWAYS_LATE: Duration = Duration::from_millis(250);

/// How long a domain is left alone after a failure when it still seems up: well within the two seconds in which a
/// domain that is back must be used again (R15).
pub const LEFT_ALONE: Duration = Duration::from_secs(1);

/// Away for longer than this, what a domain acknowledged is no longer counted on, and undecided stripes are topped up
/// (R15).
pub const GONE: Duration = Duration::from_secs(10);
