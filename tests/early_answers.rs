//! A backend that answers while it is still being sent the request, and reads no more of it: the answer counts, whatever
//! becomes of the connection.

use crate::support::*;

/// A body that fits into what kernels hold for a connection, one that does so in part, and one that does not.
const SIZES: [usize; 3] = [100_000, 3_000_000, 20_000_000];
/// One worker has one pool; and nobody is taken out of use for what a test does on purpose.
const TOP: &str = "workers = 1\n[failover]\neject_after = 1000\n";

/// An answer of this status, with a body of a known length.
fn answer(status: u16) -> Answer {
    let text = completion(NATIVE).to_string();
    Answer::whole(status, &[("content-type", "application/json"), ("connection", "close")], text)
}

#[tokio::test]
async fn an_early_answer_is_passed_on_and_nobody_is_blamed() {
    let (proxy, backends) = proxied(TOP, ["a", "b"]).await;
    let mut asked = 0;
    for bytes in SIZES {
        let body = vision_body(&[base64_text(bytes)]);
        for status in [413, 401, 200] {
            for early in [answer(status).until_gone(), answer(status).close(), answer(status).reset()] {
                backends.iter().for_each(|backend| backend.answer_unread(early.clone()));
                for _ in 0..4 {
                    asked += 1;
                    let reply = whole(proxy.client.post(CHAT, body.clone())).await;
                    assert_eq!((reply.status.as_u16(), reply.attempts()), (status, 1), "{bytes}: {reply:?}");
                    assert_eq!(reply.json()["model"], MODEL, "{reply:?}");
                }
            }
        }
    }
    for backend in proxy.backends().await {
        assert_eq!((&backend["failures_total"], &backend["state"]), (&0.into(), &"available".into()), "{backend}");
    }
    let requests: Vec<_> = backends.iter().flat_map(Backend::requests).collect();
    assert_eq!(requests.len(), asked, "none was sent twice");
    let mut connections: Vec<_> = backends
        .iter()
        .enumerate()
        .flat_map(|(at, one)| one.requests().into_iter().map(move |r| (at, r.connection)))
        .collect();
    connections.sort_unstable();
    connections.dedup();
    assert_eq!(connections.len(), asked, "a connection with a part of a request on it was used again");
    proxy.falls_idle().await;
}

/// What never becomes an answer, sent while the request is on its way.
const ENDLESS: [(&str, &str, &str); 2] = [
    ("a head", "HTTP/1.1 200 OK\r\n", "x-more: of the same, and no end of it in sight\r\n"),
    ("interim answers", "", "HTTP/1.1 100 Continue\r\n\r\n"),
];

#[tokio::test]
async fn an_early_answer_without_an_end_is_given_up() {
    let (proxy, [backend]) = proxied(TOP, ["a"]).await;
    let body = vision_body(&[base64_text(20_000_000)]);
    for (name, begin, again) in ENDLESS {
        // Half a gigabyte: nobody waits for the end of it.
        let piece = again.repeat((1 << 16) / again.len());
        backend.answer_unread(Answer::wire(begin).wire_again(piece, 1 << 13).until_gone());
        let before = backend.sent_bytes();
        whole(proxy.client.post(CHAT, body.clone())).await.refused(502, "upstream_invalid_response");
        let read = backend.sent_bytes() - before;
        // What a kernel holds of it is not read by us.
        assert!(read < 32 << 20, "{name}: {read} bytes were taken");
    }
    proxy.falls_idle().await;
}

#[tokio::test]
async fn a_backend_that_does_not_read_is_told_at_once_that_nobody_waits() {
    let (proxy, [backend]) = proxied("workers = 1\n", ["a"]).await;
    backend.answer_unread(Answer::nothing().until_gone());
    for bytes in SIZES {
        let pending = Pending::of(proxy.another_client().post(CHAT, vision_body(&[base64_text(bytes)])));
        eventually("the backend holds it", async || backend.in_flight() == 1).await;
        pending.leave().await;
        eventually("the backend sees it end", async || backend.in_flight() == 0).await;
    }
    proxy.falls_idle().await;
}
