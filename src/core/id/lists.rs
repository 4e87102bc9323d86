//! The small closed lists that appear on the wire. A number is never used for something else; one that this version does not
//! know is `None`, and refused or deferred by whoever read it.
//!
//! Owns numbers and words of each list. Must not know where they are written.

use std::fmt;
use std::str::FromStr;

use super::{IdError, cut};

/// What a transaction does when its predecessor was rejected or expired (R9). Numbers are those of the private header and
/// of manifests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum OnPredecessor {
    /// 1, the default: it is rejected too, so that nothing of its ordering key overtakes what was lost.
    #[default]
    Reject = 1,
    /// 2: it goes on without it.
    GoOn = 2,
}

impl OnPredecessor {
    /// The number on the wire.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// From the number on the wire; `None` for one that this version does not know.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Reject),
            2 => Some(Self::GoOn),
            _ => None,
        }
    }
}

/// When a transaction may follow its predecessor (R5). Numbers are those of the private header and of manifests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Release {
    /// 1, the default: when the predecessor is decided.
    #[default]
    Committed = 1,
    /// 2: when every voter reported that it holds the predecessor.
    Complete = 2,
}

impl Release {
    /// The number on the wire.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// From the number on the wire; `None` for one that this version does not know.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Committed),
            2 => Some(Self::Complete),
            _ => None,
        }
    }
}

/// The HPKE suite of a parcel (design, section 3). One parcel never mixes suites.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum Suite {
    /// 1: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305.
    #[serde(rename = "x25519")]
    X25519 = 1,
    /// 2, the default: X-Wing (X25519 with ML-KEM-768), HKDF-SHA256, ChaCha20-Poly1305.
    #[serde(rename = "x-wing")]
    XWing = 2,
}

impl Suite {
    /// The number on the wire.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// From the number on the wire; `None` for one that this version does not know.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::X25519),
            2 => Some(Self::XWing),
            _ => None,
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::X25519 => "x25519",
            Self::XWing => "x-wing",
        })
    }
}

impl FromStr for Suite {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        match text {
            "x25519" => Ok(Self::X25519),
            "x-wing" => Ok(Self::XWing),
            _ => Err(IdError::Shape { what: "suite", given: cut(text, 128), shape: "x25519 or x-wing" }),
        }
    }
}

/// How a transaction ends, by consensus. *Expired* is no row of the log: it follows from group time (R7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It has its place and its effect; it can no longer change.
    Committed,
    /// Consensus refused it; the reason is from a closed list.
    Rejected(Rejection),
    /// Group time passed its deadline before it had another fate.
    Expired,
}

/// Why consensus rejected a transaction. Numbers are those of the log and of receipts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Rejection {
    /// 1: the directory in force does not let this sender write here (R8).
    NotPermitted = 1,
    /// 2: this (sender, transaction id) has a fate with another payload (R6).
    IdReuse = 2,
    /// 3: its predecessor was rejected or expired, and it asked not to go on (R9).
    Predecessor = 3,
    /// 4: the expected version of its key is not the key's last position (R9).
    Conflict = 4,
    /// 5: its deadline is later than its id's time plus the destination's longest life (R7).
    DeadlineTooFar = 5,
    /// 6: its idempotency key was claimed by an earlier transaction (R6).
    Duplicate = 6,
}

impl Rejection {
    /// From the number in the log; `None` for one that this version does not know.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::NotPermitted,
            2 => Self::IdReuse,
            3 => Self::Predecessor,
            4 => Self::Conflict,
            5 => Self::DeadlineTooFar,
            6 => Self::Duplicate,
            _ => return None,
        })
    }

    /// The word that people, logs and metrics see.
    pub fn word(self) -> &'static str {
        match self {
            Self::NotPermitted => "not-permitted",
            Self::IdReuse => "id-reuse",
            Self::Predecessor => "predecessor",
            Self::Conflict => "conflict",
            Self::DeadlineTooFar => "deadline-too-far",
            Self::Duplicate => "duplicate",
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Committed => f.write_str("committed"),
            Self::Rejected(reason) => write!(f, "rejected({})", reason.word()),
            Self::Expired => f.write_str("expired"),
        }
    }
}

/// Why a node refuses a parcel: a pure function of its bytes, the keys and the directory in force, so that every node comes
/// to the same answer (R22). It decides no transaction. Numbers are those of the refusal notice and of the store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum RefusalReason {
    /// 1: the shards of a stripe are no codeword (R2).
    Miscoded = 1,
    /// 2: what pads the last stripe is not zeros.
    Padding = 2,
    /// 3: its suite is below the destination's minimum, or not that of the destination's key.
    Suite = 3,
    /// 4: it is sealed to a key that the directory lists as retired.
    RetiredKey = 4,
    /// 5: its expiry is later than its id's time plus the destination's longest life.
    ExpiryTooFar = 5,
    /// 6: the envelope has not the shape of an envelope, or not exactly the wraps that the core names.
    Envelope = 6,
    /// 7: the wrapped key does not open, or does not match the commitment.
    Unopenable = 7,
    /// 8: a transaction does not open: a chunk fails its authentication, is missing or is out of order.
    Stream = 8,
    /// 9: a private header or its place in the parcel is malformed, or a limit is passed.
    Malformed = 9,
    /// 10: a payload does not decompress to what its header says.
    Compression = 10,
}

impl RefusalReason {
    /// All of them, by number.
    pub const ALL: &[Self] = &[
        Self::Miscoded,
        Self::Padding,
        Self::Suite,
        Self::RetiredKey,
        Self::ExpiryTooFar,
        Self::Envelope,
        Self::Unopenable,
        Self::Stream,
        Self::Malformed,
        Self::Compression,
    ];

    /// The number in notices and in the store.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// From the number; `None` for one that this version does not know.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.number() == number)
    }

    /// The word that people, logs and metrics see.
    pub fn word(self) -> &'static str {
        match self {
            Self::Miscoded => "miscoded",
            Self::Padding => "padding",
            Self::Suite => "suite",
            Self::RetiredKey => "retired-key",
            Self::ExpiryTooFar => "expiry-too-far",
            Self::Envelope => "envelope",
            Self::Unopenable => "unopenable",
            Self::Stream => "stream",
            Self::Malformed => "malformed",
            Self::Compression => "compression",
        }
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}
