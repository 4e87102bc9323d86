//! The machine's disk with a hand on it: the outbox's database can be held up or fail in the middle of a commit, and files of
//! parcels can find no room.

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use sealcast::seams::{Disk, DiskHook, DiskStep, HookedDisk};

#[derive(Debug, Default, Clone, Copy)]
struct Hand {
    held: bool,
    waiting: usize,
    failing: bool,
    no_room: bool,
}

/// The hand. Clones are the same hand.
#[derive(Debug, Clone, Default)]
pub struct HeldDisk {
    hand: Arc<(Mutex<Hand>, Condvar)>,
}

impl HeldDisk {
    /// The disk on which it has its hand.
    pub fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(HookedDisk::real(self.clone()))
    }

    fn set(&self, change: impl FnOnce(&mut Hand)) {
        change(&mut self.hand.0.lock().unwrap());
        self.hand.1.notify_all();
    }

    /// From now on no commit of the database ends, until it is released or this goes: a test that fails ends too.
    #[must_use]
    pub fn hold(&self) -> Holding {
        self.set(|hand| hand.held = true);
        Holding(self.clone())
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

/// Lets all go on when it goes.
pub struct Holding(HeldDisk);

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl DiskHook for HeldDisk {
    fn before(&self, step: DiskStep, path: &Path) -> io::Result<()> {
        let in_parcels = path.parent().is_some_and(|folder| folder.ends_with("parcels"));
        if step == DiskStep::Create && in_parcels && self.hand.0.lock().unwrap().no_room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn sync(&self, path: &Path, sync: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        // A database has another name while it is made.
        if path.extension().is_none_or(|extension| extension != "redb" && extension != "making") {
            return sync();
        }
        let (hand, changed) = &*self.hand;
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
        sync()
    }
}
