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
use rdkafka::metadata::{Metadata, MetadataBroker};
use rdkafka::types::RDKafkaRespErr;

use super::KafkaError;
use super::access::{Asked, On, Operation};
use super::board::{Board, BrokerId, Found, Placed};
use crate::seams::Seams;
use crate::transport::contract::{PartitionId, Topic};

const CALM: Duration = Duration::from_secs(1);
const RESTLESS: Duration = Duration::from_millis(200);
const ANSWER: Duration = Duration::from_secs(1);
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// How often a replicated topic's settings are read again.
const SETTINGS_EVERY: Duration = Duration::from_secs(30);
/// What is wrong for so long is told.
const TELL_AFTER: Duration = Duration::from_secs(3);

/// What every client of this transport does with what librdkafka tells: lost connections go to the board, the rest to the log.
#[derive(Clone)]
pub(super) struct Watch(pub Weak<Board>);

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        let board = self.0.upgrade();
        // A lost connection is told once, by the board; what times out on it besides is the same news.
        if facility == "FAIL"
            && let Some(board) = &board
        {
            board.connection_failed(line);
        }
        let serious = match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => !["FAIL", "REQTMOUT", "CONFWARN"].contains(&facility),
            _ => false,
        };
        if serious && board.is_none_or(|board| board.is_news(facility, line)) {
            tracing::warn!(target: "librdkafka", "{facility}: {line}");
        } else {
            tracing::debug!(target: "librdkafka", "{facility}: {line}");
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

/// What a client does with what librdkafka tells while it serves lag tools alone: what it meets, the others meet and tell.
pub(super) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, line: &str) {
        tracing::debug!(target: "librdkafka", "{facility}: {line}");
    }

    fn error(&self, error: NativeError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl ConsumerContext for Quiet {}

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
pub(super) fn start(board: Arc<Board>, asking: Arc<Asking>, seams: Seams) -> Result<(), KafkaError> {
    let mut refresher = Refresher {
        board,
        asking,
        seams,
        addresses: BTreeMap::new(),
        probing: Arc::default(),
        last_probe: None,
        in_sync: BTreeMap::new(),
        troubles: Troubles::default(),
    };
    let spawned = thread::Builder::new().name("kafka-metadata".to_owned()).spawn(move || refresher.run());
    spawned.map(|_| ()).map_err(|error| KafkaError::Client { cause: format!("cannot start a thread: {error}") })
}

struct Refresher {
    board: Arc<Board>,
    asking: Arc<Asking>,
    seams: Seams,
    /// Where the brokers that are listed are, as they say.
    addresses: BTreeMap<BrokerId, String>,
    probing: Arc<Mutex<BTreeSet<BrokerId>>>,
    last_probe: Option<std::time::Duration>,
    /// `min.insync.replicas` of replicated topics, and when it was asked for.
    in_sync: BTreeMap<Topic, (u32, Duration)>,
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
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
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
            if !brokers.is_empty() {
                self.board.listed(&brokers);
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
        self.addresses = addresses(&metadata);
        let brokers: Vec<_> = self.addresses.keys().copied().collect();
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
                    let found = match code {
                        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                            Found::Missing(format!("there is no topic {topic}: {cause}"))
                        }
                        _ => Found::Refused(cause),
                    };
                    Some((found, brokers))
                }
            };
        }
        if self.troubles.ended(topic.as_str()) {
            tracing::info!(%topic, "the topic can be used again");
        }
        let replicated = found.partitions().iter().any(|partition| partition.replicas().len() >= 2);
        let mut placed: Vec<_> = found
            .partitions()
            .iter()
            .map(|partition| Placed {
                number: partition.id(),
                leader: Some(partition.leader()).filter(|leader| {
                    let gone = partition.error() == Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE);
                    *leader >= 0 && !gone
                }),
                replicas: partition.replicas().iter().copied().filter(|id| brokers.contains(id)).collect(),
            })
            .collect();
        placed.sort_by_key(|placed| placed.number);
        let in_sync = if replicated { self.in_sync_again(topic, runtime) } else { 1 };
        Some((Found::There(placed, in_sync), brokers))
    }

    /// The topic's `min.insync.replicas`, asked for now and then: somebody may change it. 1 while nobody ever answered, so that
    /// no acknowledgement counts for more than it is.
    fn in_sync_again(&mut self, topic: &Topic, runtime: &tokio::runtime::Runtime) -> u32 {
        let now = self.board.now();
        let known = self.in_sync.get(topic).copied();
        if let Some((in_sync, at)) = known
            && now.saturating_sub(at) < SETTINGS_EVERY
        {
            return in_sync;
        }
        let (what, operation, on) = ("show a topic's settings", Operation::DescribeConfigs, On::Topic(topic.as_str()));
        let asked = async {
            for (id, address) in &self.addresses {
                if self.board.down_since(*id).is_none() && listens(&self.seams, address, ANSWER).await {
                    let asked = Asked { access: self.board.access(), what, operation, on };
                    return settings(&self.asking.admin, topic, *id, ANSWER, asked).await;
                }
            }
            Err(KafkaError::Unavailable { cause: "no broker answers".to_owned() })
        };
        let found = match runtime.block_on(asked) {
            Ok(found) => found.get("min.insync.replicas").and_then(|value| value.parse().ok()),
            Err(error @ KafkaError::Rejected { .. }) => {
                if known.is_none() {
                    tracing::warn!(
                        %topic,
                        %error,
                        "cannot read min.insync.replicas: an acknowledgement counts for one domain only"
                    );
                }
                Some(1)
            }
            Err(error) => {
                tracing::debug!(%topic, %error, "no answer about min.insync.replicas");
                None
            }
        };
        let Some(in_sync) = found.or(known.map(|(in_sync, _)| in_sync)) else { return 1 };
        self.in_sync.insert(topic.clone(), (in_sync, now));
        in_sync
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
        let (admin, seams) = (&self.asking.admin, &self.seams);
        let asked = missing.iter().filter_map(|id| {
            let address = self.addresses.get(id)?;
            Some(async move { (*id, rack_of(admin, seams, *id, address, ANSWER).await) })
        });
        for (id, rack) in runtime.block_on(futures_util::future::join_all(asked)) {
            match rack {
                Rack::Is(rack) => self.board.set_rack(id, rack),
                Rack::MayNotAsk(code) => {
                    let cause = self.may_not_show(code, On::Cluster).unwrap_or_else(|| code.to_string());
                    tracing::warn!(
                        broker = id,
                        cause,
                        "may not ask for the broker's rack: it counts as a domain by itself"
                    );
                    self.board.set_rack(id, String::new());
                }
                Rack::NoAnswer => tracing::debug!(broker = id, "the broker did not say its rack"),
            }
        }
    }

    /// Asks each broker that is down for a watermark, or for its rack when it leads nothing; each on a thread of its own because
    /// it may take the whole second.
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
            if !self.probing.lock().unwrap_or_else(PoisonError::into_inner).insert(broker) {
                continue;
            }
            let (board, asking, probing) = (self.board.clone(), self.asking.clone(), self.probing.clone());
            let (seams, address) = (self.seams.clone(), self.addresses.get(&broker).cloned());
            let probe = move || {
                let answers = match partition {
                    Some(PartitionId { topic, number }) => {
                        asking.client.fetch_watermarks(topic.as_str(), number, ANSWER).is_ok()
                    }
                    None => address.is_some_and(|address| answers(&asking, &seams, broker, &address)),
                };
                if answers {
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

/// Where brokers say that they are, by number.
pub(super) fn addresses(metadata: &Metadata) -> BTreeMap<BrokerId, String> {
    let address = |broker: &MetadataBroker| match broker.host().contains(':') {
        true => format!("[{}]:{}", broker.host(), broker.port()),
        false => format!("{}:{}", broker.host(), broker.port()),
    };
    metadata.brokers().iter().map(|broker| (broker.id(), address(broker))).collect()
}

/// Whether a broker answers at all. Blocks.
fn answers(asking: &Asking, seams: &Seams, broker: BrokerId, address: &str) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let rack = rack_of(&asking.admin, seams, broker, address, ANSWER);
    runtime.is_ok_and(|runtime| !matches!(runtime.block_on(rack), Rack::NoAnswer))
}

/// Whether anybody takes connections there. Worth knowing before a question to one broker: librdkafka burns a whole core while
/// it waits to ask one that refuses connections.
async fn listens(seams: &Seams, address: &str, within: Duration) -> bool {
    tokio::select! {
        connected = seams.network.connect(address) => connected.is_ok(),
        () = seams.clock.sleep(within) => false,
    }
}

/// What a broker said when it was asked for its rack.
pub(super) enum Rack {
    /// This; empty when it declares none.
    Is(String),
    /// That we may not ask.
    MayNotAsk(RDKafkaErrorCode),
    /// Nothing.
    NoAnswer,
}

/// Asks a broker itself for its rack.
pub(super) async fn rack_of(
    admin: &AdminClient<Watch>,
    seams: &Seams,
    id: BrokerId,
    address: &str,
    within: Duration,
) -> Rack {
    if !listens(seams, address, within).await {
        tracing::debug!(broker = id, address, "nobody listens there");
        return Rack::NoAnswer;
    }
    let options = AdminOptions::new().request_timeout(Some(within));
    let specifier = ResourceSpecifier::Broker(id);
    match admin.describe_configs([&specifier], &options).await.map(|found| found.into_iter().next()) {
        Ok(Some(Ok(resource))) if resource.specifier == OwnedResourceSpecifier::Broker(id) => {
            Rack::Is(resource.get("broker.rack").and_then(|entry| entry.value.clone()).unwrap_or_default())
        }
        Ok(Some(Err(code))) => Rack::MayNotAsk(code),
        Ok(_) => Rack::NoAnswer,
        Err(error) => {
            tracing::debug!(broker = id, %error, "the broker does not answer");
            Rack::NoAnswer
        }
    }
}

/// What a topic is set to, by name, asked of this broker; only what the cluster lets us read. Without a broker's number
/// librdkafka asks the one that was named last as the controller, dead or alive.
pub(super) async fn settings(
    admin: &AdminClient<Watch>,
    topic: &Topic,
    broker: BrokerId,
    within: Duration,
    asked: Asked<'_>,
) -> Result<BTreeMap<String, String>, KafkaError> {
    let options = AdminOptions::new().request_timeout(Some(within)).broker_id(broker);
    let specifier = ResourceSpecifier::Topic(topic.as_str());
    let answer = admin.describe_configs([&specifier], &options).await.map_err(|error| asked.failed(&error))?;
    let resource =
        answer.into_iter().next().ok_or_else(|| KafkaError::Client { cause: "an empty answer".to_owned() })?;
    let resource = resource.map_err(|code| asked.refused(code))?;
    Ok(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
}
