//! The leader's tally: what it proposes from reports, and that whatever it proposes ends with every transaction decided.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::deciding::*;
use crate::segments::{draft, sign};
use proptest::prelude::*;
use sealcast::core::decide::{Commit, Entry, Manifest, ManifestItem, Op, Predecessor, Report, Standing, Tally, Wait};
use sealcast::core::directory::{Directory, Draft};
use sealcast::core::id::{
    EnvironmentId, Incarnation, OnPredecessor, PayloadTag, Position, Release, Time, TransactionId,
};
use sealcast::core::limits;

const NOTHING: Position = Position { index: 0, number: 0 };

/// All three nodes report these parcels.
fn all_report(tally: &mut Tally, number: u64, second: u64, held: Position, manifests: &[Manifest]) {
    for name in ["a", "b", "c"] {
        assert_eq!(tally.report(report(name, number, second, held, manifests)), []);
    }
}

fn propose(tally: &mut Tally, model: &Model, now: u64) -> Option<(u64, Entry)> {
    tally.propose(model, seconds(now)).unwrap().map(|proposal| (proposal.number, proposal.entry))
}

/// Proposes, applies and settles until there is nothing more to propose at this moment; gives the entries.
fn drain(tally: &mut Tally, model: &mut Model, now: u64) -> Vec<Entry> {
    let mut entries = Vec::new();
    while let Some((number, entry)) = propose(tally, model, now) {
        tally.applied(&model.run(&entry));
        tally.settled(number);
        entries.push(entry);
        assert!(entries.len() < 1000, "it proposes without end");
    }
    entries
}

fn commits(entry: &Entry) -> Vec<&Commit> {
    entry.ops.iter().filter_map(|op| if let Op::Commit(commit) = op { Some(commit) } else { None }).collect()
}

/// The transactions of an entry, in its order.
fn chosen(entry: &Entry) -> Vec<TransactionId> {
    commits(entry).iter().flat_map(|commit| commit.items.iter().map(|item| item.transaction)).collect()
}

fn ids(items: &[u32]) -> Vec<TransactionId> {
    items.iter().map(|&number| item(number).transaction).collect()
}

#[test]
fn r10_a_quorum_of_equal_reports_is_proposed_once_and_names_its_reporters() {
    let (mut tally, model) = (Tally::new(), Model::founded());
    let parcel = manifest(1, vec![item(1), item(2)]);
    tally.report(report("a", 1, 1, NOTHING, std::slice::from_ref(&parcel)));
    let (_, alone) = propose(&mut tally, &model, 0).unwrap_or((0, Entry { time: START, ops: vec![] }));
    assert_eq!(alone.ops, []);
    assert!(
        matches!(tally.waits_for(&model, &web(), item(1).transaction), Some(Wait::Quorum(lacking)) if lacking == [node("b"), node("c")])
    );
    // The same parcel with another D, or another manifest, is another parcel.
    let mut other = parcel.clone();
    other.digest.0[0] ^= 1;
    tally.report(report("b", 1, 1, NOTHING, &[other]));
    let mut other = parcel.clone();
    other.items[0].payload_bytes += 1;
    tally.report(report("c", 1, 1, NOTHING, &[other]));
    assert!(propose(&mut tally, &model, 0).is_none_or(|(_, entry)| entry.ops.is_empty()));

    tally.report(report("c", 2, 1, NOTHING, std::slice::from_ref(&parcel)));
    let (_, entry) = propose(&mut tally, &model, 0).unwrap();
    let commits = commits(&entry);
    assert_eq!(commits.len(), 1);
    assert_eq!(commits[0].reporters, ["a", "c"].map(|name| (node(name), incarnation(name))).into());
    assert_eq!(commits[0].items, parcel.items);
    assert_eq!(propose(&mut tally, &model, 0), None, "nothing is proposed twice while it is on its way");
    assert_eq!(tally.waits_for(&model, &web(), item(1).transaction), Some(Wait::Commit));
}

#[test]
fn r10_what_was_not_written_is_proposed_again_and_what_was_is_not() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    all_report(&mut tally, 1, 1, NOTHING, &[manifest(1, vec![item(1)])]);
    let (number, lost) = propose(&mut tally, &model, 0).unwrap();
    tally.settled(number);
    let (number, entry) = propose(&mut tally, &model, 0).unwrap();
    assert_eq!(entry.ops, lost.ops);
    // The lost one turns out to be in the log after all.
    tally.applied(&model.run(&lost));
    tally.applied(&model.run(&entry));
    tally.settled(number);
    assert_eq!(drain(&mut tally, &mut model, 0), []);
    assert!(!tally.undecided());
    all_report(&mut tally, 2, 1, NOTHING, &[manifest(1, vec![item(1)])]);
    assert_eq!(drain(&mut tally, &mut model, 0), [], "a node that reports late changes nothing");
}

#[test]
fn r10_the_manifest_is_asked_for_until_one_with_its_digest_comes() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    let parcel = manifest(1, vec![item(1)]);
    let without = |name: &str, number| {
        let mut report = report(name, number, 1, NOTHING, std::slice::from_ref(&parcel));
        report.staged[0].manifest = None;
        report
    };
    assert_eq!(tally.report(without("a", 1)), [parcel.manifest_digest()]);
    assert_eq!(tally.report(without("b", 1)), [parcel.manifest_digest()]);
    let mut wrong = report("c", 1, 1, NOTHING, std::slice::from_ref(&parcel));
    wrong.staged[0].manifest = Some(Arc::new(manifest(1, vec![item(9)])));
    assert_eq!(tally.report(wrong), [parcel.manifest_digest()]);
    assert!(drain(&mut tally, &mut model, 0).iter().all(|entry| entry.ops.is_empty()));
    assert_eq!(tally.report(report("a", 2, 1, NOTHING, std::slice::from_ref(&parcel))), []);
    assert_eq!(drain(&mut tally, &mut model, 0).iter().map(chosen).collect::<Vec<_>>(), [ids(&[1])]);
    assert_eq!(tally.report(without("c", 2)), [], "not asked for once everything in it is decided");
}

#[test]
fn r10_a_new_life_of_a_store_takes_back_what_the_old_one_reported() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    let parcel = manifest(1, vec![item(1)]);
    tally.report(report("a", 1, 1, NOTHING, std::slice::from_ref(&parcel)));
    tally.report(Report { incarnation: Incarnation([0xff; 16]), ..report("a", 1, 1, NOTHING, &[]) });
    tally.report(report("b", 1, 1, NOTHING, std::slice::from_ref(&parcel)));
    assert!(drain(&mut tally, &mut model, 0).iter().all(|entry| entry.ops.is_empty()));
    // Whatever it is that it says first: a part of a report, too.
    let mut other = Tally::new();
    other.report(report("a", 1, 1, NOTHING, std::slice::from_ref(&parcel)));
    let reborn = Report { incarnation: Incarnation([0xff; 16]), last: false, ..report("a", 1, 1, NOTHING, &[]) };
    other.report(reborn);
    other.report(report("b", 1, 1, NOTHING, std::slice::from_ref(&parcel)));
    assert!(drain(&mut other, &mut model.clone(), 0).iter().all(|entry| entry.ops.is_empty()));
    // So does a whole report that no longer lists it; a part of one only adds.
    tally.report(Report { last: false, ..report("c", 1, 1, NOTHING, std::slice::from_ref(&parcel)) });
    tally.report(report("b", 2, 1, NOTHING, &[]));
    assert!(drain(&mut tally, &mut model, 0).iter().all(|entry| entry.ops.is_empty()));
    tally.report(Report { last: false, ..report("b", 3, 1, NOTHING, std::slice::from_ref(&parcel)) });
    assert_eq!(drain(&mut tally, &mut model, 0).len(), 1);
}

#[test]
fn r05_bundles_that_wait_for_each_other_stand_in_one_entry() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    // P1 = a1, b2 after b1; P2 = b1, a2 after a1.
    let (a1, b1) = (item(1), item(2));
    let (b2, a2) = (after(item(3), &b1), after(item(4), &a1));
    all_report(&mut tally, 1, 1, NOTHING, &[manifest(1, vec![a1, b2]), manifest(2, vec![b1, a2])]);
    let entries = drain(&mut tally, &mut model, 0);
    assert_eq!(entries.iter().map(chosen).collect::<Vec<_>>(), [ids(&[1, 2, 4, 3])]);
    assert_eq!(model.rows.len(), 4);
    assert!(model.rows.values().all(|row| row.is_committed()));
}

#[test]
fn r05_release_on_complete_waits_until_every_voter_holds_the_predecessor() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    let mut second = after(item(2), &item(1));
    second.predecessor.as_mut().unwrap().release = Release::Complete;
    let parcels = [manifest(1, vec![item(1), second])];
    all_report(&mut tally, 1, 1, NOTHING, &parcels);
    let entries = drain(&mut tally, &mut model, 0);
    assert_eq!(entries.iter().map(chosen).collect::<Vec<_>>(), [ids(&[1])]);
    let position = model.rows[&(web(), item(1).transaction)].position;
    for name in ["a", "b"] {
        tally.report(report(name, 2, 1, position, &parcels));
    }
    assert_eq!(drain(&mut tally, &mut model, 0), []);
    assert_eq!(tally.waits_for(&model, &web(), item(2).transaction), Some(Wait::Release(vec![node("c")])));
    tally.report(report("c", 2, 1, Position { index: position.index + 9, number: 0 }, &parcels));
    assert_eq!(drain(&mut tally, &mut model, 0).iter().map(chosen).collect::<Vec<_>>(), [ids(&[2])]);
}

#[test]
fn r09_an_unseen_predecessor_is_waited_for_until_its_deadline_and_no_longer() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    let unseen = ManifestItem { deadline: START.after(seconds(4)), ..item(1) };
    let mut second = after(item(2), &unseen);
    second.predecessor.as_mut().unwrap().on_predecessor = OnPredecessor::GoOn;
    let mut committed_at = None;
    for second_now in 1..10 {
        all_report(&mut tally, second_now, second_now, NOTHING, &[manifest(1, vec![second.clone()])]);
        drain(&mut tally, &mut model, second_now);
        if !model.rows.is_empty() {
            committed_at.get_or_insert(second_now);
        } else {
            assert!(
                matches!(tally.waits_for(&model, &web(), item(2).transaction), Some(Wait::Predecessor(ticket)) if ticket.transaction == item(1).transaction)
            );
        }
    }
    assert_eq!(committed_at, Some(5));
}

#[test]
fn r07_time_passes_every_second_while_anything_is_undecided_else_every_ten() {
    let times = |manifests: &[Manifest]| -> Vec<u64> {
        let (mut tally, mut model) = (Tally::new(), Model::founded());
        let mut made = Vec::new();
        for now in 0..25 {
            all_report(&mut tally, now + 1, now + 1, NOTHING, manifests);
            made.extend(drain(&mut tally, &mut model, now).iter().map(|_| now));
        }
        made
    };
    assert_eq!(times(&[]), [0, 10, 20]);
    assert_eq!(times(&[manifest(1, vec![after(item(2), &item(1))])]), (0..25).collect::<Vec<_>>());
}

#[test]
fn r07_the_clocks_of_those_that_do_not_vote_move_no_time() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    for name in ["a", "b"] {
        tally.report(report(name, 1, 0, NOTHING, &[]));
    }
    for name in ["x", "y", "z"] {
        tally.report(report(name, 1, 1000, NOTHING, &[]));
    }
    assert_eq!(drain(&mut tally, &mut model, 0), [], "no majority of the voters' clocks is past group time");
    tally.report(report("b", 2, 1000, NOTHING, &[]));
    assert_eq!(drain(&mut tally, &mut model, 1), [], "one of three voters is none either");
}

#[test]
fn r07_expired_ones_are_not_proposed_and_drop_out() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    let short = ManifestItem { deadline: START.after(seconds(3)), ..after(item(2), &item(1)) };
    for now in 1..7 {
        all_report(&mut tally, now, now, NOTHING, &[manifest(1, vec![short.clone()])]);
        let entries = drain(&mut tally, &mut model, now);
        assert!(entries.iter().all(|entry| entry.ops.is_empty()));
    }
    assert!(!tally.undecided());
    assert_eq!(model.standing(&short), Standing::Expired);
}

#[test]
fn r08_an_offered_directory_is_proposed_until_it_is_in_force() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    let mut next = draft();
    next.version = 2;
    let next = Arc::new(sign(&next));
    tally.offer_directory(&next, directory_op(&next).operator);
    all_report(&mut tally, 1, 1, NOTHING, &[manifest(1, vec![item(1)])]);
    let (number, entry) = propose(&mut tally, &model, 0).unwrap();
    assert_eq!(entry.ops.len(), 2);
    tally.settled(number);
    let entries = drain(&mut tally, &mut model, 0);
    assert_eq!(entries.len(), 1);
    assert_eq!(model.directories.last().unwrap().version, 2);
    // Who has not seen that yet offers it again: nothing is refused, and nobody alarmed.
    tally.offer_directory(&next, directory_op(&next).operator);
    assert_eq!(drain(&mut tally, &mut model, 0), []);
    assert_eq!(tally.refused().count(), 0);
}

/// The next version of the tests' directory, changed.
fn successor(version: u64, change: impl FnOnce(&mut Draft)) -> Arc<Directory> {
    let mut draft = draft();
    draft.version = version;
    change(&mut draft);
    Arc::new(sign(&draft))
}

#[test]
fn r08_what_the_log_would_refuse_or_a_group_could_not_go_on_under_is_never_written() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    all_report(&mut tally, 1, 1, NOTHING, &[manifest(1, vec![item(1)])]);
    assert_eq!(drain(&mut tally, &mut model, 0).len(), 1);
    // Another operator than the log pins.
    let stranger = crate::segments::secret(99);
    let mut theirs = draft();
    theirs.version = 2;
    let bytes = theirs.sign(&stranger).unwrap();
    let theirs = Arc::new(Directory::verify(&bytes, &stranger.public(), 0).unwrap());
    // Without the group's destination; with other voters; of another environment.
    let dropped = successor(3, |draft| {
        draft.destinations.clear();
        draft.senders.clear();
    });
    let fewer = successor(4, |draft| {
        draft.destinations.get_mut(&model.destination).unwrap().nodes = vec![node("a"), node("b")];
    });
    let mut moved = Draft::new(EnvironmentId([9; 16]), "other".parse().unwrap(), Time(4_102_444_800_000));
    moved.version = 5;
    let moved = Arc::new(sign(&moved));
    let own = crate::segments::secret(1).public().bytes();
    let offer = |tally: &mut Tally| {
        tally.offer_directory(&theirs, stranger.public().bytes());
        for directory in [&dropped, &fewer, &moved] {
            tally.offer_directory(directory, own);
        }
    };
    // However often they are offered.
    for now in 0..50 {
        offer(&mut tally);
        all_report(&mut tally, now + 2, 1, NOTHING, &[]);
        assert_eq!(drain(&mut tally, &mut model, 0), [], "nothing is written");
    }
    let why: BTreeMap<u64, String> = tally.refused().map(|(version, why)| (version, why.to_owned())).collect();
    let says = [(2, "the log pins"), (3, "destination orders"), (4, "removes c"), (5, "environment")];
    for (version, what) in says {
        assert!(why[&version].contains(what), "{version}: {}", why[&version]);
    }
    // The next one that fits is proposed, and what it overtakes is forgotten.
    let fits = successor(6, |draft| draft.grace = seconds(7));
    offer(&mut tally);
    tally.offer_directory(&fits, own);
    assert_eq!(drain(&mut tally, &mut model, 0).len(), 1);
    assert_eq!(model.directories.last().unwrap().version, 6);
    assert_eq!(drain(&mut tally, &mut model, 0), []);
    assert_eq!(tally.refused().count(), 0);
}

#[test]
fn r08_a_corrected_directory_of_a_refused_ones_version_is_proposed() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    let own = crate::segments::secret(1).public().bytes();
    all_report(&mut tally, 1, 0, NOTHING, &[]);
    let fewer = successor(2, |draft| {
        draft.destinations.get_mut(&model.destination).unwrap().nodes = vec![node("a")];
    });
    tally.offer_directory(&fewer, own);
    assert!(drain(&mut tally, &mut model, 0).iter().all(|entry| entry.ops.is_empty()));
    tally.offer_directory(&successor(2, |draft| draft.grace = seconds(7)), own);
    drain(&mut tally, &mut model, 0);
    assert_eq!(model.directories.last().unwrap().version, 2);
}

#[test]
fn r08_a_group_whose_directory_lost_its_destination_takes_the_corrected_one() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    let parcels = [manifest(1, vec![item(1)])];
    let dropped = successor(2, |draft| {
        draft.destinations.clear();
        draft.senders.clear();
    });
    model.run(&Entry { time: START, ops: vec![Op::Directory(directory_op(&dropped))] });
    all_report(&mut tally, 1, 1, NOTHING, &parcels);
    assert_eq!(drain(&mut tally, &mut model, 0), [], "nothing can be decided under it");
    let corrected = successor(3, |_| {});
    tally.offer_directory(&corrected, directory_op(&corrected).operator);
    let entries = drain(&mut tally, &mut model, 0);
    assert_eq!(model.directories.last().unwrap().version, 3);
    assert_eq!(entries.iter().map(|entry| entry.ops.len()).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(model.rows.len(), 1, "and what waited is decided");
}

#[test]
fn time_that_cannot_move_is_not_looked_at_without_end() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    // No quorum's clocks: time is due, and there is nothing to write.
    tally.report(report("a", 1, 1, NOTHING, &[manifest(1, vec![item(1)])]));
    let now = seconds(5);
    assert!(tally.due() <= now);
    assert_eq!(propose(&mut tally, &model, 5), None);
    assert!(tally.due() >= now + Duration::from_millis(100), "{:?}", tally.due());
    // A report that moves it is not made to wait.
    tally.report(report("b", 1, 1, NOTHING, &[]));
    assert_eq!(drain(&mut tally, &mut model, 5).len(), 1);
}

#[test]
fn r10_a_void_commit_is_proposed_again_when_its_reporters_are_a_quorum() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    let parcels = [manifest(1, vec![item(1)])];
    for name in ["a", "b"] {
        tally.report(report(name, 1, 1, NOTHING, &parcels));
    }
    let (number, entry) = propose(&mut tally, &model, 0).unwrap();
    // Meanwhile a directory with other voters came into force.
    let mut others = draft();
    others.version = 2;
    others.destinations.get_mut(&model.destination).unwrap().nodes = vec![node("c")];
    tally.applied(&model.run(&Entry { time: START, ops: vec![Op::Directory(directory_op(&sign(&others)))] }));
    tally.applied(&model.run(&entry));
    tally.settled(number);
    assert!(model.rows.is_empty());
    assert!(drain(&mut tally, &mut model, 0).iter().all(|entry| entry.ops.is_empty()));
    tally.report(report("c", 1, 1, NOTHING, &parcels));
    assert_eq!(drain(&mut tally, &mut model, 0).len(), 1);
    assert_eq!(model.rows.len(), 1);
}

#[test]
fn entries_stay_within_their_limit_and_nothing_is_left_behind() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    let parcels: Vec<Manifest> = (0..20)
        .map(|parcel| manifest(parcel, (0..1024).map(|number| item(parcel * 1024 + number)).collect()))
        .collect();
    all_report(&mut tally, 1, 1, NOTHING, &parcels);
    let entries = drain(&mut tally, &mut model, 0);
    assert!(entries.len() > 1);
    assert!(entries.iter().all(|entry| entry.encode().len() <= limits::ENTRY_BYTES));
    assert!(entries[0].encode().len() > limits::ENTRY_BYTES / 20 * 19, "an entry is filled");
    assert_eq!(model.rows.len(), 20 * 1024);
}

#[test]
fn r05_what_found_no_room_beside_its_predecessor_waits_for_its_fate() {
    let (mut tally, model) = (Tally::new(), Model::founded());
    let waiting = |parcel| (1..=1024).map(move |number| after(item(parcel * 1024 + number), &item(0))).collect();
    let parcels: Vec<Manifest> = (1..=20).map(|parcel| manifest(parcel, waiting(parcel))).collect();
    all_report(&mut tally, 1, 1, NOTHING, &[&[manifest(0, vec![item(0)])], &parcels[..]].concat());
    let (number, first) = propose(&mut tally, &model, 0).unwrap();
    let chosen_first = chosen(&first);
    assert_eq!(chosen_first[0], item(0).transaction);
    assert!(chosen_first.len() > 1 && chosen_first.len() < 20 * 1024, "some came with it, some found no room");
    // The entry may be lost yet, and what follows it in the log would come too early.
    assert_eq!(propose(&mut tally, &model, 0), None);
    tally.settled(number);
    let (_, again) = propose(&mut tally, &model, 0).unwrap();
    assert_eq!(chosen(&again)[0], item(0).transaction);
}

#[test]
fn r05_ten_thousand_that_wait_for_one_cost_nothing_while_they_wait() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    let parcels: Vec<Manifest> = (0..10)
        .map(|parcel| {
            manifest(parcel + 1, (0..1000).map(|number| after(item(parcel * 1000 + number + 1), &item(0))).collect())
        })
        .collect();
    all_report(&mut tally, 1, 1, NOTHING, &parcels);
    drain(&mut tally, &mut model, 0);
    let counting = Counting { model: &model, looks: Cell::new(0) };
    for _ in 0..100_000 {
        assert_eq!(tally.propose(&counting, Duration::ZERO).unwrap(), None);
    }
    assert_eq!(counting.looks.get(), 0, "nobody looks at what waits");
    all_report(&mut tally, 2, 1, NOTHING, &[&parcels[..], &[manifest(0, vec![item(0)])]].concat());
    drain(&mut tally, &mut model, 0);
    assert_eq!(model.rows.len(), 10_001);
    assert!(!tally.undecided());
}

/// What happens around the leader.
#[derive(Debug, Clone)]
enum Step {
    /// This node reports the first so many parcels, whole or in part.
    Report(usize, usize, bool),
    /// The leader proposes; the entry is written or lost.
    Propose(bool),
    /// The oldest written entry that was not applied is applied.
    Apply,
    /// Time passes, in milliseconds.
    Wait(u64),
    /// Another node leads: an empty tally.
    NewLeader,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3usize, 0..8usize, any::<bool>()).prop_map(|(node, parcels, last)| Step::Report(node, parcels, last)),
        4 => any::<bool>().prop_map(Step::Propose),
        4 => Just(Step::Apply),
        1 => (0..2500u64).prop_map(Step::Wait),
        1 => Just(Step::NewLeader),
    ]
}

/// Parcels whose transactions name each other as predecessors at random: chains, circles, forks, unseen ones, and the same
/// transaction in several parcels.
fn any_parcels() -> impl Strategy<Value = Vec<Manifest>> {
    let item = (0..16u32, proptest::option::weighted(0.6, (0..18u32, any::<bool>(), any::<bool>())), 0..2u8).prop_map(
        |(number, predecessor, payload)| ManifestItem {
            payload_tag: PayloadTag([payload; 32]),
            deadline: START.after(seconds(10 + u64::from(number))),
            predecessor: predecessor.map(|(number, go_on, complete)| Predecessor {
                transaction: item(number).transaction,
                deadline: START.after(seconds(10 + u64::from(number))),
                on_predecessor: if go_on { OnPredecessor::GoOn } else { OnPredecessor::Reject },
                release: if complete { Release::Complete } else { Release::Committed },
            }),
            ..item(number)
        },
    );
    proptest::collection::vec(proptest::collection::vec(item, 1..5), 1..8)
        .prop_map(|parcels| (0..).zip(parcels).map(|(number, items)| manifest(number, items)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Reports, lost writes, pipelined entries and new leaders in any order; then a calm time: every transaction ends, each
    /// once, after its predecessor, and the tally is empty.
    #[test]
    fn whatever_happens_everything_ends(parcels in any_parcels(), steps in proptest::collection::vec(any_step(), 0..60)) {
        let (mut tally, mut model) = (Tally::new(), Model::founded());
        let (mut now, mut number) = (Duration::ZERO, 0);
        let mut log: std::collections::VecDeque<(Option<u64>, Entry)> = Default::default();
        let mut positions: BTreeMap<TransactionId, Position> = BTreeMap::new();
        let calm = (0..200).flat_map(|_| [Step::Report(0, 9, true), Step::Report(1, 9, true), Step::Report(2, 9, true), Step::Propose(true), Step::Apply, Step::Wait(1000)]);
        for step in steps.into_iter().chain(calm) {
            match step {
                Step::Report(node, count, last) => {
                    number += 1;
                    let held = Position { index: model.index + 1, number: 0 };
                    let staged = &parcels[..count.min(parcels.len())];
                    let report = report(["a", "b", "c"][node], number, 0, held, staged);
                    tally.report(Report { clock: START.after(now), last, ..report });
                }
                Step::Propose(written) => {
                    if let Some(proposal) = tally.propose(&model, now).unwrap() {
                        if written {
                            log.push_back((Some(proposal.number), proposal.entry));
                        } else {
                            tally.settled(proposal.number);
                        }
                    }
                }
                Step::Apply => {
                    let Some((proposal, entry)) = log.pop_front() else { continue };
                    let changes = model.run(&entry);
                    for row in &changes.rows {
                        positions.insert(row.transaction, row.position);
                    }
                    tally.applied(&changes);
                    if let Some(proposal) = proposal {
                        tally.settled(proposal);
                    }
                }
                Step::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
                Step::NewLeader => {
                    tally = Tally::new();
                    // What the old leader wrote may still be in the log; nobody waits for it.
                    log.iter_mut().for_each(|(proposal, _)| *proposal = None);
                }
            }
        }
        prop_assert!(log.is_empty());
        prop_assert!(!tally.undecided(), "something is left on the table");
        prop_assert!(model.time > START.after(seconds(30)), "group time stood still: {:?}", Time(model.time.0 - START.0));
        for item in parcels.iter().flat_map(|parcel| &parcel.items) {
            prop_assert_ne!(model.standing(item), Standing::Undecided);
        }
        for row in model.rows.values().filter(|row| row.is_committed()) {
            let items = parcels.iter().flat_map(|parcel| parcel.items.iter().filter(|_| parcel.digest == row.digest));
            let item = items.clone().find(|item| item.index == row.index).unwrap();
            if let Some(predecessor) = item.predecessor
                && let Some(before) = positions.get(&predecessor.transaction)
                && predecessor.transaction != row.transaction
            {
                let expired_then = row.decided > predecessor.deadline;
                prop_assert!(*before < row.position || expired_then, "it overtook its predecessor");
            }
        }
    }
}
