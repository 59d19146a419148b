//! What a request reads of the world: one immutable snapshot, loaded once, and the few shared things that outlive it.
//!
//! Invariants: nothing but `control::reload` stores a snapshot; the plugins in it were started with exactly its
//! fleet, so an index means the same backend on both sides; a request ends on the snapshot it began with.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::mpsc;

use crate::config::{BackendConfig, Config};
use crate::fleet::{Backend, Queue};
use crate::metrics::Metrics;
use crate::plugin::{Fault, Policy, Route, Translator};

/// Models whose pick sequence is kept; an open-ended translator could name any number.
const SEQUENCES_LIMIT: usize = 4096;

/// One generation of the world.
#[derive(Debug)]
pub struct Snapshot {
    /// Grows with every snapshot.
    pub generation: u64,
    pub config: Arc<Config>,
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
    /// A worker's word to control that a plugin call failed.
    pub faults: mpsc::UnboundedSender<FaultReport>,
    /// The process is about to end: `/readyz` says so.
    pub draining: AtomicBool,
    sequences: Mutex<HashMap<Arc<str>, Arc<AtomicU64>>>,
    /// Connections from clients, by worker.
    pub connections: Box<[AtomicU64]>,
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
            faults,
            draining: AtomicBool::new(false),
            sequences: Mutex::default(),
            connections: (0..workers).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// The counter of a model's requests over all workers. It outlives snapshots, so that a reload does not
    /// start the round again.
    pub fn sequence(&self, model: &Arc<str>) -> Arc<AtomicU64> {
        let mut sequences = self.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        if sequences.len() >= SEQUENCES_LIMIT && !sequences.contains_key(model) {
            sequences.clear();
        }
        Arc::clone(sequences.entry(Arc::clone(model)).or_default())
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
