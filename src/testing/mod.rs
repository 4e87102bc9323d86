//! The whole way in one process, for the unit tests of a service: three nodes, a transport, clients and a reader, and faults
//! to call. What a service sees is real: its transactions are sealed, split, committed by a majority, and its receipts are
//! verified.
//!
//! Owns an environment that lasts as long as a test. Must not make a fate, nor change what nodes and clients do.

mod error;
mod network;
mod rejecting;

pub use error::TestingError;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex as AsyncMutex;

use crate::client::reader::{self, Committed, Event, Reader};
use crate::client::{Client, Options};
use crate::config::environment::{self, FIRST_PORT, Plan, VALID_FOR, Written};
use crate::config::{ClientConfig, NodeConfig, Sources, TransportSettings};
use crate::core::id::{
    DestinationName, EnvironmentName, IdError, NodeName, Position, ReaderName, Rejection, SenderName, Suite,
};
use crate::local::{Nodes, make_topics};
use crate::node::NodeOptions;
use crate::seams::{DiskHook, HookedDisk, Seams};
use crate::store::outbox::OutboxOptions;
use crate::transport::admin::EMBEDDED_PARTITIONS;
use crate::transport::adversary::{AdversaryOptions, Mood};
use crate::transport::{AnyTransport, Domain, TransportOptions};
use network::MemoryNetwork;
use rejecting::Rejecting;

/// Most bytes of a payload that [`Environment::committed`] gives.
const PAYLOAD_BYTES: usize = 256 << 20;
/// How long [`Environment::committed`] waits for what is committed already.
const READ_WITHIN: Duration = Duration::from_secs(20);

/// Who is in an environment. The default: nodes `a`, `b`, `c`, destination `orders`, sender `web`, reader `app`.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use sealcast::testing::{Environment, Setup};
///
/// let destinations = vec!["orders".to_owned(), "billing".to_owned()];
/// let environment = Environment::with(Setup { destinations, ..Setup::default() }).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// Nodes, each a voter of every destination.
    pub nodes: Vec<String>,
    /// Destinations.
    pub destinations: Vec<String>,
    /// Senders, each allowed to send to every destination.
    pub senders: Vec<String>,
    /// Readers, each allowed to read every destination.
    pub readers: Vec<String>,
}

impl Default for Setup {
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            nodes: names(&["a", "b", "c"]),
            destinations: names(&["orders"]),
            senders: names(&["web"]),
            readers: names(&["app"]),
        }
    }
}

/// The whole way in one process: nodes, transport, clients, readers.
///
/// Nodes and clients speak with each other in memory, without ports. Stores and keys lie in a temporary folder, because the
/// databases and their renames need files; nothing waits for fsync, and the folder goes with this value. Any number of
/// environments can be side by side. Dropping one ends it; [`Environment::end`] waits for that.
///
/// ```
/// use sealcast::client::{Transaction, WaitError};
/// use sealcast::core::id::Rejection;
/// use sealcast::testing::Environment;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let environment = Environment::start().await?;
/// let client = environment.client().await?;
///
/// let handle = client.submit("orders", Transaction::new("ten nails").key("customer-42")).await?;
/// let receipt = handle.committed().await?;
/// assert!(receipt.signers.len() >= 2);
/// let committed = environment.committed("orders").await?;
/// assert_eq!(committed[0].1, "ten nails");
///
/// environment.reject_next(Rejection::Conflict).await?;
/// let handle = client.submit("orders", Transaction::new("a hammer")).await?;
/// assert!(matches!(handle.committed().await, Err(WaitError::Rejected(Rejection::Conflict))));
/// # Ok(())
/// # }
/// ```
pub struct Environment {
    written: Written,
    seams: Seams,
    transport: Arc<AnyTransport>,
    faults: Mutex<Faults>,
    rejecting: Rejecting,
    running: AsyncMutex<Option<Running>>,
}

/// What ends with the environment, in this order.
struct Running {
    nodes: Nodes,
    _folder: tempfile::TempDir,
}

#[derive(Default)]
struct Faults {
    lost: BTreeSet<u32>,
    stalled: bool,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("folder", &self.written.folder).finish_non_exhaustive()
    }
}

fn all<N: std::str::FromStr<Err = IdError> + Ord>(names: &[String]) -> Result<BTreeSet<N>, TestingError> {
    Ok(names.iter().map(|name| name.parse()).collect::<Result<_, _>>()?)
}

/// Leaves out what makes things durable: files of a test need not outlive the machine's power.
#[derive(Debug, Clone, Copy)]
struct Unsynced;

impl DiskHook for Unsynced {
    fn sync(&self, _: &Path, _: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        Ok(())
    }
}

impl Environment {
    /// Starts the default [`Setup`]: when this returns, transactions can be committed. Needs a tokio runtime, of any
    /// flavour. Errors: [`TestingError`].
    pub async fn start() -> Result<Self, TestingError> {
        Self::with(Setup::default()).await
    }

    /// The same with these members. Errors: [`TestingError`].
    pub async fn with(setup: Setup) -> Result<Self, TestingError> {
        let seams = Seams {
            disk: Arc::new(HookedDisk::real(Unsynced)),
            network: Arc::new(MemoryNetwork::default()),
            ..Seams::real()
        };
        let folder = tempfile::Builder::new().prefix("sealcast-testing-").tempdir();
        let folder = folder.map_err(|error| TestingError::Folder(Arc::new(error)))?;
        // Addresses of a network of its own.
        let names = all::<NodeName>(&setup.nodes)?.into_iter();
        let nodes = names.zip(FIRST_PORT..).map(|(name, number)| (name, format!("127.0.0.1:{number}"))).collect();
        let plan = Plan {
            name: EnvironmentName::new("testing")?,
            nodes,
            destinations: all(&setup.destinations)?,
            senders: all(&setup.senders)?,
            readers: all(&setup.readers)?,
            transport: TransportSettings::Embedded { path: "transport".into() },
            suite: Suite::XWing,
            minimum_suite: Suite::X25519,
            valid_for: VALID_FOR,
        };
        let root = folder.path().join("environment");
        let written = environment::write(&plan, &root, &seams)?;
        let settings = TransportSettings::Embedded { path: root.join("transport") };
        let transport = AnyTransport::open(&TransportOptions::for_nodes(settings), &seams)?;
        make_topics(&transport, &written.directory).await?;
        let transport = Arc::new(transport.behind_adversary(AdversaryOptions::harmless(0), &seams));
        let mut options = Vec::new();
        for path in written.nodes.values() {
            let of_node = NodeOptions::from_config(&NodeConfig::load(&Sources::file(path))?)?;
            options.push(NodeOptions { http: None, ..of_node });
        }
        let nodes = Nodes::start(options, transport.clone(), &seams).await?;
        Ok(Self {
            written,
            seams,
            transport,
            faults: Mutex::default(),
            rejecting: Rejecting::default(),
            running: AsyncMutex::new(Some(Running { nodes, _folder: folder })),
        })
    }

    /// The environment's folder, with the configurations of all its members.
    pub fn folder(&self) -> &Path {
        &self.written.folder
    }

    /// A client of the first sender, with an outbox in memory. Errors: [`TestingError::Client`],
    /// [`TestingError::Absent`].
    pub async fn client(&self) -> Result<Client, TestingError> {
        let first = self.written.senders.keys().next().cloned();
        let first = first.ok_or_else(|| TestingError::Absent { what: "sender", name: String::new() })?;
        self.start_client(&first, Some(self.rejecting.clone())).await
    }

    /// A client of this sender. Errors: [`TestingError::Client`], [`TestingError::Absent`].
    pub async fn client_of(&self, sender: &str) -> Result<Client, TestingError> {
        self.start_client(&sender.parse()?, Some(self.rejecting.clone())).await
    }

    async fn start_client(&self, sender: &SenderName, rejecting: Option<Rejecting>) -> Result<Client, TestingError> {
        let path = self.written.senders.get(sender);
        let path = path.ok_or_else(|| TestingError::Absent { what: "sender", name: sender.to_string() })?;
        let options = Options::from_config(&ClientConfig::load(&Sources::file(path))?, self.seams.clone())?;
        let options = Options {
            outbox: OutboxOptions { folder: None, ..options.outbox },
            interceptor: rejecting.map(|rejecting| rejecting.interceptor(sender)),
            ..options
        };
        Ok(Client::start(self.transport.clone(), options).await?)
    }

    /// The first reader. Errors: [`TestingError::Read`], [`TestingError::Absent`].
    pub fn reader(&self) -> Result<Reader, TestingError> {
        let first = self.written.readers.keys().next();
        self.reader_of(first.map_or("", ReaderName::as_str))
    }

    /// This reader. Errors: [`TestingError::Read`], [`TestingError::Absent`].
    pub fn reader_of(&self, reader: &str) -> Result<Reader, TestingError> {
        let path = reader.parse().ok().and_then(|name: ReaderName| self.written.readers.get(&name));
        let path = path.ok_or_else(|| TestingError::Absent { what: "reader", name: reader.to_owned() })?;
        Ok(Reader::from_config(&ClientConfig::load(&Sources::file(path))?, &self.seams)?)
    }

    /// Everything that a destination has committed by now, in order, read from a node. Errors: [`TestingError::Read`],
    /// [`TestingError::NotRead`].
    ///
    /// ```no_run
    /// # async fn example(environment: sealcast::testing::Environment) -> Result<(), Box<dyn std::error::Error>> {
    /// for (committed, payload) in environment.committed("orders").await? {
    ///     println!("{}: {} bytes", committed.position, payload.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn committed(&self, destination: &str) -> Result<Vec<(Committed, Bytes)>, TestingError> {
        let destination: DestinationName = destination.parse()?;
        if !self.written.directory.destinations.contains_key(&destination) {
            return Err(TestingError::Absent { what: "destination", name: destination.to_string() });
        }
        let reader = self.reader()?;
        tokio::select! {
            found = self.read_all(&reader, &destination) => found,
            () = self.seams.clock.sleep(READ_WITHIN) => Err(TestingError::NotRead),
        }
    }

    async fn read_all(
        &self,
        reader: &Reader,
        destination: &DestinationName,
    ) -> Result<Vec<(Committed, Bytes)>, TestingError> {
        let end = self.end_of(reader, destination).await?;
        let mut found: Vec<(Committed, Bytes)> = Vec::new();
        if end == Position::default() {
            return Ok(found);
        }
        let mut feed = reader.subscribe(destination, reader::Subscription::new(reader::From::Start)).await?;
        let mut payload = Vec::new();
        while let Some(event) = feed.next().await? {
            match event {
                Event::Begin(committed) => found.push((*committed, Bytes::new())),
                Event::Data(data) if payload.len() + data.len() <= PAYLOAD_BYTES => payload.extend_from_slice(&data),
                Event::Data(_) => return Err(TestingError::NotRead),
                Event::End => {
                    if let Some((_, whole)) = found.last_mut() {
                        *whole = std::mem::take(&mut payload).into();
                    }
                }
                Event::Progress(position) if position >= end => break,
                Event::Progress(_) => {}
            }
        }
        Ok(found)
    }

    /// How far the nodes that run have come, at most.
    async fn end_of(&self, reader: &Reader, destination: &DestinationName) -> Result<Position, TestingError> {
        let names: Vec<NodeName> = {
            let running = self.running.lock().await;
            let running = running.as_ref().ok_or(TestingError::Ended)?;
            running.nodes.running().map(|node| node.name().clone()).collect()
        };
        let mut end = Position::default();
        for name in names {
            let status = reader.node_status(&name).await?;
            let groups = status.groups.iter().filter(|group| group.destination == destination.as_str());
            end = groups.filter_map(|group| group.position).map(Position::from).fold(end, Position::max);
        }
        Ok(end)
    }

    /// Loses one of the three brokers, numbered from 0: nothing can be appended to it or read from it until it is returned.
    /// Losing one delays nothing that is submitted; see [`crate::core::place`]. Errors: [`TestingError::Absent`].
    ///
    /// ```no_run
    /// # fn example(environment: sealcast::testing::Environment) -> Result<(), Box<dyn std::error::Error>> {
    /// environment.lose_broker(0)?;
    /// // What is submitted now is accepted all the same.
    /// environment.return_broker(0)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn lose_broker(&self, number: u32) -> Result<(), TestingError> {
        self.change(number, |faults| faults.lost.insert(number))
    }

    /// Gives a lost broker back, with everything that it had. Errors: [`TestingError::Absent`].
    pub fn return_broker(&self, number: u32) -> Result<(), TestingError> {
        self.change(number, |faults| faults.lost.remove(&number))
    }

    /// From now on nothing is delivered, to nodes or to clients, until [`Environment::resume`]: a transaction that is
    /// submitted stays *unknown*. (What had reached the nodes before can still be committed; who waits for it does not learn
    /// of that.)
    ///
    /// ```no_run
    /// # fn example(environment: sealcast::testing::Environment) -> Result<(), Box<dyn std::error::Error>> {
    /// environment.stall();
    /// // Nothing gets through now: what a service does about that is tested here.
    /// environment.resume();
    /// # Ok(())
    /// # }
    /// ```
    pub fn stall(&self) {
        self.apply(|faults| faults.stalled = true);
    }

    /// Delivers everything that waited since [`Environment::stall`].
    pub fn resume(&self) {
        self.apply(|faults| faults.stalled = false);
    }

    fn change(&self, number: u32, change: impl FnOnce(&mut Faults) -> bool) -> Result<(), TestingError> {
        if number >= EMBEDDED_PARTITIONS {
            return Err(TestingError::Absent { what: "broker", name: number.to_string() });
        }
        self.apply(|faults| {
            change(faults);
        });
        Ok(())
    }

    fn apply(&self, change: impl FnOnce(&mut Faults)) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut faults);
        let AnyTransport::Adversary(adversary) = &*self.transport else { return };
        for number in 0..EMBEDDED_PARTITIONS {
            let mood = match (faults.lost.contains(&number), faults.stalled) {
                (true, _) => Mood::Away,
                (false, true) => Mood::Held,
                (false, false) => Mood::Well,
            };
            adversary.set_mood(&Domain(format!("embedded-{number}").into()), mood);
        }
    }

    /// Has the next transaction that a client of this environment submits rejected by the nodes, for this reason; called
    /// several times, the next ones, in this order. The transaction is changed where it is submitted so that consensus cannot
    /// commit it; everything behind that is as always.
    ///
    /// - *conflict*: it expects a version that its ordering key does not have (without a key, it gets one);
    /// - *id-reuse*: it gets the id of another transaction, which was rejected before;
    /// - *predecessor*: it follows a transaction that was rejected before;
    /// - *duplicate*: it gets the idempotency key of another transaction, which is committed here, now, at every destination:
    ///   readers see that one.
    ///
    /// Errors: [`TestingError::NotSubmitted`] for *not-permitted* and *deadline-too-far*, [`TestingError::NotPrepared`],
    /// [`TestingError::Client`].
    ///
    /// ```no_run
    /// # async fn example(environment: sealcast::testing::Environment) -> Result<(), Box<dyn std::error::Error>> {
    /// use sealcast::client::{Transaction, WaitError};
    /// use sealcast::core::id::Rejection;
    ///
    /// environment.reject_next(Rejection::Conflict).await?;
    /// let client = environment.client().await?;
    /// let refused = client.submit("orders", Transaction::new("ten nails")).await?.committed().await;
    /// assert!(matches!(refused, Err(WaitError::Rejected(Rejection::Conflict))));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn reject_next(&self, reason: Rejection) -> Result<(), TestingError> {
        let mut clients = BTreeMap::new();
        if matches!(reason, Rejection::IdReuse | Rejection::Predecessor | Rejection::Duplicate) {
            for sender in self.written.senders.keys() {
                clients.insert(sender.clone(), self.start_client(sender, None).await?);
            }
        }
        let destinations: Vec<_> = self.written.directory.destinations.keys().cloned().collect();
        let planned = self.rejecting.plan(reason, &clients, &destinations, &self.seams).await;
        for client in clients.into_values() {
            client.close().await;
        }
        planned
    }

    /// Stops a node: it drains and ends; what it has stays. With a majority of the others the destinations go on. One that
    /// does not run is no error. Errors: [`TestingError::Node`], [`TestingError::Ended`].
    ///
    /// ```no_run
    /// # async fn example(environment: sealcast::testing::Environment) -> Result<(), Box<dyn std::error::Error>> {
    /// environment.stop_node("c").await?;
    /// // Two of three are a majority: all goes on, and nothing is complete before it is back.
    /// environment.start_node("c").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn stop_node(&self, name: &str) -> Result<(), TestingError> {
        let mut running = self.running.lock().await;
        let running = running.as_mut().ok_or(TestingError::Ended)?;
        Ok(running.nodes.stop_node(&name.parse()?).await?)
    }

    /// Starts a node that was stopped, and waits until it can work. Errors: [`TestingError::Node`],
    /// [`TestingError::Ended`].
    pub async fn start_node(&self, name: &str) -> Result<(), TestingError> {
        let mut running = self.running.lock().await;
        let running = running.as_mut().ok_or(TestingError::Ended)?;
        running.nodes.start_node(&name.parse()?).await?;
        Ok(running.nodes.ready().await?)
    }

    /// Ends it: nodes drain, the folder goes. Clients that are left find nobody any more.
    pub async fn end(self) {
        let running = self.running.lock().await.take();
        if let Some(running) = running {
            running.end().await;
        }
    }
}

impl Running {
    async fn end(self) {
        self.nodes.shutdown().await;
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        let Some(running) = self.running.get_mut().take() else { return };
        // Where the runtime is ending too, everything is dropped with it, the folder as well.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(running.end());
        }
    }
}
