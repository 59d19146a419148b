//! The black-box suite: the real binary, real sockets, scripted inference servers; one module a promise.
//!
//! Rules: every port is 0, nothing sleeps to wait for something (`support::eventually` and `Gate` do), and
//! everything that waits is bounded by `support::PATIENCE`, so that a hang is a failure that names what hung.

#![allow(clippy::expect_used, reason = "a helper that panics fails its test, which is what it is there for")]

mod support;

mod access;
mod accounting;
mod admin;
mod agreement;
mod balancing;
mod cancellation;
mod clients;
mod clock_jumps;
mod commands;
mod decisions;
mod dependencies;
mod early_answers;
mod engines_auto;
mod errors;
mod failover;
mod faults;
mod fleet;
mod forwarding;
mod h2_floods;
mod http1_corpus;
mod http2_corpus;
mod learned;
mod lifecycle;
mod limits;
mod llama_cpp;
mod logs;
mod metrics;
mod named_backends;
mod names;
mod plugins;
mod promises;
mod queue;
mod reload;
mod returning;
mod room;
mod slots;
mod streaming;
mod suspicion;
mod tidy;
mod tiers;
mod tls;
mod transparency;
mod vision;
