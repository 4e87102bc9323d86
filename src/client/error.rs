//! What can go wrong on the sender's side. Fates are not here: a rejection is an outcome, not an error.

use crate::core::directory::DirectoryError;
use crate::core::id::{DestinationName, IdError, Suite};
use crate::store::outbox::OutboxError;
use crate::transport::TransportError;

use super::transaction::Transaction;

/// Why the client did not do what was asked.
///
/// ```no_run
/// # async fn example() {
/// match sealcast::client::Client::connect("client.toml").await {
///     Ok(client) => client.close().await,
///     Err(error) if error.retryable() => eprintln!("{error}; trying again later"),
///     Err(error) => eprintln!("{error}"),
/// }
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The window is full: as many transactions or bytes are undecided as may be. Wait for fates
    /// ([`Client::ready`](super::Client::ready)) and submit again.
    #[error(
        "the window is full: {transactions} transactions with {bytes} bytes are undecided; wait for fates and submit again"
    )]
    WindowFull {
        /// Undecided transactions.
        transactions: usize,
        /// Their payload bytes.
        bytes: u64,
    },
    /// The outbox has no room, or failed.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The directory has no such destination.
    #[error("the directory has no destination {destination}")]
    NoDestination {
        /// What was asked for.
        destination: DestinationName,
    },
    /// The directory does not let this sender write there.
    #[error("the directory does not let this sender submit to {destination}: ask its operator")]
    NotPermitted {
        /// Where.
        destination: DestinationName,
    },
    /// The destination takes no parcels of the suite that this client seals with.
    #[error("{destination} has no current key of suite {suite}, or asks for a stronger one")]
    Suite {
        /// Where.
        destination: DestinationName,
        /// The client's suite.
        suite: Suite,
    },
    /// A part of the transaction passes a limit or contradicts another.
    #[error("{field}: {problem}")]
    Transaction {
        /// Which part.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A name, ticket or position that does not read.
    #[error(transparent)]
    Id(#[from] IdError),
    /// Reading the payload failed; nothing was submitted.
    #[error("reading the payload failed: {0}")]
    Read(#[source] std::io::Error),
    /// The payload's reader gave another length than was said; nothing was submitted.
    #[error("the payload has {given} bytes, not {said}")]
    Length {
        /// What was said.
        said: u64,
        /// What came, at least.
        given: u64,
    },
    /// A payload that is read twice was another one the second time; nothing was submitted.
    #[error("the payload changed while it was read: nothing was submitted; submit it again when nobody writes to it")]
    Changed,
    /// The operating system gave no randomness; nothing was sealed.
    #[error(transparent)]
    Randomness(#[from] crate::seams::RandomnessError),
    /// Sealing failed; nothing was submitted.
    #[error("sealing failed: {cause}")]
    Seal {
        /// What failed.
        cause: String,
    },
    /// The directory does not verify.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The directory is past its end and its grace.
    #[error(
        "the directory is no longer valid: nothing is submitted under it; get a newer one from its operator (nodes tell of it)"
    )]
    DirectoryEnded,
    /// The configuration.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// A part of the configuration that a sender needs.
    #[error("{setting}: {problem}")]
    Setting {
        /// Which setting.
        setting: &'static str,
        /// What is missing.
        problem: String,
    },
    /// The transport cannot be opened.
    #[error("the transport cannot be opened: {0}")]
    Transport(#[from] TransportError),
    /// The client is closed.
    #[error("the client is closed")]
    Closed,
}

impl ClientError {
    /// The same for one more of those whom it concerns. What sealing never fails with becomes [`ClientError::Seal`].
    pub(super) fn also(&self) -> Self {
        match self {
            Self::Outbox(error) => Self::Outbox(error.clone()),
            Self::Randomness(error) => Self::Randomness(error.clone()),
            Self::NoDestination { destination } => Self::NoDestination { destination: destination.clone() },
            Self::Suite { destination, suite } => Self::Suite { destination: destination.clone(), suite: *suite },
            Self::Seal { cause } => Self::Seal { cause: cause.clone() },
            other => Self::Seal { cause: other.to_string() },
        }
    }

    /// Whether the same call on the same client can succeed later by itself: when there are fates, room or randomness, or a
    /// newer directory was told of. What is false needs another call, configuration or directory.
    pub fn retryable(&self) -> bool {
        match self {
            Self::WindowFull { .. } | Self::Changed | Self::DirectoryEnded => true,
            Self::Outbox(error) => error.retryable(),
            Self::Transport(error) => error.retryable(),
            Self::Randomness(error) => error.retryable(),
            Self::Config(error) => error.retryable(),
            Self::Directory(error) => error.retryable(),
            Self::Id(error) => error.retryable(),
            // A reader that failed has given part of its bytes already.
            Self::Read(_) | Self::Length { .. } => false,
            Self::NoDestination { .. } | Self::NotPermitted { .. } | Self::Suite { .. } => false,
            Self::Transaction { .. } | Self::Seal { .. } | Self::Setting { .. } | Self::Closed => false,
        }
    }
}

/// A submission that did not happen, with the transaction given back.
///
/// ```no_run
/// # async fn example(client: sealcast::client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use sealcast::client::Transaction;
///
/// if let Err(refused) = client.submit("orders", Transaction::new("ten nails")).await {
///     if !refused.retryable() {
///         return Err(refused.into());
///     }
///     // The very same transaction, so that it is committed once whatever became of the first try.
///     client.submit("orders", *refused.transaction).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct SubmitError {
    /// Why.
    #[source]
    pub error: ClientError,
    /// The transaction as it was given; boxed, because it is larger than the good news.
    pub transaction: Box<Transaction>,
}

impl SubmitError {
    /// Whether submitting it again can succeed later by itself.
    pub fn retryable(&self) -> bool {
        self.error.retryable()
    }
}

impl From<SubmitError> for ClientError {
    fn from(error: SubmitError) -> Self {
        error.error
    }
}
