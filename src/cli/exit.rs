//! How a command ends: exit codes, and errors with the code that they mean.
//!
//! Owns the exit codes. Must not be the only place where an error is explained: messages come from the errors.

use std::io::Write;
use std::process::ExitCode;

use super::Format;
use crate::config::{ConfigError, environment::EnvironmentError};
use crate::core::directory::DirectoryError;
use crate::keys::KeyError;
use crate::local::LocalError;
use crate::transport::TransportError;
use crate::transport::embedded::SocketError;
use crate::transport::kafka::KafkaError;

/// The exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done = 0,
    /// 1: failed.
    Failed = 1,
    /// 2: wrong usage or configuration.
    Usage = 2,
    /// 3: the outcome is unknown: timed out, attach again.
    Unknown = 3,
    /// 4: rejected or expired by consensus.
    Rejected = 4,
    /// 5: unavailable: try again.
    Unavailable = 5,
}

impl Exit {
    /// The word of JSON errors.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Unknown => "unknown",
            Self::Rejected => "rejected",
            Self::Unavailable => "unavailable",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command did not do what was asked, and the exit code that says so.
#[derive(Debug)]
pub struct CliError {
    exit: Exit,
    message: String,
    closed_output: bool,
}

impl CliError {
    /// An error with the exit code that it means. The message is the error's own, with whatever caused it and is not
    /// said in it already.
    pub fn new(exit: Exit, error: impl std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let text = inner.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = inner.source();
        }
        Self { exit, message, closed_output: false }
    }

    /// A message with the exit code that it means.
    pub fn with(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), closed_output: false }
    }

    /// Wrong usage or configuration.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, message: message.into(), closed_output: false }
    }

    /// Failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, message: message.into(), closed_output: false }
    }

    /// A file that cannot be read or written.
    pub fn file(path: &std::path::Path, cause: &std::io::Error) -> Self {
        Self::failed(format!("{}: {cause}", path.display()))
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Whether whoever read stdout went away, as `head` does: no failure.
    pub(super) fn is_closed_output(&self) -> bool {
        self.closed_output
    }

    /// Prints the error to stderr: a line for people, or one JSON object.
    pub(super) fn print(&self, format: Format) {
        let mut stderr = std::io::stderr().lock();
        let text = match format {
            Format::Table => format!("sealcast: {}", self.message),
            Format::Json => format!(
                "{{\"v\":{},\"error\":{}}}",
                super::output::VERSION,
                serde_json::json!({"kind": self.exit.word(), "exit": self.exit as u8, "message": self.message})
            ),
        };
        // With stderr closed there is nobody left to tell.
        let _ = writeln!(stderr, "{text}");
    }
}

impl From<std::io::Error> for CliError {
    /// An error of writing to stdout.
    fn from(error: std::io::Error) -> Self {
        let closed_output = error.kind() == std::io::ErrorKind::BrokenPipe;
        Self { exit: Exit::Failed, message: format!("stdout: {error}"), closed_output }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::new(if error.retryable() { Exit::Unavailable } else { Exit::Usage }, error)
    }
}

impl From<KeyError> for CliError {
    fn from(error: KeyError) -> Self {
        let exit = match &error {
            _ if error.retryable() => Exit::Unavailable,
            KeyError::Io { verb: "create" | "write" | "sync", .. } => Exit::Failed,
            _ => Exit::Usage,
        };
        Self::new(exit, error)
    }
}

impl From<DirectoryError> for CliError {
    fn from(error: DirectoryError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<TransportError> for CliError {
    fn from(error: TransportError) -> Self {
        let exit = match &error {
            _ if error.retryable() => Exit::Unavailable,
            TransportError::Kafka(KafkaError::Property { .. } | KafkaError::Barred { .. }) => Exit::Usage,
            TransportError::Socket(SocketError::PathTooLong { .. } | SocketError::Open { .. }) => Exit::Usage,
            _ => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<LocalError> for CliError {
    fn from(error: LocalError) -> Self {
        match &error {
            LocalError::NoNode(_) => Self::new(Exit::Usage, error),
            error if error.retryable() => Self::new(Exit::Unavailable, error),
            _ => Self::new(Exit::Failed, error),
        }
    }
}

impl From<EnvironmentError> for CliError {
    fn from(error: EnvironmentError) -> Self {
        match error {
            EnvironmentError::Key(cause) => cause.into(),
            EnvironmentError::Io { .. } => Self::new(Exit::Failed, error),
            _ if error.retryable() => Self::new(Exit::Unavailable, error),
            _ => Self::new(Exit::Usage, error),
        }
    }
}
