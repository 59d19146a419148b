//! Everything that works before backends in the clear works before those that speak TLS.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::*;

/// A proxy before this backend behind TLS.
async fn before(setup: Setup, top: &str) -> (Proxy, Backend, TlsFront) {
    let (authority, folder) = (Authority::named("ours"), Folder::new());
    let ca = folder.write("ca.pem", &authority.pem);
    let backend = setup.start().await;
    let front = TlsFront::before(&backend, authority.certify(&[LOOPBACK]).server()).await;
    let entry = front.entry(&backend, &format!("ca = \"{}\"", ca.display()));
    (Proxy::start(&format!("{top}\n{entry}")).await, backend, front)
}

#[tokio::test]
async fn streams_and_large_bodies_pass_and_connections_are_kept() {
    let (proxy, backend, front) = before(Setup::named("a"), &format!("workers = 1\n{RARE_POLLS}")).await;
    let gate = Gate::closed();
    backend.always(stream_held_at(&gate));
    let mut events = proxy.client.stream().await;
    assert!(events.next().await.contains("\"one\""), "the first event waits for the second");
    gate.open();
    assert!(events.rest().await.ends_with("data: [DONE]\n\n"));
    backend.heal();
    let handshakes = front.handshakes();
    for size in [10, 100_000, 6_000_000] {
        let body = vision_body(&[base64_text(size)]);
        whole(proxy.client.post(CHAT, body.clone())).await.ok();
        let received = backend.requests().pop().expect("a request");
        assert!(received.text() == as_native(&body), "another body arrived");
    }
    let large = base64_text(3_000_000);
    backend.always(Answer::json(200, json!({"model": NATIVE, "text": large}).to_string()));
    assert_eq!(proxy.client.chat().await.ok().json()["text"], large);
    assert_eq!(front.handshakes(), handshakes, "a connection was made anew");
}

#[tokio::test]
async fn its_load_is_seen() {
    let (proxy, backend, _front) = before(Setup::named("a").vllm().unmapped(), "").await;
    backend.report(Report { running: 3, waiting: 1, ..Report::default() });
    eventually("what it reports is seen", async || {
        let told = proxy.backend("a").await;
        told["reported"]["running"] == 3 && told["state"] == "busy" && told["models"][NATIVE] == NATIVE
    })
    .await;
}

#[tokio::test]
async fn metrics_at_an_address_of_their_own_are_read_where_that_is_trusted() {
    let (ours, theirs, folder) = (Authority::named("ours"), Authority::named("theirs"), Folder::new());
    let ca = folder.write("ca.pem", &ours.pem);
    for (authority, running) in [(&ours, json!(3)), (&theirs, Value::Null)] {
        let metrics = Setup::named("metrics").vllm().start().await;
        metrics.report(Report { running: 3, ..Report::default() });
        let front = TlsFront::before(&metrics, authority.certify(&[LOOPBACK]).server()).await;
        // The backend itself is in the clear, so that what its table says of TLS is of its metrics.
        let backend = Setup::named("a").vllm().start().await;
        let at = format!("metrics_url = \"https://{}\"\ntls = {{ ca = \"{}\" }}\n", front.address, ca.display());
        let proxy = Proxy::start(&format!("{}{at}", backend.entry())).await;
        let told = proxy.backend("a").await;
        assert_eq!(told["reported"]["running"], running, "{told}");
        proxy.client.chat().await.ok();
        assert_eq!(front.handshakes() > 0, !running.is_null());
    }
}

#[tokio::test]
async fn who_leaves_is_cancelled_at_once() {
    let (proxy, backend, _front) = before(Setup::named("a"), "").await;
    let streaming = Answer::stream().event(&delta(NATIVE, "one")).stall();
    for (answer, seen_before) in [(Answer::nothing().stall(), None), (streaming, Some("\"one\""))] {
        backend.always(answer);
        let mut times = Vec::new();
        for _ in 0..5 {
            let sent = backend.request_count();
            let mut raw = Raw::connect(proxy.listen).await;
            raw.send(sized_request(CHAT, &stream_body().to_string())).await;
            eventually("it is at the backend", async || backend.request_count() > sent && backend.in_flight() > 0)
                .await;
            if let Some(text) = seen_before {
                raw.read_until(text).await;
            }
            let left = raw.leave();
            eventually("it is cancelled", async || backend.requests()[sent].gone_at.is_some()).await;
            times.push(backend.requests()[sent].gone_at.expect("gone").saturating_duration_since(left));
        }
        times.sort_unstable();
        assert!(times[2] <= Duration::from_millis(100), "cancelled after {times:?}");
    }
    proxy.falls_idle().await;
}

#[tokio::test]
async fn an_answer_that_is_cut_short_is_never_taken_for_whole() {
    let (proxy, backend, front) = before(Setup::named("a"), RARE_POLLS).await;
    // Its body ends with the connection: only the last word of TLS tells the end from a cut (RFC 8446 §6.1).
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n";
    let unframed = |body: &str| Answer::wire(format!("{head}{body}"));
    backend.always(unframed("all of it").close());
    assert_eq!(proxy.client.chat().await.ok().text(), "all of it");
    backend.always(unframed("half of i").close());
    front.cuts();
    let cut = try_whole(proxy.client.post(CHAT, chat_body().to_string())).await;
    // Where the cut comes together with the piece before it, nothing has gone to the client yet.
    assert!(cut.as_ref().map_or(true, |reply| reply.status == 502), "{cut:?}");
}

#[tokio::test]
async fn an_upload_that_breaks_is_sent_again_elsewhere() {
    let plain = Setup::named("b").start().await;
    let (proxy, backend, _front) = before(Setup::named("a"), &format!("{RARE_POLLS}{}", plain.entry())).await;
    let body = vision_body(&[base64_text(6_000_000)]);
    for _ in 0..4 {
        backend.break_next_upload();
        assert_eq!(whole(proxy.client.post(CHAT, body.clone())).await.ok().backend(), "b");
    }
    assert!(backend.request_count() > 0, "it was never asked");
}
