//! `sealcast demo`: the whole way on this machine, with nothing installed and no questions asked.
//!
//! - [`payloads`] chooses what is sent, [`cluster`] runs three nodes in this process, [`flow`] goes the way;
//! - [`check`] compares what came out, [`report`] prints what was found.
//!
//! Owns the arguments, the folder and its cleaning up, also after an error and Ctrl-C.

mod check;
mod cluster;
mod flow;
mod payloads;
mod report;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::init::property;
use super::quote::quoted;
use super::say::Say;
use super::session::{runtime, set_up_logs};
use super::signals::Signals;
use super::size::Size;
use super::{CliError, Context, Exit};
use crate::config::TransportSettings;
use crate::config::environment::{Plan, VALID_FOR};
use crate::core::id::{EnvironmentName, NodeName, Suite};
use crate::local;
use crate::seams::{Seams, hardening};
use crate::telemetry::logs::LogFormat;
use crate::transport::Topic;
use report::Report;

/// Copies of each payload byte that lie on this disk for a while: outbox, coded segments, three nodes, and room.
const COPIES: u64 = 7;
/// Room for databases.
const ROOM: u64 = 128 << 20;
/// How long what still runs may take to end.
const END_WITHIN: Duration = Duration::from_secs(5);

/// Goes the whole way on this machine: three nodes, a hostile transport, your files, and every byte compared
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Makes an environment in a temporary folder, starts three nodes in this process, and sends each file as one transaction, \
and a large made one. On the way an adversary drops or damages as many segments of every stripe as the code makes up for, \
and the node that leads is stopped and started again. At the end: how long each stage took, what happened to segments, \
each node's state digest, and whether every byte came out equal from every node. Exits 1 when anything differs.

Examples:
  sealcast demo
  sealcast demo --payload photos --payload notes.txt --size 1MiB
  sealcast demo --kafka localhost:9092 --keep trial")]
pub(super) struct Demo {
    /// A file or folder to send; repeat for more. Without it: what git tracks in this folder, else this program
    #[arg(long = "payload", value_name = "PATH")]
    payloads: Vec<PathBuf>,

    /// Length of the made file; 0 sends none
    #[arg(long, value_name = "SIZE", default_value_t = Size(64 << 20))]
    size: Size,

    /// Goes over this Kafka cluster, with topics of their own, which stay; without it, no broker is needed
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT,..")]
    kafka: Vec<String>,

    /// A librdkafka property; repeat for more. PROP_file=PATH takes the value from a file
    #[arg(short = 'X', value_name = "PROP=VALUE", value_parser = property, requires = "kafka")]
    properties: Vec<(String, String)>,

    /// Writes the environment here, into an absent or empty folder, and leaves it
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,

    /// The suite to seal with: x-wing (hybrid post-quantum) or x25519
    #[arg(long, default_value_t = Suite::XWing)]
    suite: Suite,

    /// Where faults and the made file come from: the same seed makes the same file and draws the same faults; which records
    /// they meet depends on what comes first
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
}

/// What is logged when nobody asks for more. The demo stops a node itself: that the others find it silent is no news.
const QUIET: &str = "warn,openraft=off,sealcast::raft::network=error";

/// The environment's folder; a temporary one goes with this value.
enum Folder {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Folder {
    fn new(keep: Option<&Path>) -> Result<Self, CliError> {
        if let Some(path) = keep {
            return Ok(Self::Kept(path.to_path_buf()));
        }
        let owner_alone = std::fs::Permissions::from_mode(0o700);
        let made = tempfile::Builder::new().prefix("sealcast-demo-").permissions(owner_alone).tempdir();
        made.map(Self::Temporary).map_err(|error| CliError::file(&std::env::temp_dir(), &error))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Kept(path) => path,
        }
    }

    fn kept(&self) -> Option<&Path> {
        match self {
            Self::Temporary(_) => None,
            Self::Kept(path) => Some(path),
        }
    }

    fn close(self) -> Result<(), CliError> {
        match self {
            Self::Kept(_) => Ok(()),
            Self::Temporary(folder) => {
                let path = folder.path().to_path_buf();
                folder.close().map_err(|error| CliError::file(&path, &error))
            }
        }
    }
}

impl Demo {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        set_up_logs(context, LogFormat::default(), None, Some(QUIET))?;
        // A failure is logged, and the demo's secrets guard nothing.
        let _ = hardening::core_dumps_off();
        let runtime = runtime()?;
        // Signals are caught before there is anything to clean up.
        let mut signals = runtime.block_on(async { Signals::listen() })?;
        let folder = Folder::new(self.keep.as_deref())?;
        let say = Say::new(context.seams.clock.clone());
        let plan = self.plan(&context.seams)?;
        let stay = self.what_stays(&plan);
        let outcome = runtime.block_on(async {
            tokio::select! {
                outcome = self.go(plan, folder.path(), &context.seams, &say) => outcome,
                name = signals.next() => Err(CliError::failed(format!("ended by {name}"))),
            }
        });
        // Whatever still runs has the folder open.
        runtime.shutdown_timeout(END_WITHIN);
        let printed = outcome.and_then(|report| {
            report.print(&context.output, folder.kept(), &self.next(folder.path()))?;
            Ok(report.exit())
        });
        if let Some(stay) = stay {
            context.output.note(&stay);
        }
        let closed = folder.close();
        let exit = printed?;
        closed.map(|()| exit)
    }

    async fn go(&self, plan: Plan, folder: &Path, seams: &Seams, say: &Say) -> Result<Report, CliError> {
        let named = self.payloads.clone();
        let choosing = tokio::task::spawn_blocking(move || payloads::choose(&named));
        let chosen = choosing.await.map_err(|error| CliError::new(Exit::Failed, error))??;
        let needed = (chosen.bytes() + self.size.0) * COPIES + ROOM;
        // A folder that is not there yet lies where it will be made.
        let place = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
        let free = seams.disk.free(place).map_err(|error| CliError::file(place, &error))?;
        if free < needed {
            return Err(CliError::failed(format!(
                "{}: {free} bytes are free and about {needed} are needed: send less (--size), or name a folder on a larger \
                 disk with --keep or TMPDIR",
                place.display()
            )));
        }
        flow::Run { plan, folder, chosen, made: self.size.0, seed: self.seed, seams: seams.clone() }.go(say).await
    }

    fn plan(&self, seams: &Seams) -> Result<Plan, CliError> {
        let name = |text: &str| CliError::usage(format!("{text}: no name"));
        let drawn: [u8; 4] = seams.randomness.array().map_err(|error| CliError::new(Exit::Unavailable, error))?;
        let environment = format!("demo-{}", data_encoding::HEXLOWER.encode(&drawn));
        let nodes = ["a", "b", "c"].map(NodeName::new).into_iter().collect::<Result<Vec<_>, _>>();
        let nodes = local::free_addresses(nodes.map_err(|error| CliError::new(Exit::Failed, error))?, 0, 0)?;
        let transport = if self.kafka.is_empty() {
            TransportSettings::Embedded { path: "transport".into() }
        } else {
            let properties = self.properties.iter().cloned().collect();
            TransportSettings::Kafka { brokers: self.kafka.clone(), properties }
        };
        Ok(Plan {
            name: EnvironmentName::new(&environment).map_err(|_| name(&environment))?,
            nodes,
            destinations: BTreeSet::from(["orders".parse().map_err(|_| name("orders"))?]),
            senders: BTreeSet::from(["web".parse().map_err(|_| name("web"))?]),
            readers: BTreeSet::from(["app".parse().map_err(|_| name("app"))?]),
            transport,
            suite: self.suite,
            minimum_suite: Suite::X25519,
            valid_for: VALID_FOR,
        })
    }

    /// What the demo leaves on somebody's Kafka, and how it is removed.
    fn what_stays(&self, plan: &Plan) -> Option<String> {
        let segments = plan.destinations.iter().map(|name| Topic::segments(&plan.name, name));
        let topics: Vec<_> = segments.chain([Topic::notices(&plan.name)]).map(|topic| topic.to_string()).collect();
        let (brokers, topics) = (self.kafka.join(","), topics.join(","));
        (!self.kafka.is_empty()).then(|| {
            format!(
                "these topics stay on the cluster, as far as they were made. When nobody needs them any more: kafka-topics \
                 --bootstrap-server {brokers} --delete --topic '{topics}'"
            )
        })
    }

    /// What to type to use an environment that was kept.
    fn next(&self, folder: &Path) -> Vec<String> {
        let Some(kept) = &self.keep else { return Vec::new() };
        let at = |path: &str| quoted(&kept.join(path));
        let nodes = ["a", "b", "c"].map(|name| at(&format!("nodes/{name}/node.toml")));
        let mut next = vec![
            format!("sealcast config check {}", nodes[0]),
            format!("sealcast directory show {}", quoted(&folder.join("operator/directory"))),
        ];
        if self.kafka.is_empty() {
            next.push(format!("sealcast dev {}", quoted(kept)));
            return next;
        }
        next.extend(nodes.map(|config| format!("sealcast node run --config {config} &")));
        next.push(format!("echo hello | sealcast send orders - --config {}", at("senders/web/client.toml")));
        next.push(format!("sealcast watch orders --config {}", at("readers/app/client.toml")));
        next
    }
}
