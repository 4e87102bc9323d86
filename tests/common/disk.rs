//! A disk in memory that can crash: what was not synced is gone then, file contents and folder entries alike.

#![allow(dead_code)] // each test file uses its part

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use sealcast::seams::{Disk, DiskFile};

#[derive(Debug, Default, Clone)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    locked: bool,
}

type Shared = Arc<Mutex<Content>>;

#[derive(Default)]
struct State {
    now: BTreeMap<PathBuf, Shared>,
    durable: BTreeMap<PathBuf, Shared>,
    folders: BTreeSet<PathBuf>,
    durable_folders: BTreeSet<PathBuf>,
}

/// Whether a path's folders are all among these; the root always is.
fn reachable(path: &Path, folders: &BTreeSet<PathBuf>) -> bool {
    path.ancestors().skip(1).all(|folder| folder.parent().is_none() || folders.contains(folder))
}

/// The disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct CrashDisk {
    state: Arc<Mutex<State>>,
    /// How often anything was made durable.
    pub syncs: Arc<AtomicU64>,
    free: Arc<AtomicU64>,
    failing: Arc<AtomicU64>,
    /// Why bodies get no file.
    no_bodies: Arc<Mutex<Option<io::ErrorKind>>>,
}

impl CrashDisk {
    /// An empty disk with much room.
    pub fn new() -> Self {
        let disk = Self::default();
        disk.free.store(u64::MAX, Ordering::SeqCst);
        disk
    }

    /// The disk as it is after a power cut at this moment: only what was synced. The old one goes on, as a process would
    /// that does not know yet.
    pub fn crash(&self) -> Self {
        let state = self.state.lock().unwrap();
        Self::from(&state.durable, &state.durable_folders, |content| &content.durable)
    }

    /// The disk as it is after the process was killed at this moment: the system still writes all that it was given.
    pub fn killed(&self) -> Self {
        let state = self.state.lock().unwrap();
        Self::from(&state.now, &state.folders, |content| &content.now)
    }

    fn from(
        files: &BTreeMap<PathBuf, Shared>,
        folders: &BTreeSet<PathBuf>,
        left: impl Fn(&Content) -> &Vec<u8>,
    ) -> Self {
        let after = Self::new();
        let mut next = after.state.lock().unwrap();
        next.folders = folders.iter().filter(|folder| reachable(folder, folders)).cloned().collect();
        next.durable_folders = next.folders.clone();
        for (path, content) in files.iter().filter(|(path, _)| reachable(path, folders)) {
            let bytes = left(&content.lock().unwrap()).clone();
            let content = Arc::new(Mutex::new(Content { now: bytes.clone(), durable: bytes, locked: false }));
            next.now.insert(path.clone(), content.clone());
            next.durable.insert(path.clone(), content);
        }
        drop(next);
        after
    }

    /// Says that only so many bytes are free.
    pub fn set_free(&self, bytes: u64) {
        self.free.store(bytes, Ordering::SeqCst);
    }

    /// Lets every sync from now on fail.
    pub fn fail_syncs(&self) {
        self.failing.store(1, Ordering::SeqCst);
    }

    /// Lets no file be made for a body from now on, or again.
    pub fn refuse_bodies(&self, kind: Option<io::ErrorKind>) {
        *self.no_bodies.lock().unwrap() = kind;
    }

    /// Flips one bit of a file, as a bad sector would.
    pub fn flip(&self, path: &Path, at: usize) {
        let state = self.state.lock().unwrap();
        let mut content = state.now[path].lock().unwrap();
        content.now[at] ^= 1;
        content.durable[at] ^= 1;
    }

    /// A file's bytes as they are now.
    pub fn bytes(&self, path: &Path) -> Vec<u8> {
        self.state.lock().unwrap().now[path].lock().unwrap().now.clone()
    }

    /// All files, by path.
    pub fn files(&self) -> Vec<PathBuf> {
        self.state.lock().unwrap().now.keys().cloned().collect()
    }

    fn file(&self, content: Shared) -> Box<dyn DiskFile> {
        Box::new(CrashFile {
            content,
            syncs: self.syncs.clone(),
            failing: self.failing.clone(),
            locked: std::sync::atomic::AtomicBool::new(false),
        })
    }
}

impl Disk for CrashDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        if path.parent().is_some_and(|folder| folder.ends_with("bodies"))
            && let Some(kind) = *self.no_bodies.lock().unwrap()
        {
            return Err(kind.into());
        }
        let mut state = self.state.lock().unwrap();
        if state.now.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !reachable(path, &state.folders) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let content = Shared::default();
        state.now.insert(path.to_owned(), content.clone());
        Ok(self.file(content))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let state = self.state.lock().unwrap();
        let content = state.now.get(path).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(self.file(content))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let content = state.now.remove(from).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        state.now.insert(to.to_owned(), content);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.state.lock().unwrap().now.remove(path);
        Ok(())
    }

    fn make_folder(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.state.lock().unwrap();
        if path.parent().is_none() {
            return Ok(false);
        }
        if !reachable(path, &state.folders) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(state.folders.insert(path.to_owned()))
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        if self.failing.load(Ordering::SeqCst) != 0 {
            return Err(io::Error::other("the disk is broken"));
        }
        self.syncs.fetch_add(1, Ordering::SeqCst);
        let mut state = self.state.lock().unwrap();
        state.durable.retain(|path, _| path.parent() != Some(folder));
        let entries: Vec<_> = state
            .now
            .iter()
            .filter(|(path, _)| path.parent() == Some(folder))
            .map(|(path, content)| (path.clone(), content.clone()))
            .collect();
        state.durable.extend(entries);
        let folders: Vec<_> = state.folders.iter().filter(|path| path.parent() == Some(folder)).cloned().collect();
        state.durable_folders.extend(folders);
        Ok(())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.state.lock().unwrap();
        Ok(state.now.keys().filter(|path| path.parent() == Some(folder)).cloned().collect())
    }

    fn free(&self, _: &Path) -> io::Result<u64> {
        Ok(self.free.load(Ordering::SeqCst))
    }
}

#[derive(Debug)]
struct CrashFile {
    content: Shared,
    syncs: Arc<AtomicU64>,
    failing: Arc<AtomicU64>,
    locked: std::sync::atomic::AtomicBool,
}

impl Drop for CrashFile {
    fn drop(&mut self) {
        if self.locked.load(Ordering::SeqCst) {
            self.content.lock().unwrap().locked = false;
        }
    }
}

impl DiskFile for CrashFile {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut content = self.content.lock().unwrap();
        let (at, end) = (at as usize, at as usize + bytes.len());
        if content.now.len() < end {
            content.now.resize(end, 0);
        }
        content.now[at..end].copy_from_slice(bytes);
        Ok(())
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        let content = self.content.lock().unwrap();
        let at = at as usize;
        let from = content.now.get(at..at + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.content.lock().unwrap().now.len() as u64)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.content.lock().unwrap().now.resize(length as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if self.failing.load(Ordering::SeqCst) != 0 {
            return Err(io::Error::other("the disk is broken"));
        }
        self.syncs.fetch_add(1, Ordering::SeqCst);
        let mut content = self.content.lock().unwrap();
        content.durable = content.now.clone();
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut content = self.content.lock().unwrap();
        if content.locked {
            return Ok(false);
        }
        content.locked = true;
        self.locked.store(true, Ordering::SeqCst);
        Ok(true)
    }

    fn unlock(&self) -> io::Result<()> {
        if self.locked.swap(false, Ordering::SeqCst) {
            self.content.lock().unwrap().locked = false;
        }
        Ok(())
    }
}
