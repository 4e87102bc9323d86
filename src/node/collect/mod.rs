//! Collecting for one destination: readers of all partitions feed the reassembler; its actions are carried out in their
//! order; what passes moves the collection offsets (R16, R17).
//!
//! Owns the reassembler, the cursors and the stage: `reader` reads, `arrival` takes what was read, `actions` carries out what
//! comes of it, `recoveries` and `notes` own what is on its way to be recovered or noted. Must not make a fate, nor look into
//! sealed bytes.
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

mod actions;
mod arrival;
mod notes;
mod reader;
mod recoveries;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use self::notes::{Learned, Note, Notes};
use self::reader::{Arrival, Source};
use self::recoveries::{Done, Recoveries};
use super::group::{GroupContext, Staged};
use super::stage::{Message, Stage, StageEvent};
use super::{NodeError, alarms};
use crate::core::gather::{Action, Cursor, DeferReason, Gate, ParcelKey, Reassembler};
use crate::core::id::{Digest, SenderName, Time};
use crate::core::receipt::NoticeRecord;
use crate::seams::Clock;
use crate::telemetry::{logs, names};
use crate::transport::{Topic, Transport};

/// Batches of records that wait for the collector; each is about a mebibyte at most.
const ARRIVALS: usize = 4;

/// Recovered bytes that wait to be opened or stored; beyond it nothing more is taken in, nor recovered.
const OPENING_BYTES: usize = 8 * 1024 * 1024;

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
    recoveries: Recoveries,
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
    Recovered(Done),
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
    let (recoveries, mut recovered) = Recoveries::new(Arc::clone(&context.seams.work), context.meter.clone());
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
        recoveries,
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
            Some(done) = recovered.recv() => Event::Recovered(done),
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
            Event::Recovered(done) => {
                let result = collector.recoveries.ended(done);
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
        if collector.opening_lags_not() {
            collector.recoveries.start();
        }
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
        self.recoveries.none_waits() && self.opening_lags_not() && self.notes.has_room()
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

    fn opening_lags_not(&self) -> bool {
        self.stage.waiting_bytes() < OPENING_BYTES
    }

    async fn staged(&mut self, message: Message, now: Now) -> Result<Vec<Action>, NodeError> {
        Ok(match self.stage.message(message) {
            StageEvent::Progress => Vec::new(),
            StageEvent::Opened { key, bytes } => self.reassembler.opened(&key, bytes, now.waiting),
            StageEvent::Staged { key, expiry, staged } => {
                self.context.meter.count(names::STAGE_PARCELS, 1);
                logs::parcel_span("stage", key.parcel).in_scope(
                    || tracing::debug!(node = %self.context.node, digest = %staged.digest, "staged: durable here"),
                );
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
