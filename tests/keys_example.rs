//! The public example environment: it is what its seed gives, every file of it loads, and only for its owner.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sealcast::config::environment::{Keeper, New, Places, Plan, write};
use sealcast::config::{ClientConfig, ConfigError, NodeConfig, Sources, TransportSettings};
use sealcast::core::directory::{Directory, Draft, Validity, read_time};
use sealcast::core::id::{NodeName, SenderName, Suite};
use sealcast::keys::{KeyError, KeyRing, OperatorKey, SecretFile, SenderKey};
use sealcast::seams::{ManualClock, RealDisk, Seams, SeededRandomness};

const SEED: u64 = 0x5ea1_ca57;
const NOTE: &str = "# A PUBLIC EXAMPLE, NO SECRET: everybody has this key. Make your own with `sealcast init`.\n";

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("keys-example")
}

/// Writes the example anew; key files get a note that they are public.
fn write_example(folder: &Path) -> Vec<PathBuf> {
    let now = read_time("2026-01-01T00:00:00Z").expect("a time");
    let until = read_time("2100-01-01T00:00:00Z").expect("a time");
    let plan = Plan {
        name: "example".parse().expect("a name"),
        nodes: Plan::on_loopback(["a", "b", "c"].map(|name| NodeName::new(name).expect("a name"))).expect("nodes"),
        destinations: BTreeSet::from(["orders".parse().expect("a name")]),
        senders: BTreeSet::from(["web".parse().expect("a name")]),
        readers: BTreeSet::from(["app".parse().expect("a name")]),
        transport: TransportSettings::Kafka { brokers: vec!["localhost:9092".to_owned()], properties: BTreeMap::new() },
        suite: Suite::XWing,
        minimum_suite: Suite::X25519,
        valid_for: Duration::from_millis(until.0 - now.0),
    };
    let seams = Seams {
        clock: Arc::new(ManualClock::new(now)),
        randomness: Arc::new(SeededRandomness::new(SEED)),
        disk: Arc::new(RealDisk),
        ..Seams::real()
    };
    let written = write(&plan, folder, &seams).expect("written");
    for path in written.files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "key")) {
        let text = fs::read_to_string(path).expect("text");
        fs::write(path, format!("{NOTE}{text}")).expect("written");
    }
    let relative = |path: PathBuf| path.strip_prefix(folder).expect("inside").to_path_buf();
    written.files.into_iter().map(relative).collect()
}

/// Every file below a folder, relative to it.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    fn collect(root: &Path, folder: &Path, into: &mut BTreeSet<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(root, &path, into);
            } else {
                into.insert(path.strip_prefix(root).expect("inside").to_path_buf());
            }
        }
    }
    let mut all = BTreeSet::new();
    collect(folder, folder, &mut all);
    all
}

/// Copies the example as its README says, giving every file this mode.
fn copied(mode: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for file in files(&committed()) {
        let to = folder.path().join(&file);
        fs::create_dir_all(to.parent().expect("a folder")).expect("made");
        fs::copy(committed().join(&file), &to).expect("copied");
        fs::set_permissions(&to, fs::Permissions::from_mode(mode)).expect("mode");
    }
    folder
}

#[test]
fn the_example_is_what_its_seed_gives() {
    let folder = tempfile::tempdir().expect("a folder");
    let fresh = folder.path().join("example");
    let mut expected: BTreeSet<_> = write_example(&fresh).into_iter().collect();
    if std::env::var_os("SEALCAST_WRITE_EXAMPLE").is_some() {
        for file in files(&committed()).iter().filter(|file| *file != Path::new("README.md")) {
            fs::remove_file(committed().join(file)).expect("removed");
        }
        for file in &expected {
            let to = committed().join(file);
            fs::create_dir_all(to.parent().expect("a folder")).expect("made");
            fs::write(to, fs::read(fresh.join(file)).expect("read")).expect("written");
        }
    }
    for file in &expected {
        let (fresh, kept) = (fs::read(fresh.join(file)).expect("read"), fs::read(committed().join(file)));
        assert!(
            kept.is_ok_and(|kept| kept == fresh),
            "keys-example/{} is not what init writes today: SEALCAST_WRITE_EXAMPLE=1 cargo test --test keys_example what_its_seed_gives",
            file.display()
        );
    }
    expected.insert("README.md".into());
    assert_eq!(files(&committed()), expected, "a file that init does not write");
}

#[test]
fn every_file_loads() {
    let folder = copied(0o600);
    let at = |file: &str| folder.path().join(file);
    let mut loaded = BTreeSet::from([PathBuf::from("README.md")]);
    let mut took = |file: &str| assert!(loaded.insert(file.into()), "{file} twice");
    let operator = OperatorKey::read(&at("operator/operator.key")).expect("the operator's key");
    took("operator/operator.key");
    let bytes = fs::read(at("operator/directory")).expect("read");
    let directory = Directory::verify(&bytes, &operator.signing().public(), 1).expect("a directory");
    took("operator/directory");
    assert_eq!(directory.validity(read_time("2099-01-01T00:00:00Z").expect("a time")), Validity::Good);
    let draft = Draft::from_toml(&fs::read_to_string(at("operator/directory.toml")).expect("read")).expect("a draft");
    took("operator/directory.toml");
    assert_eq!(Draft { version: draft.version, ..Draft::after(&directory) }, draft);
    let ring = KeyRing::read(&at("operator/destinations/orders.key")).expect("the destination's keys");
    took("operator/destinations/orders.key");
    ring.check_covers(&directory.destinations[ring.destination()]).expect("all current keys");
    for node in ["a", "b", "c"] {
        let config = NodeConfig::load(&Sources::file(at(&format!("nodes/{node}/node.toml")))).expect("a configuration");
        assert_eq!(config.environment.load_directory().expect("a directory"), directory);
        let keys = config.keys(&directory).expect("its keys");
        let rings = config.key_rings(&directory, &keys).expect("its key rings");
        assert_eq!(rings[ring.destination()].to_secret_bytes(), ring.to_secret_bytes());
        config.transport().expect("a transport");
        for file in ["node.toml", "node.key", "directory", "destinations/orders.keyring"] {
            took(&format!("nodes/{node}/{file}"));
        }
    }
    let config = ClientConfig::load(&Sources::file(at("senders/web/client.toml"))).expect("a configuration");
    assert_eq!(config.environment.load_directory().expect("a directory"), directory);
    let (sender, _) = config.sender(&directory).expect("its key").expect("a sender");
    assert!(directory.may_send(&sender, ring.destination()));
    let config = ClientConfig::load(&Sources::file(at("readers/app/client.toml"))).expect("a configuration");
    assert_eq!(config.environment.load_directory().expect("a directory"), directory);
    let (reader, _) = config.reader(&directory).expect("its key").expect("a reader");
    assert!(directory.may_read(&reader, ring.destination()));
    for bundle in ["senders/web/client.toml", "senders/web/sender.key", "senders/web/directory"] {
        took(bundle);
    }
    for bundle in ["readers/app/client.toml", "readers/app/reader.key", "readers/app/directory"] {
        took(bundle);
    }
    // What is added later takes its transport from what the operator keeps.
    let all = files(folder.path());
    let mut keeper = Keeper::open(&at("operator/operator.key"), Places::default()).expect("what the operator keeps");
    assert_eq!(keeper.changes(), []);
    let key = SenderKey::generate(&SeededRandomness::new(1)).expect("a key");
    let name = SenderName::new("new").expect("a name");
    keeper.draft.add_sender(key.entry(name.clone(), [ring.destination().clone()]));
    let added = keeper.sign(Some(New::Sender(name, key, Suite::XWing)), &Seams::real()).expect("signed");
    took("operator/transport.toml");
    let config = ClientConfig::load(&Sources::file(added.config.expect("a configuration"))).expect("loads");
    assert!(config.transport().expect("a transport").is_some());
    assert_eq!(all, loaded, "a file that nothing loads");
}

#[test]
fn as_git_leaves_it_the_example_is_refused() {
    let folder = copied(0o644);
    let config = NodeConfig::load(&Sources::file(folder.path().join("nodes/a/node.toml"))).expect("a configuration");
    let directory = config.environment.load_directory().expect("a directory");
    match config.keys(&directory) {
        Err(ConfigError::Key { cause, .. }) => assert!(matches!(*cause, KeyError::OpenToOthers { .. }), "{cause}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_example_says_that_it_is_public() {
    let readme = fs::read_to_string(committed().join("README.md")).expect("read");
    assert!(readme.contains("Its keys are public") && readme.contains("chmod -R go-rwx"));
    let keys: Vec<_> =
        files(&committed()).into_iter().filter(|file| file.extension().is_some_and(|it| it == "key")).collect();
    assert_eq!(keys.len(), 7);
    for file in keys {
        assert!(fs::read_to_string(committed().join(&file)).expect("read").starts_with(NOTE), "{}", file.display());
    }
}
