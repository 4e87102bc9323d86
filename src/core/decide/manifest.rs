//! What consensus knows of a parcel without its payloads: ids, sizes, digests, tags and tickets (R11).
//!
//! Owns the manifest, its bytes and its digest. Must not touch payloads or keys.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use super::encode;
use super::entry::EntryError;
use crate::core::id::{
    Digest, Epoch, IdempotencyTag, KeyTag, OnPredecessor, ParcelId, PayloadTag, Position, Release, SenderName, Time,
    TransactionId,
};
use crate::core::limits;
use crate::core::wire::{WireError, in_range, label};

/// The version of manifests that this code writes, and the only one that it reads.
pub const MANIFEST_VERSION: u32 = 1;

/// A staged parcel as consensus sees it, for one destination. Nodes that opened the same parcel make the same manifest:
/// it holds nothing of the node that made it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
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
    /// Its transactions, by ascending index; 1 to [`limits::TRANSACTIONS_PER_PARCEL`].
    pub items: Vec<ManifestItem>,
}

/// One transaction of a manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManifestItem {
    /// Its number in the parcel, from 0.
    pub index: u32,
    /// Its id.
    pub transaction: TransactionId,
    /// Past this group time it expires.
    pub deadline: Time,
    /// Length of its payload in bytes, decompressed and without padding; at most [`limits::PAYLOAD_BYTES`].
    pub payload_bytes: u64,
    /// Length of its ciphertext in bytes, as nodes keep it; at most twice [`limits::PAYLOAD_BYTES`].
    pub ciphertext_bytes: u64,
    /// BLAKE3(L("body"), ciphertext).
    pub ciphertext_digest: Digest,
    /// The commitment to its key K_tx.
    pub tx_commit: [u8; 32],
    /// Equal for equal payloads of one sender (R6).
    pub payload_tag: PayloadTag,
    /// Its ordering key's tag.
    pub key_tag: Option<KeyTag>,
    /// Its idempotency key's tag.
    pub idempotency_tag: Option<IdempotencyTag>,
    /// What must be decided before it.
    pub predecessor: Option<Predecessor>,
    /// The position that its ordering key must have last; 0.0 when the key must be new (R9).
    pub expected_version: Option<Position>,
}

/// The transaction of the same sender and destination that must be decided first (R9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Predecessor {
    /// Which transaction.
    pub transaction: TransactionId,
    /// Its deadline, so that the wait is bounded though it was never seen.
    pub deadline: Time,
    /// What happens when it was rejected or expired.
    pub on_predecessor: OnPredecessor,
    /// Whether being committed suffices, or every voter must hold it.
    pub release: Release,
}

impl ManifestItem {
    /// Whether its deadline is later than a destination with this longest life allows: its id's time plus `max_life`. It is
    /// rejected then, whatever else holds (R7).
    pub fn deadline_too_far(&self, max_life: Duration) -> bool {
        self.deadline > self.transaction.time().after(max_life)
    }
}

impl Manifest {
    /// Its bytes: protocol buffers, fields in ascending order, nothing unknown (docs/wire-format.md).
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Vec::with_capacity(128 + self.items.len() * 256);
        encode::number(1, MANIFEST_VERSION.into(), &mut to);
        encode::bytes(2, &self.parcel.to_bytes(), &mut to);
        encode::bytes(3, &self.digest.0, &mut to);
        encode::bytes(4, self.sender.as_str().as_bytes(), &mut to);
        encode::bytes(5, &self.epoch.0, &mut to);
        encode::number(6, self.expiry.0, &mut to);
        let mut scratch = Vec::with_capacity(256);
        for item in &self.items {
            encode::message(7, &mut scratch, &mut to, |to| encode::item(item, to));
        }
        to
    }

    /// Reads and checks a manifest; at most [`limits::ENTRY_BYTES`]. Errors: [`EntryError`] with the field.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        in_range(bytes.len() as u64, 0, limits::ENTRY_BYTES as u64, "manifest")?;
        let message = ManifestMessage::decode(Bytes::copy_from_slice(bytes))?;
        if message.version != MANIFEST_VERSION {
            return Err(EntryError::UnknownVersion { what: "manifest", version: message.version });
        }
        let manifest = Self {
            parcel: id(ParcelId::from_bytes, &message.parcel, "manifest parcel")?,
            digest: Digest(fixed(&message.digest, "manifest digest")?),
            sender: name(&message.sender, "manifest sender")?,
            epoch: Epoch(fixed(&message.epoch, "manifest epoch")?),
            expiry: Time(message.expiry_ms),
            items: items(message.items)?,
        };
        if !manifest.items.is_sorted_by(|one, next| one.index < next.index) {
            return Err(WireError::Invalid { field: "manifest items", expected: "ascending indexes" }.into());
        }
        if manifest.encode() != bytes {
            return Err(EntryError::NotCanonical { what: "manifest" });
        }
        Ok(manifest)
    }

    /// BLAKE3(L("manifest"), bytes): what reports compare.
    pub fn manifest_digest(&self) -> Digest {
        Self::digest_of(&self.encode())
    }

    /// The same of a manifest's bytes.
    pub fn digest_of(bytes: &[u8]) -> Digest {
        Digest(*blake3::Hasher::new().update(label::MANIFEST).update(bytes).finalize().as_bytes())
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct ManifestMessage {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(bytes = "bytes", tag = "2")]
    parcel: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    digest: Bytes,
    #[prost(string, tag = "4")]
    sender: String,
    #[prost(bytes = "bytes", tag = "5")]
    epoch: Bytes,
    #[prost(uint64, tag = "6")]
    expiry_ms: u64,
    #[prost(message, repeated, tag = "7")]
    items: Vec<ItemMessage>,
}

/// One item as protocol buffers; commits carry it too. Its fields are slices of what was read: nothing is copied to the heap.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ItemMessage {
    #[prost(uint32, tag = "1")]
    index: u32,
    #[prost(bytes = "bytes", tag = "2")]
    transaction: Bytes,
    #[prost(uint64, tag = "3")]
    deadline_ms: u64,
    #[prost(uint64, tag = "4")]
    payload_bytes: u64,
    #[prost(uint64, tag = "5")]
    ciphertext_bytes: u64,
    #[prost(bytes = "bytes", tag = "6")]
    ciphertext_digest: Bytes,
    #[prost(bytes = "bytes", tag = "7")]
    tx_commit: Bytes,
    #[prost(bytes = "bytes", tag = "8")]
    payload_tag: Bytes,
    #[prost(bytes = "bytes", optional, tag = "9")]
    key_tag: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "10")]
    idempotency_tag: Option<Bytes>,
    #[prost(message, optional, tag = "11")]
    predecessor: Option<PredecessorMessage>,
    #[prost(message, optional, tag = "12")]
    expected_version: Option<PositionMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PredecessorMessage {
    #[prost(bytes = "bytes", tag = "1")]
    transaction: Bytes,
    #[prost(uint64, tag = "2")]
    deadline_ms: u64,
    #[prost(uint32, tag = "3")]
    on_predecessor: u32,
    #[prost(uint32, tag = "4")]
    release: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PositionMessage {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint32, tag = "2")]
    number: u32,
}

#[cfg(test)]
impl From<&ManifestItem> for ItemMessage {
    fn from(item: &ManifestItem) -> Self {
        Self {
            index: item.index,
            transaction: Bytes::copy_from_slice(&item.transaction.to_bytes()),
            deadline_ms: item.deadline.0,
            payload_bytes: item.payload_bytes,
            ciphertext_bytes: item.ciphertext_bytes,
            ciphertext_digest: Bytes::copy_from_slice(&item.ciphertext_digest.0),
            tx_commit: Bytes::copy_from_slice(&item.tx_commit),
            payload_tag: Bytes::copy_from_slice(&item.payload_tag.0),
            key_tag: item.key_tag.map(|tag| Bytes::copy_from_slice(&tag.0)),
            idempotency_tag: item.idempotency_tag.map(|tag| Bytes::copy_from_slice(&tag.0)),
            predecessor: item.predecessor.map(|predecessor| PredecessorMessage {
                transaction: Bytes::copy_from_slice(&predecessor.transaction.to_bytes()),
                deadline_ms: predecessor.deadline.0,
                on_predecessor: predecessor.on_predecessor.number().into(),
                release: predecessor.release.number().into(),
            }),
            expected_version: item
                .expected_version
                .map(|position| PositionMessage { index: position.index, number: position.number }),
        }
    }
}

impl TryFrom<ItemMessage> for ManifestItem {
    type Error = EntryError;

    fn try_from(message: ItemMessage) -> Result<Self, EntryError> {
        let most = limits::TRANSACTIONS_PER_PARCEL as u64;
        in_range(message.index.into(), 0, most - 1, "item index")?;
        in_range(message.payload_bytes, 0, limits::PAYLOAD_BYTES, "item payload length")?;
        in_range(message.ciphertext_bytes, 0, 2 * limits::PAYLOAD_BYTES, "item ciphertext length")?;
        Ok(Self {
            index: message.index,
            transaction: id(TransactionId::from_bytes, &message.transaction, "item transaction")?,
            deadline: Time(message.deadline_ms),
            payload_bytes: message.payload_bytes,
            ciphertext_bytes: message.ciphertext_bytes,
            ciphertext_digest: Digest(fixed(&message.ciphertext_digest, "item ciphertext digest")?),
            tx_commit: fixed(&message.tx_commit, "item tx_commit")?,
            payload_tag: PayloadTag(fixed(&message.payload_tag, "item payload tag")?),
            key_tag: message.key_tag.map(|tag| fixed(&tag, "item key tag").map(KeyTag)).transpose()?,
            idempotency_tag: message
                .idempotency_tag
                .map(|tag| fixed(&tag, "item idempotency tag").map(IdempotencyTag))
                .transpose()?,
            predecessor: message.predecessor.map(Predecessor::try_from).transpose()?,
            expected_version: message
                .expected_version
                .map(|position| Position { index: position.index, number: position.number }),
        })
    }
}

impl TryFrom<PredecessorMessage> for Predecessor {
    type Error = EntryError;

    fn try_from(message: PredecessorMessage) -> Result<Self, EntryError> {
        let unknown = |field, value: u32| WireError::Unknown { field, value: value.into() };
        let on_predecessor = u8::try_from(message.on_predecessor).ok().and_then(OnPredecessor::from_number);
        let release = u8::try_from(message.release).ok().and_then(Release::from_number);
        Ok(Self {
            transaction: id(TransactionId::from_bytes, &message.transaction, "predecessor transaction")?,
            deadline: Time(message.deadline_ms),
            on_predecessor: on_predecessor
                .ok_or_else(|| unknown("rule when the predecessor fails", message.on_predecessor))?,
            release: release.ok_or_else(|| unknown("predecessor release", message.release))?,
        })
    }
}

/// 1 to [`limits::TRANSACTIONS_PER_PARCEL`] checked items.
pub(super) fn items(messages: Vec<ItemMessage>) -> Result<Vec<ManifestItem>, EntryError> {
    in_range(messages.len() as u64, 1, limits::TRANSACTIONS_PER_PARCEL as u64, "number of items")?;
    messages.into_iter().map(ManifestItem::try_from).collect()
}

/// Bytes of exactly one length.
pub(super) fn fixed<const N: usize>(bytes: &[u8], field: &'static str) -> Result<[u8; N], WireError> {
    bytes.try_into().map_err(|_| WireError::Range {
        field,
        value: bytes.len() as u64,
        lowest: N as u64,
        highest: N as u64,
    })
}

/// A UUID of the version that it must have.
pub(super) fn id<T, E>(
    check: impl Fn([u8; 16]) -> Result<T, E>,
    bytes: &[u8],
    field: &'static str,
) -> Result<T, WireError> {
    check(fixed(bytes, field)?).map_err(|_| WireError::Invalid { field, expected: "a UUID of version 7" })
}

/// A name.
pub(super) fn name<T: std::str::FromStr>(text: &str, field: &'static str) -> Result<T, WireError> {
    text.parse().map_err(|_| WireError::Invalid { field, expected: "a name" })
}
