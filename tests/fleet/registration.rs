//! Nodes that register themselves serve, and go when they are heard of no more.

use serde_json::{Value, json};

use super::{asked, described, put};
use crate::support::*;

/// Shorter than any test, longer than between two heartbeats on a busy machine.
const TTL: &str = "5s";

#[tokio::test]
async fn a_node_that_registers_itself_serves_until_it_is_deleted() {
    let backend = Setup::named("a").start().await;
    let proxy = Proxy::start("backends = []\n").await;
    assert!(proxy.client.chat().await.status.is_client_error(), "nobody serves it yet");
    let reply = put(&proxy, "rack-1%2Fa", &described(&backend)).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["what"]), (201, &"registered".into()), "{reply:?}");
    assert_eq!(proxy.client.chat().await.ok().backend(), "rack-1/a");
    let shown = proxy.backend("rack-1/a").await;
    assert_eq!((&shown["source"], &shown["expires_in_ms"]), (&"registered".into(), &Value::Null), "{shown}");
    assert_eq!(asked(&proxy, "DELETE", "/api/backends/rack-1/a", &Value::Null).await.ok().json()["what"], "deleted");
    eventually("it is gone", async || proxy.backends().await.is_empty()).await;
    assert!(proxy.client.chat().await.status.is_client_error());
    asked(&proxy, "DELETE", "/api/backends/rack-1/a", &Value::Null).await.refused(404, "unknown_backend");
}

#[tokio::test]
async fn what_is_renewed_stays_and_what_is_not_goes_under_load_without_a_failed_request() {
    let (proxy, [_a]) = proxied("", ["a"]).await;
    let (b, c) = (Setup::named("b").start().await, Setup::named("c").start().await);
    let load = Load::of(&proxy, 6);
    let mut heartbeat = described(&b);
    heartbeat["ttl"] = TTL.into();
    put(&proxy, "b", &heartbeat).await;
    let mut once = described(&c);
    once["ttl"] = "1s".into();
    put(&proxy, "c", &once).await;
    let expiring = proxy.backend("b").await["expires_in_ms"].as_u64().expect("a time");
    assert!((1..=5_000).contains(&expiring), "{expiring}");
    let generation = async || proxy.admin_json("/api/fleet").await["generation"].clone();
    eventually("c was asked and serves", async || c.request_count() > 0).await;
    let gone = async || {
        let reply = put(&proxy, "b", &heartbeat).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["what"]), (200, &"renewed".into()));
        proxy.backend("c").await.is_null()
    };
    eventually("c was not renewed and is gone", gone).await;
    let (before, served) = (generation().await, b.request_count());
    put(&proxy, "b", &heartbeat).await.ok();
    assert_eq!(generation().await, before, "a heartbeat builds no new snapshot");
    load.answers_more(20).await;
    assert!(b.request_count() > served, "b still serves");
    eventually("b is not renewed any more", async || proxy.backend("b").await.is_null()).await;
    load.answers_more(10).await;
    load.ends_well().await;
    proxy.falls_idle().await;
}

#[tokio::test]
async fn a_backend_that_goes_finishes_what_it_has() {
    let (proxy, [_a]) = proxied("", ["a"]).await;
    let b = Setup::named("b").start().await;
    put(&proxy, "b", &described(&b)).await;
    let gate = Gate::closed();
    b.always(stream_held_at(&gate));
    let mut events = proxy.client.stream().await;
    while events.response.headers()["x-vision-proxy-backend"] != "b" {
        events = proxy.client.stream().await;
    }
    events.next().await;
    let reply = asked(&proxy, "DELETE", "/api/backends/b", &Value::Null).await.ok().json();
    assert_eq!((&reply["backend"]["state"], &reply["backend"]["source"]), (&"draining".into(), &"removed".into()));
    assert_eq!(proxy.client.chat().await.ok().backend(), "a");
    gate.open();
    assert!(events.rest().await.ends_with("data: [DONE]\n\n"));
    eventually("b is gone", async || proxy.backend("b").await.is_null()).await;
}

#[tokio::test]
async fn a_change_of_one_leaves_what_the_others_hold() {
    let (proxy, [a]) = proxied("", ["a"]).await;
    let b = Setup::named("b").start().await;
    let gate = Gate::closed();
    a.always(stream_held_at(&gate));
    let held: Vec<_> = (0..3).map(|_| proxy.client.begin_chat()).collect();
    gate.reached_by(3).await;
    put(&proxy, "b", &described(&b)).await;
    let mut other = described(&b);
    other["slots"] = 7.into();
    let reply = put(&proxy, "b", &other).await.ok().json();
    assert_eq!((&reply["what"], &reply["backend"]["slots"]), (&"replaced".into(), &7.into()));
    assert_eq!(proxy.backend("a").await["in_flight"], 3);
    gate.open();
    for pending in held {
        pending.reply().await.ok();
    }
}

#[tokio::test]
async fn what_the_file_lists_is_changed_in_the_file() {
    let (proxy, [a]) = proxied("", ["a"]).await;
    let b = Setup::named("b").start().await;
    put(&proxy, "a", &described(&b)).await.refused(409, "conflict");
    asked(&proxy, "DELETE", "/api/backends/a", &Value::Null).await.refused(409, "conflict");
    put(&proxy, "another", &described(&a)).await.refused(409, "conflict");
    // Registered first, then written to the file: the file's from then on, and the same backend.
    put(&proxy, "b", &described(&b)).await;
    put(&proxy, "c", &described(&b)).await.refused(409, "conflict");
    proxy.client.chat().await.ok();
    proxy.client.chat().await.ok();
    let served = proxy.backend("b").await["requests_total"].clone();
    proxy.write_config(&config("", [&a, &b]));
    eventually("the file lists it", async || proxy.backend("b").await["source"] == "configured").await;
    assert_eq!(proxy.backend("b").await["requests_total"], served);
    put(&proxy, "b", &described(&b)).await.refused(409, "conflict");
}

#[tokio::test]
async fn a_reload_keeps_what_is_registered() {
    let (proxy, [a]) = proxied("", ["a"]).await;
    let b = Setup::named("b").start().await;
    put(&proxy, "b", &described(&b)).await;
    proxy.write_config(&config("reveal = false\n", [&a]));
    eventually("it is reloaded", async || proxy.admin_json("/api/config").await["config"]["reveal"] == false).await;
    assert_eq!(proxy.backend("b").await["source"], "registered");
}

#[tokio::test]
async fn a_bad_body_is_refused_with_every_problem_and_changes_nothing() {
    let (proxy, [_a]) = proxied("", ["a"]).await;
    let body =
        json!({"url": "file:///etc/passwd", "slots": "many", "ttl": 3, "api_key": {"file": "/etc/shadow"}, "x": 1});
    let reply = put(&proxy, "b", &body).await.refused(400, "invalid_backend").json();
    let keys: Vec<_> = reply["errors"].as_array().expect("a list").iter().map(|one| one["key"].clone()).collect();
    assert_eq!(keys.len(), 5, "{reply}");
    for key in ["url", "slots", "ttl", "api_key", "x"] {
        assert!(keys.contains(&key.into()) && reply["error"]["message"].to_string().contains(key), "{key}: {reply}");
    }
    for body in ["", "{", "[]", "\"x\""] {
        whole(proxy.admin.request("PUT", "/api/backends/b").body(body)).await.refused(400, "invalid_backend");
    }
    put(&proxy, "not%20a%20name", &json!({"url": "http://gpu"})).await.refused(400, "invalid_backend");
    put(&proxy, "", &json!({"url": "http://gpu"})).await.refused(400, "invalid_backend");
    let large = whole(proxy.admin.request("PUT", "/api/backends/b").body(" ".repeat(64 * 1024 + 1))).await;
    large.refused(413, "request_too_large");
    let names: Vec<_> = proxy.backends().await.iter().map(|backend| backend["name"].clone()).collect();
    assert_eq!(names, ["a"]);
}

#[tokio::test]
async fn other_methods_are_named() {
    let (proxy, [_a]) = proxied("", ["a"]).await;
    for (method, path, allowed) in [
        ("POST", "/api/backends/a", "PUT, DELETE"),
        ("GET", "/api/backends/a", "PUT, DELETE"),
        ("GET", "/api/backends/a/drain", "POST"),
        ("PUT", "/api/backends/a/undrain", "POST"),
        ("PUT", "/api/fleet", "GET, HEAD"),
    ] {
        let reply = asked(&proxy, method, path, &Value::Null).await.refused(405, "method_not_allowed");
        assert_eq!(reply.header("allow"), allowed, "{method} {path}");
    }
    asked(&proxy, "POST", "/api/backends/nobody/drain", &Value::Null).await.refused(404, "unknown_backend");
}

#[tokio::test]
async fn changes_need_the_token_where_there_is_one_and_are_nothing_for_other_sites() {
    let folder = Folder::new();
    let key = folder.write("token", "s3cret-canary");
    let (proxy, [_a]) = proxied(&format!("admin_token = {{ file = \"{}\" }}\n", key.display()), ["a"]).await;
    let drain = |fields: &[(&'static str, &'static str)]| {
        let request = proxy.admin.request("POST", "/api/backends/a/drain");
        whole(fields.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
    };
    let right = ("authorization", "Bearer s3cret-canary");
    assert_eq!(drain(&[]).await.refused(401, "unauthorized").header("www-authenticate"), "Bearer");
    drain(&[("authorization", "Bearer s3cret")]).await.refused(401, "unauthorized");
    for foreign in [("origin", "http://evil.test"), ("host", "evil.test"), ("sec-fetch-site", "cross-site")] {
        drain(&[right, foreign]).await.refused(403, "forbidden");
    }
    assert_eq!(proxy.backend("a").await["state"], "available", "nothing was changed; and looking needs no token");
    drain(&[right]).await.ok();
    assert_eq!(proxy.backend("a").await["state"], "draining");
    assert!(!proxy.output().contains("canary"));
}

#[tokio::test]
async fn a_key_that_a_node_brings_is_sent_to_it_and_shown_nowhere() {
    let b = Setup::named("b").start().await;
    let proxy = Proxy::start("backends = []\n").await;
    let mut body = described(&b);
    body["api_key"] = "sk-node-canary".into();
    let mut shown = put(&proxy, "b", &body).await.text().to_owned();
    proxy.client.chat().await.ok();
    assert_eq!(b.request().header("authorization"), "Bearer sk-node-canary");
    for path in ["/api/fleet", "/api/config", "/metrics"] {
        shown += proxy.admin.get(path).await.ok().text();
    }
    assert!(!shown.contains("canary") && !proxy.output().contains("canary"), "{shown}");
}
