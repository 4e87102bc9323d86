//! Which charts are drawn of the rows: latency under each condition, throughput, and how far each target is.
//!
//! Must not say how a chart looks: `chart`.

use super::chart::{Chart, Group, Line, Mark, Scale, Tone, numbers};
use super::rows::{Row, Target};
use super::table::number;
use super::words::{Arm, Condition, size};

/// One picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    /// Its name in file names: `delivered-all-well`.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// The picture.
    pub svg: String,
}

impl Plot {
    /// `None` for a chart of nothing.
    fn of(name: impl Into<String>, chart: Chart) -> Option<Self> {
        (chart.lines() > 0).then(|| Self { name: name.into(), svg: chart.svg(), title: chart.title })
    }
}

/// All of which there are rows.
pub fn all(rows: &[Row]) -> Vec<Plot> {
    let mut plots = vec![Plot::of("targets", targets(rows))];
    for condition in Condition::ALL {
        for step in ["delivered", "committed"] {
            plots.push(Plot::of(format!("{step}-{}", condition.slug()), latency(rows, step, condition)));
        }
    }
    plots.push(Plot::of("throughput", throughput(rows)));
    plots.push(Plot::of("applied", applied(rows)));
    plots.into_iter().flatten().collect()
}

/// Those that docs/performance.md shows: the others say the same of other conditions.
pub fn of_document(rows: &[Row]) -> Vec<Plot> {
    let hidden = [Condition::AllWellProxied, Condition::Paused, Condition::Rolled].map(Condition::slug);
    let shown = |plot: &Plot| !hidden.iter().any(|condition| plot.name.ends_with(condition.as_str()));
    all(rows).into_iter().filter(shown).collect()
}

fn tone(row: &Row) -> Tone {
    let ours = Arm::ALL.iter().any(|arm| arm.is_sealcast() && arm.word() == row.arm);
    if ours { Tone::Ours } else { Tone::Other }
}

/// Sizes of these rows, the smallest first.
fn sizes<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<u64> {
    let mut sizes: Vec<u64> = rows.map(|row| row.payload).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// Median and 99th percentile of each arm, a group for each size; under trouble also the 99th percentile without it.
fn latency(rows: &[Row], step: &str, condition: Condition) -> Chart {
    let of = |name: &str, condition: Condition, payload: u64, arm: &str| {
        let is_it = |row: &&Row| {
            row.name == format!("{step} {name}")
                && row.condition == condition.word()
                && row.payload == payload
                && row.arm == arm
        };
        rows.iter().find(is_it).map(|row| row.value)
    };
    let undisturbed = condition.undisturbed();
    let troubled = undisturbed != condition;
    let medians = || {
        let is_it = |row: &&Row| row.name == format!("{step} p50") && row.condition == condition.word();
        rows.iter().filter(is_it)
    };
    let line = |row: &Row| {
        let tail = of("p99", condition, row.payload, &row.arm)?;
        let calm = troubled.then(|| of("p99", undisturbed, row.payload, &row.arm)).flatten();
        let mut marks: Vec<_> = calm.map(|calm| (Mark::Stroke, calm)).into_iter().collect();
        marks.extend([(Mark::Dot, row.value), (Mark::Ring, tail)]);
        Some(Line { label: row.arm.clone(), marks, note: numbers(&[row.value, tail]), tone: tone(row) })
    };
    let group = |payload| Group {
        title: size(payload),
        lines: medians().filter(|row| row.payload == payload).filter_map(line).collect(),
    };
    let mut legend = vec![(Mark::Dot, "median (p50)"), (Mark::Ring, "99th percentile (p99)")];
    legend.extend(troubled.then_some((Mark::Stroke, "p99 undisturbed, same cluster")));
    Chart {
        title: format!("{}, {}", capital(step), condition.word()),
        legend,
        axis: "milliseconds from the moment at which a message was due, logarithmic: less is better",
        scale: Scale::Logarithmic,
        reference: None,
        notes: "p50 / p99, ms",
        groups: sizes(medians()).into_iter().map(group).collect(),
    }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// Bars of one figure, a group for each size.
fn bars(rows: &[Row], name: &str, title: &str, axis: &'static str, notes: &'static str) -> Chart {
    let chosen = || rows.iter().filter(|row| row.name == name);
    let line = |row: &Row| Line {
        label: row.arm.clone(),
        marks: vec![(Mark::Bar, row.value)],
        note: number(row.value),
        tone: tone(row),
    };
    let group = |payload| Group {
        title: size(payload),
        lines: chosen().filter(|row| row.payload == payload).map(line).collect(),
    };
    Chart {
        title: title.to_owned(),
        legend: Vec::new(),
        axis,
        scale: Scale::Linear,
        reference: None,
        notes,
        groups: sizes(chosen()).into_iter().map(group).collect(),
    }
}

fn throughput(rows: &[Row]) -> Chart {
    let axis = "payload megabytes a second that a majority of the readers opened: more is better";
    bars(rows, "throughput", "Throughput, all well", axis, "MB/s")
}

fn applied(rows: &[Row]) -> Chart {
    let axis = "transactions a second that are in all three stores: more is better";
    bars(rows, "applied on all three", "Small transactions, all well", axis, "a second")
}

/// How far each figure is from its target: 1 is what was to be reached, beyond it is missed.
fn targets(rows: &[Row]) -> Chart {
    let line = |row: &Row| {
        let target = row.target.as_deref()?;
        let judged = row.judged()?;
        let share = match Target::of_text(target)? {
            Target::AtMost(most) => judged / most,
            Target::AtLeast(least) => least / judged,
        };
        let (tone, mark, verdict) = match row.met {
            Some(true) => (Tone::Good, Mark::Dot, " met"),
            Some(false) => (Tone::Bad, Mark::Ring, " MISSED"),
            None => (Tone::Other, Mark::Dot, ""),
        };
        let against = row.baseline.as_ref().map_or(String::new(), |baseline| format!(" against {baseline}"));
        Some(Line {
            label: format!("{}{against}", row.name),
            marks: vec![(mark, share)],
            note: format!("{} ({target}){verdict}", number(judged)),
            tone,
        })
    };
    let mut groups: Vec<Group> = Vec::new();
    for row in rows {
        let Some(line) = line(row) else { continue };
        let title = row.of();
        match groups.iter_mut().find(|group| group.title == title) {
            Some(group) => group.lines.push(line),
            None => groups.push(Group { title, lines: vec![line] }),
        }
    }
    // A smoke run judges nothing.
    let judged = rows.iter().any(|row| row.met.is_some());
    let legend = if judged { vec![(Mark::Dot, "met"), (Mark::Ring, "missed")] } else { Vec::new() };
    Chart {
        title: "Ratios and figures by their targets".to_owned(),
        legend,
        axis: "how many times what it may be, logarithmic: left of 1 met, right of 1 missed",
        scale: Scale::Logarithmic,
        reference: Some((1.0, "target")),
        notes: "ratio or figure (target)",
        groups,
    }
}
