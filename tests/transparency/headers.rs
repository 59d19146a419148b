//! Header fields: end-to-end ones pass in both directions, hop-by-hop ones in none, and the proxy adds its own.

use crate::support::*;

/// A chat with these fields, sent raw; what the backend received of it.
async fn received(fields: &[(&str, &str)]) -> Request {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let body = chat_body().to_string();
    let length = body.len().to_string();
    let sized = [fields, &[("Content-Type", "application/json"), ("Content-Length", &length)]].concat();
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send(request_head("POST", CHAT, &sized) + &body).await;
    raw.reply().await.ok();
    backend.request()
}

/// What a client reads where the backend answers a chat with these fields.
async fn answered(top: &str, fields: &[(&str, &str)]) -> Reply {
    let (proxy, [backend]) = proxied(top, ["a"]).await;
    let json = [("content-type", "application/json")];
    backend.always(Answer::whole(200, &[fields, &json].concat(), completion(NATIVE).to_string()));
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send(sized_request(CHAT, &chat_body().to_string())).await;
    raw.reply().await.ok()
}

#[tokio::test]
async fn end_to_end_fields_of_a_request_pass() {
    let passing = [
        ("Accept", "application/json;q=0.9, */*"),
        ("User-Agent", "OpenAI/Python 3.54.0"),
        ("X-Stainless-Retry-Count", "0"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("X-Odd", "  spaced \t inside  "),
        ("X-Empty", ""),
        ("anthropic-version", "2023-06-01"),
    ];
    let request = received(&passing).await;
    for (name, value) in passing {
        assert_eq!(request.header(name), value.trim(), "{name}");
    }
}

#[tokio::test]
async fn repeated_fields_and_bytes_past_ascii_pass() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let body = chat_body().to_string();
    let mut head =
        format!("POST {CHAT} HTTP/1.1\r\nHost: proxy.test\r\nContent-Length: {}\r\n", body.len()).into_bytes();
    head.extend_from_slice(
        b"Content-Type: application/json\r\nX-Twice: one\r\nX-Latin: caf\xe9\r\nX-Twice: two\r\n\r\n",
    );
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send([head.as_slice(), body.as_bytes()].concat()).await;
    raw.reply().await.ok();
    let request = backend.request();
    assert_eq!(request.headers("x-twice"), ["one", "two"]);
    assert_eq!(request.headers("x-latin"), [b"caf\xe9".as_slice()]);
}

#[tokio::test]
async fn hop_by_hop_fields_of_a_request_do_not_pass() {
    let request = received(&[
        ("Connection", "keep-alive, X-Named, Keep-Alive"),
        ("X-Named", "for this hop only"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authorization", "Basic c2VjcmV0"),
        ("TE", "gzip, trailers"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
    ])
    .await;
    for name in ["x-named", "keep-alive", "proxy-connection", "proxy-authorization", "upgrade", "http2-settings"] {
        assert_eq!(request.headers(name).len(), 0, "{name} passed: {request:?}");
    }
    assert!(!request.header("te").contains("gzip"), "{request:?}");
}

#[tokio::test]
async fn fields_that_the_proxy_answers_for_cannot_be_named_away() {
    let request = received(&[("Connection", "close, Host, Content-Length, Content-Type, X-Forwarded-For, Via")]).await;
    assert_eq!(request.json()["model"], NATIVE);
    assert_ne!(request.header("host"), "");
    assert_ne!(request.header("content-type"), "");
}

#[tokio::test]
async fn the_backend_is_called_by_its_own_name_and_told_who_asks() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let mut raw = Raw::connect(proxy.listen).await;
    let forged = [("X-Forwarded-For", "203.0.113.7"), ("X-Forwarded-Host", "evil.test"), ("X-Real-IP", "203.0.113.7")];
    let body = chat_body().to_string();
    let length = body.len().to_string();
    let fields = [&forged[..], &[("Content-Type", "application/json"), ("Content-Length", &length)]].concat();
    raw.send(request_head("POST", CHAT, &fields) + &body).await;
    raw.reply().await.ok();
    let request = backend.request();
    assert_eq!(request.header("host"), backend.address.to_string());
    assert_eq!(request.header("x-forwarded-for"), "127.0.0.1");
    assert_eq!(request.header("x-forwarded-host"), "proxy.test");
    assert_eq!(request.headers("x-real-ip").len(), 0);
    assert!(request.header("via").contains("vision-proxy"), "{request:?}");
}

#[tokio::test]
async fn a_backends_own_key_takes_the_place_of_the_clients() {
    let folder = Folder::new();
    let key = folder.write("key", "sk-of-backend-a\n");
    let line = format!("api_key = {{ file = \"{}\" }}", key.display());
    let (proxy, [backend]) = proxied("", [Setup::named("a").line(&line)]).await;
    let request = proxy.client.post(CHAT, chat_body().to_string()).header("authorization", "Bearer sk-of-client");
    whole(request).await.ok();
    assert_eq!(backend.request().headers("authorization"), ["Bearer sk-of-backend-a"]);
    assert!(!String::from_utf8_lossy(&backend.request().head).contains("sk-of-client"));
}

#[tokio::test]
async fn end_to_end_fields_of_an_answer_pass() {
    let reply = answered(
        "",
        &[("openai-processing-ms", "12"), ("set-cookie", "a=1"), ("set-cookie", "b=2"), ("x-odd", "\"q\"")],
    )
    .await;
    assert_eq!((reply.header("openai-processing-ms"), reply.header("x-odd")), ("12", "\"q\""));
    assert_eq!(reply.headers.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
}

#[tokio::test]
async fn hop_by_hop_fields_of_an_answer_do_not_pass() {
    let reply = answered(
        "",
        &[
            ("connection", "keep-alive, x-named"),
            ("x-named", "for this hop only"),
            ("keep-alive", "timeout=5, max=100"),
            ("proxy-authenticate", "Basic"),
            ("upgrade", "h2c"),
        ],
    )
    .await;
    for name in ["x-named", "keep-alive", "proxy-authenticate", "upgrade"] {
        assert!(!reply.headers.contains_key(name), "{name} passed: {reply:?}");
    }
    let lengths = reply.headers.get_all("content-length").iter().count()
        + reply.headers.get_all("transfer-encoding").iter().count();
    assert_eq!(lengths, 1, "one framing: {reply:?}");
}

#[tokio::test]
async fn an_answer_says_who_gave_it() {
    let reply = answered("", &[]).await;
    assert_eq!((reply.backend(), reply.header("x-vision-proxy-model"), reply.attempts()), ("a", NATIVE, 1));
    assert_ne!(reply.header("x-request-id"), "");
}

#[tokio::test]
async fn a_backend_cannot_speak_in_the_proxys_name() {
    let reply = answered("", &[("x-vision-proxy-backend", "forged"), ("x-vision-proxy-attempts", "9")]).await;
    assert_eq!((reply.backend(), reply.attempts()), ("a", 1));
}

#[tokio::test]
async fn without_reveal_an_answer_does_not_say_who_gave_it() {
    let reply = answered("reveal = false\n", &[("x-vision-proxy-backend", "forged")]).await;
    let told: Vec<_> = reply.headers.keys().filter(|name| name.as_str().starts_with("x-vision-proxy-")).collect();
    assert!(told.is_empty(), "{told:?}");
    assert_ne!(reply.header("x-request-id"), "");
}

#[tokio::test]
async fn the_clients_request_id_is_kept_where_it_is_harmless() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let ask =
        async |id: &str| whole(proxy.client.post(CHAT, chat_body().to_string()).header("x-request-id", id)).await.ok();
    assert_eq!(ask("mine-1.2_3").await.header("x-request-id"), "mine-1.2_3");
    assert_eq!(backend.request().header("x-request-id"), "mine-1.2_3");
    for harmful in ["with space", "quote\"", "brace{}", &"long".repeat(60)] {
        let given = ask(harmful).await.header("x-request-id").to_owned();
        assert!(!given.is_empty() && given != harmful, "{given:?}");
    }
}

#[tokio::test]
async fn request_ids_differ() {
    let (proxy, [_backend]) = proxied("", ["a"]).await;
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..20 {
        ids.insert(proxy.client.chat().await.ok().header("x-request-id").to_owned());
    }
    assert_eq!(ids.len(), 20);
}
