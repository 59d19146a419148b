//! Nobody waits for a plugin: not the one who ends the process or changes the fleet, not the requests of others, and what is set to
//! work waits for no file that is not.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::bombs;
use super::guest::{RANDOM_BYTES, STREAM, TIME, WAKING};
use super::guests::*;
use super::*;

/// On a busy machine.
const SOON: Duration = Duration::from_secs(1);
/// Of one backend.
const SLOTS: u32 = 4;

/// Takes about all the fuel of a start, again and again: with 16 workers that is work for a second and more.
fn slow_to_start() -> Vec<u8> {
    let fields = "(global $left (mut i32) (i32.const 0))";
    let work = "(global.set $left (i32.const 15000000))
        (loop $more
          (global.set $left (i32.sub (global.get $left) (i32.const 1))) (br_if $more (global.get $left)))";
    Guest { fields, configure: &format!("{work} {OK}"), update: work, ..Guest::default() }.policy()
}

/// Whether the log says this of a plugin of this content.
fn is_said(proxy: &Proxy, what: &str, content: &[u8]) -> bool {
    let sha256 = sha256(content);
    proxy.output().lines().any(|line| line.contains(what) && line.contains(&sha256))
}

async fn drained(proxy: &Proxy, backend: &str) -> Value {
    proxy.admin.post_json(&format!("/api/backends/{backend}/drain"), &Value::Null).await.ok().json()
}

#[tokio::test]
async fn who_drains_a_backend_or_ends_the_process_waits_for_no_plugin() {
    let top = "workers = 16\n[timeouts]\ndrain_delay = \"0s\"\n[plugins]\npolicy = \"my-policy\"\n";
    let backends = [Setup::named("a").start().await, Setup::named("b").start().await];
    let mut proxy = started(top, &backends, |plugins| put(plugins, MY_POLICY, &last_row())).await;
    let slow = slow_to_start();
    proxy.write_plugin(MY_POLICY, &slow);
    eventually("it is about to be started", async || is_said(&proxy, "\"loaded\"", &slow)).await;
    let drained = drained(&proxy, "a").await;
    assert_eq!(drained["what"], "drained");
    assert_eq!(drained["backend"]["state"], "draining");
    assert!(!is_said(&proxy, "swapped in", &slow), "the drain waited for the plugin");
    proxy.signal("TERM");
    assert!(proxy.ends().await.success());
    assert!(!is_said(&proxy, "swapped in", &slow), "the end waited for the plugin");
}

#[tokio::test]
async fn a_backend_drained_while_a_plugin_is_started_stays_drained() {
    let top = "workers = 16\n[plugins]\npolicy = \"my-policy\"\n";
    let backends = [Setup::named("a").start().await, Setup::named("b").start().await];
    let proxy = started(top, &backends, |plugins| put(plugins, MY_POLICY, &last_row())).await;
    let slow = slow_to_start();
    proxy.write_plugin(MY_POLICY, &slow);
    eventually("it is about to be started", async || is_said(&proxy, "\"loaded\"", &slow)).await;
    drained(&proxy, "a").await;
    runs(&proxy, MY_POLICY, &slow).await;
    assert_eq!(proxy.backend("a").await["state"], "draining");
    all_go_to(&proxy, "b").await;
}

#[tokio::test]
async fn no_request_waits_for_a_guest_that_means_ill() {
    let backends = ["a", "b", "c"].map(|name| Setup::named(name).slots(SLOTS));
    let (proxy, backends) = proxied("workers = 2\n", backends).await;
    let times = Arc::<Mutex<Vec<Duration>>>::default();
    let noted = Arc::clone(&times);
    let load = Load::by(&proxy, 8, move |client| {
        let noted = Arc::clone(&noted);
        async move {
            let asked = Instant::now();
            client.chat().await.ok();
            noted.lock().expect("no poison").push(asked.elapsed());
        }
    });
    let ask_without_end = "(loop $more (call $ask) (br $more))";
    let is_at_work = "(i64.lt_u (i64.sub (local.get $sequence) (i64.const 1)) (i64.const 1000000))";
    for ask in [RANDOM_BYTES, TIME, WAKING, STREAM] {
        let pick = format!("(if {is_at_work} (then {ask_without_end})) {OK}");
        let wrong = Guest { ask, pick: &pick, ..Guest::default() }.policy();
        proxy.write_plugin("round-robin", &wrong);
        file_is(&proxy, "round-robin", &wrong, "rolled-back").await;
        load.answers_more(50).await;
    }
    load.ends_well().await;
    let mut times = std::mem::take(&mut *times.lock().expect("no poison"));
    times.sort_unstable();
    let late = times[times.len() * 99 / 100];
    assert!(late < SOON, "one in a hundred of {} chats took {late:?} or longer", times.len());
    for backend in &backends {
        assert!(backend.most_in_flight() <= SLOTS as usize, "{} at once", backend.most_in_flight());
    }
    proxy.falls_idle().await;
}

/// Files that nobody set to work, each of which keeps the compiler busy for some seconds.
fn bombs_in(plugins: &Path) {
    (0..4).for_each(|at| put(plugins, &format!("aa{at}"), &bombs::branches(1_500 + at)));
}

/// How many of them are not compiled yet.
async fn bombs_left(proxy: &Proxy) -> usize {
    let plugins = proxy.admin_json("/api/plugins").await;
    let rows = plugins["plugins"].as_array().expect("a list of plugins");
    rows.iter().filter(|row| row["state"] == "pending").count()
}

#[tokio::test]
async fn what_is_set_to_work_waits_for_no_file_that_is_not() {
    let backends = [Setup::named("a").start().await, Setup::named("b").start().await];
    let proxy = started(WITH_MY_POLICY, &backends, |plugins| {
        bombs_in(plugins);
        put(plugins, MY_POLICY, &last_row());
        put(plugins, "zz", &picking(OK));
    })
    .await;
    assert!(bombs_left(&proxy).await >= 2, "the start waited for files that nobody set to work");
    all_go_to(&proxy, "b").await;
    proxy.write_config(&config("workers = 2\n[plugins]\npolicy = \"zz\"\n", &backends));
    runs(&proxy, "zz", &picking(OK)).await;
    assert!(bombs_left(&proxy).await >= 1, "the reload waited for files that nobody set to work");
    all_go_to(&proxy, "a").await;
}
