//! Peers over gRPC.
//!
//! Owns the translation between the proto's messages and consensus. Must not decide anything.

use std::time::Duration;

use bytes::Bytes;
use tonic::Status;

use super::founding::{ProbeAnswer, SeenOfAsker};
use super::network::{CallError, HandleError, MessageKind, PeerCaller};
use crate::core::id::{DestinationTag, Incarnation, NodeName};
use crate::rpc::client::{DialError, Dialer};
use crate::rpc::convert::{self, ConvertError};
use crate::rpc::proto;
use crate::seams::BoxFuture;

/// Calls other nodes over their Peer service.
#[derive(Clone)]
pub struct RpcPeers {
    dialer: Dialer,
}

impl RpcPeers {
    /// Over these connections.
    pub fn new(dialer: Dialer) -> Self {
        Self { dialer }
    }
}

fn dial(node: &NodeName) -> impl FnOnce(DialError) -> CallError {
    let node = node.clone();
    move |error| CallError::Unreachable { node, cause: error.to_string() }
}

fn status(node: &NodeName) -> impl FnOnce(Status) -> CallError {
    let node = node.clone();
    move |status| {
        let cause = status.message().to_owned();
        match crate::rpc::client::retryable(&status) {
            true => CallError::Unreachable { node, cause },
            false => CallError::Refused { node, cause },
        }
    }
}

impl PeerCaller for RpcPeers {
    fn call<'a>(
        &'a self,
        to: &'a NodeName,
        group: DestinationTag,
        kind: MessageKind,
        payload: Bytes,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Bytes, CallError>> {
        Box::pin(async move {
            let mut peer = self.dialer.peer(to).map_err(dial(to))?;
            let request = proto::RaftRequest { group: Bytes::copy_from_slice(&group.0), kind: kind.number(), payload };
            let answer = self.dialer.within(limit, peer.raft_call(request)).await.map_err(status(to))?;
            Ok(answer.into_inner().payload)
        })
    }

    fn probe<'a>(
        &'a self,
        to: &'a NodeName,
        group: DestinationTag,
        incarnation: Incarnation,
        limit: Duration,
    ) -> BoxFuture<'a, Result<ProbeAnswer, CallError>> {
        Box::pin(async move {
            let mut peer = self.dialer.peer(to).map_err(dial(to))?;
            let request = proto::ProbeRequest {
                group: Bytes::copy_from_slice(&group.0),
                incarnation: Bytes::copy_from_slice(&incarnation.0),
            };
            let answer = self.dialer.within(limit, peer.probe(request)).await.map_err(status(to))?;
            ProbeAnswer::try_from(answer.into_inner())
                .map_err(|error| CallError::Refused { node: to.clone(), cause: error.to_string() })
        })
    }
}

impl From<ProbeAnswer> for proto::ProbeResponse {
    fn from(answer: ProbeAnswer) -> Self {
        Self {
            node: answer.node.as_str().to_owned(),
            incarnation: Bytes::copy_from_slice(&answer.incarnation.0),
            has_vote: answer.has_vote,
            has_log: answer.has_log,
            term: answer.term,
            last_index: answer.last_index,
            leader: answer.leader.map(|leader| leader.as_str().to_owned()),
            seen_term: answer.seen.term,
            seen_vote: answer.seen.voted,
            seen_index: answer.seen.log_index,
            asker_id: answer.asker_id,
            directory_version: answer.directory_version,
            last_term: answer.last_term,
            seen_index_term: answer.seen.log_term,
            leaving: answer.leaving,
        }
    }
}

impl TryFrom<proto::ProbeResponse> for ProbeAnswer {
    type Error = ConvertError;

    fn try_from(answer: proto::ProbeResponse) -> Result<Self, ConvertError> {
        Ok(Self {
            node: convert::node(&answer.node, "node")?,
            incarnation: convert::incarnation(&answer.incarnation, "incarnation")?,
            has_vote: answer.has_vote,
            has_log: answer.has_log,
            term: answer.term,
            last_index: answer.last_index,
            last_term: answer.last_term,
            leader: answer.leader.map(|leader| convert::node(&leader, "leader")).transpose()?,
            seen: SeenOfAsker {
                term: answer.seen_term,
                voted: answer.seen_vote,
                log_term: answer.seen_index_term,
                log_index: answer.seen_index,
            },
            asker_id: answer.asker_id,
            directory_version: answer.directory_version,
            leaving: answer.leaving,
        })
    }
}

impl From<HandleError> for Status {
    fn from(error: HandleError) -> Self {
        let text = error.to_string();
        match error {
            HandleError::UnknownKind { .. } => Self::unimplemented(text),
            HandleError::Field(_) => Self::invalid_argument(text),
            HandleError::OtherIncarnation { .. } => Self::failed_precondition(text),
            HandleError::NotTheMember { .. } => Self::permission_denied(text),
            HandleError::NotRunning { .. } => Self::unavailable(text),
        }
    }
}
