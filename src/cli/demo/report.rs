//! What the demo found, as tables for people or objects for machines.
//!
//! Owns the shape of the report and the verdict. Must not measure.

use std::time::Duration;

use serde::Serialize;

use super::check::Compared;
use crate::cli::latency::{Latency, ms};
use crate::cli::{Exit, Output, Row};
use crate::client::StageTimes;
use crate::core::id::{NodeName, Position};
use crate::transport::adversary::Deeds;

/// When a transaction reached a certain stage.
type Reached = fn(&StageTimes) -> Option<Duration>;

/// How long a stage took, over all transactions.
#[derive(Debug, Serialize)]
pub(super) struct StageRow {
    object: &'static str,
    stage: &'static str,
    transactions: u64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl StageRow {
    /// The rows of all stages. A transaction that skipped a stage (committed before it was seen accepted) is not in it.
    pub(super) fn of(times: &[StageTimes]) -> Vec<Self> {
        let stages: [(&'static str, Reached); 3] = [
            ("accepted", |times| times.accepted),
            ("committed", |times| times.committed),
            ("complete", |times| times.complete),
        ];
        let row = |(stage, of): (&'static str, Reached)| {
            let latency = Latency::of(times.iter().filter_map(of))?;
            Some(Self {
                object: "stage",
                stage,
                transactions: latency.count(),
                p50_ms: latency.quantile_ms(0.5),
                p99_ms: latency.quantile_ms(0.99),
                max_ms: latency.max_ms(),
            })
        };
        stages.into_iter().filter_map(row).collect()
    }
}

impl Row for StageRow {
    const HEADS: &'static [&'static str] = &["stage", "transactions", "p50", "p99", "max"];

    fn cells(&self) -> Vec<String> {
        vec![self.stage.to_owned(), self.transactions.to_string(), ms(self.p50_ms), ms(self.p99_ms), ms(self.max_ms)]
    }
}

/// What happened to segments on their way.
#[derive(Debug, Serialize)]
pub(super) struct SegmentsRow {
    object: &'static str,
    /// Published, again ones included.
    sent: u64,
    /// Of these, published again.
    sent_again: u64,
    /// Dropped by the adversary.
    lost: u64,
    /// Altered or cut short by it.
    damaged: u64,
    /// Records that it doubled, replayed, delayed or reordered.
    disturbed: u64,
    /// Records that nodes refused, over all nodes.
    refused: u64,
    /// Stripes that nodes recovered with the help of parity, over all nodes.
    recovered: u64,
}

impl SegmentsRow {
    /// From what the adversary did and what was measured.
    pub(super) fn new(deeds: &Deeds, measured: &Measured) -> Self {
        Self {
            object: "segments",
            sent: measured.published + measured.again,
            sent_again: measured.again,
            lost: deeds.dropped,
            damaged: deeds.corrupted + deeds.truncated,
            disturbed: deeds.duplicated + deeds.replayed + deeds.delayed + deeds.reordered,
            refused: measured.refused,
            recovered: measured.recovered,
        }
    }
}

impl Row for SegmentsRow {
    const HEADS: &'static [&'static str] =
        &["segments sent", "again", "lost", "damaged", "disturbed", "refused by nodes", "stripes recovered by nodes"];

    fn cells(&self) -> Vec<String> {
        let counts =
            [self.sent, self.sent_again, self.lost, self.damaged, self.disturbed, self.refused, self.recovered];
        counts.iter().map(u64::to_string).collect()
    }
}

/// Counters of this process.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Measured {
    /// Segments published for the first time.
    pub published: u64,
    /// Segments published again.
    pub again: u64,
    /// Records refused by nodes.
    pub refused: u64,
    /// Stripes recovered by nodes with parity.
    pub recovered: u64,
}

impl Measured {
    /// Read from the metrics' text.
    pub(super) fn read(metrics: &str) -> Self {
        use crate::telemetry::names;
        let total = |name: &str| {
            let series = metrics.lines().filter_map(|line| {
                let rest = line.strip_prefix(name)?;
                let is_it = rest.starts_with('{') || rest.starts_with(' ');
                is_it.then(|| rest.rsplit(' ').next()).flatten()?.parse::<u64>().ok()
            });
            series.sum()
        };
        Self {
            published: total(names::CLIENT_SEGMENTS_PUBLISHED.name()),
            again: total(names::CLIENT_SEGMENTS_AGAIN.name()),
            refused: total(names::GATHER_REFUSED.name()),
            recovered: total(names::GATHER_STRIPES_RECOVERED.name()),
        }
    }
}

/// What one node holds in the end.
#[derive(Debug, Serialize)]
pub(super) struct NodeRow {
    object: &'static str,
    /// Which.
    pub node: NodeName,
    position: Position,
    /// The log index of the digest.
    state_index: u64,
    /// Over all that the log decided.
    pub state_digest: String,
    equal_transactions: usize,
    equal_bytes: u64,
    /// How many things differ.
    pub different: usize,
}

impl NodeRow {
    /// Of a node that holds everything up to `position`, whose digest is at `state_index`.
    pub(super) fn new(node: NodeName, position: Position, state: (u64, String), compared: &Compared) -> Self {
        Self {
            object: "node",
            node,
            position,
            state_index: state.0,
            state_digest: state.1,
            equal_transactions: compared.equal,
            equal_bytes: compared.bytes,
            different: compared.different,
        }
    }
}

impl Row for NodeRow {
    const HEADS: &'static [&'static str] = &["node", "position", "equal transactions", "equal bytes", "state digest"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.node.to_string(),
            self.position.to_string(),
            self.equal_transactions.to_string(),
            self.equal_bytes.to_string(),
            self.state_digest.clone(),
        ]
    }
}

/// Everything that was found.
#[derive(Debug)]
pub(super) struct Report {
    /// Per stage.
    pub stages: Vec<StageRow>,
    /// Of segments.
    pub segments: SegmentsRow,
    /// Per node.
    pub nodes: Vec<NodeRow>,
    /// Transactions submitted.
    pub transactions: usize,
    /// Payload bytes submitted.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// The node that was stopped and started.
    pub restarted: NodeName,
    /// What differs, for people.
    pub differences: Vec<String>,
}

#[derive(Serialize)]
struct Verdict<'a> {
    object: &'static str,
    equal: bool,
    transactions: usize,
    bytes: u64,
    seconds: f64,
    restarted: &'a NodeName,
    kept: Option<String>,
    next: &'a [String],
    differences: &'a [String],
}

impl Report {
    /// Whether every node has the same state and gave back every byte.
    pub(super) fn equal(&self) -> bool {
        let first = self.nodes.first().map(|node| &node.state_digest);
        let same = self.nodes.iter().all(|node| Some(&node.state_digest) == first && node.different == 0);
        !self.nodes.is_empty() && same && self.differences.is_empty()
    }

    /// The exit code that this means.
    pub(super) fn exit(&self) -> Exit {
        if self.equal() { Exit::Done } else { Exit::Failed }
    }

    /// Prints it. `kept` is the folder that stays, `next` what to type to use it.
    pub(super) fn print(
        &self,
        output: &Output,
        kept: Option<&std::path::Path>,
        next: &[String],
    ) -> std::io::Result<()> {
        let gap = || if output.is_json() { Ok(()) } else { output.line("") };
        output.rows(&self.stages)?;
        gap()?;
        output.rows(std::slice::from_ref(&self.segments))?;
        gap()?;
        output.rows(&self.nodes)?;
        gap()?;
        if output.is_json() {
            return output.object(&Verdict {
                object: "verdict",
                equal: self.equal(),
                transactions: self.transactions,
                bytes: self.bytes,
                seconds: self.took.as_secs_f64(),
                restarted: &self.restarted,
                kept: kept.map(|path| path.display().to_string()),
                next,
                differences: &self.differences,
            });
        }
        let nodes = self.nodes.len();
        if self.equal() {
            output.line(&format!(
                "All equal: {} transactions, {} bytes, the same on {nodes} nodes, {} among them, which was stopped and \
                 started. {:.1} s.",
                self.transactions,
                self.bytes,
                self.restarted,
                self.took.as_secs_f64()
            ))?;
        } else {
            output.line("NOT EQUAL:")?;
            self.differences.iter().try_for_each(|difference| output.line(&format!("  {difference}")))?;
        }
        if let Some(path) = kept {
            output.line(&format!("\nThe environment stays in {}. To use it:", path.display()))?;
            next.iter().try_for_each(|command| output.line(&format!("  {command}")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(digests: [&str; 2], different: usize, differences: &[&str]) -> Report {
        let compared = Compared { different, ..Compared::default() };
        let node = |name: &str, digest: &str| {
            let state = (3, digest.to_owned());
            NodeRow::new(name.parse().unwrap(), Position::default(), state, &compared)
        };
        Report {
            stages: StageRow::of(&[]),
            segments: SegmentsRow::new(&Deeds::default(), &Measured::default()),
            nodes: vec![node("a", digests[0]), node("b", digests[1])],
            transactions: 0,
            bytes: 0,
            took: Duration::ZERO,
            restarted: "a".parse().unwrap(),
            differences: differences.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn whatever_differs_fails() {
        assert_eq!(report(["1", "1"], 0, &[]).exit(), Exit::Done);
        assert_eq!(report(["1", "2"], 0, &[]).exit(), Exit::Failed);
        assert_eq!(report(["1", "1"], 1, &[]).exit(), Exit::Failed);
        assert_eq!(report(["1", "1"], 0, &["a file"]).exit(), Exit::Failed);
        assert_eq!(Report { nodes: Vec::new(), ..report(["1", "1"], 0, &[]) }.exit(), Exit::Failed);
    }

    #[test]
    fn quantiles_are_of_those_that_reached_the_stage() {
        let times = |ms: u64| StageTimes { committed: Some(Duration::from_millis(ms)), ..StageTimes::default() };
        let all: Vec<_> = (1..=100).map(times).collect();
        let rows = StageRow::of(&all);
        let found: Vec<_> = rows.iter().map(|row| (row.stage, row.transactions, row.p50_ms.round())).collect();
        assert_eq!(found, [("accepted", 0, 0.0), ("committed", 100, 50.0), ("complete", 0, 0.0)]);
        assert_eq!(rows[1].p99_ms.round(), 99.0);
    }

    #[test]
    fn counters_are_summed_over_their_labels() {
        let text = "# TYPE sealcast_gather_refused_segments_total counter\n\
                    sealcast_gather_refused_segments_total{node=\"a\",reason=\"proof\"} 2\n\
                    sealcast_gather_refused_segments_total{node=\"b\",reason=\"shape\"} 3\n\
                    sealcast_client_segments_published_total{sender=\"web\"} 40\n";
        let found = Measured::read(text);
        assert_eq!(found, Measured { published: 40, refused: 5, ..Measured::default() });
    }
}
