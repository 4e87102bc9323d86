//! How a storm ends: everything heals, and what clients were promised is held against what every node has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sealcast::client::reader::{From, Reader, Subscription};
use sealcast::config::{ClientConfig, Sources};
use sealcast::core::id::{DestinationName, Position, Ticket, TransactionId};
use sealcast::seams::Seams;

use super::client::{Intent, Line, ledger, payload_of};
use super::{NODES, PATIENCE, Storm};

/// Alarms that a storm gives no reason for: each would be false, or a broken rule.
const FALSE_ALARMS: [&str; 9] = [
    "gap in the collected topic",
    "alarm=\"equivocation\"",
    "alarm=\"refused-but-committed\"",
    "alarm=\"store-not-admitted\"",
    "alarm=\"store-unreadable\"",
    "alarm=\"directory-contradicts\"",
    "alarm=\"directory-refused\"",
    "panicked",
    "contradicts itself",
];

/// A transaction as a node gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    position: Position,
    sender: String,
    key: Option<Vec<u8>>,
    bytes: u64,
    digest: blake3::Hash,
}

impl Storm {
    /// Ends every fault, and lets what was submitted get its fate.
    pub(super) fn heal(&mut self) {
        self.note("heal");
        self.due(true);
        for node in NODES {
            self.tell(node);
        }
        std::fs::write(self.world.path().join("rest"), b"").unwrap();
        for round in 0..2 {
            for client in 0..self.clients.len() {
                if self.clients[client].process.is_none() {
                    self.start_client(client);
                }
            }
            let end = Instant::now() + PATIENCE;
            for client in 0..self.clients.len() {
                let mut process = self.clients[client].process.take().unwrap();
                let status = loop {
                    self.watch_nodes();
                    match process.try_wait().unwrap() {
                        Some(status) => break status,
                        None if Instant::now() < end => std::thread::sleep(Duration::from_millis(50)),
                        None => {
                            process.kill().unwrap();
                            process.wait().unwrap();
                            let (_, open) = self.promised(client);
                            let status: Vec<_> = self.status().into_values().collect();
                            panic!("client {client} has no fate of {open:?}\n{status:#?}\n{}", self.world.logs());
                        }
                    }
                };
                let log = std::fs::read_to_string(self.client_log(client)).unwrap_or_default();
                let from = log.len().saturating_sub(3000);
                assert!(status.success(), "client {client}: {status:?}\n{}", log.get(from..).unwrap_or(&log));
            }
            self.note(&format!("clients have all fates, round {round}"));
        }
        self.settle();
    }

    /// A client's fates, each one and the same whenever it was told; and what was promised and has none.
    fn promised(&self, client: usize) -> (BTreeMap<String, (Ticket, String)>, BTreeSet<String>) {
        let (mut fates, mut open) = (BTreeMap::<String, (Ticket, String)>::new(), BTreeSet::new());
        for line in ledger(&self.clients[client].work.ledger) {
            match line {
                Line::Submitted(ticket) | Line::Accepted(ticket) => drop(open.insert(ticket.to_string())),
                Line::Fate(ticket, fate, life) => {
                    let first = fates.entry(ticket.to_string()).or_insert((ticket.clone(), fate.clone()));
                    assert_eq!(first.1, fate, "client {client}, life {life}: {ticket} has two fates");
                }
                Line::Intent(_) => {}
            }
        }
        open.retain(|ticket| !fates.contains_key(ticket));
        (fates, open)
    }

    /// Waits until all nodes hold the same, in both destinations.
    fn settle(&mut self) {
        let end = Instant::now() + PATIENCE;
        loop {
            self.watch();
            let status = self.status();
            let of = |destination: &str, field: &str| {
                let of: Vec<_> = status.iter().filter(|((_, name), _)| name == destination).collect();
                let equal = of.iter().all(|(_, value)| value[field] == of[0].1[field]);
                of.len() == NODES.len() && equal
            };
            let there = ["orders", "bills"].iter().all(|name| {
                let whole = ["state_index", "position", "directory_version"].iter().all(|field| of(name, field));
                if whole {
                    assert!(of(name, "state_digest"), "digests differ at one index: {status:#?}");
                }
                whole
            });
            let held = status.values().all(|value| value["position"] == value["held"]);
            if there && held && status.values().all(|value| value["transactions"]["undecided"] == 0) {
                return;
            }
            assert!(Instant::now() < end, "the nodes do not come to rest: {status:#?}\n{}", self.world.logs());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub(super) fn check(mut self) {
        let mut intents: BTreeMap<TransactionId, (usize, Intent)> = BTreeMap::new();
        let mut fates = BTreeMap::new();
        for client in 0..self.clients.len() {
            for line in ledger(&self.clients[client].work.ledger) {
                if let Line::Intent(intent) = line {
                    let twice = intents.insert(intent.id, (client, intent));
                    assert!(twice.is_none(), "the storm drew an id twice: {twice:?}");
                }
            }
            let (own, open) = self.promised(client);
            assert!(open.is_empty(), "client {client} has no fate of {open:?}");
            fates.extend(own);
        }
        let mut count = BTreeMap::<String, usize>::new();
        for (ticket, fate) in fates.values() {
            let word = fate.split(' ').next().unwrap_or_default();
            *count.entry(word.to_owned()).or_default() += 1;
            let known =
                ["committed", "expired", "rejected(conflict)", "rejected(predecessor)", "rejected(not-permitted)"];
            assert!(known.contains(&word), "{ticket}: {fate}");
        }
        for name in ["orders", "bills"] {
            let given = NODES.map(|node| self.given(node, name));
            for (node, other) in NODES.iter().zip(&given).skip(1) {
                assert!(given[0] == *other, "a and {node} differ in {name}");
            }
            let [given, ..] = given;
            self.hold(name, &given, &intents, &fates);
            count.insert(format!("{name} at each node"), given.len());
        }
        for node in NODES {
            self.weigh(node);
            let log = self.world.log_of(node);
            for alarm in FALSE_ALARMS {
                assert!(!log.contains(alarm), "{node}: {alarm}: {:?}", log.lines().find(|line| line.contains(alarm)));
            }
        }
        for client in 0..self.clients.len() {
            let log = std::fs::read_to_string(self.client_log(client)).unwrap_or_default();
            let wrong = ["panicked", "contradicts itself"].into_iter().find(|wrong| log.contains(wrong));
            assert_eq!(wrong, None, "client {client}");
        }
        self.no_alarm_stays();
        for node in NODES {
            assert_eq!(self.world.stop(node), Some(0), "{node} drains\n{}", self.world.logs());
        }
        self.note(&format!("{count:?}, at most {} KiB in a node", self.memory));
    }

    /// What a node says while it finds its place again passes by itself; nothing else may be left.
    fn no_alarm_stays(&self) {
        let began = Instant::now();
        loop {
            let mut left = Vec::new();
            for (at, status) in self.status() {
                let alarms = status["alarms"].as_array().cloned().unwrap_or_default();
                let stay = alarms.into_iter().filter(|alarm| alarm["name"] != "peers-not-asked");
                left.extend(stay.map(|alarm| (at.clone(), alarm)));
            }
            if left.is_empty() {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{left:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Everything that a node has in a destination, in its order, each once and with the bytes that were submitted.
    fn given(&self, node: &str, name: &str) -> Vec<(TransactionId, Given)> {
        let config = self.world.path().join("env/readers/app/client.toml");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let config = ClientConfig::load(&Sources::file(&config)).unwrap();
            let reader = Reader::from_config(&config, &Seams::real()).unwrap().at(node.parse().unwrap()).unwrap();
            let name: DestinationName = name.parse().unwrap();
            let everything = Subscription::new(From::Start).until_end();
            let mut feed = reader.subscribe(&name, everything).await.unwrap();
            let (mut given, mut ids) = (Vec::<(TransactionId, Given)>::new(), BTreeSet::new());
            while let Some((committed, bytes)) = feed.transaction(16 << 20).await.unwrap() {
                let id = committed.ticket.transaction;
                assert!(ids.insert(id), "{node} gives {id} twice in {name}");
                let one = Given {
                    position: committed.position,
                    sender: committed.sender.to_string(),
                    key: committed.key.map(|key| key.to_vec()),
                    bytes: bytes.len() as u64,
                    digest: blake3::hash(&bytes),
                };
                assert!(given.last().is_none_or(|(_, last)| last.position < one.position), "{node}: {id} in {name}");
                given.push((id, one));
            }
            given
        })
    }

    /// What nodes have in a destination is what was submitted, said to be committed there, and in the order promised.
    fn hold(
        &self,
        name: &str,
        given: &[(TransactionId, Given)],
        intents: &BTreeMap<TransactionId, (usize, Intent)>,
        fates: &BTreeMap<String, (Ticket, String)>,
    ) {
        let there: BTreeMap<TransactionId, &Given> = given.iter().map(|(id, given)| (*id, given)).collect();
        for (id, given) in given {
            let (client, intent) = intents.get(id).unwrap_or_else(|| panic!("{id} in {name} was never submitted"));
            assert!(intent.destinations.iter().any(|to| to.as_str() == name), "{id} was not for {name}");
            assert_eq!(given.sender, ["web", "web", "shop"][*client], "{id} in {name}");
            assert_eq!(given.key, intent.key.clone().map(String::into_bytes), "{id} in {name}");
            let same = given.digest == blake3::hash(&payload_of(*id, intent.length));
            assert!(given.bytes == intent.length && same, "{id} in {name} has other bytes: {given:?}, {intent:?}");
        }
        for (ticket, fate) in fates.values().filter(|(ticket, _)| ticket.destination.as_str() == name) {
            let has = there.get(&ticket.transaction).map(|given| format!("committed at {}", given.position));
            let said = fate.starts_with("committed").then(|| fate.clone());
            assert_eq!(has, said, "{ticket}: nodes have it or not, its sender was told {fate}");
        }
        // Compare-and-set: each stands right behind the one that it expected.
        let mut last = BTreeMap::<&[u8], Position>::new();
        for (id, given) in given {
            let Some(key) = &given.key else { continue };
            let before = last.insert(key, given.position).unwrap_or_default();
            if let Some(expected) = intents[id].1.expected {
                assert_eq!(before, expected, "{id} in {name} was to follow another one");
            }
        }
        // Order per key holds along every branch of an outbox; what goes on behind one that expired waits for none before it.
        let ended = fates.values().filter(|(ticket, fate)| ticket.destination.as_str() == name && fate == "expired");
        let expired: BTreeSet<TransactionId> = ended.map(|(ticket, _)| ticket.transaction).collect();
        for (client, process) in self.clients.iter().enumerate() {
            for branch in 0..process.branches.len() as u32 {
                let mut last = BTreeMap::<&str, (u64, Position)>::new();
                let mut own: Vec<&Intent> = intents.values().filter(|one| one.0 == client).map(|one| &one.1).collect();
                own.sort_by_key(|intent| intent.number);
                for intent in own {
                    let Some(key) = intent.key.as_ref().filter(|_| self.is_on(client, branch, intent)) else {
                        continue;
                    };
                    if expired.contains(&intent.id) {
                        last.remove(key.as_str());
                    }
                    let Some(given) = there.get(&intent.id) else { continue };
                    let before = last.insert(key, (intent.number, given.position));
                    let behind = before.is_none_or(|(_, before)| before < given.position);
                    assert!(behind, "client {client}, branch {branch}, {key} in {name}: {before:?}, then {intent:?}");
                }
            }
        }
    }

    /// Whether what was submitted stands on a branch: on itself, or before the cut on one that it went on from.
    fn is_on(&self, client: usize, branch: u32, intent: &Intent) -> bool {
        let (mut branch, mut until) = (branch, u64::MAX);
        loop {
            if intent.branch == branch {
                return intent.number < until;
            }
            if branch == 0 {
                return false;
            }
            let (parent, cut) = self.clients[client].branches[branch as usize];
            (branch, until) = (parent, until.min(cut));
        }
    }
}
