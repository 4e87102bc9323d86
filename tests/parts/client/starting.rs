//! Starting against brokers that answer late: nothing that nodes say in the meantime is missed.

use std::sync::Arc;
use std::time::Duration;

use sealcast::client::{Client, Transaction};
use sealcast::core::receipt::Verdict;
use sealcast::transport::embedded::Embedded;
use sealcast::transport::{
    Ack, Batch, Full, Offset, Partition, PartitionId, Pending, ReadError, Record, Topic, Transport,
};
use tokio::sync::watch;

use crate::client::world::World;

/// The embedded transport, whose notices nobody can read until they are let go.
struct Late {
    inner: Arc<Embedded>,
    notices: watch::Receiver<bool>,
}

impl Transport for Late {
    fn partitions(&self, topic: &Topic) -> Arc<[Partition]> {
        self.inner.partitions(topic)
    }

    fn append(&self, to: PartitionId, record: Record) -> Result<Pending<Ack>, Full<Record>> {
        self.inner.append(to, record)
    }

    async fn read(&self, from: PartitionId, at: Offset) -> Result<Batch, ReadError> {
        if from.topic.as_str().ends_with(".notices") {
            let mut notices = self.notices.clone();
            notices.wait_for(|readable| *readable).await.unwrap();
        }
        self.inner.read(from, at).await
    }
}

#[tokio::test]
async fn a_receipt_said_before_notices_can_be_read_is_found() {
    let world = World::new(3).await;
    let (let_go, notices) = watch::channel(false);
    let late = Arc::new(Late { inner: world.transport.clone(), notices });
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
