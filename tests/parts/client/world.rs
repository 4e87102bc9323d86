//! A world for the client's tests: an embedded transport, a directory of three nodes, and the nodes themselves played by the
//! test: what they would recover, open and sign.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealcast::client::Options;
use sealcast::core::directory::{DestinationEntry, DestinationKey, Directory, Draft, NodeEntry, SenderEntry};
use sealcast::core::id::{
    DestinationName, Digest, EnvironmentId, EnvironmentName, NodeName, ParcelId, Position, SenderName, Suite, Time,
};
use sealcast::core::receipt::{Decided, NoticeRecord, StageTimes, Statement, Verdict, is_query, sign_receipts};
use sealcast::core::seal::suite::HpkeSecret;
use sealcast::core::seal::{Event, ParcelContext, ParcelOpener, SealedTransaction};
use sealcast::core::sign::{PublicKey, SecretKey};
use sealcast::core::split::segment::{Segment, SignatureCache, VerifiedSegment};
use sealcast::core::split::stripe::recover;
use sealcast::seams::Seams;
use sealcast::store::outbox::OutboxOptions;
use sealcast::transport::embedded::{Embedded, EmbeddedOptions};
use sealcast::transport::{PartitionId, ReadError, Record, Topic, Transport};

pub const NODES: [&str; 3] = ["alfa", "bravo", "charlie"];

/// A parcel as a node opens it.
pub struct Opened {
    pub parcel: ParcelId,
    pub digest: Digest,
    pub transactions: Vec<(SealedTransaction, Vec<u8>)>,
}

pub struct World {
    pub folder: tempfile::TempDir,
    pub transport: Arc<Embedded>,
    pub directory: Arc<Directory>,
    pub operator: SecretKey,
    pub sender: SecretKey,
    pub nodes: BTreeMap<NodeName, SecretKey>,
    pub secrets: BTreeMap<DestinationName, HpkeSecret>,
}

pub fn destination(name: &str) -> DestinationName {
    DestinationName::new(name).unwrap()
}

impl World {
    /// Two destinations, `orders` and `stock`, each with a topic of `partitions` partitions.
    pub async fn new(partitions: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (operator, sender) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
        let environment = EnvironmentId([7; 16]);
        let mut draft = Draft::new(environment, EnvironmentName::new("test").unwrap(), Time(4_102_444_800_000));
        let mut nodes = BTreeMap::new();
        for (number, name) in (10..).zip(NODES) {
            let signing = SecretKey::from_seed(&[number; 32]);
            let hpke = HpkeSecret::generate(Suite::XWing, &[number + 20; 32]).unwrap();
            draft.add_node(NodeEntry {
                name: NodeName::new(name).unwrap(),
                address: format!("127.0.0.1:{}", 7000 + u16::from(number)),
                signing: signing.public(),
                tls: SecretKey::from_seed(&[number + 10; 32]).public().bytes(),
                hpke: Bytes::copy_from_slice(hpke.public().bytes()),
            });
            nodes.insert(NodeName::new(name).unwrap(), signing);
        }
        let mut secrets = BTreeMap::new();
        for (number, name) in (50..).zip(["orders", "stock"]) {
            let secret = HpkeSecret::generate(Suite::XWing, &[number; 32]).unwrap();
            let public = Bytes::copy_from_slice(secret.public().bytes());
            let key = DestinationKey::current(Suite::XWing, public).unwrap();
            let voters = NODES.iter().map(|name| NodeName::new(name).unwrap());
            draft.add_destination(DestinationEntry::new(environment, destination(name), voters, vec![key]));
            secrets.insert(destination(name), secret);
        }
        draft.add_sender(SenderEntry {
            name: SenderName::new("web").unwrap(),
            signing: sender.public(),
            destinations: BTreeSet::from([destination("orders"), destination("stock")]),
        });
        let bytes = draft.sign(&operator).unwrap();
        let directory = Arc::new(Directory::verify(&bytes, &operator.public(), 1).unwrap());
        let transport = Embedded::open(&EmbeddedOptions::new(folder.path().join("topics")), &Seams::real()).unwrap();
        for name in ["orders", "stock"] {
            let topic = Topic::segments(&directory.name, &destination(name));
            transport.create_topic(&topic, partitions).await.unwrap();
        }
        transport.create_topic(&Topic::notices(&directory.name), 2).await.unwrap();
        Self { folder, transport: Arc::new(transport), directory, operator, sender, nodes, secrets }
    }

    pub fn options(&self) -> Options {
        let mut options = Options::new(self.sender.clone(), self.operator.public(), self.directory.clone());
        options.outbox = OutboxOptions { folder: Some(self.outbox()), bytes: 1 << 30 };
        options
    }

    pub fn outbox(&self) -> std::path::PathBuf {
        Path::join(self.folder.path(), "outbox")
    }

    pub fn sender_key(&self) -> PublicKey {
        self.sender.public()
    }

    /// Every record of a destination's topic, in the order of its partitions.
    pub async fn records(&self, name: &str) -> Vec<Record> {
        let topic = Topic::segments(&self.directory.name, &destination(name));
        let mut records = Vec::new();
        for partition in self.transport.partitions(&topic).iter() {
            let mut at = 0;
            loop {
                match self.transport.read(partition.id.clone(), at).await {
                    Ok(batch) => {
                        records.extend(
                            batch
                                .records
                                .into_iter()
                                .map(|record| Record { key: record.key, value: record.value.unwrap_or_default() }),
                        );
                        at = batch.next;
                        if at >= batch.end {
                            break;
                        }
                    }
                    Err(ReadError::OutOfRange { .. }) => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        records
    }

    /// How often each segment lies in a destination's topic, once all shards of its stripes do. One whose broker was slow to
    /// acknowledge it is copied to others.
    pub async fn shards(&self, name: &str) -> BTreeMap<(Bytes, Bytes), usize> {
        for _ in 0..600 {
            let (mut times, mut stripes) = (BTreeMap::new(), BTreeMap::<_, (usize, BTreeSet<Bytes>)>::new());
            for record in self.records(name).await.into_iter().filter(|record| !is_query(&record.value)) {
                let segment = Segment::parse(&record.value).unwrap();
                let header = segment.header();
                let of = stripes.entry((header.core.parcel, header.stripe)).or_default();
                of.0 = header.core.profile.n();
                of.1.insert(record.key.clone());
                *times.entry((record.key, record.value)).or_default() += 1;
            }
            if stripes.values().all(|(n, shards)| shards.len() == *n) {
                return times;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("shards never came to {name}");
    }

    /// Waits until each of these segments lies there once more than it did.
    pub async fn sent_again(&self, name: &str, before: &BTreeMap<(Bytes, Bytes), usize>) {
        for _ in 0..600 {
            let now = self.shards(name).await;
            if before.iter().all(|(segment, times)| now.get(segment) > Some(times)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not all of it was sent to {name} again");
    }

    /// What a node of this destination makes of the topic: every parcel of which all stripes can be recovered.
    pub async fn open(&self, name: &str) -> Vec<Opened> {
        self.open_where(name, |_| true).await
    }

    async fn open_where(&self, name: &str, which: impl Fn(ParcelId) -> bool) -> Vec<Opened> {
        let cache = SignatureCache::new(1024);
        let mut stripes: BTreeMap<ParcelId, BTreeMap<u32, Vec<VerifiedSegment>>> = BTreeMap::new();
        for record in self.records(name).await {
            if is_query(&record.value) {
                continue;
            }
            let segment = Segment::parse(&record.value).unwrap().verify(&cache, &self.sender_key()).unwrap();
            assert_eq!(record.key.as_ref(), segment.id().to_bytes());
            let header = segment.header().clone();
            if !which(header.core.parcel) {
                continue;
            }
            stripes.entry(header.core.parcel).or_default().entry(header.stripe).or_default().push(segment);
        }
        stripes.into_iter().filter_map(|(parcel, stripes)| self.open_parcel(name, parcel, &stripes)).collect()
    }

    fn open_parcel(
        &self,
        name: &str,
        parcel: ParcelId,
        stripes: &BTreeMap<u32, Vec<VerifiedSegment>>,
    ) -> Option<Opened> {
        let (last, segments) = stripes.last_key_value()?;
        let last_header = segments.first()?.header();
        if !last_header.last || stripes.len() != *last as usize + 1 {
            return None;
        }
        let core = &last_header.core;
        let context = ParcelContext {
            ctx: core.context(),
            suite: core.suite,
            destinations: core.destinations.iter().map(|one| (one.tag, one.key)).collect(),
        };
        let tag = self.directory.destinations[&destination(name)].tag;
        let mut opener = ParcelOpener::new(context, tag, self.secrets[&destination(name)].clone());
        let mut payloads: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        let mut transactions = Vec::new();
        let mut sink = |event: Event<'_>| match event {
            Event::Begin { index, .. } => drop(payloads.insert(index, Vec::new())),
            Event::Payload { index, bytes } => payloads.get_mut(&index).unwrap().extend_from_slice(bytes),
            Event::End(transaction) => transactions.push(*transaction),
            _ => {}
        };
        for segments in stripes.values() {
            let sealed = recover(segments).ok()?;
            opener.push(&sealed, &mut sink).unwrap();
        }
        opener.finish(&mut sink).unwrap();
        let digest = segments.first()?.digest();
        let transactions = transactions
            .into_iter()
            .map(|transaction| {
                let payload = payloads.remove(&transaction.index).unwrap();
                (transaction, payload)
            })
            .collect();
        Some(Opened { parcel, digest, transactions })
    }

    /// As [`World::opened`], but for parcels that the current secret does not open.
    pub async fn opened_except(&self, name: &str, without: &[ParcelId], transactions: usize) -> Vec<Opened> {
        for _ in 0..600 {
            let opened = self.open_where(name, |parcel| !without.contains(&parcel)).await;
            if opened.iter().map(|parcel| parcel.transactions.len()).sum::<usize>() >= transactions {
                return opened;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{transactions} transactions never came to {name}");
    }

    /// Opens until this many transactions have come.
    pub async fn opened(&self, name: &str, transactions: usize) -> Vec<Opened> {
        for _ in 0..600 {
            let opened = self.open(name).await;
            if opened.iter().map(|parcel| parcel.transactions.len()).sum::<usize>() >= transactions {
                return opened;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{transactions} transactions never came to {name}");
    }

    /// What a node says of an opened transaction.
    pub fn statement(&self, parcel: &Opened, index: usize, verdict: impl Fn(Decided) -> Verdict) -> Statement {
        let (transaction, _) = &parcel.transactions[index];
        let decided = Decided {
            position: Position { index: 7, number: index as u32 },
            payload_tag: transaction.payload.tag,
            digest: parcel.digest,
        };
        Statement {
            sender: SenderName::new("web").unwrap(),
            transaction: transaction.header.id,
            deadline: transaction.header.deadline,
            directory: self.directory.version,
            verdict: verdict(decided),
            times: StageTimes::default(),
        }
    }

    /// A node signs statements and publishes them.
    pub async fn say(&self, node: &str, name: &str, statements: &[Statement]) {
        let node = NodeName::new(node).unwrap();
        let tag = self.directory.destinations[&destination(name)].tag;
        for record in sign_receipts(&self.nodes[&node], &node, tag, self.directory.version, statements) {
            self.publish(record).await;
        }
    }

    /// Publishes a record on the notices topic.
    pub async fn publish(&self, record: NoticeRecord) {
        let number = i32::from(record.value.last().unwrap() % 2);
        self.publish_at(number, record).await;
    }

    /// The same in one of its partitions.
    pub async fn publish_at(&self, number: i32, record: NoticeRecord) {
        let to = PartitionId { topic: Topic::notices(&self.directory.name), number };
        let record = Record { key: Bytes::copy_from_slice(&record.key), value: record.value.into() };
        self.transport.append(to, record).unwrap().await.unwrap();
    }

    /// A directory like this one, of the next version, after a change.
    pub fn next_directory(&mut self, change: impl FnOnce(&mut Draft)) -> Vec<u8> {
        let mut draft = Draft::after(&self.directory);
        change(&mut draft);
        let bytes = draft.sign(&self.operator).unwrap();
        self.directory = Arc::new(Directory::verify(&bytes, &self.operator.public(), 1).unwrap());
        bytes
    }
}
