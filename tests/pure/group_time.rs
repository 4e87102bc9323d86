//! Group time (R7) over hours of simulated time: three nodes, each with a clock of its own, that report to a leader; the
//! leader's entries are applied when a majority is there, and hang until then.

use std::collections::VecDeque;
use std::time::Duration;

use crate::deciding::*;
use crate::segments::{draft, sign};
use sealcast::core::decide::{Applied, Entry, Manifest, ManifestItem, Op, Report, Standing, Tally, expired};
use sealcast::core::id::{Position, Rejection, Release, Time};

const NODES: [&str; 3] = ["a", "b", "c"];
const HOUR: u64 = 3_600_000;
/// Reports come every second, and so do entries while anything is undecided.
const LAG: u64 = 3_000;

/// What a node's clock shows when this much time has passed.
type Wall = fn(Duration) -> Time;

fn right(passed: Duration) -> Time {
    START.after(passed)
}

struct Group {
    model: Model,
    tally: Tally,
    passed: Duration,
    walls: [Wall; 3],
    /// Whether a node is in touch with the leader. The first is the leader.
    there: [bool; 3],
    parcels: Vec<Manifest>,
    reports: u64,
    /// Written and not committed.
    hanging: VecDeque<(u64, Entry)>,
}

impl Group {
    fn new(walls: [Wall; 3]) -> Self {
        Self {
            model: Model::founded(),
            tally: Tally::new(),
            passed: Duration::ZERO,
            walls,
            there: [true; 3],
            parcels: Vec::new(),
            reports: 0,
            hanging: VecDeque::new(),
        }
    }

    fn now(&self) -> Time {
        right(self.passed)
    }

    /// A parcel that every node stages at once.
    fn submit(&mut self, items: Vec<ManifestItem>) {
        self.parcels.push(manifest(self.parcels.len() as u32 + 1, items));
    }

    fn report(&mut self, node: usize) {
        self.reports += 1;
        let (model, now) = (&self.model, self.model.time);
        self.parcels.retain(|parcel| parcel.items.iter().any(|item| model.standing(item) == Standing::Undecided));
        let staged: Vec<Manifest> = self.parcels.clone();
        let held = Position { index: self.model.index + 1, number: 0 };
        let report = report(NODES[node], self.reports, 0, held, &staged);
        self.tally.report(Report { clock: self.walls[node](self.passed), ..report });
        assert!(self.model.time >= now);
    }

    fn lead(&mut self) {
        let majority = self.there.iter().filter(|there| **there).count() >= 2;
        loop {
            while majority && let Some((number, entry)) = self.hanging.pop_front() {
                self.tally.applied(&self.model.run(&entry));
                self.tally.settled(number);
            }
            // As a node does: two entries at most are on their way.
            if self.hanging.len() >= 2 {
                return;
            }
            let Some(proposal) = self.tally.propose(&self.model, self.passed).unwrap() else { return };
            self.hanging.push_back((proposal.number, proposal.entry));
        }
    }

    /// Time passes in these steps; every node that is there reports once a second, each at its own moment.
    fn pass(&mut self, time: Duration, step: Duration, mut look: impl FnMut(&mut Self)) {
        let end = self.passed + time;
        while self.passed < end {
            let before = self.passed;
            self.passed += step;
            for node in 0..3 {
                let moment = |at: Duration| (at.as_millis() as u64 + 300 * node as u64) / 1000;
                if self.there[node] && moment(before) != moment(self.passed) {
                    self.report(node);
                }
            }
            self.lead();
            look(self);
        }
    }

    /// Another node leads: an empty tally. What the old one wrote and could not commit is gone.
    fn elect(&mut self) {
        self.tally = Tally::new();
        self.hanging.clear();
        for node in (0..3).filter(|node| self.there[*node]).collect::<Vec<_>>() {
            self.report(node);
        }
    }
}

/// It waits for something that never comes, so that only its deadline ends it.
fn waits(number: u32, deadline: Time) -> ManifestItem {
    let never = ManifestItem { deadline: START.after(seconds(100 * 3600)), ..item(1_000_000) };
    ManifestItem { deadline, ..after(item(number), &never) }
}

#[test]
fn r07_one_wrong_clock_expires_nothing_that_lives_and_commits_nothing_that_is_dead() {
    let ahead: Wall = |passed| Time(right(passed).0 + HOUR);
    let behind: Wall = |passed| Time(right(passed).0 - HOUR);
    let jumping: Wall = |passed| match passed.as_secs() / 7 % 3 {
        0 => Time(right(passed).0 + HOUR),
        1 => Time(right(passed).0 - HOUR),
        _ => right(passed),
    };
    let broken: Wall = |passed| Time(if passed.as_secs().is_multiple_of(2) { 0 } else { u64::MAX });
    for wrong in [ahead, behind, jumping, broken] {
        for at in 0..3 {
            let mut walls: [Wall; 3] = [right; 3];
            walls[at] = wrong;
            let mut group = Group::new(walls);
            let mut sent: Vec<ManifestItem> = Vec::new();
            let mut number = 0;
            group.pass(seconds(120), Duration::from_millis(100), |group| {
                if group.passed.as_millis().is_multiple_of(5000) {
                    number += 1;
                    let transaction = waits(number, group.now().after(seconds(10)));
                    group.submit(vec![transaction.clone()]);
                    sent.push(transaction);
                }
                for item in &sent {
                    let (now, standing) = (group.now(), group.model.standing(item));
                    if !expired(now, item.deadline) {
                        assert_eq!(standing, Standing::Undecided, "it lives, {} ms to go", item.deadline.0 - now.0);
                    } else if expired(now, item.deadline.after(Duration::from_millis(LAG))) {
                        assert_eq!(standing, Standing::Expired, "it is dead for {} ms", now.0 - item.deadline.0);
                    }
                }
            });
            assert!(sent.len() > 20);
            let dead = ManifestItem { deadline: Time(group.now().0 - LAG), ..item(5000) };
            let alive = ManifestItem { deadline: group.now().after(seconds(2)), ..item(5001) };
            group.submit(vec![dead.clone(), alive.clone()]);
            group.pass(seconds(1), Duration::from_millis(100), |_| ());
            assert_eq!(group.model.standing(&dead), Standing::Expired);
            assert!(matches!(group.model.standing(&alive), Standing::Decided(..)));
        }
    }
}

#[test]
fn r07_two_hours_without_a_quorum_expire_no_backlog_at_a_stroke() {
    // The same leader waits for its quorum, or another one comes when it is back.
    for elected in [false, true] {
        let mut group = Group::new([right; 3]);
        group.pass(seconds(10), Duration::from_millis(100), |_| ());
        group.there = [true, false, false];
        // Half an hour to live, and they come all the time.
        let mut sent = Vec::new();
        group.pass(seconds(2 * 3600), seconds(1), |group| {
            if group.passed.as_secs().is_multiple_of(60) {
                let transaction =
                    ManifestItem { deadline: group.now().after(seconds(1800)), ..item(sent.len() as u32) };
                group.submit(vec![transaction.clone()]);
                sent.push(transaction);
            }
        });
        assert_eq!(sent.len(), 120);
        assert!(sent.iter().all(|item| group.model.standing(item) == Standing::Undecided), "no quorum, no fate");
        let before = group.model.time;
        group.there = [true; 3];
        if elected {
            group.elect();
        }
        group.pass(seconds(3), Duration::from_millis(100), |group| {
            let by = group.model.time.since(before);
            // What was on its way, a step of 20 s, and twice the 3 s.
            assert!(by <= seconds(10 + 20 + 6), "time moved on by {by:?} at once");
        });
        let lost = sent.iter().filter(|item| !matches!(group.model.standing(item), Standing::Decided(..))).count();
        assert_eq!(lost, 0, "of {} that nobody could decide expired; elected: {elected}", sent.len());
        // It catches up, at twice the pace of time at most.
        let behind = group.now().since(group.model.time);
        group.pass(behind + seconds(60), seconds(1), |_| ());
        assert!(group.now().since(group.model.time) <= seconds(11), "{:?}", group.now().since(group.model.time));
    }
}

#[test]
fn r07_after_an_idle_night_deadlines_do_not_lag() {
    let mut group = Group::new([right; 3]);
    let mut entries = 0;
    group.pass(seconds(10 * 3600), seconds(1), |group| entries = group.model.index);
    assert!((3000..4000).contains(&entries), "one every ten seconds: {entries}");
    let short = waits(1, group.now().after(seconds(5)));
    group.submit(vec![short.clone()]);
    group.pass(seconds(20), Duration::from_millis(100), |group| {
        let (now, standing) = (group.now(), group.model.standing(&short));
        if !expired(now, short.deadline) {
            assert_eq!(standing, Standing::Undecided);
        } else if expired(now, short.deadline.after(Duration::from_millis(LAG))) {
            assert_eq!(standing, Standing::Expired, "{} ms after its deadline", now.0 - short.deadline.0);
        }
    });
    // Nor does what is dead when it comes first.
    group.pass(seconds(9 * 3600), seconds(1), |_| ());
    let dead = ManifestItem { deadline: Time(group.now().0 - LAG), ..item(2) };
    group.submit(vec![dead.clone()]);
    group.pass(seconds(2), Duration::from_millis(100), |_| ());
    assert_eq!(group.model.standing(&dead), Standing::Expired);
}

#[test]
fn r07_without_a_quorum_of_clocks_time_stands() {
    let mut group = Group::new([right; 3]);
    group.pass(seconds(10), Duration::from_millis(100), |_| ());
    let (stands, short) = (group.model.time, waits(1, group.now().after(seconds(5))));
    group.submit(vec![short.clone()]);
    group.there = [true, false, false];
    group.pass(seconds(600), seconds(1), |_| ());
    assert!(group.model.time.since(stands) <= seconds(1));
    assert_eq!(group.model.standing(&short), Standing::Undecided, "unknown, not expired");
}

#[test]
fn r07_a_deadline_that_is_too_far_is_rejected_though_it_waits() {
    // Without an end: what it waits for never comes either, and nodes would keep it for ever.
    let never = ManifestItem { deadline: Time(u64::MAX), ..item(99) };
    let mut greedy = ManifestItem { deadline: Time(u64::MAX), ..after(item(1), &never) };
    for release in [Release::Committed, Release::Complete] {
        greedy.predecessor.as_mut().unwrap().release = release;
        let mut group = Group::new([right; 3]);
        let modest = ManifestItem { deadline: START.after(seconds(60)), ..after(item(2), &never) };
        group.submit(vec![greedy.clone(), modest.clone()]);
        group.pass(seconds(5), Duration::from_millis(100), |_| ());
        let row = &group.model.rows[&(web(), greedy.transaction)];
        assert_eq!(row.decision.fate(), sealcast::core::id::Fate::Rejected(Rejection::DeadlineTooFar));
        assert_eq!(group.model.standing(&modest), Standing::Undecided);
    }
}

#[test]
fn r07_a_late_commit_changes_nothing_whoever_proposes_it() {
    // An old leader's entry for what has expired, in the log behind the entry that passed its deadline.
    let mut model = Model::founded();
    let short = ManifestItem { deadline: START.after(seconds(5)), ..item(1) };
    model.run(&entry(9, vec![]));
    let late = model.run(&entry(4, vec![vec![short.clone()]]));
    assert_eq!(late.outcomes[0].result, Applied::Late);
    assert_eq!((model.standing(&short), model.rows.len()), (Standing::Expired, 0));
}

#[test]
fn r08_a_directory_that_has_ended_is_never_written() {
    let mut group = Group::new([right; 3]);
    group.pass(seconds(20), seconds(1), |_| ());
    let mut next = draft();
    (next.version, next.valid_until) = (2, Time(group.model.time.0 - 1000));
    let ended = std::sync::Arc::new(sign(&next));
    group.tally.offer_directory(&ended, directory_op(&ended).operator);
    group.pass(seconds(20), seconds(1), |_| ());
    assert_eq!(group.model.directories.len(), 1);
    let why = group.tally.refused().map(|(version, why)| format!("{version}: {why}")).collect::<Vec<_>>();
    assert!(matches!(&why[..], [one] if one.starts_with("2: valid_until: it ended")), "{why:?}");
    next.valid_until = group.now().after(seconds(3600));
    let lives = std::sync::Arc::new(sign(&next));
    group.tally.offer_directory(&lives, directory_op(&lives).operator);
    group.pass(seconds(20), seconds(1), |_| ());
    assert_eq!(group.model.directories.last().unwrap().bytes(), lives.bytes());
    assert!(
        matches!(group.model.run(&Entry { time: START, ops: vec![Op::Directory(directory_op(&ended))] }), changes if changes.directories.is_empty())
    );
}
