//! A disk with somebody between it and those who use it: who leaves out what makes things durable, holds steps up, lets them
//! fail, or says how much room there is. For tests, a user's own among them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::{Disk, DiskFile, RealDisk};

/// What is done to a file or folder. Syncs and questions about room are told apart from these by methods of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiskStep {
    /// A file is made.
    Create,
    /// A file is opened.
    Open,
    /// Something is renamed; the path is that from before.
    Rename,
    /// A file is removed.
    Remove,
    /// A folder is made.
    MakeFolder,
    /// A folder's files are listed.
    List,
    /// Bytes of a file are read.
    Read,
    /// A file's length is asked for.
    Length,
    /// A file is cut or extended.
    SetLength,
    /// A file is locked or let go.
    Lock,
}

/// Who stands between. Without a word of its own everything goes through.
pub trait DiskHook: Clone + Send + Sync + 'static {
    /// Before a step; its error is the step's, which is not taken then.
    fn before(&self, _step: DiskStep, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    /// In place of writing `bytes`, which `write` does.
    fn write(&self, _path: &Path, bytes: &[u8], write: &dyn Fn(&[u8]) -> io::Result<()>) -> io::Result<()> {
        write(bytes)
    }

    /// In place of making a file or a folder durable, which `sync` does.
    fn sync(&self, _path: &Path, sync: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        sync()
    }

    /// How many bytes are free, when the disk says so many.
    fn free(&self, bytes: u64) -> u64 {
        bytes
    }
}

/// A disk, and who stands before it.
#[derive(Debug, Clone)]
pub struct HookedDisk<H, D = RealDisk> {
    hook: H,
    disk: D,
}

impl<H: DiskHook> HookedDisk<H> {
    /// The machine's own file system.
    pub fn real(hook: H) -> Self {
        Self { hook, disk: RealDisk }
    }
}

impl<H: DiskHook, D: Disk> HookedDisk<H, D> {
    /// Any disk.
    pub fn new(hook: H, disk: D) -> Self {
        Self { hook, disk }
    }

    fn file(&self, path: &Path, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(HookedFile { hook: self.hook.clone(), path: path.to_path_buf(), file })
    }
}

impl<H: DiskHook, D: Disk> Disk for HookedDisk<H, D> {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.hook.before(DiskStep::Create, path)?;
        Ok(self.file(path, self.disk.create_new(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.hook.before(DiskStep::Open, path)?;
        Ok(self.file(path, self.disk.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.hook.before(DiskStep::Rename, from)?;
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.hook.before(DiskStep::Remove, path)?;
        self.disk.remove(path)
    }

    fn make_folder(&self, path: &Path) -> io::Result<bool> {
        self.hook.before(DiskStep::MakeFolder, path)?;
        self.disk.make_folder(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.hook.sync(path, &|| self.disk.sync_folder(path))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        self.hook.before(DiskStep::List, folder)?;
        self.disk.list(folder)
    }

    fn free(&self, folder: &Path) -> io::Result<u64> {
        self.disk.free(folder).map(|bytes| self.hook.free(bytes))
    }
}

struct HookedFile<H> {
    hook: H,
    path: PathBuf,
    file: Box<dyn DiskFile>,
}

impl<H> fmt::Debug for HookedFile<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HookedFile({}, {:?})", self.path.display(), self.file)
    }
}

impl<H: DiskHook> DiskFile for HookedFile<H> {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.hook.write(&self.path, bytes, &|bytes| self.file.write_at(bytes, at))
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.hook.before(DiskStep::Read, &self.path)?;
        self.file.read_at(into, at)
    }

    fn length(&self) -> io::Result<u64> {
        self.hook.before(DiskStep::Length, &self.path)?;
        self.file.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.hook.before(DiskStep::SetLength, &self.path)?;
        self.file.set_length(length)
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.hook.before(DiskStep::Lock, &self.path)?;
        self.file.try_lock()
    }

    fn unlock(&self) -> io::Result<()> {
        self.hook.before(DiskStep::Lock, &self.path)?;
        self.file.unlock()
    }

    fn sync(&self) -> io::Result<()> {
        self.hook.sync(&self.path, &|| self.file.sync())
    }
}
