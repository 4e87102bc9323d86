//! A sender under load over real brokers that are slow, silent, paused, dead and rolled (R14, R15): what it submits is
//! accepted and committed meanwhile, and a broker that is back is used again.
//!
//! What happens, when, to which broker and how large transactions are follows from a seed. For other runs of the same:
//!
//! - SEALCAST_BROKER_SEED=NUMBER another order, other brokers, sizes and moments;
//! - SEALCAST_BROKER_BYTES=NUMBER the largest payload;
//! - SEALCAST_BROKER_GAP=MILLISECONDS the time between two submissions;
//! - the ignored test takes as long as broken brokers take: half a minute of silence, minutes of death.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use sealcast::client::{Client, Handle, Stage, Transaction, Waited};
use tokio::runtime::Runtime;

use crate::common::troubled::{Trouble, Troubled};
use crate::common::world::{World, payload};

/// Only the end of patience.
const PATIENCE: Duration = Duration::from_secs(60);
/// A node's memory, whatever brokers do.
const NODE_KIB: u64 = 256 << 10;

/// Brokers, nodes, and a sender that submits all the time.
struct Scene {
    brokers: Troubled,
    world: World,
    runtime: Runtime,
    client: Client,
    load: Arc<Load>,
    dice: u64,
}

/// Submits until it is told to rest.
struct Load {
    going: tokio::sync::watch::Sender<bool>,
    /// Whether it rests: nothing more is added to the handles.
    resting: tokio::sync::watch::Sender<bool>,
    handles: Mutex<Vec<Handle>>,
}

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

impl Scene {
    fn open(seed: u64) -> Self {
        let brokers = Troubled::start();
        let mut world = World::new(&brokers.brokers());
        world.start_all();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let config = world.path().join("env/senders/web/client.toml");
        let client = runtime.block_on(Client::connect(config)).unwrap();
        let (going, resting) = (tokio::sync::watch::Sender::new(true), tokio::sync::watch::Sender::new(false));
        let load = Arc::new(Load { going, resting, handles: Mutex::default() });
        let (most, gap) = (setting("SEALCAST_BROKER_BYTES", 200_000), setting("SEALCAST_BROKER_GAP", 25));
        runtime.spawn(submit(client.clone(), load.clone(), seed, most, gap));
        Self { brokers, world, runtime, client, load, dice: seed }
    }

    /// A number below `below`, and another each time.
    fn dice(&mut self, below: u64) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % below
    }

    /// Everything submitted so far is accepted and committed, while what is the matter goes on.
    fn committed(&self, meanwhile: &str) -> usize {
        let end = Instant::now() + PATIENCE;
        while self.load.handles.lock().unwrap().len() < 10 {
            assert!(Instant::now() < end, "{meanwhile}: nothing is submitted");
            std::thread::sleep(Duration::from_millis(50));
        }
        let handles = std::mem::take(&mut *self.load.handles.lock().unwrap());
        for handle in &handles {
            for stage in [Stage::Accepted, Stage::Committed] {
                let left = end.saturating_duration_since(Instant::now());
                let waited = self.runtime.block_on(handle.wait(stage, left)).unwrap();
                let logs = || self.world.logs();
                assert!(waited == Waited::Reached, "{meanwhile}: {stage:?} of {handle:?}: {waited:?}\n{}", logs());
            }
        }
        let slowest = |of: fn(&Handle) -> Option<Duration>| handles.iter().filter_map(of).max().unwrap_or_default();
        // For whoever looks; nothing depends on it.
        println!(
            "{meanwhile}: {} committed, slowest accepted {:?}, committed {:?}",
            handles.len(),
            slowest(|handle| handle.times().accepted),
            slowest(|handle| handle.times().committed)
        );
        for node in ["a", "b", "c"] {
            let most = self.world.most_memory(node);
            assert!(most <= NODE_KIB, "{meanwhile}: node {node} had {most} KiB");
        }
        handles.len()
    }

    /// Trouble for so long: what is submitted meanwhile is committed before it ends, and the broker is used again after it.
    fn trouble(&mut self, broker: u32, trouble: Trouble, how_long: Duration) {
        let what = format!("broker {broker} {trouble:?} for {how_long:?}");
        self.brokers.begin(broker, trouble);
        std::thread::sleep(how_long);
        self.committed(&what);
        self.brokers.end(broker, trouble);
        self.used_again(broker, &what);
    }

    /// Waits until a broker's partition has grown by a few records.
    fn used_again(&self, broker: u32, after: &str) {
        let config = format!("127.0.0.1:{}", self.brokers.cluster.port(broker));
        let tool: BaseConsumer = ClientConfig::new().set("bootstrap.servers", config).create().unwrap();
        let topic = format!("sealcast.{}.orders.segments", self.world.environment());
        let end = Instant::now() + PATIENCE;
        let patience = Duration::from_secs(5);
        let mut first = None;
        loop {
            let found = tool.fetch_metadata(Some(&topic), patience).ok().and_then(|metadata| {
                let partitions = metadata.topics()[0].partitions();
                partitions.iter().find(|one| one.leader() == broker as i32).map(|one| one.id())
            });
            let seen = found.and_then(|partition| tool.fetch_watermarks(&topic, partition, patience).ok());
            if let Some((_, seen)) = seen {
                let first = *first.get_or_insert(seen);
                if seen > first + 3 {
                    return;
                }
            }
            assert!(Instant::now() < end, "broker {broker} is not used again after {after}: {seen:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn nodes(&self, signal: &str) {
        ["a", "b", "c"].iter().for_each(|node| self.world.signal(node, signal));
    }

    /// One broker away, gone for more than ten seconds; what is accepted then outlives another of them.
    fn two_away(&mut self, first: u32, second: u32, away: Duration) {
        self.brokers.begin(first, Trouble::Dead);
        std::thread::sleep(away);
        self.committed(&format!("broker {first} dead for {away:?}"));
        // Nodes that see nothing cannot have it from the second before it dies.
        self.nodes("STOP");
        let accepted = self.rested(Stage::Accepted, "one dead, no node");
        self.brokers.begin(second, Trouble::Dead);
        self.nodes("CONT");
        for handle in &accepted {
            let waited = self.runtime.block_on(handle.wait(Stage::Committed, PATIENCE)).unwrap();
            let logs = || self.world.logs();
            assert!(
                waited == Waited::Reached,
                "accepted, then a second broker died: {handle:?}: {waited:?}\n{}",
                logs()
            );
        }
        println!("{} accepted and then committed from one broker alone", accepted.len());
        // With one left: accepted is withheld, by the names of those that are away, and committed still comes.
        let domains = BTreeMap::from([(1, "rack one"), (2, "rack two"), (3, "broker 3")]);
        let names: BTreeSet<&str> = [first, second].map(|broker| domains[&broker]).into();
        let end = Instant::now() + PATIENCE;
        loop {
            let handle = self.runtime.block_on(self.client.submit("orders", Transaction::new(vec![7; 5000]))).unwrap();
            // Said while it waits: a fate ends it.
            let withheld: Vec<Arc<str>> = handle.withheld().to_vec();
            let waited = self.runtime.block_on(handle.wait(Stage::Committed, PATIENCE)).unwrap();
            assert!(waited == Waited::Reached, "committed with one broker left: {waited:?}\n{}", self.world.logs());
            if withheld.iter().map(|name| &**name).collect::<BTreeSet<_>>() == names {
                let times = handle.times();
                assert_eq!(
                    times.accepted, times.committed,
                    "in one domain only, nothing but its fate makes it accepted"
                );
                break;
            }
            assert!(Instant::now() < end, "accepted is not withheld by name: {withheld:?}, wanted {names:?}");
        }
        for broker in [second, first] {
            self.brokers.end(broker, Trouble::Dead);
            self.load.going.send_replace(true);
            self.used_again(broker, "two were dead");
        }
        self.committed("all are back");
    }

    /// Waits until everything submitted so far has reached a stage, the last of it submitted just now; then it rests.
    fn rested(&self, stage: Stage, what: &str) -> Vec<Handle> {
        std::thread::sleep(Duration::from_secs(1));
        let handles = self.rest();
        for handle in &handles {
            let waited = self.runtime.block_on(handle.wait(stage, PATIENCE)).unwrap();
            assert!(waited == Waited::Reached, "{what}: {handle:?}: {waited:?}");
        }
        handles
    }

    /// Ends submitting; gives what was submitted and not asked about yet.
    fn rest(&self) -> Vec<Handle> {
        self.load.going.send_replace(false);
        let mut resting = self.load.resting.subscribe();
        let rests = async { tokio::time::timeout(PATIENCE, resting.wait_for(|resting| *resting)).await.map(drop) };
        self.runtime.block_on(rests).expect("submitting comes to rest");
        std::mem::take(&mut *self.load.handles.lock().unwrap())
    }

    /// Everything is decided, and nodes agree.
    fn close(mut self) {
        for handle in self.rest() {
            self.runtime.block_on(handle.committed()).unwrap();
        }
        let (undecided, bytes) = self.client.undecided();
        assert_eq!((undecided, bytes), (0, 0), "the window is empty again");
        self.world.settle(1);
        self.runtime.block_on(self.client.clone().close());
        for node in ["a", "b", "c"] {
            assert_eq!(self.world.stop(node), Some(0), "{node} drains");
        }
    }
}

async fn submit(client: Client, load: Arc<Load>, seed: u64, most: u64, gap: u64) {
    let mut going = load.going.subscribe();
    for number in 0u64.. {
        if !*going.borrow_and_update() {
            load.resting.send_replace(true);
            if going.wait_for(|going| *going).await.is_err() {
                return;
            }
            load.resting.send_replace(false);
        }
        let sizes = payload(seed.wrapping_add(number), 8);
        let draw = u64::from_be_bytes(sizes.try_into().unwrap());
        // Small ones mostly, and now and then one of many shards or of several stripes.
        let length = match draw % 4 {
            0 => (draw >> 8) % most.max(1),
            _ => (draw >> 8) % 2000,
        };
        let transaction = Transaction::new(payload(number, length as usize));
        let transaction = if draw % 3 == 0 { transaction.key(format!("{}", draw % 5)) } else { transaction };
        match client.submit("orders", transaction).await {
            Ok(handle) => load.handles.lock().unwrap().push(handle),
            // The window is full: that is backpressure, and must end.
            Err(error) => {
                assert!(error.retryable(), "{error}");
                client.ready(most).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(gap)).await;
    }
}

#[test]
fn r15_slow_silent_paused_and_dead_brokers_hold_nothing_up_and_are_used_again() {
    let seed = setting("SEALCAST_BROKER_SEED", 1);
    let mut scene = Scene::open(seed);
    let first = 1 + scene.dice(3) as u32;
    let next = |broker: u32| broker % 3 + 1;
    scene.committed("all well");
    let late = Duration::from_millis(200);
    scene.trouble(first, Trouble::Late(late), Duration::from_secs(2));
    // Longer than a record waits for its acknowledgement.
    let silent = Duration::from_millis(5_500 + scene.dice(1_500));
    scene.trouble(next(first), Trouble::Silent, silent);
    let paused = Duration::from_millis(1_000 + scene.dice(2_000));
    scene.trouble(next(next(first)), Trouble::Paused, paused);
    // Longer than what it acknowledged is counted on.
    let dead = Duration::from_millis(11_000 + scene.dice(1_000));
    scene.two_away(first, next(first), dead);
    scene.close();
}

/// As long as it takes: half a minute of silence, two minutes of death at load, all three rolled twice.
#[test]
#[ignore = "takes five minutes: cargo test --test program brokers -- --ignored --nocapture"]
fn r15_the_same_for_minutes_and_a_rolling_restart_under_load() {
    let seed = setting("SEALCAST_BROKER_SEED", 1);
    let mut scene = Scene::open(seed);
    let first = 1 + scene.dice(3) as u32;
    let next = |broker: u32| broker % 3 + 1;
    scene.trouble(first, Trouble::Late(Duration::from_millis(200)), Duration::from_secs(20));
    scene.trouble(next(first), Trouble::Silent, Duration::from_secs(30));
    scene.trouble(next(next(first)), Trouble::Paused, Duration::from_secs(5));
    scene.trouble(first, Trouble::Dead, Duration::from_secs(120));
    for round in 0..2 {
        for broker in 1..=3 {
            let away = Duration::from_millis(500 + scene.dice(5_000));
            scene.trouble(broker, Trouble::Dead, away);
            std::thread::sleep(Duration::from_secs(2));
        }
        scene.committed(&format!("rolled, round {round}"));
    }
    scene.two_away(first, next(first), Duration::from_secs(15));
    scene.close();
}
