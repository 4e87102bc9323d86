//! Nodes and new directories: which are refused by name and where, and that every client hears of those in force.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::shop::{LIMIT, NODES, Shop, committed, name};
use sealcast::config::{NodeConfig, Sources};
use sealcast::core::directory::{Directory, Draft};
use sealcast::core::sign::SecretKey;
use sealcast::keys::{OperatorKey, SecretFile};
use sealcast::node::{Node, NodeError, NodeOptions};

const BOTH: [&str; 2] = ["billing", "orders"];

fn file(shop: &Shop, node: &str) -> PathBuf {
    shop.written.nodes[&name(node)].parent().unwrap().join("directory")
}

fn operator(shop: &Shop) -> SecretKey {
    OperatorKey::read(&shop.written.operator_key).unwrap().signing().clone()
}

/// Signs the next version, changed.
fn next(shop: &Shop, operator: &SecretKey, change: impl FnOnce(&mut Draft)) -> Directory {
    let mut draft = Draft::after(&shop.directory);
    change(&mut draft);
    Directory::verify(&draft.sign(operator).unwrap(), &operator.public(), 1).unwrap()
}

/// Signs the next version, changed, and gives it to a node. The node is not told.
fn give(shop: &Shop, node: &str, operator: &SecretKey, change: impl FnOnce(&mut Draft)) -> Directory {
    let directory = next(shop, operator, change);
    std::fs::write(file(shop, node), directory.bytes()).unwrap();
    directory
}

fn without_billing(draft: &mut Draft) {
    draft.destinations.remove(&name("billing"));
    draft.senders.values_mut().for_each(|sender| sender.destinations.retain(|one| one.as_str() != "billing"));
    draft.readers.values_mut().for_each(|reader| reader.destinations.retain(|one| one.as_str() != "billing"));
}

fn with_fewer_voters(draft: &mut Draft) {
    draft.destinations.get_mut(&name("orders")).unwrap().nodes = vec![name("a"), name("b")];
}

fn options(shop: &Shop, node: &str) -> NodeOptions {
    let config = NodeConfig::load(&Sources::file(&shop.written.nodes[&name(node)])).unwrap();
    NodeOptions { http: None, ..NodeOptions::from_config(&config).unwrap() }
}

/// Waits until a version is in force on all nodes, in all destinations.
async fn in_force(shop: &Shop, version: u64) {
    for served in shop.nodes.values().flat_map(|node| node.served().values()) {
        let mut in_force = served.context.in_force.clone();
        let there = in_force.wait_for(|directory| directory.version == version);
        tokio::time::timeout(LIMIT, there).await.expect("it comes in force").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r08_a_directory_that_a_group_could_not_go_on_under_is_refused_by_name_and_a_right_one_taken() {
    let mut shop = Shop::with_nodes_for(&BOTH).await;
    let key = operator(&shop);
    in_force(&shop, 1).await;
    for (change, what) in [
        (without_billing as fn(&mut Draft), "destination billing"),
        (with_fewer_voters, "destination orders: nodes: it removes c"),
    ] {
        give(&shop, "a", &key, change);
        let error = shop.nodes[&name("a")].reload_directory().unwrap_err();
        assert!(matches!(error, NodeError::Directory { .. }) && error.to_string().contains(what), "{error}");
    }
    let before = shop.header_to(&BOTH, b"before");
    shop.send(&before, b"before").await;
    committed(&shop.agreed("orders", &before, 3).await.verdict);
    // The same version, corrected: it goes through the log to all.
    give(&shop, "a", &key, |draft| draft.grace = Duration::from_secs(99));
    assert!(shop.nodes[&name("a")].reload_directory().unwrap());
    in_force(&shop, 2).await;
    shop.agree().await;
    shop.shut().await;
}

/// Whether a node says that a version in force is one that it does not go by.
async fn alarmed(shop: &Shop, node: &str) -> bool {
    let answer = shop.node_status(node).await;
    answer.alarms.iter().any(|alarm| alarm.name == "directory-contradicts")
}

/// Hands a version to whoever leads `billing`, and to no node as a whole; waits until it is in force there.
async fn put_in_force_in_billing(shop: &Shop, directory: &Arc<Directory>) {
    let offering = async {
        let taken = |node: &Node| node.served()[&name("billing")].desk.offer(directory);
        while !shop.nodes.values().any(taken) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, offering).await.expect("somebody leads");
    for node in shop.nodes.values() {
        let mut in_force = node.served()[&name("billing")].context.in_force.clone();
        let there = in_force.wait_for(|in_force| in_force.version == directory.version);
        tokio::time::timeout(LIMIT, there).await.expect("it comes in force").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_a_group_could_not_be_founded_under_stays_the_other_groups_alone() {
    let mut shop = Shop::open_for(&BOTH).await;
    let key = operator(&shop);
    // Nobody founds orders: c does not serve it yet.
    shop.start("a").await;
    shop.start("b").await;
    let mut billing_alone = options(&shop, "c");
    billing_alone.rings.retain(|destination, _| destination.as_str() == "billing");
    let c = Node::start(billing_alone, shop.seams.clone(), shop.transport.clone()).await.unwrap();
    shop.nodes.insert(name("c"), c);
    let other = Arc::new(next(&shop, &key, with_fewer_voters));
    put_in_force_in_billing(&shop, &other).await;
    for node in ["a", "b"] {
        assert_eq!(shop.nodes[&name(node)].directory().version, 1, "{node} goes by one that takes c from orders");
        assert!(alarmed(&shop, node).await, "{node}");
    }
    // With c it is founded, as all three had been told.
    shop.stop("c").await;
    shop.start("c").await;
    shop.ready().await;
    let header = shop.header_to(&["orders"], b"of three");
    shop.send(&header, b"of three").await;
    assert_eq!(shop.agreed("orders", &header, 3).await.signers.len(), 3);
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_another_group_could_not_go_on_under_stays_one_groups_alone() {
    let mut shop = Shop::with_nodes_for(&BOTH).await;
    let key = operator(&shop);
    in_force(&shop, 1).await;
    // Nobody who serves both hands it over; the leader of one group gets it all the same.
    let other = Arc::new(next(&shop, &key, with_fewer_voters));
    put_in_force_in_billing(&shop, &other).await;
    for node in shop.nodes.values() {
        assert_eq!(node.directory().version, 1, "the node does not go by it");
    }
    // Node c, which it drops, goes on in the other group, and is heard there.
    let header = shop.header_to(&["orders"], b"of three");
    shop.send(&header, b"of three").await;
    assert_eq!(shop.agreed("orders", &header, 3).await.signers.len(), 3);
    assert!(alarmed(&shop, "c").await);
    for node in ["c", "a"] {
        shop.stop(node).await;
        shop.start(node).await;
    }
    shop.ready().await;
    assert!(alarmed(&shop, "c").await);
    // One that all can go on under ends it.
    let mut draft = Draft::after(&other);
    draft.destinations.get_mut(&name("orders")).unwrap().nodes = NODES.map(name).to_vec();
    let fits = draft.sign(&key).unwrap();
    std::fs::write(file(&shop, "a"), &fits).unwrap();
    assert!(shop.nodes[&name("a")].reload_directory().unwrap());
    in_force(&shop, 3).await;
    for node in shop.nodes.values() {
        assert_eq!(node.directory().version, 3);
    }
    assert!(!alarmed(&shop, "c").await);
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_another_operator_or_other_voters_is_refused_by_name_and_leaves_nothing_running() {
    let mut shop = Shop::with_nodes_for(&BOTH).await;
    let key = operator(&shop);
    in_force(&shop, 1).await;
    shop.stop("c").await;
    let kept = std::fs::read(file(&shop, "c")).unwrap();
    let start = async |options: NodeOptions| {
        Node::start(options, shop.seams.clone(), shop.transport.clone()).await.map(|_| ()).unwrap_err()
    };

    let stranger = SecretKey::from_seed(&[9; 32]);
    let theirs = Arc::new(give(&shop, "c", &stranger, |_| {}));
    let right = {
        std::fs::write(file(&shop, "c"), &kept).unwrap();
        options(&shop, "c")
    };
    let error = start(NodeOptions { operator: stranger.public(), directory: theirs, ..right.clone() }).await;
    assert!(matches!(error, NodeError::Destination { .. }), "{error}");
    assert!(error.to_string().contains("pins"), "{error}");

    // Billing is opened already when orders refuses: it is closed again, and nothing of the wrong version reached its log.
    give(&shop, "c", &key, with_fewer_voters);
    let wrong = Arc::new(Directory::verify(&std::fs::read(file(&shop, "c")).unwrap(), &key.public(), 1).unwrap());
    let without_a =
        |draft: &mut Draft| draft.destinations.get_mut(&name("orders")).unwrap().nodes = vec![name("b"), name("c")];
    let others = next(&shop, &key, without_a);
    let error = start(NodeOptions { directory: Arc::new(others), ..right.clone() }).await;
    assert!(error.to_string().contains("removes a"), "{error}");
    let error = start(NodeOptions { directory: wrong, ..right }).await;
    assert!(error.to_string().contains("does not list node c"), "{error}");

    std::fs::write(file(&shop, "c"), &kept).unwrap();
    shop.start("c").await;
    let after = shop.header_to(&BOTH, b"after");
    shop.send(&after, b"after").await;
    for destination in BOTH {
        committed(&shop.agreed(destination, &after, 3).await.verdict);
    }
    assert_eq!(NODES.len(), shop.nodes.len());
    in_force(&shop, 1).await;
    shop.shut().await;
}
