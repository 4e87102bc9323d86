//! Topics on a person's own Kafka: somebody else's replicated topic from end to end, racks, brokers that are down, and what is
//! said of each. Every mend that `topic check` prints is run as it is printed.

use std::fs;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;

use super::conformance::PATIENCE;
use crate::common::kafka::Cluster;
use crate::common::world::{World, lines, payload};

const NODE: &str = "env/nodes/a/node.toml";

/// What `topic check` says of each topic, and its exit code.
fn check(world: &World, more: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let fixed = ["topic", "check", "--config", NODE, "--format", "json"];
    let output = world.run(&[fixed.as_slice(), more].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), lines(&output.stdout), said)
}

/// What is wrong with a topic, in order.
fn wrong(topic: &Value) -> Vec<&str> {
    let all = topic["mismatches"].as_array().expect("a list");
    all.iter().map(|wrong| wrong["what"].as_str().expect("a word")).collect()
}

/// Runs the `kafka-configs` commands that mends are.
fn mend(cluster: &Cluster, topic: &Value) {
    for wrong in topic["mismatches"].as_array().expect("a list") {
        let command = wrong["mend"].as_str().expect("a mend");
        let words: Vec<&str> = command.split(' ').collect();
        assert_eq!(words[0], "kafka-configs", "{command}");
        cluster.tool("kafka.admin.ConfigCommand", &words[1..]);
    }
}

/// How many records a topic holds.
fn records(brokers: &str, topic: &str, partitions: i32) -> i64 {
    let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a client");
    let of = |number| client.fetch_watermarks(topic, number, Duration::from_secs(10)).expect("watermarks").1;
    (0..partitions).map(of).sum()
}

/// Waits until the check has this to say.
fn until(world: &World, more: &[&str], what: &str, done: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let began = Instant::now();
    loop {
        let (_, found, said) = check(world, more);
        if done(&found) {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: {found:#?}\n{said}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn somebody_elses_replicated_topic_serves_from_end_to_end_while_a_broker_dies() {
    let mut cluster = Cluster::start();
    let brokers = cluster.brokers();
    let mut world = World::without_topics(&brokers);
    let (_, absent, _) = check(&world, &[]);
    let segments = absent[0]["topic"].as_str().expect("a name").to_owned();
    let create = ["--bootstrap-server", &brokers, "--create", "--topic", &segments];
    let like = ["--partitions", "5", "--replication-factor", "3", "--config", "min.insync.replicas=2"];
    let odd = ["--config", "cleanup.policy=compact", "--config", "max.message.bytes=100000"];
    cluster.tool("org.apache.kafka.tools.TopicCommand", &[&create[..], &like[..], &odd[..]].concat());
    // The notices are made; what is there already is left as it is, and found wrong.
    let made = world.run(&["topic", "init", "--config", NODE, "--replicated", "3", "--format", "json"]);
    let outcomes: Vec<Value> = lines(&made.stdout).iter().map(|topic| topic["outcome"].clone()).collect();
    assert_eq!((made.status.code(), outcomes), (Some(1), vec!["exists".into(), "created".into()]));

    // Everything that is wrong with it is named, and every mend works as it is printed.
    let found = until(&world, &[], "the topics are known", |found| found.iter().all(|topic| wrong(topic) != ["topic"]));
    let named = wrong(&found[0]);
    for name in ["cleanup.policy", "max.message.bytes", "message.timestamp.type", "retention.ms"] {
        assert!(named.contains(&name), "{name} is missing in {named:?}");
    }
    assert!(!named.contains(&"replication") && !named.contains(&"min.insync.replicas"), "{named:?}");
    mend(&cluster, &found[0]);
    let found =
        until(&world, &["--replicated", "3"], "mended", |found| found.iter().all(|topic| wrong(topic).is_empty()));
    for topic in &found {
        assert!(topic["partitions"].as_array().expect("a list").iter().all(|one| one["copies"] == 2), "{topic}");
    }

    // One record of up to 512 KiB for each stripe, no more: the topic's own replicas are the redundancy.
    world.start_all();
    let first = payload(1, 1_300_000);
    fs::write(world.path().join("first"), &first).expect("written");
    let sent = world.send("first", "complete", &[]);
    // A record whose broker is slow to acknowledge lies in another partition too.
    let lie = records(&brokers, &segments, 5);
    assert!((3..=6).contains(&lie), "{lie} records of three stripes");

    // With one broker dead, what two replicas in sync have is accepted still, and committed.
    cluster.kill(2);
    let second = payload(2, 700_000);
    fs::write(world.path().join("second"), &second).expect("written");
    let later = world.send("second", "complete", &[]);
    assert!(later["accepted_ms"].is_number(), "{later}");
    for (sent, payload) in [(&sent, &first), (&later, &second)] {
        let (id, position) =
            (sent["transaction"].as_str().expect("an id"), later["position"].as_str().expect("a place"));
        for node in ["a", "b", "c"] {
            assert!(world.get(node, id, position) == *payload, "{node} gives other bytes");
        }
    }
}

#[test]
fn racks_are_domains_and_what_is_down_or_too_small_is_said() {
    // Two brokers share a rack, whose numbers say nothing of it.
    let mut cluster =
        Cluster::start_with(|place| format!("broker.rack={}\n", if place.number == 2 { "west" } else { "east" }));
    let brokers = cluster.brokers();
    let world = World::without_topics(&brokers);

    // Three brokers, two domains: told; and where three are asked for, nothing is made.
    let began = Instant::now();
    loop {
        let refused = world.run(&["topic", "init", "--config", NODE, "--domains", "3"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(5), "{said}");
        assert!(said.contains("nothing was made"), "{said}");
        if said.contains("3 brokers answered (1, 2 and 3), which make 2 domains") {
            break;
        }
        // On a slow machine one may be late to answer.
        assert!(began.elapsed() < PATIENCE, "{said}");
    }
    assert!(check(&world, &[]).1.iter().all(|topic| wrong(topic) == ["topic"]));
    let made = world.run(&["topic", "init", "--config", NODE]);
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success() && said.contains("2 domains; 3 are expected"), "{said}");
    let (code, found, _) = check(&world, &["--domains", "2"]);
    assert_eq!(code, Some(0), "{found:#?}");
    let domains: Vec<_> = found[0]["partitions"].as_array().expect("a list").iter().map(|one| &one["domain"]).collect();
    assert_eq!(domains, ["rack east", "rack west", "rack east"]);
    let (code, found, _) = check(&world, &["--domains", "3"]);
    assert_eq!((code, wrong(&found[0])), (Some(1), vec!["domains"]));

    // Senders place by rack: with half of one rack gone, either of its brokers stands for it.
    let segments = found[0]["topic"].as_str().expect("a name").to_owned();
    fs::write(world.path().join("small"), b"ten nails").expect("written");
    fs::write(world.path().join("large"), payload(3, 300_000)).expect("written");
    world.send("small", "accepted", &[]);

    // A record too large for the topic: the cause is said, not that brokers are silent.
    let configs = ["--bootstrap-server", &brokers, "--alter", "--entity-type", "topics", "--entity-name", &segments];
    cluster.tool("kafka.admin.ConfigCommand", &[&configs[..], &["--add-config", "max.message.bytes=3000"]].concat());
    let send = ["send", "orders", "large", "--config", "env/senders/web/client.toml", "--wait", "accepted"];
    let output = world.run(&[&send[..], &["--timeout", "4s"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("the brokers refuse it") && said.contains("max.message.bytes"), "{said}");
    assert!(!said.contains("nothing answers"), "{said}");
    let (_, found, _) = check(&world, &[]);
    assert_eq!(wrong(&found[0]), ["max.message.bytes"]);
    mend(&cluster, &found[0]);
    until(&world, &[], "mended", |found| found.iter().all(|topic| wrong(topic).is_empty()));
    // What the outbox kept goes out with the next one.
    world.send("small", "accepted", &[]);

    // A broker that dies is found at the first look, though the cluster lists it for a while; then it can be missed in a new
    // topic, and is given its partition when it is back.
    cluster.kill(3);
    let (code, found, _) = check(&world, &[]);
    assert_eq!((code, wrong(&found[0])), (Some(1), vec!["leader"]), "{found:#?}");
    assert_eq!(found[0]["mismatches"][0]["mend"], "start broker 3");
    assert_eq!(found[0]["partitions"][2]["up"], false);
    world.send("small", "accepted", &[]);
    let other = World::without_topics(&brokers);
    let made = other.run(&["topic", "init", "--config", NODE]);
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success() && said.contains("2 brokers answered (1 and 2)"), "{said}");
    cluster.start_again(3);
    let found = until(&other, &[], "the broker is back", |found| wrong(&found[0]) == ["partitions"]);
    assert!(found[0]["mismatches"][0]["mend"].as_str().expect("a mend").contains("topic init"), "{found:#?}");
    other.done(&["topic", "init", "--config", NODE, "--grow"]);
    until(&other, &[], "grown", |found| found.iter().all(|topic| wrong(topic).is_empty()));
}
