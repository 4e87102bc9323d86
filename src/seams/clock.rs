//! Time: what the wall says, what has passed, and waiting.

use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::core::id::Time;

/// Both clocks of a machine.
pub trait Clock: Send + Sync + 'static {
    /// Wall time; it may jump either way.
    fn now(&self) -> Time;
    /// Time since some fixed moment of this process; it never goes back.
    fn monotonic(&self) -> Duration;
    /// Completes after `duration` of monotonic time.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// The machine's clocks; sleeping is tokio's.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Counts monotonic time from now.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Time {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A clock that stands until it is moved. Sleeping is tokio's, for use with its paused time.
#[derive(Debug, Default)]
pub struct ManualClock {
    now: Mutex<(Time, Duration)>,
}

impl ManualClock {
    /// Stands at this wall time; monotonic time is zero.
    pub fn new(now: Time) -> Self {
        Self { now: Mutex::new((now, Duration::ZERO)) }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut now = self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *now = (now.0.after(by), now.1.saturating_add(by));
    }

    /// Sets the wall clock alone, as an operator or a bad time server would.
    pub fn set_wall(&self, wall: Time) {
        self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0 = wall;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Time {
        self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0
    }

    fn monotonic(&self) -> Duration {
        self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(duration))
    }
}
