//! `sealcast init`: a whole environment, ready to start.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use super::directory::signing::is_loopback;
use super::quote::quoted;
use super::{CliError, Context, Exit};
use crate::config::TransportSettings;
use crate::config::environment::{self, Plan, Serving, VALID_FOR, Written};
use crate::core::directory::{Span, write_time};
use crate::core::id::{DestinationName, EnvironmentName, NodeName, ReaderName, SenderName, Suite};
use crate::transport::TransportError;
use crate::transport::kafka::KafkaOptions;

/// Writes a whole environment: keys, the signed directory, and a folder for each machine
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sealcast init shop --kafka localhost:9092 --nodes a,b,c --destination orders --sender web
  sealcast init trial --embedded --nodes a,b,c --destination orders --sender web --reader app
  sealcast init store -o env --kafka k1:9092,k2:9092,k3:9092 -X security.protocol=ssl \\
      --nodes a=10.0.0.1:7401,b=10.0.0.2:7401,c=10.0.0.3:7401 --listen 0.0.0.0 \\
      --destination orders --sender web --reader app")]
#[command(group = clap::ArgGroup::new("transport").required(true))]
pub(super) struct Init {
    /// The environment's name, part of its topics' names
    name: EnvironmentName,

    /// Bootstrap brokers of the Kafka cluster
    #[arg(long, group = "transport", value_delimiter = ',', value_name = "HOST:PORT,..")]
    kafka: Vec<String>,

    /// No Kafka: a folder for the embedded transport, relative to the environment's. `sealcast dev` runs all nodes on it
    #[arg(long, group = "transport", value_name = "PATH", num_args = 0..=1, default_missing_value = "transport")]
    embedded: Option<PathBuf>,

    /// A librdkafka property for all configurations; repeat for more. PROP_file=PATH takes the value from a file. Secrets and
    /// certificates are copied into a file of their own in each folder, never into a configuration
    #[arg(short = 'X', value_name = "PROP=VALUE", value_parser = property, requires = "kafka")]
    properties: Vec<(String, String)>,

    /// Nodes, with addresses or (all of them) without: then on this machine, from port 7401 on
    #[arg(long, required = true, value_delimiter = ',', value_name = "NAME[=HOST:PORT],..", value_parser = node)]
    nodes: Vec<(NodeName, Option<String>)>,

    /// The address of its machine on which each node listens, with its port; default the one that others use
    #[arg(long, value_name = "HOST", value_parser = host)]
    listen: Option<String>,

    /// The address of its machine on which each node serves metrics and health, 100 ports above its own
    #[arg(long, value_name = "HOST", value_parser = host, default_value_t = Serving::default().http)]
    http: String,

    /// A destination; repeat for more
    #[arg(long = "destination", required = true, value_name = "NAME", value_delimiter = ',')]
    destinations: Vec<DestinationName>,

    /// A sender, allowed to send to every destination; repeat for more
    #[arg(long = "sender", value_name = "NAME", value_delimiter = ',')]
    senders: Vec<SenderName>,

    /// A reader, allowed to read every destination; repeat for more
    #[arg(long = "reader", value_name = "NAME", value_delimiter = ',')]
    readers: Vec<ReaderName>,

    /// The suite that senders seal with: x-wing (hybrid post-quantum) or x25519
    #[arg(long, default_value_t = Suite::XWing)]
    suite: Suite,

    /// Refuse parcels of a lower suite (x25519 is the lowest)
    #[arg(long, default_value_t = Suite::X25519, value_name = "SUITE")]
    minimum_suite: Suite,

    /// How long the directory is valid, for example 365d
    #[arg(long, default_value_t = Span(VALID_FOR), value_name = "TIME")]
    valid_for: Span,

    /// Where to write; default a folder of the environment's name
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(super) use crate::config::given_property as property;

pub(super) fn node(text: &str) -> Result<(NodeName, Option<String>), String> {
    let (name, address) = match text.split_once('=') {
        Some((name, address)) => (name, Some(address.to_owned())),
        None => (text, None),
    };
    Ok((name.parse().map_err(|error| format!("{error}"))?, address))
}

/// A host alone: ports follow from the nodes' own.
fn host(text: &str) -> Result<String, String> {
    let fits = |text: &str| match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(six) => six.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c)),
    };
    match fits(text) {
        true => Ok(text.to_owned()),
        false => Err("expected a host without a port, for example 0.0.0.0 or [::]".to_owned()),
    }
}

/// The address of each node that `--nodes` names.
pub(super) fn addresses(nodes: Vec<(NodeName, Option<String>)>) -> Result<BTreeMap<NodeName, String>, CliError> {
    let missing = |name: &NodeName| format!("--nodes: {name} has no address: give all of them one, or none");
    let with = nodes.into_iter().map(|(name, address)| match address {
        Some(address) => Ok((name, address)),
        None => Err(CliError::usage(missing(&name))),
    });
    with.collect()
}

#[derive(Serialize)]
struct Made<'a> {
    environment: &'a EnvironmentName,
    folder: String,
    directory_version: u64,
    valid_until: String,
    operator: String,
    operator_key: String,
    nodes: BTreeMap<&'a NodeName, String>,
    senders: BTreeMap<&'a SenderName, String>,
    readers: BTreeMap<&'a ReaderName, String>,
    next: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

impl Init {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        let folder = self.output.clone().unwrap_or_else(|| PathBuf::from(self.name.as_str()));
        let serving = Serving { listen: self.listen.clone(), http: self.http.clone() };
        let plan = self.plan()?;
        let written = environment::write_serving(&plan, &serving, &folder, &context.seams)?;
        let next = next(&plan, &written);
        if plan.nodes.len() == 2 {
            context.output.note(
                "of 2 nodes both are needed for a majority: when one is away nothing is committed. With 3 nodes one may be \
                 away",
            );
        }
        let note = matches!(plan.transport, TransportSettings::Embedded { .. }).then_some(ONE_MACHINE);
        if context.output.is_json() {
            let shown = |path: &PathBuf| path.display().to_string();
            context.output.object(&Made {
                environment: &plan.name,
                folder: shown(&written.folder),
                directory_version: written.directory.version,
                valid_until: write_time(written.directory.valid_until),
                operator: written.operator.to_string(),
                operator_key: shown(&written.operator_key),
                nodes: written.nodes.iter().map(|(name, path)| (name, shown(path))).collect(),
                senders: written.senders.iter().map(|(name, path)| (name, shown(path))).collect(),
                readers: written.readers.iter().map(|(name, path)| (name, shown(path))).collect(),
                next,
                note,
            })?;
            return Ok(Exit::Done);
        }
        let mut text = format!(
            "Wrote environment {} into {}: {} files.\n\n\
             Keep {} apart from all machines: whoever has it decides who may send and read.\n\
             Each of these is for one machine, as a whole and with its permissions:\n{}\n\
             The directory is valid until {}.\n\n\
             Next:\n",
            plan.name,
            written.folder.display(),
            written.files.len(),
            written.folder.join("operator").display(),
            bundles(&plan, &written),
            write_time(written.directory.valid_until),
        );
        for command in next {
            text.push_str(&format!("  {command}\n"));
        }
        if let Some(note) = note {
            text.push_str(&format!("\n{note}\n"));
        }
        context.output.raw(text.as_bytes())?;
        Ok(Exit::Done)
    }

    fn plan(self) -> Result<Plan, CliError> {
        let given = self.nodes.len();
        let nodes = if self.nodes.iter().all(|(_, address)| address.is_none()) {
            Plan::on_loopback(self.nodes.into_iter().map(|(name, _)| name))?
        } else {
            addresses(self.nodes)?
        };
        if nodes.len() != given {
            return Err(CliError::usage("--nodes: a node is named twice"));
        }
        if self.suite < self.minimum_suite {
            let (suite, minimum) = (self.suite, self.minimum_suite);
            return Err(CliError::usage(format!("--suite {suite} is below --minimum-suite {minimum}: raise it")));
        }
        let transport = match self.embedded {
            Some(path) => TransportSettings::Embedded { path },
            None => {
                let options = KafkaOptions {
                    properties: self.properties.into_iter().collect(),
                    ..KafkaOptions::new(self.kafka.join(","))
                };
                options.check().map_err(TransportError::from)?;
                TransportSettings::Kafka { brokers: self.kafka, properties: options.properties }
            }
        };
        Ok(Plan {
            name: self.name,
            nodes,
            destinations: set(self.destinations),
            senders: set(self.senders),
            readers: set(self.readers),
            transport,
            suite: self.suite,
            minimum_suite: self.minimum_suite,
            valid_for: self.valid_for.0,
        })
    }
}

fn set<T: Ord>(names: Vec<T>) -> BTreeSet<T> {
    names.into_iter().collect()
}

/// What to know of an environment on the embedded transport.
const ONE_MACHINE: &str = "\
The embedded transport is a folder of this machine: `sealcast dev` runs all nodes on it in one process, and other processes of
this machine reach it while that one runs. Nodes on several machines need Kafka.";

/// The folders, each with whose machine it is for.
fn bundles(plan: &Plan, written: &Written) -> String {
    let folder = |config: &PathBuf| config.parent().unwrap_or(config).display().to_string();
    let mut rows: Vec<(String, String)> = Vec::new();
    for (name, config) in &written.nodes {
        let address = plan.nodes.get(name).map_or("", String::as_str);
        rows.push((folder(config), format!("node {name}, which others reach at {address}")));
    }
    rows.extend(written.senders.iter().map(|(name, config)| (folder(config), format!("sender {name}"))));
    rows.extend(written.readers.iter().map(|(name, config)| (folder(config), format!("reader {name}"))));
    let width = rows.iter().map(|(folder, _)| folder.chars().count()).max().unwrap_or(0);
    rows.into_iter().map(|(folder, whose)| format!("  {folder:width$}  {whose}\n")).collect()
}

/// The command that runs a node: here, or on the machine that its address names, which gets its folder first.
fn run_node(address: &str, config: &std::path::Path) -> String {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let folder = config.parent().unwrap_or(config);
    match (is_loopback(host), folder.file_name()) {
        (false, Some(name)) => {
            let (folder, name) = (quoted(folder), name.display());
            format!(
                "scp -pr {folder} {host}: && ssh -f {host} \"sealcast node run --config {name}/node.toml 2>{name}.log\""
            )
        }
        _ => format!("sealcast node run --config {} &", quoted(config)),
    }
}

/// The next commands to type.
fn next(plan: &Plan, written: &Written) -> Vec<String> {
    let mut next = Vec::new();
    if matches!(plan.transport, TransportSettings::Embedded { .. }) {
        next.push(format!("sealcast dev {}", quoted(&written.folder)));
    } else {
        if let Some(config) = written.nodes.values().next() {
            next.push(format!("sealcast topic init --config {}", quoted(config)));
        }
        for (name, config) in &written.nodes {
            next.push(run_node(plan.nodes.get(name).map_or("", String::as_str), config));
        }
    }
    if let (Some(destination), Some(config)) = (plan.destinations.first(), written.senders.values().next()) {
        next.push(format!("echo hello | sealcast send {destination} - --config {}", quoted(config)));
    }
    if let (Some(destination), Some(config)) = (plan.destinations.first(), written.readers.values().next()) {
        next.push(format!("sealcast watch {destination} --config {}", quoted(config)));
    }
    next
}
