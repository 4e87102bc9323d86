//! Topics on a cluster: made pinned, broker by broker, and compared with their plan.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError as NativeError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;

use super::access::{Asked, On, Operation};
use super::board::BrokerId;
use super::refresh::settings;
use super::{Kafka, KafkaError};
use crate::transport::admin::{Layout, Made, Mismatch, TopicPlan, TopicState, absent};
use crate::transport::contract::{Topic, Transport};

/// How long the cluster may take for one question.
const ANSWER: Duration = Duration::from_secs(10);

/// How long the first question to a cluster may take, and the last: each has twice the time of the one before, because a
/// question waits to its end even when it is known that nobody can be reached.
const FIRST_ANSWER: Duration = Duration::from_millis(500);
const LAST_ANSWER: Duration = Duration::from_secs(4);

/// A topic as the metadata has it: leader and replicas of each partition, by number.
type Lay = BTreeMap<i32, (BrokerId, Vec<BrokerId>)>;

impl Kafka {
    /// Makes a topic as planned, unless it exists, and waits until every partition has a leader.
    pub(in crate::transport) async fn init_topic(&self, plan: &TopicPlan) -> Result<Made, KafkaError> {
        let (brokers, _) = self.lay(&plan.topic).await?;
        let factor = match plan.layout {
            Layout::PinnedToEach => 1,
            Layout::Replicated { factor } => usize::from(factor),
        };
        if brokers.len() < factor || brokers.is_empty() {
            let cause = format!("{factor} replicas need {factor} brokers, and the cluster has {}", brokers.len());
            return Err(KafkaError::Rejected { what: "make the topic", cause });
        }
        // Partition i leads on broker i; further replicas are on those that follow.
        let placed: Vec<Vec<BrokerId>> = (0..brokers.len())
            .map(|first| brokers.iter().cycle().skip(first).take(factor).copied().collect())
            .collect();
        let assignment: Vec<&[BrokerId]> = placed.iter().map(Vec::as_slice).collect();
        let settings = plan.settings();
        let count = i32::try_from(brokers.len()).unwrap_or(i32::MAX);
        let mut topic = NewTopic::new(plan.topic.as_str(), count, TopicReplication::Variable(&assignment));
        for (name, value) in &settings {
            topic = topic.set(name, value);
        }
        let options = AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER));
        let asked = self.asked("make the topic", Operation::Create, &plan.topic);
        let made = self.asking().admin.create_topics([&topic], &options).await.map_err(|error| asked.failed(&error))?;
        match made.into_iter().next() {
            Some(Ok(_)) => {}
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => return Ok(Made::Exists),
            Some(Err((_, code))) => return Err(asked.refused(code)),
            None => return Err(KafkaError::Client { cause: "an empty answer".to_owned() }),
        }
        let began = self.seams().clock.monotonic();
        loop {
            let (_, lay) = self.lay(&plan.topic).await?;
            let led = lay.values().filter(|(leader, _)| *leader >= 0).count();
            if led == brokers.len() {
                self.forget(&plan.topic);
                return Ok(Made::Created);
            }
            if self.seams().clock.monotonic().saturating_sub(began) > ANSWER {
                let cause = format!("the topic was made, and {led} of {} partitions have a leader", brokers.len());
                return Err(KafkaError::Unavailable { cause });
            }
            self.seams().clock.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Compares a topic with its plan.
    pub(in crate::transport) async fn check_topic(&self, plan: &TopicPlan) -> Result<TopicState, KafkaError> {
        let (brokers, lay) = self.lay(&plan.topic).await?;
        if lay.is_empty() {
            return Ok(TopicState { partitions: Vec::new(), mismatches: vec![absent(plan)] });
        }
        let mut mismatches = laid_out(plan, &brokers, &lay);
        let specifier = ResourceSpecifier::Topic(plan.topic.as_str());
        let asked = self.asked("show a topic's settings", Operation::DescribeConfigs, &plan.topic);
        let found = settings(&self.asking().admin, specifier, ANSWER, asked).await?;
        mismatches.extend(set(plan, &found));
        let partitions = self.partitions(&plan.topic).to_vec();
        Ok(TopicState { partitions, mismatches })
    }

    /// The cluster's brokers, ascending, and where a topic lies; nothing when there is no such topic.
    async fn lay(&self, topic: &Topic) -> Result<(Vec<BrokerId>, Lay), KafkaError> {
        let (kafka, topic) = (self.clone(), topic.clone());
        let ask = move || {
            let asked = kafka.asked("look at the topic", Operation::Describe, &topic);
            let metadata = kafka.metadata(&topic).map_err(|error| asked.failed(&error))?;
            let mut brokers: Vec<_> = metadata.brokers().iter().map(|broker| broker.id()).collect();
            brokers.sort_unstable();
            let Some(found) = metadata.topics().iter().find(|found| found.name() == topic.as_str()) else {
                return Ok((brokers, Lay::new()));
            };
            match found.error().map(RDKafkaErrorCode::from) {
                None | Some(RDKafkaErrorCode::LeaderNotAvailable) => {}
                Some(RDKafkaErrorCode::UnknownTopicOrPartition) => return Ok((brokers, Lay::new())),
                Some(code) => return Err(asked.refused(code)),
            }
            let partitions = found.partitions().iter();
            let lay = partitions.map(|found| (found.id(), (found.leader(), found.replicas().to_vec()))).collect();
            Ok((brokers, lay))
        };
        let asked = self.seams().work.run(ask).await.map_err(|_| KafkaError::Closed)?;
        asked.map_err(|error| self.explained(error))
    }

    /// Asks for metadata until the cluster answers, patience ends, or it is known that there is no way in. Blocks.
    fn metadata(&self, topic: &Topic) -> Result<Metadata, NativeError> {
        let mut within = FIRST_ANSWER;
        loop {
            match self.asking().client.fetch_metadata(Some(topic.as_str()), within) {
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

    fn asked<'a>(&'a self, what: &'static str, operation: Operation, topic: &'a Topic) -> Asked<'a> {
        Asked { access: self.access(), what, operation, on: On::Topic(topic.as_str()) }
    }
}

fn wrong(what: &str, found: String, wanted: String, mend: &str) -> Mismatch {
    Mismatch { what: what.to_owned(), found, wanted, mend: mend.to_owned() }
}

/// What is wrong with where a topic's partitions lie.
fn laid_out(plan: &TopicPlan, brokers: &[BrokerId], lay: &Lay) -> Vec<Mismatch> {
    let mut mismatches = Vec::new();
    let reassign = "move partitions with kafka-reassign-partitions, or make the topic anew";
    let leaderless: Vec<_> = lay.iter().filter(|(_, (leader, _))| *leader < 0).map(|(number, _)| number).collect();
    if !leaderless.is_empty() {
        let mend = "start the brokers that hold them";
        mismatches.push(wrong("leader", format!("none for {leaderless:?}"), "one for each partition".to_owned(), mend));
    }
    let factor = match plan.layout {
        Layout::PinnedToEach => 1,
        Layout::Replicated { factor } => usize::from(factor),
    };
    let others: BTreeMap<_, _> = lay
        .iter()
        .map(|(number, (_, replicas))| (*number, replicas.len()))
        .filter(|(_, count)| *count != factor)
        .collect();
    if !others.is_empty() {
        let mend =
            "a slow replica holds back a replicated partition; make the topic anew, or use the replicated profile";
        mismatches.push(wrong("replication", format!("{others:?}"), format!("{factor} each"), mend));
    }
    // The first replica is where the partition belongs; who leads it now may differ after a failure.
    let bare: Vec<_> =
        brokers.iter().filter(|broker| !lay.values().any(|(_, replicas)| replicas.first() == Some(broker))).collect();
    if !bare.is_empty() {
        let found = format!("none on brokers {bare:?}");
        mismatches.push(wrong("partitions", found, format!("one on each of {brokers:?}"), reassign));
    }
    if brokers.len() < 2 {
        let mend = "add brokers: with one, nothing survives its loss";
        mismatches.push(wrong("domains", brokers.len().to_string(), "2 or more".to_owned(), mend));
    }
    mismatches
}

/// What is wrong with a topic's settings. Longer retention and larger records than planned are right as well.
fn set(plan: &TopicPlan, found: &BTreeMap<String, String>) -> Vec<Mismatch> {
    let number = |text: &str| text.parse::<i64>().ok().map(|number| if number < 0 { i64::MAX } else { number });
    let at_least = ["max.message.bytes", "min.insync.replicas", "retention.bytes", "retention.ms"];
    let exactly_one = matches!(plan.layout, Layout::PinnedToEach);
    let compare = |(name, wanted): (&'static str, String)| {
        let is = found.get(name).map_or("unknown", String::as_str);
        let enough = at_least.contains(&name) && !(exactly_one && name == "min.insync.replicas");
        let right = if enough { number(is) >= number(&wanted) && number(is).is_some() } else { is == wanted };
        let mend = format!(
            "kafka-configs --alter --entity-type topics --entity-name {} --add-config {name}={wanted}",
            plan.topic
        );
        (!right).then(|| wrong(name, is.to_owned(), wanted, &mend))
    };
    plan.settings().into_iter().filter_map(compare).collect()
}
