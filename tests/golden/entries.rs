//! What the log and the state consist of: entries, rows, the state digest.

use sealcast::core::decide::{DirectoryOp, Entry, ManifestItem, Predecessor};
use sealcast::core::id::{IdempotencyTag, KeyTag, OnPredecessor, Position, Release};

use crate::deciding::*;
use crate::file::Golden;
use crate::segments::directory;

#[test]
fn r04_the_bytes_of_an_entry_and_the_state_digest_are_pinned() {
    let full = ManifestItem {
        key_tag: Some(KeyTag([0x0a; 16])),
        idempotency_tag: Some(IdempotencyTag([0x0b; 16])),
        expected_version: Some(Position { index: 2, number: 1 }),
        predecessor: Some(Predecessor {
            transaction: item(1).transaction,
            deadline: START,
            on_predecessor: OnPredecessor::GoOn,
            release: Release::Complete,
        }),
        ..item(2)
    };
    let bytes = entry(1, vec![vec![item(1), full.clone()]]).encode();
    let mut model = Model::founded();
    model.run(&Entry::decode(&bytes).unwrap());
    let founding = Entry::founding(DirectoryOp { bytes: b"directory".as_slice().into(), ..directory_op(&directory()) });
    let mut golden = Golden::new(
        "Entries of the log of \"orders\", a row, and a state digest. The entries' transactions and directory are made up.",
    );
    golden.put("entry with a commit of two transactions", &bytes);
    golden.put("founding entry with the directory \"directory\"", founding.encode());
    golden.put("row of the second transaction", model.rows.values().last().unwrap().encode());
    golden.put("state digest after the founding entry and the first", model.digest.0);
    let values = golden.settle("entry");
    let read = Entry::decode(&values["entry with a commit of two transactions"]).unwrap();
    assert_eq!(read, entry(1, vec![vec![item(1), full]]));
}
