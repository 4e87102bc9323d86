//! What nodes owe their senders reaches them though nobody hears for a while: while no broker takes notices, and over a
//! restart.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::shop::{LIMIT, NODES, Said, Shop, name};
use sealcast::core::directory::{Directory, Draft};
use sealcast::core::id::{Suite, TransactionId};
use sealcast::core::limits;
use sealcast::core::receipt::Directories;
use sealcast::core::seal::transaction::PrivateHeader;
use sealcast::keys::{OperatorKey, SecretFile};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Statements that may be in memory, as docs/operations.md says.
const IN_MEMORY: f64 = 16_384.0;

/// Sends so many transactions, as many as fit in one parcel.
async fn send_many(shop: &mut Shop, count: usize) -> BTreeSet<TransactionId> {
    let mut sent = BTreeSet::new();
    while sent.len() < count {
        let some = (count - sent.len()).min(limits::TRANSACTIONS_PER_PARCEL);
        let headers: Vec<PrivateHeader> = (0..some).map(|_| shop.header(b"one of many")).collect();
        sent.extend(headers.iter().map(|header| header.id));
        let parcel: Vec<_> = headers.into_iter().map(|header| (header, b"one of many".as_slice())).collect();
        let stripes = shop.seal(&parcel, Suite::X25519);
        shop.publish(&stripes).await;
    }
    sent
}

/// Waits until every node has applied so many commits.
async fn committed_everywhere(shop: &Shop, count: usize) {
    for node in shop.nodes.values() {
        let mut progress = node.served().values().next().unwrap().context.store.progress();
        let all = progress.wait_for(|progress| progress.counts.committed == count as u64);
        tokio::time::timeout(LIMIT * 2, all).await.expect("they are committed").unwrap();
    }
}

/// Waits until what was said fulfils `enough`.
async fn until_said(shop: &Shop, directories: &Directories, what: &str, enough: impl Fn(&Said) -> bool) {
    let saying = async {
        while !enough(&shop.all_said(directories).await) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LIMIT, saying).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

fn of_all(sent: &BTreeSet<TransactionId>) -> impl Fn(&Said) -> bool {
    move |(said, _)| NODES.iter().all(|node| said.get(*node).is_some_and(|of| of == sent))
}

/// A destination of one test alone: what is measured is of the whole process, and so of other tests' nodes too.
const WATCHED: &str = "told";

/// How many statements wait in a node's memory, as its metrics say.
async fn waiting(pages: std::net::SocketAddr) -> f64 {
    let mut stream = tokio::net::TcpStream::connect(pages).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("sealcast_receipt_waiting_statements{"));
    lines
        .find(|line| line.contains("node=\"b\"") && line.contains(WATCHED))
        .map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn r13_while_no_broker_takes_receipts_the_store_is_their_queue_and_all_of_them_come() {
    // More than may wait in memory.
    let count = IN_MEMORY as usize + limits::TRANSACTIONS_PER_PARCEL;
    let mut shop = Shop::open_silent(&[WATCHED]).await;
    shop.start("a").await;
    shop.http = Some("127.0.0.1:0".to_owned());
    shop.start("b").await;
    shop.http = None;
    shop.start("c").await;
    shop.ready().await;
    let pages = shop.nodes[&name("b")].http_address().unwrap();
    let sent = send_many(&mut shop, count).await;
    committed_everywhere(&shop, count).await;
    let full = async {
        while waiting(pages).await < IN_MEMORY {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LIMIT, full).await.expect("what is committed waits to be said");
    assert_eq!(waiting(pages).await, IN_MEMORY, "no more than may");
    shop.make_notices().await;
    let directories = Directories::from([(1, shop.directory.clone())]);
    until_said(&shop, &directories, "every receipt of every node", of_all(&sent)).await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r13_what_was_not_said_before_a_restart_is_said_after_it() {
    let mut shop = Shop::open_silent(&["orders"]).await;
    for node in NODES {
        shop.start(node).await;
    }
    shop.ready().await;
    let sent = send_many(&mut shop, 2 * limits::TRANSACTIONS_PER_PARCEL).await;
    committed_everywhere(&shop, sent.len()).await;
    // A directory comes in force, and nothing is committed under it.
    let operator = OperatorKey::read(&shop.written.operator_key).unwrap().signing().clone();
    let mut draft = Draft::after(&shop.directory);
    draft.grace = Duration::from_secs(99);
    let bytes = draft.sign(&operator).unwrap();
    let next = Arc::new(Directory::verify(&bytes, &operator.public(), 1).unwrap());
    std::fs::write(shop.written.nodes[&name("a")].parent().unwrap().join("directory"), &bytes).unwrap();
    assert!(shop.nodes[&name("a")].reload_directory().unwrap());
    for node in shop.nodes.values() {
        let mut in_force = node.served()[&name("orders")].context.in_force.clone();
        let there = in_force.wait_for(|directory| directory.version == 2);
        tokio::time::timeout(LIMIT, there).await.expect("it comes in force").unwrap();
    }
    let stopping: Vec<_> = std::mem::take(&mut shop.nodes).into_values().collect();
    futures_util::future::join_all(stopping.iter().map(|node| node.shutdown())).await;
    shop.make_notices().await;
    let directories = Directories::from([(1, shop.directory.clone()), (2, next)]);
    assert_eq!(shop.all_said(&directories).await, Said::default(), "nobody heard anything so far");
    for node in NODES {
        shop.start(node).await;
    }
    until_said(&shop, &directories, "every receipt of every node", of_all(&sent)).await;
    // Each of the three nodes, in two domains, whoever led.
    let everywhere = |(_, told): &Said| told.get(&2).is_some_and(|copies| *copies >= 2 * NODES.len());
    until_said(&shop, &directories, "the directory in force", everywhere).await;
    shop.shut().await;
}
