//! Starting, watching and ending a node: its stores, groups and services, put together once.
//!
//! Owns the order of starting and of draining. Must not know what the parts do.

mod destination;
mod options;
mod watching;

pub use options::NodeOptions;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::NodeError;
use super::alarms::Alarms;
use super::group::AllServed;
use super::newest::Newest;
use super::peer::PeerService;
use super::pulse::Pulse;
use super::serve::ReaderService;
use super::stage::OPENING_AT_ONCE;
use crate::core::directory::{Directory, DirectoryError};
use crate::core::id::NodeName;
use crate::core::sign::PublicKey;
use crate::rpc::access::Gate;
use crate::rpc::client::Dialer;
use crate::rpc::server::{PlainListener, peer_service, reader_service, serve};
use crate::rpc::tls::Credentials;
use crate::seams::Seams;
use crate::telemetry::health::Readiness;
use crate::telemetry::{Meter, health, recorder};
use crate::transport::AnyTransport;
use destination::{Starting, abandon};
use watching::watch_over;

/// Longest time for what is on its way when the node drains.
const DRAIN: Duration = Duration::from_secs(5);
/// Longest time in which another node takes the lead from one that drains; an election would take about as long.
const HAND_OVER: Duration = Duration::from_secs(2);

/// A running node. Dropping it without [`Node::shutdown`] leaves its tasks running until the runtime ends.
pub struct Node {
    name: NodeName,
    address: SocketAddr,
    http_address: Option<SocketAddr>,
    newest: Newest,
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

impl Node {
    /// Starts a node: opens its stores, joins or founds its groups, and serves. The transport stays the caller's.
    ///
    /// Errors: [`NodeError`]; nothing is left running then.
    pub async fn start(options: NodeOptions, seams: Seams, transport: Arc<AnyTransport>) -> Result<Self, NodeError> {
        let meter = Meter::node(&options.name);
        let alarms = Alarms::new(seams.clock.clone(), meter.clone());
        let newest = Newest::new(options.directory.clone(), alarms.clone());
        let newest_seen = newest.watch();
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
        if let Err(error) = starting.all(&mut served).await {
            collecting.cancel();
            closed.cancel();
            for served in served.into_values() {
                abandon(&seams, Some(&served.group), &served.context.store).await;
            }
            running.shutdown().await;
            publishing.shutdown().await;
            return Err(error);
        }
        let served: AllServed = Arc::new(served);

        let gate = Gate::new(newest_seen.clone(), meter.clone());
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
        let pulse =
            Pulse { seams: seams.clone(), served: served.clone(), newest: newest_seen, alarms, meter, ready, recorded };
        tokio::spawn(pulse.run(collecting.clone()));
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
        self.newest.watch().borrow().clone()
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
        directory.check_successor_of(&before).map_err(|error| match error {
            DirectoryError::OldVersion { .. } => {
                NodeError::OldDirectory { path: path.clone(), problem: error.to_string() }
            }
            error => refused(error.to_string()),
        })?;
        directory.check_valid(self.seams.clock.now()).map_err(|error| refused(error.to_string()))?;
        for (name, served) in self.served.iter() {
            let in_force = served.context.in_force.borrow().clone();
            directory.check_keeps(&in_force, name).map_err(|error| refused(error.to_string()))?;
        }
        tracing::info!(version = directory.version, "a newer directory was read");
        self.newest.take(Arc::new(directory));
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
