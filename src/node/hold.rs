//! Follows what the log decided: fates become receipts, the directory in force and group time are told to all, and
//! committed bodies that are missing here are fetched (R11, R13).
//!
//! Owns which committed bodies are waited for. Must not make a fate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::NodeError;
use super::answer::verdict;
use super::fetch::{Begun, FetchError, fetch};
use super::group::{GroupContext, Repeat};
use super::propose::Desk;
use super::receipts::Signer;
use super::recent::Recent;
use crate::core::decide::{self, Changes, Row, Standing, View, standing};
use crate::core::directory::Directory;
use crate::core::gather::ParcelKey;
use crate::core::id::{Digest, Fate, Position, Rejection, Time};
use crate::core::receipt::{Decided, StageTimes, Statement, Verdict};
use crate::raft::Group;
use crate::rpc::client::Dialer;
use crate::store::StoreError;
use crate::store::group::{Applied, ItemStanding, Mutation, Settled, Snapshot};
use crate::telemetry::names;

/// A body that is still being gathered here usually comes by itself: it is fetched only after this, and the time that
/// opening it takes at `OPENING` bytes a second.
const GRACE: Duration = Duration::from_millis(200);
const OPENING: u64 = 64 * 1024 * 1024;
/// Fetches at once.
const FETCHES: usize = 4;
/// How often what is missing is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// After a round in which no member gave the body; doubles up to the last.
const AGAIN_FIRST: Duration = Duration::from_millis(200);
const AGAIN_LAST: Duration = Duration::from_secs(5);
/// A body that is missing for longer is an alarm.
const LONG: Duration = Duration::from_secs(30);
/// How often it is noted up to where receipts were published.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// The note's name.
const NOTE: &str = "receipts-published-before";
/// Rows that are read at once when receipts are published again.
const PAGE: usize = 1024;

/// The alarm of bodies that no member gives.
const MISSING_ALARM: &str = "body-missing";
/// The alarm of what this node refused and a majority staged (R22).
const REFUSED_ALARM: &str = "refused-but-committed";

/// A committed body that is not here.
struct Missing {
    row: Row,
    /// Deadlines of other tickets of the same transaction that a receipt is owed to.
    also: BTreeSet<Time>,
    since: Duration,
    /// When it is fetched next; none while it is being fetched.
    due: Option<Duration>,
    again: Duration,
    begun: Begun,
    /// What the collector needs to know once the body is here.
    parcel: Option<(ParcelKey, Time)>,
}

/// By D: a parcel as gathering knows it, and its expiry.
type Parcels = BTreeMap<Digest, (ParcelKey, Time)>;

/// A fetch that ended.
struct Fetched {
    position: Position,
    begun: Begun,
    outcome: Result<(), Vec<FetchError>>,
}

/// Follows the log of one destination.
pub struct Holder {
    context: Arc<GroupContext>,
    desk: Desk,
    group: Group,
    dialer: Dialer,
    signer: Signer,
    in_force: watch::Sender<Arc<Directory>>,
    newest: watch::Sender<Arc<Directory>>,
    group_time: watch::Sender<Time>,
    ended: mpsc::Sender<(ParcelKey, Time)>,
    missing: BTreeMap<Position, Missing>,
    recent: Recent,
    fetching: JoinSet<Fetched>,
    /// Everything before this position that has a fate was looked at.
    next: Position,
    noted: Position,
    /// Cancelled when the group has been shut down: what was applied by then is still followed.
    closed: CancellationToken,
}

impl Holder {
    /// Takes up what the store knows: bodies that are missing, and receipts that may not have been published before the
    /// restart. Errors: the store's.
    #[allow(clippy::too_many_arguments, reason = "the parts of one destination, put together once")]
    pub fn new(
        context: Arc<GroupContext>,
        desk: Desk,
        group: Group,
        dialer: Dialer,
        signer: Signer,
        in_force: watch::Sender<Arc<Directory>>,
        newest: watch::Sender<Arc<Directory>>,
        group_time: watch::Sender<Time>,
        ended: mpsc::Sender<(ParcelKey, Time)>,
        closed: CancellationToken,
    ) -> Result<Self, NodeError> {
        let mut holder = Self {
            context,
            desk,
            group,
            dialer,
            signer,
            in_force,
            newest,
            group_time,
            ended,
            missing: BTreeMap::new(),
            recent: Recent::default(),
            fetching: JoinSet::new(),
            next: Position::default(),
            noted: Position::default(),
            closed,
        };
        let snapshot = holder.context.store.snapshot()?;
        for row in snapshot.missing(Position::default(), usize::MAX)? {
            holder.miss(row, None);
        }
        let last = snapshot.last_position()?;
        holder.next = after(last);
        let note = snapshot.note(NOTE)?.and_then(|note| std::str::from_utf8(&note).ok()?.parse::<Position>().ok());
        holder.noted = note.unwrap_or_default();
        let mut from = before(holder.noted);
        loop {
            let rows = snapshot.rows_after(from, last, PAGE)?;
            let Some(row) = rows.last() else { break };
            from = row.position;
            for row in rows {
                holder.say_row(&snapshot, &row, row.deadline, StageTimes::default())?;
            }
        }
        Ok(holder)
    }

    /// Follows until the group was shut down. `repeats` is what was sent again. Errors: the store's.
    pub async fn run(
        mut self,
        mut applied: mpsc::UnboundedReceiver<Applied>,
        mut repeats: mpsc::UnboundedReceiver<Repeat>,
    ) -> Result<(), NodeError> {
        let (clock, closed) = (self.context.seams.clock.clone(), self.closed.clone());
        let mut note_at = clock.monotonic() + NOTE_EVERY;
        let mut look_at = clock.monotonic();
        loop {
            let pause = if self.missing.is_empty() { NOTE_EVERY } else { LOOK };
            tokio::select! {
                biased;
                one = applied.recv() => {
                    let Some(one) = one else { break };
                    let mut batch = vec![one];
                    while let Ok(one) = applied.try_recv() {
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
                Some(done) = self.fetching.join_next() => if let Ok(done) = done { self.fetched(done)? },
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
        for Applied { index, changes, settled } in batch {
            self.desk.applied(index, changes.as_deref());
            self.context.meter.count(names::DECIDE_ENTRIES, 1);
            let Some(changes) = changes else { continue };
            self.tell(&changes);
            let void = changes.outcomes.iter().filter(|outcome| outcome.result == decide::Applied::Void);
            let void: BTreeSet<Digest> = void.map(|outcome| outcome.digest).collect();
            self.context.meter.count(names::DECIDE_VOID, void.len() as u64);
            let parcels = self.parcels(&changes);
            for row in &changes.rows {
                let stage = settled.iter().find(|one| one.digest == row.digest && one.item.index == row.index);
                let parcel = parcels.get(&row.digest).copied();
                if let Some((parcel, _)) = parcel {
                    self.recent.note(parcel, row.transaction);
                }
                let fate = row.decision.fate();
                let meter = self.context.meter.with("fate", if row.is_committed() { "committed" } else { "rejected" });
                match fate {
                    Fate::Rejected(reason) => meter.count_as(names::DECIDE_TRANSACTIONS, "reason", reason.word()),
                    _ => meter.count_as(names::DECIDE_TRANSACTIONS, "reason", ""),
                }
                tracing::debug!(parcel = %row.parcel, transaction = %row.transaction, position = %row.position, %fate, "decided");
                if let Some(stage) = stage {
                    let took = self.context.seams.clock.now().since(stage.staged);
                    self.context.meter.took(names::DECIDE_SECONDS, took);
                }
                self.next = after(row.position);
                let times = stage.map_or(StageTimes::default(), |stage| self.times(stage, true));
                if !self.say_row(&snapshot, row, row.deadline, times)? {
                    self.miss(row.clone(), parcel);
                }
            }
            for one in &settled {
                self.say_settled(&snapshot, one, false)?;
            }
            self.end_unstaged(&snapshot, &changes, &parcels)?;
        }
        Ok(())
    }

    fn tell(&self, changes: &Changes) {
        for change in &changes.directories {
            tracing::info!(destination = %self.context.destination, version = change.directory.version, "directory in force");
            self.in_force.send_replace(change.directory.clone());
            self.newest.send_if_modified(|newest| {
                let newer = change.directory.version > newest.version;
                if newer {
                    *newest = change.directory.clone();
                }
                newer
            });
            // One copy is enough, because its operator signed it; who led knows it first.
            if self.group.leadership().borrow().own {
                self.signer.directory(&change.directory);
            }
        }
        for why in &changes.directories_refused {
            tracing::warn!(destination = %self.context.destination, "a directory in the log changes nothing: {why}");
        }
        self.group_time.send_if_modified(|time| {
            let moved = *time != changes.group_time;
            *time = changes.group_time;
            moved
        });
        self.context.meter.set(names::DECIDE_GROUP_TIME, changes.group_time.0 as f64 / 1000.0);
        self.context.meter.set(names::RAFT_APPLIED_INDEX, changes.index as f64);
    }

    /// Says a row's fate about the ticket with this deadline, unless it is committed and its body is not here. Whether it
    /// was said.
    fn say_row(&self, snapshot: &Snapshot, row: &Row, deadline: Time, times: StageTimes) -> Result<bool, StoreError> {
        if row.is_committed() && !snapshot.has_body(&row.digest, row.index)? {
            return Ok(false);
        }
        self.signer.say(Statement {
            sender: row.sender.clone(),
            transaction: row.transaction,
            deadline,
            directory: row.directory,
            verdict: verdict(row),
            times,
        });
        Ok(true)
    }

    /// Says again what became of a parcel that was decided since this start: whoever sent it again did not hear. What was
    /// decided before is gathered and staged again, and said then.
    fn say_again(&mut self, snapshot: &Snapshot, parcel: &ParcelKey) -> Result<(), StoreError> {
        let directory = self.in_force.borrow().clone();
        let Some(sender) = directory.sender_by_key(&parcel.sender) else { return Ok(()) };
        let again = self.recent.again(parcel, self.context.seams.clock.monotonic()).to_vec();
        for transaction in &again {
            if let Some(row) = snapshot.transaction(&sender.name, *transaction)? {
                self.say_row(snapshot, &row, row.deadline, StageTimes::default())?;
            }
        }
        Ok(())
    }

    /// Says how an item stands that was staged here. Just applied, the row's own ticket is said with the row; `late` is an
    /// item that was staged after its fate: whoever sent it again did not hear.
    fn say_settled(&mut self, snapshot: &Snapshot, settled: &Settled, late: bool) -> Result<(), StoreError> {
        let item = &settled.item;
        let row = match &settled.standing {
            ItemStanding::Undecided => return Ok(()),
            ItemStanding::Expired => None,
            ItemStanding::Decided(row) => Some(row.as_ref()),
        };
        let retention = snapshot
            .directory()
            .and_then(|directory| directory.destinations.get(&self.context.destination))
            .map_or(Duration::MAX, |entry| entry.retention);
        let time = snapshot.group_time();
        let version = snapshot.directory().map_or(0, |directory| directory.version);
        let times = self.times(settled, !late);
        let say = |directory, verdict| {
            self.signer.say(Statement {
                sender: settled.sender.clone(),
                transaction: item.transaction,
                deadline: item.deadline,
                directory,
                verdict,
                times,
            });
        };
        match standing(row, item.deadline, Some(&item.payload_tag), time, retention) {
            Standing::Decided(..) => {
                if let Some(row) = row {
                    let own = row.digest == settled.digest && row.index == item.index;
                    if own && late && self.missing.contains_key(&row.position) {
                        self.found(snapshot, row.position, times)?;
                    } else if (late || !own)
                        && !self.say_row(snapshot, row, item.deadline, times)?
                        && let Some(missing) = self.missing.get_mut(&row.position)
                    {
                        missing.also.insert(item.deadline);
                    }
                }
            }
            Standing::IdReuse(position) => {
                let decided = Decided { position, payload_tag: item.payload_tag, digest: settled.digest };
                let directory = row.map_or(version, |row| row.directory);
                say(directory, Verdict::Rejected(decided, Rejection::IdReuse));
            }
            Standing::Expired => say(version, Verdict::Expired { group_time: time }),
            Standing::Forgotten => say(version, Verdict::Forgotten { group_time: time }),
            Standing::Undecided => {}
        }
        Ok(())
    }

    /// How long it took here. `decided`: its fate was applied just now, so it was held at once. What was staged after its
    /// fate took no time to commit; what is said again after a restart is said without any.
    fn times(&self, settled: &Settled, decided: bool) -> StageTimes {
        let took = |from: Time, to: Time| u32::try_from(to.since(from).as_millis()).unwrap_or(u32::MAX);
        StageTimes {
            delivered: settled.first.map(|first| took(settled.item.transaction.time(), first)),
            staged: settled.first.map(|first| took(first, settled.staged)),
            committed: decided.then(|| took(settled.staged, self.context.seams.clock.now())),
            held: decided.then_some(0),
        }
    }

    /// The parcels that an entry named, as gathering knows them; those of senders that the directory lost are left out.
    fn parcels(&self, changes: &Changes) -> Parcels {
        let directory = self.in_force.borrow().clone();
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
    fn end_unstaged(&self, snapshot: &Snapshot, changes: &Changes, parcels: &Parcels) -> Result<(), StoreError> {
        for (&digest, &parcel) in parcels {
            let waits = self.missing.values().any(|missing| missing.row.digest == digest);
            let decided = |row: &&Row| row.digest == digest;
            if !waits && changes.rows.iter().any(|row| decided(&row)) && snapshot.staged(&digest)?.is_none() {
                self.end(Some(parcel));
            }
        }
        Ok(())
    }

    fn end(&self, parcel: Option<(ParcelKey, Time)>) {
        if let Some(parcel) = parcel {
            // A collector that is behind gathers the parcel once more; staging then says that it is decided.
            let _ = self.ended.try_send(parcel);
        }
    }

    fn miss(&mut self, row: Row, parcel: Option<(ParcelKey, Time)>) {
        let now = self.context.seams.clock.monotonic();
        let grace = GRACE + Duration::from_millis(row.ciphertext_bytes.saturating_mul(1000) / OPENING);
        let missing = Missing {
            also: BTreeSet::new(),
            since: now,
            due: Some(now + grace),
            again: AGAIN_FIRST,
            begun: Begun::default(),
            parcel,
            row,
        };
        self.missing.insert(missing.row.position, missing);
    }

    /// Looks at everything that is missing: what is due is fetched. What comes by itself, staging tells of.
    fn look(&mut self) -> Result<(), NodeError> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let now = self.context.seams.clock.monotonic();
        let snapshot = self.context.store.snapshot()?;
        let leader = self.group.leadership().borrow().leader.clone();
        for (&position, missing) in &mut self.missing {
            if self.fetching.len() >= FETCHES {
                break;
            }
            if missing.due.is_none_or(|due| due > now) {
                continue;
            }
            missing.due = None;
            if snapshot.refusal(&missing.row.digest)?.is_some() {
                let text = format!(
                    "this node refused parcel {} ({}), which a majority staged and committed: compare this node's version, key \
                     ring and directory with those of the others",
                    missing.row.parcel, missing.row.digest
                );
                self.context.alarms.raise(REFUSED_ALARM, text);
            }
            let (context, dialer, row) = (self.context.clone(), self.dialer.clone(), missing.row.clone());
            let (mut begun, leader) = (std::mem::take(&mut missing.begun), leader.clone());
            self.fetching.spawn(async move {
                let outcome = fetch(&context, &dialer, &row, &mut begun, leader.as_ref()).await;
                Fetched { position, begun, outcome }
            });
        }
        self.context.meter.set(names::HOLD_MISSING, self.missing.len() as f64);
        Ok(())
    }

    fn fetched(&mut self, done: Fetched) -> Result<(), NodeError> {
        let Fetched { position, begun, outcome } = done;
        let now = self.context.seams.clock.monotonic();
        match outcome {
            Ok(()) => {
                let snapshot = self.context.store.snapshot()?;
                self.found(&snapshot, position, StageTimes::default())?;
            }
            Err(errors) => {
                let Some(missing) = self.missing.get_mut(&position) else { return Ok(()) };
                missing.begun = begun;
                missing.due = Some(now + missing.again);
                missing.again = (missing.again * 2).min(AGAIN_LAST);
                let why: Vec<String> = errors.iter().map(ToString::to_string).collect();
                let (transaction, long) = (missing.row.transaction, now.saturating_sub(missing.since) > LONG);
                tracing::info!(%transaction, %position, "a committed body could not be fetched: {}", why.join("; "));
                if long {
                    let text = format!(
                        "the body of transaction {transaction} at {position} is missing here and no node gave it: {}; it is \
                         asked for again until one does",
                        why.join("; ")
                    );
                    self.context.alarms.raise(MISSING_ALARM, text);
                }
            }
        }
        self.look()
    }

    /// A body is here now: its receipt is due, and its parcel needs no gathering.
    fn found(&mut self, snapshot: &Snapshot, position: Position, times: StageTimes) -> Result<(), StoreError> {
        let Some(missing) = self.missing.get(&position) else { return Ok(()) };
        let took = self.context.seams.clock.monotonic().saturating_sub(missing.since);
        // What was missing from before this start, or not told of by the log, is missing for longer than is known here.
        let held = missing.parcel.is_some().then(|| u32::try_from(took.as_millis()).unwrap_or(u32::MAX));
        let times = StageTimes { held, ..times };
        if !self.say_row(snapshot, &missing.row, missing.row.deadline, times)? {
            return Ok(());
        }
        for &deadline in &missing.also {
            self.say_row(snapshot, &missing.row, deadline, times)?;
        }
        self.context.meter.took(names::HOLD_SECONDS, took);
        let Some(missing) = self.missing.remove(&position) else { return Ok(()) };
        if !self.missing.values().any(|other| other.row.digest == missing.row.digest) {
            self.end(missing.parcel);
        }
        if self.missing.is_empty() {
            self.context.alarms.clear(MISSING_ALARM);
        }
        self.context.meter.set(names::HOLD_MISSING, self.missing.len() as f64);
        Ok(())
    }

    /// Notes before which position all receipts were published, so that a restart says the rest again.
    fn note(&mut self) {
        if !self.signer.idle() {
            return;
        }
        let before = self.missing.first_key_value().map_or(self.next, |(position, _)| *position);
        if before != self.noted {
            self.noted = before;
            let mutation = Mutation::Note { name: NOTE.to_owned(), value: Bytes::from(before.to_string()) };
            // A store that cannot keep it stops the node, and says why itself.
            self.context.store.submit(vec![mutation], Box::new(drop));
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
