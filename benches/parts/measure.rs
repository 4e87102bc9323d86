//! One part: what runs, beside what, how it is timed, and what its figures are.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode};

/// What a figure is, and so which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Megabytes (10^6) of payload a second.
    Megabytes,
    /// Operations a second.
    PerSecond,
    /// Microseconds an operation.
    Micros,
}

impl Unit {
    pub fn word(self) -> &'static str {
        match self {
            Self::Megabytes => "MB/s",
            Self::PerSecond => "/s",
            Self::Micros => "us",
        }
    }

    /// The figure of a run of so many seconds.
    fn figure(self, seconds: f64, payload: usize, operations: u32) -> f64 {
        match self {
            Self::Megabytes => payload as f64 / seconds / 1e6,
            Self::PerSecond => f64::from(operations) / seconds,
            Self::Micros => seconds * 1e6 / f64::from(operations),
        }
    }
}

/// What the ratio to a baseline must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    pub fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(least) => ratio >= least,
            Self::AtMost(most) => ratio <= most,
        }
    }

    pub fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!(">= {least}"),
            Self::AtMost(most) => format!("<= {most}"),
        }
    }
}

/// Runs something this often and gives the seconds that one run took: of each run, or the mean of all.
type Timed = Box<dyn FnMut(u64) -> Vec<f64>>;

/// One of the things that are compared: the part itself, or a baseline.
pub struct Arm {
    name: &'static str,
    /// The target of the part's ratio to this baseline.
    target: Option<Target>,
    /// Operations of one run.
    operations: u32,
    timed: Timed,
    /// The seconds of one run, one list for each of criterion's samples.
    samples: Vec<Vec<f64>>,
}

impl Arm {
    fn new(name: &'static str, timed: Timed) -> Self {
        Self { name, target: None, operations: 1, timed, samples: Vec::new() }
    }

    /// Times many runs together: for what takes less than some microseconds.
    pub fn fast<T>(name: &'static str, mut run: impl FnMut() -> T + 'static) -> Self {
        let timed = move |times: u64| {
            let began = Instant::now();
            for _ in 0..times {
                black_box(run());
            }
            vec![began.elapsed().as_secs_f64() / times as f64]
        };
        Self::new(name, Box::new(timed))
    }

    /// Times each run alone, without what prepares it and without dropping what it gives.
    pub fn each<I, T>(
        name: &'static str,
        mut prepare: impl FnMut() -> I + 'static,
        mut run: impl FnMut(I) -> T + 'static,
    ) -> Self {
        let timed = move |times: u64| {
            let time_one = |_| {
                let input = prepare();
                let began = Instant::now();
                let output = black_box(run(black_box(input)));
                let took = began.elapsed().as_secs_f64();
                drop(output);
                took
            };
            (0..times).map(time_one).collect()
        };
        Self::new(name, Box::new(timed))
    }

    pub fn target(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }

    /// Keeps something as long as the arm: the folder that it writes to.
    pub fn keep(mut self, kept: impl Sized + 'static) -> Self {
        let mut timed = self.timed;
        self.timed = Box::new(move |times| {
            let _ = &kept;
            timed(times)
        });
        self
    }

    pub fn operations(self, operations: u32) -> Self {
        Self { operations, ..self }
    }

    fn time(&mut self, times: u64) -> Duration {
        let samples = (self.timed)(times);
        let mean = samples.iter().sum::<f64>() / samples.len() as f64;
        self.samples.push(samples);
        Duration::from_secs_f64(mean * times as f64)
    }

    /// The middle of all runs and the quarters around it, lowest figure first. What criterion ran to warm up came first.
    fn spread(&self, last: usize, unit: Unit, payload: usize) -> Spread {
        let from = self.samples.len().saturating_sub(last);
        let figure = |seconds: &f64| unit.figure(seconds.max(1e-9), payload, self.operations);
        let mut figures: Vec<f64> = self.samples[from..].iter().flatten().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        let at = |quantile: f64| figures[((figures.len() - 1) as f64 * quantile).round() as usize];
        Spread { low: at(0.25), median: at(0.5), high: at(0.75) }
    }
}

/// A figure and its spread.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    /// A quarter of the runs were below.
    pub low: f64,
    pub median: f64,
    /// A quarter of the runs were above.
    pub high: f64,
}

/// A part beside one of its baselines.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    pub arm: &'static str,
    pub baseline: &'static str,
    pub condition: String,
    pub payload: usize,
    pub unit: Unit,
    pub value: Spread,
    pub baseline_value: Spread,
    pub target: Option<Target>,
    /// Whether there was a measurement: what ran once has no meaning.
    pub measured: bool,
}

impl Row {
    /// The part's figure in units of the baseline's.
    pub fn ratio(&self) -> f64 {
        self.value.median / self.baseline_value.median
    }

    pub fn met(&self) -> Option<bool> {
        self.target.filter(|_| self.measured).map(|target| target.is_met(self.ratio()))
    }
}

/// A part under one condition, with its baselines.
pub struct Part {
    name: &'static str,
    condition: String,
    payload: usize,
    unit: Unit,
    /// Prepares the part and, behind it, its baselines; only when it is run at all.
    arms: Box<dyn FnOnce() -> Vec<Arm>>,
}

impl Part {
    pub fn new(
        name: &'static str,
        condition: impl Into<String>,
        payload: usize,
        unit: Unit,
        arms: impl FnOnce() -> Vec<Arm> + 'static,
    ) -> Self {
        Self { name, condition: condition.into(), payload, unit, arms: Box::new(arms) }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its name for criterion.
    pub fn id(&self) -> String {
        match self.payload {
            0 => format!("{}/{}", self.name, self.condition),
            payload => format!("{}/{}/{}", self.name, self.condition, size(payload)),
        }
    }

    /// Runs it if criterion's flags take it; one row for each baseline.
    pub fn run(self, criterion: &mut Criterion, last: usize, measured: bool) -> Vec<Row> {
        let id = self.id();
        let Self { name, condition, payload, unit, arms } = self;
        let (mut prepare, mut arms) = (Some(arms), Vec::new());
        let mut turn = 0;
        let mut group = criterion.benchmark_group(name);
        group.sampling_mode(SamplingMode::Flat);
        let id = id.strip_prefix(name).unwrap().trim_start_matches('/').to_owned();
        group.bench_function(id, |bencher| {
            if let Some(prepare) = prepare.take() {
                arms = prepare();
            }
            bencher.iter_custom(|times| {
                // Who begins changes, so that nobody always runs in the warmth of the same other.
                let mut took = vec![Duration::ZERO; arms.len()];
                for at in 0..arms.len() {
                    let at = (at + turn) % arms.len();
                    took[at] = arms[at].time(times);
                }
                turn += 1;
                took[0]
            });
        });
        group.finish();
        let Some((own, baselines)) = arms.split_first() else { return Vec::new() };
        let value = own.spread(last, unit, payload);
        let row = |baseline: &Arm| Row {
            name,
            arm: own.name,
            baseline: baseline.name,
            condition: condition.clone(),
            payload,
            unit,
            value,
            baseline_value: baseline.spread(last, unit, payload),
            target: baseline.target,
            measured,
        };
        baselines.iter().map(row).collect()
    }
}

/// A length as people write it.
pub fn size(bytes: usize) -> String {
    match bytes {
        0 => String::new(),
        bytes if bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        bytes if bytes % 1024 == 0 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}
