//! `sealcast bench` as a person runs it: on an environment of its own, and on real nodes over real brokers.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::kafka::shared;
use crate::common::world::{World, lines};
use serde_json::Value;

const STAGES: [&str; 6] = ["sealed", "accepted", "delivered", "staged", "committed", "complete"];

/// The command in a folder, with the folder for temporary files in it.
fn bench(folder: &Path, arguments: &[&str]) -> Command {
    let temporary = folder.join("temporary");
    fs::create_dir_all(&temporary).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealcast"));
    command.current_dir(folder).env_remove("SEALCAST_LOG").env_remove("SEALCAST_CONFIG").env("TMPDIR", temporary);
    command.arg("bench").args(arguments).args(["--format", "json"]).stdin(Stdio::null());
    command
}

fn stage<'a>(objects: &'a [Value], name: &str) -> &'a Value {
    objects.iter().find(|object| object["stage"] == name).unwrap_or_else(|| panic!("no stage {name}: {objects:?}"))
}

fn summary(objects: &[Value]) -> &Value {
    let last = objects.last().expect("a summary");
    assert_eq!((&last["object"], &last["v"]), (&"summary".into(), &1.into()), "{last}");
    last
}

#[test]
fn every_send_is_counted_at_every_stage() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--rate", "40", "--count", "40", "--warm-up", "250ms", "--size", "2000", "--senders", "2"];
    let output = bench(folder.path(), &[arguments.as_slice(), &["--keys", "7"]].concat()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let objects = lines(&output.stdout);
    let named: Vec<_> = objects.iter().filter_map(|object| object["stage"].as_str()).collect();
    assert_eq!(named, STAGES);
    for name in STAGES {
        let stage = stage(&objects, name);
        // What a node does not know of (a segment that was put off) it does not say; everything else is counted once.
        let least = if ["delivered", "staged"].contains(&name) { 1 } else { 40 };
        let count = stage["transactions"].as_u64().unwrap();
        assert!((least..=40).contains(&count), "{stage}");
        let times: Vec<f64> = ["p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"]
            .iter()
            .map(|field| stage[field].as_f64().unwrap())
            .collect();
        assert!(times.is_sorted() && times[0] > 0.0, "{stage}");
    }
    // Every transaction is sealed before it is committed, and committed before it is complete.
    let max = |name: &str| stage(&objects, name)["max_ms"].as_f64().unwrap();
    assert!(max("sealed") <= max("committed") && max("committed") <= max("complete"), "{objects:?}");
    let clocks: Vec<_> = objects.iter().filter(|object| object["object"] == "clock").collect();
    assert!(clocks.iter().all(|clock| clock["ahead_at_most_ms"].as_i64() >= Some(0)), "the same clock: {clocks:?}");

    let summary = summary(&objects);
    let expected = [
        ("destination", Value::from("orders")),
        ("size", 2000.into()),
        ("payload", "2000B".into()),
        ("senders", 2.into()),
        ("keys", 7.into()),
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("build", if cfg!(debug_assertions) { "debug" } else { "release" }.into()),
        ("transport", "the embedded transport, with three nodes in this process".into()),
        ("outbox", "disk".into()),
        ("warm_up", 10.into()),
        ("warm_up_sent", 10.into()),
        ("due", 40.into()),
        ("sent", 40.into()),
        ("not_sent", 0.into()),
        ("committed", 40.into()),
        ("rejected", 0.into()),
        ("expired", 0.into()),
        ("unknown", 0.into()),
        ("bytes", 80_000.into()),
        ("intended_rate", 40.0.into()),
        ("in_flight", Value::Null),
        ("ended_by", Value::Null),
    ];
    for (field, value) in expected {
        assert_eq!(summary[field], value, "{field}: {summary}");
    }
    let rate = |field: &str| summary[field].as_f64().unwrap();
    assert!(
        rate("achieved_rate") > 0.0 && rate("warm_up_rate") > 0.0 && summary["late_max_ms"].is_number(),
        "{summary}"
    );
    assert_eq!(fs::read_dir(folder.path().join("temporary")).unwrap().count(), 0, "nothing is left behind");
}

/// The tags of a page, in their order, each closed where it must be; and what stands between the tags of each name.
fn tags(page: &str) -> Vec<(String, String)> {
    let (mut open, mut found) = (Vec::<String>::new(), Vec::new());
    for part in page.split('<').skip(1) {
        let (tag, text) = part.split_once('>').unwrap_or_else(|| panic!("a tag without an end: {part}"));
        let name: String =
            tag.trim_start_matches('/').chars().take_while(|c| c.is_alphanumeric() || *c == '!').collect();
        assert!(!name.is_empty(), "{tag}");
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name.as_str()), "closes what is not open");
        } else {
            if !tag.ends_with('/') && !["!doctype", "meta"].contains(&name.as_str()) {
                open.push(name);
            }
            found.push((tag.to_owned(), text.to_owned()));
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    found
}

#[test]
fn a_closed_loop_over_two_destinations_is_drawn_on_a_page_that_needs_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let load = ["--in-flight", "6", "--count", "40", "--warm-up", "200ms", "--payload", "1KiB:3,20KiB:1"];
    let more = ["--senders", "2", "--destinations", "2", "--outbox", "memory", "--report", "bench.html"];
    let output = bench(folder.path(), &[load.as_slice(), &more].concat()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let objects = lines(&output.stdout);
    let summary = summary(&objects);
    let expected = [
        ("destination", Value::from("orders,orders-2")),
        ("size", Value::Null),
        ("payload", "1KiB:3,20KiB:1".into()),
        ("in_flight", 6.into()),
        ("intended_rate", Value::Null),
        ("due", 40.into()),
        ("sent", 40.into()),
        ("committed", 40.into()),
        ("unknown", 0.into()),
        ("behind", false.into()),
    ];
    for (field, value) in expected {
        assert_eq!(summary[field], value, "{field}: {summary}");
    }
    let sizes: Vec<_> = objects.iter().filter(|object| object["object"] == "payload").collect();
    let committed: u64 = sizes.iter().map(|size| size["committed"].as_u64().unwrap()).sum();
    let bytes: u64 =
        sizes.iter().map(|size| size["committed"].as_u64().unwrap() * size["size"].as_u64().unwrap()).sum();
    assert_eq!((sizes.len(), committed, &Value::from(bytes)), (2, 40, &summary["bytes"]), "{sizes:?}");

    let page = fs::read_to_string(folder.path().join("bench.html")).unwrap();
    assert!(page.starts_with("<!doctype html>"), "{page}");
    for outside in
        ["http:", "https:", "src=", "href=", "url(", "@import", "srcset", "<link", "<img", "<iframe", "fetch("]
    {
        assert!(!page.contains(outside), "{outside}: it loads something");
    }
    assert!(page.contains("prefers-color-scheme:dark"), "it is to be read at night, too");
    let tags = tags(&page);
    let whole =
        |wanted: &str| tags.iter().find(|(tag, _)| tag.contains(wanted)).unwrap_or_else(|| panic!("no {wanted}"));
    for plot in ["stages", "percentiles", "rates", "tails"] {
        let (tag, _) = whole(&format!("svg id=\"{plot}\""));
        assert!(tag.contains("role=\"img\"") && tag.contains(&format!("aria-labelledby=\"{plot}-title {plot}-text\"")));
        assert!(!whole(&format!("title id=\"{plot}-title\"")).1.is_empty());
        assert!(!whole(&format!("desc id=\"{plot}-text\"")).1.is_empty());
    }
    let (_, percentiles) = page.split_once("svg id=\"percentiles\"").unwrap();
    let (percentiles, _) = percentiles.split_once("</svg>").unwrap();
    let drawn = |name: &&str| percentiles.contains(&format!("<title>{name}</title>"));
    // What nodes say comes when they say it; the other stages are always there.
    for stage in STAGES {
        assert!(tags.iter().any(|(tag, text)| tag == "td" && text == stage), "{stage} is not in the table");
        let counted = objects.iter().any(|object| object["stage"] == stage && object["transactions"] != 0);
        assert_eq!(drawn(&stage), counted, "{stage}");
    }
    assert!(["sealed", "accepted", "committed", "complete"].iter().all(drawn), "{percentiles}");
    let embedded: Vec<Value> = serde_json::from_str(&whole("script").1.replace("<\\/", "</")).unwrap();
    assert_eq!(embedded.len(), objects.len());
    for (embedded, printed) in embedded.iter().zip(&objects) {
        let mut printed = printed.clone();
        printed.as_object_mut().unwrap().remove("v");
        assert_eq!(*embedded, printed, "the page says what was printed");
    }

    // A run that cannot begin leaves the page of an earlier one as it is, and no empty one.
    for (name, is_left) in [("bench.html", true), ("other.html", false)] {
        let refused =
            bench(folder.path(), &["--rate", "1000000", "--duration", "1h", "--report", name]).output().unwrap();
        assert_eq!(refused.status.code(), Some(2));
        let found = fs::read_to_string(folder.path().join(name)).ok();
        assert_eq!(found.as_ref(), is_left.then_some(&page));
    }
    let nowhere = bench(folder.path(), &["--count", "1", "--report", "no/such/folder/bench.html"]).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(1), "before anything is sent");
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("no/such/folder/bench.html"));
}

/// Exit code, objects, and what was said once sending had begun, of a run that gets Ctrl-C so long after that.
fn interrupted(mut run: Command, after: Duration) -> (Option<i32>, Vec<Value>, Vec<String>) {
    let mut running = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(running.stderr.take().unwrap()).lines();
    let sending = said.by_ref().map(Result::unwrap).find(|line| line.contains("sending 1KiB to orders"));
    assert!(sending.is_some(), "it says what it does");
    std::thread::sleep(after);
    assert!(Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap().success());
    let drained = std::thread::spawn(move || said.map(Result::unwrap).collect::<Vec<_>>());
    let output = running.wait_with_output().unwrap();
    (output.status.code(), lines(&output.stdout), drained.join().unwrap())
}

#[test]
fn a_signal_ends_it_with_what_was_measured_so_far() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--rate", "20", "--duration", "1h", "--warm-up", "0s", "--outbox", "memory"];
    let (code, objects, said) = interrupted(bench(folder.path(), &arguments), Duration::from_secs(2));
    assert_eq!(code, Some(0), "{said:?}");
    let summary = summary(&objects);
    assert_eq!(summary["ended_by"], "Ctrl-C", "{summary}");
    let number = |field: &str| summary[field].as_u64().unwrap();
    assert!(number("sent") > 0 && number("due") < 72_000, "{summary}");
    assert_eq!((number("committed"), number("unknown")), (number("sent"), 0), "what was in flight is waited for");
    assert_eq!(number("due"), number("sent") + number("not_sent"), "{summary}");
    assert_eq!(fs::read_dir(folder.path().join("temporary")).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_run_that_ends_in_its_warm_up_measured_nothing_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("bench.html");
    fs::write(&page, "of an earlier run").unwrap();
    let arguments =
        ["--rate", "20", "--duration", "1s", "--warm-up", "1h", "--outbox", "memory", "--report", "bench.html"];
    let (code, objects, said) = interrupted(bench(folder.path(), &arguments), Duration::from_secs(1));
    assert_eq!(code, Some(1), "{said:?}");
    assert!(said.iter().any(|line| line.contains("waiting for the fate of")), "{said:?}");
    assert_eq!(fs::read_to_string(&page).unwrap(), "of an earlier run", "a page of nothing replaces none");
    let summary = summary(&objects);
    assert_eq!((&summary["sent"], &summary["warm_up_sent"]), (&0.into(), &summary["warm_up"]), "{summary}");
    assert!(summary["warm_up_sent"].as_u64() > Some(0) && summary["warm_up_rate"].as_f64() > Some(0.0), "{summary}");
}

#[test]
fn on_real_nodes_what_is_not_known_in_time_is_said() {
    let mut world = World::new(&shared());
    let config = ["orders", "--config", "env/senders/web/client.toml", "--rate", "20", "--warm-up", "0s"];
    let run = |world: &World, more: &[&str]| {
        let output = bench(world.path(), &[config.as_slice(), more].concat()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), lines(&output.stdout), said)
    };
    // No node runs: the brokers take it, and nobody signs it.
    let (code, objects, said) = run(&world, &["--count", "5", "--timeout", "2s"]);
    assert_eq!(code, Some(3), "{said}");
    let count = |objects: &[Value], name: &str| stage(objects, name)["transactions"].as_u64().unwrap();
    assert_eq!((count(&objects, "sealed"), count(&objects, "committed")), (5, 0), "{objects:?}");
    assert_eq!((&summary(&objects)["unknown"], &summary(&objects)["committed"]), (&5.into(), &0.into()));
    assert!(summary(&objects)["transport"].as_str().unwrap().starts_with("Kafka at "), "{objects:?}");
    let mix = ["--count", "6", "--timeout", "2s", "--payload", "1KiB:2,2KiB:1"];
    let (code, objects, said) = run(&world, &mix);
    assert_eq!(code, Some(3), "{said}");
    let sizes: Vec<_> = objects.iter().filter(|object| object["object"] == "payload").collect();
    let open: Vec<_> = sizes.iter().map(|size| (size["size"].as_u64(), size["open"].as_u64())).collect();
    assert_eq!(open, [(Some(1024), Some(4)), (Some(2048), Some(2))], "none of them has a time: {sizes:?}");
    assert!(sizes.iter().all(|size| size["p50_ms"].is_null()), "{sizes:?}");

    world.start_all();
    let (code, objects, said) =
        run(&world, &["--count", "20", "--size", "100KiB", "--senders", "2", "--timeout", "90s"]);
    assert_eq!(code, Some(0), "{said}\n{}", world.logs());
    assert_eq!(STAGES.map(|name| count(&objects, name) > 0), [true; 6], "{objects:?}");
    assert_eq!((&summary(&objects)["committed"], &summary(&objects)["bytes"]), (&20.into(), &(20 * 102_400).into()));
    world.settle(20);
    // Its outboxes are gone, and the sender's own was never touched.
    let left: Vec<_> =
        fs::read_dir(world.path().join("env/senders/web")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("bench") && name != "outbox"), "{left:?}");

    for (arguments, says) in [
        (
            ["nowhere", "--config", "env/senders/web/client.toml"].as_slice(),
            "may not send to nowhere: it may to orders",
        ),
        (&["--config", "env/readers/app/client.toml"], "it names no sender"),
        (&["--rate", "0"], "sends a second"),
        (&["--output", "json"], "'--output'"),
        (&["--size", "1GiB"], "at most 256MiB"),
        (&["--payload", "1KiB:1,1GiB:1"], "at most 256MiB"),
        (&["--payload", "1KiB:0"], "a weight from 1"),
        (&["--in-flight", "1", "--senders", "2"], "at least one for each"),
        (&["--in-flight", "1", "--rate", "5"], "cannot be used with"),
        (&["--rate", "1000000", "--duration", "1h"], "at most 100000000"),
    ] {
        let output = bench(world.path(), arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(says) && output.stdout.is_empty(), "{arguments:?}: {said}");
    }
}
