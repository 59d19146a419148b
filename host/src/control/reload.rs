//! Everything that changes while the proxy runs: configuration, fleet, plugins. Each change builds a whole new
//! snapshot and swaps it in once, or is refused as a whole and leaves everything as it was.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use super::build::{self, NotStarted, Parts};
use super::plugins::{Plugins, log_changes, mistake};
use super::poll::{self, FleetChanged, Polling};
use super::source::ConfigSource;
use super::status::Status;
use crate::config::{BackendConfig, Config, Mistake, Mistakes};
use crate::edge::upstream::Pool;
use crate::edge::{FaultReport, Member, Shared, Snapshot};
use crate::fleet::{Backend, Queue};
use crate::plugin::{Kind, Runtime, Store, Strikes, Version, What};

/// A new backend gets requests after it has been asked once, or after this long.
const FIRST_POLLS: Duration = Duration::from_secs(2);

/// The fleet a configuration asks for, keeping the backends that live already: those in use, and those that left
/// and still hold requests, whose slots are not free because a file says so.
///
/// # Errors
/// Keys that cannot be sent.
fn members(config: &Config, alive: &[Member], retired: &[Member], queue: &Arc<Queue>) -> Result<Vec<Member>, Mistakes> {
    let mut mistakes = Vec::new();
    let mut member = |(at, backend): (usize, &BackendConfig)| {
        let living = alive
            .iter()
            .chain(retired)
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
    let fleet = config.backends.iter().enumerate().map(&mut member).collect();
    if mistakes.is_empty() { Ok(fleet) } else { Err(Mistakes { path: None, all: mistakes }) }
}

/// Builds the first snapshot, or the one that `check` looks at. Blocks.
///
/// # Errors
/// What is wrong with plugins or keys, as mistakes of the configuration.
pub fn first_snapshot(config: Config, plugins: &Plugins, queue: &Arc<Queue>) -> Result<Snapshot, Mistakes> {
    let (policy, translator) = plugins.active(&config)?;
    let fleet = members(&config, &[], &[], queue)?;
    for member in &fleet {
        member.backend.configure(member.config.slots, member.config.engine, &config.capacity);
    }
    build::snapshot(Parts { config: Arc::new(config), fleet, policy, translator }).map_err(|error| not_started(&error))
}

fn not_started(error: &NotStarted) -> Mistakes {
    let key = format!("plugins.{}", error.version.kind.name());
    Mistakes { path: None, all: vec![mistake(&key, error.to_string())] }
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
        Self {
            shared,
            source,
            plugins,
            status,
            pool: Rc::default(),
            polling: HashMap::new(),
            retired: Vec::new(),
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
            let (pins, at) = (config.plugins.pins.clone(), Instant::now());
            self.plugins
                .with(move |store, runtime| {
                    store.reconsider();
                    log_changes(&store.scan(runtime, &pins, at));
                })
                .await;
        }
        let fleet = members(&config, &old.fleet, &self.retired, &self.shared.queue)?;
        let config = Arc::new(config);
        self.ask_first(&fleet).await;
        let swapped = self.swap(Arc::clone(&config), fleet.clone()).await;
        match swapped {
            Ok(()) => self.take_effect(&config, &fleet, &old.fleet),
            Err(_) => self.poll_only(&old.fleet),
        }
        swapped
    }

    /// Asks each new backend once, for a bounded time: what it serves must be known before requests come for it.
    pub async fn ask_first(&mut self, fleet: &[Member]) {
        let (first, mut asked) = mpsc::unbounded_channel();
        let config = Arc::clone(&self.shared.snapshot.load().config);
        for member in fleet.iter().filter(|member| member.backend.is_unknown()) {
            member.backend.configure(member.config.slots, member.config.engine, &config.capacity);
            self.poll(member, &first);
        }
        drop(first);
        // Nothing is ever sent: the channel closes when the last poller lets go of it.
        let _ = timeout(FIRST_POLLS, asked.recv()).await;
    }

    /// Lets go of removed backends that hold no request any more.
    pub fn forget_drained(&mut self) {
        self.retired.retain(|gone| {
            let is_drained = gone.backend.in_flight() == 0;
            if is_drained {
                tracing::info!(backend = %gone.backend.name, "drained");
            }
            !is_drained
        });
        self.status.retired.store(Arc::new(self.retired.clone()));
    }

    /// Polls exactly these from now on.
    fn poll_only(&mut self, fleet: &[Member]) {
        self.polling.retain(|id, _| fleet.iter().any(|member| member.backend.id == *id));
        let (first, _) = mpsc::unbounded_channel();
        for member in fleet {
            self.poll(member, &first);
        }
    }

    fn poll(&mut self, member: &Member, first: &mpsc::UnboundedSender<()>) {
        let start = || {
            poll::start(
                member.clone(),
                Arc::clone(&self.shared),
                Rc::clone(&self.pool),
                first.clone(),
                self.changed.clone(),
            )
        };
        self.polling.entry(member.backend.id).or_insert_with(start);
    }

    /// What lives outside the snapshot follows it.
    fn take_effect(&mut self, config: &Config, fleet: &[Member], old: &[Member]) {
        self.shared.queue.resize(config.queue.size, config.queue.bytes);
        self.shared.bodies.resize(config.limits.bodies_in_flight_bytes);
        for member in fleet {
            member.backend.configure(member.config.slots, member.config.engine, &config.capacity);
            let is_other = |old: &Member| old.config != member.config || old.authorization != member.authorization;
            if old.iter().any(|old| old.backend.id == member.backend.id && is_other(old)) {
                // Polled anew, with what is configured now.
                self.polling.remove(&member.backend.id);
            }
        }
        for gone in old.iter().filter(|old| !is_in(fleet, old)) {
            tracing::info!(backend = %gone.backend.name, in_flight = gone.backend.in_flight(), "removed: draining");
            gone.backend.drain();
            self.retired.push(gone.clone());
        }
        self.retired.retain(|gone| !is_in(fleet, gone));
        self.forget_drained();
        self.shared.queue.release_stranded();
        self.poll_only(fleet);
    }

    /// Looks at the plugin folder; what is new and active is swapped in.
    pub async fn plugins_changed(&mut self) {
        let config = Arc::clone(&self.shared.snapshot.load().config);
        let pins = config.plugins.pins.clone();
        let Some(changes) = self.plugins.with(move |store, runtime| store.scan(runtime, &pins, Instant::now())).await
        else {
            return;
        };
        log_changes(&changes);
        for change in &changes {
            if let What::Refused(_) = change.what {
                self.status.plugin_reloaded(&change.name, false);
            }
        }
        let is_active = |name: &String| *name == config.plugins.policy || *name == config.plugins.translator;
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
        let (name, sha256, why) = (version.name.clone(), version.sha256.clone(), why.to_owned());
        tracing::error!(plugin = %name, sha256, "rolled back after repeated faults: {why}");
        self.plugins.with(move |store, runtime| store.roll_back(runtime, &name, &sha256, &why)).await;
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
            match self.build(Parts { config: Arc::clone(&config), fleet: fleet.clone(), policy, translator }).await {
                Ok(next) => {
                    self.store(next, &new);
                    return Ok(());
                }
                Err(Some(error)) => {
                    let mistakes = not_started(&error);
                    let is_running = running.contains(&error.version.generation);
                    if is_running || !self.refuse(error).await {
                        return Err(mistakes);
                    }
                    refused.get_or_insert(mistakes);
                }
                Err(None) => return Err(not_built()),
            }
        }
    }

    /// Refuses a file that cannot be started. False for a built-in: there is nothing before it to go back to.
    async fn refuse(&self, NotStarted { version, refusal }: NotStarted) -> bool {
        tracing::error!(plugin = %version.name, "refused: {refusal}");
        self.status.plugin_reloaded(&version.name, false);
        let refuse = move |store: &mut Store, _: &Runtime| store.refuse(&version.name, &version.sha256, refusal);
        self.plugins.with(refuse).await == Some(true)
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
    fn store(&self, next: Snapshot, new: &[Arc<Version>]) {
        self.shared.snapshot.store(Arc::new(next));
        for version in new {
            tracing::info!(plugin = %version.name, sha256 = %version.sha256, "swapped in");
            self.status.plugin_reloaded(&version.name, true);
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

fn not_built() -> Mistakes {
    Mistakes { path: None, all: vec![mistake("", "the snapshot could not be built".into())] }
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
        ("plugins.dir", old.plugins.dir != new.plugins.dir),
    ];
    let fixed = differs.into_iter().filter(|(_, differs)| *differs);
    fixed.map(|(key, _)| mistake(key, "cannot change while the proxy runs: restart it".into())).collect()
}
