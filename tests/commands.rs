//! The commands: what they print, and with what code they end.

use crate::support::*;

const COMMANDS: [&[&str]; 10] = [
    &["run"],
    &["demo"],
    &["check"],
    &["simulate-backend"],
    &["plugin"],
    &["plugin", "inspect"],
    &["plugin", "bench"],
    &["key"],
    &["key", "new"],
    &[],
];

/// Six mistakes, and the line of each.
const BROKEN: &str = r#"lisen = "127.0.0.1:0"
workers = "many"
[queue]
siz = 3
[capacity]
poll_interval = "soon"
[[backends]]
name = "a"
url = "ftp://10.0.0.11"
[[backends]]
name = "a"
url = "http://10.0.0.12:8000"
slots = 0
"#;
const MISTAKES: [(&str, usize); 7] = [
    ("lisen", 1),
    ("workers", 2),
    ("siz", 4),
    ("poll_interval", 6),
    ("backends[0].url", 9),
    ("backends[1].name", 11),
    ("backends[1].slots", 13),
];

#[tokio::test]
async fn check_names_every_mistake_with_key_and_line() {
    let folder = Folder::new();
    let path = folder.write("broken.toml", BROKEN);
    let ended = vision_proxy(&["check", "--config", path.to_str().expect("text")], &folder).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    for (key, line) in MISTAKES {
        let place = format!("broken.toml:{line}: ");
        let named = |said: &str| said.lines().any(|said| said.contains(&place) && said.contains(key));
        assert!(named(&ended.said()), "{key} on line {line} is not named:\n{}", ended.said());
    }
    assert!(ended.said().contains("listen"), "no suggestion for a slip of the pen:\n{}", ended.said());
}

#[tokio::test]
async fn run_refuses_what_check_refuses() {
    let folder = Folder::new();
    let path = folder.write("broken.toml", BROKEN);
    let ended = vision_proxy(&["run", "--config", path.to_str().expect("text")], &folder).await;
    assert_ne!(ended.code, 0);
    for (key, _) in MISTAKES {
        assert!(ended.said().contains(key), "{key}:\n{}", ended.said());
    }
}

#[tokio::test]
async fn check_shows_the_fleet_as_it_would_run() {
    let folder = Folder::new();
    let good = "[[backends]]\nname = \"gpu-a\"\nurl = \"http://127.0.0.1:9/v1\"\nengine = \"vllm\"\nslots = 5\n";
    folder.write("vision-proxy.toml", good);
    let ended = vision_proxy(&["check"], &folder).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    for shown in ["gpu-a", "http://127.0.0.1:9", "vllm", "5", "round-robin", "model-map"] {
        assert!(ended.stdout.contains(shown), "{shown}:\n{}", ended.stdout);
    }
}

#[tokio::test]
async fn what_is_no_toml_is_refused_with_its_line() {
    let folder = Folder::new();
    folder.write("vision-proxy.toml", "workers = 1\n[[backends]\nurl = 1\n");
    let ended = vision_proxy(&["check"], &folder).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.said().contains("vision-proxy.toml:2"), "{}", ended.said());
}

#[tokio::test]
async fn a_plugin_that_is_not_there_is_a_mistake() {
    let folder = Folder::new();
    folder.write(
        "vision-proxy.toml",
        "[plugins]\npolicy = \"no-such-policy\"\n[[backends]]\nurl = \"http://127.0.0.1:9\"\n",
    );
    let ended = vision_proxy(&["check"], &folder).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.said().contains("no-such-policy"), "{}", ended.said());
}

#[tokio::test]
async fn every_command_explains_itself() {
    let folder = Folder::new();
    for command in COMMANDS {
        let ended = vision_proxy(&[command, &["--help"]].concat(), &folder).await;
        assert_eq!(ended.code, 0, "{command:?}: {ended:?}");
        assert!(
            ended.stdout.contains("Usage: vision-proxy") && ended.stdout.lines().count() > 5,
            "{command:?}: {}",
            ended.stdout
        );
    }
    let all = vision_proxy(&["--help"], &folder).await.stdout;
    for command in ["run", "demo", "check", "simulate-backend", "plugin", "key"] {
        assert!(all.contains(command), "{command}: {all}");
    }
}

#[tokio::test]
async fn run_explains_where_it_looks_for_its_configuration() {
    let help = vision_proxy(&["run", "--help"], &Folder::new()).await.stdout;
    for told in ["--config", "--backend", "--listen", "--admin", "vision-proxy.toml"] {
        assert!(help.contains(told), "{told}: {help}");
    }
}

#[tokio::test]
async fn the_version_is_told() {
    let ended = vision_proxy(&["--version"], &Folder::new()).await;
    assert_eq!((ended.code, ended.stdout.split_whitespace().next()), (0, Some("vision-proxy")));
}

#[tokio::test]
async fn what_is_no_command_is_refused_with_a_hint() {
    let folder = Folder::new();
    for args in [&["rum"][..], &["run", "--bakend", "http://127.0.0.1:9"], &["check", "--config"]] {
        let ended = vision_proxy(args, &folder).await;
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(ended.stderr.contains("--help") || ended.stderr.contains("Usage"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn run_without_anything_to_run_says_what_is_missing() {
    let ended = vision_proxy(&["run"], &Folder::new()).await;
    assert_ne!(ended.code, 0);
    assert!(ended.said().contains("--backend") && ended.said().contains("[[backends]]"), "{}", ended.said());
}

#[tokio::test]
async fn run_with_a_file_that_is_not_there_names_it() {
    let ended = vision_proxy(&["run", "--config", "no-such-file.toml"], &Folder::new()).await;
    assert_ne!(ended.code, 0);
    assert!(ended.said().contains("no-such-file.toml"), "{}", ended.said());
}

#[tokio::test]
async fn run_on_a_port_that_is_taken_says_so() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = taken.local_addr().expect("an address").to_string();
    for role in ["--listen", "--admin"] {
        let other = if role == "--listen" { "--admin" } else { "--listen" };
        let args = ["run", "--backend", "http://127.0.0.1:9", role, &address, other, "127.0.0.1:0"];
        let ended = vision_proxy(&args, &Folder::new()).await;
        assert_ne!(ended.code, 0);
        assert!(ended.said().contains(&address), "{}", ended.said());
    }
}

#[tokio::test]
async fn a_backend_on_the_command_line_is_enough() {
    let backends =
        [Setup::named("a").native("org/one").start().await, Setup::named("b").vllm().native("org/two").start().await];
    let urls = backends.each_ref().map(|backend| format!("http://{}", backend.address));
    let any_port = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let args = [&["--backend", &urls[0], "--backend", &urls[1]][..], &any_port].concat();
    let proxy = Proxy::run(&args, Folder::new()).await;
    for (backend, model) in backends.iter().zip(["org/one", "org/two"]) {
        let reply = proxy.client.chat_with(model).await.ok();
        assert_eq!(
            (reply.backend(), reply.json()["model"].as_str()),
            (backend.address.to_string().as_str(), Some(model))
        );
    }
    let engines = proxy.backends().await.iter().map(|backend| backend["engine"].clone()).collect::<Vec<_>>();
    assert_eq!(engines, ["openai", "vllm"], "found out by asking");
}

#[tokio::test]
async fn run_takes_the_file_beside_it() {
    let backend = Setup::named("beside").start().await;
    let folder = Folder::new();
    folder
        .write("vision-proxy.toml", format!("listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{}", backend.entry()));
    let proxy = Proxy::run(&[], folder).await;
    assert_eq!(proxy.client.chat().await.ok().backend(), "beside");
}

#[tokio::test]
async fn inspecting_what_is_no_plugin_says_why() {
    let folder = Folder::new();
    let core = wat::parse_str("(module)").expect("a module");
    let empty = wat::parse_str("(component)").expect("a component");
    for (name, content) in
        [("text.wasm", b"no wasm".to_vec()), ("none.wasm", Vec::new()), ("core.wasm", core), ("empty.wasm", empty)]
    {
        folder.write(name, content);
        let ended = vision_proxy(&["plugin", "inspect", name], &folder).await;
        assert_eq!(ended.code, 1, "{name}: {ended:?}");
        assert!(ended.said().contains(name), "{name}: {}", ended.said());
    }
    let missing = vision_proxy(&["plugin", "inspect", "missing.wasm"], &folder).await;
    assert_eq!(missing.code, 1, "{missing:?}");
}

#[tokio::test]
async fn a_call_is_timed_for_every_size_of_fleet() {
    let folder = Folder::new();
    for (plugin, call) in [("round-robin", "pick"), ("model-map", "resolve")] {
        let ended = vision_proxy(&["plugin", "bench", plugin, "--backends", "2", "--backends", "9"], &folder).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        let rows: Vec<Vec<_>> = ended.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!((rows.len(), rows[0][0], rows[1][0], rows[2][0]), (3, call, "2", "9"), "{ended:?}");
        assert!(rows[1][1].parse::<f64>().is_ok_and(|ns| ns > 0.0), "{ended:?}");
    }
    assert_eq!(vision_proxy(&["plugin", "bench", "nowhere.wasm"], &folder).await.code, 1);
}

#[tokio::test]
async fn a_terminated_proxy_finishes_its_streams_first() {
    let (mut proxy, [backend]) = proxied("[timeouts]\ndrain_delay = \"100ms\"\n", ["a"]).await;
    let gate = Gate::closed();
    backend.always(stream_held_at(&gate));
    let mut events = proxy.client.stream().await;
    events.next().await;
    proxy.signal("TERM");
    eventually("it says that it is not ready", async || proxy.admin.get("/readyz").await.status == 503).await;
    proxy.admin.get("/livez").await.ok();
    eventually("it takes no new connection", async || tokio::net::TcpStream::connect(proxy.listen).await.is_err())
        .await;
    gate.open();
    assert!(events.rest().await.ends_with("data: [DONE]\n\n"));
    assert!(proxy.ends().await.success());
}

#[tokio::test]
async fn what_does_not_end_in_time_ends_visibly() {
    let top = "[timeouts]\ndrain_delay = \"10ms\"\ndrain = \"200ms\"\n";
    let (mut proxy, [backend]) = proxied(top, ["a"]).await;
    backend.always(Answer::stream().event(&delta(NATIVE, "one")).stall());
    let mut events = proxy.client.stream().await;
    events.next().await;
    proxy.signal("INT");
    let (text, is_broken) = events.rest_or_break().await;
    assert!(is_broken && !text.contains("[DONE]"), "{text}");
    assert!(text.contains("upstream_interrupted"), "{text}");
    assert!(proxy.ends().await.success());
}

#[tokio::test]
async fn whoever_got_through_the_door_in_time_is_served() {
    let (mut proxy, [_backend]) = proxied("[timeouts]\ndrain_delay = \"0s\"\n", ["a"]).await;
    let mut connections = Vec::new();
    for _ in 0..16 {
        connections.push(Raw::connect(proxy.listen).await);
    }
    proxy.signal("TERM");
    eventually("it drains", async || proxy.output().contains("draining for at most")).await;
    for mut connection in connections {
        connection.send(sized_request(CHAT, &chat_body().to_string())).await;
        connection.reply().await.ok();
    }
    assert!(proxy.ends().await.success());
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let (mut proxy, [backend]) = proxied("", ["a"]).await;
    backend.always(Answer::stream().event(&delta(NATIVE, "one")).stall());
    let mut events = proxy.client.stream().await;
    events.next().await;
    proxy.signal("TERM");
    eventually("it says that it is not ready", async || proxy.admin.get("/readyz").await.status == 503).await;
    proxy.signal("TERM");
    proxy.ends().await;
    assert!(events.rest_or_break().await.1);
}
