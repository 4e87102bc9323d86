//! `apply` against its rules and a model beside it: same entries, same state; one fate for each transaction.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::deciding::*;
use crate::segments::{directory, draft, secret, sign};
use proptest::prelude::*;
use sealcast::core::decide::{
    Applied, ApplyError, Changes, Commit, Decision, DirectoryOp, Entry, EntryError, ManifestItem, Op, Predecessor,
    Standing, apply, horizon, op_number, standing,
};
use sealcast::core::id::{
    First, IdempotencyTag, KeyTag, OnPredecessor, PayloadTag, Position, Rejection, Release, Time, TransactionId,
};
use sealcast::core::wire::WireError;

fn results(changes: &Changes) -> Vec<Applied> {
    changes.outcomes.iter().map(|outcome| outcome.result).collect()
}

fn decisions(changes: &Changes) -> Vec<Decision> {
    changes.rows.iter().map(|row| row.decision).collect()
}

const fn at(index: u64, number: u32) -> Position {
    Position { index, number }
}

#[test]
fn r06_a_transaction_is_committed_once_at_the_position_of_its_entry() {
    let mut model = Model::founded();
    let changes = model.run(&entry(1, vec![vec![item(1), item(2)], vec![item(3)]]));
    let positions: Vec<Position> = changes.rows.iter().map(|row| row.position).collect();
    assert_eq!(positions, [at(3, 0), at(3, 1), at(3, 2)]);
    assert_eq!(decisions(&changes), [Decision::Committed; 3]);
    assert!(changes.rows.iter().all(|row| row.directory == 1 && row.decided == START.after(seconds(1))));

    // R6: sealed anew in another parcel, it keeps its fate; the state does not change but for time.
    let again = model.run(&entry(2, vec![vec![item(2)]]));
    assert_eq!((results(&again), again.rows.len()), (vec![Applied::Repeat], 0));
    assert_eq!(model.rows[&(web(), item(2).transaction)].position, at(3, 1));
}

#[test]
fn r06_who_holds_another_payload_learns_id_reuse_and_the_first_keeps_its_fate() {
    let mut model = Model::founded();
    model.run(&entry(1, vec![vec![item(1)]]));
    let other = ManifestItem { payload_tag: PayloadTag([0xee; 32]), ..item(1) };
    let changes = model.run(&entry(2, vec![vec![other.clone()]]));
    assert_eq!((results(&changes), changes.rows.len()), (vec![Applied::IdReuse], 0));
    assert_eq!(model.standing(&other), Standing::IdReuse(at(3, 0)));
    assert_eq!(model.standing(&item(1)), Standing::Decided(Decision::Committed, at(3, 0)));
}

#[test]
fn r06_an_idempotency_key_is_claimed_for_the_window_and_a_duplicate_names_the_first() {
    let mut model = Model::founded();
    let with_key = |number| ManifestItem { idempotency_tag: Some(IdempotencyTag([7; 16])), ..item(number) };
    model.run(&entry(1, vec![vec![with_key(1)]]));
    let first = First { transaction: item(1).transaction, position: at(3, 0) };
    // In the same entry too, and the key is not claimed by one that was rejected.
    let changes = model.run(&entry(2, vec![vec![with_key(2)], vec![with_key(3)]]));
    assert_eq!(decisions(&changes), [Decision::Duplicate(first); 2]);

    let day = 24 * 3600;
    let late = |number, second| ManifestItem {
        transaction: TransactionId::from_parts(START.after(seconds(day)), [number; 10]),
        deadline: START.after(seconds(second + 60)),
        ..with_key(number.into())
    };
    let last_moment = model.clone().run(&entry(day + 1, vec![vec![late(4, day + 1)]]));
    assert_eq!(decisions(&last_moment), [Decision::Duplicate(first)], "the window's last millisecond");
    let over = model.run(&Entry {
        time: START.after(seconds(day + 1) + Duration::from_millis(1)),
        ..entry(day + 1, vec![vec![late(4, day + 1)], vec![late(5, day + 1)]])
    });
    let second = First { transaction: late(4, 0).transaction, position: at(5, 0) };
    assert_eq!(decisions(&over), [Decision::Committed, Decision::Duplicate(second)]);
}

#[test]
fn r06_an_id_and_an_idempotency_key_are_their_senders_own() {
    let mut model = Model::founded();
    let one = ManifestItem { idempotency_tag: Some(IdempotencyTag([7; 16])), ..item(1) };
    let theirs = ManifestItem { payload_tag: PayloadTag([0xee; 32]), ..one.clone() };
    let of = |sender: &str, item: ManifestItem| Commit {
        sender: sender.parse().unwrap(),
        ..commit(&manifest(sender.len() as u32, vec![item]))
    };
    let decided =
        |model: &mut Model, commit| decisions(&model.run(&Entry { time: START, ops: vec![Op::Commit(commit)] }));
    assert_eq!(decided(&mut model, of("web", one)), [Decision::Committed]);
    assert_eq!(decided(&mut model, of("shop", theirs)), [Decision::Committed], "nobody takes another's id or key");
    assert_eq!(model.rows.len(), 2);
}

#[test]
fn r06_what_is_not_committed_claims_no_idempotency_key() {
    let mut model = Model::founded();
    let with_key = |number| ManifestItem { idempotency_tag: Some(IdempotencyTag([7; 16])), ..item(number) };
    let loser = ManifestItem { key_tag: Some(KeyTag([1; 16])), expected_version: Some(at(9, 9)), ..with_key(1) };
    assert_eq!(decisions(&model.run(&entry(1, vec![vec![loser]]))), [Decision::Rejected(Rejection::Conflict)]);
    assert_eq!(decisions(&model.run(&entry(2, vec![vec![with_key(2)]]))), [Decision::Committed]);
}

/// For each check of the documented order, one that fails it and all that come after it is refused by it.
#[test]
fn r04_of_several_reasons_the_first_in_the_order_of_checks_is_the_one() {
    let life = directory().destinations[&Model::empty().destination].max_life;
    let mut narrower = draft();
    narrower.version = 2;
    narrower.senders.get_mut(&web()).unwrap().destinations.clear();
    let (barred, listed) = (Op::Directory(directory_op(&sign(&narrower))), Vec::new());
    let refused = ManifestItem { expected_version: Some(at(9, 9)), key_tag: Some(KeyTag([1; 16])), ..item(1) };
    let claimant = ManifestItem { idempotency_tag: Some(IdempotencyTag([7; 16])), ..item(2) };
    // Everything is wrong with it; then less and less.
    let worst = ManifestItem {
        deadline: START.after(life + Duration::from_millis(1)),
        idempotency_tag: claimant.idempotency_tag,
        key_tag: refused.key_tag,
        expected_version: refused.expected_version,
        ..after(item(3), &refused)
    };
    let nearer = ManifestItem { deadline: item(3).deadline, ..worst.clone() };
    let early = after(nearer.clone(), &item(99));
    let alone = ManifestItem { predecessor: None, ..nearer.clone() };
    let first = First { transaction: claimant.transaction, position: at(3, 1) };
    let unclaimed = ManifestItem { idempotency_tag: None, ..alone.clone() };
    let decision_of = |ops: Vec<Op>, item: &ManifestItem| {
        let mut model = Model::founded();
        model.run(&entry(1, vec![vec![refused.clone(), claimant.clone()]]));
        model.run(&Entry { time: START, ops });
        let changes = model.run(&entry(2, vec![vec![item.clone()]]));
        (results(&changes), decisions(&changes))
    };
    let rejected = |reason| (vec![Applied::Decided], vec![Decision::Rejected(reason)]);
    assert_eq!(decision_of(vec![barred.clone()], &worst), rejected(Rejection::NotPermitted));
    assert_eq!(decision_of(vec![barred], &early), rejected(Rejection::NotPermitted), "though it comes too early");
    assert_eq!(decision_of(listed.clone(), &worst), rejected(Rejection::DeadlineTooFar));
    assert_eq!(decision_of(listed.clone(), &early), (vec![Applied::TooEarly], vec![]));
    assert_eq!(decision_of(listed.clone(), &nearer), rejected(Rejection::Predecessor));
    assert_eq!(decision_of(listed.clone(), &alone), (vec![Applied::Decided], vec![Decision::Duplicate(first)]));
    assert_eq!(decision_of(listed, &unclaimed), rejected(Rejection::Conflict));
    // What has its fate keeps it, whatever is wrong with what brings it again, group time among it.
    let mut model = Model::founded();
    let short = ManifestItem { deadline: START.after(seconds(5)), ..item(4) };
    model.run(&entry(1, vec![vec![short.clone()]]));
    let again = [short.clone(), ManifestItem { payload_tag: PayloadTag([0xee; 32]), ..short }].to_vec();
    assert_eq!(results(&model.run(&entry(9, vec![again]))), [Applied::Repeat, Applied::IdReuse]);
}

#[test]
fn r07_late_ones_are_expired_and_get_no_row() {
    let mut model = Model::founded();
    let deadline = START.after(seconds(5));
    let short = |number| ManifestItem { deadline, ..item(number) };
    let changes = model.run(&entry(5, vec![vec![short(1)]]));
    assert_eq!(results(&changes), [Applied::Decided], "at its deadline it is not late");
    assert_eq!(model.standing(&short(2)), Standing::Undecided);
    let entry = Entry { time: Time(deadline.0 + 1), ..entry(6, vec![vec![short(2)]]) };
    let changes = model.run(&entry);
    assert_eq!((results(&changes), changes.rows.len()), (vec![Applied::Late], 0));
    assert_eq!(model.standing(&short(2)), Standing::Expired);
}

#[test]
fn r07_a_ticket_that_expired_stays_so_though_its_id_is_committed_later() {
    let mut model = Model::founded();
    let first = ManifestItem { deadline: START.after(seconds(5)), ..item(1) };
    model.run(&entry(6, vec![]));
    assert_eq!(model.standing(&first), Standing::Expired);
    model.run(&entry(7, vec![vec![item(1)]]));
    assert_eq!(model.standing(&first), Standing::Expired);
    assert_eq!(model.standing(&item(1)), Standing::Decided(Decision::Committed, at(4, 0)));
}

#[test]
fn r07_a_deadline_may_be_as_late_as_the_directory_says() {
    let life = directory().destinations[&Model::empty().destination].max_life;
    let lives =
        |number, longer| ManifestItem { deadline: START.after(life + Duration::from_millis(longer)), ..item(number) };
    let changes = Model::founded().run(&entry(1, vec![vec![lives(1, 0), lives(2, 1)]]));
    assert_eq!(decisions(&changes), [Decision::Committed, Decision::Rejected(Rejection::DeadlineTooFar)]);
}

#[test]
fn r07_group_time_never_goes_back() {
    let mut model = Model::founded();
    model.run(&entry(9, vec![]));
    assert_eq!(model.run(&entry(3, vec![])).group_time, START.after(seconds(9)));
}

#[test]
fn r08_permission_is_that_of_the_directory_in_force_there() {
    let mut model = Model::founded();
    let mut narrower = draft();
    narrower.version = 2;
    narrower.senders.get_mut(&web()).unwrap().destinations.clear();
    let mut entry = entry(1, vec![vec![item(1)], vec![item(2)]]);
    entry.ops.insert(1, Op::Directory(directory_op(&sign(&narrower))));
    let changes = model.run(&entry);
    assert_eq!(decisions(&changes), [Decision::Committed, Decision::Rejected(Rejection::NotPermitted)]);
    assert_eq!(changes.rows.iter().map(|row| row.directory).collect::<Vec<_>>(), [1, 2]);
    // A sender that the directory no longer lists at all.
    narrower.version = 3;
    narrower.senders.clear();
    model.run(&Entry { time: START, ops: vec![Op::Directory(directory_op(&sign(&narrower)))] });
    let changes = model.run(&crate::deciding::entry(2, vec![vec![item(3)]]));
    assert_eq!(decisions(&changes), [Decision::Rejected(Rejection::NotPermitted)]);
    assert_eq!(model.directories.len(), 3);
}

#[test]
fn r08_a_directory_takes_effect_only_behind_the_pinned_operator_and_with_a_higher_version() {
    let mut model = Model::founded();
    let in_force = |model: &mut Model, op: DirectoryOp| {
        let changes = model.run(&Entry { time: START, ops: vec![Op::Directory(op)] });
        (changes.directories.len(), changes.directories_refused.len())
    };
    assert_eq!(in_force(&mut model, directory_op(&directory())), (0, 1), "the version in force again");
    let mut next = draft();
    next.version = 2;
    let stranger = secret(99);
    let theirs = DirectoryOp { operator: stranger.public().bytes(), bytes: next.sign(&stranger).unwrap().into() };
    assert_eq!(in_force(&mut model, theirs), (0, 1), "another operator");
    let mut damaged = next.sign(&secret(1)).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    let damaged = DirectoryOp { bytes: damaged.into(), ..directory_op(&directory()) };
    assert_eq!(in_force(&mut model, damaged), (0, 1), "bytes that were not signed");
    let mut elsewhere = next.clone();
    elsewhere.environment.0[0] ^= 1;
    let orders = elsewhere.destinations.get_mut(&model.destination).unwrap();
    orders.tag = sealcast::core::directory::destination_tag(elsewhere.environment, &orders.name, 0);
    assert_eq!(in_force(&mut model, directory_op(&sign(&elsewhere))), (0, 1), "another environment");
    assert_eq!(in_force(&mut model, directory_op(&sign(&next))), (1, 0));
}

#[test]
fn r08_a_signed_directory_that_cannot_be_read_stops_the_node() {
    let text = "version = 2\nof_a_later_version = true\n";
    let signature = secret(1).sign(sealcast::core::wire::label::DIRECTORY, text.as_bytes());
    let bytes =
        format!("{}{}\n{text}", sealcast::core::directory::FIRST_LINE, data_encoding::HEXLOWER.encode(&signature));
    let op = DirectoryOp { operator: secret(1).public().bytes(), bytes: bytes.into_bytes().into() };
    let model = Model::founded();
    let error = apply(&model, 3, &Entry { time: START, ops: vec![Op::Directory(op)] }).unwrap_err();
    assert!(matches!(error, ApplyError::Directory { index: 3, .. }), "{error}");
    assert!(!error.retryable());
}

#[test]
fn r05_too_early_stays_undecided_and_nobody_waits_for_a_sibling() {
    let mut model = Model::founded();
    let second = after(item(2), &item(1));
    let changes = model.run(&entry(1, vec![vec![second.clone(), item(3)]]));
    assert_eq!(results(&changes), [Applied::TooEarly, Applied::Decided]);
    assert_eq!(model.standing(&second), Standing::Undecided);
    let changes = model.run(&entry(2, vec![vec![item(1), second]]));
    assert_eq!(results(&changes), [Applied::Decided, Applied::Decided], "it stands earlier in the same entry");
}

#[test]
fn r09_a_failed_predecessor_rejects_or_lets_go_on_as_asked() {
    let mut model = Model::founded();
    let refused = ManifestItem { expected_version: Some(at(9, 9)), key_tag: Some(KeyTag([1; 16])), ..item(1) };
    let unseen = ManifestItem { deadline: START.after(seconds(2)), ..item(2) };
    let go_on = |item: ManifestItem| ManifestItem {
        predecessor: item.predecessor.map(|it| Predecessor { on_predecessor: OnPredecessor::GoOn, ..it }),
        ..item
    };
    model.run(&entry(1, vec![vec![refused.clone()]]));
    let followers = vec![
        after(item(10), &refused),
        go_on(after(item(11), &refused)),
        after(item(12), &unseen),
        go_on(after(item(13), &unseen)),
        after(item(14), &item(10)),
    ];
    let early = model.clone().run(&entry(2, vec![followers.clone()]));
    assert_eq!(results(&early)[2..4], [Applied::TooEarly; 2], "at the unseen one's deadline it can still come");
    let changes = model.run(&entry(3, vec![followers]));
    let rejected = Decision::Rejected(Rejection::Predecessor);
    assert_eq!(decisions(&changes), [rejected, Decision::Committed, rejected, Decision::Committed, rejected]);
}

#[test]
fn r09_the_expected_version_of_a_key_is_its_last_position() {
    let mut model = Model::founded();
    let key = KeyTag([4; 16]);
    let expects =
        |number, version| ManifestItem { key_tag: Some(key), expected_version: Some(version), ..item(number) };
    let changes = model.run(&entry(1, vec![vec![expects(1, at(0, 0)), expects(2, at(0, 0)), expects(3, at(3, 0))]]));
    let conflict = Decision::Rejected(Rejection::Conflict);
    assert_eq!(decisions(&changes), [Decision::Committed, conflict, Decision::Committed]);
    assert_eq!(model.keys[&key], at(3, 2));
    let without_key = ManifestItem { key_tag: None, ..expects(4, at(0, 0)) };
    let changes = model.run(&entry(2, vec![vec![expects(5, at(3, 0)), without_key]]));
    assert_eq!(decisions(&changes), [conflict, Decision::Committed]);
}

#[test]
fn r10_a_commit_without_a_quorum_of_voters_is_void() {
    let mut model = Model::founded();
    for reporters in [vec![], vec!["a"], vec!["a", "stranger"], vec!["x", "y", "z"]] {
        let mut commit = commit(&manifest(1, vec![item(1)]));
        commit.reporters = reporters.iter().map(|name| (node(name), incarnation(name))).collect();
        let before = model.clone();
        let changes = model.run(&Entry { time: START, ops: vec![Op::Commit(commit)] });
        assert_eq!((results(&changes), changes.rows.len()), (vec![Applied::Void], 0), "{reporters:?}");
        assert_eq!((&model.rows, &model.keys), (&before.rows, &before.keys));
    }
    // Voters of the directory in force there, not of an earlier one.
    let mut other_voters = draft();
    other_voters.version = 2;
    other_voters.destinations.get_mut(&model.destination).unwrap().nodes = vec![node("c")];
    let mut entry = entry(1, vec![vec![item(1)]]);
    entry.ops.insert(0, Op::Directory(directory_op(&sign(&other_voters))));
    assert_eq!(results(&model.run(&entry)), [Applied::Void]);
}

#[test]
fn r26_what_is_before_the_horizon_is_forgotten_never_expired() {
    let (retention, now) = (seconds(100), Time(1_000_000));
    assert_eq!(horizon(now, retention), Time(900_000));
    let stands = |deadline| standing(None, Time(deadline), None, now, retention);
    assert_eq!(stands(899_999), Standing::Forgotten);
    assert_eq!(stands(900_000), Standing::Expired);
    assert_eq!(stands(999_999), Standing::Expired);
    assert_eq!(stands(1_000_000), Standing::Undecided);
    // What has a row keeps its fate, however long ago.
    let mut model = Model::founded();
    model.run(&entry(1, vec![vec![item(1)]]));
    model.run(&entry(400 * 24 * 3600, vec![]));
    assert_eq!(model.standing(&item(1)), Standing::Decided(Decision::Committed, at(3, 0)));
    assert_eq!(model.standing(&item(2)), Standing::Forgotten);
}

#[test]
fn r04_an_unknown_op_or_version_is_named_and_the_bytes_have_one_form() {
    let good = entry(1, vec![vec![item(1)]]).encode();
    for reserved in [op_number::PURGE, op_number::RETENTION, op_number::NODE_ID, 77] {
        // Field 3 (an op) of four bytes: its number, and an empty body left out.
        let bytes = [good.as_slice(), &[0x1a, 2, 0x08, reserved as u8]].concat();
        let error = Entry::decode(&bytes).unwrap_err();
        assert_eq!(error, EntryError::UnknownOp { number: reserved });
        assert!(error.retryable() && error.to_string().contains(&reserved.to_string()));
    }
    let mut newer = good.clone();
    assert_eq!(newer[..2], [0x08, 1]);
    newer[1] = 2;
    assert_eq!(Entry::decode(&newer), Err(EntryError::UnknownVersion { what: "log entry", version: 2 }));
    // A field that this version does not know is not skipped.
    let more = [good.as_slice(), &[0x78, 1]].concat();
    assert_eq!(Entry::decode(&more), Err(EntryError::NotCanonical { what: "log entry" }));
    assert!(matches!(
        Entry::decode(&good[..good.len() - 1]),
        Err(EntryError::Message { .. } | EntryError::Field(WireError::Range { .. }))
    ));
}

/// What the rules say of one transaction, on plain maps that change at once: beside `apply`, which lays an entry's changes
/// over the state before it.
fn naive(state: &mut Model, reporters: usize, item: &ManifestItem, position: Position) -> Applied {
    let key = (web(), item.transaction);
    let in_force = state.directories.last().unwrap().destinations[&state.destination].clone();
    if reporters < 2 {
        return Applied::Void;
    }
    if let Some(row) = state.rows.get(&key) {
        return if row.payload_tag == item.payload_tag { Applied::Repeat } else { Applied::IdReuse };
    }
    if state.time > item.deadline {
        return Applied::Late;
    }
    let mut decision = Decision::Committed;
    if let Some(predecessor) = item.predecessor {
        let committed = match state.rows.get(&(web(), predecessor.transaction)) {
            Some(row) if row.decided <= predecessor.deadline => row.is_committed(),
            Some(_) => false,
            None if state.time > predecessor.deadline => false,
            None => return Applied::TooEarly,
        };
        if !committed && predecessor.on_predecessor == OnPredecessor::Reject {
            decision = Decision::Rejected(Rejection::Predecessor);
        }
    }
    let claim = item.idempotency_tag.and_then(|tag| state.claims.get(&(web(), tag)).copied());
    if let (Decision::Committed, Some(claim)) = (decision, claim)
        && claim.until >= state.time
    {
        decision = Decision::Duplicate(claim.first);
    }
    if let (Decision::Committed, Some(expected)) = (decision, item.expected_version) {
        let last = item.key_tag.and_then(|tag| state.keys.get(&tag).copied()).unwrap_or_default();
        if last != expected {
            decision = Decision::Rejected(Rejection::Conflict);
        }
    }
    // The row comes from a run of its own: only its decision, position and time matter here.
    let one = Entry { time: state.time, ops: vec![Op::Commit(commit(&manifest(1, vec![plain(item)])))] };
    let mut row = Model { index: 2, ..Model::founded() }.run(&Entry { time: START, ..one }).rows.remove(0);
    (row.decision, row.position, row.decided, row.payload_tag) = (decision, position, state.time, item.payload_tag);
    (row.deadline, row.key_tag) = (item.deadline, item.key_tag);
    state.rows.insert(key, row);
    if decision == Decision::Committed {
        state.keys.extend(item.key_tag.map(|tag| (tag, position)));
        let first = First { transaction: item.transaction, position };
        let until = state.time.after(in_force.idempotency_window);
        state
            .claims
            .extend(item.idempotency_tag.map(|tag| ((web(), tag), sealcast::core::decide::Claim { first, until })));
    }
    Applied::Decided
}

fn plain(like: &ManifestItem) -> ManifestItem {
    ManifestItem { transaction: like.transaction, payload_tag: like.payload_tag, ..item(0) }
}

/// Transactions of few ids, payloads, keys and deadlines, so that everything collides.
fn any_item() -> impl Strategy<Value = ManifestItem> {
    let predecessor = (0..6u32, 0..25u64, any::<bool>());
    (
        0..6u32,
        0..2u8,
        0..25u64,
        proptest::option::of(predecessor),
        0..3u8,
        0..3u8,
        proptest::option::of((0..6u64, 0..3u32)),
    )
        .prop_map(|(number, payload, life, predecessor, key, claim, expected)| ManifestItem {
            deadline: START.after(seconds(life)),
            payload_tag: PayloadTag([payload; 32]),
            key_tag: (key > 0).then_some(KeyTag([key; 16])),
            idempotency_tag: (claim > 1).then_some(IdempotencyTag([claim; 16])),
            expected_version: expected.map(|(index, number)| at(index, number)),
            predecessor: predecessor.map(|(number, life, go_on)| Predecessor {
                transaction: item(number).transaction,
                deadline: START.after(seconds(life)),
                on_predecessor: if go_on { OnPredecessor::GoOn } else { OnPredecessor::Reject },
                release: Release::Committed,
            }),
            ..item(number)
        })
}

fn any_entries() -> impl Strategy<Value = Vec<Entry>> {
    let commit_of = (1..4usize, proptest::collection::vec(any_item(), 1..5));
    let entry = (0..30u64, proptest::collection::vec(commit_of, 0..4));
    proptest::collection::vec(entry, 1..10).prop_map(|entries| {
        let entry = |(second, commits): (u64, Vec<(usize, Vec<ManifestItem>)>)| Entry {
            time: START.after(seconds(second)),
            ops: (0..)
                .zip(commits)
                .map(|(number, (reporters, items))| {
                    let mut commit = commit(&manifest(number, items));
                    commit.reporters =
                        ["a", "b", "c"][..reporters].iter().map(|name| (node(name), incarnation(name))).collect();
                    Op::Commit(commit)
                })
                .collect(),
        };
        entries.into_iter().map(entry).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the log holds: apply and the model agree, a replay gives the same state and digest, and no ticket that has a
    /// fate ever gets another.
    #[test]
    fn r04_any_log_gives_every_ticket_one_fate_and_every_replay_the_same_state(entries in any_entries()) {
        let (mut model, mut beside) = (Model::founded(), Model::founded());
        let mut fates: BTreeMap<(TransactionId, Time, PayloadTag), Standing> = BTreeMap::new();
        let items: Vec<ManifestItem> = entries
            .iter()
            .flat_map(|entry| &entry.ops)
            .flat_map(|op| match op { Op::Commit(commit) => commit.items.clone(), Op::Directory(_) => Vec::new() })
            .collect();
        for entry in &entries {
            let changes = model.run(entry);
            (beside.index, beside.time) = (model.index, model.time);
            let mut number = 0;
            let mut expected = Vec::new();
            for op in &entry.ops {
                let Op::Commit(commit) = op else { continue };
                for item in &commit.items {
                    expected.push(naive(&mut beside, commit.reporters.len(), item, at(model.index, number)));
                    number += 1;
                }
            }
            prop_assert_eq!(results(&changes), expected);
            let facts = |model: &Model| -> Vec<_> {
                model.rows.iter().map(|(key, row)| (key.clone(), row.decision, row.position, row.decided)).collect()
            };
            prop_assert_eq!(facts(&model), facts(&beside));
            prop_assert_eq!((&model.keys, &model.claims), (&beside.keys, &beside.claims));
            for item in &items {
                let now = model.standing(item);
                let before = fates.insert((item.transaction, item.deadline, item.payload_tag), now);
                prop_assert!(matches!(before, None | Some(Standing::Undecided)) || before == Some(now), "{before:?} became {now:?}");
            }
        }
        let mut again = Model::founded();
        for entry in &entries {
            again.run(entry);
        }
        prop_assert_eq!((again.digest, &again.rows), (model.digest, &model.rows));
    }
}
