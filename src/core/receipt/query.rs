//! A sender's question about its transactions: a record of its own kind on the segments topic, answered with receipts.
//!
//! Owns its bytes, its signature, and how often a sender is answered. Must not answer it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::NOTICE_VERSION;
use crate::core::directory::Directory;
use crate::core::id::{DestinationTag, Epoch, PayloadTag, SenderName, Time, TransactionId, VerifyingKeyBytes};
use crate::core::limits;
use crate::core::sign::{SIGNATURE_BYTES, SecretKey};
use crate::core::wire::{Reader, WireError, Writer, in_range, label};

/// How every query begins; segments begin otherwise.
pub const QUERY_MAGIC: [u8; 4] = *b"SCQY";

/// Whether a record of the segments topic is a query; what is longer than one can be is none.
pub fn is_query(record: &[u8]) -> bool {
    record.starts_with(&QUERY_MAGIC) && record.len() <= limits::QUERY_BYTES
}

/// Why a query is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The bytes are no query of this version.
    #[error(transparent)]
    Field(#[from] WireError),
    /// It is about another destination.
    #[error("it asks destination {given}")]
    OtherDestination {
        /// Which.
        given: DestinationTag,
    },
    /// The directory in force has no sender with this key, or does not let it send here.
    #[error("{key} is the key of no sender that may send here")]
    UnknownSender {
        /// The key.
        key: VerifyingKeyBytes,
    },
    /// The sender did not sign this.
    #[error("the signature is not that of {sender}")]
    Signature {
        /// Who is said to have signed.
        sender: SenderName,
    },
}

impl QueryError {
    /// Whether the same bytes can be answered later: when a later directory lists the sender.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Field(error) => error.retryable(),
            Self::UnknownSender { .. } => true,
            Self::OtherDestination { .. } | Self::Signature { .. } => false,
        }
    }
}

/// What a sender asks a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Query {
    /// Who of the sender asks: the epoch of one start of a client.
    pub epoch: Epoch,
    /// That client's clock when it asked, later in each of its queries: a node passes over one that is not later than
    /// the last that it answered, so that nobody gains anything by replaying it.
    pub time: Time,
    /// The transactions, 1 to [`limits::TICKETS_PER_QUERY`]: id, deadline and, if the asker knows it, payload tag.
    pub asked: Vec<(TransactionId, Time, Option<PayloadTag>)>,
}

impl Query {
    /// Signs the query: the bytes of the record.
    pub fn sign(&self, key: &SecretKey, destination: DestinationTag) -> Vec<u8> {
        let mut body = Writer::with_capacity(136 + self.asked.len() * 57);
        let asked = self.asked.iter().take(limits::TICKETS_PER_QUERY);
        body.put(&destination.0).put(&key.public().bytes().0).put(&self.epoch.0).u64(self.time.0);
        body.u16(asked.len() as u16);
        for (transaction, deadline, payload_tag) in asked {
            body.put(&transaction.to_bytes()).u64(deadline.0).flag(payload_tag.is_some());
            if let Some(tag) = payload_tag {
                body.put(&tag.0);
            }
        }
        let mut to = Writer::with_capacity(body.as_slice().len() + 69);
        to.put(&QUERY_MAGIC).u8(NOTICE_VERSION).put(body.as_slice()).put(&key.sign(label::QUERY, body.as_slice()));
        to.finish()
    }

    /// Reads and verifies a query for a group under the directory in force; gives who asks. Length and shape come
    /// first, then destination, sender, and the one signature. Errors: [`QueryError`].
    pub fn verify(
        record: &[u8],
        destination: DestinationTag,
        directory: &Directory,
    ) -> Result<(SenderName, Self), QueryError> {
        in_range(record.len() as u64, 0, limits::QUERY_BYTES as u64, "query")?;
        let mut from = Reader::new(record);
        if from.array("query: magic")? != QUERY_MAGIC {
            return Err(WireError::Invalid { field: "query: magic", expected: "SCQY" }.into());
        }
        match from.u8("query: version")? {
            NOTICE_VERSION => {}
            other => return Err(WireError::Unknown { field: "query: version", value: other.into() }.into()),
        }
        let signed = from.rest();
        let given = DestinationTag(from.array("query: destination tag")?);
        let key = VerifyingKeyBytes(from.array("query: sender key")?);
        let epoch = Epoch(from.array("query: epoch")?);
        let time = Time(from.u64("query: time")?);
        let count = from.u16("query: tickets")?;
        in_range(count.into(), 1, limits::TICKETS_PER_QUERY as u64, "query: tickets")?;
        let asked = (0..count).map(|_| ticket(&mut from)).collect::<Result<_, _>>()?;
        let signed = signed.split_at_checked(signed.len().saturating_sub(from.left())).map_or(signed, |(body, _)| body);
        let signature: [u8; SIGNATURE_BYTES] = from.array("query: signature")?;
        from.finish("query")?;
        if given != destination {
            return Err(QueryError::OtherDestination { given });
        }
        let sender = directory.sender_by_key(&key).filter(|sender| {
            let here = directory.destination_by_tag(&destination);
            here.is_some_and(|here| sender.destinations.contains(&here.name))
        });
        let sender = sender.ok_or(QueryError::UnknownSender { key })?;
        let signed = sender.signing.verify(label::QUERY, signed, &signature);
        signed.map_err(|_| QueryError::Signature { sender: sender.name.clone() })?;
        Ok((sender.name.clone(), Self { epoch, time, asked }))
    }
}

fn ticket(from: &mut Reader<'_>) -> Result<(TransactionId, Time, Option<PayloadTag>), WireError> {
    let transaction = TransactionId::from_bytes(from.array("query: transaction")?)
        .map_err(|_| WireError::Invalid { field: "query: transaction", expected: "a UUID of version 7" })?;
    let deadline = Time(from.u64("query: deadline")?);
    let tag = match from.flag("query: payload tag")? {
        true => Some(PayloadTag(from.array("query: payload tag")?)),
        false => None,
    };
    Ok((transaction, deadline, tag))
}

/// A client is answered at most this often; it asks once a second.
const EVERY: Duration = Duration::from_millis(100);
/// All clients of a sender together are answered so many times in each of these.
const SPELL: Duration = Duration::from_secs(1);
const A_SPELL: u32 = 32;
/// Of these, so many for queries that may have been answered before.
const DOUBTFUL_A_SPELL: u32 = 8;
/// A query of a client that is not remembered is new only if it was asked so long before or after the present, at most.
const PRESENT: Duration = Duration::from_secs(60);

/// What a node takes for the present: two clocks, because each of them may stand still or be wrong.
#[derive(Debug, Clone, Copy)]
pub struct Present {
    /// Its monotonic clock.
    pub monotonic: Duration,
    /// Its wall clock.
    pub wall: Time,
    /// Group time.
    pub group: Time,
}

impl Present {
    fn has(&self, time: Time) -> bool {
        let (early, late) = (self.wall.min(self.group), self.wall.max(self.group));
        time.after(PRESENT) >= early && time <= late.after(PRESENT)
    }
}

/// How often each sender was answered. Takes only what was verified, so it holds no more than the directory lists, and of a
/// sender at most twice [`limits::ASKING_EPOCHS`] clients.
///
/// A query of a client that is remembered is told from a replay by its time. Clients are forgotten: when more of them ask, and
/// with every restart of the node. What may be a replay of what they asked (it is not later than all that was forgotten, or
/// not of the present) is answered seldom and remembered apart, so that whoever replays what other clients of a sender once
/// asked takes neither the answers nor the memory of those that ask now.
#[derive(Debug, Default)]
pub struct Answered {
    senders: BTreeMap<SenderName, OfSender>,
}

/// By client: the time in the last query that was answered, and when that was.
type Clients = BTreeMap<Epoch, (Time, Duration)>;

#[derive(Debug)]
struct OfSender {
    clients: Clients,
    /// Clients of which nothing was answered that was surely new.
    doubtful: Clients,
    /// No client that was forgotten asked anything later.
    forgotten: Time,
    /// When the present spell began, and how many were answered in it.
    spell: Duration,
    in_spell: u32,
    doubtful_in_spell: u32,
}

impl OfSender {
    /// One of which nothing is remembered: it may have asked up to now.
    fn new(present: &Present) -> Self {
        Self {
            clients: Clients::new(),
            doubtful: Clients::new(),
            forgotten: present.group,
            spell: present.monotonic,
            in_spell: 0,
            doubtful_in_spell: 0,
        }
    }
}

impl Answered {
    /// Whether a query is to be answered now; if so it counts as answered. Not one that was answered before, nor one that
    /// comes too soon.
    pub fn is_due(&mut self, sender: &SenderName, query: &Query, present: &Present) -> bool {
        let now = present.monotonic;
        let of = self.senders.entry(sender.clone()).or_insert_with(|| OfSender::new(present));
        let known = of.clients.get(&query.epoch);
        if let Some((time, at)) = known.or_else(|| of.doubtful.get(&query.epoch))
            && (query.time <= *time || now.saturating_sub(*at) < EVERY)
        {
            return false;
        }
        let new = known.is_some() || (query.time > of.forgotten && present.has(query.time));
        if now.saturating_sub(of.spell) >= SPELL {
            (of.spell, of.in_spell, of.doubtful_in_spell) = (now, 0, 0);
        }
        if of.in_spell >= A_SPELL || (!new && of.doubtful_in_spell >= DOUBTFUL_A_SPELL) {
            return false;
        }
        of.in_spell += 1;
        if new {
            of.doubtful.remove(&query.epoch);
            if let Some((time, _)) = remember(&mut of.clients, query, now)
                && present.has(time)
            {
                of.forgotten = of.forgotten.max(time);
            }
        } else {
            of.doubtful_in_spell += 1;
            remember(&mut of.doubtful, query, now);
        }
        true
    }
}

/// Gives what is forgotten instead: the client that was answered least lately.
fn remember(clients: &mut Clients, query: &Query, now: Duration) -> Option<(Time, Duration)> {
    let full = clients.len() >= limits::ASKING_EPOCHS && !clients.contains_key(&query.epoch);
    let oldest = clients.iter().min_by_key(|(_, (_, at))| *at).filter(|_| full).map(|(epoch, _)| *epoch);
    let forgotten = oldest.and_then(|epoch| clients.remove(&epoch));
    clients.insert(query.epoch, (query.time, now));
    forgotten
}
