//! Three nodes that serve two destinations each: one parcel to both, reads of each, and trouble in one that leaves the
//! other alone, unless it is the store's.

use std::sync::Arc;
use std::time::Duration;

use crate::common::folders;
use crate::shop::{LIMIT, NODES, Shop, committed, name};
use futures_util::stream::{FuturesUnordered, StreamExt};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::{EntryPayload, LogId};
use sealcast::client::{Client, Handle, Options, Stage, Transaction, WaitError, Waited};
use sealcast::config::{ClientConfig, NodeConfig, Sources};
use sealcast::core::decide::Entry;
use sealcast::core::id::{Position, Rejection, Suite, Time};
use sealcast::core::receipt::Verdict;
use sealcast::core::seal::transaction::ExpectedVersion;
use sealcast::node::{Node, NodeError, NodeOptions};
use sealcast::raft::storage::LogStore;
use sealcast::raft::{EntryBytes, LogEntry};
use sealcast::rpc::proto;
use sealcast::seams::Seams;
use sealcast::store::group::{GroupStore, StoreOptions};

const BOTH: [&str; 2] = ["billing", "orders"];

#[tokio::test(flavor = "multi_thread")]
async fn r20_one_parcel_to_two_destinations_has_a_fate_a_place_and_a_body_in_each() {
    let mut shop = Shop::with_nodes_for(&BOTH).await;
    let payload: Vec<u8> = (0..1_500_000u32).map(|at| (at % 241) as u8).collect();
    let both = shop.header_to(&BOTH, &payload);
    let small = shop.header_to(&BOTH, b"small");
    // Two transactions, one parcel, two destinations; and one for each destination alone.
    let stripes = shop.seal(&[(both.clone(), &payload), (small.clone(), b"small")], Suite::XWing);
    shop.publish(&stripes).await;
    let (bill, order) = (shop.header_to(&["billing"], b"a bill"), shop.header_to(&["orders"], b"an order"));
    shop.send(&bill, b"a bill").await;
    shop.send(&order, b"an order").await;
    for destination in BOTH {
        let agreed = shop.agreed(destination, &both, 3).await;
        let position = committed(&agreed.verdict);
        committed(&shop.agreed(destination, &small, 3).await.verdict);
        for node in NODES {
            let (start, read) = shop.get_from(node, Some(destination), &both).await.unwrap();
            assert!(read == payload, "{node} in {destination}");
            assert_eq!(start.ticket.unwrap().destination, destination);
            assert_eq!(Position::from(start.position.unwrap()), position, "{node} in {destination}");
        }
    }
    committed(&shop.agreed("billing", &bill, 3).await.verdict);
    committed(&shop.agreed("orders", &order, 3).await.verdict);
    for node in NODES {
        // Each destination has its own; without a name the only one that has it answers.
        assert_eq!(shop.get(node, &bill).await.unwrap().1, b"a bill");
        let miss = shop.get_from(node, Some("billing"), &order).await.unwrap_err();
        assert_eq!(miss.answer(), proto::Answer::NotFound, "{}", miss.text);
        let counts = [shop.status(node, "billing").await, shop.status(node, "orders").await];
        let counts = counts.map(|status| status.transactions.unwrap().committed);
        assert_eq!(counts, [3, 3], "{node}");
    }
    shop.agree().await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_an_outcome_is_each_destinations_own() {
    let mut shop = Shop::with_nodes_for(&BOTH).await;
    let both = shop.header_to(&BOTH, b"to both");
    let stripes = shop.seal(&[(both.clone(), b"to both")], Suite::X25519);
    // It reaches one destination only: committed there, and nothing is known of it in the other.
    shop.publish_to("orders", &stripes).await;
    committed(&shop.agreed("orders", &both, 3).await.verdict);
    for node in NODES {
        let miss = shop.get_from(node, Some("billing"), &both).await.unwrap_err();
        assert_eq!(miss.answer(), proto::Answer::NotFound, "{}", miss.text);
    }
    shop.publish_to("billing", &stripes).await;
    committed(&shop.agreed("billing", &both, 3).await.verdict);
    // What it asks of its key is each destination's own, too.
    let mut each = shop.header_to(&BOTH, b"as each sees it");
    each.ordering_key = Some(b"customer-42".to_vec());
    let elsewhere = Position { index: 1_000_000, number: 0 };
    for (destination, version) in [("billing", ExpectedVersion::Absent), ("orders", ExpectedVersion::At(elsewhere))] {
        let tag = shop.directory.destinations[&name(destination)].tag;
        each.destinations.get_mut(&tag).unwrap().expected_version = version;
    }
    let stripes = shop.seal(&[(each.clone(), b"as each sees it")], Suite::X25519);
    shop.publish(&stripes).await;
    committed(&shop.agreed("billing", &each, 3).await.verdict);
    let verdict = shop.agreed("orders", &each, 3).await.verdict;
    assert!(matches!(verdict, Verdict::Rejected(_, Rejection::Conflict)), "{verdict:?}");
    shop.shut().await;
}

/// Starts the nodes anew, serving these destinations alone.
async fn serve(shop: &mut Shop, destinations: &[&str]) {
    for node in NODES {
        shop.stop(node).await;
    }
    for node in NODES {
        let config = NodeConfig::load(&Sources::file(&shop.written.nodes[&name(node)])).unwrap();
        let mut options = NodeOptions::from_config(&config).unwrap();
        options.http = None;
        options.rings.retain(|destination, _| destinations.contains(&destination.as_str()));
        let started = Node::start(options, shop.seams.clone(), shop.transport.clone()).await.unwrap();
        shop.nodes.insert(name(node), started);
    }
    shop.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_while_a_destinations_whole_group_is_down_the_other_commits_and_each_has_an_outcome_of_its_own() {
    let mut shop = Shop::with_nodes_for(&BOTH).await;
    let config = ClientConfig::load(&Sources::file(&shop.written.senders[&name("web")])).unwrap();
    let mut options = Options::from_config(&config, shop.seams.clone()).unwrap();
    options.outbox.folder = None;
    let client = Client::start(shop.transport.clone(), options).await.unwrap();
    let within = async |handle: &Handle| tokio::time::timeout(LIMIT, handle.committed()).await.expect("a fate");
    let bill = client.submit("billing", Transaction::new("a bill").key("k")).await.unwrap();
    within(&bill).await.unwrap();

    // Nobody serves billing any more; orders goes on.
    serve(&mut shop, &["orders"]).await;
    let both = [name("billing"), name("orders")];
    let new = Transaction::new("to both").key("k").expected_version(Position::default());
    let handles = client.submit_to(&both, new).await.unwrap();
    let [in_billing, in_orders] = handles.as_slice() else { panic!("one for each") };
    let position = within(in_orders).await.unwrap().position;
    assert!(position.is_some());
    let waited = in_billing.wait(Stage::Committed, Duration::from_millis(200)).await.unwrap();
    assert_eq!(waited, Waited::Unknown, "nothing that orders says is said of billing");
    assert!(in_billing.receipt().is_none());

    // Its group is back, and decides otherwise: the key is not new there.
    serve(&mut shop, &BOTH).await;
    let outcome = within(in_billing).await;
    assert!(matches!(outcome, Err(WaitError::Rejected(Rejection::Conflict))), "{outcome:?}");
    assert_eq!(within(in_orders).await.unwrap().position, position);
    assert_eq!(client.undecided().0, 0, "the window is free at the last fate");
    client.close().await;
    shop.agree().await;
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r12_a_group_that_must_not_take_part_leaves_the_other_alone() {
    let mut shop = Shop::with_nodes_for(&BOTH).await;
    let first = shop.header_to(&["orders"], b"first");
    shop.send(&first, b"first").await;
    committed(&shop.agreed("orders", &first, 3).await.verdict);
    shop.stop("c").await;
    let (orders, kept) = (shop.data("c").join("orders"), shop.data("c").join("kept"));
    folders::copy(&orders, &kept);
    shop.start("c").await;
    let second = shop.header_to(&["orders"], b"second");
    shop.send(&second, b"second").await;
    committed(&shop.agreed("orders", &second, 3).await.verdict);
    shop.stop("c").await;
    // The disk of one destination is put back to an older copy: it must not vote with that.
    std::fs::remove_dir_all(&orders).unwrap();
    std::fs::rename(&kept, &orders).unwrap();
    shop.start("c").await;
    let bill = shop.header_to(&["billing"], b"a bill");
    shop.send(&bill, b"a bill").await;
    committed(&shop.agreed("billing", &bill, 3).await.verdict);
    let third = shop.header_to(&["orders"], b"third");
    shop.send(&third, b"third").await;
    committed(&shop.agreed("orders", &third, 2).await.verdict);
    let status = shop.status("c", "orders").await;
    assert_eq!(status.role(), proto::Role::Stopped);
    let alarms: Vec<_> = status.alarms.iter().map(|alarm| alarm.name.as_str()).collect();
    assert!(alarms.contains(&"store-restored"), "{alarms:?}");
    // It is looked at a few times a second.
    let mut readiness = shop.nodes[&name("c")].readiness();
    let one_waits = readiness.wait_for(|now| {
        let refused = now.waiting.get("orders").is_some_and(|why| why.contains("restored"));
        refused && !now.waiting.contains_key("billing")
    });
    tokio::time::timeout(LIMIT, one_waits).await.expect("it says which one waits, and why").unwrap();
    assert_eq!(shop.get("c", &bill).await.unwrap().1, b"a bill");
    shop.shut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r19_a_disk_that_does_not_sync_ends_the_node_and_the_others_go_on() {
    let mut shop = Shop::open_for(&BOTH).await;
    shop.start("a").await;
    shop.start("b").await;
    let disk = crate::disk::CrashDisk::new();
    let machine = Seams { disk: Arc::new(disk.clone()), ..shop.seams.clone() };
    shop.start_on("c", shop.transport.clone(), machine).await;
    shop.ready().await;
    let before = shop.header_to(&BOTH, b"before");
    shop.send(&before, b"before").await;
    committed(&shop.agreed("orders", &before, 3).await.verdict);
    disk.fail_syncs();
    let after = shop.header_to(&["orders"], b"after");
    shop.send(&after, b"after").await;
    let failed = tokio::time::timeout(LIMIT, shop.nodes[&name("c")].failed()).await.expect("it notices");
    assert!(matches!(&*failed, NodeError::Store { .. }), "it says which destination's: {failed:?}");
    assert!(failed.to_string().contains("the disk is broken"), "it says why: {failed}");
    let verdict = shop.agreed("orders", &after, 2).await.verdict;
    assert!(matches!(verdict, Verdict::Committed(_)), "{verdict:?}");
    // Ending it takes no longer than ending a healthy one may.
    shop.stop("c").await;
    shop.shut().await;
}

/// Puts an entry with an op that this version does not know at the end of a stopped node's log, as a later version would.
async fn append_unknown_op(shop: &Shop, node: &str, destination: &str) {
    let options = StoreOptions { folder: shop.data(node).join(destination), destination: name(destination) };
    let store = GroupStore::open(&options, &shop.seams).unwrap();
    let mut log = LogStore::new(store.clone()).unwrap();
    let last = log.get_log_state().await.unwrap().last_log_id.unwrap();
    // An op (field 3) of four bytes: number 77, and its empty body left out.
    let entry = [Entry { time: Time(1), ops: Vec::new() }.encode().as_slice(), &[0x1a, 2, 0x08, 77]].concat();
    let payload = EntryPayload::Normal(EntryBytes(entry.into()));
    let log_id = LogId { index: last.index + 1, ..last };
    log.blocking_append([LogEntry { log_id, payload }]).await.unwrap();
    store.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn r04_a_log_entry_of_a_later_version_ends_the_node_rather_than_be_guessed_at() {
    let mut shop = Shop::with_nodes_for(&BOTH).await;
    let before = shop.header_to(&BOTH, b"before");
    shop.send(&before, b"before").await;
    committed(&shop.agreed("orders", &before, 3).await.verdict);
    for node in NODES {
        shop.stop(node).await;
    }
    // Each handed the lead on, so their logs end differently: whoever leads commits its own end, and cannot apply it.
    for node in NODES {
        append_unknown_op(&shop, node, "orders").await;
    }
    for node in NODES {
        shop.start(node).await;
    }
    let mut failing: FuturesUnordered<_> = shop.nodes.values().map(|node| node.failed()).collect();
    let failed = tokio::time::timeout(LIMIT, failing.next()).await.expect("whoever leads notices").unwrap();
    drop(failing);
    assert!(
        matches!(&*failed, NodeError::Consensus { destination, .. } if destination.as_str() == "orders"),
        "{failed:?}"
    );
    assert!(failed.to_string().contains("an operation with number 77"), "it says which op: {failed}");
    shop.shut().await;
}
