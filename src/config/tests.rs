//! Tests of config through what other modules see of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::environment::{EnvironmentError, Plan, VALID_FOR, Written, write};
use super::*;
use crate::core::id::{NodeName, Suite, Time};
use crate::seams::{ManualClock, RealDisk, Seams, SeededRandomness};
use crate::telemetry::logs::LogFormat;

fn seams(seed: u64) -> Seams {
    Seams {
        clock: Arc::new(ManualClock::new(Time(1_767_225_600_000))),
        randomness: Arc::new(SeededRandomness::new(seed)),
        disk: Arc::new(RealDisk),
        ..Seams::real()
    }
}

fn plan() -> Plan {
    let name = |name: &str| NodeName::new(name).expect("a name");
    Plan {
        name: "test".parse().expect("a name"),
        nodes: Plan::on_loopback(["a", "b", "c"].map(name)).expect("nodes"),
        destinations: BTreeSet::from(["orders".parse().expect("a name"), "bills".parse().expect("a name")]),
        senders: BTreeSet::from(["web".parse().expect("a name")]),
        readers: BTreeSet::from(["app".parse().expect("a name")]),
        transport: TransportSettings::Kafka {
            brokers: vec!["k1:9092".to_owned(), "k2:9092".to_owned()],
            properties: BTreeMap::from([("sasl.password".to_owned(), "hunter2".to_owned())]),
        },
        suite: Suite::XWing,
        minimum_suite: Suite::X25519,
        valid_for: VALID_FOR,
    }
}

fn written(folder: &Path) -> Written {
    write(&plan(), folder, &seams(1)).expect("written")
}

fn node_config(written: &Written) -> &PathBuf {
    written.nodes.values().next().expect("a node")
}

fn sender_config(written: &Written) -> &PathBuf {
    written.senders.values().next().expect("a sender")
}

fn change(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).expect("text");
    assert!(text.contains(from), "{from} is not in {text}");
    fs::write(file, text.replace(from, to)).expect("written");
}

#[test]
fn a_written_environment_loads_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let written = written(&folder.path().join("new"));
    for (name, file) in &written.nodes {
        let config = NodeConfig::load(&Sources::file(file)).expect("a configuration");
        let directory = config.environment.load_directory().expect("a directory");
        assert_eq!(directory, written.directory);
        let keys = config.keys(&directory).expect("keys");
        let rings = config.key_rings(&directory, &keys).expect("rings");
        assert_eq!(rings.len(), 2);
        assert_eq!(config.listen(&directory).expect("an address"), directory.nodes[name].address);
        assert!(matches!(config.transport(), Ok(TransportSettings::Kafka { brokers, properties })
            if brokers.len() == 2 && properties["sasl.password"] == "hunter2"));
        assert_eq!(config.node.data, file.parent().expect("a folder").join("data"));
    }
    let config = ClientConfig::load(&Sources::file(sender_config(&written))).expect("a configuration");
    let directory = config.environment.load_directory().expect("a directory");
    assert_eq!(config.sender(&directory).expect("a sender").expect("a sender").0.as_str(), "web");
    assert!(config.reader(&directory).expect("no reader").is_none());
    let reader = written.readers.values().next().expect("a reader");
    let config = ClientConfig::load(&Sources::file(reader)).expect("a configuration");
    assert_eq!(config.reader(&directory).expect("a reader").expect("a reader").0.as_str(), "app");
    for path in &written.files {
        assert_eq!(fs::metadata(path).expect("there").permissions().mode() & 0o077, 0, "{}", path.display());
        let parent = path.parent().expect("a folder");
        assert_eq!(fs::metadata(parent).expect("there").permissions().mode() & 0o077, 0, "{}", parent.display());
    }
}

#[test]
fn the_same_seed_writes_the_same_bytes_and_nothing_is_overwritten() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (written(&folder.path().join("one")), written(&folder.path().join("two")));
    for (first, second) in one.files.iter().zip(&two.files) {
        assert_eq!(fs::read(first).expect("read"), fs::read(second).expect("read"), "{}", first.display());
    }
    assert!(matches!(write(&plan(), &one.folder, &seams(2)), Err(EnvironmentError::Exists { .. })));
    let other = write(&plan(), &folder.path().join("other"), &seams(2)).expect("written");
    assert_ne!(one.operator, other.operator);
}

#[test]
fn overrides_for_other_programs_are_passed_over_and_wrong_ones_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let written = written(&folder.path().join("new"));
    let with = |path: &std::path::Path, variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Sources::file(path).with_environment(variables)
    };
    let all = [
        ("SEALCAST__NODE__HTTP", "0.0.0.0:1"),
        ("SEALCAST__LIMITS__GATHER_BYTES", "4000000"),
        ("SEALCAST__OUTBOX__BYTES", "20000000"),
        ("SEALCAST__TRANSPORT__BROKERS", "x:1"),
    ];
    let node = NodeConfig::load(&with(node_config(&written), &all)).expect("a node's");
    assert_eq!(
        (node.node.http.as_deref(), node.transport.brokers.as_slice()),
        (Some("0.0.0.0:1"), ["x:1".to_owned()].as_slice())
    );
    let sender = written.senders.values().next().expect("a sender");
    let client = ClientConfig::load(&with(sender, &all)).expect("a sender's");
    assert_eq!(client.outbox.expect("an outbox").bytes, 20_000_000);
    // A reader's file has no transport; what names no cluster does not give it one.
    let reader = written.readers.values().next().expect("a reader");
    let client = ClientConfig::load(&with(reader, &all)).expect("a reader's");
    assert_eq!(client.transport.expect("from the environment").brokers, ["x:1"]);
    let property = [("SEALCAST__TRANSPORT__PROPERTIES__CLIENT_ID", "x")];
    assert!(ClientConfig::load(&with(reader, &property)).expect("a reader's").transport.is_none());
    for wrong in [("SEALCAST__NDOE__HTTP", "x:1"), ("SEALCAST__NODE__HTPT", "x:1")] {
        assert!(NodeConfig::load(&with(node_config(&written), &[wrong])).is_err(), "{wrong:?}");
    }
    assert!(ClientConfig::load(&with(sender, &[("SEALCAST__WINDWO__BYTES", "1")])).is_err());
}

#[test]
fn environment_beats_file_and_flags_beat_both() {
    let folder = tempfile::tempdir().expect("a folder");
    let written = written(&folder.path().join("new"));
    let variables = [
        ("SEALCAST__NODE__HTTP", "0.0.0.0:1"),
        ("SEALCAST__NODE__LISTEN", "0.0.0.0:2"),
        ("SEALCAST__NODE__DESTINATIONS", "orders"),
        ("SEALCAST__TRANSPORT__BROKERS", "x:1,y:2"),
        ("SEALCAST__TRANSPORT__PROPERTIES__SECURITY_PROTOCOL", "sasl_ssl"),
        ("SEALCAST__LIMITS__GATHER_BYTES", "4000000"),
        ("SEALCAST__LOG__FORMAT", "json"),
        ("SEALCAST__LOG__FILTER", ""),
        ("SEALCAST_TEST_KAFKA", "none"),
        ("HOME", "/"),
    ];
    let sources = Sources::file(node_config(&written))
        .with_environment(variables.map(|(name, value)| (name.to_owned(), value.to_owned())))
        .with_flag("node.listen", "127.0.0.1:3");
    let config = NodeConfig::load(&sources).expect("a configuration");
    let directory = config.environment.load_directory().expect("a directory");
    assert_eq!(config.node.http.as_deref(), Some("0.0.0.0:1"));
    assert_eq!(config.listen(&directory).expect("an address"), "127.0.0.1:3");
    assert_eq!(config.destinations(&directory).expect("destinations").len(), 1);
    assert_eq!(config.limits.gather_bytes, 4_000_000);
    assert_eq!((config.log.format, &config.log.filter), (LogFormat::Json, &None));
    let Ok(TransportSettings::Kafka { brokers, properties }) = config.transport() else { panic!("no Kafka") };
    assert_eq!(brokers, ["x:1", "y:2"]);
    assert_eq!(properties["security.protocol"], "sasl_ssl");
}

#[test]
fn a_syntax_error_names_its_place_and_shows_nothing_of_the_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let wrongs =
        ["\"sasl.password\" = \"hunter2\" x", "password = hunter2", "password = \"hunter2", "hunter2", "= 'hunter2'"];
    for (at, wrong) in wrongs.into_iter().enumerate() {
        let written = written(&folder.path().join(at.to_string()));
        change(node_config(&written), "[log]\n", &format!("[log]\n{wrong}\n"));
        let text = NodeConfig::load(&Sources::file(node_config(&written))).expect_err(wrong).to_string();
        assert!(text.contains("node.toml") && text.contains("line ") && text.contains("column "), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn wrong_settings_are_refused_by_file_key_and_mend() {
    let folder = tempfile::tempdir().expect("a folder");
    let cases = [
        ("[node]\n", "[node]\ncolour = 1\n", "colour"),
        ("[log]\n", "[lag]\n", "lag"),
        ("name = \"a\"\n", "", "name"),
        ("key_file = \"node.key\"\n", "", "node.key_file"),
        ("http = \"127.0.0.1:7501\"", "http = \"7501\"", "node.http"),
        ("kind = \"kafka\"", "kind = \"carrier-pigeon\"", "carrier-pigeon"),
        ("brokers = [\"k1:9092\", \"k2:9092\"]", "brokers = []", "transport.brokers"),
        ("brokers = [\"k1:9092\", \"k2:9092\"]", "brokers = [\"k1\"]", "transport.brokers"),
        ("kind = \"kafka\"", "kind = \"kafka\"\npath = \"x\"", "transport.path"),
        ("[log]\n", "[limits]\ngather_bytes = 1\n[log]\n", "limits.gather_bytes"),
        ("[log]\n", "[limits]\ngather_bytes = 99999999999\n[log]\n", "limits.gather_bytes"),
        ("format = \"pretty\"", "format = \"xml\"", "xml"),
        ("operator = \"", "operator = \"00", "operator"),
    ];
    for (at, (from, to, names)) in cases.into_iter().enumerate() {
        let written = written(&folder.path().join(at.to_string()));
        change(node_config(&written), from, to);
        let error = NodeConfig::load(&Sources::file(node_config(&written))).expect_err(names);
        let text = error.to_string();
        assert!(text.contains(names) && text.contains("node.toml"), "{text}\ndoes not name {names}");
        assert!(!error.retryable());
    }
    let cases = [
        ("path = \"outbox\"", "", "outbox.path"),
        ("path = \"outbox\"", "memory = true\npath = \"outbox\"", "outbox.memory"),
        ("path = \"outbox\"", "path = \"outbox\"\nbytes = 1", "outbox.bytes"),
        ("[outbox]\npath = \"outbox\"\n", "", "outbox"),
        ("[outbox]", "[window]\ntransactions = 0\n[outbox]", "window.transactions"),
        ("[outbox]", "[bundle]\nbytes = 0\n[outbox]", "bundle.bytes"),
        ("[outbox]", "[bundle]\nwait = \"2s\"\n[outbox]", "bundle.wait"),
        ("[outbox]", "[bundle]\nwait = 2\n[outbox]", "wait"),
        ("suite = \"x-wing\"", "suite = \"rot13\"", "rot13"),
    ];
    for (at, (from, to, names)) in cases.into_iter().enumerate() {
        let written = written(&folder.path().join(format!("client-{at}")));
        change(sender_config(&written), from, to);
        let error = ClientConfig::load(&Sources::file(sender_config(&written))).expect_err(names).to_string();
        assert!(error.contains(names) && error.contains("client.toml"), "{error}\ndoes not name {names}");
    }
}

#[test]
fn keys_must_be_those_of_the_directory() {
    let folder = tempfile::tempdir().expect("a folder");
    let written = written(&folder.path().join("new"));
    let configs: Vec<_> = written.nodes.values().collect();
    let file = |config: &Path, name: &str| config.parent().expect("a folder").join(name);
    fs::copy(file(configs[1], "node.key"), file(configs[0], "node.key")).expect("copied");
    let config = NodeConfig::load(&Sources::file(configs[0])).expect("a configuration");
    let error = config.keys(&written.directory).expect_err("another's keys").to_string();
    assert!(error.contains("node.key_file") && error.contains("node a"), "{error}");
    let config = NodeConfig::load(&Sources::file(configs[1])).expect("a configuration");
    let keys = config.keys(&written.directory).expect("keys");
    let (from, to) = ("destinations/orders.keyring", "destinations/bills.keyring");
    fs::copy(file(configs[1], from), file(configs[1], to)).expect("copied");
    assert!(matches!(config.key_rings(&written.directory, &keys), Err(ConfigError::Key { .. })));
    change(sender_config(&written), "name = \"web\"", "name = \"other\"");
    let config = ClientConfig::load(&Sources::file(sender_config(&written))).expect("a configuration");
    let error = config.sender(&written.directory).expect_err("another's name").to_string();
    assert!(error.contains("sender.name"), "{error}");
}

#[test]
fn a_secret_may_stand_in_the_setting_and_never_shows() {
    let folder = tempfile::tempdir().expect("a folder");
    let written = written(&folder.path().join("new"));
    let file = sender_config(&written);
    let key = fs::read_to_string(file.parent().expect("a folder").join("sender.key")).expect("text");
    let line = key.lines().last().expect("the secret");
    change(file, "key_file = \"sender.key\"", &format!("key = \"{line}\""));
    let config = ClientConfig::load(&Sources::file(file)).expect("a configuration");
    assert_eq!(config.sender(&written.directory).expect("a sender").expect("a sender").0.as_str(), "web");
    let shown = format!("{config:?}\n{}", toml::to_string(&config).expect("text"));
    assert!(!shown.contains(line) && shown.contains("(redacted)"));
    assert!(!shown.contains("hunter2"));
    assert!(!format!("{:?}", config.transport()).contains("hunter2"));
}

#[test]
fn a_property_may_come_from_a_file_of_its_owner_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let written = written(&folder.path().join("new"));
    let file = node_config(&written);
    let text = fs::read_to_string(file).expect("text");
    assert!(text.contains("\"sasl.password_file\" = \"sasl.password\"") && !text.contains("hunter2"), "{text}");
    let secret = file.parent().expect("a folder").join("sasl.password");
    assert_eq!(fs::read_to_string(&secret).expect("text"), "hunter2");
    assert_eq!(fs::metadata(&secret).expect("there").permissions().mode() & 0o777, 0o600);
    fs::write(&secret, "hunter3\n").expect("written");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).expect("mode");
    let config = NodeConfig::load(&Sources::file(file)).expect("a configuration");
    let error = config.transport().expect_err("open to others").to_string();
    assert!(error.contains("transport.properties.sasl.password_file"), "{error}");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("mode");
    assert!(matches!(config.transport(), Ok(TransportSettings::Kafka { properties, .. })
        if properties["sasl.password"] == "hunter3"));
}

#[test]
fn a_property_that_names_a_file_starts_at_the_configurations_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let written = written(&folder.path().join("new"));
    let file = node_config(&written);
    change(
        file,
        "\"sasl.password_file\" = \"sasl.password\"",
        "\"ssl.ca.location\" = \"ca.pem\"\n\"ssl.ca.pem_file\" = \"ca.pem\"",
    );
    let config = NodeConfig::load(&Sources::file(file)).expect("a configuration");
    let error = config.transport().expect_err("it is not there").to_string();
    assert!(
        error.contains("transport.properties.ssl.ca.location") && error.contains("ca.pem: No such file"),
        "{error}"
    );
    let certificate = file.parent().expect("a folder").join("ca.pem");
    fs::write(&certificate, "public\n").expect("written");
    fs::set_permissions(&certificate, fs::Permissions::from_mode(0o644)).expect("mode");
    let Ok(TransportSettings::Kafka { properties, .. }) = config.transport() else { panic!("no Kafka") };
    assert_eq!(Path::new(&properties["ssl.ca.location"]), certificate);
    assert_eq!(properties["ssl.ca.pem"], "public\n", "a certificate is no secret");
}

#[test]
fn a_property_on_a_command_line_may_name_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("password");
    fs::write(&secret, "hunter2\n").expect("written");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("mode");
    let given = |text: &str| given_property(text);
    let pair = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
    assert_eq!(given("security.protocol=ssl"), pair("security.protocol", "ssl"));
    assert_eq!(given(&format!("sasl.password_file={}", secret.display())), pair("sasl.password", "hunter2"));
    assert!(given("sasl.password_file=/absent").expect_err("absent").contains("/absent"));
    assert!(given("security.protocol").is_err());
}

#[test]
fn an_embedded_path_is_one_folder_for_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let embedded = Plan { transport: TransportSettings::Embedded { path: "transport".into() }, ..plan() };
    let written = write(&embedded, &folder.path().join("new"), &seams(1)).expect("written");
    let mut paths = BTreeSet::new();
    for file in written.nodes.values() {
        let config = NodeConfig::load(&Sources::file(file)).expect("a configuration");
        let Ok(TransportSettings::Embedded { path }) = config.transport() else { panic!("no folder") };
        fs::create_dir_all(&path).expect("made");
        paths.insert(fs::canonicalize(path).expect("a folder"));
    }
    assert_eq!(paths, BTreeSet::from([fs::canonicalize(folder.path()).expect("a folder").join("new/transport")]));
}
