//! Stripes: sealed bytes in, signed and coded segments out; and the way back, shards in, sealed bytes out (R2).
//!
//! Owns cutting, padding, coding and recovering. Must not know what the bytes mean or where segments go.

use bytes::Bytes;

use super::code::{Code, CodeError};
use super::header::{self, Core, StripeHeader};
use super::merkle;
use super::segment::{self, VerifiedSegment};
use crate::core::id::{Digest, RefusalReason, SegmentId};
use crate::core::sign::{SIGNATURE_BYTES, SecretKey};
use crate::core::wire::WireError;

/// Why sealed bytes cannot be split.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// The core breaks a rule of the format.
    #[error("split: {0}")]
    Core(#[from] WireError),
    /// The key is not that of the sender in the core.
    #[error("split: the signing key is not the sender's")]
    Key,
    /// A parcel has at least one sealed byte.
    #[error("split: there is nothing to split")]
    Empty,
    /// More stripes than an index can count.
    #[error("split: the parcel has too many stripes: seal it in several")]
    TooLong,
    /// Kept bytes and kept header do not belong together: the store that kept them is damaged.
    #[error("split: the kept bytes do not lead to the root of the kept header")]
    Damaged,
    /// The codec failed.
    #[error("split: {0}")]
    Code(#[from] CodeError),
}

impl SplitError {
    /// Never: the same input gives the same error.
    pub fn retryable(&self) -> bool {
        false
    }
}

/// A segment ready to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedSegment {
    /// Its UUID: the record's key.
    pub id: SegmentId,
    /// Which shard: below k it is data, from k on parity.
    pub index: u16,
    /// The record's bytes.
    pub record: Bytes,
}

/// A stripe with all its segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stripe {
    /// Its header.
    pub header: StripeHeader,
    /// The header's bytes, as signed.
    pub header_bytes: Bytes,
    /// The header's signature.
    pub signature: [u8; SIGNATURE_BYTES],
    /// The header's digest: D, when it is the last.
    pub digest: Digest,
    /// The sealed bytes, without padding: what the outbox keeps (R3).
    pub sealed: Bytes,
    /// All n segments, by index.
    pub segments: Vec<EncodedSegment>,
}

impl Stripe {
    /// The same stripe again from what the outbox kept: resending needs no key and changes no byte (R3). Errors:
    /// [`SplitError::Core`], [`SplitError::Damaged`], [`SplitError::Code`].
    pub fn again(header: Bytes, signature: [u8; SIGNATURE_BYTES], sealed: Bytes) -> Result<Self, SplitError> {
        let parsed = StripeHeader::decode(&header)?;
        if sealed.len() != parsed.length as usize {
            return Err(SplitError::Damaged);
        }
        let coded = Coded::new(&parsed.core, &sealed)?;
        if coded.root != parsed.root {
            return Err(SplitError::Damaged);
        }
        Ok(coded.finish(parsed, header, signature, sealed))
    }
}

/// The shards of a stripe inside their records, whose prefixes are still to be written.
struct Coded {
    root: Digest,
    proofs: Vec<Vec<Digest>>,
    records: Vec<Vec<u8>>,
}

impl Coded {
    /// Cuts, pads, codes and hashes. One copy of every byte: from the stripe into its record.
    fn new(core: &Core, sealed: &[u8]) -> Result<Self, SplitError> {
        let (k, n) = (core.profile.k(), core.profile.n());
        let shard_bytes = sealed.len().div_ceil(k);
        let header_bytes = header::header_bytes(core.destinations.len());
        let prefix = |index| segment::prefix_bytes(header_bytes, merkle::proof_length(index, n));
        let mut records = Vec::with_capacity(n);
        let mut rest = sealed;
        for index in 0..n {
            let mut record = Vec::with_capacity(prefix(index) + shard_bytes);
            record.resize(prefix(index), 0);
            let (shard, after) = rest.split_at(rest.len().min(shard_bytes));
            record.extend_from_slice(shard);
            rest = after;
            record.resize(prefix(index) + shard_bytes, 0);
            records.push(record);
        }
        let (data, parity) = records.split_at_mut(k);
        let data: Vec<&[u8]> = data.iter().map(|record| shard_of(record, shard_bytes)).collect();
        let mut parity: Vec<&mut [u8]> = parity
            .iter_mut()
            .map(|record| {
                let at = record.len() - shard_bytes;
                record.split_at_mut(at).1
            })
            .collect();
        Code::new(k, core.profile.m())?.encode(&data, &mut parity)?;
        let leaves: Vec<Digest> =
            (0..).zip(&records).map(|(index, record)| merkle::leaf(index, shard_of(record, shard_bytes))).collect();
        let (root, proofs) = merkle::proofs(&leaves).ok_or(SplitError::Empty)?;
        Ok(Self { root, proofs, records })
    }

    fn finish(
        self,
        header: StripeHeader,
        header_bytes: Bytes,
        signature: [u8; SIGNATURE_BYTES],
        sealed: Bytes,
    ) -> Stripe {
        let digest = header::digest(&header_bytes);
        let segments = (0..)
            .zip(self.records.into_iter().zip(self.proofs))
            .map(|(index, (mut record, proof))| {
                let prefix = segment::prefix(&header_bytes, &signature, index, &proof);
                if let Some((into, _)) = record.split_at_mut_checked(prefix.len()) {
                    into.copy_from_slice(&prefix);
                }
                EncodedSegment { id: segment::segment_id(&digest, index), index, record: record.into() }
            })
            .collect();
        Stripe { header, header_bytes, signature, digest, sealed, segments }
    }
}

fn shard_of(record: &[u8], shard_bytes: usize) -> &[u8] {
    record.split_at(record.len() - shard_bytes).1
}

/// Cuts a parcel's sealed bytes into stripes, each coded, hashed and signed as soon as it is full. Long work: it belongs
/// where blocking work runs.
#[derive(Debug)]
pub struct Splitter {
    core: Core,
    key: SecretKey,
    pending: Vec<u8>,
    stripe: u32,
    previous: Digest,
}

impl Splitter {
    /// Starts a parcel. Errors: [`SplitError::Core`], [`SplitError::Key`].
    pub fn new(core: Core, key: SecretKey) -> Result<Self, SplitError> {
        core.check()?;
        if key.public().bytes() != core.sender {
            return Err(SplitError::Key);
        }
        Ok(Self { core, key, pending: Vec::new(), stripe: 0, previous: Digest([0; 32]) })
    }

    /// The parcel's core.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// Takes sealed bytes; gives the stripes that are full and certainly not the last. Errors: [`SplitError::TooLong`],
    /// [`SplitError::Code`].
    pub fn push(&mut self, sealed: &[u8]) -> Result<Vec<Stripe>, SplitError> {
        let full = self.core.profile.stripe_bytes();
        let mut stripes = Vec::new();
        let mut rest = sealed;
        while !rest.is_empty() {
            if self.pending.len() == full {
                stripes.push(self.emit(false)?);
            }
            if self.pending.capacity() == 0 {
                // At once, as far as it is known how much comes: growing would copy it again and again.
                self.pending.reserve_exact(rest.len().min(full));
            }
            let (taken, after) = rest.split_at(rest.len().min(full - self.pending.len()));
            self.pending.extend_from_slice(taken);
            rest = after;
        }
        Ok(stripes)
    }

    /// Ends the parcel: its last stripe, whose digest is D. Errors: [`SplitError::Empty`], [`SplitError::TooLong`],
    /// [`SplitError::Code`].
    pub fn finish(mut self) -> Result<Stripe, SplitError> {
        if self.pending.is_empty() {
            return Err(SplitError::Empty);
        }
        self.emit(true)
    }

    fn emit(&mut self, last: bool) -> Result<Stripe, SplitError> {
        let sealed = Bytes::from(std::mem::take(&mut self.pending));
        let coded = Coded::new(&self.core, &sealed)?;
        let header = StripeHeader {
            core: self.core.clone(),
            stripe: self.stripe,
            last,
            length: u32::try_from(sealed.len()).map_err(|_| SplitError::TooLong)?,
            previous: self.previous,
            root: coded.root,
        };
        let header_bytes = Bytes::from(header.encode());
        let signature = header::sign(&header_bytes, &self.key);
        let stripe = coded.finish(header, header_bytes, signature, sealed);
        self.previous = stripe.digest;
        self.stripe = self.stripe.checked_add(1).ok_or(SplitError::TooLong)?;
        Ok(stripe)
    }
}

/// Why a stripe has no bytes. The first two are what every node finds in these bytes, from any k shards (R2).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// The shards are no codeword: rebuilt from k of them, all n do not lead to the root.
    #[error("recover: the shards are no codeword")]
    Miscoded,
    /// The padding of the last stripe is not zeros.
    #[error("recover: the padding is not zeros")]
    Padding,
    /// Fewer than k different shards of one stripe were given: a mistake of the caller, no verdict.
    #[error("recover: needs {needed} different shards of one stripe, got {given}")]
    TooFew {
        /// k.
        needed: usize,
        /// How many there were.
        given: usize,
    },
    /// The codec failed on shards that it must take: a local fault, no verdict.
    #[error("recover: {0}")]
    Code(#[from] CodeError),
}

impl RecoverError {
    /// The verdict that follows, if one does: `None` is local trouble (R21).
    pub fn refusal(&self) -> Option<RefusalReason> {
        match self {
            Self::Miscoded => Some(RefusalReason::Miscoded),
            Self::Padding => Some(RefusalReason::Padding),
            Self::TooFew { .. } | Self::Code(_) => None,
        }
    }

    /// Whether the same stripe can be recovered later: not when the bytes are at fault.
    pub fn retryable(&self) -> bool {
        self.refusal().is_none()
    }
}

/// Recovers a stripe's sealed bytes from verified segments of it: takes exactly k shards (data before parity), rebuilds all
/// n, recomputes the root and checks the padding (R2). Long work. Errors: [`RecoverError`].
pub fn recover(segments: &[VerifiedSegment]) -> Result<Bytes, RecoverError> {
    let first = segments.first().ok_or(RecoverError::TooFew { needed: 1, given: 0 })?;
    let header = first.header();
    let (k, n, shard_bytes) = (header.core.profile.k(), header.core.profile.n(), header.shard_bytes());
    let mut chosen: Vec<Option<&VerifiedSegment>> = vec![None; n];
    for segment in segments.iter().filter(|segment| segment.digest() == first.digest()) {
        if let Some(slot) = chosen.get_mut(usize::from(segment.index())) {
            *slot = Some(segment);
        }
    }
    let given = chosen.iter().flatten().count();
    if given < k {
        return Err(RecoverError::TooFew { needed: k, given });
    }
    // Shards beyond k must not take part: taken as they are they could hide that the rest is no codeword.
    let mut left = k;
    for slot in &mut chosen {
        if slot.is_some() && left == 0 {
            *slot = None;
        } else if slot.is_some() {
            left -= 1;
        }
    }
    let mut out = vec![0; k * shard_bytes];
    let mut parity = vec![0; (n - k) * shard_bytes];
    let mut shards: Vec<(&mut [u8], bool)> =
        out.chunks_exact_mut(shard_bytes).chain(parity.chunks_exact_mut(shard_bytes)).map(|s| (s, false)).collect();
    for ((into, present), segment) in shards.iter_mut().zip(&chosen) {
        if let Some(segment) = segment {
            into.copy_from_slice(segment.shard());
            *present = true;
        }
    }
    Code::new(k, n - k)?.rebuild(&mut shards)?;
    let leaves: Vec<Digest> = (0..)
        .zip(shards.iter().zip(&chosen))
        .map(|(index, ((shard, _), segment))| match segment {
            Some(segment) => segment.leaf(),
            None => merkle::leaf(index, shard),
        })
        .collect();
    if merkle::root(&leaves) != Some(header.root) {
        return Err(RecoverError::Miscoded);
    }
    let length = header.length as usize;
    if out.get(length..).is_none_or(|padding| padding.iter().any(|&byte| byte != 0)) {
        return Err(RecoverError::Padding);
    }
    out.truncate(length);
    Ok(out.into())
}
