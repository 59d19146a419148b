//! One inference server: who it is, its live numbers, and the lease that holds one of its slots.
//!
//! A backend is made once for a name and address and outlives every snapshot that lists it. Its live
//! numbers are atomics, read on every pick by every worker; what only control and the admin page read
//! lies behind a lock beside them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crossbeam_utils::CachePadded;
use tokio::sync::Notify;

use super::engine::Report;
use super::known::Known;
use super::lease::Lease;
use super::live::{Live, REACH_DOWN, REACH_UNKNOWN, REACH_UP, UNKNOWN, move_average, moved};
use super::queue::Queue;
use super::state::State;
use crate::clock::{micros32, now_ms};
use crate::config::{BackendUrl, Capacity, Engine};

/// After a return, slots grow from one to all of them over this time.
const GROW_BACK_MS: u64 = 10_000;
/// Without a new failure the average of errors halves in this time.
const ERRORS_HALVE_MS: u64 = 5_000;

/// A backend with everything that changes while it serves.
#[derive(Debug)]
pub struct Backend {
    /// Unique in this process; never used again.
    pub id: u64,
    pub name: Arc<str>,
    pub url: BackendUrl,
    live: CachePadded<Live>,
    /// Set by control, read by the poller: somebody wants a poll now.
    pub poll_now: Notify,
    known: Mutex<Known>,
    queue: Arc<Queue>,
}

impl Backend {
    pub fn new(name: &str, url: BackendUrl, queue: Arc<Queue>) -> Arc<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Relaxed),
            name: name.into(),
            url,
            live: CachePadded::new(Live::new()),
            poll_now: Notify::new(),
            known: Mutex::default(),
            queue,
        })
    }

    /// Takes a slot where one is free and the backend may be used at this moment.
    pub fn claim(backend: &Arc<Self>) -> Option<Lease> {
        match (backend.is_suspended(), backend.is_ejected()) {
            (false, _) => Self::take(backend, backend.slots()),
            // Its time is up: one trial, and no more until that has ended.
            (true, false) => Self::take(backend, 1),
            (true, true) => None,
        }
    }

    /// The same, also where failures of real traffic speak against it: for the last one standing.
    pub fn claim_suspect(backend: &Arc<Self>) -> Option<Lease> {
        Self::take(backend, backend.slots())
    }

    fn take(backend: &Arc<Self>, limit: u32) -> Option<Lease> {
        if !backend.is_open() {
            return None;
        }
        let take = |held: u32| (held < limit).then_some(held + 1);
        backend.live.in_flight.fetch_update(SeqCst, SeqCst, take).ok()?;
        Some(Lease::new(backend))
    }

    /// A slot is free again; for the lease alone. `held_ms`: how long it was held, where that says something.
    pub(super) fn give_back(&self, held_ms: Option<u32>) {
        if let Some(held_ms) = held_ms {
            move_average(&self.live.hold_ms, held_ms);
        }
        self.live.in_flight.fetch_sub(1, SeqCst);
    }

    /// Hands free slots to whoever waits for them.
    pub fn wake(self: &Arc<Self>) {
        self.queue.freed(self, 0);
    }

    /// The same, but only for those behind this ticket.
    pub(super) fn wake_behind(self: &Arc<Self>, ticket: u64) {
        self.queue.freed(self, ticket + 1);
    }

    /// A request is sent to it.
    pub fn attempted(&self) {
        self.live.requests.fetch_add(1, Relaxed);
    }

    /// Whether a request could be sent to it now but for the slots.
    fn is_open(&self) -> bool {
        self.live.reach.load(SeqCst) == REACH_UP
            && !self.live.draining.load(SeqCst)
            && (!self.live.engine_busy.load(SeqCst) || self.is_stale())
            && !self.is_told_busy()
    }

    /// Whether it may be picked now: up, not busy, a slot free, not ejected by real traffic.
    pub fn is_available(&self) -> bool {
        let limit = if self.is_suspended() { 1 } else { self.slots() };
        self.is_open() && self.in_flight() < limit && !self.is_ejected()
    }

    /// Whether failures of real traffic have put it out of use, and no good answer has brought it back yet.
    pub fn is_suspended(&self) -> bool {
        self.live.ejected.load(SeqCst)
    }

    /// Whether its last report is too old to be believed.
    fn is_stale(&self) -> bool {
        now_ms() > self.live.stale_at_ms.load(Relaxed)
    }

    /// Whether it is up as far as anyone knows, busy or not.
    pub fn is_up(&self) -> bool {
        self.live.reach.load(Relaxed) == REACH_UP && !self.live.draining.load(Relaxed)
    }

    /// Whether it has left the fleet, but for what it still holds.
    pub fn is_draining(&self) -> bool {
        self.live.draining.load(SeqCst)
    }

    /// Whether it has been asked at all.
    pub fn is_unknown(&self) -> bool {
        self.live.reach.load(Relaxed) == REACH_UNKNOWN
    }

    /// Whether failures of real traffic keep it out of use now.
    pub fn is_ejected(&self) -> bool {
        self.is_suspended() && self.known().health.is_ejected(now_ms())
    }

    fn is_told_busy(&self) -> bool {
        // The clock is read only where it was told so once.
        let until = self.live.busy_until_ms.load(SeqCst);
        until > 0 && until > now_ms()
    }

    pub fn state(&self) -> State {
        match self.live.reach.load(Relaxed) {
            _ if self.live.draining.load(Relaxed) => State::Draining,
            REACH_UNKNOWN => State::Unknown,
            REACH_DOWN => State::Down,
            _ if self.is_ejected() => State::Down,
            _ if self.is_available() => State::Available,
            _ => State::Busy,
        }
    }

    pub fn in_flight(&self) -> u32 {
        self.live.in_flight.load(SeqCst)
    }

    /// Requests it may hold at once now.
    pub fn slots(&self) -> u32 {
        self.live.limit.load(SeqCst)
    }

    /// Where the number of slots comes from: `config`, `reported` or `learned`.
    pub fn slots_from(&self) -> &'static str {
        self.known().slots().1
    }

    /// What the engine reported, where it is not too old: running, waiting, KV-cache in permille, each
    /// [`UNKNOWN`] where it is not known, and the age in milliseconds.
    pub fn reported(&self) -> (u32, u32, u32, u32) {
        let at = self.live.reported_at_ms.load(Relaxed);
        let age = if at == 0 { UNKNOWN } else { u32::try_from(now_ms().saturating_sub(at)).unwrap_or(UNKNOWN) };
        if self.is_stale() {
            return (UNKNOWN, UNKNOWN, UNKNOWN, age);
        }
        let read = |number: &AtomicU32| number.load(Relaxed);
        (read(&self.live.running), read(&self.live.waiting), read(&self.live.kv_permille), age)
    }

    /// Moving average of the time to the first byte of an answer, in microseconds; 0 before the first.
    pub fn first_byte_us(&self) -> u32 {
        self.live.first_byte_us.load(Relaxed)
    }

    /// How long a slot is held, on average.
    pub fn mean_hold(&self) -> Duration {
        Duration::from_millis(u64::from(self.live.hold_ms.load(Relaxed)))
    }

    /// Moving average of failed attempts, in permille; halved with every few seconds since the last failure, for a
    /// backend that gets no request could not show that it is well again.
    pub fn errors_permille(&self) -> u32 {
        let errors = self.live.errors_permille.load(Relaxed);
        if errors == 0 {
            return 0;
        }
        let since_ms = now_ms().saturating_sub(self.live.failed_at_ms.load(Relaxed));
        errors.checked_shr(u32::try_from(since_ms / ERRORS_HALVE_MS).unwrap_or(u32::MAX)).unwrap_or(0)
    }

    /// Attempts and failures since it was made.
    pub fn totals(&self) -> (u64, u64) {
        (self.live.requests.load(Relaxed), self.live.failures.load(Relaxed))
    }

    /// What control knows, under its lock: not for the request path.
    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- what polling and reload say ---

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
        known.kv_cache_used = report.kv_cache_used;
        if returned {
            known.returned_ms = Some(now_ms());
        }
        self.set_limit(&known);
        drop(known);
        self.store_report(report, limits);
        self.live.reach.store(REACH_UP, SeqCst);
        self.wake();
    }

    fn store_report(&self, report: &Report, limits: &Capacity) {
        let permille = |used: f64| (used * 1000.0) as u32;
        self.live.running.store(report.running.unwrap_or(UNKNOWN), Relaxed);
        self.live.waiting.store(report.waiting.unwrap_or(UNKNOWN), Relaxed);
        self.live.kv_permille.store(report.kv_cache_used.map_or(UNKNOWN, permille), Relaxed);
        self.live.reported_at_ms.store(now_ms().max(1), Relaxed);
        self.live.stale_at_ms.store(now_ms() + crate::clock::millis(limits.stale_after), Relaxed);
        let queues = report.waiting.is_some_and(|waiting| waiting > limits.max_waiting);
        let full = report.kv_cache_used.is_some_and(|used| used > limits.max_kv_cache);
        self.live.engine_busy.store(queues || full, SeqCst);
    }

    /// The report is too old to be believed: the own count decides.
    pub fn forget_report(self: &Arc<Self>) {
        for number in [&self.live.running, &self.live.waiting, &self.live.kv_permille] {
            number.store(UNKNOWN, Relaxed);
        }
        self.known().kv_cache_used = None;
        if self.live.engine_busy.swap(false, SeqCst) {
            self.wake();
        }
    }

    /// Age of the last report, in milliseconds; `None` before the first.
    pub fn report_age_ms(&self) -> Option<u64> {
        let at = self.live.reported_at_ms.load(Relaxed);
        (at > 0).then(|| now_ms().saturating_sub(at))
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
        if self.in_flight() >= self.slots() {
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
        if !self.live.suspect.load(Relaxed) {
            return;
        }
        move_average(&self.live.errors_permille, 0);
        let mut known = self.known();
        known.health = known.health.answered();
        self.live.suspect.store(false, Relaxed);
        if self.live.ejected.swap(false, SeqCst) {
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
        let mut known = self.known();
        known.last_error = Some(why.to_owned());
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn limits() -> Capacity {
        Capacity {
            poll_interval: Duration::from_secs(1),
            stale_after: Duration::from_secs(5),
            max_waiting: 0,
            max_kv_cache: 0.95,
        }
    }

    /// A backend that is up and has so many slots.
    pub fn backend_with(queue: &Arc<Queue>, slots: u32) -> Arc<Backend> {
        let url = BackendUrl { host: "127.0.0.1".into(), port: 1, prefix: String::new() };
        let backend = Backend::new("test", url, Arc::clone(queue));
        backend.configure(Some(slots), None);
        backend.reported_in(&Report::default(), &limits());
        backend
    }

    #[test]
    fn never_holds_more_than_its_slots_whoever_claims() {
        let backend = backend_with(&Queue::new(0), 3);
        let (threads, rounds) = (8, 500);
        let together = std::sync::Barrier::new(threads);
        let granted = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for _ in 0..rounds {
                        together.wait();
                        let lease = Backend::claim(&backend);
                        granted.fetch_add(u32::from(lease.is_some()), SeqCst);
                        together.wait();
                    }
                });
            }
        });
        assert_eq!(granted.load(SeqCst), 3 * rounds, "all that there are, and none more");
        assert_eq!(backend.in_flight(), 0);
    }

    #[test]
    fn a_report_of_a_queue_or_a_full_cache_makes_it_busy_and_a_stale_one_does_not() {
        let backend = backend_with(&Queue::new(0), 3);
        backend.reported_in(&Report { waiting: Some(1), ..Report::default() }, &limits());
        assert_eq!(backend.state(), State::Busy);
        assert!(Backend::claim(&backend).is_none());
        backend.forget_report();
        assert_eq!(backend.state(), State::Available);
        backend.reported_in(&Report { kv_cache_used: Some(0.96), ..Report::default() }, &limits());
        assert_eq!(backend.state(), State::Busy);
    }

    #[test]
    fn slots_come_from_configuration_then_report_then_learning() {
        let backend = backend_with(&Queue::new(0), 3);
        assert_eq!((backend.slots(), backend.slots_from()), (3, "config"));
        backend.configure(None, None);
        assert_eq!((backend.slots(), backend.slots_from()), (super::super::limit::FIRST, "learned"));
        backend.reported_in(&Report { limit: Some(4), ..Report::default() }, &limits());
        assert_eq!((backend.slots(), backend.slots_from()), (4, "reported"));
    }

    #[test]
    fn repeated_failures_eject_whatever_the_polls_say() {
        let backend = backend_with(&Queue::new(0), 3);
        for _ in 0..5 {
            backend.failed("reset", 5);
        }
        backend.reported_in(&Report::default(), &limits());
        assert_eq!(backend.state(), State::Down);
        assert!(Backend::claim(&backend).is_none());
        assert!(Backend::claim_suspect(&backend).is_some(), "the last one standing stays in use");
        backend.began(Duration::from_millis(5), true);
        assert_eq!(backend.state(), State::Down, "a beginning is no answer");
        backend.completed();
        assert_eq!(backend.state(), State::Available);
    }

    #[test]
    fn a_backend_that_returns_starts_with_one_slot() {
        let backend = backend_with(&Queue::new(0), 8);
        backend.went_down("refused");
        assert_eq!(backend.state(), State::Down);
        backend.reported_in(&Report::default(), &limits());
        assert_eq!((backend.state(), backend.slots()), (State::Available, 1));
    }
}
