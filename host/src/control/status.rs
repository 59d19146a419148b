//! What the admin page shows besides the snapshot and the backends: how the last reloads went.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;

use crate::config::Mistakes;
use crate::edge::Member;
use crate::plugin::Row;

/// Written by control, read by the admin listener.
pub struct Status {
    pub plugins: ArcSwap<Vec<Row>>,
    /// Removed backends that still hold requests.
    pub retired: ArcSwap<Vec<Member>>,
    /// Every backend has been polled once and workers accept.
    pub ready: AtomicBool,
    reloads: Mutex<Reloads>,
}

/// How reloads went, since the start.
#[derive(Debug, Clone, Default)]
pub struct Reloads {
    /// Hash of the text that was read last, good or bad.
    text: Option<u64>,
    /// Good loads of the configuration, the first included.
    pub config_generation: u64,
    pub config_loaded_at: Option<SystemTime>,
    pub config_refused: u64,
    /// Why the newest text was refused; `None` while it is the one in force.
    pub config_mistakes: Option<Mistakes>,
    /// Swaps and refusals by plugin.
    pub plugins: BTreeMap<String, (u64, u64)>,
    /// Faults by plugin and reason, over all its versions.
    pub faults: BTreeMap<(String, &'static str), u64>,
}

impl Status {
    /// As it is after the first, good load.
    pub fn new(path: Option<&Path>) -> Arc<Self> {
        let reloads = Reloads {
            text: text(path),
            config_generation: 1,
            config_loaded_at: Some(SystemTime::now()),
            ..Reloads::default()
        };
        Arc::new(Self {
            plugins: ArcSwap::default(),
            retired: ArcSwap::default(),
            ready: AtomicBool::new(false),
            reloads: Mutex::new(reloads),
        })
    }

    pub fn reloads(&self) -> MutexGuard<'_, Reloads> {
        self.reloads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the file's text is not the one read last. A file that is gone for a moment is no change.
    pub fn is_new_text(&self, path: Option<&Path>) -> bool {
        let Some(now) = text(path) else { return false };
        self.reloads().text.replace(now) != Some(now)
    }

    pub fn config_loaded(&self, at: SystemTime) {
        let mut reloads = self.reloads();
        reloads.config_generation += 1;
        reloads.config_loaded_at = Some(at);
        reloads.config_mistakes = None;
    }

    pub fn config_refused(&self, mistakes: &Mistakes) {
        let mut reloads = self.reloads();
        reloads.config_refused += 1;
        reloads.config_mistakes = Some(mistakes.clone());
    }

    pub fn plugin_reloaded(&self, name: &str, good: bool) {
        let mut reloads = self.reloads();
        let (swapped, refused) = reloads.plugins.entry(name.to_owned()).or_default();
        *(if good { swapped } else { refused }) += 1;
    }

    pub fn plugin_fault(&self, name: &str, reason: &'static str) {
        *self.reloads().faults.entry((name.to_owned(), reason)).or_default() += 1;
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }
}

fn text(path: Option<&Path>) -> Option<u64> {
    let text = std::fs::read(path?).ok()?;
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    Some(hasher.finish())
}
