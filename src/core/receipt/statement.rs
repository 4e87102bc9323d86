//! A statement: what a node says of one transaction.
//!
//! Owns its bytes and its leaf. Must not sign.

use crate::core::id::{Digest, Fate, First, PayloadTag, Position, Rejection, SenderName, Time, TransactionId};
use crate::core::wire::{Reader, WireError, Writer, in_range, label};

/// What a node says of one transaction: its fate, and that the node holds it (for a committed one).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Statement {
    /// Who sent the transaction, by directory name.
    pub sender: SenderName,
    /// Its id.
    pub transaction: TransactionId,
    /// Its deadline: with destination and id, the ticket.
    pub deadline: Time,
    /// The version of the directory whose voters are to be counted: the one in force where it was decided; for *expired*
    /// and *forgotten*, the one in force when this was said.
    pub directory: u64,
    /// What became of it.
    pub verdict: Verdict,
    /// How long it took on this node.
    pub times: StageTimes,
}

/// What became of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verdict {
    /// Committed, and this node holds it.
    Committed(Decided),
    /// Rejected for this reason, which is not [`Rejection::Duplicate`]. For [`Rejection::IdReuse`] the position is that of
    /// the transaction which has the id, and the payload tag is that of the one which asked.
    Rejected(Decided, Rejection),
    /// Rejected as a duplicate of another.
    Duplicate(Decided, First),
    /// Group time, here, had passed the deadline before it had another fate.
    Expired {
        /// Group time; later than the deadline.
        group_time: Time,
    },
    /// Too old to say (R26): the deadline is before the retention horizon.
    Forgotten {
        /// Group time; later than the deadline.
        group_time: Time,
    },
}

/// Where and of what something was decided.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Decided {
    /// Where.
    pub position: Position,
    /// Which payload.
    pub payload_tag: PayloadTag,
    /// D of the parcel that brought it.
    pub digest: Digest,
}

impl Verdict {
    /// The fate; `None` for *forgotten*, which is none.
    pub fn fate(&self) -> Option<Fate> {
        match self {
            Self::Committed(_) => Some(Fate::Committed),
            Self::Rejected(_, reason) => Some(Fate::Rejected(*reason)),
            Self::Duplicate(..) => Some(Fate::Rejected(Rejection::Duplicate)),
            Self::Expired { .. } => Some(Fate::Expired),
            Self::Forgotten { .. } => None,
        }
    }

    /// Where it was decided.
    pub fn decided(&self) -> Option<&Decided> {
        match self {
            Self::Committed(decided) | Self::Rejected(decided, _) | Self::Duplicate(decided, _) => Some(decided),
            Self::Expired { .. } | Self::Forgotten { .. } => None,
        }
    }

    /// What signers must agree on: everything but D, which need not be that of the same parcel, and group time, which each
    /// signer reads at its own moment.
    pub(super) fn essence(self) -> Self {
        let plain = |decided: Decided| Decided { digest: Digest([0; 32]), ..decided };
        match self {
            Self::Committed(decided) => Self::Committed(plain(decided)),
            Self::Rejected(decided, reason) => Self::Rejected(plain(decided), reason),
            Self::Duplicate(decided, first) => Self::Duplicate(plain(decided), first),
            Self::Expired { .. } => Self::Expired { group_time: Time(0) },
            Self::Forgotten { .. } => Self::Forgotten { group_time: Time(0) },
        }
    }
}

/// How long a transaction took on the node that says it; each in milliseconds, `None` when the node does not know (it
/// fetched the transaction, or started again in between). Longer than 2^32 - 2 ms is said as that.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StageTimes {
    /// From the time in the transaction's id to the first segment of its parcel at this node: two machines' clocks.
    pub delivered: Option<u32>,
    /// From there until the parcel was durable here.
    pub staged: Option<u32>,
    /// From there until the fate was applied here.
    pub committed: Option<u32>,
    /// From there until this node held it.
    pub held: Option<u32>,
}

/// On the wire: a stage time that is not known.
const UNKNOWN: u32 = u32::MAX;

const COMMITTED: u8 = 1;
const REJECTED: u8 = 2;
const EXPIRED: u8 = 3;
const FORGOTTEN: u8 = 4;

impl Statement {
    /// Its bytes (docs/wire-format.md, "Statements").
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::with_capacity(256);
        to.name(self.sender.as_str()).put(&self.transaction.to_bytes()).u64(self.deadline.0).u64(self.directory);
        match &self.verdict {
            Verdict::Committed(decided) => put_decided(&mut to, COMMITTED, decided),
            Verdict::Rejected(decided, reason) => {
                put_decided(&mut to, REJECTED, decided);
                to.u8(reason.number());
            }
            Verdict::Duplicate(decided, first) => {
                put_decided(&mut to, REJECTED, decided);
                to.u8(Rejection::Duplicate.number()).put(&first.transaction.to_bytes());
                to.u64(first.position.index).u32(first.position.number);
            }
            Verdict::Expired { group_time } => {
                to.u8(EXPIRED).u64(group_time.0);
            }
            Verdict::Forgotten { group_time } => {
                to.u8(FORGOTTEN).u64(group_time.0);
            }
        }
        for time in [self.times.delivered, self.times.staged, self.times.committed, self.times.held] {
            to.u32(time.map_or(UNKNOWN, |time| time.min(UNKNOWN - 1)));
        }
        to.finish()
    }

    /// Reads a statement. Errors: [`WireError`] with the field; [`WireError::Unknown`] for a fate or reason of a later
    /// version.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes);
        let statement = Self {
            sender: from.name("statement: sender")?,
            transaction: transaction(&mut from)?,
            deadline: Time(from.u64("statement: deadline")?),
            directory: from.u64("statement: directory version")?,
            verdict: verdict(&mut from)?,
            times: StageTimes {
                delivered: time(&mut from)?,
                staged: time(&mut from)?,
                committed: time(&mut from)?,
                held: time(&mut from)?,
            },
        };
        if let Verdict::Expired { group_time } | Verdict::Forgotten { group_time } = statement.verdict {
            in_range(group_time.0, statement.deadline.0.saturating_add(1), u64::MAX, "statement: group time")?;
        }
        from.finish("statement")?;
        Ok(statement)
    }

    /// Its leaf in the batch's tree: BLAKE3(L("receipt"), bytes).
    pub(super) fn leaf(bytes: &[u8]) -> Digest {
        Digest(*blake3::Hasher::new().update(label::RECEIPT).update(bytes).finalize().as_bytes())
    }
}

fn put_decided(to: &mut Writer, fate: u8, decided: &Decided) {
    to.u8(fate).u64(decided.position.index).u32(decided.position.number);
    to.put(&decided.payload_tag.0).put(&decided.digest.0);
}

fn verdict(from: &mut Reader<'_>) -> Result<Verdict, WireError> {
    let fate = from.u8("statement: fate")?;
    Ok(match fate {
        COMMITTED => Verdict::Committed(decided(from)?),
        REJECTED => {
            let decided = decided(from)?;
            let reason = from.u8("statement: reason")?;
            match Rejection::from_number(reason) {
                Some(Rejection::Duplicate) => {
                    Verdict::Duplicate(decided, First { transaction: transaction(from)?, position: position(from)? })
                }
                Some(reason) => Verdict::Rejected(decided, reason),
                None => return Err(WireError::Unknown { field: "statement: reason", value: reason.into() }),
            }
        }
        EXPIRED => Verdict::Expired { group_time: Time(from.u64("statement: group time")?) },
        FORGOTTEN => Verdict::Forgotten { group_time: Time(from.u64("statement: group time")?) },
        other => return Err(WireError::Unknown { field: "statement: fate", value: other.into() }),
    })
}

fn decided(from: &mut Reader<'_>) -> Result<Decided, WireError> {
    Ok(Decided {
        position: position(from)?,
        payload_tag: PayloadTag(from.array("statement: payload tag")?),
        digest: Digest(from.array("statement: D")?),
    })
}

fn position(from: &mut Reader<'_>) -> Result<Position, WireError> {
    Ok(Position { index: from.u64("statement: position index")?, number: from.u32("statement: position number")? })
}

fn transaction(from: &mut Reader<'_>) -> Result<TransactionId, WireError> {
    TransactionId::from_bytes(from.array("statement: transaction")?)
        .map_err(|_| WireError::Invalid { field: "statement: transaction", expected: "a UUID of version 7" })
}

fn time(from: &mut Reader<'_>) -> Result<Option<u32>, WireError> {
    from.u32("statement: stage time").map(|time| (time != UNKNOWN).then_some(time))
}
