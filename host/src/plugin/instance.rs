//! The running side of a plugin: one instance a worker, and how it is called.
//!
//! Invariants:
//! - Every call is armed anew, and no call is made by another way.
//! - A slot is touched by its own worker and by the one who rebuilds it. Neither waits for the other: a worker that
//!   finds it taken goes without.
//! - A call that fails in whatever way leaves an empty slot behind. wasmtime refuses an instance after a trap, and
//!   what one that answers nonsense believes is not worth keeping.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use tokio::time::Instant;
use wasmtime::{Store, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::bindings::{Fleet, Setup};
use super::console::told;
use super::engine::{Allowance, StartClock};
use super::version::Version;
use super::wasi::{self, Guest};
use super::{Fault, Refusal, Stage, is_model_name};
use crate::clock::thread_time;
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
        clock: StartClock,
        instantiate: impl FnOnce(&mut Store<Guest>) -> wasmtime::Result<W>,
    ) -> Result<Instance<W>, Refusal> {
        let mut store = Guest::store(engine, &self.version, self.limits.memory_bytes);
        wasi::arm(&mut store, clock.allowance(Stage::Instantiate)?);
        let result = instantiate(&mut store);
        store.data_mut().console.end();
        match result {
            Ok(world) => Ok(Instance { store, world, clock, cost: Cost::default() }),
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

/// A script brings its interpreter along: JavaScript has 9 MiB of code, Python more; the largest built-in plugin has 133 KiB. What
/// is no code makes no script: it could be nothing but zeros.
const SCRIPT_CODE_BYTES: usize = 512 << 10;
/// A pick takes JavaScript or Python 0.4 to 0.8 million units of fuel, and 3 million where garbage is collected. With
/// the default this stops an endless loop after about 1.5 ms.
const SCRIPT_FUEL: u64 = 50;
/// Interpreters run in 64 MiB.
const SCRIPT_MEMORY: usize = 4;

/// The configured limits are for compiled plugins; what is large enough to be a script has a multiple of them.
fn limits_of(version: &Version, limits: PluginLimits) -> PluginLimits {
    if version.code_bytes < SCRIPT_CODE_BYTES {
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
    /// For the calls before it is in use.
    clock: StartClock,
    /// Of the last of these.
    cost: Cost,
}

/// What a call cost.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    /// Of the guest, and of what the host did for it.
    pub fuel: u64,
    /// Processor time.
    pub time: Duration,
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
        let answer = result.map_err(|error| fault(error, self.store.data()))?;
        // Not every function of the host can end a call.
        if self.store.data().purse.is_none() { Err(Fault::OutOfFuel) } else { Ok(answer) }
    }

    /// Calls it before it is in use: a fault refuses it, at this stage.
    pub fn start_call<R>(
        &mut self,
        stage: Stage,
        call: impl FnOnce(&W, &mut Store<Guest>) -> wasmtime::Result<R>,
    ) -> Result<R, Refusal> {
        let allowance = self.clock.allowance(stage)?;
        let began = thread_time();
        let answer = self.call(allowance, call).map_err(|fault| Refusal::new(stage, fault.to_string()))?;
        let [left, purse] = [self.store.get_fuel().unwrap_or(0), self.store.data().purse.unwrap_or(0)];
        self.cost = Cost { fuel: 2 * allowance.fuel - left - purse, time: thread_time().saturating_sub(began) };
        Ok(answer)
    }

    /// Whether the last call before it is in use was one that at work would have ended well, too.
    ///
    /// # Errors
    /// A refusal that begins with these words.
    pub fn check_cost(&self, allowance: Allowance, what: &str, allowed_by: &str) -> Result<(), Refusal> {
        let Cost { fuel, time } = self.cost;
        if fuel > allowance.fuel {
            let reason = format!("{what} takes {fuel} fuel, {allowed_by} allows {}", allowance.fuel);
            return Err(Refusal::new(Stage::Trial, reason));
        }
        if time > allowance.time {
            let reason = format!("{what} takes {time:?} of processor time, at most {:?} is given", allowance.time);
            return Err(Refusal::new(Stage::Trial, reason));
        }
        Ok(())
    }
}

/// What became of a call that failed.
fn fault(error: wasmtime::Error, guest: &Guest) -> Fault {
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => return Fault::OutOfFuel,
        _ if guest.purse.is_none() => return Fault::OutOfFuel,
        Some(Trap::Interrupt) => return Fault::Deadline,
        _ if guest.bounds.denied => return Fault::Memory,
        _ => {}
    }
    let cause = match error.downcast_ref::<I32Exit>() {
        Some(_) => "it left through `exit`".to_owned(),
        None => error.root_cause().to_string(),
    };
    let text = match (guest.console.said(), innermost(&error)) {
        (Some(said), _) => format!("{cause}; it said: {said}"),
        (None, Some(place)) => format!("{cause} in {place}"),
        (None, None) => cause,
    };
    // The names are the guest's.
    Fault::Trap(told(&text))
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
        let started = self.version.counters.call(shard).then(|| (Instant::now(), thread_time()));
        let mut answer = instance.call(allowance, call).and_then(|answer| match check(&answer) {
            Ok(()) => Ok(answer),
            Err(why) => Err(Fault::Nonsense(told(&why))),
        });
        if let Some((started, began)) = started {
            self.version.counters.time(shard, started.elapsed());
            // What ended before it was looked at: one that is always so slow is found out all the same.
            if answer.is_ok() && thread_time().saturating_sub(began) > allowance.time {
                answer = Err(Fault::Deadline);
            }
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
