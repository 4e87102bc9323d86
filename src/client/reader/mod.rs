//! Reading what is committed: by id, by ordering key, as a feed from a cursor; and how transactions and nodes stand.
//!
//! `feed` owns what a node gives and how that goes on at another, `subscription` what is subscribed to, `wanted` the calls
//! that begin it, `ask` the choice of a node. Must not judge fates: a node's answer is believed because the directory names
//! its TLS key.

mod ask;
mod committed;
mod feed;
mod subscription;
mod wanted;

pub use ask::Statuses;
pub use committed::Committed;
pub use feed::{Event, Feed};
pub use subscription::{Cursor, From, Subscription};

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tonic::{Code, Status};

use crate::config::{ClientConfig, ConfigError};
use crate::core::directory::Directory;
use crate::core::id::{DestinationName, Fate, NodeName, Position, Ticket, TransactionId};
use crate::core::sign::{PublicKey, SecretKey};
use crate::rpc::client::{Dialer, explain, retryable};
use crate::rpc::convert;
use crate::rpc::proto;
use crate::rpc::tls::{Credentials, TlsError};
use crate::seams::Seams;
use crate::telemetry::Meter;
use wanted::Wanted;

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
    /// A transaction whose payload is longer than may be in memory. `Feed::next` gives it piece by piece.
    #[error("transaction {ticket}: its payload has {bytes} bytes, and {most} may come")]
    TooLarge {
        /// Which one.
        ticket: Ticket,
        /// Length of its payload.
        bytes: u64,
        /// How long it may be.
        most: usize,
    },
    /// A cursor of another destination, or of another environment's.
    #[error(
        "this cursor belongs to another destination or environment than {destination}: positions mean nothing there"
    )]
    OtherCursor {
        /// The destination that is read.
        destination: DestinationName,
    },
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
///
/// ```no_run
/// # async fn example(reader: sealcast::client::reader::Reader, handle: sealcast::client::Handle) -> Result<(), Box<dyn std::error::Error>> {
/// use sealcast::client::reader::Freshness;
///
/// // Read your own writes, from any node.
/// let position = handle.committed().await?.position.unwrap_or_default();
/// let ticket = handle.ticket();
/// let feed = reader.get(ticket.transaction, Some(&ticket.destination), Freshness::at_least(position)).await?;
/// # Ok(())
/// # }
/// ```
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
    /// Everything up to here: with the position of one's own receipt, one's own writes. Waits five seconds at most.
    pub fn at_least(position: Position) -> Self {
        Self { at_least: Some(position), ..Self::default() }
    }

    /// Everything that is committed when the read begins, confirmed by a majority. Waits five seconds at most.
    pub fn linearizable() -> Self {
        Self { linearizable: true, ..Self::default() }
    }

    /// The same with another longest wait: at most a minute.
    pub fn within(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

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

/// How nodes are called.
type Channelled = proto::reader_client::ReaderClient<tonic::transport::Channel>;

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
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use sealcast::client::reader::Reader;
/// use sealcast::config::{ClientConfig, Sources};
/// use sealcast::seams::Seams;
///
/// let config = ClientConfig::load(&Sources::file("readers/app/client.toml"))?;
/// let reader = Reader::from_config(&config, &Seams::real())?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Reader {
    dialer: Dialer,
    directory: watch::Receiver<Arc<Directory>>,
    /// Kept so that the directory stays watched; a later directory is taken by making a new reader.
    _source: Arc<watch::Sender<Arc<Directory>>>,
    /// This reader's, by which the directory says what it may read.
    key: PublicKey,
    only: Option<NodeName>,
    seams: Seams,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("key", &self.key).field("only", &self.only).finish_non_exhaustive()
    }
}

impl Reader {
    /// A reader with this signing key, which is its TLS key too. Errors: [`ReadError::Tls`].
    pub fn new(key: &SecretKey, directory: Arc<Directory>, seams: &Seams, meter: Meter) -> Result<Self, ReadError> {
        let (source, directory) = watch::channel(directory);
        let dialer = Dialer::new(seams, Credentials::new(key)?, directory.clone(), meter);
        Ok(Self { dialer, directory, _source: Arc::new(source), key: key.public(), only: None, seams: seams.clone() })
    }

    /// The reader of a `client.toml`. Errors: [`ReadError::Config`], [`ReadError::NoReader`], [`ReadError::Tls`].
    pub fn from_config(config: &ClientConfig, seams: &Seams) -> Result<Self, ReadError> {
        let directory = Arc::new(config.environment.load_directory()?);
        let (name, key) = config.reader(&directory)?.ok_or(ReadError::NoReader)?;
        Self::new(key.signing(), directory, seams, Meter::reader(&name))
    }

    /// The same reader, asking this node alone. Errors: [`ReadError::NoNode`].
    ///
    /// ```no_run
    /// # fn example(reader: sealcast::client::reader::Reader) -> Result<(), Box<dyn std::error::Error>> {
    /// let reader = reader.at("b".parse()?)?;
    /// # Ok(())
    /// # }
    /// ```
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
        let destination = destination.cloned();
        Feed::begin(self.clone(), Wanted::One { transaction, destination, freshness }).await
    }

    /// The latest transaction of an ordering key, or with `history` all of them in order. Errors: [`ReadError`].
    ///
    /// ```no_run
    /// # async fn example(reader: sealcast::client::reader::Reader) -> Result<(), Box<dyn std::error::Error>> {
    /// use sealcast::client::reader::Freshness;
    /// use sealcast::core::id::DestinationName;
    ///
    /// let orders = DestinationName::new("orders")?;
    /// let mut latest = reader.get_by_key(&orders, b"customer-42", false, Freshness::linearizable()).await?;
    /// while let Some(event) = latest.next().await? {
    ///     println!("{event:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_by_key(
        &self,
        destination: &DestinationName,
        key: &[u8],
        history: bool,
        freshness: Freshness,
    ) -> Result<Feed, ReadError> {
        let (destination, key) = (destination.clone(), Bytes::copy_from_slice(key));
        Feed::begin(self.clone(), Wanted::Key { destination, key, history, freshness }).await
    }

    /// Committed transactions of a destination, in the order of its log. Errors: [`ReadError`].
    ///
    /// ```no_run
    /// use sealcast::client::reader::{From, Reader, Subscription};
    /// # async fn example(reader: Reader, kept: Option<sealcast::client::reader::Cursor>) -> Result<(), Box<dyn std::error::Error>> {
    /// let from = kept.map_or(From::Start, From::Cursor);
    /// let mut feed = reader.subscribe(&"orders".parse()?, Subscription::new(from)).await?;
    /// while let Some((committed, payload)) = feed.transaction(1 << 20).await? {
    ///     println!("{} from {}: {} bytes", committed.position, committed.sender, payload.len());
    ///     // Store what was made of it, and feed.cursor(), together.
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn subscribe(
        &self,
        destination: &DestinationName,
        subscription: Subscription,
    ) -> Result<Feed, ReadError> {
        let group = self.directory().destinations.get(destination).map(|entry| entry.tag);
        let group = group.ok_or(ReadError::NotPermitted)?;
        let destination = destination.clone();
        Feed::begin(self.clone(), Wanted::All { destination, group, subscription }).await
    }
}
