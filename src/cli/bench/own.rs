//! An environment of the bench's own: three nodes in this process over the embedded transport.
//!
//! Owns its plan and its end. Must not send.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use crate::cli::{CliError, Exit};
use crate::config::environment::{self, Plan, VALID_FOR};
use crate::config::{ClientConfig, NodeConfig, Sources, TransportSettings};
use crate::core::id::{DestinationName, EnvironmentName, NodeName, SenderName, Suite};
use crate::local::{self, Nodes};
use crate::node::NodeOptions;
use crate::seams::Seams;
use crate::transport::{AnyTransport, TransportOptions};

/// Three nodes, and what a sender needs.
pub(super) struct Own {
    nodes: Nodes,
    /// The sender's configuration.
    pub config: ClientConfig,
    /// What carries everything; this process's alone.
    pub transport: AnyTransport,
}

fn plan(prefix: &str, destinations: u64, seams: &Seams) -> Result<Plan, CliError> {
    let failed = |error| CliError::new(Exit::Failed, error);
    let named = |number: u64| match number {
        1 => DestinationName::new("orders"),
        number => DestinationName::new(&format!("orders-{number}")),
    };
    let drawn: [u8; 4] = seams.randomness.array().map_err(|error| CliError::new(Exit::Unavailable, error))?;
    let name = format!("{prefix}-{}", data_encoding::HEXLOWER.encode(&drawn));
    let nodes: Vec<_> = ["a", "b", "c"].map(NodeName::new).into_iter().collect::<Result<_, _>>().map_err(failed)?;
    Ok(Plan {
        name: EnvironmentName::new(&name).map_err(failed)?,
        nodes: local::free_addresses(nodes, 0, 0)?,
        destinations: (1..=destinations).map(named).collect::<Result<_, _>>().map_err(failed)?,
        senders: BTreeSet::from([SenderName::new("web").map_err(failed)?]),
        readers: BTreeSet::new(),
        transport: TransportSettings::Embedded { path: "transport".into() },
        suite: Suite::XWing,
        minimum_suite: Suite::X25519,
        valid_for: VALID_FOR,
    })
}

impl Own {
    /// Writes an environment with so many destinations into a folder, and starts its nodes.
    pub(super) async fn start(prefix: &str, destinations: u64, folder: &Path, seams: &Seams) -> Result<Self, CliError> {
        let (plan, to, for_writing) = (plan(prefix, destinations, seams)?, folder.to_path_buf(), seams.clone());
        let writing = tokio::task::spawn_blocking(move || environment::write(&plan, &to, &for_writing));
        let written = writing.await.map_err(|error| CliError::new(Exit::Failed, error))??;
        let sender = written.senders.values().next().ok_or_else(|| CliError::usage("there is no sender"))?;
        let config = ClientConfig::load(&Sources::file(sender))?;
        let settings = config.transport()?.ok_or_else(|| CliError::usage("a sender needs a transport"))?;
        let transport = AnyTransport::open(&TransportOptions::for_nodes(settings), seams)?;
        local::make_topics(&transport, &written.directory).await?;
        let mut options = Vec::new();
        for node in written.nodes.values() {
            let of_node = NodeOptions::from_config(&NodeConfig::load(&Sources::file(node))?)?;
            // One process has one page of metrics, and nobody asks the bench for it.
            options.push(NodeOptions { http: None, ..of_node });
        }
        let nodes = Nodes::start(options, Arc::new(transport.clone()), seams).await?;
        Ok(Self { nodes, config, transport })
    }

    /// Waits until a node has failed for good, and says how.
    pub(super) async fn failure(&mut self) -> CliError {
        self.nodes.failure().await.into()
    }

    /// Ends all nodes.
    pub(super) async fn shutdown(self) {
        self.nodes.shutdown().await;
    }
}
