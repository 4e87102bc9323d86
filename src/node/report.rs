//! Reports to the leader: what this node has staged, its clock, what it holds (R10). A parcel that was just staged is
//! reported at once, with its manifest, so that the leader can propose it without asking back; everything that is
//! undecided is reported to each new leader and every second.
//!
//! Owns when and what this node reports. Must not tally.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::NodeError;
use super::group::{GroupContext, Staged};
use super::propose::Desk;
use crate::core::decide::{self, ENTRY_VERSION, Manifest};
use crate::core::directory::Directory;
use crate::core::id::{Digest, NodeName, Position, Time};
use crate::raft::Group;
use crate::rpc::client::Dialer;
use crate::rpc::{convert, proto};
use crate::store::StoreError;

/// Everything is reported this often.
const EVERY: Duration = Duration::from_secs(1);
/// And this long after a report that did not arrive.
const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// A leader that does not answer in this time is asked again.
const PATIENCE: Duration = Duration::from_secs(2);
/// The held prefix is reported at most this often between full reports: it releases those that wait for *complete*.
const HELD_EVERY: Duration = Duration::from_millis(5);
/// Bytes of manifests in one message, beyond which the next begins; one more manifest still fits the gRPC limit.
const PART_BYTES: usize = 1024 * 1024;
/// Parcels in one message.
const PART_PARCELS: usize = 4096;
/// Parcels to report whose manifests are kept in memory until they are; those of others are read from the store.
const MANIFESTS_KEPT: usize = 64;
/// Staged parcels that are read at once.
const PAGE: usize = 256;

/// One parcel to report, and its manifest when it is sent along.
type Line = (Staged, Option<Arc<Manifest>>);

/// The same with the manifest's bytes.
type Encoded = (Staged, Option<(Bytes, Arc<Manifest>)>);

/// Reports for one destination.
pub struct Reporter {
    context: Arc<GroupContext>,
    desk: Desk,
    group: Group,
    dialer: Dialer,
    newest: watch::Receiver<Arc<Directory>>,
    number: u64,
    held: Position,
}

/// What a report came to.
enum Told {
    /// The leader took it and wants these manifests.
    Taken(BTreeSet<Digest>),
    /// There is no leader, or it did not answer.
    Nobody,
}

impl Reporter {
    /// Reports to whoever leads; to `desk` when it is this node. `newest` is the newest directory that was verified.
    pub fn new(
        context: Arc<GroupContext>,
        desk: Desk,
        group: Group,
        dialer: Dialer,
        newest: watch::Receiver<Arc<Directory>>,
    ) -> Self {
        Self { context, desk, group, dialer, newest, number: 0, held: Position::default() }
    }

    /// Reports until the context's `stop`, and what was staged by then. Errors: the store's.
    pub async fn run(mut self, mut staged: mpsc::Receiver<Staged>) -> Result<(), NodeError> {
        let clock = self.context.seams.clock.clone();
        let stop = self.context.stop.clone();
        let mut state = self.group.leadership();
        let mut progress = self.context.store.progress();
        let mut leader = None;
        let (mut full_at, mut held_at) = (Duration::ZERO, Duration::ZERO);
        let mut new = Vec::new();
        loop {
            let now = clock.monotonic();
            let known = state.borrow_and_update().leader.clone();
            if known != leader {
                leader = known;
                full_at = now;
            }
            if let Some(to) = leader.clone() {
                let told = if now >= full_at {
                    new.clear();
                    full_at = now + EVERY;
                    self.full(&to).await?
                } else if !new.is_empty() {
                    let lines = self.lines(std::mem::take(&mut new))?;
                    self.parts(&to, lines, false).await
                } else if now >= held_at && progress.borrow_and_update().held != self.held {
                    held_at = now + HELD_EVERY;
                    self.parts(&to, Vec::new(), false).await
                } else {
                    Told::Taken(BTreeSet::new())
                };
                if matches!(told, Told::Nobody) {
                    full_at = full_at.min(clock.monotonic() + AFTER_FAILURE);
                }
            }
            let held_moved = progress.borrow().held != self.held;
            let next = if leader.is_none() {
                now + EVERY
            } else if held_moved {
                full_at.min(held_at)
            } else {
                full_at
            };
            let wait = next.saturating_sub(clock.monotonic());
            tokio::select! {
                biased;
                one = staged.recv() => match one {
                    Some(one) => new.push(kept(one, &new, leader.is_some())),
                    None if stop.is_cancelled() => return Ok(()),
                    None => stop.cancelled().await,
                },
                changed = state.changed() => if changed.is_err() { return Ok(()) },
                changed = progress.changed(), if !held_moved => if changed.is_err() { return Ok(()) },
                () = clock.sleep(wait), if !wait.is_zero() => {}
                () = stop.cancelled(), if staged.is_closed() => return Ok(()),
                () = std::future::ready(()), if wait.is_zero() && leader.is_some() => {}
            }
            while let Ok(one) = staged.try_recv() {
                new.push(kept(one, &new, leader.is_some()));
            }
        }
    }

    /// Reads the manifests of parcels that were just staged; those that have their fates by now are left out.
    fn lines(&self, new: Vec<Staged>) -> Result<Vec<Line>, StoreError> {
        let snapshot = self.context.store.snapshot()?;
        let mut lines = Vec::with_capacity(new.len());
        for staged in new {
            match staged.manifest.clone() {
                Some(manifest) if snapshot.is_staged(&staged.digest)? => lines.push((staged, Some(manifest))),
                Some(_) => {}
                None => {
                    let row = snapshot.staged(&staged.digest)?;
                    lines.extend(row.map(|row| (staged, Some(Arc::new(row.manifest)))));
                }
            }
        }
        Ok(lines)
    }

    /// Reports everything that is staged and undecided, then the manifests that the leader lacks.
    async fn full(&mut self, to: &NodeName) -> Result<Told, NodeError> {
        let mut lines: Vec<Line> = Vec::new();
        {
            let snapshot = self.context.store.snapshot()?;
            let mut after = None;
            loop {
                let page = snapshot.staged_after(after.as_ref(), PAGE)?;
                let Some(last) = page.last() else { break };
                after = Some(last.manifest.digest);
                lines.extend(page.into_iter().map(|row| {
                    let (parcel, digest) = (row.manifest.parcel, row.manifest.digest);
                    (Staged { parcel, digest, manifest_digest: row.manifest_digest, manifest: None }, None)
                }));
            }
        }
        let all: Vec<Staged> = lines.iter().map(|(staged, _)| staged.clone()).collect();
        match self.parts(to, lines, true).await {
            Told::Nobody => Ok(Told::Nobody),
            Told::Taken(wanted) if wanted.is_empty() => Ok(Told::Taken(wanted)),
            Told::Taken(wanted) => {
                let lacking = all.into_iter().filter(|staged| wanted.contains(&staged.manifest_digest)).collect();
                let lines = self.lines(lacking)?;
                Ok(self.parts(to, lines, false).await)
            }
        }
    }

    /// Sends one report in as many messages as it needs.
    async fn parts(&mut self, to: &NodeName, lines: Vec<Line>, whole: bool) -> Told {
        self.number += 1;
        let mut wanted = BTreeSet::new();
        let mut rest = lines.into_iter().peekable();
        loop {
            let (mut part, mut bytes) = (Vec::new(), 0);
            while part.len() < PART_PARCELS
                && bytes < PART_BYTES
                && let Some((staged, manifest)) = rest.next()
            {
                let encoded = manifest.map(|manifest| (Bytes::from(manifest.encode()), manifest));
                bytes += encoded.as_ref().map_or(0, |(encoded, _)| encoded.len());
                part.push((staged, encoded));
            }
            let end = rest.peek().is_none();
            match self.send(to, part, whole && end).await {
                Told::Taken(more) => wanted.extend(more),
                Told::Nobody => return Told::Nobody,
            }
            if end {
                return Told::Taken(wanted);
            }
        }
    }

    async fn send(&mut self, to: &NodeName, part: Vec<Encoded>, last: bool) -> Told {
        let context = &self.context;
        let held = context.store.progress().borrow().held;
        let clock: Time = context.seams.clock.now();
        if *to == context.node {
            let staged = part.into_iter().map(|(staged, manifest)| decide::Staged {
                parcel: staged.parcel,
                digest: staged.digest,
                manifest_digest: staged.manifest_digest,
                manifest: manifest.map(|(_, manifest)| manifest),
            });
            let report = decide::Report {
                node: context.node.clone(),
                incarnation: context.store.incarnation(),
                clock,
                held,
                number: self.number,
                last,
                staged: staged.collect(),
            };
            self.held = held;
            return self.desk.report(report).map_or(Told::Nobody, |wanted| Told::Taken(wanted.into_iter().collect()));
        }
        let request = proto::ReportRequest {
            group: Bytes::copy_from_slice(&context.tag.0),
            node: context.node.to_string(),
            incarnation: Bytes::copy_from_slice(&context.store.incarnation().0),
            clock_ms: clock.0,
            held: Some(held.into()),
            staged: part.into_iter().map(message).collect(),
            number: self.number,
            last,
            directory_version: self.newest.borrow().version,
            entry_version: ENTRY_VERSION,
            applied: context.store.progress().borrow().applied,
        };
        let call = async {
            let mut peer = self.dialer.peer(to).map_err(|error| tonic::Status::unavailable(error.to_string()))?;
            peer.report(request).await
        };
        match self.dialer.within(PATIENCE, call).await {
            Ok(response) => {
                let response = response.into_inner();
                if !response.taken {
                    return Told::Nobody;
                }
                self.held = held;
                self.hand_over(to, response.directory_version).await;
                let wanted = response.wanted_manifests.iter();
                Told::Taken(wanted.filter_map(|digest| convert::digest(digest, "wanted_manifests").ok()).collect())
            }
            Err(status) => {
                tracing::debug!(leader = %to, error = %crate::rpc::client::explain(&status), "a report did not arrive");
                Told::Nobody
            }
        }
    }

    /// Hands a directory to a leader that has not put it in force yet (R8).
    async fn hand_over(&self, to: &NodeName, in_force: u64) {
        let newest = self.newest.borrow().clone();
        if newest.version <= in_force || in_force == 0 {
            return;
        }
        let request = proto::OfferDirectoryRequest {
            group: Bytes::copy_from_slice(&self.context.tag.0),
            directory: newest.bytes().clone(),
        };
        let call = async {
            let mut peer = self.dialer.peer(to).map_err(|error| tonic::Status::unavailable(error.to_string()))?;
            peer.offer_directory(request).await
        };
        // The next report sees whether it is in force, and hands it over again if not.
        if let Err(status) = self.dialer.within(PATIENCE, call).await {
            tracing::debug!(leader = %to, error = %crate::rpc::client::explain(&status), "a directory was not handed over");
        }
    }
}

/// A parcel that is to be reported, without its manifest when that may wait for long or many do: the store has it.
fn kept(staged: Staged, waiting: &[Staged], led: bool) -> Staged {
    let manifest = staged.manifest.filter(|_| led && waiting.len() < MANIFESTS_KEPT);
    Staged { manifest, ..staged }
}

fn message((staged, manifest): Encoded) -> proto::Staged {
    proto::Staged {
        parcel: Bytes::copy_from_slice(&staged.parcel.to_bytes()),
        digest: Bytes::copy_from_slice(&staged.digest.0),
        manifest_digest: Bytes::copy_from_slice(&staged.manifest_digest.0),
        sender: manifest.as_ref().map(|(_, manifest)| manifest.sender.to_string()).unwrap_or_default(),
        manifest: manifest.map(|(bytes, _)| bytes),
    }
}
