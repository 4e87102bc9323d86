//! Growth: whether time and memory for each transaction stay flat when there is more of one thing. Sealcast alone, all of it in this
//! process over the embedded transport, each step in a process of its own, so that its peak of memory is its own.
//!
//! Owns the steps. Exponents are computed in `figures`.

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use futures_util::stream::iter;
use sealcast::client::reader::{Freshness, From, Reader, Subscription};
use sealcast::client::{Client, Handle, Options, Transaction};
use sealcast::config::environment::{self, Plan};
use sealcast::config::{ClientConfig, NodeConfig, Sources, TransportSettings};
use sealcast::core::id::{DestinationName, Suite, TransactionId};
use sealcast::local::{Nodes, free_addresses, make_topics};
use sealcast::node::NodeOptions;
use sealcast::seams::Seams;
use sealcast::transport::{AnyTransport, TransportOptions};
use tokio::io::{AsyncRead, ReadBuf};

use crate::figures::growth::{Axis, Point};
use crate::{Failure, progress};

/// Names a step to the process that runs it.
const STEP: &str = "SEALCAST_COMPARE_STEP";
/// Transactions of one destination in the steps that vary how many take part.
const TRANSACTIONS: u64 = 4096;
/// Transactions of each sender there, at least.
const OF_EACH_SENDER: u64 = 256;
/// Their payload bytes.
const PAYLOAD: u64 = 1 << 10;
/// Payload bytes of the steps that vary the payload, at least one transaction.
const TOGETHER: u64 = 64 << 20;
/// From here on a payload is read piece by piece.
const STREAMED: u64 = 8 << 20;
/// Transactions of one sender to one destination that are under way at once.
const UNDER_WAY: usize = 256;
/// Reads whose median counts.
const READS: u64 = 50;

/// What a step consists of.
#[derive(Debug, Clone, Copy)]
struct Step {
    payload: u64,
    senders: u64,
    destinations: u64,
    nodes: u64,
    transactions: u64,
    reads: bool,
}

impl Step {
    fn of(axis: Axis, size: u64) -> Self {
        let usual =
            Self { payload: PAYLOAD, senders: 1, destinations: 1, nodes: 3, transactions: TRANSACTIONS, reads: false };
        match axis {
            Axis::Payload => Self { payload: size, transactions: (TOGETHER / size).clamp(1, TRANSACTIONS), ..usual },
            Axis::Senders => Self { senders: size, transactions: TRANSACTIONS.max(size * OF_EACH_SENDER), ..usual },
            Axis::Destinations => Self { destinations: size, transactions: TRANSACTIONS * size, ..usual },
            Axis::Nodes => Self { nodes: size, ..usual },
            Axis::Stored => Self { transactions: size, payload: 64, reads: true, ..usual },
        }
    }
}

/// Runs so many steps of every axis, the smallest, and gives what each came to.
pub fn points(steps: usize) -> Result<Vec<Point>, Failure> {
    let mut points = Vec::new();
    for axis in Axis::ALL {
        for size in axis.sizes().iter().copied().take(steps) {
            progress(&format!("growth with {}: {size}", axis.word()));
            let ran = Command::new(std::env::current_exe()?)
                .env(STEP, format!("{} {size}", axis.word()))
                .arg("--bench")
                .stderr(std::process::Stdio::inherit())
                .output()?;
            if !ran.status.success() {
                return Err(format!("growth with {}: the step {size} failed", axis.word()).into());
            }
            for line in String::from_utf8(ran.stdout)?.lines() {
                let (name, value) = line.split_once('\t').ok_or("a step said something else")?;
                points.push(Point { axis, size, name: name.to_owned(), value: value.parse()? });
            }
        }
    }
    Ok(points)
}

/// Runs the step that this process was started for; `None` when it was started for none.
pub fn step() -> Option<Result<(), Failure>> {
    let step = std::env::var(STEP).ok()?;
    let (word, size) = step.rsplit_once(' ')?;
    let axis = Axis::ALL.into_iter().find(|axis| axis.word() == word)?;
    let step = Step::of(axis, size.parse().ok()?);
    let run = || tokio::runtime::Runtime::new()?.block_on(run(step));
    Some(run())
}

fn say(name: &str, value: f64) {
    println!("{name}\t{value}");
}

/// Something of which only the length matters, a piece at a time.
struct Zeros(u64);

impl AsyncRead for Zeros {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let count = usize::try_from(self.0).unwrap_or(usize::MAX).min(to.remaining());
        to.initialize_unfilled_to(count).fill(0);
        to.advance(count);
        self.0 -= count as u64;
        Poll::Ready(Ok(()))
    }
}

async fn run(step: Step) -> Result<(), Failure> {
    let seams = Seams::real();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let plan = plan(step)?;
    let written = environment::write(&plan, &folder.path().join("environment"), &seams)?;
    let sender_files: Vec<_> = written.senders.values().cloned().collect();
    let config = ClientConfig::load(&Sources::file(sender_files.first().ok_or("no sender")?))?;
    let settings = config.transport()?.ok_or("no transport")?;
    let transport = AnyTransport::open(&TransportOptions::for_nodes(settings), &seams)?;
    make_topics(&transport, &written.directory).await?;
    let options = |path: &Path| -> Result<NodeOptions, Failure> {
        Ok(NodeOptions { http: None, ..NodeOptions::from_config(&NodeConfig::load(&Sources::file(path))?)? })
    };
    let options: Vec<NodeOptions> = written.nodes.values().map(|path| options(path)).collect::<Result<_, _>>()?;
    let nodes = Nodes::start(options.clone(), Arc::new(transport.clone()), &seams).await?;
    let mut clients = Vec::new();
    for file in &sender_files {
        let mut options = Options::from_config(&ClientConfig::load(&Sources::file(file))?, seams.clone())?;
        // What a sender's own memory holds is no measure of a payload's way.
        if step.payload < STREAMED {
            options.outbox.folder = None;
        }
        clients.push(Client::start(Arc::new(transport.clone()), options).await?);
    }
    let destinations: Vec<DestinationName> = plan.destinations.iter().cloned().collect();
    let began = Instant::now();
    let each = step.transactions.div_ceil(step.senders);
    let sending = clients.iter().zip(0..).map(|(client, sender)| send(client, &destinations, step, sender, each));
    let ids: Vec<TransactionId> = try_join_all(sending).await?.into_iter().flatten().collect();
    let sent = each * step.senders;
    say("time of a transaction, us", began.elapsed().as_secs_f64() * 1e6 / sent as f64);
    for client in clients {
        client.close().await;
    }
    if step.reads {
        nodes.shutdown().await;
        let began = Instant::now();
        let nodes = Nodes::start(options, Arc::new(transport.clone()), &seams).await?;
        say("start-up, ms", began.elapsed().as_secs_f64() * 1e3);
        let reader = written.readers.values().next().ok_or("no reader")?;
        let reader = ClientConfig::load(&Sources::file(reader))?;
        let reader = Reader::from_config(&reader, &seams)?;
        reads(&reader, destinations.first().ok_or("no destination")?, &ids).await?;
        nodes.shutdown().await;
    } else {
        nodes.shutdown().await;
    }
    say("peak of memory, MiB", peak()?);
    Ok(())
}

fn plan(step: Step) -> Result<Plan, Failure> {
    let names = |prefix: &str, count| (0..count).map(|number| format!("{prefix}{number}")).collect::<Vec<_>>();
    let nodes = names("node", step.nodes).iter().map(|name| name.parse()).collect::<Result<Vec<_>, _>>()?;
    Ok(Plan {
        name: "growth".parse()?,
        nodes: free_addresses(nodes, 0, 0)?,
        destinations: names("to", step.destinations).iter().map(|name| name.parse()).collect::<Result<_, _>>()?,
        senders: names("from", step.senders).iter().map(|name| name.parse()).collect::<Result<_, _>>()?,
        readers: BTreeSet::from(["reader".parse()?]),
        transport: TransportSettings::Embedded { path: "transport".into() },
        suite: Suite::XWing,
        minimum_suite: Suite::X25519,
        valid_for: Duration::from_secs(24 * 3600),
    })
}

/// Sends a sender's share to the destinations in turn, so many under way at once, and waits until all of it is committed.
async fn send(
    client: &Client,
    destinations: &[DestinationName],
    step: Step,
    sender: u64,
    each: u64,
) -> Result<Vec<TransactionId>, Failure> {
    let one = |number: u64| async move {
        let to = destinations.get((number + sender) as usize % destinations.len()).ok_or("no destination")?;
        let handle: Handle = if step.payload >= STREAMED {
            client.submit_reader(to.as_str(), Transaction::new(""), Zeros(step.payload), Some(step.payload)).await?
        } else {
            let mut payload = vec![0; step.payload as usize];
            blake3::Hasher::new().update(&number.to_be_bytes()).finalize_xof().fill(&mut payload);
            client.submit(to.as_str(), Transaction::new(payload)).await?
        };
        handle.committed().await?;
        Ok::<_, Failure>(handle.ticket().transaction)
    };
    let under_way = if step.payload >= STREAMED {
        1
    } else {
        (UNDER_WAY * destinations.len()).min((TOGETHER / step.payload) as usize).max(1)
    };
    let mut ids = Vec::new();
    let mut sending = iter(0..each).map(one).buffer_unordered(under_way);
    while let Some(id) = sending.next().await {
        ids.push(id?);
    }
    Ok(ids)
}

async fn reads(reader: &Reader, destination: &DestinationName, ids: &[TransactionId]) -> Result<(), Failure> {
    let mut took = Vec::new();
    for read in 0..READS {
        let id = ids.get((read as usize * 7919) % ids.len()).ok_or("nothing to read")?;
        let began = Instant::now();
        let mut feed = reader.get(*id, Some(destination), Freshness::default()).await?;
        feed.transaction(1 << 20).await?.ok_or("it is not there")?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    say("get by id, ms", crate::figures::stats::median(&took).unwrap_or_default());
    let mut took = Vec::new();
    for _ in 0..READS {
        let began = Instant::now();
        let middle = Subscription::new(From::Last(ids.len() as u64 / 2));
        let mut feed = reader.subscribe(destination, middle).await?;
        feed.transaction(1 << 20).await?.ok_or("nothing comes")?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    say("subscribe from the middle, ms", crate::figures::stats::median(&took).unwrap_or_default());
    Ok(())
}

/// The most memory that this process ever had resident, in MiB.
fn peak() -> Result<f64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}
