//! A Kafka that lets nobody in without credentials and lets nobody do what was not granted: a sender logs in by SCRAM, nodes
//! by certificates, an operator by PLAIN, all over TLS. What goes wrong is told with its mend, and the rights of
//! docs/operations.md are what is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::secured::Secured;
use crate::common::world::{World, lines, payload};

/// The end of patience, not a measure.
const PATIENCE: Duration = Duration::from_secs(90);

const NODES: [&str; 3] = ["a", "b", "c"];

/// The commands that grant somebody's rights, as docs/operations.md has them.
fn documented(whose: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md")).unwrap();
    let block = text.split("```sh acls\n").nth(1).expect("the block of commands").split("```").next().unwrap();
    let commands = block.replace("\\\n", " ");
    let of = |command: &&str| command.starts_with("kafka-acls") && command.contains(whose);
    let found: Vec<_> = commands.lines().filter(of).map(str::to_owned).collect();
    assert!(!found.is_empty(), "docs/operations.md grants {whose} nothing");
    found
}

/// The command that a message says to type.
fn proposed(text: &str, right: &str) -> String {
    let at = text.find(&format!("the right {right} on")).unwrap_or_else(|| panic!("no word of {right} in: {text}"));
    let command = text[at..].split('`').nth(1).expect("a command");
    assert!(command.starts_with("kafka-acls "), "{command}");
    command.to_owned()
}

fn waits_for<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(Instant::now() < end, "{what}: {seen}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

struct Shop {
    kafka: Secured,
    world: World,
}

impl Shop {
    /// The environment `shop` as one command makes it for the sender; the nodes' transport is set by hand, as the README says.
    fn new() -> Self {
        let kafka = Secured::start();
        let world = World::empty(&kafka.by_password());
        let path = |name: &str| world.path().join(name);
        kafka.write_authority(&path("authority.pem"));
        kafka.write_other_authority(&path("other.pem"));
        for user in ["web", "operator"] {
            kafka.write_password(user, &path(&format!("{user}.password")));
        }
        world.init(
            "shop",
            &[
                "-X",
                "security.protocol=sasl_ssl",
                "-X",
                "sasl.mechanism=SCRAM-SHA-512",
                "-X",
                "sasl.username=web",
                "-X",
                "sasl.password_file=web.password",
                "-X",
                "ssl.ca.pem_file=authority.pem",
            ],
        );
        for node in NODES {
            let folder = path(&format!("env/nodes/{node}"));
            kafka.write_certificate(node, &folder);
            let file = folder.join("node.toml");
            let text = fs::read_to_string(&file).unwrap();
            let (before, rest) = text.split_once("[transport]").expect("a transport");
            let (_, after) = rest.split_once("[node]").expect("a node");
            let brokers: Vec<_> = kafka.by_certificate().split(',').map(|broker| format!("{broker:?}")).collect();
            let transport = format!(
                "[transport]\nbrokers = [{}]\n\n[transport.properties]\n\"security.protocol\" = \"ssl\"\n\
                 \"ssl.ca.pem_file\" = \"ssl.ca.pem\"\n\"ssl.certificate.location\" = \"client.pem\"\n\
                 \"ssl.key.location\" = \"client.key\"\n\n",
                brokers.join(", ")
            );
            fs::write(&file, format!("{before}{transport}[node]{after}")).unwrap();
        }
        Self { kafka, world }
    }

    /// A command of whoever makes topics.
    fn topic(&self, action: &str, more: &[&str]) -> Output {
        let fixed = ["topic", action, "--config", "env/senders/web/client.toml"];
        self.world.run(&[fixed.as_slice(), more].concat())
    }

    fn as_operator(&self, action: &str) -> Output {
        let login = ["sasl.mechanism=PLAIN", "sasl.username=operator", "sasl.password_file=operator.password"];
        self.topic(action, &["-X", login[0], "-X", login[1], "-X", login[2]])
    }

    fn grant(&self, whose: &str) {
        std::thread::scope(|scope| {
            for command in documented(whose) {
                scope.spawn(move || self.kafka.acls(&command));
            }
        });
    }

    /// Sends a file in the background; what it says goes to the file that is given too.
    fn sending(&self, file: &str) -> (Child, PathBuf) {
        let said = self.world.path().join(format!("{file}.said"));
        let fixed = ["send", "orders", file, "--config", "env/senders/web/client.toml", "--wait", "complete"];
        let mut command = self.world.command(&[fixed.as_slice(), &["--timeout", "100s", "--format", "json"]].concat());
        let child = command.stdout(Stdio::piped()).stderr(fs::File::create(&said).unwrap()).spawn().unwrap();
        (child, said)
    }

    /// The text of a node's alarm, once it is about this right.
    fn alarm(&self, node: &str, name: &str, right: &str) -> String {
        waits_for(&format!("the alarm {name} of {node}"), || {
            let status = self.world.status();
            let alarms = status.get(node).and_then(|status| status["alarms"].as_array()).cloned().unwrap_or_default();
            let named = |alarm: &&serde_json::Value| alarm["name"].as_str().is_some_and(|is| is.starts_with(name));
            let texts = alarms.iter().filter(named).filter_map(|alarm| alarm["text"].as_str());
            let found = texts.into_iter().find(|text| text.contains(&format!("the right {right} on")));
            found.map(str::to_owned).ok_or_else(|| format!("{alarms:?}\n{}", self.world.logs()))
        })
    }
}

/// A failed command: its code, and what it must and must not say.
fn refused(output: &Output, code: i32, says: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for text in says {
        assert!(said.contains(text), "no word of {text} in: {said}");
    }
    assert!(!said.contains("not-the-password"), "{said}");
}

#[test]
fn a_secured_cluster_is_used_with_the_documented_rights_and_says_what_is_missing() {
    let mut shop = Shop::new();

    // What keeps us out is told with its mend, at once when trying again is of no use.
    let certificates = shop.kafka.by_certificate();
    let by_name = shop.kafka.by_password().replace("127.0.0.1", "localhost");
    let cases = [
        (
            "-X sasl.password=not-the-password".to_owned(),
            2,
            ["SASL authentication", "mend sasl.username, sasl.password"],
        ),
        ("-X ssl.ca.pem_file=other.pem".to_owned(), 2, ["certificate verify failed", "ssl.ca.location"]),
        (format!("-b {by_name} -X broker.address.family=v4"), 2, ["certificate verify failed", "name the host"]),
        (
            format!("-b {certificates} -X security.protocol=ssl"),
            2,
            ["certificate", "set ssl.certificate.location and ssl.key.location"],
        ),
        ("-X security.protocol=plaintext".to_owned(), 5, ["security.protocol", "sasl_ssl"]),
        ("-b 127.0.0.1:1".to_owned(), 5, ["127.0.0.1:1", "are the brokers right, and running?"]),
    ];
    std::thread::scope(|scope| {
        for (words, code, says) in cases {
            let shop = &shop;
            scope.spawn(move || {
                let words: Vec<_> = words.split_whitespace().collect();
                refused(&shop.topic("check", &words), code, &says);
            });
        }
    });

    // Whoever makes topics.
    let right = ["the right DESCRIBE on topic sealcast.shop.orders.segments", "is missing for User:operator"];
    refused(&shop.as_operator("init"), 1, &right);
    shop.grant("User:operator");
    for action in ["init", "check"] {
        let output = shop.as_operator(action);
        assert!(output.status.success(), "{action}: {}", String::from_utf8_lossy(&output.stderr));
    }

    // Nodes and a sender without rights say what they lack, and go on by themselves when they have it.
    let bytes = payload(4, 100_000);
    fs::write(shop.world.path().join("payload"), &bytes).unwrap();
    shop.world.start_all();
    let (sending, said) = shop.sending("payload");
    let says = |right: &str| {
        waits_for("what the sender says", || {
            let text = fs::read_to_string(&said).unwrap();
            if text.contains(&format!("the right {right} on")) { Ok(text) } else { Err(text) }
        })
    };
    let told = proposed(&says("DESCRIBE"), "DESCRIBE");
    assert!(told.contains("--allow-principal User:web --operation Describe --topic sealcast.shop."), "{told}");
    let (start, _) = told.split_once("--topic").unwrap();
    shop.kafka.acls(&format!("{start} --topic sealcast.shop.orders.segments --topic sealcast.shop.notices"));
    let written = proposed(&says("WRITE"), "WRITE");
    assert!(written.ends_with("--operation Write --topic sealcast.shop.orders.segments"), "{written}");
    let read = proposed(&says("READ"), "READ");
    assert!(read.ends_with("--operation Read --topic sealcast.shop.notices"), "{read}");
    let described = proposed(&shop.alarm("a", "topic-unreachable", "DESCRIBE"), "DESCRIBE");
    shop.kafka.acls(&described.replace("User:SUBJECT", "User:CN=a"));
    let read = proposed(&shop.alarm("a", "partition-unreachable-", "READ"), "READ");
    assert!(read.ends_with("User:SUBJECT --operation Read --topic sealcast.shop.orders.segments"), "{read}");

    shop.grant("User:CN=");
    shop.grant("User:web");
    let output = sending.wait_with_output().unwrap();
    let text = fs::read_to_string(&said).unwrap();
    assert!(output.status.success(), "{text}\n{}", shop.world.logs());
    let sent = lines(&output.stdout).pop().unwrap();
    assert_eq!(sent["signers"], serde_json::json!(NODES));
    for node in NODES {
        let of = |field: &str| sent[field].as_str().unwrap().to_owned();
        assert!(shop.world.get(node, &of("transaction"), &of("position")) == bytes, "{node}");
    }
    waits_for("the end of the alarms", || {
        let alarms: Vec<_> = shop.world.status().values().map(|status| status["alarms"].to_string()).collect();
        if alarms.iter().any(|alarm| alarm.contains("unreachable")) { Err(format!("{alarms:?}")) } else { Ok(()) }
    });

    // The other kind of SCRAM, set over the configuration.
    fs::write(shop.world.path().join("second"), "second").unwrap();
    let fixed = ["send", "orders", "second", "--config", "env/senders/web/client.toml", "--timeout", "60s"];
    let mut command = shop.world.command(&fixed);
    let output = command.env("SEALCAST__TRANSPORT__PROPERTIES__SASL_MECHANISM", "SCRAM-SHA-256").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // Secrets stand in no configuration and no log.
    let mut logs = text + &String::from_utf8_lossy(&output.stderr);
    for node in NODES {
        logs += &shop.world.log_of(node);
        logs += &fs::read_to_string(shop.world.path().join(format!("env/nodes/{node}/node.toml"))).unwrap();
    }
    logs += &fs::read_to_string(shop.world.path().join("env/senders/web/client.toml")).unwrap();
    assert!(!logs.contains(&shop.kafka.password("web")) && !logs.contains("PRIVATE KEY"), "{logs}");
}
