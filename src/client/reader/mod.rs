//! Reading what is committed: by id, by ordering key, as a feed from a cursor; and how transactions and nodes stand.
//!
//! Owns the shape of what a node gives; `ask` owns the choice of a node. Must not judge fates: a node's answer is believed
//! because the directory names its TLS key.

mod ask;

pub use ask::Statuses;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tonic::{Code, Status, Streaming};

use crate::config::{ClientConfig, ConfigError};
use crate::core::directory::Directory;
use crate::core::id::{
    DestinationName, Digest, Fate, NodeName, ParcelId, Position, SenderName, Ticket, Time, TransactionId,
};
use crate::core::sign::{PublicKey, SecretKey};
use crate::rpc::client::{Dialer, explain, retryable};
use crate::rpc::convert::{self, ConvertError};
use crate::rpc::proto;
use crate::rpc::tls::{Credentials, TlsError};
use crate::seams::Seams;
use crate::telemetry::Meter;

/// How long a node may take to begin an answer, beyond what the call itself asks to wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Why a read gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration names no reader.
    #[error("[reader]: reading needs a reader's key: name its key_file")]
    NoReader,
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The directory has no such node, or none at all for this destination.
    #[error("the directory has no node {0}")]
    NoNode(String),
    /// The log was replayed, and there is no such transaction up to this position.
    #[error("not found (looked up to position {at})")]
    NotFound {
        /// How far the node looked.
        at: Position,
    },
    /// The nodes know it, and it has no fate yet. Try again.
    #[error("it has no fate yet (looked up to position {at})")]
    Undecided {
        /// How far the node looked.
        at: Position,
    },
    /// It has another fate than committed: there is nothing to read, now or later.
    #[error("it was {fate}: there is nothing to read")]
    NotCommitted {
        /// Its fate.
        fate: Fate,
    },
    /// It was committed, and its key and bytes were erased since.
    #[error("purged: its key and bytes were erased")]
    Purged,
    /// The directory does not let this reader read it, or there is no such destination.
    #[error("not permitted: the directory does not let this reader read it, or there is no such destination")]
    NotPermitted,
    /// No node could answer now; what each said. Try again.
    #[error("unavailable: {said}")]
    Unavailable {
        /// What the nodes said.
        said: String,
    },
    /// The node refused the call.
    #[error("node {node}: {said}")]
    Refused {
        /// Which node.
        node: NodeName,
        /// What it said.
        said: String,
    },
    /// The node's answer makes no sense.
    #[error("node {node}: {cause}")]
    Answer {
        /// Which node.
        node: NodeName,
        /// What is wrong with it.
        cause: String,
    },
}

impl ReadError {
    /// Whether the same read can succeed later by itself.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Undecided { .. } => true,
            Self::Config(error) => error.retryable(),
            Self::Tls(error) => error.retryable(),
            _ => false,
        }
    }
}

/// What a read waits for before it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Freshness {
    /// Wait until the node holds everything up to this position: read your own writes.
    pub at_least: Option<Position>,
    /// Everything that was committed when the call came; fails without a majority.
    pub linearizable: bool,
    /// Longest wait for these; at most a minute, five seconds without a word.
    pub timeout: Option<Duration>,
}

impl Freshness {
    fn message(self) -> proto::Freshness {
        let consistency = if self.linearizable { proto::Consistency::Linearizable } else { proto::Consistency::Prefix };
        proto::Freshness {
            consistency: consistency.into(),
            at_least: self.at_least.map(Into::into),
            timeout_ms: self.timeout.map_or(0, |timeout| u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX)),
        }
    }

    /// A node waits this long for freshness, and once more for its bytes.
    fn patience(self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(5)).saturating_mul(2) + ANSWER_WITHIN
    }
}

/// Where a feed starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum From {
    /// At the first transaction.
    #[default]
    Start,
    /// At what is committed from now on.
    End,
    /// After this position: a cursor, portable between the destination's nodes.
    After(Position),
    /// At the last so many.
    Last(u64),
    /// At this group time.
    Since(Time),
}

/// A committed transaction without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Which transaction, where, until when.
    pub ticket: Ticket,
    /// Who sent it.
    pub sender: SenderName,
    /// Where it was committed: the cursor to go on after it.
    pub position: Position,
    /// The parcel that brought it.
    pub parcel: ParcelId,
    /// D of that parcel.
    pub digest: Digest,
    /// Group time of the entry that committed it.
    pub committed: Time,
    /// Length of the payload in bytes.
    pub payload_bytes: u64,
    /// Its ordering key.
    pub key: Option<Bytes>,
    /// The application's headers, in its order.
    pub headers: Vec<(String, Bytes)>,
    /// The payload's media type, as the application named it.
    pub content_type: Option<String>,
}

/// One message of a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A transaction begins.
    Begin(Box<Committed>),
    /// The next bytes of its payload, at most 1 MiB.
    Data(Bytes),
    /// It is whole.
    End,
    /// Everything committed up to here was given.
    Progress(Position),
}

/// Transactions as a node gives them, in the order of the log.
#[derive(Debug)]
pub struct Feed {
    node: NodeName,
    stream: Streaming<proto::ReadResponse>,
    /// What came first: by it the node was chosen.
    first: Option<proto::ReadResponse>,
    left: Option<u64>,
}

/// A node's stream, with its first message; `None` when it ended without one.
type Begun = (Option<proto::ReadResponse>, Streaming<proto::ReadResponse>);

/// How nodes are called.
type Channelled = proto::reader_client::ReaderClient<tonic::transport::Channel>;

async fn begin(response: tonic::Response<Streaming<proto::ReadResponse>>) -> Result<Begun, Status> {
    let mut stream = response.into_inner();
    Ok((stream.message().await?, stream))
}

/// Why a stream gives nothing, if its first message says so.
fn gives_nothing(node: &NodeName, (first, _): &Begun) -> Option<ReadError> {
    match first.as_ref()?.part.as_ref()? {
        proto::read_response::Part::Miss(miss) => Some(missed(node, miss)),
        _ => None,
    }
}

impl Feed {
    /// The node that gives them.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// What comes next; `None` at the end. Errors: [`ReadError`]; begin a new feed after the last whole transaction then.
    pub async fn next(&mut self) -> Result<Option<Event>, ReadError> {
        let answer = |cause: String| ReadError::Answer { node: self.node.clone(), cause };
        let message = match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.stream.message().await,
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) if self.left.is_none() => return Ok(None),
            Ok(None) => return Err(answer("the stream ended within a transaction".to_owned())),
            Err(status) => return Err(refused(&self.node, &status)),
        };
        let part = message.part.ok_or_else(|| answer("a message without a part".to_owned()))?;
        Ok(Some(match (part, self.left) {
            (proto::read_response::Part::Start(start), None) => {
                let committed = committed(start).map_err(|error| answer(error.to_string()))?;
                self.left = Some(committed.payload_bytes);
                Event::Begin(Box::new(committed))
            }
            (proto::read_response::Part::Data(data), Some(left)) if data.len() as u64 <= left => {
                self.left = Some(left - data.len() as u64);
                Event::Data(data)
            }
            (proto::read_response::Part::End(_), Some(left)) if left > 0 => {
                return Err(answer(format!("{left} bytes of the payload are missing at its end")));
            }
            (proto::read_response::Part::End(_), Some(_)) => {
                self.left = None;
                Event::End
            }
            (proto::read_response::Part::Progress(progress), None) => {
                Event::Progress(progress.held.map(Into::into).unwrap_or_default())
            }
            (proto::read_response::Part::Miss(miss), None) => return Err(missed(&self.node, &miss)),
            _ => return Err(answer("a message out of order".to_owned())),
        }))
    }

    /// The next whole transaction with its payload in memory, which may have `most` bytes; `None` at the end. Passes over
    /// progress. Errors: [`ReadError`].
    pub async fn transaction(&mut self, most: usize) -> Result<Option<(Committed, Bytes)>, ReadError> {
        let mut current: Option<(Committed, Vec<u8>)> = None;
        while let Some(event) = self.next().await? {
            match (event, &mut current) {
                (Event::Begin(committed), _) => {
                    if committed.payload_bytes > most as u64 {
                        let cause = format!("a payload of {} bytes, and {most} may come", committed.payload_bytes);
                        return Err(ReadError::Answer { node: self.node.clone(), cause });
                    }
                    current = Some((*committed, Vec::new()));
                }
                (Event::Data(data), Some((_, payload))) => payload.extend_from_slice(&data),
                (Event::End, _) => break,
                _ => {}
            }
        }
        Ok(current.map(|(committed, payload)| (committed, payload.into())))
    }
}

fn committed(start: proto::ItemStart) -> Result<Committed, ConvertError> {
    Ok(Committed {
        ticket: convert::required(start.ticket.as_ref(), "ItemStart.ticket")?.try_into()?,
        sender: convert::sender(&start.sender, "ItemStart.sender")?,
        position: convert::required(start.position, "ItemStart.position")?.into(),
        parcel: convert::parcel(&start.parcel, "ItemStart.parcel")?,
        digest: convert::digest(&start.digest, "ItemStart.digest")?,
        committed: Time(start.committed_ms),
        payload_bytes: start.payload_bytes,
        key: start.key,
        headers: start.headers.into_iter().map(|header| (header.name, header.value)).collect(),
        content_type: start.content_type,
    })
}

fn missed(node: &NodeName, miss: &proto::ReadMiss) -> ReadError {
    let at = miss.at.map(Into::into).unwrap_or_default();
    match convert::answer(miss.answer) {
        proto::Answer::NotFound => match miss.status.as_ref().map(convert::fate_of) {
            // Committed, and behind what this node holds.
            Some(Ok(None | Some(Fate::Committed))) => ReadError::Undecided { at },
            Some(Ok(Some(fate))) => ReadError::NotCommitted { fate },
            Some(Err(error)) => ReadError::Answer { node: node.clone(), cause: error.to_string() },
            None => ReadError::NotFound { at },
        },
        proto::Answer::Purged => ReadError::Purged,
        proto::Answer::NotPermitted => ReadError::NotPermitted,
        _ => ReadError::Unavailable { said: format!("{node}: {}", miss.text) },
    }
}

fn refused(node: &NodeName, status: &Status) -> ReadError {
    let said = explain(status);
    match status.code() {
        Code::PermissionDenied => ReadError::NotPermitted,
        // A connection that fails names the node itself.
        _ if retryable(status) && said.contains(&format!("node {node} ")) => ReadError::Unavailable { said },
        _ if retryable(status) => ReadError::Unavailable { said: format!("node {node}: {said}") },
        _ => ReadError::Refused { node: node.clone(), said },
    }
}

/// A reader of committed data: connects to the nodes of the directory as who its key says. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    dialer: Dialer,
    directory: watch::Receiver<Arc<Directory>>,
    /// Kept so that the directory stays watched; a later directory is taken by making a new reader.
    _source: Arc<watch::Sender<Arc<Directory>>>,
    /// This reader's, by which the directory says what it may read.
    key: PublicKey,
    only: Option<NodeName>,
}

impl Reader {
    /// A reader with this signing key, which is its TLS key too. Errors: [`ReadError::Tls`].
    pub fn new(key: &SecretKey, directory: Arc<Directory>, seams: &Seams, meter: Meter) -> Result<Self, ReadError> {
        let (source, directory) = watch::channel(directory);
        let dialer = Dialer::new(seams, Credentials::new(key)?, directory.clone(), meter);
        Ok(Self { dialer, directory, _source: Arc::new(source), key: key.public(), only: None })
    }

    /// The reader of a `client.toml`. Errors: [`ReadError::Config`], [`ReadError::NoReader`], [`ReadError::Tls`].
    pub fn from_config(config: &ClientConfig, seams: &Seams) -> Result<Self, ReadError> {
        let directory = Arc::new(config.environment.load_directory()?);
        let (name, key) = config.reader(&directory)?.ok_or(ReadError::NoReader)?;
        Self::new(key.signing(), directory, seams, Meter::reader(&name))
    }

    /// The same reader, asking this node alone. Errors: [`ReadError::NoNode`].
    pub fn at(mut self, node: NodeName) -> Result<Self, ReadError> {
        if !self.directory.borrow().nodes.contains_key(&node) {
            return Err(ReadError::NoNode(node.to_string()));
        }
        self.only = Some(node);
        Ok(self)
    }

    /// The directory that names the nodes.
    pub fn directory(&self) -> Arc<Directory> {
        self.directory.borrow().clone()
    }

    /// One transaction. The feed gives it whole, then ends. Nodes are asked in turn until one has it. Errors: [`ReadError`].
    pub async fn get(
        &self,
        transaction: TransactionId,
        destination: Option<&DestinationName>,
        freshness: Freshness,
    ) -> Result<Feed, ReadError> {
        let request = proto::GetRequest {
            transaction: Bytes::copy_from_slice(&transaction.to_bytes()),
            destination: destination.map(ToString::to_string),
            freshness: Some(freshness.message()),
            ..Default::default()
        };
        let call = async |mut client: Channelled| begin(client.get(request.clone()).await?).await;
        let (node, (first, stream)) = self.ask(destination, freshness.patience(), call, gives_nothing).await?;
        Ok(Feed { node, stream, first, left: None })
    }

    /// The latest transaction of an ordering key, or with `history` all of them in order. Errors: [`ReadError`].
    pub async fn get_by_key(
        &self,
        destination: &DestinationName,
        key: &[u8],
        history: bool,
        freshness: Freshness,
    ) -> Result<Feed, ReadError> {
        let request = proto::GetByKeyRequest {
            destination: destination.to_string(),
            key: Bytes::copy_from_slice(key),
            history,
            freshness: Some(freshness.message()),
            ..Default::default()
        };
        let call = async |mut client: Channelled| begin(client.get_by_key(request.clone()).await?).await;
        let (node, (first, stream)) = self.ask(Some(destination), freshness.patience(), call, gives_nothing).await?;
        Ok(Feed { node, stream, first, left: None })
    }

    /// The committed feed of a destination; with `follow` it waits for more at its end. Errors: [`ReadError`].
    pub async fn subscribe(&self, destination: &DestinationName, from: From, follow: bool) -> Result<Feed, ReadError> {
        use proto::subscribe_request::From as Start;
        let request = proto::SubscribeRequest {
            destination: destination.to_string(),
            from: match from {
                From::Start => None,
                From::End => Some(Start::End(true)),
                From::After(position) => Some(Start::After(position.into())),
                From::Last(count) => Some(Start::Last(count)),
                From::Since(time) => Some(Start::SinceMs(time.0)),
            },
            follow,
            ..Default::default()
        };
        let call = async |mut client: Channelled| begin(client.subscribe(request.clone()).await?).await;
        let (node, (first, stream)) = self.ask(Some(destination), ANSWER_WITHIN, call, gives_nothing).await?;
        Ok(Feed { node, stream, first, left: None })
    }
}
