//! A started model-name translator.
//!
//! Invariants:
//! - Routes that are handed on can be followed: their backends exist, none is named twice, and their native names
//!   can stand in a request.
//! - The catalog is asked for once, at the start: it cannot change until fleet or plugin do.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::Value;

use super::bindings::translator::{Translator as World, TranslatorPre};
use super::bindings::{Fleet, Route};
use super::console::legible;
use super::engine::{Allowance, StartClock};
use super::instance::{Instance, Slots, Start};
use super::trial::made_up_fleet;
use super::version::{self, Version};
use super::{Fault, Kind, NAME_MAX_BYTES, Refusal, Stage, is_model_name, not_a};
use crate::config::PluginLimits;

/// As `wit/` says.
const CATALOG_MAX: usize = 4096;
/// Fuel of a resolution in a fleet of a few backends …
const RESOLVE_FUEL: u64 = 500_000;
/// … and for each further name that it may have to look at: a comparison of two long names, and a copy.
const RESOLVE_FUEL_A_NAME: u64 = 2_000;
/// A route: its name, its place in the list, and the list's own growth in a guest that doubles it.
const ROUTE_BYTES: usize = NAME_MAX_BYTES + 64;
/// What may be handed over besides routes: lines for the log.
const RESOLVE_ANSWER_BYTES: usize = 64 << 10;
/// Public names resolved before the first request. One fault shows as well as a thousand.
const TRIED_NAMES: usize = 64;

/// One version of a translator, with one fleet, and an instance a worker.
pub struct Translator {
    start: Start,
    catalog: Vec<String>,
    allowance: Allowance,
    clock: StartClock,
    slots: Slots<World>,
}

impl Translator {
    /// Starts an instance for each of `shards` workers and tries them. Blocks for milliseconds, and for five seconds
    /// of processor time where the guest is hostile: not on a worker.
    pub fn start(
        version: &Arc<Version>,
        fleet: &Fleet,
        settings: &Value,
        limits: &PluginLimits,
        shards: usize,
    ) -> Result<Self, Refusal> {
        // A built-in one is compiled here, which is not its fault.
        pre(version)?;
        let clock = StartClock::begin();
        let rehearsal = Start::new(version, &made_up_fleet(), settings, *limits, 1);
        tried_instance(&rehearsal, 0, allowance(&rehearsal), clock)?;
        let start = Start::new(version, fleet, settings, *limits, shards);
        let allowance = allowance(&start);
        let mut instances =
            (0..shards).map(|shard| tried_instance(&start, shard, allowance, clock)).collect::<Result<Vec<_>, _>>()?;
        let names = match instances.first_mut() {
            Some(first) => first
                .start_call(Stage::Trial, |world, store| world.vision_proxy_plugin_translate().call_catalog(store))?,
            None => Vec::new(),
        };
        let catalog = listable(&version.name, names);
        Ok(Self { slots: Slots::new(version, instances), start, catalog, allowance, clock })
    }

    /// The version that runs.
    pub fn version(&self) -> &Arc<Version> {
        &self.start.version
    }

    /// The public names, in the order they are to be listed.
    pub fn catalog(&self) -> &[String] {
        &self.catalog
    }

    /// Who serves each of these names; a name that fails is left out. For the thread that started it, in what is left of the
    /// time for that.
    ///
    /// # Errors
    /// The time is up.
    pub fn routes(&self, names: &[Arc<str>]) -> Result<HashMap<Arc<str>, Vec<Route>>, Refusal> {
        let mut routes = HashMap::new();
        for name in names {
            self.clock.allowance(Stage::Trial)?;
            if let Ok(found) = self.resolve(0, name) {
                routes.insert(Arc::clone(name), found);
            }
        }
        Ok(routes)
    }

    /// Who serves this public name, and under what name; nobody serves one that is no model name at all.
    /// Takes microseconds: the caller keeps the answer. After any fault but `Away` the slot is empty until `rebuild`.
    pub fn resolve(&self, shard: usize, model: &str) -> Result<Vec<Route>, Fault> {
        if !is_model_name(model) {
            return Ok(Vec::new());
        }
        let backends = self.start.fleet.backends.len();
        let call = |world: &World, store: &mut _| world.vision_proxy_plugin_translate().call_resolve(store, model);
        self.slots.call(shard, self.allowance, call, |routes| check(routes, backends))
    }

    /// Fills the slot of this worker with a new, tried instance. Blocks: not on a worker.
    pub fn rebuild(&self, shard: usize) -> Result<(), Refusal> {
        let instance = tried_instance(&self.start, shard, self.allowance, StartClock::begin())?;
        self.slots.fill(shard, instance);
        Ok(())
    }
}

impl std::fmt::Debug for Translator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.version().fmt(f)
    }
}

/// A guest may look at every name of the fleet, and may name every backend.
fn allowance(start: &Start) -> Allowance {
    let Fleet { models, backends, .. } = &start.fleet;
    let names =
        models.len() + backends.iter().map(|backend| 1 + backend.serves.len() + backend.names.len()).sum::<usize>();
    let fuel = RESOLVE_FUEL.max(start.limits.fuel) + RESOLVE_FUEL_A_NAME * names as u64;
    Allowance::call(fuel, RESOLVE_ANSWER_BYTES + ROUTE_BYTES * backends.len())
}

fn check(routes: &[Route], backends: usize) -> Result<(), String> {
    let mut is_named = vec![false; backends];
    for Route { backend, native } in routes {
        match is_named.get_mut(*backend as usize) {
            None => return Err(format!("backend {backend} of {backends}")),
            Some(true) => return Err(format!("backend {backend} twice")),
            Some(named) => *named = true,
        }
        if !is_model_name(native) {
            return Err(format!("a native name of {} bytes: `{}`", native.len(), legible(native.as_bytes())));
        }
    }
    Ok(())
}

/// The names that can be listed, each once. A bad one is most often what a backend says of itself, and no reason
/// to go without the others.
fn listable(plugin: &str, names: Vec<String>) -> Vec<String> {
    let (offered, mut seen) = (names.len(), BTreeSet::new());
    let mut catalog: Vec<_> =
        names.into_iter().filter(|name| is_model_name(name) && seen.insert(name.clone())).collect();
    catalog.truncate(CATALOG_MAX);
    if catalog.len() < offered {
        tracing::warn!(
            plugin,
            offered,
            listed = catalog.len(),
            "names of the catalog are double, too many or no names"
        );
    }
    catalog
}

/// An instance that is configured, knows the fleet, and has resolved some names.
fn tried_instance(
    start: &Start,
    shard: usize,
    allowance: Allowance,
    clock: StartClock,
) -> Result<Instance<World>, Refusal> {
    let pre = pre(&start.version)?;
    let mut instance = start.instance(pre.engine(), clock, |store| pre.instantiate(store))?;
    let setup = start.setup(shard);
    let configured = instance.start_call(Stage::Configure, |world, store| {
        world.vision_proxy_plugin_translate().call_configure(store, &setup)
    })?;
    configured.map_err(|reason| Refusal::new(Stage::Configure, legible(reason.as_bytes())))?;
    instance.start_call(Stage::Update, |world, store| {
        world.vision_proxy_plugin_translate().call_update(store, &start.fleet)
    })?;
    let long = "x".repeat(NAME_MAX_BYTES);
    let unknown = ["no such model", &long];
    for model in unknown.into_iter().chain(start.fleet.models.iter().map(String::as_str).take(TRIED_NAMES)) {
        try_resolve(&mut instance, model, start.fleet.backends.len(), allowance)?;
    }
    Ok(instance)
}

fn try_resolve(
    instance: &mut Instance<World>,
    model: &str,
    backends: usize,
    allowance: Allowance,
) -> Result<(), Refusal> {
    let call = |world: &World, store: &mut _| world.vision_proxy_plugin_translate().call_resolve(store, model);
    let routes = instance.start_call(Stage::Trial, call)?;
    check(&routes, backends).map_err(|why| Refusal::new(Stage::Trial, Fault::Nonsense(why).to_string()))?;
    instance.check_cost(allowance, "resolving a name", "this fleet")
}

fn pre(version: &Version) -> Result<&TranslatorPre<super::wasi::Guest>, Refusal> {
    match version.world()? {
        version::World::Translator(pre) => Ok(pre),
        version::World::Policy(_) => Err(Refusal::new(Stage::Kind, not_a(Kind::Translator, version))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::guests::{Guest, LIMITS, built_ins, compiled, fleet};
    use super::*;

    /// Answers these routes (backend, text, its length) for a name of seven bytes, and else none.
    fn on_seven(routes: &[(i32, u32, u32)]) -> String {
        let store = |(at, (backend, text, bytes)): (usize, &(i32, u32, u32))| {
            let at = 800 + 12 * at;
            let [name, length] = [at + 4, at + 8];
            format!(
                "(i32.store (i32.const {at}) (i32.const {backend})) (i32.store (i32.const {name}) (i32.const {text}))
                (i32.store (i32.const {length}) (i32.const {bytes}))"
            )
        };
        let stores: String = routes.iter().enumerate().map(store).collect();
        format!(
            "(if (i32.eq (local.get $bytes) (i32.const 7)) (then {stores}
                (return (call $answer (i32.const 800) (i32.const {})))))
            (global.get $ok)",
            routes.len()
        )
    }

    fn start(guest: &Guest, backends: u32) -> Result<Translator, Refusal> {
        Translator::start(&compiled(&guest.translator()), &fleet(backends), &Value::Null, &LIMITS, 1)
    }

    fn resolve(routes: &[(i32, u32, u32)]) -> Result<Vec<Route>, Fault> {
        let translator = start(&Guest { resolve: &on_seven(routes), ..Guest::default() }, 3).unwrap();
        let answer = translator.resolve(0, "seventh");
        if answer.is_err() {
            assert_eq!(translator.resolve(0, "model"), Err(Fault::Away));
            translator.rebuild(0).unwrap();
        }
        assert_eq!(translator.resolve(0, "model"), Ok(Vec::new()));
        answer
    }

    #[test]
    fn routes_are_checked() {
        let route = |backend| Route { backend, native: "native".to_owned() };
        assert_eq!(resolve(&[(2, 1216, 6), (0, 1216, 6)]), Ok(vec![route(2), route(0)]));
        for (routes, why) in [
            (&[(3, 1216, 6)][..], "backend 3 of 3"),
            (&[(-1, 1216, 6)], "backend 4294967295 of 3"),
            (&[(1, 1216, 6), (1, 1216, 6)], "backend 1 twice"),
            (&[(1, 1216, 0)], "a native name of 0 bytes: ``"),
            (&[(1, 1280, 12)], "a native name of 12 bytes: `forged\\r\\nname`"),
        ] {
            assert_eq!(resolve(routes), Err(Fault::Nonsense(why.to_owned())));
        }
        let Err(Fault::Nonsense(why)) = resolve(&[(1, 1536, 257)]) else { panic!() };
        assert!(why.starts_with("a native name of 257 bytes"), "{why}");
        assert!(matches!(resolve(&[(1, 0x7fff_0000, 6)]), Err(Fault::Trap(_))));
    }

    #[test]
    fn a_name_that_is_none_is_served_by_nobody() {
        let translator = start(&Guest { resolve: "unreachable", ..Guest::default() }, 0);
        assert_eq!(translator.err().unwrap().stage, Stage::Trial);
        let translator = start(&Guest { resolve: &on_seven(&[(9, 0, 0)]), ..Guest::default() }, 3).unwrap();
        for name in ["", "seven\n\n", &"x".repeat(257)] {
            assert_eq!(translator.resolve(0, name), Ok(Vec::new()));
        }
    }

    #[test]
    fn the_catalog_lists_each_name_once_and_only_names() {
        let names = ["a", "b", "a", "", "c\nd", "b"].map(str::to_owned).to_vec();
        assert_eq!(listable("p", names), ["a", "b"]);
        let many = (0..5000).map(|at| at.to_string()).collect();
        assert_eq!(listable("p", many).len(), CATALOG_MAX);
    }

    #[test]
    fn the_built_in_translator_knows_the_names_of_the_configuration() {
        let built_ins = built_ins();
        let mut fleet = fleet(2);
        // A lie that no request could carry is kept from the plugin.
        fleet.backends[0].serves.push("forged\r\nname".to_owned());
        let translator = Translator::start(&built_ins[2], &fleet, &Value::Null, &LIMITS, 1).unwrap();
        let routes = [0, 1].map(|backend| Route { backend, native: format!("org/model-{backend}") });
        assert_eq!(translator.resolve(0, "model"), Ok(routes.to_vec()));
        assert_eq!(translator.resolve(0, "nobody's"), Ok(Vec::new()));
        assert!(translator.catalog().contains(&"model".to_owned()), "{:?}", translator.catalog());
        assert!(translator.catalog().iter().all(|name| is_model_name(name)));
    }

    #[test]
    fn a_large_fleet_has_fuel_and_room_for_all_its_routes() {
        let built_ins = built_ins();
        let mut fleet = fleet(1000);
        for (at, backend) in fleet.backends.iter_mut().enumerate() {
            let long = |of: usize| format!("{of}-{:x<200}", "");
            backend.serves = (0..4).map(|of| long(1000 * of + at)).collect();
            backend.names = vec![("other".to_owned(), long(0)), ("model".to_owned(), long(at))];
        }
        let translator = Translator::start(&built_ins[2], &fleet, &Value::Null, &LIMITS, 1).unwrap();
        assert_eq!(translator.resolve(0, "model").map(|routes| routes.len()), Ok(1000));
    }
}
