//! `sealcast demo` as a person runs it: real files, three nodes, a hostile transport, and nothing left behind.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::common::kafka::shared;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The command in an empty folder of its own, with the folder for temporary files in it.
fn demo(folder: &Path, arguments: &[&str]) -> Command {
    let temporary = folder.join("temporary");
    fs::create_dir_all(&temporary).expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealcast"));
    command.current_dir(folder).env_remove("SEALCAST_LOG").env_remove("SEALCAST_FORMAT").env("TMPDIR", temporary);
    command.arg("demo").args(arguments).stdin(Stdio::null());
    command
}

fn left_behind(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("temporary")).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

fn text(output: &Output) -> (String, String) {
    let read = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (read(&output.stdout), read(&output.stderr))
}

fn objects(stdout: &str, kind: &str) -> Vec<Value> {
    let all = stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")));
    all.filter(|object: &Value| object["object"] == kind).collect()
}

/// Files of many lengths: none, one byte, either side of a shard, and several stripes.
fn payloads(folder: &Path) -> u64 {
    let inner = folder.join("payloads/inner");
    fs::create_dir_all(&inner).expect("a folder");
    let lengths = [0_usize, 1, 1000, 65_535, 65_536, 65_537, 300_000, 1_500_000];
    for (number, length) in lengths.iter().enumerate() {
        let bytes: Vec<u8> = (0..*length).map(|at| (at * 31 + at / 251 + number) as u8).collect();
        fs::write(inner.join(format!("file-{number}")), bytes).expect("written");
    }
    lengths.iter().sum::<usize>() as u64
}

#[test]
fn every_byte_comes_out_equal_from_every_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = payloads(folder.path()) + (1 << 20);
    let arguments = ["--payload", "payloads", "--size", "1MiB", "--format", "json"];
    let output = demo(folder.path(), &arguments).output().expect("run");
    let (stdout, stderr) = text(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");

    let verdict = &objects(&stdout, "verdict")[0];
    assert_eq!((&verdict["v"], &verdict["equal"]), (&1.into(), &true.into()), "{verdict}");
    assert_eq!((&verdict["transactions"], &verdict["bytes"]), (&9.into(), &bytes.into()), "{verdict}");
    assert!(verdict["differences"].as_array().expect("a list").is_empty(), "{verdict}");

    let nodes = objects(&stdout, "node");
    let names: Vec<_> = nodes.iter().map(|node| node["node"].as_str().expect("a name")).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let digests: BTreeSet<_> = nodes.iter().map(|node| node["state_digest"].as_str().expect("a digest")).collect();
    assert_eq!(digests.len(), 1, "{stdout}");
    assert!(digests.iter().all(|digest| digest.len() == 64 && digest.bytes().any(|byte| byte != b'0')), "{stdout}");
    for node in &nodes {
        assert_eq!((&node["equal_transactions"], &node["equal_bytes"]), (&9.into(), &bytes.into()), "{node}");
        assert_eq!(node["different"], 0, "{node}");
    }

    let stages = objects(&stdout, "stage");
    let reached: Vec<_> = stages.iter().map(|stage| stage["stage"].as_str().expect("a stage")).collect();
    assert_eq!(reached, ["accepted", "committed", "complete"]);
    assert!(stages.iter().skip(1).all(|stage| stage["transactions"] == 9), "{stdout}");

    // Damage happened, was seen, and was made up for.
    let segments = &objects(&stdout, "segments")[0];
    for what in ["sent", "lost", "damaged", "refused", "recovered"] {
        assert!(segments[what].as_u64().expect("a number") > 0, "{what}: {segments}");
    }
    for said in ["stopping node", "started again", "committed: ", "complete: "] {
        assert!(stderr.contains(said), "{said}: {stderr}");
    }
    assert_eq!(left_behind(folder.path()), [""; 0]);
}

#[test]
fn a_kept_environment_stays_and_checks() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("note"), "kept").expect("written");
    let arguments = ["--payload", "note", "--size", "0", "--suite", "x25519", "--keep", "kept"];
    let output = demo(folder.path(), &arguments).output().expect("run");
    let (stdout, stderr) = text(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    assert!(stdout.contains("All equal: 1 transactions, 4 bytes, the same on 3 nodes"), "{stdout}");
    assert_eq!(left_behind(folder.path()), [""; 0]);
    // Every command that it tells works as it is told.
    let told: Vec<_> = stdout.lines().filter_map(|line| line.strip_prefix("  sealcast ")).collect();
    assert!(told.len() >= 2, "{stdout}");
    let mut ran_on = false;
    for command in told {
        let mut run = Command::new(env!("CARGO_BIN_EXE_sealcast"));
        run.current_dir(folder.path()).args(command.split(' '));
        if command.starts_with("dev ") {
            // It runs until it is ended: this ends it once it tells that it is ready.
            let mut dev = run.args(["--format", "json"]).stdout(Stdio::piped()).spawn().expect("run");
            let told = BufReader::new(dev.stdout.as_mut().expect("piped")).lines().next();
            let told = told.map(|line| line.expect("text")).unwrap_or_default();
            kill_process(Pid::from_raw(dev.id().try_into().expect("an id")).expect("an id"), Signal::TERM)
                .expect("told");
            assert_eq!(dev.wait().expect("its end").code(), Some(0), "{command}: {told}");
            assert!(told.contains("\"ready\""), "{command}: {told}");
            ran_on = true;
            continue;
        }
        let output = run.output().expect("run");
        assert_eq!(output.status.code(), Some(0), "{command}: {:?}", text(&output));
    }
    assert!(ran_on, "how to go on with it is told: {stdout}");
    // Nothing is ever overwritten.
    let output = demo(folder.path(), &arguments).output().expect("run");
    assert_eq!(output.status.code(), Some(2), "{:?}", text(&output));
    assert!(text(&output).1.contains("not empty"));
}

#[test]
fn over_a_real_cluster_it_leaves_an_environment_that_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = payloads(folder.path()) + (1 << 20);
    let brokers = shared();
    let arguments =
        ["--kafka", &brokers, "--payload", "payloads", "--size", "1MiB", "--keep", "kept", "--format", "json"];
    let output = demo(folder.path(), &arguments).output().expect("run");
    let (stdout, stderr) = text(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    let verdict = &objects(&stdout, "verdict")[0];
    assert_eq!((&verdict["equal"], &verdict["bytes"]), (&true.into(), &bytes.into()), "{verdict}");
    assert_eq!(left_behind(folder.path()), [""; 0]);
    let told = stderr.lines().find(|line| line.contains("these topics stay")).expect("it says what it leaves");
    assert!(told.contains("--delete --topic") && told.contains(".orders.segments,"), "{told}");
    // On a slow machine a node may miss another one for a moment, which nobody does on purpose.
    let warnings = stderr.lines().filter(|line| line.contains("WARN") && !line.contains("does not answer"));
    assert_eq!(warnings.count(), 0, "what it does on purpose is no warning: {stderr}");

    // What it tells to type next, typed into one shell; what runs on ends with it.
    let next = verdict["next"].as_array().expect("a list").iter().map(|command| command.as_str().expect("text"));
    let mut script = "set -e; trap 'kill $(jobs -p)' EXIT\n".to_owned();
    for command in next {
        match command.split_once("sealcast send ") {
            Some(_) => script.push_str(&format!("{} --wait complete\n", command.replace("echo hello", "echo late"))),
            None if command.contains("sealcast watch ") => script.push_str(&format!("{command} --from -1 -e\n")),
            None => {
                // Other tests' nodes may have the ports of its pages.
                let command = command.replace("sealcast node", "SEALCAST__NODE__HTTP=127.0.0.1:0 sealcast node");
                script.push_str(&format!("{command}\n"));
            }
        }
    }
    let program = Path::new(env!("CARGO_BIN_EXE_sealcast")).parent().expect("its folder");
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("bash");
    shell.args(["-c", &script]).current_dir(folder.path()).env("PATH", path).stdin(Stdio::null());
    let output = shell.output().expect("bash runs");
    let (stdout, stderr) = text(&output);
    assert_eq!(output.status.code(), Some(0), "{script}\n{stdout}{stderr}");
    assert!(stdout.contains("complete") && stdout.ends_with("late\n"), "{stdout}");
}

#[test]
fn nothing_stays_after_an_error_or_an_interruption() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = demo(folder.path(), &["--payload", "absent"]).output().expect("run");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).1.contains("absent: "), "{:?}", text(&output));
    assert_eq!(left_behind(folder.path()), [""; 0]);

    // Stopped in the middle: nodes run, and everything is on its way.
    let mut running = demo(folder.path(), &["--size", "16MiB"]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn();
    let running = running.as_mut().expect("run");
    let mut lines = BufReader::new(running.stderr.take().expect("stderr")).lines().map(|line| line.expect("a line"));
    assert!(lines.any(|line| line.contains("nodes a, b, c run")));
    assert_eq!(left_behind(folder.path()).len(), 1);
    let process = rustix::process::Pid::from_raw(running.id().try_into().expect("a process")).expect("a process");
    rustix::process::kill_process(process, rustix::process::Signal::INT).expect("a signal");
    assert!(lines.any(|line| line.contains("ended by Ctrl-C")));
    assert_eq!(running.wait().expect("its end").code(), Some(1));
    assert_eq!(left_behind(folder.path()), [""; 0]);
}

#[test]
fn help_and_usage() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = demo(folder.path(), &["--help"]).output().expect("run");
    assert!(text(&output).0.contains("sealcast demo --payload"), "{:?}", text(&output));
    for wrong in [&["--size", "1MB"][..], &["-X", "a=b"], &["--suite", "none"]] {
        assert_eq!(demo(folder.path(), wrong).output().expect("run").status.code(), Some(2), "{wrong:?}");
    }
}
