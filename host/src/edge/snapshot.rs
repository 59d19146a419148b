//! What a request reads of the world: one immutable snapshot, loaded once, and the few shared things that outlive it.
//!
//! Invariants: nothing but `control::reload` stores a snapshot; the plugins in it were started with exactly its
//! fleet, so an index means the same backend on both sides; a request ends on the snapshot it began with.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue};
use tokio::sync::mpsc;

use super::access::{CREDENTIALS, Keyring};
use super::decisions::Decisions;
use super::upstream::Names;
use crate::clock::now_ms;
use crate::config::{BackendConfig, Config};
use crate::fleet::{Backend, Queue};
use crate::metrics::Metrics;
use crate::plugin::{Fault, Policy, Route, Translator};

/// Models whose demand is kept; an open-ended translator could name any number.
const DEMANDS_LIMIT: usize = 4096;

/// One generation of the world.
#[derive(Debug)]
pub struct Snapshot {
    /// Grows with every snapshot.
    pub generation: u64,
    pub config: Arc<Config>,
    /// Who may ask.
    pub keys: Keyring,
    /// Indexed by what plugins call `backend`.
    pub fleet: Vec<Member>,
    /// The public names, for `GET /v1/models`; an index into it is what plugins call `model`.
    pub catalog: Vec<Arc<str>>,
    /// Who serves each name of the catalog: index into `fleet` and native name.
    pub routes: HashMap<Arc<str>, Vec<Route>>,
    pub policy: Arc<Policy>,
    pub translator: Arc<Translator>,
}

/// A backend in a snapshot: the living one, and what this generation's configuration says of it.
#[derive(Debug, Clone)]
pub struct Member {
    pub backend: Arc<Backend>,
    pub config: Arc<BackendConfig>,
    /// `Authorization` for this backend; it never goes to another one.
    pub authorization: Option<HeaderValue>,
}

/// What workers and control share.
#[derive(Debug)]
pub struct Shared {
    pub snapshot: ArcSwap<Snapshot>,
    pub queue: Arc<Queue>,
    pub bodies: ByteBudget,
    pub metrics: Arc<Metrics>,
    /// Where backends' names point to.
    pub names: Arc<Names>,
    /// A worker's word to control that a plugin call failed.
    pub faults: mpsc::UnboundedSender<FaultReport>,
    /// The process is about to end: `/readyz` says so.
    pub draining: AtomicBool,
    demands: Mutex<HashMap<Arc<str>, Arc<Demand>>>,
    /// Connections from clients, by worker.
    pub connections: Box<[AtomicU64]>,
    /// The last decisions, by worker.
    pub decisions: Box<[Arc<Decisions>]>,
    /// Tells tenants apart without keeping their keys.
    tenants: RandomState,
}

/// What is asked of a model. It outlives snapshots, so that a reload does not start the round again.
#[derive(Debug, Default)]
pub struct Demand {
    /// Requests for it, over all workers.
    pub requests: AtomicU64,
    owed: Mutex<Owed>,
}

/// Slots promised to clients that were told to come again.
#[derive(Debug, Default)]
struct Owed {
    slots: f64,
    at_ms: u64,
}

/// Nobody is told to come again later than this: both OpenAI SDKs ignore what is longer.
const LONGEST_PROMISE_SECONDS: f64 = 60.0;
/// Nobody is told to come again sooner.
const SHORTEST_PROMISE_SECONDS: f64 = 0.05;

impl Demand {
    /// When a client that finds no room shall come again: each is promised slots of its own, one after another as they
    /// come free, behind those who wait. What was promised falls due as time passes, at the rate of the moment.
    /// `jitter`, 0 to 1, moves it by up to a quarter: later, but never past the longest.
    pub fn promise(&self, freed_per_second: f64, waiting: usize, cost: u32, jitter: f64) -> Duration {
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now_ms();
        let due = now.saturating_sub(owed.at_ms) as f64 / 1e3 * freed_per_second;
        // More than could be promised within the longest time is not kept in mind.
        let most = freed_per_second * LONGEST_PROMISE_SECONDS;
        let slots = ((owed.slots - due).max(0.0) + f64::from(cost)).min(most.max(f64::from(cost)));
        *owed = Owed { slots, at_ms: now };
        let seconds = (waiting as f64 + slots) / freed_per_second.max(1e-3);
        let spread = if seconds < LONGEST_PROMISE_SECONDS / 1.25 {
            seconds * (1.0 + jitter / 4.0)
        } else {
            LONGEST_PROMISE_SECONDS * (1.0 - jitter / 4.0)
        };
        Duration::from_secs_f64(spread.max(SHORTEST_PROMISE_SECONDS))
    }
}

/// A plugin call that failed.
#[derive(Debug)]
pub struct FaultReport {
    /// The snapshot whose plugin it was.
    pub snapshot: Arc<Snapshot>,
    pub worker: usize,
    pub kind: crate::plugin::Kind,
    pub fault: Fault,
}

impl Shared {
    pub fn new(
        first: Snapshot,
        queue: Arc<Queue>,
        metrics: Arc<Metrics>,
        faults: mpsc::UnboundedSender<FaultReport>,
        workers: usize,
    ) -> Arc<Self> {
        let bodies = ByteBudget::new(first.config.limits.bodies_in_flight_bytes);
        Arc::new(Self {
            snapshot: ArcSwap::from_pointee(first),
            queue,
            bodies,
            metrics,
            names: Arc::default(),
            faults,
            draining: AtomicBool::new(false),
            demands: Mutex::default(),
            connections: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            decisions: (0..workers).map(|_| Arc::default()).collect(),
            tenants: RandomState::new(),
        })
    }

    /// Who asks, by the key that the request carries; requests without one are one tenant's.
    pub fn tenant(&self, headers: &HeaderMap) -> u64 {
        let key = CREDENTIALS.iter().find_map(|name| headers.get(name));
        key.map_or(0, |key| self.tenants.hash_one(key.as_bytes()))
    }

    /// What is asked of a model, by its public name.
    pub fn demand(&self, model: &Arc<str>) -> Arc<Demand> {
        let mut demands = self.demands.lock().unwrap_or_else(PoisonError::into_inner);
        if demands.len() >= DEMANDS_LIMIT && !demands.contains_key(model) {
            demands.clear();
        }
        Arc::clone(demands.entry(Arc::clone(model)).or_default())
    }
}

/// All request bodies held at once, in bytes.
#[derive(Debug)]
pub struct ByteBudget {
    held: AtomicU64,
    limit: AtomicU64,
}

impl ByteBudget {
    fn new(limit: u64) -> Self {
        Self { held: AtomicU64::new(0), limit: AtomicU64::new(limit) }
    }

    pub fn resize(&self, limit: u64) {
        self.limit.store(limit, Relaxed);
    }

    /// Whether `bytes` more could be taken now.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.held.load(Relaxed).saturating_add(bytes) <= self.limit.load(Relaxed)
    }

    /// Takes `bytes` more; false where that is too much, and then nothing is taken.
    fn take(&self, bytes: u64) -> bool {
        let limit = self.limit.load(Relaxed);
        let more = |held: u64| held.checked_add(bytes).filter(|held| *held <= limit);
        self.held.fetch_update(Relaxed, Relaxed, more).is_ok()
    }
}

/// The bytes that one request holds of the budget.
#[derive(Debug)]
pub struct HeldBytes {
    shared: Arc<Shared>,
    bytes: u64,
}

impl HeldBytes {
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), bytes: 0 }
    }

    /// Takes more; false where the budget is used up.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let taken = self.shared.bodies.take(bytes);
        if taken {
            self.bytes += bytes;
        }
        taken
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.shared.bodies.held.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clients_are_told_to_come_one_after_another_as_slots_come_free() {
        let demand = Demand::default();
        let millis = |freed, waiting| demand.promise(freed, waiting, 1, 0.0).as_millis();
        assert_eq!([(); 3].map(|()| millis(10.0, 0)), [100, 200, 300]);
        assert_eq!(millis(10.0, 5), 900, "behind those who wait");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(millis(10.0, 0), 100, "what was promised has fallen due");
        assert_eq!(demand.promise(10.0, 0, 4, 0.0).as_millis(), 500, "who costs more waits longer");
    }

    #[tokio::test(start_paused = true)]
    async fn one_slow_moment_is_soon_forgotten() {
        let demand = Demand::default();
        assert!(demand.promise(0.01, 0, 1, 0.0) > Duration::from_secs(59));
        assert!(demand.promise(10.0, 0, 1, 0.0) < Duration::from_millis(250));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_sent_away_for_more_than_a_minute_or_less_than_a_moment() {
        let demand = Demand::default();
        assert_eq!(demand.promise(1e6, 0, 1, 0.0), Duration::from_millis(50));
        assert_eq!(demand.promise(0.0, 0, 1, 0.0), Duration::from_secs(60));
        assert_eq!(demand.promise(1.0, usize::MAX, 1, 1.0), Duration::from_secs(45), "and not all at once");
        assert!(Demand::default().promise(1.0, 0, 1, 1.0) > Duration::from_millis(1_200));
    }
}
