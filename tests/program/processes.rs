//! What crosses processes: real brokers, real `sealcast` processes, killed without warning.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::common::kafka::{Cluster, shared};
use crate::common::world::{World, lines, payload};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sealcast::core::id::{Epoch, ParcelId};
use sealcast::core::split::header::StripeHeader;
use sealcast::core::split::segment::Segment;

/// One at a time: each has up to six processes of its own, and machines with two cores should not run four such worlds.
fn turn() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write(world: &World, name: &str, bytes: &[u8]) {
    std::fs::write(world.path().join(name), bytes).unwrap();
}

fn text<'a>(value: &'a serde_json::Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} in {value}"))
}

/// Whether `needle` stands in any file below a folder.
fn find(folder: &std::path::Path, needle: &[u8]) -> Option<std::path::PathBuf> {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if let Some(found) = find(&path, needle) {
                return Some(found);
            }
        } else if let Ok(bytes) = std::fs::read(&path)
            && bytes.windows(needle.len()).any(|window| window == needle)
        {
            return Some(path);
        }
    }
    None
}

/// What a lag tool reads of a node's consumer group: whether each partition's offset is there and none is past the end.
fn lag_is_told(brokers: &str, environment: &str, node: &str) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", format!("sealcast.{environment}.orders.{node}"));
    let tool: BaseConsumer = config.create().unwrap();
    let (topic, patience) = (format!("sealcast.{environment}.orders.segments"), std::time::Duration::from_secs(60));
    let began = std::time::Instant::now();
    loop {
        let mut asked = TopicPartitionList::new();
        for number in 0..3 {
            asked.add_partition(&topic, number);
        }
        let found = tool.committed_offsets(asked, std::time::Duration::from_secs(5)).unwrap();
        let told = found.elements().iter().all(|found| match found.offset() {
            Offset::Offset(offset) => {
                let (low, high) =
                    tool.fetch_watermarks(&topic, found.partition(), std::time::Duration::from_secs(5)).unwrap();
                assert!((low..=high).contains(&offset), "{offset} of {} is not in {low}..={high}", found.partition());
                offset > 0
            }
            _ => false,
        });
        if told {
            return;
        }
        assert!(began.elapsed() < patience, "the offsets of {node} were not committed: {found:?}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

#[test]
fn r24_files_of_any_size_arrive_equal_and_lie_sealed_on_every_node_in_both_suites() {
    let _turn = turn();
    let mut cluster_of_its_own = None;
    let brokers = match std::env::var("SEALCAST_TEST_KAFKA") {
        Ok(_) => shared(),
        Err(_) => cluster_of_its_own.insert(Cluster::start()).brokers(),
    };
    let mut world = World::new(&brokers);
    world.start_all();
    let sizes = [("one", 1), ("small", 1024), ("middle", 1 << 20), ("large", 64 << 20)];
    let marker = b"This sentence must not lie on any disk in the clear.";
    for (seed, suite) in ["x25519", "x-wing"].into_iter().enumerate() {
        for (name, length) in sizes {
            let mut bytes = payload(seed as u64, length);
            if length > marker.len() {
                let middle = length / 2;
                bytes[middle..middle + marker.len()].copy_from_slice(marker);
            }
            write(&world, name, &bytes);
            let mut command = world.command(&["send", "orders", name, "--config", "env/senders/web/client.toml"]);
            command.args(["--wait", "complete", "--timeout", "100s", "--format", "json"]);
            let output = command.env("SEALCAST__SENDER__SUITE", suite).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{suite} {name}: {said}\n{}", world.logs());
            let sent = lines(&output.stdout).pop().unwrap();
            std::fs::remove_file(world.path().join(name)).unwrap();
            assert_eq!(text(&sent, "state"), "complete");
            assert_eq!(sent["signers"], serde_json::json!(["a", "b", "c"]), "receipts of all three");
            assert_eq!(sent["bytes"].as_u64(), Some(length as u64));
            for field in ["parcel", "position", "accepted_ms", "committed_ms", "complete_ms"] {
                assert!(!sent[field].is_null(), "{field} in {sent}");
            }
            for node in ["a", "b", "c"] {
                let got = world.get(node, text(&sent, "transaction"), text(&sent, "position"));
                assert!(got == bytes, "{suite} {name} from {node} differs");
            }
            std::fs::remove_file(world.path().join("got")).unwrap();
        }
    }
    world.settle(8);
    lag_is_told(&brokers, world.environment(), "b");
    assert_eq!(world.stop("a"), Some(0), "SIGTERM drains");
    assert_eq!(find(world.path(), marker), None, "plaintext on a node's disk or in the outbox");
    for folder in cluster_of_its_own.iter().flat_map(Cluster::data_folders) {
        assert_eq!(find(&folder, marker), None, "plaintext on a broker's disk");
    }
}

#[test]
fn r15_a_broker_killed_in_the_stream_holds_nothing_up() {
    let _turn = turn();
    let mut cluster = Cluster::start();
    let mut world = World::new(&cluster.brokers());
    world.start_all();
    write(&world, "first", b"first");
    world.send("first", "complete", &[]);
    let many: String = (0..200).map(|number| format!("line {number}\n")).collect();
    write(&world, "many", many.as_bytes());
    let mut command = world.command(&["send", "orders", "many", "--lines", "--config", "env/senders/web/client.toml"]);
    command.args(["--wait", "committed", "--timeout", "100s", "--format", "json", "-k", "stream"]);
    let sending = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    cluster.kill(2);
    let output = sending.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {said}\n{}", output.status.code(), world.logs());
    let sent = lines(&output.stdout);
    assert_eq!(sent.len(), 200);
    assert!(sent.iter().all(|one| text(one, "state") == "committed"));
    // And what is sent while the broker is still away.
    write(&world, "later", &payload(3, 300_000));
    world.send("later", "committed", &[]);
    world.settle(202);
}

#[test]
fn r19_a_node_killed_five_times_loses_nothing_and_applies_nothing_twice() {
    let _turn = turn();
    let mut world = World::new(&shared());
    world.start_all();
    write(&world, "first", b"0\n");
    world.send("first", "complete", &["-k", "counter"]);
    let mut number = 1;
    for (round, node) in ["a", "b", "c", "a", "b"].into_iter().enumerate() {
        let count = 40;
        let many: String = (number..number + count).map(|number| format!("{number}\n")).collect();
        number += count;
        write(&world, "many", many.as_bytes());
        let mut command =
            world.command(&["send", "orders", "many", "--lines", "--config", "env/senders/web/client.toml"]);
        command.args(["--timeout", "100s", "--format", "json", "-k", "counter"]);
        let sending = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(150 + 170 * round as u64));
        world.kill(node);
        std::thread::sleep(std::time::Duration::from_millis(300));
        world.start(node);
        let output = sending.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "round {round}: {:?}: {said}\n{}", output.status.code(), world.logs());
        assert_eq!(lines(&output.stdout).len(), count);
    }
    world.settle(number as u64);
    for node in ["a", "b", "c"] {
        let fixed = ["watch", "orders", "--config", "env/readers/app/client.toml", "--node", node, "-e", "--lines"];
        let fed = world.done(&fixed);
        let fed: Vec<usize> = String::from_utf8(fed)
            .unwrap()
            .lines()
            .filter(|line| !line.is_empty())
            .map(|l| l.parse().unwrap())
            .collect();
        assert_eq!(fed, (0..number).collect::<Vec<_>>(), "order, once each, on {node}");
    }
}

/// The headers that the topic's segments carry, by (epoch, parcel, stripe); no stripe has two.
fn headers(brokers: &str, environment: &str) -> BTreeMap<(Epoch, ParcelId, u32), StripeHeader> {
    let patience = std::time::Duration::from_secs(10);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "test").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().unwrap();
    let topic = format!("sealcast.{environment}.orders.segments");
    let (mut all, mut left) = (TopicPartitionList::new(), 0);
    for number in 0..3 {
        all.add_partition_offset(&topic, number, Offset::Beginning).unwrap();
        left += consumer.fetch_watermarks(&topic, number, patience).unwrap().1;
    }
    consumer.assign(&all).unwrap();
    let mut headers = BTreeMap::new();
    for _ in 0..left {
        let record = consumer.poll(patience).expect("a record").unwrap();
        let Ok(segment) = Segment::parse(&record.payload().unwrap_or_default().to_vec().into()) else { continue };
        let header = segment.header().clone();
        let first = headers.entry((header.core.epoch, header.core.parcel, header.stripe)).or_insert(header.clone());
        assert_eq!(*first, header, "two headers for one stripe");
    }
    headers
}

/// The same once nothing more comes: what was on its way when its sender died still arrives.
fn come_to_rest(brokers: &str, environment: &str) -> BTreeMap<(Epoch, ParcelId, u32), StripeHeader> {
    let mut before = BTreeMap::new();
    loop {
        let now = headers(brokers, environment);
        if now == before {
            return now;
        }
        before = now;
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

/// Waits until a client has sealed so many bytes into files.
fn sealed(world: &World, bytes: u64) {
    let outbox = world.path().join("env/senders/web/outbox/parcels");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while size(&outbox) < bytes {
        assert!(std::time::Instant::now() < end, "nothing was sealed");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn r03_a_killed_clients_outbox_finishes_the_job_once() {
    let _turn = turn();
    let brokers = shared();
    let mut world = World::new(&brokers);
    // No node runs: nothing can be committed before the client dies.
    // One dies in the middle of a stream that is sealed as it is read: of that nothing is left but what brokers have seen.
    let stream = payload(8, 3_000_000);
    write(&world, "stream", &stream);
    let mut command = world.command(&["send", "orders", "-", "--config", "env/senders/web/client.toml"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut sending = command.spawn().unwrap();
    let mut input = sending.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, &stream[..2_500_000]).unwrap();
    sealed(&world, 1_500_000);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while headers(&brokers, world.environment()).is_empty() {
        assert!(std::time::Instant::now() < end, "nothing of it is published");
    }
    sending.kill().unwrap();
    sending.wait().unwrap();
    drop(input);
    let begun = come_to_rest(&brokers, world.environment());

    // One dies after it submitted.
    write(&world, "payload", &payload(9, 400_000));
    let mut command = world.command(&["send", "orders", "payload", "--config", "env/senders/web/client.toml"]);
    command.args(["--wait", "committed", "--timeout", "100s", "--format", "json"]);
    let mut sending = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(sending.stderr.take().unwrap()).lines().map(Result::unwrap);
    let submitted = said.find(|line| line.contains("\"note\":\"submitted\""));
    assert!(submitted.is_some(), "it ends before it has submitted");
    let lies = size(&world.path().join("env/senders/web/outbox/parcels"));
    assert!((400_000..1_500_000).contains(&lies), "{lies} bytes: the abandoned parcel stays");
    sending.kill().unwrap();
    sending.wait().unwrap();
    world.start_all();
    // Any start of this client sends on what its outbox holds.
    world.send("stream", "committed", &[]);
    world.settle(2);
    let fixed = ["watch", "orders", "--config", "env/readers/app/client.toml", "-e"];
    let fed = world.json(&fixed);
    let mut sizes: Vec<_> = fed.iter().map(|one| one["bytes"].as_u64().unwrap()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [400_000, 3_000_000], "both, once each");
    let ids: BTreeSet<_> = fed.iter().map(|one| text(one, "transaction").to_owned()).collect();
    assert_eq!(ids.len(), 2);
    // The abandoned parcel's id was not used again: nothing was added to it.
    let after = headers(&brokers, world.environment());
    let abandoned: BTreeSet<_> = begun.keys().map(|(epoch, parcel, _)| (*epoch, *parcel)).collect();
    let more = after.keys().filter(|(epoch, parcel, _)| abandoned.contains(&(*epoch, *parcel))).count();
    assert_eq!((abandoned.len(), more), (1, begun.len()));
}

fn size(folder: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .map(|entry| entry.unwrap())
        .map(|entry| if entry.path().is_dir() { size(&entry.path()) } else { entry.metadata().map_or(0, |m| m.len()) })
        .sum()
}
