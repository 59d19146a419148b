//! Requests that kill whoever runs them: they reach two servers and no more, and cost others nothing that can be saved.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::*;

/// What kills.
const POISON: &str = "a very strange prompt";
/// One more than a request may kill.
const NAMES: [&str; 3] = ["a", "b", "c"];

async fn before_three(top: &str) -> (Proxy, Vec<Simulated>) {
    let mut servers = Vec::new();
    for name in NAMES {
        servers.push(Simulated::start(name, SLOTS).await);
    }
    let entries: String = servers.iter().map(Simulated::entry).collect();
    (Proxy::start(&format!("{top}{TOP}{entries}")).await, servers)
}

/// A poisoned chat, refused.
async fn is_refused(proxy: &Proxy) {
    let content = json!([{"type": "text", "text": POISON}]);
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": content}]});
    proxy.client.post_json(CHAT, &body).await.refused(502, "upstream_unreachable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_ends_its_connections_costs_nobody_else_anything() {
    let (proxy, servers) = before_three("").await;
    for server in &servers {
        server.fails(&format!("poison={POISON}")).await;
    }
    let load = unharmed(&proxy);
    for _ in 0..12 {
        load.answers_more(5).await;
        is_refused(&proxy).await;
    }
    load.answers_more(10).await;
    load.ends_well().await;
    for name in NAMES {
        let told = proxy.backend(name).await;
        assert_eq!(told["state"], "available", "one request in many is its own fault: {told}");
    }
    all_is_well(&proxy, &servers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_ends_whole_servers_ends_two_at_the_most() {
    let (proxy, mut servers) = before_three("").await;
    let losses = Losses::default();
    let load = visibly(&proxy, &losses);
    for _ in 0..2 {
        load.answers_more(20).await;
        for server in &servers {
            server.fails(&format!("deadly={POISON}")).await;
        }
        let before = losses.count();
        is_refused(&proxy).await;
        // Whoever is left serves all of them.
        load.answers_more(20).await;
        let mut dead = 0;
        for server in &mut servers {
            if server.has_died() {
                dead += 1;
                *server = server.again().await;
            } else {
                server.heals().await;
            }
        }
        assert!((1..=2).contains(&dead), "{dead} of them died of one request");
        // No more than were being answered by the two, or had gone from the one to the other.
        let lost = losses.count() - before;
        assert!(lost <= 2 * SLOTS as usize, "{lost} of others were lost");
        for name in NAMES {
            proxy.waits_until(name, "available").await;
        }
    }
    load.ends_well().await;
    all_is_well(&proxy, &servers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_connections_have_rested_is_no_excuse_for_it() {
    // One worker, so that the next request finds what the last one left.
    let (proxy, mut servers) = before_three("workers = 1\n").await;
    let client = proxy.client.clone();
    in_parallel(12, move |_| {
        let client = client.clone();
        async move { client.chat().await.ok() }
    })
    .await;
    // Long enough for a server that closes them for that.
    sleep(Duration::from_millis(700)).await;
    for server in &servers {
        server.fails(&format!("deadly={POISON}")).await;
    }
    is_refused(&proxy).await;
    // A process is gone a moment after its connections.
    sleep(Duration::from_millis(500)).await;
    let dead = servers.iter_mut().filter_map(|server| server.has_died().then_some(server.name)).collect::<Vec<_>>();
    assert_eq!(dead.len(), 2, "ended by one request: {dead:?}");
}
