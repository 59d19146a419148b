//! One process after the other: upgrades, kills and restarts cost no connection, and a service manager is told.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use socket2::{Domain, Socket, Type};

use crate::support::*;

/// New processes in the place of old ones, one after the other.
const UPGRADES: usize = 4;

/// A connection of its own for every exchange, for that is what a listener that closes could break.
fn callers(proxy: &Proxy, count: usize) -> Load {
    let address = proxy.listen;
    Load::by(proxy, count, move |_| async move { drop(Client::http1(address).chat().await.ok()) })
}

#[tokio::test]
async fn a_new_process_takes_over_without_a_refused_connection() {
    let fleet = [Setup::named("a").start().await, Setup::named("b").start().await];
    let text = config("[timeouts]\ndrain_delay = \"0s\"\n", &fleet);
    let mut proxy = Proxy::start(&text).await;
    let load = callers(&proxy, 6);
    for _ in 0..UPGRADES {
        let next = proxy.another(&text).await;
        load.answers_more(10).await;
        proxy.signal("TERM");
        assert!(proxy.ends().await.success());
        load.answers_more(10).await;
        proxy = next;
    }
    load.ends_well().await;
    proxy.falls_idle().await;
}

/// A client that keeps its connection until it is told that it ends, and does not look at it before it writes: what it
/// writes to one that was closed without a word is lost.
async fn trusts_its_connection(address: SocketAddr, pause: Duration) {
    let mut connection = Raw::connect(address).await;
    for _ in 0..10 {
        connection.send(sized_request(CHAT, &chat_body().to_string())).await;
        let reply = connection.reply().await.ok();
        if reply.header("connection") == "close" {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

#[tokio::test]
async fn no_request_on_a_kept_connection_is_lost_to_an_upgrade() {
    let fleet = [Setup::named("a").start().await, Setup::named("b").start().await];
    for drain_delay in ["0s", "200ms"] {
        let text = config(&format!("[timeouts]\ndrain_delay = \"{drain_delay}\"\n"), &fleet);
        let mut proxy = Proxy::start(&text).await;
        let address = proxy.listen;
        let kept = [1, 10, 50]
            .map(|ms| Load::by(&proxy, 2, move |_| trusts_its_connection(address, Duration::from_millis(ms))));
        let h2c = Client::h2c(address);
        let multiplexed = Load::by(&proxy, 4, move |_| {
            let client = h2c.clone();
            async move { drop(client.chat().await.ok()) }
        });
        for _ in 0..UPGRADES {
            let next = proxy.another(&text).await;
            kept[1].answers_more(1).await;
            proxy.signal("TERM");
            assert!(proxy.ends().await.success());
            multiplexed.answers_more(10).await;
            proxy = next;
        }
        for load in kept.into_iter().chain([multiplexed]) {
            load.ends_well().await;
        }
        proxy.falls_idle().await;
    }
}

#[tokio::test]
async fn an_idle_connection_is_answered_once_more_while_draining_and_told_to_close() {
    for (drain_delay, word) in [("0s", "draining for at most"), ("60s", "listening for")] {
        let top = format!("[timeouts]\ndrain_delay = \"{drain_delay}\"\n");
        let (mut proxy, [backend]) = proxied(&top, ["a"]).await;
        let gate = Gate::closed();
        backend.always(stream_held_at(&gate));
        let mut streaming = Raw::connect(proxy.listen).await;
        streaming.send(sized_request(CHAT, &stream_body().to_string())).await;
        let head = streaming.head().await;
        assert_eq!(head.header("connection"), "", "it is not known yet: {head:?}");
        backend.heal();
        let chat = sized_request(CHAT, &chat_body().to_string());
        let mut idle = Vec::new();
        for _ in 0..3 {
            let mut connection = Raw::connect(proxy.listen).await;
            connection.send(&chat).await;
            connection.reply().await.ok();
            idle.push(connection);
        }
        proxy.signal("TERM");
        eventually("it is told to end", async || proxy.output().contains(word)).await;
        let asks = [chat.clone(), sized_request("/v1/nothing", "{}"), request_head("GET", "/health", &[])];
        for (connection, ask) in idle.iter_mut().zip(&asks) {
            connection.send(ask).await;
        }
        for mut connection in idle {
            let reply = connection.reply().await;
            assert_eq!(reply.header("connection"), "close", "{reply:?}");
            assert_eq!(connection.rest().await, (Bytes::new(), true), "{reply:?}");
        }
        gate.open();
        streaming.read_until("data: [DONE]\n\n").await;
        streaming.read_until("0\r\n\r\n").await;
        streaming.send(&chat).await;
        assert_eq!(streaming.reply().await.ok().header("connection"), "close");
        assert_eq!(streaming.rest().await, (Bytes::new(), true));
        if drain_delay == "60s" {
            let mut late = Raw::connect(proxy.listen).await;
            late.send(&chat).await;
            assert_eq!(late.reply().await.ok().header("connection"), "close", "new connections too");
            proxy.signal("TERM");
        }
        assert!(proxy.ends().await.success());
    }
}

#[tokio::test]
async fn a_connection_of_http_2_is_sent_away_with_what_it_has_asked() {
    const EMPTY_SETTINGS: &str = "\0\0\0\x04\0\0\0\0\0";
    // A GOAWAY for all streams that may ever come, and the ping behind it (RFC 9113 §6.8).
    const LEAVING: &str = "\0\0\x08\x07\0\0\0\0\0\x7f";
    const PING: &str = "\0\0\x08\x06\0\0\0\0\0";
    let (mut proxy, [_backend]) = proxied("[timeouts]\ndrain_delay = \"60s\"\n", ["a"]).await;
    let mut connection = Raw::connect(proxy.listen).await;
    connection.send(format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{EMPTY_SETTINGS}")).await;
    connection.read_until("\0\0\0\x04\x01\0\0\0\0").await;
    proxy.signal("TERM");
    connection.read_until(LEAVING).await;
    // `GET /` on stream 1, by the static table alone, which was on its way already.
    connection.send(b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x01\x01p").await;
    connection.read_until(PING).await;
    let opaque = connection.exactly(8).await;
    connection.send([b"\0\0\x08\x06\x01\0\0\0\0".as_slice(), &opaque].concat()).await;
    let (rest, in_order) = connection.rest().await;
    let holds = |frame: &[u8]| rest.windows(frame.len()).any(|window| window == frame);
    assert!(holds(b"\x01\x04\0\0\0\x01\x88"), "its answer, 200: {rest:?}");
    assert!(holds(b"\0\0\x08\x07\0\0\0\0\0\0\0\0\x01\0\0\0\0"), "it was the last one: {rest:?}");
    assert!(in_order, "{rest:?}");
    // One that comes now is not sent away before it has asked.
    let late = Client::h2c(proxy.listen);
    late.chat().await.ok();
    proxy.signal("TERM");
    proxy.ends().await;
}

#[tokio::test]
async fn while_the_old_one_drains_the_admin_port_is_the_new_ones() {
    let backend = Setup::named("a").start().await;
    let text = config("[timeouts]\ndrain_delay = \"0s\"\n", [&backend]);
    let mut old = Proxy::start(&text).await;
    let gate = Gate::closed();
    backend.always(stream_held_at(&gate));
    let mut events = old.client.stream().await;
    events.next().await;
    let new = old.another(&text).await;
    eventually("it is in the log", async || new.output().contains("another process serves")).await;
    old.signal("TERM");
    eventually("the old one leaves the port", async || old.output().contains("it is left to it")).await;
    for _ in 0..40 {
        // A new connection each time.
        Client::http1(new.admin_address).get("/readyz").await.ok();
    }
    gate.open();
    assert!(events.rest().await.ends_with("data: [DONE]\n\n"), "the old one finishes what it has");
    assert!(old.ends().await.success());
}

#[tokio::test]
async fn a_killed_process_is_replaced_on_its_port_and_no_backend_is_over_filled() {
    let backend = Setup::named("a").slots(2).start().await;
    let text = config("", [&backend]);
    let mut proxy = Proxy::start(&text).await;
    let gate = Gate::closed();
    backend.always(stream_held_at(&gate));
    let mut cut = Vec::new();
    for _ in 0..2 {
        let mut events = proxy.client.stream().await;
        events.next().await;
        cut.push(events);
    }
    proxy.kill();
    for events in cut {
        assert!(events.rest_or_break().await.1, "a client can tell");
    }
    let proxy = proxy.another(&text).await;
    eventually("the engine has noticed", async || backend.in_flight() == 0).await;
    backend.heal();
    let load = Load::of(&proxy, 6);
    load.answers_more(30).await;
    load.ends_well().await;
    assert_eq!(backend.most_in_flight(), 2);
}

/// A socket as systemd opens it: it listens already, and is inherited.
fn opened(address: &str) -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&address.parse::<SocketAddr>().expect("an address").into()).expect("bind");
    socket.listen(16).expect("listen");
    socket.set_cloexec(false).expect("inherited");
    let address = socket.local_addr().expect("bound").as_socket().expect("inet");
    (socket, address)
}

/// `vision-proxy run` with these sockets as its file descriptors 3 and 4.
fn activated(sockets: [&Socket; 2], names: &str, config: &std::path::Path) -> Command {
    let [first, second] = sockets.map(AsRawFd::as_raw_fd);
    let script = format!("exec 8<&{first} 9<&{second}; exec 3<&8 4<&9; export LISTEN_PID=$$ LISTEN_FDS=2; exec \"$@\"");
    let mut command = Command::new("bash");
    command.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_vision-proxy"), "run", "--config"]).arg(config);
    command.env("LISTEN_FDNAMES", names);
    command
}

#[tokio::test]
async fn sockets_that_are_handed_over_are_used_and_keep_who_waits_at_them() {
    let backend = Setup::named("a").start().await;
    let text = config("[timeouts]\ndrain_delay = \"0s\"\n", [&backend]);
    let ((client, listen), (admin, admin_address)) = (opened("127.0.0.1:0"), opened("127.0.0.1:0"));
    for (sockets, names) in
        [([&admin, &client], "admin:client"), ([&client, &admin], "vision-proxy.socket:other.socket")]
    {
        let folder = Folder::new();
        let path = folder.write("proxy.toml", &text);
        // Nobody serves yet, and nobody is refused.
        let early = Client::http1(listen).begin_chat();
        let mut proxy = Proxy::run_by(&mut activated(sockets, names, &path), folder).await;
        assert_eq!((proxy.listen, proxy.admin_address), (listen, admin_address), "{names}");
        early.reply().await.ok();
        proxy.signal("TERM");
        assert!(proxy.ends().await.success());
    }
}

#[tokio::test]
async fn a_socket_for_everybody_needs_a_token_as_its_address_in_the_file_does() {
    let ((client, _), (admin, _)) = (opened("127.0.0.1:0"), opened("0.0.0.0:0"));
    let folder = Folder::new();
    let path = folder.write("proxy.toml", "[[backends]]\nurl = \"http://127.0.0.1:1\"\n");
    let mut command = tokio::process::Command::from(activated([&client, &admin], "client:admin", &path));
    let ended = soon("its end", command.kill_on_drop(true).output()).await.expect("spawn");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success() && said.contains("admin_token"), "{said}");
}

#[tokio::test]
async fn a_service_manager_is_told_when_it_serves_reloads_and_stops() {
    let backend = Setup::named("a").start().await;
    let folder = Folder::new();
    let told = UnixDatagram::bind(folder.path().join("notify")).expect("bind");
    told.set_read_timeout(Some(wait::PATIENCE)).expect("a bound");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{}",
        config("[timeouts]\ndrain_delay = \"0s\"\n", [&backend])
    );
    folder.write("vision-proxy.toml", text);
    let mut command = Command::new(env!("CARGO_BIN_EXE_vision-proxy"));
    command.arg("run").env("NOTIFY_SOCKET", folder.path().join("notify"));
    let mut proxy = Proxy::run_by(&mut command, folder).await;
    let next = || {
        let mut text = [0; 256];
        let length = told.recv(&mut text).expect("a word in time");
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    assert_eq!(next(), "READY=1\n");
    proxy.signal("HUP");
    let reloading = next();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading:?}");
    assert_eq!(next(), "READY=1\n");
    proxy.signal("TERM");
    assert_eq!(next(), "STOPPING=1\n");
    assert!(proxy.ends().await.success());
}
