//! Everything that changes while the proxy runs: configuration, fleet, plugins. Each change builds a whole new
//! snapshot and swaps it in once, or is refused as a whole and leaves everything as it was.

mod changes;
mod fleet;

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderValue;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::build::{self, NotStarted, Parts};
use super::plugins::{Plugins, mistake};
use super::poll::{FleetChanged, Polling};
use super::registered::Registered;
use super::source::ConfigSource;
use super::status::Status;
use crate::config::{BackendConfig, Config, Mistake, Mistakes};
use crate::edge::upstream::Pool;
use crate::edge::{FaultReport, Keyring, Member, Shared, Snapshot};
use crate::fleet::{Backend, Queue};
use crate::plugin::{Kind, Strikes, Version, What};
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
    let (policy, translator) = plugins.active(&config)?;
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
            Ok(()) => {
                tracing::info!("configuration reloaded");
                log_warnings(&self.shared.snapshot.load().config);
                self.status.config_loaded(SystemTime::now());
            }
            Err(mistakes) => {
                tracing::error!("configuration refused, the old one stays: {mistakes}");
                self.status.config_refused(&mistakes);
            }
        }
    }

    async fn reconfigure(&mut self) -> Result<(), Mistakes> {
        let config = self.source.load().await?;
        let old = self.shared.snapshot.load_full();
        let fixed = unchangeable(&old.config, &config);
        if !fixed.is_empty() {
            return Err(Mistakes { path: self.source.path.clone(), all: fixed });
        }
        if old.config.plugins != config.plugins {
            let new = config.plugins.clone();
            self.plugins
                .with(move |plugins| {
                    plugins.store().reconsider();
                    plugins.scan(&new);
                    plugins.finish(&new, |name| new.is_active(name));
                })
                .await;
        }
        let mut registered = self.registered.clone();
        let listed = registered.yield_to(&config.backends);
        self.adopt(Arc::new(config), registered).await?;
        for name in listed {
            self.status.events.fleet(&name, "is the configuration's from now on");
        }
        Ok(())
    }

    /// Looks at the plugin folder; what is new and active is swapped in.
    pub async fn plugins_changed(&mut self) {
        let config = Arc::clone(&self.shared.snapshot.load().config);
        let rules = Arc::clone(&config);
        let Some(changes) = self.plugins.with(move |plugins| plugins.scan(&rules.plugins)).await else { return };
        for change in &changes {
            if let What::Refused(refusal) = &change.what {
                self.status.plugin_refused(&change.name, refusal);
            }
        }
        let is_active = |name: &str| config.plugins.is_active(name);
        if changes.iter().any(|change| is_active(&change.name) && matches!(change.what, What::Loaded(_) | What::Gone)) {
            self.swap_plugins().await;
        }
        self.publish();
    }

    /// Swaps in what the store now says.
    async fn swap_plugins(&mut self) {
        let snapshot = self.shared.snapshot.load_full();
        if let Err(mistakes) = self.swap(Arc::clone(&snapshot.config), snapshot.fleet.clone()).await {
            tracing::error!("no other plugin could be swapped in, what ran runs on: {mistakes}");
        }
    }

    /// A plugin call failed on a worker: its instance is built anew, or the version before comes back.
    pub async fn fault(&mut self, report: FaultReport) {
        let FaultReport { snapshot, worker, kind, fault } = report;
        let version = match kind {
            Kind::Policy => Arc::clone(snapshot.policy.version()),
            Kind::Translator => Arc::clone(snapshot.translator.version()),
        };
        self.status.plugin_fault(&version.name, fault.reason());
        tracing::warn!(plugin = %version.name, reason = fault.reason(), "plugin call failed, the host answered: {fault}");
        let strikes = self.strikes.entry((version.name.clone(), version.sha256.clone())).or_default();
        if strikes.strike(Instant::now()) {
            return self.roll_back(&version, &fault.to_string()).await;
        }
        let rebuilt = spawn_blocking(move || match kind {
            Kind::Policy => snapshot.policy.rebuild(worker),
            Kind::Translator => snapshot.translator.rebuild(worker),
        });
        if let Ok(Err(refusal)) = rebuilt.await {
            self.roll_back(&version, &refusal.to_string()).await;
        }
    }

    async fn roll_back(&mut self, version: &Arc<Version>, why: &str) {
        tracing::error!(plugin = %version.name, sha256 = version.sha256, "rolled back after repeated faults: {why}");
        self.status.events.plugin(&version.name, "rolled back", why);
        let (version, why) = (Arc::clone(version), why.to_owned());
        self.plugins.with(move |plugins| plugins.roll_back(&version, &why)).await;
        self.swap_plugins().await;
        self.publish();
    }

    /// Builds the next snapshot and stores it. A plugin file that cannot be started is refused, and the version before it
    /// taken; where the very version that runs cannot, or nothing is left, the configuration is at fault.
    async fn swap(&mut self, config: Arc<Config>, fleet: Vec<Member>) -> Result<(), Mistakes> {
        let mut refused = None;
        loop {
            let active = self.plugins.active(&config).map_err(|mistakes| refused.clone().unwrap_or(mistakes))?;
            let (policy, translator) = active;
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
                    if is_running || !self.refuse(error).await {
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

    /// Refuses a file that cannot be started. False for a built-in: there is nothing before it to go back to.
    async fn refuse(&self, NotStarted { version, refusal }: NotStarted) -> bool {
        tracing::error!(plugin = %version.name, "refused: {refusal}");
        self.status.plugin_refused(&version.name, &refusal);
        self.plugins.with(move |plugins| plugins.refuse(&version, refusal)).await == Some(true)
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
