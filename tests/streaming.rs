//! Events travel when they are sent, in order and whole; nothing gathers them up.

use crate::support::*;

/// What a client must read of `stream_of(words)`: the same, under the public name.
fn expected(words: impl IntoIterator<Item = String>) -> String {
    let events: String = words.into_iter().map(|word| format!("data: {}\n\n", delta(MODEL, &word))).collect();
    events + "data: [DONE]\n\n"
}

/// Each word must be read before the gate lets the next one be sent.
async fn arrives_as_it_is_sent(client: &Client, backend: &Backend) {
    let (gate, words) = (Gate::closed(), ["one", "two", "three"]);
    let held = words.iter().fold(Answer::stream(), |answer, word| answer.event(&delta(NATIVE, word)).hold(&gate));
    backend.always(held.done());
    let mut events = client.stream().await;
    for (sent, word) in words.iter().enumerate() {
        assert_eq!(events.next().await, format!("data: {}\n\n", delta(MODEL, word)));
        gate.reached_by(sent + 1).await;
        gate.release_one();
    }
    assert_eq!(events.rest().await, "data: [DONE]\n\n");
}

#[tokio::test]
async fn events_arrive_as_they_are_sent() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    arrives_as_it_is_sent(&proxy.client, &backend).await;
}

#[tokio::test]
async fn events_arrive_as_they_are_sent_over_http_2() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    arrives_as_it_is_sent(&Client::h2c(proxy.listen), &backend).await;
}

#[tokio::test]
async fn lines_of_an_ollama_stream_arrive_as_they_are_sent() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let gate = Gate::closed();
    let line = |model: &str, word: &str| format!("{{\"model\":\"{model}\",\"response\":\"{word}\",\"done\":false}}\n");
    let lines = Answer::chunked(200, &[("content-type", "application/x-ndjson")]);
    backend.always(lines.chunk(line(NATIVE, "one")).hold(&gate).chunk(line(NATIVE, "two")));
    let request = proxy.client.post("/api/generate", format!("{{\"model\":\"{MODEL}\",\"prompt\":\"hello\"}}"));
    let mut events = Events::of(request).await;
    assert_eq!(events.next_by("\n").await, line(MODEL, "one"));
    gate.reached_by(1).await;
    gate.open();
    assert_eq!(events.rest().await, line(MODEL, "two"));
}

#[tokio::test]
async fn an_unfinished_event_is_not_held_back_until_the_end() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let gate = Gate::closed();
    // The bytes before the gate hold a whole event and the beginning of a comment without its line end.
    let answer = Answer::stream().chunk(format!("data: {}\n\n: ping", delta(NATIVE, "one")));
    backend.always(answer.hold(&gate).chunk("\n\n").done());
    let mut events = proxy.client.stream().await;
    assert!(events.next().await.contains("\"one\""));
    gate.reached_by(1).await;
    gate.open();
    assert_eq!(events.rest().await, ": ping\n\ndata: [DONE]\n\n");
}

#[tokio::test]
async fn a_long_stream_keeps_its_order_and_its_end() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let words: Vec<String> = (0..2_000).map(|number| format!("word {number}")).collect();
    backend.always(stream_of(words.iter().map(String::as_str)));
    let events = proxy.client.stream().await;
    assert_eq!(events.rest().await, expected(words));
}

#[tokio::test]
async fn streams_side_by_side_do_not_mix() {
    let (proxy, [a, b]) = proxied("workers = 2\n", ["a", "b"]).await;
    for backend in [&a, &b] {
        backend.answer_by(|request| {
            let user = request.json()["user"].as_str().expect("a user").to_owned();
            (0..40)
                .fold(Answer::stream(), |answer, number| answer.event(&delta(NATIVE, &format!("{user} {number}"))))
                .done()
        });
    }
    let client = proxy.client.clone();
    let texts = in_parallel(60, move |number| {
        let body = format!("{{\"model\":\"{MODEL}\",\"stream\":true,\"user\":\"user {number}\",\"messages\":[]}}");
        let request = client.post(CHAT, body);
        async move { Events::of(request).await.rest().await }
    })
    .await;
    for (number, text) in texts.into_iter().enumerate() {
        assert_eq!(text, expected((0..40).map(|word| format!("user {number} {word}"))));
    }
}

#[tokio::test]
async fn everything_that_a_stream_may_hold_passes() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let odd = concat!(
        ": a comment\n\nevent: ping\nid: 7\nretry: 100\ndata: {}\n\ndata: two\ndata: lines\n\n\n\n",
        "data:no space\n\nfield\n\ndata: é\u{1F600}\n\ndata: last, unended",
    );
    backend.always(Answer::stream().chunk(odd));
    assert_eq!(proxy.client.stream().await.rest().await, odd);
}

#[tokio::test]
async fn the_head_of_a_stream_is_the_backends() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let fields = [
        ("content-type", "text/event-stream; charset=utf-8"),
        ("cache-control", "no-cache"),
        ("x-accel-buffering", "no"),
    ];
    backend.always(Answer::chunked(200, &fields).event(&delta(NATIVE, "one")).done());
    let events = proxy.client.stream().await;
    for (name, value) in fields {
        assert_eq!(events.response.headers()[name], value);
    }
    events.rest().await;
}

#[tokio::test]
async fn a_stream_that_ends_with_its_connection_is_passed_to_its_end() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let body = format!("data: {}\n\ndata: [DONE]\n\n", delta(NATIVE, "one"));
    backend.always(
        Answer::wire(format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{body}"))
            .close(),
    );
    assert_eq!(proxy.client.stream().await.rest().await, expected(["one".to_owned()]));
}

#[tokio::test]
async fn a_client_that_reads_slowly_slows_the_backend_down() {
    const CHUNK_BYTES: usize = 1 << 20;
    const CHUNKS: usize = 256;
    // What kernels may hold on the way: a few megabytes in each of four socket buffers.
    const ON_THE_WAY: usize = 64 << 20;
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let filler = format!(": {}\n\n", "x".repeat(CHUNK_BYTES - 4));
    backend.always(Answer::stream().repeated(&filler, CHUNKS));
    let mut events = proxy.client.stream().await;
    events.next().await;
    comes_to_rest(&backend).await;
    assert!(backend.sent_bytes() < ON_THE_WAY, "{} bytes sent to a client that does not read", backend.sent_bytes());
    let rest = events.rest().await;
    assert_eq!(rest.len(), filler.len() * (CHUNKS - 1));
}

/// Returns when a backend sends nothing more for now.
async fn comes_to_rest(backend: &Backend) {
    const LOOKS_IN_A_ROW: usize = 60;
    let (mut last, mut same) = (0, 0);
    let rests = async || {
        let sent = backend.sent_bytes();
        same = if sent == last { same + 1 } else { 0 };
        last = sent;
        same >= LOOKS_IN_A_ROW
    };
    eventually("the backend can send no more", rests).await;
}
