//! A backend never holds more of our requests than its slots, uses all of them, and loses none.

use crate::support::*;

fn chats(proxy: &Proxy, count: usize) -> Vec<Pending> {
    // Connections of their own spread over all workers.
    let clients: Vec<_> = (0..16).map(|_| proxy.another_client()).collect();
    (0..count).map(|number| clients[number % clients.len()].begin_chat()).collect()
}

#[tokio::test]
async fn no_backend_ever_holds_more_than_its_slots_and_all_are_used() {
    let slots = [1, 3, 8];
    let setups =
        [("a", slots[0]), ("b", slots[1]), ("c", slots[2])].map(|(name, slots)| Setup::named(name).slots(slots));
    let (proxy, backends) = proxied("workers = 4\n", setups).await;
    let gate = Gate::closed();
    for backend in &backends {
        backend.always(stream_held_at(&gate));
    }
    let held = chats(&proxy, 600);
    let all_slots = slots.iter().sum::<u32>();
    gate.reached_by(all_slots as usize).await;
    proxy.queues(600 - u64::from(all_slots)).await;
    assert_eq!(backends.each_ref().map(Backend::in_flight), slots.map(|slots| slots as usize));
    gate.open();
    for pending in held {
        assert!(pending.reply().await.ok().text().ends_with("data: [DONE]\n\n"));
    }
    assert_eq!(backends.each_ref().map(Backend::most_in_flight), slots.map(|slots| slots as usize));
    assert_eq!(backends.iter().map(Backend::request_count).sum::<usize>(), 600);
    proxy.falls_idle().await;
}

#[tokio::test]
async fn no_backend_ever_holds_more_than_its_slots_while_requests_come_and_go() {
    let slots = [1, 2, 5];
    let setups =
        [("a", slots[0]), ("b", slots[1]), ("c", slots[2])].map(|(name, slots)| Setup::named(name).slots(slots));
    let (proxy, backends) = proxied("workers = 4\n", setups).await;
    let clients: Vec<_> = (0..32).map(|_| proxy.another_client()).collect();
    in_parallel(32, move |number| {
        let client = clients[number].clone();
        async move {
            for _ in 0..30 {
                client.chat().await.ok();
                assert!(client.stream().await.rest().await.ends_with("data: [DONE]\n\n"));
            }
        }
    })
    .await;
    let most = backends.each_ref().map(Backend::most_in_flight);
    assert!(most.iter().zip(slots).all(|(most, slots)| *most <= slots as usize), "{most:?} of {slots:?}");
    assert_eq!(backends.iter().map(Backend::request_count).sum::<usize>(), 32 * 30 * 2);
    proxy.falls_idle().await;
}

#[tokio::test]
async fn a_slot_is_held_until_the_stream_ends() {
    let (proxy, [backend]) = proxied("", [Setup::named("a").slots(1)]).await;
    let gate = Gate::closed();
    backend.always(stream_held_at(&gate));
    let mut first = proxy.client.stream().await;
    first.next().await;
    let second = proxy.client.begin_chat();
    proxy.queues(1).await;
    assert_eq!((backend.request_count(), &proxy.backend("a").await["in_flight"]), (1, &1.into()));
    gate.open();
    assert!(first.rest().await.ends_with("data: [DONE]\n\n"));
    second.reply().await.ok();
    assert_eq!(backend.most_in_flight(), 1);
}

/// Lets 30 requests end in this way at a backend of two slots, then requires both slots back.
async fn gives_slots_back(broken: Answer) {
    let (proxy, [backend]) = proxied("[failover]\neject_after = 1000\n", [Setup::named("a").slots(2)]).await;
    backend.always(broken);
    for _ in 0..30 {
        // How it ends for the client is not the question here.
        _ = soon("an end of some kind", try_whole(proxy.client.post(CHAT, stream_body().to_string()))).await;
    }
    proxy.falls_idle().await;
    proxy.waits_until("a", "available").await;
    let gate = Gate::closed();
    backend.always(stream_held_at(&gate));
    let held = chats(&proxy, 2);
    gate.reached_by(2).await;
    gate.open();
    for pending in held {
        pending.reply().await.ok();
    }
}

#[tokio::test]
async fn slots_come_back_from_errors() {
    gives_slots_back(Answer::error(400)).await;
}

#[tokio::test]
async fn slots_come_back_from_faults_of_the_backend() {
    gives_slots_back(Answer::error(500)).await;
}

#[tokio::test]
async fn slots_come_back_from_requests_that_were_never_answered() {
    gives_slots_back(Answer::nothing().reset()).await;
}

#[tokio::test]
async fn slots_come_back_from_streams_that_broke() {
    gives_slots_back(Answer::stream().event(&delta(NATIVE, "one")).reset()).await;
}

#[tokio::test]
async fn slots_come_back_from_clients_that_left() {
    let (proxy, [backend]) = proxied("", [Setup::named("a").slots(2)]).await;
    let gate = Gate::closed();
    backend.always(stream_held_at(&gate));
    for _ in 0..30 {
        let mut events = proxy.client.stream().await;
        events.next().await;
        drop(events);
    }
    proxy.falls_idle().await;
    gate.open();
    for pending in chats(&proxy, 10) {
        pending.reply().await.ok();
    }
    proxy.falls_idle().await;
}
