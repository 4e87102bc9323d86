//! What each part of the way costs, beside a baseline that a reader can weigh: `cargo bench`.
//!
//! Criterion warms up, chooses how often each part runs, and compares with the run before. In each of its samples the part and
//! its baselines run one after the other, in turns, so that what else the machine does meets them alike. After the run a table
//! shows every part beside its baselines, with the ratio and, where there is one, its target; `cargo bench -- --json FILE`
//! writes the same, one object a line. Other flags are criterion's: `cargo bench -- stream`, `--sample-size 100`, `--list`.
//!
//! `cargo test` runs every part once and prints every row: then figures mean nothing, and no target is judged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../../tests/common/deciding.rs"]
mod deciding;
#[path = "../../tests/common/disk.rs"]
mod disk;
mod keeping;
#[path = "../../tests/common/ledger.rs"]
mod ledger;
mod measure;
mod report;
mod sealing;
#[path = "../../tests/common/segments.rs"]
mod segments;
mod splitting;
#[path = "../../tests/common/trio.rs"]
mod trio;
mod whole;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use criterion::Criterion;

/// Hands the path of `--json` over to the process that criterion parses the flags of.
const JSON: &str = "SEALCAST_BENCH_JSON";

/// How often each part is sampled.
const SAMPLES: usize = 20;

fn main() -> ExitCode {
    let given: Vec<OsString> = std::env::args_os().skip(1).collect();
    let Some((json, others)) = arguments(given.clone()) else {
        eprintln!("parts: --json needs the name of a file");
        return ExitCode::from(2);
    };
    if others != given {
        // Criterion reads the process's own flags and refuses those that it does not know.
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(others);
        if let Some(json) = json {
            again.env(JSON, json);
        }
        let error = again.exec();
        eprintln!("parts: cannot start again: {error}");
        return ExitCode::FAILURE;
    }
    let given = |flag: &str| others.iter().any(|argument| argument == flag);
    let measured = given("--bench") && !given("--test");
    let samples = others.iter().position(|argument| argument == "--sample-size").and_then(|at| others.get(at + 1));
    let samples = samples.and_then(|number| number.to_str()?.parse().ok()).unwrap_or(SAMPLES);
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(SAMPLES)
        .nresamples(10_000)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();

    let mut parts = sealing::parts();
    parts.extend(splitting::parts());
    parts.extend(whole::parts());
    parts.extend(keeping::parts());
    // What is alike stands together, in the order in which it comes first.
    let order: Vec<&str> = parts.iter().map(measure::Part::name).collect();
    parts.sort_by_key(|part| order.iter().position(|name| *name == part.name()));
    let names: Vec<String> = parts.iter().map(measure::Part::id).collect();
    let rows: Vec<_> = parts.into_iter().flat_map(|part| part.run(&mut criterion, samples, measured)).collect();
    criterion.final_summary();

    let partly = |argument: &OsString| {
        let text = argument.to_string_lossy();
        !text.starts_with("--") || ["--list", "--ignored", "--profile-time"].iter().any(|flag| text.starts_with(flag))
    };
    let whole = !others.iter().any(partly);
    if rows.is_empty() && !whole {
        let chosen = others.iter().filter(|argument| !argument.to_string_lossy().starts_with('-'));
        let chosen: Vec<_> = chosen.map(|argument| argument.to_string_lossy()).collect();
        if measured && !["--list", "--ignored", "--profile-time"].into_iter().any(given) {
            eprintln!("parts: no part has {} in its name: cargo bench -- --list lists them", chosen.join(" "));
            return ExitCode::from(2);
        }
        return ExitCode::SUCCESS;
    }
    let text = report::json(&rows);
    print!("\n{}", report::table(&rows, measured));
    if let Some(path) = std::env::var_os(JSON) {
        if let Err(error) = std::fs::write(&path, &text) {
            eprintln!("parts: cannot write {}: {error}", Path::new(&path).display());
            return ExitCode::FAILURE;
        }
        println!("\nWritten to {}", Path::new(&path).display());
    }
    if whole {
        report::check(&rows, &names, &text);
    }
    ExitCode::SUCCESS
}

/// The file of `--json`, and what criterion is to see: of `cargo bench` all other arguments. `cargo test` hands its own to every
/// test program; criterion knows some of them, and one filter, which is an expression. `None`: `--json` without a file.
fn arguments(given: Vec<OsString>) -> Option<(Option<PathBuf>, Vec<OsString>)> {
    const KNOWN: [&str; 7] =
        ["--test", "--list", "--exact", "--ignored", "--include-ignored", "--nocapture", "--show-output"];
    const WITH_VALUE: [&str; 7] =
        ["--skip", "--test-threads", "--format", "--color", "--logfile", "--shuffle-seed", "-Z"];
    let tests = !given.iter().any(|argument| argument == "--bench");
    let (mut json, mut others, mut filters) = (None, Vec::new(), Vec::new());
    let mut given = given.into_iter();
    while let Some(argument) = given.next() {
        let text = argument.to_string_lossy();
        if text == "--json" {
            json = Some(PathBuf::from(given.next()?));
        } else if let Some(file) = text.strip_prefix("--json=") {
            json = Some(PathBuf::from(file));
        } else if !tests || KNOWN.contains(&&*text) {
            others.push(argument);
        } else if WITH_VALUE.contains(&&*text) {
            given.next();
        } else if !text.starts_with('-') {
            filters.push(text.into_owned());
        }
    }
    if !filters.is_empty() {
        others.push(filters.join("|").into());
    }
    Some((json, others))
}
