//! What the bench found, as tables for people or objects for machines, and the exit code that it means.
//!
//! Owns what stands in the report and the verdict; how the page with plots looks is `page`'s. Must not measure.

use std::time::Duration;

use serde::Serialize;

use super::measure::{Measured, Step};
use super::mix::Mix;
use super::schedule::Pattern;
use crate::cli::latency::{Latency, ms};
use crate::cli::size::Size;
use crate::cli::{Exit, Output, Row};
use crate::core::id::{DestinationName, NodeName};

/// Sends whose 99th percentile begins later than this do not keep to their schedule.
const BEHIND_MS: f64 = 10.0;

/// What so many did not exceed, in milliseconds; nothing where some that took longer than all that are known are among them.
#[derive(Debug, Serialize)]
struct Times {
    p50_ms: Option<f64>,
    p90_ms: Option<f64>,
    p99_ms: Option<f64>,
    p999_ms: Option<f64>,
    max_ms: Option<f64>,
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
struct StageRow {
    object: &'static str,
    stage: &'static str,
    transactions: u64,
    /// Sends without a fate that did not reach it.
    open: u64,
    #[serde(flatten)]
    times: Times,
}

impl Row for StageRow {
    const HEADS: &'static [&'static str] = &["stage", "transactions", "p50", "p90", "p99", "p99.9", "max"];

    fn cells(&self) -> Vec<String> {
        [self.stage.to_owned(), self.transactions.to_string()].into_iter().chain(self.times.cells()).collect()
    }
}

/// How long payloads of one size of a mix took until they were committed.
#[derive(Debug, Serialize)]
struct SizeRow {
    object: &'static str,
    size: u64,
    committed: u64,
    #[serde(flatten)]
    times: Times,
}

impl Row for SizeRow {
    const HEADS: &'static [&'static str] = &["payload", "committed", "p50", "p90", "p99", "p99.9", "max"];

    fn cells(&self) -> Vec<String> {
        [Size(self.size).to_string(), self.committed.to_string()].into_iter().chain(self.times.cells()).collect()
    }
}

/// A node's clock against this machine's.
#[derive(Debug, Serialize)]
struct ClockRow {
    object: &'static str,
    node: NodeName,
    ahead_at_least_ms: Option<i64>,
    ahead_at_most_ms: Option<i64>,
}

/// What was asked for, and how it ended.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// Where to.
    pub destinations: Vec<DestinationName>,
    /// Payload bytes.
    pub mix: Mix,
    /// Clients.
    pub senders: u64,
    /// Ordering keys; none when 0.
    pub keys: u64,
    /// When sends begin.
    pub pattern: Pattern,
    /// Sends that warmed up.
    pub warm_up: u64,
    /// Sends that count and had become due when the sending ended.
    pub due: u64,
    /// The signal that ended the sending before its time.
    pub ended_by: Option<&'static str>,
}

/// The whole run in one object.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    object: &'static str,
    /// All of them, with commas between.
    destination: String,
    /// Payload bytes of each send; none in a mix.
    size: Option<u64>,
    payload: String,
    senders: u64,
    keys: u64,
    /// Sends of the warm-up, which are not in any other number.
    warm_up: u64,
    due: u64,
    sent: u64,
    not_sent: u64,
    committed: u64,
    rejected: u64,
    expired: u64,
    unknown: u64,
    /// Payload bytes that were committed.
    bytes: u64,
    /// Sends a second that were asked for, in an open loop.
    intended_rate: Option<f64>,
    /// Sends in flight that were asked for, in a closed loop.
    in_flight: Option<u64>,
    /// Commits a second, from when the first send was due to the last commit, or to when the last send was due.
    achieved_rate: f64,
    bytes_per_second: f64,
    seconds: f64,
    late_p50_ms: f64,
    late_p99_ms: f64,
    late_max_ms: f64,
    given_back: u64,
    behind: bool,
    ended_by: Option<&'static str>,
}

/// Everything that was found.
#[derive(Debug)]
pub(super) struct Report {
    /// What was asked for.
    pub facts: Facts,
    /// What counts.
    pub measured: Measured,
}

impl Report {
    /// Sends that were due and never began.
    fn not_sent(&self) -> u64 {
        self.facts.due.saturating_sub(self.measured.began)
    }

    /// In a closed loop there is nothing to be behind.
    fn behind(&self) -> bool {
        matches!(self.facts.pattern, Pattern::Open(_)) && self.misses_its_times()
    }

    fn misses_its_times(&self) -> bool {
        self.not_sent() > 0 || self.measured.given_back > 0 || self.measured.late().quantile_ms(0.99) > BEHIND_MS
    }

    /// The exit code that this means: consensus said no; nobody knows yet; not everything could be sent.
    pub(super) fn exit(&self) -> Exit {
        let measured = &self.measured;
        if measured.rejected + measured.expired > 0 {
            Exit::Rejected
        } else if measured.unknown > 0 {
            Exit::Unknown
        } else if self.not_sent() > 0 && self.facts.ended_by.is_none() {
            Exit::Unavailable
        } else {
            Exit::Done
        }
    }

    pub(super) fn summary(&self) -> Summary {
        let (facts, measured) = (&self.facts, &self.measured);
        let last_due = match facts.pattern {
            Pattern::Open(schedule) => schedule.due((facts.warm_up + facts.due).saturating_sub(1)),
            Pattern::Closed(_) => Duration::ZERO,
        };
        let took = measured.last_commit.max(last_due).saturating_sub(facts.pattern.begins());
        let per_second = |count: f64| if took == Duration::ZERO { 0.0 } else { count / took.as_secs_f64() };
        let bytes = measured.bytes;
        let names: Vec<_> = facts.destinations.iter().map(ToString::to_string).collect();
        let (intended_rate, in_flight) = match facts.pattern {
            Pattern::Open(schedule) => (Some(schedule.rate()), None),
            Pattern::Closed(closed) => (None, Some(closed.in_flight)),
        };
        let size = match facts.mix.sizes() {
            [(only, _)] => Some(only.0),
            _ => None,
        };
        Summary {
            object: "summary",
            destination: names.join(","),
            size,
            payload: facts.mix.to_string(),
            senders: facts.senders,
            keys: facts.keys,
            warm_up: facts.warm_up,
            due: facts.due,
            sent: measured.began,
            not_sent: self.not_sent(),
            committed: measured.committed,
            rejected: measured.rejected,
            expired: measured.expired,
            unknown: measured.unknown,
            bytes,
            intended_rate,
            in_flight,
            achieved_rate: per_second(measured.committed as f64),
            bytes_per_second: per_second(bytes as f64),
            seconds: took.as_secs_f64(),
            late_p50_ms: measured.late().quantile_ms(0.5),
            late_p99_ms: measured.late().quantile_ms(0.99),
            late_max_ms: measured.late().max_ms(),
            given_back: measured.given_back,
            behind: self.behind(),
            ended_by: facts.ended_by,
        }
    }

    /// How long a stage took, with how many sends without a fate did not reach it.
    pub(super) fn stage(&self, step: Step) -> Option<(&Latency, u64)> {
        let Measured { began, rejected, expired, unknown, .. } = self.measured;
        let latency = self.measured.step(step)?;
        Some((latency, began.saturating_sub(rejected + expired + latency.count()).min(unknown)))
    }

    fn stages(&self) -> Vec<StageRow> {
        let row = |step: Step| {
            let (latency, open) = self.stage(step)?;
            Some(StageRow {
                object: "stage",
                stage: step.word(),
                transactions: latency.count(),
                open,
                times: Times::of(latency, open),
            })
        };
        Step::ALL.into_iter().filter_map(row).collect()
    }

    /// Nothing where there is one size: that is the stage *committed*.
    fn sizes(&self) -> Vec<SizeRow> {
        let row = |(size, latency): (&u64, &Latency)| SizeRow {
            object: "payload",
            size: *size,
            committed: latency.count(),
            times: Times::of(latency, 0),
        };
        let sizes = self.measured.sizes();
        if self.facts.mix.sizes().len() < 2 { Vec::new() } else { sizes.iter().map(row).collect() }
    }

    /// The tables, heads first: the stages, and the sizes of a mix.
    pub(super) fn tables(&self) -> Vec<(&'static [&'static str], Vec<Vec<String>>)> {
        let stages = (StageRow::HEADS, self.stages().iter().map(Row::cells).collect());
        let sizes = self.sizes();
        let sizes = (!sizes.is_empty()).then(|| (SizeRow::HEADS, sizes.iter().map(Row::cells).collect()));
        [stages].into_iter().chain(sizes).collect()
    }

    /// All objects that describe the run.
    pub(super) fn objects(&self) -> serde_json::Result<Vec<serde_json::Value>> {
        let stages = self.stages().into_iter().map(serde_json::to_value);
        let sizes = self.sizes().into_iter().map(serde_json::to_value);
        let clocks = self.clocks().into_iter().map(serde_json::to_value);
        stages.chain(sizes).chain(clocks).chain([serde_json::to_value(self.summary())]).collect()
    }

    fn clocks(&self) -> Vec<ClockRow> {
        let row = |(node, bounds): (&NodeName, &super::measure::ClockBounds)| ClockRow {
            object: "clock",
            node: node.clone(),
            ahead_at_least_ms: bounds.least_ms,
            ahead_at_most_ms: bounds.most_ms,
        };
        self.measured.clocks().iter().map(row).collect()
    }

    /// Prints it.
    pub(super) fn print(&self, output: &Output) -> std::io::Result<()> {
        let summary = self.summary();
        output.rows(&self.stages())?;
        let sizes = self.sizes();
        if !sizes.is_empty() {
            if !output.is_json() {
                output.line("")?;
            }
            output.rows(&sizes)?;
        }
        if output.is_json() {
            self.clocks().iter().try_for_each(|row| output.object(row))?;
            return output.object(&summary);
        }
        output.line("")?;
        self.lines(&summary).iter().try_for_each(|line| output.line(line))
    }

    /// The summary in words.
    pub(super) fn lines(&self, summary: &Summary) -> Vec<String> {
        let s = summary;
        let each = if s.size.is_some() { " each" } else { "" };
        let sent = match (s.intended_rate, s.in_flight) {
            (Some(rate), _) => format!("Sent {} of {} due, {}{each}, at {rate} a second", s.sent, s.due, s.payload),
            (None, in_flight) => {
                format!("Sent {}, {}{each}, {} in flight", s.sent, s.payload, in_flight.unwrap_or_default())
            }
        };
        let mut lines = vec![format!(
            "{sent} over {} {}; {} committed at {:.1} a second, {:.2} MiB/s.",
            s.senders,
            if s.senders == 1 { "sender" } else { "senders" },
            s.committed,
            s.achieved_rate,
            s.bytes_per_second / f64::from(1 << 20)
        )];
        lines.push(match s.intended_rate {
            Some(_) if s.sent == 0 => "Nothing was sent that counts: when the sending ended, sends of the warm-up were still behind.".to_owned(),
            Some(_) => format!(
                "Sends began late by {} at p50, {} at p99, {} at most; every time above counts from when its send was due.",
                ms(s.late_p50_ms),
                ms(s.late_p99_ms),
                ms(s.late_max_ms)
            ),
            None => "The next send began when an earlier one was committed; every time above counts from when its send began."
                .to_owned(),
        });
        if s.behind {
            lines.push(format!(
                "BEHIND: sends do not keep to their times ({} given back for want of room, {} due and never sent): what is \
                 measured, or this machine, does not keep up.",
                s.given_back, s.not_sent
            ));
        }
        if s.rejected + s.expired + s.unknown > 0 {
            lines.push(format!(
                "Not committed: {} rejected, {} expired, {} without a fate known here when the run ended. Those without a fate count \
                 above as later than all others in each stage that they did not reach: - is a share that reached none.",
                s.rejected, s.expired, s.unknown
            ));
        }
        let clocks: Vec<_> = self.clocks().iter().map(clock).collect();
        if !clocks.is_empty() {
            lines.push(format!(
                "Delivered and staged are said by nodes, in whole milliseconds of their own clocks. Ahead of this machine's: {}.",
                clocks.join("; ")
            ));
        }
        if let Some(signal) = s.ended_by {
            lines.push(format!("Ended by {signal} before its time."));
        }
        lines
    }
}

fn clock(row: &ClockRow) -> String {
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
    use super::super::measure::{Begun, Ending};
    use super::super::schedule::{Closed, Schedule, Until};
    use super::*;

    fn report(endings: &[Ending], due: u64, ended_by: Option<&'static str>) -> Report {
        let mut measured = Measured::new().unwrap();
        let schedule = Schedule::new(10.0, 1, Duration::from_millis(200), 10);
        for (send, ending) in endings.iter().enumerate() {
            let due = schedule.due(send as u64 + schedule.warm_up());
            let begun = Begun { due, began: due, size: 1024 };
            measured.begin(&begun);
            if *ending == Ending::Committed {
                measured.commit(&begun, Duration::from_millis(5));
            }
            measured.end(*ending);
        }
        let (destinations, mix) = (vec!["orders".parse().unwrap()], Mix::of(Size(1024)));
        let (pattern, warm_up) = (Pattern::Open(schedule), schedule.warm_up());
        let facts = Facts { destinations, mix, senders: 1, keys: 0, pattern, warm_up, due: due - warm_up, ended_by };
        Report { facts, measured }
    }

    #[test]
    fn a_closed_loop_is_never_behind_and_a_mix_has_a_row_for_each_size() {
        let mut report = report(&[Ending::Committed; 9], 12, None);
        report.measured.given_back = 5;
        report.facts.pattern =
            Pattern::Closed(Closed { in_flight: 4, warm_up: Duration::ZERO, until: Until::Sends(9) });
        report.facts.mix = "1KiB:2,2KiB:1".parse().unwrap();
        let summary = report.summary();
        assert_eq!((summary.behind, summary.size, summary.in_flight), (false, None, Some(4)));
        assert_eq!((summary.payload.as_str(), summary.intended_rate), ("1KiB:2,2KiB:1", None));
        assert!(report.lines(&summary)[0].starts_with("Sent 9, 1KiB:2,2KiB:1, 4 in flight over 1 sender; 9 committed"));
        let rows: Vec<_> = report.sizes().iter().map(|row| (row.size, row.committed)).collect();
        assert_eq!(rows, [(1024, 9)], "of those that were committed");
        assert_eq!(report.tables().len(), 2);
        assert_eq!(report.objects().unwrap().len(), 6 + 1 + 1);
    }

    #[test]
    fn the_exit_code_says_what_became_of_sends() {
        use Ending::{Committed, Expired, Rejected, Unknown};
        assert_eq!(report(&[Committed; 10], 12, None).exit(), Exit::Done);
        assert_eq!(report(&[Committed, Unknown, Rejected], 5, None).exit(), Exit::Rejected);
        assert_eq!(report(&[Committed, Expired], 4, None).exit(), Exit::Rejected);
        assert_eq!(report(&[Committed, Unknown], 4, None).exit(), Exit::Unknown);
        assert_eq!(report(&[Committed; 9], 12, None).exit(), Exit::Unavailable, "one was due and never sent");
        assert_eq!(report(&[Committed; 9], 12, Some("Ctrl-C")).exit(), Exit::Done, "as it was told");
    }

    #[test]
    fn the_summary_adds_up() {
        let report = report(&[Ending::Committed; 9], 12, None);
        let summary = report.summary();
        assert_eq!((summary.warm_up, summary.due, summary.sent, summary.not_sent), (2, 10, 9, 1));
        assert_eq!((summary.committed, summary.bytes, summary.behind), (9, 9 * 1024, true));
        // Nine in the time from 0.2 s to 1.1 s, when the tenth was due.
        assert!((summary.achieved_rate - 9.0 / 0.9).abs() < 1e-6, "{}", summary.achieved_rate);
        assert!(report.lines(&summary).iter().any(|line| line.starts_with("BEHIND")));
    }

    #[test]
    fn sends_without_a_fate_are_later_than_all_others() {
        use Ending::{Committed, Rejected, Unknown};
        let endings = [[Committed; 6], [Unknown; 6]].concat();
        let committed = |endings: &[Ending]| {
            let rows = report(endings, 14, None).stages();
            rows.into_iter().find(|row| row.stage == "committed").unwrap()
        };
        let row = committed(&endings);
        assert_eq!((row.transactions, row.open, row.times.p50_ms.map(f64::round)), (6, 6, Some(5.0)));
        assert_eq!([row.times.p90_ms, row.times.p99_ms, row.times.max_ms], [None; 3]);
        assert_eq!(row.cells()[2..], ["5.0 ms", "-", "-", "-", "-"]);
        let row = committed(&[Committed, Rejected, Rejected]);
        assert_eq!((row.open, row.times.max_ms.map(f64::round)), (0, Some(5.0)), "a rejected one has its fate");
        assert_eq!(committed(&[Unknown; 3]).times.p50_ms, None);
    }

    #[test]
    fn clocks_are_told_as_far_as_they_are_known() {
        let row = |least, most| {
            let node = "a".parse().unwrap();
            clock(&ClockRow { object: "clock", node, ahead_at_least_ms: least, ahead_at_most_ms: most })
        };
        assert_eq!(row(Some(-1), Some(2)), "a by -1 to 2 ms");
        assert_eq!(row(None, Some(1)), "a by at most 1 ms");
        assert_eq!(row(Some(9), Some(1)), "a not steadily");
    }
}
