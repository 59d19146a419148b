//! The component side: bindings made from `wit/`, and the conversions between their types and ours.
//!
//! Nothing here that a person wrote is unsafe. The bindings are, as all at this boundary are: rustc's `unsafe_code`
//! lint passes over what a macro of another crate writes, so that a plugin can forbid it in its own code.
//!
//! Only built for WebAssembly. The `export_…!` macros are its only users outside this crate.
//! An instance of a plugin lives in a thread-local, which in a component, single-threaded, is a plain variable.

use std::cell::RefCell;
use std::marker::PhantomData;

use crate::{Backend, Candidates, Decision, Fleet, Level, Policy, Request, Route, Setup, Traits, Translator};

use policy::exports::vision_proxy::plugin::balance;
use policy::vision_proxy::plugin::{host, types};
use translator::exports::vision_proxy::plugin::translate;

#[allow(missing_docs, reason = "generated; wit/vision-proxy.wit is its documentation")]
pub mod policy {
    //! The `policy` world.
    wit_bindgen::generate!({ path: "../../wit", world: "policy", pub_export_macro: true });
}

#[allow(missing_docs, reason = "generated; wit/vision-proxy.wit is its documentation")]
pub mod translator {
    //! The `translator` world; what it shares with the `policy` world is not generated again.
    wit_bindgen::generate!({
        path: "../../wit",
        world: "translator",
        pub_export_macro: true,
        with: {
            "vision-proxy:plugin/types@0.1.0": crate::wasm::policy::vision_proxy::plugin::types,
            "vision-proxy:plugin/host@0.1.0": crate::wasm::policy::vision_proxy::plugin::host,
        },
    });
}

/// A configured policy of any type: a component has one, but a static cannot name a type parameter.
trait RunningPolicy {
    fn update(&mut self, fleet: &Fleet);
    fn pick(&mut self, request: &Request, rows: &[u32]) -> Decision;
}

impl<P: Policy> RunningPolicy for P {
    fn update(&mut self, fleet: &Fleet) {
        Policy::update(self, fleet);
    }

    fn pick(&mut self, request: &Request, rows: &[u32]) -> Decision {
        Policy::pick(self, request, &Candidates::new(rows))
    }
}

thread_local! {
    static POLICY: RefCell<Option<Box<dyn RunningPolicy>>> = const { RefCell::new(None) };
}

/// The `balance` interface of the policy `P`.
pub struct PolicyComponent<P>(PhantomData<P>);

impl<P: Policy> balance::Guest for PolicyComponent<P> {
    fn configure(setup: types::Setup) -> Result<Vec<String>, String> {
        POLICY.set(Some(Box::new(P::configure(&setup.into())?)));
        Ok(P::COLUMNS.iter().map(|column| column.name().to_owned()).collect())
    }

    fn update(fleet: types::Fleet) {
        let fleet = fleet.into();
        POLICY.with_borrow_mut(|policy| policy.as_mut().map(|policy| policy.update(&fleet)));
    }

    fn pick(request: balance::Request, rows: Vec<u32>) -> balance::Decision {
        let request = request.into();
        let decision = POLICY.with_borrow_mut(|policy| policy.as_mut().map(|policy| policy.pick(&request, &rows)));
        decision.unwrap_or(Decision::Abstain).into()
    }
}

/// A configured translator of any type, as with [`RunningPolicy`].
trait RunningTranslator {
    fn update(&mut self, fleet: &Fleet);
    fn resolve(&self, model: &str) -> Vec<Route>;
    fn catalog(&self) -> Vec<String>;
}

impl<T: Translator> RunningTranslator for T {
    fn update(&mut self, fleet: &Fleet) {
        Translator::update(self, fleet);
    }

    fn resolve(&self, model: &str) -> Vec<Route> {
        Translator::resolve(self, model)
    }

    fn catalog(&self) -> Vec<String> {
        Translator::catalog(self)
    }
}

thread_local! {
    static TRANSLATOR: RefCell<Option<Box<dyn RunningTranslator>>> = const { RefCell::new(None) };
}

/// The `translate` interface of the translator `T`.
pub struct TranslatorComponent<T>(PhantomData<T>);

impl<T: Translator> translate::Guest for TranslatorComponent<T> {
    fn configure(setup: types::Setup) -> Result<(), String> {
        TRANSLATOR.set(Some(Box::new(T::configure(&setup.into())?)));
        Ok(())
    }

    fn update(fleet: types::Fleet) {
        let fleet = fleet.into();
        TRANSLATOR.with_borrow_mut(|translator| translator.as_mut().map(|translator| translator.update(&fleet)));
    }

    fn resolve(model: String) -> Vec<translate::Route> {
        let resolve = |translator: &dyn RunningTranslator| translator.resolve(&model);
        let routes = TRANSLATOR.with_borrow(|translator| translator.as_deref().map(resolve));
        routes.into_iter().flatten().map(Into::into).collect()
    }

    fn catalog() -> Vec<String> {
        let names = TRANSLATOR.with_borrow(|translator| translator.as_ref().map(|translator| translator.catalog()));
        names.unwrap_or_default()
    }
}

/// See [`crate::log`].
pub(crate) fn log(level: Level, message: &str) {
    let level = match level {
        Level::Debug => host::Level::Debug,
        Level::Info => host::Level::Info,
        Level::Warn => host::Level::Warn,
        Level::Error => host::Level::Error,
    };
    host::log(level, message);
}

impl From<types::Setup> for Setup {
    fn from(setup: types::Setup) -> Self {
        let types::Setup { name, settings, shard, shards } = setup;
        Self { name, settings_json: settings, shard, shards }
    }
}

impl From<types::Fleet> for Fleet {
    fn from(fleet: types::Fleet) -> Self {
        let types::Fleet { generation, models, backends } = fleet;
        Self { generation, models, backends: backends.into_iter().map(Into::into).collect() }
    }
}

impl From<types::Backend> for Backend {
    fn from(backend: types::Backend) -> Self {
        let types::Backend { name, hash, engine, weight, labels, serves, names } = backend;
        Self { name, hash, engine, weight, labels, serves, names }
    }
}

impl From<balance::Request> for Request {
    fn from(request: balance::Request) -> Self {
        let is = |flag| request.traits.contains(flag);
        Self {
            sequence: request.sequence,
            random: request.random,
            affinity: Some(request.affinity).filter(|hash| *hash != 0),
            prefix: Some(request.prefix).filter(|hash| *hash != 0),
            now_ms: request.now_ms,
            model: Some(request.model as usize).filter(|_| request.model != u32::MAX),
            body_kib: request.body_kib,
            images: request.images,
            attempt: request.attempt,
            traits: Traits {
                streaming: is(balance::Traits::STREAMING),
                vision: is(balance::Traits::VISION),
                embedding: is(balance::Traits::EMBEDDING),
                audio: is(balance::Traits::AUDIO),
                retry: is(balance::Traits::RETRY),
            },
        }
    }
}

impl From<Decision> for balance::Decision {
    fn from(decision: Decision) -> Self {
        match decision {
            Decision::Pick(row) => Self::Pick(row),
            Decision::Abstain => Self::Abstain,
            Decision::Hold => Self::Hold,
            Decision::Reject(status) => Self::Reject(status),
        }
    }
}

impl From<Route> for translate::Route {
    fn from(route: Route) -> Self {
        Self { backend: route.backend as u32, native: route.native }
    }
}
