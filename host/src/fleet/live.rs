//! The numbers of a backend that every pick reads: atomics, together on their own cache lines.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Weight of the newest observation in the moving averages, as a right shift: 1/8.
const AVERAGE_SHIFT: u32 = 3;
/// How long a slot is thought to be held before the first was: a generation of some hundred tokens. It gives way to what is
/// measured little by little: a few quick answers say nothing of a crowd.
const UNMEASURED_HOLD_MS: u32 = 3_000;
/// What a number that an engine did not report is in a column (`wit/vision-proxy.wit`).
pub const UNKNOWN: u32 = u32::MAX;

pub const REACH_UNKNOWN: u8 = 0;
pub const REACH_UP: u8 = 1;
pub const REACH_DOWN: u8 = 2;

/// The numbers of the request path, together on their own cache lines.
#[derive(Debug)]
pub struct Live {
    /// Requests it holds and what they take, in one number: see [`super::cost::Held`].
    pub held: AtomicU64,
    /// The most requests it held at one time since the present poll began.
    pub most_held: AtomicU32,
    /// Slots it has; changed by report, learning and reload.
    pub limit: AtomicU32,
    /// Nobody says how many slots it has: they are learned from its answers.
    pub learns: AtomicBool,
    /// Guessed tokens of the requests it held when the present poll began.
    pub tokens_then: AtomicU32,
    /// All slots were taken when the present poll began.
    pub was_full: AtomicBool,
    /// Since when its slots grow back; 0 where they do not.
    pub growing_since_ms: AtomicU64,
    /// Over which time they do.
    pub slow_start_ms: AtomicU64,
    /// Its trial is under way.
    pub on_trial: AtomicBool,
    pub reach: AtomicU8,
    pub draining: AtomicBool,
    /// The engine's last report says that its KV-cache is full.
    pub cache_full: AtomicBool,
    /// Slots that others and the engine's own line leave to us, by its last report; [`UNKNOWN`] for all.
    pub ceiling: AtomicU32,
    /// Guessed tokens that its KV-cache has room for, ours among them; [`UNKNOWN`] for any number.
    pub kv_room: AtomicU32,
    pub ejected: AtomicBool,
    /// It failed since its last good answer.
    pub suspect: AtomicBool,
    /// It answered 429 or 503: no request before this instant.
    pub busy_until_ms: AtomicU64,
    pub running: AtomicU32,
    pub waiting: AtomicU32,
    pub kv_permille: AtomicU32,
    pub reported_at_ms: AtomicU64,
    /// When the last report ceases to be believed.
    pub stale_at_ms: AtomicU64,
    pub first_byte_us: AtomicU32,
    pub errors_permille: AtomicU32,
    pub failed_at_ms: AtomicU64,
    /// Since when nobody listens at its address; 0 while somebody does.
    pub refusing_since_ms: AtomicU64,
    /// How long a slot is held, on average, in milliseconds.
    pub hold_ms: AtomicU32,
    pub requests: AtomicU64,
    pub failures: AtomicU64,
}

impl Live {
    pub fn new() -> Self {
        Self {
            held: AtomicU64::new(0),
            most_held: AtomicU32::new(0),
            limit: AtomicU32::new(super::limit::FIRST),
            learns: AtomicBool::new(true),
            tokens_then: AtomicU32::new(0),
            was_full: AtomicBool::new(false),
            growing_since_ms: AtomicU64::new(0),
            slow_start_ms: AtomicU64::new(0),
            on_trial: AtomicBool::new(false),
            reach: AtomicU8::new(REACH_UNKNOWN),
            draining: AtomicBool::new(false),
            cache_full: AtomicBool::new(false),
            ceiling: AtomicU32::new(UNKNOWN),
            kv_room: AtomicU32::new(UNKNOWN),
            ejected: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
            busy_until_ms: AtomicU64::new(0),
            running: AtomicU32::new(UNKNOWN),
            waiting: AtomicU32::new(UNKNOWN),
            kv_permille: AtomicU32::new(UNKNOWN),
            reported_at_ms: AtomicU64::new(0),
            stale_at_ms: AtomicU64::new(0),
            failed_at_ms: AtomicU64::new(0),
            refusing_since_ms: AtomicU64::new(0),
            first_byte_us: AtomicU32::new(0),
            errors_permille: AtomicU32::new(0),
            hold_ms: AtomicU32::new(UNMEASURED_HOLD_MS),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }
}

/// A lost race loses one observation, which is fine.
pub fn move_average(of: &AtomicU32, seen: u32) {
    of.store(moved(of.load(Relaxed), seen), Relaxed);
}

/// An eighth of the way from `average` to `seen`, and at least one towards it, so that it arrives.
pub fn moved(average: u32, seen: u32) -> u32 {
    let step = (average.abs_diff(seen) >> AVERAGE_SHIFT).max(1);
    if seen > average { average + step } else { average.saturating_sub(step).max(seen) }
}
