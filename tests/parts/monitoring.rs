//! What people watch a running system by: docs/operations.md lists every metric as the code describes it, the dashboard and the
//! alert rules name only what exists, and nodes and clients expose what is described, with those labels.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use saphyr_parser::{Event, Parser};
use sealcast::client::reader::{Freshness, Reader, Subscription};
use sealcast::client::{Client, Disbelief, Options, Transaction, WaitError};
use sealcast::config::{ClientConfig, Sources};
use sealcast::core::gather::{DeferReason, GapReason, SkipReason};
use sealcast::core::id::{DestinationName, Position, RefusalReason, Rejection};
use sealcast::rpc::access::Denial;
use sealcast::telemetry::labels::{AppendFailure, FetchOutcome, QueryOutcome};
use sealcast::telemetry::names::{ALL, Metric};
use sealcast::telemetry::{alarms, recorder};
use serde_json::Value;

use crate::shop::{LIMIT, Shop, name};

fn read(path: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The row that docs/operations.md has for a metric.
fn row(metric: &Metric) -> String {
    let label = |label: &&str| match (label.split_once('|'), label.strip_suffix('?')) {
        (Some((one, other)), _) => format!("`{one}` or `{other}`"),
        (_, Some(label)) => format!("`{label}` where it has one"),
        _ => format!("`{label}`"),
    };
    let labels: Vec<_> = metric.labels.iter().map(label).collect();
    format!("| `{}` | {} | {} | {} |", metric.name, metric.kind, labels.join(", "), metric.text)
}

#[test]
fn the_documentation_lists_every_metric_as_it_is() {
    let text = read("docs/operations.md");
    let listed: BTreeSet<&str> = text
        .lines()
        .filter(|line| {
            line.starts_with("| `sealcast_")
                && [" counter ", " gauge ", " histogram "].iter().any(|kind| line.contains(kind))
        })
        .collect();
    let rows: BTreeSet<String> = ALL.iter().map(row).collect();
    let missing: Vec<_> = rows.iter().filter(|row| !listed.contains(row.as_str())).collect();
    assert!(missing.is_empty(), "docs/operations.md lacks these rows:\n{missing:#?}");
    let gone: Vec<_> = listed.iter().filter(|line| !rows.contains(**line)).collect();
    assert!(gone.is_empty(), "docs/operations.md describes what is not there, or not so:\n{gone:#?}");
    // What it names elsewhere exists too.
    for name in names_in(&text) {
        let named = metric(&name).is_some() || ALL.iter().any(|metric| metric.name == name);
        assert!(named, "docs/operations.md names {name}");
    }
}

/// Every word of an expression that looks like a metric of ours.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("sealcast_")).map(str::to_owned).collect()
}

/// The metric that a series of this name belongs to: those of a histogram have endings of their own, and never its bare name.
fn metric(series: &str) -> Option<&'static Metric> {
    let of = |name: &str, histogram: bool| {
        ALL.iter().find(move |metric| metric.name == name && (metric.kind == "histogram") == histogram)
    };
    let ends = ["_bucket", "_sum", "_count"].iter().filter_map(|end| series.strip_suffix(end));
    of(series, false).or_else(|| ends.filter_map(|base| of(base, true)).next())
}

/// Labels that an expression groups by or selects on.
fn labels_in(expression: &str) -> BTreeSet<String> {
    // Values in quotes may hold anything but quotes.
    let bare: String = expression.split('"').step_by(2).collect();
    let mut found = BTreeSet::new();
    for (open, close) in [("by (", ')'), ("on (", ')'), ("{", '}')] {
        for (at, _) in bare.match_indices(open) {
            let inside = bare[at + open.len()..].split(close).next().unwrap();
            let labels = inside.split(',').map(|part| part.trim().trim_end_matches(['=', '~', '!']).to_owned());
            found.extend(labels.filter(|label| !label.is_empty()));
        }
    }
    found
}

/// Checks an expression; gives the metrics in it.
fn check(place: &str, expression: &str) -> BTreeSet<&'static str> {
    let mut metrics = BTreeSet::new();
    let mut labels = BTreeSet::from(["le".to_owned()]);
    for name in names_in(expression) {
        let metric = metric(&name).unwrap_or_else(|| panic!("{place}: there is no metric {name}: {expression}"));
        metrics.insert(metric.name);
        labels.extend(metric.labels.iter().flat_map(|label| label.trim_end_matches('?').split('|')).map(str::to_owned));
    }
    if metrics.is_empty() {
        // Prometheus itself says whether it could read a page.
        assert!(expression.starts_with("up{job=\"sealcast\"}"), "{place}: {expression}");
        return metrics;
    }
    let strange: Vec<_> = labels_in(expression).into_iter().filter(|label| !labels.contains(label)).collect();
    assert!(strange.is_empty(), "{place}: no metric in it has {strange:?}: {expression}");
    let balance = |open: char, close: char| expression.matches(open).count() == expression.matches(close).count();
    assert!(balance('(', ')') && balance('{', '}') && balance('[', ']'), "{place}: {expression}");
    metrics
}

/// The next value of a YAML document; every scalar is a string.
fn value<'a>(events: &mut impl Iterator<Item = Event<'a>>) -> Option<Value> {
    Some(match events.next().expect("a value") {
        Event::Scalar(text, ..) => Value::from(text.as_ref()),
        Event::SequenceStart(..) => Value::Array(std::iter::from_fn(|| value(events)).collect()),
        Event::MappingStart(..) => {
            let mut map = serde_json::Map::new();
            while let Some(name) = value(events) {
                let name = name.as_str().expect("a name").to_owned();
                assert!(map.insert(name.clone(), value(events).expect("a value")).is_none(), "{name} stands twice");
            }
            Value::Object(map)
        }
        Event::SequenceEnd | Event::MappingEnd => return None,
        other => panic!("alert rules are plain: {other:?}"),
    })
}

fn yaml(text: &str) -> Value {
    let events = Parser::new_from_str(text).map(|event| event.expect("YAML").0);
    let of_value = |event: &Event<'_>| !matches!(event, Event::StreamStart | Event::DocumentStart(_));
    value(&mut events.filter(of_value)).expect("a document")
}

#[test]
fn alert_rules_name_only_what_exists() {
    let rules = yaml(&read("docs/prometheus/alerts.yml"));
    let field = |node: &Value, name: &str| -> String {
        node[name].as_str().unwrap_or_else(|| panic!("no {name} in {node}")).to_owned()
    };
    let mut alerts = BTreeSet::new();
    for group in rules["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            let name = field(rule, "alert");
            check(&name, &field(rule, "expr"));
            let waits = field(rule, "for");
            assert!(
                waits.ends_with(['s', 'm', 'h']) && waits[..waits.len() - 1].parse::<u32>().is_ok(),
                "{name}: {waits}"
            );
            let severity = field(&rule["labels"], "severity");
            assert!(["page", "ticket"].contains(&severity.as_str()), "{name}: {severity}");
            let annotations = &rule["annotations"];
            assert!(
                !field(annotations, "summary").is_empty() && !field(annotations, "description").is_empty(),
                "{name}"
            );
            assert!(alerts.insert(name.clone()), "{name} stands twice");
        }
    }
    let operations = read("docs/operations.md");
    let told = operations.lines().filter_map(|line| line.strip_prefix("| `Sealcast")?.split('`').next());
    let told: BTreeSet<String> = told.map(|name| format!("Sealcast{name}")).collect();
    assert_eq!(alerts, told, "docs/operations.md tells of each alert");
}

#[test]
fn the_dashboard_shows_every_metric_and_only_what_exists() {
    let dashboard: Value = serde_json::from_str(&read("docs/grafana/sealcast.json")).expect("JSON");
    let mut shown = BTreeSet::new();
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    let mut rows = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        let at = &panel["gridPos"];
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id stands twice");
        assert!(places.insert((at["y"].as_u64().unwrap(), at["x"].as_u64().unwrap())), "{title}: lies on another");
        assert!(at["x"].as_u64().unwrap() + at["w"].as_u64().unwrap() <= 24, "{title}");
        if panel["type"] == "row" {
            rows.push(title);
            continue;
        }
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            shown.extend(check(title, target["expr"].as_str().unwrap()));
        }
    }
    assert!(rows.len() >= 8, "rows by stage: {rows:?}");
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "destination", "node", "sender"]);
    for variable in &variables[1..] {
        let definition = variable["definition"].as_str().unwrap();
        let metric = metric(names_in(definition).first().unwrap()).expect("a metric that exists");
        assert!(metric.labels.contains(&variable["name"].as_str().unwrap()), "{definition}");
    }
    let hidden: Vec<_> = ALL.iter().map(|metric| metric.name).filter(|name| !shown.contains(name)).collect();
    assert!(hidden.is_empty(), "the dashboard does not show {hidden:?}");
}

#[test]
fn expressions_are_read_as_they_are_meant() {
    let labels = labels_in("sum by (node, le) (rate(x_bucket{sender=~\"$sender\",fate!=\"a{b}, c\"}[5m]))");
    assert_eq!(labels, ["fate", "le", "node", "sender"].map(str::to_owned).into());
    assert_eq!(metric("sealcast_stage_seconds_bucket").unwrap().name, "sealcast_stage_seconds");
    assert_eq!((metric("sealcast_stage_seconds"), metric("sealcast_stage_second_sum")), (None, None));
    assert_eq!(metric("sealcast_raft_term_bucket"), None);
}

/// The first column of the rows of a section: what stands between backticks there.
fn told(text: &str, heading: &str) -> Vec<String> {
    let section = text.split_once(heading).unwrap_or_else(|| panic!("docs/operations.md has no {heading}")).1;
    let section = section.split("\n#").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split(" | ").collect();
        assert!(cells.iter().all(|cell| !cell.trim_matches([' ', '|']).is_empty()), "{heading}: an empty cell: {row}");
        cells[0].to_owned()
    })
    .collect()
}

/// What a closed list has, in its order.
macro_rules! words {
    ($list:ty) => {
        <$list>::ALL.iter().map(|reason| reason.word().to_owned()).collect::<Vec<_>>()
    };
}

#[test]
fn every_reason_is_told_with_what_it_means_and_what_to_do() {
    let text = read("docs/operations.md");
    let lists = [
        ("Records that are passed over", "sealcast_gather_refused_segments_total", words!(SkipReason)),
        ("Records that are put off", "sealcast_gather_deferred_records_total", words!(DeferReason)),
        ("Parcels that are refused", "sealcast_stage_refusals_total", words!(RefusalReason)),
        ("Partitions that lost records", "sealcast_collect_gaps_total", words!(GapReason)),
        ("Why a transaction is rejected", "sealcast_decide_transactions_total", words!(Rejection)),
        ("What a sender does not believe", "sealcast_client_receipts_refused_total", words!(Disbelief)),
        ("Why a call is denied", "sealcast_rpc_denied_calls_total", words!(Denial)),
    ];
    for (heading, counted, list) in lists {
        let told: BTreeSet<String> = told(&text, &format!("\n### {heading}\n"))
            .iter()
            .map(|cell| cell.trim_end_matches('`').to_owned())
            .collect();
        assert_eq!(told, list.into_iter().collect(), "docs/operations.md, {heading}, and the list in the code");
        let metric = metric(counted).expect("it is counted");
        assert!(metric.labels.contains(&"reason"), "{counted} has the reason");
    }
}

#[test]
fn every_value_of_a_label_that_has_a_list_stands_with_its_metric() {
    let lists = [
        ("sealcast_transport_failed_records_total", "reason", words!(AppendFailure)),
        ("sealcast_hold_fetched_bodies_total", "outcome", words!(FetchOutcome)),
        ("sealcast_receipt_queries_total", "outcome", words!(QueryOutcome)),
    ];
    for (name, label, list) in lists {
        let metric = metric(name).expect("it is counted");
        assert!(metric.labels.contains(&label), "{name} has {label}");
        let end = format!("label {label}: {}.", list.join(", "));
        assert!(metric.text.ends_with(&end), "{name}: {} does not end with: {end}", metric.text);
    }
}

#[test]
fn every_alarm_is_told_and_how_it_ends() {
    let told: BTreeSet<String> = told(&read("docs/operations.md"), "\n## Alarms\n").into_iter().collect();
    let row = |alarm: &alarms::Alarm| {
        let acknowledged = if alarm.needs_a_person { " *" } else { "" };
        format!("{}{}`{acknowledged}", alarm.name, alarm.of)
    };
    assert_eq!(told, alarms::ALL.iter().map(row).collect());
    for alarm in alarms::ALL {
        assert_eq!(
            alarms::needs_a_person(&format!("{}{}", alarm.name, alarm.of)),
            alarm.needs_a_person,
            "{}",
            alarm.name
        );
    }
    assert!(!alarms::needs_a_person("no-such-alarm"));
    // Nothing raises one that is not in the list.
    let own: Vec<_> = sources("src").into_iter().filter(|path| !path.ends_with("telemetry/alarms.rs")).collect();
    for path in own {
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        for literal in [".raise(\"", "ALARM: &str = \"", ".raise(&format!(\""] {
            let at = text.find(literal).map(|at| text[at..].lines().next().unwrap_or_default().to_owned());
            let listed = at.as_ref().is_none_or(|line| line.contains("\"{}"));
            assert!(listed, "{}: an alarm that telemetry::alarms does not list: {at:?}", path.display());
        }
    }
}

#[test]
fn every_log_line_that_is_told_of_is_written() {
    let text = read("docs/operations.md");
    let table = text.split_once("\n## Reasons\n").unwrap().1.split("\n###").next().unwrap();
    let sources: String = sources("src").iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let mut lines = 0;
    for row in table.lines().filter(|line| line.starts_with("| ")).skip(2) {
        let cell = row.split(" | ").nth(2).expect("three columns");
        for said in cell.split('`').skip(1).step_by(2).filter(|said| !said.starts_with("sealcast ")) {
            assert!(sources.contains(&format!("\"{said}")), "no line of the log begins with: {said}");
            lines += 1;
        }
    }
    assert!(lines >= 13, "{lines} lines of the log are told of");
}

/// All Rust files below a folder of the repository.
fn sources(folder: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path),
            }
        }
    }
    found.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    found
}

/// The labels of every series on a page of metrics, without those that scraping adds, and their values.
fn series(text: &str) -> BTreeMap<String, BTreeSet<Vec<(String, String)>>> {
    let mut found: BTreeMap<String, BTreeSet<Vec<(String, String)>>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
        let mut labels = Vec::new();
        if let Some(rest) = rest.strip_prefix('{') {
            // Values of these labels have neither quotes nor commas in them.
            let inside = rest.rsplit_once('}').unwrap().0;
            let parts = inside.strip_suffix('"').unwrap().split("\",").map(|part| part.split_once("=\"").unwrap());
            labels.extend(parts.map(|(label, value)| (label.to_owned(), value.to_owned())));
        }
        labels.retain(|(label, _)| label != "le");
        labels.sort();
        found.entry(name.to_owned()).or_default().insert(labels);
    }
    found
}

/// Whether a series has the labels that its metric is described with, and no other.
fn has_its_labels(metric: &Metric, labels: &[(String, String)]) -> bool {
    let mut rest: BTreeSet<&str> = labels.iter().map(|(label, _)| label.as_str()).collect();
    let slots = metric.labels.iter().all(|slot| {
        let names = slot.trim_end_matches('?').split('|');
        let here = names.filter(|name| rest.remove(name)).count();
        here == 1 || (here == 0 && slot.ends_with('?'))
    });
    slots && rest.is_empty()
}

/// What happens only when something goes wrong is not there in a run in which all goes well.
const SELDOM: [&str; 18] = [
    "sealcast_alarm",
    "sealcast_client_receipts_refused_total",
    "sealcast_client_segments_again_total",
    "sealcast_client_submissions_given_back_total",
    "sealcast_collect_gaps_total",
    "sealcast_decide_void_parcels_total",
    "sealcast_gather_abandoned_parcels_total",
    "sealcast_gather_deferred_records_total",
    "sealcast_gather_equivocations_total",
    "sealcast_gather_refused_segments_total",
    "sealcast_gather_stripes_recovered_total",
    "sealcast_hold_fetched_bodies_total",
    "sealcast_hold_fetched_bytes_total",
    "sealcast_hold_seconds",
    "sealcast_receipt_queries_total",
    "sealcast_rpc_denied_calls_total",
    "sealcast_stage_refusals_total",
    "sealcast_transport_failed_records_total",
];

/// A page is of the whole process, and other tests' parts measure without saying whose they are: this one has its own.
#[test]
fn nodes_and_clients_expose_what_is_described() {
    let alone = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "monitoring::alone_nodes_and_clients_expose_what_is_described", "--ignored", "--nocapture"])
        .output()
        .expect("it runs");
    let said = [alone.stdout, alone.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(alone.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the test before this one runs it, in a process of its own"]
async fn alone_nodes_and_clients_expose_what_is_described() {
    let recorded = recorder::install().unwrap();
    let shop = Shop::with_nodes_for(&["exposed"]).await;
    let sender = ClientConfig::load(&Sources::file(&shop.written.senders[&name("web")])).unwrap();
    let mut options = Options::from_config(&sender, shop.seams.clone()).unwrap();
    options.outbox.folder = None;
    let client = Client::start(shop.transport.clone(), options).await.unwrap();
    let handle = client.submit("exposed", Transaction::new(vec![7; 100_000]).key("k")).await.unwrap();
    tokio::time::timeout(LIMIT, handle.complete()).await.unwrap().unwrap();
    // It expects a new key, which this one is not any more.
    let lost = Transaction::new("too late").key("k").expected_version(Position::default());
    let lost = client.submit("exposed", lost).await.unwrap();
    let outcome = tokio::time::timeout(LIMIT, lost.committed()).await.unwrap();
    assert!(matches!(outcome, Err(WaitError::Rejected(Rejection::Conflict))), "{outcome:?}");

    let reader = ClientConfig::load(&Sources::file(&shop.written.readers[&name("app")])).unwrap();
    let reader = Reader::from_config(&reader, &shop.seams).unwrap();
    let destination: DestinationName = name("exposed");
    let mut feed = reader.get(handle.ticket().transaction, Some(&destination), Freshness::default()).await.unwrap();
    assert!(feed.transaction(1 << 20).await.unwrap().is_some());
    let mut feed = reader.subscribe(&destination, Subscription::default().until_end()).await.unwrap();
    while feed.transaction(1 << 20).await.unwrap().is_some() {}

    let exposing = async {
        loop {
            let found = series(&recorded.text());
            let seen: BTreeSet<&str> = found.keys().filter_map(|name| metric(name)).map(|metric| metric.name).collect();
            let missing: Vec<_> = ALL
                .iter()
                .map(|metric| metric.name)
                .filter(|name| !seen.contains(name) && !SELDOM.contains(name))
                .collect();
            if missing.is_empty() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let found = tokio::time::timeout(LIMIT, exposing).await.expect("all that is described is exposed");
    for (name, all) in &found {
        let metric = metric(name).unwrap_or_else(|| panic!("{name} is exposed and not described"));
        for labels in all {
            assert!(has_its_labels(metric, labels), "{name} has {labels:?}, and is described with {:?}", metric.labels);
        }
    }
    // A rejection is counted with its reason, where it is decided and where it is heard.
    let rejected = |metric: &str, word: &str| {
        let pair = |label: &str, value: &str| (label.to_owned(), value.to_owned());
        let wanted = [pair(word, "rejected"), pair("reason", "conflict")];
        assert!(found[metric].iter().any(|labels| wanted.iter().all(|pair| labels.contains(pair))), "{metric}");
    };
    rejected("sealcast_decide_transactions_total", "fate");
    rejected("sealcast_client_transactions_total", "stage");
    client.close().await;
    shop.shut().await;
}
