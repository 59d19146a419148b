//! What backends are told of clients, by whom they may be told, and requests that go in circles.

use crate::support::*;

/// What a backend receives of a chat with these fields.
async fn received(top: &str, fields: &[(&str, &str)]) -> Request {
    let (proxy, [backend]) = proxied(top, ["a"]).await;
    let body = chat_body().to_string();
    let length = body.len().to_string();
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send(request_head("POST", CHAT, &[fields, &[("Content-Length", &length)]].concat()) + &body).await;
    raw.reply().await.ok();
    backend.request()
}

const SAID: [(&str, &str); 6] = [
    ("X-Forwarded-For", "203.0.113.7"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "public.test"),
    ("X-Forwarded-Port", "443"),
    ("Forwarded", "for=203.0.113.7"),
    ("X-Real-IP", "203.0.113.7"),
];

#[tokio::test]
async fn nobody_is_believed_by_default() {
    let request = received("", &SAID).await;
    let told = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"].map(|name| request.header(name));
    assert_eq!(told, ["127.0.0.1", "http", "proxy.test"]);
    assert!(!String::from_utf8_lossy(&request.head).contains("203.0.113.7"), "{request:?}");
    assert_eq!(request.headers("x-forwarded-port").len(), 0);
}

#[tokio::test]
async fn a_trusted_proxy_is_believed_and_added() {
    let request = received("trusted_proxies = [\"127.0.0.0/8\"]\n", &SAID).await;
    assert_eq!(request.headers("x-forwarded-for"), ["203.0.113.7", "127.0.0.1"]);
    assert_eq!(request.headers("forwarded"), ["for=203.0.113.7", "for=127.0.0.1"]);
    let told =
        ["x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-real-ip"].map(|name| request.header(name));
    assert_eq!(told, ["https", "public.test", "443", "203.0.113.7"]);
}

#[tokio::test]
async fn a_trusted_proxy_that_says_nothing_is_told_of_itself() {
    let request = received("trusted_proxies = [\"127.0.0.1\"]\n", &[]).await;
    let told = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"].map(|name| request.header(name));
    assert_eq!(told, ["127.0.0.1", "http", "proxy.test"]);
    assert_eq!(request.headers("forwarded").len(), 0);
}

#[tokio::test]
async fn others_than_the_trusted_are_not_believed() {
    let request = received("trusted_proxies = [\"10.0.0.0/8\"]\n", &SAID).await;
    assert_eq!(request.headers("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(request.headers("forwarded").len(), 0);
}

#[tokio::test]
async fn the_host_of_http_2_is_told_too() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    Client::h2c(proxy.listen).chat().await.ok();
    let request = backend.request();
    assert_eq!(request.header("x-forwarded-host"), proxy.listen.to_string());
    assert!(request.header("via").starts_with("2.0 vision-proxy"), "{request:?}");
}

#[tokio::test]
async fn one_proxy_may_stand_behind_another() {
    let (inner, [backend]) = proxied("", ["a"]).await;
    let entry = format!(
        "[[backends]]\nurl = \"http://{}\"\nslots = 8\nmodels = {{ \"{MODEL}\" = \"{MODEL}\" }}\n",
        inner.listen
    );
    let outer = Proxy::start(&entry).await;
    outer.client.chat().await.ok();
    let ways: Vec<_> = backend.request().headers("via");
    assert_eq!(ways.len(), 2, "{ways:?}");
    assert_ne!(ways[0], ways[1], "the two cannot be told apart");
}

#[tokio::test]
async fn a_request_that_goes_in_a_circle_is_stopped() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    proxy.client.chat().await.ok();
    let way = backend.request().header("via");
    let again = async |via: &str| whole(proxy.client.post(CHAT, chat_body().to_string()).header("via", via)).await;
    again(&way).await.ok();
    again(&format!("1.1 other, {way}, 1.1 another, {way}")).await.refused(508, "loop_detected");
    // A proxy that has just been started has a name of its own.
    again("1.1 vision-proxy, 1.1 vision-proxy").await.ok();
    assert_eq!(backend.request_count(), 3);
}
