//! What a majority refuses is sealed anew until it has its fate: whatever hinders it at first, and whatever comes in between.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use sealcast::client::{Client, Stage, Transaction, Waited};
use sealcast::core::id::{DestinationName, Epoch, NodeName, RefusalReason, SenderName, Time};
use sealcast::core::receipt::{Refusal, Verdict};
use sealcast::seams::{Clock, OsRandomness, Randomness, RandomnessError, SystemClock};
use sealcast::store::outbox::{Outbox, Outcome};
use sealcast::transport::adversary::{Adversary, AdversaryOptions, Mood};
use sealcast::transport::{Topic, Transport};

use crate::client::world::{NODES, Opened, World, destination};

/// The machine's clocks, with all patience of five seconds and more made short.
pub struct Hurried(pub SystemClock);

impl Clock for Hurried {
    fn now(&self) -> Time {
        self.0.now()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let patience = duration >= Duration::from_secs(5);
        self.0.sleep(if patience { Duration::from_millis(100) } else { duration })
    }
}

/// Randomness that can be held up, and sealing with it; counts who waits for it.
#[derive(Default)]
struct Held {
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Held {
    fn hold(&self, held: bool) {
        self.state.lock().unwrap().0 = held;
        self.changed.notify_all();
    }

    fn waiting(&self) -> usize {
        self.state.lock().unwrap().1
    }
}

impl Randomness for Held {
    fn fill(&self, into: &mut [u8]) -> Result<(), RandomnessError> {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        let mut state = self.changed.wait_while(state, |(held, _)| *held).unwrap();
        state.1 -= 1;
        OsRandomness.fill(into)
    }
}

async fn refuse(world: &World, parcel: &Opened, name: &str, reason: RefusalReason) {
    let tag = world.directory.destinations[&destination(name)].tag;
    for node in &NODES[..2] {
        let node = NodeName::new(node).unwrap();
        let refusal = Refusal {
            sender: SenderName::new("web").unwrap(),
            epoch: Epoch([0; 8]),
            parcel: parcel.parcel,
            digest: parcel.digest,
            reason,
        };
        world.publish(refusal.sign(&world.nodes[&node], &node, tag, world.directory.version)).await;
    }
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if reached() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// How many parcels of a destination's topic can be opened.
async fn parcels(world: &World, name: &str) -> usize {
    world.open(name).await.len()
}

async fn start(world: &World, held: &Arc<Held>, bytes: u64) -> Client {
    let mut options = world.options();
    options.seams.clock = Arc::new(Hurried(SystemClock::new()));
    options.seams.randomness = held.clone();
    options.outbox.bytes = bytes;
    Client::start(world.transport.clone(), options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_full_outbox_hinders_is_sealed_anew_when_there_is_room() {
    let world = World::new(3).await;
    let client = start(&world, &Arc::default(), 500_000).await;
    let refused = client.submit("orders", Transaction::new(vec![1; 200_000])).await.unwrap();
    refused.accepted().await.unwrap();
    let other = client.submit("stock", Transaction::new(vec![2; 200_000])).await.unwrap();
    let before = world.opened("orders", 1).await;
    refuse(&world, &before[0], "orders", RefusalReason::RetiredKey).await;
    // There is no room for a copy until the other has its fate.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(parcels(&world, "orders").await, 1);
    let opened = world.opened("stock", 1).await;
    let committed = [world.statement(&opened[0], 0, Verdict::Committed)];
    for node in NODES {
        world.say(node, "stock", &committed).await;
    }
    other.complete().await.unwrap();
    let anew = world.opened_except("orders", &[before[0].parcel], 1).await;
    assert_eq!(anew[0].transactions[0].1, vec![1; 200_000]);
    refused.accepted().await.unwrap();
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_anew_is_not_accepted_before_the_brokers_have_it() {
    let world = World::new(3).await;
    let held = Arc::<Held>::default();
    let mut options = world.options();
    options.seams.randomness = held.clone();
    let adversary = Adversary::new((*world.transport).clone(), AdversaryOptions::harmless(1), &options.seams);
    let client = Client::start(Arc::new(adversary.clone()), options).await.unwrap();
    let handle = client.submit("orders", Transaction::new("x")).await.unwrap();
    handle.accepted().await.unwrap();
    let before = world.opened("orders", 1).await;
    held.hold(true);
    refuse(&world, &before[0], "orders", RefusalReason::RetiredKey).await;
    until("sealing begins", || held.waiting() > 0).await;
    assert_eq!(handle.outcome(), Outcome::Accepted);
    // The brokers go away: nothing new is acknowledged.
    let partitions = world.transport.partitions(&Topic::segments(&world.directory.name, &destination("orders")));
    for partition in partitions.iter() {
        adversary.set_mood(&partition.domain, Mood::Away);
    }
    held.hold(false);
    until("it travels in another parcel", || handle.parcel() != Some(before[0].parcel)).await;
    assert_eq!(handle.outcome(), Outcome::Submitted);
    for partition in partitions.iter() {
        adversary.set_mood(&partition.domain, Mood::Well);
    }
    handle.accepted().await.unwrap();
    assert_eq!(world.opened("orders", 2).await.len(), 2);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_gets_its_fate_while_it_is_sealed_anew_is_not_sent_again() {
    let world = World::new(3).await;
    let held = Arc::<Held>::default();
    let client = start(&world, &held, 1 << 30).await;
    let handle = client.submit("orders", Transaction::new("x").key("k")).await.unwrap();
    handle.accepted().await.unwrap();
    let before = world.opened("orders", 1).await;
    held.hold(true);
    refuse(&world, &before[0], "orders", RefusalReason::RetiredKey).await;
    until("sealing begins", || held.waiting() > 0).await;
    let committed = [world.statement(&before[0], 0, Verdict::Committed)];
    for node in NODES {
        world.say(node, "orders", &committed).await;
    }
    handle.complete().await.unwrap();
    held.hold(false);
    // Its file comes, and goes again.
    let folder = world.outbox().join("parcels");
    let mut seen = false;
    for _ in 0..5000 {
        let here = std::fs::read_dir(&folder).is_ok_and(|files| files.count() > 0);
        if seen && !here {
            break;
        }
        seen |= here;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(parcels(&world, "orders").await, 1, "nothing was sent again");
    client.close().await;
    let (outbox, contents) = Outbox::open(&world.options().outbox, &world.options().seams).unwrap();
    assert!(contents.parcels.is_empty() && contents.transactions.is_empty(), "{contents:?}");
    assert_eq!(outbox.bytes().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_destinations_that_refuse_a_parcel_get_one_other() {
    let world = World::new(3).await;
    let held = Arc::<Held>::default();
    let client = start(&world, &held, 1 << 30).await;
    let both: [DestinationName; 2] = ["orders", "stock"].map(destination);
    let handles = client.submit_to(&both, Transaction::new("x")).await.unwrap();
    let before = [world.opened("orders", 1).await.remove(0), world.opened("stock", 1).await.remove(0)];
    held.hold(true);
    refuse(&world, &before[0], "orders", RefusalReason::RetiredKey).await;
    until("sealing begins", || held.waiting() > 0).await;
    refuse(&world, &before[1], "stock", RefusalReason::RetiredKey).await;
    // Long enough for a second sealing to begin.
    tokio::time::sleep(Duration::from_millis(600)).await;
    held.hold(false);
    let old = [before[0].parcel];
    let anew =
        [world.opened_except("orders", &old, 1).await.remove(0), world.opened_except("stock", &old, 1).await.remove(0)];
    for (name, parcel) in ["orders", "stock"].iter().zip(&anew) {
        let committed = [world.statement(parcel, 0, Verdict::Committed)];
        for node in NODES {
            world.say(node, name, &committed).await;
        }
    }
    for handle in &handles {
        handle.complete().await.unwrap();
    }
    assert_eq!(parcels(&world, "orders").await, 2);
    assert_eq!(handles[0].wait(Stage::Complete, Duration::ZERO).await.unwrap(), Waited::Reached);
    client.close().await;
    let (outbox, contents) = Outbox::open(&world.options().outbox, &world.options().seams).unwrap();
    assert!(contents.parcels.is_empty() && contents.transactions.is_empty(), "{contents:?}");
    assert_eq!(outbox.bytes().0, 0);
}
