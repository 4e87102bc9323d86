//! What nodes say: receipts.

use std::sync::Arc;

use sealcast::core::directory::Directory;
use sealcast::core::id::{Digest, PayloadTag, Position, Rejection, Time};
use sealcast::core::receipt::{Decided, Notice, StageTimes, Statement, Verdict, sign_receipts};

use crate::file::Golden;
use crate::world::*;

/// One signature of node "a" over three statements, for two senders: two records.
#[test]
fn a_batch_of_receipts() {
    let directory = Directory::verify(&directory(), &operator().public(), 0).unwrap();
    let digest = Digest([0xdd; 32]);
    let decided =
        |index, number| Decided { position: Position { index, number }, payload_tag: PayloadTag([0x55; 32]), digest };
    let verdicts = [
        ("web", Verdict::Committed(decided(7, 0))),
        ("shop", Verdict::Rejected(decided(7, 1), Rejection::Conflict)),
        ("web", Verdict::Expired { group_time: Time(DEADLINE.0 + 1) }),
    ];
    let statements: Vec<Statement> = verdicts
        .iter()
        .enumerate()
        .map(|(number, (sender, verdict))| Statement {
            sender: sender.parse().unwrap(),
            transaction: transaction_id(number),
            deadline: DEADLINE,
            directory: directory.version,
            verdict: *verdict,
            times: StageTimes { delivered: Some(3), staged: Some(2), committed: Some(1), held: None },
        })
        .collect();
    let mut golden = Golden::new(
        "Receipts of node \"a\" for \"orders\": one signature over three statements (committed, rejected(conflict),\n\
         expired), in one record for each of two senders. The node's signing key is in the file \"directory\".",
    );
    golden.put("node signing seed", *seed(0x30).seed());
    golden.put("destination orders tag", tag("orders").0);
    for (number, statement) in statements.iter().enumerate() {
        golden.put(&format!("statement {number}"), statement.encode());
    }
    let records = sign_receipts(&seed(0x30), &"a".parse().unwrap(), tag("orders"), directory.version, &statements);
    for (number, record) in records.iter().enumerate() {
        golden.put(&format!("notice {number} key"), record.key);
        golden.put(&format!("notice {number} record"), &record.value);
    }
    let values = golden.settle("receipts");
    let directories = [(directory.version, Arc::new(directory))].into();
    let mut said = Vec::new();
    for number in 0..2 {
        let record = &values[&format!("notice {number} record")];
        let Notice::Receipts(receipts) = Notice::decode(record).unwrap() else { panic!("receipts") };
        said.extend(receipts.verify(&directories).unwrap().iter().map(|verified| verified.said().clone()));
    }
    said.sort_by_key(|statement| statement.transaction);
    assert_eq!(said, statements);
}
