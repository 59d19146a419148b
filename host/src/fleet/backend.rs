//! One inference server: who it is, its live numbers, and the lease that holds one of its slots.
//!
//! A backend is made once for a name and address and outlives every snapshot that lists it. Its live
//! numbers are atomics, read on every pick by every worker; what only control and the admin page read
//! lies behind a lock beside them.

mod told;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use tokio::sync::Notify;

use super::board::Seat;
use super::cost::{Cost, Held};
use super::known::Known;
use super::lease::Lease;
use super::live::{Live, REACH_DOWN, REACH_UNKNOWN, REACH_UP, UNKNOWN, move_average};
use super::outlier::Attempts;
use super::queue::{Queue, Turn};
use super::room::Room;
use super::state::State;
use crate::clock::now_ms;
use crate::config::BackendUrl;

/// An engine that restarts refuses connections for a moment, and one that shuts down until it is gone: past this it is.
const GONE_AFTER_MS: u64 = 3_000;
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
    /// [`Backend::opens_in`] has changed.
    pub opening: Notify,
    known: Mutex<Known>,
    queue: Arc<Queue>,
    /// Its place on the queue's board.
    pub seat: Seat,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.queue.board.leave(self.seat);
    }
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
            opening: Notify::new(),
            known: Mutex::default(),
            seat: queue.board.sit(),
            queue,
        })
    }

    /// Takes what a request costs, where that is free and the backend may be used at this moment. What costs more than
    /// there is room for takes all of it.
    pub fn claim(backend: &Arc<Self>, cost: Cost) -> Option<Lease> {
        if !backend.is_suspended() {
            return Self::take(backend, cost, false);
        }
        // Where its time is up: one trial, and no more until that has ended.
        let may_try = !backend.is_ejected() && !backend.live.on_trial.swap(true, SeqCst);
        let trial = may_try.then(|| Self::take(backend, cost, true)).flatten();
        if may_try && trial.is_none() {
            backend.live.on_trial.store(false, SeqCst);
        }
        backend.show();
        trial
    }

    /// The same, also where failures of real traffic speak against it: for the last one standing.
    pub fn claim_suspect(backend: &Arc<Self>, cost: Cost) -> Option<Lease> {
        Self::take(backend, cost, false)
    }

    fn take(backend: &Arc<Self>, cost: Cost, is_trial: bool) -> Option<Lease> {
        if !backend.is_open() {
            backend.show();
            return None;
        }
        let (room, cost) = (backend.all_room(), cost.within(backend.live.limit.load(SeqCst)));
        let mut held = Held::default();
        let take = |before: u64| {
            held = Held::of(before).and(cost);
            room.fits(Held::of(before), cost).then(|| held.packed())
        };
        let taken = backend.live.held.fetch_update(SeqCst, SeqCst, take);
        if taken.is_err() || !room.has_any(held) {
            backend.show();
        }
        taken.ok()?;
        let requests = held.requests;
        if requests > backend.live.most_held.load(Relaxed) {
            backend.live.most_held.fetch_max(requests, Relaxed);
        }
        Some(Lease::new(backend, cost, is_trial))
    }

    /// What a request took is free again; for the lease alone. `held_ms`: how long its slots were held, where that says something.
    pub(super) fn give_back(&self, cost: Cost, held_ms: Option<u32>, is_trial: bool) {
        if let Some(held_ms) = held_ms {
            move_average(&self.live.hold_ms, held_ms);
        }
        if is_trial {
            self.live.on_trial.store(false, SeqCst);
        }
        self.live.held.fetch_sub(Held::default().and(cost).packed(), SeqCst);
    }

    /// Hands free slots to whoever waits for them.
    pub fn wake(self: &Arc<Self>) {
        self.show();
        self.queue.freed(self, None);
    }

    /// The same, but only for those behind this turn.
    pub(super) fn wake_behind(self: &Arc<Self>, turn: Turn) {
        self.show();
        self.queue.freed(self, Some(turn));
    }

    /// Shows on the board whether it may be picked.
    pub(super) fn show(&self) {
        let board = &self.queue.board;
        board.set_open(self.seat, self.is_available());
        if board.is_open(self.seat) == Some(false) && self.is_available() {
            // Somebody opened it after it was looked at, and may have shown that before this did.
            board.set_open(self.seat, true);
        }
    }

    /// A request is sent to it.
    pub fn attempted(&self) {
        self.live.requests.fetch_add(1, Relaxed);
    }

    /// Whether a request could be sent to it now but for the slots.
    fn is_open(&self) -> bool {
        self.live.reach.load(SeqCst) == REACH_UP
            && !self.live.draining.load(SeqCst)
            && (!self.live.cache_full.load(SeqCst) || self.is_stale())
            && !self.is_told_busy()
    }

    /// Whether it may be picked now: up, not busy, a slot free, not ejected by real traffic.
    pub fn is_available(&self) -> bool {
        let may_serve = !self.is_suspended() || (!self.live.on_trial.load(SeqCst) && !self.is_ejected());
        self.is_open() && self.all_room().has_any(self.held()) && may_serve
    }

    /// Whether it is up, and no failures of real traffic speak against it.
    pub fn is_sound(&self) -> bool {
        self.is_up() && !self.is_suspended()
    }

    /// Why it may not be picked now, in a word; `None` where it may.
    pub fn left_out(&self) -> Option<&'static str> {
        Some(match self.state() {
            State::Available => return None,
            State::Busy if self.is_suspended() => "on_trial",
            State::Busy if self.is_told_busy() => "pushed_back",
            State::Busy if self.live.cache_full.load(SeqCst) && !self.is_stale() => "cache_full",
            State::Busy if self.taken() < self.room() => "cache_full",
            State::Busy if self.room() < self.slots() => "busy_elsewhere",
            State::Busy => "full",
            State::Down if self.is_up() => "ejected",
            other => other.name(),
        })
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

    /// Whether it gets no new request: it has left the fleet, or somebody wants it empty.
    pub fn is_draining(&self) -> bool {
        self.live.draining.load(SeqCst)
    }

    /// Whether it has been asked at all.
    pub fn is_unknown(&self) -> bool {
        self.live.reach.load(Relaxed) == REACH_UNKNOWN
    }

    /// Whether nobody has listened at its address for a while: what it has accepted may never be answered.
    pub fn is_gone(&self) -> bool {
        let since = self.live.refusing_since_ms.load(Relaxed);
        since > 0 && now_ms().saturating_sub(since) >= GONE_AFTER_MS
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

    /// Requests of ours that it holds.
    pub fn in_flight(&self) -> u32 {
        self.held().requests
    }

    /// Slots that those take.
    pub fn taken(&self) -> u32 {
        self.held().slots
    }

    fn held(&self) -> Held {
        Held::of(self.live.held.load(SeqCst))
    }

    /// Whether there is room for a request at this moment.
    pub fn fits(&self, cost: Cost) -> bool {
        self.all_room().fits(self.held(), cost.within(self.live.limit.load(SeqCst)))
    }

    /// Whether one more request of the usual cost would not fit into its limit.
    pub(super) fn is_full(&self) -> bool {
        let held = self.held();
        let usual_cost = held.slots.checked_div(held.requests).unwrap_or(1);
        held.slots + usual_cost > self.live.limit.load(SeqCst)
    }

    /// How much of what ours take must come free before a request of this cost fits, in thousandths of the room. `None`
    /// where nothing that ours do would make it fit.
    pub fn lacks(&self, cost: Cost) -> Option<u64> {
        let (room, held) = (self.all_room(), self.held());
        let part = |taken: u32, cost: u32, room: u32| {
            let lack = if cost > room { taken } else { taken.saturating_add(cost).saturating_sub(room) };
            u64::from(lack) * 1_000 / u64::from(room.max(1))
        };
        let may_serve = room.slots > 0 && self.is_open() && !self.is_suspended();
        may_serve.then(|| part(held.slots, cost.slots, room.slots).max(part(held.tokens, cost.tokens, room.tokens)))
    }

    /// Slots it has now, whoever takes them.
    pub fn slots(&self) -> u32 {
        let slots = self.live.limit.load(SeqCst);
        self.grown(slots).map_or(slots, |(grown, _)| grown)
    }

    /// While its slots grow back: how many of them it has, and when it has the next.
    fn grown(&self, slots: u32) -> Option<(u32, u64)> {
        let since = self.live.growing_since_ms.load(SeqCst);
        if since == 0 {
            // It never went: no need to look at the clock.
            return None;
        }
        let over = self.live.slow_start_ms.load(Relaxed);
        let age = now_ms().saturating_sub(since);
        let grown = ((u64::from(slots) * age).checked_div(over)? as u32).max(1);
        (grown < slots).then(|| (grown, since + (u64::from(grown + 1) * over).div_ceil(slots.into())))
    }

    /// How long until it takes more requests without a word from anybody: it wanted to be left alone, is out of use for
    /// a while, or its slots grow back. `None` where nothing of this is so.
    pub fn opens_in(&self) -> Option<Duration> {
        let now = now_ms();
        let told = Some(self.live.busy_until_ms.load(SeqCst)).filter(|until| *until > now);
        let ejected = if self.is_suspended() { self.known().health.ejected_until() } else { None };
        let grown = self.grown(self.live.limit.load(SeqCst)).map(|(_, next)| next);
        let next = [told, ejected.filter(|until| *until > now), grown].into_iter().flatten().min()?;
        Some(Duration::from_millis(next.saturating_sub(now).max(1)))
    }

    /// Slots that ours may take now: all that it has, less what its last report leaves to others.
    pub fn room(&self) -> u32 {
        let (slots, ceiling) = (self.slots(), self.live.ceiling.load(SeqCst));
        if ceiling >= slots || self.is_stale() { slots } else { ceiling }
    }

    /// The same, and the guessed tokens that its KV-cache has room for.
    fn all_room(&self) -> Room {
        let tokens = self.live.kv_room.load(SeqCst);
        let tokens = if tokens == UNKNOWN || self.is_stale() { u32::MAX } else { tokens };
        Room { slots: self.room(), tokens }
    }

    /// The part of its KV-cache that our requests are expected to take, 1 for all of it; `None` before it is known what a
    /// request takes.
    pub fn kv_cache_expected(&self) -> Option<f64> {
        let of_token = self.known().kv_cache.part_of_token()?;
        Some(of_token * f64::from(self.held().tokens))
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

    /// How long it still wants to be left alone.
    pub fn pause_left(&self) -> Duration {
        Duration::from_millis(self.live.busy_until_ms.load(SeqCst).saturating_sub(now_ms()))
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

    /// Whether it fails so often that a request with another choice should stay away, by a throw of dice: a backend that
    /// fails fast has room at all times, and no policy shall be drawn by that.
    pub fn is_better_avoided(&self, dice: u32) -> bool {
        let errors = self.errors_permille();
        errors > 0 && dice % 1_000 < errors
    }

    /// Attempts that have ended, and those of them that failed.
    fn attempts(&self) -> Attempts {
        let (requests, failed) = self.totals();
        Attempts { ended: requests.saturating_sub(self.in_flight().into()), failed }
    }

    /// Attempts and failures since it was made.
    pub fn totals(&self) -> (u64, u64) {
        (self.live.requests.load(Relaxed), self.live.failures.load(Relaxed))
    }

    /// What control knows, under its lock: not for the request path.
    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::config::Capacity;
    use crate::fleet::cost::tests::slots;
    use crate::fleet::engine::Report;
    use crate::fleet::health::tests::ejection;

    /// As where nothing is configured.
    pub fn limits() -> Capacity {
        Capacity {
            poll_interval: Duration::from_secs(1),
            stale_after: Duration::from_secs(5),
            max_waiting: 0,
            max_kv_cache: 0.95,
            replicas: 1,
            replica: None,
            slow_start: Duration::from_secs(10),
            cost: crate::config::Cost { image: 0.0, mib: 0.0 },
        }
    }

    /// A backend that is up and has so many slots.
    pub fn backend_with(queue: &Arc<Queue>, slots: u32) -> Arc<Backend> {
        let url = BackendUrl { is_https: false, host: "127.0.0.1".into(), port: 1, prefix: String::new() };
        let backend = Backend::new("test", url, Arc::clone(queue));
        backend.configure(Some(slots), None, &limits());
        backend.reported_in(&Report::default(), &limits());
        backend
    }

    #[test]
    fn never_holds_more_than_its_slots_whoever_claims() {
        let backend = backend_with(&Queue::new(0, 0), 3);
        let (threads, rounds) = (8, 500);
        let together = std::sync::Barrier::new(threads);
        let granted = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for _ in 0..rounds {
                        together.wait();
                        let lease = Backend::claim(&backend, slots(1));
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
    fn what_costs_more_than_others_leave_has_it_to_itself() {
        let backend = backend_with(&Queue::new(0, 0), 4);
        let others_hold = |running| {
            backend.asking();
            backend.reported_in(&Report { running: Some(running), ..Report::default() }, &limits());
        };
        others_hold(1);
        let held = Backend::claim(&backend, slots(1));
        assert!(backend.room() == 3 && held.is_some());
        assert!(Backend::claim(&backend, slots(4)).is_none(), "one of ours is there");
        drop(held);
        let dear = Backend::claim(&backend, slots(4)).unwrap();
        assert!(Backend::claim(&backend, slots(1)).is_none());
        backend.forget_report();
        assert!(backend.room() == 4 && Backend::claim(&backend, slots(1)).is_none(), "it costs all four");
        drop(dear);
        others_hold(4);
        assert!(Backend::claim(&backend, slots(4)).is_none(), "nothing is left");
    }

    #[test]
    fn a_report_of_a_queue_or_a_full_cache_makes_it_busy_and_a_stale_one_does_not() {
        let backend = backend_with(&Queue::new(0, 0), 3);
        backend.reported_in(&Report { waiting: Some(1), ..Report::default() }, &limits());
        assert_eq!(backend.state(), State::Busy);
        assert!(Backend::claim(&backend, slots(1)).is_none());
        backend.forget_report();
        assert_eq!(backend.state(), State::Available);
        backend.reported_in(&Report { kv_cache_used: Some(0.96), ..Report::default() }, &limits());
        assert_eq!(backend.state(), State::Busy);
    }

    #[test]
    fn requests_for_which_the_cache_has_no_room_wait_outside() {
        let backend = backend_with(&Queue::new(0, 0), 8);
        let of = |tokens| Backend::claim(&backend, Cost { slots: 1, tokens });
        let report = |report: Report| {
            backend.asking();
            backend.reported_in(&report, &limits());
        };
        let held = of(300);
        assert!(of(9_000).is_some(), "nothing is known yet");
        // 300 guessed tokens take half of it: there is room for 570 at 95 %.
        let half = Report { kv_cache_used: Some(0.5), running: Some(1), waiting: Some(0), ..Report::default() };
        for _ in 0..3 {
            report(half.clone());
        }
        assert!(of(271).is_none());
        let second = of(200);
        assert!(second.is_some() && of(71).is_none());
        assert_eq!(backend.kv_cache_expected().map(|part| (part * 600.0).round()), Some(500.0));
        // It is under way: the engine tells of the first alone, and has no more room for it.
        report(half.clone());
        assert!(of(100).is_none() && backend.in_flight() == 2);
        drop(second);
        // Another runs that is not ours and takes a little less.
        report(Report { running: Some(2), kv_cache_used: Some(0.9), ..half });
        assert!(of(50).is_none() && of(20).is_some());
        drop(held);
        assert!(of(9_000).is_some(), "alone it goes wherever there is a slot");
        backend.forget_report();
        let _first = of(300);
        assert!(of(9_000).is_some(), "a dead page of metrics stops nobody");
    }

    #[test]
    fn slots_come_from_configuration_or_a_smaller_report_else_from_learning() {
        let backend = backend_with(&Queue::new(0, 0), 3);
        assert_eq!((backend.slots(), backend.slots_from()), (3, "config"));
        backend.configure(None, None, &limits());
        assert_eq!((backend.slots(), backend.slots_from()), (super::super::limit::FIRST, "learned"));
        backend.reported_in(&Report { limit: Some(4), ..Report::default() }, &limits());
        assert_eq!((backend.slots(), backend.slots_from()), (4, "reported"));
        backend.configure(Some(9), None, &limits());
        assert_eq!((backend.slots(), backend.slots_from()), (4, "reported"), "it takes no more than it says");
        backend.configure(Some(3), None, &limits());
        assert_eq!((backend.slots(), backend.slots_from()), (3, "config"), "nor more than it is given");
        backend.configure(Some(3), None, &Capacity { replicas: 2, ..limits() });
        assert_eq!((backend.slots(), backend.slots_from()), (1, "config"), "its part of what two proxies share");
    }

    #[test]
    fn repeated_failures_eject_whatever_the_polls_say() {
        let backend = backend_with(&Queue::new(0, 0), 3);
        for _ in 0..5 {
            backend.failed("reset", ejection(5), now_ms());
        }
        backend.reported_in(&Report::default(), &limits());
        assert_eq!(backend.state(), State::Down);
        assert!(Backend::claim(&backend, slots(1)).is_none());
        assert!(Backend::claim_suspect(&backend, slots(1)).is_some(), "the last one standing stays in use");
        backend.began(Duration::from_millis(5));
        assert_eq!(backend.state(), State::Down, "a beginning is no answer");
        backend.completed(now_ms());
        assert_eq!(backend.state(), State::Available);
    }

    #[test]
    fn one_restart_is_one_failure_and_who_is_up_by_polls_alone_is_ejected() {
        let backend = backend_with(&Queue::new(0, 0), 8);
        for _ in 0..20 {
            backend.unreachable("refused", ejection(3), now_ms());
        }
        backend.reported_in(&Report::default(), &limits());
        assert_eq!((backend.state(), backend.totals().1), (State::Available, 20));
        for _ in 1..3 {
            backend.unreachable("refused", ejection(3), now_ms());
            backend.reported_in(&Report::default(), &limits());
        }
        assert_eq!(backend.state(), State::Down, "no poll clears it");
        assert!(Backend::claim(&backend, slots(1)).is_none());
    }

    #[test]
    fn a_backend_that_returns_starts_with_one_slot() {
        let backend = backend_with(&Queue::new(0, 0), 8);
        backend.went_down("refused");
        assert_eq!(backend.state(), State::Down);
        backend.reported_in(&Report::default(), &limits());
        assert_eq!((backend.state(), backend.slots()), (State::Available, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_known_when_it_takes_more_without_a_word() {
        let backend = backend_with(&Queue::new(0, 0), 4);
        assert_eq!(backend.opens_in(), None);
        backend.pushed_back(Duration::from_secs(7));
        assert_eq!(backend.opens_in(), Some(Duration::from_secs(7)));
        for _ in 0..5 {
            backend.failed("reset", ejection(5), now_ms());
        }
        let ejected = backend.opens_in().unwrap().as_millis();
        assert!((1_000..=1_500).contains(&ejected), "{ejected} ms");
        let backend = backend_with(&Queue::new(0, 0), 4);
        backend.went_down("refused");
        backend.reported_in(&Report::default(), &limits());
        for slots in 1..4 {
            let next = backend.opens_in().unwrap();
            tokio::time::sleep(next - Duration::from_millis(1)).await;
            assert_eq!(backend.slots(), slots);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!((backend.slots(), backend.opens_in()), (4, None));
    }
}
