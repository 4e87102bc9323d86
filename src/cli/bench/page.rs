//! The report as one HTML page: tables, plots and the numbers themselves for programs. It loads nothing, so it opens anywhere.
//!
//! Owns what stands on the page and how it looks. Pure; must not measure.

use std::fmt::Write as _;

use super::measure::Step;
use super::plot::{self, Axis, Bar, Line, Scale};
use super::report::Report;
use super::rows::in_words;
use crate::core::directory::write_time;
use crate::core::id::Time;

/// Colours that people who see few colours tell apart, with enough contrast on light and on dark. Lines differ by their
/// dashes, too.
const STYLE: &str = "\
:root{color-scheme:light dark;--back:#fff;--text:#1c1f23;--weak:#59616b;--grid:#dfe3e8;--panel:#f6f7f9;
--c0:#0072b2;--c1:#b84a00;--c2:#00735a;--c3:#9b3a80;--c4:#7a5f00;--c5:#4a4f55}
@media (prefers-color-scheme:dark){:root{--back:#14171a;--text:#e8eaed;--weak:#a3abb5;--grid:#30363d;--panel:#1c2126;
--c0:#5ab4e8;--c1:#ff9455;--c2:#3dcca2;--c3:#e59bcb;--c4:#e3c33c;--c5:#c6ccd2}}
body{margin:0 auto;max-width:60rem;padding:1.5rem;background:var(--back);color:var(--text);
font:16px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif}
h1{font-size:1.6rem;margin:0}h2{font-size:1.2rem;margin:2.2rem 0 .4rem}p,li{max-width:48rem}.weak{color:var(--weak)}
table{border-collapse:collapse;margin:.8rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .9rem .3rem 0;text-align:right;border-bottom:1px solid var(--grid)}
th:first-child,td:first-child{text-align:left}.scroll{overflow-x:auto}
.notice{border-left:4px solid var(--c1);background:var(--panel);padding:.5rem .9rem}
svg{display:block;width:100%;height:auto;background:var(--panel);border-radius:6px}
svg text{fill:var(--weak);font-size:12px}svg .end{text-anchor:end}svg .middle{text-anchor:middle}
.grid{stroke:var(--grid);fill:none}.line{fill:none;stroke-width:2.2;stroke-linejoin:round}svg .name{font-weight:600}
.s0{stroke:var(--c0)}.s1{stroke:var(--c1);stroke-dasharray:8 3}.s2{stroke:var(--c2);stroke-dasharray:2 3}
.s3{stroke:var(--c3);stroke-dasharray:10 3 2 3}.s4{stroke:var(--c4);stroke-width:3.4}.s5{stroke:var(--c5);stroke-dasharray:5 5}
svg .t0{fill:var(--c0)}svg .t1{fill:var(--c1)}svg .t2{fill:var(--c2)}svg .t3{fill:var(--c3)}svg .t4{fill:var(--c4)}
svg .t5{fill:var(--c5)}.f0{fill:var(--c0)}.f1{fill:var(--c1)}.f2{fill:var(--c2)}.f3{fill:var(--c3)}.f4{fill:var(--c4)}
.f5{fill:var(--c5)}.bar{stroke:var(--panel)}.p1{opacity:.6}.p2{opacity:.3}
@media print{body{max-width:none}svg{break-inside:avoid}}
";

/// Text inside the page's tags.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The whole page, made `now`.
pub(super) fn page(report: &Report, now: Time) -> String {
    let summary = report.summary();
    let lines = report.lines(&summary);
    let mut page = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    page.push_str("<title>sealcast bench</title>\n<style>\n");
    page.push_str(STYLE);
    page.push_str("</style>\n</head>\n<body>\n<main>\n<h1>sealcast bench</h1>\n");
    let made = write_time(now);
    add(&mut page, format_args!("<p class=\"weak\">Sealcast {}, {made}</p>\n", env!("CARGO_PKG_VERSION")));
    for line in &lines {
        let class =
            if line.starts_with("BEHIND") || line.starts_with("Not committed") { " class=\"notice\"" } else { "" };
        add(&mut page, format_args!("<p{class}>{}</p>\n", escape(line)));
    }
    page.push_str("<h2>Stages</h2>\n");
    page.push_str(
        "<p>How long a transaction takes until it is sealed and durable at its sender, until the brokers have it (accepted), until \
         its first segment is at a majority of the nodes (delivered), until it is opened and durable there (staged), until a \
         majority's receipts are verified (committed), and until all nodes' are (complete).</p>\n",
    );
    for (heads, rows) in report.tables() {
        table(&mut page, heads, &rows);
    }
    page.push_str(&stages(report));
    page.push_str("<h2>Percentiles</h2>\n");
    page.push_str("<p>The share of transactions below a line's point took at most so long. A line that rises late has a short tail.</p>\n");
    page.push_str(&percentiles(report));
    page.push_str("<h2>Over time</h2>\n");
    let span = report.measured.timeline().span().as_secs_f64();
    let span = plot::number(span);
    add(
        &mut page,
        format_args!(
            "<p>Points stand for {span} s each. What took how long counts where it was due, so that a stall shows where it \
             began.</p>\n"
        ),
    );
    page.push_str(&rates(report));
    page.push_str("<p></p>\n");
    page.push_str(&tails(report));
    page.push_str("<h2>The numbers</h2>\n<p>As <code>sealcast bench --format json</code> prints them, one object for each row:</p>\n");
    let objects = report.objects().unwrap_or_default();
    page.push_str("<details><summary>JSON</summary><pre>");
    for object in &objects {
        add(&mut page, format_args!("{}\n", escape(&object.to_string())));
    }
    page.push_str("</pre></details>\n</main>\n<script type=\"application/json\" id=\"objects\">");
    // A closing tag within a text would end the script.
    page.push_str(&serde_json::Value::from(objects).to_string().replace("</", "<\\/"));
    page.push_str("</script>\n</body>\n</html>\n");
    page
}

/// Writing to a string does not fail.
fn add(page: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = page.write_fmt(text);
}

fn table(page: &mut String, heads: &[&str], rows: &[Vec<String>]) {
    page.push_str("<div class=\"scroll\"><table>\n<thead><tr>");
    heads.iter().for_each(|head| add(page, format_args!("<th scope=\"col\">{}</th>", escape(head))));
    page.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        page.push_str("<tr>");
        row.iter().for_each(|cell| add(page, format_args!("<td>{}</td>", escape(cell))));
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
}

const MILLISECONDS: &str = "milliseconds";

fn stages(report: &Report) -> String {
    let bar = |step: Step| {
        let reached = report.stage(step).filter(|(latency, _)| latency.count() > 0);
        let ends = reached.map(|(latency, open)| [0.5, 0.9, 0.99].map(|share| latency.within_ms(share, open)));
        let text = match ends {
            Some(ends) => ends.map(in_words).join(", "),
            None => "nobody came so far".to_owned(),
        };
        Bar { name: step.word().to_owned(), ends: ends.into_iter().flatten().flatten().collect(), text }
    };
    let bars: Vec<_> = Step::ALL.into_iter().map(bar).collect();
    let words: Vec<_> = bars.iter().map(|bar| format!("{}: {}", bar.name, bar.text)).collect();
    let text = format!("The parts of each bar end at p50, p90 and p99. {}", words.join("; "));
    plot::bars("stages", "How long each stage takes", &text, "milliseconds at p50, p90 and p99", &bars)
}

fn percentiles(report: &Report) -> String {
    let line = |step: Step| {
        let points = report.stage(step).map(|(latency, open)| latency.curve(open)).unwrap_or_default();
        Line { name: step.word().to_owned(), points }
    };
    let lines: Vec<_> = Step::ALL.into_iter().map(line).collect();
    let (x, y) = (Axis { scale: Scale::Nines, title: "percentile" }, Axis { scale: Scale::Log, title: MILLISECONDS });
    let text = "One line for each stage: milliseconds over percentiles, both on logarithmic scales. The table above has the numbers.";
    plot::lines("percentiles", "Percentiles of each stage", text, x, y, &lines)
}

/// Seconds from the beginning of the run, and what a span has there.
fn over_time(report: &Report, value: impl Fn(&super::timeline::Span) -> Option<f64>) -> Vec<(f64, f64)> {
    let timeline = report.measured.timeline();
    let width = timeline.span().as_secs_f64();
    let spans = timeline.spans().iter().enumerate();
    spans.filter_map(|(at, span)| Some(((at as f64 + 0.5) * width, value(span)?))).collect()
}

fn rates(report: &Report) -> String {
    let width = report.measured.timeline().span().as_secs_f64();
    // Before the first send that counts nothing was measured.
    let from = report.facts.pattern.begins().as_secs_f64() - width;
    let rate = |count: u64| Some(count as f64 / width);
    let after = |points: Vec<(f64, f64)>| points.into_iter().filter(|point| point.0 >= from).collect();
    let lines = [
        Line { name: "begun".to_owned(), points: after(over_time(report, |span| rate(span.began))) },
        Line { name: "committed".to_owned(), points: after(over_time(report, |span| rate(span.committed))) },
    ];
    let (x, y) = (
        Axis { scale: Scale::Linear, title: "seconds" },
        Axis { scale: Scale::Linear, title: "transactions a second" },
    );
    let text = "Transactions begun and committed a second, over the time of the run.";
    plot::lines("rates", "What began and what was committed", text, x, y, &lines)
}

fn tails(report: &Report) -> String {
    let line = |name: &str, share: f64| Line {
        name: name.to_owned(),
        points: over_time(report, |span| span.quantile_ms(share)),
    };
    let lines = [line("p50", 0.5), line("p99", 0.99), line("max", 1.0)];
    let (x, y) = (Axis { scale: Scale::Linear, title: "seconds" }, Axis { scale: Scale::Log, title: MILLISECONDS });
    let text = "Milliseconds until transactions were committed, over the time at which they were due: p50, p99 and the longest.";
    plot::lines("tails", "How long commits took", text, x, y, &lines)
}
