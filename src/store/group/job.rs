//! What is asked of a group's writer: changes, parcels to stage, entries to apply; and what of it must be durable, can wait, or
//! needs room on the disk.
//!
//! Owns these kinds and their properties. Must not write.

use std::ops::RangeInclusive;

use bytes::Bytes;

use super::Applied;
use super::rows::{AlarmRow, DeferredRow, SeenRow};
use super::staging::{ItemStanding, NewBody, NewParcel};
use crate::core::decide::Entry;
use crate::core::gather::{Address, Mark};
use crate::core::id::{Digest, NodeName, SenderName, TransactionId};
use crate::store::StoreError;

/// One change of the store.
#[derive(Debug)]
pub enum Mutation {
    /// Appends log entries at their indexes. Durable.
    AppendLog(Vec<(u64, Bytes)>),
    /// Removes log entries from this index on. Durable.
    TruncateLog {
        /// First index that goes.
        from: u64,
    },
    /// Removes log entries up to this index. Durable.
    PurgeLog {
        /// Last index that goes.
        through: u64,
        /// What consensus remembers of it.
        id: Bytes,
    },
    /// Keeps consensus's vote. Durable.
    SaveVote(Bytes),
    /// Keeps what consensus knows to be committed. Not durable by itself, and alone no reason for a commit: it waits for the
    /// next one, or for the store's end.
    SaveCommitted(Bytes),
    /// Keeps a fetched body, if a committed row wants it. Durable.
    KeepBody {
        /// Its sender.
        sender: SenderName,
        /// Its transaction.
        transaction: TransactionId,
        /// D of the parcel that was committed.
        digest: Digest,
        /// The body.
        body: NewBody,
    },
    /// Advances a collection offset. Not durable by itself: behind is safe, and it never becomes durable before what was
    /// staged ahead of it. Refused while something that a full disk refused to note is owed: it would pass that (R16).
    SetOffset {
        /// Which partition.
        partition: i32,
        /// How far it is.
        mark: Mark,
    },
    /// Notes a record that is to be read again. Durable. How many there may be of a sender, gathering decides (R16).
    Defer {
        /// Where it lies.
        at: Address,
        /// Why.
        row: DeferredRow,
    },
    /// Forgets the deferred records of a partition between these offsets. Not durable by itself: reading once more is safe.
    Undefer {
        /// Which partition.
        partition: i32,
        /// The first and the last offset.
        offsets: RangeInclusive<i64>,
    },
    /// Keeps this node's signed refusal of a parcel (R22). Durable.
    Refuse {
        /// D.
        digest: Digest,
        /// The signed refusal.
        notice: Bytes,
    },
    /// Raises or changes an alarm. Durable.
    Raise {
        /// Its name.
        name: String,
        /// Since when, and what to do.
        row: AlarmRow,
    },
    /// Clears an alarm. Durable.
    Clear {
        /// Its name.
        name: String,
    },
    /// Keeps what was seen of another node (R12). Not durable by itself.
    Seen {
        /// The other node.
        node: NodeName,
        /// What was seen.
        row: SeenRow,
    },
    /// Keeps a small fact of the node under a name; empty bytes remove it. Durable.
    Note {
        /// Its name.
        name: String,
        /// The fact.
        value: Bytes,
    },
}

impl Mutation {
    fn durable(&self) -> bool {
        !matches!(self, Self::SaveCommitted(_) | Self::SetOffset { .. } | Self::Undefer { .. } | Self::Seen { .. })
    }

    /// Whether it takes in something new, which a disk that is nearly full refuses.
    pub(super) fn admits(&self) -> bool {
        matches!(self, Self::KeepBody { .. } | Self::Defer { .. } | Self::Refuse { .. })
    }
}

/// A log entry for the state: what consensus committed.
#[derive(Debug, Clone)]
pub struct ApplyEntry {
    /// Its index.
    pub index: u64,
    /// Its log id as consensus writes it.
    pub id: Bytes,
    /// The membership that it brings, as consensus writes it.
    pub membership: Option<Bytes>,
    /// The entry itself; none for those that only consensus needs.
    pub entry: Option<Entry>,
}

/// How a job's end is told. Called on the writer's thread: it must not block.
pub type Done<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

/// What waits for the writer.
pub(super) enum Job {
    Write(Vec<Mutation>, Done<()>),
    Stage(Box<NewParcel>, Done<Vec<(u32, ItemStanding)>>),
    Apply(Vec<ApplyEntry>, Done<Vec<Applied>>),
}

impl Job {
    /// Whether its commit must be on the disk before anybody hears of it.
    pub(super) fn durable(&self) -> bool {
        match self {
            Self::Write(mutations, _) => mutations.iter().any(Mutation::durable),
            Self::Stage(..) => true,
            Self::Apply(..) => false,
        }
    }

    /// Whether the held prefix can be another afterwards.
    pub(super) fn moves_held(&self) -> bool {
        match self {
            Self::Write(mutations, _) => mutations.iter().any(|mutation| matches!(mutation, Mutation::KeepBody { .. })),
            Self::Stage(..) | Self::Apply(..) => true,
        }
    }

    /// Whether nobody needs it soon.
    pub(super) fn idle(&self) -> bool {
        match self {
            Self::Write(mutations, _) => matches!(mutations.as_slice(), [Mutation::SaveCommitted(_)]),
            Self::Stage(..) | Self::Apply(..) => false,
        }
    }

    /// Whether any of it takes in something new.
    pub(super) fn admits(&self) -> bool {
        match self {
            Self::Write(mutations, _) => mutations.iter().any(Mutation::admits),
            Self::Stage(..) => true,
            Self::Apply(..) => false,
        }
    }

    /// Answers it with an error.
    pub(super) fn fail(self, error: StoreError) {
        match self {
            // What is refused lets go of its files before anybody hears of it.
            Self::Write(mutations, done) => {
                drop(mutations);
                done(Err(error));
            }
            Self::Stage(parcel, done) => {
                drop(parcel);
                done(Err(error));
            }
            Self::Apply(_, done) => done(Err(error)),
        }
    }
}
