//! Starting against brokers that answer late: nothing that nodes say in the meantime is missed.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sealcast::client::{Client, Transaction};
use sealcast::core::id::Time;
use sealcast::core::receipt::{Statement, Verdict, sign_receipts};
use sealcast::seams::Clock;
use sealcast::transport::embedded::Embedded;
use sealcast::transport::{
    Ack, Batch, Full, Offset, Partition, PartitionId, Pending, ReadError, Record, Topic, Transport,
};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::client::world::{World, destination};

/// The embedded transport, whose notices nobody can read until they are let go, in the partitions from `first` on; or of whose
/// topic nobody knows until then.
struct Late {
    inner: Arc<Embedded>,
    notices: watch::Receiver<bool>,
    first: i32,
    unknown: bool,
}

impl Transport for Late {
    fn partitions(&self, topic: &Topic) -> Arc<[Partition]> {
        match self.unknown && topic.as_str().ends_with(".notices") && !*self.notices.borrow() {
            true => Arc::from([]),
            false => self.inner.partitions(topic),
        }
    }

    fn append(&self, to: PartitionId, record: Record) -> Result<Pending<Ack>, Full<Record>> {
        self.inner.append(to, record)
    }

    async fn read(&self, from: PartitionId, at: Offset) -> Result<Batch, ReadError> {
        if from.topic.as_str().ends_with(".notices") && from.number >= self.first {
            let mut notices = self.notices.clone();
            notices.wait_for(|readable| *readable).await.unwrap();
        }
        self.inner.read(from, at).await
    }
}

/// A majority of the nodes says it, in one partition.
async fn say_at(world: &World, partition: i32, statement: &Statement) {
    let tag = world.directory.destinations[&destination("orders")].tag;
    for (node, key) in world.nodes.iter().take(2) {
        for record in sign_receipts(key, node, tag, world.directory.version, std::slice::from_ref(statement)) {
            world.publish_at(partition, record).await;
        }
    }
}

#[tokio::test]
async fn r13_what_was_said_before_is_found_though_the_topic_is_not_known_yet() {
    let world = World::new(3).await;
    // A ticket of another process, with its fate.
    let mut options = world.options();
    options.outbox.folder = None;
    let other = Client::start(world.transport.clone(), options).await.unwrap();
    let decided = other.submit("orders", Transaction::new("x")).await.unwrap();
    let opened = world.opened("orders", 1).await;
    say_at(&world, 0, &world.statement(&opened[0], 0, Verdict::Committed)).await;
    decided.committed().await.unwrap();
    other.close().await;
    // A client whose outbox says from where on it has to read, which is behind that; and nobody waits for brokers when it starts.
    let client = Client::start(world.transport.clone(), world.options()).await.unwrap();
    client.submit("orders", Transaction::new("kept")).await.unwrap();
    client.close().await;
    let (let_go, notices) = watch::channel(false);
    let late = Arc::new(Late { inner: world.transport.clone(), notices, first: 0, unknown: true });
    let client = Client::start(late, world.options()).await.unwrap();
    let attached = client.attach(decided.ticket()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let_go.send_replace(true);
    let heard = tokio::time::timeout(Duration::from_secs(20), attached.committed()).await;
    heard.expect("it is found without asking").unwrap();
    client.close().await;
}

#[tokio::test]
async fn a_receipt_said_before_notices_can_be_read_is_found() {
    let world = World::new(3).await;
    let (let_go, notices) = watch::channel(false);
    let late = Arc::new(Late { inner: world.transport.clone(), notices, first: 0, unknown: false });
    let client = Client::start(late, world.options()).await.unwrap();
    let handle = client.submit("orders", Transaction::new("x")).await.unwrap();
    let opened = world.opened("orders", 1).await;
    let committed = world.statement(&opened[0], 0, Verdict::Committed);
    for node in ["alfa", "bravo"] {
        world.say(node, "orders", std::slice::from_ref(&committed)).await;
    }
    let_go.send_replace(true);
    // Nodes say it once: what is missed now is not heard of before the client asks or sends again, half a minute later.
    let heard = tokio::time::timeout(Duration::from_secs(20), handle.committed()).await;
    heard.expect("it is heard without asking").unwrap();
    client.close().await;
}

/// A cluster that nobody reaches: it knows no topic. Remembers when it was first asked.
#[derive(Default)]
struct Nowhere(OnceLock<Instant>);

impl Transport for Nowhere {
    fn partitions(&self, _topic: &Topic) -> Arc<[Partition]> {
        self.0.get_or_init(Instant::now);
        Arc::from([])
    }

    fn append(&self, _to: PartitionId, record: Record) -> Result<Pending<Ack>, Full<Record>> {
        Err(Full(record))
    }

    async fn read(&self, from: PartitionId, _at: Offset) -> Result<Batch, ReadError> {
        Err(ReadError::Absent { partition: from, cause: "nobody is there".to_owned() })
    }
}

/// The time of tokio's timers, which can be paused.
#[derive(Debug)]
struct Paused(Instant);

impl Clock for Paused {
    fn now(&self) -> Time {
        Time(1_800_000_000_000).after(self.monotonic())
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(duration))
    }
}

#[tokio::test]
async fn connecting_waits_once_for_all_that_is_not_there() {
    let world = World::new(3).await;
    tokio::time::pause();
    let mut options = world.options();
    options.seams.clock = Arc::new(Paused(Instant::now()));
    let nowhere = Arc::new(Nowhere::default());
    let client = Client::start(nowhere.clone(), options).await.unwrap();
    let waited = nowhere.0.get().unwrap().elapsed();
    assert!(waited < Duration::from_secs(3), "2 s for the notices and the destinations together, not each: {waited:?}");
    assert_eq!(client.trouble(&"orders".parse().unwrap()), None, "this transport cannot tell");
    tokio::time::resume();
    client.close().await;
}

#[tokio::test]
async fn one_partition_of_notices_that_cannot_be_read_holds_no_fate_up() {
    let world = World::new(3).await;
    let (_never, notices) = watch::channel(false);
    let late = Arc::new(Late { inner: world.transport.clone(), notices, first: 1, unknown: false });
    let client = Client::start(late, world.options()).await.unwrap();
    let handle = client.submit("orders", Transaction::new("x")).await.unwrap();
    let opened = world.opened("orders", 1).await;
    let committed = world.statement(&opened[0], 0, Verdict::Committed);
    // Every node says it in two domains.
    for partition in [0, 1] {
        say_at(&world, partition, &committed).await;
    }
    tokio::time::timeout(Duration::from_secs(20), handle.committed()).await.expect("it is heard").unwrap();
    client.close().await;
}
