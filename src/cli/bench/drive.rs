//! Runs the schedule: each sender takes what is due, submits it, and follows it to its end.
//!
//! Owns the tasks and the end of the run. Must not decide when a send is due, nor compute what was measured.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use indicatif::ProgressBar;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::measure::{Begun, Ending, Measured, Step, majority};
use super::pace::Pace;
use super::report::{Facts, Report};
use super::schedule::Schedule;
use crate::cli::signals::Signals;
use crate::cli::{CliError, Output};
use crate::client::{Client, Handle, Receipt, Transaction, WaitError};
use crate::core::id::DestinationName;
use crate::seams::{Clock, Seams};

/// From everything being ready to the first send.
const HEAD_START: Duration = Duration::from_millis(20);
/// How long a send waits after it was given back, beside the wait for room.
const RETRY: Duration = Duration::from_millis(10);
/// How often progress is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(250);
/// Payload bytes that one sender submits side by side, and the most such payloads: more only queue for its outbox.
const SIDE_BY_SIDE: (u64, u64) = (64 << 20, 1024);
/// How many bytes more than a payload the random bytes are of which payloads are cut.
const SPARE: usize = 64 << 10;

/// What is sent, and where to.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// Where to.
    pub destination: DestinationName,
    /// Payload bytes of each send.
    pub size: u64,
    /// Ordering keys; none when 0.
    pub keys: u64,
    /// Sends a second.
    pub rate: f64,
    /// When each is due.
    pub schedule: Schedule,
    /// How long after the last one was due the rest may take.
    pub timeout: Duration,
    /// When a send expires that has no fate.
    pub deadline: Duration,
}

/// What all tasks of a run share.
struct Run {
    load: Load,
    clock: Arc<dyn Clock>,
    /// Monotonic time of the beginning: due times count from here.
    began: Duration,
    random: Bytes,
    /// What warms up, and what counts.
    measured: [Mutex<Measured>; 2],
    /// Nothing more is sent.
    stop: CancellationToken,
    /// Nothing more is waited for.
    over: CancellationToken,
}

/// Runs it until every send has its end, the time is over, or a signal ends it: the first one ends the sending, the second one
/// the waiting. `failure` is what ends it with an error.
pub(super) async fn run(
    load: Load,
    clients: &[Client],
    seams: &Seams,
    signals: &mut Signals,
    output: &Output,
    bar: &ProgressBar,
    failure: impl Future<Output = CliError>,
) -> Result<Report, CliError> {
    let mut random = vec![0; usize::try_from(load.size).unwrap_or(usize::MAX).saturating_add(SPARE)];
    seams.randomness.fill(&mut random).map_err(|error| CliError::new(crate::cli::Exit::Unavailable, error))?;
    let run = Arc::new(Run {
        began: seams.clock.monotonic().saturating_add(HEAD_START),
        clock: seams.clock.clone(),
        random: random.into(),
        measured: [Mutex::new(Measured::new()?), Mutex::new(Measured::new()?)],
        stop: CancellationToken::new(),
        over: CancellationToken::new(),
        load,
    });
    let (senders, receivers): (Vec<_>, Vec<_>) = clients.iter().map(|_| mpsc::unbounded_channel()).unzip();
    let pace = Pace::start(run.load.schedule, run.began, seams.clock.clone(), senders)?;
    let mut sending = JoinSet::new();
    for (client, due) in clients.iter().zip(receivers) {
        sending.spawn(run.clone().send_all(client.clone(), due));
    }
    let end = run.load.schedule.ends().saturating_add(run.load.timeout);
    let mut failure = std::pin::pin!(failure);
    let (mut ended_by, mut outcome) = (None, Ok(()));
    loop {
        let left = end.saturating_sub(run.now());
        tokio::select! {
            ended = sending.join_next() => match ended {
                None => break,
                Some(ended) => outcome = outcome.and(flat(ended)),
            },
            error = &mut failure, if outcome.is_ok() => outcome = Err(error),
            signal = signals.next() => {
                if ended_by.is_none() && pace.due() < run.load.schedule.total() {
                    let (began, ended) = run.so_far();
                    output.note(&format!(
                        "{signal}: nothing more is sent; waiting for the fate of {} in flight (again to end at once)",
                        began - ended
                    ));
                } else {
                    run.over.cancel();
                }
                ended_by = ended_by.or(Some(signal));
                run.stop.cancel();
            }
            () = run.clock.sleep(left) => {
                run.stop.cancel();
                run.over.cancel();
            }
            () = run.clock.sleep(SHOWN_EVERY), if !bar.is_hidden() => run.show(bar),
        }
        if outcome.is_err() {
            run.stop.cancel();
            run.over.cancel();
        }
        if run.stop.is_cancelled() {
            pace.stop();
        }
    }
    bar.finish_and_clear();
    outcome?;
    let load = &run.load;
    let facts = Facts {
        destination: load.destination.clone(),
        size: load.size,
        senders: clients.len() as u64,
        keys: load.keys,
        rate: load.rate,
        schedule: load.schedule,
        due: pace.due(),
        ended_by,
    };
    let measured = run.measured(true).clone();
    Ok(Report { facts, measured })
}

fn flat(ended: Result<Result<(), CliError>, JoinError>) -> Result<(), CliError> {
    ended.unwrap_or_else(|error| Err(CliError::failed(format!("a sender ended: {error}"))))
}

/// A future's output, unless `token` is cancelled first.
async fn unless<T>(token: &CancellationToken, future: impl Future<Output = T>) -> Option<T> {
    match select(std::pin::pin!(future), std::pin::pin!(token.cancelled())).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}

impl Run {
    /// Time since the beginning.
    fn now(&self) -> Duration {
        self.clock.monotonic().saturating_sub(self.began)
    }

    fn measured(&self, counts: bool) -> MutexGuard<'_, Measured> {
        let [warm_up, measured] = &self.measured;
        if counts { measured } else { warm_up }.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends that began and sends that ended, warm-up included.
    fn so_far(&self) -> (u64, u64) {
        let (warm_up, measured) = (self.measured(false).clone(), self.measured(true));
        (warm_up.began + measured.began, warm_up.ended + measured.ended)
    }

    fn show(&self, bar: &ProgressBar) {
        let (began, ended) = self.so_far();
        let (now, schedule) = (self.now(), &self.load.schedule);
        let measured = self.measured(true);
        let took = now.min(schedule.ends()).saturating_sub(schedule.begins()).as_secs_f64();
        let rate = if took > 0.0 { measured.began as f64 / took } else { 0.0 };
        let p99 = measured.step(Step::Committed).map_or(0.0, |latency| latency.quantile_ms(0.99));
        let what = if now < schedule.begins() { "warming up" } else { "measuring" };
        bar.set_position(u64::try_from(now.min(schedule.ends()).as_millis()).unwrap_or(u64::MAX));
        bar.set_message(format!(
            "{what}: {rate:.1}/s, {} in flight, committed p99 {p99:.1} ms",
            began.saturating_sub(ended)
        ));
    }

    /// One sender: takes what is due, as long as its client has room, and follows each send to its end.
    async fn send_all(self: Arc<Self>, client: Client, mut due: mpsc::UnboundedReceiver<u64>) -> Result<(), CliError> {
        let (bytes, most) = SIDE_BY_SIDE;
        let side_by_side = (bytes / self.load.size.max(1)).clamp(1, most);
        let room = Arc::new(Semaphore::new(usize::try_from(side_by_side).unwrap_or(1)));
        let mut flying = JoinSet::new();
        let mut outcome = Ok(());
        while outcome.is_ok() {
            let next = async {
                let send = due.recv().await?;
                let permit = room.clone().acquire_owned().await.ok()?;
                client.ready(self.load.size).await;
                Some((send, permit))
            };
            let next = unless(&self.stop, next);
            let mut next = std::pin::pin!(next);
            let next = loop {
                tokio::select! {
                    next = &mut next => break next.flatten(),
                    Some(ended) = flying.join_next() => {
                        outcome = outcome.and(flat(ended));
                        if outcome.is_err() {
                            break None;
                        }
                    }
                }
            };
            let Some((send, permit)) = next else { break };
            flying.spawn(self.clone().send(client.clone(), send, permit));
        }
        while let Some(ended) = flying.join_next().await {
            outcome = outcome.and(flat(ended));
        }
        outcome
    }

    fn transaction(&self, send: u64) -> Transaction {
        // Neighbours differ, so that nothing on the way can know a payload again.
        let start = usize::try_from(send.wrapping_mul(4099) % SPARE as u64).unwrap_or_default();
        let end = start.saturating_add(usize::try_from(self.load.size).unwrap_or(usize::MAX));
        let transaction = Transaction::new(self.random.slice(start..end.min(self.random.len())))
            .content_type("application/vnd.sealcast.bench")
            .deadline(self.load.deadline);
        match send.checked_rem(self.load.keys) {
            Some(key) => transaction.key(format!("bench-{key}").into_bytes()),
            None => transaction,
        }
    }

    /// One send, from submit to its end.
    async fn send(self: Arc<Self>, client: Client, send: u64, permit: OwnedSemaphorePermit) -> Result<(), CliError> {
        let counts = self.load.schedule.is_measured(send);
        let due = self.load.schedule.due(send);
        let mut transaction = self.transaction(send);
        let (begun, handle) = loop {
            let begun = Begun { due, began: self.now() };
            let submitted = unless(&self.over, client.submit(self.load.destination.as_str(), transaction)).await;
            match submitted {
                Some(Ok(handle)) => break (begun, handle),
                Some(Err(refused)) if refused.retryable() => {
                    self.measured(counts).given_back += 1;
                    transaction = *refused.transaction;
                    let room = async {
                        self.clock.sleep(RETRY).await;
                        client.ready(self.load.size).await;
                    };
                    // What was given back did not begin.
                    if unless(&self.stop, room).await.is_none() {
                        return Ok(());
                    }
                }
                Some(Err(refused)) => return Err(refused.into()),
                None => {
                    // It may be durable in the outbox by now, or not.
                    let mut measured = self.measured(counts);
                    measured.begin(&begun);
                    measured.end(Ending::Unknown);
                    return Ok(());
                }
            }
        };
        drop(permit);
        {
            let sealed = self.now().saturating_sub(begun.began);
            let mut measured = self.measured(counts);
            measured.begin(&begun);
            measured.reach(Step::Sealed, begun.since_due(sealed));
        }
        let ending = self.follow(&handle, &begun, counts).await;
        let known = self.now().saturating_sub(begun.began);
        let mut measured = self.measured(counts);
        if let Some(accepted) = handle.times().accepted {
            measured.reach(Step::Accepted, begun.since_due(accepted));
        }
        if let Some(receipt) = handle.receipt().filter(|_| ending == Ending::Committed) {
            nodes(&mut measured, &receipt, known, &begun);
        }
        measured.end(ending);
        Ok(())
    }

    /// Follows a send until all nodes have it, or there is nothing more to wait for.
    async fn follow(&self, handle: &Handle, begun: &Begun, counts: bool) -> Ending {
        match unless(&self.over, handle.committed()).await {
            Some(Ok(_)) => {}
            Some(Err(WaitError::Rejected(reason))) => {
                tracing::warn!(ticket = %handle.ticket(), reason = reason.word(), "rejected");
                return Ending::Rejected;
            }
            Some(Err(WaitError::Expired)) => return Ending::Expired,
            Some(Err(error)) => {
                tracing::warn!(ticket = %handle.ticket(), %error, "its fate stays unknown");
                return Ending::Unknown;
            }
            None => return Ending::Unknown,
        }
        if let Some(took) = handle.times().committed {
            self.measured(counts).commit(begun, took);
        }
        // Committed is what counts; a node that is away keeps it from being complete.
        if let Some(Ok(_)) = unless(&self.over, handle.complete()).await
            && let Some(took) = handle.times().complete
        {
            self.measured(counts).reach(Step::Complete, begun.since_due(took));
        }
        Ending::Committed
    }
}

/// What nodes say of a send that is committed, all of it known here `known` after it began.
fn nodes(measured: &mut Measured, receipt: &Receipt, known: Duration, begun: &Begun) {
    let delivered = majority(receipt.times.values().map(|node| node.delivered), receipt.voters);
    let both = receipt.times.values().map(|node| Some(node.delivered? + node.staged?));
    let staged = majority(both, receipt.voters);
    for (step, took) in [(Step::Delivered, delivered), (Step::Staged, staged)] {
        if let Some(took) = took {
            measured.reach(step, begun.since_due(took));
        }
    }
    receipt.times.iter().for_each(|(node, said)| measured.said(node, said, known));
}
