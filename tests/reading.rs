#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
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

    async fn subscribe(&self, _: Request<proto::SubscribeRequest>) -> Result<Response<Stream>, Status> {
        Err(not_here())
    }

    async fn get(&self, _: Request<proto::GetRequest>) -> Result<Response<Stream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::iter(self.get.clone()?))))
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
    let start = proto::ItemStart {
        ticket: Some((&ticket("orders")).into()),
        sender: "web".to_owned(),
        position: Some(at(9).into()),
        parcel: Bytes::copy_from_slice(&id().to_bytes()),
        digest: Bytes::from(vec![1; 32]),
        payload_bytes: TEXT.len() as u64,
        ..Default::default()
    };
    let data = Bytes::copy_from_slice(&TEXT[..TEXT.len() - less]);
    let end = proto::ItemEnd { payload_bytes: TEXT.len() as u64 };
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
    Says { get: Ok(messages), status: Err(not_here()) }
}

fn stated(looked: &[&str], found: &[(&str, proto::State)], unavailable: &[&str]) -> Says {
    let status = proto::StatusResponse {
        statuses: found.iter().map(|(destination, state)| known(destination, *state)).collect(),
        more: false,
        at: looked.iter().map(|name| ((*name).to_owned(), at(3).into())).collect(),
        unavailable: unavailable.iter().map(|name| (*name).to_owned()).collect(),
    };
    Says { get: Err(not_here()), status: Ok(status) }
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
            hpke: Bytes::from(vec![seed; 1216]),
        });
        listeners.push((listener, secret(seed + 1)));
    }
    let nodes: [(&str, &[&str]); 2] = [("orders", &["a", "b"]), ("stock", &["b"])];
    for (number, (destination, nodes)) in (2..).zip(nodes) {
        let key = DestinationKey::current(Suite::XWing, Bytes::from(vec![number; 1216])).unwrap();
        let nodes = nodes.iter().map(|node| name::<NodeName>(node));
        draft.add_destination(DestinationEntry::new(ENVIRONMENT, name(destination), nodes, vec![key]));
    }
    draft.add_reader(ReaderEntry {
        name: name("app"),
        signing: secret(31).public(),
        hpke: Bytes::from(vec![31; 1216]),
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
    let busy = Says { get: Err(Status::unavailable("it stops")), status: Err(not_here()) };
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
async fn not_found_is_said_when_everything_was_looked_through() {
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
    assert_eq!(shown(&found), [row("a", "orders", Staged), row("b", "stock", Committed)]);
    assert!(found.unavailable.is_empty());
    // A node that replays its log cannot say, and one that knows nothing leaves it to the next.
    for a in [stated(&[], &[], &["orders"]), stated(&["orders"], &[], &[])] {
        let world = world([Some(a), Some(b.clone())]).await;
        let found = world.reader.status(prefix, Some(&name("orders"))).await.unwrap();
        assert!(shown(&found).contains(&row("b", "orders", Committed)));
        assert!(found.unavailable.is_empty());
    }
    let a = stated(&["orders"], &[("orders", NotFound)], &[]);
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
