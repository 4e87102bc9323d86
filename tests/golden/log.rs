//! A log as an earlier version stored it, with the state that it gave: applying an old entry never changes (R4).
//!
//! The file is never written anew. Whoever changes what an entry means for this log breaks groups that have one; a later
//! version adds a file of its own.

use std::collections::BTreeSet;

use sealcast::core::decide::{Applied, Changes, Decision, Entry, ManifestItem, Op, Predecessor, apply, op_number};
use sealcast::core::id::{IdempotencyTag, KeyTag, OnPredecessor, PayloadTag, Position, Rejection, Release, Time};

use crate::deciding::*;
use crate::file::Golden;
use crate::segments::{directory, draft, secret, sign};

/// Entries in which everything happens that can happen to a transaction or a directory.
fn entries() -> Vec<Entry> {
    let key = |number| Some(KeyTag([number; 16]));
    let claim = |number| Some(IdempotencyTag([number; 16]));
    let version = |index, number| Some(Position { index, number });
    let go_on = |item: ManifestItem| ManifestItem {
        predecessor: item.predecessor.map(|it| Predecessor { on_predecessor: OnPredecessor::GoOn, ..it }),
        ..item
    };
    let complete = |item: ManifestItem| ManifestItem {
        predecessor: item.predecessor.map(|it| Predecessor { release: Release::Complete, ..it }),
        ..item
    };
    let short = ManifestItem { deadline: START.after(seconds(20)), ..item(1) };
    let keyed = ManifestItem { key_tag: key(1), expected_version: version(0, 0), idempotency_tag: claim(1), ..item(2) };
    let follows = complete(after(ManifestItem { key_tag: key(1), expected_version: version(3, 0), ..item(3) }, &keyed));
    let conflict = ManifestItem { key_tag: key(1), expected_version: version(3, 0), ..item(4) };
    let repeat = ManifestItem { idempotency_tag: claim(1), ..item(5) };
    let never = ManifestItem { deadline: START.after(seconds(40)), ..item(6) };
    let waits = [after(item(7), &never), go_on(after(item(8), &never)), after(item(9), &conflict)];
    let forever = ManifestItem { deadline: Time(u64::MAX), ..item(10) };
    let other = ManifestItem { payload_tag: PayloadTag([0xee; 32]), ..item(2) };
    let mut void = commit(&manifest(99, vec![item(11)]));
    void.reporters.remove(&node("b"));

    let directory_entry = |second, op| Entry { time: START.after(seconds(second)), ops: vec![Op::Directory(op)] };
    let mut without_web = draft();
    without_web.version = 2;
    without_web.senders.remove(&web());
    let mut with_web = draft();
    (with_web.version, with_web.grace) = (5, seconds(60));
    with_web.destinations.values_mut().for_each(|entry| entry.idempotency_window = seconds(100));
    let mut forged = directory_op(&sign(&with_web));
    forged.operator = secret(98).public().bytes();

    vec![
        Entry::founding(directory_op(&directory())),
        Entry { time: START, ops: Vec::new() },
        entry(1, vec![vec![keyed.clone(), follows], vec![conflict, repeat.clone(), short.clone()]]),
        entry(2, vec![waits.to_vec(), vec![forever, other]]),
        Entry { time: START.after(seconds(3)), ops: vec![Op::Commit(void)] },
        // Group time stands, and what was decided is decided again.
        entry(2, vec![vec![keyed, short]]),
        entry(30, vec![vec![ManifestItem { deadline: START.after(seconds(20)), ..item(12) }]]),
        directory_entry(31, forged),
        directory_entry(32, directory_op(&sign(&without_web))),
        entry(33, vec![vec![item(13)]]),
        directory_entry(34, directory_op(&directory())),
        Entry {
            ops: [
                vec![Op::Directory(directory_op(&sign(&with_web)))],
                entry(35, vec![vec![item(14), ManifestItem { idempotency_tag: claim(2), ..item(15) }]]).ops,
            ]
            .concat(),
            ..entry(35, vec![])
        },
        entry(40, vec![vec![waits[0].clone()]]),
        entry(41, vec![waits.to_vec()]),
        entry(200, vec![vec![ManifestItem { idempotency_tag: claim(2), ..item(16) }, repeat]]),
    ]
}

#[test]
fn r04_a_stored_log_of_an_earlier_version_gives_the_recorded_state() {
    let mut golden = Golden::new(
        "The log of a group \"orders\" as version 1 of entries stored it, and the running digest of the state behind each\n\
         entry. This file is never written anew: what it says is what applying these bytes gives, for ever.",
    );
    let mut model = Model::empty();
    for (index, entry) in (1..).zip(entries()) {
        model.run(&entry);
        golden.put(&format!("entry {index:02}"), entry.encode());
        golden.put(&format!("state {index:02}"), model.digest.0);
    }
    golden.put("rows", model.rows.values().flat_map(|row| row.encode()).collect::<Vec<u8>>());
    let stored = golden.keep("log-1");

    let mut model = Model::empty();
    let mut seen: Vec<Changes> = Vec::new();
    while let Some(bytes) = stored.get(&format!("entry {:02}", model.index + 1)) {
        let entry = Entry::decode(bytes).unwrap();
        assert_eq!(entry.encode(), *bytes);
        let changes = apply(&model, model.index + 1, &entry).unwrap();
        model.put(&changes);
        assert_eq!(model.digest.0, stored[&format!("state {:02}", model.index)][..], "behind entry {}", model.index);
        seen.push(changes);
    }
    assert_eq!(stored.len(), 2 * model.index as usize + 1, "the whole file was read");
    let rows: Vec<u8> = model.rows.values().flat_map(|row| row.encode()).collect();
    assert_eq!(rows, stored["rows"]);

    // Everything happens in it: a log that leaves something out would not notice its change.
    let outcomes = seen.iter().flat_map(|changes| &changes.outcomes);
    let results: BTreeSet<String> = outcomes.map(|outcome| format!("{:?}", outcome.result)).collect();
    let every = [Applied::Decided, Applied::Repeat, Applied::IdReuse, Applied::Late, Applied::TooEarly, Applied::Void];
    assert_eq!(results, every.iter().map(|result| format!("{result:?}")).collect());
    let decisions: BTreeSet<Decision> = model.rows.values().map(|row| row.decision).collect();
    use Rejection::{Conflict, DeadlineTooFar, NotPermitted, Predecessor as Failed};
    for decision in [Conflict, DeadlineTooFar, NotPermitted, Failed].map(Decision::Rejected) {
        assert!(decisions.contains(&decision), "{decision:?}");
    }
    assert!(decisions.contains(&Decision::Committed));
    assert!(decisions.iter().any(|decision| matches!(decision, Decision::Duplicate(_))));
    assert_eq!(seen.iter().map(|changes| changes.directories.len()).sum::<usize>(), 3);
    assert_eq!(seen.iter().map(|changes| changes.directories_refused.len()).sum::<usize>(), 2);
    assert_eq!([op_number::COMMIT, op_number::DIRECTORY], [1, 2]);
}
