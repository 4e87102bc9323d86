//! What people watch a running system by: docs/operations.md lists every metric as the code describes it, the dashboard and the
//! alert rules name only what exists.

use std::collections::BTreeSet;

use saphyr_parser::{Event, Parser};
use sealcast::telemetry::names::{ALL, Metric};
use serde_json::Value;

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
