//! What is asked for, and how much of everything that means.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::figures::page::Section;
use crate::figures::words::{Arm, Condition, size, typed};
use crate::hear::NODES;
use crate::latency::Trouble;
use crate::throughput::SMALL_BYTES;

/// Compares Sealcast with what people use today, on three real brokers that it starts: `scripts/compare`.
#[derive(Debug, Parser)]
#[command(name = "compare", bin_name = "scripts/compare", version, after_help = choices())]
pub struct Options {
    /// Fewer messages: under five minutes on two cores.
    #[arg(long, conflicts_with = "smoke")]
    pub quick: bool,
    /// A few messages of everything, to see that all rows are printed: their figures mean nothing.
    #[arg(long)]
    pub smoke: bool,
    /// With it: no broker is ended, which takes most of its time.
    #[arg(long, requires = "smoke")]
    pub brief: bool,
    /// Only these arms, below; ratios need the one that is compared with. Comma-separated.
    #[arg(long, value_name = "ARM", value_delimiter = ',', value_parser = arm, conflicts_with = "smoke")]
    pub arms: Vec<Arm>,
    /// Latency only under these conditions, below. Comma-separated.
    #[arg(long, value_name = "CONDITION", value_delimiter = ',', value_parser = condition, conflicts_with = "smoke")]
    pub conditions: Vec<Condition>,
    /// Only these sizes: `1KiB`, `64KiB`, `1MiB`, `16MiB`; of throughput `256B`, `64KiB`, `256KiB`, `1MiB`. Comma-separated.
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = payload, conflicts_with = "smoke")]
    pub payloads: Vec<u64>,
    /// Only this: `latency` or `throughput`.
    #[arg(long, value_name = "WHAT", value_parser = ["latency", "throughput"], conflicts_with = "smoke")]
    pub only: Option<String>,
    /// Also where the time of a transaction goes until it is committed: the median moment of each step. Hearing of so many
    /// steps costs time itself.
    #[arg(long, conflicts_with = "smoke")]
    pub stages: bool,
    /// So many nodes, and consumers of each other arm, instead of three: 1 or 2. Not of 256 B, which is measured on all three.
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u8).range(1..NODES.len() as i64),
        conflicts_with_all = ["smoke", "stages", "rows"]
    )]
    pub readers: Option<u8>,
    /// Writes one JSON object for each row into this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes a page for browsers into this file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Writes tables and plots into docs/performance.md, into the part that is of this kind of run: compared (a run that is not
    /// narrowed), `--readers 1`, `--stages`, `--growth`, `--steady`.
    #[arg(long, conflicts_with = "smoke")]
    pub write: bool,
    /// Measures how Sealcast's own time and memory grow, instead of comparing.
    #[arg(long, conflicts_with_all = ["rows", "arms", "conditions", "payloads", "only", "stages", "readers"])]
    pub growth: bool,
    /// Measures whether memory grows in so many minutes of load, instead of comparing.
    #[arg(
        long,
        value_name = "MINUTES",
        value_parser = clap::value_parser!(u64).range(1..=100_000),
        conflicts_with_all = ["rows", "growth", "arms", "conditions", "payloads", "only", "stages", "readers"]
    )]
    pub steady: Option<u64>,
    /// Adds rows that others measured, one JSON object a line: `cargo bench --bench parts -- --json FILE`, or
    /// `SEALCAST_MEMORY_ROWS=FILE cargo test --release --test memory`.
    #[arg(long, value_name = "FILE")]
    pub rows: Vec<PathBuf>,
    /// What `cargo bench` says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What `--arms` and `--conditions` take.
fn choices() -> String {
    let (arms, conditions) = (Arm::ALL.map(Arm::slug), Condition::ALL.map(Condition::slug));
    format!("Arms: {}.\nConditions: {}.", arms.join(", "), conditions.join(", "))
}

fn arm(text: &str) -> Result<Arm, String> {
    typed(text, &Arm::ALL, Arm::slug)
}

fn condition(text: &str) -> Result<Condition, String> {
    typed(text, &Condition::ALL, Condition::slug)
}

fn payload(text: &str) -> Result<u64, String> {
    let sizes = [SMALL_BYTES, KIB, 64 * KIB, 256 * KIB, MIB, 16 * MIB];
    typed(text, &sizes, |bytes| size(bytes).replace(' ', ""))
}

/// How many messages of which size.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// Payload bytes.
    pub bytes: u64,
    /// Rounds of each block, all well.
    pub rounds: usize,
    /// Rounds of each block with proxies, all well and slow; none for 0.
    pub proxied: usize,
    /// Whether pauses, deaths and rolls are measured with it.
    pub in_trouble: bool,
    /// From one message to the next.
    pub gap: Duration,
}

/// How much of everything.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What it is, for people.
    pub name: &'static str,
    /// Parts of the latency runs that are apart in time.
    pub blocks: usize,
    /// How many readers open each message: nodes, or consumers.
    pub readers: usize,
    /// Ways that are compared.
    pub arms: Vec<Arm>,
    /// Conditions of latency.
    pub conditions: Vec<Condition>,
    /// Sizes.
    pub amounts: Vec<Amount>,
    /// Rounds before anything counts.
    pub warm_up: usize,
    /// How long brokers are under full load before that, so that their just-in-time compilers have done most of their work.
    pub loaded: Duration,
    /// How they go.
    pub trouble: Trouble,
    /// Sizes of throughput.
    pub through: Vec<u64>,
    /// Throughput: runs of each way, and how long each sends.
    pub runs: usize,
    /// See `runs`.
    pub each: Duration,
    /// Messages under way at once, at most.
    pub under_way: usize,
    /// Whether there is a cluster for measurements without proxies and one with; a smoke run has one for both.
    pub two_clusters: bool,
    /// Growth: so many steps of each axis, the smallest.
    pub steps: usize,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

impl Plan {
    /// The largest payload.
    pub fn largest(&self) -> u64 {
        let latency = self.amounts.iter().map(|amount| amount.bytes);
        latency.chain(self.through.iter().copied()).max().unwrap_or(0).max(64 * KIB)
    }

    /// Whether latency is measured under this condition.
    pub fn has(&self, condition: Condition) -> bool {
        self.conditions.contains(&condition)
    }

    /// What is measured after all has been well, and is no longer well then.
    pub fn troubles(&self) -> Vec<Condition> {
        let troubles = [Condition::Paused, Condition::Killed, Condition::Rolled];
        troubles.into_iter().filter(|trouble| self.has(*trouble)).collect()
    }

    /// Whether anything is measured without proxies.
    pub fn unproxied(&self) -> bool {
        self.has(Condition::AllWell) || !self.through.is_empty() || !self.troubles().is_empty()
    }

    /// Whether anything is measured behind proxies.
    pub fn proxied(&self) -> bool {
        self.has(Condition::AllWellProxied) || self.has(Condition::Slow)
    }
}

impl Plan {
    /// Whether anything is left to measure.
    fn is_empty(&self) -> bool {
        let sent = |condition: &Condition| {
            let counts = |amount: &Amount| match condition {
                Condition::AllWell => amount.rounds > 0,
                Condition::AllWellProxied | Condition::Slow => amount.proxied > 0,
                Condition::Paused | Condition::Killed | Condition::Rolled => amount.in_trouble,
            };
            self.amounts.iter().any(counts)
        };
        self.through.is_empty() && !self.conditions.iter().any(sent)
    }
}

impl Options {
    /// Of which kind the run is.
    pub fn section(&self) -> Section {
        match self {
            Self { growth: true, .. } => Section::Growth,
            Self { steady: Some(_), .. } => Section::Steady,
            Self { stages: true, write: true, .. } => Section::Stages,
            Self { readers: Some(1), .. } => Section::OneReader,
            _ => Section::Compared,
        }
    }

    fn narrowed(&self) -> bool {
        let chosen =
            !(self.arms.is_empty() && self.conditions.is_empty() && self.payloads.is_empty() && self.only.is_none());
        chosen || self.readers.is_some()
    }

    /// The plan, unless nothing is left of it: then what could be chosen.
    pub fn checked_plan(&self) -> Result<Plan, String> {
        if self.write && self.narrowed() && self.section() == Section::Compared {
            return Err("--write is for a run that is not narrowed, or with --stages or --readers 1: leave --arms, --conditions, \
                        --payloads, --only and --readers 2 out"
                .to_owned());
        }
        let plan = self.plan();
        if !plan.is_empty() {
            return Ok(plan);
        }
        let all = self.plan_of_readers();
        let words = |bytes: Vec<u64>| {
            let words: Vec<_> = bytes.into_iter().map(|bytes| size(bytes).replace(' ', "")).collect();
            words.join(", ")
        };
        let latency = words(all.amounts.iter().map(|amount| amount.bytes).collect());
        let throughput = words(all.through);
        Err(format!(
            "nothing of that is measured: latency is of {latency}, with one broker slow or in trouble of fewer, throughput of \
             {throughput}"
        ))
    }

    /// The amounts that the options mean, and of these what was chosen.
    fn plan(&self) -> Plan {
        let mut plan = self.plan_of_readers();
        if !self.arms.is_empty() {
            plan.arms.retain(|arm| self.arms.contains(arm));
        }
        if !self.conditions.is_empty() {
            plan.conditions.retain(|condition| self.conditions.contains(condition));
        }
        if !self.payloads.is_empty() {
            plan.amounts.retain(|amount| self.payloads.contains(&amount.bytes));
            plan.through.retain(|bytes| self.payloads.contains(bytes));
        }
        match self.only.as_deref() {
            Some("latency") => plan.through.clear(),
            Some(_) => plan.conditions.clear(),
            None => {}
        }
        if self.narrowed() {
            plan.name = if self.quick { "quick, narrowed" } else { "full, narrowed" };
        }
        plan
    }

    /// All that is measured with as many readers as there are to be.
    fn plan_of_readers(&self) -> Plan {
        let mut plan = self.whole_plan();
        if self.readers.is_some() {
            // Its rows say *applied on all three*.
            plan.through.retain(|bytes| *bytes != SMALL_BYTES);
        }
        plan
    }

    fn whole_plan(&self) -> Plan {
        let (millis, seconds) = (Duration::from_millis, Duration::from_secs);
        let amount = |bytes, gap, [rounds, proxied]: [usize; 2], in_trouble| Amount {
            bytes,
            rounds,
            proxied,
            in_trouble,
            gap: millis(gap),
        };
        let trouble = Trouble {
            calm: seconds(3),
            pause: seconds(5),
            away: seconds(20),
            returns: false,
            rolled: 3,
            between: seconds(2),
            patience: seconds(60),
        };
        let full = Plan {
            name: "full",
            blocks: 3,
            readers: self.readers.map_or(NODES.len(), usize::from),
            arms: Arm::ALL.to_vec(),
            conditions: Condition::ALL.to_vec(),
            amounts: vec![
                amount(KIB, 15, [200, 150], true),
                amount(64 * KIB, 15, [200, 150], true),
                amount(MIB, 60, [60, 40], true),
                amount(16 * MIB, 900, [8, 0], false),
            ],
            warm_up: 100,
            loaded: seconds(45),
            trouble,
            through: vec![SMALL_BYTES, 64 * KIB, 256 * KIB, MIB],
            runs: 3,
            // What nodes store stays until the end: three times the payload.
            each: millis(2500),
            under_way: usize::MAX,
            two_clusters: true,
            steps: usize::MAX,
        };
        if self.smoke {
            return Plan {
                name: "smoke (its figures mean nothing)",
                blocks: 1,
                amounts: vec![
                    // Few enough for a machine that does much else: brokers may take long to come back.
                    amount(KIB, 40, [1, 1], true),
                    amount(64 * KIB, 5, [1, 0], false),
                    amount(MIB, 20, [1, 0], false),
                ],
                warm_up: 1,
                loaded: millis(5),
                conditions: Condition::ALL
                    .into_iter()
                    .filter(|condition| !(self.brief && matches!(condition, Condition::Killed | Condition::Rolled)))
                    .collect(),
                trouble: Trouble {
                    calm: millis(50),
                    pause: millis(500),
                    away: millis(300),
                    returns: true,
                    rolled: 1,
                    between: millis(100),
                    patience: seconds(60),
                },
                runs: 1,
                each: millis(5),
                under_way: 2,
                two_clusters: false,
                steps: 2,
                ..full
            };
        }
        if self.quick {
            return Plan {
                name: "quick",
                blocks: 2,
                amounts: vec![
                    amount(KIB, 15, [36, 24], false),
                    amount(64 * KIB, 15, [36, 24], true),
                    amount(MIB, 60, [12, 6], false),
                    amount(16 * MIB, 900, [1, 0], false),
                ],
                warm_up: 20,
                loaded: seconds(3),
                trouble: Trouble {
                    calm: seconds(2),
                    away: seconds(7),
                    between: seconds(1),
                    patience: seconds(20),
                    ..trouble
                },
                runs: 2,
                each: millis(750),
                steps: 3,
                ..full
            };
        }
        full
    }
}
