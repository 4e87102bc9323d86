//! The logs of a client and of the nodes tell one parcel's way: from submit to receipt, under one id.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::common::kafka::shared;
use crate::common::world::{World, lines};
use serde_json::Value;

/// The steps that the JSON lines of a log name for a parcel, and the transactions.
fn steps(log: &str, parcel: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let objects = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let spans: Vec<Value> = objects.map(|line| line["span"].clone()).filter(|span| span["parcel"] == parcel).collect();
    let all = |field: &str| spans.iter().filter_map(|span| span[field].as_str().map(str::to_owned)).collect();
    (all("step"), all("transaction"))
}

/// The same of a node's log.
fn steps_of(world: &World, node: &str, parcel: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    steps(&world.log_of(node), parcel)
}

fn named(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn one_parcel_id_leads_through_the_logs_of_client_and_nodes() {
    let mut world = World::new(&shared());
    for node in ["a", "b", "c"] {
        let path = world.path().join(format!("env/nodes/{node}/node.toml"));
        let config = std::fs::read_to_string(&path).unwrap();
        let section = "[log]\nformat = \"pretty\"\n";
        assert!(config.contains(section), "{config}");
        let json = "[log]\nformat = \"json\"\nfilter = \"warn,sealcast=debug\"\n";
        std::fs::write(&path, config.replace(section, json)).unwrap();
    }
    world.start_all();
    for (name, bytes) in [("small", vec![1; 10]), ("large", vec![2; 3_000_000])] {
        std::fs::write(world.path().join(name), bytes).unwrap();
        let config = ["send", "orders", name, "--config", "env/senders/web/client.toml", "--wait", "complete"];
        let mut command = world.command(&[config.as_slice(), &["--timeout", "90s", "--format", "json"]].concat());
        command.env("SEALCAST_LOG", "warn,sealcast=debug").env("SEALCAST__LOG__FORMAT", "json");
        let output = command.output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}\n{}", world.logs());
        let sent = lines(&output.stdout).pop().expect("one object");
        let (parcel, transaction) = (sent["parcel"].as_str().unwrap(), sent["transaction"].as_str().unwrap());
        let (client, transactions) = steps(&log, parcel);
        assert!(client.is_superset(&named(&["submit", "seal", "publish", "commit"])), "{name}: {client:?}\n{log}");
        assert_eq!(transactions, named(&[transaction]));
        // Two at least staged it before it was committed; the third may have come to it later, and fetched it.
        let told = |steps: &[&str]| {
            let wanted = named(steps);
            let tells = |node: &&str| {
                let (found, transactions) = steps_of(&world, node, parcel);
                found.is_superset(&wanted) && transactions == named(&[transaction])
            };
            ["a", "b", "c"].into_iter().filter(tells).count()
        };
        let end = Instant::now() + Duration::from_secs(60);
        while told(&["commit", "receipt"]) < 3 || told(&["collect", "stage", "commit", "receipt"]) < 2 {
            let found = ["a", "b", "c"].map(|node| steps_of(&world, node, parcel));
            assert!(Instant::now() < end, "{name} {transaction}: {found:?}\n{}", world.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
