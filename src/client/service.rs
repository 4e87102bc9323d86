//! The client: what an application holds. It checks what is submitted, gives it a place in the window, and leaves the rest to
//! the tasks that it starts. Must not seal, publish or count itself.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::asking::Asking;
use super::background::{append_query, publisher_of, record, sweep};
use super::bundle::{Bundler, Held, Prepared, Submission};
use super::counting::{Counting, Directories};
use super::error::{ClientError, SubmitError};
use super::handle::Handle;
use super::notices::{Follower, From as FollowFrom, Positions};
use super::options::Options;
use super::publishing::{Parts, Publishing};
use super::renewal::Renewal;
use super::sealing::{Identity, Sealer};
use super::stream::Streaming;
use super::tracker::Tracker;
use super::transaction::{Deadline, Transaction};
use super::window::{Window, WindowPlace};
use crate::config::{ClientConfig, Sources};
use crate::core::directory::{Directory, Validity};
use crate::core::id::{DestinationName, SenderName, Suite, Ticket, Time, TransactionId};
use crate::core::limits;
use crate::seams::{BoxFuture, Seams};
use crate::store::outbox::Outbox;
use crate::telemetry::Meter;
use crate::transport::publisher::Layout;
use crate::transport::{AnyTransport, Topic, Transport};

/// A payload longer than this is sealed stripe by stripe rather than in one piece.
const LARGE: usize = 2 * 1024 * 1024;

/// A reader's payload up to this length is read whole and bundled like any other.
const SMALL: u64 = 256 * 1024;

/// How long connecting waits for the notices topic; what cannot be reached then is looked up later.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// The deadline of a transaction that names none, where its destinations allow it.
const DEFAULT_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Where a large transaction is given back once nobody of its keys is before it.
type OnHold = oneshot::Receiver<(Box<Prepared>, Held)>;

type Search = Box<dyn Fn(Time) -> BoxFuture<'static, ()> + Send + Sync>;

struct Inner {
    sender: SenderName,
    seams: Seams,
    window: Window,
    tracker: Arc<Tracker>,
    directories: Arc<Directories>,
    suite: Suite,
    streaming: Streaming,
    queue: mpsc::UnboundedSender<Submission>,
    search: Search,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// A sender's client. Cheap to clone; when the last clone is dropped its tasks end, and what is undecided stays in the
/// outbox until a client is started on it again.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.inner.sender)
    }
}

impl Client {
    /// Starts a client from a `client.toml`, with what this process's environment overrides (`SEALCAST__SECTION__KEY`):
    /// directory, key, transport, outbox, window. Errors: [`ClientError`] of each.
    pub async fn connect(config: impl AsRef<Path>) -> Result<Self, ClientError> {
        let config = ClientConfig::load(&Sources::file(config.as_ref()).with_process_environment())?;
        Self::with_config(&config, Seams::real()).await
    }

    /// The same from a configuration that was read already.
    pub async fn with_config(config: &ClientConfig, seams: Seams) -> Result<Self, ClientError> {
        let settings = config
            .transport()?
            .ok_or_else(|| ClientError::Setting { setting: "[transport]", problem: "a sender needs it".to_owned() })?;
        let options = Options::from_config(config, seams.clone())?;
        let transport = AnyTransport::open(&settings.into(), &seams)?;
        Self::start(Arc::new(transport), options).await
    }

    /// Starts a client over a transport: opens the outbox, sends again what it holds undecided, follows the notices.
    /// Needs a tokio runtime. Errors: [`ClientError::Outbox`], [`ClientError::Setting`] when the directory does not know the
    /// key, [`ClientError::Randomness`].
    pub async fn start<T: Transport>(transport: Arc<T>, options: Options) -> Result<Self, ClientError> {
        let seams = options.seams.clone();
        let (outbox_options, for_opening) = (options.outbox.clone(), seams.clone());
        let opened = seams.work.run(move || Outbox::open(&outbox_options, &for_opening)).await;
        let (outbox, mut contents) = opened.map_err(|_| ClientError::Closed)??;
        for parcel in &contents.abandoned {
            tracing::info!(%parcel, "abandoned: its sealing had not finished");
        }
        for parcel in &contents.missing {
            tracing::error!(%parcel, "the outbox's file of a parcel is gone or cut: it cannot be sent again");
        }
        let kept = contents.directory.take();
        let directories =
            Arc::new(Directories::new(options.operator.clone(), options.minimum_version, options.directory.clone()));
        if let Some(bytes) = kept {
            directories.adopt(&bytes);
        }
        let directory = directories.current();
        let public = options.key.public().bytes();
        let sender =
            directory.sender_by_key(&public).map(|entry| entry.name.clone()).ok_or_else(|| ClientError::Setting {
                setting: "sender.key",
                problem: "no sender of the directory has this key".to_owned(),
            })?;
        let meter = Meter::sender(&sender);
        let window = Window::new(options.window_transactions, options.window_bytes);
        let left_over = !contents.parcels.is_empty();
        let clock = seams.clock.clone();
        let tracker = Arc::new(Tracker::new(outbox.clone(), contents, &window, clock.clone(), meter.clone()));
        let (closing, tasks) = (CancellationToken::new(), TaskTracker::new());

        let environment = directory.name.clone();
        let start = publisher_of(transport.clone(), environment.clone(), &options, meter.clone());
        let publishing = Publishing::start(
            Parts {
                start,
                tracker: tracker.clone(),
                outbox: outbox.clone(),
                work: seams.work.clone(),
                clock: clock.clone(),
                meter: meter.clone(),
                closing: closing.clone(),
            },
            &tasks,
        );
        let (refused, refusals) = mpsc::unbounded_channel();
        let counting = Arc::new(Counting::new(
            directories.clone(),
            tracker.clone(),
            publishing.clone(),
            sender.clone(),
            meter.clone(),
            refused,
        ));
        let append = {
            let (transport, environment) = (transport.clone(), environment.clone());
            move |name: &DestinationName, query| append_query(&*transport, &Topic::segments(&environment, name), query)
        };
        let asking =
            Asking::new(options.key.clone(), directories.clone(), tracker.clone(), clock.clone(), Box::new(append));
        tasks.spawn(asking.run(closing.clone()));
        tasks.spawn(sweep(counting.clone(), clock.clone(), closing.clone()));
        let positions = Positions::default();
        let follower = Follower::new(
            transport.clone(),
            Topic::notices(&environment),
            counting.clone(),
            positions.clone(),
            clock.clone(),
            closing.clone(),
            tasks.clone(),
        );
        let from = FollowFrom { offsets: tracker.notices_from(), time: tracker.earliest() };
        tasks.spawn(follower.clone().run(from));
        tasks.spawn(record(tracker.clone(), seams.clone(), closing.clone()));
        let layout_of =
            move |name: &DestinationName| Layout::of(&transport.partitions(&Topic::segments(&environment, name)));
        // Asking once makes a transport learn of a topic; most have by the time the notices are reached.
        let destinations = directory.senders.get(&sender).map(|entry| entry.destinations.clone()).unwrap_or_default();
        let known = || destinations.iter().filter(|name| layout_of(name).is_some()).count();
        known();
        if !left_over {
            follower.reached(CONNECT_PATIENCE).await;
        }
        let began = clock.monotonic();
        while known() < destinations.len() && clock.monotonic().saturating_sub(began) < CONNECT_PATIENCE {
            clock.sleep(Duration::from_millis(10)).await;
        }
        let sealer = Arc::new(Sealer::new(
            Identity { key: options.key.clone(), suite: options.suite },
            directories.clone(),
            Box::new(layout_of),
            positions,
            seams.clone(),
            meter,
        )?);
        let (queue, submissions) = mpsc::unbounded_channel();
        let bundler = Bundler {
            sealer: sealer.clone(),
            tracker: tracker.clone(),
            outbox: outbox.clone(),
            publishing: publishing.clone(),
            work: seams.work.clone(),
            queue: queue.downgrade(),
            closing: closing.clone(),
        };
        tasks.spawn(bundler.run(submissions));
        let renewal = Renewal {
            sealer: sealer.clone(),
            tracker: tracker.clone(),
            outbox: outbox.clone(),
            publishing: publishing.clone(),
            seams: seams.clone(),
            closing: closing.clone(),
        };
        tasks.spawn(renewal.run(refusals, tasks.clone()));
        let (work, streaming_tasks) = (seams.work.clone(), tasks.clone());
        let streaming =
            Streaming { sealer, tracker: tracker.clone(), outbox, publishing, work, tasks: streaming_tasks };
        let search: Search = Box::new(move |time| Box::pin(follower.clone().search(time)));
        let suite = options.suite;
        let inner =
            Inner { sender, seams, window, tracker, directories, suite, streaming, queue, search, tasks, closing };
        Ok(Self { inner: Arc::new(inner) })
    }

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
    pub async fn submit_to(
        &self,
        destinations: &[DestinationName],
        transaction: Transaction,
    ) -> Result<Vec<Handle>, SubmitError> {
        let submitted = self.try_submit_to(destinations, transaction).await;
        submitted.inspect_err(|given_back| self.inner.tracker.given_back(&given_back.error))
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
                            submitted = submit_held(&streaming, held, place, payload, Some(bytes)) => submitted,
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

    /// Submits a transaction whose payload is read, sealed and published piece by piece and never held in memory; the
    /// payload inside `transaction` is not used. `length`, where it is known, is checked. When this returns, all of it is
    /// durable in the outbox. Dropping the future before the payload has been read and sealed to its end abandons it; after
    /// that it is submitted all the same. Errors: [`ClientError`].
    pub async fn submit_reader(
        &self,
        destination: &str,
        transaction: Transaction,
        payload: impl AsyncRead + Unpin + Send,
        length: Option<u64>,
    ) -> Result<Handle, ClientError> {
        let handles =
            self.submit_reader_to(&[DestinationName::new(destination)?], transaction, payload, length).await?;
        handles.into_iter().next().ok_or(ClientError::Closed)
    }

    /// The same to several destinations. Errors: [`ClientError`].
    pub async fn submit_reader_to(
        &self,
        destinations: &[DestinationName],
        mut transaction: Transaction,
        mut payload: impl AsyncRead + Unpin + Send,
        length: Option<u64>,
    ) -> Result<Vec<Handle>, ClientError> {
        transaction.payload = bytes::Bytes::new();
        if let Some(said) = length.filter(|length| *length <= SMALL) {
            let mut whole = Vec::with_capacity(said as usize);
            (&mut payload).take(said + 1).read_to_end(&mut whole).await.map_err(ClientError::Read)?;
            if whole.len() as u64 != said {
                return Err(ClientError::Length { said, given: whole.len() as u64 });
            }
            transaction.payload = whole.into();
            return Ok(self.submit_to(destinations, transaction).await?);
        }
        if length.is_some_and(|length| length > limits::PAYLOAD_BYTES) {
            let problem = format!("at most {} bytes", limits::PAYLOAD_BYTES);
            return Err(ClientError::Transaction { field: "payload", problem });
        }
        if transaction.pad {
            let problem =
                "a payload that is read cannot be padded: its length is not known before its header".to_owned();
            return Err(ClientError::Transaction { field: "padding", problem });
        }
        let prepared = self.prepare(destinations, transaction)?;
        let submitted = match self.inner.window.take(length.unwrap_or(0)) {
            Ok(place) => match self.hold(prepared) {
                Ok(held) => submit_held(&self.inner.streaming, held, place, payload, length).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let handles = submitted.inspect_err(|error| self.inner.tracker.given_back(error))?;
        Ok(in_order(destinations, handles))
    }

    /// Takes a large transaction's place in the order of submissions.
    fn hold(&self, prepared: Prepared) -> Result<OnHold, ClientError> {
        let (answer, held) = oneshot::channel();
        let submission = Submission::Hold { prepared: Box::new(prepared), answer };
        self.inner.queue.send(submission).map_err(|_| ClientError::Closed)?;
        Ok(held)
    }

    /// Checks a transaction against its limits and the directory, and gives it its id and deadline.
    fn prepare(&self, destinations: &[DestinationName], transaction: Transaction) -> Result<Prepared, SubmitError> {
        let (directory, now) = (self.directory(), self.inner.seams.clock.now());
        let checked = self.check(&directory, destinations, &transaction, now);
        match checked {
            Ok((id, deadline)) => {
                let mut destinations = destinations.to_vec();
                destinations.sort();
                Ok(Prepared {
                    transaction,
                    id,
                    deadline,
                    submitted: now,
                    started: self.inner.seams.clock.monotonic(),
                    destinations,
                    predecessors: std::collections::BTreeMap::new(),
                })
            }
            Err(error) => Err(SubmitError { error, transaction: Box::new(transaction) }),
        }
    }

    fn check(
        &self,
        directory: &Directory,
        destinations: &[DestinationName],
        transaction: &Transaction,
        now: Time,
    ) -> Result<(TransactionId, Time), ClientError> {
        transaction.check()?;
        if matches!(directory.validity(now), Validity::GraceEnded) {
            return Err(ClientError::DirectoryEnded);
        }
        let wrong = |field, problem: String| Err(ClientError::Transaction { field, problem });
        let distinct: std::collections::BTreeSet<_> = destinations.iter().collect();
        if !(1..=limits::DESTINATIONS).contains(&destinations.len()) || distinct.len() < destinations.len() {
            return wrong("destinations", format!("1 to {}, each once", limits::DESTINATIONS));
        }
        let mut life = Duration::MAX;
        for name in destinations {
            let Some(entry) = directory.destinations.get(name) else {
                return Err(ClientError::NoDestination { destination: name.clone() });
            };
            if !directory.may_send(&self.inner.sender, name) {
                return Err(ClientError::NotPermitted { destination: name.clone() });
            }
            let suite = self.inner.suite;
            if entry.current_key(suite).is_none() || suite < entry.minimum_suite {
                return Err(ClientError::Suite { destination: name.clone(), suite });
            }
            life = life.min(entry.max_life);
        }
        if transaction.after.as_ref().is_some_and(|after| !destinations.contains(&after.destination)) {
            return wrong("after", "its destination must be one that the transaction goes to".to_owned());
        }
        let id = match transaction.id {
            Some(id) => id,
            None => TransactionId::from_parts(now, self.inner.seams.randomness.array()?),
        };
        let latest = id.time().after(life);
        let deadline = match transaction.deadline {
            Deadline::Default => id.time().after(DEFAULT_LIFE.min(life)),
            Deadline::After(after) => now.after(after),
            Deadline::At(time) => time,
        };
        if deadline > latest {
            let most = humantime::format_duration(life);
            return wrong("deadline", format!("at most {most} after it is submitted: the destination's longest life"));
        }
        if deadline <= now {
            return wrong("deadline", "it is past already".to_owned());
        }
        Ok((id, deadline))
    }

    /// Waits until a payload of this many bytes would find a place in the window. Another submission may take it first.
    pub async fn ready(&self, bytes: u64) {
        self.inner.window.ready(bytes).await;
    }

    /// Undecided transactions and their payload bytes.
    pub fn undecided(&self) -> (usize, u64) {
        self.inner.window.used()
    }

    /// A handle for a ticket: from the outbox when it is there, else from what nodes said since its time. Until they have
    /// been read, its outcome shows as submitted. Errors: [`ClientError::NoDestination`].
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

/// Seals, keeps and publishes a large transaction, once its keys are its own.
async fn submit_held(
    streaming: &Streaming,
    held: OnHold,
    place: WindowPlace,
    payload: impl AsyncRead + Unpin + Send,
    length: Option<u64>,
) -> Result<Vec<Handle>, ClientError> {
    let (prepared, held) = held.await.map_err(|_| ClientError::Closed)?;
    streaming.submit(*prepared, held, place, payload, length).await
}

fn in_order(destinations: &[DestinationName], mut handles: Vec<Handle>) -> Vec<Handle> {
    let place = |handle: &Handle| destinations.iter().position(|name| *name == handle.ticket().destination);
    handles.sort_by_key(place);
    handles
}
