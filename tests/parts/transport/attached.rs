//! The embedded transport of another process: conformance, what happens when that process goes and comes, and who is kept
//! out.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use sealcast::core::id::{DestinationName, EnvironmentName};
use sealcast::seams::Seams;
use sealcast::store::records::RecordsError;
use sealcast::transport::embedded::{Service, SocketError};
use sealcast::transport::{AnyTransport, AppendError, ReadError, Topic, Transport, TransportError, TransportOptions};

use super::conformance::{PATIENCE, append, collect, conforms, partition, record};
use super::embedded::open;

fn attach(folder: &Path) -> Result<AnyTransport, TransportError> {
    AnyTransport::open(&TransportOptions::Attached(folder.to_path_buf()), &Seams::real())
}

/// Opens the folder and serves it, as another process would.
fn serve(folder: &Path) -> (AnyTransport, Service) {
    let transport = open(folder);
    let service = transport.serve(&Seams::real()).expect("it serves").expect("it is embedded");
    (transport, service)
}

/// A folder for its owner alone.
fn private() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o700)).tempdir().expect("a folder")
}

fn kept() -> Topic {
    let environment = EnvironmentName::new("test").expect("a name");
    Topic::segments(&environment, &DestinationName::new("kept").expect("a name"))
}

async fn create(transport: &AnyTransport) {
    let AnyTransport::Embedded(embedded) = transport else { panic!("it is embedded") };
    embedded.create_topic(&kept(), 3).await.expect("created");
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    let folder = private();
    let (_transport, _service) = serve(folder.path());
    conforms(&attach(folder.path()).expect("attached")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_processes_see_one_log() {
    let folder = private();
    let (transport, _service) = serve(folder.path());
    let (one, other) = (attach(folder.path()).expect("attached"), attach(folder.path()).expect("attached"));
    create(&transport).await;
    until("the topic is seen", || [&one, &other].iter().all(|one| one.partitions(&kept()).len() == 3)).await;
    let to = partition(&kept(), 1);
    for (number, transport) in [&one, &transport, &other, &one].into_iter().enumerate() {
        assert_eq!(append(transport, &to, record(b"key", &[number as u8])).await, number as i64);
    }
    for transport in [&transport, &one, &other] {
        let found = collect(transport, &to, 0, 4).await;
        assert_eq!(found.iter().map(|found| found.value.as_deref().unwrap()[0]).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attached_process_goes_on_when_the_serving_one_is_back() {
    let folder = private();
    let (transport, service) = serve(folder.path());
    create(&transport).await;
    let attached = attach(folder.path()).expect("attached");
    let to = partition(&kept(), 0);
    attached.known(&kept(), PATIENCE, &Seams::real()).await;
    assert_eq!(append(&attached, &to, record(b"", b"before")).await, 0);
    service.stop().await;
    drop(transport);
    assert!(!folder.path().join("socket").exists(), "the socket went with its process");
    until("it is seen to be gone", || attached.partitions(&kept()).iter().all(|known| !known.up)).await;
    let lost = attached.append(to.clone(), record(b"", b"lost")).expect("room").await;
    let Err(AppendError::Absent { cause, .. }) = lost else { panic!("{lost:?}") };
    assert!(cause.contains("sealcast dev"), "{cause}");
    assert!(matches!(attached.read(to.clone(), 0).await, Err(ReadError::Absent { .. })));
    // What a killed process leaves does not hinder the next.
    drop(UnixListener::bind(folder.path().join("socket")).expect("a stale socket"));
    assert!(matches!(attach(folder.path()), Err(TransportError::Socket(SocketError::NobodyServes { .. }))));
    let (_transport, _service) = serve(folder.path());
    until("it is seen to be back", || attached.partitions(&kept()).iter().all(|known| known.up)).await;
    assert_eq!(append(&attached, &to, record(b"", b"after")).await, 1);
    let found = collect(&attached, &to, 0, 2).await;
    assert_eq!(
        found.iter().map(|found| found.value.as_deref().unwrap()).collect::<Vec<_>>(),
        [b"before", &b"after"[..]]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_owner_of_a_served_folder_gets_in() {
    let folder = private();
    let nobody = attach(folder.path()).expect_err("nobody is there");
    assert!(nobody.retryable() && nobody.to_string().contains("sealcast dev DIR"), "{nobody}");
    let (transport, service) = serve(folder.path());
    let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(folder.path()), mode(&folder.path().join("socket"))), (0o700, 0o600));
    // One process has the folder; another one reaches it through the first.
    let settings = sealcast::config::TransportSettings::Embedded { path: folder.path().to_path_buf() };
    let reached = AnyTransport::open_or_attach(settings.clone(), &Seams::real()).await.expect("attached");
    assert!(matches!(reached, AnyTransport::Attached(_)), "{reached:?}");
    assert!(reached.serve(&Seams::real()).expect("nothing to serve").is_none());
    service.stop().await;
    let alone = AnyTransport::open_or_attach(settings, &Seams::real()).await;
    assert!(matches!(alone, Err(TransportError::Embedded(RecordsError::InUse { .. }))), "{alone:?}");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("opened");
    let open = transport.serve(&Seams::real()).expect_err("others may enter");
    assert!(open.to_string().contains("chmod 700"), "{open}");
}

#[tokio::test]
async fn a_path_that_is_too_long_for_a_socket_is_told_with_the_mend() {
    let outside = private();
    let folder = outside.path().join("x".repeat(120));
    let transport = open(&folder);
    let refused = transport.serve(&Seams::real()).expect_err("too long");
    assert!(refused.to_string().contains("shorter path"), "{refused}");
    assert!(
        matches!(attach(&folder), Err(TransportError::Socket(SocketError::PathTooLong { length, .. })) if length > 120)
    );
}
