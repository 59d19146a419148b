//! When every candidate is busy, requests wait in order; the line is bounded in number and in time.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::*;

/// A proxy before one backend of one slot, which is held at the gate until the pending chat may end. No poll wakes
/// who waits: only a release can.
async fn full(top: &str) -> (Proxy, Backend, Gate, Pending) {
    let (proxy, [backend]) = proxied(&format!("{top}{RARE_POLLS}"), [Setup::named("a").slots(1)]).await;
    let gate = Gate::closed();
    backend.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
    let held = proxy.client.begin_chat();
    gate.reached_by(1).await;
    (proxy, backend, gate, held)
}

fn numbered(proxy: &Proxy, number: usize) -> Pending {
    let body = format!("{{\"model\":\"{MODEL}\",\"messages\":[],\"number\":{number}}}");
    Pending::of(proxy.another_client().post(CHAT, body))
}

/// The numbers of the requests that reached a backend, in their order.
fn order_at(backend: &Backend) -> Vec<u64> {
    backend.requests().iter().filter_map(|request| request.json()["number"].as_u64()).collect()
}

/// Requires a 429 that says when to come back, in whole seconds and in milliseconds.
fn is_saturated(reply: &Reply) {
    reply.clone().refused(429, "backends_saturated");
    let seconds: u64 = reply.header("retry-after").parse().expect("seconds");
    let millis: u64 = reply.header("retry-after-ms").parse().expect("milliseconds");
    assert!((1..=60).contains(&seconds) && (1..=60_000).contains(&millis), "{reply:?}");
    assert!(millis <= seconds * 1_000, "the finer word is the shorter one: {reply:?}");
}

#[tokio::test]
async fn who_waits_longest_is_served_first() {
    let (proxy, backend, gate, held) = full("workers = 2\n").await;
    let mut line = Vec::new();
    for number in 0..12 {
        line.push(numbered(&proxy, number));
        proxy.queues(number as u64 + 1).await;
    }
    for released in 1..=13 {
        gate.reached_by(released).await;
        gate.release_one();
    }
    held.reply().await.ok();
    for pending in line {
        pending.reply().await.ok();
    }
    assert_eq!(order_at(&backend), (0..12).collect::<Vec<_>>());
    assert_eq!(backend.most_in_flight(), 1);
}

#[tokio::test]
async fn a_newcomer_does_not_pass_those_who_wait() {
    let (proxy, backend, gate, held) = full("workers = 2\n").await;
    let waiting = numbered(&proxy, 0);
    proxy.queues(1).await;
    // With every release somebody new arrives: were newcomers served first, 0 would come last.
    let newcomers = (1..=20).map(|number| numbered(&proxy, number)).collect::<Vec<_>>();
    gate.open();
    for pending in newcomers.into_iter().chain([waiting, held]) {
        pending.reply().await.ok();
    }
    assert_eq!(order_at(&backend)[0], 0);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let (proxy, backend, gate, held) = full("[queue]\nsize = 2\n").await;
    let line = [numbered(&proxy, 0), numbered(&proxy, 1)];
    proxy.queues(2).await;
    is_saturated(&proxy.client.chat().await);
    assert_eq!(proxy.admin_json("/api/fleet").await["queue"], serde_json::json!({"waiting": 2, "size": 2}));
    gate.open();
    for pending in line.into_iter().chain([held]) {
        pending.reply().await.ok();
    }
    assert_eq!(backend.request_count(), 3);
}

#[tokio::test]
async fn without_a_queue_a_busy_fleet_refuses_at_once() {
    let (proxy, backend, gate, held) = full("[queue]\nsize = 0\n").await;
    is_saturated(&proxy.client.chat().await);
    gate.open();
    held.reply().await.ok();
    proxy.client.chat().await.ok();
    assert_eq!(backend.request_count(), 2);
}

#[tokio::test]
async fn who_waited_too_long_is_refused() {
    let (proxy, backend, gate, held) = full("[queue]\ntimeout = \"300ms\"\n").await;
    let start = Instant::now();
    is_saturated(&proxy.client.chat().await);
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(300) && waited < Duration::from_secs(2), "{waited:?}");
    assert_eq!(proxy.waiting().await, 0);
    gate.open();
    held.reply().await.ok();
    assert_eq!(backend.request_count(), 1);
}

#[tokio::test]
async fn a_refusal_speaks_the_language_of_its_path() {
    let (proxy, _backend, gate, held) = full("[queue]\nsize = 0\n").await;
    let anthropic = proxy.client.post_json(MESSAGES, &chat_body()).await;
    assert_eq!((anthropic.status.as_u16(), &anthropic.json()["type"]), (429, &"error".into()), "{anthropic:?}");
    let ollama = proxy.client.post_json("/api/chat", &chat_body()).await;
    assert!(ollama.status == 429 && ollama.json()["error"].is_string(), "{ollama:?}");
    for reply in [anthropic, ollama] {
        assert_ne!((reply.header("retry-after"), reply.header("retry-after-ms")), ("", ""));
    }
    gate.open();
    held.reply().await.ok();
}

#[tokio::test]
async fn a_client_that_leaves_the_line_frees_its_place() {
    let (proxy, backend, gate, held) = full("[queue]\nsize = 2\n").await;
    let (leaving, staying) = (numbered(&proxy, 0), numbered(&proxy, 1));
    proxy.queues(2).await;
    leaving.leave().await;
    proxy.queues(1).await;
    let late = numbered(&proxy, 2);
    proxy.queues(2).await;
    gate.open();
    for pending in [held, staying, late] {
        pending.reply().await.ok();
    }
    let mut served = order_at(&backend);
    served.sort_unstable();
    assert_eq!(served, [1, 2], "who left was not to be served");
}

#[tokio::test]
async fn leaving_does_not_disturb_the_order_of_the_others() {
    let (proxy, backend, gate, held) = full("").await;
    let mut line = Vec::new();
    for number in 0..9 {
        line.push(Some(numbered(&proxy, number)));
        proxy.queues(number as u64 + 1).await;
    }
    for leaving in [4, 0, 8] {
        line[leaving].take().expect("still there").leave().await;
    }
    proxy.queues(6).await;
    for released in 1..=7 {
        gate.reached_by(released).await;
        gate.release_one();
    }
    held.reply().await.ok();
    for pending in line.into_iter().flatten() {
        pending.reply().await.ok();
    }
    assert_eq!(order_at(&backend), [1, 2, 3, 5, 6, 7]);
}

#[tokio::test]
async fn a_model_that_is_free_does_not_wait_for_one_that_is_busy() {
    let setups = [Setup::named("a").slots(1), Setup::named("b").native("org/other").unmapped()];
    let (proxy, [a, _b]) = proxied("", setups).await;
    let gate = Gate::closed();
    a.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
    let held = [proxy.client.begin_chat(), proxy.client.begin_chat()];
    proxy.queues(1).await;
    proxy.client.chat_with("org/other").await.ok();
    gate.open();
    for pending in held {
        pending.reply().await.ok();
    }
}

#[tokio::test]
async fn a_fresh_report_wakes_those_who_wait() {
    let (proxy, [backend]) = proxied("[capacity]\npoll_interval = \"50ms\"\n", [Setup::named("a").vllm()]).await;
    backend.report(Report { waiting: 1, ..Report::default() });
    proxy.waits_until("a", "busy").await;
    let pending = proxy.client.begin_chat();
    proxy.queues(1).await;
    assert_eq!(backend.request_count(), 0);
    backend.report(Report::default());
    pending.reply().await.ok();
}

#[tokio::test]
async fn who_waits_at_a_backend_that_dies_is_served_by_another_that_comes() {
    let (a, b) = (Setup::named("a").slots(1).start().await, Setup::named("b").start_refusing());
    let proxy = Proxy::start(&config("[capacity]\npoll_interval = \"50ms\"\n", [&a, &b])).await;
    proxy.waits_until("b", "down").await;
    let gate = Gate::closed();
    a.always(stream_held_at(&gate));
    let mut held = proxy.client.stream().await;
    held.next().await;
    let waiting = proxy.client.begin_chat();
    proxy.queues(1).await;
    b.restart().await;
    assert_eq!(waiting.reply().await.ok().backend(), "b");
    gate.open();
    held.rest().await;
}

#[tokio::test]
async fn clients_with_different_keys_take_turns() {
    let (proxy, backend, gate, held) = full("").await;
    let mut line = Vec::new();
    for (number, key) in ["greedy"; 5].into_iter().chain(["modest", "modest"]).enumerate() {
        let body = format!("{{\"model\":\"{MODEL}\",\"messages\":[],\"number\":{number}}}");
        line.push(Pending::of(proxy.another_client().post(CHAT, body).bearer_auth(key)));
        proxy.queues(number as u64 + 1).await;
    }
    for released in 1..=8 {
        gate.reached_by(released).await;
        gate.release_one();
    }
    for pending in line.into_iter().chain([held]) {
        pending.reply().await.ok();
    }
    assert_eq!(order_at(&backend), [0, 5, 1, 6, 2, 3, 4]);
}

#[tokio::test]
async fn one_key_does_not_fill_the_line_for_all_others() {
    let (proxy, _backend, gate, held) = full("[queue]\nsize = 2\n").await;
    let by = |key: &str| Pending::of(proxy.another_client().post(CHAT, chat_body().to_string()).bearer_auth(key));
    let first = by("greedy");
    proxy.queues(1).await;
    let second = by("greedy");
    proxy.queues(2).await;
    is_saturated(&by("greedy").reply().await);
    let modest = by("modest");
    is_saturated(&second.reply().await);
    gate.open();
    for pending in [held, first, modest] {
        pending.reply().await.ok();
    }
}

#[tokio::test]
async fn a_refusal_in_a_bad_moment_is_not_held_against_the_next() {
    let (proxy, [backend]) =
        proxied("[queue]\nsize = 0\n[capacity]\npoll_interval = \"50ms\"\n", [Setup::named("a").vllm().slots(1)]).await;
    backend.report(Report { running: 9, ..Report::default() });
    eventually("others fill it", async || proxy.backend("a").await["state"] == "busy").await;
    let after = |reply: &Reply| reply.header("retry-after-ms").parse::<u64>().expect("milliseconds");
    let refused = proxy.client.chat().await;
    is_saturated(&refused);
    assert!((5_000..20_000).contains(&after(&refused)), "others are not thought to be done at once: {refused:?}");
    backend.report(Report::default());
    eventually("they have gone", async || proxy.backend("a").await["state"] == "available").await;
    let gate = Gate::closed();
    backend.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
    let held = proxy.client.begin_chat();
    gate.reached_by(1).await;
    let next = proxy.client.chat().await;
    is_saturated(&next);
    assert!(after(&next) < 20_000, "{next:?}");
    gate.open();
    held.reply().await.ok();
}

#[tokio::test]
async fn a_line_of_large_bodies_is_bounded_in_bytes() {
    let (proxy, _backend, gate, held) = full("[queue]\nbytes = \"10KiB\"\n").await;
    let large = || {
        let body = format!("{{\"model\":\"{MODEL}\",\"messages\":[],\"text\":\"{}\"}}", "x".repeat(6 << 10));
        Pending::of(proxy.another_client().post(CHAT, body))
    };
    let first = large();
    proxy.queues(1).await;
    is_saturated(&large().reply().await);
    let small = numbered(&proxy, 1);
    proxy.queues(2).await;
    gate.open();
    for pending in [held, first, small] {
        pending.reply().await.ok();
    }
}

/// Two backends of one slot, each held at a gate by one of the first two requests, and more requests in line, all
/// numbered. First the one that holds request 0.
async fn two_full(top: &str, in_line: usize) -> (Proxy, [(Backend, Gate); 2], Vec<Pending>) {
    let setups = ["a", "b"].map(|name| Setup::named(name).slots(1));
    let (proxy, backends) = proxied(&format!("{top}{RARE_POLLS}"), setups).await;
    let mut held = backends.map(|backend| {
        let gate = Gate::closed();
        backend.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
        (backend, gate)
    });
    let mut sent = Vec::new();
    for number in 0..2 {
        sent.push(numbered(&proxy, number));
        let arrived = async || held.iter().map(|(backend, _)| backend.request_count()).sum::<usize>() == number + 1;
        eventually("it has arrived", arrived).await;
    }
    for number in 2..2 + in_line {
        sent.push(numbered(&proxy, number));
        proxy.queues(number as u64 - 1).await;
    }
    if order_at(&held[0].0) != [0] {
        held.reverse();
    }
    (proxy, held, sent)
}

#[tokio::test]
async fn whose_backend_died_keeps_its_turn() {
    let (proxy, [(dies, _), (stays, gate)], sent) = two_full("workers = 2\n", 6).await;
    dies.stop().await;
    // The one that it held, and the first in line, which was given its slot.
    proxy.waits_until(dies.name(), "down").await;
    proxy.queues(7).await;
    for released in 1..=8 {
        gate.reached_by(released).await;
        gate.release_one();
    }
    for pending in sent {
        assert_eq!(pending.reply().await.ok().backend(), stays.name());
    }
    assert_eq!(order_at(&stays), [1, 0, 2, 3, 4, 5, 6, 7]);
    assert_eq!(stays.most_in_flight(), 1);
}

#[tokio::test]
async fn a_full_line_refuses_nobody_whose_backend_died() {
    let (proxy, [(dies, _), (stays, gate)], sent) = two_full("[queue]\nsize = 2\n", 2).await;
    dies.stop().await;
    proxy.queues(3).await;
    is_saturated(&proxy.client.chat().await);
    gate.open();
    for pending in sent {
        assert_eq!(pending.reply().await.ok().backend(), stays.name());
    }
}

#[tokio::test]
async fn the_time_in_line_is_bounded_over_all_attempts() {
    let (proxy, [(dies, gate), (_stays, other)], sent) = two_full("[queue]\ntimeout = \"4s\"\n", 1).await;
    let since = Instant::now();
    // Nothing is waited for but that time passes.
    tokio::time::sleep(Duration::from_secs(3)).await;
    gate.release_one();
    gate.reached_by(2).await;
    dies.stop().await;
    let [served, held, late] = sent.try_into().unwrap_or_else(|_| unreachable!("three requests"));
    is_saturated(&late.reply().await);
    assert!(since.elapsed() < Duration::from_secs(6), "another four seconds: {:?}", since.elapsed());
    other.open();
    for pending in [served, held] {
        pending.reply().await.ok();
    }
    proxy.falls_idle().await;
}
