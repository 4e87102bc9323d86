//! What nodes say, and what senders ask them.

use std::sync::Arc;

use sealcast::core::directory::Directory;
use sealcast::core::id::{
    Digest, Epoch, NodeName, ParcelId, PayloadTag, Position, RefusalReason, Rejection, SenderName, Time,
};
use sealcast::core::receipt::{
    Decided, Missing, Notice, Query, Refusal, StageTimes, Statement, Verdict, sign_receipts,
};

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

/// The other kinds of notices, and a sender's query.
#[test]
fn a_refusal_what_is_missing_a_directory_and_a_query() {
    let bytes = directory();
    let directory = Directory::verify(&bytes, &operator().public(), 0).unwrap();
    let web: SenderName = "web".parse().unwrap();
    let (epoch, parcel) = (Epoch([0x11; 8]), ParcelId::from_parts(NOW, [0xb0; 10]));
    let refusal =
        Refusal { sender: web.clone(), epoch, parcel, digest: Digest([0xdd; 32]), reason: RefusalReason::Miscoded };
    let missing = Missing { sender: web.clone(), epoch, parcel, stripes: vec![0..=0, 2..=3, 5..=u32::MAX] };
    let asked = vec![
        (transaction_id(0), DEADLINE, Some(PayloadTag([0x55; 32]))),
        (transaction_id(1), Time(DEADLINE.0 + 1), None),
    ];
    let query = Query { epoch, time: Time(NOW.0 + 5), asked };
    let (node, tag, version): (NodeName, _, _) = ("a".parse().unwrap(), tag("orders"), directory.version);
    let mut golden = Golden::new(
        "Of node \"a\" for \"orders\": the refusal of a parcel of \"web\", and which stripes of it are missing; the directory as a\n\
         notice; and a query of \"web\" about two transactions. All keys are in the file \"directory\".",
    );
    golden.put("node signing seed", *seed(0x30).seed());
    golden.put("sender seed", *sender().seed());
    golden.put("destination orders tag", tag.0);
    let records = [
        ("refusal", refusal.clone().sign(&seed(0x30), &node, tag, version)),
        ("missing", missing.clone().sign(&seed(0x30), &node, tag, version)),
        ("directory", Notice::directory(&bytes)),
    ];
    for (name, record) in &records {
        golden.put(&format!("{name} key"), record.key);
        golden.put_long(&format!("{name} record"), &record.value);
    }
    golden.put("query record", query.sign(&sender(), tag));
    let values = golden.settle("notices");
    let directories = [(directory.version, Arc::new(directory.clone()))].into();
    match Notice::decode(&values["refusal record"]).unwrap() {
        Notice::Refusal(said) => assert_eq!(*said.verify(&directories).unwrap().said(), refusal),
        other => panic!("{other:?}"),
    }
    match Notice::decode(&values["missing record"]).unwrap() {
        Notice::Missing(said) => assert_eq!(*said.verify(&directories).unwrap().said(), missing),
        other => panic!("{other:?}"),
    }
    assert_eq!(Query::verify(&values["query record"], tag, &directory), Ok((web, query)));
}
