//! Where nobody says how many slots an engine has, they are learned: enough that it is used, few enough that requests wait
//! here and not inside it.

use std::time::Duration;

use crate::support::*;

/// More than any engine here has slots.
const CLIENTS: usize = 24;
/// From eight slots down to two, or up to sixteen, a round of answers at a time.
const LEARNT_WITHIN: Duration = Duration::from_secs(60);
/// Answers of a small engine in a few seconds: its limit would have grown by then.
const A_WHILE: usize = 40;

async fn before(engine: &'static str, slots: u32) -> (Proxy, Simulated) {
    let server = Simulated::untold("a", engine, slots).await;
    (Proxy::start(&server.entry()).await, server)
}

async fn slots(proxy: &Proxy) -> u64 {
    let told = proxy.backend("a").await;
    assert_eq!(told["slots_from"], "learned", "{told}");
    told["slots"].as_u64().expect("a number")
}

async fn settles_at_few(most: u64, load: Load, proxy: &Proxy) {
    wait::patiently(LEARNT_WITHIN, "its slots are found to be few", async || slots(proxy).await <= most).await;
    let enough = load.answered() + A_WHILE;
    let mut seen = Vec::new();
    while load.answered() < enough {
        seen.push(slots(proxy).await);
    }
    load.ends_well().await;
    seen.sort_unstable();
    // Times are all it goes by, and this machine has others to serve: now and then it may be led astray, not for long.
    let (usual, worst) = (seen[seen.len() * 3 / 4], seen[seen.len() - 1]);
    assert!(seen[0] >= 1 && usual <= most && worst <= 2 * most, "usually {usual}, at worst {worst}");
}

#[tokio::test]
async fn streams_do_not_wait_inside_an_engine_that_reports_nothing() {
    let (proxy, _server) = before("ollama", 2).await;
    let load = Load::by(&proxy, CLIENTS, |client| async move {
        assert!(client.stream().await.rest().await.ends_with("data: [DONE]\n\n"));
    });
    settles_at_few(6, load, &proxy).await;
}

#[tokio::test]
async fn nor_do_answers_that_come_as_a_whole() {
    let (proxy, _server) = before("openai", 2).await;
    let load = Load::by(&proxy, CLIENTS, |client| async move {
        client.chat().await.ok();
    });
    settles_at_few(7, load, &proxy).await;
}

#[tokio::test]
async fn a_large_engine_is_found_to_be_one() {
    for engine in ["ollama", "vllm"] {
        let (proxy, _server) = before(engine, 16).await;
        let load = Load::of(&proxy, CLIENTS);
        wait::patiently(LEARNT_WITHIN, "its slots are found to be many", async || slots(&proxy).await >= 12).await;
        load.ends_well().await;
    }
}

#[tokio::test]
async fn what_an_engine_reports_of_its_line_is_believed() {
    let (proxy, server) = before("vllm", 4).await;
    let load = Load::of(&proxy, CLIENTS);
    wait::patiently(LEARNT_WITHIN, "its slots are found to be few", async || slots(&proxy).await <= 4).await;
    let enough = load.answered() + A_WHILE;
    let mut waiting = Vec::new();
    while load.answered() < enough {
        waiting.push(server.count("waiting").await);
        assert!((2..=6).contains(&slots(&proxy).await));
    }
    load.ends_well().await;
    waiting.sort_unstable();
    assert!(waiting[waiting.len() * 3 / 4] <= 2 && waiting[waiting.len() - 1] <= 6, "{waiting:?}");
}
