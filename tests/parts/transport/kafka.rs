//! Kafka on a real cluster: conformance, and what happens when a broker dies, falls silent and comes back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sealcast::core::id::EnvironmentName;
use sealcast::seams::Seams;
use sealcast::transport::admin::{self, Layout, Made, TopicPlan};
use sealcast::transport::kafka::{KafkaError, KafkaOptions};
use sealcast::transport::{AnyTransport, AppendError, Partition, Topic, Transport, TransportError, TransportOptions};

use super::conformance::{PATIENCE, append, collect, conforms, plan, record, submit, topic};
use crate::common::kafka::{Cluster, shared};

fn connect(brokers: &str) -> AnyTransport {
    let options = TransportOptions::Kafka(KafkaOptions::new(brokers));
    AnyTransport::open(&options, &Seams::real()).expect("it is set up")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    let brokers = tokio::task::spawn_blocking(shared).await.expect("a cluster");
    conforms(&connect(&brokers)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_one_partition_do_not_disturb_each_other() {
    let brokers = tokio::task::spawn_blocking(shared).await.expect("a cluster");
    let transport = connect(&brokers);
    let topic = topic(&transport, "crowded").await;
    let id = transport.partitions(&topic)[0].id.clone();
    let reader = |_| {
        let (transport, id) = (transport.clone(), id.clone());
        tokio::spawn(async move { collect(&transport, &id, 0, 300).await })
    };
    // A broker that took a record has heard of the topic.
    append(&transport, &id, record(b"", &0u32.to_be_bytes())).await;
    let readers: Vec<_> = (0..3).map(reader).collect();
    for number in 1..300u32 {
        append(&transport, &id, record(b"", &number.to_be_bytes())).await;
    }
    for reader in readers {
        let found = reader.await.expect("a reader");
        assert_eq!(found.iter().map(|fetched| fetched.offset).collect::<Vec<_>>(), (0..300).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r14_a_replicated_topic_proves_two_domains() {
    let brokers = tokio::task::spawn_blocking(shared).await.expect("a cluster");
    let transport = connect(&brokers);
    let plan = TopicPlan { layout: Layout::Replicated { factor: 3 }, ..plan("replicated") };
    assert_eq!(admin::init(&transport, &plan).await, Ok(Made::Created));
    let mut partitions = transport.known(&plan.topic, PATIENCE, &Seams::real()).await;
    // Until every broker has said its rack, the one that has not might share any of them.
    let began = Instant::now();
    while partitions.iter().any(|partition| partition.copies < 2) && began.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(20)).await;
        partitions = transport.partitions(&plan.topic);
    }
    assert!(partitions.iter().all(|partition| partition.copies == 2 && partition.up), "{partitions:?}");
    append(&transport, &partitions[0].id, record(b"key", b"value")).await;
    assert_eq!(admin::check(&transport, &plan).await.expect("a check").mismatches, []);
    // The same topic is wrong for a plan that pins, and its settings are compared one by one.
    let other = TopicPlan { layout: Layout::PinnedToEach, retention: plan.retention * 2, ..plan };
    let state = admin::check(&transport, &other).await.expect("a check");
    let wrong: Vec<_> = state.mismatches.iter().map(|wrong| wrong.what.as_str()).collect();
    assert_eq!(wrong, ["replication", "min.insync.replicas", "retention.ms"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_are_committed_for_lag_tools() {
    let brokers = tokio::task::spawn_blocking(shared).await.expect("a cluster");
    let transport = connect(&brokers);
    let topic = topic(&transport, "lag").await;
    let id = transport.partitions(&topic)[0].id.clone();
    for _ in 0..3 {
        append(&transport, &id, record(b"", b"x")).await;
    }
    transport.commit_offsets(topic.as_str(), &[(id.clone(), 2)]);
    let committed = tokio::task::spawn_blocking(move || {
        let tool: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", id.topic.as_str())
            .create()
            .expect("a lag tool");
        let began = Instant::now();
        loop {
            let mut asked = TopicPartitionList::new();
            asked.add_partition(id.topic.as_str(), id.number);
            let found = tool.committed_offsets(asked, Duration::from_secs(5));
            if found.is_ok_and(|found| found.elements()[0].offset() == Offset::Offset(2)) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "nothing was committed");
            transport.commit_offsets(id.topic.as_str(), &[(id.clone(), 2)]);
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    committed.await.expect("committed");
}

#[tokio::test]
async fn properties_that_break_a_guarantee_are_refused_by_name() {
    let mut options = KafkaOptions::new("127.0.0.1:1");
    options.properties = BTreeMap::from([("enable.idempotence".to_owned(), "true".to_owned())]);
    let refused = AnyTransport::open(&TransportOptions::Kafka(options), &Seams::real());
    let Err(TransportError::Kafka(KafkaError::Property { name, .. })) = refused else { panic!("{refused:?}") };
    assert_eq!(name, "enable.idempotence");
}

#[tokio::test]
async fn a_cluster_that_is_not_there_is_unavailable_and_nothing_hangs() {
    let transport = connect("127.0.0.1:1");
    let environment = EnvironmentName::new("test").expect("a name");
    let topic = Topic::notices(&environment);
    assert!(transport.known(&topic, Duration::from_millis(300), &Seams::real()).await.is_empty());
    let id = sealcast::transport::PartitionId { topic, number: 0 };
    assert!(transport.read(id.clone(), 0).await.expect_err("nobody is there").retryable());
    let lost = submit(&transport, &id, record(b"", b"x")).await.await;
    assert!(matches!(lost, Err(AppendError::Absent { .. })), "{lost:?}");
    // What it wanted to tell the brokers does not keep whoever ends.
    transport.commit_offsets(id.topic.as_str(), &[(id.clone(), 0)]);
    let ended = tokio::task::spawn_blocking(move || drop(transport));
    tokio::time::timeout(PATIENCE, ended).await.expect("it ends").expect("it ends well");
}

/// The partition that this broker leads.
fn led_by(partitions: &[Partition], broker: usize) -> Partition {
    let domain = ["rack one", "rack two", "broker 3"][broker - 1];
    partitions.iter().find(|partition| *partition.domain.0 == *domain).expect("each broker leads one").clone()
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r15_a_dead_or_silent_broker_costs_only_its_own_partition_and_is_used_again() {
    let mut cluster = tokio::task::spawn_blocking(Cluster::start).await.expect("a cluster");
    let transport = connect(&cluster.brokers());
    let topic = topic(&transport, "faults").await;
    let partitions = transport.partitions(&topic);
    let (lost, other) = (led_by(&partitions, 2), led_by(&partitions, 3));
    for partition in partitions.iter() {
        append(&transport, &partition.id, record(b"", b"before")).await;
    }

    // Killed: what is under way to it fails by itself, soon; what goes elsewhere is not delayed.
    let waiting: Vec<_> = (0..20).map(|_| transport.append(lost.id.clone(), record(b"", &[0; 60_000]))).collect();
    cluster.kill(2);
    let doomed = submit(&transport, &lost.id, record(b"", b"to nowhere")).await;
    append(&transport, &other.id, record(b"", b"meanwhile")).await;
    let answer = tokio::time::timeout(PATIENCE, doomed).await.expect("it does not wait for the broker");
    assert!(matches!(answer, Err(AppendError::Absent { .. })), "{answer:?}");
    for pending in waiting {
        let answer = tokio::time::timeout(PATIENCE, pending.expect("credit")).await.expect("an answer");
        assert!(answer.is_ok() || answer.as_ref().is_err_and(AppendError::retryable), "{answer:?}");
    }
    let is_up = |id: &Partition| {
        let id = id.id.clone();
        transport.partitions(&topic).iter().any(|partition| partition.id == id && partition.up)
    };
    until("the dead broker is seen to be down", || !is_up(&lost)).await;
    assert!(is_up(&other));
    let reading = transport.read(lost.id.clone(), 0).await;
    assert!(reading.is_ok() || reading.is_err_and(|error| error.retryable()));

    // Back: used again.
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.start_again(2);
        cluster
    });
    let mut cluster = cluster.await.expect("started again");
    until("the broker is used again", || is_up(&lost)).await;
    let offset = append(&transport, &lost.id, record(b"", b"after")).await;
    let found = collect(&transport, &lost.id, 0, offset as usize + 1).await;
    assert_eq!(found.first().and_then(|fetched| fetched.value.as_deref()), Some(&b"before"[..]));
    assert_eq!(found.last().and_then(|fetched| fetched.value.as_deref()), Some(&b"after"[..]));

    // Silent: the same, after the message timeout.
    cluster.pause(2);
    let doomed = submit(&transport, &lost.id, record(b"", b"into silence")).await;
    append(&transport, &other.id, record(b"", b"meanwhile")).await;
    let answer = tokio::time::timeout(PATIENCE, doomed).await.expect("it does not wait for the broker");
    assert!(matches!(answer, Err(AppendError::Absent { .. })), "{answer:?}");
    until("the silent broker is seen to be down", || !is_up(&lost)).await;
    cluster.resume(2);
    until("the broker is used again", || is_up(&lost)).await;
    append(&transport, &lost.id, record(b"", b"and again")).await;
}
