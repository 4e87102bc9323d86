//! Serving an embedded transport to other processes of this machine, on a Unix socket in its folder.
//!
//! Owns the socket and what comes in over it, bounded before it is taken. Must not know what records mean.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::Embedded;
use super::proto::embedded_transport_server::{EmbeddedTransport, EmbeddedTransportServer};
use super::proto::{self, append_response, read_response};
use super::socket::{
    self, APPEND_BYTES, CONNECTION_WINDOW, READ_ANSWER_BYTES, STREAM_WINDOW, SocketError, check_private,
};
use crate::seams::{Clock, Seams};
use crate::store::records::RecordsError;
use crate::transport::{AppendError, Full, PartitionId, ReadError, Record, Topic, Transport};

/// Appends of one attached process that are under way at once.
const APPENDS_AT_ONCE: usize = 1024;
/// Calls of one attached process at once: a read for each partition that it follows, and some.
const STREAMS: u32 = 256;
/// Between two attempts to append what found no room.
const ROOM_PAUSE: Duration = Duration::from_millis(5);
/// After the system gave no connection: too many open files, most likely.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How long calls that are under way may take when the service ends.
const END_WITHIN: Duration = Duration::from_secs(2);

/// A running service. It ends with this value, and its socket with it; [`Service::stop`] waits for that.
pub struct Service {
    path: PathBuf,
    stop: CancellationToken,
    serving: Option<JoinHandle<()>>,
    clock: Arc<dyn Clock>,
    // The folder's lock: whoever has it may put a socket there, or take one away.
    _transport: Embedded,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Service {
    /// Serves the transport's folder. What a killed process left of an older socket goes. Must be called inside a runtime.
    /// Errors: [`SocketError::PathTooLong`], [`SocketError::Open`], [`SocketError::Io`].
    pub fn start(transport: &Embedded, seams: &Seams) -> Result<Self, SocketError> {
        let folder = transport.folder();
        let path = socket::path(folder)?;
        check_private(folder)?;
        let removed = match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        removed.map_err(SocketError::io(&path, "remove the socket of an ended process"))?;
        let listener = UnixListener::bind(&path).map_err(SocketError::io(&path, "listen"))?;
        let owner_alone = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, owner_alone).map_err(SocketError::io(&path, "make it its owner's alone"))?;
        let stop = CancellationToken::new();
        let calls = Calls { transport: transport.clone(), clock: seams.clock.clone(), stop: stop.clone() };
        let calls = EmbeddedTransportServer::new(calls)
            .max_decoding_message_size(APPEND_BYTES)
            .max_encoding_message_size(READ_ANSWER_BYTES);
        let server = Server::builder()
            .max_concurrent_streams(STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .add_service(calls);
        let incoming = accepted(listener, seams.clock.clone());
        let stopped = stop.clone().cancelled_owned();
        let serving = tokio::spawn(async move {
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, stopped).await {
                tracing::error!(%error, "the embedded transport is served to other processes no more");
            }
        });
        Ok(Self { path, stop, serving: Some(serving), clock: seams.clock.clone(), _transport: transport.clone() })
    }

    /// Ends it: the socket goes first, then what is under way is answered, for a short time.
    pub async fn stop(mut self) {
        self.take_socket_away();
        self.stop.cancel();
        if let Some(mut serving) = self.serving.take() {
            tokio::select! {
                _ = &mut serving => {}
                () = self.clock.sleep(END_WITHIN) => serving.abort(),
            }
        }
    }

    fn take_socket_away(&self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "the socket stays: the next to serve removes it");
            }
            _ => {}
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(serving) = self.serving.take() {
            self.take_socket_away();
            serving.abort();
        }
    }
}

/// Every connection, for ever: one that the system could not give is no end.
fn accepted(listener: UnixListener, clock: Arc<dyn Clock>) -> impl Stream<Item = io::Result<UnixStream>> {
    stream::unfold((listener, clock), |(listener, clock)| async {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => return Some((Ok(connection), (listener, clock))),
                Err(error) => {
                    tracing::warn!(%error, "no connection can be taken now; trying again");
                    clock.sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    })
}

#[derive(Clone)]
struct Calls {
    transport: Embedded,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl EmbeddedTransport for Calls {
    type TopicsStream = Answers<proto::TopicsResponse>;
    type AppendStream = Answers<proto::AppendResponse>;

    async fn topics(&self, _: Request<proto::TopicsRequest>) -> Result<Response<Self::TopicsStream>, Status> {
        let mut made = self.transport.made();
        made.mark_changed();
        let begin = (self.transport.clone(), made, self.stop.clone());
        let told = stream::unfold(begin, |(transport, mut made, stop)| async move {
            tokio::select! {
                () = stop.cancelled() => return None,
                changed = made.changed() => changed.ok()?,
            }
            let count = |partitions| u32::try_from(partitions).unwrap_or(u32::MAX);
            let topics = transport.topics().into_iter();
            let topics =
                topics.map(|(name, partitions)| proto::Topic { name, partitions: count(partitions) }).collect();
            Some((Ok(proto::TopicsResponse { topics }), (transport, made, stop)))
        });
        Ok(Response::new(Box::pin(told)))
    }

    async fn create_topic(
        &self,
        request: Request<proto::CreateTopicRequest>,
    ) -> Result<Response<proto::CreateTopicResponse>, Status> {
        let asked = request.into_inner().topic.ok_or_else(|| Status::invalid_argument("no topic"))?;
        match self.transport.create_topic(&Topic::named(&asked.name), asked.partitions).await {
            Ok(()) => Ok(Response::new(proto::CreateTopicResponse {})),
            Err(error @ RecordsError::TopicExists { .. }) => Err(Status::already_exists(error.to_string())),
            Err(error @ RecordsError::BadTopic { .. }) => Err(Status::invalid_argument(error.to_string())),
            Err(error) if error.retryable() || error == RecordsError::Closed => {
                Err(Status::unavailable(error.to_string()))
            }
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    async fn append(
        &self,
        request: Request<Streaming<proto::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let (answers, answered) = mpsc::channel(APPENDS_AT_ONCE);
        tokio::spawn(self.clone().take(request.into_inner(), answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(answered))))
    }

    async fn read(&self, request: Request<proto::ReadRequest>) -> Result<Response<proto::ReadResponse>, Status> {
        let asked = request.into_inner();
        let from = PartitionId { topic: Topic::named(&asked.topic), number: asked.partition };
        let result = match self.transport.read(from, asked.at).await {
            Ok(batch) => {
                let record = |found: crate::transport::Fetched| proto::Record {
                    offset: found.offset,
                    time_ms: found.time.0,
                    key: found.key,
                    value: found.value.unwrap_or_default(),
                };
                let records = batch.records.into_iter().map(record).collect();
                read_response::Result::Batch(proto::Batch { records, next: batch.next, low: batch.low, end: batch.end })
            }
            Err(ReadError::OutOfRange { low, end, .. }) => {
                read_response::Result::OutOfRange(proto::OutOfRange { low, end })
            }
            Err(ReadError::Refused { cause, .. }) => read_response::Result::Refused(cause),
            Err(ReadError::Absent { cause, .. }) => read_response::Result::Absent(cause),
            // It is opened again, most likely, and this reader goes on.
            Err(error @ ReadError::Closed) => read_response::Result::Absent(error.to_string()),
        };
        Ok(Response::new(proto::ReadResponse { result: Some(result) }))
    }
}

impl Calls {
    /// Takes one process's appends, in order, no more at once than there is room for answers.
    async fn take(
        self,
        mut requests: Streaming<proto::AppendRequest>,
        answers: mpsc::Sender<Result<proto::AppendResponse, Status>>,
    ) {
        loop {
            let request = tokio::select! {
                () = self.stop.cancelled() => return,
                request = requests.message() => request,
            };
            // Its end, or the end of its connection.
            let Ok(Some(request)) = request else { return };
            let Ok(place) = answers.clone().reserve_owned().await else { return };
            let to = PartitionId { topic: Topic::named(&request.topic), number: request.partition };
            let mut record = Record { key: request.key, value: request.value };
            let pending = loop {
                match self.transport.append(to.clone(), record) {
                    Ok(pending) => break pending,
                    Err(Full(back)) => record = back,
                }
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = self.clock.sleep(ROOM_PAUSE) => {}
                }
            };
            let number = request.number;
            tokio::spawn(async move {
                let result = match pending.await {
                    Ok(ack) => append_response::Result::Offset(ack.offset),
                    Err(AppendError::Refused { cause, .. }) => append_response::Result::Refused(cause),
                    Err(AppendError::Absent { cause, .. }) => append_response::Result::Absent(cause),
                    Err(error @ AppendError::Closed) => append_response::Result::Absent(error.to_string()),
                };
                place.send(Ok(proto::AppendResponse { number, result: Some(result) }));
            });
        }
    }
}
