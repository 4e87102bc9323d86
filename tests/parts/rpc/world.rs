//! A node whose services say who called them, on loopback, and those who dial it.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use sealcast::core::directory::{DestinationEntry, DestinationKey, Directory, Draft, NodeEntry, ReaderEntry};
use sealcast::core::id::{EnvironmentId, Suite, Time};
use sealcast::core::sign::SecretKey;
use sealcast::rpc::access::{Caller, Gate};
use sealcast::rpc::client::Dialer;
use sealcast::rpc::proto::{self, peer_server::Peer, reader_server::Reader};
use sealcast::rpc::server::{ServeError, peer_service, reader_service, serve};
use sealcast::rpc::tls::Credentials;
use sealcast::seams::{ManualClock, Seams};
use sealcast::telemetry::Meter;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

pub const NODES: [&str; 2] = ["a", "b"];
pub const ENVIRONMENT: EnvironmentId = EnvironmentId([5; 16]);
pub const CHUNK: usize = 256 * 1024;

pub fn secret(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

/// TLS keys: node `a` 11, node `b` 13; readers `app` 31, `other` 32.
pub fn tls_of(node: &str) -> u8 {
    if node == "a" { 11 } else { 13 }
}

pub fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

pub fn directory(version: u64, addresses: [String; 2], readers: &[(&str, u8)]) -> Arc<Directory> {
    let mut draft = Draft::new(ENVIRONMENT, name("test"), Time(4_102_444_800_000));
    draft.version = version;
    for (node, address) in NODES.iter().zip(addresses) {
        let tls = tls_of(node);
        draft.add_node(NodeEntry {
            name: name(node),
            address,
            signing: secret(tls - 1).public(),
            tls: secret(tls).public().bytes(),
            hpke: Bytes::from([vec![0; 1184], vec![tls; 32]].concat()),
        });
    }
    let key = DestinationKey::current(Suite::XWing, Bytes::from(vec![2; 1216])).unwrap();
    draft.add_destination(DestinationEntry::new(ENVIRONMENT, name("orders"), NODES.map(name), vec![key]));
    for (reader, seed) in readers {
        draft.add_reader(ReaderEntry {
            name: name(reader),
            signing: secret(*seed).public(),
            hpke: Bytes::from([vec![0; 1184], vec![*seed; 32]].concat()),
            destinations: BTreeSet::from([name("orders")]),
        });
    }
    let operator = secret(1);
    Arc::new(Directory::verify(&draft.sign(&operator).unwrap(), &operator.public(), 1).unwrap())
}

fn not_here() -> Status {
    Status::unimplemented("not in this test")
}

/// The services of a node that says who called it.
#[derive(Clone)]
pub struct Told {
    pub gate: Gate,
    pub calls: Arc<AtomicUsize>,
    pub go: Arc<Notify>,
    pub arrived: Arc<Notify>,
}

pub type Stream<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for Told {
    type FetchBodyStream = Stream<proto::FetchBodyResponse>;

    /// Echoes; kind 9 waits until it is told to go.
    async fn raft_call(&self, request: Request<proto::RaftRequest>) -> Result<Response<proto::RaftResponse>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.gate.node(&request)?;
        if request.get_ref().kind == 9 {
            self.arrived.notify_one();
            self.go.notified().await;
        }
        Ok(Response::new(proto::RaftResponse { payload: request.into_inner().payload }))
    }

    /// Answers to voters of the group alone.
    async fn probe(&self, request: Request<proto::ProbeRequest>) -> Result<Response<proto::ProbeResponse>, Status> {
        let group = sealcast::rpc::convert::group(&request.get_ref().group, "ProbeRequest.group")?;
        let (node, _) = self.gate.member(&request, &group)?;
        Ok(Response::new(proto::ProbeResponse { node: node.to_string(), ..Default::default() }))
    }

    async fn report(&self, _: Request<proto::ReportRequest>) -> Result<Response<proto::ReportResponse>, Status> {
        Err(not_here())
    }

    async fn fetch_manifest(
        &self,
        _: Request<proto::FetchManifestRequest>,
    ) -> Result<Response<proto::FetchManifestResponse>, Status> {
        Err(not_here())
    }

    async fn fetch_body(&self, _: Request<proto::FetchBodyRequest>) -> Result<Response<Self::FetchBodyStream>, Status> {
        Err(not_here())
    }

    async fn read_index(
        &self,
        _: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexResponse>, Status> {
        Err(not_here())
    }

    async fn acknowledge(
        &self,
        _: Request<proto::AcknowledgeRequest>,
    ) -> Result<Response<proto::AcknowledgeResponse>, Status> {
        Err(not_here())
    }

    async fn offer_directory(
        &self,
        _: Request<proto::OfferDirectoryRequest>,
    ) -> Result<Response<proto::OfferDirectoryResponse>, Status> {
        Err(not_here())
    }
}

#[tonic::async_trait]
impl Reader for Told {
    type SubscribeStream = Stream<proto::ReadResponse>;
    type GetStream = Stream<proto::ReadResponse>;
    type GetByKeyStream = Stream<proto::ReadResponse>;

    async fn subscribe(&self, _: Request<proto::SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        Err(not_here())
    }

    /// Streams as many bytes as the request's offset says.
    async fn get(&self, request: Request<proto::GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        self.gate.reader_of(&request, &name("orders"))?;
        let total = usize::try_from(request.get_ref().offset).unwrap();
        let (give, take) = mpsc::channel(2);
        tokio::spawn(async move {
            let mut left = total;
            while left > 0 {
                let size = left.min(CHUNK);
                left -= size;
                let part = proto::read_response::Part::Data(Bytes::from(vec![7; size]));
                if give.send(Ok(proto::ReadResponse { part: Some(part) })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(take))))
    }

    async fn get_by_key(&self, _: Request<proto::GetByKeyRequest>) -> Result<Response<Self::GetByKeyStream>, Status> {
        Err(not_here())
    }

    async fn status(&self, _: Request<proto::StatusRequest>) -> Result<Response<proto::StatusResponse>, Status> {
        Err(not_here())
    }

    /// Says who called, and over which key exchange.
    async fn node_status(
        &self,
        request: Request<proto::NodeStatusRequest>,
    ) -> Result<Response<proto::NodeStatusResponse>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let who = self.gate.identity(&request)?;
        let caller = request.extensions().get::<Caller>().unwrap();
        let alarm = proto::Alarm { name: caller.key_exchange.clone(), ..Default::default() };
        let answer = proto::NodeStatusResponse { node: who.to_string(), alarms: vec![alarm], ..Default::default() };
        Ok(Response::new(answer))
    }
}

/// Node `a`, listening; the directory says that `b` is there too, by another name.
pub struct Environment {
    pub addresses: [String; 2],
    pub set: watch::Sender<Arc<Directory>>,
    pub told: Told,
    pub stop: CancellationToken,
    pub served: tokio::task::JoinHandle<Result<(), ServeError>>,
}

pub const READERS: &[(&str, u8)] = &[("app", 31), ("other", 32)];

pub async fn environment() -> Environment {
    environment_at("127.0.0.1:0").await
}

pub async fn environment_at(address: &str) -> Environment {
    let seams = Seams::real();
    let listener = seams.network.listen(address).await.unwrap();
    let address = listener.address().unwrap();
    let addresses = [address.to_string(), format!("localhost:{}", address.port())];
    let (set, watch) = watch::channel(directory(1, addresses.clone(), READERS));
    let told = Told {
        gate: Gate::new(watch.clone(), Meter::default()),
        calls: Arc::default(),
        go: Arc::default(),
        arrived: Arc::default(),
    };
    let stop = CancellationToken::new();
    let services = Routes::new(peer_service(told.clone())).add_service(reader_service(told.clone()));
    let (credentials, until) = (Credentials::new(&secret(tls_of("a"))).unwrap(), stop.clone());
    let served = tokio::spawn(async move {
        serve(listener, &credentials, watch, services, seams.clock, Meter::default(), until).await
    });
    Environment { addresses, set, told, stop, served }
}

impl Environment {
    /// Dials as the holder of this key, with the directory of the beginning.
    pub fn dialer(&self, key: u8) -> Dialer {
        self.dialer_with(key, &Seams::real())
    }

    /// The same, and whoever failed to connect never finds that it is time to try again.
    pub fn dialer_out_of_time(&self, key: u8) -> Dialer {
        self.dialer_with(key, &Seams { clock: Arc::new(ManualClock::new(Time(0))), ..Seams::real() })
    }

    fn dialer_with(&self, key: u8, seams: &Seams) -> Dialer {
        let (_, watch) = watch::channel(directory(1, self.addresses.clone(), READERS));
        Dialer::new(seams, Credentials::new(&secret(key)).unwrap(), watch, Meter::default())
    }

    pub fn calls(&self) -> usize {
        self.told.calls.load(Ordering::SeqCst)
    }
}

pub async fn who(dialer: &Dialer) -> Result<proto::NodeStatusResponse, Status> {
    let answer = dialer.reader(&name("a")).unwrap().node_status(proto::NodeStatusRequest {}).await;
    answer.map(Response::into_inner)
}

pub fn raft(kind: u32, bytes: usize) -> proto::RaftRequest {
    proto::RaftRequest { group: Bytes::new(), kind, payload: Bytes::from(vec![3; bytes]) }
}
