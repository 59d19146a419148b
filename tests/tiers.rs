//! Preferred backends first; the next tier where they are down, or busy for too long.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::*;

/// A preferred node of one slot, and one to fall back on.
async fn two_tiers(spill_after: &str) -> (Proxy, [Backend; 2]) {
    let top = format!("[queue]\nspill_after = \"{spill_after}\"\n{RARE_POLLS}");
    proxied(&top, [Setup::named("rented").line("tier = 1"), Setup::named("own").slots(1)]).await
}

#[tokio::test]
async fn the_lowest_tier_is_preferred_while_it_has_room() {
    let (proxy, [rented, own]) = two_tiers("1h").await;
    for _ in 0..6 {
        assert_eq!(proxy.client.chat().await.ok().backend(), "own");
    }
    assert_eq!((rented.request_count(), own.request_count()), (0, 6));
}

#[tokio::test]
async fn a_busy_tier_is_waited_for_and_then_left() {
    let (proxy, [rented, own]) = two_tiers("400ms").await;
    let gate = Gate::closed();
    own.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
    let held = proxy.client.begin_chat();
    gate.reached_by(1).await;
    let since = Instant::now();
    assert_eq!(proxy.client.chat().await.ok().backend(), "rented");
    assert!(since.elapsed() >= Duration::from_millis(400), "{:?}", since.elapsed());
    assert_eq!(rented.request_count(), 1);
    // A slot that comes free in time is the preferred one's.
    let waits = proxy.client.begin_chat();
    proxy.queues(1).await;
    gate.open();
    assert_eq!((held.reply().await.ok().backend(), waits.reply().await.ok().backend()), ("own", "own"));
}

#[tokio::test]
async fn a_tier_that_is_down_is_not_waited_for() {
    let (proxy, [_rented, own]) = two_tiers("1h").await;
    own.stop().await;
    for _ in 0..3 {
        assert_eq!(proxy.client.chat().await.ok().backend(), "rented");
    }
}

#[tokio::test]
async fn a_tier_that_was_put_out_of_use_is_not_waited_for() {
    let top = "[queue]\nspill_after = \"1h\"\n[failover]\neject_after = 2\n";
    let (proxy, [_rented, own]) =
        proxied(top, [Setup::named("rented").line("tier = 1"), Setup::named("own").slots(1)]).await;
    own.always(Answer::nothing().reset());
    let is_ejected = async || {
        proxy.client.chat().await.ok();
        proxy.backend("own").await["state"] == "down"
    };
    eventually("the preferred one is out of use", is_ejected).await;
    for _ in 0..3 {
        let reply = proxy.client.chat().await.ok();
        assert_eq!((reply.backend(), reply.attempts()), ("rented", 1));
    }
}

#[tokio::test]
async fn whoever_failed_in_the_first_tier_is_served_by_the_second() {
    let (proxy, [_rented, own]) = two_tiers("1h").await;
    own.always(Answer::error(500));
    let reply = proxy.client.chat().await.ok();
    assert_eq!((reply.backend(), reply.attempts()), ("rented", 2));
}
