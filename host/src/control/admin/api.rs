//! The JSON of `/api/*`, in the shapes of the product's contract.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::super::status::Reloads;
use super::View;
use crate::clock::{datable, millis};
use crate::config::{BackendConfig, BackendTls, KeyConfig, Mistakes};
use crate::edge::Member;
use crate::fleet::Backend;
use crate::plugin::Row;

/// `GET /api/fleet`
pub fn fleet(view: &View) -> Value {
    let snapshot = view.shared.snapshot.load();
    let registered = view.status.registered.load();
    let row = |(index, member): (usize, &Member)| {
        let source = registered.get(&member.config.name).map_or(Source::Configured, |until| Source::Registered(*until));
        backend(member, names(&snapshot.routes, index), source)
    };
    let retired = view.status.retired.load();
    let draining = retired.iter().map(|member| backend(member, Map::new(), Source::Removed));
    let backends: Vec<Value> = snapshot.fleet.iter().enumerate().map(row).chain(draining).collect();
    json!({
        "generation": snapshot.generation,
        "backends": backends,
        "queue": {"waiting": view.shared.queue.waiting(), "size": view.shared.queue.size()},
    })
}

/// Public and native names of one backend.
fn names(
    routes: &std::collections::HashMap<std::sync::Arc<str>, Vec<crate::plugin::Route>>,
    index: usize,
) -> Map<String, Value> {
    let native = |(public, routes): (&std::sync::Arc<str>, &Vec<crate::plugin::Route>)| {
        let route = routes.iter().find(|route| route.backend as usize == index)?;
        Some((public.to_string(), Value::from(route.native.as_str())))
    };
    let mut names: Vec<_> = routes.iter().filter_map(native).collect();
    names.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    names.into_iter().collect()
}

/// Why a backend is in the fleet.
enum Source {
    Configured,
    /// Until then, where it was registered for a time.
    Registered(Option<Instant>),
    /// It is not, but for the requests that it holds.
    Removed,
}

impl Source {
    fn name(&self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Registered(_) => "registered",
            Self::Removed => "removed",
        }
    }

    fn expires_in_ms(&self) -> Option<u64> {
        let Self::Registered(Some(until)) = self else { return None };
        Some(millis(until.saturating_duration_since(Instant::now())))
    }
}

fn backend(member: &Member, models: Map<String, Value>, source: Source) -> Value {
    let backend = &member.backend;
    let (requests, failures) = backend.totals();
    let first_token = backend.first_byte_us();
    let known = backend.known().clone();
    json!({
        "name": member.config.name,
        "url": member.config.url.to_string(),
        "engine": known.engine.map_or("auto", |engine| engine.name()),
        "state": backend.state().name(),
        "in_flight": backend.in_flight(),
        "slots": backend.slots(),
        "slots_from": backend.slots_from(),
        "reported": reported(backend, known.kv_cache_used),
        "kv_cache_expected": backend.kv_cache_expected(),
        "models": models,
        "room": backend.room(),
        "taken": backend.taken(),
        "tls": member.config.tls.as_ref().map(|tls| if tls.insecure { "insecure" } else { "verified" }),
        "weight": member.config.weight,
        "tier": member.config.tier,
        "labels": member.config.labels,
        "source": source.name(),
        "expires_in_ms": source.expires_in_ms(),
        "first_token_ms": (first_token > 0).then(|| f64::from(first_token) / 1000.0),
        "requests_total": requests,
        "failures_total": failures,
        "down_since": known.down_since.map(rfc3339),
        "last_error": known.last_error,
    })
}

/// What the engine says of itself; a number it does not say is null.
fn reported(backend: &Backend, kv_cache_used: Option<f64>) -> Value {
    let (running, waiting, _, age_ms) = backend.reported();
    let known = |number: u32| (number != crate::fleet::UNKNOWN).then_some(number);
    json!({"running": known(running), "waiting": known(waiting), "kv_cache_used": kv_cache_used, "age_ms": known(age_ms)})
}

/// `GET /api/plugins`
pub fn plugins(view: &View) -> Value {
    let snapshot = view.shared.snapshot.load();
    let active = [snapshot.policy.version().generation, snapshot.translator.version().generation];
    let rows = view.status.plugins.load();
    json!({"plugins": rows.iter().map(|row| plugin(row, &active)).collect::<Vec<_>>()})
}

fn plugin(row: &Row, active: &[u64]) -> Value {
    let Some(version) = &row.version else {
        return json!({"name": row.name, "active": false, "source": "file", "sha256": row.sha256, "state": row.state.name(), "last_error": row.last_error});
    };
    let counters = &version.counters;
    json!({
        "name": row.name,
        "kind": version.kind.name(),
        "active": active.contains(&version.generation),
        "source": version.source.name(),
        "sha256": version.sha256,
        "size_bytes": version.size_bytes,
        "interface": version.interface,
        "generation": version.generation,
        "loaded_at": rfc3339(version.loaded_at),
        "calls": counters.calls(),
        "faults": counters.faults().iter().sum::<u64>(),
        "mean_call_ns": counters.timing().mean_ns(),
        "state": row.state.name(),
        "last_error": row.last_error.clone().or_else(|| version.last_error()),
    })
}

/// `GET /api/config`
pub fn config(view: &View) -> Value {
    let reloads = view.status.reloads().clone();
    let config = view.shared.snapshot.load().config.clone();
    let state = match &reloads {
        Reloads { config_mistakes: Some(_), .. } => "refused",
        Reloads { config_waits: true, .. } => "pending",
        _ => "loaded",
    };
    let seconds = |duration: Duration| humantime::format_duration(duration).to_string();
    json!({
        "generation": reloads.config_generation,
        "loaded_at": reloads.config_loaded_at.map(rfc3339),
        "state": state,
        "errors": reloads.config_mistakes.as_ref().map(mistakes).unwrap_or_default(),
        "config": {
            "listen": config.listen,
            "tls": config.tls.as_ref().map(|tls| json!({"cert": tls.cert, "key": tls.key, "client_ca": tls.client_ca})),
            "admin": config.admin,
            "workers": config.workers,
            "reveal": config.reveal,
            "trusted_proxies": config.trusted_proxies.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "keys": config.keys.iter().map(client_key).collect::<Vec<_>>(),
            "images": {"policy": config.images.policy.name(), "domains": config.images.domains},
            "plugins": {
                "dir": config.plugins.dir,
                "policy": config.plugins.policy,
                "translator": config.plugins.translator,
                "settings": config.plugins.settings,
                "limits": {"fuel": config.plugins.limits.fuel, "memory_bytes": config.plugins.limits.memory_bytes},
                "pins": config.plugins.pins,
                "trusted_keys": config.plugins.trusted_keys,
            },
            "models": config.models,
            "backends": config.backends.iter().map(configured).collect::<Vec<_>>(),
            "capacity": {
                "poll_interval": seconds(config.capacity.poll_interval),
                "stale_after": seconds(config.capacity.stale_after),
                "max_waiting": config.capacity.max_waiting,
                "max_kv_cache": config.capacity.max_kv_cache,
                "replicas": config.capacity.replicas,
                "replica": config.capacity.replica,
                "slow_start": seconds(config.capacity.slow_start),
                "cost": {"image": config.capacity.cost.image, "mib": config.capacity.cost.mib},
            },
            "queue": {
                "size": config.queue.size,
                "bytes": config.queue.bytes,
                "timeout": seconds(config.queue.timeout),
                "spill_after": seconds(config.queue.spill_after),
            },
            "failover": {
                "attempts": config.failover.attempts,
                "retry_unanswered": config.failover.retry_unanswered,
                "eject_after": config.failover.ejection.after,
                "eject_for": seconds(config.failover.ejection.first),
            },
            "timeouts": {
                "connect": seconds(config.timeouts.connect),
                "first_byte": seconds(config.timeouts.first_byte),
                "between_chunks": seconds(config.timeouts.between_chunks),
                "client": seconds(config.timeouts.client),
                "drain": seconds(config.timeouts.drain),
                "drain_delay": seconds(config.timeouts.drain_delay),
            },
            "limits": {"body_bytes": config.limits.body_bytes, "bodies_in_flight_bytes": config.limits.bodies_in_flight_bytes},
        },
    })
}

fn tls(tls: &BackendTls) -> Value {
    json!({
        "ca": tls.ca,
        "client_cert": tls.client_cert,
        "client_key": tls.client_key,
        "server_name": tls.server_name.to_str(),
        "insecure": tls.insecure,
    })
}

/// A key of `[[keys]]`; of its hash nothing.
fn client_key(key: &KeyConfig) -> Value {
    json!({
        "name": key.name,
        "requests_per_minute": key.requests_per_minute,
        "concurrency": key.concurrency,
        "bytes_per_minute": key.bytes_per_minute,
    })
}

/// A table of `[[backends]]`, without its key.
fn configured(backend: &BackendConfig) -> Value {
    json!({
        "name": backend.name,
        "url": backend.url.to_string(),
        "tls": backend.tls.as_ref().map(tls),
        "engine": backend.engine.map_or("auto", |engine| engine.name()),
        "slots": backend.slots,
        "weight": backend.weight,
        "tier": backend.tier,
        "labels": backend.labels,
        "models": backend.models,
        "api_key": backend.api_key.as_ref().map(|_| "(set)"),
    })
}

fn mistakes(mistakes: &Mistakes) -> Vec<Value> {
    let file = mistakes.path.as_deref().map(Path::display).map(|path| path.to_string());
    let one = |mistake: &crate::config::Mistake| json!({"file": file, "line": mistake.line, "key": mistake.key, "message": mistake.message});
    mistakes.all.iter().map(one).collect()
}

fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(datable(at)).to_string()
}
