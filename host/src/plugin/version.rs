//! One compiled content of a plugin: what is known of it, and what it has done.
//!
//! Invariants:
//! - All but the counters and the last error is fixed when it is compiled.
//! - Counters only grow. A version that comes back after another ran comes back as a new one, with a generation
//!   of its own and counters at zero, so that a counter is never seen to jump.
//! - Counting takes no lock, and workers count on cache lines of their own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crossbeam_utils::CachePadded;

use super::bindings::{policy::PolicyPre, translator::TranslatorPre};
use super::compile::{self, Compiled};
use super::console::Log;
use super::wasi::Guest;
use super::{Fault, Kind, Refusal, Runtime};

/// What the built-in plugins were built for.
const BUILT_IN_INTERFACE: &str = "0.1.0";

/// Where a version came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It is part of the binary.
    BuiltIn,
    /// It lay in the plugin folder.
    File,
}

impl Source {
    /// Its name in the admin API.
    pub fn name(self) -> &'static str {
        match self {
            Self::BuiltIn => "built-in",
            Self::File => "file",
        }
    }
}

/// A compiled, checked component, ready to be started.
pub struct Version {
    /// The name it runs under: that of its file, without `.wasm`.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// Where it came from.
    pub source: Source,
    /// Of the content: 64 lower-case hex digits.
    pub sha256: String,
    /// Size of the component.
    pub size_bytes: usize,
    /// Of that, the code of its functions; of a built-in one this is not told.
    pub code_bytes: usize,
    /// The version of the interface it was built for.
    pub interface: String,
    /// What it imports, as the component names it; of a built-in one this is not told.
    pub imports: Vec<String>,
    /// Grows with every version of any name; never used twice in a process.
    pub generation: u64,
    /// When it was compiled, or came back.
    pub loaded_at: SystemTime,
    /// What it has done since.
    pub counters: Counters,
    pub(super) last_error: Mutex<Option<String>>,
    /// Shared by all its instances, so that their number does not multiply what it may write.
    pub(super) log: Arc<Log>,
    code: Arc<Code>,
}

/// What its calls go to. The built-in plugins are compiled when they are first started.
type Code = LazyLock<Result<World, Refusal>, Box<dyn FnOnce() -> Result<World, Refusal> + Send>>;

/// The component linked with what it imports, by kind.
#[derive(Clone)]
pub(super) enum World {
    Policy(PolicyPre<Guest>),
    Translator(TranslatorPre<Guest>),
}

impl Version {
    /// A new version of this content.
    pub(super) fn new(runtime: &Runtime, name: &str, sha256: String, size_bytes: usize, compiled: &Compiled) -> Self {
        let Compiled { kind, interface, imports, code_bytes, world } = compiled;
        let world = world.clone();
        let (sort, code) = ((*kind, Source::File), LazyLock::new(Box::new(|| Ok(world)) as _));
        let (interface, imports, code_bytes) = (interface.clone(), imports.clone(), *code_bytes);
        Self { sha256, size_bytes, code_bytes, interface, imports, ..Self::of(runtime, name, sort, code) }
    }

    /// One that is part of the binary. It is what this says it is, and compiled when it is first started.
    pub(super) fn built_in(runtime: &Runtime, name: &str, kind: Kind, bytes: &'static [u8]) -> Self {
        let engine = runtime.clone();
        let code: Code =
            LazyLock::new(Box::new(move || compile::compile(&engine, bytes).map(|compiled| compiled.world)));
        let (sha256, size_bytes) = (compile::sha256(bytes), bytes.len());
        Self { sha256, size_bytes, ..Self::of(runtime, name, (kind, Source::BuiltIn), code) }
    }

    /// One of which no more is known than this, with the interface of built-in ones.
    fn of(runtime: &Runtime, name: &str, (kind, source): (Kind, Source), code: Code) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            source,
            sha256: String::new(),
            size_bytes: 0,
            code_bytes: 0,
            interface: BUILT_IN_INTERFACE.to_owned(),
            imports: Vec::new(),
            generation: runtime.next_generation(),
            loaded_at: SystemTime::now(),
            counters: Counters::default(),
            last_error: Mutex::default(),
            log: Arc::new(Log::new(name)),
            code: Arc::new(code),
        }
    }

    /// What its calls go to. The first call of a built-in one compiles it.
    pub(super) fn world(&self) -> Result<&World, Refusal> {
        self.code.as_ref().as_ref().map_err(Clone::clone)
    }

    /// The last fault, in words.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts a fault and remembers it.
    pub(super) fn note(&self, fault: &Fault) {
        let Some(at) = fault.index() else { return };
        self.counters.faults[at].fetch_add(1, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault.to_string());
    }

    /// The same content as a new version, for when it comes back.
    pub(super) fn again(&self, runtime: &Runtime) -> Arc<Self> {
        Arc::new(Self {
            name: self.name.clone(),
            kind: self.kind,
            source: self.source,
            sha256: self.sha256.clone(),
            size_bytes: self.size_bytes,
            code_bytes: self.code_bytes,
            interface: self.interface.clone(),
            imports: self.imports.clone(),
            generation: runtime.next_generation(),
            loaded_at: SystemTime::now(),
            counters: Counters::default(),
            last_error: Mutex::default(),
            log: Arc::clone(&self.log),
            code: Arc::clone(&self.code),
        })
    }
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ({}, generation {})", self.kind.name(), self.name, self.source.name(), self.generation)
    }
}

/// What a version has done. Picks or resolutions are calls; starting and trials are not.
#[derive(Default)]
pub struct Counters {
    cells: [CachePadded<Cell>; Counters::CELLS],
    faults: [AtomicU64; Fault::REASONS.len()],
}

/// A worker's share. It fits the 128 bytes that `CachePadded` sets apart.
#[derive(Default)]
struct Cell {
    calls: AtomicU64,
    timed_ns: AtomicU64,
    buckets: [AtomicU64; Timing::BUCKETS_NS.len() + 1],
}

/// How long calls took, from the one in 64 that was timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timing {
    /// How many were timed.
    pub calls: u64,
    /// How long these took together.
    pub total: Duration,
    /// Calls up to each of `BUCKETS_NS` that the bucket before does not hold; the last one has the rest.
    pub buckets: [u64; Self::BUCKETS_NS.len() + 1],
}

impl Timing {
    /// Upper bounds: from an empty call of a compiled guest to the deadline.
    pub const BUCKETS_NS: [u64; 10] = [250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 1_000_000, 100_000_000];

    /// Mean time of a call, 0 before the first.
    pub fn mean_ns(&self) -> u64 {
        u64::try_from(self.total.as_nanos()).unwrap_or(u64::MAX).checked_div(self.calls).unwrap_or(0)
    }
}

impl Counters {
    /// More workers than this share cells, which costs them some nanoseconds and no count.
    const CELLS: usize = 32;
    /// One call in so many is timed, the first one included: reading the clock twice costs a fifth of a call.
    const TIMED_ONE_IN: u64 = 64;

    /// Counts a call; says whether to time it.
    pub(super) fn call(&self, shard: usize) -> bool {
        self.cell(shard).calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(Self::TIMED_ONE_IN)
    }

    /// Adds the time of a call.
    pub(super) fn time(&self, shard: usize, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let cell = self.cell(shard);
        cell.timed_ns.fetch_add(ns, Ordering::Relaxed);
        cell.buckets[Timing::BUCKETS_NS.partition_point(|&bound| bound < ns)].fetch_add(1, Ordering::Relaxed);
    }

    fn cell(&self, shard: usize) -> &Cell {
        &self.cells[shard % Self::CELLS]
    }

    /// Calls so far, those that faulted included.
    pub fn calls(&self) -> u64 {
        self.cells.iter().map(|cell| cell.calls.load(Ordering::Relaxed)).sum()
    }

    /// Faults so far, in the order of `Fault::REASONS`.
    pub fn faults(&self) -> [u64; Fault::REASONS.len()] {
        std::array::from_fn(|at| self.faults[at].load(Ordering::Relaxed))
    }

    /// How long calls took.
    pub fn timing(&self) -> Timing {
        let mut timing = Timing::default();
        for cell in &self.cells {
            timing.total += Duration::from_nanos(cell.timed_ns.load(Ordering::Relaxed));
            for (sum, bucket) in timing.buckets.iter_mut().zip(&cell.buckets) {
                *sum += bucket.load(Ordering::Relaxed);
            }
        }
        timing.calls = timing.buckets.iter().sum();
        timing
    }
}
