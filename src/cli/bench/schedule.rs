//! When sends are due: fixed before the run begins and moved by nothing that happens in it (an open loop), or as soon as an
//! earlier one has ended (a closed loop).
//!
//! Owns the arithmetic of due times. Pure: no clock, no waiting.

use std::time::Duration;

/// When sends are due, counted from the beginning of the run, and who sends them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Schedule {
    rate: f64,
    senders: u64,
    warm_up: u64,
    total: u64,
}

impl Schedule {
    /// `rate` sends a second (above 0) over all `senders` (at least 1): as many as fall into `warm_up`, and then `measured`.
    pub(super) fn new(rate: f64, senders: u64, warm_up: Duration, measured: u64) -> Self {
        let warm_up = sends_in(rate, warm_up);
        Self { rate, senders: senders.max(1), warm_up, total: warm_up.saturating_add(measured) }
    }

    /// All sends, warm-up included.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Whether this send counts, or only warms up.
    pub(super) fn is_measured(&self, send: u64) -> bool {
        send >= self.warm_up
    }

    /// Sends that warm up.
    pub(super) fn warm_up(&self) -> u64 {
        self.warm_up
    }

    /// When a send is due.
    pub(super) fn due(&self, send: u64) -> Duration {
        // A double keeps microseconds over centuries; a rate that never comes to the send waits as long as there is time.
        Duration::try_from_secs_f64(send as f64 / self.rate).unwrap_or(Duration::MAX)
    }

    /// How many sends are due before then.
    pub(super) fn before(&self, time: Duration) -> u64 {
        sends_in(self.rate, time).min(self.total)
    }

    /// Sends a second.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// When the first send is due that counts.
    pub(super) fn begins(&self) -> Duration {
        self.due(self.warm_up)
    }

    /// When the last send is due.
    pub(super) fn ends(&self) -> Duration {
        self.due(self.total.saturating_sub(1))
    }

    /// Which sender a send is for: in turn, so that each sends at even intervals.
    pub(super) fn sender(&self, send: u64) -> u64 {
        send % self.senders
    }
}

/// A closed loop: as many sends as may be in flight, and the next as soon as one of them is committed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Closed {
    /// Sends in flight, over all senders.
    pub in_flight: u64,
    /// What begins before this only warms up.
    pub warm_up: Duration,
    /// What ends the sending.
    pub until: Until,
}

/// What ends the sending of a closed loop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Until {
    /// So much time after the warm-up.
    Time(Duration),
    /// So many sends that count.
    Sends(u64),
}

impl Closed {
    /// When the sending ends, if time ends it.
    pub(super) fn ends(&self) -> Option<Duration> {
        match self.until {
            Until::Time(time) => Some(self.warm_up.saturating_add(time)),
            Until::Sends(_) => None,
        }
    }

    /// How many of `senders` (at least 1) may be in flight by this one.
    pub(super) fn of_sender(&self, sender: u64, senders: u64) -> u64 {
        let senders = senders.max(1);
        self.in_flight / senders + u64::from(sender < self.in_flight % senders)
    }
}

/// When sends begin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pattern {
    /// At fixed times.
    Open(Schedule),
    /// When there is room.
    Closed(Closed),
}

impl Pattern {
    /// When what counts begins.
    pub(super) fn begins(&self) -> Duration {
        match self {
            Self::Open(schedule) => schedule.begins(),
            Self::Closed(closed) => closed.warm_up,
        }
    }

    /// When the last send begins, if that is known before.
    pub(super) fn ends(&self) -> Option<Duration> {
        match self {
            Self::Open(schedule) => Some(schedule.ends()),
            Self::Closed(closed) => closed.ends(),
        }
    }
}

/// How many sends are due within this time, the first at once; at least one if there is any time.
pub(super) fn sends_in(rate: f64, time: Duration) -> u64 {
    // Just under a whole number is that number: 0.1 s at 30 a second are three.
    (time.as_secs_f64() * rate - 1e-9).ceil().max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_are_due_at_even_intervals_over_all_senders() {
        let schedule = Schedule::new(100.0, 3, Duration::from_millis(40), 6);
        assert_eq!((schedule.warm_up(), schedule.total()), (4, 10));
        let due: Vec<_> = (0..schedule.total()).map(|send| schedule.due(send).as_millis()).collect();
        assert_eq!(due, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]);
        assert_eq!((0..7).map(|send| schedule.sender(send)).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!((3..5).map(|send| schedule.is_measured(send)).collect::<Vec<_>>(), [false, true]);
        assert_eq!((schedule.begins().as_millis(), schedule.ends().as_millis()), (40, 90));
    }

    #[test]
    fn a_time_has_as_many_sends_as_fall_into_it() {
        let counts = [(100.0, 10_000, 1000), (0.5, 10_000, 5), (30.0, 100, 3), (0.1, 1, 1), (1000.0, 0, 0)];
        for (rate, millis, sends) in counts {
            assert_eq!(sends_in(rate, Duration::from_millis(millis)), sends, "{rate} for {millis} ms");
        }
    }

    #[test]
    fn what_may_be_in_flight_is_shared_by_all_senders() {
        let closed =
            Closed { in_flight: 8, warm_up: Duration::from_secs(1), until: Until::Time(Duration::from_secs(3)) };
        assert_eq!((0..3).map(|sender| closed.of_sender(sender, 3)).collect::<Vec<_>>(), [3, 3, 2]);
        assert_eq!((closed.ends(), Pattern::Closed(closed).begins().as_secs()), (Some(Duration::from_secs(4)), 1));
        assert_eq!(Closed { until: Until::Sends(5), ..closed }.ends(), None);
    }

    #[test]
    fn due_times_do_not_drift() {
        let schedule = Schedule::new(3.0, 1, Duration::ZERO, u64::MAX);
        let day = schedule.due(3 * 86_400);
        assert!(day.abs_diff(Duration::from_secs(86_400)) < Duration::from_micros(1), "{day:?}");
    }
}
