//! What control and the admin page know of a backend: behind a lock, not for the request path.

use std::sync::Arc;
use std::time::SystemTime;

use super::engine::ServedModel;
use super::health::Health;
use super::limit::Learned;
use super::outlier::Window;
use super::room::Share;
use crate::config::Engine;

/// What control and the admin page know of a backend.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// What it runs: configured or found out.
    pub engine: Option<Engine>,
    pub configured_slots: Option<u32>,
    pub reported_slots: Option<u32>,
    /// Proxies that share its slots, besides this one.
    pub other_replicas: u32,
    pub learned: Learned,
    pub health: Health,
    /// Attempts of the last half minute.
    pub window: Window,
    /// What the reports leave to us.
    pub share: Share,
    /// When it was last put out of use; what began before says nothing of it since.
    pub ejected_ms: Option<u64>,
    /// When the learned limit was last lowered.
    pub lowered_ms: u64,
    pub kv_cache_used: Option<f64>,
    /// As last reported; kept while it is down, for a known model is not an unknown one.
    pub models: Arc<Vec<ServedModel>>,
    pub down_since: Option<SystemTime>,
    pub last_error: Option<String>,
}

impl Known {
    /// The number of all its slots where it is somebody's word, and whose. Of two numbers the smaller: a report can only
    /// lower what is configured, and what an engine does not take waits better here than in it.
    fn told(&self) -> Option<(u32, &'static str)> {
        match (self.configured_slots, self.reported_slots) {
            (Some(slots), reported) if reported.is_none_or(|reported| slots <= reported) => Some((slots, "config")),
            (_, reported) => reported.map(|slots| (slots, "reported")),
        }
    }

    /// The number of all its slots where it is somebody's word.
    pub fn told_slots(&self) -> Option<u32> {
        self.told().map(|(slots, _)| slots)
    }

    /// The number of slots that are this proxy's part, and where it comes from. What is learned is ours alone.
    pub fn slots(&self) -> (u32, &'static str) {
        let part = |(slots, from): (u32, _)| ((slots / (self.other_replicas + 1)).max(1), from);
        self.told().map_or_else(|| (self.learned.slots(), "learned"), part)
    }
}
