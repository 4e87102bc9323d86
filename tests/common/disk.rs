//! A disk in memory that can crash: what was not synced is gone then, file contents and folder entries alike; or all of it
//! is there, or some of it, as it pleases.

#![allow(dead_code)] // each test file uses its part

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use sealcast::seams::{Disk, DiskFile};

#[derive(Debug, Default, Clone)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// What makes `now` of `durable`, in order.
    unsynced: Vec<Change>,
    locked: bool,
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

impl Change {
    fn make(&self, of: &mut Vec<u8>) {
        match self {
            Self::Write(at, bytes) => {
                let (at, end) = (*at as usize, *at as usize + bytes.len());
                if of.len() < end {
                    of.resize(end, 0);
                }
                of[at..end].copy_from_slice(bytes);
            }
            Self::Length(length) => of.resize(*length as usize, 0),
        }
    }

    /// The same in parts that reach the disk each for itself.
    fn parts(&self) -> Vec<Self> {
        let Self::Write(mut at, bytes) = self.clone() else { return vec![self.clone()] };
        let (mut parts, mut rest) = (Vec::new(), bytes.as_slice());
        while !rest.is_empty() {
            let (part, more) = rest.split_at(rest.len().min((SECTOR - at % SECTOR) as usize));
            parts.push(Self::Write(at, part.to_vec()));
            at += part.len() as u64;
            rest = more;
        }
        parts
    }
}

/// What a disk writes at once.
const SECTOR: u64 = 4096;

/// A change of a folder.
#[derive(Clone)]
enum Entry {
    File(PathBuf, Shared),
    Renamed(PathBuf, PathBuf),
    Removed(PathBuf),
    Folder(PathBuf),
}

impl Entry {
    fn folder(&self) -> Option<&Path> {
        let (Self::File(path, _) | Self::Renamed(_, path) | Self::Removed(path) | Self::Folder(path)) = self;
        path.parent()
    }

    fn make(&self, files: &mut BTreeMap<PathBuf, Shared>, folders: &mut BTreeSet<PathBuf>) {
        match self {
            Self::File(path, content) => drop(files.insert(path.clone(), content.clone())),
            Self::Renamed(from, to) => {
                if let Some(content) = files.remove(from) {
                    files.insert(to.clone(), content);
                }
            }
            Self::Removed(path) => drop(files.remove(path)),
            Self::Folder(path) => drop(folders.insert(path.clone())),
        }
    }
}

type Shared = Arc<Mutex<Content>>;

#[derive(Default)]
struct State {
    now: BTreeMap<PathBuf, Shared>,
    durable: BTreeMap<PathBuf, Shared>,
    folders: BTreeSet<PathBuf>,
    durable_folders: BTreeSet<PathBuf>,
    /// What makes the entries of now of the durable ones, in order.
    unsynced: Vec<Entry>,
}

/// What is called after every change of the disk.
type AfterEach = Box<dyn FnMut() + Send>;

/// What goes wrong, and when.
#[derive(Default)]
struct Faults {
    /// Every sync from now on fails.
    syncs: AtomicU64,
    /// Every sync of a file that was made for a body fails.
    body_syncs: AtomicBool,
    /// The sync that fails, once, counted down; 0 for none.
    one_sync: AtomicU64,
    /// Changes until the disk has no room for any more, counted down; 0 for none.
    full_after: AtomicU64,
    full: AtomicBool,
    /// What is called after every change.
    after: Mutex<Option<AfterEach>>,
}

impl Faults {
    fn counted_down(of: &AtomicU64) -> bool {
        of.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) == Ok(1)
    }

    fn sync(&self) -> io::Result<()> {
        if self.syncs.load(Ordering::SeqCst) != 0 || Self::counted_down(&self.one_sync) {
            return Err(io::Error::other("the disk is broken"));
        }
        Ok(())
    }

    fn room(&self) -> io::Result<()> {
        if Self::counted_down(&self.full_after) {
            self.full.store(true, Ordering::SeqCst);
        }
        if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn changed(&self) {
        if let Some(after) = self.after.lock().unwrap().as_mut() {
            after();
        }
    }
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
    faults: Arc<Faults>,
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
        Self::from(&state.durable, &state.durable_folders, |content| content.durable.clone())
    }

    /// The disk as it is after the process was killed at this moment: the system still writes all that it was given.
    pub fn killed(&self) -> Self {
        let state = self.state.lock().unwrap();
        Self::from(&state.now, &state.folders, |content| content.now.clone())
    }

    /// The disk as it may be after a power cut at this moment: of what was not synced, whatever `keeps` says is there, each
    /// sector and each entry for itself.
    pub fn crash_keeping(&self, mut keeps: impl FnMut() -> bool) -> Self {
        let state = self.state.lock().unwrap();
        let (mut files, mut folders) = (state.durable.clone(), state.durable_folders.clone());
        for entry in state.unsynced.iter().filter(|_| keeps()) {
            entry.make(&mut files, &mut folders);
        }
        Self::from(&files, &folders, |content| {
            let mut bytes = content.durable.clone();
            let parts = content.unsynced.iter().flat_map(Change::parts);
            parts.filter(|_| keeps()).for_each(|part| part.make(&mut bytes));
            bytes
        })
    }

    fn from(
        files: &BTreeMap<PathBuf, Shared>,
        folders: &BTreeSet<PathBuf>,
        mut left: impl FnMut(&Content) -> Vec<u8>,
    ) -> Self {
        let after = Self::new();
        let mut next = after.state.lock().unwrap();
        next.folders = folders.iter().filter(|folder| reachable(folder, folders)).cloned().collect();
        next.durable_folders = next.folders.clone();
        for (path, content) in files.iter().filter(|(path, _)| reachable(path, folders)) {
            let bytes = left(&content.lock().unwrap());
            let content = Content { now: bytes.clone(), durable: bytes, ..Content::default() };
            let content = Arc::new(Mutex::new(content));
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
        self.faults.syncs.store(1, Ordering::SeqCst);
    }

    /// Lets every sync of a file fail that is made for a body.
    pub fn fail_body_syncs(&self) {
        self.faults.body_syncs.store(true, Ordering::SeqCst);
    }

    /// Lets one sync fail, this many from now on, and none after it.
    pub fn fail_one_sync(&self, after: u64) {
        self.faults.one_sync.store(after, Ordering::SeqCst);
    }

    /// Lets the disk be full after so many changes of files and folders.
    pub fn fill_after(&self, changes: u64) {
        self.faults.full_after.store(changes, Ordering::SeqCst);
    }

    /// Has this called after every write, sync, rename and whatever else changes the disk, by whoever changes it.
    pub fn after_each(&self, call: impl FnMut() + Send + 'static) {
        *self.faults.after.lock().unwrap() = Some(Box::new(call));
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

    fn file(&self, content: Shared, path: &Path) -> Box<dyn DiskFile> {
        Box::new(CrashFile {
            content,
            of_body: path.parent().is_some_and(|folder| folder.ends_with("bodies")),
            syncs: self.syncs.clone(),
            faults: self.faults.clone(),
            locked: AtomicBool::new(false),
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
        let content = Shared::default();
        {
            let mut state = self.state.lock().unwrap();
            if state.now.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if !reachable(path, &state.folders) {
                return Err(io::ErrorKind::NotFound.into());
            }
            self.faults.room()?;
            state.now.insert(path.to_owned(), content.clone());
            state.unsynced.push(Entry::File(path.to_owned(), content.clone()));
        }
        self.faults.changed();
        Ok(self.file(content, path))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let state = self.state.lock().unwrap();
        let content = state.now.get(path).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(self.file(content, path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        {
            let mut state = self.state.lock().unwrap();
            self.faults.room()?;
            let content = state.now.remove(from).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            state.now.insert(to.to_owned(), content);
            state.unsynced.push(Entry::Renamed(from.to_owned(), to.to_owned()));
        }
        self.faults.changed();
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        {
            let mut state = self.state.lock().unwrap();
            if state.now.remove(path).is_some() {
                state.unsynced.push(Entry::Removed(path.to_owned()));
            }
        }
        self.faults.changed();
        Ok(())
    }

    fn make_folder(&self, path: &Path) -> io::Result<bool> {
        let new = {
            let mut state = self.state.lock().unwrap();
            if path.parent().is_none() {
                return Ok(false);
            }
            if !reachable(path, &state.folders) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let new = state.folders.insert(path.to_owned());
            if new {
                state.unsynced.push(Entry::Folder(path.to_owned()));
            }
            new
        };
        self.faults.changed();
        Ok(new)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.faults.sync()?;
        self.syncs.fetch_add(1, Ordering::SeqCst);
        {
            let mut state = self.state.lock().unwrap();
            let State { durable, durable_folders, unsynced, .. } = &mut *state;
            for entry in unsynced.extract_if(.., |entry| entry.folder() == Some(folder)) {
                entry.make(durable, durable_folders);
            }
        }
        self.faults.changed();
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

struct CrashFile {
    content: Shared,
    of_body: bool,
    syncs: Arc<AtomicU64>,
    faults: Arc<Faults>,
    locked: AtomicBool,
}

impl CrashFile {
    fn change(&self, change: Change) -> io::Result<()> {
        self.faults.room()?;
        {
            let mut content = self.content.lock().unwrap();
            change.make(&mut content.now);
            content.unsynced.push(change);
        }
        self.faults.changed();
        Ok(())
    }
}

impl std::fmt::Debug for CrashFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CrashFile").finish_non_exhaustive()
    }
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
        self.change(Change::Write(at, bytes.to_vec()))
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
        self.change(Change::Length(length))
    }

    fn sync(&self) -> io::Result<()> {
        if self.of_body && self.faults.body_syncs.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is broken"));
        }
        self.faults.sync()?;
        self.syncs.fetch_add(1, Ordering::SeqCst);
        {
            let mut content = self.content.lock().unwrap();
            let Content { durable, unsynced, .. } = &mut *content;
            unsynced.drain(..).for_each(|change| change.make(durable));
        }
        self.faults.changed();
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
