//! Who may ask, for how much, and with whose key it goes on.

use serde_json::json;

use crate::support::*;

const KEY: &str = "sk-vp-of-team-a";
const OTHER_KEY: &str = "sk-vp-of-team-b";

/// A `[[keys]]` table with these further lines.
fn key(name: &str, key: &str, lines: &str) -> String {
    use sha2::Digest;
    let hash: String = sha2::Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("[[keys]]\nname = \"{name}\"\nsha256 = \"{hash}\"\n{lines}\n")
}

fn keyed(client: &Client, path: &str, body: String, key: &str) -> reqwest::RequestBuilder {
    client.post(path, body).header("authorization", format!("Bearer {key}"))
}

async fn chat(client: &Client, key: &str) -> Reply {
    whole(keyed(client, CHAT, chat_body().to_string(), key)).await
}

fn refusals(metrics: &Metrics, key: &str, reason: &str) -> Option<f64> {
    metrics.value("vision_proxy_key_refusals_total", &[("key", key), ("reason", reason)])
}

/// The time to wait, told to every SDK.
fn wait_ms(refused: &Reply) -> u64 {
    let ms: u64 = refused.header("retry-after-ms").parse().unwrap_or_else(|_| panic!("no time to wait: {refused:?}"));
    assert_eq!(refused.header("retry-after"), ms.div_ceil(1000).clamp(1, 60).to_string(), "{refused:?}");
    ms
}

#[tokio::test]
async fn who_brings_no_key_learns_nothing() {
    let (proxy, [backend]) = proxied(&key("a", KEY, ""), ["a"]).await;
    let client = &proxy.client;
    for (name, value) in
        [("x-nothing", "1"), ("authorization", "Bearer sk-vp-of-team-x"), ("authorization", KEY), ("x-api-key", "")]
    {
        for path in [CHAT, RESPONSES, "/v1/nothing"] {
            let reply = whole(client.post(path, chat_body().to_string()).header(name, value)).await;
            let reply = reply.refused(401, "invalid_api_key");
            assert_eq!(reply.header("www-authenticate"), "Bearer", "{reply:?}");
            assert_eq!(reply.header("x-should-retry"), "false", "{reply:?}");
        }
        whole(client.request("GET", "/v1/models").header(name, value)).await.refused(401, "invalid_api_key");
    }
    let anthropic = whole(client.post(MESSAGES, chat_body().to_string())).await;
    assert_eq!((anthropic.status.as_u16(), &anthropic.json()["error"]["type"]), (401, &json!("authentication_error")));
    let ollama = whole(client.post("/api/chat", chat_body().to_string())).await;
    assert_eq!(ollama.status, 401);
    assert!(ollama.json()["error"].is_string(), "{ollama:?}");
    for path in ["/", "/health"] {
        client.get(path).await.ok();
    }
    assert_eq!(backend.request_count(), 0);
    assert_eq!(refusals(&proxy.metrics().await, "", "invalid"), Some(18.0));
}

#[tokio::test]
async fn a_key_opens_wherever_clients_put_it_and_ends_at_the_proxy() {
    let (proxy, [backend]) = proxied(&key("a", KEY, ""), ["a"]).await;
    for (name, value) in
        [("authorization", format!("Bearer {KEY}")), ("x-api-key", KEY.into()), ("api-key", KEY.into())]
    {
        let request = proxy.client.post(CHAT, chat_body().to_string()).header(name, &value);
        whole(request.header("cookie", format!("key={KEY}")).header("x-other", "stays")).await.ok();
        whole(proxy.client.request("GET", "/v1/models").header(name, &value)).await.ok();
    }
    assert_eq!(backend.request_count(), 3);
    for request in backend.requests() {
        assert!(!String::from_utf8_lossy(&request.head).contains(KEY), "{request:?}");
        assert_eq!(request.headers("cookie").len() + request.headers("authorization").len(), 0);
        assert_eq!(request.header("x-other"), "stays");
    }
}

#[tokio::test]
async fn a_stranger_is_refused_before_a_byte_of_its_body() {
    let (proxy, [_backend]) = proxied(&key("a", KEY, ""), ["a"]).await;
    let fields = [("Content-Length", "30000000"), ("Expect", "100-continue"), ("Content-Type", "application/json")];
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send(request_head("POST", CHAT, &fields)).await;
    // `Raw` passes interim answers over, so this reads what came first of all.
    let first = raw.read_until("\r\n").await;
    assert_eq!(first, "HTTP/1.1 401 Unauthorized\r\n");
}

#[tokio::test]
async fn keys_come_and_go_without_a_restart_but_the_last_one_stays() {
    let (proxy, [backend]) = proxied(&key("a", KEY, "requests_per_minute = 2"), ["a"]).await;
    chat(&proxy.client, KEY).await.ok();
    chat(&proxy.client, OTHER_KEY).await.refused(401, "invalid_api_key");
    let both = key("a", KEY, "requests_per_minute = 2") + &key("b", OTHER_KEY, "");
    proxy.write_config(&config(&both, [&backend]));
    eventually("the new key is known", async || chat(&proxy.client, OTHER_KEY).await.status == 200).await;
    chat(&proxy.client, KEY).await.ok();
    chat(&proxy.client, KEY).await.refused(429, "rate_limit_exceeded");
    proxy.write_config(&config(&key("b", OTHER_KEY, ""), [&backend]));
    eventually("the old key is revoked", async || chat(&proxy.client, KEY).await.status == 401).await;
    proxy.write_config(&config("", [&backend]));
    let is_refused = async || proxy.admin_json("/api/config").await["state"] == "refused";
    eventually("what would open the proxy to all is refused", is_refused).await;
    chat(&proxy.client, KEY).await.refused(401, "invalid_api_key");
}

#[tokio::test]
async fn limits_hold_over_all_workers() {
    let top = format!("workers = 4\n{}{}", key("a", KEY, "requests_per_minute = 10"), key("b", OTHER_KEY, ""));
    let (proxy, [backend]) = proxied(&top, ["a"]).await;
    let clients: Vec<_> = (0..8).map(|_| proxy.another_client()).collect();
    let replies = in_parallel(40, move |number| {
        let client = clients[number % 8].clone();
        async move { chat(&client, KEY).await }
    })
    .await;
    let served = replies.iter().filter(|reply| reply.status == 200).count();
    // One more flows in every six seconds, and the machine may be slow.
    assert!((10..=15).contains(&served), "{served}");
    for refused in replies.into_iter().filter(|reply| reply.status != 200) {
        let refused = refused.refused(429, "rate_limit_exceeded");
        assert!((1..=7_500).contains(&wait_ms(&refused)), "{refused:?}");
        assert_eq!(refused.header("x-should-retry"), "", "SDKs shall come again: {refused:?}");
    }
    chat(&proxy.client, OTHER_KEY).await.ok();
    assert_eq!(backend.request_count(), served + 1);
    assert_eq!(refusals(&proxy.metrics().await, "a", "requests"), Some((40 - served) as f64));
}

#[tokio::test]
async fn so_many_at_once_until_the_last_byte_or_the_client_has_gone() {
    let top = key("a", KEY, "concurrency = 2") + &key("b", OTHER_KEY, "");
    let (proxy, [backend]) = proxied(&top, ["a"]).await;
    let gate = Gate::closed();
    backend.always(stream_held_at(&gate));
    let begin = || Pending::of(keyed(&proxy.client, CHAT, stream_body().to_string(), KEY));
    let (stays, leaves) = (begin(), begin());
    gate.reached_by(2).await;
    let refused = chat(&proxy.client, KEY).await.refused(429, "rate_limit_exceeded");
    assert!((1_000..=1_250).contains(&wait_ms(&refused)), "{refused:?}");
    assert_eq!(refusals(&proxy.metrics().await, "a", "concurrency"), Some(1.0));
    leaves.leave().await;
    let again = async || {
        let events = keyed(&proxy.client, CHAT, stream_body().to_string(), KEY).send().await.expect("an answer");
        events.status() == 200
    };
    eventually("who left gave its place back", again).await;
    gate.open();
    stays.reply().await.ok();
    backend.heal();
    let free = async || chat(&proxy.client, KEY).await.status == 200;
    eventually("the ended ones gave theirs back", free).await;
}

#[tokio::test]
async fn bodies_are_counted_whether_announced_or_not() {
    let top = key("a", KEY, "bytes_per_minute = \"100KiB\"") + &key("b", OTHER_KEY, "bytes_per_minute = \"100KiB\"");
    let (proxy, [_backend]) = proxied(&top, ["a"]).await;
    let picture = vision_body(&[base64_text(120 * 1024)]);
    whole(keyed(&proxy.client, CHAT, picture.clone(), KEY)).await.ok();
    let refused = chat(&proxy.client, KEY).await.refused(429, "rate_limit_exceeded");
    assert!((1..=20_000).contains(&wait_ms(&refused)), "{refused:?}");
    let mut raw = Raw::connect(proxy.listen).await;
    let fields = [
        ("Content-Type", "application/json"),
        ("Transfer-Encoding", "chunked"),
        ("Authorization", &format!("Bearer {OTHER_KEY}")),
    ];
    raw.send(request_head("POST", CHAT, &fields)).await;
    raw.send(in_chunks(picture.as_bytes().chunks(10_000))).await;
    raw.reply().await.ok();
    chat(&proxy.client, OTHER_KEY).await.refused(429, "rate_limit_exceeded");
}

#[tokio::test]
async fn a_body_that_never_came_costs_its_key_nothing() {
    let top = format!("{}[limits]\nbody = \"1MiB\"\n", key("a", KEY, "bytes_per_minute = \"10MiB\""));
    let (proxy, [backend]) = proxied(&top, ["a"]).await;
    let announcing = async |bytes: u64| {
        let mut raw = Raw::connect(proxy.listen).await;
        let (length, key) = (bytes.to_string(), format!("Bearer {KEY}"));
        raw.send(request_head("POST", CHAT, &[("Content-Length", &length), ("Authorization", &key)])).await;
        raw
    };
    for too_large in [1_048_577, 99_999_999_999, i64::MAX as u64] {
        announcing(too_large).await.reply().await.refused(413, "request_too_large");
        chat(&proxy.client, KEY).await.ok();
    }
    // Ten times what a minute allows, and far from all of it was sent.
    for _ in 0..100 {
        let mut raw = announcing(1 << 20).await;
        raw.send("{\"messages\": [").await;
        raw.leave();
        // While it is not known to be gone, what it announced is held against the key.
        eventually("the next one is let in", async || chat(&proxy.client, KEY).await.status == 200).await;
    }
    assert!(backend.request_count() >= 103);
}

#[tokio::test]
async fn a_backend_that_refuses_the_proxys_own_key_is_passed_over_and_not_quoted() {
    let folder = Folder::new();
    let own = folder.write("key", "sk-own-canary");
    let setup = |name| Setup::named(name).line(&format!("api_key = {{ file = \"{}\" }}", own.display()));
    let (proxy, [a, b]) = proxied(&key("a", KEY, ""), [setup("a"), setup("b")]).await;
    let refusal = || Answer::json(401, r#"{"error":{"message":"Incorrect API key provided: sk-own-canary"}}"#);
    a.always(refusal());
    for _ in 0..4 {
        assert_eq!(chat(&proxy.client, KEY).await.ok().backend(), "b");
    }
    assert!(a.request_count() > 0, "it was asked");
    b.always(Answer::json(403, "no, sk-own-canary"));
    let reply = chat(&proxy.client, KEY).await.refused(502, "upstream_unauthorized");
    assert!(!reply.text().contains("canary"), "{reply:?}");
    let told = proxy.backend("a").await;
    assert_eq!(told["last_error"], "it refused the api_key configured for it (401 Unauthorized)", "{told}");
    assert!(!proxy.output().contains("canary"));
}

#[tokio::test]
async fn a_clients_own_key_that_was_passed_on_is_refused_to_the_client() {
    let (proxy, [a, b]) = proxied("", ["a", "b"]).await;
    for backend in [&a, &b] {
        backend.always(Answer::json(401, r#"{"error":{"code":"theirs"}}"#));
    }
    chat(&proxy.client, "sk-of-client").await.refused(401, "theirs");
    assert_eq!(a.request_count() + b.request_count(), 1);
    let told = [proxy.backend("a").await, proxy.backend("b").await];
    assert!(told.iter().all(|backend| backend["failures_total"] == 0), "{told:?}");
}

#[tokio::test]
async fn no_way_of_a_clients_own_to_prove_itself_goes_to_a_backend_with_a_key() {
    let folder = Folder::new();
    let own = folder.write("key", "sk-own");
    let line = format!("api_key = {{ file = \"{}\" }}", own.display());
    let (proxy, [with_key, without]) = proxied("", [Setup::named("a").line(&line), Setup::named("b")]).await;
    for _ in 0..4 {
        let request = proxy.client.post(CHAT, chat_body().to_string()).header("x-api-key", "x").header("api-key", "y");
        whole(request).await.ok();
    }
    for request in with_key.requests() {
        assert_eq!(request.header("authorization"), "Bearer sk-own");
        assert_eq!(request.headers("x-api-key").len() + request.headers("api-key").len(), 0, "{request:?}");
    }
    for request in without.requests() {
        assert_eq!((request.header("x-api-key"), request.header("api-key")), ("x".into(), "y".into()));
        assert_eq!(request.headers("authorization").len(), 0);
    }
    assert!(with_key.request_count() > 0 && without.request_count() > 0);
}

#[tokio::test]
async fn a_made_key_opens_and_the_table_printed_with_it_is_right() {
    let made = vision_proxy(&["key", "new", "team-a"], &Folder::new()).await;
    assert_eq!(made.code, 0, "{made:?}");
    let key = made.stdout.lines().find(|line| line.starts_with("sk-vp-")).expect("a key").to_owned();
    let table = made.stdout.split_once("[[keys]]").expect("a table").1;
    assert!(key.len() > 40 && !table.contains(&key), "{made:?}");
    let (proxy, [_backend]) = proxied(&format!("[[keys]]{table}"), ["a"]).await;
    chat(&proxy.client, &key).await.ok();
    chat(&proxy.client, KEY).await.refused(401, "invalid_api_key");
    let shown = proxy.admin_json("/api/config").await;
    assert_eq!(shown["config"]["keys"][0]["name"], "team-a");
    let another = vision_proxy(&["key", "new", "team-a"], &Folder::new()).await;
    assert!(!another.stdout.contains(&key), "the same key twice");
}

#[tokio::test]
async fn changes_through_the_admin_listener_need_its_token() {
    let folder = Folder::new();
    let token = folder.write("token", "t0ken");
    let (proxy, [_backend]) = proxied(&format!("admin_token = {{ file = \"{}\" }}\n", token.display()), ["a"]).await;
    for wrong in ["", "Bearer", "Bearer t0ke", "t0ken"] {
        let reply = whole(proxy.admin.request("DELETE", "/api/backends/a").header("authorization", wrong)).await;
        assert_eq!(reply.status, 401, "{wrong:?}: {reply:?}");
    }
    let reply = whole(proxy.admin.request("PUT", "/api/fleet").header("authorization", "Bearer t0ken")).await;
    assert_ne!(reply.status, 401, "{reply:?}");
    proxy.admin.get("/api/fleet").await.ok();
}

#[tokio::test]
async fn images_are_taken_inline_or_from_listed_domains_where_a_policy_says_so() {
    let asked = |url: &str| {
        json!({"model": MODEL, "messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": url}}]}]})
    };
    let inline = "data:image/png;base64,AAAA";
    let listed = "https://images.example.com/a.png";
    for (rules, url, passes) in [
        ("", "file:///etc/passwd", true),
        ("policy = \"data-only\"", inline, true),
        ("policy = \"data-only\"", listed, false),
        ("policy = \"allow\"\ndomains = [\"images.example.com\"]", inline, true),
        ("policy = \"allow\"\ndomains = [\"images.example.com\"]", listed, true),
        ("policy = \"allow\"\ndomains = [\"images.example.com\"]", "http://169.254.169.254/latest/meta-data", false),
        (
            "policy = \"allow\"\ndomains = [\"images.example.com\"]",
            "https://images.example.com\\@169.254.169.254/",
            false,
        ),
    ] {
        let (proxy, [backend]) = proxied(&format!("[images]\n{rules}\n"), ["a"]).await;
        let reply = proxy.client.post_json(CHAT, &asked(url)).await;
        if !rules.is_empty() {
            // Under the names of other engines; letters of base64 do not make an image of a path.
            for part in [json!({"image": "/etc/passwd"}), json!({"input_audio": {"data": "http://169.254.169.254/"}})] {
                let body = json!({"model": MODEL, "messages": [{"role": "user", "content": [part]}]});
                proxy.client.post_json(CHAT, &body).await.refused(400, "image_url_not_allowed");
            }
        }
        if passes {
            reply.ok();
            assert!(backend.request().text().contains(&json!(url).to_string()), "as it was");
        } else {
            reply.refused(400, "image_url_not_allowed");
            assert_eq!(backend.request_count(), 0, "{url}");
        }
    }
}
