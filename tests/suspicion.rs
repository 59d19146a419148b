//! Backends that fail now and then: avoided, put out of use, and kept where there is nobody else.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use std::time::Duration;

use tokio::time::Instant;

use crate::support::*;

/// Fails so many of each hundred, evenly spread, and at once.
fn fails(backend: &Backend, percent: usize) {
    let count = AtomicUsize::new(0);
    backend.answer_by(move |request| {
        let number = count.fetch_add(1, SeqCst) + 1;
        let is_failure = number * percent / 100 > (number - 1) * percent / 100;
        if is_failure { Answer::nothing().reset() } else { engine_answer(request) }
    });
}

#[tokio::test]
async fn failing_too_often_ejects_though_never_often_in_a_row() {
    let (proxy, [a, _b]) = proxied("[failover]\neject_after = 1000\n", ["a", "b"]).await;
    fails(&a, 67);
    let ejected = async || {
        proxy.client.chat().await.ok();
        proxy.backend("a").await["state"] == "down"
    };
    eventually("a is out of use", ejected).await;
    assert!(a.request_count() >= 20, "too few to tell: {}", a.request_count());
    eventually("the log says so", async || proxy.output().contains("out of use after repeated failures")).await;
}

#[tokio::test]
async fn failing_fast_attracts_nothing_whatever_the_policy() {
    for policy in ["round-robin", "least-busy"] {
        let top = format!("[plugins]\npolicy = \"{policy}\"\n[failover]\neject_after = 1000\n");
        let (proxy, [a, b]) = proxied(&top, ["a", "b"]).await;
        fails(&a, 40);
        in_parallel(8, |_| {
            let client = proxy.another_client();
            async move {
                for _ in 0..25 {
                    client.chat().await.ok();
                }
            }
        })
        .await;
        let (failing, sound) = (a.request_count(), b.request_count());
        assert!(
            failing > 0 && failing * 2 < sound,
            "{policy}: {failing} went to the failing one, {sound} to the other"
        );
    }
}

#[tokio::test]
async fn a_poisoned_request_ejects_nobody() {
    let (proxy, backends) = proxied("[failover]\neject_after = 2\n", ["a", "b", "c"]).await;
    for backend in &backends {
        backend.answer_by(
            |request| {
                if request.text().contains("poison") { Answer::error(500) } else { engine_answer(request) }
            },
        );
    }
    for _ in 0..10 {
        let body = format!("{{\"model\":\"{MODEL}\",\"messages\":[],\"note\":\"poison\"}}");
        assert_eq!(whole(proxy.client.post(CHAT, body)).await.status, 500);
        proxy.client.chat().await.ok();
    }
    for backend in &backends {
        let told = proxy.backend(backend.name()).await;
        assert_eq!((&told["state"], &told["failures_total"]), (&"available".into(), &0.into()), "{told}");
    }
}

#[tokio::test]
async fn a_fleet_that_looks_bad_as_a_whole_stays_in_use_and_says_so() {
    let (proxy, [a, b]) = proxied("[failover]\neject_after = 1\nattempts = 1\n", ["a", "b"]).await;
    for backend in [&a, &b] {
        backend.always(Answer::nothing().reset());
    }
    for _ in 0..4 {
        proxy.client.chat().await.refused(502, "upstream_unreachable");
    }
    let suspect = async || proxy.metrics().await.value("vision_proxy_fleet_suspect", &[]);
    assert_eq!(suspect().await, Some(1.0));
    a.heal();
    b.heal();
    proxy.client.chat().await.ok();
    assert_eq!(suspect().await, Some(0.0));
}

/// Out of use after one failure, beside one that is sound; nobody is asked anything between requests.
async fn one_ejected() -> (Proxy, [Backend; 2]) {
    let top = "[failover]\neject_after = 1\n[capacity]\npoll_interval = \"1m\"\nstale_after = \"1m\"\n";
    let (proxy, [a, b]) = proxied(top, [Setup::named("a").slots(1), Setup::named("b").slots(1)]).await;
    a.always(Answer::nothing().reset());
    while a.request_count() == 0 {
        proxy.client.chat().await.ok();
    }
    assert_eq!(proxy.backend("a").await["state"], "down");
    (proxy, [a, b])
}

#[tokio::test]
async fn whoever_waits_is_the_trial_as_soon_as_the_back_off_is_over() {
    let (proxy, [a, b]) = one_ejected().await;
    a.heal();
    let ejected = Instant::now();
    let gate = Gate::closed();
    b.answer_by({
        let gate = gate.clone();
        move |request| engine_answer(request).behind(&gate)
    });
    let held = proxy.client.begin_chat();
    gate.reached_by(1).await;
    assert_eq!(proxy.client.chat().await.ok().backend(), "a");
    assert!(ejected.elapsed() < Duration::from_secs(5), "the next poll is a minute away: {:?}", ejected.elapsed());
    gate.open();
    held.reply().await.ok();
}

#[tokio::test]
async fn a_trial_that_hangs_costs_nobody_an_answer() {
    let (proxy, [a, _b]) = one_ejected().await;
    a.always(Answer::nothing().stall());
    let tried = async || {
        proxy.client.chat().await.ok();
        a.request_count() > 1
    };
    eventually("a request was the trial", tried).await;
    assert_eq!(proxy.backend("a").await["state"], "down");
}
