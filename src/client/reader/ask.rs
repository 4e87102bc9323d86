//! Which node answers: nodes are asked in turn, and one that cannot say is no answer for those that can.
//!
//! Owns the turn, and when *not found* may be said: once every destination that was meant has been looked through. Must not
//! read payloads.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
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

/// What a status is about.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Said {
    destination: String,
    transaction: Bytes,
    sender: String,
}

impl Said {
    fn of(status: &proto::TransactionStatus) -> Self {
        let ticket = status.ticket.clone().unwrap_or_default();
        Self { destination: ticket.destination, transaction: ticket.transaction, sender: status.sender.clone() }
    }
}

/// A transaction with a fate is this far, or further.
const DECIDED: (u8, u8) = (3, 0);

/// How far a transaction is, as a node says; of two that say the same, who knows more of what it waits for.
fn how_far(status: &proto::TransactionStatus) -> (u8, u8) {
    use proto::State;
    let vague = |waiting: &proto::Waiting| match waiting.reason() {
        proto::WaitingFor::Leader => true,
        // Whoever leads says this of itself, without naming a node.
        proto::WaitingFor::Commit => !waiting.nodes.is_empty(),
        _ => false,
    };
    match status.state() {
        State::Unspecified | State::NotFound => (0, 0),
        State::Gathering => (1, 0),
        State::Staged => (2, u8::from(!status.waiting.iter().any(vague))),
        State::Committed | State::Rejected | State::Expired | State::Forgotten | State::Purged => {
            (DECIDED.0, u8::from(status.held))
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
    /// The nodes to ask, in turn; one that is to be left comes last.
    fn nodes(&self, destination: Option<&DestinationName>, leave: Option<&NodeName>) -> Vec<NodeName> {
        let directory = self.directory();
        let mut nodes = match (&self.only, destination.and_then(|name| directory.destinations.get(name))) {
            (Some(only), _) => vec![only.clone()],
            (None, Some(entry)) => entry.nodes.clone(),
            (None, None) => directory.nodes.keys().cloned().collect(),
        };
        nodes.sort_by_key(|node| Some(node) == leave);
        nodes
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
    async fn call<T, F>(
        &self,
        node: &NodeName,
        patience: Duration,
        call: impl Fn(Channelled) -> F,
    ) -> Result<T, ReadError>
    where
        F: Future<Output = Result<T, Status>>,
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
        leave: Option<&NodeName>,
        patience: Duration,
        call: impl Fn(Channelled) -> F,
        look: impl Fn(&NodeName, &T) -> Option<ReadError>,
    ) -> Result<(NodeName, T), ReadError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut failures = Failures::default();
        let mut meant = BTreeSet::new();
        for node in self.nodes(destination, leave) {
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

    /// Asks nodes in turn for statuses, until in every destination that is meant something was found and all of it has its
    /// fate, or all were asked. Of what several say of one transaction, the furthest counts. Errors: [`ReadError`].
    async fn ask_all(
        &self,
        request: proto::StatusRequest,
        destination: Option<&DestinationName>,
    ) -> Result<Statuses, ReadError> {
        let mut failures = Failures::default();
        let nodes = self.nodes(destination, None);
        let meant: BTreeSet<_> = nodes.iter().flat_map(|node| self.served_by(node, destination)).collect();
        let mut statuses = Statuses::default();
        let mut known: BTreeMap<Said, (NodeName, proto::TransactionStatus)> = BTreeMap::new();
        for node in nodes {
            let asked = |mut client: Channelled| {
                let request = request.clone();
                async move { Ok(client.status(request).await?.into_inner()) }
            };
            let answer = match self.call(&node, ANSWER_WITHIN, &asked).await {
                Ok(answer) => answer,
                Err(error) => {
                    failures.note(error, BTreeSet::new())?;
                    continue;
                }
            };
            for status in answer.statuses {
                let said = Said::of(&status);
                if known.get(&said).is_none_or(|(_, before)| how_far(before) < how_far(&status)) {
                    known.insert(said, (node.clone(), status));
                }
            }
            failures.searched.extend(answer.at.keys().filter_map(|name| DestinationName::new(name).ok()));
            for name in &answer.unavailable {
                failures.said.push(format!("{node}: the log of {name} is not replayed yet"));
            }
            statuses.more |= answer.more;
            statuses.asked.push(node);
            let settled = |name: &DestinationName| {
                let mut of = known.iter().filter(|(said, _)| said.destination == name.as_str()).peekable();
                of.peek().is_some() && of.all(|(_, (_, status))| how_far(status) >= DECIDED)
            };
            if meant.iter().all(settled) {
                break;
            }
        }
        if failures.searched.is_empty() && known.is_empty() {
            return Err(failures.verdict(&BTreeSet::new()));
        }
        // That one node knows nothing of it says nothing where another does.
        let somewhere: BTreeSet<_> = known
            .iter()
            .filter(|(_, (_, status))| status.state() != proto::State::NotFound)
            .map(|(said, _)| (said.destination.clone(), said.transaction.clone()))
            .collect();
        statuses.found = known
            .into_iter()
            .filter(|(said, (_, status))| {
                status.state() != proto::State::NotFound
                    || !somewhere.contains(&(said.destination.clone(), said.transaction.clone()))
            })
            .map(|(_, found)| found)
            .collect();
        statuses.unavailable = meant.into_iter().filter(|name| !failures.searched.contains(name)).collect();
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
    ///
    /// ```no_run
    /// # async fn example(reader: sealcast::client::reader::Reader, kept: String) -> Result<(), Box<dyn std::error::Error>> {
    /// let statuses = reader.status_of(&kept.parse()?).await?;
    /// for (node, status) in &statuses.found {
    ///     println!("{node}: {status:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
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
        let asked = |mut client: Channelled| async move {
            Ok(client.node_status(proto::NodeStatusRequest {}).await?.into_inner())
        };
        self.call(node, ANSWER_WITHIN, &asked).await
    }
}
