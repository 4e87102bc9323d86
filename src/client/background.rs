//! What runs beside a client and belongs to no other part: keeping the outbox up to date, forgetting, handing queries over.
//! Must not decide anything.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::counting::Counting;
use super::options::Options;
use super::tracker::Tracker;
use crate::seams::{Clock, Seams};
use crate::telemetry::Meter;
use crate::transport::publisher::Publisher;
use crate::transport::{Record, Topic, Transport};

/// How long changes gather before the outbox remembers them; what a crash forgets of them is found again in the notices.
const RECORD_EVERY: Duration = Duration::from_millis(20);

/// How a destination's publisher is started.
pub fn publisher_of<T: Transport>(
    transport: Arc<T>,
    environment: crate::core::id::EnvironmentName,
    options: &Options,
    meter: Meter,
) -> super::publishing::StartPublisher {
    let clock = options.seams.clock.clone();
    let public = options.key.public().bytes();
    let destinations = options.directory.sender_by_key(&public).map_or(1, |entry| entry.destinations.len());
    let bytes = options.publish_bytes.min(options.publish_bytes.saturating_mul(4) / destinations.max(1));
    Box::new(move |name| {
        let topic = Topic::segments(&environment, name);
        Publisher::start(transport.clone(), topic, clock.clone(), &meter.destination(name), bytes)
    })
}

/// Hands a query to two partitions that are up, to others with each `turn`: a broker that loses queries loses only some.
/// Nobody waits for it: what is not answered is asked again.
pub fn append_query<T: Transport>(transport: &T, topic: &Topic, query: Vec<u8>, turn: usize) {
    let value = bytes::Bytes::from(query);
    let partitions = transport.partitions(topic);
    let up: Vec<_> = partitions.iter().filter(|partition| partition.up).collect();
    let first = turn.checked_rem(up.len()).unwrap_or_default();
    for partition in up.iter().cycle().skip(first).take(up.len().min(2)) {
        let record = Record { key: bytes::Bytes::new(), value: value.clone() };
        drop(transport.append(partition.id.clone(), record));
    }
}

/// Forgets, now and then, what nobody waits for.
pub async fn sweep(counting: Arc<Counting>, clock: Arc<dyn Clock>, closing: CancellationToken) {
    loop {
        tokio::select! {
            () = clock.sleep(Duration::from_secs(30)) => counting.sweep(),
            () = closing.cancelled() => return,
        }
    }
}

/// Keeps the outbox up to date with what became known.
pub async fn record(tracker: Arc<Tracker>, seams: Seams, closing: CancellationToken) {
    loop {
        let ending = tokio::select! {
            () = tracker.changed() => false,
            () = closing.cancelled() => true,
        };
        if !ending {
            seams.clock.sleep(RECORD_EVERY).await;
        }
        if let Err(error) = tracker.record().await {
            tracing::error!(%error, "the outbox does not remember what became known; it is found again in the notices");
        }
        if ending {
            return;
        }
    }
}
