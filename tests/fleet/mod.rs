//! The fleet changes through the admin API: backends are registered, renewed, drained and deleted, no request is lost, and
//! whoever listens is told.

mod drain;
mod events;
mod registration;

use serde_json::{Value, json};

use crate::support::*;

/// What a node says of itself when it registers.
fn described(backend: &Backend) -> Value {
    let url = format!("http://{}", backend.address);
    json!({"url": url, "engine": "openai", "slots": 64, "models": {MODEL: NATIVE}})
}

async fn put(proxy: &Proxy, name: &str, body: &Value) -> Reply {
    asked(proxy, "PUT", &format!("/api/backends/{name}"), body).await
}

/// Asks for a change; with this body, where there is one.
async fn asked(proxy: &Proxy, method: &str, path: &str, body: &Value) -> Reply {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    whole(proxy.admin.request(method, path).body(body)).await
}
