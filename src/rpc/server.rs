//! Takes connections: TLS first, each handshake on its own so that a slow one holds up nobody, then gRPC. Every request
//! carries its [`Caller`].
//!
//! Must not know what the services do.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::service::Routes;
use tonic::transport::server::Connected;

use super::DirectoryWatch;
use super::access::{Caller, PeerIdentity};
use super::client::explain;
use super::proto::{peer_server, reader_server};
use super::tls::{Credentials, TlsError, key_of};
use crate::core::limits;
use crate::seams::{Clock, Connection, Listener};
use crate::telemetry::{Meter, names};

/// Longest time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Most handshakes at once: each costs memory and a key exchange before its key is known.
const HANDSHAKES: usize = 256;
/// How long calls may go on after the stop, before their connections are cut.
const DRAIN: Duration = Duration::from_secs(10);
/// After an accept that failed (no file descriptors, usually), how long until the next.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);
/// A peer that answers no ping for `KEEPALIVE_TIMEOUT` is gone.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 windows: what a peer may send before it is read. Together with `STREAMS` they bound a connection's memory.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const STREAMS: u32 = 256;

/// Why serving ended other than by the stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The server failed.
    #[error("the gRPC server failed: {cause}")]
    Failed {
        /// What it said.
        cause: String,
    },
}

impl ServeError {
    /// Whether serving again can help.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }
}

/// The Peer service with its limits. [`Routes::new`] and `add_service` take it.
pub fn peer_service<T: peer_server::Peer>(service: T) -> peer_server::PeerServer<T> {
    peer_server::PeerServer::new(service)
        .max_decoding_message_size(limits::RPC_BYTES)
        .max_encoding_message_size(limits::RPC_BYTES)
}

/// The Reader service with its limits.
pub fn reader_service<T: reader_server::Reader>(service: T) -> reader_server::ReaderServer<T> {
    reader_server::ReaderServer::new(service)
        .max_decoding_message_size(limits::RPC_BYTES)
        .max_encoding_message_size(limits::RPC_BYTES)
}

/// Serves until `stop`: then no connection and no call is taken any more, calls that run have 10 s to end, and what is
/// left is cut. Errors: [`ServeError`].
pub async fn serve(
    listener: Box<dyn Listener>,
    credentials: &Credentials,
    directory: DirectoryWatch,
    services: Routes,
    clock: Arc<dyn Clock>,
    meter: Meter,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let cut = CancellationToken::new();
    let _cut_at_the_end = cut.clone().drop_guard();
    let (give, take) = mpsc::channel(HANDSHAKES);
    let door = Door {
        acceptor: TlsAcceptor::from(credentials.server(directory.clone())?),
        directory,
        clock: clock.clone(),
        meter: meter.clone(),
        cut,
        give,
    };
    let calls = meter.clone();
    let count = move |request: axum::http::Request<tonic::body::Body>| {
        calls.count_as(names::RPC_CALLS, "method", method(request.uri().path()));
        request
    };
    let serving = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .layer(tower::util::MapRequestLayer::new(count))
        .add_routes(services)
        .serve_with_incoming_shutdown(ReceiverStream::new(take), stop.clone().cancelled_owned());
    let patience = async {
        stop.cancelled().await;
        clock.sleep(DRAIN).await;
        tracing::info!("calls still run after the time to drain: their connections are cut");
    };
    let opening = async {
        door.open(listener, stop.clone()).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = serving => ended.map_err(|error| ServeError::Failed { cause: explain(&error) }),
        () = opening => Ok(()),
        () = patience => Ok(()),
    }
}

/// The method's name of a path; `unknown` for one that no service has, so that callers cannot make series.
fn method(path: &str) -> &'static str {
    const METHODS: [&str; 13] = [
        "/sealcast.v1.Peer/RaftCall",
        "/sealcast.v1.Peer/Probe",
        "/sealcast.v1.Peer/Report",
        "/sealcast.v1.Peer/FetchManifest",
        "/sealcast.v1.Peer/FetchBody",
        "/sealcast.v1.Peer/ReadIndex",
        "/sealcast.v1.Peer/OfferDirectory",
        "/sealcast.v1.Peer/Acknowledge",
        "/sealcast.v1.Reader/Subscribe",
        "/sealcast.v1.Reader/Get",
        "/sealcast.v1.Reader/GetByKey",
        "/sealcast.v1.Reader/Status",
        "/sealcast.v1.Reader/NodeStatus",
    ];
    let known = METHODS.iter().find(|known| **known == path);
    known.and_then(|known| known.rsplit('/').next()).unwrap_or("unknown")
}

/// Turns connections into callers.
#[derive(Clone)]
struct Door {
    acceptor: TlsAcceptor,
    directory: DirectoryWatch,
    clock: Arc<dyn Clock>,
    meter: Meter,
    cut: CancellationToken,
    give: mpsc::Sender<Result<Accepted, io::Error>>,
}

impl Door {
    async fn open(self, mut listener: Box<dyn Listener>, stop: CancellationToken) {
        let permits = Arc::new(Semaphore::new(HANDSHAKES));
        let mut handshakes = JoinSet::new();
        loop {
            let (connection, address) = tokio::select! {
                () = stop.cancelled() => return,
                _ = handshakes.join_next(), if !handshakes.is_empty() => continue,
                next = listener.accept() => match next {
                    Ok(next) => next,
                    Err(error) => {
                        tracing::warn!(%error, "no connection can be taken now; trying again");
                        tokio::select! {
                            () = stop.cancelled() => return,
                            () = self.clock.sleep(ACCEPT_AGAIN) => continue,
                        }
                    }
                },
            };
            let Ok(permit) = permits.clone().try_acquire_owned() else {
                tracing::warn!(%address, "too many handshakes at once: connection closed");
                self.meter.count_as(names::RPC_HANDSHAKES, "outcome", "refused");
                continue;
            };
            let door = self.clone();
            handshakes.spawn(async move {
                let _permit = permit;
                door.admit(connection, address).await;
            });
        }
    }

    async fn admit(&self, connection: Box<dyn Connection>, address: SocketAddr) {
        let began = self.clock.monotonic();
        let handshake = async {
            let stream = self.acceptor.accept(connection).await?;
            self.caller(&stream, address).map(|caller| (stream, caller)).map_err(io::Error::other)
        };
        let outcome = tokio::select! {
            outcome = handshake => outcome,
            () = self.clock.sleep(HANDSHAKE) => Err(io::ErrorKind::TimedOut.into()),
        };
        let word = match &outcome {
            Ok((_, Caller { identity: PeerIdentity::Node(_), .. })) => "node",
            Ok((_, Caller { identity: PeerIdentity::Reader(_), .. })) => "reader",
            Err(error) if error.kind() == io::ErrorKind::TimedOut => "timed-out",
            Err(_) => "refused",
        };
        self.meter.count_as(names::RPC_HANDSHAKES, "outcome", word);
        match outcome {
            Ok((stream, caller)) => {
                self.meter.took(names::RPC_HANDSHAKE_SECONDS, self.clock.monotonic().saturating_sub(began));
                tracing::debug!(%address, caller = %caller.identity, key_exchange = %caller.key_exchange, "connected");
                let connections = self.meter.gauge(names::RPC_CONNECTIONS);
                connections.increment(1.0);
                let cut = Box::pin(self.cut.clone().cancelled_owned());
                let accepted = Accepted { stream, caller, cut, connections };
                // The server is gone when nobody takes it; the connection closes with it.
                let _ = self.give.send(Ok(accepted)).await;
            }
            Err(error) => tracing::info!(%address, %error, "connection refused"),
        }
    }

    fn caller<IO>(
        &self,
        stream: &tokio_rustls::server::TlsStream<IO>,
        address: SocketAddr,
    ) -> Result<Caller, rustls::Error> {
        let session = stream.get_ref().1;
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let key = key_of(certificate.ok_or(rustls::Error::NoCertificatesPresented)?)?;
        let identity = PeerIdentity::of(&self.directory.borrow(), &key)
            .ok_or_else(|| rustls::Error::General("the key left the directory during the handshake".to_owned()))?;
        let group = session.negotiated_key_exchange_group();
        let key_exchange = group.map(|group| format!("{:?}", group.name())).unwrap_or_default();
        Ok(Caller { key, identity, address, key_exchange })
    }
}

/// A connection whose caller is known. Fails all reading once the server cuts it.
struct Accepted {
    stream: tokio_rustls::server::TlsStream<Box<dyn Connection>>,
    caller: Caller,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    connections: metrics::Gauge,
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.connections.decrement(1.0);
    }
}

impl Connected for Accepted {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A listener for plain HTTP: the health pages.
pub struct PlainListener {
    listener: Box<dyn Listener>,
    clock: Arc<dyn Clock>,
}

impl PlainListener {
    /// Gives what `listener` accepts to axum.
    pub fn new(listener: Box<dyn Listener>, clock: Arc<dyn Clock>) -> Self {
        Self { listener, clock }
    }
}

impl axum::serve::Listener for PlainListener {
    type Io = Box<dyn Connection>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::warn!(%error, "no connection can be taken now; trying again");
                    self.clock.sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.address()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_counted_by_its_name() {
        let files = [
            ("Peer", include_str!("../../proto/sealcast/v1/peer.proto")),
            ("Reader", include_str!("../../proto/sealcast/v1/reader.proto")),
        ];
        for (service, text) in files {
            for line in text.lines() {
                let Some(rest) = line.trim().strip_prefix("rpc ") else { continue };
                let name = rest.split('(').next().unwrap();
                assert_eq!(method(&format!("/sealcast.v1.{service}/{name}")), name);
            }
        }
        assert_eq!(method("/sealcast.v1.Peer/Other"), "unknown");
    }
}
