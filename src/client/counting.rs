//! Verifies what nodes say and counts it: receipts against the directories that this client has verified, until a majority of
//! one version's voters agrees (R13). Must not read topics or keep rows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::handle::Receipt;
use super::publishing::Publishing;
use super::tracker::{Tracker, Wanted};
use crate::core::directory::Directory;
use crate::core::id::{DestinationName, DestinationTag, Fate, NodeName, ParcelId, SenderName, Ticket, closed_list};
use crate::core::receipt::{
    self, Added, Agreed, Counter, Missing, Notice, NoticeError, Refusal, Refusals, Statement, Verdict, Verified,
};
use crate::core::sign::PublicKey;
use crate::seams::Clock;
use crate::telemetry::logs::transaction_span;
use crate::telemetry::{Meter, names};

/// Notices that were signed under a directory not known yet, by the key that the newest known one lists for their node, are
/// kept up to this many bytes for each node; the newest go first.
const LATER_BYTES: usize = 2 * 1024 * 1024;

/// Others may be of nodes, or with keys, that the directory to come lists; or of whoever may write to the topic: so many bytes
/// of them are kept, all together.
const LATER_BYTES_OF_STRANGERS: usize = 1024 * 1024;

/// A notice is passed over when it was heard so short a time ago: nodes put each into two domains. What they say again on
/// request comes later, and counts again.
const COPIES_WITHIN: Duration = Duration::from_secs(1);

closed_list! {
    /// Why something that a node is said to have said is not believed, or not counted.
    pub enum Disbelief: u8 {
        /// 1: it is no notice.
        Malformed = 1 "malformed",
        /// 2: it is of a later version of Sealcast.
        UnknownVersion = 2 "unknown-version",
        /// 3: it names a directory that is not known here, and too much waits for such directories.
        UnknownDirectory = 3 "unknown-directory",
        /// 4: the directory that it names has no such node for this destination.
        UnknownNode = 4 "unknown-node",
        /// 5: the node did not sign it.
        Signature = 5 "signature",
        /// 6: a receipt that is none of the batch that was signed.
        Path = 6 "path",
        /// 7: the node has said something else about the same transaction.
        Contradiction = 7 "contradiction",
        /// 8: a directory that the operator did not sign, of another environment, or older than the oldest that counts.
        Directory = 8 "directory",
    }
}

impl Disbelief {
    fn of(error: &NoticeError) -> Self {
        match error {
            NoticeError::Field(error) if error.retryable() => Self::UnknownVersion,
            NoticeError::Field(_) => Self::Malformed,
            NoticeError::UnknownDirectory { .. } => Self::UnknownDirectory,
            NoticeError::UnknownNode { .. } => Self::UnknownNode,
            NoticeError::Signature { .. } => Self::Signature,
            NoticeError::Path { .. } => Self::Path,
        }
    }
}

/// Every directory that was verified, by version.
pub struct Directories {
    operator: PublicKey,
    minimum: u64,
    known: Mutex<Arc<receipt::Directories>>,
    first: Arc<Directory>,
}

impl Directories {
    /// Begins with this one; others must bear the operator's signature and at least the version `minimum`.
    pub fn new(operator: PublicKey, minimum: u64, first: Arc<Directory>) -> Self {
        let known = Mutex::new(Arc::new(BTreeMap::from([(first.version, first.clone())])));
        Self { operator, minimum, known, first }
    }

    fn known(&self) -> MutexGuard<'_, Arc<receipt::Directories>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest.
    pub fn current(&self) -> Arc<Directory> {
        self.known().last_key_value().map_or_else(|| self.first.clone(), |(_, directory)| directory.clone())
    }

    /// All of them, for counting.
    fn all(&self) -> Arc<receipt::Directories> {
        self.known().clone()
    }

    /// The destination of a tag, in the newest directory that has it.
    fn destination(&self, tag: &DestinationTag) -> Option<DestinationName> {
        let known = self.known();
        known.values().rev().find_map(|directory| directory.destination_by_tag(tag)).map(|entry| entry.name.clone())
    }

    /// Takes a signed directory: true when its version was not known. Errors: why one is not taken that does not verify, or is
    /// of another environment.
    pub fn adopt(&self, bytes: &[u8]) -> Result<bool, String> {
        // Every node sends its directory again and again, and checking one costs a scalar multiplication for each of its keys.
        if self.known().values().any(|known| known.bytes()[..] == *bytes) {
            return Ok(false);
        }
        let directory = Directory::verify(bytes, &self.operator, self.minimum).map_err(|error| error.to_string())?;
        if directory.environment != self.first.environment {
            return Err(format!("the directory is of another environment, {}", directory.environment));
        }
        let mut known = self.known();
        let new = !known.contains_key(&directory.version);
        Arc::make_mut(&mut known).entry(directory.version).or_insert(Arc::new(directory));
        Ok(new)
    }
}

/// A parcel that a majority refuses at a destination: its transactions can be sealed anew (R22).
pub type Refused = (ParcelId, DestinationName);

/// Notices that wait for their directory.
#[derive(Default)]
struct Later {
    waiting: Vec<Bytes>,
    bytes: usize,
}

#[derive(Default)]
struct State {
    /// By ticket: an id that is submitted again once it has its fate is another ticket.
    counters: BTreeMap<Ticket, Counter>,
    refusals: BTreeMap<(ParcelId, DestinationName), Refusals>,
    /// Signed under a directory that is not known yet: by node, and what no known node signed.
    later: BTreeMap<Option<NodeName>, Later>,
    disbelieved: BTreeMap<Disbelief, u64>,
    heard: Heard,
}

/// Notices of which every statement was counted a moment ago, by their hashes.
#[derive(Default)]
struct Heard {
    since: Duration,
    now: BTreeSet<[u8; 32]>,
    before: BTreeSet<[u8; 32]>,
}

impl Heard {
    /// Forgets what was heard longer ago than twice [`COPIES_WITHIN`].
    fn turn(&mut self, now: Duration) {
        let turns = now.saturating_sub(self.since).as_millis() / COPIES_WITHIN.as_millis();
        if turns > 0 {
            self.before = std::mem::take(&mut self.now);
            self.since = now;
        }
        if turns > 1 {
            self.before.clear();
        }
    }

    fn has(&mut self, hash: &[u8; 32], now: Duration) -> bool {
        self.turn(now);
        self.now.contains(hash) || self.before.contains(hash)
    }
}

/// The counting.
pub struct Counting {
    directories: Arc<Directories>,
    tracker: Arc<Tracker>,
    publishing: Publishing,
    sender: SenderName,
    key: [u8; 16],
    clock: Arc<dyn Clock>,
    meter: Meter,
    refused: mpsc::UnboundedSender<Refused>,
    state: Mutex<State>,
}

impl Counting {
    /// Counts for this sender; parcels that a majority refuses are told to `refused`.
    pub fn new(
        directories: Arc<Directories>,
        tracker: Arc<Tracker>,
        publishing: Publishing,
        sender: SenderName,
        clock: Arc<dyn Clock>,
        meter: Meter,
        refused: mpsc::UnboundedSender<Refused>,
    ) -> Self {
        let key = receipt::notice_key(&sender);
        Self { directories, tracker, publishing, sender, key, clock, meter, refused, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a record of the notices topic, unless its copy was taken a moment ago. What is not for this sender is passed over.
    pub fn notice(&self, key: &Bytes, value: &Bytes) {
        let now = self.clock.monotonic();
        if self.is_for_me(key) && !self.state().heard.has(blake3::hash(value).as_bytes(), now) {
            self.take(value);
        }
    }

    /// The same for a record that is read again, on behalf of whoever waits only now.
    pub fn again(&self, key: &Bytes, value: &Bytes) {
        if self.is_for_me(key) {
            self.take(value);
        }
    }

    fn is_for_me(&self, key: &Bytes) -> bool {
        key.as_ref() == self.key || key.as_ref() == [0; 16]
    }

    fn take(&self, value: &Bytes) {
        let taken = match Notice::decode(value) {
            Ok(Notice::Receipts(receipts)) if *receipts.sender() == self.sender => {
                receipts.verify(&self.directories.all()).map(|statements| {
                    if self.statements(&statements) {
                        self.state().heard.now.insert(*blake3::hash(value).as_bytes());
                    }
                })
            }
            Ok(Notice::Refusal(refusal)) if *refusal.sender() == self.sender => {
                refusal.verify(&self.directories.all()).map(|refusal| self.refusal(&refusal))
            }
            Ok(Notice::Missing(missing)) if *missing.sender() == self.sender => {
                missing.verify(&self.directories.all()).map(|missing| self.missing(&missing))
            }
            Ok(Notice::Directory(bytes)) => {
                self.directory(&bytes);
                return;
            }
            // Another sender whose hint is the same.
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        };
        match taken {
            Ok(()) => {}
            Err(NoticeError::UnknownDirectory { version }) => {
                let node = self.would_be_of(value, version);
                let most = if node.is_some() { LATER_BYTES } else { LATER_BYTES_OF_STRANGERS };
                let mut state = self.state();
                let later = state.later.entry(node).or_default();
                if later.bytes + value.len() <= most {
                    tracing::debug!(version, "a notice waits for its directory");
                    later.bytes += value.len();
                    // A copy, because the record may share its memory with others.
                    later.waiting.push(Bytes::copy_from_slice(value));
                } else {
                    drop(state);
                    self.disbelieve(Disbelief::UnknownDirectory, &NoticeError::UnknownDirectory { version });
                }
            }
            Err(error) => self.disbelieve(Disbelief::of(&error), &error),
        }
    }

    /// The node that signed it, if the directory that it names lists the same key for that node as the newest that is known: most
    /// directories change other things.
    fn would_be_of(&self, value: &Bytes, version: u64) -> Option<NodeName> {
        let known = BTreeMap::from([(version, self.directories.current())]);
        match Notice::decode(value).ok()? {
            Notice::Receipts(receipts) => receipts.verify(&known).ok()?.first().map(|said| said.node().clone()),
            Notice::Refusal(refusal) => refusal.verify(&known).ok().map(|said| said.node().clone()),
            Notice::Missing(missing) => missing.verify(&known).ok().map(|said| said.node().clone()),
            Notice::Directory(_) => None,
        }
    }

    /// Whoever may write to the topic can have made it, as often as he likes: the count tells how often, and of each reason the
    /// 1st, 2nd, 4th, 8th and so on are said aloud.
    fn disbelieve(&self, reason: Disbelief, error: &dyn Display) {
        self.meter.count_as(names::CLIENT_RECEIPTS_REFUSED, "reason", reason.word());
        let times = {
            let mut state = self.state();
            let times = state.disbelieved.entry(reason).or_default();
            *times += 1;
            *times
        };
        match times.is_power_of_two() {
            true => tracing::warn!(%reason, times, %error, "a notice is not believed"),
            false => tracing::debug!(%reason, times, %error, "a notice is not believed"),
        }
    }

    fn directory(&self, bytes: &[u8]) {
        let before = self.directories.current().version;
        match self.directories.adopt(bytes) {
            Ok(true) => {}
            Ok(false) => return,
            Err(why) => return self.disbelieve(Disbelief::Directory, &why),
        }
        let now = self.directories.current();
        self.meter.set(names::DIRECTORY_VERSION, now.version as f64);
        if now.version > before {
            tracing::info!(version = now.version, "a newer directory is in use");
            self.tracker.remember_directory(now.bytes().to_vec());
        }
        let later = std::mem::take(&mut self.state().later);
        later.values().flat_map(|later| &later.waiting).for_each(|value| self.take(value));
        // What was decided under it may have been said before, in receipts signed under another.
        let agreed: Vec<(Ticket, Agreed)> = {
            let (state, all) = (self.state(), self.directories.all());
            let agreed =
                state.counters.iter().filter_map(|(ticket, counter)| Some((ticket.clone(), counter.agreed(&all)?)));
            agreed.collect()
        };
        for (ticket, agreed) in agreed {
            self.settle(&ticket, &agreed);
        }
    }

    /// Counts statements of one batch. Whether all of them were about something that is waited for here.
    fn statements(&self, statements: &[Verified<Statement>]) -> bool {
        let Some(first) = statements.first() else { return false };
        let Some(destination) = self.directories.destination(&first.destination()) else { return false };
        let all = self.directories.all();
        let mut wanted = true;
        for statement in statements {
            wanted &= self.statement(statement, &destination, &all);
        }
        wanted
    }

    /// Counts one; whether it was about something that is waited for here.
    fn statement(
        &self,
        statement: &Verified<Statement>,
        destination: &DestinationName,
        all: &receipt::Directories,
    ) -> bool {
        let Statement { transaction, deadline, .. } = *statement.said();
        let ticket = Ticket { destination: destination.clone(), transaction, deadline };
        let Some(Wanted { parcel, tag }) = self.tracker.wanted(&ticket) else { return false };
        let _in = transaction_span("commit", parcel, transaction).entered();
        tracing::trace!(node = %statement.node(), "a receipt is genuine");
        let (added, agreed) = {
            let mut state = self.state();
            let counter = state
                .counters
                .entry(ticket.clone())
                .or_insert_with(|| Counter::new(ticket.clone(), statement.destination(), self.sender.clone(), tag));
            let added = counter.add(statement);
            (added, if added == Added::Counted { counter.agreed(all) } else { None })
        };
        if added == Added::Contradiction {
            let reason = Disbelief::Contradiction;
            self.meter.count_as(names::CLIENT_RECEIPTS_REFUSED, "reason", reason.word());
            tracing::error!(node = %statement.node(), %ticket, %reason, "a node contradicts itself: its operator should look at it");
        }
        if let Some(agreed) = agreed {
            self.settle(&ticket, &agreed);
        }
        true
    }

    /// Moves a ticket on by what a majority says of it.
    fn settle(&self, ticket: &Ticket, agreed: &Agreed) {
        let done = match receipt(ticket, agreed) {
            Some(receipt) => {
                let complete = agreed.is_complete();
                tracing::debug!(%ticket, fate = %receipt.fate, complete, "a majority signed its fate");
                let finished = self.tracker.decided(&receipt, complete);
                self.publishing.forget(&finished);
                complete || receipt.fate != Fate::Committed
            }
            None => {
                tracing::warn!(%ticket, "the nodes have forgotten it: what became of it stays unknown");
                let finished = self.tracker.forgotten(ticket);
                self.publishing.forget(&finished);
                true
            }
        };
        if done {
            self.state().counters.remove(ticket);
        }
    }

    fn missing(&self, missing: &Verified<Missing>) {
        if let Some(destination) = self.directories.destination(&missing.destination()) {
            let Missing { parcel, stripes, .. } = missing.said();
            tracing::debug!(%parcel, %destination, node = %missing.node(), "a node misses stripes of a parcel");
            self.publishing.missing(*parcel, &destination, stripes);
        }
    }

    fn refusal(&self, refusal: &Verified<Refusal>) {
        let Some(destination) = self.directories.destination(&refusal.destination()) else { return };
        let Refusal { parcel, digest, reason, .. } = refusal.said();
        let Some(row) = self.tracker.undecided_parcel(*parcel, &destination) else { return };
        if row.digest != *digest {
            return;
        }
        tracing::warn!(%parcel, %destination, node = %refusal.node(), %reason, "a node refuses a parcel");
        let refused = {
            let mut state = self.state();
            let place = (*parcel, destination.clone());
            let count =
                state.refusals.entry(place.clone()).or_insert_with(|| Refusals::new(refusal.destination(), row.digest));
            count.add(refusal);
            let refused = count.refused(&self.directories.all()).is_some();
            if refused {
                state.refusals.remove(&place);
            }
            refused
        };
        if refused {
            // A client that is closing seals nothing anew; the next start hears of it again.
            let _ = self.refused.send((*parcel, destination));
        }
    }

    /// Forgets what is no longer waited for.
    pub fn sweep(&self) {
        let mut state = self.state();
        state.counters.retain(|ticket, _| self.tracker.wanted(ticket).is_some());
        state.refusals.retain(|(parcel, name), _| self.tracker.undecided_parcel(*parcel, name).is_some());
    }
}

/// The proof of what a majority says; `None` when they say that they have forgotten.
fn receipt(ticket: &Ticket, agreed: &Agreed) -> Option<Receipt> {
    let fate = agreed.verdict.fate()?;
    let first = match agreed.verdict {
        Verdict::Duplicate(_, first) => Some(first.transaction),
        _ => None,
    };
    Some(Receipt {
        ticket: ticket.clone(),
        fate,
        position: agreed.verdict.decided().filter(|_| fate == Fate::Committed).map(|decided| decided.position),
        signers: agreed.signers.keys().cloned().collect(),
        voters: agreed.signers.len() + agreed.lacking.len(),
        directory_version: agreed.directory,
        first,
        times: agreed.signers.iter().map(|(node, times)| (node.clone(), (*times).into())).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::directory::Draft;
    use crate::core::id::{EnvironmentId, Time};
    use crate::core::sign::SecretKey;

    #[test]
    fn a_directory_is_taken_once_and_only_as_it_was_signed() {
        let operator = SecretKey::from_seed(&[1; 32]);
        let draft = Draft::new(EnvironmentId([5; 16]), "test".parse().unwrap(), Time(4_102_444_800_000));
        let first = draft.sign(&operator).unwrap();
        let second = Draft { version: 2, ..draft }.sign(&operator).unwrap();
        let verified = Directory::verify(&first, &operator.public(), 1).unwrap();
        let directories = Directories::new(operator.public(), 1, Arc::new(verified));
        assert_eq!(directories.adopt(&first), Ok(false));
        let mut altered = first.clone();
        *altered.last_mut().unwrap() ^= 1;
        assert!(directories.adopt(&altered).is_err());
        assert!(directories.adopt(&first[..first.len() - 1]).is_err());
        assert_eq!(directories.adopt(&second), Ok(true));
        assert_eq!(directories.adopt(&second), Ok(false));
        assert_eq!(directories.adopt(&first), Ok(false));
        assert_eq!(directories.current().version, 2);
    }
}
