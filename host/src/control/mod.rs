//! Control: everything beside the request path, on one thread of its own.
//!
//! `run` brings the proxy up, then waits for what may change it (files, polls, faults, signals) and hands
//! each to the one part that deals with it.

mod admin;
mod build;
mod plugins;
mod poll;
mod reload;
mod source;
mod status;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch as phases};
use tokio::task::LocalSet;
use tokio::time::timeout;

use crate::config::{Config, Timeouts};
use crate::edge::{Phase, Server, Shared, bind};
use crate::fleet::Queue;
use crate::metrics::Metrics;
pub use plugins::Plugins;
pub use reload::first_snapshot;
use reload::{Reload, log_warnings};
pub use source::ConfigSource;
use status::Status;
use watch::{Watch, folder_of};

/// Where a started proxy listens.
#[derive(Debug, Clone, Copy)]
pub struct Listening {
    pub traffic: SocketAddr,
    /// Whether applications speak TLS with it.
    pub is_https: bool,
    pub admin: SocketAddr,
}

/// Runs the proxy until it is told to end. `ready` is called once, when it serves.
///
/// # Errors
/// What keeps it from starting: configuration, plugins, addresses.
pub fn run(config: Config, source: ConfigSource, ready: impl FnOnce(Listening)) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(config, source, ready))
}

async fn serve(config: Config, source: ConfigSource, ready: impl FnOnce(Listening)) -> anyhow::Result<()> {
    // Before anything else, so that a signal in the first moment ends the process in order too.
    let mut signals = Signals::new()?;
    let traffic = bind(config.listen).with_context(|| format!("cannot listen on {}", config.listen))?;
    let admin =
        TcpListener::bind(config.admin).await.with_context(|| format!("cannot listen on {} (admin)", config.admin))?;
    let is_https = config.tls.is_some();
    let listening = Listening { traffic: traffic.local_addr()?, is_https, admin: admin.local_addr()? };
    log_warnings(&config);

    let (faults_in, mut faults) = mpsc::unbounded_channel();
    let (changed_in, mut changed) = mpsc::unbounded_channel();
    let (phase_in, phase) = phases::channel(Phase::Serving);
    let workers = config.workers;
    let queue = Queue::new(config.queue.size, config.queue.bytes);
    let plugins = Plugins::load(&config)?;
    let snapshot = first_snapshot(config, &plugins, &queue)?;
    let shared = Shared::new(snapshot, queue, Metrics::new(workers), faults_in, workers);
    let status = Status::new(&source.files());
    let mut watch = Watch::new(watched(&shared, &source));
    let mut reload = Reload::new(Arc::clone(&shared), source.clone(), plugins, Arc::clone(&status), changed_in);
    reload.publish();
    tokio::task::spawn_local(admin::serve(admin, Arc::clone(&shared), Arc::clone(&status)));

    reload.ask_first(&shared.snapshot.load_full().fleet).await;
    while changed.try_recv().is_ok() {}
    reload.fleet_changed().await;
    let server = Server::start(traffic, &shared, &phase)?;
    status.ready.store(true, Relaxed);
    ready(listening);

    loop {
        tokio::select! {
            () = watch.changed() => {
                reload.config_changed(false).await;
                reload.plugins_changed().await;
                reload.forget_drained();
                watch.follow(watched(&shared, &source));
            }
            Some(report) = faults.recv() => reload.fault(report).await,
            Some(_) = changed.recv() => {
                // Several backends that changed at once make one snapshot.
                while changed.try_recv().is_ok() {}
                reload.fleet_changed().await;
            }
            signal = signals.next() => match signal {
                Told::Reload => {
                    reload.config_changed(true).await;
                    reload.plugins_changed().await;
                }
                Told::End => break,
            }
        }
    }
    let timeouts = shared.snapshot.load().config.timeouts.clone();
    status.ready.store(false, Relaxed);
    end(server, &shared, &phase_in, &mut signals, &timeouts).await
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

/// Stops in order: unready, still listening; then no new connections; then what remains is cut. A second
/// signal cuts at once.
async fn end(
    server: Server,
    shared: &Shared,
    phase: &phases::Sender<Phase>,
    signals: &mut Signals,
    timeouts: &Timeouts,
) -> anyhow::Result<()> {
    shared.draining.store(true, Relaxed);
    tracing::info!("ending: unready, listening for {:?} more", timeouts.drain_delay);
    let in_order = async {
        tokio::time::sleep(timeouts.drain_delay).await;
        phase.send_replace(Phase::Draining);
        tracing::info!("draining for at most {:?}", timeouts.drain);
    };
    let mut joined = tokio::task::spawn_blocking(move || server.join());
    let told_again = tokio::select! {
        () = in_order => false,
        () = signals.ended() => true,
    };
    let drained = !told_again
        && tokio::select! {
            joined = timeout(timeouts.drain, &mut joined) => joined.is_ok(),
            () = signals.ended() => false,
        };
    if !drained {
        tracing::warn!("cutting what remains");
        phase.send_replace(Phase::Ended);
        joined.await?;
    }
    Ok(())
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    End,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let of = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
            hangup: of(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::End,
            _ = self.interrupt.recv() => Told::End,
            _ = self.hangup.recv() => Told::Reload,
        }
    }

    /// Until told to end.
    async fn ended(&mut self) {
        while self.next().await != Told::End {}
    }
}
