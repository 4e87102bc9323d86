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

    /// The same of these and of so many others that took longer than any of them; `None` where that share needs one of those, and
    /// without any.
    pub(super) fn within_ms(&self, share: f64, others: u64) -> Option<f64> {
        let of_these = match others {
            0 => share,
            _ => share * self.count().saturating_add(others) as f64 / self.count() as f64,
        };
        (self.count() > 0 && of_these <= 1.0).then(|| self.quantile_ms(of_these))
    }

    /// Points of the curve of percentiles: shares (0 to 1) and the milliseconds that so many did not exceed, closer together
    /// towards the longest, as far as there are durations to tell them apart; with so many others that took longer, as far as these
    /// reach.
    pub(super) fn curve(&self, others: u64) -> Vec<(f64, f64)> {
        if self.count() == 0 {
            return Vec::new();
        }
        // So many points for each factor of two that is left out at the top.
        const TICKS: u32 = 8;
        let least_left = 1.0 / self.count().saturating_add(others) as f64;
        let lefts = (0..).map(|tick| 0.5f64.powf(f64::from(tick) / f64::from(TICKS)));
        let mut points: Vec<_> = lefts.take_while(|left| *left > least_left).map(|left| 1.0 - left).collect();
        points.push(1.0 - least_left);
        points.into_iter().map_while(|share| Some((share, self.within_ms(share, others)?))).collect()
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
        let curve = latency.curve(0);
        assert!(curve.is_sorted() && curve.len() > 50, "{curve:?}");
        assert_eq!((curve[0].1.round(), curve.last().unwrap().0), (1.0, 0.999));
    }

    #[test]
    fn others_that_took_longer_fill_the_shares_at_the_top() {
        let latency = Latency::of((1..=100).map(Duration::from_millis)).unwrap();
        let rounded = |share| latency.within_ms(share, 100).map(f64::round);
        assert_eq!([rounded(0.25), rounded(0.5), rounded(0.51), rounded(1.0)], [Some(50.0), Some(100.0), None, None]);
        assert_eq!(latency.within_ms(0.99, 0), Some(latency.quantile_ms(0.99)));
        assert_eq!(Latency::new().unwrap().within_ms(0.5, 3), None);
        let reaches = |others| latency.curve(others).last().map(|(share, _)| *share);
        assert_eq!((reaches(0), latency.curve(0).len() > latency.curve(100).len()), (Some(0.99), true));
        assert!(latency.curve(100).iter().all(|(share, _)| *share <= 0.5));
    }

    #[test]
    fn nothing_is_zero_and_too_much_is_the_most() {
        let mut latency = Latency::new().unwrap();
        assert_eq!((latency.count(), latency.quantile_ms(0.99), latency.max_ms()), (0, 0.0, 0.0));
        latency.record(Duration::MAX);
        assert!(latency.max_ms() >= 86_400_000.0);
    }
}
