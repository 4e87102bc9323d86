//! Files and folders, with the steps that durability needs as separate calls. All calls block; they belong on the
//! store's writer or in [`super::Work`].

use std::fmt::Debug;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A folder tree. Errors are the system's own.
pub trait Disk: Send + Sync + 'static {
    /// Creates a file that must not exist yet, readable by its owner alone, for reading and writing.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Renames within one folder tree; durable only after [`Disk::sync_folder`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; one that is not there is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Creates one folder, for its owner alone: whether it is new. Its parent must be there. Durable only after
    /// [`Disk::sync_folder`] of the parent.
    fn make_folder(&self, path: &Path) -> io::Result<bool>;
    /// Creates a folder and its parents, for their owner alone; one that is there is no error. What is new is durable: a
    /// synced file in a folder whose own entry was lost would be lost with it.
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let parent = match path.parent() {
            // A name alone lies in the working folder.
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => path,
        };
        let new = match self.make_folder(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && parent != path => {
                self.create_folder(parent)?;
                self.make_folder(path)?
            }
            other => other?,
        };
        if new { self.sync_folder(parent) } else { Ok(()) }
    }
    /// Makes the folder's entries durable.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// The files of a folder, sorted by name; none when there is no folder.
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>>;
    /// Bytes still free to this user.
    fn free(&self, folder: &Path) -> io::Result<u64>;
}

/// An open file. Positions are absolute, so readers do not disturb each other.
pub trait DiskFile: Send + Sync + Debug {
    /// Writes all of `bytes` at `at`.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Fills `into` whole from `at`; an earlier end is an error.
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()>;
    /// The length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Cuts or extends to `length`.
    fn set_length(&self, length: u64) -> io::Result<()>;
    /// Locks the file until it is unlocked or closed; `false` when another open file holds the lock.
    fn try_lock(&self) -> io::Result<bool>;
    /// Lets the lock go, though the file is open still.
    fn unlock(&self) -> io::Result<()>;
    /// Makes contents and length durable (fdatasync). After an error the process must stop: what the kernel kept is unknown.
    fn sync(&self) -> io::Result<()>;
}

/// The machine's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(RealFile(fs::OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn make_folder(&self, path: &Path) -> io::Result<bool> {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => Ok(true),
            Err(_) if path.is_dir() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    }

    fn free(&self, folder: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(folder)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[derive(Debug)]
struct RealFile(fs::File);

impl DiskFile for RealFile {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_exact_at(into, at)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn try_lock(&self) -> io::Result<bool> {
        match self.0.try_lock() {
            Ok(()) => Ok(true),
            Err(fs::TryLockError::WouldBlock) => Ok(false),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn unlock(&self) -> io::Result<()> {
        self.0.unlock()
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
