//! What a backend is told: by polls and reloads, and by real traffic. Each changes its live numbers, and wakes whoever
//! may have a place at it now.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, SystemTime};

use super::Backend;
use crate::clock::{micros32, now_ms};
use crate::config::{Capacity, Engine};
use crate::fleet::engine::Report;
use crate::fleet::known::Known;
use crate::fleet::live::{Held, REACH_DOWN, REACH_UP, UNKNOWN, move_average, moved};
use crate::fleet::room::{self, Reported};

/// After a return, slots grow from one to all of them over this time.
const GROW_BACK_MS: u64 = 10_000;
/// A failed attempt counts as an answer that took so long, in the average of first tokens.
const FAILED_AS_US: u32 = 10_000_000;

impl Backend {
    /// Takes over a changed configuration.
    pub fn configure(self: &Arc<Self>, slots: Option<u32>, engine: Option<Engine>) {
        let mut known = self.known();
        known.configured_slots = slots;
        known.engine = engine.or(known.engine);
        self.set_limit(&known);
        drop(known);
        self.live.draining.store(false, SeqCst);
        self.wake();
    }

    /// No new requests; those it holds go on.
    pub fn drain(&self) {
        self.live.draining.store(true, SeqCst);
    }

    /// A good poll: it is up, and this is what it says of itself. Wakes whoever waits for it.
    pub fn reported_in(self: &Arc<Self>, report: &Report, limits: &Capacity) {
        let mut known = self.known();
        let before = self.live.reach.load(SeqCst);
        let returned = before == REACH_DOWN;
        if before != REACH_UP {
            let engine = known.engine.map_or("unknown", Engine::name);
            tracing::info!(backend = %self.name, engine, "up");
            // Whatever it said before it went is void.
            self.live.busy_until_ms.store(0, SeqCst);
        }
        known.down_since = None;
        if !known.health.is_ejected(now_ms()) {
            known.last_error = None;
        }
        // One answer missed is no news: the limit it last said stands.
        known.reported_slots = report.limit.filter(|limit| *limit > 0).or(known.reported_slots);
        if report.waiting.is_some_and(|waiting| waiting > limits.max_waiting) {
            known.learned = known.learned.pushed_back(self.in_flight());
        }
        known.window.note(now_ms(), self.attempts());
        known.kv_cache_used = report.kv_cache_used;
        if returned {
            known.returned_ms = Some(now_ms());
        }
        self.set_limit(&known);
        let told_slots = known.told_slots();
        drop(known);
        self.store_report(report, limits, told_slots);
        self.live.reach.store(REACH_UP, SeqCst);
        self.wake();
    }

    fn store_report(&self, report: &Report, limits: &Capacity, told_slots: Option<u32>) {
        let permille = |used: f64| (used * 1000.0) as u32;
        self.live.running.store(report.running.unwrap_or(UNKNOWN), Relaxed);
        self.live.waiting.store(report.waiting.unwrap_or(UNKNOWN), Relaxed);
        self.live.kv_permille.store(report.kv_cache_used.map_or(UNKNOWN, permille), Relaxed);
        self.live.reported_at_ms.store(now_ms().max(1), Relaxed);
        self.live.stale_at_ms.store(now_ms() + crate::clock::millis(limits.stale_after), Relaxed);
        let full = report.kv_cache_used.is_some_and(|used| used > limits.max_kv_cache);
        self.live.cache_full.store(full, SeqCst);
        let held = Held::of(self.live.held.load(SeqCst));
        let ours = self.live.most_held.swap(held.requests, Relaxed).max(held.requests);
        let reported = Reported { running: report.running, waiting: report.waiting, ours, taken: held.slots };
        let ceiling = room::ceiling(reported, told_slots, limits.max_waiting);
        self.live.ceiling.store(ceiling.unwrap_or(UNKNOWN), SeqCst);
    }

    /// The report is too old to be believed: the own count decides.
    pub fn forget_report(self: &Arc<Self>) {
        for number in [&self.live.running, &self.live.waiting, &self.live.kv_permille] {
            number.store(UNKNOWN, Relaxed);
        }
        self.known().kv_cache_used = None;
        self.live.cache_full.store(false, SeqCst);
        self.live.ceiling.store(UNKNOWN, SeqCst);
        self.wake();
    }

    /// How long its last report will still be believed; nothing once that is over.
    pub fn time_to_stale(&self) -> Duration {
        Duration::from_millis((self.live.stale_at_ms.load(Relaxed) + 1).saturating_sub(now_ms()))
    }

    /// Whether somebody listens at its address, as a poll found.
    pub fn takes_connections(&self, yes: bool) {
        let refusing_since = &self.live.refusing_since_ms;
        if yes {
            refusing_since.store(0, Relaxed);
        } else if refusing_since.load(Relaxed) == 0 {
            refusing_since.store(now_ms().max(1), Relaxed);
        }
    }

    /// It cannot be reached, or says itself that it cannot serve. Nothing is sent to it until a poll finds it up.
    pub fn went_down(&self, why: &str) {
        let mut known = self.known();
        if self.live.reach.swap(REACH_DOWN, SeqCst) != REACH_DOWN {
            known.down_since = Some(SystemTime::now());
            tracing::warn!(backend = %self.name, "down: {why}");
        }
        known.last_error = Some(why.to_owned());
    }

    // --- what real traffic says ---

    /// It refused for want of room (429 or 503): nothing more for `pause`.
    pub fn pushed_back(&self, pause: Duration) {
        self.live.busy_until_ms.fetch_max(now_ms() + crate::clock::millis(pause), SeqCst);
        let mut known = self.known();
        known.learned = known.learned.pushed_back(self.in_flight());
        self.set_limit(&known);
    }

    /// The first byte of an answer came after `first_byte`; of a stream, where `is_stream`.
    pub fn began(self: &Arc<Self>, first_byte: Duration, is_stream: bool) {
        let micros = micros32(first_byte);
        let average = self.live.first_byte_us.load(Relaxed);
        self.live.first_byte_us.store(if average == 0 { micros } else { moved(average, micros) }, Relaxed);
        // The lock only where something may change: a limit that was reached.
        if self.taken() >= self.slots() {
            let has_room = self.live.waiting.load(Relaxed) == 0 && !self.is_stale();
            let mut known = self.known();
            known.learned = known.learned.answered(true, is_stream.then_some(micros), has_room);
            self.set_limit(&known);
            drop(known);
            self.wake();
        }
    }

    /// A good answer came to its end: whatever failed before is forgotten.
    pub fn completed(self: &Arc<Self>) {
        if self.live.errors_permille.load(Relaxed) > 0 {
            move_average(&self.live.errors_permille, 0);
        }
        if !self.live.suspect.load(Relaxed) {
            return;
        }
        let mut known = self.known();
        known.health = known.health.answered();
        self.live.suspect.store(false, Relaxed);
        if self.live.ejected.swap(false, SeqCst) {
            known.window.begin_anew(now_ms(), self.attempts());
            known.returned_ms = Some(now_ms());
            known.last_error = None;
            tracing::info!(backend = %self.name, "trial passed: in use again");
        }
        self.set_limit(&known);
        drop(known);
        self.wake();
    }

    /// Real traffic failed on it.
    pub fn failed(&self, why: &str, eject_after: u32) {
        move_average(&self.live.errors_permille, 1000);
        self.live.failed_at_ms.store(now_ms(), Relaxed);
        self.live.suspect.store(true, Relaxed);
        self.live.failures.fetch_add(1, Relaxed);
        // Whoever ranks by time must not find it quick.
        move_average(&self.live.first_byte_us, FAILED_AS_US);
        let mut known = self.known();
        known.last_error = Some(why.to_owned());
        known.window.note(now_ms(), self.attempts());
        // Too many, though never so many in a row: the last straw.
        let eject_after = if known.window.is_outlier(self.attempts()) { 1 } else { eject_after };
        known.health = known.health.failed(eject_after, now_ms(), fastrand::f64());
        if known.health.is_ejected(now_ms()) && !self.live.ejected.swap(true, SeqCst) {
            tracing::warn!(backend = %self.name, "out of use after repeated failures: {why}");
        }
        self.set_limit(&known);
        drop(known);
        self.poll_now.notify_one();
    }

    /// The limit of this moment: the slots it has, fewer while they grow back.
    fn set_limit(&self, known: &Known) {
        let (slots, _) = known.slots();
        let grown = match known.returned_ms.map(|at| now_ms().saturating_sub(at)) {
            Some(age) if age < GROW_BACK_MS => (u64::from(slots) * age / GROW_BACK_MS) as u32,
            _ => slots,
        };
        self.live.limit.store(grown.max(1), SeqCst);
    }
}
