//! What `sealcast topic` prints about topics: a row for each, and below them every fault once, with its mend.

use std::time::Duration;

use serde::Serialize;

use crate::cli::Row;
use crate::core::directory::Span;
use crate::transport::admin::{Layout, Made, Mismatch, listed};

/// One topic after `init`.
#[derive(Serialize)]
pub(super) struct Initialised {
    pub topic: String,
    pub outcome: Made,
    /// Partitions that were added to it.
    pub added: usize,
    pub partitions: usize,
    pub layout: Layout,
    pub retention: String,
    pub mismatches: Vec<Mismatch>,
}

impl Row for Initialised {
    const HEADS: &'static [&'static str] = &["topic", "outcome", "partitions", "retention"];

    fn cells(&self) -> Vec<String> {
        let mut outcome = match self.outcome {
            Made::Created => "created".to_owned(),
            Made::Exists => "exists".to_owned(),
        };
        if self.added > 0 {
            outcome.push_str(&format!(", {} added", self.added));
        }
        match (self.mismatches.len(), self.outcome) {
            (0, Made::Created) => {}
            (0, Made::Exists) => outcome.push_str(", and is right"),
            (count, _) => outcome.push_str(&format!(", and has {}", count_of(count))),
        }
        vec![self.topic.clone(), outcome, self.partitions.to_string(), self.retention.clone()]
    }
}

/// One topic as `check` found it.
#[derive(Serialize)]
pub(super) struct Checked {
    pub topic: String,
    /// Whether nothing is wrong with it.
    pub right: bool,
    pub layout: Option<Layout>,
    pub retention: Option<String>,
    pub partitions: Vec<Partition>,
    pub mismatches: Vec<Mismatch>,
}

/// A partition of it.
#[derive(Serialize)]
pub(super) struct Partition {
    partition: i32,
    domain: String,
    up: bool,
    copies: u8,
}

impl From<crate::transport::Partition> for Partition {
    fn from(known: crate::transport::Partition) -> Self {
        let (partition, domain) = (known.id.number, known.domain.0.to_string());
        Self { partition, domain, up: known.up, copies: known.copies }
    }
}

impl Row for Checked {
    const HEADS: &'static [&'static str] = &["topic", "partitions", "replicas", "retention", "state"];

    fn cells(&self) -> Vec<String> {
        let shown = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let state = match self.mismatches.len() {
            0 => "all right".to_owned(),
            count => count_of(count),
        };
        vec![
            self.topic.clone(),
            self.partitions.len().to_string(),
            shown(self.layout.map(|layout| layout.factor().to_string())),
            shown(self.retention.clone()),
            state,
        ]
    }
}

fn count_of(faults: usize) -> String {
    if faults == 1 { "1 fault".to_owned() } else { format!("{faults} faults") }
}

/// How long records stay, as it was found; as planned where nobody keeps a setting for it.
pub(super) fn retention(found: Option<Duration>, planned: Duration) -> String {
    match found {
        Some(Duration::MAX) => "for ever".to_owned(),
        found => Span(found.unwrap_or(planned)).to_string(),
    }
}

/// A setting's value, with its meaning where that is a time.
fn meant(what: &str, value: &str) -> String {
    match value.parse() {
        Ok(millis) if what.ends_with(".ms") => format!("{value} ({})", Span(Duration::from_millis(millis))),
        _ => value.to_owned(),
    }
}

/// Every fault once, with the topics that have it and the mend; empty when there is none.
pub(super) fn faults<'a>(rows: impl Iterator<Item = (&'a str, &'a [Mismatch])>) -> String {
    let mut all: Vec<(&Mismatch, Vec<&str>)> = Vec::new();
    for (topic, mismatches) in rows {
        for wrong in mismatches {
            match all.iter_mut().find(|(other, _)| *other == wrong) {
                Some((_, topics)) => topics.push(topic),
                None => all.push((wrong, vec![topic])),
            }
        }
    }
    let mut text = String::new();
    for (Mismatch { what, found, wanted, mend }, topics) in all {
        let (found, wanted) = (meant(what, found), meant(what, wanted));
        let said = match what.as_str() {
            "topic" if topics.len() > 1 => "are not there".to_owned(),
            "topic" => "is not there".to_owned(),
            "leader" => found,
            _ => format!("{what}: is {found}, should be {wanted}"),
        };
        let colon = if what == "topic" { "" } else { ":" };
        text.push_str(&format!("{}{colon} {said}\n  {mend}\n", listed(topics)));
    }
    text
}
