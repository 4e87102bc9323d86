//! An embedded transport that another process of this machine has open, reached through its socket. It goes away when that
//! process ends, and is back when a process serves the folder again.
//!
//! Owns the connection, its credit, and what waits for an answer. Must not open the folder's files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::proto::embedded_transport_client::EmbeddedTransportClient;
use super::proto::{self, append_response, read_response};
use super::socket::{
    APPEND_BYTES, CONNECTION_WINDOW, READ_ANSWER_BYTES, STREAM_WINDOW, SocketError, check_served, nobody, path, real,
};
use super::{CREDIT_BYTES, missing, partitions};
use crate::core::id::Time;
use crate::seams::Seams;
use crate::transport::contract::{
    self, Ack, AppendError, Batch, Fetched, Full, Offset, Partition, PartitionId, Pending, READ_WAIT, ReadError,
    Record, Topic, Transport, Trouble,
};

/// Between two attempts to connect: doubles from the first to the last.
const AGAIN_FIRST: Duration = Duration::from_millis(20);
const AGAIN_LAST: Duration = Duration::from_millis(500);
/// A process that answers no ping for `KEEPALIVE_TIMEOUT` is gone, as one is that was stopped.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The transport. Clones share it; with the last one the connection ends.
#[derive(Clone)]
pub struct Attached {
    shared: Arc<Shared>,
    _running: Arc<DropGuard>,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached").field("folder", &self.shared.folder).finish_non_exhaustive()
    }
}

struct Shared {
    folder: PathBuf,
    path: PathBuf,
    seams: Seams,
    link: Mutex<Link>,
    /// Whether there is a session.
    up: watch::Sender<bool>,
}

#[derive(Default)]
struct Link {
    session: Option<Session>,
    /// Sessions until now: another process may serve another folder's log in each.
    sessions: u64,
    topics: BTreeMap<Topic, Arc<[Partition]>>,
    /// The next append's number; never used twice, so that no answer is taken for another's.
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// Bytes that wait for an answer, of each partition that has any.
    credit: BTreeMap<PartitionId, usize>,
    closed: bool,
}

/// A connection that stands.
struct Session {
    client: Client,
    appends: mpsc::UnboundedSender<proto::AppendRequest>,
}

type Client = EmbeddedTransportClient<Channel>;

/// An append without an answer.
struct Waiting {
    to: PartitionId,
    size: usize,
    began: Duration,
    fulfil: oneshot::Sender<Result<Ack, AppendError>>,
}

impl Attached {
    /// Reaches the process that serves this folder. Later it may end and come back; to begin with it must be there. Must be
    /// called inside a runtime. Errors: [`SocketError::NobodyServes`], [`SocketError::PathTooLong`],
    /// [`SocketError::Io`], [`SocketError::NoRuntime`].
    pub fn open(folder: &Path, seams: &Seams) -> Result<Self, SocketError> {
        check_served(folder)?;
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| SocketError::NoRuntime)?;
        let shared = Arc::new(Shared {
            folder: real(folder),
            path: path(folder)?,
            seams: seams.clone(),
            link: Mutex::default(),
            up: watch::Sender::new(false),
        });
        let stop = CancellationToken::new();
        runtime.spawn(shared.clone().run(stop.clone()));
        Ok(Self { shared, _running: Arc::new(stop.drop_guard()) })
    }

    /// Waits shortly until the connection stands and the topics are known. Errors: [`SocketError::NobodyServes`].
    pub async fn ready(&self) -> Result<(), SocketError> {
        self.shared.client().await.map(drop).ok_or_else(|| self.shared.away())
    }

    /// Makes a topic, durably; `false` when it is there already. Errors: [`SocketError::Served`].
    pub async fn create_topic(&self, topic: &Topic, partitions: u32) -> Result<bool, SocketError> {
        let Some((mut client, _)) = self.shared.client().await else { return Err(self.shared.away()) };
        let topic = proto::Topic { name: topic.as_str().to_owned(), partitions };
        match client.create_topic(proto::CreateTopicRequest { topic: Some(topic) }).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::AlreadyExists => Ok(false),
            Err(status) => Err(SocketError::Served {
                folder: self.shared.folder.clone(),
                cause: status.message().to_owned(),
                retryable: status.code() == Code::Unavailable,
            }),
        }
    }
}

impl Shared {
    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn away(&self) -> SocketError {
        nobody(&self.folder)
    }

    /// Keeps a session as long as anybody needs the transport.
    async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut pause = AGAIN_FIRST;
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => break,
                ended = self.session() => ended,
            };
            if self.down() {
                pause = AGAIN_FIRST;
                tracing::warn!(folder = %self.folder.display(), cause = %ended, "the process that serves it is gone");
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.seams.clock.sleep(pause) => {}
            }
            pause = (pause * 2).min(AGAIN_LAST);
        }
        self.link().closed = true;
        self.down();
    }

    async fn connect(&self) -> Result<Client, tonic::transport::Error> {
        let path = self.path.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://embedded.invalid")
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .connect_with_connector(connector)
            .await?;
        Ok(Client::new(channel).max_decoding_message_size(READ_ANSWER_BYTES).max_encoding_message_size(APPEND_BYTES))
    }

    /// One session from its beginning to its end; why it ended.
    async fn session(&self) -> String {
        let said = |status: &Status| status.message().to_owned();
        const GONE: &str = "it ended the connection";
        let mut client = match self.connect().await {
            Ok(client) => client,
            Err(error) => return error.to_string(),
        };
        let mut topics = match client.topics(proto::TopicsRequest {}).await {
            Ok(response) => response.into_inner(),
            Err(status) => return said(&status),
        };
        let first = match topics.message().await {
            Ok(Some(first)) => first,
            Ok(None) => return GONE.to_owned(),
            Err(status) => return said(&status),
        };
        let (appends, outgoing) = mpsc::unbounded_channel();
        let mut answers = match client.append(UnboundedReceiverStream::new(outgoing)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return said(&status),
        };
        {
            let mut link = self.link();
            link.topics = known(first);
            link.session = Some(Session { client, appends });
            link.sessions += 1;
        }
        self.up.send_replace(true);
        loop {
            tokio::select! {
                told = topics.message() => match told {
                    Ok(Some(told)) => self.link().topics = known(told),
                    Ok(None) => return GONE.to_owned(),
                    Err(status) => return said(&status),
                },
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => self.answered(answer),
                    Ok(None) => return GONE.to_owned(),
                    Err(status) => return said(&status),
                },
            }
        }
    }

    /// Ends the session, if there is one: whether there was. Every append without an answer may be there or not.
    fn down(&self) -> bool {
        self.up.send_replace(false);
        let (was, waiting, closed) = {
            let mut link = self.link();
            for (topic, known) in &mut link.topics {
                *known = partitions(topic, known.len(), false);
            }
            link.credit.clear();
            (link.session.take().is_some(), std::mem::take(&mut link.waiting), link.closed)
        };
        for Waiting { to, fulfil, .. } in waiting.into_values() {
            let cause = "the process that serves the embedded transport is gone".to_owned();
            let error = if closed { AppendError::Closed } else { AppendError::Absent { partition: to, cause } };
            // The one who appended may have stopped waiting.
            let _ = fulfil.send(Err(error));
        }
        was
    }

    fn answered(&self, answer: proto::AppendResponse) {
        let Some(waiting) = self.link().take(answer.number) else { return };
        let partition = waiting.to;
        let answer = match answer.result {
            Some(append_response::Result::Offset(offset)) => {
                Ok(Ack { offset, took: self.seams.clock.monotonic().saturating_sub(waiting.began) })
            }
            Some(append_response::Result::Absent(cause)) => Err(AppendError::Absent { partition, cause }),
            Some(append_response::Result::Refused(cause)) => Err(AppendError::Refused { partition, cause }),
            None => Err(AppendError::Absent { partition, cause: "an answer without a result".to_owned() }),
        };
        // The one who appended may have stopped waiting.
        let _ = waiting.fulfil.send(answer);
    }

    /// The client of the session and the session's number, waiting shortly for one.
    async fn client(&self) -> Option<(Client, u64)> {
        let mut up = self.up.subscribe();
        tokio::select! {
            biased;
            // The sender is this value's.
            _ = up.wait_for(|up| *up) => {}
            () = self.seams.clock.sleep(READ_WAIT) => {}
        }
        let link = self.link();
        link.session.as_ref().map(|session| (session.client.clone(), link.sessions))
    }
}

impl Link {
    /// What waits for this answer, and its credit back.
    fn take(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&number)?;
        if let Some(used) = self.credit.get_mut(&waiting.to) {
            *used = used.saturating_sub(waiting.size);
            if *used == 0 {
                self.credit.remove(&waiting.to);
            }
        }
        Some(waiting)
    }
}

fn known(told: proto::TopicsResponse) -> BTreeMap<Topic, Arc<[Partition]>> {
    let known = |told: proto::Topic| {
        let topic = Topic::named(&told.name);
        let partitions = partitions(&topic, told.partitions as usize, true);
        (topic, partitions)
    };
    told.topics.into_iter().map(known).collect()
}

fn failed(error: AppendError) -> Pending<Ack> {
    let (fulfil, pending) = Pending::new();
    // The receiver is in `pending`.
    let _ = fulfil.send(Err(error));
    pending
}

impl Transport for Attached {
    fn partitions(&self, topic: &Topic) -> Arc<[Partition]> {
        self.shared.link().topics.get(topic).cloned().unwrap_or_else(|| Arc::from([]))
    }

    fn trouble(&self, topic: &Topic) -> Option<Trouble> {
        let link = self.shared.link();
        match (&link.session, link.topics.contains_key(topic)) {
            (None, _) => Some(Trouble { cause: self.shared.away().to_string(), missing: false }),
            (Some(_), false) => Some(missing(topic)),
            (Some(_), true) => None,
        }
    }

    fn append(&self, to: PartitionId, record: Record) -> Result<Pending<Ack>, Full<Record>> {
        if let Err(cause) = contract::fits(&record) {
            return Ok(failed(AppendError::Refused { partition: to, cause }));
        }
        let size = record.key.len() + record.value.len();
        let mut link = self.shared.link();
        let Some(session) = &link.session else {
            return Ok(failed(AppendError::Absent { partition: to, cause: self.shared.away().to_string() }));
        };
        let used = link.credit.get(&to).copied().unwrap_or(0);
        // One record always fits, however large.
        if used > 0 && used + size > CREDIT_BYTES {
            return Err(Full(record));
        }
        let request = proto::AppendRequest {
            number: link.next,
            topic: to.topic.as_str().to_owned(),
            partition: to.number,
            key: record.key,
            value: record.value,
        };
        if session.appends.send(request).is_err() {
            let cause = "the connection is ending".to_owned();
            return Ok(failed(AppendError::Absent { partition: to, cause }));
        }
        let (fulfil, pending) = Pending::new();
        let number = link.next;
        link.next += 1;
        *link.credit.entry(to.clone()).or_default() += size;
        let began = self.shared.seams.clock.monotonic();
        link.waiting.insert(number, Waiting { to, size, began, fulfil });
        Ok(pending)
    }

    async fn read(&self, from: PartitionId, at: Offset) -> Result<Batch, ReadError> {
        let absent = |cause: String| ReadError::Absent { partition: from.clone(), cause };
        let Some((mut client, session)) = self.shared.client().await else {
            return Err(absent(self.shared.away().to_string()));
        };
        let request = proto::ReadRequest { topic: from.topic.as_str().to_owned(), partition: from.number, at };
        let answer = client.read(request).await.map_err(|status| absent(status.message().to_owned()))?;
        match answer.into_inner().result {
            Some(read_response::Result::Batch(batch)) => {
                let fetched = |record: proto::Record| Fetched {
                    offset: record.offset,
                    time: Time(record.time_ms),
                    key: record.key,
                    value: Some(record.value),
                };
                let records = batch.records.into_iter().map(fetched).collect();
                Ok(Batch { records, next: batch.next, low: batch.low, end: batch.end, session })
            }
            Some(read_response::Result::OutOfRange(proto::OutOfRange { low, end })) => {
                Err(ReadError::OutOfRange { partition: from, asked: at, low, end })
            }
            Some(read_response::Result::Refused(cause)) => Err(ReadError::Refused { partition: from, cause }),
            Some(read_response::Result::Absent(cause)) => Err(absent(cause)),
            None => Err(absent("an answer without a result".to_owned())),
        }
    }
}
