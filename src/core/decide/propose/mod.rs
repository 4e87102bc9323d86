//! The leader's tally of reports: what to propose next, and when (R5, R7, R10).
//!
//! Pure and soft: reports, what apply did and the leader's monotonic clock come in, entries go out. A new leader starts with
//! an empty tally. Must not make fates: whatever it proposes, `apply` checks.

mod pace;
mod queue;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::entry::{Commit, DirectoryOp, Entry, Op, item_bytes};
use super::manifest::Manifest;
use super::rows::{Decision, Standing, expired, standing};
use super::view::{Applied, Changes, View};
use crate::core::directory::{DestinationEntry, Directory};
use crate::core::id::{
    Digest, Incarnation, NodeName, ParcelId, Position, Release, SenderName, Ticket, Time, TransactionId,
    VerifyingKeyBytes,
};
use crate::core::limits;
use pace::Pace;
use queue::{ItemKey, ParcelKey, Queue, State};

/// What a node says to the leader: its clock, what it holds, and what it has staged without a fate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Who reports.
    pub node: NodeName,
    /// The life of its store. A new one takes back everything that an earlier one reported.
    pub incarnation: Incarnation,
    /// Its wall clock when it reported.
    pub clock: Time,
    /// It holds everything committed up to here.
    pub held: Position,
    /// Counts its reports; parts of one report have the same number.
    pub number: u64,
    /// Whether this is the last part. Then what it reported before and not under this number is taken back. A part that
    /// never gets a last one only adds: that is how a node reports a parcel that it just staged.
    pub last: bool,
    /// Staged parcels with undecided transactions.
    pub staged: Vec<Staged>,
}

/// One staged parcel of a report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Staged {
    /// Its id.
    pub parcel: ParcelId,
    /// D.
    pub digest: Digest,
    /// The digest of its manifest.
    pub manifest_digest: Digest,
    /// The manifest, when the leader asked for it or the parcel is new. One that does not have that digest is not taken.
    pub manifest: Option<Arc<Manifest>>,
}

/// An entry for the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// To be given back to [`Tally::settled`] when the write has ended.
    pub number: u64,
    /// The entry.
    pub entry: Entry,
}

/// What an undecided transaction waits for, and on whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Too few nodes staged it; these voters did not.
    Quorum(Vec<NodeName>),
    /// Its predecessor has no fate.
    Predecessor(Ticket),
    /// These voters do not hold its predecessor yet (release on complete).
    Release(Vec<NodeName>),
    /// It is proposed next, or stands in an entry that is on its way.
    Commit,
}

/// What one node reported last.
#[derive(Debug)]
struct Reporter {
    incarnation: Incarnation,
    clock: Time,
    held: Position,
    number: u64,
    /// All parcels that it has staged.
    staged: BTreeSet<ParcelKey>,
    /// Those of them that came under `number`.
    current: BTreeSet<ParcelKey>,
}

/// A directory to be put in force.
#[derive(Debug)]
struct Offered {
    directory: Arc<Directory>,
    operator: VerifyingKeyBytes,
    /// The proposal that carries it.
    carried: Option<u64>,
}

impl Offered {
    fn op(&self) -> DirectoryOp {
        DirectoryOp { operator: self.operator, bytes: self.directory.bytes().clone() }
    }

    /// Whether the log can take it: apply would refuse it, or the group could not go on under it.
    fn check<V: View>(&self, view: &V, in_force: &Directory) -> Result<(), String> {
        if let Some(pinned) = view.operator()
            && pinned != self.operator
        {
            return Err(format!("it names {} as operator, the log pins {pinned}", self.operator));
        }
        let follows = self.directory.check_successor_of(in_force);
        follows
            .and_then(|()| self.directory.check_valid(view.group_time()))
            .and_then(|()| self.directory.check_keeps(in_force, view.destination()))
            .map_err(|error| error.to_string())
    }
}

/// The leader's tally for one group and one term.
///
/// The loop around it: hand in every report ([`Tally::report`]); whenever something was reported or applied, and at
/// [`Tally::due`], call [`Tally::propose`] and write what it gives; hand in the changes of every entry that is applied
/// ([`Tally::applied`]), then say that the write has ended ([`Tally::settled`]). Several proposals may be on their way.
#[derive(Debug, Default)]
pub struct Tally {
    reporters: BTreeMap<NodeName, Reporter>,
    queue: Queue,
    pace: Pace,
    proposals: u64,
    in_flight: BTreeMap<u64, Vec<ItemKey>>,
    /// Directories to be put in force, by version.
    directories: BTreeMap<u64, Offered>,
    /// Directories that were offered and are not proposed, by version, and why.
    refused: BTreeMap<u64, (DirectoryOp, String)>,
    /// The version that `queue`'s quorums were counted under.
    directory_version: u64,
}

impl Tally {
    /// Starts empty, as every new leader does.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a report. Gives the digests of manifests that the tally lacks: the node's next report should carry them.
    pub fn report(&mut self, report: Report) -> Vec<Digest> {
        let Report { node, incarnation, .. } = report;
        let reporter = self.reporters.entry(node.clone()).or_insert_with(|| Reporter {
            incarnation,
            clock: Time(0),
            held: Position::default(),
            number: 0,
            staged: BTreeSet::new(),
            current: BTreeSet::new(),
        });
        if reporter.incarnation != incarnation {
            for key in std::mem::take(&mut reporter.staged) {
                self.queue.withdraw(key, &node);
            }
            reporter.incarnation = incarnation;
            reporter.number = 0;
        }
        reporter.clock = report.clock;
        reporter.held = report.held;
        if reporter.number != report.number {
            reporter.number = report.number;
            reporter.current.clear();
        }
        let mut wanted = Vec::new();
        for staged in report.staged {
            let Staged { parcel, digest, manifest_digest, manifest } = staged;
            let key = ParcelKey { parcel, digest, manifest_digest };
            reporter.staged.insert(key);
            reporter.current.insert(key);
            if self.queue.add(key, &node, incarnation) {
                match manifest.filter(|manifest| {
                    manifest.parcel == parcel
                        && manifest.digest == digest
                        && manifest.manifest_digest() == manifest_digest
                }) {
                    Some(manifest) => self.queue.learn(key, manifest),
                    None => wanted.push(manifest_digest),
                }
            }
        }
        if report.last {
            let current = std::mem::take(&mut reporter.current);
            for key in std::mem::replace(&mut reporter.staged, current) {
                if !reporter.staged.contains(&key) {
                    self.queue.withdraw(key, &node);
                }
            }
        }
        wanted
    }

    /// A directory to be put in force: it is proposed until one of its version or a later one is (R8), unless the log would
    /// refuse it or the group could not go on under it: see [`Tally::refused`]. The caller has verified it with the
    /// operator's key that it names.
    pub fn offer_directory(&mut self, directory: &Arc<Directory>, operator: VerifyingKeyBytes) {
        let same = |op: &DirectoryOp| op.operator == operator && op.bytes == *directory.bytes();
        if self.refused.get(&directory.version).is_some_and(|(op, _)| same(op)) {
            return;
        }
        let offered = || Offered { directory: Arc::clone(directory), operator, carried: None };
        self.directories.entry(directory.version).or_insert_with(offered);
    }

    /// Directories newer than the one in force that were offered and are not proposed, by version, and why.
    pub fn refused(&self) -> impl Iterator<Item = (u64, &str)> {
        self.refused.iter().map(|(version, (_, why))| (*version, why.as_str()))
    }

    /// Whether anything reported has no fate yet.
    pub fn undecided(&self) -> bool {
        self.queue.undecided()
    }

    /// When to call [`Tally::propose`] although nothing was reported or applied, by the leader's monotonic clock.
    pub fn due(&self) -> Duration {
        self.pace.due(self.undecided()).max(self.pace.rest())
    }

    /// The next entry, if there is something to propose: transactions that are ready, a directory, or time alone when that
    /// is due and a majority's clocks have moved. `view` is the state as applied here, never older than what
    /// [`Tally::applied`] was told (what it passed on already wakes nobody twice); `now` the leader's monotonic clock.
    ///
    /// The entry has at most [`limits::ENTRY_BYTES`]; when more is ready, call again. Errors: those of the view's look-ups;
    /// nothing is lost then, call again.
    pub fn propose<V: View>(&mut self, view: &V, now: Duration) -> Result<Option<Proposal>, V::Error> {
        let Some(directory) = view.directory().cloned() else {
            self.pace.looked(now);
            return Ok(None);
        };
        if self.directory_version != directory.version {
            self.directory_version = directory.version;
            self.queue.touched = self.queue.parcels.keys().copied().collect();
        }
        // Whoever offers may not have seen yet that it is in force: that is no refusal.
        self.directories.retain(|version, _| *version > directory.version);
        self.refused.retain(|version, _| *version > directory.version);
        let number = self.proposals + 1;
        let mut ops: Vec<Op> = Vec::new();
        let mut room = limits::ENTRY_BYTES.saturating_sub(64);
        if let Some(op) = self.next_directory(view, &directory, number) {
            room = room.saturating_sub(op.bytes.len() + 64);
            ops.push(Op::Directory(op));
        }
        let Some(destination) = directory.destinations.get(view.destination()) else {
            // Nothing can be decided under this directory, and nobody's clocks count: the next one is the only way on.
            if ops.is_empty() {
                self.pace.looked(now);
                return Ok(None);
            }
            return Ok(Some(self.made(number, now, Entry { time: view.group_time(), ops }, Vec::new())));
        };
        let voters = || destination.nodes.iter().filter_map(|node| self.reporters.get(node));
        let clocks = voters().map(|reporter| reporter.clock).collect();
        let time = self.pace.time(now, view.group_time(), clocks, destination.quorum());
        let complete = match voters().count() == destination.nodes.len() {
            true => voters().map(|reporter| reporter.held).min().unwrap_or_default(),
            false => Position::default(),
        };
        // Deadlines are judged by group time as applied: what passes one in this entry is seen with the next.
        self.queue.time_passed(view.group_time());
        while let Some(item) = self.queue.fresh.first().copied() {
            self.look_at(view, destination, view.group_time(), item)?;
        }
        self.queue.held(complete);
        for key in std::mem::take(&mut self.queue.touched) {
            if let Some(parcel) = self.queue.parcels.get(&key).filter(|parcel| !parcel.ready.is_empty()) {
                self.queue.ready.insert((parcel.arrival, key));
            }
        }

        let mut items = Vec::new();
        self.choose(destination, room, &mut ops, &mut items);
        if ops.is_empty() && (now < self.pace.due(self.undecided()) || time <= view.group_time()) {
            self.pace.looked(now);
            return Ok(None);
        }
        Ok(Some(self.made(number, now, Entry { time, ops }, items)))
    }

    fn made(&mut self, number: u64, now: Duration, entry: Entry, items: Vec<ItemKey>) -> Proposal {
        self.proposals = number;
        self.in_flight.insert(number, items);
        self.pace.made(now, entry.time);
        Proposal { number, entry }
    }

    /// The directory to put in force, carried by proposal `number` from here on. One at a time: the next is judged and
    /// proposed when this one is in force.
    fn next_directory<V: View>(&mut self, view: &V, in_force: &Directory, number: u64) -> Option<DirectoryOp> {
        if self.directories.values().any(|offered| offered.carried.is_some()) {
            return None;
        }
        while let Some(mut first) = self.directories.first_entry() {
            match first.get().check(view, in_force) {
                Ok(()) => {
                    first.get_mut().carried = Some(number);
                    return Some(first.get().op());
                }
                Err(why) => {
                    let (version, offered) = first.remove_entry();
                    self.refused.insert(version, (offered.op(), why));
                }
            }
        }
        None
    }

    /// Takes what an entry did, whoever proposed it; in the order of the log.
    pub fn applied(&mut self, changes: &Changes) {
        if let Some(why) = changes.directories_refused.first() {
            for (version, offered) in self.directories.extract_if(.., |_, offered| offered.carried.is_some()) {
                self.refused.insert(version, (offered.op(), why.clone()));
            }
        }
        for row in &changes.rows {
            let transaction = (row.sender.clone(), row.transaction);
            self.queue.decided(&transaction, row.is_committed().then_some(row.position));
        }
        for outcome in &changes.outcomes {
            let key =
                ParcelKey { parcel: outcome.parcel, digest: outcome.digest, manifest_digest: outcome.manifest_digest };
            let transaction = (outcome.sender.clone(), outcome.transaction);
            match outcome.result {
                Applied::Decided => {}
                // The log had decided it before this leader looked: what waits for it is to be looked at again.
                Applied::Repeat | Applied::IdReuse => {
                    for item in self.queue.bringing(&transaction) {
                        self.queue.finish(&item);
                    }
                    for (item, _) in self.queue.waiters(&transaction) {
                        self.queue.set(&item, State::Fresh);
                    }
                }
                Applied::Late | Applied::TooEarly | Applied::Void => {
                    let items = self.queue.bringing(&transaction).into_iter();
                    for item in items.filter(|(bringing, _)| *bringing == key) {
                        self.queue.set(&item, State::Fresh);
                    }
                }
            }
        }
    }

    /// The write of a proposal has ended, well or not, and its changes, if there are any, were handed in: what it left
    /// undecided is proposed again. That is harmless when the entry turns out to be in the log after all (R6).
    pub fn settled(&mut self, number: u64) {
        for item in self.in_flight.remove(&number).unwrap_or_default() {
            if self.queue.state(&item) == State::InFlight {
                self.queue.set(&item, State::Fresh);
            }
        }
        for offered in self.directories.values_mut().filter(|offered| offered.carried == Some(number)) {
            offered.carried = None;
        }
    }

    /// What a transaction that somebody reported waits for; `None` for one that is decided or was not reported with its
    /// manifest.
    pub fn waits_for<V: View>(&self, view: &V, sender: &SenderName, transaction: TransactionId) -> Option<Wait> {
        let destination = view.directory()?.destinations.get(view.destination())?;
        let item = self.queue.bringing(&(sender.clone(), transaction)).into_iter().next()?;
        let lacking = |staged: &dyn Fn(&NodeName) -> bool| -> Vec<NodeName> {
            destination.nodes.iter().filter(|node| !staged(node)).cloned().collect()
        };
        let parcel = self.queue.parcels.get(&item.0)?;
        if !has_quorum(parcel, destination) {
            return Some(Wait::Quorum(lacking(&|node| parcel.reporters.contains_key(node))));
        }
        Some(match self.queue.state(&item) {
            State::Waiting => {
                let predecessor = self.queue.item(&item)?.1.predecessor?;
                Wait::Predecessor(Ticket {
                    destination: destination.name.clone(),
                    transaction: predecessor.transaction,
                    deadline: predecessor.deadline,
                })
            }
            State::Holding(position) => Wait::Release(lacking(&|node| {
                self.reporters.get(node).is_some_and(|reporter| reporter.held >= position)
            })),
            State::Fresh | State::Ready | State::InFlight | State::Done => Wait::Commit,
        })
    }

    /// Puts one fresh item where it belongs.
    fn look_at<V: View>(
        &mut self,
        view: &V,
        destination: &DestinationEntry,
        time: Time,
        item: ItemKey,
    ) -> Result<(), V::Error> {
        let Some((manifest, entry)) = self.queue.item(&item) else {
            self.queue.fresh.remove(&item);
            return Ok(());
        };
        if expired(time, entry.deadline) || view.transaction(&manifest.sender, entry.transaction)?.is_some() {
            self.queue.finish(&item);
            return Ok(());
        }
        let state = match entry.predecessor {
            None => State::Ready,
            // Its fate hangs on no other, and its sender may have let it wait for years.
            Some(_) if entry.deadline_too_far(destination.max_life) => State::Ready,
            Some(predecessor) => {
                let row = view.transaction(&manifest.sender, predecessor.transaction)?;
                match standing(row.as_ref(), predecessor.deadline, None, time, destination.retention) {
                    Standing::Undecided => State::Waiting,
                    Standing::Decided(Decision::Committed, position) if predecessor.release == Release::Complete => {
                        State::Holding(position)
                    }
                    _ => State::Ready,
                }
            }
        };
        self.queue.set(&item, state);
        Ok(())
    }

    /// Takes ready items into commits, oldest parcels first, each followed by those that waited for it. Bundles whose
    /// transactions wait for each other get several commits in one entry.
    fn choose(&mut self, destination: &DestinationEntry, mut room: usize, ops: &mut Vec<Op>, items: &mut Vec<ItemKey>) {
        let mut released: Vec<ItemKey> = Vec::new();
        let mut full = false;
        while !full && let Some((_, key)) = self.queue.ready.pop_first() {
            let Some(parcel) = self.queue.parcels.get(&key).filter(|parcel| has_quorum(parcel, destination)) else {
                continue; // it comes back when another node reports it
            };
            let Some(manifest) = parcel.manifest.clone() else { continue };
            let mut commit = Commit {
                parcel: key.parcel,
                digest: key.digest,
                sender: manifest.sender.clone(),
                epoch: manifest.epoch,
                expiry: manifest.expiry,
                manifest_digest: key.manifest_digest,
                reporters: parcel
                    .reporters
                    .iter()
                    .filter(|(node, _)| destination.has_node(node))
                    .map(|(node, incarnation)| (node.clone(), *incarnation))
                    .collect(),
                items: Vec::new(),
            };
            let mut needed = commit.encoded_bytes();
            while let Some(at) = self.queue.parcels.get(&key).and_then(|parcel| parcel.ready.first().copied()) {
                let Some(item) = manifest.items.get(at) else { break };
                needed += item_bytes(item);
                if needed > room {
                    full = true;
                    break;
                }
                room -= needed;
                needed = 0;
                commit.items.push(item.clone());
                self.queue.set(&(key, at), State::InFlight);
                items.push((key, at));
                for (waiter, predecessor) in self.queue.waiters(&(manifest.sender.clone(), item.transaction)) {
                    if predecessor.release == Release::Committed {
                        self.queue.set(&waiter, State::Ready);
                        released.push(waiter);
                    }
                }
            }
            if !commit.items.is_empty() {
                ops.push(Op::Commit(commit));
            }
            if full && let Some(parcel) = self.queue.parcels.get(&key) {
                self.queue.ready.insert((parcel.arrival, key));
            }
        }
        // What found no room in this entry waits until its predecessor, which stands in it, is decided.
        for waiter in released {
            if self.queue.state(&waiter) == State::Ready {
                self.queue.set(&waiter, State::Waiting);
            }
        }
    }
}

fn has_quorum(parcel: &queue::Parcel, destination: &DestinationEntry) -> bool {
    parcel.reporters.keys().filter(|node| destination.has_node(node)).count() >= destination.quorum()
}
