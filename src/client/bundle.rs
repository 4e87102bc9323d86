//! One loop through which every submission passes, in order: it decides who follows whom, bundles what waits into parcels,
//! has them sealed, and answers when they are durable in the outbox. While one round is being sealed and synced the next one
//! gathers, and rounds begin a short time apart ([`super::pause`]), so bundles grow with the load and nobody waits who is alone.
//! Must not touch keys or brokers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::error::{ClientError, SubmitError};
use super::handle::Handle;
use super::pause::Pauses;
use super::publishing::Publishing;
use super::sealing::{Sealed, Sealer};
use super::tracker::{Known, Tracker};
use super::transaction::Transaction;
use super::window::{Window, WindowPlace};
use crate::core::id::{DestinationName, Ticket, Time, TransactionId};
use crate::core::seal::transaction::Payload;
use crate::seams::{Clock, Work};
use crate::store::outbox::{NewBody, NewParcel, Outbox, Reservation};
use crate::telemetry::logs::parcel_span;

/// Most transactions of a parcel that is bundled here.
const BUNDLE: usize = 512;

/// Most submissions of a round.
const ROUND: usize = 2048;

/// A round is closed when its payloads reach this many bytes: what is sealed at once is held in memory, several times over.
const ROUND_BYTES: usize = 4 * 1024 * 1024;

/// A transaction that was checked and is on its way into a parcel.
#[derive(Debug)]
pub struct Prepared {
    /// As it was given.
    pub transaction: Transaction,
    /// Its id.
    pub id: TransactionId,
    /// Its deadline.
    pub deadline: Time,
    /// When it was submitted, by the wall.
    pub submitted: Time,
    /// When it was submitted, in monotonic time.
    pub started: Duration,
    /// Where it goes, ascending.
    pub destinations: Vec<DestinationName>,
    /// Its place in the order of submissions to this outbox, from 1: it has one when it is bundled, or its key is held for it.
    pub number: u64,
    /// Whom it follows, per destination.
    pub predecessors: BTreeMap<DestinationName, Ticket>,
    /// What reading it once told of a payload that is read twice.
    pub measured: Option<Payload>,
}

impl Prepared {
    /// The ticket at one of its destinations.
    pub fn ticket(&self, destination: &DestinationName) -> Ticket {
        Ticket { destination: destination.clone(), transaction: self.id, deadline: self.deadline }
    }

    fn keys(&self) -> Vec<(DestinationName, Vec<u8>)> {
        match &self.transaction.ordering_key {
            Some(key) => self.destinations.iter().map(|name| (name.clone(), key.to_vec())).collect(),
            None => Vec::new(),
        }
    }
}

type Answer = oneshot::Sender<Result<Vec<Handle>, SubmitError>>;

/// What comes to the loop.
pub enum Submission {
    /// A transaction to bundle.
    Small {
        /// The transaction.
        prepared: Box<Prepared>,
        /// Its place in the window.
        place: WindowPlace,
        /// Where its handles go.
        answer: Answer,
    },
    /// A large transaction that is sealed elsewhere: until it ends, its ordering key waits.
    Hold {
        /// The transaction, without its payload.
        prepared: Box<Prepared>,
        /// Where it is given back, with its predecessors named.
        answer: oneshot::Sender<(Box<Prepared>, Held)>,
    },
    /// The large transaction with these claims has ended.
    Release(Vec<Claim>),
}

/// What only one submission at a time may have that is not durable yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// An ordering key at a destination, for a large one.
    Key(DestinationName, Vec<u8>),
    /// An id: only when the first is known can the second be told what became of it (R6).
    Id(TransactionId),
}

impl Submission {
    /// What it adds to a bundle.
    fn bytes(&self) -> usize {
        match self {
            Self::Small { prepared, .. } => prepared.transaction.payload.len(),
            Self::Hold { .. } | Self::Release(_) => 0,
        }
    }

    /// Whether it can share a parcel.
    fn is_small(&self) -> bool {
        matches!(self, Self::Small { .. })
    }

    fn claims(&self) -> Vec<Claim> {
        match self {
            Self::Small { prepared, .. } | Self::Hold { prepared, .. } => {
                let keys = prepared.keys().into_iter().map(|(name, key)| Claim::Key(name, key));
                keys.chain([Claim::Id(prepared.id)]).collect()
            }
            Self::Release(_) => Vec::new(),
        }
    }
}

/// Ends the wait for an ordering key and an id when a large transaction has ended, however it did.
pub struct Held {
    claims: Vec<Claim>,
    queue: Option<mpsc::UnboundedSender<Submission>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            // A loop that has ended holds nobody up.
            let _ = queue.send(Submission::Release(std::mem::take(&mut self.claims)));
        }
    }
}

struct Entry {
    prepared: Prepared,
    place: WindowPlace,
    answer: Answer,
}

impl Entry {
    fn refuse(self, error: ClientError) {
        let transaction = Box::new(self.prepared.transaction);
        // Whoever stopped waiting does not want it back either.
        let _ = self.answer.send(Err(SubmitError { error, transaction }));
    }
}

/// Transactions for the same destinations, with room in the outbox.
struct Bundle {
    entries: Vec<Entry>,
    bytes: usize,
    reservation: Reservation,
}

type Key = (DestinationName, Vec<u8>);

/// The loop.
pub struct Bundler {
    /// Seals.
    pub sealer: Arc<Sealer>,
    /// Knows who came last.
    pub tracker: Arc<Tracker>,
    /// Keeps.
    pub outbox: Outbox,
    /// Publishes.
    pub publishing: Publishing,
    /// Where sealing runs.
    pub work: Arc<dyn Work>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// A bundle is closed when its payloads reach this many bytes.
    pub bytes: usize,
    /// How far apart rounds begin at least, unless as many bytes have come.
    pub wait: Duration,
    /// Knows how many transactions have no fate.
    pub window: Window,
    /// Its own queue, for those that hold keys.
    pub queue: mpsc::WeakUnboundedSender<Submission>,
    /// Ends it.
    pub closing: tokio_util::sync::CancellationToken,
}

impl Bundler {
    /// Runs until every sender of submissions is gone.
    pub async fn run(self, mut queue: mpsc::UnboundedReceiver<Submission>) {
        let mut held: BTreeSet<Claim> = BTreeSet::new();
        let mut waiting: Vec<Submission> = Vec::new();
        let mut again = false;
        let mut pauses = Pauses::new(self.wait);
        loop {
            if !again {
                let next = tokio::select! {
                    biased;
                    next = queue.recv() => next,
                    () = self.closing.cancelled() => None,
                };
                match next {
                    Some(submission) => waiting.push(submission),
                    None => return,
                }
                self.gather(&mut queue, &mut waiting, &mut pauses).await;
            }
            while waiting.len() < ROUND
                && let Ok(next) = queue.try_recv()
            {
                waiting.push(next);
            }
            waiting.retain(|submission| {
                let Submission::Release(claims) = submission else { return true };
                claims.iter().for_each(|claim| {
                    held.remove(claim);
                });
                false
            });
            let (bundles, left, more) = self.round(std::mem::take(&mut waiting), &mut held);
            (waiting, again) = (left, more);
            let (began, any) = (self.clock.monotonic(), !bundles.is_empty());
            self.finish(bundles).await;
            if any {
                pauses.begin(began, self.clock.monotonic().saturating_sub(began));
            }
        }
    }

    /// Lets more come until the pause is over, or enough bytes for a bundle have come.
    async fn gather(
        &self,
        queue: &mut mpsc::UnboundedReceiver<Submission>,
        waiting: &mut Vec<Submission>,
        pauses: &mut Pauses,
    ) {
        let mut bytes = waiting.last().map_or(0, Submission::bytes);
        let mut alone = !waiting.iter().all(Submission::is_small);
        let mut last = self.clock.monotonic();
        let from = last.max(pauses.least());
        let is_over = |waiting: &[Submission], alone| {
            pauses.is_over(self.clock.monotonic(), waiting.len(), alone, self.window.used().0)
        };
        if is_over(waiting, alone) {
            return;
        }
        let left = |until: Duration| self.clock.sleep(until.saturating_sub(self.clock.monotonic()));
        let (mut least, mut most) = (left(pauses.least()), left(pauses.most()));
        let mut least_is_over = false;
        while bytes < self.bytes && waiting.len() < ROUND {
            // Looked at before the window is: a fate in between is not missed.
            let mut freed = std::pin::pin!(self.window.freed());
            freed.as_mut().enable();
            if is_over(waiting, alone) {
                break;
            }
            let next = tokio::select! {
                biased;
                next = queue.recv() => next,
                () = &mut most => break,
                () = &mut least, if !least_is_over => {
                    least_is_over = true;
                    continue;
                }
                () = freed, if least_is_over => continue,
                () = self.closing.cancelled() => return,
            };
            let Some(next) = next else { return };
            last = self.clock.monotonic();
            bytes += next.bytes();
            alone |= !next.is_small();
            waiting.push(next);
        }
        pauses.waited(from, last, self.clock.monotonic());
    }

    /// Sorts what waits: into bundles, or back behind a claim that is held. True when what is left needs no further word.
    fn round(&self, waiting: Vec<Submission>, held: &mut BTreeSet<Claim>) -> (Vec<Bundle>, Vec<Submission>, bool) {
        let mut bundles: BTreeMap<Vec<DestinationName>, Vec<Bundle>> = BTreeMap::new();
        let (mut left, mut again) = (Vec::new(), false);
        let mut blocked = held.clone();
        let mut last: BTreeMap<Key, Ticket> = BTreeMap::new();
        let mut ids: BTreeSet<TransactionId> = BTreeSet::new();
        let mut bytes = 0;
        for submission in waiting {
            if bytes >= ROUND_BYTES {
                left.push(submission);
                again = true;
                continue;
            }
            let claims = submission.claims();
            if claims.iter().any(|claim| blocked.contains(claim)) {
                blocked.extend(claims);
                left.push(submission);
                continue;
            }
            // What this round holds of the same must be durable first.
            let in_this_round = |claim: &Claim| match claim {
                Claim::Key(name, key) => {
                    matches!(submission, Submission::Hold { .. }) && last.contains_key(&(name.clone(), key.clone()))
                }
                Claim::Id(id) => ids.contains(id),
            };
            if claims.iter().any(in_this_round) {
                blocked.extend(claims);
                left.push(submission);
                again = true;
                continue;
            }
            match submission {
                Submission::Small { prepared, place, answer } => {
                    if let Some(known) = self.tracker.known(prepared.id, &prepared.destinations) {
                        let payload = &prepared.transaction.payload;
                        let tag = |known: Known| known.same(payload.len() as u64, self.sealer.tag(payload));
                        let same = known.and_then(tag);
                        let refused = |error| SubmitError { error, transaction: Box::new(prepared.transaction) };
                        // Whoever stopped waiting does not need the answer.
                        drop(answer.send(same.map_err(refused)));
                        continue;
                    }
                    ids.insert(prepared.id);
                    bytes += prepared.transaction.payload.len();
                    self.bundle(Entry { prepared: *prepared, place, answer }, &mut last, &mut bundles);
                }
                Submission::Hold { mut prepared, answer } => {
                    self.take_place(&mut prepared, &last);
                    held.extend(claims.iter().cloned());
                    blocked.extend(claims.iter().cloned());
                    // Refused by a caller that has gone, the guard ends the wait at once.
                    drop(answer.send((prepared, Held { claims, queue: self.queue.upgrade() })));
                }
                Submission::Release(_) => {}
            }
        }
        (bundles.into_values().flatten().collect(), left, again)
    }

    /// Says which place a transaction has, and whom it follows at each destination (R9).
    fn take_place(&self, prepared: &mut Prepared, last: &BTreeMap<Key, Ticket>) {
        prepared.number = self.tracker.next_number();
        prepared.predecessors.clone_from(&prepared.transaction.after);
        for key in prepared.keys() {
            if prepared.predecessors.contains_key(&key.0) {
                continue;
            }
            let ticket = match last.get(&key) {
                Some(ticket) => Some(ticket.clone()),
                None => self.tracker.predecessor(&key.0, &key.1, prepared.transaction.release),
            };
            if let Some(ticket) = ticket.filter(|ticket| ticket.transaction != prepared.id) {
                prepared.predecessors.insert(key.0, ticket);
            }
        }
    }

    fn bundle(
        &self,
        mut entry: Entry,
        last: &mut BTreeMap<Key, Ticket>,
        bundles: &mut BTreeMap<Vec<DestinationName>, Vec<Bundle>>,
    ) {
        let bundles = bundles.entry(entry.prepared.destinations.clone()).or_default();
        let bytes = entry.prepared.transaction.payload.len();
        let open =
            bundles.last_mut().filter(|bundle| bundle.entries.len() < BUNDLE && bundle.bytes + bytes <= self.bytes);
        // Room is set aside before anybody names this transaction as its predecessor.
        let room = Sealer::most_bytes(&entry.prepared);
        let room = match &open {
            Some(_) => self.outbox.reserve(room),
            None => self.outbox.reserve(room + Sealer::most_bytes_of_parcel(entry.prepared.destinations.len())),
        };
        let room = match room {
            Ok(room) => room,
            Err(error) => return entry.refuse(error.into()),
        };
        self.take_place(&mut entry.prepared, last);
        for key in entry.prepared.keys() {
            let ticket = entry.prepared.ticket(&key.0);
            last.insert(key, ticket);
        }
        match open {
            Some(bundle) => {
                bundle.reservation.join(room);
                bundle.bytes += bytes;
                bundle.entries.push(entry);
            }
            None => bundles.push(Bundle { entries: vec![entry], bytes, reservation: room }),
        }
    }

    /// Seals, keeps, answers and publishes a round. A bundle that cannot be sealed is refused, and with it those that follow
    /// one of its transactions; the others are kept together or not at all.
    async fn finish(&self, bundles: Vec<Bundle>) {
        if bundles.is_empty() {
            return;
        }
        let jobs = bundles.into_iter().map(|bundle| {
            let Bundle { entries, reservation, .. } = bundle;
            let (sealer, outbox) = (self.sealer.clone(), self.outbox.clone());
            self.work.run(move || {
                let prepared = entries.iter().map(|entry| &entry.prepared);
                let sealed = sealer.seal(prepared, &outbox);
                (entries, sealed.map(|sealed| (sealed, reservation)))
            })
        });
        let mut bundles = Vec::new();
        for done in futures_util::future::join_all(jobs).await {
            // Lost work means that the process is ending: the answers end with it.
            let Ok(bundle) = done else { return };
            bundles.push(bundle);
        }
        refuse_followers(&mut bundles);
        let mut parcels = Vec::new();
        let mut kept = Vec::new();
        let mut entries_of = Vec::new();
        for (entries, sealed) in bundles {
            let (sealed, reservation) = match sealed {
                Ok(sealed) => sealed,
                Err(error) => {
                    entries.into_iter().for_each(|entry| entry.refuse(error.also()));
                    continue;
                }
            };
            let Sealed { row, body, transactions, stripes } = sealed;
            kept.push((stripes, transactions.clone()));
            let body: NewBody = body;
            parcels.push(NewParcel { row, body, transactions, reservation });
            entries_of.push(entries);
        }
        if parcels.is_empty() {
            return;
        }
        let rows = match self.outbox.add(parcels).await {
            Ok(rows) => rows,
            Err(error) => {
                let all = entries_of.into_iter().flatten();
                return all.for_each(|entry| entry.refuse(error.clone().into()));
            }
        };
        for ((row, (stripes, transactions)), entries) in rows.into_iter().zip(kept).zip(entries_of) {
            let mut tracked = Vec::new();
            let mut answers = Vec::new();
            for (transaction, Entry { prepared, place, answer }) in transactions.into_iter().zip(entries) {
                tracked.push((transaction, prepared.started, place));
                answers.push(answer);
            }
            let _in = parcel_span("publish", row.parcel).entered();
            tracing::debug!(transactions = tracked.len(), stripes = row.stripes, "durable in the outbox");
            let handles = self.tracker.add(row.clone(), tracked);
            self.publishing.fresh(&row, &stripes);
            for (answer, handles) in answers.into_iter().zip(handles) {
                // Dropping a handle never cancels.
                let _ = answer.send(Ok(handles));
            }
        }
    }
}

type SealedBundle = (Vec<Entry>, Result<(Sealed, Reservation), ClientError>);

/// A bundle with a transaction that follows one of a failed bundle fails with it: it names what was never submitted.
fn refuse_followers(bundles: &mut [SealedBundle]) {
    let mut failed: BTreeMap<TransactionId, ClientError> = BTreeMap::new();
    loop {
        let mut news = false;
        for (entries, sealed) in bundles.iter_mut() {
            let follows =
                |entry: &Entry| entry.prepared.predecessors.values().find_map(|ticket| failed.get(&ticket.transaction));
            if let (Ok(_), Some(error)) = (&sealed, entries.iter().find_map(follows)) {
                *sealed = Err(error.also());
            }
            if let Err(error) = sealed {
                for entry in entries.iter() {
                    news |= failed.insert(entry.prepared.id, error.also()).is_none();
                }
            }
        }
        if !news {
            return;
        }
    }
}
