//! A directory in the making: editable, unsigned.
//!
//! Owns editing and signing. Must not decide what a directory may hold (that is [`super::check`]).

use std::collections::BTreeMap;
use std::time::Duration;

use data_encoding::HEXLOWER;

use super::{
    DAY, DestinationEntry, Directory, DirectoryError, FIRST_LINE, NodeEntry, ReaderEntry, SenderEntry, check, document,
};
use crate::core::id::{DestinationName, EnvironmentId, EnvironmentName, NodeName, ReaderName, SenderName, Time};
use crate::core::sign;
use crate::core::wire::label;

/// A directory without its signature. Fields are open to change; [`Draft::sign`] checks all of it.
///
/// ```
/// # use sealcast::core::{directory::{Directory, Draft, SenderEntry}, id::*, sign::SecretKey};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let operator = SecretKey::from_seed(&[1; 32]);
/// let mut draft = Draft::new(EnvironmentId([7; 16]), EnvironmentName::new("test")?, Time(4_102_444_800_000));
/// draft.add_sender(SenderEntry {
///     name: SenderName::new("web")?,
///     signing: SecretKey::from_seed(&[2; 32]).public(),
///     destinations: Default::default(),
/// });
/// let directory = Directory::verify(&draft.sign(&operator)?, &operator.public(), 1)?;
/// assert_eq!(directory.version, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Must grow with every signed change; from 1.
    pub version: u64,
    /// The environment on the wire.
    pub environment: EnvironmentId,
    /// The environment's name.
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
}

impl Draft {
    /// Nobody yet, version 1, a grace of 30 days.
    pub fn new(environment: EnvironmentId, name: EnvironmentName, valid_until: Time) -> Self {
        Self {
            version: 1,
            environment,
            name,
            valid_until,
            grace: DAY * 30,
            nodes: BTreeMap::new(),
            destinations: BTreeMap::new(),
            senders: BTreeMap::new(),
            readers: BTreeMap::new(),
        }
    }

    /// What follows this directory: the same content under the next version.
    pub fn after(directory: &Directory) -> Self {
        Self {
            version: directory.version.saturating_add(1),
            environment: directory.environment,
            name: directory.name.clone(),
            valid_until: directory.valid_until,
            grace: directory.grace,
            nodes: directory.nodes.clone(),
            destinations: directory.destinations.clone(),
            senders: directory.senders.clone(),
            readers: directory.readers.clone(),
        }
    }

    /// Reads a draft: TOML without a signature line. Each entry is checked alone; what needs several entries is checked by
    /// [`Draft::sign`]. Errors: those of one entry, see [`DirectoryError`].
    pub fn from_toml(text: &str) -> Result<Self, DirectoryError> {
        document::read(text)
    }

    /// Writes the draft as TOML; equal drafts give equal text. Errors: [`DirectoryError::Syntax`] for a number that TOML
    /// cannot hold (a version of 2^63 and above).
    pub fn to_toml(&self) -> Result<String, DirectoryError> {
        document::write(self)
    }

    /// Adds or replaces a node.
    pub fn add_node(&mut self, entry: NodeEntry) -> &mut Self {
        self.nodes.insert(entry.name.clone(), entry);
        self
    }

    /// Adds or replaces a destination.
    pub fn add_destination(&mut self, entry: DestinationEntry) -> &mut Self {
        self.destinations.insert(entry.name.clone(), entry);
        self
    }

    /// Adds or replaces a sender.
    pub fn add_sender(&mut self, entry: SenderEntry) -> &mut Self {
        self.senders.insert(entry.name.clone(), entry);
        self
    }

    /// Adds or replaces a reader.
    pub fn add_reader(&mut self, entry: ReaderEntry) -> &mut Self {
        self.readers.insert(entry.name.clone(), entry);
        self
    }

    /// Checks what stands in the draft already, though it may lack what else is needed: that every key has one owner and
    /// one use. Errors: [`DirectoryError::Duplicate`].
    pub fn check_keys(&self) -> Result<(), DirectoryError> {
        check::keys_differ(self)
    }

    /// Signs the draft; gives the file that [`Directory::verify`] takes, having verified it once. Errors: whatever that
    /// would refuse.
    pub fn sign(&self, operator: &sign::SecretKey) -> Result<Vec<u8>, DirectoryError> {
        let text = self.to_toml()?;
        let signature = operator.sign(label::DIRECTORY, text.as_bytes());
        let bytes = format!("{FIRST_LINE}{}\n{text}", HEXLOWER.encode(&signature)).into_bytes();
        Directory::verify(&bytes, &operator.public(), self.version)?;
        Ok(bytes)
    }
}
