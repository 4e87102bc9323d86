//! What submitters are told: the same of the same, an end of every wait, and the true reason of a failure.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::poll;
use sealcast::client::{Client, ClientError, Options, Stage, Transaction, WaitError, Waited};
use sealcast::core::id::{Time, TransactionId};
use sealcast::core::receipt::Verdict;
use sealcast::seams::{Clock, ManualClock, SystemClock};
use sealcast::store::outbox::{Outbox, OutboxError, Outcome};

use crate::client::disk::HeldDisk;
use crate::client::world::{NODES, World, destination};

const LONG: Duration = Duration::from_secs(60);

async fn start(world: &World, options: Options) -> Client {
    Client::start(world.transport.clone(), options).await.unwrap()
}

fn id(number: u8) -> TransactionId {
    TransactionId::from_parts(SystemClock::new().now(), [number; 10])
}

#[tokio::test]
async fn r06_an_id_that_is_submitted_again_is_the_same_transaction() {
    let world = World::new(3).await;
    let client = start(&world, world.options()).await;
    let large = vec![7; 3_000_000];
    let (one, two) = (id(1), id(2));
    // Both at once, then once more.
    let submits = (0..2).map(|_| client.submit("orders", Transaction::new("x").key("k").id(one)));
    let mut handles: Vec<_> = futures_util::future::join_all(submits).await.into_iter().map(Result::unwrap).collect();
    handles.push(client.submit("orders", Transaction::new("x").key("k").id(one)).await.unwrap());
    handles.push(client.submit("orders", Transaction::new(large.clone()).id(two)).await.unwrap());
    for handle in &handles {
        handle.accepted().await.unwrap();
    }
    // Recognised before anything of it is sealed, whether its length is known or not.
    let before = world.records("orders").await.len();
    for length in [None, Some(large.len() as u64)] {
        let read = client.submit_reader("orders", Transaction::new("").id(two), large.as_slice(), length).await;
        handles.push(read.unwrap());
    }
    assert_eq!(world.records("orders").await.len(), before, "nothing of it is sent again");
    assert_eq!(client.undecided().0, 2, "they are two transactions");
    assert!(handles[3..].iter().all(|handle| handle.payload_bytes() == Some(3_000_000)));

    let other = client.submit("orders", Transaction::new("y").id(one)).await.unwrap_err();
    assert!(matches!(other.error, ClientError::Transaction { field: "id", .. }), "{}", other.error);
    assert_eq!(other.transaction.payload().as_ref(), b"y");
    for (payload, length) in [(vec![8; 3_000_000], None), (vec![7; 2_999_999], Some(2_999_999))] {
        let other = client.submit_reader("orders", Transaction::new("").id(two), payload.as_slice(), length).await;
        assert!(matches!(other, Err(ClientError::Transaction { field: "id", .. })), "{other:?}");
    }
    assert_eq!(world.records("orders").await.len(), before);
    let other = client.submit_to(&[destination("orders"), destination("stock")], Transaction::new("x").id(one)).await;
    assert!(other.unwrap_err().error.to_string().contains("stock"));

    let opened = world.opened("orders", 2).await;
    assert_eq!(opened.iter().map(|parcel| parcel.transactions.len()).sum::<usize>(), 2, "each travels once");
    for parcel in &opened {
        let committed = world.statement(parcel, 0, Verdict::Committed);
        for node in NODES {
            world.say(node, "orders", std::slice::from_ref(&committed)).await;
        }
    }
    for handle in &handles {
        handle.complete().await.unwrap();
    }
    client.close().await;
    let (outbox, contents) = Outbox::open(&world.options().outbox, &world.options().seams).unwrap();
    assert!(contents.parcels.is_empty() && contents.transactions.is_empty());
    assert_eq!(outbox.bytes().0, 0);
}

#[tokio::test]
async fn r13_a_ticket_keeps_its_own_fate_though_its_id_was_submitted_again() {
    let world = World::new(3).await;
    let client = start(&world, world.options()).await;
    let one = id(1);
    let submit = |hours: u64| {
        let again = Transaction::new("x").id(one).deadline(Duration::from_secs(3600 * hours));
        client.submit("orders", again)
    };
    let first = submit(1).await.unwrap();
    let opened = world.opened("orders", 1).await;
    let expired = world.statement(&opened[0], 0, |_| Verdict::Expired { group_time: Time(u64::MAX) });
    for node in ["alfa", "bravo"] {
        world.say(node, "orders", std::slice::from_ref(&expired)).await;
    }
    assert!(matches!(first.committed().await, Err(WaitError::Expired)));
    // Under the same id, and another ticket: what became of the first is not what becomes of the second.
    let second = submit(2).await.unwrap();
    assert_ne!(second.ticket(), first.ticket());
    let asked = client.attach(first.ticket()).await.unwrap();
    assert_eq!(asked.ticket(), first.ticket());
    assert_eq!(asked.wait(Stage::Committed, LONG).await.unwrap(), Waited::Expired, "found in what nodes said");
    let opened = world.opened("orders", 2).await;
    let again = opened.iter().find(|parcel| Some(parcel.parcel) == second.parcel()).unwrap();
    let committed = world.statement(again, 0, Verdict::Committed);
    for node in ["charlie", "bravo"] {
        world.say(node, "orders", std::slice::from_ref(&committed)).await;
    }
    second.committed().await.unwrap();
    assert_eq!(asked.outcome(), Outcome::Expired);
    let same = client.attach(second.ticket()).await.unwrap();
    assert_eq!(same.payload_bytes(), Some(1), "that of the outbox");
    client.close().await;
}

#[tokio::test]
async fn a_wait_for_complete_ends_unknown_and_leaves_nothing_behind() {
    let world = World::new(3).await;
    let clock = Arc::new(ManualClock::new(SystemClock::new().now()));
    let mut options = world.options();
    options.seams.clock = clock.clone();
    let client = start(&world, options).await;
    let handle = client.submit("orders", Transaction::new("x").key("k")).await.unwrap();
    let opened = world.opened("orders", 1).await;
    let committed = world.statement(&opened[0], 0, Verdict::Committed);
    for node in ["alfa", "bravo"] {
        world.say(node, "orders", std::slice::from_ref(&committed)).await;
    }
    handle.committed().await.unwrap();
    let mut waiting = Box::pin(handle.complete());
    assert!(poll!(&mut waiting).is_pending());
    clock.advance(Duration::from_secs(601));
    let ended = waiting.await;
    assert!(matches!(ended, Err(WaitError::Incomplete)), "{ended:?}");
    assert_eq!(handle.wait(Stage::Complete, LONG).await.unwrap(), Waited::Unknown);
    assert_eq!(handle.wait(Stage::Committed, LONG).await.unwrap(), Waited::Reached, "what is known stays known");
    client.close().await;
    let (_, contents) = Outbox::open(&world.options().outbox, &world.options().seams).unwrap();
    assert!(contents.transactions.is_empty());
}

#[tokio::test]
async fn a_closed_client_ends_the_waits_of_its_other_clones() {
    let world = World::new(3).await;
    let client = start(&world, world.options()).await;
    let other = client.clone();
    let handle = other.submit("orders", Transaction::new("x")).await.unwrap();
    handle.accepted().await.unwrap();
    let changed = handle.changed();
    client.close().await;
    assert!(matches!(handle.wait(Stage::Committed, LONG).await, Err(ClientError::Closed)));
    assert!(matches!(handle.committed().await, Err(WaitError::Local(ClientError::Closed))));
    assert_eq!(handle.wait(Stage::Accepted, LONG).await.unwrap(), Waited::Reached, "what is known stays known");
    assert_eq!(changed.await, None);
    let again = other.attach(handle.ticket()).await.unwrap();
    assert!(matches!(again.committed().await, Err(WaitError::Local(ClientError::Closed))));
    assert!(matches!(other.submit("orders", Transaction::new("y")).await.unwrap_err().error, ClientError::Closed));
}

#[tokio::test]
async fn a_parcel_that_finds_no_room_fails_alone_and_says_why() {
    let (world, disk) = (World::new(3).await, HeldDisk::default());
    let mut options = world.options();
    options.seams.disk = disk.disk();
    let client = start(&world, options).await;
    // While this one is made durable, the others gather into one round.
    let _held = disk.hold();
    let mut first = Box::pin(client.submit("orders", Transaction::new("first")));
    assert!(poll!(&mut first).is_pending());
    disk.somebody_waits().await;
    disk.no_room();
    let both = [destination("orders"), destination("stock")];
    let mut large = Box::pin(client.submit("stock", Transaction::new(vec![7; 300_000]).key("k")));
    let mut follower = Box::pin(client.submit_to(&both, Transaction::new("follower").key("k")));
    let mut small = Box::pin(client.submit("orders", Transaction::new("small").key("other")));
    assert!(poll!(&mut large).is_pending() && poll!(&mut follower).is_pending() && poll!(&mut small).is_pending());
    disk.release();
    first.await.unwrap();
    for refused in [large.await.unwrap_err(), follower.await.unwrap_err()] {
        assert!(matches!(refused.error, ClientError::Outbox(OutboxError::DiskFull { .. })), "{}", refused.error);
        assert!(refused.retryable());
    }
    small.await.unwrap();
    let opened = world.opened("orders", 2).await;
    let payloads: Vec<_> = opened.iter().flat_map(|parcel| &parcel.transactions).map(|(_, it)| it.as_slice()).collect();
    assert!(payloads.len() == 2 && payloads.contains(&b"small".as_slice()), "{payloads:?}");
    assert_eq!(client.undecided().0, 2);
    client.close().await;
}

/// Log lines, for reading.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn log_lines_follow_a_parcel_from_submit_to_receipt() {
    let lines = Lines::default();
    let for_writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || for_writer.clone())
        .finish();
    // For all threads: what other tests log at the same time is about other parcels.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let world = World::new(3).await;
    let client = start(&world, world.options()).await;
    for payload in [vec![7; 10], vec![7; 3_000_000]] {
        let handle = client.submit("orders", Transaction::new(payload)).await.unwrap();
        handle.accepted().await.unwrap();
        let id = handle.ticket().transaction;
        let parcel = handle.parcel().unwrap().to_string();
        let opened = loop {
            let mut opened = world.opened("orders", 1).await.into_iter();
            if let Some(opened) = opened.find(|it| it.transactions[0].0.header.id == id) {
                break opened;
            }
        };
        let committed = world.statement(&opened, 0, Verdict::Committed);
        for node in ["alfa", "bravo"] {
            world.say(node, "orders", std::slice::from_ref(&committed)).await;
        }
        handle.committed().await.unwrap();
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        for word in ["sealing", "durable in the outbox", "the brokers have it", "a majority signed its fate"] {
            let line = text.lines().find(|line| line.contains(word) && line.contains(&parcel));
            let line = line.unwrap_or_else(|| panic!("no line of {parcel} says {word:?}"));
            assert!(line.contains("step="), "{line}");
        }
    }
    client.close().await;
}
