//! Telling a running node that a person looked at one of its alarms: with the node's own keys, over its Peer service.
//!
//! Must not decide which alarms that ends (that is [`super::alarms`]).

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::{NodeError, NodeOptions};
use crate::core::id::DestinationName;
use crate::rpc::client::{Dialer, explain, retryable};
use crate::rpc::proto;
use crate::rpc::tls::Credentials;
use crate::seams::Seams;
use crate::telemetry::Meter;

/// Longest wait for the node's answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Acknowledges an alarm of the node that runs with these options, in one destination or in all that it serves. Gives the
/// destinations in which it stood.
///
/// Errors: [`NodeError::Acknowledge`]: the node does not run, or the alarm is none that needs a person.
pub async fn acknowledge(
    options: &NodeOptions,
    seams: &Seams,
    alarm: &str,
    only: Option<&DestinationName>,
) -> Result<Vec<DestinationName>, NodeError> {
    let (_kept, directory) = watch::channel(options.directory.clone());
    let dialer = Dialer::new(seams, Credentials::new(options.keys.tls())?, directory, Meter::default());
    let mut stood = Vec::new();
    for name in options.rings.keys().filter(|name| only.is_none_or(|only| only == *name)) {
        let failed = |said: String, retryable: bool| {
            let node = options.name.clone();
            NodeError::Acknowledge { node, destination: name.clone(), said, retryable }
        };
        let Some(entry) = options.directory.destinations.get(name) else { continue };
        let mut peer = dialer.peer(&options.name).map_err(|error| failed(error.to_string(), error.retryable()))?;
        let request =
            proto::AcknowledgeRequest { group: Bytes::copy_from_slice(&entry.tag.0), alarm: alarm.to_owned() };
        let answer = dialer.within(PATIENCE, peer.acknowledge(request)).await;
        let answer = answer.map_err(|status| failed(explain(&status), retryable(&status)))?;
        if answer.into_inner().stood {
            stood.push(name.clone());
        }
    }
    Ok(stood)
}
