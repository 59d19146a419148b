//! A request on its way through the fleet: slot, attempt, and again where that may be.
//!
//! The only loop on the request path, bounded by `failover.attempts` and `queue.timeout`.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::Response;
use tokio::time::{Instant, timeout_at};

use super::attempt::{Begun, Ended, Sending, attempt};
use super::client::Exchange;
use super::decisions::{Decision, Record};
use super::pick::{Asking, Picked, freed_per_second};
use super::proxy::Arrival;
use super::respond::Dress;
use super::response::{Account, Body};
use super::retry::{Cause, History, Verdict};
use super::route::{Endpoint, Work};
use super::worker::{Candidate, Current, Served, Tier};
use super::{headers, request};
use crate::error::ProxyError;
use crate::fleet::{Backend, Lease, Refused, Wish};
use crate::metrics::AttemptEnd;
use crate::plugin::{self, Traits};

/// A request on its way through the fleet of one snapshot.
pub struct Journey<'a> {
    arrival: &'a Arrival<'a>,
    current: &'a Current,
    served: &'a Served,
    underway: &'a mut Underway,
    /// Its number among the requests for this model: a second attempt does not disturb the turns of others.
    sequence: u64,
    /// Slots that it takes.
    cost: u32,
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
    /// The answer of a backend that failed it, to be passed on where no other does better.
    kept: Option<Kept>,
    /// Time that is not the proxy's own: in line, and at backends.
    away: Duration,
    /// Of that, the time in line; `None` where it never stood there.
    pub in_line: Option<Duration>,
}

/// An answer, dressed for the client.
struct Kept {
    response: Response<Body>,
    backend: Arc<Backend>,
    why: String,
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
            kept: None,
            away: Duration::ZERO,
            in_line: None,
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
        let cost = current.snapshot.config.capacity.cost.slots(body.facts.images, body.length);
        let decision = Decision {
            request_id: arrival.request_id.clone(),
            started: arrival.started,
            model: Arc::clone(&served.public),
            images: body.facts.images,
            body_bytes: body.length as u64,
            cost,
            world: Arc::clone(&current.world),
            picks: Vec::new(),
            in_line: None,
            status: 0,
            ended: None,
        };
        let record = RefCell::new(Record::new(decision, &underway.account));
        let sequence = served.demand.requests.fetch_add(1, Relaxed);
        Self { arrival, current, served, underway, sequence, cost, record }
    }

    /// The one loop: slot, attempt, and again where that may be.
    pub async fn run(mut self, sending: &mut Sending<'_>) -> Result<Response<Body>, Stop> {
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
            match ended {
                Ok(begun) => return Ok(self.respond(begun, chosen)),
                Err(ended) => match self.after(*ended, chosen, sending) {
                    Verdict::Elsewhere => {}
                    Verdict::PassOn => return self.kept_or(ProxyError::Unreachable),
                    Verdict::Fail(error) => return self.kept_or(error),
                },
            }
        }
    }

    /// A slot at one of the candidates, waited for where all are busy.
    async fn slot(&mut self, sending: &Sending<'_>) -> Result<(usize, Lease), Stop> {
        let at = self.first_tier();
        let Some(tier) = self.served.tiers.get(at) else { return Err(self.nobody().into()) };
        let asking = self.asking(sending, tier);
        let holding = match asking.pick() {
            Picked::Slot { candidate, lease } => return Ok((candidate, lease)),
            Picked::Nobody if self.underway.history.has_failed() => return Err(self.underway.history.error().into()),
            Picked::Nobody => return Err(self.nobody().into()),
            Picked::Reject(status) => return Err(ProxyError::Rejected(status).into()),
            Picked::Hold => true,
            Picked::AllBusy => false,
        };
        let waiting_since = Instant::now();
        let tenant = self.arrival.worker.shared.tenant(&sending.headers);
        let got = self.wait(asking, at, holding, tenant).await;
        let waited = waiting_since.elapsed();
        self.underway.away += waited;
        let in_line = self.underway.in_line.get_or_insert_default();
        *in_line += waited;
        self.record.get_mut().decision.in_line = Some(*in_line);
        got
    }

    /// The first tier in which anybody is up that has not failed this request.
    fn first_tier(&self) -> usize {
        let is_up = |backend: &Arc<Backend>| backend.is_up() && !self.underway.tried.contains(&backend.id);
        let tiers = &self.served.tiers;
        tiers.iter().position(|tier| tier.backends.iter().any(is_up)).unwrap_or(tiers.len().saturating_sub(1))
    }

    /// Waits in line until a slot comes that the policy accepts. Who waits for long may go to the next tier.
    async fn wait<'b>(
        &'b self,
        mut asking: Asking<'b>,
        mut tier: usize,
        mut holding: bool,
        tenant: u64,
    ) -> Result<(usize, Lease), Stop> {
        let (queue, limits) = (&self.arrival.worker.shared.queue, &self.current.snapshot.config.queue);
        let since = Instant::now();
        let (deadline, mut spill) = (since + limits.timeout, since + limits.spill_after);
        let mut turn = None;
        loop {
            let wish = self.wish(asking.tier, tenant);
            let place = queue.enter(turn, wish).map_err(|Refused| self.saturated(&asking, Duration::ZERO));
            let mut place = place?;
            turn = Some(place.turn);
            // A policy that would rather wait is asked at the next event, not about the slot that it just refused.
            if !holding {
                queue.look(wish);
            }
            let next_tier = self.served.tiers.get(tier + 1).filter(|_| spill < deadline);
            let picked = match timeout_at(next_tier.map_or(deadline, |_| spill), place.turn()).await {
                Ok(lease) => asking.accept(lease.ok_or(Stop::Stranded)?, place.turn),
                Err(_) if let Some(next_tier) = next_tier => {
                    (tier, spill) = (tier + 1, spill + limits.spill_after);
                    asking.tier = next_tier;
                    asking.pick()
                }
                Err(_) => return Err(self.waited_in_vain(&asking, since.elapsed()).into()),
            };
            holding = match picked {
                Picked::Slot { candidate, lease } => return Ok((candidate, lease)),
                Picked::Reject(status) => return Err(ProxyError::Rejected(status).into()),
                Picked::Hold => true,
                Picked::AllBusy | Picked::Nobody => false,
            };
        }
    }

    fn wish<'b>(&'b self, tier: &'b Tier, tenant: u64) -> Wish<'b> {
        Wish {
            wants: &tier.backends,
            not: &self.underway.tried,
            tenant,
            cost: self.cost,
            bytes: self.record.borrow().decision.body_bytes,
        }
    }

    fn nobody(&self) -> ProxyError {
        ProxyError::NoBackendAvailable { model: self.served.public.to_string() }
    }

    fn waited_in_vain(&self, asking: &Asking<'_>, waited: Duration) -> ProxyError {
        if asking.is_anyone_up() { self.saturated(asking, waited) } else { self.nobody() }
    }

    /// Full: the client is told when a slot may be expected, by the rate at which slots are freed. Who `waited` in vain
    /// has seen that it takes longer than thought.
    fn saturated(&self, asking: &Asking<'_>, waited: Duration) -> ProxyError {
        let waiting = self.arrival.worker.shared.queue.waiting();
        let promised = self.served.demand.promise(freed_per_second(asking.backends()), waiting, fastrand::f64());
        ProxyError::Saturated { retry_after: promised.max(waited / 4) }
    }

    fn asking<'b>(&'b self, sending: &Sending<'_>, tier: &'b Tier) -> Asking<'b> {
        let facts = &sending.body.facts;
        let (arrival, attempt) = (self.arrival, self.underway.history.attempts);
        let request = plugin::Request {
            affinity: facts.affinity,
            prefix: facts.prefix,
            model: self.served.model,
            body_kib: u32::try_from(sending.body.length.div_ceil(1024)).unwrap_or(u32::MAX),
            images: facts.images,
            attempt,
            traits: traits(arrival.endpoint, facts, attempt > 0),
            sequence: self.sequence,
            // Of the moment of each pick.
            random: 0,
            now_ms: 0,
        };
        Asking {
            worker: arrival.worker,
            current: self.current,
            served: self.served,
            tier,
            tried: &self.underway.tried,
            // Whoever came before and waits for one of these backends goes first.
            reserved: arrival.worker.shared.queue.wanted(tier.backends.iter()),
            repeatable: sending.repeatable,
            cost: self.cost,
            request,
            record: &self.record,
        }
    }

    /// Takes note of an attempt that another backend may do better: of the backend, and of what follows.
    fn after(&mut self, ended: Ended, chosen: &Candidate, sending: &mut Sending<'_>) -> Verdict {
        let Ended { cause, why, lease, was_kept, pause, answer } = ended;
        let rules = &self.current.snapshot.config.failover;
        let backend = Arc::clone(&lease.backend);
        tracing::debug!(id = ?self.arrival.request_id, backend = %backend.name, attempt = self.underway.history.attempts, "attempt ended: {why}");
        chosen.series.attempt(cause.counted_as());
        match cause {
            Cause::Connect => {
                backend.went_down(&why);
                backend.poll_now.notify_one();
            }
            Cause::Busy => self.leave_alone(&backend, pause),
            Cause::Unanswered | Cause::Invalid | Cause::Timeout => backend.failed(&why, rules.eject_after),
            // Who is to blame is known only when another backend has been asked; and a connection that was
            // closed for its age is nobody's fault.
            Cause::ServerError | Cause::Stale | Cause::Local => {}
        }
        // Only now its slot is free for others: they shall know what happened.
        drop(lease);
        sending.fresh |= was_kept;
        let is_other =
            |other: &&Arc<Backend>| other.id != backend.id && !self.underway.tried.contains(&other.id) && other.is_up();
        let is_last = !self.served.tiers.iter().any(|tier| tier.backends.iter().any(|other| is_other(&other)));
        // One that is busy, or closed a kept connection, may be asked again where there is no other.
        if !((cause == Cause::Busy || was_kept) && is_last) {
            self.underway.tried.push(backend.id);
        }
        if let (Cause::ServerError, Some(answer)) = (cause, answer) {
            let response = self.dress(chosen).pass_on(answer);
            self.underway.kept = Some(Kept { response, backend, why });
        }
        self.underway.history.after(cause, rules, sending.repeatable)
    }

    /// A backend that says it is busy gets nothing more for a while; then whoever waits for it is woken.
    fn leave_alone(&self, backend: &Arc<Backend>, pause: Duration) {
        backend.pushed_back(pause);
        let backend = Arc::clone(backend);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            backend.wake();
        });
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
            eject_after: config.failover.eject_after,
        }
    }

    /// The answer goes to the client; the backend that failed it before is to blame.
    fn respond(self, begun: Begun, chosen: &Candidate) -> Response<Body> {
        if let Some(kept) = self.underway.kept.as_ref().filter(|_| begun.answer.status.as_u16() < 400) {
            kept.backend.failed(&kept.why, self.current.snapshot.config.failover.eject_after);
        }
        begun.lease.backend.began(begun.took, begun.is_stream);
        chosen.series.attempt(AttemptEnd::Answered);
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
    fn kept_or(self, error: ProxyError) -> Result<Response<Body>, Stop> {
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

/// What kind of request it is, for the policy.
fn traits(endpoint: &Endpoint, facts: &request::Facts, is_retry: bool) -> Traits {
    let mut traits = Traits::empty();
    traits.set(Traits::STREAMING, facts.stream.unwrap_or(endpoint.streams_by_default));
    traits.set(Traits::VISION, facts.images > 0 || endpoint.work == Work::Vision);
    traits.set(Traits::EMBEDDING, endpoint.work == Work::Embedding);
    traits.set(Traits::AUDIO, endpoint.work == Work::Audio);
    traits.set(Traits::RETRY, is_retry);
    traits
}
