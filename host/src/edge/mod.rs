//! The edge: where requests come in, are sent on, and answers go back. `proxy` is the straight line; the
//! rest is what it passes, in the order it passes it.
//!
//! Everything here runs on worker threads. Invariants: no lock is held across an await; a request reads one
//! snapshot; nothing here stores one.

mod access;
mod admission;
mod answer;
mod attempt;
mod client;
pub mod decisions;
pub mod descriptors;
mod door;
mod forwarded;
mod head;
mod headers;
mod journey;
mod json;
mod pick;
mod promise;
mod proxy;
mod request;
mod respond;
mod response;
mod retry;
mod route;
mod server;
mod snapshot;
mod streams;
mod tls;
pub mod upstream;
mod wire;
mod worker;

/// What the fuzzer reaches past everything else.
#[cfg(any(test, fuzzing))]
pub mod fuzzed {
    pub use super::request::{BodyScan, Facts, MultipartScan, splice};
    pub use super::response::{Format, Nest, Rename};
    pub use super::upstream::fuzzed::{End, Reading, read_answer};
}

pub use access::Keyring;
pub use door::{Attended, Door};
pub use server::{Phase, Server};
pub use snapshot::{FaultReport, Member, Shared, Snapshot};
