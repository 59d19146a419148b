//! The plugins of this process: the store of what may run, and the compiler behind it.
//!
//! Everything here reads files or compiles: it blocks, and runs on a blocking thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::config::{Config, Mistake, Mistakes};
use crate::plugin::{Change, Kind, Row, Runtime, State, Store, Version, What};

/// The plugins, and the compiler behind them. Cloning shares them.
#[derive(Clone)]
pub struct Plugins {
    pub runtime: Runtime,
    store: Arc<Mutex<Store>>,
}

impl Plugins {
    /// The built-in plugins and what lies in the folder. Blocks.
    ///
    /// # Errors
    /// Where wasmtime cannot work on this machine.
    pub fn load(config: &Config) -> anyhow::Result<Self> {
        let runtime = Runtime::new()?;
        let mut store = Store::new(&config.plugins.dir, runtime.built_ins()?);
        log_changes(&store.scan(&runtime, &config.plugins.pins, Instant::now()));
        Ok(Self { runtime, store: Arc::new(Mutex::new(store)) })
    }

    /// Works on the store on a blocking thread: it reads files and compiles.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store, &Runtime) -> T + Send + 'static,
    ) -> Option<T> {
        let plugins = self.clone();
        let work = move || work(&mut plugins.store(), &plugins.runtime);
        spawn_blocking(work).await.inspect_err(|panic| tracing::error!("the plugin store failed: {panic}")).ok()
    }

    /// The files in the folder that cannot be used, each with the reason.
    pub fn refused(&self) -> Vec<String> {
        let store = self.store();
        let unusable = |row: &Row| matches!(row.state, State::Refused | State::Pending);
        let reason = |row: Row| format!("{}.wasm: {}", row.name, row.last_error.unwrap_or_else(|| "incomplete".into()));
        store.status(&[]).into_iter().filter(unusable).map(reason).collect()
    }

    /// The active pair, by their names in the configuration.
    ///
    /// # Errors
    /// The names that nothing runs under, as mistakes of the configuration.
    pub fn active(&self, config: &Config) -> Result<(Arc<Version>, Arc<Version>), Mistakes> {
        let store = self.store();
        let find = |key: &str, name: &str, kind: Kind| match store.current(name) {
            Some(version) if version.kind == kind => Ok(version),
            Some(version) => Err(mistake(key, format!("`{name}` is a {}, not a {}", version.kind.name(), kind.name()))),
            None => Err(mistake(
                key,
                format!("there is no plugin `{name}`: neither built in nor in {}", config.plugins.dir.display()),
            )),
        };
        let policy = find("plugins.policy", &config.plugins.policy, Kind::Policy);
        let translator = find("plugins.translator", &config.plugins.translator, Kind::Translator);
        match (policy, translator) {
            (Ok(policy), Ok(translator)) => Ok((policy, translator)),
            (policy, translator) => {
                Err(Mistakes { path: None, all: policy.err().into_iter().chain(translator.err()).collect() })
            }
        }
    }

    /// The store, locked: it may be compiling, so not from a worker.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A mistake that is not tied to a line.
pub fn mistake(key: &str, message: String) -> Mistake {
    Mistake { key: key.into(), line: None, message }
}

/// Tells the log what a scan found.
pub fn log_changes(changes: &[Change]) {
    for change in changes {
        match &change.what {
            What::Loaded(version) => {
                tracing::info!(plugin = %change.name, kind = version.kind.name(), sha256 = %version.sha256, "loaded")
            }
            What::Gone => tracing::warn!(plugin = %change.name, "nothing may run under this name any more"),
            What::Kept => tracing::warn!(plugin = %change.name, "its file is gone; what was loaded runs on"),
            What::Refused(refusal) => tracing::error!(plugin = %change.name, "refused: {refusal}"),
        }
    }
}
