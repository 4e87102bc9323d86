//! The machine's disk with a hand on it: the outbox's database can be held up or fail in the middle of a commit, and files of
//! parcels can find no room.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use sealcast::seams::{Disk, DiskFile, RealDisk};

#[derive(Debug, Default, Clone, Copy)]
struct Hand {
    held: bool,
    waiting: usize,
    failing: bool,
    no_room: bool,
}

/// The disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct HeldDisk {
    hand: Arc<(Mutex<Hand>, Condvar)>,
}

impl HeldDisk {
    fn set(&self, change: impl FnOnce(&mut Hand)) {
        change(&mut self.hand.0.lock().unwrap());
        self.hand.1.notify_all();
    }

    /// From now on no commit of the database ends.
    pub fn hold(&self) {
        self.set(|hand| hand.held = true);
    }

    /// Lets all go on.
    pub fn release(&self) {
        self.set(|hand| hand.held = false);
    }

    /// Lets every commit of the database fail from now on.
    pub fn fail(&self) {
        self.set(|hand| hand.failing = true);
    }

    /// From now on no file of a parcel finds room.
    pub fn no_room(&self) {
        self.set(|hand| hand.no_room = true);
    }

    /// Waits until a commit is held up.
    pub async fn somebody_waits(&self) {
        while self.hand.0.lock().unwrap().waiting == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Disk for HeldDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let in_parcels = path.parent().is_some_and(|folder| folder.ends_with("parcels"));
        if in_parcels && self.hand.0.lock().unwrap().no_room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(self.file(path, RealDisk.create_new(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(path, RealDisk.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn make_folder(&self, path: &Path) -> io::Result<bool> {
        RealDisk.make_folder(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_folder(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        RealDisk.list(folder)
    }

    fn free(&self, folder: &Path) -> io::Result<u64> {
        RealDisk.free(folder)
    }
}

impl HeldDisk {
    fn file(&self, path: &Path, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        // A database has another name while it is made.
        match path.extension().is_some_and(|extension| extension == "redb" || extension == "making") {
            true => Box::new(HeldFile { file, disk: self.clone() }),
            false => file,
        }
    }
}

#[derive(Debug)]
struct HeldFile {
    file: Box<dyn DiskFile>,
    disk: HeldDisk,
}

impl DiskFile for HeldFile {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_at(bytes, at)
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_at(into, at)
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_length(length)
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }

    fn unlock(&self) -> io::Result<()> {
        self.file.unlock()
    }

    fn sync(&self) -> io::Result<()> {
        let (hand, changed) = &*self.disk.hand;
        let mut now = hand.lock().unwrap();
        now.waiting += 1;
        while now.held {
            now = changed.wait(now).unwrap();
        }
        now.waiting -= 1;
        if now.failing {
            return Err(io::Error::other("the disk is broken"));
        }
        drop(now);
        self.file.sync()
    }
}
