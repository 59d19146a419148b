//! What the admin page shows besides the snapshot and the backends: how the last reloads went.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::drained::Drained;
use super::events::Events;
use crate::config::Mistakes;
use crate::edge::Member;
use crate::plugin::{Refusal, Row};

/// Names of plugins that are counted apart. Whatever lies in the folder has one: what comes after is counted as `other`.
const PLUGINS_LIMIT: usize = 64;

/// Written by control, read by the admin listener.
pub struct Status {
    pub plugins: ArcSwap<Vec<Row>>,
    /// Removed backends that still hold requests.
    pub retired: ArcSwap<Vec<Member>>,
    /// Backends that were registered, and until when they are there; `None`: until they are deleted.
    pub registered: ArcSwap<BTreeMap<String, Option<Instant>>>,
    pub drained: Drained,
    pub events: Events,
    /// Every backend has been polled once and workers accept.
    pub ready: AtomicBool,
    pub started_at: SystemTime,
    /// The configuration file, where there is one.
    pub config_path: Option<PathBuf>,
    reloads: Mutex<Reloads>,
}

/// How reloads went, since the start.
#[derive(Debug, Clone, Default)]
pub struct Reloads {
    /// Hash of the text that was read last, good or bad, and of the files that it names.
    text: Option<u64>,
    /// Good loads of the configuration, the first included.
    pub config_generation: u64,
    pub config_loaded_at: Option<SystemTime>,
    pub config_refused: u64,
    /// Why the newest text was refused; `None` while it is the one in force.
    pub config_mistakes: Option<Mistakes>,
    /// The newest text is in force but for its `[plugins]`, which waits for what is being compiled.
    pub config_waits: bool,
    /// By plugin, over all its versions.
    pub plugins: BTreeMap<String, Tally>,
}

/// What happened to a plugin.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub swapped: u64,
    /// By the name of the stage.
    pub refused: BTreeMap<&'static str, u64>,
    pub faults: BTreeMap<&'static str, u64>,
}

impl Reloads {
    fn tally(&mut self, name: &str) -> &mut Tally {
        let is_one_too_many = self.plugins.len() >= PLUGINS_LIMIT && !self.plugins.contains_key(name);
        self.plugins.entry(if is_one_too_many { "other" } else { name }.to_owned()).or_default()
    }
}

impl Status {
    /// As it is after the first, good load.
    pub fn new(files: &[PathBuf]) -> Arc<Self> {
        let started_at = SystemTime::now();
        let reloads = Reloads {
            text: text(files),
            config_generation: 1,
            config_loaded_at: Some(started_at),
            ..Reloads::default()
        };
        Arc::new(Self {
            plugins: ArcSwap::default(),
            retired: ArcSwap::default(),
            registered: ArcSwap::default(),
            drained: Drained::default(),
            events: Events::default(),
            ready: AtomicBool::new(false),
            started_at,
            config_path: files.first().cloned(),
            reloads: Mutex::new(reloads),
        })
    }

    pub fn reloads(&self) -> MutexGuard<'_, Reloads> {
        self.reloads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the text of these files is not the one read last: of the configuration's first, then of those it names. One
    /// whose configuration is gone for a moment is no change.
    pub fn is_new_text(&self, files: &[PathBuf]) -> bool {
        let Some(now) = text(files) else { return false };
        self.reloads().text.replace(now) != Some(now)
    }

    pub fn config_loaded(&self) {
        let mut reloads = self.reloads();
        reloads.config_generation += 1;
        reloads.config_loaded_at = Some(SystemTime::now());
        reloads.config_mistakes = None;
        reloads.config_waits = false;
        self.events.config_loaded();
    }

    /// The newest text is in force but for its `[plugins]`.
    pub fn config_awaits_plugins(&self) {
        let mut reloads = self.reloads();
        reloads.config_mistakes = None;
        reloads.config_waits = true;
        self.events.config_awaits_plugins();
    }

    pub fn is_config_waiting(&self) -> bool {
        self.reloads().config_waits
    }

    pub fn config_refused(&self, mistakes: &Mistakes) {
        let mut reloads = self.reloads();
        reloads.config_refused += 1;
        reloads.config_mistakes = Some(mistakes.clone());
        reloads.config_waits = false;
        self.events.config_refused(mistakes);
    }

    pub fn plugin_swapped(&self, name: &str) {
        self.reloads().tally(name).swapped += 1;
        self.events.plugin(name, "swapped", "");
    }

    pub fn plugin_refused(&self, name: &str, refusal: &Refusal) {
        *self.reloads().tally(name).refused.entry(refusal.stage.name()).or_default() += 1;
        self.events.plugin(name, "refused", &refusal.to_string());
    }

    pub fn plugin_fault(&self, name: &str, reason: &'static str) {
        *self.reloads().tally(name).faults.entry(reason).or_default() += 1;
        self.events.plugin(name, "fault", reason);
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }
}

fn text(files: &[PathBuf]) -> Option<u64> {
    let (own, named) = files.split_first()?;
    let mut hasher = DefaultHasher::new();
    std::fs::read(own).ok()?.hash(&mut hasher);
    for file in named {
        std::fs::read(file).ok().hash(&mut hasher);
    }
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::Stage;

    #[test]
    fn files_of_many_names_do_not_become_as_many_labels() {
        let status = Status::new(&[]);
        let refusal = Refusal { stage: Stage::Format, reason: String::new() };
        status.plugin_swapped("mine");
        for number in 0..2 * PLUGINS_LIMIT {
            status.plugin_refused(&format!("junk-{number}"), &refusal);
        }
        status.plugin_fault("late", "trap");
        status.plugin_fault("mine", "trap");
        let plugins = &status.reloads().plugins;
        assert_eq!(plugins.len(), PLUGINS_LIMIT + 1);
        assert_eq!(plugins["other"].refused["format"], PLUGINS_LIMIT as u64 + 1);
        assert_eq!(plugins["other"].faults["trap"], 1);
        assert_eq!((plugins["mine"].swapped, plugins["mine"].faults["trap"]), (1, 1));
    }
}
