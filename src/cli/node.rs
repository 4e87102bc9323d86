//! `sealcast node`: runs a receiving node, and says how nodes do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::config::{Either, load};
use super::session::{Asked, block_on, set_up_logs};
use super::{CliError, Context, Exit, Row};
use crate::client::reader::{ReadError, Reader};
use crate::config::NodeConfig;
use crate::core::directory::write_time;
use crate::core::id::{DestinationName, NodeName, Position, Time};
use crate::node::{Node, NodeError, NodeOptions, acknowledge};
use crate::rpc::proto;
use crate::seams::{Seams, hardening};
use crate::transport::AnyTransport;

/// A node that has not drained after this ends all the same; draining takes well under a second when nothing is stuck.
const DRAIN_LIMIT: Duration = Duration::from_secs(45);

/// Runs a receiving node, or says how nodes do
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sealcast node run --config nodes/a/node.toml")]
pub(super) struct NodeCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Runs the node until SIGTERM or Ctrl-C; SIGHUP reads the directory again
    #[command(after_help = "\
Examples:
  sealcast node run --config nodes/a/node.toml
  SEALCAST_LOG=debug SEALCAST__LOG__FORMAT=json sealcast node run --config nodes/a/node.toml

Exit codes: 0 when it has drained, 1 when it had to end otherwise (its disk, consensus, a second signal).")]
    Run {
        /// The node.toml to use
        #[arg(long, env = "SEALCAST_CONFIG", default_value = "node.toml", value_name = "FILE")]
        config: PathBuf,
    },
    /// Says how each node does at each destination, as itself tells
    #[command(after_help = "\
Examples:
  sealcast node status --config readers/app/client.toml
  sealcast node status --config readers/app/client.toml --node a --format json

POSITION is the last entry of the log that the node has applied, HELD how far it also has every payload on its disk: what \
it lacks it fetches from the others. LAG is records of the topic that it has not read yet. A node that does not answer has \
the role unreachable.

Exit codes: 5 when a node does not answer.")]
    Status {
        #[command(flatten)]
        asked: Asked,
    },
    /// Tells a running node that somebody looked at an alarm that does not end by itself
    #[command(after_help = "\
Examples, on the node's machine, with its own configuration:
  sealcast node acknowledge gap-0 --config nodes/a/node.toml
  sealcast node acknowledge equivocation -d orders --config nodes/a/node.toml

These are gap-N, equivocation, refused-but-committed and peers-not-asked; it is no error when none stands. The others \
end when what they tell of is mended.")]
    Acknowledge {
        /// The alarm, as `node status` shows it
        #[arg(value_name = "ALARM")]
        alarm: String,

        /// Only in this destination
        #[arg(short, long, value_name = "DEST")]
        destination: Option<DestinationName>,

        /// The node.toml to use
        #[arg(long, env = "SEALCAST_CONFIG", default_value = "node.toml", value_name = "FILE")]
        config: PathBuf,
    },
}

impl NodeCommand {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        let seams = context.seams.clone();
        match self.action {
            Action::Run { config } => run(&config, context),
            Action::Acknowledge { alarm, destination, config } => {
                acknowledged(&config, &seams, &alarm, destination.as_ref(), context)
            }
            Action::Status { asked } => block_on(async { status(&asked.reader(context)?, &asked, context).await }),
        }
    }
}

fn node_config(path: &std::path::Path) -> Result<NodeConfig, CliError> {
    match load(path.to_path_buf())? {
        Either::Node(config) => Ok(*config),
        Either::Client(_) => {
            let shown = path.display();
            Err(CliError::usage(format!("{shown}: this is a client's configuration: name a node.toml")))
        }
    }
}

fn acknowledged(
    config: &std::path::Path,
    seams: &Seams,
    alarm: &str,
    destination: Option<&DestinationName>,
    context: &Context,
) -> Result<Exit, CliError> {
    let options = NodeOptions::from_config(&node_config(config)?)?;
    if let Some(name) = destination.filter(|name| !options.rings.contains_key(*name)) {
        return Err(CliError::usage(format!("node {} does not serve destination {name}", options.name)));
    }
    let stood = block_on(async { Ok(acknowledge(&options, seams, alarm, destination).await?) })?;
    match stood.is_empty() {
        true => context.output.note(&format!("no alarm {alarm} stands at node {}", options.name)),
        false => {
            let names: Vec<_> = stood.iter().map(ToString::to_string).collect();
            context.output.note(&format!("node {}: {alarm} acknowledged in {}", options.name, names.join(", ")));
        }
    }
    Ok(Exit::Done)
}

fn run(config: &std::path::Path, context: &Context) -> Result<Exit, CliError> {
    let seams = context.seams.clone();
    block_on(async move {
        // Before anything else: who signals a node that is just starting means what it says, and does not mean to kill it.
        let failed = |what: &str, error: std::io::Error| CliError::failed(format!("{what}: {error}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| failed("SIGTERM", error))?;
        let mut reload = signal(SignalKind::hangup()).map_err(|error| failed("SIGHUP", error))?;
        let config = node_config(config)?;
        set_up_logs(context, config.log.format, config.log.filter.as_deref(), None)?;
        // It warns by itself; a node without this protection is still of use.
        let _ = hardening::core_dumps_off();
        // Likewise.
        let _ = hardening::open_files_most();
        let options = NodeOptions::from_config(&config)?;
        let transport = Arc::new(AnyTransport::open_or_attach(config.transport()?, &seams).await?);
        // Ends with this process's part in it; whoever is attached waits for the next who serves.
        let _service = transport.serve(&seams)?;
        let clock = seams.clock.clone();
        let node = Node::start(options, seams, transport).await?;
        tracing::info!(
            node = %node.name(),
            address = %node.address(),
            http = node.http_address().map(tracing::field::display),
            "the node runs"
        );
        loop {
            tokio::select! {
                error = node.failed() => {
                    tracing::error!(%error, "the node stops");
                    return Err(CliError::new(Exit::Failed, &*error));
                }
                _ = terminate.recv() => break,
                _ = tokio::signal::ctrl_c() => break,
                _ = reload.recv() => match node.reload_directory() {
                    Ok(true) => tracing::info!(version = node.directory().version, "the directory was read again"),
                    Ok(false) => tracing::info!("the directory was read again: it is the one in use"),
                    Err(error) => tracing::error!(%error, "the directory was not taken: the one in use stays"),
                },
            }
        }
        let undrained = |why: &str| {
            let text =
                "ends without having drained: nothing is lost, and what was on its way is done after its next start";
            tracing::error!("{why}: the node {text}");
            Err(CliError::failed(format!("{why}: the node {text}")))
        };
        tokio::select! {
            () = node.shutdown() => Ok(Exit::Done),
            _ = terminate.recv() => undrained("a second SIGTERM"),
            _ = tokio::signal::ctrl_c() => undrained("a second Ctrl-C"),
            () = clock.sleep(DRAIN_LIMIT) => undrained("it took too long"),
        }
    })
}

impl From<NodeError> for CliError {
    fn from(error: NodeError) -> Self {
        let exit = match &error {
            NodeError::Destination { .. } | NodeError::Directory { .. } | NodeError::OldDirectory { .. } => Exit::Usage,
            error if error.retryable() => Exit::Unavailable,
            _ => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

#[derive(Debug, Serialize)]
struct Shown {
    node: String,
    destination: String,
    role: String,
    term: u64,
    leader: Option<String>,
    position: Position,
    held: Position,
    state_digest: String,
    state_index: u64,
    members: Vec<Member>,
    transactions: Counts,
    bytes: u64,
    lag: Lag,
    directory_version: u64,
    group_time_ms: u64,
    alarms: Vec<Alarm>,
}

#[derive(Debug, Serialize)]
struct Member {
    node: String,
    voter: bool,
    held: Option<Position>,
    silent_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Counts {
    committed: u64,
    rejected: u64,
    undecided: u64,
    missing: u64,
}

#[derive(Debug, Serialize)]
struct Lag {
    records: u64,
    age_ms: u64,
    gathering: u64,
    deferred: u64,
}

#[derive(Debug, Clone, Serialize)]
struct Alarm {
    name: String,
    text: String,
    since_ms: u64,
}

/// A node that does not answer.
#[derive(Debug, Serialize)]
struct Silent {
    node: String,
    role: &'static str,
    error: String,
}

/// What a line is about.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Line {
    Served(Box<Shown>),
    Silent(Silent),
}

impl Row for Line {
    const HEADS: &'static [&'static str] = Shown::HEADS;

    fn cells(&self) -> Vec<String> {
        match self {
            Self::Served(shown) => shown.cells(),
            Self::Silent(silent) => {
                let known = [silent.node.clone(), "-".to_owned(), silent.role.to_owned()];
                let cells = known.into_iter().chain(std::iter::repeat("-".to_owned()));
                cells.take(Self::HEADS.len()).collect()
            }
        }
    }
}

impl Row for Shown {
    const HEADS: &'static [&'static str] =
        &["node", "destination", "role", "term", "position", "held", "committed", "bytes", "lag", "state", "alarms"];

    fn cells(&self) -> Vec<String> {
        let alarms: Vec<_> = self.alarms.iter().map(|alarm| alarm.name.as_str()).collect();
        vec![
            self.node.clone(),
            self.destination.clone(),
            self.role.clone(),
            self.term.to_string(),
            self.position.to_string(),
            self.held.to_string(),
            self.transactions.committed.to_string(),
            self.bytes.to_string(),
            self.lag.records.to_string(),
            self.state_digest.chars().take(12).collect(),
            if alarms.is_empty() { "-".to_owned() } else { alarms.join(",") },
        ]
    }
}

async fn status(reader: &Reader, asked: &Asked, context: &Context) -> Result<Exit, CliError> {
    let nodes: Vec<NodeName> = match asked.node() {
        Some(node) => vec![node.clone()],
        None => reader.directory().nodes.keys().cloned().collect(),
    };
    let (mut rows, mut exit) = (Vec::new(), Exit::Done);
    for node in nodes {
        match reader.node_status(&node).await {
            Ok(answer) => {
                let general: Vec<_> = answer.alarms.iter().map(alarm).collect();
                let served = answer.groups.iter().map(|group| shown(&answer.node, group, &general));
                rows.extend(served.map(|shown| Line::Served(Box::new(shown))));
            }
            Err(error) => {
                let said = error.to_string();
                let names_it = matches!(error, ReadError::Unavailable { .. });
                let mut told = CliError::from(error);
                exit = told.exit();
                if !names_it {
                    told = CliError::with(exit, format!("node {node}: {said}"));
                }
                context.output.complain(&told);
                rows.push(Line::Silent(Silent { node: node.to_string(), role: "unreachable", error: said }));
            }
        }
    }
    if !rows.is_empty() {
        context.output.rows(&rows)?;
    }
    if !context.output.is_json() {
        let served = rows.iter().filter_map(|row| if let Line::Served(shown) = row { Some(shown) } else { None });
        for row in served {
            for alarm in &row.alarms {
                let since = write_time(Time(alarm.since_ms));
                eprintln!("{} {}: {} since {since}: {}", row.node, row.destination, alarm.name, alarm.text);
            }
        }
    }
    Ok(exit)
}

fn alarm(alarm: &proto::Alarm) -> Alarm {
    Alarm { name: alarm.name.clone(), text: alarm.text.clone(), since_ms: alarm.since_ms }
}

fn shown(node: &str, group: &proto::GroupStatus, general: &[Alarm]) -> Shown {
    let role = group.role().as_str_name();
    let counts = group.transactions.unwrap_or_default();
    let lag = group.lag.unwrap_or_default();
    Shown {
        node: node.to_owned(),
        destination: group.destination.clone(),
        role: role.strip_prefix("ROLE_").unwrap_or(role).to_lowercase(),
        term: group.term,
        leader: group.leader.clone(),
        position: group.position.map(Into::into).unwrap_or_default(),
        held: group.held.map(Into::into).unwrap_or_default(),
        state_digest: data_encoding::HEXLOWER.encode(&group.state_digest),
        state_index: group.state_index,
        members: group
            .members
            .iter()
            .map(|member| Member {
                node: member.node.clone(),
                voter: member.voter,
                held: member.held.map(Into::into),
                silent_ms: member.silent_ms,
            })
            .collect(),
        transactions: Counts {
            committed: counts.committed,
            rejected: counts.rejected,
            undecided: counts.undecided,
            missing: counts.missing,
        },
        bytes: group.bytes,
        lag: Lag { records: lag.records, age_ms: lag.age_ms, gathering: lag.gathering, deferred: lag.deferred },
        directory_version: group.directory_version,
        group_time_ms: group.group_time_ms,
        alarms: general.iter().cloned().chain(group.alarms.iter().map(alarm)).collect(),
    }
}
