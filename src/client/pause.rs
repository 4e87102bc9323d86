//! When the next round of bundles begins, so that each parcel carries enough: what a parcel costs once, its key, signatures and
//! the durable commits of all nodes, is many times what a small transaction in it costs.
//!
//! Owns that decision. Pure: time comes in; must not wait.

use std::time::Duration;

/// One in so many of the transactions without a fate: a round waits for no more, so on average it adds at most that share to what
/// they wait for anyway (Little's law).
const SHARE: usize = 2;

/// A round waits no longer than so many times as long as the last one took until it was durable: where consensus or brokers are
/// slow and this machine is not, waiting wins nothing.
const PATIENCE: u32 = 4;

/// Nor longer than this, since the last one began.
const LONGEST: Duration = Duration::from_millis(100);

/// After pauses in vain at most so many rounds follow without one.
const MOST_SKIPPED: u32 = 64;

/// The pauses between the beginnings of rounds. Times are monotonic.
#[derive(Debug, Clone)]
pub struct Pauses {
    wait: Duration,
    least: Duration,
    most: Duration,
    /// Rounds without a pause that follow one in vain, and how many of them are left.
    skipped: u32,
    left: u32,
}

impl Pauses {
    /// With so much time between the beginnings of rounds at least; without any, there are no pauses.
    pub fn new(wait: Duration) -> Self {
        Self { wait, least: Duration::ZERO, most: Duration::ZERO, skipped: 0, left: 0 }
    }

    /// No round begins sooner, unless enough bytes have come.
    pub fn least(&self) -> Duration {
        self.least
    }

    /// Then whatever waits begins.
    pub fn most(&self) -> Duration {
        self.most
    }

    /// A round began then and took so long until it was durable.
    pub fn begin(&mut self, began: Duration, took: Duration) {
        self.least = began.saturating_add(self.wait);
        self.most = self.least;
        if self.wait.is_zero() {
            return;
        }
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => {
                let patience = took.saturating_mul(PATIENCE).min(LONGEST);
                self.most = self.least.max(began.saturating_add(patience));
            }
        }
    }

    /// Whether a round may begin now, with so many submissions that wait (`alone`: one of them that no other can join) and so
    /// many transactions without a fate, these among them.
    pub fn is_over(&self, now: Duration, waiting: usize, alone: bool, without_fate: usize) -> bool {
        now >= self.most || (now >= self.least && (alone || waiting.saturating_mul(SHARE) >= without_fate))
    }

    /// The pause went on from then (the least was over) until now, and the last submission came at `last`. When none came for half
    /// of a pause that lasted as long as it could, all who submit wait for an answer: then the next rounds have no pause, twice as
    /// many each time.
    pub fn waited(&mut self, from: Duration, last: Duration, now: Duration) {
        if self.most <= from || now <= from {
            return;
        }
        if now < self.most || last >= from + (self.most - from) / 2 {
            self.skipped = 0;
        } else {
            self.skipped = (self.skipped * 2).clamp(1, MOST_SKIPPED);
            self.left = self.skipped;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// After a round that began at 1000 ms and took so long, 2 ms between rounds.
    fn after(took: u64) -> Pauses {
        let mut pauses = Pauses::new(ms(2));
        pauses.begin(ms(1000), ms(took));
        pauses
    }

    #[test]
    fn who_is_alone_waits_only_for_the_shortest_pause() {
        let pauses = after(5);
        assert!(!pauses.is_over(ms(1001), 1, false, 1));
        assert!(pauses.is_over(ms(1002), 1, false, 1) && pauses.is_over(ms(1002), 1, false, 2));
        assert!(pauses.is_over(ms(1002), 1, true, 1_000), "a large one, which is sealed by itself");
        assert!(Pauses::new(ms(2)).is_over(Duration::ZERO, 1, false, 1_000), "nothing came before");
        let mut never = Pauses::new(Duration::ZERO);
        never.begin(ms(1000), ms(5));
        assert!(never.is_over(ms(1000), 1, false, 1_000), "it is never to wait");
    }

    #[test]
    fn where_much_is_under_way_a_round_waits_for_half_of_it_as_long_as_four_rounds_take() {
        let pauses = after(5);
        assert!(!pauses.is_over(ms(1019), 49, false, 100));
        assert!(pauses.is_over(ms(1019), 50, false, 100));
        assert!(pauses.is_over(ms(1020), 1, false, 100));
    }

    #[test]
    fn a_round_that_took_long_delays_the_next_by_a_tenth_of_a_second() {
        let pauses = after(5_000);
        assert_eq!((pauses.least(), pauses.most()), (ms(1002), ms(1100)));
        let mut configured = Pauses::new(ms(500));
        configured.begin(ms(1000), ms(5));
        assert_eq!(configured.most(), ms(1500), "what is configured may be longer");
    }

    /// Somebody who submits one after the other, each when the one before is durable, with no fate in sight.
    #[test]
    fn pauses_that_bring_nobody_become_rare_and_come_back_when_they_do() {
        let mut pauses = Pauses::new(ms(2));
        let (mut now, mut paused, mut last) = (ms(1000), 0, 0);
        for round in 0..1_000 {
            pauses.begin(now, ms(5));
            let came = now + ms(5);
            let is_over = pauses.is_over(came, 1, false, 1_000);
            now = if is_over { came } else { pauses.most() };
            if !is_over {
                (paused, last) = (paused + 1, round);
                pauses.waited(came, came, now);
            }
        }
        assert!((7..=21).contains(&paused) && last > 900, "{paused}, the last in round {last}");
        // Now others come all the time.
        let mut skipped = 0;
        while skipped <= MOST_SKIPPED {
            pauses.begin(now, ms(5));
            if pauses.most() > pauses.least() {
                break;
            }
            skipped += 1;
        }
        assert!(skipped <= MOST_SKIPPED);
        pauses.waited(now + ms(5), pauses.most() - ms(1), pauses.most());
        pauses.begin(now, ms(5));
        assert_eq!(pauses.most(), now + ms(20), "the next round waits again");
    }
}
