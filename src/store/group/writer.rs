//! The one writer of a group's database: a thread that takes mutations from a channel and puts all that wait into one
//! commit (R19).
//!
//! Owns the write transaction; `job` is what is asked of it, `owing` what a full disk made it refuse. What only apply computes
//! is committed without fsync when nothing durable waits; it then becomes durable with the next durable commit, never before
//! the log that it follows from, because both go through this queue in order. After the first error it stops for good.

use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use redb::{Database, Durability};
use tokio::sync::watch;

use super::decoded::Decoded;
use super::job::{ApplyEntry, Done, Job, Mutation};
use super::owing::Owing;
use super::rows::{Counts, encode_mark, guard};
use super::staging::{ItemStanding, Obsolete, Staging};
use super::state::{Head, Parsed, StateView, held, name, put_meta};
use super::tables::{Tables, Writable, Writing, address_key, put, remove, rows};
use super::{Applied, Progress};
use crate::core::decide;
use crate::core::gather::Address;
use crate::seams::Clock;
use crate::store::StoreError;
use crate::store::bodies::{Bodies, RESERVED_BYTES};

/// Most jobs of one commit: bounds how long the first of them waits.
const JOBS_PER_COMMIT: usize = 512;

/// Rows that are read at once to be removed.
const ROWS_AT_ONCE: usize = 256;

/// Who is told of durable commits: the requests in it, and how long it took.
pub(super) type OnCommit = Box<dyn Fn(usize, Duration) + Send + Sync>;

/// Answers that wait for the commit.
enum Answer {
    Write(Done<()>),
    Stage(Vec<(u32, ItemStanding)>, Done<Vec<(u32, ItemStanding)>>),
    Apply(Vec<Applied>, Done<Vec<Applied>>),
}

/// The writer's own state.
pub(super) struct Writer {
    pub database: Arc<Database>,
    pub bodies: Bodies,
    pub head: Head,
    pub counts: Counts,
    pub parsed: Arc<Parsed>,
    pub progress: watch::Sender<Progress>,
    pub fatal: watch::Sender<Option<Arc<str>>>,
    pub obsolete: Obsolete,
    pub decoded: Decoded,
    pub owing: Owing,
    pub clock: Arc<dyn Clock>,
    pub on_commit: Arc<OnceLock<OnCommit>>,
}

impl Writer {
    /// Runs until the last sender is gone, or until the first error.
    pub fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        let mut told = TellPanic(Some(self.fatal.clone()));
        let mut batch = Vec::new();
        let mut open = true;
        while open {
            match jobs.recv() {
                Ok(job) => batch.push(job),
                // The end: what was put off is written now.
                Err(_) => open = false,
            }
            while batch.len() < JOBS_PER_COMMIT
                && let Ok(job) = jobs.try_recv()
            {
                batch.push(job);
            }
            if open && batch.len() < JOBS_PER_COMMIT && batch.iter().all(Job::idle) {
                continue;
            }
            let batch = self.admit(std::mem::take(&mut batch));
            if let Err(error) = self.commit(batch) {
                let cause: Arc<str> = error.to_string().into();
                tracing::error!(%cause, "the store stops: the node must be restarted");
                self.fatal.send_replace(Some(cause.clone()));
                while let Ok(job) = jobs.recv() {
                    job.fail(StoreError::Stopped { cause: cause.to_string() });
                }
                break;
            }
        }
        told.0 = None;
    }

    /// Sends back what a nearly full disk must not take in, and offsets that would pass what was sent back.
    fn admit(&mut self, batch: Vec<Job>) -> Vec<Job> {
        if self.owing.is_empty() && !batch.iter().any(Job::admits) {
            return batch;
        }
        // A file system that cannot say is no reason to refuse: the write itself will tell.
        let free = self.bodies.free().unwrap_or(u64::MAX);
        let full = free < RESERVED_BYTES;
        if self.owing.is_empty() && !full {
            return batch;
        }
        let mut taken = Vec::with_capacity(batch.len());
        for job in batch {
            if self.owing.refuses(&job, full) {
                job.fail(StoreError::DiskFull { free, needed: RESERVED_BYTES });
            } else {
                taken.push(job);
            }
        }
        taken
    }

    fn commit(&mut self, batch: Vec<Job>) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let durable = batch.iter().any(Job::durable);
        let (requests, began) = (batch.len(), self.clock.monotonic());
        let mut answers = Vec::with_capacity(requests);
        let result = self.write(batch, durable, &mut answers);
        match result {
            Ok(progress) => {
                if let (true, Some(tell)) = (durable, self.on_commit.get()) {
                    tell(requests, self.clock.monotonic().saturating_sub(began));
                }
                // Readers see the rows before anybody hears of them.
                self.progress.send_if_modified(|before| {
                    let changed = *before != progress;
                    *before = progress;
                    changed
                });
                for answer in answers {
                    match answer {
                        Answer::Write(done) => done(Ok(())),
                        Answer::Stage(standings, done) => done(Ok(standings)),
                        Answer::Apply(applied, done) => done(Ok(applied)),
                    }
                }
                if durable {
                    for (digest, index, number) in std::mem::take(&mut self.obsolete) {
                        if let Err(error) = self.bodies.remove(&digest, index, number) {
                            // The file is only in the way; the next start sweeps it.
                            tracing::warn!(%error, "a body's file stays behind");
                        }
                    }
                }
                Ok(())
            }
            Err(error) => {
                let cause = error.to_string();
                let stopped = || StoreError::Stopped { cause: cause.clone() };
                for answer in answers {
                    match answer {
                        Answer::Write(done) => done(Err(stopped())),
                        Answer::Stage(_, done) => done(Err(stopped())),
                        Answer::Apply(_, done) => done(Err(stopped())),
                    }
                }
                Err(error)
            }
        }
    }

    fn write(&mut self, batch: Vec<Job>, durable: bool, answers: &mut Vec<Answer>) -> Result<Progress, StoreError> {
        let database = self.database.clone();
        let moved = batch.iter().any(Job::moves_held);
        let mut jobs = batch.into_iter();
        let result: Result<Progress, StoreError> = (|| {
            let mut transaction = database.begin_write().map_err(StoreError::failed("starting a commit"))?;
            transaction
                .set_durability(if durable { Durability::Immediate } else { Durability::None })
                .map_err(StoreError::failed("starting a commit"))?;
            let progress = {
                let mut tables = Tables::of(&transaction);
                let counts = self.counts;
                for job in jobs.by_ref() {
                    // The answer is kept first, so that an error on the way reaches this job too.
                    self.run_job(&mut tables, job, answers)?;
                }
                if self.counts != counts {
                    put_meta(tables.meta_mut()?, name::COUNTS, &self.counts.encode())?;
                }
                Progress {
                    applied: self.head.applied,
                    group_time: self.head.group_time,
                    state_digest: self.head.digest,
                    directory_version: self.head.directory.as_ref().map_or(0, |directory| directory.version),
                    held: if moved { held(&tables)? } else { self.progress.borrow().held },
                    counts: self.counts,
                }
            };
            transaction.commit().map_err(StoreError::failed("committing to the store"))?;
            Ok(progress)
        })();
        if let Err(error) = &result {
            for job in jobs {
                job.fail(StoreError::Stopped { cause: error.to_string() });
            }
        }
        result
    }

    fn run_job(
        &mut self,
        tables: &mut Tables<Writing<'_>>,
        job: Job,
        answers: &mut Vec<Answer>,
    ) -> Result<(), StoreError> {
        match job {
            Job::Write(mutations, done) => {
                answers.push(Answer::Write(done));
                for mutation in mutations {
                    self.mutate(tables, mutation)?;
                }
            }
            Job::Stage(parcel, done) => {
                answers.push(Answer::Stage(Vec::new(), done));
                let mut staging = Staging::new(tables, &mut self.counts, &mut self.obsolete, &mut self.decoded);
                let standings = staging.stage(*parcel, self.head.group_time)?;
                if let Some(Answer::Stage(answer, _)) = answers.last_mut() {
                    *answer = standings;
                }
            }
            Job::Apply(entries, done) => {
                answers.push(Answer::Apply(Vec::new(), done));
                for entry in entries {
                    let applied = self.apply(tables, entry)?;
                    if let Some(Answer::Apply(answer, _)) = answers.last_mut() {
                        answer.push(applied);
                    }
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, tables: &mut Tables<Writing<'_>>, entry: ApplyEntry) -> Result<Applied, StoreError> {
        let ApplyEntry { index, id, membership, entry } = entry;
        if index <= self.head.applied && index != 0 {
            // Applying twice would change the state digest, if nothing worse: whoever asks for it is wrong.
            let cause =
                format!("consensus asks to apply it again, though everything up to {} is applied", self.head.applied);
            return Err(StoreError::damaged("log", index, cause));
        }
        let mut applied = Applied { index, changes: None, settled: Vec::new() };
        if let Some(entry) = entry {
            let view = StateView { tables, head: &self.head };
            let changes = decide::apply(&view, index, &entry).map_err(StoreError::failed("applying a log entry"))?;
            self.head.put(tables, &changes, &self.parsed)?;
            let mut staging = Staging::new(tables, &mut self.counts, &mut self.obsolete, &mut self.decoded);
            applied.settled = staging.decided(&changes.rows)?;
            applied.settled.extend(staging.expire(changes.group_time)?);
            staging.finish()?;
            applied.changes = Some(Arc::new(changes));
        }
        if let Some(membership) = membership {
            put_meta(tables.meta_mut()?, name::MEMBERSHIP, &membership)?;
        }
        self.head.applied = index;
        put_meta(tables.meta_mut()?, name::APPLIED, &[index.to_be_bytes().as_slice(), &id].concat())?;
        Ok(applied)
    }

    fn mutate(&mut self, tables: &mut Tables<Writing<'_>>, mutation: Mutation) -> Result<(), StoreError> {
        match mutation {
            Mutation::AppendLog(entries) => {
                for (index, bytes) in entries {
                    let key = index.to_be_bytes();
                    put(tables.log_mut()?, &key, &guard(&key, &bytes))?;
                }
            }
            Mutation::TruncateLog { from } => remove_range(tables.log_mut()?, from, u64::MAX)?,
            Mutation::PurgeLog { through, id } => {
                remove_range(tables.log_mut()?, 0, through)?;
                put_meta(tables.meta_mut()?, name::PURGED, &id)?;
            }
            Mutation::SaveVote(vote) => put_meta(tables.meta_mut()?, name::VOTE, &vote)?,
            Mutation::SaveCommitted(id) => put_meta(tables.meta_mut()?, name::COMMITTED, &id)?,
            Mutation::KeepBody { sender, transaction, digest, body } => {
                let mut staging = Staging::new(tables, &mut self.counts, &mut self.obsolete, &mut self.decoded);
                staging.keep_fetched(&sender, &transaction, &digest, body)?;
            }
            Mutation::SetOffset { partition, mark } => {
                put(tables.offsets_mut()?, &partition.to_be_bytes(), &encode_mark(&mark))?;
            }
            Mutation::Defer { at, row } => put(tables.deferred_mut()?, &address_key(at), &row.encode())?,
            Mutation::Undefer { partition, offsets } => {
                let key = |offset: &i64| address_key(Address { partition, offset: *offset });
                remove_all(tables.deferred_mut()?, key(offsets.start()), key(offsets.end()))?;
            }
            Mutation::Refuse { digest, notice } => put(tables.refusals_mut()?, &digest.0, &notice)?,
            Mutation::Raise { name, row } => put(tables.alarms_mut()?, name.as_bytes(), &row.encode())?,
            Mutation::Clear { name } => {
                remove(tables.alarms_mut()?, name.as_bytes())?;
            }
            Mutation::Seen { node, row } => put(tables.seen_mut()?, node.as_str().as_bytes(), &row.encode())?,
            Mutation::Note { name, value } if value.is_empty() => {
                remove(tables.notes_mut()?, name.as_bytes())?;
            }
            Mutation::Note { name, value } => put(tables.notes_mut()?, name.as_bytes(), &value)?,
        }
        Ok(())
    }
}

fn remove_range(table: &mut Writable<'_>, from: u64, through: u64) -> Result<(), StoreError> {
    remove_all(table, from.to_be_bytes().to_vec(), through.to_be_bytes().to_vec())
}

/// Removes all rows from one key to another; holds few of them at a time.
fn remove_all(table: &mut Writable<'_>, first: Vec<u8>, last: Vec<u8>) -> Result<(), StoreError> {
    loop {
        let found = rows(table, first.clone()..=last.clone(), false, ROWS_AT_ONCE)?;
        for (key, _) in &found {
            remove(table, key)?;
        }
        if found.len() < ROWS_AT_ONCE {
            return Ok(());
        }
    }
}

/// Says that the writer is gone when its thread unwinds.
struct TellPanic(Option<watch::Sender<Option<Arc<str>>>>);

impl Drop for TellPanic {
    fn drop(&mut self) {
        if let Some(fatal) = &self.0 {
            fatal.send_replace(Some("the store's writer ended unexpectedly".into()));
        }
    }
}
