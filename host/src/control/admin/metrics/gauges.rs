//! What a scrape reads rather than adds up: the fleet, the queue, the plugins, and how reloads went.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use super::super::View;
use crate::control::status::Tally;
use crate::edge::{Member, Snapshot};
use crate::fleet::{State, UNKNOWN};
use crate::metrics::{HistogramTotal, LOG_LINES_DROPPED};
use crate::plugin::{Route, Timing, Version};

/// All of it, as of one moment.
#[derive(Debug)]
pub struct Gauges {
    pub backends: Vec<BackendGauges>,
    pub is_suspect: bool,
    pub queue_waiting: usize,
    pub queue_size: usize,
    pub client_connections: u64,
    pub bodies_bytes: u64,
    /// Whose key (empty: nobody's), why, how many.
    pub key_refusals: Vec<(String, &'static str, u64)>,
    pub log_lines_dropped: u64,
    pub plugins: Vec<PluginGauges>,
    pub reloads: BTreeMap<String, Tally>,
    pub config_loaded: u64,
    pub config_refused: u64,
    pub is_config_current: bool,
    /// When the listener's certificate expires.
    pub cert_not_after: Option<SystemTime>,
    pub started_at: SystemTime,
}

#[derive(Debug)]
pub struct BackendGauges {
    pub name: Arc<str>,
    pub state: State,
    pub is_ejected: bool,
    /// `None` where no TLS is spoken.
    pub is_insecure: Option<bool>,
    pub in_flight: u32,
    pub slots: u32,
    pub running: Option<u32>,
    pub waiting: Option<u32>,
    pub kv_cache_used: Option<f64>,
    pub failures: u64,
}

/// Of a plugin in use.
#[derive(Debug)]
pub struct PluginGauges {
    pub name: String,
    pub calls: u64,
    pub timed: HistogramTotal,
}

impl Gauges {
    pub fn of(view: &View) -> Self {
        let shared = &view.shared;
        let snapshot = shared.snapshot.load();
        let retired = view.status.retired.load();
        let reloads = view.status.reloads().clone();
        Self {
            backends: shown(&snapshot.fleet, &retired).map(BackendGauges::of).collect(),
            is_suspect: is_suspect(&snapshot),
            queue_waiting: shared.queue.waiting(),
            queue_size: shared.queue.size(),
            client_connections: shared.connections.iter().map(|connections| connections.load(Relaxed)).sum(),
            bodies_bytes: shared.bodies.held(),
            key_refusals: snapshot.keys.refusals(),
            log_lines_dropped: LOG_LINES_DROPPED.load(Relaxed),
            plugins: [snapshot.policy.version(), snapshot.translator.version()].map(|v| PluginGauges::of(v)).into(),
            reloads: reloads.plugins,
            config_loaded: reloads.config_generation,
            config_refused: reloads.config_refused,
            is_config_current: reloads.config_mistakes.is_none() && !reloads.config_waits,
            cert_not_after: snapshot.config.tls.as_ref().and_then(|tls| tls.not_after),
            started_at: view.status.started_at,
        }
    }
}

/// The fleet, and those that left it with requests of ours: but for a name that is taken again, which is a label once.
fn shown<'a>(fleet: &'a [Member], retired: &'a [Member]) -> impl Iterator<Item = &'a Member> {
    let is_new = |at: usize, name: &Arc<str>| {
        let before = fleet.iter().chain(retired.iter().take(at));
        !before.into_iter().any(|member| member.backend.name == *name)
    };
    let gone = retired.iter().enumerate().filter(move |(at, member)| is_new(*at, &member.backend.name));
    fleet.iter().chain(gone.map(|(_, member)| member))
}

/// Whether there is a model of which every backend that is up is out of use by failures of real traffic.
fn is_suspect(snapshot: &Snapshot) -> bool {
    let is_suspect = |routes: &Vec<Route>| {
        let backends = routes.iter().filter_map(|route| snapshot.fleet.get(route.backend as usize));
        let mut up = backends.map(|member| &member.backend).filter(|backend| backend.is_up()).peekable();
        up.peek().is_some() && up.all(|backend| backend.is_suspended())
    };
    snapshot.routes.values().any(is_suspect)
}

impl BackendGauges {
    fn of(member: &Member) -> Self {
        let backend = &member.backend;
        let (running, waiting, _, _) = backend.reported();
        let known = |number: u32| (number != UNKNOWN).then_some(number);
        Self {
            name: Arc::clone(&backend.name),
            state: backend.state(),
            is_ejected: backend.is_ejected(),
            is_insecure: member.config.tls.as_ref().map(|tls| tls.insecure),
            in_flight: backend.in_flight(),
            slots: backend.slots(),
            running: known(running),
            waiting: known(waiting),
            kv_cache_used: backend.known().kv_cache_used,
            failures: backend.totals().1,
        }
    }
}

impl PluginGauges {
    fn of(version: &Version) -> Self {
        let timing = version.counters.timing();
        let bounds = Timing::BUCKETS_NS.map(|ns| ns as f64 / 1e9).into_iter().chain([f64::INFINITY]);
        Self {
            name: version.name.clone(),
            calls: version.counters.calls(),
            timed: HistogramTotal {
                sum_seconds: timing.total.as_secs_f64(),
                count: timing.calls,
                buckets: bounds.zip(timing.buckets).collect(),
            },
        }
    }
}
