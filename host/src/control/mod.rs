//! Control: everything beside the request path, on one thread of its own.
//!
//! `run` brings the proxy up, then waits for what may change it (files, polls, faults, signals) and hands
//! each to the one part that deals with it.
//!
//! Invariants:
//! - The signals that end the process are heard beside everything else, from its first moment on.

mod admin;
mod build;
mod drained;
mod events;
mod handed;
mod notify;
mod plugins;
mod poll;
mod registered;
mod reload;
mod source;
mod status;
mod successor;
mod watch;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch as phases};
use tokio::task::{LocalSet, spawn_blocking};
use tokio::time::timeout;

use crate::config::{Config, Timeouts};
use crate::edge::{Door, FaultReport, Phase, Server, Shared, descriptors};
use crate::fleet::Queue;
use crate::metrics::Metrics;
pub use handed::Handed;
pub use plugins::Plugins;
use poll::FleetChanged;
pub use reload::first_snapshot;
use reload::{Change, Reload, log_warnings};
pub use source::ConfigSource;
use status::Status;
use watch::{Watch, folder_of};

/// Changes through the admin API that may wait to be made; who comes then is told to come again.
const CHANGES: usize = 1024;

/// Where a started proxy listens.
#[derive(Debug, Clone, Copy)]
pub struct Listening {
    pub traffic: SocketAddr,
    /// Whether applications speak TLS with it.
    pub is_https: bool,
    pub admin: SocketAddr,
}

/// Runs the proxy until it is told to end, on the sockets it was handed or its own. `ready` is called once, when it serves.
///
/// # Errors
/// What keeps it from starting: configuration, plugins, addresses.
pub fn run(config: Config, source: ConfigSource, handed: Handed, ready: impl FnOnce(Listening)) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = LocalSet::new().block_on(&runtime, serve(config, source, handed, ready));
    // The end waits for no plugin that is being started or compiled.
    runtime.shutdown_background();
    ended
}

async fn serve(
    config: Config,
    source: ConfigSource,
    handed: Handed,
    ready: impl FnOnce(Listening),
) -> anyhow::Result<()> {
    // Before anything else, so that a signal in the first moment ends the process in order too.
    let (mut ends, hangup) = (Ends::new()?, listen_for(SignalKind::hangup())?);
    let (phase_in, phase) = phases::channel(Phase::Serving);
    let started = tokio::select! {
        () = ends.told() => return Ok(()),
        started = start(config, source, handed, hangup) => started,
    };
    let Started { door, listening, mut reload, mut hints } = started?;
    let (shared, status) = (Arc::clone(&hints.shared), Arc::clone(&reload.status));
    let server = Server::start(door, &shared, &phase)?;
    status.ready.store(true, Relaxed);
    ready(listening);
    notify::ready();

    // What is being changed when the word comes is left as it is: nobody waits for a plugin to end the process.
    tokio::select! {
        () = ends.told() => {}
        never = follow(&mut reload, &mut hints) => match never {},
    }
    drop(hints);
    let timeouts = shared.snapshot.load().config.timeouts.clone();
    status.events.ending();
    notify::stopping();
    status.ready.store(false, Relaxed);
    end(server, &shared, &phase_in, &mut ends, &timeouts).await
}

/// What is there before the first request.
struct Started {
    door: Door,
    listening: Listening,
    reload: Reload,
    hints: Hints,
}

/// What may change the proxy, as it comes.
struct Hints {
    shared: Arc<Shared>,
    source: ConfigSource,
    watch: Watch,
    compiled: mpsc::UnboundedReceiver<()>,
    faults: mpsc::UnboundedReceiver<FaultReport>,
    changed: mpsc::UnboundedReceiver<FleetChanged>,
    changes: mpsc::Receiver<Change>,
    hangup: Signal,
}

/// Everything up to the first request, which a plugin may keep waiting; signals are heard meanwhile.
async fn start(config: Config, source: ConfigSource, handed: Handed, hangup: Signal) -> anyhow::Result<Started> {
    descriptors::raise_limit();
    let (traffic, admin) = doors(&config, handed)?;
    let is_https = config.tls.is_some();
    let listening = Listening { traffic: traffic.address()?, is_https, admin: admin.address()? };
    log_warnings(&config);

    let (faults_in, faults) = mpsc::unbounded_channel();
    let (changed_in, mut changed) = mpsc::unbounded_channel();
    let workers = config.workers;
    let queue = Queue::new(config.queue.size, config.queue.bytes);
    let (compiled_in, compiled) = mpsc::unbounded_channel();
    let line = Arc::clone(&queue);
    let first = move || {
        // Where nobody listens any more, the process is ending.
        let plugins = Plugins::load(&config, move || _ = compiled_in.send(()))?;
        let snapshot = first_snapshot(config, &plugins, &line)?;
        anyhow::Ok((plugins, snapshot))
    };
    let (plugins, snapshot) = spawn_blocking(first).await??;
    let shared = Shared::new(snapshot, queue, Metrics::new(workers), faults_in, workers);
    let status = Status::new(&source.files());
    let watch = Watch::new(watched(&shared, &source));
    plugins.give_way();
    let mut reload = Reload::new(Arc::clone(&shared), source.clone(), plugins, Arc::clone(&status), changed_in);
    reload.publish();
    let (changes_in, changes) = mpsc::channel(CHANGES);
    // Now that nothing is left that could fail: who connects from here on waits for a moment, or is served by the process
    // before this one.
    admin.open().and_then(|()| traffic.open()).context("cannot listen")?;
    successor::warn_of_others(listening.traffic);
    tokio::task::spawn_local(admin::serve(admin.attended()?, Arc::clone(&shared), Arc::clone(&status), changes_in));

    reload.ask_first(&shared.snapshot.load_full().fleet).await;
    while changed.try_recv().is_ok() {}
    reload.fleet_changed().await;
    let hints = Hints { shared, source, watch, compiled, faults, changed, changes, hangup };
    Ok(Started { door: traffic, listening, reload, hints })
}

/// Hands each hint to the part that deals with it. One at a time, each to its end: some take as long as a plugin does.
async fn follow(reload: &mut Reload, hints: &mut Hints) -> Infallible {
    let Hints { shared, source, watch, compiled, faults, changed, changes, hangup } = hints;
    loop {
        tokio::select! {
            () = watch.changed() => {
                reload.config_changed(false).await;
                reload.plugins_changed().await;
                reload.sweep();
                watch.follow(watched(shared, source));
            }
            Some(()) = compiled.recv() => {
                while compiled.try_recv().is_ok() {}
                reload.plugins_changed().await;
            }
            Some(report) = faults.recv() => reload.fault(report).await,
            Some(_) = changed.recv() => {
                // Several backends that changed at once make one snapshot.
                while changed.try_recv().is_ok() {}
                reload.fleet_changed().await;
            }
            Some(change) = changes.recv() => reload.change(together(change, changes)).await,
            () = reload.registration_ends() => expire(reload, changes).await,
            Some(()) = hangup.recv() => reload_all(reload).await,
        }
    }
}

/// A registration was not renewed in time.
async fn expire(reload: &mut Reload, changes: &mut mpsc::Receiver<Change>) {
    // Who renews at this moment is in time.
    if let Ok(change) = changes.try_recv() {
        reload.change(together(change, changes)).await;
    }
    reload.expire().await;
}

/// As SIGHUP asks for.
async fn reload_all(reload: &mut Reload) {
    notify::reloading();
    reload.config_changed(true).await;
    reload.plugins_changed().await;
    notify::ready();
}

/// The sockets to listen on: handed over, or bound here.
fn doors(config: &Config, handed: Handed) -> anyhow::Result<(Door, Door)> {
    let of = |handed: Option<std::net::TcpListener>, address: SocketAddr, what: &str| {
        handed
            .map_or_else(|| Door::bind(address), Door::inherited)
            .with_context(|| format!("cannot listen on {address}{what}"))
    };
    Ok((of(handed.client, config.listen, "")?, of(handed.admin, config.admin, " (admin)")?))
}

/// This change, and those that came with it.
fn together(first: Change, more: &mut mpsc::Receiver<Change>) -> Vec<Change> {
    std::iter::once(first).chain(std::iter::from_fn(|| more.try_recv().ok())).collect()
}

/// The folders whose changes matter.
fn watched(shared: &Shared, source: &ConfigSource) -> Vec<PathBuf> {
    let plugins = shared.snapshot.load().config.plugins.dir.clone();
    let parent = folder_of(&plugins);
    let mut folders: Vec<PathBuf> =
        source.files().iter().map(|file| folder_of(file)).chain([plugins, parent]).collect();
    folders.sort_unstable();
    folders.dedup();
    folders
}

/// Stops in order: unready, still listening, and clients are told to go elsewhere; then no new connections; then what
/// remains is cut. A second signal cuts at once.
async fn end(
    server: Server,
    shared: &Shared,
    phase: &phases::Sender<Phase>,
    ends: &mut Ends,
    timeouts: &Timeouts,
) -> anyhow::Result<()> {
    shared.draining.store(true, Relaxed);
    phase.send_replace(Phase::Leaving);
    tracing::info!("ending: unready, listening for {:?} more", timeouts.drain_delay);
    let in_order = async {
        tokio::time::sleep(timeouts.drain_delay).await;
        phase.send_replace(Phase::Draining);
        tracing::info!("draining for at most {:?}", timeouts.drain);
    };
    let mut joined = tokio::task::spawn_blocking(move || server.join());
    let told_again = tokio::select! {
        () = in_order => false,
        () = ends.told() => true,
    };
    let drained = !told_again
        && tokio::select! {
            joined = timeout(timeouts.drain, &mut joined) => joined.is_ok(),
            () = ends.told() => false,
        };
    if !drained {
        tracing::warn!("cutting what remains");
        phase.send_replace(Phase::Ended);
        joined.await?;
    }
    Ok(())
}

/// The signals that end the process.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { terminate: listen_for(SignalKind::terminate())?, interrupt: listen_for(SignalKind::interrupt())? })
    }

    /// Until one comes.
    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn listen_for(kind: SignalKind) -> anyhow::Result<Signal> {
    signal(kind).context("cannot listen for signals")
}
