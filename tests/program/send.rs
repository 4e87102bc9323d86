//! What `sealcast send` does when there is no room: it goes on when there is, and ends in time when there is not.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::folders;
use crate::common::kafka::shared;
use crate::common::world::{World, lines};
use serde_json::Value;

/// Runs a command to its end; one that never ends is no answer.
fn run(folder: &Path, arguments: &str, variables: &[(&str, &str)], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealcast"));
    command.args(arguments.split_whitespace()).current_dir(folder).envs(variables.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Left open while the command waits, as by somebody who types.
    child.stdin.take().unwrap().write_all(input).unwrap();
    let end = Instant::now() + Duration::from_secs(120);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("sealcast {arguments} does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn states(output: &Output) -> Vec<Value> {
    lines(&output.stdout).into_iter().map(|sent| sent["state"].clone()).collect()
}

#[test]
fn send_ends_in_time_when_no_fate_comes() {
    let world = World::new(&shared());
    let folder = world.path();
    for (name, bytes) in [("small", 10), ("large", 600 * 1024)] {
        for number in 1..=3 {
            std::fs::write(folder.join(format!("{name}{number}")), vec![number; bytes]).unwrap();
        }
    }
    // Files, window, exit code, and how many transactions are told of. No node runs: nothing gets its fate.
    let cases = [
        ("small1 small2 small3", "2", 5, 2),
        ("large1 large2 large3", "2", 5, 2),
        ("- --lines", "2", 5, 2),
        ("small1 large2 small3", "100", 3, 3),
        ("small1 large2 --pad -z", "100", 3, 2),
        ("- --pad -k k --release complete --on-predecessor go-on --expected-version orders=0.0", "100", 3, 1),
    ];
    for (number, (files, window, exit, told)) in cases.into_iter().enumerate() {
        let send = "send orders --config env/senders/web/client.toml --format json --timeout 1s";
        let outbox = folder.join(format!("outbox{number}"));
        let variables =
            [("SEALCAST__WINDOW__TRANSACTIONS", window), ("SEALCAST__OUTBOX__PATH", outbox.to_str().unwrap())];
        let output = run(folder, &format!("{send} {files}"), &variables, b"1\n2\n3\n4\n5\n");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(exit), "{files}: {said}");
        assert_eq!(states(&output), vec![Value::from("unknown"); told], "{files}: {said}");
        assert_eq!(said.contains("no room for more within 1s"), exit == 5, "{files}: {said}");
        for line in said.lines() {
            serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}

#[test]
fn what_a_former_send_left_is_told_and_finished() {
    let mut world = World::new(&shared());
    for (name, bytes) in [("small", 10), ("large", 600 * 1024)] {
        std::fs::write(world.path().join(name), vec![7; bytes]).unwrap();
    }
    let config = "--config env/senders/web/client.toml --format json";
    let send = |arguments: &str| {
        let output = run(world.path(), &format!("send {arguments} {config}"), &[], b"");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), states(&output), said)
    };
    // No node runs yet: nothing gets its fate.
    let (exit, states, said) = send("orders small large --wait submitted");
    assert_eq!((exit, states.len()), (Some(0), 2), "{said}");
    let (exit, states, said) = send("--resume --wait submitted");
    assert_eq!((exit, states), (Some(0), vec![Value::from("submitted"); 2]), "{said}");
    let (exit, states, said) = send("--resume --timeout 1s");
    assert_eq!((exit, states), (Some(3), vec![Value::from("unknown"); 2]), "{said}");
    let (exit, states, said) = send("orders small --timeout 1s");
    assert_eq!((exit, states.len()), (Some(3), 1), "{said}");
    assert!(said.contains("2 transactions of former runs") && said.contains("send --resume"), "{said}");
    for (arguments, says) in [("--resume orders", "cannot be used with"), ("--resume -k k", "cannot be used with")] {
        let (exit, _, said) = send(arguments);
        assert!(exit == Some(2) && said.contains(says), "{said}");
    }

    world.start_all();
    let send = |arguments: &str| run(world.path(), &format!("send {arguments} {config} --timeout 90s"), &[], b"");
    let output = send("orders small");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.split(|byte| *byte == b'\n').count()), (Some(0), 2), "{said}");
    assert!(said.contains("left in the outbox: 3 transactions committed"), "{said}\n{}", world.logs());
    let output = send("--resume --wait complete");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let output = send("--resume");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout.is_empty() && said.contains("nothing"), "{said}");
}

#[test]
fn send_goes_on_when_there_is_room_again() {
    let mut world = World::new(&shared());
    world.start_all();
    for (name, bytes) in [("small", 10), ("large", 600 * 1024)] {
        std::fs::write(world.path().join(name), vec![7; bytes]).unwrap();
    }
    let send = "send orders small large large small large --config env/senders/web/client.toml --format json";
    let variables = [("SEALCAST__WINDOW__TRANSACTIONS", "1")];
    let output = run(world.path(), &format!("{send} --timeout 90s"), &variables, b"");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", world.logs());
    assert_eq!(states(&output), vec![Value::from("committed"); 5]);
}

/// An environment of a cluster at this address, whether there is one or not.
fn environment(folder: &Path, kafka: &str) {
    let init = format!("init env --kafka {kafka} --nodes a,b,c --destination orders --sender web --format json");
    let output = run(folder, &init, &[], b"");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn send_without_any_broker_ends_as_unknown_with_a_ticket_and_the_cause() {
    let folder = tempfile::tempdir().unwrap();
    environment(folder.path(), "127.0.0.1:1");
    // Connecting takes two of the three seconds.
    let send = "send orders - --config env/senders/web/client.toml --timeout 3s";
    let output = run(folder.path(), &format!("{send} --format json"), &[], b"x");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert_eq!(states(&output), [Value::from("unknown")], "{said}");
    // Every line is JSON, what is logged too, which has no version.
    let (told, logged): (Vec<_>, Vec<_>) = lines(&output.stderr).into_iter().partition(|line| !line["v"].is_null());
    assert!(logged.iter().all(|line| line["level"].is_string()), "{said}");
    let submitted = told.iter().position(|line| line["note"] == "submitted").expect("the ticket comes before the wait");
    assert_eq!(told[submitted]["ticket"], lines(&output.stdout)[0]["ticket"], "{said}");
    assert_eq!((told[submitted]["source"].as_str(), submitted + 1 < told.len()), (Some("-"), true), "{said}");
    let why = told.last().unwrap()["note"].as_str().unwrap();
    assert!(why.contains("do not have it yet: Kafka does not answer") && why.contains("127.0.0.1:1"), "{said}");
    assert!(why.contains("running? The outbox keeps it"), "{said}");
    // What was submitted is waited for when there are brokers.
    let output = run(folder.path(), &send.replace("orders -", "--resume --wait submitted"), &[], b"");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("submitted outbox: orders/"), "{said}");
}

#[test]
fn send_to_a_topic_that_nobody_made_says_so_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let brokers = shared();
    environment(folder.path(), &brokers);
    // In a folder whose name a shell would take apart.
    std::fs::rename(folder.path().join("env"), folder.path().join("my env")).unwrap();
    let config = "my env/senders/web/client.toml";
    for wait in ["submitted", "committed"] {
        let variables = [("SEALCAST_CONFIG", config)];
        let output = run(folder.path(), &format!("send orders - --wait {wait}"), &variables, b"x");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{said}");
        let mend = format!("`sealcast topic init --config '{config}'`");
        assert!(said.contains("nothing was submitted") && said.contains(&mend), "{said}");
        let kept = run(folder.path(), "send --resume --wait submitted", &variables, b"");
        assert!(String::from_utf8_lossy(&kept.stderr).contains("the outbox holds nothing"), "nothing is kept");
    }
}

#[test]
fn send_waits_for_room_in_a_full_outbox_and_goes_on() {
    let mut world = World::new(&shared());
    for (name, bytes) in [("small", 500_000), ("large", 2_000_000), ("huge", 17_000_000)] {
        std::fs::write(world.path().join(name), vec![7; bytes]).unwrap();
    }
    let lines_of = |count: usize| (0..count).map(|line| format!("{line:060000}\n")).collect::<String>();
    std::fs::write(world.path().join("many"), lines_of(20)).unwrap();
    let folder = world.path().to_owned();
    let send_all = |outbox: &str, arguments: &str, input: &[u8]| {
        let outbox = folder.join(outbox);
        let variables = [("SEALCAST__OUTBOX__BYTES", "16777216"), ("SEALCAST__OUTBOX__PATH", outbox.to_str().unwrap())];
        let send = format!("send orders --config env/senders/web/client.toml --format json {arguments}");
        run(&folder, &send, &variables, input)
    };
    let send = |outbox: &str, arguments: &str| send_all(outbox, arguments, b"");
    // Nobody gives a fate yet: it waits as long as it may, and says for what.
    let output = send("first", &format!("--timeout 1s {}", "small ".repeat(40)));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("the outbox is full") && said.contains("waiting for that, at most 1s"), "{said}");
    assert!(said.contains("no room for more within 1s"), "{said}");
    let submitted = states(&output).len();
    assert!((20..40).contains(&submitted), "{submitted}");
    // What can never fit is told at once.
    let output = send("empty", "--timeout 90s huge");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(5) && said.contains("the outbox is full"), "{said}");
    assert!(!said.contains("waiting"), "{said}");

    // Full from a former run, it goes on as soon as that has its fates: with files of every size, with lines, and with what
    // can be read only once.
    for copy in ["second", "third"] {
        folders::copy(&world.path().join("first"), &world.path().join(copy));
    }
    let output = std::thread::scope(|scope| {
        let piped = scope.spawn(|| send_all("third", "- --timeout 90s", &vec![7; 6_000_000]));
        world.start_all();
        piped.join().unwrap()
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", world.logs());
    assert_eq!(states(&output), [Value::from("committed")], "{said}");
    for (outbox, files, count) in [("first", "large small large", 3), ("second", "-k k --lines many", 20)] {
        let output = send(outbox, &format!("--timeout 90s {files}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{}", world.logs());
        assert_eq!(states(&output), vec![Value::from("committed"); count], "{said}");
    }
}
