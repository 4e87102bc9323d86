//! The signed list of who exists, their public keys, who may send and who may read (design, section 9).
//!
//! Owns the file's format, its checks and the look-ups in it. Must not hold secrets, nor touch files.
//!
//! The file is one line, `sealcast-directory v1 ed25519 SIGNATURE` (128 hexadecimal digits), and TOML behind it. The
//! signature is over `L("directory")` and every byte after the first line feed, and is verified before any of them is
//! parsed. [`Draft`] is the editable form without a signature.

mod check;
mod diff;
mod document;
mod draft;
mod error;
mod span;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(in crate::core) use check::SMALL_ORDER;
pub use check::{check_kem_key, has_small_order_part, kem_key_bytes};
pub use diff::{Change, Difference, differences};
pub use draft::Draft;
pub use error::{DirectoryError, KemKeyError};
pub use span::{Span, SpanError, read_time, write_time};

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::id::{
    DestinationName, DestinationTag, EnvironmentId, EnvironmentName, KeyId, NodeName, ReaderName, SenderName, Suite,
    Time, VerifyingKeyBytes,
};
use super::sign::{self, SIGNATURE_BYTES};
use super::{limits, wire::label};

/// How the first line of a directory begins; the signature's hexadecimal digits follow.
pub const FIRST_LINE: &str = "sealcast-directory v1 ed25519 ";

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A receiving node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEntry {
    /// Its name, unique among nodes.
    pub name: NodeName,
    /// Where it listens for other nodes and readers: `host:port`.
    pub address: String,
    /// Signs receipts, refusals and what it says on the notices topic.
    pub signing: sign::PublicKey,
    /// The Ed25519 key of its TLS certificate, checked as a signing key is.
    pub tls: VerifyingKeyBytes,
    /// HPKE public key of suite 2 (1,216 bytes): key rings and grants are sealed to it.
    pub hpke: Bytes,
}

/// Whether senders use a destination's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyState {
    /// Parcels are sealed to it.
    Current,
    /// Parcels sealed to it are refused; what was committed under it stays readable.
    Retired,
}

/// An HPKE public key of a destination, for one epoch and one suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationKey {
    /// Follows from suite and public key: [`key_id`].
    pub id: KeyId,
    /// Its suite.
    pub suite: Suite,
    /// 32 bytes in suite 1, 1,216 in suite 2.
    pub public: Bytes,
    /// Whether senders use it.
    pub state: KeyState,
}

impl DestinationKey {
    /// A current key with the id that follows. Errors: [`KemKeyError`].
    pub fn current(suite: Suite, public: Bytes) -> Result<Self, KemKeyError> {
        check_kem_key(suite, &public)?;
        Ok(Self { id: key_id(suite, &public), suite, public, state: KeyState::Current })
    }
}

/// A destination: a named group of nodes that hold the same data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationEntry {
    /// Its name, unique among destinations.
    pub name: DestinationName,
    /// 0: sharded destinations are reserved for a later version.
    pub shard: u32,
    /// Follows from environment, name and shard: [`destination_tag`].
    pub tag: DestinationTag,
    /// The voters, ascending by name, 1 to [`limits::VOTERS`].
    pub nodes: Vec<NodeName>,
    /// At most one current key of each suite, one at least of the minimum suite or above.
    pub keys: Vec<DestinationKey>,
    /// Parcels of a lower suite are refused.
    pub minimum_suite: Suite,
    /// A deadline is at most this long after its transaction id's time (R7).
    pub max_life: Duration,
    /// How long an idempotency key is claimed, in group time (R6).
    pub idempotency_window: Duration,
    /// How long committed transactions are kept; no shorter than `max_life` (R26).
    pub retention: Duration,
}

impl DestinationEntry {
    /// A destination (shard 0) with these voters and keys, either suite allowed, and the usual times: a life of 7 days, an
    /// idempotency window of 1 day, a retention of 30 days. The fields are open to change.
    pub fn new(
        environment: EnvironmentId,
        name: DestinationName,
        nodes: impl IntoIterator<Item = NodeName>,
        keys: Vec<DestinationKey>,
    ) -> Self {
        Self {
            tag: destination_tag(environment, &name, 0),
            name,
            shard: 0,
            nodes: nodes.into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
            keys,
            minimum_suite: Suite::X25519,
            max_life: DAY * 7,
            idempotency_window: DAY,
            retention: DAY * 30,
        }
    }

    /// The key of this id, current or retired.
    pub fn key(&self, id: &KeyId) -> Option<&DestinationKey> {
        self.keys.iter().find(|key| key.id == *id)
    }

    /// The key that senders use in this suite; `None` where there is none or the suite is below the minimum.
    pub fn current_key(&self, suite: Suite) -> Option<&DestinationKey> {
        let allowed = suite >= self.minimum_suite;
        self.keys.iter().find(|key| allowed && key.suite == suite && key.state == KeyState::Current)
    }

    /// Whether this node is a voter.
    pub fn has_node(&self, name: &NodeName) -> bool {
        self.nodes.binary_search(name).is_ok()
    }

    /// How many voters are a majority.
    pub fn quorum(&self) -> usize {
        quorum(self.nodes.len())
    }
}

/// A service that submits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SenderEntry {
    /// Its name, unique among senders.
    pub name: SenderName,
    /// Signs its stripe headers and queries.
    pub signing: sign::PublicKey,
    /// Where it may send.
    pub destinations: BTreeSet<DestinationName>,
}

/// Who may read committed data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReaderEntry {
    /// Its name, unique among readers.
    pub name: ReaderName,
    /// Its signing key, which is the key of its TLS certificate too.
    pub signing: sign::PublicKey,
    /// HPKE public key of suite 2 (1,216 bytes): grants are sealed to it.
    pub hpke: Bytes,
    /// What it may read.
    pub destinations: BTreeSet<DestinationName>,
}

/// How a directory stands in time (design, section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Validity {
    /// More than 30 days are left.
    Good,
    /// It ends soon: the alarm of 30, 7 or 1 days is due.
    Ending {
        /// 30, 7 or 1: the smallest alarm that holds.
        days: u8,
    },
    /// `valid_until` has passed: changes stop.
    Ended,
    /// The grace has passed too: nothing new is admitted; reads and repair go on.
    GraceEnded,
}

/// A verified directory. Only [`Directory::verify`] and [`Directory::recorded`] make one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Directory {
    /// Grows with every change.
    pub version: u64,
    /// The environment on the wire.
    pub environment: EnvironmentId,
    /// The environment's name, part of its topics' names.
    pub name: EnvironmentName,
    /// After this moment changes stop.
    pub valid_until: Time,
    /// How long after `valid_until` transactions are still admitted.
    pub grace: Duration,
    /// All nodes.
    pub nodes: BTreeMap<NodeName, NodeEntry>,
    /// All destinations.
    pub destinations: BTreeMap<DestinationName, DestinationEntry>,
    /// All senders.
    pub senders: BTreeMap<SenderName, SenderEntry>,
    /// All readers.
    pub readers: BTreeMap<ReaderName, ReaderEntry>,
    bytes: Bytes,
    by_tag: BTreeMap<DestinationTag, DestinationName>,
    by_sender_key: BTreeMap<VerifyingKeyBytes, SenderName>,
}

impl Directory {
    /// Verifies and reads a directory: length, first line and signature come before any parsing. Errors: all of
    /// [`DirectoryError`] but [`DirectoryError::OtherEnvironment`] and [`DirectoryError::Ended`].
    pub fn verify(bytes: &[u8], operator: &sign::PublicKey, minimum_version: u64) -> Result<Self, DirectoryError> {
        let directory = Self::recorded(bytes, operator, minimum_version)?;
        check::canonical(&directory)?;
        Ok(directory)
    }

    /// Reads a directory that a group's log put in force: as [`Directory::verify`], without the checks that are younger than
    /// the log may be. Whoever hands one in has it verified; applying an old entry never changes (R4). Errors: as there.
    pub fn recorded(bytes: &[u8], operator: &sign::PublicKey, minimum_version: u64) -> Result<Self, DirectoryError> {
        let (signature, signed) = parts(bytes)?;
        operator.verify(label::DIRECTORY, signed, &signature).map_err(|_| DirectoryError::Signature)?;
        let text = std::str::from_utf8(signed)
            .map_err(|error| DirectoryError::Syntax { message: format!("the directory is no UTF-8: {error}") })?;
        let draft = Draft::from_toml(text)?;
        // Versions start with 1, whatever minimum is pinned.
        let minimum = minimum_version.max(1);
        if draft.version < minimum {
            return Err(DirectoryError::OldVersion { version: draft.version, minimum });
        }
        check::whole(&draft, operator)?;
        Ok(Self {
            by_tag: draft.destinations.values().map(|entry| (entry.tag, entry.name.clone())).collect(),
            by_sender_key: draft.senders.values().map(|entry| (entry.signing.bytes(), entry.name.clone())).collect(),
            version: draft.version,
            environment: draft.environment,
            name: draft.name,
            valid_until: draft.valid_until,
            grace: draft.grace,
            nodes: draft.nodes,
            destinations: draft.destinations,
            senders: draft.senders,
            readers: draft.readers,
            bytes: Bytes::copy_from_slice(bytes),
        })
    }

    /// The file as it was verified, first line and all: what travels in log entries and notices.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether this may follow `before`: the same environment and a higher version. Errors:
    /// [`DirectoryError::OtherEnvironment`], [`DirectoryError::OldVersion`].
    pub fn check_successor_of(&self, before: &Self) -> Result<(), DirectoryError> {
        if self.environment != before.environment {
            return Err(DirectoryError::OtherEnvironment { given: self.environment, expected: before.environment });
        }
        if self.version <= before.version {
            return Err(DirectoryError::OldVersion {
                version: self.version,
                minimum: before.version.saturating_add(1),
            });
        }
        Ok(())
    }

    /// Whether it can take effect at `now`: one that has ended changes nothing any more. (One that ended while it was in
    /// force stays: reads and repair never end.) Errors: [`DirectoryError::Ended`].
    pub fn check_valid(&self, now: Time) -> Result<(), DirectoryError> {
        match self.validity(now) {
            Validity::Ended | Validity::GraceEnded => Err(DirectoryError::Ended { valid_until: self.valid_until }),
            Validity::Good | Validity::Ending { .. } => Ok(()),
        }
    }

    /// Whether a group that serves `destination` under `before` can go on under this: it must still list the destination, and
    /// the same voters, because consensus cannot take others in yet (R12). Where `before` does not list it there is nothing to
    /// keep. Errors: [`DirectoryError::Invalid`], with what to do.
    pub fn check_keeps(&self, before: &Self, destination: &DestinationName) -> Result<(), DirectoryError> {
        let field = || format!("destination {destination}");
        let invalid = |field, problem| Err(DirectoryError::Invalid { field, problem });
        let Some(old) = before.destinations.get(destination) else { return Ok(()) };
        let Some(new) = self.destinations.get(destination) else {
            let problem = "nodes serve it and the directory does not list it any more: list it; to retire a destination, list \
                           no sender for it";
            return invalid(field(), problem.to_owned());
        };
        let others = |these: &DestinationEntry, those: &DestinationEntry| -> Vec<String> {
            these.nodes.iter().filter(|node| !those.has_node(node)).map(ToString::to_string).collect()
        };
        let (added, removed) = (others(new, old), others(old, new));
        if added.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let list = |what: &str, names: &[String]| match names {
            [] => String::new(),
            names => format!(" {what} {},", names.join(", ")),
        };
        let changes = format!("{}{}", list("adds", &added), list("removes", &removed));
        let problem =
            format!("it{changes} and this version cannot change the voters of a running group: name the same nodes");
        invalid(field() + ": nodes", problem)
    }

    /// The sender with this signing key.
    pub fn sender_by_key(&self, key: &VerifyingKeyBytes) -> Option<&SenderEntry> {
        self.senders.get(self.by_sender_key.get(key)?)
    }

    /// The destination with this tag.
    pub fn destination_by_tag(&self, tag: &DestinationTag) -> Option<&DestinationEntry> {
        self.destinations.get(self.by_tag.get(tag)?)
    }

    /// The node whose TLS key this is.
    pub fn node_by_tls(&self, key: &VerifyingKeyBytes) -> Option<&NodeEntry> {
        self.nodes.values().find(|node| node.tls == *key)
    }

    /// The node whose signing key this is.
    pub fn node_by_signing(&self, key: &VerifyingKeyBytes) -> Option<&NodeEntry> {
        self.nodes.values().find(|node| node.signing.bytes() == *key)
    }

    /// The reader whose TLS key, which is its signing key, this is.
    pub fn reader_by_tls(&self, key: &VerifyingKeyBytes) -> Option<&ReaderEntry> {
        self.readers.values().find(|reader| reader.signing.bytes() == *key)
    }

    /// Whether this sender may send there.
    pub fn may_send(&self, sender: &SenderName, destination: &DestinationName) -> bool {
        self.senders.get(sender).is_some_and(|entry| entry.destinations.contains(destination))
    }

    /// Whether this reader may read there.
    pub fn may_read(&self, reader: &ReaderName, destination: &DestinationName) -> bool {
        self.readers.get(reader).is_some_and(|entry| entry.destinations.contains(destination))
    }

    /// The destinations of which this node is a voter, ascending by name.
    pub fn destinations_of<'a>(&'a self, node: &'a NodeName) -> impl Iterator<Item = &'a DestinationEntry> {
        self.destinations.values().filter(|entry| entry.has_node(node))
    }

    /// How it stands at `now`.
    pub fn validity(&self, now: Time) -> Validity {
        if now > self.valid_until.after(self.grace) {
            return Validity::GraceEnded;
        }
        if now > self.valid_until {
            return Validity::Ended;
        }
        let left = self.valid_until.since(now);
        match [1u8, 7, 30].into_iter().find(|&days| left <= DAY * u32::from(days)) {
            Some(days) => Validity::Ending { days },
            None => Validity::Good,
        }
    }
}

/// How many of `voters` are a majority.
pub fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// A destination on the wire: the first 16 bytes of BLAKE3(L("destination"), environment, u8 name length, name, u32 shard).
pub fn destination_tag(environment: EnvironmentId, name: &DestinationName, shard: u32) -> DestinationTag {
    let name = name.as_str().as_bytes();
    let mut hasher = blake3::Hasher::new();
    // A name has at most 63 bytes.
    hasher.update(label::DESTINATION).update(&environment.0).update(&[name.len() as u8]).update(name);
    hasher.update(&shard.to_be_bytes());
    DestinationTag(first_16(&hasher))
}

/// An HPKE public key on the wire: the first 16 bytes of BLAKE3(L("key-id"), u8 suite, public key).
pub fn key_id(suite: Suite, public: &[u8]) -> KeyId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(label::KEY_ID).update(&[suite.number()]).update(public);
    KeyId(first_16(&hasher))
}

fn first_16(hasher: &blake3::Hasher) -> [u8; 16] {
    let mut out = [0; 16];
    hasher.finalize_xof().fill(&mut out);
    out
}

/// Takes the signature off: (signature, signed bytes).
fn parts(bytes: &[u8]) -> Result<([u8; SIGNATURE_BYTES], &[u8]), DirectoryError> {
    if bytes.len() > limits::DIRECTORY_BYTES {
        return Err(DirectoryError::TooLong { bytes: bytes.len(), most: limits::DIRECTORY_BYTES });
    }
    let rest = bytes.strip_prefix(FIRST_LINE.as_bytes()).ok_or(DirectoryError::FirstLine)?;
    let (digits, rest) = rest.split_at_checked(SIGNATURE_BYTES * 2).ok_or(DirectoryError::FirstLine)?;
    let signed = rest.strip_prefix(b"\n").ok_or(DirectoryError::FirstLine)?;
    let signature = data_encoding::HEXLOWER.decode(digits).map_err(|_| DirectoryError::FirstLine)?;
    Ok((signature.try_into().map_err(|_| DirectoryError::FirstLine)?, signed))
}
