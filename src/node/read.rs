//! Opens held transactions for readers, chunk by chunk, so that a payload is never held in memory whole.
//!
//! Owns the messages of one transaction. Must not decide who may read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::Status;

use super::group::GroupContext;
use super::peer::unavailable;
use crate::core::decide::Row;
use crate::core::id::Ticket;
use crate::core::seal::custody::StorageKey;
use crate::core::seal::transaction::PrivateHeader;
use crate::core::seal::{BodyEvent, BodyOpener};
use crate::rpc::access::PeerIdentity;
use crate::rpc::proto;
use crate::rpc::proto::read_response::Part;
use crate::store::group::Body;
use crate::telemetry::names;

/// Ciphertext that is read at once.
const READ_BYTES: usize = 256 * 1024;
/// The same where the header alone may be wanted: a little more than the chunk that it stands in.
const HEADER_BYTES: usize = 65 * 1024;
/// Payload bytes in one message, at most.
const PART_BYTES: usize = 256 * 1024;
/// A reader that takes nothing for this long is cut off: it holds up a thread.
const STALL: Duration = Duration::from_secs(60);
/// Transactions that are opened at once by all readers of a node; the others wait.
const OPENINGS: usize = 64;
/// And by one of them: one that takes its messages slowly holds up itself.
const OPENINGS_OF_ONE: usize = 8;

/// Where messages of a read go.
pub type Give = mpsc::Sender<Result<proto::ReadResponse, Status>>;

/// Opens for all readers of a node. Cheap to clone.
#[derive(Clone)]
pub struct Openings {
    all: Arc<Semaphore>,
    /// By reader; grows with the directory's.
    of_one: Arc<Mutex<BTreeMap<PeerIdentity, Arc<Semaphore>>>>,
}

impl Default for Openings {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(OPENINGS)), of_one: Arc::default() }
    }
}

/// A reader's turn to have a transaction opened, until it is dropped.
struct Turn {
    _of_one: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// Headers, by name and value.
pub type Headers = Arc<Vec<(String, Bytes)>>;

/// What of a transaction is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Leave the payload out.
    pub metadata_only: bool,
    /// First byte of the payload.
    pub offset: u64,
    /// Nothing at all, unless it has all of these headers.
    pub headers: Headers,
}

impl Wanted {
    fn fits(&self, header: &PrivateHeader) -> bool {
        let has = |(name, value): &(String, Bytes)| header.headers.iter().any(|(n, v)| n == name && v == value);
        self.headers.iter().all(has)
    }
}

/// Makes a message of a part.
pub fn message(part: Part) -> proto::ReadResponse {
    proto::ReadResponse { part: Some(part) }
}

impl Openings {
    /// Waits for a reader's turn: first among its own, so that what it makes wait takes nothing from others.
    async fn turn(&self, who: &PeerIdentity) -> Result<Turn, AcquireError> {
        let own = {
            let mut of_one = self.of_one.lock().unwrap_or_else(PoisonError::into_inner);
            of_one.entry(who.clone()).or_insert_with(|| Arc::new(Semaphore::new(OPENINGS_OF_ONE))).clone()
        };
        Ok(Turn { _of_one: own.acquire_owned().await?, _of_all: self.all.clone().acquire_owned().await? })
    }

    /// Opens a held transaction for a reader and gives its messages: start, data, end; none when it does not have the headers
    /// that are wanted. Errors: when the reader is gone or stalls, and
    /// what is wrong here with the body; the stream is to end with it.
    pub async fn open(
        &self,
        who: &PeerIdentity,
        context: &Arc<GroupContext>,
        (row, body): (Row, Body),
        wanted: Wanted,
        give: &Give,
        method: &'static str,
    ) -> Result<(), Status> {
        let turn = self.turn(who).await.map_err(|_| Status::unavailable("this node is stopping"))?;
        let (job_context, give) = (context.clone(), give.clone());
        let runtime = tokio::runtime::Handle::current();
        let outcome = context.seams.work.run(move || {
            let _turn = turn;
            let clock = job_context.seams.clock.clone();
            let send = |part: Part| {
                // A job of its own thread may wait; a reader that is slow holds up nobody else.
                runtime.block_on(async {
                    tokio::select! {
                        sent = give.send(Ok(message(part))) => sent.map_err(|_| Status::cancelled("the reader is gone")),
                        () = clock.sleep(STALL) => Err(Status::deadline_exceeded("the reader took nothing for 60 s")),
                    }
                })
            };
            Opening { context: &job_context, row: &row, wanted, sent: 0, passed: 0, other: false, send }.run(&body)
        });
        let sent = outcome.await.map_err(|error| Status::unavailable(error.to_string()))??;
        let Some(sent) = sent else { return Ok(()) };
        context.meter.count_as(names::READ_TRANSACTIONS, "method", method);
        context.meter.count(names::READ_BYTES, sent);
        Ok(())
    }
}

struct Opening<'a, S> {
    context: &'a GroupContext,
    row: &'a Row,
    wanted: Wanted,
    sent: u64,
    passed: u64,
    /// It does not have the headers that are wanted.
    other: bool,
    send: S,
}

impl<S: Fn(Part) -> Result<(), Status>> Opening<'_, S> {
    /// Gives how many bytes of payload were sent; `None` when it is not wanted.
    fn run(mut self, body: &Body) -> Result<Option<u64>, Status> {
        let row = self.row;
        let lost = |why: &dyn std::fmt::Display| {
            Status::data_loss(format!("transaction {} does not open on this node: {why}; ask another", row.transaction))
        };
        let key = StorageKey::new(*self.context.keys.storage())
            .unwrap(&self.context.node, &row.digest, &row.transaction, &body.wrapped_key)
            .map_err(|error| lost(&error))?;
        let mut opener = BodyOpener::new(&key);
        let mut at = 0;
        loop {
            let looks = at == 0 && (self.wanted.metadata_only || !self.wanted.headers.is_empty());
            let most = if looks { HEADER_BYTES } else { READ_BYTES };
            let bytes = body.reader.read(at, most).map_err(unavailable)?;
            if bytes.is_empty() {
                break;
            }
            at += bytes.len() as u64;
            let mut failed = None;
            let opened = opener.push(&bytes, &mut |event| self.event(event, &mut failed));
            if let Some(status) = failed {
                return Err(status);
            }
            opened.map_err(|error| lost(&error))?;
            if self.other {
                return Ok(None);
            }
            if self.wanted.metadata_only && opener.header().is_some() {
                return self.end();
            }
        }
        let mut failed = None;
        let opened = opener.finish(&mut |event| self.event(event, &mut failed));
        if let Some(status) = failed {
            return Err(status);
        }
        opened.map_err(|error| lost(&error))?;
        self.end()
    }

    fn end(self) -> Result<Option<u64>, Status> {
        if self.other {
            return Ok(None);
        }
        (self.send)(Part::End(proto::ItemEnd { payload_bytes: self.sent }))?;
        Ok(Some(self.sent))
    }

    fn event(&mut self, event: BodyEvent<'_>, failed: &mut Option<Status>) {
        if failed.is_some() || self.other {
            return;
        }
        let outcome = match event {
            BodyEvent::Length(_) => Ok(()),
            BodyEvent::Header(header) if !self.wanted.fits(header) => {
                self.other = true;
                Ok(())
            }
            BodyEvent::Header(header) => (self.send)(Part::Start(start(self.context, self.row, header, &self.wanted))),
            BodyEvent::Payload(_) if self.wanted.metadata_only => Ok(()),
            BodyEvent::Payload(bytes) => self.payload(bytes),
        };
        *failed = outcome.err();
    }

    fn payload(&mut self, bytes: &[u8]) -> Result<(), Status> {
        let skip = usize::try_from(self.wanted.offset.saturating_sub(self.passed)).unwrap_or(usize::MAX);
        self.passed += bytes.len() as u64;
        for part in bytes.get(skip..).unwrap_or_default().chunks(PART_BYTES) {
            (self.send)(Part::Data(Bytes::copy_from_slice(part)))?;
            self.sent += part.len() as u64;
        }
        Ok(())
    }
}

fn start(context: &GroupContext, row: &Row, header: &PrivateHeader, wanted: &Wanted) -> proto::ItemStart {
    let ticket =
        Ticket { destination: context.destination.clone(), transaction: row.transaction, deadline: row.deadline };
    let bytes = |value: &Option<Vec<u8>>| value.as_deref().map(Bytes::copy_from_slice);
    proto::ItemStart {
        ticket: Some((&ticket).into()),
        sender: row.sender.to_string(),
        position: Some(row.position.into()),
        parcel: Bytes::copy_from_slice(&row.parcel.to_bytes()),
        digest: Bytes::copy_from_slice(&row.digest.0),
        committed_ms: row.decided.0,
        payload_bytes: row.payload_bytes,
        key: bytes(&header.ordering_key),
        idempotency_key: bytes(&header.idempotency_key),
        headers: header
            .headers
            .iter()
            .map(|(name, value)| proto::Header { name: name.clone(), value: Bytes::copy_from_slice(value) })
            .collect(),
        trace: header.trace.as_ref().map(|trace| Bytes::copy_from_slice(trace.as_bytes())),
        content_type: header.content_type.clone(),
        payload_tag: Bytes::copy_from_slice(&row.payload_tag.0),
        offset: wanted.offset,
        group: Bytes::copy_from_slice(&context.tag.0),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_reader_that_takes_its_time_holds_up_itself_alone() {
        let reader = |number: usize| PeerIdentity::Reader(format!("reader-{number}").parse().expect("a name"));
        let openings = Openings::default();
        let mut turns = Vec::new();
        for _ in 0..OPENINGS_OF_ONE {
            turns.push(openings.turn(&reader(0)).now_or_never().expect("it is free").expect("open"));
        }
        assert!(openings.turn(&reader(0)).now_or_never().is_none(), "its own are all in use");
        let other = openings.turn(&reader(1)).now_or_never();
        assert!(other.is_some_and(|turn| turn.is_ok()), "and those of others are not");
        turns.pop();
        assert!(openings.turn(&reader(0)).now_or_never().is_some());
    }
}
