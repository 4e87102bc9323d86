//! The public half of a key as a small TOML file, for the way from its holder to the operator.
//!
//! ```text
//! kind = "sender"
//! signing = "3b6a27bc..."
//! ```
//!
//! Owns that file. Must not hold secrets.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::{KeyError, KeyRing, Kind, NodeKeys, OperatorKey, ReaderKey, SecretFile, SenderKey};
use crate::core::directory::{DestinationKey, key_id};
use crate::core::id::{DestinationName, EnvironmentId, KeyId, Suite, VerifyingKeyBytes};

/// The public half of any holder's key. Reading does not check keys: the directory does, when they enter it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PublicKeys {
    /// The operator's.
    Operator {
        /// Signs the directory.
        signing: VerifyingKeyBytes,
    },
    /// A sender's.
    Sender {
        /// Signs its stripe headers.
        signing: VerifyingKeyBytes,
    },
    /// A reader's.
    Reader {
        /// Its signing and TLS key.
        signing: VerifyingKeyBytes,
        /// HPKE public key of suite 2.
        #[serde(with = "digits")]
        hpke: Bytes,
    },
    /// A node's.
    Node {
        /// Signs receipts and notices.
        signing: VerifyingKeyBytes,
        /// The key of its TLS certificate.
        tls: VerifyingKeyBytes,
        /// HPKE public key of suite 2.
        #[serde(with = "digits")]
        hpke: Bytes,
    },
    /// A destination's.
    Destination {
        /// The environment that the ring was made for.
        environment: EnvironmentId,
        /// The destination that the ring was made for.
        destination: DestinationName,
        /// One for each epoch and suite.
        key: Vec<PublicKey>,
    },
}

/// A destination's public key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicKey {
    /// Follows from suite and public key.
    pub id: KeyId,
    /// Its suite.
    pub suite: Suite,
    /// The key.
    #[serde(with = "digits")]
    pub public: Bytes,
}

impl PublicKeys {
    /// Whose it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Operator { .. } => Kind::Operator,
            Self::Sender { .. } => Kind::Sender,
            Self::Reader { .. } => Kind::Reader,
            Self::Node { .. } => Kind::Node,
            Self::Destination { .. } => Kind::Destination,
        }
    }

    /// The public half of a secret key's text, whatever its kind; `origin` goes into errors. Errors: [`KeyError::Text`],
    /// [`KeyError::Seal`].
    pub fn of_secret(text: &str, origin: &str) -> Result<Self, KeyError> {
        let unknown = || KeyError::text(origin, "no key file: expected a line that begins with SEALCAST-");
        Ok(match Kind::of(text).ok_or_else(unknown)? {
            Kind::Operator => Self::from(&OperatorKey::from_text(text, origin)?),
            Kind::Sender => Self::from(&SenderKey::from_text(text, origin)?),
            Kind::Reader => Self::from(&ReaderKey::from_text(text, origin)?),
            Kind::Node => Self::from(&NodeKeys::from_text(text, origin)?),
            Kind::Destination => Self::from(&KeyRing::from_text(text, origin)?),
        })
    }

    /// Reads the TOML. Errors: [`KeyError::Text`].
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, KeyError> {
        let keys: Self = toml::from_str(text).map_err(|error| KeyError::text(origin, error.to_string().trim_end()))?;
        if let Self::Destination { key, .. } = &keys {
            let wrong = key.iter().find(|key| key_id(key.suite, &key.public) != key.id);
            if let Some(key) = wrong {
                return Err(KeyError::text(origin, format!("key {}: the id does not match the key", key.id)));
            }
        }
        Ok(keys)
    }

    /// Writes the TOML. Errors: [`KeyError::Text`], which would be a mistake of this version.
    pub fn to_toml(&self) -> Result<String, KeyError> {
        toml::to_string(self).map_err(|error| KeyError::text(self.kind().word(), error.to_string()))
    }
}

impl From<&OperatorKey> for PublicKeys {
    fn from(key: &OperatorKey) -> Self {
        Self::Operator { signing: key.signing().public().bytes() }
    }
}

impl From<&SenderKey> for PublicKeys {
    fn from(key: &SenderKey) -> Self {
        Self::Sender { signing: key.signing().public().bytes() }
    }
}

impl From<&ReaderKey> for PublicKeys {
    fn from(key: &ReaderKey) -> Self {
        let hpke = Bytes::copy_from_slice(key.hpke().public().bytes());
        Self::Reader { signing: key.signing().public().bytes(), hpke }
    }
}

impl From<&NodeKeys> for PublicKeys {
    fn from(keys: &NodeKeys) -> Self {
        Self::Node {
            signing: keys.signing().public().bytes(),
            tls: keys.tls().public().bytes(),
            hpke: Bytes::copy_from_slice(keys.hpke().public().bytes()),
        }
    }
}

impl From<&KeyRing> for PublicKeys {
    fn from(ring: &KeyRing) -> Self {
        let key = ring.public_keys().into_iter().map(PublicKey::from).collect();
        Self::Destination { environment: ring.environment(), destination: ring.destination().clone(), key }
    }
}

impl From<DestinationKey> for PublicKey {
    fn from(key: DestinationKey) -> Self {
        Self { id: key.id, suite: key.suite, public: key.public }
    }
}

/// Bytes as lower-case hexadecimal digits.
mod digits {
    use super::*;

    pub(super) fn serialize<S: serde::Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&HEXLOWER.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(from)?;
        HEXLOWER.decode(text.as_bytes()).map(Bytes::from).map_err(serde::de::Error::custom)
    }
}
