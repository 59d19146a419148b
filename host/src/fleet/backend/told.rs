//! What a backend is told: by polls and reloads, and by real traffic. Each changes its live numbers, and wakes whoever
//! may have a place at it now.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, SystemTime};

use super::Backend;
use crate::clock::{micros32, now_ms};
use crate::config::{Capacity, Ejection, Engine};
use crate::fleet::cost::SLOTS_LIMIT;
use crate::fleet::engine::Report;
use crate::fleet::known::{Known, Sharing};
use crate::fleet::kv_cache::{KvCache, Seen};
use crate::fleet::limit::Answer;
use crate::fleet::live::{REACH_DOWN, REACH_UP, UNKNOWN, move_average, moved};
use crate::fleet::room::Reported;

/// Requests refused together are one sign that the learned limit is too high: it is lowered once in this time.
const LOWER_EVERY_MS: u64 = 1_000;
/// A failed attempt counts as an answer that took so long, in the average of first tokens.
const FAILED_AS_US: u32 = 10_000_000;

impl Backend {
    /// Takes over a changed configuration.
    pub fn configure(self: &Arc<Self>, slots: Option<u32>, engine: Option<Engine>, capacity: &Capacity) {
        let mut known = self.known();
        known.configured_slots = slots;
        known.sharing = Sharing::of(capacity.replicas, capacity.replica, &self.name);
        self.live.slow_start_ms.store(crate::clock::millis(capacity.slow_start), Relaxed);
        let engine = engine.or(known.engine);
        known.runs(engine);
        self.set_limit(&known);
        drop(known);
        self.wake();
    }

    /// No new requests; those it holds go on.
    pub fn drain(&self) {
        self.live.draining.store(true, SeqCst);
        self.show();
    }

    /// It takes requests again.
    pub fn undrain(self: &Arc<Self>) {
        if self.live.draining.swap(false, SeqCst) {
            self.wake();
        }
    }

    /// A good poll: it is up, and this is what it says of itself. Wakes whoever waits for it.
    pub fn reported_in(self: &Arc<Self>, report: &Report, limits: &Capacity) {
        // Before the lock: who looks for a slot holds that of the line, and asks for ours.
        let is_starving = self.queue.is_starving(self);
        let mut known = self.known();
        let before = self.live.reach.load(SeqCst);
        let returned = before == REACH_DOWN;
        if before != REACH_UP {
            let engine = known.engine.map_or("unknown", Engine::name);
            tracing::info!(backend = %self.name, engine, "up");
            // Whatever it said before it went is void.
            self.live.busy_until_ms.store(0, SeqCst);
            known.kv_cache = KvCache::default();
        }
        known.down_since = None;
        if !known.health.is_ejected(now_ms()) {
            known.last_error = None;
        }
        // One answer missed is no news: the limit it last said stands.
        known.reported_slots = report.limit.filter(|limit| *limit > 0).or(known.reported_slots);
        match report.waiting {
            Some(waiting) if waiting > limits.max_waiting => self.lower(&mut known),
            // All that takes the slots was there before it was asked.
            Some(_) if self.learns() && self.live.was_full.load(Relaxed) && self.is_full() => {
                known.learned = known.learned.had_room(now_ms());
            }
            _ => {}
        }
        known.window.note(now_ms(), self.attempts());
        known.kv_cache_used = report.kv_cache_used;
        self.set_limit(&known);
        if returned {
            self.grow_back();
        }
        self.store_report(report, limits, &mut known, is_starving);
        drop(known);
        self.live.reach.store(REACH_UP, SeqCst);
        self.wake();
    }

    fn store_report(&self, report: &Report, limits: &Capacity, known: &mut Known, is_starving: bool) {
        let permille = |used: f64| (used * 1000.0) as u32;
        self.live.running.store(report.running.unwrap_or(UNKNOWN), Relaxed);
        self.live.waiting.store(report.waiting.unwrap_or(UNKNOWN), Relaxed);
        self.live.kv_permille.store(report.kv_cache_used.map_or(UNKNOWN, permille), Relaxed);
        self.live.reported_at_ms.store(now_ms().max(1), Relaxed);
        self.live.stale_at_ms.store(now_ms() + crate::clock::millis(limits.stale_after), Relaxed);
        let held = self.held();
        let ours = self.live.most_held.load(Relaxed).max(held.requests);
        let reported = Reported {
            // What may be of a moment ago cannot be set against what we hold now.
            running: report.running.filter(|_| !report.load_may_be_old),
            waiting: report.waiting,
            ours,
            taken: held.slots,
            is_starving,
            is_heads: fastrand::bool(),
        };
        known.share = known.share.after(reported, known.told_slots(), limits.max_waiting);
        self.live.ceiling.store(known.share.ceiling.unwrap_or(UNKNOWN), SeqCst);
        let kv_room = report.kv_cache_used.and_then(|used| {
            // Of those that run, as many parts are ours as requests; and of ours, as many parts run.
            let running = report.running.unwrap_or(ours).max(1);
            let used_by_us = used * f64::from(ours.min(running)) / f64::from(running);
            let tokens_then = self.live.tokens_then.load(Relaxed);
            let (tokens, moved) = (held.tokens.midpoint(tokens_then), held.tokens.abs_diff(tokens_then));
            let running_tokens = f64::from(tokens) * f64::from(running.min(ours)) / f64::from(ours.max(1));
            let some_wait = report.waiting.is_some_and(|waiting| waiting > 0);
            let seen = Seen { by_all: used, used: used_by_us, tokens: running_tokens as u32, moved, some_wait };
            if !report.load_may_be_old {
                known.kv_cache = known.kv_cache.after(seen);
            }
            // Some of ours may not have got there yet, or wait inside: they take what they need before anybody else does. Where
            // others run too, what is whose is not known well enough to tell.
            let expected = known.kv_cache.part_of_token()? * f64::from(tokens);
            let to_come = if running > ours { 0.0 } else { (expected - used_by_us).max(0.0) };
            let free = limits.max_kv_cache - used - to_come;
            let free = if some_wait { free.min(0.0) } else { free };
            let room = known.kv_cache.room(known.part_of(free))?;
            Some(i64::from(tokens).saturating_add(room).clamp(0, i64::from(UNKNOWN - 1)) as u32)
        });
        self.live.kv_room.store(kv_room.unwrap_or(UNKNOWN), SeqCst);
        // A cache that is full of ours has room again as they leave.
        let is_full = report.kv_cache_used.is_some_and(|used| used > limits.max_kv_cache);
        self.live.cache_full.store(is_full && matches!(kv_room, None | Some(0)), SeqCst);
    }

    /// A poll begins: from now on it is noted how many requests it holds at the most.
    pub fn asking(&self) {
        self.live.was_full.store(self.is_full(), Relaxed);
        let held = self.held();
        self.live.most_held.store(held.requests, Relaxed);
        self.live.tokens_then.store(held.tokens, Relaxed);
    }

    /// The report is too old to be believed: the own count decides.
    pub fn forget_report(self: &Arc<Self>) {
        for number in [&self.live.running, &self.live.waiting, &self.live.kv_permille] {
            number.store(UNKNOWN, Relaxed);
        }
        self.known().kv_cache_used = None;
        self.live.cache_full.store(false, SeqCst);
        self.live.ceiling.store(UNKNOWN, SeqCst);
        self.live.kv_room.store(UNKNOWN, SeqCst);
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

    /// It cannot be reached, or says itself that it cannot serve. Nothing is sent to it until a poll finds it up. True
    /// where that is news.
    pub fn went_down(&self, why: &str) -> bool {
        let mut known = self.known();
        let is_news = self.live.reach.swap(REACH_DOWN, SeqCst) != REACH_DOWN;
        if is_news {
            known.down_since = Some(SystemTime::now());
            tracing::warn!(backend = %self.name, "down: {why}");
        }
        known.last_error = Some(why.to_owned());
        drop(known);
        self.show();
        is_news
    }

    // --- what real traffic says ---

    /// It refused for want of room (429 or 503): nothing more for `pause`.
    pub fn pushed_back(&self, pause: Duration) {
        self.live.busy_until_ms.fetch_max(now_ms() + crate::clock::millis(pause), SeqCst);
        self.opening.notify_one();
        let mut known = self.known();
        self.lower(&mut known);
        self.set_limit(&known);
        drop(known);
        self.show();
    }

    /// Whether its slots are learned, for nobody tells how many they are.
    fn learns(&self) -> bool {
        self.live.learns.load(Relaxed)
    }

    /// It takes fewer than it holds now. Where it holds none of ours, others are to blame.
    fn lower(&self, known: &mut Known) {
        let (in_flight, now) = (self.in_flight(), now_ms());
        if self.learns() && in_flight > 0 && now.saturating_sub(known.lowered_ms) >= LOWER_EVERY_MS {
            known.learned = known.learned.pushed_back(in_flight, now);
            known.lowered_ms = now;
        }
    }

    /// The first byte of an answer came after `first_byte`.
    pub(in crate::fleet) fn began(&self, first_byte: Duration) {
        let micros = micros32(first_byte);
        let average = self.live.first_byte_us.load(Relaxed);
        self.live.first_byte_us.store(if average == 0 { micros } else { moved(average, micros) }, Relaxed);
    }

    /// A good answer, for the limit to learn from where nobody tells it.
    pub(in crate::fleet) fn answered(self: &Arc<Self>, answer: Answer) {
        if !self.learns() {
            return;
        }
        let reports = self.live.waiting.load(Relaxed) != UNKNOWN && !self.is_stale();
        let mut known = self.known();
        let before = known.learned.slots();
        known.learned = known.learned.answered(answer, reports, self.in_flight(), now_ms());
        if known.learned.slots() != before {
            self.set_limit(&known);
            drop(known);
            self.wake();
        }
    }

    /// A good answer came to its end: whatever failed before is forgotten. `since_ms`: when its request was sent.
    pub fn completed(self: &Arc<Self>, since_ms: u64) {
        if self.live.errors_permille.load(Relaxed) > 0 {
            move_average(&self.live.errors_permille, 0);
            self.queue.board.set_erring(self.seat, self.errors_permille() > 0);
        }
        if !self.live.suspect.load(Relaxed) {
            return;
        }
        let mut known = self.known();
        if known.ejected_ms.is_some_and(|at| since_ms < at) {
            // It was on its way before the backend was put out of use: no trial.
            return;
        }
        known.health = known.health.answered();
        self.live.suspect.store(false, Relaxed);
        if self.live.ejected.swap(false, SeqCst) {
            known.window.begin_anew(now_ms(), self.attempts());
            known.ejected_ms = None;
            known.last_error = None;
            self.grow_back();
            tracing::info!(backend = %self.name, "trial passed: in use again");
        }
        self.set_limit(&known);
        drop(known);
        self.wake();
    }

    /// No connection to it could be made for a request of `since_ms`. It is down until a poll finds it up, and that it
    /// went down under traffic is one failure, however many requests found it so: one restart does not eject it, but a
    /// backend that answers polls and takes no connections is.
    pub fn unreachable(&self, why: &str, ejection: Ejection, since_ms: u64) {
        if self.went_down(why) {
            self.failed(why, ejection, since_ms);
        } else {
            self.live.failures.fetch_add(1, Relaxed);
            self.poll_now.notify_one();
        }
    }

    /// Real traffic failed on it, by a request sent at `since_ms`.
    pub fn failed(&self, why: &str, ejection: Ejection, since_ms: u64) {
        move_average(&self.live.errors_permille, 1000);
        self.live.failed_at_ms.store(now_ms(), Relaxed);
        self.queue.board.set_erring(self.seat, true);
        self.live.suspect.store(true, Relaxed);
        self.live.failures.fetch_add(1, Relaxed);
        // Whoever ranks by time must not find it quick.
        move_average(&self.live.first_byte_us, FAILED_AS_US);
        let mut known = self.known();
        known.last_error = Some(why.to_owned());
        known.window.note(now_ms(), self.attempts());
        // Too many, though never so many in a row: the last straw.
        let after = if known.window.is_outlier(self.attempts()) { 1 } else { ejection.after };
        if known.ejected_ms.is_none_or(|at| since_ms >= at) {
            known.health = known.health.failed(Ejection { after, ..ejection }, now_ms(), fastrand::f64());
            if known.health.is_ejected(now_ms()) {
                known.ejected_ms = Some(now_ms());
                if !self.live.ejected.swap(true, SeqCst) {
                    tracing::warn!(backend = %self.name, "out of use after repeated failures: {why}");
                }
            }
        }
        drop(known);
        self.show();
        self.opening.notify_one();
        self.poll_now.notify_one();
    }

    /// It is back: from now on its slots grow from one to all of them.
    fn grow_back(&self) {
        self.live.growing_since_ms.store(now_ms().max(1), SeqCst);
        self.opening.notify_one();
    }

    fn set_limit(&self, known: &Known) {
        self.live.limit.store(known.slots().0.clamp(1, SLOTS_LIMIT), SeqCst);
        self.live.learns.store(known.told_slots().is_none(), Relaxed);
    }
}
