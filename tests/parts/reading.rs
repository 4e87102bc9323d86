//! A reader gets what any node has: over real TLS, from nodes that say what the test tells them.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use sealcast::client::reader::{Freshness, ReadError, Reader};
use sealcast::core::directory::{DestinationEntry, DestinationKey, Directory, Draft, NodeEntry, ReaderEntry};
use sealcast::core::id::{
    DestinationName, EnvironmentId, Fate, NodeName, Position, Rejection, Suite, Ticket, Time, TransactionId,
};
use sealcast::core::sign::SecretKey;
use sealcast::rpc::proto::{self, read_response::Part, reader_server};
use sealcast::rpc::server::{reader_service, serve};
use sealcast::rpc::tls::Credentials;
use sealcast::seams::Seams;
use sealcast::telemetry::Meter;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

const ENVIRONMENT: EnvironmentId = EnvironmentId([5; 16]);
const TEXT: &[u8] = b"what was sent";

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn secret(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

fn id() -> TransactionId {
    TransactionId::from_parts(Time(1_700_000_000_000), [7; 10])
}

fn ticket(destination: &str) -> Ticket {
    Ticket { destination: name(destination), transaction: id(), deadline: Time(1_800_000_000_000) }
}

fn at(index: u64) -> Position {
    Position { index, number: 0 }
}

type Messages = Vec<Result<proto::ReadResponse, Status>>;

/// What a node says, whatever it is asked.
#[derive(Clone)]
struct Says {
    get: Result<Messages, Status>,
    status: Result<proto::StatusResponse, Status>,
    feed: Arc<dyn Fn(proto::SubscribeRequest) -> Messages + Send + Sync>,
}

fn no_feed() -> Arc<dyn Fn(proto::SubscribeRequest) -> Messages + Send + Sync> {
    Arc::new(|_| vec![Err(not_here())])
}

fn not_here() -> Status {
    Status::unimplemented("not in this test")
}

type Stream = Pin<Box<dyn tokio_stream::Stream<Item = Result<proto::ReadResponse, Status>> + Send>>;

#[tonic::async_trait]
impl reader_server::Reader for Says {
    type SubscribeStream = Stream;
    type GetStream = Stream;
    type GetByKeyStream = Stream;

    async fn subscribe(&self, request: Request<proto::SubscribeRequest>) -> Result<Response<Stream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::iter((self.feed)(request.into_inner())))))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Result<Response<Stream>, Status> {
        let mut messages = match request.get_ref().offset {
            0 => self.get.clone()?,
            offset => from(at(9), offset as usize),
        };
        if request.get_ref().metadata_only {
            messages = bare(messages);
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn get_by_key(&self, _: Request<proto::GetByKeyRequest>) -> Result<Response<Stream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::iter(self.get.clone()?))))
    }

    async fn status(&self, _: Request<proto::StatusRequest>) -> Result<Response<proto::StatusResponse>, Status> {
        self.status.clone().map(Response::new)
    }

    async fn node_status(
        &self,
        _: Request<proto::NodeStatusRequest>,
    ) -> Result<Response<proto::NodeStatusResponse>, Status> {
        Err(not_here())
    }
}

fn part(part: Part) -> Result<proto::ReadResponse, Status> {
    Ok(proto::ReadResponse { part: Some(part) })
}

/// A whole transaction, of which the last `less` bytes do not come.
fn whole(less: usize) -> Messages {
    let mut messages = from(at(9), 0);
    messages[1] = part(Part::Data(Bytes::copy_from_slice(&TEXT[..TEXT.len() - less])));
    messages
}

/// The same without payloads.
fn bare(mut messages: Messages) -> Messages {
    messages.retain(|message| !matches!(message, Ok(proto::ReadResponse { part: Some(Part::Data(_)) })));
    messages
}

/// A transaction from a byte of its payload on.
fn from(position: Position, offset: usize) -> Messages {
    let start = proto::ItemStart {
        ticket: Some((&ticket("orders")).into()),
        sender: "web".to_owned(),
        position: Some(position.into()),
        parcel: Bytes::copy_from_slice(&id().to_bytes()),
        digest: Bytes::from(vec![1; 32]),
        payload_bytes: TEXT.len() as u64,
        offset: offset as u64,
        ..Default::default()
    };
    let data = Bytes::copy_from_slice(&TEXT[offset..]);
    let end = proto::ItemEnd { payload_bytes: data.len() as u64 };
    vec![part(Part::Start(start)), part(Part::Data(data)), part(Part::End(end))]
}

fn miss(answer: proto::Answer, position: u64, known: Option<proto::TransactionStatus>) -> Messages {
    vec![part(Part::Miss(proto::ReadMiss {
        answer: answer.into(),
        text: "so it is".to_owned(),
        at: Some(at(position).into()),
        status: known,
    }))]
}

fn known(destination: &str, state: proto::State) -> proto::TransactionStatus {
    proto::TransactionStatus {
        ticket: Some((&ticket(destination)).into()),
        state: state.into(),
        rejection: if state == proto::State::Rejected { proto::Rejection::Conflict.into() } else { 0 },
        ..Default::default()
    }
}

fn got(messages: Messages) -> Says {
    Says { get: Ok(messages), status: Err(not_here()), feed: no_feed() }
}

fn stated(looked: &[&str], found: &[(&str, proto::State)], unavailable: &[&str]) -> Says {
    let status = proto::StatusResponse {
        statuses: found.iter().map(|(destination, state)| known(destination, *state)).collect(),
        more: false,
        at: looked.iter().map(|name| ((*name).to_owned(), at(3).into())).collect(),
        unavailable: unavailable.iter().map(|name| (*name).to_owned()).collect(),
    };
    Says { get: Err(not_here()), status: Ok(status), feed: no_feed() }
}

/// Nodes `a` and `b`: both serve `orders`, only `b` serves `stock`. One without words is not there.
struct World {
    reader: Reader,
    _stop: tokio_util::sync::DropGuard,
}

async fn world(says: [Option<Says>; 2]) -> World {
    let seams = Seams::real();
    let mut draft = Draft::new(ENVIRONMENT, name("test"), Time(4_102_444_800_000));
    let mut listeners = Vec::new();
    for (node, seed) in [("a", 10), ("b", 20)] {
        let listener = seams.network.listen("127.0.0.1:0").await.unwrap();
        draft.add_node(NodeEntry {
            name: name(node),
            address: listener.address().unwrap().to_string(),
            signing: secret(seed).public(),
            tls: secret(seed + 1).public().bytes(),
            hpke: Bytes::from([vec![0; 1184], vec![seed; 32]].concat()),
        });
        listeners.push((listener, secret(seed + 1)));
    }
    let nodes: [(&str, &[&str]); 2] = [("orders", &["a", "b"]), ("stock", &["b"])];
    for (number, (destination, nodes)) in (2..).zip(nodes) {
        let key =
            DestinationKey::current(Suite::XWing, Bytes::from([vec![0; 1184], vec![number; 32]].concat())).unwrap();
        let nodes = nodes.iter().map(|node| name::<NodeName>(node));
        draft.add_destination(DestinationEntry::new(ENVIRONMENT, name(destination), nodes, vec![key]));
    }
    draft.add_reader(ReaderEntry {
        name: name("app"),
        signing: secret(31).public(),
        hpke: Bytes::from([vec![0; 1184], vec![31; 32]].concat()),
        destinations: BTreeSet::from([name("orders"), name("stock")]),
    });
    let operator = secret(1);
    let directory = Arc::new(Directory::verify(&draft.sign(&operator).unwrap(), &operator.public(), 1).unwrap());
    let (_, watch) = watch::channel(directory.clone());
    let stop = CancellationToken::new();
    for ((listener, tls), says) in listeners.into_iter().zip(says) {
        let Some(says) = says else { continue };
        let (watch, clock, until) = (watch.clone(), seams.clock.clone(), stop.clone());
        tokio::spawn(async move {
            let credentials = Credentials::new(&tls).unwrap();
            let services = Routes::new(reader_service(says));
            serve(listener, &credentials, watch, services, clock, Meter::default(), until).await.unwrap();
        });
    }
    let reader = Reader::new(&secret(31), directory, &seams, Meter::default()).unwrap();
    World { reader, _stop: stop.drop_guard() }
}

impl World {
    async fn get(&self, destination: Option<&str>) -> Result<(String, Vec<u8>), ReadError> {
        let destination = destination.map(name::<DestinationName>);
        let mut feed = self.reader.get(id(), destination.as_ref(), Freshness::default()).await?;
        let (_, payload) = feed.transaction(1 << 20).await?.unwrap();
        Ok((feed.node().to_string(), payload.to_vec()))
    }
}

#[tokio::test]
async fn what_one_node_cannot_give_another_gives() {
    use proto::Answer::{NotFound, NotPermitted, Unavailable};
    let damaged = vec![Err(Status::data_loss("its body does not open here; ask another"))];
    let busy = Says { get: Err(Status::unavailable("it stops")), ..got(Vec::new()) };
    let first = [
        None,
        Some(busy),
        Some(got(miss(Unavailable, 0, None))),
        Some(got(miss(NotFound, 3, None))),
        Some(got(miss(NotPermitted, 0, None))),
        Some(got(miss(NotFound, 3, Some(known("orders", proto::State::Staged))))),
        Some(got(damaged)),
    ];
    for (number, first) in first.into_iter().enumerate() {
        let world = world([first, Some(got(whole(0)))]).await;
        for destination in [None, Some("orders")] {
            let (node, payload) = world.get(destination).await.unwrap_or_else(|error| panic!("{number}: {error}"));
            assert_eq!((node.as_str(), payload.as_slice()), ("b", TEXT), "{number}");
        }
    }
}

#[tokio::test]
async fn r23_not_found_is_said_when_everything_was_looked_through() {
    let miss = |at| got(miss(proto::Answer::NotFound, at, None));
    let both = world([Some(miss(3)), Some(miss(5))]).await;
    for destination in [None, Some("orders")] {
        let error = both.get(destination).await.unwrap_err();
        assert!(matches!(error, ReadError::NotFound { at: Position { index: 5, .. } }), "{error}");
    }
    // Nobody looked through `stock`.
    let one = world([Some(miss(3)), None]).await;
    let error = one.get(None).await.unwrap_err();
    assert!(matches!(&error, ReadError::Unavailable { said } if said.contains("stock")), "{error}");
    let error = one.get(Some("orders")).await.unwrap_err();
    assert!(matches!(error, ReadError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn what_is_known_of_it_is_said() {
    let miss = |state| got(miss(proto::Answer::NotFound, 3, Some(known("orders", state))));
    let nothing = || got(self::miss(proto::Answer::NotFound, 9, None));
    let rejected = world([Some(miss(proto::State::Rejected)), Some(nothing())]).await;
    let error = rejected.get(None).await.unwrap_err();
    assert!(matches!(error, ReadError::NotCommitted { fate: Fate::Rejected(Rejection::Conflict) }), "{error}");
    assert!(!error.retryable());
    let expired = world([Some(nothing()), Some(miss(proto::State::Expired))]).await;
    let error = expired.get(None).await.unwrap_err();
    assert!(matches!(error, ReadError::NotCommitted { fate: Fate::Expired }), "{error}");
    let staged = world([Some(miss(proto::State::Staged)), Some(nothing())]).await;
    let error = staged.get(None).await.unwrap_err();
    assert!(matches!(error, ReadError::Undecided { .. }) && error.retryable(), "{error}");
}

#[tokio::test]
async fn a_payload_that_ends_early_is_no_payload() {
    let world = world([Some(got(whole(1))), None]).await;
    let error = world.get(Some("orders")).await.unwrap_err();
    assert!(matches!(&error, ReadError::Answer { cause, .. } if cause.contains("1 bytes")), "{error}");
}

fn progress(index: u64) -> Result<proto::ReadResponse, Status> {
    part(Part::Progress(proto::Progress { held: Some(at(index).into()), group_time_ms: 1 }))
}

#[tokio::test]
async fn a_feed_that_breaks_off_goes_on_at_another_node_with_nothing_twice_and_nothing_lost() {
    use sealcast::client::reader::{Event, From, Subscription};
    let cut = move |taken: usize, after: Option<Status>| {
        let mut messages = vec![progress(3)];
        messages.extend(from(at(9), 0).into_iter().take(taken));
        if let Some(Ok(proto::ReadResponse { part: Some(Part::Data(data)) })) = messages.get_mut(2) {
            data.truncate(if taken == 2 { 5 } else { data.len() });
        }
        messages.extend(after.map(Err));
        messages
    };
    let ends = || Some(Status::unavailable("this node is stopping: go on at another"));
    let damaged = || Some(Status::data_loss("its body does not open here"));
    // Before a transaction, before its first byte, within its payload, behind it; and without a word.
    for (taken, error) in
        [(0, ends()), (1, ends()), (2, ends()), (2, damaged()), (3, ends()), (1, None), (2, None), (3, None)]
    {
        let a = Says { feed: Arc::new(move |_| cut(taken, error.clone())), ..got(Vec::new()) };
        let feed = move |request: proto::SubscribeRequest| {
            let after = match request.from {
                Some(proto::subscribe_request::From::After(after)) => after.index,
                other => panic!("where did it start? {other:?}"),
            };
            let fresh = request.freshness.and_then(|freshness| freshness.at_least).map(|position| position.index);
            assert_eq!(fresh, Some(after), "a node that is behind would give less");
            let all = [from(at(9), 0), from(at(12), 0)].into_iter().zip([9, 12]);
            let new = all.filter(|(_, index)| *index > after).flat_map(|(messages, _)| messages);
            // It is behind at first, and says so.
            [vec![progress(1)], new.collect(), vec![progress(12)]].concat()
        };
        let b = Says { feed: Arc::new(feed), ..got(whole(0)) };
        let world = world([Some(a), Some(b)]).await;
        let mut feed =
            world.reader.subscribe(&name("orders"), Subscription::new(From::Start).until_end()).await.unwrap();
        assert_eq!(feed.node().as_str(), "a");
        let (mut payloads, mut cursors) = (Vec::new(), Vec::new());
        while let Some(event) = feed.next().await.unwrap() {
            match event {
                Event::Begin(_) => payloads.push(Vec::new()),
                Event::Data(data) => payloads.last_mut().unwrap().extend_from_slice(&data),
                Event::End | Event::Progress(_) => cursors.push(feed.cursor().unwrap().position()),
            }
        }
        assert_eq!(feed.node().as_str(), "b");
        assert_eq!(payloads, [TEXT, TEXT], "{taken}");
        assert!(cursors.is_sorted(), "{cursors:?}");
        assert_eq!(cursors.last(), Some(&at(12)));
    }
}

#[tokio::test]
async fn statuses_come_from_all_destinations_and_the_node_that_knows() {
    use proto::State::{Committed, NotFound, Staged};
    let prefix = &id().to_string()[..12];
    let shown = |statuses: &sealcast::client::reader::Statuses| -> Vec<(String, String, proto::State)> {
        let found = statuses.found.iter();
        found.map(|(node, it)| (node.to_string(), it.ticket.clone().unwrap().destination, it.state())).collect()
    };
    let row = |node: &str, destination: &str, state| (node.to_owned(), destination.to_owned(), state);
    // What `a` does not serve, `b` knows; what both know is said once.
    let b = stated(&["orders", "stock"], &[("orders", Committed), ("stock", Committed)], &[]);
    let both = world([Some(stated(&["orders"], &[("orders", Staged)], &[])), Some(b.clone())]).await;
    let found = both.reader.status(prefix, None).await.unwrap();
    assert_eq!(shown(&found), [row("b", "orders", Committed), row("b", "stock", Committed)], "the furthest of each");
    assert!(found.unavailable.is_empty());
    // A node that replays its log cannot say, and one that knows nothing leaves it to the next.
    for a in [stated(&[], &[], &["orders"]), stated(&["orders"], &[], &[])] {
        let world = world([Some(a), Some(b.clone())]).await;
        let found = world.reader.status(prefix, Some(&name("orders"))).await.unwrap();
        assert!(shown(&found).contains(&row("b", "orders", Committed)));
        assert!(found.unavailable.is_empty());
    }
    let a = stated(&["orders"], &[("orders", NotFound)], &[]);
    let one = world([Some(stated(&["orders"], &[("orders", Committed)], &[])), None]).await;
    let found = one.reader.status(prefix, Some(&name("orders"))).await.unwrap();
    assert_eq!((shown(&found), found.asked.len()), (vec![row("a", "orders", Committed)], 1), "nobody knows better");
    let late = world([Some(a), Some(stated(&["orders"], &[("orders", Committed)], &[]))]).await;
    let found = late.reader.status_of(&ticket("orders")).await.unwrap();
    assert_eq!(shown(&found), [row("b", "orders", Committed)]);
    // Where nobody can say, that is said.
    let half = world([Some(stated(&["orders"], &[], &[])), None]).await;
    let found = half.reader.status(prefix, None).await.unwrap();
    assert!(found.found.is_empty());
    assert_eq!(found.unavailable, BTreeSet::from([name("stock")]));
    let none = world([None, None]).await;
    assert!(matches!(none.reader.status(prefix, None).await.unwrap_err(), ReadError::Unavailable { .. }));
}

#[tokio::test]
async fn a_feed_without_payloads_goes_on_without_them_between_start_and_end() {
    use sealcast::client::reader::{Event, From, Subscription};
    let cut = |_| vec![progress(3), from(at(9), 0).remove(0), Err(Status::unavailable("this node is stopping"))];
    let a = Says { feed: Arc::new(cut), ..got(Vec::new()) };
    let rest = |_| [vec![progress(9)], bare(from(at(12), 0)), vec![progress(12)]].concat();
    let b = Says { feed: Arc::new(rest), ..got(whole(0)) };
    let world = world([Some(a), Some(b)]).await;
    let subscription = Subscription::new(From::Start).until_end().without_payload();
    let mut feed = world.reader.subscribe(&name("orders"), subscription).await.unwrap();
    let mut seen = Vec::new();
    while let Some(event) = feed.next().await.unwrap() {
        match event {
            Event::Begin(committed) => seen.push(format!("begin {}", committed.position.index)),
            Event::Data(_) => panic!("no payload was asked for"),
            Event::End => seen.push("end".to_owned()),
            Event::Progress(_) => {}
        }
    }
    assert_eq!(seen, ["begin 9", "end", "begin 12", "end"]);
}
