//! A file that cannot run is refused with its reason, and what ran runs on.

use std::io::Write;

use super::guests::*;
use super::*;

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
