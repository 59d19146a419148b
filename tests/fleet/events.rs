//! Whoever listens at `/api/events` is told what changes.

use serde_json::Value;

use super::{asked, described, put};
use crate::support::*;

/// Listens; returns with the first event, which says how all stand.
async fn listen(proxy: &Proxy) -> (Events, Value) {
    let mut events = Events::of(proxy.admin.request("GET", "/api/events")).await;
    assert_eq!(events.response.headers()["content-type"], "text/event-stream");
    let (kind, states) = parted(&events.next().await);
    assert_eq!(kind, "states");
    (events, states)
}

fn parted(event: &str) -> (String, Value) {
    let field =
        |name: &str| event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_default();
    let said: Value = serde_json::from_str(field("data")).unwrap_or_else(|why| panic!("{why}: {event:?}"));
    assert!(said["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{said}");
    (field("event").to_owned(), said)
}

/// Reads on until an event of this kind says so.
async fn told(events: &mut Events, kind: &str, fields: &[(&str, &str)]) -> Value {
    loop {
        let (other, said) = parted(&events.next().await);
        if other == kind && fields.iter().all(|(key, value)| said[*key] == *value) {
            return said;
        }
    }
}

#[tokio::test]
async fn states_drains_and_registrations_are_told() {
    let (proxy, [a]) = proxied("", ["a"]).await;
    let (mut events, states) = listen(&proxy).await;
    assert_eq!(states["backends"], serde_json::json!([{"backend": "a", "state": "available"}]));
    a.stop().await;
    let said = told(&mut events, "backend", &[("backend", "a"), ("state", "down")]).await;
    assert!(said["was"] == "available" && said["why"].is_string(), "{said}");
    a.restart().await;
    told(&mut events, "backend", &[("backend", "a"), ("was", "down")]).await;
    let b = Setup::named("b").start().await;
    put(&proxy, "b", &described(&b)).await;
    told(&mut events, "fleet", &[("backend", "b"), ("what", "registered")]).await;
    asked(&proxy, "POST", "/api/backends/b/drain", &Value::Null).await.ok();
    told(&mut events, "fleet", &[("backend", "b"), ("what", "drained")]).await;
    told(&mut events, "backend", &[("backend", "b"), ("state", "draining")]).await;
    asked(&proxy, "DELETE", "/api/backends/b", &Value::Null).await.ok();
    told(&mut events, "backend", &[("backend", "b"), ("state", "gone")]).await;
}

#[tokio::test]
async fn reloads_and_plugins_are_told() {
    let (proxy, [a]) = proxied("", ["a"]).await;
    let (mut events, _) = listen(&proxy).await;
    proxy.write_config("no_such_key = 1\n");
    let said = told(&mut events, "config", &[("what", "refused")]).await;
    assert!(said["errors"].to_string().contains("no_such_key"), "{said}");
    proxy.write_config(&config("reveal = false\n", [&a]));
    told(&mut events, "config", &[("what", "loaded")]).await;
    proxy.write_plugin("junk", b"no component");
    told(&mut events, "plugin", &[("plugin", "junk"), ("what", "refused")]).await;
    proxy.signal("TERM");
    told(&mut events, "process", &[("what", "ending")]).await;
}

#[tokio::test]
async fn so_many_may_listen_and_a_place_is_free_when_one_leaves() {
    let (proxy, [_a]) = proxied("", ["a"]).await;
    let mut listeners = Vec::new();
    for _ in 0..32 {
        listeners.push(listen(&proxy).await);
    }
    proxy.admin.get("/api/events").await.refused(503, "too_many_listeners");
    listeners.pop();
    let is_free = async || {
        let request = proxy.admin.request("GET", "/api/events").send();
        soon("an answer", request).await.expect("an answer").status() == 200
    };
    eventually("a place is free", is_free).await;
}
