//! Why this backend: the last decisions of each worker, for `/api/decisions`.
//!
//! A request writes its record for itself and hands it over once, when its answer begins or it ends without one;
//! what became of the answer is added when that is over. A worker's ring is locked for that moment alone, and by the
//! admin listener for a copy.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::response::Account;
use crate::fleet::Cost;
use crate::plugin::{Column, Decision as Said};

/// Decisions kept, of a worker and in what is shown.
pub const KEPT: usize = 1_000;
/// Picks kept of one request: a policy may hold it again and again.
const PICKS_LIMIT: usize = 8;
/// Candidates and backends left out that a pick names; a fleet may have thousands.
pub const NAMED_LIMIT: usize = 32;

/// The decisions of one worker.
#[derive(Debug, Default)]
pub struct Decisions {
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    /// The number of the oldest one kept.
    first: u64,
    kept: VecDeque<Decision>,
}

/// What was decided for one request. Nearly all of it in one piece of memory: a worker writes a thousand of them before it
/// comes back to the first, which the caches have forgotten by then.
#[derive(Debug, Clone)]
pub struct Decision {
    /// Copied: the field's value is a piece of the client's read buffer, and would keep all of that.
    pub request_id: Box<str>,
    pub started: Instant,
    /// Its public name.
    pub model: Arc<str>,
    pub images: u32,
    pub body_bytes: u64,
    /// What it takes.
    pub cost: Cost,
    pub world: Arc<World>,
    pub picks: SmallVec<[Pick; 1]>,
    pub in_line: Option<Duration>,
    pub status: u16,
    /// How the exchange ended, and after how long; `None` while it goes on.
    pub ended: Option<(&'static str, Duration)>,
}

/// Of the snapshot that was decided in, so much as its numbers need to be read.
#[derive(Debug)]
pub struct World {
    pub generation: u64,
    pub policy: String,
    pub columns: Vec<Column>,
    /// Names of the fleet, by index.
    pub names: Vec<Arc<str>>,
}

/// One question to the policy, and what came of it.
#[derive(Debug, Clone, Default)]
pub struct Pick {
    /// For each candidate its index in the fleet, its requests in flight and its slots at that moment; then, a number a column,
    /// what the policy was given.
    pub candidates: SmallVec<[u32; 16]>,
    /// Who serves the model and was no candidate, by index, and why not.
    pub left_out: Vec<(usize, &'static str)>,
    /// The policy's own word; `None` where it was not asked or failed.
    pub said: Option<Said>,
    /// Where the request went, and how that attempt ended, after how long.
    pub attempt: Option<(usize, &'static str, Duration)>,
}

/// Numbers of a candidate in the record of a pick, before those of its columns.
pub const NUMBERS: usize = 3;

/// How a decision ends that is followed by another on the same request: all who served the model had left the fleet.
const STRANDED: &str = "stranded";

/// The record of a request under way. Its drop hands it over, so that one that is cancelled is explained too.
#[derive(Debug)]
pub struct Record {
    /// `None` once it is handed over.
    decision: Option<Decision>,
    account: Rc<Account>,
}

impl Record {
    pub fn new(decision: Decision, account: &Rc<Account>) -> Self {
        Self { decision: Some(decision), account: Rc::clone(account) }
    }

    /// Begins the record of a pick.
    pub fn pick(&mut self, pick: Pick) {
        let Some(decision) = &mut self.decision else { return };
        if decision.picks.len() >= PICKS_LIMIT {
            decision.picks.pop();
        }
        decision.picks.push(pick);
    }

    /// How long it has stood in line so far.
    pub fn in_line(&mut self, waited: Duration) {
        if let Some(decision) = &mut self.decision {
            decision.in_line = Some(waited);
        }
    }

    /// Says how the attempt ended that the last pick led to.
    pub fn attempted(&mut self, member: usize, outcome: &'static str, took: Duration) {
        if let Some(pick) = self.decision.as_mut().and_then(|decision| decision.picks.last_mut()) {
            pick.attempt = Some((member, outcome, took));
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Without a pick it never came to a decision.
        if let Some(mut decision) = self.decision.take().filter(|decision| !decision.picks.is_empty()) {
            let Account { status, number, decisions, started, .. } = &*self.account;
            decision.status = status.get();
            if let Some(before) = number.replace(Some(decisions.push(decision))) {
                // Where the fleet changed under it, it was decided upon anew.
                decisions.end(before, STRANDED, started.elapsed());
            }
        }
    }
}

impl Decisions {
    fn push(&self, decision: Decision) -> u64 {
        let mut ring = self.ring();
        if ring.kept.len() >= KEPT {
            ring.kept.pop_front();
            ring.first += 1;
        }
        ring.kept.push_back(decision);
        ring.first + ring.kept.len() as u64 - 1
    }

    /// The exchange of a decision is over.
    pub fn end(&self, number: u64, outcome: &'static str, took: Duration) {
        let mut ring = self.ring();
        let at = number.checked_sub(ring.first).and_then(|at| usize::try_from(at).ok());
        if let Some(decision) = at.and_then(|at| ring.kept.get_mut(at)) {
            decision.ended = Some((outcome, took));
        }
    }

    /// A copy of all, the oldest first.
    pub fn all(&self) -> Vec<Decision> {
        self.ring().kept.iter().cloned().collect()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
