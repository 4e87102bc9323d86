//! `sealcast config`: whether a configuration can be used, and what is in effect.

use std::path::PathBuf;

use serde::Serialize;

use super::{CliError, Context, Exit, Row};
use crate::config::{ClientConfig, ConfigError, NodeConfig, Sources, TransportSettings};
use crate::core::directory::{Directory, Validity};

/// Checks a configuration, or shows what is in effect
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sealcast config check nodes/a/node.toml")]
pub(super) struct ConfigCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Reads a client.toml or node.toml and everything that it names: directory, keys, key rings
    #[command(after_help = "Example:\n  sealcast config check nodes/a/node.toml senders/web/client.toml")]
    Check {
        /// Configuration files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Prints the settings in effect, from file and environment; secrets are redacted
    #[command(after_help = "Example:\n  SEALCAST__LOG__FORMAT=json sealcast config show nodes/a/node.toml")]
    Show {
        /// The configuration file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Either kind of configuration.
pub(super) enum Either {
    Client(Box<ClientConfig>),
    Node(Box<NodeConfig>),
}

/// A file with a `[node]` table is a node's; the file alone says which, so that its errors are about the right fields.
pub(super) fn load(file: PathBuf) -> Result<Either, CliError> {
    let text = std::fs::read_to_string(&file)
        .map_err(|cause| CliError::from(ConfigError::Read { path: file.clone(), cause }))?;
    let of_node = text.lines().any(|line| line.trim() == "[node]");
    let sources = Sources::file(file).with_process_environment();
    Ok(if of_node {
        Either::Node(Box::new(NodeConfig::load(&sources)?))
    } else {
        Either::Client(Box::new(ClientConfig::load(&sources)?))
    })
}

#[derive(Serialize)]
struct Checked {
    file: String,
    what: &'static str,
    found: String,
}

impl Row for Checked {
    const HEADS: &'static [&'static str] = &["file", "what", "found"];

    fn cells(&self) -> Vec<String> {
        vec![self.file.clone(), self.what.to_owned(), self.found.clone()]
    }
}

impl ConfigCommand {
    pub(super) fn run(self, context: &mut Context) -> Result<Exit, CliError> {
        match self.action {
            Action::Check { files } => {
                let mut rows = Vec::new();
                for file in files {
                    check(file, context, &mut rows)?;
                }
                context.output.rows(&rows)?;
            }
            Action::Show { file } => {
                let config = load(file)?;
                if context.output.is_json() {
                    match &config {
                        Either::Client(config) => context.output.object(config)?,
                        Either::Node(config) => context.output.object(config)?,
                    }
                } else {
                    let text = match &config {
                        Either::Client(config) => toml::to_string(config),
                        Either::Node(config) => toml::to_string(config),
                    };
                    let text = text.map_err(|error| CliError::new(Exit::Failed, error))?;
                    context.output.raw(text.as_bytes())?;
                }
            }
        }
        Ok(Exit::Done)
    }
}

/// A transport in words: where it is, and which properties are set; never their values, which may be secret.
fn carried_by(transport: &TransportSettings) -> String {
    match transport {
        TransportSettings::Kafka { brokers, properties } => {
            let names: Vec<_> = properties.keys().map(String::as_str).collect();
            let set = if names.is_empty() { String::new() } else { format!(", with {}", names.join(", ")) };
            format!("kafka at {}{set}", brokers.join(", "))
        }
        TransportSettings::Embedded { path } => format!("embedded in {}", path.display()),
    }
}

fn check(file: PathBuf, context: &Context, rows: &mut Vec<Checked>) -> Result<(), CliError> {
    let shown = file.display().to_string();
    let mut found = |what, found: String| rows.push(Checked { file: shown.clone(), what, found });
    let about = |directory: &Directory| {
        let state = match directory.validity(context.seams.clock.now()) {
            Validity::Good => "good".to_owned(),
            Validity::Ending { days } => format!("ends within {days} days: sign a new one"),
            Validity::Ended => "ended: changes have stopped, sign a new one".to_owned(),
            Validity::GraceEnded => "ended, and its grace too: nothing new is admitted, sign a new one".to_owned(),
        };
        format!("{} version {}, {state}", directory.name, directory.version)
    };
    match load(file)? {
        Either::Node(config) => {
            let directory = config.environment.load_directory()?;
            found("directory", about(&directory));
            let keys = config.keys(&directory)?;
            found("node", config.node.name.to_string());
            for (name, ring) in config.key_rings(&directory, &keys)? {
                found("key ring", format!("{name}, {} keys", ring.ids().count()));
            }
            found("listen", config.listen(&directory)?);
            found("transport", carried_by(&config.transport()?));
        }
        Either::Client(config) => {
            let directory = config.environment.load_directory()?;
            found("directory", about(&directory));
            if let Some((name, _)) = config.sender(&directory)? {
                found("sender", name.to_string());
            }
            if let Some((name, _)) = config.reader(&directory)? {
                found("reader", name.to_string());
            }
            if let Some(transport) = config.transport()? {
                found("transport", carried_by(&transport));
            }
        }
    }
    Ok(())
}
