//! Staged parcels and bodies as rows, and what fates mean for them.
//!
//! Owns the rows of staging. Must not make a fate: it only follows those of `core::decide`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::decoded::Decoded;
use super::ranks;
use super::rows::{BodyRow, Counts, Place, StagedRow};
use super::state::row;
use super::tables::{
    Source, Tables, Writing, beginning, body_key, deadline_key, fate_key, get, has, position_key, put, put_new,
    read_deadline_key, read_undecided_key, remove, replace, rows, take, transaction_key, undecided_key,
};
use crate::core::decide::{Manifest, ManifestItem, Row, expired};
use crate::core::id::{Digest, SenderName, Time, TransactionId};
use crate::store::StoreError;
use crate::store::bodies::FinishedBody;

/// A parcel that was opened completely and is to be staged.
#[derive(Debug)]
pub struct NewParcel {
    /// What consensus may know of it.
    pub manifest: Manifest,
    /// When its first segment came, by this node's wall clock; `None` when that is not known.
    pub first: Option<Time>,
    /// This node's wall clock.
    pub staged: Time,
    /// Its envelope.
    pub envelope: bytes::Bytes,
    /// One body for every item of the manifest.
    pub bodies: Vec<NewBody>,
}

/// One transaction's ciphertext as it came, and its key wrapped under this node's storage key (R24).
#[derive(Debug)]
pub struct NewBody {
    /// Its number in the parcel.
    pub index: u32,
    /// The ciphertext.
    pub body: FinishedBody,
    /// K_tx, wrapped.
    pub wrapped_key: Vec<u8>,
}

/// How an item of a parcel stands when the parcel is staged, or when it stops being undecided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemStanding {
    /// It waits for its fate.
    Undecided,
    /// Its (sender, transaction id) has this row; whether the row is of this item, a repeat or another payload under the
    /// same id, `core::decide::standing` says.
    Decided(Box<Row>),
    /// Group time has passed its deadline.
    Expired,
}

/// An item that was staged and undecided here, and is no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// D of the staged parcel.
    pub digest: Digest,
    /// Its sender.
    pub sender: SenderName,
    /// The item.
    pub item: ManifestItem,
    /// When the parcel's first segment came; `None` when that is not known.
    pub first: Option<Time>,
    /// When this node staged the parcel.
    pub staged: Time,
    /// Why it is not undecided any more; never [`ItemStanding::Undecided`].
    pub standing: ItemStanding,
}

/// Body files whose rows are gone: to be removed once that is durable.
pub(super) type Obsolete = Vec<(Digest, u32, u64)>;

/// The row of a body.
pub(super) fn body_row<S: Source>(
    tables: &Tables<S>,
    digest: &Digest,
    index: u32,
) -> Result<Option<BodyRow>, StoreError> {
    get(tables.bodies()?, &body_key(digest, index))?.map(|bytes| read_body_row(digest, index, &bytes)).transpose()
}

fn read_body_row(digest: &Digest, index: u32, bytes: &[u8]) -> Result<BodyRow, StoreError> {
    BodyRow::decode(bytes).map_err(|error| StoreError::damaged("bodies", format!("{digest}.{index}"), error))
}

/// The row of a staged parcel.
pub(super) fn staged_row<S: Source>(tables: &Tables<S>, digest: &Digest) -> Result<Option<StagedRow>, StoreError> {
    get(tables.staged()?, &digest.0)?
        .map(|bytes| StagedRow::decode(&bytes).map_err(|error| StoreError::damaged("staged", digest, error)))
        .transpose()
}

/// One write transaction's work on staging.
pub(super) struct Staging<'a, 't> {
    tables: &'a mut Tables<Writing<'t>>,
    counts: &'a mut Counts,
    obsolete: &'a mut Obsolete,
    decoded: &'a mut Decoded,
    touched: BTreeMap<Digest, StagedRow>,
}

impl<'a, 't> Staging<'a, 't> {
    pub fn new(
        tables: &'a mut Tables<Writing<'t>>,
        counts: &'a mut Counts,
        obsolete: &'a mut Obsolete,
        decoded: &'a mut Decoded,
    ) -> Self {
        Self { tables, counts, obsolete, decoded, touched: BTreeMap::new() }
    }

    /// Stages a parcel: bodies of what is undecided, or committed from this very parcel, stay; the rest is not kept.
    pub fn stage(&mut self, parcel: NewParcel, group_time: Time) -> Result<Vec<(u32, ItemStanding)>, StoreError> {
        let NewParcel { manifest, first, staged, envelope, bodies } = parcel;
        let mut bodies: BTreeMap<u32, NewBody> = bodies.into_iter().map(|body| (body.index, body)).collect();
        let mut standings = Vec::with_capacity(manifest.items.len());
        let (mut left, mut deadlines) = (0, BTreeSet::new());
        for item in &manifest.items {
            let body = bodies.remove(&item.index);
            let decided = row(self.tables, &fate_key(&manifest.sender, &item.transaction))?;
            let (keep, standing) = match decided {
                Some(row) => (is_body_of(&row, &manifest.digest, item.index), ItemStanding::Decided(Box::new(row))),
                None if expired(group_time, item.deadline) => (false, ItemStanding::Expired),
                None => (true, ItemStanding::Undecided),
            };
            if standing == ItemStanding::Undecided {
                let key = undecided_key(&manifest.sender, &item.transaction, &manifest.digest, item.index);
                if put_new(self.tables.undecided_mut()?, &key, &[])? {
                    self.counts.undecided += 1;
                }
                deadlines.insert(item.deadline);
                left += 1;
            }
            if let Some(body) = body {
                // One that is not kept takes its file with it.
                if keep {
                    self.keep(&manifest.digest, body)?;
                }
            }
            if let ItemStanding::Decided(row) = &standing {
                self.found(row)?;
            }
            standings.push((item.index, standing));
        }
        if left > 0 {
            let bytes = manifest.encode();
            let (manifest_digest, digest) = (Manifest::digest_of(&bytes), manifest.digest);
            let row = StagedRow { manifest, manifest_digest, first, staged, left, envelope };
            put(self.tables.staged_mut()?, &digest.0, &row.encode_with(&bytes))?;
            self.decoded.put(row);
            for deadline in deadlines {
                put(self.tables.deadlines_mut()?, &deadline_key(deadline, &digest), &[])?;
            }
        }
        Ok(standings)
    }

    /// Keeps a body that was fetched, when a committed row wants it. Says whether one does.
    pub fn keep_fetched(
        &mut self,
        sender: &SenderName,
        transaction: &TransactionId,
        digest: &Digest,
        body: NewBody,
    ) -> Result<bool, StoreError> {
        match row(self.tables, &fate_key(sender, transaction))? {
            Some(row) if is_body_of(&row, digest, body.index) => {
                self.keep(digest, body)?;
                self.found(&row)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn keep(&mut self, digest: &Digest, mut new: NewBody) -> Result<(), StoreError> {
        let place = match (new.body.inline().cloned(), new.body.hand_over()) {
            (Some(bytes), _) => Place::Inline(bytes),
            (None, Some(number)) => Place::File(number),
            (None, None) => {
                return Err(StoreError::Failed { doing: "staging a body", cause: "it has no name yet".to_owned() });
            }
        };
        let length = new.body.length;
        let row = BodyRow { length, digest: new.body.digest, wrapped_key: new.wrapped_key, place };
        if let Some(old) = replace(self.tables.bodies_mut()?, &body_key(digest, new.index), &row.encode())? {
            self.gone(digest, new.index, &old)?;
        }
        self.counts.bytes += length;
        Ok(())
    }

    fn drop_body(&mut self, digest: &Digest, index: u32) -> Result<(), StoreError> {
        match take(self.tables.bodies_mut()?, &body_key(digest, index))? {
            Some(old) => self.gone(digest, index, &old),
            None => Ok(()),
        }
    }

    /// What the row of a body held is not needed any more.
    fn gone(&mut self, digest: &Digest, index: u32, row: &[u8]) -> Result<(), StoreError> {
        let row = read_body_row(digest, index, row)?;
        self.counts.bytes = self.counts.bytes.saturating_sub(row.length);
        if let Place::File(number) = row.place {
            self.obsolete.push((*digest, index, number));
        }
        Ok(())
    }

    /// A committed row's body is here now: it is missing no longer.
    fn found(&mut self, row: &Row) -> Result<(), StoreError> {
        if row.is_committed()
            && has(self.tables.bodies()?, &body_key(&row.digest, row.index))?
            && remove(self.tables.missing_mut()?, &position_key(row.position))?
        {
            self.counts.missing = self.counts.missing.saturating_sub(1);
        }
        Ok(())
    }

    /// Follows new rows: staged items of their transactions are settled, bodies of other parcels go, and a committed row
    /// without its body is missing.
    pub fn decided(&mut self, new: &[Row]) -> Result<Vec<Settled>, StoreError> {
        let mut settled = Vec::new();
        for row in new {
            let key = transaction_key(&row.sender, &row.transaction);
            // What was undecided here has its body.
            let mut here = false;
            for (undecided, _) in beginning(self.tables.undecided()?, &key, false, usize::MAX)? {
                let standing = ItemStanding::Decided(Box::new(row.clone()));
                let one = self.settle(&undecided, standing)?;
                here |= is_body_of(row, &one.digest, one.item.index);
                settled.push(one);
            }
            if !row.is_committed() {
                self.counts.rejected += 1;
                continue;
            }
            self.counts.committed += 1;
            ranks::note(self.tables.ranks_mut()?, self.counts.committed, row.position)?;
            if !here && !has(self.tables.bodies()?, &body_key(&row.digest, row.index))? {
                put(self.tables.missing_mut()?, &position_key(row.position), &[])?;
                self.counts.missing += 1;
            }
        }
        Ok(settled)
    }

    /// Settles everything staged whose deadline group time has passed.
    pub fn expire(&mut self, group_time: Time) -> Result<Vec<Settled>, StoreError> {
        let mut settled = Vec::new();
        let end = group_time.0.to_be_bytes().to_vec();
        for (key, _) in rows(self.tables.deadlines()?, ..end, false, usize::MAX)? {
            let (deadline, digest) = read_deadline_key(&key)?;
            let manifest = &self.parcel(&digest)?.manifest;
            let of_then = manifest.items.iter().filter(|item| item.deadline == deadline);
            let of_then: Vec<_> =
                of_then.map(|item| undecided_key(&manifest.sender, &item.transaction, &digest, item.index)).collect();
            for undecided in of_then {
                if has(self.tables.undecided()?, &undecided)? {
                    settled.push(self.settle(&undecided, ItemStanding::Expired)?);
                }
            }
            remove(self.tables.deadlines_mut()?, &key)?;
        }
        Ok(settled)
    }

    /// A staged parcel, to be changed.
    fn parcel(&mut self, digest: &Digest) -> Result<&mut StagedRow, StoreError> {
        match self.touched.entry(*digest) {
            Entry::Occupied(parcel) => Ok(parcel.into_mut()),
            Entry::Vacant(entry) => {
                let lost =
                    || StoreError::damaged("staged", digest, "it is not there, and has an undecided transaction");
                let row = match self.decoded.take(digest) {
                    Some(row) => row,
                    None => staged_row(self.tables, digest)?.ok_or_else(lost)?,
                };
                Ok(entry.insert(row))
            }
        }
    }

    fn settle(&mut self, undecided: &[u8], standing: ItemStanding) -> Result<Settled, StoreError> {
        let (sender, _, digest, index) = read_undecided_key(undecided)?;
        let damaged = || StoreError::damaged("staged", digest, "it lacks a transaction that is undecided");
        let parcel = self.parcel(&digest)?;
        parcel.left = parcel.left.saturating_sub(1);
        // By ascending index: every reader of a manifest checks it.
        let at = parcel.manifest.items.binary_search_by_key(&index, |item| item.index).map_err(|_| damaged())?;
        let item = parcel.manifest.items.get(at).cloned().ok_or_else(damaged)?;
        let (first, staged) = (parcel.first, parcel.staged);
        if remove(self.tables.undecided_mut()?, undecided)? {
            self.counts.undecided = self.counts.undecided.saturating_sub(1);
        }
        let keep = matches!(&standing, ItemStanding::Decided(row) if is_body_of(row, &digest, item.index));
        if !keep {
            self.drop_body(&digest, item.index)?;
        }
        Ok(Settled { digest, sender, item, first, staged, standing })
    }

    /// Writes staged parcels back that [`Staging::decided`] and [`Staging::expire`] changed; once an entry, so that a
    /// parcel of many transactions is not written for each of them.
    pub fn finish(self) -> Result<(), StoreError> {
        let Self { tables, decoded, touched, .. } = self;
        for (digest, parcel) in touched {
            if parcel.left == 0 {
                remove(tables.staged_mut()?, &digest.0)?;
                let deadlines: BTreeSet<Time> = parcel.manifest.items.iter().map(|item| item.deadline).collect();
                for deadline in deadlines {
                    remove(tables.deadlines_mut()?, &deadline_key(deadline, &digest))?;
                }
            } else {
                put(tables.staged_mut()?, &digest.0, &parcel.encode())?;
                decoded.put(parcel);
            }
        }
        Ok(())
    }
}

fn is_body_of(row: &Row, digest: &Digest, index: u32) -> bool {
    row.is_committed() && row.digest == *digest && row.index == index
}
