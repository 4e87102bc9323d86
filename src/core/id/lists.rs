//! The small closed lists that appear on the wire. A number is never used for something else; one that this version does not
//! know is `None`, and refused or deferred by whoever read it.
//!
//! Owns numbers and words of each list. Must not know where they are written.

use std::fmt;
use std::str::FromStr;

use super::list::closed_list;
use super::{IdError, cut};

closed_list! {
    /// What a transaction does when its predecessor was rejected or expired (R9). Numbers are those of the private header and
    /// of manifests.
    #[derive(Default)]
    pub enum OnPredecessor: u8 {
        /// 1, the default: it is rejected too, so that nothing of its ordering key overtakes what was lost.
        #[default]
        Reject = 1 "reject",
        /// 2: it goes on without it. When that one expired, what that one waited for may still be undecided, and comes later.
        GoOn = 2 "go-on",
    }
}

closed_list! {
    /// When a transaction may follow its predecessor (R5). Numbers are those of the private header and of manifests.
    #[derive(Default)]
    pub enum Release: u8 {
        /// 1, the default: when the predecessor is decided.
        #[default]
        Committed = 1 "committed",
        /// 2: when every voter reported that it holds the predecessor.
        Complete = 2 "complete",
    }
}

closed_list! {
    /// The HPKE suite of a parcel (design, section 3). One parcel never mixes suites.
    pub enum Suite: u8 {
        /// 1: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305.
        X25519 = 1 "x25519",
        /// 2, the default: X-Wing (X25519 with ML-KEM-768), HKDF-SHA256, ChaCha20-Poly1305.
        XWing = 2 "x-wing",
    }
}

impl FromStr for Suite {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::Shape { what: "suite", given: cut(text, 128), shape: "x25519 or x-wing" };
        Self::from_word(text).ok_or_else(wrong)
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

closed_list! {
    /// Why consensus rejected a transaction. Numbers are those of the log and of receipts.
    pub enum Rejection: u8 {
        /// 1: the directory in force does not let this sender write here (R8).
        NotPermitted = 1 "not-permitted",
        /// 2: this (sender, transaction id) has a fate with another payload (R6).
        IdReuse = 2 "id-reuse",
        /// 3: its predecessor was rejected or expired, and it asked not to go on (R9).
        Predecessor = 3 "predecessor",
        /// 4: the expected version of its key is not the key's last position (R9).
        Conflict = 4 "conflict",
        /// 5: its deadline is later than its id's time plus the destination's longest life (R7).
        DeadlineTooFar = 5 "deadline-too-far",
        /// 6: its idempotency key was claimed by an earlier transaction (R6).
        Duplicate = 6 "duplicate",
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Committed => f.write_str("committed"),
            Self::Rejected(reason) => write!(f, "rejected({reason})"),
            Self::Expired => f.write_str("expired"),
        }
    }
}

closed_list! {
    /// Why a node refuses a parcel: a pure function of its bytes, the keys and the directory in force, so that every node comes
    /// to the same answer (R22). It decides no transaction. Numbers are those of the refusal notice and of the store.
    pub enum RefusalReason: u8 {
        /// 1: the shards of a stripe are no codeword (R2).
        Miscoded = 1 "miscoded",
        /// 2: what pads the last stripe is not zeros.
        Padding = 2 "padding",
        /// 3: its suite is below the destination's minimum, or not that of the destination's key.
        Suite = 3 "suite",
        /// 4: it is sealed to a key that the directory lists as retired.
        RetiredKey = 4 "retired-key",
        /// 5: its expiry is later than its id's time plus the destination's longest life.
        ExpiryTooFar = 5 "expiry-too-far",
        /// 6: the envelope has not the shape of an envelope, or not exactly the wraps that the core names.
        Envelope = 6 "envelope",
        /// 7: the wrapped key does not open, or does not match the commitment.
        Unopenable = 7 "unopenable",
        /// 8: a transaction does not open: a chunk fails its authentication, is missing or is out of order.
        Stream = 8 "stream",
        /// 9: a private header or its place in the parcel is malformed, a limit is passed, or a deadline is later than the
        /// parcel's expiry.
        Malformed = 9 "malformed",
        /// 10: a payload does not decompress to what its header says.
        Compression = 10 "compression",
    }
}
