//! Staging: a parcel's sealed bytes are opened completely as they come, each transaction's ciphertext is kept as it came,
//! and when all of it was authenticated the parcel becomes durable (R24, law 3).
//!
//! Owns half-opened parcels. Must not keep plaintext, nor decide what becomes of a parcel: the collector does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::group::{GroupContext, Repeat, Staged};
use crate::core::decide::{Manifest, ManifestItem, View, expired};
use crate::core::gather::{DeferReason, Delivery, ParcelKey};
use crate::core::id::{RefusalReason, SenderName, Time};
use crate::core::seal::custody::{NONCE_BYTES, StorageKey};
use crate::core::seal::keys::TransactionKey;
use crate::core::seal::{BodyError, EnvelopeOpenError, Event, OpenError, ParcelContext, ParcelOpener, envelope_bytes};
use crate::core::split::header::Core;
use crate::store::StoreError;
use crate::store::bodies::{BodyWriter, FinishedBody};
use crate::store::group::{ItemStanding, NewBody, NewParcel, Settled};
use crate::telemetry::{logs, names};

/// Parcels that are opened at the same time, of all destinations of a node: each gives work to a core, and may take some
/// mebibytes while it does.
pub(super) const OPENING_AT_ONCE: usize = 4;

/// What a transaction costs that is whole, in bytes, while its parcel is not: its item, its key, where its body is.
const WHOLE_BYTES: usize = 1024;

/// What the stage tells the collector.
#[derive(Debug)]
pub(super) enum StageEvent {
    /// Some waiting bytes were opened, or nothing is to be done.
    Progress,
    /// Some of a parcel's bytes were opened: so much memory its opening may hold until more come, beside what every one does.
    Opened { key: ParcelKey, bytes: usize },
    /// The parcel is durable here.
    Staged {
        key: ParcelKey,
        /// When nobody needs to remember the parcel any more.
        expiry: Time,
        /// What the reporter needs.
        staged: Staged,
    },
    /// Its bytes deserve a refusal (R22).
    Refused { key: ParcelKey, reason: RefusalReason },
    /// This node cannot open or keep it now (R21).
    Deferred { key: ParcelKey, reason: DeferReason, cause: String },
    /// The store failed: the node must stop.
    Fatal(StoreError),
}

/// Why a parcel's bytes came to nothing.
#[derive(Debug)]
enum Fault {
    Refused(RefusalReason),
    Deferred(DeferReason, String),
    Fatal(StoreError),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::DiskFull { .. } | StoreError::Unwritten { .. } => {
                Self::Deferred(DeferReason::Local, error.to_string())
            }
            error => Self::Fatal(error),
        }
    }
}

/// How many transactions of each sender are on their way into the store: they are opened and no rows yet, and count as
/// undecided all the same.
#[derive(Debug, Default)]
pub struct OnTheWay(Mutex<BTreeMap<SenderName, usize>>);

/// Some of them, as long as it lives.
struct Counted {
    all: Arc<OnTheWay>,
    sender: SenderName,
    count: usize,
}

impl OnTheWay {
    fn senders(&self) -> MutexGuard<'_, BTreeMap<SenderName, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds so many of a sender: how many it has now.
    fn add(self: &Arc<Self>, sender: &SenderName, count: usize) -> (Counted, usize) {
        let mut senders = self.senders();
        let of = senders.entry(sender.clone()).or_default();
        *of += count;
        (Counted { all: self.clone(), sender: sender.clone(), count }, *of)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut senders = self.all.senders();
        if let Some(of) = senders.get_mut(&self.sender) {
            *of = of.saturating_sub(self.count);
            if *of == 0 {
                senders.remove(&self.sender);
            }
        }
    }
}

/// What came of opening some bytes of a parcel.
enum Step {
    More(Box<Opening>),
    Whole(Box<NewParcel>, Counted),
    Failed(Fault),
}

/// A step's result, on its way back.
struct Stepped {
    key: ParcelKey,
    generation: u64,
    bytes: usize,
    step: Step,
}

struct Lane {
    /// Tells results of a parcel from those of an earlier try that was abandoned.
    generation: u64,
    /// `None` while a step runs.
    opening: Option<Box<Opening>>,
    waiting: VecDeque<Delivery>,
}

/// The half-opened parcels of one destination.
pub(super) struct Stage {
    context: Arc<GroupContext>,
    started: Time,
    storage: StorageKey,
    lanes: BTreeMap<ParcelKey, Lane>,
    generation: u64,
    waiting_bytes: usize,
    steps: mpsc::UnboundedSender<Message>,
}

/// From the stage's own tasks to its owner.
pub(super) struct Message(Inner);

enum Inner {
    Stepped(Stepped),
    Stored { key: ParcelKey, generation: u64, expiry: Time, inline: usize, result: Result<Staged, StoreError> },
}

impl Stage {
    /// A stage without parcels, and where its messages come out; they go to [`Stage::message`].
    pub fn new(context: Arc<GroupContext>) -> (Self, mpsc::UnboundedReceiver<Message>) {
        let (steps, messages) = mpsc::unbounded_channel();
        let stage = Self {
            storage: StorageKey::new(*context.keys.storage()),
            started: context.seams.clock.now(),
            context,
            lanes: BTreeMap::new(),
            generation: 0,
            waiting_bytes: 0,
            steps,
        };
        (stage, messages)
    }

    /// Recovered bytes that wait to be opened, and small bodies that wait to be stored.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Takes the next stripe of a parcel; stripes of one parcel come in their order. `first`: when its first segment came, by
    /// the wall clock, if that is known.
    pub fn deliver(&mut self, delivery: Delivery, first: Option<Time>) {
        let key = delivery.parcel;
        self.waiting_bytes += delivery.sealed.len();
        if !self.lanes.contains_key(&key) {
            self.generation += 1;
            // What was sealed before this start may have come to an earlier one.
            let first = first.filter(|_| delivery.header.core.parcel.time() >= self.started);
            let opening = Box::new(Opening::new(&self.context, self.storage.clone(), &delivery.header.core, first));
            let lane = Lane { generation: self.generation, opening: Some(opening), waiting: VecDeque::new() };
            self.lanes.insert(key, lane);
        }
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.waiting.push_back(delivery);
        }
        self.run(&key);
    }

    /// Drops what was opened of a parcel.
    pub fn abandon(&mut self, key: &ParcelKey) {
        if let Some(lane) = self.lanes.remove(key) {
            self.waiting_bytes -= lane.waiting.iter().map(|delivery| delivery.sealed.len()).sum::<usize>();
        }
    }

    /// Starts the next step of a parcel, if none runs.
    fn run(&mut self, key: &ParcelKey) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        let Some(opening) = lane.opening.take() else { return };
        let Some(delivery) = lane.waiting.pop_front() else {
            lane.opening = Some(opening);
            return;
        };
        let (key, generation, bytes) = (*key, lane.generation, delivery.sealed.len());
        let (at_once, steps, work) =
            (Arc::clone(&self.context.openings), self.steps.clone(), Arc::clone(&self.context.seams.work));
        tokio::spawn(async move {
            // The semaphore is never closed, and without its permit the step would run all the same.
            let _permit = at_once.acquire().await;
            let span = logs::parcel_span("stage", key.parcel);
            let step = match work.run(move || span.in_scope(|| opening.step(&delivery))).await {
                Ok(step) => step,
                Err(lost) => Step::Failed(Fault::Deferred(DeferReason::Local, lost.to_string())),
            };
            // The collector may have stopped: then nobody waits for the result.
            let _ = steps.send(Message(Inner::Stepped(Stepped { key, generation, bytes, step })));
        });
    }

    /// Takes a message of the stage's own tasks: what the collector is to do.
    pub fn message(&mut self, message: Message) -> StageEvent {
        match message.0 {
            Inner::Stepped(stepped) => self.stepped(stepped),
            Inner::Stored { key, generation, expiry, inline, result } => {
                self.waiting_bytes -= inline;
                let current = self.lanes.get(&key).is_some_and(|lane| lane.generation == generation);
                if current {
                    self.lanes.remove(&key);
                }
                match result.map_err(Fault::from) {
                    Ok(staged) => StageEvent::Staged { key, expiry, staged },
                    Err(fault) => failed(key, fault),
                }
            }
        }
    }

    fn stepped(&mut self, Stepped { key, generation, bytes, step }: Stepped) -> StageEvent {
        self.waiting_bytes -= bytes;
        let Some(lane) = self.lanes.get_mut(&key).filter(|lane| lane.generation == generation) else {
            return StageEvent::Progress;
        };
        match step {
            Step::More(opening) => {
                let bytes = opening.held_bytes();
                lane.opening = Some(opening);
                self.run(&key);
                StageEvent::Opened { key, bytes }
            }
            Step::Whole(parcel, counted) => {
                let inline = parcel.bodies.iter().filter_map(|new| new.body.inline()).map(Bytes::len).sum::<usize>();
                self.waiting_bytes += inline;
                let (store, steps) = (self.context.store.clone(), self.steps.clone());
                let expiry = parcel.manifest.expiry;
                let manifest = parcel.manifest.clone();
                let (came, repeats) = ((parcel.first, parcel.staged), self.context.repeats.clone());
                let bytes = parcel.bodies.iter().map(|body| body.body.length).sum();
                let meter = self.context.meter.clone();
                tokio::spawn(async move {
                    let result = store.stage(*parcel).await.map(|standings| {
                        let settled = settled(&manifest, came, standings);
                        meter.count(names::STAGE_BYTES, bytes);
                        if let (Some(first), staged) = came {
                            meter.took(names::STAGE_SECONDS, staged.since(first));
                        }
                        if !settled.is_empty() {
                            // The node is stopping: whoever sent them again asks again.
                            let _ = repeats.send(Repeat::Staged(settled));
                        }
                        Staged {
                            parcel: manifest.parcel,
                            digest: manifest.digest,
                            manifest_digest: manifest.manifest_digest(),
                            manifest: Some(Arc::new(manifest)),
                        }
                    });
                    // They are rows now, or nothing became of them.
                    drop(counted);
                    // As above.
                    let _ = steps.send(Message(Inner::Stored { key, generation, expiry, inline, result }));
                });
                StageEvent::Progress
            }
            Step::Failed(fault) => {
                self.abandon(&key);
                failed(key, fault)
            }
        }
    }
}

/// The items that had their fate before they were staged.
fn settled(
    manifest: &Manifest,
    (first, staged): (Option<Time>, Time),
    standings: Vec<(u32, ItemStanding)>,
) -> Vec<Settled> {
    let items: BTreeMap<u32, &ManifestItem> = manifest.items.iter().map(|item| (item.index, item)).collect();
    standings
        .into_iter()
        .filter(|(_, standing)| *standing != ItemStanding::Undecided)
        .filter_map(|(index, standing)| {
            let item = (*items.get(&index)?).clone();
            Some(Settled { digest: manifest.digest, sender: manifest.sender.clone(), item, first, staged, standing })
        })
        .collect()
}

fn failed(key: ParcelKey, fault: Fault) -> StageEvent {
    match fault {
        Fault::Refused(reason) => StageEvent::Refused { key, reason },
        Fault::Deferred(reason, cause) => StageEvent::Deferred { key, reason, cause },
        Fault::Fatal(error) => StageEvent::Fatal(error),
    }
}

/// One parcel that is being opened. Its keys are wiped with it.
struct Opening {
    context: Arc<GroupContext>,
    /// When the parcel's first segment came, if that is known.
    first: Option<Time>,
    storage: StorageKey,
    core: Core,
    /// `None` when this node lacks the key that the core names.
    opener: Option<ParcelOpener>,
    envelope: Vec<u8>,
    envelope_bytes: usize,
    bodies: Bodies,
}

/// The bodies of a parcel as its opener gives them.
#[derive(Default)]
struct Bodies {
    current: Option<BodyWriter>,
    whole: Vec<(ManifestItem, TransactionKey, FinishedBody)>,
    failed: Option<StoreError>,
}

impl Bodies {
    fn take(&mut self, context: &GroupContext, event: Event<'_>) {
        if self.failed.is_some() {
            return;
        }
        if let Err(error) = self.try_take(context, event) {
            self.failed = Some(error);
        }
    }

    fn try_take(&mut self, context: &GroupContext, event: Event<'_>) -> Result<(), StoreError> {
        match event {
            Event::Begin { .. } => self.current = Some(context.store.body_writer()),
            Event::Ciphertext { bytes, .. } => {
                if let Some(writer) = &mut self.current {
                    writer.push(bytes)?;
                }
            }
            // Opened to be authenticated; nothing of it is kept.
            Event::Header { .. } | Event::Payload { .. } => {}
            Event::End(transaction) => {
                if let Some(writer) = self.current.take() {
                    let item = ManifestItem::of(&transaction, &context.tag, context.ring.index_secret());
                    // Before its file is made durable, which has nothing to do with it.
                    let (node, destination, id) = (&context.node, &context.destination, item.transaction);
                    tracing::debug!(%node, %destination, transaction = %id, "opened: whole and genuine");
                    self.whole.push((item, transaction.key.clone(), writer.finish()?));
                }
            }
        }
        Ok(())
    }
}

impl Opening {
    fn new(context: &Arc<GroupContext>, storage: StorageKey, core: &Core, first: Option<Time>) -> Self {
        let parcel = ParcelContext {
            ctx: core.context(),
            suite: core.suite,
            destinations: core.destinations.iter().map(|destination| (destination.tag, destination.key)).collect(),
        };
        let envelope_bytes = envelope_bytes(core.suite, core.destinations.len());
        let secret = core.destination(&context.tag).and_then(|own| context.ring.secret(&own.key)).cloned();
        Self {
            context: Arc::clone(context),
            first,
            storage,
            core: core.clone(),
            opener: secret.map(|secret| ParcelOpener::new(parcel, context.tag, secret)),
            envelope: Vec::new(),
            envelope_bytes,
            bodies: Bodies::default(),
        }
    }

    /// What it may come to hold in memory between its steps, in bytes, beside buffers and an open file; small bodies have a
    /// bound of their own.
    fn held_bytes(&self) -> usize {
        let expanding = self.opener.as_ref().map_or(0, ParcelOpener::expanding_bytes);
        self.envelope.len() + self.bodies.whole.len() * WHOLE_BYTES + expanding
    }

    /// Opens one stripe. Blocks.
    fn step(mut self: Box<Self>, delivery: &Delivery) -> Step {
        match self.open(delivery) {
            Ok(()) if !delivery.header.last => Step::More(self),
            Ok(()) => match self.finish(delivery) {
                Ok((parcel, counted)) => Step::Whole(Box::new(parcel), counted),
                Err(fault) => Step::Failed(fault),
            },
            Err(fault) => Step::Failed(fault),
        }
    }

    fn open(&mut self, delivery: &Delivery) -> Result<(), Fault> {
        let Some(opener) = &mut self.opener else {
            let cause = "this node's key ring lacks the key that the parcel is sealed to: give it the newest key ring";
            return Err(Fault::Deferred(DeferReason::KeyMissing, cause.to_owned()));
        };
        let missing = self.envelope_bytes.saturating_sub(self.envelope.len());
        self.envelope.extend_from_slice(delivery.sealed.get(..missing).unwrap_or(&delivery.sealed));
        let (context, bodies) = (&self.context, &mut self.bodies);
        let pushed = opener.push(&delivery.sealed, &mut |event| bodies.take(context, event));
        Self::outcome(&mut self.bodies, pushed.map_err(|error| fault_of(&error)))
    }

    /// A fault of the store comes before what the bytes deserve: it is local, and may be why they look wrong.
    fn outcome<T>(bodies: &mut Bodies, opened: Result<T, Fault>) -> Result<T, Fault> {
        match bodies.failed.take() {
            Some(error) => Err(error.into()),
            None => opened,
        }
    }

    fn finish(self: Box<Self>, delivery: &Delivery) -> Result<(NewParcel, Counted), Fault> {
        let Self { context, first, storage, core, opener, envelope, mut bodies, .. } = *self;
        let local = |cause: String| Fault::Deferred(DeferReason::Local, cause);
        let opener = opener.ok_or_else(|| local("the parcel was not opened".to_owned()))?;
        let finished = opener.finish(&mut |event| bodies.take(&context, event)).map_err(|error| fault_of(&error));
        Self::outcome(&mut bodies, finished)?;
        // The expiry is what the directory in force bounds: a later deadline would let a transaction wait for ever (R7).
        if bodies.whole.iter().any(|(item, ..)| item.deadline > core.expiry) {
            return Err(Fault::Refused(RefusalReason::Malformed));
        }
        let directory = context.in_force.borrow().clone();
        let Some(sender) = directory.sender_by_key(&core.sender) else {
            let cause = "the directory does not list the sender any more".to_owned();
            return Err(Fault::Deferred(DeferReason::UnknownSender, cause));
        };
        let digest = delivery.digest;
        let (mut items, mut new_bodies) = (Vec::new(), Vec::new());
        // Drawn at once: each draw is a system call.
        let mut nonces = vec![0; NONCE_BYTES * bodies.whole.len()];
        context.seams.randomness.fill(&mut nonces).map_err(|error| local(error.to_string()))?;
        for ((item, key, body), nonce) in bodies.whole.into_iter().zip(nonces.as_chunks::<NONCE_BYTES>().0) {
            let wrapped = storage.wrap(&context.node, &digest, &item.transaction, &key, nonce);
            new_bodies.push(NewBody { index: item.index, body, wrapped_key: wrapped.to_vec() });
            items.push(item);
        }
        let manifest = Manifest {
            parcel: core.parcel,
            digest,
            sender: sender.name.clone(),
            epoch: core.epoch,
            expiry: core.expiry,
            items,
        };
        // Counted before it is looked at, so that of several that are looked at together each sees the others.
        let (counted, coming) = context.on_the_way.add(&sender.name, manifest.items.len());
        if let Some(cause) = too_many(&context, &manifest, coming)? {
            return Err(Fault::Deferred(DeferReason::Undecided, cause));
        }
        let staged = context.seams.clock.now();
        let parcel = NewParcel { manifest, first, staged, envelope: Bytes::from(envelope), bodies: new_bodies };
        Ok((parcel, counted))
    }
}

/// Why a parcel must wait until others of its sender have their fates; `None` when it may be staged. Half of the room is for
/// parcels in which something can be decided at once: what they release makes room. `coming`: the sender's transactions on
/// their way into the store, this parcel's among them.
fn too_many(context: &GroupContext, manifest: &Manifest, coming: usize) -> Result<Option<String>, StoreError> {
    let most = context.undecided_per_sender;
    if context.store.progress().borrow().counts.undecided.saturating_add(coming as u64) <= most as u64 {
        return Ok(None);
    }
    let snapshot = context.store.snapshot()?;
    let there = snapshot.undecided_of(&manifest.sender, 2 * most + 1)?;
    if there + coming <= most {
        return Ok(None);
    }
    let cause = format!("{there} transactions of {} have no fate yet: more of them wait", manifest.sender);
    if there + coming > 2 * most {
        return Ok(Some(cause));
    }
    for item in &manifest.items {
        let Some(before) = &item.predecessor else { return Ok(None) };
        let gone = expired(snapshot.group_time(), before.deadline);
        if gone || snapshot.transaction(&manifest.sender, before.transaction)?.is_some() {
            return Ok(None);
        }
    }
    Ok(Some(cause))
}

fn fault_of(error: &OpenError) -> Fault {
    if let Some(reason) = error.refusal() {
        return Fault::Refused(reason);
    }
    let reason = match error {
        OpenError::Envelope(EnvelopeOpenError::OtherKey { .. } | EnvelopeOpenError::NotAddressed(_)) => {
            DeferReason::KeyMissing
        }
        OpenError::Transaction { cause: BodyError::Compression(_), .. } => DeferReason::Local,
        _ => DeferReason::UnknownVersion,
    };
    Fault::Deferred(reason, error.to_string())
}
