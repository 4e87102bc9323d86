//! When the next round of bundles begins, so that each parcel carries enough: what a parcel costs once, its key, signatures and
//! the durable commits of all nodes, is many times what a small transaction in it costs.
//!
//! Owns that decision. Pure: time comes in; must not wait.

use std::time::Duration;

/// One in so many of the transactions without a fate: a round waits for no more, so it adds at most that share to what they wait
/// for anyway (Little's law).
const SHARE: usize = 2;

/// A round waits no longer than so many times as long as the last one took until it was durable: where consensus or brokers are
/// slow and this machine is not, waiting wins nothing.
const PATIENCE: u32 = 4;

/// Nor longer than this, since the last one began.
const LONGEST: Duration = Duration::from_millis(100);

/// The time between the beginnings of two rounds. In monotonic time; by default both are over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pause {
    /// No round begins sooner, unless enough bytes have come.
    pub least: Duration,
    /// Whatever waits begins now.
    pub most: Duration,
}

impl Pause {
    /// After a round that began then and took so long, with `wait` between rounds; without any wait there is no pause at all.
    pub fn after(began: Duration, took: Duration, wait: Duration) -> Self {
        if wait.is_zero() {
            return Self::default();
        }
        let least = began.saturating_add(wait);
        Self { least, most: least.max(began.saturating_add(took.saturating_mul(PATIENCE).min(LONGEST))) }
    }

    /// Whether a round may begin now, with so many submissions that wait and so many transactions without a fate, these among
    /// them.
    pub fn is_over(&self, now: Duration, waiting: usize, without_fate: usize) -> bool {
        now >= self.most || (now >= self.least && waiting.saturating_mul(SHARE) >= without_fate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn who_is_alone_waits_only_for_the_shortest_pause() {
        let pause = Pause::after(ms(1000), ms(5), ms(2));
        assert!(!pause.is_over(ms(1001), 1, 1));
        assert!(pause.is_over(ms(1002), 1, 1) && pause.is_over(ms(1002), 1, 2));
        assert!(Pause::default().is_over(Duration::ZERO, 1, 1_000), "nothing came before");
        assert!(Pause::after(ms(1000), ms(5), Duration::ZERO).is_over(ms(1000), 1, 1_000), "it is never to wait");
    }

    #[test]
    fn where_much_is_under_way_a_round_waits_for_half_of_it_as_long_as_four_rounds_take() {
        let pause = Pause::after(ms(1000), ms(5), ms(2));
        assert!(!pause.is_over(ms(1019), 49, 100));
        assert!(pause.is_over(ms(1019), 50, 100));
        assert!(pause.is_over(ms(1020), 1, 100));
    }

    #[test]
    fn a_round_that_took_long_delays_the_next_by_a_tenth_of_a_second() {
        let pause = Pause::after(ms(1000), ms(5_000), ms(2));
        assert_eq!((pause.least, pause.most), (ms(1002), ms(1100)));
        assert_eq!(Pause::after(ms(1000), ms(5), ms(500)).most, ms(1500), "what is configured may be longer");
    }
}
