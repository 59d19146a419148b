//! A backend that somebody wants empty gets nothing new, and loses nothing.

use serde_json::Value;

use super::asked;
use crate::support::*;

async fn drain(proxy: &Proxy, action: &str) -> Value {
    asked(proxy, "POST", &format!("/api/backends/a/{action}"), &Value::Null).await.ok().json()
}

#[tokio::test]
async fn a_drained_backend_gets_nothing_new_under_load_and_everything_after() {
    let (proxy, [a, b]) = proxied("", ["a", "b"]).await;
    let load = Load::of(&proxy, 6);
    load.answers_more(10).await;
    for _ in 0..5 {
        assert_eq!(drain(&proxy, "drain").await["backend"]["state"], "draining");
        eventually("it runs empty", async || proxy.backend("a").await["in_flight"] == 0).await;
        let served = a.request_count();
        load.answers_more(20).await;
        assert_eq!(a.request_count(), served, "it got a request while it was drained");
        assert_eq!(drain(&proxy, "undrain").await["what"], "undrained");
        eventually("it serves again", async || a.request_count() > served).await;
    }
    load.ends_well().await;
    assert!(b.request_count() > 0);
    proxy.falls_idle().await;
}

#[tokio::test]
async fn what_runs_finishes_and_a_reload_changes_nothing_about_it() {
    let (proxy, [a]) = proxied("", ["a"]).await;
    let gate = Gate::closed();
    a.always(stream_held_at(&gate));
    let mut events = proxy.client.stream().await;
    events.next().await;
    drain(&proxy, "drain").await;
    drain(&proxy, "drain").await;
    proxy.client.chat().await.refused(503, "no_backend_available");
    proxy.write_config(&config("reveal = false\n", [&a]));
    eventually("it is reloaded", async || proxy.admin_json("/api/config").await["config"]["reveal"] == false).await;
    let shown = proxy.backend("a").await;
    assert_eq!((&shown["state"], &shown["source"]), (&"draining".into(), &"configured".into()));
    proxy.client.chat().await.refused(503, "no_backend_available");
    gate.open();
    assert!(events.rest().await.ends_with("data: [DONE]\n\n"));
    drain(&proxy, "undrain").await;
    proxy.client.chat().await.ok();
}

#[tokio::test]
async fn whoever_waits_for_it_alone_is_told_at_once_and_who_waits_for_others_too_waits_on() {
    let (proxy, [a, b]) = proxied("", [Setup::named("a").slots(1), Setup::named("b").slots(1)]).await;
    let gate = Gate::closed();
    a.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
    b.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
    let held = [proxy.client.begin_chat(), proxy.client.begin_chat()];
    gate.reached_by(2).await;
    let waits = proxy.client.begin_chat();
    proxy.queues(1).await;
    drain(&proxy, "drain").await;
    assert_eq!(proxy.waiting().await, 1);
    asked(&proxy, "POST", "/api/backends/b/drain", &Value::Null).await.ok();
    waits.reply().await.refused(503, "no_backend_available");
    gate.open();
    for pending in held {
        pending.reply().await.ok();
    }
}
