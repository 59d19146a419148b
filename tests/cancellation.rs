//! A client that goes away takes its request with it: at the backend within 100 ms, in every phase.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::*;

/// What is promised, on a machine that is not busy.
const PROMISED: Duration = Duration::from_millis(100);
/// How often each way of leaving is tried. The suite makes the machine busy, so that one late answer of the
/// scheduler proves nothing: the median has to keep the promise.
const TRIES: usize = 5;

/// Ways to leave.
#[derive(Clone, Copy, Debug)]
enum Leaving {
    Fin,
    Rst,
    /// Half-closed: no more to say, but still listening. Counts as gone.
    HalfClosed,
}

const WAYS: [Leaving; 3] = [Leaving::Fin, Leaving::Rst, Leaving::HalfClosed];

impl Leaving {
    /// Leaves; returns when, and what is left of the connection.
    async fn leave(self, mut raw: Raw) -> (Instant, Option<Raw>) {
        match self {
            Self::Fin => (raw.leave(), None),
            Self::Rst => (raw.reset(), None),
            Self::HalfClosed => (raw.finish().await, Some(raw)),
        }
    }
}

fn keeps_the_promise(mut times: Vec<Duration>, what: &str) {
    times.sort_unstable();
    assert!(times[times.len() / 2] <= PROMISED, "{what}: cancelled after {times:?}");
}

/// When the backend saw its newest request cancelled.
async fn cancelled(backend: &Backend) -> Instant {
    let newest = || backend.requests().last().and_then(|request| request.gone_at);
    eventually("the request is cancelled at the backend", async || newest().is_some()).await;
    newest().expect("just seen")
}

/// Lets clients leave in every way, with these bytes behind their request and again later, while the backend
/// answers so far and no further; requires that the backend hears of it in time and every slot comes back.
async fn is_cancelled_in_time(answer: Answer, seen_before: Option<&str>, behind: &str) {
    let (proxy, [backend]) = proxied("", [Setup::named("a").slots(2)]).await;
    backend.always(answer);
    for way in WAYS {
        let mut times = Vec::new();
        for _ in 0..TRIES {
            let sent = backend.request_count();
            let mut raw = Raw::connect(proxy.listen).await;
            raw.send(sized_request(CHAT, &stream_body().to_string()) + behind).await;
            eventually("the request is at the backend", async || {
                backend.request_count() > sent && backend.in_flight() > 0
            })
            .await;
            // Once more, by itself: what comes with the request is read with it.
            raw.send(behind).await;
            if let Some(text) = seen_before {
                raw.read_until(text).await;
            }
            let (left, _rest) = way.leave(raw).await;
            times.push(cancelled(&backend).await.saturating_duration_since(left));
        }
        keeps_the_promise(times, &format!("{way:?}"));
    }
    proxy.falls_idle().await;
}

/// Bytes that a client may have sent ahead: the proxy must notice the leaving behind them.
const SENT_AHEAD: [&str; 3] = ["\r\n", "P", "GET /v1/models HTTP/1.1\r\nHost: proxy.test\r\n\r\n"];

#[tokio::test]
async fn before_the_head_of_the_answer() {
    is_cancelled_in_time(Answer::nothing().stall(), None, "").await;
}

#[tokio::test]
async fn before_the_head_with_bytes_sent_ahead() {
    for behind in SENT_AHEAD {
        is_cancelled_in_time(Answer::nothing().stall(), None, behind).await;
    }
}

#[tokio::test]
async fn between_the_head_and_the_first_byte() {
    is_cancelled_in_time(Answer::stream().stall(), None, "").await;
}

#[tokio::test]
async fn in_the_middle_of_a_stream() {
    is_cancelled_in_time(Answer::stream().event(&delta(NATIVE, "one")).stall(), Some("\"one\""), "").await;
}

#[tokio::test]
async fn in_the_middle_of_a_stream_with_bytes_sent_ahead() {
    for behind in SENT_AHEAD {
        is_cancelled_in_time(Answer::stream().event(&delta(NATIVE, "one")).stall(), Some("\"one\""), behind).await;
    }
}

/// More than the proxy reads ahead: the rest waits in the kernel, and the end of the connection behind it.
#[tokio::test]
async fn in_the_middle_of_a_stream_with_more_sent_ahead_than_is_read() {
    let behind = request_head("POST", CHAT, &[("Content-Length", "1000000")]) + &"x".repeat(24_000);
    is_cancelled_in_time(Answer::stream().event(&delta(NATIVE, "one")).stall(), Some("\"one\""), &behind).await;
    is_cancelled_in_time(Answer::nothing().stall(), None, &behind).await;
}

#[tokio::test]
async fn in_the_middle_of_a_stream_that_never_pauses() {
    let filler = format!(": {}\n\n", "x".repeat(1 << 16));
    is_cancelled_in_time(Answer::stream().repeated(filler, usize::MAX), Some("xxx"), "").await;
}

#[tokio::test]
async fn in_the_middle_of_a_json_answer() {
    let half =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{\"id\":\"chatcmpl-1\",";
    is_cancelled_in_time(Answer::wire(half).stall(), None, "").await;
}

#[tokio::test]
async fn a_reset_stream_of_http_2_cancels_only_itself() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let (client, gate) = (Client::h2c(proxy.listen), Gate::closed());
    backend.always(stream_held_at(&gate));
    let mut staying = client.stream().await;
    staying.next().await;
    let mut times = Vec::new();
    for _ in 0..TRIES {
        let mut leaving = client.stream().await;
        leaving.next().await;
        let left = Instant::now();
        drop(leaving);
        times.push(cancelled(&backend).await.saturating_duration_since(left));
    }
    keeps_the_promise(times, "a reset stream");
    gate.open();
    assert!(staying.rest().await.ends_with("data: [DONE]\n\n"));
    proxy.falls_idle().await;
}

#[tokio::test]
async fn a_reset_stream_of_http_2_is_cancelled_before_its_head() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let client = Client::h2c(proxy.listen);
    backend.always(Answer::nothing().stall());
    let mut times = Vec::new();
    for number in 1..=TRIES {
        let pending = Pending::of(client.post(CHAT, chat_body().to_string()));
        eventually("the request is at the backend", async || {
            backend.request_count() == number && backend.in_flight() > 0
        })
        .await;
        let left = Instant::now();
        pending.leave().await;
        times.push(cancelled(&backend).await.saturating_duration_since(left));
    }
    keeps_the_promise(times, "a reset stream");
    proxy.falls_idle().await;
}

#[tokio::test]
async fn in_the_queue() {
    let (proxy, [backend]) = proxied("", [Setup::named("a").slots(1)]).await;
    let gate = Gate::closed();
    backend.always(stream_held_at(&gate));
    let held = proxy.client.begin_chat();
    gate.reached_by(1).await;
    for way in WAYS {
        for behind in ["", SENT_AHEAD[0]] {
            let mut times = Vec::new();
            for _ in 0..TRIES {
                let mut raw = Raw::connect(proxy.listen).await;
                raw.send(sized_request(CHAT, &chat_body().to_string()) + behind).await;
                proxy.queues(1).await;
                let (left, _rest) = way.leave(raw).await;
                proxy.queues(0).await;
                times.push(left.elapsed());
            }
            keeps_the_promise(times, &format!("{way:?} behind {behind:?}"));
        }
    }
    gate.open();
    held.reply().await.ok();
    proxy.falls_idle().await;
    assert_eq!(backend.request_count(), 1, "who left the queue reached a backend");
}

#[tokio::test]
async fn in_the_middle_of_an_upload() {
    let (proxy, [backend]) = proxied("[limits]\nbody = \"4MiB\"\nbodies_in_flight = \"4MiB\"\n", ["a"]).await;
    let request = sized_request(CHAT, &vision_body(&[base64_text(2_000_000)]));
    let (sent, _) = request.split_at(request.len() - 1_000);
    // Many more than fit into `bodies_in_flight` at once: what they held must come back.
    for way in WAYS {
        for _ in 0..TRIES {
            let mut raw = Raw::connect(proxy.listen).await;
            // Refused at once where those before it are still being noticed.
            raw.send_if_wanted(sent).await;
            let (_, rest) = way.leave(raw).await;
            drop(rest);
        }
    }
    eventually("nothing of them is left", async || backend.in_flight() == 0).await;
    assert!(backend.requests().iter().all(|request| !request.complete));
    proxy.falls_idle().await;
    // All of it: this one needs nearly the whole of what may be in flight.
    let large = vision_body(&[base64_text(4_000_000)]);
    let fits = async || whole(proxy.client.post(CHAT, large.clone())).await.status == 200;
    eventually("what they held is given back", fits).await;
}

#[tokio::test]
async fn a_request_that_is_tried_again_is_cancelled_too() {
    let (proxy, backends) = proxied("", ["a", "b"]).await;
    let mut times = Vec::new();
    for number in 1..=TRIES {
        once_then(&backends, &Answer::nothing().reset(), |_| Answer::nothing().stall());
        let pending = proxy.another_client().begin_chat();
        let arrived = || backends.iter().map(Backend::request_count).sum::<usize>();
        eventually("it was sent twice", async || arrived() == 2 * number).await;
        let held = || backends.iter().map(Backend::in_flight).sum::<usize>();
        eventually("the second backend holds it", async || held() == 1).await;
        pending.leave().await;
        let left = Instant::now();
        eventually("no backend holds it", async || held() == 0).await;
        times.push(left.elapsed());
    }
    keeps_the_promise(times, "the second attempt");
    proxy.falls_idle().await;
}
