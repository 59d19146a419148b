//! The plugin room: balancing policies and model-name translators as WebAssembly components.
//!
//! A file's way: `store` finds and reads it, `compiler` has it compiled (`judge` tries first whether that ends, `compile` does
//! it), `shelf` makes it a `Version`, `Policy::start` or
//! `Translator::start` gives every worker an instance of it (`instance`), whose limits `engine` sets and whose
//! few imports `wasi` offers; what it prints ends in `console`.
//!
//! Invariants:
//! - This room sees names and numbers: no `http` type, no socket, no room above it.
//! - Nothing a guest does blocks, panics or outgrows the host: every call is armed with fuel, a deadline and a
//!   memory limit, and every answer is checked before it is handed on.
//! - After a fault an instance is never called again: its slot is empty until `rebuild` fills it.
//! - Calls take no lock but the slot of their own worker, and that one only if it is free.
//! - Compiling, starting and rebuilding block for milliseconds to seconds: never on a worker thread.

mod bench;
mod bindings;
mod compile;
mod compiler;
mod console;
mod engine;
mod folder;
mod instance;
mod judge;
mod policy;
mod shelf;
mod signature;
mod store;
mod strikes;
mod translator;
mod trial;
mod version;
mod wasi;

#[cfg(test)]
mod guests;

/// What the fuzzer reaches past everything else.
#[cfg(any(test, fuzzing))]
pub mod fuzzed {
    pub use super::compile::{check_format, key};
}

pub use bench::call_time;
pub use bindings::{Backend, Decision, Fleet, Request, Route, Traits};
pub use compiler::Compiler;
pub use engine::Runtime;
pub use judge::{Judge, judge_standard_input};
pub use policy::{Column, Policy};
pub use store::{Change, Row, State, Store, What};
pub use strikes::Strikes;
pub use translator::Translator;
pub use version::{Source, Timing, Version};

/// The longest model name, public or native, in bytes.
pub const NAME_MAX_BYTES: usize = 256;

/// What a plugin is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Picks a backend.
    Policy,
    /// Says who serves a public name, and under what name.
    Translator,
}

impl Kind {
    /// Its name in the admin API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Translator => "translator",
        }
    }

    /// The built-in one that whoever asks for no other has.
    pub fn built_in(self) -> &'static str {
        match self {
            Self::Policy => "round-robin",
            Self::Translator => "model-map",
        }
    }

    /// The interface whose export makes a component of this kind.
    pub(super) fn interface(self) -> &'static str {
        match self {
            Self::Policy => "vision-proxy:plugin/balance",
            Self::Translator => "vision-proxy:plugin/translate",
        }
    }
}

/// How a call into a plugin failed. The host answers in its place; all but `Away` count against the version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It trapped, called something it may not, or answered what cannot be read.
    #[error("{0}")]
    Trap(String),
    /// It worked more than a call may.
    #[error("the call used up its fuel")]
    OutOfFuel,
    /// It took longer than any call may, with work that fuel does not see.
    #[error("the call took more processor time than a call may")]
    Deadline,
    /// It trapped after it was refused more memory.
    #[error("the call failed after it was refused more memory")]
    Memory,
    /// It answered, but not with an answer: a row that does not exist, a status that refuses nothing, …
    #[error("it answered nonsense: {0}")]
    Nonsense(String),
    /// The instance of this worker is being rebuilt. Nobody's fault.
    #[error("the instance is being rebuilt")]
    Away,
}

impl Fault {
    /// Every reason that is counted, as the metric labels them.
    pub const REASONS: [&'static str; 5] = ["trap", "fuel", "deadline", "memory", "nonsense"];

    /// The metric's label.
    pub fn reason(&self) -> &'static str {
        self.index().map_or("away", |at| Self::REASONS[at])
    }

    /// Its place in `REASONS`; `None` where it is not counted.
    fn index(&self) -> Option<usize> {
        match self {
            Self::Trap(_) => Some(0),
            Self::OutOfFuel => Some(1),
            Self::Deadline => Some(2),
            Self::Memory => Some(3),
            Self::Nonsense(_) => Some(4),
            Self::Away => None,
        }
    }
}

/// Where on its way into the proxy a plugin was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The file's name, its place among too many, or reading it.
    File,
    /// Its content is not the pinned one.
    Pin,
    /// Nobody who is trusted has signed it.
    Signature,
    /// It is no component: a core module, text, something else.
    Format,
    /// It ends in the middle: perhaps it is still being written.
    Truncated,
    /// The compiler does not take it, or needs too much for it.
    Compile,
    /// The process that is to try the compiler on it could not run. It is tried again.
    Process,
    /// Neither policy nor translator, both, or not the kind this name has.
    Kind,
    /// Built for another version of the interface.
    Interface,
    /// It wants something that a plugin is not given.
    Imports,
    /// Making the first instance.
    Instantiate,
    /// It says no itself, or asks for what there is not.
    Configure,
    /// Its first fleet.
    Update,
    /// A call with made-up requests, before any real one.
    Trial,
}

impl Stage {
    /// Its name in logs and in the admin API.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Pin => "pin",
            Self::Signature => "signature",
            Self::Format => "format",
            Self::Truncated => "truncated",
            Self::Compile => "compile",
            Self::Process => "process",
            Self::Kind => "kind",
            Self::Interface => "interface",
            Self::Imports => "imports",
            Self::Instantiate => "instantiate",
            Self::Configure => "configure",
            Self::Update => "update",
            Self::Trial => "trial",
        }
    }
}

/// Why a plugin does not run, for the one who wrote it or put it there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", stage.name())]
pub struct Refusal {
    /// How far it came.
    pub stage: Stage,
    /// What is wrong, and where it helps what would be right: a line of bounded length, whatever of it the plugin said.
    pub reason: String,
}

impl Refusal {
    fn new(stage: Stage, reason: impl Into<String>) -> Self {
        Self { stage, reason: console::told(&reason.into()) }
    }

    /// Whether it may be because not everything has been written yet.
    fn may_pass(&self) -> bool {
        matches!(self.stage, Stage::Truncated | Stage::Signature)
    }
}

/// Whether this may be the name of a model: 1 to 256 bytes, no control characters.
fn is_model_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_MAX_BYTES && !name.chars().any(char::is_control)
}

fn not_a(kind: Kind, version: &Version) -> String {
    format!("`{}` is no {}, but a {}", version.name, kind.name(), version.kind.name())
}
