//! redb over the disk seam: one way to open a database, so that simulation and crash tests see every write.
//! Must not know what is stored.

use std::io;
use std::path::Path;

use redb::{Database, StorageBackend};

use crate::seams::{Disk, DiskFile};

/// Why a database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder or the file.
    #[error("{path}: {cause}")]
    Disk {
        /// Which file.
        path: String,
        /// What the system said.
        cause: io::Error,
    },
    /// Another process has it open.
    #[error("{path} is in use by another process: end it, or use another folder")]
    InUse {
        /// Which file.
        path: String,
    },
    /// redb refuses it: damaged, or of another version.
    #[error("{path} cannot be opened: {cause}")]
    Damaged {
        /// Which file.
        path: String,
        /// What redb said.
        cause: Box<redb::DatabaseError>,
    },
}

impl OpenError {
    /// Whether opening again can succeed by itself: when the other process ends.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::InUse { .. })
    }
}

/// What the name of a file ends with while it is being made a database.
const MAKING: &str = "making";

/// Opens the database file, or makes it (for its owner alone), with a cache of this many bytes. One process at a time.
pub fn open(disk: &dyn Disk, path: &Path, cache_bytes: usize) -> Result<Database, OpenError> {
    let shown = || path.display().to_string();
    let disk_error = |cause| OpenError::Disk { path: shown(), cause };
    let over = |file: Box<dyn DiskFile>| {
        if !file.try_lock().map_err(disk_error)? {
            return Err(OpenError::InUse { path: shown() });
        }
        let builder = Database::builder().set_cache_size(cache_bytes).create_with_backend(Backend(file));
        builder.map_err(|cause| OpenError::Damaged { path: shown(), cause: Box::new(cause) })
    };
    let folder = path.parent().unwrap_or(path);
    disk.create_folder(folder).map_err(disk_error)?;
    match disk.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        file => return over(file.map_err(disk_error)?),
    }
    // Under another name until it is one: a crash on the way must not leave a file that can never be opened.
    let making = path.with_extension(MAKING);
    match disk.open(&making) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        file => {
            // Of a start that is over, unless it is locked.
            if !file.and_then(|file| file.try_lock()).map_err(disk_error)? {
                return Err(OpenError::InUse { path: shown() });
            }
            disk.remove(&making).map_err(disk_error)?;
        }
    }
    let file = disk.create_new(&making).map_err(disk_error)?;
    match disk.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // Another start made it meanwhile: it must not be replaced.
        made => {
            disk.remove(&making).map_err(disk_error)?;
            return over(made.map_err(disk_error)?);
        }
    }
    let database = over(file)?;
    disk.rename(&making, path).map_err(disk_error)?;
    disk.sync_folder(folder).map_err(disk_error)?;
    Ok(database)
}

#[derive(Debug)]
struct Backend(Box<dyn DiskFile>);

impl StorageBackend for Backend {
    /// The last call: redb reads and writes nothing more, whoever still has a read transaction. What is left open is no
    /// reason to keep others out.
    fn close(&self) -> io::Result<()> {
        self.0.unlock()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_length(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(data, offset)
    }
}
