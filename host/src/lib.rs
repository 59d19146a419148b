//! Vision Proxy: one OpenAI-compatible endpoint before a fleet of GPU inference servers.
//!
//! The rooms, from the ground up; each imports only what stands before it (`ARCHITECTURE.md`):
//! ground (`clock`, `config`, `error`, `metrics`), `fleet` and `plugin`, `edge`, `control`, `cli`.

pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod edge;
pub mod error;
pub mod fleet;
pub mod metrics;
pub mod plugin;
