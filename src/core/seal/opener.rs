//! Opening a parcel as its bytes come: the envelope, then the transactions one after the other.
//!
//! Owns the order of checks and events. Must not know how sealed bytes were carried, or what becomes of transactions.

use std::collections::BTreeSet;
use std::fmt;

use super::body::{BodyError, BodyEvent, BodyOpener, LENGTH_BYTES};
use super::envelope::{self, EnvelopeOpenError, ParcelContext, envelope_bytes};
use super::keys::TransactionKey;
use super::parcel::{BodyDigest, SealedTransaction, sealed_transaction};
use super::suite::HpkeSecret;
use super::transaction::PrivateHeader;
use crate::core::id::{DestinationTag, RefusalReason, TransactionId};
use crate::core::wire::WireError;

/// Why a parcel does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeOpenError),
    /// A transaction.
    #[error("transaction {index}: {cause}")]
    Transaction {
        /// Which, from 0.
        index: u32,
        /// Why.
        cause: BodyError,
    },
    /// The bytes end before the last transaction does.
    #[error("the parcel ends after {whole} of {announced} transactions")]
    Truncated {
        /// How many transactions are whole.
        whole: u32,
        /// How many the envelope announces.
        announced: u32,
    },
    /// Bytes follow the last transaction.
    #[error("bytes follow the last of {announced} transactions")]
    Trailing {
        /// How many the envelope announces.
        announced: u32,
    },
}

impl OpenError {
    /// The verdict, if these bytes deserve one (R22): the same at every node.
    pub fn refusal(&self) -> Option<RefusalReason> {
        match self {
            Self::Envelope(error) => error.refusal(),
            Self::Transaction { cause, .. } => cause.refusal(),
            Self::Truncated { .. } => Some(RefusalReason::Stream),
            Self::Trailing { .. } => Some(RefusalReason::Malformed),
        }
    }

    /// Whether the same bytes may open later: with the right key, or under a later version (R21).
    pub fn retryable(&self) -> bool {
        self.refusal().is_none()
    }
}

/// What opening a parcel gives. For each transaction: one `Begin`, then `Ciphertext`, `Header` and `Payload` as bytes come, one
/// `End`. Nothing of a transaction may be used before its `End`, nothing of a parcel before [`ParcelOpener::finish`].
#[derive(Debug)]
pub enum Event<'a> {
    /// A transaction begins.
    Begin {
        /// Which, from 0.
        index: u32,
        /// Length of its ciphertext, unless it is of unknown length: then it is alone and ends with the parcel.
        ciphertext_bytes: Option<u64>,
    },
    /// The next bytes of its ciphertext, to be kept as they are.
    Ciphertext {
        /// Which, from 0.
        index: u32,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Its private header; its first chunk was authenticated.
    Header {
        /// Which, from 0.
        index: u32,
        /// The header.
        header: &'a PrivateHeader,
    },
    /// Payload bytes, expanded; their chunk was authenticated.
    Payload {
        /// Which, from 0.
        index: u32,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The transaction is whole.
    End(Box<SealedTransaction>),
}

/// Opens a parcel as its sealed bytes come, for one destination. Holds at most the envelope and one chunk.
pub struct ParcelOpener {
    context: ParcelContext,
    own: DestinationTag,
    state: State,
    ids: BTreeSet<TransactionId>,
}

enum State {
    /// The envelope is gathered.
    Envelope { secret: HpkeSecret, bytes: Vec<u8> },
    /// Transactions follow.
    Transactions { opened: envelope::Opened, whole: u32, current: Option<Box<CurrentOpen>> },
    /// It failed and gives the same error for ever.
    Failed(OpenError),
}

struct CurrentOpen {
    key: TransactionKey,
    /// The sealed length is gathered whole, so that `Begin` comes before any ciphertext.
    length: Vec<u8>,
    body: BodyOpener,
    digest: BodyDigest,
}

impl ParcelOpener {
    /// Starts a parcel. `own` is the destination that it is opened for, `secret` that of the key that C names for it.
    pub fn new(context: ParcelContext, own: DestinationTag, secret: HpkeSecret) -> Self {
        let state = State::Envelope { secret, bytes: Vec::new() };
        Self { context, own, state, ids: BTreeSet::new() }
    }

    /// Opens more of the parcel. Errors: [`OpenError`]; every later call gives the same one.
    pub fn push(&mut self, sealed: &[u8], sink: &mut impl FnMut(Event<'_>)) -> Result<(), OpenError> {
        let pushed = self.advance(sealed, sink);
        self.keep(pushed)
    }

    /// What expanding the transaction that is open can come to hold in memory, in bytes; 0 when none is compressed.
    pub fn expanding_bytes(&self) -> usize {
        match &self.state {
            State::Transactions { current: Some(current), .. } => current.body.expanding_bytes(),
            _ => 0,
        }
    }

    /// Says that no more bytes come: the parcel is whole, or [`OpenError`] says why not. Gives the number of transactions.
    pub fn finish(mut self, sink: &mut impl FnMut(Event<'_>)) -> Result<u32, OpenError> {
        self.end_open_ended(sink)?;
        match self.state {
            State::Failed(error) => Err(error),
            State::Envelope { bytes, .. } => {
                let needed = envelope_bytes(self.context.suite, self.context.destinations.len());
                let left = bytes.len();
                Err(EnvelopeOpenError::Shape(WireError::Truncated { field: "envelope", needed, left }).into())
            }
            State::Transactions { opened, whole, current } => {
                let announced = opened.transactions;
                if whole == announced && current.is_none() {
                    Ok(whole)
                } else {
                    Err(OpenError::Truncated { whole, announced })
                }
            }
        }
    }

    fn keep(&mut self, result: Result<(), OpenError>) -> Result<(), OpenError> {
        if let Err(error) = &result {
            // Dropping the state wipes its keys.
            self.state = State::Failed(error.clone());
        }
        result
    }

    fn advance(&mut self, mut sealed: &[u8], sink: &mut impl FnMut(Event<'_>)) -> Result<(), OpenError> {
        if let State::Envelope { secret, bytes } = &mut self.state {
            let needed = envelope_bytes(self.context.suite, self.context.destinations.len());
            let (taken, rest) = sealed.split_at_checked(needed - bytes.len()).unwrap_or((sealed, &[]));
            bytes.extend_from_slice(taken);
            sealed = rest;
            if bytes.len() < needed {
                return Ok(());
            }
            let opened = envelope::open(&self.context, &self.own, secret, bytes)?;
            self.state = State::Transactions { opened, whole: 0, current: None };
        }
        let (opened, whole, slot) = match &mut self.state {
            State::Transactions { opened, whole, current } => (opened, whole, current),
            State::Failed(error) => return Err(error.clone()),
            State::Envelope { .. } => return Ok(()),
        };
        let announced = opened.transactions;
        while !sealed.is_empty() {
            let index = *whole;
            if index == announced {
                return Err(OpenError::Trailing { announced });
            }
            let current = slot.get_or_insert_with(|| {
                let key = opened.secret.transaction(&opened.hash, index);
                let body = BodyOpener::new(&key);
                Box::new(CurrentOpen { key, length: Vec::new(), body, digest: BodyDigest::new() })
            });
            sealed = current.advance(index, announced, sealed, sink)?;
            if current.body.is_done()
                && let Some(current) = slot.take()
            {
                let ended = current.end(index, &self.context, &mut self.ids, sink)?;
                sink(Event::End(Box::new(ended)));
                *whole += 1;
            }
        }
        Ok(())
    }

    /// A transaction of unknown length ends with the parcel.
    fn end_open_ended(&mut self, sink: &mut impl FnMut(Event<'_>)) -> Result<(), OpenError> {
        let State::Transactions { whole, current, .. } = &mut self.state else { return Ok(()) };
        if let Some(current) = current.take() {
            let index = *whole;
            let ended = current.end(index, &self.context, &mut self.ids, sink)?;
            sink(Event::End(Box::new(ended)));
            *whole += 1;
        }
        Ok(())
    }
}

impl CurrentOpen {
    /// Takes what belongs to this transaction and gives back the rest.
    fn advance<'a>(
        &mut self,
        index: u32,
        announced: u32,
        sealed: &'a [u8],
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<&'a [u8], OpenError> {
        let failed = |cause| OpenError::Transaction { index, cause };
        let mut sealed = sealed;
        if self.length.len() < LENGTH_BYTES {
            let (taken, rest) = sealed.split_at_checked(LENGTH_BYTES - self.length.len()).unwrap_or((sealed, &[]));
            self.length.extend_from_slice(taken);
            sealed = rest;
            if self.length.len() < LENGTH_BYTES {
                return Ok(sealed);
            }
            let mut alone = true;
            self.body
                .push(&self.length, &mut |event| {
                    if let BodyEvent::Length(ciphertext_bytes) = event {
                        alone = ciphertext_bytes.is_some() || announced == 1;
                        sink(Event::Begin { index, ciphertext_bytes });
                    }
                })
                .map_err(failed)?;
            if !alone {
                let expected = "a length: only a transaction that is alone has a trailer";
                return Err(failed(WireError::Invalid { field: "transaction length", expected }.into()));
            }
            self.digest.update(&self.length);
            sink(Event::Ciphertext { index, bytes: &self.length });
        }
        let taken = self.body.push(sealed, &mut |event| pass(index, event, sink)).map_err(failed)?;
        let (bytes, rest) = sealed.split_at_checked(taken).unwrap_or((sealed, &[]));
        if !bytes.is_empty() {
            self.digest.update(bytes);
            sink(Event::Ciphertext { index, bytes });
        }
        Ok(rest)
    }

    /// All its bytes are here: checks what only the end tells.
    fn end(
        self,
        index: u32,
        context: &ParcelContext,
        ids: &mut BTreeSet<TransactionId>,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<SealedTransaction, OpenError> {
        let failed = |cause| OpenError::Transaction { index, cause };
        let opened = self.body.finish(&mut |event| pass(index, event, sink)).map_err(failed)?;
        let wrong = |field, expected| failed(WireError::Invalid { field, expected }.into());
        if !context.destinations.iter().map(|(tag, _)| tag).eq(opened.header.destinations.keys()) {
            return Err(wrong("destination tag", "exactly the parcel's destinations"));
        }
        if !ids.insert(opened.header.id) {
            return Err(wrong("transaction id", "each id once in a parcel"));
        }
        Ok(sealed_transaction(index, opened.header, opened.payload, self.key, &self.digest))
    }
}

fn pass(index: u32, event: BodyEvent<'_>, sink: &mut impl FnMut(Event<'_>)) {
    match event {
        BodyEvent::Length(_) => {}
        BodyEvent::Header(header) => sink(Event::Header { index, header }),
        BodyEvent::Payload(bytes) => sink(Event::Payload { index, bytes }),
    }
}

impl fmt::Debug for ParcelOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParcelOpener").field("context", &self.context).field("own", &self.own).finish_non_exhaustive()
    }
}
