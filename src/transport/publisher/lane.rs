//! The task of a [`Publisher`](super::Publisher): carries out what the placement of each stripe asks for, and hears the
//! answers.
//!
//! Owns the stripes that are published, the queues of what waits for a partition's credit, and what is on its way. Must not
//! decide where a shard goes or when a stripe is accepted ([`core::place`](crate::core::place) does), nor look inside a record.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{Command, PublisherEvent, StripeId, StripeRecords};
use crate::core::id::ParcelId;
use crate::core::place::{Domains, Place, Placement, SendToken, Standing};
use crate::seams::Clock;
use crate::telemetry::{Meter, names};
use crate::transport::layout::known;
use crate::transport::{Ack, AppendError, Full, PartitionId, Record, Topic, Transport};

/// How often waiting stripes are looked at: a fraction of the time after which a silent broker counts as late.
const TICK: Duration = Duration::from_millis(10);

/// How often domains are looked at while nothing waits.
const IDLE_TICK: Duration = Duration::from_millis(250);

/// After this long without any answer the transport has forgotten the record.
const GIVEN_UP: Duration = Duration::from_secs(30);

/// The queues are tidied when the stripes that were forgotten since, each so many times, are more than what waits: they
/// stay within a few times of what is wanted, and a forgotten stripe costs a few looks.
const FORGOTTEN_WEIGH: usize = 8;

/// A stripe that was asked for and did not come is asked for again after this long: its parcel may have been unfinished.
const ASK_AGAIN: Duration = Duration::from_secs(5);

struct Stripe {
    placement: Placement,
    /// `None` once accepted, or settled without being accepted.
    records: Option<Vec<Record>>,
    credit: Option<OwnedSemaphorePermit>,
    /// Which of its records wait for a partition's credit.
    queued: BTreeSet<Place>,
    accepted: bool,
    /// Since when it is wanted from whoever keeps it.
    wanted: Option<Duration>,
}

impl Stripe {
    /// Lets go of the records. What still waits for credit is no longer needed there, and is not counted on: it never comes.
    fn release(&mut self) {
        self.records = None;
        self.credit = None;
        let queued = std::mem::take(&mut self.queued);
        queued.into_iter().for_each(|place| self.placement.failed(place));
    }
}

struct OnTheWay {
    token: SendToken,
    stripe: StripeId,
    place: Place,
    since: Duration,
    bytes: u64,
}

/// What was acknowledged, as metrics.
struct Acknowledged {
    meter: Meter,
    records: metrics::Counter,
    bytes: metrics::Counter,
    /// By domain.
    took: BTreeMap<Arc<str>, metrics::Histogram>,
}

impl Acknowledged {
    fn new(meter: &Meter) -> Self {
        Self {
            meter: meter.clone(),
            records: meter.counter(names::TRANSPORT_APPENDED_RECORDS),
            bytes: meter.counter(names::TRANSPORT_APPENDED_BYTES),
            took: BTreeMap::new(),
        }
    }

    fn note(&mut self, domain: Option<&Arc<str>>, bytes: u64, took: Duration) {
        self.records.increment(1);
        self.bytes.increment(bytes);
        let Some(domain) = domain else { return };
        let meter = &self.meter;
        let histogram = self
            .took
            .entry(domain.clone())
            .or_insert_with(|| meter.with("domain", domain.to_string()).histogram(names::TRANSPORT_ACK_SECONDS));
        histogram.record(took.as_secs_f64());
    }
}

type Answer = (u64, Result<Ack, AppendError>);

pub(super) struct Lane<T> {
    transport: Arc<T>,
    topic: Topic,
    clock: Arc<dyn Clock>,
    events: mpsc::UnboundedSender<PublisherEvent>,
    domains: Domains,
    stripes: BTreeMap<StripeId, Stripe>,
    /// What a partition's credit did not allow yet, in order; what is no longer in its stripe's `queued` is passed over.
    queues: BTreeMap<i32, VecDeque<(StripeId, Place)>>,
    on_the_way: BTreeMap<u64, OnTheWay>,
    acknowledgements: FuturesUnordered<BoxFuture<'static, Answer>>,
    next: u64,
    rotation: usize,
    acknowledged: Acknowledged,
    published: metrics::Counter,
    unacknowledged: metrics::Counter,
    again: metrics::Counter,
    /// For want of which domains, and whether it is the only one.
    withheld: Option<(Vec<Arc<str>>, bool)>,
    /// How the domains did at the last look.
    standings: BTreeMap<Arc<str>, Standing>,
    /// When it was last looked whether stripes that were asked for have come.
    asked: Duration,
    /// Stripes that were forgotten since the queues were tidied.
    forgotten: usize,
}

impl<T: Transport> Lane<T> {
    /// A lane with nothing on it, which says what it has to say to `events`.
    pub(super) fn new(
        transport: Arc<T>,
        topic: Topic,
        clock: Arc<dyn Clock>,
        meter: &Meter,
        events: mpsc::UnboundedSender<PublisherEvent>,
    ) -> Self {
        Self {
            transport,
            topic,
            clock,
            events,
            domains: Domains::new(),
            stripes: BTreeMap::new(),
            queues: BTreeMap::new(),
            on_the_way: BTreeMap::new(),
            acknowledgements: FuturesUnordered::new(),
            next: 0,
            rotation: 0,
            acknowledged: Acknowledged::new(meter),
            published: meter.counter(names::CLIENT_SEGMENTS_PUBLISHED),
            unacknowledged: meter.with("reason", "unacknowledged").counter(names::CLIENT_SEGMENTS_AGAIN),
            again: meter.with("reason", "absent-domain").counter(names::CLIENT_SEGMENTS_AGAIN),
            withheld: None,
            standings: BTreeMap::new(),
            asked: Duration::ZERO,
            forgotten: 0,
        }
    }

    /// Runs until the last [`Publisher`](super::Publisher) is gone.
    pub(super) async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Command>) {
        self.look_around();
        let mut tick = self.clock.sleep(TICK);
        loop {
            tokio::select! {
                // Acknowledgements that are here are heard before anybody is found to be slow.
                biased;
                Some((number, answer)) = self.acknowledgements.next() => self.answered(number, answer),
                () = &mut tick => {
                    self.look_around();
                    self.drain_queues();
                    let busy = self.stripes.values().any(|stripe| stripe.records.is_some());
                    tick = self.clock.sleep(if busy { TICK } else { IDLE_TICK });
                }
                order = orders.recv() => match order {
                    Some(Command::Publish { stripe, again, credit }) => self.publish(stripe, again, credit),
                    Some(Command::Forget(parcel)) => self.forget(parcel),
                    None => return,
                },
            }
        }
    }

    fn say(&self, event: PublisherEvent) {
        // Without a listener there is nobody to tell; the commands' end will end this task.
        let _ = self.events.send(event);
    }

    fn publish(&mut self, stripe: StripeRecords, again: bool, credit: OwnedSemaphorePermit) {
        let id = stripe.id;
        let rotation = self.rotation;
        let entry = self.stripes.entry(id).or_insert_with(|| Stripe {
            placement: Placement::new(stripe.k, stripe.records.len(), rotation),
            records: None,
            credit: None,
            queued: BTreeSet::new(),
            accepted: false,
            wanted: None,
        });
        self.rotation = self.rotation.wrapping_add(1);
        if again {
            entry.placement.start_over();
        }
        entry.records = Some(stripe.records);
        entry.credit = Some(credit);
        entry.wanted = None;
        // The first stripe after a silence should see the partitions as they are, not as they were at the last look.
        if self.domains.count() == 0 {
            self.update_domains();
        }
        self.plan(id);
        self.settle(id);
    }

    fn forget(&mut self, parcel: ParcelId) {
        let first = StripeId { parcel, index: 0 };
        let last = StripeId { parcel, index: u32::MAX };
        let ids: Vec<StripeId> = self.stripes.range(first..=last).map(|(id, _)| *id).collect();
        ids.iter().for_each(|id| drop(self.stripes.remove(id)));
        self.forgotten += ids.len();
        self.tidy();
    }

    /// Takes out of the queues what nobody waits for any more, now and then: looking at all that waits for a slow broker
    /// whenever a parcel got its fate would slow everything down.
    fn tidy(&mut self) {
        let waiting: usize = self.queues.values().map(VecDeque::len).sum();
        if self.forgotten.saturating_mul(FORGOTTEN_WEIGH) <= waiting {
            return;
        }
        self.forgotten = 0;
        let stripes = &self.stripes;
        let waits =
            |(id, place): &(StripeId, Place)| stripes.get(id).is_some_and(|stripe| stripe.queued.contains(place));
        self.queues.values_mut().for_each(|queue| queue.retain(waits));
    }

    fn update_domains(&mut self) {
        let known = known(&self.transport.partitions(&self.topic));
        self.domains.update(&known, self.clock.monotonic());
    }

    /// Looks at domains and at whatever waits: what must go elsewhere goes now.
    fn look_around(&mut self) {
        self.update_domains();
        let now = self.clock.monotonic();
        while let Some(entry) = self.on_the_way.first_entry()
            && now.saturating_sub(entry.get().since) > GIVEN_UP
        {
            let lost = entry.remove();
            self.domains.failed(&lost.token, now);
            if let Some(stripe) = self.stripes.get_mut(&lost.stripe) {
                stripe.placement.failed(lost.place);
            }
            self.plan(lost.stripe);
            self.settle(lost.stripe);
        }
        let withheld = self.domains.withheld(now).map(|domains| (domains, self.domains.only_one(now)));
        if withheld != self.withheld && self.domains.count() > 0 {
            let (domains, only_one) = withheld.clone().unwrap_or_default();
            self.say(PublisherEvent::Withheld { domains, only_one });
            let back = withheld.is_none();
            self.withheld = withheld;
            if back {
                self.plan_where(|stripe| !stripe.accepted);
            }
        }
        if now.saturating_sub(self.asked) >= ASK_AGAIN {
            self.asked = now;
            self.plan_where(|stripe| stripe.wanted.is_some());
        }
        // What is planned follows from how domains do and from answers, and each answer is looked at when it comes.
        let standings: BTreeMap<Arc<str>, Standing> = self.domains.all(now).into_iter().collect();
        if standings == self.standings {
            return;
        }
        let before = std::mem::replace(&mut self.standings, standings);
        let was = |name: &Arc<str>| before.get(name).copied().unwrap_or(Standing::Present);
        let gone = |name: &&Arc<str>| self.standings.get(*name) == Some(&Standing::Gone);
        let more_gone = self.standings.keys().filter(gone).any(|name| was(name) != Standing::Gone);
        if more_gone {
            let gone: Vec<_> = self.standings.keys().filter(gone).collect();
            tracing::warn!(topic = %self.topic, domains = ?gone, "away for over ten seconds: topping up elsewhere");
        }
        // Where one is gone, another that comes back takes what there was no second place for.
        let up = |name: &&Arc<str>| self.standings.get(*name).is_some_and(|now| *now < Standing::Absent);
        let returned = self.standings.keys().any(|name| gone(&name))
            && self.standings.keys().filter(up).any(|name| was(name) >= Standing::Absent);
        self.plan_where(|stripe| more_gone || returned || stripe.records.is_some());
    }

    fn plan_where(&mut self, which: impl Fn(&Stripe) -> bool) {
        let ids: Vec<StripeId> = self.stripes.iter().filter(|(_, stripe)| which(stripe)).map(|(id, _)| *id).collect();
        for id in ids {
            self.plan(id);
            self.settle(id);
        }
    }

    /// Does what the placement asks for now; without the records at hand, asks for them.
    fn plan(&mut self, id: StripeId) {
        let now = self.clock.monotonic();
        let Some(stripe) = self.stripes.get_mut(&id) else { return };
        let asked = stripe.wanted;
        if asked.is_some_and(|at| now.saturating_sub(at) < ASK_AGAIN) {
            return;
        }
        let places = stripe.placement.plan(&self.domains, now);
        if places.is_empty() {
            stripe.wanted = None;
            return;
        }
        let Some(records) = &stripe.records else {
            places.iter().for_each(|place| stripe.placement.failed(*place));
            stripe.wanted = Some(now);
            if asked.is_none() {
                self.again.increment(places.len() as u64);
            }
            self.say(PublisherEvent::Wanted(id));
            return;
        };
        let records: Vec<(Place, Record)> = places
            .into_iter()
            .filter_map(|place| records.get(usize::from(place.shard)).map(|record| (place, record.clone())))
            .collect();
        for (place, record) in records {
            self.send(id, place, record);
        }
    }

    /// Hands a record over, or queues it behind those that wait for the same partition's credit.
    fn send(&mut self, id: StripeId, place: Place, record: Record) {
        let free = self.queues.get(&place.partition).is_none_or(VecDeque::is_empty);
        if free && self.append(id, place, record).is_ok() {
            return;
        }
        self.queues.entry(place.partition).or_default().push_back((id, place));
        if let Some(stripe) = self.stripes.get_mut(&id) {
            stripe.queued.insert(place);
        }
    }

    fn append(&mut self, id: StripeId, place: Place, record: Record) -> Result<(), Record> {
        let to = PartitionId { topic: self.topic.clone(), number: place.partition };
        let bytes = (record.key.len() + record.value.len()) as u64;
        let pending = self.transport.append(to, record).map_err(|Full(record)| record)?;
        let now = self.clock.monotonic();
        self.published.increment(1);
        let (parcel, stripe, shard) = (id.parcel, id.index, place.shard);
        tracing::trace!(%parcel, stripe, shard, partition = place.partition, "a segment is handed over");
        if let Some(token) = self.domains.sent(place.partition, now) {
            let number = self.next;
            self.next += 1;
            self.on_the_way.insert(number, OnTheWay { token, stripe: id, place, since: now, bytes });
            self.acknowledgements.push(Box::pin(async move { (number, pending.await) }));
        }
        Ok(())
    }

    fn answered(&mut self, number: u64, answer: Result<Ack, AppendError>) {
        let Some(sent) = self.on_the_way.remove(&number) else { return };
        let now = self.clock.monotonic();
        match answer {
            Ok(ack) => {
                self.domains.acknowledged(&sent.token, ack.took, now);
                let domain = self.domains.of(sent.place.partition).map(|(name, _)| name);
                self.acknowledged.note(domain, sent.bytes, now.saturating_sub(sent.since));
                let (parcel, stripe, shard) = (sent.stripe.parcel, sent.stripe.index, sent.place.shard);
                tracing::trace!(%parcel, stripe, shard, took_us = ack.took.as_micros() as u64, "a segment is acknowledged");
                if let Some(stripe) = self.stripes.get_mut(&sent.stripe) {
                    stripe.placement.acknowledged(sent.place);
                }
                self.settle(sent.stripe);
            }
            Err(error) => {
                self.unacknowledged.increment(1);
                match &error {
                    AppendError::Closed => self.domains.forgotten(&sent.token),
                    AppendError::Absent { .. } => self.domains.failed(&sent.token, now),
                    AppendError::Refused { cause, .. } => {
                        self.domains.failed(&sent.token, now);
                        self.say(PublisherEvent::Refused { stripe: sent.stripe, cause: cause.clone() });
                    }
                }
                tracing::debug!(topic = %self.topic, partition = sent.place.partition, %error, "placing a shard elsewhere");
                if let Some(stripe) = self.stripes.get_mut(&sent.stripe) {
                    stripe.placement.failed(sent.place);
                }
                // After a close nothing will succeed; the next look finds out whether anything is left to do.
                if error != AppendError::Closed {
                    self.plan(sent.stripe);
                    self.settle(sent.stripe);
                }
            }
        }
        self.drain_queue(sent.place.partition);
    }

    /// Lets go of the records of a stripe that is accepted, or that has nothing more on its way.
    fn settle(&mut self, id: StripeId) {
        let Some(stripe) = self.stripes.get_mut(&id) else { return };
        let now = self.clock.monotonic();
        if stripe.placement.accepted(&self.domains, now) {
            stripe.release();
            if !std::mem::replace(&mut stripe.accepted, true) {
                self.say(PublisherEvent::Accepted(id));
            }
        } else if stripe.records.is_some() && stripe.placement.settled() && self.domains.withheld(now).is_some() {
            stripe.release();
            self.say(PublisherEvent::Settled(id));
        }
    }

    fn drain_queues(&mut self) {
        let partitions: Vec<i32> = self.queues.keys().copied().collect();
        partitions.into_iter().for_each(|partition| self.drain_queue(partition));
    }

    fn drain_queue(&mut self, partition: i32) {
        while let Some((id, place)) = self.queues.get_mut(&partition).and_then(VecDeque::pop_front) {
            let Some(stripe) = self.stripes.get_mut(&id) else { continue };
            if !stripe.queued.remove(&place) {
                continue;
            }
            let record = stripe.records.as_ref().and_then(|records| records.get(usize::from(place.shard)).cloned());
            let Some(record) = record else { continue };
            if self.append(id, place, record).is_err() {
                if let Some(stripe) = self.stripes.get_mut(&id) {
                    stripe.queued.insert(place);
                }
                self.queues.entry(partition).or_default().push_front((id, place));
                return;
            }
        }
    }
}
