//! What scripts/compare computes from its measurements: the order of the arms, quantiles, exponents, ratios and verdicts, and
//! that its tables have every row.

#[path = "../../benches/compare/figures/mod.rs"]
#[allow(dead_code)] // the bench uses the rest
mod figures;

use std::collections::BTreeMap;

use figures::chart;
use figures::growth::{Axis, Point};
use figures::order::order;
use figures::page::{self, Section};
use figures::plots;
use figures::results::{Outcome, Results};
use figures::rows::{Row, Target};
use figures::stats::{Spread, exponent, median, quantile, quantile_of_blocks};
use figures::steady::Series;
use figures::table;
use figures::words::{Arm, Condition, size};
use sealcast::core::directory::quorum;

#[test]
fn every_arm_stands_in_every_place_and_follows_every_other_one_equally_often() {
    for arms in 2..=11 {
        let rounds = if arms % 2 == 0 { arms } else { 2 * arms };
        let (mut places, mut pairs) = (BTreeMap::new(), BTreeMap::new());
        for round in 0..rounds {
            let order = order(arms, round);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..arms).collect::<Vec<_>>(), "each once");
            order.iter().enumerate().for_each(|at| *places.entry((at.0, *at.1)).or_insert(0) += 1);
            order.windows(2).for_each(|pair| *pairs.entry((pair[0], pair[1])).or_insert(0) += 1);
        }
        assert_eq!(places.len(), arms * arms);
        assert!(places.values().all(|count| *count == rounds / arms), "{arms}: {places:?}");
        assert_eq!(pairs.len(), arms * (arms - 1));
        assert!(pairs.values().all(|count| *count == rounds / arms), "{arms}: {pairs:?}");
    }
    assert!(order(0, 3).is_empty());
}

#[test]
fn quantiles_are_values_that_were_measured() {
    let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
    let found: Vec<_> = [0.0, 0.5, 0.9, 0.99, 1.0].iter().map(|q| quantile(&values, *q).unwrap()).collect();
    assert_eq!(found, [1.0, 50.0, 90.0, 99.0, 100.0]);
    assert_eq!(
        (quantile(&[], 0.5), median(&[]), median(&[3.0, 1.0]), median(&[9.0])),
        (None, None, Some(2.0), Some(9.0))
    );
    let blocks = [vec![1.0, 2.0, 3.0], vec![10.0, 20.0, 30.0]];
    assert_eq!(quantile_of_blocks(&blocks, 0.5), Some(Spread { value: 3.0, least: 2.0, most: 20.0 }));
}

#[test]
fn an_exponent_says_how_a_cost_grows() {
    let grown = |of: fn(f64) -> f64| exponent(&[1.0, 10.0, 100.0, 1000.0].map(|x| (x, of(x)))).unwrap();
    assert!(grown(|_| 7.0).abs() < 1e-9);
    assert!((grown(|x| 3.0 * x) - 1.0).abs() < 1e-9);
    assert!((grown(|x| x * x) - 2.0).abs() < 1e-9);
    assert_eq!(exponent(&[(5.0, 1.0), (5.0, 2.0)]), None, "one size tells nothing");
}

#[test]
fn growth_that_begins_late_shows_in_the_last_two_steps() {
    let point = |(size, value): (u64, f64)| Point { axis: Axis::Senders, size, name: "peak, MiB".to_owned(), value };
    let all = [(1, 10.0), (10, 10.0), (100, 10.0), (1000, 100.0)].map(point);
    let of = |points: &[Point], name: &str| {
        figures::growth::rows(points).into_iter().find(|row| row.name == name).map(|row| (row.value * 100.0).round())
    };
    assert_eq!(of(&all, "exponent of peak"), Some(30.0));
    assert_eq!(of(&all, "exponent of peak, last two steps"), Some(100.0));
    assert_eq!(of(&all[..3], "exponent of peak, last two steps"), Some(0.0));
    assert_eq!(of(&all[..2], "exponent of peak, last two steps"), None, "there is no more than these");
}

#[test]
fn memory_that_rises_has_a_slope_and_what_fills_at_first_has_none() {
    let of = |memory: fn(f64) -> f64| {
        let mut series = Series::new("node a");
        (1..=1200).map(f64::from).for_each(|second| series.push(second, memory(second)));
        figures::steady::rows(&[series, Series::new("one that never ran")])
    };
    let figures = |rows: &[Row]| rows.iter().map(|row| (row.value * 1000.0).round() / 1000.0).collect::<Vec<_>>();
    let risen = of(|second| 50.0 + second / 60.0);
    let names: Vec<_> = risen.iter().map(|row| row.name.as_str()).collect();
    let quarters = ["first", "second", "third", "last"].map(|which| format!("memory of node a, {which} quarter"));
    assert_eq!(names[..4], quarters);
    assert_eq!(names[4..], ["slope of memory of node a, last quarter"]);
    assert_eq!(figures(&risen), [52.508, 57.5, 62.5, 67.5, 1.0], "a MiB a minute");
    assert_eq!(risen[0].condition, "20 minutes of load");
    assert_eq!(figures(&of(|second| 80.0 - 60.0 * (1.0 - second / 850.0).max(0.0)))[3..], [80.0, 0.0]);
}

fn outcome(arm: Arm, time: f64) -> Outcome {
    let committed = arm.commits().then_some(time * 2.0);
    Outcome { arm, block: 0, delivered: vec![Some(time); 3], accepted: Some(time), committed, waited: 1000.0 }
}

fn find<'a>(rows: &'a [Row], name: &str, arm: Arm, against: &str) -> &'a Row {
    let fits = |row: &&Row| row.name == name && row.arm == arm.word() && row.baseline.as_deref() == Some(against);
    rows.iter().find(fits).unwrap_or_else(|| panic!("no row {name} of {} against {against}", arm.word()))
}

#[test]
fn rows_compare_with_the_right_arm_and_judge_by_the_right_target() {
    let mut results = Results::default();
    let well = [outcome(Arm::SealedThree, 10.0), outcome(Arm::Memory, 9.0), outcome(Arm::Pipeline, 10.0)];
    for condition in [Condition::AllWell, Condition::AllWellProxied] {
        results.add(condition, 64 << 10, &well);
    }
    let slow = [
        outcome(Arm::SealedThree, 400.0),
        outcome(Arm::ChunksThree, 600.0),
        outcome(Arm::Memory, 13.0),
        outcome(Arm::Pipeline, 500.0),
    ];
    results.add(Condition::Slow, 64 << 10, &slow);
    let all = results.rows();
    let of =
        |condition: Condition| all.iter().filter(|row| row.condition == condition.word()).cloned().collect::<Vec<_>>();
    let (well, slow) = (of(Condition::AllWell), of(Condition::Slow));
    let verdict = |row: &Row| (row.ratio, row.target.clone(), row.met);
    let row = find(&well, "delivered p50", Arm::Memory, "big sealed RF3");
    assert_eq!(verdict(row), (Some(0.9), Some("<= 1".to_owned()), Some(true)));
    let row = find(&well, "delivered p99", Arm::Memory, "big sealed RF3");
    assert_eq!(verdict(row), (Some(0.9), Some("<= 0.6".to_owned()), Some(false)));
    let row = find(&well, "committed p50", Arm::Memory, "hand-made pipeline");
    assert_eq!(verdict(row), (Some(0.9), Some("<= 1.25".to_owned()), Some(true)));
    let row = find(&slow, "delivered p99", Arm::Memory, "big sealed RF3");
    assert_eq!(verdict(row), (Some(13.0 / 400.0), Some("<= 0.04".to_owned()), Some(true)));
    let row = find(&slow, "delivered p99", Arm::Memory, "chunks RF3");
    assert_eq!(verdict(row), (Some(13.0 / 600.0), Some("<= 0.02".to_owned()), Some(false)));
    let row = find(&slow, "delivered p99", Arm::Memory, "itself, all well, proxies");
    assert_eq!(verdict(row), (Some(13.0 / 9.0), Some("<= 1.25".to_owned()), Some(false)));
    let row = find(&slow, "accepted p99", Arm::Memory, "itself, all well, proxies");
    assert_eq!(verdict(row), (Some(13.0 / 9.0), Some("<= 1.5".to_owned()), Some(true)));
    assert!(all.iter().all(|row| row.arm != Arm::SealedThree.word() || !row.name.starts_with("committed")));
}

#[test]
fn what_never_came_is_no_delivery_and_makes_the_tail_longer() {
    let mut results = Results::default();
    let lost = Outcome { delivered: vec![Some(1.0), Some(1.0), None], ..outcome(Arm::Memory, 1.0) };
    results.add(Condition::Killed, 1 << 10, &[outcome(Arm::Memory, 1.0), lost]);
    let rows = results.rows();
    let whole = rows.iter().find(|row| row.name == "delivered in the end").unwrap();
    assert_eq!((whole.value, whole.met), (50.0, Some(false)));
    let longest = rows.iter().find(|row| row.name == "delivered max").unwrap();
    assert_eq!(longest.value, 1000.0);
}

#[test]
fn every_row_is_in_a_table_and_in_the_page() {
    let mut results = Results::default();
    results.add(Condition::Paused, 1 << 20, &Arm::ALL.map(|arm| outcome(arm, 5.0)));
    let mut rows = results.rows();
    let figure = Spread { value: 1.5, least: 1.4, most: 1.6 };
    rows.push(
        Row::new("disk on brokers", Arm::Memory, Condition::AllWell, 64 << 10, figure)
            .unit("bytes")
            .must(Target::AtMost(1.65)),
    );
    let facts = ["two <cores>".to_owned()];
    let report = page::report(&facts, &rows, &[]);
    for arm in Arm::ALL {
        assert!(report.contains(&format!("| {} ", arm.word())), "{report}");
    }
    assert!(report.contains("**1 MiB, one broker paused 5 s** (1 messages of each arm)"), "{report}");
    let whole = report.lines().find(|line| line.contains("delivered in the end")).unwrap();
    assert!(whole.contains("| 100 %") && !whole.contains("100 to 100"), "one block has no spread: {whole}");
    assert!(report.contains("5.00 / 5.00 / 5.00 / 5.00"));
    let judged = report.lines().find(|line| line.contains("disk on brokers")).unwrap();
    assert!(judged.contains("1.40 to 1.60") && judged.contains("<= 1.65") && judged.contains("met"), "{judged}");
    let page = page::html(&facts, &rows);
    assert_eq!(page.matches("<tr>").count(), 2 + rows.len() + 1, "all rows, the judged ones once more, two heads");
    assert!(page.contains("two &lt;cores&gt;") && page.contains("<svg"));
    assert!(!page.replace(NAMESPACE, "").contains("http"), "nothing from elsewhere");
    let object = serde_json::to_value(rows.last().unwrap()).unwrap();
    let fields = ["name", "arm", "baseline", "condition", "payload", "value", "unit", "ratio", "target", "met"];
    assert!(fields.iter().all(|field| object.get(field).is_some()), "{object}");
}

/// The name of SVG itself, which nobody loads.
const NAMESPACE: &str = "xmlns=\"http://www.w3.org/2000/svg\"";

/// What an attribute of each element of this kind says, in order.
fn attributes(svg: &str, element: &str, attribute: &str) -> Vec<f64> {
    let value = |rest: &str| rest.split_once(&format!(" {attribute}=\"")).map(|(_, rest)| rest.to_owned());
    let of_element = |rest: &str| value(rest.split('>').next()?)?.split('"').next()?.parse().ok();
    svg.split(&format!("<{element}")).skip(1).filter_map(of_element).collect()
}

/// Some rows of everything that is drawn.
fn drawn_rows() -> Vec<Row> {
    let mut results = Results::default();
    for condition in Condition::ALL {
        for payload in [1 << 10, 1 << 20] {
            let slower = if condition == condition.undisturbed() { 1.0 } else { 30.0 };
            let time = |(place, arm)| outcome(arm, slower * (2.0 + place as f64));
            results.add(condition, payload, &Arm::ALL.into_iter().enumerate().map(time).collect::<Vec<_>>());
        }
    }
    let mut rows = results.rows();
    let figure = |value| Spread { value, least: value, most: value };
    for (arm, value) in [(Arm::SealedThree, 150.0), (Arm::Memory, 75.0)] {
        let row = Row::new("throughput", arm, Condition::AllWell, 1 << 20, figure(value)).unit("MB/s");
        rows.push(row.against(Arm::SealedThree.word(), 150.0).must(Target::AtLeast(1.0)));
        rows.push(Row::new("applied on all three", arm, Condition::AllWell, 256, figure(value)).unit("transactions/s"));
    }
    rows
}

#[test]
fn plots_show_every_arm_and_say_of_what_they_are() {
    let rows = drawn_rows();
    let all = plots::all(&rows);
    let named = |name: &str| {
        &all.iter().find(|plot| plot.name == name).unwrap_or_else(|| panic!("no plot {name}: {all:?}")).svg
    };
    for condition in Condition::ALL {
        let svg = named(&format!("delivered-{}", condition.slug()));
        for word in Arm::ALL.map(Arm::word).iter().chain(&["1 KiB", "1 MiB", condition.word(), "milliseconds", "p99"]) {
            assert!(svg.contains(word), "{word}: {svg}");
        }
        let undisturbed = condition == condition.undisturbed();
        assert_eq!(svg.contains("p99 undisturbed"), !undisturbed, "{svg}");
        // Median and tail of each, and the two of the legend.
        assert_eq!(svg.matches("<circle").count(), 2 * 2 * Arm::ALL.len() + 2);
        let confirmed = named(&format!("committed-{}", condition.slug()));
        assert!(confirmed.contains(Arm::Pipeline.word()) && !confirmed.contains(Arm::ChunksOne.word()));
    }
    assert!(named("throughput").contains("megabytes a second"));
    assert!(named("applied").contains("transactions a second"));
    for plot in &all {
        let svg = &plot.svg;
        assert!(svg.starts_with("<svg") && svg.contains(NAMESPACE) && svg.contains("fill=\"#ffffff\""), "{svg}");
        assert!(svg.contains(&format!("<title>{}</title>", plot.title)), "{svg}");
        assert!(["http", "<script", "href", "url("].iter().all(|word| !svg.replace(NAMESPACE, "").contains(word)));
        for (element, attribute, most) in [("circle", "cx", 800.0), ("line", "x2", 800.0), ("text", "x", 800.0)] {
            let outside = |place: &f64| !(0.0..=most).contains(place);
            assert!(!attributes(svg, element, attribute).iter().any(outside), "{element}: {svg}");
        }
    }
    assert!(plots::all(&[]).is_empty(), "nothing of nothing");
}

#[test]
fn twice_as_long_a_bar_is_twice_as_much_and_ten_times_as_long_a_time_is_one_step_further() {
    let all = plots::all(&drawn_rows());
    let svg = |name: &str| all.iter().find(|plot| plot.name == name).unwrap().svg.clone();
    // The first is the ground on which all stands.
    let bars = attributes(&svg("throughput"), "rect", "width");
    assert!((bars[1] - 2.0 * bars[2]).abs() < 0.3, "{bars:?}");
    let chart = |values: [f64; 3]| {
        let line = |value| chart::Line {
            label: "a & b".to_owned(),
            marks: vec![(chart::Mark::Dot, value)],
            note: String::new(),
            tone: chart::Tone::Ours,
        };
        chart::Chart {
            title: "<t>".to_owned(),
            legend: Vec::new(),
            axis: "ms",
            scale: chart::Scale::Logarithmic,
            reference: None,
            notes: "",
            groups: vec![chart::Group { title: String::new(), lines: values.map(line).to_vec() }],
        }
        .svg()
    };
    let text = chart([1.0, 10.0, 100.0]);
    let dots = attributes(&text, "circle", "cx");
    assert!((dots[2] - dots[1] - (dots[1] - dots[0])).abs() < 0.2 && dots[1] > dots[0], "{dots:?}");
    assert!(text.contains("a &amp; b") && text.contains("&lt;t&gt;"), "{text}");
    // Values that have no place on such an axis stand at its ends.
    for values in [[0.0, f64::INFINITY, f64::NAN], [0.0; 3], [-1.0, 5.0, f64::INFINITY]] {
        let text = chart(values);
        let dots = attributes(&text, "circle", "cx");
        assert!(dots.iter().all(|x| (0.0..=800.0).contains(x)) && dots.len() == 3, "{dots:?}");
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
}

#[test]
fn the_plot_of_targets_has_every_target_on_the_side_of_its_verdict() {
    let rows = drawn_rows();
    let all = plots::all(&rows);
    let svg = &all.iter().find(|plot| plot.name == "targets").unwrap().svg;
    let judged: Vec<_> = rows.iter().filter(|row| row.target.is_some()).collect();
    let marks: Vec<f64> = attributes(svg, "circle", "cx").split_off(2);
    assert_eq!(marks.len(), judged.len(), "one for each, behind the legend");
    let line = svg.split("<line").find(|line| line.contains("dasharray")).unwrap();
    let reached = attributes(&format!("<line{line}"), "line", "x1")[0];
    let met = judged.iter().filter(|row| row.met == Some(true)).count();
    assert!(met > 0 && met < judged.len(), "some of both");
    assert_eq!(marks.iter().filter(|mark| **mark <= reached).count(), met);
    assert_eq!((svg.matches(") met<").count(), svg.matches(") MISSED<").count()), (met, judged.len() - met));
    assert!(svg.contains("delivered p99 against big sealed RF3") && svg.contains("(&lt;= 0.6)"), "{svg}");
    for target in [Target::AtMost(0.04), Target::AtLeast(100.0)] {
        let row = Row::new("x", Arm::Memory, Condition::AllWell, 0, Spread { value: 1.0, least: 1.0, most: 1.0 });
        assert_eq!(row.must(target).target.as_deref().and_then(Target::of_text), Some(target));
    }
    assert_eq!(["", "<= x", "= 1"].map(Target::of_text), [None; 3]);
}

#[test]
fn the_document_shows_the_pictures_that_are_written_beside_it() {
    let rows = drawn_rows();
    let shown = plots::of_document(&rows);
    let report = page::report(&[], &rows, &shown);
    assert!(!page::report(&[], &rows, &[]).contains("!["), "a terminal shows none");
    assert_eq!(report.matches("![").count(), shown.len());
    for name in ["targets", "delivered-all-well", "delivered-one-broker-200-ms", "throughput"] {
        assert!(report.contains(&format!("({}/{name}.svg)", page::PLOTS)), "{name}: {report}");
    }
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let document = std::fs::read_to_string(docs.join("performance.md")).expect("docs/performance.md");
    let links: Vec<_> = document.split("](").skip(1).filter_map(|rest| rest.split_once(".svg)")).collect();
    assert!(!links.is_empty());
    let dead: Vec<_> = links.iter().filter(|(name, _)| !docs.join(format!("{name}.svg")).is_file()).collect();
    assert!(dead.is_empty(), "no such file: {dead:?}");
}

#[test]
fn a_majority_is_more_than_half_of_the_readers() {
    for (readers, least) in [(1, 1), (2, 2), (3, 2)] {
        assert_eq!(quorum(readers), least, "of {readers}");
    }
}

#[test]
fn with_one_reader_what_it_opened_is_all_and_its_part_has_the_targets() {
    let one = |arm, time| Outcome { delivered: vec![Some(time)], ..outcome(arm, time) };
    let mut results = Results::default();
    results.add(Condition::AllWell, 64 << 10, &[one(Arm::SealedThree, 2.0), one(Arm::Memory, 1.0)]);
    let rows = results.rows();
    assert!(rows.iter().all(|row| row.unit != "%"), "nothing was lost: {rows:?}");
    let text = Section::OneReader.text(&["a fact".to_owned()], &rows, &[]);
    assert!(text.starts_with("- a fact\n\n"), "{text}");
    let judged = text.lines().find(|line| line.contains("delivered p50")).unwrap();
    assert!(judged.contains("| 0.50 ") && judged.contains("met"), "{judged}");
    assert!(!text.contains("### "), "nothing but the targets: {text}");
}

#[test]
fn only_what_stands_between_the_markers_is_replaced() {
    let [begin, end] = Section::Compared.markers();
    let [other, end_of_other] = Section::Growth.markers();
    let document = format!("before\n{other}\nstays\n{end_of_other}\n{begin}\nold\n{end}\nafter\n");
    let replaced = page::replace(&document, Section::Compared, "new\n").unwrap();
    assert_eq!(replaced, format!("before\n{other}\nstays\n{end_of_other}\n{begin}\n\nnew\n\n{end}\nafter\n"));
    assert_eq!(page::replace(&replaced, Section::Compared, "new\n"), Some(replaced.clone()), "twice is once");
    assert_eq!(page::replace(&replaced, Section::Steady, "new"), None, "no such markers");
}

#[test]
fn the_document_has_a_place_for_everything_that_is_written() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let document = std::fs::read_to_string(docs.join("performance.md")).expect("docs/performance.md");
    for section in [Section::Compared, Section::Stages, Section::OneReader, Section::Growth, Section::Steady] {
        assert!(page::replace(&document, section, "new").is_some(), "{section:?}");
    }
}

#[test]
fn numbers_and_sizes_are_short() {
    let numbers = [1234.5, 12.345, 1.2345, 0.12345, 0.012345, 0.0].map(table::number);
    assert_eq!(numbers, ["1234", "12.3", "1.23", "0.12", "0.0123", "0"]);
    assert_eq!([256, 1 << 10, 3 << 19, 16 << 20, 1 << 30].map(size), ["256 B", "1 KiB", "1536 KiB", "16 MiB", "1 GiB"]);
}

#[test]
fn the_script_lists_what_a_run_can_be_narrowed_to() {
    let script = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/compare")).expect("the script");
    let told: Vec<&str> =
        script.lines().take_while(|line| line.starts_with('#')).flat_map(str::split_whitespace).collect();
    let (arms, conditions) = (Arm::ALL.map(Arm::slug), Condition::ALL.map(Condition::slug));
    let missing: Vec<_> = arms.iter().chain(&conditions).filter(|name| !told.contains(&name.as_str())).collect();
    assert!(missing.is_empty(), "scripts/compare --help does not list {missing:?}");
}
