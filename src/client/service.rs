//! The client: what an application holds. It has what is submitted checked (`check`), gives it a place in the window, and
//! leaves the rest to the tasks that were started (`start`); payloads that are read piece by piece come through `piecewise`.
//! Must not seal, publish or count itself.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bundle::Submission;
use super::counting::Directories;
use super::error::{ClientError, SubmitError};
use super::handle::{Handle, in_order};
use super::options::Interceptor;
use super::stream::Streaming;
use super::tracker::Tracker;
use super::transaction::Transaction;
use super::window::Window;
use crate::core::directory::Directory;
use crate::core::id::{DestinationName, SenderName, Suite, Ticket, Time};
use crate::seams::{BoxFuture, Seams};
use crate::transport::Trouble;

/// A payload longer than this is sealed stripe by stripe rather than in one piece.
const LARGE: usize = 2 * 1024 * 1024;

/// Looks up what was said since a time.
pub(super) type Search = Box<dyn Fn(Time) -> BoxFuture<'static, ()> + Send + Sync>;

/// Why nothing reaches a destination's topic.
pub(super) type FindTrouble = Box<dyn Fn(&DestinationName) -> Option<Trouble> + Send + Sync>;

/// What all clones of a client share.
pub(super) struct Inner {
    pub(super) sender: SenderName,
    pub(super) seams: Seams,
    pub(super) window: Window,
    pub(super) tracker: Arc<Tracker>,
    pub(super) directories: Arc<Directories>,
    pub(super) suite: Suite,
    pub(super) interceptor: Option<Interceptor>,
    pub(super) streaming: Streaming,
    pub(super) queue: mpsc::UnboundedSender<Submission>,
    pub(super) search: Search,
    pub(super) trouble: FindTrouble,
    pub(super) tasks: TaskTracker,
    pub(super) closing: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// A sender's client; the [module](super) is a guide to it. Cheap to clone; when the last clone is dropped its tasks end, and what is undecided stays in the
/// outbox until a client is started on it again.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use sealcast::client::{Client, Transaction};
///
/// let client = Client::connect("client.toml").await?;
/// let handle = client.submit("orders", Transaction::new("ten nails").key("customer-42")).await?;
/// println!("committed at {:?}", handle.committed().await?.position);
/// client.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    pub(super) inner: Arc<Inner>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.inner.sender)
    }
}

impl Client {
    /// This sender's name in the directory.
    pub fn sender(&self) -> &SenderName {
        &self.inner.sender
    }

    /// The newest directory that was verified.
    pub fn directory(&self) -> Arc<Directory> {
        self.inner.directories.current()
    }

    /// Submits a transaction to one destination; when this returns it is durable in the outbox. Dropping the future once it
    /// was polled does not take it back, whatever its size; only the end of the client can. Errors: [`SubmitError`], with
    /// the transaction given back; when the window or the outbox is full, wait with [`Client::ready`] or for fates, and
    /// submit it again.
    ///
    /// ```no_run
    /// # async fn example(client: sealcast::client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use sealcast::client::Transaction;
    ///
    /// let transaction = Transaction::new("ten nails").key("customer-42").content_type("text/plain");
    /// let handle = client.submit("orders", transaction).await?;
    /// handle.accepted().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn submit(&self, destination: &str, transaction: Transaction) -> Result<Handle, SubmitError> {
        let name = match DestinationName::new(destination) {
            Ok(name) => name,
            Err(error) => return Err(SubmitError { error: error.into(), transaction: Box::new(transaction) }),
        };
        let given_back = transaction.clone();
        let handles = self.submit_to(&[name], transaction).await?;
        let one = handles.into_iter().next();
        one.ok_or_else(|| SubmitError { error: ClientError::Closed, transaction: Box::new(given_back) })
    }

    /// Submits one transaction to several destinations: one parcel, one handle and one outcome for each, in the order given
    /// (R20). Errors: as [`Client::submit`].
    ///
    /// ```no_run
    /// # async fn example(client: sealcast::client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use sealcast::client::Transaction;
    /// use sealcast::core::id::DestinationName;
    ///
    /// let both = [DestinationName::new("orders")?, DestinationName::new("billing")?];
    /// for handle in client.submit_to(&both, Transaction::new("ten nails")).await? {
    ///     println!("{}: {:?}", handle.ticket().destination, handle.committed().await?.position);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn submit_to(
        &self,
        destinations: &[DestinationName],
        transaction: Transaction,
    ) -> Result<Vec<Handle>, SubmitError> {
        // Given back as it was given, so that who intercepts it sees the same again.
        let given = self.inner.interceptor.as_ref().map(|_| Box::new(transaction.clone()));
        let submitted = self.try_submit_to(destinations, self.intercepted(destinations, transaction)).await;
        submitted.map_err(|refused| {
            self.inner.tracker.given_back(&refused.error);
            SubmitError { transaction: given.unwrap_or(refused.transaction), error: refused.error }
        })
    }

    /// The transaction as the interceptor leaves it.
    pub(super) fn intercepted(&self, destinations: &[DestinationName], transaction: Transaction) -> Transaction {
        match &self.inner.interceptor {
            Some(interceptor) => interceptor(destinations, transaction),
            None => transaction,
        }
    }

    async fn try_submit_to(
        &self,
        destinations: &[DestinationName],
        transaction: Transaction,
    ) -> Result<Vec<Handle>, SubmitError> {
        let bytes = transaction.payload.len() as u64;
        let checked =
            self.prepare(destinations, transaction).and_then(|prepared| match self.inner.window.take(bytes) {
                Ok(place) => Ok((prepared, place)),
                Err(error) => Err(SubmitError { error, transaction: Box::new(prepared.transaction) }),
            });
        let (prepared, place) = checked?;
        let handles = if prepared.transaction.payload.len() > LARGE {
            let transaction = prepared.transaction.clone();
            let payload = std::io::Cursor::new(transaction.payload.clone());
            let submitted = match self.hold(prepared) {
                Ok(held) => {
                    // Somebody else goes on, so that it does not matter whether the caller keeps waiting.
                    let (streaming, closing) = (self.inner.streaming.clone(), self.inner.closing.clone());
                    let submitting = self.inner.tasks.spawn(async move {
                        tokio::select! {
                            biased;
                            submitted = streaming.submit(held, place, payload, Some(bytes)) => submitted,
                            () = closing.cancelled() => Err(ClientError::Closed),
                        }
                    });
                    submitting.await.unwrap_or(Err(ClientError::Closed))
                }
                Err(error) => Err(error),
            };
            submitted.map_err(|error| SubmitError { error, transaction: Box::new(transaction) })?
        } else {
            let given_back = prepared.transaction.clone();
            let closed = |_| SubmitError { error: ClientError::Closed, transaction: Box::new(given_back.clone()) };
            let (answer, answered) = oneshot::channel();
            let submission = Submission::Small { prepared: Box::new(prepared), place, answer };
            self.inner.queue.send(submission).map_err(|_| closed(()))?;
            answered.await.map_err(|_| closed(()))??
        };
        Ok(in_order(destinations, handles))
    }

    /// Waits until a payload of this many bytes would find a place in the window. Another submission may take it first.
    ///
    /// ```no_run
    /// # async fn example(client: sealcast::client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use sealcast::client::Transaction;
    ///
    /// client.ready(9).await;
    /// let handle = client.submit("orders", Transaction::new("ten nails")).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn ready(&self, bytes: u64) {
        self.inner.window.ready(bytes).await;
    }

    /// Undecided transactions and their payload bytes.
    ///
    /// ```no_run
    /// # fn example(client: sealcast::client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let (transactions, bytes) = client.undecided();
    /// println!("{transactions} transactions with {bytes} bytes have no fate yet");
    /// # Ok(())
    /// # }
    /// ```
    pub fn undecided(&self) -> (usize, u64) {
        self.inner.window.used()
    }

    /// Handles of what the outbox keeps: every transaction, once for each of its destinations, that has no fate yet or is
    /// committed and not complete; those that were made first come first. Right after the start it is what former runs left.
    ///
    /// ```no_run
    /// # fn example(client: sealcast::client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// for handle in client.kept() {
    ///     println!("{}: {:?}", handle.ticket(), handle.outcome());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn kept(&self) -> Vec<Handle> {
        self.inner.tracker.open_handles()
    }

    /// Why a destination's topic cannot be found at the brokers (nobody answers, it is missing, a right is missing) and what
    /// to do; `None` while it can be, or while nobody had time to find out.
    ///
    /// ```no_run
    /// # fn example(client: sealcast::client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use sealcast::core::id::DestinationName;
    ///
    /// if let Some(trouble) = client.trouble(&DestinationName::new("orders")?) {
    ///     eprintln!("orders are kept in the outbox for now: {trouble}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn trouble(&self, destination: &DestinationName) -> Option<Trouble> {
        (self.inner.trouble)(destination)
    }

    /// Bytes of sealed stripes that the outbox holds or has set aside, and how many it may hold.
    ///
    /// ```no_run
    /// # fn example(client: sealcast::client::Client) {
    /// let (held, most) = client.outbox_bytes();
    /// println!("the outbox is {} % full", held * 100 / most.max(1));
    /// # }
    /// ```
    pub fn outbox_bytes(&self) -> (u64, u64) {
        self.inner.streaming.outbox.bytes()
    }

    /// A handle for a ticket: from the outbox when it is there, else from what nodes said since its time. Until they have
    /// been read, its outcome shows as submitted. Errors: [`ClientError::NoDestination`].
    ///
    /// ```no_run
    /// # async fn example(client: sealcast::client::Client, kept: String) -> Result<(), Box<dyn std::error::Error>> {
    /// // What `handle.ticket().to_string()` gave, perhaps in another process.
    /// let handle = client.attach(&kept.parse()?).await?;
    /// println!("{:?}", handle.committed().await?.position);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn attach(&self, ticket: &Ticket) -> Result<Handle, ClientError> {
        if let Some(handle) = self.inner.tracker.attach(ticket) {
            return Ok(handle);
        }
        if !self.directory().destinations.contains_key(&ticket.destination) {
            return Err(ClientError::NoDestination { destination: ticket.destination.clone() });
        }
        let (handle, new) = self.inner.tracker.attach_other(ticket);
        if new {
            self.inner.tasks.spawn((self.inner.search)(ticket.transaction.time()));
        }
        Ok(handle)
    }

    /// Ends the client in an orderly way: what was submitted stays in the outbox, which is free for another client when
    /// this returns. Handles that are not decided yet end with [`ClientError::Closed`], those of other clones of this client too.
    pub async fn close(self) {
        let (tasks, closing) = (self.inner.tasks.clone(), self.inner.closing.clone());
        let (outbox, clock) = (self.inner.streaming.outbox.clone(), self.inner.seams.clock.clone());
        let tracker = self.inner.tracker.clone();
        let only = Arc::strong_count(&self.inner) == 1;
        drop(self);
        closing.cancel();
        tasks.close();
        tasks.wait().await;
        tracker.close();
        drop(tracker);
        // Another clone of this client keeps the outbox open.
        if only {
            outbox.close(&*clock).await;
        }
    }
}
