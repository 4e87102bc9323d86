//! The rows as a table for people and as JSON for programs.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::measure::{Row, Spread, size};

const HEADS: [&str; 9] =
    ["part", "condition", "payload", "Sealcast", "baseline", "its figure", "ratio", "target", "met"];

/// A table in Markdown: the figures are medians, with the quarters around them in brackets.
pub fn table(rows: &[Row], measured: bool) -> String {
    let lines: Vec<[String; 9]> = rows.iter().map(line).collect();
    let wide =
        |at: usize| lines.iter().map(|line| line[at].chars().count()).chain([HEADS[at].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADS.len()).map(wide).collect();
    let write = |cells: &[String; 9]| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!(" {cell:<width$} |"));
        format!("|{}\n", cells.collect::<String>())
    };
    let rule: String = widths.iter().map(|width| format!("{}|", "-".repeat(width + 2))).collect();
    let mut text = write(&HEADS.map(str::to_owned));
    text.push_str(&format!("|{rule}\n"));
    text.extend(lines.iter().map(write));
    let met = |wanted: bool| rows.iter().filter(|row| row.met() == Some(wanted)).count();
    text.push_str(&match measured {
        true => format!("\n{} rows, {} targets met, {} not.\n", rows.len(), met(true), met(false)),
        false => format!("\n{} rows. Each part ran once: that they run is shown, not how fast.\n", rows.len()),
    });
    text
}

fn line(row: &Row) -> [String; 9] {
    let spread = |spread: &Spread| {
        let Spread { low, median, high } = spread;
        format!("{} {} ({} to {})", digits(*median), row.unit.word(), digits(*low), digits(*high))
    };
    [
        row.name.to_owned(),
        row.condition.clone(),
        size(row.payload),
        spread(&row.value),
        row.baseline.to_owned(),
        spread(&row.baseline_value),
        digits(row.ratio()),
        row.target.map(|target| target.text()).unwrap_or_default(),
        row.met().map(|met| if met { "yes" } else { "NO" }).unwrap_or_default().to_owned(),
    ]
}

/// Three digits that count.
fn digits(number: f64) -> String {
    match number {
        number if number >= 100.0 => format!("{number:.0}"),
        number if number >= 10.0 => format!("{number:.1}"),
        number if number >= 1.0 => format!("{number:.2}"),
        number => format!("{number:.3}"),
    }
}

/// One object a line.
pub fn json(rows: &[Row]) -> String {
    rows.iter().map(|row| format!("{}\n", object(row))).collect()
}

fn object(row: &Row) -> Value {
    json!({
        "name": row.name,
        "arm": row.arm,
        "baseline": row.baseline,
        "condition": row.condition,
        "payload": (row.payload > 0).then_some(row.payload),
        "value": row.value.median,
        "low": row.value.low,
        "high": row.value.high,
        "baseline_value": row.baseline_value.median,
        "baseline_low": row.baseline_value.low,
        "baseline_high": row.baseline_value.high,
        "unit": row.unit.word(),
        "ratio": row.ratio(),
        "target": row.target.map(|target| target.text()),
        "met": row.met(),
    })
}

/// Every part has its rows, every row its figures, in the table and in the JSON.
pub fn check(rows: &[Row], parts: &[String], json: &str) {
    let id = |row: &Row| match size(row.payload) {
        payload if payload.is_empty() => format!("{}/{}", row.name, row.condition),
        payload => format!("{}/{}/{payload}", row.name, row.condition),
    };
    let seen: BTreeSet<String> = rows.iter().map(id).collect();
    let missing: Vec<&String> = parts.iter().filter(|part| !seen.contains(*part)).collect();
    assert!(missing.is_empty() && seen.len() == parts.len(), "no row, or one name twice: {missing:?}");
    assert_eq!(json.lines().count(), rows.len());
    let table = table(rows, true);
    for (text, row) in json.lines().zip(rows) {
        let object: Value = serde_json::from_str(text).unwrap();
        for field in ["value", "baseline_value", "ratio"] {
            assert!(object[field].as_f64().is_some_and(|number| number > 0.0), "{field}: {object}");
        }
        for field in ["name", "arm", "baseline", "condition", "unit"] {
            assert!(object[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {object}");
        }
        let shown = |line: &str| [row.name, row.baseline, &row.condition].iter().all(|cell| line.contains(cell));
        assert!(table.lines().any(shown), "not in the table: {object}");
    }
    // The targets that this run judges, each somewhere.
    for (name, least) in
        [("stream-seal", 2), ("seal-split", 2), ("recover-open", 2), ("commit", 1), ("commit-batch", 1)]
    {
        let judged = rows.iter().filter(|row| row.name == name && row.target.is_some()).count();
        assert!(judged >= least, "{name}: {judged} targets");
    }
}
