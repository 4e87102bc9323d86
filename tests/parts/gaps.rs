//! R17: the log behind a stopped node's offset is another one when it starts again. Each time the node says so by an alarm that
//! lasts, reads the log again from its start, loses nothing and goes on. And where only what it had read is gone, it is silent.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealcast::core::id::Suite;
use sealcast::core::seal::transaction::PrivateHeader;
use sealcast::transport::embedded::EmbeddedOptions;
use sealcast::transport::{AnyTransport, Record, Topic, Transport, TransportOptions};

use crate::shop::{LIMIT, NODES, Shop, committed, name};

fn segments() -> Topic {
    Topic::segments(&name("test"), &name("orders"))
}

/// A log that begins behind these offsets: what lay there went by age.
async fn shortened_log(shop: &Shop, folder: &std::path::Path, behind: &[i64]) -> Arc<AnyTransport> {
    let short = other_log(shop, folder, Some(Duration::ZERO)).await;
    // Some files more than that: the newest stays.
    let far: Vec<i64> = behind.iter().map(|end| end + 100).collect();
    fill(&short, &far, 400).await;
    drop(short);
    other_log(shop, folder, None).await
}

/// Another log under the same names: empty, if the folder is; or of files that go at once when they are full.
async fn other_log(shop: &Shop, folder: &std::path::Path, retention: Option<Duration>) -> Arc<AnyTransport> {
    let options = EmbeddedOptions { retention, file_bytes: 4096, ..EmbeddedOptions::new(folder) };
    let transport = Arc::new(AnyTransport::open(&TransportOptions::Embedded(options), &shop.seams).unwrap());
    let AnyTransport::Embedded(embedded) = transport.as_ref() else { panic!("it is embedded") };
    for topic in [segments(), Topic::notices(&name("test"))] {
        if embedded.partitions(&topic).is_empty() {
            embedded.create_topic(&topic, 3).await.unwrap();
        }
    }
    transport
}

/// The end of each partition.
async fn ends(transport: &AnyTransport) -> Vec<i64> {
    let mut ends = Vec::new();
    for partition in transport.partitions(&segments()).iter() {
        ends.push(match transport.read(partition.id.clone(), 0).await {
            Ok(batch) => batch.end,
            Err(sealcast::transport::ReadError::OutOfRange { end, .. }) => end,
            Err(error) => panic!("{error}"),
        });
    }
    ends
}

/// Appends records that are no segments until every partition ends behind this.
async fn fill(transport: &AnyTransport, behind: &[i64], bytes: usize) {
    let partitions = transport.partitions(&segments());
    let mut ends = [0; 3];
    while ends.iter().zip(behind).any(|(end, behind)| end <= behind) {
        for (partition, end) in partitions.iter().zip(&mut ends) {
            let record = Record { key: Bytes::new(), value: vec![7; bytes].into() };
            *end = transport.append(partition.id.clone(), record).unwrap().await.unwrap().offset + 1;
        }
    }
}

async fn stop_all(shop: &mut Shop) {
    for node in NODES {
        shop.stop(node).await;
    }
}

/// Starts all nodes over this log.
async fn start_over(shop: &mut Shop, transport: &Arc<AnyTransport>) {
    shop.transport = transport.clone();
    for node in NODES {
        shop.start(node).await;
    }
    shop.ready().await;
}

/// The texts of a node's gap alarms.
async fn gaps(shop: &Shop, node: &str) -> Vec<String> {
    let alarms = shop.status(node, "orders").await.alarms.into_iter();
    alarms.filter(|alarm| alarm.name.starts_with("gap-")).map(|alarm| alarm.text).collect()
}

/// Waits until every node has an alarm of this kind for each partition; then a person has looked at them.
async fn alarmed(shop: &Shop, what: &str) {
    for node in NODES {
        let raised = async {
            loop {
                let found = gaps(shop, node).await;
                if found.iter().filter(|text| text.contains(what)).count() == 3 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let raised = tokio::time::timeout(LIMIT, raised).await;
        if raised.is_err() {
            panic!("{node} has no alarm about {what:?}: {:?}", gaps(shop, node).await);
        }
        let alarms = &shop.nodes[&name(node)].served()[&name("orders")].context.alarms;
        for number in 0..3 {
            assert!(alarms.acknowledge(&format!("gap-{number}")).await.unwrap(), "it is kept until somebody looked");
        }
    }
}

/// Publishes a transaction to a log.
async fn publish(shop: &mut Shop, transport: &Arc<AnyTransport>, payload: &[u8]) -> PrivateHeader {
    let header = shop.header(payload);
    let stripes = shop.seal(&[(header.clone(), payload)], Suite::X25519);
    let nodes = std::mem::replace(&mut shop.transport, transport.clone());
    shop.publish(&stripes).await;
    shop.transport = nodes;
    header
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_whatever_became_of_the_log_behind_a_stopped_nodes_offset_is_said_and_nothing_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let mut shop = Shop::with_nodes().await;
    for _ in 0..3 {
        let header = shop.header(b"before");
        shop.send(&header, b"before").await;
        committed(&shop.receipts(&header, 3).await);
    }
    let first = shop.transport.clone();
    let read = ends(&first).await;
    assert!(read.iter().all(|end| *end >= 6), "every partition was read from: {read:?}");

    // The log was deleted: offsets stand above its end. What comes after is read all the same.
    stop_all(&mut shop).await;
    let empty = other_log(&shop, &folder.path().join("empty"), None).await;
    let early = publish(&mut shop, &empty, b"early").await;
    start_over(&mut shop, &empty).await;
    committed(&shop.receipts(&early, 3).await);
    alarmed(&shop, "is above the end").await;
    let after = shop.header(b"after");
    shop.send(&after, b"after").await;
    committed(&shop.receipts(&after, 3).await);

    // Deleted, and filled again beyond the offsets: what lies before them now was never read.
    stop_all(&mut shop).await;
    let read = ends(&empty).await;
    let refilled = other_log(&shop, &folder.path().join("refilled"), None).await;
    let behind = publish(&mut shop, &refilled, b"behind the offsets").await;
    fill(&refilled, &read, 40).await;
    start_over(&mut shop, &refilled).await;
    committed(&shop.receipts(&behind, 3).await);
    alarmed(&shop, "is not the one that was read").await;

    // Records went before they were read: retention was shorter than the outage.
    stop_all(&mut shop).await;
    let read = ends(&refilled).await;
    let shortened = shortened_log(&shop, &folder.path().join("shortened"), &read).await;
    let last = publish(&mut shop, &shortened, b"after all that").await;
    start_over(&mut shop, &shortened).await;
    committed(&shop.receipts(&last, 3).await);
    alarmed(&shop, "is below the low watermark").await;

    // Nothing more became of it: nothing more is said.
    shop.stop("b").await;
    shop.start("b").await;
    shop.ready().await;
    let more = shop.header(b"quiet");
    shop.send(&more, b"quiet").await;
    committed(&shop.receipts(&more, 3).await);
    assert_eq!(gaps(&shop, "b").await, [""; 0]);
    for header in [&early, &after, &behind, &last, &more] {
        shop.get("b", header).await.unwrap();
    }
    shop.agree().await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_what_is_lost_of_a_log_of_which_nothing_was_read_yet_is_a_gap_too() {
    let folder = tempfile::tempdir().unwrap();
    // Nodes that see empty partitions, and are stopped.
    let mut shop = Shop::with_nodes().await;
    for node in NODES {
        let store = shop.nodes[&name(node)].served()[&name("orders")].context.store.clone();
        let seen = async {
            while (0..3).any(|number| store.snapshot().unwrap().offset(number).unwrap().is_none()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, seen).await.expect("where it begins to read is written down");
    }
    stop_all(&mut shop).await;
    let shortened = shortened_log(&shop, &folder.path().join("shortened"), &[10; 3]).await;
    start_over(&mut shop, &shortened).await;
    alarmed(&shop, "is below the low watermark").await;
    let header = shop.header(b"after");
    shop.send(&header, b"after").await;
    committed(&shop.receipts(&header, 3).await);
    shop.shut().await;

    // A node that sees a partition for the first time has lost nothing.
    let mut shop = Shop::open().await;
    let begun_late = shortened_log(&shop, &folder.path().join("late"), &[10; 3]).await;
    start_over(&mut shop, &begun_late).await;
    let header = shop.header(b"first");
    shop.send(&header, b"first").await;
    committed(&shop.receipts(&header, 3).await);
    for node in NODES {
        assert_eq!(gaps(&shop, node).await, [""; 0]);
    }
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_a_gap_is_said_once_though_the_node_starts_again_before_anything_else_comes() {
    let folder = tempfile::tempdir().unwrap();
    let mut shop = Shop::with_nodes().await;
    let header = shop.header(b"before");
    shop.send(&header, b"before").await;
    committed(&shop.receipts(&header, 3).await);
    stop_all(&mut shop).await;
    let empty = other_log(&shop, folder.path(), None).await;
    start_over(&mut shop, &empty).await;
    alarmed(&shop, "is above the end").await;
    stop_all(&mut shop).await;
    start_over(&mut shop, &empty).await;
    let header = shop.header(b"after");
    shop.send(&header, b"after").await;
    committed(&shop.receipts(&header, 3).await);
    for node in NODES {
        assert_eq!(gaps(&shop, node).await, [""; 0], "where the log begins again was written down");
    }
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_a_log_that_became_another_while_nodes_could_not_reach_it_is_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("served");
    let private = || {
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    };
    private();
    let mut shop = Shop::open().await;
    shop.transport = other_log(&shop, &path, None).await;
    let service = shop.transport.serve(&shop.seams).unwrap().unwrap();
    for node in NODES {
        let attached = AnyTransport::open(&TransportOptions::Attached(path.clone()), &shop.seams).unwrap();
        shop.start_over(node, Arc::new(attached)).await;
    }
    shop.ready().await;
    let header = shop.header(b"before");
    shop.send(&header, b"before").await;
    committed(&shop.receipts(&header, 3).await);
    let read = ends(&shop.transport).await;

    // The process that served it ends in good order, and another one serves another log, with more in it than was read.
    service.stop().await;
    let elsewhere = other_log(&shop, &folder.path().join("elsewhere"), None).await;
    drop(std::mem::replace(&mut shop.transport, elsewhere));
    std::fs::remove_dir_all(&path).unwrap();
    private();
    shop.transport = other_log(&shop, &path, None).await;
    let behind = shop.header(b"behind the offsets");
    shop.send(&behind, b"behind the offsets").await;
    fill(&shop.transport, &read, 40).await;
    let service = shop.transport.serve(&shop.seams).unwrap().unwrap();
    committed(&shop.receipts(&behind, 3).await);
    alarmed(&shop, "is not the one that was read").await;
    for node in NODES {
        shop.get(node, &header).await.unwrap();
    }
    stop_all(&mut shop).await;
    service.stop().await;
}
