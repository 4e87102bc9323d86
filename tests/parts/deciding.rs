//! Fates under pressure, with real clients against three nodes: whatever brings a transaction it has one fate (R6), compare
//! and set is linearizable (R9), reads never pass the held prefix and never say more than a node knows (R23), and who asks
//! about what lies before the retention horizon learns that it is forgotten (R26).

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::common::folders;
use crate::shop::{LIMIT, Shop, committed, name};
use crate::submitting::{options, position, reader, rejection, start};
use bytes::Bytes;
use sealcast::client::reader::{Freshness, From, ReadError, Reader, Subscription};
use sealcast::client::{Client, Transaction, WaitError};
use sealcast::core::id::{DestinationName, Epoch, Position, Rejection, Suite, Time, TransactionId};
use sealcast::core::receipt::{Query, Verdict};
use sealcast::core::seal::transaction::ExpectedVersion;
use sealcast::rpc::proto;
use sealcast::seams::{BoxFuture, Connection, Listener, Network, RealNetwork, Seams};
use sealcast::transport::adversary::{AdversaryOptions, Mood};
use sealcast::transport::{AnyTransport, Record, Topic, Transport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const MOST: usize = 1 << 20;

fn orders() -> DestinationName {
    name("orders")
}

/// A client whose outbox lies in this folder.
async fn client_in(shop: &Shop, outbox: &Path) -> Client {
    let mut options = options(shop);
    options.outbox.folder = Some(outbox.to_path_buf());
    Client::start(shop.transport.clone(), options).await.unwrap()
}

/// Everything that is committed, in its order, as one node holds it.
async fn all(reader: &Reader, fresh: Freshness) -> Result<Vec<String>, ReadError> {
    let mut feed = reader.subscribe(&orders(), Subscription::new(From::Start).until_end().fresh(fresh)).await?;
    let mut got = Vec::new();
    while let Some((_, payload)) = feed.transaction(MOST).await? {
        got.push(String::from_utf8(payload.to_vec()).unwrap());
    }
    Ok(got)
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_whatever_brings_a_transaction_it_is_committed_once() {
    let mut shop = Shop::open().await;
    let folders = tempfile::tempdir().unwrap();
    let (outbox, yesterday) = (folders.path().join("outbox"), folders.path().join("yesterday"));

    // Submitted while no node runs; the sender's machine is backed up, and starts again.
    let client = client_in(&shop, &outbox).await;
    let mut tickets = Vec::new();
    for number in 0..5 {
        let handle = client.submit("orders", Transaction::new(format!("kept {number}")).key("k")).await.unwrap();
        handle.accepted().await.unwrap();
        tickets.push(handle.ticket().clone());
    }
    client.close().await;
    folders::copy(&outbox, &yesterday);
    let client = client_in(&shop, &outbox).await;
    for node in crate::shop::NODES {
        shop.start(node).await;
    }
    shop.ready().await;
    let mut positions = Vec::new();
    for ticket in &tickets {
        positions.push(position(&client.attach(ticket).await.unwrap()).await);
    }
    assert!(positions.is_sorted(), "{positions:?}");
    let newer = client.submit("orders", Transaction::new("today").key("k")).await.unwrap();
    let newer = position(&newer).await;
    client.close().await;

    // The outbox of yesterday sends all of it again, in its own words, and goes on from there.
    let client = client_in(&shop, &yesterday).await;
    let mut again = Vec::new();
    for ticket in &tickets {
        again.push(position(&client.attach(ticket).await.unwrap()).await);
    }
    assert_eq!(again, positions);
    let next = client.submit("orders", Transaction::new("after yesterday").key("k")).await.unwrap();
    assert!(position(&next).await > newer);
    client.close().await;

    // Two clients with one key, and one id; a third has another payload under it.
    let id = TransactionId::from_parts(shop.seams.clock.now(), [7; 10]);
    let deadline = shop.seams.clock.now().after(Duration::from_secs(600));
    let shared = |payload: &'static str| Transaction::new(payload).id(id).deadline_at(deadline);
    let (one, other, third) = tokio::join!(start(&shop), start(&shop), start(&shop));
    let (first, second) =
        tokio::join!(one.submit("orders", shared("shared")), other.submit("orders", shared("shared")));
    let (first, second) = (first.unwrap(), second.unwrap());
    let at = position(&first).await;
    assert_eq!(position(&second).await, at, "one fate, told to both");
    let stranger = third.submit("orders", shared("something else")).await.unwrap();
    assert_eq!(rejection(&stranger).await, Rejection::IdReuse);
    assert_eq!(position(&one.attach(first.ticket()).await.unwrap()).await, at);

    // In two parcels that fly at once, beside others, sealed by hand; and as an exact copy of all records.
    let header = shop.header(b"in two parcels");
    let beside = [shop.header(b"beside"), shop.header(b"beside as well")];
    let mut stripes = Vec::new();
    for (header_beside, payload) in beside.iter().zip([&b"beside"[..], b"beside as well"]) {
        let both: [(_, &[u8]); 2] = [(header_beside.clone(), payload), (header.clone(), b"in two parcels")];
        stripes.extend(shop.seal(&both, Suite::X25519));
    }
    for _ in 0..2 {
        for stripe in &stripes {
            shop.publish(std::slice::from_ref(stripe)).await;
        }
    }
    for header in [&header, &beside[0], &beside[1]] {
        committed(&shop.receipts(header, 3).await);
    }
    shop.agree().await;

    let mut seen = all(&reader(&shop), Freshness::linearizable()).await.unwrap();
    assert_eq!(seen[..7], ["kept 0", "kept 1", "kept 2", "kept 3", "kept 4", "today", "after yesterday"]);
    let mut rest = seen.split_off(7);
    rest.sort();
    assert_eq!(rest, ["beside", "beside as well", "in two parcels", "shared"]);
    for client in [one, other, third] {
        client.close().await;
    }
    shop.shut().await;
}

/// A write as its client saw it: what it expected, where it was decided, and when the client had begun and had its answer.
struct Write {
    begun: Instant,
    ended: Instant,
    expected: Position,
    position: Option<Position>,
    payload: String,
}

/// A linearizable read: which version it gave, and its payload.
struct Read {
    begun: Instant,
    ended: Instant,
    version: Position,
    payload: String,
}

async fn read(reader: &Reader) -> Read {
    let begun = Instant::now();
    let fresh = Freshness::linearizable().within(Duration::from_secs(30));
    let latest = async { reader.get_by_key(&orders(), b"account", false, fresh).await?.transaction(MOST).await };
    let (version, payload) = match latest.await {
        Ok(Some((committed, payload))) => (committed.position, String::from_utf8(payload.to_vec()).unwrap()),
        Ok(None) | Err(ReadError::NotFound { .. }) => (Position::default(), String::new()),
        Err(error) => panic!("{error}"),
    };
    Read { begun, ended: Instant::now(), version, payload }
}

#[tokio::test(flavor = "multi_thread")]
async fn r09_compare_and_set_of_sixteen_clients_on_one_key_is_linearizable() {
    const CLIENTS: usize = 16;
    const TRIES: usize = 5;
    let shop = Arc::new(Shop::with_nodes().await);
    let mut tasks = Vec::new();
    for number in 0..CLIENTS {
        let shop = shop.clone();
        tasks.push(tokio::spawn(async move {
            let (client, reader) = (start(&shop).await, reader(&shop));
            // Each asks another node first, so that no node orders them by itself.
            let reader = reader.at(name(crate::shop::NODES[number % 3])).unwrap();
            let (mut writes, mut reads) = (Vec::new(), Vec::new());
            for attempt in 0..TRIES {
                let seen = read(&reader).await;
                let payload = format!("{number}.{attempt}");
                let transaction = Transaction::new(payload.clone()).key("account").expected_version(seen.version);
                let (expected, begun) = (seen.version, Instant::now());
                reads.push(seen);
                let handle = client.submit("orders", transaction).await.unwrap();
                let outcome = tokio::time::timeout(LIMIT, handle.committed()).await.expect("a fate");
                let position = match outcome {
                    Ok(receipt) => receipt.position,
                    Err(WaitError::Rejected(Rejection::Conflict)) => None,
                    Err(error) => panic!("{error}"),
                };
                writes.push(Write { begun, ended: Instant::now(), expected, position, payload });
            }
            client.close().await;
            (writes, reads)
        }));
    }
    let (mut writes, mut reads) = (Vec::new(), Vec::new());
    for task in tasks {
        let (its_writes, its_reads) = task.await.unwrap();
        writes.extend(its_writes);
        reads.extend(its_reads);
    }
    reads.push(read(&reader(&shop)).await);

    // Who won, in the order of the log: each expected exactly the one before.
    let mut won: Vec<&Write> = writes.iter().filter(|write| write.position.is_some()).collect();
    won.sort_by_key(|write| write.position);
    assert!(won.len() >= TRIES, "of {} tries only {} came through", writes.len(), won.len());
    let mut version = Position::default();
    for write in &won {
        assert_eq!(write.expected, version, "{} came through on another version", write.payload);
        version = write.position.unwrap();
    }
    let standing = |version: Position| won.iter().find(|write| write.position == Some(version));
    let next = |version: Position| won.iter().find(|write| write.expected == version);
    // The order of the log is an order of the clients' time: who had ended before another began stands before it.
    for (place, write) in won.iter().enumerate() {
        assert!(won[place + 1..].iter().all(|later| later.ended > write.begun), "{} is out of time", write.payload);
    }
    // Who lost had been overtaken: another had replaced what it expected before it had its answer.
    for lost in writes.iter().filter(|write| write.position.is_none()) {
        let winner = next(lost.expected).unwrap_or_else(|| panic!("{} lost to nobody", lost.payload));
        assert!(winner.begun < lost.ended, "{} lost to one that had not begun", lost.payload);
    }
    // A read gives a version that stood at some moment of it.
    for read in &reads {
        if let Some(write) = standing(read.version) {
            assert_eq!(write.payload, read.payload);
            assert!(write.begun < read.ended, "{} was read before it was written", read.payload);
        } else {
            assert_eq!(read.version, Position::default(), "a version that nobody wrote");
        }
        if let Some(replaced) = next(read.version) {
            assert!(
                replaced.ended > read.begun,
                "{:?} was read after {} had replaced it",
                read.version,
                replaced.payload
            );
        }
    }
    for one in &reads {
        let later = reads.iter().filter(|other| other.begun > one.ended);
        assert!(
            later.into_iter().all(|later| later.version >= one.version),
            "reads went back behind {:?}",
            one.version
        );
    }
    assert_eq!(reads.last().unwrap().version, version);
    Arc::into_inner(shop).unwrap().shut().await;
}

/// The machine's network, but that what goes out of this node can be cut: it is still reached.
#[derive(Clone, Default)]
struct Outgoing(Arc<AtomicBool>);

impl Outgoing {
    fn cut(&self, cut: bool) {
        self.0.store(cut, Ordering::Release);
    }
}

impl Network for Outgoing {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        Box::pin(async move {
            if self.0.load(Ordering::Acquire) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let inner = RealNetwork.connect(address).await?;
            Ok(Box::new(Wire { inner, cut: self.0.clone() }) as Box<dyn Connection>)
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        RealNetwork.listen(address)
    }
}

struct Wire {
    inner: Box<dyn Connection>,
    cut: Arc<AtomicBool>,
}

impl Wire {
    fn whole(&self) -> io::Result<()> {
        match self.cut.load(Ordering::Acquire) {
            true => Err(io::ErrorKind::ConnectionReset.into()),
            false => Ok(()),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.whole()?;
        Pin::new(&mut self.inner).poll_read(cx, into)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.whole()?;
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.whole()?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r23_reads_never_pass_the_held_prefix_nor_say_more_than_a_node_knows() {
    let mut shop = Shop::open().await;
    let (wires, seams) = (Outgoing::default(), shop.seams.clone());
    let machine = || Seams { network: Arc::new(wires.clone()), ..seams.clone() };
    let blind = shop.transport.as_ref().clone().behind_adversary(AdversaryOptions::harmless(1), &shop.seams);
    let AnyTransport::Adversary(adversary) = blind.clone() else { panic!("it is one") };
    let blind = Arc::new(blind);
    shop.start("a").await;
    shop.start("b").await;
    shop.start_on("c", blind.clone(), machine()).await;
    shop.ready().await;
    let topic = Topic::segments(&name("test"), &orders());
    let partitions = shop.transport.partitions(&topic);
    let mood = |mood: Mood| partitions.iter().for_each(|partition| adversary.set_mood(&partition.domain, mood));

    let first = shop.keyed(b"first", None, ExpectedVersion::Absent);
    let second = shop.keyed(b"second", Some(&first), ExpectedVersion::Any);
    let third = shop.keyed(b"third", Some(&second), ExpectedVersion::Any);
    shop.send(&first, b"first").await;
    let at_first = committed(&shop.receipts(&first, 3).await);
    // Node c has the third, which waits for the second; the second never reaches it, and it asks nobody for it.
    shop.send(&third, b"third").await;
    let store = shop.nodes[&name("c")].served()[&orders()].context.store.clone();
    let staged = async {
        while store.snapshot().unwrap().staged_after(None, 9).unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, staged).await.expect("it stages it");
    mood(Mood::Away);
    wires.cut(true);
    shop.send(&second, b"second").await;
    let at_second = committed(&shop.receipts(&second, 2).await);
    let at_third = committed(&shop.receipts(&third, 2).await);
    assert!(at_first < at_second && at_second < at_third);
    let applied = async {
        while store.snapshot().unwrap().last_position().unwrap() < at_third {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, applied).await.expect("it follows the log");
    drop(store);

    let own = reader(&shop).at(name("c")).unwrap();
    let now = || Freshness::default().within(Duration::from_millis(200));
    let by_key = async |history: bool, fresh: Freshness| -> Result<Vec<Bytes>, ReadError> {
        let mut feed = own.get_by_key(&orders(), b"customer-42", history, fresh).await?;
        let mut got = Vec::new();
        while let Some((committed, payload)) = feed.transaction(MOST).await? {
            assert!(committed.position <= at_third);
            got.push(payload);
        }
        Ok(got)
    };
    // A prefix, whichever way it is read, though the bytes of what is behind the gap are here.
    assert_eq!(all(&own, now()).await.unwrap(), ["first"]);
    assert_eq!(by_key(false, now()).await.unwrap(), ["first"]);
    assert_eq!(by_key(true, now()).await.unwrap(), ["first"]);
    for header in [&second, &third] {
        let error = match own.get(header.id, Some(&orders()), now()).await {
            Ok(mut feed) => feed.transaction(MOST).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, ReadError::Unavailable { .. }) && error.retryable(), "{error}");
    }
    let mut dialed = shop.dialer.reader(&name("c")).unwrap();
    let status = |header: &sealcast::core::seal::transaction::PrivateHeader| proto::StatusRequest {
        of: Some(proto::status_request::Of::Transaction(Bytes::copy_from_slice(&header.id.to_bytes()))),
        ..Default::default()
    };
    let known = dialed.status(status(&third)).await.unwrap().into_inner();
    assert_eq!(Position::from(known.at["orders"]), at_first, "it says how far it looked");
    // A cursor into another group's log says nothing about this one's.
    let astray = proto::SubscribeRequest {
        destination: "orders".to_owned(),
        group: Some(Bytes::from_static(&[7; 16])),
        ..Default::default()
    };
    let refused = dialed.subscribe(astray).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused:?}");
    // Read your writes, and the present: neither can be had here, and that is what it says.
    for fresh in [Freshness::at_least(at_third), Freshness::linearizable()] {
        let fresh = fresh.within(Duration::from_millis(200));
        let errors = [all(&own, fresh).await.unwrap_err(), by_key(true, fresh).await.unwrap_err()];
        assert!(errors.iter().all(|error| matches!(error, ReadError::Unavailable { .. })), "{errors:?}");
    }
    assert_eq!(all(&own, Freshness::at_least(at_first)).await.unwrap(), ["first"]);
    // Another node has it all.
    let everything = Freshness::linearizable().within(Duration::from_secs(30));
    let other = reader(&shop).at(name("a")).unwrap();
    assert_eq!(all(&other, everything).await.unwrap(), ["first", "second", "third"]);

    // Started again it does not know how far the log goes until a majority says so: nothing is *not found* before that.
    shop.stop("c").await;
    shop.start_on("c", blind, machine()).await;
    let nobody = shop.header(b"never sent");
    let absent = async |header: &sealcast::core::seal::transaction::PrivateHeader| {
        let request = proto::GetRequest {
            transaction: Bytes::copy_from_slice(&header.id.to_bytes()),
            destination: Some("orders".to_owned()),
            freshness: Some(proto::Freshness { timeout_ms: 200, ..Default::default() }),
            ..Default::default()
        };
        let mut stream = shop.called("c", async |mut reader| reader.get(request.clone()).await).await;
        match stream.message().await.unwrap().unwrap().part.unwrap() {
            proto::read_response::Part::Miss(miss) => miss.answer(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(absent(&nobody).await, proto::Answer::Unavailable);
    let error = own.get_by_key(&orders(), b"nobody's", false, now()).await;
    let error = match error {
        Ok(mut feed) => feed.transaction(MOST).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error, ReadError::Unavailable { .. }), "{error}");
    let unknown = shop.called("c", async |mut reader| reader.status(status(&nobody)).await).await;
    assert_eq!((unknown.unavailable, unknown.statuses.len()), (vec!["orders".to_owned()], 0));
    assert_eq!(all(&own, now()).await.unwrap(), ["first"], "what it holds it gives");

    wires.cut(false);
    mood(Mood::Well);
    shop.ready().await;
    let back = Freshness::linearizable().within(Duration::from_secs(30));
    assert_eq!(all(&own, back).await.unwrap(), ["first", "second", "third"]);
    assert_eq!(by_key(false, back).await.unwrap(), ["third"]);
    assert_eq!(absent(&nobody).await, proto::Answer::NotFound);
    shop.agree().await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r26_what_lies_before_the_horizon_is_forgotten_and_never_expired() {
    let shop = Shop::with_nodes().await;
    let retention = shop.directory.destinations[&orders()].retention;
    let now = shop.seams.clock.now();
    let before = |back: Duration| Time(now.0 - back.as_millis() as u64);
    let mut forgotten = shop.header(b"long ago");
    let mut expired = shop.header(b"not so long ago");
    (forgotten.deadline, expired.deadline) = (before(retention + LIMIT), before(retention - LIMIT));
    // Without group time nothing has expired, and who asks then is told nothing.
    for node in shop.nodes.values() {
        let mut progress = node.served()[&orders()].context.store.progress();
        let goes = progress.wait_for(|progress| progress.group_time > expired.deadline);
        tokio::time::timeout(LIMIT, goes).await.expect("group time goes on").unwrap();
    }
    let tag = shop.directory.destinations[&orders()].tag;
    let asked = [&forgotten, &expired].map(|header| (header.id, header.deadline, None)).to_vec();
    let to = shop.transport.partitions(&Topic::segments(&name("test"), &orders()))[0].id.clone();
    // A node that knows no group time yet says nothing: they are asked until all have answered, as a client does.
    let answered = async {
        for later in 0.. {
            let time = Time(now.0 + later);
            let query = Query { epoch: Epoch([1; 8]), time, asked: asked.clone() }.sign(&shop.sender, tag);
            let record = Record { key: Bytes::new(), value: query.into() };
            shop.transport.append(to.clone(), record).unwrap().await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            if shop.said(&expired).await.len() == 3 && shop.said(&forgotten).await.len() == 3 {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, answered).await.expect("they answer");
    let verdict = shop.receipts(&expired, 3).await;
    assert!(matches!(verdict, Verdict::Expired { .. }), "{verdict:?}");
    let verdict = shop.receipts(&forgotten, 3).await;
    assert!(matches!(verdict, Verdict::Forgotten { .. }), "{verdict:?}");
    // A client is told the same; and readers see the difference.
    let client = start(&shop).await;
    let ticket = |header: &sealcast::core::seal::transaction::PrivateHeader| sealcast::core::id::Ticket {
        destination: orders(),
        transaction: header.id,
        deadline: header.deadline,
    };
    let ended = tokio::time::timeout(LIMIT, client.attach(&ticket(&forgotten)).await.unwrap().committed()).await;
    assert!(matches!(ended.expect("they answer"), Err(WaitError::Forgotten)));
    let ended = tokio::time::timeout(LIMIT, client.attach(&ticket(&expired)).await.unwrap().committed()).await;
    assert!(matches!(ended.expect("they answer"), Err(WaitError::Expired)));
    for (header, state) in [(&forgotten, proto::State::Forgotten), (&expired, proto::State::Expired)] {
        let found = reader(&shop).status_of(&ticket(header)).await.unwrap();
        assert_eq!(found.found.iter().map(|(_, status)| status.state()).collect::<Vec<_>>(), [state]);
    }
    client.close().await;
    shop.shut().await;
}
