//! Tests of directory through what other modules see of it.

use proptest::prelude::*;

use super::*;
use crate::core::sign::SecretKey;

fn name<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect("a name")
}

fn secret(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

fn kem(number: u8) -> Bytes {
    Bytes::from([vec![1; 1184], vec![number; 32]].concat())
}

const ENVIRONMENT: EnvironmentId = EnvironmentId([5; 16]);

/// Three nodes, one destination with a key of each suite, one sender, one reader.
fn small() -> Draft {
    let mut draft = Draft::new(ENVIRONMENT, name("test"), Time(4_102_444_800_000));
    for (at, node) in (10u8..).step_by(2).zip(["a", "b", "c"]) {
        draft.add_node(NodeEntry {
            name: name(node),
            address: format!("127.0.0.1:{}", 7400 + u16::from(at)),
            signing: secret(at).public(),
            tls: secret(at + 1).public().bytes(),
            hpke: kem(at),
        });
    }
    let keys = vec![
        DestinationKey::current(Suite::X25519, Bytes::from_static(&[9; 32])).expect("a key"),
        DestinationKey::current(Suite::XWing, kem(2)).expect("a key"),
    ];
    let nodes = ["c", "a", "b"].map(name);
    draft.add_destination(DestinationEntry::new(ENVIRONMENT, name("orders"), nodes, keys));
    let destinations = BTreeSet::from([name("orders")]);
    draft.add_sender(SenderEntry {
        name: name("web"),
        signing: secret(30).public(),
        destinations: destinations.clone(),
    });
    draft.add_reader(ReaderEntry { name: name("app"), signing: secret(31).public(), hpke: kem(31), destinations });
    draft
}

fn operator() -> SecretKey {
    secret(1)
}

/// Signs any text, as an operator with a careless tool would.
fn signed(text: &str) -> Vec<u8> {
    let signature = operator().sign(label::DIRECTORY, text.as_bytes());
    format!("{FIRST_LINE}{}\n{text}", data_encoding::HEXLOWER.encode(&signature)).into_bytes()
}

fn verify(bytes: &[u8]) -> Result<Directory, DirectoryError> {
    Directory::verify(bytes, &operator().public(), 1)
}

/// The small directory's text with one change must be refused, and the refusal must name the field.
fn refused(change: impl Fn(&str) -> String, names: &str) {
    let text = small().to_toml().expect("text");
    let changed = change(&text);
    assert_ne!(text, changed, "the change for {names} did nothing");
    let error = verify(&signed(&changed)).expect_err(names);
    assert!(error.to_string().contains(names), "{error}\ndoes not name {names}");
    assert!(!error.retryable());
}

/// The same for a change of the draft; signing must refuse it as well.
fn refused_draft(change: impl Fn(&mut Draft), names: &str) {
    let mut draft = small();
    change(&mut draft);
    let error = draft.sign(&operator()).expect_err(names);
    assert!(error.to_string().contains(names), "{error}\ndoes not name {names}");
    assert_eq!(verify(&signed(&draft.to_toml().expect("text"))).expect_err("same"), error);
}

fn orders(draft: &mut Draft) -> &mut DestinationEntry {
    draft.destinations.get_mut(&name::<DestinationName>("orders")).expect("there")
}

#[test]
fn what_is_signed_is_what_is_read() {
    let draft = small();
    let bytes = draft.sign(&operator()).expect("signed");
    assert_eq!(bytes, draft.sign(&operator()).expect("signed again"));
    let directory = verify(&bytes).expect("verified");
    assert_eq!(directory.bytes(), &bytes);
    let next = Draft::after(&directory);
    assert_eq!(next.version, 2);
    assert_eq!(Draft { version: 1, ..next }, draft);
    assert_eq!(Draft::from_toml(&draft.to_toml().expect("text")), Ok(draft));
}

#[test]
fn look_ups_find_entries_and_nothing_else() {
    let directory = verify(&small().sign(&operator()).expect("signed")).expect("verified");
    let (orders, web, app): (DestinationName, SenderName, ReaderName) = (name("orders"), name("web"), name("app"));
    assert_eq!(directory.sender_by_key(&secret(30).public().bytes()).map(|entry| &entry.name), Some(&web));
    assert_eq!(directory.sender_by_key(&secret(31).public().bytes()), None);
    assert_eq!(directory.reader_by_tls(&secret(31).public().bytes()).map(|entry| &entry.name), Some(&app));
    assert_eq!(directory.node_by_tls(&secret(11).public().bytes()).map(|node| node.name.as_str()), Some("a"));
    assert_eq!(directory.node_by_signing(&secret(12).public().bytes()).map(|node| node.name.as_str()), Some("b"));
    let entry = directory.destination_by_tag(&destination_tag(ENVIRONMENT, &orders, 0)).expect("there");
    assert_eq!(entry.nodes.iter().map(NodeName::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(entry.quorum(), 2);
    assert!(directory.destination_by_tag(&destination_tag(ENVIRONMENT, &orders, 1)).is_none());
    assert_eq!(entry.current_key(Suite::XWing).map(|key| key.id), Some(key_id(Suite::XWing, &kem(2))));
    assert!(directory.may_send(&web, &orders) && directory.may_read(&app, &orders));
    assert!(!directory.may_send(&web, &name("bills")) && !directory.may_send(&name("other"), &orders));
    assert_eq!(directory.destinations_of(&name("b")).count(), 1);
    assert_eq!(directory.destinations_of(&name("z")).count(), 0);
    assert_eq!([1, 2, 3, 4, 5].map(quorum), [1, 2, 2, 3, 3]);
}

#[test]
fn a_suite_below_the_minimum_has_no_current_key() {
    let mut draft = small();
    orders(&mut draft).minimum_suite = Suite::XWing;
    let entry = orders(&mut draft);
    assert!(entry.current_key(Suite::X25519).is_none() && entry.current_key(Suite::XWing).is_some());
    assert!(draft.sign(&operator()).is_ok());
}

#[test]
fn the_signature_comes_before_the_text() {
    let good = small().sign(&operator()).expect("signed");
    let nonsense = [FIRST_LINE.as_bytes(), "0".repeat(128).as_bytes(), b"\n\xff not toml ["].concat();
    assert_eq!(verify(&nonsense), Err(DirectoryError::Signature));
    assert_eq!(Directory::verify(&good, &secret(2).public(), 1), Err(DirectoryError::Signature));
    assert_eq!(verify(small().to_toml().expect("text").as_bytes()), Err(DirectoryError::FirstLine));
    assert_eq!(verify(b""), Err(DirectoryError::FirstLine));
    let long = vec![b' '; limits::DIRECTORY_BYTES + 1];
    assert!(matches!(verify(&long), Err(DirectoryError::TooLong { .. })));
}

#[test]
fn a_lower_version_or_another_environment_is_refused() {
    let mut draft = small();
    let first = verify(&draft.sign(&operator()).expect("signed")).expect("verified");
    assert_eq!(
        Directory::verify(first.bytes(), &operator().public(), 2),
        Err(DirectoryError::OldVersion { version: 1, minimum: 2 })
    );
    assert!(first.check_successor_of(&first).is_err());
    draft.version = 2;
    let second = verify(&draft.sign(&operator()).expect("signed")).expect("verified");
    assert_eq!(second.check_successor_of(&first), Ok(()));
    assert!(first.check_successor_of(&second).is_err());
    let mut other = Draft::new(EnvironmentId([6; 16]), name("test"), Time(1));
    other.version = 9;
    let other = verify(&other.sign(&operator()).expect("signed")).expect("verified");
    assert!(matches!(other.check_successor_of(&first), Err(DirectoryError::OtherEnvironment { .. })));
    refused_draft(|draft| draft.version = 0, "version");
}

#[test]
fn unknown_missing_and_misshapen_fields_are_refused_by_name() {
    refused(|text| format!("colour = 1\n{text}"), "colour");
    refused(|text| text.replace("[[sender]]\n", "[[sender]]\npriority = 1\n"), "priority");
    refused(|text| text.replace("[[destination.key]]\n", "[[destination.key]]\nnote = 1\n"), "note");
    refused(|text| text.replace("grace = \"30d\"\n", ""), "grace");
    refused(|text| text.replace("grace = \"30d\"", "grace = \"30\""), "grace");
    refused(|text| text.replace("2100-01-01T00:00:00Z", "soon"), "valid_until");
    refused(|text| text.replace("name = \"web\"", "name = \"Web\""), "sender \"Web\"");
    refused(|text| text.replace("suite = \"x25519\"\nstate", "suite = \"x448\"\nstate"), "x448");
    refused(|text| text.replace("state = \"current\"", "state = \"future\""), "future");
    refused(|text| text.replace("version = 1", "version = -1"), "version");
    refused(|text| text.replace(&"1f".repeat(32), &format!("1F{}", "1f".repeat(31))), "reader app: hpke");
}

#[test]
fn duplicates_are_refused() {
    let again = |text: &str, head: &str| {
        let from = text.find(head).expect("head");
        let to = text[from + 2..].find("\n[[").map_or(text.len(), |at| from + 2 + at + 1);
        format!("{text}\n{}", &text[from..to])
    };
    refused(|text| again(text, "[[node]]"), "node 4: name");
    refused(|text| again(text, "[[sender]]"), "sender 2: name");
    refused(|text| again(text, "[[reader]]"), "reader 2: name");
    refused(|text| text.replace("\"a\",", "\"a\", \"a\","), "destination orders: nodes");
    refused(|text| text.replace("destinations = [\"orders\"]", "destinations = [\"orders\", \"orders\"]"), "web");
    let key =
        |draft: &mut Draft, change: &dyn Fn(&mut NodeEntry)| change(draft.nodes.values_mut().next_back().unwrap());
    refused_draft(|draft| key(draft, &|node| node.signing = secret(10).public()), "node c: signing");
    refused_draft(|draft| key(draft, &|node| node.tls = secret(14).public().bytes()), "node c: tls");
    refused_draft(|draft| key(draft, &|node| node.tls = secret(1).public().bytes()), "operator key");
    refused_draft(|draft| key(draft, &|node| node.hpke = kem(10)), "node c: hpke");
    refused_draft(|draft| key(draft, &|node| node.address = "127.0.0.1:7410".to_owned()), "node c: address");
    refused_draft(
        |draft| draft.readers.values_mut().for_each(|reader| reader.signing = secret(30).public()),
        "reader app: signing",
    );
    refused_draft(
        |draft| {
            let mut old = orders(draft).keys[1].clone();
            old.state = KeyState::Retired;
            orders(draft).keys.push(old);
        },
        "destination orders: key 3: public",
    );
    refused_draft(
        |draft| orders(draft).keys.push(DestinationKey::current(Suite::XWing, kem(3)).expect("a key")),
        "several current keys",
    );
}

#[test]
fn weak_keys_are_refused() {
    let identity = format!("01{}", "00".repeat(31));
    for (place, key) in
        [("node a: signing", secret(10)), ("node a: tls", secret(11)), ("sender web: signing", secret(30))]
    {
        let honest = key.public().bytes().to_string();
        refused(|text| text.replace(&honest, &identity), place);
        refused(|text| text.replace(&honest, &format!("ee{}7f", "ff".repeat(30))), place);
    }
    let kem = |point: &str| format!("{}{}", "01".repeat(1184), point.repeat(32));
    refused(|text| text.replace(&kem("1f"), &kem("1f")[2..]), "reader app: hpke");
    refused(|text| text.replace(&kem("0a"), &kem("00")), "node a: hpke");
    refused(|text| text.replace(&kem("0a"), &kem("0a").replacen("0101", "010d", 1)), "node a: hpke");
    refused(|text| text.replace(&"09".repeat(32), &"00".repeat(32)), "destination orders: key 1: public");
    refused(|text| text.replace(&"09".repeat(32), &"09".repeat(31)), "destination orders: key 1: public");
}

#[test]
fn the_seven_encodings_of_small_order_are_refused_in_both_suites() {
    let digits = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    for point in digits.map(|digits| data_encoding::HEXLOWER.decode(digits.as_bytes()).expect("digits")) {
        // Each of them gives the all-zero secret, whatever the scalar.
        let array: [u8; 32] = point.clone().try_into().expect("32 bytes");
        let shared = x25519_dalek::StaticSecret::from([0x42; 32]).diffie_hellman(&array.into());
        assert!(!shared.was_contributory());
        for top in [0, 0x80] {
            let mut point = point.clone();
            point[31] |= top;
            assert_eq!(check_kem_key(Suite::X25519, &point), Err(KemKeyError::SmallOrder));
            let long = [vec![1; 1184], point].concat();
            assert_eq!(check_kem_key(Suite::XWing, &long), Err(KemKeyError::SmallOrder));
        }
    }
    assert_eq!(check_kem_key(Suite::X25519, &[9; 32]), Ok(()));
}

#[test]
fn references_and_ranges_are_checked() {
    refused_draft(|draft| orders(draft).nodes.push(name("x")), "there is no node \"x\"");
    refused_draft(|draft| orders(draft).nodes.clear(), "destination orders: nodes");
    refused_draft(
        |draft| draft.senders.values_mut().for_each(|entry| _ = entry.destinations.insert(name("bills"))),
        "there is no destination \"bills\"",
    );
    refused_draft(
        |draft| draft.readers.values_mut().for_each(|entry| _ = entry.destinations.insert(name("bills"))),
        "reader app: destinations",
    );
    refused(|text| text.replace("shard = 0", "shard = 1"), "destination orders: tag");
    refused_draft(
        |draft| {
            let entry = orders(draft);
            entry.shard = 1;
            entry.tag = destination_tag(ENVIRONMENT, &entry.name, 1);
        },
        "destination orders: shard",
    );
    refused_draft(|draft| orders(draft).tag.0[0] ^= 1, "destination orders: tag");
    refused_draft(|draft| orders(draft).keys[0].id.0[0] ^= 1, "destination orders: key 1: id");
    refused_draft(
        |draft| orders(draft).keys.iter_mut().for_each(|key| key.state = KeyState::Retired),
        "no current key",
    );
    refused_draft(
        |draft| {
            orders(draft).minimum_suite = Suite::XWing;
            orders(draft).keys.truncate(1);
        },
        "no current key",
    );
    refused_draft(|draft| orders(draft).max_life = Duration::ZERO, "destination orders: max_life");
    refused_draft(|draft| orders(draft).retention = Duration::from_secs(9), "destination orders: retention");
    for bad in ["", "host", ":1", "host:0", "host:65536", "a b:1", "[::1:1", "::1:99:x"] {
        refused_draft(|draft| draft.nodes.values_mut().next().unwrap().address = bad.to_owned(), "node a: address");
    }
}

#[test]
fn alarms_come_at_30_7_and_1_days() {
    let directory = verify(&small().sign(&operator()).expect("signed")).expect("verified");
    let days_before = |days: f64| Time((directory.valid_until.0 as f64 - days * 86_400_000.0) as u64);
    assert_eq!(directory.validity(days_before(30.1)), Validity::Good);
    for (days, alarm) in [(30.0, 30), (7.1, 30), (7.0, 7), (1.1, 7), (1.0, 1), (0.0, 1)] {
        assert_eq!(directory.validity(days_before(days)), Validity::Ending { days: alarm }, "{days}");
    }
    assert_eq!(directory.validity(days_before(-0.1)), Validity::Ended);
    assert_eq!(directory.validity(days_before(-30.0)), Validity::Ended);
    assert_eq!(directory.validity(days_before(-30.1)), Validity::GraceEnded);
}

proptest! {
    #[test]
    fn no_change_of_any_byte_is_accepted(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = small().sign(&operator()).expect("signed");
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(matches!(verify(&bytes), Err(DirectoryError::FirstLine | DirectoryError::Signature)));
    }

    #[test]
    fn signed_nonsense_never_panics(text in "\\PC{0,200}") {
        prop_assert!(verify(&signed(&text)).is_err());
    }
}
