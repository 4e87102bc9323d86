//! The only place where a fate is made (R4 to R10, R20).
//!
//! Pure and total: the same state and entry give the same changes on every node and in every later version. Every number
//! that it uses stands in the entry or in the directory in force. Must not read configuration, bodies or the time.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::entry::{Commit, DirectoryOp, Entry, Op};
use super::manifest::ManifestItem;
use super::rows::{Claim, Decided, Decision, Row, Standing, expired, standing};
use super::view::{Applied, Changes, DirectoryChange, Outcome, View};
use crate::core::directory::{DestinationEntry, Directory, DirectoryError};
use crate::core::id::{
    First, IdempotencyTag, KeyTag, OnPredecessor, Position, Rejection, SenderName, TransactionId, VerifyingKeyBytes,
};
use crate::core::sign::PublicKey;

/// Why an entry could not be applied. Nothing changed; the node must stop rather than go on without it.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError<E: std::error::Error + 'static> {
    /// A look-up failed.
    #[error("the state could not be read: {0}")]
    View(#[source] E),
    /// The operator signed a directory that this program cannot read: most likely a later version wrote it.
    #[error(
        "entry {index}: the directory is signed but refused: {cause}: stop this node and install the version that wrote it"
    )]
    Directory {
        /// The entry.
        index: u64,
        /// Why.
        cause: DirectoryError,
    },
}

impl<E: std::error::Error + 'static> ApplyError<E> {
    /// Whether applying the same entry can succeed later, on the same node with the same program.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::View(_))
    }
}

/// Applies one entry to the state before it. `index` is the entry's index in the group's log, from 1.
///
/// The order of checks for each transaction that a valid commit names, the first that holds decides:
/// its (sender, id) has a row: repeat, or id-reuse when the payload tag differs; group time passed its deadline: late;
/// the directory in force does not let its sender write here: not-permitted; its deadline is later than its id's time plus
/// `max_life`: deadline-too-far; its predecessor has no fate: too early; its predecessor was not committed and it asked not to
/// go on: predecessor; its idempotency key is claimed: duplicate; its key's last position is another than expected:
/// conflict; else it is committed.
///
/// Errors: [`ApplyError`].
pub fn apply<V: View>(before: &V, index: u64, entry: &Entry) -> Result<Changes, ApplyError<V::Error>> {
    let mut applying = Applying {
        before,
        directory: before.directory().cloned(),
        operator: before.operator(),
        rows: BTreeMap::new(),
        keys: BTreeMap::new(),
        claims: BTreeMap::new(),
        number: 0,
        changes: Changes {
            index,
            group_time: before.group_time().max(entry.time),
            directories: Vec::new(),
            rows: Vec::new(),
            keys: Vec::new(),
            claims: Vec::new(),
            outcomes: Vec::new(),
            directories_refused: Vec::new(),
        },
    };
    for op in &entry.ops {
        match op {
            Op::Commit(commit) => applying.commit(commit).map_err(ApplyError::View)?,
            Op::Directory(directory) => applying.directory(directory)?,
        }
    }
    Ok(applying.changes)
}

/// The state before the entry, with what the entry did so far laid over it.
struct Applying<'a, V> {
    before: &'a V,
    directory: Option<Arc<Directory>>,
    operator: Option<VerifyingKeyBytes>,
    /// Index into `changes.rows`.
    rows: BTreeMap<(SenderName, TransactionId), usize>,
    keys: BTreeMap<KeyTag, Position>,
    claims: BTreeMap<(SenderName, IdempotencyTag), Claim>,
    /// The next transaction's number within the entry. Every transaction that the entry names has one, whatever becomes
    /// of it, so that numbers follow from the entry alone.
    number: u32,
    changes: Changes,
}

impl<V: View> Applying<'_, V> {
    fn directory(&mut self, op: &DirectoryOp) -> Result<(), ApplyError<V::Error>> {
        let refused = |changes: &mut Changes, why: String| changes.directories_refused.push(why);
        if self.operator.is_some_and(|operator| operator != op.operator) {
            refused(&mut self.changes, format!("it names {} as operator, the log pins another", op.operator));
            return Ok(());
        }
        let operator = match PublicKey::check(&op.operator) {
            Ok(operator) => operator,
            Err(error) => {
                refused(&mut self.changes, format!("operator key: {error}"));
                return Ok(());
            }
        };
        let directory = match Directory::recorded(&op.bytes, &operator, 0) {
            Ok(directory) => directory,
            Err(
                error @ (DirectoryError::TooLong { .. }
                | DirectoryError::FirstLine
                | DirectoryError::Signature
                | DirectoryError::OldVersion { .. }),
            ) => {
                refused(&mut self.changes, error.to_string());
                return Ok(());
            }
            Err(cause) => return Err(ApplyError::Directory { index: self.changes.index, cause }),
        };
        if let Some(Err(error)) = self.directory.as_ref().map(|before| directory.check_successor_of(before)) {
            refused(&mut self.changes, error.to_string());
            return Ok(());
        }
        let directory = Arc::new(directory);
        self.operator = Some(op.operator);
        self.directory = Some(Arc::clone(&directory));
        self.changes.directories.push(DirectoryChange { operator: op.operator, directory });
        Ok(())
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), V::Error> {
        let in_force = self.directory.clone();
        let valid = in_force.as_deref().and_then(|directory| {
            let destination = directory.destinations.get(self.before.destination())?;
            let voters = commit.reporters.keys().filter(|node| destination.has_node(node)).count();
            (voters >= destination.quorum()).then_some((directory, destination))
        });
        for item in &commit.items {
            let position = Position { index: self.changes.index, number: self.number };
            self.number = self.number.saturating_add(1);
            let result = match valid {
                None => Applied::Void,
                Some((directory, destination)) => self.transaction(commit, item, position, directory, destination)?,
            };
            self.changes.outcomes.push(Outcome {
                parcel: commit.parcel,
                digest: commit.digest,
                epoch: commit.epoch,
                expiry: commit.expiry,
                manifest_digest: commit.manifest_digest,
                index: item.index,
                sender: commit.sender.clone(),
                transaction: item.transaction,
                result,
            });
        }
        Ok(())
    }

    fn transaction(
        &mut self,
        commit: &Commit,
        item: &ManifestItem,
        position: Position,
        directory: &Directory,
        destination: &DestinationEntry,
    ) -> Result<Applied, V::Error> {
        let time = self.changes.group_time;
        if let Some(row) = self.row(&commit.sender, item.transaction)? {
            return Ok(if row.payload_tag == item.payload_tag { Applied::Repeat } else { Applied::IdReuse });
        }
        if expired(time, item.deadline) {
            return Ok(Applied::Late);
        }
        let Some(decision) = self.decide(&commit.sender, item, directory, destination)? else {
            return Ok(Applied::TooEarly);
        };
        if decision == Decision::Committed {
            if let Some(tag) = item.key_tag {
                self.keys.insert(tag, position);
                self.changes.keys.push((tag, position));
            }
            if let Some(tag) = item.idempotency_tag {
                let first = First { transaction: item.transaction, position };
                let claim = Claim { first, until: time.after(destination.idempotency_window) };
                self.claims.insert((commit.sender.clone(), tag), claim);
                self.changes.claims.push((commit.sender.clone(), tag, claim));
            }
        }
        let at = Decided { position, time, directory: directory.version };
        self.rows.insert((commit.sender.clone(), item.transaction), self.changes.rows.len());
        self.changes.rows.push(Row::of(item, commit, at, decision));
        Ok(Applied::Decided)
    }

    /// The decision, or `None` when it comes too early.
    fn decide(
        &self,
        sender: &SenderName,
        item: &ManifestItem,
        directory: &Directory,
        destination: &DestinationEntry,
    ) -> Result<Option<Decision>, V::Error> {
        let time = self.changes.group_time;
        if !directory.may_send(sender, &destination.name) {
            return Ok(Some(Decision::Rejected(Rejection::NotPermitted)));
        }
        if item.deadline_too_far(destination.max_life) {
            return Ok(Some(Decision::Rejected(Rejection::DeadlineTooFar)));
        }
        if let Some(predecessor) = item.predecessor {
            let row = self.row(sender, predecessor.transaction)?;
            match standing(row.as_ref(), predecessor.deadline, None, time, destination.retention) {
                Standing::Undecided => return Ok(None),
                Standing::Decided(Decision::Committed, _) => {}
                _ if predecessor.on_predecessor == OnPredecessor::GoOn => {}
                _ => return Ok(Some(Decision::Rejected(Rejection::Predecessor))),
            }
        }
        if let Some(tag) = item.idempotency_tag
            && let Some(claim) = self.claim(sender, tag)?
            && !expired(time, claim.until)
        {
            return Ok(Some(Decision::Duplicate(claim.first)));
        }
        if let Some(expected) = item.expected_version {
            let last = match item.key_tag {
                Some(tag) => self.key_version(tag)?,
                None => None,
            };
            if last.unwrap_or_default() != expected {
                return Ok(Some(Decision::Rejected(Rejection::Conflict)));
            }
        }
        Ok(Some(Decision::Committed))
    }

    fn row(&self, sender: &SenderName, transaction: TransactionId) -> Result<Option<Row>, V::Error> {
        match self.rows.get(&(sender.clone(), transaction)).and_then(|&at| self.changes.rows.get(at)) {
            Some(row) => Ok(Some(row.clone())),
            None => self.before.transaction(sender, transaction),
        }
    }

    fn claim(&self, sender: &SenderName, tag: IdempotencyTag) -> Result<Option<Claim>, V::Error> {
        match self.claims.get(&(sender.clone(), tag)) {
            Some(claim) => Ok(Some(*claim)),
            None => self.before.claim(sender, tag),
        }
    }

    fn key_version(&self, tag: KeyTag) -> Result<Option<Position>, V::Error> {
        match self.keys.get(&tag) {
            Some(position) => Ok(Some(*position)),
            None => self.before.key_version(tag),
        }
    }
}
