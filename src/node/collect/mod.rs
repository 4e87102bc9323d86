//! Collecting for one destination: readers of all partitions feed the reassembler; its actions are carried out in their
//! order; what passes moves the collection offsets (R16, R17).
//!
//! Owns the reassembler, the cursors and the stage. Must not make a fate, nor look into sealed bytes.
//!
//! Of every record that was read, exactly one of these holds, and a cursor stands before the first of the first kind:
//!
//! | where its address is | its bytes | the store's note | its cursor | until |
//! |---|---|---|---|---|
//! | `Parcel::addresses` | in memory, or handed to the stage | none | waits | the parcel ends, or is put off |
//! | `Parcel::noted` | handed to the stage | there | passed | the same |
//! | the reassembler's book | dropped | there | passed | it is read again |
//! | nowhere | staged, decided, refused, expired or no segment | none | passed | for ever |
//!
//! So after a crash all that is not staged is read again: from the cursor's mark, or because of its note. `Defer` moves down
//! from the first line and `Pass` to the last; both go to the store in order, with the refusals, and an offset behind
//! them (`notes`). A note that is there without need costs one reading; one that is missing would lose a record.

mod arrival;
mod notes;
mod reader;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use self::notes::{Learned, Note, Notes};
use self::reader::{Arrival, Source};
use super::group::{GroupContext, Repeat, Staged};
use super::stage::{Message, Stage, StageEvent};
use super::{NodeError, alarms};
use crate::core::gather::{
    Action, Address, Cursor, DeferReason, Equivocation, Gate, Missing, ParcelKey, Reassembler, RecoverJob, Recovered,
    Refused,
};
use crate::core::id::{Digest, SenderName, Time};
use crate::core::receipt::{Missing as MissingNotice, NoticeRecord, Refusal};
use crate::seams::Clock;
use crate::store::group::DeferredRow;
use crate::telemetry::{logs, names};
use crate::transport::{Topic, Transport};

/// Batches of records that wait for the collector; each is about a mebibyte at most.
const ARRIVALS: usize = 4;

/// Recovered bytes that wait to be opened or stored; beyond it nothing more is taken in, nor recovered.
const OPENING_BYTES: usize = 8 * 1024 * 1024;

/// What stripes that are being recovered may take together beside their shards, in bytes; a larger one is recovered alone.
const RECOVERING_BYTES: usize = 8 * 1024 * 1024;

/// A stripe whose shards are no longer than this together is recovered at once, in some tens of microseconds.
const AT_ONCE_BYTES: usize = 128 * 1024;

/// How often time alone is asked for work, and offsets are written down.
const TICK: Duration = Duration::from_millis(500);

/// Ticks without a sight of the topic before that is an alarm: a transport needs a moment to look around.
const UNSEEN_TICKS: u32 = 10;

/// The alarm of a store that cannot be read.
const UNREADABLE_ALARM: &str = alarms::STORE_UNREADABLE;
/// The alarm of parcels that this node cannot stage; cleared when none failed for [`STAGING_WORKS`].
const STAGING_ALARM: &str = alarms::STAGING_FAILS;
/// Longer than a deferred parcel waits for its next try.
const STAGING_WORKS: Duration = Duration::from_secs(150);

/// Refusals that are kept at hand, to be said again.
const REFUSED: usize = 1024;

/// Records behind the topic's end at which the collector counts as caught up.
const CAUGHT_UP: u64 = 1024;

/// Staged parcels that are read at once when the node starts.
const PAGE: usize = 256;

/// Ended parcels that the node's other parts tell the collector of.
pub type Ended = mpsc::Receiver<(ParcelKey, Digest, Time)>;

struct Partition {
    cursor: Cursor,
    /// Whether it was ever seen: only then there is a place to write down. From then on, what is lost of it is a gap, though
    /// nothing of it was read yet.
    begun: bool,
    written: i64,
    end: i64,
    /// When the broker appended the last record that was read.
    seen: Time,
}

struct Collector {
    context: Arc<GroupContext>,
    source: Source,
    reassembler: Reassembler,
    partitions: BTreeMap<i32, Partition>,
    stage: Stage,
    staged: mpsc::Sender<Staged>,
    /// What was refused lately; all of it is in the store.
    refused: BTreeMap<ParcelKey, NoticeRecord>,
    /// Stripes that wait for memory to be recovered in.
    complete: VecDeque<RecoverJob>,
    /// What those take that are being recovered.
    recovering_bytes: usize,
    recovered: mpsc::UnboundedSender<(usize, Recovered)>,
    notes: Notes,
    /// When a parcel last could not be staged for a fault of this node; at first, when it started.
    failed: Time,
    /// Ticks for which the topic was not seen.
    unseen: u32,
    /// How often a partition was another than the one that was read. What was asked to be read again before that is not
    /// taken: its addresses may name other records now.
    gaps: u64,
    /// Segments whose signed headers contradicted others.
    contradictions: u64,
    /// How many transactions had no fate when a parcel was last put off because its sender has too many of them.
    too_many: Option<u64>,
}

/// When something happens.
#[derive(Clone, Copy)]
struct Now {
    /// For waiting: it never goes back.
    waiting: Time,
    /// For what is written down and compared with other clocks.
    wall: Time,
}

impl Now {
    fn of(clock: &dyn Clock) -> Self {
        let waiting = u64::try_from(clock.monotonic().as_millis()).unwrap_or(u64::MAX);
        Self { waiting: Time(waiting), wall: clock.now() }
    }

    /// The wall's time at an earlier moment of waiting, whatever became of the wall clock since.
    fn wall_at(&self, earlier: Time) -> Time {
        let ago = u64::try_from(self.waiting.since(earlier).as_millis()).unwrap_or(u64::MAX);
        Time(self.wall.0.saturating_sub(ago))
    }
}

/// What the collector waits for.
enum Event {
    Noted(notes::Answer),
    Stage(Message),
    Recovered(usize, Recovered),
    Ended(ParcelKey, Digest, Time),
    Directory,
    GroupTime,
    Tick,
    Arrival(Arrival),
}

/// Collects until the context's `stop`. `ended` tells of parcels that need no gathering any more; `staged` is told of
/// every parcel that is durable here.
///
/// Errors: what the store says; the node must stop then.
pub async fn run(context: Arc<GroupContext>, mut ended: Ended, staged: mpsc::Sender<Staged>) -> Result<(), NodeError> {
    let clock = Arc::clone(&context.seams.clock);
    let (arrivals, mut arrived) = mpsc::channel(ARRIVALS);
    let (recovered, mut recoveries) = mpsc::unbounded_channel();
    let (stage, mut stage_messages) = Stage::new(Arc::clone(&context));
    let (mut in_force, mut group_time) = (context.in_force.clone(), context.group_time.clone());
    let directory = in_force.borrow_and_update().clone();
    let (notes, mut answers) = Notes::new(context.store.clone(), context.alarms.clone());
    let source = Source {
        seams: context.seams.clone(),
        transport: Arc::clone(&context.transport),
        topic: Topic::segments(&context.environment, &context.destination),
        gate: Arc::new(RwLock::new(Gate::new(Arc::clone(&directory), context.tag))),
        group_time: group_time.clone(),
        queries: context.queries.clone(),
        arrivals,
        rereads: Arc::new(Semaphore::new(reader::REREADS)),
        meter: context.meter.clone(),
        stop: context.stop.clone(),
    };
    let mut collector = Collector {
        reassembler: Reassembler::new(directory, context.tag, context.caps),
        context,
        source,
        partitions: BTreeMap::new(),
        stage,
        staged,
        refused: BTreeMap::new(),
        complete: VecDeque::new(),
        recovering_bytes: 0,
        recovered,
        notes,
        failed: Now::of(&*clock).waiting,
        unseen: 0,
        gaps: 0,
        contradictions: 0,
        too_many: None,
    };
    collector.restore()?;
    let stop = collector.context.stop.clone();
    let mut tick = clock.sleep(Duration::ZERO);
    loop {
        let event = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(answer) = answers.recv() => Event::Noted(answer),
            Some(message) = stage_messages.recv() => Event::Stage(message),
            Some((bytes, result)) = recoveries.recv() => Event::Recovered(bytes, result),
            Some((key, digest, expiry)) = ended.recv() => Event::Ended(key, digest, expiry),
            Ok(()) = in_force.changed() => Event::Directory,
            Ok(()) = group_time.changed() => Event::GroupTime,
            () = &mut tick => Event::Tick,
            Some(arrival) = arrived.recv(), if collector.takes_in() => Event::Arrival(arrival),
        };
        // Read after the wait: nothing came before it.
        let now = Now::of(&*clock);
        let actions = match event {
            Event::Noted(answer) => collector.noted(answer),
            Event::Stage(message) => collector.staged(message, now).await?,
            Event::Recovered(bytes, result) => {
                collector.recovering_bytes -= bytes;
                collector.reassembler.recovered(result, now.waiting)
            }
            Event::Ended(key, digest, expiry) => {
                collector.abandon(&key);
                collector.reassembler.end(&key, digest, expiry, now.waiting)
            }
            Event::Directory => {
                let directory = in_force.borrow_and_update().clone();
                let mut gate = collector.source.gate.write().unwrap_or_else(PoisonError::into_inner);
                gate.set_directory(Arc::clone(&directory));
                drop(gate);
                collector.reassembler.set_directory(directory, now.waiting)
            }
            Event::GroupTime => {
                let group_time = *group_time.borrow_and_update();
                collector.reassembler.set_group_time(group_time, now.waiting)
            }
            Event::Tick => {
                tick = clock.sleep(TICK);
                collector.tick(now)
            }
            Event::Arrival(arrival) => collector.arrival(arrival, now.waiting),
        };
        collector.carry_out(actions, now);
        collector.recover_next();
        collector.notes.write_down();
    }
    collector.offsets();
    let refusals = collector.notes.finish().await?;
    // What became durable on the way, then what did with it.
    while let Ok(answer) = answers.try_recv() {
        collector.noted(answer);
    }
    collector.publish(refusals);
    Ok(())
}

impl Collector {
    /// Takes up what the store knows from before.
    fn restore(&mut self) -> Result<(), NodeError> {
        let snapshot = self.context.store.snapshot()?;
        let now = Now::of(&*self.context.seams.clock).waiting;
        let directory = self.context.in_force.borrow().clone();
        let mut page = snapshot.staged_after(None, PAGE)?;
        while let Some(last) = page.last().map(|row| row.manifest.digest) {
            for manifest in page.iter().map(|row| &row.manifest) {
                if let Some(sender) = directory.senders.get(&manifest.sender) {
                    let (epoch, parcel) = (manifest.epoch, manifest.parcel);
                    let key = ParcelKey { sender: sender.signing.bytes(), epoch, parcel };
                    // Nothing is gathered yet, so there is nothing to carry out.
                    self.reassembler.end(&key, manifest.digest, manifest.expiry, now);
                }
            }
            page = snapshot.staged_after(Some(&last), PAGE)?;
        }
        self.reassembler.restore(snapshot.deferred()?.into_iter().map(|(at, row)| (at, row.reason)));
        Ok(())
    }

    /// Starts a reader for every partition that has none.
    fn start_readers(&mut self) {
        let partitions = self.context.transport.partitions(&self.source.topic);
        if partitions.is_empty() {
            self.unseen += 1;
            if self.unseen < UNSEEN_TICKS {
                return;
            }
            let topic = &self.source.topic;
            let text = match self.context.transport.trouble(topic) {
                Some(cause) => format!("the topic {topic} cannot be collected: {cause}"),
                None => format!(
                    "the topic {topic} is not there or its brokers cannot be reached: `sealcast topic init` makes it, \
                     `sealcast topic check` says what is wrong"
                ),
            };
            self.context.alarms.raise(alarms::TOPIC_UNREACHABLE, text);
            return;
        }
        self.unseen = 0;
        self.context.alarms.clear("topic-unreachable");
        for partition in partitions.iter() {
            let number = partition.id.number;
            if self.partitions.contains_key(&number) {
                continue;
            }
            let mark = match self.context.store.snapshot().and_then(|snapshot| snapshot.offset(number)) {
                Ok(mark) => mark,
                Err(error) => {
                    self.context.alarms.raise(UNREADABLE_ALARM, error.to_string());
                    return;
                }
            };
            self.context.alarms.clear(UNREADABLE_ALARM);
            let from = mark.unwrap_or_default();
            tracing::debug!(topic = %self.source.topic, partition = number, offset = from.offset, "collecting");
            let state = Partition {
                cursor: Cursor::new(from),
                begun: mark.is_some(),
                written: mark.map_or(-1, |mark| mark.offset),
                end: from.offset,
                seen: Time(0),
            };
            self.partitions.insert(number, state);
            tokio::spawn(self.source.clone().follow(number, mark));
        }
    }

    /// Whether more records are taken in now: what was taken in before goes first.
    fn takes_in(&self) -> bool {
        self.complete.is_empty() && self.opening_lags_not() && self.notes.has_room()
    }

    /// Takes the store's answer: only a refusal that is durable is published (R22).
    fn noted(&mut self, answer: notes::Answer) -> Vec<Action> {
        let Learned { refusals, offsets_lost } = self.notes.answered(answer);
        self.publish(refusals);
        if offsets_lost {
            self.partitions.values_mut().for_each(|partition| partition.written = -1);
        }
        Vec::new()
    }

    fn publish(&mut self, refusals: Vec<(ParcelKey, NoticeRecord)>) {
        for (parcel, notice) in refusals {
            self.refused.insert(parcel, notice.clone());
            while self.refused.len() > REFUSED {
                self.refused.pop_first();
            }
            self.context.notices.publish(notice);
        }
    }

    fn tick(&mut self, now: Now) -> Vec<Action> {
        self.start_readers();
        self.reassembler.set_wall(now.wall);
        self.notes.try_again();
        if now.waiting.since(self.failed) >= STAGING_WORKS {
            self.context.alarms.clear(STAGING_ALARM);
        }
        self.offsets();
        let (mut lag, mut oldest) = (0, None::<Time>);
        for partition in self.partitions.values() {
            let behind = partition.end.saturating_sub(partition.cursor.mark().offset).max(0);
            lag += behind;
            if behind > 0 {
                oldest = Some(oldest.map_or(partition.seen, |time| time.min(partition.seen)));
            }
        }
        let meter = &self.context.meter;
        meter.set(names::COLLECT_LAG_RECORDS, lag as f64);
        meter.set(names::COLLECT_LAG_SECONDS, oldest.map_or(0.0, |time| now.wall.since(time).as_secs_f64()));
        meter.set(names::GATHER_BYTES, self.reassembler.held_bytes() as f64);
        meter.set(names::GATHER_DEFERRED, self.reassembler.deferred() as f64);
        self.context.lag.send_replace(super::group::Lag {
            records: u64::try_from(lag).unwrap_or_default(),
            age: oldest.map_or(Duration::ZERO, |time| now.wall.since(time)),
            gathering: self.reassembler.open_parcels() as u64,
            deferred: self.reassembler.deferred() as u64,
        });
        let mut actions = self.reassembler.due(now.waiting);
        let undecided = self.context.store.progress().borrow().counts.undecided;
        if self.too_many.take_if(|then| undecided <= *then / 4 * 3).is_some() {
            actions.extend(self.reassembler.lifted(DeferReason::Undecided, now.waiting));
        }
        actions
    }

    /// Drops what waits of a parcel, and what was opened of it.
    fn abandon(&mut self, key: &ParcelKey) {
        self.complete.retain(|job| job.parcel() != *key);
        self.stage.abandon(key);
    }

    fn opening_lags_not(&self) -> bool {
        self.stage.waiting_bytes() < OPENING_BYTES
    }

    /// Starts recoveries, the first complete stripes first, as far as their memory allows.
    fn recover_next(&mut self) {
        while self.opening_lags_not()
            && let Some(job) = self.complete.front()
        {
            let bytes = job.bytes();
            if self.recovering_bytes > 0 && self.recovering_bytes + bytes > RECOVERING_BYTES {
                return;
            }
            let Some(job) = self.complete.pop_front() else { return };
            self.recovering_bytes += bytes;
            if job.needs_parity() {
                self.context.meter.count(names::GATHER_STRIPES_RECOVERED, 1);
            }
            let (work, done) = (Arc::clone(&self.context.seams.work), self.recovered.clone());
            let job = move || {
                // The collector may have stopped meanwhile: then nobody needs the result.
                let _ = done.send((bytes, job.run()));
            };
            // Handing so little to another thread would take about as long.
            if bytes <= AT_ONCE_BYTES { job() } else { work.start(Box::new(job)) }
        }
    }

    /// Carries actions out, in their order.
    fn carry_out(&mut self, actions: Vec<Action>, now: Now) {
        for action in actions {
            match action {
                Action::Recover(job) => self.complete.push_back(job),
                Action::Deliver(delivery) => {
                    let _span = logs::parcel_span("collect", delivery.parcel.parcel).entered();
                    tracing::debug!(node = %self.context.node, stripe = delivery.header.stripe, "a stripe is whole");
                    let first = delivery.since.map(|since| now.wall_at(since));
                    self.stage.deliver(delivery, first);
                }
                Action::Refuse(refused) => self.refuse(&refused),
                Action::Abandon { parcel, because } => {
                    let reason = because.map_or("expired", |reason| reason.word());
                    self.context.meter.count_as(names::GATHER_ABANDONED, "reason", reason);
                    let (sender, destination) = (self.sender_of(&parcel), &self.context.destination);
                    let sender = sender.as_ref().map(SenderName::as_str);
                    tracing::info!(parcel = %parcel.parcel, sender, %destination, reason, "gathering a parcel is given up");
                    self.abandon(&parcel);
                }
                Action::Defer { addresses, reason } => {
                    let row = DeferredRow { since: now.wall, reason };
                    let meter = self.context.meter.with("reason", reason.word());
                    meter.count(names::GATHER_DEFERRED_RECORDS, addresses.iter().count() as u64);
                    for at in addresses.iter() {
                        let (partition, offset, destination) = (at.partition, at.offset, &self.context.destination);
                        tracing::debug!(partition, offset, %destination, %reason, "record deferred: it is read again");
                        self.notes.push(Note::Defer(at, row));
                        self.pass(at);
                    }
                }
                Action::Pass(addresses) => {
                    // By runs, because a large parcel has millions of addresses.
                    for (partition, offsets) in addresses.runs() {
                        for offset in offsets.clone() {
                            self.pass(Address { partition, offset });
                        }
                        self.notes.push(Note::Undefer(partition, offsets));
                    }
                }
                Action::Reread(addresses) => {
                    tokio::spawn(self.source.clone().again(addresses, self.gaps));
                }
                Action::Missing(missing) => self.ask(&missing),
                // While the collector catches up, what it reads was not sent again: it comes late.
                // Whoever sends a refused parcel again has not heard of that.
                Action::Repeated(parcel) if self.refused.contains_key(&parcel) => {
                    if let Some(notice) = self.refused.get(&parcel) {
                        self.context.notices.publish(notice.clone());
                    }
                }
                Action::Repeated(parcel) if self.context.lag.borrow().records <= CAUGHT_UP => {
                    // The node is stopping: whoever sent it again sends it once more.
                    let _ = self.context.repeats.send(Repeat::Ended(parcel));
                }
                Action::Repeated(_) => {}
                Action::Equivocation(equivocation) => self.contradicts(&equivocation),
            }
        }
    }

    fn pass(&mut self, at: Address) {
        if let Some(partition) = self.partitions.get_mut(&at.partition) {
            partition.cursor.pass(at.offset);
        }
    }

    /// A sender can make as many contradictions as it likes: all are counted, and the 1st, 2nd, 4th, 8th and so on are said aloud
    /// and written down; so is the first after somebody acknowledged the alarm.
    fn contradicts(&mut self, Equivocation { parcel, stripe, first, second }: &Equivocation) {
        self.context.meter.count(names::GATHER_EQUIVOCATIONS, 1);
        self.contradictions += 1;
        let (sender, destination, times) = (parcel.sender, &self.context.destination, self.contradictions);
        let what = "two signed headers contradict each other";
        if !times.is_power_of_two() && self.context.alarms.stands(alarms::EQUIVOCATION) {
            tracing::debug!(parcel = %parcel.parcel, %sender, %destination, stripe, %first, %second, times, "{what}");
            return;
        }
        tracing::error!(parcel = %parcel.parcel, %sender, %destination, stripe, %first, %second, times, "{what}");
        let text = format!(
            "the sender with key {sender} signed two headers for stripe {stripe} of parcel {} ({first} and {second}): its key \
             may be in other hands, or its client was copied while it ran",
            parcel.parcel
        );
        self.context.alarms.raise(alarms::EQUIVOCATION, text);
    }

    fn refuse(&mut self, refused: &Refused) {
        let Refused { parcel, digest, reason, .. } = refused;
        self.stage.abandon(parcel);
        self.context.meter.count_as(names::STAGE_REFUSALS, "reason", reason.word());
        let (sender, destination) = (self.sender_of(parcel), &self.context.destination);
        let name = sender.as_ref().map(SenderName::as_str);
        tracing::warn!(parcel = %parcel.parcel, sender = name, %destination, %digest, %reason, "parcel refused");
        let Some(sender) = sender else { return };
        let said = Refusal { sender, epoch: parcel.epoch, parcel: parcel.parcel, digest: *digest, reason: *reason };
        let notice = said.sign(self.context.keys.signing(), &self.context.node, self.context.tag, self.version());
        self.notes.push(Note::Refuse(*parcel, *digest, notice));
    }

    fn ask(&mut self, missing: &Missing) {
        let parcel = &missing.parcel;
        let Some(sender) = self.sender_of(parcel) else { return };
        let (destination, stripe, held) = (&self.context.destination, missing.stripe, missing.held.len());
        tracing::info!(parcel = %parcel.parcel, %sender, %destination, stripe, held, "asking the sender again");
        // What comes after the stripe to be handed out next may be on its way or not: the sender has it all.
        let stripes = vec![missing.stripe..=u32::MAX];
        let said = MissingNotice { sender, epoch: parcel.epoch, parcel: parcel.parcel, stripes };
        self.context.notices.publish(said.sign(
            self.context.keys.signing(),
            &self.context.node,
            self.context.tag,
            self.version(),
        ));
    }

    /// The name of a parcel's sender; a parcel of a sender that the directory lost meanwhile is nobody's to be told.
    fn sender_of(&self, parcel: &ParcelKey) -> Option<SenderName> {
        self.context.in_force.borrow().sender_by_key(&parcel.sender).map(|sender| sender.name.clone())
    }

    fn version(&self) -> u64 {
        self.context.in_force.borrow().version
    }

    async fn staged(&mut self, message: Message, now: Now) -> Result<Vec<Action>, NodeError> {
        Ok(match self.stage.message(message) {
            StageEvent::Progress => Vec::new(),
            StageEvent::Opened { key, bytes } => self.reassembler.opened(&key, bytes, now.waiting),
            StageEvent::Staged { key, expiry, staged } => {
                self.context.meter.count(names::STAGE_PARCELS, 1);
                logs::parcel_span("stage", key.parcel)
                    .in_scope(|| tracing::debug!(digest = %staged.digest, "staged: durable here"));
                let digest = staged.digest;
                // The reporter may be behind; the store knows the parcel, and the next full report names it.
                let _ = self.staged.send(staged).await;
                self.reassembler.end(&key, digest, expiry, now.waiting)
            }
            StageEvent::Refused { key, reason } => self.reassembler.refuse(&key, reason, now.waiting),
            StageEvent::Deferred { key, reason, cause } => {
                let (sender, destination) = (self.sender_of(&key), &self.context.destination);
                let sender = sender.as_ref().map(SenderName::as_str);
                tracing::warn!(parcel = %key.parcel, sender, %destination, %reason, %cause, "parcel deferred");
                if matches!(reason, DeferReason::Local | DeferReason::KeyMissing) {
                    self.failed = now.waiting;
                    let text = format!("{cause}. Parcels are put off and tried again until it is mended");
                    self.context.alarms.raise(STAGING_ALARM, text);
                }
                if reason == DeferReason::Undecided {
                    self.too_many = Some(self.context.store.progress().borrow().counts.undecided);
                }
                self.reassembler.defer_parcel(&key, reason, now.waiting)
            }
            StageEvent::Fatal(error) => return Err(error.into()),
        })
    }

    /// Notes the offsets that moved; the store makes them durable behind what they stand for.
    fn offsets(&mut self) {
        if !self.notes.all_kept() {
            return;
        }
        for (&partition, state) in &mut self.partitions {
            let mark = state.cursor.mark();
            if state.begun && mark.offset != state.written {
                state.written = mark.offset;
                self.notes.push(Note::Offset(partition, mark));
            }
        }
    }
}
