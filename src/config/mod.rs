//! Configuration: one TOML file, environment overrides (`SEALCAST__SECTION__KEY`), flags above both; unknown fields are
//! refused (design, section 9). `client.toml` is a [`ClientConfig`], `node.toml` a [`NodeConfig`].
//!
//! Relative paths, wherever they come from, are relative to the folder of the configuration file. Every secret has a
//! sibling `*_file`, which names a file that only its owner can read.
//!
//! Owns settings, their checks and [`environment`], which writes a whole new environment. Must not open stores,
//! connections or topics.

mod client;
pub mod environment;
mod node;
mod properties;
mod sections;
mod sources;
#[cfg(test)]
mod tests;

pub use client::{BundleSection, ClientConfig, OutboxSection, ReaderSection, SenderSection, WindowSection};
pub use node::{LimitsSection, NodeConfig, NodeSection};
pub use properties::given_property;
pub use sections::{EnvironmentSection, LogSection, Secret, TransportKind, TransportSection, TransportSettings};
pub use sources::Sources;

use std::path::PathBuf;

use crate::core::directory::DirectoryError;
use crate::keys::KeyError;

/// Why a configuration cannot be used: always with the file, the key where there is one, and the mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{}: {cause}: name the file with --config, or make an environment with `sealcast init`", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A field is unknown, missing or of the wrong shape, in the file, the environment or a flag.
    #[error("{}: {message}: mend that setting (`sealcast config show` prints what is in effect)", path.display())]
    Shape {
        /// Which configuration file.
        path: PathBuf,
        /// Which field, what is wrong, and where it came from.
        message: String,
    },
    /// A setting has the right shape and a value that cannot be.
    #[error("{}: {key}: {problem}", path.display())]
    Setting {
        /// Which configuration file.
        path: PathBuf,
        /// Which setting, for example `outbox.bytes`.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A key that a setting names.
    #[error("{}: {key}: {cause}", path.display())]
    Key {
        /// Which configuration file.
        path: PathBuf,
        /// Which setting.
        key: String,
        /// What is wrong with the key.
        cause: Box<KeyError>,
    },
    /// The directory that the settings name.
    #[error("{}: {cause}", path.display())]
    Directory {
        /// Which directory file.
        path: PathBuf,
        /// Why it is refused.
        cause: DirectoryError,
    },
}

impl ConfigError {
    /// Whether trying again can help, with nothing else changed.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Key { cause, .. } => cause.retryable(),
            Self::Read { cause, .. } => cause.kind() == std::io::ErrorKind::Interrupted,
            _ => false,
        }
    }
}
