//! The plugins of this process: the store of what may run, and the compiler behind it.
//!
//! Everything here reads files or waits for the compiler: it blocks, and runs on a blocking thread.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::config::{self, Config, Mistake, Mistakes};
use crate::plugin::{Change, Compiler, Judge, Kind, Refusal, Row, Runtime, State, Store, Version, What};

/// A file that is another one each time that it is compiled is not waited for more often than this.
const COMPILED_AT_ONCE: usize = 3;

/// The plugins, and the compiler behind them. Cloning shares them.
#[derive(Clone)]
pub struct Plugins {
    compiler: Arc<Compiler>,
    store: Arc<Mutex<Store>>,
}

impl Plugins {
    /// The built-in plugins and what lies in the folder; what the configuration names is compiled when this returns, the
    /// others soon after. `compiled` is called when one of them is. Blocks.
    ///
    /// # Errors
    /// Where wasmtime cannot work on this machine.
    pub fn load(config: &Config, compiled: impl Fn() + Send + Sync + 'static) -> anyhow::Result<Self> {
        let runtime = Runtime::new()?;
        let built_ins = runtime.built_ins();
        let compiler = Compiler::start(runtime, Some(Judge::this_program()?), compiled)?;
        let store = Store::new(&config.plugins.dir, built_ins);
        let plugins = Self { compiler: Arc::new(compiler), store: Arc::new(Mutex::new(store)) };
        plugins.scan(&config.plugins);
        plugins.finish(&config.plugins, |name| config.plugins.is_active(name));
        Ok(plugins)
    }

    /// There is traffic from now on: whatever is compiled gives way to it.
    pub fn give_way(&self) {
        self.compiler.give_way();
    }

    /// Looks at the folder, and tells the log what is found. Blocks.
    pub fn scan(&self, config: &config::Plugins) -> Vec<Change> {
        let changes = self.store().scan(&self.compiler, config, Instant::now());
        log_changes(&changes);
        changes
    }

    /// Whether what these rules set to work is compiled, so that they can come into force at once. Where it is not they wait for
    /// that, and files are judged by them meanwhile. Answers with what was found. Blocks for as long as reading files takes.
    pub fn prepare(&self, in_force: &config::Plugins, rules: &config::Plugins) -> (bool, Vec<Change>) {
        {
            let mut store = self.store();
            if in_force == rules {
                store.want(None);
                return (true, Vec::new());
            }
            if store.wanted() != Some(rules) {
                store.reconsider();
                store.want(Some(rules.clone()));
            }
        }
        let mut changes = self.scan(in_force);
        if !self.is_compiled(rules) {
            return (false, changes);
        }
        self.store().want(None);
        changes.extend(self.scan(rules));
        (true, changes)
    }

    /// Whether nothing that these rules set to work is being compiled.
    pub fn is_compiled(&self, rules: &config::Plugins) -> bool {
        self.store().ordered(|name| rules.is_active(name)).is_empty()
    }

    /// Returns when the files of these names are compiled. Blocks for as long as that takes.
    pub fn finish(&self, config: &config::Plugins, is_asked: impl Fn(&str) -> bool) {
        for _ in 0..COMPILED_AT_ONCE {
            let jobs = self.store().ordered(&is_asked);
            if jobs.is_empty() {
                break;
            }
            // Not with the store locked: the admin page wants it meanwhile.
            jobs.iter().for_each(|job| _ = job.wait());
            self.scan(config);
        }
    }

    /// Works with the plugins on a blocking thread.
    pub async fn with<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> Option<T> {
        let plugins = self.clone();
        let work = move || work(&plugins);
        spawn_blocking(work).await.inspect_err(|panic| tracing::error!("the plugin store failed: {panic}")).ok()
    }

    /// A version could not be started: what ran before is current again. False where there is nothing before.
    pub fn refuse(&self, version: &Version, refusal: Refusal) -> bool {
        self.store().refuse(&version.name, &version.sha256, refusal)
    }

    /// A version faulted too often: what ran before is current again.
    pub fn roll_back(&self, version: &Version, why: &str) {
        self.store().roll_back(&self.compiler.runtime, &version.name, &version.sha256, why);
    }

    /// The files in the folder that cannot be used, each with the reason.
    pub fn refused(&self) -> Vec<String> {
        let store = self.store();
        let unusable = |row: &Row| matches!(row.state, State::Refused | State::Pending);
        let reason = |row: Row| format!("{}.wasm: {}", row.name, row.last_error.unwrap_or_else(|| "incomplete".into()));
        store.status(&[]).into_iter().filter(unusable).map(reason).collect()
    }

    /// The active pair, by their names in the configuration. Where that is in force already, what has nothing left to run is stood
    /// in for by the built-in plugin of its kind: nothing else that changes is to fail for it.
    ///
    /// # Errors
    /// The names that nothing runs under, as mistakes of the configuration.
    pub fn active(&self, config: &Config, is_in_force: bool) -> Result<(Arc<Version>, Arc<Version>), Mistakes> {
        let store = self.store();
        let find = |key: &str, name: &str, kind: Kind| match store.current(name) {
            Some(version) if version.kind == kind => Ok(version),
            Some(version) => Err(mistake(key, format!("`{name}` is a {}, not a {}", version.kind.name(), kind.name()))),
            None => is_in_force
                .then(|| store.current(kind.built_in()))
                .flatten()
                .ok_or_else(|| mistake(key, nothing_runs(&store, name, &config.plugins.dir))),
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

    /// The store, locked: somebody may be reading files with it, so not from a worker.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is nothing to run under a name.
fn nothing_runs(store: &Store, name: &str, dir: &Path) -> String {
    let why = store.status(&[]).into_iter().find(|row| row.name == name).and_then(|row| row.last_error);
    why.map_or_else(
        || format!("there is no plugin `{name}`: neither built in nor in {}", dir.display()),
        |why| format!("the plugin `{name}` cannot run: {why}"),
    )
}

/// A mistake that is not tied to a line.
pub fn mistake(key: &str, message: String) -> Mistake {
    Mistake { key: key.into(), line: None, message }
}

/// Tells the log what a scan found.
fn log_changes(changes: &[Change]) {
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
