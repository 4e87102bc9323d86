//! The envelope of a parcel: K, wrapped once for each destination, behind a commitment that forces one K on all of them
//! (design, section 3; docs/wire-format.md, "Envelope").
//!
//! Owns the envelope's bytes and the order of its checks. Must not know transactions.

use zeroize::Zeroizing;

use super::keys::{KEY_BYTES, ParcelSecret, envelope_hash};
use super::suite::{self, HpkePublic, HpkeSecret, SuiteError, WRAP_RANDOMNESS_BYTES};
use crate::core::id::{DestinationTag, KeyId, RefusalReason, Suite};
use crate::core::limits;
use crate::core::wire::{Reader, WireError, Writer, in_range, label};

/// The first four bytes of a parcel.
pub const MAGIC: [u8; 4] = *b"SCEN";

/// The version of envelope and transactions that this program writes and reads.
pub const VERSION: u8 = 1;

/// Length of an envelope without its wraps, in bytes.
const FIXED_BYTES: usize = 41;

/// Length of K wrapped, in bytes.
const WRAPPED_BYTES: usize = KEY_BYTES + suite::TAG_BYTES;

/// Length of the envelope of a parcel with this many destinations, in bytes.
pub fn envelope_bytes(suite: Suite, destinations: usize) -> usize {
    FIXED_BYTES + destinations * (suite::enc_bytes(suite) + WRAPPED_BYTES)
}

/// Whom a parcel is sealed to: one destination and its current key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrapTarget {
    /// The destination.
    pub tag: DestinationTag,
    /// Its key; all keys of a parcel have one suite.
    pub public: HpkePublic,
}

/// What a verified header says of the parcel that is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParcelContext {
    /// SHA-256(L("parcel") || C).
    pub ctx: [u8; 32],
    /// The suite that C names.
    pub suite: Suite,
    /// C's destinations and their key ids, in C's order.
    pub destinations: Vec<(DestinationTag, KeyId)>,
}

/// Why an envelope cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// None or more than 16 destinations, or none or more than 1,024 transactions.
    #[error(transparent)]
    Range(#[from] WireError),
    /// The destinations do not ascend by tag, each once.
    #[error("destinations must ascend by tag, each once, as in the core")]
    Order,
    /// Two keys of different suites: a parcel never mixes them.
    #[error("destination {tag} has a key of suite {given}, the parcel is of suite {suite}")]
    MixedSuites {
        /// Whose key it is.
        tag: DestinationTag,
        /// Its suite.
        given: Suite,
        /// That of the first destination.
        suite: Suite,
    },
    /// Not one draw of randomness for each destination.
    #[error("{given} draws of randomness for {needed} encapsulations")]
    Randomness {
        /// How many there should be.
        needed: usize,
        /// How many there are.
        given: usize,
    },
    /// A wrap failed.
    #[error(transparent)]
    Suite(#[from] SuiteError),
}

impl EnvelopeError {
    /// Whether the same call can succeed later: never.
    pub fn retryable(&self) -> bool {
        false
    }
}

/// Why an envelope does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeOpenError {
    /// Its bytes have not the shape of an envelope.
    #[error("envelope: {0}")]
    Shape(#[from] WireError),
    /// The core does not name this destination.
    #[error("the parcel is not for destination {0}")]
    NotAddressed(DestinationTag),
    /// The secret at hand is of another key than the core names. Local trouble, no verdict (R21).
    #[error("the parcel is sealed to key {needed}, the secret at hand is of {given}")]
    OtherKey {
        /// The key that the core names.
        needed: KeyId,
        /// The key at hand.
        given: KeyId,
    },
    /// The wrapped key does not open, or what it holds is not what the envelope commits to.
    #[error("the wrapped key does not open")]
    Unopenable,
}

impl EnvelopeOpenError {
    /// The verdict, if these bytes deserve one (R22): the same at every node.
    pub fn refusal(&self) -> Option<RefusalReason> {
        match self {
            Self::Shape(error) => (!error.retryable()).then_some(RefusalReason::Envelope),
            Self::NotAddressed(_) | Self::OtherKey { .. } => None,
            Self::Unopenable => Some(RefusalReason::Unopenable),
        }
    }

    /// Whether the same bytes may open later: with the right key, or under a later version.
    pub fn retryable(&self) -> bool {
        self.refusal().is_none()
    }
}

/// HPKE's info: which parcel, which destination, which key.
fn info(ctx: &[u8; 32], tag: &DestinationTag, key: &KeyId) -> Vec<u8> {
    [label::WRAP, ctx, &tag.0, &key.0].concat()
}

/// Makes the envelope of a parcel with this many transactions and appends it to `out`. Gives the secret of the parcel's keys
/// and E.
pub(super) fn seal(
    ctx: &[u8; 32],
    targets: &[WrapTarget],
    k: &[u8; KEY_BYTES],
    transactions: u32,
    encapsulations: &[[u8; WRAP_RANDOMNESS_BYTES]],
    out: &mut Vec<u8>,
) -> Result<(ParcelSecret, [u8; 32]), EnvelopeError> {
    in_range(targets.len() as u64, 1, limits::DESTINATIONS as u64, "destinations")?;
    in_range(transactions.into(), 1, limits::TRANSACTIONS_PER_PARCEL as u64, "transactions")?;
    if encapsulations.len() != targets.len() {
        return Err(EnvelopeError::Randomness { needed: targets.len(), given: encapsulations.len() });
    }
    if !targets.is_sorted_by(|one, next| one.tag < next.tag) {
        return Err(EnvelopeError::Order);
    }
    let Some(first) = targets.first() else { return Err(EnvelopeError::Order) };
    let suite = first.public.suite();
    let secret = ParcelSecret::extract(ctx, k);
    let commitment = secret.commitment();
    let mut envelope = Writer::with_capacity(envelope_bytes(suite, targets.len()));
    envelope.put(&MAGIC).u8(VERSION).u32(transactions).put(&commitment);
    for (WrapTarget { tag, public }, randomness) in targets.iter().zip(encapsulations) {
        if public.suite() != suite {
            return Err(EnvelopeError::MixedSuites { tag: *tag, given: public.suite(), suite });
        }
        let (enc, wrapped) = suite::wrap(public, &info(ctx, tag, &public.id()), &commitment, k, randomness)?;
        envelope.put(&enc).put(&wrapped);
    }
    let hash = envelope_hash(envelope.as_slice());
    out.extend_from_slice(envelope.as_slice());
    Ok((secret, hash))
}

/// What an opened envelope gives.
pub(super) struct Opened {
    pub(super) transactions: u32,
    pub(super) secret: ParcelSecret,
    pub(super) hash: [u8; 32],
}

/// Opens an envelope. In this order: shape, own place in the core, key id, `enc`, unwrap, length of K, commitment. Other
/// destinations' wraps are not looked at: E covers them.
pub(super) fn open(
    context: &ParcelContext,
    own: &DestinationTag,
    secret: &HpkeSecret,
    bytes: &[u8],
) -> Result<Opened, EnvelopeOpenError> {
    let mut reader = Reader::new(bytes);
    if reader.array("magic")? != MAGIC {
        return Err(WireError::Invalid { field: "magic", expected: "SCEN" }.into());
    }
    let version = reader.u8("version")?;
    if version != VERSION {
        return Err(WireError::Unknown { field: "version", value: version.into() }.into());
    }
    let transactions = reader.u32("transactions")?;
    in_range(transactions.into(), 1, limits::TRANSACTIONS_PER_PARCEL as u64, "transactions")?;
    let commitment: [u8; 32] = reader.array("commitment")?;
    let mut mine = None;
    for (tag, key) in &context.destinations {
        let enc = reader.take(suite::enc_bytes(context.suite), "encapsulated key")?;
        let wrapped = reader.take(WRAPPED_BYTES, "wrapped key")?;
        if tag == own {
            mine = Some((key, enc, wrapped));
        }
    }
    reader.finish("envelope")?;
    let (key, enc, wrapped) = mine.ok_or(EnvelopeOpenError::NotAddressed(*own))?;
    let given = secret.public().id();
    if given != *key {
        return Err(EnvelopeOpenError::OtherKey { needed: *key, given });
    }
    // The key id covers the suite, so a core whose suite is not that of its key has no such id, unless it lies: then the
    // lengths are wrong.
    let k = suite::unwrap(secret, &info(&context.ctx, own, key), &commitment, enc, wrapped)
        .map_err(|_| EnvelopeOpenError::Unopenable)?;
    let k: Zeroizing<[u8; KEY_BYTES]> =
        Zeroizing::new(k.as_slice().try_into().map_err(|_| EnvelopeOpenError::Unopenable)?);
    let secret = ParcelSecret::extract(&context.ctx, &k);
    if !secret.commits(&commitment) {
        return Err(EnvelopeOpenError::Unopenable);
    }
    Ok(Opened { transactions, secret, hash: envelope_hash(bytes) })
}
