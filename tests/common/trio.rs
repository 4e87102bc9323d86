//! Three nodes' groups in one process: a network in memory whose wires can be cut, and disks that can crash.

#![allow(dead_code)] // each test file uses its part

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sealcast::core::decide::{Entry, Manifest};
use sealcast::core::id::{DestinationTag, Incarnation, NodeName};
use sealcast::raft::{CallError, Group, GroupOptions, MessageKind, PeerCaller, ProbeAnswer};
use sealcast::seams::{BoxFuture, Seams};
use sealcast::store::group::{Applied, GroupStore, Progress, StoreOptions};
use tokio::sync::mpsc;

use crate::disk::CrashDisk;
use crate::ledger::{directory_op, node, options, parcel, seams};

pub const GROUP: DestinationTag = DestinationTag([6; 16]);
pub const NAMES: [&str; 3] = ["a", "b", "c"];

/// A network in memory: calls go straight to the other node's group, unless one of both is cut off.
#[derive(Clone, Default)]
pub struct Wires {
    pub groups: Arc<Mutex<BTreeMap<NodeName, Group>>>,
    ends: Arc<Mutex<BTreeMap<NodeName, End>>>,
}

/// One node's end of the wires.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct End {
    cut: bool,
    /// How often the node was started anew: what an earlier life still says is not heard, as from a process that is gone.
    life: u64,
}

impl Wires {
    fn end(&self, name: &NodeName) -> End {
        self.ends.lock().unwrap().get(name).copied().unwrap_or_default()
    }

    /// The node's life now; none while it is cut off.
    pub fn life(&self, name: &NodeName) -> Option<u64> {
        let end = self.end(name);
        (!end.cut).then_some(end.life)
    }

    pub fn cut(&self, name: &NodeName) {
        self.ends.lock().unwrap().entry(name.clone()).or_default().cut = true;
    }

    pub fn mend(&self, name: &NodeName) {
        self.ends.lock().unwrap().entry(name.clone()).or_default().cut = false;
    }

    /// Ends a life: nothing that it says or hears from now on arrives.
    pub fn bury(&self, name: &NodeName) {
        let mut ends = self.ends.lock().unwrap();
        let end = ends.entry(name.clone()).or_default();
        *end = End { cut: true, life: end.life + 1 };
        drop(ends);
        self.groups.lock().unwrap().remove(name);
    }
}

/// One life's end of the wires.
pub struct Wire {
    pub own: NodeName,
    pub life: u64,
    pub wires: Wires,
}

impl Wire {
    /// Both lives, and the other node's group.
    fn to(&self, to: &NodeName) -> Result<((u64, u64), Group), CallError> {
        let unreachable = |cause: &str| CallError::Unreachable { node: to.clone(), cause: cause.to_owned() };
        let (Some(own), Some(other)) = (self.wires.life(&self.own), self.wires.life(to)) else {
            return Err(unreachable("cut off"));
        };
        if own != self.life {
            return Err(unreachable("this life is over"));
        }
        let group = self.wires.groups.lock().unwrap().get(to).cloned().ok_or_else(|| unreachable("not started"))?;
        Ok(((own, other), group))
    }
}

impl PeerCaller for Wire {
    fn call<'a>(
        &'a self,
        to: &'a NodeName,
        group: DestinationTag,
        kind: MessageKind,
        payload: Bytes,
        _: Duration,
    ) -> BoxFuture<'a, Result<Bytes, CallError>> {
        assert_eq!(group, GROUP);
        Box::pin(async move {
            let (lives, target) = self.to(to)?;
            let answer = target.handle(&self.own, kind as u32, &payload).await;
            // An answer is lost as easily as a question.
            if self.to(to)?.0 != lives {
                return Err(CallError::Unreachable { node: to.clone(), cause: "it died".to_owned() });
            }
            answer.map_err(|error| CallError::Refused { node: to.clone(), cause: error.to_string() })
        })
    }

    fn probe<'a>(
        &'a self,
        to: &'a NodeName,
        _: DestinationTag,
        incarnation: Incarnation,
        _: Duration,
    ) -> BoxFuture<'a, Result<ProbeAnswer, CallError>> {
        Box::pin(async move {
            let (_, target) = self.to(to)?;
            let answer = target.probe(&self.own, incarnation);
            answer.map_err(|error| CallError::Refused { node: to.clone(), cause: error.to_string() })
        })
    }
}

/// A node with nothing but its group.
pub struct Node {
    pub name: NodeName,
    pub disk: CrashDisk,
    pub group: Group,
    /// What was applied.
    pub news: mpsc::UnboundedReceiver<Applied>,
}

pub async fn start(name: &str, disk: CrashDisk, wires: &Wires) -> Node {
    let seed = name.bytes().map(u64::from).sum();
    start_with(name, disk, wires, seed).await
}

pub async fn start_with(name: &str, disk: CrashDisk, wires: &Wires, seed: u64) -> Node {
    start_on(name, disk.clone(), wires, seams(disk, seed)).await
}

/// On a machine of its own.
pub async fn start_on(name: &str, disk: CrashDisk, wires: &Wires, seams: Seams) -> Node {
    let (group, news) = open_group(name, &options(), seams, wires).await;
    Node { name: node(name), disk, group, news }
}

/// A node's group over any disk, and the news of what it applies.
pub async fn open_group(
    name: &str,
    options: &StoreOptions,
    seams: Seams,
    wires: &Wires,
) -> (Group, mpsc::UnboundedReceiver<Applied>) {
    let store = GroupStore::open(options, &seams).unwrap();
    let name = node(name);
    let mut group_options = GroupOptions::new(name.clone(), GROUP, NAMES.map(node).to_vec());
    group_options.election = (Duration::from_millis(400), Duration::from_millis(800));
    group_options.heartbeat = Duration::from_millis(100);
    let life = wires.end(&name).life;
    let wire = Arc::new(Wire { own: name.clone(), life, wires: wires.clone() });
    let (group, mut applied) = Group::open(group_options, store, wire, seams).await.unwrap();
    let (keep, news) = mpsc::unbounded_channel();
    // A group whose news nobody takes applies nothing more.
    tokio::spawn(async move {
        while let Some(one) = applied.recv().await {
            if keep.send(one).is_err() {
                return;
            }
        }
    });
    wires.groups.lock().unwrap().insert(name, group.clone());
    (group, news)
}

pub async fn trio(wires: &Wires) -> Vec<Node> {
    let mut nodes = Vec::new();
    for name in NAMES {
        nodes.push(start(name, CrashDisk::new(), wires).await);
    }
    nodes
}

/// Waits for something that must come; a test that waits in vain fails after a time that is no measure of anything.
pub async fn until<T>(what: &str, mut there: impl FnMut() -> Option<T>) -> T {
    for _ in 0..3000 {
        if let Some(found) = there() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain for {what}");
}

pub async fn leader<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Group {
    let groups: Vec<Group> = nodes.into_iter().map(|node| node.group.clone()).collect();
    until("a leader", || groups.iter().find(|group| group.leadership().borrow().own).cloned()).await
}

/// Puts the directory in force, at whoever leads.
pub async fn found(nodes: &[Node]) {
    propose(&nodes.iter().collect::<Vec<_>>(), &Entry::founding(directory_op())).await;
}

/// Proposes at whoever leads until it is known to be applied.
pub async fn propose(nodes: &[&Node], entry: &Entry) -> u64 {
    loop {
        let leader = leader(nodes.iter().copied()).await;
        match leader.propose(entry).await {
            Ok(index) => return index,
            Err(error) => assert!(error.retryable(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A manifest as some sender made it; no node of these tests has its bodies.
pub fn manifest(number: u64) -> Manifest {
    let scratch = GroupStore::open(&options(), &seams(CrashDisk::new(), 9)).unwrap();
    parcel(&scratch, number, &[10], None).manifest
}

pub async fn same_state(nodes: &[&Node], applied: u64) -> Progress {
    let mut found: Vec<Progress> = Vec::new();
    for node in nodes {
        let store = node.group.store().clone();
        let progress = until("the log on every node", || {
            let progress = store.progress().borrow().clone();
            (progress.applied >= applied).then_some(progress)
        });
        found.push(progress.await);
    }
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{found:?}");
    found.pop().unwrap()
}
