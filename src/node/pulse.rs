//! What a node looks at again and again: gauges, readiness, how long the directory is valid, free space.
//!
//! Must not be on the way of a transaction.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::alarms::{self, Alarms};
use super::group::{AllServed, Served};
use super::status;
use crate::core::directory::{Directory, Validity, write_time};
use crate::raft::Role;
use crate::seams::Seams;
use crate::store::StoreError;
use crate::store::group::{GroupStore, RESERVED_BYTES};
use crate::telemetry::health::Readiness;
use crate::telemetry::recorder::Recorded;
use crate::telemetry::{Meter, names};
use crate::transport::{Topic, Transport};

/// How often readiness is looked at.
const READY_EVERY: Duration = Duration::from_millis(100);
/// How often the rest is, in rounds of the above.
const ROUNDS: u32 = 10;
/// How often Kafka is told how far this node came, in rounds.
const OFFSETS_EVERY: u32 = 5 * ROUNDS;

/// The alarm of a disk that is nearly full; the destination's name follows.
const DISK_ALARM: &str = alarms::DISK_NEARLY_FULL;
/// The alarm of a directory that ends soon or has ended.
const DIRECTORY_ALARM: &str = alarms::DIRECTORY_VALID_UNTIL;

/// What is looked at, and whom it is told.
pub struct Pulse {
    /// Clock and disk.
    pub seams: Seams,
    /// The destinations that the node serves.
    pub served: AllServed,
    /// The newest directory that was verified.
    pub newest: watch::Receiver<Arc<Directory>>,
    /// The node's alarms.
    pub alarms: Alarms,
    /// The node's metrics.
    pub meter: Meter,
    /// Whether the node is ready.
    pub ready: watch::Sender<Readiness>,
    /// What was recorded for the metrics page, if there is one.
    pub recorded: Option<Recorded>,
}

impl Pulse {
    /// Looks until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let Self { seams, served, newest, alarms, meter, ready, recorded } = self;
        let mut round = 0;
        while !stop.is_cancelled() {
            let now = status::readiness(served.values().map(Arc::as_ref));
            ready.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
            if round % ROUNDS == 0 {
                directory(&seams, &newest.borrow().clone(), &alarms, &meter);
                for served in served.values() {
                    gauges(served);
                    partitions(served);
                    free_space(&seams, served, &alarms).await;
                    if round % OFFSETS_EVERY == 0 {
                        tell_offsets(&seams, served).await;
                    }
                    served.context.alarms.show();
                }
                alarms.show();
                if let Some(recorded) = &recorded {
                    recorded.tidy();
                }
            }
            round = (round + 1) % OFFSETS_EVERY;
            tokio::select! {
                () = seams.clock.sleep(READY_EVERY) => {}
                () = stop.cancelled() => {}
            }
        }
        ready.send_replace(Readiness::waits("node", "it is stopping"));
    }
}

fn directory(seams: &Seams, newest: &Directory, alarms: &Alarms, meter: &Meter) {
    meter.set(names::DIRECTORY_VERSION, newest.version as f64);
    meter.set(names::DIRECTORY_VALID_UNTIL, newest.valid_until.0 as f64 / 1000.0);
    let until = write_time(newest.valid_until);
    let mend = "sign a newer one with `sealcast directory sign` and hand it to the nodes";
    match newest.validity(seams.clock.now()) {
        Validity::Good => alarms.clear(DIRECTORY_ALARM),
        Validity::Ending { days } => {
            let unit = if days == 1 { "day" } else { "days" };
            alarms.raise(DIRECTORY_ALARM, format!("the directory ends within {days} {unit}, at {until}: {mend}"));
        }
        Validity::Ended => {
            alarms.raise(DIRECTORY_ALARM, format!("the directory ended at {until}; its grace runs: {mend}"));
        }
        Validity::GraceEnded => {
            let text = format!("the directory and its grace ended ({until}): nothing new is admitted; {mend}");
            alarms.raise(DIRECTORY_ALARM, text);
        }
    }
}

/// Measures a store's durable commits.
pub fn measure_commits(store: &GroupStore, meter: &Meter) {
    let (commits, writes) = (meter.counter(names::STORE_COMMITS), meter.counter(names::STORE_WRITES));
    let (took, batch) = (meter.histogram(names::STORE_COMMIT_SECONDS), meter.histogram(names::STORE_COMMIT_WRITES));
    store.on_commit(move |requests, duration| {
        commits.increment(1);
        writes.increment(requests as u64);
        took.record(duration.as_secs_f64());
        batch.record(requests as f64);
    });
}

/// Which partitions of the segments topic can be reached.
fn partitions(served: &Served) {
    let context = &served.context;
    let topic = Topic::segments(&context.environment, &context.destination);
    for partition in context.transport.partitions(&topic).iter() {
        let meter = context.meter.with("topic", topic.to_string());
        let meter = meter.with("partition", partition.id.number.to_string());
        meter.set(names::TRANSPORT_PARTITION_UP, f64::from(u8::from(partition.up)));
    }
}

/// Free space of one destination's disk, and an alarm when so little is left that nothing new is taken in.
async fn free_space(seams: &Seams, served: &Served, alarms: &Alarms) {
    let context = &served.context;
    let (store, name) = (context.store.clone(), format!("{DISK_ALARM}{}", context.destination));
    // A file system that cannot say keeps its last figure; a runtime that ends has nobody to tell.
    let Ok(Ok(free)) = seams.work.run(move || store.free_bytes()).await else { return };
    context.meter.set(names::STORE_FREE_BYTES, free as f64);
    if free < RESERVED_BYTES {
        let text = format!(
            "the disk of destination {} has {free} bytes free: below {RESERVED_BYTES} nothing new is taken in, and senders \
             wait; free space on it",
            context.destination
        );
        alarms.raise(&name, text);
    } else {
        alarms.clear(&name);
    }
}

/// Tells Kafka the offsets that are durable here, for tools that show lag (R17): consumer group
/// `sealcast.<env>.<destination>.<node>`. Nothing depends on it, a missing right for it least of all.
async fn tell_offsets(seams: &Seams, served: &Served) {
    let context = served.context.clone();
    let told = seams.work.run(move || {
        let topic = Topic::segments(&context.environment, &context.destination);
        let snapshot = context.store.snapshot()?;
        let mut offsets = Vec::new();
        for partition in context.transport.partitions(&topic).iter() {
            if let Some(mark) = snapshot.offset(partition.id.number)? {
                offsets.push((partition.id.clone(), mark.offset));
            }
        }
        if !offsets.is_empty() {
            let group = format!("sealcast.{}.{}.{}", context.environment, context.destination, context.node);
            context.transport.commit_offsets(&group, &offsets);
        }
        Ok::<_, StoreError>(())
    });
    // A runtime that ends has nobody to tell; a store that cannot be read is said by whoever needs it.
    if let Ok(Err(error)) = told.await {
        tracing::debug!(%error, "offsets for lag tools were not read");
    }
}

fn gauges(served: &Served) {
    let context = &served.context;
    let (meter, progress) = (&context.meter, context.store.progress().borrow().clone());
    let state = served.group.status();
    meter.set(names::RAFT_TERM, state.term as f64);
    meter.set(names::RAFT_LEADER, f64::from(u8::from(state.role == Role::Leader)));
    meter.set(names::RAFT_LAST_INDEX, state.last_index as f64);
    meter.set(names::RAFT_APPLIED_INDEX, progress.applied as f64);
    meter.set(names::HOLD_INDEX, progress.held.index as f64);
    meter.set(names::HOLD_MISSING, progress.counts.missing as f64);
    meter.set(names::STAGE_UNDECIDED, progress.counts.undecided as f64);
    meter.set(names::STORE_BYTES, progress.counts.bytes as f64);
}
