//! What is tried again elsewhere, and what never is.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::*;

/// Before any byte of an answer's body: each of these costs the client nothing.
fn deaths() -> Vec<Answer> {
    let half_a_head = Answer::wire("HTTP/1.1 200 OK\r\ncontent-ty");
    vec![
        Answer::nothing().close(),
        Answer::nothing().reset(),
        half_a_head.clone().close(),
        half_a_head.reset(),
        Answer::stream().close(),
        Answer::stream().reset(),
    ]
}

fn arrived(backends: &[Backend]) -> usize {
    backends.iter().map(Backend::request_count).sum()
}

#[tokio::test]
async fn a_backend_that_dies_before_its_answer_costs_nothing() {
    let (proxy, backends) = proxied("", ["a", "b"]).await;
    for (number, death) in deaths().into_iter().enumerate() {
        once_among(&backends, &death);
        let before = arrived(&backends);
        let reply = whole(proxy.client.post(CHAT, stream_body().to_string())).await.ok();
        assert!(reply.text().ends_with("data: [DONE]\n\n"), "death {number}: {reply:?}");
        // On a kept connection it counts as one attempt: that one may only have been closed for its age.
        assert_eq!(arrived(&backends) - before, 2, "death {number}");
    }
}

#[tokio::test]
async fn a_request_without_a_stream_is_replayed_too() {
    let (proxy, backends) = proxied("", ["a", "b"]).await;
    for death in [Answer::nothing().close(), Answer::nothing().reset()] {
        once_among(&backends, &death);
        let before = arrived(&backends);
        assert_eq!(proxy.client.chat().await.ok().json()["model"], MODEL);
        assert_eq!(arrived(&backends) - before, 2);
    }
}

#[tokio::test]
async fn a_large_body_is_replayed_bit_for_bit() {
    let (proxy, backends) = proxied("", ["a", "b"]).await;
    let document = vision_body(&[base64_text(20_000_000)]);
    once_among(&backends, &Answer::nothing().reset());
    assert_eq!(whole(proxy.client.post(CHAT, document.clone())).await.ok().attempts(), 2);
    let expected = as_native(&document);
    for backend in &backends {
        assert!(backend.request().body == expected.as_bytes(), "{} received another body", backend.name());
    }
}

#[tokio::test]
async fn a_backend_that_breaks_off_an_upload_costs_nothing() {
    let (proxy, [a, b]) = proxied("", ["a", "b"]).await;
    let document = vision_body(&[base64_text(20_000_000)]);
    let expected = as_native(&document);
    a.break_next_upload();
    for _ in 0..2 {
        whole(proxy.client.post(CHAT, document.clone())).await.ok();
    }
    assert!(a.requests().iter().any(|request| !request.complete), "no upload was broken off");
    assert!(b.requests().iter().all(|request| request.body == expected.as_bytes()));
}

#[tokio::test]
async fn a_backend_that_pushes_back_is_left_alone_as_long_as_it_asked() {
    for status in [429, 503] {
        let (proxy, [a, _b]) = proxied("", ["a", "b"]).await;
        a.always(Answer::push_back(status, 1));
        let start = Instant::now();
        for _ in 0..2 {
            assert_eq!(proxy.client.chat().await.ok().backend(), "b");
        }
        assert_eq!((a.request_count(), &proxy.backend("a").await["state"]), (1, &"busy".into()));
        a.heal();
        let asked_again = async || proxy.client.chat().await.ok().backend() == "a";
        eventually("the backend is asked again", asked_again).await;
        let left_alone = start.elapsed();
        assert!(
            left_alone >= Duration::from_secs(1) && left_alone < Duration::from_secs(4),
            "{status}: {left_alone:?}"
        );
    }
}

#[tokio::test]
async fn a_backend_that_pushes_back_without_a_time_costs_nothing() {
    let (proxy, backends) = proxied("", ["a", "b"]).await;
    for status in [429, 503] {
        once_among(&backends, &Answer::error(status));
        proxy.client.chat().await.ok();
    }
}

#[tokio::test]
async fn a_fleet_that_pushes_back_as_a_whole_is_saturated() {
    let (proxy, backends) = proxied("[queue]\ntimeout = \"200ms\"\n", ["a", "b"]).await;
    for backend in &backends {
        backend.always(Answer::push_back(503, 30));
    }
    for _ in 0..3 {
        let reply = proxy.client.chat().await;
        let seconds: u64 = reply.header("retry-after").parse().expect("seconds");
        assert!(reply.status == 429 && (20..=60).contains(&seconds), "no sooner than any takes one: {reply:?}");
    }
    assert_eq!(backends.each_ref().map(Backend::request_count), [1, 1], "who pushed back was asked again");
}

#[tokio::test]
async fn who_is_busy_more_often_than_there_are_attempts_is_waited_for() {
    let (proxy, [a]) = proxied("[failover]\nattempts = 2\n", [Setup::named("a").slots(1)]).await;
    let count = AtomicUsize::new(0);
    a.answer_by(
        move |request| {
            if count.fetch_add(1, SeqCst) < 5 { Answer::push_back(503, 0) } else { engine_answer(request) }
        },
    );
    assert_eq!(proxy.client.chat().await.ok().attempts(), 6);
    assert_eq!(proxy.backend("a").await["failures_total"], 0);
}

#[tokio::test]
async fn who_is_busy_is_waited_for_no_longer_than_the_line_may_last() {
    let start = Instant::now();
    for (queue, asked) in [("timeout = \"500ms\"", 2..20), ("size = 0", 1..3)] {
        let (proxy, [a]) = proxied(&format!("[queue]\n{queue}\n[failover]\nattempts = 2\n"), ["a"]).await;
        a.always(Answer::push_back(429, 0));
        proxy.client.chat().await.refused(429, "backends_saturated");
        assert!(asked.contains(&a.request_count()), "{queue}: {}", a.request_count());
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_fault_of_one_backend_is_tried_once_elsewhere() {
    let (proxy, backends) = proxied("", ["a", "b"]).await;
    for status in [500, 502, 504] {
        once_among(&backends, &Answer::error(status));
        assert_eq!(proxy.client.chat().await.ok().attempts(), 2, "{status}");
    }
}

#[tokio::test]
async fn a_fault_of_two_backends_is_passed_on() {
    let (proxy, backends) = proxied("", ["a", "b", "c"]).await;
    for backend in &backends {
        backend.always(Answer::error(500));
    }
    let reply = proxy.client.chat().await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["message"]), (500, &"the engine says 500".into()));
    assert_eq!((arrived(&backends), reply.attempts()), (2, 2), "a fault is tried once elsewhere, not more");
}

#[tokio::test]
async fn a_stream_that_begins_with_an_error_is_tried_once_elsewhere() {
    let (proxy, backends) = proxied("", ["a", "b"]).await;
    let error =
        json!({"error": {"message": "EngineCore encountered an issue", "type": "InternalServerError", "code": 500}});
    let stillborn = Answer::stream().event(&error).done();
    once_among(&backends, &stillborn);
    let text = proxy.client.stream().await.rest().await;
    assert!(text.contains(MODEL) && !text.contains("EngineCore"), "{text}");
    for backend in &backends {
        backend.always(stillborn.clone());
    }
    let text = proxy.client.stream().await.rest().await;
    assert!(text.contains("EngineCore"), "where both fail, the error is the client's: {text}");
    assert_eq!(arrived(&backends), 4);
}

#[tokio::test]
async fn the_clients_own_mistake_is_never_tried_again() {
    let (proxy, backends) = proxied("[failover]\neject_after = 1\n", ["a", "b"]).await;
    for (sent, status) in [400, 404, 409, 413, 415, 422].into_iter().enumerate() {
        for backend in &backends {
            backend.always(Answer::error(status));
        }
        let reply = proxy.client.chat().await;
        assert_eq!((reply.status.as_u16(), reply.attempts(), arrived(&backends)), (status, 1, sent + 1));
    }
    for backend in proxy.backends().await {
        assert_eq!((&backend["state"], &backend["failures_total"]), (&"available".into(), &0.into()));
    }
}

#[tokio::test]
async fn a_request_that_kills_two_backends_is_not_tried_on_a_third() {
    let (proxy, backends) = proxied("[failover]\nattempts = 5\n", ["a", "b", "c", "d"]).await;
    for backend in &backends {
        backend.always(Answer::nothing().reset());
    }
    proxy.client.chat().await.refused(502, "upstream_unreachable");
    assert_eq!(arrived(&backends), 2);
}

#[tokio::test]
async fn no_more_backends_are_tried_than_configured() {
    let (proxy, backends) = proxied("[failover]\nattempts = 1\n", ["a", "b"]).await;
    once_among(&backends, &Answer::nothing().reset());
    proxy.client.chat().await.refused(502, "upstream_unreachable");
    assert_eq!(arrived(&backends), 1);
}

#[tokio::test]
async fn an_unanswered_request_is_not_repeated_where_that_is_forbidden() {
    let (proxy, backends) = proxied("[failover]\nretry_unanswered = false\n", ["a", "b"]).await;
    once_among(&backends, &Answer::nothing().reset());
    proxy.client.chat().await.refused(502, "upstream_unreachable");
    assert_eq!(arrived(&backends), 1);
}

#[tokio::test]
async fn a_request_that_stores_something_is_not_repeated_once_sent() {
    let (proxy, backends) = proxied("", ["a", "b"]).await;
    once_among(&backends, &Answer::nothing().reset());
    let stored = json!({"model": MODEL, "input": "hello", "background": true});
    proxy.client.post_json(RESPONSES, &stored).await.refused(502, "upstream_unreachable");
    assert_eq!(arrived(&backends), 1);
    once_among(&backends, &Answer::nothing().reset());
    let passing = json!({"model": MODEL, "input": "hello", "background": false});
    proxy.client.post_json(RESPONSES, &passing).await.ok();
}

#[tokio::test]
async fn the_key_of_one_backend_is_never_sent_to_another() {
    let folder = Folder::new();
    let with_key = |name: &str| {
        let key = folder.write(name, format!("sk-of-{name}"));
        Setup::named(name).line(&format!("api_key = {{ file = \"{}\" }}", key.display()))
    };
    let (proxy, backends) = proxied("", [with_key("a"), with_key("b"), Setup::named("c")]).await;
    let mut attempts = 0;
    for _ in 0..6 {
        once_among(&backends, &Answer::nothing().reset());
        attempts += proxy.client.chat().await.ok().attempts();
    }
    assert!(
        attempts > 6 && backends.iter().all(|backend| backend.request_count() > 0),
        "nobody was tried after another"
    );
    for (backend, key) in backends.iter().zip([vec!["Bearer sk-of-a"], vec!["Bearer sk-of-b"], vec![]]) {
        for request in backend.requests() {
            assert_eq!(request.headers("authorization"), key, "{}", backend.name());
        }
    }
}
