//! Parcels, streaming both ways: the envelope, then the transactions one after the other.
//!
//! Owns the order of things in a parcel and what an opened transaction gives. Must not know how sealed bytes are cut or
//! carried, or what becomes of transactions.

#![deny(clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fmt;

use zeroize::Zeroizing;

use super::body::{BodyError, BodyEvent, BodyOpener, BodySealer, LENGTH_BYTES, SealError};
use super::envelope::{self, EnvelopeError, EnvelopeOpenError, ParcelContext, WrapTarget, envelope_bytes};
use super::keys::{KEY_BYTES, ParcelSecret, TransactionKey};
use super::suite::{HpkeSecret, WRAP_RANDOMNESS_BYTES};
use super::transaction::{Payload, PrivateHeader};
use crate::core::id::{DestinationTag, Digest, RefusalReason, TransactionId};
use crate::core::wire::{WireError, label};

/// What is known of a transaction when all of it was sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedTransaction {
    /// Its index in the parcel, from 0.
    pub index: u32,
    /// Its private header.
    pub header: PrivateHeader,
    /// Its true lengths and its tag.
    pub payload: Payload,
    /// K_tx, to be wrapped at once.
    pub key: TransactionKey,
    /// A commitment to K_tx, for the manifest.
    pub tx_commit: [u8; 32],
    /// Length of its ciphertext: sealed length and STREAM, in bytes.
    pub ciphertext_bytes: u64,
    /// BLAKE3(L("body") || ciphertext).
    pub ciphertext_digest: Digest,
}

/// A transaction's ciphertext digest, as the bytes pass: BLAKE3(L("body") || sealed length || STREAM).
#[derive(Debug, Clone)]
pub struct BodyDigest {
    hasher: blake3::Hasher,
    bytes: u64,
}

impl BodyDigest {
    /// Starts a ciphertext.
    pub fn new() -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(label::BODY);
        Self { hasher, bytes: 0 }
    }

    /// More of it.
    pub fn update(&mut self, ciphertext: &[u8]) {
        self.hasher.update(ciphertext);
        self.bytes = self.bytes.saturating_add(ciphertext.len() as u64);
    }

    /// Its length in bytes and its digest.
    pub fn finish(&self) -> (u64, Digest) {
        (self.bytes, Digest(*self.hasher.finalize().as_bytes()))
    }
}

impl Default for BodyDigest {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a parcel cannot be sealed as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParcelSealError {
    /// The envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// A transaction.
    #[error("transaction {index}: {cause}")]
    Transaction {
        /// Which, from 0.
        index: u32,
        /// Why.
        cause: SealError,
    },
    /// A transaction whose destinations are not the parcel's.
    #[error("transaction {index}: its destinations are not exactly those of the parcel")]
    Destinations {
        /// Which, from 0.
        index: u32,
    },
    /// Two transactions of one id.
    #[error("transaction {index}: {id} is in this parcel already")]
    Repeated {
        /// Which, from 0.
        index: u32,
        /// Its id.
        id: TransactionId,
    },
    /// A transaction of unknown length that is not alone.
    #[error("a transaction of unknown length must be alone in its parcel")]
    NotAlone,
    /// A call that has no place here: a transaction begun within another or beyond the announced number, payload outside of
    /// one, or an end before all were sealed.
    #[error("{call} has no place here: {sealed} of {announced} transactions are sealed")]
    Order {
        /// Which call.
        call: &'static str,
        /// How many transactions are whole.
        sealed: u32,
        /// How many the envelope announced.
        announced: u32,
    },
}

impl ParcelSealError {
    /// Whether the same call can succeed later: never. A crash or error within a parcel abandons it (R3).
    pub fn retryable(&self) -> bool {
        false
    }
}

/// Seals a parcel: the envelope at once, then `begin`, `push` and `end` for each transaction, then `finish`. Everything is
/// appended to a buffer of the caller, which may empty it between calls.
pub struct ParcelSealer {
    secret: ParcelSecret,
    envelope: [u8; 32],
    destinations: BTreeSet<DestinationTag>,
    announced: u32,
    sealed: u32,
    ids: BTreeSet<TransactionId>,
    current: Option<CurrentSeal>,
}

struct CurrentSeal {
    key: TransactionKey,
    header: PrivateHeader,
    body: BodySealer,
    digest: BodyDigest,
}

impl ParcelSealer {
    /// Starts a parcel of exactly this many transactions (1 to 1,024) and appends its envelope to `out`. `ctx` is
    /// SHA-256(L("parcel") || C), the targets stand in C's order (ascending by tag), `k` is fresh for every parcel, and so are
    /// the encapsulations' draws, one for each target. Errors: [`ParcelSealError::Envelope`].
    pub fn new(
        ctx: &[u8; 32],
        targets: &[WrapTarget],
        transactions: u32,
        k: &Zeroizing<[u8; KEY_BYTES]>,
        encapsulations: &[[u8; WRAP_RANDOMNESS_BYTES]],
        out: &mut Vec<u8>,
    ) -> Result<Self, ParcelSealError> {
        let (secret, envelope) = envelope::seal(ctx, targets, k, transactions, encapsulations, out)?;
        Ok(Self {
            secret,
            envelope,
            destinations: targets.iter().map(|target| target.tag).collect(),
            announced: transactions,
            sealed: 0,
            ids: BTreeSet::new(),
            current: None,
        })
    }

    /// Begins the next transaction: its sealed length and private header. A header without lengths needs a parcel of one.
    /// Errors: [`ParcelSealError`].
    pub fn begin(&mut self, header: PrivateHeader, out: &mut Vec<u8>) -> Result<(), ParcelSealError> {
        let index = self.sealed;
        if self.current.is_some() || index == self.announced {
            return Err(self.order("begin"));
        }
        if header.payload.is_none() && self.announced != 1 {
            return Err(ParcelSealError::NotAlone);
        }
        if !self.destinations.iter().eq(header.destinations.keys()) {
            return Err(ParcelSealError::Destinations { index });
        }
        if self.ids.contains(&header.id) {
            return Err(ParcelSealError::Repeated { index, id: header.id });
        }
        let key = self.secret.transaction(&self.envelope, index);
        let at = out.len();
        let body =
            BodySealer::new(&key, &header, out).map_err(|cause| ParcelSealError::Transaction { index, cause })?;
        self.ids.insert(header.id);
        let mut current = CurrentSeal { key, header, body, digest: BodyDigest::new() };
        current.digest.update(out.get(at..).unwrap_or_default());
        self.current = Some(current);
        Ok(())
    }

    /// Seals more of the payload, as it is carried (compressed by the caller, if the header says so). Large pieces are sealed
    /// in place in `out`: one copy. Errors: [`ParcelSealError`].
    pub fn push(&mut self, carried: &[u8], out: &mut Vec<u8>) -> Result<(), ParcelSealError> {
        let wrong = self.order("push");
        let index = self.sealed;
        let current = self.current.as_mut().ok_or(wrong)?;
        let at = out.len();
        current.body.push(carried, out).map_err(|cause| ParcelSealError::Transaction { index, cause })?;
        current.digest.update(out.get(at..).unwrap_or_default());
        Ok(())
    }

    /// Ends the transaction. `trailer` tells lengths and tag when the header does not. Errors: [`ParcelSealError`].
    pub fn end(&mut self, trailer: Option<Payload>, out: &mut Vec<u8>) -> Result<SealedTransaction, ParcelSealError> {
        let wrong = self.order("end");
        let index = self.sealed;
        let CurrentSeal { key, header, body, mut digest } = self.current.take().ok_or(wrong)?;
        let at = out.len();
        let payload = body.finish(trailer, out).map_err(|cause| ParcelSealError::Transaction { index, cause })?;
        digest.update(out.get(at..).unwrap_or_default());
        self.sealed += 1;
        Ok(sealed_transaction(index, header, payload, key, &digest))
    }

    /// A whole transaction whose carried payload is at hand. Errors: [`ParcelSealError`].
    pub fn seal(
        &mut self,
        header: PrivateHeader,
        carried: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<SealedTransaction, ParcelSealError> {
        self.begin(header, out)?;
        self.push(carried, out)?;
        self.end(None, out)
    }

    /// Ends the parcel. Errors: [`ParcelSealError::Order`] when not all announced transactions were sealed.
    pub fn finish(self) -> Result<(), ParcelSealError> {
        if self.current.is_none() && self.sealed == self.announced { Ok(()) } else { Err(self.order("finish")) }
    }

    fn order(&self, call: &'static str) -> ParcelSealError {
        ParcelSealError::Order { call, sealed: self.sealed, announced: self.announced }
    }
}

impl fmt::Debug for ParcelSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ParcelSealer({} of {} sealed)", self.sealed, self.announced)
    }
}

fn sealed_transaction(
    index: u32,
    header: PrivateHeader,
    payload: Payload,
    key: TransactionKey,
    digest: &BodyDigest,
) -> SealedTransaction {
    let (ciphertext_bytes, ciphertext_digest) = digest.finish();
    let tx_commit = key.commitment();
    SealedTransaction { index, header, payload, key, tx_commit, ciphertext_bytes, ciphertext_digest }
}

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
