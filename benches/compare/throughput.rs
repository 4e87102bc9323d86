//! Throughput, and what it costs: a closed loop with so many messages under way at once, one way after the other; meanwhile the
//! brokers' processor time and the growth of their logs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::Failure;
use crate::figures::rows::{Row, Target};
use crate::figures::stats::{Spread, median_of_runs};
use crate::figures::words::{Arm, Condition};
use crate::flights::Until;
use crate::ground::{Ground, Way};
use crate::options::Plan;
use crate::progress;

/// One series of runs.
#[derive(Debug, Clone, Copy)]
struct Series {
    bytes: u64,
    under_way: usize,
    until: Until,
    against: Way,
    ways: &'static [Way],
}

const LARGE: &[Way] = &[
    Way::Of(Arm::SealedOne),
    Way::Of(Arm::SealedThree),
    Way::Of(Arm::Memory),
    Way::Of(Arm::Disk),
    Way::Of(Arm::Replicated),
];
const SMALL: &[Way] = &[Way::SmallRecords, Way::Of(Arm::Memory), Way::Of(Arm::Disk)];
/// Payload bytes of the small transactions, which every reader stores.
pub const SMALL_BYTES: u64 = 256;
const KIB: u64 = 1 << 10;

const SERIES: [Series; 4] = [
    Series { bytes: SMALL_BYTES, under_way: 4096, until: Until::Stored, against: Way::SmallRecords, ways: SMALL },
    large(64 * KIB),
    large(256 * KIB),
    large(1024 * KIB),
];

const fn large(bytes: u64) -> Series {
    Series { bytes, under_way: 32, until: Until::Delivered, against: Way::Of(Arm::SealedThree), ways: LARGE }
}

/// How long what is under way may take to end.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often the logs are looked at: they are deleted in pieces, each after seconds.
const LOOK: Duration = Duration::from_millis(500);

/// How long one way is loaded before it is the next one's turn.
const TURN: Duration = Duration::from_secs(1);

/// What one run came to.
struct Ran {
    per_second: f64,
    disk_per_byte: f64,
    cpu_ms_per_mib: f64,
    compilers_ms_per_mib: f64,
}

/// Loads brokers on all ways of 64 KiB and more for as long as is planned; nothing of it counts. A JVM compiles what runs often while it runs: on two
/// cores, brokers that have just started spend a quarter of the machine on that.
pub fn load(ground: &Ground, plan: &Plan) -> Result<(), Failure> {
    let Plan { arms, under_way, loaded, .. } = plan;
    let fits = |series: &Series| series.until == Until::Delivered && series.bytes <= plan.largest();
    let series: Vec<_> = SERIES.into_iter().filter(fits).collect();
    let ways = series.iter().flat_map(|series| series.ways.iter().map(move |way| (*series, *way)));
    let ways: Vec<_> = ways.filter(|(_, way)| arms.contains(&way.arm())).collect();
    let (began, turn) = (Instant::now(), TURN.min(*loaded));
    for (series, way) in ways.iter().cycle() {
        if began.elapsed() >= *loaded {
            break;
        }
        one(ground, Series { under_way: series.under_way.min(*under_way), ..*series }, *way, turn)?;
    }
    Ok(())
}

/// Runs all series as planned, and gives their rows.
pub fn rows(ground: &Ground, Plan { arms, through, runs, each, under_way, .. }: &Plan) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for series in SERIES.into_iter().filter(|series| through.contains(&series.bytes)) {
        let series = Series { under_way: series.under_way.min(*under_way), ..series };
        progress(&format!("throughput at {}", crate::figures::words::size(series.bytes)));
        let mut all: Vec<Vec<Ran>> = series.ways.iter().map(|_| Vec::new()).collect();
        let chosen = |way: Way| arms.contains(&way.arm());
        for run in 0..*runs {
            for place in 0..series.ways.len() {
                let at = (place + run) % series.ways.len();
                if let (Some(way), Some(ran)) = (series.ways.get(at).filter(|way| chosen(**way)), all.get_mut(at)) {
                    ran.push(one(ground, series, *way, *each)?);
                }
            }
        }
        rows.extend(compared(series, &all));
    }
    Ok(rows)
}

fn one(ground: &Ground, series: Series, way: Way, each: Duration) -> Result<Ran, Failure> {
    let sender = ground.sender();
    let places = Arc::new(Semaphore::new(series.under_way));
    let (topics, processes) = (ground.topics(way), ground.cluster.processes());
    let mut disk = Logs::new(ground.cluster.data_folders(), topics)?;
    let (cpu, compilers) = (processor_time(&processes)?, compiler_times(&processes)?);
    let began = Instant::now();
    let (mut sent, mut looked) = (0_u64, began);
    // One at least, however slow the machine is.
    while sent == 0 || began.elapsed() < each {
        // What is lost for good would stop the run, and is told.
        let place = sender.place(&places, PATIENCE).ok_or("nothing is delivered any more")?;
        sender.send(way, 0, series.bytes, Instant::now(), series.until, Some(place));
        sent += 1;
        if looked.elapsed() >= LOOK {
            disk.look()?;
            looked = Instant::now();
        }
    }
    if !ground.flights.wait(PATIENCE, |_| true) {
        let waiting = ground.flights.waiting(|_| true);
        let said = ground.failures().into_iter().next().unwrap_or_default();
        return Err(format!("{waiting} of {sent} messages did not arrive: {said}").into());
    }
    let took = began.elapsed().as_secs_f64();
    // What nodes still do with it belongs to what it costs, and must not slow the next run down.
    ground.flights.settle(PATIENCE);
    let cpu = processor_time(&processes)? - cpu;
    let compilers: f64 = compiler_times(&processes)?
        .into_iter()
        .map(|(thread, time)| time - compilers.get(&thread).copied().unwrap_or_default())
        .sum();
    let disk = disk.growth()?;
    ground.flights.take();
    let bytes = (sent * series.bytes) as f64;
    let mebibytes = bytes / f64::from(1 << 20);
    Ok(Ran {
        per_second: bytes / took,
        disk_per_byte: disk as f64 / bytes,
        cpu_ms_per_mib: 1e3 * cpu / mebibytes,
        compilers_ms_per_mib: 1e3 * compilers / mebibytes,
    })
}

fn compared(series: Series, all: &[Vec<Ran>]) -> Vec<Row> {
    let figure = |way: Way, of: fn(&Ran) -> f64| -> Option<Spread> {
        let at = series.ways.iter().position(|other| *other == way)?;
        median_of_runs(&all.get(at)?.iter().map(of).collect::<Vec<_>>())
    };
    let small = series.until == Until::Stored;
    let baseline = if small { "big record RF3, three stores" } else { series.against.arm().word() };
    let mut rows = Vec::new();
    for way in series.ways {
        let row = |name: &str, unit, of| {
            let row = Row::new(name, way.arm(), Condition::AllWell, series.bytes, figure(*way, of)?).unit(unit);
            let other = figure(series.against, of).filter(|_| *way != series.against);
            Some(match other {
                Some(other) => row.against(baseline, other.value),
                None => Row { arm: baseline.to_owned(), ..row },
            })
        };
        let judged = |row: Row, target: Option<Target>| match target {
            Some(target) if *way == Way::Of(Arm::Memory) => row.must(target),
            _ => row,
        };
        if small {
            let row = row("applied on all three", "transactions/s", |ran| ran.per_second / SMALL_BYTES as f64);
            rows.extend(row.map(|row| judged(row, Some(Target::AtLeast(0.6)))));
        } else {
            let least = match series.bytes / KIB {
                64 => Some(Target::AtLeast(1.5)),
                1024 => Some(Target::AtLeast(1.2)),
                _ => None,
            };
            let row = row("throughput", "MB/s", |ran| ran.per_second / 1e6);
            rows.extend(row.map(|row| judged(row, least)));
        }
        if !small {
            let most = if series.bytes / KIB == 64 { 1.65 } else { 1.55 };
            let disk = figure(*way, |ran| ran.disk_per_byte);
            let disk =
                disk.map(|figure| Row::new("disk on brokers", way.arm(), Condition::AllWell, series.bytes, figure));
            rows.extend(disk.map(|row| judged(row.unit("bytes/payload byte"), Some(Target::AtMost(most)))));
        }
        let cpu = row("brokers' CPU", "ms/MiB", |ran| ran.cpu_ms_per_mib);
        let most = (series.bytes == 1 << 20).then_some(Target::AtMost(0.5));
        rows.extend(cpu.map(|row| judged(row, most)));
        rows.extend(row("brokers' CPU, JVM compilers", "ms/MiB", |ran| ran.compilers_ms_per_mib));
    }
    rows
}

/// The logs of topics whose names begin so, with what brokers have deleted meanwhile.
struct Logs {
    folders: Vec<PathBuf>,
    topics: String,
    at_first: u64,
    /// The most bytes that each file had.
    seen: BTreeMap<PathBuf, u64>,
}

impl Logs {
    fn new(folders: Vec<PathBuf>, topics: String) -> Result<Self, Failure> {
        let mut logs = Self { folders, topics, at_first: 0, seen: BTreeMap::new() };
        logs.look()?;
        logs.at_first = logs.seen.values().sum();
        Ok(logs)
    }

    fn growth(&mut self) -> Result<u64, Failure> {
        self.look()?;
        Ok(self.seen.values().sum::<u64>() - self.at_first)
    }

    fn look(&mut self) -> Result<(), Failure> {
        for partition in
            self.folders.iter().map(std::fs::read_dir).collect::<Result<Vec<_>, _>>()?.into_iter().flatten()
        {
            let partition = partition?;
            // `topic-0`, and not `topic.answers-0` of another arm: a number follows, or it is a family of topics.
            let name = partition.file_name().to_string_lossy().into_owned();
            let of_these = name.strip_prefix(&self.topics).is_some_and(|rest| {
                self.topics.ends_with('.') || rest.starts_with('-') || rest.starts_with(".answers-")
            });
            if of_these {
                for file in std::fs::read_dir(partition.path())? {
                    let path = file?.path();
                    if path.extension().is_some_and(|extension| extension == "log") {
                        // What is gone in this moment was seen before.
                        let length = there(std::fs::metadata(&path))?.map_or(0, |metadata| metadata.len());
                        let most = self.seen.entry(path).or_default();
                        *most = length.max(*most);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Processor seconds of these processes so far, from Linux's /proc.
fn processor_time(processes: &[u32]) -> Result<f64, Failure> {
    let ticks = ticks()?;
    let times = processes
        .iter()
        .map(|process| Ok(times(&std::fs::read_to_string(format!("/proc/{process}/stat"))?)?.1 / ticks));
    times.sum()
}

/// Processor seconds so far of each of their threads that compiles and still runs: the JVM ends those that have nothing to do, and
/// what they took since the last look goes with them.
fn compiler_times(processes: &[u32]) -> Result<BTreeMap<PathBuf, f64>, Failure> {
    let ticks = ticks()?;
    let mut all = BTreeMap::new();
    for process in processes {
        for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
            let thread = thread?.path();
            // A thread may end meanwhile.
            let Some(stat) = there(std::fs::read_to_string(thread.join("stat")))? else { continue };
            let (name, time) = times(&stat)?;
            if name.starts_with("C1 Compiler") || name.starts_with("C2 Compiler") {
                all.insert(thread, time / ticks);
            }
        }
    }
    Ok(all)
}

/// Ticks of a second.
fn ticks() -> Result<f64, Failure> {
    Ok(String::from_utf8_lossy(&Command::new("getconf").arg("CLK_TCK").output()?.stdout).trim().parse()?)
}

/// What was read, unless it is gone: a deleted file, an ended thread.
fn there<T>(read: std::io::Result<T>) -> Result<Option<T>, Failure> {
    /// Of `read(2)` in the `/proc` of a thread that has ended since it was opened: no such process.
    const ESRCH: i32 = 3;
    match read {
        Ok(it) => Ok(Some(it)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(ESRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The name of a process or thread, and its ticks so far, user and system: of its `/proc/PID/stat`.
fn times(stat: &str) -> Result<(String, f64), Failure> {
    // The name, in parentheses, may have blanks; user and system time are the 12th and 13th field behind it.
    let (before, rest) = stat.rsplit_once(") ").ok_or("/proc/PID/stat is not as expected")?;
    let name = before.split_once('(').map(|(_, name)| name).unwrap_or_default();
    let fields: Vec<&str> = rest.split(' ').collect();
    let mut sum = 0.0;
    for field in fields.get(11..13).ok_or("/proc/PID/stat is too short")? {
        sum += field.parse::<f64>()?;
    }
    Ok((name.to_owned(), sum))
}
