//! Starting a client: opens the outbox and the transport and puts the tasks together that do its work. Must not submit.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::asking::Asking;
use super::background::{append_query, publisher_of, record, sweep};
use super::bundle::Bundler;
use super::counting::{Counting, Directories};
use super::error::ClientError;
use super::notices::{Follower, From as FollowFrom, Positions};
use super::options::Options;
use super::publishing::{Parts, Publishing};
use super::renewal::Renewal;
use super::sealing::{Identity, Sealer};
use super::service::{Client, FindTrouble, Inner, Search};
use super::stream::Streaming;
use super::tracker::Tracker;
use super::window::Window;
use crate::config::{ClientConfig, Sources};
use crate::core::id::DestinationName;
use crate::seams::Seams;
use crate::store::outbox::Outbox;
use crate::telemetry::Meter;
use crate::transport::publisher::Layout;
use crate::transport::{AnyTransport, Topic, Transport, TransportOptions};

/// How long connecting waits for the notices topic and those of its destinations, together; what cannot be reached then is
/// looked up later.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

impl Client {
    /// Starts a client from a `client.toml`, with what this process's environment overrides (`SEALCAST__SECTION__KEY`):
    /// directory, key, transport, outbox, window. Errors: [`ClientError`] of each.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = sealcast::client::Client::connect("senders/web/client.toml").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(config: impl AsRef<Path>) -> Result<Self, ClientError> {
        let config = ClientConfig::load(&Sources::file(config.as_ref()).with_process_environment())?;
        Self::with_config(&config, Seams::real()).await
    }

    /// The same from a configuration that was read already.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use sealcast::client::Client;
    /// use sealcast::config::{ClientConfig, Sources};
    /// use sealcast::seams::Seams;
    ///
    /// let config = ClientConfig::load(&Sources::file("client.toml").with_flag("outbox.path", "/var/lib/shop/outbox"))?;
    /// let client = Client::with_config(&config, Seams::real()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn with_config(config: &ClientConfig, seams: Seams) -> Result<Self, ClientError> {
        let settings = config
            .transport()?
            .ok_or_else(|| ClientError::Setting { setting: "[transport]", problem: "a sender needs it".to_owned() })?;
        let options = Options::from_config(config, seams.clone())?;
        let transport = AnyTransport::open(&TransportOptions::for_clients(settings), &seams)?;
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
            // It was verified when it was kept; the configuration may ask for a newer one, or for another operator's, since.
            if let Err(why) = directories.adopt(&bytes) {
                tracing::warn!(%why, "the directory that the outbox kept is not taken");
            }
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
            clock.clone(),
            meter.clone(),
            refused,
        ));
        let trouble: FindTrouble = {
            let (transport, environment) = (transport.clone(), environment.clone());
            Box::new(move |name| transport.trouble(&Topic::segments(&environment, name)))
        };
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
        let append = {
            let (transport, environment, turn) = (transport.clone(), directory.name.clone(), AtomicUsize::new(0));
            move |name: &DestinationName, query| {
                let turn = turn.fetch_add(1, Ordering::Relaxed);
                append_query(&*transport, &Topic::segments(&environment, name), query, turn);
            }
        };
        let layout_of =
            move |name: &DestinationName| Layout::of(&transport.partitions(&Topic::segments(&environment, name)));
        // Asking once makes a transport learn of a topic; most have by the time the notices are reached.
        let destinations = directory.senders.get(&sender).map(|entry| entry.destinations.clone()).unwrap_or_default();
        let known = || destinations.iter().filter(|name| layout_of(name).is_some()).count();
        known();
        let began = clock.monotonic();
        if !left_over {
            follower.reached(CONNECT_PATIENCE).await;
        }
        follower.open();
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
        let asking = Asking::new(
            options.key.clone(),
            sealer.epoch(),
            directories.clone(),
            tracker.clone(),
            clock.clone(),
            Box::new(append),
        );
        tasks.spawn(asking.run(closing.clone()));
        let (queue, submissions) = mpsc::unbounded_channel();
        let bundler = Bundler {
            sealer: sealer.clone(),
            tracker: tracker.clone(),
            outbox: outbox.clone(),
            publishing: publishing.clone(),
            work: seams.work.clone(),
            clock: clock.clone(),
            bytes: options.bundle_bytes,
            wait: options.bundle_wait,
            window: window.clone(),
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
        let interceptor = options.interceptor.clone();
        let inner = Inner {
            sender,
            seams,
            window,
            tracker,
            directories,
            suite,
            interceptor,
            streaming,
            queue,
            search,
            trouble,
            tasks,
            closing,
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}
