//! Rows as tables of Markdown, which people read in a terminal too.

use std::collections::BTreeMap;

use super::rows::Row;

/// A number with three digits that mean something.
pub fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        middle if middle >= 0.1 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.4}"),
    }
}

/// A table; columns as wide as their widest cell.
fn table(heads: &[&str], lines: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count());
        cells.chain([heads.get(column).map_or(3, |head| head.chars().count())]).max().unwrap_or(3)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: Vec<String>| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!(" {cell:width$} |"));
        format!("|{}\n", cells.collect::<String>())
    };
    let rule: String = widths.iter().map(|width| format!("{}|", "-".repeat(width + 2))).collect();
    let body: String = lines.iter().map(|cells| line(cells.clone())).collect();
    format!("{}|{rule}\n{body}", line(heads.iter().map(|head| (*head).to_owned()).collect()))
}

const STEPS: [&str; 3] = ["delivered", "accepted", "committed"];

/// Whether it is one of the quantiles that the tables of latency show.
fn is_latency(row: &Row) -> bool {
    let beside_itself = row.baseline.as_deref().is_some_and(|baseline| baseline.starts_with("itself"));
    row.unit == "ms" && !beside_itself && STEPS.iter().any(|step| row.name.starts_with(&format!("{step} ")))
}

/// The figures of one condition and size.
#[derive(Default)]
struct Group<'a> {
    of: String,
    /// Messages of each arm, the fewest.
    messages: Option<usize>,
    /// In the order in which they came.
    order: Vec<&'a str>,
    arms: BTreeMap<&'a str, BTreeMap<&'a str, f64>>,
}

/// Latency: a table for each condition and size; a line for each arm.
pub fn latency(rows: &[Row]) -> String {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for row in rows.iter().filter(|row| is_latency(row)) {
        let of = row.of();
        if !groups.iter().any(|group| group.of == of) {
            groups.push(Group { of: of.clone(), ..Group::default() });
        }
        if let Some(group) = groups.iter_mut().find(|group| group.of == of) {
            if !group.order.contains(&row.arm.as_str()) {
                group.order.push(&row.arm);
            }
            group.messages = group.messages.into_iter().chain(row.messages).min();
            group.arms.entry(&row.arm).or_default().insert(&row.name, row.value);
        }
    }
    let heads = ["arm", "delivered p50/p90/p99/max, ms", "accepted", "committed"];
    let mut text = String::new();
    for Group { of, messages, order, arms } in groups {
        let line = |arm: &&str| {
            let values = arms.get(*arm);
            let cell = |step: &str| {
                let value = |q: &str| values?.get(format!("{step} {q}").as_str()).copied();
                let all: Option<Vec<String>> =
                    ["p50", "p90", "p99", "max"].into_iter().map(|q| value(q).map(number)).collect();
                all.map_or("-".to_owned(), |all| all.join(" / "))
            };
            std::iter::once((*arm).to_owned()).chain(STEPS.map(cell)).collect::<Vec<_>>()
        };
        let lines: Vec<_> = order.iter().map(line).collect();
        let messages = messages.map(|messages| format!(" ({messages} messages of each arm)")).unwrap_or_default();
        text.push_str(&format!("\n**{of}**{messages}\n\n{}", table(&heads, &lines)));
    }
    text
}

/// How far a figure strayed; of one block or run nothing can be said.
fn spread(row: &Row) -> String {
    if row.least == row.most { "-".to_owned() } else { format!("{} to {}", number(row.least), number(row.most)) }
}

/// What the cells of a row say.
fn cells(row: &Row) -> Vec<String> {
    let met = match row.met {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "",
    };
    vec![
        row.name.clone(),
        row.of(),
        row.arm.clone(),
        format!("{} {}", number(row.value), row.unit),
        spread(row),
        row.baseline.clone().unwrap_or_default(),
        row.ratio.map(number).unwrap_or_default(),
        row.target.clone().unwrap_or_default(),
        met.to_owned(),
    ]
}

const HEADS: [&str; 9] = ["what", "of", "arm", "value", "spread", "against", "ratio", "target", ""];

/// All rows that have a target.
pub fn targets(rows: &[Row]) -> String {
    let lines: Vec<_> = rows.iter().filter(|row| row.target.is_some()).map(cells).collect();
    table(&HEADS, &lines)
}

/// Whether it is a moment of a transaction's way.
fn is_stage(row: &Row) -> bool {
    row.name.starts_with("until ")
}

/// Where the time goes: the moments of a transaction's way, a table for each size; nothing without such rows.
pub fn stages(rows: &[Row]) -> String {
    let mut sizes: Vec<u64> = rows.iter().filter(|row| is_stage(row)).map(|row| row.payload).collect();
    sizes.dedup();
    let mut text = String::new();
    for size in sizes {
        let of_size: Vec<&Row> = rows.iter().filter(|row| is_stage(row) && row.payload == size).collect();
        let mut before = 0.0;
        let line = |row: &&Row| {
            let after = std::mem::replace(&mut before, row.value);
            let tenths = format!("{} to {}", number(row.least), number(row.most));
            vec![row.name.clone(), number(row.value), number(row.value - after), tenths]
        };
        let lines: Vec<_> = of_size.iter().map(line).collect();
        let of = of_size.first().map(|row| row.of()).unwrap_or_default();
        let heads = ["moment", "median, ms since it was due", "after the one before", "a tenth below, a tenth above"];
        text.push_str(&format!("\n**{of}**\n\n{}", table(&heads, &lines)));
    }
    text
}

/// All rows that are in no other table.
pub fn others(rows: &[Row]) -> String {
    let rest = |row: &&Row| !is_latency(row) && !is_stage(row) && row.target.is_none();
    let lines: Vec<_> = rows.iter().filter(rest).map(cells).collect();
    table(&HEADS, &lines)
}
