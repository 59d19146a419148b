//! Everything a plugin of Vision Proxy needs: a trait to implement and one line to export it.
//!
//! A **policy** says which backend a request goes to; a **translator** says who serves a public model
//! name, and under what name. `wit/vision-proxy.wit` is the specification of both: units, ranges, limits.
//!
//! ```
//! use vision_proxy_sdk::{Candidates, Column, Decision, Policy, Request, Setup, export_policy};
//!
//! struct MostFree;
//!
//! impl Policy for MostFree {
//!     const COLUMNS: &'static [Column] = &[Column::Free];
//!
//!     fn configure(_: &Setup) -> Result<Self, String> {
//!         Ok(Self)
//!     }
//!
//!     fn pick(&mut self, _: &Request, candidates: &Candidates<Self>) -> Decision {
//!         candidates.iter().max_by_key(|candidate| candidate.get(Column::Free)).into()
//!     }
//! }
//!
//! export_policy!(MostFree);
//! ```
//!
//! Built for `wasm32-wasip2` as a `cdylib` that is a plugin; built natively it is an ordinary library, tested
//! with [`Fleet::builder`], [`Request::example`], [`Setup::example`] and [`Rows`].
//!
//! - Any instance may serve any call, and an instance may be replaced between two calls: state is a cache.
//! - A panic costs the request nothing (the host's own round robin answers it) but counts as a fault.
//! - Prefer `BTreeMap` to `HashMap`: the latter asks the host for randomness and makes the plugin larger.
//! - The flat rows of the interface end in [`Candidates`]; no other file knows their layout.

mod candidates;
mod column;
mod fleet;
mod log;
mod request;
mod setup;
#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub mod wasm;

pub use candidates::{Candidate, Candidates, Rows};
pub use column::Column;
pub use fleet::{Backend, Fleet, FleetBuilder};
pub use log::{Level, log};
pub use request::{Decision, Request, Traits};
pub use setup::Setup;

/// A balancing policy: says which backend a request goes to. Export it with [`export_policy!`].
pub trait Policy: Sized + 'static {
    /// The numbers that [`pick`](Self::pick) is given for each candidate, at most 16. Each costs a little on
    /// every request: ask for what the policy reads.
    const COLUMNS: &'static [Column];

    /// Makes the policy from its settings; called once, before anything else. An error refuses the plugin and
    /// is shown to the operator: say which setting is wrong and what it should be.
    fn configure(setup: &Setup) -> Result<Self, String>;

    /// Tells the fleet: once after `configure`, and again whenever it changes. The place for everything that
    /// can be worked out before a request comes.
    fn update(&mut self, fleet: &Fleet) {
        let _ = fleet;
    }

    /// Picks one of `candidates`: at least one, each up, with a free slot, serving the model and not yet tried
    /// for this request. On the request path, with about 30 µs to answer.
    fn pick(&mut self, request: &Request, candidates: &Candidates<Self>) -> Decision;
}

/// A model-name translator. Export it with [`export_translator!`].
pub trait Translator: Sized + 'static {
    /// Makes the translator from its settings, where `models` holds the `[models]` table of the configuration;
    /// called once, before anything else. An error refuses the plugin and is shown to the operator.
    fn configure(setup: &Setup) -> Result<Self, String>;

    /// Tells the fleet: once after `configure`, and again whenever it changes. Answers should be worked out
    /// here.
    fn update(&mut self, fleet: &Fleet);

    /// Who serves this public name, each backend at most once. Empty: nobody, which the client reads as a 404.
    /// The host keeps the answer until fleet or plugin change.
    fn resolve(&self, model: &str) -> Vec<Route>;

    /// The public names for `GET /v1/models`, at most 4,096, in the order they are to be listed.
    fn catalog(&self) -> Vec<String>;
}

/// One backend that serves a public name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Index into [`Fleet::backends`].
    pub backend: usize,
    /// What that backend calls the model: 1 to 256 bytes, no control characters.
    pub native: String,
}

/// Exports a [`Policy`] as the component's `balance` interface. Natively it only checks the type.
#[macro_export]
macro_rules! export_policy {
    ($policy:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Component = $crate::wasm::PolicyComponent<$policy>;
    $crate::wasm::policy::export!(Component with_types_in $crate::wasm::policy);
        };
        #[cfg(not(target_family = "wasm"))]
        const _: fn(&$crate::Setup) -> Result<$policy, String> = <$policy as $crate::Policy>::configure;
    };
}

/// Exports a [`Translator`] as the component's `translate` interface. Natively it only checks the type.
#[macro_export]
macro_rules! export_translator {
    ($translator:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Component = $crate::wasm::TranslatorComponent<$translator>;
    $crate::wasm::translator::export!(Component with_types_in $crate::wasm::translator);
        };
        #[cfg(not(target_family = "wasm"))]
        const _: fn(&$crate::Setup) -> Result<$translator, String> = <$translator as $crate::Translator>::configure;
    };
}
