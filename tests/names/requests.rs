//! From the client's name to the backend's, in JSON however it is written.

use crate::support::*;

/// Documents with `@` where the name stands, quotes and all: valid JSON that a careless scanner misreads.
const DOCUMENTS: [&str; 16] = [
    r#"{"model":@}"#,
    r#"{"model":@,"messages":[{"role":"user","content":"hello"}]}"#,
    "\r\n\t {\t\"model\"\n:\r\n  @ , \"n\" : 1 }\n ",
    r#"{"messages":[],"temperature":1.0e-2,"n":-0,"stream":false,"stop":null,"model":@}"#,
    r#"{"metadata":{"model":"inner"},"model":@}"#,
    r#"{"a":[{"model":"inner"},[{"model":"deeper"}]],"model":@,"b":{"c":{"model":"after"}}}"#,
    r#"{"messages":[{"content":"say \"model\":\"other\" and {\"model\": \"x\"}"}],"model":@}"#,
    r#"{"messages":[{"content":"ends in a backslash \\"}],"model":@,"s":"\\\\\""}"#,
    r#"{"xmodel":"no","model ":"no"," model":"no","Model":"no","models":"no","model":@}"#,
    r#"{"content":"model","role":"model","model":@}"#,
    r#"{"x":"}],{\"[","y":[[[]],{}],"model":@}"#,
    r#"{"\u006dodel":@,"messages":[]}"#,
    r#"{"mod\u0065\u006C":@}"#,
    "{\"é\u{1F600}\":\"\u{2028}\",\"model\":@,\"z\":\"\u{FFFD}\"}",
    r#"{"model":@,"tools":[{"function":{"parameters":{"properties":{"model":{"type":"string"}}}}}]}"#,
    r#"{"prompt_cache_key":"k","user":"u","model":@,"stream_options":{"include_usage":true}}"#,
];

/// Ways of writing the public name as JSON.
const SPELLINGS: [&str; 4] =
    [r#""qwen-vl""#, r#""\u0071wen-vl""#, r#""qwen\u002Dvl""#, r#""\u0071\u0077\u0065\u006e\u002d\u0076\u006c""#];

fn native_literal() -> String {
    format!("\"{NATIVE}\"")
}

#[tokio::test]
async fn only_the_name_of_a_document_changes() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    for document in DOCUMENTS {
        whole(proxy.client.post(CHAT, document.replace('@', SPELLINGS[0]))).await.ok();
        let request = backend.requests().pop().expect("a request");
        assert_eq!(request.text(), document.replace('@', &native_literal()));
    }
}

#[tokio::test]
async fn a_name_is_understood_however_it_is_spelled() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    for spelling in SPELLINGS {
        let reply = whole(proxy.client.post(CHAT, DOCUMENTS[1].replace('@', spelling))).await.ok();
        assert_eq!(reply.json()["model"], MODEL, "{spelling}");
        let request = backend.requests().pop().expect("a request");
        assert_eq!(request.text(), DOCUMENTS[1].replace('@', &native_literal()), "{spelling}");
    }
}

#[tokio::test]
async fn names_past_ascii_are_understood_in_either_spelling() {
    let backend =
        Setup::named("a").unmapped().line("models = { \"modèle-\u{1F600}\" = \"natif/\u{e9}\" }").start().await;
    let proxy = Proxy::start(&config("", [&backend])).await;
    for spelling in ["\"modèle-\u{1F600}\"", r#""mod\u00e8le-\uD83D\uDE00""#] {
        let reply = whole(proxy.client.post(CHAT, format!("{{\"model\":{spelling}}}"))).await.ok();
        assert_eq!(reply.json()["model"], "modèle-\u{1F600}");
        assert_eq!(backend.requests().pop().expect("a request").json()["model"], "natif/é");
    }
}

#[tokio::test]
async fn a_document_may_be_cut_at_any_byte() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let mut raw = Raw::connect(proxy.listen).await;
    for (document, spelling) in
        [(DOCUMENTS[6], SPELLINGS[0]), (DOCUMENTS[11], SPELLINGS[3]), (DOCUMENTS[13], SPELLINGS[2])]
    {
        let (sent, expected) = (document.replace('@', spelling), document.replace('@', &native_literal()));
        let cuts = (1..sent.len()).map(|at| sent.as_bytes().split_at(at)).map(|(head, tail)| in_chunks([head, tail]));
        let bytewise = in_chunks(sent.as_bytes().chunks(1));
        for body in cuts.chain([bytewise]) {
            raw.send(chunked_head(CHAT)).await;
            raw.send(&body).await;
            raw.reply().await.ok();
            let request = backend.requests().pop().expect("a request");
            assert_eq!(request.text(), expected, "cut as {}", String::from_utf8_lossy(&body));
        }
    }
}

#[tokio::test]
async fn a_second_name_is_refused() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    for twice in [
        r#"{"model":"qwen-vl","model":"qwen-vl"}"#,
        r#"{"model":"qwen-vl","messages":[],"model":"other"}"#,
        r#"{"model":"qwen-vl","\u006dodel":"other"}"#,
        r#"{"mode\u006c":"other","x":{},"model":"qwen-vl"}"#,
    ] {
        whole(proxy.client.post(CHAT, twice)).await.refused(400, "duplicate_model");
    }
    assert_eq!(backend.request_count(), 0);
}

#[tokio::test]
async fn each_backend_is_asked_by_its_own_name() {
    let mut backends = Vec::new();
    for (name, native) in [("a", "Qwen/one"), ("b", "qwen:two")] {
        backends.push(Setup::named(name).native(native).unmapped().start().await);
    }
    let top = "[models]\n\"qwen-vl\" = [\"Qwen/one\", \"qwen:two\"]\n";
    let proxy = Proxy::start(&config(top, &backends)).await;
    for _ in 0..4 {
        let reply = proxy.client.chat().await.ok();
        let native = if reply.backend() == "a" { "Qwen/one" } else { "qwen:two" };
        assert_eq!((reply.json()["model"].as_str(), reply.header("x-vision-proxy-model")), (Some(MODEL), native));
    }
    for (backend, native) in backends.iter().zip(["Qwen/one", "qwen:two"]) {
        let names: Vec<_> = backend.requests().iter().map(|request| request.json()["model"].clone()).collect();
        assert_eq!(names, [native, native]);
    }
}

#[tokio::test]
async fn the_best_name_that_a_backend_has_is_used_and_its_own_mapping_wins() {
    let listed = Setup::named("listed").native("second").unmapped().start().await;
    let mapped = Setup::named("mapped").native("its-own").start().await;
    let top = "[models]\n\"qwen-vl\" = [\"first\", \"second\", \"its-own-second\"]\n";
    let proxy = Proxy::start(&config(top, [&listed, &mapped])).await;
    for _ in 0..2 {
        proxy.client.chat().await.ok();
    }
    assert_eq!(listed.request().json()["model"], "second");
    assert_eq!(mapped.request().json()["model"], "its-own");
}

#[tokio::test]
async fn a_model_that_nobody_mapped_is_served_under_its_own_name() {
    let (proxy, [backend]) = proxied("", [Setup::named("a").native("org/new-model").unmapped()]).await;
    let reply = proxy.client.chat_with("org/new-model").await.ok();
    assert_eq!(reply.json()["model"], "org/new-model");
    assert_eq!(backend.request().json()["model"], "org/new-model");
}
