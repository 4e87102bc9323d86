//! Who calls, and what the directory in force lets it do. Asked at each call, and again while a stream runs: a connection
//! that stands gives no rights of its own.
//!
//! Must not look at what is asked for, nor say whether it exists.

use std::net::SocketAddr;
use std::sync::Arc;

use tonic::{Request, Status};

use super::DirectoryWatch;
use crate::core::directory::{DestinationEntry, Directory};
use crate::core::id::{DestinationName, DestinationTag, NodeName, ReaderName, VerifyingKeyBytes, closed_list};
use crate::telemetry::{Meter, names};

/// Whom the directory knows by a TLS key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerIdentity {
    /// A receiving node.
    Node(NodeName),
    /// Who may read committed data.
    Reader(ReaderName),
}

impl PeerIdentity {
    /// Whose key this is; `None` when the directory does not list it.
    pub fn of(directory: &Directory, key: &VerifyingKeyBytes) -> Option<Self> {
        let node = || directory.node_by_tls(key).map(|entry| Self::Node(entry.name.clone()));
        let reader = || directory.reader_by_tls(key).map(|entry| Self::Reader(entry.name.clone()));
        node().or_else(reader)
    }

    /// Whether the directory lets it read this destination: a reader by its entry, a node when it is a voter there.
    pub fn may_read(&self, directory: &Directory, destination: &DestinationName) -> bool {
        match self {
            Self::Node(node) => directory.destinations.get(destination).is_some_and(|entry| entry.has_node(node)),
            Self::Reader(reader) => directory.may_read(reader, destination),
        }
    }
}

impl std::fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Reader(name) => write!(f, "reader {name}"),
        }
    }
}

/// What a connection proved: rides on every request as an extension.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The key that its handshake proved.
    pub key: VerifyingKeyBytes,
    /// Who that was at the handshake. For permissions ask [`Gate::identity`], which looks again.
    pub identity: PeerIdentity,
    /// From where it connected.
    pub address: SocketAddr,
    /// The key exchange that was agreed, by its name in the IANA registry, for example `X25519MLKEM768`.
    pub key_exchange: String,
}

closed_list! {
    /// Why a call is denied. The caller hears the same whether what it asked for exists or not.
    pub enum Denial: u8 {
        /// 1: the connection proved no key.
        NoKey = 1 "no-key",
        /// 2: the directory does not list the key any more.
        Unlisted = 2 "unlisted",
        /// 3: the call is for nodes.
        NoNode = 3 "no-node",
        /// 4: the call is for the voters of a group, and this node is none, or there is no such group.
        NoVoter = 4 "no-voter",
        /// 5: the directory does not let it read this destination, or there is none.
        NoReader = 5 "no-reader",
    }
}

/// Asks the directory of the moment about callers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    directory: DirectoryWatch,
    meter: Meter,
}

impl Gate {
    /// A gate that counts what it denies.
    pub fn new(directory: DirectoryWatch, meter: Meter) -> Self {
        Self { directory, meter }
    }

    /// The newest directory.
    pub fn directory(&self) -> Arc<Directory> {
        self.directory.borrow().clone()
    }

    /// To be told of newer directories, for streams that must ask again.
    pub fn watch(&self) -> DirectoryWatch {
        self.directory.clone()
    }

    fn denied(&self, reason: Denial, text: impl Into<String>) -> Status {
        let text = text.into();
        self.meter.count_as(names::RPC_DENIED, "reason", reason.word());
        tracing::info!(%reason, "call denied: {text}");
        Status::permission_denied(text)
    }

    /// Who calls, by the directory of this moment. Errors: PERMISSION_DENIED when it is not listed any more.
    pub fn identity<T>(&self, request: &Request<T>) -> Result<PeerIdentity, Status> {
        let caller = request
            .extensions()
            .get::<Caller>()
            .ok_or_else(|| self.denied(Denial::NoKey, "the connection proved no key"))?;
        PeerIdentity::of(&self.directory.borrow(), &caller.key).ok_or_else(|| {
            self.denied(Denial::Unlisted, format!("key {} is not in the directory any more", caller.key))
        })
    }

    /// The node that calls. Errors: PERMISSION_DENIED when it is none.
    pub fn node<T>(&self, request: &Request<T>) -> Result<NodeName, Status> {
        match self.identity(request)? {
            PeerIdentity::Node(node) => Ok(node),
            other => Err(self.denied(Denial::NoNode, format!("{other}: this call is for nodes"))),
        }
    }

    /// The node that calls, which must be a voter of the group, and the group's destination. Errors: PERMISSION_DENIED,
    /// the same for a group that does not exist.
    pub fn member<T>(
        &self,
        request: &Request<T>,
        group: &DestinationTag,
    ) -> Result<(NodeName, DestinationEntry), Status> {
        let node = self.node(request)?;
        let directory = self.directory.borrow();
        match directory.destination_by_tag(group) {
            Some(destination) if destination.has_node(&node) => Ok((node, destination.clone())),
            _ => Err(self.denied(Denial::NoVoter, format!("node {node} is no voter of group {group}"))),
        }
    }

    /// Whether this caller may read the destination now.
    pub fn may_read(&self, who: &PeerIdentity, destination: &DestinationName) -> bool {
        let allowed = who.may_read(&self.directory.borrow(), destination);
        if !allowed {
            let reason = Denial::NoReader;
            self.meter.count_as(names::RPC_DENIED, "reason", reason.word());
            tracing::info!(%reason, caller = %who, %destination, "call denied: it may not read this destination");
        }
        allowed
    }

    /// The caller, which must be allowed to read the destination. Errors: PERMISSION_DENIED, the same for a destination
    /// that does not exist.
    pub fn reader_of<T>(&self, request: &Request<T>, destination: &DestinationName) -> Result<PeerIdentity, Status> {
        let who = self.identity(request)?;
        if self.may_read(&who, destination) {
            Ok(who)
        } else {
            Err(Status::permission_denied(format!("{who} may not read {destination}: see `sealcast directory show`")))
        }
    }

    /// All destinations that this caller may read now, by name.
    pub fn readable(&self, who: &PeerIdentity) -> Vec<DestinationName> {
        let directory = self.directory.borrow();
        directory.destinations.keys().filter(|name| who.may_read(&directory, name)).cloned().collect()
    }
}
