//! Ed25519 as Sealcast uses it: pure, deterministic, verified strictly, one signature at a time (design, section 3.6).
//! Every message starts with its label, so a signature made for one purpose never passes for another.
//!
//! Owns signing and verifying keys. Must not know what is signed.

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use super::id::VerifyingKeyBytes;

/// Length of a signature, in bytes.
pub const SIGNATURE_BYTES: usize = 64;

/// Why a key or a signature is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The bytes are no canonical encoding of a point.
    #[error("the public key is not a canonical encoding of a point")]
    NotCanonical,
    /// The point has a component of small order: several keys would share signatures.
    #[error("the public key is weak: it has a component of small order")]
    Weak,
    /// The signature does not verify under this key.
    #[error("the signature does not verify")]
    Signature,
}

impl SignError {
    /// Whether the same bytes can be accepted later: never.
    pub fn retryable(&self) -> bool {
        false
    }
}

/// A public key that was checked: canonical and torsion-free.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Checks a key. Errors: [`SignError::NotCanonical`], [`SignError::Weak`].
    pub fn check(bytes: &VerifyingKeyBytes) -> Result<Self, SignError> {
        let point =
            curve25519_dalek::edwards::CompressedEdwardsY(bytes.0).decompress().ok_or(SignError::NotCanonical)?;
        if point.compress().to_bytes() != bytes.0 {
            return Err(SignError::NotCanonical);
        }
        if point.is_small_order() || !point.is_torsion_free() {
            return Err(SignError::Weak);
        }
        VerifyingKey::from_bytes(&bytes.0).map(Self).map_err(|_| SignError::NotCanonical)
    }

    /// The 32 bytes.
    pub fn bytes(&self) -> VerifyingKeyBytes {
        VerifyingKeyBytes(self.0.to_bytes())
    }

    /// Verifies strictly (RFC 8032, section 5.1.7, with the stricter checks of `verify_strict`) that `signature` is over
    /// `label || message`. Errors: [`SignError::Signature`].
    pub fn verify(&self, label: &[u8], message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> Result<(), SignError> {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.0.verify_strict(&[label, message].concat(), &signature).map_err(|_| SignError::Signature)
    }
}

/// A signing key, wiped when dropped, never shown.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key of this seed (RFC 8032, section 5.1.5).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The seed, for key files.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// Its public key.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs `label || message`.
    pub fn sign(&self, label: &[u8], message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(&[label, message].concat()).to_bytes()
    }

    /// Another secret of the same holder: HKDF-SHA256 of the seed with `label` as info and no salt.
    pub fn derive(&self, label: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut out = Zeroizing::new([0; 32]);
        let expanded = hkdf::Hkdf::<sha2::Sha256>::new(None, self.seed().as_slice()).expand(label, out.as_mut_slice());
        debug_assert!(expanded.is_ok(), "32 bytes are within HKDF's limit");
        out
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretKey(of {})", self.public().bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_serves_one_label_and_one_message() {
        let key = SecretKey::from_seed(&[7; 32]);
        let signature = key.sign(b"a\0", b"message");
        let public = PublicKey::check(&key.public().bytes()).expect("an honest key");
        assert_eq!(public.verify(b"a\0", b"message", &signature), Ok(()));
        assert_eq!(public.verify(b"b\0", b"message", &signature), Err(SignError::Signature));
        assert_eq!(public.verify(b"a\0", b"messag", &signature), Err(SignError::Signature));
    }

    #[test]
    fn weak_and_non_canonical_keys_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(PublicKey::check(&VerifyingKeyBytes(identity)), Err(SignError::Weak));
        let mut above_p = [0xff; 32];
        above_p[0] = 0xee; // p + 1, the identity written a second way
        above_p[31] = 0x7f;
        assert_eq!(PublicKey::check(&VerifyingKeyBytes(above_p)), Err(SignError::NotCanonical));
        let mixed = SecretKey::from_seed(&[7; 32]).0.verifying_key().to_edwards()
            + curve25519_dalek::constants::EIGHT_TORSION[1];
        assert_eq!(PublicKey::check(&VerifyingKeyBytes(mixed.compress().to_bytes())), Err(SignError::Weak));
    }

    #[test]
    fn secrets_do_not_show() {
        let seed = [0xabu8; 32];
        assert!(!format!("{:?}", SecretKey::from_seed(&seed)).contains("abab"));
    }
}
