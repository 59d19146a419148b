//! Where policy and fleet meet: rows for the plugin, its answer checked, the slot claimed.
//!
//! Whatever the policy says, only an available backend that serves the model and has not failed this
//! request can come out, and only with a lease on one of its slots.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::snapshot::Member;
use super::worker::{Candidate, Current, Served, Worker};
use crate::clock::now_ms;
use crate::fleet::{Backend, Lease};
use crate::plugin::{Column, Decision, Fault, Kind, Request};

/// Lost races for a slot before the request stands in line: others were quicker each time, so it is full.
const RACES: usize = 4;

/// What came of a pick.
#[derive(Debug)]
pub enum Picked {
    /// A slot at this candidate (an index into `Served::candidates`).
    Slot {
        candidate: usize,
        lease: Lease,
    },
    /// All that could serve it are busy.
    AllBusy,
    /// None that could serve it is up, or all that are have failed it.
    Nobody,
    /// The policy would rather wait.
    Hold,
    Reject(StatusCode),
}

/// The one request that is picked for.
#[derive(Debug)]
pub struct Asking<'a> {
    pub worker: &'a Worker,
    pub current: &'a Current,
    pub served: &'a Served,
    /// Ids of backends that failed it.
    pub tried: &'a [u64],
    /// Ids of backends that are left to those who came before.
    pub reserved: Vec<u64>,
    /// Whether a second run changes no state; only such a request may be the trial of a backend.
    pub repeatable: bool,
    /// As the plugin sees it; `random` and `now_ms` are filled in here.
    pub request: Request,
}

impl Asking<'_> {
    /// Lets the policy pick among all candidates that are available.
    pub fn pick(&self) -> Picked {
        for _ in 0..RACES {
            let rows = self.available();
            if rows.is_empty() {
                return self.none_available();
            }
            match self.ask(&rows, 0) {
                Ok(candidate) => {
                    if let Some(lease) = self.member(candidate).and_then(|member| Backend::claim(&member.backend)) {
                        return Picked::Slot { candidate, lease };
                    }
                }
                Err(other) => return other,
            }
        }
        Picked::AllBusy
    }

    /// The same for a request whose turn in line came with a slot at one backend. Where it does not take the slot, that
    /// goes to those behind it.
    pub fn accept(&self, lease: Lease, ticket: u64) -> Picked {
        let is_its = |candidate: &Candidate| {
            self.current
                .snapshot
                .fleet
                .get(candidate.member)
                .is_some_and(|member| member.backend.id == lease.backend.id)
        };
        let Some(candidate) = self.served.candidates.iter().position(is_its) else { return Picked::AllBusy };
        match self.ask(&[candidate], 1) {
            Ok(candidate) => Picked::Slot { candidate, lease },
            Err(other) => {
                lease.pass_on(ticket);
                other
            }
        }
    }

    pub fn is_anyone_up(&self) -> bool {
        self.backends().any(|backend| backend.is_up())
    }

    /// The backends that have not failed this request.
    pub fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.untried().map(|(_, backend)| backend)
    }

    fn member(&self, candidate: usize) -> Option<&Member> {
        self.current.snapshot.fleet.get(self.served.candidates.get(candidate)?.member)
    }

    /// Candidates that have not failed this request, with their backends.
    fn untried(&self) -> impl Iterator<Item = (usize, &Arc<Backend>)> {
        let backend = |at: usize| self.member(at).map(|member| (at, &member.backend));
        (0..self.served.candidates.len()).filter_map(backend).filter(|(_, backend)| !self.tried.contains(&backend.id))
    }

    fn available(&self) -> Vec<usize> {
        let may_take = |backend: &Arc<Backend>| {
            backend.is_available()
                && !self.reserved.contains(&backend.id)
                && (self.repeatable || !backend.is_suspended())
        };
        self.untried().filter(|(_, backend)| may_take(backend)).map(|(at, _)| at).collect()
    }

    /// Busy, or nobody there? Where failures of real traffic speak against every one that is up, the evidence
    /// is soft: they stay in use.
    fn none_available(&self) -> Picked {
        let up = || self.untried().filter(|(_, backend)| backend.is_up());
        if up().next().is_none() {
            return Picked::Nobody;
        }
        if !self.reserved.is_empty() || up().any(|(_, backend)| !backend.is_ejected()) {
            return Picked::AllBusy;
        }
        let claimed = up().find_map(|(candidate, backend)| {
            Backend::claim_suspect(backend).map(|lease| Picked::Slot { candidate, lease })
        });
        claimed.unwrap_or(Picked::AllBusy)
    }

    /// Asks the policy about these candidates; what is not a pick comes back as the error. `held`: slots that this very
    /// request holds already.
    fn ask(&self, candidates: &[usize], held: u32) -> Result<usize, Picked> {
        let request = Request { random: fastrand::u64(..), now_ms: now_ms(), ..self.request };
        let own = || {
            // The host's own round robin, where the plugin has no answer or a wrong one.
            let turn = request.sequence % (candidates.len().max(1) as u64);
            candidates.get(turn as usize).copied().ok_or(Picked::AllBusy)
        };
        match self.call(&request, candidates, held) {
            Ok(Decision::Pick(row)) => candidates.get(row as usize).copied().map_or_else(own, Ok),
            Ok(Decision::Abstain) => own(),
            Ok(Decision::Hold) => Err(Picked::Hold),
            Ok(Decision::Reject(status)) => {
                Err(Picked::Reject(StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)))
            }
            Err(fault) => {
                self.worker.report(&self.current.snapshot, Kind::Policy, fault);
                own()
            }
        }
    }

    fn call(&self, request: &Request, candidates: &[usize], held: u32) -> Result<Decision, Fault> {
        let mut rows = self.current.rows.borrow_mut();
        rows.clear();
        let columns = self.current.snapshot.policy.columns();
        for member in candidates.iter().filter_map(|at| self.served.candidates.get(*at)) {
            let Some(row) = self.current.snapshot.fleet.get(member.member) else { continue };
            rows.push(u32::try_from(member.member).unwrap_or(u32::MAX));
            push_columns(&mut rows, columns, row, held);
        }
        self.current.snapshot.policy.pick(self.worker.index, request, &rows)
    }
}

/// The numbers of one backend, in the order the plugin asked for.
fn push_columns(rows: &mut Vec<u32>, columns: &[Column], member: &Member, held: u32) {
    let backend = &member.backend;
    let (in_flight, slots) = (backend.in_flight().saturating_sub(held), backend.slots());
    let (running, waiting, kv_permille, age_ms) = backend.reported();
    rows.extend(columns.iter().map(|column| match column {
        Column::InFlight => in_flight,
        Column::Slots => slots,
        Column::Free => slots.saturating_sub(in_flight).max(1),
        Column::LoadPermille => {
            u32::try_from(u64::from(in_flight) * 1000 / u64::from(slots.max(1))).unwrap_or(u32::MAX)
        }
        Column::Weight => member.config.weight,
        Column::Running => running,
        Column::Waiting => waiting,
        Column::KvPermille => kv_permille,
        Column::AgeMs => age_ms,
        Column::FirstTokenUs => backend.first_byte_us(),
        Column::ErrorsPermille => backend.errors_permille(),
    }));
}

/// How long until a slot may be expected with so many waiting `ahead`: each slot is held for a while on
/// average, and all of them together free at that rate. Jittered by up to a quarter either way, so that
/// clients do not return together.
pub fn expected_wait<'a>(backends: impl Iterator<Item = &'a Arc<Backend>>, ahead: usize, jitter: f64) -> Duration {
    let freed_per_second: f64 =
        backends.map(|backend| f64::from(backend.slots()) / backend.mean_hold().as_secs_f64().max(0.001)).sum();
    let seconds = (ahead as f64 + 1.0) / freed_per_second.max(0.001);
    Duration::from_secs_f64((seconds * (0.75 + jitter / 2.0)).clamp(0.05, 60.0))
}
