//! `node.toml`: what a receiving node needs.
//!
//! Owns the node's settings. Must not start anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::sections::{check_key, list, load_key, setting};
use super::{ConfigError, EnvironmentSection, LogSection, Secret, Sources, TransportSection, TransportSettings};
use crate::core::directory::Directory;
use crate::core::id::{DestinationName, NodeName};
use crate::core::limits;
use crate::keys::{KeyRing, NodeKeys};

/// The whole of `node.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    #[serde(skip)]
    path: PathBuf,
    /// `[environment]`.
    pub environment: EnvironmentSection,
    /// `[transport]`.
    pub transport: TransportSection,
    /// `[node]`.
    pub node: NodeSection,
    /// `[limits]`.
    #[serde(default)]
    pub limits: LimitsSection,
    /// `[log]`.
    #[serde(default)]
    pub log: LogSection,
}

/// `[node]`: who this is, its keys, its data and where it listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSection {
    /// Its name in the directory.
    pub name: NodeName,
    /// The keys' text; `key_file` is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Secret>,
    /// The keys' file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The folder of key rings, `DESTINATION.keyring` each; default `destinations`.
    #[serde(default = "destinations_folder")]
    pub keyrings: PathBuf,
    /// The folder of this node's data; default `data`.
    #[serde(default = "data_folder")]
    pub data: PathBuf,
    /// Where it listens for nodes and readers, `HOST:PORT`; default its address in the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Where it serves metrics and health, `HOST:PORT`; without it, nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Which destinations it serves; default all of which the directory makes it a voter.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<String>,
}

fn destinations_folder() -> PathBuf {
    PathBuf::from("destinations")
}

fn data_folder() -> PathBuf {
    PathBuf::from("data")
}

/// `[limits]`: lower bounds on memory and addresses than the built-in ones, which are the highest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Half-gathered bytes in memory for all senders, shared equally by the destinations; 1 MiB to [`limits::GATHER_BYTES`].
    pub gather_bytes: usize,
    /// Half-gathered bytes in memory for one sender of a destination, at most the destination's share; 1 MiB to
    /// [`limits::GATHER_BYTES_PER_SENDER`].
    pub gather_bytes_per_sender: usize,
    /// Deferred addresses kept for a sender; 16 to [`limits::DEFERRED_PER_SENDER`].
    pub deferred_per_sender: usize,
    /// Transactions of a sender that are staged for a destination while they have no fate; 16 to
    /// [`limits::UNDECIDED_PER_SENDER`].
    pub undecided_per_sender: usize,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            gather_bytes: limits::GATHER_BYTES,
            gather_bytes_per_sender: limits::GATHER_BYTES_PER_SENDER,
            deferred_per_sender: limits::DEFERRED_PER_SENDER,
            undecided_per_sender: limits::UNDECIDED_PER_SENDER,
        }
    }
}

impl NodeConfig {
    /// Reads, merges and checks settings; files that they name are not opened yet. Errors: [`ConfigError::Read`],
    /// [`ConfigError::Shape`], [`ConfigError::Setting`].
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut config: Self = sources.read(&["sender", "reader", "outbox", "window"])?;
        config.path = sources.path().to_path_buf();
        config.environment.check(sources)?;
        config.transport.check(sources)?;
        let node = &mut config.node;
        check_key(sources, "node", node.key.as_ref(), &mut node.key_file)?;
        node.keyrings = sources.folder().join(&node.keyrings);
        node.data = sources.folder().join(&node.data);
        for (key, address) in [("node.listen", &node.listen), ("node.http", &node.http)] {
            let Some(address) = address else { continue };
            let fits =
                address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            if !fits {
                return Err(setting(
                    sources,
                    key,
                    format!("{address:?}: expected HOST:PORT, for example 0.0.0.0:7401"),
                ));
            }
        }
        let ranges = [
            ("limits.gather_bytes", config.limits.gather_bytes, limits::GATHER_BYTES_LEAST, limits::GATHER_BYTES),
            (
                "limits.gather_bytes_per_sender",
                config.limits.gather_bytes_per_sender,
                limits::GATHER_BYTES_LEAST,
                limits::GATHER_BYTES_PER_SENDER,
            ),
            ("limits.deferred_per_sender", config.limits.deferred_per_sender, 16, limits::DEFERRED_PER_SENDER),
            ("limits.undecided_per_sender", config.limits.undecided_per_sender, 16, limits::UNDECIDED_PER_SENDER),
        ];
        for (key, value, lowest, highest) in ranges {
            if !(lowest..=highest).contains(&value) {
                return Err(setting(sources, key, format!("{value} is outside {lowest} to {highest}")));
            }
        }
        Ok(config)
    }

    /// The file that this came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// This node's keys, which must be those that the directory lists under its name. Errors: [`ConfigError::Key`],
    /// [`ConfigError::Setting`].
    pub fn keys(&self, directory: &Directory) -> Result<NodeKeys, ConfigError> {
        let keys: NodeKeys = load_key(&self.path, "node", self.node.key.as_ref(), self.node.key_file.as_deref())?;
        let name = &self.node.name;
        let Some(entry) = directory.nodes.get(name) else {
            return Err(self.wrong("node.name", format!("the directory has no node {name}: add it, or mend the name")));
        };
        if keys.entry(name.clone(), entry.address.clone()) != *entry {
            let problem =
                format!("these keys are not those of node {name} in the directory: put its public keys there");
            return Err(self.wrong("node.key_file", problem));
        }
        Ok(keys)
    }

    /// Where it listens: the setting, or its address in the directory. Errors: [`ConfigError::Setting`] when the directory
    /// does not know it.
    pub fn listen(&self, directory: &Directory) -> Result<String, ConfigError> {
        let entry = || directory.nodes.get(&self.node.name).map(|entry| entry.address.clone());
        let unknown = || self.wrong("node.name", format!("the directory has no node {}", self.node.name));
        self.node.listen.clone().or_else(entry).ok_or_else(unknown)
    }

    /// The destinations that it serves. Errors: [`ConfigError::Setting`] when one is none of its own, or there is none.
    pub fn destinations(&self, directory: &Directory) -> Result<BTreeSet<DestinationName>, ConfigError> {
        let own: BTreeSet<_> = directory.destinations_of(&self.node.name).map(|entry| entry.name.clone()).collect();
        let mut served = BTreeSet::new();
        for name in &self.node.destinations {
            let parsed = name.parse().map_err(|error| self.wrong("node.destinations", format!("{error}")))?;
            if !own.contains(&parsed) {
                let problem = format!("the directory does not list node {} for {parsed}", self.node.name);
                return Err(self.wrong("node.destinations", problem));
            }
            served.insert(parsed);
        }
        if self.node.destinations.is_empty() {
            served = own;
        }
        if served.is_empty() {
            return Err(
                self.wrong("node.name", format!("no destination of the directory lists node {}", self.node.name))
            );
        }
        Ok(served)
    }

    /// Opens the key rings of the destinations that it serves; each must hold the secret of every key that the directory
    /// lists as current. Errors: [`ConfigError::Key`], [`ConfigError::Setting`].
    pub fn key_rings(
        &self,
        directory: &Directory,
        keys: &NodeKeys,
    ) -> Result<BTreeMap<DestinationName, KeyRing>, ConfigError> {
        let mut rings = BTreeMap::new();
        for name in self.destinations(directory)? {
            let path = self.node.keyrings.join(format!("{name}.keyring"));
            let wrong = |cause| ConfigError::Key {
                path: self.path.clone(),
                key: "node.keyrings".to_owned(),
                cause: Box::new(cause),
            };
            let ring =
                KeyRing::read_sealed(&path, directory.environment, &name, &self.node.name, keys).map_err(wrong)?;
            if let Some(entry) = directory.destinations.get(&name) {
                ring.check_covers(entry).map_err(wrong)?;
            }
            rings.insert(name, ring);
        }
        Ok(rings)
    }

    /// The transport, ready to be opened. Errors: [`ConfigError::Key`] for a property's file.
    pub fn transport(&self) -> Result<TransportSettings, ConfigError> {
        self.transport.settings(&self.path)
    }

    fn wrong(&self, key: &str, problem: String) -> ConfigError {
        ConfigError::Setting { path: self.path.clone(), key: key.to_owned(), problem }
    }
}
