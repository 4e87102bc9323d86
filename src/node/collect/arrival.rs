//! What readers tell: records for the reassembler, gaps, trouble. Must not decide what becomes of a segment.

use super::Collector;
use super::notes::Note;
use super::reader::{Arrival, Checked};
use crate::core::gather::{Action, GapReason, Skip, SkipReason};
use crate::core::id::Time;
use crate::node::alarms;
use crate::telemetry::names;

/// The alarm of a partition that cannot be read.
fn unreachable(partition: i32) -> String {
    format!("{}{partition}", alarms::PARTITION_UNREACHABLE)
}

impl Collector {
    /// Takes what a reader told.
    pub(super) fn arrival(&mut self, arrival: Arrival, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        match arrival {
            Arrival::Begun { partition, next, end } => {
                if let Some(state) = self.partitions.get_mut(&partition) {
                    state.cursor.read_to(next);
                    (state.begun, state.end) = (true, end);
                }
            }
            Arrival::Records { partition, records, next, end } => {
                // It may stand from before this start.
                self.context.alarms.clear(&unreachable(partition));
                if let Some(state) = self.partitions.get_mut(&partition) {
                    for record in &records {
                        state.cursor.see(record.at.offset, record.identity);
                    }
                    state.cursor.read_to(next);
                    state.end = end;
                    state.seen = records.last().map_or(state.seen, |record| record.time);
                }
                for record in records {
                    actions.extend(self.take(record, now));
                }
            }
            Arrival::Again { records, gaps } if gaps != self.gaps => {
                tracing::debug!("records that were read again before a gap are not taken: they are read once more");
                let addresses: Vec<_> = records.iter().map(|record| record.at).collect();
                self.reassembler.not_read(&addresses, Some(now));
            }
            Arrival::Gone { addresses, gaps } | Arrival::Unreached { addresses, gaps } if gaps != self.gaps => {
                self.reassembler.not_read(&addresses, Some(now));
            }
            Arrival::Again { records, .. } => {
                for record in records {
                    actions.extend(self.take(record, now));
                }
            }
            Arrival::Gone { addresses, .. } => {
                self.context
                    .meter
                    .with("reason", SkipReason::Gone.word())
                    .count(names::GATHER_REFUSED, addresses.len() as u64);
                for at in addresses {
                    actions.extend(self.reassembler.take(Err(Skip::NotSegment), at, now));
                }
            }
            // Their notes stay; the book reads them again when they are due.
            Arrival::Unreached { addresses, .. } => {
                tracing::debug!(count = addresses.len(), "deferred records are out of reach");
                self.reassembler.not_read(&addresses, None);
            }
            Arrival::Gap { partition, gap, low } => {
                let text = format!(
                    "partition {partition} of {}: {gap}. Records may have been lost to this node before it read them; it \
                     reads the partition again from offset {low}, and senders send again what has no fate",
                    self.source.topic
                );
                let (reason, destination) = (GapReason::of(&gap), &self.context.destination);
                tracing::error!(partition, %destination, %reason, %gap, low, "gap in the collected topic");
                self.context.meter.count_as(names::COLLECT_GAPS, "reason", reason.word());
                self.context.alarms.raise(&format!("{}{partition}", alarms::GAP), text);
                self.gaps += 1;
                if let Some(state) = self.partitions.get_mut(&partition) {
                    state.cursor.restart(low);
                    // Before the notes go: a crash in between reads too much, not too little.
                    let mark = state.cursor.mark();
                    state.written = mark.offset;
                    self.notes.push(Note::Offset(partition, mark));
                }
                actions.extend(self.reassembler.partition_restarted(partition, now));
            }
            Arrival::Trouble { partition, cause } => match cause {
                Some(cause) => self.context.alarms.raise(&unreachable(partition), cause),
                None => self.context.alarms.clear(&unreachable(partition)),
            },
        }
        actions
    }

    fn take(&mut self, record: Checked, now: Time) -> Vec<Action> {
        match &record.outcome {
            Ok(segment) => {
                self.context.meter.count_as(names::GATHER_SEGMENTS, "outcome", "taken");
                let (context, header) = (&self.context, segment.header());
                tracing::trace!(
                    node = %context.node,
                    parcel = %header.core.parcel,
                    stripe = header.stripe,
                    shard = segment.index(),
                    read_us = context.seams.clock.monotonic().saturating_sub(record.read).as_micros() as u64,
                    "a segment is genuine"
                );
            }
            Err(skip) => {
                let outcome = if skip.retryable() { "deferred" } else { "refused" };
                self.context.meter.count_as(names::GATHER_SEGMENTS, "outcome", outcome);
                // What is deferred is counted with what the reassembler defers.
                if !skip.retryable() {
                    self.context.meter.count_as(names::GATHER_REFUSED, "reason", skip.word());
                }
                let (destination, reason) = (&self.context.destination, skip.word());
                tracing::debug!(partition = record.at.partition, offset = record.at.offset, %destination, reason, "{skip}");
            }
        }
        self.reassembler.take(record.outcome, record.at, now)
    }
}
