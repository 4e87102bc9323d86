//! Three nodes on machines of their own, which can be killed at any moment: each runs in a runtime of its own, on a disk in
//! memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::disk::CrashDisk;
use crate::shop::{LIMIT, NODES, Shop, committed, name};
use sealcast::config::{NodeConfig, Sources};
use sealcast::core::id::{Digest, NodeName, Position, Suite};
use sealcast::core::seal::transaction::PrivateHeader;
use sealcast::node::{Node, NodeOptions};
use sealcast::seams::{BoxFuture, Connection, Listener, Network, Randomness, RealNetwork, Seams, SeededRandomness};
use sealcast::transport::adversary::{Adversary, AdversaryOptions, Mood};
use sealcast::transport::{AnyTransport, Domain, Topic, Transport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;

/// The machine's network, whose connections to others can be cut: those that it makes.
#[derive(Clone, Default)]
struct Outgoing(Arc<AtomicBool>);

impl Outgoing {
    fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::SeqCst) { Err(ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl Network for Outgoing {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        Box::pin(async move {
            self.check()?;
            let inner = RealNetwork.connect(address).await?;
            Ok(Box::new(Wire { inner, network: self.clone() }) as Box<dyn Connection>)
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        RealNetwork.listen(address)
    }
}

struct Wire {
    inner: Box<dyn Connection>,
    network: Outgoing,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.network.check()?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.network.check()?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.network.check()?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A node's machine.
pub struct Machine {
    runtime: Runtime,
    pub disk: CrashDisk,
    adversary: Box<Adversary<AnyTransport>>,
    outgoing: Outgoing,
}

/// How a machine ends.
#[derive(Debug, Clone, Copy)]
pub enum Death {
    /// The process is killed.
    Killed,
    /// The power goes, and nothing that was not synced is left.
    PowerCut,
    /// The power goes, and some of it is left, from a seed.
    Some(u64),
}

/// Three machines.
pub struct Town {
    pub shop: Shop,
    pub machines: BTreeMap<String, Machine>,
}

impl Town {
    pub async fn new() -> Self {
        let mut town = Self { shop: Shop::open().await, machines: BTreeMap::new() };
        for node in NODES {
            town.start(node, CrashDisk::new()).await;
        }
        town.shop.ready().await;
        town
    }

    pub fn domains(&self) -> BTreeSet<Domain> {
        let partitions = self.shop.transport.partitions(&Topic::segments(&name("test"), &name("orders")));
        partitions.iter().map(|partition| partition.domain.clone()).collect()
    }

    /// Starts a node on a machine with this disk.
    pub async fn start(&mut self, node: &str, disk: CrashDisk) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let outgoing = Outgoing::default();
        let seams =
            Seams { disk: Arc::new(disk.clone()), network: Arc::new(outgoing.clone()), ..self.shop.seams.clone() };
        let behind = self.shop.transport.as_ref().clone().behind_adversary(AdversaryOptions::harmless(1), &seams);
        let AnyTransport::Adversary(adversary) = behind.clone() else { panic!("it is one") };
        let config = NodeConfig::load(&Sources::file(&self.shop.written.nodes[&name(node)])).unwrap();
        let mut options = NodeOptions::from_config(&config).unwrap();
        options.http = None;
        let started = runtime.spawn(async move { Node::start(options, seams, Arc::new(behind)).await });
        self.shop.nodes.insert(name(node), started.await.unwrap().unwrap());
        self.machines.insert(node.to_owned(), Machine { runtime, disk, adversary, outgoing });
    }

    /// Ends a machine at this moment; gives the disk that its next start finds.
    pub async fn kill(&mut self, node: &str, death: Death) -> CrashDisk {
        let machine = self.machines.remove(node).unwrap();
        // Nobody hears it any more: then its disk is what it is.
        machine.outgoing.0.store(true, Ordering::SeqCst);
        self.mood(&machine, Mood::Away);
        let left = match death {
            Death::Killed => machine.disk.killed(),
            Death::PowerCut => machine.disk.crash(),
            Death::Some(seed) => {
                let drawn: Box<dyn Randomness> = Box::new(SeededRandomness::new(seed));
                machine.disk.crash_keeping(|| drawn.array::<1>().unwrap()[0] % 2 == 0)
            }
        };
        drop(self.shop.nodes.remove(&name::<NodeName>(node)));
        let ended = tokio::task::spawn_blocking(move || machine.runtime.shutdown_timeout(LIMIT));
        ended.await.unwrap();
        left
    }

    pub fn mood(&self, machine: &Machine, mood: Mood) {
        for domain in self.domains() {
            machine.adversary.set_mood(&domain, mood);
        }
    }

    /// Whether a node can read and write topics.
    pub fn sees(&self, node: &str, sees: bool) {
        self.mood(&self.machines[node], if sees { Mood::Well } else { Mood::Away });
    }

    /// Lets a node see one partition of the segments topic alone.
    pub fn sees_only(&self, node: &str, partition: usize) {
        for (number, domain) in self.domains().into_iter().enumerate() {
            let mood = if number == partition { Mood::Well } else { Mood::Away };
            self.machines[node].adversary.set_mood(&domain, mood);
        }
    }

    /// Whether a node's connections to others are cut: those that it makes.
    pub fn cut(&self, node: &str, cut: bool) {
        self.machines[node].outgoing.0.store(cut, Ordering::SeqCst);
    }

    /// Who leads, once somebody does.
    pub async fn leader(&self) -> String {
        until("a leader", || {
            let mut nodes = self.shop.nodes.iter();
            nodes.find(|(_, node)| group(node).leadership().borrow().own).map(|(node, _)| node.to_string())
        })
        .await
    }

    pub fn others(&self, than: &str) -> [String; 2] {
        let others: Vec<_> = NODES.into_iter().filter(|node| *node != than).map(str::to_owned).collect();
        others.try_into().unwrap()
    }

    pub fn counts(&self, node: &str) -> sealcast::store::group::Counts {
        let context = &self.shop.nodes[&name(node)].served()[&name("orders")].context;
        context.store.progress().borrow().counts
    }

    /// A small transaction, and its parcel's D; it is published.
    pub async fn send(&mut self, payload: &[u8]) -> (PrivateHeader, Digest) {
        let header = self.shop.header(payload);
        let stripes = self.shop.seal(&[(header.clone(), payload)], Suite::X25519);
        self.shop.publish(&stripes).await;
        let digest = stripes.last().unwrap().digest;
        (header, digest)
    }

    /// Whether an entry of a node's log names this parcel, as far as it is durable.
    pub fn is_in_log(&self, node: &str, digest: &Digest) -> bool {
        let store = &self.shop.nodes[&name(node)].served()[&name("orders")].context.store;
        let entries = store.snapshot().unwrap().log(0..u64::MAX, usize::MAX).unwrap();
        entries.iter().any(|(_, bytes)| bytes.windows(32).any(|found| found == digest.0))
    }

    /// Waits until all three hold the same, and each has committed so many, once.
    pub async fn settled(&self, position: Position, header: &PrivateHeader, count: u64) {
        assert_eq!(committed(&self.shop.receipts(header, 3).await), position, "the first fate stays");
        self.shop.agree().await;
        for node in NODES {
            let counts = self.counts(node);
            assert_eq!((counts.committed, counts.undecided, counts.missing), (count, 0, 0), "{node}");
        }
    }

    pub async fn end(mut self) {
        for node in NODES {
            if self.machines.contains_key(node) {
                self.kill(node, Death::Killed).await;
            }
        }
    }
}

pub fn group(node: &Node) -> &sealcast::raft::Group {
    &node.served()[&name("orders")].group
}

pub async fn until<T>(what: &str, mut there: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = there() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}
