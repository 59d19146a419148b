//! A file dropped into the folder takes over between two requests; deleted, it leaves in order.

use std::os::unix::fs::symlink;

use super::guests::*;
use super::*;

#[tokio::test]
async fn a_policy_replaced_again_and_again_under_load_loses_no_request() {
    let first_row = picking(OK);
    let last_row = last_row();
    let (proxy, _backends) = balanced_by(&last_row).await;
    let load = Load::of(&proxy, 4);
    let mut generation = active(&proxy, MY_POLICY).await["generation"].as_u64();
    for _ in 0..6 {
        for (content, all_to) in
            [(ROUND_ROBIN, None), (&first_row, Some("a")), (LEAST_BUSY, None), (&last_row, Some("c"))]
        {
            proxy.write_plugin(MY_POLICY, content);
            let row = runs(&proxy, MY_POLICY, content).await;
            assert!(row["generation"].as_u64() > generation, "{row} after generation {generation:?}");
            generation = row["generation"].as_u64();
            if let Some(backend) = all_to {
                all_go_to(&proxy, backend).await;
            }
            load.answers_more(5).await;
        }
    }
    load.ends_well().await;
    assert_eq!(reloads(&proxy, MY_POLICY, "swapped").await, 24.0);
    assert_eq!(reloads(&proxy, MY_POLICY, "refused").await, 0.0);
    proxy.falls_idle().await;
}

#[tokio::test]
async fn files_that_come_faster_than_they_are_taken_end_with_the_last() {
    let (proxy, _backends) = balanced_by(ROUND_ROBIN).await;
    let load = Load::of(&proxy, 2);
    let last_row = last_row();
    for _ in 0..20 {
        proxy.write_plugin(MY_POLICY, &picking(OK));
        proxy.write_plugin(MY_POLICY, &last_row);
    }
    runs(&proxy, MY_POLICY, &last_row).await;
    all_go_to(&proxy, "c").await;
    load.ends_well().await;
}

#[tokio::test]
async fn a_file_takes_the_place_of_a_built_in_until_it_is_deleted() {
    let (proxy, _backends) = proxied("", ["a", "b", "c"]).await;
    let load = Load::of(&proxy, 2);
    let built_in = active(&proxy, "round-robin").await;
    assert_eq!(built_in["source"], "built-in");
    proxy.write_plugin("round-robin", &last_row());
    let row = runs(&proxy, "round-robin", &last_row()).await;
    assert_eq!((&row["source"], &row["state"]), (&"file".into(), &"running".into()));
    all_go_to(&proxy, "c").await;
    std::fs::remove_file(proxy.plugins_dir().join("round-robin.wasm")).expect("delete the file");
    let row = runs(&proxy, "round-robin", ROUND_ROBIN).await;
    assert_eq!((&row["source"], &row["sha256"]), (&"built-in".into(), &built_in["sha256"]));
    assert!(row["generation"].as_u64() > built_in["generation"].as_u64(), "{row}");
    load.ends_well().await;
    all_take_turns(&proxy).await;
}

#[tokio::test]
async fn a_deleted_file_leaves_what_is_loaded_and_says_so() {
    let (proxy, _backends) = balanced_by(&last_row()).await;
    let before = active(&proxy, MY_POLICY).await;
    std::fs::remove_file(proxy.plugins_dir().join("my-policy.wasm")).expect("delete the file");
    let is_told = async || active(&proxy, MY_POLICY).await["last_error"] == "its file was deleted";
    eventually("it is told that the file is gone", is_told).await;
    all_go_to(&proxy, "c").await;
    let after = active(&proxy, MY_POLICY).await;
    assert_eq!((&after["sha256"], &after["generation"]), (&before["sha256"], &before["generation"]));
    proxy.write_plugin(MY_POLICY, ROUND_ROBIN);
    runs(&proxy, MY_POLICY, ROUND_ROBIN).await;
    all_take_turns(&proxy).await;
}

#[tokio::test]
async fn a_renamed_file_is_another_plugin() {
    let (proxy, _backends) = balanced_by(&last_row()).await;
    let plugins = proxy.plugins_dir();
    std::fs::rename(plugins.join("my-policy.wasm"), plugins.join("other.wasm")).expect("rename the file");
    let is_told = async || active(&proxy, MY_POLICY).await["last_error"] == "its file was deleted";
    eventually("it is told that the file is gone", is_told).await;
    file_is(&proxy, "other", &last_row(), "loaded").await;
    all_go_to(&proxy, "c").await;
}

/// The translator `my-names`, whose settings give the model of all backends this public name.
fn naming(public: &str) -> String {
    format!(
        "workers = 2\n[plugins]\ntranslator = \"my-names\"\n[plugins.settings.my-names.models]\n{public} = [\"{NATIVE}\"]\n"
    )
}

async fn named_by_my_names() -> (Proxy, [Backend; 2]) {
    let backends = [Setup::named("a").unmapped().start().await, Setup::named("b").unmapped().start().await];
    let proxy = started(&naming(MODEL), &backends, |plugins| put(plugins, "my-names", MODEL_MAP)).await;
    (proxy, backends)
}

#[tokio::test]
async fn a_translator_replaced_under_load_loses_no_request() {
    let (proxy, [a, b]) = named_by_my_names().await;
    let load = Load::of(&proxy, 4);
    let renaming = renaming();
    for _ in 0..4 {
        proxy.write_plugin("my-names", &renaming);
        runs(&proxy, "my-names", &renaming).await;
        for _ in 0..3 {
            let reply = proxy.client.chat().await.ok();
            assert_eq!((reply.backend(), reply.header("x-vision-proxy-model")), ("b", RENAMED));
            assert_eq!(reply.json()["model"], MODEL);
        }
        proxy.write_plugin("my-names", MODEL_MAP);
        runs(&proxy, "my-names", MODEL_MAP).await;
        assert_eq!(proxy.client.chat().await.ok().header("x-vision-proxy-model"), NATIVE);
        load.answers_more(5).await;
    }
    load.ends_well().await;
    let sent = |backend: &Backend, native: &str| backend.requests().iter().any(|sent| sent.json()["model"] == native);
    assert!(sent(&b, RENAMED) && sent(&b, NATIVE) && sent(&a, NATIVE) && !sent(&a, RENAMED));
}

#[tokio::test]
async fn settings_reach_the_plugin_they_are_for() {
    let (proxy, backends) = named_by_my_names().await;
    proxy.client.chat_with(MODEL).await.ok();
    proxy.write_config(&config(&naming("another"), &backends));
    eventually("the new name is served", async || proxy.client.chat_with("another").await.status == 200).await;
    proxy.client.chat_with(MODEL).await.refused(404, "model_not_found");
}

/// Puts a link there in one step, in place of whatever link there was.
fn link(to: &str, at: &Path) {
    let draft = at.with_file_name("link.draft");
    symlink(to, &draft).expect("make a link");
    std::fs::rename(draft, at).expect("rename a link");
}

fn folder_with_my_policy(at: &Path, content: &[u8]) {
    std::fs::create_dir(at).expect("make a folder");
    put(at, MY_POLICY, content);
}

#[tokio::test]
async fn a_swapped_link_is_noticed_as_kubernetes_swaps_it() {
    let backends = [Setup::named("a").start().await, Setup::named("b").start().await];
    let proxy = started(WITH_MY_POLICY, &backends, |plugins| {
        folder_with_my_policy(&plugins.join("..v1"), &picking(OK));
        link("..v1", &plugins.join("..data"));
        link("..data/my-policy.wasm", &plugins.join("my-policy.wasm"));
    })
    .await;
    all_go_to(&proxy, "a").await;
    let plugins = proxy.plugins_dir();
    folder_with_my_policy(&plugins.join("..v2"), &last_row());
    link("..v2", &plugins.join("..data"));
    std::fs::remove_dir_all(plugins.join("..v1")).expect("delete the old version");
    runs(&proxy, MY_POLICY, &last_row()).await;
    all_go_to(&proxy, "b").await;
}

#[tokio::test]
async fn a_folder_that_is_a_link_may_be_swapped() {
    let backends = [Setup::named("a").start().await, Setup::named("b").start().await];
    let top = format!("{WITH_MY_POLICY}dir = \"plugins/live\"\n");
    let proxy = started(&top, &backends, |plugins| {
        folder_with_my_policy(&plugins.join("one"), &picking(OK));
        folder_with_my_policy(&plugins.join("two"), &last_row());
        link("one", &plugins.join("live"));
    })
    .await;
    all_go_to(&proxy, "a").await;
    link("two", &proxy.plugins_dir().join("live"));
    runs(&proxy, MY_POLICY, &last_row()).await;
    all_go_to(&proxy, "b").await;
    // The folder behind the link is watched as the first one was.
    put(&proxy.plugins_dir().join("two"), MY_POLICY, ROUND_ROBIN);
    runs(&proxy, MY_POLICY, ROUND_ROBIN).await;
}
