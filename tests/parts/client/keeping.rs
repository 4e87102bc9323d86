//! What is submitted and what is not: no parcel is half the outbox's, whatever the caller or the disk does meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use sealcast::client::{Client, ClientError, Options, Transaction, WaitError};
use sealcast::core::id::{Rejection, Time, TransactionId};
use sealcast::core::receipt::Verdict;
use sealcast::store::outbox::OutboxError;

use crate::client::disk::HeldDisk;
use crate::client::world::{Opened, World};

const SOON: Duration = Duration::from_millis(300);

/// More than five stripes, so that it is sealed and published as it is read.
const LARGE: usize = 3_000_000;

fn on(disk: &HeldDisk, world: &World) -> Options {
    let mut options = world.options();
    options.seams.disk = disk.disk();
    options
}

async fn start(world: &World, options: Options) -> Client {
    Client::start(world.transport.clone(), options).await.unwrap()
}

/// Whom a transaction says that it follows.
fn predecessor(opened: &[Opened], id: TransactionId) -> Option<TransactionId> {
    let mut all = opened.iter().flat_map(|parcel| &parcel.transactions);
    let (transaction, _) = all.find(|(it, _)| it.header.id == id).expect("it came");
    transaction.header.destinations.values().next().unwrap().predecessor.map(|it| it.transaction)
}

#[tokio::test]
async fn r09_the_retry_after_a_rejection_follows_nobody() {
    let world = World::new(3).await;
    let client = start(&world, world.options()).await;
    for round in 1..=3 {
        let first = client.submit("orders", Transaction::new("1").key("k")).await.unwrap();
        let opened = world.opened("orders", 2 * round - 1).await;
        let parcel = opened.iter().find(|it| it.transactions[0].0.header.id == first.ticket().transaction).unwrap();
        let lost = world.statement(parcel, 0, |decided| Verdict::Rejected(decided, Rejection::Conflict));
        for node in ["alfa", "bravo"] {
            world.say(node, "orders", std::slice::from_ref(&lost)).await;
        }
        assert!(matches!(first.committed().await, Err(WaitError::Rejected(Rejection::Conflict))));
        // At once, as a loop of compare-and-set does.
        let retry = client.submit("orders", Transaction::new("2").key("k")).await.unwrap();
        let opened = world.opened("orders", 2 * round).await;
        assert_eq!(predecessor(&opened, retry.ticket().transaction), None);
        let parcel = opened.iter().find(|it| it.transactions[0].0.header.id == retry.ticket().transaction).unwrap();
        let committed = world.statement(parcel, 0, Verdict::Committed);
        for node in ["alfa", "bravo", "charlie"] {
            world.say(node, "orders", std::slice::from_ref(&committed)).await;
        }
        retry.complete().await.unwrap();
    }
    // Nor while its parcel still travels for another's sake.
    let all = (0..20).map(|number| client.submit("orders", Transaction::new("1").key(format!("k{number}"))));
    let handles: Vec<_> = futures_util::future::join_all(all).await.into_iter().map(Result::unwrap).collect();
    let opened = world.opened("orders", 26).await;
    let parcel = opened.iter().find(|it| it.transactions.len() > 1).expect("some came in one parcel");
    let lost = world.statement(parcel, 0, |decided| Verdict::Rejected(decided, Rejection::Conflict));
    for node in ["alfa", "bravo"] {
        world.say(node, "orders", std::slice::from_ref(&lost)).await;
    }
    let number = handles.iter().position(|handle| handle.ticket().transaction == lost.transaction).unwrap();
    assert!(matches!(handles[number].committed().await, Err(WaitError::Rejected(Rejection::Conflict))));
    let retry = client.submit("orders", Transaction::new("2").key(format!("k{number}"))).await.unwrap();
    let opened = world.opened("orders", 27).await;
    assert_eq!(predecessor(&opened, retry.ticket().transaction), None);
    client.close().await;
}

#[tokio::test]
async fn r09_order_holds_over_a_restart_though_a_fate_came_late() {
    let (world, disk) = (World::new(3).await, HeldDisk::default());
    let client = start(&world, on(&disk, &world)).await;
    let first = client.submit("orders", Transaction::new("1").key("k")).await.unwrap();
    let opened = world.opened("orders", 1).await;
    let committed = world.statement(&opened[0], 0, Verdict::Committed);
    for node in ["alfa", "bravo"] {
        world.say(node, "orders", std::slice::from_ref(&committed)).await;
    }
    first.committed().await.unwrap();
    // Becomes durable before the outbox is told that the first one is committed, and complete.
    let second = client.submit("orders", Transaction::new("2").key("k")).await.unwrap();
    world.say("charlie", "orders", &[committed]).await;
    first.complete().await.unwrap();
    client.close().await;
    let client = start(&world, on(&disk, &world)).await;
    let third = client.submit("orders", Transaction::new("3").key("k")).await.unwrap();
    let opened = world.opened("orders", 3).await;
    assert_eq!(predecessor(&opened, third.ticket().transaction), Some(second.ticket().transaction));
    client.close().await;
}

#[tokio::test]
async fn r09_behind_one_that_expired_the_next_follows_the_latest_that_has_no_fate() {
    let (world, disk) = (World::new(3).await, HeldDisk::default());
    let mut client = start(&world, on(&disk, &world)).await;
    let mut ids: Vec<TransactionId> = Vec::new();
    // Ids that say the opposite of the order of submissions.
    let now = Time(jiff::Timestamp::now().as_millisecond() as u64);
    for number in 0..4u8 {
        let id = TransactionId::from_parts(now, [9 - number; 10]);
        let handle = client.submit("orders", Transaction::new("x").key("k").id(id)).await.unwrap();
        ids.push(handle.ticket().transaction);
    }
    let expire = async |client: &Client, id: TransactionId, parcels: usize| {
        let opened = world.opened("orders", parcels).await;
        let at = |parcel: &Opened| parcel.transactions.iter().position(|(it, _)| it.header.id == id);
        let (parcel, index) = opened.iter().find_map(|parcel| Some((parcel, at(parcel)?))).unwrap();
        let expired = world.statement(parcel, index, |_| Verdict::Expired { group_time: Time(u64::MAX) });
        // Once it has its fate it is kept no longer.
        let handle = client.kept().into_iter().find(|handle| handle.ticket().transaction == id).unwrap();
        for node in ["alfa", "bravo"] {
            world.say(node, "orders", std::slice::from_ref(&expired)).await;
        }
        assert!(matches!(handle.committed().await, Err(WaitError::Expired)));
    };
    // The last expires, then, in the next life, the one that is the last by then; those before them go on waiting.
    expire(&client, ids[3], 4).await;
    let next = client.submit("orders", Transaction::new("5").key("k")).await.unwrap().ticket().transaction;
    assert_eq!(predecessor(&world.opened("orders", 5).await, next), Some(ids[2]));
    client.close().await;
    client = start(&world, on(&disk, &world)).await;
    expire(&client, next, 5).await;
    expire(&client, ids[2], 5).await;
    let next = client.submit("orders", Transaction::new("6").key("k")).await.unwrap().ticket().transaction;
    assert_eq!(predecessor(&world.opened("orders", 6).await, next), Some(ids[1]));
    let other = client.submit("orders", Transaction::new("7").key("another")).await.unwrap().ticket().transaction;
    assert_eq!(predecessor(&world.opened("orders", 7).await, other), None);
    client.close().await;
}

#[tokio::test]
async fn r03_brokers_have_nothing_whole_before_the_outbox_has_it() {
    let (world, disk) = (World::new(3).await, HeldDisk::default());
    let client = start(&world, on(&disk, &world)).await;
    let _held = disk.hold();
    let submitting = tokio::spawn({
        let client = client.clone();
        let payload = vec![7; LARGE];
        async move { client.submit_reader("orders", Transaction::new(""), payload.as_slice(), None).await }
    });
    disk.somebody_waits().await;
    // It is published as it is read.
    while world.records("orders").await.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(SOON).await;
    assert!(world.open("orders").await.is_empty(), "and could be committed, though it was never submitted");
    disk.release();
    submitting.await.unwrap().unwrap().accepted().await.unwrap();
    assert_eq!(world.opened("orders", 1).await[0].transactions[0].1.len(), LARGE);

    disk.fail();
    let failed = client.submit_reader("orders", Transaction::new(""), vec![8; LARGE].as_slice(), None).await;
    assert!(matches!(failed, Err(ClientError::Outbox(OutboxError::Failed { .. }))), "{failed:?}");
    tokio::time::sleep(SOON).await;
    assert_eq!(world.open("orders").await.len(), 1, "what was not submitted is never whole");
    client.close().await;
}

#[tokio::test]
async fn r03_a_bundle_is_published_when_the_outbox_has_it_and_not_before() {
    let (world, disk) = (World::new(3).await, HeldDisk::default());
    let client = start(&world, on(&disk, &world)).await;
    let _held = disk.hold();
    let submitting = tokio::spawn({
        let client = client.clone();
        async move { client.submit("orders", Transaction::new("small")).await }
    });
    disk.somebody_waits().await;
    tokio::time::sleep(SOON).await;
    assert!(
        world.records("orders").await.is_empty(),
        "a power cut now would leave brokers with what nobody sends again"
    );
    disk.release();
    submitting.await.unwrap().unwrap().accepted().await.unwrap();
    client.close().await;
}

#[tokio::test]
async fn who_stops_waiting_in_the_middle_of_a_commit_has_submitted() {
    let (world, disk) = (World::new(3).await, HeldDisk::default());
    let client = start(&world, on(&disk, &world)).await;
    let _held = disk.hold();
    let submitting = tokio::spawn({
        let client = client.clone();
        let payload = vec![7; LARGE];
        async move { client.submit_reader("orders", Transaction::new("").key("k"), payload.as_slice(), None).await }
    });
    disk.somebody_waits().await;
    submitting.abort();
    assert!(submitting.await.unwrap_err().is_cancelled());
    disk.release();
    let opened = world.opened("orders", 1).await;
    let (first, payload) = &opened[0].transactions[0];
    assert_eq!(payload.len(), LARGE);
    let second = client.submit("orders", Transaction::new("2").key("k")).await.unwrap();
    let opened = world.opened("orders", 2).await;
    assert_eq!(predecessor(&opened, second.ticket().transaction), Some(first.header.id));
    client.close().await;
    // It is whole in the outbox too: another start sends it again.
    let before = world.shards("orders").await;
    let client = start(&world, on(&disk, &world)).await;
    assert_eq!(client.undecided().0, 2);
    world.sent_again("orders", &before).await;
    client.close().await;
}

#[tokio::test]
async fn a_large_transaction_is_submitted_though_nobody_waits_for_it() {
    let world = World::new(3).await;
    let client = start(&world, world.options()).await;
    let mut submitting = Box::pin(client.submit("orders", Transaction::new(vec![7; LARGE]).key("k")));
    assert!(futures_util::poll!(&mut submitting).is_pending());
    drop(submitting);
    let second = client.submit("orders", Transaction::new("2").key("k")).await.unwrap();
    let opened = world.opened("orders", 2).await;
    let first = opened.iter().find(|it| it.transactions[0].1.len() == LARGE).expect("it came");
    let first = first.transactions[0].0.header.id;
    assert_eq!(predecessor(&opened, second.ticket().transaction), Some(first));
    client.close().await;
}

#[tokio::test]
async fn r09_each_names_the_one_before_it_however_many_are_bundled() {
    let world = World::new(3).await;
    let client = start(&world, world.options()).await;
    let all = (0..50).map(|number| client.submit("orders", Transaction::new(format!("{number}")).key("k")));
    for handle in futures_util::future::join_all(all).await {
        handle.unwrap().accepted().await.unwrap();
    }
    let opened = world.opened("orders", 50).await;
    assert!(opened.len() < 50, "some came in one parcel");
    let headers = opened.iter().flat_map(|parcel| &parcel.transactions).map(|(transaction, _)| &transaction.header);
    let (mut ids, mut named) = (BTreeSet::new(), BTreeSet::new());
    for header in headers {
        ids.insert(header.id);
        named.extend(
            header.destinations.values().filter_map(|order| order.predecessor).map(|before| before.transaction),
        );
    }
    assert_eq!((ids.len(), named.len()), (50, 49), "one follows nobody, no two follow the same");
    assert!(named.is_subset(&ids));
    client.close().await;
}
