//! `sealcast topic`: makes the topics of an environment, and says what is wrong with them.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::config::{Either, load};
use super::init::property;
use super::session::block_on;
use super::{CliError, Context, Exit, Row};
use crate::config::TransportSettings;
use crate::core::directory::{Directory, Span};
use crate::core::id::DestinationName;
use crate::transport::admin::{self, Layout, Made, Mismatch, TopicPlan, TopicState};
use crate::transport::{AnyTransport, Topic};

/// The outage to be survived, unless said otherwise.
pub(super) const OUTAGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long all brokers may need to hear of a new topic and to choose its leaders.
const SPREAD_PATIENCE: Duration = Duration::from_secs(30);

/// Makes the topics of an environment, or says what is wrong with them
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sealcast topic init --config nodes/a/node.toml")]
pub(super) struct TopicCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Makes the segments topic of each destination and the notices topic, where they are missing
    #[command(after_help = "\
By default each topic has replication 1 and one partition pinned to each broker: the erasure code is the redundancy, and \
no slow replica holds anything back. Records stay for the longest life of a transaction plus --outage. Where the cluster \
dictates replication, --replicated makes replicated topics.

Examples:
  sealcast topic init --config nodes/a/node.toml
  sealcast topic init --config nodes/a/node.toml -b localhost:9092 -X client.id=admin")]
    Init(Topics),
    /// Compares the topics with what they should be; exits 1 when something is wrong, with the mend for each
    #[command(after_help = "Example:\n  sealcast topic check --config nodes/a/node.toml --format json")]
    Check(Topics),
}

#[derive(Debug, clap::Args)]
struct Topics {
    /// The node.toml or client.toml that names the directory and the cluster
    #[arg(long, value_name = "FILE", env = "SEALCAST_CONFIG")]
    config: PathBuf,

    /// Bootstrap brokers, instead of the configuration's
    #[arg(short, long, value_delimiter = ',', value_name = "HOST:PORT,..")]
    brokers: Vec<String>,

    /// A librdkafka property, for example of a user who may create topics; repeat for more
    #[arg(short = 'X', value_name = "PROP=VALUE", value_parser = property)]
    properties: Vec<(String, String)>,

    /// Only this destination's topic; repeat for more
    #[arg(short, long = "destination", value_name = "NAME")]
    destinations: Vec<DestinationName>,

    /// The outage to be survived: records stay this much longer than the longest life of a transaction
    #[arg(long, value_name = "TIME", default_value_t = Span(OUTAGE))]
    outage: Span,

    /// Replicated topics with this many replicas, for clusters that dictate replication
    #[arg(long, value_name = "COPIES", value_parser = clap::value_parser!(u16).range(2..=16))]
    replicated: Option<u16>,
}

#[derive(Serialize)]
struct Initialised {
    topic: String,
    outcome: Made,
    partitions: usize,
    layout: Layout,
    retention: String,
    mismatches: Vec<Mismatch>,
}

impl Row for Initialised {
    const HEADS: &'static [&'static str] = &["topic", "outcome", "partitions", "retention"];

    fn cells(&self) -> Vec<String> {
        let outcome = match self.outcome {
            Made::Created => "created",
            Made::Exists if self.mismatches.is_empty() => "exists, and is right",
            Made::Exists => "exists, and is wrong: see `sealcast topic check`",
        };
        vec![self.topic.clone(), outcome.to_owned(), self.partitions.to_string(), self.retention.clone()]
    }
}

#[derive(Serialize)]
struct Checked {
    topic: String,
    right: bool,
    partitions: Vec<Partition>,
    mismatches: Vec<Mismatch>,
}

#[derive(Serialize)]
struct Partition {
    partition: i32,
    domain: String,
    up: bool,
    copies: u8,
}

/// One line of the table: what is wrong with a topic, or that all is right.
#[derive(Serialize)]
struct Finding {
    topic: String,
    wrong: Option<Mismatch>,
}

impl Row for Finding {
    const HEADS: &'static [&'static str] = &["topic", "what", "is", "should be", "mend"];

    fn cells(&self) -> Vec<String> {
        match &self.wrong {
            None => vec![self.topic.clone(), "all right".to_owned()],
            Some(Mismatch { what, found, wanted, mend }) => {
                vec![self.topic.clone(), what.clone(), found.clone(), wanted.clone(), mend.clone()]
            }
        }
    }
}

impl TopicCommand {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        block_on(async {
            let (Action::Init(topics) | Action::Check(topics)) = &self.action;
            let (transport, directory) = topics.open(context)?;
            let plans = topics.plans(&directory)?;
            match &self.action {
                Action::Init(_) => init(&transport, &plans, context).await,
                Action::Check(_) => check(&transport, &plans, context).await,
            }
        })
    }
}

impl Topics {
    fn open(&self, context: &Context) -> Result<(AnyTransport, Directory), CliError> {
        let (environment, settings) = match load(self.config.clone())? {
            Either::Node(config) => (config.environment.clone(), Some(config.transport()?)),
            Either::Client(config) => (config.environment.clone(), config.transport()?),
        };
        let settings = match settings {
            Some(TransportSettings::Kafka { brokers, mut properties }) => {
                properties.extend(self.properties.iter().cloned());
                let brokers = if self.brokers.is_empty() { brokers } else { self.brokers.clone() };
                TransportSettings::Kafka { brokers, properties }
            }
            _ if !self.brokers.is_empty() => {
                let properties = self.properties.iter().cloned().collect();
                TransportSettings::Kafka { brokers: self.brokers.clone(), properties }
            }
            Some(TransportSettings::Embedded { path }) => TransportSettings::Embedded { path },
            None => return Err(CliError::usage("the configuration has no [transport]: name the cluster with -b")),
        };
        let directory = environment.load_directory()?;
        Ok((AnyTransport::open(&settings.into(), &context.seams)?, directory))
    }

    fn plans(&self, directory: &Directory) -> Result<Vec<TopicPlan>, CliError> {
        let layout = self.replicated.map_or(Layout::PinnedToEach, |factor| Layout::Replicated { factor });
        if let Some(unknown) = self.destinations.iter().find(|name| !directory.destinations.contains_key(*name)) {
            return Err(CliError::usage(format!("destination {unknown} is not in the directory")));
        }
        let wanted = |name: &DestinationName| self.destinations.is_empty() || self.destinations.contains(name);
        Ok(plans(directory, layout, self.outage.0, wanted))
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

async fn init(transport: &AnyTransport, plans: &[TopicPlan], context: &mut Context) -> Result<Exit, CliError> {
    let mut rows = Vec::new();
    for plan in plans {
        let outcome = admin::init(transport, plan).await?;
        let TopicState { partitions, mismatches } = match outcome {
            Made::Created => look_until_right(transport, plan, context).await?,
            Made::Exists => look(transport, plan, context).await?,
        };
        for Mismatch { what, found, wanted, mend } in &mismatches {
            context.output.note(&format!("{}: {what} is {found}, should be {wanted}: {mend}", plan.topic));
        }
        rows.push(Initialised {
            topic: plan.topic.to_string(),
            outcome,
            partitions: partitions.len(),
            layout: plan.layout,
            retention: Span(plan.retention).to_string(),
            mismatches,
        });
    }
    context.output.rows(&rows)?;
    Ok(if rows.iter().all(|row| row.mismatches.is_empty()) { Exit::Done } else { Exit::Failed })
}

async fn check(transport: &AnyTransport, plans: &[TopicPlan], context: &mut Context) -> Result<Exit, CliError> {
    let mut findings = Vec::new();
    for plan in plans {
        let TopicState { partitions, mismatches } = look(transport, plan, context).await?;
        let topic = plan.topic.to_string();
        if context.output.is_json() {
            let partition = |known: crate::transport::Partition| Partition {
                partition: known.id.number,
                domain: known.domain.0.to_string(),
                up: known.up,
                copies: known.copies,
            };
            let partitions = partitions.into_iter().map(partition).collect();
            let right = mismatches.is_empty();
            context.output.object(&Checked {
                topic: topic.clone(),
                right,
                partitions,
                mismatches: mismatches.clone(),
            })?;
        }
        if mismatches.is_empty() {
            findings.push(Finding { topic, wrong: None });
        } else {
            findings.extend(mismatches.into_iter().map(|wrong| Finding { topic: topic.clone(), wrong: Some(wrong) }));
        }
    }
    if !context.output.is_json() {
        context.output.rows(&findings)?;
    }
    Ok(if findings.iter().all(|finding| finding.wrong.is_none()) { Exit::Done } else { Exit::Failed })
}

/// Checks a topic that was just made, until it is right or patience ends: the brokers hear of it one after the other.
async fn look_until_right(
    transport: &AnyTransport,
    plan: &TopicPlan,
    context: &Context,
) -> Result<TopicState, CliError> {
    let clock = &context.seams.clock;
    let began = clock.monotonic();
    loop {
        let state = look(transport, plan, context).await?;
        if state.mismatches.is_empty() || clock.monotonic().saturating_sub(began) >= SPREAD_PATIENCE {
            return Ok(state);
        }
        clock.sleep(Duration::from_millis(200)).await;
    }
}

/// Checks a topic and, if it is there, waits a moment until the transport itself sees its partitions.
async fn look(transport: &AnyTransport, plan: &TopicPlan, context: &Context) -> Result<TopicState, CliError> {
    let state = admin::check(transport, plan).await?;
    let there = state.mismatches.iter().all(|wrong| wrong.what != "topic");
    if state.partitions.is_empty() && there {
        let partitions = transport.known(&plan.topic, Duration::from_secs(5), &context.seams).await.to_vec();
        return Ok(TopicState { partitions, ..state });
    }
    Ok(state)
}
