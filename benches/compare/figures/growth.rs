//! What grows with what: the axes, their sizes, and rows with exponents.

use super::rows::Row;
use super::stats::exponent;

/// Something of which there can be more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Bytes of a payload.
    Payload,
    /// Senders.
    Senders,
    /// Destinations in a process.
    Destinations,
    /// Nodes of a destination.
    Nodes,
    /// Transactions in the store.
    Stored,
}

/// What a step came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Which axis.
    pub axis: Axis,
    /// How much of it.
    pub size: u64,
    /// What was measured, and its unit behind a comma.
    pub name: String,
    /// The figure.
    pub value: f64,
}

impl Axis {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Payload, Self::Senders, Self::Destinations, Self::Nodes, Self::Stored];

    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Payload => "payload bytes",
            Self::Senders => "senders",
            Self::Destinations => "destinations",
            Self::Nodes => "nodes",
            Self::Stored => "stored transactions",
        }
    }

    /// Its steps.
    pub fn sizes(self) -> &'static [u64] {
        match self {
            Self::Payload => &[1 << 10, 32 << 10, 1 << 20, 32 << 20, 1 << 30],
            Self::Senders => &[1, 4, 16, 64, 256],
            Self::Destinations => &[1, 4, 16],
            Self::Nodes => &[3, 4, 5],
            Self::Stored => &[1_000, 10_000, 100_000, 1_000_000],
        }
    }
}

/// A row for each point, and for each series of points one with its exponent, and with that of its last two: 0 is flat, 1 in
/// proportion.
pub fn rows(points: &[Point]) -> Vec<Row> {
    let mut rows = Vec::new();
    for axis in Axis::ALL {
        let mut names: Vec<&str> = Vec::new();
        for point in points.iter().filter(|point| point.axis == axis) {
            if !names.contains(&point.name.as_str()) {
                names.push(&point.name);
            }
        }
        for name in names {
            let series: Vec<&Point> = points.iter().filter(|point| point.axis == axis && point.name == name).collect();
            let (what, unit) = name.rsplit_once(", ").unwrap_or((name, ""));
            let row = |name: String, value: f64, size: u64, unit: &str| Row {
                name,
                arm: "sealcast".to_owned(),
                baseline: None,
                condition: format!("growth with {}", axis.word()),
                payload: size,
                messages: None,
                value,
                least: value,
                most: value,
                unit: unit.to_owned(),
                ratio: None,
                target: None,
                met: None,
            };
            rows.extend(series.iter().map(|point| {
                let size = if axis == Axis::Payload { point.size } else { 0 };
                row(format!("{what}, {} {}", point.size, axis.word()), point.value, size, unit)
            }));
            let logs: Vec<(f64, f64)> = series.iter().map(|point| (point.size as f64, point.value)).collect();
            rows.extend(exponent(&logs).map(|value| row(format!("exponent of {what}"), value, 0, "")));
            // What only begins to grow at the end shows there.
            let last = logs.len().checked_sub(2).filter(|from| *from > 0).and_then(|from| logs.get(from..));
            let last = last.and_then(exponent);
            rows.extend(last.map(|value| row(format!("exponent of {what}, last two steps"), value, 0, "")));
        }
    }
    rows
}

/// The first of all exponents that a run must have and has not.
pub fn missing(rows: &[Row]) -> Option<String> {
    let of_all = ["time of a transaction", "peak of memory"];
    let of_stores = ["start-up", "get by id", "subscribe from the middle"];
    let every = Axis::ALL.into_iter().flat_map(|axis| of_all.map(|name| (axis, name)));
    let mut wanted = every.chain(of_stores.map(|name| (Axis::Stored, name)));
    let there = |(axis, name): &(Axis, &str)| {
        let (name, condition) = (format!("exponent of {name}"), format!("growth with {}", axis.word()));
        rows.iter().any(|row| row.name == name && row.condition == condition)
    };
    wanted.find(|one| !there(one)).map(|(axis, name)| format!("exponent of {name}, growth with {}", axis.word()))
}
