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
/// destinations in which it stood. One in which that fails does not keep it from the others.
///
/// Errors: [`NodeError::Acknowledge`], with all that failed and where it was acknowledged: the node does not run, or the
/// alarm is none that needs a person.
pub async fn acknowledge(
    options: &NodeOptions,
    seams: &Seams,
    alarm: &str,
    only: Option<&DestinationName>,
) -> Result<Vec<DestinationName>, NodeError> {
    let (_kept, directory) = watch::channel(options.directory.clone());
    let dialer = Dialer::new(seams, Credentials::new(options.keys.tls())?, directory, Meter::default());
    let (mut stood, mut failures, mut again) = (Vec::new(), Vec::new(), false);
    for name in options.rings.keys().filter(|name| only.is_none_or(|only| only == *name)) {
        let Some(entry) = options.directory.destinations.get(name) else { continue };
        let (said, retryable) = match dialer.peer(&options.name) {
            Ok(mut peer) => {
                let group = Bytes::copy_from_slice(&entry.tag.0);
                let request = proto::AcknowledgeRequest { group, alarm: alarm.to_owned() };
                match dialer.within(PATIENCE, peer.acknowledge(request)).await {
                    Ok(answer) => {
                        if answer.into_inner().stood {
                            stood.push(name.clone());
                        }
                        continue;
                    }
                    Err(status) => (explain(&status), retryable(&status)),
                }
            }
            Err(error) => (error.to_string(), error.retryable()),
        };
        again |= retryable;
        failures.push((name.clone(), said));
    }
    match failures.is_empty() {
        true => Ok(stood),
        false => Err(NodeError::Acknowledge { node: options.name.clone(), stood, failures, retryable: again }),
    }
}
