//! Local trouble is no verdict, and who lies splits nobody (R1, R2, R21, R22): three nodes, each of which is shown what the
//! test wants it to see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sealcast::client::{Client, Options, Transaction};
use sealcast::config::{NodeConfig, Sources};
use sealcast::core::directory::{Directory, Draft, KeyState, SenderEntry};
use sealcast::core::gather::DeferReason;
use sealcast::core::id::{Digest, Epoch, RefusalReason, Rejection, SenderName, Suite, Time};
use sealcast::core::receipt::{Query, Verdict};
use sealcast::core::seal::transaction::PrivateHeader;
use sealcast::core::sign::SecretKey;
use sealcast::core::split::header::{Core, StripeHeader};
use sealcast::core::split::segment::{Segment, SignatureCache};
use sealcast::core::split::stripe::{Splitter, Stripe};
use sealcast::keys::{KeyRing, OperatorKey, SecretFile};
use sealcast::node::{Node, NodeOptions};
use sealcast::seams::{HookedDisk, Seams, SystemClock};
use sealcast::transport::adversary::{Adversary, AdversaryOptions, Mood};
use sealcast::transport::{AnyTransport, Topic, Transport};

use crate::client::renewing::Hurried;
use crate::node::Filled;
use crate::segments::forge;
use crate::shop::{LIMIT, NODES, Shop, committed, name};

fn segments() -> Topic {
    Topic::segments(&name("test"), &name("orders"))
}

fn options(shop: &Shop, node: &str) -> NodeOptions {
    let config = NodeConfig::load(&Sources::file(&shop.written.nodes[&name(node)])).unwrap();
    NodeOptions::from_config(&config).unwrap()
}

async fn start(shop: &mut Shop, node: &str, ring: &KeyRing, transport: Arc<AnyTransport>) {
    let mut options = options(shop, node);
    options.rings.insert(name("orders"), Arc::new(ring.clone()));
    let started = Node::start(options, shop.seams.clone(), transport).await.unwrap();
    shop.nodes.insert(name(node), started);
}

/// The key ring of "orders" as nodes have it, and after a rotation, with what the next directory says of it.
fn rotated(shop: &Shop) -> (KeyRing, KeyRing, impl FnOnce(&mut Draft) + use<>) {
    let before = options(shop, "a").rings[&name("orders")].as_ref().clone();
    let mut after = before.clone();
    let key = after.add_epoch(Suite::XWing, &*shop.seams.randomness).unwrap();
    let change = |draft: &mut Draft| {
        let keys = &mut draft.destinations.get_mut(&name("orders")).unwrap().keys;
        keys.iter_mut().filter(|old| old.suite == Suite::XWing).for_each(|old| old.state = KeyState::Retired);
        keys.push(key);
    };
    (before, after, change)
}

/// Puts a changed directory in force on all nodes that run; what the test seals and verifies goes by it.
async fn put_in_force(shop: &mut Shop, change: impl FnOnce(&mut Draft)) {
    let operator = OperatorKey::read(&shop.written.operator_key).unwrap();
    let mut draft = Draft::after(&shop.directory);
    change(&mut draft);
    let bytes = draft.sign(operator.signing()).unwrap();
    let next = Directory::verify(&bytes, &operator.signing().public(), 1).unwrap();
    let file = shop.written.nodes[&name("a")].parent().unwrap().join("directory");
    std::fs::write(file, &bytes).unwrap();
    assert!(shop.nodes[&name("a")].reload_directory().unwrap());
    for node in shop.nodes.values() {
        let mut in_force = node.served()[&name("orders")].context.in_force.clone();
        let there = in_force.wait_for(|directory| directory.version == next.version);
        tokio::time::timeout(LIMIT, there).await.expect("it comes in force").unwrap();
    }
    shop.directory = Arc::new(next);
}

async fn until(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn alarms(shop: &Shop, node: &str) -> Vec<String> {
    let context = &shop.nodes[&name(node)].served()[&name("orders")].context;
    context.alarms.standing().into_iter().map(|(name, _)| name).collect()
}

/// Why a node has put records aside, and how many.
fn deferred(shop: &Shop, node: &str) -> BTreeMap<DeferReason, usize> {
    let context = &shop.nodes[&name(node)].served()[&name("orders")].context;
    let mut reasons = BTreeMap::new();
    for (_, row) in context.store.snapshot().unwrap().deferred().unwrap() {
        *reasons.entry(row.reason).or_default() += 1;
    }
    reasons
}

/// Whether a node has staged the parcel that is D and it waits for its fate.
fn staged(shop: &Shop, node: &str, digest: &Digest) -> bool {
    let context = &shop.nodes[&name(node)].served()[&name("orders")].context;
    context.store.snapshot().unwrap().staged(digest).unwrap().is_some()
}

/// Waits until these nodes have refused D for this reason, and no other has.
async fn refused(shop: &Shop, nodes: &[&str], digest: Digest, reason: RefusalReason) {
    let wanted: BTreeSet<(String, RefusalReason)> = nodes.iter().map(|node| (node.to_string(), reason)).collect();
    let mut found = BTreeSet::new();
    let waiting = async {
        while found != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let all = shop.refused().await.into_iter();
            let of = all.flat_map(|(node, said)| said.into_iter().map(move |said| (node.clone(), said)));
            found = of.filter(|(_, (_, d, _))| *d == digest).map(|(node, (_, _, reason))| (node, reason)).collect();
        }
    };
    if tokio::time::timeout(LIMIT, waiting).await.is_err() {
        let aside = shop.nodes.keys().map(|node| (node.to_string(), deferred(shop, node.as_str())));
        panic!("{wanted:?} should refuse it, but {found:?} do; put aside: {:?}", aside.collect::<Vec<_>>());
    }
}

fn core_of(stripes: &[Stripe]) -> Core {
    stripes[0].header.core.clone()
}

fn digest_of(stripes: &[Stripe]) -> Digest {
    stripes.last().unwrap().digest
}

fn records(stripes: &[Stripe]) -> impl Iterator<Item = Bytes> {
    stripes.iter().flat_map(|stripe| &stripe.segments).map(|segment| segment.record.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_r22_what_some_cannot_open_is_put_aside_and_what_nobody_may_open_is_refused_and_sealed_anew() {
    let mut shop = Shop::open().await;
    let (old, new, change) = rotated(&shop);
    let first = shop.directory.clone();
    for (node, ring) in [("a", &new), ("b", &old), ("c", &old)] {
        let transport = shop.transport.clone();
        start(&mut shop, node, ring, transport).await;
    }
    shop.ready().await;
    put_in_force(&mut shop, change).await;

    // It opens on one node alone: the others' key rings are behind. They say so, and judge nothing.
    let header = shop.header(b"for the new key");
    let stripes = shop.seal(&[(header.clone(), b"for the new key")], Suite::XWing);
    shop.publish(&stripes).await;
    let missing = DeferReason::KeyMissing;
    until("b and c put it aside", async || ["b", "c"].iter().all(|node| deferred(&shop, node).contains_key(&missing)))
        .await;
    until("a stages it", async || staged(&shop, "a", &digest_of(&stripes))).await;
    for node in ["b", "c"] {
        assert!(alarms(&shop, node).contains(&"staging-fails".to_owned()), "{node}: {:?}", alarms(&shop, node));
    }
    assert!(shop.said(&header).await.is_empty(), "one of three is no quorum");
    // It opens on all but one: that one has it from the others, and signs for it.
    shop.stop("b").await;
    let transport = shop.transport.clone();
    start(&mut shop, "b", &new, transport).await;
    committed(&shop.agreed("orders", &header, 3).await.verdict);
    assert_eq!(shop.get("c", &header).await.unwrap().1, b"for the new key");
    assert!(shop.refusals().await.is_empty(), "what is missing here says nothing of the bytes");

    // Sealed to the retired key, which c still has: refused by all, and nothing is decided.
    let next = shop.directory.clone();
    shop.directory = first.clone();
    let header = shop.header(b"late");
    let late = shop.seal(&[(header.clone(), b"late")], Suite::XWing);
    shop.directory = next;
    shop.publish(&late).await;
    refused(&shop, &NODES, digest_of(&late), RefusalReason::RetiredKey).await;
    assert!(shop.said(&header).await.is_empty(), "a refusal decides no transaction");
    let anew = shop.seal(&[(header.clone(), b"late")], Suite::XWing);
    shop.publish(&anew).await;
    let agreed = shop.agreed("orders", &header, 3).await;
    let Verdict::Committed(decided) = agreed.verdict else { panic!("{:?}", agreed.verdict) };
    assert_eq!(decided.digest, digest_of(&anew));

    // Bytes that open for nobody: who has the key refuses them, who lacks it does not join in.
    let core = core_of(&shop.seal(&[(shop.header(b"x"), b"x")], Suite::XWing));
    let noise = shop.split(core, &crate::segments::sealed(5000, 1));
    shop.publish(&noise).await;
    refused(&shop, &["a", "b"], digest_of(&noise), RefusalReason::Envelope).await;

    // Of a later version, in the record or in what is sealed: nobody refuses it.
    let core = core_of(&shop.seal(&[(shop.header(b"y"), b"y")], Suite::XWing));
    let mut sealed = shop.sealed(&core, &[(shop.header(b"y"), b"y")]);
    sealed[4] = 2;
    let later = shop.split(core, &sealed);
    shop.publish(&later).await;
    let mut record = later[0].segments[0].record.to_vec();
    record[4] = 2;
    shop.publish_at(0, [Bytes::from(record)]).await;
    until("a and b put it aside", async || {
        ["a", "b"].iter().all(|node| deferred(&shop, node).get(&DeferReason::UnknownVersion) >= Some(&9))
    })
    .await;
    let about = shop.refused().await;
    assert!(about.values().flatten().all(|(_, digest, _)| *digest != digest_of(&later)), "{about:?}");

    // A service whose directory is the old one hears of the refusals, and of the directory, and seals anew by itself.
    let operator = OperatorKey::read(&shop.written.operator_key).unwrap().signing().public();
    let mut options = Options::new(shop.sender.clone(), operator, first);
    options.seams.clock = Arc::new(Hurried(SystemClock::new()));
    let client = Client::start(shop.transport.clone(), options).await.unwrap();
    let handle = client.submit("orders", Transaction::new("by the old directory")).await.unwrap();
    let before = handle.parcel();
    let receipt = tokio::time::timeout(LIMIT, handle.committed()).await.expect("it is sealed anew").unwrap();
    assert_eq!(receipt.directory_version, 2);
    assert_ne!(handle.parcel(), before);
    client.close().await;
    shop.agree().await;
    shop.shut().await;
}

/// Nodes that each read one partition of the segments topic alone, until they are told to read all.
struct Blinkered {
    shop: Shop,
    wrapped: Vec<Adversary<AnyTransport>>,
}

impl Blinkered {
    async fn new() -> Self {
        let mut shop = Shop::open().await;
        let mut wrapped = Vec::new();
        let domains: Vec<_> = shop.transport.partitions(&segments()).iter().map(|one| one.domain.clone()).collect();
        for (at, node) in NODES.iter().enumerate() {
            let blind = shop.transport.as_ref().clone().behind_adversary(AdversaryOptions::harmless(1), &shop.seams);
            let AnyTransport::Adversary(adversary) = blind.clone() else { panic!("it is one") };
            for (_, domain) in domains.iter().enumerate().filter(|(other, _)| *other != at) {
                adversary.set_mood(domain, Mood::Away);
            }
            wrapped.push(*adversary);
            shop.start_over(node, Arc::new(blind)).await;
        }
        shop.ready().await;
        Self { shop, wrapped }
    }

    /// All nodes read everything from now on.
    fn open_their_eyes(&self) {
        for adversary in &self.wrapped {
            for partition in self.shop.transport.partitions(&segments()).iter() {
                adversary.set_mood(&partition.domain, Mood::Well);
            }
        }
    }
}

/// Parcels under one core, one for each of these transactions.
fn under_one_core(shop: &mut Shop, transactions: &[(PrivateHeader, &[u8])]) -> Vec<Vec<Stripe>> {
    let core = core_of(&shop.seal(&transactions[..1], Suite::XWing));
    transactions.iter().map(|one| shop.split(core.clone(), &shop.sealed(&core, std::slice::from_ref(one)))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_two_headers_for_one_stripe_split_no_nodes_and_their_holders_learn_what_became_of_them() {
    let Blinkered { mut shop, wrapped } = Blinkered::new().await;
    // One id, two payloads, one parcel id: a and c are shown the one, b the other.
    let one = shop.header(b"one");
    let mut other = shop.header(b"other");
    (other.id, other.deadline) = (one.id, one.deadline);
    let both = under_one_core(&mut shop, &[(one.clone(), b"one"), (other.clone(), b"other")]);
    shop.publish_at(1, records(&both[1])).await;
    until("b stages its own", async || staged(&shop, "b", &digest_of(&both[1]))).await;
    for partition in [0, 2] {
        shop.publish_at(partition, records(&both[0])).await;
    }
    let agreed = shop.agreed("orders", &one, 3).await;
    let Verdict::Committed(decided) = agreed.verdict else { panic!("{:?}", agreed.verdict) };
    assert_eq!(decided.digest, digest_of(&both[0]), "D names the bytes, at every node");
    assert_eq!(shop.get("b", &one).await.unwrap().1, b"one", "b fetched what the others have");
    // Three are shown three: no quorum has any of them, and all say the same in the end.
    let mut none = [&b"x"[..], b"y", b"z"].map(|payload| (shop.header(payload), payload));
    let deadline = shop.seams.clock.now().after(Duration::from_secs(4));
    none.iter_mut().for_each(|(header, _)| header.deadline = deadline);
    let three = under_one_core(&mut shop, &none);
    for (partition, stripes) in three.iter().enumerate() {
        shop.publish_at(partition, records(stripes)).await;
    }
    for (node, stripes) in NODES.iter().zip(&three) {
        until("it stages what it is shown", async || staged(&shop, node, &digest_of(stripes))).await;
    }
    // Now all see everything: an alarm at each of them, and nothing changes.
    let blinkered = Blinkered { shop, wrapped };
    blinkered.open_their_eyes();
    let Blinkered { shop, wrapped: _wrapped } = blinkered;
    for node in NODES {
        until("it raises the alarm", async || alarms(&shop, node).contains(&"equivocation".to_owned())).await;
    }
    // The holder of the other payload asks, and learns that the id was used.
    let tag = other.payload.unwrap().tag;
    let asked = vec![(other.id, other.deadline, Some(tag))];
    let query = Query { epoch: Epoch([1; 8]), time: shop.seams.clock.now(), asked };
    let entry = &shop.directory.destinations[&name("orders")];
    shop.publish_at(0, [query.sign(&shop.sender, entry.tag).into()]).await;
    let verdict = shop.receipts(&other, 2).await;
    assert!(matches!(verdict, Verdict::Rejected(_, Rejection::IdReuse)), "{verdict:?}");
    let asked = none.iter().map(|(header, _)| (header.id, header.deadline, None)).collect();
    until("group time passes their deadline", async || {
        shop.nodes.values().all(|node| *node.served()[&name("orders")].context.group_time.borrow() > deadline)
    })
    .await;
    let query = Query { epoch: Epoch([1; 8]), time: shop.seams.clock.now(), asked };
    shop.publish_at(1, [query.sign(&shop.sender, entry.tag).into()]).await;
    for (header, _) in &none {
        let verdict = shop.receipts(header, 3).await;
        assert!(matches!(verdict, Verdict::Expired { .. }), "{verdict:?}");
    }
    shop.agree().await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_one_parcel_id_of_two_senders_is_two_parcels() {
    let mut shop = Shop::with_nodes().await;
    let till = SecretKey::from_seed(&[0x71; 32]);
    let signing = till.public();
    put_in_force(&mut shop, |draft| {
        let destinations = BTreeSet::from([name("orders")]);
        draft.add_sender(SenderEntry { name: name("till"), signing, destinations });
    })
    .await;
    let (ours, theirs) = (shop.header(b"ours"), shop.header(b"theirs"));
    let mine = shop.seal(&[(ours.clone(), b"ours")], Suite::XWing);
    // The same epoch and parcel id, as whoever reads the topic can copy them, under another key.
    let mut core = core_of(&mine);
    core.sender = till.public().bytes();
    let sealed = shop.sealed(&core, &[(theirs.clone(), b"theirs")]);
    let mut splitter = Splitter::new(core, till).unwrap();
    assert!(splitter.push(&sealed).unwrap().is_empty(), "it is one stripe");
    let copied = [splitter.finish().unwrap()];
    shop.publish(&copied).await;
    shop.publish(&mine).await;
    committed(&shop.receipts(&ours, 3).await);
    for (header, payload, sender) in [(&ours, &b"ours"[..], "web"), (&theirs, b"theirs", "till")] {
        for node in NODES {
            until("it is committed", async || shop.get(node, header).await.is_ok()).await;
            let (start, read) = shop.get(node, header).await.unwrap();
            assert_eq!((read.as_slice(), start.sender.as_str()), (payload, sender), "{node}");
        }
    }
    for node in NODES {
        assert!(alarms(&shop, node).is_empty(), "{node}: {:?}", alarms(&shop, node));
    }
    shop.agree().await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r02_shards_that_are_no_codeword_are_refused_by_all_from_whichever_of_them_each_has() {
    let Blinkered { mut shop, wrapped: _wrapped } = Blinkered::new().await;
    let payload = vec![7; 20_000];
    let header = shop.header(&payload);
    let good = shop.seal(&[(header.clone(), &payload)], Suite::XWing).remove(0);
    let verified = |record: &Bytes| {
        let segment = Segment::parse(record).unwrap();
        segment.verify(&SignatureCache::default(), &shop.sender.public()).unwrap()
    };
    let shards: Vec<Vec<u8>> = good.segments.iter().map(|segment| verified(&segment.record).shard().to_vec()).collect();
    let (k, n) = (good.header.core.profile.k(), shards.len());
    // True data and junk parity; and one data shard that differs in one bit. Each node has other k of them.
    let mut junk = shards.clone();
    junk[k..].iter_mut().for_each(|shard| shard.fill(9));
    let mut one_bit = shards.clone();
    one_bit[3][5] ^= 1;
    for shards in [junk, one_bit] {
        let mut header: StripeHeader = good.header.clone();
        header.core.parcel =
            sealcast::core::id::ParcelId::from_parts(header.core.parcel.time(), shop.seams.randomness.array().unwrap());
        let records = forge(header, &shop.sender, &shards);
        let digest = verified(&records[0]).digest();
        shop.publish_at(0, records[..k].to_vec()).await;
        shop.publish_at(1, records[n - k..].to_vec()).await;
        shop.publish_at(2, records.iter().step_by(2).chain(&records[1..4]).cloned().collect::<Vec<_>>()).await;
        refused(&shop, &NODES, digest, RefusalReason::Miscoded).await;
    }
    assert!(shop.said(&header).await.is_empty(), "it decides nothing");
    // Sealed anew, as the majority's refusals let its sender, it is committed.
    let anew = shop.seal(&[(header.clone(), &payload)], Suite::XWing);
    for partition in 0..3 {
        shop.publish_at(partition, records(&anew)).await;
    }
    committed(&shop.receipts(&header, 3).await);
    shop.agree().await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r22_who_refuses_what_a_majority_staged_raises_an_alarm_and_fetches() {
    let mut shop = Shop::open().await;
    let (_, new, change) = rotated(&shop);
    let blind = shop.transport.as_ref().clone().behind_adversary(AdversaryOptions::harmless(1), &shop.seams);
    let AnyTransport::Adversary(adversary) = blind.clone() else { panic!("it is one") };
    for node in ["a", "b"] {
        let transport = shop.transport.clone();
        start(&mut shop, node, &new, transport).await;
    }
    start(&mut shop, "c", &new, Arc::new(blind)).await;
    shop.ready().await;
    let partitions = shop.transport.partitions(&segments());
    let mood = |mood: Mood| partitions.iter().for_each(|one| adversary.set_mood(&one.domain, mood));
    mood(Mood::Away);
    until("c reads nothing more", async || {
        let standing = alarms(&shop, "c");
        (0..partitions.len()).all(|number| standing.contains(&format!("partition-unreachable-{number}")))
    })
    .await;
    // a and b stage it, and it waits for one that nobody sent yet. c sees it when its key is retired.
    let first = shop.keyed(b"first", None, Default::default());
    let second = shop.keyed(b"second", Some(&first), Default::default());
    let stripes = shop.seal(&[(second.clone(), b"second")], Suite::XWing);
    shop.publish(&stripes).await;
    for node in ["a", "b"] {
        until("it stages it", async || staged(&shop, node, &digest_of(&stripes))).await;
    }
    put_in_force(&mut shop, change).await;
    mood(Mood::Well);
    refused(&shop, &["c"], digest_of(&stripes), RefusalReason::RetiredKey).await;
    shop.send(&first, b"first").await;
    committed(&shop.agreed("orders", &second, 3).await.verdict);
    assert_eq!(shop.get("c", &second).await.unwrap().1, b"second");
    assert!(alarms(&shop, "c").contains(&"refused-but-committed".to_owned()), "{:?}", alarms(&shop, "c"));
    for node in ["a", "b"] {
        assert!(!alarms(&shop, node).contains(&"refused-but-committed".to_owned()));
    }
    shop.agree().await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r22_a_parcel_is_refused_whole_and_a_refusal_is_said_once_it_is_noted() {
    let mut shop = Shop::open().await;
    let free = Arc::new(AtomicU64::new(u64::MAX));
    let disk = Arc::new(HookedDisk::real(Filled(free.clone())));
    shop.start("a").await;
    shop.start("b").await;
    shop.start_on("c", shop.transport.clone(), Seams { disk, ..shop.seams.clone() }).await;
    shop.ready().await;
    // Two are announced; the second ends too early.
    let (header, beside) = (shop.header(b"whole"), shop.header(b"cut off"));
    let both = [(header.clone(), b"whole".as_slice()), (beside, b"cut off")];
    let core = core_of(&shop.seal(&both, Suite::X25519));
    let mut sealed = shop.sealed(&core, &both);
    sealed.truncate(sealed.len() - 10);
    let cut = shop.split(core, &sealed);
    // c has no room to note anything.
    free.store(1000, Ordering::SeqCst);
    shop.publish(&cut).await;
    refused(&shop, &["a", "b"], digest_of(&cut), RefusalReason::Stream).await;
    until("c cannot note it", async || alarms(&shop, "c").contains(&"notes-not-kept".to_owned())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!shop.refused().await.contains_key("c"), "it would not know of it after a restart");
    free.store(u64::MAX, Ordering::SeqCst);
    refused(&shop, &NODES, digest_of(&cut), RefusalReason::Stream).await;
    for node in NODES {
        assert!(!staged(&shop, node, &digest_of(&cut)), "{node}");
    }
    assert!(shop.said(&header).await.is_empty(), "and nothing of it is decided");
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r21_that_a_sender_is_listed_no_more_when_its_parcel_was_opened_is_no_verdict() {
    let mut shop = Shop::with_nodes().await;
    let all = Vec::from_iter(shop.nodes.values().map(|node| node.served()[&name("orders")].context.clone()));
    // Nothing is opened for now.
    let mut held = Vec::new();
    for context in &all {
        let permits = context.openings.available_permits() as u32;
        held.push(context.openings.clone().acquire_many_owned(permits).await.unwrap());
    }
    let header = shop.header(b"on its way");
    shop.send(&header, b"on its way").await;
    until("enough of it was read", async || all.iter().all(|context| context.lag.borrow().records >= 8)).await;
    let web = shop.directory.senders[&name::<SenderName>("web")].clone();
    put_in_force(&mut shop, |draft| drop(draft.senders.remove(&web.name))).await;
    drop(held);
    for node in NODES {
        let unknown = DeferReason::UnknownSender;
        until("it is put aside", async || deferred(&shop, node).contains_key(&unknown)).await;
    }
    put_in_force(&mut shop, |draft| {
        draft.add_sender(web);
    })
    .await;
    committed(&shop.receipts(&header, 3).await);
    assert!(shop.refusals().await.is_empty());
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r07_a_deadline_later_than_its_parcels_expiry_is_refused_by_all() {
    let mut shop = Shop::with_nodes().await;
    let (header, beside) = (shop.header(b"to wait for ever"), shop.header(b"beside it"));
    let both = [(header.clone(), b"to wait for ever".as_slice()), (beside.clone(), b"beside it")];
    // What the directory bounds is the parcel's expiry; a deadline behind it would be bounded by nothing.
    let mut core = core_of(&shop.seal(&both, Suite::X25519));
    core.expiry = Time(header.deadline.0 - 1);
    let sealed = shop.sealed(&core, &both);
    let stripes = shop.split(core, &sealed);
    shop.publish(&stripes).await;
    refused(&shop, &NODES, digest_of(&stripes), RefusalReason::Malformed).await;
    // At its end it may be.
    let mut core = core_of(&stripes);
    (core.epoch, core.expiry) = (Epoch([2; 8]), header.deadline.max(beside.deadline));
    let sealed = shop.sealed(&core, &both);
    shop.publish(&shop.split(core, &sealed)).await;
    committed(&shop.receipts(&header, 3).await);
    shop.shut().await;
}
