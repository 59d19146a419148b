//! Bad input gets a clear error, in the language of its path, and changes nothing else.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::*;

/// Requires that an error has the shape of its API.
type Shape = fn(&Reply);

fn is_openai(reply: &Reply) {
    let error = reply.json()["error"].clone();
    let mut keys: Vec<_> = error.as_object().unwrap_or_else(|| panic!("no error: {reply:?}")).keys().collect();
    keys.sort();
    assert_eq!(keys, ["code", "message", "param", "type"], "{reply:?}");
    assert!(error["message"].is_string() && error["type"].is_string() && error["code"].is_string(), "{reply:?}");
}

fn is_anthropic(reply: &Reply) {
    let body = reply.json();
    assert_eq!(body["type"], "error", "{reply:?}");
    assert!(body["error"]["type"].is_string() && body["error"]["message"].is_string(), "{reply:?}");
}

fn is_ollama(reply: &Reply) {
    assert!(reply.json()["error"].as_str().is_some_and(|message| !message.is_empty()), "{reply:?}");
}

/// What every answer of the proxy's own has to be, besides its shape.
fn is_own(reply: &Reply) {
    assert_eq!(reply.header("content-type").split(';').next(), Some("application/json"), "{reply:?}");
    assert_ne!(reply.header("x-request-id"), "", "{reply:?}");
    for address in ["127.0.0.1", "http://", "localhost"] {
        assert!(!reply.text().contains(address), "an address shows: {reply:?}");
    }
}

/// Requires that a good request is still served, and no bad one was.
async fn is_unharmed(proxy: &Proxy, backend: &Backend) {
    assert_eq!(backend.request_count(), 0);
    proxy.client.chat().await.ok();
    let told = proxy.backend("a").await;
    assert_eq!((&told["state"], &told["failures_total"]), (&"available".into(), &0.into()));
    proxy.falls_idle().await;
}

#[tokio::test]
async fn what_is_no_json_is_refused() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    for body in [
        "",
        "   ",
        "hello",
        "{",
        r#"{"model"}"#,
        r#"{"model":"qwen-vl""#,
        r#"{"model":"qwen-vl"]"#,
        r#"{"model":"qwen-vl",}"#,
        r#"{"model":"qwen-vl"} trailing"#,
        r#"{"model":"qwen-vl"}{"model":"qwen-vl"}"#,
        r#"{'model':'qwen-vl'}"#,
        r#"{"model":"qwen\x"}"#,
        r#"{"model":"qwen-vl"#,
        "{\"model\":\"a\nb\"}",
        r#"{model:"qwen-vl"}"#,
    ] {
        let reply = whole(proxy.client.post(CHAT, body)).await.refused(400, "invalid_json");
        is_openai(&reply);
        is_own(&reply);
    }
    is_unharmed(&proxy, &backend).await;
}

#[tokio::test]
async fn a_body_that_names_no_model_is_refused() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    for body in ["{}", r#"{"messages":[]}"#, r#"{"metadata":{"model":"qwen-vl"}}"#, r#"{"Model":"qwen-vl"}"#] {
        let reply = whole(proxy.client.post(CHAT, body)).await.refused(400, "missing_model");
        is_own(&reply);
        assert_eq!(reply.json()["error"]["param"], "model");
    }
    for body in [
        r#"["model","qwen-vl"]"#,
        r#""qwen-vl""#,
        r#"{"model":null}"#,
        r#"{"model":7}"#,
        r#"{"model":["qwen-vl"]}"#,
        r#"{"model":{"id":"qwen-vl"}}"#,
        r#"{"model":""}"#,
    ] {
        let reply = whole(proxy.client.post(CHAT, body)).await;
        assert_eq!(reply.status, 400, "{body}: {reply:?}");
        is_openai(&reply);
    }
    is_unharmed(&proxy, &backend).await;
}

#[tokio::test]
async fn a_model_that_nobody_serves_is_not_found_and_the_served_ones_are_named() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let longest = "x".repeat(256);
    for model in ["nobody-serves-this", "qwen-vl ", "QWEN-VL", "../etc/passwd", "\u{1F600}", &longest] {
        let reply = proxy.client.chat_with(model).await.refused(404, "model_not_found");
        is_own(&reply);
        let error = &reply.json()["error"];
        assert_eq!((&error["type"], &error["param"]), (&"invalid_request_error".into(), &"model".into()));
        assert!(error["message"].as_str().is_some_and(|message| message.contains(MODEL)), "{reply:?}");
    }
    is_unharmed(&proxy, &backend).await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let (proxy, [backend]) = proxied("[limits]\nbody = \"1MiB\"\n", ["a"]).await;
    let fits = vision_body(&[base64_text((1 << 20) - 300)]);
    let too_large = vision_body(&[base64_text(1 << 20)]);
    for request in [
        sized_request(CHAT, &too_large).into_bytes(),
        [chunked_head(CHAT).into_bytes(), in_chunks(too_large.as_bytes().chunks(9_999))].concat(),
    ] {
        let mut raw = Raw::connect(proxy.listen).await;
        raw.send_if_wanted(request).await;
        let reply = raw.reply().await.refused(413, "request_too_large");
        is_openai(&reply);
        is_own(&reply);
    }
    let announced = request_head("POST", CHAT, &[("Content-Length", "99999999999999")]);
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send(announced).await;
    raw.reply().await.refused(413, "request_too_large");
    assert_eq!(backend.request_count(), 0);
    whole(proxy.client.post(CHAT, fits)).await.ok();
}

/// Most clients look for an answer only when they have sent everything: a connection that is closed under them is reset, and
/// they never learn why.
#[tokio::test]
async fn a_client_that_sends_all_of_a_refused_body_reads_why() {
    let (proxy, [backend]) = proxied("[limits]\nbody = \"1MiB\"\n", ["a"]).await;
    let body = vision_body(&[base64_text(30 << 20)]);
    let chunked = [chunked_head(CHAT).into_bytes(), in_chunks(body.as_bytes().chunks(1 << 16))].concat();
    for (request, status) in [
        (sized_request(CHAT, &body).into_bytes(), 413),
        (chunked, 413),
        (sized_request("/unknown/path", &body).into_bytes(), 404),
    ] {
        for _ in 0..3 {
            let mut raw = Raw::connect(proxy.listen).await;
            raw.send(&request).await;
            let reply = raw.reply().await;
            assert_eq!((reply.status.as_u16(), reply.header("connection")), (status, "close"));
            assert!(raw.rest().await.1, "reset");
        }
    }
    assert_eq!(backend.request_count(), 0);
    proxy.client.chat().await.ok();
}

#[tokio::test]
async fn a_small_refused_body_costs_no_connection() {
    let (proxy, [_backend]) = proxied("", ["a"]).await;
    let mut raw = Raw::connect(proxy.listen).await;
    let padding = " ".repeat(30 << 10);
    for request in [
        sized_request("/unknown/path", &padding),
        sized_request(CHAT, &format!("{{]{padding}")),
        String::from_utf8([chunked_head(CHAT).into_bytes(), in_chunks([padding.as_bytes(), b"[]"])].concat()).unwrap(),
    ] {
        // In two pieces: the answer could be known before the second.
        let (first, second) = request.split_at(request.len() - 100);
        raw.send(first).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        raw.send(second).await;
        assert!(raw.reply().await.status.is_client_error());
        raw.send(sized_request(CHAT, &chat_body().to_string())).await;
        raw.reply().await.ok();
    }
}

#[tokio::test]
async fn a_body_that_ends_too_early_reaches_no_backend() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send(request_head("POST", CHAT, &[("Content-Length", "1000")]) + "{\"model\":\"qwen-vl\"}").await;
    raw.leave();
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send(chunked_head(CHAT) + "13\r\n{\"model\":\"qwen-vl\"}\r\nnonsense\r\n").await;
    let (answer, _) = raw.rest().await;
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
    is_unharmed(&proxy, &backend).await;
}

#[tokio::test]
async fn a_compressed_body_is_refused() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let request = proxy.client.post(CHAT, chat_body().to_string()).header("content-encoding", "gzip");
    is_openai(&whole(request).await.refused(415, "unsupported_content_encoding"));
    is_unharmed(&proxy, &backend).await;
}

#[tokio::test]
async fn heads_that_two_readers_would_read_differently_are_refused() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let body = chat_body().to_string();
    let length = body.len();
    let with = |fields: String| format!("POST {CHAT} HTTP/1.1\r\n{fields}\r\n\r\n{body}");
    for request in [
        with(format!("Content-Length: {length}")),
        with(format!("Host: a\r\nHost: b\r\nContent-Length: {length}")),
        with(format!("Host: a b\r\nContent-Length: {length}")),
        with(format!("Host: a\r\nContent-Length: {length}\r\nContent-Length: {}", length + 1)),
        with(format!("Host: a\r\nContent-Length: {length}, {length}x")),
        with(format!("Host: a\r\nContent-Length: +{length}")),
        with("Host: a\r\nTransfer-Encoding: gzip".to_owned()),
        with("Host: a\r\nTransfer-Encoding: chunked, chunked".to_owned()),
        with("Host: a\r\nTransfer-Encoding: ,chunked".to_owned()),
        with("Host: a\r\nTransfer-Encoding: chunked, gzip".to_owned()),
        with(format!("Host: a\r\nContent-Length : {length}")),
        with(format!("Host: a\r\nX-Odd: one\r\n two\r\nContent-Length: {length}")),
        "GARBAGE\r\n\r\n".to_owned(),
    ] {
        let mut raw = Raw::connect(proxy.listen).await;
        raw.send(&request).await;
        let status = raw.head().await.status;
        assert!(status.is_client_error() || status == 501, "{request:?}: {status}");
    }
    is_unharmed(&proxy, &backend).await;
}

#[tokio::test]
async fn a_length_beside_chunks_does_not_smuggle_a_request() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let smuggled = sized_request(CHAT, &chat_body().to_string());
    let chunks = String::from_utf8(in_chunks([chat_body().to_string().as_bytes()])).expect("text");
    let fields = [("Content-Length", "5"), ("Transfer-Encoding", "chunked")];
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send(request_head("POST", CHAT, &fields) + &chunks + &smuggled).await;
    let (answers, _) = raw.rest().await;
    assert_eq!(String::from_utf8_lossy(&answers).matches("HTTP/1.1 ").count(), 1, "{answers:?}");
    assert!(backend.request_count() <= 1);
}

#[tokio::test]
async fn errors_speak_the_language_of_their_path() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let shapes: [(&str, Shape); 8] = [
        (CHAT, is_openai),
        ("/v1/embeddings", is_openai),
        (RESPONSES, is_openai),
        ("/tokenize", is_openai),
        (MESSAGES, is_anthropic),
        ("/api/chat", is_ollama),
        ("/api/generate", is_ollama),
        ("/api/embed", is_ollama),
    ];
    for (path, has_its_shape) in shapes {
        for (body, status) in [("no JSON", 400), ("{}", 400), (r#"{"model":"nobody-serves-this"}"#, 404)] {
            let reply = whole(proxy.client.post(path, body)).await;
            assert_eq!(reply.status, status, "{path}: {reply:?}");
            has_its_shape(&reply);
            is_own(&reply);
        }
    }
    is_unharmed(&proxy, &backend).await;
}

#[tokio::test]
async fn anthropic_errors_carry_anthropics_types() {
    let (proxy, [_backend]) = proxied("[limits]\nbody = \"1KiB\"\n", ["a"]).await;
    let kind = async |body: String| whole(proxy.client.post(MESSAGES, body)).await.json()["error"]["type"].clone();
    assert_eq!(kind("{}".to_owned()).await, "invalid_request_error");
    assert_eq!(kind(r#"{"model":"nobody-serves-this"}"#.to_owned()).await, "not_found_error");
    assert_eq!(kind(vision_body(&[base64_text(2_000)])).await, "request_too_large");
}

#[tokio::test]
async fn a_backend_that_answers_garbage_is_not_passed_on() {
    let (proxy, [backend]) = proxied("[failover]\neject_after = 1000\n", ["a"]).await;
    for garbage in [
        "\u{1}\u{2}\u{3} no HTTP at all\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon here\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\n{}",
        "SSH-2.0-OpenSSH_9.2p1\r\n",
    ] {
        backend.always(Answer::wire(garbage).close());
        let reply = proxy.client.chat().await.refused(502, "upstream_invalid_response");
        is_openai(&reply);
        is_own(&reply);
        assert!(!reply.text().contains("SSH") && !reply.text().contains("no HTTP"), "{reply:?}");
    }
    backend.heal();
    proxy.client.chat().await.ok();
}

#[tokio::test]
async fn garbage_of_one_backend_is_tried_elsewhere() {
    let (proxy, backends) = proxied("", ["a", "b"]).await;
    once_among(&backends, &Answer::wire("SSH-2.0-OpenSSH_9.2p1\r\n").close());
    proxy.client.chat().await.ok();
}

#[tokio::test]
async fn a_fleet_that_is_gone_says_so_and_not_where_it_was() {
    let (proxy, [backend]) = proxied(RARE_POLLS, ["a"]).await;
    backend.stop().await;
    let first = proxy.client.chat().await;
    assert!(
        matches!(
            (first.status.as_u16(), first.error_code().as_str()),
            (502, "upstream_unreachable") | (503, "no_backend_available")
        ),
        "{first:?}"
    );
    let then = proxy.client.chat().await.refused(503, "no_backend_available");
    for reply in [&first, &then] {
        is_openai(reply);
        is_own(reply);
    }
    is_anthropic(&proxy.client.post_json(MESSAGES, &chat_body()).await);
    is_ollama(&proxy.client.post_json("/api/chat", &chat_body()).await);
}

#[tokio::test]
async fn an_unanswered_request_does_not_say_where_it_went() {
    let (proxy, [backend]) = proxied("[timeouts]\nfirst_byte = \"100ms\"\n", ["a"]).await;
    for (answer, status) in [(Answer::nothing().reset(), 502), (Answer::nothing().stall(), 504)] {
        backend.always(answer);
        let reply = proxy.client.chat().await;
        assert_eq!(reply.status, status, "{reply:?}");
        is_openai(&reply);
        is_own(&reply);
    }
}

#[tokio::test]
async fn an_error_of_the_backend_keeps_its_words() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let error =
        json!({"message": "max_tokens is too large", "type": "BadRequestError", "param": "max_tokens", "code": 400});
    let words = json!({"error": error});
    backend.always(Answer::json(400, words.to_string()));
    let reply = proxy.client.chat().await;
    assert_eq!((reply.status.as_u16(), reply.json()), (400, words));
    assert_ne!(reply.header("x-request-id"), "");
    let told: Value = proxy.backend("a").await;
    assert_eq!(told["failures_total"], 0);
}

#[tokio::test]
async fn a_broken_plugin_is_refused_and_changes_nothing() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let refused = async |name: &str| {
        let plugins = proxy.admin_json("/api/plugins").await;
        let rows = plugins["plugins"].as_array().expect("a list of plugins").clone();
        rows.iter().any(|row| row["name"] == name && row["last_error"].is_string())
    };
    let module = wat::parse_str("(module)").expect("a module");
    for (name, content) in [("round-robin", b"no wasm".to_vec()), ("other", module), ("third", Vec::new())] {
        proxy.write_plugin(name, &content);
        eventually(&format!("{name} is refused and said to be"), async || refused(name).await).await;
        proxy.client.chat().await.ok();
    }
    assert_eq!(backend.request_count(), 3);
}

#[tokio::test]
async fn depth_and_breadth_of_a_document_do_no_harm() {
    let (proxy, [_backend]) = proxied("", ["a"]).await;
    let deep = format!("{{\"x\":{}1{},\"model\":\"{MODEL}\"}}", "[".repeat(200_000), "]".repeat(200_000));
    let status = whole(proxy.client.post(CHAT, deep)).await.status;
    assert!(status == 200 || status == 400, "{status}");
    let keys: String = (0..100_000).map(|number| format!("\"k{number}\":{number},")).collect();
    whole(proxy.client.post(CHAT, format!("{{{keys}\"model\":\"{MODEL}\"}}"))).await.ok();
}
