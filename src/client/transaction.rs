//! What an application submits: a payload and what is said about it. Must not know sealing or the outbox.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::error::ClientError;
use crate::core::id::{DestinationName, OnPredecessor, Position, Release, Ticket, Time, TransactionId};
use crate::core::limits;

/// Until when a transaction is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deadline {
    /// A day, or the shortest of its destinations' longest lives when that is less.
    Default,
    /// So long after it is submitted.
    After(Duration),
    /// At this time.
    At(Time),
}

/// A transaction before it is submitted.
///
/// ```
/// use sealcast::client::Transaction;
///
/// let transaction = Transaction::new("three boxes of nails")
///     .key("customer-42")
///     .header("content-language", "en")
///     .content_type("text/plain");
/// ```
#[derive(Debug, Clone)]
pub struct Transaction {
    pub(super) payload: Bytes,
    pub(super) id: Option<TransactionId>,
    pub(super) ordering_key: Option<Bytes>,
    pub(super) idempotency_key: Option<Bytes>,
    pub(super) headers: Vec<(String, Bytes)>,
    pub(super) content_type: Option<String>,
    pub(super) trace: Option<String>,
    pub(super) deadline: Deadline,
    pub(super) expected_version: Option<Position>,
    pub(super) expected_versions: BTreeMap<DestinationName, Position>,
    pub(super) after: BTreeMap<DestinationName, Ticket>,
    pub(super) on_predecessor: OnPredecessor,
    pub(super) release: Release,
    pub(super) compress: bool,
    pub(super) pad: bool,
}

impl Transaction {
    /// A transaction with this payload. Copies nothing that is [`Bytes`] already. For a payload that should not be held in
    /// memory see [`Client::submit_reader`](super::Client::submit_reader), and give an empty one here.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            payload: payload.into(),
            id: None,
            ordering_key: None,
            idempotency_key: None,
            headers: Vec::new(),
            content_type: None,
            trace: None,
            deadline: Deadline::Default,
            expected_version: None,
            expected_versions: BTreeMap::new(),
            after: BTreeMap::new(),
            on_predecessor: OnPredecessor::Reject,
            release: Release::Committed,
            compress: false,
            pad: false,
        }
    }

    /// Its payload.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Whether it has an ordering key.
    pub fn has_key(&self) -> bool {
        self.ordering_key.is_some()
    }

    /// The ordering key, 1 to 256 bytes: transactions of this outbox with equal keys go in the order of their submission
    /// at each destination (R9).
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.ordering_key = Some(key.into());
        self
    }

    /// An application header, up to 64 of them: a name of 1 to 128 bytes, a value of up to 4,096. Sealed like the payload.
    ///
    /// ```
    /// use sealcast::client::Transaction;
    ///
    /// let order = Transaction::new("ten nails").header("language", "en").content_type("text/plain");
    /// assert_eq!(order.payload(), "ten nails");
    /// ```
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The payload's media type, as in HTTP.
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// A W3C `traceparent`, and after a comma a `tracestate`: 1 to 512 bytes.
    ///
    /// ```
    /// use sealcast::client::Transaction;
    ///
    /// let traced = Transaction::new("x").trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    /// ```
    pub fn trace(mut self, trace: impl Into<String>) -> Self {
        self.trace = Some(trace.into());
        self
    }

    /// Expires this long after it is submitted, unless it has a fate by then. At most the destination's longest life;
    /// without a word a day, or that longest life.
    ///
    /// ```
    /// use sealcast::client::Transaction;
    ///
    /// use std::time::Duration;
    ///
    /// let offer = Transaction::new("ten nails for 1.20").deadline(Duration::from_secs(3600));
    /// ```
    pub fn deadline(mut self, after: Duration) -> Self {
        self.deadline = Deadline::After(after);
        self
    }

    /// Expires at this time, unless it has a fate by then.
    pub fn deadline_at(mut self, time: Time) -> Self {
        self.deadline = Deadline::At(time);
        self
    }

    /// Of all transactions of this sender with this idempotency key (1 to 256 bytes) the first to commit wins, for the
    /// destination's window; later ones are rejected(duplicate) (R6).
    ///
    /// ```
    /// use sealcast::client::Transaction;
    ///
    /// let payment = Transaction::new("12.40").key("customer-42").idempotency_key("invoice-7/payment");
    /// ```
    pub fn idempotency_key(mut self, key: impl Into<Bytes>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Compare-and-set: commits only if its ordering key's last position is this one; else it is rejected(conflict).
    /// [`Position::default`] (0.0): only if the key is new. At several destinations: at all for which
    /// [`Transaction::expected_version_at`] says nothing else.
    ///
    /// ```
    /// use sealcast::client::Transaction;
    /// use sealcast::core::id::Position;
    ///
    /// let first = Transaction::new("balance 100").key("account-7").expected_version(Position::default());
    /// let next = Transaction::new("balance 80").key("account-7").expected_version(Position { index: 12, number: 0 });
    /// ```
    pub fn expected_version(mut self, position: Position) -> Self {
        self.expected_version = Some(position);
        self
    }

    /// The same at one of several destinations: positions are each destination's own (R20).
    pub fn expected_version_at(mut self, destination: DestinationName, position: Position) -> Self {
        self.expected_versions.insert(destination, position);
        self
    }

    /// The version that it expects at a destination.
    pub(super) fn expects(&self, destination: &DestinationName) -> Option<Position> {
        self.expected_versions.get(destination).copied().or(self.expected_version)
    }

    /// Follows this transaction of the same destination and sender, rather than the last of its ordering key there. Once for
    /// each destination at most: a later one replaces an earlier.
    ///
    /// ```no_run
    /// # fn example(handle: sealcast::client::Handle) -> Result<(), Box<dyn std::error::Error>> {
    /// use sealcast::client::Transaction;
    ///
    /// let refund = Transaction::new("refund").after(handle.ticket().clone()).release_on_complete();
    /// # Ok(())
    /// # }
    /// ```
    pub fn after(mut self, ticket: Ticket) -> Self {
        self.after.insert(ticket.destination.clone(), ticket);
        self
    }

    /// What becomes of it when its predecessor is rejected or expires. Default: it is rejected too.
    pub fn on_predecessor(mut self, rule: OnPredecessor) -> Self {
        self.on_predecessor = rule;
        self
    }

    /// Follows its predecessor only when that is complete: held by all voters. A predecessor by ordering key is remembered for
    /// ten minutes after its commit; name one that has waited longer for its last voters by [`Transaction::after`].
    pub fn release_on_complete(mut self) -> Self {
        self.release = Release::Complete;
        self
    }

    /// Compresses the payload (zstd) before it is sealed. Sizes then say something about contents: do not compress
    /// secrets together with what others choose.
    ///
    /// ```
    /// use sealcast::client::Transaction;
    ///
    /// let report = Transaction::new("{}".repeat(1000)).content_type("application/json").compress();
    /// ```
    pub fn compress(mut self) -> Self {
        self.compress = true;
        self
    }

    /// Pads the payload (Padmé, at most 12 % more) so that its size says little.
    ///
    /// ```
    /// use sealcast::client::Transaction;
    ///
    /// let quiet = Transaction::new("yes").pad();
    /// ```
    pub fn pad(mut self) -> Self {
        self.pad = true;
        self
    }

    /// Its id, when the application chose one before (a UUIDv7 of about now): a repeat keeps the first fate (R6).
    pub fn id(mut self, id: TransactionId) -> Self {
        self.id = Some(id);
        self
    }

    /// Checks every part against its limit.
    pub(super) fn check(&self) -> Result<(), ClientError> {
        let wrong = |field, problem: String| Err(ClientError::Transaction { field, problem });
        for (field, key) in [("ordering key", &self.ordering_key), ("idempotency key", &self.idempotency_key)] {
            if key.as_ref().is_some_and(|key| !(1..=limits::KEY_BYTES).contains(&key.len())) {
                return wrong(field, format!("1 to {} bytes", limits::KEY_BYTES));
            }
        }
        if self.headers.len() > limits::HEADERS {
            return wrong("headers", format!("{} of them, at most {}", self.headers.len(), limits::HEADERS));
        }
        for (name, value) in &self.headers {
            if !(1..=limits::HEADER_NAME_BYTES).contains(&name.len()) || value.len() > limits::HEADER_VALUE_BYTES {
                let most = limits::HEADER_VALUE_BYTES;
                let problem =
                    format!("{name:?}: names have 1 to {} bytes, values up to {most}", limits::HEADER_NAME_BYTES);
                return wrong("headers", problem);
            }
        }
        let length = |name: &str, value: usize| name.len() + value + 8;
        let sum: usize = self.headers.iter().map(|(name, value)| length(name, value.len())).sum();
        if sum > limits::PRIVATE_HEADER_BYTES / 2 {
            return wrong("headers", format!("{sum} bytes together, at most {}", limits::PRIVATE_HEADER_BYTES / 2));
        }
        if self.content_type.as_ref().is_some_and(|text| text.is_empty() || text.len() > limits::HEADER_NAME_BYTES) {
            return wrong("content type", format!("1 to {} bytes", limits::HEADER_NAME_BYTES));
        }
        if self.trace.as_ref().is_some_and(|trace| !(1..=limits::TRACE_BYTES).contains(&trace.len())) {
            return wrong("trace", format!("1 to {} bytes", limits::TRACE_BYTES));
        }
        if self.payload.len() as u64 > limits::PAYLOAD_BYTES {
            return wrong("payload", format!("at most {} bytes", limits::PAYLOAD_BYTES));
        }
        if (self.expected_version.is_some() || !self.expected_versions.is_empty()) && self.ordering_key.is_none() {
            return wrong("expected version", "needs an ordering key, whose version it is".to_owned());
        }
        Ok(())
    }
}
