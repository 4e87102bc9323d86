//! How a group starts on this node: it may found, rejoin or refuse (R12), then runs consensus and follows it.
//!
//! Owns everything from an opened store to a running openraft instance. Must not know what entries mean.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::error::{InitializeError, RaftError};
use openraft::{Config, Raft, ServerState, SnapshotPolicy};
use tokio_util::sync::CancellationToken;

use super::codec;
use super::founding::{Founding, Own, ProbeAnswer, founding};
use super::group::{Group, Inner, Openraft};
use super::network::{PeerNetwork, SeenPeers, Silent};
use super::standing::{GroupError, GroupOptions, Leadership, Stage};
use super::storage::{LogStore, StateMachine};
use super::types::Member;
use crate::core::id::{Incarnation, NodeName};
use crate::seams::Seams;
use crate::store::StoreError;
use crate::store::group::{AlarmRow, GroupStore, Mutation};
use crate::telemetry::alarms;

/// The note that keeps this node's Raft id.
const ID_NOTE: &str = "raft-id";

/// How long a restarted node asks its peers what they saw of it before it starts all the same (R12).
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// Pause between two rounds of probes.
const PROBE_PAUSE: Duration = Duration::from_millis(300);

/// Longest wait for one probe's answer.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// Raised when a restarted node could not ask all its peers; cleared when it could.
const ALARM_UNASKED: &str = alarms::PEERS_NOT_ASKED;

/// Raised when this node's store is older than what a peer saw from it.
const ALARM_RESTORED: &str = alarms::STORE_RESTORED;

/// Raised when the group exists and does not know this node's store.
const ALARM_UNKNOWN: &str = alarms::STORE_NOT_ADMITTED;

impl Group {
    /// What the store says of this node's past in the group.
    pub(super) fn own(&self) -> Result<Own, GroupError> {
        let damaged = |error: crate::core::wire::WireError| GroupError::Consensus { cause: error.to_string() };
        let snapshot = self.0.store.snapshot()?;
        let vote = snapshot.vote()?.map(|bytes| codec::read_vote(&bytes)).transpose().map_err(damaged)?;
        let last = match snapshot.log_bounds()?.entries {
            None => None,
            Some(entries) => {
                let index = *entries.end();
                let entry = snapshot.log(index..index + 1, usize::MAX)?.pop();
                entry.map(|(_, bytes)| codec::read_entry(&bytes)).transpose().map_err(damaged)?
            }
        };
        Ok(Own {
            vote_term: vote.map(|vote| vote.leader_id.term),
            last: last.map(|entry| (entry.log_id.leader_id.term, entry.log_id.index)),
        })
    }

    pub(super) async fn start(&self, own: Own) -> Result<(), GroupError> {
        if own.is_fresh() {
            // Nobody speaks to a store that no membership knows, so consensus can run while the group is founded.
            self.run_consensus().await?;
            self.found().await?;
        } else {
            if let Some(cause) = self.ask_peers(&own).await? {
                self.0.stage.send_replace(Stage::Refused(cause));
                return Ok(());
            }
            self.run_consensus().await?;
        }
        self.0.stage.send_replace(Stage::Running);
        Ok(())
    }

    fn others(&self) -> impl Iterator<Item = &NodeName> {
        self.0.options.voters.iter().filter(|voter| **voter != self.0.options.node)
    }

    /// Probes those that have not answered yet, all at once.
    async fn probe_others(&self, answers: &mut BTreeMap<NodeName, ProbeAnswer>) {
        let inner = &self.0;
        let incarnation = inner.store.incarnation();
        let asked: Vec<&NodeName> = self.others().filter(|node| !answers.contains_key(*node)).collect();
        let calls = asked.iter().map(|node| inner.peers.probe(node, inner.options.group, incarnation, PROBE_LIMIT));
        for (node, answer) in asked.iter().zip(futures_util::future::join_all(calls).await) {
            match answer {
                // Who answers under another name is not the node that was asked.
                Ok(answer) if answer.node == **node => {
                    answers.insert((*node).clone(), answer);
                }
                Ok(answer) => tracing::warn!(asked = %node, answered = %answer.node, "another node answers"),
                Err(error) => tracing::debug!(%error, "a probe has no answer"),
            }
        }
    }

    /// Asks what the others saw of this node; gives why it must not start.
    async fn ask_peers(&self, own: &Own) -> Result<Option<String>, GroupError> {
        self.0.stage.send_replace(Stage::Starting("it asks its peers what they saw of it".to_owned()));
        let clock = &self.0.seams.clock;
        let until = clock.monotonic() + ASK_LIMIT;
        let mut answers = BTreeMap::new();
        loop {
            self.probe_others(&mut answers).await;
            for answer in answers.values() {
                if let Some(evidence) = own.older_than(&answer.seen) {
                    let text = format!(
                        "{}: {evidence}. This store was restored from an older copy and must not vote: put the newest copy of \
                         its folder back and start the node again. Without one leave it stopped; the others go on while they \
                         are a majority, and this version cannot admit it anew",
                        answer.node
                    );
                    self.alarm(ALARM_RESTORED, &text).await?;
                    return Ok(Some(text));
                }
            }
            let missing: Vec<String> =
                self.others().filter(|node| !answers.contains_key(*node)).map(ToString::to_string).collect();
            if missing.is_empty() {
                // All of them answered, and none knows better: what an earlier start found out is over.
                let over = [ALARM_UNASKED, ALARM_RESTORED].map(|name| Mutation::Clear { name: name.to_owned() });
                self.0.store.write(over.into()).await?;
                return Ok(None);
            }
            if clock.monotonic() >= until {
                let text = format!(
                    "started without an answer from {}: were this store an older copy, it could not know",
                    missing.join(", ")
                );
                self.alarm(ALARM_UNASKED, &text).await?;
                return Ok(None);
            }
            clock.sleep(PROBE_PAUSE).await;
        }
    }

    async fn alarm(&self, name: &str, text: &str) -> Result<(), GroupError> {
        tracing::warn!(alarm = name, destination = %self.0.store.destination(), "{text}");
        let row = AlarmRow { since: self.0.seams.clock.now(), text: text.to_owned() };
        Ok(self.0.store.write(vec![Mutation::Raise { name: name.to_owned(), row }]).await?)
    }

    /// Founds the group, or waits until a leader brings its membership here.
    async fn found(&self) -> Result<(), GroupError> {
        let inner = &self.0;
        let (mut alarmed, mut unknown_before) = (false, false);
        loop {
            if self.knows_members() {
                inner.store.write(vec![Mutation::Clear { name: ALARM_UNKNOWN.to_owned() }]).await?;
                return Ok(());
            }
            let mut answers = BTreeMap::new();
            self.probe_others(&mut answers).await;
            let text = match founding(&inner.options.node, inner.store.incarnation(), &inner.options.voters, &answers) {
                Founding::Found(stores) => {
                    self.initialize(stores).await?;
                    continue;
                }
                Founding::Await(nodes) => {
                    let names: Vec<String> = nodes.iter().map(ToString::to_string).collect();
                    format!("it waits for {} to found the group with", names.join(", "))
                }
                Founding::Join => "it waits for the group's leader".to_owned(),
                Founding::Unknown { by } => {
                    let text = format!(
                        "the group exists ({by} has its log) and does not know this store: the node lost its data. Put its \
                         folder back and start it again. Without it leave it stopped; the others go on while they are a \
                         majority, and this version cannot admit it anew"
                    );
                    // While a group is being founded its first entry is there a moment before its members are known.
                    if unknown_before && !alarmed {
                        alarmed = true;
                        self.alarm(ALARM_UNKNOWN, &text).await?;
                    }
                    unknown_before = true;
                    text
                }
            };
            inner.stage.send_replace(Stage::Starting(text));
            inner.seams.clock.sleep(PROBE_PAUSE).await;
        }
    }

    fn knows_members(&self) -> bool {
        let Some(raft) = self.0.raft.get() else { return false };
        raft.metrics().borrow_watched().membership_config.get_node(&self.0.raft_id).is_some()
    }

    async fn initialize(&self, stores: BTreeMap<NodeName, Incarnation>) -> Result<(), GroupError> {
        let Some(raft) = self.0.raft.get() else { return Ok(()) };
        let members: BTreeMap<u64, Member> = (1..)
            .zip(stores)
            .map(|(id, (name, incarnation))| (id, Member { name: Some(name), incarnation: Some(incarnation) }))
            .collect();
        match raft.initialize(members).await {
            // Not allowed: a vote or a log came here meanwhile; then the group is being founded by another.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(GroupError::Consensus { cause: error.to_string() }),
        }
    }

    async fn run_consensus(&self) -> Result<(), GroupError> {
        let inner = &self.0;
        let failed = |cause: String| GroupError::Consensus { cause };
        let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let config = Config {
            cluster_name: inner.options.group.to_string(),
            // openraft waits for the leader's lease to end, which is as long as the longest wait, and only then for an
            // election's own time: halves make the whole.
            election_timeout_min: milliseconds(inner.options.election.0 / 2),
            election_timeout_max: milliseconds(inner.options.election.1 / 2),
            heartbeat_interval: milliseconds(inner.options.heartbeat),
            enable_pre_vote: Some(true),
            // A leader sends entries while its own disk still writes them. Were it the leader of the same term again after a
            // crash, it would give their log ids to other entries, and nodes that have the old ones would keep them.
            enable_leader_restore: Some(false),
            snapshot_policy: SnapshotPolicy::Never,
            // Never purged and no snapshots: a member that is far behind gets the log itself.
            replication_lag_threshold: u64::MAX,
            max_in_snapshot_log_to_keep: u64::MAX,
            ..Config::default()
        };
        let config = Arc::new(config.validate().map_err(|error| failed(error.to_string()))?);
        let log = LogStore::new(inner.store.clone()).map_err(|error| failed(error.to_string()))?;
        let news = inner.news.lock().unwrap_or_else(PoisonError::into_inner).take();
        let news = news.ok_or_else(|| failed("it was started twice".to_owned()))?;
        let machine = StateMachine::new(inner.store.clone(), news);
        let network = PeerNetwork {
            peers: inner.peers.clone(),
            group: inner.options.group,
            own_id: inner.raft_id,
            own_incarnation: inner.store.incarnation(),
            seen: inner.seen.clone(),
            log: log.clone(),
            silent: Arc::new(Silent::new(inner.leaving.clone())),
        };
        let raft = Raft::new(inner.raft_id, config, network, log, machine).await;
        let raft = raft.map_err(|error| failed(error.to_string()))?;
        if inner.raft.set(raft.clone()).is_err() {
            return Err(failed("it was started twice".to_owned()));
        }
        tokio::spawn(follow(Arc::downgrade(&self.0), raft.clone(), inner.stop.clone()));
        tokio::spawn(keep_seen(inner.seen.clone(), inner.seams.clone(), inner.options.heartbeat, inner.stop.clone()));
        let replayed = inner.replayed.clone();
        let stop = inner.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                // It fails only when consensus ended, which the stage tells.
                result = raft.wait_for_recovery(None) => {
                    replayed.send_replace(result.is_ok());
                }
            }
        });
        Ok(())
    }
}

/// Passes on who leads and whether consensus failed, until it ends.
async fn follow(weak: std::sync::Weak<Inner>, raft: Openraft, stop: CancellationToken) {
    let mut metrics = raft.metrics();
    loop {
        let (leadership, failed) = {
            let now = metrics.borrow_watched();
            let name = |id: &u64| now.membership_config.get_node(id).and_then(|member| member.name.clone());
            let own = now.state == ServerState::Leader;
            let leadership =
                Leadership { leader: now.current_leader.as_ref().and_then(name), term: now.current_term, own };
            (leadership, now.running_state.as_ref().err().map(ToString::to_string))
        };
        let Some(inner) = weak.upgrade() else { return };
        inner.leadership.send_if_modified(|before| {
            let changed = *before != leadership;
            *before = leadership;
            changed
        });
        if let Some(cause) = failed
            && !stop.is_cancelled()
        {
            tracing::error!(%cause, "consensus stops: the node must be restarted");
            inner.stage.send_replace(Stage::Failed(cause));
            return;
        }
        drop(inner);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = metrics.changed() => {
                if changed.is_err() {
                    // It ended and left no word: it panicked.
                    if let Some(inner) = weak.upgrade().filter(|_| !stop.is_cancelled()) {
                        let cause = "consensus ended without a word: this is a defect".to_owned();
                        inner.stage.send_replace(Stage::Failed(cause));
                    }
                    return;
                }
            }
        }
    }
}

/// Keeps what was seen of the others, a few times a second.
async fn keep_seen(seen: Arc<SeenPeers>, seams: Seams, pause: Duration, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = seams.clock.sleep(pause) => seen.keep(),
        }
    }
}

pub(super) fn founding_id(voters: &[NodeName], node: &NodeName) -> Option<u64> {
    let place = voters.iter().position(|voter| voter == node)?;
    u64::try_from(place).ok().map(|place| place + 1)
}

/// This node's Raft id: from its store, or, for a founding voter, from the order of names.
pub(super) async fn own_id(options: &GroupOptions, store: &GroupStore) -> Result<u64, GroupError> {
    let note = store.snapshot()?.note(ID_NOTE)?;
    if let Some(note) = note {
        let id = note.as_ref().try_into().map(u64::from_be_bytes);
        return id.map_err(|_| StoreError::damaged("notes", ID_NOTE, "not 8 bytes").into());
    }
    let Some(id) = founding_id(&options.voters, &options.node) else {
        return Err(GroupError::NotAVoter {
            node: options.node.clone(),
            group: options.group,
            voters: options.voters.clone(),
        });
    };
    let value = Bytes::copy_from_slice(&id.to_be_bytes());
    store.write(vec![Mutation::Note { name: ID_NOTE.to_owned(), value }]).await?;
    Ok(id)
}
