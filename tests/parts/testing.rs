//! How a service tests itself with `sealcast::testing::Environment`: a small order service, and the unit tests that its own
//! crate would have. What follows them are tests of the environment.

use std::time::Duration;

use sealcast::client::{Stage, Waited};
use sealcast::core::id::Rejection;
use sealcast::testing::{Environment, Setup, TestingError};

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(60);

/// The service: it takes orders and says what became of them. It knows Sealcast's client, and nothing of tests.
mod orders {
    use std::time::Duration;

    use sealcast::client::{Client, Stage, Transaction, Waited};
    use sealcast::core::id::{Position, Rejection, Ticket};

    /// What became of an order.
    #[derive(Debug, PartialEq)]
    pub enum Placed {
        /// It stands, here.
        Confirmed(Position),
        /// It was refused for good: tell the customer.
        Refused(Rejection),
        /// Nobody knows yet: it may still be confirmed. Ask again with the ticket.
        Pending(Ticket),
    }

    pub struct Orders {
        client: Client,
        patience: Duration,
    }

    impl Orders {
        pub fn new(client: Client, patience: Duration) -> Self {
            Self { client, patience }
        }

        pub async fn place(&self, customer: &str, order: &str) -> Result<Placed, sealcast::client::ClientError> {
            let transaction = Transaction::new(order.to_owned()).key(customer.to_owned());
            let handle = self.client.submit("orders", transaction).await?;
            self.look(handle.ticket()).await
        }

        pub async fn look(&self, ticket: &Ticket) -> Result<Placed, sealcast::client::ClientError> {
            let handle = self.client.attach(ticket).await?;
            Ok(match handle.wait(Stage::Committed, self.patience).await? {
                Waited::Reached => {
                    let receipt = handle.receipt().expect("a fate has its receipt");
                    Placed::Confirmed(receipt.position.expect("committed"))
                }
                Waited::Rejected(reason) => Placed::Refused(reason),
                Waited::Expired | Waited::Unknown => Placed::Pending(ticket.clone()),
            })
        }
    }
}

use orders::{Orders, Placed};

// --- the service's own unit tests

#[tokio::test]
async fn an_order_is_confirmed_and_can_be_read_back() {
    let environment = Environment::start().await.unwrap();
    let orders = Orders::new(environment.client().await.unwrap(), PATIENCE);
    let Placed::Confirmed(position) = orders.place("customer-42", "ten nails").await.unwrap() else {
        panic!("refused")
    };
    let committed = environment.committed("orders").await.unwrap();
    let [(order, payload)] = committed.as_slice() else { panic!("{committed:?}") };
    assert_eq!((order.position, order.key.as_deref()), (position, Some(&b"customer-42"[..])));
    assert_eq!(payload, "ten nails");
}

#[tokio::test]
async fn a_refused_order_is_told_as_such() {
    let environment = Environment::start().await.unwrap();
    let orders = Orders::new(environment.client().await.unwrap(), PATIENCE);
    environment.reject_next(Rejection::Conflict).await.unwrap();
    assert_eq!(orders.place("customer-42", "ten nails").await.unwrap(), Placed::Refused(Rejection::Conflict));
    assert!(environment.committed("orders").await.unwrap().is_empty());
    // Another customer's is none of its business.
    assert!(matches!(orders.place("customer-43", "a hammer").await.unwrap(), Placed::Confirmed(_)));
}

#[tokio::test]
async fn an_order_without_an_answer_is_pending_and_confirmed_later() {
    let environment = Environment::start().await.unwrap();
    let client = environment.client().await.unwrap();
    let hurried = Orders::new(client.clone(), Duration::from_millis(100));
    environment.stall();
    let Placed::Pending(ticket) = hurried.place("customer-42", "ten nails").await.unwrap() else { panic!("an answer") };
    environment.resume();
    let orders = Orders::new(client, PATIENCE);
    assert!(matches!(orders.look(&ticket).await.unwrap(), Placed::Confirmed(_)));
    assert_eq!(environment.committed("orders").await.unwrap().len(), 1);
}

// --- the environment itself

#[tokio::test]
async fn orders_are_confirmed_while_a_broker_and_a_node_are_away() {
    let environment = Environment::start().await.unwrap();
    let client = environment.client().await.unwrap();
    let orders = Orders::new(client.clone(), PATIENCE);
    environment.lose_broker(1).unwrap();
    environment.stop_node("b").await.unwrap();
    assert!(matches!(orders.place("customer-42", "ten nails").await.unwrap(), Placed::Confirmed(_)));
    environment.return_broker(1).unwrap();
    environment.start_node("b").await.unwrap();
    let handle = client.submit("orders", sealcast::client::Transaction::new("a hammer")).await.unwrap();
    assert_eq!(handle.wait(Stage::Complete, PATIENCE).await.unwrap(), Waited::Reached);
    let found = environment.committed("orders").await.unwrap();
    assert_eq!(found.iter().map(|(_, payload)| payload.as_ref()).collect::<Vec<_>>(), [&b"ten nails"[..], b"a hammer"]);
    environment.end().await;
}

#[tokio::test]
async fn every_reason_is_the_nodes_own_word() {
    let environment = Environment::start().await.unwrap();
    let orders = Orders::new(environment.client().await.unwrap(), PATIENCE);
    let reasons = [Rejection::IdReuse, Rejection::Predecessor, Rejection::Conflict, Rejection::Duplicate];
    for (number, reason) in reasons.into_iter().enumerate() {
        environment.reject_next(reason).await.unwrap();
        let placed = orders.place(&format!("customer-{number}"), "ten nails").await.unwrap();
        assert_eq!(placed, Placed::Refused(reason));
    }
    // The one that the duplicate repeats.
    assert_eq!(environment.committed("orders").await.unwrap().len(), 1);
    for reason in [Rejection::NotPermitted, Rejection::DeadlineTooFar] {
        let refused = environment.reject_next(reason).await.unwrap_err();
        assert!(matches!(refused, TestingError::NotSubmitted { .. }) && !refused.retryable(), "{refused}");
    }
}

#[tokio::test]
async fn environments_stand_side_by_side_and_leave_nothing_behind() {
    let mut folders = Vec::new();
    let setup =
        Setup { destinations: vec!["returns".to_owned()], senders: vec!["desk".to_owned()], ..Setup::default() };
    let (one, other) = tokio::join!(Environment::start(), Environment::with(setup));
    let (one, other) = (one.unwrap(), other.unwrap());
    let (web, desk) = (one.client().await.unwrap(), other.client_of("desk").await.unwrap());
    let transaction = || sealcast::client::Transaction::new("ten nails");
    let handle = desk.submit("returns", transaction()).await.unwrap();
    assert_eq!(handle.wait(Stage::Committed, PATIENCE).await.unwrap(), Waited::Reached);
    assert!(web.submit("returns", transaction()).await.is_err(), "another environment's destination");
    assert!(one.committed("orders").await.unwrap().is_empty());
    assert_eq!(other.committed("returns").await.unwrap().len(), 1);
    for absent in [one.client_of("desk").await.err(), one.committed("returns").await.err(), one.lose_broker(3).err()] {
        assert!(matches!(absent, Some(TestingError::Absent { .. })), "{absent:?}");
    }
    for environment in [one, other] {
        folders.push(environment.folder().to_path_buf());
        environment.end().await;
    }
    assert!(folders.iter().all(|folder| !folder.exists()), "{folders:?}");
    let folder = {
        let dropped = Environment::start().await.unwrap();
        dropped.folder().to_path_buf()
    };
    let gone = async {
        while folder.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("a dropped environment goes too");
}
