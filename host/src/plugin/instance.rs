//! The running side of a plugin: one instance a worker, and how it is called.
//!
//! Invariants:
//! - Every call is armed anew, and no call is made by another way.
//! - A slot is touched by its own worker and by the one who rebuilds it. Neither waits for the other: a worker that
//!   finds it taken goes without.
//! - A call that fails in whatever way leaves an empty slot behind. wasmtime refuses an instance after a trap, and
//!   what one that answers nonsense believes is not worth keeping.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use crossbeam_utils::CachePadded;
use tokio::time::Instant;
use wasmtime::{Store, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::bindings::{Fleet, Setup};
use super::engine::Allowance;
use super::version::Version;
use super::wasi::{self, Guest};
use super::{Fault, Refusal, Stage, is_model_name};
use crate::config::PluginLimits;

/// What a new instance is started with, now and whenever a slot is rebuilt.
pub(super) struct Start {
    pub version: Arc<Version>,
    pub fleet: Fleet,
    /// Those that a version of this size has.
    pub limits: PluginLimits,
    settings: String,
    shards: u32,
}

impl Start {
    pub fn new(
        version: &Arc<Version>,
        fleet: &Fleet,
        settings: &serde_json::Value,
        limits: PluginLimits,
        shards: usize,
    ) -> Self {
        let mut fleet = fleet.clone();
        // Backends may lie. A name that no request could carry must not become a fault of the plugin that repeats it.
        fleet.backends.iter_mut().for_each(|backend| backend.serves.retain(|name| is_model_name(name)));
        let settings = if settings.is_null() { "{}".to_owned() } else { settings.to_string() };
        Self {
            version: Arc::clone(version),
            fleet,
            limits: limits_of(version, limits),
            settings,
            shards: u32::try_from(shards).unwrap_or(u32::MAX),
        }
    }

    pub fn setup(&self, shard: usize) -> Setup {
        Setup {
            name: self.version.name.clone(),
            settings: self.settings.clone(),
            shard: u32::try_from(shard).unwrap_or(u32::MAX),
            shards: self.shards,
        }
    }

    /// A new instance, by the function that its world instantiates with.
    pub fn instance<W>(
        &self,
        engine: &wasmtime::Engine,
        instantiate: impl FnOnce(&mut Store<Guest>) -> wasmtime::Result<W>,
    ) -> Result<Instance<W>, Refusal> {
        let mut store = Guest::store(engine, &self.version, self.limits.memory_bytes);
        let result = instantiate(&mut store);
        store.data_mut().console.end();
        match result {
            Ok(world) => Ok(Instance { store, world }),
            Err(error) if store.data().bounds.denied => {
                let allowed = self.limits.memory_bytes;
                let reason =
                    format!("it needs more memory than `plugins.limits.memory` allows ({allowed} bytes): {error:#}");
                Err(Refusal::new(Stage::Instantiate, reason))
            }
            Err(error) => Err(Refusal::new(Stage::Instantiate, fault(error, store.data()).to_string())),
        }
    }
}

/// A script brings its interpreter along: QuickJS has 1.7 MiB, the others more; a compiled plugin has 60 KiB.
const SCRIPT_BYTES: usize = 1 << 20;
/// A pick takes JavaScript or Python 0.4 to 0.8 million units of fuel, and 3 million where garbage is collected. With
/// the default this stops an endless loop after about 1.5 ms.
const SCRIPT_FUEL: u64 = 50;
/// Interpreters run in 64 MiB.
const SCRIPT_MEMORY: usize = 4;

/// The configured limits are for compiled plugins; what is large enough to be a script has a multiple of them.
fn limits_of(version: &Version, limits: PluginLimits) -> PluginLimits {
    if version.size_bytes < SCRIPT_BYTES {
        return limits;
    }
    PluginLimits {
        fuel: limits.fuel.saturating_mul(SCRIPT_FUEL),
        memory_bytes: limits.memory_bytes.saturating_mul(SCRIPT_MEMORY),
    }
}

/// A component brought to life.
pub(super) struct Instance<W> {
    store: Store<Guest>,
    world: W,
}

impl<W> Instance<W> {
    /// Calls it within the allowance.
    pub fn call<R>(
        &mut self,
        allowance: Allowance,
        call: impl FnOnce(&W, &mut Store<Guest>) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        wasi::arm(&mut self.store, allowance);
        let result = call(&self.world, &mut self.store);
        self.store.data_mut().console.end();
        result.map_err(|error| fault(error, self.store.data()))
    }

    /// Calls it before it is in use: a fault refuses it, at this stage.
    pub fn start_call<R>(
        &mut self,
        stage: Stage,
        call: impl FnOnce(&W, &mut Store<Guest>) -> wasmtime::Result<R>,
    ) -> Result<R, Refusal> {
        self.call(Allowance::START, call).map_err(|fault| Refusal::new(stage, fault.to_string()))
    }

    /// Fuel that the last call used, which had this allowance.
    pub fn fuel_used(&self, allowance: Allowance) -> u64 {
        allowance.fuel - self.store.get_fuel().unwrap_or(0)
    }
}

/// What became of a call that failed.
fn fault(error: wasmtime::Error, guest: &Guest) -> Fault {
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => return Fault::OutOfFuel,
        Some(Trap::Interrupt) => return Fault::Deadline,
        _ if guest.bounds.denied => return Fault::Memory,
        _ => {}
    }
    let cause = match error.downcast_ref::<I32Exit>() {
        Some(_) => "it left through `exit`".to_owned(),
        None => error.root_cause().to_string(),
    };
    Fault::Trap(match (guest.console.said(), innermost(&error)) {
        (Some(said), _) => format!("{cause}; it said: {said}"),
        (None, Some(place)) => format!("{cause} in {place}"),
        (None, None) => cause,
    })
}

/// The functions in which it trapped, where the component has their names.
fn innermost(error: &wasmtime::Error) -> Option<String> {
    let frames = error.downcast_ref::<WasmBacktrace>()?.frames();
    let names: Vec<_> = frames.iter().filter_map(|frame| frame.func_name()).take(3).collect();
    (!names.is_empty()).then(|| names.join(" < "))
}

/// A worker's instance, on cache lines of its own; `None` after a fault.
type Slot<W> = CachePadded<Mutex<Option<Instance<W>>>>;

/// The instances of a started plugin.
pub(super) struct Slots<W> {
    version: Arc<Version>,
    slots: Box<[Slot<W>]>,
}

impl<W> Slots<W> {
    pub fn new(version: &Arc<Version>, instances: Vec<Instance<W>>) -> Self {
        let slots = instances.into_iter().map(|instance| CachePadded::new(Mutex::new(Some(instance)))).collect();
        Self { version: Arc::clone(version), slots }
    }

    /// Calls the instance of this worker and checks what it answers.
    pub fn call<R>(
        &self,
        shard: usize,
        allowance: Allowance,
        call: impl FnOnce(&W, &mut Store<Guest>) -> wasmtime::Result<R>,
        check: impl FnOnce(&R) -> Result<(), String>,
    ) -> Result<R, Fault> {
        let Some(slot) = self.slots.get(shard) else { return Err(Fault::Away) };
        let mut slot = match slot.try_lock() {
            Ok(slot) => slot,
            Err(TryLockError::WouldBlock) => return Err(Fault::Away),
            // The host itself panicked in a call: what is in there may be half done.
            Err(TryLockError::Poisoned(poisoned)) => {
                *poisoned.into_inner() = None;
                return Err(Fault::Away);
            }
        };
        let Some(instance) = slot.as_mut() else { return Err(Fault::Away) };
        let started = self.version.counters.call(shard).then(Instant::now);
        let answer = instance.call(allowance, call).and_then(|answer| match check(&answer) {
            Ok(()) => Ok(answer),
            Err(why) => Err(Fault::Nonsense(why)),
        });
        if let Some(started) = started {
            self.version.counters.time(shard, started.elapsed());
        }
        if let Err(fault) = &answer {
            *slot = None;
            self.version.note(fault);
        }
        answer
    }

    /// Puts a new instance where one was lost. Nothing but this and the worker's own call ever holds the slot.
    pub fn fill(&self, shard: usize, instance: Instance<W>) {
        if let Some(slot) = self.slots.get(shard) {
            slot.clear_poison();
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(instance);
        }
    }
}
