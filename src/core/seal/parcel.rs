//! What is known of a transaction once it was sealed or opened, whichever way it went.
//!
//! Owns the ciphertext digest. Must not know how parcels are laid out.

use super::keys::TransactionKey;
use super::transaction::{Payload, PrivateHeader};
use crate::core::id::Digest;
use crate::core::wire::label;

/// What is known of a transaction when all of it was sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedTransaction {
    /// Its index in the parcel, from 0.
    pub index: u32,
    /// Its private header.
    pub header: PrivateHeader,
    /// Its true lengths and its tag.
    pub payload: Payload,
    /// K_tx, to be wrapped at once.
    pub key: TransactionKey,
    /// A commitment to K_tx, for the manifest.
    pub tx_commit: [u8; 32],
    /// Length of its ciphertext: sealed length and STREAM, in bytes.
    pub ciphertext_bytes: u64,
    /// BLAKE3(L("body") || ciphertext).
    pub ciphertext_digest: Digest,
}

/// A transaction's ciphertext digest, as the bytes pass: BLAKE3(L("body") || sealed length || STREAM).
#[derive(Debug, Clone)]
pub struct BodyDigest {
    hasher: blake3::Hasher,
    bytes: u64,
}

impl BodyDigest {
    /// Starts a ciphertext.
    pub fn new() -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(label::BODY);
        Self { hasher, bytes: 0 }
    }

    /// More of it.
    pub fn update(&mut self, ciphertext: &[u8]) {
        self.hasher.update(ciphertext);
        self.bytes = self.bytes.saturating_add(ciphertext.len() as u64);
    }

    /// Its length in bytes and its digest.
    pub fn finish(&self) -> (u64, Digest) {
        (self.bytes, Digest(*self.hasher.finalize().as_bytes()))
    }
}

impl Default for BodyDigest {
    fn default() -> Self {
        Self::new()
    }
}

pub(super) fn sealed_transaction(
    index: u32,
    header: PrivateHeader,
    payload: Payload,
    key: TransactionKey,
    digest: &BodyDigest,
) -> SealedTransaction {
    let (ciphertext_bytes, ciphertext_digest) = digest.finish();
    let tx_commit = key.commitment();
    SealedTransaction { index, header, payload, key, tx_commit, ciphertext_bytes, ciphertext_digest }
}
