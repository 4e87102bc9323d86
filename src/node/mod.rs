//! The receiving node: collect, verify, gather, open, stage, report, commit, hold, acknowledge, serve.
//!
//! - [`collect`] and `stage` bring parcels from the transport to the store; [`report`] tells the leader of them.
//! - [`propose`] is the leader's side: reports in, log entries out.
//! - [`hold`] follows what the log decides: fates become receipts ([`receipts`]), bodies that are missing here are
//!   fetched ([`fetch`]).
//! - `answer` tells senders that ask what became of their transactions.
//! - [`peer`] answers other nodes, [`serve`] answers readers; [`status`] and [`alarms`] say how the node does,
//!   and `acknowledge` tells it that a person looked.
//! - [`group`] is what all of these share for one destination; [`run`] starts and ends a node.
//!
//! Who tells whom, for one destination (`run` makes these channels and tasks):
//!
//! ```text
//! segments topic -> readers -> collect <-> stage     what arrives
//!                     |          |  ^        |
//!                  answer     report |     store     what is here
//!                     |          |   |
//!                     |        desk -+-> raft        what is decided
//!                     |              |     |
//!                     |              '-- hold <-> fetch
//!                     '-> receipts <-------'
//!                            '-> notices topic
//! ```
//!
//! | from | to | what | when it finds no room |
//! |---|---|---|---|
//! | readers | collect | records as the gate saw them | they wait, and so does the partition |
//! | readers | answer | queries of senders | dropped: they ask again |
//! | collect | stage | stripes in order; stage answers with what came of the parcel | collect takes nothing more in |
//! | collect | report | parcels that are durable here | collect waits; every second all of them are read from the store |
//! | report | desk | what is staged, clock, held prefix; over gRPC when another node leads | said again within a second |
//! | desk | raft | entries, while this node leads | proposed again |
//! | raft | hold | what applying an entry did | nothing more is applied until there is |
//! | hold | collect | parcels that need no gathering any more | dropped: gathered once more, staging says that it is decided |
//! | hold | desk | what was decided | |
//! | collect, stage | hold | what was sent again though it has its fate | |
//! | hold, answer | receipts | statements to sign and publish | |
//! | collect | receipts | refusals and *missing* notices | dropped: said again when asked |
//! | hold | all | the directory in force, group time (watched) | |
//! | store | all | progress: applied, held prefix (watched) | |
//!
//! The store's rows are what all agree on: a part that is behind, or was told nothing, finds it there.
//!
//! Must not make a fate (that is `core::decide`), nor know redb, openraft or Kafka.

mod acknowledge;
pub mod alarms;
mod answer;
pub mod collect;
mod feed;
pub mod fetch;
pub mod group;
pub mod hold;
mod lookup;
mod newest;
pub mod peer;
pub mod propose;
mod pulse;
mod read;
pub mod receipts;
mod recent;
pub mod report;
pub mod run;
pub mod serve;
mod stage;
pub mod status;

pub use acknowledge::acknowledge;
pub use run::{Node, NodeOptions};

use crate::core::id::DestinationName;
use crate::raft::GroupError;
use crate::rpc::server::ServeError;
use crate::rpc::tls::TlsError;
use crate::seams::WorkLost;
use crate::store::StoreError;

/// Why a node cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A store failed. What the disk holds is then unknown: the process must end and start again (R19).
    #[error("destination {destination}: {cause}")]
    Store {
        /// Whose store.
        destination: DestinationName,
        /// What it said.
        cause: StoreError,
    },
    /// A store, where the destination is clear from the call.
    #[error(transparent)]
    OwnStore(#[from] StoreError),
    /// Consensus failed or cannot start.
    #[error("destination {destination}: {cause}")]
    Consensus {
        /// Of which destination.
        destination: DestinationName,
        /// What it said.
        cause: GroupError,
    },
    /// The address cannot be listened on.
    #[error("{setting} {address}: {cause}: is another process there? choose another address")]
    Listen {
        /// `listen` or `http`.
        setting: &'static str,
        /// The address.
        address: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The gRPC server failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The health pages cannot be served.
    #[error("the health pages: {cause}")]
    Pages {
        /// What went wrong.
        cause: String,
    },
    /// A destination to be served is not in the directory, does not list this node, or has no key ring.
    #[error("destination {destination}: {problem}")]
    Destination {
        /// Which one.
        destination: DestinationName,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A directory that is not taken.
    #[error("{}: {problem}", path.display())]
    Directory {
        /// Its file.
        path: std::path::PathBuf,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// A directory that is not taken, because a newer one is in force.
    #[error("{}: {problem}", path.display())]
    OldDirectory {
        /// Its file.
        path: std::path::PathBuf,
        /// Which version it has, and which is needed.
        problem: String,
    },
    /// A part of the node ended though it should not have: a defect.
    #[error("destination {destination}: {part} ended unexpectedly: restart the node and report this")]
    Ended {
        /// Of which destination.
        destination: DestinationName,
        /// Which part.
        part: &'static str,
    },
    /// An alarm was not acknowledged in every destination.
    #[error("node {node}{}", not_everywhere(failures, stood))]
    Acknowledge {
        /// Whose alarm.
        node: crate::core::id::NodeName,
        /// Where it stood and is acknowledged.
        stood: Vec<DestinationName>,
        /// Where it is not, and what the node said, or why it cannot be reached.
        failures: Vec<(DestinationName, String)>,
        /// Whether it may be taken later, in one of them at least.
        retryable: bool,
    },
    /// The process is shutting down.
    #[error("the node is stopping")]
    Stopping,
}

fn not_everywhere(failures: &[(DestinationName, String)], stood: &[DestinationName]) -> String {
    let mut text: String = failures.iter().map(|(name, said)| format!(", destination {name}: {said}")).collect();
    if !stood.is_empty() {
        let names: Vec<_> = stood.iter().map(ToString::to_string).collect();
        text.push_str(&format!("; acknowledged in {}", names.join(", ")));
    }
    text
}

impl From<WorkLost> for NodeError {
    fn from(_: WorkLost) -> Self {
        Self::Stopping
    }
}

impl NodeError {
    /// Whether starting again can help without a change.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Store { cause, .. } | Self::OwnStore(cause) => cause.retryable(),
            Self::Consensus { cause, .. } => cause.retryable(),
            Self::Serve(error) => error.retryable(),
            Self::Acknowledge { retryable, .. } => *retryable,
            Self::Ended { .. } | Self::Stopping => true,
            Self::Listen { .. }
            | Self::Tls(_)
            | Self::Pages { .. }
            | Self::Destination { .. }
            | Self::Directory { .. }
            | Self::OldDirectory { .. } => false,
        }
    }
}
