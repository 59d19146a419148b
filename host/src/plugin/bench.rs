//! How long a call of a plugin takes, over a made-up fleet, made as requests make it.

use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;

use super::trial::{PLAIN, made_up_fleet_of, rows};
use super::{Kind, Policy, Refusal, Request, Stage, Translator, Version};
use crate::config::PluginLimits;

/// Calls in a batch: long enough for the clock, short enough that some batches meet no interruption.
const BATCH: u32 = 1_000;
/// Batches. The fastest tenth tells what the plugin needs, the median what it gets on this machine.
const BATCHES: usize = 100;

/// Time of one call, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CallTime {
    pub fastest_ns: f64,
    pub median_ns: f64,
}

/// Times the pick of a policy, or the resolving of a name, before so many backends. Blocks for some seconds at most.
///
/// # Errors
/// Where the plugin cannot be started, or a call fails.
pub fn call_time(version: &Arc<Version>, backends: u32, limits: &PluginLimits) -> Result<CallTime, Refusal> {
    let fleet = made_up_fleet_of(backends);
    let failed = |fault: super::Fault| Refusal::new(Stage::Trial, fault.to_string());
    match version.kind {
        Kind::Policy => {
            let policy = Policy::start(version, &fleet, &Value::Null, limits, 1)?;
            let rows = rows(0..backends, policy.columns().len(), |_| 1);
            timed(|sequence| {
                let request = Request { sequence, random: sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15), ..PLAIN };
                policy.pick(0, &request, &rows).map(drop).map_err(failed)
            })
        }
        Kind::Translator => {
            let translator = Translator::start(version, &fleet, &Value::Null, limits, 1)?;
            timed(|_| translator.resolve(0, "public").map(drop).map_err(failed))
        }
    }
}

fn timed(mut call: impl FnMut(u64) -> Result<(), Refusal>) -> Result<CallTime, Refusal> {
    let mut sequence = 0;
    let mut batches = Vec::with_capacity(BATCHES);
    for _ in 0..BATCHES {
        let started = Instant::now();
        for _ in 0..BATCH {
            sequence += 1;
            call(sequence)?;
        }
        batches.push(started.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH));
    }
    batches.sort_unstable_by(f64::total_cmp);
    let at = |part: usize| batches.get(BATCHES / part).copied().unwrap_or_default();
    Ok(CallTime { fastest_ns: at(10), median_ns: at(2) })
}
