//! Whoever may write to the topics can fill them with anything: it is counted by reason, costs no memory beyond the limits, and
//! keeps nobody's transactions away (R16, R21, R22).

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use sealcast::client::{Client, Options, Transaction};
use sealcast::config::{NodeConfig, Sources};
use sealcast::core::directory::Draft;
use sealcast::core::gather::DeferReason;
use sealcast::core::id::{Digest, Epoch, NodeName, ParcelId, RefusalReason, Suite};
use sealcast::core::limits;
use sealcast::core::receipt::{Notice, Query, Refusal, notice_key};
use sealcast::core::seal::transaction::ExpectedVersion;
use sealcast::core::sign::SecretKey;
use sealcast::core::split::header::{self, Profile, StripeHeader};
use sealcast::core::split::segment::encode;
use sealcast::keys::{OperatorKey, SecretFile};
use sealcast::node::group::GroupContext;
use sealcast::node::{Node, NodeOptions};
use sealcast::telemetry::recorder;
use sealcast::transport::{PartitionId, Record, Topic, Transport};

use crate::shop::{LIMIT, NODES, Shop, committed, name};

/// Destinations and senders of these tests alone: what is measured is of the whole process.
const BESIEGED: &str = "besieged";

/// How many records of each kind. Ten kinds: 100,000 records.
const EACH: usize = 10_000;

/// Where a node counts records that do not come through the gate.
const METRIC: &str = "sealcast_gather_refused_segments_total";
/// Where it counts those that it will read again.
const PUT_ASIDE: &str = "sealcast_gather_deferred_records_total";

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let waiting = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Addresses that a node of these tests may keep for all whom it does not know.
const DEFERRED: usize = 4096;

/// A counter of a node, by its reason.
fn counted(metric: &str, node: &str, destination: &str) -> BTreeMap<String, u64> {
    counted_by(metric, &format!("node=\"{node}\",destination=\"{destination}\""))
}

/// A counter of whoever has these labels, by its reason.
fn counted_by(metric: &str, labels: &str) -> BTreeMap<String, u64> {
    let text = recorder::install().unwrap().text();
    let lines = text.lines().filter(|line| line.starts_with(&format!("{metric}{{")) && line.contains(labels));
    lines
        .map(|line| {
            let reason = line.split_once("reason=\"").unwrap().1.split_once('"').unwrap().0;
            (reason.to_owned(), line.rsplit(' ').next().unwrap().parse().unwrap())
        })
        .collect()
}

/// Appends as fast as the transport takes it.
async fn flood(shop: &Shop, topic: &Topic, records: impl Iterator<Item = Record>) {
    let partitions = shop.transport.partitions(topic);
    let mut last = None;
    for (at, mut record) in records.enumerate() {
        let to: PartitionId = partitions[at % partitions.len()].id.clone();
        last = loop {
            match shop.transport.append(to.clone(), record) {
                Ok(pending) => break Some(pending),
                Err(full) => record = full.0,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
    }
    last.expect("there are some").await.expect("they are there");
}

/// Different bytes for each number.
fn noise(number: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&number.to_be_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_r21_a_hundred_thousand_records_of_strangers_are_counted_by_reason_and_keep_nobody_away() {
    recorder::install().unwrap();
    let mut shop = Shop::open_for(&[BESIEGED]).await;
    for node in NODES {
        let config = NodeConfig::load(&Sources::file(&shop.written.nodes[&name(node)])).unwrap();
        let mut options = NodeOptions::from_config(&config).unwrap();
        options.caps.deferred = DEFERRED;
        let started = Node::start(options, shop.seams.clone(), shop.transport.clone()).await.unwrap();
        shop.nodes.insert(name(node), started);
    }
    shop.ready().await;
    let honest = shop.header_to(&[BESIEGED], b"before");
    let stripes = shop.seal(&[(honest.clone(), b"before")], Suite::X25519);
    shop.publish(&stripes).await;
    committed(&shop.agreed(BESIEGED, &honest, 3).await.verdict);

    // What a stranger has: records of honest senders, everything public, and keys of its own.
    let good = &stripes[0].segments[0].record;
    let header: StripeHeader = stripes[0].header.clone();
    let stranger = SecretKey::from_seed(&[0x5a; 32]);
    let signed_by = |change: &dyn Fn(&mut StripeHeader), key: &SecretKey| -> Vec<u8> {
        let mut header = header.clone();
        change(&mut header);
        let profile = Profile::new(1, 0, 64).unwrap();
        (header.core.profile, header.length) = (profile, 1);
        let bytes = header.encode();
        encode(&bytes, &header::sign(&bytes, key), 0, &[], b"x")
    };
    let record = |value: Vec<u8>| Record { key: Bytes::new(), value: value.into() };
    let forged = signed_by(&|_| {}, &stranger);
    let unknown = |number: usize| {
        let id = ParcelId::from_parts(header.core.parcel.time(), noise(number, 10).try_into().unwrap());
        signed_by(&|header| (header.core.sender, header.core.parcel) = (stranger.public().bytes(), id), &stranger)
    };
    let elsewhere = signed_by(&|header| header.core.environment.0[0] ^= 1, &stranger);
    let other_destination = signed_by(&|header| header.core.destinations[0].tag.0[0] ^= 1, &stranger);
    let later = {
        let mut bytes = good.to_vec();
        bytes[4] = 9;
        bytes.truncate(100);
        bytes
    };
    let query =
        Query { epoch: Epoch([1; 8]), time: shop.seams.clock.now(), asked: vec![(honest.id, honest.deadline, None)] };
    let query = query.sign(&stranger, header.core.destinations[0].tag);
    let flooding = (0..EACH * 10).map(|number| {
        record(match number % 10 {
            0 => Vec::new(),
            1 => noise(number, number % 300),
            2 => good[..number % good.len()].to_vec(),
            // As long as the transport takes, now and then.
            3 if number % 2000 == 3 => [&b"SCSG\x01SCCO\x01"[..], &vec![1; limits::SEGMENT_BYTES - 10]].concat(),
            3 => [&b"SCSG\x01"[..], &noise(number, 200)].concat(),
            4 => elsewhere.clone(),
            5 => other_destination.clone(),
            6 if number % 200 == 6 => forged.clone(),
            6 => [&b"SCQY\x01"[..], &noise(number, 100)].concat(),
            7 => good.to_vec(),
            8 if number % 20 == 8 => later.clone(),
            8 => query.clone(),
            _ => unknown(number),
        })
    });
    let topic = Topic::segments(&name("test"), &name(BESIEGED));
    let under = shop.header_to(&[BESIEGED], b"under it");
    let meanwhile = shop.seal(&[(under.clone(), b"under it")], Suite::X25519);
    tokio::join!(flood(&shop, &topic, flooding), shop.publish(&meanwhile));
    committed(&shop.agreed(BESIEGED, &under, 3).await.verdict);

    let each = EACH as u64;
    for node in NODES {
        let context = shop.nodes[&name(node)].served()[&name(BESIEGED)].context.clone();
        // All but the replays of what is good, and what is put aside: of that, as much as is kept.
        let all = |metric: &str| counted(metric, node, BESIEGED).values().sum::<u64>();
        let read = || all(METRIC) >= each * 15 / 2 && all(PUT_ASIDE) >= DEFERRED as u64;
        until("it reads all of it", || read() && context.lag.borrow().records == 0).await;
        let lag = *context.lag.borrow();
        let counts = counted(METRIC, node, BESIEGED);
        let of = |reason: &str| counts.get(reason).copied().unwrap_or_default();
        assert_eq!((of("other-environment"), of("other-destination")), (each, each), "{node}: {counts:?}");
        assert_eq!(of("signature"), each / 20, "{node}: {counts:?}");
        let aside = counted(PUT_ASIDE, node, BESIEGED);
        assert!(aside["unknown-sender"] > 0 && aside["unknown-version"] > 0, "{node}: {aside:?}");
        let shapeless = each * 10 - each * 4 - each / 20 - each / 2;
        assert_eq!(of("malformed") + of("not-segment"), shapeless, "{node}: {counts:?}");
        assert!(of("malformed") >= each, "{node}: {counts:?}");
        // Of all of them together so many addresses are kept, and nothing else.
        assert_eq!(lag.gathering, 0, "{node}");
        assert!(lag.deferred as usize <= DEFERRED, "{node}: {}", lag.deferred);
        assert!(context.store.snapshot().unwrap().deferred().unwrap().len() <= DEFERRED, "{node}");
    }
    assert!(shop.refusals().await.is_empty(), "nobody said anything of what strangers wrote");
    shop.agree().await;
    a_client_among_strangers(&shop).await;
    shop.shut().await;
}

/// A client works while strangers write to it, or to everybody, in the name of nodes and of the operator.
async fn a_client_among_strangers(shop: &Shop) {
    const NOTICES: usize = 20_000;
    let operator = OperatorKey::read(&shop.written.operator_key).unwrap().signing().public();
    let options = Options::new(shop.sender.clone(), operator, shop.directory.clone());
    let client = Client::start(shop.transport.clone(), options).await.unwrap();
    let stranger = SecretKey::from_seed(&[0x5a; 32]);
    let theirs = Draft::after(&shop.directory).sign(&stranger).unwrap();
    let tag = shop.directory.destinations[&name(BESIEGED)].tag;
    let handle = client.submit(BESIEGED, Transaction::new("among strangers")).await.unwrap();
    let receipt = tokio::time::timeout(LIMIT, handle.complete()).await.expect("it is committed").unwrap();
    assert_eq!(receipt.signers.len(), 3);
    // What was really said of another, cut and changed; refusals of what is to come in the name of every node.
    let topic = Topic::notices(&name("test"));
    let mut said = Vec::new();
    for partition in shop.transport.partitions(&topic).iter() {
        let batch = shop.transport.read(partition.id.clone(), 0).await.unwrap();
        said.extend(batch.records.into_iter().filter_map(|record| record.value));
    }
    let receipts = said.iter().find(|value| matches!(Notice::decode(value), Ok(Notice::Receipts(_)))).unwrap().clone();
    let refusal = |number: usize, node: &str| {
        let said = Refusal {
            sender: name("web"),
            epoch: Epoch([1; 8]),
            parcel: ParcelId::from_parts(shop.seams.clock.now(), noise(number, 10).try_into().unwrap()),
            digest: Digest(noise(number, 32).try_into().unwrap()),
            reason: RefusalReason::Stream,
        };
        said.sign(&stranger, &name::<NodeName>(node), tag, shop.directory.version).value
    };
    let own = notice_key(&name("web"));
    let flooding = (0..NOTICES).map(|number| {
        let value = match number % 8 {
            0 => Vec::new(),
            1 => noise(number, number % 300),
            2 => receipts[..number % receipts.len()].to_vec(),
            3 => {
                let mut changed = receipts.to_vec();
                let at = changed.len() - 1 - number % 40;
                changed[at] ^= 1;
                changed
            }
            4 => refusal(number, NODES[number / 8 % 3]),
            5 => refusal(number, "nobody"),
            6 => Notice::directory(&theirs).value,
            _ => [&b"SCNT"[..], &[9], &noise(number, 100)].concat(),
        };
        let key = if number % 3 == 0 { [0; 16] } else { own };
        Record { key: Bytes::copy_from_slice(&key), value: value.into() }
    });
    let submitted = async {
        let handle = client.submit(BESIEGED, Transaction::new("under it")).await.unwrap();
        let parcel = handle.parcel();
        let receipt = tokio::time::timeout(LIMIT, handle.committed()).await.expect("it is committed").unwrap();
        assert_eq!((receipt.directory_version, handle.parcel()), (1, parcel));
    };
    tokio::join!(flood(shop, &topic, flooding), submitted);
    let expected = [("malformed", 2), ("unknown-version", 1), ("signature", 1), ("unknown-node", 1), ("directory", 1)];
    let counts = || counted_by("sealcast_client_receipts_refused_total", "sender=\"web\"");
    for (reason, kinds) in expected {
        let least = (kinds * NOTICES / 8) as u64;
        let what = format!("{reason}, {least}: {:?}", counts());
        until(&what, || counts().get(reason).copied().unwrap_or_default() >= least).await;
    }
    let after = client.submit(BESIEGED, Transaction::new("behind it")).await.unwrap();
    tokio::time::timeout(LIMIT, after.committed()).await.expect("it is committed").unwrap();
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r16_a_sender_whose_transactions_wait_for_one_that_does_not_come_fills_nobodys_table() {
    const MOST: u64 = 16;
    let mut shop = Shop::open().await;
    for node in NODES {
        let config = NodeConfig::load(&Sources::file(&shop.written.nodes[&name(node)])).unwrap();
        let options = NodeOptions { undecided_per_sender: MOST as usize, ..NodeOptions::from_config(&config).unwrap() };
        let started = Node::start(options, shop.seams.clone(), shop.transport.clone()).await.unwrap();
        shop.nodes.insert(name(node), started);
    }
    shop.ready().await;
    let root = shop.header(b"root");
    let (mut waiting, mut records) = (Vec::new(), 0);
    for _ in 0..3 * MOST {
        let header = shop.keyed(b"waits", Some(&root), ExpectedVersion::Any);
        let stripes = shop.seal(&[(header.clone(), b"waits".as_slice())], Suite::X25519);
        shop.publish(&stripes).await;
        records = stripes.iter().map(|stripe| stripe.segments.len() as u64).sum();
        waiting.push(header);
    }
    let context = |node: &str| shop.nodes[&name(node)].served()[&name("orders")].context.clone();
    let contexts: Vec<_> = NODES.into_iter().map(context).collect();
    let put_off = |context: &GroupContext| {
        let notes = context.store.snapshot().unwrap().deferred().unwrap();
        let too_many = notes.iter().any(|(_, row)| row.reason == DeferReason::Undecided);
        if too_many { notes.len() as u64 } else { 0 }
    };
    let undecided = |context: &GroupContext| context.store.progress().borrow().counts.undecided;
    for context in &contexts {
        let what = format!("the others are put off by {}", context.node);
        until(&what, || put_off(context) == records * (3 * MOST - undecided(context))).await;
        // Four parcels are opened at the same time on each of three nodes.
        assert!((MOST..=MOST + 4 * 3).contains(&undecided(context)), "{}", undecided(context));
    }
    // What can be decided comes through all the same, and so does the one that they wait for.
    let other = shop.header(b"other");
    shop.send(&other, b"other").await;
    committed(&shop.receipts(&other, 3).await);
    shop.send(&root, b"root").await;
    for header in &waiting {
        committed(&shop.receipts(header, 3).await);
    }
    shop.agree().await;
    shop.shut().await;
}
