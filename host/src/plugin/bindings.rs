//! The Rust face of `wit/`: everything here is generated from it.
//!
//! Invariants:
//! - The two worlds share `types` and `host`, so one fleet serves both kinds and one linker both worlds.
//! - A call into a guest is only reachable through an `Instance`, which arms its limits first.

/// A balancing policy.
#[allow(missing_docs, reason = "generated: where `wit/` says nothing, the name says it")]
pub(super) mod policy {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "policy",
        imports: { default: trappable },
        additional_derives: [PartialEq],
    });
}

/// A model-name translator.
#[allow(missing_docs, reason = "generated: where `wit/` says nothing, the name says it")]
pub(super) mod translator {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "translator",
        imports: { default: trappable },
        additional_derives: [PartialEq],
        with: {
            "vision-proxy:plugin/types": super::policy::vision_proxy::plugin::types,
            "vision-proxy:plugin/host": super::policy::vision_proxy::plugin::host,
        },
    });
}

pub use policy::exports::vision_proxy::plugin::balance::{Decision, Request, Traits};
pub use policy::vision_proxy::plugin::types::{Backend, Fleet};
pub use translator::exports::vision_proxy::plugin::translate::Route;

pub(super) use policy::vision_proxy::plugin::types::Setup;
pub(super) use policy::vision_proxy::plugin::{host, types};

impl Default for Request {
    /// All numbers 0, no trait.
    fn default() -> Self {
        Self {
            sequence: 0,
            random: 0,
            affinity: 0,
            prefix: 0,
            now_ms: 0,
            model: 0,
            body_kib: 0,
            images: 0,
            attempt: 0,
            traits: Traits::empty(),
        }
    }
}

impl Traits {
    /// Sets or clears these.
    pub fn set(&mut self, traits: Self, on: bool) {
        if on { *self |= traits } else { *self &= Self::all() ^ traits }
    }
}
