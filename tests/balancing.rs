//! Strict round robin over equal backends, whoever asks; only those that serve the model and have room.

use std::collections::BTreeMap;

use crate::support::*;

/// Requires that every backend is named once in each run of as many answers as there are backends.
fn takes_turns(names: &[String], backends: usize) {
    let first: Vec<_> = names.iter().take(backends).collect();
    assert_eq!(first.iter().collect::<std::collections::BTreeSet<_>>().len(), backends, "{names:?}");
    for (at, name) in names.iter().enumerate() {
        assert_eq!(name, first[at % backends], "answer {at} of {names:?}");
    }
}

fn counts(replies: &[Reply]) -> BTreeMap<&str, usize> {
    replies.iter().fold(BTreeMap::new(), |mut counts, reply| {
        *counts.entry(reply.backend()).or_default() += 1;
        counts
    })
}

#[tokio::test]
async fn equal_backends_take_turns() {
    let (proxy, [_a, _b, _c]) = proxied("", ["a", "b", "c"]).await;
    let mut names = Vec::new();
    for _ in 0..30 {
        names.push(proxy.client.chat().await.ok().backend().to_owned());
    }
    takes_turns(&names, 3);
}

#[tokio::test]
async fn backends_take_turns_over_connections_and_workers() {
    let (proxy, [_a, _b, _c]) = proxied("workers = 2\n", ["a", "b", "c"]).await;
    let clients: Vec<_> = (0..7).map(|_| proxy.another_client()).collect();
    let mut names = Vec::new();
    for turn in 0..42 {
        names.push(clients[turn % clients.len()].chat().await.ok().backend().to_owned());
    }
    takes_turns(&names, 3);
}

#[tokio::test]
async fn requests_at_the_same_time_spread_evenly() {
    let setups = ["a", "b", "c"].map(|name| Setup::named(name).slots(1_000));
    let (proxy, [_a, _b, _c]) = proxied("workers = 2\n", setups).await;
    let clients: Vec<_> = (0..10).map(|_| proxy.another_client()).collect();
    let replies = in_parallel(300, move |number| {
        let client = clients[number % clients.len()].clone();
        async move { client.chat().await.ok() }
    })
    .await;
    assert_eq!(counts(&replies), BTreeMap::from([("a", 100), ("b", 100), ("c", 100)]));
}

#[tokio::test]
async fn each_model_has_turns_of_its_own() {
    let setups = ["a", "b"].map(|name| Setup::named(name).unmapped().line("models = { one = \"n\", two = \"n\" }"));
    let (proxy, [_a, _b]) = proxied("", setups).await;
    let mut names = BTreeMap::<_, Vec<String>>::new();
    for model in ["one", "one", "one", "two", "one", "two", "two", "one", "one", "two"] {
        names.entry(model).or_default().push(proxy.client.chat_with(model).await.ok().backend().to_owned());
    }
    takes_turns(&names["one"], 2);
    takes_turns(&names["two"], 2);
}

#[tokio::test]
async fn only_backends_that_serve_the_model_are_asked() {
    let setups = [Setup::named("a"), Setup::named("b"), Setup::named("c").native("org/other").unmapped()];
    let (proxy, [_a, _b, other]) = proxied("", setups).await;
    for _ in 0..6 {
        assert_ne!(proxy.client.chat().await.ok().backend(), "c");
    }
    assert_eq!(proxy.client.chat_with("org/other").await.ok().backend(), "c");
    assert_eq!(other.request_count(), 1);
}

#[tokio::test]
async fn a_busy_backend_is_passed_over() {
    let (proxy, [a, _b]) = proxied("", [Setup::named("a").slots(1), Setup::named("b")]).await;
    let gate = Gate::closed();
    a.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
    let held = in_flight_at(&proxy, &gate).await;
    for _ in 0..6 {
        assert_eq!(proxy.client.chat().await.ok().backend(), "b");
    }
    assert_eq!(proxy.backend("a").await["state"], "busy");
    gate.open();
    assert_eq!(held.reply().await.ok().backend(), "a");
}

/// Sends chats until one of them is held at the gate; that one.
async fn in_flight_at(proxy: &Proxy, gate: &Gate) -> Pending {
    for _ in 0..2 {
        let pending = proxy.client.begin_chat();
        eventually("the chat is held or answered", async || gate.arrivals() == 1 || pending.is_answered()).await;
        if !pending.is_answered() {
            return pending;
        }
    }
    panic!("neither of two chats came to the gate");
}

#[tokio::test]
async fn an_engine_that_says_it_has_no_room_is_passed_over() {
    let setups = [Setup::named("a").vllm(), Setup::named("b").vllm()];
    let (proxy, [a, _b]) = proxied("[capacity]\npoll_interval = \"50ms\"\n", setups).await;
    let queueing = Report { waiting: 3, ..Report::default() };
    let full = Report { kv_cache_used: 0.99, ..Report::default() };
    let unhealthy = Report { unhealthy: true, ..Report::default() };
    for (report, state) in [(queueing, "busy"), (full, "busy"), (unhealthy, "down")] {
        a.report(report);
        proxy.waits_until("a", state).await;
        for _ in 0..4 {
            assert_eq!(proxy.client.chat().await.ok().backend(), "b");
        }
        a.report(Report::default());
        proxy.waits_until("a", "available").await;
    }
}

#[tokio::test]
async fn least_busy_sends_to_whoever_holds_least() {
    let (proxy, backends) = proxied("[plugins]\npolicy = \"least-busy\"\n", ["a", "b", "c"]).await;
    let gates = [Gate::closed(), Gate::closed(), Gate::closed()];
    for (backend, gate) in backends.iter().zip(&gates) {
        backend.always(Answer::json(200, completion(NATIVE).to_string()).behind(gate));
    }
    let in_flight = || backends.iter().map(Backend::in_flight).collect::<Vec<_>>();
    let mut pending = Vec::new();
    for count in 1..=9 {
        pending.push(proxy.client.begin_chat());
        eventually("the chat is with a backend", async || in_flight().iter().sum::<usize>() == count).await;
    }
    assert_eq!(in_flight(), [3, 3, 3]);
    gates[1].release_one();
    gates[1].release_one();
    eventually("b has given two back", async || proxy.backend("b").await["in_flight"] == 1).await;
    for count in [8, 9] {
        pending.push(proxy.client.begin_chat());
        eventually("the chat is with a backend", async || in_flight().iter().sum::<usize>() == count).await;
    }
    assert_eq!(in_flight(), [3, 3, 3], "two chats had to go to the one that held least");
    gates.iter().for_each(Gate::open);
    for pending in pending {
        pending.reply().await.ok();
    }
}
