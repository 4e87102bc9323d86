//! `sealcast topic`: plans and makes the topics of an environment, and says what is wrong with them.
//!
//! Owns the arguments and what is said about the cluster. What a right topic is stands in `transport::admin`.

mod plan;
mod show;

use std::path::PathBuf;
use std::time::Duration;

use super::config::{Either, load};
use super::init::property;
use super::quote::quoted;
use super::session::block_on;
use super::{CliError, Context, Exit};
use crate::config::TransportSettings;
use crate::core::directory::{Directory, Span};
use crate::core::id::DestinationName;
use crate::transport::admin::{
    self, Cluster, Layout, Look, Made, Mismatch, TopicPlan, TopicState, USUAL_DOMAINS, listed,
};
use crate::transport::{AnyTransport, Topic};
use show::{Checked, Initialised};

/// The outage to be survived, unless said otherwise.
pub(super) const OUTAGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long all brokers may need to hear of a new topic and to choose its leaders.
const SPREAD_PATIENCE: Duration = Duration::from_secs(30);

/// Plans and makes the topics of an environment, and says what is wrong with them
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sealcast topic init --config nodes/a/node.toml")]
pub(super) struct TopicCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Says what topics would survive and cost on a cluster, and what its operator must allow; makes nothing
    #[command(after_help = "\
With -b, or a configuration that names a cluster, the brokers are asked: how many there are, in which racks, and whether they \
take topics of replication 1. Without, three brokers are assumed. Principals are those of users named like the parts.

Examples:
  sealcast topic plan --config nodes/a/node.toml --rate 50 --size 100KiB
  sealcast topic plan --domains 5 --nodes 5 --size 64MiB --outage 30d --format json")]
    Plan(plan::Plan),
    /// Makes the segments topic of each destination and the notices topic, where they are missing
    #[command(after_help = "\
By default each topic has replication 1 and one partition pinned to each broker that answers: the erasure code is the \
redundancy, and no slow replica holds anything back. Records stay for the longest life of a transaction plus --outage. Where \
the cluster dictates replication, --replicated makes replicated topics; senders find out by themselves which kind a topic is.

What is there is left as it is: --grow adds partitions on brokers that have none, and nothing else.

Examples:
  sealcast topic init --config nodes/a/node.toml
  sealcast topic init --config nodes/a/node.toml -b localhost:9092 -X client.id=admin
  sealcast topic init --config nodes/a/node.toml --domains 3 --grow")]
    Init {
        #[command(flatten)]
        topics: Topics,

        /// Also add a partition on each answering broker that has none, to topics that are there
        #[arg(long)]
        grow: bool,
    },
    /// Compares the topics with what they should be; exits 1 when something is wrong, with the mend for each
    #[command(after_help = "\
A topic is judged by the kind that it is, pinned or replicated; with --replicated it must be replicated. Every broker is \
asked for itself: one that died a moment ago is found.

Example:
  sealcast topic check --config nodes/a/node.toml --format json")]
    Check(Topics),
}

#[derive(Debug, clap::Args)]
struct Topics {
    /// The node.toml or client.toml that names the directory and the cluster
    #[arg(long, value_name = "FILE", env = "SEALCAST_CONFIG")]
    config: PathBuf,

    #[command(flatten)]
    reach: Reach,

    /// Only this destination's topic; repeat for more
    #[arg(short, long = "destination", value_name = "NAME")]
    destinations: Vec<DestinationName>,

    /// The outage to be survived: records stay this much longer than the longest life of a transaction
    #[arg(long, value_name = "TIME", default_value_t = Span(OUTAGE))]
    outage: Span,

    /// Replicated topics with this many replicas, for clusters that dictate replication
    #[arg(long, value_name = "COPIES", value_parser = clap::value_parser!(u16).range(2..=16))]
    replicated: Option<u16>,

    /// How many domains (racks, or brokers that declare none) must answer: with fewer, init makes nothing, and check finds
    /// fault. When it is left out, fewer than 3 are only told
    #[arg(long, value_name = "COUNT")]
    domains: Option<usize>,
}

/// How a cluster is reached.
#[derive(Debug, clap::Args)]
struct Reach {
    /// Bootstrap brokers, instead of the configuration's
    #[arg(short, long, value_delimiter = ',', value_name = "HOST:PORT,..")]
    brokers: Vec<String>,

    /// A librdkafka property, for example of a user who may create topics; repeat for more. PROP_file=PATH takes the value
    /// from a file, as for sasl.password
    #[arg(short = 'X', value_name = "PROP=VALUE", value_parser = property)]
    properties: Vec<(String, String)>,
}

impl TopicCommand {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        block_on(async {
            match &self.action {
                Action::Plan(plan) => plan.run(context).await,
                Action::Init { topics, grow } => topics.init(*grow, context).await,
                Action::Check(topics) => topics.check(context).await,
            }
        })
    }
}

impl Reach {
    /// The cluster of a configuration, with what was given on the command line above it; `None` when nobody names one.
    fn settings(&self, configured: Option<TransportSettings>) -> Option<TransportSettings> {
        match configured {
            Some(TransportSettings::Kafka { brokers, mut properties }) => {
                properties.extend(self.properties.iter().cloned());
                let brokers = if self.brokers.is_empty() { brokers } else { self.brokers.clone() };
                Some(TransportSettings::Kafka { brokers, properties })
            }
            _ if !self.brokers.is_empty() => {
                let properties = self.properties.iter().cloned().collect();
                Some(TransportSettings::Kafka { brokers: self.brokers.clone(), properties })
            }
            other => other,
        }
    }
}

/// What a configuration names: its directory, and its transport if it has one.
fn configured(config: PathBuf) -> Result<(Directory, Option<TransportSettings>), CliError> {
    let (environment, settings) = match load(config)? {
        Either::Node(config) => (config.environment.clone(), Some(config.transport()?)),
        Either::Client(config) => (config.environment.clone(), config.transport()?),
    };
    Ok((environment.load_directory()?, settings))
}

impl Topics {
    async fn open(&self, context: &Context) -> Result<(AnyTransport, Vec<TopicPlan>), CliError> {
        let (directory, settings) = configured(self.config.clone())?;
        let settings = self.reach.settings(settings);
        let settings = settings
            .ok_or_else(|| CliError::usage("the configuration has no [transport]: name the cluster with -b"))?;
        let plans = self.plans(&directory)?;
        Ok((AnyTransport::open_or_attach(settings, &context.seams).await?, plans))
    }

    fn plans(&self, directory: &Directory) -> Result<Vec<TopicPlan>, CliError> {
        let layout = self.replicated.map_or(Layout::PinnedToEach, |factor| Layout::Replicated { factor });
        if let Some(unknown) = self.destinations.iter().find(|name| !directory.destinations.contains_key(*name)) {
            return Err(CliError::usage(format!("destination {unknown} is not in the directory")));
        }
        let wanted = |name: &DestinationName| self.destinations.is_empty() || self.destinations.contains(name);
        Ok(plans(directory, layout, self.outage.0, wanted))
    }

    /// Says in a mend with which configuration and cluster its command is to be run.
    fn complete(&self, mut wrong: Mismatch) -> Mismatch {
        let mut with = format!("sealcast topic init --config {}", quoted(&self.config));
        if !self.reach.brokers.is_empty() {
            with.push_str(&format!(" -b {}", self.reach.brokers.join(",")));
        }
        wrong.mend = wrong.mend.replace("sealcast topic init", &with);
        wrong
    }

    /// What is said of the brokers: those that do not answer, and too few domains.
    fn few(&self, cluster: &Cluster) -> Option<String> {
        let (domains, wanted) = (cluster.domains().len(), self.domains.unwrap_or(USUAL_DOMAINS));
        if domains >= wanted {
            return None;
        }
        let answering = cluster.answering();
        let (brokers, count) = (listed(&answering), answering.len());
        Some(format!(
            "{count} broker{} answered ({brokers}), which make{} {domains} domain{}; {wanted} are expected",
            if count == 1 { "" } else { "s" },
            if count == 1 { "s" } else { "" },
            if domains == 1 { "" } else { "s" },
        ))
    }

    async fn init(&self, grow: bool, context: &mut Context) -> Result<Exit, CliError> {
        let (transport, plans) = self.open(context).await?;
        let cluster = admin::cluster(&transport).await?;
        if let Some(cluster) = &cluster {
            let silent = cluster.silent();
            if !silent.is_empty() {
                let text = "is listed and does not answer: no partition is made there";
                context.output.note(&format!("broker {} {text}", listed(silent)));
            }
            if let Some(few) = self.few(cluster) {
                let domains = cluster.domains().len();
                if self.domains.is_some() {
                    let text = format!("{few}: nothing was made. Start the brokers that are down, or expect fewer");
                    return Err(CliError::with(Exit::Unavailable, text));
                }
                let lost =
                    if domains < 2 { "nothing survives the loss of one" } else { "each then needs a whole copy" };
                context.output.note(&format!(
                    "warning: {few}, and {lost}. If a broker is down, start it and run this again with --grow; if the \
                     cluster is meant to be so, say --domains {domains}"
                ));
            }
        }
        let mut rows = Vec::new();
        for plan in &plans {
            let made = admin::init(&transport, plan).await?;
            let grown = if grow && made == Made::Exists { admin::grow(&transport, plan).await? } else { 0 };
            let TopicState { partitions, retention, layout, mismatches } = match made {
                Made::Exists if grown == 0 => self.look(&transport, cluster.as_ref(), plan).await?,
                _ => self.look_until_right(&transport, cluster.as_ref(), plan, context).await?,
            };
            rows.push(Initialised {
                topic: plan.topic.to_string(),
                outcome: made,
                added: grown,
                partitions: partitions.len(),
                layout: layout.unwrap_or(plan.layout),
                retention: show::retention(retention, plan.retention),
                mismatches: mismatches.into_iter().map(|wrong| self.complete(wrong)).collect(),
            });
        }
        context.output.rows(&rows)?;
        let faults = rows.iter().map(|row| (row.topic.as_str(), row.mismatches.as_slice()));
        let text = show::faults(faults);
        if !text.is_empty() && !context.output.is_json() {
            context.output.line(text.trim_end())?;
        }
        Ok(if rows.iter().all(|row| row.mismatches.is_empty()) { Exit::Done } else { Exit::Failed })
    }

    async fn check(&self, context: &mut Context) -> Result<Exit, CliError> {
        let (transport, plans) = self.open(context).await?;
        let cluster = admin::cluster(&transport).await?;
        let mut of_cluster = None;
        if let Some(cluster) = &cluster
            && let Some(few) = self.few(cluster)
        {
            let domains = cluster.domains().len();
            if self.domains.is_some() || domains < 2 {
                of_cluster = Some(Mismatch {
                    what: "domains".to_owned(),
                    found: domains.to_string(),
                    wanted: self.domains.map_or("2 or more".to_owned(), |wanted| wanted.to_string()),
                    mend: format!("start the brokers that are down, or add brokers: {few}"),
                });
            } else {
                context.output.note(&format!("{few}; say --domains {domains} if it is meant to be so"));
            }
        }
        let mut rows = Vec::new();
        for plan in &plans {
            let TopicState { partitions, retention, layout, mismatches } =
                self.look(&transport, cluster.as_ref(), plan).await?;
            let absent = mismatches.iter().any(|wrong| wrong.what == "topic");
            let of_cluster = of_cluster.iter().filter(|_| !absent).cloned();
            let mismatches: Vec<_> = of_cluster.chain(mismatches).map(|wrong| self.complete(wrong)).collect();
            rows.push(Checked {
                topic: plan.topic.to_string(),
                layout,
                retention: if absent { None } else { Some(show::retention(retention, plan.retention)) },
                partitions: partitions.into_iter().map(Into::into).collect(),
                right: mismatches.is_empty(),
                mismatches,
            });
        }
        context.output.rows(&rows)?;
        let faults = rows.iter().map(|row| (row.topic.as_str(), row.mismatches.as_slice()));
        let text = show::faults(faults);
        if !text.is_empty() && !context.output.is_json() {
            context.output.line(&format!("\n{}", text.trim_end()))?;
        }
        Ok(if rows.iter().all(|row| row.mismatches.is_empty()) { Exit::Done } else { Exit::Failed })
    }

    async fn look(
        &self,
        transport: &AnyTransport,
        cluster: Option<&Cluster>,
        plan: &TopicPlan,
    ) -> Result<TopicState, CliError> {
        Ok(admin::look(transport, plan, Look { cluster, as_found: self.replicated.is_none() }).await?)
    }

    /// Looks at a topic that was just made, until it is right or patience ends: the brokers hear of it one after the other.
    async fn look_until_right(
        &self,
        transport: &AnyTransport,
        cluster: Option<&Cluster>,
        plan: &TopicPlan,
        context: &Context,
    ) -> Result<TopicState, CliError> {
        let clock = &context.seams.clock;
        let began = clock.monotonic();
        loop {
            let state = self.look(transport, cluster, plan).await?;
            if state.mismatches.is_empty() || clock.monotonic().saturating_sub(began) >= SPREAD_PATIENCE {
                return Ok(state);
            }
            clock.sleep(Duration::from_millis(200)).await;
        }
    }
}

/// The topics of the wanted destinations, and the notices.
pub(super) fn plans(
    directory: &Directory,
    layout: Layout,
    outage: Duration,
    wanted: impl Fn(&DestinationName) -> bool,
) -> Vec<TopicPlan> {
    let plan = |topic, life: Duration| TopicPlan { topic, layout, retention: life + outage };
    let entries = directory.destinations.values();
    let segments = entries
        .clone()
        .filter(|entry| wanted(&entry.name))
        .map(|entry| plan(Topic::segments(&directory.name, &entry.name), entry.max_life));
    let longest = entries.clone().map(|entry| entry.max_life).max().unwrap_or_default();
    segments.chain([plan(Topic::notices(&directory.name), longest)]).collect()
}
