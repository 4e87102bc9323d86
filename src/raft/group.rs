//! One group as the node sees it: propose, follow what is applied, ask how it stands.
//!
//! Owns the life of one openraft instance. Must not know what entries mean, nor how messages travel.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::error::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::{Instant, Raft, ReadPolicy, ServerState};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::codec;
use super::founding::{ProbeAnswer, SeenOfAsker};
use super::network::{HandleError, Message, MessageKind, PeerCaller, SeenPeers};
use super::standing::{
    GroupError, GroupOptions, Leadership, MemberStatus, ProposeError, ReadIndexError, Role, Stage, Status,
};
use super::start::{founding_id, own_id};
use super::storage::StateMachine;
use super::types::{EntryBytes, Member, TypeConfig};
use crate::core::decide::Entry;
use crate::core::id::{Incarnation, NodeName};
use crate::core::wire::Writer;
use crate::seams::Seams;
use crate::store::group::{Applied, GroupStore};

/// Entries of which it may not be told yet what they did; beyond it nothing more is applied.
const NEWS: usize = 64;
/// How often a node that takes the lead is asked whether it is still there, and how long it may take to say so.
const STILL_THERE: Duration = Duration::from_millis(100);
const STILL_THERE_LIMIT: Duration = Duration::from_millis(500);

/// The instance that a group runs.
pub(super) type Openraft = Raft<TypeConfig, StateMachine>;

/// What all clones of a group share.
pub(super) struct Inner {
    pub(super) options: GroupOptions,
    pub(super) store: GroupStore,
    pub(super) peers: Arc<dyn PeerCaller>,
    pub(super) seams: Seams,
    pub(super) seen: Arc<SeenPeers>,
    pub(super) raft_id: u64,
    pub(super) raft: OnceLock<Openraft>,
    pub(super) news: Mutex<Option<mpsc::Sender<Applied>>>,
    pub(super) stage: watch::Sender<Stage>,
    pub(super) leadership: watch::Sender<Leadership>,
    pub(super) replayed: watch::Sender<bool>,
    /// Whether this node is ending.
    pub(super) leaving: Arc<AtomicBool>,
    pub(super) stop: CancellationToken,
}

/// One group on this node. Cheap to clone.
#[derive(Clone)]
pub struct Group(pub(super) Arc<Inner>);

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("group", &self.0.options.group).finish_non_exhaustive()
    }
}

impl Group {
    /// Opens the group over its store and gives what is applied from now on; what was applied before is in the store. Whoever
    /// takes it must wait for nothing that waits for the log: while it is not taken, nothing is applied. Dropping it is the
    /// end of listening. It starts in the background: see [`Group::stage`]. Probes are answered at once.
    ///
    /// The Raft ids of the founding voters are 1 to n in the order of their names; a node keeps its id in its store.
    ///
    /// Errors: [`GroupError`].
    pub async fn open(
        options: GroupOptions,
        store: GroupStore,
        peers: Arc<dyn PeerCaller>,
        seams: Seams,
    ) -> Result<(Self, mpsc::Receiver<Applied>), GroupError> {
        let raft_id = own_id(&options, &store).await?;
        let (news, receiver) = mpsc::channel(NEWS);
        let inner = Inner {
            seen: Arc::new(SeenPeers::new(store.clone())),
            raft_id,
            raft: OnceLock::new(),
            news: Mutex::new(Some(news)),
            stage: watch::Sender::new(Stage::Starting("it reads its store".to_owned())),
            leadership: watch::Sender::default(),
            replayed: watch::Sender::new(false),
            leaving: Arc::default(),
            stop: CancellationToken::new(),
            options,
            store,
            peers,
            seams,
        };
        let group = Self(Arc::new(inner));
        let own = group.own()?;
        let starting = group.clone();
        tokio::spawn(async move {
            let stop = starting.0.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                result = starting.start(own) => {
                    if let Err(error) = result {
                        starting.0.stage.send_replace(Stage::Failed(error.to_string()));
                    }
                }
            }
        });
        Ok((group, receiver))
    }

    /// The group's store.
    pub fn store(&self) -> &GroupStore {
        &self.0.store
    }

    /// This node's Raft id.
    pub fn raft_id(&self) -> u64 {
        self.0.raft_id
    }

    /// How far the start is, and whether it failed since.
    pub fn stage(&self) -> watch::Receiver<Stage> {
        self.0.stage.subscribe()
    }

    /// Who leads, and news of it.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership.subscribe()
    }

    /// Whether the log is replayed: everything that was committed when this node started is applied. Until then it cannot
    /// say that something is not there (R23).
    pub fn replayed(&self) -> watch::Receiver<bool> {
        self.0.replayed.subscribe()
    }

    fn running(&self) -> Result<&Openraft, String> {
        self.0.raft.get().ok_or_else(|| match &*self.0.stage.borrow() {
            Stage::Starting(text) | Stage::Refused(text) | Stage::Failed(text) => text.clone(),
            Stage::Running => "it is starting".to_owned(),
        })
    }

    fn name_of(&self, id: u64) -> Option<NodeName> {
        let raft = self.0.raft.get()?;
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.get_node(&id).and_then(|member| member.name.clone())
    }

    /// Proposes an entry and waits until it is applied here; what it did comes with the news of its index.
    ///
    /// Errors: [`ProposeError`].
    pub async fn propose(&self, entry: &Entry) -> Result<u64, ProposeError> {
        let raft = self.running().map_err(|cause| ProposeError::NotRunning { cause })?;
        match raft.client_write(EntryBytes(entry.encode().into())).await {
            Ok(written) => Ok(written.data.0),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                Err(ProposeError::NotLeader { leader: to.leader_id.and_then(|id| self.name_of(id)) })
            }
            Err(RaftError::APIError(_)) => {
                Err(ProposeError::Unknown { leader: self.0.leadership.borrow().leader.clone() })
            }
            Err(RaftError::Fatal(fatal)) => Err(ProposeError::NotRunning { cause: fatal.to_string() }),
        }
    }

    /// The log index that a linearizable read must see applied, confirmed by a majority just now; on the leader.
    /// Errors: [`ReadIndexError`].
    pub async fn read_index(&self) -> Result<u64, ReadIndexError> {
        let raft = self.running().map_err(|cause| ReadIndexError::NotRunning { cause })?;
        match raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(read.log_id().index),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => {
                Err(ReadIndexError::NotLeader { leader: to.leader_id.and_then(|id| self.name_of(id)) })
            }
            Err(RaftError::APIError(error)) => Err(ReadIndexError::NoQuorum { cause: error.to_string() }),
            Err(RaftError::Fatal(fatal)) => Err(ReadIndexError::NotRunning { cause: fatal.to_string() }),
        }
    }

    /// Takes a consensus message of another node. `from` is who the connection proved to be; the caller has checked that
    /// the directory lists it for this group. Errors: [`HandleError`].
    pub async fn handle(&self, from: &NodeName, kind: u32, payload: &[u8]) -> Result<Bytes, HandleError> {
        let kind = MessageKind::from_number(kind).ok_or(HandleError::UnknownKind { kind })?;
        let (header, message) = Message::read(kind, payload)?;
        let here = self.0.store.incarnation();
        if header.to_incarnation != here {
            return Err(HandleError::OtherIncarnation { meant: header.to_incarnation, here });
        }
        let raft = self.running().map_err(|cause| HandleError::NotRunning { cause })?;
        let not_the_member = || HandleError::NotTheMember { node: from.clone(), member: header.from };
        if !self.is_member(raft, from, header.from, header.from_incarnation) {
            return Err(not_the_member());
        }
        if let Some((term, id)) = message.claim() {
            if id != header.from {
                return Err(not_the_member());
            }
            // A pre-vote names a term that its sender has not taken yet.
            let (term, voted) = if matches!(message, Message::PreVote(_)) { (0, false) } else { (term, true) };
            self.0.seen.note(from, header.from_incarnation, term, voted, header.durable);
        }
        let stopped = |error: String| HandleError::NotRunning { cause: error };
        let mut to = Writer::default();
        match message {
            Message::Vote(request) => {
                let answer = raft.vote(request).await.map_err(|error| stopped(error.to_string()))?;
                codec::put_vote_answer(&mut to, &answer);
            }
            Message::PreVote(request) => {
                let answer = raft.pre_vote(request).await.map_err(|error| stopped(error.to_string()))?;
                codec::put_vote_answer(&mut to, &answer);
            }
            Message::Append(request) => {
                let answer = raft.append_entries(request).await.map_err(|error| stopped(error.to_string()))?;
                codec::put_append_answer(&mut to, &answer);
            }
            Message::TransferLeader(_) if self.0.leaving.load(Ordering::Acquire) => {
                return Err(HandleError::NotRunning { cause: "this node is ending".to_owned() });
            }
            Message::TransferLeader(request) => {
                let answer = raft.handle_transfer_leader(request).await.map_err(|error| stopped(error.to_string()))?;
                let json = serde_json::to_vec(&answer).map_err(|error| stopped(error.to_string()))?;
                to.put(&json);
            }
        }
        Ok(to.finish().into())
    }

    /// Whether a node in a life of its store is this member; before any membership is known, by the founding order.
    fn is_member(&self, raft: &Openraft, node: &NodeName, id: u64, incarnation: Incarnation) -> bool {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        match metrics.membership_config.get_node(&id) {
            Some(member) => member.name.as_ref() == Some(node) && member.incarnation == Some(incarnation),
            None if metrics.membership_config.nodes().next().is_none() => {
                founding_id(&self.0.options.voters, node) == Some(id)
            }
            None => false,
        }
    }

    /// Answers a probe of another node in this life of its store. Errors: the store's.
    pub fn probe(&self, asker: &NodeName, incarnation: Incarnation) -> Result<ProbeAnswer, GroupError> {
        let own = self.own()?;
        let seen = self.0.seen.of(asker);
        let seen = if seen.incarnation == Some(incarnation.0) { seen } else { Default::default() };
        let membership = self.0.store.snapshot()?.membership()?;
        let membership = membership.map(|bytes| codec::read_membership(&bytes)).transpose();
        let membership = membership.map_err(|error| GroupError::Consensus { cause: error.to_string() })?;
        let known = self.0.raft.get().map(|raft| raft.metrics().borrow_watched().membership_config.as_ref().clone());
        let membership = known.or(membership).unwrap_or_default();
        let is_asker = |member: &Member| member.name.as_ref() == Some(asker) && member.incarnation == Some(incarnation);
        let asker_id = membership.nodes().find(|(_, member)| is_asker(member)).map_or(0, |(id, _)| *id);
        let (log_term, log_index) = seen.log.unwrap_or_default();
        let (last_term, last_index) = own.last.unwrap_or_default();
        Ok(ProbeAnswer {
            node: self.0.options.node.clone(),
            incarnation: self.0.store.incarnation(),
            has_vote: own.vote_term.is_some(),
            has_log: own.last.is_some(),
            term: own.vote_term.unwrap_or(0),
            last_index,
            last_term,
            leader: self.0.leadership.borrow().leader.clone(),
            seen: SeenOfAsker { term: seen.term, voted: seen.voted, log_term, log_index },
            asker_id,
            directory_version: self.0.store.progress().borrow().directory_version,
            leaving: self.0.leaving.load(Ordering::Acquire),
        })
    }

    /// How the group stands on this node.
    pub fn status(&self) -> Status {
        let stage = self.0.stage.borrow().clone();
        let mut status = Status {
            role: match stage {
                Stage::Refused(_) | Stage::Failed(_) => Role::Stopped,
                Stage::Starting(_) | Stage::Running => Role::Starting,
            },
            stage,
            raft_id: self.0.raft_id,
            term: 0,
            leader: None,
            last_index: 0,
            committed: 0,
            applied: self.0.store.progress().borrow().applied,
            members: Vec::new(),
            quorum_silent: None,
        };
        let Some(raft) = self.0.raft.get() else { return status };
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        if status.role == Role::Starting && status.stage == Stage::Running {
            status.role = match metrics.state {
                ServerState::Leader => Role::Leader,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Learner => Role::Learner,
                ServerState::Shutdown => Role::Stopped,
            };
        }
        let membership = &metrics.membership_config;
        let name = |id: &u64| membership.get_node(id).and_then(|member| member.name.clone());
        let voters: Vec<u64> = membership.voter_ids().collect();
        status.term = metrics.current_term;
        status.leader = metrics.current_leader.as_ref().and_then(name);
        status.last_index = metrics.last_log_index.unwrap_or(0);
        status.committed = metrics.cluster_committed.map_or(0, |id| id.index);
        status.quorum_silent = metrics.last_quorum_acked.map(|acked| acked.elapsed());
        status.members = membership
            .nodes()
            .filter_map(|(id, member)| {
                let matched = match &metrics.replication {
                    Some(replication) => replication.get(id).and_then(|matched| matched.map(|id| id.index)),
                    None => None,
                };
                Some(MemberStatus {
                    node: member.name.clone()?,
                    raft_id: *id,
                    incarnation: member.incarnation?,
                    voter: voters.contains(id),
                    matched: if *id == self.0.raft_id { metrics.last_log_index } else { matched },
                })
            })
            .collect();
        status.members.sort_by(|one, other| one.node.cmp(&other.node));
        status
    }

    /// Before this node ends: it takes the lead from nobody any more, and if it has it, asks another voter that answers and
    /// stays to take it, the one with the most of the log first, and waits until one does, at most `limit` in all, and no
    /// longer than there is one to wait for. Nothing new is proposed here meanwhile, and what was is replicated still: this
    /// node must be reachable until this returns. Whether another leads; else the others elect when they miss this one.
    pub async fn hand_over(&self, limit: Duration) -> bool {
        self.0.leaving.store(true, Ordering::Release);
        let Some(raft) = self.0.raft.get() else { return false };
        // Not by the role of the status: that is *starting* for a moment more, though proposals go through.
        if !self.0.leadership.borrow().own {
            return false;
        }
        let voters =
            self.status().members.into_iter().filter(|member| member.voter && member.raft_id != self.0.raft_id);
        let asked = voters.map(|member| async move {
            let answer = self.stays(&member.node, limit / 4).await?;
            Some((member, (answer.last_term, answer.last_index)))
        });
        let mut others: Vec<_> = futures_util::future::join_all(asked).await.into_iter().flatten().collect();
        others.sort_by_key(|(_, last)| Reverse(*last));
        let mut late = false;
        let each = limit / u32::try_from(others.len().max(1)).unwrap_or(u32::MAX);
        let mut leadership = self.leadership();
        for (member, _) in others {
            tracing::info!(group = %self.0.options.group, to = %member.node, "the lead is handed over");
            if let Err(error) = raft.trigger().transfer_leader(member.raft_id).await {
                tracing::debug!(%error, "consensus has ended");
                return false;
            }
            tokio::select! {
                now = leadership.wait_for(|now| !now.own && now.leader.is_some()) => return now.is_ok(),
                () = self.gone(&member.node) => {}
                () = self.0.seams.clock.sleep(each) => late = true,
            }
        }
        let group = self.0.options.group;
        if late {
            tracing::info!(%group, "nobody took the lead in time: the others will elect");
        } else {
            tracing::info!(%group, "no other voter that stays could take the lead: a majority elects when it runs again");
        }
        false
    }

    /// What a node answers that can take the lead: `None` when it does not answer, or is ending too.
    async fn stays(&self, node: &NodeName, limit: Duration) -> Option<ProbeAnswer> {
        let (group, incarnation) = (self.0.options.group, self.0.store.incarnation());
        let answer = self.0.peers.probe(node, group, incarnation, limit).await.ok()?;
        (answer.node == *node && !answer.leaving).then_some(answer)
    }

    /// Waits until a node does not answer any more, or is ending too.
    async fn gone(&self, node: &NodeName) {
        loop {
            self.0.seams.clock.sleep(STILL_THERE).await;
            if self.stays(node, STILL_THERE_LIMIT).await.is_none() {
                return;
            }
        }
    }

    /// Ends this node's part; nothing is lost by not calling it.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        if let Some(raft) = self.0.raft.get()
            && let Err(error) = raft.shutdown().await
        {
            tracing::debug!(%error, "consensus had ended already");
        }
    }
}
