//! The admin listener: what it shows, to whom, and that none of it is on the first listener.

use serde_json::Value;

use crate::support::*;

fn keys(value: &Value) -> Vec<&str> {
    let object = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
    object.keys().map(String::as_str).collect()
}

fn has_keys(value: &Value, expected: &[&str]) {
    let found = keys(value);
    let missing: Vec<_> = expected.iter().filter(|key| !found.contains(key)).collect();
    assert!(missing.is_empty(), "{missing:?} missing of {value}");
}

const BACKEND_KEYS: [&str; 14] = [
    "name",
    "url",
    "engine",
    "state",
    "in_flight",
    "slots",
    "slots_from",
    "reported",
    "models",
    "first_token_ms",
    "requests_total",
    "failures_total",
    "down_since",
    "last_error",
];

#[tokio::test]
async fn the_fleet_is_shown_as_it_is() {
    let (proxy, [a, b]) = proxied("", [Setup::named("a").slots(8).vllm(), Setup::named("b").slots(3)]).await;
    a.report(Report { running: 2, waiting: 0, kv_cache_used: 0.25, ..Report::default() });
    let reported = async || proxy.backend("a").await["reported"]["running"] == 2;
    eventually("the report is taken over", reported).await;
    let fleet = proxy.admin_json("/api/fleet").await;
    has_keys(&fleet, &["backends", "queue"]);
    assert_eq!(fleet["queue"], serde_json::json!({"waiting": 0, "size": 1024}));
    for (told, backend) in fleet["backends"].as_array().expect("a list").iter().zip([&a, &b]) {
        has_keys(told, &BACKEND_KEYS);
        assert_eq!(
            (&told["name"], &told["url"]),
            (&backend.name().into(), &format!("http://{}", backend.address).into())
        );
        assert_eq!((&told["state"], &told["slots_from"]), (&"available".into(), &"config".into()));
        assert_eq!((&told["down_since"], &told["last_error"]), (&Value::Null, &Value::Null));
        assert_eq!(told["models"], serde_json::json!({MODEL: NATIVE}));
    }
    let [a, b] = [proxy.backend("a").await, proxy.backend("b").await];
    assert_eq!(
        (&a["engine"], &a["slots"], &b["engine"], &b["slots"]),
        (&"vllm".into(), &8.into(), &"openai".into(), &3.into())
    );
    has_keys(&a["reported"], &["running", "waiting", "kv_cache_used", "age_ms"]);
    assert_eq!((&a["reported"]["waiting"], &a["reported"]["kv_cache_used"]), (&0.into(), &0.25.into()));
    assert!(a["reported"]["age_ms"].as_u64().is_some_and(|age| age < 5_000), "{a}");
}

#[tokio::test]
async fn the_fleet_counts_what_happens() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    for _ in 0..3 {
        proxy.client.chat().await.ok();
    }
    let told = proxy.backend("a").await;
    assert_eq!((&told["requests_total"], &told["failures_total"]), (&3.into(), &0.into()));
    assert!(told["first_token_ms"].as_f64().is_some_and(|ms| ms > 0.0 && ms < 5_000.0), "{told}");
    let gate = Gate::closed();
    backend.always(stream_held_at(&gate));
    let held: Vec<_> = (0..4).map(|_| proxy.client.begin_chat()).collect();
    gate.reached_by(4).await;
    assert_eq!(proxy.backend("a").await["in_flight"], 4);
    gate.open();
    for pending in held {
        pending.reply().await.ok();
    }
    proxy.falls_idle().await;
}

#[tokio::test]
async fn plugins_are_shown_as_they_run() {
    let (proxy, [_backend]) = proxied("", ["a"]).await;
    proxy.client.chat().await.ok();
    let plugins = proxy.admin_json("/api/plugins").await;
    let active: Vec<_> =
        plugins["plugins"].as_array().expect("a list").iter().filter(|plugin| plugin["active"] == true).collect();
    let expected = [
        "name",
        "kind",
        "active",
        "source",
        "sha256",
        "generation",
        "loaded_at",
        "calls",
        "faults",
        "mean_call_ns",
        "state",
        "last_error",
    ];
    active.iter().for_each(|plugin| has_keys(plugin, &expected));
    for (name, kind) in [("round-robin", "policy"), ("model-map", "translator")] {
        let plugin =
            active.iter().find(|plugin| plugin["name"] == name).unwrap_or_else(|| panic!("no {name}: {plugins}"));
        assert_eq!(
            (&plugin["kind"], &plugin["source"], &plugin["state"]),
            (&kind.into(), &"built-in".into(), &"running".into())
        );
        assert!(plugin["calls"].as_u64().is_some_and(|calls| calls > 0), "{plugin}");
        assert_eq!((&plugin["faults"], &plugin["last_error"]), (&0.into(), &Value::Null));
        assert_eq!(plugin["sha256"].as_str().map(str::len), Some(64), "{plugin}");
    }
}

#[tokio::test]
async fn metrics_are_prometheus_and_count_right() {
    let (proxy, [_backend]) = proxied("", [Setup::named("a").vllm().slots(7)]).await;
    for _ in 0..5 {
        proxy.client.chat().await.ok();
    }
    proxy.client.stream().await.rest().await;
    proxy.client.chat_with("nobody-serves-this").await.refused(404, "model_not_found");
    proxy.falls_idle().await;
    let metrics = proxy.metrics().await;
    let answered = [("model", MODEL), ("backend", "a"), ("status", "200")];
    assert_eq!(metrics.value("vision_proxy_requests_total", &answered), Some(6.0));
    assert_eq!(metrics.value("vision_proxy_requests_total", &[("status", "404")]), Some(1.0));
    assert_eq!(metrics.value("vision_proxy_backend_slots", &[("backend", "a")]), Some(7.0));
    assert_eq!(metrics.value("vision_proxy_backend_in_flight", &[("backend", "a")]), Some(0.0));
    assert_eq!(metrics.value("vision_proxy_queue_waiting", &[]), Some(0.0));
    assert_eq!(metrics.value("vision_proxy_backend_state", &[("backend", "a"), ("state", "available")]), Some(1.0));
    assert_eq!(metrics.value("vision_proxy_backend_state", &[("backend", "a")]), Some(1.0), "one state at a time");
    for histogram in ["request_seconds", "first_token_seconds", "overhead_seconds"] {
        let count = metrics.value(&format!("vision_proxy_{histogram}_count"), &[]);
        assert!(count.is_some_and(|count| count >= 6.0), "{histogram}: {count:?}");
        let all = metrics.value(&format!("vision_proxy_{histogram}_bucket"), &[("le", "+Inf")]);
        assert_eq!(all, count, "{histogram}");
    }
    // Each of six answers used 8 tokens by its own account; streams here carry none.
    assert_eq!(metrics.value("vision_proxy_tokens_total", &[("model", MODEL)]), Some(5.0 * 8.0));
}

#[tokio::test]
async fn every_family_of_the_contract_is_there_and_explained() {
    let (proxy, [_backend]) = proxied("", [Setup::named("a").vllm()]).await;
    proxy.client.chat().await.ok();
    let metrics = proxy.metrics().await;
    for family in [
        "requests",
        "request_seconds",
        "first_token_seconds",
        "overhead_seconds",
        "attempts",
        "queue_waiting",
        "queue_seconds",
        "backend_state",
        "backend_in_flight",
        "backend_slots",
        "backend_reported_waiting",
        "backend_kv_cache_used",
        "plugin_call_seconds",
        "plugin_faults",
        "plugin_reloads",
        "config_reloads",
        "tokens",
    ] {
        let names = [format!("vision_proxy_{family}"), format!("vision_proxy_{family}_total")];
        assert!(names.iter().any(|name| metrics.typed.contains_key(name)), "no TYPE of {family}");
        assert!(names.iter().any(|name| metrics.helped.contains_key(name)), "no HELP of {family}");
    }
}

#[tokio::test]
async fn the_models_that_clients_make_up_do_not_become_labels() {
    let (proxy, [_backend]) = proxied("", ["a"]).await;
    for number in 0..50 {
        proxy.client.chat_with(&format!("made-up-{number}")).await.refused(404, "model_not_found");
    }
    let made_up = |sample: &&crate::support::Sample| sample.labels.values().any(|value| value.contains("made-up"));
    assert_eq!(proxy.metrics().await.samples.iter().filter(made_up).count(), 0);
}

#[tokio::test]
async fn live_and_ready_are_told_apart() {
    let (proxy, [_backend]) = proxied("", ["a"]).await;
    for path in ["/livez", "/readyz"] {
        proxy.admin.get(path).await.ok();
    }
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused() {
    let (proxy, [_backend]) = proxied("", ["a"]).await;
    for path in ["/", "/api/fleet", "/api/config", "/api/plugins"] {
        for (name, value) in
            [("host", "evil.test"), ("host", "evil.test:9901"), ("origin", "http://evil.test"), ("origin", "null")]
        {
            let reply = whole(proxy.admin.request("GET", path).header(name, value)).await;
            assert!(reply.status.is_client_error(), "{path} with {name}: {value}: {reply:?}");
            assert!(!reply.text().contains(MODEL) && !reply.text().contains("127.0.0.1"), "{reply:?}");
        }
        proxy.admin.get(path).await.ok();
    }
}

#[tokio::test]
async fn the_page_is_html_and_loads_nothing_from_elsewhere() {
    let (proxy, [_backend]) = proxied("", ["a"]).await;
    let page = proxy.admin.get("/").await.ok();
    assert!(page.header("content-type").starts_with("text/html"), "{page:?}");
    assert!(page.text().to_ascii_lowercase().contains("<html"), "{}", page.text());
    for foreign in ["src=\"http", "href=\"http", "src=\"//", "@import"] {
        assert!(!page.text().contains(foreign), "{foreign}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_what_only_reads_takes_no_post() {
    let (proxy, [_backend]) = proxied("", ["a"]).await;
    assert_eq!(proxy.admin.get("/api/nothing").await.status, 404);
    assert_eq!(whole(proxy.admin.post("/api/fleet", "{}")).await.status, 405);
}

#[tokio::test]
async fn nothing_of_it_is_on_the_first_listener() {
    let (proxy, [_backend]) = proxied("", ["a"]).await;
    for path in ["/metrics", "/livez", "/readyz", "/api/fleet", "/api/plugins", "/api/config", "/api/decisions"] {
        let reply = proxy.client.get(path).await;
        assert!(reply.status.is_client_error(), "{path}: {reply:?}");
    }
}

#[tokio::test]
async fn secrets_and_prompts_are_shown_nowhere() {
    let folder = Folder::new();
    let key = folder.write("key", "sk-backend-canary");
    let setup = Setup::named("a").line(&format!("api_key = {{ file = \"{}\" }}", key.display()));
    let (proxy, [_backend]) = proxied("", [setup]).await;
    for model in [MODEL, "nobody-serves-this"] {
        let body =
            format!("{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\"content\":\"prompt-canary\"}}]}}");
        let request = proxy
            .client
            .post(&format!("{CHAT}?secret=query-canary"), body)
            .header("authorization", "Bearer sk-client-canary");
        whole(request).await;
    }
    whole(proxy.client.post(CHAT, "{\"prompt-canary\"")).await;
    let mut shown = proxy.output();
    for path in ["/", "/metrics", "/api/fleet", "/api/plugins", "/api/config"] {
        shown += proxy.admin.get(path).await.ok().text();
    }
    assert!(!shown.contains("canary"), "{shown}");
}
