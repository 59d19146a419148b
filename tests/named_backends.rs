//! Backends that are known by a name: a name that cannot be found is a backend that is down, and nobody waits for it.

use crate::support::*;

/// A table for a backend at this host.
fn at(name: &str, host: &str, port: u16) -> String {
    format!(
        "[[backends]]\nname = \"{name}\"\nurl = \"http://{host}:{port}\"\nengine = \"openai\"\nmodels = {{ \"{MODEL}\" = \"{NATIVE}\" }}\n"
    )
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
