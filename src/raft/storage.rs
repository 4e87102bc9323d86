//! openraft's log and state machine over the group's store.
//!
//! Owns what openraft asks of a storage. Must not know tables, nor what entries mean: applying them is the store's writer
//! with `core::decide`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, IOFlushed, LogState, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftLogReader};
use tokio::sync::mpsc;

use super::codec;
use super::types::{
    AppliedIndex, EntryBytes, LogEntry, LogId, RaftSnapshot, SnapshotMeta, StoredMembership, TypeConfig, Vote,
};
use crate::core::decide::Entry;
use crate::core::limits;
use crate::store::StoreError;
use crate::store::group::{Applied, ApplyEntry, GroupStore, Mutation};

/// Bytes of recent entries kept in memory, so that replication and apply need not read them back.
const TAIL_BYTES: usize = 4 * 1024 * 1024;

/// Bytes of entries that one append message may carry: below the gRPC limit, with room for its frame.
const MESSAGE_BYTES: usize = limits::RPC_BYTES - limits::RPC_BYTES / 8;

/// Most entries that are applied in one commit.
const APPLY_AT_ONCE: usize = 64;

/// What openraft is told about snapshots: there are none yet, and the log is never purged, so nobody needs one.
const NO_SNAPSHOTS: &str = "snapshots are not supported by this version: the log is never purged, so none is needed";

fn store_error(error: StoreError) -> io::Error {
    io::Error::other(error)
}

fn codec_error(error: crate::core::wire::WireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[derive(Default)]
struct Tail {
    entries: BTreeMap<u64, LogEntry>,
    bytes: usize,
    /// Term and index of the last durable entry.
    durable: Option<(u64, u64)>,
}

impl Tail {
    fn push(&mut self, entry: LogEntry) {
        self.bytes += codec::entry_bytes(&entry);
        if let Some(old) = self.entries.insert(entry.index(), entry) {
            self.bytes -= codec::entry_bytes(&old);
        }
    }

    /// Forgets the oldest durable entries beyond [`TAIL_BYTES`].
    fn shrink(&mut self) {
        while self.bytes > TAIL_BYTES
            && let Some(first) = self.entries.first_entry()
            && self.durable.is_some_and(|(_, durable)| *first.key() <= durable)
        {
            self.bytes -= codec::entry_bytes(&first.remove());
        }
    }

    fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        self.entries.retain(|index, _| keep(*index));
        self.bytes = self.entries.values().map(codec::entry_bytes).sum();
    }
}

/// The log, and its readers: clones share the recent entries.
#[derive(Clone)]
pub struct LogStore {
    store: GroupStore,
    tail: Arc<Mutex<Tail>>,
    vote: Arc<Mutex<Option<Vote>>>,
    committed: Arc<Mutex<Option<LogId>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogStore {
    /// Over a group's store. Errors: the store's, and damaged votes.
    pub fn new(store: GroupStore) -> Result<Self, io::Error> {
        let snapshot = store.snapshot().map_err(store_error)?;
        let vote = snapshot.vote().map_err(store_error)?;
        let vote = vote.map(|bytes| codec::read_vote(&bytes)).transpose().map_err(codec_error)?;
        let committed = snapshot.committed().map_err(store_error)?;
        let committed = committed.map(|bytes| codec::read_option_log_id(&bytes)).transpose().map_err(codec_error)?;
        let last = snapshot.log_bounds().map_err(store_error)?.entries.map(|entries| *entries.end());
        let last = last.map_or(Ok(Vec::new()), |last| snapshot.log(last..last + 1, usize::MAX)).map_err(store_error)?;
        let last = last.first().map(|(_, bytes)| codec::read_entry(bytes)).transpose().map_err(codec_error)?;
        let durable = last.map(|entry| term_and_index(&entry.log_id()));
        Ok(Self {
            store,
            tail: Arc::new(Mutex::new(Tail { durable, ..Tail::default() })),
            vote: Arc::new(Mutex::new(vote)),
            committed: Arc::new(Mutex::new(committed.flatten())),
        })
    }

    /// Term and index of the last entry that is durable here.
    pub fn durable(&self) -> Option<(u64, u64)> {
        lock(&self.tail).durable
    }

    fn read(&self, start: u64, end: u64, most_bytes: usize) -> Result<Vec<LogEntry>, io::Error> {
        if start >= end {
            return Ok(Vec::new());
        }
        // What is not in the tail is durable, so it is in the store; the tail is looked at first because entries only move
        // from it to the store.
        let recent: Vec<LogEntry> =
            lock(&self.tail).entries.range(start..end).map(|(_, entry)| entry.clone()).collect();
        let older = start..recent.first().map_or(end, RaftEntry::index);
        let mut entries = Vec::new();
        if !older.is_empty() {
            let snapshot = self.store.snapshot().map_err(store_error)?;
            for (_, bytes) in snapshot.log(older.clone(), most_bytes).map_err(store_error)? {
                entries.push(codec::read_entry(&bytes).map_err(codec_error)?);
            }
        }
        let whole = entries.last().map_or(older.start, |entry: &LogEntry| entry.index() + 1) == older.end;
        if whole || entries.is_empty() {
            entries.extend(recent);
        }
        let mut bytes = 0;
        let fits = entries.iter().take_while(|entry| {
            bytes += codec::entry_bytes(entry);
            bytes <= most_bytes
        });
        let fits = fits.count().max(1);
        entries.truncate(fits);
        Ok(entries)
    }
}

fn term_and_index(id: &LogId) -> (u64, u64) {
    (id.leader_id.term, id.index)
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<LogEntry>, io::Error> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(*lock(&self.vote))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<LogEntry>, io::Error> {
        self.read(start, end, MESSAGE_BYTES)
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<LogEntry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // In parts, so that a log that is replayed whole is never in memory whole.
        let (start, end) = bounds(&range);
        let log = self.clone();
        let parts = stream::unfold(Some(start), move |next| {
            let log = log.clone();
            async move {
                match log.read(next?, end, MESSAGE_BYTES) {
                    Ok(entries) => {
                        let last = entries.last()?.index();
                        Some((entries.into_iter().map(Ok).collect::<Vec<_>>(), Some(last + 1)))
                    }
                    Err(error) => Some((vec![Err(error)], None)),
                }
            }
        });
        Box::pin(parts.flat_map(stream::iter))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let bounds = self.store.snapshot().and_then(|snapshot| snapshot.log_bounds()).map_err(store_error)?;
        let purged = bounds.purged.map(|bytes| codec::read_log_id(&bytes)).transpose().map_err(codec_error)?;
        let mut last = lock(&self.tail).entries.last_key_value().map(|(_, entry)| entry.log_id());
        if let (None, Some(entries)) = (&last, &bounds.entries) {
            let index = *entries.end();
            last = self.read(index, index + 1, usize::MAX)?.first().map(RaftEntry::log_id);
        }
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let bytes = codec::write_vote(vote).map_err(codec_error)?;
        self.store.write(vec![Mutation::SaveVote(bytes.into())]).await.map_err(store_error)?;
        *lock(&self.vote) = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let bytes = codec::write_option_log_id(&committed).map_err(codec_error)?;
        *lock(&self.committed) = committed;
        // Nobody waits: it only shortens the next start. A store that fails says so itself.
        self.store.submit(vec![Mutation::SaveCommitted(bytes.into())], Box::new(|_| {}));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(*lock(&self.committed))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<LogEntry> = entries.into_iter().collect();
        let rows = entries
            .iter()
            .map(|entry| codec::write_entry(entry).map(|bytes| (entry.index(), Bytes::from(bytes))))
            .collect::<Result<Vec<_>, _>>()
            .map_err(codec_error)?;
        let last = entries.last().map(|entry| term_and_index(&entry.log_id()));
        {
            let mut tail = lock(&self.tail);
            for entry in entries {
                tail.push(entry);
            }
        }
        let tail = self.tail.clone();
        let done = move |result: Result<(), StoreError>| {
            if result.is_ok() {
                let mut tail = lock(&tail);
                tail.durable = last.or(tail.durable);
                tail.shrink();
            }
            callback.io_completed(result.map_err(store_error));
        };
        self.store.submit(vec![Mutation::AppendLog(rows)], Box::new(done));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |last| last.index + 1);
        // Waited for: afterwards no earlier append can still report entries as durable that are gone.
        self.store.write(vec![Mutation::TruncateLog { from }]).await.map_err(store_error)?;
        let mut tail = lock(&self.tail);
        tail.retain(|index| index < from);
        tail.durable = last.as_ref().map(term_and_index);
        Ok(())
    }

    async fn purge(&mut self, through: LogId) -> Result<(), io::Error> {
        let id = codec::write_log_id(&through).map_err(codec_error)?.into();
        let purge = Mutation::PurgeLog { through: through.index, id };
        self.store.write(vec![purge]).await.map_err(store_error)?;
        lock(&self.tail).retain(|index| index > through.index);
        Ok(())
    }
}

/// The state machine: hands committed entries to the store's writer and tells the node what they did.
pub struct StateMachine {
    store: GroupStore,
    news: mpsc::Sender<Applied>,
}

impl StateMachine {
    /// Over a group's store; what is applied is told through `news`. While that has no room, nothing more is applied: a log
    /// that is replayed whole must not be in memory whole.
    pub fn new(store: GroupStore, news: mpsc::Sender<Applied>) -> Self {
        Self { store, news }
    }

    fn to_apply(entry: &LogEntry) -> Result<ApplyEntry, io::Error> {
        let id = Bytes::from(codec::write_log_id(&entry.log_id()).map_err(codec_error)?);
        let mut to_apply = ApplyEntry { index: entry.index(), id, membership: None, entry: None };
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(EntryBytes(bytes)) => {
                let decoded = Entry::decode(bytes).map_err(|error| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("log entry {}: {error}", entry.index()))
                })?;
                to_apply.entry = Some(decoded);
            }
            EntryPayload::Membership(membership) => {
                let stored = StoredMembership::new(Some(entry.log_id()), membership.clone());
                to_apply.membership = Some(codec::write_membership(&stored).map_err(codec_error)?.into());
            }
        }
        Ok(to_apply)
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = ();
    type SnapshotBuilder = NoSnapshots;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let snapshot = self.store.snapshot().map_err(store_error)?;
        let applied = snapshot.applied_id().map_err(store_error)?;
        let membership = snapshot.membership().map_err(store_error)?;
        Ok((
            applied.map(|bytes| codec::read_log_id(&bytes)).transpose().map_err(codec_error)?,
            membership
                .map(|bytes| codec::read_membership(&bytes))
                .transpose()
                .map_err(codec_error)?
                .unwrap_or_default(),
        ))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut parts = entries.ready_chunks(APPLY_AT_ONCE);
        while let Some(part) = parts.next().await {
            let mut to_apply = Vec::with_capacity(part.len());
            let mut responders = Vec::with_capacity(part.len());
            for entry in part {
                let (entry, responder) = entry?;
                to_apply.push(Self::to_apply(&entry)?);
                responders.push(responder);
            }
            let applied = self.store.apply(to_apply).await.map_err(store_error)?;
            for (applied, responder) in applied.into_iter().zip(responders) {
                let index = applied.index;
                // A node that is ending does not listen any more; everything is in the store.
                let _ = self.news.send(applied).await;
                if let Some(responder) = responder {
                    responder.send(AppliedIndex(index));
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> NoSnapshots {
        NoSnapshots
    }

    async fn install_snapshot(&mut self, _: &SnapshotMeta, (): ()) -> Result<(), io::Error> {
        Err(no_snapshots())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot>, io::Error> {
        Ok(None)
    }
}

/// Builds no snapshot and says why.
#[derive(Debug, Clone, Copy)]
pub struct NoSnapshots;

impl RaftSnapshotBuilder<TypeConfig> for NoSnapshots {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<RaftSnapshot, io::Error> {
        Err(no_snapshots())
    }
}

pub(super) fn no_snapshots() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, NO_SNAPSHOTS)
}
