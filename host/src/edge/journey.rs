//! A request on its way through the fleet: slot, attempt, and again where that may be.
//!
//! The only loop on the request path, bounded by `failover.attempts` and `queue.timeout`.

mod slot;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::Response;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::attempt::{Begun, Ended, Sending, attempt};
use super::client::Exchange;
use super::decisions::{Decision, Record};
use super::proxy::Arrival;
use super::respond::Dress;
use super::response::{Account, Body};
use super::retry::{Cause, History, Verdict};
use super::worker::{Candidate, Current, Served};
use super::{headers, request};
use crate::error::ProxyError;
use crate::fleet::{Backend, Cost, Turn};
use crate::metrics::AttemptEnd;

/// A request on its way through the fleet of one snapshot.
pub struct Journey<'a> {
    arrival: &'a Arrival<'a>,
    current: &'a Current,
    served: &'a Served,
    underway: &'a mut Underway,
    /// Its number among the requests for this model: a second attempt does not disturb the turns of others.
    sequence: u64,
    /// Slots that it takes.
    cost: Cost,
    body_bytes: u64,
    record: RefCell<Record>,
}

/// What belongs to a request from attempt to attempt, also where the fleet changes under it.
pub struct Underway {
    pub account: Rc<Account>,
    exchange: Option<Exchange>,
    /// When its body had been read.
    read_at: Instant,
    history: History,
    /// Ids of backends that failed it.
    tried: Vec<u64>,
    /// Ids of backends that had no room for it when it came.
    turned_away_by: Vec<u64>,
    /// The answer of a backend that failed it, to be passed on where no other does better.
    kept: Option<Kept>,
    /// Time that is not the proxy's own: in line, and at backends.
    away: Duration,
    /// Of that, the time in line; `None` where it never stood there.
    pub in_line: Option<Duration>,
    /// What it has used up of `queue.timeout`: in line, and at backends that had no room.
    waited: Duration,
    /// Its turn in line, where it stood there: also for when its backend fails it.
    turn: Cell<Option<Turn>>,
}

/// An answer, dressed for the client.
struct Kept {
    response: Response<Body>,
    backend: Arc<Backend>,
    why: String,
    /// When it was sent there.
    since_ms: u64,
}

/// Why a journey ends without the answer of a backend.
pub enum Stop {
    Answer(ProxyError),
    /// Every backend that serves the model left the fleet while the request waited.
    Stranded,
}

impl From<ProxyError> for Stop {
    fn from(error: ProxyError) -> Self {
        Self::Answer(error)
    }
}

impl Underway {
    pub fn new(account: &Rc<Account>, exchange: Option<Exchange>) -> Self {
        Self {
            account: Rc::clone(account),
            exchange,
            read_at: Instant::now(),
            history: History::default(),
            tried: Vec::new(),
            turned_away_by: Vec::new(),
            kept: None,
            away: Duration::ZERO,
            in_line: None,
            waited: Duration::ZERO,
            turn: Cell::default(),
        }
    }
}

impl<'a> Journey<'a> {
    pub fn new(
        arrival: &'a Arrival<'a>,
        current: &'a Current,
        served: &'a Served,
        underway: &'a mut Underway,
        body: &request::RequestBody,
    ) -> Self {
        let slots = current.snapshot.config.capacity.cost.slots(body.facts.images, body.length);
        let cost = Cost { slots, tokens: body.facts.tokens() };
        let body_bytes = body.length as u64;
        let decision = Decision {
            request_id: arrival.request_id.to_str().unwrap_or_default().into(),
            started: arrival.started,
            model: Arc::clone(&served.public),
            images: body.facts.images,
            body_bytes,
            cost,
            world: Arc::clone(&current.world),
            picks: SmallVec::new(),
            in_line: None,
            status: 0,
            ended: None,
        };
        let record = RefCell::new(Record::new(decision, &underway.account));
        let sequence = served.demand.requests.fetch_add(1, Relaxed);
        Self { arrival, current, served, underway, sequence, cost, body_bytes, record }
    }

    /// The one loop: slot, attempt, and again where that may be.
    pub async fn run(&mut self, sending: &mut Sending<'_>) -> Result<Response<Body>, Stop> {
        let config = &self.current.snapshot.config;
        loop {
            let (candidate, lease) = match self.slot(sending).await {
                Ok(slot) => slot,
                Err(Stop::Answer(error)) => return self.kept_or(error),
                Err(stranded) => return Err(stranded),
            };
            let chosen = self.served.candidates.get(candidate);
            let Some((chosen, member)) =
                chosen.and_then(|chosen| Some((chosen, self.current.snapshot.fleet.get(chosen.member)?)))
            else {
                return Err(ProxyError::Unreachable.into());
            };
            self.underway.history.attempts += 1;
            self.underway.account.series.replace(Arc::clone(&chosen.series));
            let sent_at = Instant::now();
            let ended = attempt(self.arrival.worker, member, chosen, lease, sending, &config.timeouts).await;
            let took = sent_at.elapsed();
            self.underway.away += took;
            let outcome = ended.as_ref().map_or_else(|ended| ended.cause.counted_as(), |_| AttemptEnd::Answered);
            self.record.get_mut().attempted(chosen.member, outcome.name(), took);
            chosen.series.attempt(outcome);
            match ended {
                Ok(begun) => return Ok(self.respond(begun, chosen)),
                Err(ended) => match self.after(*ended, took, chosen, sending) {
                    Verdict::Elsewhere => {}
                    Verdict::PassOn => return self.kept_or(ProxyError::Unreachable),
                    Verdict::Fail(error) => {
                        let error = self.with_promise(error);
                        return self.kept_or(error);
                    }
                },
            }
        }
    }

    /// Takes note of an attempt that another backend may do better: of the backend, and of what follows.
    fn after(&mut self, ended: Ended, took: Duration, chosen: &Candidate, sending: &mut Sending<'_>) -> Verdict {
        let Ended { cause, why, lease, was_kept, pause, answer } = ended;
        let (rules, queue) = (&self.current.snapshot.config.failover, &self.current.snapshot.config.queue);
        let (backend, since_ms) = (Arc::clone(&lease.backend), lease.since_ms);
        tracing::debug!(id = ?self.arrival.request_id, backend = %backend.name, attempt = self.underway.history.attempts, "attempt ended: {why}");
        match cause {
            Cause::Connect => backend.unreachable(&why, rules.ejection, since_ms),
            // Who waits for it is woken when that is over.
            Cause::Busy => {
                self.underway.waited += took;
                backend.pushed_back(pause);
            }
            Cause::Unanswered | Cause::Invalid | Cause::Timeout | Cause::Unauthorized => {
                backend.failed(&why, rules.ejection, since_ms);
            }
            // Who is to blame is known only when another backend has been asked.
            Cause::ServerError | Cause::NoModel | Cause::Local => {}
        }
        // Only now its slot is free for others: they shall know what happened.
        drop(lease);
        sending.fresh |= was_kept;
        let is_other =
            |other: &&Arc<Backend>| other.id != backend.id && !self.underway.tried.contains(&other.id) && other.is_up();
        let is_last = !self.everybody().iter().any(|other| is_other(&other));
        if cause == Cause::Busy {
            // It is asked again when it is busy no more.
            self.underway.turned_away_by.push(backend.id);
        } else if !(was_kept && is_last) {
            // One that closed a kept connection may be asked again where there is no other.
            self.underway.tried.push(backend.id);
        }
        if let (Cause::ServerError | Cause::NoModel, Some(answer)) = (cause, answer) {
            let response = self.dress(chosen).pass_on(answer);
            self.underway.kept = Some(Kept { response, backend, why, since_ms });
        }
        let may_wait = queue.size > 0 && self.underway.waited < queue.timeout;
        self.underway.history.after(cause, rules, sending.repeatable, may_wait)
    }

    fn dress<'b>(&'b self, candidate: &'b Candidate) -> Dress<'b> {
        let config = &self.current.snapshot.config;
        Dress {
            endpoint: self.arrival.endpoint,
            served: self.served,
            candidate,
            request_id: self.arrival.request_id,
            attempts: self.underway.history.attempts,
            reveal: config.reveal,
            ejection: config.failover.ejection,
        }
    }

    /// The answer goes to the client; the backend that failed it before is to blame.
    fn respond(&mut self, begun: Begun, chosen: &Candidate) -> Response<Body> {
        if let Some(kept) = self.underway.kept.as_ref().filter(|_| begun.answer.status.as_u16() < 400) {
            kept.backend.failed(&kept.why, self.current.snapshot.config.failover.ejection, kept.since_ms);
        }
        if begun.answer.status.as_u16() < 400 {
            begun.lease.began(begun.took, begun.is_stream);
        }
        let first_token = self.arrival.started.elapsed();
        chosen.series.first_token_seconds.observe(first_token);
        if begun.is_stream && begun.answer.status.is_success() {
            chosen.series.time_to_first_token.observe(first_token);
        }
        chosen.series.overhead_seconds.observe(self.underway.read_at.elapsed().saturating_sub(self.underway.away));
        let exchange = self.underway.exchange.take();
        let cut = Rc::clone(&self.arrival.worker.cut);
        self.dress(chosen).relay(begun, Rc::clone(&self.underway.account), exchange, cut)
    }

    /// The answer of a backend that failed, where there is one; else the error.
    fn kept_or(&mut self, error: ProxyError) -> Result<Response<Body>, Stop> {
        let account = &self.underway.account;
        let Some(Kept { mut response, .. }) = self.underway.kept.take() else {
            account.status.set(error.status().as_u16());
            account.outcome.set("refused");
            return Err(error.into());
        };
        account.status.set(response.status().as_u16());
        account.outcome.set("answered");
        if let Some(attempts) = response.headers_mut().get_mut(headers::X_ATTEMPTS) {
            *attempts = self.underway.history.attempts.into();
        }
        Ok(response)
    }
}
