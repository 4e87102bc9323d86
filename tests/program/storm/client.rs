//! A client of the storm: a process of its own, so that it can be killed. It submits what its seed says, writes down what it
//! was promised, and goes on where it was when it is started again with the same outbox.
//!
//! The process is this test program itself, with the one test of this file chosen.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use sealcast::client::reader::{Freshness, Reader};
use sealcast::client::{Client, Handle, Transaction, WaitError};
use sealcast::config::{ClientConfig, Sources};
use sealcast::core::id::{DestinationName, OnPredecessor, Position, Ticket, Time, TransactionId};
use sealcast::seams::Seams;
use serde::{Deserialize, Serialize};

use super::Dice;
use crate::common::world::payload;

const WORK: &str = "SEALCAST_STORM_WORK";

/// What a client process is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Work {
    /// Its client.toml.
    pub config: PathBuf,
    /// That of a reader, who says at which version a key is.
    pub reader: PathBuf,
    /// Where it writes down what it was promised.
    pub ledger: PathBuf,
    /// While this file exists nothing is submitted; when everything has its fate then, the process ends.
    pub rest: PathBuf,
    /// What it submits follows from this and from how much it has submitted.
    pub seed: u64,
    /// How often it was started before.
    pub life: u32,
    /// Counts the copies of its outbox that it goes on with: order holds along a branch.
    pub branch: u32,
    /// This branch will be cut off: what is lost with it must expire soon.
    pub doomed: bool,
    /// Where it submits to.
    pub destinations: Vec<DestinationName>,
    /// The largest payload.
    pub most: u64,
    /// About how far apart it submits, in milliseconds.
    pub gap: u64,
}

/// A line of the ledger.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Line {
    /// About to be submitted.
    Intent(Intent),
    /// Durable in the outbox.
    Submitted(Ticket),
    /// The brokers have it.
    Accepted(Ticket),
    /// Its fate in words, as the process with this life was told it.
    Fate(Ticket, String, u32),
}

/// What was to be submitted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Intent {
    pub id: TransactionId,
    pub branch: u32,
    /// The order in which this client submitted.
    pub number: u64,
    pub key: Option<String>,
    pub expected: Option<Position>,
    pub destinations: Vec<DestinationName>,
    pub length: u64,
}

/// The payload of a transaction follows from its id.
pub fn payload_of(id: TransactionId, length: u64) -> Vec<u8> {
    let digest = blake3::hash(id.to_string().as_bytes());
    let seed = u64::from_be_bytes(digest.as_bytes()[..8].try_into().unwrap());
    payload(seed, length as usize)
}

/// The lines of a ledger. One that a kill cut is none.
pub fn ledger(path: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Starts a client process.
pub fn start(work: &Work, log: &Path) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["storm::client::works_for_the_storm", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(WORK, serde_json::to_string(work).unwrap())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "a process that the storm starts; by itself it has nothing to do"]
fn works_for_the_storm() {
    let Ok(work) = std::env::var(WORK) else { return };
    let work: Work = serde_json::from_str(&work).unwrap();
    sealcast::telemetry::logs::install(Default::default(), Some("warn,sealcast=debug")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(Working::run(work));
}

struct Working {
    work: Work,
    client: Client,
    reader: Reader,
    ledger: Arc<Mutex<std::fs::File>>,
    following: Mutex<BTreeMap<String, tokio::task::JoinHandle<()>>>,
}

impl Working {
    async fn run(work: Work) {
        let before = ledger(&work.ledger);
        let ledger = std::fs::OpenOptions::new().create(true).append(true).open(&work.ledger).unwrap();
        let client = Client::connect(&work.config).await.unwrap();
        let reader = ClientConfig::load(&Sources::file(&work.reader)).unwrap();
        let reader = Reader::from_config(&reader, &Seams::real()).unwrap();
        let ledger = Arc::new(Mutex::new(ledger));
        let this = Self { work, client, reader, ledger, following: Mutex::default() };
        // Ends a line that a kill cut.
        this.ledger.lock().unwrap().write_all(b"\n").unwrap();
        this.go_on(&before).await;
        let intents = before.iter().filter(|line| matches!(line, Line::Intent(_))).count() as u64;
        let mut dice = Dice(this.work.seed ^ (intents << 20) ^ u64::from(this.work.life));
        let mut number = intents;
        while !this.work.rest.exists() {
            this.submit(&mut number, &mut dice).await;
            tokio::time::sleep(Duration::from_millis(dice.below(2 * this.work.gap))).await;
        }
        loop {
            let next = this.following.lock().unwrap().pop_first();
            let Some((_, following)) = next else { break };
            following.await.unwrap();
        }
        this.client.close().await;
    }

    /// Whatever the outbox still has, and whatever was promised and has no fate yet; and a few that have one, which must be
    /// the same when they are asked for again.
    async fn go_on(&self, before: &[Line]) {
        let mut open: BTreeMap<String, Ticket> = BTreeMap::new();
        let mut known: BTreeMap<String, Ticket> = BTreeMap::new();
        for line in before {
            match line {
                Line::Submitted(ticket) => drop(open.insert(ticket.to_string(), ticket.clone())),
                Line::Fate(ticket, ..) => drop(known.insert(ticket.to_string(), ticket.clone())),
                Line::Intent(_) | Line::Accepted(_) => {}
            }
        }
        for handle in self.client.kept() {
            if !open.contains_key(&handle.ticket().to_string()) {
                self.say(&Line::Submitted(handle.ticket().clone()));
            }
            self.follow(handle);
        }
        open.retain(|ticket, _| !known.contains_key(ticket));
        let again = known.into_values().step_by(37);
        for ticket in open.into_values().chain(again) {
            self.follow(self.client.attach(&ticket).await.unwrap());
        }
    }

    fn say(&self, line: &Line) {
        say(&self.ledger, line);
    }

    fn follow(&self, handle: Handle) {
        let (ledger, life) = (self.ledger.clone(), self.work.life);
        let mut following = self.following.lock().unwrap();
        let ticket = handle.ticket().to_string();
        following.entry(ticket).or_insert_with(|| tokio::spawn(follow(handle, ledger, life)));
    }

    async fn submit(&self, number: &mut u64, dice: &mut Dice) {
        let destinations = match dice.below(6) {
            0 => self.work.destinations.clone(),
            draw => {
                let count = self.work.destinations.len() as u64;
                vec![self.work.destinations[(draw % count) as usize].clone()]
            }
        };
        let length = match dice.below(100) {
            0..3 => dice.below(self.work.most),
            3..15 => dice.below(self.work.most / 20),
            15..20 => 0,
            _ => dice.below(2500),
        };
        match dice.below(40) {
            // Many at once, which share parcels.
            0 => {
                let count = 2 + dice.below(30);
                let mut all = Vec::new();
                for _ in 0..count {
                    let length = dice.below(800);
                    all.push(self.intend(number, dice, &destinations, length, None).await);
                }
                let mut submitted =
                    std::pin::pin!(self.client.submit_all(&destinations, futures_util::stream::iter(all)));
                while let Some(handles) = submitted.next().await {
                    match handles {
                        Ok(handles) => self.submitted(handles),
                        Err(refused) => println!("given back for good: {}", refused.error),
                    }
                }
            }
            // Compare-and-set, against everybody.
            1..5 => {
                let key = format!("shared{}", dice.below(2));
                let expected = self.version(&destinations[0], &key).await;
                let Some(expected) = expected else { return };
                let one = std::slice::from_ref(&destinations[0]);
                let set = self.intend(number, dice, one, length.min(3000), Some((key, expected))).await;
                self.submit_one(one, set).await;
            }
            5 => {
                // Of unknown length, read piece by piece.
                let transaction = self.intend(number, dice, &destinations, length, None).await;
                let bytes = transaction.payload().clone();
                match self.client.submit_reader_to(&destinations, transaction, &bytes[..], None).await {
                    Ok(handles) => self.submitted(handles),
                    Err(error) => println!("not submitted: {error}"),
                }
            }
            _ => {
                let transaction = self.intend(number, dice, &destinations, length, None).await;
                self.submit_one(&destinations, transaction).await;
            }
        }
    }

    fn submitted(&self, handles: Vec<Handle>) {
        for handle in handles {
            self.say(&Line::Submitted(handle.ticket().clone()));
            self.follow(handle);
        }
    }

    async fn submit_one(&self, destinations: &[DestinationName], mut transaction: Transaction) {
        loop {
            match self.client.submit_to(destinations, transaction).await {
                Ok(handles) => return self.submitted(handles),
                Err(refused) if refused.retryable() => {
                    if self.work.rest.exists() {
                        return;
                    }
                    transaction = *refused.transaction;
                    self.client.ready(transaction.payload().len() as u64).await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(refused) => return println!("given back for good: {}", refused.error),
            }
        }
    }

    /// Writes down what is about to be submitted, and makes it.
    async fn intend(
        &self,
        number: &mut u64,
        dice: &mut Dice,
        destinations: &[DestinationName],
        length: u64,
        set: Option<(String, Position)>,
    ) -> Transaction {
        let clock = Seams::real().clock;
        let mut random = [0; 10];
        random[..8].copy_from_slice(&dice.next().to_be_bytes());
        random[8..].copy_from_slice(&(*number as u16).to_be_bytes());
        let id = TransactionId::from_parts(clock.now(), random);
        // Two clients of one sender have keys of their own: order is an outbox's.
        let (keyed, own) = (dice.below(2) == 0, format!("{}-{}", self.work.seed, dice.below(4)));
        let (key, expected) = match set {
            Some((key, expected)) => (Some(key), Some(expected)),
            None => (keyed.then_some(own), None),
        };
        let destinations = destinations.to_vec();
        let mut transaction = Transaction::new(payload_of(id, length)).id(id);
        // What nobody will send any more must end, and what follows it; a few end early by themselves.
        let life = match dice.below(20) {
            _ if self.work.doomed => 20_000,
            0 => 3000 + dice.below(10_000),
            _ => 3_600_000,
        };
        transaction = transaction.deadline_at(Time(clock.now().0 + life));
        if let Some(key) = &key {
            transaction = transaction.key(key.clone());
        }
        if let Some(expected) = expected {
            transaction = transaction.expected_version(expected);
        }
        if expected.is_some() || dice.below(3) > 0 {
            transaction = transaction.on_predecessor(OnPredecessor::GoOn);
        }
        if dice.below(5) == 0 {
            transaction = transaction.compress().pad();
        }
        self.say(&Line::Intent(Intent {
            id,
            branch: self.work.branch,
            number: *number,
            key,
            expected,
            destinations,
            length,
        }));
        *number += 1;
        transaction
    }

    /// At which position a key is, as some node says; it need not be the newest. `None`: nobody answers.
    async fn version(&self, destination: &DestinationName, key: &str) -> Option<Position> {
        let asked = self.reader.get_by_key(destination, key.as_bytes(), false, Freshness::default());
        match tokio::time::timeout(Duration::from_secs(2), asked).await.ok()? {
            Ok(mut feed) => match tokio::time::timeout(Duration::from_secs(2), feed.transaction(1 << 20)).await.ok()? {
                Ok(Some((committed, _))) => Some(committed.position),
                Ok(None) => Some(Position::default()),
                Err(_) => None,
            },
            Err(sealcast::client::reader::ReadError::NotFound { .. }) => Some(Position::default()),
            Err(_) => None,
        }
    }
}

fn say(ledger: &Mutex<std::fs::File>, line: &Line) {
    let line = serde_json::to_string(line).unwrap() + "\n";
    ledger.lock().unwrap().write_all(line.as_bytes()).unwrap();
}

async fn follow(handle: Handle, ledger: Arc<Mutex<std::fs::File>>, life: u32) {
    let ticket = handle.ticket().clone();
    if handle.accepted().await.is_ok() {
        say(&ledger, &Line::Accepted(ticket.clone()));
    }
    let fate = match handle.committed().await {
        Ok(receipt) => {
            let (signers, voters) = (receipt.signers.len(), receipt.voters);
            assert!(2 * signers > voters, "{ticket}: {signers} of {voters} signed");
            assert_eq!(receipt.ticket, ticket);
            format!("committed at {}", receipt.position.unwrap())
        }
        Err(WaitError::Rejected(reason)) => format!("rejected({})", reason.word()),
        Err(WaitError::Expired) => "expired".to_owned(),
        Err(WaitError::Local(_)) => return,
        Err(error) => format!("{error}"),
    };
    say(&ledger, &Line::Fate(ticket, fate, life));
}
