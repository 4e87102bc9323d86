//! Memory over time: where it stood, and whether it rises.

use super::rows::Row;
use super::stats::{median, slope};

/// What one process had resident, over time.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    name: String,
    /// Seconds since the beginning, and MiB.
    points: Vec<(f64, f64)>,
}

impl Series {
    /// Nothing yet of this process.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), points: Vec::new() }
    }

    /// Adds what it had so many seconds after the beginning.
    pub fn push(&mut self, seconds: f64, mib: f64) {
        self.points.push((seconds, mib));
    }
}

/// For each process the median of each quarter, and the slope of the last one: before it, caches and bounded tables fill. A
/// process without points gives no rows.
pub fn rows(all: &[Series]) -> Vec<Row> {
    let mut rows = Vec::new();
    for series in all {
        let lasted = series.points.last().map_or(0.0, |point| point.0);
        let between = |from: f64, to: f64| -> Vec<(f64, f64)> {
            series.points.iter().copied().filter(|(at, _)| (from * lasted..=to * lasted).contains(at)).collect()
        };
        let mut row = |name: String, unit: &str, values: &[(f64, f64)], value: Option<f64>| {
            let sizes = || values.iter().map(|point| point.1);
            let Some(value) = value else { return };
            rows.push(Row {
                name,
                arm: "sealcast".to_owned(),
                baseline: None,
                condition: format!("{:.0} minutes of load", lasted / 60.0),
                payload: 0,
                messages: None,
                value,
                least: sizes().fold(f64::INFINITY, f64::min),
                most: sizes().fold(f64::NEG_INFINITY, f64::max),
                unit: unit.to_owned(),
                ratio: None,
                target: None,
                met: None,
            });
        };
        for (from, which) in [(0.0, "first"), (0.25, "second"), (0.5, "third"), (0.75, "last")] {
            let points = between(from, from + 0.25);
            let sizes: Vec<f64> = points.iter().map(|point| point.1).collect();
            row(format!("memory of {}, {which} quarter", series.name), "MiB", &points, median(&sizes));
        }
        let settled = between(0.75, 1.0);
        let minutes: Vec<(f64, f64)> = settled.iter().map(|(at, mib)| (at / 60.0, *mib)).collect();
        let fits = [(0.0, slope(&minutes).unwrap_or_default())];
        row(format!("slope of memory of {}, last quarter", series.name), "MiB a minute", &fits, slope(&minutes));
    }
    rows
}
