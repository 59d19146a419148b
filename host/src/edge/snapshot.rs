//! What a request reads of the world: one immutable snapshot, loaded once, and the few shared things that outlive it.
//!
//! Invariants: nothing but `control::reload` stores a snapshot; the plugins in it were started with exactly its
//! fleet, so an index means the same backend on both sides; a request ends on the snapshot it began with.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue};
use tokio::sync::mpsc;

use super::access::{CREDENTIALS, Keyring};
use super::decisions::Decisions;
use super::promise::Promises;
use super::upstream::Names;
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
    pub promises: Promises,
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

    /// Bytes that are held now.
    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
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
