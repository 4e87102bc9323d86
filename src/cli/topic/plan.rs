//! `sealcast topic plan`: what topics would survive and cost, and what a cluster's operator has to allow, before anything is
//! made.
//!
//! Owns what is printed. The arithmetic stands in `transport::admin`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::{OUTAGE, Reach, configured};
use crate::cli::size::Size;
use crate::cli::{CliError, Context, Exit, Row};
use crate::config::TransportSettings;
use crate::core::directory::{Directory, Span};
use crate::core::id::{DestinationName, EnvironmentName};
use crate::transport::admin::{self, Cluster, Disk, Layout, Load, Outlook, TopicPlan, USUAL_DOMAINS, listed};
use crate::transport::{AnyTransport, Topic};

/// The longest life of a transaction where no directory says it: what a new directory says.
const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Over what time a node that was away may read what it missed, as a part of the time that it was away.
const CATCH_UP: f64 = 4.0;
/// Bursts above the average that a sender's quota leaves room for.
const BURSTS: f64 = 4.0;
/// Less than this a second is not worth a quota.
const LEAST_QUOTA: f64 = 1_048_576.0;

#[derive(Debug, clap::Args)]
pub(super) struct Plan {
    /// A node.toml or client.toml: its directory says who sends, who receives and how long transactions live, and its cluster is
    /// asked
    #[arg(long, value_name = "FILE", env = "SEALCAST_CONFIG")]
    config: Option<PathBuf>,

    #[command(flatten)]
    reach: Reach,

    /// Plan for this many domains (racks, or brokers that declare none) rather than ask a cluster
    #[arg(long, value_name = "COUNT", conflicts_with = "brokers", value_parser = clap::value_parser!(u16).range(1..=1000))]
    domains: Option<u16>,

    /// Replicated topics with this many replicas, for clusters that dictate replication
    #[arg(long, value_name = "COPIES", value_parser = clap::value_parser!(u16).range(2..=16))]
    replicated: Option<u16>,

    /// Transactions a second to one destination, on average
    #[arg(long, value_name = "COUNT", default_value_t = 10.0)]
    rate: f64,

    /// Payload of a transaction, on average
    #[arg(long, value_name = "SIZE", default_value_t = Size(4096))]
    size: Size,

    /// The outage to be survived: records stay this much longer than the longest life of a transaction
    #[arg(long, value_name = "TIME", default_value_t = Span(OUTAGE))]
    outage: Span,

    /// The longest life of a transaction, where no directory says it
    #[arg(long, value_name = "TIME")]
    life: Option<Span>,

    /// Nodes of a destination, where no directory says it
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=15))]
    nodes: Option<u16>,
}

/// One destination's part.
#[derive(Serialize)]
struct Planned {
    topic: String,
    recommended: Layout,
    why: String,
    outlook: Outlook,
    partitions: Vec<PlannedPartition>,
    survives_brokers: String,
    survives_nodes: String,
    profile: String,
    retention: String,
    retention_rule: String,
    disk: Disk,
    commands: Vec<Command>,
    quotas: Vec<Command>,
    alerts_to_exclude: Vec<Alert>,
}

#[derive(Serialize)]
struct PlannedPartition {
    partition: usize,
    domain: String,
    brokers: Vec<i32>,
}

/// A command for the cluster's operator.
#[derive(Serialize)]
struct Command {
    #[serde(rename = "for")]
    whom: String,
    command: String,
}

#[derive(Serialize)]
struct Alert {
    alert: &'static str,
    why: &'static str,
}

/// One line of the table.
#[derive(Serialize)]
struct Line(&'static str, String);

impl Row for Line {
    const HEADS: &'static [&'static str] = &["what", "plan"];

    fn cells(&self) -> Vec<String> {
        vec![self.0.to_owned(), self.1.clone()]
    }
}

/// Who is there, of a directory or assumed.
struct Who {
    environment: String,
    destination: String,
    life: Duration,
    nodes: Vec<String>,
    senders: Vec<String>,
}

impl Plan {
    pub(super) async fn run(&self, context: &mut Context) -> Result<Exit, CliError> {
        if !(self.rate.is_finite() && self.rate > 0.0) {
            return Err(CliError::usage("--rate: a number of transactions a second above 0"));
        }
        let (directory, settings) = match self.config.clone().map(configured).transpose()? {
            Some((directory, settings)) => (Some(directory), settings),
            None => (None, None),
        };
        let settings = if self.domains.is_some() { None } else { self.reach.settings(settings) };
        let bootstrap = match &settings {
            Some(TransportSettings::Kafka { brokers, .. }) => brokers.join(","),
            _ => "BROKERS".to_owned(),
        };
        let transport = match settings {
            Some(settings) => Some(AnyTransport::open_or_attach(settings, &context.seams).await?),
            None => None,
        };
        let cluster = match &transport {
            Some(transport) => admin::cluster(transport).await?,
            None => None,
        };
        let who = self.who(directory.as_ref());
        let shown = cluster.clone().unwrap_or_else(|| self.assumed());
        for (at, who) in who.iter().enumerate() {
            let (recommended, why) = self.recommend(transport.as_ref(), &shown, who).await?;
            let planned = self.planned(&shown, who, recommended, why, &bootstrap);
            if context.output.is_json() {
                context.output.object(&planned)?;
            } else {
                if at > 0 {
                    context.output.line("")?;
                }
                show(&planned, cluster.is_some(), context)?;
            }
        }
        Ok(Exit::Done)
    }

    /// Each destination with who has to do with it; one with made-up names where there is no directory.
    fn who(&self, directory: Option<&Directory>) -> Vec<Who> {
        let nodes = || (1..=self.nodes.unwrap_or(3)).map(|number| format!("NODE{number}")).collect();
        let Some(directory) = directory else {
            return vec![Who {
                environment: "ENVIRONMENT".to_owned(),
                destination: "DESTINATION".to_owned(),
                life: self.life.map_or(LIFE, |life| life.0),
                nodes: nodes(),
                senders: vec!["SENDER".to_owned()],
            }];
        };
        let of = |name: &DestinationName| {
            let entry = directory.destinations.get(name)?;
            let senders = directory.senders.values().filter(|sender| sender.destinations.contains(name));
            Some(Who {
                environment: directory.name.to_string(),
                destination: name.to_string(),
                life: entry.max_life,
                nodes: entry.nodes.iter().map(ToString::to_string).collect(),
                senders: senders.map(|sender| sender.name.to_string()).collect(),
            })
        };
        directory.destinations.keys().filter_map(of).collect()
    }

    /// The brokers that are planned for where none are asked: one for each domain.
    fn assumed(&self) -> Cluster {
        let count = self.domains.map_or(USUAL_DOMAINS, usize::from);
        let broker = |id| admin::Broker { id, rack: None, answers: true };
        Cluster { brokers: (1..).take(count).map(broker).collect() }
    }

    /// Which kind of topic fits this cluster, and why.
    async fn recommend(
        &self,
        transport: Option<&AnyTransport>,
        cluster: &Cluster,
        who: &Who,
    ) -> Result<(Layout, String), CliError> {
        let (brokers, domains) = (cluster.answering().len(), cluster.domains().len());
        let replicated = Layout::Replicated { factor: u16::try_from(brokers.min(3)).unwrap_or(3) };
        if let Some(transport) = transport
            && let Some(topic) = who.segments()
        {
            let probe = TopicPlan {
                topic: Topic::named(&format!("{topic}.plan")),
                layout: Layout::PinnedToEach,
                retention: who.life + self.outage.0,
            };
            if admin::permits(transport, &probe).await? == Some(false) && brokers >= 2 {
                let why = "this cluster refuses topics of replication 1 (asked with nothing made)";
                return Ok((replicated, why.to_owned()));
            }
        }
        let large = |layout| {
            let load = Load { rate: 1.0, size: 64 << 20 };
            let outlook = Outlook { layout, load, ..self.outlook(cluster, who, layout) };
            outlook.disk().transaction_bytes as f64 / load.size as f64
        };
        let why = match domains {
            0 | 1 => "one domain: nothing survives its loss whichever kind; enough for a trial".to_owned(),
            2 => format!(
                "two domains: {:.1} bytes stored for each sealed byte of large payloads, and a slow replica holds nothing back",
                large(Layout::PinnedToEach)
            ),
            _ => format!(
                "{domains} domains: {:.1} bytes stored for each byte of large payloads, replicated {:.1}; a slow replica holds \
                 nothing back",
                large(Layout::PinnedToEach),
                large(Layout::Replicated { factor: 3 })
            ),
        };
        Ok((Layout::PinnedToEach, why))
    }

    fn outlook(&self, cluster: &Cluster, who: &Who, layout: Layout) -> Outlook {
        Outlook {
            layout,
            brokers: cluster.answering().len().max(1),
            domains: cluster.domains().len().max(1),
            nodes: who.nodes.len(),
            retention: who.life + self.outage.0,
            load: Load { rate: self.rate, size: self.size.0 },
        }
    }

    fn planned(&self, cluster: &Cluster, who: &Who, recommended: Layout, why: String, bootstrap: &str) -> Planned {
        let layout = self.replicated.map_or(recommended, |factor| Layout::Replicated { factor });
        let outlook = self.outlook(cluster, who, layout);
        let disk = outlook.disk();
        let partitions = cluster.assignment(layout).into_iter().enumerate().map(|(partition, brokers)| {
            let domain = brokers.first().map_or(String::new(), |first| cluster.domain_of(*first));
            PlannedPartition { partition, domain, brokers }
        });
        let alerts = admin::alerts_to_exclude(layout).iter().map(|(alert, why)| Alert { alert, why });
        Planned {
            topic: format!("sealcast.{}.{}.segments", who.environment, who.destination),
            recommended,
            why,
            outlook,
            partitions: partitions.collect(),
            survives_brokers: outlook.survives_brokers(),
            survives_nodes: outlook.survives_nodes(),
            profile: outlook.cut(),
            retention: Span(outlook.retention).to_string(),
            retention_rule: format!("longest life {} and an outage of {}", Span(who.life), self.outage),
            disk,
            commands: who.rights(layout, bootstrap),
            quotas: who.quotas(&outlook, &disk, bootstrap),
            alerts_to_exclude: alerts.collect(),
        }
    }
}

impl Who {
    fn segments(&self) -> Option<Topic> {
        let (environment, destination) =
            (EnvironmentName::new(&self.environment), DestinationName::new(&self.destination));
        Some(Topic::segments(&environment.ok()?, &destination.ok()?))
    }

    /// The rights that each part needs, as commands. Principals are those of users named like the parts.
    fn rights(&self, layout: Layout, bootstrap: &str) -> Vec<Command> {
        let start = format!("kafka-acls --bootstrap-server {bootstrap} --command-config admin.properties --add");
        let principals = |names: &[String]| {
            let all: Vec<String> = names.iter().map(|name| format!("--allow-principal User:{name}")).collect();
            all.join(" ")
        };
        let segments = format!("sealcast.{}.{}.segments", self.environment, self.destination);
        let notices = format!("sealcast.{}.notices", self.environment);
        // What a topic's acknowledgements prove stands in its settings.
        let (write, read) = match layout {
            Layout::Replicated { .. } => ("--operation Write --operation DescribeConfigs", "--operation Read"),
            Layout::PinnedToEach => ("--operation Write", "--operation Read"),
        };
        let mut commands = Vec::new();
        let mut give = |whom: &str, right: String| {
            commands.push(Command { whom: whom.to_owned(), command: format!("{start} {right}") });
        };
        let operator = principals(&["operator".to_owned()]);
        let operations: Vec<String> = ["Create", "Alter", "Describe", "DescribeConfigs", "AlterConfigs"]
            .iter()
            .map(|operation| format!("--operation {operation}"))
            .collect();
        let prefix = format!("--topic sealcast.{}. --resource-pattern-type prefixed", self.environment);
        give("operator: topic init, check, and their mends", format!("{operator} {} {prefix}", operations.join(" ")));
        let nodes = principals(&self.nodes);
        give("nodes", format!("{nodes} {read} --topic {segments}"));
        give("nodes", format!("{nodes} {write} --topic {notices}"));
        let group =
            format!("--group sealcast.{}.{}. --resource-pattern-type prefixed", self.environment, self.destination);
        give("nodes, if lag tools are to see them", format!("{nodes} --operation Read {group}"));
        if !self.senders.is_empty() {
            let senders = principals(&self.senders);
            give("senders", format!("{senders} {write} --topic {segments}"));
            give("senders", format!("{senders} {read} --topic {notices}"));
        }
        let all: BTreeSet<&String> = self.nodes.iter().chain(&self.senders).collect();
        let all: Vec<String> = all.into_iter().cloned().chain(["operator".to_owned()]).collect();
        give("all, to learn the brokers' racks", format!("{} --operation DescribeConfigs --cluster", principals(&all)));
        commands
    }

    /// Quotas that leave this load alone and keep one user from taking the brokers for itself.
    fn quotas(&self, outlook: &Outlook, disk: &Disk, bootstrap: &str) -> Vec<Command> {
        let _ = outlook;
        let bytes = |factor: f64| (disk.broker_write_rate * factor).max(LEAST_QUOTA) as u64;
        let quota = |name: &String, what: &str, bytes: u64| {
            format!(
                "kafka-configs --bootstrap-server {bootstrap} --alter --entity-type users --entity-name {name} --add-config \
                 {what}={bytes}"
            )
        };
        let senders = self.senders.iter().map(|name| Command {
            whom: format!("sender {name}, on each broker"),
            command: quota(name, "producer_byte_rate", bytes(BURSTS)),
        });
        let nodes = self.nodes.iter().map(|name| Command {
            whom: format!("node {name}, on each broker"),
            command: quota(name, "consumer_byte_rate", bytes(CATCH_UP * BURSTS)),
        });
        senders.chain(nodes).collect()
    }
}

/// A number of bytes as people read it.
fn bytes(count: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, shift)| count >> shift > 0) {
        Some((unit, shift)) => format!("{:.1} {unit}", count as f64 / (1_u64 << shift) as f64),
        None => format!("{count} B"),
    }
}

fn named(layout: Layout) -> String {
    match layout {
        Layout::PinnedToEach => "pinned: replication 1, one partition on each broker".to_owned(),
        Layout::Replicated { factor } => format!("replicated: {factor} replicas, 2 in sync (--replicated {factor})"),
    }
}

fn show(planned: &Planned, asked: bool, context: &Context) -> Result<(), CliError> {
    let Planned { outlook, disk, .. } = planned;
    let Load { rate, size } = outlook.load;
    let by_domain = planned.partitions.iter().map(|one| format!("{} in {}", one.partition, one.domain));
    let source = if asked { "as the cluster answers" } else { "assumed: name a cluster with -b, or say --domains" };
    let mut lines = vec![
        Line("topic", planned.topic.clone()),
        Line(
            "cluster",
            format!(
                "{} brokers, {} domains (what fails together: a rack, or a broker without one), {source}",
                outlook.brokers, outlook.domains
            ),
        ),
        Line("recommended", format!("{}; {}", named(planned.recommended), planned.why)),
    ];
    if planned.recommended != outlook.layout {
        lines.push(Line("asked for", named(outlook.layout)));
    }
    lines.extend([
        Line("stripes", planned.profile.clone()),
        Line("partitions", format!("{}: {}", planned.partitions.len(), listed(by_domain))),
        Line("survives, brokers", planned.survives_brokers.clone()),
        Line("survives, nodes", planned.survives_nodes.clone()),
        Line("retention", format!("{}: {}", planned.retention, planned.retention_rule)),
        Line("load", format!("{rate} transactions a second of {} each (--rate, --size)", bytes(size))),
        Line(
            "one transaction",
            format!("{} on the brokers, in a parcel of its own; bundles are smaller", bytes(disk.transaction_bytes)),
        ),
        Line(
            "disk",
            format!(
                "{} on each broker: segments {}, notices {} in all",
                bytes(disk.broker_bytes),
                bytes(disk.segments_bytes),
                bytes(disk.notices_bytes)
            ),
        ),
    ]);
    let mut notes: Vec<String> =
        planned.alerts_to_exclude.iter().map(|Alert { alert, why }| format!("{alert}: {why}")).collect();
    context.output.rows(&lines)?;
    let mut text = String::new();
    let mut section = |title: &str, commands: &[Command]| {
        text.push_str(&format!("\n{title}\n"));
        for Command { whom, command } in commands {
            text.push_str(&format!("  # {whom}\n  {command}\n"));
        }
    };
    section(
        "Rights, where the cluster asks for them (users named like the parts; readers need none):",
        &planned.commands,
    );
    section("Quotas, if there are any, no lower than:", &planned.quotas);
    if notes.is_empty() {
        notes.push("none".to_owned());
    }
    text.push_str(&format!("\nAlerts of providers and tools to exclude for this topic:\n  {}", notes.join("\n  ")));
    context.output.line(&text)?;
    Ok(())
}
