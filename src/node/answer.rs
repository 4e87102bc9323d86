//! Answers to senders that ask what became of their transactions: with receipts, like any other fate (R13). *Expired* of a
//! transaction that never came binds group time; of what has no fate nothing is said.
//!
//! Owns who is answered and how often. Must not make a fate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::NodeError;
use super::group::GroupContext;
use super::receipts::Signer;
use crate::core::decide::{Decision, Row, Standing, View, standing};
use crate::core::id::{PayloadTag, Rejection, SenderName, Time, TransactionId};
use crate::core::receipt::{Decided, Query, StageTimes, Statement, Verdict};
use crate::store::StoreError;
use crate::store::group::Snapshot;

/// A sender is answered at most this often; clients ask once a second.
const EVERY: Duration = Duration::from_millis(100);
/// After this long a query that is not later than the last one is answered all the same: the sender's clock was set back.
const CLOCK_SET: Duration = Duration::from_secs(10);
/// Queries that wait to be answered; beyond it they are passed over, and asked again.
pub const QUERIES: usize = 256;

/// Answers for one destination.
pub struct Answerer {
    context: Arc<GroupContext>,
    signer: Signer,
    /// By sender: the time of the last query that was answered, and when that was.
    answered: BTreeMap<SenderName, (Time, Duration)>,
}

impl Answerer {
    /// Says its answers through `signer`.
    pub fn new(context: Arc<GroupContext>, signer: Signer) -> Self {
        Self { context, signer, answered: BTreeMap::new() }
    }

    /// Answers until the context's `stop`. Errors: the store's.
    pub async fn run(mut self, mut queries: mpsc::Receiver<Bytes>) -> Result<(), NodeError> {
        let stop = self.context.stop.clone();
        loop {
            let query = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                query = queries.recv() => query,
            };
            match query {
                Some(query) => self.answer(&query)?,
                None => stop.cancelled().await,
            }
        }
    }

    fn answer(&mut self, record: &[u8]) -> Result<(), StoreError> {
        let directory = self.context.in_force.borrow().clone();
        let (sender, query) = match Query::verify(record, self.context.tag, &directory) {
            Ok(verified) => verified,
            Err(error) => {
                tracing::debug!(%error, "a query is not answered");
                return Ok(());
            }
        };
        let now = self.context.seams.clock.monotonic();
        if let Some((time, at)) = self.answered.get(&sender) {
            let ago = now.saturating_sub(*at);
            if ago < EVERY || (query.time <= *time && ago < CLOCK_SET) {
                return Ok(());
            }
        }
        let snapshot = self.context.store.snapshot()?;
        for (transaction, deadline, payload_tag) in &query.asked {
            self.say(&snapshot, &sender, *transaction, *deadline, payload_tag.as_ref())?;
        }
        self.answered.insert(sender, (query.time, now));
        Ok(())
    }

    fn say(
        &self,
        snapshot: &Snapshot,
        sender: &SenderName,
        transaction: TransactionId,
        deadline: Time,
        payload_tag: Option<&PayloadTag>,
    ) -> Result<(), StoreError> {
        let row = snapshot.transaction(sender, transaction)?;
        let group_time = snapshot.group_time();
        let in_force = View::directory(snapshot);
        let entry = in_force.and_then(|directory| directory.destinations.get(&self.context.destination));
        let retention = entry.map_or(Duration::MAX, |entry| entry.retention);
        let now = in_force.map_or(0, |directory| directory.version);
        let (directory, verdict) = match standing(row.as_ref(), deadline, payload_tag, group_time, retention) {
            Standing::Undecided => return Ok(()),
            Standing::Expired => (now, Verdict::Expired { group_time }),
            Standing::Forgotten => (now, Verdict::Forgotten { group_time }),
            Standing::IdReuse(position) => {
                let (Some(row), Some(tag)) = (&row, payload_tag) else { return Ok(()) };
                let decided = Decided { position, payload_tag: *tag, digest: row.digest };
                (row.directory, Verdict::Rejected(decided, Rejection::IdReuse))
            }
            Standing::Decided(..) => {
                let Some(row) = &row else { return Ok(()) };
                if row.is_committed() && !snapshot.has_body(&row.digest, row.index)? {
                    return Ok(());
                }
                (row.directory, verdict(row))
            }
        };
        let times = StageTimes::default();
        self.signer.say(Statement { sender: sender.clone(), transaction, deadline, directory, verdict, times });
        Ok(())
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
