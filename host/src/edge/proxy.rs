//! One request, from its head to its answer: read this first.
//!
//! The straight line: snapshot · route · read the body, find the model · candidates · \[ queue · pick · lease ·
//! send \]* · respond. The only loop is the one over attempts, and it is bounded; every `?` ends in `serve`,
//! where the error becomes an answer.
//!
//! Invariants: a request is sent again only as `retry` allows; every hold (slot, place in line, bytes,
//! connection) is a value that gives itself back, so that dropping this future at any await cancels all.

use std::convert::Infallible;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use super::attempt::{Begun, Ended, Sending, attempt};
use super::client::{ClientStream, Exchange};
use super::pick::{Asking, Picked};
use super::request::{self, RequestBody};
use super::respond::{self, Dress};
use super::response::{Account, Body};
use super::retry::{Cause, History, Verdict};
use super::route::{self, Dialect, Endpoint, Target, Unrouted, Work};
use super::worker::{Current, Served, Worker};
use super::{answer, headers};
use crate::error::ProxyError;
use crate::fleet::{Backend, Lease, Place, Refused};
use crate::metrics::AttemptEnd;
use crate::plugin::{self, Traits};

/// Who asks.
#[derive(Debug)]
pub struct Client {
    pub address: IpAddr,
    /// `None` over HTTP/2, which reads on while requests are handled.
    pub watched: Option<ClientStream>,
}

/// Answers a request: from a backend, or in the proxy's own name.
pub async fn serve(
    worker: Rc<Worker>,
    client: Rc<Client>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let started = Instant::now();
    let current = worker.current();
    let request_id = headers::request_id(request.headers());
    let (parts, incoming) = request.into_parts();
    let path = parts.uri.path();
    let dialect = route::dialect(path);
    let is_head = parts.method == Method::HEAD;
    let answered = match (headers::ambiguity(&parts), route::target(&parts.method, path)) {
        (Some(why), _) => Err(ProxyError::BadRequest(why)),
        (None, Ok(Target::Forward(endpoint))) => {
            let arrival = Arrival {
                worker: &worker,
                current: &current,
                client: &client,
                endpoint,
                request_id: &request_id,
                started,
            };
            arrival.forward(parts, incoming).await
        }
        (None, Ok(target)) => answer::own(&target, &current.snapshot),
        (None, Err(unrouted)) => Ok(unrouted_answer(unrouted, dialect)),
    };
    let mut response = answered.unwrap_or_else(|error| {
        tracing::debug!(id = ?request_id, code = error.code(), "answered in the proxy's own name");
        answer::error(&error, dialect)
    });
    response.headers_mut().insert(headers::X_REQUEST_ID, request_id);
    if is_head {
        respond::without_body(&mut response);
    }
    Ok(response)
}

fn unrouted_answer(unrouted: Unrouted, dialect: Dialect) -> Response<Body> {
    match unrouted {
        Unrouted::UnknownPath => answer::error(&ProxyError::UnknownPath, dialect),
        Unrouted::WrongMethod(allowed) => {
            let mut response = answer::error(&ProxyError::MethodNotAllowed, dialect);
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
            response
        }
    }
}

/// A request for a backend, as it arrived.
struct Arrival<'a> {
    worker: &'a Rc<Worker>,
    current: &'a Rc<Current>,
    client: &'a Client,
    endpoint: &'static Endpoint,
    request_id: &'a HeaderValue,
    started: Instant,
}

impl Arrival<'_> {
    async fn forward(&self, mut parts: Parts, incoming: Incoming) -> Result<Response<Body>, ProxyError> {
        // Counted as soon as it is known whose it is; until then under no model.
        let account = Account::new(&self.worker.unplaced, self.started);
        let answered = self.route(&mut parts, incoming, &account).await;
        if let Err(error) = &answered {
            account.status.set(error.status().as_u16());
        }
        answered
    }

    async fn route(
        &self,
        parts: &mut Parts,
        incoming: Incoming,
        account: &Rc<Account>,
    ) -> Result<Response<Body>, ProxyError> {
        let config = &self.current.snapshot.config;
        let body = request::read(&parts.headers, incoming, config.limits.body_bytes, &self.worker.shared).await?;
        let read_at = Instant::now();
        // From here on the client is watched: its leaving drops this future, and all that it holds.
        let exchange = self.client.watched.as_ref().map(ClientStream::exchange);
        let served = self.worker.served(self.current, &body.facts.model).ok_or_else(|| self.not_served(&body))?;
        account.series.replace(Arc::clone(&served.series));
        let host = parts.headers.get(header::HOST).cloned();
        headers::to_backend(&mut parts.headers, self.client.address, host, self.request_id);
        let sending = Sending {
            method: &parts.method,
            target: parts.uri.path_and_query().map_or("/", |target| target.as_str()),
            headers: std::mem::take(&mut parts.headers),
            body: &body,
            repeatable: !body.facts.background,
            fresh: false,
        };
        let journey = Journey {
            arrival: self,
            served: &served,
            account,
            exchange,
            sequence: served.sequence.fetch_add(1, Relaxed),
            history: History::default(),
            tried: Vec::new(),
            kept: None,
            read_at,
            away: Duration::ZERO,
        };
        journey.run(sending).await
    }

    fn not_served(&self, body: &RequestBody) -> ProxyError {
        let model = body.facts.model.clone();
        // Before the first poll nobody can say what a backend serves.
        if self.current.snapshot.fleet.iter().any(|member| member.backend.is_unknown()) {
            return ProxyError::NoBackendAvailable { model };
        }
        answer::model_not_found(&self.current.snapshot, model)
    }
}

/// A request on its way through the fleet.
struct Journey<'a> {
    arrival: &'a Arrival<'a>,
    served: &'a Served,
    account: &'a Rc<Account>,
    exchange: Option<Exchange>,
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

impl Journey<'_> {
    /// The one loop: slot, attempt, and again where that may be.
    async fn run(mut self, mut sending: Sending<'_>) -> Result<Response<Body>, ProxyError> {
        let config = &self.arrival.current.snapshot.config;
        loop {
            let (candidate, lease) = match self.slot(&sending).await {
                Ok(slot) => slot,
                Err(error) => return self.kept_or(error),
            };
            let Some((chosen, member)) = self
                .served
                .candidates
                .get(candidate)
                .and_then(|chosen| Some((chosen, self.arrival.current.snapshot.fleet.get(chosen.member)?)))
            else {
                return Err(ProxyError::Unreachable);
            };
            self.history.attempts += 1;
            self.account.series.replace(Arc::clone(&chosen.series));
            let sent_at = Instant::now();
            let ended = attempt(self.arrival.worker, member, chosen, lease, &mut sending, &config.timeouts).await;
            self.away += sent_at.elapsed();
            match ended {
                Ok(begun) => return Ok(self.respond(begun, candidate)),
                Err(ended) => match self.after(*ended, candidate, &mut sending) {
                    Verdict::Elsewhere => {}
                    Verdict::PassOn => return self.kept_or(ProxyError::Unreachable),
                    Verdict::Fail(error) => return self.kept_or(error),
                },
            }
        }
    }

    /// A slot at one of the candidates, waited for where all are busy.
    async fn slot(&mut self, sending: &Sending<'_>) -> Result<(usize, Lease), ProxyError> {
        let asking = self.asking(sending);
        let queue = &self.arrival.worker.shared.queue;
        // Whoever came before and waits for one of these backends goes first.
        let picked = if queue.is_before(&self.served.ids) { asking.only_busy() } else { asking.pick() };
        let holding = match picked {
            Picked::Slot { candidate, lease } => return Ok((candidate, lease)),
            Picked::Nobody if self.history.has_failed() => return Err(self.history.error()),
            Picked::Nobody => return Err(ProxyError::NoBackendAvailable { model: self.served.public.to_string() }),
            Picked::Reject(status) => return Err(ProxyError::Rejected(status)),
            Picked::Hold => true,
            Picked::AllBusy => false,
        };
        let waiting_since = Instant::now();
        let got = self.wait(&asking, holding).await;
        self.served.series.queue_seconds.observe(waiting_since.elapsed());
        self.away += waiting_since.elapsed();
        got
    }

    /// Waits in line until a slot comes that the policy accepts.
    async fn wait(&self, asking: &Asking<'_>, mut holding: bool) -> Result<(usize, Lease), ProxyError> {
        let deadline = Instant::now() + self.arrival.current.snapshot.config.queue.timeout;
        let mut ticket = None;
        loop {
            let mut place = self.stand_in_line(asking, ticket, holding).map_err(|Refused| self.saturated(asking))?;
            ticket = Some(place.ticket);
            let lease = timeout_at(deadline, place.turn()).await.map_err(|_| self.waited_in_vain(asking))?;
            match asking.accept(lease) {
                Picked::Slot { candidate, lease } => return Ok((candidate, lease)),
                Picked::Reject(status) => return Err(ProxyError::Rejected(status)),
                Picked::Hold => holding = true,
                Picked::AllBusy | Picked::Nobody => holding = false,
            }
        }
    }

    fn stand_in_line(&self, asking: &Asking<'_>, ticket: Option<u64>, holding: bool) -> Result<Place, Refused> {
        let queue = &self.arrival.worker.shared.queue;
        match ticket {
            Some(ticket) => queue.enter_again(ticket, &self.served.ids, &self.tried),
            // A policy that would rather wait is asked at the next event, not about the slot it just refused.
            None if holding => queue.enter(&self.served.ids, &self.tried, std::iter::empty()),
            None => queue.enter(&self.served.ids, &self.tried, asking.backends()),
        }
    }

    fn waited_in_vain(&self, asking: &Asking<'_>) -> ProxyError {
        if asking.is_anyone_up() {
            self.saturated(asking)
        } else {
            ProxyError::NoBackendAvailable { model: self.served.public.to_string() }
        }
    }

    /// Full: the client is told when a slot may be expected, by the rate at which slots have been freed.
    fn saturated(&self, asking: &Asking<'_>) -> ProxyError {
        let ahead = self.arrival.worker.shared.queue.waiting();
        ProxyError::Saturated { retry_after: super::pick::expected_wait(asking.backends(), ahead, fastrand::f64()) }
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
        Asking { worker: arrival.worker, current: arrival.current, served: self.served, tried: &self.tried, request }
    }

    /// Takes note of an attempt that another backend may do better: of the backend, and of what follows.
    fn after(&mut self, ended: Ended, candidate: usize, sending: &mut Sending<'_>) -> Verdict {
        let Ended { cause, why, lease, pause, answer } = ended;
        let rules = &self.arrival.current.snapshot.config.failover;
        let backend = Arc::clone(&lease.backend);
        drop(lease);
        tracing::debug!(id = ?self.arrival.request_id, backend = %backend.name, attempt = self.history.attempts, "attempt ended: {why}");
        if let Some(chosen) = self.served.candidates.get(candidate) {
            chosen.series.attempt(cause.counted_as());
        }
        match cause {
            Cause::Connect => backend.went_down(&why),
            Cause::Busy => self.leave_alone(&backend, pause),
            Cause::Unanswered | Cause::Invalid | Cause::Timeout => backend.failed(&why, rules.eject_after),
            // Who is to blame is known only when another backend has been asked; and a connection that was
            // closed for its age is nobody's fault.
            Cause::ServerError | Cause::Stale => {}
        }
        sending.fresh |= cause == Cause::Stale;
        let is_last = || !self.asking(sending).backends().any(|other| other.id != backend.id && other.is_up());
        if !(cause == Cause::Busy || (cause == Cause::Stale && is_last())) {
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
        let (queue, backend) = (Arc::clone(&self.arrival.worker.shared.queue), Arc::clone(backend));
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            queue.freed(&backend);
        });
    }

    fn dress<'b>(&'b self, candidate: &'b super::worker::Candidate) -> Dress<'b> {
        let config = &self.arrival.current.snapshot.config;
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
    fn respond(mut self, begun: Begun, candidate: usize) -> Response<Body> {
        let Some(chosen) = self.served.candidates.get(candidate) else {
            return answer::error(&ProxyError::Unreachable, self.arrival.endpoint.dialect);
        };
        if let Some(kept) = &self.kept {
            kept.backend.failed(&kept.why, self.arrival.current.snapshot.config.failover.eject_after);
        }
        begun.lease.backend.answered(begun.took);
        chosen.series.attempt(AttemptEnd::Answered);
        chosen.series.first_token_seconds.observe(self.arrival.started.elapsed());
        chosen.series.overhead_seconds.observe(self.read_at.elapsed().saturating_sub(self.away));
        let exchange = self.exchange.take();
        self.dress(chosen).relay(begun, Rc::clone(self.account), exchange)
    }

    /// The answer of a backend that failed, where there is one; else the error.
    fn kept_or(mut self, error: ProxyError) -> Result<Response<Body>, ProxyError> {
        let Some(kept) = self.kept.take() else { return Err(error) };
        let Some(chosen) = self.served.candidates.get(kept.candidate) else { return Err(error) };
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
