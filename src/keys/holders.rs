//! What each holder keeps secret, and the public part that goes into a directory.
//!
//! Owns making, reading and naming these keys. Must not use them.

use std::fmt;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::{KeyError, Kind, SecretFile};
use crate::core::directory::{NodeEntry, ReaderEntry, SenderEntry};
use crate::core::id::{DestinationName, NodeName, ReaderName, SenderName, Suite};
use crate::core::seal::suite::HpkeSecret;
use crate::core::sign::SecretKey;
use crate::core::wire::Reader;
use crate::seams::Randomness;

pub(super) fn random<const N: usize>(randomness: &dyn Randomness) -> Result<Zeroizing<[u8; N]>, KeyError> {
    let mut bytes = Zeroizing::new([0; N]);
    randomness.fill(bytes.as_mut_slice())?;
    Ok(bytes)
}

pub(super) fn new_hpke(suite: Suite, randomness: &dyn Randomness) -> Result<HpkeSecret, KeyError> {
    let seed = random::<32>(randomness)?;
    read_hpke(suite, &seed, "a new key")
}

pub(super) fn read_hpke(suite: Suite, secret: &[u8; 32], origin: &str) -> Result<HpkeSecret, KeyError> {
    HpkeSecret::from_bytes(suite, secret).map_err(|cause| KeyError::Seal { origin: origin.to_owned(), cause })
}

fn new_signing(randomness: &dyn Randomness) -> Result<SecretKey, KeyError> {
    Ok(SecretKey::from_seed(&*random::<32>(randomness)?))
}

/// Takes a key file's bytes apart into secrets of 32 bytes.
fn secrets<const N: usize>(bytes: &[u8], origin: &str) -> Result<[Zeroizing<[u8; 32]>; N], KeyError> {
    let mut reader = Reader::new(bytes);
    let mut out = [(); N].map(|()| Zeroizing::new([0; 32]));
    for secret in &mut out {
        *secret = Zeroizing::new(reader.array("secret").map_err(|error| KeyError::text(origin, error.to_string()))?);
    }
    reader.finish("secrets").map_err(|error| KeyError::text(origin, error.to_string()))?;
    Ok(out)
}

fn joined(secrets: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(secrets.iter().map(|secret| secret.len()).sum()));
    for secret in secrets {
        bytes.extend_from_slice(secret);
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// The operator's key: it signs the directory.
#[derive(Clone)]
pub struct OperatorKey(SecretKey);

impl OperatorKey {
    /// Makes a key. Errors: [`KeyError::Randomness`].
    pub fn generate(randomness: &dyn Randomness) -> Result<Self, KeyError> {
        new_signing(randomness).map(Self)
    }

    /// The signing key.
    pub fn signing(&self) -> &SecretKey {
        &self.0
    }
}

impl SecretFile for OperatorKey {
    const KIND: Kind = Kind::Operator;

    fn to_secret_bytes(&self) -> Zeroizing<Vec<u8>> {
        joined(&[self.0.seed().as_slice()])
    }

    fn from_secret_bytes(bytes: &[u8], origin: &str) -> Result<Self, KeyError> {
        let [seed] = secrets(bytes, origin)?;
        Ok(Self(SecretKey::from_seed(&seed)))
    }

    fn public_lines(&self) -> Vec<String> {
        vec![format!("signing: {}", self.0.public().bytes())]
    }
}

/// A sender's key: it signs stripe headers and queries, and payload tags derive from it.
#[derive(Clone)]
pub struct SenderKey(SecretKey);

impl SenderKey {
    /// Makes a key. Errors: [`KeyError::Randomness`].
    pub fn generate(randomness: &dyn Randomness) -> Result<Self, KeyError> {
        new_signing(randomness).map(Self)
    }

    /// The signing key, from which the sender's other secrets derive ([`SecretKey::derive`]).
    pub fn signing(&self) -> &SecretKey {
        &self.0
    }

    /// Its entry in a directory.
    pub fn entry(&self, name: SenderName, destinations: impl IntoIterator<Item = DestinationName>) -> SenderEntry {
        SenderEntry { name, signing: self.0.public(), destinations: destinations.into_iter().collect() }
    }
}

impl SecretFile for SenderKey {
    const KIND: Kind = Kind::Sender;

    fn to_secret_bytes(&self) -> Zeroizing<Vec<u8>> {
        joined(&[self.0.seed().as_slice()])
    }

    fn from_secret_bytes(bytes: &[u8], origin: &str) -> Result<Self, KeyError> {
        let [seed] = secrets(bytes, origin)?;
        Ok(Self(SecretKey::from_seed(&seed)))
    }

    fn public_lines(&self) -> Vec<String> {
        vec![format!("signing: {}", self.0.public().bytes())]
    }
}

/// A reader's keys: signing, which is its TLS key too, and HPKE (suite 2), to which grants are sealed.
#[derive(Clone)]
pub struct ReaderKey {
    signing: SecretKey,
    hpke: HpkeSecret,
}

impl ReaderKey {
    /// Makes keys. Errors: [`KeyError::Randomness`].
    pub fn generate(randomness: &dyn Randomness) -> Result<Self, KeyError> {
        Ok(Self { signing: new_signing(randomness)?, hpke: new_hpke(Suite::XWing, randomness)? })
    }

    /// The signing key, also that of its TLS certificate.
    pub fn signing(&self) -> &SecretKey {
        &self.signing
    }

    /// The HPKE secret (suite 2).
    pub fn hpke(&self) -> &HpkeSecret {
        &self.hpke
    }

    /// Its entry in a directory.
    pub fn entry(&self, name: ReaderName, destinations: impl IntoIterator<Item = DestinationName>) -> ReaderEntry {
        ReaderEntry {
            name,
            signing: self.signing.public(),
            hpke: Bytes::copy_from_slice(self.hpke.public().bytes()),
            destinations: destinations.into_iter().collect(),
        }
    }
}

impl SecretFile for ReaderKey {
    const KIND: Kind = Kind::Reader;

    fn to_secret_bytes(&self) -> Zeroizing<Vec<u8>> {
        joined(&[self.signing.seed().as_slice(), self.hpke.bytes().as_slice()])
    }

    fn from_secret_bytes(bytes: &[u8], origin: &str) -> Result<Self, KeyError> {
        let [signing, hpke] = secrets(bytes, origin)?;
        Ok(Self { signing: SecretKey::from_seed(&signing), hpke: read_hpke(Suite::XWing, &hpke, origin)? })
    }

    fn public_lines(&self) -> Vec<String> {
        vec![
            format!("signing: {}", self.signing.public().bytes()),
            format!("hpke: {}", hex(self.hpke.public().bytes())),
        ]
    }
}

/// A node's keys.
#[derive(Clone)]
pub struct NodeKeys {
    signing: SecretKey,
    tls: SecretKey,
    hpke: HpkeSecret,
    storage: Zeroizing<[u8; 32]>,
}

impl NodeKeys {
    /// Makes keys. Errors: [`KeyError::Randomness`].
    pub fn generate(randomness: &dyn Randomness) -> Result<Self, KeyError> {
        Ok(Self {
            signing: new_signing(randomness)?,
            tls: new_signing(randomness)?,
            hpke: new_hpke(Suite::XWing, randomness)?,
            storage: random(randomness)?,
        })
    }

    /// Signs receipts, refusals and notices.
    pub fn signing(&self) -> &SecretKey {
        &self.signing
    }

    /// The key of its TLS certificate.
    pub fn tls(&self) -> &SecretKey {
        &self.tls
    }

    /// The HPKE secret (suite 2): key rings and grants are sealed to it.
    pub fn hpke(&self) -> &HpkeSecret {
        &self.hpke
    }

    /// Wraps transaction keys at rest.
    pub fn storage(&self) -> &[u8; 32] {
        &self.storage
    }

    /// Its entry in a directory.
    pub fn entry(&self, name: NodeName, address: String) -> NodeEntry {
        NodeEntry {
            name,
            address,
            signing: self.signing.public(),
            tls: self.tls.public().bytes(),
            hpke: Bytes::copy_from_slice(self.hpke.public().bytes()),
        }
    }
}

impl SecretFile for NodeKeys {
    const KIND: Kind = Kind::Node;

    fn to_secret_bytes(&self) -> Zeroizing<Vec<u8>> {
        let (signing, tls, hpke) = (self.signing.seed(), self.tls.seed(), self.hpke.bytes());
        joined(&[signing.as_slice(), tls.as_slice(), hpke.as_slice(), self.storage.as_slice()])
    }

    fn from_secret_bytes(bytes: &[u8], origin: &str) -> Result<Self, KeyError> {
        let [signing, tls, hpke, storage] = secrets(bytes, origin)?;
        Ok(Self {
            signing: SecretKey::from_seed(&signing),
            tls: SecretKey::from_seed(&tls),
            hpke: read_hpke(Suite::XWing, &hpke, origin)?,
            storage,
        })
    }

    fn public_lines(&self) -> Vec<String> {
        vec![
            format!("signing: {}", self.signing.public().bytes()),
            format!("tls: {}", self.tls.public().bytes()),
            format!("hpke: {}", hex(self.hpke.public().bytes())),
        ]
    }
}

macro_rules! shows_its_public_key {
    ($($type:ident),*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($type), "(of {})"), self.signing().public().bytes())
            }
        }
    )*};
}
shows_its_public_key!(OperatorKey, SenderKey, ReaderKey, NodeKeys);
