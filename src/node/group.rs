//! What the parts of a node share for one destination.
//!
//! Owns the shape of it. Must not do anything with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::alarms::Alarms;
use super::answer::Questions;
use super::propose::Desk;
use super::stage::OnTheWay;
use crate::core::decide::Manifest;
use crate::core::directory::Directory;
use crate::core::gather::{Caps, ParcelKey};
use crate::core::id::{DestinationName, DestinationTag, Digest, EnvironmentName, NodeName, ParcelId, Time};
use crate::core::receipt::NoticeRecord;
use crate::keys::{KeyRing, NodeKeys};
use crate::raft::Group;
use crate::rpc::client::Dialer;
use crate::seams::Seams;
use crate::store::group::{GroupStore, Settled};
use crate::telemetry::Meter;
use crate::transport::AnyTransport;

/// Notices that wait to be published; beyond it new ones are dropped and counted: a refusal is durable and a missing
/// notice is asked again.
const NOTICES: usize = 4096;

/// One destination on this node: who it is, what it works with, and what it listens to.
pub struct GroupContext {
    /// This node.
    pub node: NodeName,
    /// The destination.
    pub destination: DestinationName,
    /// Its tag: the group on the wire.
    pub tag: DestinationTag,
    /// The environment, part of topics' names.
    pub environment: EnvironmentName,
    /// The machine.
    pub seams: Seams,
    /// This destination's store.
    pub store: GroupStore,
    /// What carries segments and notices.
    pub transport: Arc<AnyTransport>,
    /// This node's keys.
    pub keys: Arc<NodeKeys>,
    /// The destination's secrets and its index secret.
    pub ring: Arc<KeyRing>,
    /// The directory in force by the log; before the group is founded, the newest that was verified.
    pub in_force: watch::Receiver<Arc<Directory>>,
    /// Group time.
    pub group_time: watch::Receiver<Time>,
    /// Where collecting says how far behind it is.
    pub lag: watch::Sender<Lag>,
    /// Metrics with this node's and destination's labels.
    pub meter: Meter,
    /// The destination's alarms.
    pub alarms: Alarms,
    /// Publishes what this node says.
    pub notices: NoticeSender,
    /// Where collecting hands on senders' queries.
    pub queries: Questions,
    /// Bounds of gathering: this destination's share.
    pub caps: Caps,
    /// Transactions of a sender that are staged while they have no fate, and as many again of parcels in which something can
    /// be decided at once.
    pub undecided_per_sender: usize,
    /// Those that are being staged.
    pub on_the_way: Arc<OnTheWay>,
    /// Lets few parcels at a time be opened, of all destinations of this node.
    pub openings: Arc<Semaphore>,
    /// Where collecting and staging tell of what was sent again though it has its fate: whoever sent it is told.
    pub repeats: mpsc::UnboundedSender<Repeat>,
    /// Cancelled when the node stops taking anything in.
    pub stop: CancellationToken,
}

/// One destination as calls reach it.
pub struct Served {
    /// What its parts share.
    pub context: Arc<GroupContext>,
    /// Consensus.
    pub group: Group,
    /// Connections to the other nodes.
    pub dialer: Dialer,
    /// Where reports come in while this node leads.
    pub desk: Desk,
    /// Whether the log was replayed since the start: only then is *not found* an answer (R23).
    pub replayed: watch::Receiver<bool>,
}

/// All destinations that this node serves.
pub type AllServed = Arc<BTreeMap<DestinationName, Arc<Served>>>;

/// A parcel that is durable on this node and has transactions without a fate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// Its id.
    pub parcel: ParcelId,
    /// D.
    pub digest: Digest,
    /// The digest of its manifest.
    pub manifest_digest: Digest,
    /// The manifest, if it need not be read from the store.
    pub manifest: Option<Arc<Manifest>>,
}

/// What was sent again though it has its fate.
#[derive(Debug)]
pub enum Repeat {
    /// Items that had their fate when their parcel was staged.
    Staged(Vec<Settled>),
    /// A parcel of which nothing is gathered any more.
    Ended(ParcelKey),
}

/// How far collecting is behind its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// Records between the collection offsets and the ends of the partitions.
    pub records: u64,
    /// Age of the oldest record that was not passed; zero when there is none.
    pub age: Duration,
    /// Parcels that are gathered in part.
    pub gathering: u64,
    /// Addresses that were deferred.
    pub deferred: u64,
}

/// Takes notices that are to be published. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NoticeSender(mpsc::Sender<NoticeRecord>);

impl NoticeSender {
    /// A sender and where its notices come out.
    pub fn new() -> (Self, mpsc::Receiver<NoticeRecord>) {
        let (give, take) = mpsc::channel(NOTICES);
        (Self(give), take)
    }

    /// Publishes a notice soon. One that finds no room is dropped, and said so: whoever needs it asks again.
    pub fn publish(&self, notice: NoticeRecord) {
        if self.0.try_send(notice).is_err() {
            tracing::warn!("a notice was dropped: too many wait to be published");
        }
    }
}
