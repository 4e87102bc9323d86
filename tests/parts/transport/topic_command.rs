//! `sealcast topic init` and `topic check`, as a person runs them.

use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

use crate::common::kafka::shared;

/// Runs `sealcast` with arguments split at spaces; gives exit code, stdout and stderr.
fn sealcast(folder: &Path, arguments: &str) -> (i32, String, String) {
    let mut command = Command::cargo_bin("sealcast").expect("the binary");
    let output = command.current_dir(folder).args(arguments.split(' ')).output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
}

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// An environment of a name that no other run has.
fn environment(folder: &Path, transport: &str) -> String {
    let mut salt = [0; 5];
    getrandom::fill(&mut salt).expect("randomness");
    let name = format!("e{}", data_encoding::HEXLOWER.encode(&salt));
    let init = format!("init {name} {transport} --nodes a,b,c --destination orders --sender web -o env");
    let (code, _, errors) = sealcast(folder, &init);
    assert_eq!(code, 0, "{errors}");
    name
}

#[test]
fn r18_topics_are_made_once_and_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let brokers = shared();
    // The configuration names nobody; the flag names the cluster.
    let name = environment(folder.path(), "--kafka 127.0.0.1:1");
    let with = |action: &str| format!("topic {action} --config env/nodes/a/node.toml -b {brokers} --format json");

    let (code, out, errors) = sealcast(folder.path(), &with("check"));
    assert_eq!(code, 1, "{errors}");
    let found = objects(&out);
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|topic| topic["mismatches"][0]["what"] == "topic"), "{out}");

    let (code, out, errors) = sealcast(folder.path(), &with("init"));
    assert_eq!(code, 0, "{errors}{out}");
    let made = objects(&out);
    let names: Vec<_> = made.iter().map(|topic| topic["topic"].as_str().expect("a name")).collect();
    assert_eq!(names, [format!("sealcast.{name}.orders.segments"), format!("sealcast.{name}.notices")]);
    assert!(made.iter().all(|topic| topic["outcome"] == "created" && topic["retention"] == "14d"), "{out}");

    let (code, out, errors) = sealcast(folder.path(), &with("init"));
    assert_eq!(code, 0, "{errors}{out}");
    assert!(objects(&out).iter().all(|topic| topic["outcome"] == "exists"), "{out}");

    let (code, out, errors) = sealcast(folder.path(), &with("check"));
    assert_eq!(code, 0, "{errors}{out}");
    let partitions = objects(&out)[0]["partitions"].as_array().expect("partitions").clone();
    assert!(partitions.len() >= 3 && partitions.iter().all(|known| known["copies"] == 1 && known["up"] == true));

    // A longer outage needs a longer retention, and the table says how to get it.
    let longer = format!("topic check --config env/nodes/a/node.toml -b {brokers} --outage 30d");
    let (code, out, _) = sealcast(folder.path(), &longer);
    assert_eq!(code, 1);
    assert!(out.contains("retention.ms") && out.contains("--add-config retention.ms=3196800000"), "{out}");
}

#[test]
fn a_cluster_that_does_not_answer_is_unavailable() {
    let folder = tempfile::tempdir().expect("a folder");
    environment(folder.path(), "--kafka 127.0.0.1:1");
    let (code, _, errors) = sealcast(folder.path(), "topic init --config env/nodes/a/node.toml");
    assert_eq!(code, 5, "{errors}");
    let refused = "topic init --config env/nodes/a/node.toml -X acks=0";
    let (code, _, errors) = sealcast(folder.path(), refused);
    assert_eq!(code, 2, "{errors}");
    assert!(errors.contains("acks"), "{errors}");
}

#[test]
fn the_embedded_transport_has_topics_too() {
    let folder = tempfile::tempdir().expect("a folder");
    environment(folder.path(), "--embedded");
    let with = |action: &str| format!("topic {action} --config env/nodes/a/node.toml");
    assert_eq!(sealcast(folder.path(), &with("check")).0, 1);
    let (code, out, errors) = sealcast(folder.path(), &with("init"));
    assert_eq!(code, 0, "{errors}{out}");
    let (code, out, errors) = sealcast(folder.path(), &with("check"));
    assert_eq!(code, 0, "{errors}{out}");
    assert_eq!(out.matches("all right").count(), 2, "{out}");
}

#[test]
fn a_plan_says_what_topics_survive_cost_and_need() {
    let folder = tempfile::tempdir().expect("a folder");
    let brokers = shared();
    let name = environment(folder.path(), &format!("--kafka {brokers}"));
    let asked = "topic plan --config env/nodes/a/node.toml --rate 10 --size 1MiB";
    let (code, out, errors) = sealcast(folder.path(), &format!("{asked} --format json"));
    assert_eq!(code, 0, "{errors}");
    let plan = &objects(&out)[0];
    assert_eq!(plan["topic"], format!("sealcast.{name}.orders.segments"));
    assert_eq!((&plan["recommended"], &plan["retention"]), (&"pinned_to_each".into(), &"14d".into()));
    let partitions = plan["partitions"].as_array().expect("partitions");
    assert!(
        partitions.len() >= 3 && partitions.iter().all(|one| one["brokers"].as_array().expect("a list").len() == 1)
    );
    // 10 transactions of 1 MiB a second, a half more for parity, for 14 days.
    let whole = plan["disk"]["segments_bytes"].as_f64().expect("bytes");
    let least = 10.0 * f64::from(1 << 20) * 14.0 * 86_400.0;
    assert!((1.5..1.6).contains(&(whole / least)) || partitions.len() > 3, "{whole} {least}");
    // Nothing was made by asking.
    let (_, found, _) = sealcast(folder.path(), "topic check --config env/nodes/a/node.toml --format json");
    assert!(objects(&found).iter().all(|topic| topic["mismatches"][0]["what"] == "topic"), "{found}");

    let (code, out, errors) = sealcast(folder.path(), asked);
    assert_eq!(code, 0, "{errors}");
    let rights = format!("kafka-acls --bootstrap-server {brokers} --command-config admin.properties --add");
    for says in [
        &format!("{rights} --allow-principal User:web --operation Write --topic sealcast.{name}.orders.segments"),
        &format!("{rights} --allow-principal User:web --operation Read --topic sealcast.{name}.notices"),
        "--entity-name web --add-config producer_byte_rate=",
        "any 1 of 3: a majority decides",
        "OfflinePartitionsCount",
        "any one of ",
    ] {
        assert!(out.contains(says), "{says}\n{out}");
    }

    // Without a cluster and without a directory; and the kind that was asked for rather than the recommended one.
    let bare = "topic plan --domains 4 --nodes 5 --life 1d --outage 2d --replicated 3 --format json";
    let (code, out, errors) = sealcast(folder.path(), bare);
    assert_eq!(code, 0, "{errors}");
    let plan = &objects(&out)[0];
    assert_eq!(plan["outlook"]["layout"]["replicated"]["factor"], 3);
    assert_eq!((&plan["retention"], &plan["alerts_to_exclude"]), (&"3d".into(), &Value::Array(Vec::new())));
    let replicas: Vec<_> = plan["partitions"].as_array().expect("a list").iter().map(|one| &one["brokers"]).collect();
    assert_eq!(replicas[0].as_array().expect("replicas").len(), 3);
    assert!(plan["survives_nodes"].as_str().expect("words").starts_with("any 2 of 5"), "{plan}");
    assert_eq!(sealcast(folder.path(), "topic plan --rate 0").0, 2);
}
