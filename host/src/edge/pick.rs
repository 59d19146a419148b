//! Where policy and fleet meet: rows for the plugin, its answer checked, the slot claimed.
//!
//! Whatever the policy says, only an available backend that serves the model and has not failed this
//! request can come out, and only with a lease on one of its slots.

use std::cell::{LazyCell, RefCell};
use std::sync::Arc;

use http::StatusCode;

use super::decisions::{NAMED_LIMIT, Pick, Record};
use super::snapshot::Member;
use super::worker::{Candidate, Current, Place, Served, Tier, Worker};
use crate::clock::now_ms;
use crate::fleet::{Backend, Cost, Lease, Turn};
use crate::plugin::{Column, Decision, Fault, Kind, Request};

/// Lost races for a slot before the request stands in line: others were quicker each time, so it is full.
const RACES: usize = 4;

/// Candidates that a pick names where they are more than it can name.
const NAMED_OF_MANY: usize = 4;

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
    /// Those it may go to now: a tier and all before it.
    pub tier: &'a Tier,
    /// Ids of backends that failed it.
    pub tried: &'a [u64],
    /// Ids of backends that are left to those who came before.
    pub reserved: Vec<u64>,
    /// Whether it may be the trial of a backend: another could repeat it.
    pub may_try: bool,
    /// What it takes.
    pub cost: Cost,
    /// As the plugin sees it; `random` and `now_ms` are filled in here.
    pub request: Request,
    pub record: &'a RefCell<Record>,
}

impl Asking<'_> {
    /// Lets the policy pick among all candidates that are available.
    pub fn pick(&self) -> Picked {
        for race in 0..RACES {
            let mut open = self.available();
            if race > 0 {
                // It may need more than is left somewhere.
                open.retain(|at| self.member(*at).is_some_and(|member| member.backend.fits(self.cost)));
            }
            if open.is_empty() {
                self.record.borrow_mut().pick(self.noted(&[], None));
                return self.none_available();
            }
            let said = self.ask(&open, 0);
            self.current.open.replace(open);
            match said {
                Ok(candidate) => {
                    let claim = |member: &Member| Backend::claim(&member.backend, self.cost);
                    if let Some(lease) = self.member(candidate).and_then(claim) {
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
    pub fn accept(&self, lease: Lease, turn: Turn) -> Picked {
        let is_its = |(_, backend): &(usize, &Arc<Backend>)| backend.id == lease.backend.id;
        let Some((candidate, _)) = self.untried().find(is_its) else { return Picked::AllBusy };
        match self.ask(&[candidate], lease.slots()) {
            Ok(candidate) => Picked::Slot { candidate, lease },
            Err(other) => {
                lease.pass_on(turn);
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
        (0..self.tier.candidates).filter_map(backend).filter(|(_, backend)| !self.tried.contains(&backend.id))
    }

    /// Those to let the policy pick among. By the board: a backend's own numbers are looked at only where something is
    /// amiss, and by the claim.
    fn available(&self) -> Vec<usize> {
        let board = &self.worker.shared.queue.board;
        let backend = |at: &usize| self.member(*at).map(|member| &member.backend);
        let places = self.served.places.iter().take(self.tier.candidates).enumerate();
        let is_open = |(at, place): (usize, &Place)| {
            let is_open =
                board.is_open(place.seat).unwrap_or_else(|| backend(&at).is_some_and(|other| other.is_available()));
            is_open.then_some(at)
        };
        let mut open = self.current.open.take();
        open.clear();
        open.extend(places.filter_map(is_open));
        if !(self.may_try && self.tried.is_empty() && self.reserved.is_empty()) {
            let is_ruled_out = |other: &Arc<Backend>| {
                let is_left = self.tried.contains(&other.id) || self.reserved.contains(&other.id);
                is_left || (!self.may_try && other.is_suspended())
            };
            open.retain(|at| backend(at).is_some_and(|other| !is_ruled_out(other)));
        }
        let errs = |at: &usize| self.served.places.get(*at).is_none_or(|place| board.errs(place.seat));
        if open.iter().any(errs) {
            let dice = fastrand::u32(..);
            let is_sound = |at: &usize| !errs(at) || backend(at).is_some_and(|other| !other.is_better_avoided(dice));
            if open.iter().any(is_sound) {
                open.retain(is_sound);
            }
        }
        open
    }

    /// Busy, or nobody there? Where failures of real traffic speak against every one that is up, the evidence
    /// is soft: they stay in use.
    fn none_available(&self) -> Picked {
        let up = || self.untried().filter(|(_, backend)| backend.is_up());
        if up().next().is_none() {
            return Picked::Nobody;
        }
        // Also in a tier that it may not go to yet, for there it will.
        let is_sound = |backend: &Arc<Backend>| backend.is_sound() && !self.tried.contains(&backend.id);
        if !self.reserved.is_empty() || self.served.all.iter().any(is_sound) {
            return Picked::AllBusy;
        }
        let claimed = up().find_map(|(candidate, backend)| {
            Backend::claim_suspect(backend, self.cost).map(|lease| Picked::Slot { candidate, lease })
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
        let said = self.call(&request, candidates, held);
        let picked = match said {
            Ok(Decision::Pick(row)) => Some(row as usize),
            _ => None,
        };
        let pick = Pick { said: said.as_ref().ok().copied(), ..self.noted(candidates, picked) };
        self.record.borrow_mut().pick(pick);
        match said {
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

    /// Asks the policy. The rows stay where they are, for the record.
    fn call(&self, request: &Request, candidates: &[usize], held: u32) -> Result<Decision, Fault> {
        let mut rows = self.current.rows.borrow_mut();
        rows.clear();
        let columns = self.current.snapshot.policy.columns();
        if columns.is_empty() {
            rows.extend(candidates.iter().filter_map(|at| self.served.places.get(*at)).map(|place| place.member));
        } else {
            for candidate in candidates.iter().filter_map(|at| self.served.candidates.get(*at)) {
                let Some(member) = self.current.snapshot.fleet.get(candidate.member) else { continue };
                rows.push(u32::try_from(candidate.member).unwrap_or(u32::MAX));
                push_columns(&mut rows, columns, Row { candidate, member, held });
            }
        }
        self.current.snapshot.policy.pick(self.worker.index, request, &rows)
    }

    /// The record of a pick among these: their numbers and rows, and why the others are not among them. Of very many only
    /// the one that was `picked` and the first few, for looking at each costs time.
    fn noted(&self, candidates: &[usize], picked: Option<usize>) -> Pick {
        let mut pick = Pick::default();
        let (rows, width) = (self.current.rows.borrow(), 1 + self.current.snapshot.policy.columns().len());
        let is_few = candidates.len() <= NAMED_LIMIT;
        let others = (0..candidates.len()).take(if is_few { NAMED_LIMIT } else { NAMED_OF_MANY });
        for row in picked.filter(|row| !is_few && *row >= NAMED_OF_MANY).into_iter().chain(others) {
            let Some(member) = candidates.get(row).and_then(|at| self.served.candidates.get(*at)).map(|one| one.member)
            else {
                continue;
            };
            let Some(Member { backend, .. }) = self.current.snapshot.fleet.get(member) else { continue };
            let index = u32::try_from(member).unwrap_or(u32::MAX);
            let columns = rows.chunks_exact(width).nth(row).and_then(|row| row.get(1..)).unwrap_or_default();
            pick.candidates.extend_from_slice(&[index, backend.in_flight(), backend.room()]);
            pick.candidates.extend_from_slice(columns);
        }
        if candidates.len() < self.served.candidates.len() {
            // Both in order: one walk, which ends with the last that is named.
            let mut chosen = candidates.iter().copied().peekable();
            let others = (0..self.served.candidates.len()).filter(|at| chosen.next_if_eq(at).is_none());
            pick.left_out = others.take(NAMED_LIMIT).filter_map(|at| self.left_out(at)).collect();
        }
        pick
    }

    /// Why a candidate is none for this pick.
    fn left_out(&self, at: usize) -> Option<(usize, &'static str)> {
        let member = self.served.candidates.get(at)?.member;
        let backend = &self.current.snapshot.fleet.get(member)?.backend;
        let why = match backend.left_out() {
            _ if self.tried.contains(&backend.id) => "tried",
            Some(why) => why,
            None if at >= self.tier.candidates => "tier",
            None if self.reserved.contains(&backend.id) => "left_to_those_before",
            None if backend.is_suspended() => "on_trial",
            None if !backend.fits(self.cost) => "too_little_room",
            // A slot may have come free this moment.
            None => "passed_over",
        };
        Some((member, why))
    }
}

/// One candidate, as `push_columns` reads it.
struct Row<'a> {
    candidate: &'a Candidate,
    member: &'a Member,
    /// Slots that the request that asks holds there already.
    held: u32,
}

/// The numbers of one backend, in the order the plugin asked for.
fn push_columns(rows: &mut Vec<u32>, columns: &[Column], row: Row<'_>) {
    if columns.is_empty() {
        return;
    }
    let Row { candidate, member, held } = row;
    let backend = &member.backend;
    let (slots, taken) = (backend.room(), backend.taken().saturating_sub(held));
    // Reads the clock: only for who asks for what may be stale.
    let reported = LazyCell::new(|| backend.reported());
    rows.extend(columns.iter().map(|column| match column {
        Column::InFlight => backend.in_flight().saturating_sub(held.min(1)),
        Column::Slots => slots,
        Column::Free => slots.saturating_sub(taken).max(1),
        Column::LoadPermille => u32::try_from(u64::from(taken) * 1000 / u64::from(slots.max(1))).unwrap_or(u32::MAX),
        Column::Weight => member.config.weight,
        Column::Running => reported.0,
        Column::Waiting => reported.1,
        Column::KvPermille => reported.2,
        Column::AgeMs => reported.3,
        Column::FirstTokenUs => backend.first_byte_us(),
        Column::ErrorsPermille => backend.errors_permille(),
        Column::Loaded => candidate.loaded,
    }));
}
