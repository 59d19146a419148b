//! What a simulation has seen: counts, and the last request word for word.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hyper::HeaderMap;
use hyper::http::request::Parts;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::asked::Media;
use super::{Simulation, hold};

/// Counts since the start.
#[derive(Default)]
pub(super) struct Stats {
    /// Every request but those to `/__simulate`.
    requests: AtomicU64,
    connections: AtomicU64,
    connections_open: AtomicU64,
    faults: AtomicU64,
    by_path: Mutex<BTreeMap<String, u64>>,
    last: Mutex<Option<Last>>,
    last_poll: Mutex<Option<Last>>,
}

/// Paths counted one by one; what comes after them is summed up as `other`.
const PATH_LIMIT: usize = 256;
/// Bytes of a body that are kept to look at.
const HEAD_BYTES: usize = 1024;

/// A request to look at afterwards.
struct Last {
    method: String,
    target: String,
    version: String,
    headers: Vec<(String, String)>,
    body_bytes: usize,
    body_sha256: String,
    body_head: String,
    images: Vec<Media>,
}

impl Stats {
    pub(super) fn count_request(&self, path: &str) {
        self.requests.fetch_add(1, Relaxed);
        let mut by_path = hold(&self.by_path);
        let known = by_path.contains_key(path) || by_path.len() < PATH_LIMIT;
        *by_path.entry(if known { path } else { "other" }.to_owned()).or_default() += 1;
    }

    pub(super) fn count_fault(&self) {
        self.faults.fetch_add(1, Relaxed);
    }

    /// Counts a connection for as long as what it gives lives.
    pub(super) fn connection(&self) -> Connected<'_> {
        self.connections.fetch_add(1, Relaxed);
        self.connections_open.fetch_add(1, Relaxed);
        Connected(self)
    }

    /// Keeps a request that asks for work, in the place of the one before.
    pub(super) fn remember(&self, head: &Parts, body: &[u8], images: Vec<Media>) {
        *hold(&self.last) = Some(Last::new(head, body, images));
    }

    /// Keeps a poll, apart from the others: polls come every second.
    pub(super) fn remember_poll(&self, head: &Parts, body: &[u8]) {
        *hold(&self.last_poll) = Some(Last::new(head, body, Vec::new()));
    }

    /// The last request that was no poll, or the last poll; null before the first.
    pub(super) fn last(&self, poll: bool) -> Value {
        let last = if poll { &self.last_poll } else { &self.last };
        hold(last).as_ref().map_or(Value::Null, Last::to_json)
    }
}

/// One open connection.
pub(super) struct Connected<'a>(&'a Stats);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.connections_open.fetch_sub(1, Relaxed);
    }
}

impl Last {
    fn new(head: &Parts, body: &[u8], images: Vec<Media>) -> Self {
        Self {
            method: head.method.to_string(),
            target: head.uri.to_string(),
            version: format!("{:?}", head.version),
            headers: plain_headers(&head.headers),
            body_bytes: body.len(),
            body_sha256: hex(&Sha256::digest(body)),
            body_head: String::from_utf8_lossy(body.get(..HEAD_BYTES).unwrap_or(body)).into_owned(),
            images,
        }
    }

    fn to_json(&self) -> Value {
        let images: Vec<_> =
            self.images.iter().map(|image| json!({"type": image.kind, "bytes": image.bytes})).collect();
        json!({
            "method": self.method, "target": self.target, "version": self.version, "headers": self.headers,
            "body_bytes": self.body_bytes, "body_sha256": self.body_sha256, "body_head": self.body_head,
            "images": images,
        })
    }
}

/// Names and values in the order they came in.
fn plain_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let plain = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), plain(value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The answer of `GET /__simulate/stats`.
///
/// `max_running` counts generation requests that were inside at one time, also those without a slot, so that it exceeds
/// `slots` as soon as somebody sends too many; `requests` and `by_path` count polls as well.
pub(super) fn report(simulation: &Simulation) -> Value {
    let load = simulation.slots.load();
    let stats = &simulation.stats;
    let by_path: serde_json::Map<_, _> =
        hold(&stats.by_path).iter().map(|(path, n)| (path.clone(), json!(n))).collect();
    json!({
        "name": simulation.label, "engine": simulation.engine.name(), "slots": load.slots,
        "running": load.running, "waiting": load.waiting, "kv_cache_used": load.kv_usage(),
        "max_running": load.counts.max_inside, "max_waiting": load.counts.max_waiting,
        "requests": stats.requests.load(Relaxed), "finished": load.counts.finished,
        "cancelled": load.counts.cancelled, "refused": load.counts.refused, "faults": stats.faults.load(Relaxed),
        "connections": stats.connections.load(Relaxed), "connections_open": stats.connections_open.load(Relaxed),
        "by_path": by_path,
    })
}
