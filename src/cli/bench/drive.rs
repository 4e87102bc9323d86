//! Runs the schedule: each sender takes what is due, submits it, and follows it to its end.
//!
//! Owns the tasks and the end of the run. Must not decide when a send is due, nor compute what was measured.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use indicatif::ProgressBar;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::measure::{Begun, Ending, Measured, Step, majority};
use super::mix::Mix;
use super::pace::Pace;
use super::report::{Facts, Report, Way};
use super::schedule::{Closed, Pattern, Until};
use crate::cli::signals::Signals;
use crate::cli::{CliError, Output};
use crate::client::{Client, Handle, Receipt, Transaction, WaitError};
use crate::core::id::DestinationName;
use crate::seams::{Clock, Seams};

/// A send that was due no longer than this before a signal ended the sending is not one that was missed.
const JUST_DUE: Duration = Duration::from_millis(10);
/// From everything being ready to the first send.
const HEAD_START: Duration = Duration::from_millis(20);
/// How long a send waits after it was given back, beside the wait for room.
const RETRY: Duration = Duration::from_millis(10);
/// How often progress is shown: on a terminal, and where nobody looks but a log.
const SHOWN_EVERY: Duration = Duration::from_millis(250);
const LOGGED_EVERY: Duration = Duration::from_secs(10);
/// Payload bytes that one sender submits side by side, and the most such payloads: more only queue for its outbox.
const SIDE_BY_SIDE: (u64, u64) = (64 << 20, 1024);
/// How many bytes more than a payload the random bytes are of which payloads are cut.
const SPARE: usize = 64 << 10;

/// What is sent, and where to.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// What it goes through.
    pub way: Way,
    /// Where to, in turn.
    pub destinations: Vec<DestinationName>,
    /// Payload bytes.
    pub mix: Mix,
    /// Ordering keys; none when 0.
    pub keys: u64,
    /// When each begins.
    pub pattern: Pattern,
    /// How long after the last one began the rest may take.
    pub timeout: Duration,
    /// When a send expires that has no fate.
    pub deadline: Duration,
}

impl Load {
    /// Where a send goes: in turn, in another order after each turn of the mix, so that no destination has sizes of its own.
    fn destination(&self, send: u64) -> Option<&DestinationName> {
        let count = (self.destinations.len() as u64).max(1);
        let turned = send / self.mix.turn().saturating_mul(count).max(1);
        self.destinations.get(usize::try_from(send.wrapping_add(turned) % count).unwrap_or_default())
    }
}

/// One send that is to begin.
struct Next {
    send: u64,
    /// When it is due; in a closed loop it is now.
    due: Option<Duration>,
    /// Whether it is measured, or only warms up.
    counts: bool,
}

/// Where a sender's next send comes from.
enum Source {
    /// The pace says when one is due.
    Due(mpsc::UnboundedReceiver<u64>),
    /// There is one whenever there is room for so many in flight.
    Room(u64),
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
    /// In a closed loop: sends that were begun, those of them that count, and when the last one began, in microseconds.
    taken: AtomicU64,
    counted: AtomicU64,
    last: AtomicU64,
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
    let mut random = vec![0; usize::try_from(load.mix.largest()).unwrap_or(usize::MAX).saturating_add(SPARE)];
    seams.randomness.fill(&mut random).map_err(|error| CliError::new(crate::cli::Exit::Unavailable, error))?;
    let run = Arc::new(Run {
        began: seams.clock.monotonic().saturating_add(HEAD_START),
        clock: seams.clock.clone(),
        random: random.into(),
        measured: [Mutex::new(Measured::new()?), Mutex::new(Measured::new()?)],
        taken: AtomicU64::new(0),
        counted: AtomicU64::new(0),
        last: AtomicU64::new(0),
        stop: CancellationToken::new(),
        over: CancellationToken::new(),
        load,
    });
    let senders = clients.len() as u64;
    let (pace, sources) = match run.load.pattern {
        Pattern::Open(schedule) => {
            let (senders, receivers): (Vec<_>, Vec<_>) = clients.iter().map(|_| mpsc::unbounded_channel()).unzip();
            let pace = Pace::start(schedule, run.began, seams.clock.clone(), senders)?;
            (Some(pace), receivers.into_iter().map(Source::Due).collect::<Vec<_>>())
        }
        Pattern::Closed(closed) => {
            (None, (0..senders).map(|sender| Source::Room(closed.of_sender(sender, senders))).collect())
        }
    };
    let mut sending = JoinSet::new();
    for (client, source) in clients.iter().zip(sources) {
        sending.spawn(run.clone().send_all(client.clone(), source));
    }
    let shown_every = if bar.is_hidden() { LOGGED_EVERY } else { SHOWN_EVERY };
    let mut failure = std::pin::pin!(failure);
    let (mut ended_by, mut outcome): (Option<(&'static str, Duration)>, _) = (None, Ok(()));
    loop {
        let left = run.over_at().saturating_sub(run.now());
        tokio::select! {
            ended = sending.join_next() => match ended {
                None => break,
                Some(ended) => outcome = outcome.and(flat(ended)),
            },
            error = &mut failure, if outcome.is_ok() => outcome = Err(error),
            signal = signals.next() => {
                if ended_by.is_none() && run.is_sending(pace.as_ref()) {
                    let (in_flight, last) = run.so_far();
                    output.note(&format!(
                        "{signal}: nothing more is sent; waiting for the fate of {in_flight}, and for the last receipts of \
                         {last} that are committed (again to end at once)"
                    ));
                } else {
                    run.over.cancel();
                }
                ended_by = ended_by.or(Some((signal, run.now())));
                run.stop.cancel();
            }
            // In a closed loop more may have begun meanwhile.
            () = run.clock.sleep(left), if !run.over.is_cancelled() => if run.now() >= run.over_at() {
                run.stop.cancel();
                run.over.cancel();
            },
            () = run.clock.sleep(shown_every) => run.show(bar, output),
        }
        if outcome.is_err() {
            run.stop.cancel();
            run.over.cancel();
        }
        if let Some(pace) = pace.as_ref().filter(|_| run.stop.is_cancelled()) {
            pace.stop();
        }
    }
    bar.finish_and_clear();
    outcome?;
    let (load, warmed, measured) = (&run.load, run.measured(false).clone(), run.measured(true).clone());
    // What was due: by the schedule, or what began.
    let (warm_up, due) = match (load.pattern, &pace) {
        (Pattern::Open(schedule), Some(pace)) => {
            let due = match ended_by {
                Some((_, at)) => pace.due().min(schedule.before(at.saturating_sub(JUST_DUE))),
                None => pace.due(),
            };
            let due = due.max(warmed.began + measured.began);
            (schedule.warm_up().min(due), due.saturating_sub(schedule.warm_up()))
        }
        _ => (warmed.began, measured.began),
    };
    let facts = Facts {
        way: load.way.clone(),
        destinations: load.destinations.clone(),
        mix: load.mix.clone(),
        senders,
        keys: load.keys,
        pattern: load.pattern,
        warm_up,
        due,
        ended_by: ended_by.map(|(signal, _)| signal),
    };
    Ok(Report { facts, warmed, measured })
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

    /// Sends without a fate, and committed ones that not all nodes have, warm-up included.
    fn so_far(&self) -> (u64, u64) {
        let [warm_up, measured] = [false, true].map(|counts| {
            let measured = self.measured(counts);
            let in_flight = measured.in_flight();
            (in_flight, measured.began.saturating_sub(measured.ended + in_flight))
        });
        (warm_up.0 + measured.0, warm_up.1 + measured.1)
    }

    /// When nothing more is waited for.
    fn over_at(&self) -> Duration {
        let last = match self.load.pattern {
            Pattern::Open(schedule) => schedule.ends(),
            // Without room nothing begins: then it is over that long after the last one did.
            Pattern::Closed(_) => Duration::from_micros(self.last.load(Ordering::Relaxed)),
        };
        last.saturating_add(self.load.timeout)
    }

    /// Whether more is to begin.
    fn is_sending(&self, pace: Option<&Pace>) -> bool {
        match (self.load.pattern, pace) {
            (Pattern::Open(schedule), Some(pace)) => pace.due() < schedule.total(),
            (Pattern::Closed(closed), _) => match closed.until {
                Until::Time(_) => closed.ends().is_some_and(|ends| self.now() < ends),
                Until::Sends(sends) => self.counted.load(Ordering::Relaxed) < sends,
            },
            (Pattern::Open(_), None) => false,
        }
    }

    fn show(&self, bar: &ProgressBar, output: &Output) {
        let (in_flight, _) = self.so_far();
        let (now, pattern) = (self.now(), &self.load.pattern);
        // Behind a rate that is too high sends of the warm-up are all that there is, long after their time.
        let counts = self.measured(true).began > 0;
        let measured = self.measured(counts);
        let begins = if counts { pattern.begins() } else { Duration::ZERO };
        let took = now.saturating_sub(begins).as_secs_f64();
        let rate = if took > 0.0 { measured.committed as f64 / took } else { 0.0 };
        let p99 = measured.step(Step::Committed).map_or(0.0, |latency| latency.quantile_ms(0.99));
        let what = match pattern.ends() {
            _ if now < pattern.begins() => "warming up",
            _ if !counts && !pattern.begins().is_zero() && !self.stop.is_cancelled() => "warming up, behind its time",
            Some(ends) if now > ends => "waiting for fates",
            _ => "measuring",
        };
        let text = format!("{what}: {rate:.1} committed/s, {in_flight} in flight, committed p99 {p99:.1} ms");
        if bar.is_hidden() {
            output.note(&format!("{:.0} s, {text}", now.as_secs_f64()));
            return;
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        match (pattern.ends(), pattern) {
            (Some(ends), _) => bar.set_position(millis(now.min(ends))),
            (None, _) => bar.set_position(self.counted.load(Ordering::Relaxed)),
        }
        bar.set_message(text);
    }

    /// In a closed loop: the next send, now; none when the sending is over.
    fn take(&self, closed: &Closed) -> Option<Next> {
        let now = self.now();
        let counts = now >= closed.warm_up;
        let more = match closed.until {
            Until::Time(_) => closed.ends().is_some_and(|ends| now < ends),
            Until::Sends(sends) => !counts || self.counted.fetch_add(1, Ordering::Relaxed) < sends,
        };
        if !more {
            return None;
        }
        self.last.fetch_max(u64::try_from(now.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        Some(Next { send: self.taken.fetch_add(1, Ordering::Relaxed), due: None, counts })
    }

    /// One sender: takes what is due, or what there is room for, as long as its client has room, and follows each send to its
    /// end.
    async fn send_all(self: Arc<Self>, client: Client, mut source: Source) -> Result<(), CliError> {
        let side_by_side = match &source {
            Source::Due(_) => {
                let (bytes, most) = SIDE_BY_SIDE;
                (bytes / self.load.mix.largest().max(1)).clamp(1, most)
            }
            Source::Room(in_flight) => *in_flight,
        };
        let room = Arc::new(Semaphore::new(usize::try_from(side_by_side).unwrap_or(1)));
        let mut flying = JoinSet::new();
        let mut outcome = Ok(());
        while outcome.is_ok() {
            let next = async {
                let next = match (&mut source, self.load.pattern) {
                    (Source::Due(due), Pattern::Open(schedule)) => {
                        let send = due.recv().await?;
                        let counts = schedule.is_measured(send);
                        (room.clone().acquire_owned().await.ok()?, Next { send, due: Some(schedule.due(send)), counts })
                    }
                    (Source::Room(_), Pattern::Closed(closed)) => {
                        let permit = room.clone().acquire_owned().await.ok()?;
                        (permit, self.take(&closed)?)
                    }
                    _ => return None,
                };
                client.ready(self.load.mix.size(next.1.send)).await;
                Some(next)
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
            let Some((permit, next)) = next else { break };
            flying.spawn(self.clone().send(client.clone(), next, permit));
        }
        while let Some(ended) = flying.join_next().await {
            outcome = outcome.and(flat(ended));
        }
        outcome
    }

    fn transaction(&self, send: u64) -> Transaction {
        // Neighbours differ, so that nothing on the way can know a payload again.
        let start = usize::try_from(send.wrapping_mul(4099) % SPARE as u64).unwrap_or_default();
        let size = self.load.mix.size(send);
        let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
        let transaction = Transaction::new(self.random.slice(start..end.min(self.random.len())))
            .content_type("application/vnd.sealcast.bench")
            .deadline(self.load.deadline);
        match send.checked_rem(self.load.keys) {
            Some(key) => transaction.key(format!("bench-{key}").into_bytes()),
            None => transaction,
        }
    }

    /// One send, from submit to its end.
    async fn send(self: Arc<Self>, client: Client, next: Next, permit: OwnedSemaphorePermit) -> Result<(), CliError> {
        let Next { send, due, counts } = next;
        let (size, mut permit) = (self.load.mix.size(send), Some(permit));
        let Some(destination) = self.load.destination(send) else { return Ok(()) };
        let mut transaction = self.transaction(send);
        let (begun, handle) = loop {
            let began = self.now();
            let begun = Begun { due: due.unwrap_or(began), began, size };
            let submitted = unless(&self.over, client.submit(destination.as_str(), transaction)).await;
            match submitted {
                Some(Ok(handle)) => break (begun, handle),
                Some(Err(refused)) if refused.retryable() => {
                    self.measured(counts).given_back += 1;
                    transaction = *refused.transaction;
                    let room = async {
                        self.clock.sleep(RETRY).await;
                        client.ready(size).await;
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
                    measured.end(&begun, Ending::Unknown);
                    return Ok(());
                }
            }
        };
        if due.is_some() {
            drop(permit.take());
        }
        {
            let sealed = self.now().saturating_sub(begun.began);
            let mut measured = self.measured(counts);
            measured.begin(&begun);
            measured.reach(Step::Sealed, begun.since_due(sealed));
        }
        let ending = self.follow(&handle, &begun, counts, permit).await;
        let known = self.now().saturating_sub(begun.began);
        let mut measured = self.measured(counts);
        if let Some(accepted) = handle.times().accepted {
            measured.reach(Step::Accepted, begun.since_due(accepted));
        }
        if let Some(receipt) = handle.receipt().filter(|_| ending == Ending::Committed) {
            nodes(&mut measured, &receipt, known, &begun);
        }
        measured.end(&begun, ending);
        Ok(())
    }

    /// Follows a send until all nodes have it, or there is nothing more to wait for. In a closed loop it makes room for the
    /// next one once it is committed: `permit`.
    async fn follow(
        &self,
        handle: &Handle,
        begun: &Begun,
        counts: bool,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Ending {
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
        drop(permit);
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
