//! How a run went over its time: per span of time how many sends began and were committed, and how long commits took.
//!
//! Owns the spans, whose number is bounded however long a run lasts. Pure: no clock; durations come in.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Most spans: as many points as a picture has room for. Beyond it neighbours are joined, and spans last twice as long.
const MOST_SPANS: usize = 240;
/// How long a span lasts at first.
const FIRST_SPAN: Duration = Duration::from_millis(50);
/// Two digits are more than a picture shows, and each span keeps some kilobytes.
const DIGITS: u8 = 2;

/// One span of time.
#[derive(Debug, Clone, Default)]
pub(super) struct Span {
    /// Sends that began in it.
    pub began: u64,
    /// Sends that became known as committed in it.
    pub committed: u64,
    /// Payload bytes of these.
    pub bytes: u64,
    /// Microseconds until those were committed that were due in it. Made when there is one.
    took: Option<Histogram<u64>>,
}

impl Span {
    /// The milliseconds that this share (0 to 1) of the sends that were due in it did not exceed until they were committed;
    /// `None` when none was committed.
    pub(super) fn quantile_ms(&self, share: f64) -> Option<f64> {
        let took = self.took.as_ref().filter(|took| !took.is_empty())?;
        Some(took.value_at_quantile(share).min(took.max()) as f64 / 1000.0)
    }

    fn join(&mut self, other: Self) {
        self.began += other.began;
        self.committed += other.committed;
        self.bytes += other.bytes;
        match (&mut self.took, other.took) {
            // Both grow by themselves, so one always fits into the other.
            (Some(own), Some(other)) => own.add(&other).unwrap_or_default(),
            (own, other) => *own = own.take().or(other),
        }
    }
}

/// The spans of a run, the first at its beginning.
#[derive(Debug, Clone)]
pub(super) struct Timeline {
    span: Duration,
    spans: Vec<Span>,
}

impl Timeline {
    /// Without any.
    pub(super) fn new() -> Self {
        Self { span: FIRST_SPAN, spans: Vec::new() }
    }

    /// How long each span lasts.
    pub(super) fn span(&self) -> Duration {
        self.span
    }

    /// The spans, from the beginning of the run.
    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// A send began.
    pub(super) fn begin(&mut self, at: Duration) {
        if let Some(span) = self.at(at) {
            span.began += 1;
        }
    }

    /// A send that was due at `due` was known to be committed `took` later.
    pub(super) fn commit(&mut self, due: Duration, took: Duration, bytes: u64) {
        if let Some(span) = self.at(due.saturating_add(took)) {
            span.committed += 1;
            span.bytes = span.bytes.saturating_add(bytes);
        }
        if let Some(span) = self.at(due) {
            if span.took.is_none() {
                span.took = Histogram::new(DIGITS).ok();
            }
            if let Some(histogram) = &mut span.took {
                // It grows to any value.
                let _ = histogram.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
            }
        }
    }

    fn at(&mut self, at: Duration) -> Option<&mut Span> {
        while at.as_nanos() / self.span.as_nanos().max(1) >= MOST_SPANS as u128 {
            let mut halves = std::mem::take(&mut self.spans).into_iter();
            while let Some(mut first) = halves.next() {
                if let Some(second) = halves.next() {
                    first.join(second);
                }
                self.spans.push(first);
            }
            self.span = self.span.saturating_mul(2);
        }
        let index = usize::try_from(at.as_nanos() / self.span.as_nanos().max(1)).unwrap_or(usize::MAX);
        if self.spans.len() <= index {
            self.spans.resize_with(index.saturating_add(1), Span::default);
        }
        self.spans.get_mut(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_stay_few_and_nothing_in_them_is_lost() {
        let mut timeline = Timeline::new();
        let second = Duration::from_secs(1);
        for send in 0..10_000u32 {
            timeline.begin(second * send);
            timeline.commit(second * send, Duration::from_millis(5), 10);
        }
        let spans = timeline.spans();
        assert!(spans.len() <= MOST_SPANS && spans.len() > MOST_SPANS / 2, "{}", spans.len());
        assert_eq!(spans.iter().map(|span| span.began).sum::<u64>(), 10_000);
        assert_eq!(
            spans.iter().map(|span| (span.committed, span.bytes)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
            (10_000, 100_000)
        );
        assert!(timeline.span() * spans.len() as u32 >= second * 9_999, "{:?}", timeline.span());
        for span in spans.iter().filter(|span| span.began > 0) {
            let p50 = span.quantile_ms(0.5).unwrap();
            assert!((p50 - 5.0).abs() < 0.1, "{p50}");
        }
    }

    #[test]
    fn a_commit_counts_when_it_came_and_its_time_when_it_was_due() {
        let mut timeline = Timeline::new();
        timeline.begin(Duration::from_millis(10));
        timeline.commit(Duration::from_millis(10), Duration::from_millis(120), 7);
        let spans = timeline.spans();
        assert_eq!(spans.iter().map(|span| (span.began, span.committed)).collect::<Vec<_>>(), [(1, 0), (0, 0), (0, 1)]);
        assert!(spans[0].quantile_ms(0.99).is_some_and(|ms| (ms - 120.0).abs() < 2.0));
        assert_eq!(spans[2].quantile_ms(0.5), None);
    }
}
