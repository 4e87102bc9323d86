//! Large transactions: read, sealed, kept and published stripe by stripe, so that no payload is ever held in memory.
//! Must not bundle.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::bundle::{Held, Prepared};
use super::error::ClientError;
use super::handle::Handle;
use super::publishing::{Feed, Publishing};
use super::sealing::Sealer;
use super::tracker::{Known, Tracker};
use super::window::WindowPlace;
use crate::core::id::{DestinationName, ParcelId};
use crate::core::limits;
use crate::core::seal::transaction::Payload;
use crate::core::split::stripe::Stripe;
use crate::seams::{Work, WorkLost};
use crate::store::outbox::{
    NewBody, NewParcel, Outbox, OutboxError, ParcelFile, ParcelRow, Reservation, StripeFrame, TransactionRow,
};
use crate::telemetry::logs::parcel_span;

/// How much is read before it is sealed: about two stripes.
pub const READ: usize = 1024 * 1024;

/// What submitting a large transaction needs. Cheap to clone.
#[derive(Clone)]
pub struct Streaming {
    /// Seals.
    pub sealer: Arc<Sealer>,
    /// Tracks.
    pub tracker: Arc<Tracker>,
    /// Keeps.
    pub outbox: Outbox,
    /// Publishes.
    pub publishing: Publishing,
    /// Where sealing runs.
    pub work: Arc<dyn Work>,
    /// The client's tasks.
    pub tasks: TaskTracker,
}

/// Undoes a parcel that was begun, unless it came to its end.
struct Begun {
    tracker: Arc<Tracker>,
    publishing: Publishing,
    parcel: ParcelId,
    destinations: Vec<DestinationName>,
    ended_well: bool,
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.ended_well {
            self.tracker.abandon(self.parcel);
            let finished: Vec<_> = self.destinations.iter().map(|name| (self.parcel, name.clone())).collect();
            self.publishing.forget(&finished);
        }
    }
}

/// A parcel's file so far, and the room that it takes.
struct Kept {
    file: ParcelFile,
    reservation: Reservation,
}

impl Kept {
    /// Makes stripes durable, with room set aside for exactly what they take.
    fn keep(&mut self, outbox: &Outbox, stripes: &[Stripe]) -> Result<(), OutboxError> {
        let frames: Vec<StripeFrame> = stripes.iter().map(frame).collect();
        let bytes = frames.iter().map(|frame| frame.length() as u64).sum();
        self.reservation.join(outbox.reserve(bytes)?);
        outbox.append(&mut self.file, &frames)
    }
}

/// A parcel that is sealed whole and not yet in the outbox.
struct Ended {
    begun: Begun,
    feed: Feed,
    kept: Kept,
    row: ParcelRow,
    transaction: TransactionRow,
    /// The last stripes, which no broker has seen.
    stripes: Vec<Stripe>,
    prepared: Arc<Prepared>,
    place: WindowPlace,
    held: Held,
}

/// What the outbox keeps of a stripe.
pub fn frame(stripe: &Stripe) -> StripeFrame {
    StripeFrame { header: stripe.header_bytes.clone(), signature: stripe.signature, sealed: stripe.sealed.clone() }
}

/// Where a large transaction is given back once nobody of its keys is before it.
pub(super) type OnHold = oneshot::Receiver<(Box<Prepared>, Held)>;

impl Streaming {
    /// Seals and publishes a payload while it is read, once its transaction's keys are its own; gives its handles when all of it
    /// is durable. Dropped before it has been read and sealed to its end, it is abandoned; afterwards it is submitted all the
    /// same. Errors: those of reading, sealing and the outbox; then nothing was submitted, and what brokers have of it is never
    /// whole.
    pub async fn submit(
        &self,
        held: OnHold,
        place: WindowPlace,
        mut payload: impl AsyncRead + Unpin + Send,
        length: Option<u64>,
    ) -> Result<Vec<Handle>, ClientError> {
        let (prepared, held) = held.await.map_err(|_| ClientError::Closed)?;
        if let Some(known) = self.tracker.known(prepared.id, &prepared.destinations) {
            return self.again(known?, &mut payload, length).await;
        }
        let prepared: Arc<Prepared> = prepared.into();
        let (sealer, outbox, for_sealing) = (self.sealer.clone(), self.outbox.clone(), prepared.clone());
        let started = self.run(move || -> Result<_, ClientError> {
            let (row, sealer) = sealer.start(&for_sealing, length)?;
            let kept = Kept { reservation: outbox.reserve(0)?, file: outbox.start_file(row.parcel)? };
            Ok((row, sealer, kept))
        });
        let (row, mut sealer, mut kept) = started.await??;
        let begun = Begun {
            tracker: self.tracker.clone(),
            publishing: self.publishing.clone(),
            parcel: row.parcel,
            destinations: row.destinations.clone(),
            ended_well: false,
        };
        self.tracker.begin(row.parcel);
        let mut feed = self.publishing.feed(row.clone());
        let mut reading = Reading { payload: &mut payload, length, given: 0 };
        loop {
            let (chunk, last) = reading.chunk().await?;
            let outbox = self.outbox.clone();
            let step = self.run(move || -> Result<_, ClientError> {
                let stripes = sealer.push(&chunk)?;
                kept.keep(&outbox, &stripes)?;
                Ok((sealer, kept, stripes))
            });
            let stripes;
            (sealer, kept, stripes) = step.await??;
            for stripe in &stripes {
                feed.stripe(kept.file.so_far(&row), stripe).await;
            }
            if last {
                break;
            }
        }
        let (outbox, for_sealing, ending) = (self.outbox.clone(), prepared.clone(), self.sealer.clone());
        let last = self.run(move || -> Result<_, ClientError> {
            let (stripes, digest, transaction) = ending.end(&for_sealing, sealer)?;
            kept.keep(&outbox, &stripes)?;
            Ok((kept, stripes, digest, transaction))
        });
        let (kept, stripes, digest, transaction) = last.await??;
        let row = ParcelRow { digest, ..row };
        let ended = Ended { begun, feed, kept, row, transaction, stripes, prepared, place, held };
        let (answer, answered) = oneshot::channel();
        // From here on somebody else goes on, because the caller may stop waiting between two of its steps.
        let span = parcel_span("publish", ended.row.parcel);
        self.tasks.spawn(self.clone().end(ended, answer).instrument(span));
        answered.await.map_err(|_| ClientError::Closed)?
    }

    /// Reads a payload that is submitted again only to see that it is the same: nothing of it is sealed or sent. Errors: as
    /// [`Known::same`], and those of reading.
    async fn again(
        &self,
        known: Known,
        payload: &mut (impl AsyncRead + Unpin + Send),
        length: Option<u64>,
    ) -> Result<Vec<Handle>, ClientError> {
        if length.is_some_and(|said| !known.has_length(said)) {
            return Err(Known::other());
        }
        let found = self.measure(payload, length, false).await?;
        known.same(found.bytes, found.tag)
    }

    /// Reads a payload only to find out what its header says of it. Errors: those of reading, [`ClientError::Seal`].
    pub async fn measure(
        &self,
        payload: &mut (impl AsyncRead + Unpin + Send),
        length: Option<u64>,
        compress: bool,
    ) -> Result<Payload, ClientError> {
        let mut measure = self.sealer.measure(compress)?;
        let mut reading = Reading { payload, length, given: 0 };
        loop {
            let (chunk, last) = reading.chunk().await?;
            let step = self.run(move || measure.push(&chunk).map(|()| measure));
            measure = step.await??;
            if last {
                return self.run(move || measure.finish()).await?;
            }
        }
    }

    /// Makes a parcel the outbox's, and only then gives the brokers what makes it whole: a parcel that was not submitted can
    /// not be committed, and nothing is said of one before the tracker knows it.
    async fn end(self, ended: Ended, answer: oneshot::Sender<Result<Vec<Handle>, ClientError>>) {
        let Ended { mut begun, mut feed, kept, row, transaction, stripes, prepared, place, held } = ended;
        let Kept { file, reservation } = kept;
        let transactions = vec![transaction.clone()];
        let new = NewParcel { row, body: NewBody::File(file), transactions, reservation };
        let row = match self.outbox.add(vec![new]).await.map(|rows| rows.into_iter().next()) {
            Ok(Some(row)) => row,
            other => {
                let error = other.err().map_or(ClientError::Closed, ClientError::from);
                // Whoever stopped waiting does not need the answer; here and below.
                return drop(answer.send(Err(error)));
            }
        };
        begun.ended_well = true;
        tracing::debug!(transactions = 1, stripes = row.stripes, "durable in the outbox");
        let handles = self.tracker.add(row.clone(), vec![(transaction, prepared.started, place)]);
        drop(answer.send(handles.into_iter().next().ok_or(ClientError::Closed)));
        // Only now may its successors go.
        drop(held);
        for stripe in &stripes {
            feed.stripe(row.clone(), stripe).await;
        }
        feed.finish(&row);
    }

    async fn run<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> Result<R, ClientError> {
        self.work.run(job).await.map_err(|WorkLost| ClientError::Closed)
    }
}

/// What whoever submits more than a payload can have is told.
pub fn too_long() -> ClientError {
    ClientError::Transaction { field: "payload", problem: format!("at most {} bytes", limits::PAYLOAD_BYTES) }
}

/// A payload as it is read, held to its limit and to the length that was said.
struct Reading<'a, R> {
    payload: &'a mut R,
    length: Option<u64>,
    given: u64,
}

impl<R: AsyncRead + Unpin> Reading<'_, R> {
    /// The next [`READ`] bytes, fewer at the end; and whether that is it. Errors: [`ClientError::Read`],
    /// [`ClientError::Length`], [`ClientError::Transaction`] for more than a payload can have.
    async fn chunk(&mut self) -> Result<(Vec<u8>, bool), ClientError> {
        let mut chunk = Vec::with_capacity(READ);
        let read = (&mut self.payload).take(READ as u64).read_to_end(&mut chunk).await;
        read.map_err(ClientError::Read)?;
        let last = chunk.len() < READ;
        self.given += chunk.len() as u64;
        let given = self.given;
        if let Some(said) = self.length
            && (given > said || (last && given != said))
        {
            return Err(ClientError::Length { said, given });
        }
        if given > limits::PAYLOAD_BYTES {
            return Err(too_long());
        }
        Ok((chunk, last))
    }
}
