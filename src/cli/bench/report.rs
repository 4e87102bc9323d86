//! What the bench found, as tables for people or objects for machines, and the exit code that it means.
//!
//! Owns what stands in the report and the verdict; how the page with plots looks is `page`'s. Must not measure.

use std::time::Duration;

use serde::Serialize;

use super::measure::{Measured, Step};
use super::mix::Mix;
use super::rows::{ClockRow, SizeRow, StageRow, clock, in_words};
use super::schedule::Pattern;
use crate::cli::latency::Latency;
use crate::cli::{Exit, Output, Row};
use crate::core::id::DestinationName;

/// Sends whose 99th percentile begins later than this do not keep to their schedule.
const BEHIND_MS: f64 = 10.0;

/// Fewer than these have a p99, or p99.9, that is no other than the longest.
const TELL_P99: u64 = 100;
const TELL_P999: u64 = 1000;

/// What sends go through.
#[derive(Debug, Clone)]
pub(super) struct Way {
    /// The transport, and where it is.
    pub transport: String,
    /// Where outboxes are: disk or memory.
    pub outbox: &'static str,
}

/// What was asked for, and how it ended.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// What sends went through.
    pub way: Way,
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
    version: &'static str,
    /// release or debug: a debug build is slower.
    build: &'static str,
    transport: String,
    /// Where outboxes were: disk or memory.
    outbox: &'static str,
    /// All of them, with commas between.
    destination: String,
    /// Payload bytes of each send; none in a mix.
    size: Option<u64>,
    payload: String,
    senders: u64,
    keys: u64,
    /// Sends of the warm-up, which are in no number but the two behind it.
    warm_up: u64,
    warm_up_sent: u64,
    /// Commits a second of the warm-up.
    warm_up_rate: f64,
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
    /// Commits a second, from when the first send was due to the last commit, or to an interval after the last send was due.
    achieved_rate: f64,
    bytes_per_second: f64,
    seconds: f64,
    /// How late sends began, in an open loop; none where none did.
    late_p50_ms: Option<f64>,
    late_p99_ms: Option<f64>,
    late_max_ms: Option<f64>,
    given_back: u64,
    behind: bool,
    ended_by: Option<&'static str>,
}

/// Everything that was found.
#[derive(Debug)]
pub(super) struct Report {
    /// What was asked for.
    pub facts: Facts,
    /// What warmed up.
    pub warmed: Measured,
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
        } else if self.not_sent() > 0 {
            Exit::Unavailable
        } else if measured.began == 0 {
            // It ended before anything was measured: it was told to, or nothing of the warm-up was committed in time.
            Exit::Failed
        } else {
            Exit::Done
        }
    }

    pub(super) fn summary(&self) -> Summary {
        let (facts, measured) = (&self.facts, &self.measured);
        let (intended_rate, in_flight) = match facts.pattern {
            Pattern::Open(schedule) => (Some(schedule.rate()), None),
            Pattern::Closed(closed) => (None, Some(closed.in_flight)),
        };
        let last_due = match facts.pattern {
            // So many sends take as many intervals.
            Pattern::Open(schedule) => schedule.due(facts.warm_up + facts.due),
            Pattern::Closed(_) => Duration::ZERO,
        };
        let took = measured.last_commit.max(last_due).saturating_sub(facts.pattern.begins());
        let per_second = |count: f64| if took == Duration::ZERO { 0.0 } else { count / took.as_secs_f64() };
        let late = |share| intended_rate.filter(|_| measured.began > 0).map(|_| measured.late().quantile_ms(share));
        let bytes = measured.bytes;
        let names: Vec<_> = facts.destinations.iter().map(ToString::to_string).collect();
        let size = match facts.mix.sizes() {
            [(only, _)] => Some(only.0),
            _ => None,
        };
        Summary {
            object: "summary",
            version: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            transport: facts.way.transport.clone(),
            outbox: facts.way.outbox,
            destination: names.join(","),
            size,
            payload: facts.mix.to_string(),
            senders: facts.senders,
            keys: facts.keys,
            warm_up: facts.warm_up,
            warm_up_sent: self.warmed.began,
            warm_up_rate: self.warmed.rate(),
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
            late_p50_ms: late(0.5),
            late_p99_ms: late(0.99),
            late_max_ms: late(1.0),
            given_back: measured.given_back,
            behind: self.behind(),
            ended_by: facts.ended_by,
        }
    }

    /// How long a stage took, with how many sends did not reach it that were due: those without a fate, those that were never
    /// sent, and of the last stage those that not all nodes had.
    pub(super) fn stage(&self, step: Step) -> Option<(&Latency, u64)> {
        let Measured { began, rejected, expired, unknown, .. } = self.measured;
        let latency = self.measured.step(step)?;
        // What a node does not say of one that is committed is not known, and not late.
        let most = if step == Step::Complete { u64::MAX } else { unknown };
        let open = began.saturating_sub(rejected + expired + latency.count()).min(most);
        Some((latency, open + self.not_sent()))
    }

    fn stages(&self) -> Vec<StageRow> {
        let row = |step: Step| self.stage(step).map(|(latency, open)| StageRow::new(step, latency, open));
        Step::ALL.into_iter().filter_map(row).collect()
    }

    /// Nothing where there is one size: that is the stage *committed*.
    fn sizes(&self) -> Vec<SizeRow> {
        let (facts, sizes) = (&self.facts, self.measured.sizes());
        if facts.mix.sizes().len() < 2 {
            return Vec::new();
        }
        // Where nothing is missed it does not matter how many of each were due.
        let due = if self.not_sent() > 0 { facts.warm_up..facts.warm_up.saturating_add(facts.due) } else { 0..0 };
        let due = facts.mix.sends_of_each(due);
        let row = |(size, due): (u64, u64)| {
            let of = sizes.get(&size);
            SizeRow::new(size, of, due.saturating_sub(of.map_or(0, |of| of.began)))
        };
        due.into_iter().filter_map(row).collect()
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
        self.measured.clocks().iter().map(|(node, bounds)| ClockRow::new(node, *bounds)).collect()
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
        let outboxes = if s.outbox == "memory" { "in memory" } else { "on disk" };
        let warm_up = match s.warm_up_sent {
            1.. if s.sent > 0 => format!(", after a warm-up of {}", s.warm_up_sent),
            _ => String::new(),
        };
        lines.push(format!(
            "To {} through {}, outboxes {outboxes}, by Sealcast {}{warm_up}.",
            s.destination.replace(',', ", "),
            s.transport,
            s.version
        ));
        if s.build == "debug" {
            lines.push("This is a debug build: a release is quicker.".to_owned());
        }
        lines.push(match s.intended_rate {
            _ if s.sent == 0 && s.due == 0 && s.warm_up_sent == s.warm_up => {
                format!("Nothing was sent that counts: the sending ended in its warm-up, after {} sends.", s.warm_up_sent)
            }
            _ if s.sent == 0 => format!(
                "Nothing was sent that counts: when the sending ended, {} of {} sends of the warm-up had begun, {:.1} committed a second. Take a \
                 lower --rate, or --in-flight, which finds out how much goes through.",
                s.warm_up_sent, s.warm_up, s.warm_up_rate
            ),
            Some(_) => format!(
                "Sends began late by {} at p50, {} at p99, {} at most; every time counts from when its send was due.",
                in_words(s.late_p50_ms),
                in_words(s.late_p99_ms),
                in_words(s.late_max_ms)
            ),
            None => "The next send began when an earlier one was committed; every time counts from when its send began."
                .to_owned(),
        });
        if s.behind {
            let warm_up = match s.warm_up_sent {
                0 => String::new(),
                _ => format!("; {:.1} of the warm-up were committed a second", s.warm_up_rate),
            };
            lines.push(format!(
                "BEHIND: sends do not keep to their times ({} given back for want of room, {} due and never sent{warm_up}): what \
                 is measured, or this machine, does not keep up. --in-flight instead of --rate finds out how much goes through.",
                s.given_back, s.not_sent
            ));
        }
        if s.rejected + s.expired + s.unknown > 0 {
            lines.push(format!(
                "Not committed: {} rejected, {} expired, {} without a fate known here when the run ended. Those without a fate, and \
                 those that were due and never sent, count as later than all others in each stage that they did not reach: - is a \
                 share that only they fill.",
                s.rejected, s.expired, s.unknown
            ));
        }
        if s.committed > 0 && s.sent < TELL_P999 {
            let shares = if s.sent < TELL_P99 { "p99 and p99.9 are" } else { "p99.9 is" };
            lines.push(format!("Of {} sends, {shares} nothing but the longest.", s.sent));
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

#[cfg(test)]
mod tests {
    use super::super::measure::{Begun, Ending};
    use super::super::schedule::{Closed, Schedule, Until};
    use super::*;
    use crate::cli::size::Size;

    fn report(endings: &[Ending], due: u64, ended_by: Option<&'static str>) -> Report {
        of_mix(Mix::of(Size(1024)), endings, due, ended_by)
    }

    fn of_mix(mix: Mix, endings: &[Ending], due: u64, ended_by: Option<&'static str>) -> Report {
        let mut measured = Measured::new().unwrap();
        let schedule = Schedule::new(10.0, 1, Duration::from_millis(200), 10);
        for (send, ending) in endings.iter().enumerate() {
            let send = send as u64 + schedule.warm_up();
            let due = schedule.due(send);
            let begun = Begun { due, began: due, size: mix.size(send) };
            measured.begin(&begun);
            if *ending == Ending::Committed {
                measured.commit(&begun, Duration::from_millis(5));
            }
            measured.end(&begun, *ending);
        }
        let destinations = vec!["orders".parse().unwrap()];
        let (pattern, warm_up) = (Pattern::Open(schedule), schedule.warm_up());
        let way = Way { transport: "brokers".to_owned(), outbox: "disk" };
        let facts =
            Facts { way, destinations, mix, senders: 1, keys: 0, pattern, warm_up, due: due - warm_up, ended_by };
        Report { facts, warmed: Measured::new().unwrap(), measured }
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
        assert_eq!(rows, [(1024, 9), (2048, 0)], "of those that were committed");
        assert_eq!(report.tables().len(), 2);
        assert_eq!(report.objects().unwrap().len(), 6 + 2 + 1);
        assert_eq!((summary.late_p50_ms, summary.late_max_ms), (None, None));
    }

    #[test]
    fn the_exit_code_says_what_became_of_sends() {
        use Ending::{Committed, Expired, Rejected, Unknown};
        assert_eq!(report(&[Committed; 10], 12, None).exit(), Exit::Done);
        assert_eq!(report(&[Committed, Unknown, Rejected], 5, None).exit(), Exit::Rejected);
        assert_eq!(report(&[Committed, Expired], 4, None).exit(), Exit::Rejected);
        assert_eq!(report(&[Committed, Unknown], 4, None).exit(), Exit::Unknown);
        assert_eq!(report(&[Committed; 9], 12, None).exit(), Exit::Unavailable, "one was due and never sent");
        assert_eq!(report(&[Committed; 9], 11, Some("Ctrl-C")).exit(), Exit::Done, "as it was told");
        assert_eq!(report(&[Committed; 9], 12, Some("Ctrl-C")).exit(), Exit::Unavailable, "it was behind before that");
        assert_eq!(report(&[], 2, Some("Ctrl-C")).exit(), Exit::Failed, "nothing was measured");
    }

    #[test]
    fn the_summary_adds_up() {
        let report = report(&[Ending::Committed; 9], 12, None);
        let summary = report.summary();
        assert_eq!((summary.warm_up, summary.due, summary.sent, summary.not_sent), (2, 10, 9, 1));
        assert_eq!((summary.committed, summary.bytes, summary.behind), (9, 9 * 1024, true));
        // Nine in the time from 0.2 s to 1.2 s: ten were due.
        assert!((summary.achieved_rate - 9.0).abs() < 1e-6, "{}", summary.achieved_rate);
        let open = |report: &Report| report.stages().iter().map(|row| row.open).collect::<Vec<_>>();
        assert_eq!(open(&report)[4], 1, "the one that was never sent came later than all others");
        assert_eq!(open(&report)[5], 10, "and none is known to be complete");
        assert_eq!(open(&self::report(&[Ending::Committed; 9], 12, Some("Ctrl-C")))[4], 1, "it was due before the end");
        assert!(report.lines(&summary).iter().any(|line| line.starts_with("BEHIND")));
    }

    #[test]
    fn rows_of_sizes_count_what_was_never_sent() {
        use Ending::{Committed, Unknown};
        let rows = |mut report: Report, closed: bool| {
            if closed {
                report.facts.pattern =
                    Pattern::Closed(Closed { in_flight: 4, warm_up: Duration::ZERO, until: Until::Sends(10) });
            }
            let rows = report.sizes();
            let committed = report.stages().into_iter().find(|row| row.stage == "committed").unwrap();
            let sum = |of: fn(&SizeRow) -> u64| rows.iter().map(of).sum::<u64>();
            assert_eq!((sum(|row| row.committed), sum(|row| row.open)), (committed.transactions, committed.open));
            rows.iter().map(|row| (row.size, row.committed, row.open)).collect::<Vec<_>>()
        };
        let mix = || "1KiB:4,2KiB:1".parse::<Mix>().unwrap();
        let endings = [[Committed; 3], [Unknown; 3]].concat();
        // Of the ten that were due seven are of 1 KiB.
        assert_eq!(rows(of_mix(mix(), &[Committed; 10], 12, None), false), [(1024, 7, 0), (2048, 3, 0)]);
        let all = rows(of_mix(mix(), &endings, 12, None), false);
        assert_eq!(all.iter().map(|(_, committed, open)| committed + open).collect::<Vec<_>>(), [7, 3]);
        for (due, ended_by, closed) in [(12, Some("Ctrl-C"), false), (8, Some("Ctrl-C"), false), (8, None, true)] {
            let sent = rows(of_mix(mix(), &endings, due, ended_by), closed);
            assert_eq!(
                sent.iter().map(|(_, committed, open)| committed + open).sum::<u64>(),
                due - 2,
                "all that was due"
            );
        }
    }

    #[test]
    fn sends_without_a_fate_are_later_than_all_others() {
        use Ending::{Committed, Rejected, Unknown};
        let endings = [[Committed; 6], [Unknown; 6]].concat();
        let committed = |endings: &[Ending]| {
            let rows = report(endings, endings.len() as u64 + 2, None).stages();
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
}
