//! What a subscription gives: the committed rows behind a cursor, of the ordering keys and with the headers that were asked
//! for.
//!
//! Keys are looked up by their tags, so that a subscription to a few keys reads their rows alone. Headers are sealed: each
//! row's private header is opened here to compare them, and nothing of one that does not match leaves the node.
//!
//! Must not open anything itself (that is [`super::read`]), nor decide who may read.

use std::sync::Arc;

use tonic::Status;

use super::group::Served;
use super::read::Headers;
use crate::core::decide::Row;
use crate::core::id::{KeyTag, Position};
use crate::core::limits;
use crate::core::seal::keys::key_tag;
use crate::rpc::proto;
use crate::store::StoreError;
use crate::store::group::Snapshot;

/// Rows that are looked at together, of each key.
const PAGE: usize = 256;

/// Which transactions a subscription wants.
pub(super) struct Filter {
    /// Of one of these keys; of any and of none when it is empty.
    keys: Vec<KeyTag>,
    /// With all of these headers.
    pub headers: Headers,
}

/// Some rows behind a cursor, in order.
pub(super) struct Page {
    pub rows: Vec<Row>,
    /// Behind this position nothing was looked at; up to it, `rows` are all.
    pub through: Position,
}

impl Filter {
    /// Errors: INVALID_ARGUMENT with the field.
    pub fn of(served: &Served, request: &proto::SubscribeRequest) -> Result<Self, Status> {
        if request.keys.len() > limits::FILTER_KEYS {
            return Err(Status::invalid_argument(format!(
                "SubscribeRequest.keys has {}, and {} may come",
                request.keys.len(),
                limits::FILTER_KEYS
            )));
        }
        if request.keys.iter().any(|key| !(1..=limits::KEY_BYTES).contains(&key.len())) {
            return Err(Status::invalid_argument("SubscribeRequest.keys: each has 1 to 256 bytes"));
        }
        if request.headers.len() > limits::FILTER_HEADERS {
            return Err(Status::invalid_argument(format!(
                "SubscribeRequest.headers has {}, and {} may come",
                request.headers.len(),
                limits::FILTER_HEADERS
            )));
        }
        let fits = |header: &proto::Header| {
            (1..=limits::HEADER_NAME_BYTES).contains(&header.name.len())
                && header.value.len() <= limits::HEADER_VALUE_BYTES
        };
        if !request.headers.iter().all(fits) {
            let text = "SubscribeRequest.headers: each has a name of 1 to 128 bytes and a value of at most 4,096";
            return Err(Status::invalid_argument(text));
        }
        let secret = served.context.ring.index_secret();
        let mut keys: Vec<_> = request.keys.iter().map(|key| key_tag(secret, key)).collect();
        keys.sort_unstable();
        keys.dedup();
        let headers = request.headers.iter().map(|header| (header.name.clone(), header.value.clone()));
        Ok(Self { keys, headers: Arc::new(headers.collect()) })
    }

    /// The next rows after a position and up to another. Blocks. Errors: the store's.
    pub fn page(&self, snapshot: &Snapshot, after: Position, up_to: Position) -> Result<Page, StoreError> {
        if self.keys.is_empty() {
            let mut rows = snapshot.rows_after(after, up_to, PAGE)?;
            let through = if rows.len() < PAGE { up_to } else { rows.last().map_or(up_to, |row| row.position) };
            rows.retain(Row::is_committed);
            return Ok(Page { rows, through });
        }
        let (mut rows, mut through) = (Vec::new(), up_to);
        for tag in &self.keys {
            let of_key = snapshot.rows_of_key(tag, after, PAGE)?;
            if let (PAGE, Some(last)) = (of_key.len(), of_key.last()) {
                through = through.min(last.position);
            }
            rows.extend(of_key);
        }
        rows.retain(|row| row.position <= through);
        rows.sort_unstable_by_key(|row| row.position);
        Ok(Page { rows, through })
    }
}
