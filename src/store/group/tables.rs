//! The tables of a group's database and their keys. Keys and rows are bytes; integers are big-endian, so that keys stand
//! in the order of what they mean.
//!
//! Owns names and keys; must not know what rows mean.

use std::ops::RangeBounds;
use std::sync::OnceLock;

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

use crate::core::gather::Address;
use crate::core::id::{Digest, KeyTag, Position, SenderName, Time, TransactionId};
use crate::core::wire::{Reader, Writer};
use crate::store::StoreError;

/// A table open for reading and writing.
pub type Writable<'t> = Table<'t, &'static [u8], &'static [u8]>;
/// A table of a snapshot.
pub type ReadOnly = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// Where tables are opened: a snapshot, or a write transaction.
pub trait Source {
    /// A table of it.
    type Table: ReadableTable<&'static [u8], &'static [u8]>;

    /// Opens a table of this name.
    fn table(&self, name: &'static str) -> Result<Self::Table, StoreError>;
}

/// What is written to.
pub type Writing<'t> = &'t WriteTransaction;
/// One moment of what was written.
pub type Reading = ReadTransaction;

impl<'t> Source for Writing<'t> {
    type Table = Writable<'t>;

    fn table(&self, name: &'static str) -> Result<Writable<'t>, StoreError> {
        self.open_table(TableDefinition::new(name)).map_err(StoreError::failed("opening a table"))
    }
}

impl Source for Reading {
    type Table = ReadOnly;

    fn table(&self, name: &'static str) -> Result<ReadOnly, StoreError> {
        self.open_table(TableDefinition::new(name)).map_err(StoreError::failed("opening a table"))
    }
}

macro_rules! tables {
    ($($(#[$doc:meta])* $field:ident, $field_mut:ident;)*) => {
        /// All tables of a group in one transaction. Each is opened when it is first asked for: most transactions touch few of
        /// them, and in small ones opening all took as long as the rest.
        pub struct Tables<S: Source> {
            source: S,
            $($field: OnceLock<S::Table>,)*
        }

        impl<S: Source> Tables<S> {
            /// The tables of a transaction.
            pub fn of(source: S) -> Self {
                Self { source, $($field: OnceLock::new(),)* }
            }

            $($(#[$doc])* pub fn $field(&self) -> Result<&S::Table, StoreError> {
                if let Some(table) = self.$field.get() {
                    return Ok(table);
                }
                let table = self.source.table(stringify!($field))?;
                Ok(self.$field.get_or_init(|| table))
            })*
        }

        impl<'t> Tables<Writing<'t>> {
            /// Makes the tables that are not there yet.
            pub fn make(&self) -> Result<(), StoreError> {
                $(self.$field()?;)*
                Ok(())
            }

            $($(#[$doc])* pub fn $field_mut(&mut self) -> Result<&mut Writable<'t>, StoreError> {
                self.$field()?;
                self.$field.get_mut().ok_or_else(|| StoreError::damaged("tables", stringify!($field), "it is not open"))
            })*
        }
    };
}

tables! {
    /// Log index -> checksum, entry.
    log, log_mut;
    /// Name -> checksum, value: vote, what is applied, incarnation, group time and the like.
    meta, meta_mut;
    /// (transaction, sender) -> the row of its fate. By id first, so that an id whose sender is not known is found, and the
    /// first characters of one; and ids are in the order of time, so that what comes in is written side by side.
    fates, fates_mut;
    /// Position -> (sender, transaction): everything with a fate.
    positions, positions_mut;
    /// Number -> position of the committed row that is the 256th, the 512th and so on.
    ranks, ranks_mut;
    /// (key tag, position) -> (sender, transaction): committed ones.
    keys, keys_mut;
    /// (sender, idempotency tag) -> who claimed it.
    idempotency, idempotency_mut;
    /// Directory version -> log index from which it is in force, and its bytes.
    directories, directories_mut;
    /// D -> a staged parcel with undecided transactions.
    staged, staged_mut;
    /// (sender, transaction, D, number) -> nothing: staged and undecided.
    undecided, undecided_mut;
    /// (deadline, D) -> nothing: the staged parcels that have a transaction of that deadline.
    deadlines, deadlines_mut;
    /// (D, number) -> a transaction's ciphertext, or that it is a file, and its wrapped key.
    bodies, bodies_mut;
    /// Position -> nothing: committed, and its body is not here.
    missing, missing_mut;
    /// Partition -> the next offset to collect and what stands before it.
    offsets, offsets_mut;
    /// (partition, offset) -> why the record there is read again later.
    deferred, deferred_mut;
    /// D -> this node's signed refusal.
    refusals, refusals_mut;
    /// Name -> since when, text.
    alarms, alarms_mut;
    /// Node name -> the highest vote and index seen from it (R12).
    seen, seen_mut;
    /// Name -> small durable facts of the node.
    notes, notes_mut;
}

/// The bytes of one row.
pub fn get<T: ReadableTable<&'static [u8], &'static [u8]>>(
    table: &T,
    key: &[u8],
) -> Result<Option<Vec<u8>>, StoreError> {
    let row = table.get(key).map_err(StoreError::failed("reading a row"))?;
    Ok(row.map(|row| row.value().to_vec()))
}

/// Whether there is such a row.
pub fn has<T: ReadableTable<&'static [u8], &'static [u8]>>(table: &T, key: &[u8]) -> Result<bool, StoreError> {
    Ok(table.get(key).map_err(StoreError::failed("reading a row"))?.is_some())
}

/// A key and its row.
pub type Row = (Vec<u8>, Vec<u8>);

/// At most `most` rows of a range, in order or, with `back`, from the end.
pub fn rows<T: ReadableTable<&'static [u8], &'static [u8]>>(
    table: &T,
    range: impl RangeBounds<Vec<u8>>,
    back: bool,
    most: usize,
) -> Result<Vec<Row>, StoreError> {
    let bounds = (range.start_bound().map(Vec::as_slice), range.end_bound().map(Vec::as_slice));
    let found = table.range::<&[u8]>(bounds).map_err(StoreError::failed("reading rows"))?;
    let mut taken = Vec::new();
    let mut take = |key: &[u8], value: &[u8]| taken.push((key.to_vec(), value.to_vec()));
    if back {
        for row in found.rev().take(most) {
            let (key, value) = row.map_err(StoreError::failed("reading rows"))?;
            take(key.value(), value.value());
        }
    } else {
        for row in found.take(most) {
            let (key, value) = row.map_err(StoreError::failed("reading rows"))?;
            take(key.value(), value.value());
        }
    }
    Ok(taken)
}

/// At most `most` rows whose keys begin so.
pub fn beginning<T: ReadableTable<&'static [u8], &'static [u8]>>(
    table: &T,
    prefix: &[u8],
    back: bool,
    most: usize,
) -> Result<Vec<Row>, StoreError> {
    match after_prefix(prefix) {
        Some(end) => rows(table, prefix.to_vec()..end, back, most),
        None => rows(table, prefix.to_vec().., back, most),
    }
}

/// The least key that is above all that begin so; none when the prefix is all ones.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < u8::MAX {
            *last += 1;
            return Some(end);
        }
        end.pop();
    }
    None
}

/// Writes a row.
pub fn put(table: &mut Writable<'_>, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
    table.insert(key, value).map_err(StoreError::failed("writing a row"))?;
    Ok(())
}

/// Writes a row and says whether there was none before.
pub fn put_new(table: &mut Writable<'_>, key: &[u8], value: &[u8]) -> Result<bool, StoreError> {
    Ok(table.insert(key, value).map_err(StoreError::failed("writing a row"))?.is_none())
}

/// Writes a row and gives the one before.
pub fn replace(table: &mut Writable<'_>, key: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
    let old = table.insert(key, value).map_err(StoreError::failed("writing a row"))?;
    Ok(old.map(|old| old.value().to_vec()))
}

/// Removes a row and gives it.
pub fn take(table: &mut Writable<'_>, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(table.remove(key).map_err(StoreError::failed("removing a row"))?.map(|old| old.value().to_vec()))
}

/// Removes a row and says whether there was one.
pub fn remove(table: &mut Writable<'_>, key: &[u8]) -> Result<bool, StoreError> {
    Ok(table.remove(key).map_err(StoreError::failed("removing a row"))?.is_some())
}

/// How a transaction is named where what belongs to one stands together. Names hold no zero byte, so none begins another.
pub fn transaction_key(sender: &SenderName, transaction: &TransactionId) -> Vec<u8> {
    let mut key = Writer::default();
    key.put(sender.as_str().as_bytes()).u8(0).put(&transaction.to_bytes());
    key.finish()
}

/// Back from [`transaction_key`].
pub fn read_transaction_key(key: &[u8]) -> Result<(SenderName, TransactionId), StoreError> {
    let wrong = || StoreError::damaged("positions", data_encoding::HEXLOWER.encode(key), "no sender and transaction");
    let (name, id) = key.split_last_chunk::<16>().ok_or_else(wrong).map(|(name, id)| (name, *id))?;
    let name = name.strip_suffix(&[0]).and_then(|name| std::str::from_utf8(name).ok()).ok_or_else(wrong)?;
    Ok((SenderName::new(name).map_err(|_| wrong())?, TransactionId::from_bytes(id).map_err(|_| wrong())?))
}

/// Key of `positions` and `missing`.
pub fn position_key(position: Position) -> Vec<u8> {
    let mut key = Writer::default();
    key.u64(position.index).u32(position.number);
    key.finish()
}

/// Back from [`position_key`].
pub fn read_position(key: &[u8]) -> Result<Position, StoreError> {
    let wrong = || StoreError::damaged("positions", data_encoding::HEXLOWER.encode(key), "no position");
    let (index, number) = key.split_first_chunk::<8>().ok_or_else(wrong)?;
    Ok(Position {
        index: u64::from_be_bytes(*index),
        number: u32::from_be_bytes(number.try_into().map_err(|_| wrong())?),
    })
}

/// Key of `keys`.
pub fn key_key(tag: &KeyTag, position: Position) -> Vec<u8> {
    [tag.0.as_slice(), &position_key(position)].concat()
}

/// Key of `fates`.
pub fn fate_key(sender: &SenderName, transaction: &TransactionId) -> Vec<u8> {
    [transaction.to_bytes().as_slice(), sender.as_str().as_bytes()].concat()
}

/// The same for what [`transaction_key`] names.
pub fn fate_key_of(transaction_key: &[u8]) -> Result<Vec<u8>, StoreError> {
    let wrong = || {
        let key = data_encoding::HEXLOWER.encode(transaction_key);
        StoreError::damaged("positions", key, "no sender and transaction")
    };
    let (name, id) = transaction_key.split_last_chunk::<16>().ok_or_else(wrong)?;
    Ok([id.as_slice(), name.strip_suffix(&[0]).ok_or_else(wrong)?].concat())
}

/// Key of `bodies`.
pub fn body_key(digest: &Digest, index: u32) -> Vec<u8> {
    [digest.0.as_slice(), &index.to_be_bytes()].concat()
}

/// Key of `undecided`. With the number, because nothing keeps a sender from using one id twice in a parcel.
pub fn undecided_key(sender: &SenderName, transaction: &TransactionId, digest: &Digest, index: u32) -> Vec<u8> {
    [transaction_key(sender, transaction), body_key(digest, index)].concat()
}

/// Back from [`undecided_key`].
pub fn read_undecided_key(key: &[u8]) -> Result<(SenderName, TransactionId, Digest, u32), StoreError> {
    let wrong = || StoreError::damaged("undecided", data_encoding::HEXLOWER.encode(key), "no digest and number");
    let (key, index) = key.split_last_chunk::<4>().ok_or_else(wrong)?;
    let (transaction, digest) = key.split_last_chunk::<32>().ok_or_else(wrong)?;
    let (sender, transaction) = read_transaction_key(transaction)?;
    Ok((sender, transaction, Digest(*digest), u32::from_be_bytes(*index)))
}

/// Key of `deadlines`.
pub fn deadline_key(deadline: Time, digest: &Digest) -> Vec<u8> {
    [deadline.0.to_be_bytes().as_slice(), &digest.0].concat()
}

/// Back from [`deadline_key`].
pub fn read_deadline_key(key: &[u8]) -> Result<(Time, Digest), StoreError> {
    let wrong = || StoreError::damaged("deadlines", data_encoding::HEXLOWER.encode(key), "no time and digest");
    let (deadline, digest) = key.split_first_chunk::<8>().ok_or_else(wrong)?;
    Ok((Time(u64::from_be_bytes(*deadline)), Digest(digest.try_into().map_err(|_| wrong())?)))
}

/// Key of `deferred`.
pub fn address_key(at: Address) -> Vec<u8> {
    let mut key = Writer::default();
    // Both are zero or more; shifting the sign keeps the order for all values.
    key.u32(at.partition as u32 ^ 1 << 31).u64(at.offset as u64 ^ 1 << 63);
    key.finish()
}

/// Back from [`address_key`].
pub fn read_address(key: &[u8]) -> Option<Address> {
    let mut from = Reader::new(key);
    let partition = (from.u32("partition").ok()? ^ 1 << 31) as i32;
    Some(Address { partition, offset: (from.u64("offset").ok()? ^ 1 << 63) as i64 })
}
