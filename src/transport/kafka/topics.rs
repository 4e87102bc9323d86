//! Topics on a cluster: made pinned, broker by broker, and compared with their plan. Everything here is asked anew: who lists
//! a broker may not have noticed yet that it died, so each broker is asked by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rdkafka::admin::{AdminOptions, NewPartitions, NewTopic, TopicReplication, TopicResult};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError as NativeError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataPartition};

use super::access::{Asked, On, Operation};
use super::refresh::{Rack, addresses, rack_of, settings};
use super::{Kafka, KafkaError};
use crate::transport::admin::{
    Broker, BrokerId, Cluster, Comparison, FoundPartition, FoundTopic, Layout, Look, Made, TopicPlan, TopicState,
    copies,
};
use crate::transport::contract::{Domain, Partition, PartitionId, Topic};

/// How long the cluster may take for one question.
const ANSWER: Duration = Duration::from_secs(10);

/// How long the first question to a cluster may take, and the last: each has twice the time of the one before, because a
/// question waits to its end even when it is known that nobody can be reached.
const FIRST_ANSWER: Duration = Duration::from_millis(500);
const LAST_ANSWER: Duration = Duration::from_secs(4);

/// How long one broker may take to answer for itself.
const BROKER_ANSWER: Duration = Duration::from_secs(3);

/// The brokers that are listed and where, and a topic's partitions; none when there is no such topic.
type Lay = (BTreeMap<BrokerId, String>, Vec<FoundPartition>);

/// How many partitions, and where their replicas go.
type Placed<'a> = (usize, TopicReplication<'a>);

impl Kafka {
    /// The brokers, each asked for itself now.
    pub(in crate::transport) async fn cluster(&self) -> Result<Cluster, KafkaError> {
        let (brokers, _) = self.lay(None).await?;
        let (admin, seams) = (&self.asking().admin, self.seams());
        let ask = |(id, address): (BrokerId, String)| async move {
            match rack_of(admin, seams, id, &address, BROKER_ANSWER).await {
                Rack::Is(rack) => Broker { id, rack: Some(rack).filter(|rack| !rack.is_empty()), answers: true },
                Rack::MayNotAsk(_) => Broker { id, rack: None, answers: true },
                Rack::NoAnswer => Broker { id, rack: None, answers: false },
            }
        };
        Ok(Cluster { brokers: join_all(brokers.into_iter().map(ask)).await })
    }

    /// Makes a topic as planned on the brokers that answer, unless it exists, and waits until every partition has a leader.
    pub(in crate::transport) async fn init_topic(&self, plan: &TopicPlan) -> Result<Made, KafkaError> {
        let (_, partitions) = self.lay(Some(&plan.topic)).await?;
        if !partitions.is_empty() {
            return Ok(Made::Exists);
        }
        let cluster = self.cluster().await?;
        let (brokers, factor) = (cluster.answering(), plan.layout.factor());
        if brokers.len() < factor || brokers.is_empty() {
            let cause = format!("{factor} replicas need {factor} brokers, and {} answered", brokers.len());
            return Err(KafkaError::Rejected { what: "make the topic", cause });
        }
        let placed = cluster.assignment(plan.layout);
        let assignment: Vec<&[BrokerId]> = placed.iter().map(Vec::as_slice).collect();
        let asked = somebody(&cluster)?;
        let made = self.create(plan, asked, (brokers.len(), TopicReplication::Variable(&assignment))).await;
        let made = match (made, plan.layout) {
            // Some clusters let nobody say where replicas go. For replicated topics theirs is as good a choice.
            (Err(code), Layout::Replicated { factor }) if dictates(code) => {
                self.create(plan, asked, (brokers.len(), TopicReplication::Fixed(factor.into()))).await
            }
            (made, _) => made,
        };
        match made {
            Ok(()) => {}
            Err(RDKafkaErrorCode::TopicAlreadyExists) => return Ok(Made::Exists),
            Err(code) if dictates(code) && plan.layout == Layout::PinnedToEach => {
                let cause =
                    format!("{code}: if this cluster dictates replication, `sealcast topic init --replicated 3`");
                return Err(KafkaError::Rejected { what: "make a topic of replication 1", cause });
            }
            Err(code) => return Err(self.asked("make the topic", Operation::Create, Some(&plan.topic)).refused(code)),
        }
        self.wait_for_leaders(plan, brokers.len()).await?;
        Ok(Made::Created)
    }

    /// Whether the cluster would make this topic; `None` when it is there, or we may not ask.
    pub(in crate::transport) async fn permits(&self, plan: &TopicPlan) -> Result<Option<bool>, KafkaError> {
        let cluster = self.cluster().await?;
        let (asked, placed) = (somebody(&cluster)?, cluster.assignment(plan.layout));
        let assignment: Vec<&[BrokerId]> = placed.iter().map(Vec::as_slice).collect();
        let placed = (placed.len(), TopicReplication::Variable(&assignment));
        Ok(match self.have_made(plan, asked, placed, true).await {
            Ok(()) => Some(true),
            Err(code) if dictates(code) => Some(false),
            Err(_) => None,
        })
    }

    async fn create(&self, plan: &TopicPlan, broker: BrokerId, placed: Placed<'_>) -> Result<(), RDKafkaErrorCode> {
        self.have_made(plan, broker, placed, false).await
    }

    /// Has this broker make a topic, or see whether it could; the controller, where a broker does not pass that on (before
    /// KRaft).
    async fn have_made(
        &self,
        plan: &TopicPlan,
        broker: BrokerId,
        (partitions, replication): Placed<'_>,
        only_see: bool,
    ) -> Result<(), RDKafkaErrorCode> {
        let settings = plan.settings();
        let count = i32::try_from(partitions).unwrap_or(i32::MAX);
        let mut topic = NewTopic::new(plan.topic.as_str(), count, replication);
        for (name, value) in &settings {
            topic = topic.set(name, value);
        }
        let mut made = Err(RDKafkaErrorCode::NotController);
        for broker in [Some(broker), None] {
            if made == Err(RDKafkaErrorCode::NotController) {
                let options = changing(broker).validate_only(only_see);
                made = first(self.asking().admin.create_topics([&topic], &options).await);
            }
        }
        made
    }

    /// Adds a partition for each broker that is no partition's first.
    pub(in crate::transport) async fn grow_topic(&self, plan: &TopicPlan) -> Result<usize, KafkaError> {
        let grow = self.asked("add partitions", Operation::Alter, Some(&plan.topic));
        let (_, partitions) = self.lay(Some(&plan.topic)).await?;
        if partitions.is_empty() {
            return Err(grow.refused(RDKafkaErrorCode::UnknownTopicOrPartition));
        }
        let found = FoundTopic { partitions, ..FoundTopic::default() };
        let cluster = self.cluster().await?;
        let placed = cluster.assignment(found.layout());
        let has =
            |broker: Option<&BrokerId>| found.partitions.iter().any(|partition| partition.replicas.first() == broker);
        let missing: Vec<&[BrokerId]> =
            placed.iter().map(Vec::as_slice).filter(|replicas| !has(replicas.first())).collect();
        if missing.is_empty() {
            return Ok(0);
        }
        let total = found.partitions.len() + missing.len();
        let further = NewPartitions::new(plan.topic.as_str(), total).assign(&missing);
        let mut made = Err(RDKafkaErrorCode::NotController);
        for broker in [Some(somebody(&cluster)?), None] {
            if made == Err(RDKafkaErrorCode::NotController) {
                made = first(self.asking().admin.create_partitions([&further], &changing(broker)).await);
            }
        }
        made.map_err(|code| grow.refused(code))?;
        self.wait_for_leaders(plan, total).await?;
        Ok(missing.len())
    }

    async fn wait_for_leaders(&self, plan: &TopicPlan, partitions: usize) -> Result<(), KafkaError> {
        let began = self.seams().clock.monotonic();
        loop {
            let (_, found) = self.lay(Some(&plan.topic)).await?;
            let led = found.iter().filter(|partition| partition.leader.is_some()).count();
            if led >= partitions {
                self.forget(&plan.topic);
                return Ok(());
            }
            if self.seams().clock.monotonic().saturating_sub(began) > ANSWER {
                let cause = format!("the topic was made, and {led} of {partitions} partitions have a leader");
                return Err(KafkaError::Unavailable { cause });
            }
            self.seams().clock.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Compares a topic with its plan.
    pub(in crate::transport) async fn look_at_topic(
        &self,
        plan: &TopicPlan,
        how: Look<'_>,
    ) -> Result<TopicState, KafkaError> {
        let (_, partitions) = self.lay(Some(&plan.topic)).await?;
        if partitions.is_empty() {
            return Ok(TopicState::absent());
        }
        let anew;
        let cluster = match how.cluster {
            Some(cluster) => cluster,
            None => {
                anew = self.cluster().await?;
                &anew
            }
        };
        let asked = self.asked("show a topic's settings", Operation::DescribeConfigs, Some(&plan.topic));
        let settings = settings(&self.asking().admin, &plan.topic, somebody(cluster)?, ANSWER, asked).await?;
        let found = FoundTopic { partitions, settings };
        let plan = match how.as_found {
            true => TopicPlan { layout: found.layout(), ..plan.clone() },
            false => plan.clone(),
        };
        let comparison = Comparison { plan: &plan, cluster, bootstrap: self.bootstrap() };
        let mismatches = comparison.differences(&found);
        Ok(TopicState::of(seen(&plan.topic, cluster, &found), &found, mismatches))
    }

    /// What is listed now: brokers, and the partitions of a topic.
    async fn lay(&self, topic: Option<&Topic>) -> Result<Lay, KafkaError> {
        let (kafka, topic) = (self.clone(), topic.cloned());
        let ask = move || {
            let asked = kafka.asked("look at the topic", Operation::Describe, topic.as_ref());
            let name = topic.as_ref().map(Topic::as_str);
            let metadata = kafka.metadata(name).map_err(|error| asked.failed(&error))?;
            let brokers = addresses(&metadata);
            let found = metadata.topics().iter().find(|found| Some(found.name()) == name);
            let Some(found) = found else { return Ok((brokers, Vec::new())) };
            match found.error().map(RDKafkaErrorCode::from) {
                None | Some(RDKafkaErrorCode::LeaderNotAvailable) => {}
                Some(RDKafkaErrorCode::UnknownTopicOrPartition) => return Ok((brokers, Vec::new())),
                Some(code) => return Err(asked.refused(code)),
            }
            let partition = |found: &MetadataPartition| FoundPartition {
                number: found.id(),
                leader: Some(found.leader()).filter(|leader| *leader >= 0),
                replicas: found.replicas().to_vec(),
            };
            let mut partitions: Vec<_> = found.partitions().iter().map(partition).collect();
            partitions.sort_by_key(|partition| partition.number);
            Ok((brokers, partitions))
        };
        let asked = self.seams().work.run(ask).await.map_err(|_| KafkaError::Closed)?;
        asked.map_err(|error| self.explained(error))
    }

    /// Asks for metadata until the cluster answers, patience ends, or it is known that there is no way in. Blocks.
    fn metadata(&self, topic: Option<&str>) -> Result<Metadata, NativeError> {
        let mut within = FIRST_ANSWER;
        loop {
            match self.asking().client.fetch_metadata(topic, within) {
                Err(error) => {
                    let barred = self.shared.board.failure().is_some_and(|failure| failure.barred);
                    within *= 2;
                    if barred || within > LAST_ANSWER {
                        return Err(error);
                    }
                }
                found => return found,
            }
        }
    }

    fn asked<'a>(&'a self, what: &'static str, operation: Operation, topic: Option<&'a Topic>) -> Asked<'a> {
        let on = topic.map_or(On::Cluster, |topic| On::Topic(topic.as_str()));
        Asked { access: self.access(), what, operation, on }
    }
}

/// A broker that answers.
fn somebody(cluster: &Cluster) -> Result<BrokerId, KafkaError> {
    let unavailable = || KafkaError::Unavailable { cause: "no broker answers".to_owned() };
    cluster.answering().first().copied().ok_or_else(unavailable)
}

/// How long a change may take, and whom to ask for it.
fn changing(broker: Option<BrokerId>) -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER)).broker_id(broker)
}

/// The answer about the one topic that was asked about.
fn first(answer: Result<Vec<TopicResult>, NativeError>) -> Result<(), RDKafkaErrorCode> {
    let answer = answer.map_err(|error| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail))?;
    match answer.into_iter().next() {
        Some(Ok(_)) => Ok(()),
        Some(Err((_, code))) => Err(code),
        None => Err(RDKafkaErrorCode::Fail),
    }
}

/// Whether a cluster that answers so has rules of its own about replicas.
fn dictates(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::PolicyViolation
            | RDKafkaErrorCode::InvalidReplicationFactor
            | RDKafkaErrorCode::InvalidReplicaAssignment
            | RDKafkaErrorCode::InvalidRequest
    )
}

/// A topic's partitions as the contract shows them, from what was found just now.
fn seen(topic: &Topic, cluster: &Cluster, found: &FoundTopic) -> Vec<Partition> {
    let answering = cluster.answering();
    let in_sync = found.settings.get("min.insync.replicas").and_then(|text| text.parse().ok()).unwrap_or(1);
    let partition = |known: &FoundPartition| Partition {
        id: PartitionId { topic: topic.clone(), number: known.number },
        domain: Domain(known.leader.map_or(Arc::from(""), |leader| cluster.domain_of(leader).into())),
        up: known.leader.is_some_and(|leader| answering.contains(&leader)),
        copies: copies(known.replicas.iter().map(|id| Some(cluster.domain_of(*id))), in_sync),
    };
    found.partitions.iter().map(partition).collect()
}
