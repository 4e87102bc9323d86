//! `sealcast bench`: how long each stage of the way takes at a given rate, on a cluster of yours or on one of its own.
//!
//! - [`schedule`] says when each send is due and [`mix`] what it is, [`measure`] and [`timeline`] count, [`report`] prints,
//!   [`page`] draws with [`plot`]: pure, and the same for any system;
//! - [`place`] is where it runs, [`pace`] keeps time, [`drive`] sends and follows.
//!
//! Owns the arguments, and folders with their cleaning up, also after an error and Ctrl-C.

mod drive;
mod measure;
mod mix;
mod own;
mod pace;
mod page;
mod place;
mod plot;
mod report;
mod rows;
mod schedule;
mod timeline;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;

use super::say::Say;
use super::session::{self, runtime};
use super::signals::Signals;
use super::size::Size;
use super::{CliError, Context, Exit};
use crate::client::Client;
use crate::config::{ClientConfig, TransportSettings};
use crate::core::directory::Span;
use crate::core::id::DestinationName;
use crate::seams::Seams;
use crate::telemetry::logs::LogFormat;
use drive::Load;
use mix::Mix;
use own::Own;
use place::Outboxes;
use report::{Report, Way};
use schedule::{Closed, Pattern, Schedule, Until, sends_in};

/// The largest payload: it is held in memory, once.
const LARGEST: u64 = 256 << 20;
/// Most sends of a run.
const MOST_SENDS: u64 = 100_000_000;
/// Copies of each payload byte that lie on this disk when everything runs here: outbox, coded segments, three nodes, and room.
const COPIES: u64 = 7;
/// What each transaction takes beside its payload, in each copy.
const BESIDE: u64 = 8 << 10;
/// Room for databases.
const ROOM: u64 = 128 << 20;
/// How much longer than the run a send lives without a fate: what is left behind goes away by itself.
const LEFT_BEHIND: Duration = Duration::from_secs(600);
/// How long outboxes may take to write down what became known.
const CLOSING: Duration = Duration::from_secs(10);
/// What is wrong with a run that has no time.
const NOTHING: &str = "--duration: nothing would be measured; take more time, or --count";
/// How long what still runs may take to end.
const END_WITHIN: Duration = Duration::from_secs(5);

/// Measures how long each stage takes at a given rate, end to end, and how much goes through
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sends are due at fixed times, whatever the system does (an open loop), and every latency counts from when a send was due: a \
system that stalls shows it. With --in-flight the next send begins when an earlier one is committed (a closed loop): that \
shows how much goes through, and latencies count from when a send began. Stages: sealed (durable in the sender's outbox), \
accepted (the brokers have it: k shards of every stripe, without any one domain), delivered (its first segment is at a majority \
of the nodes), staged (opened and durable there), committed (a majority's receipts are counted), complete (all nodes'). \
Delivered and staged are said by the nodes in their receipts, by their clocks.

Without a destination or a configuration it makes a temporary environment with three nodes in this process; TMPDIR says on \
which disk. With one it sends made transactions to that destination, which its readers get: let it have one of its own. Each \
sender is a client with connections and an outbox of its own, beside the configured outbox and removed in the end; all of \
them use the configured key.

Examples:
  sealcast bench
  sealcast bench --rate 20 --size 64KiB --senders 2 --duration 5s --format json
  sealcast bench --payload 1KiB:80,64KiB:20 --destinations 2 --report bench.html
  sealcast bench --in-flight 32 --size 64KiB --outbox memory
  sealcast bench orders --config senders/web/client.toml --count 200 --keys 10 --report bench.html

Exit codes, the first that holds: 4 when some sends were rejected or expired, 3 when some had no fate in time, 5 when not all \
could be sent, 1 when it was told to end before anything was measured, or could not begin for another reason.")]
pub(super) struct Bench {
    /// Where to send, several in turn; needless where the sender may send to one destination alone
    #[arg(value_name = "DEST[,DEST]", value_delimiter = ',')]
    to: Vec<DestinationName>,

    /// The sender's client.toml; with a DEST, client.toml in this folder unless it is named
    #[arg(long, env = "SEALCAST_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Sends a second, over all senders
    #[arg(short, long, value_name = "NUMBER", default_value = "100", value_parser = rate)]
    rate: f64,

    /// As many sends a second as go through with so many in flight, over all senders, instead of a rate
    #[arg(long, value_name = "NUMBER", conflicts_with = "rate", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    in_flight: Option<u64>,

    /// Payload of each send: random bytes, which do not compress
    #[arg(short, long, value_name = "SIZE", default_value_t = Size(1 << 10), value_parser = size)]
    size: Size,

    /// Several sizes instead, and how often each: 1KiB:80,64KiB:20
    #[arg(long, value_name = "SIZE:WEIGHT,..", conflicts_with = "size", value_parser = mix)]
    payload: Option<Mix>,

    /// Destinations of an environment of its own
    #[arg(long, value_name = "NUMBER", default_value_t = 1, conflicts_with_all = ["to", "config"])]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=16))]
    destinations: u64,

    /// Clients that send in turn
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    senders: u64,

    /// How long to measure
    #[arg(short, long, value_name = "TIME", default_value_t = Span(Duration::from_secs(10)))]
    duration: Span,

    /// How many sends to measure, instead of how long
    #[arg(short, long, value_name = "NUMBER", conflicts_with = "duration")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=MOST_SENDS))]
    count: Option<u64>,

    /// How long to send before anything is measured
    #[arg(long, value_name = "TIME", default_value_t = Span(Duration::from_secs(2)))]
    warm_up: Span,

    /// Ordering keys to spread sends over: those with equal keys follow each other. 0: without any
    #[arg(short, long, value_name = "NUMBER", default_value_t = 0)]
    keys: u64,

    /// Where outboxes are, instead of what the configuration says
    #[arg(long, value_enum, value_name = "WHERE")]
    outbox: Option<Outbox>,

    /// How long to wait for fates once the last send was due
    #[arg(long, value_name = "TIME", default_value_t = Span(Duration::from_secs(30)))]
    timeout: Span,

    /// Write a report with plots here, in place of what is there: one HTML page that needs nothing else
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// When sends begin, and what they go through.
struct Plan {
    pattern: Pattern,
    way: Way,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Outbox {
    /// Durable, as services should have it
    Disk,
    /// In memory: what that costs is not measured
    Memory,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| (0.001..=1_000_000.0).contains(rate));
    rate.ok_or_else(|| "expected sends a second, from 0.001 to 1000000".to_owned())
}

fn size(text: &str) -> Result<Size, String> {
    let size: Size = text.parse()?;
    if size.0 > LARGEST { Err(format!("at most {}: it is held in memory", Size(LARGEST))) } else { Ok(size) }
}

fn mix(text: &str) -> Result<Mix, String> {
    let mix: Mix = text.parse()?;
    match mix.sizes().iter().find(|(size, _)| size.0 > LARGEST) {
        Some((size, _)) => Err(format!("{size}: at most {}: it is held in memory", Size(LARGEST))),
        None => Ok(mix),
    }
}

impl Bench {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        let page = self.report.as_deref().map(PageFile::open).transpose()?;
        let (report, cleaned_up) = self.measured(context)?;
        report.print(&context.output)?;
        if let Some(page) = page {
            let path = page.path.display();
            let note = if report.measured.began == 0 {
                format!("nothing was measured: no report is written to {path}")
            } else {
                page.write(&page::page(&report, context.seams.clock.now()))?;
                format!("the report with plots is {path}")
            };
            context.output.note(&note);
        }
        cleaned_up.map(|()| report.exit())
    }

    /// What was found, and whether nothing is left behind.
    fn measured(&self, context: &mut Context) -> Result<(Report, Result<(), CliError>), CliError> {
        let pattern = self.pattern()?;
        let config = match (&self.config, self.to.is_empty()) {
            (Some(path), _) => Some(session::load_client(path, context)?),
            (None, false) => Some(session::load_client(Path::new("client.toml"), context)?),
            (None, true) => {
                session::set_up_logs(context, LogFormat::default(), None, Some("warn,openraft=off"))?;
                None
            }
        };
        if let Some(config) = config.as_ref().filter(|config| config.sender.is_none()) {
            let shown = config.path().display();
            return Err(CliError::usage(format!(
                "{shown}: it names no sender: use a sender's client.toml, for example senders/NAME/client.toml"
            )));
        }
        let runtime = runtime()?;
        // Signals are caught before there is anything to clean up.
        let mut signals = runtime.block_on(async { Signals::listen() })?;
        let folder = self.folder(config.as_ref(), &pattern, &context.seams)?;
        let plan = Plan { pattern, way: self.way(config.as_ref())? };
        let outcome = runtime.block_on(async {
            match &config {
                Some(config) => self.on_configured(config, plan, folder.as_ref(), context, &mut signals).await,
                None => self.on_own(plan, folder.as_ref(), context, &mut signals).await,
            }
        });
        // Whatever still runs has the folder open.
        runtime.shutdown_timeout(END_WITHIN);
        let cleaned_up = folder.map_or(Ok(()), |folder| {
            let path = folder.path().to_path_buf();
            folder.close().map_err(|error| CliError::file(&path, &error))
        });
        Ok((outcome?, cleaned_up))
    }

    fn mix(&self) -> Mix {
        self.payload.clone().unwrap_or_else(|| Mix::of(self.size))
    }

    /// When sends begin, and which of them count.
    fn pattern(&self) -> Result<Pattern, CliError> {
        if let Some(in_flight) = self.in_flight {
            if in_flight < self.senders {
                return Err(CliError::usage("--in-flight: at least one for each of --senders"));
            }
            let until = self.count.map_or(Until::Time(self.duration.0), Until::Sends);
            if until == Until::Time(Duration::ZERO) {
                return Err(CliError::usage(NOTHING));
            }
            return Ok(Pattern::Closed(Closed { in_flight, warm_up: self.warm_up.0, until }));
        }
        let measured = self.count.unwrap_or_else(|| sends_in(self.rate, self.duration.0));
        let schedule = Schedule::new(self.rate, self.senders, self.warm_up.0, measured);
        if measured == 0 {
            return Err(CliError::usage(NOTHING));
        }
        if schedule.total() > MOST_SENDS {
            let total = schedule.total();
            return Err(CliError::usage(format!(
                "{total} sends: at most {MOST_SENDS}; take a lower rate or less time"
            )));
        }
        Ok(Pattern::Open(schedule))
    }

    fn way(&self, config: Option<&ClientConfig>) -> Result<Way, CliError> {
        let settings = config.map(ClientConfig::transport).transpose()?.flatten();
        let transport = match settings {
            Some(TransportSettings::Kafka { brokers, .. }) => format!("Kafka at {}", brokers.join(", ")),
            Some(TransportSettings::Embedded { path }) => format!("the embedded transport in {}", path.display()),
            None => "the embedded transport, with three nodes in this process".to_owned(),
        };
        Ok(Way { transport, outbox: if self.in_memory(config) { "memory" } else { "disk" } })
    }

    fn in_memory(&self, config: Option<&ClientConfig>) -> bool {
        match self.outbox {
            Some(asked) => asked == Outbox::Memory,
            None => config.and_then(|config| config.outbox.as_ref()).is_some_and(|outbox| outbox.memory),
        }
    }

    /// A temporary folder: for everything, or for outboxes on the disk where the configured one is. None when nothing needs it.
    fn folder(
        &self,
        config: Option<&ClientConfig>,
        pattern: &Pattern,
        seams: &Seams,
    ) -> Result<Option<tempfile::TempDir>, CliError> {
        let place = match config {
            Some(_) if self.in_memory(config) => return Ok(None),
            Some(config) => {
                let outbox = config.outbox.as_ref().and_then(|outbox| outbox.path.as_deref());
                // A folder that is not there yet lies where it will be made.
                let beside = outbox.unwrap_or(config.path()).ancestors().skip(1).find(|path| path.is_dir());
                beside.unwrap_or(Path::new(".")).to_path_buf()
            }
            None => {
                let place = std::env::temp_dir();
                let sends = match pattern {
                    Pattern::Open(schedule) => schedule.total(),
                    // How many go through shows only then; a disk that gets full is told by what is given back.
                    Pattern::Closed(Closed { until: Until::Sends(sends), .. }) => *sends,
                    Pattern::Closed(closed) => closed.in_flight,
                };
                let each = (self.mix().mean() as u64).saturating_add(BESIDE).saturating_mul(COPIES);
                let needed = sends.saturating_mul(each).saturating_add(ROOM);
                let free = seams.disk.free(&place).map_err(|error| {
                    let place = place.display();
                    CliError::failed(format!("{place}: {error}; name another folder for temporary files with TMPDIR"))
                })?;
                if free < needed {
                    return Err(CliError::failed(format!(
                        "{}: {free} bytes are free and about {needed} are needed: send less (--duration, --rate, --size), or \
                         name a folder on a larger disk with TMPDIR",
                        place.display()
                    )));
                }
                place
            }
        };
        let owner_alone = std::fs::Permissions::from_mode(0o700);
        let made = tempfile::Builder::new().prefix("sealcast-bench-").permissions(owner_alone).tempdir_in(&place);
        made.map(Some).map_err(|error| CliError::file(&place, &error))
    }

    fn outboxes(&self, config: Option<&ClientConfig>, folder: Option<&tempfile::TempDir>) -> Outboxes {
        match folder {
            Some(folder) if !self.in_memory(config) => Outboxes::Below(folder.path().to_path_buf()),
            _ => Outboxes::Memory,
        }
    }

    async fn on_own(
        &self,
        plan: Plan,
        folder: Option<&tempfile::TempDir>,
        context: &Context,
        signals: &mut Signals,
    ) -> Result<Report, CliError> {
        let say = Say::new(context.seams.clock.clone());
        let folder = folder.map(tempfile::TempDir::path).ok_or_else(|| CliError::failed("there is no folder"))?;
        let starting = async {
            let own = Own::start("bench", self.destinations, &folder.join("environment"), &context.seams).await?;
            tell(context, &say, "three nodes run in this process, over the embedded transport");
            let outboxes = if self.in_memory(None) { Outboxes::Memory } else { Outboxes::Below(folder.to_path_buf()) };
            let clients = place::clients_of(&own, self.senders, &outboxes, &context.seams).await?;
            Ok((own, clients))
        };
        let (mut own, clients) = interruptible(signals, starting).await?;
        let outcome = self.measure(plan, &clients, context, &say, signals, own.failure()).await;
        close(clients).await;
        own.shutdown().await;
        outcome
    }

    async fn on_configured(
        &self,
        config: &ClientConfig,
        plan: Plan,
        folder: Option<&tempfile::TempDir>,
        context: &Context,
        signals: &mut Signals,
    ) -> Result<Report, CliError> {
        let say = Say::new(context.seams.clock.clone());
        let outboxes = self.outboxes(Some(config), folder);
        let starting = place::clients(config, self.senders, &outboxes, &context.seams);
        let clients = interruptible(signals, starting).await?;
        let outcome = self.measure(plan, &clients, context, &say, signals, std::future::pending()).await;
        close(clients).await;
        outcome
    }

    async fn measure(
        &self,
        plan: Plan,
        clients: &[Client],
        context: &Context,
        say: &Say,
        signals: &mut Signals,
        failure: impl Future<Output = CliError>,
    ) -> Result<Report, CliError> {
        let first = clients.first().ok_or_else(|| CliError::usage("--senders: at least 1"))?;
        let directory = first.directory();
        let destinations = place::destinations(&self.to, &directory, first.sender(), self.config.is_none())?;
        let entries = destinations.iter().filter_map(|name| directory.destinations.get(name));
        let life = entries.map(|entry| entry.max_life).min().unwrap_or(Duration::MAX);
        let deadline = self.timeout.0.saturating_add(LEFT_BEHIND).min(life);
        let Plan { pattern, way } = plan;
        let (mix, keys, timeout) = (self.mix(), self.keys, self.timeout.0);
        let load = Load { way, destinations, mix, keys, pattern, timeout, deadline };
        let to: Vec<_> = load.destinations.iter().map(ToString::to_string).collect();
        let what = format!("sending {} to {}", load.mix, to.join(", "));
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (text, most) = match pattern {
            Pattern::Open(schedule) => {
                let (warm_up, ends) = (schedule.warm_up(), schedule.ends());
                let (measured, seconds) = (schedule.total().saturating_sub(warm_up), ends.as_secs_f64());
                let at = format!("at {} a second: {warm_up} to warm up, {measured} to measure", self.rate);
                (format!("{what} {at}, {seconds:.1} s"), millis(ends))
            }
            Pattern::Closed(closed) => {
                let (until, most) = match closed.until {
                    Until::Time(time) => {
                        (format!("{:.1} s", time.as_secs_f64()), millis(closed.warm_up.saturating_add(time)))
                    }
                    Until::Sends(sends) => (format!("{sends} sends"), sends),
                };
                let warm_up = closed.warm_up.as_secs_f64();
                (format!("{what}, {} in flight: {warm_up:.1} s to warm up, then {until}", closed.in_flight), most)
            }
        };
        tell(context, say, &text);
        let bar = if context.output.is_json() { ProgressBar::hidden() } else { say.told("starting", most) };
        drive::run(load, clients, &context.seams, signals, &context.output, &bar, failure).await
    }
}

/// Where the page is to stand. Opened before the run, because a run is long and a wrong path is told at once. A file that was
/// made for it goes when it is not written.
struct PageFile<'a> {
    path: &'a Path,
    is_unwritten: bool,
}

impl<'a> PageFile<'a> {
    fn open(path: &'a Path) -> Result<Self, CliError> {
        let opened = match std::fs::File::create_new(path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                // What stands there stays until there is a page.
                std::fs::OpenOptions::new().append(true).open(path).map(|_| Self { path, is_unwritten: false })
            }
            made => made.map(|_| Self { path, is_unwritten: true }),
        };
        opened.map_err(|error| {
            let path = path.display();
            CliError::failed(format!(
                "--report: {path}: {error}; name a file that can be written, in a folder that is there"
            ))
        })
    }

    fn write(mut self, page: &str) -> Result<(), CliError> {
        std::fs::write(self.path, page).map_err(|error| CliError::file(self.path, &error))?;
        self.is_unwritten = false;
        Ok(())
    }
}

impl Drop for PageFile<'_> {
    fn drop(&mut self) {
        if self.is_unwritten
            && let Err(error) = std::fs::remove_file(self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished report stays behind");
        }
    }
}

/// Says what happens, beside the data.
fn tell(context: &Context, say: &Say, text: &str) {
    if context.output.is_json() { context.output.note(text) } else { say.stage(text) }
}

/// Something, unless a signal comes first.
async fn interruptible<T>(
    signals: &mut Signals,
    starting: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    tokio::select! {
        started = starting => started,
        name = signals.next() => Err(CliError::failed(format!("ended by {name}"))),
    }
}

/// Outboxes let go of what has its fate; what has none goes with them, and expires at the nodes.
async fn close(clients: Vec<Client>) {
    let closing = futures_util::future::join_all(clients.into_iter().map(Client::close));
    if tokio::time::timeout(CLOSING, closing).await.is_err() {
        tracing::warn!("an outbox was not closed in time");
    }
}
