//! Reading one partition: check that it is still the one that was read (R17), then record after record through the gate.
//! Also reads deferred addresses again. Must not decide what becomes of a segment: that is the reassembler's.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::core::gather::{Address, Gap, Gate, Identity, Mark, Skip};
use crate::core::id::Time;
use crate::core::split::segment::VerifiedSegment;
use crate::node::answer::Questions;
use crate::seams::Seams;
use crate::telemetry::labels::QueryOutcome;
use crate::telemetry::{Meter, names};
use crate::transport::{AnyTransport, Batch, Fetched, PartitionId, ReadError, Topic, Transport};

/// How long a reader waits before it asks an absent partition again.
const ABSENT_PAUSE: Duration = Duration::from_millis(250);

/// Runs of deferred records that are read again side by side: each holds a read in memory, and a consumer of its own on Kafka.
pub(super) const REREADS: usize = 2;

/// How often the record before the mark is asked for while its broker is there and gives nothing.
const PROBES: u32 = 40;

/// How many reads in a row find a partition absent before that is said: the first ones after a start, or of a broker that is
/// slow, mean nothing.
const ABSENT_READS: u32 = 3;

/// So few records of so few bytes together are checked at once, on the reader's own thread: a tenth of a millisecond at most.
const FEW_RECORDS: usize = 4;
/// See [`FEW_RECORDS`].
const FEW_BYTES: usize = 160 * 1024;

/// Records of one run that are read again at once; a longer run takes several reads.
const REREAD_RUN: i64 = 64;

/// One record as the gate saw it.
#[derive(Debug)]
pub(super) struct Checked {
    pub at: Address,
    pub identity: Identity,
    /// When the broker appended it.
    pub time: Time,
    /// When it was read, by the monotonic clock.
    pub read: Duration,
    pub outcome: Result<VerifiedSegment, Skip>,
}

/// What readers tell the collector.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A partition is seen for the first time: it is read from `next`, the first offset that it has.
    Begun { partition: i32, next: i64, end: i64 },
    /// New records of a partition, in order; `next` is the offset after them, `end` that of the partition.
    Records { partition: i32, records: Vec<Checked>, next: i64, end: i64 },
    /// Deferred records, read again; the collector had seen so many gaps when it asked for them.
    Again { records: Vec<Checked>, gaps: u64 },
    /// Deferred addresses at which nothing lies any more: retention removed it, or the partition was cut.
    Gone { addresses: Vec<Address>, gaps: u64 },
    /// Deferred addresses that cannot be reached now.
    Unreached { addresses: Vec<Address>, gaps: u64 },
    /// The partition is not the one that was read: it is read anew from `low`.
    Gap { partition: i32, gap: Gap, low: i64 },
    /// The partition cannot be read (`Some`), or can be read again (`None`).
    Trouble { partition: i32, cause: Option<String> },
}

/// What all readers of a destination share.
#[derive(Clone)]
pub(super) struct Source {
    pub seams: Seams,
    pub transport: Arc<AnyTransport>,
    pub topic: Topic,
    pub gate: Arc<RwLock<Gate>>,
    pub group_time: tokio::sync::watch::Receiver<Time>,
    /// Senders' queries share the topic.
    pub queries: Questions,
    pub arrivals: mpsc::Sender<Arrival>,
    /// [`REREADS`] permits.
    pub rereads: Arc<Semaphore>,
    pub meter: Meter,
    pub stop: CancellationToken,
}

/// The collector is gone: nothing is left to do.
struct Stopped;

/// Why a partition cannot be read just now.
#[derive(Debug)]
struct Trouble {
    error: ReadError,
    /// Reads in a row that came to nothing.
    times: u32,
    said: bool,
}

impl Trouble {
    /// After one more read that came to nothing.
    fn after(before: Option<Self>, error: ReadError) -> Self {
        let same = before.filter(|before| before.error.retryable() && error.retryable() || before.error == error);
        let known = same.unwrap_or(Self { error, times: 0, said: false });
        Self { times: known.times.saturating_add(1), ..known }
    }

    fn is_news(&self) -> bool {
        !self.said && (!self.error.retryable() || self.times >= ABSENT_READS)
    }
}

impl Source {
    fn partition(&self, number: i32) -> PartitionId {
        PartitionId { topic: self.topic.clone(), number }
    }

    async fn tell(&self, arrival: Arrival) -> Result<(), Stopped> {
        tokio::select! {
            sent = self.arrivals.send(arrival) => sent.map_err(|_| Stopped),
            () = self.stop.cancelled() => Err(Stopped),
        }
    }

    async fn pause(&self) -> Result<(), Stopped> {
        tokio::select! {
            () = self.seams.clock.sleep(ABSENT_PAUSE) => Ok(()),
            () = self.stop.cancelled() => Err(Stopped),
        }
    }

    /// Waits before a partition that cannot be read is read again. Says so once it is more than a moment's trouble, and again
    /// when the cause is one that somebody must mend, or no longer is.
    async fn pause_in(&self, partition: i32, trouble: &mut Option<Trouble>, error: ReadError) -> Result<(), Stopped> {
        let after = Trouble::after(trouble.take(), error);
        let now = trouble.insert(after);
        if now.is_news() {
            self.tell(Arrival::Trouble { partition, cause: Some(now.error.to_string()) }).await?;
            now.said = true;
        }
        self.pause().await
    }

    async fn read(&self, number: i32, at: i64) -> Result<Result<Batch, ReadError>, Stopped> {
        tokio::select! {
            read = self.transport.read(self.partition(number), at) => match read {
                Err(ReadError::Closed) => Err(Stopped),
                read => Ok(read),
            },
            () = self.stop.cancelled() => Err(Stopped),
        }
    }

    /// Hashes and checks records: many where blocking work runs.
    async fn check(&self, partition: i32, records: Vec<Fetched>) -> Result<Vec<Checked>, Stopped> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let bytes: usize = records.iter().map(bytes_of).sum();
        let gate = Arc::clone(&self.gate);
        let (group_time, read) = (*self.group_time.borrow(), self.seams.clock.monotonic());
        let few = records.len() <= FEW_RECORDS && bytes <= FEW_BYTES;
        let job = move || {
            let gate = gate.read().unwrap_or_else(PoisonError::into_inner);
            records.into_iter().map(|record| check_one(&gate, partition, record, group_time, read)).collect()
        };
        // Handing so little to another thread would take about as long.
        if few {
            return Ok(job());
        }
        self.seams.work.run(job).await.map_err(|_| Stopped)
    }

    /// Reads a partition from `mark` on until the collector stops; one that was never seen from its first record on.
    pub async fn follow(self, partition: i32, mark: Option<Mark>) {
        // Only the collector's end ends it, and then nobody listens.
        let _: Result<(), Stopped> = self.follow_until_stopped(partition, mark).await;
    }

    async fn follow_until_stopped(&self, partition: i32, mark: Option<Mark>) -> Result<(), Stopped> {
        let mut trouble = None;
        // Trouble may stand from before this start, and an idle partition has no records that end it.
        let mut readable = false;
        let (mut next, mut session) = self.start(partition, mark, &mut trouble).await?;
        let mut last = mark.filter(|mark| next == mark.offset).and_then(|mark| mark.previous);
        loop {
            match self.read(partition, next).await? {
                Ok(batch) => {
                    if trouble.is_none() && !readable {
                        self.tell(Arrival::Trouble { partition, cause: None }).await?;
                    }
                    readable = true;
                    if trouble.is_some() || session != Some(batch.session) {
                        // Meanwhile the partition may have been cut and filled anew behind the same offset.
                        let seen = Mark { offset: next, previous: last };
                        let from;
                        (from, session) = self.start(partition, Some(seen), &mut trouble).await?;
                        trouble = None;
                        self.tell(Arrival::Trouble { partition, cause: None }).await?;
                        if from != next {
                            (next, last) = (from, None);
                            continue;
                        }
                    }
                    for value in batch.records.iter().filter_map(|record| record.value.as_ref()) {
                        if self.queries.ask(partition, value) {
                            self.meter.count_as(names::RECEIPT_QUERIES, "outcome", QueryOutcome::NoRoom.word());
                        }
                    }
                    self.meter.count(names::TRANSPORT_READ_RECORDS, batch.records.len() as u64);
                    self.meter
                        .count(names::TRANSPORT_READ_BYTES, batch.records.iter().map(bytes_of).sum::<usize>() as u64);
                    let records = self.check(partition, batch.records).await?;
                    if let Some(record) = records.last() {
                        last = Some((record.at.offset, record.identity));
                    }
                    let moved = batch.next != next;
                    next = batch.next;
                    if moved || !records.is_empty() {
                        self.tell(Arrival::Records { partition, records, next, end: batch.end }).await?;
                    }
                }
                Err(ReadError::OutOfRange { .. }) => {
                    let seen = Mark { offset: next, previous: last };
                    let from;
                    (from, session) = self.start(partition, Some(seen), &mut trouble).await?;
                    if from != next {
                        (next, last) = (from, None);
                    }
                }
                Err(error) => {
                    self.pause_in(partition, &mut trouble, error).await?;
                }
            }
        }
    }

    /// Compares the partition with the mark (R17): the offset to read from, and the session in which it was found, if the
    /// transport said one. A gap is told before anything is read.
    async fn start(
        &self,
        partition: i32,
        mark: Option<Mark>,
        trouble: &mut Option<Trouble>,
    ) -> Result<(i64, Option<u64>), Stopped> {
        let seen = mark.unwrap_or_default();
        let mut probes = 0;
        loop {
            let at = seen.previous.map_or(seen.offset, |(offset, _)| offset);
            let (low, end, previous, session) = match self.read(partition, at).await? {
                Ok(batch) => {
                    // A slow broker is no gap.
                    if seen.previous.is_some() && batch.records.is_empty() && batch.end > at && probes < PROBES {
                        probes += 1;
                        let cause = format!("the record at offset {at}, which was read before, does not come");
                        let error = ReadError::Absent { partition: self.partition(partition), cause };
                        self.pause_in(partition, trouble, error).await?;
                        continue;
                    }
                    let record = batch.records.iter().find(|record| record.offset == at);
                    let previous = record.filter(|_| seen.previous.is_some()).map(identity);
                    (batch.low, batch.end, previous, Some(batch.session))
                }
                Err(ReadError::OutOfRange { low, end, .. }) => (low, end, None, None),
                Err(error) => {
                    self.pause_in(partition, trouble, error).await?;
                    continue;
                }
            };
            if mark.is_none() {
                // Retention removed records that this node never had to see.
                self.tell(Arrival::Begun { partition, next: low, end }).await?;
                return Ok((low, session));
            }
            return match seen.check(low, end, previous) {
                Ok(()) => Ok((seen.offset, session)),
                Err(gap) => {
                    self.tell(Arrival::Gap { partition, gap, low }).await?;
                    Ok((low, session))
                }
            };
        }
    }

    /// Reads deferred addresses again, for a collector that has seen so many gaps.
    pub async fn again(self, addresses: Vec<Address>, gaps: u64) {
        let mut runs: BTreeMap<(i32, i64), i64> = BTreeMap::new();
        for run in runs_of(addresses) {
            runs.insert((run.0, run.1), run.2);
        }
        for ((partition, first), last) in runs {
            let permit = tokio::select! {
                permit = self.rereads.acquire() => permit,
                () = self.stop.cancelled() => return,
            };
            // Nobody closes it.
            let Ok(_permit) = permit else { return };
            if self.again_run(partition, first, last, gaps).await.is_err() {
                return;
            }
        }
    }

    async fn again_run(&self, partition: i32, first: i64, last: i64, gaps: u64) -> Result<(), Stopped> {
        let run = |from: i64| (from..=last).map(|offset| Address { partition, offset }).collect::<Vec<_>>();
        let mut next = first;
        while next <= last {
            match self.read(partition, next).await? {
                Ok(batch) => {
                    let wanted: Vec<_> = batch.records.into_iter().filter(|record| record.offset <= last).collect();
                    let read_to = wanted.last().map_or(batch.next, |record| record.offset + 1).max(next + 1);
                    let until = read_to.min(last + 1);
                    let here: Vec<i64> = wanted.iter().map(|record| record.offset).collect();
                    let gone = (next..until)
                        .filter(|offset| here.binary_search(offset).is_err())
                        .map(|offset| Address { partition, offset })
                        .collect::<Vec<_>>();
                    let records = self.check(partition, wanted).await?;
                    if !records.is_empty() {
                        self.tell(Arrival::Again { records, gaps }).await?;
                    }
                    // An empty batch at the end says nothing of addresses that are still below it.
                    if !gone.is_empty() && batch.end > next {
                        self.tell(Arrival::Gone { addresses: gone, gaps }).await?;
                    } else if !gone.is_empty() {
                        return self.tell(Arrival::Unreached { addresses: run(next), gaps }).await;
                    }
                    next = until;
                }
                Err(ReadError::OutOfRange { low, .. }) if low > next => {
                    let until = low.min(last + 1);
                    let gone = (next..until).map(|offset| Address { partition, offset }).collect();
                    self.tell(Arrival::Gone { addresses: gone, gaps }).await?;
                    next = until;
                }
                Err(ReadError::OutOfRange { .. }) => {
                    return self.tell(Arrival::Gone { addresses: run(next), gaps }).await;
                }
                Err(_) => return self.tell(Arrival::Unreached { addresses: run(next), gaps }).await,
            }
        }
        Ok(())
    }
}

/// Neighbouring addresses as (partition, first, last), each at most [`REREAD_RUN`] long.
fn runs_of(mut addresses: Vec<Address>) -> Vec<(i32, i64, i64)> {
    addresses.sort_unstable();
    let mut runs: Vec<(i32, i64, i64)> = Vec::new();
    for Address { partition, offset } in addresses {
        match runs.last_mut() {
            Some((same, first, last)) if *same == partition && *last + 1 == offset && offset - *first < REREAD_RUN => {
                *last = offset;
            }
            _ => runs.push((partition, offset, offset)),
        }
    }
    runs
}

fn value(record: &Fetched) -> Bytes {
    record.value.clone().unwrap_or_default()
}

fn identity(record: &Fetched) -> Identity {
    Identity::of(&record.key, &value(record))
}

fn bytes_of(record: &Fetched) -> usize {
    record.key.len() + record.value.as_ref().map_or(0, Bytes::len)
}

fn check_one(gate: &Gate, partition: i32, record: Fetched, group_time: Time, read: Duration) -> Checked {
    let at = Address { partition, offset: record.offset };
    let (identity, outcome) = (identity(&record), gate.check(&value(&record), group_time));
    Checked { at, identity, time: record.time, read, outcome }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moments_trouble_is_not_said_and_what_somebody_must_mend_is_said_at_once() {
        let partition = || PartitionId { topic: Topic::named("orders"), number: 0 };
        let absent = || ReadError::Absent { partition: partition(), cause: "nobody answers".to_owned() };
        let refused = || ReadError::Refused { partition: partition(), cause: "grant READ".to_owned() };
        let mut trouble: Option<Trouble> = None;
        let mut is_said = |error| {
            let now = Trouble::after(trouble.take(), error);
            let news = now.is_news();
            trouble = Some(Trouble { said: now.said || news, ..now });
            news
        };
        let heard =
            [absent(), absent(), absent(), absent(), refused(), refused(), absent(), absent(), absent(), refused()];
        let heard = heard.map(&mut is_said);
        assert_eq!(heard, [false, false, true, false, true, false, false, false, true, true]);
    }

    #[test]
    fn neighbours_are_read_in_one_run_of_bounded_length() {
        let at = |partition, offset| Address { partition, offset };
        let mut all: Vec<_> = (0..70).map(|offset| at(1, offset)).collect();
        all.extend([at(0, 5), at(0, 7)]);
        assert_eq!(runs_of(all), vec![(0, 5, 5), (0, 7, 7), (1, 0, 63), (1, 64, 69)]);
    }
}
