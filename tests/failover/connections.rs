//! Connections to backends: refused ones, stale ones, and those that close between two requests.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::support::*;

#[tokio::test]
async fn a_backend_that_refuses_is_noticed_by_the_first_connection() {
    let (proxy, [a, _b]) = proxied(RARE_POLLS, ["a", "b"]).await;
    proxy.client.chat().await.ok();
    a.stop().await;
    let mut attempts = 0;
    for _ in 0..10 {
        let reply = proxy.client.chat().await.ok();
        assert_eq!(reply.backend(), "b");
        attempts += reply.attempts();
    }
    assert!(attempts <= 11, "one failed connection is enough to know: {attempts} attempts for 10 requests");
    let told = proxy.backend("a").await;
    assert_eq!(told["state"], "down", "{told}");
    assert!(told["down_since"].is_string() || told["down_since"].is_number(), "{told}");
    assert!(told["last_error"].is_string(), "{told}");
}

#[tokio::test]
async fn a_backend_that_takes_no_connection_costs_the_time_to_connect_once() {
    let top = format!("[timeouts]\nconnect = \"300ms\"\n{RARE_POLLS}");
    let (proxy, [a, _b]) = proxied(&top, ["a", "b"]).await;
    let _hung = a.hang().await;
    let start = Instant::now();
    let mut attempts = 0;
    for _ in 0..6 {
        let reply = proxy.client.chat().await.ok();
        assert_eq!(reply.backend(), "b");
        attempts += reply.attempts();
    }
    assert!(attempts <= 7 && start.elapsed() < Duration::from_millis(1_200), "{attempts} in {:?}", start.elapsed());
}

#[tokio::test]
async fn requests_in_flight_survive_the_death_of_their_backend() {
    let (proxy, [a, b]) = proxied("", ["a", "b"]).await;
    let gate = Gate::closed();
    a.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
    let pending: Vec<_> = (0..20).map(|_| proxy.client.begin_chat()).collect();
    gate.reached_by(10).await;
    a.stop().await;
    for pending in pending {
        assert_eq!(pending.reply().await.ok().backend(), "b");
    }
    assert_eq!(b.request_count(), 20);
}

#[tokio::test]
async fn a_request_does_not_wait_for_a_backend_that_listens_no_more() {
    let (proxy, [a, _b]) = proxied("", ["a", "b"]).await;
    let gate = Gate::closed();
    a.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
    let pending = [(); 2].map(|()| proxy.client.begin_chat());
    gate.reached_by(1).await;
    a.shut();
    for pending in pending {
        assert_eq!(pending.reply().await.ok().backend(), "b");
    }
    proxy.falls_idle().await;
}

#[tokio::test]
async fn a_connection_that_the_backend_closed_after_its_answer_is_not_used_again() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    // Closed without a word of warning: no `Connection: close`.
    backend.always(Answer::json(200, completion(NATIVE).to_string()).close());
    for _ in 0..30 {
        assert_eq!(proxy.client.chat().await.ok().attempts(), 1);
    }
    assert_eq!(proxy.backend("a").await["failures_total"], 0);
}

#[tokio::test]
async fn a_connection_that_closes_just_as_it_is_used_again_costs_nothing() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let used = Mutex::new(BTreeSet::new());
    backend.answer_by(move |request| {
        // An engine whose idle time-out ran out at this very moment.
        if used.lock().expect("no poison").insert(request.connection) {
            engine_answer(request)
        } else {
            Answer::nothing().close()
        }
    });
    for _ in 0..10 {
        proxy.client.chat().await.ok();
    }
}

#[tokio::test]
async fn a_restarted_backend_is_not_asked_over_old_connections() {
    let (proxy, [backend]) = proxied("[capacity]\npoll_interval = \"50ms\"\n", ["a"]).await;
    let client = proxy.client.clone();
    in_parallel(8, move |_| {
        let client = client.clone();
        async move { client.chat().await.ok() }
    })
    .await;
    backend.stop().await;
    proxy.waits_until("a", "down").await;
    backend.restart().await;
    proxy.waits_until("a", "available").await;
    for _ in 0..8 {
        assert_eq!(proxy.client.chat().await.ok().attempts(), 1);
    }
}

#[tokio::test]
async fn an_answer_with_more_than_it_announced_does_not_reach_the_next_client() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let smuggled = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled";
    let body = completion(NATIVE).to_string();
    backend.always(Answer::wire(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}{smuggled}",
        body.len()
    )));
    for _ in 0..10 {
        assert_eq!(proxy.client.chat().await.ok().json(), completion(MODEL));
    }
}
