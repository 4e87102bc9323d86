//! The thread that keeps the board true: metadata about once a second and at once when something is missing, racks, and a
//! question now and then to brokers that cannot be reached, so that one that returns is used again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError as NativeError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

use super::KafkaError;
use super::access::{Asked, On, Operation};
use super::board::{Board, BrokerId, Found, Placed};
use crate::transport::contract::{PartitionId, Topic};

const CALM: Duration = Duration::from_secs(1);
const RESTLESS: Duration = Duration::from_millis(200);
const ANSWER: Duration = Duration::from_secs(1);
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// What is wrong for so long is told.
const TELL_AFTER: Duration = Duration::from_secs(3);

/// What every client of this transport does with what librdkafka tells: lost connections go to the board, the rest to the log.
#[derive(Clone)]
pub(super) struct Watch(pub Weak<Board>);

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        if facility == "FAIL" {
            if let Some(board) = self.0.upgrade() {
                board.connection_failed(line);
            }
            return tracing::debug!(target: "librdkafka", "{facility}: {line}");
        }
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning
                if facility != "CONFWARN" =>
            {
                tracing::warn!(target: "librdkafka", "{facility}: {line}");
            }
            _ => tracing::debug!(target: "librdkafka", "{facility}: {line}"),
        }
    }

    fn error(&self, error: NativeError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::BrokerTransportFailure)
            && let Some(board) = self.0.upgrade()
        {
            board.connection_failed(reason);
        }
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl ConsumerContext for Watch {}

/// A client that asks only.
pub(super) struct Asking {
    pub client: BaseConsumer<Watch>,
    pub admin: AdminClient<Watch>,
}

impl Asking {
    pub(super) fn new(config: &ClientConfig, board: &Arc<Board>) -> Result<Self, KafkaError> {
        let failed = |error: NativeError| KafkaError::Client { cause: error.to_string() };
        let client = BaseConsumer::from_config_and_context(config, Watch(Arc::downgrade(board))).map_err(failed)?;
        let admin = AdminClient::from_config_and_context(config, Watch(Arc::downgrade(board))).map_err(failed)?;
        Ok(Self { client, admin })
    }
}

/// Starts the thread; it ends when the board is closed.
pub(super) fn start(board: Arc<Board>, asking: Arc<Asking>) -> Result<(), KafkaError> {
    let mut refresher =
        Refresher { board, asking, probing: Arc::default(), last_probe: None, troubles: Troubles::default() };
    let spawned = thread::Builder::new().name("kafka-metadata".to_owned()).spawn(move || refresher.run());
    spawned.map(|_| ()).map_err(|error| KafkaError::Client { cause: format!("cannot start a thread: {error}") })
}

struct Refresher {
    board: Arc<Board>,
    asking: Arc<Asking>,
    probing: Arc<Mutex<BTreeSet<BrokerId>>>,
    last_probe: Option<std::time::Duration>,
    troubles: Troubles,
}

/// What is wrong with the cluster or a topic, since when, and whether that was told: once, when it lasts.
#[derive(Default)]
struct Troubles(BTreeMap<String, (Duration, bool)>);

impl Troubles {
    /// Something is wrong now; true when it is time to tell.
    fn lasts(&mut self, what: &str, now: Duration) -> bool {
        let (since, told) = self.0.entry(what.to_owned()).or_insert((now, false));
        let tell = !*told && now.saturating_sub(*since) >= TELL_AFTER;
        *told |= tell;
        tell
    }

    /// It is right again; true when it was told to be wrong.
    fn ended(&mut self, what: &str) -> bool {
        self.0.remove(what).is_some_and(|(_, told)| told)
    }
}

const CLUSTER: &str = "Kafka";

impl Refresher {
    fn run(&mut self) {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else {
            return tracing::error!("cannot start the runtime of the metadata thread; the cluster stays unknown");
        };
        while self.board.wait(if self.board.restless() { RESTLESS } else { CALM }) {
            // Serves logs and errors; without an assignment there are no records.
            while self.asking.client.poll(Duration::ZERO).is_some() {}
            self.probe();
            let mut brokers = BTreeSet::new();
            let mut learned = Vec::new();
            for topic in self.board.topics() {
                if let Some((found, known)) = self.look_at(&topic, &runtime) {
                    brokers.extend(known);
                    learned.push((topic, found));
                }
            }
            // Domains first: nobody should see a partition before it is known with what it fails.
            self.racks(&brokers, &runtime);
            for (topic, found) in learned {
                self.board.learned(&topic, found);
            }
        }
    }

    fn look_at(&mut self, topic: &Topic, runtime: &tokio::runtime::Runtime) -> Option<(Found, Vec<BrokerId>)> {
        let metadata = match self.asking.client.fetch_metadata(Some(topic.as_str()), ANSWER) {
            Ok(metadata) => {
                self.board.answered();
                if self.troubles.ended(CLUSTER) {
                    tracing::info!(brokers = self.board.access().brokers(), "Kafka answers again");
                }
                metadata
            }
            Err(error) => {
                tracing::debug!(%topic, %error, "no metadata");
                if self.troubles.lasts(CLUSTER, self.board.now()) {
                    tracing::warn!("{}", self.board.access().unreached(self.board.failure(), error.to_string()));
                }
                return None;
            }
        };
        let brokers: Vec<_> = metadata.brokers().iter().map(|broker| broker.id()).collect();
        let found = metadata.topics().iter().find(|found| found.name() == topic.as_str())?;
        if let Some(error) = found.error() {
            return match RDKafkaErrorCode::from(error) {
                RDKafkaErrorCode::LeaderNotAvailable => None,
                code => {
                    let on = On::Topic(topic.as_str());
                    let cause = self.board.access().mend(code, Operation::Describe, on)?;
                    if self.troubles.lasts(topic.as_str(), self.board.now()) {
                        tracing::warn!(%topic, cause, "the topic cannot be used");
                    }
                    Some((Found::Refused(cause), brokers))
                }
            };
        }
        if self.troubles.ended(topic.as_str()) {
            tracing::info!(%topic, "the topic can be used again");
        }
        let mut placed: Vec<_> = found
            .partitions()
            .iter()
            .map(|partition| Placed {
                number: partition.id(),
                leader: Some(partition.leader()).filter(|leader| {
                    let gone = partition.error() == Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE);
                    *leader >= 0 && !gone
                }),
                replicas: partition.replicas().len(),
            })
            .collect();
        placed.sort_by_key(|placed| placed.number);
        let in_sync = match self.board.in_sync(topic) {
            Some(in_sync) => in_sync,
            None if placed.iter().all(|placed| placed.replicas < 2) => 1,
            None => runtime.block_on(self.in_sync(topic)),
        };
        Some((Found::There(placed, in_sync), brokers))
    }

    /// The topic's `min.insync.replicas`; 1 when we may not ask, so that no acknowledgement counts for more than it is.
    async fn in_sync(&self, topic: &Topic) -> u32 {
        let options = AdminOptions::new().request_timeout(Some(ANSWER));
        let (specifier, on) = (ResourceSpecifier::Topic(topic.as_str()), On::Topic(topic.as_str()));
        let answer = self.asking.admin.describe_configs([&specifier], &options).await;
        let mut cause = None;
        let value = answer.ok().and_then(|found| {
            let resource = found.into_iter().next()?.inspect_err(|code| cause = self.may_not_show(*code, on)).ok()?;
            resource.get("min.insync.replicas")?.value.as_ref()?.parse().ok()
        });
        value.unwrap_or_else(|| {
            tracing::warn!(%topic, cause, "cannot read min.insync.replicas: an acknowledgement counts for one domain only");
            1
        })
    }

    fn may_not_show(&self, code: RDKafkaErrorCode, on: On<'_>) -> Option<String> {
        self.board.access().mend(code, Operation::DescribeConfigs, on)
    }

    /// Asks brokers for their racks, once each; those that do not answer are asked again later and count by themselves.
    fn racks(&self, brokers: &BTreeSet<BrokerId>, runtime: &tokio::runtime::Runtime) {
        let missing: Vec<_> =
            self.board.without_rack(brokers).into_iter().filter(|id| self.board.down_since(*id).is_none()).collect();
        if missing.is_empty() {
            return;
        }
        let options = AdminOptions::new().request_timeout(Some(ANSWER));
        let specifiers: Vec<_> = missing.iter().map(|id| ResourceSpecifier::Broker(*id)).collect();
        let asked = missing.iter().zip(&specifiers).map(|(id, specifier)| {
            let asking = self.asking.admin.describe_configs([specifier], &options);
            async move { (*id, asking.await) }
        });
        for (id, answer) in runtime.block_on(futures_util::future::join_all(asked)) {
            match answer.map(|found| found.into_iter().next()) {
                Ok(Some(Ok(resource))) if resource.specifier == OwnedResourceSpecifier::Broker(id) => {
                    let rack = resource.get("broker.rack").and_then(|entry| entry.value.clone());
                    self.board.set_rack(id, rack.unwrap_or_default());
                }
                Ok(Some(Err(code))) => {
                    let cause = self.may_not_show(code, On::Cluster).unwrap_or_else(|| code.to_string());
                    tracing::warn!(
                        broker = id,
                        cause,
                        "may not ask for the broker's rack: it counts as a domain by itself"
                    );
                    self.board.set_rack(id, String::new());
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(broker = id, %error, "the broker did not say its rack"),
            }
        }
    }

    /// Asks each broker that is down for a watermark, each on a thread of its own because it may take the whole second.
    fn probe(&mut self) {
        let now = self.board.now();
        if self.last_probe.is_some_and(|last| now.saturating_sub(last) < PROBE_EVERY) {
            return;
        }
        let down = self.board.to_probe();
        if down.is_empty() {
            return;
        }
        self.last_probe = Some(now);
        for (broker, partition) in down {
            // A broker that leads nothing is of no use: it is up as far as anybody cares.
            let Some(PartitionId { topic, number }) = partition else {
                self.board.up(broker);
                continue;
            };
            if !self.probing.lock().unwrap_or_else(PoisonError::into_inner).insert(broker) {
                continue;
            }
            let (board, asking, probing) = (self.board.clone(), self.asking.clone(), self.probing.clone());
            let probe = move || {
                if asking.client.fetch_watermarks(topic.as_str(), number, ANSWER).is_ok() {
                    board.up(broker);
                }
                probing.lock().unwrap_or_else(PoisonError::into_inner).remove(&broker);
            };
            if let Err(error) = thread::Builder::new().name("kafka-probe".to_owned()).spawn(probe) {
                tracing::warn!(broker, %error, "cannot start a thread to ask a broker");
                self.probing.lock().unwrap_or_else(PoisonError::into_inner).remove(&broker);
            }
        }
    }
}

/// What a topic or broker is set to, by name; only what the cluster lets us read.
pub(super) async fn settings(
    admin: &AdminClient<Watch>,
    specifier: ResourceSpecifier<'_>,
    within: Duration,
    asked: Asked<'_>,
) -> Result<BTreeMap<String, String>, KafkaError> {
    let options = AdminOptions::new().request_timeout(Some(within));
    let answer = admin.describe_configs([&specifier], &options).await.map_err(|error| asked.failed(&error))?;
    let resource =
        answer.into_iter().next().ok_or_else(|| KafkaError::Client { cause: "an empty answer".to_owned() })?;
    let resource = resource.map_err(|code| asked.refused(code))?;
    Ok(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
}
