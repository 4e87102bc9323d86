//! Complete stripes on their way to being recovered: those that were complete first come first, as far as their memory allows.
//!
//! Owns what waits and what the running ones take. Must not look at what comes of a stripe: the reassembler does.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::core::gather::{ParcelKey, RecoverJob, Recovered};
use crate::seams::Work;
use crate::telemetry::{Meter, names};

/// What stripes that are being recovered may take together beside their shards, in bytes; a larger one is recovered alone.
const RECOVERING_BYTES: usize = 8 * 1024 * 1024;

/// A stripe whose shards are no longer than this together is recovered at once, in some tens of microseconds.
const AT_ONCE_BYTES: usize = 128 * 1024;

/// A recovery that ended: what it took, and what came of it.
pub(super) struct Done(usize, Recovered);

/// The recoveries of one destination.
pub(super) struct Recoveries {
    work: Arc<dyn Work>,
    meter: Meter,
    /// Stripes that wait for memory to be recovered in.
    waiting: VecDeque<RecoverJob>,
    /// What those take that are being recovered, in bytes.
    taken: usize,
    done: mpsc::UnboundedSender<Done>,
}

impl Recoveries {
    /// None yet, and where those that ended come out; they go to [`Recoveries::ended`].
    pub(super) fn new(work: Arc<dyn Work>, meter: Meter) -> (Self, mpsc::UnboundedReceiver<Done>) {
        let (done, ended) = mpsc::unbounded_channel();
        (Self { work, meter, waiting: VecDeque::new(), taken: 0, done }, ended)
    }

    /// Whether all that came was started.
    pub(super) fn none_waits(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds a complete stripe.
    pub(super) fn add(&mut self, job: RecoverJob) {
        self.waiting.push_back(job);
    }

    /// Drops what waits of a parcel.
    pub(super) fn abandon(&mut self, key: &ParcelKey) {
        self.waiting.retain(|job| job.parcel() != *key);
    }

    /// What came of a recovery; its memory is there for others.
    pub(super) fn ended(&mut self, Done(bytes, result): Done) -> Recovered {
        self.taken -= bytes;
        result
    }

    /// Starts as many as their memory allows.
    pub(super) fn start(&mut self) {
        while let Some(job) = self.waiting.front() {
            let bytes = job.bytes();
            if self.taken > 0 && self.taken + bytes > RECOVERING_BYTES {
                return;
            }
            let Some(job) = self.waiting.pop_front() else { return };
            self.taken += bytes;
            if job.needs_parity() {
                self.meter.count(names::GATHER_STRIPES_RECOVERED, 1);
            }
            let done = self.done.clone();
            let job = move || {
                // The collector may have stopped meanwhile: then nobody needs the result.
                let _ = done.send(Done(bytes, job.run()));
            };
            // Handing so little to another thread would take about as long.
            if bytes <= AT_ONCE_BYTES { job() } else { self.work.start(Box::new(job)) }
        }
    }
}
