//! Three nodes in one process over the embedded transport: what is sealed and published is committed once, held by all,
//! signed for by all, and read back equal from each of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealcast::config::environment::{Plan, Written, write};
use sealcast::config::{NodeConfig, Sources, TransportSettings};
use sealcast::core::directory::Directory;
use sealcast::core::id::{
    Epoch, NodeName, ParcelId, PayloadTag, Position, Rejection, SenderName, Suite, Ticket, TransactionId,
};
use sealcast::core::receipt::{Counter, Directories, Notice, Query, Verdict};
use sealcast::core::seal::keys::PayloadTagger;
use sealcast::core::seal::suite::HpkePublic;
use sealcast::core::seal::transaction::{ExpectedVersion, Payload, Predecessor, PrivateHeader};
use sealcast::core::seal::{ParcelSealer, WrapTarget};
use sealcast::core::sign::SecretKey;
use sealcast::core::split::header::{Core, CoreDestination, Profile};
use sealcast::core::split::stripe::{Splitter, Stripe};
use sealcast::keys::{ReaderKey, SecretFile, SenderKey};
use sealcast::node::{Node, NodeOptions};
use sealcast::rpc::client::Dialer;
use sealcast::rpc::proto::{self, read_response::Part};
use sealcast::rpc::tls::Credentials;
use sealcast::seams::Seams;
use sealcast::telemetry::Meter;
use sealcast::transport::adversary::{AdversaryOptions, Mood};
use sealcast::transport::embedded::EmbeddedOptions;
use sealcast::transport::{AnyTransport, Domain, Record, Topic, Transport, TransportOptions};
use tokio::sync::watch;

const NODES: [&str; 3] = ["a", "b", "c"];
/// Long enough for a slow machine; a test that waits for it fails.
const LIMIT: Duration = Duration::from_secs(60);

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// One environment: its files, its transport and its nodes.
struct Shop {
    _folder: tempfile::TempDir,
    seams: Seams,
    written: Written,
    directory: Arc<Directory>,
    transport: Arc<AnyTransport>,
    nodes: BTreeMap<NodeName, Node>,
    sender: SecretKey,
    dialer: Dialer,
    _directory: watch::Sender<Arc<Directory>>,
    parcels: u64,
}

impl Shop {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let seams = Seams::real();
        let records = folder.path().join("records");
        let plan = Plan {
            name: name("test"),
            nodes: NODES.iter().map(|node| (name(node), format!("127.0.0.1:{}", free_port()))).collect(),
            destinations: BTreeSet::from([name("orders")]),
            senders: BTreeSet::from([name("web")]),
            readers: BTreeSet::from([name("app")]),
            transport: TransportSettings::Embedded { path: records.clone() },
            suite: Suite::XWing,
            minimum_suite: Suite::X25519,
            valid_for: Duration::from_secs(3600),
        };
        let written = write(&plan, &folder.path().join("shop"), &seams).unwrap();
        let options = TransportOptions::Embedded(EmbeddedOptions::new(&records));
        let transport = Arc::new(AnyTransport::open(&options, &seams).unwrap());
        let AnyTransport::Embedded(embedded) = transport.as_ref() else { panic!("it is embedded") };
        embedded.create_topic(&Topic::segments(&name("test"), &name("orders")), 3).await.unwrap();
        embedded.create_topic(&Topic::notices(&name("test")), 3).await.unwrap();
        let directory = Arc::new(written.directory.clone());
        let key = |of: &Path, file: &str| of.parent().unwrap().join(file);
        let sender = SenderKey::read(&key(&written.senders[&name("web")], "sender.key")).unwrap();
        let reader = ReaderKey::read(&key(&written.readers[&name("app")], "reader.key")).unwrap();
        let (newest, seen) = watch::channel(directory.clone());
        let dialer = Dialer::new(&seams, Credentials::new(reader.signing()).unwrap(), seen, Meter::default());
        let sender = sender.signing().clone();
        Self {
            _folder: folder,
            seams,
            written,
            directory,
            transport,
            nodes: BTreeMap::new(),
            sender,
            dialer,
            _directory: newest,
            parcels: 0,
        }
    }

    async fn with_nodes() -> Self {
        let mut shop = Self::open().await;
        for node in NODES {
            shop.start(node).await;
        }
        shop.ready().await;
        shop
    }

    async fn start(&mut self, node: &str) {
        self.start_over(node, self.transport.clone()).await;
    }

    async fn start_over(&mut self, node: &str, transport: Arc<AnyTransport>) {
        let config = NodeConfig::load(&Sources::file(&self.written.nodes[&name(node)])).unwrap();
        let mut options = NodeOptions::from_config(&config).unwrap();
        options.http = None;
        let started = Node::start(options, self.seams.clone(), transport).await.unwrap();
        self.nodes.insert(name(node), started);
    }

    async fn stop(&mut self, node: &str) {
        let node = self.nodes.remove(&name(node)).unwrap();
        tokio::time::timeout(LIMIT, node.shutdown()).await.expect("it drains");
    }

    async fn ready(&self) {
        for node in self.nodes.values() {
            let mut readiness = node.readiness();
            tokio::time::timeout(LIMIT, readiness.wait_for(|readiness| readiness.ready())).await.unwrap().unwrap();
        }
    }

    fn header(&self, payload: &[u8]) -> PrivateHeader {
        let now = self.seams.clock.now();
        let id = TransactionId::from_parts(now, self.seams.randomness.array().unwrap());
        let tag = self.directory.destinations[&name("orders")].tag;
        let payload = Payload::plain(payload.len() as u64, PayloadTagger::whole(&self.sender, payload));
        PrivateHeader::new(id, now.after(Duration::from_secs(600)), Some(payload), [tag])
    }

    /// Orders a header: its key, its predecessor, the version that it expects.
    fn keyed(&self, payload: &[u8], after: Option<&PrivateHeader>, expected: ExpectedVersion) -> PrivateHeader {
        let mut header = self.header(payload);
        header.ordering_key = Some(b"customer-42".to_vec());
        for order in header.destinations.values_mut() {
            order.predecessor = after.map(|before| Predecessor { transaction: before.id, deadline: before.deadline });
            order.expected_version = expected;
        }
        header
    }

    /// Seals transactions in one parcel and cuts it into stripes.
    fn seal(&mut self, transactions: &[(PrivateHeader, &[u8])], suite: Suite) -> Vec<Stripe> {
        let orders = &self.directory.destinations[&name("orders")];
        let key = orders.current_key(suite).unwrap();
        let expiry = transactions.iter().map(|(header, _)| header.deadline).max().unwrap();
        let random = |n: usize| {
            let mut bytes = vec![0; n];
            self.seams.randomness.fill(&mut bytes).unwrap();
            bytes
        };
        let core = Core {
            suite,
            profile: Profile::coded(3),
            environment: self.directory.environment,
            sender: self.sender.public().bytes(),
            epoch: Epoch(random(8).try_into().unwrap()),
            parcel: ParcelId::from_parts(self.seams.clock.now(), random(10).try_into().unwrap()),
            expiry,
            destinations: vec![CoreDestination { tag: orders.tag, key: key.id, sequence: self.parcels }],
        };
        self.parcels += 1;
        let targets = [WrapTarget { tag: orders.tag, public: HpkePublic::from_bytes(suite, &key.public).unwrap() }];
        let mut out = Vec::new();
        let k = zeroize::Zeroizing::new(random(32).try_into().unwrap());
        let draws = [random(64).try_into().unwrap()];
        let count = transactions.len() as u32;
        let mut sealer = ParcelSealer::new(&core.context(), &targets, count, &k, &draws, &mut out).unwrap();
        for (header, payload) in transactions {
            sealer.seal(header.clone(), payload, &mut out).unwrap();
        }
        sealer.finish().unwrap();
        let mut splitter = Splitter::new(core, self.sender.clone()).unwrap();
        let mut stripes = splitter.push(&out).unwrap();
        stripes.push(splitter.finish().unwrap());
        stripes
    }

    async fn publish(&self, stripes: &[Stripe]) {
        let topic = Topic::segments(&name("test"), &name("orders"));
        let partitions = self.transport.partitions(&topic);
        for stripe in stripes {
            for segment in &stripe.segments {
                let to = partitions[usize::from(segment.index) % partitions.len()].id.clone();
                let key = Bytes::copy_from_slice(&segment.id.to_bytes());
                let record = Record { key, value: segment.record.clone() };
                loop {
                    match self.transport.append(to.clone(), record.clone()) {
                        Ok(pending) => {
                            pending.await.unwrap();
                            break;
                        }
                        Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                    }
                }
            }
        }
    }

    async fn send(&mut self, header: &PrivateHeader, payload: &[u8]) {
        let stripes = self.seal(&[(header.clone(), payload)], Suite::XWing);
        self.publish(&stripes).await;
    }

    /// Reads all notices until all nodes of `signers` agree on this transaction.
    async fn receipts(&self, header: &PrivateHeader, signers: usize) -> Verdict {
        let orders = &self.directory.destinations[&name("orders")];
        let ticket = Ticket { destination: name("orders"), transaction: header.id, deadline: header.deadline };
        let tag: Option<PayloadTag> = header.payload.map(|payload| payload.tag);
        let mut counter = Counter::new(ticket, orders.tag, name::<SenderName>("web"), tag);
        let directories = Directories::from([(self.directory.version, self.directory.clone())]);
        let topic = Topic::notices(&name("test"));
        let mut at: BTreeMap<i32, i64> = BTreeMap::new();
        let counting = async {
            loop {
                for partition in self.transport.partitions(&topic).iter() {
                    let next = at.entry(partition.id.number).or_default();
                    let batch = self.transport.read(partition.id.clone(), *next).await.unwrap();
                    *next = batch.next;
                    for record in batch.records {
                        if let Notice::Receipts(receipts) = Notice::decode(&record.value.unwrap()).unwrap() {
                            for receipt in receipts.verify(&directories).unwrap() {
                                counter.add(&receipt);
                            }
                        }
                    }
                }
                if let Some(agreed) = counter.agreed(&directories)
                    && agreed.signers.len() >= signers
                {
                    return agreed.verdict;
                }
            }
        };
        let outcome = tokio::time::timeout(LIMIT, counting).await;
        outcome.unwrap_or_else(|_| panic!("{} has no receipts of {signers} nodes", header.id))
    }

    async fn get(&self, node: &str, header: &PrivateHeader) -> Result<(proto::ItemStart, Vec<u8>), proto::ReadMiss> {
        let request = proto::GetRequest {
            transaction: Bytes::copy_from_slice(&header.id.to_bytes()),
            freshness: Some(proto::Freshness { consistency: 1, timeout_ms: 30_000, ..Default::default() }),
            ..Default::default()
        };
        let mut reader = self.dialer.reader(&name(node)).unwrap();
        let mut stream = reader.get(request).await.unwrap().into_inner();
        let (mut start, mut payload) = (None, Vec::new());
        loop {
            match stream.message().await.unwrap().expect("the stream ends with an end").part.unwrap() {
                Part::Start(item) => start = Some(item),
                Part::Data(data) => payload.extend_from_slice(&data),
                Part::End(end) => {
                    assert_eq!(end.payload_bytes, payload.len() as u64);
                    return Ok((start.expect("a start"), payload));
                }
                Part::Miss(miss) => return Err(miss),
                Part::Progress(_) => panic!("only subscriptions have progress"),
            }
        }
    }

    async fn status(&self, node: &str) -> proto::GroupStatus {
        let mut reader = self.dialer.reader(&name(node)).unwrap();
        let answer = reader.node_status(proto::NodeStatusRequest::default()).await.unwrap().into_inner();
        assert_eq!(answer.node, node);
        answer.groups.into_iter().next().expect("one destination")
    }

    /// Waits until all nodes stand at one log index, with nothing missing, and compares their digests.
    async fn agree(&self) {
        let comparing = async {
            loop {
                let mut all = BTreeSet::new();
                let mut missing = 0;
                for node in self.nodes.keys() {
                    let status = self.status(node.as_str()).await;
                    missing += status.transactions.unwrap().missing;
                    all.insert((status.state_index, status.state_digest));
                }
                let indexes: BTreeSet<u64> = all.iter().map(|(index, _)| *index).collect();
                assert!(indexes.len() == all.len(), "equal index, other digest: {all:?}");
                if all.len() == 1 && missing == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LIMIT, comparing).await.expect("the nodes agree");
    }

    async fn shut(mut self) {
        for node in NODES {
            if self.nodes.contains_key(&name::<NodeName>(node)) {
                self.stop(node).await;
            }
        }
    }
}

fn committed(verdict: &Verdict) -> Position {
    match verdict {
        Verdict::Committed(decided) => decided.position,
        other => panic!("not committed: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_committed_held_and_read_back_from_every_node() {
    let mut shop = Shop::with_nodes().await;
    for (size, suite) in [(1, Suite::X25519), (1024, Suite::XWing), (3 * 1024 * 1024 + 17, Suite::XWing)] {
        let payload: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
        let header = shop.header(&payload);
        let stripes = shop.seal(&[(header.clone(), &payload)], suite);
        shop.publish(&stripes).await;
        let position = committed(&shop.receipts(&header, 3).await);
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
async fn order_holds_per_key_and_a_lost_race_is_a_conflict() {
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
async fn who_asks_is_told_also_of_what_never_came() {
    let mut shop = Shop::with_nodes().await;
    let sent = shop.header(b"sent");
    shop.send(&sent, b"sent").await;
    let position = committed(&shop.receipts(&sent, 3).await);
    let mut never = shop.header(b"never sent");
    never.deadline = sealcast::core::id::Time(shop.seams.clock.now().0 - 60_000);
    let topic = Topic::segments(&name("test"), &name("orders"));
    let tag = shop.directory.destinations[&name("orders")].tag;
    let asked = [&sent, &never].map(|header| (header.id, header.deadline, None)).to_vec();
    let query = Query { time: shop.seams.clock.now(), asked }.sign(&shop.sender, tag);
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
    committed(&shop.receipts(&during, 3).await);
    assert_eq!(shop.get("c", &during).await.unwrap().1, large);
    assert_eq!(shop.get("c", &before).await.unwrap().1, b"before");
    shop.agree().await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_reached_a_node_is_fetched_from_the_others() {
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
