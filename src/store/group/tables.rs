//! The tables of a group's database and their keys. Keys and rows are bytes; integers are big-endian, so that keys stand
//! in the order of what they mean.
//!
//! Owns names and keys; must not know what rows mean.

use std::ops::RangeBounds;

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

use crate::core::gather::Address;
use crate::core::id::{Digest, KeyTag, Position, SenderName, Time, TransactionId};
use crate::core::wire::{Reader, Writer};
use crate::store::StoreError;

/// A table open for reading and writing.
pub type Writable<'t> = Table<'t, &'static [u8], &'static [u8]>;
/// A table of a snapshot.
pub type ReadOnly = ReadOnlyTable<&'static [u8], &'static [u8]>;

macro_rules! tables {
    ($($(#[$doc:meta])* $field:ident;)*) => {
        /// All tables of a group, open in one transaction.
        pub struct Tables<T> {
            $($(#[$doc])* pub $field: T,)*
        }

        impl<'t> Tables<Writable<'t>> {
            /// Opens, or makes, all tables in a write transaction.
            pub fn write(transaction: &'t WriteTransaction) -> Result<Self, StoreError> {
                $(let $field = transaction
                    .open_table(TableDefinition::<&[u8], &[u8]>::new(stringify!($field)))
                    .map_err(StoreError::failed("opening a table"))?;)*
                Ok(Self { $($field),* })
            }
        }

        impl Tables<ReadOnly> {
            /// Opens all tables in a snapshot; the database was opened for writing before, so they exist.
            pub fn read(transaction: &ReadTransaction) -> Result<Self, StoreError> {
                $(let $field = transaction
                    .open_table(TableDefinition::<&[u8], &[u8]>::new(stringify!($field)))
                    .map_err(StoreError::failed("opening a table"))?;)*
                Ok(Self { $($field),* })
            }
        }
    };
}

tables! {
    /// Log index -> checksum, entry.
    log;
    /// Name -> checksum, value: vote, what is applied, incarnation, group time and the like.
    meta;
    /// (sender, transaction) -> the row of its fate.
    transactions;
    /// Position -> (sender, transaction): everything with a fate.
    positions;
    /// Number -> position of the committed row that is the 256th, the 512th and so on.
    ranks;
    /// (key tag, position) -> (sender, transaction): committed ones.
    keys;
    /// (transaction, sender) -> nothing: to find an id whose sender is not known, and by its first characters.
    ids;
    /// (sender, idempotency tag) -> who claimed it.
    idempotency;
    /// Directory version -> log index from which it is in force, and its bytes.
    directories;
    /// D -> a staged parcel with undecided transactions.
    staged;
    /// (sender, transaction, D, number) -> nothing: staged and undecided.
    undecided;
    /// (deadline, sender, transaction, D, number) -> nothing: the same by deadline.
    deadlines;
    /// (D, number) -> a transaction's ciphertext, or that it is a file, and its wrapped key.
    bodies;
    /// Position -> nothing: committed, and its body is not here.
    missing;
    /// Partition -> the next offset to collect and what stands before it.
    offsets;
    /// (partition, offset) -> why the record there is read again later.
    deferred;
    /// D -> this node's signed refusal.
    refusals;
    /// Name -> since when, text.
    alarms;
    /// Node name -> the highest vote and index seen from it (R12).
    seen;
    /// Name -> small durable facts of the node.
    notes;
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

/// Key of `transactions`. Names hold no zero byte, so none begins another.
pub fn transaction_key(sender: &SenderName, transaction: &TransactionId) -> Vec<u8> {
    let mut key = Writer::default();
    key.put(sender.as_str().as_bytes()).u8(0).put(&transaction.to_bytes());
    key.finish()
}

/// Back from [`transaction_key`].
pub fn read_transaction_key(key: &[u8]) -> Result<(SenderName, TransactionId), StoreError> {
    let wrong =
        || StoreError::damaged("transactions", data_encoding::HEXLOWER.encode(key), "no sender and transaction");
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

/// Key of `ids`.
pub fn id_key(transaction: &TransactionId, sender: &SenderName) -> Vec<u8> {
    [transaction.to_bytes().as_slice(), sender.as_str().as_bytes()].concat()
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
pub fn deadline_key(deadline: Time, undecided: &[u8]) -> Vec<u8> {
    [deadline.0.to_be_bytes().as_slice(), undecided].concat()
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
