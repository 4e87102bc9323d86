//! Nodes that crash at any moment, again and again: what one life applied, every later life and every other node applies.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::disk::CrashDisk;
use crate::ledger::{NOW, commit, options, seams};
use crate::trio::{Node, Wires, found, leader, manifest, propose, same_state, start, trio, until};
use openraft::RaftLogReader as _;
use openraft::storage::RaftLogStorage as _;
use sealcast::core::id::{Digest, Time};
use sealcast::raft::Group;
use sealcast::raft::storage::LogStore;
use sealcast::seams::{Randomness, SeededRandomness};
use sealcast::store::group::GroupStore;

/// How a life ends, and what its disk has then of what was not synced: all, nothing, or what a seed draws.
enum Death {
    Killed,
    PowerCut,
    KeepsSome(u64),
}

/// Ends this life of a node; gives the disk that the next one finds.
async fn crash(node: &Node, wires: &Wires, death: Death) -> CrashDisk {
    wires.bury(&node.name);
    let disk = match death {
        Death::Killed => node.disk.killed(),
        Death::PowerCut => node.disk.crash(),
        Death::KeepsSome(seed) => {
            let drawn: Box<dyn Randomness> = Box::new(SeededRandomness::new(seed));
            node.disk.crash_keeping(|| drawn.array::<1>().unwrap()[0] % 2 == 0)
        }
    };
    // What is left of the old life runs on a disk that is gone, and nobody hears it.
    node.group.shutdown().await;
    disk
}

async fn start_again(name: &str, disk: CrashDisk, wires: &Wires) -> Node {
    wires.mend(&name.parse().unwrap());
    start(name, disk, wires).await
}

/// A leader sends entries while its own disk still writes them. Led it the same term again after a crash that lost them, it
/// would give their log ids to other entries, and those who have the old ones would keep them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r19_a_leader_that_crashed_does_not_lead_the_same_term_again() {
    let wires = Wires::default();
    let mut nodes = trio(&wires).await;
    found(&nodes).await;
    for number in 1..=3 {
        let all: Vec<&Node> = nodes.iter().collect();
        let index = propose(&all, &commit(&manifest(number), NOW)).await;
        same_state(&all, index).await;
        let at = nodes.iter().position(|node| node.group.leadership().borrow().own);
        let at = at.unwrap_or_default();
        let (name, before) = (nodes[at].name.clone(), nodes[at].group.leadership().borrow().term);
        // Back before anybody else stands for election.
        let disk = crash(&nodes[at], &wires, Death::Killed).await;
        nodes[at] = start_again(name.as_str(), disk, &wires).await;
        let leadership = until("a leader", || {
            let leading = nodes.iter().map(|node| node.group.leadership().borrow().clone());
            leading.into_iter().find(|leadership| leadership.own)
        });
        let leadership = leadership.await;
        assert!(leadership.term > before, "{name} led term {before}, now {leadership:?}");
    }
}

/// What was applied at an index, by whom first.
type Seen = Arc<Mutex<BTreeMap<u64, (Option<Digest>, String)>>>;

/// Compares what this life of a node applies with what all others did.
fn compare(node: &mut Node, wires: &Wires, seen: &Seen, differences: &Arc<Mutex<Vec<String>>>) {
    let (_, nobody) = tokio::sync::mpsc::unbounded_channel();
    let mut news = std::mem::replace(&mut node.news, nobody);
    let (name, life, wires) = (node.name.clone(), wires.life(&node.name), wires.clone());
    let (seen, differences) = (seen.clone(), differences.clone());
    tokio::spawn(async move {
        while let Some(applied) = news.recv().await {
            // What a life does after its end, no disk keeps and nobody hears.
            if wires.life(&name) != life {
                return;
            }
            let what = applied.changes.map(|changes| changes.state_digest(&Digest([0; 32])));
            let who = format!("{name}, life {life:?}");
            let mut seen = seen.lock().unwrap();
            let first = seen.entry(applied.index).or_insert_with(|| (what, who.clone()));
            if first.0 != what {
                let text = format!("entry {}: {who} applied {what:?}, {} had {:?}", applied.index, first.1, first.0);
                differences.lock().unwrap().push(text);
            }
        }
    });
}

/// Proposes at whoever leads, alone or several times at once, until it is told to stop.
async fn keep_proposing(wires: Wires, next: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::SeqCst) {
        let groups: Vec<Group> = wires.groups.lock().unwrap().values().cloned().collect();
        for group in groups.into_iter().filter(|group| group.leadership().borrow().own) {
            let number = next.fetch_add(1, Ordering::SeqCst);
            let entry = commit(&manifest(number), Time(NOW.0 + number));
            let calls = (0..=number % 3).map(|_| group.propose(&entry));
            // Whether an answer comes does not matter here.
            let _ = tokio::time::timeout(Duration::from_millis(200), futures_util::future::join_all(calls)).await;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn crash_again_and_again(seed: u64, rounds: u64) {
    let drawn: Box<dyn Randomness> = Box::new(SeededRandomness::new(seed));
    let below = |end: u64| u64::from_be_bytes(drawn.array().unwrap()) % end;
    let wires = Wires::default();
    let (seen, differences) = (Seen::default(), Arc::default());
    let mut nodes = trio(&wires).await;
    for node in &mut nodes {
        compare(node, &wires, &seen, &differences);
    }
    found(&nodes).await;
    let (next, stop) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(false)));
    let proposing = tokio::spawn(keep_proposing(wires.clone(), next.clone(), stop.clone()));
    for _ in 0..rounds {
        tokio::time::sleep(Duration::from_millis(below(1000))).await;
        let leading = nodes.iter().position(|node| node.group.leadership().borrow().own);
        let victims: Vec<usize> = match below(6) {
            0 => vec![0, 1, 2],
            1 | 2 => vec![below(3) as usize],
            _ => vec![leading.unwrap_or_default()],
        };
        let mut disks = Vec::new();
        for at in victims {
            let death = match below(3) {
                0 => Death::Killed,
                1 => Death::PowerCut,
                _ => Death::KeepsSome(below(u64::MAX)),
            };
            disks.push((at, crash(&nodes[at], &wires, death).await));
        }
        tokio::time::sleep(Duration::from_millis(below(400))).await;
        for (at, disk) in disks {
            nodes[at] = start_again(nodes[at].name.clone().as_str(), disk, &wires).await;
            compare(&mut nodes[at], &wires, &seen, &differences);
        }
    }
    stop.store(true, Ordering::SeqCst);
    proposing.await.unwrap();
    let all: Vec<&Node> = nodes.iter().collect();
    let count = next.load(Ordering::SeqCst);
    let last = propose(&all, &commit(&manifest(count), Time(NOW.0 + count))).await;
    same_state(&all, last).await;
    assert_eq!(*differences.lock().unwrap(), [""; 0], "seed {seed}");
    assert!(last > rounds, "it went on all the while: {last} entries");
    let _ = leader(&nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r19_nodes_that_crash_again_and_again_apply_one_log() {
    // Another seed for a longer search: SEALCAST_TEST_SEED=n SEALCAST_TEST_ROUNDS=n
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let rounds = number("SEALCAST_TEST_ROUNDS").unwrap_or(12);
    match number("SEALCAST_TEST_SEED") {
        Some(seed) => crash_again_and_again(seed, rounds).await,
        None => {
            futures_util::future::join_all((1..=3).map(|seed| crash_again_and_again(seed, rounds))).await;
        }
    }
}

#[tokio::test]
async fn r19_a_vote_that_is_not_durable_is_not_given() {
    let disk = CrashDisk::new();
    let store = GroupStore::open(&options(), &seams(disk.clone(), 1)).unwrap();
    let mut log = LogStore::new(store.clone()).unwrap();
    log.save_vote(&openraft::Vote::new(3, 1)).await.unwrap();
    disk.fail_syncs();
    log.save_vote(&openraft::Vote::new(4, 1)).await.unwrap_err();
    let again = GroupStore::open(&options(), &seams(disk.crash(), 1)).unwrap();
    let vote = LogStore::new(again).unwrap().read_vote().await.unwrap();
    assert_eq!(vote, Some(openraft::Vote::new(3, 1)), "the one that was given");
}
