//! What happens beside the requests, told to whoever listens at `GET /api/events`.
//!
//! Telling never waits: what a listener does not take in time is dropped for it, and it is told how much that was.

use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::config::Mistakes;

/// Events that are kept for the slowest listener.
const KEPT: usize = 256;

/// One event: its kind, and what there is to say as JSON.
#[derive(Debug, Clone)]
pub struct Event {
    pub kind: &'static str,
    pub said: Value,
}

/// The source of events.
#[derive(Debug)]
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(KEPT))
    }
}

impl Events {
    /// Everything from now on.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }

    /// A backend was registered, drained and the like.
    pub fn fleet(&self, backend: &str, what: &'static str) {
        tracing::info!(backend, "{what}");
        self.tell("fleet", json!({"backend": backend, "what": what}));
    }

    /// A configuration was loaded.
    pub fn config_loaded(&self) {
        self.tell("config", json!({"what": "loaded"}));
    }

    /// A configuration was loaded but for what it says of plugins, one of which is being compiled.
    pub fn config_awaits_plugins(&self) {
        self.tell("config", json!({"what": "pending"}));
    }

    /// A configuration was refused.
    pub fn config_refused(&self, mistakes: &Mistakes) {
        let why: Vec<String> = mistakes.to_string().lines().map(str::to_owned).collect();
        self.tell("config", json!({"what": "refused", "errors": why}));
    }

    /// A plugin was swapped in, refused, rolled back, or failed. `why` is empty where there is nothing to add.
    pub fn plugin(&self, plugin: &str, what: &'static str, why: &str) {
        self.tell("plugin", json!({"plugin": plugin, "what": what, "why": (!why.is_empty()).then_some(why)}));
    }

    /// The process was told to end.
    pub fn ending(&self) {
        self.tell("process", json!({"what": "ending"}));
    }

    fn tell(&self, kind: &'static str, said: Value) {
        // An error means that nobody listens.
        let _ = self.0.send(Event { kind, said });
    }
}
