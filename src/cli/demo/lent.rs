//! The demo's environment for other commands: three nodes in this process over the embedded transport, without an adversary.
//!
//! Owns nothing but the way in. Must not send.

use std::collections::BTreeSet;
use std::path::Path;

use super::cluster::{Cluster, prepare};
use crate::cli::{CliError, Exit, topic};
use crate::config::environment::{Plan, VALID_FOR};
use crate::config::{ClientConfig, Sources, TransportSettings};
use crate::core::id::{DestinationName, EnvironmentName, NodeName, SenderName, Suite};
use crate::local;
use crate::seams::Seams;
use crate::transport::AnyTransport;
use crate::transport::admin::{self, Layout};

/// Three nodes, and what a sender needs.
pub(in crate::cli) struct Lent {
    cluster: Cluster,
    /// The sender's configuration.
    pub config: ClientConfig,
    /// What carries everything; this process's alone.
    pub transport: AnyTransport,
}

fn plan(prefix: &str, seams: &Seams) -> Result<Plan, CliError> {
    let failed = |error| CliError::new(Exit::Failed, error);
    let drawn: [u8; 4] = seams.randomness.array().map_err(|error| CliError::new(Exit::Unavailable, error))?;
    let name = format!("{prefix}-{}", data_encoding::HEXLOWER.encode(&drawn));
    let nodes: Vec<_> = ["a", "b", "c"].map(NodeName::new).into_iter().collect::<Result<_, _>>().map_err(failed)?;
    Ok(Plan {
        name: EnvironmentName::new(&name).map_err(failed)?,
        nodes: local::free_addresses(nodes, 0, 0)?,
        destinations: BTreeSet::from([DestinationName::new("orders").map_err(failed)?]),
        senders: BTreeSet::from([SenderName::new("web").map_err(failed)?]),
        readers: BTreeSet::new(),
        transport: TransportSettings::Embedded { path: "transport".into() },
        suite: Suite::XWing,
        minimum_suite: Suite::X25519,
        valid_for: VALID_FOR,
    })
}

impl Lent {
    /// Writes an environment into a folder, and starts its nodes.
    pub(in crate::cli) async fn start(prefix: &str, folder: &Path, seams: &Seams) -> Result<Self, CliError> {
        let (plan, to, for_writing) = (plan(prefix, seams)?, folder.to_path_buf(), seams.clone());
        let preparing = tokio::task::spawn_blocking(move || prepare(&plan, &to, &for_writing));
        let (written, transport) = preparing.await.map_err(|error| CliError::new(Exit::Failed, error))??;
        let sender = written.senders.values().next().ok_or_else(|| CliError::usage("there is no sender"))?;
        let config = ClientConfig::load(&Sources::file(sender))?;
        for plan in topic::plans(&written.directory, Layout::PinnedToEach, topic::OUTAGE, |_| true) {
            admin::init(&transport, &plan).await?;
        }
        let cluster = Cluster::start(written, transport.clone(), seams).await?;
        Ok(Self { cluster, config, transport })
    }

    /// Waits until a node has failed for good, and says how.
    pub(in crate::cli) async fn failure(&mut self) -> CliError {
        self.cluster.failure().await
    }

    /// Ends all nodes.
    pub(in crate::cli) async fn shutdown(self) {
        self.cluster.shutdown().await;
    }
}
