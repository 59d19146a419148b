//! From whatever the backend calls itself to the name the client asked for.

use serde_json::{Value, json};

use crate::support::*;

const JSON: (&str, &str) = ("content-type", "application/json");
const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream");

/// Answers with `@` where the backend writes its name, quotes and all; in each only that may change.
const DOCUMENTS: [(&str, &str); 8] = [
    (CHAT, r#"{"id":"1","model":@,"choices":[{"message":{"content":"I am \"model\":\"Qwen/x\""}}]}"#),
    (CHAT, " {\r\n \"choices\" : [ { \"model\" : \"inner\" } ] ,\n\t\"model\"\t:\n @ } \n"),
    (CHAT, r#"{"\u006dodel":@,"metadata":{"model":"inner"}}"#),
    ("/v1/embeddings", r#"{"object":"list","data":[{"embedding":[0.1,-2e-3]}],"usage":{"total_tokens":3},"model":@}"#),
    (MESSAGES, r#"{"id":"msg_1","type":"message","content":[{"type":"text","text":"{\"model\":\"x\"}"}],"model":@}"#),
    (RESPONSES, r#"{"id":"resp_1","object":"response","output":[{"model":"inner"}],"model":@,"error":null}"#),
    ("/api/chat", r#"{"model":@,"message":{"role":"assistant","content":"hi"},"done":true}"#),
    ("/v1/rerank", r#"{"results":[{"index":0,"document":{"text":"model"}}],"model":@}"#),
];

/// Streams of server-sent events, likewise.
const STREAMS: [(&str, &str); 5] = [
    (
        CHAT,
        concat!(
            "data: {\"model\":@,\"choices\":[{\"delta\":{\"content\":\"\\\"model\\\":\\\"x\\\"\"}}]}\n\n",
            "data: {\"choices\":[],\"model\":@}\n\ndata: [DONE]\n\n",
        ),
    ),
    (
        CHAT,
        concat!(
            "data: {\"model\":@}\r\n\r\n: ping\r\n\r\n",
            "data:{\"a\":{\"model\":\"inner\"},\"model\":@}\r\n\r\ndata: [DONE]\r\n\r\n",
        ),
    ),
    (
        MESSAGES,
        concat!(
            "event: message_start\ndata: {\"type\":\"message_start\",",
            "\"message\":{\"id\":\"m\",\"content\":[{\"model\":\"inner\"}],\"model\":@,\"usage\":{}}}\n\n",
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",",
            "\"delta\":{\"text\":\"model\",\"model\":\"inner\"}}\n\n",
            "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        ),
    ),
    (
        RESPONSES,
        concat!(
            "event: response.created\ndata: {\"type\":\"response.created\",",
            "\"response\":{\"id\":\"r\",\"model\":@,\"output\":[{\"model\":\"inner\"}]}}\n\n",
            "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",",
            "\"delta\":\"\\\"model\\\"\",\"item\":{\"model\":\"inner\"}}\n\n",
            "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"model\":@}}\n\n",
        ),
    ),
    (
        "/v1/completions",
        "data: {\"id\":\"1\",\"m\\u006fdel\":@,\"choices\":[{\"text\":\"é\u{1F600}\"}]}\n\ndata: [DONE]\n\n",
    ),
];

/// Lines of JSON, as Ollama streams them, likewise.
const LINES: &str = concat!(
    "{\"model\":@,\"message\":{\"content\":\"a\",\"model\":\"inner\"},\"done\":false}\n",
    "{\"done\":false,\"model\":@}\r\n\n{\"model\":@,\"done\":true}\n",
);

fn named(document: &str, name: &str) -> String {
    document.replace('@', &format!("\"{name}\""))
}

async fn ask(proxy: &Proxy, path: &str) -> Reply {
    whole(proxy.client.post(path, stream_body().to_string())).await.ok()
}

#[tokio::test]
async fn only_the_name_of_an_answer_changes() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    for (path, document) in DOCUMENTS {
        for written in [NATIVE, "an alias", "/models/some/path.gguf", "", MODEL] {
            backend.always(Answer::whole(200, &[JSON], named(document, written)));
            assert_eq!(ask(&proxy, path).await.text(), named(document, MODEL), "{path}");
        }
    }
}

#[tokio::test]
async fn only_the_names_of_a_stream_change() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    for (path, stream) in STREAMS {
        for written in [NATIVE, "an alias", ""] {
            backend.always(Answer::chunked(200, &[EVENTS]).chunk(named(stream, written)));
            assert_eq!(ask(&proxy, path).await.text(), named(stream, MODEL), "{path}");
        }
    }
}

#[tokio::test]
async fn only_the_names_of_lines_change() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    backend.always(Answer::chunked(200, &[NDJSON]).chunk(named(LINES, NATIVE)));
    assert_eq!(ask(&proxy, "/api/chat").await.text(), named(LINES, MODEL));
}

/// Sends `written` in two chunks, cut at every byte in turn, then byte by byte: the answer must always be `expected`.
async fn survives_every_cut(head: (&str, &str), path: &str, written: &str, expected: &str) {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let bytes = written.as_bytes();
    let halves = (1..bytes.len()).map(|at| bytes.split_at(at)).map(|(one, two)| vec![one, two]);
    for pieces in halves.chain([bytes.chunks(1).collect()]) {
        backend.always(Answer::chunked(200, &[head]).chunks(pieces.iter().copied()));
        let reply = ask(&proxy, path).await;
        assert_eq!(
            reply.text(),
            expected,
            "cut into {} pieces, the first {:?}",
            pieces.len(),
            String::from_utf8_lossy(pieces[0])
        );
    }
}

#[tokio::test]
async fn an_answer_may_be_cut_at_any_byte() {
    let (path, document) = DOCUMENTS[0];
    survives_every_cut(JSON, path, &named(document, NATIVE), &named(document, MODEL)).await;
}

#[tokio::test]
async fn a_stream_may_be_cut_at_any_byte() {
    let (path, stream) = STREAMS[1];
    survives_every_cut(EVENTS, path, &named(stream, NATIVE), &named(stream, MODEL)).await;
}

#[tokio::test]
async fn a_nested_name_of_a_stream_may_be_cut_at_any_byte() {
    let (path, stream) = STREAMS[2];
    survives_every_cut(EVENTS, path, &named(stream, NATIVE), &named(stream, MODEL)).await;
}

#[tokio::test]
async fn lines_may_be_cut_at_any_byte() {
    survives_every_cut(NDJSON, "/api/chat", &named(LINES, NATIVE), &named(LINES, MODEL)).await;
}

#[tokio::test]
async fn what_is_no_name_is_left_alone() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    for document in [
        r#"{"choices":[]}"#,
        r#"["model","x"]"#,
        r#""model""#,
        "",
        r#"{"error":{"message":"The model `Qwen/x` does not exist","model":"Qwen/x"}}"#,
        "not JSON: {\"model\":\"Qwen/x\"}",
    ] {
        backend.always(Answer::whole(200, &[JSON], document));
        assert_eq!(ask(&proxy, CHAT).await.text(), document);
    }
}

#[tokio::test]
async fn audio_and_plain_text_are_left_alone() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let body = b"{\"model\":\"Qwen/x\"}\x00\xff\xfe";
    for kind in ["audio/mpeg", "text/plain", "application/octet-stream"] {
        backend.always(Answer::whole(200, &[("content-type", kind)], body));
        let reply = ask(&proxy, "/v1/audio/speech").await;
        assert_eq!((reply.body.as_ref(), reply.header("content-type")), (body.as_slice(), kind));
    }
}

#[tokio::test]
async fn a_large_answer_is_translated_like_a_small_one() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let numbers: Vec<f64> = (0..200_000).map(|number| f64::from(number) / 7.0).collect();
    let answer = |name: &str| json!({"data": [{"embedding": numbers}], "model": name, "usage": {"total_tokens": 3}});
    backend.always(Answer::whole(200, &[JSON], answer(NATIVE).to_string()));
    let reply = ask(&proxy, "/v1/embeddings").await;
    assert!(reply.body == answer(MODEL).to_string(), "the answer changed elsewhere");
}

#[tokio::test]
async fn the_name_in_an_error_of_the_backend_is_the_clients_too() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    backend.always(Answer::json(400, format!("{{\"model\":\"{NATIVE}\",\"error\":{{\"code\":400}}}}")));
    let reply = proxy.client.chat().await;
    assert_eq!((reply.status.as_u16(), reply.json()), (400, json!({"model": MODEL, "error": {"code": 400}})));
}

#[tokio::test]
async fn clients_of_two_names_for_one_model_each_read_their_own() {
    let line = format!("models = {{ \"{MODEL}\" = \"{NATIVE}\", \"other\" = \"{NATIVE}\" }}");
    let (proxy, [backend]) = proxied("", [Setup::named("a").unmapped().line(&line)]).await;
    for name in [MODEL, "other", MODEL] {
        let told: Value = proxy.client.chat_with(name).await.ok().json();
        assert_eq!(told["model"], name);
    }
    assert!(backend.requests().iter().all(|request| request.json()["model"] == NATIVE));
}
