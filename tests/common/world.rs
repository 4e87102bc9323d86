//! A whole environment as real processes: `sealcast node run` for each node, `sealcast` commands for the rest.

#![allow(dead_code)] // each test file uses its part

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::ports;

/// How long anything that must come may take; not a measure of speed, only the end of patience.
const PATIENCE: Duration = Duration::from_secs(120);

/// An environment in a folder of its own, its nodes running as processes. They end with it.
pub struct World {
    folder: tempfile::TempDir,
    brokers: String,
    name: String,
    running: BTreeMap<String, Child>,
}

impl World {
    /// Makes an environment with nodes a, b and c, destination orders, sender web and reader app, and its topics.
    pub fn new(brokers: &str) -> Self {
        let world = Self::without_topics(brokers);
        world.make_topics();
        world
    }

    /// Makes the topics that are not there yet, on all three brokers: one that is late to answer, on a slow machine, is waited for.
    pub fn make_topics(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let output = self.run(&["topic", "init", "--config", "env/nodes/a/node.toml", "--domains", "3"]);
            if output.status.success() {
                return;
            }
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(5) && Instant::now() < end, "{:?}: {text}", output.status.code());
        }
    }

    /// The same without its topics.
    pub fn without_topics(brokers: &str) -> Self {
        let name = format!("t{}-{}", std::process::id(), ports::free(1)[0]);
        let mut world = Self::empty(brokers);
        world.name = name;
        world.init(&world.name, &[]);
        world
    }

    /// A folder without an environment.
    pub fn empty(brokers: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, brokers: brokers.to_owned(), name: String::new(), running: BTreeMap::new() }
    }

    /// Makes the environment, without topics.
    pub fn init(&self, name: &str, more: &[&str]) {
        let ports = ports::free(6);
        let nodes: Vec<_> =
            ["a", "b", "c"].iter().zip(&ports).map(|(node, port)| format!("{node}=127.0.0.1:{port}")).collect();
        let init = ["init", name, "-o", "env", "--kafka", &self.brokers, "--nodes", &nodes.join(",")];
        let names = ["--destination", "orders", "--sender", "web", "--reader", "app"];
        self.done(&[init.as_slice(), names.as_slice(), more].concat());
    }

    /// The environment's name; empty when the test itself gave one.
    pub fn environment(&self) -> &str {
        &self.name
    }

    /// The folder of everything, brokers' data apart.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A command of the binary under test in this folder. Health pages get ports of their own.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealcast"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed; gives its stdout.
    pub fn done(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "sealcast {}: {:?}\n{text}", arguments.join(" "), output.status.code());
        output.stdout
    }

    /// Runs a command with `--format json` that must succeed; gives its objects.
    pub fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let stdout = self.done(&[arguments, &["--format", "json"]].concat());
        lines(&stdout)
    }

    /// Starts a node.
    pub fn start(&mut self, node: &str) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log(node)).unwrap();
        let config = format!("env/nodes/{node}/node.toml");
        let mut command = self.command(&["node", "run", "--config", &config]);
        command.env("SEALCAST__NODE__HTTP", "127.0.0.1:0").stdout(Stdio::null()).stderr(log);
        self.running.insert(node.to_owned(), command.spawn().unwrap());
    }

    /// Starts all nodes.
    pub fn start_all(&mut self) {
        for node in ["a", "b", "c"] {
            self.start(node);
        }
    }

    /// Kills a node as kill -9 does.
    pub fn kill(&mut self, node: &str) {
        let mut child = self.running.remove(node).expect("a running node");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks a node to end (SIGTERM) and waits until it has.
    pub fn stop(&mut self, node: &str) -> Option<i32> {
        self.signal(node, "TERM");
        self.ended(node)
    }

    /// The process id of a running node.
    pub fn process(&self, node: &str) -> u32 {
        self.running.get(node).expect("a running node").id()
    }

    fn log(&self, node: &str) -> PathBuf {
        self.folder.path().join(format!("{node}.log"))
    }

    /// The end of every node's log, for messages of failed tests.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for node in ["a", "b", "c"] {
            let log = std::fs::read_to_string(self.log(node)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let end = lines.len().saturating_sub(25);
            text.push_str(&format!("--- {node}\n{}\n", lines[end..].join("\n")));
        }
        text
    }

    /// Sends a file and waits for this stage; gives what was printed of it.
    pub fn send(&self, file: &str, wait: &str, more: &[&str]) -> Value {
        let fixed = ["send", "orders", file, "--config", "env/senders/web/client.toml", "--wait", wait];
        let output = self.run(&[fixed.as_slice(), &["--timeout", "90s", "--format", "json"], more].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "send {file}: {:?}\n{said}\n{}", output.status.code(), self.logs());
        lines(&output.stdout).pop().expect("one object")
    }

    /// The bytes of a transaction as one node gives them, once it holds everything up to `position`.
    pub fn get(&self, node: &str, transaction: &str, position: &str) -> Vec<u8> {
        let config = ["get", transaction, "--config", "env/readers/app/client.toml", "--node", node];
        self.done(&[config.as_slice(), &["--at-least", position, "--timeout", "60s", "-o", "got"]].concat());
        std::fs::read(self.folder.path().join("got")).unwrap()
    }

    /// What the nodes say of themselves, by name; those that do not answer are missing.
    pub fn status(&self) -> BTreeMap<String, Value> {
        let output = self.run(&["node", "status", "--config", "env/readers/app/client.toml", "--format", "json"]);
        let of = |value: Value| (value["node"].as_str().unwrap_or_default().to_owned(), value);
        lines(&output.stdout).into_iter().filter(|value| value["role"] != "unreachable").map(of).collect()
    }

    /// Waits until all running nodes are at one index, hold everything, and have committed at least so many; their state
    /// digests are equal then.
    pub fn settle(&self, committed: u64) {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            let equal = |field: &str| {
                let mut values = status.values().map(|value| &value[field]);
                values.next().is_some_and(|first| values.all(|value| value == first))
            };
            let whole = status.len() == self.running.len()
                && status.values().all(|value| {
                    value["transactions"]["committed"].as_u64() >= Some(committed) && value["position"] == value["held"]
                });
            // Digests are comparable only at one index.
            if whole && equal("state_index") && equal("position") {
                assert!(equal("state_digest"), "digests differ at one index: {status:#?}");
                return;
            }
            assert!(Instant::now() < end, "the nodes do not come to rest: {status:#?}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            // One that has ended by itself needs no killing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The JSON objects of an output, one a line.
pub fn lines(output: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(output).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Bytes that look random and are the same for the same seed.
pub fn payload(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let stream = sealcast::seams::SeededRandomness::new(seed);
    sealcast::seams::Randomness::fill(&stream, &mut bytes).unwrap();
    bytes
}

impl World {
    /// Sends a running node a signal, for example HUP.
    pub fn signal(&self, node: &str, signal: &str) {
        let id = self.running[node].id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &id]).status().unwrap().success());
    }

    /// Starts a node that may write files of at most so many KiB: a disk that fails it.
    pub fn start_limited(&mut self, node: &str, kibibytes: u64) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log(node)).unwrap();
        let limits = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", kibibytes * 2);
        let mut command = Command::new("sh");
        command.args(["-c", &limits, "sh", env!("CARGO_BIN_EXE_sealcast"), "node", "run", "--config"]);
        command.arg(format!("env/nodes/{node}/node.toml")).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("SEALCAST__NODE__HTTP", "127.0.0.1:0").stdout(Stdio::null()).stderr(log);
        self.running.insert(node.to_owned(), command.spawn().unwrap());
    }

    /// Waits until a node has ended by itself, or after a signal; gives its exit code.
    pub fn ended(&mut self, node: &str) -> Option<i32> {
        let mut child = self.running.remove(node).expect("a running node");
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > end {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("node {node} does not end\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Nodes that were started and have ended by themselves, with their exit codes.
    pub fn gone(&mut self) -> Vec<(String, Option<i32>)> {
        let ended = |(node, child): (&String, &mut Child)| Some((node.clone(), child.try_wait().unwrap()?.code()));
        self.running.iter_mut().filter_map(ended).collect()
    }

    /// Waits until a node that was just started hears SIGTERM and SIGHUP: until then they would end any process at once.
    pub fn listens(&self, node: &str) {
        let end = Instant::now() + PATIENCE;
        let caught = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.process(node))).unwrap();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
            u64::from_str_radix(&caught, 16).unwrap() & 0x4001 == 0x4001
        };
        while !caught() {
            assert!(Instant::now() < end, "node {node} does not listen\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The most memory that a running node has had so far, in KiB.
    pub fn most_memory(&self, node: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process(node))).unwrap();
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        most.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Everything that a node has logged.
    pub fn log_of(&self, node: &str) -> String {
        std::fs::read_to_string(self.log(node)).unwrap_or_default()
    }

    /// Waits until a node has logged this text so many times.
    pub fn logged(&self, node: &str, text: &str, times: usize) {
        let end = Instant::now() + PATIENCE;
        while self.log_of(node).matches(text).count() < times {
            assert!(Instant::now() < end, "node {node} does not log {text:?}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
