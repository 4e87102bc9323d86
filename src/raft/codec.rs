//! Bytes of consensus: log entries and votes in the store, messages between nodes. Memberships, which are small and
//! rare, are JSON; entries stay the bytes that they are.
//!
//! Owns these encodings. Messages come from other nodes, so they are read with the checked reader.

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use openraft::vote::RaftLeaderId;
use openraft::vote::leader_id_adv::LeaderId;

use super::types::{EntryBytes, LogEntry, LogId, StoredMembership, TypeConfig, Vote};
use crate::core::id::Incarnation;
use crate::core::limits;
use crate::core::wire::{Reader, WireError, Writer};

const VERSION: u8 = 1;

/// Longest membership, in bytes of JSON: hundreds of members.
const MEMBERSHIP_BYTES: usize = 256 * 1024;

/// What stands before every message, so that a node never takes part for a life of its store that is over (R12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The sending node's Raft id.
    pub from: u64,
    /// Its store's incarnation.
    pub from_incarnation: Incarnation,
    /// The incarnation that the group knows the receiver by.
    pub to_incarnation: Incarnation,
    /// Term and index of the last entry that is durable in the sender's log; the receiver remembers it (R12).
    pub durable: Option<(u64, u64)>,
}

impl Header {
    pub fn put(&self, to: &mut Writer) {
        to.u8(VERSION).u64(self.from).put(&self.from_incarnation.0).put(&self.to_incarnation.0);
        to.flag(self.durable.is_some());
        if let Some((term, index)) = self.durable {
            to.u64(term).u64(index);
        }
    }

    pub fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        version(from)?;
        Ok(Self {
            from: from.u64("from")?,
            from_incarnation: Incarnation(from.array("from incarnation")?),
            to_incarnation: Incarnation(from.array("to incarnation")?),
            durable: match from.flag("durable")? {
                true => Some((from.u64("durable term")?, from.u64("durable index")?)),
                false => None,
            },
        })
    }
}

fn version(from: &mut Reader<'_>) -> Result<(), WireError> {
    match from.u8("message version")? {
        VERSION => Ok(()),
        value => Err(WireError::Unknown { field: "message version", value: value.into() }),
    }
}

fn put_log_id(to: &mut Writer, id: &LogId) {
    to.u64(id.leader_id.term).u64(id.leader_id.node_id).u64(id.index);
}

fn log_id(from: &mut Reader<'_>) -> Result<LogId, WireError> {
    let leader = LeaderId { term: from.u64("log term")?, node_id: from.u64("log leader")? };
    Ok(LogId { leader_id: leader.to_committed(), index: from.u64("log index")? })
}

fn put_option_log_id(to: &mut Writer, id: Option<&LogId>) {
    to.flag(id.is_some());
    if let Some(id) = id {
        put_log_id(to, id);
    }
}

fn option_log_id(from: &mut Reader<'_>) -> Result<Option<LogId>, WireError> {
    from.flag("log id")?.then(|| log_id(from)).transpose()
}

fn put_vote(to: &mut Writer, vote: &Vote) {
    to.u64(vote.leader_id.term).u64(vote.leader_id.node_id).flag(vote.committed);
}

fn vote(from: &mut Reader<'_>) -> Result<Vote, WireError> {
    let leader_id = LeaderId { term: from.u64("vote term")?, node_id: from.u64("vote node")? };
    Ok(Vote { leader_id, committed: from.flag("vote committed")? })
}

fn put_entry(to: &mut Writer, entry: &LogEntry) -> Result<(), WireError> {
    put_log_id(to, &entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => to.u8(0),
        EntryPayload::Normal(EntryBytes(bytes)) => to.u8(1).long_bytes(bytes),
        EntryPayload::Membership(membership) => to.u8(2).long_bytes(&json(membership)?),
    };
    Ok(())
}

fn entry(from: &mut Reader<'_>) -> Result<LogEntry, WireError> {
    let log_id = log_id(from)?;
    let payload = match from.u8("entry kind")? {
        0 => EntryPayload::Blank,
        1 => {
            let bytes = from.long_bytes(limits::ENTRY_BYTES, "entry")?;
            EntryPayload::Normal(EntryBytes(Bytes::copy_from_slice(bytes)))
        }
        2 => EntryPayload::Membership(from_json(from.long_bytes(MEMBERSHIP_BYTES, "membership")?)?),
        value => return Err(WireError::Unknown { field: "entry kind", value: value.into() }),
    };
    Ok(LogEntry { log_id, payload })
}

fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, WireError> {
    let wrong = |_| WireError::Invalid { field: "membership", expected: "what JSON can hold" };
    serde_json::to_vec(value).map_err(wrong)
}

fn from_json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let wrong = |_| WireError::Invalid { field: "membership", expected: "the JSON of a membership" };
    serde_json::from_slice(bytes).map_err(wrong)
}

/// How many bytes an entry takes in a message, about.
pub fn entry_bytes(entry: &LogEntry) -> usize {
    let payload = match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(EntryBytes(bytes)) => bytes.len(),
        EntryPayload::Membership(_) => 1024,
    };
    payload + 32
}

macro_rules! stored {
    ($($(#[$doc:meta])* $write:ident, $read:ident, $type:ty, $put:expr, $take:expr;)*) => {
        $(
            $(#[$doc])*
            pub fn $write(value: &$type) -> Result<Vec<u8>, WireError> {
                let mut to = Writer::default();
                to.u8(VERSION);
                let put: fn(&mut Writer, &$type) -> Result<(), WireError> = $put;
                put(&mut to, value)?;
                Ok(to.finish())
            }

            /// Reads it again.
            pub fn $read(bytes: &[u8]) -> Result<$type, WireError> {
                let mut from = Reader::new(bytes);
                version(&mut from)?;
                let take: fn(&mut Reader<'_>) -> Result<$type, WireError> = $take;
                let value = take(&mut from)?;
                from.finish("the row")?;
                Ok(value)
            }
        )*
    };
}

stored! {
    /// A log entry as the store keeps it.
    write_entry, read_entry, LogEntry, put_entry, entry;
    /// A vote as the store keeps it.
    write_vote, read_vote, Vote, |to, value| { put_vote(to, value); Ok(()) }, vote;
    /// A log id as the store keeps it.
    write_log_id, read_log_id, LogId, |to, value| { put_log_id(to, value); Ok(()) }, log_id;
    /// A log id or none.
    write_option_log_id, read_option_log_id, Option<LogId>,
        |to, value| { put_option_log_id(to, value.as_ref()); Ok(()) }, option_log_id;
    /// A membership with its log id.
    write_membership, read_membership, StoredMembership,
        |to, value| { to.long_bytes(&json(value)?); Ok(()) },
        |from| from_json(from.long_bytes(MEMBERSHIP_BYTES, "membership")?);
}

/// A request to append entries.
pub fn put_append(to: &mut Writer, request: &AppendEntriesRequest<TypeConfig>) -> Result<(), WireError> {
    put_vote(to, &request.vote);
    put_option_log_id(to, request.prev_log_id.as_ref());
    put_option_log_id(to, request.leader_commit.as_ref());
    to.u32(request.entries.len() as u32);
    for entry in &request.entries {
        put_entry(to, entry)?;
    }
    Ok(())
}

/// Reads it again.
pub fn append(from: &mut Reader<'_>) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    let vote = vote(from)?;
    let prev_log_id = option_log_id(from)?;
    let leader_commit = option_log_id(from)?;
    let count = from.u32("number of entries")?;
    // Nothing is allocated for the count: every entry takes its own bytes from the message.
    let mut entries = Vec::new();
    for _ in 0..count {
        entries.push(entry(from)?);
    }
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

/// The answer to it.
pub fn put_append_answer(to: &mut Writer, answer: &AppendEntriesResponse<TypeConfig>) {
    match answer {
        AppendEntriesResponse::Success => {
            to.u8(0);
        }
        AppendEntriesResponse::PartialSuccess(id) => {
            to.u8(1);
            put_option_log_id(to, id.as_ref());
        }
        AppendEntriesResponse::Conflict => {
            to.u8(2);
        }
        AppendEntriesResponse::HigherVote(vote) => {
            to.u8(3);
            put_vote(to, vote);
        }
    }
}

/// Reads it again.
pub fn append_answer(from: &mut Reader<'_>) -> Result<AppendEntriesResponse<TypeConfig>, WireError> {
    Ok(match from.u8("append answer")? {
        0 => AppendEntriesResponse::Success,
        1 => AppendEntriesResponse::PartialSuccess(option_log_id(from)?),
        2 => AppendEntriesResponse::Conflict,
        3 => AppendEntriesResponse::HigherVote(vote(from)?),
        value => return Err(WireError::Unknown { field: "append answer", value: value.into() }),
    })
}

/// A request for a vote.
pub fn put_vote_request(to: &mut Writer, request: &VoteRequest<TypeConfig>) {
    put_vote(to, &request.vote);
    put_option_log_id(to, request.last_log_id.as_ref());
    to.flag(request.leadership_transfer);
}

/// Reads it again.
pub fn vote_request(from: &mut Reader<'_>) -> Result<VoteRequest<TypeConfig>, WireError> {
    let mut request = VoteRequest::new(vote(from)?, option_log_id(from)?);
    request.leadership_transfer = from.flag("leadership transfer")?;
    Ok(request)
}

/// The answer to it.
pub fn put_vote_answer(to: &mut Writer, answer: &VoteResponse<TypeConfig>) {
    put_vote(to, &answer.vote);
    to.flag(answer.vote_granted);
    put_option_log_id(to, answer.last_log_id.as_ref());
}

/// Reads it again.
pub fn vote_answer(from: &mut Reader<'_>) -> Result<VoteResponse<TypeConfig>, WireError> {
    let vote = vote(from)?;
    let granted = from.flag("vote granted")?;
    Ok(VoteResponse::new(vote, option_log_id(from)?, granted))
}
