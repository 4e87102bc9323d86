//! The README's commands, run as a reader types them: every block marked `sh run` is run in order in one shell, in a folder
//! with nothing in it but `keys-example/` as git leaves it, against a real Kafka; what is marked `sh serve` runs beside them in
//! a terminal of its own. Blocks of results stand behind the block
//! that gives them. What is replaced: where the Kafka is, and `cargo run --example` by the example that is built already.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::common::folders;

/// The end of patience, no measure of speed.
const PATIENCE: Duration = Duration::from_secs(240);

/// Shell commands that are not run here, because `.ci/run` runs them, or a build that has happened.
const RUN_ELSEWHERE: [&str; 3] = [
    "cargo run --release -- demo",
    "./scripts/test",
    "cargo build --release --bins --examples && export PATH=\"$PWD/target/release:$PATH\"",
];

/// A fenced block, and the words behind its fence.
struct Block {
    info: String,
    text: String,
}

fn blocks(document: &str) -> Vec<Block> {
    let (mut blocks, mut open): (Vec<Block>, bool) = (Vec::new(), false);
    for line in document.lines() {
        match (line.strip_prefix("```"), open) {
            (Some(info), false) => {
                blocks.push(Block { info: info.trim().to_owned(), text: String::new() });
                open = true;
            }
            (Some(_), true) => open = false,
            (None, true) => {
                let block = blocks.last_mut().expect("an open block");
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, false) => {
                assert!(!line.starts_with("    "), "an indented block is not seen by this test, fence it: {line}");
            }
        }
    }
    assert!(!open, "a fence is not closed");
    blocks
}

/// The commands of a block; one that goes on behind a backslash is one.
fn commands(block: &Block) -> Vec<String> {
    let joined = block.text.replace("\\\n", " ");
    joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// Ends the shell and all its children when this test is gone, however it ended: its standard input closes then.
const LEASH: &str = "exec 3<&0 </dev/null; { read -r _ <&3; kill -9 0; } & disown\n";

/// A shell with all its children, which end with this value.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.0.id().try_into().expect("a process id")) {
            // Gone already when all went well.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

/// Copies the example environment as git leaves it: everybody may read it.
fn copy_example(to: &Path) {
    let to = to.join("keys-example");
    folders::copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("keys-example"), &to);
    for file in folders::files(&to) {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("a mode");
    }
}

/// Where cargo puts examples for this test.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this program");
    let path = test.parent().and_then(Path::parent).expect("target's folder").join("examples").join(name);
    assert!(
        path.exists(),
        "{} is not built: `cargo test` without a filter builds it, or `cargo build --examples`",
        path.display()
    );
    path
}

/// Runs commands in one shell in a fresh folder and gives what each printed. Every one must end with 0.
fn run(commands: &[String], brokers: &str) -> Vec<String> {
    let outside = tempfile::tempdir().expect("a folder");
    let folder = outside.path().join("empty");
    fs::create_dir(&folder).expect("a folder");
    copy_example(&folder);
    let mut script = LEASH.to_owned();
    for (number, command) in commands.iter().enumerate() {
        let mut command = command.replace("localhost:9092", brokers);
        for name in ["submit", "consume"] {
            let told = format!("cargo run -q --release --example {name} --");
            if command.contains(&told) {
                command = command.replace(&told, &example(name).display().to_string());
            }
        }
        assert!(!command.contains("cargo "), "this needs a compiler within a test: {command}");
        let mark = format!("printf '\\n@@ {number} %s\\n' $ended; [ $ended = 0 ] || exit 1");
        script.push_str(&format!("{command}\nended=$?; {mark}\n"));
    }
    let (out, err) = (outside.path().join("out"), outside.path().join("err"));
    let program = Path::new(env!("CARGO_BIN_EXE_sealcast")).parent().expect("its folder");
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(&script).current_dir(&folder).env("PATH", path).stdin(Stdio::piped()).process_group(0);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SEALCAST_")) {
        shell.env_remove(name);
    }
    shell.stdout(fs::File::create(&out).expect("a file")).stderr(fs::File::create(&err).expect("a file"));
    let mut group = Group(shell.spawn().expect("bash runs"));
    let began = Instant::now();
    let status = loop {
        match group.0.try_wait().expect("its state") {
            Some(status) => break Some(status),
            None if began.elapsed() > PATIENCE => break None,
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let (printed, said) = (read(&out), read(&err));
    let logs: String = ["serving.log", "a.log", "b.log", "c.log"].iter().map(|log| read(&folder.join(log))).collect();
    let mut outputs = Vec::new();
    let mut rest = printed.as_str();
    for (number, command) in commands.iter().enumerate() {
        let mark = format!("\n@@ {number} ");
        let told = || format!("{command}\n{printed}\n{said}\n{logs}");
        let (output, after) =
            rest.split_once(&mark).unwrap_or_else(|| panic!("not run to its end ({status:?}): {}", told()));
        let (code, after) = after.split_once('\n').unwrap_or((after, ""));
        assert_eq!(code, "0", "{}", told());
        outputs.push(output.to_owned());
        rest = after;
    }
    assert!(status.is_some_and(|status| status.success()), "{status:?}: {printed}\n{said}");
    outputs
}

/// Whether what was printed is what a document shows: for each line shown, one that has all its words. Numbers, ids and
/// digests are another run's, and so is who leads.
fn assert_shown(shown: &str, printed: &str) {
    let told = |word: &&str| {
        let changes = word.chars().any(|c| c.is_ascii_digit()) || ["leader", "follower", "ms"].contains(word);
        !changes && word.chars().any(char::is_alphanumeric)
    };
    for line in shown.lines() {
        // Who signed first is another run's too.
        let line = line.split("signed by").next().unwrap_or(line);
        let words: Vec<_> = line.split_whitespace().filter(told).collect();
        let has = |printed: &str| {
            let there: Vec<_> = printed.split_whitespace().collect();
            words.iter().all(|word| there.contains(word))
        };
        assert!(printed.lines().any(has), "shown, and not printed: {line}\nprinted:\n{printed}");
    }
}

/// A command that keeps a terminal of its own: it runs to the end of the test, and the next one comes when it says that it
/// is ready. It is no job of the shell, whose jobs are those that the document counts.
fn serving(command: &str) -> String {
    format!("({command} >serving.log 2>&1 &); until grep -q Ctrl-C serving.log; do sleep 0.1; done")
}

/// Runs a document's blocks and compares results; gives the commands.
fn follow(document: &str, brokers: &str) -> Vec<String> {
    let blocks = blocks(document);
    let mut all = Vec::new();
    for block in blocks.iter().filter(|block| block.info.starts_with("sh")) {
        match block.info.as_str() {
            "sh run" => all.extend(commands(block)),
            "sh serve" => all.extend(commands(block).iter().map(|command| serving(command))),
            "sh" => {
                let known = |command: &String| RUN_ELSEWHERE.contains(&command.as_str());
                let unknown: Vec<_> = commands(block).into_iter().filter(|command| !known(command)).collect();
                assert!(unknown.is_empty(), "nothing runs these: mark their block `sh run`: {unknown:?}");
            }
            other => panic!("```{other}: blocks of commands are `sh run`, `sh serve` or `sh`"),
        }
    }
    let mut outputs = run(&all, brokers).into_iter();
    let mut latest = String::new();
    for block in &blocks {
        match block.info.as_str() {
            "sh run" => latest = outputs.by_ref().take(commands(block).len()).collect::<Vec<_>>().join("\n"),
            "sh serve" => {
                latest.clear();
                outputs.by_ref().take(commands(block).len()).for_each(drop);
            }
            "sh" => latest.clear(),
            "text" if !latest.is_empty() => assert_shown(&block.text, &std::mem::take(&mut latest)),
            _ => {}
        }
    }
    all
}

fn document(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("the document")
}

/// The example's topics are made by the README; on a cluster that many runs use they must not be there yet.
fn without_topics(brokers: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a client");
    let names = ["sealcast.example.orders.segments", "sealcast.example.notices"];
    let there = || {
        let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(30)).expect("the cluster's topics");
        metadata.topics().iter().any(|topic| names.contains(&topic.name()))
    };
    if there() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let deleted = runtime.block_on(admin.delete_topics(&names, &AdminOptions::new())).expect("an answer");
        let began = Instant::now();
        while there() {
            assert!(began.elapsed() < PATIENCE, "the example's topics stay: {deleted:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The example's nodes have fixed addresses. Another checkout may run this test at the same time: then this one waits.
fn alone() -> fs::File {
    let lock = fs::File::create(std::env::temp_dir().join("sealcast-example-ports.lock")).expect("a lock file");
    lock.lock().expect("the lock");
    for port in [7401, 7402, 7403, 7501, 7502, 7503] {
        let free = std::net::TcpListener::bind(("127.0.0.1", port));
        assert!(free.is_ok(), "the example's nodes need port {port} of this machine: stop what uses it");
    }
    lock
}

#[test]
fn every_command_of_the_readme_works_and_gives_what_it_shows() {
    let readme = document("README.md");
    let path: Vec<_> = blocks(&readme).iter().filter(|block| block.info == "sh run").flat_map(commands).collect();
    for part in [
        "trial/senders/web/client.toml",
        "trial/readers/app/client.toml",
        "topic init",
        "nodes/a/node.toml",
        "nodes/b/node.toml",
        "nodes/c/node.toml",
        "send",
        "watch",
        "get",
        "node status",
        "--example submit",
        "--example consume",
        "sealcast init",
    ] {
        assert!(path.iter().any(|command| command.contains(part)), "the README has no {part}: {path:#?}");
    }
    let _alone = alone();
    let brokers = crate::common::kafka::shared();
    without_topics(&brokers);
    let run = follow(&readme, &brokers);
    assert!(path.iter().all(|command| run.contains(command)), "not all was run: {run:#?}");
    assert!(run.contains(&serving("sealcast dev trial")), "{run:#?}");
}

#[test]
fn every_command_of_the_examples_readme_works() {
    let run = follow(&document("keys-example/README.md"), "localhost:9092");
    assert!(run.iter().any(|command| command.starts_with("sealcast config check")), "{run:#?}");
}

#[test]
fn a_result_that_differs_is_seen() {
    assert_shown("a  orders  complete  6.0\nall right", "x\nall  right\na orders  complete 7.0\n");
    for (shown, printed) in [("a orders complete", "a orders\ncomplete"), ("created", "exists")] {
        assert!(std::panic::catch_unwind(|| assert_shown(shown, printed)).is_err(), "{shown}");
    }
    let unmarked = "## A\n\n```sh\nsealcast nonsense\n```\n";
    assert!(std::panic::catch_unwind(|| follow(unmarked, "")).is_err());
    let failing = "```sh run\ntrue\nsealcast nonsense\n```\n";
    assert!(std::panic::catch_unwind(|| follow(failing, "")).is_err());
}
