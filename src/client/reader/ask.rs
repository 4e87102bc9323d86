//! Which node answers: nodes are asked in turn, and one that cannot say is no answer for those that can.
//!
//! Owns the turn, and when *not found* may be said: once every destination that was meant has been looked through. Must not
//! read payloads.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tonic::{Code, Status};

use super::{ANSWER_WITHIN, Channelled, ReadError, Reader, refused};
use crate::core::id::{DestinationName, NodeName, Ticket};
use crate::rpc::client::DialError;
use crate::rpc::proto;

/// What became of transactions, as several nodes said it together.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Statuses {
    /// Each with the node that said it.
    pub found: Vec<(NodeName, proto::TransactionStatus)>,
    /// Destinations for which nobody could say.
    pub unavailable: BTreeSet<DestinationName>,
    /// What the nodes said that could not say, and why.
    pub said: Vec<String>,
    /// Whether more transactions match than are listed.
    pub more: bool,
    /// The nodes that answered.
    pub asked: Vec<NodeName>,
}

/// What the nodes that were asked could not give.
#[derive(Default)]
struct Failures {
    said: Vec<String>,
    denied: bool,
    /// The best of the answers that there is nothing to read.
    nothing: Option<ReadError>,
    /// Destinations in which nothing was found.
    searched: BTreeSet<DestinationName>,
}

impl Failures {
    /// Notes that a node gave nothing. Errors: what no other node can change.
    fn note(&mut self, error: ReadError, serves: BTreeSet<DestinationName>) -> Result<(), ReadError> {
        match error {
            ReadError::Unavailable { said } => self.said.push(said),
            // Another node may serve what this one does not.
            ReadError::NotPermitted => self.denied = true,
            // Another node may know more: this one may be behind, or serve other destinations.
            error @ (ReadError::NotFound { .. } | ReadError::Undecided { .. }) => {
                self.searched.extend(serves);
                if self.nothing.as_ref().is_none_or(|known| rank(known) < rank(&error)) {
                    self.nothing = Some(error);
                }
            }
            error => return Err(error),
        }
        Ok(())
    }

    /// What all of them together mean, when these destinations were meant.
    fn verdict(self, meant: &BTreeSet<DestinationName>) -> ReadError {
        let left: Vec<String> = meant.difference(&self.searched).map(ToString::to_string).collect();
        match (self.nothing, self.said.is_empty(), self.denied) {
            (Some(undecided @ ReadError::Undecided { .. }), ..) => undecided,
            (Some(nothing), ..) if left.is_empty() => nothing,
            (Some(_), ..) => {
                let said = if self.said.is_empty() { String::new() } else { format!(": {}", self.said.join("; ")) };
                ReadError::Unavailable {
                    said: format!("not found elsewhere, and nobody could say for {}{said}", left.join(", ")),
                }
            }
            (None, true, true) => ReadError::NotPermitted,
            (None, true, false) => ReadError::NoNode("for this destination".to_owned()),
            (None, false, _) => ReadError::Unavailable { said: self.said.join("; ") },
        }
    }
}

/// Whose word counts more: who knows it, then who looked further.
fn rank(error: &ReadError) -> (bool, crate::core::id::Position) {
    match error {
        ReadError::Undecided { at } => (true, *at),
        ReadError::NotFound { at } => (false, *at),
        _ => Default::default(),
    }
}

impl Reader {
    /// The nodes to ask, in turn.
    pub(super) fn nodes(&self, destination: Option<&DestinationName>) -> Vec<NodeName> {
        let directory = self.directory();
        match (&self.only, destination.and_then(|name| directory.destinations.get(name))) {
            (Some(only), _) => vec![only.clone()],
            (None, Some(entry)) => entry.nodes.clone(),
            (None, None) => directory.nodes.keys().cloned().collect(),
        }
    }

    /// The destinations that the directory lets this reader read, ascending.
    pub fn destinations(&self) -> BTreeSet<DestinationName> {
        let directory = self.directory();
        let mine = directory.readers.values().find(|entry| entry.signing == self.key);
        mine.map(|entry| entry.destinations.clone()).unwrap_or_default()
    }

    /// The destinations that this reader may read, or the one that is meant; of them those that a node serves.
    fn served_by(&self, node: &NodeName, destination: Option<&DestinationName>) -> BTreeSet<DestinationName> {
        let directory = self.directory();
        let mine = self.destinations();
        let meant = |name: &DestinationName| match destination {
            Some(destination) => name == destination,
            None => mine.contains(name),
        };
        let all = directory.destinations.values().filter(|entry| entry.nodes.contains(node) && meant(&entry.name));
        all.map(|entry| entry.name.clone()).collect()
    }

    /// Calls one node. Errors: [`ReadError`].
    async fn call<T, F>(&self, node: &NodeName, patience: Duration, call: &F) -> Result<T, ReadError>
    where
        F: AsyncFn(Channelled) -> Result<T, Status>,
    {
        let client = self.dialer.reader(node).map_err(|error| match error {
            DialError::Unreachable { .. } | DialError::BackingOff { .. } => {
                ReadError::Unavailable { said: error.to_string() }
            }
            error => ReadError::Refused { node: node.clone(), said: error.to_string() },
        })?;
        self.dialer.within(patience, call(client)).await.map_err(|status| match status.code() {
            Code::DataLoss => ReadError::Unavailable { said: format!("{node}: {}", status.message()) },
            _ => refused(node, &status),
        })
    }

    /// Asks nodes in turn until one gives something; `look` says what an answer gives nothing for. What none of them
    /// could is *unavailable*. Errors: [`ReadError`].
    pub(super) async fn ask<T, F>(
        &self,
        destination: Option<&DestinationName>,
        patience: Duration,
        call: F,
        look: impl Fn(&NodeName, &T) -> Option<ReadError>,
    ) -> Result<(NodeName, T), ReadError>
    where
        F: AsyncFn(Channelled) -> Result<T, Status>,
    {
        let mut failures = Failures::default();
        let mut meant = BTreeSet::new();
        for node in self.nodes(destination) {
            let serves = self.served_by(&node, destination);
            meant.extend(serves.iter().cloned());
            let error = match self.call(&node, patience, &call).await {
                Ok(answer) => match look(&node, &answer) {
                    Some(error) => error,
                    None => return Ok((node, answer)),
                },
                Err(error) => error,
            };
            failures.note(error, serves)?;
        }
        Err(failures.verdict(&meant))
    }

    /// Asks nodes in turn for statuses, until every destination that is meant was looked through and something was
    /// found, or all were asked.
    async fn ask_all(
        &self,
        request: proto::StatusRequest,
        destination: Option<&DestinationName>,
    ) -> Result<Statuses, ReadError> {
        let mut failures = Failures::default();
        let mut left: BTreeMap<DestinationName, bool> = BTreeMap::new();
        let nodes = self.nodes(destination);
        for node in &nodes {
            left.extend(self.served_by(node, destination).into_iter().map(|name| (name, false)));
        }
        let mut statuses = Statuses::default();
        for node in nodes {
            let asked = async |mut client: Channelled| Ok(client.status(request.clone()).await?.into_inner());
            let answer = match self.call(&node, ANSWER_WITHIN, &asked).await {
                Ok(answer) => answer,
                Err(error) => {
                    failures.note(error, BTreeSet::new())?;
                    continue;
                }
            };
            let settled = |name: &str| left.iter().any(|(known, settled)| known.as_str() == name && *settled);
            let of = |status: &proto::TransactionStatus| {
                status.ticket.as_ref().map(|ticket| ticket.destination.clone()).unwrap_or_default()
            };
            // One word for each destination, the first that says something.
            let new: Vec<_> = answer.statuses.into_iter().filter(|status| !settled(&of(status))).collect();
            let known: BTreeSet<String> =
                new.iter().filter(|status| status.state() != proto::State::NotFound).map(&of).collect();
            let places: Vec<String> = new.iter().map(of).collect();
            statuses.found.retain(|(_, status)| {
                status.state() != proto::State::NotFound
                    || status.ticket.as_ref().is_none_or(|ticket| !places.contains(&ticket.destination))
            });
            statuses.found.extend(new.into_iter().map(|status| (node.clone(), status)));
            failures.searched.extend(answer.at.keys().filter_map(|name| DestinationName::new(name).ok()));
            for name in &answer.unavailable {
                failures.said.push(format!("{node}: the log of {name} is not replayed yet"));
            }
            left.iter_mut().for_each(|(name, settled)| *settled |= known.contains(name.as_str()));
            statuses.more |= answer.more;
            statuses.asked.push(node);
            if left.values().all(|settled| *settled) {
                break;
            }
        }
        if failures.searched.is_empty() && statuses.found.is_empty() {
            return Err(failures.verdict(&BTreeSet::new()));
        }
        statuses.unavailable = left.into_keys().filter(|name| !failures.searched.contains(name)).collect();
        statuses.said = failures.said;
        Ok(statuses)
    }

    /// What became of transactions whose id begins with `prefix` (8 characters or more). Errors: [`ReadError`].
    pub async fn status(&self, prefix: &str, destination: Option<&DestinationName>) -> Result<Statuses, ReadError> {
        let request = proto::StatusRequest {
            of: Some(proto::status_request::Of::Prefix(prefix.to_owned())),
            destination: destination.map(ToString::to_string),
            ..Default::default()
        };
        self.ask_all(request, destination).await
    }

    /// What became of a ticket: *expired* too, though no node saw the transaction. Errors: [`ReadError`].
    pub async fn status_of(&self, ticket: &Ticket) -> Result<Statuses, ReadError> {
        let request = proto::StatusRequest {
            of: Some(proto::status_request::Of::Ticket(ticket.into())),
            destination: Some(ticket.destination.to_string()),
            ..Default::default()
        };
        self.ask_all(request, Some(&ticket.destination)).await
    }

    /// How one node does. Errors: [`ReadError`].
    pub async fn node_status(&self, node: &NodeName) -> Result<proto::NodeStatusResponse, ReadError> {
        let asked =
            async |mut client: Channelled| Ok(client.node_status(proto::NodeStatusRequest {}).await?.into_inner());
        self.call(node, ANSWER_WITHIN, &asked).await
    }
}
