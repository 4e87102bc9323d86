//! What a node is started with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{ConfigError, NodeConfig};
use crate::core::directory::Directory;
use crate::core::gather::Caps;
use crate::core::id::{DestinationName, NodeName};
use crate::core::sign::PublicKey;
use crate::keys::{KeyRing, NodeKeys};

/// What a node is started with.
#[derive(Clone)]
pub struct NodeOptions {
    /// Its name in the directory.
    pub name: NodeName,
    /// The folder of its data: a folder for each destination in it.
    pub data: PathBuf,
    /// Where it listens for nodes and readers, `HOST:PORT`.
    pub listen: String,
    /// Where it serves metrics and health, `HOST:PORT`.
    pub http: Option<String>,
    /// The newest directory that was verified.
    pub directory: Arc<Directory>,
    /// Where it is read again from; without it, it is not.
    pub directory_file: Option<PathBuf>,
    /// The operator's public key.
    pub operator: PublicKey,
    /// This node's keys.
    pub keys: Arc<NodeKeys>,
    /// The destinations that it serves, with their secrets.
    pub rings: BTreeMap<DestinationName, Arc<KeyRing>>,
    /// Bounds of gathering, for all destinations together.
    pub caps: Caps,
    /// Transactions of a sender that are staged for a destination while they have no fate.
    pub undecided_per_sender: usize,
}

impl NodeOptions {
    /// Reads everything that a configuration names. Errors: [`ConfigError`].
    pub fn from_config(config: &NodeConfig) -> Result<Self, ConfigError> {
        let directory = config.environment.load_directory()?;
        let keys = config.keys(&directory)?;
        let rings = config.key_rings(&directory, &keys)?;
        Ok(Self {
            name: config.node.name.clone(),
            data: config.node.data.clone(),
            listen: config.listen(&directory)?,
            http: config.node.http.clone(),
            operator: config.environment.operator_key()?,
            directory_file: Some(config.environment.directory.clone()),
            directory: Arc::new(directory),
            keys: Arc::new(keys),
            rings: rings.into_iter().map(|(name, ring)| (name, Arc::new(ring))).collect(),
            caps: Caps {
                total_bytes: config.limits.gather_bytes,
                sender_bytes: config.limits.gather_bytes_per_sender,
                deferred: config.limits.deferred_per_sender,
            },
            undecided_per_sender: config.limits.undecided_per_sender,
        })
    }
}
