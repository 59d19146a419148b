//! Before llama.cpp's own server, a fleet behaves as before scripted backends: found out by asking, never over-filled,
//! failed over, brought back. The model is tiny and talks nonsense; the server around it is the real one.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::support::*;

const SLOTS: u32 = 2;
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// For the poll itself, and for a machine that has other things to do.
const MARGIN: Duration = Duration::from_millis(700);

struct Llama {
    /// Also what the server calls its model.
    name: &'static str,
    folder: Folder,
    program: Program,
    address: SocketAddr,
}

impl Llama {
    async fn start(name: &'static str) -> Self {
        let folder = Folder::new();
        let (program, address) = Self::serve(name, &folder, 0).await;
        Self { name, folder, program, address }
    }

    /// Starts it again on its old port.
    async fn restart(&mut self) {
        (self.program, _) = Self::serve(self.name, &self.folder, self.address.port()).await;
    }

    async fn serve(name: &str, folder: &Folder, port: u16) -> (Program, SocketAddr) {
        let mut command = Command::new(installed("clients/python/bin/python", "test"));
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/engines/llama_cpp/serve.py");
        command.arg("-B").arg(script).arg(folder.path()).args([&port.to_string(), name, &SLOTS.to_string()]);
        let mut program = Program::start(name, &mut command);
        let line = program.first_line().await;
        let address = line.strip_prefix("listening on http://").and_then(|address| address.parse().ok());
        (program, address.unwrap_or_else(|| panic!("no address: {line:?}")))
    }

    /// Its table in a configuration that says nothing but where it is.
    fn entry(&self) -> String {
        format!("[[backends]]\nname = \"{}\"\nurl = \"http://{}\"\n", self.name, self.address)
    }

    /// The same, with [`MODEL`] as the public name.
    fn mapped(&self) -> String {
        format!("{}models = {{ \"{MODEL}\" = \"{}\" }}\n", self.entry(), self.name)
    }

    /// To be asked without the proxy.
    fn client(&self) -> Client {
        Client::http1(self.address)
    }
}

/// Two servers and a proxy before them.
async fn pair(top: &str) -> (Proxy, Llama, Llama) {
    let (a, b) = tokio::join!(Llama::start("tiny-a"), Llama::start("tiny-b"));
    let proxy = Proxy::start(&format!("{top}{}{}", a.mapped(), b.mapped())).await;
    (proxy, a, b)
}

#[tokio::test]
async fn llama_cpp_is_found_out_by_asking() {
    let llama = Llama::start("tiny-a").await;
    let proxy = Proxy::start(&llama.entry()).await;
    let told = proxy.backend("tiny-a").await;
    assert_eq!((&told["engine"], &told["state"]), (&"llama-cpp".into(), &"available".into()), "{told}");
    assert_eq!((&told["slots"], &told["slots_from"]), (&SLOTS.into(), &"reported".into()), "{told}");
    let load = (&told["reported"]["running"], &told["reported"]["waiting"]);
    assert_eq!(load, (&0.into(), &0.into()), "{told}");
    let reply = proxy.client.chat_with("tiny-a").await.ok();
    assert_eq!(reply.header("x-vision-proxy-model"), "tiny-a");
    let listed = proxy.client.get("/v1/models").await.ok().json();
    assert_eq!(listed["data"][0]["id"], "tiny-a", "{listed}");
    proxy.client.chat_with("nobody/has-it").await.refused(404, "model_not_found");
}

/// What an answer says, without what differs from one time to the next.
fn said(answer: &Value) -> (&Value, &Value) {
    (&answer["choices"], &answer["usage"]["total_tokens"])
}

#[tokio::test]
async fn texts_and_images_are_answered_by_llama_cpp_as_without_the_proxy() {
    let (proxy, a, b) = pair("").await;
    let mut sizes = Vec::new();
    for body in [chat_of(20), chat_about_a_picture(20)] {
        let direct = a.client().post_json(CHAT, &body).await.ok().json();
        assert_eq!(direct["model"], "tiny-a");
        for _ in 0..2 {
            let reply = proxy.client.post_json(CHAT, &body).await.ok();
            assert_eq!(reply.header("x-vision-proxy-model"), reply.backend());
            let answer = reply.json();
            assert_eq!(answer["model"], MODEL);
            assert_eq!(said(&answer), said(&direct), "by {}", reply.backend());
        }
        sizes.push(direct["usage"]["prompt_tokens"].as_u64());
    }
    assert!(sizes[1] > sizes[0], "the picture was not looked at: {sizes:?}");
    for name in [a.name, b.name] {
        assert_eq!(proxy.backend(name).await["requests_total"], 2);
    }
}

#[tokio::test]
async fn streams_of_llama_cpp_come_whole_and_under_the_public_name() {
    let (proxy, _a, _b) = pair("").await;
    for _ in 0..2 {
        let text = Events::of(proxy.client.post(CHAT, stream_of_tokens(50).to_string())).await.rest().await;
        let (events, end) = text.rsplit_once("data: [DONE]\n\n").expect("a stream that ends well");
        let events: Vec<Value> = events
            .split_terminator("\n\n")
            .map(|event| serde_json::from_str(event.strip_prefix("data: ").expect("data")).expect("JSON"))
            .collect();
        // Fewer than tokens: the bytes of a character come together.
        assert!(end.is_empty() && events.len() > 20, "{} events, then {end:?}", events.len());
        assert!(events.iter().all(|event| event["model"] == MODEL), "{text}");
        assert_eq!(events.last().expect("an event")["usage"]["completion_tokens"], 50, "{text}");
    }
}

/// The most that a server said of itself while it was watched.
#[derive(Default)]
struct Most {
    processing: AtomicU64,
    deferred: AtomicU64,
    looks: AtomicU64,
}

impl Most {
    /// Looks at a server again and again until it is told to stop.
    async fn watch(self: Arc<Self>, client: Client, stop: Arc<AtomicBool>) {
        while !stop.load(SeqCst) {
            let metrics = Metrics::parse(client.get("/metrics").await.ok().text());
            let value = |name| metrics.value(name, &[]).expect("a number") as u64;
            self.processing.fetch_max(value("llamacpp:requests_processing"), SeqCst);
            self.deferred.fetch_max(value("llamacpp:requests_deferred"), SeqCst);
            self.looks.fetch_add(1, SeqCst);
        }
    }
}

#[tokio::test]
async fn llama_cpp_servers_share_and_are_filled_but_never_over_filled() {
    let (proxy, a, b) = pair("workers = 2\n").await;
    let stop = Arc::new(AtomicBool::new(false));
    let watched = [&a, &b].map(|llama| {
        let most = Arc::new(Most::default());
        (Arc::clone(&most), tokio::spawn(most.watch(llama.client(), Arc::clone(&stop))))
    });
    let client = proxy.client.clone();
    let replies = in_parallel(40, move |_| {
        let client = client.clone();
        async move { client.post_json(CHAT, &chat_of(200)).await.ok() }
    })
    .await;
    stop.store(true, SeqCst);
    for (most, watch) in watched {
        watch.await.expect("a server that answers");
        assert_eq!(most.deferred.load(SeqCst), 0, "requests waited inside the engine");
        assert_eq!(most.processing.load(SeqCst), u64::from(SLOTS), "in {} looks", most.looks.load(SeqCst));
    }
    for name in [a.name, b.name] {
        let share = replies.iter().filter(|reply| reply.backend() == name).count();
        assert!((12..=28).contains(&share), "{name} answered {share} of {}", replies.len());
    }
    proxy.falls_idle().await;
}

#[tokio::test]
async fn a_llama_cpp_killed_under_load_fails_nobody_and_comes_back() {
    let top = format!("[capacity]\npoll_interval = \"{}ms\"\n", POLL_INTERVAL.as_millis());
    let (proxy, mut a, b) = pair(&top).await;
    let moved = Arc::new(AtomicU64::new(0));
    let load = Load::by(&proxy, 6, {
        let moved = Arc::clone(&moved);
        move |client| {
            let moved = Arc::clone(&moved);
            async move {
                let reply = client.post_json(CHAT, &chat_of(300)).await.ok();
                assert_eq!(reply.json()["usage"]["completion_tokens"], 300);
                moved.fetch_add(u64::from(reply.attempts() > 1), SeqCst);
            }
        }
    });
    for _ in 0..2 {
        load.answers_more(20).await;
        let before = moved.load(SeqCst);
        eventually("it is at work", async || proxy.backend(a.name).await["in_flight"] != 0).await;
        a.program.kill();
        proxy.waits_until(a.name, "down").await;
        load.answers_more(20).await;
        assert!(moved.load(SeqCst) > before, "what it was at work on went to {}", b.name);
        let served = proxy.backend(a.name).await["requests_total"].clone();
        a.restart().await;
        let returned = Instant::now();
        eventually("it serves again", async || proxy.backend(a.name).await["requests_total"] != served).await;
        assert!(returned.elapsed() < POLL_INTERVAL + MARGIN, "{:?}", returned.elapsed());
    }
    load.ends_well().await;
}

#[tokio::test]
async fn a_stream_of_a_llama_cpp_that_is_killed_ends_visibly() {
    let mut llama = Llama::start("tiny-a").await;
    let proxy = Proxy::start(&llama.mapped()).await;
    let mut events = Events::of(proxy.client.post(CHAT, stream_of_tokens(30_000).to_string())).await;
    events.next().await;
    llama.program.kill();
    let (text, is_broken) = events.rest_or_break().await;
    assert!(is_broken && !text.contains("[DONE]"), "a clean end of {text:?}");
    assert!(text.contains(r#""code":"upstream_interrupted""#), "{text:?}");
    proxy.falls_idle().await;
}
