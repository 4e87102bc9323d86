//! A sender under load while brokers are slow, silent, dead and rolled (R14, R15), in simulated time: the real publisher over
//! simulated brokers, an outbox that sends again what is asked for, nodes that decide or are away.
//!
//! What happens when follows from a seed. SEALCAST_BROKER_SEEDS=FROM..TO runs others than the usual ones.

pub mod nodes;
mod simulated;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sealcast::core::id::{ParcelId, Time};
use sealcast::telemetry::Meter;
use sealcast::transport::Record;
use sealcast::transport::publisher::{Publisher, PublisherEvent, StripeId, StripeRecords};
use simulated::{Brokers, CREDIT, Memory, Mood, Paused};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

/// What the publisher may hold.
const PUBLISHER: usize = 4 << 20;
/// Until a shard that was given up is acknowledged elsewhere: R15's quarter of a second, and some way.
const SOON: Duration = Duration::from_millis(400);

fn seeds(usual: Range<u64>) -> Range<u64> {
    let Ok(range) = std::env::var("SEALCAST_BROKER_SEEDS") else { return usual };
    let (from, to) = range.split_once("..").expect("FROM..TO");
    from.parse().unwrap()..to.parse().unwrap()
}

/// Numbers that follow from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    fn milliseconds(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.within(range))
    }
}

#[derive(Debug, Clone)]
struct Sent {
    k: usize,
    shards: u8,
    bytes: usize,
    at: Instant,
    /// Whether the publisher has it: the load may have ended while it waited for credit.
    published: bool,
    accepted: Option<Duration>,
    decided: bool,
}

/// The sender: one publisher, and what it has sent.
struct Sender {
    brokers: Brokers,
    publisher: Publisher,
    memory: Memory,
    sent: Arc<Mutex<BTreeMap<u32, Sent>>>,
    withheld: Arc<Mutex<Vec<Arc<str>>>>,
    /// How long after acceptance the nodes decide; `None` while they are away.
    nodes: Arc<Mutex<Option<Duration>>>,
    dice: Dice,
}

fn id(number: u32) -> StripeId {
    let mut random = [0; 10];
    random[6..].copy_from_slice(&number.to_be_bytes());
    StripeId { parcel: ParcelId::from_parts(Time(1_700_000_000_000), random), index: 0 }
}

fn number(stripe: StripeId) -> u32 {
    u32::from_be_bytes(stripe.parcel.to_bytes()[12..].try_into().unwrap())
}

fn records(number: u32, of: &Sent, memory: &Memory) -> StripeRecords {
    let record = |shard: u8| {
        let key = [number.to_be_bytes().as_slice(), &[shard]].concat();
        Record { key: Bytes::from(key), value: memory.bytes(of.bytes) }
    };
    StripeRecords { id: id(number), k: of.k, records: (0..of.shards).map(record).collect() }
}

impl Sender {
    fn start(seed: u64) -> Self {
        let brokers = Brokers::start(3);
        let clock = Arc::new(Paused::new());
        let transport = Arc::new(brokers.clone());
        let (publisher, mut events) =
            Publisher::start(transport, brokers.topic.clone(), clock, &Meter::default(), PUBLISHER);
        let sender = Self {
            brokers,
            publisher: publisher.clone(),
            memory: Memory::default(),
            sent: Arc::default(),
            withheld: Arc::default(),
            nodes: Arc::new(Mutex::new(Some(Duration::from_millis(20)))),
            dice: Dice(seed),
        };
        let (sent, withheld, nodes) = (sender.sent.clone(), sender.withheld.clone(), sender.nodes.clone());
        let brokers = sender.brokers.clone();
        let outbox = sender.outbox();
        tokio::spawn(async move {
            let mut undecided = BTreeSet::new();
            while let Some(event) = events.recv().await {
                match event {
                    PublisherEvent::Accepted(stripe) => {
                        let number = number(stripe);
                        survives_any_one(&brokers, number, sent.lock().unwrap()[&number].k);
                        let mut sent = sent.lock().unwrap();
                        let of = sent.get_mut(&number).unwrap();
                        assert!(of.accepted.is_none() || of.decided, "said once");
                        of.accepted = Some(of.at.elapsed());
                        undecided.insert(number);
                    }
                    PublisherEvent::Wanted(stripe) => {
                        outbox.send(number(stripe)).unwrap();
                    }
                    PublisherEvent::Withheld { domains, .. } => *withheld.lock().unwrap() = domains,
                    PublisherEvent::Settled(_) => {}
                    refused @ PublisherEvent::Refused { .. } => panic!("{refused:?}"),
                }
                // Nodes decide what they can recover from brokers that work, some time after they could.
                let Some(patience) = *nodes.lock().unwrap() else { continue };
                let mut all = sent.lock().unwrap();
                undecided.retain(|number| {
                    let of = all.get_mut(number).unwrap();
                    of.decided = of.accepted.is_some_and(|took| of.at.elapsed() > took + patience);
                    if of.decided {
                        publisher.forget(id(*number).parcel);
                    }
                    !of.decided
                });
            }
        });
        sender
    }

    /// Sends again what is asked for and undecided, one after the other.
    fn outbox(&self) -> mpsc::UnboundedSender<u32> {
        let (ask, mut asked) = mpsc::unbounded_channel();
        let (sent, memory, publisher) = (self.sent.clone(), self.memory.clone(), self.publisher.clone());
        tokio::spawn(async move {
            while let Some(number) = asked.recv().await {
                let of = sent.lock().unwrap()[&number].clone();
                if !of.decided {
                    publisher.publish(records(number, &of, &memory), false).await.unwrap();
                }
                if sent.lock().unwrap()[&number].decided {
                    publisher.forget(id(number).parcel);
                }
            }
        });
        ask
    }

    /// Submits at full load for so long, waiting for nothing but credit.
    async fn load(&mut self, how_long: Duration) {
        let end = Instant::now() + how_long;
        while Instant::now() < end {
            let small = self.dice.within(0..4) == 0;
            let (k, shards, bytes) = if small { (1, 3, 1000) } else { (8, 12, self.dice.within(500..16_000) as usize) };
            let at = Instant::now();
            let of = Sent { k, shards, bytes, at, published: false, accepted: None, decided: false };
            let number = self.sent.lock().unwrap().len() as u32;
            self.sent.lock().unwrap().insert(number, of.clone());
            self.publisher.publish(records(number, &of, &self.memory), false).await.unwrap();
            // What waited for credit counts from when it had it.
            if let Some(of) = self.sent.lock().unwrap().get_mut(&number) {
                (of.at, of.published) = (Instant::now(), true);
            }
            sleep(self.dice.milliseconds(1..16)).await;
        }
    }

    /// Waits until everything is accepted.
    async fn accepted(&self, what: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let waiting: Vec<u32> = {
                let sent = self.sent.lock().unwrap();
                sent.iter().filter(|(_, of)| of.published && of.accepted.is_none()).map(|(number, _)| *number).collect()
            };
            if waiting.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "{what}: {} never accepted, first {:?}", waiting.len(), waiting.first());
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// The longest time to acceptance of what was sent since this moment.
    fn slowest_since(&self, moment: Instant) -> Duration {
        let sent = self.sent.lock().unwrap();
        sent.values().filter(|of| of.at >= moment).filter_map(|of| of.accepted).max().unwrap_or_default()
    }

    /// Waits until a broker that is back has taken something; not longer than R15 allows.
    async fn used_again(&mut self, broker: usize) {
        let back = Instant::now();
        self.brokers.set(broker, Mood::Well);
        self.load(Duration::from_secs(2)).await;
        assert!(self.brokers.took_since(broker, back), "broker {broker} is used again within 2 s");
    }

    /// With `away` gone, what is accepted and undecided can be recovered from either of the others alone.
    fn survives_another(&self, away: usize) {
        let sent = self.sent.lock().unwrap();
        for (number, of) in sent.iter().filter(|(_, of)| of.accepted.is_some() && !of.decided) {
            let held = self.brokers.shards(*number);
            for (broker, shards) in held.iter().enumerate().filter(|(broker, _)| *broker != away) {
                assert!(shards.len() >= of.k, "{number}: broker {broker} alone has {shards:?}, k = {}", of.k);
            }
        }
    }
}

/// The promise of *accepted*: without any one broker, k distinct shards are left.
fn survives_any_one(brokers: &Brokers, number: u32, k: usize) {
    let held = brokers.shards(number);
    for lost in 0..held.len() {
        let left = held.iter().enumerate().filter(|(broker, _)| *broker != lost).flat_map(|(_, shards)| shards);
        let left: BTreeSet<_> = left.collect();
        assert!(
            left.len() >= k,
            "{number} is called accepted, and without broker {lost} only {left:?} are left of {k}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn r15_a_broker_200_ms_late_delays_nobody_and_fills_nobodys_memory() {
    for seed in seeds(0..2) {
        let mut sender = Sender::start(seed);
        sender.load(Duration::from_secs(1)).await;
        sender.accepted("all well").await;
        let (well, memory) = (sender.slowest_since(Instant::now() - Duration::from_secs(1)), sender.memory.most());
        let usual = [sender.brokers.most_under_way(1), sender.brokers.most_under_way(2)].into_iter().max().unwrap();
        sender.brokers.set(0, Mood::Slow(Duration::from_millis(200)));
        // Until it is noticed; then nothing waits for it.
        sender.load(Duration::from_millis(500)).await;
        sender.brokers.most_under_way(1);
        sender.brokers.most_under_way(2);
        let noticed = Instant::now();
        sender.load(Duration::from_secs(20)).await;
        sender.accepted("one is late").await;
        let late = sender.slowest_since(noticed);
        assert!(late <= well * 4 + Duration::from_millis(20), "seed {seed}: {late:?}, all well {well:?}");
        for other in [1, 2] {
            let most = sender.brokers.most_under_way(other);
            assert!(most <= usual * 4, "seed {seed}: broker {other} has {most} under way, usually {usual}");
        }
        let bound = memory + CREDIT + PUBLISHER / 2;
        assert!(sender.memory.most() <= bound, "seed {seed}: {} bytes, all well {memory}", sender.memory.most());
        sender.used_again(0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn r15_brokers_silent_paused_dead_and_rolled_delay_nobody_and_are_used_again() {
    for seed in seeds(0..1) {
        let mut sender = Sender::start(seed);
        let first = sender.dice.within(0..3) as usize;
        sender.load(Duration::from_secs(1)).await;
        let troubles = [
            (Mood::Silent, sender.dice.milliseconds(25_000..35_000)),
            (Mood::Silent, sender.dice.milliseconds(4_000..6_000)),
            (Mood::Dead, sender.dice.milliseconds(60_000..100_000)),
        ];
        for (turn, (mood, how_long)) in troubles.into_iter().enumerate() {
            let broker = (first + turn) % 3;
            let began = Instant::now();
            sender.brokers.set(broker, mood);
            sender.load(how_long).await;
            sender.accepted(&format!("seed {seed}: {mood:?} for {how_long:?}")).await;
            let slowest = sender.slowest_since(began);
            assert!(slowest <= SOON, "seed {seed}: {slowest:?} with broker {broker} {mood:?} for {how_long:?}");
            sender.used_again(broker).await;
        }
        // One after the other, each back before the next goes, 2 s apart.
        for broker in 0..3 {
            let began = Instant::now();
            sender.brokers.set(broker, Mood::Dead);
            let away = sender.dice.milliseconds(500..9_000);
            sender.load(away).await;
            sender.accepted(&format!("seed {seed}: broker {broker} rolled")).await;
            assert!(sender.slowest_since(began) <= SOON, "seed {seed}: {:?}", sender.slowest_since(began));
            sender.used_again(broker).await;
        }
        let most = sender.memory.most();
        assert!(most <= PUBLISHER + 3 * CREDIT + (1 << 20), "seed {seed}: {most} bytes at most");
        sleep(Duration::from_secs(10)).await;
        assert_eq!(sender.memory.live(), 0, "seed {seed}: nothing is held of what is accepted");
        assert_eq!(sender.publisher.in_flight(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn r14_with_one_broker_away_any_one_of_the_others_may_die_too() {
    for seed in seeds(0..3) {
        let mut sender = Sender::start(seed);
        *sender.nodes.lock().unwrap() = None;
        let (away, slow) = (sender.dice.within(0..3) as usize, sender.dice.within(1..3) as usize);
        let slow = (away + slow) % 3;
        // A late broker first: what waits for it is passed over, and must not be counted on later.
        sender.brokers.set(slow, Mood::Slow(sender.dice.milliseconds(100..400)));
        sender.load(Duration::from_secs(3)).await;
        sender.brokers.set(slow, Mood::Well);
        sender.load(Duration::from_secs(2)).await;
        sender.brokers.set(away, Mood::Dead);
        let how_long = sender.dice.milliseconds(500..4_000);
        sender.load(how_long).await;
        sender.accepted("one is dead").await;
        // Away over ten seconds: all of it is topped up.
        sleep(Duration::from_secs(14)).await;
        sender.survives_another(away);
        sender.load(Duration::from_secs(1)).await;
        sender.accepted("still away").await;
        sender.survives_another(away);
    }
}

#[tokio::test(start_paused = true)]
async fn r14_what_could_not_be_topped_up_while_another_was_away_is_when_it_returns() {
    for seed in seeds(0..3) {
        let mut sender = Sender::start(seed);
        *sender.nodes.lock().unwrap() = None;
        sender.load(Duration::from_secs(1)).await;
        sender.accepted("all well").await;
        sender.brokers.set(0, Mood::Dead);
        sleep(sender.dice.milliseconds(7_000..9_500)).await;
        // The second is only away for a moment: while the first counts as gone.
        sender.brokers.set(1, Mood::Dead);
        sleep(Duration::from_secs(5)).await;
        sender.brokers.set(1, Mood::Well);
        sleep(Duration::from_secs(3)).await;
        sender.survives_another(0);
    }
}

#[tokio::test(start_paused = true)]
async fn r14_with_one_left_accepted_is_withheld_by_name_and_the_one_has_everything() {
    for seed in seeds(0..3) {
        let mut sender = Sender::start(seed);
        let left = sender.dice.within(0..3) as usize;
        sender.load(Duration::from_millis(500)).await;
        sender.accepted("all well").await;
        *sender.nodes.lock().unwrap() = None;
        let others: Vec<usize> = (0..3).filter(|broker| *broker != left).collect();
        for broker in &others {
            sender.brokers.set(*broker, Mood::Dead);
            sleep(sender.dice.milliseconds(0..3_000)).await;
        }
        let alone = sender.sent.lock().unwrap().len() as u32;
        let how_long = sender.dice.milliseconds(2_000..15_000);
        sender.load(how_long).await;
        sleep(Duration::from_secs(1)).await;
        let names: Vec<Arc<str>> = others.iter().map(|broker| format!("broker-{broker}").into()).collect();
        assert_eq!(*sender.withheld.lock().unwrap(), names, "seed {seed}");
        {
            let sent = sender.sent.lock().unwrap();
            assert!(sent.range(alone..).count() > 100, "seed {seed}: submitting goes on");
            for (number, of) in sent.range(alone..).filter(|(_, of)| of.published) {
                assert_eq!(of.accepted, None, "seed {seed}: {number} is in one domain only");
                assert!(sender.brokers.shards(*number)[left].len() >= of.k, "seed {seed}: {number} can be committed");
            }
        }
        let most = sender.memory.most();
        assert!(most <= PUBLISHER + 3 * CREDIT + (1 << 20), "seed {seed}: {most} bytes at most");
        sender.brokers.set(others[0], Mood::Well);
        sender.accepted(&format!("seed {seed}: two are left")).await;
        assert!(sender.withheld.lock().unwrap().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn r14_accepted_is_kept_whatever_brokers_do_and_comes_when_they_are_well() {
    for seed in seeds(0..4) {
        let mut sender = Sender::start(seed);
        *sender.nodes.lock().unwrap() = Some(sender.dice.milliseconds(1..20_000));
        for _ in 0..12 {
            let broker = sender.dice.within(0..3) as usize;
            let mood = match sender.dice.within(0..5) {
                0 => Mood::Slow(sender.dice.milliseconds(20..1_000)),
                1 => Mood::Silent,
                2 => Mood::Dead,
                _ => Mood::Well,
            };
            sender.brokers.set(broker, mood);
            let how_long = sender.dice.milliseconds(50..8_000);
            // With nobody left to take anything, credit ends, and with it the load.
            if (0..3).any(|broker| sender.brokers.works(broker)) {
                let _ = tokio::time::timeout(how_long * 4, sender.load(how_long)).await;
            } else {
                sleep(how_long).await;
            }
        }
        for broker in 0..3 {
            sender.brokers.set(broker, Mood::Well);
        }
        sender.accepted(&format!("seed {seed}")).await;
        let most = sender.memory.most();
        assert!(most <= PUBLISHER + 3 * CREDIT + (1 << 20), "seed {seed}: {most} bytes at most");
    }
}
