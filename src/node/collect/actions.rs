//! Carries out what the reassembler wants, in its order: bytes go to the stage, notes to the store, notices to the sender, and
//! cursors move.
//!
//! Owns no state of its own: it changes the collector's. Must not decide what becomes of a parcel.

use super::notes::Note;
use super::{Collector, Now};
use crate::core::gather::{Action, Address, Equivocation, Missing, ParcelKey, Refused};
use crate::core::id::SenderName;
use crate::core::receipt::{Missing as MissingNotice, NoticeRecord, Refusal};
use crate::node::alarms;
use crate::node::group::Repeat;
use crate::store::group::DeferredRow;
use crate::telemetry::{logs, names};

/// Refusals that are kept at hand, to be said again.
const REFUSED: usize = 1024;

/// Records behind the topic's end at which the collector counts as caught up.
const CAUGHT_UP: u64 = 1024;

impl Collector {
    /// Carries actions out, in their order.
    pub(super) fn carry_out(&mut self, actions: Vec<Action>, now: Now) {
        for action in actions {
            match action {
                Action::Recover(job) => self.recoveries.add(job),
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
    pub(super) fn sender_of(&self, parcel: &ParcelKey) -> Option<SenderName> {
        self.context.in_force.borrow().sender_by_key(&parcel.sender).map(|sender| sender.name.clone())
    }

    fn version(&self) -> u64 {
        self.context.in_force.borrow().version
    }

    /// Drops what waits of a parcel, and what was opened of it.
    pub(super) fn abandon(&mut self, key: &ParcelKey) {
        self.recoveries.abandon(key);
        self.stage.abandon(key);
    }

    /// Publishes refusals that are durable, and keeps them at hand.
    pub(super) fn publish(&mut self, refusals: Vec<(ParcelKey, NoticeRecord)>) {
        for (parcel, notice) in refusals {
            self.refused.insert(parcel, notice.clone());
            while self.refused.len() > REFUSED {
                self.refused.pop_first();
            }
            self.context.notices.publish(notice);
        }
    }
}
