//! Room is what is free by everybody's word: our own count, the engine's report, and what requests cost.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::*;

/// Polls often, and believes a report for a second.
const POLLS: &str = "[capacity]\npoll_interval = \"50ms\"\nstale_after = \"1s\"\n";

/// A proxy before one vLLM of so many slots that reports this, and answers at the gate.
async fn before(slots: u32, report: Report) -> (Proxy, Backend, Gate) {
    before_by(POLLS, slots, report).await
}

/// The same with this configuration.
async fn before_by(top: &str, slots: u32, report: Report) -> (Proxy, Backend, Gate) {
    let (proxy, [backend]) = proxied(top, [Setup::named("a").vllm().slots(slots)]).await;
    let gate = Gate::closed();
    backend.answer_by({
        let gate = gate.clone();
        move |request| engine_answer(request).behind(&gate)
    });
    backend.report(report);
    let polls = backend.polled().len();
    eventually("the report has been read", async || backend.polled().len() > polls + 6).await;
    (proxy, backend, gate)
}

async fn are_served(held: Vec<Pending>, gate: &Gate) {
    gate.open();
    for pending in held {
        pending.reply().await.ok();
    }
}

#[tokio::test]
async fn what_others_hold_is_left_to_them() {
    let (proxy, backend, gate) = before(4, Report { others: 3, ..Report::default() }).await;
    let held: Vec<_> = (0..4).map(|_| proxy.client.begin_chat()).collect();
    gate.reached_by(1).await;
    proxy.queues(3).await;
    let told = proxy.backend("a").await;
    assert_eq!((&told["slots"], &told["room"], &told["in_flight"]), (&4.into(), &1.into(), &1.into()), "{told}");
    // The others have gone but for one.
    backend.report(Report { others: 1, ..Report::default() });
    gate.reached_by(3).await;
    proxy.queues(1).await;
    assert_eq!(backend.in_flight(), 3);
    are_served(held, &gate).await;
}

#[tokio::test]
async fn a_page_that_lies_neither_stops_nor_over_fills_anybody() {
    use LoadPage::{Redirects, Says};
    for page in [Says("0"), Says("-3"), Says("NaN"), Says("+Inf"), Says("1e300"), Says("many"), Says(""), Redirects] {
        let (proxy, backend, gate) = before(2, Report { page, ..Report::default() }).await;
        let held: Vec<_> = (0..4).map(|_| proxy.client.begin_chat()).collect();
        gate.reached_by(2).await;
        proxy.queues(2).await;
        assert_eq!(backend.in_flight(), 2, "{page:?}");
        are_served(held, &gate).await;
        assert_eq!(backend.most_in_flight(), 2, "{page:?}");
        assert!(!backend.polled().iter().any(|target| target == "/elsewhere"), "a redirect was followed");
    }
}

#[tokio::test]
async fn an_engine_that_tells_of_our_own_requests_has_room_for_more() {
    let (proxy, backend, gate) = before(4, Report::default()).await;
    let mut held = Vec::new();
    for running in 1..=4 {
        held.push(proxy.client.begin_chat());
        gate.reached_by(running as usize).await;
        backend.report(Report { running, ..Report::default() });
        let polls = backend.polled().len();
        eventually("the report has been read", async || backend.polled().len() > polls + 6).await;
        assert_eq!(proxy.backend("a").await["room"], 4);
    }
    are_served(held, &gate).await;
}

#[tokio::test]
async fn a_line_inside_the_engine_is_not_made_longer() {
    let (proxy, backend, gate) = before(8, Report { running: 0, waiting: 1, ..Report::default() }).await;
    let held = vec![proxy.client.begin_chat(), proxy.client.begin_chat()];
    proxy.queues(2).await;
    assert_eq!(proxy.backend("a").await["state"], "busy");
    assert_eq!(backend.request_count(), 0);
    backend.report(Report::default());
    gate.reached_by(2).await;
    are_served(held, &gate).await;
}

#[tokio::test]
async fn a_dead_page_of_metrics_stops_nobody() {
    let (proxy, backend, gate) = before(2, Report { waiting: 9, ..Report::default() }).await;
    let held = vec![proxy.client.begin_chat(), proxy.client.begin_chat()];
    proxy.queues(2).await;
    backend.report(Report { page: LoadPage::Dead, ..Report::default() });
    gate.reached_by(2).await;
    let told = proxy.backend("a").await;
    assert!(told["reported"]["running"].is_null() && told["reported"]["waiting"].is_null(), "{told}");
    are_served(held, &gate).await;
}

#[tokio::test]
async fn a_report_that_grows_old_stops_nobody() {
    let (proxy, backend, gate) = before(2, Report { waiting: 9, ..Report::default() }).await;
    let held = vec![proxy.client.begin_chat(), proxy.client.begin_chat()];
    proxy.queues(2).await;
    let since = Instant::now();
    backend.report(Report { page: LoadPage::Hangs, ..Report::default() });
    gate.reached_by(2).await;
    // Sooner than the hanging question is given up.
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    are_served(held, &gate).await;
}

#[tokio::test]
async fn a_full_cache_is_a_full_engine() {
    let (proxy, backend, gate) = before(2, Report { kv_cache_used: 0.96, ..Report::default() }).await;
    let held = vec![proxy.client.begin_chat()];
    proxy.queues(1).await;
    backend.report(Report { kv_cache_used: 0.94, ..Report::default() });
    gate.reached_by(1).await;
    are_served(held, &gate).await;
}

#[tokio::test]
async fn what_finds_too_little_memory_waits_here_and_what_finds_enough_passes() {
    let (proxy, backend, gate) = before(8, Report::default()).await;
    let with_text = |bytes| {
        let body =
            json!({"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": "a".repeat(bytes)}]});
        Pending::of(proxy.another_client().post(CHAT, body.to_string()))
    };
    let is_expected = async |part: f64| {
        eventually(&format!("{part} of the cache is thought to be taken"), async || {
            let expected = proxy.backend("a").await["kv_cache_expected"].as_f64();
            expected.is_some_and(|expected| (expected - part).abs() < 0.05)
        })
        .await;
    };
    let mut held = vec![with_text(1_600)];
    gate.reached_by(1).await;
    backend.report(Report { kv_cache_used: 0.4, ..Report::default() });
    is_expected(0.4).await;
    held.push(with_text(1_600));
    gate.reached_by(2).await;
    backend.report(Report { kv_cache_used: 0.8, ..Report::default() });
    is_expected(0.8).await;
    held.push(with_text(1_600));
    proxy.queues(1).await;
    held.push(with_text(200));
    gate.reached_by(3).await;
    proxy.queues(1).await;
    are_served(held, &gate).await;
    is_expected(0.0).await;
}

fn with_images(proxy: &Proxy, count: usize) -> Pending {
    let images = vec![base64_text(300); count];
    Pending::of(proxy.another_client().post(CHAT, vision_body(&images)))
}

#[tokio::test]
async fn images_take_the_slots_they_cost() {
    let top = "[capacity.cost]\nimage = 1.5\n";
    let (proxy, [backend]) = proxied(top, [Setup::named("a").slots(6)]).await;
    let gate = Gate::closed();
    backend.answer_by({
        let gate = gate.clone();
        move |request| engine_answer(request).behind(&gate)
    });
    // 1 + 1.5, rounded up: three slots each.
    let mut held = vec![with_images(&proxy, 1), with_images(&proxy, 1)];
    gate.reached_by(2).await;
    held.push(proxy.client.begin_chat());
    proxy.queues(1).await;
    assert_eq!((backend.in_flight(), &proxy.backend("a").await["in_flight"]), (2, &2.into()));
    // Dearer than the whole backend: it has to have it alone, and then it does.
    held.push(with_images(&proxy, 9));
    proxy.queues(2).await;
    are_served(held, &gate).await;
    assert_eq!(backend.request_count(), 4);
    proxy.falls_idle().await;
}

#[tokio::test]
async fn images_that_cost_more_than_others_leave_take_what_they_leave() {
    let top = format!("{POLLS}[capacity.cost]\nimage = 1.0\n");
    let (proxy, backend, gate) = before_by(&top, 4, Report { others: 1, ..Report::default() }).await;
    assert_eq!(proxy.backend("a").await["room"], 3);
    // One and three: never will all four be free while somebody else is there.
    let mut held = vec![with_images(&proxy, 3)];
    gate.reached_by(1).await;
    held.extend([proxy.client.begin_chat(), proxy.client.begin_chat()]);
    proxy.queues(2).await;
    assert_eq!(backend.in_flight(), 1, "it has all to itself");
    gate.release_one();
    gate.reached_by(3).await;
    are_served(held, &gate).await;
}

#[tokio::test]
async fn what_the_fleet_shows_is_what_backends_hold() {
    let setups = [("a", 2), ("b", 5)].map(|(name, slots)| Setup::named(name).slots(slots));
    let (proxy, backends) = proxied("workers = 2\n", setups).await;
    let clients = 40;
    for round in 1..=5 {
        let gate = Gate::closed();
        for backend in &backends {
            let gate = gate.clone();
            backend.answer_by(move |request| engine_answer(request).behind(&gate));
        }
        let held: Vec<_> = (0..clients).map(|_| proxy.another_client().begin_chat()).collect();
        for released in 0..20 {
            gate.reached_by(7 + released).await;
            // Between two releases nothing moves: every number must be exact.
            for backend in &backends {
                assert_eq!(proxy.backend(backend.name()).await["in_flight"], backend.in_flight(), "round {round}");
            }
            gate.release_one();
        }
        are_served(held, &gate).await;
        proxy.falls_idle().await;
    }
    assert!(backends[0].most_in_flight() == 2 && backends[1].most_in_flight() == 5);
}
