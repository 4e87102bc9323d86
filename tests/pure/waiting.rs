//! Transactions that wait for others (R5, R9): across parcels, for what never comes, and ten thousand at once, over changes
//! of the leader.

use std::cell::Cell;
use std::collections::BTreeSet;

use crate::deciding::*;
use sealcast::core::decide::{
    Decision, Entry, Manifest, ManifestItem, Op, Predecessor, Proposal, Report, Standing, Tally, Wait,
};
use sealcast::core::id::{Digest, OnPredecessor, Position, Rejection, Release, TransactionId};

const NODES: [&str; 3] = ["a", "b", "c"];
const NOTHING: Position = Position { index: 0, number: 0 };

/// All three report these parcels whole.
fn all_report(tally: &mut Tally, number: u64, second: u64, manifests: &[Manifest]) {
    for name in NODES {
        tally.report(report(name, number, second, NOTHING, manifests));
    }
}

/// Proposes, applies and settles until nothing more is to be proposed now; gives the entries that were not time alone.
fn drain(tally: &mut Tally, model: &mut Model, now: u64) -> Vec<Entry> {
    let mut entries = Vec::new();
    while let Some(proposal) = tally.propose(model, seconds(now)).unwrap() {
        tally.applied(&model.run(&proposal.entry));
        tally.settled(proposal.number);
        entries.push(proposal.entry);
        assert!(entries.len() < 1000, "it proposes without end");
    }
    entries.retain(|entry| !entry.ops.is_empty());
    entries
}

fn chosen(entry: &Entry) -> Vec<TransactionId> {
    let commits = entry.ops.iter().filter_map(|op| if let Op::Commit(commit) = op { Some(commit) } else { None });
    commits.flat_map(|commit| commit.items.iter().map(|item| item.transaction)).collect()
}

fn rules(item: ManifestItem, on_predecessor: OnPredecessor, release: Release) -> ManifestItem {
    let predecessor = item.predecessor.map(|it| Predecessor { on_predecessor, release, ..it });
    ManifestItem { predecessor, ..item }
}

/// Rings of bundles that wait for each other, in every order of arrival and with a new leader between any two of them.
#[test]
fn r05_bundles_that_wait_for_each_other_commit_as_soon_as_the_last_of_them_is_there() {
    const RING: u32 = 4;
    // Parcel i = first(i), and one that waits for first(i + 1).
    let first = |parcel: u32| item(parcel % RING + 1);
    let parcels: Vec<Manifest> =
        (0..RING).map(|at| manifest(at, vec![first(at), after(item(100 + at), &first(at + 1))])).collect();
    for start in 0..RING as usize {
        for new_leader in [false, true] {
            let (mut tally, mut model) = (Tally::new(), Model::founded());
            for come in 1..=RING as usize {
                if new_leader {
                    tally = Tally::new();
                }
                let there: Vec<Manifest> = (0..come).map(|at| parcels[(start + at) % RING as usize].clone()).collect();
                all_report(&mut tally, come as u64, 1, &there);
                let entries = drain(&mut tally, &mut model, 0);
                assert_eq!(entries.len(), 1, "what can be decided is, at once");
                // Every first, and of those that wait all whose predecessor is there.
                let waiting = there.len() - usize::from(come < RING as usize);
                assert_eq!(model.rows.len(), come + waiting);
            }
            assert!(!tally.undecided());
            assert!(model.rows.values().all(|row| row.is_committed()));
        }
    }
}

#[test]
fn r09_a_predecessor_that_never_comes_ends_by_its_deadline_and_siblings_never_wait() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    let never = ManifestItem { deadline: START.after(seconds(5)), ..item(1) };
    let strict = rules(after(item(2), &never), OnPredecessor::Reject, Release::Committed);
    let lenient = rules(after(item(3), &never), OnPredecessor::GoOn, Release::Complete);
    let follows = after(item(4), &strict);
    let sibling = item(5);
    let parcels = [manifest(1, vec![strict.clone(), lenient.clone(), follows.clone(), sibling.clone()])];
    let mut decided = Vec::new();
    for now in 1..9 {
        all_report(&mut tally, now, now, &parcels);
        drain(&mut tally, &mut model, now);
        decided.push(model.rows.len());
    }
    // At its deadline it can still come; with the first entry behind it all are decided.
    assert_eq!(decided, [1, 1, 1, 1, 1, 4, 4, 4]);
    assert!(!tally.undecided());
    let decision = |item: &ManifestItem| model.rows[&(web(), item.transaction)].decision;
    assert_eq!(decision(&sibling), Decision::Committed);
    assert_eq!(decision(&strict), Decision::Rejected(Rejection::Predecessor));
    assert_eq!(decision(&lenient), Decision::Committed, "nobody holds what never came");
    assert_eq!(decision(&follows), Decision::Rejected(Rejection::Predecessor));
    // Were it to come now, its ticket has ended: nobody's fate changes.
    all_report(&mut tally, 20, 9, &[manifest(2, vec![never.clone()])]);
    drain(&mut tally, &mut model, 9);
    assert_eq!(model.standing(&never), Standing::Expired);
}

#[test]
fn r05_release_on_complete_survives_leaders_and_wiped_voters() {
    let mut model = Model::founded();
    let second = rules(after(item(2), &item(1)), OnPredecessor::Reject, Release::Complete);
    let parcels = [manifest(1, vec![item(1), second.clone()])];
    let holds = |name: &str, number, held| Report { held, ..report(name, number, 1, NOTHING, &parcels) };
    let mut tally = Tally::new();
    all_report(&mut tally, 1, 1, &parcels);
    drain(&mut tally, &mut model, 0);
    let position = model.rows[&(web(), item(1).transaction)].position;
    // Everybody but one says that it holds it; then another leads, and hears of it anew.
    for name in ["a", "b"] {
        tally.report(holds(name, 2, position));
    }
    assert_eq!(drain(&mut tally, &mut model, 0), []);
    let mut tally = Tally::new();
    for name in ["b", "c"] {
        tally.report(holds(name, 3, position));
        assert_eq!(drain(&mut tally, &mut model, 0), [], "it does not know what a holds");
    }
    // A voter whose disk was wiped holds nothing any more.
    let wiped = Report { incarnation: incarnation("z"), ..holds("a", 1, NOTHING) };
    tally.report(wiped);
    assert_eq!(drain(&mut tally, &mut model, 0), []);
    let waits = tally.waits_for(&model, &web(), second.transaction);
    assert_eq!(waits, Some(Wait::Release(vec![node("a")])));
    tally.report(Report { incarnation: incarnation("z"), ..holds("a", 2, position) });
    assert_eq!(drain(&mut tally, &mut model, 0).len(), 1);
    assert!(model.rows[&(web(), second.transaction)].is_committed());
}

#[test]
fn r05_ten_thousand_that_wait_for_one_survive_changes_of_the_leader() {
    const WAITING: u32 = 10_000;
    const EACH: u32 = 50;
    let first = manifest(0, vec![item(0)]);
    let parcels: Vec<Manifest> = (0..WAITING / EACH)
        .map(|parcel| {
            let items = (0..EACH).map(|number| after(item(parcel * EACH + number + 1), &item(0)));
            manifest(parcel + 1, items.collect())
        })
        .collect();
    let mut model = Model::founded();
    let mut tally = Tally::new();
    all_report(&mut tally, 1, 1, &parcels);
    assert_eq!(drain(&mut tally, &mut model, 0), []);

    // A new leader hears of them without their manifests, asks for each, and gets them from one node alone.
    let elect = |model: &Model, number: u64, parcels: &[Manifest]| -> (Tally, Option<Proposal>, usize) {
        let mut tally = Tally::new();
        let mut wanted: BTreeSet<Digest> = BTreeSet::new();
        for name in NODES {
            let mut without = report(name, number, 1, NOTHING, parcels);
            without.staged.iter_mut().for_each(|staged| staged.manifest = None);
            wanted.extend(tally.report(without));
        }
        assert_eq!(wanted.len(), parcels.len(), "each is asked for");
        assert_eq!(tally.report(Report { last: false, ..report("b", number + 1, 1, NOTHING, parcels) }), []);
        let counting = Counting { model, looks: Cell::new(0) };
        let first = tally.propose(&counting, seconds(0)).unwrap();
        (tally, first, counting.looks.get())
    };
    let (mut tally, waits, looks) = elect(&model, 10, &parcels);
    assert!(waits.is_none_or(|proposal| proposal.entry.ops.is_empty()));
    assert!(looks <= 2 * WAITING as usize, "{looks} look-ups for {WAITING}: each looks at itself and its predecessor");

    // What they wait for comes. This leader writes the entry that commits it, and as many of them as have room, and ends; the
    // entry is lost. Another one, which had heard of nothing but the predecessor, writes one that is not.
    for name in NODES {
        tally.report(Report { last: false, ..report(name, 12, 1, NOTHING, std::slice::from_ref(&first)) });
    }
    let lost = tally.propose(&model, seconds(3)).unwrap().unwrap().entry;
    assert_eq!(chosen(&lost)[0], item(0).transaction);
    let mut hasty = Tally::new();
    all_report(&mut hasty, 15, 1, std::slice::from_ref(&first));
    assert_eq!(drain(&mut hasty, &mut model, 3).len(), 1);
    assert_eq!(model.rows.len(), 1);
    let (mut tally, mut proposal, mut looks) = elect(&model, 20, &parcels);
    let mut entries = 0;
    while let Some(made) = proposal {
        tally.applied(&model.run(&made.entry));
        tally.settled(made.number);
        entries += 1;
        let counting = Counting { model: &model, looks: Cell::new(0) };
        proposal = tally.propose(&counting, seconds(4)).unwrap();
        looks += counting.looks.get();
    }
    assert_eq!(model.rows.len(), WAITING as usize + 1);
    assert!(model.rows.values().all(|row| row.is_committed()));
    let before = model.rows[&(web(), item(0).transaction)].position;
    assert_eq!(model.rows.values().map(|row| row.position).min(), Some(before));
    assert!(!tally.undecided());
    assert!(looks <= 2 * WAITING as usize, "{looks} look-ups");
    assert!(entries < 20, "{entries} entries");
}

#[test]
fn r05_many_parcels_released_at_once_are_looked_at_once_each() {
    // Each alone in its parcel: what has no room in an entry must not be gone through again for every entry.
    const WAITING: u32 = 3_000;
    let parcels: Vec<Manifest> =
        (1..=WAITING).map(|number| manifest(number, vec![after(item(number), &item(0))])).collect();
    let all = [&parcels[..], &[manifest(0, vec![item(0)])]].concat();
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    all_report(&mut tally, 1, 1, &all);
    let mut looks = 0;
    loop {
        let counting = Counting { model: &model, looks: Cell::new(0) };
        let proposal = tally.propose(&counting, seconds(0)).unwrap();
        looks += counting.looks.get();
        let Some(proposal) = proposal else { break };
        tally.applied(&model.run(&proposal.entry));
        tally.settled(proposal.number);
    }
    assert_eq!(model.rows.len(), WAITING as usize + 1);
    assert!(looks <= 2 * WAITING as usize + 2, "{looks} look-ups");
}

#[test]
fn r06_a_transaction_in_two_parcels_is_committed_once_though_both_are_proposed() {
    let (mut tally, mut model) = (Tally::new(), Model::founded());
    let (one, other) = (manifest(1, vec![item(1), item(2)]), manifest(2, vec![item(2), after(item(3), &item(2))]));
    all_report(&mut tally, 1, 1, &[one, other]);
    drain(&mut tally, &mut model, 0);
    assert_eq!(model.rows.len(), 3);
    assert!(!tally.undecided());
    // Two leaders, each with its own half, write the same transaction: the second changes nothing.
    let mut model = Model::founded();
    let mut written = Vec::new();
    for number in [7, 8] {
        let mut tally = Tally::new();
        all_report(&mut tally, 1, 1, &[manifest(number, vec![item(1)])]);
        written.push(tally.propose(&model, seconds(0)).unwrap().unwrap().entry);
    }
    let digests: Vec<usize> = written.iter().map(|entry| model.run(entry).rows.len()).collect();
    assert_eq!(digests, [1, 0]);
}
