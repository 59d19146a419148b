//! Before real vLLM servers: read by their own metrics, filled and not over-filled, left alone while they queue for
//! others, and no request lost when one's engine dies or one is told to stop.

mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use self::server::{RUNS_AT_ONCE, Vllm};
use crate::support::program::signal;
use crate::support::*;

const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// For the poll itself, which a vLLM at work was seen to answer in a second.
const MARGIN: Duration = Duration::from_secs(2);

/// Long enough to be at work while anything is done to it.
const LONG: u32 = 3_000;

/// How long a client waits here for a stream of vLLM's, which may stand still once it was told to stop.
const TOP: &str = "[capacity]\npoll_interval = \"500ms\"\n[timeouts]\nbetween_chunks = \"5s\"\nfirst_byte = \"10s\"\n";

/// Starts them together, and a proxy before them.
async fn before<const N: usize>(mut servers: [Vllm; N]) -> (Proxy, [Vllm; N]) {
    let begun = Instant::now();
    for server in &mut servers {
        server.is_up().await;
    }
    println!("{N} vLLM servers were up after {:.0?}", begun.elapsed());
    let entries: String = servers.iter().map(Vllm::entry).collect();
    (Proxy::start(&format!("{TOP}{entries}")).await, servers)
}

async fn answered_by(proxy: &Proxy, body: &Value) -> String {
    let reply = proxy.client.post_json(CHAT, body).await.ok();
    assert_eq!(reply.json()["model"], MODEL);
    reply.backend().to_owned()
}

#[tokio::test]
async fn vllm_serves_through_the_proxy() {
    let (proxy, [a, b]) = before([Vllm::start("tiny-a", &[]), Vllm::start("tiny-b", &[])]).await;
    is_found_out_by_asking(&proxy).await;
    answers_as_without_the_proxy(&proxy, &a).await;
    streams_come_whole(&proxy).await;
    its_own_404_is_passed_on(&proxy).await;
    a_server_that_queues_is_busy(&proxy, &a).await;
    slots_keep_its_queue_empty([&a, &b]).await;
}

async fn is_found_out_by_asking(proxy: &Proxy) {
    for told in proxy.backends().await {
        assert_eq!((&told["engine"], &told["state"]), (&"vllm".into(), &"available".into()), "{told}");
        let reported = &told["reported"];
        assert_eq!((&reported["running"], &reported["waiting"]), (&0.into(), &0.into()), "{told}");
        assert_eq!(reported["kv_cache_used"], 0.0, "{told}");
        println!("found: {told}");
    }
}

async fn answers_as_without_the_proxy(proxy: &Proxy, server: &Vllm) {
    let mut sizes = Vec::new();
    for mut body in [chat_of(20), chat_about_a_picture(20)] {
        let through = proxy.client.post_json(CHAT, &body).await.ok().json();
        assert_eq!(through["model"], MODEL);
        body["model"] = server.name.into();
        let direct = server.client().post_json(CHAT, &body).await.ok().json();
        assert_eq!(direct["model"], server.name);
        assert_eq!(through["choices"], direct["choices"]);
        sizes.push(through["usage"]["prompt_tokens"].as_u64());
    }
    assert!(sizes[1] > sizes[0], "the picture was not looked at: {sizes:?}");
    println!("text and image: prompts of {sizes:?} tokens");
}

async fn streams_come_whole(proxy: &Proxy) {
    for _ in 0..2 {
        let text = Events::of(proxy.client.post(CHAT, stream_of_tokens(50).to_string())).await.rest().await;
        let events: Vec<Value> = text
            .split_terminator("\n\n")
            .take_while(|event| *event != "data: [DONE]")
            .map(|event| serde_json::from_str(event.strip_prefix("data: ").expect("data")).expect("JSON"))
            .collect();
        assert!(text.ends_with("data: [DONE]\n\n") && events.len() > 20, "{text}");
        assert!(events.iter().all(|event| event["model"] == MODEL), "{text}");
        assert_eq!(events.last().expect("an event")["usage"]["completion_tokens"], 50, "{text}");
    }
}

async fn its_own_404_is_passed_on(proxy: &Proxy) {
    let reply = proxy.client.chat_with("lost").await;
    assert_eq!((reply.status.as_u16(), reply.attempts()), (404, 1), "{reply:?}");
    assert_eq!(reply.json()["error"]["type"], "NotFoundError", "{reply:?}");
    assert!(proxy.backends().await.iter().all(|backend| backend["failures_total"] == 0));
}

/// Others fill it without the proxy: it says so, and the proxy leaves it alone until they are gone.
async fn a_server_that_queues_is_busy(proxy: &Proxy, server: &Vllm) {
    let mut body = stream_of_tokens(LONG);
    body["model"] = server.name.into();
    let mut others = Vec::new();
    for _ in 0..RUNS_AT_ONCE + 2 {
        others.push(Events::of(server.client().post(CHAT, body.to_string())).await);
    }
    proxy.waits_until(server.name, "busy").await;
    let reported = proxy.backend(server.name).await["reported"].clone();
    assert_eq!((&reported["running"], &reported["waiting"]), (&RUNS_AT_ONCE.into(), &2.into()), "{reported}");
    assert!(reported["kv_cache_used"].as_f64() > Some(0.0), "{reported}");
    for _ in 0..4 {
        assert_ne!(answered_by(proxy, &chat_of(5)).await, server.name);
    }
    drop(others);
    let free = Instant::now();
    proxy.waits_until(server.name, "available").await;
    println!("filled by others: {reported}; in use again {:.0?} after they left", free.elapsed());
    assert!(free.elapsed() < POLL_INTERVAL + MARGIN, "{:?}", free.elapsed());
}

/// With as many slots as it runs at once, nothing ever waits inside.
async fn slots_keep_its_queue_empty(servers: [&Vllm; 2]) {
    let entry = |server: &Vllm| server.entry() + &format!("slots = {RUNS_AT_ONCE}\n");
    let proxy = Proxy::start(&servers.map(entry).concat()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (client, over) = (proxy.client.clone(), Arc::clone(&stop));
    let load = async move {
        let replies = in_parallel(60, move |_| {
            let client = client.clone();
            async move { client.post_json(CHAT, &chat_of(40)).await.ok() }
        })
        .await;
        over.store(true, SeqCst);
        replies
    };
    let (replies, a, b) = tokio::join!(load, watched(servers[0], &stop), watched(servers[1], &stop));
    for (server, (running, waiting)) in servers.iter().zip([a, b]) {
        let share = replies.iter().filter(|reply| reply.backend() == server.name).count();
        println!("{}: answered {share} of 60; at most {running} running, {waiting} waiting", server.name);
        assert_eq!(waiting, 0, "requests waited inside {}", server.name);
        assert!((2..=RUNS_AT_ONCE.into()).contains(&running), "{running} ran in {}", server.name);
        assert!((15..=45).contains(&share), "{share}");
    }
}

/// The most requests that it said were running and waiting, until it is told to stop.
async fn watched(server: &Vllm, stop: &AtomicBool) -> (u64, u64) {
    let (mut running, mut waiting) = (0, 0);
    while !stop.load(SeqCst) {
        running = running.max(server.metric("vllm:num_requests_running").await as u64);
        waiting = waiting.max(server.metric("vllm:num_requests_waiting").await as u64);
    }
    (running, waiting)
}

#[tokio::test]
async fn no_request_is_lost_when_a_vllm_dies_or_is_told_to_stop() {
    let servers =
        [Vllm::start("dies", &[]), Vllm::start("stops", &["--shutdown-timeout", "3"]), Vllm::start("stays", &[])];
    let (proxy, [mut dies, stops, stays]) = before(servers).await;
    let moved = Arc::new(AtomicU64::new(0));
    let load = Load::by(&proxy, 3, {
        let moved = Arc::clone(&moved);
        move |client| {
            let moved = Arc::clone(&moved);
            async move {
                let reply = client.post_json(CHAT, &chat_of(20)).await.ok();
                assert_eq!(reply.json()["usage"]["completion_tokens"], 20);
                moved.fetch_add(u64::from(reply.attempts() > 1), SeqCst);
            }
        }
    });
    load.answers_more(10).await;

    let stream = stream_at(&proxy, dies.name).await;
    signal(dies.engine_core(), "KILL");
    ends_visibly("its engine was killed", stream).await;
    proxy.waits_until(dies.name, "down").await;
    load.answers_more(10).await;
    dies.restart(&[]);

    let stream = stream_at(&proxy, stops.name).await;
    stops.program.signal("TERM");
    ends_visibly("it was told to stop, within 3 s", stream).await;
    proxy.waits_until(stops.name, "down").await;
    load.answers_more(10).await;

    dies.is_up().await;
    let returned = Instant::now();
    proxy.waits_until(dies.name, "available").await;
    println!("{} is in use again {:.0?} after it said that it is healthy", dies.name, returned.elapsed());
    assert!(returned.elapsed() < POLL_INTERVAL + MARGIN, "{:?}", returned.elapsed());

    println!("{} requests answered, {} of them at a second try", load.answered(), moved.load(SeqCst));
    load.ends_well().await;
    one_that_stops_at_once_leaves_nobody_waiting(&proxy, &stays, &dies).await;
}

/// Told to stop with no time for it, vLLM closes its port, and what it was at work on may stay without an answer and
/// without an end: what has no byte of an answer by then goes to another.
async fn one_that_stops_at_once_leaves_nobody_waiting(proxy: &Proxy, stops: &Vllm, other: &Vllm) {
    let stream = stream_at(proxy, stops.name).await;
    let caught = [(); 4].map(|()| Pending::of(proxy.client.post(CHAT, chat_of(300).to_string())));
    eventually("it is at work", async || proxy.backend(stops.name).await["in_flight"].as_u64() > Some(1)).await;
    stops.program.signal("TERM");
    ends_visibly("it was told to stop at once", stream).await;
    proxy.waits_until(stops.name, "down").await;
    for _ in 0..10 {
        assert_eq!(answered_by(proxy, &chat_of(5)).await, other.name);
    }
    let begun = Instant::now();
    for request in caught {
        request.reply().await.ok();
    }
    println!("4 requests that were on their way were answered {:.1?} later", begun.elapsed());
    proxy.falls_idle().await;
}

/// A stream that this backend is in the middle of.
async fn stream_at(proxy: &Proxy, name: &str) -> Events {
    loop {
        let mut stream = Events::of(proxy.client.post(CHAT, stream_of_tokens(LONG).to_string())).await;
        if stream.response.headers()["x-vision-proxy-backend"] == name {
            stream.next().await;
            return stream;
        }
    }
}

/// A stream that its backend could not finish shows it: by an error among its events, whoever wrote that.
async fn ends_visibly(why: &str, stream: Events) {
    let begun = Instant::now();
    let (text, is_broken) = stream.rest_or_break().await;
    let last: Vec<_> = text.trim_end().rsplit("\n\n").take(2).collect();
    println!("{why}: the stream ended after {:.1?}, broken off: {is_broken}, last: {last:?}", begun.elapsed());
    assert!(text.contains("data: {\"error\":") || is_broken, "a clean end of {text:?}");
}
