//! Tables in documents and a page for browsers: text in, text out.

use super::rows::Row;
use super::table;

/// Between these two lines of a document stands what the command wrote.
pub const BEGIN: &str = "<!-- scripts/compare: begin -->";
/// See [`BEGIN`].
pub const END: &str = "<!-- scripts/compare: end -->";

/// Everything that is printed, in Markdown.
pub fn report(facts: &[String], rows: &[Row]) -> String {
    let facts: String = facts.iter().map(|fact| format!("- {fact}\n")).collect();
    let stages = table::stages(rows);
    let stages = if stages.is_empty() { stages } else { format!("\n### Where the time goes\n{stages}") };
    format!(
        "{facts}\n### Ratios and targets\n\n{}\n### Latency\n{}{stages}\n### All other figures\n\n{}",
        table::targets(rows),
        table::latency(rows),
        table::others(rows)
    )
}

/// The document with what stands between its markers replaced; `None` when it has no such markers.
pub fn replace(document: &str, report: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", report.trim_end()))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}\
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ccc;padding:.2rem .6rem;text-align:left}\
.missed{color:#b00020;font-weight:600}.met{color:#1b6e3c}svg text{font:12px system-ui,sans-serif}";

/// One page without anything from elsewhere: the targets, and bars of the delivered medians and tails.
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
    let mut charts = String::new();
    for name in ["delivered p50", "delivered p99", "committed p50", "committed p99"] {
        let mut groups: Vec<String> = Vec::new();
        let of_name =
            |row: &&Row| row.name == name && !row.baseline.as_deref().unwrap_or_default().starts_with("itself");
        for row in rows.iter().filter(of_name) {
            let of = row.of();
            if !groups.contains(&of) {
                let mut group: Vec<&Row> = Vec::new();
                for row in rows.iter().filter(of_name).filter(|row| row.of() == of) {
                    // Compared twice, it is drawn once.
                    if !group.iter().any(|drawn| drawn.arm == row.arm) {
                        group.push(row);
                    }
                }
                charts.push_str(&bars(&format!("{name}, {of}, ms"), &group));
                groups.push(of);
            }
        }
    }
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Sealcast compared</title><style>{STYLE}</style>\n\
         <h1>Sealcast compared</h1><ul>{facts}</ul><h2>Ratios and targets</h2><table>{head}{judged}</table>\n\
         <h2>Latency</h2>{charts}<h2>All figures</h2><table>{head}{all}</table></html>\n"
    )
}

/// One bar for each row, as long as its value.
fn bars(title: &str, rows: &[&Row]) -> String {
    let most = rows.iter().map(|row| row.value).fold(f64::MIN_POSITIVE, f64::max);
    let bar = |(place, row): (usize, &&Row)| {
        let (y, width) = (place * 20, 520.0 * row.value / most);
        let colour = if row.arm.starts_with("sealcast") { "#2563a8" } else { "#9aa3ad" };
        format!(
            "<text x=190 y={} text-anchor=end>{}</text><rect x=200 y={} width={width:.1} height=14 fill=\"{colour}\"/>\
             <text x={:.1} y={}>{}</text>",
            y + 13,
            escape(&row.arm),
            y + 2,
            width + 206.0,
            y + 13,
            table::number(row.value)
        )
    };
    let drawn: String = rows.iter().enumerate().map(bar).collect();
    let (height, title) = (rows.len() * 20 + 4, escape(title));
    format!("<h3>{title}</h3><svg width=800 height={height} role=img aria-label=\"{title}\">{drawn}</svg>\n")
}
