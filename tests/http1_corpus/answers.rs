//! Raw answers of a backend, and what a client of HTTP/1.1, of HTTP/1.0 and of HTTP/2 makes of each: a whole answer, a
//! refusal, or an end that is seen to be none.

use crate::support::*;

/// What a client must see of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    /// A whole answer, with this body.
    Whole(&'static str),
    /// The proxy's own answer in its place.
    Refused,
    /// A part of it, and that it is one; or nothing of it.
    Cut,
}

use Seen::{Cut, Refused, Whole};

/// Name, what the backend sends before it closes, what a client sees.
const ANSWERS: &[(&str, &str, Seen)] = &[
    ("a length", "content-length: 4\r\n\r\nabcd", Whole("abcd")),
    ("a length twice", "content-length: 4\r\ncontent-length: 4\r\n\r\nabcd", Whole("abcd")),
    ("bytes behind the length", "content-length: 4\r\n\r\nabcdHTTP/1.1 200 OK\r\n\r\n", Whole("abcd")),
    ("chunks", "transfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n", Whole("abcd")),
    ("chunks with trailers", "transfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\nx-t: 1\r\n\r\n", Whole("abcd")),
    ("bytes behind the last chunk", "transfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\nmore", Whole("abcd")),
    ("no framing", "\r\nabcd", Whole("abcd")),
    ("different lengths", "content-length: 4\r\ncontent-length: 5\r\n\r\nabcd", Refused),
    ("a list of lengths", "content-length: 4, 4\r\n\r\nabcd", Refused),
    ("a length with a sign", "content-length: +4\r\n\r\nabcd", Refused),
    ("a length and chunks", "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n", Refused),
    ("chunks in chunks", "transfer-encoding: chunked, chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n", Refused),
    ("gzip in chunks", "transfer-encoding: gzip, chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n", Refused),
    ("a chunk of no size", "transfer-encoding: chunked\r\n\r\nx\r\nabcd\r\n0\r\n\r\n", Refused),
    ("a field without a colon", "nonsense\r\ncontent-length: 4\r\n\r\nabcd", Refused),
    ("a length that is not kept", "content-length: 9\r\n\r\nabcd", Cut),
    ("a chunk that is not kept", "transfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n9\r\nefgh", Cut),
    ("chunks without an end", "transfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n", Cut),
];

/// Error answers that their backends do not end: no client may take a part for the whole, or learn nothing at all.
const UNENDED_ERRORS: [(u16, &str); 5] = [
    (400, "content-type: application/json\r\ncontent-length: 100\r\n\r\n{\"error\":"),
    (404, "content-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n"),
    (500, "content-type: application/json\r\ncontent-length: 100\r\n\r\n{\"error\":"),
    (500, "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\nZZ\r\n"),
    (200, "content-type: application/json\r\ncontent-length: 100\r\n\r\n{\"model\":"),
];

#[tokio::test]
async fn an_answer_that_breaks_off_at_its_beginning_says_what_it_was() {
    let (proxy, [backend]) = proxied("[failover]\neject_after = 100000\n", ["a"]).await;
    for (status, rest) in UNENDED_ERRORS {
        backend.always(Answer::wire(format!("HTTP/1.1 {status} X\r\n{rest}")).close());
        for _ in 0..20 {
            let mut raw = Raw::connect(proxy.listen).await;
            raw.send(sized_request(CHAT, &chat_body().to_string())).await;
            let head = raw.head().await;
            if head.status == 502 {
                continue;
            }
            assert_eq!((head.status.as_u16(), status < 500), (status, true), "{rest}: {head:?}");
            let (body, _) = raw.rest().await;
            let promised = head.header("content-length").parse().unwrap_or(usize::MAX);
            assert!(body.len() < promised && !body.ends_with(b"0\r\n\r\n"), "{rest}: {head:?} {body:?}");
        }
    }
    proxy.falls_idle().await;
}

/// The backend's answer: the fields of a test, behind the first line and a type that is passed as it comes.
fn wire(rest: &str) -> Answer {
    Answer::wire(format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n{rest}")).close()
}

async fn is_seen(client: &Client, name: &str, seen: Seen) {
    let end = try_whole(client.post(CHAT, chat_body().to_string())).await;
    let told = match &end {
        // Where it is known before anything of it was passed on, it is better not begun.
        Ok(reply) if reply.status == 502 => {
            if seen == Cut {
                Cut
            } else {
                Refused
            }
        }
        Ok(reply) => {
            assert_eq!((reply.status.as_u16(), Whole(reply.text().to_owned().leak())), (200, seen), "{name}");
            let framings =
                ["content-length", "transfer-encoding"].map(|field| reply.headers.get_all(field).iter().count());
            assert!(framings.iter().sum::<usize>() <= 1, "{name}: {reply:?}");
            seen
        }
        Err(_) => Cut,
    };
    assert_eq!(told, seen, "{name}: {end:?}");
}

#[tokio::test]
async fn an_answer_is_whole_or_is_seen_not_to_be() {
    let (proxy, [backend]) = proxied("[failover]\neject_after = 1000\n", ["a"]).await;
    let http2 = Client::h2c(proxy.listen);
    for (name, rest, seen) in ANSWERS {
        backend.always(wire(rest));
        for client in [&proxy.client, &http2] {
            is_seen(client, name, *seen).await;
        }
    }
    backend.heal();
    proxy.client.chat().await.ok();
    proxy.falls_idle().await;
}

#[tokio::test]
async fn a_client_of_http_1_0_sees_it_by_how_the_connection_ends() {
    let (proxy, [backend]) = proxied("[failover]\neject_after = 1000\n", ["a"]).await;
    let body = stream_body().to_string();
    let request = format!("POST {CHAT} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let begun = format!("data: {}\n\n", delta(NATIVE, "one"));
    let chunk = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{begun}\r\n",
        begun.len()
    );
    for (end, is_whole) in [("0\r\n\r\n", true), ("", false)] {
        backend.always(Answer::wire(format!("{chunk}{end}")).close());
        let mut raw = Raw::connect(proxy.listen).await;
        raw.send(&request).await;
        let (wire, in_order) = raw.rest().await;
        let wire = String::from_utf8_lossy(&wire);
        assert!(wire.contains(&format!("data: {}", delta(MODEL, "one"))), "{end:?}: {wire}");
        assert_eq!((in_order, wire.contains("upstream_interrupted")), (is_whole, !is_whole), "{end:?}: {wire}");
    }
    proxy.falls_idle().await;
}

/// What belongs to a message without a body (RFC 9110 §8.6).
#[tokio::test]
async fn an_answer_without_content_tells_no_length() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    backend.always(Answer::wire("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"));
    let mut raw = Raw::connect(proxy.listen).await;
    for _ in 0..2 {
        raw.send(sized_request(CHAT, &chat_body().to_string())).await;
        let head = raw.head().await;
        assert_eq!((head.status.as_u16(), head.header("content-length")), (204, ""), "{head:?}");
    }
}
