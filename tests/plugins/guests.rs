//! Plugins for these tests: the real ones that the build compiled, and small ones in the component text format
//! that do one thing, or one wrong.

pub use super::guest::Guest;

pub const ROUND_ROBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/builtin/round-robin.wasm"));
pub const LEAST_BUSY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/builtin/least-busy.wasm"));
pub const MODEL_MAP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/builtin/model-map.wasm"));

/// What the translator of [`renaming`] calls every model.
pub const RENAMED: &str = "renamed";

pub const OK: &str = "(global.get $ok)";
pub const LAST_ROW: &str = "(call $answer (i32.const 0) (i32.sub (local.get $numbers) (i32.const 1)))";
pub const ABSTAIN: &str = "(call $answer (i32.const 1) (i32.const 0))";
pub const HOLD: &str = "(call $answer (i32.const 2) (i32.const 0))";
pub const TEAPOT: &str = "(call $answer (i32.const 3) (i32.const 418))";
pub const FOREVER: &str = "(loop $forever (br $forever))";

/// A policy that picks so.
pub fn picking(pick: &str) -> Vec<u8> {
    Guest { pick, ..Guest::default() }.policy()
}

/// Sends everything to the last backend that can take it: nothing else in this suite does.
pub fn last_row() -> Vec<u8> {
    picking(LAST_ROW)
}

/// Takes only the first backend of the fleet, and rather waits than any other.
pub fn only_the_first_backend() -> Vec<u8> {
    picking(&format!("(if (i32.ne (i32.load (local.get $rows)) (i32.const 0)) (then (return {HOLD}))) {OK}"))
}

/// Takes the first row where it has nothing to do, and else waits.
pub fn only_who_is_idle() -> Vec<u8> {
    let configure = "(call $column (i32.const 1024) (i32.const 9))";
    let pick = format!("(if (i32.load offset=4 (local.get $rows)) (then (return {HOLD}))) {OK}");
    Guest { configure, pick: &pick, ..Guest::default() }.policy()
}

/// Does this at every pick but those it was tried with before the first request. That first one it answers well too.
pub fn wrong_at_work(then: &str) -> Vec<u8> {
    let is_at_work = "(i64.lt_u (i64.sub (local.get $sequence) (i64.const 1)) (i64.const 1000000))";
    picking(&format!("(if {is_at_work} (then {then})) {OK}"))
}

/// Sends every model to the second backend, as [`RENAMED`].
pub fn renaming() -> Vec<u8> {
    Guest { resolve: "(call $route (i32.const 1) (i32.const 1408) (i32.const 7))", ..Guest::default() }.translator()
}

/// Traps over names of seven bytes; nobody serves any other.
pub fn trapping_translator() -> Vec<u8> {
    let resolve = "(if (i32.eq (local.get $bytes) (i32.const 7)) (then unreachable)) (global.get $ok)";
    Guest { resolve, ..Guest::default() }.translator()
}
