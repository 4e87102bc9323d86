//! Follows what the log decided: fates become receipts, the directory in force and group time are told to all, and
//! committed bodies that are missing here are fetched (R11, R13).
//!
//! Owns which committed bodies are waited for. Must not make a fate.

mod missing;
mod say;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::NodeError;
use super::group::{GroupContext, Repeat};
use super::newest::Newest;
use super::propose::Desk;
use super::receipts::Signer;
use super::recent::Recent;
use crate::core::decide::{self, Changes, Row};
use crate::core::directory::Directory;
use crate::core::gather::ParcelKey;
use crate::core::id::{Digest, Fate, Position, Time};
use crate::core::receipt::StageTimes;
use crate::raft::Group;
use crate::rpc::client::Dialer;
use crate::store::StoreError;
use crate::store::group::{Applied, Mutation, Settled, Snapshot};
use crate::telemetry::{logs, names};
use missing::{Fetched, MISSING_ALARM, Missing};
use say::can_be_said;

/// How often what is missing is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How often it is noted up to where receipts were published.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// The note's name.
const NOTE: &str = "receipts-published-before";
/// Rows that are read at once when receipts are published again.
const PAGE: usize = 1024;

/// Entries that are followed together.
const BATCH: usize = 64;

/// Until the next page is looked at.
const PAGE_PAUSE: Duration = Duration::from_millis(10);

/// With fewer statements than this waiting, the next page is said.
const FEW_WAITING: u64 = 2048;

/// From here on, what is to be said waits in the store rather than in memory: a few MiB.
const MANY_WAITING: u64 = 16_384;

/// By D: a parcel as gathering knows it, and its expiry.
type Parcels = BTreeMap<Digest, (ParcelKey, Time)>;

/// Where it is told what the log brought.
pub struct News {
    /// The directory in force.
    pub in_force: watch::Sender<Arc<Directory>>,
    /// The newest directory that the node goes by.
    pub newest: Newest,
    /// Group time.
    pub group_time: watch::Sender<Time>,
    /// Parcels that were decided and need no gathering here, with their expiry.
    pub ended: mpsc::Sender<(ParcelKey, Digest, Time)>,
}

/// Follows the log of one destination.
pub struct Holder {
    context: Arc<GroupContext>,
    desk: Desk,
    group: Group,
    dialer: Dialer,
    signer: Signer,
    news: News,
    missing: BTreeMap<Position, Missing>,
    /// How many of them each parcel has, by D.
    missing_of: BTreeMap<Digest, usize>,
    /// Whether the store knows of later ones that are missing.
    missing_more: bool,
    recent: Recent,
    fetching: JoinSet<Fetched>,
    /// Everything before this position that has a fate was looked at.
    next: Position,
    /// What is said from the store, a page whenever few statements wait: the cursor behind which it goes on. After a
    /// restart, and while no broker takes what would be said at once.
    unsaid: Option<Position>,
    noted: Position,
    /// A position, and how many statements must be published until it may be noted.
    to_note: Option<(Position, u64)>,
    /// Cancelled when the group has been shut down: what was applied by then is still followed.
    closed: CancellationToken,
}

impl Holder {
    /// Takes up what the store knows: bodies that are missing, and receipts that may not have been published before the
    /// restart. Errors: the store's.
    pub fn new(
        context: Arc<GroupContext>,
        desk: Desk,
        group: Group,
        dialer: Dialer,
        signer: Signer,
        news: News,
        closed: CancellationToken,
    ) -> Result<Self, NodeError> {
        let mut holder = Self {
            context,
            desk,
            group,
            dialer,
            signer,
            news,
            missing: BTreeMap::new(),
            missing_of: BTreeMap::new(),
            missing_more: true,
            recent: Recent::default(),
            fetching: JoinSet::new(),
            next: Position::default(),
            unsaid: None,
            noted: Position::default(),
            to_note: None,
            closed,
        };
        let snapshot = holder.context.store.snapshot()?;
        holder.miss_more(&snapshot)?;
        if holder.has_all() {
            holder.context.alarms.clear(MISSING_ALARM);
        }
        let last = snapshot.last_position()?;
        holder.next = after(last);
        let note = snapshot.note(NOTE)?.and_then(|note| std::str::from_utf8(&note).ok()?.parse::<Position>().ok());
        holder.noted = note.unwrap_or_default();
        holder.unsaid = Some(before(holder.noted));
        Ok(holder)
    }

    /// Follows until the group was shut down. `repeats` is what was sent again. Waits for nothing that waits for the log:
    /// while it is behind, nothing more is applied. Errors: the store's.
    pub async fn run(
        mut self,
        mut applied: mpsc::Receiver<Applied>,
        mut repeats: mpsc::UnboundedReceiver<Repeat>,
    ) -> Result<(), NodeError> {
        let (clock, closed) = (self.context.seams.clock.clone(), self.closed.clone());
        let mut note_at = clock.monotonic() + NOTE_EVERY;
        let mut look_at = clock.monotonic();
        loop {
            let pause = match (self.say_page()?, self.has_all()) {
                (true, _) => PAGE_PAUSE,
                (false, true) => NOTE_EVERY,
                (false, false) => LOOK,
            };
            tokio::select! {
                biased;
                one = applied.recv() => {
                    let Some(one) = one else { break };
                    let mut batch = vec![one];
                    while batch.len() < BATCH
                        && let Ok(one) = applied.try_recv()
                    {
                        batch.push(one);
                    }
                    self.applied(batch)?;
                }
                Some(repeat) = repeats.recv() => {
                    let snapshot = self.context.store.snapshot()?;
                    match repeat {
                        Repeat::Staged(items) => {
                            items.iter().try_for_each(|one| self.say_settled(&snapshot, one, true))?;
                        }
                        Repeat::Ended(parcel) => self.say_again(&snapshot, &parcel)?,
                    }
                }
                Some(done) = self.fetching.join_next() => match done {
                    Ok(done) => self.fetched(done)?,
                    Err(_) => self.fetch_lost(),
                },
                () = clock.sleep(pause) => {}
                () = closed.cancelled() => break,
            }
            if clock.monotonic() >= look_at {
                look_at = clock.monotonic() + LOOK;
                self.look()?;
            }
            if clock.monotonic() >= note_at {
                note_at = clock.monotonic() + NOTE_EVERY;
                self.note();
            }
        }
        self.fetching.shutdown().await;
        Ok(())
    }

    fn applied(&mut self, batch: Vec<Applied>) -> Result<(), NodeError> {
        let snapshot = self.context.store.snapshot()?;
        self.context.meter.set(names::RECEIPT_WAITING, self.signer.waiting() as f64);
        for Applied { index, changes, settled } in batch {
            self.desk.applied(index, changes.as_deref());
            self.context.meter.count(names::DECIDE_ENTRIES, 1);
            let Some(changes) = changes else { continue };
            self.tell(&changes);
            let void = changes.outcomes.iter().filter(|outcome| outcome.result == decide::Applied::Void);
            let void: BTreeSet<Digest> = void.map(|outcome| outcome.digest).collect();
            self.context.meter.count(names::DECIDE_VOID, void.len() as u64);
            let parcels = self.parcels(&changes);
            let mut missed = BTreeSet::new();
            let staged: BTreeMap<(Digest, u32), &Settled> =
                settled.iter().map(|one| ((one.digest, one.item.index), one)).collect();
            let (mut fates, took) = (BTreeMap::new(), self.context.meter.histogram(names::DECIDE_SECONDS));
            for row in &changes.rows {
                let stage = staged.get(&(row.digest, row.index)).copied();
                let parcel = parcels.get(&row.digest).copied();
                if let Some((parcel, _)) = parcel {
                    self.recent.note(parcel, row.transaction);
                }
                let fate = row.decision.fate();
                let reason = if let Fate::Rejected(reason) = fate { reason.word() } else { "" };
                let word = if row.is_committed() { "committed" } else { "rejected" };
                *fates.entry((word, reason)).or_default() += 1;
                let (node, sender, destination) = (&self.context.node, &row.sender, &self.context.destination);
                logs::transaction_span("commit", Some(row.parcel), row.transaction).in_scope(
                    || tracing::debug!(%node, %sender, %destination, position = %row.position, %fate, "decided"),
                );
                if let Some(stage) = stage {
                    took.record(self.context.seams.clock.now().since(stage.staged).as_secs_f64());
                }
                if self.unsaid.is_none() && self.signer.waiting() >= MANY_WAITING {
                    // The store is the queue from here on.
                    self.unsaid = Some(before(row.position));
                }
                self.next = after(row.position);
                let times = stage.map_or(StageTimes::default(), |stage| self.times(stage, true));
                // What was staged here until now has its body.
                let here = stage.is_some() || can_be_said(&snapshot, row)?;
                // What is not said now a page says in its turn.
                if here && self.unsaid.is_none() {
                    self.say_held(row, row.deadline, times);
                }
                if !here {
                    missed.insert(row.digest);
                    self.miss(row.clone(), parcel);
                }
            }
            for ((word, reason), number) in fates {
                let meter = self.context.meter.with("fate", word).with("reason", reason);
                meter.count(names::DECIDE_TRANSACTIONS, number);
            }
            for one in &settled {
                self.say_settled(&snapshot, one, false)?;
            }
            self.end_unstaged(&snapshot, &changes, &parcels, &missed)?;
        }
        Ok(())
    }

    fn tell(&self, changes: &Changes) {
        for change in &changes.directories {
            tracing::info!(destination = %self.context.destination, version = change.directory.version, "directory in force");
            self.news.newest.in_force([(self.context.destination.clone(), change.directory.clone())]);
            self.news.in_force.send_replace(change.directory.clone());
        }
        for why in &changes.directories_refused {
            tracing::warn!(destination = %self.context.destination, "a directory in the log changes nothing: {why}");
        }
        self.news.group_time.send_if_modified(|time| {
            let moved = *time != changes.group_time;
            *time = changes.group_time;
            moved
        });
        self.context.meter.set(names::DECIDE_GROUP_TIME, changes.group_time.0 as f64 / 1000.0);
        self.context.meter.set(names::RAFT_APPLIED_INDEX, changes.index as f64);
    }

    /// The parcels that an entry named, as gathering knows them; those of senders that the directory lost are left out.
    fn parcels(&self, changes: &Changes) -> Parcels {
        let directory = self.news.in_force.borrow().clone();
        let mut parcels = Parcels::new();
        for outcome in &changes.outcomes {
            if !parcels.contains_key(&outcome.digest)
                && let Some(sender) = directory.senders.get(&outcome.sender)
            {
                let key = ParcelKey { sender: sender.signing.bytes(), epoch: outcome.epoch, parcel: outcome.parcel };
                parcels.insert(outcome.digest, (key, outcome.expiry));
            }
        }
        parcels
    }

    /// Tells the collector of parcels that were decided without this node, and of which nothing is missing here.
    fn end_unstaged(
        &self,
        snapshot: &Snapshot,
        changes: &Changes,
        parcels: &Parcels,
        missed: &BTreeSet<Digest>,
    ) -> Result<(), StoreError> {
        for (&digest, &parcel) in parcels {
            let waits = missed.contains(&digest) || self.missing_of.contains_key(&digest);
            let decided = |row: &&Row| row.digest == digest;
            if !waits && changes.rows.iter().any(|row| decided(&row)) && !snapshot.is_staged(&digest)? {
                self.end(digest, Some(parcel));
            }
        }
        Ok(())
    }

    fn end(&self, digest: Digest, parcel: Option<(ParcelKey, Time)>) {
        if let Some((parcel, expiry)) = parcel {
            // A collector that is behind gathers the parcel once more; staging then says that it is decided.
            let _ = self.news.ended.try_send((parcel, digest, expiry));
        }
    }

    /// Says a page of what is to be said from the store, if there is any and few statements wait. Whether there is more.
    fn say_page(&mut self) -> Result<bool, StoreError> {
        let Some(from) = self.unsaid else { return Ok(false) };
        if self.signer.waiting() >= FEW_WAITING {
            return Ok(true);
        }
        let snapshot = self.context.store.snapshot()?;
        // Never past what was looked at: the news of the rest are still to come.
        let rows = snapshot.rows_after(from, before(self.next), PAGE)?;
        for row in &rows {
            self.say_row(&snapshot, row, row.deadline, StageTimes::default())?;
        }
        self.unsaid = rows.last().map(|row| row.position);
        Ok(self.unsaid.is_some())
    }

    /// Notes before which position all receipts were published, so that a restart says the rest again.
    fn note(&mut self) {
        self.context.meter.set(names::RECEIPT_WAITING, self.signer.waiting() as f64);
        if let Some((position, said)) = self.to_note
            && self.signer.published() >= said
        {
            self.to_note = None;
            if position != self.noted {
                self.noted = position;
                let mutation = Mutation::Note { name: NOTE.to_owned(), value: Bytes::from(position.to_string()) };
                // A store that cannot keep it stops the node, and says why itself.
                self.context.store.submit(vec![mutation], Box::new(drop));
            }
        }
        if self.to_note.is_none() {
            let missing = self.missing.first_key_value().map(|(position, _)| *position);
            let unsaid = self.unsaid.map(after);
            let position = [missing, unsaid].into_iter().flatten().fold(self.next, Position::min);
            self.to_note = Some((position, self.signer.said()));
        }
    }
}

fn after(position: Position) -> Position {
    Position { number: position.number.saturating_add(1), ..position }
}

/// The cursor behind which `position` is the first.
fn before(position: Position) -> Position {
    match position.number.checked_sub(1) {
        Some(number) => Position { number, ..position },
        None => Position { index: position.index.saturating_sub(1), number: u32::MAX },
    }
}
