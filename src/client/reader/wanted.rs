//! What a feed was begun with, asked of nodes: the call that begins it, or goes on behind what was given, and a stream's first
//! message, by which the node is chosen.
//!
//! Must not read further, nor choose the node (that is `ask`).

use bytes::Bytes;
use tonic::{Status, Streaming};

use super::committed::Committed;
use super::subscription::Subscription;
use super::{ANSWER_WITHIN, Channelled, Freshness, ReadError, Reader, missed};
use crate::core::id::{DestinationName, DestinationTag, NodeName, Position, TransactionId};
use crate::rpc::proto;

/// What a feed was begun with.
#[derive(Debug, Clone)]
pub(super) enum Wanted {
    One { transaction: TransactionId, destination: Option<DestinationName>, freshness: Freshness },
    Key { destination: DestinationName, key: Bytes, history: bool, freshness: Freshness },
    All { destination: DestinationName, group: DestinationTag, subscription: Subscription },
}

/// A node's stream, with its first message; `None` when it ended without one.
pub(super) type Begun = (Option<proto::ReadResponse>, Streaming<proto::ReadResponse>);

async fn begin(response: tonic::Response<Streaming<proto::ReadResponse>>) -> Result<Begun, Status> {
    let mut stream = response.into_inner();
    Ok((stream.message().await?, stream))
}

/// Why a stream gives nothing, if its first message says so.
fn gives_nothing(node: &NodeName, (first, _): &Begun) -> Option<ReadError> {
    match first.as_ref()?.part.as_ref()? {
        proto::read_response::Part::Miss(miss) => Some(missed(node, miss)),
        _ => None,
    }
}

fn get(transaction: TransactionId, destination: Option<&DestinationName>, freshness: Freshness) -> proto::GetRequest {
    proto::GetRequest {
        transaction: Bytes::copy_from_slice(&transaction.to_bytes()),
        destination: destination.map(ToString::to_string),
        freshness: Some(freshness.message()),
        ..Default::default()
    }
}

/// Begins what is wanted behind a cursor, at another node than the one that is to be left, if there is one. Errors:
/// [`ReadError`].
pub(super) async fn open(
    reader: &Reader,
    wanted: &Wanted,
    cursor: Option<Position>,
    leave: Option<&NodeName>,
) -> Result<(NodeName, Begun), ReadError> {
    // A node that is behind would give less than what was given already.
    let fresh = |freshness: &Freshness| Freshness { at_least: freshness.at_least.max(cursor), ..*freshness };
    match wanted {
        Wanted::One { transaction, destination, freshness } => {
            let request = get(*transaction, destination.as_ref(), *freshness);
            let call = |mut client: Channelled| {
                let request = request.clone();
                async move { begin(client.get(request).await?).await }
            };
            reader.ask(destination.as_ref(), leave, freshness.patience(), call, gives_nothing).await
        }
        Wanted::Key { destination, key, history, freshness } => {
            let freshness = fresh(freshness);
            let request = proto::GetByKeyRequest {
                destination: destination.to_string(),
                key: key.clone(),
                history: *history,
                freshness: Some(freshness.message()),
                after: cursor.map(Into::into),
                ..Default::default()
            };
            let call = |mut client: Channelled| {
                let request = request.clone();
                async move { begin(client.get_by_key(request).await?).await }
            };
            reader.ask(Some(destination), leave, freshness.patience(), call, gives_nothing).await
        }
        Wanted::All { destination, group, subscription } => {
            let mut subscription = subscription.clone();
            if let Some(cursor) = cursor {
                subscription.from = super::From::After(cursor);
                subscription.freshness = Freshness { linearizable: false, ..fresh(&subscription.freshness) };
            }
            let request = subscription.request(destination, *group)?;
            let call = |mut client: Channelled| {
                let request = request.clone();
                async move { begin(client.subscribe(request).await?).await }
            };
            let patience = subscription.freshness.patience() + ANSWER_WITHIN;
            reader.ask(Some(destination), leave, patience, call, gives_nothing).await
        }
    }
}

/// Begins the rest of a transaction of which so many bytes were given, `bare` without its payload. Errors: [`ReadError`].
pub(super) async fn open_rest(
    reader: &Reader,
    committed: &Committed,
    given: u64,
    bare: bool,
    leave: Option<&NodeName>,
) -> Result<(NodeName, Begun), ReadError> {
    let freshness = Freshness { at_least: Some(committed.position), ..Freshness::default() };
    let destination = Some(&committed.ticket.destination);
    let request = proto::GetRequest {
        sender: Some(committed.sender.to_string()),
        offset: given,
        metadata_only: bare,
        ..get(committed.ticket.transaction, destination, freshness)
    };
    let call = |mut client: Channelled| {
        let request = request.clone();
        async move { begin(client.get(request).await?).await }
    };
    reader.ask(destination, leave, freshness.patience(), call, gives_nothing).await
}
