//! What is measured is documented: the table of metrics, the proxy and the dashboard name the same families.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support::*;

const PAGE: &str = include_str!("../docs/metrics.md");
const DASHBOARD: &str = include_str!("../examples/grafana/vision-proxy.json");
/// How the names of families begin.
const FAMILIES: [&str; 3] = ["vision_proxy_", "gen_ai_", "process_"];
/// Labels that Prometheus adds to whatever it scrapes.
const SCRAPED: [&str; 2] = ["instance", "job"];

/// A row of the table.
struct Row {
    kind: &'static str,
    labels: BTreeSet<&'static str>,
    unit: &'static str,
    meaning: &'static str,
}

/// The table, by the name in its first column.
fn table() -> BTreeMap<&'static str, Row> {
    let is_row = |line: &&str| FAMILIES.iter().any(|own| line.strip_prefix("| `").is_some_and(|l| l.starts_with(own)));
    let rows = PAGE.lines().filter(is_row);
    let row = |line: &'static str| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let &[name, kind, labels, unit, meaning] = cells.as_slice() else { panic!("not five columns: {line}") };
        let labels = labels.split(", ").filter(|label| !label.is_empty()).collect();
        (name.trim_matches('`'), Row { kind, labels, unit, meaning })
    };
    let table: BTreeMap<_, _> = rows.clone().map(row).collect();
    assert_eq!(table.len(), rows.count(), "a family has one row");
    table
}

/// A family of the table, by its own name or that of one of its samples.
fn family<'a>(table: &'a BTreeMap<&str, Row>, name: &str) -> Option<&'a Row> {
    let of_histogram = || {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix))?;
        table.get(family).filter(|row| row.kind == "histogram")
    };
    table.get(name).filter(|row| row.kind != "histogram").or_else(of_histogram)
}

/// A proxy that has met everything it counts: answers, a wait in line, a plugin file it refused, TLS on both sides.
async fn experienced() -> (Proxy, (Backend, Folder)) {
    let (authority, folder) = (Authority::named("a"), Folder::new());
    let table = authority.certify(&[LOOPBACK]).table(&folder);
    // Nobody listens there, and a backend that is down has its metrics too.
    let far = "[[backends]]\nname = \"far\"\nurl = \"https://127.0.0.1:9\"\ntls = { insecure = true }\n";
    let (mut proxy, [backend]) = proxied(&format!("{table}{far}"), [Setup::named("a").vllm().slots(1)]).await;
    proxy.client = Client::https(proxy.listen, authority.client(None));
    let gate = Gate::closed();
    backend.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
    let (held, waiting) = (proxy.client.begin_chat(), proxy.client.begin_chat());
    proxy.queues(1).await;
    gate.open();
    for pending in [held, waiting] {
        pending.reply().await.ok();
    }
    let usage =
        serde_json::json!({"model": NATIVE, "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}});
    backend.always(Answer::stream().event(&delta(NATIVE, "one")).event(&usage).done());
    proxy.client.stream().await.rest().await;
    proxy.falls_idle().await;
    proxy.write_plugin("broken", b"no component");
    let refused = [("plugin", "broken"), ("result", "refused")];
    let is_refused = async || proxy.metrics().await.value("vision_proxy_plugin_reloads_total", &refused) == Some(1.0);
    eventually("the broken plugin is refused", is_refused).await;
    (proxy, (backend, folder))
}

#[tokio::test]
async fn the_table_and_the_proxy_name_the_same_families() {
    let (proxy, _backend) = experienced().await;
    let (table, metrics) = (table(), proxy.metrics().await);
    let name_in_table = |(name, kind): (&String, &String)| match kind.as_str() {
        "counter" => format!("{name}_total"),
        _ => name.clone(),
    };
    let told: BTreeSet<_> = metrics.typed.iter().map(name_in_table).collect();
    let documented: BTreeSet<_> = table.keys().map(|name| (*name).to_owned()).collect();
    assert_eq!(told, documented);
    for (name, row) in &table {
        let typed = name.strip_suffix("_total").unwrap_or(name);
        let told = (metrics.typed[typed].as_str(), metrics.helped[typed].as_str());
        assert_eq!(told, (row.kind, row.meaning), "{name}");
        assert_eq!(metrics.units.get(typed).map(String::as_str) == Some("seconds"), row.unit == "seconds", "{name}");
    }
}

#[tokio::test]
async fn every_sample_carries_the_labels_of_its_row() {
    let (proxy, _backend) = experienced().await;
    let (table, metrics) = (table(), proxy.metrics().await);
    let mut met = BTreeSet::new();
    for sample in &metrics.samples {
        let row = family(&table, &sample.name).unwrap_or_else(|| panic!("no row of {}", sample.name));
        let is_bucket = row.kind == "histogram" && sample.name.ends_with("_bucket");
        let expected: BTreeSet<_> = row.labels.iter().copied().chain(is_bucket.then_some("le")).collect();
        assert_eq!(sample.labels.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected, "{}", sample.name);
        met.insert(row.meaning);
    }
    let unmet: Vec<_> = table.iter().filter(|(_, row)| !met.contains(row.meaning)).map(|(name, _)| name).collect();
    assert!(unmet.is_empty(), "no sample of {unmet:?}: this test does not see their labels");
    let series = metrics.samples.iter().map(|sample| format!("{} {:?}", sample.name, sample.labels));
    assert_eq!(series.collect::<BTreeSet<_>>().len(), metrics.samples.len(), "a series stands there once");
}

#[tokio::test]
async fn the_convention_counts_what_the_proxy_counts() {
    let (proxy, _backend) = experienced().await;
    proxy.client.chat_with("nobody-serves-this").await.refused(404, "model_not_found");
    let metrics = proxy.metrics().await;
    for part in ["count", "sum", "bucket"] {
        let own = metrics.value(&format!("vision_proxy_request_seconds_{part}"), &[("model", MODEL)]);
        let name = format!("gen_ai_server_request_duration_seconds_{part}");
        assert!(own.is_some_and(|own| own > 0.0), "{part}");
        assert_eq!(metrics.value(&name, &[("gen_ai_request_model", MODEL)]), own, "{part}");
        assert_eq!(metrics.value(&name, &[]), own, "no other model is told: {part}");
    }
}

#[tokio::test]
async fn a_fleet_that_failed_as_a_whole_is_called_suspect() {
    let top = format!("[failover]\neject_after = 1\n{RARE_POLLS}");
    let (proxy, [a, b]) = proxied(&top, ["a", "b"]).await;
    let suspect = async || proxy.metrics().await.value("vision_proxy_fleet_suspect", &[]);
    let ejected = async |name| proxy.metrics().await.value("vision_proxy_backend_ejected", &[("backend", name)]);
    assert_eq!((suspect().await, ejected("a").await), (Some(0.0), Some(0.0)));
    a.always(Answer::nothing().close());
    // The proxy learns of it at the next request that is given to `a`.
    let a_is_out = async || {
        proxy.client.chat().await.ok();
        ejected("a").await == Some(1.0)
    };
    eventually("a is out of use", a_is_out).await;
    assert_eq!(suspect().await, Some(0.0), "b is not");
    b.always(Answer::nothing().close());
    let all_are_out = async || {
        proxy.client.chat().await;
        suspect().await == Some(1.0)
    };
    eventually("the fleet is suspect", all_are_out).await;
    let failures = proxy.metrics().await.value("vision_proxy_backend_failures_total", &[("backend", "b")]);
    assert!(failures.is_some_and(|failures| failures >= 1.0), "{failures:?}");
    for backend in [&a, &b] {
        backend.heal();
    }
    let is_well = async || {
        proxy.client.chat().await;
        suspect().await == Some(0.0)
    };
    eventually("a good answer clears it", is_well).await;
}

#[tokio::test]
async fn a_backend_that_left_is_shown_while_it_holds_requests() {
    let (proxy, [a, b]) = proxied("", ["a", "b"]).await;
    let gate = Gate::closed();
    for backend in [&a, &b] {
        backend.always(stream_held_at(&gate));
    }
    let held = [proxy.client.begin_chat(), proxy.client.begin_chat()];
    gate.reached_by(2).await;
    proxy.write_config(&config("", [&b]));
    let draining = [("backend", "a"), ("state", "draining")];
    let drains = async || proxy.metrics().await.value("vision_proxy_backend_state", &draining) == Some(1.0);
    eventually("a is shown as draining", drains).await;
    assert_eq!(proxy.metrics().await.value("vision_proxy_backend_in_flight", &[("backend", "a")]), Some(1.0));
    gate.open();
    for pending in held {
        pending.reply().await.ok();
    }
    let is_gone = async || proxy.metrics().await.value("vision_proxy_backend_state", &[("backend", "a")]).is_none();
    eventually("a is gone", is_gone).await;
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let mut asked = Vec::new();
    queries(&dashboard, &mut asked);
    assert!(asked.len() > 40, "{} queries", asked.len());
    let table = table();
    let mut shown: BTreeSet<&str> = BTreeSet::new();
    for query in asked {
        shown.extend(checked(&table, query));
    }
    let own = table.iter().filter(|(name, _)| !name.starts_with("gen_ai_"));
    let missing: Vec<_> = own.filter(|(_, row)| !shown.contains(row.meaning)).map(|(name, _)| name).collect();
    assert!(missing.is_empty(), "the dashboard does not show {missing:?}");
    let variables: Vec<_> = dashboard["templating"]["list"].as_array().expect("variables").iter().collect();
    let names: Vec<_> = variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
    assert_eq!(names, ["datasource", "model", "backend"]);
}

#[test]
fn the_page_asks_for_what_there_is() {
    let table = table();
    let fenced = PAGE.split("```promql\n").skip(1).filter_map(|rest| rest.split("```").next());
    let queries: Vec<_> = fenced.flat_map(str::lines).collect();
    assert!(queries.len() > 10, "{queries:?}");
    queries.into_iter().for_each(|query| _ = checked(&table, query));
}

#[test]
fn a_query_for_what_there_is_not_is_found() {
    let table = table();
    for wrong in [
        "sum(rate(vision_proxy_request_total[5m]))",
        "vision_proxy_request_seconds",
        "vision_proxy_queue_waiting_count",
        "vision_proxy_queue_waiting{model=\"m\"}",
        "sum by (reason) (vision_proxy_backend_slots)",
        "requests_total{status=\"200\"}",
    ] {
        assert!(problem(&table, wrong).is_some(), "{wrong}");
    }
}

/// Every PromQL expression of the dashboard, and those of its variables.
fn queries<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(object) => {
            let keys = object.iter().filter(|(key, _)| ["expr", "definition"].contains(&key.as_str()));
            found.extend(keys.filter_map(|(_, value)| value.as_str()));
            object.values().for_each(|value| queries(value, found));
        }
        Value::Array(array) => array.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

/// The meanings of the families that a query asks for.
fn checked<'a>(table: &'a BTreeMap<&str, Row>, query: &str) -> Vec<&'a str> {
    if let Some(problem) = problem(table, query) {
        panic!("{problem} in {query}");
    }
    words(query).filter_map(|(word, _)| family(table, word)).map(|row| row.meaning).collect()
}

/// What a query asks for that does not exist: a metric, or a label that none of its metrics carries.
fn problem(table: &BTreeMap<&str, Row>, query: &str) -> Option<String> {
    let mut labels: BTreeSet<&str> = SCRAPED.into();
    let mut asked = Vec::new();
    for (word, rest) in words(query) {
        let is_metric = rest.starts_with('{') || FAMILIES.iter().any(|own| word.starts_with(own));
        match family(table, word) {
            Some(row) => {
                labels.extend(&row.labels);
                labels.extend(word.ends_with("_bucket").then_some("le"));
                let matched = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or_default();
                let names = matched.split(',').filter_map(|one| one.split(['=', '!']).next()).map(str::trim);
                let foreign = names.filter(|name| !name.is_empty()).find(|name| !row.labels.contains(name));
                if let Some(foreign) = foreign {
                    return Some(format!("{word} has no label {foreign}"));
                }
            }
            None if is_metric => return Some(format!("there is no {word}")),
            None if ["by", "on"].contains(&word) => {
                let named = rest.trim_start().strip_prefix('(').and_then(|rest| rest.split(')').next());
                asked.extend(named.unwrap_or_default().split(',').map(str::trim));
            }
            None => {}
        }
    }
    asked.into_iter().find(|label| !labels.contains(label)).map(|label| format!("no metric has {label}"))
}

/// The words of a query that are outside quotes, each with what follows it.
fn words(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut at = 0;
    let mut is_quoted = false;
    std::iter::from_fn(move || {
        loop {
            let rest = query.get(at..).filter(|rest| !rest.is_empty())?;
            let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            if length > 0 {
                at += length;
                if !is_quoted {
                    return Some(rest.split_at(length));
                }
                continue;
            }
            let first = rest.chars().next()?;
            is_quoted ^= first == '"';
            at += first.len_utf8();
        }
    })
}
