//! Three nodes in one process over the embedded transport, in an environment of their own, and a sender and a reader that
//! work by hand: for tests of what nodes do.

#![allow(dead_code)] // each test file uses its part

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealcast::config::environment::{Plan, Written, write};
use sealcast::config::{NodeConfig, Sources, TransportSettings};
use sealcast::core::directory::Directory;
use sealcast::core::id::{
    Digest, Epoch, NodeName, ParcelId, PayloadTag, Position, RefusalReason, SenderName, Suite, Ticket, TransactionId,
};
use sealcast::core::receipt::{Agreed, Counter, Directories, Notice, Statement, Verdict, Verified};
use sealcast::core::seal::keys::PayloadTagger;
use sealcast::core::seal::suite::HpkePublic;
use sealcast::core::seal::transaction::{ExpectedVersion, Payload, Predecessor, PrivateHeader};
use sealcast::core::seal::{ParcelSealer, WrapTarget};
use sealcast::core::sign::SecretKey;
use sealcast::core::split::header::{Core, CoreDestination, Profile};
use sealcast::core::split::stripe::{Splitter, Stripe};
use sealcast::keys::{ReaderKey, SecretFile, SenderKey};
use sealcast::node::{Node, NodeOptions};
use sealcast::rpc::client::{Dialer, retryable};
use sealcast::rpc::proto::reader_client::ReaderClient;
use sealcast::rpc::proto::{self, read_response::Part};
use sealcast::rpc::tls::Credentials;
use sealcast::seams::Seams;
use sealcast::telemetry::Meter;
use sealcast::transport::embedded::EmbeddedOptions;
use sealcast::transport::{AnyTransport, Record, Topic, Transport, TransportOptions};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::common::ports;

/// By node, the transactions of which it said something; and by version, how often a directory was told.
pub type Said = (BTreeMap<String, BTreeSet<TransactionId>>, BTreeMap<u64, usize>);

pub const NODES: [&str; 3] = ["a", "b", "c"];
/// Long enough for a slow machine; a test that waits for it fails.
pub const LIMIT: Duration = Duration::from_secs(60);

pub fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// One environment: its files, its transport and its nodes.
pub struct Shop {
    _folder: tempfile::TempDir,
    pub seams: Seams,
    pub written: Written,
    pub directory: Arc<Directory>,
    pub transport: Arc<AnyTransport>,
    pub nodes: BTreeMap<NodeName, Node>,
    pub sender: SecretKey,
    pub dialer: Dialer,
    /// Where nodes that are started serve their pages.
    pub http: Option<String>,
    _directory: watch::Sender<Arc<Directory>>,
    pub parcels: u64,
    /// The destination that is meant where none is named: `orders`, or the first of an environment that has none.
    main: String,
}

impl Shop {
    /// An environment with the destination `orders`, whose nodes do not run yet.
    pub async fn open() -> Self {
        Self::open_for(&["orders"]).await
    }

    /// An environment with these destinations.
    pub async fn open_for(destinations: &[&str]) -> Self {
        let shop = Self::open_silent(destinations).await;
        shop.make_notices().await;
        shop
    }

    /// Makes the notices topic of an environment that was opened without.
    pub async fn make_notices(&self) {
        let AnyTransport::Embedded(embedded) = self.transport.as_ref() else { panic!("it is embedded") };
        embedded.create_topic(&Topic::notices(&name("test")), 3).await.unwrap();
    }

    /// An environment with these destinations, whose notices topic is not there: nobody hears what nodes say.
    pub async fn open_silent(destinations: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let seams = Seams::real();
        let records = folder.path().join("records");
        let plan = Plan {
            name: name("test"),
            nodes: NODES
                .iter()
                .zip(ports::free(3))
                .map(|(node, port)| (name(node), format!("127.0.0.1:{port}")))
                .collect(),
            destinations: destinations.iter().map(|destination| name(destination)).collect(),
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
        for destination in destinations {
            embedded.create_topic(&Topic::segments(&name("test"), &name(destination)), 3).await.unwrap();
        }
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
            http: None,
            _directory: newest,
            parcels: 0,
            main: destinations.iter().find(|name| **name == "orders").unwrap_or(&destinations[0]).to_string(),
        }
    }

    /// An environment with the destination `orders`, whose nodes run.
    pub async fn with_nodes() -> Self {
        Self::with_nodes_for(&["orders"]).await
    }

    /// An environment with these destinations, whose nodes run.
    pub async fn with_nodes_for(destinations: &[&str]) -> Self {
        let mut shop = Self::open_for(destinations).await;
        for node in NODES {
            shop.start(node).await;
        }
        shop.ready().await;
        shop
    }

    pub async fn start(&mut self, node: &str) {
        self.start_over(node, self.transport.clone()).await;
    }

    /// Starts a node over a transport of its own.
    pub async fn start_over(&mut self, node: &str, transport: Arc<AnyTransport>) {
        self.start_on(node, transport, self.seams.clone()).await;
    }

    /// Starts a node on a machine of its own.
    pub async fn start_on(&mut self, node: &str, transport: Arc<AnyTransport>, seams: Seams) {
        let config = NodeConfig::load(&Sources::file(&self.written.nodes[&name(node)])).unwrap();
        let mut options = NodeOptions::from_config(&config).unwrap();
        options.http = self.http.clone();
        let started = Node::start(options, seams, transport).await.unwrap();
        self.nodes.insert(name(node), started);
    }

    pub async fn stop(&mut self, node: &str) {
        let node = self.nodes.remove(&name(node)).unwrap();
        tokio::time::timeout(LIMIT, node.shutdown()).await.expect("it drains");
    }

    pub async fn ready(&self) {
        for node in self.nodes.values() {
            let mut readiness = node.readiness();
            tokio::time::timeout(LIMIT, readiness.wait_for(|readiness| readiness.ready())).await.unwrap().unwrap();
        }
    }

    pub fn header(&self, payload: &[u8]) -> PrivateHeader {
        self.header_to(&[&self.main], payload)
    }

    /// The private header of a transaction to these destinations.
    pub fn header_to(&self, destinations: &[&str], payload: &[u8]) -> PrivateHeader {
        let now = self.seams.clock.now();
        let id = TransactionId::from_parts(now, self.seams.randomness.array().unwrap());
        let tags = destinations.iter().map(|destination| self.directory.destinations[&name(destination)].tag);
        let payload = Payload::plain(payload.len() as u64, PayloadTagger::whole(&self.sender, payload));
        PrivateHeader::new(id, now.after(Duration::from_secs(600)), Some(payload), tags)
    }

    /// Orders a header: its key, its predecessor, the version that it expects.
    pub fn keyed(&self, payload: &[u8], after: Option<&PrivateHeader>, expected: ExpectedVersion) -> PrivateHeader {
        let mut header = self.header(payload);
        header.ordering_key = Some(b"customer-42".to_vec());
        for order in header.destinations.values_mut() {
            order.predecessor = after.map(|before| Predecessor { transaction: before.id, deadline: before.deadline });
            order.expected_version = expected;
        }
        header
    }

    /// Seals transactions in one parcel and cuts it into stripes.
    pub fn seal(&mut self, transactions: &[(PrivateHeader, &[u8])], suite: Suite) -> Vec<Stripe> {
        let tags = transactions[0].0.destinations.keys();
        let entries: Vec<_> = tags.map(|tag| self.directory.destination_by_tag(tag).unwrap()).collect();
        let keys: Vec<_> = entries.iter().map(|entry| entry.current_key(suite).unwrap()).collect();
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
            destinations: entries
                .iter()
                .zip(&keys)
                .map(|(entry, key)| CoreDestination { tag: entry.tag, key: key.id, sequence: self.parcels })
                .collect(),
        };
        self.parcels += 1;
        let sealed = self.sealed(&core, transactions);
        self.split(core, &sealed)
    }

    /// Seals transactions under this core: the parcel's bytes.
    pub fn sealed(&self, core: &Core, transactions: &[(PrivateHeader, &[u8])]) -> Vec<u8> {
        let target = |destination: &CoreDestination| {
            let entry = self.directory.destination_by_tag(&destination.tag).unwrap();
            let public = &entry.key(&destination.key).unwrap().public;
            WrapTarget { tag: entry.tag, public: HpkePublic::from_bytes(core.suite, public).unwrap() }
        };
        let targets: Vec<_> = core.destinations.iter().map(target).collect();
        let random = |n: usize| {
            let mut bytes = vec![0; n];
            self.seams.randomness.fill(&mut bytes).unwrap();
            bytes
        };
        let mut out = Vec::new();
        let k = zeroize::Zeroizing::new(random(32).try_into().unwrap());
        let draws: Vec<_> = targets.iter().map(|_| random(64).try_into().unwrap()).collect();
        let count = transactions.len() as u32;
        let mut sealer = ParcelSealer::new(&core.context(), &targets, count, &k, &draws, &mut out).unwrap();
        for (header, payload) in transactions {
            sealer.seal(header.clone(), payload, &mut out).unwrap();
        }
        sealer.finish().unwrap();
        out
    }

    /// Cuts a parcel's bytes into stripes.
    pub fn split(&self, core: Core, sealed: &[u8]) -> Vec<Stripe> {
        let mut splitter = Splitter::new(core, self.sender.clone()).unwrap();
        let mut stripes = splitter.push(sealed).unwrap();
        stripes.push(splitter.finish().unwrap());
        stripes
    }

    /// Publishes stripes to all destinations of their parcel.
    pub async fn publish(&self, stripes: &[Stripe]) {
        for destination in &stripes[0].header.core.destinations {
            let entry = self.directory.destination_by_tag(&destination.tag).unwrap();
            self.publish_to(entry.name.as_str(), stripes).await;
        }
    }

    /// Publishes records to one partition of `orders`.
    pub async fn publish_at(&self, partition: usize, records: impl IntoIterator<Item = Bytes>) {
        let partitions = self.transport.partitions(&Topic::segments(&name("test"), &name("orders")));
        let to = &partitions[partition].id;
        for value in records {
            self.transport.append(to.clone(), Record { key: Bytes::new(), value }).unwrap().await.unwrap();
        }
    }

    /// Publishes stripes to one destination.
    pub async fn publish_to(&self, destination: &str, stripes: &[Stripe]) {
        let topic = Topic::segments(&name("test"), &name(destination));
        let partitions = self.transport.partitions(&topic);
        for segment in stripes.iter().flat_map(|stripe| &stripe.segments) {
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

    /// Seals a transaction alone in a parcel, and publishes it.
    pub async fn send(&mut self, header: &PrivateHeader, payload: &[u8]) {
        let stripes = self.seal(&[(header.clone(), payload)], Suite::XWing);
        self.publish(&stripes).await;
    }

    /// Reads all notices until all nodes of `signers` agree on this transaction.
    pub async fn receipts(&self, header: &PrivateHeader, signers: usize) -> Verdict {
        self.agreed(&self.main, header, signers).await.verdict
    }

    /// The same of one destination, with who signed.
    pub async fn agreed(&self, destination: &str, header: &PrivateHeader, signers: usize) -> Agreed {
        let entry = &self.directory.destinations[&name(destination)];
        let ticket = Ticket { destination: name(destination), transaction: header.id, deadline: header.deadline };
        let tag: Option<PayloadTag> = header.payload.map(|payload| payload.tag);
        let mut counter = Counter::new(ticket, entry.tag, name::<SenderName>("web"), tag);
        let directories = Directories::from([(self.directory.version, self.directory.clone())]);
        let mut at = BTreeMap::new();
        let counting = async {
            loop {
                for receipt in self.new_receipts(&mut at).await {
                    counter.add(&receipt);
                }
                if let Some(agreed) = counter.agreed(&directories)
                    && agreed.signers.len() >= signers
                {
                    return agreed;
                }
            }
        };
        let outcome = tokio::time::timeout(LIMIT, counting).await;
        outcome.unwrap_or_else(|_| panic!("{} has no receipts of {signers} nodes", header.id))
    }

    /// Reads on where `at` stands, and gives the receipts that were published since; waits a moment when there are none.
    async fn new_receipts(&self, at: &mut BTreeMap<i32, i64>) -> Vec<Verified<Statement>> {
        let directories = Directories::from([(self.directory.version, self.directory.clone())]);
        let mut found = Vec::new();
        for notice in self.new_notices(at).await {
            if let Notice::Receipts(receipts) = notice {
                found.extend(receipts.verify(&directories).unwrap());
            }
        }
        found
    }

    async fn new_notices(&self, at: &mut BTreeMap<i32, i64>) -> Vec<Notice> {
        let topic = Topic::notices(&name("test"));
        let mut found = Vec::new();
        for partition in self.transport.partitions(&topic).iter() {
            let next = at.entry(partition.id.number).or_default();
            let batch = self.transport.read(partition.id.clone(), *next).await.unwrap();
            *next = batch.next;
            found.extend(batch.records.into_iter().map(|record| Notice::decode(&record.value.unwrap()).unwrap()));
        }
        found
    }

    /// What each node refused so far: parcel, D and reason.
    pub async fn refused(&self) -> BTreeMap<String, BTreeSet<(ParcelId, Digest, RefusalReason)>> {
        let directories = Directories::from([(self.directory.version, self.directory.clone())]);
        let (mut at, mut refused) = (BTreeMap::new(), BTreeMap::new());
        loop {
            let before = at.clone();
            for notice in self.new_notices(&mut at).await {
                if let Notice::Refusal(refusal) = notice
                    && let Ok(refusal) = refusal.verify(&directories)
                {
                    let said = refusal.said();
                    let of: &mut BTreeSet<_> = refused.entry(refusal.node().to_string()).or_default();
                    of.insert((said.parcel, said.digest, said.reason));
                }
            }
            if at == before {
                return refused;
            }
        }
    }

    /// How many refusals each node published so far, copies included.
    pub async fn refusals(&self) -> BTreeMap<String, usize> {
        let directories = Directories::from([(self.directory.version, self.directory.clone())]);
        let (mut at, mut refusals) = (BTreeMap::new(), BTreeMap::new());
        loop {
            let before = at.clone();
            for notice in self.new_notices(&mut at).await {
                if let Notice::Refusal(refusal) = notice {
                    *refusals.entry(refusal.verify(&directories).unwrap().node().to_string()).or_default() += 1;
                }
            }
            if at == before {
                return refusals;
            }
        }
    }

    /// Everything that was said so far: by node, the transactions; and the directories, by version, with their copies.
    pub async fn all_said(&self, directories: &Directories) -> Said {
        let (mut at, mut said, mut told) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        loop {
            let before = at.clone();
            for notice in self.new_notices(&mut at).await {
                match notice {
                    Notice::Receipts(receipts) => {
                        for receipt in receipts.verify(directories).unwrap() {
                            let of: &mut BTreeSet<_> = said.entry(receipt.node().to_string()).or_default();
                            of.insert(receipt.said().transaction);
                        }
                    }
                    Notice::Directory(bytes) => {
                        let known = directories.values().find(|directory| *directory.bytes() == bytes).unwrap();
                        *told.entry(known.version).or_default() += 1;
                    }
                    _ => {}
                }
            }
            if at == before {
                return (said, told);
            }
        }
    }

    /// How often each node has said something of a transaction.
    pub async fn said(&self, header: &PrivateHeader) -> BTreeMap<String, usize> {
        let (mut at, mut said) = (BTreeMap::new(), BTreeMap::new());
        loop {
            let before = at.clone();
            for receipt in self.new_receipts(&mut at).await {
                if receipt.said().transaction == header.id {
                    *said.entry(receipt.node().to_string()).or_default() += 1;
                }
            }
            if at == before {
                return said;
            }
        }
    }

    /// What nodes said of a transaction, and who: each statement once, however often and in whatever domain it lies.
    pub async fn words(&self, header: &PrivateHeader) -> BTreeSet<(String, String)> {
        let (mut at, mut words) = (BTreeMap::new(), BTreeSet::new());
        loop {
            let before = at.clone();
            let receipts = self.new_receipts(&mut at).await;
            let about = receipts.iter().filter(|receipt| receipt.said().transaction == header.id);
            words.extend(about.map(|receipt| (receipt.node().to_string(), format!("{:?}", receipt.said()))));
            if at == before {
                return words;
            }
        }
    }

    /// A call to a node; made again when the connection to an earlier life of it breaks.
    pub async fn called<T>(
        &self,
        node: &str,
        call: impl AsyncFn(ReaderClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> T {
        for _ in 0..200 {
            if let Ok(reader) = self.dialer.reader(&name(node)) {
                match call(reader).await {
                    Ok(answer) => return answer.into_inner(),
                    Err(status) => assert!(retryable(&status), "{node}: {status}"),
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{node} does not answer")
    }

    /// A transaction of the only destination that has it, read from one node.
    pub async fn get(
        &self,
        node: &str,
        header: &PrivateHeader,
    ) -> Result<(proto::ItemStart, Vec<u8>), proto::ReadMiss> {
        self.get_from(node, None, header).await
    }

    /// A transaction, read from one node.
    pub async fn get_from(
        &self,
        node: &str,
        destination: Option<&str>,
        header: &PrivateHeader,
    ) -> Result<(proto::ItemStart, Vec<u8>), proto::ReadMiss> {
        let request = proto::GetRequest {
            transaction: Bytes::copy_from_slice(&header.id.to_bytes()),
            destination: destination.map(str::to_owned),
            freshness: Some(proto::Freshness { consistency: 1, timeout_ms: 30_000, ..Default::default() }),
            ..Default::default()
        };
        let mut stream = self.called(node, async |mut reader| reader.get(request.clone()).await).await;
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

    /// How a node does.
    pub async fn node_status(&self, node: &str) -> proto::NodeStatusResponse {
        let request = proto::NodeStatusRequest::default();
        let answer = self.called(node, async |mut reader| reader.node_status(request).await).await;
        assert_eq!(answer.node, node);
        answer
    }

    /// How a node does in one destination.
    pub async fn status(&self, node: &str, destination: &str) -> proto::GroupStatus {
        let mut groups = self.node_status(node).await.groups.into_iter();
        groups.find(|group| group.destination == destination).expect("it is served")
    }

    /// Waits until all nodes stand at one log index in every destination, with nothing missing, and compares their digests.
    pub async fn agree(&self) {
        for destination in self.directory.destinations.keys() {
            let agreeing = self.agree_in(destination.as_str());
            tokio::time::timeout(LIMIT, agreeing).await.expect("the nodes agree");
        }
    }

    async fn agree_in(&self, destination: &str) {
        loop {
            let mut all = BTreeSet::new();
            let mut missing = 0;
            for node in self.nodes.keys() {
                let status = self.status(node.as_str(), destination).await;
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
    }

    /// The folder of a node's data.
    pub fn data(&self, node: &str) -> PathBuf {
        let config = NodeConfig::load(&Sources::file(&self.written.nodes[&name(node)])).unwrap();
        config.node.data
    }

    /// Drains all nodes.
    pub async fn shut(mut self) {
        for node in NODES {
            if self.nodes.contains_key(&name::<NodeName>(node)) {
                self.stop(node).await;
            }
        }
    }
}

pub fn committed(verdict: &Verdict) -> Position {
    match verdict {
        Verdict::Committed(decided) => decided.position,
        other => panic!("not committed: {other:?}"),
    }
}
