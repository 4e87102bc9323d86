//! One cluster with all arms on it, and what sends to them.
//!
//! Owns their start and end, and how a message gets from its due moment to its arm. Must not decide what is sent when.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sealcast::seams::Seams;
use tempfile::TempDir;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Failure;
use crate::common::kafka::Cluster;
use crate::common::proxy::Proxy;
use crate::figures::words::Arm;
use crate::flights::{Flights, Until};
use crate::records::{Records, Setup, Then, answers_of, make_topics};
use crate::sealcast::Sealcast;
use crate::sealed::Seal;
use crate::stages::Stages;

/// A way that a message can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// As the arm's latency is measured.
    Of(Arm),
    /// Small plain records at replication 3 that three consumers insert into their stores: what small transactions are compared
    /// with.
    SmallRecords,
}

impl Way {
    /// The arm that its figures are shown under.
    pub fn arm(self) -> Arm {
        match self {
            Self::Of(arm) => arm,
            Self::SmallRecords => Arm::PlainThree,
        }
    }
}

/// Above this a message is sealed off the async threads.
const SMALL: usize = 128 << 10;
/// Payloads are cut from random bytes at places that differ by up to so many.
const SPARE: usize = 64 << 10;
/// How long senders may take to let go of an arm whose messages are all done.
const LETTING_GO: Duration = Duration::from_secs(60);
const SMALL_RECORDS: &str = "compare.small-records";

/// A cluster and its arms.
pub struct Ground {
    /// The brokers.
    pub cluster: Cluster,
    /// One for each broker, or none.
    pub proxies: Vec<Proxy>,
    /// What is under way.
    pub flights: Arc<Flights>,
    records: BTreeMap<Way, Arc<Records>>,
    sealcast: Arc<Sealcast>,
    random: Bytes,
    runtime: Runtime,
    failures: Arc<Mutex<Vec<String>>>,
    // Removed last.
    _folder: TempDir,
}

/// What nobody else uses any more. The last message counts as done a moment before who sent it lets go.
fn alone<T>(mut shared: Arc<T>) -> Option<T> {
    let end = Instant::now() + LETTING_GO;
    loop {
        match Arc::try_unwrap(shared) {
            Ok(alone) => return Some(alone),
            Err(_) if Instant::now() >= end => return None,
            Err(again) => shared = again,
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn topic(arm: Arm) -> String {
    format!("compare.{}", arm.word().to_lowercase().replace([' ', ','], "-"))
}

/// Sends to arms; cheap to clone.
#[derive(Clone)]
pub struct Sender {
    runtime: Handle,
    records: BTreeMap<Way, Arc<Records>>,
    sealcast: Arc<Sealcast>,
    flights: Arc<Flights>,
    random: Bytes,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Ground {
    /// Starts these arms on a cluster. Payloads have at most `largest` bytes.
    pub fn start(
        cluster: Cluster,
        proxies: Vec<Proxy>,
        arms: &[Arm],
        (flights, stages): (&Arc<Flights>, &Option<Arc<Stages>>),
        largest: u64,
    ) -> Result<Self, Failure> {
        let seams = Seams::real();
        // Stores belong on a disk, which /tmp need not be.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let runtime = Runtime::new()?;
        let brokers = cluster.brokers();
        let plain: Vec<Arm> = arms.iter().copied().filter(|arm| !arm.is_sealcast()).collect();
        let mut topics: Vec<(String, usize)> = plain.iter().map(|arm| (topic(*arm), arm.factor())).collect();
        topics.extend([(answers_of(&topic(Arm::Pipeline)), 3), (SMALL_RECORDS.to_owned(), 3)]);
        runtime.block_on(make_topics(&brokers, &topics))?;
        let seal = Arc::new(Seal::new(&seams)?);
        let mut records = BTreeMap::new();
        for arm in plain {
            let then = if arm == Arm::Pipeline { Then::StoreAndAnswer } else { Then::Forget };
            let setup = Setup { arm, topic: &topic(arm), then, linger: "0", folder: folder.path() };
            records.insert(Way::Of(arm), Arc::new(Records::start(&brokers, &setup, &seal, flights)?));
        }
        let setup =
            Setup { arm: Arm::PlainThree, topic: SMALL_RECORDS, then: Then::Store, linger: "1", folder: folder.path() };
        records.insert(Way::SmallRecords, Arc::new(Records::start(&brokers, &setup, &seal, flights)?));
        let sealcast = runtime.block_on(Sealcast::start(&brokers, folder.path(), arms, &seams, (flights, stages)))?;
        let mut random = vec![0; usize::try_from(largest)? + SPARE];
        seams.randomness.fill(&mut random)?;
        Ok(Self {
            cluster,
            proxies,
            flights: flights.clone(),
            records,
            sealcast: Arc::new(sealcast),
            random: random.into(),
            runtime,
            failures: Arc::default(),
            _folder: folder,
        })
    }

    /// What sends, for a thread beside the one that troubles the cluster.
    pub fn sender(&self) -> Sender {
        Sender {
            runtime: self.runtime.handle().clone(),
            records: self.records.clone(),
            sealcast: self.sealcast.clone(),
            flights: self.flights.clone(),
            random: self.random.clone(),
            failures: self.failures.clone(),
        }
    }

    /// How the names of the topics begin that an arm writes to.
    pub fn topics(&self, way: Way) -> String {
        match way {
            Way::Of(arm) if arm.is_sealcast() => "sealcast.compare.".to_owned(),
            Way::Of(arm) => topic(arm),
            Way::SmallRecords => SMALL_RECORDS.to_owned(),
        }
    }

    /// Messages that could not be handed over since the last time, in words.
    pub fn failures(&self) -> Vec<String> {
        std::mem::take(&mut self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends everything.
    pub fn end(self) -> Result<(), Failure> {
        for records in self.records.into_values() {
            alone(records).ok_or("an arm is still used")?.end()?;
        }
        let sealcast = alone(self.sealcast).ok_or("Sealcast is still used")?;
        self.runtime.block_on(sealcast.end());
        Ok(())
    }
}

impl Sender {
    /// Waits for a place among those that may be under way; `None` when none came free in time.
    pub fn place(&self, places: &Arc<Semaphore>, patience: Duration) -> Option<OwnedSemaphorePermit> {
        self.runtime.block_on(async {
            let place = tokio::time::timeout(patience, places.clone().acquire_owned());
            place.await.ok()?.ok()
        })
    }

    /// Hands a message over that is due at `due`; comes back at once.
    pub fn send(
        &self,
        way: Way,
        block: usize,
        bytes: u64,
        due: Instant,
        until: Until,
        place: Option<OwnedSemaphorePermit>,
    ) {
        let number = self.flights.begin(way.arm(), block, due, until, place);
        let start = number as usize * 4099 % SPARE;
        let payload = self.random.slice(start..start + bytes as usize);
        let (failures, arm) = (self.failures.clone(), way.arm());
        let failed = move |error: Failure| {
            failures.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{}: {error}", arm.word()));
        };
        if let Some(records) = self.records.get(&way).cloned() {
            let send = move || records.send(number, &payload).unwrap_or_else(failed);
            if bytes as usize > SMALL {
                self.runtime.spawn_blocking(send);
            } else {
                self.runtime.spawn(async move { send() });
            }
        } else {
            let sealcast = self.sealcast.clone();
            self.runtime.spawn(async move { sealcast.send(arm, number, due, payload).await.unwrap_or_else(failed) });
        }
    }
}
