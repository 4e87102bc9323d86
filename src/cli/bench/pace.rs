//! Says when sends are due. A thread of its own, because timers of the runtime are whole milliseconds and come when the
//! runtime has time, which is what is measured.
//!
//! Owns that thread. Must not wait for senders: due is due.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::schedule::Schedule;
use crate::cli::CliError;
use crate::seams::Clock;

/// The longest sleep: the pace notices that it is to end.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// The thread that says when sends are due; it ends with this value.
pub(super) struct Pace {
    stop: Arc<AtomicBool>,
    due: Arc<AtomicU64>,
}

impl Pace {
    /// Begins at `began` of this clock's monotonic time. Each sender has its own stream of numbers of sends that are due;
    /// one that falls behind finds them waiting, eight bytes each. The streams end with the schedule, or when it is stopped.
    pub(super) fn start(
        schedule: Schedule,
        began: Duration,
        clock: Arc<dyn Clock>,
        senders: Vec<mpsc::UnboundedSender<u64>>,
    ) -> Result<Self, CliError> {
        let pace = Self { stop: Arc::default(), due: Arc::default() };
        let (stop, due) = (pace.stop.clone(), pace.due.clone());
        let run = move || {
            for send in 0..schedule.total() {
                let at = began.saturating_add(schedule.due(send));
                loop {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let left = at.saturating_sub(clock.monotonic());
                    if left.is_zero() {
                        break;
                    }
                    std::thread::sleep(left.min(LONGEST_SLEEP));
                }
                due.store(send + 1, Ordering::Relaxed);
                let sender = usize::try_from(schedule.sender(send)).ok().and_then(|at| senders.get(at));
                if let Some(sender) = sender {
                    // A sender that has failed takes no more; the run says why.
                    let _ = sender.send(send);
                }
            }
        };
        std::thread::Builder::new()
            .name("bench-pace".to_owned())
            .spawn(run)
            .map_err(|error| CliError::failed(format!("starting a thread: {error}")))?;
        Ok(pace)
    }

    /// How many sends have become due.
    pub(super) fn due(&self) -> u64 {
        self.due.load(Ordering::Relaxed)
    }

    /// Nothing becomes due any more.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.stop();
    }
}
