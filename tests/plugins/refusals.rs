//! A file that cannot run is refused with its reason, and what ran runs on.

use std::io::Write;

use super::guests::*;
use super::*;

/// Bad files: what they are, the stage at which they are refused, and a word of the reason.
fn broken() -> Vec<(Vec<u8>, &'static str, &'static str)> {
    let importing = |imports| Guest { imports, ..Guest::default() }.policy();
    let configured = |configure| Guest { configure, ..Guest::default() }.policy();
    vec![
        (b"(component)".to_vec(), "format", "text"),
        (b"#!/bin/sh\nexit 1\n".to_vec(), "format", "not WebAssembly"),
        (wat::parse_str("(module)").expect("a module"), "format", "core module"),
        (b"\0asm\x0d\0\x01\0\x63\x02\xff\xff".to_vec(), "compile", ""),
        (wat::parse_str("(component)").expect("a component"), "kind", "exports neither"),
        (Guest::default().translator(), "kind", "translator"),
        (importing(r#"(import "wasi:sockets/tcp@0.2.0" (instance))"#), "imports", "wasi:sockets/tcp@0.2.0"),
        (importing(r#"(import "acme:keys/store" (instance))"#), "imports", "acme:keys/store"),
        (Guest { version: "0.2.0", ..Guest::default() }.policy(), "interface", "built for 0.2"),
        (configured("unreachable"), "configure", ""),
        (configured(&format!("{FOREVER} unreachable")), "configure", ""),
        (configured("(call $column (i32.const 1088) (i32.const 14))"), "configure", "no-such-column"),
        (picking("unreachable"), "trial", ""),
        (picking(&format!("{FOREVER} unreachable")), "trial", ""),
        (picking("(call $answer (i32.const 0) (i32.const 8))"), "trial", "row 8"),
        (picking("(call $answer (i32.const 3) (i32.const 200))"), "trial", "status 200"),
    ]
}

#[tokio::test]
async fn a_broken_file_is_refused_with_its_reason_and_costs_no_request() {
    let (proxy, _backends) = balanced_by(&last_row()).await;
    let load = Load::of(&proxy, 2);
    let before = active(&proxy, MY_POLICY).await;
    for (number, (content, stage, word)) in broken().iter().enumerate() {
        proxy.write_plugin(MY_POLICY, content);
        let row = file_is(&proxy, MY_POLICY, content, "refused").await;
        let reason = row["last_error"].as_str().unwrap_or_default();
        assert!(reason.starts_with(&format!("{stage}: ")) && reason.contains(word), "{stage}, {word:?}: {row}");
        assert_eq!(row["active"], false);
        assert_eq!(reloads(&proxy, MY_POLICY, "refused").await, (number + 1) as f64, "{row}");
        let now = active(&proxy, MY_POLICY).await;
        assert_eq!((&now["sha256"], &now["generation"]), (&before["sha256"], &before["generation"]), "{stage}");
        assert_eq!((&now["state"], &now["faults"]), (&"running".into(), &0.into()));
        all_go_to(&proxy, "c").await;
    }
    proxy.write_plugin(MY_POLICY, ROUND_ROBIN);
    runs(&proxy, MY_POLICY, ROUND_ROBIN).await;
    load.ends_well().await;
    assert_eq!(rows(&proxy, MY_POLICY).await.len(), 1, "a good file leaves nothing of the bad ones");
}

#[tokio::test]
async fn a_file_still_being_written_is_waited_for() {
    let (proxy, _backends) = balanced_by(&last_row()).await;
    let load = Load::of(&proxy, 2);
    let (begin, end) = ROUND_ROBIN.split_at(ROUND_ROBIN.len() - 1);
    put(&proxy.plugins_dir(), MY_POLICY, begin);
    file_is(&proxy, MY_POLICY, begin, "pending").await;
    all_go_to(&proxy, "c").await;
    let file = std::fs::File::options().append(true).open(proxy.plugins_dir().join("my-policy.wasm"));
    file.and_then(|mut file| file.write_all(end)).expect("write the rest");
    runs(&proxy, MY_POLICY, ROUND_ROBIN).await;
    load.ends_well().await;
    assert_eq!(reloads(&proxy, MY_POLICY, "refused").await, 0.0, "being written is no fault");
}

#[tokio::test]
async fn a_file_that_stays_incomplete_is_refused() {
    let (proxy, _backends) = balanced_by(&last_row()).await;
    let begin = &ROUND_ROBIN[..ROUND_ROBIN.len() - 1];
    proxy.write_plugin(MY_POLICY, begin);
    file_is(&proxy, MY_POLICY, begin, "pending").await;
    let row = file_is(&proxy, MY_POLICY, begin, "refused").await;
    assert!(row["last_error"].as_str().is_some_and(|reason| reason.starts_with("truncated: ")), "{row}");
    all_go_to(&proxy, "c").await;
}

#[tokio::test]
async fn only_the_pinned_content_runs() {
    let pinned =
        |content: &[u8]| format!("{WITH_MY_POLICY}[plugins.pins]\nmy-policy = \"sha256:{}\"\n", sha256(content));
    let backends = [Setup::named("a").start().await, Setup::named("b").start().await];
    let proxy = started(&pinned(&last_row()), &backends, |plugins| put(plugins, MY_POLICY, &last_row())).await;
    let first_row = picking(OK);
    proxy.write_plugin(MY_POLICY, &first_row);
    let row = file_is(&proxy, MY_POLICY, &first_row, "refused").await;
    let reason = row["last_error"].as_str().expect("a reason");
    assert!(reason.starts_with("pin: ") && reason.contains(&sha256(&first_row)), "{row}");
    assert_eq!(reloads(&proxy, MY_POLICY, "refused").await, 1.0);
    all_go_to(&proxy, "b").await;
    proxy.write_config(&config(&pinned(&first_row), &backends));
    runs(&proxy, MY_POLICY, &first_row).await;
    all_go_to(&proxy, "a").await;
}

#[tokio::test]
async fn a_refused_file_stands_in_the_way_of_no_good_configuration() {
    let (proxy, [a, b, _c]) = balanced_by(&last_row()).await;
    let refusing = Guest { configure: "unreachable", ..Guest::default() }.policy();
    proxy.write_plugin(MY_POLICY, &refusing);
    file_is(&proxy, MY_POLICY, &refusing, "refused").await;
    // New settings: the file may be fit for them, so it is tried again, and is not.
    let with_settings = format!("{WITH_MY_POLICY}[plugins.settings.my-policy]\nhow = \"new\"\n");
    proxy.write_config(&config(&with_settings, [&a, &b]));
    eventually("the new fleet is in place", async || proxy.backends().await.len() == 2).await;
    assert_eq!(active(&proxy, MY_POLICY).await["sha256"], sha256(&last_row()));
    all_go_to(&proxy, "b").await;
}
