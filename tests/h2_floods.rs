//! HTTP/2 floods: a connection that misbehaves is ended or waits; memory stays where it was, other clients are served.
//!
//! The frames are written by hand (`support::frames`).

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::frames::*;
use crate::support::*;

/// `GET /` over http, by the static table alone (RFC 7541, appendix A), with the authority `p`.
const GET: &[u8] = b"\x82\x86\x84\x01\x01p";
/// The same as `POST`.
const POST: &[u8] = b"\x83\x86\x84\x01\x01p";

/// No flood of these needs so many bytes to be stopped.
const MOST_BYTES: usize = 24 << 20;
/// Who cannot write for so long is held back.
const HELD_BACK: Duration = Duration::from_secs(2);
/// What memory may grow by meanwhile: the allocator's own slack on a busy machine, and far less than was sent.
const GROWTH_KIB: u64 = 12 << 10;

/// The streams of a client are numbered oddly.
fn stream(number: u32) -> u32 {
    2 * number + 1
}

#[derive(Debug, PartialEq)]
enum End {
    /// The proxy ended the connection.
    Ended,
    /// It reads no more, or no faster than it can.
    HeldBack,
    /// It took everything, which is fine where it costs it nothing.
    Endured,
}

/// Sends such frames, one after another, without reading what is answered or reading it all.
async fn flood(proxy: &Proxy, opening: &[u8], reads: bool, mut next: impl FnMut(u32) -> Vec<u8>) -> End {
    let stream = TcpStream::connect(proxy.listen).await.expect("connect");
    let (mut read, mut write) = stream.into_split();
    let reader = tokio::spawn(async move {
        let mut answer = vec![0; 1 << 16];
        while reads && matches!(read.read(&mut answer).await, Ok(1..)) {}
        // Held, not dropped: closing it would end the flood from our side.
        if !reads {
            std::future::pending::<()>().await;
        }
    });
    let (mut sent, mut number) = (0, 0);
    let mut batch = opening.to_vec();
    let end = loop {
        match timeout(HELD_BACK, write.write_all(&batch)).await {
            Err(_) => break End::HeldBack,
            Ok(Err(_)) => break End::Ended,
            Ok(Ok(())) => {}
        }
        sent += batch.len();
        if sent > MOST_BYTES {
            break End::Endured;
        }
        batch.clear();
        for _ in 0..64 {
            batch.extend(next(number));
            number += 1;
        }
    };
    reader.abort();
    end
}

/// Floods a proxy while another client is served; returns how it ended. Memory must not follow.
async fn is_endured(opening: &[u8], reads: bool, next: impl FnMut(u32) -> Vec<u8>) -> End {
    let (proxy, [_backend]) = proxied("", ["a"]).await;
    proxy.client.chat().await.ok();
    let before = proxy.resident_kib();
    let load = Load::of(&proxy, 1);
    let end = flood(&proxy, opening, reads, next).await;
    load.answers_more(3).await;
    load.ends_well().await;
    let grown = proxy.resident_kib().saturating_sub(before);
    assert!(grown < GROWTH_KIB, "{grown} KiB more, {end:?}");
    proxy.falls_idle().await;
    end
}

#[tokio::test]
async fn streams_that_are_reset_at_once() {
    let next = |number| {
        let open = frame(HEADERS, END_HEADERS | END_STREAM, stream(number), GET);
        [open, frame(RST_STREAM, 0, stream(number), &8_u32.to_be_bytes())].concat()
    };
    assert_eq!(is_endured(&opening(&[]), true, next).await, End::Ended);
}

#[tokio::test]
async fn streams_that_the_proxy_is_made_to_reset() {
    let next = |number| {
        let open = frame(HEADERS, END_HEADERS, stream(number), POST);
        // An increment of nothing is an error of the stream (RFC 9113 §6.9).
        [open, frame(WINDOW_UPDATE, 0, stream(number), &[0; 4])].concat()
    };
    assert_eq!(is_endured(&opening(&[]), true, next).await, End::Ended);
}

#[tokio::test]
async fn a_head_without_an_end() {
    let begin = [opening(&[]), frame(HEADERS, END_STREAM, 1, GET)].concat();
    // A field without indexing: `a: xxx…`.
    let field = [b"\x00\x01a\x7f\x81\x07".as_slice(), &[b'x'; 1024]].concat();
    assert_eq!(is_endured(&begin, true, |_| frame(CONTINUATION, 0, 1, &field)).await, End::Ended);
}

#[tokio::test]
async fn a_head_that_is_small_and_means_much() {
    // One value of 3,000 bytes goes into the table; each byte after it repeats it (index 62).
    let insert = [b"\x40\x01a\x7f\xb9\x16".as_slice(), &[b'x'; 3000], &[0xbe; 12_000]].concat();
    let head = [GET, &insert].concat();
    let end =
        is_endured(&opening(&[]), true, |number| frame(HEADERS, END_HEADERS | END_STREAM, stream(number), &head)).await;
    assert_ne!(end, End::HeldBack);
}

#[tokio::test]
async fn data_of_no_bytes() {
    let begin = [opening(&[]), frame(HEADERS, END_HEADERS, 1, POST)].concat();
    assert_eq!(is_endured(&begin, true, |_| frame(DATA, 0, 1, b"")).await, End::Ended);
}

#[tokio::test]
async fn settings_whose_acknowledgement_nobody_reads() {
    let end = is_endured(&opening(&[]), false, |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])).await;
    assert_ne!(end, End::Endured);
}

#[tokio::test]
async fn pings_whose_answer_nobody_reads() {
    let end = is_endured(&opening(&[]), false, |_| frame(PING, 0, 0, b"12345678")).await;
    assert_ne!(end, End::Endured);
}

/// Answers for which the client leaves no room stay at the backends, but for what the proxy may hold of each.
#[tokio::test]
async fn answers_that_no_window_lets_through() {
    let (proxy, [backend]) = proxied("", [Setup::named("a").slots(200)]).await;
    backend.always(Answer::stream().repeated([b'x'; 4096], 1 << 20).done());
    proxy.client.get("/health").await.ok();
    let before = proxy.resident_kib();
    let body = stream_body().to_string();
    // `:path` and `content-length` as literals without indexing.
    let head =
        [b"\x83\x86\x04\x14/v1/chat/completions\x01\x01p\x0f\x0d".as_slice(), &[2], body.len().to_string().as_bytes()]
            .concat();
    let streams = (0..100).flat_map(|number| {
        let open = frame(HEADERS, END_HEADERS, stream(number), &head);
        [open, frame(DATA, END_STREAM, stream(number), body.as_bytes())].concat()
    });
    let mut connection = TcpStream::connect(proxy.listen).await.expect("connect");
    // No stream may be sent anything: SETTINGS_INITIAL_WINDOW_SIZE is 0.
    let flood: Vec<u8> = opening(&[0, 4, 0, 0, 0, 0]).into_iter().chain(streams).collect();
    connection.write_all(&flood).await.expect("room for what is sent");
    eventually("all are answered", async || backend.in_flight() == 100).await;
    proxy.client.get("/health").await.ok();
    let grown = proxy.resident_kib().saturating_sub(before);
    assert!(grown < 100 * 160, "{grown} KiB more for 100 streams");
    drop(connection);
    eventually("they are cancelled", async || backend.in_flight() == 0).await;
    proxy.falls_idle().await;
}
