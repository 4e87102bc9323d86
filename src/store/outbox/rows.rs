//! What the outbox's rows hold and how they are written: version byte first, read through the checked reader.
//! Must not know redb.

use bytes::Bytes;

use crate::core::id::{
    DestinationName, Digest, NodeName, ParcelId, PayloadTag, Position, Rejection, Ticket, Time, TransactionId,
};
use crate::core::limits;
use crate::core::sign::SIGNATURE_BYTES;
use crate::core::wire::{Reader, WireError, Writer, in_range};

const VERSION: u8 = 1;

/// Of a transaction's row. Those of version 1 have no number.
const TRANSACTION_VERSION: u8 = 2;

/// Longest stripe header in a row, in bytes: C with all its destinations, and some.
const HEADER_BYTES: usize = 4096;

/// One stripe exactly as it was sealed and signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripeFrame {
    /// The stripe header.
    pub header: Bytes,
    /// Its signature.
    pub signature: [u8; SIGNATURE_BYTES],
    /// The stripe's sealed bytes.
    pub sealed: Bytes,
}

impl StripeFrame {
    /// How many bytes it takes in the outbox.
    pub fn length(&self) -> usize {
        2 + self.header.len() + SIGNATURE_BYTES + 4 + self.sealed.len()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut to = Writer::with_capacity(self.length());
        to.short_bytes(&self.header).put(&self.signature).long_bytes(&self.sealed);
        to.finish()
    }
}

/// Frames one after the other, and the length of the first.
pub fn join(frames: &[StripeFrame]) -> (Vec<u8>, u32) {
    let mut bytes = Vec::with_capacity(frames.iter().map(StripeFrame::length).sum());
    frames.iter().for_each(|frame| bytes.extend_from_slice(&frame.encode()));
    (bytes, frames.first().map_or(0, |frame| frame.length() as u32))
}

/// The frame that starts with the first byte.
pub fn frame_at(bytes: &[u8]) -> Result<StripeFrame, WireError> {
    let mut from = Reader::new(bytes);
    Ok(StripeFrame {
        header: from.short_bytes(HEADER_BYTES, "kept header")?.to_vec().into(),
        signature: from.array("kept signature")?,
        sealed: from.long_bytes(limits::DATA_SHARDS * limits::SHARD_BYTES, "kept stripe")?.to_vec().into(),
    })
}

/// Where a parcel's frames are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bodies {
    /// In the database.
    Row,
    /// In a file of their own.
    File,
}

/// A parcel that may have to be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParcelRow {
    /// Which one.
    pub parcel: ParcelId,
    /// Where it goes, in the order of its core.
    pub destinations: Vec<DestinationName>,
    /// Past this time no node takes it.
    pub expiry: Time,
    /// D.
    pub digest: Digest,
    /// How many stripes it has.
    pub stripes: u32,
    /// Bytes of all frames.
    pub sealed_bytes: u64,
    /// Bytes of each frame but the last.
    pub frame_bytes: u32,
    /// Where the frames are.
    pub bodies: Bodies,
    /// From which offset of each notices partition on something may be said about it.
    pub notices_from: Vec<(i32, i64)>,
}

impl ParcelRow {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        to.u8(VERSION).u8(self.destinations.len() as u8);
        self.destinations.iter().for_each(|name| {
            to.name(name.as_str());
        });
        to.u64(self.expiry.0).put(&self.digest.0).u32(self.stripes).u64(self.sealed_bytes).u32(self.frame_bytes);
        to.flag(self.bodies == Bodies::File).u32(self.notices_from.len() as u32);
        for (partition, offset) in &self.notices_from {
            to.u32(*partition as u32).u64(*offset as u64);
        }
        to.finish()
    }

    pub(super) fn decode(parcel: ParcelId, bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes);
        version(&mut from)?;
        let count = from.u8("destinations")?;
        in_range(count.into(), 1, limits::DESTINATIONS as u64, "destinations")?;
        let destinations = (0..count).map(|_| from.name("destination")).collect::<Result<_, _>>()?;
        let expiry = Time(from.u64("expiry")?);
        let digest = Digest(from.array("digest")?);
        let (stripes, sealed_bytes) = (from.u32("stripes")?, from.u64("sealed bytes")?);
        let frame_bytes = from.u32("frame bytes")?;
        let bodies = if from.flag("in a file")? { Bodies::File } else { Bodies::Row };
        let count = from.u32("notices offsets")?;
        let mut notices_from = Vec::new();
        for _ in 0..count {
            notices_from.push((from.u32("partition")? as i32, from.u64("offset")? as i64));
        }
        from.finish("parcel row")?;
        Ok(Self { parcel, destinations, expiry, digest, stripes, sealed_bytes, frame_bytes, bodies, notices_from })
    }
}

/// How far a transaction has come at one destination, as far as this sender has verified it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Durable here.
    #[default]
    Submitted,
    /// The brokers have it: it survives any one domain and this sender (R14).
    Accepted,
    /// A majority of the voters signed it.
    Committed(Position),
    /// All voters signed it.
    Complete(Position),
    /// A majority signed that consensus rejected it.
    Rejected(Rejection),
    /// A majority signed that it expired.
    Expired,
}

impl Outcome {
    /// Whether it has a fate.
    pub fn decided(self) -> bool {
        !matches!(self, Self::Submitted | Self::Accepted)
    }

    /// Whether nothing more can become of it.
    pub fn done(self) -> bool {
        matches!(self, Self::Complete(_) | Self::Rejected(_) | Self::Expired)
    }
}

/// A transaction at one destination: how far it has come, and who signed its fate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeRow {
    /// Which destination.
    pub destination: DestinationName,
    /// How far it has come.
    pub outcome: Outcome,
    /// When that became known, by the sender's clock.
    pub since: Time,
    /// Who signed its fate, ascending; empty before there is one.
    pub signers: Vec<NodeName>,
    /// How many voters there are in the directory version that they were counted against.
    pub voters: u16,
    /// That version.
    pub directory_version: u64,
    /// For rejected(duplicate): the transaction that has claimed the idempotency key.
    pub first: Option<TransactionId>,
}

impl OutcomeRow {
    /// A transaction that was just submitted.
    pub fn submitted(destination: DestinationName, since: Time) -> Self {
        let outcome = Outcome::Submitted;
        Self { destination, outcome, since, signers: Vec::new(), voters: 0, directory_version: 0, first: None }
    }
}

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionRow {
    /// Which one.
    pub id: TransactionId,
    /// Its deadline.
    pub deadline: Time,
    /// When it was submitted, by the sender's clock.
    pub submitted: Time,
    /// Its place in the order of submissions to this outbox, from 1: those of an ordering key follow each other in it (R9).
    pub number: u64,
    /// The parcel that it travels in.
    pub parcel: ParcelId,
    /// Its number in the parcel, from 0.
    pub index: u32,
    /// Bytes of its payload.
    pub payload_bytes: u64,
    /// What receipts name it by, besides its id.
    pub payload_tag: PayloadTag,
    /// K_tx, wrapped under a key of the sender's own: with the parcel's bytes it can be sealed anew.
    pub wrapped_key: Vec<u8>,
    /// Its ordering key, if it has one.
    pub ordering_key: Option<Vec<u8>>,
    /// How far it has come, per destination.
    pub outcomes: Vec<OutcomeRow>,
}

impl TransactionRow {
    /// The ticket at one of its destinations.
    pub fn ticket(&self, destination: &DestinationName) -> Ticket {
        Ticket { destination: destination.clone(), transaction: self.id, deadline: self.deadline }
    }

    /// Whether it has a fate at every destination.
    pub fn decided(&self) -> bool {
        self.outcomes.iter().all(|row| row.outcome.decided())
    }

    /// Whether nothing more can become of it at any destination.
    pub fn done(&self) -> bool {
        self.outcomes.iter().all(|row| row.outcome.done())
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        to.u8(TRANSACTION_VERSION).u64(self.deadline.0).u64(self.submitted.0).u64(self.number);
        to.put(&self.parcel.to_bytes()).u32(self.index);
        to.u64(self.payload_bytes).put(&self.payload_tag.0).short_bytes(&self.wrapped_key);
        match &self.ordering_key {
            Some(key) => to.flag(true).short_bytes(key),
            None => to.flag(false),
        };
        to.u8(self.outcomes.len() as u8);
        for row in &self.outcomes {
            to.name(row.destination.as_str()).u64(row.since.0).u64(row.directory_version).u16(row.voters);
            to.u16(row.signers.len() as u16);
            row.signers.iter().for_each(|name| {
                to.name(name.as_str());
            });
            match &row.first {
                Some(first) => to.flag(true).put(&first.to_bytes()),
                None => to.flag(false),
            };
            match row.outcome {
                Outcome::Submitted => to.u8(0),
                Outcome::Accepted => to.u8(1),
                Outcome::Committed(position) => to.u8(2).u64(position.index).u32(position.number),
                Outcome::Complete(position) => to.u8(3).u64(position.index).u32(position.number),
                Outcome::Rejected(reason) => to.u8(4).u8(reason.number()),
                Outcome::Expired => to.u8(5),
            };
        }
        to.finish()
    }

    pub(super) fn decode(id: TransactionId, bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes);
        let version = match from.u8("version")? {
            version @ VERSION..=TRANSACTION_VERSION => version,
            other => return Err(WireError::Unknown { field: "version", value: other.into() }),
        };
        let (deadline, submitted) = (Time(from.u64("deadline")?), Time(from.u64("submitted")?));
        let number = if version == VERSION { 0 } else { from.u64("number")? };
        let parcel = ParcelId::from_bytes(from.array("parcel")?)
            .map_err(|_| WireError::Invalid { field: "parcel", expected: "a UUID of version 7" })?;
        let (index, payload_bytes) = (from.u32("index")?, from.u64("payload bytes")?);
        let payload_tag = PayloadTag(from.array("payload tag")?);
        let wrapped_key = from.short_bytes(256, "wrapped key")?.to_vec();
        let ordering_key = match from.flag("has an ordering key")? {
            true => Some(from.short_bytes(limits::KEY_BYTES, "ordering key")?.to_vec()),
            false => None,
        };
        let mut outcomes = Vec::new();
        for _ in 0..from.u8("destinations")? {
            let (destination, since) = (from.name("destination")?, Time(from.u64("since")?));
            let (directory_version, voters) = (from.u64("directory version")?, from.u16("voters")?);
            let count = from.u16("signers")?;
            let signers = (0..count).map(|_| from.name("signer")).collect::<Result<_, _>>()?;
            let first = match from.flag("has a first")? {
                true => Some(transaction(&mut from)?),
                false => None,
            };
            let outcome = match from.u8("outcome")? {
                0 => Outcome::Submitted,
                1 => Outcome::Accepted,
                2 => Outcome::Committed(position(&mut from)?),
                3 => Outcome::Complete(position(&mut from)?),
                4 => Outcome::Rejected(from.listed(Rejection::from_number, "reason")?),
                5 => Outcome::Expired,
                other => return Err(WireError::Unknown { field: "outcome", value: other.into() }),
            };
            outcomes.push(OutcomeRow { destination, outcome, since, signers, voters, directory_version, first });
        }
        from.finish("transaction row")?;
        Ok(Self {
            id,
            deadline,
            submitted,
            number,
            parcel,
            index,
            payload_bytes,
            payload_tag,
            wrapped_key,
            ordering_key,
            outcomes,
        })
    }
}

fn version(from: &mut Reader<'_>) -> Result<(), WireError> {
    match from.u8("version")? {
        VERSION => Ok(()),
        other => Err(WireError::Unknown { field: "version", value: other.into() }),
    }
}

fn transaction(from: &mut Reader<'_>) -> Result<TransactionId, WireError> {
    TransactionId::from_bytes(from.array("transaction")?)
        .map_err(|_| WireError::Invalid { field: "transaction", expected: "a UUID of version 7" })
}

fn position(from: &mut Reader<'_>) -> Result<Position, WireError> {
    Ok(Position { index: from.u64("index")?, number: from.u32("number")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r09_a_row_keeps_its_place_in_the_order_and_one_of_version_1_has_none() {
        let row = TransactionRow {
            id: TransactionId::from_parts(Time(1_700_000_000_000), [1; 10]),
            deadline: Time(5),
            submitted: Time(1),
            number: 7,
            parcel: ParcelId::from_parts(Time(1_700_000_000_000), [2; 10]),
            index: 3,
            payload_bytes: 11,
            payload_tag: PayloadTag([3; 32]),
            wrapped_key: vec![1; 72],
            ordering_key: Some(b"customer-42".to_vec()),
            outcomes: vec![OutcomeRow::submitted("orders".parse().expect("a name"), Time(1))],
        };
        let mut bytes = row.encode();
        assert_eq!(TransactionRow::decode(row.id, &bytes).expect("as it was written"), row);
        // Version, deadline, time of the submission; then the number.
        bytes.drain(17..25);
        bytes[0] = 1;
        let old = TransactionRow::decode(row.id, &bytes).expect("version 1");
        assert_eq!(old, TransactionRow { number: 0, ..row.clone() });
        bytes[0] = 3;
        assert!(TransactionRow::decode(row.id, &bytes).is_err());
    }
}
