//! Rows of a group's store that are this node's own, not consensus's (those are `core::decide::Row` and `Claim`).
//!
//! Owns their bytes; must not know which table they lie in.

use bytes::Bytes;

use crate::core::decide::Manifest;
use crate::core::gather::{DeferReason, Identity, Mark};
use crate::core::id::{Digest, Time};
use crate::core::limits;
use crate::core::wire::{Reader, WireError, Writer};

const ROW_VERSION: u8 = 1;

fn version(from: &mut Reader<'_>) -> Result<(), WireError> {
    match from.u8("row version")? {
        ROW_VERSION => Ok(()),
        value => Err(WireError::Unknown { field: "row version", value: value.into() }),
    }
}

/// Puts a checksum before a row whose damage must never go unnoticed: the log and what consensus keeps beside it.
pub fn guard(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(value.len() + 16);
    row.extend_from_slice(&checksum(key, value));
    row.extend_from_slice(value);
    row
}

/// Takes the checksum off again; `None` when the row is not what was written.
pub fn unguard<'a>(key: &[u8], row: &'a [u8]) -> Option<&'a [u8]> {
    let (sum, value) = row.split_first_chunk::<16>()?;
    (*sum == checksum(key, value)).then_some(value)
}

fn checksum(key: &[u8], value: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_be_bytes()).update(key).update(value);
    let mut sum = [0; 16];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

/// A staged parcel: durable on this node, with transactions that have no fate yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedRow {
    /// What consensus may know of it.
    pub manifest: Manifest,
    /// The manifest's digest.
    pub manifest_digest: Digest,
    /// When its first segment came to this node (its wall clock); `None` when that is not known.
    pub first: Option<Time>,
    /// When this node staged it (its wall clock).
    pub staged: Time,
    /// How many of its transactions have no fate.
    pub left: u32,
    /// The envelope, dropped with this row (R24).
    pub envelope: Bytes,
}

impl StagedRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        self.encode_with(&self.manifest.encode())
    }

    /// The same with the manifest's bytes at hand.
    pub(crate) fn encode_with(&self, manifest: &[u8]) -> Vec<u8> {
        let mut to = Writer::with_capacity(manifest.len() + self.envelope.len() + 64);
        to.u8(ROW_VERSION).put(&self.manifest_digest.0).flag(self.first.is_some());
        if let Some(first) = self.first {
            to.u64(first.0);
        }
        to.u64(self.staged.0).u32(self.left);
        to.long_bytes(manifest).long_bytes(&self.envelope);
        to.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let text = |error: WireError| error.to_string();
        let mut from = Reader::new(bytes);
        version(&mut from).map_err(text)?;
        let manifest_digest = Digest(from.array("manifest digest").map_err(text)?);
        let first = match from.flag("first segment").map_err(text)? {
            true => Some(Time(from.u64("first segment").map_err(text)?)),
            false => None,
        };
        let staged = Time(from.u64("staged").map_err(text)?);
        let left = from.u32("left").map_err(text)?;
        let manifest = from.long_bytes(limits::ENTRY_BYTES, "manifest").map_err(text)?;
        let manifest = Manifest::decode(manifest).map_err(|error| error.to_string())?;
        let envelope = Bytes::copy_from_slice(from.long_bytes(limits::ENVELOPE_BYTES, "envelope").map_err(text)?);
        from.finish("staged parcel").map_err(text)?;
        Ok(Self { manifest, manifest_digest, first, staged, left, envelope })
    }
}

/// One transaction's ciphertext on this node, and its key wrapped under the node's storage key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BodyRow {
    pub length: u64,
    pub digest: Digest,
    pub wrapped_key: Vec<u8>,
    pub place: Place,
}

/// Where the ciphertext lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Inline(Bytes),
    File(u64),
}

impl BodyRow {
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::with_capacity(256);
        to.u8(ROW_VERSION).u64(self.length).put(&self.digest.0).short_bytes(&self.wrapped_key);
        match &self.place {
            Place::Inline(bytes) => to.u8(0).long_bytes(bytes),
            Place::File(number) => to.u8(1).u64(*number),
        };
        to.finish()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes);
        version(&mut from)?;
        let row = Self {
            length: from.u64("body length")?,
            digest: Digest(from.array("body digest")?),
            wrapped_key: from.short_bytes(usize::from(u16::MAX), "wrapped key")?.to_vec(),
            place: match from.u8("body place")? {
                0 => Place::Inline(Bytes::copy_from_slice(from.long_bytes(limits::SMALL_BODY_BYTES, "body")?)),
                1 => Place::File(from.u64("body file")?),
                value => return Err(WireError::Unknown { field: "body place", value: value.into() }),
            },
        };
        from.finish("body")?;
        Ok(row)
    }
}

/// The row of a collection offset (R17).
pub(super) fn encode_mark(mark: &Mark) -> Vec<u8> {
    let mut to = Writer::with_capacity(64);
    to.u8(ROW_VERSION).u64(mark.offset as u64).flag(mark.previous.is_some());
    if let Some((offset, identity)) = &mark.previous {
        to.u64(*offset as u64).put(&identity.0.0);
    }
    to.finish()
}

/// Back from [`encode_mark`].
pub(super) fn decode_mark(bytes: &[u8]) -> Result<Mark, WireError> {
    let mut from = Reader::new(bytes);
    version(&mut from)?;
    let offset = from.u64("offset")? as i64;
    let previous = match from.flag("previous record")? {
        false => None,
        true => Some((from.u64("previous offset")? as i64, Identity(Digest(from.array("previous identity")?)))),
    };
    from.finish("offset")?;
    Ok(Mark { offset, previous })
}

/// Why a record is read again later (R16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeferredRow {
    /// Since when.
    pub since: Time,
    /// Why.
    pub reason: DeferReason,
}

impl DeferredRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Writer::with_capacity(16);
        to.u8(ROW_VERSION).u64(self.since.0).u8(self.reason.number());
        to.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes);
        version(&mut from)?;
        let since = Time(from.u64("since")?);
        let row = Self { since, reason: from.listed(DeferReason::from_number, "reason")? };
        from.finish("deferred record")?;
        Ok(row)
    }
}

/// Something that a person should look at; it stays until it is cleared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlarmRow {
    /// Since when.
    pub since: Time,
    /// What is wrong and what to do.
    pub text: String,
}

impl AlarmRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        to.u8(ROW_VERSION).u64(self.since.0).long_bytes(self.text.as_bytes());
        to.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes);
        version(&mut from)?;
        let since = Time(from.u64("since")?);
        let text = String::from_utf8_lossy(from.long_bytes(1 << 20, "text")?).into_owned();
        from.finish("alarm")?;
        Ok(Self { since, text })
    }
}

/// The highest vote and index that this node saw from another one (R12).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SeenRow {
    /// The other node's store incarnation, when it was told.
    pub incarnation: Option<[u8; 16]>,
    /// Its highest term.
    pub term: u64,
    /// Whether it granted its vote in that term, as far as this node saw.
    pub voted: bool,
    /// The highest log entry that it acknowledged: its term, then its index.
    pub log: Option<(u64, u64)>,
}

impl SeenRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Writer::with_capacity(40);
        to.u8(ROW_VERSION).flag(self.incarnation.is_some());
        if let Some(incarnation) = &self.incarnation {
            to.put(incarnation);
        }
        to.u64(self.term).flag(self.voted).flag(self.log.is_some());
        if let Some((term, index)) = self.log {
            to.u64(term).u64(index);
        }
        to.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes);
        version(&mut from)?;
        let incarnation = match from.flag("incarnation")? {
            true => Some(from.array("incarnation")?),
            false => None,
        };
        let (term, voted) = (from.u64("term")?, from.flag("voted")?);
        let log = match from.flag("log")? {
            true => Some((from.u64("log term")?, from.u64("log index")?)),
            false => None,
        };
        let row = Self { incarnation, term, voted, log };
        from.finish("seen")?;
        Ok(row)
    }
}

/// How many transactions are where, kept up to date by the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Fate: committed.
    pub committed: u64,
    /// Fate: rejected.
    pub rejected: u64,
    /// Staged here and without a fate.
    pub undecided: u64,
    /// Committed, and their bodies are not here.
    pub missing: u64,
    /// Bytes of the ciphertexts that are here.
    pub bytes: u64,
}

impl Counts {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Writer::with_capacity(48);
        to.u8(ROW_VERSION).u64(self.committed).u64(self.rejected).u64(self.undecided).u64(self.missing).u64(self.bytes);
        to.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes);
        version(&mut from)?;
        let counts = Self {
            committed: from.u64("committed")?,
            rejected: from.u64("rejected")?,
            undecided: from.u64("undecided")?,
            missing: from.u64("missing")?,
            bytes: from.u64("bytes")?,
        };
        from.finish("counts")?;
        Ok(counts)
    }
}
