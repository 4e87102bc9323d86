//! Receipts: statements of fates, signed in batches and published to the notices topic, in two domains where there are two
//! (R13). What is said while a batch is on its way shares the next one; nothing waits for a timer.
//!
//! Owns signing and publishing of what this node says. Must not decide what is said.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::alarms::Alarms;
use super::group::GroupContext;
use crate::core::limits;
use crate::core::receipt::{Notice, NoticeRecord, Statement, sign_receipts};
use crate::seams::Clock;
use crate::store::StoreError;
use crate::store::group::Mutation;
use crate::telemetry::{Meter, names};
use crate::transport::{AnyTransport, AppendError, Domain, Full, PartitionId, Record, Topic, Transport};

/// Batches on their way at once.
const IN_FLIGHT: usize = 8;
/// Domains in which a notice lies.
const COPIES: usize = 2;
/// After a round in which no partition took a notice; doubles up to the last.
const AGAIN_FIRST: Duration = Duration::from_millis(20);
const AGAIN_LAST: Duration = Duration::from_secs(1);
/// The directory in force goes with receipts at most this often, for clients that were not there when it came in force:
/// without it they can verify none of them.
const DIRECTORY_EVERY: Duration = Duration::from_secs(10);
/// The note of the newest directory that this node told everybody of.
const TOLD: &str = "directory-published";
/// Statements that may wait before further ones are dropped: a few dozen MiB.
const MOST_WAITING: u64 = 100_000;
/// When the node stops, what is not published after this is left to the next start.
const FLUSH: Duration = Duration::from_secs(5);

/// Takes what is to be said of one destination's transactions. Cheap to clone; publishing ends when the last is dropped.
#[derive(Debug, Clone)]
pub struct Signer {
    statements: mpsc::UnboundedSender<Statement>,
    said: Arc<AtomicU64>,
    unpublished: Arc<Unpublished>,
}

/// Which statements are not published yet, by their number in the order in which they were said.
#[derive(Debug, Default)]
struct Unpublished {
    /// The first statement of every batch on its way, and at last the first that is in none.
    firsts: Mutex<BTreeSet<u64>>,
}

impl Unpublished {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.firsts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every statement before this one is published.
    fn first(&self) -> u64 {
        self.lock().first().copied().unwrap_or(0)
    }
}

impl Signer {
    /// Says a statement soon.
    pub fn say(&self, statement: Statement) {
        self.said.fetch_add(1, Ordering::AcqRel);
        // A publisher that has ended publishes nothing more; the next start says it again.
        let _ = self.statements.send(statement);
    }

    /// The same for a statement that no row of the store brings back. While far too many wait, because no broker takes
    /// notices, it is dropped: whoever waits for it asks again.
    pub fn say_if_room(&self, statement: Statement) {
        if self.waiting() < MOST_WAITING {
            self.say(statement);
        } else {
            tracing::debug!(transaction = %statement.transaction, "not said: too many receipts wait for a broker");
        }
    }

    /// How many statements were said so far.
    pub fn said(&self) -> u64 {
        self.said.load(Ordering::Acquire)
    }

    /// How many of them, from the first on, are published without a gap.
    pub fn published(&self) -> u64 {
        self.unpublished.first()
    }

    /// How many wait, or are on their way.
    pub fn waiting(&self) -> u64 {
        self.said().saturating_sub(self.published())
    }
}

/// Signs and publishes for one destination.
pub struct Publisher {
    context: Arc<GroupContext>,
    statements: mpsc::UnboundedReceiver<Statement>,
    records: mpsc::Receiver<NoticeRecord>,
    /// The number of the next statement that comes out.
    next: u64,
    /// The version of the newest directory that is published, or on its way.
    told: u64,
    unpublished: Arc<Unpublished>,
    outlet: Outlet,
}

impl Publisher {
    /// A publisher and its signer. `notices` is where the context's [`super::group::NoticeSender`] comes out.
    /// Errors: the store's.
    pub fn new(
        context: Arc<GroupContext>,
        notices: mpsc::Receiver<NoticeRecord>,
    ) -> Result<(Signer, Self), StoreError> {
        let (say, statements) = mpsc::unbounded_channel();
        let unpublished = Arc::new(Unpublished { firsts: Mutex::new([0].into()) });
        // It may stand from before this start; what cannot be published now raises it anew.
        context.alarms.clear(NOTICES_ALARM);
        let outlet = Outlet {
            clock: context.seams.clock.clone(),
            transport: context.transport.clone(),
            topic: Topic::notices(&context.environment),
            meter: context.meter.clone(),
            alarms: context.alarms.clone(),
            turn: Arc::default(),
        };
        let note = context.store.snapshot()?.note(TOLD)?;
        let told = note.and_then(|note| std::str::from_utf8(&note).ok()?.parse().ok()).unwrap_or_default();
        let signer = Signer { statements: say, said: Arc::default(), unpublished: unpublished.clone() };
        Ok((signer, Self { context, statements, records: notices, next: 0, told, unpublished, outlet }))
    }

    /// Publishes until all signers are dropped, and then what is left.
    pub async fn run(mut self) {
        let clock = self.context.seams.clock.clone();
        let hurry = CancellationToken::new();
        let mut publishing = JoinSet::new();
        // When the directory in force is due with receipts; and whether some were said since it was last.
        let (mut due, mut owed) = (clock.monotonic(), false);
        let mut in_force = self.context.in_force.clone();
        // One that came in force when this node's last life ended may not be published yet.
        in_force.mark_changed();
        loop {
            let room = publishing.len() < IN_FLIGHT;
            if owed && clock.monotonic() >= due {
                (due, owed) = (clock.monotonic() + DIRECTORY_EVERY, false);
                let record = Notice::directory(self.context.in_force.borrow().bytes());
                let (outlet, hurry) = (self.outlet.clone(), hurry.clone());
                publishing.spawn(async move { outlet.publish(record, &hurry).await });
            }
            tokio::select! {
                biased;
                Ok(()) = in_force.changed(), if room => self.tell_directory(&mut publishing, &hurry),
                first = self.statements.recv(), if room => {
                    let Some(first) = first else { break };
                    let mut batch = vec![first];
                    while batch.len() < limits::RECEIPTS_PER_BATCH
                        && let Ok(one) = self.statements.try_recv()
                    {
                        batch.push(one);
                    }
                    self.publish_batch(&mut publishing, &batch, &hurry);
                    owed = true;
                }
                Some(record) = self.records.recv(), if room => {
                    let (outlet, hurry) = (self.outlet.clone(), hurry.clone());
                    publishing.spawn(async move { outlet.publish(record, &hurry).await });
                }
                Some(_) = publishing.join_next() => {}
                () = clock.sleep(due.saturating_sub(clock.monotonic())), if owed => {}
            }
        }
        while let Ok(record) = self.records.try_recv() {
            let (outlet, hurry) = (self.outlet.clone(), hurry.clone());
            publishing.spawn(async move { outlet.publish(record, &hurry).await });
        }
        let all = async { while publishing.join_next().await.is_some() {} };
        let flushed = tokio::select! {
            () = all => true,
            () = clock.sleep(FLUSH) => false,
        };
        if !flushed {
            hurry.cancel();
            tracing::warn!("receipts that no broker took are left to the next start");
        }
    }

    /// Tells everybody of the directory in force, unless this node did before: every node does, and notes when it has,
    /// because whoever knew it first may end the moment after.
    fn tell_directory(&mut self, publishing: &mut JoinSet<()>, hurry: &CancellationToken) {
        let directory = self.context.in_force.borrow().clone();
        // Before the group is founded none is in force.
        let by_the_log = self.context.store.progress().borrow().directory_version >= directory.version;
        if !by_the_log || directory.version <= self.told {
            return;
        }
        self.told = directory.version;
        let (outlet, store, hurry) = (self.outlet.clone(), self.context.store.clone(), hurry.clone());
        publishing.spawn(async move {
            outlet.publish(Notice::directory(directory.bytes()), &hurry).await;
            if !hurry.is_cancelled() {
                let value = Bytes::from(directory.version.to_string());
                // A store that cannot keep it stops the node, and says why itself.
                store.submit(vec![Mutation::Note { name: TOLD.to_owned(), value }], Box::new(drop));
            }
        });
    }

    fn publish_batch(&mut self, publishing: &mut JoinSet<()>, batch: &[Statement], hurry: &CancellationToken) {
        let context = &self.context;
        let version = context.in_force.borrow().version;
        let records = sign_receipts(context.keys.signing(), &context.node, context.tag, version, batch);
        context.meter.count(names::RECEIPT_BATCHES, 1);
        context.meter.count(names::RECEIPT_STATEMENTS, batch.len() as u64);
        let (outlet, hurry, unpublished, first) =
            (self.outlet.clone(), hurry.clone(), self.unpublished.clone(), self.next);
        self.next += batch.len() as u64;
        self.unpublished.lock().insert(self.next);
        publishing.spawn(async move {
            let all = records.into_iter().map(|record| outlet.publish(record, &hurry));
            futures_util::future::join_all(all).await;
            unpublished.lock().remove(&first);
        });
    }
}

/// Puts records on the notices topic.
#[derive(Clone)]
struct Outlet {
    clock: Arc<dyn Clock>,
    transport: Arc<AnyTransport>,
    topic: Topic,
    meter: Meter,
    alarms: Alarms,
    turn: Arc<AtomicU64>,
}

/// The alarm of notices that no broker takes; cleared by the next that one does.
const NOTICES_ALARM: &str = "notices-unreachable";

impl Outlet {
    /// Publishes a record: acknowledged in two domains, or in one when there is no other that answers. Goes on until then,
    /// or until `hurry`.
    async fn publish(&self, record: NoticeRecord, hurry: &CancellationToken) {
        let record = Record { key: Bytes::copy_from_slice(&record.key), value: Bytes::from(record.value) };
        let mut again = AGAIN_FIRST;
        let mut there: BTreeSet<Domain> = BTreeSet::new();
        loop {
            let places = self.places(&there);
            let outcomes = places.into_iter().map(|(domain, copies, partition)| {
                let record = record.clone();
                async move { self.append(partition, record).await.map(|()| (domain, copies)) }
            });
            let mut refused = None;
            for outcome in futures_util::future::join_all(outcomes).await {
                match outcome {
                    Ok((domain, copies)) => {
                        there.insert(domain);
                        if usize::from(copies) >= COPIES {
                            return;
                        }
                    }
                    Err(error) => refused = Some(error),
                }
            }
            self.tell(!there.is_empty(), refused.as_ref(), again);
            // Everything that one domain acknowledged is published; another one is insurance that is tried for once more.
            if there.len() >= COPIES || (!there.is_empty() && (refused.is_none() || again > AGAIN_FIRST)) {
                return;
            }
            if let Some(error) = &refused {
                self.meter.count_as(names::TRANSPORT_FAILED_RECORDS, "reason", "absent");
                tracing::debug!(%error, "a notice was not acknowledged; trying again");
            }
            tokio::select! {
                () = self.clock.sleep(again) => again = (again * 2).min(AGAIN_LAST),
                () = hurry.cancelled() => return,
            }
        }
    }

    /// Raises or clears the alarm: at once for what somebody must mend, after a while for a topic that is not in sight.
    fn tell(&self, published: bool, refused: Option<&AppendError>, waiting: Duration) {
        let topic = &self.topic;
        let cause = match refused {
            _ if published => return self.alarms.clear(NOTICES_ALARM),
            Some(AppendError::Refused { cause, .. }) => cause.clone(),
            None if waiting >= AGAIN_LAST => match self.transport.trouble(topic) {
                Some(cause) => cause,
                None => return,
            },
            _ => return,
        };
        self.alarms.raise(NOTICES_ALARM, format!("receipts cannot be published to {topic}: {cause}"));
    }

    /// Partitions in different domains, none of them in `not`, as many as are still wanted: those that are up first.
    fn places(&self, not: &BTreeSet<Domain>) -> Vec<(Domain, u8, PartitionId)> {
        let partitions = self.transport.partitions(&self.topic);
        if partitions.is_empty() {
            return Vec::new();
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize % partitions.len();
        let mut order: Vec<_> = partitions.iter().cycle().skip(turn).take(partitions.len()).collect();
        order.sort_by_key(|partition| !partition.up);
        let mut domains = not.clone();
        let mut places = Vec::new();
        for partition in order {
            if domains.len() < COPIES && domains.insert(partition.domain.clone()) {
                places.push((partition.domain.clone(), partition.copies, partition.id.clone()));
                if usize::from(partition.copies) >= COPIES {
                    break;
                }
            }
        }
        places
    }

    async fn append(&self, partition: PartitionId, mut record: Record) -> Result<(), AppendError> {
        // A transport that has no room for receipts gets it by itself; the next partition would have none either.
        loop {
            let bytes = (record.key.len() + record.value.len()) as u64;
            match self.transport.append(partition.clone(), record) {
                Ok(pending) => {
                    pending.await?;
                    self.meter.count(names::TRANSPORT_APPENDED_RECORDS, 1);
                    self.meter.count(names::TRANSPORT_APPENDED_BYTES, bytes);
                    return Ok(());
                }
                Err(Full(back)) => {
                    record = back;
                    self.clock.sleep(Duration::from_millis(2)).await;
                }
            }
        }
    }
}
