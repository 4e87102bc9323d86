//! Makes connections: to exactly the node that is meant, by its key, and again when one is lost. A channel is lazy: it
//! connects at the first call, and a call on a broken one connects anew.
//!
//! Must not retry calls: whoever calls knows whether that is harmless.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::DirectoryWatch;
use super::proto::{peer_client::PeerClient, reader_client::ReaderClient};
use super::tls::{self, Credentials, TlsError, server_name};
use crate::core::id::{NodeName, VerifyingKeyBytes};
use crate::core::limits;
use crate::seams::{Clock, Connection, Network, Seams};
use crate::telemetry::{Meter, names};

/// Longest time for TCP and handshake together.
const CONNECT: Duration = Duration::from_secs(5);
/// After a connection that failed, how long calls fail at once instead of connecting: doubles from the first to the last.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LAST: Duration = Duration::from_secs(1);
/// A node that answers no ping for `KEEPALIVE_TIMEOUT` is gone.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Room for what a node says first; beyond it bytes are read where they are wanted.
const FIRST_WORDS: usize = 4096;
/// HTTP/2 windows: what a node may send before it is read.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// Why a node cannot be reached. As the cause of a [`Status`] it is of code UNAVAILABLE.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The directory does not list it.
    #[error("node {node} is not in the directory")]
    Unknown {
        /// Which node.
        node: NodeName,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No connection, or a handshake that failed.
    #[error("node {node} at {address}: {cause}")]
    Unreachable {
        /// Which node.
        node: NodeName,
        /// Where the directory says that it is.
        address: String,
        /// What the network or TLS said.
        cause: String,
    },
    /// The node does not let this key in: the directory in force there does not list it, or not yet.
    #[error(
        "node {node} at {address} does not let this key in: the directory in force there does not list it (`sealcast \
         directory status` shows which one that is)"
    )]
    Unlisted {
        /// Which node.
        node: NodeName,
        /// Where the directory says that it is.
        address: String,
    },
    /// The last attempt failed a moment ago.
    #[error("{last}; not tried again yet")]
    BackingOff {
        /// Why it failed.
        last: Box<DialError>,
    },
}

impl DialError {
    /// Whether the same node can be reached later by itself.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Unlisted { .. } | Self::BackingOff { .. })
    }
}

/// Connects to the nodes of the directory as one holder of a key. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
}

struct Shared {
    network: Arc<dyn Network>,
    clock: Arc<dyn Clock>,
    credentials: Credentials,
    directory: DirectoryWatch,
    meter: Meter,
    channels: Mutex<BTreeMap<NodeName, Dialed>>,
}

/// A channel, and the entry of the directory that it was made for.
struct Dialed {
    address: String,
    key: VerifyingKeyBytes,
    channel: Channel,
}

impl Dialer {
    /// Connects as the holder of `credentials`.
    pub fn new(seams: &Seams, credentials: Credentials, directory: DirectoryWatch, meter: Meter) -> Self {
        let shared = Shared {
            network: seams.network.clone(),
            clock: seams.clock.clone(),
            credentials,
            directory,
            meter,
            channels: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The channel to a node, shared by all who ask; made anew when the directory gives the node another address or key.
    /// Must be called inside a runtime. Errors: [`DialError::Unknown`], [`DialError::Tls`].
    pub fn connect(&self, node: &NodeName) -> Result<Channel, DialError> {
        let directory = self.shared.directory.borrow().clone();
        let mut channels = self.shared.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = directory.nodes.get(node) else {
            channels.remove(node);
            return Err(DialError::Unknown { node: node.clone() });
        };
        if let Some(dialed) = channels.get(node)
            && dialed.address == entry.address
            && dialed.key == entry.tls
        {
            return Ok(dialed.channel.clone());
        }
        let channel = self.channel(node, &entry.address)?;
        let dialed = Dialed { address: entry.address.clone(), key: entry.tls, channel: channel.clone() };
        channels.insert(node.clone(), dialed);
        Ok(channel)
    }

    /// The Peer service of a node, with its limits. Errors: as [`Dialer::connect`].
    pub fn peer(&self, node: &NodeName) -> Result<PeerClient<Channel>, DialError> {
        // No limit on what is sent: the node refuses it by name, where a limit here would only break the stream.
        Ok(PeerClient::new(self.connect(node)?).max_decoding_message_size(limits::RPC_BYTES))
    }

    /// The Reader service of a node, with its limits. Errors: as [`Dialer::connect`].
    pub fn reader(&self, node: &NodeName) -> Result<ReaderClient<Channel>, DialError> {
        Ok(ReaderClient::new(self.connect(node)?).max_decoding_message_size(limits::RPC_BYTES))
    }

    /// Awaits a call, at most `limit`. Errors: the call's, or DEADLINE_EXCEEDED.
    pub async fn within<T>(&self, limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        tokio::select! {
            outcome = call => outcome,
            () = self.shared.clock.sleep(limit) => {
                Err(Status::deadline_exceeded(format!("no answer within {} ms", limit.as_millis())))
            }
        }
    }

    fn channel(&self, node: &NodeName, address: &str) -> Result<Channel, DialError> {
        let refused = |error: tonic::transport::Error| TlsError::Settings { cause: explain(&error) };
        // A node's name is a DNS label; it is only what HTTP/2 wants as authority.
        let endpoint = Endpoint::from_shared(format!("http://{node}"))
            .map_err(refused)?
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let line = Arc::new(Line {
            node: node.clone(),
            address: address.to_owned(),
            tls: TlsConnector::from(self.shared.credentials.client(node.clone(), self.shared.directory.clone())?),
            network: self.shared.network.clone(),
            clock: self.shared.clock.clone(),
            meter: self.shared.meter.with("peer", node.to_string()),
            failures: Mutex::default(),
        });
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let line = line.clone();
            async move { line.connect().await.map(TokioIo::new) }
        })))
    }
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dialer(as {:?})", self.shared.credentials)
    }
}

/// How one node is reached.
struct Line {
    node: NodeName,
    address: String,
    tls: TlsConnector,
    network: Arc<dyn Network>,
    clock: Arc<dyn Clock>,
    meter: Meter,
    failures: Mutex<Failures>,
}

/// Failed attempts since the last connection.
#[derive(Default)]
struct Failures {
    count: u32,
    /// Monotonic time before which nothing is tried.
    until: Duration,
    last: Option<DialError>,
}

impl Line {
    async fn connect(&self) -> Result<BufReader<TlsStream<Box<dyn Connection>>>, DialError> {
        {
            let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(last) = failures.last.clone().filter(|_| self.clock.monotonic() < failures.until) {
                return Err(DialError::BackingOff { last: Box::new(last) });
            }
        }
        let attempt = async {
            let connection = self.network.connect(&self.address).await.map_err(nobody_there)?;
            let stream = self.tls.connect(server_name(), connection).await?;
            // In TLS 1.3 the node looks at our certificate when the handshake has ended here. The first that it says is
            // HTTP/2's settings or the alert that refuses us; who spoke before it would lose the alert to a broken pipe.
            let mut stream = BufReader::with_capacity(FIRST_WORDS, stream);
            match stream.fill_buf().await?.is_empty() {
                true => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without a word")),
                false => Ok(stream),
            }
        };
        let outcome = tokio::select! {
            outcome = attempt => outcome,
            () = self.clock.sleep(CONNECT) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
        };
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(stream) => {
                *failures = Failures::default();
                self.meter.count_as(names::RPC_CONNECTS, "outcome", "connected");
                Ok(stream)
            }
            Err(error) => {
                let wait = BACKOFF_FIRST.saturating_mul(1 << failures.count.min(8)).min(BACKOFF_LAST);
                failures.count = failures.count.saturating_add(1);
                failures.until = self.clock.monotonic().saturating_add(wait);
                self.meter.count_as(names::RPC_CONNECTS, "outcome", "failed");
                let (node, address) = (self.node.clone(), self.address.clone());
                let error = match tls::is_refusal(&error) {
                    true => DialError::Unlisted { node, address },
                    false => DialError::Unreachable { node, address, cause: unconnected(&error) },
                };
                failures.last = Some(error.clone());
                Err(error)
            }
        }
    }
}

/// Why there is no connection, for people. What lets nobody but the node in sounds like a broken certificate.
fn unconnected(error: &io::Error) -> String {
    if tls::is_stranger(error) {
        return "who answers there has another key than the directory gives the node: nodes of another environment on its \
                port, or the node's key or this directory was replaced"
            .to_owned();
    }
    error.to_string()
}

/// What is said of an address at which nobody listens.
pub const NOBODY_LISTENS: &str = "nobody listens there";

fn nobody_there(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => io::Error::new(error.kind(), format!("{NOBODY_LISTENS} ({error})")),
        _ => error,
    }
}

/// Whether the same call can succeed later, or at another node: the node was not reached, was busy, or did not answer in
/// time. Anything else is an answer.
pub fn retryable(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Aborted | Code::ResourceExhausted | Code::Cancelled => true,
        // A connection that broke under a call (also by the alert that refuses our key) is UNKNOWN with a cause.
        Code::Unknown => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

/// What tonic says of every connection that fails, beside its cause.
const NO_NEWS: &str = "transport error";

/// An error with all its causes, as one line; a [`Status`] shows its own message.
pub fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text =
        error.downcast_ref::<Status>().map_or_else(|| error.to_string(), |status| status.message().to_owned());
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if more != NO_NEWS && !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
