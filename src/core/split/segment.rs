//! A segment: one record of a segments topic, and the only way from its bytes to a [`VerifiedSegment`]
//! (docs/wire-format.md, "Segments").
//!
//! Owns the record's layout, the UUID and the verification of one segment alone. Must not gather.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::header::{self, StripeHeader, VERSION};
use super::merkle;
use crate::core::id::{Digest, SegmentId, VerifyingKeyBytes};
use crate::core::limits;
use crate::core::sign::{PublicKey, SIGNATURE_BYTES};
use crate::core::wire::{Reader, WireError, Writer, label};

/// The first four bytes of a segment.
pub const SEGMENT_MAGIC: [u8; 4] = *b"SCSG";

/// Length of magic and version, in bytes.
const FRAME_BYTES: usize = 5;

/// Length of what stands between the header and the proof, in bytes: signature, shard index, number of hashes.
const BEFORE_PROOF_BYTES: usize = SIGNATURE_BYTES + 3;

/// Why a record is no segment of its sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Longer than a segment can be.
    #[error("segment: {bytes} bytes are above the limit of {most}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// It does not start with the segment's magic: a record of another kind.
    #[error("segment: another magic")]
    Magic,
    /// A field is malformed or of an unknown version.
    #[error("segment: {0}")]
    Wire(#[from] WireError),
    /// The header is not signed by the sender that it names.
    #[error("segment: the header's signature does not verify")]
    Signature,
    /// The shard is not the one that the header's root covers at this index.
    #[error("segment: shard and proof do not lead to the header's root")]
    Proof,
}

impl SegmentError {
    /// Whether a later version may read the same bytes: then the record is deferred, never refused (R21).
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Wire(error) if error.retryable())
    }
}

/// The UUID of a segment, which is its record's key: version 8, from BLAKE3(L("segment"), header digest, u16 index) (R1).
pub fn segment_id(header: &Digest, index: u16) -> SegmentId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(label::SEGMENT).update(&header.0).update(&index.to_be_bytes());
    let mut hash = [0; 16];
    hasher.finalize_xof().fill(&mut hash);
    SegmentId::from_hash(hash)
}

/// Length of a segment before its shard, in bytes.
pub(super) fn prefix_bytes(header_bytes: usize, proof_hashes: usize) -> usize {
    FRAME_BYTES + header_bytes + BEFORE_PROOF_BYTES + 32 * proof_hashes
}

/// What stands in a segment before its shard.
pub(super) fn prefix(header: &[u8], signature: &[u8; SIGNATURE_BYTES], index: u16, proof: &[Digest]) -> Vec<u8> {
    let mut writer = Writer::with_capacity(prefix_bytes(header.len(), proof.len()));
    writer.put(&SEGMENT_MAGIC).u8(VERSION).put(header).put(signature).u16(index).u8(proof.len() as u8);
    for hash in proof {
        writer.put(&hash.0);
    }
    writer.finish()
}

/// Whether a record is a segment by its first bytes: other kinds of records share the topic.
pub fn is_segment(record: &[u8]) -> bool {
    record.starts_with(&SEGMENT_MAGIC)
}

/// The bytes of a segment. The splitter makes the same without copying; this one serves tests and tools.
pub fn encode(header: &[u8], signature: &[u8; SIGNATURE_BYTES], index: u16, proof: &[Digest], shard: &[u8]) -> Vec<u8> {
    let mut bytes = prefix(header, signature, index, proof);
    bytes.extend_from_slice(shard);
    bytes
}

/// A segment that has the right shape; nothing about it is trusted yet. The shard shares the record's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    header: StripeHeader,
    header_bytes: Bytes,
    signature: [u8; SIGNATURE_BYTES],
    index: u16,
    proof: Vec<Digest>,
    shard: Bytes,
}

impl Segment {
    /// Takes a record apart; every length is checked against the header before it is used, and the record must end with
    /// the shard. Errors: [`SegmentError::TooLarge`], [`SegmentError::Magic`], [`SegmentError::Wire`].
    pub fn parse(record: &Bytes) -> Result<Self, SegmentError> {
        if record.len() > limits::SEGMENT_BYTES {
            return Err(SegmentError::TooLarge { bytes: record.len(), most: limits::SEGMENT_BYTES });
        }
        if !is_segment(record) {
            return Err(SegmentError::Magic);
        }
        let mut reader = Reader::new(record);
        reader.take(SEGMENT_MAGIC.len(), "segment: magic")?;
        let version = reader.u8("segment: version")?;
        if version != VERSION {
            return Err(WireError::Unknown { field: "segment: version", value: version.into() }.into());
        }
        let before_header = reader.rest();
        let header = StripeHeader::read(&mut reader)?;
        let header_bytes = before_header.get(..before_header.len() - reader.left()).unwrap_or_default();
        let signature = reader.array("segment: signature")?;
        let index = reader.u16("segment: shard index")?;
        let n = header.core.profile.n();
        crate::core::wire::in_range(index.into(), 0, n as u64 - 1, "segment: shard index")?;
        let hashes = merkle::proof_length(index.into(), n);
        let told = reader.u8("segment: proof length")?;
        crate::core::wire::in_range(told.into(), hashes as u64, hashes as u64, "segment: proof length")?;
        let mut proof = Vec::with_capacity(hashes);
        for _ in 0..hashes {
            proof.push(Digest(reader.array("segment: proof")?));
        }
        let shard = record.slice_ref(reader.take(header.shard_bytes(), "segment: shard")?);
        reader.finish("segment")?;
        let header_bytes = record.slice_ref(header_bytes);
        Ok(Self { header, header_bytes, signature, index, proof, shard })
    }

    /// The header, as claimed.
    pub fn header(&self) -> &StripeHeader {
        &self.header
    }

    /// Verifies that the sender signed the header. Errors: [`SegmentError::Signature`], also when `sender` is not the key
    /// that the header names.
    pub fn verify_signature(&self, cache: &SignatureCache, sender: &PublicKey) -> Result<(), SegmentError> {
        let key = sender.bytes();
        if key != self.header.core.sender {
            return Err(SegmentError::Signature);
        }
        let entry = SignatureCache::entry(&key, &self.header_bytes, &self.signature);
        if cache.has(&entry) {
            return Ok(());
        }
        header::verify(&self.header_bytes, &self.signature, sender).map_err(|_| SegmentError::Signature)?;
        cache.insert(entry);
        Ok(())
    }

    /// Verifies signature, then proof. Nothing but this makes a [`VerifiedSegment`]. Errors: [`SegmentError::Signature`],
    /// [`SegmentError::Proof`].
    pub fn verify(self, cache: &SignatureCache, sender: &PublicKey) -> Result<VerifiedSegment, SegmentError> {
        self.verify_signature(cache, sender)?;
        let leaf = merkle::leaf(self.index, &self.shard);
        let n = self.header.core.profile.n();
        if merkle::climb(leaf, self.index.into(), n, &self.proof) != Some(self.header.root) {
            return Err(SegmentError::Proof);
        }
        let digest = header::digest(&self.header_bytes);
        let Self { header, header_bytes, signature, index, shard, .. } = self;
        Ok(VerifiedSegment { header, header_bytes, signature, digest, index, leaf, shard })
    }
}

/// A segment whose header is signed by the sender that it names and whose shard is the one that this header's root covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedSegment {
    header: StripeHeader,
    header_bytes: Bytes,
    signature: [u8; SIGNATURE_BYTES],
    digest: Digest,
    index: u16,
    leaf: Digest,
    shard: Bytes,
}

impl VerifiedSegment {
    /// The stripe's header.
    pub fn header(&self) -> &StripeHeader {
        &self.header
    }

    /// The header's bytes, as signed.
    pub fn header_bytes(&self) -> &Bytes {
        &self.header_bytes
    }

    /// The header's signature.
    pub fn signature(&self) -> &[u8; SIGNATURE_BYTES] {
        &self.signature
    }

    /// The header's digest: D, when the header is the last.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Which shard of the stripe.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The shard's hash in the tree.
    pub fn leaf(&self) -> Digest {
        self.leaf
    }

    /// The shard; it shares the record's bytes.
    pub fn shard(&self) -> &Bytes {
        &self.shard
    }

    /// The UUID that its record's key should be.
    pub fn id(&self) -> SegmentId {
        segment_id(&self.digest, self.index)
    }
}

/// Signatures that verified, so that a stripe costs one verification and not n. Keyed by a hash over key, input and
/// signature, so that a hit proves exactly what a verification would. Bounded: two generations of half the bound each.
#[derive(Debug)]
pub struct SignatureCache {
    half: usize,
    generations: Mutex<[BTreeSet<[u8; 32]>; 2]>,
}

impl SignatureCache {
    /// Keeps at most about `entries` verified signatures (32 bytes each), at least two.
    pub fn new(entries: usize) -> Self {
        Self { half: (entries / 2).max(1), generations: Mutex::default() }
    }

    fn entry(key: &VerifyingKeyBytes, header: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> [u8; 32] {
        // Key and signature have fixed lengths and stand first, so no two inputs run together.
        let mut hasher = blake3::Hasher::new();
        hasher.update(label::STRIPE).update(&key.0).update(signature).update(header);
        *hasher.finalize().as_bytes()
    }

    fn has(&self, entry: &[u8; 32]) -> bool {
        let generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.iter().any(|generation| generation.contains(entry))
    }

    fn insert(&self, entry: [u8; 32]) {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let [young, old] = &mut *generations;
        if young.len() >= self.half {
            *old = std::mem::take(young);
        }
        young.insert(entry);
    }

    /// How many signatures it holds.
    pub fn len(&self) -> usize {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner).iter().map(BTreeSet::len).sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for SignatureCache {
    /// Keeps [`limits::CACHED_SIGNATURES`].
    fn default() -> Self {
        Self::new(limits::CACHED_SIGNATURES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_keeps_the_newest() {
        let cache = SignatureCache::new(8);
        assert!(cache.is_empty());
        for number in 0..100u8 {
            cache.insert([number; 32]);
            assert!(cache.len() <= 8 && cache.has(&[number; 32]));
        }
        assert!(!cache.has(&[0; 32]));
    }

    #[test]
    fn a_segment_is_told_by_its_magic() {
        assert!(is_segment(b"SCSG\x01"));
        assert_eq!(Segment::parse(&Bytes::from_static(b"SCQY\x01")), Err(SegmentError::Magic));
        let unknown = Segment::parse(&Bytes::from_static(b"SCSG\x02")).unwrap_err();
        assert!(unknown.retryable(), "{unknown}");
        let long = Bytes::from(vec![0; limits::SEGMENT_BYTES + 1]);
        assert!(matches!(Segment::parse(&long), Err(SegmentError::TooLarge { .. })));
    }
}
