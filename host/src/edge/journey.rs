//! A request on its way through the fleet: slot, attempt, and again where that may be.
//!
//! The only loop on the request path, bounded by `failover.attempts` and `queue.timeout`.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::Response;
use tokio::time::{Instant, timeout_at};

use super::answer;
use super::attempt::{Begun, Ended, Sending, attempt};
use super::client::Exchange;
use super::pick::{Asking, Picked};
use super::proxy::Arrival;
use super::request;
use super::respond::Dress;
use super::response::{Account, Body};
use super::retry::{Cause, History, Verdict};
use super::route::{Endpoint, Work};
use super::worker::{Current, Served};
use crate::error::ProxyError;
use crate::fleet::{Backend, Lease, Place, Refused};
use crate::metrics::AttemptEnd;
use crate::plugin::{self, Traits};

/// A request on its way through the fleet.
pub struct Journey<'a> {
    arrival: &'a Arrival<'a>,
    current: &'a Current,
    served: &'a Served,
    account: &'a Rc<Account>,
    exchange: &'a mut Option<Exchange>,
    /// Its number among the requests for this model: a second attempt does not disturb the turns of others.
    sequence: u64,
    history: History,
    /// Ids of backends that failed it.
    tried: Vec<u64>,
    /// The answer of a backend that failed it, to be passed on where no other does better.
    kept: Option<Kept>,
    read_at: Instant,
    /// Time that is not the proxy's own: in line, and at backends.
    away: Duration,
}

struct Kept {
    response: Response<Body>,
    candidate: usize,
    backend: Arc<Backend>,
    why: String,
}

/// Why a journey ends without the answer of a backend.
pub enum Stop {
    Answer(ProxyError),
    /// Every backend that serves the model left the fleet while the request waited; nothing was sent to them.
    Stranded,
}

impl From<ProxyError> for Stop {
    fn from(error: ProxyError) -> Self {
        Self::Answer(error)
    }
}

impl<'a> Journey<'a> {
    pub fn new(
        arrival: &'a Arrival<'a>,
        current: &'a Current,
        served: &'a Served,
        account: &'a Rc<Account>,
        exchange: &'a mut Option<Exchange>,
        read_at: Instant,
    ) -> Self {
        let sequence = served.sequence.fetch_add(1, Relaxed);
        let (history, tried, kept, away) = (History::default(), Vec::new(), None, Duration::ZERO);
        Self { arrival, current, served, account, exchange, sequence, history, tried, kept, read_at, away }
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
            let Some((chosen, member)) = self
                .served
                .candidates
                .get(candidate)
                .and_then(|chosen| Some((chosen, self.current.snapshot.fleet.get(chosen.member)?)))
            else {
                return Err(ProxyError::Unreachable.into());
            };
            self.history.attempts += 1;
            self.account.series.replace(Arc::clone(&chosen.series));
            let sent_at = Instant::now();
            let ended = attempt(self.arrival.worker, member, chosen, lease, sending, &config.timeouts).await;
            self.away += sent_at.elapsed();
            match ended {
                Ok(begun) => return Ok(self.respond(begun, candidate)),
                Err(ended) => match self.after(*ended, candidate, sending) {
                    Verdict::Elsewhere => {}
                    Verdict::PassOn => return self.kept_or(ProxyError::Unreachable),
                    Verdict::Fail(error) => return self.kept_or(error),
                },
            }
        }
    }

    /// A slot at one of the candidates, waited for where all are busy.
    async fn slot(&mut self, sending: &Sending<'_>) -> Result<(usize, Lease), Stop> {
        let asking = self.asking(sending);
        let holding = match asking.pick() {
            Picked::Slot { candidate, lease } => return Ok((candidate, lease)),
            Picked::Nobody if self.history.has_failed() => return Err(self.history.error().into()),
            Picked::Nobody => return Err(self.nobody().into()),
            Picked::Reject(status) => return Err(ProxyError::Rejected(status).into()),
            Picked::Hold => true,
            Picked::AllBusy => false,
        };
        let waiting_since = Instant::now();
        let got = self.wait(&asking, holding).await;
        self.away += waiting_since.elapsed();
        got
    }

    /// Waits in line until a slot comes that the policy accepts.
    async fn wait(&self, asking: &Asking<'_>, mut holding: bool) -> Result<(usize, Lease), Stop> {
        let since = Instant::now();
        let deadline = since + self.current.snapshot.config.queue.timeout;
        let mut ticket = None;
        loop {
            let standing = self.stand_in_line(asking, ticket, holding);
            let mut place = standing.map_err(|Refused| self.saturated(asking, Duration::ZERO))?;
            ticket = Some(place.ticket);
            let turn = timeout_at(deadline, place.turn()).await;
            self.served.series.queue_seconds.observe(since.elapsed());
            let lease = turn.map_err(|_| self.waited_in_vain(asking, since.elapsed()))?.ok_or(Stop::Stranded)?;
            match asking.accept(lease, place.ticket) {
                Picked::Slot { candidate, lease } => return Ok((candidate, lease)),
                Picked::Reject(status) => return Err(ProxyError::Rejected(status).into()),
                Picked::Hold => holding = true,
                Picked::AllBusy | Picked::Nobody => holding = false,
            }
        }
    }

    fn stand_in_line(&self, asking: &Asking<'_>, ticket: Option<u64>, holding: bool) -> Result<Place, Refused> {
        let queue = &self.arrival.worker.shared.queue;
        match ticket {
            Some(ticket) => queue.enter_again(ticket, &self.served.backends, &self.tried),
            // A policy that would rather wait is asked at the next event, not about the slot it just refused.
            None if holding => queue.enter(&self.served.backends, &self.tried, std::iter::empty()),
            None => queue.enter(&self.served.backends, &self.tried, asking.backends()),
        }
    }

    fn nobody(&self) -> ProxyError {
        ProxyError::NoBackendAvailable { model: self.served.public.to_string() }
    }

    fn waited_in_vain(&self, asking: &Asking<'_>, waited: Duration) -> ProxyError {
        if asking.is_anyone_up() { self.saturated(asking, waited) } else { self.nobody() }
    }

    /// Full: the client is told when a slot may be expected, by the rate at which slots have been freed. Who `waited`
    /// in vain has seen that it takes longer than thought.
    fn saturated(&self, asking: &Asking<'_>, waited: Duration) -> ProxyError {
        let ahead = self.arrival.worker.shared.queue.waiting();
        let expected = super::pick::expected_wait(asking.backends(), ahead, fastrand::f64());
        ProxyError::Saturated { retry_after: expected.max(waited / 4) }
    }

    fn asking<'b>(&'b self, sending: &Sending<'_>) -> Asking<'b> {
        let facts = &sending.body.facts;
        let arrival = self.arrival;
        let request = plugin::Request {
            affinity: facts.affinity,
            prefix: facts.prefix,
            model: self.served.model,
            body_kib: u32::try_from(sending.body.length.div_ceil(1024)).unwrap_or(u32::MAX),
            images: facts.images,
            attempt: self.history.attempts,
            traits: traits(arrival.endpoint, facts, self.history.attempts > 0),
            sequence: self.sequence,
            // Of the moment of each pick.
            random: 0,
            now_ms: 0,
        };
        Asking {
            worker: arrival.worker,
            current: self.current,
            served: self.served,
            tried: &self.tried,
            // Whoever came before and waits for one of these backends goes first.
            reserved: arrival.worker.shared.queue.wanted(self.served.backends.iter()),
            repeatable: sending.repeatable,
            request,
        }
    }

    /// Takes note of an attempt that another backend may do better: of the backend, and of what follows.
    fn after(&mut self, ended: Ended, candidate: usize, sending: &mut Sending<'_>) -> Verdict {
        let Ended { cause, why, lease, pause, answer } = ended;
        let rules = &self.current.snapshot.config.failover;
        let backend = Arc::clone(&lease.backend);
        tracing::debug!(id = ?self.arrival.request_id, backend = %backend.name, attempt = self.history.attempts, "attempt ended: {why}");
        if let Some(chosen) = self.served.candidates.get(candidate) {
            chosen.series.attempt(cause.counted_as());
        }
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
        sending.fresh |= cause == Cause::Stale;
        let is_other =
            |other: &&Arc<Backend>| other.id != backend.id && !self.tried.contains(&other.id) && other.is_up();
        let is_last = !self.served.backends.iter().any(|other| is_other(&other));
        // One that is busy, or closed a connection for its age, may be asked again where there is no other.
        if !(matches!(cause, Cause::Busy | Cause::Stale) && is_last) {
            self.tried.push(backend.id);
        }
        if let (Cause::ServerError, Some(response)) = (cause, answer) {
            self.kept = Some(Kept { response, candidate, backend, why });
        }
        self.history.after(cause, rules, sending.repeatable)
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

    fn dress<'b>(&'b self, candidate: &'b super::worker::Candidate) -> Dress<'b> {
        let config = &self.current.snapshot.config;
        Dress {
            endpoint: self.arrival.endpoint,
            served: self.served,
            candidate,
            request_id: self.arrival.request_id,
            attempts: self.history.attempts,
            reveal: config.reveal,
            eject_after: config.failover.eject_after,
        }
    }

    /// The answer goes to the client; the backend that failed it before is to blame.
    fn respond(self, begun: Begun, candidate: usize) -> Response<Body> {
        let Some(chosen) = self.served.candidates.get(candidate) else {
            return answer::error(&ProxyError::Unreachable, self.arrival.endpoint.dialect);
        };
        if let Some(kept) = self.kept.as_ref().filter(|_| begun.answer.status.as_u16() < 400) {
            kept.backend.failed(&kept.why, self.current.snapshot.config.failover.eject_after);
        }
        begun.lease.backend.began(begun.took, begun.is_stream);
        chosen.series.attempt(AttemptEnd::Answered);
        chosen.series.first_token_seconds.observe(self.arrival.started.elapsed());
        chosen.series.overhead_seconds.observe(self.read_at.elapsed().saturating_sub(self.away));
        let exchange = self.exchange.take();
        self.dress(chosen).relay(begun, Rc::clone(self.account), exchange)
    }

    /// The answer of a backend that failed, where there is one; else the error.
    fn kept_or(mut self, error: ProxyError) -> Result<Response<Body>, Stop> {
        let Some(kept) = self.kept.take() else { return Err(error.into()) };
        let Some(chosen) = self.served.candidates.get(kept.candidate) else { return Err(error.into()) };
        self.account.status.set(kept.response.status().as_u16());
        Ok(self.dress(chosen).pass_on(kept.response))
    }
}

/// What kind of request it is, for the policy.
fn traits(endpoint: &Endpoint, facts: &request::Facts, is_retry: bool) -> Traits {
    let mut traits = Traits::empty();
    traits.set(Traits::STREAMING, facts.stream || endpoint.streams_by_default);
    traits.set(Traits::VISION, facts.images > 0 || endpoint.work == Work::Vision);
    traits.set(Traits::EMBEDDING, endpoint.work == Work::Embedding);
    traits.set(Traits::AUDIO, endpoint.work == Work::Audio);
    traits.set(Traits::RETRY, is_retry);
    traits
}
