//! Gets parcels to the brokers, and gets them there again until there is a fate: fresh stripes at once while there is credit
//! (`feed` while their parcel is still being sealed), everything else (what credit did not allow, restarts, top-ups, *missing*
//! notices, silence, as `paces` says) from the outbox, stripe by stripe in turn (`jobs`), so that no parcel holds up another.
//! Must not seal or count receipts.

mod feed;
mod jobs;
mod paces;

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::task::TaskTracker;

pub use feed::Feed;

use jobs::{Job, Jobs, Ready, SoFar, Source, Why};
use paces::Paces;

use super::handle::Withheld;
use super::tracker::{Finished, Tracker};
use crate::core::id::{DestinationName, ParcelId};
use crate::core::split::stripe::Stripe;
use crate::seams::{Clock, Work};
use crate::store::outbox::{Outbox, ParcelRow};
use crate::telemetry::{Meter, logs, names};
use crate::transport::publisher::{Publisher, PublisherEvent, StripeId, StripeRecords};
use crate::transport::{Full, Record};

/// Fresh stripes that wait for credit stay in memory up to so many bytes of records, for all destinations; others are read from
/// the outbox and coded again when their turn comes.
const WAITING_BYTES: usize = 24 * 1024 * 1024;

/// Starts a topic's publisher.
pub type StartPublisher =
    Box<dyn Fn(&DestinationName) -> (Publisher, mpsc::UnboundedReceiver<PublisherEvent>) + Send + Sync>;

struct Lane {
    publisher: Publisher,
    jobs: Mutex<Jobs>,
    wake: Notify,
}

/// Publishing of everything that this client sends. Cheap to clone.
#[derive(Clone)]
pub struct Publishing {
    shared: Arc<Shared>,
}

struct Shared {
    start: StartPublisher,
    lanes: Mutex<BTreeMap<DestinationName, Arc<Lane>>>,
    paces: Mutex<Paces>,
    /// Parcels whose sealing goes on.
    growing: Mutex<BTreeMap<ParcelId, watch::Receiver<SoFar>>>,
    /// Of [`WAITING_BYTES`].
    waiting: Arc<Semaphore>,
    tracker: Arc<Tracker>,
    outbox: Outbox,
    work: Arc<dyn Work>,
    clock: Arc<dyn Clock>,
    meter: Meter,
    closing: tokio_util::sync::CancellationToken,
    tasks: TaskTracker,
}

fn records(stripe: &Stripe) -> StripeRecords {
    let header = &stripe.header;
    StripeRecords {
        id: StripeId { parcel: header.core.parcel, index: header.stripe },
        k: header.core.profile.k(),
        records: stripe
            .segments
            .iter()
            .map(|segment| Record {
                key: bytes::Bytes::copy_from_slice(&segment.id.to_bytes()),
                value: segment.record.clone(),
            })
            .collect(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The parts that publishing needs.
pub struct Parts {
    /// Starts a destination's publisher.
    pub start: StartPublisher,
    /// What is undecided.
    pub tracker: Arc<Tracker>,
    /// Where kept bytes come from.
    pub outbox: Outbox,
    /// Where blocking reads and coding run.
    pub work: Arc<dyn Work>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Whose metrics.
    pub meter: Meter,
    /// Ends everything.
    pub closing: tokio_util::sync::CancellationToken,
}

impl Publishing {
    /// Starts; sends again whatever a former run left undecided. Needs a tokio runtime.
    pub fn start(parts: Parts, tasks: &TaskTracker) -> Self {
        let Parts { start, tracker, outbox, work, clock, meter, closing } = parts;
        let shared = Shared {
            start,
            lanes: Mutex::default(),
            paces: Mutex::default(),
            growing: Mutex::default(),
            waiting: Arc::new(Semaphore::new(WAITING_BYTES)),
            tracker,
            outbox,
            work,
            clock,
            meter,
            closing,
            tasks: tasks.clone(),
        };
        let publishing = Self { shared: Arc::new(shared) };
        for (row, destinations) in publishing.shared.tracker.undecided() {
            for destination in destinations {
                publishing.pace(row.parcel, &destination);
                publishing.push(&destination, row.clone(), 0..row.stripes, Why::Restart);
            }
        }
        tasks.spawn(publishing.clone().keep_pace());
        publishing
    }

    fn lane(&self, destination: &DestinationName) -> Arc<Lane> {
        let mut lanes = lock(&self.shared.lanes);
        if let Some(lane) = lanes.get(destination) {
            return lane.clone();
        }
        let (publisher, events) = (self.shared.start)(destination);
        let lane = Arc::new(Lane { publisher, jobs: Mutex::default(), wake: Notify::new() });
        lanes.insert(destination.clone(), lane.clone());
        self.shared.tasks.spawn(self.clone().listen(destination.clone(), events));
        self.shared.tasks.spawn(self.clone().send_from_outbox(destination.clone(), lane.clone()));
        lane
    }

    fn pace(&self, parcel: ParcelId, destination: &DestinationName) {
        let now = self.shared.clock.monotonic();
        lock(&self.shared.paces).begin(parcel, destination.clone(), now);
    }

    /// Publishes a small parcel that is durable in the outbox.
    pub fn fresh(&self, row: &ParcelRow, stripes: &[Stripe]) {
        for destination in &row.destinations {
            self.pace(row.parcel, destination);
            let lane = self.lane(destination);
            let (mut left, mut ready) = (0..row.stripes, Ready::default());
            logs::parcel_span("publish", row.parcel)
                .in_scope(|| tracing::debug!(%destination, stripes = row.stripes, "handed to the publisher"));
            for stripe in stripes {
                if let Err(Full(first)) = lane.publisher.try_publish(records(stripe)) {
                    ready = self.at_hand(first, stripes);
                    break;
                }
                left.start += 1;
            }
            if !left.is_empty() {
                self.push_ready(destination, row.clone(), left, Why::Behind, ready);
            }
        }
    }

    /// Keeps what has no credit yet at hand, if there is room for all of it: this stripe and those behind it.
    fn at_hand(&self, first: StripeRecords, all: &[Stripe]) -> Ready {
        let from = first.id.index;
        let behind = all.iter().filter(|stripe| stripe.header.stripe > from).map(records);
        let stripes: BTreeMap<u32, StripeRecords> =
            std::iter::once(first).chain(behind).map(|stripe| (stripe.id.index, stripe)).collect();
        let bytes: usize = stripes.values().map(StripeRecords::bytes).sum();
        let room =
            u32::try_from(bytes).ok().and_then(|bytes| self.shared.waiting.clone().try_acquire_many_owned(bytes).ok());
        if room.is_some() { Ready { stripes, _room: room } } else { Ready::default() }
    }

    /// Publishes a parcel that is durable in the outbox, from there.
    pub fn send_kept(&self, row: &ParcelRow) {
        for destination in &row.destinations {
            self.pace(row.parcel, destination);
            self.push(destination, row.clone(), 0..row.stripes, Why::Behind);
        }
    }

    fn push(&self, destination: &DestinationName, row: ParcelRow, stripes: Range<u32>, why: Why) {
        self.push_ready(destination, row, stripes, why, Ready::default());
    }

    fn push_ready(&self, destination: &DestinationName, row: ParcelRow, stripes: Range<u32>, why: Why, ready: Ready) {
        logs::parcel_span("publish", row.parcel)
            .in_scope(|| tracing::debug!(%destination, ?why, ?stripes, "sent from the outbox"));
        let job = Job { ready, ..Job::new(Source::Whole(row), stripes, why) };
        self.push_job(destination, job);
    }

    fn push_job(&self, destination: &DestinationName, job: Job) {
        let lane = self.lane(destination);
        lock(&lane.jobs).add(job);
        lane.wake.notify_one();
    }

    /// Nodes signed that they miss these stripes of a parcel. Follows only for undecided parcels, and not more often than
    /// every five seconds.
    pub fn missing(&self, parcel: ParcelId, destination: &DestinationName, stripes: &[RangeInclusive<u32>]) {
        let now = self.shared.clock.monotonic();
        if !lock(&self.shared.paces).follows_missing(parcel, destination, now) {
            return;
        }
        let Some(row) = self.shared.tracker.undecided_parcel(parcel, destination) else { return };
        for range in stripes {
            let stripes = *range.start()..range.end().saturating_add(1).min(row.stripes);
            if !stripes.is_empty() {
                self.push(destination, row.clone(), stripes, Why::Missing);
            }
        }
    }

    /// These need no publishing any more.
    pub fn forget(&self, finished: &[Finished]) {
        for (parcel, destination) in finished {
            lock(&self.shared.paces).end(*parcel, destination);
            let lane = lock(&self.shared.lanes).get(destination).cloned();
            if let Some(lane) = lane {
                lane.publisher.forget(*parcel);
                lock(&lane.jobs).forget(parcel);
            }
        }
    }

    /// Follows what a destination's publisher says.
    async fn listen(self, destination: DestinationName, mut events: mpsc::UnboundedReceiver<PublisherEvent>) {
        let mut refused: Option<(String, Duration)> = None;
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = self.shared.closing.cancelled() => None,
            };
            match event {
                Some(PublisherEvent::Accepted(stripe)) => self.shared.tracker.stripe_accepted(&destination, stripe),
                Some(PublisherEvent::Settled(_)) => {}
                Some(PublisherEvent::Withheld { domains, only_one }) => {
                    // Brokers that refuse were told of with the cause; it is not that they are away.
                    let told = refused.as_ref().is_some_and(|(_, at)| {
                        self.shared.clock.monotonic().saturating_sub(*at) < Duration::from_secs(60)
                    });
                    if only_one && !told {
                        tracing::warn!(
                            %destination,
                            ?domains,
                            "accepted is withheld: the topic has partitions in one domain only: add some in another with \
                             `sealcast topic init --grow`"
                        );
                    } else if !domains.is_empty() && !told {
                        tracing::warn!(%destination, ?domains, "accepted is withheld: too few domains are up");
                    }
                    self.shared.tracker.withheld(&destination, &Withheld { domains: domains.into(), only_one });
                }
                Some(PublisherEvent::Wanted(stripe)) => self.top_up(&destination, stripe),
                Some(PublisherEvent::Refused { stripe, cause }) => {
                    let now = self.shared.clock.monotonic();
                    let news = self.shared.tracker.stripe_refused(&destination, stripe, &cause);
                    // Once for a cause, and now and then for all that meets with it.
                    if refused.as_ref().is_none_or(|(known, at)| {
                        news && (*known != cause || now.saturating_sub(*at) > Duration::from_secs(60))
                    }) {
                        tracing::warn!(%destination, parcel = %stripe.parcel, %cause, "the brokers refuse segments");
                        refused = Some((cause, now));
                    }
                }
                None => return,
            }
        }
    }

    /// Sends a stripe once more to where it is missing: of a parcel that is undecided, or still being sealed.
    fn top_up(&self, destination: &DestinationName, stripe: StripeId) {
        let (next, end) = (stripe.index, stripe.index.saturating_add(1));
        let growing = lock(&self.shared.growing).get(&stripe.parcel).cloned();
        if let Some(row) = self.shared.tracker.undecided_parcel(stripe.parcel, destination) {
            self.push(destination, row, next..end, Why::TopUp);
        } else if let Some(so_far) = growing {
            self.push_job(destination, Job::new(Source::Growing(so_far), next..end, Why::TopUp));
        }
    }

    /// Sends what is in the outbox, one stripe of each job in turn.
    async fn send_from_outbox(self, destination: DestinationName, lane: Arc<Lane>) {
        let meter = self.shared.meter.destination(&destination);
        let mut idle = 0;
        loop {
            let job = lock(&lane.jobs).take();
            let Some(mut job) = job else {
                idle = 0;
                tokio::select! {
                    () = lane.wake.notified() => continue,
                    () = self.shared.closing.cancelled() => return,
                }
            };
            let (row, ended) = match &job.source {
                Source::Whole(row) => (row.clone(), true),
                Source::Growing(so_far) => {
                    let so_far = so_far.borrow();
                    (so_far.row.clone(), so_far.ended)
                }
            };
            if job.next >= job.end || (ended && job.next >= row.stripes) {
                continue;
            }
            if job.next >= row.stripes {
                // Nothing durable to send yet: the others first, and a wait when all are in this state.
                let all = {
                    let mut jobs = lock(&lane.jobs);
                    jobs.add(job);
                    jobs.len()
                };
                idle += 1;
                if idle >= all {
                    idle = 0;
                    tokio::select! {
                        () = lane.wake.notified() => {}
                        () = self.shared.closing.cancelled() => return,
                    }
                }
                continue;
            }
            idle = 0;
            let (outbox, index) = (self.shared.outbox.clone(), job.next);
            let at_hand = job.ready.stripes.remove(&index);
            let read = move || -> Result<Option<StripeRecords>, String> {
                let frame = outbox.stripe(&row, index).map_err(|error| error.to_string())?;
                let Some(frame) = frame else { return Ok(None) };
                Stripe::again(frame.header, frame.signature, frame.sealed)
                    .map(|stripe| Some(records(&stripe)))
                    .map_err(|error| error.to_string())
            };
            let stripe = match at_hand {
                Some(stripe) => Ok(Ok(Some(stripe))),
                None => self.shared.work.run(read).await,
            };
            match stripe {
                Ok(Ok(Some(stripe))) => {
                    if let Some(reason) = job.why.reason() {
                        let count = stripe.records.len() as u64;
                        meter.with("reason", reason).count(names::CLIENT_SEGMENTS_AGAIN, count);
                    }
                    tokio::select! {
                        done = lane.publisher.publish(stripe, job.why.again()) => if done.is_err() { return },
                        () = self.shared.closing.cancelled() => return,
                    }
                    // It may have got its fate while this stripe waited for credit: then nobody else would forget it.
                    let parcel = job.parcel();
                    let growing = lock(&self.shared.growing).contains_key(&parcel);
                    if !growing && self.shared.tracker.undecided_parcel(parcel, &destination).is_none() {
                        lane.publisher.forget(parcel);
                        continue;
                    }
                    job.next += 1;
                    lock(&lane.jobs).add(job);
                }
                Ok(Ok(None)) => {
                    // It got its fate in the meantime; else its bytes are gone, and brokers may have them all the same.
                    if self.shared.tracker.undecided_parcel(job.parcel(), &destination).is_some() {
                        tracing::error!(parcel = %job.parcel(), stripe = index, "the outbox has lost a parcel's bytes");
                    }
                }
                Ok(Err(cause)) => {
                    tracing::error!(parcel = %job.parcel(), stripe = index, %cause, "a kept stripe cannot be sent again");
                }
                Err(_) => return,
            }
        }
    }

    /// Sends again what nobody has said anything about for long, with growing patience, until it is no longer wanted.
    async fn keep_pace(self) {
        loop {
            tokio::select! {
                () = self.shared.clock.sleep(Duration::from_secs(1)) => {}
                () = self.shared.closing.cancelled() => return,
            }
            self.shared.tracker.sweep();
            let in_flight: usize = lock(&self.shared.lanes).values().map(|lane| lane.publisher.in_flight()).sum();
            self.shared.meter.set(names::CLIENT_WINDOW_BYTES, in_flight as f64);
            let (now, wall) = (self.shared.clock.monotonic(), self.shared.clock.now());
            let due = lock(&self.shared.paces).take_due(now);
            for (parcel, destination) in due {
                match self.shared.tracker.undecided_parcel(parcel, &destination) {
                    // Past its expiry no node takes it: what became of it is asked for instead.
                    Some(row) if row.expiry >= wall => {
                        let all = 0..row.stripes;
                        self.push(&destination, row, all, Why::Silence);
                    }
                    _ => {}
                }
            }
        }
    }
}
