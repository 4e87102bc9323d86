//! `sealcast bench` as a person runs it: on an environment of its own, and on real nodes over real brokers.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::kafka::shared;
use crate::common::world::{World, lines};
use serde_json::Value;

const STAGES: [&str; 6] = ["sealed", "accepted", "delivered", "staged", "committed", "complete"];

/// The command in a folder, with the folder for temporary files in it.
fn bench(folder: &Path, arguments: &[&str]) -> Command {
    let temporary = folder.join("temporary");
    fs::create_dir_all(&temporary).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealcast"));
    command.current_dir(folder).env_remove("SEALCAST_LOG").env_remove("SEALCAST_CONFIG").env("TMPDIR", temporary);
    command.arg("bench").args(arguments).args(["--format", "json"]).stdin(Stdio::null());
    command
}

fn stage<'a>(objects: &'a [Value], name: &str) -> &'a Value {
    objects.iter().find(|object| object["stage"] == name).unwrap_or_else(|| panic!("no stage {name}: {objects:?}"))
}

fn summary(objects: &[Value]) -> &Value {
    let last = objects.last().expect("a summary");
    assert_eq!((&last["object"], &last["v"]), (&"summary".into(), &1.into()), "{last}");
    last
}

#[test]
fn every_send_is_counted_at_every_stage() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--rate", "40", "--count", "40", "--warm-up", "250ms", "--size", "2000", "--senders", "2"];
    let output = bench(folder.path(), &[arguments.as_slice(), &["--keys", "7"]].concat()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let objects = lines(&output.stdout);
    let named: Vec<_> = objects.iter().filter_map(|object| object["stage"].as_str()).collect();
    assert_eq!(named, STAGES);
    for name in STAGES {
        let stage = stage(&objects, name);
        // What a node does not know of (a segment that was put off) it does not say; everything else is counted once.
        let least = if ["delivered", "staged"].contains(&name) { 1 } else { 40 };
        let count = stage["transactions"].as_u64().unwrap();
        assert!((least..=40).contains(&count), "{stage}");
        let times: Vec<f64> =
            ["p50_ms", "p90_ms", "p99_ms", "max_ms"].iter().map(|field| stage[field].as_f64().unwrap()).collect();
        assert!(times.is_sorted() && times[0] > 0.0, "{stage}");
    }
    // Every transaction is sealed before it is committed, and committed before it is complete.
    let max = |name: &str| stage(&objects, name)["max_ms"].as_f64().unwrap();
    assert!(max("sealed") <= max("committed") && max("committed") <= max("complete"), "{objects:?}");
    let clocks: Vec<_> = objects.iter().filter(|object| object["object"] == "clock").collect();
    assert!(clocks.iter().all(|clock| clock["ahead_at_most_ms"].as_i64() >= Some(0)), "the same clock: {clocks:?}");

    let summary = summary(&objects);
    let expected = [
        ("destination", Value::from("orders")),
        ("size", 2000.into()),
        ("senders", 2.into()),
        ("keys", 7.into()),
        ("warm_up", 10.into()),
        ("due", 40.into()),
        ("sent", 40.into()),
        ("not_sent", 0.into()),
        ("committed", 40.into()),
        ("rejected", 0.into()),
        ("expired", 0.into()),
        ("unknown", 0.into()),
        ("bytes", 80_000.into()),
        ("intended_rate", 40.0.into()),
        ("ended_by", Value::Null),
    ];
    for (field, value) in expected {
        assert_eq!(summary[field], value, "{field}: {summary}");
    }
    assert!(summary["achieved_rate"].as_f64().unwrap() > 0.0 && summary["late_max_ms"].is_number(), "{summary}");
    assert_eq!(fs::read_dir(folder.path().join("temporary")).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_signal_ends_it_with_what_was_measured_so_far() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--rate", "20", "--duration", "1h", "--warm-up", "0s", "--outbox", "memory"];
    let mut running = bench(folder.path(), &arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(running.stderr.take().unwrap()).lines();
    let sending = said.by_ref().map(Result::unwrap).find(|line| line.contains("sending 1KiB to orders"));
    assert!(sending.is_some(), "it says what it does");
    std::thread::sleep(Duration::from_secs(2));
    assert!(Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap().success());
    let drained = std::thread::spawn(move || said.map(Result::unwrap).collect::<Vec<_>>());
    let output = running.wait_with_output().unwrap();
    let said = drained.join().unwrap();
    assert_eq!(output.status.code(), Some(0), "{said:?}");
    let objects = lines(&output.stdout);
    let summary = summary(&objects);
    assert_eq!(summary["ended_by"], "Ctrl-C", "{summary}");
    let number = |field: &str| summary[field].as_u64().unwrap();
    assert!(number("sent") > 0 && number("due") < 72_000, "{summary}");
    assert_eq!((number("committed"), number("unknown")), (number("sent"), 0), "what was in flight is waited for");
    assert_eq!(number("due"), number("sent") + number("not_sent"), "{summary}");
    assert_eq!(fs::read_dir(folder.path().join("temporary")).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn on_real_nodes_what_is_not_known_in_time_is_said() {
    let mut world = World::new(&shared());
    let config = ["orders", "--config", "env/senders/web/client.toml", "--rate", "20", "--warm-up", "0s"];
    let run = |world: &World, more: &[&str]| {
        let output = bench(world.path(), &[config.as_slice(), more].concat()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), lines(&output.stdout), said)
    };
    // No node runs: the brokers take it, and nobody signs it.
    let (code, objects, said) = run(&world, &["--count", "5", "--timeout", "2s"]);
    assert_eq!(code, Some(3), "{said}");
    let count = |objects: &[Value], name: &str| stage(objects, name)["transactions"].as_u64().unwrap();
    assert_eq!((count(&objects, "sealed"), count(&objects, "committed")), (5, 0), "{objects:?}");
    assert_eq!((&summary(&objects)["unknown"], &summary(&objects)["committed"]), (&5.into(), &0.into()));

    world.start_all();
    let (code, objects, said) =
        run(&world, &["--count", "20", "--size", "100KiB", "--senders", "2", "--timeout", "90s"]);
    assert_eq!(code, Some(0), "{said}\n{}", world.logs());
    assert_eq!(STAGES.map(|name| count(&objects, name) > 0), [true; 6], "{objects:?}");
    assert_eq!((&summary(&objects)["committed"], &summary(&objects)["bytes"]), (&20.into(), &(20 * 102_400).into()));
    world.settle(20);
    // Its outboxes are gone, and the sender's own was never touched.
    let left: Vec<_> =
        fs::read_dir(world.path().join("env/senders/web")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("bench") && name != "outbox"), "{left:?}");

    for (arguments, says) in [
        (
            ["nowhere", "--config", "env/senders/web/client.toml"].as_slice(),
            "may not send to nowhere: it may to orders",
        ),
        (&["--config", "env/readers/app/client.toml"], "it names no sender"),
        (&["--rate", "0"], "sends a second"),
        (&["--size", "1GiB"], "at most 256MiB"),
        (&["--rate", "1000000", "--duration", "1h"], "at most 100000000"),
    ] {
        let output = bench(world.path(), arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(says) && output.stdout.is_empty(), "{arguments:?}: {said}");
    }
}
