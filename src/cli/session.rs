//! What commands that talk to nodes and brokers share: the runtime, the configuration, logs on stderr.
//!
//! Owns how a command becomes asynchronous. Must not print data.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::config::{Either, load};
use super::{CliError, Context, Exit};
use crate::client::reader::{Freshness, ReadError, Reader};
use crate::client::{ClientError, SubmitError};
use crate::config::ClientConfig;
use crate::core::directory::{Directory, Span};
use crate::core::id::{DestinationName, NodeName, Position, Ticket, TransactionId};
use crate::rpc::client::NOBODY_LISTENS;
use crate::telemetry::logs::{self, LogFormat};

/// What a one-shot command logs when nobody asks for more: warnings of its own and errors.
const QUIET: &str = "error,sealcast=warn";

/// Sets up a command's logs: lines as the configuration says, and JSON whenever JSON was asked for. The environment's
/// filter counts before the configuration's, that before `otherwise`.
pub(super) fn set_up_logs(
    context: &Context,
    configured: LogFormat,
    filter: Option<&str>,
    otherwise: Option<&str>,
) -> Result<(), CliError> {
    let format = if context.output.is_json() { LogFormat::Json } else { configured };
    let asked = std::env::var(logs::FILTER_VARIABLE).ok().filter(|filter| !filter.trim().is_empty());
    logs::install(format, asked.as_deref().or(filter).or(otherwise)).map_err(|error| CliError::new(Exit::Usage, error))
}

/// Which configuration a command uses.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Configured {
    /// The client.toml to use
    #[arg(long, env = "SEALCAST_CONFIG", default_value = "client.toml", value_name = "FILE")]
    config: PathBuf,
}

impl Configured {
    /// Reads it, the environment's overrides on top, and sets up the logs.
    pub fn load(&self, context: &Context) -> Result<ClientConfig, CliError> {
        load_client(&self.config, context)
    }
}

/// Reads a client.toml, the environment's overrides on top, and sets up the logs.
pub(super) fn load_client(path: &Path, context: &Context) -> Result<ClientConfig, CliError> {
    let config = match load(path.to_path_buf())? {
        Either::Client(config) => *config,
        Either::Node(_) => {
            let shown = path.display();
            return Err(CliError::usage(format!("{shown}: this is a node's configuration: name a client.toml")));
        }
    };
    set_up_logs(context, config.log.format, config.log.filter.as_deref(), Some(QUIET))?;
    Ok(config)
}

/// Which node is asked.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Asked {
    #[command(flatten)]
    configured: Configured,

    /// Ask this node alone, rather than the first that answers
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
}

impl Asked {
    /// The node that was named.
    pub fn node(&self) -> Option<&NodeName> {
        self.node.as_ref()
    }

    /// The reader that the configuration names.
    pub fn reader(&self, context: &Context) -> Result<Reader, CliError> {
        let config = self.configured.load(context)?;
        let reader = Reader::from_config(&config, &context.seams).map_err(|error| match error {
            ReadError::NoReader => CliError::usage(format!(
                "{}: it names no reader: use a reader's client.toml, for example readers/NAME/client.toml",
                config.path().display()
            )),
            error => error.into(),
        })?;
        match &self.node {
            Some(node) => Ok(reader.at(node.clone())?),
            None => Ok(reader),
        }
    }
}

/// What a read waits for before it looks.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Fresh {
    /// Wait until the node holds everything up to this position (read your own writes)
    #[arg(long, value_name = "POSITION")]
    at_least: Option<Position>,

    /// Everything that was committed when the call came, by asking a majority
    #[arg(long)]
    linearizable: bool,

    /// Longest wait for these two, at most 60s
    #[arg(long, default_value_t = Span(Duration::from_secs(5)), value_name = "TIME")]
    timeout: Span,
}

impl Fresh {
    /// As the reader takes it.
    pub fn freshness(&self) -> Freshness {
        Freshness { at_least: self.at_least, linearizable: self.linearizable, timeout: Some(self.timeout.0) }
    }
}

/// A header, as `-H` takes it.
pub(super) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE, for example content-language=en".to_owned()),
    }
}

/// Refuses a destination that the directory does not have, before anybody is asked. Nothing is revealed: readers
/// and senders have it.
pub(super) fn check_destination(directory: &Directory, destination: &DestinationName) -> Result<(), CliError> {
    if directory.destinations.contains_key(destination) {
        return Ok(());
    }
    let names: Vec<_> = directory.destinations.keys().map(ToString::to_string).collect();
    let names = names.join(", ");
    Err(CliError::usage(format!("the directory has no destination {destination}: it has {names}")))
}

/// How a transaction is named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    /// By its id.
    Whole(TransactionId),
    /// By the first characters of its id: 8 to 32 hexadecimal digits, hyphens where the id has them.
    Prefix(String),
    /// By its ticket.
    Ticket(Ticket),
}

impl Named {
    /// As it was given, or would be.
    pub fn text(&self) -> String {
        match self {
            Self::Whole(id) => id.to_string(),
            Self::Prefix(prefix) => prefix.clone(),
            Self::Ticket(ticket) => ticket.to_string(),
        }
    }
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return text.parse().map(Self::Ticket).map_err(|error| format!("{error}"));
        }
        let text = text.to_lowercase();
        if let Ok(id) = text.parse() {
            return Ok(Self::Whole(id));
        }
        let digits = text.chars().filter(char::is_ascii_hexdigit).count();
        let others = text.chars().any(|c| !c.is_ascii_hexdigit() && c != '-');
        if others || !(8..=32).contains(&digits) {
            return Err("expected a transaction's id, its first characters (8 or more), or a ticket".to_owned());
        }
        Ok(Self::Prefix(text))
    }
}

/// What a command's futures run on.
pub(super) fn runtime() -> Result<Runtime, CliError> {
    Runtime::new().map_err(|error| CliError::failed(format!("starting the runtime: {error}")))
}

/// Runs a command's future to its end.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(future);
    // What still blocks (a read of stdin) must not hold up the end.
    runtime.shutdown_background();
    outcome
}

impl From<ReadError> for CliError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Config(error) => error.into(),
            ReadError::NoReader | ReadError::NoNode(_) | ReadError::OtherCursor { .. } => Self::new(Exit::Usage, error),
            ReadError::NotCommitted { .. } => Self::new(Exit::Rejected, error),
            ReadError::Undecided { .. } => Self::new(Exit::Unknown, error),
            ReadError::Unavailable { said } if said.contains(NOBODY_LISTENS) => Self::with(
                Exit::Unavailable,
                format!(
                    "unavailable: {said}; start what is down with `sealcast node run`, or a whole environment with `sealcast \
                     dev`"
                ),
            ),
            error if error.retryable() => Self::new(Exit::Unavailable, error),
            error => Self::new(Exit::Failed, error),
        }
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Config(error) => error.into(),
            ClientError::Directory(error) => error.into(),
            ClientError::Transport(error) => error.into(),
            ClientError::Setting { .. }
            | ClientError::Transaction { .. }
            | ClientError::Id(_)
            | ClientError::NoDestination { .. }
            | ClientError::Suite { .. } => Self::new(Exit::Usage, error),
            error if error.retryable() => Self::new(Exit::Unavailable, error),
            error => Self::new(Exit::Failed, error),
        }
    }
}

impl From<SubmitError> for CliError {
    fn from(error: SubmitError) -> Self {
        error.error.into()
    }
}
