//! Guests for the unit tests of this room.
//!
//! Invariants:
//! - No binary lies in the repository: what is not in `guest` is one of the built-ins.

#[path = "../../../tests/plugins/guest.rs"]
mod guest;

use std::sync::Arc;

pub use guest::{Guest, KEPT_WAKING, RANDOM_BYTES, STREAM, TIME, WAKING};

use super::bindings::{Backend, Fleet, Request};
use super::{Runtime, Version, trial};
use crate::config::PluginLimits;

pub const LIMITS: PluginLimits = PluginLimits { fuel: 200_000, memory_bytes: 16 << 20 };

pub fn runtime() -> Runtime {
    static RUNTIME: std::sync::OnceLock<Runtime> = std::sync::OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap()).clone()
}

/// What is embedded in the binary, compiled once for all tests.
pub fn built_ins() -> &'static [Arc<Version>] {
    static BUILT_INS: std::sync::OnceLock<Vec<Arc<Version>>> = std::sync::OnceLock::new();
    BUILT_INS.get_or_init(|| runtime().built_ins())
}

/// A compiled policy that picks so.
pub fn picking(pick: &str) -> Arc<Version> {
    compiled(&Guest { pick, ..Guest::default() }.policy())
}

pub fn compiled(bytes: &[u8]) -> Arc<Version> {
    runtime().compile("guest", bytes).unwrap()
}

pub fn fleet(backends: u32) -> Fleet {
    let backend = |at| Backend {
        name: format!("gpu-{at}"),
        hash: u64::from(at),
        engine: "vllm".to_owned(),
        weight: 1,
        labels: Vec::new(),
        serves: vec![format!("org/model-{at}")],
        names: vec![("model".to_owned(), format!("org/model-{at}"))],
    };
    Fleet { generation: 1, models: vec!["model".to_owned()], backends: (0..backends).map(backend).collect() }
}

pub fn request(sequence: u64) -> Request {
    Request { sequence, ..trial::PLAIN }
}

#[test]
fn the_least_guest_runs() {
    let version = picking("(global.get $ok)");
    let policy = super::Policy::start(&version, &fleet(2), &serde_json::Value::Null, &LIMITS, 1).unwrap();
    assert_eq!(policy.pick(0, &request(0), &[0, 1]), Ok(super::Decision::Pick(0)));
    let version = compiled(&Guest::default().translator());
    let translator = super::Translator::start(&version, &fleet(2), &serde_json::Value::Null, &LIMITS, 1).unwrap();
    assert_eq!(translator.resolve(0, "model"), Ok(Vec::new()));
}
