//! Large bodies as files: written under a temporary name, made durable, then renamed; a row names them only after that.
//!
//! Owns one folder. Must not know which transactions the bodies belong to, nor open what is sealed in them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;

use super::StoreError;
use crate::core::id::Digest;
use crate::core::limits;
use crate::core::wire::label;
use crate::seams::{Disk, DiskFile};

const TEMPORARY: &str = "tmp";

/// Bytes that must stay free before anything new is taken in, so that what was taken can be finished: the log, fates,
/// offsets.
pub const RESERVED_BYTES: u64 = 64 * 1024 * 1024;

/// After so many bytes of a body the free space is looked at again. What all bodies that are written at once may take
/// between two looks is a small part of the reserve.
const LOOK_EVERY: u64 = 2 * 1024 * 1024;

/// The folder of a group's large bodies. Cheap to clone. All calls block.
#[derive(Clone)]
pub struct Bodies {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    next: Arc<AtomicU64>,
    /// Bytes of small bodies that are in memory until they have a row.
    small: Arc<AtomicUsize>,
}

/// A part of [`limits::SMALL_BODIES_BYTES`], given back when it is dropped.
#[derive(Default)]
struct Room {
    of: Arc<AtomicUsize>,
    bytes: usize,
}

impl Room {
    /// Takes more, unless that is over the limit.
    fn grow(&mut self, bytes: usize) -> bool {
        let fits = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= limits::SMALL_BODIES_BYTES);
        let grown = self.of.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        self.bytes += if grown { bytes } else { 0 };
        grown
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The digest of a transaction's ciphertext, as manifests state it: BLAKE3 over its label and the bytes.
pub fn body_hasher() -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(label::BODY);
    hasher
}

impl Bodies {
    /// Opens the folder, makes it if need be, and removes what earlier lives left half written.
    pub fn open(disk: Arc<dyn Disk>, folder: PathBuf) -> Result<Self, StoreError> {
        disk.create_folder(&folder).map_err(StoreError::failed("making the folder of bodies"))?;
        let bodies = Self { disk, folder, next: Arc::default(), small: Arc::default() };
        let mut next = 0;
        for path in bodies.list()? {
            if path.extension().is_some_and(|extension| extension == TEMPORARY) {
                bodies.disk.remove(&path).map_err(StoreError::failed("removing a half written body"))?;
            } else if let Some((_, _, number)) = parse(&path) {
                next = next.max(number + 1);
            }
        }
        bodies.next.store(next, Ordering::Relaxed);
        Ok(bodies)
    }

    fn list(&self) -> Result<Vec<PathBuf>, StoreError> {
        self.disk.list(&self.folder).map_err(StoreError::failed("listing the folder of bodies"))
    }

    /// The file of a body. Its last number is never used again while the file is there, so that what removes an old body
    /// cannot hit a new one of the same parcel.
    fn path(&self, digest: &Digest, index: u32, number: u64) -> PathBuf {
        self.folder.join(format!("{digest}.{index}.{number}"))
    }

    /// Starts a body: it stays in memory up to [`limits::SMALL_BODY_BYTES`], and while all of them together are within
    /// [`limits::SMALL_BODIES_BYTES`], then goes to a file.
    pub fn writer(&self) -> BodyWriter {
        let room = Room { of: self.small.clone(), bytes: 0 };
        BodyWriter { bodies: self.clone(), hasher: body_hasher(), length: 0, small: Vec::new(), room, file: None }
    }

    /// Gives finished bodies of one parcel their names and makes these durable. Bodies in memory need none.
    pub fn place(&self, digest: &Digest, bodies: &mut [(u32, &mut FinishedBody)]) -> Result<(), StoreError> {
        let mut renamed = false;
        for (index, body) in bodies {
            if let Some((temporary, number)) = &body.temporary {
                let path = self.path(digest, *index, *number);
                self.disk.rename(temporary, &path).map_err(|error| self.unwritten("naming a body", &error))?;
                body.named = Some((path, *number));
                body.temporary = None;
                renamed = true;
            }
        }
        if renamed {
            self.disk.sync_folder(&self.folder).map_err(StoreError::failed("syncing the folder of bodies"))?;
        }
        Ok(())
    }

    /// Opens a body's file. Errors: [`StoreError::Failed`] when it is not there.
    pub fn open_body(&self, digest: &Digest, index: u32, number: u64) -> Result<BodyReader, StoreError> {
        let file = self.disk.open(&self.path(digest, index, number)).map_err(StoreError::failed("opening a body"))?;
        let length = file.length().map_err(StoreError::failed("opening a body"))?;
        Ok(BodyReader::File { file: Arc::from(file), length })
    }

    /// Removes a body's file; one that is not there is no error. Only after the row that names it is durably gone.
    pub fn remove(&self, digest: &Digest, index: u32, number: u64) -> Result<(), StoreError> {
        self.disk.remove(&self.path(digest, index, number)).map_err(StoreError::failed("removing a body"))
    }

    /// Removes every file for which `named` is false: those whose row never came or is gone.
    pub fn sweep(&self, named: impl Fn(&Digest, u32, u64) -> Result<bool, StoreError>) -> Result<(), StoreError> {
        for path in self.list()? {
            if let Some((digest, index, number)) = parse(&path)
                && !named(&digest, index, number)?
            {
                self.disk.remove(&path).map_err(StoreError::failed("removing a body without a row"))?;
            }
        }
        Ok(())
    }

    /// What a body's file could not be made or written for. The disk holds nothing that depends on it: only this body is
    /// lost, and can come again.
    fn unwritten(&self, doing: &'static str, error: &io::Error) -> StoreError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StoreError::DiskFull { free: self.free().unwrap_or(0), needed: RESERVED_BYTES }
            }
            _ => StoreError::Unwritten { doing, cause: error.to_string() },
        }
    }

    /// Errors: [`StoreError::DiskFull`] below the reserve.
    fn look(&self) -> Result<(), StoreError> {
        // A file system that cannot say is no reason to refuse: the write itself will tell.
        let free = self.free().unwrap_or(u64::MAX);
        if free < RESERVED_BYTES { Err(StoreError::DiskFull { free, needed: RESERVED_BYTES }) } else { Ok(()) }
    }

    /// Bytes still free where the bodies lie.
    pub fn free(&self) -> Result<u64, StoreError> {
        self.disk.free(&self.folder).map_err(StoreError::failed("asking for free space"))
    }
}

fn parse(path: &Path) -> Option<(Digest, u32, u64)> {
    let mut parts = path.file_name()?.to_str()?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Takes one transaction's ciphertext as it comes. Dropped before its end, it leaves nothing.
pub struct BodyWriter {
    bodies: Bodies,
    hasher: blake3::Hasher,
    length: u64,
    small: Vec<u8>,
    room: Room,
    file: Option<(PathBuf, u64, Box<dyn DiskFile>)>,
}

impl BodyWriter {
    /// The next bytes. Errors: [`StoreError::DiskFull`] once less than [`RESERVED_BYTES`] are free, and
    /// [`StoreError::Unwritten`]; the body is lost then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hasher.update(bytes);
        let small = self.file.is_none() && self.small.len() + bytes.len() <= limits::SMALL_BODY_BYTES;
        if small && self.room.grow(bytes.len()) {
            self.small.extend_from_slice(bytes);
            self.length += bytes.len() as u64;
            return Ok(());
        }
        if self.file.is_none() {
            let number = self.bodies.next.fetch_add(1, Ordering::Relaxed);
            let path = self.bodies.folder.join(format!("{number}.{TEMPORARY}"));
            self.bodies.look()?;
            let unwritten = |error| self.bodies.unwritten("creating a body", &error);
            let file = self.bodies.disk.create_new(&path).map_err(unwritten)?;
            let (_, _, file) = self.file.insert((path, number, file));
            file.write_at(&self.small, 0).map_err(|error| self.bodies.unwritten("writing a body", &error))?;
            self.small = Vec::new();
            self.room = Room::default();
        }
        if let Some((_, _, file)) = &self.file {
            let after = self.length + bytes.len() as u64;
            if self.length / LOOK_EVERY != after / LOOK_EVERY {
                self.bodies.look()?;
            }
            file.write_at(bytes, self.length).map_err(|error| self.bodies.unwritten("writing a body", &error))?;
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Bytes taken so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The end: a file is made durable, still under its temporary name.
    pub fn finish(mut self) -> Result<FinishedBody, StoreError> {
        let temporary = match &self.file {
            Some((path, number, file)) => {
                file.sync().map_err(StoreError::failed("syncing a body"))?;
                Some((path.clone(), *number))
            }
            None => None,
        };
        let inline = temporary.is_none().then(|| Bytes::from(std::mem::take(&mut self.small)));
        self.file = None;
        Ok(FinishedBody {
            disk: self.bodies.disk.clone(),
            length: self.length,
            digest: Digest(*self.hasher.finalize().as_bytes()),
            inline,
            _room: std::mem::take(&mut self.room),
            temporary,
            named: None,
        })
    }
}

impl Drop for BodyWriter {
    fn drop(&mut self) {
        if let Some((path, _, _)) = self.file.take() {
            // What cannot be removed now is removed when the folder is opened again.
            let _ = self.bodies.disk.remove(&path);
        }
    }
}

/// A whole body, durable if it is a file. Dropped before a row names it, it leaves nothing.
pub struct FinishedBody {
    disk: Arc<dyn Disk>,
    /// Its length in bytes.
    pub length: u64,
    /// Its digest, as a manifest states it.
    pub digest: Digest,
    inline: Option<Bytes>,
    /// Of the bytes in memory, for as long as they wait for their row.
    _room: Room,
    temporary: Option<(PathBuf, u64)>,
    named: Option<(PathBuf, u64)>,
}

impl FinishedBody {
    /// The bytes, when it is small.
    pub fn inline(&self) -> Option<&Bytes> {
        self.inline.as_ref()
    }

    /// The number of its file, once it has its name, for the row that names it from now on.
    pub(crate) fn hand_over(&mut self) -> Option<u64> {
        self.named.take().map(|(_, number)| number)
    }
}

impl Drop for FinishedBody {
    fn drop(&mut self) {
        for (path, _) in self.temporary.take().into_iter().chain(self.named.take()) {
            // As above.
            let _ = self.disk.remove(&path);
        }
    }
}

impl std::fmt::Debug for FinishedBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FinishedBody")
            .field("length", &self.length)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

/// Reads a body by ranges. It stays readable after its removal. Cheap to clone.
#[derive(Debug, Clone)]
pub enum BodyReader {
    /// A small one.
    Inline(Bytes),
    /// A file.
    File {
        /// Its bytes.
        file: Arc<dyn DiskFile>,
        /// Its length in bytes.
        length: u64,
    },
}

impl BodyReader {
    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::File { length, .. } => *length,
        }
    }

    /// At most `most` bytes from `at` on; empty at the end. Blocks.
    pub fn read(&self, at: u64, most: usize) -> Result<Bytes, StoreError> {
        let left = usize::try_from(self.length().saturating_sub(at)).unwrap_or(usize::MAX).min(most);
        if left == 0 {
            return Ok(Bytes::new());
        }
        match self {
            // `left` is above zero, so `at` is below the length of bytes that are in memory.
            Self::Inline(bytes) => Ok(bytes.slice(at as usize..at as usize + left)),
            Self::File { file, .. } => {
                let mut into = vec![0; left];
                file.read_at(&mut into, at).map_err(StoreError::failed("reading a body"))?;
                Ok(into.into())
            }
        }
    }

    /// Whether the bytes are those of this digest, without opening them (R24). Blocks.
    pub fn matches(&self, digest: &Digest) -> Result<bool, StoreError> {
        let mut hasher = body_hasher();
        let mut at = 0;
        loop {
            let part = self.read(at, 1 << 20)?;
            if part.is_empty() {
                return Ok(hasher.finalize().as_bytes() == &digest.0);
            }
            hasher.update(&part);
            at += part.len() as u64;
        }
    }
}
