//! The seams: time, randomness, disk, blocking work and connections. Production has one implementation of each; tests
//! and simulation have the other. Nothing else in Sealcast asks the machine for these.
//!
//! Owns the traits and both implementations. Must not know what the bytes mean.

mod clock;
mod disk;
pub mod hardening;
mod hooked;
mod net;
mod random;
mod work;

pub use clock::{Clock, ManualClock, SystemClock};
pub use disk::{Disk, DiskFile, RealDisk};
pub use hooked::{DiskHook, DiskStep, HookedDisk};
pub use net::{BoxFuture, Connection, Listener, Network, RealNetwork};
pub use random::{OsRandomness, Randomness, RandomnessError, SeededRandomness};
pub use work::{InlineWork, PoolWork, Work, WorkLost};

use std::sync::Arc;

/// One of each, handed down from `main` (or a test) to whoever needs it. Cheap to clone.
#[derive(Clone)]
pub struct Seams {
    /// Wall clock and monotonic clock.
    pub clock: Arc<dyn Clock>,
    /// The operating system's randomness.
    pub randomness: Arc<dyn Randomness>,
    /// Files and folders.
    pub disk: Arc<dyn Disk>,
    /// Where long computations run.
    pub work: Arc<dyn Work>,
    /// TCP.
    pub network: Arc<dyn Network>,
}

impl Seams {
    /// The real machine.
    pub fn real() -> Self {
        Self {
            clock: Arc::new(SystemClock::new()),
            randomness: Arc::new(OsRandomness),
            disk: Arc::new(RealDisk),
            work: Arc::new(PoolWork),
            network: Arc::new(RealNetwork),
        }
    }
}
