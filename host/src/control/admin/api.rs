//! The JSON of `/api/*`, in the shapes of the product's contract.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::View;
use crate::config::{BackendTls, Mistakes};
use crate::edge::Member;
use crate::fleet::Backend;
use crate::plugin::Row;

/// `GET /api/fleet`
pub fn fleet(view: &View) -> Value {
    let snapshot = view.shared.snapshot.load();
    let row = |(index, member)| backend(member, names(&snapshot.routes, index));
    let retired = view.status.retired.load();
    let draining = retired.iter().map(|member| backend(member, Map::new()));
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

fn backend(member: &Member, models: Map<String, Value>) -> Value {
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
        "models": models,
        "room": backend.room(),
        "taken": backend.taken(),
        "tls": member.config.tls.as_ref().map(|tls| if tls.insecure { "insecure" } else { "verified" }),
        "weight": member.config.weight,
        "tier": member.config.tier,
        "labels": member.config.labels,
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
    let seconds = |duration: Duration| humantime::format_duration(duration).to_string();
    json!({
        "generation": reloads.config_generation,
        "loaded_at": reloads.config_loaded_at.map(rfc3339),
        "state": if reloads.config_mistakes.is_some() { "refused" } else { "loaded" },
        "errors": reloads.config_mistakes.as_ref().map(mistakes).unwrap_or_default(),
        "config": {
            "listen": config.listen,
            "tls": config.tls.as_ref().map(|tls| json!({"cert": tls.cert, "key": tls.key, "client_ca": tls.client_ca})),
            "admin": config.admin,
            "workers": config.workers,
            "reveal": config.reveal,
            "plugins": {
                "dir": config.plugins.dir,
                "policy": config.plugins.policy,
                "translator": config.plugins.translator,
                "settings": config.plugins.settings,
                "limits": {"fuel": config.plugins.limits.fuel, "memory_bytes": config.plugins.limits.memory_bytes},
                "pins": config.plugins.pins,
            },
            "models": config.models,
            "backends": config.backends.iter().map(|backend| json!({
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
            })).collect::<Vec<_>>(),
            "capacity": {
                "poll_interval": seconds(config.capacity.poll_interval),
                "stale_after": seconds(config.capacity.stale_after),
                "max_waiting": config.capacity.max_waiting,
                "max_kv_cache": config.capacity.max_kv_cache,
                "replicas": config.capacity.replicas,
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
                "eject_after": config.failover.eject_after,
            },
            "timeouts": {
                "connect": seconds(config.timeouts.connect),
                "first_byte": seconds(config.timeouts.first_byte),
                "between_chunks": seconds(config.timeouts.between_chunks),
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

fn mistakes(mistakes: &Mistakes) -> Vec<Value> {
    let file = mistakes.path.as_deref().map(Path::display).map(|path| path.to_string());
    let one = |mistake: &crate::config::Mistake| json!({"file": file, "line": mistake.line, "key": mistake.key, "message": mistake.message});
    mistakes.all.iter().map(one).collect()
}

fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}
