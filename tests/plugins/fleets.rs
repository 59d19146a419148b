//! A plugin that cannot bear another fleet keeps no fleet from changing.

use serde_json::json;

use super::guests::*;
use super::*;

/// Picks the last row, but traps when it is told of one backend and no more.
fn lonely() -> Vec<u8> {
    let update = "(if (i32.eq (local.get 4) (i32.const 1)) (then unreachable))";
    Guest { pick: LAST_ROW, update, ..Guest::default() }.policy()
}

/// Serves everybody's model under its name, but traps when it is told of one backend and no more.
fn lonely_translator() -> Vec<u8> {
    let update = "(if (i32.eq (local.get 4) (i32.const 1)) (then unreachable))";
    let resolve = "(call $route (i32.const 1) (i32.const 1408) (i32.const 7))";
    Guest { resolve, update, ..Guest::default() }.translator()
}

/// Returns when the fleet is of these alone.
async fn is_fleet(proxy: &Proxy, names: &[&str]) {
    let of_fleet = async || {
        let backends = proxy.backends().await;
        backends.len() == names.len()
            && names.iter().all(|name| backends.iter().any(|backend| backend["name"] == *name))
    };
    eventually(&format!("the fleet is {names:?}"), of_fleet).await;
}

/// What must be told of a file that could not be started again.
async fn is_told(proxy: &Proxy, name: &str, content: &[u8]) {
    let row = file_is(proxy, name, content, "rolled-back").await;
    let why = row["last_error"].as_str().expect("a reason");
    assert!(why.contains("update: ") && why.contains("unreachable"), "{row}");
    assert_eq!(refusals(proxy, name, "update").await, 1.0);
    let sha256 = sha256(content);
    let is_logged = |line: &str| line.contains("rolled back") && line.contains(&sha256) && line.contains("unreachable");
    eventually("it is in the log", async || proxy.output().lines().any(is_logged)).await;
}

#[tokio::test]
async fn a_policy_that_cannot_bear_another_fleet_gives_way_to_the_version_before() {
    let (proxy, [a, b, c]) = balanced_by(&picking(OK)).await;
    proxy.write_plugin(MY_POLICY, &lonely());
    runs(&proxy, MY_POLICY, &lonely()).await;
    all_go_to(&proxy, "c").await;
    let load = Load::of(&proxy, 2);
    proxy.write_config(&config(WITH_MY_POLICY, [&b]));
    is_fleet(&proxy, &["b"]).await;
    runs(&proxy, MY_POLICY, &picking(OK)).await;
    is_told(&proxy, MY_POLICY, &lonely()).await;
    proxy.write_config(&config(WITH_MY_POLICY, [&a, &b, &c]));
    is_fleet(&proxy, &["a", "b", "c"]).await;
    all_go_to(&proxy, "a").await;
    load.ends_well().await;
}

#[tokio::test]
async fn where_no_version_was_before_the_built_in_stands_in() {
    let (proxy, [a, b, c]) = balanced_by(&lonely()).await;
    let load = Load::of(&proxy, 2);
    // By the admin API too: the fleet of the configuration is of one, and then of two.
    proxy.write_config(&config(WITH_MY_POLICY, [&b]));
    is_fleet(&proxy, &["b"]).await;
    is_told(&proxy, MY_POLICY, &lonely()).await;
    assert_eq!(active(&proxy, "round-robin").await["state"], "running");
    let registered = json!({ "url": format!("http://{}", a.address), "models": { MODEL: NATIVE } });
    whole(proxy.admin.request("PUT", "/api/backends/a").body(registered.to_string())).await;
    is_fleet(&proxy, &["a", "b"]).await;
    proxy.write_config(&config(WITH_MY_POLICY, [&a, &b, &c]));
    is_fleet(&proxy, &["a", "b", "c"]).await;
    load.ends_well().await;
    all_take_turns(&proxy).await;
    // A good file of the name takes over.
    proxy.write_plugin(MY_POLICY, &last_row());
    runs(&proxy, MY_POLICY, &last_row()).await;
    all_go_to(&proxy, "c").await;
}

#[tokio::test]
async fn a_translator_that_cannot_bear_another_fleet_gives_way_too() {
    let backends = [Setup::named("a").start().await, Setup::named("b").start().await];
    let top = "workers = 2\n[plugins]\ntranslator = \"my-names\"\n";
    let proxy = started(top, &backends, |plugins| put(plugins, "my-names", &lonely_translator())).await;
    let [a, _b] = &backends;
    assert_eq!(proxy.client.chat().await.ok().header("x-vision-proxy-model"), RENAMED);
    proxy.write_config(&config(top, [a]));
    is_fleet(&proxy, &["a"]).await;
    is_told(&proxy, "my-names", &lonely_translator()).await;
    assert_eq!(active(&proxy, "model-map").await["state"], "running");
    assert_eq!(proxy.client.chat().await.ok().header("x-vision-proxy-model"), NATIVE);
}

#[tokio::test]
async fn settings_that_the_running_plugin_cannot_bear_are_refused_with_all_else() {
    // What it is told of its settings grows with them.
    let configure = "(if (i32.gt_u (local.get 3) (i32.const 2)) (then unreachable)) (global.get $ok)";
    let plain = Guest { pick: LAST_ROW, configure, ..Guest::default() }.policy();
    let (proxy, [a, b, _c]) = balanced_by(&plain).await;
    let with_settings = format!("{WITH_MY_POLICY}[plugins.settings.my-policy]\nhow = \"new\"\n");
    proxy.write_config(&config(&with_settings, [&a, &b]));
    let is_refused = async || proxy.admin_json("/api/config").await["state"] == "refused";
    eventually("the configuration is refused", is_refused).await;
    is_fleet(&proxy, &["a", "b", "c"]).await;
    runs(&proxy, MY_POLICY, &plain).await;
    all_go_to(&proxy, "c").await;
}
