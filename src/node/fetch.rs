//! Fetches the body of a committed transaction that is missing here: by digest, from any member of the group, with K_tx
//! wrapped to this node (R11). What comes is checked against the manifest's digests and commitment before it is kept.
//!
//! Owns one fetch. Must not decide when one is needed, nor open what is sealed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tonic::Status;

use super::NodeError;
use super::group::GroupContext;
use crate::core::decide::Row;
use crate::core::id::NodeName;
use crate::core::seal::custody::{GrantScope, NONCE_BYTES, StorageKey, accept_grant};
use crate::core::seal::keys::TransactionKey;
use crate::rpc::client::{Dialer, explain};
use crate::rpc::{convert, proto};
use crate::store::bodies::BodyWriter;
use crate::store::group::NewBody;
use crate::telemetry::labels::FetchOutcome;
use crate::telemetry::names;

/// Longest wait for the next message of a body.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a member did not give a body.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The call failed; what was received is kept for the next attempt.
    #[error("{node}: {}", explain(.cause))]
    Call {
        /// Whom was asked.
        node: NodeName,
        /// What went wrong.
        cause: Box<Status>,
    },
    /// The member has nothing to give.
    #[error("{node}: {answer:?}: {text}")]
    Miss {
        /// Whom was asked.
        node: NodeName,
        /// Its answer.
        answer: proto::Answer,
        /// Its reason.
        text: String,
    },
    /// What came is not what the log names: the member's disk is damaged, or it lies.
    #[error("{node}: {what}")]
    Damaged {
        /// Whom was asked.
        node: NodeName,
        /// What is wrong.
        what: String,
    },
    /// This node's own trouble.
    #[error(transparent)]
    Own(#[from] NodeError),
}

impl FetchError {
    /// Whether asking again, or another member, can help.
    pub fn retryable(&self) -> bool {
        !matches!(self, Self::Own(_))
    }

    fn outcome(&self) -> FetchOutcome {
        match self {
            Self::Call { .. } | Self::Own(_) => FetchOutcome::Unavailable,
            Self::Damaged { .. } => FetchOutcome::Damaged,
            Self::Miss { answer, .. } => match answer {
                proto::Answer::NotFound => FetchOutcome::NotFound,
                proto::Answer::Purged => FetchOutcome::Purged,
                proto::Answer::NotPermitted => FetchOutcome::NotPermitted,
                _ => FetchOutcome::Unavailable,
            },
        }
    }
}

/// What an attempt left behind, for the next one to go on with.
#[derive(Default)]
pub struct Begun(Option<BodyWriter>);

impl Begun {
    fn length(&self) -> u64 {
        self.0.as_ref().map_or(0, BodyWriter::length)
    }
}

/// Asks the others for a body, one after the other, until one gives it; then it is durable here. `begun` is kept by the
/// caller from attempt to attempt. Errors: those of all members that were asked, in that order; never empty.
pub async fn fetch(
    context: &Arc<GroupContext>,
    dialer: &Dialer,
    row: &Row,
    begun: &mut Begun,
    first: Option<&NodeName>,
) -> Result<(), Vec<FetchError>> {
    let directory = context.in_force.borrow().clone();
    let members = directory.destinations.get(&context.destination).map(|entry| entry.nodes.clone()).unwrap_or_default();
    // The leader has what it proposed more often than not; the rest in an order that spreads the load by transaction.
    let mut others: Vec<NodeName> = members.into_iter().filter(|node| *node != context.node).collect();
    if others.is_empty() {
        return Err(vec![FetchError::Miss {
            node: context.node.clone(),
            answer: proto::Answer::Unavailable,
            text: "the directory lists no other node for this destination".to_owned(),
        }]);
    }
    let turn = row.position.number as usize % others.len();
    others.rotate_left(turn);
    others.sort_by_key(|node| Some(node) != first);
    let mut errors = Vec::new();
    for node in others {
        let resumed = begun.length() > 0;
        let mut outcome = from(context, dialer, row, begun, &node).await;
        if resumed && begun.length() == 0 && matches!(outcome, Err(FetchError::Damaged { .. })) {
            // What another member began may be what is wrong with it: this one gets the chance to give all of it.
            outcome = from(context, dialer, row, begun, &node).await;
        }
        let word = outcome.as_ref().map_or_else(FetchError::outcome, |()| FetchOutcome::Found).word();
        context.meter.count_as(names::HOLD_FETCHED, "outcome", word);
        match outcome {
            Ok(()) => return Ok(()),
            Err(error) => {
                let (parcel, destination) = (row.parcel, &context.destination);
                tracing::debug!(transaction = %row.transaction, %parcel, %destination, reason = word, %error, "a body was not fetched");
                let own = matches!(error, FetchError::Own(_));
                errors.push(error);
                if own {
                    break;
                }
            }
        }
    }
    Err(errors)
}

async fn from(
    context: &Arc<GroupContext>,
    dialer: &Dialer,
    row: &Row,
    begun: &mut Begun,
    node: &NodeName,
) -> Result<(), FetchError> {
    let failed = |cause: Status| FetchError::Call { node: node.clone(), cause: Box::new(cause) };
    let damaged = |what: String| FetchError::Damaged { node: node.clone(), what };
    let offset = begun.length();
    let request = proto::FetchBodyRequest {
        group: Bytes::copy_from_slice(&context.tag.0),
        sender: row.sender.to_string(),
        transaction: Bytes::copy_from_slice(&row.transaction.to_bytes()),
        digest: Bytes::copy_from_slice(&row.digest.0),
        ciphertext_digest: Bytes::copy_from_slice(&row.ciphertext_digest.0),
        offset,
        position: Some(row.position.into()),
    };
    let call = async {
        let mut peer = dialer.peer(node).map_err(|error| Status::unavailable(error.to_string()))?;
        peer.fetch_body(request).await
    };
    let mut stream = dialer.within(PATIENCE, call).await.map_err(failed)?.into_inner();
    let start = match next(dialer, &mut stream).await.map_err(failed)? {
        Some(proto::fetch_body_response::Part::Start(start)) => start,
        Some(proto::fetch_body_response::Part::Miss(miss)) => {
            let answer = convert::answer(miss.answer);
            return Err(FetchError::Miss { node: node.clone(), answer, text: miss.text });
        }
        _ => return Err(damaged("the answer does not begin as one".to_owned())),
    };
    if start.ciphertext_bytes != row.ciphertext_bytes || start.offset != offset {
        return Err(damaged(format!("it offers another length or place than {} from {offset}", row.ciphertext_bytes)));
    }
    let key = accept(context, row, &start).map_err(|error| damaged(error.to_string()))?;
    let mut writer = begun.0.take().unwrap_or_else(|| context.store.body_writer());
    loop {
        let part = match next(dialer, &mut stream).await {
            Ok(Some(proto::fetch_body_response::Part::Data(data))) => data,
            Ok(None) => break,
            Ok(Some(_)) => return Err(damaged("the body is interrupted by something else".to_owned())),
            Err(cause) => {
                *begun = Begun(Some(writer));
                return Err(failed(cause));
            }
        };
        if writer.length().saturating_add(part.len() as u64) > row.ciphertext_bytes {
            return Err(damaged(format!("more than {} bytes came", row.ciphertext_bytes)));
        }
        context.meter.count(names::HOLD_FETCHED_BYTES, part.len() as u64);
        let pushed = context.seams.work.run(move || writer.push(&part).map(|()| writer)).await;
        writer = pushed.map_err(NodeError::from)?.map_err(NodeError::from)?;
    }
    if writer.length() < row.ciphertext_bytes {
        *begun = Begun(Some(writer));
        return Err(failed(Status::unavailable("the stream ended before the body did")));
    }
    let finished = context.seams.work.run(move || writer.finish()).await;
    let body = finished.map_err(NodeError::from)?.map_err(NodeError::from)?;
    if body.digest != row.ciphertext_digest {
        return Err(damaged("the bytes have another digest than the log names".to_owned()));
    }
    let nonce: [u8; NONCE_BYTES] = context.seams.randomness.array().map_err(|error| FetchError::Call {
        node: context.node.clone(),
        cause: Box::new(Status::unavailable(error.to_string())),
    })?;
    let wrapped =
        StorageKey::new(*context.keys.storage()).wrap(&context.node, &row.digest, &row.transaction, &key, &nonce);
    let new = NewBody { index: row.index, body, wrapped_key: wrapped.to_vec() };
    context
        .store
        .keep_body(row.sender.clone(), row.transaction, row.digest, new)
        .await
        .map_err(|error| FetchError::Own(error.into()))
}

async fn next(
    dialer: &Dialer,
    stream: &mut tonic::Streaming<proto::FetchBodyResponse>,
) -> Result<Option<proto::fetch_body_response::Part>, Status> {
    match dialer.within(PATIENCE, stream.message()).await? {
        Some(message) => message.part.map(Some).ok_or_else(|| Status::internal("an empty message")),
        None => Ok(None),
    }
}

/// Opens the grant of K_tx and checks that it is the transaction's.
fn accept(
    context: &GroupContext,
    row: &Row,
    start: &proto::BodyStart,
) -> Result<TransactionKey, crate::core::seal::custody::CustodyError> {
    let scope = GrantScope {
        environment: context.in_force.borrow().environment,
        destination: context.tag,
        transaction: row.transaction,
        parcel: row.digest,
        requester: context.keys.signing().public().bytes(),
    };
    accept_grant(context.keys.hpke(), &scope, &row.tx_commit, &[&start.enc[..], &start.wrapped_key[..]].concat())
}
