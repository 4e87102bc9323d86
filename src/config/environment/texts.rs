//! The texts of configuration files.
//!
//! Owns what a new `node.toml` and `client.toml` say. Must not touch files.

use std::path::Path;

use super::{EnvironmentError, Plan, Serving, apart};
use crate::config::TransportSettings;
use crate::config::properties::FILE_SUFFIX;
use crate::core::id::{EnvironmentName, NodeName, ReaderName, SenderName, Suite, VerifyingKeyBytes};

/// How far above a node's port its metrics and health pages are.
pub const HTTP_ABOVE: u16 = 100;

/// What all configuration files of an environment have in common.
pub(super) struct Texts {
    pub name: EnvironmentName,
    pub operator: VerifyingKeyBytes,
    /// The lowest version of the directory that is accepted.
    pub minimum_version: u64,
    /// `[transport]` and what belongs to it.
    pub transport: String,
}

impl Texts {
    pub fn of_plan(plan: &Plan, operator: VerifyingKeyBytes) -> Self {
        Self { name: plan.name.clone(), operator, minimum_version: 1, transport: transport(&plan.transport) }
    }

    /// What the operator keeps.
    pub fn kept(&self) -> String {
        format!(
            "# What carries segments and notices in environment {}: it goes into the configuration of each sender and node\n\
             # that is added. Files that properties name are looked for from this folder on, as far as their paths are\n\
             # relative; a relative `path` starts at the folder of that configuration.\n{}",
            self.name, self.transport
        )
    }

    fn environment(&self) -> String {
        format!(
            "[environment]\ndirectory = \"directory\"\noperator = \"{}\"\nminimum_version = {}\n",
            self.operator, self.minimum_version
        )
    }

    /// Errors: [`EnvironmentError::Plan`] for an address without a port.
    pub fn node(&self, name: &NodeName, address: &str, serving: &Serving) -> Result<String, EnvironmentError> {
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        let port = port.ok_or_else(|| EnvironmentError::Plan {
            problem: format!("node {name}: {address:?}: expected HOST:PORT, for example 127.0.0.1:7401"),
        })?;
        let listen = match &serving.listen {
            Some(host) => format!("listen = {}\n", quoted(&format!("{host}:{port}"))),
            None => {
                "# The address that others use is in the directory; set `listen` where this machine listens on another.\n"
                    .to_owned()
            }
        };
        let http = format!(
            "{}:{}",
            serving.http,
            port.checked_add(HTTP_ABOVE).unwrap_or_else(|| port.saturating_sub(HTTP_ABOVE))
        );
        Ok(format!(
            "# Node {name} of environment {}. Relative paths start at this file's folder.\n\
             {}\n{}\n[node]\nname = \"{name}\"\nkey_file = \"node.key\"\nkeyrings = \"destinations\"\ndata = \"data\"\n\
             {listen}http = {}\n\n[log]\nformat = \"pretty\"\n",
            self.name,
            self.environment(),
            self.transport,
            quoted(&http),
        ))
    }

    pub fn sender(&self, name: &SenderName, suite: Suite) -> String {
        format!(
            "# Sender {name} of environment {}. Relative paths start at this file's folder.\n\
             {}\n{}\n[sender]\nname = \"{name}\"\nkey_file = \"sender.key\"\nsuite = \"{suite}\"\n\n\
             [outbox]\npath = \"outbox\"\n",
            self.name,
            self.environment(),
            self.transport,
        )
    }

    pub fn reader(&self, name: &ReaderName) -> String {
        format!(
            "# Reader {name} of environment {}. Relative paths start at this file's folder.\n\
             {}\n[reader]\nname = \"{name}\"\nkey_file = \"reader.key\"\n",
            self.name,
            self.environment(),
        )
    }
}

/// `[transport]` as every configuration of the environment has it.
fn transport(settings: &TransportSettings) -> String {
    let mut text = "[transport]\n".to_owned();
    match settings {
        TransportSettings::Kafka { brokers, properties } => {
            let brokers: Vec<_> = brokers.iter().map(|broker| quoted(broker)).collect();
            text.push_str(&format!("kind = \"kafka\"\nbrokers = [{}]\n", brokers.join(", ")));
            if !properties.is_empty() {
                text.push_str("\n[transport.properties]\n");
            }
            for (name, value) in properties {
                // A secret never stands in a configuration: it lies in a file of its own beside it.
                let (name, value) = match apart(name, value) {
                    true => (format!("{name}{FILE_SUFFIX}"), name),
                    false => (name.clone(), value),
                };
                text.push_str(&format!("{} = {}\n", quoted(&name), quoted(value)));
            }
        }
        TransportSettings::Embedded { path } => {
            // Bundles are two folders below the environment's; an absolute path replaces this.
            let path = Path::new("../..").join(path);
            text.push_str(&format!("kind = \"embedded\"\npath = {}\n", quoted(&path.display().to_string())));
        }
    }
    text
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
