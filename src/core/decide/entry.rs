//! The one shape of a log entry: a time and operations (R4).
//!
//! Owns entries, commits and their bytes. Must not know what applying them does.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use super::encode;
use super::manifest::{ItemMessage, ManifestItem, fixed, id, items, name};
use crate::core::id::{Digest, Epoch, Incarnation, NodeName, ParcelId, SenderName, Time, VerifyingKeyBytes};
use crate::core::limits;
use crate::core::wire::{WireError, in_range};

/// The version of entries that this code writes, and the highest that it can apply.
pub const ENTRY_VERSION: u32 = 1;

/// Numbers of the operations in the log. A number is never used for something else.
pub mod op_number {
    /// A [`super::Commit`].
    pub const COMMIT: u32 = 1;
    /// A [`super::DirectoryOp`].
    pub const DIRECTORY: u32 = 2;
    /// Kept for marking committed transactions as purged (R24); unknown to this version.
    pub const PURGE: u32 = 3;
    /// Kept for forgetting rows before the retention horizon (R26); unknown to this version.
    pub const RETENTION: u32 = 4;
    /// Kept for allocating Raft ids to (node, incarnation) (R12); unknown to this version.
    pub const NODE_ID: u32 = 5;
}

/// Why bytes are no entry or manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A version that this code does not know. The node must stop: applying something else would split the group.
    #[error(
        "{what} has version {version}, this program knows {ENTRY_VERSION}: stop this node and install the version that wrote it"
    )]
    UnknownVersion {
        /// What was read.
        what: &'static str,
        /// Its version.
        version: u32,
    },
    /// An operation that this code does not know. The node must stop.
    #[error(
        "the log entry has an operation with number {number}, which this program does not know: stop this node and install the version that wrote it"
    )]
    UnknownOp {
        /// Its number.
        number: u32,
    },
    /// The bytes are no message of protocol buffers.
    #[error("the bytes are no protocol buffers message: {text}")]
    Message {
        /// What the decoder says.
        text: String,
    },
    /// A field has a wrong length, range or value.
    #[error(transparent)]
    Field(#[from] WireError),
    /// The bytes are not what writing the same entry gives: fields unknown to this version, repeated or out of order.
    #[error("{what}: the bytes are not in the one form that version {ENTRY_VERSION} writes")]
    NotCanonical {
        /// What was read.
        what: &'static str,
    },
}

impl From<prost::DecodeError> for EntryError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Message { text: error.to_string() }
    }
}

impl EntryError {
    /// Whether reading the same bytes can succeed under a later version of the program.
    pub fn retryable(&self) -> bool {
        match self {
            Self::UnknownVersion { .. } | Self::UnknownOp { .. } => true,
            Self::Field(error) => error.retryable(),
            Self::Message { .. } | Self::NotCanonical { .. } => false,
        }
    }
}

/// One entry of a group's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Group time moves here, unless it is there or further already (R7).
    pub time: Time,
    /// What happens, in this order; empty when only time passes.
    pub ops: Vec<Op>,
}

/// One operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Transactions of a staged parcel get their fates.
    Commit(Commit),
    /// A directory takes effect (R8).
    Directory(DirectoryOp),
}

/// Transactions of a parcel that a quorum staged (R5, R10, R11).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    /// The parcel's id.
    pub parcel: ParcelId,
    /// D: what the parcel *is*.
    pub digest: Digest,
    /// Who sent it, by directory name.
    pub sender: SenderName,
    /// The start of the sender's client that sealed it.
    pub epoch: Epoch,
    /// The latest deadline that the parcel's header allows its transactions.
    pub expiry: Time,
    /// The digest of the whole manifest, which all reporters reported.
    pub manifest_digest: Digest,
    /// Who reported (parcel, D, manifest digest), and the life of their stores.
    pub reporters: BTreeMap<NodeName, Incarnation>,
    /// Those items of the manifest that are to be decided here, in this order.
    pub items: Vec<ManifestItem>,
}

/// A signed directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectoryOp {
    /// The operator's public key. The first directory of a log pins it; later ones must name the same.
    pub operator: VerifyingKeyBytes,
    /// The directory file's bytes, signature included; at most [`limits::DIRECTORY_BYTES`].
    pub bytes: Bytes,
}

impl Entry {
    /// The first entry of a group's log: its directory, and no time yet (R7: the next entry starts group time).
    pub fn founding(directory: DirectoryOp) -> Self {
        Self { time: Time(0), ops: vec![Op::Directory(directory)] }
    }

    /// Its bytes: protocol buffers, fields in ascending order (docs/wire-format.md).
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Vec::new();
        encode::number(1, ENTRY_VERSION.into(), &mut to);
        encode::number(2, self.time.0, &mut to);
        let (mut scratch, mut body) = (Vec::new(), Vec::new());
        for op in &self.ops {
            body.clear();
            let number = match op {
                Op::Commit(commit) => {
                    commit.encode_into(&mut body);
                    op_number::COMMIT
                }
                Op::Directory(directory) => {
                    encode::bytes(1, &directory.operator.0, &mut body);
                    encode::bytes(2, &directory.bytes, &mut body);
                    op_number::DIRECTORY
                }
            };
            encode::message(3, &mut scratch, &mut to, |to| {
                encode::number(1, number.into(), to);
                encode::bytes(2, &body, to);
            });
        }
        to
    }

    /// Reads and checks an entry; at most [`limits::ENTRY_BYTES`]. Errors: [`EntryError`]; whatever it is, the node
    /// must stop, because it cannot apply what the group committed.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        in_range(bytes.len() as u64, 0, limits::ENTRY_BYTES as u64, "entry")?;
        let message = EntryMessage::decode(Bytes::copy_from_slice(bytes))?;
        if message.version != ENTRY_VERSION {
            return Err(EntryError::UnknownVersion { what: "log entry", version: message.version });
        }
        let ops = message.ops.into_iter().map(Op::try_from).collect::<Result<_, _>>()?;
        let entry = Self { time: Time(message.time_ms), ops };
        if entry.encode() != bytes {
            return Err(EntryError::NotCanonical { what: "log entry" });
        }
        Ok(entry)
    }
}

impl Commit {
    /// How many bytes this commit takes in an entry, at most.
    pub(super) fn encoded_bytes(&self) -> usize {
        let mut bytes = Vec::new();
        self.encode_into(&mut bytes);
        // Around it: three tags and lengths, and the operation's number.
        bytes.len() + 20
    }

    fn encode_into(&self, to: &mut Vec<u8>) {
        encode::bytes(1, &self.parcel.to_bytes(), to);
        encode::bytes(2, &self.digest.0, to);
        encode::bytes(3, self.sender.as_str().as_bytes(), to);
        encode::bytes(4, &self.epoch.0, to);
        encode::number(5, self.expiry.0, to);
        encode::bytes(6, &self.manifest_digest.0, to);
        let mut scratch = Vec::with_capacity(256);
        for (node, incarnation) in &self.reporters {
            encode::message(7, &mut scratch, to, |to| {
                encode::bytes(1, node.as_str().as_bytes(), to);
                encode::bytes(2, &incarnation.0, to);
            });
        }
        to.reserve(self.items.len() * 256);
        for item in &self.items {
            encode::message(8, &mut scratch, to, |to| encode::item(item, to));
        }
    }
}

/// How many bytes one more item takes in a commit, at most.
pub(super) fn item_bytes(item: &ManifestItem) -> usize {
    let mut bytes = Vec::with_capacity(256);
    encode::item(item, &mut bytes);
    bytes.len() + 6
}

#[derive(Clone, PartialEq, prost::Message)]
struct EntryMessage {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    time_ms: u64,
    #[prost(message, repeated, tag = "3")]
    ops: Vec<OpMessage>,
}

/// An operation is a number and bytes rather than a `oneof`, so that an unknown one is seen and never skipped.
#[derive(Clone, PartialEq, prost::Message)]
struct OpMessage {
    #[prost(uint32, tag = "1")]
    number: u32,
    #[prost(bytes = "bytes", tag = "2")]
    body: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CommitMessage {
    #[prost(bytes = "bytes", tag = "1")]
    parcel: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    digest: Bytes,
    #[prost(string, tag = "3")]
    sender: String,
    #[prost(bytes = "bytes", tag = "4")]
    epoch: Bytes,
    #[prost(uint64, tag = "5")]
    expiry_ms: u64,
    #[prost(bytes = "bytes", tag = "6")]
    manifest_digest: Bytes,
    #[prost(message, repeated, tag = "7")]
    reporters: Vec<ReporterMessage>,
    #[prost(message, repeated, tag = "8")]
    items: Vec<ItemMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ReporterMessage {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(bytes = "bytes", tag = "2")]
    incarnation: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DirectoryMessage {
    #[prost(bytes = "bytes", tag = "1")]
    operator: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    bytes: Bytes,
}

impl TryFrom<OpMessage> for Op {
    type Error = EntryError;

    fn try_from(message: OpMessage) -> Result<Self, EntryError> {
        match message.number {
            op_number::COMMIT => CommitMessage::decode(message.body)?.try_into().map(Self::Commit),
            op_number::DIRECTORY => {
                let body = DirectoryMessage::decode(message.body)?;
                in_range(body.bytes.len() as u64, 1, limits::DIRECTORY_BYTES as u64, "directory")?;
                let operator = VerifyingKeyBytes(fixed(&body.operator, "operator key")?);
                // A copy: it is kept for long, and must not keep the whole entry.
                Ok(Self::Directory(DirectoryOp { operator, bytes: Bytes::copy_from_slice(&body.bytes) }))
            }
            number => Err(EntryError::UnknownOp { number }),
        }
    }
}

impl TryFrom<CommitMessage> for Commit {
    type Error = EntryError;

    fn try_from(message: CommitMessage) -> Result<Self, EntryError> {
        let mut reporters = BTreeMap::new();
        for reporter in message.reporters {
            let node = name(&reporter.node, "reporter")?;
            reporters.insert(node, Incarnation(fixed(&reporter.incarnation, "reporter incarnation")?));
        }
        Ok(Self {
            parcel: id(ParcelId::from_bytes, &message.parcel, "commit parcel")?,
            digest: Digest(fixed(&message.digest, "commit digest")?),
            sender: name(&message.sender, "commit sender")?,
            epoch: Epoch(fixed(&message.epoch, "commit epoch")?),
            expiry: Time(message.expiry_ms),
            manifest_digest: Digest(fixed(&message.manifest_digest, "commit manifest digest")?),
            reporters,
            items: items(message.items)?,
        })
    }
}
