//! `auto` finds out every engine by asking and reads its load, notices when another engine takes its place, and says
//! once that a load is missing. The answers are those that the readers of the engines are tested with.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

/// What an engine answers to a GET: path, status, body; 404 to any other.
type Pages = Vec<(&'static str, u16, &'static [u8])>;

macro_rules! golden {
    ($file:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/fleet/engine/golden/", $file)).as_slice()
    };
}

/// How the one model that a llama.cpp router has loaded is asked about.
macro_rules! gemma {
    () => {
        "?model=ggml%2Dorg%2Fgemma%2D3%2D4b%2Dit%2DGGUF%3AQ4%5FK%5FM&autoload=false"
    };
}

/// Many polls fit into a test.
const FREQUENT_POLLS: &str = "[capacity]\npoll_interval = \"20ms\"\nstale_after = \"5s\"\n";
/// A wrong line in the log would have been written again by then.
const MANY_QUESTIONS: usize = 100;

/// A server that answers questions only, as whichever engine it is at the moment.
struct Engine {
    name: &'static str,
    address: SocketAddr,
    pages: Arc<Mutex<Pages>>,
    asked: Arc<AtomicUsize>,
    /// The heads of the questions.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Engine {
    async fn start(name: &'static str, pages: Pages) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (pages, asked) = (Arc::new(Mutex::new(pages)), Arc::new(AtomicUsize::new(0)));
        let heads = Arc::default();
        let (shown, count, written) = (Arc::clone(&pages), Arc::clone(&asked), Arc::clone(&heads));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, SeqCst);
                tokio::spawn(answer(stream, Arc::clone(&shown), Arc::clone(&written)));
            }
        });
        Self { name, address, pages, asked, heads }
    }

    /// How many questions came with this key, and how many without.
    fn asked_with(&self, key: &str) -> (usize, usize) {
        let heads = self.heads.lock().expect("no poison");
        let with = heads.iter().filter(|head| head.contains(&format!("authorization: Bearer {key}\r\n"))).count();
        (with, heads.len() - with)
    }

    /// Is another one from now on.
    fn becomes(&self, pages: Pages) {
        *self.pages.lock().expect("no poison") = pages;
    }

    async fn is_asked_a_lot(&self) {
        let enough = self.asked.load(SeqCst) + MANY_QUESTIONS;
        eventually("it is asked a lot", async || self.asked.load(SeqCst) >= enough).await;
    }

    fn entry(&self) -> String {
        format!("[[backends]]\nname = \"{}\"\nurl = \"http://{}\"\n", self.name, self.address)
    }
}

/// One question a connection. An asker that leaves is no failure.
async fn answer(mut stream: TcpStream, pages: Arc<Mutex<Pages>>, heads: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default();
    heads.lock().expect("no poison").push(head.clone());
    let page = pages.lock().expect("no poison").iter().find(|(known, ..)| *known == path).copied();
    let (_, status, body) = page.unwrap_or(("", 404, b"Not Found"));
    let start = format!("HTTP/1.1 {status} -\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    _ = stream.write_all(&[start.as_bytes(), body].concat()).await;
}

fn vllm(metrics: &'static [u8]) -> Pages {
    vec![("/health", 200, b""), ("/v1/models", 200, golden!("vllm_models.json")), ("/metrics", 200, metrics)]
}

fn lmdeploy() -> Pages {
    vec![
        ("/health", 200, br#"{"status":"healthy","message":""}"#),
        ("/v1/models", 200, golden!("lmdeploy_models.json")),
        ("/metrics", 200, golden!("lmdeploy_metrics.txt")),
    ]
}

fn nim(models: &'static [u8], metrics: &'static [u8]) -> Pages {
    vec![
        ("/v1/health/ready", 200, br#"{"object":"health.response","message":"Service is ready."}"#),
        ("/v1/metadata", 200, golden!("nim_metadata.json")),
        ("/v1/models", 200, models),
        ("/v1/metrics", 200, metrics),
    ]
}

/// A backend, what it runs, what it answers, and what is to be read from that.
struct Case {
    name: &'static str,
    engine: &'static str,
    pages: Pages,
    limit: Option<u32>,
    running: Option<u32>,
}

fn engines() -> Vec<Case> {
    let tgi = vec![
        ("/health", 200, b"".as_slice()),
        ("/", 200, b""),
        ("/v1/models", 200, golden!("tgi_models.json")),
        ("/info", 200, golden!("tgi_info.json")),
        ("/metrics", 200, golden!("tgi_metrics.txt")),
    ];
    let trtllm = vec![
        ("/health", 200, b"".as_slice()),
        ("/v1/models", 200, golden!("trtllm_models.json")),
        ("/metrics", 200, b"[]"),
        ("/prometheus/metrics", 200, golden!("trtllm_metrics.txt")),
    ];
    let triton = vec![
        ("/health/ready", 200, b"".as_slice()),
        ("/v1/models", 200, golden!("triton_models.json")),
        ("/metrics", 200, golden!("triton_metrics.txt")),
    ];
    let lm_studio = vec![
        ("/", 200, br#"{"error":"Unexpected endpoint or method. (GET /)"}"#.as_slice()),
        ("/v1/models", 200, golden!("lm_studio_models.json")),
        ("/api/v0/models", 200, golden!("lm_studio_details.json")),
    ];
    let newer_lm_studio = vec![
        ("/v1/models", 200, br#"{"data":[{"id":"google/gemma-3-4b","owned_by":"organization_owner"}]}"#.as_slice()),
        ("/api/v1/models", 200, golden!("lm_studio_details_v1.json")),
    ];
    let router = vec![
        ("/health", 200, br#"{"status":"ok"}"#.as_slice()),
        ("/v1/models", 200, golden!("llama_models_router.json")),
        ("/props", 200, br#"{"role":"router","max_instances":4}"#),
        (concat!("/props", gemma!()), 200, golden!("llama_props.json")),
        (concat!("/metrics", gemma!()), 200, golden!("llama_metrics_full.txt")),
    ];
    let full_vllm = golden!("vllm_metrics_full.txt");
    let case = |name, engine, pages, limit, running| Case { name, engine, pages, limit, running };
    vec![
        case("a-vllm", "vllm", vllm(full_vllm), None, Some(4)),
        case("a-tgi", "tgi", tgi, Some(128), Some(4)),
        case("a-trtllm", "trtllm", trtllm, None, Some(5)),
        case("a-triton", "triton", triton, None, Some(4)),
        case("a-lmdeploy", "lmdeploy", lmdeploy(), None, Some(4)),
        case("an-lm-studio", "lm-studio", lm_studio, None, None),
        case("a-newer-lm-studio", "lm-studio", newer_lm_studio, Some(4), None),
        case("a-router", "llama-cpp", router, Some(3), Some(3)),
        case("a-nim", "nim", nim(golden!("nim_models.json"), golden!("nim_metrics.txt")), Some(2_048), Some(5)),
        case("a-nim-of-vllm", "nim", nim(golden!("vllm_models.json"), full_vllm), None, Some(4)),
    ]
}

#[tokio::test]
async fn every_engine_is_found_out_by_asking() {
    let mut standing = Vec::new();
    for case in engines() {
        standing.push(Engine::start(case.name, case.pages).await);
    }
    let proxy = Proxy::start(&standing.iter().map(Engine::entry).collect::<String>()).await;
    for Case { name, engine, limit, running, .. } in engines() {
        let told = proxy.backend(name).await;
        assert_eq!(told["engine"], engine, "{told}");
        assert_eq!(told["reported"]["running"], running.map_or(serde_json::Value::Null, Into::into), "{told}");
        let from = if limit.is_some() { "reported" } else { "learned" };
        assert_eq!(told["slots_from"], from, "{told}");
        assert!(limit.is_none_or(|limit| told["slots"] == limit), "{told}");
        // All but LM Studio say that somebody waits; where that may be old news, it keeps nothing away for good.
        let believed = ["vllm", "tgi", "nim", "llama-cpp"].contains(&engine);
        assert_eq!(told["state"], if believed { "busy" } else { "available" }, "{told}");
    }
}

#[tokio::test]
async fn another_engine_behind_the_same_address_is_noticed() {
    let engine = Engine::start("a", vllm(golden!("vllm_metrics_full.txt"))).await;
    let proxy = Proxy::start(&format!("{FREQUENT_POLLS}{}", engine.entry())).await;
    assert_eq!(proxy.backend("a").await["engine"], "vllm");
    for (name, pages) in
        [("lmdeploy", lmdeploy()), ("nim", nim(golden!("nim_models.json"), golden!("nim_metrics.txt")))]
    {
        engine.becomes(pages);
        let noticed = async || {
            let told = proxy.backend("a").await;
            told["engine"] == name && !told["reported"]["running"].is_null()
        };
        eventually(name, noticed).await;
    }
    assert_eq!(proxy.backend("a").await["slots"], 2_048);
    assert!(!proxy.output().contains("down:"), "it was never out of use");
}

#[tokio::test]
async fn a_missing_load_is_said_once() {
    const MISSING: &str = "reports no load";
    let engine = Engine::start("a", vllm(b"python_info 1.0\n")).await;
    let proxy = Proxy::start(&format!("{FREQUENT_POLLS}{}", engine.entry())).await;
    eventually("it is said", async || proxy.output().contains(MISSING)).await;
    let too_long: &'static [u8] = "vllm:num_requests_running 0.0\n".repeat(200_000).leak().as_bytes();
    let without = vec![("/health", 200, b"".as_slice()), ("/v1/models", 200, golden!("vllm_models.json"))];
    for bad in [vllm(b"<html>0</html>"), vllm(b"vllm:num_requests_running NaN\n"), vllm(too_long), without] {
        engine.becomes(bad);
        engine.is_asked_a_lot().await;
        let told = proxy.backend("a").await;
        assert_eq!(
            (&told["reported"]["running"], &told["state"]),
            (&serde_json::Value::Null, &"available".into()),
            "{told}"
        );
    }
    engine.becomes(vllm(golden!("vllm_metrics_full.txt")));
    eventually("its return is said", async || proxy.output().contains("reports its load again")).await;
    let output = proxy.output();
    assert_eq!(output.matches(MISSING).count(), 1, "{output}");
    assert!(output.contains("--disable-log-stats"), "{output}");
    assert_eq!(proxy.backend("a").await["engine"], "vllm");
}

#[tokio::test]
async fn metrics_at_another_address_are_read_there_and_the_key_stays_at_home() {
    let frontend = vec![("/health/ready", 200, b"".as_slice()), ("/v1/models", 200, golden!("triton_models.json"))];
    let metrics = golden!("triton_metrics.txt");
    let ports = Engine::start("ports", frontend.clone()).await;
    let other = Engine::start("other", vec![("/metrics", 200, metrics)]).await;
    let paths = Engine::start("paths", [frontend, vec![("/deep/page", 200, metrics)]].concat()).await;
    let folder = Folder::new();
    let key = format!("api_key = {{ file = \"{}\" }}\n", folder.write("key", "sk-1").display());
    let told = |engine: &Engine, at: String| format!("{}{key}metrics_url = \"http://{at}\"\n", engine.entry());
    // The first without a path: the engine's own is asked for there.
    let entries = told(&ports, other.address.to_string()) + &told(&paths, format!("{}/deep/page", paths.address));
    let proxy = Proxy::start(&format!("{FREQUENT_POLLS}{entries}")).await;
    for name in ["ports", "paths"] {
        let read = async || {
            let told = proxy.backend(name).await;
            told["engine"] == "triton" && told["reported"]["running"] == 4
        };
        eventually(&format!("the load of {name} is read"), read).await;
    }
    assert!(matches!(ports.asked_with("sk-1"), (1.., 0)), "{:?}", ports.asked_with("sk-1"));
    assert!(matches!(other.asked_with("sk-1"), (0, 1..)), "{:?}", other.asked_with("sk-1"));
    assert!(matches!(paths.asked_with("sk-1"), (1.., 0)), "{:?}", paths.asked_with("sk-1"));
}

#[tokio::test]
async fn metrics_that_are_not_where_they_should_be_cost_nothing_but_the_load() {
    const MISSING: &str = "reports no load";
    // Bound, so that nobody else gets the port, and never listening.
    let nobody = tokio::net::TcpSocket::new_v4().expect("a socket");
    nobody.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let backend = Setup::named("a").vllm().start().await;
    let at = nobody.local_addr().expect("an address");
    let proxy =
        Proxy::start(&format!("{FREQUENT_POLLS}{}metrics_url = \"http://{at}/metrics\"\n", backend.entry())).await;
    eventually("it is said", async || proxy.output().contains(MISSING)).await;
    let polls = backend.polled().len();
    eventually("it is polled on", async || backend.polled().len() > polls + MANY_QUESTIONS).await;
    for _ in 0..5 {
        assert_eq!(proxy.client.chat().await.ok().attempts(), 1);
    }
    let told = proxy.backend("a").await;
    assert_eq!(
        (&told["state"], &told["reported"]["running"]),
        (&"available".into(), &serde_json::Value::Null),
        "{told}"
    );
    let output = proxy.output();
    assert_eq!(output.matches(MISSING).count(), 1, "{output}");
    assert!(!output.contains("down:"), "{output}");
}
