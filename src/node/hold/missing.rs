//! Committed bodies that are not here: waited for, fetched, and told of when they came (R11).

use std::collections::BTreeSet;
use std::time::Duration;

use super::Holder;
use crate::core::decide::Row;
use crate::core::gather::ParcelKey;
use crate::core::id::{Position, Time};
use crate::core::receipt::StageTimes;
use crate::node::fetch::{Begun, FetchError, fetch};
use crate::node::{NodeError, alarms};
use crate::store::StoreError;
use crate::store::group::Snapshot;
use crate::telemetry::names;

/// A body that is still being gathered here usually comes by itself: it is fetched only after this, and the time that
/// opening it takes at `OPENING` bytes a second.
const GRACE: Duration = Duration::from_millis(200);
const OPENING: u64 = 64 * 1024 * 1024;
/// Fetches at once.
const FETCHES: usize = 4;
/// After a round in which no member gave the body; doubles up to the last.
const AGAIN_FIRST: Duration = Duration::from_millis(200);
const AGAIN_LAST: Duration = Duration::from_secs(5);
/// Missing bodies that are in mind at a time, the earliest: the store knows the others. A node that was away may miss as many as
/// were committed meanwhile.
const IN_MIND: usize = 256;
/// Other tickets of a transaction that are told of when its body comes; whoever holds one of further ones asks.
const ALSO: usize = 64;
/// A body that is missing for longer is an alarm.
const LONG: Duration = Duration::from_secs(30);
/// The alarm of bodies that no member gives.
pub(super) const MISSING_ALARM: &str = alarms::BODY_MISSING;

/// A committed body that is not here.
pub(super) struct Missing {
    pub(super) row: Row,
    /// Deadlines of other tickets of the same transaction that a receipt is owed to.
    also: BTreeSet<Time>,
    pub(super) since: Duration,
    /// When it is fetched next; none while it is being fetched.
    pub(super) due: Option<Duration>,
    pub(super) again: Duration,
    pub(super) begun: Begun,
    /// What the collector needs to know once the body is here.
    pub(super) parcel: Option<(ParcelKey, Time)>,
}

impl Missing {
    /// A receipt is owed to the ticket with this deadline too.
    pub(super) fn owe(&mut self, deadline: Time) {
        if self.also.len() < ALSO {
            self.also.insert(deadline);
        }
    }
}

/// A fetch that ended.
pub(super) struct Fetched {
    pub(super) position: Position,
    pub(super) begun: Begun,
    pub(super) outcome: Result<(), Vec<FetchError>>,
}

impl Holder {
    /// Whether no body is missing here.
    pub(super) fn has_all(&self) -> bool {
        self.missing.is_empty() && !self.missing_more
    }

    /// A committed body is not here. Later ones than can be kept in mind wait in the store.
    pub(super) fn miss(&mut self, row: Row, parcel: Option<(ParcelKey, Time)>) {
        let known = self.missing.contains_key(&row.position);
        self.missing_more |= self.missing.len() >= IN_MIND && !known;
        if known || !self.missing_more {
            self.keep_in_mind(row, parcel);
        }
    }

    /// Takes up what the store knows to be missing behind those that are in mind, as far as there is room.
    pub(super) fn miss_more(&mut self, snapshot: &Snapshot) -> Result<(), StoreError> {
        if !self.missing_more || self.missing.len() > IN_MIND / 2 {
            return Ok(());
        }
        let (last, room) = (self.missing.last_key_value(), IN_MIND - self.missing.len());
        let after = last.map_or(Position::default(), |(position, _)| *position);
        let rows = snapshot.missing(after, room)?;
        self.missing_more = rows.len() == room;
        for row in rows {
            self.keep_in_mind(row, None);
        }
        Ok(())
    }

    fn keep_in_mind(&mut self, row: Row, parcel: Option<(ParcelKey, Time)>) {
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
        let digest = missing.row.digest;
        if self.missing.insert(missing.row.position, missing).is_none() {
            *self.missing_of.entry(digest).or_default() += 1;
        }
    }

    /// Looks at everything that is missing: what is due is fetched. What comes by itself, staging tells of.
    pub(super) fn look(&mut self) -> Result<(), NodeError> {
        if self.has_all() {
            return Ok(());
        }
        let now = self.context.seams.clock.monotonic();
        let snapshot = self.context.store.snapshot()?;
        self.miss_more(&snapshot)?;
        if self.has_all() {
            self.context.alarms.clear(MISSING_ALARM);
        }
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
                self.context.alarms.raise(alarms::REFUSED_BUT_COMMITTED, text);
            }
            let (context, dialer, row) = (self.context.clone(), self.dialer.clone(), missing.row.clone());
            let (mut begun, leader) = (std::mem::take(&mut missing.begun), leader.clone());
            self.fetching.spawn(async move {
                let outcome = fetch(&context, &dialer, &row, &mut begun, leader.as_ref()).await;
                Fetched { position, begun, outcome }
            });
        }
        Ok(())
    }

    /// A fetch ended without a word. Which one it was is not known: all that are on their way are due again, and what comes
    /// twice is kept once.
    pub(super) fn fetch_lost(&mut self) {
        let now = self.context.seams.clock.monotonic();
        tracing::error!("a fetch of a committed body ended unexpectedly; it is tried again");
        for missing in self.missing.values_mut().filter(|missing| missing.due.is_none()) {
            missing.due = Some(now + missing.again);
        }
    }

    pub(super) fn fetched(&mut self, done: Fetched) -> Result<(), NodeError> {
        let Fetched { position, begun, outcome } = done;
        let now = self.context.seams.clock.monotonic();
        match outcome {
            Ok(()) => {
                let snapshot = self.context.store.snapshot()?;
                self.found(&snapshot, position, StageTimes::default())?;
            }
            Err(mut errors) => {
                // After a failed fsync or write nobody knows what the disk holds (R19).
                let ends = |error: &mut FetchError| matches!(error, FetchError::Own(own) if !own.retryable());
                if let Some(FetchError::Own(error)) = errors.pop_if(ends) {
                    return Err(error);
                }
                let Some(missing) = self.missing.get_mut(&position) else { return Ok(()) };
                missing.begun = begun;
                missing.due = Some(now + missing.again);
                missing.again = (missing.again * 2).min(AGAIN_LAST);
                let why: Vec<String> = errors.iter().map(ToString::to_string).collect();
                let (transaction, long) = (missing.row.transaction, now.saturating_sub(missing.since) > LONG);
                let (parcel, destination) = (missing.row.parcel, &self.context.destination);
                tracing::info!(%transaction, %parcel, %destination, %position, "a committed body could not be fetched: {}", why.join("; "));
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
    pub(super) fn found(
        &mut self,
        snapshot: &Snapshot,
        position: Position,
        times: StageTimes,
    ) -> Result<(), StoreError> {
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
        // Many may be missing at once, after this node was away: the parcel's are counted rather than looked for.
        let left = self.missing_of.remove(&missing.row.digest).unwrap_or_default().saturating_sub(1);
        if left == 0 {
            self.end(missing.row.digest, missing.parcel);
        } else {
            self.missing_of.insert(missing.row.digest, left);
        }
        if self.has_all() {
            self.context.alarms.clear(MISSING_ALARM);
        }
        Ok(())
    }
}
