//! The sections that client and node share: environment, transport, log; and how secrets and lists are written.
//!
//! Owns these settings. Must not know who uses them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::properties::{self, FILE_SUFFIX, redacted, shown};
use super::{ConfigError, Sources};
use crate::core::directory::Directory;
use crate::core::id::VerifyingKeyBytes;
use crate::core::sign;
use crate::keys::{KeyError, SecretFile};
use crate::telemetry::logs::LogFormat;

/// A secret that stands in a setting itself. It never shows.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The secret.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str("(redacted)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|text| Self(Zeroizing::new(text)))
    }
}

/// Checks that exactly one of `key` and `key_file` of a section is there, and finds the file.
pub(super) fn check_key(
    sources: &Sources,
    section: &str,
    key: Option<&Secret>,
    key_file: &mut Option<PathBuf>,
) -> Result<(), ConfigError> {
    if key.is_some() == key_file.is_some() {
        let problem = format!("set one of {section}.key_file and {section}.key");
        return Err(setting(sources, format!("{section}.key_file"), problem));
    }
    if let Some(path) = key_file {
        *path = sources.folder().join(&path);
    }
    Ok(())
}

/// Reads the key of a section. Errors: [`ConfigError::Key`].
pub(super) fn load_key<K: SecretFile>(
    config: &Path,
    section: &str,
    key: Option<&Secret>,
    key_file: Option<&Path>,
) -> Result<K, ConfigError> {
    let (name, loaded) = match (key_file, key) {
        (Some(path), _) => ("key_file", K::read(path)),
        (None, Some(text)) => ("key", K::from_text(text.reveal(), "the setting")),
        (None, None) => ("key_file", Err(KeyError::text("the setting", "set key_file or key"))),
    };
    let key = format!("{section}.{name}");
    loaded.map_err(|cause| ConfigError::Key { path: config.to_path_buf(), key, cause: Box::new(cause) })
}

/// `[environment]`: which environment this is, and whom to believe about it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentSection {
    /// The signed directory's file.
    pub directory: PathBuf,
    /// The operator's public key, 64 hexadecimal digits.
    pub operator: VerifyingKeyBytes,
    /// Directories of a lower version are refused. Default 1.
    #[serde(default = "one")]
    pub minimum_version: u64,
}

fn one() -> u64 {
    1
}

impl EnvironmentSection {
    pub(super) fn check(&mut self, sources: &Sources) -> Result<(), ConfigError> {
        self.directory = sources.folder().join(&self.directory);
        let operator = sign::PublicKey::check(&self.operator);
        operator.map_err(|error| setting(sources, "environment.operator", error.to_string())).map(drop)
    }

    /// The operator's public key, checked. Errors: [`ConfigError::Directory`] when it is weak, which a loaded
    /// configuration excludes.
    pub fn operator_key(&self) -> Result<sign::PublicKey, ConfigError> {
        sign::PublicKey::check(&self.operator).map_err(|cause| ConfigError::Directory {
            path: self.directory.clone(),
            cause: crate::core::directory::DirectoryError::WeakKey { field: "operator".to_owned(), cause },
        })
    }

    /// Reads and verifies the directory. Errors: [`ConfigError::Read`], [`ConfigError::Directory`].
    pub fn load_directory(&self) -> Result<Directory, ConfigError> {
        let bytes = std::fs::read(&self.directory)
            .map_err(|cause| ConfigError::Read { path: self.directory.clone(), cause })?;
        Directory::verify(&bytes, &self.operator_key()?, self.minimum_version)
            .map_err(|cause| ConfigError::Directory { path: self.directory.clone(), cause })
    }
}

/// What carries segments and notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransportKind {
    /// A Kafka cluster.
    Kafka,
    /// A folder on this machine, used by one process.
    Embedded,
}

/// `[transport]`: what carries segments and notices.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportSection {
    /// `kafka` (default) or `embedded`.
    #[serde(default = "kafka")]
    pub kind: TransportKind,
    /// Kafka: bootstrap brokers, `HOST:PORT` each.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub brokers: Vec<String>,
    /// Embedded: the folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Kafka: librdkafka properties, passed on as they are, but that relative paths in `*.location` start at the
    /// configuration's folder. `X_file` gives property X the text of a file; one with a secret only its owner may read. In
    /// the environment `_` stands for the dots of a name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", serialize_with = "redacted")]
    pub properties: BTreeMap<String, String>,
}

fn kafka() -> TransportKind {
    TransportKind::Kafka
}

impl fmt::Debug for TransportSection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportSection")
            .field("kind", &self.kind)
            .field("brokers", &self.brokers)
            .field("path", &self.path)
            .field("properties", &shown(&self.properties).collect::<BTreeMap<_, _>>())
            .finish()
    }
}

/// The transport, ready to be opened.
#[derive(Clone, PartialEq, Eq)]
pub enum TransportSettings {
    /// A Kafka cluster.
    Kafka {
        /// Bootstrap brokers, `HOST:PORT` each, at least one.
        brokers: Vec<String>,
        /// librdkafka properties, secrets in them.
        properties: BTreeMap<String, String>,
    },
    /// A folder on this machine.
    Embedded {
        /// The folder.
        path: PathBuf,
    },
}

impl fmt::Debug for TransportSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kafka { brokers, properties } => {
                let names: Vec<_> = properties.keys().collect();
                f.debug_struct("Kafka").field("brokers", brokers).field("properties", &names).finish()
            }
            Self::Embedded { path } => f.debug_struct("Embedded").field("path", path).finish(),
        }
    }
}

impl TransportSection {
    pub(super) fn check(&mut self, sources: &Sources) -> Result<(), ConfigError> {
        let wrong = |key: &str, problem: &str| Err(setting(sources, format!("transport.{key}"), problem));
        match self.kind {
            TransportKind::Kafka => {
                if self.path.is_some() {
                    return wrong("path", "belongs to kind = \"embedded\": remove it");
                }
                if self.brokers.is_empty() {
                    return wrong("brokers", "kind = \"kafka\" needs at least one HOST:PORT");
                }
                let fits = |broker: &&String| {
                    broker.rsplit_once(':').is_none_or(|(host, port)| {
                        host.is_empty() || port.parse::<u16>().map_or(true, |port| port == 0)
                    })
                };
                if let Some(broker) = self.brokers.iter().find(fits) {
                    return wrong("brokers", &format!("{broker:?}: expected HOST:PORT"));
                }
            }
            TransportKind::Embedded => {
                if !self.brokers.is_empty() {
                    return wrong("brokers", "belongs to kind = \"kafka\": remove it");
                }
                if !self.properties.is_empty() {
                    return wrong("properties", "belongs to kind = \"kafka\": remove it");
                }
                match &mut self.path {
                    Some(path) => *path = sources.folder().join(&path),
                    None => return wrong("path", "kind = \"embedded\" needs a folder"),
                }
            }
        }
        let mut all = BTreeMap::new();
        for (name, value) in std::mem::take(&mut self.properties) {
            let (name, is_file) = match name.strip_suffix(FILE_SUFFIX) {
                Some(name) => (name.replace('_', "."), true),
                None => (name.replace('_', "."), false),
            };
            let path = || sources.folder().join(&value).display().to_string();
            let stored = if is_file { format!("{name}{FILE_SUFFIX}") } else { name.clone() };
            let other = if is_file { name.clone() } else { format!("{name}{FILE_SUFFIX}") };
            if all.contains_key(&other) {
                return wrong(&format!("properties.{name}"), "is set twice, as text and as a file: keep one");
            }
            let named = is_file || properties::names_file(&name, &value);
            let value = if named { path() } else { value };
            all.insert(stored, value);
        }
        self.properties = all;
        Ok(())
    }

    /// Reads what `X_file` properties name and gives what a transport opens. Errors: [`ConfigError::Key`] for a file that
    /// is missing or that others can read, [`ConfigError::Setting`] for a `*.location` that is missing and for a section that
    /// was not checked.
    pub(super) fn settings(&self, config: &Path) -> Result<TransportSettings, ConfigError> {
        if self.kind == TransportKind::Embedded {
            let path = self.path.clone().ok_or_else(|| ConfigError::Setting {
                path: config.to_path_buf(),
                key: "transport.path".to_owned(),
                problem: "kind = \"embedded\" needs a folder".to_owned(),
            })?;
            return Ok(TransportSettings::Embedded { path });
        }
        let mut all = BTreeMap::new();
        for (name, value) in &self.properties {
            let key = || format!("transport.properties.{name}");
            match name.strip_suffix(FILE_SUFFIX) {
                None => {
                    if properties::names_file(name, value)
                        && let Err(cause) = std::fs::metadata(value)
                    {
                        let problem = format!("{value}: {cause}");
                        return Err(ConfigError::Setting { path: config.to_path_buf(), key: key(), problem });
                    }
                    all.insert(name.clone(), value.clone());
                }
                Some(property) => {
                    let text = properties::read(property, Path::new(value)).map_err(|cause| ConfigError::Key {
                        path: config.to_path_buf(),
                        key: key(),
                        cause: Box::new(cause),
                    })?;
                    all.insert(property.to_owned(), text);
                }
            };
        }
        Ok(TransportSettings::Kafka { brokers: self.brokers.clone(), properties: all })
    }
}

/// `[log]`: what is logged, to stderr, and how.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// `pretty` (default) or `json`.
    pub format: LogFormat,
    /// A level, or `MODULE=LEVEL,...`; without it what telemetry takes for its default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
}

/// A list, or one text with commas (as the environment and flags give it).
pub(super) fn list<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of texts, or one text with commas")
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<String>, E> {
            Ok(text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect())
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Vec<String>, A::Error> {
            let mut all = Vec::new();
            while let Some(item) = items.next_element()? {
                all.push(item);
            }
            Ok(all)
        }
    }
    from.deserialize_any(Visitor)
}

pub(super) fn setting(sources: &Sources, key: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Setting { path: sources.path().to_path_buf(), key: key.into(), problem: problem.into() }
}
