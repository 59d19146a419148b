//! Once a byte of an answer was passed on, a backend that breaks ends it visibly: never a clean end, never `[DONE]`.

use serde_json::{Value, json};

use crate::support::*;

/// What the client reads of a stream that breaks off like this.
async fn broken(client: &Client, backend: &Backend, path: &str, answer: Answer) -> String {
    backend.always(answer);
    let events = Events::of(client.post(path, stream_body().to_string())).await;
    let (text, is_broken) = events.rest_or_break().await;
    assert!(is_broken, "a clean end of {text:?}");
    text
}

/// The last event of a stream: its lines.
fn last_event(text: &str) -> Vec<&str> {
    text.split("\n\n").filter(|event| !event.is_empty()).last().expect("an event").lines().collect()
}

fn told(line: &str) -> Value {
    let json = line.strip_prefix("data: ").unwrap_or_else(|| panic!("no data: {line:?}"));
    serde_json::from_str(json).unwrap_or_else(|why| panic!("{why}: {line:?}"))
}

/// Streams that break off after a first event: between two events, inside one, inside a chunk.
fn breaks() -> [Answer; 6] {
    let begun = Answer::stream().event(&delta(NATIVE, "one"));
    let inside = begun.clone().chunk("data: {\"id\":\"chatcmpl-1\",\"model\":\"Qw");
    [
        begun.clone().close(),
        begun.reset(),
        inside.clone().close(),
        inside.reset(),
        in_a_chunk().close(),
        in_a_chunk().reset(),
    ]
}

fn in_a_chunk() -> Answer {
    let event = format!("data: {}\n\n", delta(NATIVE, "one"));
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    Answer::wire(format!("{head}{:x}\r\n{event}\r\nff\r\ndata: cut", event.len()))
}

#[tokio::test]
async fn a_stream_that_breaks_says_so_and_does_not_end_well() {
    let (proxy, [backend]) = proxied("[failover]\neject_after = 1000\n", ["a"]).await;
    for client in [proxy.client.clone(), Client::h2c(proxy.listen)] {
        for answer in breaks() {
            let text = broken(&client, &backend, CHAT, answer).await;
            assert!(text.starts_with(&format!("data: {}\n\n", delta(MODEL, "one"))), "{text}");
            assert!(!text.contains("[DONE]"), "{text}");
            let [line] = last_event(&text)[..] else { panic!("one line of data: {text}") };
            let error = &told(line)["error"];
            assert_eq!(error["code"], "upstream_interrupted", "{text}");
            assert!(error["message"].is_string() && error["type"].is_string(), "{text}");
            assert!(!text.contains(&backend.address.port().to_string()), "{text}");
        }
    }
}

#[tokio::test]
async fn an_anthropic_stream_that_breaks_says_so_in_its_own_words() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let start = json!({"type": "message_start", "message": {"model": NATIVE}});
    let answer = Answer::stream().chunk(format!("event: message_start\ndata: {start}\n\n")).reset();
    let text = broken(&proxy.client, &backend, MESSAGES, answer).await;
    let lines = last_event(&text);
    assert_eq!(lines.first(), Some(&"event: error"), "{text}");
    let error = told(lines[1]);
    assert_eq!(error["type"], "error");
    assert!(error["error"]["message"].is_string() && error["error"]["type"].is_string(), "{text}");
}

/// Types are of any case (RFC 9110 §8.3.1).
#[tokio::test]
async fn a_stream_of_a_type_in_capitals_that_breaks_says_so() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let answer = Answer::chunked(200, &[("content-type", "Text/Event-Stream")]).event(&delta(NATIVE, "one")).reset();
    let text = broken(&proxy.client, &backend, CHAT, answer).await;
    assert!(text.contains("upstream_interrupted"), "{text}");
}

#[tokio::test]
async fn lines_that_break_off_are_seen_to() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let line = format!("{{\"model\":\"{NATIVE}\",\"response\":\"one\",\"done\":false}}\n");
    let (gate, lines) = (Gate::closed(), [("content-type", "application/x-ndjson")]);
    backend.always(Answer::chunked(200, &lines).chunk(line).hold(&gate).reset());
    let events = Events::of(proxy.client.post("/api/generate", stream_body().to_string())).await;
    gate.open();
    let (text, is_broken) = events.rest_or_break().await;
    assert!(is_broken, "a clean end of {text:?}");
    assert!(text.starts_with(&format!("{{\"model\":\"{MODEL}\"")) && !text.contains("\"done\":true"), "{text}");
}

#[tokio::test]
async fn a_json_answer_that_breaks_off_is_seen_to() {
    let (proxy, [backend]) = proxied("[failover]\neject_after = 1000\n", ["a"]).await;
    let half = format!("{{\"model\":\"{NATIVE}\",\"choices\":[{{\"mess");
    let chunked = Answer::chunked(200, &[("content-type", "application/json")]).chunk(&half);
    let sized = Answer::wire(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{half}"
    ));
    for client in [proxy.client.clone(), Client::h2c(proxy.listen)] {
        for answer in [chunked.clone().close(), chunked.clone().reset(), sized.clone().close(), sized.clone().reset()] {
            backend.always(answer);
            let request = client.post(CHAT, chat_body().to_string());
            let end = soon("an end of some kind", try_whole(request)).await;
            // A proxy that gathered the whole answer first may also say 502; it must not say 200 and stop.
            assert!(end.as_ref().map_or(true, |reply| reply.status == 502), "{end:?}");
        }
    }
}

#[tokio::test]
async fn nothing_of_another_answer_is_joined_on() {
    let (proxy, backends) = proxied("", ["a", "b"]).await;
    once_among(&backends, &Answer::stream().event(&delta(NATIVE, "one")).reset());
    let (text, is_broken) = proxy.client.stream().await.rest_or_break().await;
    assert!(is_broken && !text.contains("\"o\""), "{text}");
    assert_eq!(backends.iter().map(Backend::request_count).sum::<usize>(), 1);
}

#[tokio::test]
async fn a_backend_that_does_not_begin_in_time_is_given_up() {
    let (proxy, backends) = proxied("[timeouts]\nfirst_byte = \"200ms\"\n", ["a", "b"]).await;
    for backend in &backends {
        backend.always(Answer::nothing().stall());
    }
    proxy.client.chat().await.refused(504, "upstream_timeout");
    let requests: Vec<_> = backends.iter().flat_map(Backend::requests).collect();
    assert_eq!(requests.len(), 1, "work that may be running is not begun twice");
    eventually("the slow backend is let go", async || backends.iter().all(|backend| backend.in_flight() == 0)).await;
}

#[tokio::test]
async fn a_stream_that_stands_still_too_long_is_ended_visibly() {
    let (proxy, [backend]) = proxied("[timeouts]\nbetween_chunks = \"200ms\"\n", ["a"]).await;
    let text = broken(&proxy.client, &backend, CHAT, Answer::stream().event(&delta(NATIVE, "one")).stall()).await;
    assert!(text.contains("\"error\"") && !text.contains("[DONE]"), "{text}");
    eventually("the backend is let go", async || backend.in_flight() == 0).await;
}
