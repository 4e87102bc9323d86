//! The Unix socket in an embedded transport's folder: where it is, and who may open it.
//!
//! Owns its name, its rights and what is wrong with it. Must not know what is said over it.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};

/// Its name in the folder.
const NAME: &str = "socket";

/// Longest gRPC message from an attached process: one record, with its key, its topic's name and the frame.
pub(super) const APPEND_BYTES: usize = crate::core::limits::SEGMENT_BYTES
    + crate::core::limits::KEY_BYTES
    + crate::store::records::TOPIC_NAME_BYTES
    + 1024;

/// Longest gRPC message to an attached process: what a read gives. The smallest records grow most by their framing here.
pub(super) const READ_ANSWER_BYTES: usize = 2 * crate::transport::READ_BYTES + APPEND_BYTES;

/// HTTP/2 windows: what one side may send before the other reads.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 4 << 20;

/// What is wrong with sharing an embedded transport between processes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// No process has the folder open and serves it.
    #[error("nobody serves {}: start `sealcast dev {environment}`, and let it run", folder.display())]
    NobodyServes {
        /// The transport's folder.
        folder: PathBuf,
        /// The environment's folder, as far as it can be told from there.
        environment: String,
    },
    /// The system takes no socket of so long a name.
    #[error(
        "{}: a socket's path may have about a hundred bytes on this system, and this one has {length}: move the environment to \
         a folder with a shorter path, or give its configurations a shorter transport.path", path.display()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Others may enter the folder.
    #[error("{}: others than its owner may enter this folder: run `chmod 700 {}`", folder.display(), folder.display())]
    Open {
        /// The folder.
        folder: PathBuf,
    },
    /// The system refused an operation on the socket.
    #[error("{}: cannot {action}: {cause}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        cause: String,
    },
    /// The process that serves the folder refused, or went away.
    #[error("the process that serves {}: {cause}", folder.display())]
    Served {
        /// The folder.
        folder: PathBuf,
        /// What it said.
        cause: String,
        /// Whether the same can succeed later.
        retryable: bool,
    },
    /// The caller is outside of a tokio runtime.
    #[error("an embedded transport of another process is reached from within a tokio runtime alone")]
    NoRuntime,
}

impl SocketError {
    /// Whether the same call can succeed later by itself.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::NobodyServes { .. } | Self::Served { retryable: true, .. })
    }

    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { path: path.to_path_buf(), action, cause: error.to_string() }
    }
}

/// The folder by its own name, without `..` of a configuration in it, as far as it is there.
pub(super) fn real(folder: &Path) -> PathBuf {
    if let Ok(real) = folder.canonicalize() {
        return real;
    }
    let parent = folder.parent().and_then(|parent| parent.canonicalize().ok());
    match (parent, folder.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => folder.to_path_buf(),
    }
}

/// The socket of a folder, which need not be there yet, by the shorter of its names. Errors:
/// [`SocketError::PathTooLong`].
pub fn path(folder: &Path) -> Result<PathBuf, SocketError> {
    let (given, real) = (folder.join(NAME), real(folder).join(NAME));
    let path = if given.as_os_str().len() < real.as_os_str().len() { given } else { real };
    match SocketAddr::from_pathname(&path) {
        Ok(_) => Ok(path),
        Err(_) => Err(SocketError::PathTooLong { length: path.as_os_str().len(), path }),
    }
}

/// Refuses a folder that others may enter.
pub(super) fn check_private(folder: &Path) -> Result<(), SocketError> {
    let found = std::fs::metadata(folder).map_err(SocketError::io(folder, "look at the folder"))?;
    if found.permissions().mode() & 0o077 == 0 {
        Ok(())
    } else {
        Err(SocketError::Open { folder: folder.to_path_buf() })
    }
}

/// Whether a process serves the folder now. Errors: [`SocketError::NobodyServes`], [`SocketError::PathTooLong`],
/// [`SocketError::Io`].
pub fn check_served(folder: &Path) -> Result<(), SocketError> {
    let path = path(folder)?;
    match UnixStream::connect(&path) {
        Ok(_) => Ok(()),
        // Refused: a socket that a killed process left.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Err(nobody(folder))
        }
        Err(error) => Err(SocketError::io(&path, "connect")(error)),
    }
}

pub(super) fn nobody(folder: &Path) -> SocketError {
    let folder = real(folder);
    // Where `init` puts it, the environment is around it.
    let around = folder.parent().filter(|around| around.join("nodes").is_dir());
    let environment = around.map_or_else(|| "DIR".to_owned(), |around| around.display().to_string());
    SocketError::NobodyServes { folder, environment }
}
