//! `/api/decisions` says why each request went where it went.

use serde_json::{Value, json};

use crate::support::*;

/// The last decision.
async fn last(proxy: &Proxy) -> Value {
    proxy.admin_json("/api/decisions?limit=1").await["decisions"][0].clone()
}

#[tokio::test]
async fn a_request_is_explained() {
    let top = "[plugins]\npolicy = \"least-busy\"\n";
    let (proxy, [_a, _b]) = proxied(top, [Setup::named("a").slots(3), Setup::named("b").slots(4)]).await;
    let reply = proxy.client.chat().await.ok();
    eventually("it is over", async || last(&proxy).await["outcome"] == "answered").await;
    let told = last(&proxy).await;
    assert_eq!(told["request_id"], reply.header("x-request-id"));
    assert_eq!((&told["model"], &told["status"], &told["cost"]), (&MODEL.into(), &200.into(), &1.into()));
    assert_eq!((&told["policy"], &told["queued_ms"]), (&"least-busy".into(), &Value::Null));
    let pick = &told["picks"][0];
    let slots: Vec<_> = pick["candidates"].as_array().expect("candidates").iter().map(|one| &one["slots"]).collect();
    assert_eq!(slots, [&json!(3), &json!(4)]);
    assert_eq!(pick["candidates"][1]["columns"]["in-flight"], 0, "what the policy was given: {pick}");
    assert_eq!((&pick["backend"], &pick["policy_said"]), (&reply.backend().into(), &reply.backend().into()));
    assert_eq!((&pick["outcome"], &pick["left_out"]), (&"answered".into(), &json!([])));
    assert!(told["total_ms"].as_f64() >= pick["ms"].as_f64() && pick["ms"].as_f64() > Some(0.0), "{told}");
    let id = reply.header("x-request-id");
    let one = proxy.admin_json(&format!("/api/decisions?request_id={id}")).await;
    assert_eq!(one["decisions"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn it_says_who_was_left_out_and_why() {
    let setups = [Setup::named("full").slots(1), Setup::named("gone"), Setup::named("fails"), Setup::named("serves")];
    let (proxy, [full, gone, fails, _serves]) = proxied("", setups).await;
    let gate = Gate::closed();
    full.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
    let held = proxy.client.begin_chat();
    gate.reached_by(1).await;
    gone.stop().await;
    proxy.waits_until("gone", "down").await;
    fails.always(Answer::error(500));
    let with_retry = async || {
        proxy.client.chat().await.ok();
        last(&proxy).await["picks"].as_array().is_some_and(|picks| picks.len() == 2)
    };
    eventually("a request was tried twice", with_retry).await;
    let told = last(&proxy).await;
    assert_eq!((&told["picks"][0]["backend"], &told["picks"][0]["outcome"]), (&"fails".into(), &"server_error".into()));
    assert_eq!(told["picks"][1]["backend"], "serves");
    let left_out = |backend: &str, why: &str| json!({"backend": backend, "why": why});
    let expected = json!([left_out("full", "full"), left_out("gone", "down"), left_out("fails", "tried")]);
    assert_eq!(told["picks"][1]["left_out"], expected);
    gate.open();
    held.reply().await.ok();
}

#[tokio::test]
async fn waiting_refusal_and_leaving_are_told() {
    let (proxy, [backend]) = proxied("[queue]\nsize = 1\n", [Setup::named("a").slots(1)]).await;
    let gate = Gate::closed();
    backend.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
    let held = proxy.client.begin_chat();
    gate.reached_by(1).await;
    let leaves = proxy.client.begin_chat();
    proxy.queues(1).await;
    proxy.client.chat().await.refused(429, "backends_saturated");
    let refused = last(&proxy).await;
    assert_eq!((&refused["status"], &refused["outcome"]), (&429.into(), &"refused".into()), "{refused}");
    assert_eq!(refused["picks"][0]["left_out"], json!([{"backend": "a", "why": "full"}]));
    leaves.leave().await;
    let gone = async || {
        let all = proxy.admin_json("/api/decisions").await;
        all["decisions"].as_array().expect("decisions").iter().any(|one| one["outcome"] == "client_gone")
    };
    eventually("the one that left is told of", gone).await;
    let waits = proxy.client.begin_chat();
    proxy.queues(1).await;
    gate.open();
    held.reply().await.ok();
    waits.reply().await.ok();
    let waited = last(&proxy).await;
    assert!(waited["queued_ms"].as_f64() > Some(0.0) && waited["picks"][1]["backend"] == "a", "{waited}");
}

#[tokio::test]
async fn a_request_whose_fleet_changes_while_it_waits_is_told_of_twice_and_ends_twice() {
    let (proxy, [a]) = proxied("", [Setup::named("a").slots(1)]).await;
    let gate = Gate::closed();
    a.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
    let held = proxy.client.begin_chat();
    gate.reached_by(1).await;
    let waits = proxy.client.begin_chat();
    proxy.queues(1).await;
    let b = Setup::named("b").start().await;
    proxy.write_config(&config("", [&b]));
    let reply = waits.reply().await.ok();
    assert_eq!(reply.backend(), "b");
    gate.open();
    held.reply().await.ok();
    let outcomes = async || {
        let id = reply.header("x-request-id");
        let told = proxy.admin_json(&format!("/api/decisions?request_id={id}")).await;
        let told = told["decisions"].as_array().expect("decisions").clone();
        let mut outcomes: Vec<_> = told.iter().map(|one| one["outcome"].as_str().unwrap_or("").to_owned()).collect();
        outcomes.sort();
        outcomes
    };
    eventually("both are over", async || outcomes().await == ["answered", "stranded"]).await;
}

#[tokio::test]
async fn the_last_thousand_are_kept() {
    let (proxy, [_a]) = proxied("workers = 2\n", ["a"]).await;
    in_parallel(8, |_| {
        let client = proxy.another_client();
        async move {
            for _ in 0..150 {
                client.chat().await.ok();
            }
        }
    })
    .await;
    let all = proxy.admin_json("/api/decisions").await;
    assert_eq!(all["decisions"].as_array().map(Vec::len), Some(1_000));
}
