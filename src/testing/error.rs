//! What an environment of a test can fail with. Must not say how it is made.

use std::sync::Arc;

use crate::client::ClientError;
use crate::client::reader::ReadError;
use crate::config::ConfigError;
use crate::config::environment::EnvironmentError;
use crate::core::id::{IdError, Rejection};
use crate::local::LocalError;
use crate::transport::TransportError;

/// Why a test's environment did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TestingError {
    /// The temporary folder.
    #[error("the temporary folder: {0}")]
    Folder(Arc<std::io::Error>),
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] IdError),
    /// The environment cannot be made.
    #[error(transparent)]
    Environment(Arc<EnvironmentError>),
    /// Its configuration cannot be read.
    #[error(transparent)]
    Config(Arc<ConfigError>),
    /// The transport.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A node.
    #[error(transparent)]
    Node(#[from] LocalError),
    /// A client.
    #[error(transparent)]
    Client(#[from] Arc<ClientError>),
    /// A reader.
    #[error(transparent)]
    Read(Arc<ReadError>),
    /// The environment has none of this name, or number.
    #[error("the environment has no {what} {name}")]
    Absent {
        /// A sender, reader, destination or broker.
        what: &'static str,
        /// What was asked for.
        name: String,
    },
    /// A client refuses such a transaction itself and submits nothing: have the call fail instead, with a transaction that
    /// is not permitted, or whose deadline is too far.
    #[error("rejected({}) cannot be called for: a client refuses such a transaction before it is submitted", reason.word())]
    NotSubmitted {
        /// The reason that was asked for.
        reason: Rejection,
    },
    /// What the next transaction is to be rejected for could not be submitted before: is the environment stalled, or without
    /// a majority of its nodes?
    #[error("rejected({}) could not be prepared in time: is the environment stalled?", reason.word())]
    NotPrepared {
        /// The reason that was asked for.
        reason: Rejection,
    },
    /// The nodes did not give in time what they have committed.
    #[error("what is committed was not read in time: is a majority of the nodes running?")]
    NotRead,
    /// The environment has ended.
    #[error("the environment has ended")]
    Ended,
}

impl TestingError {
    /// Whether the same call can succeed later by itself.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Environment(error) => error.retryable(),
            Self::Config(error) => error.retryable(),
            Self::Transport(error) => error.retryable(),
            Self::Node(error) => error.retryable(),
            Self::Client(error) => error.retryable(),
            Self::Read(error) => error.retryable(),
            Self::NotPrepared { .. } | Self::NotRead => true,
            Self::Folder(_) | Self::Name(_) | Self::Absent { .. } | Self::NotSubmitted { .. } | Self::Ended => false,
        }
    }
}

impl From<EnvironmentError> for TestingError {
    fn from(error: EnvironmentError) -> Self {
        Self::Environment(Arc::new(error))
    }
}

impl From<ConfigError> for TestingError {
    fn from(error: ConfigError) -> Self {
        Self::Config(Arc::new(error))
    }
}

impl From<ClientError> for TestingError {
    fn from(error: ClientError) -> Self {
        Self::Client(Arc::new(error))
    }
}

impl From<ReadError> for TestingError {
    fn from(error: ReadError) -> Self {
        Self::Read(Arc::new(error))
    }
}
