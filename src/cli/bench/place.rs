//! Where the bench runs: nodes of its own in this process, or those of a configuration.
//!
//! Owns how its clients come about: one for each sender, each with an outbox of its own. Must not send.

use std::path::PathBuf;
use std::sync::Arc;

use super::own::Own;
use crate::cli::{CliError, Exit};
use crate::client::{Client, Options};
use crate::config::ClientConfig;
use crate::core::directory::Directory;
use crate::core::id::{DestinationName, SenderName};
use crate::seams::Seams;
use crate::transport::{AnyTransport, TransportOptions};

/// Where the clients' outboxes are.
#[derive(Debug, Clone)]
pub(super) enum Outboxes {
    /// On disk: a folder for each below this one.
    Below(PathBuf),
    /// In memory.
    Memory,
}

/// Starts clients over the transport of nodes in this process.
pub(super) async fn clients_of(
    own: &Own,
    senders: u64,
    outboxes: &Outboxes,
    seams: &Seams,
) -> Result<Vec<Client>, CliError> {
    let transport = Arc::new(own.transport.clone());
    let mut clients = Vec::new();
    for number in 0..senders {
        clients.push(client(&own.config, transport.clone(), number, outboxes, seams).await?);
    }
    Ok(clients)
}

fn open(config: &ClientConfig, seams: &Seams) -> Result<AnyTransport, CliError> {
    let shown = config.path().display();
    let settings = config.transport()?;
    let settings = settings.ok_or_else(|| CliError::usage(format!("{shown}: a sender needs a transport")))?;
    Ok(AnyTransport::open(&TransportOptions::for_clients(settings), seams)?)
}

async fn client(
    config: &ClientConfig,
    transport: Arc<AnyTransport>,
    number: u64,
    outboxes: &Outboxes,
    seams: &Seams,
) -> Result<Client, CliError> {
    let mut options = Options::from_config(config, seams.clone())?;
    options.outbox.folder = match outboxes {
        Outboxes::Below(folder) => Some(folder.join(format!("outbox-{number}"))),
        Outboxes::Memory => None,
    };
    Ok(Client::start(transport, options).await?)
}

/// Starts clients of a configured sender. Each has connections of its own, as programs of their own would, and its own epoch.
pub(super) async fn clients(
    config: &ClientConfig,
    senders: u64,
    outboxes: &Outboxes,
    seams: &Seams,
) -> Result<Vec<Client>, CliError> {
    let mut clients = Vec::new();
    for number in 0..senders {
        let (config, for_opening) = (config.clone(), seams.clone());
        let opening = tokio::task::spawn_blocking(move || open(&config, &for_opening).map(|opened| (config, opened)));
        let (config, transport) = opening.await.map_err(|error| CliError::new(Exit::Failed, error))??;
        clients.push(client(&config, Arc::new(transport), number, outboxes, seams).await?);
    }
    Ok(clients)
}

/// The destinations that were named, or the only one that the sender may send to; with `all`, all of them.
pub(super) fn destinations(
    asked: &[DestinationName],
    directory: &Directory,
    sender: &SenderName,
    all: bool,
) -> Result<Vec<DestinationName>, CliError> {
    let may: Vec<_> = directory.destinations.keys().filter(|name| directory.may_send(sender, name)).cloned().collect();
    let names = may.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if let Some(asked) = asked.iter().find(|asked| !may.contains(asked)) {
        return Err(CliError::usage(format!("{sender} may not send to {asked}: it may to {names}")));
    }
    match (asked.is_empty(), may.len()) {
        (false, _) => Ok(asked.to_vec()),
        (true, 1) => Ok(may),
        (true, _) if all => Ok(may),
        (true, _) => Err(CliError::usage(format!("name a destination: {sender} may send to {names}"))),
    }
}
