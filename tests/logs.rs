//! The log: one JSON object a line, no secrets at any level, and never in the way of a request.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::support::*;

/// A proxy whose standard error is what the test gives it.
struct Muted {
    process: Child,
    /// Open as long as the proxy runs, where the test does not close it.
    stdout: Option<ChildStdout>,
    client: Client,
    admin: Client,
    _folder: Folder,
}

impl Muted {
    /// Logs at this level to this standard error; returns when it said on its standard output that it is ready.
    async fn start(level: &str, stderr: Stdio, top: &str, backend: &Backend) -> Self {
        let folder = Folder::new();
        let ports = "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
        let path = folder.write("vision-proxy.toml", format!("{ports}{}", config(top, [backend])));
        let mut command = Command::new(env!("CARGO_BIN_EXE_vision-proxy"));
        command.args(["run", "--config", path.to_str().expect("text")]).env("RUST_LOG", level);
        let mut process =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn().expect("spawn vision-proxy");
        let mut stdout = process.stdout.take().expect("a pipe");
        let read = tokio::task::spawn_blocking(move || {
            let (mut line, mut byte) = (String::new(), [0]);
            while !line.ends_with('\n') && stdout.read(&mut byte).is_ok_and(|read| read > 0) {
                line.push(byte[0].into());
            }
            (line, stdout)
        });
        let (line, stdout) = soon("the ready line", read).await.expect("a thread that ends");
        let address = |key: &str| -> SocketAddr {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix("=http://"));
            word.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("no ready line: {line:?}"))
        };
        let (client, admin) = (Client::http1(address("listen")), Client::http1(address("admin")));
        Self { process, stdout: Some(stdout), client, admin, _folder: folder }
    }

    /// Serves requests that each have a line in the log, until the metric says that lines were dropped.
    async fn serves_and_drops(&self) {
        let dropped = async || {
            for _ in 0..100 {
                self.client.chat_with("nobody-serves-this").await.refused(404, "model_not_found");
            }
            self.client.chat().await.ok();
            let metrics = Metrics::parse(self.admin.get("/metrics").await.ok().text());
            metrics.value("vision_proxy_log_lines_dropped_total", &[]).is_some_and(|dropped| dropped > 0.0)
        };
        eventually("lines are dropped while requests are served", dropped).await;
    }
}

impl Drop for Muted {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_nothing() {
    let backend = Setup::named("a").start().await;
    let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    // Full before the proxy says its first word.
    let mut fill = theirs.try_clone().expect("a socket");
    fill.set_nonblocking(true).expect("non-blocking");
    loop {
        match fill.write(&[b'x'; 4096]) {
            Ok(_) => {}
            Err(why) if why.kind() == ErrorKind::WouldBlock => break,
            Err(why) => panic!("{why}"),
        }
    }
    fill.set_nonblocking(false).expect("blocking");
    drop(fill);
    let proxy = Muted::start("debug", OwnedFd::from(theirs).into(), "", &backend).await;
    proxy.serves_and_drops().await;
    let mut filler = [0; 4096];
    let read = ours.read(&mut filler).expect("what was there before");
    assert!(filler[..read].iter().all(|byte| *byte == b'x'), "it was full all the time");
}

#[tokio::test]
async fn a_log_that_is_closed_or_full_holds_up_nothing() {
    let backend = Setup::named("a").start().await;
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    drop(ours);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    for sink in [OwnedFd::from(theirs).into(), Stdio::from(full)] {
        let mut proxy = Muted::start("debug", sink, "", &backend).await;
        // Nor does a closed standard output.
        proxy.stdout = None;
        proxy.serves_and_drops().await;
    }
}

#[tokio::test]
async fn no_level_shows_what_is_secret() {
    use sha2::Digest;
    let folder = Folder::new();
    let log = folder.path().join("log");
    let own = folder.write("key", "sk-own-canary");
    let hash: String = sha2::Sha256::digest("sk-client-canary").iter().map(|byte| format!("{byte:02x}")).collect();
    let top = format!("[[keys]]\nname = \"team\"\nsha256 = \"{hash}\"\n");
    let line = format!("api_key = {{ file = \"{}\" }}", own.display());
    let backend = Setup::named("a").line(&line).start().await;
    let stderr = std::fs::File::create(&log).expect("a file");
    let proxy = Muted::start("trace", stderr.into(), &top, &backend).await;
    let listen = proxy.client.address();
    let body = json!({"model": MODEL, "user": "user-canary", "messages": [{"role": "user", "content": [
        {"type": "text", "text": "prompt-canary"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,imagecanary"}}]}]});
    let mut told = String::new();
    for client in [&proxy.client, &Client::h2c(listen)] {
        for (path, body) in [
            (CHAT, body.to_string()),
            (CHAT, body.to_string().replace(MODEL, "nobody-serves-this")),
            (CHAT, "{\"prompt-canary\"".to_owned()),
            ("/v1/canary", body.to_string()),
        ] {
            for key in ["sk-client-canary", "sk-wrong-canary"] {
                let request = client.post(&format!("{path}?secret=query-canary"), body.clone());
                let request =
                    request.header("authorization", format!("Bearer {key}")).header("x-mine", "header-canary");
                // The engine's own words are its own.
                let reply = whole(request.header("x-request-id", "id;[31m canary")).await;
                told += &format!("{:?} {}", reply.headers, reply.text());
            }
        }
    }
    backend.always(Answer::json(401, "Incorrect API key provided: sk-own-canary"));
    let refused = proxy.client.post(CHAT, body.to_string()).header("authorization", "Bearer sk-client-canary");
    told += whole(refused).await.refused(502, "upstream_unauthorized").text();
    for path in ["/", "/metrics", "/api/fleet", "/api/plugins", "/api/config", "/api/decisions"] {
        told += proxy.admin.get(path).await.ok().text();
    }
    // It is written behind the requests' backs; the last of them is the one that the backend refused.
    let logged = async || std::fs::read_to_string(&log).expect("text").contains("upstream_unauthorized");
    eventually("the log tells of the requests", logged).await;
    let log = std::fs::read_to_string(&log).expect("text");
    assert!(!told.contains("canary"), "{told}");
    assert!(!log.contains("canary"), "{log}");
    assert!(log.lines().count() > 10, "at this level much is said: {log}");
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|why| panic!("not JSON ({why}): {line}"));
        assert!(["timestamp", "level", "message"].iter().all(|key| line[key].is_string()), "{line}");
    }
}

#[tokio::test]
async fn no_level_shows_the_secrets_of_who_runs_it() {
    let (authority, folder) = (Authority::named("ours"), Folder::new());
    let (identity, backend) = (authority.certify(&["127.0.0.1"]), Setup::named("a").start().await);
    let token = folder.write("token", "admin-token-canary");
    let ports = "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nbackends = []\n";
    let top = format!("{ports}admin_token = {{ file = \"{}\" }}\n{}", token.display(), identity.table(&folder));
    folder.write("vision-proxy.toml", top);
    let mut command = Command::new(env!("CARGO_BIN_EXE_vision-proxy"));
    let mut proxy = Proxy::run_by(command.arg("run").env("RUST_LOG", "trace"), folder).await;
    let node = json!({"url": format!("http://{}", backend.address), "engine": "openai", "models": {MODEL: NATIVE},
        "api_key": "sk-registered-canary"});
    let mut told = String::new();
    for (key, body) in [
        ("admin-token-wrong-canary", node.to_string()),
        ("admin-token-canary", node.to_string().replace("http://", "http://u:sk-registered-canary@")),
        ("admin-token-canary", node.to_string().replace("\"openai\"", "7")),
        ("admin-token-canary", node.to_string()),
        ("admin-token-canary", node.to_string().replace("registered-canary", "renewed-canary")),
    ] {
        let asked = proxy.admin.request("PUT", "/api/backends/a").header("authorization", format!("Bearer {key}"));
        told += whole(asked.body(body)).await.text();
    }
    for client in ["h2", "http/1.1"].map(|protocol| {
        let mut tls = authority.client(None);
        tls.alpn_protocols = vec![protocol.into()];
        Client::https(proxy.listen, tls)
    }) {
        let served = async || client.chat().await.status == 200;
        eventually("the registered one serves", served).await;
    }
    assert_eq!(backend.requests()[0].header("authorization"), "Bearer sk-renewed-canary");
    backend.always(Answer::json(403, "no, sk-renewed-canary"));
    let client = Client::https(proxy.listen, authority.client(None));
    told += client.chat().await.refused(502, "upstream_unauthorized").text();
    for path in ["/", "/metrics", "/api/fleet", "/api/plugins", "/api/config", "/api/decisions"] {
        told += proxy.admin.get(path).await.ok().text();
    }
    proxy.kill();
    let log = proxy.output();
    assert!(!told.contains("canary"), "{told}");
    assert!(!log.contains("canary"), "{log}");
    assert!(log.contains("answered in the proxy's own name"), "at this level much is said: {log}");
    for line in identity.key.lines().filter(|line| !line.starts_with('-')) {
        assert!(!log.contains(line) && !told.contains(line), "the listener's key: {log}");
    }
}

#[tokio::test]
async fn the_last_lines_are_written_before_the_end() {
    let (mut proxy, [_backend]) = proxied("[timeouts]\ndrain_delay = \"0s\"\n", ["a"]).await;
    proxy.signal("TERM");
    assert!(proxy.ends().await.success());
    let is_written = async || proxy.output().contains("draining for at most");
    eventually("the last line is written", is_written).await;
}
