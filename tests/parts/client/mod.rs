//! The client against a transport, with the nodes played by the test: what is submitted arrives, survives restarts byte for
//! byte, keeps its order, and gets exactly the fate that a majority signed.

mod accepting;
mod crashes;
mod disk;
mod fates;
mod keeping;
pub mod renewing;
mod shaping;
mod starting;
mod telling;
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use sealcast::client::{Client, ClientError, Transaction};
use sealcast::core::id::Position;
use sealcast::core::receipt::Verdict;
use sealcast::core::seal::transaction::ExpectedVersion;
use sealcast::core::split::segment::Segment;
use sealcast::store::outbox::{Outbox, OutboxError, Outcome};
use world::{World, destination};

async fn start(world: &World) -> Client {
    Client::start(world.transport.clone(), world.options()).await.unwrap()
}

#[tokio::test]
async fn what_is_submitted_arrives_sealed_and_whole() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let payloads: Vec<Vec<u8>> =
        [0, 1, 1000, 70_000, 600_000, 3_000_000].iter().map(|length| vec![0xa5; *length]).collect();
    let mut handles = Vec::new();
    for payload in &payloads {
        let transaction = Transaction::new(payload.clone()).header("kind", "test").content_type("text/plain");
        handles.push(client.submit("orders", transaction).await.unwrap());
    }
    for handle in &handles {
        handle.accepted().await.unwrap();
        assert!(handle.times().accepted.is_some());
    }
    let opened = world.opened("orders", payloads.len()).await;
    for (handle, payload) in handles.iter().zip(&payloads) {
        let (transaction, found) = opened
            .iter()
            .flat_map(|parcel| &parcel.transactions)
            .find(|(transaction, _)| transaction.header.id == handle.ticket().transaction)
            .expect("it came");
        assert_eq!(found, payload);
        assert_eq!(transaction.header.deadline, handle.ticket().deadline);
        assert_eq!(transaction.header.headers, [("kind".to_owned(), b"test".to_vec())]);
    }
    for record in world.records("orders").await {
        assert!(!record.value.windows(32).any(|window| window == [0xa5; 32]), "brokers see noise");
    }
    client.close().await;
}

#[tokio::test]
async fn a_payload_that_is_read_arrives_whole_compressed_or_not() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let payload: Vec<u8> = (0..5_000_000u32).flat_map(|number| (number / 7).to_be_bytes()[2..].to_vec()).collect();
    for (compress, length) in [(false, Some(payload.len() as u64)), (true, None)] {
        let mut transaction = Transaction::new("").key("films");
        if compress {
            transaction = transaction.compress();
        }
        let handle = client.submit_reader("orders", transaction, payload.as_slice(), length).await.unwrap();
        handle.accepted().await.unwrap();
    }
    let wrong = client.submit_reader("orders", Transaction::new(""), payload.as_slice(), Some(300_000)).await;
    assert!(matches!(wrong, Err(ClientError::Length { said: 300_000, .. })), "{wrong:?}");
    let opened = world.opened("orders", 2).await;
    assert_eq!(opened.len(), 2, "what was not submitted is never whole");
    for parcel in &opened {
        assert!(parcel.transactions[0].1 == payload);
    }
    let predecessor = |parcel: &world::Opened| {
        parcel.transactions[0].0.header.destinations.values().next().unwrap().predecessor.map(|it| it.transaction)
    };
    let ids: Vec<_> = opened.iter().map(|parcel| parcel.transactions[0].0.header.id).collect();
    assert_eq!([predecessor(&opened[0]), predecessor(&opened[1])], [None, Some(ids[0])]);
    assert_eq!(client.undecided().0, 2);
    client.close().await;
}

#[tokio::test]
async fn submissions_that_wait_together_travel_together_and_keep_their_order() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let submits = (0..50).map(|number: u32| {
        let transaction = Transaction::new(number.to_be_bytes().to_vec()).key(format!("key-{}", number % 5));
        let client = client.clone();
        async move { client.submit("orders", transaction).await.unwrap() }
    });
    // In tasks of their own, as a service would; one that is made first has its first step first.
    let submits: Vec<_> = submits.map(tokio::spawn).collect();
    let handles: Vec<_> = futures_util::future::try_join_all(submits).await.unwrap();
    let opened = world.opened("orders", 50).await;
    assert!(opened.len() < 25, "{} parcels for 50 transactions", opened.len());
    let transactions: Vec<_> = opened.iter().flat_map(|parcel| &parcel.transactions).collect();
    for (number, handle) in handles.iter().enumerate() {
        let (transaction, _) = transactions.iter().find(|(it, _)| it.header.id == handle.ticket().transaction).unwrap();
        let order = transaction.header.destinations.values().next().unwrap();
        let expected = number.checked_sub(5).map(|before| handles[before].ticket().transaction);
        assert_eq!(order.predecessor.map(|it| it.transaction), expected, "transaction {number}");
    }
    client.close().await;
}

#[tokio::test]
async fn a_stream_of_submissions_keeps_its_order_shares_parcels_and_goes_on_after_an_error() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let orders = [destination("orders")];
    let transactions = (0..100).map(|number: u32| match number {
        // An empty ordering key is none that a transaction may have.
        40 => Transaction::new("refused").key(""),
        _ => Transaction::new(number.to_be_bytes().to_vec()).key("one"),
    });
    let handles: Vec<_> = client.submit_all(&orders, futures_util::stream::iter(transactions)).collect().await;
    let refused: Vec<_> = handles.iter().enumerate().filter(|(_, handle)| handle.is_err()).map(|(at, _)| at).collect();
    assert_eq!(refused, [40]);
    let opened = world.opened("orders", 99).await;
    assert!(opened.len() < 50, "{} parcels for 99 transactions", opened.len());
    let mut sent: Vec<_> = opened.iter().flat_map(|parcel| &parcel.transactions).collect();
    let handles: Vec<_> = handles.into_iter().flatten().flatten().collect();
    let place = |id| handles.iter().position(|handle| handle.ticket().transaction == id).unwrap();
    sent.sort_by_key(|(transaction, _)| place(transaction.header.id));
    let numbers: Vec<_> =
        (0..100u32).filter(|number| *number != 40).map(|number| number.to_be_bytes().to_vec()).collect();
    assert_eq!(sent.iter().map(|(_, payload)| payload.to_vec()).collect::<Vec<_>>(), numbers);
    for pair in sent.windows(2) {
        let order = pair[1].0.header.destinations.values().next().unwrap();
        assert_eq!(order.predecessor.map(|it| it.transaction), Some(pair[0].0.header.id));
    }
    client.close().await;
}

#[tokio::test]
async fn r20_sequence_predecessor_and_expected_version_are_each_destinations_own() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let [orders, stock] = [destination("orders"), destination("stock")];
    let tags = [&orders, &stock].map(|name| world.directory.destinations[name].tag);
    let alone = client.submit("orders", Transaction::new("alone").key("k")).await.unwrap();
    alone.accepted().await.unwrap();
    let at = Position { index: 5, number: 1 };
    let both = Transaction::new("both")
        .key("k")
        .expected_version_at(orders.clone(), at)
        .expected_version_at(stock.clone(), Position::default());
    for handle in client.submit_to(&[stock.clone(), orders.clone()], both).await.unwrap() {
        handle.accepted().await.unwrap();
    }
    let opened = world.opened("stock", 1).await;
    let of = |at: usize| opened[0].transactions[0].0.header.destinations[&tags[at]];
    let predecessor = of(0).predecessor.unwrap();
    assert_eq!((predecessor.transaction, of(1).predecessor), (alone.ticket().transaction, None));
    assert_eq!([of(0).expected_version, of(1).expected_version], [ExpectedVersion::At(at), ExpectedVersion::Absent]);
    let record = world.records("stock").await.remove(0).value;
    let core = Segment::parse(&record).unwrap().header().core.clone();
    assert_eq!(tags.map(|tag| core.destination(&tag).unwrap().sequence), [1, 0], "the second there, the first here");
    client.close().await;
}

#[tokio::test]
async fn r20_one_transaction_goes_to_several_destinations_in_one_parcel() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let both = [destination("stock"), destination("orders")];
    let transaction = Transaction::new("both").key("k").expected_version(Default::default());
    let handles = client.submit_to(&both, transaction).await.unwrap();
    assert_eq!(handles.iter().map(|handle| handle.ticket().destination.clone()).collect::<Vec<_>>(), both);
    for handle in &handles {
        handle.accepted().await.unwrap();
    }
    let (one, other) = (world.opened("orders", 1).await, world.opened("stock", 1).await);
    assert_eq!(one[0].digest, other[0].digest);
    assert_eq!(one[0].transactions[0].1, b"both");
    let order = one[0].transactions[0].0.header.destinations.values().next().unwrap();
    assert_eq!(order.expected_version, ExpectedVersion::Absent);
    client.close().await;
}

#[tokio::test]
async fn r03_a_restarted_client_sends_the_kept_bytes_again_and_no_others() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let small = client.submit("orders", Transaction::new("small").key("k")).await.unwrap();
    let large = client.submit("orders", Transaction::new(vec![3; 3_000_000]).key("k")).await.unwrap();
    small.accepted().await.unwrap();
    large.accepted().await.unwrap();
    client.close().await;
    let before = world.shards("orders").await;

    // What a crash in the middle of sealing leaves behind.
    let half = world.outbox().join("parcels").join("0197a5f0-0000-7000-8000-000000000000");
    std::fs::write(&half, b"half").unwrap();
    let client = start(&world).await;
    assert!(!half.exists(), "abandoned");
    for handle in [&small, &large] {
        client.attach(handle.ticket()).await.unwrap().accepted().await.unwrap();
    }
    let third = client.submit("orders", Transaction::new("third").key("k")).await.unwrap();
    third.accepted().await.unwrap();
    world.sent_again("orders", &before).await;
    let opened = world.opened("orders", 3).await;
    let (transaction, _) = &opened[2].transactions[0];
    let predecessor = transaction.header.destinations.values().next().unwrap().predecessor.unwrap();
    assert_eq!(predecessor.transaction, large.ticket().transaction, "the order outlives the process");
    client.close().await;
    let mut after = world.shards("orders").await;
    after.retain(|segment, _| !before.contains_key(segment));
    assert_eq!(after.len(), 3, "besides the same bytes, only the third transaction's");
    let epoch = |(_, value): &(Bytes, Bytes)| Segment::parse(value).unwrap().header().core.epoch;
    let [before, after] = [before, after].map(|all| all.keys().map(epoch).collect::<BTreeSet<_>>());
    assert!(before.is_disjoint(&after), "each start is an epoch of its own");
}

#[tokio::test]
async fn a_full_window_and_a_full_outbox_give_the_transaction_back() {
    let world = World::new(3).await;
    let mut options = world.options();
    options.window_transactions = 2;
    options.outbox.bytes = 400_000;
    let client = Client::start(world.transport.clone(), options).await.unwrap();
    let first = client.submit("orders", Transaction::new(vec![1; 200_000])).await.unwrap();
    let refused = client.submit("orders", Transaction::new(vec![2; 250_000]).key("mine")).await.unwrap_err();
    assert!(refused.retryable());
    assert!(matches!(refused.error, ClientError::Outbox(OutboxError::Full { .. })), "{refused}");
    assert_eq!(refused.transaction.payload().as_ref(), vec![2; 250_000]);
    client.submit("orders", Transaction::new("small")).await.unwrap();
    let refused = client.submit("orders", Transaction::new("smaller")).await.unwrap_err();
    assert!(matches!(refused.error, ClientError::WindowFull { transactions: 2, .. }), "{refused}");
    assert!(!first.outcome().decided());
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hears_of_a_fate_finds_the_place_that_it_frees() {
    let world = World::new(3).await;
    let mut options = world.options();
    options.window_transactions = 1;
    let client = Client::start(world.transport.clone(), options).await.unwrap();
    for count in 1..=20 {
        let handle = client.submit("orders", Transaction::new("x")).await.expect("the window is free");
        let opened = world.opened("orders", count).await;
        let parcel = opened.iter().find(|parcel| Some(parcel.parcel) == handle.parcel()).unwrap();
        let committed = world.statement(parcel, 0, Verdict::Committed);
        for node in ["alfa", "bravo"] {
            world.say(node, "orders", std::slice::from_ref(&committed)).await;
        }
        handle.committed().await.unwrap();
    }
    client.close().await;
}

#[tokio::test]
async fn what_the_directory_or_a_limit_forbids_is_refused_at_once() {
    let world = World::new(3).await;
    let client = start(&world).await;
    let wrong = |transaction: Transaction| {
        let client = client.clone();
        async move { client.submit("orders", transaction).await.unwrap_err().error }
    };
    let nowhere = client.submit("nowhere", Transaction::new("x")).await.unwrap_err();
    assert!(matches!(nowhere.error, ClientError::NoDestination { .. }) && !nowhere.retryable());
    let field = |error: ClientError| match error {
        ClientError::Transaction { field, .. } => field,
        other => panic!("{other}"),
    };
    let year = Duration::from_secs(365 * 24 * 3600);
    assert_eq!(field(wrong(Transaction::new("x").deadline(year)).await), "deadline");
    assert_eq!(field(wrong(Transaction::new("x").key("")).await), "ordering key");
    assert_eq!(field(wrong(Transaction::new("x").key(vec![0; 257])).await), "ordering key");
    assert_eq!(field(wrong(Transaction::new("x").header("", "v")).await), "headers");
    assert_eq!(field(wrong(Transaction::new("x").expected_version(Default::default())).await), "expected version");
    assert_eq!(client.undecided(), (0, 0));
    client.close().await;
}

#[tokio::test]
async fn submitting_needs_no_broker() {
    let world = World::new(3).await;
    // A transport without any topic: nothing can be published.
    let empty = tempfile::tempdir().unwrap();
    let options = sealcast::transport::embedded::EmbeddedOptions::new(empty.path());
    let dead = sealcast::transport::embedded::Embedded::open(&options, &sealcast::seams::Seams::real()).unwrap();
    let client = Client::start(Arc::new(dead), world.options()).await.unwrap();
    let handle = client.submit("orders", Transaction::new("patience")).await.unwrap();
    assert_eq!(handle.outcome(), Outcome::Submitted);
    client.close().await;
    // Another start, with brokers, sends it.
    let client = start(&world).await;
    let handle = client.attach(handle.ticket()).await.unwrap();
    handle.accepted().await.unwrap();
    assert_eq!(world.opened("orders", 1).await[0].transactions[0].1, b"patience");
    client.close().await;
}

#[tokio::test]
async fn an_outbox_in_memory_is_gone_with_the_process() {
    let world = World::new(3).await;
    let mut options = world.options();
    options.outbox.folder = None;
    let client = Client::start(world.transport.clone(), options.clone()).await.unwrap();
    let handle = client.submit("orders", Transaction::new(vec![9; 300_000])).await.unwrap();
    handle.accepted().await.unwrap();
    client.close().await;
    assert!(!world.outbox().exists());
    let (_, contents) = Outbox::open(&options.outbox, &options.seams).unwrap();
    assert!(contents.parcels.is_empty());
}
