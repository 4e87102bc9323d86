//! Every command's help has examples, and every example works as it is printed: in the folder that a person would be in, with
//! the files there that it names. Only what is another environment's is replaced: ids, positions, and where Kafka is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::common::kafka::shared;
use crate::common::world::World;

/// The widest line that no terminal of a hundred columns breaks.
const WIDEST: usize = 100;

/// A command and the examples in its help, in the order of the help.
fn examples() -> Vec<(String, Vec<String>)> {
    fn walk(command: &clap::Command, path: &str, found: &mut Vec<(String, Vec<String>)>) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let mut examples: Vec<String> = Vec::new();
        let mut within = false;
        for line in help.lines() {
            let indented = line.strip_prefix("  ");
            within = match (within, indented) {
                (_, None) => line.starts_with("Example"),
                (within, Some(_)) => within,
            };
            let Some(line) = indented.filter(|_| within) else { continue };
            assert!(line.len() + 2 <= WIDEST, "{path}: an example that the help breaks: {line}");
            match examples.last_mut() {
                Some(open) if open.ends_with('\\') => {
                    *open = format!("{} {}", open.trim_end_matches('\\'), line.trim())
                }
                _ => examples.push(line.trim().to_owned()),
            }
        }
        assert!(!examples.is_empty(), "{path} has no example");
        assert!(examples.iter().all(|example| example.contains("sealcast")), "{path}: {examples:?}");
        found.push((path.to_owned(), examples));
        for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
            walk(inner, &format!("{path} {}", inner.get_name()), found);
        }
    }
    let mut found = Vec::new();
    walk(&sealcast::cli::command(), "sealcast", &mut found);
    found
}

fn shell(folder: &Path, script: &str) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_sealcast")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
    let mut bash = Command::new("bash");
    bash.args(["-c", &format!("set -o pipefail; {script}")]).current_dir(folder).stdin(Stdio::null());
    bash.env("PATH", path).env("HOME", folder).env_remove("SEALCAST_FORMAT").env_remove("SEALCAST_LOG");
    bash.output().unwrap()
}

fn works(folder: &Path, example: &str) -> String {
    let output = shell(folder, example);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{example}\n{:?}\n{stdout}{stderr}", output.status.code());
    stdout.into_owned()
}

/// What an operator has beside him: keys of everybody, a draft with them, and a signed directory.
fn desk(folder: &Path) -> PathBuf {
    let desk = folder.join("desk");
    fs::create_dir(&desk).unwrap();
    let id = "5f0c6a1e9b3d47f2a8c05d7e4b61f390";
    works(&desk, "sealcast keys generate operator");
    fs::write(desk.join("transport.toml"), "[transport]\nbrokers = [\"localhost:9092\"]\n").unwrap();
    for (kind, name) in
        [("node", "a"), ("node", "b"), ("node", "c"), ("node", "d"), ("sender", "web"), ("reader", "app")]
    {
        works(&desk, &format!("sealcast keys generate {kind} -o {name}.key"));
    }
    works(&desk, &format!("sealcast keys generate destination -o orders.key --name orders --environment {id}"));
    works(&desk, &format!("sealcast directory create shop --environment {id}"));
    for (node, host) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
        let add = format!("sealcast directory add node {node} --address 10.0.0.{host}:7401 --public {node}.pub");
        works(&desk, &add);
    }
    works(&desk, "sealcast directory add destination orders --public orders.pub --nodes a,b,c");
    works(&desk, "sealcast directory add sender web --public web.pub --destinations orders");
    works(&desk, "sealcast directory sign --operator operator.key");
    desk
}

#[test]
fn every_example_in_every_help_works() {
    let brokers = shared();
    let mut world = World::new(&brokers);
    let env = world.path().join("env");
    let (sender, reader) = (env.join("senders/web"), env.join("readers/app"));
    world.start_all();
    for name in ["order.json", "other.json"] {
        fs::write(sender.join(name), format!("{{\"{name}\": 1}}")).unwrap();
    }
    fs::write(sender.join("events.log"), "one\ntwo\nthree\n").unwrap();
    let sent = world.send("env/senders/web/order.json", "complete", &["-k", "customer-42"]);
    let text = |field: &str| sent[field].as_str().unwrap().to_owned();
    let (id, ticket, position) = (text("transaction"), text("ticket"), text("position"));
    let desk = desk(world.path());
    let fresh = world.path().join("fresh");
    fs::create_dir(&fresh).unwrap();

    let mut ran = 0;
    for (command, examples) in examples() {
        for example in examples {
            let replaced = example
                .replace("orders/01939f6e-8d5c-7d2a-9a55-6b1f0d3c2b1a/1735689600000", &ticket)
                .replace("01939f6e-8d5c-7d2a-9a55-6b1f0d3c2b1a", &id)
                .replace("01939f6e", &id[..23])
                .replace("17.0 -c 5", &format!("{} -c 1", before(&position)))
                .replace("localhost:9092", &brokers);
            let word = command.split(' ').nth(1).unwrap_or_default();
            let folder = match word {
                // demo.rs and bench.rs go that way, with less to send.
                "demo" => continue,
                "bench" if !example.contains("--config") => continue,
                "bench" => env.clone(),
                "" if example.contains("demo") => continue,
                "dev" => tempfile::Builder::new().tempdir_in(&fresh).unwrap().keep(),
                "" | "init" => tempfile::Builder::new().tempdir_in(&fresh).unwrap().keep(),
                "config" | "topic" | "node" | "inspect" => env.clone(),
                "directory" if example.contains("directory status") => env.clone(),
                "keys" | "directory" => desk.clone(),
                "send" => sender.clone(),
                "status" | "get" | "watch" => reader.clone(),
                "completion" | "man" => fresh.clone(),
                other => panic!("in which folder does one use `{other}`? say it here"),
            };
            if example.starts_with("sealcast dev") {
                // It runs until it is told to end.
                let ready = "for _ in $(seq 600); do grep -q Ctrl-C log && break; sleep 0.1; done";
                works(&folder, &format!("{replaced} 2>log & {ready}; cat log; kill $!; wait $!"));
            } else if example.contains("| man ") && shell(&fresh, "command -v man").stdout.is_empty() {
                works(&folder, replaced.split('|').next().unwrap());
            } else if example.contains("node run") {
                // Its node runs already: what is wrong is that, and not the command.
                let output = shell(&folder, &replaced);
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(said.contains("ddress already in use") || said.contains("in use by another process"), "{said}");
            } else {
                // Keys that the desk has already would not be made again, nor a draft.
                if example.contains("generate") || example.contains("directory create") {
                    let anew = tempfile::Builder::new().tempdir_in(&fresh).unwrap().keep();
                    works(&anew, &replaced);
                } else {
                    works(&folder, &replaced);
                    if example.starts_with("sealcast directory remove") {
                        works(&folder, "sealcast directory add sender web --public web.pub --destinations orders");
                    }
                }
            }
            ran += 1;
        }
    }
    assert!(ran > 40, "only {ran} examples were found");
    assert_eq!(fs::read(reader.join("order.json")).unwrap(), fs::read(sender.join("order.json")).unwrap());
}

/// The position before this one.
fn before(position: &str) -> String {
    let (index, _) = position.split_once('.').unwrap();
    format!("{}.0", index.parse::<u64>().unwrap() - 1)
}

#[test]
fn errors_say_what_is_wrong_and_what_to_do() {
    let brokers = shared();
    let mut world = World::new(&brokers);
    world.start_all();
    fs::write(world.path().join("payload"), "payload").unwrap();
    let sent = world.send("payload", "complete", &[]);
    let id = sent["transaction"].as_str().unwrap();
    world.send("payload", "complete", &[]);
    let other = format!("{}{}", &id[..35], if id.ends_with('0') { '1' } else { '0' });
    // Both were sent within the minute whose 8 characters they share, or not: then the second is the only one of its prefix.
    let (reader, sender) = ("env/readers/app/client.toml", "env/senders/web/client.toml");
    let node = "env/nodes/a/node.toml";
    let cases: Vec<(Vec<&str>, i32, &str)> = vec![
        (vec!["status", &other, "--config", reader], 3, "no such transaction"),
        (vec!["status", "xyz", "--config", reader], 2, "first characters"),
        (vec!["status", &id[..7], "--config", reader], 2, "8 or more"),
        (vec!["status", id, "-d", "nowhere", "--config", reader], 2, "no destination nowhere: it has orders"),
        (vec!["status", id, "--config", sender], 2, "it names no reader"),
        (vec!["status", id, "--config", node], 2, "a node's configuration"),
        (vec!["get", &other, "--config", reader], 1, "not found"),
        (vec!["get", "00000000", "--config", reader], 1, "not found"),
        (vec!["get", id, "--config", reader, "-o", "absent/file"], 1, "no folder absent: make it first"),
        (vec!["get", id, "--config", reader, "--node", "z"], 2, "no node z"),
        (vec!["watch", "nowhere", "-e", "--config", reader], 2, "no destination nowhere"),
        (vec!["watch", "orders", "--from", "x", "--config", reader], 2, "@2h"),
        (vec!["send", "orders", "payload", "--config", reader], 2, "it names no sender"),
        (vec!["send", "orders", "payload", "absent", "--config", sender], 2, "absent: No such file"),
        (vec!["send", "nowhere", "payload", "--config", sender], 2, "no destination nowhere: it has orders"),
        (vec!["send", "orders", "env", "--config", sender], 2, "is a folder"),
        (vec!["send", "orders", "payload", "--config", "absent.toml"], 2, "sealcast init"),
        (vec!["node", "run", "--config", reader], 2, "a client's configuration"),
        (vec!["topic", "check", "--config", node, "-b", "127.0.0.1:1"], 5, "127.0.0.1:1"),
    ];
    for (arguments, code, says) in cases {
        let output = world.run(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}: no data");
        let output = world.run(&[arguments.as_slice(), &["--format", "json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}: no data");
        let said = crate::common::world::lines(&output.stderr).pop().unwrap();
        assert_eq!((&said["v"], &said["error"]["exit"]), (&1.into(), &code.into()), "{arguments:?}: {said}");
        assert!(said["error"]["message"].as_str().unwrap().contains(says), "{arguments:?}: {said}");
    }
    // One transaction for each of many lines: of what more than one begins with, some are shown and no fate is told.
    let many: String = (0..24).map(|line| format!("{line}\n")).collect();
    fs::write(world.path().join("many"), &many).unwrap();
    let sent_lines = world.json(&["send", "orders", "many", "--lines", "--wait", "complete", "--config", sender]);
    let mut starts = std::collections::BTreeMap::<&str, u32>::new();
    for one in &sent_lines {
        *starts.entry(&one["transaction"].as_str().unwrap()[..8]).or_default() += 1;
    }
    // They were made within moments: at most once does the start of their ids change in between.
    let (start, _) = starts.iter().max_by_key(|(_, count)| **count).unwrap();
    let output = world.run(&["status", start, "--config", reader]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), output.stdout.iter().filter(|byte| **byte == b'\n').count()), (Some(2), 11));
    assert!(said.contains("give more of the id") && said.contains("10 are shown"), "{said}");
    // The start of an id is enough where it names one.
    let most = &id[..28];
    assert_eq!(world.done(&["get", most, "--config", reader]), b"payload");
    assert_eq!(world.json(&["status", most, "--config", reader])[0]["transaction"], id);
    let ticket = sent["ticket"].as_str().unwrap();
    assert_eq!(world.done(&["get", ticket, "--config", reader]), b"payload");

    // What overrides a sender's transport does not keep a reader from reading.
    let mut watch = world.command(&["watch", "orders", "-e", "--lines", "--config", reader]);
    let output = watch.env("SEALCAST__TRANSPORT__BROKERS", &brokers).output().unwrap();
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(0), format!("payload\npayload\n{many}").as_bytes())
    );

    // Without brokers nothing is lost, and what is missing is told.
    let mut send =
        world.command(&["send", "orders", "payload", "--config", sender, "--timeout", "8s", "--format", "json"]);
    let output = send.env("SEALCAST__TRANSPORT__BROKERS", "127.0.0.1:1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("Kafka does not answer") && said.contains("127.0.0.1:1"), "{said}");
    // Beside what is logged.
    let told: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let told = told["note"].as_str().unwrap();
    assert!(
        told.contains("the brokers do not have it yet: Kafka does not answer") && told.contains("127.0.0.1:1"),
        "{said}"
    );
    assert!(said.contains("the brokers do not have it yet") && said.contains("sealcast status orders/"), "{said}");
    assert_eq!(crate::common::world::lines(&output.stdout)[0]["state"], "unknown");
    world.send("payload", "complete", &[]);
    world.settle(28);

    // A node that does not answer is told, and does not hide the others.
    world.stop("c");
    let output = world.run(&["node", "status", "--config", reader, "--format", "json"]);
    let rows = crate::common::world::lines(&output.stdout);
    assert_eq!((output.status.code(), rows.len()), (Some(5), 3));
    assert_eq!((&rows[2]["node"], &rows[2]["role"]), (&"c".into(), &"unreachable".into()), "{rows:?}");
    assert!(rows[2]["error"].as_str().unwrap().contains("node c"), "{rows:?}");
    let said = crate::common::world::lines(&output.stderr).pop().unwrap();
    assert!(said["error"]["message"].as_str().unwrap().contains("node c"), "{said}");
}

#[test]
fn who_asks_for_json_as_other_tools_name_it_is_told_its_name_here() {
    for asked in [["status", "--output"], ["bench", "--json"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_sealcast")).args(asked).arg("json").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{said}");
        assert!(said.contains("'--format json'"), "{said}");
    }
}
