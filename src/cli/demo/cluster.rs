//! A whole environment in this process: three nodes that can be stopped and started, over one transport, and who sends and
//! reads.
//!
//! Owns the environment's parts as the demo needs them. Must not know what is sent.

use std::path::Path;
use std::sync::Arc;

use crate::cli::{CliError, Exit};
use crate::client::reader::Reader;
use crate::client::{Client, Options};
use crate::config::environment::{self, Plan, Written};
use crate::config::{ClientConfig, NodeConfig, Sources};
use crate::core::id::NodeName;
use crate::local::Nodes;
use crate::node::NodeOptions;
use crate::seams::Seams;
use crate::transport::{AnyTransport, TransportOptions};

/// Nodes that run in this process, and what others need to talk to them.
pub(super) struct Cluster {
    written: Written,
    transport: Arc<AnyTransport>,
    seams: Seams,
    nodes: Nodes,
}

/// Writes the planned environment into a folder and opens its transport. Blocks.
pub(super) fn prepare(plan: &Plan, folder: &Path, seams: &Seams) -> Result<(Written, AnyTransport), CliError> {
    let written = environment::write(plan, folder, seams)?;
    let any = written.senders.values().next().ok_or_else(|| CliError::usage("an environment needs a sender"))?;
    let settings = ClientConfig::load(&Sources::file(any))?.transport()?;
    let settings = settings.ok_or_else(|| CliError::usage("a sender needs a transport"))?;
    let transport = AnyTransport::open(&TransportOptions::for_nodes(settings), seams)?;
    Ok((written, transport))
}

impl Cluster {
    /// Starts every node of an environment and waits until all of them can do their work.
    pub(super) async fn start(written: Written, transport: AnyTransport, seams: &Seams) -> Result<Self, CliError> {
        let transport = Arc::new(transport);
        let mut options = Vec::new();
        for config in written.nodes.values() {
            let of_node = NodeOptions::from_config(&NodeConfig::load(&Sources::file(config))?)?;
            // One process has one page of metrics, and nobody asks the demo for it.
            options.push(NodeOptions { http: None, ..of_node });
        }
        let nodes = Nodes::start(options, transport.clone(), seams).await?;
        Ok(Self { written, transport, seams: seams.clone(), nodes })
    }

    /// Where everything is.
    pub(super) fn written(&self) -> &Written {
        &self.written
    }

    /// Starts one node on the data that it has.
    pub(super) async fn start_node(&mut self, name: &NodeName) -> Result<(), CliError> {
        Ok(self.nodes.start_node(name).await?)
    }

    /// Stops one node: it drains and ends; its data stays.
    pub(super) async fn stop_node(&mut self, name: &NodeName) -> Result<(), CliError> {
        Ok(self.nodes.stop_node(name).await?)
    }

    /// Waits until every node that runs can do its work.
    pub(super) async fn ready(&self) -> Result<(), CliError> {
        Ok(self.nodes.ready().await?)
    }

    /// Waits until a node has failed for good, and says how.
    pub(super) async fn failure(&mut self) -> CliError {
        self.nodes.failure().await.into()
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
    pub(super) async fn shutdown(self) {
        self.nodes.shutdown().await;
    }
}
