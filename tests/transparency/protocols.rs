//! HTTP/1.0, HTTP/1.1 with its ways of framing and reusing connections, and HTTP/2.

use crate::support::*;

#[tokio::test]
async fn requests_on_one_connection_share_one_connection_to_the_backend() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let mut raw = Raw::connect(proxy.listen).await;
    for _ in 0..10 {
        raw.send(sized_request(CHAT, &chat_body().to_string())).await;
        raw.reply().await.ok();
    }
    let mut connections: Vec<_> = backend.requests().iter().map(|request| request.connection).collect();
    connections.dedup();
    assert_eq!(connections.len(), 1, "each of 10 requests took a connection of its own: {connections:?}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    backend.answer_by(|request| Answer::json(200, format!("{{\"for\":{}}}", request.json()["number"])));
    let request = |number: usize| sized_request(CHAT, &format!("{{\"model\":\"{MODEL}\",\"number\":{number}}}"));
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send((0..5).map(request).collect::<String>()).await;
    for number in 0..5 {
        assert_eq!(raw.reply().await.ok().json()["for"], number);
    }
}

#[tokio::test]
async fn an_http_1_0_client_reads_a_body_without_chunks() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    backend.always(stream_of(["one", "two"]));
    let body = stream_body().to_string();
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send(format!("POST {CHAT} HTTP/1.0\r\nHost: proxy.test\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    let head = raw.head().await.ok();
    assert_eq!(head.header("transfer-encoding"), "", "{head:?}");
    let (text, in_order) = raw.rest().await;
    let expected = format!("data: {}\n\ndata: {}\n\ndata: [DONE]\n\n", delta(MODEL, "one"), delta(MODEL, "two"));
    assert_eq!((String::from_utf8_lossy(&text).as_ref(), in_order), (expected.as_str(), true));
}

#[tokio::test]
async fn connection_close_is_honoured() {
    let (proxy, [_backend]) = proxied("", ["a"]).await;
    let body = chat_body().to_string();
    let length = body.len().to_string();
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send(request_head("POST", CHAT, &[("Connection", "close"), ("Content-Length", &length)]) + &body).await;
    raw.reply().await.ok();
    assert_eq!(raw.rest().await.0.len(), 0);
}

#[tokio::test]
async fn a_body_arrives_the_same_however_it_was_framed_and_cut() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let body = vision_body(&[base64_text(5_000)]);
    let mut raw = Raw::connect(proxy.listen).await;
    for piece in [1, 7, 4_096, body.len()] {
        raw.send(chunked_head(CHAT)).await;
        raw.send(in_chunks(body.as_bytes().chunks(piece))).await;
        raw.reply().await.ok();
    }
    let sized = sized_request(CHAT, &body);
    for piece in sized.as_bytes().chunks(50) {
        raw.send(piece).await;
    }
    raw.reply().await.ok();
    let requests = backend.requests();
    assert_eq!(requests.len(), 5);
    assert!(requests.iter().all(|request| request.text() == as_native(&body)));
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on() {
    let (proxy, [_backend]) = proxied("", ["a"]).await;
    let body = chat_body().to_string();
    let length = body.len().to_string();
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send(request_head("POST", CHAT, &[("Content-Length", &length), ("Expect", "100-continue")])).await;
    assert!(raw.read_until("\r\n\r\n").await.starts_with(b"HTTP/1.1 100 "));
    raw.send(body).await;
    raw.reply().await.ok();
}

#[tokio::test]
async fn a_client_that_asks_first_is_refused_before_it_sends() {
    let (proxy, [_backend]) = proxied("[limits]\nbody = \"1KiB\"\n", ["a"]).await;
    for (path, length, status) in [(CHAT, "1000000", 413), ("/no/such/path", "10", 404)] {
        let mut raw = Raw::connect(proxy.listen).await;
        raw.send(request_head("POST", path, &[("Content-Length", length), ("Expect", "100-continue")])).await;
        let head = raw.read_until("\r\n").await;
        assert!(head.starts_with(format!("HTTP/1.1 {status} ").as_bytes()), "{head:?}");
    }
}

#[tokio::test]
async fn http_2_by_prior_knowledge_does_all_that_http_1_does() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let client = Client::h2c(proxy.listen);
    let reply = client.chat().await.ok();
    assert_eq!((reply.json()["model"].as_str(), reply.backend()), (Some(MODEL), "a"));
    let mut events = client.stream().await;
    assert_eq!(events.response.version(), http::Version::HTTP_2);
    assert!(events.next().await.contains(MODEL));
    assert!(events.rest().await.ends_with("data: [DONE]\n\n"));
    client.get("/v1/models").await.ok();
    client.chat_with("nobody-serves-this").await.refused(404, "model_not_found");
    assert_eq!(backend.requests()[0].header("host"), backend.address.to_string());
}

#[tokio::test]
async fn streams_of_one_http_2_connection_do_not_wait_for_each_other() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let (client, gate) = (Client::h2c(proxy.listen), Gate::closed());
    backend.always(stream_held_at(&gate));
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut events = client.stream().await;
        assert!(events.next().await.contains("\"one\""));
        held.push(events);
    }
    gate.reached_by(20).await;
    backend.heal();
    client.chat().await.ok();
    gate.open();
    for events in held {
        assert!(events.rest().await.ends_with("data: [DONE]\n\n"));
    }
}

/// HTTP/2 lets a client divide its cookies, and no other version knows of that (RFC 9113 §8.2.3).
#[tokio::test]
async fn cookies_that_came_in_parts_go_on_as_one() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let request = Client::h2c(proxy.listen).post(CHAT, chat_body().to_string());
    whole(request.header("cookie", "a=1").header("cookie", "b=2; c=3")).await.ok();
    assert_eq!(backend.request().header("cookie"), "a=1; b=2; c=3");
}
