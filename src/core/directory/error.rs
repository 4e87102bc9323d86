//! Why a directory or a key of it is refused: always with the field, and how to mend it.

use super::write_time;
use crate::core::id::{EnvironmentId, Suite, Time};
use crate::core::sign::SignError;

/// Why a directory is refused: always with the field, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// More bytes than a directory may have.
    #[error("the directory has {bytes} bytes, at most {most} are allowed: split the environment")]
    TooLong {
        /// How many it has.
        bytes: usize,
        /// How many it may have.
        most: usize,
    },
    /// The first line is not that of a signed directory.
    #[error(
        "first line: expected \"sealcast-directory v1 ed25519\" and 128 hexadecimal digits: \
         sign the draft with `sealcast directory sign`"
    )]
    FirstLine,
    /// The operator's key did not sign these bytes.
    #[error(
        "signature: it is not the operator's over these bytes: get the directory again from the operator, \
         or compare the configured operator key with `sealcast keys show operator.key`"
    )]
    Signature,
    /// It is no TOML, or a field is unknown, missing or of the wrong shape; the message says which and where.
    #[error(
        "{message}: mend or remove that field (a field of a later version needs a later Sealcast), then sign again"
    )]
    Syntax {
        /// Line, column and field.
        message: String,
    },
    /// The version is lower than the pinned minimum, or not above the one in force.
    #[error("version: {version} is below {minimum}, the lowest that is accepted here: get the newest directory")]
    OldVersion {
        /// What it has.
        version: u64,
        /// What it must have at least.
        minimum: u64,
    },
    /// A successor belongs to another environment.
    #[error("environment: {given} is not {expected}: this is another environment's directory")]
    OtherEnvironment {
        /// What it names.
        given: EnvironmentId,
        /// What it should name.
        expected: EnvironmentId,
    },
    /// What is to take effect has ended already.
    #[error("valid_until: it ended at {}: sign a directory with a later one", write_time(*.valid_until))]
    Ended {
        /// When.
        valid_until: Time,
    },
    /// Two entries share what must be their own.
    #[error("{field}: {value} is already that of {first}: give each its own")]
    Duplicate {
        /// The field that repeats.
        field: String,
        /// What repeats, keys cut short.
        value: String,
        /// Who has it first.
        first: String,
    },
    /// A signing or TLS key that is weak or no canonical point.
    #[error("{field}: {cause}: make a new key with `sealcast keys generate`")]
    WeakKey {
        /// The field.
        field: String,
        /// What is wrong with it.
        cause: SignError,
    },
    /// An HPKE public key of the wrong length, or with an X25519 part of small order.
    #[error("{field}: {problem}: make a new key with `sealcast keys generate`")]
    WeakKemKey {
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: KemKeyError,
    },
    /// A field that is not what follows from the others.
    #[error("{field}: {given} does not match its entry, it should be {expected}")]
    Mismatch {
        /// The field.
        field: String,
        /// What it holds.
        given: String,
        /// What it should hold.
        expected: String,
    },
    /// A name that no entry has.
    #[error("{field}: there is no {kind} {name:?}: add it, or remove the name here")]
    UnknownName {
        /// The field.
        field: String,
        /// `node` or `destination`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A value outside what is allowed.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field.
        field: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl DirectoryError {
    /// Whether the same bytes can be accepted later: never, by the same version of Sealcast.
    pub fn retryable(&self) -> bool {
        false
    }
}

/// Why an HPKE public key is refused by its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KemKeyError {
    /// The length is not that of the suite.
    #[error("an HPKE key of suite {suite} has {expected} bytes, this has {given}")]
    Length {
        /// The suite.
        suite: Suite,
        /// How many bytes such a key has.
        expected: usize,
        /// How many there are.
        given: usize,
    },
    /// The X25519 part is one of the encodings of small order: the shared secret would be known to all.
    #[error("the HPKE key is weak: its X25519 part has small order")]
    SmallOrder,
    /// A coefficient of the ML-KEM part is 3329 or more: the same key written a second way.
    #[error("the HPKE key's ML-KEM part is not canonical: a coefficient is 3329 or more")]
    NotCanonical,
}

impl KemKeyError {
    /// Whether the same key can be accepted later: never.
    pub fn retryable(&self) -> bool {
        false
    }
}
