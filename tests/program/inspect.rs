//! `sealcast inspect`: what it shows of a topic with and without the destination's key, of records that are wrong, and of files.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::kafka::shared;
use crate::common::world::{World, lines};
use sealcast::core::split::header::Profile;
use serde_json::Value;

const NODE: [&str; 2] = ["--config", "env/nodes/a/node.toml"];
const PAYLOAD: &str = "what no broker may see, and no command prints";
/// With what clears a screen, and what turns text round.
const KEY: &str = "customer-42\u{1b}[2J\u{202e}";

fn inspect(world: &World, arguments: &[&str]) -> Vec<Value> {
    world.json(&[&["inspect"], arguments, &NODE].concat())
}

fn of<'a>(seen: &'a [Value], kind: &str) -> Vec<&'a Value> {
    seen.iter().filter(|one| one["kind"] == kind).collect()
}

#[test]
fn a_broker_sees_headers_and_a_holder_of_the_key_what_is_in_them() {
    let mut world = World::new(&shared());
    world.start_all();
    fs::write(world.path().join("payload"), PAYLOAD).unwrap();
    let sent = world.send("payload", "complete", &["-k", KEY, "-H", "colour=red\u{9b}2J"]);

    // What a broker sees: three equal copies of one stripe, signed and whole, and no more than that.
    let began = std::time::Instant::now();
    let seen = loop {
        let seen = inspect(&world, &["orders", "-e"]);
        // Two of the three are enough to be complete; the last broker may have its copy a moment later.
        if seen.len() >= 3 || began.elapsed() > std::time::Duration::from_secs(60) {
            break seen;
        }
    };
    let segments = of(&seen, "segment");
    assert_eq!((seen.len(), segments.len()), (3, 3));
    for one in &segments {
        assert_eq!((&one["check"], &one["by"]), (&"valid".into(), &"web".into()), "{one}");
        let fields = &one["fields"];
        assert_eq!((&fields["k"], &fields["m"], &fields["stripe"]), (&1.into(), &2.into(), &0.into()));
        assert_eq!((&fields["parcel"], &fields["last"]), (&sent["parcel"], &true.into()));
        assert_eq!(fields["destinations"][0]["destination"], "orders");
    }
    let text = String::from_utf8(world.done(&[&["inspect", "orders", "-e"], &NODE[..]].concat())).unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");
    for hidden in ["customer-42", "colour", PAYLOAD] {
        assert!(!text.contains(hidden), "{text}");
    }

    // What a holder of the destination's keys sees; the payload only in the file that was asked for.
    let key = ["-i", "env/operator/destinations/orders.key"];
    let seen = inspect(&world, &[&["orders", "-e", "-o", "payloads"], &key[..]].concat());
    let transactions = of(&seen, "transaction");
    assert_eq!(transactions.len(), 1, "once, though three copies came: {seen:#?}");
    let fields = &transactions[0]["fields"];
    assert_eq!((&fields["transaction"], &fields["ordering_key"]), (&sent["transaction"], &KEY.into()));
    assert_eq!((&fields["headers"][0][0], &fields["headers"][0][1]), (&"colour".into(), &"red\u{9b}2J".into()));
    assert_eq!(fields["payload_length"], PAYLOAD.len());
    assert!(seen.iter().all(|one| !one.to_string().contains(PAYLOAD)));
    let id = sent["transaction"].as_str().unwrap();
    assert_eq!(fs::read_to_string(world.path().join("payloads").join(id)).unwrap(), PAYLOAD);

    // What a sender wrote does not reach the terminal as a command to it, neither in rows nor field by field.
    for how in [&["-e"][..], &["--at", "2/0"]] {
        let text = String::from_utf8(world.done(&[&["inspect", "orders"], how, &key, &NODE].concat())).unwrap();
        assert!(text.contains("customer-42\u{fffd}[2J") && text.contains("red\u{fffd}2J"), "{text}");
        assert!(!text.contains(|c: char| c != '\n' && c.is_control()) && !text.contains('\u{202e}'), "{text:?}");
    }

    // Bounded, from where it is asked, one record with all its fields.
    assert_eq!(inspect(&world, &["orders", "-e", "-c", "2"]).len(), 2);
    assert_eq!(inspect(&world, &["orders", "-e", "--from", "end"]).len(), 0);
    assert_eq!(inspect(&world, &["orders", "-e", "-p", "1", "--from", "-1"]).len(), 1);
    let one = inspect(&world, &["orders", "--at", "2/0"]);
    assert_eq!((one.len(), &one[0]["partition"], &one[0]["offset"]), (1, &2.into(), &0.into()));

    // What nodes say: signed by each of them.
    let seen = inspect(&world, &["notices", "-e"]);
    let receipts = of(&seen, "receipts");
    for node in ["a", "b", "c"] {
        let of_node = receipts.iter().find(|one| one["by"] == node).unwrap_or_else(|| panic!("{node}: {seen:#?}"));
        assert_eq!(of_node["check"], "valid");
        assert_eq!(of_node["fields"]["listed"][0]["transaction"], sent["transaction"]);
        assert_eq!(of_node["fields"]["listed"][0]["fate"], "committed");
    }

    for (arguments, says) in [
        (vec!["inspect", "bills", "--config", NODE[1]], "it has orders"),
        (vec!["inspect", "orders"], "--config"),
        (vec!["inspect", "orders", "-p", "9", "--config", NODE[1]], "no partition 9"),
        (vec!["inspect", "orders", "--at", "0/99", "--config", NODE[1]], "not 99"),
        (vec!["inspect", "orders", "-i", "env/readers/app/reader.key", "--config", NODE[1]], "this is a reader key"),
        (vec!["inspect", "orders", "-o", "there", "--config", NODE[1]], "--identity"),
    ] {
        let output = world.run(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(says) && output.stdout.is_empty(), "{arguments:?}: {said}");
    }
}

fn shown(folder: &Path, arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealcast"));
    let output =
        command.arg("inspect").args(arguments).args(["--format", "json"]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    lines(&output.stdout).remove(0)
}

#[test]
fn files_are_told_apart_and_damaged_records_are_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let core = crate::segments::core(&crate::segments::web(), 1, Profile::coded(3));
    let stripe = crate::segments::split(core, &crate::segments::web(), &crate::segments::sealed(1000, 1)).remove(0);
    let record = stripe.segments[0].record.clone();
    fs::write(at.join("whole"), &record).unwrap();
    let seen = shown(at, &["whole"]);
    assert_eq!((&seen["kind"], &seen["fields"]["shard_index"]), (&"segment".into(), &0.into()));
    assert!(seen["check"].as_str().unwrap().starts_with("valid"), "{seen}");
    // Each of these bytes is covered by something: the header by its signature, the shard by its proof.
    for (byte, says) in [(70, "signature"), (record.len() - 1, "proof")] {
        let mut damaged = record.to_vec();
        damaged[byte] ^= 1;
        fs::write(at.join("damaged"), damaged).unwrap();
        let seen = shown(at, &["damaged"]);
        assert!(seen["check"].as_str().unwrap().contains(says), "{byte}: {seen}");
    }
    fs::write(at.join("short"), &record[..record.len() - 1]).unwrap();
    let check = shown(at, &["short"])["check"].as_str().unwrap().to_owned();
    assert!(!check.starts_with("valid"), "{check}");

    let sealcast = |arguments: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealcast"));
        let output = command.args(arguments.split(' ')).current_dir(at).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let init = "init shop --kafka localhost:9092 --nodes a,b,c --destination orders --sender web --reader app";
    assert_eq!(sealcast(init).0, Some(0));
    // A key: its public part alone, and only if nobody else can read it.
    let key = fs::read_to_string(at.join("shop/senders/web/sender.key")).unwrap();
    let (code, text, _) = sealcast("inspect shop/senders/web/sender.key");
    assert!(code == Some(0) && text.contains("kind = \"sender\"") && text.contains("signing"), "{text}");
    assert!(!text.contains(&key.lines().last().unwrap()[30..]), "{text}");
    let (code, text, _) = sealcast("inspect shop/nodes/a/destinations/orders.keyring");
    assert!(code == Some(0) && text.contains("sealed to node a") && !text.contains("BEGIN"), "{text}");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(at.join("shop/senders/web/sender.key"), mode).unwrap();
    let (code, text, said) = sealcast("inspect shop/senders/web/sender.key");
    assert!(code == Some(2) && text.is_empty() && said.contains("chmod go-rwx"), "{said}");

    // A directory: signed, not checked without the operator's key, forged, a draft.
    let signature = |arguments: &str| {
        let (code, text, said) = sealcast(arguments);
        assert_eq!(code, Some(0), "{said}");
        text.lines().find(|line| line.starts_with("signature")).unwrap().to_owned()
    };
    let config = "--config shop/readers/app/client.toml";
    assert!(signature("inspect shop/operator/directory").contains("not checked"));
    assert!(signature(&format!("inspect shop/operator/directory {config}")).contains("valid, of operator"));
    assert!(signature("inspect shop/operator/directory.toml").contains("a draft"));
    let text = fs::read_to_string(at.join("shop/operator/directory")).unwrap();
    fs::write(at.join("forged"), text.replace("127.0.0.1:7402", "127.0.0.1:9999")).unwrap();
    assert!(signature(&format!("inspect forged {config}")).contains("not the operator's"));
    fs::write(at.join("text"), "just a text").unwrap();
    for (file, says) in [("text", "is neither a key"), ("shop/nodes/a/node.toml", "sealcast config check")] {
        let (code, text, said) = sealcast(&format!("inspect {file}"));
        assert!(code == Some(2) && text.is_empty() && said.contains(says), "{file}: {said}");
    }
    // A key of more than a kilobyte is no wall of digits for people, and whole for programs.
    let (code, text, said) = sealcast("inspect shop/operator/destinations/orders.key");
    assert!(code == Some(0) && text.contains(".. (1216 bytes: `sealcast keys show`"), "{said}{text}");
    let public = &shown(at, &["shop/operator/destinations/orders.key"])["key"];
    assert!(public.to_string().len() > 2 * 1216, "{public}");
}
