//! `GET /api/decisions`: why each of the last requests went where it went, the newest first.
//!
//! `?limit=N` shows fewer, `?request_id=ID` the one.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::View;
use crate::edge::decisions::{Decision, KEPT, NUMBERS, Pick, World};
use crate::plugin::Decision as Said;

/// The last decisions of all workers, as asked for in `query`.
pub fn decisions(view: &View, query: &str) -> Value {
    let asked = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    let limit = asked("limit").and_then(|limit| limit.parse().ok()).unwrap_or(KEPT);
    let is_asked_for = |decision: &Decision| asked("request_id").is_none_or(|id| *decision.request_id == *id);
    let mut all: Vec<Decision> = view.shared.decisions.iter().flat_map(|worker| worker.all()).collect();
    all.sort_by_key(|decision| std::cmp::Reverse(decision.started));
    let shown = all.iter().take(KEPT).filter(|decision| is_asked_for(decision)).take(limit);
    json!({"decisions": shown.map(decision).collect::<Vec<_>>()})
}

fn decision(decision: &Decision) -> Value {
    let at = SystemTime::now() - decision.started.elapsed();
    json!({
        "request_id": &*decision.request_id,
        "at": humantime::format_rfc3339_millis(crate::clock::datable(at)).to_string(),
        "model": &*decision.model,
        "images": decision.images,
        "body_bytes": decision.body_bytes,
        "cost": decision.cost.slots,
        "tokens": decision.cost.tokens,
        "generation": decision.world.generation,
        "policy": &decision.world.policy,
        "picks": decision.picks.iter().map(|one| pick(one, &decision.world)).collect::<Vec<_>>(),
        "queued_ms": decision.in_line.map(millis),
        "status": decision.status,
        "outcome": decision.ended.map_or("under_way", |(outcome, _)| outcome),
        "total_ms": decision.ended.map(|(_, took)| millis(took)),
    })
}

fn pick(pick: &Pick, world: &World) -> Value {
    let name = |member: usize| world.names.get(member).map_or("", |name| name);
    let candidates = candidates(pick, world).map(|([member, in_flight, slots], given)| {
        json!({
            "backend": name(*member as usize),
            "in_flight": in_flight,
            "slots": slots,
            "columns": columns(given, world),
        })
    });
    let left_out = pick.left_out.iter().map(|(member, why)| json!({"backend": name(*member), "why": why}));
    let (backend, outcome, took) = match pick.attempt {
        Some((member, outcome, took)) => (Some(name(member)), Some(outcome), Some(millis(took))),
        None => (None, None, None),
    };
    json!({
        "candidates": candidates.collect::<Vec<_>>(),
        "left_out": left_out.collect::<Vec<_>>(),
        "policy_said": pick.said.map(|said| word(said, pick, world)),
        "backend": backend,
        "outcome": outcome,
        "ms": took,
    })
}

/// Each candidate's index, requests in flight and slots; and what the policy was given.
fn candidates<'a>(pick: &'a Pick, world: &World) -> impl Iterator<Item = (&'a [u32; NUMBERS], &'a [u32])> {
    pick.candidates.chunks_exact(NUMBERS + world.columns.len()).filter_map(<[u32]>::split_first_chunk)
}

/// The numbers that the policy asked for.
fn columns(given: &[u32], world: &World) -> Map<String, Value> {
    let number = |number: &u32| if *number == crate::fleet::UNKNOWN { Value::Null } else { json!(number) };
    let named = world.columns.iter().zip(given);
    named.map(|(column, value)| (column.name().to_owned(), number(value))).collect()
}

fn word(said: Said, pick: &Pick, world: &World) -> String {
    match said {
        Said::Pick(row) => {
            let picked = candidates(pick, world).nth(row as usize);
            let member = picked.and_then(|([member, ..], _)| world.names.get(*member as usize));
            member.map_or_else(|| format!("row {row}"), ToString::to_string)
        }
        Said::Abstain => "abstain".to_owned(),
        Said::Hold => "hold".to_owned(),
        Said::Reject(status) => format!("reject {status}"),
    }
}

/// Milliseconds, to the microsecond.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
