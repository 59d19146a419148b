//! The client side: connections to backends and one attempt of a request over one of them.
//!
//! Our own small HTTP/1.1 client instead of a library's, for what a gateway must know of an attempt:
//! whether a byte was written, whether one was answered, and that dropping it closes the connection at
//! once. It runs in the request's own task: no connection task, no channel, no buffer while idle.
//!
//! Invariants: a connection goes back to its pool only after an answer that was framed and read to its
//! end, with nothing behind it (RFC 9112 §9); everything else closes it.

mod body;
mod connect;
mod framing;
#[cfg(any(test, fuzzing))]
pub mod fuzzed;
mod head;
mod names;
mod pool;
mod send;

pub use body::{Broken, UpstreamBody};
pub use names::Names;
pub use pool::Pool;
pub use send::{Answer, Failure, Outgoing, send};
