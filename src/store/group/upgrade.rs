//! Brings a store of an earlier layout up to this one, in the transaction that opens it.
//!
//! Owns what is known of earlier layouts. Must not be needed for anything else.

use redb::{TableDefinition, WriteTransaction};

use super::tables::{Tables, Writable, Writing, deadline_key, fate_key_of, put, read_undecided_key, remove, rows};
use crate::core::id::Time;
use crate::store::StoreError;

/// Rows that are rewritten at once.
const AT_ONCE: usize = 256;

const TRANSACTIONS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("transactions");
const IDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("ids");

/// Layout 1 had the rows of fates by sender and id, a second table to find them by id, and for each undecided transaction a
/// row with its deadline: (deadline, sender, transaction, D, number).
pub(super) fn from_first(transaction: &WriteTransaction, tables: &mut Tables<Writing<'_>>) -> Result<(), StoreError> {
    {
        let old: Writable<'_> = transaction.open_table(TRANSACTIONS).map_err(StoreError::failed("opening a table"))?;
        each(&old, |key, row| put(tables.fates_mut()?, &fate_key_of(key)?, row))?;
    }
    transaction.delete_table(TRANSACTIONS).map_err(StoreError::failed("removing a table"))?;
    transaction.delete_table(IDS).map_err(StoreError::failed("removing a table"))?;
    let mut old = Vec::new();
    each(tables.deadlines()?, |key, _| {
        old.push(key.to_vec());
        Ok(())
    })?;
    for key in old {
        let wrong = || StoreError::damaged("deadlines", data_encoding::HEXLOWER.encode(&key), "no deadline");
        let (deadline, undecided) = key.split_first_chunk::<8>().ok_or_else(wrong)?;
        let (_, _, digest, _) = read_undecided_key(undecided)?;
        remove(tables.deadlines_mut()?, &key)?;
        put(tables.deadlines_mut()?, &deadline_key(Time(u64::from_be_bytes(*deadline)), &digest), &[])?;
    }
    Ok(())
}

/// All rows of a table in order, few of them at a time.
fn each(table: &Writable<'_>, mut take: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let mut from = Vec::new();
    loop {
        let found = rows(table, from.clone().., false, AT_ONCE)?;
        for (key, row) in &found {
            take(key, row)?;
        }
        match found.last() {
            Some((last, _)) => from = [last.as_slice(), &[0]].concat(),
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use redb::{Database, ReadableDatabase, TableHandle};

    use super::*;
    use crate::core::decide::{Decision, Row};
    use crate::core::id::{Digest, ParcelId, PayloadTag, Position, SenderName, TransactionId};
    use crate::seams::Seams;
    use crate::store::group::state::{name, put_meta};
    use crate::store::group::tables::{position_key, transaction_key, undecided_key};
    use crate::store::group::{DATABASE, GroupStore, StoreOptions};

    fn row(number: u8, sender: &str) -> Row {
        Row {
            sender: SenderName::new(sender).unwrap(),
            transaction: TransactionId::from_parts(Time(1_000), [number; 10]),
            deadline: Time(9_000),
            decision: Decision::Committed,
            position: Position { index: number.into(), number: 0 },
            decided: Time(2_000),
            directory: 1,
            parcel: ParcelId::from_parts(Time(1_000), [9; 10]),
            digest: Digest([number; 32]),
            index: 0,
            payload_bytes: 1,
            ciphertext_bytes: 17,
            ciphertext_digest: Digest([2; 32]),
            tx_commit: [3; 32],
            payload_tag: PayloadTag([4; 32]),
            key_tag: None,
        }
    }

    #[test]
    fn a_store_of_the_first_layout_is_found_again_by_id_by_sender_and_by_position() {
        let folder = tempfile::tempdir().unwrap();
        let destination = "orders".parse().unwrap();
        let options = StoreOptions { folder: folder.path().to_owned(), destination };
        GroupStore::open(&options, &Seams::real()).unwrap().close();
        let all: Vec<Row> =
            (1..=200).map(|number| row(number, ["web", "we", "app"][usize::from(number) % 3])).collect();
        let (deadline, digest) = (Time(77), Digest([8; 32]));
        let file = folder.path().join(DATABASE);
        {
            let database = Database::open(&file).unwrap();
            let write = database.begin_write().unwrap();
            {
                let mut tables = Tables::of(&write);
                let mut fates = write.open_table(TRANSACTIONS).unwrap();
                let mut ids = write.open_table(IDS).unwrap();
                for row in &all {
                    let key = transaction_key(&row.sender, &row.transaction);
                    put(&mut fates, &key, &row.encode()).unwrap();
                    put(tables.positions_mut().unwrap(), &position_key(row.position), &key).unwrap();
                    put(&mut ids, &fate_key_of(&key).unwrap(), &[]).unwrap();
                }
                for number in [1, 2] {
                    let waits = row(number, "web");
                    let undecided = undecided_key(&waits.sender, &waits.transaction, &digest, 0);
                    let old = [deadline.0.to_be_bytes().as_slice(), &undecided].concat();
                    put(tables.deadlines_mut().unwrap(), &old, &[]).unwrap();
                }
                put_meta(tables.meta_mut().unwrap(), name::FORMAT, &1_u32.to_be_bytes()).unwrap();
            }
            write.delete_table(TableDefinition::<&[u8], &[u8]>::new("fates")).unwrap();
            write.commit().unwrap();
        }
        for _ in 0..2 {
            let store = GroupStore::open(&options, &Seams::real()).unwrap();
            let snapshot = store.snapshot().unwrap();
            for row in &all {
                assert_eq!(snapshot.rows_of(&row.transaction).unwrap(), std::slice::from_ref(row));
            }
            let through = Position { index: u64::MAX, number: 0 };
            assert_eq!(snapshot.rows_after(Position::default(), through, usize::MAX).unwrap(), all);
            drop(snapshot);
            store.close();
        }
        let database = Database::open(&file).unwrap();
        let read = database.begin_read().unwrap();
        let left: Vec<String> = read.list_tables().unwrap().map(|table| table.name().to_owned()).collect();
        assert!(!left.iter().any(|name| name == "transactions" || name == "ids"), "{left:?}");
        let deadlines = rows(Tables::of(read).deadlines().unwrap(), .., false, 10).unwrap();
        assert_eq!(deadlines, [(deadline_key(deadline, &digest), Vec::new())]);
    }
}
