//! Where settings come from, and in which order: the file, then the environment, then flags.
//!
//! Owns reading and merging. Must not know the settings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::ConfigError;

/// What overrides begin with in the environment: `SEALCAST__OUTBOX__PATH` is `outbox.path`.
const PREFIX: &str = "SEALCAST";

/// A configuration file with what overrides it.
///
/// ```no_run
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use sealcast::config::{ClientConfig, Sources};
///
/// // The file, then SEALCAST__SECTION__KEY of the environment, then what the program itself says.
/// let sources = Sources::file("client.toml").with_process_environment().with_flag("log.filter", "sealcast=debug");
/// let config = ClientConfig::load(&sources)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Sources {
    path: PathBuf,
    environment: BTreeMap<String, String>,
    flags: Vec<(String, String)>,
}

impl Sources {
    /// The file alone.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), environment: BTreeMap::new(), flags: Vec::new() }
    }

    /// Overrides from this process's environment. Variables that are no UTF-8 are passed over.
    pub fn with_process_environment(self) -> Self {
        let variables = std::env::vars_os();
        self.with_environment(
            variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        )
    }

    /// Overrides from these variables; only those that begin with `SEALCAST__` count, and empty ones do not.
    pub fn with_environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let marks = |name: &String| name.to_ascii_uppercase().starts_with("SEALCAST__");
        self.environment.extend(variables.into_iter().filter(|(name, _)| marks(name)));
        self
    }

    /// Overrides one setting above file and environment, for example `outbox.path`.
    pub fn with_flag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.flags.push((key.into(), value.into()));
        self
    }

    /// The configuration file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that relative paths are relative to.
    pub(super) fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    /// Reads and merges. Overrides of the sections in `others`, which the other kind of program has, are passed over: one
    /// environment may serve both. Errors: [`ConfigError::Read`], [`ConfigError::Shape`].
    pub(super) fn read<T: DeserializeOwned>(&self, others: &[&str]) -> Result<T, ConfigError> {
        let text = std::fs::read_to_string(&self.path)
            .map_err(|cause| ConfigError::Read { path: self.path.clone(), cause })?;
        // Whoever parses first says what is wrong: by place alone, because the line may hold a secret.
        toml::from_str::<toml::Table>(&text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|one| *one != '\n').count() + 1;
            let message = format!("line {line}, column {column}: {}", error.message());
            ConfigError::Shape { path: self.path.clone(), message }
        })?;
        let shape =
            |error: config::ConfigError| ConfigError::Shape { path: self.path.clone(), message: error.to_string() };
        let of_others = |name: &str| {
            let section = name.get(PREFIX.len() + 2..).and_then(|rest| rest.split("__").next()).unwrap_or_default();
            others.iter().any(|other| section.eq_ignore_ascii_case(other))
        };
        let own = self.environment.iter().filter(|(name, _)| !of_others(name));
        let variables = config::Environment::with_prefix(PREFIX)
            .prefix_separator("__")
            .separator("__")
            .ignore_empty(true)
            .source(Some(own.map(|(name, value)| (name.clone(), value.clone())).collect()));
        let mut builder = config::Config::builder()
            .add_source(config::File::from_str(&text, config::FileFormat::Toml))
            .add_source(variables);
        for (key, value) in &self.flags {
            builder = builder.set_override(key, value.as_str()).map_err(shape)?;
        }
        builder.build().and_then(config::Config::try_deserialize).map_err(shape)
    }
}
