//! When the leader writes entries and which group time they carry (R7).
//!
//! Owns the rule of group time on the leader's side. Must not know what else an entry holds.

use std::time::Duration;

use crate::core::id::Time;

/// How far the first entry of a term may move group time.
const FIRST_STEP: Duration = Duration::from_secs(1);
/// How far any entry may: twice the longest pause of a leader that has a quorum. One that got its quorum back after hours
/// would let everything that waited expire at a stroke.
const LAST_STEP: Duration = Duration::from_secs(20);
/// An entry this often while anything is undecided.
const BUSY: Duration = Duration::from_secs(1);
/// And this often when nothing is.
const IDLE: Duration = Duration::from_secs(10);
/// Entries that are made within it count as one for the next one's step.
const MILLISECOND: Duration = Duration::from_millis(1);
/// How long to rest after looking in vain: time that is due and cannot move, for want of a quorum's clocks, is not looked at
/// without end.
const REST: Duration = Duration::from_millis(100);

/// The leader's last entry.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// When it was made, by the leader's monotonic clock, and its time; `None` in a new term.
    last: Option<(Duration, Time)>,
    /// When there was nothing to propose, since the last entry.
    looked: Option<Duration>,
}

impl Pace {
    /// The time of an entry made `now` (the leader's monotonic clock), when group time is `group_time`: the latest time
    /// that `quorum` of the voters' `clocks` have reached, never before group time, and at most twice the time since the
    /// leader's last entry after it (1 s for the first of a term, 20 s for any). The first time of a log has no such bound:
    /// there is nothing yet that it could outrun.
    pub(super) fn time(&self, now: Duration, group_time: Time, mut clocks: Vec<Time>, quorum: usize) -> Time {
        clocks.sort_unstable_by(|one, other| other.cmp(one));
        let base = self.last.map_or(group_time, |(_, time)| time.max(group_time));
        let Some(&reached) = quorum.checked_sub(1).and_then(|at| clocks.get(at)) else { return base };
        if base == Time(0) {
            return reached;
        }
        let step = self.last.map_or(FIRST_STEP, |(at, _)| now.saturating_sub(at).saturating_mul(2).min(LAST_STEP));
        reached.min(base.after(step)).max(base)
    }

    /// When an entry is due though nothing but time happens, by the leader's monotonic clock.
    pub(super) fn due(&self, undecided: bool) -> Duration {
        self.last.map_or(Duration::ZERO, |(at, _)| at.saturating_add(if undecided { BUSY } else { IDLE }))
    }

    /// When to look again after looking in vain, by the leader's monotonic clock.
    pub(super) fn rest(&self) -> Duration {
        self.looked.map_or(Duration::ZERO, |at| at.saturating_add(REST))
    }

    /// The leader looked and had nothing to propose.
    pub(super) fn looked(&mut self, now: Duration) {
        self.looked = Some(now);
    }

    /// The leader made an entry.
    pub(super) fn made(&mut self, now: Duration, time: Time) {
        // Group time has whole milliseconds: entries that follow each other faster would each round their step down to none.
        let same = |(at, last): (Duration, Time)| last == time && now.saturating_sub(at) < MILLISECOND;
        if !self.last.is_some_and(same) {
            self.last = Some((now, time));
        }
        self.looked = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn r07_a_majority_must_have_reached_it() {
        let pace = Pace::default();
        let clocks = vec![Time(5_000), Time(900_000), Time(5_400)];
        assert_eq!(pace.time(seconds(0), Time(4_900), clocks.clone(), 2), Time(5_400));
        assert_eq!(pace.time(seconds(0), Time(4_900), clocks.clone(), 3), Time(5_000));
        assert_eq!(pace.time(seconds(0), Time(4_900), clocks, 4), Time(4_900), "no quorum of clocks: time stands");
    }

    #[test]
    fn r07_it_never_goes_back_and_never_runs_ahead() {
        let mut pace = Pace::default();
        let far = || vec![Time(1_000_000); 3];
        assert_eq!(pace.time(seconds(7), Time(10_000), far(), 2), Time(11_000), "first of a term: 1 s");
        pace.made(seconds(7), Time(11_000));
        assert_eq!(pace.time(seconds(10), Time(11_000), far(), 2), Time(17_000), "twice the leader's 3 s");
        assert_eq!(pace.time(seconds(10), Time(11_000), vec![Time(3); 3], 2), Time(11_000));
    }

    #[test]
    fn r07_the_first_time_of_a_log_is_taken_as_it_is() {
        assert_eq!(
            Pace::default().time(seconds(0), Time(0), vec![Time(1_700_000_000_000); 2], 2),
            Time(1_700_000_000_000)
        );
    }

    #[test]
    fn r07_time_passes_every_second_while_anything_is_undecided() {
        let mut pace = Pace::default();
        assert_eq!(pace.due(false), seconds(0), "a new term says its time at once");
        pace.made(seconds(50), Time(1));
        assert_eq!((pace.due(true), pace.due(false)), (seconds(51), seconds(60)));
    }

    #[test]
    fn r07_a_leader_that_was_without_a_quorum_for_hours_moves_time_on_in_steps() {
        let mut pace = Pace::default();
        pace.made(seconds(0), Time(10_000));
        let clocks = || vec![Time(10_000 + 7_200_000); 3];
        assert_eq!(pace.time(seconds(7_200), Time(10_000), clocks(), 2), Time(30_000), "20 s at most");
        pace.made(seconds(7_200), Time(30_000));
        assert_eq!(pace.time(seconds(7_201), Time(30_000), clocks(), 2), Time(32_000));
    }

    #[test]
    fn r07_time_moves_on_however_fast_entries_follow_each_other() {
        let mut pace = Pace::default();
        let mut time = Time(1_000_000);
        for now in (0..200_000).step_by(100).map(Duration::from_micros) {
            let clocks = vec![Time(1_000_000).after(now); 3];
            time = pace.time(now, time, clocks, 2);
            pace.made(now, time);
        }
        assert!(time >= Time(1_000_000 + 198), "10 entries a millisecond, for 200 ms: {time:?}");
    }
}
