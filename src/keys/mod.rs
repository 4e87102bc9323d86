//! Secret keys: files, key rings, and what a holder can do with them (design, section 3.7).
//!
//! | holder | type | secrets, 32 bytes each |
//! |---|---|---|
//! | operator | [`OperatorKey`] | signing |
//! | sender | [`SenderKey`] | signing |
//! | reader | [`ReaderKey`] | signing (its TLS key too), HPKE |
//! | node | [`NodeKeys`] | signing, TLS, HPKE, storage |
//! | destination | [`KeyRing`] | index, and one HPKE secret for each epoch and suite |
//!
//! Owns key files (text, created 0600, refused when others can read them), key rings sealed to nodes, and the public
//! halves that go into a directory. Must not show a secret in Debug, logs or errors, and must not decide who may do what.
//!
//! Files are created through the disk seam; they are read with `std::fs`, because the permissions must be those of the
//! descriptor that is read.

mod file;
mod holders;
mod public;
mod ring;
#[cfg(test)]
mod tests;
mod text;

pub use file::read_secret_text;
pub use holders::{NodeKeys, OperatorKey, ReaderKey, SenderKey};
pub use public::PublicKeys;
pub use ring::KeyRing;
pub use text::{Kind, SecretFile};

use std::path::PathBuf;

use crate::core::directory::DirectoryError;
use crate::core::seal::suite::SuiteError;
use crate::seams::RandomnessError;

/// Why a key cannot be read, written, made or used. No message holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file system refused.
    #[error("{}: {verb}: {cause}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// `open`, `read`, `create` and so on.
        verb: &'static str,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Others than the owner may read the file.
    #[error("{}: others can read this secret (mode {mode:03o}): chmod go-rwx it, and make a new key if others may have read it", path.display())]
    OpenToOthers {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is no regular file, or longer than a key file can be.
    #[error("{}: no key file: expected a regular file of at most {most} bytes", path.display())]
    NoKeyFile {
        /// Which file.
        path: PathBuf,
        /// How long it may be, in bytes.
        most: usize,
    },
    /// The text is no key of this kind.
    #[error("{origin}: {problem}")]
    Text {
        /// Which file or setting.
        origin: String,
        /// What is wrong and what would be right; never the secret.
        problem: String,
    },
    /// Key material that a directory would refuse.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The operating system gave no randomness.
    #[error(transparent)]
    Randomness(#[from] RandomnessError),
    /// Sealing or opening failed.
    #[error("{origin}: {cause}")]
    Seal {
        /// Which key or file.
        origin: String,
        /// Why.
        cause: SuiteError,
    },
}

impl KeyError {
    /// Whether trying again can help, with nothing else changed.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Randomness(_) => true,
            Self::Io { cause, .. } => cause.kind() == std::io::ErrorKind::Interrupted,
            _ => false,
        }
    }

    pub(crate) fn text(origin: &str, problem: impl Into<String>) -> Self {
        Self::Text { origin: origin.to_owned(), problem: problem.into() }
    }
}
