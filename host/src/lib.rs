//! Vision Proxy: one OpenAI-compatible endpoint before a fleet of GPU inference servers.
//!
//! The rooms, from the ground up; each imports only what stands before it (`ARCHITECTURE.md`). They are private:
//! the binary is the product, and what nobody uses shall not compile silently.

mod clock;
mod config;
mod error;
mod metrics;

mod fleet;
mod plugin;

mod edge;

mod control;

pub mod cli;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
