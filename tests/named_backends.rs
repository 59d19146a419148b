//! Backends that are known by a name: where it points to is where requests go, and nobody waits for a name server.
//!
//! The resolver is the system's, and asks a scripted name server (`support::NameServer`).

use std::time::Duration;

use crate::support::wait::patiently;
use crate::support::*;

/// Where a backend is, and where it has gone.
const HERE: [u8; 4] = [127, 0, 0, 1];
const THERE: [u8; 4] = [127, 0, 0, 2];
/// Quick polls, so that a change is soon seen.
const POLLS: &str = "[capacity]\npoll_interval = \"200ms\"\nstale_after = \"1s\"\n";
/// Longer than idle connections to an address are kept that is gone, and what a busy machine adds.
const IDLE: Duration = Duration::from_secs(60);

/// A table for a backend at this host.
fn at(name: &str, host: &str, port: u16) -> String {
    format!(
        "[[backends]]\nname = \"{name}\"\nurl = \"http://{host}:{port}\"\nengine = \"openai\"\nmodels = {{ \"{MODEL}\" = \"{NATIVE}\" }}\n"
    )
}

/// A backend, and another one at the same port of another address.
async fn moving() -> [Backend; 2] {
    let old = Setup::named("old").start().await;
    let new = Setup::named("new").at((THERE, old.address.port()).into()).start().await;
    [old, new]
}

/// An answer after which a new connection is made.
fn last() -> Answer {
    let fields = [("content-type", "application/json"), ("connection", "close")];
    Answer::whole(200, &fields, completion(NATIVE).to_string())
}

fn chats(proxy: &Proxy) -> Load {
    Load::by(proxy, 3, |client| async move { drop(client.chat().await.ok()) })
}

/// Returns when something new was heard, or not heard, of a name, and was asked for once more after that.
async fn asked_again(names: &NameServer, name: &str) {
    let before = names.asked(name);
    eventually("a name is looked up again", async || names.asked(name) >= before + 2).await;
}

#[tokio::test]
async fn a_name_is_looked_up() {
    let backend = Setup::named("a").start().await;
    let proxy = Proxy::start(&at("a", "localhost", backend.address.port())).await;
    for _ in 0..3 {
        assert_eq!(proxy.client.chat().await.ok().backend(), "a");
    }
}

#[tokio::test]
async fn a_name_that_is_not_found_is_a_backend_that_is_down() {
    let backend = Setup::named("b").start().await;
    let lost = at("lost", "no-such-host.invalid", 8000);
    let proxy = Proxy::start(&format!("{}{lost}", config("workers = 1\n", [&backend]))).await;
    proxy.waits_until("lost", "down").await;
    assert!(proxy.backend("lost").await["last_error"].as_str().is_some_and(|why| why.contains("cannot connect")));
    let load = Load::of(&proxy, 4);
    load.answers_more(30).await;
    load.ends_well().await;
    let proxy = Proxy::start(&lost).await;
    proxy.client.chat().await.refused(503, "no_backend_available");
}

#[tokio::test]
async fn connections_follow_a_name_that_moves() {
    let (names, [old, new]) = (NameServer::start().await, moving().await);
    old.always(last());
    names.points("gpu.test", &[HERE]);
    let proxy = names.proxy(&format!("{POLLS}{}", at("gpu", "gpu.test", old.address.port()))).await;
    let load = chats(&proxy);
    load.answers_more(20).await;
    assert_eq!(new.request_count(), 0);
    names.points("gpu.test", &[THERE]);
    eventually("requests go where the name points to", async || new.request_count() > 0).await;
    let before = old.request_count();
    load.answers_more(20).await;
    assert!(old.request_count() <= before + 3, "only what was on its way goes to where it was");
    load.ends_well().await;
    assert_eq!(proxy.backend("gpu").await["failures_total"], 0);
}

#[tokio::test]
async fn kept_connections_to_where_a_name_was_are_given_up() {
    let (names, [old, new]) = (NameServer::start().await, moving().await);
    names.points("gpu.test", &[HERE]);
    let proxy = names.proxy(&at("gpu", "gpu.test", old.address.port())).await;
    let load = Load::of(&proxy, 3);
    load.answers_more(20).await;
    names.points("gpu.test", &[THERE]);
    // Nothing is sent there any more, and what is there may go.
    patiently(IDLE, "no connection to where it was", async || old.connections() == 0).await;
    old.stop().await;
    let before = new.request_count();
    load.answers_more(20).await;
    assert!(new.request_count() >= before + 20);
    load.ends_well().await;
    assert_eq!(proxy.backend("gpu").await["failures_total"], 0);
}

#[tokio::test]
async fn while_its_name_server_is_silent_or_fails_a_backend_stays_where_it_was() {
    let (names, backend) = (NameServer::start().await, Setup::named("b").start().await);
    backend.always(last());
    let fails = [("silent", Says::Nothing), ("fails", Says::Failed), ("half-fails", Says::HalfFailed)];
    // Who is silent keeps no other name from being asked for.
    let fleet = fails.iter().map(|(name, _)| *name).chain(["beside"]);
    let host = |name| format!("{name}.test");
    let tables = fleet.clone().map(|name| {
        names.points(&host(name), &[HERE]);
        at(name, &host(name), backend.address.port())
    });
    let proxy = names.proxy(&format!("{POLLS}{}", tables.collect::<String>())).await;
    for (name, says) in fails.clone() {
        names.says(&host(name), says);
    }
    let load = chats(&proxy);
    for name in fleet.clone() {
        asked_again(&names, &host(name)).await;
    }
    load.answers_more(20).await;
    load.ends_well().await;
    for name in fleet {
        let backend = proxy.backend(name).await;
        assert_eq!((&backend["state"], &backend["failures_total"]), (&"available".into(), &0.into()), "{name}");
    }
}

#[tokio::test]
async fn a_name_server_that_is_silent_at_first_keeps_nobody_else_waiting() {
    let (names, backend) = (NameServer::start().await, Setup::named("b").start().await);
    names.says("gpu.test", Says::Nothing);
    let port = backend.address.port();
    let proxy = names.proxy(&format!("{}{}", config(POLLS, [&backend]), at("gpu", "gpu.test", port))).await;
    assert_eq!(proxy.backend("gpu").await["state"], "down");
    let load = Load::of(&proxy, 3);
    load.answers_more(20).await;
    names.points("gpu.test", &[HERE]);
    proxy.waits_until("gpu", "available").await;
    load.ends_well().await;
}

#[tokio::test]
async fn where_a_name_has_no_address_any_more_nothing_is_sent() {
    let (names, [old, new]) = (NameServer::start().await, moving().await);
    let hosts = ["unknown.test", "empty.test"];
    hosts.iter().for_each(|host| names.points(host, &[HERE]));
    let tables: String = hosts.iter().map(|host| at(host, host, old.address.port())).collect();
    let proxy = names.proxy(&format!("{POLLS}{tables}")).await;
    proxy.client.chat().await.ok();
    names.says("unknown.test", Says::Unknown);
    names.says("empty.test", Says::At(Vec::new()));
    for host in hosts {
        proxy.waits_until(host, "down").await;
    }
    let (requests, polls) = (old.request_count(), old.polled().len());
    proxy.client.chat().await.refused(503, "no_backend_available");
    for host in hosts {
        asked_again(&names, host).await;
    }
    assert_eq!((old.request_count(), old.polled().len()), (requests, polls), "whoever is there now is a stranger");
    hosts.iter().for_each(|host| names.points(host, &[THERE]));
    for host in hosts {
        proxy.waits_until(host, "available").await;
    }
    proxy.client.chat().await.ok();
    assert_eq!(new.request_count(), 1);
}

#[tokio::test]
async fn addresses_of_a_name_that_refuse_or_hang_do_not_stand_before_one_that_lives() {
    let (names, backend) = (NameServer::start().await, Setup::named("b").start().await);
    backend.always(last());
    let port = backend.address.port();
    let hung = Setup::named("hung").at((THERE, port).into()).start().await;
    let _hung = hung.hang().await;
    names.points("gpu.test", &[[127, 0, 0, 3], THERE, HERE]);
    let proxy = names.proxy(&format!("{POLLS}{}", at("gpu", "gpu.test", port))).await;
    let load = chats(&proxy);
    load.answers_more(20).await;
    load.ends_well().await;
    assert_eq!(proxy.backend("gpu").await["failures_total"], 0);
}
