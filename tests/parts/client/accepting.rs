//! When a client says *accepted* (R14).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sealcast::client::{Client, Stage, Transaction, Waited};
use sealcast::core::receipt::is_query;
use sealcast::core::split::segment::Segment;
use sealcast::transport::embedded::Embedded;
use sealcast::transport::{
    Ack, Batch, Full, Offset, Partition, PartitionId, Pending, ReadError, Record, Topic, Transport,
};

use crate::client::world::World;

/// Brokers that have no room for any stripe but the first, until they do.
struct Short {
    brokers: Arc<Embedded>,
    room: AtomicBool,
}

impl Transport for Short {
    fn partitions(&self, topic: &Topic) -> Arc<[Partition]> {
        self.brokers.partitions(topic)
    }

    fn append(&self, to: PartitionId, record: Record) -> Result<Pending<Ack>, Full<Record>> {
        let later = !is_query(&record.value) && Segment::parse(&record.value).unwrap().header().stripe > 0;
        if later && !self.room.load(Ordering::SeqCst) {
            return Err(Full(record));
        }
        self.brokers.append(to, record)
    }

    async fn read(&self, from: PartitionId, at: Offset) -> Result<Batch, ReadError> {
        self.brokers.read(from, at).await
    }
}

#[tokio::test]
async fn r14_accepted_is_said_of_every_stripe_or_not_at_all() {
    let world = World::new(3).await;
    let short = Arc::new(Short { brokers: world.transport.clone(), room: false.into() });
    let client = Client::start(short.clone(), world.options()).await.unwrap();
    let handle = client.submit("orders", Transaction::new(vec![7; 3_000_000])).await.unwrap();
    // The first of its stripes is where it should be.
    let all_of_one = |records: &[Record]| {
        let first = records.first().map(|record| Segment::parse(&record.value).unwrap());
        first.is_some_and(|segment| records.len() == segment.header().core.profile.n())
    };
    while !all_of_one(&world.records("orders").await) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let waited = handle.wait(Stage::Accepted, Duration::from_millis(500)).await.unwrap();
    assert!(matches!(waited, Waited::Unknown), "{waited:?}");
    assert!(world.open("orders").await.is_empty());
    short.room.store(true, Ordering::SeqCst);
    handle.accepted().await.unwrap();
    assert_eq!(world.open("orders").await.len(), 1);
    client.close().await;
}
