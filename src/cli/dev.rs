//! `sealcast dev`: an environment on the embedded transport that lasts, for other terminals to use.
//!
//! Owns the arguments, the order of starting and ending, and what is said on the way. Must not know how nodes run together
//! (that is [`crate::local`]), nor how others reach the transport.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::init::{addresses, node};
use super::quote::quoted;
use super::session::{runtime, set_up_logs};
use super::signals::Signals;
use super::watch::Shown;
use super::{CliError, Context, Exit, Output};
use crate::client::reader::{Committed, Event, From as FeedFrom, Reader, Subscription};
use crate::config::environment::{self, Bundles, HTTP_ABOVE, Plan, VALID_FOR};
use crate::config::{ClientConfig, NodeConfig, Sources, TransportSettings};
use crate::core::id::{DestinationName, EnvironmentName, NodeName, ReaderName, SenderName, Suite};
use crate::local::{self, LocalError, Nodes};
use crate::node::{NodeError, NodeOptions};
use crate::seams::{Seams, hardening};
use crate::store::records::RecordsError;
use crate::telemetry::logs::LogFormat;
use crate::transport::embedded::socket_path;
use crate::transport::{AnyTransport, TransportError, TransportOptions};

/// Where the first port is looked for: above those of `init`, so that both can run.
const FIRST_PORT: u16 = 7441;
/// What is logged when nobody asks for more.
const QUIET: &str = "error,sealcast=warn,openraft=off";
/// How long draining may take.
const END_WITHIN: Duration = Duration::from_secs(20);
/// Before a feed that ended with an error is asked for again.
const FEED_AGAIN: Duration = Duration::from_millis(500);
/// Committed transactions that wait to be printed.
const PRINT_QUEUE: usize = 256;

/// Runs three nodes and the embedded transport in one process until Ctrl-C, for other terminals to use
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Makes an environment in DIR when none is there, else goes on with the one that is; no broker is needed. While it runs, \
`send`, `status`, `get`, `watch`, `node status` work from other terminals, with the configurations in DIR. What is committed \
is told on stdout, a line for each transaction. Nothing acknowledged is lost by its end, nor by kill -9.

The first node serves metrics of all of them, and its health, on its port and a hundred. SIGHUP reads the nodes' directories \
again.

Examples:
  sealcast dev trial
  sealcast dev trial --destination orders,returns --sender web,shop --reader app")]
pub(super) struct Dev {
    /// The environment's folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// A new environment's name, part of its topics' names [default: dev]
    #[arg(long, value_name = "NAME")]
    name: Option<EnvironmentName>,

    /// A new environment's nodes, with addresses or (all of them) without: then at ports of this machine that are free
    /// [default: a,b,c]
    #[arg(long, value_delimiter = ',', value_name = "NAME[=HOST:PORT],..", value_parser = node)]
    nodes: Vec<(NodeName, Option<String>)>,

    /// A new environment's destination; repeat for more [default: orders]
    #[arg(long = "destination", value_name = "NAME", value_delimiter = ',')]
    destinations: Vec<DestinationName>,

    /// A new environment's sender; repeat for more [default: web]
    #[arg(long = "sender", value_name = "NAME", value_delimiter = ',')]
    senders: Vec<SenderName>,

    /// A new environment's reader; repeat for more [default: app]
    #[arg(long = "reader", value_name = "NAME", value_delimiter = ',')]
    readers: Vec<ReaderName>,

    /// The suite that a new environment's senders seal with: x-wing (hybrid post-quantum) or x25519 [default: x-wing]
    #[arg(long)]
    suite: Option<Suite>,

    /// No line for each committed transaction
    #[arg(short, long)]
    quiet: bool,
}

/// What runs, and where everything is.
#[derive(Serialize)]
struct Ready {
    object: &'static str,
    folder: String,
    nodes: BTreeMap<NodeName, String>,
    destinations: Vec<DestinationName>,
    metrics: Option<String>,
    next: Vec<String>,
}

#[derive(Serialize)]
struct Told {
    object: &'static str,
    #[serde(flatten)]
    shown: Shown,
}

impl Dev {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        set_up_logs(context, LogFormat::default(), None, Some(QUIET))?;
        // Each warns by itself, and what is missing is no reason not to run.
        let _ = hardening::core_dumps_off();
        let _ = hardening::open_files_most();
        let runtime = runtime()?;
        let outcome = runtime.block_on(self.go(context.seams.clone(), context.output));
        runtime.shutdown_background();
        outcome
    }

    async fn go(self, seams: Seams, output: Output) -> Result<Exit, CliError> {
        let mut signals = Signals::but_hangup()?;
        let mut hangup = signal(SignalKind::hangup()).map_err(|error| CliError::new(Exit::Failed, error))?;
        let bundles = self.bundles(&seams)?;
        let (options, settings) = options(&self.folder, &bundles)?;
        let transport = Arc::new(self.open(&settings, &seams)?);
        let newest = options.iter().map(|options| options.directory.clone()).max_by_key(|directory| directory.version);
        let directory = newest.ok_or_else(|| CliError::usage("an environment needs a node"))?;
        local::make_topics(&transport, &directory).await?;
        let service = transport.serve(&seams)?;
        let starting = Nodes::start(options, transport.clone(), &seams);
        let mut nodes = tokio::select! {
            nodes = starting => nodes.map_err(unstarted)?,
            name = signals.next() => return Err(CliError::failed(format!("ended by {name} before it was ready"))),
        };
        let ready = Ready {
            object: "ready",
            folder: self.folder.display().to_string(),
            nodes: nodes.running().map(|node| (node.name().clone(), node.address().to_string())).collect(),
            destinations: directory.destinations.keys().cloned().collect(),
            metrics: nodes.running().find_map(|node| node.http_address()).map(|at| format!("http://{at}/metrics")),
            next: next(&bundles, directory.destinations.keys().next()),
        };
        ready.say(output)?;
        let (tell, mut told) = mpsc::channel(PRINT_QUEUE);
        let mut feeds = FuturesUnordered::new();
        if let Some(config) = bundles.readers.values().next().filter(|_| !self.quiet) {
            let config = ClientConfig::load(&Sources::file(config))?;
            let reader = Reader::from_config(&config, &seams)?;
            for destination in directory.destinations.keys().filter(|name| may_read(&reader, &config, name)) {
                feeds.push(follow(reader.clone(), destination.clone(), tell.clone(), seams.clone()));
            }
        }
        let outcome = loop {
            tokio::select! {
                name = signals.next() => {
                    output.note(&format!("{name}: the nodes drain"));
                    break Ok(Exit::Done);
                }
                error = nodes.failure() => break Err(error.into()),
                _ = hangup.recv() => reload(&nodes),
                Some(()) = feeds.next() => {}
                Some(committed) = told.recv() => if let Err(error) = print(&committed, output) {
                    break Err(error.into());
                },
            }
        };
        let ending = async {
            nodes.shutdown().await;
            if let Some(service) = service {
                service.stop().await;
            }
        };
        let undrained = |why: &str| {
            Err(CliError::failed(format!(
                "{why}: ended without having drained: nothing is lost, the next start goes on"
            )))
        };
        tokio::select! {
            () = ending => outcome,
            name = signals.next() => undrained(&format!("a second {name}")),
            () = seams.clock.sleep(END_WITHIN) => undrained("it took too long"),
        }
    }

    /// The environment that is there, or a new one.
    fn bundles(&self, seams: &Seams) -> Result<Bundles, CliError> {
        if self.folder.exists() && !self.folder.is_dir() {
            let shown = self.folder.display();
            return Err(CliError::usage(format!("{shown}: is a file: name a folder, new or that of an environment")));
        }
        let found = Bundles::find(&self.folder, &*seams.disk)?;
        if found.nodes.is_empty() {
            // Before anything is written.
            socket_path(&self.folder.join("transport")).map_err(TransportError::from)?;
            let written = environment::write(&self.plan()?, &self.folder, seams)?;
            return Ok(Bundles::from(&written));
        }
        let given = [
            ("--name", self.name.is_some()),
            ("--nodes", !self.nodes.is_empty()),
            ("--destination", !self.destinations.is_empty()),
            ("--sender", !self.senders.is_empty()),
            ("--reader", !self.readers.is_empty()),
            ("--suite", self.suite.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(CliError::usage(format!(
                "{flag}: {} is an environment already, and this is for a new one: leave it out, or change the directory with \
                 `sealcast directory`",
                self.folder.display()
            ))),
            None => Ok(found),
        }
    }

    fn plan(&self) -> Result<Plan, CliError> {
        fn or<N: std::str::FromStr + Ord + Clone>(given: &[N], default: &[&str]) -> BTreeSet<N> {
            match given {
                [] => default.iter().filter_map(|name| name.parse().ok()).collect(),
                given => given.iter().cloned().collect(),
            }
        }
        let names: Vec<_> = self.nodes.iter().map(|(name, _)| name.clone()).collect();
        let nodes = match self.nodes.iter().any(|(_, address)| address.is_some()) {
            true => addresses(self.nodes.clone())?,
            false => local::free_addresses(or(&names, &["a", "b", "c"]), FIRST_PORT, HTTP_ABOVE)?,
        };
        if !names.is_empty() && nodes.len() != names.len() {
            return Err(CliError::usage("--nodes: a node is named twice"));
        }
        let name = match &self.name {
            Some(name) => name.clone(),
            None => EnvironmentName::new("dev").map_err(|error| CliError::usage(error.to_string()))?,
        };
        Ok(Plan {
            name,
            nodes,
            destinations: or(&self.destinations, &["orders"]),
            senders: or(&self.senders, &["web"]),
            readers: or(&self.readers, &["app"]),
            transport: TransportSettings::Embedded { path: "transport".into() },
            suite: self.suite.unwrap_or(Suite::XWing),
            minimum_suite: Suite::X25519,
            valid_for: VALID_FOR,
        })
    }

    fn open(&self, settings: &TransportSettings, seams: &Seams) -> Result<AnyTransport, CliError> {
        AnyTransport::open(&TransportOptions::for_nodes(settings.clone()), seams).map_err(|error| match error {
            TransportError::Embedded(RecordsError::InUse { .. }) => CliError::with(
                Exit::Unavailable,
                format!(
                    "{}: another process runs this environment, most likely `sealcast dev`: use it, or end it first",
                    self.folder.display()
                ),
            ),
            error => error.into(),
        })
    }
}

/// What each node is started with, and the transport that they share.
fn options(folder: &Path, bundles: &Bundles) -> Result<(Vec<NodeOptions>, TransportSettings), CliError> {
    let (mut all, mut shared) = (Vec::new(), None);
    for (name, path) in &bundles.nodes {
        let config = NodeConfig::load(&Sources::file(path))?;
        let settings = match config.transport()? {
            // Each names the same folder from its own.
            TransportSettings::Embedded { path } => {
                TransportSettings::Embedded { path: path.canonicalize().unwrap_or(path) }
            }
            TransportSettings::Kafka { .. } => {
                return Err(CliError::usage(format!(
                    "{}: node {name} uses Kafka, and `sealcast dev` needs none: start it with `sealcast node run --config {}`",
                    folder.display(),
                    quoted(path)
                )));
            }
        };
        let of_node = NodeOptions::from_config(&config)?;
        // One process has one page of metrics, with those of all its nodes.
        let http = of_node.http.filter(|_| all.is_empty());
        all.push(NodeOptions { http, ..of_node });
        match &shared {
            None => shared = Some(settings),
            Some(shared) if same_folder(shared, &settings) => {}
            Some(_) => {
                return Err(CliError::usage(format!(
                    "{}: transport.path: the nodes of one environment share one folder, and node {name} names another",
                    path.display()
                )));
            }
        }
    }
    let settings = shared.ok_or_else(|| CliError::usage(format!("{}: there is no node", folder.display())))?;
    Ok((all, settings))
}

/// Whether both are one folder, which need not be there yet.
fn same_folder(one: &TransportSettings, other: &TransportSettings) -> bool {
    let (TransportSettings::Embedded { path: one }, TransportSettings::Embedded { path: other }) = (one, other) else {
        return false;
    };
    let parent = |path: &Path| path.parent().and_then(|parent| parent.canonicalize().ok());
    one == other || (one.file_name() == other.file_name() && parent(one) == parent(other))
}

/// Ports are fixed in the directory: another address is no mend here.
fn unstarted(error: LocalError) -> CliError {
    if let LocalError::Start { node, cause } = &error
        && let NodeError::Listen { address, cause, .. } = &**cause
    {
        return CliError::failed(format!(
            "node {node}: {address}: {cause}: an environment keeps the ports with which it was made: end the process that has \
             this one, or make another environment with `sealcast dev OTHER`"
        ));
    }
    error.into()
}

/// The commands to type in another terminal.
fn next(bundles: &Bundles, destination: Option<&DestinationName>) -> Vec<String> {
    let mut next = Vec::new();
    let Some(destination) = destination else { return next };
    if let Some(config) = bundles.senders.values().next() {
        next.push(format!("echo hello | sealcast send {destination} - --wait complete --config {}", quoted(config)));
    }
    if let Some(config) = bundles.readers.values().next() {
        let config = quoted(config);
        next.push(format!("sealcast watch {destination} --lines --config {config}"));
        next.push(format!("sealcast node status --config {config}"));
    }
    next
}

impl Ready {
    fn say(&self, output: Output) -> Result<(), CliError> {
        if output.is_json() {
            return Ok(output.object(self)?);
        }
        let names = |names: Vec<String>| names.join(", ");
        let mut text = format!(
            "Environment {}: nodes {} run for {}.\n",
            self.folder,
            names(self.nodes.iter().map(|(name, address)| format!("{name} ({address})")).collect()),
            names(self.destinations.iter().map(ToString::to_string).collect()),
        );
        if let Some(metrics) = &self.metrics {
            text.push_str(&format!("Metrics: {metrics}\n"));
        }
        text.push_str("\nIn another terminal:\n");
        for command in &self.next {
            text.push_str(&format!("  {command}\n"));
        }
        text.push_str("\nCtrl-C ends it; the same command goes on where it was.\n");
        // With stderr closed there is nobody left to tell.
        let _ = std::io::stderr().write_all(text.as_bytes());
        Ok(())
    }
}

fn may_read(reader: &Reader, config: &ClientConfig, destination: &DestinationName) -> bool {
    let directory = reader.directory();
    let name = config.reader(&directory).ok().flatten().map(|(name, _)| name);
    name.is_some_and(|name| directory.may_read(&name, destination))
}

/// Tells what a destination commits from now on, for as long as somebody listens.
async fn follow(reader: Reader, destination: DestinationName, tell: mpsc::Sender<Committed>, seams: Seams) {
    let mut from = FeedFrom::End;
    loop {
        let feed = async {
            let mut feed = reader.subscribe(&destination, Subscription::new(from)).await?;
            while let Some(event) = feed.next().await? {
                match event {
                    Event::Begin(committed) => {
                        from = FeedFrom::After(committed.position);
                        if tell.send(*committed).await.is_err() {
                            return Ok(());
                        }
                    }
                    Event::Progress(position) => from = FeedFrom::After(position),
                    Event::Data(_) | Event::End => {}
                }
            }
            Ok::<_, crate::client::reader::ReadError>(())
        };
        if let Err(error) = feed.await {
            tracing::debug!(%destination, %error, "the feed is asked for again");
        }
        if tell.is_closed() {
            return;
        }
        seams.clock.sleep(FEED_AGAIN).await;
    }
}

fn print(committed: &Committed, output: Output) -> std::io::Result<()> {
    if output.is_json() {
        return output.object(&Told { object: "committed", shown: Shown::from(committed) });
    }
    let key = committed.key.as_deref().map(|key| format!(", key {}", String::from_utf8_lossy(key).escape_debug()));
    output.line(&format!(
        "committed {} at {} of {}: {} bytes from {}{}",
        committed.ticket.transaction,
        committed.position,
        committed.ticket.destination,
        committed.payload_bytes,
        committed.sender,
        key.unwrap_or_default(),
    ))
}

fn reload(nodes: &Nodes) {
    for node in nodes.running() {
        match node.reload_directory() {
            Ok(true) => {
                tracing::warn!(node = %node.name(), version = node.directory().version, "a newer directory was read")
            }
            Ok(false) => {}
            // One node's file is enough, and the others have what it says by the log.
            Err(error @ NodeError::OldDirectory { .. }) => {
                tracing::info!(node = %node.name(), %error, "the directory in force is newer than this node's file")
            }
            Err(error) => {
                tracing::error!(node = %node.name(), %error, "the directory was not taken: the one in use stays")
            }
        }
    }
}
