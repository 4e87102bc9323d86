//! Tables in documents and a page for browsers: text in, text out.

use super::chart::escape;
use super::plots::{self, Plot};
use super::rows::Row;
use super::table;

/// A part of a document that a command writes: between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// A whole comparison.
    Compared,
    /// Where the time of a transaction goes.
    Stages,
    /// A comparison with one reader of each arm.
    OneReader,
    /// How time and memory grow.
    Growth,
    /// Memory under load that lasts.
    Steady,
}

impl Section {
    /// The line before it and the line after it.
    pub fn markers(self) -> [String; 2] {
        let name = match self {
            Self::Compared => "scripts/compare",
            Self::Stages => "scripts/compare --stages",
            Self::OneReader => "scripts/compare --readers 1",
            Self::Growth => "scripts/compare --growth",
            Self::Steady => "scripts/compare --steady",
        };
        ["begin", "end"].map(|which| format!("<!-- {name}: {which} -->"))
    }

    /// What is written there, in Markdown: part of what is [`printed`].
    pub fn text(self, facts: &[String], rows: &[Row], plots: &[Plot]) -> String {
        match self {
            Self::Compared => report(facts, rows, plots),
            Self::Stages => format!("{}\n{}", list(facts), table::stages(rows).trim_start()),
            Self::OneReader => format!("{}\n{}", list(facts), table::targets(rows)),
            Self::Growth | Self::Steady => format!("{}\n{}", list(facts), table::others(rows)),
        }
    }
}

/// What a run prints, in Markdown: all its rows.
pub fn printed(section: Section, facts: &[String], rows: &[Row]) -> String {
    match section {
        Section::Stages | Section::OneReader => report(facts, rows, &[]),
        Section::Compared | Section::Growth | Section::Steady => section.text(facts, rows, &[]),
    }
}

fn list(facts: &[String]) -> String {
    facts.iter().map(|fact| format!("- {fact}\n")).collect()
}

/// Where pictures lie, seen from the folder of the document.
pub const PLOTS: &str = "plots";

/// Everything that is printed, in Markdown; with these pictures, which lie in [`PLOTS`].
pub fn report(facts: &[String], rows: &[Row], plots: &[Plot]) -> String {
    let facts = list(facts);
    let stages = table::stages(rows);
    let stages = if stages.is_empty() { stages } else { format!("\n### Where the time goes\n{stages}") };
    let link = |plot: &Plot| format!("\n![{}]({PLOTS}/{}.svg)\n", plot.title, plot.name);
    let plots: String = plots.iter().map(link).collect();
    let plots = if plots.is_empty() { plots } else { format!("\n### Plots\n{plots}") };
    format!(
        "{facts}\n### Ratios and targets\n\n{}{plots}\n### Latency\n{}{stages}\n### All other figures\n\n{}",
        table::targets(rows),
        table::latency(rows),
        table::others(rows)
    )
}

/// The document with what stands between the section's markers replaced; `None` when it has no such markers.
pub fn replace(document: &str, section: Section, report: &str) -> Option<String> {
    let [begin, end] = section.markers();
    let (before, rest) = document.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n\n{}\n\n{end}{after}", report.trim_end()))
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}\
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ccc;padding:.2rem .6rem;text-align:left}\
.missed{color:#b00020;font-weight:600}.met{color:#1b6e3c}svg{max-width:100%;height:auto}";

/// One page without anything from elsewhere: the targets, all plots, all figures.
pub fn html(facts: &[String], rows: &[Row]) -> String {
    let facts: String = facts.iter().map(|fact| format!("<li>{}</li>\n", escape(fact))).collect();
    let cell = |text: &str| format!("<td>{}</td>", escape(text));
    let line = |row: &Row| {
        let verdict = match row.met {
            Some(true) => "<td class=met>met</td>",
            Some(false) => "<td class=missed>missed</td>",
            None => "<td></td>",
        };
        let number = |value: Option<f64>| value.map(table::number).unwrap_or_default();
        let value = format!("{} {}", table::number(row.value), row.unit);
        let cells = [&row.name, &row.of(), &row.arm, &value].map(|text| cell(text)).concat();
        let compared = cell(row.baseline.as_deref().unwrap_or_default()) + &cell(&number(row.ratio));
        format!("<tr>{cells}{compared}{}{verdict}</tr>\n", cell(row.target.as_deref().unwrap_or_default()))
    };
    let head = "<tr><th>what<th>of<th>arm<th>value<th>against<th>ratio<th>target<th></tr>";
    let judged: String = rows.iter().filter(|row| row.target.is_some()).map(line).collect();
    let all: String = rows.iter().map(line).collect();
    let charts: String = plots::all(rows).into_iter().map(|plot| format!("<p>{}</p>\n", plot.svg)).collect();
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Sealcast compared</title><style>{STYLE}</style>\n\
         <h1>Sealcast compared</h1><ul>{facts}</ul><h2>Ratios and targets</h2><table>{head}{judged}</table>\n\
         <h2>Plots</h2>{charts}<h2>All figures</h2><table>{head}{all}</table></html>\n"
    )
}
