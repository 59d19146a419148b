//! A policy or translator that goes wrong at work costs no request: the host answers, and soon the version before.

use super::guests::*;
use super::*;

/// Enough to be found out; five faults are, with the moments between them in which the host answers alone.
const CHATS_AT_MOST: usize = 2_000;

/// What goes wrong, and the label under which it is counted.
const FAULTS: [(&str, &str); 7] = [
    ("unreachable", "trap"),
    (FOREVER, "fuel"),
    ("(return (call $answer (i32.const 0) (i32.const 3)))", "nonsense"),
    ("(return (call $answer (i32.const 3) (i32.const 200)))", "nonsense"),
    ("(return (call $answer (i32.const 9) (i32.const 0)))", "trap"),
    ("(return (i32.const 0x7ffffff0))", "trap"),
    ("(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable", "memory"),
];

async fn is_rolled_back(proxy: &Proxy, name: &str, content: &[u8]) -> bool {
    let sha256 = sha256(content);
    rows(proxy, name).await.iter().any(|row| row["state"] == "rolled-back" && row["sha256"] == sha256)
}

/// Chats one after the other until this content is rolled back; the names of the backends that answered.
async fn answered_until_rolled_back(proxy: &Proxy, content: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while !is_rolled_back(proxy, MY_POLICY, content).await {
        assert!(names.len() < CHATS_AT_MOST, "never rolled back: {:?}", rows(proxy, MY_POLICY).await);
        names.extend(answered_by(proxy, 1).await);
    }
    names
}

#[tokio::test]
async fn the_host_answers_in_turn_until_the_version_before_is_back() {
    let (proxy, _backends) = balanced_by(&last_row()).await;
    all_go_to(&proxy, "c").await;
    for (then, reason) in FAULTS {
        let wrong = wrong_at_work(then);
        let counted = faults(&proxy, MY_POLICY, reason).await;
        proxy.write_plugin(MY_POLICY, &wrong);
        let generation = runs(&proxy, MY_POLICY, &wrong).await["generation"].as_u64();
        let mut names = answered_by(&proxy, 1).await;
        let row = active(&proxy, MY_POLICY).await;
        assert_eq!((&row["sha256"], &row["faults"]), (&sha256(&wrong).into(), &1.into()), "{then}");
        assert!(row["last_error"].is_string(), "{row}");
        let is_counted = async || faults(&proxy, MY_POLICY, reason).await == counted + 1.0;
        eventually(&format!("one more fault counted: {then}"), is_counted).await;
        names.extend(answered_until_rolled_back(&proxy, &wrong).await);
        let (in_turn, after) = names.split_at(turns(&names));
        assert!(in_turn.len() >= 5, "five faults take five requests: {names:?}");
        assert!(after.iter().all(|name| name == "c"), "neither in turn nor by the version before: {names:?}");
        all_go_to(&proxy, "c").await;
        let row = active(&proxy, MY_POLICY).await;
        assert_eq!((&row["sha256"], &row["faults"]), (&sha256(&last_row()).into(), &0.into()), "{then}");
        assert!(row["generation"].as_u64() > generation, "{row}");
        let row = file_is(&proxy, MY_POLICY, &wrong, "rolled-back").await;
        assert!(row["last_error"].is_string(), "{row}");
    }
}

/// A proxy that ran a good policy, then one that traps, which it rolled back: that one's content is the last.
async fn gone_back() -> (Proxy, [Backend; 3], Vec<u8>) {
    let (proxy, backends) = balanced_by(&last_row()).await;
    all_go_to(&proxy, "c").await;
    let wrong = wrong_at_work("unreachable");
    proxy.write_plugin(MY_POLICY, &wrong);
    runs(&proxy, MY_POLICY, &wrong).await;
    answered_until_rolled_back(&proxy, &wrong).await;
    (proxy, backends, wrong)
}

#[tokio::test]
async fn a_content_that_was_rolled_back_never_runs_again() {
    let (proxy, _backends, wrong) = gone_back().await;
    let first_row = picking(OK);
    proxy.write_plugin(MY_POLICY, &first_row);
    let before = runs(&proxy, MY_POLICY, &first_row).await;
    proxy.write_plugin(MY_POLICY, &wrong);
    // Whoever tells of a file that came later has looked at this one.
    proxy.write_plugin("witness", b"no plugin");
    file_is(&proxy, "witness", b"no plugin", "refused").await;
    file_is(&proxy, MY_POLICY, &wrong, "rolled-back").await;
    all_go_to(&proxy, "a").await;
    let after = active(&proxy, MY_POLICY).await;
    assert_eq!((&after["sha256"], &after["generation"]), (&before["sha256"], &before["generation"]));
    assert_eq!(after["faults"], 0);
}

#[tokio::test]
async fn behind_a_bad_file_of_its_name_stands_the_built_in() {
    let (proxy, _backends) = proxied("workers = 2\n", ["a", "b", "c"]).await;
    let mut names = answered_by(&proxy, 2).await;
    let wrong = wrong_at_work(FOREVER);
    proxy.write_plugin("round-robin", &wrong);
    runs(&proxy, "round-robin", &wrong).await;
    while !is_rolled_back(&proxy, "round-robin", &wrong).await {
        assert!(names.len() < CHATS_AT_MOST, "never rolled back: {:?}", rows(&proxy, "round-robin").await);
        names.extend(answered_by(&proxy, 1).await);
    }
    assert_eq!(runs(&proxy, "round-robin", ROUND_ROBIN).await["source"], "built-in");
    names.extend(answered_by(&proxy, 6).await);
    assert_eq!(turns(&names), names.len(), "{names:?}");
}

#[tokio::test]
async fn faults_stay_counted_when_the_version_before_is_back() {
    let (proxy, _backends, _) = gone_back().await;
    assert!(faults(&proxy, MY_POLICY, "trap").await >= 5.0, "who looks every 15 s must see that there were faults");
}

#[tokio::test]
async fn where_a_translator_fails_the_host_finds_who_serves_the_name() {
    /// Of seven bytes each, over which the translator traps.
    fn name(number: usize) -> String {
        format!("name{number:03}")
    }
    let entries: Vec<_> = (0..200).map(|number| format!("{} = \"n\"", name(number))).collect();
    let setup = Setup::named("a").unmapped().line(&format!("models = {{ {} }}", entries.join(", ")));
    let (proxy, [_a]) = proxied("workers = 2\n", [setup]).await;
    let wrong = trapping_translator();
    proxy.write_plugin("model-map", &wrong);
    runs(&proxy, "model-map", &wrong).await;
    for number in 0..200 {
        let reply = proxy.client.chat_with(&name(number)).await.ok();
        assert_eq!(reply.header("x-vision-proxy-model"), "n");
        if is_rolled_back(&proxy, "model-map", &wrong).await {
            assert_eq!(runs(&proxy, "model-map", MODEL_MAP).await["source"], "built-in");
            proxy.client.chat_with(&name(number)).await.ok();
            return;
        }
        if number == 0 {
            assert_eq!(faults(&proxy, "model-map", "trap").await, 1.0);
        }
    }
    panic!("never rolled back: {:?}", rows(&proxy, "model-map").await);
}
