//! Sealcast beside what people use today, on three real brokers, in one run: latency under trouble, throughput, and what both cost
//! the brokers. `scripts/compare` runs it; docs/performance.md says how it measures.
//!
//! ```text
//! options --> latency, throughput --> ground --> records   (plain Kafka and the hand-made pipeline)
//!                    |                    '----> sealcast  (nodes and clients of this crate)
//!                    v                              |
//!                 flights <--- hear <---------------'
//!                    |
//!                 figures (pure): rows, tables, plots, page
//! ```
//!
//! Under `cargo test` it is a smoke test of itself: everything runs, growth too, every row is printed, nothing is judged by time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod figures;
mod flights;
mod ground;
mod growth;
mod hear;
mod latency;
mod options;
mod records;
mod sealcast;
mod sealed;
mod stages;
mod steady;
mod throughput;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::sealcast::core::directory::write_time;
use ::sealcast::seams::{Clock, SystemClock};
use clap::Parser;

use common::kafka::Cluster;
use figures::page::{self, Section};
use figures::plots;
use figures::results::{Outcome, Results};
use figures::rows::Row;
use figures::words::{Arm, Condition, size};
use flights::Flights;
use ground::Ground;
use latency::Load;
use options::{Amount, Options, Plan};
use stages::Stages;

/// What goes wrong here is told and ends the run.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What happens now, for people who wait.
pub fn progress(what: &str) {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let seconds = BEGAN.get_or_init(Instant::now).elapsed().as_secs();
    eprintln!("[{seconds:4} s] {what}");
}

fn main() -> ExitCode {
    if let Some(step) = growth::step() {
        return ended(step);
    }
    let arguments: Vec<String> = std::env::args().collect();
    let options = if arguments.iter().any(|argument| argument == "--bench") {
        Options::parse()
    } else {
        // Under `cargo test`, whose words are those of a test program.
        let chosen = arguments.iter().skip(1).filter(|argument| !argument.starts_with('-'));
        if arguments.iter().any(|argument| argument == "--list")
            || chosen.into_iter().any(|name| !"compare".contains(name.as_str()))
        {
            return ExitCode::SUCCESS;
        }
        // What grows with what, after all the rest.
        let (all, growth) = (["compare", "--smoke"], ["compare", "--smoke", "--growth"]);
        return ended(run(&Options::parse_from(all)).and_then(|()| run(&Options::parse_from(growth))));
    };
    ended(run(&options))
}

fn ended(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let plan = options.checked_plan()?;
    if options.growth {
        let facts = [
            facts(&plan).swap_remove(0),
            "Sealcast alone: nodes, clients and the embedded transport in one process, a new one for each step. An exponent of 0 is flat, \
             1 in proportion."
                .to_owned(),
            "More destinations and senders bring more load: each destination gets 4,096 transactions, each sender sends at least 256. \
             Payloads up to 1 MiB lie in an outbox in memory, larger ones in one on disk."
                .to_owned(),
        ];
        let rows = figures::growth::rows(&growth::points(plan.steps)?);
        publish(options, &facts, &rows)?;
        return figures::growth::missing(&rows).map_or(Ok(()), |missing| Err(format!("no row: {missing}").into()));
    }
    if let Some(minutes) = options.steady {
        let series = steady::run(Duration::from_secs(minutes * 60))?;
        let load = format!(
            "Real brokers, three `sealcast node run`, one `sealcast bench`: {}. Memory is what each process had resident, read every \
             second. A node remembers its last 65,536 ended parcels and 32,768 decided transactions: until so many have passed, it \
             grows.",
            steady::load()
        );
        return publish(options, &[facts(&plan).swap_remove(0), load], &figures::steady::rows(&series));
    }
    let flights = Arc::new(Flights::new(plan.readers));
    let stages = options.stages.then(|| Arc::new(Stages::default()));
    hear::listen(flights.clone(), stages.clone())?;
    let mut results = Results::default();
    let mut rows = Vec::new();
    let largest = plan.largest();

    if !plan.two_clusters || plan.unproxied() {
        progress("starting three brokers, nodes, all clients and consumers");
        let (cluster, proxies) = match plan.two_clusters {
            true => (Cluster::start_fast(), Vec::new()),
            false => Cluster::start_behind_proxies(),
        };
        let mut ground = Ground::start(cluster, proxies, &plan.arms, (&flights, &stages), largest)?;
        warm_up(&mut ground, &plan)?;
        // What was heard while warming up does not count.
        stages.iter().for_each(|stages| drop(stages.rows()));
        if plan.has(Condition::AllWell) {
            quiet(&mut ground, Condition::AllWell, &plan, &mut results, |amount| amount.rounds)?;
        }
        rows.extend(stages.iter().flat_map(|stages| stages.rows()));
        rows.extend(throughput::rows(&ground, &plan)?);
        if !plan.two_clusters {
            proxied(&mut ground, &plan, &mut results)?;
        }
        for condition in plan.troubles() {
            for amount in plan.amounts.iter().filter(|amount| amount.in_trouble) {
                let outcomes = measure(&mut ground, condition, amount, 1, 0, &plan)?;
                results.add(condition, amount.bytes, &outcomes);
            }
        }
        ground.end()?;
    }
    if plan.two_clusters && plan.proxied() {
        progress("starting three brokers behind proxies, and all others anew");
        let (cluster, proxies) = Cluster::start_fast_behind_proxies();
        let mut ground = Ground::start(cluster, proxies, &plan.arms, (&flights, &stages), largest)?;
        warm_up(&mut ground, &plan)?;
        proxied(&mut ground, &plan, &mut results)?;
        ground.end()?;
    }
    let mut all = results.rows();
    all.append(&mut rows);
    for path in &options.rows {
        for line in std::fs::read_to_string(path)?.lines() {
            let row = Row::of_elsewhere(&serde_json::from_str(line)?);
            all.push(row.ok_or_else(|| format!("{}: {line}: no row", path.display()))?);
        }
    }
    if options.smoke {
        whole(&plan, &all)?;
        // Nothing is judged by a few messages.
        all.iter_mut().for_each(|row| row.met = None);
    }
    publish(options, &facts(&plan), &all)
}

/// Whether every row is there that a run must print, and everything came that nothing could hold up.
fn whole(plan: &Plan, rows: &[Row]) -> Result<(), Failure> {
    let mut wanted = Vec::new();
    for amount in &plan.amounts {
        let quiet = amount.proxied > 0;
        let conditions = [(Condition::AllWell, true), (Condition::AllWellProxied, quiet), (Condition::Slow, quiet)];
        let troubles = plan.troubles().into_iter().map(|condition| (condition, amount.in_trouble));
        for (condition, _) in conditions.into_iter().chain(troubles).filter(|(_, runs)| *runs) {
            for arm in Arm::ALL {
                wanted.push((condition, amount.bytes, arm, "delivered p50"));
                wanted.push((condition, amount.bytes, arm, "accepted p99"));
                if arm.commits() {
                    wanted.push((condition, amount.bytes, arm, "committed max"));
                }
            }
        }
    }
    for name in ["throughput", "disk on brokers", "brokers' CPU", "brokers' CPU, JVM compilers"] {
        wanted.extend([64 << 10, 256 << 10, 1 << 20].map(|bytes| (Condition::AllWell, bytes, Arm::Memory, name)));
    }
    wanted.push((Condition::AllWell, throughput::SMALL_BYTES, Arm::Memory, "applied on all three"));
    for (condition, bytes, arm, name) in wanted {
        let is_it = |row: &Row| {
            row.name == name && row.arm == arm.word() && row.condition == condition.word() && row.payload == bytes
        };
        if !rows.iter().any(is_it) {
            return Err(format!("no row: {name} of {}, {}, {}", arm.word(), size(bytes), condition.word()).into());
        }
    }
    let undisturbed = [Condition::AllWell.word(), Condition::AllWellProxied.word()];
    let lost = rows.iter().find(|row| row.unit == "%" && undisturbed.contains(&row.condition.as_str()));
    lost.map_or(Ok(()), |row| Err(format!("{}: {} {} % of {}", row.arm, row.value, row.name, row.of()).into()))
}

fn proxied(ground: &mut Ground, plan: &Plan, results: &mut Results) -> Result<(), Failure> {
    for condition in [Condition::AllWellProxied, Condition::Slow] {
        if plan.has(condition) {
            quiet(ground, condition, plan, results, |amount| amount.proxied)?;
        }
    }
    Ok(())
}

fn warm_up(ground: &mut Ground, plan: &Plan) -> Result<(), Failure> {
    progress("warming up");
    throughput::load(ground, plan)?;
    let usual = Amount { bytes: 64 << 10, rounds: 0, proxied: 0, in_trouble: true, gap: Duration::from_millis(15) };
    let amount = plan.amounts.iter().find(|amount| amount.in_trouble).unwrap_or(&usual);
    measure(ground, Condition::AllWell, amount, plan.warm_up, 0, plan).map(drop)
}

/// All sizes in turn, block after block, so that what drifts meets all of them.
fn quiet(
    ground: &mut Ground,
    condition: Condition,
    plan: &Plan,
    results: &mut Results,
    rounds: impl Fn(&Amount) -> usize,
) -> Result<(), Failure> {
    for block in 0..plan.blocks {
        for amount in plan.amounts.iter().filter(|amount| rounds(amount) > 0) {
            let outcomes = measure(ground, condition, amount, rounds(amount), block, plan)?;
            results.add(condition, amount.bytes, &outcomes);
        }
    }
    Ok(())
}

fn measure(
    ground: &mut Ground,
    condition: Condition,
    amount: &Amount,
    rounds: usize,
    block: usize,
    plan: &Plan,
) -> Result<Vec<Outcome>, Failure> {
    let of = size(amount.bytes);
    progress(&format!("{}, {of}, block {} of {}", condition.word(), block + 1, plan.blocks));
    let load = Load { bytes: amount.bytes, rounds, gap: amount.gap, block };
    let outcomes = latency::run(ground, &plan.arms, condition, load, &plan.trouble)?;
    for arm in plan.arms.iter().copied() {
        let of_arm = || outcomes.iter().filter(move |outcome| outcome.arm == arm);
        let missing = of_arm().filter(|outcome| outcome.delivered.iter().any(Option::is_none)).count();
        let accepted = of_arm().filter(|outcome| outcome.accepted.is_some()).count();
        if missing > 0 {
            let all = of_arm().count();
            progress(&format!("{}: {missing} of {all} not opened by all readers, {accepted} accepted", arm.word()));
        }
    }
    for failure in ground.failures().iter().take(3) {
        progress(&format!("not sent: {failure}"));
    }
    Ok(outcomes)
}

/// What a reader must know of the run.
fn facts(plan: &Plan) -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let memory = kib.map_or(String::new(), |kib| format!(", {:.0} GiB of memory", kib as f64 / f64::from(1 << 20)));
    let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, name)| name.to_owned());
    let profile = if cfg!(debug_assertions) { "not optimised" } else { "release" };
    let mut facts = vec![
        format!(
            "A {} run of Sealcast {}, {}, build {profile}, on {cores} cores ({}){memory}, {}: brokers, nodes, clients and consumers \
             share them.",
            plan.name,
            env!("CARGO_PKG_VERSION"),
            write_time(SystemClock::new().now()).split_once('T').map(|(day, _)| day.to_owned()).unwrap_or_default(),
            model.unwrap_or_else(|| "unknown".to_owned()),
            std::env::consts::OS,
        ),
        "Apache Kafka 4.3.0, three brokers that are also controllers, JDK defaults but for the heap and Kafka's own collector \
         settings, on this machine's disk, loopback network; what topics need not keep goes within two seconds."
            .to_owned(),
        format!(
            "Before anything counts, all ways of 64 KiB and more are under full load in turns, {} s: a JVM compiles what runs often \
             while it runs, and on few cores that is a large part of the machine.",
            plan.loaded.as_secs_f64()
        ),
        format!("{}.", records::TUNING),
        "Times are milliseconds from the moment at which a message was due. Delivered: opened and found genuine, each of three \
         readers counted (nodes, or consumers), so what any one reader sees and not the fastest of three. Accepted: the brokers \
         acknowledged all of it (Sealcast: any one broker may be lost). Committed: a majority of receipts verified at the client; \
         for the pipeline two answers. What never came counts as the time that it was waited for."
            .to_owned(),
        "Spread: lowest and highest of the blocks (latency) or runs (throughput, cost) of which the value is the whole, or the \
         median; - where all are alike, or there is one."
            .to_owned(),
    ];
    if plan.readers < hear::NODES.len() {
        let readers = plan.readers;
        let of_two = if readers == 1 { " and two answers" } else { "" };
        let fact = format!(
            "Readers: {readers}, so many nodes, and consumers of each other arm, where the lines below say three{of_two} \
             (`--readers {readers}`)."
        );
        facts.insert(1, fact);
    }
    facts.extend(loads(plan));
    facts.extend(plan.arms.iter().map(|arm| format!("**{}**: {}", arm.word(), arm.gives())));
    facts
}

/// How much is sent of what, and how often.
fn loads(plan: &Plan) -> Vec<String> {
    let mut loads = Vec::new();
    let millis = |time: Duration| time.as_millis();
    let mut in_blocks = |word, rounds: fn(&Amount) -> usize| {
        let amounts = plan.amounts.iter().filter(|amount| rounds(amount) > 0);
        let amounts: Vec<_> = amounts.map(|amount| format!("{} of {}", rounds(amount), size(amount.bytes))).collect();
        if !amounts.is_empty() {
            let blocks = plan.blocks;
            loads.push(format!("Messages of each arm in each of {blocks} blocks, {word}: {}.", amounts.join(", ")));
        }
    };
    if plan.has(Condition::AllWell) {
        in_blocks("all well", |amount| amount.rounds);
    }
    if plan.has(Condition::AllWellProxied) || plan.has(Condition::Slow) {
        in_blocks("with proxies", |amount| amount.proxied);
    }
    let gaps = plan.amounts.iter().map(|amount| format!("{} ms at {}", millis(amount.gap), size(amount.bytes)));
    let gaps: Vec<_> = gaps.collect();
    if !plan.conditions.is_empty() && !gaps.is_empty() {
        loads.push(format!(
            "From one message to the next, all arms in turns: {}; of one arm {} times that on average. In trouble messages go on as long as \
             the trouble takes, in one block.",
            gaps.join(", "),
            plan.arms.len()
        ));
    }
    if !plan.through.is_empty() {
        let runs = plan.runs;
        loads.push(format!("Throughput: {runs} runs of each arm and size, {} ms each.", millis(plan.each)));
    }
    loads
}

fn publish(options: &Options, facts: &[String], rows: &[Row]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(page::printed(options.section(), facts, rows).as_bytes())?;
    if let Some(path) = &options.json {
        let lines: Result<Vec<String>, _> = rows.iter().map(serde_json::to_string).collect();
        std::fs::write(path, lines?.join("\n") + "\n")?;
    }
    if let Some(path) = &options.html {
        std::fs::write(path, page::html(facts, rows))?;
    }
    if options.write {
        write(options.section(), facts, rows)?;
    }
    let judged = rows.iter().filter(|row| row.met.is_some()).count();
    let met = rows.iter().filter(|row| row.met == Some(true)).count();
    progress(&format!("{} rows; {met} of {judged} targets met", rows.len()));
    Ok(())
}

/// Writes this section of docs/performance.md; with a comparison its plots, and none but these stay.
fn write(section: Section, facts: &[String], rows: &[Row]) -> Result<(), Failure> {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let path = docs.join("performance.md");
    let document = std::fs::read_to_string(&path)?;
    let plots = if section == Section::Compared { plots::of_document(rows) } else { Vec::new() };
    let written = page::replace(&document, section, &section.text(facts, rows, &plots))
        .ok_or_else(|| format!("docs/performance.md has no {}", section.markers().join(" ")))?;
    if section == Section::Compared {
        let folder = docs.join(page::PLOTS);
        std::fs::create_dir_all(&folder)?;
        for old in std::fs::read_dir(&folder)? {
            let old = old?.path();
            if old.extension().is_some_and(|ending| ending == "svg") {
                std::fs::remove_file(old)?;
            }
        }
        for plot in &plots {
            std::fs::write(folder.join(format!("{}.svg", plot.name)), &plot.svg)?;
        }
    }
    std::fs::write(path, written)?;
    let plots = if plots.is_empty() { "" } else { ", with its plots" };
    progress(&format!("docs/performance.md is written{plots}"));
    Ok(())
}
