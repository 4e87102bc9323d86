//! The leader's side of a group: it tallies reports and writes entries (R5, R7, R10), a few at a time, so that what comes
//! while one is on its way shares the next. It also founds the log and brings new directories into it (R8).
//!
//! Owns the tally while this node leads. Must not make a fate: whatever it proposes, apply checks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};

use super::NodeError;
use super::group::GroupContext;
use crate::core::decide::{Changes, DirectoryOp, Entry, Op, Proposal, Report, Tally, View, Wait};
use crate::core::directory::Directory;
use crate::core::id::{Digest, Incarnation, NodeName, Position, SenderName, TransactionId};
use crate::core::sign::PublicKey;
use crate::raft::Group;
use crate::telemetry::{alarms, names};

/// Entries on their way at once: while one is made durable, the next is made up.
const IN_FLIGHT: usize = 2;

/// After a write that failed, how long until the next; doubles up to the last. Leadership is usually lost then, which comes
/// by itself; or it is so new that no majority has answered yet, which lasts a moment.
const AFTER_FIRST: Duration = Duration::from_millis(10);
const AFTER_LAST: Duration = Duration::from_millis(320);

/// The alarm of a directory that was offered and cannot be put in force.
const REFUSED_ALARM: &str = alarms::DIRECTORY_REFUSED;

/// The number of the first entry of a log; the tally's own start with 1.
const FOUNDING: u64 = 0;

/// What the leader knows of another node from its reports.
#[derive(Debug, Clone)]
pub struct Heard {
    /// Its store's life.
    pub incarnation: Incarnation,
    /// Its held prefix.
    pub held: Position,
    /// When it was heard of last, by this node's monotonic clock.
    pub at: Duration,
}

/// The leader's desk: where reports come in. There is one on every node; it is open while the node leads.
#[derive(Clone)]
pub struct Desk(Arc<Inner>);

struct Inner {
    context: Arc<GroupContext>,
    /// The newest directory that was verified.
    newest: watch::Receiver<Arc<Directory>>,
    operator: PublicKey,
    open: Mutex<Option<Open>>,
    wake: Notify,
}

/// A leader's soft state for one term.
struct Open {
    term: u64,
    tally: Tally,
    heard: BTreeMap<NodeName, Heard>,
    /// Index up to which the log's changes were handed to the tally.
    applied: u64,
    /// Writes that ended, by their entry's index: settled once their changes were handed in.
    ended: Vec<(u64, u64)>,
    in_flight: usize,
    founding: bool,
}

impl Open {
    fn settle(&mut self) {
        let applied = self.applied;
        for (number, _) in self.ended.extract_if(.., |(_, index)| *index <= applied) {
            self.tally.settled(number);
            self.in_flight -= 1;
        }
    }
}

impl Desk {
    /// A closed desk. `newest` is the newest directory that was verified with the operator's key.
    pub fn new(context: Arc<GroupContext>, newest: watch::Receiver<Arc<Directory>>, operator: PublicKey) -> Self {
        Self(Arc::new(Inner { context, newest, operator, open: Mutex::default(), wake: Notify::new() }))
    }

    fn op(&self, directory: &Directory) -> DirectoryOp {
        DirectoryOp { operator: self.0.operator.bytes(), bytes: directory.bytes().clone() }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Open) -> T) -> Option<T> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(act)
    }

    /// Takes a report; gives the digests of manifests that are wanted. `None` when this node does not lead.
    pub fn report(&self, report: Report) -> Option<Vec<Digest>> {
        let at = self.0.context.seams.clock.monotonic();
        let wanted = self.with(|open| {
            let heard = Heard { incarnation: report.incarnation, held: report.held, at };
            open.heard.insert(report.node.clone(), heard);
            open.tally.report(report)
        })?;
        self.0.wake.notify_one();
        Some(wanted)
    }

    /// Offers a directory that was verified. Whether this node leads and took it.
    pub fn offer(&self, directory: &Arc<Directory>) -> bool {
        let operator = self.0.operator.bytes();
        let taken = self.with(|open| open.tally.offer_directory(directory, operator)).is_some();
        if taken {
            self.0.wake.notify_one();
        }
        taken
    }

    /// Takes what an entry did, in the order of the log.
    pub fn applied(&self, index: u64, changes: Option<&Changes>) {
        self.with(|open| {
            if let Some(changes) = changes {
                open.tally.applied(changes);
            }
            open.applied = open.applied.max(index);
            open.settle();
        });
        self.0.wake.notify_one();
    }

    /// What a transaction waits for, as the leader sees it; `None` when this node does not lead or does not know it.
    pub fn waits_for<V: View>(&self, view: &V, sender: &SenderName, transaction: TransactionId) -> Option<Wait> {
        self.with(|open| open.tally.waits_for(view, sender, transaction)).flatten()
    }

    /// What is known of the others; empty when this node does not lead.
    pub fn heard(&self) -> BTreeMap<NodeName, Heard> {
        self.with(|open| open.heard.clone()).unwrap_or_default()
    }

    /// Leads whenever the group says so, until the context's `stop`. Errors: the store's.
    pub async fn run(self, group: Group) -> Result<(), NodeError> {
        let mut newest = self.0.newest.clone();
        let context = self.0.context.clone();
        let clock = context.seams.clock.clone();
        let mut state = group.leadership();
        let (ended, mut endings) = mpsc::unbounded_channel::<(u64, u64, Option<u64>)>();
        let (mut hold_until, mut after) = (Duration::ZERO, AFTER_FIRST);
        loop {
            let (leads, term) = {
                let state = state.borrow_and_update();
                (state.own, state.term)
            };
            newest.mark_unchanged();
            self.attend(leads.then_some(term));
            let due = if leads {
                if clock.monotonic() >= hold_until {
                    while let Some((proposal, term)) = self.next()? {
                        self.write(&group, proposal, term, ended.clone());
                    }
                }
                self.tell_refused();
                self.with(|open| (open.in_flight < IN_FLIGHT).then(|| open.tally.due())).flatten()
            } else {
                None
            };
            let now = clock.monotonic();
            let wait = due.map_or(Duration::from_secs(3600), |due| due.max(hold_until).saturating_sub(now));
            tokio::select! {
                () = context.stop.cancelled() => break,
                () = self.0.wake.notified() => {}
                () = clock.sleep(wait.max(Duration::from_millis(1))) => {}
                Some((term, number, index)) = endings.recv() => {
                    match index {
                        Some(_) => after = AFTER_FIRST,
                        None => {
                            hold_until = clock.monotonic() + after;
                            after = (after * 2).min(AFTER_LAST);
                        }
                    }
                    self.ended(term, number, index);
                }
                changed = state.changed() => if changed.is_err() { break },
                changed = newest.changed() => if changed.is_err() { break },
            }
        }
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(())
    }

    /// Opens the desk for a term that this node leads, or closes it.
    fn attend(&self, term: Option<u64>) {
        let newest = self.0.newest.borrow().clone();
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(term) = term else {
            *open = None;
            // Whoever leads now judges it again.
            self.0.context.alarms.clear(REFUSED_ALARM);
            return;
        };
        if open.as_ref().is_none_or(|open| open.term != term) {
            tracing::info!(destination = %self.0.context.destination, term, "this node leads");
            self.0.context.meter.count(names::RAFT_ELECTIONS, 1);
            *open = Some(Open {
                term,
                tally: Tally::new(),
                heard: BTreeMap::new(),
                applied: 0,
                ended: Vec::new(),
                in_flight: 0,
                founding: false,
            });
        }
        if let Some(open) = open.as_mut() {
            let in_force = self.0.context.in_force.borrow().version;
            if newest.version > in_force {
                open.tally.offer_directory(&newest, self.0.operator.bytes());
            }
        }
    }

    /// Raises an alarm while a directory was offered that is not proposed.
    fn tell_refused(&self) {
        let in_force = self.0.context.store.progress().borrow().directory_version;
        let why = self.with(|open| {
            // One that another leader's entry put in force meanwhile is not refused.
            let last = open.tally.refused().filter(|(version, _)| *version > in_force).last();
            last.map(|(version, why)| {
                format!("version {version} of the directory is not put in force here: {why}; sign a corrected one")
            })
        });
        match why.flatten() {
            Some(text) => self.0.context.alarms.raise(REFUSED_ALARM, text),
            None => self.0.context.alarms.clear(REFUSED_ALARM),
        }
    }

    /// The next entry, if there is one to write and room for it.
    fn next(&self) -> Result<Option<(Proposal, u64)>, NodeError> {
        let now = self.0.context.seams.clock.monotonic();
        let outcome = self.with(|open| {
            if open.in_flight >= IN_FLIGHT {
                return Ok(None);
            }
            // Taken while the desk is held: the tally must never look at a state that is older than what it was told was
            // applied, or it notes that a transaction waits for another whose fate it has already passed on.
            let snapshot = self.0.context.store.snapshot()?;
            let proposal = match snapshot.directory() {
                None if !open.founding => {
                    open.founding = true;
                    let directory = self.0.newest.borrow().clone();
                    Some(Proposal { number: FOUNDING, entry: Entry::founding(self.op(&directory)) })
                }
                _ => open.tally.propose(&snapshot, now)?,
            };
            if proposal.is_some() {
                open.in_flight += 1;
            }
            Ok(proposal.map(|proposal| (proposal, open.term)))
        });
        outcome.unwrap_or(Ok(None))
    }

    fn write(
        &self,
        group: &Group,
        proposal: Proposal,
        term: u64,
        ended: mpsc::UnboundedSender<(u64, u64, Option<u64>)>,
    ) {
        let group = group.clone();
        for op in &proposal.entry.ops {
            if let Op::Commit(commit) = op {
                tracing::trace!(destination = %self.0.context.destination, parcel = %commit.parcel, "proposed");
            }
        }
        tokio::spawn(async move {
            let Proposal { number, entry } = proposal;
            let index = match group.propose(&entry).await {
                Ok(index) => Some(index),
                Err(error) => {
                    tracing::info!(%error, "an entry was not committed; what it named is proposed again");
                    None
                }
            };
            // The desk may be gone: then nobody needs to know.
            let _ = ended.send((term, number, index));
        });
    }

    fn ended(&self, term: u64, number: u64, index: Option<u64>) {
        self.with(|open| {
            if open.term != term {
                return;
            }
            open.founding &= number != FOUNDING || index.is_some();
            // Without an index nothing is waited for: what the entry named is proposed again, which is harmless (R6).
            open.ended.push((number, index.unwrap_or(0)));
            open.settle();
        });
    }
}
