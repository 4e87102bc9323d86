//! The sender's outbox: what was submitted and has no fate yet, exactly as it was sealed (R3).
//!
//! Rows (parcels, transactions, last tickets) live in one redb file and change together in durable commits, one
//! fsync for all that wait. Sealed bytes of small parcels are rows too; those of large ones are files that only grow, made
//! durable before a stripe may be published. The outbox knows nothing of sealing: headers, signatures and sealed bytes are
//! bytes to it, and transaction keys arrive wrapped.

mod bodies;
mod rows;
mod writer;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redb::{Database, ReadableDatabase, ReadableTable};

pub use bodies::ParcelFile;
pub use rows::{Bodies, Outcome, OutcomeRow, ParcelRow, StripeFrame, TransactionRow};

use crate::core::id::{ParcelId, TransactionId};
use crate::core::wire::WireError;
use crate::seams::{Clock, Seams};
use bodies::Store;
use writer::{Added, Op, Table, Writer};

/// A parcel whose frames take at most this many bytes lies in the database, so that one fsync serves many; a larger one is a file.
pub const ROW_BYTES: usize = 256 * 1024;

/// Bytes that a disk must keep free: room for the database to say so in an orderly way.
const SPARE_BYTES: u64 = 16 * 1024 * 1024;

const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Why the outbox did not do what was asked. Nothing of it was kept; only after [`OutboxError::Failed`] that is not certain
/// before the outbox is opened again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OutboxError {
    /// The outbox holds as many bytes as it may: wait until something has a fate, or raise `outbox.bytes`.
    #[error(
        "the outbox is full: {held} of {most} bytes are held and {needed} more are needed; wait for fates or raise its limit"
    )]
    Full {
        /// Bytes needed.
        needed: u64,
        /// Bytes held now.
        held: u64,
        /// The limit.
        most: u64,
    },
    /// The disk has no room.
    #[error("the outbox's disk is full: {needed} bytes must be free at {folder}; free some")]
    DiskFull {
        /// Bytes that must be free: what is to be written, and what stays spare.
        needed: u64,
        /// The outbox's folder.
        folder: String,
    },
    /// Another process has this outbox open, or it cannot be opened.
    #[error("the outbox cannot be opened: {0}")]
    Open(#[from] Arc<super::database::OpenError>),
    /// A read or write failed. After a failed write the outbox refuses everything until it is opened again.
    #[error("the outbox failed: {cause}")]
    Failed {
        /// What the system said.
        cause: String,
    },
    /// A row or a frame does not read back.
    #[error("the outbox is damaged: {0}")]
    Damaged(#[from] WireError),
}

impl OutboxError {
    /// Whether the same can succeed later: when fates or an operator made room, or the other process has ended.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Full { .. } | Self::DiskFull { .. } => true,
            Self::Open(error) => error.retryable(),
            Self::Failed { .. } | Self::Damaged(_) => false,
        }
    }
}

fn failed(cause: impl std::fmt::Display) -> OutboxError {
    OutboxError::Failed { cause: cause.to_string() }
}

/// Where an outbox is and how much it may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxOptions {
    /// Its folder; `None` keeps everything in memory: not durable, lost with the process.
    pub folder: Option<PathBuf>,
    /// How many bytes of sealed stripes it may hold.
    pub bytes: u64,
}

/// Room that was set aside; given back when dropped, unless the bytes have been kept.
#[derive(Debug)]
pub struct Reservation {
    held: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Reservation {
    /// Adds room that was set aside for the same parcel.
    pub fn join(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    fn keep(mut self, bytes: u64) {
        // Exactly what is taken off again when the parcel is forgotten.
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.held.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

/// What is added in one step: a sealed parcel with its transactions.
#[derive(Debug)]
pub struct NewParcel {
    /// The parcel. Its `bodies` and `frame_bytes` are set by the outbox.
    pub row: ParcelRow,
    /// Its sealed stripes.
    pub body: NewBody,
    /// Its transactions, ascending by index.
    pub transactions: Vec<TransactionRow>,
    /// The room that was set aside for it.
    pub reservation: Reservation,
}

/// Where the stripes of a new parcel are.
#[derive(Debug)]
pub enum NewBody {
    /// Here.
    Frames(Vec<StripeFrame>),
    /// Already in a file, every stripe synced.
    File(ParcelFile),
}

/// What changes when a transaction's outcome does.
#[derive(Debug, Default)]
pub struct Change {
    /// Rows to write anew.
    pub transactions: Vec<TransactionRow>,
    /// Transactions to forget: decided everywhere, and complete or old.
    pub forget_transactions: Vec<TransactionId>,
    /// Parcels that need not be sent again: rows and bytes go.
    pub forget_parcels: Vec<ParcelId>,
    /// Parcels whose rows change.
    pub parcels: Vec<ParcelRow>,
    /// A newer signed directory.
    pub directory: Option<Vec<u8>>,
}

/// What an outbox holds when it is opened.
#[derive(Debug, Default)]
pub struct Contents {
    /// Parcels whose transactions are not all decided, ascending.
    pub parcels: Vec<ParcelRow>,
    /// Transactions, ascending.
    pub transactions: Vec<TransactionRow>,
    /// The newest signed directory that was adopted from a notice.
    pub directory: Option<Vec<u8>>,
    /// Parcels whose sealing had not finished: their bytes are gone, their ids are never used again (R3).
    pub abandoned: Vec<ParcelId>,
    /// Of `parcels`, those whose file is gone or too short: somebody else removed it. They cannot be sent again.
    pub missing: Vec<ParcelId>,
}

/// The outbox. Cheap to clone. Writes are grouped; reads block for a moment and belong on [`crate::seams::Work`].
#[derive(Clone)]
pub struct Outbox {
    database: Arc<Database>,
    writer: Writer,
    bodies: Arc<Store>,
    held: Arc<AtomicU64>,
    most: u64,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outbox({:?}, {} of {} bytes)", self.bodies, self.held.load(Ordering::Relaxed), self.most)
    }
}

impl Outbox {
    /// Opens an outbox, or makes it. What a crash left half sealed is removed. Blocks.
    /// Errors: [`OutboxError::Open`], [`OutboxError::Failed`], [`OutboxError::Damaged`].
    pub fn open(options: &OutboxOptions, seams: &Seams) -> Result<(Self, Contents), OutboxError> {
        let (database, bodies) = match &options.folder {
            Some(folder) => {
                let database =
                    super::database::open(&*seams.disk, &folder.join("outbox.redb"), CACHE_BYTES).map_err(Arc::new)?;
                (database, Store::disk(seams.disk.clone(), folder).map_err(failed)?)
            }
            None => {
                let backend = redb::backends::InMemoryBackend::new();
                (Database::builder().create_with_backend(backend).map_err(failed)?, Store::memory())
            }
        };
        let database = Arc::new(database);
        writer::make_tables(&database)?;
        let mut contents = read_all(&database)?;
        let known: BTreeMap<ParcelId, u64> =
            contents.parcels.iter().map(|row| (row.parcel, row.sealed_bytes)).collect();
        contents.abandoned = bodies.remove_others(&known).map_err(failed)?;
        for row in contents.parcels.iter().filter(|row| row.bodies == Bodies::File) {
            if bodies.length(row.parcel).map_err(failed)?.is_none_or(|length| length < row.sealed_bytes) {
                contents.missing.push(row.parcel);
            }
        }
        let held = Arc::new(AtomicU64::new(known.values().sum()));
        let durable = options.folder.is_some();
        let outbox = Self {
            writer: Writer::new(database.clone(), bodies.clone(), seams.work.clone(), held.clone(), durable),
            database,
            bodies,
            held,
            most: options.bytes,
        };
        Ok((outbox, contents))
    }

    /// Sets room aside. Errors: [`OutboxError::Full`], [`OutboxError::DiskFull`].
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, OutboxError> {
        if let Some(folder) = self.bodies.folder() {
            let free = self.bodies.free().map_err(failed)?;
            let needed = bytes.saturating_add(SPARE_BYTES);
            if free < needed {
                return Err(OutboxError::DiskFull { needed, folder: folder.display().to_string() });
            }
        }
        let fits = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= self.most);
        match self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(Reservation { held: self.held.clone(), bytes }),
            Err(held) => Err(OutboxError::Full { needed: bytes, held, most: self.most }),
        }
    }

    /// Bytes of sealed stripes held or set aside, and the limit.
    pub fn bytes(&self) -> (u64, u64) {
        (self.held.load(Ordering::Relaxed), self.most)
    }

    /// Starts the file of a large parcel. Blocks. Errors: [`OutboxError::DiskFull`], [`OutboxError::Failed`].
    pub fn start_file(&self, parcel: ParcelId) -> Result<ParcelFile, OutboxError> {
        self.bodies.start(parcel).map_err(|error| self.disk_error(&error, 0))
    }

    fn disk_error(&self, error: &io::Error, needed: u64) -> OutboxError {
        match (error.kind(), self.bodies.folder()) {
            (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, Some(folder)) => {
                let needed = needed.saturating_add(SPARE_BYTES);
                OutboxError::DiskFull { needed, folder: folder.display().to_string() }
            }
            _ => failed(error),
        }
    }

    /// Appends stripes to a large parcel's file and makes them durable: afterwards they may be published. Blocks.
    /// Errors: [`OutboxError::DiskFull`], [`OutboxError::Failed`].
    pub fn append(&self, file: &mut ParcelFile, frames: &[StripeFrame]) -> Result<(), OutboxError> {
        let needed = frames.iter().map(|frame| frame.length() as u64).sum();
        self.bodies.append(file, frames).map_err(|error| self.disk_error(&error, needed))
    }

    /// Adds parcels with their transactions, all or none; durable when it returns. Adds of one caller keep their order.
    /// Dropped after it was polled, it does not take them back: rows, bytes and room are kept together.
    /// Errors: [`OutboxError::DiskFull`], [`OutboxError::Failed`].
    pub async fn add(&self, parcels: Vec<NewParcel>) -> Result<Vec<ParcelRow>, OutboxError> {
        let mut ops = Vec::new();
        let mut rows = Vec::new();
        let mut added = Vec::new();
        for mut parcel in parcels {
            let mut kept = None;
            parcel.row.sealed_bytes = match parcel.body {
                NewBody::Frames(frames) => {
                    let (bytes, frame_bytes) = rows::join(&frames);
                    parcel.row.frame_bytes = frame_bytes;
                    parcel.row.stripes = frames.len() as u32;
                    parcel.row.bodies = Bodies::Row;
                    let length = bytes.len() as u64;
                    ops.push(Op::put(Table::Frames, parcel.row.parcel.to_bytes(), bytes));
                    length
                }
                NewBody::File(file) => {
                    parcel.row = file.so_far(&parcel.row);
                    let length = file.length;
                    kept = Some(file);
                    length
                }
            };
            ops.push(Op::put(Table::Parcels, parcel.row.parcel.to_bytes(), parcel.row.encode()));
            if self.lasts() {
                for transaction in &parcel.transactions {
                    ops.push(Op::put(Table::Transactions, transaction.id.to_bytes(), transaction.encode()));
                }
            }
            added.push(Added { file: kept, reservation: parcel.reservation, bytes: parcel.row.sealed_bytes });
            rows.push(parcel.row);
        }
        self.writer.write(ops, added).await?;
        Ok(rows)
    }

    /// Writes changed outcomes and forgets what is done with; durable when it returns. Errors: [`OutboxError::Failed`].
    pub async fn change(&self, change: Change) -> Result<(), OutboxError> {
        let mut ops = Vec::new();
        for row in change.transactions.iter().filter(|_| self.lasts()) {
            ops.push(Op::put(Table::Transactions, row.id.to_bytes(), row.encode()));
        }
        for row in &change.parcels {
            ops.push(Op::put(Table::Parcels, row.parcel.to_bytes(), row.encode()));
        }
        for id in change.forget_transactions.iter().filter(|_| self.lasts()) {
            ops.push(Op::delete(Table::Transactions, id.to_bytes()));
        }
        if let Some(directory) = change.directory {
            ops.push(Op::put(Table::Meta, *b"directory", directory));
        }
        ops.extend(change.forget_parcels.into_iter().map(Op::ForgetParcel));
        if ops.is_empty() && !self.lasts() {
            return Ok(());
        }
        self.writer.write(ops, Vec::new()).await
    }

    /// Whether anybody will open it again. Rows that only the next start reads are not written otherwise.
    fn lasts(&self) -> bool {
        self.folder().is_some()
    }

    /// A transaction's row; of an outbox in memory nothing. Blocks for a moment.
    pub fn transaction(&self, id: TransactionId) -> Result<Option<TransactionRow>, OutboxError> {
        self.get(Table::Transactions, &id.to_bytes())?
            .map(|value| TransactionRow::decode(id, &value))
            .transpose()
            .map_err(Into::into)
    }

    /// A parcel's row. Blocks for a moment.
    pub fn parcel(&self, parcel: ParcelId) -> Result<Option<ParcelRow>, OutboxError> {
        self.get(Table::Parcels, &parcel.to_bytes())?
            .map(|value| ParcelRow::decode(parcel, &value))
            .transpose()
            .map_err(Into::into)
    }

    /// A stripe exactly as it was sealed and signed; `None` when the parcel is no longer held or has no such stripe. Blocks.
    pub fn stripe(&self, row: &ParcelRow, index: u32) -> Result<Option<StripeFrame>, OutboxError> {
        if index >= row.stripes {
            return Ok(None);
        }
        let at = u64::from(index) * u64::from(row.frame_bytes);
        match row.bodies {
            Bodies::Row => match self.get(Table::Frames, &row.parcel.to_bytes())? {
                Some(bytes) => Ok(bytes.get(at as usize..).map(rows::frame_at).transpose()?),
                None => Ok(None),
            },
            Bodies::File => {
                let length = u64::from(row.frame_bytes).min(row.sealed_bytes.saturating_sub(at));
                match self.bodies.read(row.parcel, at, length as usize, index) {
                    Ok(bytes) => Ok(Some(rows::frame_at(&bytes)?)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(failed(error)),
                }
            }
        }
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, OutboxError> {
        let read = self.database.begin_read().map_err(failed)?;
        let table = read.open_table(table.definition()).map_err(failed)?;
        Ok(table.get(key).map_err(failed)?.map(|value| value.value().to_vec()))
    }

    /// Closes the outbox once every other clone is gone: when this returns, it can be opened again.
    pub async fn close(self, clock: &dyn Clock) {
        while !self.writer.is_last() {
            clock.sleep(Duration::from_millis(1)).await;
        }
    }

    /// Where the outbox lies; `None` for one in memory.
    pub fn folder(&self) -> Option<&Path> {
        self.bodies.folder()
    }
}

fn read_all(database: &Database) -> Result<Contents, OutboxError> {
    let read = database.begin_read().map_err(failed)?;
    let mut contents = Contents::default();
    let uuid = |key: &[u8]| crate::core::wire::Reader::new(key).array::<16>("outbox key");
    let invalid = |_| WireError::Invalid { field: "outbox key", expected: "an id" };
    for item in read.open_table(Table::Parcels.definition()).map_err(failed)?.iter().map_err(failed)? {
        let (key, value) = item.map_err(failed)?;
        let parcel = ParcelId::from_bytes(uuid(key.value())?).map_err(invalid)?;
        contents.parcels.push(ParcelRow::decode(parcel, value.value())?);
    }
    for item in read.open_table(Table::Transactions.definition()).map_err(failed)?.iter().map_err(failed)? {
        let (key, value) = item.map_err(failed)?;
        let id = TransactionId::from_bytes(uuid(key.value())?).map_err(invalid)?;
        contents.transactions.push(TransactionRow::decode(id, value.value())?);
    }
    let meta = read.open_table(Table::Meta.definition()).map_err(failed)?;
    contents.directory = meta.get(b"directory".as_slice()).map_err(failed)?.map(|value| value.value().to_vec());
    Ok(contents)
}
