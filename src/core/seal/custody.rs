//! K_tx in custody: wrapped at rest under a node's storage key (R24), and wrapped to a node or reader that may read the
//! transaction (R11, R25).
//!
//! Owns both wraps and what they are bound to. Must not know who may have a key, nor where wraps are kept.

use std::fmt;

use chacha20poly1305::{AeadInOut as _, KeyInit as _, Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::keys::{KEY_BYTES, TransactionKey};
use super::suite::{self, HpkePublic, HpkeSecret, SuiteError, TAG_BYTES, WRAP_RANDOMNESS_BYTES};
use crate::core::id::{DestinationTag, Digest, EnvironmentId, NodeName, Suite, TransactionId, VerifyingKeyBytes};
use crate::core::wire::{Reader, WireError, Writer, label};

/// Length of the nonce of a wrap at rest, in bytes: long enough to be drawn at random.
pub const NONCE_BYTES: usize = 24;

/// Length of K_tx wrapped at rest, in bytes: nonce, K_tx, tag.
pub const AT_REST_BYTES: usize = NONCE_BYTES + KEY_BYTES + TAG_BYTES;

/// Why a wrapped K_tx does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CustodyError {
    /// Another storage key, another node, parcel or transaction, or altered bytes.
    #[error("the transaction's key does not open under this storage key")]
    AtRest,
    /// The grant is for somebody or something else, or was altered.
    #[error("the grant does not open with this key for this transaction")]
    Grant,
    /// The grant opens, but holds another key than the manifest commits to.
    #[error("the grant holds another key than the transaction's")]
    Commitment,
}

impl CustodyError {
    /// Whether the same bytes can open later: never. A grant can be asked for again.
    pub fn retryable(&self) -> bool {
        false
    }
}

/// A node's storage key: wiped when dropped, never shown.
#[derive(Clone)]
pub struct StorageKey(Zeroizing<[u8; KEY_BYTES]>);

impl StorageKey {
    /// Takes 32 random bytes, or those of a key file.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The 32 bytes, for key files.
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Wraps K_tx: XChaCha20-Poly1305 with a fresh random nonce, bound to node, D and transaction. Gives the nonce, then the
    /// sealed key.
    pub fn wrap(
        &self,
        node: &NodeName,
        parcel: &Digest,
        transaction: &TransactionId,
        key: &TransactionKey,
        nonce: &[u8; NONCE_BYTES],
    ) -> [u8; AT_REST_BYTES] {
        let mut out = [0; AT_REST_BYTES];
        let aad = at_rest_aad(node, parcel, transaction);
        if let Some((to_nonce, rest)) = out.split_first_chunk_mut::<NONCE_BYTES>()
            && let Some((sealed, to_tag)) = rest.split_first_chunk_mut::<KEY_BYTES>()
        {
            *to_nonce = *nonce;
            *sealed = *key.bytes();
            let aead = XChaCha20Poly1305::new((&*self.0).into());
            let Ok(tag) = aead.encrypt_inout_detached(&XNonce::from(*nonce), &aad, sealed.as_mut_slice().into()) else {
                unreachable!("32 bytes are below every limit of the cipher")
            };
            to_tag.copy_from_slice(&tag);
        }
        out
    }

    /// Opens what [`StorageKey::wrap`] made. Errors: [`CustodyError::AtRest`].
    pub fn unwrap(
        &self,
        node: &NodeName,
        parcel: &Digest,
        transaction: &TransactionId,
        wrapped: &[u8],
    ) -> Result<TransactionKey, CustodyError> {
        let open = |wrapped: &[u8]| -> Result<TransactionKey, WireError> {
            let mut reader = Reader::new(wrapped);
            let nonce = XNonce::from(reader.array::<NONCE_BYTES>("nonce")?);
            let mut key = Zeroizing::new(reader.array::<KEY_BYTES>("key")?);
            let tag = Tag::from(reader.array::<TAG_BYTES>("tag")?);
            reader.finish("wrapped key")?;
            XChaCha20Poly1305::new((&*self.0).into())
                .decrypt_inout_detached(
                    &nonce,
                    &at_rest_aad(node, parcel, transaction),
                    key.as_mut_slice().into(),
                    &tag,
                )
                .map_err(|_| WireError::Invalid { field: "wrapped key", expected: "its tag" })?;
            Ok(TransactionKey::new(*key))
        };
        open(wrapped).map_err(|_| CustodyError::AtRest)
    }
}

impl fmt::Debug for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StorageKey(hidden)")
    }
}

/// L("at-rest"), u8 length and name of the node, D, transaction id.
fn at_rest_aad(node: &NodeName, parcel: &Digest, transaction: &TransactionId) -> Vec<u8> {
    let mut aad = Writer::with_capacity(160);
    aad.put(label::AT_REST).name(node.as_str()).put(&parcel.0).put(&transaction.to_bytes());
    aad.finish()
}

/// What a grant is about and whom it is for: all of it is bound into the wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantScope {
    /// The environment.
    pub environment: EnvironmentId,
    /// The destination whose transaction it is.
    pub destination: DestinationTag,
    /// The transaction.
    pub transaction: TransactionId,
    /// D of the parcel that its ciphertext came with.
    pub parcel: Digest,
    /// The signing key of the node or reader that asked.
    pub requester: VerifyingKeyBytes,
}

impl GrantScope {
    /// L("grant"), environment, destination tag, transaction id, D, requester's signing key.
    fn info(&self) -> Vec<u8> {
        let transaction = self.transaction.to_bytes();
        let parts: [&[u8]; 6] =
            [label::GRANT, &self.environment.0, &self.destination.0, &transaction, &self.parcel.0, &self.requester.0];
        parts.concat()
    }
}

/// Wraps K_tx to the requester's HPKE key, so that bytes alone are useless: `enc`, then the sealed key; empty AAD. Errors:
/// [`SuiteError`].
pub fn grant(
    to: &HpkePublic,
    scope: &GrantScope,
    key: &TransactionKey,
    randomness: &[u8; WRAP_RANDOMNESS_BYTES],
) -> Result<Vec<u8>, SuiteError> {
    let (mut grant, sealed) = suite::wrap(to, &scope.info(), b"", key.bytes(), randomness)?;
    grant.extend_from_slice(&sealed);
    Ok(grant)
}

/// Length of a grant, in bytes.
pub fn grant_bytes(suite: Suite) -> usize {
    suite::enc_bytes(suite) + KEY_BYTES + TAG_BYTES
}

/// Opens a grant and checks that it holds the key that the manifest commits to. Errors: [`CustodyError::Grant`],
/// [`CustodyError::Commitment`].
pub fn accept_grant(
    secret: &HpkeSecret,
    scope: &GrantScope,
    tx_commit: &[u8; 32],
    grant: &[u8],
) -> Result<TransactionKey, CustodyError> {
    let (enc, sealed) = grant.split_at_checked(suite::enc_bytes(secret.suite())).ok_or(CustodyError::Grant)?;
    let opened = suite::unwrap(secret, &scope.info(), b"", enc, sealed).map_err(|_| CustodyError::Grant)?;
    let bytes: Zeroizing<[u8; KEY_BYTES]> =
        Zeroizing::new(opened.as_slice().try_into().map_err(|_| CustodyError::Grant)?);
    let key = TransactionKey::new(*bytes);
    if key.commits(tx_commit) { Ok(key) } else { Err(CustodyError::Commitment) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::Time;

    fn transaction(time: u64) -> TransactionId {
        TransactionId::from_parts(Time(time), [1; 10])
    }

    #[test]
    fn r24_a_key_at_rest_opens_only_where_it_was_put() {
        let [here, there] = ["node-a", "node-b"].map(|name| NodeName::new(name).expect("a name"));
        let storage = StorageKey::new([1; 32]);
        let key = TransactionKey::new([2; 32]);
        let wrapped = storage.wrap(&here, &Digest([3; 32]), &transaction(4), &key, &[5; 24]);
        assert_eq!(storage.unwrap(&here, &Digest([3; 32]), &transaction(4), &wrapped), Ok(key));
        let refused = [
            storage.unwrap(&there, &Digest([3; 32]), &transaction(4), &wrapped),
            storage.unwrap(&here, &Digest([4; 32]), &transaction(4), &wrapped),
            storage.unwrap(&here, &Digest([3; 32]), &transaction(5), &wrapped),
            storage.unwrap(&here, &Digest([3; 32]), &transaction(4), &wrapped[1..]),
            StorageKey::new([9; 32]).unwrap(&here, &Digest([3; 32]), &transaction(4), &wrapped),
        ];
        assert!(refused.iter().all(|refused| *refused == Err(CustodyError::AtRest)));
        for bit in 0..wrapped.len() * 8 {
            let mut altered = wrapped;
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(storage.unwrap(&here, &Digest([3; 32]), &transaction(4), &altered).is_err());
        }
        assert_eq!(format!("{storage:?}"), "StorageKey(hidden)");
    }

    #[test]
    fn r11_a_grant_is_for_one_requester_and_one_transaction() {
        let scope = GrantScope {
            environment: EnvironmentId([1; 16]),
            destination: DestinationTag([2; 16]),
            transaction: transaction(3),
            parcel: Digest([4; 32]),
            requester: VerifyingKeyBytes([5; 32]),
        };
        for suite in [Suite::X25519, Suite::XWing] {
            let secret = HpkeSecret::generate(suite, &[6; 32]).expect("a key");
            let key = TransactionKey::new([7; 32]);
            let wrapped = grant(secret.public(), &scope, &key, &[8; 64]).expect("wraps");
            assert_eq!(wrapped.len(), grant_bytes(suite));
            assert_eq!(accept_grant(&secret, &scope, &key.commitment(), &wrapped), Ok(key.clone()));
            let other = HpkeSecret::generate(suite, &[9; 32]).expect("a key");
            assert_eq!(accept_grant(&other, &scope, &key.commitment(), &wrapped), Err(CustodyError::Grant));
            for changed in [
                GrantScope { environment: EnvironmentId([0; 16]), ..scope },
                GrantScope { destination: DestinationTag([0; 16]), ..scope },
                GrantScope { transaction: transaction(0), ..scope },
                GrantScope { parcel: Digest([0; 32]), ..scope },
                GrantScope { requester: VerifyingKeyBytes([0; 32]), ..scope },
            ] {
                assert_eq!(accept_grant(&secret, &changed, &key.commitment(), &wrapped), Err(CustodyError::Grant));
            }
            assert_eq!(accept_grant(&secret, &scope, &[0; 32], &wrapped), Err(CustodyError::Commitment));
        }
    }
}
