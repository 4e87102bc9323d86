//! Protocol buffers of what is written for every transaction, several times on every node: the same bytes as prost's own
//! encoding of the messages beside it, without a copy of every field on the heap.
//!
//! Owns the order and the form of fields. Must not check anything.

use prost::encoding::{WireType, encode_key, encode_varint};

use super::manifest::ManifestItem;

/// A number; zero is left out.
pub(super) fn number(tag: u32, value: u64, to: &mut Vec<u8>) {
    if value != 0 {
        encode_key(tag, WireType::Varint, to);
        encode_varint(value, to);
    }
}

/// Bytes that are there, even if there are none.
pub(super) fn present(tag: u32, value: &[u8], to: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, to);
    encode_varint(value.len() as u64, to);
    to.extend_from_slice(value);
}

/// Bytes or text; nothing is left out.
pub(super) fn bytes(tag: u32, value: &[u8], to: &mut Vec<u8>) {
    if !value.is_empty() {
        present(tag, value, to);
    }
}

/// A message that `write` writes into the empty `scratch`.
pub(super) fn message(tag: u32, scratch: &mut Vec<u8>, to: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    scratch.clear();
    write(scratch);
    present(tag, scratch, to);
}

/// An item's fields.
pub(super) fn item(item: &ManifestItem, to: &mut Vec<u8>) {
    number(1, item.index.into(), to);
    bytes(2, &item.transaction.to_bytes(), to);
    number(3, item.deadline.0, to);
    number(4, item.payload_bytes, to);
    number(5, item.ciphertext_bytes, to);
    bytes(6, &item.ciphertext_digest.0, to);
    bytes(7, &item.tx_commit, to);
    bytes(8, &item.payload_tag.0, to);
    if let Some(tag) = item.key_tag {
        present(9, &tag.0, to);
    }
    if let Some(tag) = item.idempotency_tag {
        present(10, &tag.0, to);
    }
    if let Some(predecessor) = item.predecessor {
        message(11, &mut Vec::new(), to, |to| {
            bytes(1, &predecessor.transaction.to_bytes(), to);
            number(2, predecessor.deadline.0, to);
            number(3, predecessor.on_predecessor.number().into(), to);
            number(4, predecessor.release.number().into(), to);
        });
    }
    if let Some(position) = item.expected_version {
        message(12, &mut Vec::new(), to, |to| {
            number(1, position.index, to);
            number(2, position.number.into(), to);
        });
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::core::decide::manifest::{ItemMessage, Predecessor};
    use crate::core::id::{
        Digest, IdempotencyTag, KeyTag, OnPredecessor, PayloadTag, Position, Release, Time, TransactionId,
    };

    #[test]
    fn items_are_written_as_prost_writes_them() {
        let plain = ManifestItem {
            index: 0,
            transaction: TransactionId::from_parts(Time(7), [3; 10]),
            deadline: Time(0),
            payload_bytes: 0,
            ciphertext_bytes: 0,
            ciphertext_digest: Digest([1; 32]),
            tx_commit: [2; 32],
            payload_tag: PayloadTag([3; 32]),
            key_tag: None,
            idempotency_tag: None,
            predecessor: None,
            expected_version: None,
        };
        let predecessor = Predecessor {
            transaction: TransactionId::from_parts(Time(9), [4; 10]),
            deadline: Time(1 << 40),
            on_predecessor: OnPredecessor::GoOn,
            release: Release::Complete,
        };
        let full = ManifestItem {
            index: 300,
            deadline: Time(u64::MAX),
            payload_bytes: 1 << 35,
            ciphertext_bytes: 127,
            key_tag: Some(KeyTag([5; 16])),
            idempotency_tag: Some(IdempotencyTag([6; 16])),
            predecessor: Some(predecessor),
            expected_version: Some(Position { index: 1 << 20, number: 128 }),
            ..plain.clone()
        };
        let absent = ManifestItem { expected_version: Some(Position::default()), ..full.clone() };
        for given in [plain, full, absent] {
            let mut own = Vec::new();
            item(&given, &mut own);
            assert_eq!(own, ItemMessage::from(&given).encode_to_vec());
        }
    }
}
