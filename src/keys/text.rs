//! A secret as text: comment lines, then one line of a prefix that names its kind and base32.
//!
//! ```text
//! # sealcast sender key, created 2026-01-01T00:00:00Z
//! # signing: 3b6a...
//! SEALCAST-SENDER-SECRET-1GEZDGNBVGY3TQOJQ...
//! ```
//!
//! The base32 (RFC 4648, no padding) is of the secret and a checksum: the first four bytes of BLAKE3(prefix, secret).
//!
//! Owns this text and nothing of its meaning. Must not touch files.

use std::path::Path;

use data_encoding::BASE32_NOPAD;
use zeroize::{Zeroize, Zeroizing};

use super::{KeyError, file};
use crate::core::directory::write_time;
use crate::core::id::Time;
use crate::seams::Disk;

const CHECKSUM_BYTES: usize = 4;

/// Whose secret a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The operator's, who signs the directory.
    Operator,
    /// A sender's.
    Sender,
    /// A reader's.
    Reader,
    /// A node's.
    Node,
    /// A destination's.
    Destination,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Operator, Self::Sender, Self::Reader, Self::Node, Self::Destination];

    /// The word that people see.
    pub fn word(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Sender => "sender",
            Self::Reader => "reader",
            Self::Node => "node",
            Self::Destination => "destination",
        }
    }

    /// The word with its article: `a sender`, `an operator`.
    pub fn with_article(self) -> String {
        let article = if self == Self::Operator { "an" } else { "a" };
        format!("{article} {}", self.word())
    }

    /// What the secret line begins with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Operator => "SEALCAST-OPERATOR-SECRET-1",
            Self::Sender => "SEALCAST-SENDER-SECRET-1",
            Self::Reader => "SEALCAST-READER-SECRET-1",
            Self::Node => "SEALCAST-NODE-SECRET-1",
            Self::Destination => "SEALCAST-DESTINATION-SECRET-1",
        }
    }

    /// The kind of the key in this text, by the prefix of its secret line.
    pub fn of(text: &str) -> Option<Self> {
        let line = secret_lines(text).next()?;
        Self::ALL.into_iter().find(|kind| line.starts_with(kind.prefix()))
    }
}

/// A holder's secrets as a key file keeps them.
pub trait SecretFile: Sized {
    /// Whose they are.
    const KIND: Kind;

    /// The secrets as bytes.
    fn to_secret_bytes(&self) -> Zeroizing<Vec<u8>>;

    /// From such bytes; `origin` goes into errors. Errors: [`KeyError::Text`], [`KeyError::Seal`].
    fn from_secret_bytes(bytes: &[u8], origin: &str) -> Result<Self, KeyError>;

    /// The public part, for the comment: one `field: value` each.
    fn public_lines(&self) -> Vec<String>;

    /// Reads a key's text, from a file or from a setting; `origin` (the file or the setting's name) goes into errors.
    /// Errors: [`KeyError::Text`], [`KeyError::Seal`].
    fn from_text(text: &str, origin: &str) -> Result<Self, KeyError> {
        Self::from_secret_bytes(&decode(Self::KIND, text, origin)?, origin)
    }

    /// The whole text of a key file, made at `created`.
    fn to_text(&self, created: Time) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(4096));
        text.push_str(&format!("# sealcast {} key, created {}\n", Self::KIND.word(), write_time(created)));
        for line in self.public_lines() {
            text.push_str(&format!("# {line}\n"));
        }
        text.push_str(&encode(Self::KIND, &self.to_secret_bytes()));
        text.push('\n');
        text
    }

    /// Reads a key file. Errors: [`KeyError::Io`], [`KeyError::OpenToOthers`], [`KeyError::NoKeyFile`],
    /// [`KeyError::Text`], [`KeyError::Seal`].
    fn read(path: &Path) -> Result<Self, KeyError> {
        Self::from_text(&file::read_secret_text(path)?, &path.display().to_string())
    }

    /// Writes a key file that must not exist yet, for its owner alone, and makes it durable. Errors: [`KeyError::Io`].
    fn write(&self, path: &Path, created: Time, disk: &dyn Disk) -> Result<(), KeyError> {
        file::create(path, self.to_text(created).as_bytes(), disk)
    }
}

fn checksum(kind: Kind, secret: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(kind.prefix().as_bytes()).update(secret);
    let mut out = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut out);
    hasher.zeroize();
    out
}

fn encode(kind: Kind, secret: &[u8]) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(secret.len() + CHECKSUM_BYTES));
    bytes.extend_from_slice(secret);
    bytes.extend_from_slice(&checksum(kind, secret));
    let mut line = Zeroizing::new(String::with_capacity(kind.prefix().len() + bytes.len() * 2));
    line.push_str(kind.prefix());
    BASE32_NOPAD.encode_append(&bytes, &mut line);
    line
}

fn secret_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn decode(kind: Kind, text: &str, origin: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let mut lines = secret_lines(text);
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return Err(KeyError::text(origin, format!("expected one line that begins with {}", kind.prefix())));
    };
    let Some(digits) = line.strip_prefix(kind.prefix()) else {
        let problem = match Kind::of(text) {
            Some(other) => format!("this is {} key, {} key is needed here", other.with_article(), kind.with_article()),
            None => format!("expected one line that begins with {}", kind.prefix()),
        };
        return Err(KeyError::text(origin, problem));
    };
    let damaged = || KeyError::text(origin, "the secret line is damaged: copy the key file again");
    let mut bytes = Zeroizing::new(BASE32_NOPAD.decode(digits.as_bytes()).map_err(|_| damaged())?);
    let Some((secret, sum)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else { return Err(damaged()) };
    if checksum(kind, secret) != *sum {
        return Err(damaged());
    }
    let length = secret.len();
    bytes.truncate(length);
    Ok(bytes)
}
