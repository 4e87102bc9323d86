//! Names of things: identifiers, time, positions, tickets, and the small closed lists that appear on the wire.
//!
//! Owns how each is written and read by people. Must not touch bytes of messages (that is [`super::wire`]), keys or
//! the directory.

mod list;
mod lists;

pub(crate) use list::closed_list;
pub use lists::{Fate, OnPredecessor, RefusalReason, Rejection, Release, Suite};

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use uuid::Uuid;

use super::limits;

/// Why a text is not the identifier that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A name with a length or a character that names do not have.
    #[error("{what} {given:?}: a name has 1 to 63 of a-z, 0-9 and -, and starts and ends with a letter or digit")]
    Name {
        /// Which kind of name.
        what: &'static str,
        /// What was given, cut to 64 characters.
        given: String,
    },
    /// A UUID that cannot be read or is of another version.
    #[error("{what} {given:?}: expected a UUID of version {version}")]
    Uuid {
        /// Which kind of identifier.
        what: &'static str,
        /// What was given, cut to 64 characters.
        given: String,
        /// The version that it must have.
        version: usize,
    },
    /// A position or ticket that does not have its shape.
    #[error("{what} {given:?}: expected {shape}")]
    Shape {
        /// Which kind of text.
        what: &'static str,
        /// What was given, cut to 128 characters.
        given: String,
        /// What it looks like.
        shape: &'static str,
    },
}

impl IdError {
    /// Whether the same text can be accepted later: never.
    pub fn retryable(&self) -> bool {
        false
    }
}

fn cut(given: &str, most: usize) -> String {
    given.chars().take(most).collect()
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        ///
        /// 1 to 63 of `a-z`, `0-9` and `-`, starting and ending with a letter or digit. Cheap to clone.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks and keeps a name. Errors: [`IdError::Name`].
            pub fn new(name: &str) -> Result<Self, IdError> {
                let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
                let bytes = name.as_bytes();
                let fits = (1..=limits::NAME_BYTES).contains(&bytes.len())
                    && bytes.iter().all(|&b| inner(b) || b == b'-')
                    && bytes.first().is_some_and(|&b| inner(b))
                    && bytes.last().is_some_and(|&b| inner(b));
                if fits {
                    Ok(Self(name.into()))
                } else {
                    Err(IdError::Name { what: $what, given: cut(name, 64) })
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(&text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.as_ref().to_owned()
            }
        }
    };
}

name!(
    /// A destination: a named group of nodes that hold the same data.
    DestinationName, "destination"
);
name!(
    /// A service that submits.
    SenderName, "sender"
);
name!(
    /// A receiving node.
    NodeName, "node"
);
name!(
    /// Who may read committed data.
    ReaderName, "reader"
);
name!(
    /// An environment: one directory, its keys and its topics.
    EnvironmentName, "environment"
);

macro_rules! uuid_id {
    ($(#[$doc:meta])* $type:ident, $what:literal, $version:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Uuid);

        impl $type {
            /// Takes 16 bytes from the wire. Errors: [`IdError::Uuid`] for another version or variant.
            pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, IdError> {
                let uuid = Uuid::from_bytes(bytes);
                if uuid.get_version_num() == $version && uuid.get_variant() == uuid::Variant::RFC4122 {
                    Ok(Self(uuid))
                } else {
                    Err(IdError::Uuid { what: $what, given: uuid.to_string(), version: $version })
                }
            }

            /// The 16 bytes of the wire.
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }

            /// As the `uuid` crate's type.
            pub fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let uuid = Uuid::parse_str(text)
                    .map_err(|_| IdError::Uuid { what: $what, given: cut(text, 64), version: $version })?;
                Self::from_bytes(uuid.into_bytes())
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

uuid_id!(
    /// The application's unit, the unit of fate: a UUIDv7 whose time is when it was submitted.
    TransactionId, "transaction", 7
);
uuid_id!(
    /// The unit of sealing and travelling: a UUIDv7.
    ParcelId, "parcel", 7
);
uuid_id!(
    /// One Kafka record: a UUIDv8 that derives from its stripe header's digest and its shard index (R1).
    SegmentId, "segment", 8
);

macro_rules! version_seven {
    ($type:ident) => {
        impl $type {
            /// Makes an id of this time with 10 random bytes (RFC 9562, section 5.7).
            pub fn from_parts(time: Time, random: [u8; 10]) -> Self {
                Self(uuid::Builder::from_unix_timestamp_millis(time.0, &random).into_uuid())
            }

            /// The time inside, in milliseconds since 1970.
            pub fn time(self) -> Time {
                let bytes = self.0.as_bytes();
                Time(bytes.iter().take(6).fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
            }
        }
    };
}
version_seven!(TransactionId);
version_seven!(ParcelId);

impl SegmentId {
    /// Makes the id from 16 bytes of a hash: all but the six bits of version and variant (RFC 9562, section 5.8).
    pub fn from_hash(hash: [u8; 16]) -> Self {
        Self(uuid::Builder::from_custom_bytes(hash).into_uuid())
    }
}

macro_rules! opaque {
    ($(#[$doc:meta])* $type:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(pub [u8; $bytes]);

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let shape = concat!(stringify!($bytes), " bytes in lower-case hexadecimal");
                let wrong = || IdError::Shape { what: stringify!($type), given: cut(text, 128), shape };
                let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| wrong())?;
                Ok(Self(bytes.try_into().map_err(|_| wrong())?))
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

opaque!(
    /// The environment on the wire: 16 random bytes, drawn when it is made, listed in its directory.
    EnvironmentId, 16
);
opaque!(
    /// A destination on the wire: the first 16 bytes of BLAKE3(L("destination"), environment, u8 name length, name, u32 shard).
    DestinationTag, 16
);
opaque!(
    /// An HPKE public key on the wire: the first 16 bytes of BLAKE3(L("key-id"), u8 suite, public key).
    KeyId, 16
);
opaque!(
    /// A BLAKE3 digest. The digest of a parcel's last stripe header is D: what the parcel *is*.
    Digest, 32
);
opaque!(
    /// An Ed25519 public key, checked canonical and torsion-free when a directory is loaded.
    VerifyingKeyBytes, 32
);
opaque!(
    /// An ordering key as nodes index it: the first 16 bytes of an HMAC under the destination's index secret.
    KeyTag, 16
);
opaque!(
    /// An idempotency key as nodes index it: the first 16 bytes of an HMAC under the destination's index secret.
    IdempotencyTag, 16
);
opaque!(
    /// HMAC-SHA256 of a payload under a key that only its sender has: equal payloads of one sender have equal tags (R6).
    PayloadTag, 32
);
opaque!(
    /// One start of a sender's client: random, never restored.
    Epoch, 8
);
opaque!(
    /// One life of a node's store: random, drawn when the store is made (R10, R12).
    Incarnation, 16
);

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, serde::Serialize, serde::Deserialize)]
pub struct Time(pub u64);

impl Time {
    /// This time and a duration later; stays at the end of time rather than wrapping.
    pub fn after(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero when it is not later.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Where a transaction was committed: the entry's index in the group's log and the number within the entry.
/// Ordered as the log is. Written `INDEX.NUMBER`, for example `17.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Position {
    /// Index of the entry in the group's log; the first entry has 1, so 0.0 stands before everything.
    pub index: u64,
    /// Number of the transaction within its entry, from 0.
    pub number: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.number)
    }
}

impl FromStr for Position {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong =
            || IdError::Shape { what: "position", given: cut(text, 128), shape: "INDEX.NUMBER, for example 17.0" };
        let (index, number) = text.split_once('.').ok_or_else(wrong)?;
        Ok(Self { index: index.parse().map_err(|_| wrong())?, number: number.parse().map_err(|_| wrong())? })
    }
}

impl serde::Serialize for Position {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Position {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The transaction that claimed an idempotency key first (R6): what a duplicate's receipt names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
pub struct First {
    /// Its id.
    pub transaction: TransactionId,
    /// Where it was committed.
    pub position: Position,
}

/// What a handle prints, what a successor names, what *expired* is about.
/// Written `DESTINATION/TRANSACTION/DEADLINE`, the deadline in milliseconds since 1970.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket {
    /// Where it goes.
    pub destination: DestinationName,
    /// Which transaction.
    pub transaction: TransactionId,
    /// Past this group time it expires, unless it has a fate.
    pub deadline: Time,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.destination, self.transaction, self.deadline.0)
    }
}

impl FromStr for Ticket {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong =
            || IdError::Shape { what: "ticket", given: cut(text, 128), shape: "DESTINATION/TRANSACTION/DEADLINE" };
        let mut parts = text.split('/');
        let (Some(destination), Some(transaction), Some(deadline), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        Ok(Self {
            destination: destination.parse()?,
            transaction: transaction.parse()?,
            deadline: Time(deadline.parse().map_err(|_| wrong())?),
        })
    }
}

impl serde::Serialize for Ticket {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Ticket {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "orders", "orders-eu-1", &"x".repeat(63)] {
            assert!(DestinationName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "é", &"x".repeat(64)] {
            assert!(DestinationName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_keep_their_time_and_version() {
        let id = TransactionId::from_parts(Time(0x0193_4567_89ab), [0xff; 10]);
        assert_eq!(id.time(), Time(0x0193_4567_89ab));
        assert_eq!(TransactionId::from_bytes(id.to_bytes()), Ok(id));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(SegmentId::from_bytes(id.to_bytes()).is_err());
        assert!(ParcelId::from_bytes([0; 16]).is_err());
    }

    #[test]
    fn tickets_and_positions_read_what_they_write() {
        let ticket = Ticket {
            destination: DestinationName::new("orders").expect("a name"),
            transaction: TransactionId::from_parts(Time(1), [7; 10]),
            deadline: Time(99),
        };
        assert_eq!(ticket.to_string().parse(), Ok(ticket));
        let position = Position { index: 17, number: 3 };
        assert_eq!(position.to_string().parse(), Ok(position));
        for bad in ["", "1", "1.", "a.b", "1.2.3"] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
    }
}
