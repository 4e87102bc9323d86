//! The Peer service: consensus messages, reports, and the data that other nodes of a group lack. Every call is checked
//! against the directory before anything is looked up (R25).
//!
//! Must not decide anything: it converts, checks who asks, and hands on.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::alarms;
use super::group::{AllServed, GroupContext, Served};
use crate::core::decide::{Manifest, Report, Staged, View};
use crate::core::directory::Directory;
use crate::core::id::{DestinationTag, NodeName, Position, Suite, Time};
use crate::core::seal::custody::{GrantScope, StorageKey, grant};
use crate::core::seal::suite::{HpkePublic, WRAP_RANDOMNESS_BYTES, enc_bytes};
use crate::core::sign::PublicKey;
use crate::rpc::access::Gate;
use crate::rpc::proto::fetch_body_response::Part;
use crate::rpc::proto::{self, Answer};
use crate::rpc::{convert, proto::peer_server::Peer};
use crate::store::StoreError;
use crate::store::group::{Body, Snapshot};

/// Bytes of a body in one message.
const PART_BYTES: usize = 512 * 1024;
/// Messages that wait for a slow asker.
const AHEAD: usize = 2;

/// Answers other nodes.
#[derive(Clone)]
pub struct PeerService {
    gate: Gate,
    served: AllServed,
    operator: PublicKey,
}

/// A store that cannot be read, as an answer: the node stops by itself, so another one is to be asked.
pub(super) fn unavailable(error: StoreError) -> Status {
    Status::unavailable(format!("this node's store: {error}"))
}

impl PeerService {
    /// Answers for these destinations.
    pub fn new(gate: Gate, served: AllServed, operator: PublicKey) -> Self {
        Self { gate, served, operator }
    }

    /// The caller, a voter of the group, and the group on this node.
    fn member<T>(
        &self,
        request: &Request<T>,
        group: &[u8],
        field: &'static str,
    ) -> Result<(NodeName, &Served), Status> {
        let tag: DestinationTag = convert::group(group, field)?;
        let (node, destination) = self.gate.member(request, &tag)?;
        let served = self.served.get(&destination.name);
        let served = served.filter(|served| served.context.tag == tag);
        let missing = || Status::unavailable(format!("destination {} is not served here (yet)", destination.name));
        Ok((node, served.ok_or_else(missing)?))
    }
}

type BodyStream = Pin<Box<dyn Stream<Item = Result<proto::FetchBodyResponse, Status>> + Send>>;

fn leader_of(served: &Served) -> Option<String> {
    served.group.leadership().borrow().leader.as_ref().map(ToString::to_string)
}

#[tonic::async_trait]
impl Peer for PeerService {
    type FetchBodyStream = BodyStream;

    async fn raft_call(&self, request: Request<proto::RaftRequest>) -> Result<Response<proto::RaftResponse>, Status> {
        let (node, served) = self.member(&request, &request.get_ref().group, "RaftRequest.group")?;
        let request = request.into_inner();
        let payload = served.group.handle(&node, request.kind, &request.payload).await?;
        Ok(Response::new(proto::RaftResponse { payload }))
    }

    async fn probe(&self, request: Request<proto::ProbeRequest>) -> Result<Response<proto::ProbeResponse>, Status> {
        let (node, served) = self.member(&request, &request.get_ref().group, "ProbeRequest.group")?;
        let incarnation = convert::incarnation(&request.get_ref().incarnation, "ProbeRequest.incarnation")?;
        let answer = served.group.probe(&node, incarnation);
        let answer = answer.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(answer.into()))
    }

    async fn report(&self, request: Request<proto::ReportRequest>) -> Result<Response<proto::ReportResponse>, Status> {
        let (node, served) = self.member(&request, &request.get_ref().group, "ReportRequest.group")?;
        let report = report(request.into_inner(), node)?;
        let wanted = served.desk.report(report);
        let (leader, term) = {
            let state = served.group.leadership();
            let state = state.borrow();
            (state.leader.as_ref().map(ToString::to_string), state.term)
        };
        Ok(Response::new(proto::ReportResponse {
            leader,
            term,
            taken: wanted.is_some(),
            wanted_manifests: wanted
                .unwrap_or_default()
                .into_iter()
                .map(|digest| Bytes::copy_from_slice(&digest.0))
                .collect(),
            directory_version: served.context.store.progress().borrow().directory_version,
        }))
    }

    async fn fetch_manifest(
        &self,
        request: Request<proto::FetchManifestRequest>,
    ) -> Result<Response<proto::FetchManifestResponse>, Status> {
        let (_, served) = self.member(&request, &request.get_ref().group, "FetchManifestRequest.group")?;
        let request = request.get_ref();
        let digest = convert::digest(&request.digest, "FetchManifestRequest.digest")?;
        let manifest_digest = convert::digest(&request.manifest_digest, "FetchManifestRequest.manifest_digest")?;
        let row = served.context.store.snapshot().and_then(|snapshot| snapshot.staged(&digest)).map_err(unavailable)?;
        let found = row.filter(|row| row.manifest_digest == manifest_digest);
        Ok(Response::new(match found {
            Some(row) => proto::FetchManifestResponse {
                answer: Answer::Found.into(),
                manifest: Bytes::from(row.manifest.encode()),
            },
            None => proto::FetchManifestResponse { answer: Answer::NotFound.into(), manifest: Bytes::new() },
        }))
    }

    async fn fetch_body(
        &self,
        request: Request<proto::FetchBodyRequest>,
    ) -> Result<Response<Self::FetchBodyStream>, Status> {
        let (node, served) = self.member(&request, &request.get_ref().group, "FetchBodyRequest.group")?;
        let request = request.get_ref();
        let (give, take) = mpsc::channel(AHEAD);
        match look_up(&self.gate.directory(), served, &node, request)? {
            Err((answer, text)) => {
                let miss = proto::Miss { answer: answer.into(), text };
                // The channel has room for the only message.
                let _ = give.try_send(Ok(proto::FetchBodyResponse { part: Some(Part::Miss(miss)) }));
            }
            Ok((start, body)) => {
                let (context, offset) = (served.context.clone(), start.offset);
                let _ = give.try_send(Ok(proto::FetchBodyResponse { part: Some(Part::Start(start)) }));
                tokio::spawn(send_body(context, body, offset, give));
            }
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(take))))
    }

    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexResponse>, Status> {
        let (_, served) = self.member(&request, &request.get_ref().group, "ReadIndexRequest.group")?;
        let index = served.group.read_index().await.ok();
        Ok(Response::new(proto::ReadIndexResponse { index, leader: leader_of(served) }))
    }

    async fn offer_directory(
        &self,
        request: Request<proto::OfferDirectoryRequest>,
    ) -> Result<Response<proto::OfferDirectoryResponse>, Status> {
        let (_, served) = self.member(&request, &request.get_ref().group, "OfferDirectoryRequest.group")?;
        let in_force = served.context.in_force.borrow().clone();
        let directory = Directory::verify(&request.get_ref().directory, &self.operator, 1)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let directory = Arc::new(directory);
        let taken = match directory.check_successor_of(&in_force) {
            // The desk takes also what the group could not go on under: it says so with an alarm and never proposes it.
            Ok(()) => {
                let keeps = directory.check_keeps(&in_force, &served.context.destination).is_ok();
                served.desk.offer(&directory) && keeps
            }
            Err(_) => directory.bytes() == in_force.bytes(),
        };
        Ok(Response::new(proto::OfferDirectoryResponse {
            leader: leader_of(served),
            taken,
            version_in_force: in_force.version,
        }))
    }

    async fn acknowledge(
        &self,
        request: Request<proto::AcknowledgeRequest>,
    ) -> Result<Response<proto::AcknowledgeResponse>, Status> {
        let (node, served) = self.member(&request, &request.get_ref().group, "AcknowledgeRequest.group")?;
        let (own, alarm) = (&served.context.node, &request.get_ref().alarm);
        if node != *own {
            return Err(Status::permission_denied(format!("only node {own} itself acknowledges what it raised")));
        }
        if !alarms::needs_a_person(alarm) {
            let text =
                format!("alarm {alarm} ends by itself when its reason does: `sealcast node status` says what to do");
            return Err(Status::failed_precondition(text));
        }
        let stood = served.context.alarms.acknowledge(alarm).await.map_err(unavailable)?;
        Ok(Response::new(proto::AcknowledgeResponse { stood }))
    }
}

/// A report as the tally takes it. Errors: INVALID_ARGUMENT with the field; PERMISSION_DENIED for another's name.
fn report(request: proto::ReportRequest, node: NodeName) -> Result<Report, Status> {
    if convert::node(&request.node, "ReportRequest.node")? != node {
        return Err(Status::permission_denied(format!("node {node} reports as {}", request.node)));
    }
    let staged = request.staged.into_iter().map(|staged| {
        let manifest = staged.manifest.map(|bytes| Manifest::decode(&bytes).map(Arc::new)).transpose();
        Ok(Staged {
            parcel: convert::parcel(&staged.parcel, "Staged.parcel")?,
            digest: convert::digest(&staged.digest, "Staged.digest")?,
            manifest_digest: convert::digest(&staged.manifest_digest, "Staged.manifest_digest")?,
            manifest: manifest.map_err(|error| Status::invalid_argument(format!("Staged.manifest: {error}")))?,
        })
    });
    Ok(Report {
        node,
        incarnation: convert::incarnation(&request.incarnation, "ReportRequest.incarnation")?,
        clock: Time(request.clock_ms),
        held: convert::required(request.held, "ReportRequest.held")?.into(),
        number: request.number,
        last: request.last,
        staged: staged.collect::<Result<_, Status>>()?,
    })
}

type Found = (proto::BodyStart, Body);

/// The body, if the asker may have it: now (it is a voter: checked before), and at the directory in force at the position.
fn look_up(
    newest: &Directory,
    served: &Served,
    asker: &NodeName,
    request: &proto::FetchBodyRequest,
) -> Result<Result<Found, (Answer, String)>, Status> {
    let context = &served.context;
    let sender = convert::sender(&request.sender, "FetchBodyRequest.sender")?;
    let transaction = convert::transaction(&request.transaction, "FetchBodyRequest.transaction")?;
    let digest = convert::digest(&request.digest, "FetchBodyRequest.digest")?;
    let ciphertext_digest = convert::digest(&request.ciphertext_digest, "FetchBodyRequest.ciphertext_digest")?;
    let position: Position = convert::required(request.position, "FetchBodyRequest.position")?.into();
    let snapshot = context.store.snapshot().map_err(unavailable)?;
    if snapshot.applied() < position.index {
        return Ok(Err((Answer::Unavailable, "this node has not applied that position".to_owned())));
    }
    let then = directory_at(&snapshot, position).map_err(unavailable)?;
    let allowed = then
        .and_then(|directory| Some(directory.destinations.get(&context.destination)?.has_node(asker)))
        .unwrap_or(false);
    if !allowed {
        let text = format!("node {asker} was no voter at {position}");
        return Ok(Err((Answer::NotPermitted, text)));
    }
    let row = snapshot.transaction(&sender, transaction).map_err(unavailable)?;
    let named = row.filter(|row| {
        row.is_committed()
            && row.digest == digest
            && row.ciphertext_digest == ciphertext_digest
            && row.position == position
    });
    let Some(row) = named else {
        return Ok(Err((Answer::NotFound, format!("no such transaction is committed at {position}"))));
    };
    let Some(body) = snapshot.body(&row.digest, row.index).map_err(unavailable)? else {
        return Ok(Err((Answer::Unavailable, "its body is missing here too".to_owned())));
    };
    if request.offset > body.length {
        return Err(Status::out_of_range(format!("the body has {} bytes", body.length)));
    }
    let entry = newest.nodes.get(asker).ok_or_else(|| Status::permission_denied("no node of the directory"))?;
    let damaged = |error: &dyn std::fmt::Display| Status::unavailable(format!("the key here is damaged: {error}"));
    let key = StorageKey::new(*context.keys.storage())
        .unwrap(&context.node, &row.digest, &row.transaction, &body.wrapped_key)
        .map_err(|error| damaged(&error))?;
    let scope = GrantScope {
        environment: newest.environment,
        destination: context.tag,
        transaction,
        parcel: digest,
        requester: entry.signing.bytes(),
    };
    let randomness: [u8; WRAP_RANDOMNESS_BYTES] =
        context.seams.randomness.array().map_err(|error| Status::unavailable(error.to_string()))?;
    let to = HpkePublic::from_bytes(Suite::XWing, &entry.hpke)
        .map_err(|error| Status::failed_precondition(format!("the HPKE key of node {asker}: {error}")))?;
    let granted = Bytes::from(grant(&to, &scope, &key, &randomness).map_err(|error| damaged(&error))?);
    let start = proto::BodyStart {
        ciphertext_bytes: body.length,
        offset: request.offset,
        enc: granted.slice(..enc_bytes(Suite::XWing).min(granted.len())),
        wrapped_key: granted.slice(enc_bytes(Suite::XWing).min(granted.len())..),
        suite: Suite::XWing.number().into(),
        position: Some(row.position.into()),
    };
    Ok(Ok((start, body)))
}

/// The directory that was in force at a position.
pub(super) fn directory_at(snapshot: &Snapshot, position: Position) -> Result<Option<Arc<Directory>>, StoreError> {
    let versions = snapshot.directory_versions()?;
    match versions.iter().rev().find(|(_, from)| *from <= position.index) {
        Some((version, _)) => snapshot.directory_version(*version),
        None => Ok(None),
    }
}

async fn send_body(
    context: Arc<GroupContext>,
    body: Body,
    mut at: u64,
    give: mpsc::Sender<Result<proto::FetchBodyResponse, Status>>,
) {
    while at < body.length {
        let reader = body.reader.clone();
        let message = match context.seams.work.run(move || reader.read(at, PART_BYTES)).await {
            Ok(Ok(part)) if !part.is_empty() => {
                at += part.len() as u64;
                Ok(proto::FetchBodyResponse { part: Some(Part::Data(part)) })
            }
            Ok(Ok(_)) => Err(Status::data_loss("the body is shorter here than its row says")),
            Ok(Err(error)) => Err(unavailable(error)),
            Err(error) => Err(Status::unavailable(error.to_string())),
        };
        let failed = message.is_err();
        // An asker that went away needs nothing more.
        if give.send(message).await.is_err() || failed {
            return;
        }
    }
}
