//! Staged parcels that the writer has in mind as they are, so that what is staged and decided soon after is not read back.
//!
//! Owns what is kept and for how long. Must not differ from the rows: whoever changes a parcel takes it out first.

use std::collections::BTreeMap;

use super::rows::StagedRow;
use crate::core::id::Digest;

/// Transactions of all parcels together that are kept: a few mebibytes. The earliest go first; they are read again.
const ITEMS: usize = 16_384;

/// Parcels that were staged or changed last.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    rows: BTreeMap<Digest, (u64, StagedRow)>,
    /// By when they came.
    order: BTreeMap<u64, Digest>,
    next: u64,
    items: usize,
}

impl Decoded {
    /// Keeps a parcel.
    pub fn put(&mut self, row: StagedRow) {
        let digest = row.manifest.digest;
        self.take(&digest);
        self.items += row.manifest.items.len();
        self.next += 1;
        self.order.insert(self.next, digest);
        self.rows.insert(digest, (self.next, row));
        while self.items > ITEMS
            && let Some((_, first)) = self.order.first_key_value()
        {
            let first = *first;
            self.take(&first);
        }
    }

    /// Gives a parcel and forgets it.
    pub fn take(&mut self, digest: &Digest) -> Option<StagedRow> {
        let (number, row) = self.rows.remove(digest)?;
        self.order.remove(&number);
        self.items -= row.manifest.items.len();
        Some(row)
    }
}
