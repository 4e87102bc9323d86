//! Three nodes in one process over the embedded transport: what is sealed and published is committed once, held by all,
//! signed for by all, and read back equal from each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::shop::{LIMIT, NODES, Shop, committed, name};
use bytes::Bytes;
use sealcast::config::{NodeConfig, Sources};
use sealcast::core::gather::REPEATED_AFTER;
use sealcast::core::id::{Epoch, Position, Rejection, Suite, Time};
use sealcast::core::receipt::{Query, StageTimes, Verdict};
use sealcast::core::seal::transaction::ExpectedVersion;
use sealcast::node::{NodeOptions, acknowledge};
use sealcast::rpc::proto::{self, read_response::Part};
use sealcast::seams::{Clock, DiskHook, HookedDisk, Seams, SystemClock};
use sealcast::transport::adversary::{AdversaryOptions, Mood};
use sealcast::transport::{AnyTransport, Domain, Record, Topic, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_committed_held_and_read_back_from_every_node() {
    let mut shop = Shop::with_nodes().await;
    for (size, suite) in [(1, Suite::X25519), (1024, Suite::XWing), (3 * 1024 * 1024 + 17, Suite::XWing)] {
        let payload: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
        let header = shop.header(&payload);
        let stripes = shop.seal(&[(header.clone(), &payload)], suite);
        shop.publish(&stripes).await;
        let agreed = shop.agreed("orders", &header, 3).await;
        let position = committed(&agreed.verdict);
        // A majority staged it before it was committed (R10); on a slow machine the third may have come to it later.
        let staged = |times: &&StageTimes| [times.delivered, times.staged, times.held].iter().all(Option::is_some);
        let times: Vec<_> = agreed.signers.values().collect();
        assert!(times.into_iter().filter(staged).count() >= 2, "who staged it says how long that took: {agreed:?}");
        for node in NODES {
            let (start, read) = shop.get(node, &header).await.unwrap();
            assert_eq!(read, payload, "{node}");
            assert_eq!(Position::from(start.position.unwrap()), position, "{node}");
            assert_eq!(start.sender, "web");
        }
    }
    shop.agree().await;
    let nobody = shop.header(b"never sent");
    let miss = shop.get("b", &nobody).await.unwrap_err();
    assert_eq!(miss.answer(), proto::Answer::NotFound, "{}", miss.text);
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r09_order_holds_per_key_and_a_lost_race_is_a_conflict() {
    let mut shop = Shop::with_nodes().await;
    let first = shop.keyed(b"first", None, ExpectedVersion::Absent);
    let second = shop.keyed(b"second", Some(&first), ExpectedVersion::Any);
    let third = shop.keyed(b"third", Some(&second), ExpectedVersion::Any);
    // The last comes first, and the others share a parcel: order is by predecessor.
    shop.send(&third, b"third").await;
    let stripes = shop.seal(&[(second.clone(), b"second"), (first.clone(), b"first")], Suite::XWing);
    shop.publish(&stripes).await;
    let mut positions = Vec::new();
    for header in [&first, &second, &third] {
        positions.push(committed(&shop.receipts(header, 3).await));
    }
    assert!(positions.is_sorted(), "{positions:?}");

    let winner = shop.keyed(b"winner", None, ExpectedVersion::At(positions[2]));
    shop.send(&winner, b"winner").await;
    committed(&shop.receipts(&winner, 3).await);
    let loser = shop.keyed(b"loser", None, ExpectedVersion::At(positions[2]));
    shop.send(&loser, b"loser").await;
    let verdict = shop.receipts(&loser, 3).await;
    assert!(matches!(verdict, Verdict::Rejected(_, Rejection::Conflict)), "{verdict:?}");

    // The same transaction again, sealed anew, keeps its first fate and place.
    shop.send(&first, b"first").await;
    shop.agree().await;
    assert_eq!(Position::from(shop.get("c", &first).await.unwrap().0.position.unwrap()), positions[0]);

    // By key: the latest, then all in order; and the same order as a subscription from a cursor.
    let mut reader = shop.dialer.reader(&name("a")).unwrap();
    let by_key = |history| proto::GetByKeyRequest {
        destination: "orders".to_owned(),
        key: Bytes::from_static(b"customer-42"),
        history,
        ..Default::default()
    };
    assert_eq!(payloads(reader.get_by_key(by_key(false)).await.unwrap().into_inner()).await, ["winner"]);
    let all = payloads(reader.get_by_key(by_key(true)).await.unwrap().into_inner()).await;
    assert_eq!(all, ["first", "second", "third", "winner"]);
    let request = proto::SubscribeRequest {
        destination: "orders".to_owned(),
        from: Some(proto::subscribe_request::From::After(positions[0].into())),
        ..Default::default()
    };
    let fed = payloads(reader.subscribe(request).await.unwrap().into_inner()).await;
    assert_eq!(fed, ["second", "third", "winner"]);
    shop.shut().await;
}

async fn payloads(mut stream: tonic::Streaming<proto::ReadResponse>) -> Vec<String> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        match message.part.unwrap() {
            Part::Start(_) => all.push(Vec::new()),
            Part::Data(data) => all.last_mut().unwrap().extend_from_slice(&data),
            Part::Miss(miss) => panic!("{}", miss.text),
            Part::End(_) | Part::Progress(_) => {}
        }
    }
    all.into_iter().map(|payload| String::from_utf8(payload).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn r13_who_asks_is_told_also_of_what_never_came() {
    let mut shop = Shop::with_nodes().await;
    let sent = shop.header(b"sent");
    shop.send(&sent, b"sent").await;
    let position = committed(&shop.receipts(&sent, 3).await);
    let mut never = shop.header(b"never sent");
    never.deadline = Time(shop.seams.clock.now().0 - 60_000);
    let topic = Topic::segments(&name("test"), &name("orders"));
    let tag = shop.directory.destinations[&name("orders")].tag;
    let asked = [&sent, &never].map(|header| (header.id, header.deadline, None)).to_vec();
    let query = Query { epoch: Epoch([1; 8]), time: shop.seams.clock.now(), asked }.sign(&shop.sender, tag);
    let to = shop.transport.partitions(&topic)[0].id.clone();
    shop.transport.append(to, Record { key: Bytes::new(), value: query.into() }).unwrap().await.unwrap();
    let verdict = shop.receipts(&never, 3).await;
    assert!(matches!(verdict, Verdict::Expired { group_time } if group_time > never.deadline), "{verdict:?}");
    assert_eq!(committed(&shop.receipts(&sent, 3).await), position);
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_catches_up_and_signs() {
    let mut shop = Shop::with_nodes().await;
    let before = shop.header(b"before");
    shop.send(&before, b"before").await;
    shop.receipts(&before, 3).await;
    shop.stop("c").await;
    let large = vec![7; 2 * 1024 * 1024];
    let during = shop.header(&large);
    shop.send(&during, &large).await;
    committed(&shop.receipts(&during, 2).await);
    shop.start("c").await;
    let agreed = shop.agreed("orders", &during, 3).await;
    committed(&agreed.verdict);
    let returned = agreed.signers[&name("c")];
    assert_eq!((returned.delivered, returned.staged), (None, None), "it cannot know when it would have come");
    assert_eq!(shop.get("c", &during).await.unwrap().1, large);
    assert_eq!(shop.get("c", &before).await.unwrap().1, b"before");
    shop.agree().await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r11_a_body_that_never_reached_a_node_is_fetched_from_the_others() {
    let mut shop = Shop::open().await;
    let blind = shop.transport.as_ref().clone().behind_adversary(AdversaryOptions::harmless(1), &shop.seams);
    let AnyTransport::Adversary(adversary) = blind.clone() else { panic!("it is one") };
    shop.start("a").await;
    shop.start("b").await;
    shop.start_over("c", Arc::new(blind)).await;
    shop.ready().await;
    let partitions = shop.transport.partitions(&Topic::segments(&name("test"), &name("orders")));
    let domains: BTreeSet<Domain> = partitions.iter().map(|partition| partition.domain.clone()).collect();
    for domain in &domains {
        adversary.set_mood(domain, Mood::Away);
    }
    let small = shop.header(b"small");
    shop.send(&small, b"small").await;
    let large: Vec<u8> = (0..2_000_000u32).map(|at| (at % 253) as u8).collect();
    let big = shop.header(&large);
    shop.send(&big, &large).await;
    committed(&shop.receipts(&small, 2).await);
    committed(&shop.receipts(&big, 2).await);
    assert_eq!(shop.get("c", &small).await.unwrap().1, b"small");
    assert_eq!(shop.get("c", &big).await.unwrap().1, large);
    shop.agree().await;
    for domain in &domains {
        adversary.set_mood(domain, Mood::Well);
    }
    committed(&shop.receipts(&big, 3).await);
    shop.shut().await;
}

/// The machine's clocks; time can be made to pass, and the wall clock be put back at once.
struct Ahead {
    clock: SystemClock,
    by: Mutex<Duration>,
}

impl Clock for Ahead {
    fn now(&self) -> Time {
        let back = if self.by.lock().unwrap().is_zero() { 0 } else { 60_000 };
        Time(self.clock.now().0 - back)
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic() + *self.by.lock().unwrap()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.clock.sleep(duration)
    }
}

/// Three nodes whose wall clock can be put forward.
async fn ahead() -> (Shop, Arc<Ahead>) {
    let mut shop = Shop::open().await;
    let clock = Arc::new(Ahead { clock: SystemClock::new(), by: Mutex::default() });
    shop.seams.clock = clock.clone();
    for node in NODES {
        shop.start(node).await;
    }
    shop.ready().await;
    (shop, clock)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_a_decided_parcel_again_hears_again() {
    let (mut shop, clock) = ahead().await;
    let header = shop.header(b"sent twice");
    let stripes = shop.seal(&[(header.clone(), b"sent twice")], Suite::XWing);
    shop.publish(&stripes).await;
    let position = committed(&shop.receipts(&header, 3).await);
    // Every statement lies in two domains, in more when one was late, in one when that stayed late: what is on its way is waited for.
    let settling = async {
        let mut before = BTreeMap::new();
        loop {
            let now = shop.said(&header).await;
            if NODES.iter().all(|node| now.get(*node).is_some_and(|times| *times >= 1)) && now == before {
                return now;
            }
            before = now;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let before = tokio::time::timeout(LIMIT, settling).await.expect("every node says it");
    *clock.by.lock().unwrap() += REPEATED_AFTER + Duration::from_secs(1);
    shop.publish(&stripes).await;
    let hearing = async {
        loop {
            let now = shop.said(&header).await;
            if NODES.iter().all(|node| now[*node] > before[*node]) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, hearing).await.expect("every node says it again");
    assert_eq!(committed(&shop.receipts(&header, 3).await), position, "and the same as before");
    shop.agree().await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_a_refused_parcel_again_hears_again() {
    let (mut shop, clock) = ahead().await;
    let mut header = shop.header(b"too long a life");
    header.deadline = shop.seams.clock.now().after(Duration::from_secs(8 * 24 * 3600));
    let stripes = shop.seal(&[(header, b"too long a life")], Suite::XWing);
    shop.publish(&stripes).await;
    // Of each node, in as many domains as took it at once: what is on its way is waited for.
    let refused = async |more_than: &BTreeMap<String, usize>| {
        let coming = async {
            let mut before = BTreeMap::new();
            loop {
                let now = shop.refusals().await;
                let more = |node: &&str| now.get(*node) > more_than.get(*node);
                if NODES.iter().all(more) && now == before {
                    return now;
                }
                before = now;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        tokio::time::timeout(LIMIT, coming).await.expect("every node refuses it")
    };
    let once = refused(&BTreeMap::new()).await;
    *clock.by.lock().unwrap() += REPEATED_AFTER + Duration::from_secs(1);
    shop.publish(&stripes).await;
    refused(&once).await;
    shop.shut().await;
}

/// A page of a node: its status line and its text.
async fn page(of: std::net::SocketAddr, path: &str) -> (String, String) {
    let mut stream = tokio::net::TcpStream::connect(of).await.unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

/// Destinations of one test alone: what is measured is of the whole process, and so of other tests' nodes too.
const MEASURED: &str = "measured";
const WATCHED: &str = "watched";

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_how_it_does_and_what_it_measured() {
    let mut shop = Shop::open_for(&[MEASURED]).await;
    shop.start("a").await;
    shop.http = Some("127.0.0.1:0".to_owned());
    shop.start("b").await;
    let pages = shop.nodes[&name("b")].http_address().unwrap();
    assert!(page(pages, "/livez").await.0.contains("200"));
    let (status, why) = page(pages, "/readyz").await;
    assert!(status.contains("503") && why.contains(MEASURED), "founding waits for the third node: {status} {why}");
    shop.http = None;
    shop.start("c").await;
    shop.ready().await;
    assert!(page(pages, "/readyz").await.0.contains("200"));
    let payload = vec![3; 100_000];
    let header = shop.header(&payload);
    shop.send(&header, &payload).await;
    committed(&shop.receipts(&header, 3).await);
    let value = |text: &str, metric: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(metric) && line.contains("node=\"b\""));
        let lines = lines.filter(|line| !line.contains("destination=") || line.contains(MEASURED));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    let measured = async {
        loop {
            let text = page(pages, "/metrics").await.1;
            let missing: Vec<_> = [
                "sealcast_store_free_bytes",
                "sealcast_store_bytes",
                "sealcast_store_commits_total",
                "sealcast_store_writes_total",
                "sealcast_store_commit_seconds_count",
                "sealcast_stage_bytes_total",
                "sealcast_stage_seconds_count",
                "sealcast_transport_partition_up",
                "sealcast_transport_read_records_total",
                "sealcast_transport_appended_records_total",
                "sealcast_decide_transactions_total",
                "sealcast_hold_index",
                "sealcast_directory_version",
            ]
            .into_iter()
            .filter(|metric| value(&text, metric) <= 0.0)
            .collect();
            if missing.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LIMIT, measured).await.expect("all of it is measured");
    shop.shut().await;
}

/// The value of an alarm's gauge at node b, once it is this.
async fn gauge(pages: std::net::SocketAddr, alarm: &str, is: u8) {
    let (alarm, value) = (format!("alarm=\"{alarm}\""), format!(" {is}"));
    let shown = async {
        loop {
            let text = page(pages, "/metrics").await.1;
            let mut lines = text.lines().filter(|line| line.starts_with("sealcast_alarm{") && line.contains(&alarm));
            match lines.find(|line| line.contains("node=\"b\"") && line.contains(WATCHED)) {
                Some(line) if line.ends_with(&value) => return,
                None if is == 0 => return,
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(LIMIT, shown).await.unwrap_or_else(|_| panic!("{alarm} is not {is}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_stands_until_its_reason_ends_or_somebody_looked_and_its_gauge_agrees() {
    let mut shop = Shop::open_for(&[WATCHED]).await;
    shop.start("a").await;
    shop.http = Some("127.0.0.1:0".to_owned());
    shop.start("b").await;
    shop.start("c").await;
    shop.ready().await;
    let standing = async |shop: &Shop| -> Vec<String> {
        shop.status("b", WATCHED).await.alarms.into_iter().map(|alarm| alarm.name).collect()
    };
    let alarms = shop.nodes[&name("b")].served()[&name(WATCHED)].context.alarms.clone();
    alarms.raise("gap-7", "records were lost");
    alarms.raise("notes-not-kept", "the disk is full");
    let pages = shop.nodes[&name("b")].http_address().unwrap();
    gauge(pages, "gap-7", 1).await;
    gauge(pages, "notes-not-kept", 1).await;
    shop.stop("b").await;
    shop.start("b").await;
    shop.ready().await;
    // A node that starts has nothing yet that it could not note; what was lost is lost.
    let pages = shop.nodes[&name("b")].http_address().unwrap();
    gauge(pages, "notes-not-kept", 0).await;
    gauge(pages, "gap-7", 1).await;
    assert_eq!(standing(&shop).await, ["gap-7"]);

    let options = |node: &str| {
        let config = NodeConfig::load(&Sources::file(&shop.written.nodes[&name(node)])).unwrap();
        NodeOptions::from_config(&config).unwrap()
    };
    let stranger = NodeOptions { name: name("b"), ..options("a") };
    let error = acknowledge(&stranger, &shop.seams, "gap-7", None).await.unwrap_err();
    assert!(error.to_string().contains("only node b itself"), "{error}");
    let error = acknowledge(&options("b"), &shop.seams, "body-missing", None).await.unwrap_err();
    assert!(error.to_string().contains("ends by itself") && !error.retryable(), "{error}");
    assert_eq!(standing(&shop).await, ["gap-7"]);
    assert_eq!(acknowledge(&options("b"), &shop.seams, "gap-7", None).await.unwrap(), [name(WATCHED)]);
    assert_eq!(acknowledge(&options("b"), &shop.seams, "gap-7", None).await.unwrap(), []);
    gauge(pages, "gap-7", 0).await;
    assert_eq!(standing(&shop).await, [""; 0]);
    shop.shut().await;
}

/// Says that so many bytes are free.
#[derive(Clone)]
pub struct Filled(pub Arc<AtomicU64>);

impl DiskHook for Filled {
    fn free(&self, _: u64) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r19_a_node_whose_disk_was_full_goes_on_by_itself_once_it_has_room() {
    let mut shop = Shop::open().await;
    let free = Arc::new(AtomicU64::new(u64::MAX));
    let disk = Arc::new(HookedDisk::real(Filled(free.clone())));
    shop.start("a").await;
    shop.start("b").await;
    shop.start_on("c", shop.transport.clone(), Seams { disk, ..shop.seams.clone() }).await;
    shop.ready().await;
    let alarmed = async |shop: &Shop, wanted: bool| {
        let waiting = async {
            loop {
                let alarms = shop.status("c", "orders").await.alarms;
                if alarms.iter().any(|alarm| alarm.name == "notes-not-kept") == wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, waiting).await.expect("the alarm follows the disk");
    };
    free.store(1000, Ordering::SeqCst);
    let header = shop.header(b"no room for it on c");
    shop.send(&header, b"no room for it on c").await;
    committed(&shop.receipts(&header, 2).await);
    alarmed(&shop, true).await;
    free.store(u64::MAX, Ordering::SeqCst);
    alarmed(&shop, false).await;
    committed(&shop.receipts(&header, 3).await);
    assert!(shop.refusals().await.is_empty(), "that there was no room says nothing of the bytes (R21)");
    shop.agree().await;
    shop.shut().await;
}
