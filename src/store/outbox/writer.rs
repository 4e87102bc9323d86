//! One writer for the outbox's database: whoever waits while a commit runs shares the next one, and its fsync.
//! Must not know what rows mean.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{Database, Durability, TableDefinition};
use tokio::sync::oneshot;

use super::bodies::{ParcelFile, Store};
use super::rows::{Bodies, ParcelRow};
use super::{OutboxError, Reservation, failed};
use crate::core::id::ParcelId;
use crate::seams::Work;

/// The tables of an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Parcel id to its row.
    Parcels,
    /// Parcel id to its frames, for small parcels.
    Frames,
    /// Transaction id to its row.
    Transactions,
    /// The directory.
    Meta,
}

impl Table {
    const ALL: [Self; 4] = [Self::Parcels, Self::Frames, Self::Transactions, Self::Meta];

    pub fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(match self {
            Self::Parcels => "parcels",
            Self::Frames => "frames",
            Self::Transactions => "transactions",
            Self::Meta => "meta",
        })
    }
}

/// One step of a change.
#[derive(Debug)]
pub enum Op {
    Put(Table, Vec<u8>, Vec<u8>),
    Delete(Table, Vec<u8>),
    /// Removes a parcel, if it is there: rows in the commit, its file after it; a crash in between is mended when the outbox
    /// is opened.
    ForgetParcel(ParcelId),
}

/// What becomes the outbox's own with the commit of the rows that name it, whether or not somebody still waits for that.
#[derive(Debug)]
pub struct Added {
    /// A large parcel's file.
    pub file: Option<ParcelFile>,
    /// The room that was set aside.
    pub reservation: Reservation,
    /// The room that it takes.
    pub bytes: u64,
}

impl Op {
    pub fn put(table: Table, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        Self::Put(table, key.as_ref().to_vec(), value.as_ref().to_vec())
    }

    pub fn delete(table: Table, key: impl AsRef<[u8]>) -> Self {
        Self::Delete(table, key.as_ref().to_vec())
    }
}

struct Job {
    ops: Vec<Op>,
    added: Vec<Added>,
    answer: oneshot::Sender<Result<(), OutboxError>>,
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    running: bool,
    /// Why nothing more is written: what the disk holds after a failed commit is unknown until it is opened again.
    failed: Option<OutboxError>,
}

#[derive(Clone)]
pub struct Writer {
    database: Arc<Database>,
    bodies: Arc<Store>,
    work: Arc<dyn Work>,
    held: Arc<AtomicU64>,
    durable: bool,
    queue: Arc<Mutex<Queue>>,
}

impl Writer {
    /// `held` counts the bytes of all parcels; what is forgotten is taken off it.
    pub fn new(
        database: Arc<Database>,
        bodies: Arc<Store>,
        work: Arc<dyn Work>,
        held: Arc<AtomicU64>,
        durable: bool,
    ) -> Self {
        Self { database, bodies, work, held, durable, queue: Arc::default() }
    }

    /// Whether no other clone is left, not even in a commit that is just ending.
    pub fn is_last(&self) -> bool {
        Arc::strong_count(&self.queue) == 1
    }

    /// Commits these steps together, durably, after all that were asked for before. Once it has been polled they are
    /// committed even if it is dropped, and `added` is kept with them; when that fails at once, nothing of it is left.
    pub async fn write(&self, ops: Vec<Op>, added: Vec<Added>) -> Result<(), OutboxError> {
        let (answer, done) = oneshot::channel();
        let start = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(error) = &queue.failed {
                return Err(error.clone());
            }
            queue.jobs.push(Job { ops, added, answer });
            !std::mem::replace(&mut queue.running, true)
        };
        if start {
            let writer = self.clone();
            self.work.start(Box::new(move || writer.drain()));
        }
        done.await.map_err(|_| failed("the process is shutting down"))?
    }

    fn drain(&self) {
        loop {
            let jobs = {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                if queue.jobs.is_empty() {
                    queue.running = false;
                    return;
                }
                std::mem::take(&mut queue.jobs)
            };
            let outcome = self.commit(&jobs);
            if let Err(error) = &outcome {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.failed = Some(error.clone());
            }
            for job in jobs {
                for Added { file, reservation, bytes } in job.added {
                    // After a failed commit nobody knows whether the row is there: what is too much goes at the next start.
                    file.into_iter().for_each(ParcelFile::keep);
                    if outcome.is_ok() {
                        reservation.keep(bytes);
                    }
                }
                // Whoever stopped waiting does not need the answer.
                let _ = job.answer.send(outcome.clone());
            }
        }
    }

    fn commit(&self, jobs: &[Job]) -> Result<(), OutboxError> {
        let mut write = self.database.begin_write().map_err(failed)?;
        if !self.durable {
            write.set_durability(Durability::None).map_err(failed)?;
        }
        let (mut files, mut freed) = (Vec::new(), 0);
        for op in jobs.iter().flat_map(|job| &job.ops) {
            match op {
                Op::Put(table, key, value) => {
                    let mut table = write.open_table(table.definition()).map_err(failed)?;
                    table.insert(key.as_slice(), value.as_slice()).map_err(failed)?;
                }
                Op::Delete(table, key) => {
                    write.open_table(table.definition()).map_err(failed)?.remove(key.as_slice()).map_err(failed)?;
                }
                Op::ForgetParcel(parcel) => {
                    let key = parcel.to_bytes();
                    let mut parcels = write.open_table(Table::Parcels.definition()).map_err(failed)?;
                    let row = match parcels.remove(key.as_slice()).map_err(failed)? {
                        Some(value) => ParcelRow::decode(*parcel, value.value())?,
                        None => continue,
                    };
                    freed += row.sealed_bytes;
                    if row.bodies == Bodies::File {
                        files.push(*parcel);
                    } else {
                        let mut frames = write.open_table(Table::Frames.definition()).map_err(failed)?;
                        frames.remove(key.as_slice()).map_err(failed)?;
                    }
                }
            }
        }
        write.commit().map_err(failed)?;
        self.held.fetch_sub(freed, Ordering::Relaxed);
        for parcel in files {
            if let Err(error) = self.bodies.remove(parcel) {
                tracing::warn!(%parcel, %error, "a decided parcel's file stays until the outbox is opened again");
            }
        }
        Ok(())
    }
}

/// Makes the tables, so that reading finds them.
pub fn make_tables(database: &Database) -> Result<(), OutboxError> {
    let write = database.begin_write().map_err(failed)?;
    for table in Table::ALL {
        write.open_table(table.definition()).map_err(failed)?;
    }
    write.commit().map_err(failed)
}
