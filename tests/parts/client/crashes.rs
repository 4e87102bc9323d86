//! R3: a client that is killed, or loses power, at any moment of sealing: before and after every sync of its disk, between two
//! stripes, between making durable and publishing. Started again it sends exactly the bytes that it kept, or abandons the
//! parcel's id; no stripe ever has two signed headers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use sealcast::client::{Client, Handle, Stage, Transaction, Waited};
use sealcast::core::id::{Digest, Epoch, ParcelId, TransactionId};
use sealcast::core::receipt::{Verdict, is_query};
use sealcast::core::split::segment::Segment;
use sealcast::seams::{DiskHook, DiskStep, HookedDisk, Seams};
use sealcast::transport::embedded::Embedded;
use sealcast::transport::{
    Ack, AppendError, Batch, Full, Offset, Partition, PartitionId, Pending, ReadError, Record, Topic, Transport,
};
use tokio::io::{AsyncRead, ReadBuf};

use crate::client::world::World;
use crate::disk::CrashDisk;

/// Several stripes, sealed and published as they are read.
const LARGE: usize = 1_700_000;

/// A sender's machine that dies at a chosen step: from then on its disk does nothing and no broker hears of it.
struct Machine {
    disk: CrashDisk,
    /// Steps left. One step is half a sync (before and after it), or one record that is published.
    left: AtomicI64,
    dead: AtomicBool,
    /// The disk as the dead machine left it: after a power cut, and after a kill.
    after: Mutex<Option<(CrashDisk, CrashDisk)>>,
    /// Records that left it for the brokers. They arrive, whatever becomes of it.
    left_for_brokers: AtomicUsize,
}

impl Machine {
    fn new(disk: CrashDisk, steps: i64) -> Arc<Self> {
        Arc::new(Self {
            disk,
            left: steps.into(),
            dead: false.into(),
            after: Mutex::default(),
            left_for_brokers: 0.into(),
        })
    }

    /// Takes a step; whether the machine still lives.
    fn step(&self) -> bool {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            // Nobody who sees that it is dead sees it without what it left.
            let mut after = self.after.lock().unwrap();
            self.dead.store(true, Ordering::SeqCst);
            *after = Some((self.disk.crash(), self.disk.killed()));
        }
        self.lives()
    }

    fn lives(&self) -> bool {
        !self.dead.load(Ordering::SeqCst)
    }

    fn came_back(&self) {
        self.left_for_brokers.fetch_sub(1, Ordering::SeqCst);
    }

    async fn died(&self) {
        while self.lives() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.lives() { Ok(()) } else { Err(io::Error::other("the machine is dead")) }
    }
}

#[derive(Clone)]
struct Mortal(Arc<Machine>);

impl DiskHook for Mortal {
    fn before(&self, step: DiskStep, _: &Path) -> io::Result<()> {
        match step {
            DiskStep::Lock | DiskStep::Length => Ok(()),
            _ => self.0.check(),
        }
    }

    fn write(&self, _: &Path, bytes: &[u8], write: &dyn Fn(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.0.check()?;
        write(bytes)
    }

    fn sync(&self, _: &Path, sync: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        self.0.step();
        self.0.check()?;
        sync()?;
        self.0.step();
        self.0.check()
    }
}

/// The brokers, as the machine reaches them while it lives.
struct Reached {
    machine: Arc<Machine>,
    brokers: Arc<Embedded>,
}

impl Transport for Reached {
    fn partitions(&self, topic: &Topic) -> Arc<[Partition]> {
        self.brokers.partitions(topic)
    }

    fn append(&self, to: PartitionId, record: Record) -> Result<Pending<Ack>, Full<Record>> {
        self.machine.left_for_brokers.fetch_add(1, Ordering::SeqCst);
        if self.machine.step() {
            return self.brokers.append(to, record).inspect_err(|_| self.machine.came_back());
        }
        self.machine.came_back();
        let (fulfil, pending) = Pending::new();
        let _ = fulfil.send(Err(AppendError::Absent { partition: to, cause: "the machine is dead".to_owned() }));
        Ok(pending)
    }

    async fn read(&self, from: PartitionId, at: Offset) -> Result<Batch, ReadError> {
        if !self.machine.lives() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            return Err(ReadError::Absent { partition: from, cause: "the machine is dead".to_owned() });
        }
        self.brokers.read(from, at).await
    }
}

/// A payload that comes piece by piece.
struct Pieces<'a>(&'a [u8]);

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (now, later) = self.0.split_at(self.0.len().min(into.remaining()).min(200_000));
        into.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

/// The world of one crash after another: the brokers live on.
struct Sea {
    world: World,
    small: Vec<u8>,
    large: Vec<u8>,
    ids: [TransactionId; 2],
}

impl Sea {
    async fn new() -> Self {
        let world = World::new(3).await;
        let bytes = |length: usize, step: usize| (0..length).map(|at| (at * step % 251) as u8).collect();
        let random =
            |_| TransactionId::from_parts(Seams::real().clock.now(), Seams::real().randomness.array().unwrap());
        let ids = [0, 1].map(random);
        Self { small: bytes(900, 7), large: bytes(LARGE, 31), world, ids }
    }

    async fn start(&self, machine: &Arc<Machine>) -> Option<Client> {
        let mut options = self.world.options();
        options.outbox.folder = Some("/outbox".into());
        options.seams.disk = Arc::new(HookedDisk::new(Mortal(machine.clone()), machine.disk.clone()));
        let brokers = Arc::new(Reached { machine: machine.clone(), brokers: self.world.transport.clone() });
        match Client::start(brokers, options).await {
            Ok(client) => Some(client),
            Err(error) => {
                assert!(!machine.lives(), "{error}");
                None
            }
        }
    }

    /// Submits both, as a service does that does not know whether it did so before it died. Fails only on a dead machine.
    async fn submit(&self, client: &Client, machine: &Machine) -> Option<[Handle; 2]> {
        let small = Transaction::new(self.small.clone()).id(self.ids[0]);
        let small = client.submit("orders", small).await;
        let large = Transaction::new("").id(self.ids[1]);
        let large = client.submit_reader("orders", large, Pieces(&self.large), Some(LARGE as u64)).await;
        match (small, large) {
            (Ok(small), Ok(large)) => Some([small, large]),
            (small, large) => {
                assert!(!machine.lives(), "{small:?} {large:?}");
                None
            }
        }
    }

    /// Every stripe that any broker has seen has one header; its segments are those of that header.
    async fn headers(&self) -> BTreeMap<(Epoch, ParcelId), BTreeMap<u32, Digest>> {
        let mut headers: BTreeMap<_, BTreeMap<u32, Digest>> = BTreeMap::new();
        for record in self.world.records("orders").await.iter().filter(|record| !is_query(&record.value)) {
            let segment = Segment::parse(&record.value).unwrap();
            let segment = segment.verify(&Default::default(), &self.world.sender_key()).unwrap();
            let header = segment.header();
            let of = headers.entry((header.core.epoch, header.core.parcel)).or_default();
            let first = *of.entry(header.stripe).or_insert(segment.digest());
            assert_eq!(first, segment.digest(), "stripe {} of {} has two headers", header.stripe, header.core.parcel);
        }
        headers
    }

    /// Lets the nodes commit what is whole, each transaction once, and waits until the client knows.
    async fn finish(&self, handles: [Handle; 2]) -> BTreeSet<ParcelId> {
        let (mut decided, mut whole) = (BTreeSet::new(), BTreeSet::new());
        for parcel in self.world.opened("orders", 2).await {
            whole.insert(parcel.parcel);
            for (index, (transaction, payload)) in parcel.transactions.iter().enumerate() {
                let whose = self.ids.iter().position(|id| *id == transaction.header.id).expect("one of the two");
                assert!(*payload == [&self.small, &self.large][whose][..]);
                assert!(decided.insert(transaction.header.id), "it is whole in two parcels, so it was submitted twice");
                let committed = self.world.statement(&parcel, index, Verdict::Committed);
                for node in ["alfa", "bravo", "charlie"] {
                    self.world.say(node, "orders", std::slice::from_ref(&committed)).await;
                }
            }
        }
        assert_eq!(decided.len(), 2);
        for handle in handles {
            let waited = handle.wait(Stage::Complete, Duration::from_secs(60)).await.unwrap();
            assert!(matches!(waited, Waited::Reached), "{waited:?}");
        }
        whole
    }
}

/// Lives until this step, dies, and lives again; with the power cut the disk keeps only what was synced. Whether it died.
async fn dies_at(step: i64, power_cut: bool) -> bool {
    let sea = Sea::new().await;
    let machine = Machine::new(CrashDisk::new(), step);
    let first = sea.start(&machine).await;
    let submitted = match &first {
        Some(client) => sea.submit(client, &machine).await,
        None => None,
    };
    if let Some(handles) = submitted {
        let lived = tokio::select! {
            _ = sea.finish(handles) => machine.lives(),
            () = machine.died() => false,
        };
        if lived {
            first.expect("it started").close().await;
            return false;
        }
    }
    let (cut, killed) = machine.after.lock().unwrap().take().expect("it is dead");
    while sea.world.records("orders").await.len() < machine.left_for_brokers.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = sea.headers().await;
    let machine = Machine::new(if power_cut { cut } else { killed }, i64::MAX);
    let client = sea.start(&machine).await.expect("a living machine starts");
    let handles = sea.submit(&client, &machine).await.expect("a living machine submits");
    let whole = sea.finish(handles).await;
    client.close().await;
    // What was begun before is finished, or stands as it was: its id is never used again.
    let after = sea.headers().await;
    for (key, stripes) in before {
        assert!(whole.contains(&key.1) || after[&key] == stripes, "step {step}: more came of the abandoned {}", key.1);
    }
    drop(first);
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn r03_a_client_that_dies_while_it_seals_resends_exactly_what_it_kept_or_abandons_the_parcel() {
    // Every so many steps, until it lives through all of them.
    let mut step = 1;
    while dies_at(step, step % 2 == 0).await {
        step += 11;
    }
    assert!(step > 40, "it has some syncs and dozens of segments to die at, and had {step} steps");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "every single step, both ways: minutes"]
async fn r03_a_client_can_die_at_every_step() {
    let mut step = 0;
    while dies_at(step, true).await && dies_at(step, false).await {
        step += 1;
    }
}
