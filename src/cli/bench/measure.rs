//! What is measured: how long each stage took, counted from when a send was due and never from when it began, so that a
//! system that stalls shows it; how late sends began; what became of them.
//!
//! Owns the counting. Pure: no clock, no waiting; durations come in.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use super::timeline::Timeline;
use crate::cli::CliError;
use crate::cli::latency::Latency;
use crate::client::NodeTimes;
use crate::core::id::NodeName;

/// A stage whose time is measured, in the order of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// Sealed, split, and durable in the sender's outbox.
    Sealed,
    /// The brokers have it (R14).
    Accepted,
    /// Its first segment is at a majority of the nodes.
    Delivered,
    /// It is opened and durable on a majority of the nodes.
    Staged,
    /// The sender has counted a majority's receipts.
    Committed,
    /// It has those of all nodes.
    Complete,
}

impl Step {
    /// All of them.
    pub(super) const ALL: [Self; 6] =
        [Self::Sealed, Self::Accepted, Self::Delivered, Self::Staged, Self::Committed, Self::Complete];

    /// Its name in tables and objects.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Accepted => "accepted",
            Self::Delivered => "delivered",
            Self::Staged => "staged",
            Self::Committed => "committed",
            Self::Complete => "complete",
        }
    }
}

/// When a send was due and when it began, both counted from the beginning of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Begun {
    /// By the schedule; in a closed loop when it began.
    pub due: Duration,
    /// When it was given to the client that took it.
    pub began: Duration,
    /// Bytes of its payload.
    pub size: u64,
}

impl Begun {
    /// How late it began.
    pub(super) fn late(&self) -> Duration {
        self.began.saturating_sub(self.due)
    }

    /// Counted from when it was due: something that took so long from when it began.
    pub(super) fn since_due(&self, since_began: Duration) -> Duration {
        self.late().saturating_add(since_began)
    }
}

/// What became of a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Committed, and held by all nodes or not.
    Committed,
    /// Rejected by consensus.
    Rejected,
    /// Expired.
    Expired,
    /// Not known when the run ended.
    Unknown,
}

/// The time by which most nodes had reached something: the last of the fastest majority. `None` when too few know.
pub(super) fn majority(times: impl IntoIterator<Item = Option<Duration>>, voters: usize) -> Option<Duration> {
    let mut known: Vec<_> = times.into_iter().flatten().collect();
    known.sort_unstable();
    known.get(voters / 2).copied()
}

/// Between which bounds a node's clock stands against this machine's, in milliseconds ahead of it: what nodes say arrived can
/// neither have come before it was sent nor after its receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClockBounds {
    /// At least.
    pub least_ms: Option<i64>,
    /// At most.
    pub most_ms: Option<i64>,
}

/// What became of payloads of one size.
#[derive(Debug, Clone)]
pub(super) struct OfSize {
    /// Those that began.
    pub began: u64,
    /// Until they were committed.
    pub took: Latency,
    /// Those whose fate was not known when the run ended.
    pub unknown: u64,
}

/// Everything measured so far.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    steps: BTreeMap<Step, Latency>,
    late: Latency,
    /// Sends that began.
    pub began: u64,
    /// Of these, those that have ended.
    pub ended: u64,
    /// Committed ones.
    pub committed: u64,
    /// Payload bytes of these.
    pub bytes: u64,
    /// Rejected ones.
    pub rejected: u64,
    /// Expired ones.
    pub expired: u64,
    /// Those whose fate was not known when the run ended.
    pub unknown: u64,
    /// Times that a send was given back because window, outbox or disk were full.
    pub given_back: u64,
    /// When the last commit was known, counted from the beginning of the run.
    pub last_commit: Duration,
    clocks: BTreeMap<NodeName, ClockBounds>,
    sizes: BTreeMap<u64, OfSize>,
    timeline: Timeline,
}

impl Measured {
    /// Nothing yet. Errors: none that happens with bounds that are right.
    pub(super) fn new() -> Result<Self, CliError> {
        let latency = || Latency::new().ok_or_else(|| CliError::failed("the histogram's bounds are wrong"));
        let mut steps = BTreeMap::new();
        for step in Step::ALL {
            steps.insert(step, latency()?);
        }
        Ok(Self {
            steps,
            late: latency()?,
            began: 0,
            ended: 0,
            committed: 0,
            bytes: 0,
            rejected: 0,
            expired: 0,
            unknown: 0,
            given_back: 0,
            last_commit: Duration::ZERO,
            clocks: BTreeMap::new(),
            sizes: BTreeMap::new(),
            timeline: Timeline::new(),
        })
    }

    /// A send began.
    pub(super) fn begin(&mut self, begun: &Begun) {
        self.began += 1;
        self.late.record(begun.late());
        if let Some(of_size) = self.of_size(begun.size) {
            of_size.began += 1;
        }
        self.timeline.begin(begun.began);
    }

    /// A send reached a stage, so long after it was due.
    pub(super) fn reach(&mut self, step: Step, since_due: Duration) {
        if let Some(latency) = self.steps.get_mut(&step) {
            latency.record(since_due);
        }
    }

    /// A send that began was committed: the sender knew it so long after it began.
    pub(super) fn commit(&mut self, begun: &Begun, took: Duration) {
        let since_due = begun.since_due(took);
        self.committed += 1;
        self.bytes = self.bytes.saturating_add(begun.size);
        self.last_commit = self.last_commit.max(begun.began.saturating_add(took));
        self.reach(Step::Committed, since_due);
        self.timeline.commit(begun.due, since_due, begun.size);
        if let Some(of_size) = self.of_size(begun.size) {
            of_size.took.record(since_due);
        }
    }

    /// What a node says of a send, known here `known` after it began.
    pub(super) fn said(&mut self, node: &NodeName, times: &NodeTimes, known: Duration) {
        let Some(delivered) = times.delivered else { return };
        let said =
            [times.staged, times.committed, times.held].into_iter().try_fold(delivered, |sum, time| Some(sum + time?));
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let bounds = self.clocks.entry(node.clone()).or_insert(ClockBounds { least_ms: None, most_ms: None });
        // Both clocks are read in whole milliseconds: one on each side. A node whose clock is behind says zero; then only this
        // side of it is known.
        let most = millis(delivered) + 1;
        bounds.most_ms = Some(bounds.most_ms.map_or(most, |before| before.min(most)));
        if let Some(said) = said.filter(|_| !delivered.is_zero()) {
            let least = millis(said) - millis(known) - 2;
            bounds.least_ms = Some(bounds.least_ms.map_or(least, |before| before.max(least)));
        }
    }

    /// A send ended. One that was committed is counted by [`Self::commit`].
    pub(super) fn end(&mut self, begun: &Begun, ending: Ending) {
        self.ended += 1;
        match ending {
            Ending::Committed => {}
            Ending::Rejected => self.rejected += 1,
            Ending::Expired => self.expired += 1,
            Ending::Unknown => {
                self.unknown += 1;
                if let Some(of_size) = self.of_size(begun.size) {
                    of_size.unknown += 1;
                }
            }
        }
    }

    /// Sends that began and have no fate yet.
    pub(super) fn in_flight(&self) -> u64 {
        self.began.saturating_sub(self.committed + self.rejected + self.expired + self.unknown)
    }

    /// Commits a second from the beginning of the run to the last one; 0 without any.
    pub(super) fn rate(&self) -> f64 {
        if self.last_commit.is_zero() { 0.0 } else { self.committed as f64 / self.last_commit.as_secs_f64() }
    }

    /// How long a stage took.
    pub(super) fn step(&self, step: Step) -> Option<&Latency> {
        self.steps.get(&step)
    }

    fn of_size(&mut self, size: u64) -> Option<&mut OfSize> {
        // Bounds that are right for one are right for all.
        if let Entry::Vacant(entry) = self.sizes.entry(size) {
            entry.insert(OfSize { began: 0, took: Latency::new()?, unknown: 0 });
        }
        self.sizes.get_mut(&size)
    }

    /// How long sends took until they were committed, by payload bytes.
    pub(super) fn sizes(&self) -> &BTreeMap<u64, OfSize> {
        &self.sizes
    }

    /// How the run went over its time.
    pub(super) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// How late sends began.
    pub(super) fn late(&self) -> &Latency {
        &self.late
    }

    /// The nodes' clocks.
    pub(super) fn clocks(&self) -> &BTreeMap<NodeName, ClockBounds> {
        &self.clocks
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedule::Schedule;
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A transport that takes one send at a time, each for a millisecond, and nothing at all in the fourth second.
    fn through_a_stall(schedule: &Schedule) -> (Measured, Latency) {
        let (mut measured, mut from_began) = (Measured::new().unwrap(), Latency::new().unwrap());
        let mut free = Duration::ZERO;
        for send in 0..schedule.total() {
            let mut began = free.max(schedule.due(send));
            if began >= ms(3000) && began < ms(4000) {
                began = ms(4000);
            }
            free = began + ms(1);
            let begun = Begun { due: schedule.due(send), began, size: 10 };
            measured.begin(&begun);
            measured.commit(&begun, ms(1));
            measured.end(&begun, Ending::Committed);
            from_began.record(ms(1));
        }
        (measured, from_began)
    }

    #[test]
    fn a_stall_shows_in_every_send_that_was_due_in_it() {
        let schedule = Schedule::new(100.0, 1, Duration::ZERO, 1000);
        let (measured, from_began) = through_a_stall(&schedule);
        let committed = measured.step(Step::Committed).unwrap();
        // A hundred sends were due while it stood: of a thousand that is a tenth, and the first waited the whole second.
        assert_eq!(committed.count(), 1000);
        assert!((committed.max_ms() - 1001.0).abs() < 2.0, "{}", committed.max_ms());
        assert!(committed.quantile_ms(0.99) > 850.0, "{}", committed.quantile_ms(0.99));
        assert!(committed.quantile_ms(0.5) < 2.0);
        assert!(measured.late().quantile_ms(0.99) > 850.0);
        // Counted from the actual sends, nothing would have been seen of it.
        assert!(from_began.max_ms() < 2.0);
        assert_eq!((measured.began, measured.ended, measured.committed), (1000, 1000, 1000));
        assert_eq!((measured.last_commit, measured.bytes), (ms(9991), 10_000));
        assert_eq!(
            measured.sizes().iter().map(|(size, of)| (*size, of.took.count())).collect::<Vec<_>>(),
            [(10, 1000)]
        );
        assert_eq!(measured.timeline().spans().iter().map(|span| span.committed).sum::<u64>(), 1000);
    }

    #[test]
    fn a_majority_is_the_last_of_the_fastest_most() {
        let some = |millis: &[u64]| millis.iter().map(|at| Some(ms(*at))).collect::<Vec<_>>();
        assert_eq!(majority(some(&[30, 10, 20]), 3), Some(ms(20)));
        assert_eq!(majority(some(&[30, 10]), 3), Some(ms(30)));
        assert_eq!(majority([Some(ms(10)), None, None], 3), None, "one of three is no majority");
        assert_eq!(majority(some(&[40, 10, 30, 20]), 4), Some(ms(30)));
        assert_eq!(majority(some(&[5]), 1), Some(ms(5)));
    }

    #[test]
    fn clocks_stand_between_what_cannot_be() {
        let node: NodeName = "a".parse().unwrap();
        // The node is 500 ms ahead: what came after 4 ms is said to have come after 504.
        let said = |delivered: u64, rest: u64| NodeTimes {
            delivered: Some(ms(delivered)),
            staged: Some(ms(rest)),
            committed: Some(ms(0)),
            held: Some(ms(0)),
        };
        let mut measured = Measured::new().unwrap();
        measured.said(&node, &said(504, 10), ms(20));
        measured.said(&node, &said(510, 2), ms(13));
        let bounds = measured.clocks()[&node];
        assert_eq!((bounds.least_ms, bounds.most_ms), (Some(497), Some(505)));
        // One that is behind cannot say how much.
        let mut behind = Measured::new().unwrap();
        behind.said(&node, &said(0, 10), ms(20));
        assert_eq!(behind.clocks()[&node], ClockBounds { least_ms: None, most_ms: Some(1) });
    }

    #[test]
    fn what_became_of_sends_adds_up() {
        let mut measured = Measured::new().unwrap();
        let begun = Begun { due: ms(10), began: ms(15), size: 10 };
        for ending in [Ending::Committed, Ending::Rejected, Ending::Expired, Ending::Unknown, Ending::Unknown] {
            measured.begin(&begun);
            if ending == Ending::Committed {
                measured.commit(&begun, ms(7));
            }
            measured.end(&begun, ending);
        }
        let counted = (measured.committed, measured.rejected, measured.expired, measured.unknown);
        assert_eq!((measured.began, measured.ended, counted), (5, 5, (1, 1, 1, 2)));
        let of_size = &measured.sizes()[&10];
        assert_eq!((measured.in_flight(), of_size.began, of_size.unknown), (0, 5, 2));
        assert!((measured.rate() - 1.0 / 0.022).abs() < 1e-6, "{}", measured.rate());
        assert_eq!(measured.step(Step::Committed).unwrap().max_ms().round(), 12.0);
    }
}
