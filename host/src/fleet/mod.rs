//! The fleet: backends with their live numbers, the leases on their slots, and the line of requests that wait.
//!
//! Invariants: a backend's in-flight count is only changed by `Backend::claim` and by the drop of a
//! `Lease`; a slot is claimed by one compare-and-swap against the limit of that moment; nothing here
//! does I/O or knows HTTP.

mod backend;
mod board;
mod cost;
pub mod engine;
mod health;
mod known;
mod kv_cache;
mod lease;
mod limit;
mod live;
mod outlier;
mod queue;
mod room;
mod state;

pub use backend::Backend;
#[cfg(test)]
pub use backend::tests;
pub use board::Seat;
pub use cost::Cost;
#[cfg(test)]
pub use cost::tests::slots;
pub use lease::Lease;
pub use live::UNKNOWN;
pub use queue::{Flow, Given, Queue, Refused, Turn, Wish};
pub use state::State;
