//! Answers to senders that ask what became of their transactions: with receipts, like any other fate (R13). *Expired* of a
//! transaction that never came binds group time; of what has no fate nothing is said.
//!
//! Owns the queries that wait. Must not make a fate.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::NodeError;
use super::group::GroupContext;
use super::receipts::Signer;
use crate::core::decide::{Decision, Row, Standing, View, standing};
use crate::core::id::{PayloadTag, Rejection, SenderName, Time, TransactionId};
use crate::core::receipt::{Answered, Decided, Notice, Present, Query, StageTimes, Statement, Verdict, is_query};
use crate::store::StoreError;
use crate::store::group::Snapshot;
use crate::telemetry::labels::QueryOutcome;
use crate::telemetry::names;

/// Queries of one partition that wait to be answered; beyond it they are passed over, and asked again.
const WAITING: usize = 32;

/// A directory that an answer names, and that is not in force any more, is told with it at most this often.
const DIRECTORY_EVERY: Duration = Duration::from_secs(10);

/// Queries that wait, by the partition in which they lie, which take turns: whoever fills one with what is no query of a
/// sender keeps nobody in another one from being heard. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Questions(Arc<Asked>);

#[derive(Debug, Default)]
struct Asked {
    waiting: Mutex<BTreeMap<i32, VecDeque<Bytes>>>,
    come: Notify,
}

impl Questions {
    /// Takes a record, if it can be a query; whether there was no room for it.
    pub fn ask(&self, partition: i32, record: &[u8]) -> bool {
        if !is_query(record) {
            return false;
        }
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = waiting.entry(partition).or_default();
        let room = queue.len() < WAITING;
        if room {
            // A copy, because the record shares its memory with all that was read with it.
            queue.push_back(Bytes::copy_from_slice(record));
            drop(waiting);
            self.0.come.notify_one();
        }
        !room
    }

    /// The next one, of another partition than the last if there is one.
    async fn next(&self, last: &mut i32) -> Bytes {
        loop {
            if let Some((partition, query)) = self.take(*last) {
                *last = partition;
                return query;
            }
            self.0.come.notified().await;
        }
    }

    fn take(&self, last: i32) -> Option<(i32, Bytes)> {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let after = waiting.range(last.saturating_add(1)..).chain(waiting.range(..=last));
        let partition = after.filter(|(_, queue)| !queue.is_empty()).map(|(partition, _)| *partition).next()?;
        waiting.get_mut(&partition)?.pop_front().map(|query| (partition, query))
    }
}

/// Answers for one destination.
pub struct Answerer {
    context: Arc<GroupContext>,
    signer: Signer,
    answered: Answered,
    /// Which versions of the directory were told with an answer, and when.
    told: BTreeMap<u64, Duration>,
}

impl Answerer {
    /// Says its answers through `signer`.
    pub fn new(context: Arc<GroupContext>, signer: Signer) -> Self {
        Self { context, signer, answered: Answered::default(), told: BTreeMap::new() }
    }

    /// Answers until the context's `stop`. Errors: the store's.
    pub async fn run(mut self) -> Result<(), NodeError> {
        let (stop, questions) = (self.context.stop.clone(), self.context.queries.clone());
        let mut last = i32::MIN;
        loop {
            let query = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                query = questions.next(&mut last) => query,
            };
            let outcome = self.answer(&query)?;
            self.context.meter.count_as(names::RECEIPT_QUERIES, "outcome", outcome.word());
        }
    }

    fn answer(&mut self, record: &[u8]) -> Result<QueryOutcome, StoreError> {
        let directory = self.context.in_force.borrow().clone();
        let (sender, query) = match Query::verify(record, self.context.tag, &directory) {
            Ok(verified) => verified,
            Err(error) => {
                tracing::debug!(%error, "a query is not answered");
                return Ok(QueryOutcome::NotBelieved);
            }
        };
        let clock = &self.context.seams.clock;
        let group = *self.context.group_time.borrow();
        let present = Present { monotonic: clock.monotonic(), wall: clock.now(), group };
        if !self.answered.is_due(&sender, &query, &present) {
            return Ok(QueryOutcome::TooSoon);
        }
        let snapshot = self.context.store.snapshot()?;
        let mut named = BTreeSet::new();
        for (transaction, deadline, payload_tag) in &query.asked {
            named.extend(self.say(&snapshot, &sender, *transaction, *deadline, payload_tag.as_ref())?);
        }
        for version in named {
            self.tell(&snapshot, version)?;
        }
        Ok(QueryOutcome::Answered)
    }

    /// Tells everybody of a directory that was in force once: who was not there then can count nothing that was decided under
    /// it (R13). The one in force goes with receipts anyway.
    fn tell(&mut self, snapshot: &Snapshot, version: u64) -> Result<(), StoreError> {
        let now = self.context.seams.clock.monotonic();
        let in_force = View::directory(snapshot).is_some_and(|directory| directory.version == version);
        if in_force || self.told.get(&version).is_some_and(|told| now.saturating_sub(*told) < DIRECTORY_EVERY) {
            return Ok(());
        }
        if let Some(directory) = snapshot.directory_version(version)? {
            self.told.retain(|_, told| now.saturating_sub(*told) < DIRECTORY_EVERY);
            self.told.insert(version, now);
            self.context.notices.publish(Notice::directory(directory.bytes()));
        }
        Ok(())
    }

    /// Says what became of a transaction, if there is something to say; gives the version of the directory that it names.
    fn say(
        &self,
        snapshot: &Snapshot,
        sender: &SenderName,
        transaction: TransactionId,
        deadline: Time,
        payload_tag: Option<&PayloadTag>,
    ) -> Result<Option<u64>, StoreError> {
        let row = snapshot.transaction(sender, transaction)?;
        let group_time = snapshot.group_time();
        let in_force = View::directory(snapshot);
        let entry = in_force.and_then(|directory| directory.destinations.get(&self.context.destination));
        let retention = entry.map_or(Duration::MAX, |entry| entry.retention);
        let now = in_force.map_or(0, |directory| directory.version);
        let (directory, verdict) = match standing(row.as_ref(), deadline, payload_tag, group_time, retention) {
            Standing::Undecided => return Ok(None),
            Standing::Expired => (now, Verdict::Expired { group_time }),
            Standing::Forgotten => (now, Verdict::Forgotten { group_time }),
            Standing::IdReuse(position) => {
                let (Some(row), Some(tag)) = (&row, payload_tag) else { return Ok(None) };
                let decided = Decided { position, payload_tag: *tag, digest: row.digest };
                (row.directory, Verdict::Rejected(decided, Rejection::IdReuse))
            }
            Standing::Decided(..) => {
                let Some(row) = &row else { return Ok(None) };
                if row.is_committed() && !snapshot.has_body(&row.digest, row.index)? {
                    return Ok(None);
                }
                (row.directory, verdict(row))
            }
        };
        let times = StageTimes::default();
        self.signer.say(Statement { sender: sender.clone(), transaction, deadline, directory, verdict, times });
        Ok(Some(directory))
    }
}

/// What a row says.
pub(super) fn verdict(row: &Row) -> Verdict {
    let decided = Decided { position: row.position, payload_tag: row.payload_tag, digest: row.digest };
    match row.decision {
        Decision::Committed => Verdict::Committed(decided),
        Decision::Rejected(reason) => Verdict::Rejected(decided, reason),
        Decision::Duplicate(first) => Verdict::Duplicate(decided, first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::limits;

    #[tokio::test]
    async fn r13_partitions_take_turns_and_what_can_be_no_query_takes_no_room() {
        let questions = Questions::default();
        let junk = |number: u8| [b"SCQY".as_slice(), &[number]].concat();
        let without_room = (0..200).filter(|number| questions.ask(0, &junk(*number))).count();
        assert_eq!(without_room, 200 - WAITING);
        assert!(!questions.ask(1, b"SCSG and the rest of a segment"));
        assert!(!questions.ask(1, &[b"SCQY".as_slice(), &[0; limits::QUERY_BYTES]].concat()));
        questions.ask(2, &junk(201));
        questions.ask(2, &junk(202));
        let mut last = i32::MIN;
        let mut order = Vec::new();
        for _ in 0..6 {
            order.push(questions.next(&mut last).await[4]);
        }
        assert_eq!(order, [0, 201, 1, 202, 2, 3]);
        let mut left = 0;
        while questions.take(last).is_some() {
            left += 1;
        }
        assert_eq!(left, WAITING - 4, "no more of one partition wait than may");
    }
}
