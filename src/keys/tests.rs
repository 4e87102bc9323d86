//! Tests of keys through what other modules see of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::core::directory::KeyState;
use crate::core::id::{DestinationName, EnvironmentId, NodeName, Suite, Time};
use crate::seams::{RealDisk, SeededRandomness};

const CREATED: Time = Time(1_767_225_600_000);
const ENVIRONMENT: EnvironmentId = EnvironmentId([4; 16]);

fn orders() -> DestinationName {
    DestinationName::new("orders").expect("a name")
}

fn name(text: &str) -> NodeName {
    NodeName::new(text).expect("a name")
}

fn ring(seed: u64) -> KeyRing {
    let randomness = SeededRandomness::new(seed);
    KeyRing::generate(ENVIRONMENT, orders(), &[Suite::X25519, Suite::XWing], &randomness).expect("a ring")
}

fn node(seed: u64) -> NodeKeys {
    NodeKeys::generate(&SeededRandomness::new(seed)).expect("keys")
}

/// Writes, reads back, and gives the file's text.
fn round_trip<K: SecretFile>(key: &K) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.key");
    key.write(&path, CREATED, &RealDisk).expect("written");
    let mode = fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = K::read(&path).expect("read");
    assert_eq!(again.to_secret_bytes(), key.to_secret_bytes());
    assert_eq!(again.public_lines(), key.public_lines());
    assert!(matches!(key.write(&path, CREATED, &RealDisk), Err(KeyError::Io { verb: "create", .. })));
    fs::read_to_string(&path).expect("text")
}

#[test]
fn key_files_read_what_they_write_and_say_their_public_part() {
    let randomness = SeededRandomness::new(1);
    let operator = OperatorKey::generate(&randomness).expect("a key");
    let sender = SenderKey::generate(&randomness).expect("a key");
    let reader = ReaderKey::generate(&randomness).expect("a key");
    let text = round_trip(&operator);
    assert!(text.starts_with("# sealcast operator key, created 2026-01-01T00:00:00Z\n# signing: "), "{text}");
    assert!(text.contains(&operator.signing().public().bytes().to_string()));
    assert!(text.contains("\nSEALCAST-OPERATOR-SECRET-1"));
    for text in [text, round_trip(&sender), round_trip(&reader), round_trip(&node(2)), round_trip(&ring(3))] {
        let public = PublicKeys::of_secret(&text, "here").expect("a public part");
        assert_eq!(PublicKeys::from_toml(&public.to_toml().expect("text"), "here").expect("read"), public);
        assert_eq!(Kind::of(&text), Some(public.kind()));
    }
}

#[test]
fn a_file_that_others_can_read_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.key");
    node(1).write(&path, CREATED, &RealDisk).expect("written");
    for mode in [0o640, 0o604, 0o660, 0o601] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        let error = NodeKeys::read(&path).expect_err("open to others");
        assert!(matches!(error, KeyError::OpenToOthers { mode: found, .. } if found == mode), "{error}");
        assert!(error.to_string().contains("chmod go-rwx"));
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("mode");
    NodeKeys::read(&path).expect("its owner alone");
    // The link's own mode is nothing; that of the file behind it counts.
    let link = folder.path().join("link.key");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    NodeKeys::read(&link).expect("through a link");
}

#[test]
fn what_is_no_key_file_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("long.key");
    let file = RealDiskFile::create(&path);
    file.set_len(crate::core::limits::KEY_FILE_BYTES as u64 + 1).expect("long");
    assert!(matches!(NodeKeys::read(&path), Err(KeyError::NoKeyFile { .. })));
    assert!(matches!(NodeKeys::read(folder.path()), Err(KeyError::NoKeyFile { .. })));
    assert!(matches!(NodeKeys::read(&folder.path().join("absent")), Err(KeyError::Io { verb: "open", .. })));
    let sender = SenderKey::generate(&SeededRandomness::new(1)).expect("a key").to_text(CREATED);
    let error = NodeKeys::from_text(&sender, "here").expect_err("another kind").to_string();
    assert_eq!(error, "here: this is a sender key, a node key is needed here");
    for bad in ["", "# only a comment\n", "SEALCAST-NODE-SECRET-1\n", "SEALCAST-NODE-SECRET-1A1\n"] {
        assert!(NodeKeys::from_text(bad, "here").is_err(), "{bad}");
    }
    let twice = format!("{}{}", sender.as_str(), sender.as_str());
    assert!(SenderKey::from_text(&twice, "here").is_err());
}

struct RealDiskFile;

impl RealDiskFile {
    fn create(path: &Path) -> fs::File {
        use std::os::unix::fs::OpenOptionsExt;
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).expect("created")
    }
}

#[test]
fn a_ring_opens_for_its_node_and_destination_alone() {
    let (ring, keys) = (ring(1), node(2));
    let entry = keys.entry(name("a"), "127.0.0.1:7401".to_owned());
    let text = ring.seal_to(&entry, &SeededRandomness::new(3)).expect("sealed");
    let open = |text: &str, environment, destination: &str, node: &str, keys: &NodeKeys| {
        let destination = DestinationName::new(destination).expect("a name");
        KeyRing::open(text, "here", environment, &destination, &name(node), keys)
    };
    let opened = open(&text, ENVIRONMENT, "orders", "a", &keys).expect("opened");
    assert_eq!(opened.to_secret_bytes(), ring.to_secret_bytes());
    assert_eq!(opened.index_secret(), ring.index_secret());
    for wrong in [
        open(&text, EnvironmentId([5; 16]), "orders", "a", &keys),
        open(&text, ENVIRONMENT, "bills", "a", &keys),
        open(&text, ENVIRONMENT, "orders", "b", &keys),
        open(&text, ENVIRONMENT, "orders", "a", &node(9)),
    ] {
        assert!(matches!(wrong, Err(KeyError::Seal { .. })));
    }
    assert!(matches!(open("nothing", ENVIRONMENT, "orders", "a", &keys), Err(KeyError::Text { .. })));
    let cut = text.replace(&text[text.len() - 100..text.len() - 60], "");
    assert!(open(&cut, ENVIRONMENT, "orders", "a", &keys).is_err());
}

#[test]
fn a_ring_must_cover_the_current_keys() {
    let ring = ring(1);
    let mut entry =
        crate::core::directory::DestinationEntry::new(ENVIRONMENT, orders(), [name("a")], ring.public_keys());
    ring.check_covers(&entry).expect("covered");
    let mut newer = ring.clone();
    let key = newer.add_epoch(Suite::XWing, &SeededRandomness::new(7)).expect("an epoch");
    assert_eq!(newer.secret(&key.id).map(|secret| secret.public().id()), Some(key.id));
    entry.keys.push(key);
    newer.check_covers(&entry).expect("covered");
    let error = ring.check_covers(&entry).expect_err("not covered").to_string();
    assert!(error.contains("newer key ring"), "{error}");
    entry.keys.iter_mut().for_each(|key| key.state = KeyState::Retired);
    ring.check_covers(&entry).expect("retired keys need no secret");
}

#[test]
fn nothing_shows_a_secret() {
    let (ring, keys) = (ring(1), node(2));
    let shown = format!("{ring:?} {keys:?} {:?}", SenderKey::generate(&SeededRandomness::new(5)).expect("a key"));
    for secret in keys.to_secret_bytes().chunks(32).chain([ring.index_secret().as_slice()]) {
        assert!(!shown.contains(&data_encoding::HEXLOWER.encode(secret)));
        assert!(!shown.contains(&format!("{secret:?}")));
    }
    let text = keys.to_text(CREATED);
    let damaged = text.replace("SECRET-1", "SECRET-1A");
    let error = NodeKeys::from_text(&damaged, "here").expect_err("damaged").to_string();
    let line = text.lines().last().expect("a line");
    assert!(!error.contains(&line[30..40]), "{error}");
}

proptest! {
    #[test]
    fn no_changed_character_of_a_secret_line_is_accepted(at in any::<prop::sample::Index>(), to in "[A-Z2-7]") {
        let text = SenderKey::generate(&SeededRandomness::new(1)).expect("a key").to_text(CREATED).to_string();
        let start = text.find("SEALCAST-SENDER").expect("the line");
        let at = start + at.index(text.len() - start - 1);
        let mut changed = text.clone();
        changed.replace_range(at..=at, &to);
        prop_assert_eq!(changed == text, SenderKey::from_text(&changed, "here").is_ok());
    }

    #[test]
    fn any_text_is_read_without_panic(text in "(SEALCAST-DESTINATION-SECRET-1)?[A-Z2-7]{0,80}") {
        prop_assert!(KeyRing::from_text(&text, "here").is_err());
    }
}
