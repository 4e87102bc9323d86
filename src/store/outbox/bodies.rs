//! Sealed stripes of large parcels: one file for each parcel that only grows, or memory. Must not know rows.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::rows::{Bodies, ParcelRow, StripeFrame};
use crate::core::id::ParcelId;
use crate::seams::{Disk, DiskFile};

pub enum Store {
    Disk { disk: Arc<dyn Disk>, root: PathBuf, folder: PathBuf },
    Memory(Mutex<BTreeMap<ParcelId, Vec<Vec<u8>>>>),
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk { root, .. } => write!(f, "{}", root.display()),
            Self::Memory(_) => f.write_str("memory"),
        }
    }
}

/// The file of a parcel that is being sealed. Dropped before it was added, it is removed: the parcel is abandoned (R3).
#[derive(Debug)]
pub struct ParcelFile {
    parcel: ParcelId,
    file: Option<Box<dyn DiskFile>>,
    store: Option<Arc<Store>>,
    folder_synced: bool,
    /// Bytes written.
    pub(super) length: u64,
    /// Stripes written.
    pub(super) stripes: u32,
    /// Bytes of the first frame; all but the last are as long.
    pub(super) frame_bytes: u32,
}

impl ParcelFile {
    /// Bytes written so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The row of the parcel as it is so far.
    pub fn so_far(&self, row: &ParcelRow) -> ParcelRow {
        ParcelRow {
            stripes: self.stripes,
            sealed_bytes: self.length,
            frame_bytes: self.frame_bytes,
            bodies: Bodies::File,
            ..row.clone()
        }
    }

    pub(super) fn keep(mut self) {
        self.store = None;
    }
}

impl Drop for ParcelFile {
    fn drop(&mut self) {
        if let Some(store) = self.store.take()
            && let Err(error) = store.remove(self.parcel)
        {
            tracing::warn!(parcel = %self.parcel, %error, "an abandoned parcel's file stays until the outbox is opened again");
        }
    }
}

impl Store {
    pub fn disk(disk: Arc<dyn Disk>, root: &Path) -> io::Result<Arc<Self>> {
        let folder = root.join("parcels");
        disk.create_folder(&folder)?;
        Ok(Arc::new(Self::Disk { disk, root: root.to_owned(), folder }))
    }

    pub fn memory() -> Arc<Self> {
        Arc::new(Self::Memory(Mutex::default()))
    }

    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Disk { root, .. } => Some(root),
            Self::Memory(_) => None,
        }
    }

    pub fn free(&self) -> io::Result<u64> {
        match self {
            Self::Disk { disk, root, .. } => disk.free(root),
            Self::Memory(_) => Ok(u64::MAX),
        }
    }

    pub fn start(self: &Arc<Self>, parcel: ParcelId) -> io::Result<ParcelFile> {
        let file = match &**self {
            Self::Disk { disk, folder, .. } => Some(disk.create_new(&folder.join(parcel.to_string()))?),
            Self::Memory(_) => None,
        };
        let store = Some(self.clone());
        Ok(ParcelFile { parcel, file, store, folder_synced: false, length: 0, stripes: 0, frame_bytes: 0 })
    }

    pub fn append(&self, file: &mut ParcelFile, frames: &[StripeFrame]) -> io::Result<()> {
        for frame in frames {
            let bytes = frame.encode();
            if file.stripes == 0 {
                file.frame_bytes = bytes.len() as u32;
            }
            let length = bytes.len() as u64;
            match (self, &file.file) {
                (Self::Memory(parcels), _) => {
                    let mut parcels = parcels.lock().unwrap_or_else(PoisonError::into_inner);
                    parcels.entry(file.parcel).or_default().push(bytes);
                }
                (Self::Disk { .. }, Some(open)) => open.write_at(&bytes, file.length)?,
                (Self::Disk { .. }, None) => return Err(io::ErrorKind::NotFound.into()),
            }
            file.length += length;
            file.stripes += 1;
        }
        if let (Self::Disk { disk, folder, .. }, Some(open)) = (self, &file.file) {
            open.sync()?;
            if !file.folder_synced {
                disk.sync_folder(folder)?;
                file.folder_synced = true;
            }
        }
        Ok(())
    }

    pub fn read(&self, parcel: ParcelId, at: u64, length: usize, index: u32) -> io::Result<Vec<u8>> {
        match self {
            Self::Disk { disk, folder, .. } => {
                let mut bytes = vec![0; length];
                disk.open(&folder.join(parcel.to_string()))?.read_at(&mut bytes, at)?;
                Ok(bytes)
            }
            Self::Memory(parcels) => {
                let parcels = parcels.lock().unwrap_or_else(PoisonError::into_inner);
                let frame = parcels.get(&parcel).and_then(|frames| frames.get(index as usize));
                frame.cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
            }
        }
    }

    /// How long a parcel's file is; `None` when there is none.
    pub fn length(&self, parcel: ParcelId) -> io::Result<Option<u64>> {
        match self {
            Self::Disk { disk, folder, .. } => match disk.open(&folder.join(parcel.to_string())) {
                Ok(file) => file.length().map(Some),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            Self::Memory(parcels) => {
                let parcels = parcels.lock().unwrap_or_else(PoisonError::into_inner);
                let length = |frames: &Vec<Vec<u8>>| frames.iter().map(|frame| frame.len() as u64).sum();
                Ok(parcels.get(&parcel).map(length))
            }
        }
    }

    pub fn remove(&self, parcel: ParcelId) -> io::Result<()> {
        match self {
            Self::Disk { disk, folder, .. } => disk.remove(&folder.join(parcel.to_string())),
            Self::Memory(parcels) => {
                parcels.lock().unwrap_or_else(PoisonError::into_inner).remove(&parcel);
                Ok(())
            }
        }
    }

    /// Removes every file that belongs to none of these parcels, and says whose they were.
    pub fn remove_others(&self, known: &BTreeMap<ParcelId, u64>) -> io::Result<Vec<ParcelId>> {
        let Self::Disk { disk, folder, .. } = self else { return Ok(Vec::new()) };
        let mut abandoned = Vec::new();
        for path in disk.list(folder)? {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            if let Some(parcel) = name.filter(|parcel| !known.contains_key(parcel)) {
                disk.remove(&path)?;
                abandoned.push(parcel);
            }
        }
        Ok(abandoned)
    }
}
