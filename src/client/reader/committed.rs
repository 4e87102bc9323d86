//! A committed transaction as a node tells it, without its payload.
//!
//! Owns how it is read from the message. Must not ask anybody.

use bytes::Bytes;

use crate::core::id::{Digest, ParcelId, Position, SenderName, Ticket, Time};
use crate::rpc::convert::{self, ConvertError};
use crate::rpc::proto;

/// A committed transaction without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Which transaction, where, until when.
    pub ticket: Ticket,
    /// Who sent it.
    pub sender: SenderName,
    /// Where it was committed: the cursor to go on after it.
    pub position: Position,
    /// The parcel that brought it.
    pub parcel: ParcelId,
    /// D of that parcel.
    pub digest: Digest,
    /// Group time of the entry that committed it.
    pub committed: Time,
    /// Length of the payload in bytes.
    pub payload_bytes: u64,
    /// Its ordering key.
    pub key: Option<Bytes>,
    /// The application's headers, in its order.
    pub headers: Vec<(String, Bytes)>,
    /// The payload's media type, as the application named it.
    pub content_type: Option<String>,
    /// Its idempotency key: of equal ones of a sender only the first is committed.
    pub idempotency_key: Option<Bytes>,
    /// The W3C trace context in which it was submitted: a `traceparent`, and after a comma a `tracestate`.
    pub trace: Option<String>,
}

/// What a node said of it, checked.
pub(super) fn committed(start: proto::ItemStart) -> Result<Committed, ConvertError> {
    Ok(Committed {
        ticket: convert::required(start.ticket.as_ref(), "ItemStart.ticket")?.try_into()?,
        sender: convert::sender(&start.sender, "ItemStart.sender")?,
        position: convert::required(start.position, "ItemStart.position")?.into(),
        parcel: convert::parcel(&start.parcel, "ItemStart.parcel")?,
        digest: convert::digest(&start.digest, "ItemStart.digest")?,
        committed: Time(start.committed_ms),
        payload_bytes: start.payload_bytes,
        key: start.key,
        headers: start.headers.into_iter().map(|header| (header.name, header.value)).collect(),
        content_type: start.content_type,
        idempotency_key: start.idempotency_key,
        trace: start.trace.map(|trace| String::from_utf8_lossy(&trace).into_owned()),
    })
}
