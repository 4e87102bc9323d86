//! Latency: an open loop. Messages are due at fixed intervals, one arm after the other in rotated order, and every time counts
//! from the moment at which a message was due; what happens meanwhile moves none of these moments.

use std::thread;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::common::kafka::Cluster;
use crate::common::proxy::{Pass, Proxy};
use crate::figures::order::order;
use crate::figures::results::Outcome;
use crate::figures::words::{Arm, Condition};
use crate::flights::Until;
use crate::ground::{Ground, Way};

/// In each direction, which a request and its answer pass once each: 200 ms.
const SLOW: Duration = Duration::from_millis(100);
/// The broker that is hurt when it is one.
const HURT: u32 = 2;
/// How long a broker may take to end in order.
const ENDING: Duration = Duration::from_secs(15);
/// From everything being ready to the first message.
const HEAD_START: Duration = Duration::from_millis(50);

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Payload bytes of a message.
    pub bytes: u64,
    /// Messages of each arm, at least: while brokers are in trouble it goes on.
    pub rounds: usize,
    /// From one message to the next, whatever their arms.
    pub gap: Duration,
    /// Which part of the run it is, for the spread.
    pub block: usize,
}

/// How trouble goes.
#[derive(Debug, Clone, Copy)]
pub struct Trouble {
    /// Before it begins and after it ended.
    pub calm: Duration,
    /// How long a broker is paused.
    pub pause: Duration,
    /// How long a killed one stays away while messages go on.
    pub away: Duration,
    /// Whether it comes back then, or only when all that can come without it has come.
    pub returns: bool,
    /// How many brokers are rolled.
    pub rolled: u32,
    /// From one being back to the next one's end.
    pub between: Duration,
    /// How long what is under way is waited for.
    pub patience: Duration,
}

/// Sends to all arms under this condition, and gives what became of each message.
pub fn run(
    ground: &mut Ground,
    arms: &[Arm],
    condition: Condition,
    load: Load,
    how: &Trouble,
) -> Result<Vec<Outcome>, Failure> {
    let sender = ground.sender();
    let (cluster, proxies) = (&mut ground.cluster, &ground.proxies);
    if condition == Condition::Slow {
        delay(proxies, SLOW)?;
    }
    thread::scope(|scope| {
        let trouble = scope.spawn(|| make_trouble(condition, cluster, how));
        let began = Instant::now() + HEAD_START;
        let mut due = began;
        let mut round = 0;
        while round < load.rounds || !trouble.is_finished() {
            for place in order(arms.len(), round) {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if let Some(arm) = arms.get(place) {
                    sender.send(Way::Of(*arm), load.block, load.bytes, due, Until::Everything, None);
                }
                due += load.gap;
            }
            round += 1;
        }
        trouble.join().map_err(|_| "the trouble could not be made")
    })?;
    let flights = ground.flights.clone();
    match condition {
        // What had one copy on the dead broker waits for its return: that it is not delivered is the figure.
        Condition::Killed if !how.returns => flights.wait(how.patience, |arm| arm.is_sealcast() || arm.factor() == 3),
        _ => flights.wait(how.patience, |_| true),
    };
    let outcomes = flights.take();
    match condition {
        Condition::Killed if !how.returns => ground.cluster.start_again(HURT),
        Condition::Slow => delay(&ground.proxies, Duration::ZERO)?,
        _ => {}
    }
    Ok(outcomes)
}

fn delay(proxies: &[Proxy], by: Duration) -> Result<(), Failure> {
    let proxy = proxies.get(HURT as usize - 1).ok_or("a broker is slow only behind a proxy")?;
    proxy.set(Pass::After(by));
    Ok(())
}

fn make_trouble(condition: Condition, cluster: &mut Cluster, how: &Trouble) {
    match condition {
        Condition::AllWell | Condition::AllWellProxied | Condition::Slow => {}
        Condition::Paused => {
            thread::sleep(how.calm);
            cluster.pause(HURT);
            thread::sleep(how.pause);
            cluster.resume(HURT);
            thread::sleep(how.calm);
        }
        Condition::Killed => {
            thread::sleep(how.calm);
            cluster.kill(HURT);
            thread::sleep(how.away);
            if how.returns {
                cluster.start_again(HURT);
            }
        }
        Condition::Rolled => {
            thread::sleep(how.calm);
            for number in 1..=how.rolled {
                cluster.end(number, ENDING);
                cluster.start_again(number);
                thread::sleep(how.between);
            }
        }
    }
}
