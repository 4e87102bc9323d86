//! `client.toml`: what a sender, a reader, or both in one process need.
//!
//! Owns the client's settings. Must not submit or read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::sections::{check_key, load_key, setting};
use super::{ConfigError, EnvironmentSection, LogSection, Secret, Sources, TransportSection, TransportSettings};
use crate::core::directory::{Directory, Span};
use crate::core::id::{ReaderName, SenderName, Suite};
use crate::keys::{ReaderKey, SenderKey};

/// The whole of `client.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    #[serde(skip)]
    path: PathBuf,
    /// `[environment]`.
    pub environment: EnvironmentSection,
    /// `[transport]`: a reader alone needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<TransportSection>,
    /// `[sender]`: who submits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<SenderSection>,
    /// `[reader]`: who reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reader: Option<ReaderSection>,
    /// `[outbox]`: a sender needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbox: Option<OutboxSection>,
    /// `[window]`.
    #[serde(default)]
    pub window: WindowSection,
    /// `[bundle]`.
    #[serde(default)]
    pub bundle: BundleSection,
    /// `[log]`.
    #[serde(default)]
    pub log: LogSection,
}

/// `[sender]`: who submits, and how it seals.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SenderSection {
    /// Its name. Needless, since the directory knows the key; where it stands it must agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<SenderName>,
    /// The suite to seal with; default `x-wing`.
    #[serde(default = "x_wing")]
    pub suite: Suite,
    /// The key's text; `key_file` is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Secret>,
    /// The key's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

fn x_wing() -> Suite {
    Suite::XWing
}

/// `[reader]`: who reads.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReaderSection {
    /// Its name. Needless, since the directory knows the key; where it stands it must agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ReaderName>,
    /// The key's text; `key_file` is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Secret>,
    /// The key's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

/// `[outbox]`: where what was submitted waits for its fate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutboxSection {
    /// The outbox's folder; needed unless `memory` is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Most bytes of undecided parcels, on disk or in memory; default 4 GiB, at least 16 MiB.
    #[serde(default = "outbox_bytes")]
    pub bytes: u64,
    /// True keeps the outbox in memory: what was submitted is lost with the process. Default false.
    #[serde(default)]
    pub memory: bool,
}

fn outbox_bytes() -> u64 {
    4 << 30
}

/// `[window]`: how much may be undecided before `submit` gives transactions back.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WindowSection {
    /// Most undecided transactions; default 10,000, at least 1.
    pub transactions: usize,
    /// Most undecided payload bytes, a single larger transaction excepted; default 1 GiB, at least 1 MiB.
    pub bytes: u64,
}

impl Default for WindowSection {
    fn default() -> Self {
        Self { transactions: 10_000, bytes: 1 << 30 }
    }
}

/// `[bundle]`: when transactions that are submitted one shortly after the other share a parcel, and so a signature, records
/// and an fsync.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BundleSection {
    /// A parcel is closed when its payloads have this many bytes; default 1 MiB, at most 4 MiB. 1 gives each its own.
    pub bytes: usize,
    /// Parcels are begun at least this far apart, unless enough bytes have come; default 2 ms, at most 1 s. What is submitted
    /// after a pause of this length goes at once, unless more than as many are without a fate: then as many are waited for, four
    /// times as long as the last parcels took until they were durable, at most 100 ms. `0ms` never waits.
    pub wait: Span,
}

impl Default for BundleSection {
    fn default() -> Self {
        Self { bytes: 1 << 20, wait: Span(Duration::from_millis(2)) }
    }
}

impl ClientConfig {
    /// Reads, merges and checks settings; files that they name are not opened yet. Errors: [`ConfigError::Read`],
    /// [`ConfigError::Shape`], [`ConfigError::Setting`].
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut config: Self = sources.read(&["node", "limits"])?;
        config.path = sources.path().to_path_buf();
        config.environment.check(sources)?;
        // Overrides of the process's environment are for all its programs, a reader among them, whose file has no
        // transport and no outbox.
        if config.sender.is_none() {
            config.transport.take_if(|given| given.brokers.is_empty() && given.path.is_none());
            config.outbox.take_if(|given| given.path.is_none() && !given.memory);
        }
        if let Some(transport) = &mut config.transport {
            transport.check(sources)?;
        }
        if let Some(sender) = &mut config.sender {
            check_key(sources, "sender", sender.key.as_ref(), &mut sender.key_file)?;
            if config.transport.is_none() {
                return Err(setting(sources, "transport", "a sender needs it: say which Kafka with [transport]"));
            }
        }
        if let Some(reader) = &mut config.reader {
            check_key(sources, "reader", reader.key.as_ref(), &mut reader.key_file)?;
        }
        match &mut config.outbox {
            Some(outbox) => outbox.check(sources)?,
            None if config.sender.is_some() => {
                return Err(setting(sources, "outbox", "a sender needs it: set outbox.path, or outbox.memory = true"));
            }
            None => {}
        }
        if config.window.transactions == 0 {
            return Err(setting(sources, "window.transactions", "0 lets nothing through: at least 1"));
        }
        if config.window.bytes < 1 << 20 {
            return Err(setting(sources, "window.bytes", "at least 1048576 (1 MiB)"));
        }
        if !(1..=4 << 20).contains(&config.bundle.bytes) {
            return Err(setting(sources, "bundle.bytes", "1 to 4194304 (4 MiB)"));
        }
        if config.bundle.wait.0 > Duration::from_secs(1) {
            return Err(setting(sources, "bundle.wait", "at most 1s: it delays every submission but the first"));
        }
        Ok(config)
    }

    /// The file that this came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The sender's key and its name in the directory; `None` without `[sender]`. Errors: [`ConfigError::Key`], and
    /// [`ConfigError::Setting`] when the directory does not know the key or knows it under another name.
    pub fn sender(&self, directory: &Directory) -> Result<Option<(SenderName, SenderKey)>, ConfigError> {
        let Some(section) = &self.sender else { return Ok(None) };
        let key: SenderKey = load_key(&self.path, "sender", section.key.as_ref(), section.key_file.as_deref())?;
        let found = directory.sender_by_key(&key.signing().public().bytes()).map(|entry| entry.name.clone());
        self.agree("sender", found, section.name.as_ref()).map(|name| Some((name, key)))
    }

    /// The reader's key and its name in the directory; `None` without `[reader]`. Errors: as for [`Self::sender`].
    pub fn reader(&self, directory: &Directory) -> Result<Option<(ReaderName, ReaderKey)>, ConfigError> {
        let Some(section) = &self.reader else { return Ok(None) };
        let key: ReaderKey = load_key(&self.path, "reader", section.key.as_ref(), section.key_file.as_deref())?;
        let found = directory.reader_by_tls(&key.signing().public().bytes()).map(|entry| entry.name.clone());
        self.agree("reader", found, section.name.as_ref()).map(|name| Some((name, key)))
    }

    /// The transport, ready to be opened; `None` without `[transport]`. Errors: [`ConfigError::Key`] for a property's file.
    pub fn transport(&self) -> Result<Option<TransportSettings>, ConfigError> {
        self.transport.as_ref().map(|section| section.settings(&self.path)).transpose()
    }

    fn agree<N: PartialEq + std::fmt::Display>(
        &self,
        section: &str,
        found: Option<N>,
        named: Option<&N>,
    ) -> Result<N, ConfigError> {
        let wrong = |key: &str, problem: String| {
            Err(ConfigError::Setting { path: self.path.clone(), key: format!("{section}.{key}"), problem })
        };
        match (found, named) {
            (None, _) => wrong(
                "key_file",
                format!("no {section} of the directory has this key: add it with `sealcast directory add {section}`"),
            ),
            (Some(found), Some(named)) if found != *named => {
                wrong("name", format!("{named}, but in the directory the key is that of {found}"))
            }
            (Some(found), _) => Ok(found),
        }
    }
}

impl OutboxSection {
    fn check(&mut self, sources: &Sources) -> Result<(), ConfigError> {
        match (&mut self.path, self.memory) {
            (Some(path), false) => *path = sources.folder().join(&path),
            (None, true) => {}
            (None, false) => return Err(setting(sources, "outbox.path", "needed, unless outbox.memory = true")),
            (Some(_), true) => {
                return Err(setting(sources, "outbox.memory", "true forgets outbox.path: remove one of the two"));
            }
        }
        if self.bytes < 16 << 20 {
            return Err(setting(sources, "outbox.bytes", "at least 16777216 (16 MiB)"));
        }
        Ok(())
    }
}
