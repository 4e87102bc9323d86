//! What the storm does, drawn from its dice, and how each fault ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::{Later, NODES, PATIENCE, Standing, Storm, Trouble};
use crate::common::folders;
use crate::common::world::{lines, payload};

fn copy(from: &Path, to: &Path) {
    // What was there before goes: a copy is one moment's.
    let _ = std::fs::remove_dir_all(to);
    folders::copy(from, to);
}

impl Storm {
    pub(super) fn after(&mut self, from: u64, to: u64, later: Later) {
        let at = Instant::now() + self.dice.millis(from, to);
        self.later.push((at, later));
    }

    fn one_of(&mut self, standing: Standing) -> Option<&'static str> {
        let of: Vec<_> = NODES.into_iter().filter(|node| self.nodes[node] == standing).collect();
        let draw = self.dice.below(of.len() as u64) as usize;
        of.get(draw).copied()
    }

    fn data(&self, node: &str) -> PathBuf {
        self.world.path().join("env/nodes").join(node).join("data")
    }

    /// One more fault.
    pub(super) fn step(&mut self) {
        // While a node has an older copy the others must be there to say so.
        let calm = self.nodes.values().any(|standing| *standing == Standing::Restored);
        match self.dice.below(100) {
            0..24 if calm => {}
            0..10 => self.kill_some(1),
            10..13 => self.kill_leader(),
            13..16 => self.kill_some(2),
            16..24 => {
                if let Some(node) = self.one_of(Standing::Runs) {
                    self.note(&format!("pause {node}"));
                    self.world.signal(node, "STOP");
                    self.nodes.insert(node, Standing::Paused);
                    self.after(200, 5000, Later::Resume(node));
                }
            }
            24..26 if !calm => self.roll(),
            26..50 => self.trouble(),
            50..62 => {
                let client = self.dice.below(self.clients.len() as u64) as usize;
                if self.kill_client(client) {
                    self.note(&format!("kill client {client}"));
                    self.after(0, 3000, Later::StartClient(client));
                }
            }
            62..70 => self.outbox(),
            70..82 => self.strange(),
            82..92 if !calm => self.folder(),
            92..100 => self.directory(),
            _ => {}
        }
    }

    pub(super) fn happen(&mut self, later: Later) {
        self.note(&format!("{later:?}"));
        match later {
            Later::Resume(node) => {
                self.world.signal(node, "CONT");
                self.nodes.insert(node, Standing::Runs);
            }
            Later::Start(node) => self.start(node),
            Later::Copy => {
                self.folder();
                if self.copies.is_empty() {
                    self.after(1000, 3000, Later::Copy);
                }
            }
            Later::Restore(node) => self.restore(node),
            Later::PutBack(node) => self.put_back(node),
            Later::Broker(number, trouble) => {
                self.troubled.remove(&number);
                let brokers = self.brokers.as_mut().unwrap();
                brokers.end_at_once(number, trouble);
            }
            Later::StartClient(client) => {
                if self.clients[client].process.is_none() {
                    self.start_client(client);
                }
            }
            Later::Permit => self.permit(true),
        }
    }

    fn kill_some(&mut self, count: usize) {
        for _ in 0..count {
            let Some(node) = self.one_of(Standing::Runs) else { return };
            self.note(&format!("kill {node}"));
            self.kill(node);
            self.after(0, 4000, Later::Start(node));
        }
    }

    /// What `node status` says of each node and destination that answers.
    pub(super) fn status(&self) -> BTreeMap<(String, String), serde_json::Value> {
        let config = ["--config", "env/readers/app/client.toml", "--format", "json"];
        let output = self.world.run(&[["node", "status"].as_slice(), &config].concat());
        let text = |value: &serde_json::Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
        let of = |value: serde_json::Value| ((text(&value, "node"), text(&value, "destination")), value);
        lines(&output.stdout).into_iter().filter(|value| value["role"] != "unreachable").map(of).collect()
    }

    fn kill_leader(&mut self) {
        let status = self.status();
        let leads = status.iter().find(|(_, value)| value["role"] == "leader").map(|((node, _), _)| node.clone());
        let Some(node) = NODES.into_iter().find(|node| leads.as_deref() == Some(node)) else { return };
        if self.nodes[node] == Standing::Runs {
            self.note(&format!("kill the leader {node}"));
            self.kill(node);
            self.after(0, 5000, Later::Start(node));
        }
    }

    /// One after the other, as an upgrade does.
    fn roll(&mut self) {
        for node in NODES {
            if self.nodes[node] == Standing::Runs {
                self.note(&format!("restart {node}"));
                self.weigh(node);
                self.world.listens(node);
                assert_eq!(self.world.stop(node), Some(0), "{node} drains\n{}", self.world.logs());
                self.start(node);
                std::thread::sleep(self.dice.millis(0, 2500));
                self.due(false);
            }
        }
    }

    fn trouble(&mut self) {
        if self.brokers.is_none() {
            return;
        }
        let number = 1 + self.dice.below(3) as u32;
        // Mostly one at a time.
        let another = self.troubled.len() == 1 && self.dice.below(4) == 0;
        if self.troubled.contains_key(&number) || !(self.troubled.is_empty() || another) {
            return;
        }
        let (trouble, from, to) = match self.dice.below(10) {
            0..3 => (Trouble::Late(self.dice.millis(50, 500)), 1000, 8000),
            3..5 => (Trouble::Silent, 500, 9000),
            5..7 => (Trouble::Paused, 300, 6000),
            _ => (Trouble::Dead, 0, 12_000),
        };
        self.note(&format!("broker {number}: {trouble:?}"));
        self.brokers.as_mut().unwrap().begin(number, trouble);
        self.troubled.insert(number, trouble);
        self.after(from, to, Later::Broker(number, trouble));
    }

    /// A client's outbox is copied, or put back to the copy.
    fn outbox(&mut self) {
        let client = self.dice.below(self.clients.len() as u64) as usize;
        if !self.kill_client(client) {
            return;
        }
        let config = self.clients[client].work.config.clone();
        let outbox = config.with_file_name(if config.ends_with("second.toml") { "outbox2" } else { "outbox" });
        let to = self.world.path().join(format!("outbox-of-{client}"));
        let submitted = self.submitted(client);
        match self.clients[client].copy.take() {
            Some((from, branch, number)) => {
                self.note(&format!("client {client} goes on with an older outbox: {number} of {submitted}"));
                copy(&from, &outbox);
                let process = &mut self.clients[client];
                process.branches.push((branch, number));
                process.work.branch = process.branches.len() as u32 - 1;
                process.work.doomed = false;
            }
            None => {
                self.note(&format!("the outbox of client {client} is copied at {submitted}"));
                copy(&outbox, &to);
                let process = &mut self.clients[client];
                process.copy = Some((to, process.work.branch, submitted));
                process.work.doomed = true;
            }
        }
        self.after(0, 1000, Later::StartClient(client));
    }

    /// Ends what keeps nodes from running.
    fn everybody_runs(&mut self) {
        let ends = |later: &Later| matches!(later, Later::Resume(_) | Later::Start(_));
        let (now, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.later).into_iter().partition(|(_, it)| ends(it));
        self.later = left;
        for (_, later) in now {
            self.happen(later);
        }
        let running = NODES.into_iter().filter(|node| self.nodes[node] == Standing::Runs);
        running.for_each(|node| self.world.listens(node));
    }

    /// How far a node has applied each destination's log, once it says both.
    fn applied(&self, node: &str) -> Option<BTreeMap<String, u64>> {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) {
            let status = self.status().into_iter().filter(|((of, _), _)| of == node);
            let index = |value: &serde_json::Value| value["state_index"].as_u64().expect("how far it has applied");
            let last: BTreeMap<_, _> = status.map(|((_, to), value)| (to, index(&value))).collect();
            if last.len() == 2 {
                return Some(last);
            }
        }
        None
    }

    /// A node's folder is copied. Later it starts with the copy, for a while.
    fn folder(&mut self) {
        let without: Vec<_> = NODES.into_iter().filter(|node| !self.copies.contains_key(node)).collect();
        let Some(node) = without.get(self.dice.below(without.len() as u64) as usize).copied() else { return };
        self.everybody_runs();
        let Some(last) = self.applied(node) else { return };
        self.note(&format!("the folder of {node} is copied at {last:?}"));
        self.kill(node);
        let to = self.world.path().join(format!("folder-of-{node}"));
        copy(&self.data(node), &to);
        self.copies.insert(node, (to, last));
        self.start(node);
        self.after(3000, 12_000, Later::Restore(node));
    }

    fn restore(&mut self, node: &'static str) {
        let (from, then) = self.copies[node].clone();
        // One at a time: the others must be there to say so, and know of something that it did since.
        if self.nodes.values().all(|standing| *standing != Standing::Restored) {
            self.everybody_runs();
        }
        let all_run = self.nodes.values().all(|standing| *standing == Standing::Runs);
        let last = self.applied(node).filter(|_| all_run).unwrap_or_default();
        if !then.iter().all(|(to, index)| last.get(to).is_some_and(|last| last > &(index + 5))) {
            return self.after(1000, 3000, Later::Restore(node));
        }
        self.note(&format!("{node} starts with an older folder: {then:?}, it was at {last:?}"));
        self.kill(node);
        let newest = self.world.path().join(format!("newest-of-{node}"));
        // What was there before goes.
        let _ = std::fs::remove_dir_all(&newest);
        std::fs::rename(self.data(node), &newest).unwrap();
        copy(&from, &self.data(node));
        self.restored.insert(node, self.world.log_of(node).len());
        self.start(node);
        self.nodes.insert(node, Standing::Restored);
        self.after(3000, 6000, Later::PutBack(node));
    }

    fn put_back(&mut self, node: &'static str) {
        let from = self.restored.remove(node).unwrap();
        // As long as it takes, on a machine that is busy: in both destinations.
        let end = Instant::now() + PATIENCE;
        let said = |storm: &Self| storm.world.log_of(node)[from..].matches("restored from an older copy").count();
        while said(self) < 2 {
            let log = &self.world.log_of(node)[from..];
            assert!(Instant::now() < end, "{node} takes part with an older folder\n{log}");
            std::thread::sleep(Duration::from_millis(100));
        }
        self.kill(node);
        std::fs::remove_dir_all(self.data(node)).unwrap();
        std::fs::rename(self.world.path().join(format!("newest-of-{node}")), self.data(node)).unwrap();
        self.copies.remove(node);
        self.start(node);
    }

    /// Signs a change and gives it to one node.
    fn sign(&mut self, change: &[&str]) {
        let command = [&["directory"], change, &["--operator", "env/operator/operator.key"]].concat();
        self.world.done(&command);
        let node = NODES[self.dice.below(3) as usize];
        self.tell(node);
    }

    /// Gives the newest directory to a node.
    pub(super) fn tell(&mut self, node: &'static str) {
        let to = self.world.path().join("env/nodes").join(node).join("directory");
        // As a careful hand does: never half of it.
        let beside = to.with_extension("new");
        std::fs::copy(self.world.path().join("env/operator/directory"), &beside).unwrap();
        std::fs::rename(beside, to).unwrap();
        if self.nodes[node] == Standing::Runs {
            self.world.listens(node);
            self.world.signal(node, "HUP");
        }
    }

    fn permit(&mut self, may: bool) {
        self.permitted = may;
        let to = if may { "orders,bills" } else { "orders" };
        self.sign(&["add", "sender", "shop", "--replace", "--destinations", to]);
    }

    fn directory(&mut self) {
        match self.dice.below(3) {
            0 if self.permitted => {
                self.note("shop may not send to bills");
                self.permit(false);
                self.after(500, 6000, Later::Permit);
            }
            1 if !self.extra.is_empty() => {
                let number = self.extra.pop_first().unwrap();
                self.note(&format!("sender extra{number} is removed"));
                self.sign(&["remove", "sender", &format!("extra{number}")]);
            }
            _ => {
                let number = self.dice.next() % 1_000_000;
                self.note(&format!("sender extra{number} is added"));
                self.extra.insert(number);
                self.sign(&["add", "sender", &format!("extra{number}"), "--destinations", "orders"]);
            }
        }
    }

    /// Strange records: damaged, doubled, misplaced, foreign.
    fn strange(&mut self) {
        let topics = [
            format!("sealcast.{}.orders.segments", self.name),
            format!("sealcast.{}.bills.segments", self.name),
            format!("sealcast.{}.notices", self.name),
        ];
        let topic = &topics[self.dice.below(3) as usize];
        let from = &topics[self.dice.below(3) as usize];
        let brokers = match &self.brokers {
            Some(brokers) => brokers.cluster.brokers(),
            None => crate::common::kafka::shared(),
        };
        let there = some_records(&brokers, from, &mut self.dice);
        let count = 20 + self.dice.below(100);
        self.note(&format!("{count} strange records on {topic}, from {} of {from}", there.len()));
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &brokers).set("message.timeout.ms", "2000").set("log_level", "0");
        config.set("message.max.bytes", "2000000");
        let producer: BaseProducer = config.create().unwrap();
        for _ in 0..count {
            let (mut key, mut value) = match there.len() as u64 {
                0 => (payload(self.dice.next(), 16), payload(self.dice.next(), 300)),
                known => there[self.dice.below(known) as usize].clone(),
            };
            match self.dice.below(6) {
                // As it is, here or elsewhere.
                0 | 1 => {}
                2 => {
                    let bit = self.dice.below(8 * value.len() as u64) as usize;
                    if let Some(byte) = value.get_mut(bit / 8) {
                        *byte ^= 1 << (bit % 8);
                    }
                }
                3 => value.truncate(self.dice.below(value.len() as u64) as usize),
                4 => (key, value) = (payload(self.dice.next(), 16), payload(self.dice.next(), 900)),
                _ => value.clear(),
            }
            let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(self.dice.below(3) as i32);
            let record = if self.dice.below(20) == 0 { record } else { record.key(&key[..]) };
            let record = if self.dice.below(20) == 0 { record } else { record.payload(&value[..]) };
            // What the brokers do not take now is not written: nothing depends on it.
            let _ = producer.send(record);
        }
        let _ = producer.flush(Duration::from_secs(3));
    }
}

/// A few records of a topic, from anywhere in it; none while brokers do not answer.
fn some_records(brokers: &str, topic: &str, dice: &mut super::Dice) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "strange").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.set("log_level", "0").create().unwrap();
    let mut all = TopicPartitionList::new();
    for number in 0..3 {
        if let Ok((low, end)) = consumer.fetch_watermarks(topic, number, Duration::from_secs(1)) {
            let at = low + dice.below((end - low) as u64) as i64;
            all.add_partition_offset(topic, number, Offset::Offset(at)).unwrap();
        }
    }
    if all.count() == 0 || consumer.assign(&all).is_err() {
        return Vec::new();
    }
    let mut records = Vec::new();
    let end = Instant::now() + Duration::from_millis(700);
    while records.len() < 100 && Instant::now() < end {
        if let Some(Ok(record)) = consumer.poll(Duration::from_millis(100)) {
            let bytes = |part: Option<&[u8]>| part.unwrap_or_default().to_vec();
            records.push((bytes(record.key()), bytes(record.payload())));
        }
    }
    records
}
