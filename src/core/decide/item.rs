//! From an opened transaction to what consensus may know of it.
//!
//! Owns this one step. Every node that opens the same bytes makes the same item.

use super::manifest::{ManifestItem, Predecessor};
use crate::core::id::{DestinationTag, Position};
use crate::core::seal::SealedTransaction;
use crate::core::seal::keys::{idempotency_tag, key_tag};
use crate::core::seal::transaction::ExpectedVersion;

impl ManifestItem {
    /// The item of a transaction that was opened for the destination `own`, whose index secret is given. An order that the
    /// private header does not hold for `own` is the default one; the opener has checked that it holds one.
    pub fn of(opened: &SealedTransaction, own: &DestinationTag, index_secret: &[u8; 32]) -> Self {
        let header = &opened.header;
        let order = header.destinations.get(own).copied().unwrap_or_default();
        Self {
            index: opened.index,
            transaction: header.id,
            deadline: header.deadline,
            payload_bytes: opened.payload.bytes,
            ciphertext_bytes: opened.ciphertext_bytes,
            ciphertext_digest: opened.ciphertext_digest,
            tx_commit: opened.tx_commit,
            payload_tag: opened.payload.tag,
            key_tag: header.ordering_key.as_deref().map(|key| key_tag(index_secret, key)),
            idempotency_tag: header.idempotency_key.as_deref().map(|key| idempotency_tag(index_secret, key)),
            predecessor: order.predecessor.map(|predecessor| Predecessor {
                transaction: predecessor.transaction,
                deadline: predecessor.deadline,
                on_predecessor: order.on_predecessor,
                release: order.release,
            }),
            expected_version: match order.expected_version {
                ExpectedVersion::Any => None,
                ExpectedVersion::Absent => Some(Position::default()),
                ExpectedVersion::At(position) => Some(position),
            },
        }
    }
}
