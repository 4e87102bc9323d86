//! The arms that are Sealcast: a node for each reader with its store on a real disk, and three clients, in this process, each with
//! its own connections; a topic of replication 1 and one of replication 3.
//!
//! Owns this environment. Must not decide what is sent when.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::try_join_all;
use sealcast::client::{Client, Options, Transaction};
use sealcast::config::environment::{self, Plan};
use sealcast::config::{ClientConfig, NodeConfig, Sources, TransportSettings};
use sealcast::core::id::{Suite, TransactionId};
use sealcast::local::free_addresses;
use sealcast::node::{Node, NodeOptions};
use sealcast::seams::Seams;
use sealcast::transport::admin::{self, Layout, TopicPlan};
use sealcast::transport::{AnyTransport, Topic, TransportOptions};

use crate::Failure;
use crate::figures::words::Arm;
use crate::flights::Flights;
use crate::hear::NODES;
use crate::records::keep_little;
use crate::stages::Stages;

/// How long the nodes may take to find each other.
const PATIENCE: Duration = Duration::from_secs(60);
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// Destinations: on topics of replication 1, and of replication 3.
const CODED: &str = "coded";
const REPLICATED: &str = "replicated";
/// Senders: of the arms in this order.
const ARMS: [(Arm, &str, &str); 3] =
    [(Arm::Memory, "memory", CODED), (Arm::Disk, "disk", CODED), (Arm::Replicated, "copies", REPLICATED)];

/// Nodes and clients.
pub struct Sealcast {
    seams: Seams,
    nodes: Vec<Node>,
    clients: BTreeMap<Arm, (Client, &'static str)>,
    flights: Arc<Flights>,
    stages: Option<Arc<Stages>>,
}

fn named<T: std::str::FromStr>(text: &str) -> Result<T, Failure>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    Ok(text.parse::<T>()?)
}

impl Sealcast {
    /// Writes an environment, makes its topics, and starts its nodes and clients.
    pub async fn start(
        brokers: &str,
        folder: &Path,
        arms: &[Arm],
        seams: &Seams,
        (flights, stages): (&Arc<Flights>, &Option<Arc<Stages>>),
    ) -> Result<Self, Failure> {
        let names = NODES.into_iter().take(flights.readers()).map(named).collect::<Result<Vec<_>, Failure>>()?;
        let settings = TransportSettings::Kafka {
            brokers: brokers.split(',').map(str::to_owned).collect(),
            properties: BTreeMap::new(),
        };
        let plan = Plan {
            name: named("compare")?,
            nodes: free_addresses(names, 0, 0)?,
            destinations: BTreeSet::from([named(CODED)?, named(REPLICATED)?]),
            senders: ARMS.iter().map(|(_, sender, _)| named(sender)).collect::<Result<_, Failure>>()?,
            readers: BTreeSet::new(),
            transport: settings.clone(),
            suite: Suite::X25519,
            minimum_suite: Suite::X25519,
            valid_for: Duration::from_secs(24 * 3600),
        };
        let written = environment::write(&plan, &folder.join("environment"), seams)?;
        let open = || AnyTransport::open(&TransportOptions::for_nodes(settings.clone()), seams).map(Arc::new);
        let making = open()?;
        let topic = |destination| Ok::<_, Failure>(Topic::segments(&plan.name, &named(destination)?));
        let layouts = [
            (topic(CODED)?, Layout::PinnedToEach),
            (topic(REPLICATED)?, Layout::Replicated { factor: 3 }),
            (Topic::notices(&plan.name), Layout::PinnedToEach),
        ];
        let mut names = Vec::new();
        for (topic, layout) in layouts {
            names.push(topic.as_str().to_owned());
            admin::init(&making, &TopicPlan { topic, layout, retention: RETENTION }).await?;
        }
        keep_little(brokers, &names).await?;
        let start = |config: &Path| {
            let options = NodeConfig::load(&Sources::file(config)).map_err(Failure::from);
            let options = options.and_then(|config| Ok(NodeOptions::from_config(&config)?));
            let transport = open();
            async move {
                Ok::<_, Failure>(Node::start(NodeOptions { http: None, ..options? }, seams.clone(), transport?).await?)
            }
        };
        let nodes = try_join_all(written.nodes.values().map(|path| start(path))).await?;
        for node in &nodes {
            let mut readiness = node.readiness();
            let ready = tokio::time::timeout(PATIENCE, readiness.wait_for(|readiness| readiness.ready())).await;
            ready.map_err(|_| "the nodes do not become ready")??;
        }
        let mut clients = BTreeMap::new();
        for (arm, sender, destination) in ARMS.into_iter().filter(|(arm, ..)| arms.contains(arm)) {
            let path = written.senders.get(&named(sender)?).ok_or("a sender is missing")?;
            let mut options = Options::from_config(&ClientConfig::load(&Sources::file(path))?, seams.clone())?;
            if arm == Arm::Memory {
                options.outbox.folder = None;
            }
            clients.insert(arm, (Client::start(open()?, options).await?, destination));
        }
        Ok(Self { seams: seams.clone(), nodes, clients, flights: flights.clone(), stages: stages.clone() })
    }

    /// Submits a message and follows it until it is complete; returns when it is submitted.
    pub async fn send(&self, arm: Arm, number: u64, due: Instant, payload: Bytes) -> Result<(), Failure> {
        let (client, destination) = self.clients.get(&arm).ok_or("no such arm")?;
        let id = TransactionId::from_parts(self.seams.clock.now(), self.seams.randomness.array()?);
        self.flights.travels_as(number, id.to_string());
        if let Some(stages) = self.stages.as_ref().filter(|_| arm == Arm::Memory) {
            stages.submits(id.to_string(), due, payload.len() as u64);
        }
        let mut transaction = Transaction::new(payload).id(id).deadline(Duration::from_secs(600));
        let handle = loop {
            match client.submit(destination, transaction).await {
                Ok(handle) => break handle,
                Err(refused) if refused.retryable() => {
                    transaction = *refused.transaction;
                    client.ready(transaction.payload().len() as u64).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(refused) => return Err(refused.into()),
            }
        };
        let flights = self.flights.clone();
        tokio::spawn(async move {
            // A fate that is no commit, or none at all, leaves the message without: counted so.
            if handle.accepted().await.is_ok() {
                flights.accepted(number);
            }
            if handle.committed().await.is_ok() {
                flights.committed(number);
            }
            if handle.complete().await.is_ok() {
                flights.complete(number);
            }
        });
        Ok(())
    }

    /// Ends clients and nodes.
    pub async fn end(self) {
        for (client, _) in self.clients.into_values() {
            client.close().await;
        }
        for node in self.nodes {
            node.shutdown().await;
        }
    }
}
