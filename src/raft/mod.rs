//! Consensus: the only place that knows openraft. Must not make a fate (that is `core::decide`).
//!
//! `types` says what is replicated, `codec` writes it, `storage` keeps it in the group's store, `network` carries it over
//! whatever fulfils [`PeerCaller`] (`peers` is gRPC), `founding` decides whether this node may take part, `start` acts on it, `group` is
//! what the node sees of all that, and `standing` the shapes of what it sees.

mod codec;
mod founding;
mod group;
mod network;
mod peers;
mod standing;
mod start;
pub mod storage;
mod types;

pub use founding::{ProbeAnswer, SeenOfAsker};
pub use group::Group;
pub use network::{CallError, HandleError, MessageKind, PeerCaller};
pub use peers::RpcPeers;
pub use standing::{
    GroupError, GroupOptions, Leadership, MemberStatus, ProposeError, ReadIndexError, Role, Stage, Status,
};
pub use types::{AppliedIndex, EntryBytes, LogEntry, Member, TypeConfig};
