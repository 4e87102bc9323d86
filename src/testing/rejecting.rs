//! Having transactions rejected, for real: what a client submits next is changed so that consensus cannot commit it, and the
//! nodes decide, sign and tell as always.
//!
//! Owns what is changed. Must not make a fate.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::TestingError;
use crate::client::{Client, Interceptor, Stage, Transaction, Waited};
use crate::core::id::{DestinationName, OnPredecessor, Position, Rejection, SenderName, Ticket};
use crate::seams::Seams;

/// A version that no ordering key ever has.
const NO_VERSION: Position = Position { index: u64::MAX, number: u32::MAX };
/// The ordering key of transactions that have none and must have one.
const KEY: &str = "sealcast-testing";
/// How long what is prepared may take.
const PREPARED_WITHIN: Duration = Duration::from_secs(20);

/// What was submitted before, by each sender, for a transaction to come to grief on.
#[derive(Debug, Clone)]
struct Obstacle {
    tickets: BTreeMap<DestinationName, Ticket>,
    idempotency_key: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Plan {
    reason: Rejection,
    obstacles: BTreeMap<SenderName, Obstacle>,
}

/// The rejections that are still to come, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Rejecting(Arc<Mutex<VecDeque<Plan>>>);

impl Rejecting {
    /// Changes what a sender's client submits, as planned.
    pub(super) fn interceptor(&self, sender: &SenderName) -> Interceptor {
        let (plans, sender) = (self.0.clone(), sender.clone());
        Arc::new(move |destinations, transaction| {
            let plan = plans.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match plan {
                Some(plan) => plan.change(&sender, destinations, transaction),
                None => transaction,
            }
        })
    }

    /// Prepares one rejection. `clients` are those of every sender. Errors: [`TestingError`].
    pub(super) async fn plan(
        &self,
        reason: Rejection,
        clients: &BTreeMap<SenderName, Client>,
        destinations: &[DestinationName],
        seams: &Seams,
    ) -> Result<(), TestingError> {
        let mut obstacles = BTreeMap::new();
        match reason {
            Rejection::Conflict => {}
            Rejection::NotPermitted | Rejection::DeadlineTooFar => return Err(TestingError::NotSubmitted { reason }),
            Rejection::IdReuse | Rejection::Predecessor | Rejection::Duplicate => {
                for (sender, client) in clients {
                    obstacles.insert(sender.clone(), obstacle(reason, client, destinations, seams).await?);
                }
            }
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(Plan { reason, obstacles });
        Ok(())
    }
}

impl Plan {
    fn change(&self, sender: &SenderName, to: &[DestinationName], transaction: Transaction) -> Transaction {
        let Some(obstacle) = self.obstacles.get(sender) else { return conflicting(to, transaction) };
        let mut tickets = to.iter().filter_map(|name| obstacle.tickets.get(name)).cloned();
        match self.reason {
            Rejection::IdReuse => match tickets.next() {
                Some(ticket) => transaction.id(ticket.transaction),
                None => conflicting(to, transaction),
            },
            Rejection::Predecessor => {
                tickets.fold(transaction, Transaction::after).on_predecessor(OnPredecessor::Reject)
            }
            Rejection::Duplicate => transaction.idempotency_key(obstacle.idempotency_key.clone()),
            _ => conflicting(to, transaction),
        }
    }
}

/// The same, which only commits if its key has a version that it has not.
fn conflicting(to: &[DestinationName], transaction: Transaction) -> Transaction {
    let transaction = if transaction.has_key() { transaction } else { transaction.key(KEY) };
    to.iter().fold(transaction, |transaction, name| transaction.expected_version_at(name.clone(), NO_VERSION))
}

/// Submits what the next transaction is to come to grief on, and waits for its fate. Only a duplicate needs one that is
/// committed; all others are rejected, so that no reader sees them.
async fn obstacle(
    reason: Rejection,
    client: &Client,
    destinations: &[DestinationName],
    seams: &Seams,
) -> Result<Obstacle, TestingError> {
    let drawn: [u8; 16] = seams.randomness.array().map_err(|error| TestingError::Client(Arc::new(error.into())))?;
    let transaction = Transaction::new(drawn.to_vec());
    let transaction = match reason {
        Rejection::Duplicate => transaction.idempotency_key(drawn.to_vec()),
        _ => conflicting(destinations, transaction.key(drawn.to_vec())),
    };
    let handles = client.submit_to(destinations, transaction).await.map_err(|error| Arc::new(error.into()))?;
    let mut tickets = BTreeMap::new();
    for handle in handles {
        match handle.wait(Stage::Committed, PREPARED_WITHIN).await.map_err(Arc::new)? {
            Waited::Unknown => return Err(TestingError::NotPrepared { reason }),
            _ => tickets.insert(handle.ticket().destination.clone(), handle.ticket().clone()),
        };
    }
    Ok(Obstacle { tickets, idempotency_key: drawn.to_vec() })
}
