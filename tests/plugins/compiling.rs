//! While a plugin is being compiled everything else changes as ever.

use std::fs;
use std::time::Duration;

use serde_json::json;

use super::guests::*;
use super::*;
use crate::support::program::signal;

/// The process in which a plugin is being compiled, which stands still until this is dropped.
struct Held(u32);

impl Held {
    /// Stops the next one that this process starts.
    async fn by(proxy: u32) -> Self {
        let mut child = None;
        eventually("a plugin is being compiled", async || {
            child = child_of(proxy);
            child.is_some()
        })
        .await;
        let child = child.expect("a child");
        signal(child, "STOP");
        Self(child)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if has_parent(self.0).is_some() {
            signal(self.0, "CONT");
        }
    }
}

/// The parent of a process; `None` where it has ended.
fn has_parent(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let is_alive = fields.next() != Some("Z");
    fields.next()?.parse().ok().filter(|_| is_alive)
}

fn child_of(parent: u32) -> Option<u32> {
    let entries = fs::read_dir("/proc").expect("the list of processes");
    let mut processes = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes.find(|&process| has_parent(process) == Some(parent))
}

async fn has_fleet(proxy: &Proxy, names: &[&str]) {
    let are_there = async || {
        let backends = proxy.backends().await;
        let mut of_fleet = backends.iter().filter(|backend| backend["state"] != "draining");
        backends.len() == names.len() && of_fleet.all(|backend| names.iter().any(|name| backend["name"] == *name))
    };
    eventually(&format!("the fleet is {names:?}"), are_there).await;
}

async fn config_is(proxy: &Proxy, state: &str) -> Value {
    let is_it = async || proxy.admin_json("/api/config").await["state"] == state;
    patiently(COMPILED_WITHIN, &format!("the configuration is {state}"), is_it).await;
    proxy.admin_json("/api/config").await
}

async fn config_reloads(proxy: &Proxy, result: &str) -> f64 {
    proxy.metrics().await.value("vision_proxy_config_reloads_total", &[("result", result)]).unwrap_or_default()
}

async fn three() -> [Backend; 3] {
    [Setup::named("a").start().await, Setup::named("b").start().await, Setup::named("c").start().await]
}

#[tokio::test]
async fn what_else_a_configuration_says_waits_for_no_plugin() {
    let backends = three().await;
    let [a, b, c] = &backends;
    let proxy = Proxy::start(&config("workers = 2\n", [a, b])).await;
    let load = Load::of(&proxy, 2);
    let slow = bombs::slow_to_compile();
    proxy.write_plugin(MY_POLICY, &slow);
    let held = Held::by(proxy.id()).await;

    proxy.write_config(&config(WITH_MY_POLICY, [b, c]));
    has_fleet(&proxy, &["b", "c"]).await;
    let told = config_is(&proxy, "pending").await;
    assert_eq!(told["errors"], json!([]), "{told}");
    assert_eq!(proxy.metrics().await.value("vision_proxy_config_current", &[]), Some(0.0));
    // One that comes later, and one by another way.
    proxy.write_config(&config(WITH_MY_POLICY, [c]));
    has_fleet(&proxy, &["c"]).await;
    let registered = json!({ "url": format!("http://{}", a.address), "models": { MODEL: NATIVE } });
    whole(proxy.admin.request("PUT", "/api/backends/a").body(registered.to_string())).await;
    has_fleet(&proxy, &["c", "a"]).await;
    proxy.signal("HUP");
    load.answers_more(10).await;
    assert_eq!(active(&proxy, "round-robin").await["state"], "running");
    assert_eq!((config_reloads(&proxy, "loaded").await, config_reloads(&proxy, "refused").await), (1.0, 0.0));

    drop(held);
    runs(&proxy, MY_POLICY, &slow).await;
    config_is(&proxy, "loaded").await;
    assert_eq!(config_reloads(&proxy, "loaded").await, 2.0);
    load.ends_well().await;
}

#[tokio::test]
async fn a_plugin_that_is_refused_in_the_end_takes_back_nothing_else() {
    let backends = three().await;
    let [a, b, _c] = &backends;
    let proxy = Proxy::start(&config("workers = 2\n", &backends)).await;
    let bad = bombs::branches(400);
    proxy.write_plugin(MY_POLICY, &bad);
    let held = Held::by(proxy.id()).await;
    proxy.write_config(&config(WITH_MY_POLICY, [a, b]));
    has_fleet(&proxy, &["a", "b"]).await;
    config_is(&proxy, "pending").await;

    drop(held);
    let told = config_is(&proxy, "refused").await;
    let message = told["errors"][0]["message"].as_str().expect("a message");
    assert!(message.contains("`my-policy` cannot run: kind: "), "{told}");
    assert_eq!(told["errors"][0]["key"], "plugins.policy", "{told}");
    has_fleet(&proxy, &["a", "b"]).await;
    assert_eq!(active(&proxy, "round-robin").await["state"], "running");
    assert_eq!((config_reloads(&proxy, "loaded").await, config_reloads(&proxy, "refused").await), (1.0, 1.0));
    assert_eq!(reloads(&proxy, MY_POLICY, "refused").await, 1.0);
    answered_by(&proxy, 2).await;

    proxy.write_config(&config("workers = 2\n", [a]));
    has_fleet(&proxy, &["a"]).await;
    config_is(&proxy, "loaded").await;
}

#[tokio::test]
async fn what_is_pinned_runs_until_what_is_pinned_next_is_compiled() {
    let pinned =
        |content: &[u8]| format!("{WITH_MY_POLICY}[plugins.pins]\nmy-policy = \"sha256:{}\"\n", sha256(content));
    let backends = three().await;
    let [a, b, c] = &backends;
    let (first_row, slow) = (picking(OK), bombs::slow_to_compile());
    let proxy = started(&pinned(&first_row), &backends, |plugins| put(plugins, MY_POLICY, &first_row)).await;
    proxy.write_plugin(MY_POLICY, &slow);
    file_is(&proxy, MY_POLICY, &slow, "refused").await;
    proxy.write_config(&config(&pinned(&slow), [b, c]));
    let held = Held::by(proxy.id()).await;
    has_fleet(&proxy, &["b", "c"]).await;
    all_go_to(&proxy, "b").await;
    // Taken back: what was pinned before is what is asked for again.
    proxy.write_config(&config(&pinned(&first_row), [a, b]));
    has_fleet(&proxy, &["a", "b"]).await;
    config_is(&proxy, "loaded").await;
    all_go_to(&proxy, "a").await;
    proxy.write_config(&config(&pinned(&slow), [a, b]));
    config_is(&proxy, "pending").await;

    drop(held);
    runs(&proxy, MY_POLICY, &slow).await;
    all_go_to(&proxy, "b").await;
    config_is(&proxy, "loaded").await;
}

#[tokio::test]
async fn who_ends_the_process_while_it_starts_waits_for_no_plugin() {
    const SOON: Duration = Duration::from_secs(5);
    for name in ["TERM", "INT"] {
        let folder = Folder::new();
        let plugins = folder.path().join("plugins");
        fs::create_dir(&plugins).expect("the folder of plugins");
        put(&plugins, MY_POLICY, &bombs::slow_to_compile());
        let text = format!("listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{WITH_MY_POLICY}");
        let path = folder.write("vision-proxy.toml", format!("{text}[[backends]]\nurl = \"http://127.0.0.1:9\"\n"));
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vision-proxy"));
        let mut process = Program::start("the proxy", command.arg("run").arg("--config").arg(&path));
        let held = Held::by(process.id()).await;
        process.signal(name);
        let told = tokio::time::Instant::now();
        assert!(process.ends().await.success(), "{}", process.output());
        assert!(told.elapsed() < SOON, "{:?}", told.elapsed());
        let (child, output) = (held.0, process.output());
        // Where it had not begun, it finds out when it does.
        drop(held);
        assert!(!output.contains("listening") && !output.contains("panicked"), "{output}");
        eventually("the child ends too", async || has_parent(child).is_none()).await;
    }
}

/// By how much the threads of this process whose names hold these words are nicer than its first.
fn nicer_by(process: u32, words: &str) -> Vec<i64> {
    let nice = |stat: String| -> (String, i64) {
        let (name, fields) = stat.rsplit_once(')').expect("a name in brackets");
        (name.to_owned(), fields.split_whitespace().nth(16).expect("how nice it is").parse().expect("a number"))
    };
    let of = |path: std::path::PathBuf| fs::read_to_string(path.join("stat")).map(nice).ok();
    let first = of(format!("/proc/{process}").into()).expect("a process").1;
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
    let all = tasks.filter_map(|task| of(task.ok()?.path()));
    all.filter(|(name, _)| name.contains(words)).map(|(_, nice)| nice - first).collect()
}

#[tokio::test]
async fn a_compiler_gives_way_to_requests() {
    let (proxy, _backends) = proxied("workers = 2\n", ["a", "b", "c"]).await;
    let of_compilers = || nicer_by(proxy.id(), "-compiler");
    assert_eq!(of_compilers(), [0, 0]);
    proxy.write_plugin("round-robin", &last_row());
    runs(&proxy, "round-robin", &last_row()).await;
    assert!(of_compilers().iter().any(|&nicer| nicer > 0), "{:?}", of_compilers());
}

#[tokio::test]
async fn a_child_whose_proxy_is_gone_compiles_nothing() {
    for (parent, is_fine) in [(std::process::id(), true), (1, false)] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vision-proxy"));
        let command = command.args(["plugin", "judge"]).env("VISION_PROXY_PARENT", parent.to_string());
        let mut child = Program::start("the child", command);
        assert_eq!(child.ends().await.success(), is_fine, "{}", child.output());
    }
}
