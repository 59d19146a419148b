//! A wall clock that jumps, and a process that stood still: dates are of the new time, and nothing else changes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::*;

const SECOND: i64 = 1_000_000_000;
const HOUR: i64 = 3600 * SECOND;
const TOP: &str = "[capacity]\npoll_interval = \"100ms\"\nstale_after = \"60s\"\n";

/// Nanoseconds since 1970.
fn nanos(at: SystemTime) -> i64 {
    i64::try_from(at.duration_since(UNIX_EPOCH).expect("after 1970").as_nanos()).expect("a date before 2262")
}

/// This moment, on the test's own clock.
fn now() -> i64 {
    nanos(SystemTime::now())
}

/// A date as the API writes it.
fn dated(date: &serde_json::Value) -> i64 {
    nanos(humantime::parse_rfc3339(date.as_str().expect("a date")).expect("a date"))
}

#[tokio::test]
async fn a_jump_changes_dates_and_nothing_else() {
    let [a, b] = [Setup::named("a").slots(4).start().await, Setup::named("b").slots(1).start().await];
    let gate = Gate::closed();
    b.always(Answer::json(200, completion("held").to_string()).behind(&gate));
    let (proxy, clock) = WallClock::proxy(&config(TOP, [&a, &b])).await;
    let load = Load::by(&proxy, 3, |client| async move {
        client.chat().await.ok();
    });
    gate.reached_by(1).await;
    for ahead in [5 * HOUR, -5 * HOUR, 24 * 365 * HOUR, SECOND, 0, 30 * SECOND - now()] {
        clock.is_ahead_by(ahead);
        load.answers_more(20).await;
        let decisions = proxy.admin_json("/api/decisions?limit=1").await;
        let wrong = dated(&decisions["decisions"][0]["at"]) - now() - ahead;
        assert!(wrong.abs() < 60 * SECOND, "by {ahead}: {wrong} ns beside the new time");
        for backend in proxy.backends().await {
            assert_ne!(backend["state"], "down", "{ahead}: {backend}");
            assert_eq!(backend["failures_total"], 0, "{ahead}: {backend}");
            let age = backend["reported"]["age_ms"].as_u64();
            assert!(age.is_some_and(|age| age < 30_000), "{ahead}: {backend}");
        }
        assert_eq!(proxy.backend("b").await["in_flight"], 1, "{ahead}: what is held stays held");
    }
    // Everything that began before 1970, as the clock has it now, is told of too.
    clock.is_ahead_by(-now());
    let all = proxy.admin_json("/api/decisions").await;
    assert!(all["decisions"].as_array().is_some_and(|all| all.len() > 20), "{all}");
    gate.open();
    load.ends_well().await;
    proxy.falls_idle().await;
}

#[tokio::test]
async fn who_stood_still_puts_nobody_out_of_use() {
    let (proxy, [a, b]) = proxied("[capacity]\npoll_interval = \"100ms\"\nstale_after = \"1s\"\n", ["a", "b"]).await;
    proxy.client.chat().await.ok();
    proxy.signal("STOP");
    // What passes here is the fault itself: longer than a report is believed.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let polled = [a.polled().len(), b.polled().len()];
    proxy.signal("CONT");
    proxy.client.chat().await.ok();
    let asked = async || a.polled().len() > polled[0] && b.polled().len() > polled[1];
    eventually("reports are fetched again", asked).await;
    for name in ["a", "b"] {
        proxy.waits_until(name, "available").await;
        assert_eq!(proxy.backend(name).await["failures_total"], 0, "{name}");
    }
}
