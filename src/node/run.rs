//! Starting, watching and ending a node: its stores, groups and services, put together once.
//!
//! Owns the order of starting and of draining. Must not know what the parts do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::alarms::Alarms;
use super::answer::{Answerer, QUERIES};
use super::group::{AllServed, GroupContext, Lag, NoticeSender, Served};
use super::hold::Holder;
use super::peer::PeerService;
use super::propose::Desk;
use super::receipts::Publisher;
use super::report::Reporter;
use super::serve::ReaderService;
use super::stage::OPENING_AT_ONCE;
use super::{NodeError, collect, lookup, pulse};
use crate::config::{ConfigError, NodeConfig};
use crate::core::decide::View;
use crate::core::directory::Directory;
use crate::core::gather::Caps;
use crate::core::id::{DestinationName, NodeName};
use crate::core::sign::PublicKey;
use crate::keys::{KeyRing, NodeKeys};
use crate::raft::{Group, GroupError, GroupOptions, RpcPeers, Stage};
use crate::rpc::access::Gate;
use crate::rpc::client::Dialer;
use crate::rpc::server::{PlainListener, peer_service, reader_service, serve};
use crate::rpc::tls::Credentials;
use crate::seams::{Clock, Seams};
use crate::store::group::{GroupStore, StoreOptions};
use crate::telemetry::health::Readiness;
use crate::telemetry::{Meter, health, recorder};
use crate::transport::AnyTransport;

/// Parcels that were staged or ended and that wait for whoever is told.
const NEWS: usize = 1024;
/// Longest time for what is on its way when the node drains.
const DRAIN: Duration = Duration::from_secs(5);
/// Longest time in which another node takes the lead from one that drains; an election would take about as long.
const HAND_OVER: Duration = Duration::from_secs(2);
/// How long after one of its parts a store or a consensus may say that it failed.
const CAUSE: Duration = Duration::from_millis(500);
/// How often the end of the log is asked for until the log is replayed.
const REPLAY_AGAIN: Duration = Duration::from_millis(100);

/// What a node is started with.
#[derive(Clone)]
pub struct NodeOptions {
    /// Its name in the directory.
    pub name: NodeName,
    /// The folder of its data: a folder for each destination in it.
    pub data: PathBuf,
    /// Where it listens for nodes and readers, `HOST:PORT`.
    pub listen: String,
    /// Where it serves metrics and health, `HOST:PORT`.
    pub http: Option<String>,
    /// The newest directory that was verified.
    pub directory: Arc<Directory>,
    /// Where it is read again from; without it, it is not.
    pub directory_file: Option<PathBuf>,
    /// The operator's public key.
    pub operator: PublicKey,
    /// This node's keys.
    pub keys: Arc<NodeKeys>,
    /// The destinations that it serves, with their secrets.
    pub rings: BTreeMap<DestinationName, Arc<KeyRing>>,
    /// Bounds of gathering, for all destinations together.
    pub caps: Caps,
}

impl NodeOptions {
    /// Reads everything that a configuration names. Errors: [`ConfigError`].
    pub fn from_config(config: &NodeConfig) -> Result<Self, ConfigError> {
        let directory = config.environment.load_directory()?;
        let keys = config.keys(&directory)?;
        let rings = config.key_rings(&directory, &keys)?;
        Ok(Self {
            name: config.node.name.clone(),
            data: config.node.data.clone(),
            listen: config.listen(&directory)?,
            http: config.node.http.clone(),
            operator: config.environment.operator_key()?,
            directory_file: Some(config.environment.directory.clone()),
            directory: Arc::new(directory),
            keys: Arc::new(keys),
            rings: rings.into_iter().map(|(name, ring)| (name, Arc::new(ring))).collect(),
            caps: Caps {
                total_bytes: config.limits.gather_bytes,
                sender_bytes: config.limits.gather_bytes_per_sender,
                deferred: config.limits.deferred_per_sender,
            },
        })
    }
}

/// A running node. Dropping it without [`Node::shutdown`] leaves its tasks running until the runtime ends.
pub struct Node {
    name: NodeName,
    address: SocketAddr,
    http_address: Option<SocketAddr>,
    newest: watch::Sender<Arc<Directory>>,
    directory_file: Option<PathBuf>,
    operator: PublicKey,
    served: AllServed,
    readiness: watch::Receiver<Readiness>,
    fatal: watch::Receiver<Option<Arc<NodeError>>>,
    collecting: CancellationToken,
    serving: CancellationToken,
    closed: CancellationToken,
    ending: CancellationToken,
    parts: Mutex<Option<Parts>>,
    seams: Seams,
}

/// What ends last.
struct Parts {
    watching: JoinHandle<()>,
    publishing: JoinSet<()>,
    server: JoinHandle<()>,
}

/// One part of a destination that ended.
type Ended = (DestinationName, &'static str, Result<(), NodeError>);

struct Starting<'a> {
    options: &'a NodeOptions,
    seams: &'a Seams,
    transport: &'a Arc<AnyTransport>,
    newest: &'a watch::Sender<Arc<Directory>>,
    dialer: &'a Dialer,
    meter: &'a Meter,
    openings: Arc<Semaphore>,
    collecting: &'a CancellationToken,
    closed: &'a CancellationToken,
    running: &'a mut JoinSet<Ended>,
    publishing: &'a mut JoinSet<()>,
}

impl Node {
    /// Starts a node: opens its stores, joins or founds its groups, and serves. The transport stays the caller's.
    ///
    /// Errors: [`NodeError`]; nothing is left running then.
    pub async fn start(options: NodeOptions, seams: Seams, transport: Arc<AnyTransport>) -> Result<Self, NodeError> {
        let meter = Meter::node(&options.name);
        let (newest, newest_seen) = watch::channel(options.directory.clone());
        let listen = |setting, address: &str| {
            let address = address.to_owned();
            move |cause| NodeError::Listen { setting, address, cause }
        };
        let listener = seams.network.listen(&options.listen).await.map_err(listen("listen", &options.listen))?;
        let address = listener.address().map_err(listen("listen", &options.listen))?;
        let pages = match &options.http {
            None => None,
            Some(http) => {
                let listener = seams.network.listen(http).await.map_err(listen("http", http))?;
                let address = listener.address().map_err(listen("http", http))?;
                let recorded = recorder::install().map_err(|error| NodeError::Pages { cause: error.to_string() })?;
                Some((listener, address, recorded))
            }
        };
        let credentials = Credentials::new(options.keys.tls())?;
        let dialer = Dialer::new(&seams, credentials.clone(), newest_seen.clone(), meter.clone());
        let [collecting, serving, closed, ending] = [(); 4].map(|()| CancellationToken::new());
        let (mut running, mut publishing) = (JoinSet::new(), JoinSet::new());
        let mut starting = Starting {
            options: &options,
            seams: &seams,
            transport: &transport,
            newest: &newest,
            dialer: &dialer,
            meter: &meter,
            openings: Arc::new(Semaphore::new(OPENING_AT_ONCE)),
            collecting: &collecting,
            closed: &closed,
            running: &mut running,
            publishing: &mut publishing,
        };
        let mut served = BTreeMap::new();
        for (name, ring) in &options.rings {
            served.insert(name.clone(), Arc::new(starting.destination(name, ring).await?));
        }
        let served: AllServed = Arc::new(served);

        let gate = Gate::new(newest_seen.clone(), meter.clone());
        let alarms = Alarms::new(seams.clock.clone(), meter.clone());
        let peers = PeerService::new(gate.clone(), served.clone(), options.operator.clone());
        let readers =
            ReaderService::new(options.name.clone(), gate, served.clone(), alarms.clone(), seams.clock.clone());
        let routes = Routes::new(peer_service(peers)).add_service(reader_service(readers));
        let (tell_fatal, fatal) = watch::channel(None);
        let server = {
            let (directory, clock, meter) = (newest_seen.clone(), seams.clock.clone(), meter.clone());
            let (stop, tell) = (serving.clone(), tell_fatal.clone());
            tokio::spawn(async move {
                let served = serve(listener, &credentials, directory, routes, clock, meter, stop).await;
                if let Err(error) = served {
                    tell.send_replace(Some(Arc::new(error.into())));
                }
            })
        };
        let (ready, readiness) = watch::channel(Readiness::waits("node", "it is starting"));
        let recorded = pages.as_ref().map(|(_, _, recorded)| recorded.clone());
        let http_address = pages.as_ref().map(|(_, address, _)| *address);
        if let Some((listener, _, recorded)) = pages {
            let pages = health::pages(recorded, readiness.clone());
            let (listener, stop) = (PlainListener::new(listener, seams.clock.clone()), ending.clone());
            tokio::spawn(async move {
                if let Err(error) = health::serve(listener, pages, stop).await {
                    tracing::error!(%error, "the health pages are served no more");
                }
            });
        }
        tokio::spawn(pulse::run(
            seams.clone(),
            served.clone(),
            newest_seen,
            alarms,
            meter,
            ready,
            recorded,
            collecting.clone(),
        ));
        let watching =
            tokio::spawn(watch_over(served.clone(), running, tell_fatal, collecting.clone(), seams.clock.clone()));
        tracing::info!(node = %options.name, %address, destinations = served.len(), "the node runs");
        Ok(Self {
            name: options.name,
            address,
            http_address,
            newest,
            directory_file: options.directory_file,
            operator: options.operator,
            served,
            readiness,
            fatal,
            collecting,
            serving,
            closed,
            ending,
            parts: Mutex::new(Some(Parts { watching, publishing, server })),
            seams,
        })
    }

    /// Its name.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// Where it listens for nodes and readers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it serves metrics and health.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// What it waits for before it can do its work.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.clone()
    }

    /// The destinations that it serves.
    pub fn served(&self) -> &AllServed {
        &self.served
    }

    /// The newest directory that it verified.
    pub fn directory(&self) -> Arc<Directory> {
        self.newest.borrow().clone()
    }

    /// Waits until something failed for good: the process must end then.
    pub async fn failed(&self) -> Arc<NodeError> {
        let mut fatal = self.fatal.clone();
        loop {
            if let Some(error) = fatal.borrow_and_update().clone() {
                return error;
            }
            if fatal.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Reads the directory's file again, and takes a newer one. Says whether it was newer.
    ///
    /// Errors: [`NodeError::Directory`]; the one that it has stays.
    pub fn reload_directory(&self) -> Result<bool, NodeError> {
        let Some(path) = &self.directory_file else { return Ok(false) };
        let refused = |problem: String| NodeError::Directory { path: path.clone(), problem };
        let bytes = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
        let before = self.directory();
        if bytes[..] == before.bytes()[..] {
            return Ok(false);
        }
        let directory = Directory::verify(&bytes, &self.operator, 1).map_err(|error| refused(error.to_string()))?;
        directory.check_successor_of(&before).map_err(|error| refused(error.to_string()))?;
        tracing::info!(version = directory.version, "a newer directory was read");
        self.newest.send_replace(Arc::new(directory));
        Ok(true)
    }

    /// Drains and ends: nothing more is collected, what is on its way is finished, leadership is handed on, receipts are
    /// published, calls end. Safe to call once; later calls do nothing.
    pub async fn shutdown(&self) {
        let Some(mut parts) = self.parts.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        tracing::info!(node = %self.name, "the node drains");
        self.collecting.cancel();
        // Calls are still answered: the successor needs this node's log and its voice.
        let handing = self.served.values().map(|served| served.group.hand_over(HAND_OVER));
        futures_util::future::join_all(handing).await;
        self.serving.cancel();
        for served in self.served.values() {
            served.group.shutdown().await;
        }
        self.closed.cancel();
        // The publishers end with the holders, after what is left to publish.
        let within = |limit: Duration| self.seams.clock.sleep(limit);
        tokio::select! {
            _ = &mut parts.watching => {}
            () = within(DRAIN) => tracing::warn!("parts of the node did not end in time"),
        }
        parts.watching.abort();
        let published = async { while parts.publishing.join_next().await.is_some() {} };
        tokio::select! {
            () = published => {}
            () = within(DRAIN * 2) => {}
        }
        if let Err(error) = parts.server.await {
            tracing::warn!(%error, "the server did not end well");
        }
        self.ending.cancel();
        for served in self.served.values() {
            let store = served.context.store.clone();
            if self.seams.work.run(move || store.close()).await.is_err() {
                tracing::warn!("a store was not closed: the runtime ends");
            }
        }
        tracing::info!(node = %self.name, "the node has stopped");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.collecting.cancel();
        self.serving.cancel();
        self.closed.cancel();
        self.ending.cancel();
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("name", &self.name).field("address", &self.address).finish_non_exhaustive()
    }
}

impl Starting<'_> {
    /// Starts one destination.
    async fn destination(&mut self, name: &DestinationName, ring: &Arc<KeyRing>) -> Result<Served, NodeError> {
        let options = self.options;
        let directory = options.directory.clone();
        let wrong = |problem: String| NodeError::Destination { destination: name.clone(), problem };
        let entry =
            directory.destinations.get(name).ok_or_else(|| wrong("the directory has no such one".to_owned()))?;
        if !entry.has_node(&options.name) {
            return Err(wrong(format!("the directory does not list node {} for it", options.name)));
        }
        ring.check_covers(entry).map_err(|error| wrong(error.to_string()))?;
        let failed = |cause| NodeError::Store { destination: name.clone(), cause };
        let store_options = StoreOptions { folder: options.data.join(name.as_str()), destination: name.clone() };
        let seams = self.seams.clone();
        let store = self.seams.work.run(move || GroupStore::open(&store_options, &seams)).await?.map_err(failed)?;
        let (in_force, group_time) = {
            let snapshot = store.snapshot().map_err(failed)?;
            (View::directory(&snapshot).cloned(), View::group_time(&snapshot))
        };
        if let Some(in_force) = &in_force {
            self.newest.send_if_modified(|newest| {
                let newer = in_force.version > newest.version;
                if newer {
                    *newest = in_force.clone();
                }
                newer
            });
        }
        let (in_force, in_force_seen) = watch::channel(in_force.unwrap_or(directory.clone()));
        let (group_time, group_time_seen) = watch::channel(group_time);
        let (notices, notices_out) = NoticeSender::new();
        let (repeats, repeated) = mpsc::unbounded_channel();
        let (queries, asked) = mpsc::channel(QUERIES);
        let meter = self.meter.destination(name);
        pulse::measure_commits(&store, &meter);
        let context = Arc::new(GroupContext {
            node: options.name.clone(),
            destination: name.clone(),
            tag: entry.tag,
            environment: directory.name.clone(),
            seams: self.seams.clone(),
            store: store.clone(),
            transport: self.transport.clone(),
            keys: options.keys.clone(),
            ring: ring.clone(),
            in_force: in_force_seen,
            group_time: group_time_seen,
            lag: watch::Sender::new(Lag::default()),
            alarms: Alarms::kept_in(&store, self.seams.clock.clone(), meter.clone()).map_err(failed)?,
            meter: meter.clone(),
            notices: notices.clone(),
            queries,
            caps: options.caps.shared_by(options.rings.len()),
            openings: self.openings.clone(),
            repeats,
            stop: self.collecting.clone(),
        });
        let consensus = |cause| NodeError::Consensus { destination: name.clone(), cause };
        let group_options = GroupOptions::new(options.name.clone(), entry.tag, entry.nodes.clone());
        let peers = Arc::new(RpcPeers::new(self.dialer.clone()));
        let opened = Group::open(group_options, store.clone(), peers, self.seams.clone()).await;
        let (group, applied) = opened.map_err(consensus)?;

        let (signer, publisher) = Publisher::new(context.clone(), notices.channel(), notices_out);
        let desk = Desk::new(context.clone(), self.newest.subscribe(), options.operator.clone());
        let (tell_ended, ended) = mpsc::channel(NEWS);
        let (tell_staged, staged) = mpsc::channel(NEWS);
        let holder = Holder::new(
            context.clone(),
            desk.clone(),
            group.clone(),
            self.dialer.clone(),
            signer.clone(),
            in_force,
            self.newest.clone(),
            group_time,
            tell_ended,
            self.closed.clone(),
        )?;
        let reporter =
            Reporter::new(context.clone(), desk.clone(), group.clone(), self.dialer.clone(), self.newest.subscribe());
        let answerer = Answerer::new(context.clone(), signer);
        let (tell_replayed, replayed) = watch::channel(false);
        self.publishing.spawn(publisher.run());
        let label = |part: &'static str| (name.clone(), part);
        let (holding, collecting, reporting, leading) =
            (label("holding"), label("collecting"), label("reporting"), label("leading"));
        let answering = label("answering");
        self.running.spawn(async move { (answering.0, answering.1, answerer.run(asked).await) });
        self.running.spawn(async move { (holding.0, holding.1, holder.run(applied, repeated).await) });
        let collector = collect::run(context.clone(), ended, tell_staged);
        self.running.spawn(async move { (collecting.0, collecting.1, collector.await) });
        self.running.spawn(async move { (reporting.0, reporting.1, reporter.run(staged).await) });
        let (desk_of, group_of) = (desk.clone(), group.clone());
        self.running.spawn(async move { (leading.0, leading.1, desk_of.run(group_of).await) });
        let dialer = self.dialer.clone();
        tokio::spawn(replay(context.clone(), group.clone(), dialer.clone(), tell_replayed));
        Ok(Served { context, group, dialer, desk, replayed })
    }
}

/// Says when everything is applied that was committed before this start.
async fn replay(context: Arc<GroupContext>, group: Group, dialer: Dialer, replayed: watch::Sender<bool>) {
    let mut progress = context.store.progress();
    loop {
        if let Ok(index) = lookup::read_index(&context, &group, &dialer).await
            && progress.wait_for(|progress| progress.applied >= index).await.is_ok()
        {
            replayed.send_replace(true);
            return;
        }
        tokio::select! {
            () = context.seams.clock.sleep(REPLAY_AGAIN) => {}
            () = context.stop.cancelled() => return,
        }
    }
}

/// Waits until consensus has failed.
async fn failed(group: &Group) -> GroupError {
    let mut stage = group.stage();
    loop {
        if let Stage::Failed(cause) = &*stage.borrow_and_update() {
            return GroupError::Consensus { cause: cause.clone() };
        }
        if stage.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Waits for the parts of all destinations. One that ends while the node runs is fatal.
async fn watch_over(
    served: AllServed,
    mut running: JoinSet<Ended>,
    fatal: watch::Sender<Option<Arc<NodeError>>>,
    stopping: CancellationToken,
    clock: Arc<dyn Clock>,
) {
    let tell = |error: NodeError| {
        tracing::error!(%error, "the node cannot go on");
        fatal.send_if_modified(|first| {
            let new = first.is_none();
            if new {
                *first = Some(Arc::new(error));
            }
            new
        });
    };
    let mut failures = JoinSet::new();
    for (name, served) in served.iter() {
        let (name, store, group) = (name.clone(), served.context.store.clone(), served.group.clone());
        failures.spawn(async move {
            tokio::select! {
                cause = store.failed() => NodeError::Store {
                    destination: name,
                    cause: crate::store::StoreError::Stopped { cause: cause.to_string() },
                },
                cause = failed(&group) => NodeError::Consensus { destination: name, cause },
            }
        });
    }
    loop {
        tokio::select! {
            Some(Ok(error)) = failures.join_next() => if !stopping.is_cancelled() { tell(error) },
            ended = running.join_next() => {
                let error = match ended {
                    None => break,
                    Some(Ok((destination, part, Ok(())))) => NodeError::Ended { destination, part },
                    Some(Ok((_, _, Err(error)))) => error,
                    Some(Err(error)) if error.is_panic() => match served.keys().next().cloned() {
                        Some(destination) => NodeError::Ended { destination, part: "one of its parts" },
                        None => continue,
                    },
                    Some(Err(_)) => continue,
                };
                if stopping.is_cancelled() {
                    continue;
                }
                // A store or a consensus that failed ends the parts that lean on it: what it says itself is why.
                tokio::select! {
                    Some(Ok(cause)) = failures.join_next() => tell(cause),
                    () = clock.sleep(CAUSE) => tell(error),
                }
            }
        }
    }
    failures.shutdown().await;
}
