//! gRPC over real TLS on loopback: who is let in, as whom, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sealcast::core::directory::{DestinationEntry, DestinationKey, Directory, Draft, NodeEntry, ReaderEntry};
use sealcast::core::id::{EnvironmentId, NodeName, Suite, Time};
use sealcast::core::limits;
use sealcast::core::sign::SecretKey;
use sealcast::rpc::access::{Caller, Gate};
use sealcast::rpc::client::{DialError, Dialer, explain, retryable};
use sealcast::rpc::proto::{self, peer_server::Peer, reader_server::Reader};
use sealcast::rpc::server::{ServeError, peer_service, reader_service, serve};
use sealcast::rpc::tls::Credentials;
use sealcast::seams::Seams;
use sealcast::telemetry::Meter;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

const NODES: [&str; 2] = ["a", "b"];
const ENVIRONMENT: EnvironmentId = EnvironmentId([5; 16]);
const CHUNK: usize = 256 * 1024;

fn secret(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

/// TLS keys: node `a` 11, node `b` 13; readers `app` 31, `other` 32.
fn tls_of(node: &str) -> u8 {
    if node == "a" { 11 } else { 13 }
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn directory(version: u64, addresses: [String; 2], readers: &[(&str, u8)]) -> Arc<Directory> {
    let mut draft = Draft::new(ENVIRONMENT, name("test"), Time(4_102_444_800_000));
    draft.version = version;
    for (node, address) in NODES.iter().zip(addresses) {
        let tls = tls_of(node);
        draft.add_node(NodeEntry {
            name: name(node),
            address,
            signing: secret(tls - 1).public(),
            tls: secret(tls).public().bytes(),
            hpke: Bytes::from(vec![tls; 1216]),
        });
    }
    let key = DestinationKey::current(Suite::XWing, Bytes::from(vec![2; 1216])).unwrap();
    draft.add_destination(DestinationEntry::new(ENVIRONMENT, name("orders"), NODES.map(name), vec![key]));
    for (reader, seed) in readers {
        draft.add_reader(ReaderEntry {
            name: name(reader),
            signing: secret(*seed).public(),
            hpke: Bytes::from(vec![*seed; 1216]),
            destinations: BTreeSet::from([name("orders")]),
        });
    }
    let operator = secret(1);
    Arc::new(Directory::verify(&draft.sign(&operator).unwrap(), &operator.public(), 1).unwrap())
}

/// The services of a node that says who called it.
#[derive(Clone)]
struct Told {
    gate: Gate,
    calls: Arc<AtomicUsize>,
    go: Arc<Notify>,
    arrived: Arc<Notify>,
}

type Stream<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

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
        Err(Status::unimplemented("not in this test"))
    }

    async fn fetch_manifest(
        &self,
        _: Request<proto::FetchManifestRequest>,
    ) -> Result<Response<proto::FetchManifestResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn fetch_body(&self, _: Request<proto::FetchBodyRequest>) -> Result<Response<Self::FetchBodyStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn read_index(
        &self,
        _: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn offer_directory(
        &self,
        _: Request<proto::OfferDirectoryRequest>,
    ) -> Result<Response<proto::OfferDirectoryResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

#[tonic::async_trait]
impl Reader for Told {
    type SubscribeStream = Stream<proto::ReadResponse>;
    type GetStream = Stream<proto::ReadResponse>;
    type GetByKeyStream = Stream<proto::ReadResponse>;

    async fn subscribe(&self, _: Request<proto::SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        Err(Status::unimplemented("not in this test"))
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
        Err(Status::unimplemented("not in this test"))
    }

    async fn status(&self, _: Request<proto::StatusRequest>) -> Result<Response<proto::StatusResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
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
struct Environment {
    addresses: [String; 2],
    set: watch::Sender<Arc<Directory>>,
    told: Told,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<Result<(), ServeError>>,
}

const READERS: &[(&str, u8)] = &[("app", 31), ("other", 32)];

async fn environment() -> Environment {
    environment_at("127.0.0.1:0").await
}

async fn environment_at(address: &str) -> Environment {
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
    fn dialer(&self, key: u8) -> Dialer {
        let (_, watch) = watch::channel(directory(1, self.addresses.clone(), READERS));
        Dialer::new(&Seams::real(), Credentials::new(&secret(key)).unwrap(), watch, Meter::default())
    }

    fn calls(&self) -> usize {
        self.told.calls.load(Ordering::SeqCst)
    }
}

async fn who(dialer: &Dialer) -> Result<proto::NodeStatusResponse, Status> {
    let answer = dialer.reader(&name("a")).unwrap().node_status(proto::NodeStatusRequest {}).await;
    answer.map(Response::into_inner)
}

fn raft(kind: u32, bytes: usize) -> proto::RaftRequest {
    proto::RaftRequest { group: Bytes::new(), kind, payload: Bytes::from(vec![3; bytes]) }
}

#[tokio::test]
async fn each_side_knows_the_other_by_its_key_and_the_exchange_is_hybrid() {
    let environment = environment().await;
    for (key, identity) in [(13, "node b"), (31, "reader app"), (32, "reader other")] {
        let answer = who(&environment.dialer(key)).await.unwrap();
        assert_eq!(answer.node, identity);
        assert_eq!(answer.alarms[0].name, "X25519MLKEM768");
    }
}

#[tokio::test]
async fn a_key_outside_the_directory_reaches_no_service() {
    let environment = environment().await;
    let status = who(&environment.dialer(99)).await.unwrap_err();
    assert!(retryable(&status), "{status:?}");
    assert_eq!(environment.calls(), 0);
}

#[tokio::test]
async fn a_node_that_is_another_than_the_one_dialled_is_refused() {
    let environment = environment().await;
    let dialer = environment.dialer(31);
    let mut client = dialer.reader(&name("b")).unwrap();
    let status = client.node_status(proto::NodeStatusRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(explain(&status).contains("node b at localhost"), "{}", explain(&status));
    assert_eq!(environment.calls(), 0);
    // At once again: the dialer does not hammer.
    let status = client.node_status(proto::NodeStatusRequest {}).await.unwrap_err();
    assert!(explain(&status).contains("not tried again yet"), "{}", explain(&status));
    let unknown: NodeName = name("nobody");
    assert_eq!(dialer.connect(&unknown).unwrap_err(), DialError::Unknown { node: unknown });
}

#[tokio::test]
async fn a_reader_cannot_do_what_nodes_do() {
    let environment = environment().await;
    let status = environment.dialer(31).peer(&name("a")).unwrap().raft_call(raft(1, 3)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(!retryable(&status));
    let answer = environment.dialer(13).peer(&name("a")).unwrap().raft_call(raft(1, 3)).await.unwrap();
    assert_eq!(answer.into_inner().payload, vec![3; 3]);
}

#[tokio::test]
async fn a_group_that_does_not_exist_and_one_that_the_node_is_not_in_look_alike() {
    let environment = environment().await;
    let mut client = environment.dialer(13).peer(&name("a")).unwrap();
    let probe = |group: Vec<u8>| proto::ProbeRequest { group: group.into(), incarnation: Bytes::new() };
    let orders = environment.told.gate.directory().destinations[&name("orders")].tag;
    assert_eq!(client.probe(probe(orders.0.to_vec())).await.unwrap().into_inner().node, "b");
    let status = client.probe(probe(vec![1; 16])).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let status = client.probe(probe(vec![1; 3])).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "ProbeRequest.group has 3 bytes, not 16");
}

#[tokio::test]
async fn a_reader_that_a_new_directory_leaves_out_is_out() {
    let environment = environment().await;
    let (app, other) = (environment.dialer(31), environment.dialer(32));
    who(&app).await.unwrap();
    who(&other).await.unwrap();
    environment.set.send_replace(directory(2, environment.addresses.clone(), &[("other", 32)]));
    // On the connection that stands, and on a new one.
    assert_eq!(who(&app).await.unwrap_err().code(), Code::PermissionDenied);
    let calls = environment.calls();
    who(&environment.dialer(31)).await.unwrap_err();
    assert_eq!(environment.calls(), calls);
    assert_eq!(who(&other).await.unwrap().node, "reader other");
}

#[tokio::test]
async fn a_message_over_the_limit_reaches_no_service() {
    let environment = environment().await;
    let dialer = environment.dialer(13);
    let fits = limits::RPC_BYTES - 64;
    let answer = dialer.peer(&name("a")).unwrap().raft_call(raft(1, fits)).await.unwrap();
    assert_eq!(answer.into_inner().payload.len(), fits);
    let calls = environment.calls();
    let status = dialer.peer(&name("a")).unwrap().raft_call(raft(1, limits::RPC_BYTES)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(!retryable(&status));
    assert_eq!(environment.calls(), calls);
}

#[tokio::test]
async fn a_large_answer_streams() {
    let environment = environment().await;
    let total = 64 * 1024 * 1024 + 1;
    let request = proto::GetRequest { offset: total, ..Default::default() };
    let mut client = environment.dialer(31).reader(&name("a")).unwrap();
    let mut stream = client.get(request).await.unwrap().into_inner();
    let mut got = 0;
    while let Some(message) = stream.message().await.unwrap() {
        let Some(proto::read_response::Part::Data(data)) = message.part else { panic!("only data is sent") };
        assert!(data.len() <= CHUNK && data.iter().all(|byte| *byte == 7));
        got += data.len() as u64;
    }
    assert_eq!(got, total);
}

#[tokio::test]
async fn connections_that_say_nothing_hold_up_nobody() {
    let environment = environment().await;
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(tokio::net::TcpStream::connect(&environment.addresses[0]).await.unwrap());
    }
    assert_eq!(who(&environment.dialer(31)).await.unwrap().node, "reader app");
}

#[tokio::test]
async fn a_call_that_runs_ends_well_after_the_stop() {
    let environment = environment().await;
    let mut client = environment.dialer(13).peer(&name("a")).unwrap();
    let call = tokio::spawn(async move { client.raft_call(raft(9, 5)).await });
    environment.told.arrived.notified().await;
    environment.stop.cancel();
    // The port closes as soon as the stop is seen: then nobody is let in any more.
    while tokio::net::TcpStream::connect(&environment.addresses[0]).await.is_ok() {
        tokio::task::yield_now().await;
    }
    environment.told.go.notify_one();
    assert_eq!(call.await.unwrap().unwrap().into_inner().payload.len(), 5);
    environment.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_node_that_goes_away_breaks_its_calls_and_is_reached_again_when_it_is_back() {
    let first = environment().await;
    let dialer = first.dialer(13);
    let mut client = dialer.peer(&name("a")).unwrap();
    let call = tokio::spawn(async move { client.raft_call(raft(9, 5)).await });
    first.told.arrived.notified().await;
    first.served.abort();
    let status = call.await.unwrap().unwrap_err();
    assert!(retryable(&status), "{status:?}");
    let _ = first.served.await;

    let _second = environment_at(&first.addresses[0]).await;
    let back = async {
        while let Err(status) = dialer.peer(&name("a")).unwrap().raft_call(raft(1, 1)).await {
            assert!(retryable(&status), "{status:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), back).await.expect("reached again");
}

#[tokio::test]
async fn a_call_can_be_given_a_limit() {
    let environment = environment().await;
    let dialer = environment.dialer(13);
    let mut client = dialer.peer(&name("a")).unwrap();
    let status = dialer.within(Duration::from_millis(50), client.raft_call(raft(9, 1))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(retryable(&status));
}

mod impostors {
    //! Clients that a careful library would not build.

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion};
    use tokio::io::AsyncReadExt;

    use super::*;

    #[derive(Debug)]
    struct Anybody;

    impl ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }
    }

    /// A certificate with a public key whose secret its maker does not have.
    struct Stolen([u8; 32]);

    impl rcgen::PublicKeyData for Stolen {
        fn der_bytes(&self) -> &[u8] {
            &self.0
        }

        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            &rcgen::PKCS_ED25519
        }
    }

    impl rcgen::SigningKey for Stolen {
        fn sign(&self, _: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
            Ok(vec![0; 64])
        }
    }

    /// Whether the server lets a client in that shows the public key `shown` and signs with `held`; or nothing.
    async fn let_in(
        environment: &Environment,
        version: &'static SupportedProtocolVersion,
        certificate: Option<(u8, u8)>,
    ) -> bool {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some((shown, held)) => {
                let stolen = Stolen(secret(shown).public().bytes().0);
                let shown = rcgen::CertificateParams::default().self_signed(&stolen).unwrap().der().clone();
                let mut pkcs8 = data_encoding::HEXLOWER.decode(b"302e020100300506032b657004220420").unwrap();
                pkcs8.extend_from_slice(&[held; 32]);
                let held = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8)).unwrap();
                let certified = CertifiedKey::new(vec![shown], held);
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = tokio::net::TcpStream::connect(&environment.addresses[0]).await.unwrap();
        let server = ServerName::try_from("node").unwrap();
        let Ok(mut stream) = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(server, stream).await else {
            return false;
        };
        // In TLS 1.3 the client learns of its refusal afterwards; a server that let it in sends its HTTP/2 settings.
        stream.read_u8().await.is_ok()
    }

    #[tokio::test]
    async fn a_certificate_without_its_key_no_certificate_and_old_tls_are_refused() {
        let environment = environment().await;
        assert!(let_in(&environment, &rustls::version::TLS13, Some((31, 31))).await);
        assert!(!let_in(&environment, &rustls::version::TLS13, Some((31, 77))).await);
        assert!(!let_in(&environment, &rustls::version::TLS13, None).await);
        assert!(!let_in(&environment, &rustls::version::TLS12, Some((31, 31))).await);
    }
}
