//! The key schedule: from K and ctx to a parcel's commitment, from the envelope to each transaction's keys, and the tags that
//! stand for an application's keys and payloads.
//!
//! Owns every derivation of sealing. Must not know how anything is laid out.

use std::fmt;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, Zeroizing};

use crate::core::id::{IdempotencyTag, KeyTag, PayloadTag};
use crate::core::sign::SecretKey;
use crate::core::wire::label;

/// Length of K, PRK, K_tx and every key that derives from them, in bytes.
pub const KEY_BYTES: usize = 32;

/// A derived key that is wiped when dropped.
pub(super) type Key = Zeroizing<[u8; KEY_BYTES]>;

/// HKDF-Expand-SHA256(prk, the parts one after the other, 32) (RFC 5869, section 2.3).
pub(super) fn expand(prk: &[u8; KEY_BYTES], info: &[&[u8]]) -> Key {
    let mut out = Zeroizing::new([0; KEY_BYTES]);
    let expanded = Hkdf::<Sha256>::from_prk(prk).map(|hkdf| hkdf.expand_multi_info(info, out.as_mut_slice()));
    if !matches!(expanded, Ok(Ok(()))) {
        // A key of zeros must never be used, so this stops the process.
        unreachable!("32 bytes are SHA-256's length, which HKDF takes and gives");
    }
    out
}

/// What a parcel's keys derive from: HKDF-Extract-SHA256(salt = ctx, K). Wiped when dropped.
pub(super) struct ParcelSecret(Key);

impl ParcelSecret {
    pub(super) fn extract(ctx: &[u8; 32], k: &[u8; KEY_BYTES]) -> Self {
        let (mut extracted, _) = Hkdf::<Sha256>::extract(Some(ctx), k);
        let prk = Zeroizing::new(extracted.into());
        zeroize::Zeroize::zeroize(extracted.as_mut_slice());
        Self(prk)
    }

    /// The commitment to K: it goes into the envelope in the clear.
    pub(super) fn commitment(&self) -> [u8; 32] {
        *expand(&self.0, &[label::COMMIT])
    }

    /// Whether this is the commitment to K, in constant time.
    pub(super) fn commits(&self, commitment: &[u8; 32]) -> bool {
        self.commitment().ct_eq(commitment).into()
    }

    /// K_tx of the transaction with this index, under the envelope whose hash is `envelope`.
    pub(super) fn transaction(&self, envelope: &[u8; 32], index: u32) -> TransactionKey {
        TransactionKey(expand(&self.0, &[label::TX, envelope, &index.to_be_bytes()]))
    }
}

/// E: SHA-256(L("envelope") || envelope).
pub(super) fn envelope_hash(envelope: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(label::ENVELOPE).chain_update(envelope).finalize().into()
}

/// K_tx: opens one transaction and nothing else. Wiped when dropped, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct TransactionKey(Key);

impl TransactionKey {
    /// Takes a key that was unwrapped.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The 32 bytes, to wrap them.
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// tx_commit: Expand(K_tx, L("tx-commit"), 32). It stands in manifests, so that whoever is given K_tx can tell that it is
    /// the right one before opening anything with it.
    pub fn commitment(&self) -> [u8; 32] {
        *expand(&self.0, &[label::TX_COMMIT])
    }

    /// Whether this is its commitment, in constant time.
    pub fn commits(&self, commitment: &[u8; 32]) -> bool {
        self.commitment().ct_eq(commitment).into()
    }

    pub(super) fn length_key(&self) -> Key {
        expand(&self.0, &[label::LENGTH])
    }

    pub(super) fn stream_key(&self) -> Key {
        expand(&self.0, &[label::STREAM])
    }
}

impl fmt::Debug for TransactionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TransactionKey(hidden)")
    }
}

/// HMAC-SHA256 takes keys of any length.
fn hmac(key: &[u8]) -> Hmac<Sha256> {
    match Hmac::new_from_slice(key) {
        Ok(hmac) => hmac,
        Err(_) => unreachable!("HMAC takes keys of any length (RFC 2104)"),
    }
}

/// Makes a payload's tag as the payload passes: BLAKE3 keyed with a key from the sender's seed, over L("payload-tag") || payload.
/// Equal payloads of one sender have equal tags (R6); nobody else can test a guess.
#[derive(Clone)]
pub struct PayloadTagger(blake3::Hasher);

impl PayloadTagger {
    /// Starts a payload of this sender.
    pub fn new(sender: &SecretKey) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&sender.derive(label::PAYLOAD_TAG));
        hasher.update(label::PAYLOAD_TAG);
        Self(hasher)
    }

    /// More of the payload, uncompressed.
    pub fn update(&mut self, payload: &[u8]) {
        self.0.update(payload);
    }

    /// The tag of all of it.
    pub fn finish(self) -> PayloadTag {
        PayloadTag(self.0.finalize().into())
    }

    /// The tag of a payload that is at hand.
    pub fn whole(sender: &SecretKey, payload: &[u8]) -> PayloadTag {
        let mut tagger = Self::new(sender);
        tagger.update(payload);
        tagger.finish()
    }
}

impl Drop for PayloadTagger {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for PayloadTagger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PayloadTagger(hidden)")
    }
}

fn tag(index_secret: &[u8; KEY_BYTES], label: &[u8], key: &[u8]) -> [u8; 16] {
    let mut hmac = hmac(index_secret);
    hmac.update(label);
    hmac.update(key);
    let full: [u8; 32] = hmac.finalize().into_bytes().into();
    let mut out = [0; 16];
    out.iter_mut().zip(full).for_each(|(to, from)| *to = from);
    out
}

/// An ordering key as nodes index it: the first 16 bytes of HMAC-SHA256(index secret, L("key-tag") || key).
pub fn key_tag(index_secret: &[u8; KEY_BYTES], key: &[u8]) -> KeyTag {
    KeyTag(tag(index_secret, label::KEY_TAG, key))
}

/// An idempotency key as nodes index it: the first 16 bytes of HMAC-SHA256(index secret, L("idempotency-tag") || key).
pub fn idempotency_tag(index_secret: &[u8; KEY_BYTES], key: &[u8]) -> IdempotencyTag {
    IdempotencyTag(tag(index_secret, label::IDEMPOTENCY_TAG, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commitment_is_to_one_key_in_one_context() {
        let secret = ParcelSecret::extract(&[1; 32], &[2; 32]);
        let commitment = secret.commitment();
        assert!(secret.commits(&commitment));
        assert!(!ParcelSecret::extract(&[1; 32], &[3; 32]).commits(&commitment));
        assert!(!ParcelSecret::extract(&[3; 32], &[2; 32]).commits(&commitment));
    }

    #[test]
    fn every_transaction_has_keys_of_its_own() {
        let secret = ParcelSecret::extract(&[1; 32], &[2; 32]);
        let keys = [secret.transaction(&[4; 32], 0), secret.transaction(&[4; 32], 1), secret.transaction(&[5; 32], 0)];
        for (at, one) in keys.iter().enumerate() {
            assert!(one.commits(&one.commitment()));
            assert_ne!(one.length_key(), one.stream_key());
            assert!(keys.iter().skip(at + 1).all(|other| other != one && !other.commits(&one.commitment())));
        }
    }

    #[test]
    fn tags_differ_by_purpose_secret_and_key() {
        let one = key_tag(&[1; 32], b"customer-42");
        assert_eq!(one, key_tag(&[1; 32], b"customer-42"));
        assert_ne!(one, key_tag(&[2; 32], b"customer-42"));
        assert_ne!(one, key_tag(&[1; 32], b"customer-43"));
        assert_ne!(one.0, idempotency_tag(&[1; 32], b"customer-42").0);
        let sender = SecretKey::from_seed(&[7; 32]);
        let mut tagger = PayloadTagger::new(&sender);
        tagger.update(b"pay");
        tagger.update(b"load");
        assert_eq!(tagger.finish(), PayloadTagger::whole(&sender, b"payload"));
        assert_ne!(
            PayloadTagger::whole(&sender, b"payload"),
            PayloadTagger::whole(&SecretKey::from_seed(&[8; 32]), b"payload")
        );
    }

    #[test]
    fn keys_do_not_show() {
        assert_eq!(format!("{:?}", TransactionKey::new([0xab; 32])), "TransactionKey(hidden)");
    }
}
