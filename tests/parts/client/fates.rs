//! Fates: what a majority signed, nothing less, and what follows from it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealcast::client::{Client, Handle, Stage, Transaction, WaitError, Waited};
use sealcast::core::directory::DestinationKey;
use sealcast::core::id::{Epoch, Fate, First, NodeName, Position, RefusalReason, Rejection, SenderName, Suite, Time};
use sealcast::core::limits;
use sealcast::core::receipt::{Missing, Notice, Query, Refusal, Statement, Verdict, is_query, sign_receipts};
use sealcast::core::seal::suite::HpkeSecret;
use sealcast::core::sign::SecretKey;
use sealcast::core::split::segment::Segment;
use sealcast::seams::{Clock, ManualClock, SystemClock};
use sealcast::store::outbox::{Outbox, Outcome};
use sealcast::transport::adversary::{Adversary, AdversaryOptions, Mood};
use sealcast::transport::{Domain, Record, Topic, Transport};

use crate::client::world::{Opened, World, destination};

async fn start(world: &World) -> Client {
    Client::start(world.transport.clone(), world.options()).await.unwrap()
}

const SOON: Duration = Duration::from_millis(300);

/// A client that has submitted one transaction, and the parcel that brokers have of it.
async fn one_submitted(world: &World) -> (Client, Handle, Vec<Opened>) {
    let client = start(world).await;
    let handle = client.submit("orders", Transaction::new("x")).await.unwrap();
    let opened = world.opened("orders", 1).await;
    (client, handle, opened)
}

#[tokio::test]
async fn r13_a_majority_commits_and_all_complete() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let handle = client.submit("orders", Transaction::new("x").key("k")).await.unwrap();
    let opened = world.opened("orders", 1).await;
    let committed = world.statement(&opened[0], 0, Verdict::Committed);
    world.say("alfa", "orders", std::slice::from_ref(&committed)).await;
    world.say("alfa", "orders", std::slice::from_ref(&committed)).await;
    assert_eq!(handle.wait(Stage::Committed, SOON).await.unwrap(), Waited::Unknown, "one is no majority");
    world.say("charlie", "orders", std::slice::from_ref(&committed)).await;
    let receipt = handle.committed().await.unwrap();
    assert_eq!(receipt.position, Some(Position { index: 7, number: 0 }));
    assert_eq!(receipt.signers.iter().map(NodeName::as_str).collect::<Vec<_>>(), ["alfa", "charlie"]);
    assert_eq!((receipt.voters, receipt.directory_version, receipt.fate), (3, 1, Fate::Committed));
    assert_eq!(handle.wait(Stage::Complete, SOON).await.unwrap(), Waited::Unknown);
    assert_eq!(client.undecided(), (0, 0), "the window is free at the fate");
    world.say("bravo", "orders", &[committed]).await;
    assert_eq!(handle.complete().await.unwrap().signers.len(), 3);
    assert!(handle.times().complete >= handle.times().committed);
    client.close().await;
    let (outbox, contents) = Outbox::open(&world.options().outbox, &world.options().seams).unwrap();
    assert!(contents.parcels.is_empty() && contents.transactions.is_empty(), "nothing is kept of what is complete");
    assert_eq!(outbox.bytes().0, 0);
}

#[tokio::test]
async fn r13_what_is_said_wrongly_does_not_count() {
    let world = World::new(3).await;
    let (client, handle, opened) = one_submitted(&world).await;
    let committed = world.statement(&opened[0], 0, Verdict::Committed);
    // Another payload, another position, another deadline, a stranger's signature.
    let mut other = committed.clone();
    if let Verdict::Committed(decided) = &mut other.verdict {
        decided.payload_tag.0[0] ^= 1;
    }
    world.say("alfa", "orders", &[other]).await;
    let mut other = committed.clone();
    other.deadline = Time(other.deadline.0 + 1);
    world.say("alfa", "orders", &[other]).await;
    world.say("alfa", "stock", std::slice::from_ref(&committed)).await;
    let node = NodeName::new("alfa").unwrap();
    let tag = world.directory.destinations[&destination("orders")].tag;
    let stranger = sealcast::core::sign::SecretKey::from_seed(&[99; 32]);
    for record in sealcast::core::receipt::sign_receipts(&stranger, &node, tag, 1, std::slice::from_ref(&committed)) {
        world.publish(record).await;
    }
    let mut other = committed.clone();
    if let Verdict::Committed(decided) = &mut other.verdict {
        decided.position.index += 1;
    }
    world.say("bravo", "orders", &[other]).await;
    world.say("charlie", "orders", std::slice::from_ref(&committed)).await;
    assert_eq!(handle.wait(Stage::Committed, SOON).await.unwrap(), Waited::Unknown);
    world.say("alfa", "orders", &[committed]).await;
    assert_eq!(handle.committed().await.unwrap().signers.len(), 2);
    client.close().await;
}

#[tokio::test]
async fn rejections_and_expiry_are_outcomes_with_their_reasons() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let mut handles = Vec::new();
    for number in 0..3 {
        handles.push(client.submit("orders", Transaction::new(vec![number])).await.unwrap());
    }
    let opened = world.opened("orders", 3).await;
    let find = |number: usize| {
        let id = handles[number].ticket().transaction;
        let places = opened.iter().flat_map(|parcel| (0..parcel.transactions.len()).map(move |index| (parcel, index)));
        places.into_iter().find(|(parcel, index)| parcel.transactions[*index].0.header.id == id).unwrap()
    };
    let first = First { transaction: handles[1].ticket().transaction, position: Position { index: 3, number: 0 } };
    let statements = [
        world.statement(find(0).0, find(0).1, |decided| Verdict::Rejected(decided, Rejection::Conflict)),
        world.statement(find(1).0, find(1).1, |_| Verdict::Expired { group_time: Time(u64::MAX) }),
        world.statement(find(2).0, find(2).1, |decided| Verdict::Duplicate(decided, first)),
    ];
    world.say("alfa", "orders", &statements).await;
    world.say("bravo", "orders", &statements).await;
    assert!(matches!(handles[0].committed().await, Err(WaitError::Rejected(Rejection::Conflict))));
    assert!(matches!(handles[1].complete().await, Err(WaitError::Expired)));
    let wait = handles[2].wait(Stage::Accepted, Duration::from_secs(20)).await.unwrap();
    assert!(matches!(wait, Waited::Rejected(Rejection::Duplicate) | Waited::Reached));
    assert!(matches!(handles[2].committed().await, Err(WaitError::Rejected(Rejection::Duplicate))));
    assert_eq!(handles[2].receipt().unwrap().first, Some(first.transaction));
    client.close().await;
}

#[tokio::test]
async fn a_fate_that_came_while_the_client_was_away_is_found() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let handle = client.submit("orders", Transaction::new("x")).await.unwrap();
    let ticket = handle.ticket().clone();
    let opened = world.opened("orders", 1).await;
    client.close().await;
    assert!(matches!(handle.committed().await, Err(WaitError::Local(_))), "a closed client says so");
    let committed = world.statement(&opened[0], 0, Verdict::Committed);
    for node in ["alfa", "bravo"] {
        world.say(node, "orders", std::slice::from_ref(&committed)).await;
    }
    let client = start(&world).await;
    client.attach(&ticket).await.unwrap().committed().await.unwrap();
    client.close().await;
    // Once more, from the outbox alone: the proof is kept until it is complete.
    let client = start(&world).await;
    let receipt = client.attach(&ticket).await.unwrap().committed().await.unwrap();
    assert_eq!(receipt.signers.len(), 2);
    client.close().await;
    // And from a process with another outbox, which knows nothing but the ticket.
    let mut options = world.options();
    options.outbox.folder = None;
    let other = Client::start(world.transport.clone(), options).await.unwrap();
    let handle = other.attach(&ticket).await.unwrap();
    assert_eq!(handle.committed().await.unwrap().position, Some(Position { index: 7, number: 0 }));
    other.close().await;
}

#[tokio::test]
async fn r15_what_was_said_is_found_though_another_partition_cannot_be_read() {
    let world = World::new(3).await;
    let (client, handle, opened) = one_submitted(&world).await;
    let committed = world.statement(&opened[0], 0, Verdict::Committed);
    let tag = world.directory.destinations[&destination("orders")].tag;
    for (node, key) in world.nodes.iter().take(2) {
        for record in sign_receipts(key, node, tag, world.directory.version, std::slice::from_ref(&committed)) {
            world.publish_at(1, record).await;
        }
    }
    let position = handle.committed().await.unwrap().position;
    client.close().await;
    let mut options = world.options();
    options.outbox.folder = None;
    let adversary = Adversary::new((*world.transport).clone(), AdversaryOptions::harmless(1), &options.seams);
    adversary.set_mood(&Domain("embedded-0".into()), Mood::Away);
    let other = Client::start(Arc::new(adversary), options).await.unwrap();
    let attached = other.attach(handle.ticket()).await.unwrap();
    // Before it would ask the nodes, who are not here to answer.
    assert_eq!(attached.wait(Stage::Committed, Duration::from_secs(20)).await.unwrap(), Waited::Reached);
    assert_eq!(attached.receipt().unwrap().position, position);
    other.close().await;
}

#[tokio::test]
async fn nobody_follows_what_has_its_fate() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let predecessor = |opened: &[crate::client::world::Opened], id| {
        let mut all = opened.iter().flat_map(|parcel| &parcel.transactions);
        let (transaction, _) = all.find(|(it, _)| it.header.id == id).unwrap();
        transaction.header.destinations.values().next().unwrap().predecessor.map(|it| it.transaction)
    };
    let first = client.submit("orders", Transaction::new("1").key("k")).await.unwrap();
    let opened = world.opened("orders", 1).await;
    let committed = world.statement(&opened[0], 0, Verdict::Committed);
    for node in ["alfa", "bravo"] {
        world.say(node, "orders", std::slice::from_ref(&committed)).await;
    }
    first.committed().await.unwrap();
    let second = client.submit("orders", Transaction::new("2").key("k")).await.unwrap();
    let opened = world.opened("orders", 2).await;
    assert_eq!(predecessor(&opened, second.ticket().transaction), None, "its predecessor is committed already");
    // Who waits for complete still follows, and an explicit predecessor is taken as it is.
    let third = client
        .submit("orders", Transaction::new("3").key("k2").release_on_complete().after(first.ticket().clone()))
        .await
        .unwrap();
    let opened = world.opened("orders", 3).await;
    assert_eq!(predecessor(&opened, third.ticket().transaction), Some(first.ticket().transaction));
    client.close().await;
}

#[tokio::test]
async fn what_nodes_miss_is_sent_again() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let handle = client.submit("orders", Transaction::new(vec![5; 3_000_000])).await.unwrap();
    handle.accepted().await.unwrap();
    let before = world.shards("orders").await;
    let parcel = world.open("orders").await.remove(0);
    let missing = Missing {
        sender: SenderName::new("web").unwrap(),
        epoch: Epoch([0; 8]),
        parcel: parcel.parcel,
        stripes: vec![1..=1],
    };
    let node = NodeName::new("bravo").unwrap();
    let tag = world.directory.destinations[&destination("orders")].tag;
    world.publish(missing.clone().sign(&world.nodes[&node], &node, tag, 1)).await;
    world.publish(missing.sign(&world.nodes[&node], &node, tag, 1)).await;
    let of_stripe = |value: &Bytes| Segment::parse(value).unwrap().header().stripe;
    let mut wanted = before.clone();
    wanted.retain(|(_, value), _| of_stripe(value) == 1);
    world.sent_again("orders", &wanted).await;
    tokio::time::sleep(SOON).await;
    let mut after = world.shards("orders").await;
    after.iter_mut().for_each(|(segment, times)| *times -= before[segment]);
    assert!(after.iter().all(|((_, value), more)| *more == 0 || of_stripe(value) == 1), "that stripe alone");
    // A shard whose broker is slow to acknowledge it is copied to another.
    assert!(after.values().sum::<usize>() < 2 * wanted.len(), "once");
    client.close().await;
}

#[tokio::test]
async fn r13_a_newer_directory_comes_by_notice_and_stays() {
    let mut world = World::new(3).await;
    let (client, handle, opened) = one_submitted(&world).await;
    let bytes = world.next_directory(|_| {});
    // Signed under a version that the client does not know yet.
    let committed = world.statement(&opened[0], 0, Verdict::Committed);
    assert_eq!(committed.directory, 2);
    for node in ["alfa", "bravo"] {
        world.say(node, "orders", std::slice::from_ref(&committed)).await;
    }
    assert_eq!(handle.wait(Stage::Committed, SOON).await.unwrap(), Waited::Unknown);
    world.publish(Notice::directory(&bytes)).await;
    assert_eq!(handle.committed().await.unwrap().directory_version, 2);
    assert_eq!(client.directory().version, 2);
    client.close().await;
    let mut options = world.options();
    options.directory = {
        let draft = sealcast::core::directory::Draft {
            version: 1,
            ..sealcast::core::directory::Draft::after(&world.directory)
        };
        let bytes = draft.sign(&world.operator).unwrap();
        std::sync::Arc::new(sealcast::core::directory::Directory::verify(&bytes, &world.operator.public(), 1).unwrap())
    };
    let client = Client::start(world.transport.clone(), options).await.unwrap();
    assert_eq!(client.directory().version, 2, "the outbox remembers it");
    client.close().await;
}

#[tokio::test]
async fn r13_strangers_do_not_crowd_out_what_nodes_say_under_a_directory_that_is_to_come() {
    let mut world = World::new(3).await;
    let (client, handle, opened) = one_submitted(&world).await;
    let bytes = world.next_directory(|_| {});
    let committed = world.statement(&opened[0], 0, Verdict::Committed);
    // Whoever may write to the topic says as much as it likes in a node's name, under a version that nobody knows.
    let (stranger, tag) = (SecretKey::from_seed(&[99; 32]), world.directory.destinations[&destination("orders")].tag);
    let many = vec![Statement { directory: 7, ..committed.clone() }; limits::RECEIPTS_PER_BATCH];
    let forged = sign_receipts(&stranger, &"alfa".parse().unwrap(), tag, 7, &many);
    let topic = Topic::notices(&world.directory.name);
    for partition in world.transport.partitions(&topic).iter() {
        let mut written = 0;
        for record in forged.iter().cycle().take_while(|record| {
            written += record.value.len();
            written < 12 << 20
        }) {
            let record = Record { key: Bytes::copy_from_slice(&record.key), value: record.value.clone().into() };
            world.transport.append(partition.id.clone(), record).unwrap().await.unwrap();
        }
    }
    for node in ["alfa", "bravo"] {
        world.say(node, "orders", std::slice::from_ref(&committed)).await;
    }
    assert_eq!(handle.wait(Stage::Committed, SOON).await.unwrap(), Waited::Unknown);
    world.publish(Notice::directory(&bytes)).await;
    let receipt = tokio::time::timeout(Duration::from_secs(20), handle.committed()).await.expect("nobody needs to ask");
    assert_eq!(receipt.unwrap().directory_version, 2);
    client.close().await;
}

#[tokio::test]
async fn r13_what_was_counted_under_a_version_is_decided_when_that_one_comes() {
    let mut world = World::new(3).await;
    let (client, handle, opened) = one_submitted(&world).await;
    let tag = world.directory.destinations[&destination("orders")].tag;
    // Decided under one that the client does not know, and signed under one that it does.
    let known = world.directory.version;
    let bytes = world.next_directory(|_| {});
    let committed = world.statement(&opened[0], 0, Verdict::Committed);
    for (node, key) in &world.nodes {
        for record in sign_receipts(key, node, tag, known, std::slice::from_ref(&committed)) {
            world.publish(record).await;
        }
    }
    assert_eq!(handle.wait(Stage::Committed, SOON).await.unwrap(), Waited::Unknown);
    world.publish(Notice::directory(&bytes)).await;
    assert_eq!(handle.wait(Stage::Complete, Duration::from_secs(20)).await.unwrap(), Waited::Reached);
    assert_eq!(handle.receipt().unwrap().directory_version, 2);
    client.close().await;
}

#[tokio::test]
async fn r13_what_is_signed_under_a_directory_below_the_pinned_minimum_does_not_count() {
    let mut world = World::new(3).await;
    let first = world.directory.clone();
    world.next_directory(|_| {});
    let mut options = world.options();
    options.minimum_version = 2;
    let client = Client::start(world.transport.clone(), options).await.unwrap();
    let handle = client.submit("orders", Transaction::new("1")).await.unwrap();
    let opened = world.opened("orders", 1).await;
    let committed = world.statement(&opened[0], 0, Verdict::Committed);
    // Whoever has the keys of then can say this: the operator signed that directory, and it lists them.
    world.publish(Notice::directory(first.bytes())).await;
    let (tag, old) =
        (world.directory.destinations[&destination("orders")].tag, Statement { directory: 1, ..committed.clone() });
    for (node, key) in &world.nodes {
        for record in sign_receipts(key, node, tag, 1, std::slice::from_ref(&old)) {
            world.publish(record).await;
        }
    }
    assert_eq!(handle.wait(Stage::Committed, SOON).await.unwrap(), Waited::Unknown);
    for node in ["alfa", "bravo"] {
        world.say(node, "orders", std::slice::from_ref(&committed)).await;
    }
    assert_eq!(handle.committed().await.unwrap().directory_version, 2);
    client.close().await;
}

#[tokio::test]
async fn r22_what_a_majority_refuses_is_sealed_anew() {
    let mut world = World::new(3).await;
    let client = start(&world).await;
    let large = vec![6; 2_500_000];
    let small = client.submit("orders", Transaction::new("small").key("k").header("a", "b")).await.unwrap();
    let read =
        client.submit_reader("orders", Transaction::new("").key("k").compress(), large.as_slice(), None).await.unwrap();
    let before = world.opened("orders", 2).await;
    // The destination's key is replaced while the parcels are on their way.
    let secret = HpkeSecret::generate(Suite::XWing, &[88; 32]).unwrap();
    let key = DestinationKey::current(Suite::XWing, bytes::Bytes::copy_from_slice(secret.public().bytes())).unwrap();
    let bytes = world.next_directory(|draft| {
        let entry = draft.destinations.get_mut(&destination("orders")).unwrap();
        entry.keys[0].state = sealcast::core::directory::KeyState::Retired;
        entry.keys.push(key);
    });
    world.publish(Notice::directory(&bytes)).await;
    while client.directory().version < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let tag = world.directory.destinations[&destination("orders")].tag;
    for parcel in &before {
        for node in ["alfa", "bravo"] {
            let node = NodeName::new(node).unwrap();
            let refusal = Refusal {
                sender: SenderName::new("web").unwrap(),
                epoch: Epoch([0; 8]),
                parcel: parcel.parcel,
                digest: parcel.digest,
                reason: RefusalReason::RetiredKey,
            };
            world.publish(refusal.sign(&world.nodes[&node], &node, tag, 2)).await;
        }
    }
    let old: Vec<_> = before.iter().map(|parcel| parcel.parcel).collect();
    world.secrets.insert(destination("orders"), secret);
    let anew = world.opened_except("orders", &old, 2).await;
    for (handle, payload) in [(&small, b"small".to_vec()), (&read, large)] {
        let find = |parcels: &'_ [crate::client::world::Opened]| {
            let mut all = parcels.iter().flat_map(|parcel| &parcel.transactions);
            let (transaction, found) = all.find(|(it, _)| it.header.id == handle.ticket().transaction).unwrap();
            (transaction.clone(), found.clone())
        };
        let ((one, _), (other, found)) = (find(&before), find(&anew));
        assert!(found == payload);
        assert_eq!(one.payload.tag, other.payload.tag);
        assert_eq!(one.header.destinations, other.header.destinations);
        assert_eq!(one.header.headers, other.header.headers);
    }
    let committed: Vec<_> = anew.iter().map(|parcel| world.statement(parcel, 0, Verdict::Committed)).collect();
    for node in ["alfa", "bravo", "charlie"] {
        world.say(node, "orders", &committed).await;
    }
    small.complete().await.unwrap();
    read.complete().await.unwrap();
    client.close().await;
    let (outbox, contents) = Outbox::open(&world.options().outbox, &world.options().seams).unwrap();
    assert!(contents.parcels.is_empty() && contents.abandoned.is_empty());
    assert_eq!(outbox.bytes().0, 0);
}

#[tokio::test]
async fn r13_nodes_are_asked_about_what_is_past_its_deadline() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let transaction = Transaction::new("x").deadline(Duration::from_millis(500));
    let handle = client.submit("orders", transaction).await.unwrap();
    let tag = world.directory.destinations[&destination("orders")].tag;
    let query = loop {
        let records = world.records("orders").await;
        if let Some(record) = records.iter().find(|record| is_query(&record.value)) {
            break Query::verify(&record.value, tag, &world.directory).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(query.0.as_str(), "web");
    let (id, deadline, payload_tag) = query.1.asked[0];
    assert_eq!((id, deadline), (handle.ticket().transaction, handle.ticket().deadline));
    assert!(payload_tag.is_some());
    let opened = world.opened("orders", 1).await;
    let forgotten = world.statement(&opened[0], 0, |_| Verdict::Forgotten { group_time: Time(u64::MAX) });
    for node in ["alfa", "bravo"] {
        world.say(node, "orders", std::slice::from_ref(&forgotten)).await;
    }
    assert!(matches!(handle.committed().await, Err(WaitError::Forgotten)));
    assert_ne!(handle.outcome(), Outcome::Expired);
    client.close().await;
}

#[tokio::test]
async fn r20_two_destinations_have_two_outcomes_and_the_one_that_is_down_none_of_the_others() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let both = [destination("orders"), destination("stock")];
    let handles = client.submit_to(&both, Transaction::new("x").key("k")).await.unwrap();
    let tickets = [handles[0].ticket().clone(), handles[1].ticket().clone()];
    let (orders, stock) = (world.opened("orders", 1).await, world.opened("stock", 1).await);
    assert_eq!(orders[0].digest, stock[0].digest, "one parcel");
    let committed = world.statement(&orders[0], 0, Verdict::Committed);
    for node in ["alfa", "bravo", "charlie"] {
        world.say(node, "orders", std::slice::from_ref(&committed)).await;
    }
    handles[0].complete().await.unwrap();
    // No node of stock says anything: unknown there, and nothing of it is forgotten here.
    assert_eq!(handles[1].wait(Stage::Committed, SOON).await.unwrap(), Waited::Unknown);
    assert!(handles[1].receipt().is_none());
    assert_eq!(client.undecided().0, 1);
    client.close().await;
    let sent = world.records("stock").await.len();
    let client = start(&world).await;
    assert_eq!(client.undecided().0, 1);
    // Its bytes are kept for that one, and sent there again.
    let again = async {
        while world.records("stock").await.len() <= sent {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again).await.expect("it is sent again");
    let [in_orders, in_stock] = [&tickets[0], &tickets[1]].map(|ticket| client.attach(ticket));
    let (in_orders, in_stock) = (in_orders.await.unwrap(), in_stock.await.unwrap());
    in_orders.committed().await.unwrap();
    assert_eq!(in_stock.wait(Stage::Committed, SOON).await.unwrap(), Waited::Unknown);
    // It comes back and decides otherwise: each has its own.
    let conflict = world.statement(&stock[0], 0, |decided| Verdict::Rejected(decided, Rejection::Conflict));
    for node in ["alfa", "bravo"] {
        world.say(node, "stock", std::slice::from_ref(&conflict)).await;
    }
    assert!(matches!(in_stock.committed().await, Err(WaitError::Rejected(Rejection::Conflict))));
    assert_eq!(in_orders.committed().await.unwrap().fate, Fate::Committed);
    assert_eq!(client.undecided().0, 0);
    client.close().await;
}

/// The queries that lie on the topic of `orders`, in two partitions each, oldest first.
async fn queries(world: &World) -> Vec<Query> {
    let tag = world.directory.destinations[&destination("orders")].tag;
    let records = world.records("orders").await;
    let queries = records.iter().filter(|record| is_query(&record.value));
    let mut queries: Vec<_> =
        queries.map(|record| Query::verify(&record.value, tag, &world.directory).unwrap().1).collect();
    queries.sort_by_key(|query| query.time);
    queries.dedup();
    queries
}

/// Waits for a query behind so many.
async fn next_query(world: &World, before: usize) -> Query {
    for _ in 0..1200 {
        if let Some(query) = queries(world).await.get(before) {
            return query.clone();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nobody asks");
}

#[tokio::test]
async fn r13_lost_receipts_are_asked_for_again_and_so_are_those_that_complete_lacks() {
    let world = World::new(3).await;
    let clock = Arc::new(ManualClock::new(SystemClock::new().now()));
    let mut options = world.options();
    options.seams.clock = clock.clone();
    let client = Client::start(world.transport.clone(), options).await.unwrap();
    let waited = client.submit("orders", Transaction::new("waited for")).await.unwrap();
    let left = client.submit("orders", Transaction::new("left alone")).await.unwrap();
    waited.accepted().await.unwrap();
    left.accepted().await.unwrap();
    assert_eq!(queries(&world).await, [], "nobody is asked at once");
    // Whatever the nodes said is lost.
    clock.advance(Duration::from_secs(31));
    let query = next_query(&world, 0).await;
    let both = [&waited, &left].map(|handle| (handle.ticket().transaction, handle.ticket().deadline));
    let asked: Vec<_> = query.asked.iter().map(|(transaction, deadline, _)| (*transaction, *deadline)).collect();
    assert_eq!(asked.iter().collect::<BTreeSet<_>>(), both.iter().collect());
    // Two answer; what the third says is lost again.
    let opened = world.opened("orders", 2).await;
    let places = opened.iter().flat_map(|parcel| (0..parcel.transactions.len()).map(move |index| (parcel, index)));
    let statements: Vec<_> = places.map(|(parcel, index)| world.statement(parcel, index, Verdict::Committed)).collect();
    for node in ["alfa", "charlie"] {
        world.say(node, "orders", &statements).await;
    }
    waited.committed().await.unwrap();
    left.committed().await.unwrap();
    drop(left);
    let before = queries(&world).await.len();
    clock.advance(Duration::from_secs(31));
    let query = next_query(&world, before).await;
    let asked: Vec<_> = query.asked.iter().map(|(transaction, ..)| *transaction).collect();
    assert_eq!(asked, [waited.ticket().transaction], "only what somebody here can wait for is worth a question");
    for node in ["alfa", "bravo", "charlie"] {
        world.say(node, "orders", &statements).await;
    }
    assert_eq!(waited.complete().await.unwrap().signers.len(), 3);
    client.close().await;
}

#[tokio::test]
async fn r13_a_client_that_sealed_anew_accepts_the_fate_of_its_first_parcel() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let handle = client.submit("orders", Transaction::new("sealed twice")).await.unwrap();
    let first = world.opened("orders", 1).await;
    let tag = world.directory.destinations[&destination("orders")].tag;
    for node in ["alfa", "bravo"] {
        let node = NodeName::new(node).unwrap();
        let refusal = Refusal {
            sender: SenderName::new("web").unwrap(),
            epoch: Epoch([0; 8]),
            parcel: first[0].parcel,
            digest: first[0].digest,
            reason: RefusalReason::Miscoded,
        };
        world.publish(refusal.sign(&world.nodes[&node], &node, tag, 1)).await;
    }
    let second = world.opened_except("orders", &[first[0].parcel], 1).await;
    assert_ne!(first[0].digest, second[0].digest);
    // Both came to the log, the first one first: each node names the parcel that it has.
    let (of_first, of_second) =
        (world.statement(&first[0], 0, Verdict::Committed), world.statement(&second[0], 0, Verdict::Committed));
    world.say("alfa", "orders", std::slice::from_ref(&of_first)).await;
    assert_eq!(handle.wait(Stage::Committed, SOON).await.unwrap(), Waited::Unknown);
    world.say("charlie", "orders", std::slice::from_ref(&of_first)).await;
    let receipt = handle.committed().await.unwrap();
    assert_eq!(receipt.position, Some(Position { index: 7, number: 0 }));
    world.say("bravo", "orders", &[of_second]).await;
    handle.complete().await.unwrap();
    client.close().await;
}
