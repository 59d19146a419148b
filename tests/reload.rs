//! The configuration may change under load: good changes take effect with no request lost, bad ones not at all.

use crate::support::*;

async fn names(proxy: &Proxy) -> Vec<String> {
    let name = |backend: &serde_json::Value| backend["name"].as_str().expect("a name").to_owned();
    proxy.backends().await.iter().map(name).collect()
}

async fn reloads(proxy: &Proxy) -> f64 {
    proxy.metrics().await.value("vision_proxy_config_reloads_total", &[]).unwrap_or_default()
}

#[tokio::test]
async fn a_fleet_that_changes_under_load_loses_no_request() {
    let (proxy, [a, b, c]) = proxied("workers = 2\n", ["a", "b", "c"]).await;
    let load = Load::of(&proxy, 6);
    for _ in 0..5 {
        for fleet in [vec![&a], vec![&a, &b, &c], vec![&c], vec![&b, &c]] {
            let expected: Vec<_> = fleet.iter().map(|backend| backend.name().to_owned()).collect();
            proxy.write_config(&config("workers = 2\n", fleet));
            let taken_over = async || {
                let served = proxy.backends().await;
                let mut open = served.iter().filter(|backend| backend["state"] != "draining");
                expected.iter().all(|name| {
                    open.clone().any(|backend| backend["name"] == **name && backend["state"] == "available")
                }) && open.all(|backend| expected.iter().any(|name| backend["name"] == **name))
            };
            eventually("the new fleet is in place", taken_over).await;
            load.answers_more(10).await;
        }
    }
    load.ends_well().await;
    assert!([&a, &b, &c].iter().all(|backend| backend.request_count() > 0));
    proxy.falls_idle().await;
}

#[tokio::test]
async fn a_removed_backend_finishes_what_it_has_and_gets_nothing_new() {
    let (proxy, [a, b]) = proxied("", ["a", "b"]).await;
    let gate = Gate::closed();
    a.always(stream_held_at(&gate));
    b.always(stream_held_at(&gate));
    let mut streams = [proxy.client.stream().await, proxy.client.stream().await];
    for events in &mut streams {
        assert!(events.next().await.contains("\"one\""));
    }
    proxy.write_config(&config("", [&b]));
    eventually("a is on its way out", async || {
        matches!(proxy.backend("a").await["state"].as_str(), None | Some("draining"))
    })
    .await;
    b.heal();
    for _ in 0..6 {
        assert_eq!(proxy.client.chat().await.ok().backend(), "b");
    }
    gate.open();
    for events in streams {
        assert!(events.rest().await.ends_with("data: [DONE]\n\n"));
    }
    eventually("a is gone", async || names(&proxy).await == ["b"]).await;
    assert_eq!(a.request_count(), 1);
}

#[tokio::test]
async fn a_backend_that_stays_keeps_what_it_holds() {
    let backend = Setup::named("a").slots(2).start().await;
    let proxy = Proxy::start(&config("", [&backend])).await;
    let gate = Gate::closed();
    backend.always(stream_held_at(&gate));
    let held: Vec<_> = (0..3).map(|_| proxy.client.begin_chat()).collect();
    gate.reached_by(2).await;
    proxy.queues(1).await;
    for slots in [1, 3] {
        proxy.write_config(&config("", [&backend]).replace("slots = 2", &format!("slots = {slots}")));
        eventually("the new slots are in place", async || proxy.backend("a").await["slots"] == slots).await;
        assert_eq!(proxy.backend("a").await["in_flight"], slots.max(2));
    }
    gate.reached_by(3).await;
    gate.open();
    for pending in held {
        pending.reply().await.ok();
    }
    assert_eq!(backend.most_in_flight(), 3);
    proxy.falls_idle().await;
}

#[tokio::test]
async fn who_waits_while_the_fleet_changes_remembers_what_was_tried() {
    let (proxy, [a, b, c]) = proxied("", [Setup::named("a").slots(1), Setup::named("b"), Setup::named("c")]).await;
    proxy.write_config(&config("", [&a, &b]));
    eventually("two are left", async || names(&proxy).await == ["a", "b"]).await;
    let gate = Gate::closed();
    b.always(Answer::error(500));
    a.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
    let held = proxy.client.begin_chat();
    gate.reached_by(1).await;
    let waits = proxy.client.begin_chat();
    proxy.queues(1).await;
    assert_eq!(b.request_count(), 1, "it has been tried there");
    proxy.write_config(&config("", [&c]));
    let reply = waits.reply().await.ok();
    assert_eq!((reply.backend(), reply.attempts()), ("c", 2));
    gate.open();
    held.reply().await.ok();
    assert_eq!(proxy.metrics().await.value("vision_proxy_queue_seconds_count", &[]), Some(1.0));
}

/// What `/api/config` says is wrong with the newest file; null where nothing is.
async fn refusal(proxy: &Proxy) -> serde_json::Value {
    let told = proxy.admin_json("/api/config").await;
    match told["state"].as_str() {
        Some("refused") => told["errors"].clone(),
        Some("loaded") => serde_json::Value::Null,
        _ => panic!("no state of the configuration: {told}"),
    }
}

#[tokio::test]
async fn a_bad_change_is_refused_as_a_whole_and_says_why() {
    let (proxy, [a, b]) = proxied("", ["a", "b"]).await;
    let load = Load::of(&proxy, 4);
    for (bad, key) in [
        ("workers = \"many\"\n", "workers"),
        ("no_such_key = 1\n", "no_such_key"),
        ("[queue]\nsize = -1\n", "queue.size"),
    ] {
        let before = reloads(&proxy).await;
        // The good half of it, one backend less, must not take effect either.
        proxy.write_config(&config(bad, [&a]));
        let reported = async || refusal(&proxy).await.to_string().contains(key);
        eventually(&format!("/api/config says what is wrong with {bad:?}"), reported).await;
        eventually("the log says why", async || proxy.output().contains(key)).await;
        assert!(reloads(&proxy).await > before, "no metric counts it");
        load.answers_more(10).await;
        assert_eq!(names(&proxy).await, ["a", "b"]);
    }
    proxy.write_config(&config("", [&b]));
    eventually("a good change is taken after bad ones", async || names(&proxy).await == ["b"]).await;
    assert!(refusal(&proxy).await.is_null());
    load.ends_well().await;
}

#[tokio::test]
async fn a_hang_up_signal_reloads() {
    let (proxy, [a, b]) = proxied("", ["a", "b"]).await;
    let before = reloads(&proxy).await;
    proxy.signal("HUP");
    eventually("a reload is counted", async || reloads(&proxy).await > before).await;
    assert_eq!(names(&proxy).await, [a.name(), b.name()]);
    proxy.client.chat().await.ok();
}

#[tokio::test]
async fn names_and_settings_change_without_a_restart() {
    let backend = Setup::named("a").unmapped().start().await;
    let with = |public: &str, top: &str| config(&format!("{top}[models]\n{public} = [\"{NATIVE}\"]\n"), [&backend]);
    let proxy = Proxy::start(&with("before", "reveal = true\n")).await;
    assert_eq!(proxy.client.chat_with("before").await.ok().backend(), "a");
    proxy.write_config(&with("after", "reveal = false\n"));
    eventually("the new name is served", async || proxy.client.chat_with("after").await.status == 200).await;
    proxy.client.chat_with("before").await.refused(404, "model_not_found");
    assert_eq!(proxy.client.chat_with("after").await.ok().backend(), "", "reveal = false");
}
