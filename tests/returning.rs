//! A backend that was gone comes back by itself, as soon as the next poll finds it.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::*;

const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// For the poll itself, and for a machine that has other things to do.
const MARGIN: Duration = Duration::from_millis(700);

fn poll_often() -> String {
    format!("[capacity]\npoll_interval = \"{}ms\"\n", POLL_INTERVAL.as_millis())
}

#[tokio::test]
async fn a_dead_backend_is_in_rotation_within_a_poll_of_its_return() {
    let (proxy, [a, _b]) = proxied(&poll_often(), ["a", "b"]).await;
    for _ in 0..3 {
        a.stop().await;
        proxy.waits_until("a", "down").await;
        assert_eq!(proxy.client.chat().await.ok().backend(), "b");
        a.restart().await;
        let returned = Instant::now();
        let served = async || proxy.client.chat().await.ok().backend() == "a";
        eventually("the backend serves again", served).await;
        assert!(returned.elapsed() < POLL_INTERVAL + MARGIN, "{:?}", returned.elapsed());
    }
}

/// How long the load of a backend that is out of use is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

#[tokio::test]
async fn a_page_of_metrics_that_hangs_keeps_nobody_out() {
    let hangs = Report { page: LoadPage::Hangs, ..Report::default() };
    let backend = Setup::named("a").vllm().slots(4).start().await;
    backend.report(hangs);
    let started = Instant::now();
    let proxy = Proxy::start(&config(&poll_often(), [&backend])).await;
    proxy.client.chat().await.ok();
    // A question is given up after three seconds at the soonest.
    assert!(started.elapsed() < Duration::from_millis(2_500), "{:?}", started.elapsed());
    for _ in 0..2 {
        backend.stop().await;
        proxy.waits_until("a", "down").await;
        backend.restart().await;
        let returned = Instant::now();
        eventually("the backend serves again", async || proxy.client.chat().await.status == 200).await;
        assert!(returned.elapsed() < POLL_INTERVAL + PATIENCE + MARGIN, "{:?}", returned.elapsed());
    }
    let told = proxy.backend("a").await;
    assert!(told["reported"]["running"].is_null(), "{told}");
}

#[tokio::test]
async fn a_fleet_that_was_gone_as_a_whole_comes_back() {
    let (proxy, [backend]) = proxied(&poll_often(), ["a"]).await;
    backend.stop().await;
    proxy.waits_until("a", "down").await;
    proxy.client.chat().await.refused(503, "no_backend_available");
    backend.restart().await;
    let returned = Instant::now();
    eventually("the backend serves again", async || proxy.client.chat().await.status == 200).await;
    assert!(returned.elapsed() < POLL_INTERVAL + MARGIN, "{:?}", returned.elapsed());
    let told = proxy.backend("a").await;
    assert!(told["down_since"].is_null() && told["last_error"].is_null(), "{told}");
}

#[tokio::test]
async fn a_backend_that_was_never_there_is_found_when_it_comes() {
    let backend = Setup::named("late").native("org/late-model").unmapped().start_refusing();
    let proxy = Proxy::start(&config(&poll_often(), [&backend])).await;
    assert_eq!(proxy.backend("late").await["state"], "down");
    let status = proxy.client.chat_with("org/late-model").await.status;
    assert!(status == 404 || status == 503, "{status}");
    backend.restart().await;
    eventually("its model is served", async || proxy.client.chat_with("org/late-model").await.status == 200).await;
}

#[tokio::test]
async fn an_engine_that_was_loading_is_used_when_it_is_ready() {
    let (proxy, [backend]) = proxied(&poll_often(), [Setup::named("a").vllm()]).await;
    backend.report(Report { unhealthy: true, ..Report::default() });
    proxy.waits_until("a", "down").await;
    proxy.client.chat().await.refused(503, "no_backend_available");
    backend.report(Report::default());
    eventually("the backend serves again", async || proxy.client.chat().await.status == 200).await;
}

#[tokio::test]
async fn a_green_health_page_alone_does_not_bring_back_what_traffic_took_out() {
    let top = "[failover]\neject_after = 2\neject_for = \"1h\"\n[capacity]\npoll_interval = \"20ms\"\n";
    let (proxy, [a, b]) = proxied(top, [Setup::named("a").vllm(), Setup::named("b").vllm()]).await;
    a.always(Answer::error(500));
    while a.request_count() < 2 {
        proxy.client.chat().await.ok();
    }
    let polls = a.polled().len();
    eventually("it was polled many times since", async || a.polled().len() > polls + 20).await;
    for _ in 0..10 {
        proxy.client.chat().await.ok();
    }
    assert_eq!(a.request_count(), 2);
    assert!(b.request_count() >= 10);
}

#[tokio::test]
async fn what_traffic_took_out_comes_back_through_one_good_answer() {
    let (proxy, [a, _b]) = proxied("[failover]\neject_after = 2\n", ["a", "b"]).await;
    a.always(Answer::error(500));
    while a.request_count() < 2 {
        proxy.client.chat().await.ok();
    }
    proxy.waits_until("a", "down").await;
    a.heal();
    // Every request on the way is served: the trial is one that another backend could have repeated.
    let served = async || proxy.client.chat().await.ok().backend() == "a";
    eventually("it serves again", served).await;
    proxy.waits_until("a", "available").await;
}

#[tokio::test]
async fn who_answers_polls_and_takes_no_connections_is_out_of_use() {
    let top = "[failover]\neject_after = 3\n[capacity]\npoll_interval = \"20ms\"\n";
    let (proxy, [a, _b]) = proxied(top, ["a", "b"]).await;
    a.refuse_newcomers();
    let mut lost = 0;
    let is_ejected = async || {
        lost += proxy.client.chat().await.ok().attempts() - 1;
        proxy.output().contains("out of use after repeated failures")
    };
    eventually("a is out of use", is_ejected).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        lost += proxy.client.chat().await.ok().attempts() - 1;
    }
    // One trial after a second, the next two seconds later.
    assert!((3..=5).contains(&lost), "{lost} attempts at who takes no connections");
    let told = proxy.backend("a").await;
    assert_eq!(told["failures_total"], lost, "{told}");
    assert!(a.polled().len() > 20 && a.request_count() == 0, "it was up by its polls");
    a.stop().await;
    a.restart().await;
    eventually("it serves again", async || proxy.client.chat().await.ok().backend() == "a").await;
}
