//! Whom the proxy believes to be a backend, and whom not: what is not verified is not sent anything.

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::support::*;

/// A backend behind TLS that shows this.
async fn behind(name: &str, identity: &Identity) -> (Backend, TlsFront) {
    let backend = Setup::named(name).start().await;
    let front = TlsFront::before(&backend, identity.server()).await;
    (backend, front)
}

fn trusting(ca: &std::path::Path) -> String {
    format!("ca = \"{}\"", ca.display())
}

async fn last_error(proxy: &Proxy, name: &str) -> String {
    proxy.backend(name).await["last_error"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn who_is_not_verified_gets_nothing_and_another_serves() {
    let (authority, other, folder) = (Authority::named("ours"), Authority::named("theirs"), Folder::new());
    let settings = trusting(&folder.write("ca.pem", &authority.pem));
    let (good, good_front) = behind("good", &authority.certify(&[LOOPBACK])).await;
    let mut entries = good_front.entry(&good, &settings);
    let mut refused = Vec::new();
    for (name, identity, why) in [
        ("authority", other.certify(&[LOOPBACK]), "of no authority that is trusted here"),
        ("name", authority.certify(&["gpu-b.internal", "127.0.0.2"]), "for another name"),
        ("expired", authority.certify_until(&[LOOPBACK], 2020), "has expired"),
    ] {
        let (backend, front) = behind(name, &identity).await;
        entries += &front.entry(&backend, &settings);
        refused.push((backend, front, why));
    }
    // One that speaks no TLS at all.
    let plain = TcpListener::bind((LOOPBACK, 0)).await.expect("bind");
    let address = plain.local_addr().expect("an address");
    entries += &format!("[[backends]]\nname = \"plain\"\nurl = \"https://{address}\"\ntls = {{ {settings} }}\n");
    let plain = tokio::spawn(speak_in_the_clear(plain));
    let proxy = Proxy::start(&entries).await;
    for _ in 0..8 {
        assert_eq!(proxy.client.chat().await.ok().backend(), "good");
    }
    for (backend, front, why) in &refused {
        assert_eq!((backend.connections(), front.handshakes()), (0, 0), "{}", backend.name());
        assert!(last_error(&proxy, backend.name()).await.contains(why), "{}", last_error(&proxy, backend.name()).await);
        assert_eq!(proxy.backend(backend.name()).await["state"], "down");
    }
    assert!(last_error(&proxy, "plain").await.contains("does not speak TLS"), "{}", last_error(&proxy, "plain").await);
    assert_eq!(proxy.backend("good").await["tls"], "verified");
    plain.abort();
}

async fn speak_in_the_clear(listener: TcpListener) {
    let mut open = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().await.expect("accept");
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.expect("send");
        open.push(stream);
    }
}

#[tokio::test]
async fn one_that_changes_its_face_under_a_request_costs_that_request_nothing() {
    let (authority, folder) = (Authority::named("ours"), Folder::new());
    let settings = trusting(&folder.write("ca.pem", &authority.pem));
    let identity = authority.certify(&[LOOPBACK]);
    let ((a, a_front), (b, b_front)) = (behind("a", &identity).await, behind("b", &identity).await);
    let entries = a_front.entry(&a, &settings) + &b_front.entry(&b, &settings);
    let proxy = Proxy::start(&format!("workers = 1\n{RARE_POLLS}{entries}")).await;
    a_front.becomes(Authority::named("theirs").certify(&[LOOPBACK]).server());
    let answers = [proxy.client.chat().await.ok(), proxy.client.chat().await.ok()];
    assert!(answers.iter().all(|answer| answer.backend() == "b"));
    assert_eq!(answers.iter().map(Reply::attempts).sum::<u32>(), 3, "one of them met a first");
    let attempts = proxy.metrics().await.value("vision_proxy_attempts_total", &[("reason", "connect")]);
    assert_eq!(attempts, Some(1.0));
    b_front.becomes(Authority::named("theirs").certify(&[LOOPBACK]).server());
    b.stop().await;
    b.restart().await;
    let failed = proxy.client.chat().await.refused(502, "upstream_unreachable");
    let port = proxy.backend("b").await["url"].as_str().expect("a url").rsplit(':').next().expect("a port").to_owned();
    for secret in [LOOPBACK, port.as_str(), "certificate"] {
        assert!(!failed.text().contains(secret), "{failed:?}");
    }
    assert_eq!((a.request_count(), b.request_count()), (0, 2));
}

#[tokio::test]
async fn a_backend_is_shown_the_proxys_certificate_where_it_asks() {
    let (authority, of_proxies, folder) = (Authority::named("ours"), Authority::named("proxies"), Folder::new());
    let settings = trusting(&folder.write("ca.pem", &authority.pem));
    let own = of_proxies.certify(&["proxy"]);
    let [cert, key] = own.write(&folder);
    let shown = format!("{settings}, client_cert = \"{}\", client_key = \"{}\"", cert.display(), key.display());
    let mut entries = String::new();
    let mut kept = Vec::new();
    for (name, settings) in [("shown", &shown), ("hidden", &settings)] {
        let backend = Setup::named(name).start().await;
        let config = authority.certify(&[LOOPBACK]).server_for(&of_proxies);
        let front = TlsFront::before(&backend, config).await;
        entries += &front.entry(&backend, settings);
        kept.push((backend, front));
    }
    let proxy = Proxy::start(&entries).await;
    for _ in 0..4 {
        assert_eq!(proxy.client.chat().await.ok().backend(), "shown");
    }
    assert_eq!(kept[1].0.connections(), 0);
    let why = last_error(&proxy, "hidden").await;
    assert!(why.contains("CertificateRequired"), "{why}");
}

#[tokio::test]
async fn without_verification_it_serves_and_says_so_everywhere() {
    let folder = Folder::new();
    let authority = Authority::named("ours");
    let (loose, loose_front) = behind("loose", &Authority::named("whoever").certify_until(&["x"], 2020)).await;
    let (strict, strict_front) = behind("strict", &authority.certify(&[LOOPBACK])).await;
    let settings = trusting(&folder.write("ca.pem", &authority.pem));
    let entries = loose_front.entry(&loose, "insecure = true") + &strict_front.entry(&strict, &settings);
    let clear = Setup::named("clear").start().await;
    let proxy = Proxy::start(&(entries + &clear.entry())).await;
    let mut served: Vec<_> = Vec::new();
    for _ in 0..3 {
        served.push(proxy.client.chat().await.ok().backend().to_owned());
    }
    served.sort_unstable();
    assert_eq!(served, ["clear", "loose", "strict"]);
    let metrics = proxy.metrics().await;
    for (name, tls, metric) in [
        ("loose", json!("insecure"), Some(1.0)),
        ("strict", json!("verified"), Some(0.0)),
        ("clear", json!(null), None),
    ] {
        assert_eq!(proxy.backend(name).await["tls"], tls);
        assert_eq!(metrics.value("vision_proxy_backend_tls_insecure", &[("backend", name)]), metric, "{name}");
    }
    eventually("it is warned of", async || proxy.output().contains("tls.insecure is true")).await;
}

#[tokio::test]
async fn it_asks_for_the_name_that_is_configured_and_never_for_the_clients() {
    let (authority, folder) = (Authority::named("ours"), Folder::new());
    let settings = trusting(&folder.write("ca.pem", &authority.pem));
    let (named, named_front) = behind("named", &authority.certify(&["gpu-a.internal"])).await;
    let (bare, bare_front) = behind("bare", &authority.certify(&[LOOPBACK])).await;
    let entries = named_front.entry(&named, &format!("{settings}, server_name = \"gpu-a.internal\""))
        + &bare_front.entry(&bare, &settings);
    let proxy = Proxy::start(&entries).await;
    for _ in 0..4 {
        let request = proxy.client.post(CHAT, chat_body().to_string()).header("host", "evil.test");
        whole(request).await.ok();
    }
    assert!(named.request_count() > 0 && bare.request_count() > 0);
    assert!(
        named_front.names().iter().all(|name| name.as_deref() == Some("gpu-a.internal")),
        "{:?}",
        named_front.names()
    );
    // An address is no name to ask for (RFC 6066 §3).
    assert!(bare_front.names().iter().all(Option::is_none), "{:?}", bare_front.names());
}

#[tokio::test]
async fn other_settings_make_other_connections() {
    let (authority, other, folder) = (Authority::named("ours"), Authority::named("theirs"), Folder::new());
    let [ours, theirs] =
        [("ours.pem", &authority), ("theirs.pem", &other)].map(|(name, it)| folder.write(name, &it.pem));
    let (backend, front) = behind("a", &authority.certify(&[LOOPBACK])).await;
    let top = format!("workers = 1\n{RARE_POLLS}");
    let with = |settings: &str, more: &str| format!("{top}{}{more}", front.entry(&backend, settings));
    let proxy = Proxy::start(&with("insecure = true", "")).await;
    let connection = async || {
        proxy.client.chat().await.ok();
        backend.requests().pop().expect("a request").connection
    };
    let reloads = async |config: String| {
        let generation = proxy.admin_json("/api/config").await["generation"].as_u64();
        proxy.write_config(&config);
        eventually("it is loaded", async || proxy.admin_json("/api/config").await["generation"].as_u64() > generation)
            .await;
    };
    let first = connection().await;
    reloads(with("insecure = true", "weight = 2\n")).await;
    assert_eq!(connection().await, first, "a change of something else closed it");
    reloads(with(&trusting(&ours), "")).await;
    let verified = connection().await;
    assert_ne!(verified, first, "one that nobody verified is used again");
    // The same path, another content: rotated as certificates are.
    folder.write("ours.pem", format!("{}{}", authority.pem, other.pem));
    eventually("both are trusted", async || connection().await != verified).await;
    reloads(with(&trusting(&theirs), "")).await;
    eventually("it is not believed any more", async || proxy.backend("a").await["state"] == "down").await;
    assert_eq!(proxy.client.chat().await.error_code(), "no_backend_available");
}
