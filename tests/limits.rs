//! Full, or out of something: a cheap refusal, never a crash, a spin or a buffer without a bound. Slow or silent peers
//! hold nothing that others need.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::support::*;

/// A stopped reader is given up after this long.
const SHORT_PATIENCE: &str = "[timeouts]\nclient = \"500ms\"\n";
/// How long the proxy is watched while nothing happens.
const WATCHED: Duration = Duration::from_secs(1);

/// A client whose connection hangs in there: it says nothing.
async fn silent(proxy: &Proxy) -> TcpStream {
    soon("a connection", TcpStream::connect(proxy.listen)).await.expect("connect")
}

/// Opens connections until so many were turned away; returns those that were not.
async fn crowd(proxy: &Proxy, turned_away: usize) -> Vec<TcpStream> {
    let (mut staying, mut gone) = (Vec::new(), 0);
    while gone < turned_away {
        let stream = silent(proxy).await;
        // Whoever is turned away reads it at once; whoever is let in waits.
        match timeout(Duration::from_millis(50), stream.readable()).await {
            Ok(_) => gone += 1,
            Err(_) => staying.push(stream),
        }
        assert!(staying.len() < 400, "nobody is turned away");
    }
    staying
}

#[tokio::test]
async fn clients_beyond_the_descriptors_are_turned_away_and_the_admin_listener_answers() {
    let backend = Setup::named("a").start().await;
    let proxy = Proxy::start_within("ulimit -n 80", &config("workers = 1\n", [&backend])).await;
    proxy.client.chat().await.ok();
    let crowd = crowd(&proxy, 20).await;
    assert!(crowd.len() >= 10, "only {} were let in", crowd.len());
    let mut raw = Raw::connect(proxy.listen).await;
    let (answer, _) = raw.rest().await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 503 "), "{answer:?}");
    let fleet = proxy.admin_json("/api/fleet").await;
    assert_eq!(fleet["backends"][0]["state"], "available", "{fleet}");
    for _ in 0..20 {
        proxy.another_client_of_admin().get("/metrics").await.ok();
    }
    let lines = proxy.output().lines().filter(|line| line.contains("turned away")).count();
    assert!(lines <= 2, "the log is flooded: {lines} lines");
    drop(crowd);
    let served = async || try_whole(proxy.another_client().post(CHAT, chat_body().to_string())).await;
    eventually("those who come later are served", async || served().await.is_ok_and(|reply| reply.status == 200)).await;
    proxy.falls_idle().await;
}

#[tokio::test]
async fn streams_of_few_connections_may_use_up_all_descriptors_and_nothing_breaks() {
    let backend = Setup::named("a").slots(200).start().await;
    let proxy = Proxy::start_within("ulimit -n 80", &config("workers = 1\n", [&backend])).await;
    let gate = Gate::closed();
    backend.always(stream_held_at(&gate));
    let client = Client::h2c(proxy.listen);
    let statuses = in_parallel(90, {
        let (client, gate) = (client.clone(), gate.clone());
        move |_| {
            let request = client.post(CHAT, stream_body().to_string());
            let gate = gate.clone();
            async move {
                let status = soon("an answer", request.send()).await.expect("an answer").status().as_u16();
                // The first that is refused lets the others go, as the last of all would.
                if status != 200 {
                    gate.open();
                }
                status
            }
        }
    })
    .await;
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&200) && statuses.contains(&503), "{statuses:?}");
    proxy.falls_idle().await;
    backend.heal();
    eventually("all is well again", async || client.chat().await.status == 200).await;
    assert_eq!(proxy.backend("a").await["failures_total"], 0, "nobody over there is to blame");
}

#[tokio::test]
async fn idle_connections_to_the_admin_listener_shut_nobody_out() {
    let backend = Setup::named("a").start().await;
    let proxy = Proxy::start_within("ulimit -n 120", &config("workers = 1\n", [&backend])).await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(soon("a connection", TcpStream::connect(proxy.admin_address)).await.expect("connect"));
        // As it was answered, all that came before it were accepted.
        if idle.len() % 20 == 0 {
            proxy.another_client_of_admin().get("/livez").await.ok();
        }
    }
    let gone = idle.iter().filter(|stream| matches!(stream.try_read(&mut [0]), Ok(0))).count();
    assert!(gone >= 100, "only {gone} made room");
    proxy.another_client().chat().await.ok();
    proxy.another_client_of_admin().get("/metrics").await.ok();
    let lines = proxy.output().lines().filter(|line| line.contains("cannot accept")).count();
    assert!(lines <= 2, "the log is flooded: {lines} lines");
}

#[tokio::test]
async fn the_soft_limit_of_descriptors_is_raised() {
    let backend = Setup::named("a").start().await;
    let proxy = Proxy::start_within("ulimit -S -n 80", &config("", [&backend])).await;
    let mut held = Vec::new();
    for _ in 0..150 {
        held.push(silent(&proxy).await);
    }
    let reply = whole(proxy.another_client().post(CHAT, chat_body().to_string())).await;
    assert_eq!(reply.status, 200, "{reply:?}");
}

/// An answer that is larger than everything on the way can hold.
fn endless() -> Answer {
    Answer::stream().repeated([b'x'; 1 << 16], 1 << 14).done()
}

#[tokio::test]
async fn an_answer_that_nobody_reads_stays_where_it_comes_from() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    proxy.client.chat().await.ok();
    backend.always(endless());
    // The first touches memory that the process keeps for the next.
    unread(&proxy, &backend).await.leave();
    eventually("the backend is let go", async || backend.in_flight() == 0).await;
    let before = proxy.resident_kib();
    let raw = unread(&proxy, &backend).await;
    let grown = proxy.resident_kib().saturating_sub(before);
    // A kernel with huge pages gives memory by two MiB.
    assert!(grown < 3 << 10, "{grown} KiB more for one answer");
    raw.leave();
    eventually("the backend is let go", async || backend.in_flight() == 0).await;
}

/// An answer that has begun and is not read, once nothing of it moves any more: the kernels' buffers are full.
async fn unread(proxy: &Proxy, backend: &Backend) -> Raw {
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send(sized_request(CHAT, &stream_body().to_string())).await;
    raw.head().await.ok();
    let begun = backend.sent_bytes();
    let mut sent = begun;
    while std::mem::replace(&mut sent, backend.sent_bytes()) < backend.sent_bytes() || sent == begun {
        proxy.client.get("/health").await.ok();
        tokio::task::yield_now().await;
    }
    raw
}

#[tokio::test]
async fn a_client_that_takes_nothing_frees_its_backend() {
    let (proxy, [backend]) = proxied(SHORT_PATIENCE, [Setup::named("a").slots(1)]).await;
    backend.always(endless());
    let mut raw = Raw::connect(proxy.listen).await;
    raw.send(sized_request(CHAT, &stream_body().to_string())).await;
    raw.head().await.ok();
    eventually("the backend is let go", async || backend.in_flight() == 0).await;
    proxy.falls_idle().await;
    let (_, in_order) = raw.rest().await;
    assert!(!in_order, "the client takes a part for the whole");
}

#[tokio::test]
async fn a_stream_of_http_2_that_takes_nothing_frees_its_backend_and_no_other() {
    let (proxy, [backend]) = proxied(SHORT_PATIENCE, [Setup::named("a").slots(2)]).await;
    let (client, gate) = (Client::h2c(proxy.listen), Gate::closed());
    backend.always(stream_held_at(&gate));
    let mut reading = client.stream().await;
    reading.next().await;
    backend.always(endless());
    let standing = client.stream().await;
    eventually("the one that stands is cancelled", async || backend.requests()[1].gone_at.is_some()).await;
    eventually("its slot is free", async || proxy.backend("a").await["in_flight"] == 1).await;
    let (_, is_broken) = standing.rest_or_break().await;
    assert!(is_broken, "the client takes a part for the whole");
    gate.open();
    assert!(reading.rest().await.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_client_that_waits_for_a_slow_backend_is_not_taken_for_one_that_sleeps() {
    let (proxy, [backend]) = proxied("[timeouts]\nclient = \"50ms\"\n", ["a"]).await;
    let late = Answer::stream().event(&delta(NATIVE, "one"));
    for client in [proxy.client.clone(), Client::h2c(proxy.listen)] {
        let gate = Gate::closed();
        backend.always(late.clone().hold(&gate).event(&delta(NATIVE, "two")).done());
        let mut events = client.stream().await;
        events.next().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        gate.open();
        assert!(events.rest().await.ends_with("data: [DONE]\n\n"));
    }
}

#[tokio::test]
async fn who_dawdles_over_a_request_is_let_go_and_holds_no_slot() {
    let (proxy, [backend]) = proxied("", [Setup::named("a").slots(1)]).await;
    let (mut head, mut body) = (Raw::connect(proxy.listen).await, Raw::connect(proxy.listen).await);
    let mut again = Raw::connect(proxy.listen).await;
    again.send(sized_request(CHAT, &chat_body().to_string())).await;
    again.reply().await.ok();
    head.send(format!("POST {CHAT} HTTP/1.1\r\nHost: pro")).await;
    again.send("P").await;
    body.send(request_head("POST", CHAT, &[("Content-Length", "1000")]) + "{\"model\":").await;
    // Meanwhile the only slot is free.
    proxy.client.chat().await.ok();
    let (late_head, late_again, reply) = tokio::join!(head.rest(), again.rest(), body.reply());
    assert!(late_head.0.is_empty() && late_again.0.is_empty(), "{late_head:?} {late_again:?}");
    assert_eq!((reply.status.as_u16(), reply.error_code().as_str()), (408, "request_timeout"), "{reply:?}");
    assert_eq!(backend.request_count(), 2);
}

#[tokio::test]
async fn bodies_in_flight_are_bounded_together() {
    let (proxy, [backend]) = proxied("[limits]\nbody = \"1MiB\"\nbodies_in_flight = \"2MiB\"\n", ["a"]).await;
    let gate = Gate::closed();
    backend.always(Answer::json(200, completion(NATIVE).to_string()).behind(&gate));
    let body = vision_body(&[base64_text(900_000)]);
    let held_bytes = async || proxy.metrics().await.value("vision_proxy_bodies_in_flight_bytes", &[]);
    assert_eq!(held_bytes().await, Some(0.0));
    let held: Vec<_> = (0..2).map(|_| Pending::of(proxy.another_client().post(CHAT, body.clone()))).collect();
    gate.reached_by(2).await;
    assert_eq!(held_bytes().await, Some(2.0 * body.to_string().len() as f64));
    let refused = whole(proxy.another_client().post(CHAT, body)).await.refused(503, "proxy_overloaded");
    assert_ne!(refused.header("retry-after"), "");
    gate.open();
    for pending in held {
        pending.reply().await.ok();
    }
    proxy.client.chat().await.ok();
    proxy.falls_idle().await;
}

#[tokio::test]
async fn bodies_that_are_announced_and_do_not_come_shut_nobody_out() {
    let (proxy, _backends) = proxied("[limits]\nbody = \"1MiB\"\nbodies_in_flight = \"2MiB\"\n", ["a"]).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut raw = Raw::connect(proxy.listen).await;
        raw.send(request_head("POST", CHAT, &[("Content-Length", "1048576"), ("Expect", "100-continue")])).await;
        // As it is asked for its body, it has been let in.
        raw.read_until("100 Continue\r\n\r\n").await;
        raw.send("{").await;
        held.push(raw);
    }
    whole(proxy.client.post(CHAT, vision_body(&[base64_text(900_000)]))).await.ok();
    drop(held);
}

#[tokio::test]
async fn who_only_waits_costs_no_processor_time() {
    let (proxy, [backend]) = proxied("[timeouts]\nclient = \"60s\"\n", [Setup::named("a").slots(12)]).await;
    let gate = Gate::closed();
    backend.always(stream_held_at(&gate));
    let (over_http2, mut streams) = (Client::h2c(proxy.listen), Vec::new());
    for _ in 0..6 {
        streams.extend([proxy.another_client().stream().await, over_http2.stream().await]);
    }
    gate.reached_by(12).await;
    let in_line: Vec<_> = (0..6).map(|_| proxy.another_client().begin_chat()).collect();
    let dawdling = [silent(&proxy).await, silent(&proxy).await];
    proxy.queues(6).await;
    let before = proxy.processor_time();
    sleep(WATCHED).await;
    let used = proxy.processor_time() - before;
    assert!(used < WATCHED / 5, "{used:?} of processor time in {WATCHED:?}");
    gate.open();
    for stream in streams {
        assert!(stream.rest().await.ends_with("data: [DONE]\n\n"));
    }
    for pending in in_line {
        pending.reply().await.ok();
    }
    drop(dawdling);
}
