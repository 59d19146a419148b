//! Plugins are exchanged under load, and the worst of them costs no request.

mod bombs;
mod compiling;
mod decisions;
mod faults;
mod fleets;
mod guest;
mod guests;
mod hostile;
mod patience;
mod refusals;
mod reload;
mod signatures;

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::wait::patiently;
use crate::support::*;

/// The policy of most tests here, which is no built-in one.
const MY_POLICY: &str = "my-policy";
/// What is compiled gives way to everything else: where others use up the machine it has a fiftieth of a core.
const COMPILED_WITHIN: Duration = Duration::from_secs(90);
const WITH_MY_POLICY: &str = "workers = 2\n[plugins]\npolicy = \"my-policy\"\n";

/// Starts a proxy before these backends, with what `fill` puts into its folder `plugins`.
async fn started(top: &str, backends: &[Backend], fill: impl FnOnce(&Path)) -> Proxy {
    let folder = Folder::new();
    let plugins = folder.path().join("plugins");
    std::fs::create_dir(&plugins).expect("the folder of plugins");
    fill(&plugins);
    let ports = "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    let path = folder.write("vision-proxy.toml", format!("{ports}{}", config(top, backends)));
    Proxy::run(&["--config", path.to_str().expect("a path of text")], folder).await
}

/// Backends `a`, `b` and `c`, and a proxy before them that runs this content as its policy `my-policy`.
async fn balanced_by(content: &[u8]) -> (Proxy, [Backend; 3]) {
    let backends = [Setup::named("a").start().await, Setup::named("b").start().await, Setup::named("c").start().await];
    let proxy = started(WITH_MY_POLICY, &backends, |plugins| put(plugins, MY_POLICY, content)).await;
    runs(&proxy, MY_POLICY, content).await;
    (proxy, backends)
}

fn put(folder: &Path, name: &str, content: &[u8]) {
    std::fs::write(folder.join(name).with_extension("wasm"), content).expect("write a plugin");
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `/api/plugins` says under this name, of versions and of files that are none.
async fn rows(proxy: &Proxy, name: &str) -> Vec<Value> {
    let plugins = proxy.admin_json("/api/plugins").await;
    let rows = plugins["plugins"].as_array().expect("a list of plugins");
    rows.iter().filter(|row| row["name"] == name).cloned().collect()
}

/// Of the version that answers requests; null where none of this name does.
async fn active(proxy: &Proxy, name: &str) -> Value {
    rows(proxy, name).await.into_iter().find(|row| row["active"] == true).unwrap_or_default()
}

/// Returns when this content answers requests under this name; what is said of it then.
async fn runs(proxy: &Proxy, name: &str, content: &[u8]) -> Value {
    let sha256 = sha256(content);
    let is_it = async || active(proxy, name).await["sha256"] == sha256;
    patiently(COMPILED_WITHIN, &format!("{name} runs {sha256}"), is_it).await;
    active(proxy, name).await
}

/// Returns when the file of this content is in this state; what is said of it then.
async fn file_is(proxy: &Proxy, name: &str, content: &[u8], state: &str) -> Value {
    let sha256 = sha256(content);
    let is_it = |row: &Value| row["state"] == state && (row["sha256"] == sha256 || row["sha256"].is_null());
    let said = async || rows(proxy, name).await.into_iter().find(is_it);
    patiently(COMPILED_WITHIN, &format!("{name} of {sha256} is {state}"), async || said().await.is_some()).await;
    said().await.expect("what was said a moment ago")
}

/// Swaps or refusals of this name so far.
async fn reloads(proxy: &Proxy, name: &str, result: &str) -> f64 {
    let labels = [("plugin", name), ("result", result)];
    proxy.metrics().await.value("vision_proxy_plugin_reloads_total", &labels).unwrap_or_default()
}

/// Refusals of this name at this stage so far.
async fn refusals(proxy: &Proxy, name: &str, stage: &str) -> f64 {
    let labels = [("plugin", name), ("stage", stage)];
    proxy.metrics().await.value("vision_proxy_plugin_refusals_total", &labels).unwrap_or_default()
}

/// Faults of this name and reason so far.
async fn faults(proxy: &Proxy, name: &str, reason: &str) -> f64 {
    let labels = [("plugin", name), ("reason", reason)];
    proxy.metrics().await.value("vision_proxy_plugin_faults_total", &labels).unwrap_or_default()
}

/// The names of the backends that answer so many chats, one after the other.
async fn answered_by(proxy: &Proxy, chats: usize) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..chats {
        names.push(proxy.client.chat().await.ok().backend().to_owned());
    }
    names
}

async fn all_go_to(proxy: &Proxy, backend: &str) {
    assert_eq!(answered_by(proxy, 4).await, [backend; 4]);
}

/// How many of these, from the first on, are `a`, `b` and `c` in turn, whoever was first.
fn turns(names: &[String]) -> usize {
    let next = |name: &str| match name {
        "a" => "b",
        "b" => "c",
        _ => "a",
    };
    1 + names.windows(2).take_while(|pair| pair[1] == next(&pair[0])).count()
}

async fn all_take_turns(proxy: &Proxy) {
    let names = answered_by(proxy, 7).await;
    assert_eq!(turns(&names), 7, "{names:?}");
}
