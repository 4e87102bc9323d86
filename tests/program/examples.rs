//! The example programs as processes, against a real Kafka and three nodes: a submitting service, a consuming
//! application, and workers that count by compare-and-set.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::kafka::shared;
use crate::common::world::World;

/// The end of patience, no measure of speed.
const PATIENCE: Duration = Duration::from_secs(120);
const SENDER: &str = "env/senders/web/client.toml";
const READER: &str = "env/readers/app/client.toml";

/// An example in the world's folder. Cargo builds examples beside its tests.
fn example(world: &World, name: &str, arguments: &[&str]) -> Command {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(path.exists(), "{}: `cargo test` without a filter builds it, or `cargo build --examples`", path.display());
    let mut command = Command::new(path);
    command.args(arguments).current_dir(world.path()).stdin(Stdio::null());
    command
}

/// Runs an example with this input to its end and gives its lines.
fn ended(world: &World, mut command: Command, input: &str) -> Vec<String> {
    let log = |name: &str| std::fs::File::create(world.path().join(name)).unwrap();
    command.stdin(Stdio::piped()).stdout(log("out")).stderr(log("err"));
    let mut running = command.spawn().unwrap();
    running.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let end = Instant::now() + PATIENCE;
    let status = loop {
        match running.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if Instant::now() > end => {
                running.kill().unwrap();
                running.wait().unwrap();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let read = |name: &str| std::fs::read_to_string(world.path().join(name)).unwrap();
    let (out, err) = (read("out"), read("err"));
    let success = status.is_some_and(|status| status.success());
    assert!(success, "{command:?}: {status:?}\n{out}{err}\n{}", world.logs());
    out.lines().map(str::to_owned).collect()
}

/// Submits lines `KEY VALUE` and gives what was printed.
fn submit(world: &World, lines: &str) -> Vec<String> {
    ended(world, example(world, "submit", &[SENDER, "orders"]), lines)
}

/// Consumes so many from where the cursor is and gives the lines.
fn consume(world: &World, count: usize) -> Vec<String> {
    ended(world, example(world, "consume", &[READER, "orders", "cursor", &count.to_string()]), "")
}

/// Position, sender, key and payload of a consumed line.
fn parts(line: &str) -> (&str, &str, &str, &str) {
    let mut words = line.splitn(4, ' ');
    let mut next = || words.next().unwrap_or_else(|| panic!("a short line: {line}"));
    (next(), next(), next(), next())
}

#[test]
fn what_the_service_submits_the_application_consumes_once_and_in_order() {
    let mut world = World::new(&shared());
    world.start_all();
    let lines: String = (0..30).map(|number| format!("customer-{} order {number}\n", number % 3)).collect();
    let said = submit(&world, &lines);
    let tickets = |word: &str| -> Vec<String> {
        let of = said.iter().filter_map(|line| line.strip_prefix(word));
        of.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    };
    let (submitted, mut committed) = (tickets("submitted "), tickets("committed "));
    assert_eq!((submitted.len(), committed.len(), said.len()), (30, 30, 60), "{said:#?}");
    committed.sort();
    let mut sorted = submitted.clone();
    sorted.sort();
    assert_eq!(committed, sorted, "a fate for each ticket");
    for line in said.iter().filter(|line| line.starts_with("committed ")) {
        let signers = line.split("signed by ").nth(1).unwrap_or_else(|| panic!("no signers: {line}"));
        assert!(signers.split(" and ").count() >= 2, "a majority signs: {line}");
    }

    // In three goes: the cursor remembers where each stopped.
    let mut consumed = consume(&world, 7);
    assert_eq!(consumed.len(), 7);
    let cursor = std::fs::read_to_string(world.path().join("cursor")).unwrap();
    assert!(cursor.starts_with(&format!("{}@", parts(&consumed[6]).0)), "{cursor}");
    consumed.extend(consume(&world, 11));
    consumed.extend(consume(&world, 12));
    let mut by_key: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in &consumed {
        let (_, sender, key, payload) = parts(line);
        assert_eq!(sender, "web", "{line}");
        by_key.entry(key).or_default().push(payload);
    }
    for (index, key) in ["customer-0", "customer-1", "customer-2"].into_iter().enumerate() {
        let expected: Vec<_> = (0..10).map(|turn| format!("order {}", turn * 3 + index)).collect();
        assert_eq!(by_key[key], expected, "each once, in order");
    }
    assert_eq!(by_key.len(), 3);

    // One that follows sees what comes later, from another node when its own goes away.
    let mut command = example(&world, "consume", &[READER, "orders", "cursor", "2"]);
    let log = std::fs::File::create(world.path().join("following")).unwrap();
    let mut following = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
    let lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let (give, coming) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.map(Result::unwrap).try_for_each(|line| give.send(line)));
    for value in ["later", "last"] {
        submit(&world, &format!("customer-0 {value}\n"));
        let line = coming.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            following.kill().unwrap();
            following.wait().unwrap();
            let said = std::fs::read_to_string(world.path().join("following")).unwrap();
            panic!("{value} does not come: {said}\n{}", world.logs())
        });
        assert_eq!(parts(&line).3, value);
        if value == "later" {
            assert_eq!(world.stop("a"), Some(0), "SIGTERM drains, whoever still listens");
        }
    }
    assert!(following.wait().unwrap().success());

    // Two workers count one number up, and no step is lost.
    let counted = ended(&world, example(&world, "compare_and_set", &[SENDER, READER, "orders", "nails", "3"]), "");
    let value = |line: &String| line.split(' ').next().and_then(|value| value.parse().ok());
    let mut values: Vec<u64> = counted.iter().filter_map(value).collect();
    values.sort_unstable();
    assert_eq!(values, [1, 2, 3, 4, 5, 6], "{counted:#?}");
}

#[test]
fn wrong_usage_says_how() {
    let folder = tempfile::tempdir().unwrap();
    let test = std::env::current_exe().unwrap();
    let examples = test.parent().and_then(Path::parent).unwrap().join("examples");
    let usages = [
        ("submit", "usage: submit CLIENT.TOML"),
        ("consume", "usage: consume CLIENT.TOML"),
        ("compare_and_set", "usage: compare_and_set CLIENT.TOML"),
    ];
    for (name, usage) in usages {
        let output = Command::new(examples.join(name)).current_dir(folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains(usage), "{output:?}");
    }
}
