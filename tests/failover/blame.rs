//! Who is to blame for a failure, and what that costs them.

use crate::support::*;

#[tokio::test]
async fn a_backend_that_fails_where_others_succeed_is_taken_out() {
    let (proxy, [a, _b]) = proxied("[failover]\neject_after = 3\n", ["a", "b"]).await;
    a.always(Answer::error(500));
    for _ in 0..12 {
        assert_eq!(proxy.client.chat().await.ok().backend(), "b");
    }
    // Three failures; a fourth only where twelve requests took longer than the first back-off.
    assert!((3..=4).contains(&a.request_count()), "{} requests", a.request_count());
    let told = proxy.backend("a").await;
    assert_eq!((&told["state"], told["failures_total"].as_u64()), (&"down".into(), Some(a.request_count() as u64)));
    assert!(told["last_error"].is_string(), "{told}");
}

#[tokio::test]
async fn a_request_that_fails_everywhere_is_nobodys_fault_but_its_own() {
    let (proxy, backends) = proxied("[failover]\neject_after = 2\n", ["a", "b", "c"]).await;
    for backend in &backends {
        backend.always(Answer::error(500));
    }
    for _ in 0..10 {
        assert_eq!(proxy.client.chat().await.status, 500);
    }
    for backend in proxy.backends().await {
        assert_eq!(backend["state"], "available", "{backend}");
    }
    backends.iter().for_each(Backend::heal);
    proxy.client.chat().await.ok();
}

#[tokio::test]
async fn the_last_one_standing_stays_in_use() {
    let (proxy, [backend]) = proxied("[failover]\neject_after = 2\n", ["a"]).await;
    backend.always(Answer::nothing().reset());
    for _ in 0..6 {
        assert_eq!(proxy.client.chat().await.status, 502);
    }
    backend.heal();
    // No health check stands between: the very next request may be served.
    proxy.client.chat().await.ok();
}

#[tokio::test]
async fn a_good_answer_clears_what_failed_before() {
    let (proxy, [a, b]) = proxied("[failover]\neject_after = 3\n", ["a", "b"]).await;
    for _ in 0..4 {
        for answer in [Answer::error(500), Answer::error(500), Answer::json(200, completion(NATIVE).to_string())] {
            let before = a.request_count();
            a.always(answer);
            while a.request_count() == before {
                proxy.client.chat().await.ok();
            }
        }
    }
    assert_eq!(proxy.backend("a").await["state"], "available");
    assert!(b.request_count() > 0);
}
