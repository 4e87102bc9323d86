//! What real brokers carry of strangers' making: null keys and values, records as long as a broker takes, compressed batches.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::common::kafka::shared;
use crate::common::world::{World, payload};

/// Above what Sealcast takes, within what a broker does.
const OVERSIZED: usize = 1_040_000;

fn write(topics: &[String], brokers: &str, compression: &str) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("message.max.bytes", "2000000").set("compression.type", compression);
    config.set("queue.buffering.max.kbytes", "65536");
    let producer: BaseProducer = config.create().unwrap();
    let long = payload(1, OVERSIZED);
    let queries = [&b"SCQY\x01"[..], &payload(2, 200_000)].concat();
    for topic in topics {
        for number in 0..1500u64 {
            let (key, value) = (payload(number, 16), payload(number, number as usize % 900));
            let long_key = payload(number, 5000);
            let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition((number % 3) as i32);
            let record = match number % 6 {
                0 => record.key(&key[..]),
                1 => record,
                2 => record.payload(&value[..]),
                3 => record.key(&key[..]).payload(&[]),
                4 => record.key(&long_key[..]).payload(&value[..]).headers(OwnedHeaders::new()),
                _ if number % 300 == 5 => record.payload(&long[..]),
                _ if number % 300 == 11 => record.payload(&queries[..]),
                _ => record.key(&key[..]).payload(&value[..]),
            };
            let mut waiting = Some(record);
            while let Some(record) = waiting.take() {
                if let Err((_, record)) = producer.send(record) {
                    producer.poll(Duration::from_millis(10));
                    waiting = Some(record);
                }
            }
        }
    }
    producer.flush(Duration::from_secs(60)).expect("the brokers take it");
}

#[test]
fn r16_what_strangers_write_to_real_brokers_is_passed_over_and_keeps_nobody_away() {
    let brokers = shared();
    let mut world = World::new(&brokers);
    world.start_all();
    let of = |what: &str| format!("sealcast.{}.{what}", world.environment());
    let topics = [of("orders.segments"), of("notices")];
    std::fs::write(world.path().join("before"), payload(7, 100_000)).unwrap();
    world.send("before", "complete", &[]);
    for compression in ["none", "lz4"] {
        write(&topics, &brokers, compression);
        std::fs::write(world.path().join("after"), payload(8, 100_000)).unwrap();
        let sent = world.send("after", "complete", &[]);
        let (id, position) = (sent["transaction"].as_str().unwrap(), sent["position"].as_str().unwrap());
        assert_eq!(world.get("b", id, position), payload(8, 100_000));
    }
    world.settle(3);
    // Everything was read, nothing of it is waited for, and no alarm stands.
    let end = Instant::now() + Duration::from_secs(60);
    let at_rest = |status: &serde_json::Value| {
        status["alarms"].as_array().map(Vec::len) == Some(0) && status["lag"]["deferred"].as_u64() == Some(0)
    };
    loop {
        let status = world.status();
        if status.len() == 3 && status.values().all(at_rest) {
            break;
        }
        assert!(Instant::now() < end, "{status:#?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    // What a broker holds can be looked at all the same.
    let shown = world.json(&["inspect", "orders", "-c", "30", "--config", "env/nodes/a/node.toml"]);
    assert_eq!(shown.len(), 30);
}
