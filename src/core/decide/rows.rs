//! What the store keeps of decided transactions: one row each, with compact bytes of a fixed form.
//!
//! Owns rows, claims and what follows from them (R6, R7, R26). Must not know where they are kept.

use std::time::Duration;

use super::manifest::ManifestItem;
use crate::core::id::{
    Digest, Fate, First, KeyTag, ParcelId, PayloadTag, Position, Rejection, SenderName, Time, TransactionId,
};
use crate::core::wire::{Reader, WireError, Writer};

/// The version of rows and claims that this code writes, and the only one that it reads.
pub const ROW_VERSION: u8 = 1;

/// A decided transaction. Everything in it follows from the log, so it is the same on every node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Who sent it, by directory name. With `transaction`, the key of the index that keeps transactions single (R6).
    pub sender: SenderName,
    /// Its id.
    pub transaction: TransactionId,
    /// Past this group time it would have expired.
    pub deadline: Time,
    /// What was decided.
    pub decision: Decision,
    /// Where it was decided; for a committed one, its place in the order of the destination.
    pub position: Position,
    /// Group time of the entry that decided it.
    pub decided: Time,
    /// The version of the directory that was in force there (R8).
    pub directory: u64,
    /// The parcel that brought it.
    pub parcel: ParcelId,
    /// D of that parcel.
    pub digest: Digest,
    /// Its number in that parcel.
    pub index: u32,
    /// Length of its payload, in bytes.
    pub payload_bytes: u64,
    /// Length of its ciphertext, in bytes.
    pub ciphertext_bytes: u64,
    /// The digest of its ciphertext.
    pub ciphertext_digest: Digest,
    /// The commitment to its key.
    pub tx_commit: [u8; 32],
    /// Equal for equal payloads of its sender.
    pub payload_tag: PayloadTag,
    /// Its ordering key's tag.
    pub key_tag: Option<KeyTag>,
}

/// What consensus decided. *Expired* is no row: it follows from group time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Decision {
    /// It is committed.
    Committed,
    /// It is rejected for this reason, which is none of [`Rejection::IdReuse`] (that never makes a row) and
    /// [`Rejection::Duplicate`].
    Rejected(Rejection),
    /// It is rejected as a duplicate of the one that claimed its idempotency key first.
    Duplicate(First),
}

impl Decision {
    /// The fate without its particulars.
    pub fn fate(self) -> Fate {
        match self {
            Self::Committed => Fate::Committed,
            Self::Rejected(reason) => Fate::Rejected(reason),
            Self::Duplicate(_) => Fate::Rejected(Rejection::Duplicate),
        }
    }
}

/// Who claimed an idempotency key, and until when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Who.
    pub first: First,
    /// The last group time at which it holds.
    pub until: Time,
}

/// How a ticket stands in the replicated state (R6, R7, R26).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It has this fate, decided at this position.
    Decided(Decision, Position),
    /// Another payload took its id, at this position: rejected(id-reuse).
    IdReuse(Position),
    /// Group time passed its deadline before it had another fate.
    Expired,
    /// It is too old to say: its deadline is before the retention horizon, and there is no row.
    Forgotten,
    /// It has no fate yet.
    Undecided,
}

/// Whether group time has passed a deadline (R7). At the deadline itself it has not.
pub fn expired(group_time: Time, deadline: Time) -> bool {
    group_time > deadline
}

/// The retention horizon (R26): no row whose deadline is at or after it may be forgotten, and *expired* is never signed for
/// a deadline before it. `retention` is that of the destination in the directory in force.
pub fn horizon(group_time: Time, retention: Duration) -> Time {
    Time(group_time.0.saturating_sub(u64::try_from(retention.as_millis()).unwrap_or(u64::MAX)))
}

/// How a ticket (`deadline` of some transaction) stands, given the row of its (sender, transaction id), if there is one.
///
/// One function for receipts, predecessors and reads, so that a ticket never has two fates: a ticket whose deadline had
/// passed when its id was decided (under a later deadline, or with another payload) had expired before, and stays so.
/// Without `payload_tag` (a successor or a reader does not know it) the row's own is taken.
pub fn standing(
    row: Option<&Row>,
    deadline: Time,
    payload_tag: Option<&PayloadTag>,
    group_time: Time,
    retention: Duration,
) -> Standing {
    match row {
        Some(row) if expired(row.decided, deadline) => Standing::Expired,
        Some(row) if payload_tag.is_some_and(|tag| *tag != row.payload_tag) => Standing::IdReuse(row.position),
        Some(row) => Standing::Decided(row.decision, row.position),
        None if !expired(group_time, deadline) => Standing::Undecided,
        None if deadline < horizon(group_time, retention) => Standing::Forgotten,
        None => Standing::Expired,
    }
}

impl Row {
    /// A row of a manifest's item.
    pub(super) fn of(item: &ManifestItem, parcel: &super::Commit, at: Decided, decision: Decision) -> Self {
        Self {
            sender: parcel.sender.clone(),
            transaction: item.transaction,
            deadline: item.deadline,
            decision,
            position: at.position,
            decided: at.time,
            directory: at.directory,
            parcel: parcel.parcel,
            digest: parcel.digest,
            index: item.index,
            payload_bytes: item.payload_bytes,
            ciphertext_bytes: item.ciphertext_bytes,
            ciphertext_digest: item.ciphertext_digest,
            tx_commit: item.tx_commit,
            payload_tag: item.payload_tag,
            key_tag: item.key_tag,
        }
    }

    /// Whether it is committed.
    pub fn is_committed(&self) -> bool {
        self.decision == Decision::Committed
    }

    /// Its bytes in the store and in the state digest.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::with_capacity(320);
        to.u8(ROW_VERSION).name(self.sender.as_str()).put(&self.transaction.to_bytes()).u64(self.deadline.0);
        match self.decision {
            Decision::Committed => {
                to.u8(0);
            }
            Decision::Rejected(reason) => {
                to.u8(reason.number());
            }
            Decision::Duplicate(first) => {
                to.u8(Rejection::Duplicate.number());
                put_first(&mut to, first);
            }
        }
        put_position(&mut to, self.position);
        to.u64(self.decided.0).u64(self.directory).put(&self.parcel.to_bytes()).put(&self.digest.0).u32(self.index);
        to.u64(self.payload_bytes).u64(self.ciphertext_bytes).put(&self.ciphertext_digest.0);
        to.put(&self.tx_commit).put(&self.payload_tag.0).flag(self.key_tag.is_some());
        if let Some(tag) = self.key_tag {
            to.put(&tag.0);
        }
        to.finish()
    }

    /// Reads a row. Errors: [`WireError`] with the field; [`WireError::Unknown`] for a later version.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes);
        version(&mut from, "row version")?;
        let row = Self {
            sender: from.name("row sender")?,
            transaction: transaction(&mut from, "row transaction")?,
            deadline: Time(from.u64("row deadline")?),
            decision: match from.u8("row decision")? {
                0 => Decision::Committed,
                number => match Rejection::from_number(number) {
                    Some(Rejection::Duplicate) => Decision::Duplicate(first(&mut from)?),
                    Some(reason) => Decision::Rejected(reason),
                    None => return Err(WireError::Unknown { field: "row decision", value: number.into() }),
                },
            },
            position: position(&mut from, "row position")?,
            decided: Time(from.u64("row decided")?),
            directory: from.u64("row directory")?,
            parcel: ParcelId::from_bytes(from.array("row parcel")?)
                .map_err(|_| WireError::Invalid { field: "row parcel", expected: "a UUID of version 7" })?,
            digest: Digest(from.array("row digest")?),
            index: from.u32("row index")?,
            payload_bytes: from.u64("row payload length")?,
            ciphertext_bytes: from.u64("row ciphertext length")?,
            ciphertext_digest: Digest(from.array("row ciphertext digest")?),
            tx_commit: from.array("row tx_commit")?,
            payload_tag: PayloadTag(from.array("row payload tag")?),
            key_tag: match from.flag("row key tag")? {
                true => Some(KeyTag(from.array("row key tag")?)),
                false => None,
            },
        };
        from.finish("row")?;
        Ok(row)
    }
}

/// Where and when something is decided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decided {
    pub(super) position: Position,
    pub(super) time: Time,
    pub(super) directory: u64,
}

fn put_first(to: &mut Writer, first: First) {
    to.put(&first.transaction.to_bytes());
    put_position(to, first.position);
}

fn first(from: &mut Reader<'_>) -> Result<First, WireError> {
    Ok(First { transaction: transaction(from, "first transaction")?, position: position(from, "first position")? })
}

impl Claim {
    /// Its bytes in the store and in the state digest.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::with_capacity(37);
        to.u8(ROW_VERSION);
        put_first(&mut to, self.first);
        to.u64(self.until.0);
        to.finish()
    }

    /// Reads a claim. Errors: [`WireError`] with the field.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes);
        version(&mut from, "claim version")?;
        let claim = Self { first: first(&mut from)?, until: Time(from.u64("claim end")?) };
        from.finish("claim")?;
        Ok(claim)
    }
}

fn version(from: &mut Reader<'_>, field: &'static str) -> Result<(), WireError> {
    match from.u8(field)? {
        ROW_VERSION => Ok(()),
        other => Err(WireError::Unknown { field, value: other.into() }),
    }
}

fn transaction(from: &mut Reader<'_>, field: &'static str) -> Result<TransactionId, WireError> {
    TransactionId::from_bytes(from.array(field)?)
        .map_err(|_| WireError::Invalid { field, expected: "a UUID of version 7" })
}

pub(super) fn put_position(to: &mut Writer, position: Position) {
    to.u64(position.index).u32(position.number);
}

fn position(from: &mut Reader<'_>, field: &'static str) -> Result<Position, WireError> {
    Ok(Position { index: from.u64(field)?, number: from.u32(field)? })
}
