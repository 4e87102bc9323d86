//! Whether memory grows under load that goes on: real brokers, three `sealcast node run` and one `sealcast bench`, whose resident
//! memory is read every second.
//!
//! Owns the run. Slopes are computed in `figures`.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::kafka::Cluster;
use crate::common::world::World;
use crate::figures::steady::Series;
use crate::{Failure, progress};

/// Sends a second, and payloads: small enough for two cores that also carry three brokers, of every size class.
const RATE: &str = "60";
const PAYLOAD: &str = "1KiB:80,16KiB:15,64KiB:5";

/// The load, in words.
pub fn load() -> String {
    format!("{RATE} transactions a second, payloads {PAYLOAD} (size:weight), outbox on disk")
}

/// Loads a cluster for so long; gives the memory of each process, in MiB, every second.
pub fn run(lasting: Duration) -> Result<Vec<Series>, Failure> {
    progress("starting three brokers and three nodes");
    let cluster = Cluster::start_fast();
    let mut world = World::new(&cluster.brokers());
    world.start_all();
    let seconds = format!("{}s", lasting.as_secs());
    let words = ["bench", "orders", "--config", "env/senders/web/client.toml", "--format", "json", "--warm-up", "5s"];
    let load = ["--rate", RATE, "--payload", PAYLOAD, "--duration", &seconds];
    let mut bench = world.command(&[words.as_slice(), &load].concat());
    let mut bench = bench.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut processes = vec![("client (sealcast bench)".to_owned(), bench.id())];
    processes.extend(["a", "b", "c"].map(|node| (format!("node {node}"), world.process(node))));
    let mut all: Vec<Series> = processes.iter().map(|(name, _)| Series::new(name)).collect();
    let began = Instant::now();
    for second in 1.. {
        std::thread::sleep((began + Duration::from_secs(second)).saturating_duration_since(Instant::now()));
        if bench.try_wait()?.is_some() {
            break;
        }
        for (series, (_, process)) in all.iter_mut().zip(&processes) {
            // None: it ended in this moment.
            if let Some(mib) = resident(*process) {
                series.push(began.elapsed().as_secs_f64(), mib);
            }
        }
        if second % 60 == 0 {
            progress(&format!("{} of {} minutes under load", second / 60, lasting.as_secs().div_ceil(60)));
        }
    }
    let output = bench.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("sealcast bench: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(all)
}

/// The memory that a process has resident, in MiB.
fn resident(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()? / 1024.0)
}
