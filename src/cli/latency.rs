//! Distributions of durations, as the tables of several commands show them.
//!
//! Owns the histogram's bounds and its unit. Must not know what took the time.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest duration that is told apart: a day. A longer one counts as this.
const LONGEST_MICROS: u64 = 86_400_000_000;
/// Significant digits: values are right to a thousandth.
const DIGITS: u8 = 3;

/// Durations from a microsecond to a day.
#[derive(Debug, Clone)]
pub(super) struct Latency(Histogram<u64>);

impl Latency {
    /// Without any. The bounds are always right, so there always is one.
    pub(super) fn new() -> Option<Self> {
        Histogram::new_with_bounds(1, LONGEST_MICROS, DIGITS).ok().map(Self)
    }

    /// With these.
    pub(super) fn of(durations: impl IntoIterator<Item = Duration>) -> Option<Self> {
        let mut latency = Self::new()?;
        durations.into_iter().for_each(|took| latency.record(took));
        Some(latency)
    }

    /// Adds one.
    pub(super) fn record(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The duration, in milliseconds, that this share of them (0 to 1) did not exceed; 0 without any.
    pub(super) fn quantile_ms(&self, share: f64) -> f64 {
        // A bucket's upper end may lie above the largest value in it.
        millis(self.0.value_at_quantile(share).min(self.0.max()))
    }

    /// Points of the curve of percentiles: shares (0 to 1) and the milliseconds that so many did not exceed, closer together
    /// towards the longest, as far as there are durations to tell them apart.
    pub(super) fn curve(&self) -> Vec<(f64, f64)> {
        if self.count() == 0 {
            return Vec::new();
        }
        // So many points for each factor of two that is left out at the top.
        const TICKS: u32 = 8;
        let least_left = 1.0 / self.count() as f64;
        let lefts = (0..).map(|tick| 0.5f64.powf(f64::from(tick) / f64::from(TICKS)));
        let mut points: Vec<_> = lefts.take_while(|left| *left > least_left).map(|left| 1.0 - left).collect();
        points.push(1.0 - least_left);
        points.into_iter().map(|share| (share, self.quantile_ms(share))).collect()
    }

    /// The longest, in milliseconds; 0 without any.
    pub(super) fn max_ms(&self) -> f64 {
        millis(self.0.max())
    }
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// Milliseconds for people.
pub(super) fn ms(value: f64) -> String {
    format!("{value:.1} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_a_thousandth() {
        let latency = Latency::of((1..=1000).map(Duration::from_millis)).unwrap();
        assert_eq!((latency.count(), latency.max_ms().round()), (1000, 1000.0));
        for (share, expected) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = latency.quantile_ms(share);
            assert!((found - expected).abs() <= expected / 1000.0, "{share}: {found}");
        }
        assert!(latency.quantile_ms(1.0) <= latency.max_ms());
        let curve = latency.curve();
        assert!(curve.is_sorted() && curve.len() > 50, "{curve:?}");
        assert_eq!((curve[0].1.round(), curve.last().unwrap().0), (1.0, 0.999));
    }

    #[test]
    fn nothing_is_zero_and_too_much_is_the_most() {
        let mut latency = Latency::new().unwrap();
        assert_eq!((latency.count(), latency.quantile_ms(0.99), latency.max_ms()), (0, 0.0, 0.0));
        latency.record(Duration::MAX);
        assert!(latency.max_ms() >= 86_400_000.0);
    }
}
