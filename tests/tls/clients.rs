//! What applications see of TLS: everything that they see without it, and nobody in between.

use std::time::Duration;

use http::Version;
use rustls::ClientConfig;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::*;

/// A proxy that speaks TLS before these backends, and the authority of its certificate.
async fn by_tls<const N: usize>(top: &str, setups: [&str; N]) -> (Proxy, Authority, [Backend; N]) {
    let (authority, folder) = (Authority::named("clients' authority"), Folder::new());
    let table = authority.certify(&[LOOPBACK]).table(&folder);
    // Files are read before it is ready: the folder may go.
    let (proxy, backends) = proxied(&format!("{top}\n{RARE_POLLS}{table}"), setups).await;
    drop(folder);
    (proxy, authority, backends)
}

/// Offers nothing but this protocol by ALPN.
fn offering(authority: &Authority, protocol: &str) -> ClientConfig {
    let mut config = authority.client(None);
    config.alpn_protocols = vec![protocol.into()];
    config
}

fn clients(proxy: &Proxy, authority: &Authority) -> [Client; 2] {
    ["h2", "http/1.1"].map(|protocol| Client::https(proxy.listen, offering(authority, protocol)))
}

#[tokio::test]
async fn http_2_and_http_1_are_agreed_on_by_alpn() {
    let (proxy, authority, [backend]) = by_tls("", ["a"]).await;
    let both = Client::https(proxy.listen, authority.client(None));
    for (client, version) in clients(&proxy, &authority).into_iter().zip([Version::HTTP_2, Version::HTTP_11]) {
        let answer = client.post(CHAT, chat_body().to_string()).send().await.expect("an answer");
        assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
    }
    both.chat().await.ok();
    // Who says nothing speaks HTTP/1.1.
    let mut raw = Raw::connect_tls(proxy.listen, authority.client(None)).await.expect("a handshake");
    raw.send(sized_request(CHAT, &chat_body().to_string())).await;
    assert_eq!(raw.reply().await.ok().json()["model"], MODEL);
    assert!(backend.requests().iter().all(|request| request.header("x-forwarded-proto") == "https"));
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken() {
    let (proxy, authority, _backends) = by_tls("", ["a"]).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let builder = ClientConfig::builder_with_protocol_versions(&[version]);
        let config = builder.with_root_certificates(authority.roots()).with_no_client_auth();
        Client::https(proxy.listen, config).chat().await.ok();
    }
}

#[tokio::test]
async fn who_speaks_in_the_clear_is_told_and_hurts_nobody() {
    let (proxy, authority, [backend]) = by_tls("workers = 1\n", ["a"]).await;
    let gate = Gate::closed();
    backend.always(stream_held_at(&gate));
    let mut events = clients(&proxy, &authority)[0].stream().await;
    events.next().await;
    let said = proxy.client.chat().await.refused(400, "tls_required");
    assert!(said.text().contains("https://"), "{said:?}");
    // Nothing that is HTTP, and nothing that is TLS: a visible end.
    for bytes in
        [&b"\0\0\0\0"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\x16\xff\xff\xff\xff"]
    {
        let mut raw = Raw::connect(proxy.listen).await;
        raw.send(bytes).await;
        raw.rest().await;
    }
    gate.open();
    assert!(events.rest().await.ends_with("data: [DONE]\n\n"));
    assert_eq!(backend.request_count(), 1, "a request in the clear reached a backend");
}

#[tokio::test]
async fn a_handshake_that_stalls_ends_at_its_limit_and_holds_nobody_up() {
    let (proxy, authority, _backends) = by_tls("workers = 1\n", ["a"]).await;
    let begun = Instant::now();
    let mut stalled = Vec::new();
    for bytes in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        let mut raw = Raw::connect(proxy.listen).await;
        raw.send(bytes).await;
        stalled.push(raw);
    }
    for client in clients(&proxy, &authority) {
        client.chat().await.ok();
    }
    let held_up = begun.elapsed();
    for mut raw in stalled {
        raw.rest().await;
    }
    let ended = begun.elapsed();
    assert!(ended >= Duration::from_secs(9), "ended after {ended:?}");
    assert!(held_up < ended, "others waited {held_up:?} for it");
}

#[tokio::test]
async fn streams_come_event_by_event_and_bodies_whole() {
    let (proxy, authority, [backend]) = by_tls("", ["a"]).await;
    for client in clients(&proxy, &authority) {
        let gate = Gate::closed();
        backend.always(stream_held_at(&gate));
        let mut events = client.stream().await;
        assert!(events.next().await.contains("\"one\""), "the first event waits for the second");
        gate.open();
        assert!(events.rest().await.ends_with("data: [DONE]\n\n"));
        backend.heal();
        let body = vision_body(&[base64_text(4_000_000), base64_text(300)]);
        whole(client.post(CHAT, body.clone())).await.ok();
        let received = backend.requests().pop().expect("a request");
        assert!(received.text() == as_native(&body), "another body arrived");
        // An answer of many records, to a client that reads it late.
        let large = base64_text(3_000_000);
        backend.always(Answer::json(200, json!({"model": NATIVE, "text": large}).to_string()));
        assert_eq!(client.chat().await.ok().json()["text"], large);
    }
}

/// Ways to leave a connection: by the last word of TLS and FIN, by FIN alone, by RST.
const LEAVING: [&str; 3] = ["in order", "without a word", "reset"];

#[tokio::test]
async fn who_leaves_is_cancelled_at_once() {
    let (proxy, authority, [backend]) = by_tls("", ["a"]).await;
    let streaming = Answer::stream().event(&delta(NATIVE, "one")).stall();
    for (answer, seen_before) in [(Answer::nothing().stall(), None), (streaming, Some("\"one\""))] {
        backend.always(answer);
        // Behind a byte that was sent ahead, only the watch notices.
        for (way, behind) in LEAVING.into_iter().flat_map(|way| [(way, ""), (way, "\r\n")]) {
            let mut times = Vec::new();
            for _ in 0..5 {
                let sent = backend.request_count();
                let mut raw = Raw::connect_tls(proxy.listen, authority.client(None)).await.expect("a handshake");
                raw.send(sized_request(CHAT, &stream_body().to_string()) + behind).await;
                eventually("it is at the backend", async || backend.request_count() > sent && backend.in_flight() > 0)
                    .await;
                // Once more, by itself: what comes with the request is read with it.
                raw.send(behind).await;
                if let Some(text) = seen_before {
                    raw.read_until(text).await;
                }
                let left = match way {
                    "in order" => raw.finish().await,
                    "without a word" => raw.leave(),
                    _ => raw.reset(),
                };
                eventually("it is cancelled", async || backend.requests()[sent].gone_at.is_some()).await;
                times.push(backend.requests()[sent].gone_at.expect("gone").saturating_duration_since(left));
            }
            times.sort_unstable();
            assert!(times[2] <= Duration::from_millis(100), "{way} behind {behind:?}: cancelled after {times:?}");
        }
    }
    proxy.falls_idle().await;
}

#[tokio::test]
async fn a_reset_stream_of_http_2_is_cancelled_and_the_others_go_on() {
    let (proxy, authority, [backend]) = by_tls("", ["a"]).await;
    let (client, gate) = (Client::https(proxy.listen, offering(&authority, "h2")), Gate::closed());
    backend.always(stream_held_at(&gate));
    let mut staying = client.stream().await;
    staying.next().await;
    let leaving = client.stream().await;
    let left = Instant::now();
    drop(leaving);
    eventually("it is cancelled", async || backend.requests()[1].gone_at.is_some()).await;
    let took = backend.requests()[1].gone_at.expect("gone").saturating_duration_since(left);
    assert!(took < Duration::from_secs(1), "cancelled after {took:?}");
    gate.open();
    assert!(staying.rest().await.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_drain_lets_streams_end_and_a_cut_ends_them_visibly() {
    for (drain, ends_well) in [("30s", true), ("0s", false)] {
        let top = format!("timeouts = {{ drain = \"{drain}\", drain_delay = \"0s\" }}\n");
        let (mut proxy, authority, [backend]) = by_tls(&top, ["a"]).await;
        let gate = Gate::closed();
        backend.always(stream_held_at(&gate));
        let mut streams = Vec::new();
        for client in clients(&proxy, &authority) {
            let mut events = client.stream().await;
            events.next().await;
            streams.push(events);
        }
        proxy.signal("TERM");
        if ends_well {
            eventually("it takes no connection", async || TcpStream::connect(proxy.listen).await.is_err()).await;
            gate.open();
        }
        for events in streams {
            let (text, broken) = events.rest_or_break().await;
            assert_eq!(text.ends_with("data: [DONE]\n\n"), ends_well, "{text}");
            assert_eq!(broken, !ends_well, "{text}");
        }
        assert!(proxy.ends().await.success());
    }
}

#[tokio::test]
async fn where_an_authority_of_clients_is_given_only_theirs_are_let_in() {
    let (authority, of_clients, folder) = (Authority::named("servers"), Authority::named("clients"), Folder::new());
    let ca = folder.write("clients.pem", &of_clients.pem);
    let table = authority.certify(&[LOOPBACK]).table(&folder);
    let top = format!("{RARE_POLLS}{table}client_ca = \"{}\"\n", ca.display());
    let (proxy, [backend]) = proxied(&top, ["a"]).await;
    let known = of_clients.certify(&["app"]);
    Client::https(proxy.listen, authority.client(Some(&known))).chat().await.ok();
    for stranger in [None, Some(Authority::named("clients").certify(&["app"]))] {
        let client = Client::https(proxy.listen, authority.client(stranger.as_ref()));
        assert!(try_whole(client.post(CHAT, chat_body().to_string())).await.is_err());
    }
    assert_eq!(backend.request_count(), 1);
}
