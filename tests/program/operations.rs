//! What operators do to running nodes, as real processes over real brokers: a new directory, draining under load, a disk
//! that fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::common::kafka::shared;
use crate::common::world::{World, lines, payload};
use serde_json::Value;

/// One at a time: each has up to five processes of its own.
fn turn() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write(world: &World, name: &str, bytes: &[u8]) {
    std::fs::write(world.path().join(name), bytes).unwrap();
}

/// Waits until the nodes' status fulfils something.
fn until(world: &World, what: &str, there: impl Fn(&BTreeMap<String, Value>) -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let status = world.status();
        if there(&status) {
            return;
        }
        assert!(Instant::now() < end, "waited in vain for {what}: {status:#?}\n{}", world.logs());
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn leader(world: &World) -> String {
    let leads = |value: &Value| value["role"] == "leader";
    until(world, "a leader", |status| status.values().any(leads));
    let status = world.status();
    status.iter().find(|(_, value)| leads(value)).map_or("a", |(node, _)| node).to_owned()
}

/// Changes the operator's directory and signs the next version at once; gives what is told of it.
fn sign(world: &World, change: &[&str]) -> Value {
    let command = [&["directory"], change, &["--operator", "env/operator/operator.key"]].concat();
    world.json(&command).pop().unwrap()
}

fn give_directory(world: &World, signed: &Path, bundle: &Path) {
    std::fs::copy(signed, world.path().join(bundle).join("directory")).unwrap();
}

#[test]
fn r08_a_new_directory_comes_in_force_by_one_nodes_hangup_and_a_wrong_one_is_refused() {
    let _turn = turn();
    let mut world = World::new(&shared());
    world.start_all();
    write(&world, "first", b"first");
    world.send("first", "complete", &[]);
    let node_a = world.path().join("env/nodes/a");
    let first_version = std::fs::read(node_a.join("directory")).unwrap();

    // The new sender sends before any node knows it: that waits, and is no verdict.
    sign(&world, &["add", "sender", "shop", "--destinations", "orders"]);
    write(&world, "from-shop", b"from a sender that is new");
    let send = ["send", "orders", "from-shop", "--config", "env/senders/shop/client.toml", "--wait", "complete"];
    let mut command = world.command(&[send.as_slice(), &["--timeout", "100s", "--format", "json"]].concat());
    let sending = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deferred = |value: &Value| value["lag"]["deferred"].as_u64() > Some(0);
    until(&world, "records of an unknown sender", |status| status.values().any(deferred));

    // One node is told. The log brings it to all three (R8).
    let signed = world.path().join("env/operator/directory");
    give_directory(&world, &signed, Path::new("env/nodes/b"));
    world.signal("b", "HUP");
    world.logged("b", "the directory was read again", 1);
    let output = sending.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {said}\n{}", output.status.code(), world.logs());
    let in_force = |value: &Value| value["directory_version"] == 2;
    until(&world, "the new version everywhere", |status| status.len() == 3 && status.values().all(in_force));

    // What is not newer, or not the operator's, is refused with a line, and the node goes on with the one it has.
    assert_eq!(std::fs::read(node_a.join("directory")).unwrap(), first_version);
    world.signal("a", "HUP");
    world.logged("a", "the directory was not taken", 1);
    let mut forged = std::fs::read(&signed).unwrap();
    let last = forged.len() - 2;
    forged[last] ^= 1;
    std::fs::write(node_a.join("directory"), &forged).unwrap();
    world.signal("a", "HUP");
    world.logged("a", "the directory was not taken", 2);
    write(&world, "second", b"second");
    world.send("second", "complete", &[]);
    until(&world, "the version that was in force", |status| status.len() == 3 && status.values().all(in_force));
    // And the right one, where it is in force already, changes nothing.
    give_directory(&world, &signed, Path::new("env/nodes/a"));
    world.signal("a", "HUP");
    world.logged("a", "it is the one in use", 1);
    world.settle(3);
}

#[test]
fn a_sender_a_reader_and_a_destination_are_added_while_nodes_run() {
    let _turn = turn();
    let mut world = World::new(&shared());
    world.start_all();
    write(&world, "first", b"first");
    world.send("first", "complete", &[]);
    let signed = world.path().join("env/operator/directory");
    let status = |world: &World, more: &[&str]| {
        let fixed = ["directory", "status", "env/operator/directory", "--config", "env/readers/app/client.toml"];
        world.run(&[fixed.as_slice(), more].concat())
    };
    let in_force = |world: &World| {
        let output = status(world, &["--wait", "100s"]);
        assert_eq!(output.status.code(), Some(0), "{}\n{}", String::from_utf8_lossy(&output.stdout), world.logs());
    };

    // One command, one node told: a sender, then a reader.
    let told = sign(&world, &["add", "sender", "shop", "--destinations", "orders"]);
    assert_eq!((&told["version"], &told["before"]), (&2.into(), &1.into()));
    assert_eq!(told["changes"][0]["name"], "shop");
    assert_eq!(status(&world, &[]).status.code(), Some(3), "nobody was told yet");
    give_directory(&world, &signed, Path::new("env/nodes/a"));
    world.signal("a", "HUP");
    in_force(&world);
    write(&world, "second", b"from the new sender");
    let config = told["config"].as_str().unwrap();
    let sent = world.json(&["send", "orders", "second", "-k", "k", "--wait", "complete", "--config", config]).remove(0);
    let told = sign(&world, &["add", "reader", "audit", "--destinations", "orders"]);
    let audit = told["config"].as_str().unwrap();
    let before = world.run(&["get", sent["transaction"].as_str().unwrap(), "--config", audit]);
    assert!(!before.status.success(), "no node knows this reader yet");
    give_directory(&world, &signed, Path::new("env/nodes/c"));
    world.signal("c", "HUP");
    in_force(&world);
    // It may read one destination: that is the one that a key is looked up in.
    assert_eq!(world.done(&["get", "-k", "k", "--config", audit]), b"from the new sender");

    // A destination: nodes serve it after a restart, one after the other, while the other destination goes on.
    let told = sign(&world, &["add", "destination", "bills", "--senders", "web", "--readers", "app"]);
    assert_eq!(told["key_rings"].as_array().unwrap().len(), 3);
    for folder in ["nodes/a", "nodes/b", "nodes/c", "senders/web", "readers/app"] {
        give_directory(&world, &signed, &Path::new("env").join(folder));
    }
    world.signal("a", "HUP");
    let orders_alone = |output: &std::process::Output| {
        let rows = lines(&output.stdout);
        let state = |row: &Value, in_force: Value| row["in_force"] == in_force;
        rows.len() == 6
            && rows.iter().all(|row| state(row, if row["destination"] == "orders" { 4.into() } else { Value::Null }))
    };
    let end = Instant::now() + Duration::from_secs(100);
    while !orders_alone(&status(&world, &["--format", "json"])) {
        assert!(Instant::now() < end, "{:?}\n{}", status(&world, &[]), world.logs());
        std::thread::sleep(Duration::from_millis(200));
    }
    world.make_topics();
    for node in ["a", "b", "c"] {
        assert_eq!(world.stop(node), Some(0));
        world.start(node);
        write(&world, "between", node.as_bytes());
        world.send("between", "complete", &[]);
    }
    in_force(&world);
    write(&world, "bill", b"a bill");
    let config = ["--config", "env/senders/web/client.toml"];
    let send = ["send", "bills", "bill", "-k", "k", "--wait", "complete", "--timeout", "90s"];
    world.done(&[send.as_slice(), &config].concat());
    let app = ["--config", "env/readers/app/client.toml"];
    assert_eq!(world.done(&[["get", "-k", "k", "-d", "bills"].as_slice(), &app].concat()), b"a bill");
    let output = world.run(&[["get", "-k", "k"].as_slice(), &app].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("say which with -d: bills, orders"), "{said}");
}

/// Sends many lines in one order.
fn stream(world: &World, count: usize) -> Child {
    // Large enough that they do not all share one parcel.
    let many: String = (0..count).map(|number| format!("line {number:04} {}\n", "-".repeat(40_000))).collect();
    write(world, "many", many.as_bytes());
    let mut command = world.command(&["send", "orders", "many", "--lines", "--config", "env/senders/web/client.toml"]);
    command.args(["--wait", "complete", "--timeout", "170s", "--format", "json", "-k", "stream"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn nodes_that_are_told_to_end_under_load_drain_and_lose_nothing() {
    const LINES: usize = 300;
    let _turn = turn();
    let mut world = World::new(&shared());
    world.start_all();
    write(&world, "first", b"first");
    world.send("first", "complete", &[]);
    let sending = stream(&world, LINES);
    // The leader in the middle of the stream; then, once it is back, whoever leads by then.
    for _ in 0..2 {
        let so_far = world.status().values().filter_map(|value| value["transactions"]["committed"].as_u64()).max();
        let more = so_far.unwrap_or_default().min(LINES as u64 - 100) + 10;
        let committed = |value: &Value| value["transactions"]["committed"].as_u64() >= Some(more);
        until(&world, "a stream that moves", |status| status.values().any(committed));
        let leads = leader(&world);
        assert_eq!(world.stop(&leads), Some(0), "SIGTERM drains");
        let log = world.log_of(&leads);
        assert!(log.contains("the lead is handed over") && log.contains("the node has stopped"), "{log}");
        assert!(!log.contains("nobody took the lead"), "{log}");
        world.start(&leads);
        until(&world, "the node to be back", |status| status.len() == 3);
    }
    let output = sending.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {said}\n{}", output.status.code(), world.logs());
    let sent = lines(&output.stdout);
    assert_eq!(sent.len(), LINES);
    assert!(sent.iter().all(|one| one["state"] == "complete"));
    world.settle(LINES as u64 + 1);
    // Once each, in the order in which they were sent, as every node tells.
    let expected: Vec<_> = sent.iter().map(|one| one["transaction"].clone()).collect();
    for node in ["a", "b", "c"] {
        let fed = world.json(&["watch", "orders", "--config", "env/readers/app/client.toml", "--node", node, "-e"]);
        let fed: Vec<_> = fed.iter().skip(1).map(|one| one["transaction"].clone()).collect();
        assert_eq!(fed, expected, "{node}");
    }
}

#[test]
fn a_node_whose_disk_fails_goes_on_without_a_body_and_without_its_store_ends_with_a_reason() {
    let _turn = turn();
    let mut world = World::new(&shared());
    world.start("a");
    world.start("b");
    world.start_limited("c", 12 * 1024);
    write(&world, "first", b"first");
    world.send("first", "complete", &[]);
    // A body that is larger than any file that c may write is lost to it, and nothing else is.
    write(&world, "large", &payload(5, 20 << 20));
    world.send("large", "committed", &[]);
    world.logged("c", "File too large", 1);
    write(&world, "second", b"second");
    world.send("second", "complete", &[]);
    // Its database is a file too.
    let many: String = (0..400).map(|number| format!("line {number:04} {}\n", "-".repeat(60_000))).collect();
    write(&world, "many", many.as_bytes());
    world.send("many", "committed", &["--lines"]);
    let code = world.ended("c");
    let log = world.log_of("c");
    assert!(matches!(code, Some(1..)), "it ends by itself, and not well: {code:?}\n{log}");
    assert!(log.contains("the node stops"), "it says why:\n{log}");
    write(&world, "after", b"after");
    world.send("after", "committed", &[]);
    world.start("c");
    world.settle(404);
}
