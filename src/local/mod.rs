//! Several nodes of one environment together in this process, over one transport, each of which can be stopped and started:
//! what `sealcast demo`, `sealcast dev` and [`crate::testing`] stand on.
//!
//! Owns starting them, watching over them and ending them. Must not know what is sent, nor who asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::core::directory::Directory;
use crate::core::id::NodeName;
use crate::node::{Node, NodeError, NodeOptions};
use crate::seams::Seams;
use crate::transport::admin::{self, Layout, TopicPlan};
use crate::transport::{AnyTransport, Topic, TransportError};

/// How long the nodes may take to find each other.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// What goes wrong with nodes that run together.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LocalError {
    /// There is none of this name.
    #[error("there is no node {0}")]
    NoNode(NodeName),
    /// A node cannot be started.
    #[error("node {node} cannot start: {cause}")]
    Start {
        /// Which one.
        node: NodeName,
        /// Why.
        cause: Arc<NodeError>,
    },
    /// A node that ran has failed for good.
    #[error("node {node} failed: {cause}")]
    Failed {
        /// Which one.
        node: NodeName,
        /// How.
        cause: Arc<NodeError>,
    },
    /// The nodes run, and could not do their work in time.
    #[error("not ready in time: {waits}")]
    NotReady {
        /// What each of them waits for.
        waits: String,
    },
    /// No free port of this machine could be had.
    #[error("no free port on this machine: {cause}")]
    Ports {
        /// What the system said.
        cause: String,
    },
}

impl LocalError {
    /// Whether the same call can succeed later by itself.
    pub fn retryable(&self) -> bool {
        match self {
            Self::NoNode(_) => false,
            Self::Start { cause, .. } | Self::Failed { cause, .. } => cause.retryable(),
            Self::NotReady { .. } | Self::Ports { .. } => true,
        }
    }
}

/// Nodes that run in this process. Dropping this leaves their tasks running until the runtime ends; see
/// [`Nodes::shutdown`].
pub struct Nodes {
    options: BTreeMap<NodeName, NodeOptions>,
    transport: Arc<AnyTransport>,
    seams: Seams,
    running: BTreeMap<NodeName, Running>,
    failed: mpsc::UnboundedSender<(NodeName, Arc<NodeError>)>,
    failures: mpsc::UnboundedReceiver<(NodeName, Arc<NodeError>)>,
}

/// A node, and who waits for its failure.
struct Running {
    node: Arc<Node>,
    watching: JoinHandle<()>,
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.running.keys()).finish()
    }
}

impl Nodes {
    /// Starts all of them and waits until they can do their work. On an error none is left running. Errors:
    /// [`LocalError::Start`], [`LocalError::Failed`], [`LocalError::NotReady`].
    pub async fn start(
        options: impl IntoIterator<Item = NodeOptions>,
        transport: Arc<AnyTransport>,
        seams: &Seams,
    ) -> Result<Self, LocalError> {
        let (failed, failures) = mpsc::unbounded_channel();
        let options: BTreeMap<_, _> = options.into_iter().map(|options| (options.name.clone(), options)).collect();
        let mut nodes = Self { options, transport, seams: seams.clone(), running: BTreeMap::new(), failed, failures };
        match nodes.start_all().await {
            Ok(()) => Ok(nodes),
            Err(error) => {
                nodes.shutdown().await;
                Err(error)
            }
        }
    }

    async fn start_all(&mut self) -> Result<(), LocalError> {
        // All at once: a group is founded when they see each other.
        let starting = self.options.values().map(|options| self.begin(options));
        let mut outcome = Ok(());
        for (name, begun) in self.options.keys().cloned().zip(join_all(starting).await).collect::<Vec<_>>() {
            match begun {
                Ok(node) => self.watch(name, node),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome?;
        tokio::select! {
            error = Self::failure_of(&mut self.failures) => Err(error),
            ready = ready(&self.running, &self.seams) => ready,
        }
    }

    async fn begin(&self, options: &NodeOptions) -> Result<Node, LocalError> {
        let begun = Node::start(options.clone(), self.seams.clone(), self.transport.clone()).await;
        begun.map_err(|cause| LocalError::Start { node: options.name.clone(), cause: Arc::new(cause) })
    }

    fn watch(&mut self, name: NodeName, node: Node) {
        let node = Arc::new(node);
        let (watched, tell, of) = (node.clone(), self.failed.clone(), name.clone());
        let watching = tokio::spawn(async move {
            // When all ended there is nobody to tell.
            let _ = tell.send((of, watched.failed().await));
        });
        self.running.insert(name, Running { node, watching });
    }

    /// Starts one node that does not run, on the data that it has; [`Nodes::ready`] waits until it can work. Errors:
    /// [`LocalError::NoNode`], [`LocalError::Start`].
    pub async fn start_node(&mut self, name: &NodeName) -> Result<(), LocalError> {
        let options = self.options.get(name).ok_or_else(|| LocalError::NoNode(name.clone()))?;
        if self.running.contains_key(name) {
            return Ok(());
        }
        let node = self.begin(options).await?;
        self.watch(name.clone(), node);
        Ok(())
    }

    /// Stops one node: it drains and ends; its data stays. One that does not run is no error. Errors:
    /// [`LocalError::NoNode`].
    pub async fn stop_node(&mut self, name: &NodeName) -> Result<(), LocalError> {
        if !self.options.contains_key(name) {
            return Err(LocalError::NoNode(name.clone()));
        }
        if let Some(running) = self.running.remove(name) {
            running.watching.abort();
            running.node.shutdown().await;
        }
        Ok(())
    }

    /// All names, of those that do not run too.
    pub fn names(&self) -> impl Iterator<Item = &NodeName> {
        self.options.keys()
    }

    /// Those that run.
    pub fn running(&self) -> impl Iterator<Item = &Node> {
        self.running.values().map(|running| &*running.node)
    }

    /// Waits until every node that runs can do its work. Errors: [`LocalError::NotReady`].
    pub async fn ready(&self) -> Result<(), LocalError> {
        ready(&self.running, &self.seams).await
    }

    /// Waits until a node has failed for good, and says how.
    pub async fn failure(&mut self) -> LocalError {
        Self::failure_of(&mut self.failures).await
    }

    async fn failure_of(failures: &mut mpsc::UnboundedReceiver<(NodeName, Arc<NodeError>)>) -> LocalError {
        match failures.recv().await {
            Some((node, cause)) => LocalError::Failed { node, cause },
            None => std::future::pending().await,
        }
    }

    /// Ends all of them, at the same time.
    pub async fn shutdown(mut self) {
        let ending = std::mem::take(&mut self.running).into_values().map(|running| async move {
            running.watching.abort();
            running.node.shutdown().await;
        });
        join_all(ending).await;
    }
}

async fn ready(running: &BTreeMap<NodeName, Running>, seams: &Seams) -> Result<(), LocalError> {
    let all = running.values().map(|running| async {
        // A node that is gone is told by its failure.
        let _ = running.node.readiness().wait_for(|readiness| readiness.ready()).await;
    });
    tokio::select! {
        _ = join_all(all) => Ok(()),
        () = seams.clock.sleep(READY_WITHIN) => {
            let waits = running.iter().flat_map(|(name, running)| {
                let waiting = running.node.readiness().borrow().waiting.clone();
                waiting.into_iter().map(move |(what, why)| format!("node {name}: {what}: {why}"))
            });
            Err(LocalError::NotReady { waits: waits.collect::<Vec<_>>().join("; ") })
        }
    }
}

/// Makes the topics of an environment, each as an embedded transport needs it; those that are there stay. Errors:
/// [`TransportError`].
pub async fn make_topics(transport: &AnyTransport, directory: &Directory) -> Result<(), TransportError> {
    let segments = directory.destinations.keys().map(|name| Topic::segments(&directory.name, name));
    for topic in segments.chain([Topic::notices(&directory.name)]) {
        let plan = TopicPlan { topic, layout: Layout::PinnedToEach, retention: Duration::MAX };
        admin::init(transport, &plan).await?;
    }
    Ok(())
}

/// Addresses on loopback with ports that were free a moment ago: any (`from` is 0), or the first from there on whose
/// `beside`-th port behind is free too. Errors: [`LocalError::Ports`].
pub fn free_addresses(
    names: impl IntoIterator<Item = NodeName>,
    from: u16,
    beside: u16,
) -> Result<BTreeMap<NodeName, String>, LocalError> {
    let bind = |port| std::net::TcpListener::bind(("127.0.0.1", port));
    let failed = |error: std::io::Error| LocalError::Ports { cause: error.to_string() };
    let (mut held, mut addresses, mut next) = (Vec::new(), BTreeMap::new(), from);
    for name in names {
        // All are held until all are known, so that no two are the same.
        let listener = loop {
            match (bind(next), next.checked_add(beside)) {
                (Ok(listener), Some(other)) if from == 0 || bind(other).is_ok() => break listener,
                (Err(error), _) if from == 0 => return Err(failed(error)),
                _ => {
                    let exhausted = || LocalError::Ports { cause: format!("none from {from} on") };
                    next = next.checked_add(1).ok_or_else(exhausted)?;
                }
            }
        };
        addresses.insert(name, listener.local_addr().map_err(failed)?.to_string());
        held.push(listener);
        if from != 0 {
            next = next.saturating_add(1);
        }
    }
    Ok(addresses)
}
