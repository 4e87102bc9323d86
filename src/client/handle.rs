//! What a submitter holds: a ticket, and the way to wait for its stages. Dropping it never cancels: the deadline does.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::error::ClientError;
use crate::core::id::{DestinationName, Fate, NodeName, ParcelId, Position, Rejection, Ticket, Time, TransactionId};
use crate::seams::Clock;
use crate::store::outbox::Outcome;

/// How far to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Durable in the outbox.
    Submitted,
    /// The brokers have it: it survives any one domain and the sender (R14), or it is committed already. What a majority
    /// of the nodes refuses is submitted again, in other bytes, and accepted when the brokers have those.
    Accepted,
    /// A majority of the voters signed it.
    Committed,
    /// All of them did.
    Complete,
}

/// What a wait ends with. A local failure is none of these: it is a [`ClientError`].
///
/// ```no_run
/// # async fn example(handle: sealcast::client::Handle) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use sealcast::client::{Stage, Waited};
///
/// match handle.wait(Stage::Committed, Duration::from_secs(5)).await? {
///     Waited::Reached => println!("committed"),
///     Waited::Rejected(reason) => println!("rejected: {}", reason.word()),
///     Waited::Expired => println!("expired"),
///     Waited::Unknown => println!("ask again later: {}", handle.ticket()),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// The stage is reached.
    Reached,
    /// Consensus rejected it.
    Rejected(Rejection),
    /// It expired.
    Expired,
    /// Nobody knows yet: the time is up, and [`Client::attach`](super::Client::attach) resumes the wait later. (Or the nodes
    /// have forgotten what became of it, R26; or it is committed, and not *complete* ten minutes later.)
    Unknown,
}

/// A verified proof of a fate: what the voters signed, counted against the directory (R13).
///
/// ```no_run
/// # async fn example(handle: sealcast::client::Handle) -> Result<(), Box<dyn std::error::Error>> {
/// let receipt = handle.committed().await?;
/// println!("{:?}, signed by {} of {} nodes", receipt.position, receipt.signers.len(), receipt.voters);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Receipt {
    /// Whose fate.
    pub ticket: Ticket,
    /// The fate.
    pub fate: Fate,
    /// Where it was committed; `None` for another fate.
    pub position: Option<Position>,
    /// Who signed, ascending: at least a majority of the voters.
    pub signers: Vec<NodeName>,
    /// How many voters the destination has in the directory version against which they were counted.
    pub voters: usize,
    /// That directory version.
    pub directory_version: u64,
    /// For rejected(duplicate): the transaction that has claimed the idempotency key.
    pub first: Option<TransactionId>,
    /// How long it took on each signer, as that one says. Empty when the receipt comes from the outbox, which keeps none.
    pub times: BTreeMap<NodeName, NodeTimes>,
}

/// How long a transaction took on a node, as that node says it, in whole milliseconds. `None` when it does not know: it
/// fetched the transaction, or started again in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct NodeTimes {
    /// From the time in the transaction's id (this machine's clock) to the first segment of its parcel there (that
    /// machine's clock).
    pub delivered: Option<Duration>,
    /// From there until the parcel was opened and durable.
    pub staged: Option<Duration>,
    /// From there until the fate was applied.
    pub committed: Option<Duration>,
    /// From there until the node held it.
    pub held: Option<Duration>,
}

impl From<crate::core::receipt::StageTimes> for NodeTimes {
    fn from(said: crate::core::receipt::StageTimes) -> Self {
        let duration = |millis: Option<u32>| millis.map(|millis| Duration::from_millis(millis.into()));
        Self {
            delivered: duration(said.delivered),
            staged: duration(said.staged),
            committed: duration(said.committed),
            held: duration(said.held),
        }
    }
}

/// Why a stage was not reached and never will be.
///
/// ```no_run
/// # async fn example(handle: sealcast::client::Handle) -> Result<(), Box<dyn std::error::Error>> {
/// match handle.committed().await {
///     Ok(receipt) => println!("committed at {:?}", receipt.position),
///     Err(unknown) if unknown.retryable() => println!("{unknown}; ask again later: {}", handle.ticket()),
///     Err(ended) => println!("{ended}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// Consensus rejected the transaction.
    #[error("rejected({})", .0.word())]
    Rejected(Rejection),
    /// The transaction expired before it had another fate.
    #[error("expired")]
    Expired,
    /// The nodes have forgotten what became of it (R26): it stays unknown.
    #[error("unknown: the nodes have forgotten what became of it")]
    Forgotten,
    /// It is committed, but ten minutes later not every voter had said that it holds it. Attach again to wait longer.
    #[error(
        "committed, and unknown whether complete: not every voter has said that it holds it; attach again to wait longer"
    )]
    Incomplete,
    /// This client failed or was closed: the transaction's fate is unknown.
    #[error("unknown: {0}")]
    Local(#[from] ClientError),
}

impl WaitError {
    /// Whether asking again with its ticket ([`Client::attach`](super::Client::attach)) can tell more: after a local failure,
    /// with a new client where this one is closed, and when only *complete* is outstanding.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Local(_) | Self::Incomplete)
    }
}

/// Why nothing more will be known here of a transaction that has not reached its last stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// A majority of the nodes has forgotten what became of it.
    Forgotten,
    /// It is committed, and *complete* was waited for long enough.
    Incomplete,
    /// The client is closed.
    Closed,
}

/// For want of what *accepted* is withheld; nothing: it is not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Withheld {
    /// These domains.
    pub domains: Arc<[Arc<str>]>,
    /// The topic has partitions in this one only, though it is up.
    pub only_one: bool,
}

/// What is known of a transaction at one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    pub outcome: Outcome,
    /// The parcel that carries it, when this client sealed it.
    pub parcel: Option<ParcelId>,
    pub receipt: Option<Receipt>,
    /// Nothing more will be known here.
    pub ended: Option<Ended>,
    /// For want of what *accepted* is withheld.
    pub withheld: Withheld,
    /// Why the brokers refuse its parcel.
    pub refused: Option<Arc<str>>,
    /// When each stage was reached, in monotonic time since submit.
    pub times: StageTimes,
}

/// How long after its submission a transaction reached each stage, as this client saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct StageTimes {
    /// Accepted by the brokers.
    pub accepted: Option<Duration>,
    /// Committed.
    pub committed: Option<Duration>,
    /// Complete.
    pub complete: Option<Duration>,
}

impl Progress {
    pub(super) fn new(outcome: Outcome) -> Self {
        Self {
            outcome,
            parcel: None,
            receipt: None,
            ended: None,
            withheld: Withheld::default(),
            refused: None,
            times: StageTimes::default(),
        }
    }

    fn at(&self, stage: Stage) -> Option<Result<Waited, Ended>> {
        let reached = match (self.outcome, stage) {
            (Outcome::Rejected(reason), _) => return Some(Ok(Waited::Rejected(reason))),
            (Outcome::Expired, _) => return Some(Ok(Waited::Expired)),
            (_, Stage::Submitted) | (Outcome::Complete(_), _) => true,
            (Outcome::Committed(_), stage) => stage < Stage::Complete,
            (Outcome::Accepted, stage) => stage == Stage::Accepted,
            (Outcome::Submitted, _) => false,
        };
        if reached { Some(Ok(Waited::Reached)) } else { self.ended.map(Err) }
    }
}

/// A submitted transaction at one destination. Cheap to clone.
///
/// ```no_run
/// # async fn example(handle: sealcast::client::Handle) {
/// use sealcast::client::WaitError;
///
/// match handle.committed().await {
///     Ok(receipt) => println!("committed at {:?}, {} of {} signed", receipt.position, receipt.signers.len(), receipt.voters),
///     Err(WaitError::Rejected(reason)) => println!("rejected({}): it will never be committed", reason.word()),
///     Err(WaitError::Expired) => println!("expired: it will never be committed"),
///     Err(unknown) => println!("{unknown}: ask again with {}", handle.ticket()),
/// }
/// # }
/// ```
#[derive(Clone)]
pub struct Handle {
    pub(super) ticket: Ticket,
    pub(super) submitted: Time,
    pub(super) payload_bytes: Option<u64>,
    pub(super) progress: watch::Receiver<Progress>,
    pub(super) clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Handle({}, {:?})", self.ticket, self.progress.borrow().outcome)
    }
}

impl Handle {
    /// Its ticket: print it, and [`Client::attach`](super::Client::attach) finds it again, from another process too.
    ///
    /// ```no_run
    /// # fn example(handle: sealcast::client::Handle, mut notes: std::fs::File) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::io::Write;
    ///
    /// // Whoever has it can ask what became of the transaction.
    /// writeln!(notes, "{}", handle.ticket())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// When it was submitted, by the sender's clock.
    pub fn submitted(&self) -> Time {
        self.submitted
    }

    /// The length of its payload in bytes; `None` for a ticket that this client's outbox does not have.
    pub fn payload_bytes(&self) -> Option<u64> {
        self.payload_bytes
    }

    /// How far it has come, as far as this client has verified it.
    pub fn outcome(&self) -> Outcome {
        self.progress.borrow().outcome
    }

    /// The parcel that carries it, when this client sealed it; another one after it was sealed anew.
    pub fn parcel(&self) -> Option<ParcelId> {
        self.progress.borrow().parcel
    }

    /// How long each stage took.
    ///
    /// ```no_run
    /// # async fn example(handle: sealcast::client::Handle) -> Result<(), Box<dyn std::error::Error>> {
    /// handle.committed().await?;
    /// println!("accepted after {:?}, committed after {:?}", handle.times().accepted, handle.times().committed);
    /// # Ok(())
    /// # }
    /// ```
    pub fn times(&self) -> StageTimes {
        self.progress.borrow().times
    }

    /// The verified proof of its fate; `None` before it is known.
    pub fn receipt(&self) -> Option<Receipt> {
        self.progress.borrow().receipt.clone()
    }

    /// Why the brokers refuse what carries it (a record too large for the topic, a missing right) and what to do; `None` when
    /// they do not. Nothing is lost: it is tried again until its deadline.
    pub fn refused(&self) -> Option<Arc<str>> {
        self.progress.borrow().refused.clone()
    }

    /// The domains for want of which *accepted* is withheld: empty when it is not. Committed stays possible.
    pub fn withheld(&self) -> Arc<[Arc<str>]> {
        self.progress.borrow().withheld.domains.clone()
    }

    /// Whether *accepted* is withheld because the topic has partitions in one domain only, though that one is up: it stays
    /// so until the topic gets partitions in another, with `sealcast topic init --grow`.
    pub fn only_one_domain(&self) -> bool {
        self.progress.borrow().withheld.only_one
    }

    /// Waits until the brokers have it (R14), or it is committed. Errors: [`WaitError`].
    ///
    /// ```no_run
    /// # async fn example(handle: sealcast::client::Handle) -> Result<(), Box<dyn std::error::Error>> {
    /// // From here on it survives this process, and the loss of any one broker.
    /// handle.accepted().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn accepted(&self) -> Result<(), WaitError> {
        self.reach(Stage::Accepted).await.map(drop)
    }

    /// Waits until it is committed, and gives the verified receipt. Errors: [`WaitError`].
    ///
    /// ```no_run
    /// # async fn example(handle: sealcast::client::Handle) -> Result<(), Box<dyn std::error::Error>> {
    /// println!("committed at {:?}", handle.committed().await?.position);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn committed(&self) -> Result<Receipt, WaitError> {
        self.proof(Stage::Committed).await
    }

    /// Waits until all voters have signed that they hold it. Errors: [`WaitError`].
    ///
    /// ```no_run
    /// # async fn example(handle: sealcast::client::Handle) -> Result<(), Box<dyn std::error::Error>> {
    /// println!("held by all of {:?}", handle.complete().await?.signers);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn complete(&self) -> Result<Receipt, WaitError> {
        self.proof(Stage::Complete).await
    }

    async fn reach(&self, stage: Stage) -> Result<Progress, WaitError> {
        let mut progress = self.progress.clone();
        let there = progress.wait_for(|progress| progress.at(stage).is_some()).await;
        let there = there.map_err(|_| ClientError::Closed)?;
        match there.at(stage) {
            Some(Ok(Waited::Rejected(reason))) => Err(WaitError::Rejected(reason)),
            Some(Ok(Waited::Expired)) => Err(WaitError::Expired),
            Some(Err(Ended::Forgotten)) => Err(WaitError::Forgotten),
            Some(Err(Ended::Incomplete)) => Err(WaitError::Incomplete),
            Some(Err(Ended::Closed)) => Err(ClientError::Closed.into()),
            _ => Ok(there.clone()),
        }
    }

    async fn proof(&self, stage: Stage) -> Result<Receipt, WaitError> {
        // A fate is only ever published together with its proof.
        self.reach(stage).await?.receipt.ok_or(WaitError::Local(ClientError::Closed))
    }

    /// Waits for a stage, at most `timeout`. Errors: [`ClientError::Closed`].
    ///
    /// ```no_run
    /// # async fn example(handle: sealcast::client::Handle) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// use sealcast::client::{Stage, Waited};
    ///
    /// if handle.wait(Stage::Accepted, Duration::from_secs(1)).await? == Waited::Unknown {
    ///     println!("not delivered yet: {:?}", handle.withheld());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn wait(&self, stage: Stage, timeout: Duration) -> Result<Waited, ClientError> {
        let mut progress = self.progress.clone();
        let waited = async {
            let there = progress.wait_for(|progress| progress.at(stage).is_some()).await;
            match there.map_err(|_| ClientError::Closed)?.at(stage) {
                Some(Ok(waited)) => Ok(waited),
                Some(Err(Ended::Closed)) => Err(ClientError::Closed),
                Some(Err(Ended::Forgotten | Ended::Incomplete)) | None => Ok(Waited::Unknown),
            }
        };
        tokio::select! {
            biased;
            waited = waited => waited,
            () = self.clock.sleep(timeout) => Ok(Waited::Unknown),
        }
    }

    /// Completes when anything about it changes; for showing progress. `None`: the client is closed.
    ///
    /// ```no_run
    /// # async fn example(handle: sealcast::client::Handle) -> Result<(), Box<dyn std::error::Error>> {
    /// while let Some(outcome) = handle.changed().await {
    ///     println!("{outcome:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn changed(&self) -> impl Future<Output = Option<Outcome>> + Send + use<> {
        let mut progress = self.progress.clone();
        async move {
            progress.mark_unchanged();
            if progress.borrow().ended != Some(Ended::Closed) {
                progress.changed().await.ok()?;
            }
            let now = progress.borrow();
            (now.ended != Some(Ended::Closed)).then_some(now.outcome)
        }
    }
}

/// Handles in the order in which their destinations were named.
pub(super) fn in_order(destinations: &[DestinationName], mut handles: Vec<Handle>) -> Vec<Handle> {
    let place = |handle: &Handle| destinations.iter().position(|name| *name == handle.ticket().destination);
    handles.sort_by_key(place);
    handles
}
