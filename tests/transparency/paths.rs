//! Every path of the contract, every method that is none, query strings and bytes.

use crate::support::*;

const JSON_PATHS: [&str; 14] = [
    CHAT,
    "/v1/completions",
    "/v1/embeddings",
    RESPONSES,
    MESSAGES,
    "/v1/rerank",
    "/v1/score",
    "/v1/images/generations",
    "/v1/audio/speech",
    "/tokenize",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
];

const MULTIPART_PATHS: [&str; 4] =
    ["/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits", "/v1/images/variations"];

/// Odd but valid: what a parser would tidy up.
const ODD_ANSWER: &str = "{ \"a\" : [1.0e+02,-0,1E400] ,\r\n\t\"a\":\"\\u00e9\\/\u{1F600}\" , \"b\":{}}\n\n";

#[tokio::test]
async fn every_json_path_reaches_the_backend_and_its_answer_the_client() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    backend.always(Answer::whole(200, &[("content-type", "application/json")], ODD_ANSWER));
    for path in JSON_PATHS {
        let body = format!("{{\"model\":\"{MODEL}\",\"for\":\"{path}\"}}");
        let reply = whole(proxy.client.post(path, body.clone())).await.ok();
        assert_eq!(reply.text(), ODD_ANSWER, "{path}");
        let request = backend.requests().pop().expect("a request");
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", path));
        assert_eq!(request.text(), as_native(&body), "{path}");
    }
    assert_eq!(backend.request_count(), JSON_PATHS.len());
}

#[tokio::test]
async fn every_multipart_path_reaches_the_backend_and_its_answer_the_client() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    backend.always(Answer::whole(200, &[("content-type", "application/json")], r#"{"text":"said"}"#));
    for path in MULTIPART_PATHS {
        let form = reqwest::multipart::Form::new().text("model", MODEL).text("for", path);
        let reply = whole(proxy.client.request("POST", path).multipart(form)).await.ok();
        assert_eq!(reply.text(), r#"{"text":"said"}"#, "{path}");
        let request = backend.requests().pop().expect("a request");
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", path));
        assert!(request.text().contains(NATIVE) && request.text().contains(path), "{request:?}");
    }
}

#[tokio::test]
async fn the_query_string_is_passed_as_it_stands() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let target = format!("{CHAT}?beta=true&empty=&x=%20a%2Fb&again=1&again=2&model=other");
    whole(proxy.client.post(&target, chat_body().to_string())).await.ok();
    assert_eq!(backend.request().target, target);
}

#[tokio::test]
async fn a_base_path_of_the_backend_stands_before_the_path() {
    let (proxy, [backend]) = proxied("", [Setup::named("a").base("/some/base")]).await;
    proxy.client.chat().await.ok();
    assert_eq!(backend.request().target, format!("/some/base{CHAT}"));
}

#[tokio::test]
async fn a_base_url_as_openai_clients_write_it_is_understood() {
    let (proxy, [backend]) = proxied("", [Setup::named("a").base("/v1")]).await;
    proxy.client.chat().await.ok();
    assert_eq!(backend.request().target, CHAT);
}

#[tokio::test]
async fn an_unknown_path_is_refused_and_reaches_no_backend() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    for path in ["/v1/", "/v1/nothing", "/no/such/path", "/v2/chat/completions", "/v1/chat/completions/more"] {
        whole(proxy.client.post(path, chat_body().to_string())).await.refused(404, "unknown_path");
        proxy.client.get(path).await.refused(404, "unknown_path");
        assert!(!backend.polled().contains(&path.to_owned()), "{path}");
    }
    assert_eq!(backend.request_count(), 0);
}

#[tokio::test]
async fn a_path_that_would_be_read_differently_behind_the_proxy_is_refused() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    for path in [
        "/v1/../v1/chat/completions",
        "/v1/%2e%2e/v1/chat/completions",
        "//v1/chat/completions",
        "/v1\\chat/completions",
    ] {
        let mut raw = Raw::connect(proxy.listen).await;
        raw.send(sized_request(path, &chat_body().to_string())).await;
        let reply = raw.reply().await;
        assert!(reply.status.is_client_error(), "{path}: {reply:?}");
    }
    assert_eq!(backend.request_count(), 0);
}

#[tokio::test]
async fn a_method_that_the_path_does_not_take_is_refused_and_reaches_no_backend() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    for method in ["GET", "PUT", "DELETE", "PATCH", "BREW"] {
        let reply = whole(proxy.client.request(method, CHAT).body(chat_body().to_string())).await;
        reply.refused(405, "method_not_allowed");
    }
    for (method, target) in [("TRACE", CHAT), ("CONNECT", "example.org:443")] {
        let mut raw = Raw::connect(proxy.listen).await;
        raw.send(request_head(method, target, &[])).await;
        let status = raw.head().await.status;
        assert!(status.is_client_error() || status == 501, "{method}: {status}");
    }
    assert_eq!(backend.request_count(), 0);
}

#[tokio::test]
async fn head_has_no_body_and_leaves_the_connection_in_step() {
    let (proxy, [_backend]) = proxied("", ["a"]).await;
    let mut raw = Raw::connect(proxy.listen).await;
    for (path, status) in [("/v1/models", 200), (CHAT, 405), ("/no/such/path", 404)] {
        raw.send(request_head("HEAD", path, &[])).await;
        assert_eq!(raw.head().await.status, status, "{path}");
    }
    raw.send(sized_request(CHAT, &chat_body().to_string())).await;
    assert_eq!(raw.reply().await.ok().json()["model"], MODEL);
}

#[tokio::test]
async fn statuses_of_the_backend_are_passed_on() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    for status in [200, 201, 202, 400, 404, 409, 413, 415, 422, 451, 499] {
        backend.always(Answer::json(status, format!("{{\"told\":{status}}}")));
        let reply = proxy.client.chat().await;
        assert_eq!((reply.status.as_u16(), reply.text()), (status, format!("{{\"told\":{status}}}").as_str()));
    }
    backend.always(Answer::wire("HTTP/1.1 204 No Content\r\nx-empty: yes\r\n\r\n"));
    let reply = proxy.client.chat().await;
    assert_eq!((reply.status.as_u16(), reply.header("x-empty"), reply.body.len()), (204, "yes", 0));
}

#[tokio::test]
async fn a_compressed_answer_is_passed_untouched() {
    // `{"model":"x"}` in one stored block: who looked for names in it would find one.
    let zipped = [
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x01\x0d\x00\xf2\xff".as_slice(),
        b"{\"model\":\"x\"}",
        b"\x00\x0d\x57\xb0\x0d\x00\x00\x00",
    ]
    .concat();
    let (proxy, [backend]) = proxied("", ["a"]).await;
    backend.always(Answer::whole(200, &[("content-type", "application/json"), ("content-encoding", "gzip")], &zipped));
    let request = proxy.client.post(CHAT, chat_body().to_string()).header("accept-encoding", "gzip");
    let reply = whole(request).await.ok();
    assert_eq!(reply.header("content-encoding"), "gzip");
    assert_eq!(reply.body, zipped);
}
