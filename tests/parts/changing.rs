//! Directories that change while parcels fly (R8): whoever has which file, and whenever a sender comes and goes, every
//! transaction has one fate everywhere; what is no newer directory of the operator changes nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::shop::{LIMIT, NODES, Shop, name};
use crate::submitting;
use bytes::Bytes;
use sealcast::client::Options;
use sealcast::config::{ClientConfig, NodeConfig, Sources};
use sealcast::core::decide::{Decision, Row, View};
use sealcast::core::directory::{Directory, Draft};
use sealcast::core::id::{Epoch, Rejection, SenderName, Time};
use sealcast::core::receipt::{Directories, Query};
use sealcast::core::seal::transaction::PrivateHeader;
use sealcast::core::sign::SecretKey;
use sealcast::keys::{OperatorKey, SecretFile};
use sealcast::node::NodeOptions;
use sealcast::transport::{Record, Topic, Transport};

fn file(shop: &Shop, node: &str) -> PathBuf {
    shop.written.nodes[&name(node)].parent().unwrap().join("directory")
}

fn operator(shop: &Shop) -> SecretKey {
    OperatorKey::read(&shop.written.operator_key).unwrap().signing().clone()
}

/// The next version, changed.
fn next(before: &Directory, operator: &SecretKey, change: impl FnOnce(&mut Draft)) -> Directory {
    let mut draft = Draft::after(before);
    change(&mut draft);
    Directory::verify(&draft.sign(operator).unwrap(), &operator.public(), 1).unwrap()
}

fn give(shop: &Shop, node: &str, directory: &Directory) {
    std::fs::write(file(shop, node), directory.bytes()).unwrap();
}

/// Waits until a version is in force on all nodes.
async fn in_force(shop: &Shop, version: u64) {
    for served in shop.nodes.values().flat_map(|node| node.served().values()) {
        let mut in_force = served.context.in_force.clone();
        let there = in_force.wait_for(|directory| directory.version == version);
        tokio::time::timeout(LIMIT, there).await.expect("it comes in force").unwrap();
    }
}

/// Seals and publishes so many transactions, each alone.
async fn fly(shop: &mut Shop, count: usize) -> Vec<PrivateHeader> {
    let mut sent = Vec::new();
    for _ in 0..count {
        let header = shop.header(b"in flight");
        shop.send(&header, b"in flight").await;
        sent.push(header);
    }
    sent
}

/// What each node's log says of a transaction, once all of them have a fate for it.
async fn fates(shop: &Shop, header: &PrivateHeader) -> Vec<Row> {
    let web: SenderName = name("web");
    let deciding = async {
        loop {
            let rows = shop.nodes.values().map(|node| {
                let snapshot = node.served()[&name("orders")].context.store.snapshot().unwrap();
                snapshot.transaction(&web, header.id).unwrap()
            });
            match rows.collect::<Option<Vec<Row>>>() {
                Some(rows) => return rows,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(LIMIT, deciding).await.expect("every node has a fate for it")
}

#[tokio::test(flavor = "multi_thread")]
async fn r08_a_sender_that_comes_and_goes_while_its_parcels_fly_has_one_fate_everywhere() {
    let mut shop = Shop::open().await;
    let key = operator(&shop);
    let entry = shop.directory.senders[&name::<SenderName>("web")].clone();
    let without = |before: &Directory| next(before, &key, |draft| drop(draft.senders.remove(&name("web"))));
    let with = |before: &Directory| {
        next(before, &key, |draft| {
            draft.add_sender(entry.clone());
        })
    };
    // Three nodes with three files; the newest comes in force by the log.
    let second = without(&shop.directory);
    let third = with(&second);
    give(&shop, "b", &second);
    give(&shop, "c", &third);
    for node in NODES {
        shop.start(node).await;
    }
    shop.ready().await;
    in_force(&shop, 3).await;

    let mut sent = fly(&mut shop, 6).await;
    let fourth = without(&third);
    give(&shop, "a", &fourth);
    assert!(shop.nodes[&name("a")].reload_directory().unwrap());
    sent.extend(fly(&mut shop, 12).await);
    in_force(&shop, 4).await;
    let unknown = fly(&mut shop, 4).await;
    let fifth = with(&fourth);
    give(&shop, "c", &fifth);
    assert!(shop.nodes[&name("c")].reload_directory().unwrap());
    sent.extend(fly(&mut shop, 12).await);
    in_force(&shop, 5).await;
    sent.extend(fly(&mut shop, 4).await);

    for header in sent.iter().chain(&unknown) {
        let rows = fates(&shop, header).await;
        assert!(rows.iter().all(|row| *row == rows[0]), "{rows:?}");
        let listed = matches!(rows[0].directory, 3 | 5);
        let expected = if listed { Decision::Committed } else { Decision::Rejected(Rejection::NotPermitted) };
        assert_eq!(rows[0].decision, expected, "under version {}", rows[0].directory);
    }
    // What came while nobody knew the sender waited until somebody did: not knowing is no verdict.
    for header in &unknown {
        assert_eq!(fates(&shop, header).await[0].directory, 5);
    }
    assert!(shop.refusals().await.is_empty());
    shop.agree().await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r08_a_directory_that_is_older_ended_below_the_minimum_or_signed_by_another_is_refused() {
    let shop = Shop::with_nodes().await;
    let key = operator(&shop);
    let first = std::fs::read(file(&shop, "a")).unwrap();
    let second = next(&shop.directory, &key, |draft| draft.grace = Duration::from_secs(90));
    give(&shop, "a", &second);
    assert!(shop.nodes[&name("a")].reload_directory().unwrap());
    in_force(&shop, 2).await;

    let stranger = SecretKey::from_seed(&[9; 32]);
    let ended = Time(shop.seams.clock.now().0 / 1000 * 1000 - 60_000);
    let signed = |before: &Directory, by: &SecretKey, change: fn(&mut Draft)| next(before, by, change).bytes().to_vec();
    let mut damaged = second.bytes().to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let refused: [(Vec<u8>, &str); 5] = [
        (first, "version: 1 is below 3"),
        (signed(&shop.directory, &key, |draft| draft.grace = Duration::from_secs(91)), "version: 2 is below 3"),
        (signed(&second, &stranger, |_| {}), "signature"),
        (damaged, "signature"),
        (next(&second, &key, |draft| draft.valid_until = ended).bytes().to_vec(), "valid_until: it ended"),
    ];
    for (bytes, why) in refused {
        std::fs::write(file(&shop, "a"), bytes).unwrap();
        let error = shop.nodes[&name("a")].reload_directory().unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(shop.nodes[&name("a")].directory().bytes(), second.bytes());
    }
    // Nor does a leader take one that has ended from another node.
    let ended = std::sync::Arc::new(next(&second, &key, |draft| draft.valid_until = ended));
    let offering = async {
        loop {
            let leads = shop.nodes.values().map(|node| &node.served()[&name("orders")]);
            if let Some(leader) = leads.into_iter().find(|served| served.desk.offer(&ended)) {
                let alarms = leader.context.store.snapshot().unwrap().alarms().unwrap();
                if alarms.iter().any(|(alarm, row)| alarm == "directory-refused" && row.text.contains("it ended")) {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, offering).await.expect("the leader refuses it by name");
    in_force(&shop, 2).await;

    // Whoever starts with a file below the pinned minimum, or signed by another, does not start.
    give(&shop, "a", &second);
    let mut config = NodeConfig::load(&Sources::file(&shop.written.nodes[&name("a")])).unwrap();
    assert!(NodeOptions::from_config(&config).is_ok());
    config.environment.minimum_version = 3;
    let error = NodeOptions::from_config(&config).err().unwrap();
    assert!(error.to_string().contains("version: 2 is below 3"), "{error}");
    let sender = &shop.written.senders[&name("web")];
    let mut config = ClientConfig::load(&Sources::file(sender)).unwrap();
    config.environment.minimum_version = 2;
    let error = Options::from_config(&config, shop.seams.clone()).err().unwrap();
    assert!(error.to_string().contains("version: 1 is below 2"), "{error}");

    // The group goes on, and takes the next right one.
    let third = next(&second, &key, |draft| draft.grace = Duration::from_secs(92));
    give(&shop, "b", &third);
    assert!(shop.nodes[&name("b")].reload_directory().unwrap());
    in_force(&shop, 3).await;
    let client = submitting::start(&shop).await;
    let handle = client.submit("orders", sealcast::client::Transaction::new("goes on")).await.unwrap();
    submitting::position(&handle).await;
    client.close().await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r13_who_asks_what_was_decided_under_an_earlier_directory_is_told_of_that_one() {
    let mut shop = Shop::with_nodes().await;
    let operator = operator(&shop);
    let mut directories = Directories::from([(1, shop.directory.clone())]);
    let mut decided = None;
    for version in [2, 3] {
        let newest = directories.last_key_value().unwrap().1.clone();
        let newer = Arc::new(next(&newest, &operator, |draft| draft.grace = Duration::from_secs(version)));
        give(&shop, "a", &newer);
        assert!(shop.nodes[&name("a")].reload_directory().unwrap());
        in_force(&shop, version).await;
        directories.insert(version, newer);
        if version == 2 {
            decided = fly(&mut shop, 1).await.pop();
            fates(&shop, decided.as_ref().unwrap()).await;
        }
    }
    // What is on its way by itself is waited for.
    let told = async |shop: &Shop| shop.all_said(&directories).await.1.get(&2).copied().unwrap_or_default();
    let mut before = told(&shop).await;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if told(&shop).await == std::mem::replace(&mut before, told(&shop).await) {
            break;
        }
    }
    let header = decided.unwrap();
    let asked = vec![(header.id, header.deadline, None)];
    let tag = shop.directory.destinations[&name("orders")].tag;
    let query = Query { epoch: Epoch([1; 8]), time: shop.seams.clock.now(), asked }.sign(&shop.sender, tag);
    let to = shop.transport.partitions(&Topic::segments(&name("test"), &name("orders")))[0].id.clone();
    shop.transport.append(to, Record { key: Bytes::new(), value: query.into() }).unwrap().await.unwrap();
    let telling = async {
        while told(&shop).await < before + NODES.len() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, telling).await.expect("nodes tell of the second version again");
    shop.shut().await;
}
