//! Tests before engines that are too large for every run: `make test-engines` installs them and runs these.
//!
//! One at a time: each engine wants the machine for itself. Not among the tests of `cargo test`, but compiled with them.

#![allow(clippy::expect_used, reason = "a helper that panics fails its test, which is what it is there for")]

#[allow(dead_code, unused_imports, reason = "the suite uses all of it, these tests a part")]
#[path = "../support/mod.rs"]
mod support;

mod vllm;
