//! Publishes stripes to one topic: asks [`core::place`](crate::core::place) where each shard goes, hands records to the
//! transport, and follows acknowledgements until a stripe is accepted (R14, R15).
//!
//! One [`Publisher`] is one topic with a task of its own (`lane`), so topics never wait for each other; within it every
//! partition has its own queue, so domains do not either. It holds records only until a stripe is accepted; when it needs
//! them again it asks.
//!
//! Owns what may be asked of that task and what it says, and the credit that bounds what it holds. Must not look inside a
//! record, and must not know the outbox.

mod lane;

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

pub use super::layout::{Layout, known};

use self::lane::Lane;
use super::contract::{Full, Record, Topic, Transport};
use crate::core::id::ParcelId;
use crate::seams::Clock;
use crate::telemetry::Meter;

/// One stripe of a parcel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StripeId {
    /// The parcel.
    pub parcel: ParcelId,
    /// The stripe's number, from 0.
    pub index: u32,
}

/// A stripe to publish.
#[derive(Debug, Clone)]
pub struct StripeRecords {
    /// Which one.
    pub id: StripeId,
    /// How many of its records rebuild it.
    pub k: usize,
    /// One record for each shard, ascending by shard index.
    pub records: Vec<Record>,
}

impl StripeRecords {
    /// What its records take, in bytes.
    pub fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.value.len()).sum()
    }
}

/// What a publisher has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublisherEvent {
    /// The stripe is accepted (R14). Said once for each stripe.
    Accepted(StripeId),
    /// Every record of it was acknowledged, though it cannot be accepted now.
    Settled(StripeId),
    /// Domains are gone that held shards of this stripe, or others are back: publish it again, it will be topped up.
    Wanted(StripeId),
    /// *Accepted* is withheld, or no longer.
    Withheld {
        /// For want of these domains; none: no longer.
        domains: Vec<Arc<str>>,
        /// Whether that is because the topic has partitions in this one domain only, though it is up.
        only_one: bool,
    },
    /// The transport refuses records until somebody mends something; they are tried again every second.
    Refused {
        /// Which stripe it was.
        stripe: StripeId,
        /// What the transport said, and what to do.
        cause: String,
    },
}

enum Command {
    Publish { stripe: StripeRecords, again: bool, credit: OwnedSemaphorePermit },
    Forget(ParcelId),
}

/// The way to one topic. Cheap to clone; when the last clone is dropped, its task ends.
#[derive(Debug, Clone)]
pub struct Publisher {
    commands: mpsc::UnboundedSender<Command>,
    credit: Arc<Semaphore>,
    most: usize,
}

/// The publisher's task has ended: the process is shutting down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the publisher is closed")]
pub struct PublisherClosed;

impl PublisherClosed {
    /// Whether the same publisher can take it later: never.
    pub fn retryable(&self) -> bool {
        false
    }
}

impl Publisher {
    /// Starts publishing to `topic`, holding at most `bytes` of records that are not accepted yet. Needs a tokio runtime.
    pub fn start<T: Transport>(
        transport: Arc<T>,
        topic: Topic,
        clock: Arc<dyn Clock>,
        meter: &Meter,
        bytes: usize,
    ) -> (Self, mpsc::UnboundedReceiver<PublisherEvent>) {
        let (commands, orders) = mpsc::unbounded_channel();
        let (events, said) = mpsc::unbounded_channel();
        let most = bytes.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        tokio::spawn(Lane::new(transport, topic, clock, meter, events).run(orders));
        (Self { commands, credit: Arc::new(Semaphore::new(most)), most }, said)
    }

    /// Publishes a stripe: waits until there is credit for its bytes, not until it is accepted. A stripe that was published
    /// before is topped up where [`PublisherEvent::Wanted`] asked for it, or sent whole with `again`.
    pub async fn publish(&self, stripe: StripeRecords, again: bool) -> Result<(), PublisherClosed> {
        let bytes = stripe.bytes().min(self.most) as u32;
        let credit = self.credit.clone().acquire_many_owned(bytes).await.map_err(|_| PublisherClosed)?;
        self.commands.send(Command::Publish { stripe, again, credit }).map_err(|_| PublisherClosed)
    }

    /// The same without waiting: without credit it gives the stripe back.
    pub fn try_publish(&self, stripe: StripeRecords) -> Result<(), Full<StripeRecords>> {
        let bytes = stripe.bytes().min(self.most) as u32;
        let Ok(credit) = self.credit.clone().try_acquire_many_owned(bytes) else { return Err(Full(stripe)) };
        match self.commands.send(Command::Publish { stripe, again: false, credit }) {
            Err(mpsc::error::SendError(Command::Publish { stripe, .. })) => Err(Full(stripe)),
            _ => Ok(()),
        }
    }

    /// Bytes of records that are not accepted yet.
    pub fn in_flight(&self) -> usize {
        self.most.saturating_sub(self.credit.available_permits())
    }

    /// Forgets a parcel: it has a fate. Records on their way stay on their way.
    pub fn forget(&self, parcel: ParcelId) {
        // A publisher that has ended holds nothing any more.
        let _ = self.commands.send(Command::Forget(parcel));
    }
}
