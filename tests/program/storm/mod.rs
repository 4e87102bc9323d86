//! Faults drawn from a seed, on real processes: nodes, brokers and clients are killed, stopped, restarted and slowed down,
//! folders are put back to older copies, strange records are written, directories change, while clients submit. In the end
//! everything heals, and what was promised is held against what every node has.
//!
//! - SEALCAST_STORM_SEED=NUMBER another schedule and other transactions;
//! - SEALCAST_STORM_SECONDS=NUMBER how long it lasts;
//! - SEALCAST_STORM_KEEP=FOLDER keeps everything there when it fails.
//!
//! Moments are those of the machine, so that one seed gives one schedule and not one run.

mod checks;
mod client;
mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use client::Work;
use sealcast::core::id::DestinationName;

use crate::common::folders;
use crate::common::kafka::shared;
use crate::common::troubled::{Trouble, Troubled};
use crate::common::world::World;

const NODES: [&str; 3] = ["a", "b", "c"];
/// A node's memory, whatever happens.
const NODE_KIB: u64 = 256 << 10;
/// Only the end of patience.
const PATIENCE: Duration = Duration::from_secs(180);

/// Numbers from a seed.
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `below`, and 0 for 0.
    pub fn below(&mut self, below: u64) -> u64 {
        self.next().checked_rem(below).unwrap_or(0)
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// How a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Runs,
    Paused,
    Dead,
    /// It runs on an older copy of its folder.
    Restored,
}

/// What has to happen later.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Later {
    Resume(&'static str),
    Start(&'static str),
    /// A node's folder is copied.
    Copy,
    /// A node starts with the copy of its folder.
    Restore(&'static str),
    /// The newest copy of a node's folder comes back.
    PutBack(&'static str),
    Broker(u32, Trouble),
    StartClient(usize),
    /// The sender that lost a destination gets it again.
    Permit,
}

struct ClientProcess {
    work: Work,
    process: Option<Child>,
    /// Copies of its outbox: from which branch, and after how many submissions.
    copy: Option<(PathBuf, u32, u64)>,
    /// Each branch: which one it went on from, and after how many submissions.
    branches: Vec<(u32, u64)>,
}

struct Storm {
    brokers: Option<Troubled>,
    world: World,
    name: String,
    dice: Dice,
    began: Instant,
    clients: Vec<ClientProcess>,
    nodes: BTreeMap<&'static str, Standing>,
    troubled: BTreeMap<u32, Trouble>,
    /// Copies of nodes' folders, with how far each destination's log was applied.
    copies: BTreeMap<&'static str, (PathBuf, BTreeMap<String, u64>)>,
    /// Whose folder was put back, with the length of its log before that.
    restored: BTreeMap<&'static str, usize>,
    later: Vec<(Instant, Later)>,
    permitted: bool,
    extra: BTreeSet<u64>,
    memory: u64,
}

impl Storm {
    /// Three nodes, two destinations, two senders with two clients of the first.
    fn open(seed: u64, own_brokers: bool) -> Self {
        let brokers = own_brokers.then(Troubled::start);
        let addresses = brokers.as_ref().map_or_else(shared, Troubled::brokers);
        let world = World::empty(&addresses);
        let name = format!("storm{}-{seed}", std::process::id());
        world.init(&name, &["--destination", "bills", "--sender", "shop"]);
        world.make_topics();
        let names: Vec<DestinationName> = ["orders", "bills"].map(|name| name.parse().unwrap()).into();
        let client = |(at, sender): (usize, &str)| {
            let folder = world.path().join("env/senders").join(sender);
            let config = match at {
                1 => {
                    // A second program of the same service, with an outbox of its own.
                    let text = std::fs::read_to_string(folder.join("client.toml")).unwrap();
                    let text = text.replace("path = \"outbox\"", "path = \"outbox2\"");
                    std::fs::write(folder.join("second.toml"), text).unwrap();
                    folder.join("second.toml")
                }
                _ => folder.join("client.toml"),
            };
            let work = Work {
                config,
                reader: world.path().join("env/readers/app/client.toml"),
                ledger: world.path().join(format!("ledger{at}")),
                rest: world.path().join("rest"),
                seed: seed * 10 + at as u64,
                life: 0,
                branch: 0,
                doomed: false,
                destinations: if at == 1 { names[..1].to_vec() } else { names.clone() },
                most: 3_000_000,
                gap: 60,
            };
            ClientProcess { work, process: None, copy: None, branches: vec![(0, 0)] }
        };
        let clients = ["web", "web", "shop"].into_iter().enumerate().map(client).collect();
        let mut storm = Self {
            brokers,
            world,
            name,
            dice: Dice(seed),
            began: Instant::now(),
            clients,
            nodes: BTreeMap::new(),
            troubled: BTreeMap::new(),
            copies: BTreeMap::new(),
            restored: BTreeMap::new(),
            later: Vec::new(),
            permitted: true,
            extra: BTreeSet::new(),
            memory: 0,
        };
        for node in NODES {
            storm.start(node);
        }
        for client in 0..storm.clients.len() {
            storm.start_client(client);
        }
        storm
    }

    /// What it did, and when, for whoever studies a run.
    fn note(&self, what: &str) {
        let now = jiff::Timestamp::now().strftime("%H:%M:%S%.3f");
        println!("{now} {:7.2} {what}", self.began.elapsed().as_secs_f64());
    }

    fn start(&mut self, node: &'static str) {
        self.world.start(node);
        self.nodes.insert(node, Standing::Runs);
    }

    fn kill(&mut self, node: &'static str) {
        self.weigh(node);
        self.world.kill(node);
        self.nodes.insert(node, Standing::Dead);
        self.later.retain(|(_, later)| *later != Later::Resume(node));
    }

    /// A node's memory is bounded.
    fn weigh(&mut self, node: &str) {
        let most = self.world.most_memory(node);
        self.memory = self.memory.max(most);
        assert!(most <= NODE_KIB, "node {node} had {most} KiB");
    }

    fn client_log(&self, client: usize) -> PathBuf {
        self.world.path().join(format!("client{client}.log"))
    }

    fn start_client(&mut self, client: usize) {
        let log = self.client_log(client);
        let process = &mut self.clients[client];
        process.process = Some(client::start(&process.work, &log));
        process.work.life += 1;
    }

    fn kill_client(&mut self, client: usize) -> bool {
        let Some(mut process) = self.clients[client].process.take() else { return false };
        process.kill().unwrap();
        process.wait().unwrap();
        true
    }

    fn submitted(&self, client: usize) -> u64 {
        let lines = client::ledger(&self.clients[client].work.ledger);
        lines.iter().filter(|line| matches!(line, client::Line::Intent(_))).count() as u64
    }

    /// Nodes end when they are told to, and not by themselves.
    fn watch_nodes(&mut self) {
        let gone = self.world.gone();
        assert!(gone.is_empty(), "nodes ended by themselves: {gone:?}\n{}", self.world.logs());
    }

    /// Likewise clients.
    fn watch(&mut self) {
        self.watch_nodes();
        for client in 0..self.clients.len() {
            let ended = self.clients[client].process.as_mut().and_then(|process| process.try_wait().unwrap());
            if let Some(status) = ended {
                let log = std::fs::read_to_string(self.client_log(client)).unwrap_or_default();
                let from = log.len().saturating_sub(3000);
                panic!("client {client} ended by itself: {status:?}\n{}", log.get(from..).unwrap_or(&log));
            }
        }
    }

    /// Everything that has to happen by now; with `all`, everything.
    fn due(&mut self, all: bool) {
        let now = Instant::now();
        // Those that wait for others come last.
        let order = |later: &Later| matches!(later, Later::Broker(_, Trouble::Dead));
        if all {
            // It would begin what has to end.
            self.later.retain(|(_, later)| !matches!(later, Later::Copy | Later::Restore(_)));
        }
        let (mut due, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.later).into_iter().partition(|(at, _)| all || *at <= now);
        self.later = left;
        due.sort_by_key(|(at, later)| (order(later), *at));
        for (_, later) in due {
            self.happen(later);
        }
    }

    fn run(seed: u64, lasts: Duration, own_brokers: bool) {
        let mut storm = Self::open(seed, own_brokers);
        storm.note(&format!("seed {seed}, environment {}, in {}", storm.name, storm.world.path().display()));
        // The group is founded, and something is under way.
        while (0..storm.clients.len()).any(|client| storm.submitted(client) < 3) {
            storm.watch();
            assert!(storm.began.elapsed() < PATIENCE, "nothing is submitted");
            std::thread::sleep(Duration::from_millis(50));
        }
        let end = Instant::now() + lasts;
        if own_brokers {
            storm.after(1000, 6000, Later::Copy);
        }
        while Instant::now() < end {
            storm.due(false);
            storm.watch();
            storm.step();
            let pause = storm.dice.millis(50, 900);
            std::thread::sleep(pause);
        }
        storm.heal();
        storm.check();
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        for client in 0..self.clients.len() {
            if let Some(mut process) = self.clients[client].process.take() {
                // One that has ended by itself needs no killing.
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        if let (true, Ok(keep)) = (std::thread::panicking(), std::env::var("SEALCAST_STORM_KEEP")) {
            let copied = folders::try_copy(self.world.path(), &PathBuf::from(&keep));
            println!("kept in {keep}: {copied:?}");
            if let Some(brokers) = &self.brokers {
                // It is removed with the cluster only when nothing panicked.
                println!("brokers' logs: {}", brokers.cluster.folder().display());
            }
        }
    }
}

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// A few seconds of it without faults of brokers, whom other tests share: `brokers` has those.
#[test]
fn what_was_promised_in_a_short_storm_is_kept() {
    Storm::run(setting("SEALCAST_STORM_SEED", 1), Duration::from_secs(4), false);
}

#[test]
#[ignore = "as long as it is told: cargo test --test program storm:: -- --ignored --nocapture"]
fn what_was_promised_in_a_storm_is_kept() {
    let seconds = setting("SEALCAST_STORM_SECONDS", 40);
    Storm::run(setting("SEALCAST_STORM_SEED", 1), Duration::from_secs(seconds), true);
}
