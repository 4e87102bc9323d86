//! Staging: a parcel's sealed bytes are opened completely as they come, each transaction's ciphertext is kept as it came,
//! and when all of it was authenticated the parcel becomes durable (R24, law 3).
//!
//! Owns half-opened parcels, and the turns in which they are opened (one is `opening`; `undecided` says which must wait). Must
//! not keep plaintext, nor decide what becomes of a parcel: the collector does.

mod opening;
mod undecided;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use self::opening::{Fault, Opening, Step};
pub use self::undecided::OnTheWay;
use super::group::{GroupContext, Repeat, Staged};
use crate::core::decide::{Manifest, ManifestItem};
use crate::core::gather::{DeferReason, Delivery, ParcelKey};
use crate::core::id::{RefusalReason, Time};
use crate::core::seal::custody::StorageKey;
use crate::store::StoreError;
use crate::store::group::{ItemStanding, Settled};
use crate::telemetry::{logs, names};

/// Parcels that are opened at the same time, of all destinations of a node: each gives work to a core, and may take some
/// mebibytes while it does.
pub(super) const OPENING_AT_ONCE: usize = 4;

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
