//! Messages between the members of a group: who may speak for whom, and what is remembered of the others.
//!
//! Owns the boundary to whatever carries the messages ([`PeerCaller`]). Must not know TLS or gRPC.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};

use super::codec::{self, Header};
use super::founding::ProbeAnswer;
use super::storage::{LogStore, no_snapshots};
use super::types::{Member, RaftSnapshot, TypeConfig, Vote};
use crate::core::id::{DestinationTag, Incarnation, NodeName, closed_list};
use crate::core::limits;
use crate::core::wire::{Reader, WireError, Writer};
use crate::seams::BoxFuture;
use crate::store::group::{GroupStore, Mutation, SeenRow};

/// Longest wait for an answer to appended entries: their fsync may queue behind others.
const APPEND_LIMIT: Duration = Duration::from_secs(3);

closed_list! {
    /// The kinds of consensus messages; their numbers are those of `RaftRequest.kind`.
    pub enum MessageKind: u32 {
        /// 1: asks for a vote.
        Vote = 1 "vote",
        /// 2: asks whether it would be given.
        PreVote = 2 "pre-vote",
        /// 3: appends entries, or none as a heartbeat.
        Append = 3 "append",
        /// 4: asks another member to stand for election at once.
        TransferLeader = 4 "transfer-leader",
    }
}

/// Why a peer gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It cannot be reached, or did not answer in time.
    #[error("{node} cannot be reached: {cause}")]
    Unreachable {
        /// Which node.
        node: NodeName,
        /// What the network said.
        cause: String,
    },
    /// It answered that it will not; another try gets the same answer until something changes there.
    #[error("{node} refuses: {cause}")]
    Refused {
        /// Which node.
        node: NodeName,
        /// What it said.
        cause: String,
    },
}

impl CallError {
    /// Whether the same call can succeed later by itself.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Carries calls to other nodes: gRPC in a node, memory in tests.
pub trait PeerCaller: Send + Sync + 'static {
    /// One consensus message and its answer.
    fn call<'a>(
        &'a self,
        to: &'a NodeName,
        group: DestinationTag,
        kind: MessageKind,
        payload: Bytes,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Bytes, CallError>>;

    /// Asks a node about itself and about this one (R12).
    fn probe<'a>(
        &'a self,
        to: &'a NodeName,
        group: DestinationTag,
        incarnation: Incarnation,
        limit: Duration,
    ) -> BoxFuture<'a, Result<ProbeAnswer, CallError>>;
}

/// Why a message from another node was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// A kind of message that this version does not know.
    #[error("consensus message of kind {kind} is unknown to this version")]
    UnknownKind {
        /// Its number.
        kind: u32,
    },
    /// Its bytes are wrong.
    #[error(transparent)]
    Field(#[from] WireError),
    /// It is for another life of this node's store: that one's votes and entries are not here.
    #[error("the message is for store {meant}, here is store {here}: this node must be admitted anew")]
    OtherIncarnation {
        /// The life that the sender means.
        meant: Incarnation,
        /// This one.
        here: Incarnation,
    },
    /// The node that called is not the member that it speaks for.
    #[error("{node} speaks for member {member}, which it is not")]
    NotTheMember {
        /// Who called.
        node: NodeName,
        /// For which Raft id.
        member: u64,
    },
    /// Consensus is not running on this node yet, or not any more.
    #[error("the group is not running here: {cause}")]
    NotRunning {
        /// Why.
        cause: String,
    },
}

impl HandleError {
    /// Whether the same message can be taken later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::NotRunning { .. })
    }
}

/// What a node remembers of the others, in memory and, when it changed, in the store (R12).
pub(super) struct SeenPeers {
    store: GroupStore,
    rows: Mutex<BTreeMap<NodeName, SeenRow>>,
    changed: Mutex<BTreeSet<NodeName>>,
}

impl SeenPeers {
    pub fn new(store: GroupStore) -> Self {
        Self { store, rows: Mutex::default(), changed: Mutex::default() }
    }

    /// What is remembered of a node.
    pub fn of(&self, node: &NodeName) -> SeenRow {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(row) = rows.get(node) {
            return *row;
        }
        // A store that cannot be read has told so; nothing remembered is no evidence.
        let row = self.store.snapshot().and_then(|snapshot| snapshot.seen(node)).ok().flatten().unwrap_or_default();
        rows.insert(node.clone(), row);
        row
    }

    /// Remembers a vote or a log id, if it is higher than what is remembered of this life of the node's store.
    pub fn note(&self, node: &NodeName, incarnation: Incarnation, term: u64, voted: bool, log: Option<(u64, u64)>) {
        let before = self.of(node);
        let mut row = match before.incarnation {
            Some(known) if known == incarnation.0 => before,
            _ => SeenRow { incarnation: Some(incarnation.0), ..SeenRow::default() },
        };
        if (term, voted) > (row.term, row.voted) {
            (row.term, row.voted) = (term, voted);
        }
        row.log = row.log.max(log);
        if row != before {
            self.rows.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone(), row);
            self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone());
        }
    }

    /// Hands what changed to the store. Called a few times a second rather than for every message: every entry changes it.
    pub fn keep(&self) {
        let changed = std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner));
        if changed.is_empty() {
            return;
        }
        let seen = changed.into_iter().map(|node| Mutation::Seen { row: self.of(&node), node }).collect();
        // A store that fails says so itself.
        self.store.submit(seen, Box::new(|_| {}));
    }
}

/// Which members do not answer: said when one falls silent and when it is back, not at every call.
pub(super) struct Silent {
    members: Mutex<BTreeSet<NodeName>>,
    leaving: Arc<AtomicBool>,
}

impl Silent {
    /// While `leaving` is set, this node ends, often together with the others: that they do not answer is no news then.
    pub fn new(leaving: Arc<AtomicBool>) -> Self {
        Self { members: Mutex::default(), leaving }
    }

    fn note(&self, node: &NodeName, outcome: Result<(), &CallError>) {
        let mut silent = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) if silent.remove(node) => tracing::info!("node {node} answers again"),
            Ok(()) => {}
            Err(error) => {
                let text = match error {
                    CallError::Unreachable { cause, .. } => format!("node {node} does not answer: {cause}"),
                    CallError::Refused { cause, .. } => format!("node {node} refuses: {cause}"),
                };
                match silent.insert(node.clone()) && !self.leaving.load(Ordering::Acquire) {
                    true => tracing::warn!("{text}"),
                    false => tracing::debug!("{text}"),
                }
            }
        }
    }
}

/// Makes connections to members for openraft.
#[derive(Clone)]
pub(super) struct PeerNetwork {
    pub peers: Arc<dyn PeerCaller>,
    pub group: DestinationTag,
    pub own_id: u64,
    pub own_incarnation: Incarnation,
    pub seen: Arc<SeenPeers>,
    pub log: LogStore,
    pub silent: Arc<Silent>,
}

impl RaftNetworkFactory<TypeConfig> for PeerNetwork {
    type Network = PeerConnection;

    async fn new_client(&mut self, target: u64, member: &Member) -> PeerConnection {
        PeerConnection { network: self.clone(), target, member: member.clone() }
    }
}

/// One member, as openraft calls it.
pub(super) struct PeerConnection {
    network: PeerNetwork,
    target: u64,
    member: Member,
}

type RpcError = RPCError<TypeConfig>;

fn field(error: WireError) -> RpcError {
    RPCError::Network(NetworkError::from_string(error))
}

impl PeerConnection {
    async fn call(
        &self,
        kind: MessageKind,
        limit: Duration,
        put: impl FnOnce(&mut Writer) -> Result<(), WireError>,
    ) -> Result<Bytes, RpcError> {
        let (Some(name), Some(to_incarnation)) = (&self.member.name, self.member.incarnation) else {
            let text = format!("member {} has no name", self.target);
            return Err(RPCError::Unreachable(Unreachable::from_string(text)));
        };
        let header = Header {
            from: self.network.own_id,
            from_incarnation: self.network.own_incarnation,
            to_incarnation,
            durable: self.network.log.durable(),
        };
        let mut payload = Writer::default();
        header.put(&mut payload);
        put(&mut payload).map_err(field)?;
        let call = self.network.peers.call(name, self.network.group, kind, payload.finish().into(), limit);
        let outcome = call.await;
        self.network.silent.note(name, outcome.as_ref().map(drop));
        outcome.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
    }

    /// Remembers what the member's answer says about its vote and log.
    fn note(&self, term: u64, voted: bool, log: Option<(u64, u64)>) {
        if let (Some(name), Some(incarnation)) = (&self.member.name, self.member.incarnation) {
            self.network.seen.note(name, incarnation, term, voted, log);
        }
    }
}

fn finished<T>(answer: &Bytes, read: impl FnOnce(&mut Reader<'_>) -> Result<T, WireError>) -> Result<T, RpcError> {
    let mut from = Reader::new(answer);
    let value = read(&mut from).map_err(field)?;
    from.finish("answer").map_err(field)?;
    Ok(value)
}

impl RaftNetworkV2<TypeConfig> for PeerConnection {
    type SnapshotData = ();

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let limit = if request.entries.is_empty() { option.hard_ttl() } else { APPEND_LIMIT.max(option.hard_ttl()) };
        let answer = self.call(MessageKind::Append, limit, |to| codec::put_append(to, &request)).await?;
        let answer = finished(&answer, codec::append_answer)?;
        let matched = match &answer {
            AppendEntriesResponse::Success => request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id),
            AppendEntriesResponse::PartialSuccess(id) => *id,
            AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => None,
        };
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            let log = matched.map(|id| (id.leader_id.term, id.index));
            self.note(request.vote.leader_id.term, true, log);
        }
        Ok(answer)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let put = |to: &mut Writer| {
            codec::put_vote_request(to, &request);
            Ok(())
        };
        let answer = self.call(MessageKind::Vote, option.hard_ttl(), put).await?;
        let answer = finished(&answer, codec::vote_answer)?;
        self.note(answer.vote.leader_id.term, true, None);
        Ok(answer)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let put = |to: &mut Writer| {
            codec::put_vote_request(to, &request);
            Ok(())
        };
        let answer = self.call(MessageKind::PreVote, option.hard_ttl(), put).await?;
        finished(&answer, codec::vote_answer)
    }

    async fn full_snapshot(
        &mut self,
        _: Vote,
        _: RaftSnapshot,
        _: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(StreamingError::Unreachable(Unreachable::new(&no_snapshots())))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let json = serde_json::to_vec(&request).map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
        let put = |to: &mut Writer| {
            to.long_bytes(&json);
            Ok(())
        };
        let answer = self.call(MessageKind::TransferLeader, option.hard_ttl(), put).await?;
        serde_json::from_slice(&answer).map_err(|error| RPCError::Network(NetworkError::new(&error)))
    }
}

/// One message, read and checked as far as it can be without knowing the group.
pub(super) enum Message {
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    Append(AppendEntriesRequest<TypeConfig>),
    TransferLeader(TransferLeaderRequest<TypeConfig>),
}

impl Message {
    /// Reads a message of this kind.
    pub fn read(kind: MessageKind, payload: &[u8]) -> Result<(Header, Self), WireError> {
        let mut from = Reader::new(payload);
        let header = Header::read(&mut from)?;
        let message = match kind {
            MessageKind::Vote => Self::Vote(codec::vote_request(&mut from)?),
            MessageKind::PreVote => Self::PreVote(codec::vote_request(&mut from)?),
            MessageKind::Append => Self::Append(codec::append(&mut from)?),
            MessageKind::TransferLeader => {
                let bytes = from.long_bytes(limits::RPC_BYTES, "transfer of leadership")?;
                let wrong = |_| WireError::Invalid { field: "transfer of leadership", expected: "its JSON" };
                Self::TransferLeader(serde_json::from_slice(bytes).map_err(wrong)?)
            }
        };
        from.finish("consensus message")?;
        Ok((header, message))
    }

    /// The term in it and whose it is; none where that is not the sender's own.
    pub fn claim(&self) -> Option<(u64, u64)> {
        match self {
            Self::Vote(request) | Self::PreVote(request) => {
                Some((request.vote.leader_id.term, request.vote.leader_id.node_id))
            }
            Self::Append(request) => Some((request.vote.leader_id.term, request.vote.leader_id.node_id)),
            Self::TransferLeader(_) => None,
        }
    }
}
