//! A whole environment in this process: three nodes that can be stopped and started, over one transport.
//!
//! Owns starting and ending them. Must not know what is sent.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cli::{CliError, Exit};
use crate::client::reader::Reader;
use crate::client::{Client, Options};
use crate::config::environment::{self, Plan, Written};
use crate::config::{ClientConfig, NodeConfig, Sources};
use crate::core::id::NodeName;
use crate::node::{Node, NodeError, NodeOptions};
use crate::seams::Seams;
use crate::transport::AnyTransport;

/// How long the nodes may take to find each other.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Nodes that run in this process, and what others need to talk to them.
pub(super) struct Cluster {
    written: Written,
    transport: Arc<AnyTransport>,
    seams: Seams,
    nodes: BTreeMap<NodeName, Running>,
    failed: mpsc::UnboundedSender<(NodeName, Arc<NodeError>)>,
    failures: mpsc::UnboundedReceiver<(NodeName, Arc<NodeError>)>,
}

/// A node, and who waits for its failure.
struct Running {
    node: Arc<Node>,
    watching: JoinHandle<()>,
}

/// Addresses on loopback whose ports were free a moment ago.
pub(super) fn free_addresses(
    names: impl IntoIterator<Item = NodeName>,
) -> Result<BTreeMap<NodeName, String>, CliError> {
    let failed = |error| CliError::new(Exit::Failed, error);
    let mut held = Vec::new();
    let mut addresses = BTreeMap::new();
    for name in names {
        // All are held until all are known, so that no two are the same.
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(failed)?;
        addresses.insert(name, listener.local_addr().map_err(failed)?.to_string());
        held.push(listener);
    }
    Ok(addresses)
}

/// Writes the planned environment into a folder and opens its transport. Blocks.
pub(super) fn prepare(plan: &Plan, folder: &Path, seams: &Seams) -> Result<(Written, AnyTransport), CliError> {
    let written = environment::write(plan, folder, seams)?;
    let any = written.senders.values().next().ok_or_else(|| CliError::usage("an environment needs a sender"))?;
    let settings = ClientConfig::load(&Sources::file(any))?.transport()?;
    let settings = settings.ok_or_else(|| CliError::usage("a sender needs a transport"))?;
    let transport = AnyTransport::open(&settings.into(), seams)?;
    Ok((written, transport))
}

impl Cluster {
    /// Starts every node of an environment and waits until all of them can do their work.
    pub(super) async fn start(written: Written, transport: AnyTransport, seams: &Seams) -> Result<Self, CliError> {
        let (failed, failures) = mpsc::unbounded_channel();
        let transport = Arc::new(transport);
        let mut cluster = Self { written, transport, seams: seams.clone(), nodes: BTreeMap::new(), failed, failures };
        for name in cluster.written.nodes.keys().cloned().collect::<Vec<_>>() {
            cluster.start_node(&name).await?;
        }
        cluster.ready().await?;
        Ok(cluster)
    }

    /// Where everything is.
    pub(super) fn written(&self) -> &Written {
        &self.written
    }

    /// Starts one node on the data that it has.
    pub(super) async fn start_node(&mut self, name: &NodeName) -> Result<(), CliError> {
        let config = self.written.nodes.get(name).ok_or_else(|| CliError::usage(format!("there is no node {name}")))?;
        let options = NodeOptions::from_config(&NodeConfig::load(&Sources::file(config))?)?;
        // One process has one page of metrics, and nobody asks the demo for it.
        let options = NodeOptions { http: None, ..options };
        let started = Node::start(options, self.seams.clone(), self.transport.clone()).await;
        let node = Arc::new(started.map_err(|error| CliError::new(Exit::Failed, error))?);
        let (watched, tell, of) = (node.clone(), self.failed.clone(), name.clone());
        let watching = tokio::spawn(async move {
            // A demo that ended has nobody to tell.
            let _ = tell.send((of, watched.failed().await));
        });
        self.nodes.insert(name.clone(), Running { node, watching });
        Ok(())
    }

    /// Stops one node: it drains and ends; its data stays.
    pub(super) async fn stop_node(&mut self, name: &NodeName) {
        if let Some(running) = self.nodes.remove(name) {
            running.watching.abort();
            running.node.shutdown().await;
        }
    }

    /// Waits until every node that runs can do its work.
    pub(super) async fn ready(&self) -> Result<(), CliError> {
        let all = async {
            for Running { node, .. } in self.nodes.values() {
                // A node that is gone is told by its failure.
                let _ = node.readiness().wait_for(|readiness| readiness.ready()).await;
            }
        };
        tokio::select! {
            () = all => Ok(()),
            () = self.seams.clock.sleep(READY_WITHIN) => {
                let waits = self.nodes.iter().flat_map(|(name, running)| {
                    let waiting = running.node.readiness().borrow().waiting.clone();
                    waiting.into_iter().map(move |(what, why)| format!("node {name}: {what}: {why}"))
                });
                Err(CliError::failed(format!("not ready in time: {}", waits.collect::<Vec<_>>().join("; "))))
            }
        }
    }

    /// Waits until a node has failed for good, and says how.
    pub(super) async fn failure(&mut self) -> CliError {
        match self.failures.recv().await {
            Some((name, error)) => CliError::failed(format!("node {name} failed: {error}")),
            None => std::future::pending().await,
        }
    }

    /// A client of the environment's first sender, whose window and outbox have room for so much.
    pub(super) async fn client(&self, transactions: usize, bytes: u64) -> Result<Client, CliError> {
        let config = self.written.senders.values().next().ok_or_else(|| CliError::usage("there is no sender"))?;
        let config = ClientConfig::load(&Sources::file(config))?;
        let failed = |error: crate::client::ClientError| CliError::new(Exit::Failed, error);
        let mut options = Options::from_config(&config, self.seams.clone()).map_err(failed)?;
        options.window_transactions = options.window_transactions.max(transactions);
        options.window_bytes = options.window_bytes.max(bytes);
        options.outbox.bytes = options.outbox.bytes.max(bytes.saturating_mul(2));
        Client::start(self.transport.clone(), options).await.map_err(failed)
    }

    /// A reader, as the environment's first, that asks one node alone.
    pub(super) fn reader(&self, node: &NodeName) -> Result<Reader, CliError> {
        let config = self.written.readers.values().next().ok_or_else(|| CliError::usage("there is no reader"))?;
        let config = ClientConfig::load(&Sources::file(config))?;
        let failed = |error: crate::client::reader::ReadError| CliError::new(Exit::Failed, error);
        Reader::from_config(&config, &self.seams).map_err(failed)?.at(node.clone()).map_err(failed)
    }

    /// Ends all nodes.
    pub(super) async fn shutdown(mut self) {
        for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
            self.stop_node(&name).await;
        }
    }
}
