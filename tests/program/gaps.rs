//! R17 on real brokers: records deleted before a stopped node read them, and topics that are deleted and made anew, behind a
//! stopped node's offset and under the eyes of running ones.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::common::kafka::shared;
use crate::common::world::World;

const PATIENCE: Duration = Duration::from_secs(120);

/// The brokers' own tools, as an operator has them, and a topic.
struct Operator {
    brokers: String,
    topic: String,
    admin: AdminClient<DefaultClientContext>,
    runtime: tokio::runtime::Runtime,
}

impl Operator {
    fn new(world: &World, brokers: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let admin = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
        let topic = format!("sealcast.{}.orders.segments", world.environment());
        Self { brokers: brokers.to_owned(), topic, admin, runtime }
    }

    /// The first offset and the end of each partition.
    fn watermarks(&self) -> BTreeMap<i32, (i64, i64)> {
        let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &self.brokers).create().unwrap();
        let of = |number| (number, client.fetch_watermarks(&self.topic, number, Duration::from_secs(10)).unwrap());
        (0..3).map(of).collect()
    }

    /// How far a node has come in each partition: its durable offsets, as it tells them to the brokers.
    fn passed(&self, world: &World, node: &str) -> BTreeMap<i32, i64> {
        let group = format!("sealcast.{}.orders.{node}", world.environment());
        let tool: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &self.brokers).set("group.id", group).create().unwrap();
        let mut asked = TopicPartitionList::new();
        for number in 0..3 {
            asked.add_partition(&self.topic, number);
        }
        let passed = tool.committed_offsets(asked, Duration::from_secs(10)).unwrap();
        let offset = |of: &Offset| if let Offset::Offset(offset) = of { *offset } else { 0 };
        passed.elements().iter().map(|of| (of.partition(), offset(&of.offset()))).collect()
    }

    /// Waits until each partition goes beyond what is given, and this node has passed all of it: who sends ends before the last
    /// broker has its segments.
    fn read_beyond(&self, world: &World, node: &str, before: &BTreeMap<i32, i64>) {
        let began = Instant::now();
        loop {
            let (passed, ends) = (self.passed(world, node), self.watermarks());
            if passed.iter().all(|(number, offset)| *offset > before[number] && *offset == ends[number].1) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{node} does not pass all of {ends:?}: {passed:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The end of each partition.
    fn ends(&self) -> BTreeMap<i32, i64> {
        self.watermarks().into_iter().map(|(number, (_, end))| (number, end)).collect()
    }

    /// Deletes the records before these offsets.
    fn delete_records(&self, before: &BTreeMap<i32, i64>) {
        let mut all = TopicPartitionList::new();
        for (number, offset) in before {
            all.add_partition_offset(&self.topic, *number, Offset::Offset(*offset)).unwrap();
        }
        let deleted = self.runtime.block_on(self.admin.delete_records(&all, &AdminOptions::new())).unwrap();
        assert!(deleted.elements().iter().all(|one| one.error().is_ok()), "{deleted:?}");
        assert!(self.watermarks().iter().all(|(number, (low, _))| *low == before[number]));
    }

    /// Deletes the topic and makes it anew: another topic of the same name.
    fn make_anew(&self, world: &World) {
        let deleted = self.runtime.block_on(self.admin.delete_topics(&[&self.topic], &AdminOptions::new())).unwrap();
        assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
        let began = Instant::now();
        // Brokers need a moment to forget a topic.
        while !world.run(&["topic", "init", "--config", "env/nodes/a/node.toml", "--domains", "3"]).status.success()
            || self.topic_is_gone()
        {
            assert!(began.elapsed() < PATIENCE, "{} cannot be made anew", self.topic);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn topic_is_gone(&self) -> bool {
        let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &self.brokers).create().unwrap();
        (0..3).any(|number| client.fetch_watermarks(&self.topic, number, Duration::from_secs(10)).is_err())
    }
}

/// A node's gap alarms, by name.
fn gaps(world: &World, node: &str) -> BTreeMap<String, String> {
    let status = world.status();
    let alarms = status.get(node).and_then(|status| status["alarms"].as_array()).cloned().unwrap_or_default();
    let text = |alarm: &serde_json::Value, field: &str| alarm[field].as_str().unwrap_or_default().to_owned();
    let all = alarms.iter().map(|alarm| (text(alarm, "name"), text(alarm, "text")));
    all.filter(|(name, _)| name.starts_with("gap-")).collect()
}

/// Waits until a node has a gap alarm of this kind for each partition, and says that a person has looked.
fn alarmed(world: &World, node: &str, what: &str) {
    let began = Instant::now();
    loop {
        let found = gaps(world, node);
        if found.len() == 3 && found.values().all(|text| text.contains(what)) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "node {node}: {what:?} is not said: {found:#?}\n{}", world.logs());
        std::thread::sleep(Duration::from_millis(100));
    }
    let config = format!("env/nodes/{node}/node.toml");
    for number in 0..3 {
        world.done(&["node", "acknowledge", &format!("gap-{number}"), "--config", &config]);
    }
}

#[test]
fn r17_what_becomes_of_a_real_topic_behind_a_nodes_offset_is_said_and_nothing_is_lost() {
    let brokers = shared();
    let mut world = World::new(&brokers);
    let operator = Operator::new(&world, &brokers);
    world.start_all();
    let mut sent = 0;
    let mut send = |world: &World, stage: &str| {
        sent += 1;
        std::fs::write(world.path().join("payload"), format!("number {sent}")).unwrap();
        world.send("payload", stage, &[]);
    };
    // Sends until every partition goes beyond these offsets: a broker that is late may get nothing of a single transaction.
    let mut send_beyond = |world: &World, stage: &str, before: &BTreeMap<i32, i64>| {
        let began = Instant::now();
        send(world, stage);
        while operator.ends().iter().any(|(number, end)| *end <= before[number]) {
            assert!(began.elapsed() < PATIENCE, "a partition gets nothing: {:?}, {before:?}", operator.ends());
            send(world, stage);
        }
    };
    let none = operator.ends();
    send_beyond(&world, "complete", &none);
    send_beyond(&world, "complete", &none);

    // Quiet retention: what went was read. Nothing is said, and the node goes on.
    operator.read_beyond(&world, "c", &none);
    assert_eq!(world.stop("c"), Some(0));
    let read = operator.passed(&world, "c");
    operator.delete_records(&read);
    world.start("c");
    send_beyond(&world, "complete", &read);
    assert_eq!(gaps(&world, "c"), BTreeMap::new());

    // Records went that it had not read. It says so; what was committed meanwhile it has from the others.
    assert_eq!(world.stop("c"), Some(0));
    send_beyond(&world, "committed", &operator.ends());
    let lost = operator.ends();
    operator.delete_records(&lost);
    world.start("c");
    alarmed(&world, "c", "is below the low watermark");
    // It has read a record of each partition since: by these it knows the log again.
    send_beyond(&world, "complete", &lost);
    operator.read_beyond(&world, "c", &lost);

    // Another topic under the same name while it is stopped, already longer than its offsets.
    assert_eq!(world.stop("c"), Some(0));
    let read = operator.ends();
    operator.make_anew(&world);
    alarmed(&world, "a", "offset");
    send_beyond(&world, "committed", &read);
    world.start("c");
    alarmed(&world, "c", "is not the one that was read");
    send_beyond(&world, "complete", &none);
    world.settle(sent);
}
