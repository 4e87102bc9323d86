//! Receipts: statements of fates, signed in batches and published to the notices topic, in two domains where there are two
//! (R13). What is said while a batch is on its way shares the next one; nothing waits for a timer.
//!
//! Owns signing and publishing of what this node says. Must not decide what is said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::alarms::{self, Alarms};
use super::group::GroupContext;
use crate::core::limits;
use crate::core::place::{Domains, Standing};
use crate::core::receipt::{Notice, NoticeRecord, Statement, sign_receipts};
use crate::seams::Clock;
use crate::store::StoreError;
use crate::store::group::Mutation;
use crate::telemetry::labels::AppendFailure;
use crate::telemetry::{Meter, names};
use crate::transport::publisher::known;
use crate::transport::{AnyTransport, AppendError, Domain, Full, PartitionId, Record, Topic, Transport};

/// Batches on their way at once.
const IN_FLIGHT: usize = 8;
/// Domains in which a notice lies.
const COPIES: usize = 2;
/// After a round in which no partition took a notice; doubles up to the last.
const AGAIN_FIRST: Duration = Duration::from_millis(20);
const AGAIN_LAST: Duration = Duration::from_secs(1);
/// How often it is looked whether a notice on its way should go elsewhere too: its domain is late, or away (R15).
const LOOK: Duration = Duration::from_millis(10);
/// How long a second domain is waited for once one has a notice: longer, and brokers that are silent would hold up others'
/// receipts.
const INSURANCE: Duration = Duration::from_millis(500);
/// One notice in so many is tried in a domain whatever its standing, so that one that is fast again is noticed.
const PROBE_EVERY: u64 = 16;
/// The directory in force goes with receipts and refusals at most this often, for clients that were not there when it came in
/// force: without it they can verify none of them.
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
            domains: Arc::default(),
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
        // When the directory in force is due with what is said; and whether something was said since it was last.
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
                    // Refusals are signed under it too, and it may be why: it retired the key that a sender still goes by.
                    owed = true;
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
    /// How the topic's domains do.
    domains: Arc<Mutex<Domains>>,
}

/// A partition for a notice.
struct Outlay {
    partition: PartitionId,
    domain: Domain,
    /// In how many domains an acknowledged record of it lies.
    copies: usize,
}

/// The alarm of notices that no broker takes; cleared by the next that one does.
const NOTICES_ALARM: &str = alarms::NOTICES_UNREACHABLE;

impl Outlet {
    /// Publishes a record: acknowledged in two domains, or in one when there is no other that answers. Goes on until then,
    /// or until `hurry`. A domain that is late or away is waited for only while no other is left to try.
    async fn publish(&self, record: NoticeRecord, hurry: &CancellationToken) {
        let record = Record { key: Bytes::copy_from_slice(&record.key), value: Bytes::from(record.value) };
        let mut again = AGAIN_FIRST;
        let mut there: BTreeMap<Domain, usize> = BTreeMap::new();
        let mut published_at = None;
        loop {
            let (mut asked, mut waiting) = (BTreeMap::new(), FuturesUnordered::new());
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let mut refused = None;
            loop {
                for Outlay { partition, domain, copies } in self.places(turn, &there, &asked) {
                    asked.insert(domain.clone(), copies);
                    let answer = self.append(partition, record.clone());
                    waiting.push(async move { (domain, copies, answer.await) });
                }
                tokio::select! {
                    outcome = waiting.next() => match outcome {
                        Some((domain, copies, Ok(()))) => {
                            there.insert(domain, copies);
                            published_at.get_or_insert(self.clock.monotonic());
                            if there.values().sum::<usize>() >= COPIES {
                                break;
                            }
                        }
                        Some((_, _, Err(error))) => refused = Some(error),
                        None => break,
                    },
                    () = self.clock.sleep(LOOK) => {
                        let now = self.clock.monotonic();
                        if published_at.is_some_and(|at| now.saturating_sub(at) >= INSURANCE) {
                            break;
                        }
                    }
                    () = hurry.cancelled() => return,
                }
            }
            self.tell(!there.is_empty(), refused.as_ref(), again);
            // Everything that one domain acknowledged is published; another one is insurance that is tried for once more.
            let whole = there.values().sum::<usize>() >= COPIES;
            if whole || (!there.is_empty() && (refused.is_none() || again > AGAIN_FIRST)) {
                return;
            }
            if let Some(error) = &refused {
                let reason = match error {
                    AppendError::Refused { .. } => AppendFailure::Refused,
                    AppendError::Closed => AppendFailure::Closed,
                    _ => AppendFailure::Absent,
                };
                self.meter.count_as(names::TRANSPORT_FAILED_RECORDS, "reason", reason.word());
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
                Some(trouble) => trouble.cause,
                None => return,
            },
            _ => return,
        };
        self.alarms.raise(NOTICES_ALARM, format!("receipts cannot be published to {topic}: {cause}"));
    }

    fn domains(&self) -> MutexGuard<'_, Domains> {
        self.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Partitions in domains where the record neither is nor is `asked` for, as many as are still wanted: the best that
    /// there are, each round beginning with another of equals. Those that are late or away count for nothing until they
    /// have it.
    fn places(&self, turn: u64, there: &BTreeMap<Domain, usize>, asked: &BTreeMap<Domain, usize>) -> Vec<Outlay> {
        let partitions = self.transport.partitions(&self.topic);
        let now = self.clock.monotonic();
        let mut domains = self.domains();
        domains.update(&known(&partitions), now);
        let standing = |domain: &Domain| domains.standing(&domain.0, now);
        let under_way = asked
            .iter()
            .filter(|(domain, _)| !there.contains_key(domain) && standing(domain) == Standing::Present)
            .map(|(_, copies)| *copies);
        let mut have = there.values().copied().chain(under_way).sum::<usize>();
        let skip = usize::try_from(turn).unwrap_or_default() % partitions.len().max(1);
        let mut order: Vec<_> = partitions.iter().cycle().skip(skip).take(partitions.len()).collect();
        if !asked.is_empty() || !turn.is_multiple_of(PROBE_EVERY) {
            order.sort_by_cached_key(|partition| standing(&partition.domain));
        }
        let (mut places, mut chosen): (Vec<Outlay>, BTreeSet<&Domain>) = (Vec::new(), BTreeSet::new());
        for partition in order {
            let domain = &partition.domain;
            if have >= COPIES {
                break;
            }
            if there.contains_key(domain) || asked.contains_key(domain) || !chosen.insert(domain) {
                continue;
            }
            let copies = usize::from(partition.copies);
            have += copies;
            places.push(Outlay { partition: partition.id.clone(), domain: domain.clone(), copies });
        }
        places
    }

    /// Hands a record over, and says how its domain does when the answer comes, though nobody waits for it any more.
    async fn append(&self, partition: PartitionId, mut record: Record) -> Result<(), AppendError> {
        // A transport that has no room for receipts gets it by itself; the next partition would have none either.
        let (pending, bytes) = loop {
            let bytes = (record.key.len() + record.value.len()) as u64;
            match self.transport.append(partition.clone(), record) {
                Ok(pending) => break (pending, bytes),
                Err(Full(back)) => {
                    record = back;
                    self.clock.sleep(Duration::from_millis(2)).await;
                }
            }
        };
        let token = self.domains().sent(partition.number, self.clock.monotonic());
        let outlet = self.clone();
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let acknowledged = pending.await;
            let now = outlet.clock.monotonic();
            if let Some(token) = token {
                match &acknowledged {
                    Ok(ack) => outlet.domains().acknowledged(&token, ack.took, now),
                    Err(AppendError::Closed) => outlet.domains().forgotten(&token),
                    Err(_) => outlet.domains().failed(&token, now),
                }
            }
            if acknowledged.is_ok() {
                outlet.meter.count(names::TRANSPORT_APPENDED_RECORDS, 1);
                outlet.meter.count(names::TRANSPORT_APPENDED_BYTES, bytes);
            }
            // Whoever waited may have what it wanted from others.
            let _ = answer.send(acknowledged.map(drop));
        });
        answered.await.unwrap_or(Err(AppendError::Closed))
    }
}
