//! What can go wrong in a group's store.

use super::database::OpenError;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A row is not what was written: the disk or a person changed it. The node must not go on with it: restore nothing,
    /// move the folder away and let the node rejoin with an empty one.
    #[error("the store is damaged: {table}, {row}: {cause}")]
    Damaged {
        /// Which table.
        table: &'static str,
        /// Which row.
        row: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The database or a file could not be read or written. After a failed write the store has stopped.
    #[error("{doing}: {cause}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        cause: String,
    },
    /// A large body's file could not be made or written; the body is lost and can come again. The store goes on.
    #[error("{doing}: {cause}: see to the folder of bodies, its permissions and the limits of the process")]
    Unwritten {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        cause: String,
    },
    /// Too little space is left to take anything new in: free some; what the node has already taken goes on.
    #[error("the disk is full: {free} bytes are free, {needed} are needed; free some space")]
    DiskFull {
        /// Free bytes.
        free: u64,
        /// Bytes that must be free.
        needed: u64,
    },
    /// The store has stopped: after a failed write, or because the process is ending.
    #[error("the store has stopped: {cause}")]
    Stopped {
        /// Why.
        cause: String,
    },
}

impl StoreError {
    /// Whether the same call can succeed later by itself.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Open(error) => error.retryable(),
            Self::DiskFull { .. } | Self::Unwritten { .. } => true,
            _ => false,
        }
    }

    /// Makes a [`StoreError::Failed`] of any error; for `map_err`.
    pub(crate) fn failed<E: std::fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Failed { doing, cause: error.to_string() }
    }

    pub(crate) fn damaged(table: &'static str, row: impl ToString, cause: impl ToString) -> Self {
        Self::Damaged { table, row: row.to_string(), cause: cause.to_string() }
    }
}
