//! What is to be sent from the outbox to one destination: parcels in turn, a stripe of each. After a long outage there are very
//! many, so that nothing here looks at all of them. Must not send.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::core::id::ParcelId;
use crate::store::outbox::ParcelRow;
use crate::transport::publisher::StripeRecords;

/// Why stripes are read from the outbox and sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Not sent yet: there was no credit.
    Behind,
    /// A former run of the client left it undecided.
    Restart,
    /// Nodes signed that they miss it.
    Missing,
    /// Nobody has said anything about it for long.
    Silence,
    /// A domain that held shards of it is gone, or others are back.
    TopUp,
}

impl Why {
    /// Whether stripes are sent whole, though they were sent before.
    pub(super) fn again(self) -> bool {
        matches!(self, Self::Restart | Self::Missing | Self::Silence)
    }

    pub(super) fn reason(self) -> Option<&'static str> {
        match self {
            Self::Behind | Self::TopUp => None,
            Self::Restart => Some("restart"),
            Self::Missing => Some("missing-notice"),
            Self::Silence => Some("silence"),
        }
    }
}

/// A parcel whose sealing goes on: what is durable so far, and whether that is all.
#[derive(Debug, Clone)]
pub(super) struct SoFar {
    /// The row as it would be now.
    pub(super) row: ParcelRow,
    /// Whether its sealing has ended, well or not.
    pub(super) ended: bool,
}

/// Where the stripes come from.
pub(super) enum Source {
    /// A parcel that is sealed.
    Whole(ParcelRow),
    /// One whose sealing goes on.
    Growing(watch::Receiver<SoFar>),
}

/// Stripes of one parcel.
pub(super) struct Job {
    pub(super) source: Source,
    pub(super) next: u32,
    pub(super) end: u32,
    pub(super) why: Why,
    /// Stripes that need not be read and coded again.
    pub(super) ready: Ready,
}

impl Job {
    /// These stripes, read and coded again when their turn comes.
    pub(super) fn new(source: Source, stripes: Range<u32>, why: Why) -> Self {
        Self { source, next: stripes.start, end: stripes.end, why, ready: Ready::default() }
    }
}

/// Stripes at hand, by their number, and the room that they take.
#[derive(Default)]
pub(super) struct Ready {
    pub(super) stripes: BTreeMap<u32, StripeRecords>,
    pub(super) _room: Option<OwnedSemaphorePermit>,
}

impl Job {
    pub(super) fn parcel(&self) -> ParcelId {
        match &self.source {
            Source::Whole(row) => row.parcel,
            Source::Growing(so_far) => so_far.borrow().row.parcel,
        }
    }

    fn covers(&self, other: &Self) -> bool {
        self.why.again() && other.why.again() && self.next <= other.next && self.end >= other.end
    }
}

/// The jobs of one destination.
#[derive(Default)]
pub(super) struct Jobs {
    of: BTreeMap<ParcelId, VecDeque<Job>>,
    /// Each parcel that has jobs, once at least; one that has none any more is passed over.
    turns: VecDeque<ParcelId>,
    count: usize,
}

impl Jobs {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Adds a job at the end; nothing when another one sends all of it.
    pub(super) fn add(&mut self, job: Job) {
        let parcel = job.parcel();
        let of = self.of.entry(parcel).or_default();
        if of.iter().any(|other| other.covers(&job)) {
            return;
        }
        if of.is_empty() {
            self.turns.push_back(parcel);
        }
        of.push_back(job);
        self.count += 1;
    }

    /// Takes the next one out.
    pub(super) fn take(&mut self) -> Option<Job> {
        loop {
            let parcel = self.turns.pop_front()?;
            let Some(of) = self.of.get_mut(&parcel) else { continue };
            let job = of.pop_front();
            if of.is_empty() {
                self.of.remove(&parcel);
            } else {
                self.turns.push_back(parcel);
            }
            if job.is_some() {
                self.count -= 1;
                return job;
            }
        }
    }

    /// Drops all of a parcel.
    pub(super) fn forget(&mut self, parcel: &ParcelId) {
        self.count -= self.of.remove(parcel).map_or(0, |of| of.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::{Digest, Time};
    use crate::store::outbox::Bodies;

    fn job(parcel: u8, stripes: std::ops::Range<u32>, why: Why) -> Job {
        let row = ParcelRow {
            parcel: ParcelId::from_parts(Time(1), [parcel; 10]),
            destinations: Vec::new(),
            expiry: Time(9),
            digest: Digest([parcel; 32]),
            stripes: stripes.end,
            sealed_bytes: 0,
            frame_bytes: 0,
            bodies: Bodies::Row,
            notices_from: Vec::new(),
        };
        Job::new(Source::Whole(row), stripes, why)
    }

    fn taken(jobs: &mut Jobs) -> Vec<(u8, u32)> {
        let next = std::iter::from_fn(|| jobs.take());
        next.map(|job| (job.parcel().to_bytes()[15], job.next)).collect()
    }

    #[test]
    fn parcels_take_turns_and_what_another_job_sends_is_no_job() {
        let mut jobs = Jobs::default();
        for (parcel, stripes, why) in [
            (1, 0..9, Why::Restart),
            (1, 3..4, Why::Missing),
            (1, 5..6, Why::TopUp),
            (2, 0..9, Why::Silence),
            (3, 0..1, Why::Behind),
            (2, 0..10, Why::Missing),
        ] {
            jobs.add(job(parcel, stripes, why));
        }
        assert_eq!(jobs.len(), 5);
        let mut first = jobs.take().expect("a job");
        first.next += 1;
        jobs.add(first);
        assert_eq!(taken(&mut jobs), [(2, 0), (3, 0), (1, 5), (2, 0), (1, 1)]);
        assert_eq!(jobs.len(), 0);
    }

    #[test]
    fn what_is_forgotten_has_no_turn_and_can_come_again() {
        let mut jobs = Jobs::default();
        for parcel in [1, 2, 1] {
            jobs.add(job(parcel, 0..1, Why::Behind));
        }
        jobs.forget(&job(1, 0..1, Why::Behind).parcel());
        assert_eq!(jobs.len(), 1);
        jobs.add(job(1, 0..1, Why::Behind));
        let mut left = taken(&mut jobs);
        left.sort_unstable();
        assert_eq!((left, jobs.len()), (vec![(1, 0), (2, 0)], 0));
    }
}
