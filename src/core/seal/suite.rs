//! The two HPKE suites (RFC 9180, Base mode, single shot) and their keys.
//!
//! | suite | KEM | KDF | AEAD | secret | public | enc | randomness that one wrap draws |
//! |---|---|---|---|---|---|---|---|
//! | 1 | 0x0020 DHKEM(X25519, HKDF-SHA256) | 0x0001 HKDF-SHA256 | 0x0003 ChaCha20-Poly1305 | 32 | 32 | 32 | 32 |
//! | 2 | 0x647a X-Wing (X25519 with ML-KEM-768) | 0x0001 | 0x0003 | 32 | 1216 | 1120 | 64 |
//!
//! Owns what a key may be: every public key and every encapsulated key passes here before it is used. Must not know what
//! is wrapped, draw randomness, or read the directory.
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::{X25519HkdfSha256, XWing};
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use rand_core::{TryCryptoRng, TryRng, utils};
use zeroize::{Zeroize, Zeroizing};

use crate::core::directory::{has_small_order_part, kem_key_bytes, key_id};
use crate::core::id::{KeyId, Suite};

/// Length of a secret key in both suites, in bytes: an X25519 scalar, or X-Wing's seed.
pub const SECRET_BYTES: usize = 32;

/// How many random bytes a caller hands to [`wrap`]. Suite 1 draws the first 32 (the input of RFC 9180's DeriveKeyPair),
/// suite 2 all 64 (ML-KEM's message, then the X25519 scalar).
pub const WRAP_RANDOMNESS_BYTES: usize = 64;

/// Length of the AEAD tag that a wrapped plaintext grows by, in bytes.
pub const TAG_BYTES: usize = 16;

/// Length of an encapsulated key of X25519, and of the X25519 part at the end of X-Wing's.
const X25519_BYTES: usize = 32;

/// Length of an encapsulated key (`enc`), in bytes.
pub fn enc_bytes(suite: Suite) -> usize {
    match suite {
        Suite::X25519 => X25519_BYTES,
        Suite::XWing => 1088 + X25519_BYTES,
    }
}

/// Why a key is refused, or a wrap or unwrap failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SuiteError {
    /// A key that has not the length of its suite.
    #[error("{what} of suite {suite}: {given} bytes, expected {needed}")]
    Length {
        /// Which key.
        what: &'static str,
        /// Of which suite.
        suite: Suite,
        /// Its right length.
        needed: usize,
        /// The length that it has.
        given: usize,
    },
    /// Its X25519 part is one of the seven encodings of a point of small order: every secret would agree on one value.
    #[error("{what}: its X25519 part is a point of small order")]
    SmallOrder {
        /// Which key.
        what: &'static str,
    },
    /// Its ML-KEM part is not canonical (FIPS 203, section 7.2, modulus check).
    #[error("the public key's ML-KEM part is not canonical: a coefficient is 3329 or more")]
    NotCanonical,
    /// The caller's randomness ended before the encapsulation had what it needs. Nothing was made.
    #[error("the encapsulation needs more than {WRAP_RANDOMNESS_BYTES} random bytes")]
    Randomness,
    /// The encapsulation failed.
    #[error("this key cannot be encapsulated to")]
    Wrap,
    /// It does not open: another key, other info, or altered bytes. Which of these, nobody can tell.
    #[error("the wrapped bytes do not open under this key and context")]
    Open,
}

impl SuiteError {
    /// Whether the same call can succeed later: never, keys and bytes stay what they are.
    pub fn retryable(&self) -> bool {
        false
    }
}

/// Refuses a key whose X25519 part has small order, before anything is computed with it.
fn refuse_small_order(key: &[u8], what: &'static str) -> Result<(), SuiteError> {
    if has_small_order_part(key) { Err(SuiteError::SmallOrder { what }) } else { Ok(()) }
}

fn exactly(what: &'static str, suite: Suite, needed: usize, given: usize) -> Result<(), SuiteError> {
    if given == needed { Ok(()) } else { Err(SuiteError::Length { what, suite, needed, given }) }
}

#[derive(PartialEq, Eq)]
enum Public {
    X25519(<X25519HkdfSha256 as Kem>::PublicKey),
    XWing(Box<<XWing as Kem>::PublicKey>),
}

/// An HPKE public key that was checked: right length, no point of small order, canonical. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct HpkePublic {
    suite: Suite,
    id: KeyId,
    bytes: Arc<[u8]>,
    key: Arc<Public>,
}

impl HpkePublic {
    /// Checks a key. Errors: [`SuiteError::Length`], [`SuiteError::SmallOrder`], [`SuiteError::NotCanonical`].
    pub fn from_bytes(suite: Suite, bytes: &[u8]) -> Result<Self, SuiteError> {
        const WHAT: &str = "the public key";
        exactly(WHAT, suite, kem_key_bytes(suite), bytes.len())?;
        refuse_small_order(bytes, WHAT)?;
        let key = match suite {
            Suite::X25519 => Deserializable::from_bytes(bytes).map(Public::X25519),
            Suite::XWing => Deserializable::from_bytes(bytes).map(Box::new).map(Public::XWing),
        };
        let key = key.map_err(|_| SuiteError::NotCanonical)?;
        Ok(Self { suite, id: key_id(suite, bytes), bytes: bytes.into(), key: Arc::new(key) })
    }

    /// Its suite.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Its id on the wire.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Its bytes: 32 in suite 1; in suite 2 ML-KEM's 1184, then X25519's 32.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for HpkePublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HpkePublic({}, {})", self.suite, self.id)
    }
}

enum Secret {
    X25519(<X25519HkdfSha256 as Kem>::PrivateKey),
    XWing(Box<<XWing as Kem>::PrivateKey>),
}

/// An HPKE secret key: wiped when dropped, never shown.
pub struct HpkeSecret {
    bytes: Zeroizing<[u8; SECRET_BYTES]>,
    key: Secret,
    public: HpkePublic,
}

impl HpkeSecret {
    /// A new key from 32 random bytes. Errors: [`SuiteError`] for a key pair that our own checks refuse (chance 2^-250).
    pub fn generate(suite: Suite, randomness: &[u8; SECRET_BYTES]) -> Result<Self, SuiteError> {
        Self::from_bytes(suite, randomness)
    }

    /// The key of these bytes: in suite 1 a scalar, clamped when it is used (RFC 7748, section 5); in suite 2 X-Wing's seed.
    /// Errors: [`SuiteError::Length`], and as [`HpkeSecret::generate`].
    pub fn from_bytes(suite: Suite, bytes: &[u8]) -> Result<Self, SuiteError> {
        const WHAT: &str = "the secret key";
        let wrong = SuiteError::Length { what: WHAT, suite, needed: SECRET_BYTES, given: bytes.len() };
        let bytes: Zeroizing<[u8; SECRET_BYTES]> = Zeroizing::new(bytes.try_into().map_err(|_| wrong)?);
        let (key, public) = match suite {
            Suite::X25519 => {
                // Suite 1's key pair is plain X25519: hpke only wraps these types.
                let scalar = x25519_dalek::StaticSecret::from(*bytes);
                let public = x25519_dalek::PublicKey::from(&scalar);
                let key = Deserializable::from_bytes(scalar.as_bytes()).map_err(|_| wrong)?;
                (Secret::X25519(key), HpkePublic::from_bytes(suite, public.as_bytes())?)
            }
            Suite::XWing => {
                let key = Deserializable::from_bytes(bytes.as_slice()).map_err(|_| wrong)?;
                let public = HpkePublic::from_bytes(suite, &XWing::sk_to_pk(&key).to_bytes())?;
                (Secret::XWing(Box::new(key)), public)
            }
        };
        Ok(Self { bytes, key, public })
    }

    /// Its suite.
    pub fn suite(&self) -> Suite {
        self.public.suite
    }

    /// Its public key.
    pub fn public(&self) -> &HpkePublic {
        &self.public
    }

    /// The 32 bytes, for key files.
    pub fn bytes(&self) -> &Zeroizing<[u8; SECRET_BYTES]> {
        &self.bytes
    }
}

impl Clone for HpkeSecret {
    fn clone(&self) -> Self {
        let key = match &self.key {
            Secret::X25519(key) => Secret::X25519(key.clone()),
            Secret::XWing(key) => Secret::XWing(key.clone()),
        };
        Self { bytes: self.bytes.clone(), key, public: self.public.clone() }
    }
}

impl fmt::Debug for HpkeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HpkeSecret(of {}, {})", self.public.suite, self.public.id)
    }
}

/// Hands drawn bytes to HPKE, once each. When they run out it says so rather than repeat any: `fill` cannot fail under
/// HPKE's trait, so what was made then is thrown away by [`wrap`].
struct Drawn<'a> {
    left: &'a [u8],
    ran_out: bool,
}

impl TryRng for Drawn<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        utils::next_word_via_fill(self)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        utils::next_word_via_fill(self)
    }

    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<(), Infallible> {
        match self.left.split_at_checked(into.len()) {
            Some((taken, left)) => {
                into.copy_from_slice(taken);
                self.left = left;
            }
            None => {
                into.zeroize();
                self.ran_out = true;
            }
        }
        Ok(())
    }
}

impl TryCryptoRng for Drawn<'_> {}

/// Encapsulates to `public` and seals `plaintext` (RFC 9180, section 6.1, Base mode): gives `enc` and the ciphertext, which is
/// 16 bytes longer than the plaintext. `randomness` is fresh for every call. Errors: [`SuiteError::Randomness`],
/// [`SuiteError::Wrap`].
pub fn wrap(
    public: &HpkePublic,
    info: &[u8],
    aad: &[u8],
    plaintext: &[u8],
    randomness: &[u8; WRAP_RANDOMNESS_BYTES],
) -> Result<(Vec<u8>, Vec<u8>), SuiteError> {
    let mut drawn = Drawn { left: randomness, ran_out: false };
    let wrapped = match &*public.key {
        Public::X25519(key) => seal::<X25519HkdfSha256>(key, info, aad, plaintext, &mut drawn),
        Public::XWing(key) => seal::<XWing>(key, info, aad, plaintext, &mut drawn),
    };
    if drawn.ran_out { Err(SuiteError::Randomness) } else { wrapped }
}

fn seal<K: Kem>(
    key: &K::PublicKey,
    info: &[u8],
    aad: &[u8],
    plaintext: &[u8],
    drawn: &mut Drawn<'_>,
) -> Result<(Vec<u8>, Vec<u8>), SuiteError> {
    let (enc, ciphertext) = hpke::single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, K>(
        &OpModeS::Base,
        key,
        info,
        plaintext,
        aad,
        drawn,
    )
    .map_err(|_| SuiteError::Wrap)?;
    Ok((enc.to_bytes().to_vec(), ciphertext))
}

/// Decapsulates `enc` and opens `ciphertext`. Errors: [`SuiteError::Length`] and [`SuiteError::SmallOrder`] for `enc`, both
/// before any secret is touched; [`SuiteError::Open`] for everything else.
pub fn unwrap(
    secret: &HpkeSecret,
    info: &[u8],
    aad: &[u8],
    enc: &[u8],
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SuiteError> {
    const WHAT: &str = "the encapsulated key";
    exactly(WHAT, secret.suite(), enc_bytes(secret.suite()), enc.len())?;
    refuse_small_order(enc, WHAT)?;
    match &secret.key {
        Secret::X25519(key) => open::<X25519HkdfSha256>(key, info, aad, enc, ciphertext),
        Secret::XWing(key) => open::<XWing>(key, info, aad, enc, ciphertext),
    }
}

fn open<K: Kem>(
    key: &K::PrivateKey,
    info: &[u8],
    aad: &[u8],
    enc: &[u8],
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SuiteError> {
    let enc = K::EncappedKey::from_bytes(enc).map_err(|_| SuiteError::Open)?;
    hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, K>(&OpModeR::Base, key, &enc, info, ciphertext, aad)
        .map(Zeroizing::new)
        .map_err(|_| SuiteError::Open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::directory::SMALL_ORDER;

    const SUITES: [Suite; 2] = [Suite::X25519, Suite::XWing];

    fn secret(suite: Suite, seed: u8) -> HpkeSecret {
        HpkeSecret::generate(suite, &[seed; 32]).expect("an honest key")
    }

    #[test]
    fn what_is_wrapped_opens_under_its_key_and_context_alone() {
        for suite in SUITES {
            let secret_key = secret(suite, 3);
            let (enc, wrapped) = wrap(secret_key.public(), b"info", b"aad", b"a key", &[9; 64]).expect("wraps");
            assert_eq!(enc.len(), enc_bytes(suite));
            assert_eq!(wrapped.len(), 5 + TAG_BYTES);
            let opened = unwrap(&secret_key, b"info", b"aad", &enc, &wrapped).expect("opens");
            assert_eq!(opened.as_slice(), b"a key");
            let other = secret(suite, 4);
            assert_eq!(unwrap(&other, b"info", b"aad", &enc, &wrapped), Err(SuiteError::Open));
            assert_eq!(unwrap(&secret_key, b"inf0", b"aad", &enc, &wrapped), Err(SuiteError::Open));
            assert_eq!(unwrap(&secret_key, b"info", b"aad2", &enc, &wrapped), Err(SuiteError::Open));
        }
    }

    #[test]
    fn every_bit_of_enc_and_of_the_wrapped_key_counts() {
        for suite in SUITES {
            let secret_key = secret(suite, 3);
            let (enc, wrapped) = wrap(secret_key.public(), b"", b"", &[7; 32], &[9; 64]).expect("wraps");
            for bit in 0..wrapped.len() * 8 {
                let mut wrapped = wrapped.clone();
                wrapped[bit / 8] ^= 1 << (bit % 8);
                assert!(unwrap(&secret_key, b"", b"", &enc, &wrapped).is_err(), "{suite} bit {bit}");
            }
            // ML-KEM never fails, it gives another secret (implicit rejection): the AEAD refuses.
            for byte in 0..enc.len() {
                let mut enc = enc.clone();
                enc[byte] ^= 1 << (byte % 8);
                assert!(unwrap(&secret_key, b"", b"", &enc, &wrapped).is_err(), "{suite} byte {byte}");
            }
        }
    }

    #[test]
    fn bit_255_of_enc_counts_although_x25519_ignores_it() {
        for suite in SUITES {
            let secret_key = secret(suite, 3);
            let (mut enc, wrapped) = wrap(secret_key.public(), b"", b"", &[7; 32], &[9; 64]).expect("wraps");
            *enc.last_mut().expect("not empty") ^= 0x80;
            assert_eq!(unwrap(&secret_key, b"", b"", &enc, &wrapped), Err(SuiteError::Open));
        }
    }

    #[test]
    fn lengths_are_exact() {
        for suite in SUITES {
            let secret_key = secret(suite, 3);
            let public = secret_key.public().bytes().to_vec();
            assert_eq!(HpkePublic::from_bytes(suite, &public).as_ref(), Ok(secret_key.public()));
            for wrong in [public.len() - 1, public.len() + 1, 0] {
                let mut public = public.clone();
                public.resize(wrong, 1);
                assert!(matches!(HpkePublic::from_bytes(suite, &public), Err(SuiteError::Length { .. })));
            }
            let (enc, wrapped) = wrap(secret_key.public(), b"", b"", &[7; 32], &[9; 64]).expect("wraps");
            assert!(matches!(unwrap(&secret_key, b"", b"", &enc[1..], &wrapped), Err(SuiteError::Length { .. })));
            assert_eq!(unwrap(&secret_key, b"", b"", &enc, &wrapped[1..]), Err(SuiteError::Open));
            assert_eq!(unwrap(&secret_key, b"", b"", &enc, &[&wrapped[..], &[0]].concat()), Err(SuiteError::Open));
            assert!(matches!(HpkeSecret::from_bytes(suite, &[1; 31]), Err(SuiteError::Length { .. })));
        }
    }

    #[test]
    fn the_seven_small_order_encodings_are_refused_everywhere() {
        for suite in SUITES {
            let secret_key = secret(suite, 3);
            let (enc, wrapped) = wrap(secret_key.public(), b"", b"", &[7; 32], &[9; 64]).expect("wraps");
            for small in SMALL_ORDER {
                for bit_255 in [0, 0x80] {
                    let mut part = small;
                    part[31] |= bit_255;
                    let shared = x25519_dalek::StaticSecret::from([5; 32]).diffie_hellman(&part.into());
                    assert!(!shared.was_contributory(), "the list is right");
                    let mut public = secret_key.public().bytes().to_vec();
                    let at = public.len() - 32;
                    public[at..].copy_from_slice(&part);
                    let refused = HpkePublic::from_bytes(suite, &public);
                    assert_eq!(refused, Err(SuiteError::SmallOrder { what: "the public key" }));
                    let mut enc = enc.clone();
                    let at = enc.len() - 32;
                    enc[at..].copy_from_slice(&part);
                    let refused = unwrap(&secret_key, b"", b"", &enc, &wrapped);
                    assert_eq!(refused, Err(SuiteError::SmallOrder { what: "the encapsulated key" }));
                }
            }
        }
        let mut distinct = SMALL_ORDER.to_vec();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 7);
    }

    #[test]
    fn an_ml_kem_key_with_a_coefficient_of_q_or_more_is_refused() {
        // Two 12-bit coefficients lie in three bytes (FIPS 203, ByteEncode12); 3329 is 0xd01.
        for (first, second) in
            [([0x01, 0x0d], false), ([0xff, 0x0f], false), ([0x10, 0xd0], true), ([0xf0, 0xff], true)]
        {
            let mut public = secret(Suite::XWing, 3).public().bytes().to_vec();
            let at = usize::from(second);
            public[at] = first[0];
            public[at + 1] = first[1];
            assert_eq!(HpkePublic::from_bytes(Suite::XWing, &public), Err(SuiteError::NotCanonical));
        }
    }

    #[test]
    fn a_wrap_draws_no_more_than_its_randomness() {
        let key = secret(Suite::XWing, 3);
        let Public::XWing(public) = &*key.public().key else { panic!("suite 2") };
        let mut drawn = Drawn { left: &[1; 63], ran_out: false };
        let _ = seal::<XWing>(public, b"", b"", b"", &mut drawn);
        assert!(drawn.ran_out);
        for (suite, used) in [(Suite::X25519, 32), (Suite::XWing, 64)] {
            let key = secret(suite, 3);
            let mut other = [1; 64];
            other[used - 1] ^= 1;
            let one = wrap(key.public(), b"", b"", b"", &[1; 64]).expect("wraps");
            assert_ne!(one, wrap(key.public(), b"", b"", b"", &other).expect("wraps"));
            other = [1; 64];
            other[used..].fill(2);
            assert_eq!(one, wrap(key.public(), b"", b"", b"", &other).expect("wraps"));
        }
    }

    #[test]
    fn secrets_do_not_show() {
        for suite in SUITES {
            let shown = format!("{:?}", secret(suite, 0xab));
            assert!(!shown.contains("abab") && !shown.contains("171"), "{shown}");
        }
    }
}
