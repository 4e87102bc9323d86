//! What is known of the cluster: who leads each partition, which brokers can be reached, in which domain they are.
//!
//! Owns the knowledge alone: no connections, no threads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::access::{Access, Failure};
use crate::seams::Clock;
pub(super) use crate::transport::admin::BrokerId;
use crate::transport::admin::{copies, domain};
use crate::transport::contract::{Domain, Offset, Partition, PartitionId, Topic, Trouble};

/// A partition as the cluster's metadata has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    pub number: i32,
    pub leader: Option<BrokerId>,
    /// Those on brokers that the cluster lists: no other acknowledges anything.
    pub replicas: Vec<BrokerId>,
}

/// How many of librdkafka's complaints are remembered so that they are not told again and again.
const COMPLAINTS: usize = 64;

/// What is known of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Asked for, no answer yet.
    Unknown,
    /// The cluster has no such topic.
    Missing(String),
    /// We have no right to see it, or the cluster does not take its name.
    Refused(String),
    /// There it is; and how many replicas must be in sync for an acknowledgement.
    There(Vec<Placed>, u32),
}

/// Where an append goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// To this broker.
    Broker(BrokerId),
    /// Nowhere now.
    Absent(String),
    /// Nowhere, until somebody mends something.
    Refused(String),
}

struct Known {
    found: Found,
    published: Arc<[Partition]>,
    leaderless_since: BTreeMap<i32, Duration>,
}

#[derive(Default)]
struct Broker {
    rack: Option<String>,
    down_since: Option<Duration>,
}

#[derive(Default)]
struct State {
    topics: BTreeMap<Topic, Known>,
    brokers: BTreeMap<BrokerId, Broker>,
    watermarks: BTreeMap<PartitionId, (Offset, Offset)>,
    /// The latest connection that failed since the cluster last answered.
    failure: Option<Failure>,
    /// What librdkafka complained about, and of which broker: told once until that broker answers again.
    complaints: BTreeMap<(Option<BrokerId>, String), Duration>,
    /// Something changed that the refresher should look at now.
    stirred: bool,
    closed: bool,
}

/// The board. Shared by all of a transport's threads.
pub(super) struct Board {
    state: Mutex<State>,
    wake: Condvar,
    clock: Arc<dyn Clock>,
    access: Access,
}

impl Board {
    pub(super) fn new(clock: Arc<dyn Clock>, access: Access) -> Self {
        Self { state: Mutex::default(), wake: Condvar::new(), clock, access }
    }

    /// Who we are to the cluster.
    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The partitions as published; asks for the topic when nobody did before.
    pub(super) fn partitions(&self, topic: &Topic) -> Arc<[Partition]> {
        let mut state = self.state();
        if let Some(known) = state.topics.get(topic) {
            return known.published.clone();
        }
        let published: Arc<[Partition]> = Arc::from([]);
        let known = Known { found: Found::Unknown, published: published.clone(), leaderless_since: BTreeMap::new() };
        state.topics.insert(topic.clone(), known);
        self.stir(&mut state);
        published
    }

    /// Where an append to this partition goes now.
    pub(super) fn route(&self, to: &PartitionId) -> Route {
        self.partitions(&to.topic);
        let state = self.state();
        let Some(known) = state.topics.get(&to.topic) else { return Route::Absent("not known yet".to_owned()) };
        match &known.found {
            Found::Unknown => Route::Absent("the topic's partitions are not known yet".to_owned()),
            Found::Missing(cause) | Found::Refused(cause) => Route::Refused(cause.clone()),
            Found::There(placed, _) => match placed.iter().find(|placed| placed.number == to.number) {
                None => Route::Refused(format!(
                    "the topic has {} partitions; look at it with `sealcast topic check`",
                    placed.len()
                )),
                Some(Placed { leader: None, .. }) => Route::Absent("the partition has no leader".to_owned()),
                Some(Placed { leader: Some(leader), .. }) => Route::Broker(*leader),
            },
        }
    }

    /// Since when a record for this partition has nowhere to go: its broker is down, or it has no leader.
    pub(super) fn absent_since(&self, partition: &PartitionId, broker: BrokerId) -> Option<Duration> {
        let state = self.state();
        let down = state.brokers.get(&broker).and_then(|broker| broker.down_since);
        let known = state.topics.get(&partition.topic);
        let leaderless = known.and_then(|known| known.leaderless_since.get(&partition.number)).copied();
        [down, leaderless].into_iter().flatten().min()
    }

    /// Whether any broker is down or any partition without a leader.
    pub(super) fn troubled(&self) -> bool {
        let state = self.state();
        let down = state.brokers.values().any(|broker| broker.down_since.is_some());
        down || state.topics.values().any(|known| !known.leaderless_since.is_empty())
    }

    /// Whether a broker that can be reached did not say its rack yet.
    fn unplaced(&self) -> bool {
        self.state().brokers.values().any(|broker| broker.rack.is_none() && broker.down_since.is_none())
    }

    /// Since when a broker cannot be reached.
    pub(super) fn down_since(&self, broker: BrokerId) -> Option<Duration> {
        self.state().brokers.get(&broker).and_then(|broker| broker.down_since)
    }

    /// A broker's connection was lost, or it does not answer.
    pub(super) fn down(&self, broker: BrokerId, cause: &str) {
        let now = self.clock.monotonic();
        let mut state = self.state();
        let found = state.brokers.entry(broker).or_default();
        if found.down_since.is_some() {
            return;
        }
        found.down_since = Some(now);
        tracing::warn!(broker, cause, "a broker cannot be reached");
        self.publish(&mut state);
        self.stir(&mut state);
    }

    /// A broker answered.
    pub(super) fn up(&self, broker: BrokerId) {
        let mut state = self.state();
        let Some(since) = state.brokers.get_mut(&broker).and_then(|found| found.down_since.take()) else { return };
        let away = self.clock.monotonic().saturating_sub(since);
        state.complaints.retain(|(about, _), _| *about != Some(broker));
        tracing::info!(broker, away_ms = away.as_millis() as u64, "a broker can be reached again");
        self.publish(&mut state);
    }

    /// A line of librdkafka's log about a failed connection: which known broker it is about, that one is down.
    pub(super) fn connection_failed(&self, line: &str) {
        let about = {
            let mut state = self.state();
            state.failure = Some(Failure::of(line));
            state.about(line)
        };
        if let Some(broker) = about {
            self.down(broker, line);
        }
    }

    /// The latest connection that failed since the cluster last answered.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.state().failure.clone()
    }

    /// The cluster answered: what failed before is no cause of what fails later.
    pub(super) fn answered(&self) {
        self.state().failure = None;
    }

    /// Why nothing is published of a topic, as far as it is known.
    pub(super) fn trouble(&self, topic: &Topic) -> Option<Trouble> {
        let state = self.state();
        let (cause, missing) = match &state.topics.get(topic)?.found {
            Found::There(..) => return None,
            Found::Missing(cause) => (cause.clone(), true),
            Found::Refused(cause) => (cause.clone(), false),
            Found::Unknown => (self.access.unreached(Some(state.failure.clone()?), String::new()).to_string(), false),
        };
        Some(Trouble { cause, missing })
    }

    /// Whether a complaint of librdkafka is news: not the same about the same broker as before, since that broker last came
    /// back.
    pub(super) fn is_news(&self, facility: &str, line: &str) -> bool {
        let mut state = self.state();
        let about = state.about(line);
        // Numbers, addresses and durations differ from line to line.
        let text = line.rsplit_once("]: ").map_or(line, |(_, text)| text);
        let text: String = text.chars().filter(|letter| !letter.is_ascii_digit()).collect();
        let key = (about, format!("{facility}: {text}"));
        let now = self.clock.monotonic();
        if state.complaints.len() >= COMPLAINTS && !state.complaints.contains_key(&key) {
            let oldest = state.complaints.iter().min_by_key(|(_, at)| **at).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| state.complaints.remove(&oldest));
        }
        state.complaints.insert(key, now).is_none()
    }

    /// Brokers that are down, each with a partition that it leads, to ask it about.
    pub(super) fn to_probe(&self) -> Vec<(BrokerId, Option<PartitionId>)> {
        let state = self.state();
        let down = state.brokers.iter().filter(|(_, broker)| broker.down_since.is_some());
        down.map(|(id, _)| (*id, state.led_by(*id))).collect()
    }

    /// Forgets brokers that are down and are no part of the cluster any more, as far as it lists its brokers.
    pub(super) fn listed(&self, brokers: &BTreeSet<BrokerId>) {
        let mut state = self.state();
        let gone: Vec<BrokerId> = state
            .brokers
            .iter()
            .filter(|(id, broker)| broker.down_since.is_some() && !brokers.contains(id) && state.led_by(**id).is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            tracing::info!(broker = id, "a broker that cannot be reached is not listed by the cluster any more");
            state.brokers.remove(&id);
        }
    }

    /// Topics that somebody asked about, and whether each is settled.
    pub(super) fn topics(&self) -> Vec<Topic> {
        self.state().topics.keys().cloned().collect()
    }

    /// Brokers whose domain was not asked for yet.
    pub(super) fn without_rack(&self, brokers: &BTreeSet<BrokerId>) -> Vec<BrokerId> {
        let state = self.state();
        let known = |id: &BrokerId| state.brokers.get(id).is_some_and(|broker| broker.rack.is_some());
        brokers.iter().copied().filter(|id| !known(id)).collect()
    }

    /// Notes a broker's rack; an empty one means that it declares none.
    pub(super) fn set_rack(&self, broker: BrokerId, rack: String) {
        let mut state = self.state();
        state.brokers.entry(broker).or_default().rack = Some(rack);
        self.publish(&mut state);
    }

    /// Notes what the cluster says of a topic.
    pub(super) fn learned(&self, topic: &Topic, found: Found) {
        let now = self.clock.monotonic();
        let mut state = self.state();
        if let Found::There(placed, _) = &found {
            for leader in placed.iter().filter_map(|placed| placed.leader) {
                state.brokers.entry(leader).or_default();
            }
        }
        let Some(known) = state.topics.get_mut(topic) else { return };
        if known.found == found {
            return;
        }
        if let Found::There(placed, _) = &found {
            let before = std::mem::take(&mut known.leaderless_since);
            let leaderless = placed.iter().filter(|placed| placed.leader.is_none()).map(|placed| placed.number);
            known.leaderless_since =
                leaderless.map(|number| (number, before.get(&number).copied().unwrap_or(now))).collect();
        }
        known.found = found;
        self.publish(&mut state);
    }

    /// Forgets what was found of a topic, so that it is looked at now.
    pub(super) fn forget(&self, topic: &Topic) {
        let mut state = self.state();
        if let Some(known) = state.topics.get_mut(topic) {
            known.found = Found::Unknown;
            self.stir(&mut state);
        }
    }

    /// The time that the board counts in.
    pub(super) fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Whether anything is missing that a quick look may bring.
    pub(super) fn restless(&self) -> bool {
        let unknown = self.state().topics.values().any(|known| known.found == Found::Unknown);
        unknown || self.unplaced() || self.troubled()
    }

    /// The watermarks last heard of a partition.
    pub(super) fn watermarks(&self, partition: &PartitionId) -> (Offset, Offset) {
        self.state().watermarks.get(partition).copied().unwrap_or((0, 0))
    }

    /// Notes watermarks that a broker was asked for: they may be those of a log that was cut or made anew.
    pub(super) fn learn_watermarks(&self, partition: PartitionId, low: Offset, end: Offset) {
        self.state().watermarks.insert(partition, (low, end));
    }

    /// Notes watermarks of a consumer's statistics, which may be old: they only grow.
    pub(super) fn set_watermarks(&self, partition: PartitionId, low: Offset, end: Offset) {
        let mut state = self.state();
        let known = state.watermarks.entry(partition).or_insert((0, 0));
        *known = (known.0.max(low), known.1.max(end));
    }

    /// Waits up to `most`, or until something changed that needs a look. `false` when the transport is closed.
    pub(super) fn wait(&self, most: Duration) -> bool {
        let mut state = self.state();
        if !state.stirred && !state.closed {
            state = self.wake.wait_timeout(state, most).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.stirred = false;
        !state.closed
    }

    /// Ends all waiting, for good.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.wake.notify_all();
    }

    /// Whether the transport is closed.
    pub(super) fn closed(&self) -> bool {
        self.state().closed
    }

    fn stir(&self, state: &mut State) {
        state.stirred = true;
        self.wake.notify_all();
    }

    /// Renews what `partitions` gives, topic by topic, where it changed.
    fn publish(&self, state: &mut State) {
        let State { topics, brokers, .. } = state;
        for (topic, known) in topics {
            let Found::There(placed, in_sync) = &known.found else {
                if !known.published.is_empty() {
                    known.published = Arc::from([]);
                }
                continue;
            };
            let rack = |id: BrokerId| brokers.get(&id).and_then(|broker| broker.rack.as_deref());
            let racks = brokers.values().any(|broker| broker.rack.as_deref().is_some_and(|rack| !rack.is_empty()));
            // Where brokers declare racks, those that did not answer yet may all be in one.
            let domain_of = |id: BrokerId| match rack(id) {
                None if racks => None,
                rack => Some(domain(id, rack)),
            };
            let partition = |placed: &Placed| {
                let broker = placed.leader.and_then(|leader| brokers.get(&leader));
                let name = placed.leader.map_or(String::new(), |leader| domain(leader, rack(leader)));
                let replicas = placed.replicas.iter().map(|id| domain_of(*id));
                Partition {
                    id: PartitionId { topic: topic.clone(), number: placed.number },
                    domain: Domain(name.into()),
                    // Nor is used what they lead: it might fail together with what it is counted beside.
                    up: broker.is_some_and(|broker| broker.down_since.is_none())
                        && placed.leader.and_then(domain_of).is_some(),
                    copies: copies(replicas, *in_sync as usize),
                }
            };
            let published: Arc<[Partition]> = placed.iter().map(partition).collect();
            if published != known.published {
                known.published = published;
            }
        }
    }
}

impl State {
    /// Which known broker a line of librdkafka's log is about.
    fn about(&self, line: &str) -> Option<BrokerId> {
        self.brokers.keys().copied().find(|id| line.contains(&format!("/{id}: ")))
    }

    fn led_by(&self, broker: BrokerId) -> Option<PartitionId> {
        self.topics.iter().find_map(|(topic, known)| match &known.found {
            Found::There(placed, _) => placed
                .iter()
                .find(|placed| placed.leader == Some(broker))
                .map(|placed| PartitionId { topic: topic.clone(), number: placed.number }),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::Time;
    use crate::seams::ManualClock;

    fn topic() -> Topic {
        Topic::named("topic")
    }

    fn placed(leaders: &[Option<BrokerId>], replicas: usize) -> Vec<Placed> {
        let replicas: Vec<BrokerId> = (1..).take(replicas).collect();
        (0..)
            .zip(leaders)
            .map(|(number, leader)| Placed { number, leader: *leader, replicas: replicas.clone() })
            .collect()
    }

    fn board(leaders: &[Option<BrokerId>], replicas: usize, in_sync: u32) -> (Board, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(Time(0)));
        let board = Board::new(clock.clone(), Access::default());
        assert!(board.partitions(&topic()).is_empty());
        board.learned(&topic(), Found::There(placed(leaders, replicas), in_sync));
        (board, clock)
    }

    fn domains(board: &Board) -> Vec<(String, bool, u8)> {
        let partitions = board.partitions(&topic());
        partitions.iter().map(|known| (known.domain.0.to_string(), known.up, known.copies)).collect()
    }

    #[test]
    fn a_domain_is_a_rack_where_one_is_declared_else_a_broker() {
        let (board, _) = board(&[Some(1), Some(2), Some(3), None], 1, 1);
        board.set_rack(1, "east".to_owned());
        board.set_rack(2, String::new());
        let wanted = [("rack east", true), ("broker 2", true), ("broker 3", false), ("", false)];
        assert_eq!(domains(&board), wanted.map(|(domain, up)| (domain.to_owned(), up, 1)));
        // Broker 3 did not say yet whether it is in the east, too: nothing is put there as if it were not, until it does.
        assert!(board.restless());
        board.set_rack(3, "east".to_owned());
        let wanted = [("rack east", true), ("broker 2", true), ("rack east", true), ("", false)];
        assert_eq!(domains(&board), wanted.map(|(domain, up)| (domain.to_owned(), up, 1)));
    }

    #[test]
    fn an_acknowledgement_counts_for_two_domains_only_where_two_replicas_must_have_it() {
        for (replicas, in_sync, copies) in [(1, 1, 1), (3, 1, 1), (3, 2, 2), (1, 2, 1)] {
            let (board, _) = board(&[Some(1)], replicas, in_sync);
            assert_eq!(
                domains(&board),
                [("broker 1".to_owned(), true, copies)],
                "{replicas} replicas, {in_sync} in sync"
            );
        }
    }

    #[test]
    fn a_failed_connection_is_about_the_broker_that_the_line_names() {
        let (board, _) = board(&[Some(1), Some(11)], 1, 1);
        board.connection_failed("[thrd:host:9092/11]: host:9092/11: Disconnected (after 5ms in state UP)");
        assert_eq!(board.partitions(&topic()).iter().map(|known| known.up).collect::<Vec<_>>(), [true, false]);
        board.up(11);
        assert!(board.partitions(&topic()).iter().all(|known| known.up));
    }

    #[test]
    fn absence_counts_from_the_loss_of_the_leader_or_of_its_broker() {
        let (board, clock) = board(&[Some(1), Some(2)], 1, 1);
        let first = PartitionId { topic: topic(), number: 0 };
        assert_eq!(board.absent_since(&first, 1), None);
        clock.advance(Duration::from_secs(3));
        board.down(1, "gone");
        clock.advance(Duration::from_secs(3));
        board.learned(&topic(), Found::There(placed(&[None, Some(2)], 1), 1));
        assert_eq!(board.absent_since(&first, 1), Some(Duration::from_secs(3)));
        assert_eq!(board.route(&first), Route::Absent("the partition has no leader".to_owned()));
        board.up(1);
        assert_eq!(board.absent_since(&first, 1), Some(Duration::from_secs(6)));
        board.learned(&topic(), Found::There(placed(&[Some(1), Some(2)], 1), 1));
        assert_eq!((board.absent_since(&first, 1), board.troubled()), (None, false));
        assert_eq!(board.route(&first), Route::Broker(1));
    }
}
