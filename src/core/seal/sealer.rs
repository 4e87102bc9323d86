//! Sealing a parcel as a stream: the envelope, then the transactions one after the other.
//!
//! Owns the order of calls and what a parcel may hold. Must not know how sealed bytes are cut or carried.

use std::collections::BTreeSet;
use std::fmt;

use zeroize::Zeroizing;

use super::body::{BodySealer, SealError};
use super::envelope::{self, EnvelopeError, WrapTarget};
use super::keys::{KEY_BYTES, ParcelSecret, TransactionKey};
use super::parcel::{BodyDigest, SealedTransaction, sealed_transaction};
use super::suite::WRAP_RANDOMNESS_BYTES;
use super::transaction::{Payload, PrivateHeader};
use crate::core::id::{DestinationTag, TransactionId};

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
