//! What a policy may say besides a row.

use super::guests::*;
use super::*;

/// The answers behind this gate.
fn held_at(gate: &Gate) -> Answer {
    Answer::json(200, completion(NATIVE).to_string()).behind(gate)
}

#[tokio::test]
async fn where_the_policy_abstains_the_backends_take_turns() {
    let (proxy, _backends) = balanced_by(&picking(ABSTAIN)).await;
    all_take_turns(&proxy).await;
    let row = active(&proxy, MY_POLICY).await;
    assert_eq!((&row["calls"], &row["faults"]), (&7.into(), &0.into()), "an opinion is not owed");
}

#[tokio::test]
async fn the_policy_may_refuse_a_request() {
    let (proxy, backends) = balanced_by(&picking(TEAPOT)).await;
    proxy.client.chat().await.refused(418, "rejected_by_policy");
    assert!(backends.iter().all(|backend| backend.request_count() == 0));
    assert_eq!(active(&proxy, MY_POLICY).await["faults"], 0);
    proxy.falls_idle().await;
}

/// Backend `a` with one slot, which a chat holds at the gate, and `b`, which the policy will not take.
async fn waiting_for_the_first() -> (Proxy, [Backend; 2], Gate, Pending) {
    let backends = [Setup::named("a").slots(1).start().await, Setup::named("b").start().await];
    let top = WITH_MY_POLICY.to_owned() + "[capacity]\npoll_interval = \"50ms\"\n";
    let proxy = started(&top, &backends, |plugins| put(plugins, MY_POLICY, &only_the_first_backend())).await;
    let gate = Gate::closed();
    backends[0].always(held_at(&gate));
    let first = proxy.client.begin_chat();
    gate.reached_by(1).await;
    (proxy, backends, gate, first)
}

#[tokio::test]
async fn the_policy_may_rather_wait() {
    let (proxy, [a, b], gate, first) = waiting_for_the_first().await;
    let second = proxy.client.begin_chat();
    proxy.queues(1).await;
    gate.open();
    assert_eq!(first.reply().await.ok().backend(), "a");
    assert_eq!(second.reply().await.ok().backend(), "a");
    assert_eq!((a.request_count(), b.request_count()), (2, 0));
    proxy.falls_idle().await;
}

#[tokio::test]
async fn requests_that_the_policy_holds_are_asked_for_at_events_only() {
    let (proxy, [_a, b], gate, first) = waiting_for_the_first().await;
    let held: Vec<_> = (0..3).map(|_| proxy.client.begin_chat()).collect();
    eventually("four chats are there", async || active(&proxy, MY_POLICY).await["calls"].as_u64() >= Some(2)).await;
    let polls = b.polled().len() + 10;
    eventually("b reports ten times more", async || b.polled().len() >= polls).await;
    let calls = active(&proxy, MY_POLICY).await["calls"].as_u64();
    // At most three asked at each report of either backend, with room for reports that were under way.
    assert!(calls < Some(3 * 2 * polls as u64 + 100), "{calls:?} calls for {polls} reports: they ask one another");
    assert_eq!(proxy.backend("b").await["requests_total"], 0, "b was sent nothing");
    gate.open();
    for pending in held.into_iter().chain([first]) {
        assert_eq!(pending.reply().await.ok().backend(), "a");
    }
}

#[tokio::test]
async fn a_request_is_not_told_of_itself() {
    let backends = [Setup::named("a").start().await];
    let proxy = started(WITH_MY_POLICY, &backends, |plugins| put(plugins, MY_POLICY, &only_who_is_idle())).await;
    let gate = Gate::closed();
    backends[0].always(held_at(&gate));
    let first = proxy.client.begin_chat();
    gate.reached_by(1).await;
    let second = proxy.client.begin_chat();
    proxy.queues(1).await;
    gate.open();
    first.reply().await.ok();
    // Its backend is idle now: a policy that counts `in-flight` must see nought, not the one that it is asked about.
    second.reply().await.ok();
}
