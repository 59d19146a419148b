//! The certificate is replaced while it serves: no handshake fails, and a bad one replaces nothing.

use std::os::unix::fs::symlink;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::support::*;

/// What the proxy shows to one who connects now.
async fn shown(proxy: &Proxy, authority: &Authority) -> Vec<u8> {
    let stream = tokio::net::TcpStream::connect(proxy.listen).await.expect("connect");
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(authority.client(None)));
    let stream = soon("a handshake", connector.connect(proxy.listen.ip().into(), stream)).await.expect("a handshake");
    stream.get_ref().1.peer_certificates().expect("a certificate")[0].to_vec()
}

fn der(identity: &Identity) -> Vec<u8> {
    CertificateDer::from_pem_slice(identity.cert.as_bytes()).expect("PEM").to_vec()
}

async fn serves(proxy: &Proxy, authority: &Authority, identity: &Identity) {
    eventually("the new certificate is shown", async || shown(proxy, authority).await == der(identity)).await;
}

/// Returns when the configuration was refused for this reason.
async fn is_refused(proxy: &Proxy, key: &str, part: &str) {
    eventually(&format!("{key} is refused: {part}"), async || {
        let errors = proxy.admin_json("/api/config").await["errors"].clone();
        errors
            .as_array()
            .expect("a list")
            .iter()
            .any(|error| error["key"] == key && error["message"].as_str().expect("a message").contains(part))
    })
    .await;
}

#[tokio::test]
async fn under_load_no_handshake_fails_and_open_connections_live_on() {
    let (authority, folder) = (Authority::named("a"), Folder::new());
    let first = authority.certify(&[LOOPBACK]);
    let (proxy, [backend]) = proxied(&format!("workers = 2\n{}", first.table(&folder)), ["a"]).await;
    let client = Client::https(proxy.listen, authority.client(None));
    let gate = Gate::closed();
    backend.answer_by({
        let gate = gate.clone();
        move |request| {
            if request.text().contains("\"held\"") { stream_held_at(&gate) } else { engine_answer(request) }
        }
    });
    let held = serde_json::json!({"model": MODEL, "stream": true, "messages": [], "user": "held"});
    let mut events = Events::of(client.post(CHAT, held.to_string())).await;
    events.next().await;
    // Every exchange makes a connection of its own: a handshake that fails is an exchange that fails.
    let (address, tls) = (proxy.listen, authority.client(None));
    let load = Load::by(&proxy, 4, move |_| {
        let client = Client::https(address, tls.clone());
        async move { assert_eq!(client.chat().await.ok().json()["model"], MODEL) }
    });
    for _ in 0..5 {
        let next = authority.certify(&[LOOPBACK]);
        // One file after the other, as most tools do: in between they do not belong together.
        next.write(&folder);
        serves(&proxy, &authority, &next).await;
        load.answers_more(10).await;
    }
    load.ends_well().await;
    gate.open();
    assert!(events.rest().await.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_bad_pair_is_refused_and_the_old_one_goes_on_serving() {
    let (authority, folder) = (Authority::named("a"), Folder::new());
    let first = authority.certify(&[LOOPBACK]);
    let (proxy, _backends) = proxied(&first.table(&folder), ["a"]).await;
    let (other, last) = (authority.certify(&[LOOPBACK]), authority.certify(&[LOOPBACK]));
    for (name, content, key, why) in [
        ("tls.crt", &other.cert, "tls.key", "does not belong to the certificate"),
        ("tls.crt", &"not PEM at all".to_owned(), "tls.cert", "holds no certificate"),
        ("tls.key", &String::new(), "tls.key", "holds no private key"),
    ] {
        folder.write(name, content);
        is_refused(&proxy, key, why).await;
        assert_eq!(shown(&proxy, &authority).await, der(&first));
    }
    std::fs::remove_file(folder.path().join("tls.key")).expect("remove a file");
    is_refused(&proxy, "tls.key", "cannot read").await;
    assert_eq!(shown(&proxy, &authority).await, der(&first));
    eventually("it is in the log", async || proxy.output().contains("configuration refused")).await;
    last.write(&folder);
    serves(&proxy, &authority, &last).await;
    assert_eq!(proxy.admin_json("/api/config").await["errors"], serde_json::json!([]));
}

/// As Kubernetes puts a secret into a folder: files are links into `..data`, itself a link to a folder of that generation.
fn mount(folder: &Path, generation: &str, identity: &Identity) {
    let files = folder.join(generation);
    std::fs::create_dir(&files).expect("a folder");
    std::fs::write(files.join("tls.crt"), &identity.cert).expect("write a file");
    std::fs::write(files.join("tls.key"), &identity.key).expect("write a file");
    symlink(generation, folder.join("..data_tmp")).expect("a link");
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("rename a link");
}

#[tokio::test]
async fn a_secret_of_kubernetes_is_followed() {
    let (authority, folder) = (Authority::named("a"), Folder::new());
    mount(folder.path(), "..2026_01", &authority.certify(&[LOOPBACK]));
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), folder.path().join(name)).expect("a link");
    }
    let path = folder.path().display();
    let table = format!("[tls]\ncert = \"{path}/tls.crt\"\nkey = \"{path}/tls.key\"\n");
    let (proxy, _backends) = proxied(&table, ["a"]).await;
    let next = authority.certify(&[LOOPBACK]);
    mount(folder.path(), "..2026_02", &next);
    std::fs::remove_dir_all(folder.path().join("..2026_01")).expect("remove a folder");
    serves(&proxy, &authority, &next).await;
}

#[tokio::test]
async fn a_listener_does_not_cease_to_speak_tls() {
    let (authority, folder) = (Authority::named("a"), Folder::new());
    let backend = Setup::named("a").start().await;
    let identity = authority.certify(&[LOOPBACK]);
    let proxy = Proxy::start(&config(&identity.table(&folder), [&backend])).await;
    proxy.write_config(&config("", [&backend]));
    is_refused(&proxy, "tls", "restart").await;
    assert_eq!(shown(&proxy, &authority).await, der(&identity));
}

#[tokio::test]
async fn check_names_what_is_wrong_and_warns_of_what_has_expired() {
    let (authority, folder) = (Authority::named("a"), Folder::new());
    let backends = "[[backends]]\nurl = \"http://127.0.0.1:9\"\n";
    let checked = async |table: &str| {
        folder.write("vision-proxy.toml", format!("{table}{backends}"));
        vision_proxy(&["check"], &folder).await
    };
    let table = authority.certify_until(&[LOOPBACK], 2020).table(&folder);
    let ended = checked(&table).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(
        ended.stdout.contains("warning: the certificate in tls.cert has expired at 2020-01-01T00:00:00Z"),
        "{ended:?}"
    );
    authority.certify(&[LOOPBACK]).write(&folder);
    let ended = checked(&table).await;
    assert!(ended.code == 0 && !ended.said().contains("warning"), "{ended:?}");
    folder.write("tls.key", authority.certify(&[LOOPBACK]).key);
    let ended = checked(&table).await;
    assert_eq!(ended.code, 1);
    assert!(ended.said().contains("toml:3: tls.key: does not belong to the certificate"), "{ended:?}");
}
