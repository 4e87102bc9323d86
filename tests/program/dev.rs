//! `sealcast dev` as people use it: one terminal runs it, others send and read; it ends, is killed, and goes on.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::ports;

/// The end of patience, no measure of speed.
const PATIENCE: Duration = Duration::from_secs(90);

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealcast"));
    command.current_dir(folder).env_remove("SEALCAST_LOG").env_remove("SEALCAST_FORMAT").stdin(Stdio::null());
    command.args(arguments);
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().expect("it runs")
}

/// Runs a command that succeeds, with this on its standard input.
fn done(folder: &Path, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = command(folder, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    child.stdin.take().expect("piped").write_all(input).expect("taken");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output.stdout
}

/// `--nodes` with three ports of this machine that are free.
fn nodes() -> String {
    let all = ["a", "b", "c"].iter().zip(ports::free(3)).map(|(name, port)| format!("{name}=127.0.0.1:{port}"));
    all.collect::<Vec<_>>().join(",")
}

/// A running `sealcast dev`, with what it told so far.
struct Dev {
    child: Child,
    told: Arc<Mutex<Vec<Value>>>,
}

impl Dev {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let mut child = command(folder, &[&["dev", "trial", "--format", "json"], arguments].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("it runs");
        let told = Arc::new(Mutex::new(Vec::new()));
        let (lines, keeping) = (BufReader::new(child.stdout.take().expect("piped")).lines(), told.clone());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                keeping.lock().unwrap().push(serde_json::from_str(&line).expect("JSON"));
            }
        });
        let dev = Self { child, told };
        dev.until(|told| told.iter().any(|told| told["object"] == "ready"));
        dev
    }

    fn until(&self, holds: impl Fn(&[Value]) -> bool) {
        let began = Instant::now();
        while !holds(&self.told.lock().unwrap()) {
            assert!(began.elapsed() < PATIENCE, "not in time: {:?}", self.told.lock().unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn committed(told: &[Value]) -> usize {
        told.iter().filter(|told| told["object"] == "committed").count()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().try_into().unwrap()).unwrap(), signal).expect("signalled");
    }

    fn end(mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        let began = Instant::now();
        loop {
            match self.child.try_wait().expect("its state") {
                Some(status) => return status.code(),
                None => assert!(began.elapsed() < PATIENCE, "it does not end"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Gone already when all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SENDER: &str = "trial/senders/web/client.toml";
const READER: &str = "trial/readers/app/client.toml";

fn objects(text: &[u8]) -> Vec<Value> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).expect("JSON")).collect()
}

#[test]
fn other_terminals_use_it_and_it_goes_on_after_its_end() {
    let outside = tempfile::tempdir().expect("a folder");
    let folder = outside.path();
    let dev = Dev::start(folder, &["--nodes", &nodes()]);
    let ready = dev.told.lock().unwrap()[0].clone();
    assert_eq!((&ready["v"], &ready["destinations"][0]), (&1.into(), &"orders".into()));

    // What it says to type next works as it stands.
    for next in ready["next"].as_array().expect("commands") {
        let text = next.as_str().unwrap().replace("sealcast ", concat!(env!("CARGO_BIN_EXE_sealcast"), " "));
        let text = text.replace("--lines", "--lines -e");
        let output = Command::new("sh").args(["-c", &text]).current_dir(folder).output().expect("it runs");
        assert!(output.status.success(), "{next}: {output:?}");
    }
    dev.until(|told| Dev::committed(told) == 1);
    let sent = done(
        folder,
        &["send", "orders", "-", "-k", "one", "--wait", "complete", "--config", SENDER, "--format", "json"],
        b"nails",
    );
    let sent: Value = serde_json::from_slice(&sent).expect("JSON");
    let id = sent["transaction"].as_str().unwrap();
    dev.until(|told| told.iter().any(|told| told["transaction"] == id && told["key"] == "one" && told["bytes"] == 5));
    assert_eq!(done(folder, &["get", id, "--config", READER], b""), b"nails");
    let status = done(folder, &["status", id, "--config", READER, "--format", "json"], b"");
    assert_eq!(serde_json::from_slice::<Value>(&status).expect("JSON")["state"], "committed");
    let metrics = ready["metrics"].as_str().unwrap().strip_prefix("http://").unwrap().strip_suffix("/metrics").unwrap();
    let mut page = std::net::TcpStream::connect(metrics).expect("the page is served");
    page.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("asked");
    let first = BufReader::new(page).lines().next().expect("an answer").expect("a line");
    assert!(first.contains("200"), "{first}");

    // What brokers would see is seen while the process has the folder open.
    let inspect = ["inspect", "orders", "-e", "--config", "trial/nodes/a/node.toml", "--format", "json"];
    let seen = objects(&done(folder, &inspect, b""));
    let segments = seen.iter().filter(|one| one["kind"] == "segment").count();
    assert!(segments >= 2 * 3, "two parcels of three copies each: {seen:?}");

    // A feed's line has the cursor that goes on behind it.
    let watch = ["watch", "orders", "-e", "--config", READER, "--format", "json"];
    let fed = objects(&done(folder, &watch, b""));
    assert_eq!(fed.len(), 2, "{fed:?}");
    let cursor = |number: usize| fed[number]["cursor"].as_str().expect("a cursor").to_owned();
    let position = fed[0]["position"].as_str().unwrap();
    assert!(cursor(0).contains('@') && cursor(0).contains(position), "{fed:?}");
    for (number, rest) in [(0, "nails"), (1, "")] {
        let rest_of = ["watch", "orders", "-e", "--config", READER, "--from", &cursor(number)];
        assert_eq!(done(folder, &rest_of, b""), rest.as_bytes(), "behind {number}");
    }

    // One process at a time, for its owner alone, and no flag that does nothing.
    for (arguments, code, says) in [
        (vec!["dev", "trial"], 5, "another process runs this environment"),
        (vec!["dev", "trial", "--sender", "shop"], 2, "--sender: trial is an environment already"),
    ] {
        let output = run(folder, &arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said.contains(says)), (Some(code), true), "{said}");
    }
    let socket = folder.join("trial/transport/socket");
    assert_eq!(std::fs::metadata(&socket).expect("a socket").permissions().mode() & 0o777, 0o600);

    assert_eq!(dev.end(Signal::INT), Some(0));
    assert!(!socket.exists(), "the socket goes with its process");
    let output = run(folder, &["send", "orders", "trial/operator/directory", "--config", SENDER]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("nobody serves") && said.contains("start `sealcast dev "), "{said}");

    let output = run(folder, &["node", "status", "--config", READER, "--format", "json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(5) && said.contains("nobody listens there"), "{said}");
    assert!(said.contains("start what is down with"), "{said}");
    let rows: Vec<Value> =
        output.stdout.lines().map(|line| serde_json::from_str(&line.unwrap()).expect("JSON")).collect();
    let told: Vec<_> = rows.iter().map(|row| (row["node"].as_str(), row["role"].as_str())).collect();
    assert_eq!(told, ["a", "b", "c"].map(|node| (Some(node), Some("unreachable"))));

    let dev = Dev::start(folder, &[]);
    assert_eq!(done(folder, &["get", id, "--config", READER], b""), b"nails");
    let output = run(folder, &["watch", "orders", "-e", "--from", "999.0", "--config", READER]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("999.0 is past the end: orders ends at "), "{said}");

    // A reader whose directory nobody has in force yet.
    let added = ["directory", "add", "reader", "audit", "--destinations", "orders", "--operator"];
    done(folder, &[&added[..], &["trial/operator/operator.key"]].concat(), b"");
    let output = run(folder, &["node", "status", "--config", "trial/readers/audit/client.toml"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert_eq!(said.matches("the directory in force there does not list it").count(), 3, "{said}");
    std::fs::copy(folder.join("trial/operator/directory"), folder.join("trial/nodes/a/directory")).expect("copied");
    dev.signal(Signal::HUP);
    done(folder, &["directory", "status", "trial/operator/directory", "--wait", "30s", "--config", READER], b"");
    done(folder, &["node", "status", "--config", "trial/readers/audit/client.toml"], b"");
    done(folder, &["send", "orders", "-", "-k", "one", "--wait", "complete", "--config", SENDER], b"screws");
    assert_eq!(done(folder, &["watch", "orders", "-e", "--config", READER], b""), b"hello\nnailsscrews");
    dev.until(|told| Dev::committed(told) == 1);
    assert_eq!(dev.end(Signal::TERM), Some(0));
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let outside = tempfile::tempdir().expect("a folder");
    let folder = outside.path();
    let lines: Vec<String> = (0..300).map(|number| format!("order {number}")).collect();
    let mut dev = Dev::start(folder, &["--nodes", &nodes()]);
    let arguments = [
        "send",
        "orders",
        "-",
        "--lines",
        "--wait",
        "committed",
        "--timeout",
        "90s",
        "--config",
        SENDER,
        "--format",
        "json",
    ];
    let mut sender = command(folder, &arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
    let mut input = sender.stdin.take().expect("piped");
    for (number, line) in lines.iter().enumerate() {
        writeln!(input, "{line}").expect("taken");
        if [100, 200].contains(&number) {
            dev.until(|told| Dev::committed(told) > 0);
            dev.end(Signal::KILL);
            // The sender keeps on, with nobody to send to.
            for line in &lines[number + 1..] {
                if line.ends_with('7') {
                    break;
                }
            }
            dev = Dev::start(folder, &[]);
        }
    }
    drop(input);
    let output = sender.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let rows: Vec<Value> =
        output.stdout.lines().map(|line| serde_json::from_str(&line.unwrap()).expect("JSON")).collect();
    assert_eq!(rows.len(), lines.len());
    let feed = done(folder, &["watch", "orders", "-e", "--lines", "--config", READER], b"");
    let found: Vec<String> = feed.lines().map(|line| line.unwrap()).collect();
    assert_eq!(found.len(), lines.len(), "each once");
    assert_eq!(found.iter().collect::<BTreeSet<_>>(), lines.iter().collect::<BTreeSet<_>>());
    assert_eq!(dev.end(Signal::TERM), Some(0));
}

#[test]
fn what_it_cannot_run_is_told_with_the_mend() {
    let outside = tempfile::tempdir().expect("a folder");
    let folder = outside.path();
    let says = |arguments: &[&str], code: i32, says: &[&str]| {
        let output = run(folder, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(says.iter().all(|says| said.contains(says)), "{said}");
        assert!(output.stdout.is_empty(), "no data");
    };
    let init = |arguments: &[&str]| {
        let common = ["init", "--nodes", "a,b,c", "--destination", "orders", "--sender", "web"];
        assert!(run(folder, &[&common, arguments].concat()).status.success());
    };
    init(&["shop", "--kafka", "localhost:9092"]);
    says(&["dev", "shop"], 2, &["uses Kafka", "sealcast node run --config"]);

    std::fs::create_dir(folder.join("full")).expect("a folder");
    std::fs::write(folder.join("full/letter"), "").expect("a file");
    says(&["dev", "full"], 2, &["full", "is not empty"]);
    says(&["dev", "full/letter"], 2, &["is a file: name a folder"]);

    let long = "x".repeat(110);
    says(&["dev", &long], 2, &["shorter path"]);
    assert!(!folder.join(&long).exists(), "nothing was written");

    // A port that somebody else has meanwhile.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let nodes = nodes().replacen(|_: char| true, "a", 1);
    let (_, others) = nodes.split_once(',').expect("three nodes");
    says(&["dev", "late", "--nodes", &format!("a={address},{others}")], 1, &[&address.to_string(), "end the process"]);
    assert!(!folder.join("late/transport/socket").exists(), "nothing is served");

    // An environment of `init` runs as it is.
    let served = tempfile::tempdir().expect("a folder");
    let made = run(
        served.path(),
        &[
            "init",
            "trial",
            "--embedded",
            "--nodes",
            &self::nodes(),
            "--destination",
            "orders",
            "--sender",
            "web",
            "--reader",
            "app",
        ],
    );
    assert!(String::from_utf8_lossy(&made.stdout).contains("sealcast dev trial"), "{made:?}");
    let dev = Dev::start(served.path(), &[]);
    done(served.path(), &["send", "orders", "-", "--wait", "complete", "--config", SENDER], b"nails");
    assert_eq!(dev.end(Signal::TERM), Some(0));
}
