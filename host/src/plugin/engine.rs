//! wasmtime, narrowed to what plugins need, and the limits that hold for every guest.
//!
//! Invariants:
//! - One `Runtime` a process. Its epoch clock is a thread, never a task: a task can sit behind the very guest
//!   it should stop.
//! - Fuel is the limit of a call, for it counts work and not time; the deadline is the second lock, for work that fuel does not
//!   see. It is one of processor time: what a guest waits for others on a busy machine is not held against it.
//! - Only `.wasm` is ever loaded, never a precompiled file: that would be code of the host.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wasmtime::component::Linker;
use wasmtime::{Config, Engine, ResourceLimiter};

use super::version::Version;
use super::wasi::{self, Guest};
use super::{Kind, Refusal, Stage, compile};
use crate::clock::thread_time;

/// How often the epoch moves on: so often a call is looked at. Deadlines are met within two of these.
const EPOCH_TICK: Duration = Duration::from_millis(10);
/// A guest's stack. It lies on the stack of the worker thread (2 MiB); Rust, JavaScript and Python guests all
/// run within it.
const STACK_BYTES: usize = 256 << 10;
/// Frames kept of a trap's backtrace; a fault names the innermost few.
const BACKTRACE_FRAMES: Option<NonZeroUsize> = NonZeroUsize::new(16);

/// What one call may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    /// Of the guest; and as much again for what the host does for it.
    pub fuel: u64,
    /// Processor time.
    pub time: Duration,
    /// Bytes the guest may hand to the host in one answer, or in one call of a host function.
    pub answer_bytes: usize,
}

impl Allowance {
    /// Instantiating, configuring, updating, trial calls: about 33 ms of work. An answer has room for a catalog of
    /// 4,096 names. What all of them may take together, `StartClock` says.
    pub const START: Self = Self::call(200_000_000, 2 << 20);

    /// A call on the request path.
    pub const fn call(fuel: u64, answer_bytes: usize) -> Self {
        Self { fuel, time: time_for(fuel), answer_bytes }
    }
}

/// Processor time of a call with no fuel to speak of: a thousand times what a pick takes, for the memory that the kernel gives
/// meanwhile, and for a machine that is not all ours.
const LEAST_TIME_NS: u64 = 5_000_000;
/// A unit of fuel is worth a sixth of a nanosecond; on a slow machine, or where it is dear work, some times that.
const NS_A_FUEL: u64 = 2;
/// However much fuel is configured.
const MOST_TIME_NS: u64 = 2_000_000_000;

const fn time_for(fuel: u64) -> Duration {
    let ns = fuel.saturating_mul(NS_A_FUEL).saturating_add(LEAST_TIME_NS);
    Duration::from_nanos(if ns < MOST_TIME_NS { ns } else { MOST_TIME_NS })
}

/// Runs from when a plugin is begun to be started until all its instances are there, by the processor time of the thread that
/// does so: however many calls that takes, and however many workers there are.
#[derive(Clone, Copy)]
pub(super) struct StartClock {
    until: Duration,
}

impl StartClock {
    /// A Rust plugin needs a millisecond, a Python one twenty for each worker.
    const LONGEST: Duration = Duration::from_secs(5);

    pub fn begin() -> Self {
        Self { until: thread_time() + Self::LONGEST }
    }

    /// The time is up.
    #[cfg(test)]
    pub fn ended() -> Self {
        Self { until: Duration::ZERO }
    }

    /// What the next call may use; refused at this stage where the time is up.
    pub fn allowance(self, stage: Stage) -> Result<Allowance, Refusal> {
        let left = self.until.saturating_sub(thread_time());
        if left.is_zero() {
            let reason = format!("starting it takes more than {:?} of processor time", Self::LONGEST);
            return Err(Refusal::new(stage, reason));
        }
        Ok(Allowance { time: left.min(Allowance::START.time), ..Allowance::START })
    }
}

/// The engine, its linker and its clock. Cloning is cheap and shares them.
#[derive(Clone)]
pub struct Runtime {
    pub(super) engine: Engine,
    pub(super) linker: Arc<Linker<Guest>>,
    generations: Arc<AtomicU64>,
}

impl Runtime {
    /// The plugins that are part of the binary.
    const BUILT_IN: [(&'static str, Kind, &'static [u8]); 3] = [
        ("round-robin", Kind::Policy, include_bytes!(concat!(env!("OUT_DIR"), "/builtin/round-robin.wasm"))),
        ("least-busy", Kind::Policy, include_bytes!(concat!(env!("OUT_DIR"), "/builtin/least-busy.wasm"))),
        ("model-map", Kind::Translator, include_bytes!(concat!(env!("OUT_DIR"), "/builtin/model-map.wasm"))),
    ];

    /// Starts the engine and its clock. Fails where the machine is not one that wasmtime compiles for.
    pub fn new() -> anyhow::Result<Self> {
        let engine = Engine::new(&config()).map_err(legible)?;
        let linker = wasi::linker(&engine).map_err(legible)?;
        start_clock(&engine)?;
        Ok(Self { engine, linker: Arc::new(linker), generations: Arc::default() })
    }

    /// Checks and compiles a component, here and now and with no bound. Blocks for a good part of a second, for scripts
    /// many: off the request path.
    pub fn compile(&self, name: &str, bytes: &[u8]) -> Result<Arc<Version>, Refusal> {
        let compiled = compile::compile(self, bytes)?;
        Ok(Arc::new(Version::new(self, name, compile::sha256(bytes), bytes.len(), &compiled)))
    }

    /// What is embedded in the binary. Each is compiled when it is first started.
    pub fn built_ins(&self) -> Vec<Arc<Version>> {
        let version = |(name, kind, bytes)| Arc::new(Version::built_in(self, name, kind, bytes));
        Self::BUILT_IN.map(version).into()
    }

    /// A number that no version of this process had before.
    pub(super) fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// wasmtime's error is no `std::error::Error`: at this door it becomes text.
fn legible(error: wasmtime::Error) -> anyhow::Error {
    anyhow::anyhow!("{error:#}")
}

fn config() -> Config {
    let mut config = Config::new();
    config
        // Left on it makes every call three times slower, and opens the youngest part of wasmtime to guests.
        .concurrency_support(false)
        .consume_fuel(true)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES)
        .wasm_backtrace_max_frames(BACKTRACE_FRAMES)
        // No plugin needs these, and what is off has no bugs. Not here: `wasm_multi_memory(false)`, which
        // makes the compiler panic on components with adapters.
        .wasm_gc(false)
        .wasm_function_references(false)
        .wasm_exceptions(false)
        .wasm_tail_call(false)
        .wasm_memory64(false)
        .wasm_relaxed_simd(false)
        .wasm_wide_arithmetic(false)
        .wasm_custom_page_sizes(false);
    config
}

/// Moves the epoch on for as long as the engine lives.
fn start_clock(engine: &Engine) -> std::io::Result<()> {
    let engine = engine.weak();
    let tick = move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::park_timeout(EPOCH_TICK);
        }
    };
    std::thread::Builder::new().name("plugin-epoch".to_owned()).spawn(tick).map(drop)
}

/// The memory limit of one instance, over all its memories, and the other things it may have only so many of.
pub(super) struct Bounds {
    left_bytes: usize,
    left_elements: usize,
    /// Whether it was refused memory since this was last cleared.
    pub denied: bool,
}

impl Bounds {
    /// Functions that a guest may hold in tables. An engine for scripts has some ten thousand.
    const TABLE_ELEMENTS: usize = 100_000;

    pub fn new(memory_bytes: usize) -> Self {
        Self { left_bytes: memory_bytes, left_elements: Self::TABLE_ELEMENTS, denied: false }
    }
}

/// Takes the growth from what is left, or says that it cannot. Growth that fails later is not given back:
/// a guest which meets that is near its end.
fn take(left: &mut usize, current: usize, desired: usize) -> bool {
    let rest = desired.checked_sub(current).and_then(|growth| left.checked_sub(growth));
    rest.map(|rest| *left = rest).is_some()
}

impl ResourceLimiter for Bounds {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let granted = take(&mut self.left_bytes, current, desired);
        self.denied |= !granted;
        Ok(granted)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let granted = take(&mut self.left_elements, current, desired);
        self.denied |= !granted;
        Ok(granted)
    }

    /// Core instances: a Rust guest has about four, a Python one more than 32.
    fn instances(&self) -> usize {
        96
    }

    fn tables(&self) -> usize {
        64
    }

    /// A component of ours has one; one linked from libraries a few.
    fn memories(&self) -> usize {
        16
    }
}

#[cfg(test)]
mod tests {
    use super::super::guests::{built_ins, runtime};

    #[test]
    fn the_built_in_plugins_are_what_is_said_of_them() {
        for built_in in built_ins() {
            let (_, _, bytes) = super::Runtime::BUILT_IN.into_iter().find(|(name, ..)| *name == built_in.name).unwrap();
            let compiled = runtime().compile(&built_in.name, bytes).unwrap();
            assert_eq!((built_in.kind, &built_in.interface), (compiled.kind, &compiled.interface));
            assert_eq!((&built_in.sha256, built_in.size_bytes), (&compiled.sha256, compiled.size_bytes));
            assert!(built_in.world().is_ok());
        }
    }
}
