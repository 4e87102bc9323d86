//! Rows of what the bench found: a stage, a size of a mix, a node's clock; as cells for people and objects for machines.
//!
//! Owns what such a row has. Pure; must not count.

use serde::Serialize;

use super::measure::{ClockBounds, OfSize, Step};
use crate::cli::Row;
use crate::cli::latency::{Latency, ms};
use crate::cli::size::Size;
use crate::core::id::NodeName;

/// What so many did not exceed, in milliseconds; nothing where some that took longer than all that are known are among them.
#[derive(Debug, Serialize)]
pub(super) struct Times {
    pub p50_ms: Option<f64>,
    pub p90_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub p999_ms: Option<f64>,
    pub max_ms: Option<f64>,
}

impl Times {
    fn of(latency: &Latency, open: u64) -> Self {
        let within = |share| latency.within_ms(share, open);
        Self {
            p50_ms: within(0.5),
            p90_ms: within(0.9),
            p99_ms: within(0.99),
            p999_ms: within(0.999),
            max_ms: within(1.0),
        }
    }

    fn cells(&self) -> [String; 5] {
        [self.p50_ms, self.p90_ms, self.p99_ms, self.p999_ms, self.max_ms].map(in_words)
    }
}

/// Milliseconds as tables and plots show them.
pub(super) fn in_words(time: Option<f64>) -> String {
    time.map_or_else(|| "-".to_owned(), ms)
}

/// How long a stage took, from when each send was due. Sends without a fate that did not reach it took longer than all that did:
/// a share that only they fill has no time.
#[derive(Debug, Serialize)]
pub(super) struct StageRow {
    pub object: &'static str,
    pub stage: &'static str,
    pub transactions: u64,
    /// Sends without a fate that did not reach it.
    pub open: u64,
    #[serde(flatten)]
    pub times: Times,
}

impl StageRow {
    pub(super) fn new(step: Step, latency: &Latency, open: u64) -> Self {
        let times = Times::of(latency, open);
        Self { object: "stage", stage: step.word(), transactions: latency.count(), open, times }
    }
}

impl Row for StageRow {
    const HEADS: &'static [&'static str] = &["stage", "transactions", "p50", "p90", "p99", "p99.9", "max"];

    fn cells(&self) -> Vec<String> {
        [self.stage.to_owned(), self.transactions.to_string()].into_iter().chain(self.times.cells()).collect()
    }
}

/// How long payloads of one size of a mix took until they were committed; those without a fate, and those that were
/// due and never sent, took longer than all that were.
#[derive(Debug, Serialize)]
pub(super) struct SizeRow {
    pub object: &'static str,
    pub size: u64,
    pub committed: u64,
    /// Those without a fate, and those that were never sent.
    pub open: u64,
    #[serde(flatten)]
    pub times: Times,
}

impl SizeRow {
    /// `of` is what became of those that were sent, `never` the number of those that were due and not sent.
    pub(super) fn new(size: u64, of: Option<&OfSize>, never: u64) -> Option<Self> {
        let none = Latency::new()?;
        let (took, unknown) = of.map_or((&none, 0), |of| (&of.took, of.unknown));
        let open = unknown + never;
        Some(Self { object: "payload", size, committed: took.count(), open, times: Times::of(took, open) })
    }
}

impl Row for SizeRow {
    const HEADS: &'static [&'static str] = &["payload", "committed", "p50", "p90", "p99", "p99.9", "max"];

    fn cells(&self) -> Vec<String> {
        [Size(self.size).to_string(), self.committed.to_string()].into_iter().chain(self.times.cells()).collect()
    }
}

/// A node's clock against this machine's.
#[derive(Debug, Serialize)]
pub(super) struct ClockRow {
    pub object: &'static str,
    pub node: NodeName,
    pub ahead_at_least_ms: Option<i64>,
    pub ahead_at_most_ms: Option<i64>,
}

impl ClockRow {
    pub(super) fn new(node: &NodeName, bounds: ClockBounds) -> Self {
        let ClockBounds { least_ms, most_ms } = bounds;
        Self { object: "clock", node: node.clone(), ahead_at_least_ms: least_ms, ahead_at_most_ms: most_ms }
    }
}

/// A node's clock in words.
pub(super) fn clock(row: &ClockRow) -> String {
    let node = &row.node;
    match (row.ahead_at_least_ms, row.ahead_at_most_ms) {
        (Some(least), Some(most)) if least <= most => format!("{node} by {least} to {most} ms"),
        (Some(_), Some(_)) => format!("{node} not steadily"),
        (None, Some(most)) => format!("{node} by at most {most} ms"),
        (Some(least), None) => format!("{node} by at least {least} ms"),
        (None, None) => format!("{node} by an unknown time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_told_as_far_as_they_are_known() {
        let row = |least_ms, most_ms| clock(&ClockRow::new(&"a".parse().unwrap(), ClockBounds { least_ms, most_ms }));
        assert_eq!(row(Some(-1), Some(2)), "a by -1 to 2 ms");
        assert_eq!(row(None, Some(1)), "a by at most 1 ms");
        assert_eq!(row(Some(9), Some(1)), "a not steadily");
    }
}
