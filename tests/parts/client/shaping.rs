//! What travels together, and what size it shows: bundles, padding, compression.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Cursor, SeekFrom};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::poll;
use sealcast::client::{Client, ClientError, Options, Transaction};
use sealcast::core::id::{ParcelId, Time};
use sealcast::core::seal::transaction::{Compression, Padding};
use sealcast::core::split::segment::Segment;
use sealcast::seams::{Clock, SystemClock, Work};
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};
use tokio::sync::watch;

use crate::client::world::{Opened, World};

/// A clock that stands until it is moved. Who sleeps for as long as `long` by it sleeps until then; shorter sleeps only set a
/// pace, and are real.
#[derive(Debug)]
struct Standing {
    started: Time,
    passed: watch::Sender<Duration>,
    long: Duration,
}

impl Standing {
    fn new(long: Duration) -> Self {
        Self { started: SystemClock::new().now(), passed: watch::Sender::new(Duration::ZERO), long }
    }

    fn advance(&self, by: Duration) {
        self.passed.send_modify(|passed| *passed += by);
    }
}

impl Clock for Standing {
    fn now(&self) -> Time {
        self.started.after(self.monotonic())
    }

    fn monotonic(&self) -> Duration {
        *self.passed.borrow()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        if duration < self.long {
            return Box::pin(tokio::time::sleep(duration));
        }
        let (mut passed, until) = (self.passed.subscribe(), self.monotonic() + duration);
        Box::pin(async move {
            // The clock outlives whoever sleeps by it.
            let _ = passed.wait_for(|passed| *passed >= until).await;
        })
    }
}

async fn start(world: &World, change: impl FnOnce(&mut Options)) -> Client {
    let mut options = world.options();
    change(&mut options);
    Client::start(world.transport.clone(), options).await.unwrap()
}

/// It is begun, all others run until they wait, and it has no end yet: a round that does not wait for the clock would have begun.
async fn waits<T>(begun: &mut Pin<Box<impl Future<Output = T>>>) {
    assert!(poll!(&mut *begun).is_pending());
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(poll!(begun).is_pending());
}

/// The first letters of what each parcel holds, sorted.
fn payloads(opened: &[Opened]) -> Vec<Vec<&str>> {
    // Not by parcel id: ids of one millisecond are in no order.
    let mut parcels: Vec<Vec<_>> = opened
        .iter()
        .map(|opened| opened.transactions.iter().map(|(_, it)| std::str::from_utf8(&it[..1]).unwrap()).collect())
        .collect();
    parcels.sort();
    parcels
}

#[tokio::test]
async fn what_comes_within_a_short_time_shares_a_parcel_and_who_is_alone_goes_at_once() {
    let world = World::new(3).await;
    let a_second = Duration::from_secs(1);
    let clock = Arc::new(Standing::new(a_second));
    let client = start(&world, |options| {
        options.bundle_wait = a_second;
        options.seams.clock = clock.clone();
    })
    .await;
    client.submit("orders", Transaction::new("a")).await.unwrap();
    let mut second = Box::pin(client.submit("orders", Transaction::new("b")));
    waits(&mut second).await;
    let mut third = Box::pin(client.submit("orders", Transaction::new("c")));
    assert!(poll!(&mut third).is_pending());
    clock.advance(a_second);
    second.await.unwrap();
    third.await.unwrap();
    assert_eq!(payloads(&world.opened("orders", 3).await), [vec!["a"], vec!["b", "c"]]);
    client.close().await;
}

/// Work that takes so long by a clock that stands.
struct Takes(Duration, Arc<Standing>, Arc<dyn Work>);

impl Work for Takes {
    fn start(&self, job: Box<dyn FnOnce() + Send>) {
        let (takes, clock) = (self.0, self.1.clone());
        self.2.start(Box::new(move || {
            clock.advance(takes);
            job();
        }));
    }
}

#[tokio::test]
async fn where_much_has_no_fate_a_round_waits_for_half_of_it() {
    let world = World::new(3).await;
    let clock = Arc::new(Standing::new(Duration::from_millis(60)));
    let client = start(&world, |options| {
        let work = Takes(Duration::from_millis(30), clock.clone(), options.seams.work.clone());
        (options.seams.clock, options.seams.work) = (clock.clone(), Arc::new(work));
    })
    .await;
    // No node runs: nothing has a fate. Each of the first two is half of what there is, or more.
    for name in ["a", "b"] {
        client.submit("orders", Transaction::new(name)).await.unwrap();
    }
    let mut third = Box::pin(client.submit("orders", Transaction::new("c")));
    waits(&mut third).await;
    let mut fourth = Box::pin(client.submit("orders", Transaction::new("d")));
    assert!(poll!(&mut fourth).is_pending());
    third.await.unwrap();
    fourth.await.unwrap();
    assert_eq!(payloads(&world.opened("orders", 4).await), [vec!["a"], vec!["b"], vec!["c", "d"]]);
    // Nobody joins the next one: it goes when as much time has passed as three more rounds take.
    let mut fifth = Box::pin(client.submit("orders", Transaction::new("e")));
    waits(&mut fifth).await;
    clock.advance(Duration::from_millis(70));
    fifth.await.unwrap();
    client.close().await;
}

#[tokio::test]
async fn a_parcel_is_closed_by_bytes_before_its_time() {
    let world = World::new(3).await;
    let an_hour = Duration::from_secs(3600);
    let client = start(&world, |options| (options.bundle_wait, options.bundle_bytes) = (an_hour, 10_000)).await;
    client.submit("orders", Transaction::new("a")).await.unwrap();
    let payload = |name: &str| Transaction::new(name.repeat(4000));
    let mut waiting: Vec<_> = ["b", "c"].map(|name| Box::pin(client.submit("orders", payload(name)))).into();
    for submitting in &mut waiting {
        assert!(poll!(submitting).is_pending());
    }
    assert_eq!(client.undecided().0, 3, "they have their places");
    waiting.push(Box::pin(client.submit("orders", payload("d"))));
    for submitted in futures_util::future::join_all(waiting).await {
        submitted.unwrap();
    }
    assert_eq!(payloads(&world.opened("orders", 4).await), [vec!["a"], vec!["b", "c"], vec!["d"]]);
    // What still waits when the client ends goes at once.
    let mut late = Box::pin(client.submit("orders", Transaction::new("e")));
    assert!(poll!(&mut late).is_pending());
    client.clone().close().await;
    late.await.unwrap();
}

/// The bytes that brokers see of a parcel.
async fn seen(world: &World, parcel: ParcelId) -> usize {
    let mut segments = BTreeMap::new();
    for record in world.records("orders").await {
        if Segment::parse(&record.value).is_ok_and(|segment| segment.header().core.parcel == parcel) {
            segments.insert(record.key, record.value.len());
        }
    }
    segments.values().sum()
}

#[tokio::test]
async fn padded_payloads_of_near_lengths_look_alike_however_they_are_submitted() {
    let world = World::new(3).await;
    let client = start(&world, |_| ()).await;
    let payload =
        |length: u32| -> Vec<u8> { (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect() };
    let (one, other) = (payload(2_200_001), payload(2_200_900));
    let transaction = |payload: &[u8], compress: bool| {
        let transaction = Transaction::new(payload.to_vec()).pad();
        if compress { transaction.compress() } else { transaction }
    };
    let mut handles = Vec::new();
    for compress in [false, true] {
        let file = client.submit_file("orders", transaction(&[], compress), Cursor::new(&other)).await.unwrap();
        handles.push((client.submit("orders", transaction(&one, compress)).await.unwrap(), &one, compress));
        handles.push((file, &other, compress));
    }
    for (handle, _, _) in &handles {
        handle.accepted().await.unwrap();
    }
    let opened = world.opened("orders", 4).await;
    let mut sizes = Vec::new();
    for (handle, whole, compress) in &handles {
        let of_it = opened.iter().find(|opened| Some(opened.parcel) == handle.parcel()).unwrap();
        let (found, came) = &of_it.transactions[0];
        assert!(came == *whole, "{handle:?}");
        assert_eq!((found.header.padding, handle.payload_bytes()), (Padding::Padme, Some(whole.len() as u64)));
        assert_eq!(found.header.compression == Compression::Zstd, *compress);
        sizes.push(seen(&world, of_it.parcel).await);
    }
    assert!(sizes[0] == sizes[1] && sizes[2] == sizes[3], "{sizes:?}");
    // Small files are read whole, others in one go.
    let small = client.submit_file("orders", Transaction::new("").pad(), Cursor::new(b"small")).await.unwrap();
    let mut from_there = Cursor::new(payload(400_000));
    from_there.set_position(100_000);
    let rest = client.submit_file("orders", Transaction::new(""), from_there).await.unwrap();
    assert_eq!((small.payload_bytes(), rest.payload_bytes()), (Some(5), Some(300_000)));
    let pipe = client.submit_reader("orders", Transaction::new("").pad(), payload(400_000).as_slice(), None).await;
    assert!(matches!(pipe, Err(ClientError::Transaction { field: "padding", .. })), "{pipe:?}");
    client.close().await;
}

#[tokio::test]
async fn what_an_interceptor_returns_is_what_counts_and_never_its_payload_for_one_that_is_read() {
    let world = World::new(3).await;
    let client = start(&world, |options| {
        options.interceptor = Some(Arc::new(|_, _| Transaction::new("mine").pad()));
    })
    .await;
    let payload = vec![7; 300_000];
    let read = client.submit_reader("orders", Transaction::new(""), payload.as_slice(), None).await;
    assert!(matches!(read, Err(ClientError::Transaction { field: "padding", .. })), "{read:?}");
    let handle = client.submit_file("orders", Transaction::new(""), Cursor::new(payload.clone())).await.unwrap();
    handle.accepted().await.unwrap();
    let opened = world.opened("orders", 1).await;
    let (found, came) = &opened[0].transactions[0];
    assert!(*came == payload && found.header.padding == Padding::Padme, "{found:?}");
    client.close().await;
}

/// A file that somebody writes to between two readings.
struct Changing {
    inner: Cursor<Vec<u8>>,
    readings: usize,
}

impl AsyncRead for Changing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, into)
    }
}

impl AsyncSeek for Changing {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> std::io::Result<()> {
        if to == SeekFrom::Start(0) {
            self.readings += 1;
            if self.readings == 2 {
                self.inner.get_mut()[70] ^= 1;
            }
        }
        Pin::new(&mut self.inner).start_seek(to)
    }

    fn poll_complete(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<u64>> {
        Pin::new(&mut self.inner).poll_complete(context)
    }
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_not_submitted() {
    let world = World::new(3).await;
    let client = start(&world, |_| ()).await;
    for compress in [false, true] {
        let transaction = Transaction::new("").pad();
        let transaction = if compress { transaction.compress() } else { transaction };
        let file = Changing { inner: Cursor::new(vec![7; 3_000_000]), readings: 0 };
        let changed = client.submit_file("orders", transaction, file).await.unwrap_err();
        assert!(matches!(changed, ClientError::Changed), "{changed}");
        assert!(changed.retryable());
    }
    assert_eq!(client.undecided(), (0, 0));
    assert!(world.open("orders").await.is_empty(), "what was not submitted is never whole");
    client.close().await;
}
