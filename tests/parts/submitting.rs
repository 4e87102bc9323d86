//! A service's client against three nodes: everything that can be said of a transaction has its effect at every destination,
//! and a fate that was not heard is asked for.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::brokers::nodes::Patient;
use crate::shop::{LIMIT, NODES, Shop, name};
use bytes::Bytes;
use futures_util::StreamExt;
use sealcast::client::reader::{Committed, Freshness, Reader};
use sealcast::client::{Client, Handle, Options, Stage, Transaction, WaitError, Waited};
use sealcast::config::{ClientConfig, Sources};
use sealcast::core::id::{DestinationName, Epoch, OnPredecessor, Position, Rejection, Ticket, TransactionId};
use sealcast::core::receipt::{Query, is_query};
use sealcast::seams::ManualClock;
use sealcast::transport::{
    Ack, AnyTransport, Batch, Full, Offset, Partition, PartitionId, Pending, ReadError, Record, Topic, Transport,
};

const BOTH: [&str; 2] = ["billing", "orders"];
const MOMENT: Duration = Duration::from_millis(300);

/// The sender's client as its configuration says, with an outbox in memory.
pub fn options(shop: &Shop) -> Options {
    let config = ClientConfig::load(&Sources::file(&shop.written.senders[&name("web")])).unwrap();
    let mut options = Options::from_config(&config, shop.seams.clone()).unwrap();
    options.outbox.folder = None;
    options
}

pub async fn start(shop: &Shop) -> Client {
    Client::start(shop.transport.clone(), options(shop)).await.unwrap()
}

pub fn reader(shop: &Shop) -> Reader {
    let config = ClientConfig::load(&Sources::file(&shop.written.readers[&name("app")])).unwrap();
    Reader::from_config(&config, &shop.seams).unwrap()
}

async fn read(reader: &Reader, handle: &Handle, position: Position) -> (Committed, Bytes) {
    let ticket = handle.ticket();
    let freshness =
        Freshness { at_least: Some(position), timeout: Some(Duration::from_secs(30)), ..Default::default() };
    let mut feed = reader.get(ticket.transaction, Some(&ticket.destination), freshness).await.unwrap();
    feed.transaction(16 << 20).await.unwrap().expect("it has it")
}

pub async fn position(handle: &Handle) -> Position {
    tokio::time::timeout(LIMIT, handle.committed()).await.expect("a fate").unwrap().position.unwrap()
}

pub async fn rejection(handle: &Handle) -> Rejection {
    match tokio::time::timeout(LIMIT, handle.committed()).await.expect("a fate") {
        Err(WaitError::Rejected(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

/// A W3C trace context.
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_a_transaction_has_its_effect_at_each_destination() {
    let shop = Shop::with_nodes_for(&BOTH).await;
    let (client, reader) = (start(&shop).await, reader(&shop));
    let [billing, orders]: [DestinationName; 2] = BOTH.map(name);
    let both = [orders.clone(), billing.clone()];

    // Headers, content type, compression, padding; from memory and from a file.
    let said = |transaction: Transaction| {
        transaction.header("language", "en").header("language", "de").content_type("text/plain").compress().pad()
    };
    let text = "ten nails ".repeat(70_000);
    let (first, file) = tokio::join!(
        client.submit_to(&both, said(Transaction::new(text.clone()).key("k").idempotency_key("once").trace(TRACE))),
        client.submit_file_to(&both, said(Transaction::new("")), Cursor::new(text.as_bytes().to_vec())),
    );
    let (first, file) = (first.unwrap(), file.unwrap());
    for (number, handle) in first.iter().chain(&file).enumerate() {
        let at = position(handle).await;
        let (committed, payload) = read(&reader, handle, at).await;
        assert!(payload == text.as_bytes(), "{handle:?}");
        assert_eq!((committed.sender.as_str(), committed.position), ("web", at));
        let with = (number < first.len()).then_some(("once".as_bytes(), TRACE));
        let got = (committed.idempotency_key.as_deref(), committed.trace.as_deref());
        assert_eq!(got, (with.map(|with| with.0), with.map(|with| with.1)));
        let headers = [("language".to_owned(), Bytes::from("en")), ("language".to_owned(), Bytes::from("de"))];
        assert_eq!((committed.headers, committed.content_type.as_deref()), (headers.to_vec(), Some("text/plain")));
    }

    // An idempotency key has one effect: a later transaction learns of the first.
    let repeat = client.submit("orders", Transaction::new("again").idempotency_key("once")).await.unwrap();
    assert_eq!(rejection(&repeat).await, Rejection::Duplicate);
    assert_eq!(repeat.receipt().unwrap().first, Some(first[0].ticket().transaction));

    // One outcome each: the key moves on in one destination alone, and there the next loses its race.
    let (in_orders, in_billing) = (position(&first[0]).await, position(&first[1]).await);
    let moved = client.submit("orders", Transaction::new("moved").key("k").expected_version(in_orders)).await.unwrap();
    let moved = position(&moved).await;
    let race = |in_orders| {
        let transaction = Transaction::new("race").key("k").on_predecessor(OnPredecessor::GoOn);
        let there = |transaction: Transaction| transaction.expected_version_at(orders.clone(), in_orders);
        there(transaction.expected_version(in_billing))
    };
    let lost = client.submit_to(&both, race(in_orders)).await.unwrap();
    assert_eq!(rejection(&lost[0]).await, Rejection::Conflict);
    position(&lost[1]).await;
    let won = client.submit_to(&both, race(moved)).await.unwrap();
    position(&won[0]).await;
    assert_eq!(rejection(&won[1]).await, Rejection::Conflict, "its version moved on there");

    // What follows something that never comes waits, and expires at its deadline.
    let never = TransactionId::from_parts(shop.seams.clock.now(), [9; 10]);
    let deadline = shop.seams.clock.now().after(Duration::from_secs(600));
    let never = Ticket { destination: orders.clone(), transaction: never, deadline };
    let late = Transaction::new("late").after(never).deadline(Duration::from_secs(2));
    let late = client.submit("orders", late).await.unwrap();
    let ended = tokio::time::timeout(LIMIT, late.committed()).await.expect("a fate");
    assert!(matches!(ended, Err(WaitError::Expired)), "{ended:?}");

    // Many in their order.
    let many = futures_util::stream::iter((0..20).map(|number| Transaction::new(format!("{number}")).key("many")));
    let handles: Vec<_> = client.submit_all(&both, many).map(Result::unwrap).collect().await;
    for at in 0..both.len() {
        let mut positions = Vec::new();
        for handles in &handles {
            positions.push(position(&handles[at]).await);
        }
        assert!(positions.is_sorted(), "{positions:?}");
    }
    client.close().await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r05_release_on_complete_waits_for_the_last_voter() {
    let mut shop = Shop::with_nodes().await;
    shop.stop("c").await;
    let client = start(&shop).await;
    let first = client.submit("orders", Transaction::new("1").key("k")).await.unwrap();
    let before = position(&first).await;
    let next = client.submit("orders", Transaction::new("2").key("k").release_on_complete()).await.unwrap();
    let other = client.submit("orders", Transaction::new("3").key("other")).await.unwrap();
    position(&other).await;
    assert_eq!(next.wait(Stage::Committed, MOMENT).await.unwrap(), Waited::Unknown, "its predecessor is not complete");
    shop.start("c").await;
    assert!(position(&next).await > before);
    tokio::time::timeout(LIMIT, first.complete()).await.expect("it is complete").unwrap();
    client.close().await;
    shop.shut().await;
}

/// A transport whose notices before some offsets never reach its reader.
struct Lossy {
    inner: Arc<AnyTransport>,
    lost_below: Mutex<BTreeMap<i32, Offset>>,
}

impl Lossy {
    fn new(shop: &Shop) -> Arc<Self> {
        let every = (0..16).map(|partition| (partition, Offset::MAX)).collect();
        Arc::new(Self { inner: shop.transport.clone(), lost_below: Mutex::new(every) })
    }

    /// What is said from now on is heard.
    async fn hear(&self) {
        for partition in self.inner.partitions(&Topic::notices(&name("test"))).iter() {
            let end = match self.inner.read(partition.id.clone(), 0).await {
                Ok(Batch { end, .. }) | Err(ReadError::OutOfRange { end, .. }) => end,
                Err(error) => panic!("{error}"),
            };
            self.lost_below.lock().unwrap().insert(partition.id.number, end);
        }
    }
}

impl Transport for Lossy {
    fn partitions(&self, topic: &Topic) -> Arc<[Partition]> {
        self.inner.partitions(topic)
    }

    fn append(&self, to: PartitionId, record: Record) -> Result<Pending<Ack>, Full<Record>> {
        self.inner.append(to, record)
    }

    async fn read(&self, from: PartitionId, at: Offset) -> Result<Batch, ReadError> {
        let mut batch = self.inner.read(from.clone(), at).await?;
        if from.topic == Topic::notices(&name("test")) {
            let below = self.lost_below.lock().unwrap()[&from.number];
            batch.records.retain(|record| record.offset >= below);
        }
        Ok(batch)
    }
}

/// The queries on the segments topic, each once.
async fn queries(shop: &Shop) -> Vec<Query> {
    let tag = shop.directory.destinations[&name("orders")].tag;
    let mut found = BTreeMap::new();
    for partition in shop.transport.partitions(&Topic::segments(&name("test"), &name("orders"))).iter() {
        let mut at = 0;
        while let Ok(batch) = shop.transport.read(partition.id.clone(), at).await {
            for value in batch.records.iter().filter_map(|record| record.value.as_ref()).filter(|it| is_query(it)) {
                let (sender, query) = Query::verify(value, tag, &shop.directory).unwrap();
                assert_eq!(sender.as_str(), "web");
                found.insert(value.clone(), query);
            }
            at = batch.next;
            if at >= batch.end {
                break;
            }
        }
    }
    let mut queries: Vec<_> = found.into_values().collect();
    queries.sort_by_key(|query| query.time);
    queries
}

async fn queries_come(shop: &Shop, count: usize) -> Vec<Query> {
    let coming = async {
        loop {
            let queries = queries(shop).await;
            if queries.len() >= count {
                return queries;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, coming).await.expect("the client asks")
}

#[tokio::test(flavor = "multi_thread")]
async fn r13_a_fate_that_was_not_heard_is_asked_for() {
    let shop = Shop::with_nodes().await;
    let (lossy, clock) = (Lossy::new(&shop), Arc::new(ManualClock::new(shop.seams.clock.now())));
    let mut options = options(&shop);
    options.seams.clock = clock.clone();
    let client = Client::start(lossy.clone(), options).await.unwrap();
    let transaction = Transaction::new("x").deadline(Duration::from_secs(600));
    let handle = client.submit("orders", transaction).await.unwrap();
    let freshness = Freshness { linearizable: true, timeout: Some(Duration::from_secs(30)), ..Default::default() };
    let reader = reader(&shop);
    let held = async {
        while reader.get(handle.ticket().transaction, None, freshness).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, held).await.expect("it is committed");
    assert_eq!(handle.wait(Stage::Committed, MOMENT).await.unwrap(), Waited::Unknown, "its receipts are lost");
    assert!(queries(&shop).await.is_empty(), "nobody asks before its time");

    // Past the deadline nothing is sent again; the nodes are asked, now and then.
    clock.advance(Duration::from_secs(610));
    let asked = queries_come(&shop, 1).await;
    assert_eq!(asked[0].asked[0].0, handle.ticket().transaction);
    assert!(asked[0].asked[0].2.is_some(), "its payload tag");
    // Ticks go by and nothing is due; then the next question is.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(queries(&shop).await.len(), 1);
    lossy.hear().await;
    clock.advance(Duration::from_secs(6));
    let receipt = tokio::time::timeout(LIMIT, handle.committed()).await.expect("they answer").unwrap();
    assert_eq!(queries(&shop).await.len(), 2);

    // Another process, with nothing but the ticket and long after the deadline, hears the same.
    let other = start(&shop).await;
    let again = other.attach(handle.ticket()).await.unwrap();
    assert_eq!(again.payload_bytes(), None);
    let heard = tokio::time::timeout(LIMIT, again.committed()).await.expect("what was said is found").unwrap();
    assert_eq!((heard.position, heard.fate), (receipt.position, receipt.fate));
    // A ticket of which the nodes never saw anything has expired when its deadline has passed.
    let past = shop.seams.clock.now().0 - 60_000;
    let unseen = TransactionId::from_parts(sealcast::core::id::Time(past - 1000), [8; 10]);
    let deadline = sealcast::core::id::Time(past);
    let unseen = Ticket { destination: name("orders"), transaction: unseen, deadline };
    let unseen = other.attach(&unseen).await.unwrap();
    let ended = tokio::time::timeout(LIMIT, unseen.committed()).await.expect("they answer");
    assert!(matches!(ended, Err(WaitError::Expired)), "{ended:?}");
    other.close().await;
    client.close().await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r13_nodes_answer_a_sender_now_and_then_however_often_it_asks() {
    const ASKED: u64 = 200;
    let mut shop = Shop::open().await;
    let clock = Arc::new(Patient::new());
    shop.seams.clock = clock.clone();
    for node in NODES {
        shop.start(node).await;
    }
    shop.ready().await;
    let header = shop.header(b"asked for");
    shop.send(&header, b"asked for").await;
    shop.receipts(&header, 3).await;
    let before: usize = shop.said(&header).await.values().sum();
    let tag = shop.directory.destinations[&name("orders")].tag;
    let to = shop.transport.partitions(&Topic::segments(&name("test"), &name("orders")))[0].id.clone();
    let now = shop.seams.clock.now();
    // However long a slow machine takes over them, it is not long for the nodes.
    clock.go(10);
    for number in 0..ASKED {
        let asked = vec![(header.id, header.deadline, None)];
        let time = now.after(Duration::from_millis(number));
        let query = Query { epoch: Epoch([1; 8]), time, asked }.sign(&shop.sender, tag);
        drop(shop.transport.append(to.clone(), Record { key: Bytes::new(), value: query.into() }));
    }
    let last = shop.header(b"behind all of them");
    shop.send(&last, b"behind all of them").await;
    shop.receipts(&last, 3).await;
    let answered = async {
        while shop.said(&header).await.values().sum::<usize>() == before {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, answered).await.expect("one is answered");
    let answers = shop.said(&header).await.values().sum::<usize>() - before;
    assert!(answers < 3 * ASKED as usize / 4, "{answers} answers of three nodes to {ASKED} questions");
    shop.shut().await;
}
