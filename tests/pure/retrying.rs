//! Which errors say that the same call can succeed later by itself, and which do not: a table that services rely on.

use std::sync::Arc;

use sealcast::client::reader::ReadError;
use sealcast::client::{ClientError, SubmitError, Transaction, WaitError};
use sealcast::core::directory::DirectoryError;
use sealcast::core::id::{DestinationName, NodeName, Position, Suite};
use sealcast::local::LocalError;
use sealcast::node::NodeError;
use sealcast::store::outbox::OutboxError;
use sealcast::transport::TransportError;
use sealcast::transport::embedded::SocketError;
use sealcast::transport::kafka::KafkaError;

fn orders() -> DestinationName {
    DestinationName::new("orders").unwrap()
}

fn a() -> NodeName {
    NodeName::new("a").unwrap()
}

fn text() -> String {
    "x".to_owned()
}

fn client_errors() -> Vec<(ClientError, bool)> {
    let outbox = |error: OutboxError, again| (ClientError::Outbox(error), again);
    let kafka = |error: KafkaError, again| (ClientError::Transport(error.into()), again);
    vec![
        (ClientError::WindowFull { transactions: 1, bytes: 1 }, true),
        outbox(OutboxError::Full { needed: 1, held: 1, most: 1 }, true),
        outbox(OutboxError::DiskFull { needed: 1, folder: text() }, true),
        outbox(OutboxError::Failed { cause: text() }, false),
        (ClientError::Changed, true),
        (ClientError::DirectoryEnded, true),
        (ClientError::NoDestination { destination: orders() }, false),
        (ClientError::NotPermitted { destination: orders() }, false),
        (ClientError::Suite { destination: orders(), suite: Suite::XWing }, false),
        (ClientError::Transaction { field: "key", problem: text() }, false),
        (ClientError::Read(std::io::ErrorKind::TimedOut.into()), false),
        (ClientError::Length { said: 1, given: 2 }, false),
        (ClientError::Seal { cause: text() }, false),
        (ClientError::Directory(DirectoryError::OldVersion { version: 1, minimum: 2 }), false),
        (ClientError::Setting { setting: "sender.key", problem: text() }, false),
        (ClientError::Closed, false),
        kafka(KafkaError::Unavailable { cause: text() }, true),
        kafka(KafkaError::Barred { brokers: text(), cause: text() }, false),
        kafka(KafkaError::Rejected { what: "x", cause: text() }, false),
        kafka(KafkaError::Closed, false),
        (ClientError::Transport(SocketError::NobodyServes { folder: "x".into(), environment: text() }.into()), true),
    ]
}

#[test]
fn an_error_of_submitting_says_whether_to_try_again_wherever_it_comes_from() {
    for (error, again) in client_errors() {
        assert_eq!(error.retryable(), again, "{error:?}");
        let said = error.to_string();
        let given_back = SubmitError { error, transaction: Box::new(Transaction::new("x")) };
        assert_eq!((given_back.retryable(), given_back.to_string()), (again, said));
    }
}

#[test]
fn an_error_of_waiting_says_whether_to_attach_again() {
    let rejected = sealcast::core::id::Rejection::Conflict;
    for (error, again) in [
        (WaitError::Rejected(rejected), false),
        (WaitError::Expired, false),
        (WaitError::Forgotten, false),
        (WaitError::Incomplete, true),
        // The outbox goes on with it: whoever attaches again, with another client if need be, can hear of it.
        (WaitError::Local(ClientError::Closed), true),
    ] {
        assert_eq!(error.retryable(), again, "{error:?}");
    }
}

#[test]
fn an_error_of_reading_says_whether_to_ask_again() {
    let at = Position::default();
    for (error, again) in [
        (ReadError::Undecided { at }, true),
        (ReadError::Unavailable { said: text() }, true),
        (ReadError::NoReader, false),
        (ReadError::NoNode(text()), false),
        (ReadError::NotFound { at }, false),
        (ReadError::Purged, false),
        (ReadError::OtherCursor { destination: orders() }, false),
        (ReadError::NotPermitted, false),
        (ReadError::Refused { node: a(), said: text() }, false),
        (ReadError::Answer { node: a(), cause: text() }, false),
    ] {
        assert_eq!(error.retryable(), again, "{error:?}");
    }
}

#[test]
fn an_error_of_running_nodes_is_as_retryable_as_its_cause() {
    let listen =
        || NodeError::Listen { setting: "listen", address: text(), cause: std::io::ErrorKind::AddrInUse.into() };
    let start = LocalError::Start { node: a(), cause: Arc::new(listen()) };
    assert_eq!(start.retryable(), listen().retryable());
    for (error, again) in [
        (LocalError::NoNode(a()), false),
        (LocalError::NotReady { waits: text() }, true),
        (LocalError::Ports { cause: text() }, true),
    ] {
        assert_eq!(error.retryable(), again, "{error:?}");
    }
    assert!(TransportError::from(KafkaError::Unavailable { cause: text() }).retryable());
}
