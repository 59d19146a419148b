//! A snapshot from its parts: started plugins, the catalog, who serves what. All of it or nothing.
//!
//! Blocks while plugins are started: never on a worker, and not on the control thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::plugins::mistake;
use crate::config::{Config, Mistakes};
use crate::edge::{Keyring, Member, Snapshot};
use crate::plugin::{self, Fleet, Kind, Policy, Refusal, Route, Translator, Version};

/// The parts.
#[derive(Clone)]
pub struct Parts {
    pub config: Arc<Config>,
    /// Those of the snapshot before.
    pub keys: Keyring,
    pub fleet: Vec<Member>,
    pub policy: Arc<Version>,
    pub translator: Arc<Version>,
}

/// A plugin that could not be started with this fleet and these settings.
#[derive(Debug, thiserror::Error)]
#[error("plugin `{}`: {refusal}", version.name)]
pub struct NotStarted {
    pub version: Arc<Version>,
    pub refusal: Refusal,
}

impl NotStarted {
    /// As a mistake of the configuration.
    pub fn mistakes(&self) -> Mistakes {
        let key = format!("plugins.{}", self.version.kind.name());
        Mistakes { path: None, all: vec![mistake(&key, self.to_string())] }
    }
}

/// Builds the next snapshot.
///
/// # Errors
/// The plugin that refused, and why.
pub fn snapshot(parts: Parts) -> Result<Snapshot, NotStarted> {
    static GENERATION: AtomicU64 = AtomicU64::new(1);
    let generation = GENERATION.fetch_add(1, Relaxed);
    let Parts { config, keys, fleet, policy, translator } = parts;
    let backends: Vec<plugin::Backend> = fleet.iter().map(described).collect();
    let known = Fleet { generation, models: config.models.keys().cloned().collect(), backends };
    let limits = &config.plugins.limits;

    let version = translator;
    let not_started = |refusal| NotStarted { version: Arc::clone(&version), refusal };
    let started = Translator::start(&version, &known, &settings(&config, &version), limits, config.workers);
    let translator = started.map_err(not_started)?;
    let all: Vec<Arc<str>> = translator.catalog().iter().map(|name| name.as_str().into()).collect();
    // A name that fails here is asked for again by the worker that needs it, where the fault is counted.
    let routes = translator.routes(&all).map_err(not_started)?;
    let catalog: Vec<Arc<str>> = all.into_iter().filter(|name| !is_alias(name, routes.get(name), &fleet)).collect();

    let offered = Fleet { models: catalog.iter().map(ToString::to_string).collect(), ..known };
    let started = Policy::start(&policy, &offered, &settings(&config, &policy), limits, config.workers);
    let policy = started.map_err(|refusal| NotStarted { version: Arc::clone(&policy), refusal })?;
    Ok(Snapshot {
        generation,
        keys: keys.renewed(&config.keys),
        config,
        fleet,
        catalog,
        routes,
        policy: Arc::new(policy),
        translator: Arc::new(translator),
    })
}

/// Whether a name is only another one for a model that the same backends list under its own: such names are
/// served, but not listed twice.
fn is_alias(name: &str, routes: Option<&Vec<Route>>, fleet: &[Member]) -> bool {
    let is_other_name = |route: &Route| {
        let Some(member) = fleet.get(route.backend as usize) else { return false };
        let models = Arc::clone(&member.backend.known().models);
        route.native == name && models.iter().any(|served| served.alias && served.native == name)
    };
    routes.is_some_and(|routes| !routes.is_empty() && routes.iter().all(is_other_name))
}

/// Whether these two configurations tell a plugin the same and give it the same: of the fleet, neither says anything here.
pub fn is_told_the_same(version: &Version, old: &Config, new: &Config) -> bool {
    old.plugins.limits == new.plugins.limits && settings(old, version) == settings(new, version)
}

/// What a plugin is told of its settings; a translator finds the `[models]` table among them.
fn settings(config: &Config, version: &Version) -> Value {
    let mut settings = config.plugins.settings.get(&version.name).cloned().unwrap_or_else(|| json!({}));
    if version.kind == Kind::Translator
        && let Some(object) = settings.as_object_mut()
    {
        object.entry("models").or_insert_with(|| json!(config.models));
    }
    settings
}

/// A backend as plugins see it.
fn described(member: &Member) -> plugin::Backend {
    let (engine, models) = {
        let known = member.backend.known();
        (known.engine, Arc::clone(&known.models))
    };
    let pairs = |map: &std::collections::BTreeMap<String, String>| {
        map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    plugin::Backend {
        name: member.config.name.clone(),
        hash: stable_hash(&member.config.name),
        engine: engine.map_or("unknown", |engine| engine.name()).into(),
        weight: member.config.weight,
        labels: pairs(&member.config.labels),
        serves: models.iter().map(|model| model.native.clone()).collect(),
        names: pairs(&member.config.models),
    }
}

/// The first eight bytes of the SHA-256: the same in every process and version.
fn stable_hash(name: &str) -> u64 {
    Sha256::digest(name).first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
