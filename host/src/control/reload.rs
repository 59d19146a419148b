//! Everything that changes while the proxy runs: configuration, fleet, plugins. Each change builds a whole new
//! snapshot and swaps it in once, or is refused as a whole and leaves everything as it was.

mod changes;
mod fleet;
mod plugins;

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderValue;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::build::{self, NotStarted, Parts};
use super::plugins::{Plugins, mistake};
use super::poll::{FleetChanged, Polling};
use super::registered::Registered;
use super::source::ConfigSource;
use super::status::Status;
use crate::config::{BackendConfig, Config, Mistake, Mistakes};
use crate::edge::upstream::Pool;
use crate::edge::{Keyring, Member, Shared, Snapshot};
use crate::fleet::{Backend, Queue};
use crate::plugin::{Strikes, Version};
pub use changes::{Change, Changed, Refused, Wish};

/// The fleet that configuration and registrations ask for, keeping the backends that live already: those in use, and those that left
/// and still hold requests, whose slots are not free because a file says so.
///
/// # Errors
/// Keys that cannot be sent.
fn members(
    config: &Config,
    registered: &Registered,
    living: [&[Member]; 2],
    queue: &Arc<Queue>,
) -> Result<Vec<Member>, Mistakes> {
    let mut mistakes = Vec::new();
    let mut member = |(at, backend): (usize, &BackendConfig)| {
        let living = living
            .iter()
            .flat_map(|members| members.iter())
            .map(|member| &member.backend)
            .find(|living| *living.name == *backend.name && living.url == backend.url);
        let authorization = backend.api_key.as_ref().and_then(|key| {
            let value = HeaderValue::from_str(&format!("Bearer {}", key.expose()));
            value
                .map_err(|_| {
                    mistakes
                        .push(mistake(&format!("backends[{at}].api_key"), "this key cannot stand in a header".into()))
                })
                .ok()
        });
        let authorization = authorization.map(|mut value| {
            value.set_sensitive(true);
            value
        });
        let backend_of = || Backend::new(&backend.name, backend.url.clone(), Arc::clone(queue));
        Member { backend: living.cloned().unwrap_or_else(backend_of), config: Arc::new(backend.clone()), authorization }
    };
    let fleet = config.backends.iter().chain(registered.backends()).enumerate().map(&mut member).collect();
    if mistakes.is_empty() { Ok(fleet) } else { Err(Mistakes { path: None, all: mistakes }) }
}

/// Builds the first snapshot, or the one that `check` looks at. Blocks.
///
/// # Errors
/// What is wrong with plugins or keys, as mistakes of the configuration.
pub fn first_snapshot(config: Config, plugins: &Plugins, queue: &Arc<Queue>) -> Result<Snapshot, Mistakes> {
    let (policy, translator) = plugins.active(&config, false)?;
    let fleet = members(&config, &Registered::default(), [&[], &[]], queue)?;
    for member in &fleet {
        member.backend.configure(member.config.slots, member.config.engine, &config.capacity);
    }
    let parts = Parts { config: Arc::new(config), keys: Keyring::default(), fleet, policy, translator };
    build::snapshot(parts).map_err(|error| error.mistakes())
}

/// The one who swaps snapshots.
pub struct Reload {
    shared: Arc<Shared>,
    source: ConfigSource,
    plugins: Plugins,
    pub status: Arc<Status>,
    pool: Rc<Pool>,
    /// By backend id.
    polling: HashMap<u64, Polling>,
    changed: mpsc::UnboundedSender<FleetChanged>,
    /// Removed backends that still hold requests.
    retired: Vec<Member>,
    registered: Registered,
    /// Earlier snapshots that workers may have: whoever lets go last frees plugin instances, and no worker has time for that.
    past: Vec<Arc<Snapshot>>,
    /// Recent faults, by plugin name and content.
    strikes: BTreeMap<(String, String), Strikes>,
}

impl Reload {
    pub fn new(
        shared: Arc<Shared>,
        source: ConfigSource,
        plugins: Plugins,
        status: Arc<Status>,
        changed: mpsc::UnboundedSender<FleetChanged>,
    ) -> Self {
        let pool = Rc::new(Pool::new(Arc::clone(&shared.names)));
        Self {
            shared,
            source,
            plugins,
            status,
            pool,
            polling: HashMap::new(),
            retired: Vec::new(),
            registered: Registered::default(),
            past: Vec::new(),
            changed,
            strikes: BTreeMap::new(),
        }
    }

    /// A poll found something new: the plugins are told of the fleet as it is now.
    pub async fn fleet_changed(&mut self) {
        let snapshot = self.shared.snapshot.load_full();
        if let Err(error) = self.swap(Arc::clone(&snapshot.config), snapshot.fleet.clone()).await {
            tracing::error!("the fleet changed, but no snapshot could be built: {error}");
        }
    }

    /// Reads the configuration again. `forced`: also where its text is the same (SIGHUP).
    pub async fn config_changed(&mut self, forced: bool) {
        if !self.status.is_new_text(&self.source.files()) && !forced {
            return;
        }
        match self.reconfigure().await {
            Ok(is_whole) => {
                log_warnings(&self.shared.snapshot.load().config);
                if is_whole {
                    tracing::info!("configuration reloaded");
                    self.status.config_loaded();
                } else {
                    tracing::info!(
                        "configuration reloaded, but for [plugins]: that waits for a plugin that is being compiled"
                    );
                    self.status.config_awaits_plugins();
                }
            }
            Err(mistakes) => {
                tracing::error!("configuration refused, the old one stays: {mistakes}");
                self.status.config_refused(&mistakes);
            }
        }
    }

    /// Brings a new configuration into force. False where its `[plugins]` has to wait for what is being compiled: then that stays
    /// as it was until `plugins_ready`, for nobody else is to wait.
    async fn reconfigure(&mut self) -> Result<bool, Mistakes> {
        let mut config = self.source.load().await?;
        let old = self.shared.snapshot.load_full();
        let fixed = unchangeable(&old.config, &config);
        if !fixed.is_empty() {
            return Err(Mistakes { path: self.source.path.clone(), all: fixed });
        }
        let wanted_before = self.plugins.store().wanted().cloned();
        let (in_force, rules) = (old.config.plugins.clone(), config.plugins.clone());
        let prepared = self.plugins.with(move |plugins| plugins.prepare(&in_force, &rules)).await;
        let (is_whole, changes) = prepared.unwrap_or((true, Vec::new()));
        self.count_refused(&changes);
        if !is_whole {
            config.plugins = old.config.plugins.clone();
        }
        let mut registered = self.registered.clone();
        let listed = registered.yield_to(&config.backends);
        if let Err(mistakes) = self.adopt(Arc::new(config), registered).await {
            self.plugins.store().want(wanted_before);
            return Err(mistakes);
        }
        for name in listed {
            self.status.events.fleet(&name, "is the configuration's from now on");
        }
        Ok(is_whole)
    }

    /// Builds the next snapshot and stores it. A plugin file that cannot be started is refused, and the version before it
    /// taken. So it is where the very version that runs cannot be started with another fleet, or nothing is left; but where it is
    /// told something else than before, the configuration is at fault.
    async fn swap(&mut self, config: Arc<Config>, fleet: Vec<Member>) -> Result<(), Mistakes> {
        let mut refused = None;
        let in_force = Arc::clone(&self.shared.snapshot.load().config);
        loop {
            let active = self.plugins.active(&config, config.plugins == in_force.plugins);
            let (policy, translator) = active.map_err(|mistakes| refused.clone().unwrap_or(mistakes))?;
            let running = self.running();
            let mut new = vec![Arc::clone(&policy), Arc::clone(&translator)];
            new.retain(|version| !running.contains(&version.generation));
            let keys = self.shared.snapshot.load().keys.clone();
            match self
                .build(Parts { config: Arc::clone(&config), keys, fleet: fleet.clone(), policy, translator })
                .await
            {
                Ok(next) => {
                    self.store(next, &new);
                    return Ok(());
                }
                Err(Some(error)) => {
                    let mistakes = error.mistakes();
                    let is_running = running.contains(&error.version.generation);
                    let is_given_up = if !is_running {
                        self.refuse(error).await
                    } else if build::is_told_the_same(&error.version, &in_force, &config) {
                        self.give_up(error).await
                    } else {
                        false
                    };
                    if !is_given_up {
                        return Err(mistakes);
                    }
                    refused.get_or_insert(mistakes);
                }
                Err(None) => {
                    let why = mistake("", "the snapshot could not be built".into());
                    return Err(Mistakes { path: None, all: vec![why] });
                }
            }
        }
    }

    /// Generations of the plugins in use.
    fn running(&self) -> [u64; 2] {
        let snapshot = self.shared.snapshot.load();
        [snapshot.policy.version(), snapshot.translator.version()].map(|version| version.generation)
    }

    /// Starts the plugins on a blocking thread. `Err(None)` where that thread died, which has been logged.
    async fn build(&self, parts: Parts) -> Result<Snapshot, Option<NotStarted>> {
        let built = spawn_blocking(move || build::snapshot(parts)).await;
        built
            .inspect_err(|panic| tracing::error!("building a snapshot failed: {panic}"))
            .map_err(|_| None)?
            .map_err(Some)
    }

    /// The one place where a snapshot is stored. `new` are the plugins that begin to run with it.
    fn store(&mut self, next: Snapshot, new: &[Arc<Version>]) {
        self.past.push(self.shared.snapshot.swap(Arc::new(next)));
        self.let_go();
        for version in new {
            tracing::info!(plugin = %version.name, sha256 = %version.sha256, "swapped in");
            self.status.plugin_swapped(&version.name);
        }
        self.publish();
    }

    /// Shows the admin page what the store says.
    pub fn publish(&self) {
        let rows = self.plugins.store().status(&self.running());
        self.status.plugins.store(Arc::new(rows));
    }
}

/// What is allowed and should not go unsaid.
pub fn log_warnings(config: &Config) {
    for warning in config.warnings(SystemTime::now()) {
        tracing::warn!("{warning}");
    }
}

fn is_in(fleet: &[Member], one: &Member) -> bool {
    fleet.iter().any(|member| member.backend.id == one.backend.id)
}

/// What a running process cannot change.
fn unchangeable(old: &Config, new: &Config) -> Vec<Mistake> {
    let differs = [
        ("listen", old.listen != new.listen),
        ("admin", old.admin != new.admin),
        // The files may: only whether there is TLS at all is part of the address.
        ("tls", old.tls.is_some() != new.tls.is_some()),
        ("workers", old.workers != new.workers),
        // A slip that leaves no key would open the proxy to everybody.
        ("keys", new.keys.is_empty() && !old.keys.is_empty()),
        ("plugins.dir", old.plugins.dir != new.plugins.dir),
    ];
    let fixed = differs.into_iter().filter(|(_, differs)| *differs);
    fixed.map(|(key, _)| mistake(key, "cannot change while the proxy runs: restart it".into())).collect()
}
