//! A node's store of one group: consensus's log and vote, the replicated state, staged parcels, bodies, offsets and what
//! else must survive a restart, in one database with one writer (R19), and large bodies as files beside it.
//!
//! Owns the files of one folder. Must not know openraft (the log's entries are bytes here), make a fate, or open what is
//! sealed.

mod decoded;
mod job;
mod owing;
mod ranks;
mod rows;
mod snapshot;
mod staging;
mod state;
mod tables;
mod upgrade;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use redb::{Database, ReadableDatabase};
use tokio::sync::{oneshot, watch};

pub use job::{ApplyEntry, Done, Mutation};
pub use rows::{AlarmRow, Counts, DeferredRow, SeenRow, StagedRow};
pub use snapshot::{Body, Snapshot};
pub use staging::{ItemStanding, NewBody, NewParcel, Settled};

use super::StoreError;
pub use super::bodies::RESERVED_BYTES;
use super::bodies::{Bodies, BodyWriter};
use super::database;
use crate::core::decide::Changes;
use crate::core::id::{DestinationName, Digest, Incarnation, Position, SenderName, Time, TransactionId};
use crate::seams::{Seams, WorkLost};
use decoded::Decoded;
use job::Job;
use owing::Owing;
use rows::Place;
use state::{Head, Parsed, get_fixed, get_meta, name, put_meta};
use tables::Tables;
use writer::{OnCommit, Writer};

/// Page cache of one group's database. Everything big is a file, so a small cache serves.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// The database's file.
const DATABASE: &str = "group.redb";

/// The layout of the tables. One that is older is brought up to it when the store is opened (`upgrade`); a later one is refused.
const FORMAT: u32 = 2;

/// Where a group's store lies and whose it is.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Its folder, made when it is not there.
    pub folder: PathBuf,
    /// The group's destination; a folder that holds another's is refused.
    pub destination: DestinationName,
}

/// How far a store is. Watched by those who wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Index up to which the log is applied.
    pub applied: u64,
    /// Group time there.
    pub group_time: Time,
    /// The running digest over apply's changes there.
    pub state_digest: Digest,
    /// The directory version in force there; 0 before the first.
    pub directory_version: u64,
    /// The held prefix: of everything committed up to here, the bytes are on this node.
    pub held: Position,
    /// How many transactions are where.
    pub counts: Counts,
}

/// What applying one log entry did.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The entry's index.
    pub index: u64,
    /// What it did to the state; none for entries that only consensus needs.
    pub changes: Option<Arc<Changes>>,
    /// Items that were staged and undecided on this node, and are no longer: decided by this entry or expired.
    pub settled: Vec<Settled>,
}

struct Inner {
    /// None once the store was closed.
    database: RwLock<Option<Arc<Database>>>,
    bodies: Bodies,
    destination: DestinationName,
    incarnation: Incarnation,
    parsed: Arc<Parsed>,
    seams: Seams,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    progress: watch::Receiver<Progress>,
    fatal: watch::Receiver<Option<Arc<str>>>,
    on_commit: Arc<OnceLock<OnCommit>>,
}

/// The store of one group. Cheap to clone; [`GroupStore::close`] ends it for all clones, or the last clone does.
#[derive(Clone)]
pub struct GroupStore(Arc<Inner>);

impl std::fmt::Debug for GroupStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupStore").field("destination", &self.0.destination).finish_non_exhaustive()
    }
}

impl GroupStore {
    /// Opens the store, or makes it. Blocks: after a crash redb walks the whole database, and the log is read once.
    ///
    /// Errors: [`StoreError::Open`]; [`StoreError::Damaged`] when a log entry or another guarded row is not what was
    /// written, when the log has a hole, when pages of the database make no sense, and when the folder belongs to another
    /// destination or version.
    pub fn open(options: &StoreOptions, seams: &Seams) -> Result<Self, StoreError> {
        // redb panics over pages that are not what it wrote.
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Self::open_whole(options, seams)));
        opened.unwrap_or_else(|_| {
            let file = options.folder.join(DATABASE).display().to_string();
            Err(StoreError::damaged("pages", file, "they are not what was written; the lines before this one say more"))
        })
    }

    fn open_whole(options: &StoreOptions, seams: &Seams) -> Result<Self, StoreError> {
        let database = database::open(&*seams.disk, &options.folder.join(DATABASE), CACHE_BYTES)?;
        let bodies = Bodies::open(seams.disk.clone(), options.folder.join("bodies"))?;
        let incarnation = prepare(&database, options, seams)?;
        let parsed = Arc::new(Parsed::default());
        let (head, counts, progress) = load(&database, &options.destination, &parsed)?;
        sweep(&database, &bodies)?;
        let (progress_sender, progress) = watch::channel(progress);
        let (fatal_sender, fatal) = watch::channel(None);
        let (jobs, queue) = mpsc::channel();
        let on_commit = Arc::new(OnceLock::new());
        let database = Arc::new(database);
        let writer = Writer {
            database: database.clone(),
            bodies: bodies.clone(),
            head,
            counts,
            parsed: parsed.clone(),
            progress: progress_sender,
            fatal: fatal_sender,
            obsolete: Vec::new(),
            decoded: Decoded::default(),
            owing: Owing::default(),
            clock: seams.clock.clone(),
            on_commit: on_commit.clone(),
        };
        let thread = std::thread::Builder::new()
            .name(format!("store-{}", options.destination))
            .spawn(move || writer.run(&queue))
            .map_err(StoreError::failed("starting the store's writer"))?;
        Ok(Self(Arc::new(Inner {
            database: RwLock::new(Some(database)),
            bodies,
            destination: options.destination.clone(),
            incarnation,
            parsed,
            seams: seams.clone(),
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
            progress,
            fatal,
            on_commit,
        })))
    }

    /// The group's destination.
    pub fn destination(&self) -> &DestinationName {
        &self.0.destination
    }

    /// This life of the store: random, drawn when it was made (R10, R12).
    pub fn incarnation(&self) -> Incarnation {
        self.0.incarnation
    }

    /// How far the store is, and news of it.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.0.progress.clone()
    }

    /// Why the store stopped, once it has: the process must end then (R19).
    pub fn fatal(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.0.fatal.clone()
    }

    /// Waits until the store has stopped for an error, and says which. Never ends for a store that is merely closed.
    pub async fn failed(&self) -> Arc<str> {
        let mut fatal = self.fatal();
        loop {
            if let Some(cause) = fatal.borrow_and_update().clone() {
                return cause;
            }
            if fatal.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The rows as they are now: one moment, whatever is written meanwhile. Do not keep it for long: pages that it sees
    /// are not used again while it lives. Errors: [`StoreError::Stopped`] once the store was closed, and the database's.
    pub fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let transaction = match &*self.0.database.read().unwrap_or_else(PoisonError::into_inner) {
            None => return Err(closed()),
            Some(database) => database.begin_read().map_err(StoreError::failed("reading the store"))?,
        };
        Snapshot::new(transaction, &self.0.destination, self.0.parsed.clone(), self.0.bodies.clone())
    }

    /// Bytes that its disk has free; below [`RESERVED_BYTES`] nothing new is taken in. Blocks. Errors: the disk's.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        self.0.bodies.free()
    }

    /// Has every durable commit told from now on, on the writer's thread: how many requests it carried and how long it took.
    /// Only the first call counts.
    pub fn on_commit(&self, tell: impl Fn(usize, Duration) + Send + Sync + 'static) {
        // A second one would measure the same again.
        let _ = self.0.on_commit.set(Box::new(tell));
    }

    /// Starts a body that is to be staged or was fetched. Its calls block.
    pub fn body_writer(&self) -> BodyWriter {
        self.0.bodies.writer()
    }

    /// Makes mutations in their order and at once, and answers when they are as durable as they promise.
    ///
    /// Errors: [`StoreError::DiskFull`] when they take something new in and the disk is nearly full, or advance an offset
    /// while notes and refusals that were refused so are still to be written (nothing changed); [`StoreError::Stopped`].
    pub async fn write(&self, mutations: Vec<Mutation>) -> Result<(), StoreError> {
        let (done, answer) = answer();
        self.submit(mutations, done);
        wait(answer).await
    }

    /// As [`GroupStore::write`], told by a call on the writer's thread; mutations keep the order of these calls.
    pub fn submit(&self, mutations: Vec<Mutation>, done: Done<()>) {
        self.send(Job::Write(mutations, done));
    }

    /// Stages a parcel durably: its rows and bodies, or nothing. Says how each of its items stands.
    ///
    /// Errors: as for [`GroupStore::write`]; [`StoreError::Unwritten`] when a body cannot get its name, and what syncing says.
    pub async fn stage(&self, parcel: NewParcel) -> Result<Vec<(u32, ItemStanding)>, StoreError> {
        let bodies = self.0.bodies.clone();
        let place = move |mut parcel: NewParcel| {
            let digest = parcel.manifest.digest;
            let mut named: Vec<_> = parcel.bodies.iter_mut().map(|new| (new.index, &mut new.body)).collect();
            bodies.place(&digest, &mut named).map(|()| parcel)
        };
        let parcel = match parcel.bodies.iter().all(|new| new.body.inline().is_some()) {
            true => parcel,
            false => self.0.seams.work.run(move || place(parcel)).await.map_err(lost)??,
        };
        let (done, answer) = answer();
        self.send(Job::Stage(Box::new(parcel), done));
        wait(answer).await
    }

    /// Keeps a body that was fetched from another node, if a committed row wants it; durable when it returns. Whether its
    /// digest is the row's is the caller's to check.
    pub async fn keep_body(
        &self,
        sender: SenderName,
        transaction: TransactionId,
        digest: Digest,
        body: NewBody,
    ) -> Result<(), StoreError> {
        let bodies = self.0.bodies.clone();
        let place = move |mut body: NewBody| bodies.place(&digest, &mut [(body.index, &mut body.body)]).map(|()| body);
        let body = match body.body.inline() {
            Some(_) => body,
            None => self.0.seams.work.run(move || place(body)).await.map_err(lost)??,
        };
        self.write(vec![Mutation::KeepBody { sender, transaction, digest, body }]).await
    }

    /// Applies committed entries in their order. What it changes is visible when it returns, and durable with the next
    /// durable commit, never before the log.
    pub async fn apply(&self, entries: Vec<ApplyEntry>) -> Result<Vec<Applied>, StoreError> {
        let (done, answer) = answer();
        self.send(Job::Apply(entries, done));
        wait(answer).await
    }

    /// Ends the writer after what already waits, and closes the database: when this returns, the folder can be opened again.
    /// Snapshots that are left read nothing more. Blocks.
    pub fn close(&self) {
        self.0.close();
    }

    fn send(&self, job: Job) {
        let jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = match &*jobs {
            None => Some(job),
            Some(jobs) => jobs.send(job).err().map(|error| error.0),
        };
        if let Some(job) = refused {
            job.fail(closed());
        }
    }
}

impl Inner {
    fn close(&self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A writer that panicked has told so already.
            let _ = thread.join();
        }
        // The last one: the writer's went with its thread. Over damaged pages redb panics; everything durable is written.
        let database = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(database))).is_err() {
            tracing::error!(destination = %self.destination, "the store was not closed well: its file is damaged");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

type Answered<T> = oneshot::Receiver<Result<T, StoreError>>;

fn answer<T: Send + 'static>() -> (Done<T>, Answered<T>) {
    let (sender, receiver) = oneshot::channel();
    // A caller that stopped waiting does not need the answer.
    let done = move |result| drop(sender.send(result));
    (Box::new(done), receiver)
}

async fn wait<T>(answer: Answered<T>) -> Result<T, StoreError> {
    answer.await.unwrap_or_else(|_| Err(StoreError::Stopped { cause: "its writer is gone".to_owned() }))
}

fn closed() -> StoreError {
    StoreError::Stopped { cause: "it was closed".to_owned() }
}

fn lost(error: WorkLost) -> StoreError {
    StoreError::Stopped { cause: error.to_string() }
}

/// Makes all tables, and on the first start the rows that name the store. Gives its incarnation.
fn prepare(database: &Database, options: &StoreOptions, seams: &Seams) -> Result<Incarnation, StoreError> {
    let transaction = database.begin_write().map_err(StoreError::failed("opening the store"))?;
    let incarnation = {
        let mut tables = Tables::of(&transaction);
        tables.make()?;
        match get_fixed(tables.meta()?, name::FORMAT)?.map(u32::from_be_bytes) {
            Some(FORMAT) => {}
            Some(1) => {
                upgrade::from_first(&transaction, &mut tables)?;
                put_meta(tables.meta_mut()?, name::FORMAT, &FORMAT.to_be_bytes())?;
            }
            Some(other) => {
                let cause =
                    format!("it has format {other}, this program knows {FORMAT}: install the version that made it");
                return Err(StoreError::damaged("meta", name::FORMAT, cause));
            }
            None => {
                put_meta(tables.meta_mut()?, name::FORMAT, &FORMAT.to_be_bytes())?;
                put_meta(tables.meta_mut()?, name::DESTINATION, options.destination.as_str().as_bytes())?;
                let drawn: [u8; 16] = seams.randomness.array().map_err(StoreError::failed("drawing an incarnation"))?;
                put_meta(tables.meta_mut()?, name::INCARNATION, &drawn)?;
            }
        }
        let destination = get_meta(tables.meta()?, name::DESTINATION)?.unwrap_or_default();
        if destination != options.destination.as_str().as_bytes() {
            let cause = format!("the folder holds {}", String::from_utf8_lossy(&destination));
            return Err(StoreError::damaged("meta", name::DESTINATION, cause));
        }
        let committed = snapshot::counts(&tables)?.committed;
        ranks::fill(&mut tables, committed)?;
        let incarnation = get_fixed(tables.meta()?, name::INCARNATION)?;
        Incarnation(incarnation.ok_or_else(|| StoreError::damaged("meta", name::INCARNATION, "it is not there"))?)
    };
    transaction.commit().map_err(StoreError::failed("opening the store"))?;
    Ok(incarnation)
}

/// Reads the head and checks the whole log.
fn load(
    database: &Database,
    destination: &DestinationName,
    parsed: &Parsed,
) -> Result<(Head, Counts, Progress), StoreError> {
    let transaction = database.begin_read().map_err(StoreError::failed("opening the store"))?;
    let tables = Tables::of(transaction);
    snapshot::check_log(&tables)?;
    let head = Head::load(&tables, destination, parsed)?;
    let counts = snapshot::counts(&tables)?;
    let progress = Progress {
        applied: head.applied,
        group_time: head.group_time,
        state_digest: head.digest,
        directory_version: head.directory.as_ref().map_or(0, |directory| directory.version),
        held: state::held(&tables)?,
        counts,
    };
    Ok((head, counts, progress))
}

/// Removes body files that no row names: their commit never came, or their removal was cut short.
fn sweep(database: &Database, bodies: &Bodies) -> Result<(), StoreError> {
    let transaction = database.begin_read().map_err(StoreError::failed("opening the store"))?;
    let tables = Tables::of(transaction);
    bodies.sweep(|digest, index, number| {
        let row = staging::body_row(&tables, digest, index)?;
        Ok(row.is_some_and(|row| row.place == Place::File(number)))
    })
}
