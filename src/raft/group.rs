//! One group as the node sees it: propose, follow what is applied, ask how it stands.
//!
//! Owns the life of one openraft instance. Must not know what entries mean, nor how messages travel.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::error::{ClientWriteError, InitializeError, LinearizableReadError, RaftError};
use openraft::{Config, Instant, Raft, ReadPolicy, ServerState, SnapshotPolicy};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::codec;
use super::founding::{Founding, Own, ProbeAnswer, SeenOfAsker, founding};
use super::network::{HandleError, Message, MessageKind, PeerCaller, PeerNetwork, SeenPeers};
use super::storage::{LogStore, StateMachine};
use super::types::{EntryBytes, Member, TypeConfig};
use crate::core::decide::{DirectoryOp, Entry};
use crate::core::id::{DestinationTag, Incarnation, NodeName};
use crate::core::wire::Writer;
use crate::seams::Seams;
use crate::store::StoreError;
use crate::store::group::{AlarmRow, Applied, GroupStore, Mutation};

/// The note that keeps this node's Raft id.
const ID_NOTE: &str = "raft-id";

/// How long a restarted node asks its peers what they saw of it before it starts all the same (R12).
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// Pause between two rounds of probes.
const PROBE_PAUSE: Duration = Duration::from_millis(300);

/// Longest wait for one probe's answer.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// Raised when a restarted node could not ask all its peers; cleared when it could.
const ALARM_UNASKED: &str = "peers-not-asked";

/// Raised when this node's store is older than what a peer saw from it.
const ALARM_RESTORED: &str = "store-restored";

/// Raised when the group exists and does not know this node's store.
const ALARM_UNKNOWN: &str = "store-not-admitted";

type Openraft = Raft<TypeConfig, StateMachine>;

/// Whose group it is and how patient it is.
#[derive(Debug, Clone)]
pub struct GroupOptions {
    /// This node.
    pub node: NodeName,
    /// The group: its destination's tag.
    pub group: DestinationTag,
    /// The voters of the newest directory.
    pub voters: Vec<NodeName>,
    /// Shortest and longest wait for a leader before an election: 1 to 2 s.
    pub election: (Duration, Duration),
    /// How often a leader shows that it is there: 250 ms.
    pub heartbeat: Duration,
}

impl GroupOptions {
    /// With the design's times.
    pub fn new(node: NodeName, group: DestinationTag, mut voters: Vec<NodeName>) -> Self {
        voters.sort();
        let election = (Duration::from_secs(1), Duration::from_secs(2));
        Self { node, group, voters, election, heartbeat: Duration::from_millis(250) }
    }
}

/// Why a group cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The store's.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory does not list this node for the destination.
    #[error("node {node} is no voter of group {group}: the directory lists {voters:?}")]
    NotAVoter {
        /// This node.
        node: NodeName,
        /// The group.
        group: DestinationTag,
        /// Who is.
        voters: Vec<NodeName>,
    },
    /// The times make no sense together, or consensus's own rows are damaged.
    #[error("consensus cannot start: {cause}")]
    Consensus {
        /// What openraft said.
        cause: String,
    },
}

impl GroupError {
    /// Whether opening again can succeed by itself.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Store(error) if error.retryable())
    }
}

/// How far the group's start on this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// It asks its peers what they saw of it, or waits to found or to join; for people, what it waits for.
    Starting(String),
    /// It takes part.
    Running,
    /// It must not take part; why, and what to do.
    Refused(String),
    /// It took part and stopped for an error: the process must end.
    Failed(String),
}

/// Who leads, as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The leader.
    pub leader: Option<NodeName>,
    /// Its term.
    pub term: u64,
    /// Whether it is this node.
    pub own: bool,
}

/// A node's part in consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It leads.
    Leader,
    /// It follows.
    Follower,
    /// It stands for election.
    Candidate,
    /// It receives the log and does not vote.
    Learner,
    /// It is not taking part yet.
    Starting,
    /// It does not take part any more.
    Stopped,
}

/// One member as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its name.
    pub node: NodeName,
    /// Its Raft id.
    pub raft_id: u64,
    /// Its store's incarnation.
    pub incarnation: Incarnation,
    /// Whether it votes.
    pub voter: bool,
    /// Index of the last log entry that it is known to have; the leader knows it of all, a node of itself.
    pub matched: Option<u64>,
}

/// How the group stands on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// How far its start is.
    pub stage: Stage,
    /// This node's part.
    pub role: Role,
    /// Its Raft id.
    pub raft_id: u64,
    /// Its term.
    pub term: u64,
    /// The leader that it knows.
    pub leader: Option<NodeName>,
    /// Index of its last log entry.
    pub last_index: u64,
    /// Index of the last entry that it knows to be committed.
    pub committed: u64,
    /// Index of the last entry that it applied.
    pub applied: u64,
    /// The members, by name.
    pub members: Vec<MemberStatus>,
    /// How long ago a majority last answered the leader; only on the leader.
    pub quorum_silent: Option<Duration>,
}

/// Why an entry was not proposed, or is not known to be committed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead; nothing was appended.
    #[error("this node does not lead the group; {}", leader.as_ref().map_or("no leader is known".to_owned(), |leader| format!("{leader} does")))]
    NotLeader {
        /// Who does.
        leader: Option<NodeName>,
    },
    /// It lost the lead meanwhile: the entry may yet be committed, or never.
    #[error("the lead was lost before the entry was committed: its fate is unknown")]
    Unknown {
        /// Who leads now.
        leader: Option<NodeName>,
    },
    /// The group is not running here.
    #[error("the group is not running here: {cause}")]
    NotRunning {
        /// Why.
        cause: String,
    },
}

impl ProposeError {
    /// Whether proposing again, here or at the leader, is right: for everything but a group that has stopped.
    pub fn retryable(&self) -> bool {
        !matches!(self, Self::NotRunning { .. })
    }
}

/// Why there is no read index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadIndexError {
    /// This node does not lead.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who does.
        leader: Option<NodeName>,
    },
    /// No majority answered.
    #[error("no majority confirmed the lead: {cause}")]
    NoQuorum {
        /// What openraft said.
        cause: String,
    },
    /// The group is not running here.
    #[error("the group is not running here: {cause}")]
    NotRunning {
        /// Why.
        cause: String,
    },
}

impl ReadIndexError {
    /// Whether asking again, here or at the leader, can succeed.
    pub fn retryable(&self) -> bool {
        !matches!(self, Self::NotRunning { .. })
    }
}

/// What became of a directory that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It is in force from this log index on, unless the entry refused it.
    Proposed(u64),
    /// This version or a newer one is in force already.
    InForce(u64),
}

struct Inner {
    options: GroupOptions,
    store: GroupStore,
    peers: Arc<dyn PeerCaller>,
    seams: Seams,
    seen: Arc<SeenPeers>,
    raft_id: u64,
    raft: OnceLock<Openraft>,
    news: Mutex<Option<mpsc::UnboundedSender<Applied>>>,
    stage: watch::Sender<Stage>,
    leadership: watch::Sender<Leadership>,
    replayed: watch::Sender<bool>,
    stop: CancellationToken,
}

/// One group on this node. Cheap to clone.
#[derive(Clone)]
pub struct Group(Arc<Inner>);

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("group", &self.0.options.group).finish_non_exhaustive()
    }
}

impl Group {
    /// Opens the group over its store and gives what is applied from now on; what was applied before is in the store.
    /// It starts in the background: see [`Group::stage`]. Probes are answered at once.
    ///
    /// The Raft ids of the founding voters are 1 to n in the order of their names; a node keeps its id in its store.
    ///
    /// Errors: [`GroupError`].
    pub async fn open(
        options: GroupOptions,
        store: GroupStore,
        peers: Arc<dyn PeerCaller>,
        seams: Seams,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Applied>), GroupError> {
        let raft_id = own_id(&options, &store).await?;
        let (news, receiver) = mpsc::unbounded_channel();
        let inner = Inner {
            seen: Arc::new(SeenPeers::new(store.clone())),
            raft_id,
            raft: OnceLock::new(),
            news: Mutex::new(Some(news)),
            stage: watch::Sender::new(Stage::Starting("it reads its store".to_owned())),
            leadership: watch::Sender::default(),
            replayed: watch::Sender::new(false),
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

    /// Proposes a directory when its version is newer than the one in force (R8). Errors: [`ProposeError`].
    pub async fn offer_directory(&self, directory: DirectoryOp, version: u64) -> Result<Offer, ProposeError> {
        let in_force = self.0.store.progress().borrow().directory_version;
        if version <= in_force {
            return Ok(Offer::InForce(in_force));
        }
        // Group time stays as it is: an entry's time never takes it back.
        self.propose(&Entry::founding(directory)).await.map(Offer::Proposed)
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

    /// On the leader: asks a member that has the whole log to take the lead, before this node ends. Does not wait.
    pub async fn hand_over(&self) {
        let Some(raft) = self.0.raft.get() else { return };
        let status = self.status();
        let best = status
            .members
            .iter()
            .filter(|member| member.voter && member.raft_id != self.0.raft_id)
            .max_by_key(|member| member.matched);
        if let (Role::Leader, Some(best)) = (status.role, best)
            && let Err(error) = raft.trigger().transfer_leader(best.raft_id).await
        {
            tracing::debug!(%error, "the lead was not handed over; the others will elect");
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

    /// What the store says of this node's past in the group.
    fn own(&self) -> Result<Own, GroupError> {
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

    async fn start(&self, own: Own) -> Result<(), GroupError> {
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
                        "{}: {evidence}. This store was restored from an older copy and must not vote; move its folder away \
                         and have the node admitted anew",
                        answer.node
                    );
                    self.alarm(ALARM_RESTORED, &text).await?;
                    return Ok(Some(text));
                }
            }
            let missing: Vec<String> =
                self.others().filter(|node| !answers.contains_key(*node)).map(ToString::to_string).collect();
            if missing.is_empty() {
                self.0.store.write(vec![Mutation::Clear { name: ALARM_UNASKED.to_owned() }]).await?;
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
        tracing::warn!(alarm = name, "{text}");
        let row = AlarmRow { since: self.0.seams.clock.now(), text: text.to_owned() };
        Ok(self.0.store.write(vec![Mutation::Raise { name: name.to_owned(), row }]).await?)
    }

    /// Founds the group, or waits until a leader brings its membership here.
    async fn found(&self) -> Result<(), GroupError> {
        let inner = &self.0;
        let mut alarmed = false;
        loop {
            if self.knows_members() {
                if alarmed {
                    inner.store.write(vec![Mutation::Clear { name: ALARM_UNKNOWN.to_owned() }]).await?;
                }
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
                        "the group exists ({by} has its log) and does not know this store: the node lost its data and must be \
                         admitted anew"
                    );
                    if !alarmed {
                        alarmed = true;
                        self.alarm(ALARM_UNKNOWN, &text).await?;
                    }
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
            election_timeout_min: milliseconds(inner.options.election.0),
            election_timeout_max: milliseconds(inner.options.election.1),
            heartbeat_interval: milliseconds(inner.options.heartbeat),
            enable_pre_vote: Some(true),
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
async fn follow(inner: std::sync::Weak<Inner>, raft: Openraft, stop: CancellationToken) {
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
        let Some(inner) = inner.upgrade() else { return };
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

fn founding_id(voters: &[NodeName], node: &NodeName) -> Option<u64> {
    let place = voters.iter().position(|voter| voter == node)?;
    u64::try_from(place).ok().map(|place| place + 1)
}

/// This node's Raft id: from its store, or, for a founding voter, from the order of names.
async fn own_id(options: &GroupOptions, store: &GroupStore) -> Result<u64, GroupError> {
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
