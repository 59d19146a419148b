//! One request, from its head to its answer: read this first.
//!
//! The straight line: snapshot · route · read the body, find the model · candidates · \[ queue · pick · lease ·
//! send \]* · respond. The only loop is the one over attempts, and it is bounded; every `?` ends in `serve`,
//! where the error becomes an answer.
//!
//! Invariants: a request is sent again only as `retry` allows; every hold (slot, place in line, bytes,
//! connection) is a value that gives itself back, so that dropping this future at any await cancels all.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Response, Version};
use hyper::body::{Body as _, Incoming};
use tokio::time::Instant;

use super::access::Key;
use super::attempt::Sending;
use super::client::ClientStream;
use super::forwarded::{self, Peer};
use super::journey::{Journey, Stop, Underway};
use super::request::{self, RequestBody};
use super::response::{Account, Body};
use super::route::{self, Endpoint, Target};
use super::worker::{Current, Worker};
use super::{answer, head, headers, respond};
use crate::error::ProxyError;

/// Who asks.
#[derive(Debug)]
pub struct Client {
    pub peer: Peer,
    /// `None` over HTTP/2, which reads on while requests are handled.
    pub watched: Option<ClientStream>,
}

/// Answers a request: from a backend, or in the proxy's own name.
pub async fn serve(
    worker: Rc<Worker>,
    client: Rc<Client>,
    (mut parts, mut incoming): (Parts, Incoming),
) -> Result<Response<Body>, Infallible> {
    let started = Instant::now();
    let _unanswered = client.watched.as_ref().map(|stream| stream.unanswered(!incoming.is_end_stream()));
    let current = worker.current();
    let request_id = headers::request_id(&parts.headers);
    let dialect = route::dialect(parts.uri.path());
    let is_head = parts.method == Method::HEAD;
    let answered = match admit(&current, &parts) {
        Ok((key, Target::Forward(endpoint))) => {
            let arrival = Arrival {
                key,
                worker: &worker,
                current: &current,
                client: &client,
                endpoint,
                request_id: &request_id,
                started,
            };
            arrival.forward(&mut parts, &mut incoming).await
        }
        Ok((_, target)) => answer::own(&target, &current.snapshot),
        Err(refused) => Err(refused),
    };
    let mut response = answered.unwrap_or_else(|error| {
        tracing::debug!(id = ?request_id, code = error.code(), "answered in the proxy's own name");
        answer::error(&error, dialect)
    });
    response.headers_mut().insert(headers::X_REQUEST_ID, request_id);
    // Of HTTP/1 alone: over HTTP/2 a GOAWAY says it, and a body that is not read is in nobody's way.
    if let Some(stream) = &client.watched
        && (!is_body_over(stream, &parts.headers, &mut incoming).await || worker.shared.draining.load(Relaxed))
    {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if is_head {
        respond::without_body(&mut response);
    }
    Ok(response)
}

/// Whether another request can follow on the connection: not behind a body that nobody read, which must be said, or the next
/// one is written to a connection that is about to close (RFC 9112 §9.6).
async fn is_body_over(stream: &ClientStream, headers: &HeaderMap, incoming: &mut Incoming) -> bool {
    if !stream.is_body_unread() {
        return true;
    }
    // Who asks before it sends the body is to be told no without sending it.
    let is_over = !headers.contains_key(header::EXPECT) && request::discard(incoming).await;
    if is_over {
        stream.has_read_body();
    }
    is_over
}

/// What a request is for, and whose key it brings. Without one it learns only that somebody is here, as load balancers
/// must.
fn admit<'a>(current: &Current, parts: &'a Parts) -> Result<(Option<Arc<Key>>, Target<'a>), ProxyError> {
    head::check(parts)?;
    let target = route::target(&parts.method, parts.uri.path());
    let key = if target == Ok(Target::Hello) { None } else { current.snapshot.keys.owner(&parts.headers)? };
    Ok((key, target?))
}

/// A request for a backend, as it arrived.
pub struct Arrival<'a> {
    /// Whose request it is; `None` where nobody has to say.
    key: Option<Arc<Key>>,
    pub worker: &'a Rc<Worker>,
    current: &'a Rc<Current>,
    client: &'a Client,
    pub endpoint: &'static Endpoint,
    pub request_id: &'a HeaderValue,
    pub started: Instant,
}

impl Arrival<'_> {
    /// Who asks: by the key it proved to have, else by the one it goes to a backend with.
    pub fn tenant(&self, headers: &HeaderMap) -> u64 {
        self.key.as_ref().map_or_else(|| self.worker.shared.tenant(headers), |key| key.tenant())
    }

    async fn forward(&self, parts: &mut Parts, incoming: &mut Incoming) -> Result<Response<Body>, ProxyError> {
        // Counted as soon as it is known whose it is; until then under no model.
        let account = Account::new(&self.worker.unplaced, &self.worker.decisions, self.started);
        let answered = self.route(parts, incoming, &account).await;
        if let Err(error) = &answered {
            account.status.set(error.status().as_u16());
        }
        answered
    }

    async fn route(
        &self,
        parts: &mut Parts,
        incoming: &mut Incoming,
        account: &Rc<Account>,
    ) -> Result<Response<Body>, ProxyError> {
        let config = Arc::clone(&self.current.snapshot.config);
        let announced = request::announced(incoming, &config.limits)?;
        let permit = self.key.as_ref().map(|key| key.admit(announced)).transpose()?;
        let body = request::read(&parts.headers, incoming, &config, &self.worker.shared, permit.as_ref()).await?;
        account.permit.replace(permit);
        self.client.watched.as_ref().inspect(|stream| stream.has_read_body());
        // From here on the client is watched: its leaving drops this future, and all that it holds.
        let ends_with_close = parts.version == Version::HTTP_10;
        let exchange = self.client.watched.as_ref().map(|stream| stream.exchange(ends_with_close));
        let mut underway = Underway::new(account, exchange);
        let (host, peer) = (forwarded::host(parts), &self.client.peer);
        headers::to_backend(&mut parts.headers, parts.version, self.request_id);
        forwarded::tell(&mut parts.headers, peer, host, peer.is_trusted(&config.trusted_proxies));
        let repeatable = !body.facts.background;
        if self.key.is_some() {
            // They were for us.
            headers::take_credentials(&mut parts.headers);
            parts.headers.remove(header::COOKIE);
        }
        let mut sending = Sending {
            method: &parts.method,
            target: parts.uri.path_and_query().map_or("/", |target| target.as_str()),
            headers: std::mem::take(&mut parts.headers),
            body: &body,
            repeatable,
            may_repeat: repeatable && config.failover.retry_unanswered,
            fresh: false,
        };
        let mut current = Rc::clone(self.current);
        let ended = loop {
            let served = self.worker.served(&current, &body.facts.model, self.endpoint.dialect, body.facts.images > 0);
            let Some(served) = served else { break Err(not_served(&current, &body)) };
            account.series.replace(Arc::clone(&served.series));
            let mut journey = Journey::new(self, &current, &served, &mut underway, &body);
            match journey.run(&mut sending).await {
                Ok(response) => break Ok(response),
                Err(Stop::Answer(error)) => break Err(error),
                // All that served it left the fleet while it waited: others may have come.
                Err(Stop::Stranded) => current = self.worker.current(),
            }
        };
        if let Some(in_line) = underway.in_line {
            account.series.borrow().queue_seconds.observe(in_line);
        }
        ended
    }
}

fn not_served(current: &Current, body: &RequestBody) -> ProxyError {
    let model = body.facts.model.clone();
    // Before the first poll nobody can say what a backend serves.
    if current.snapshot.fleet.iter().any(|member| member.backend.is_unknown()) {
        return ProxyError::NoBackendAvailable { model };
    }
    answer::model_not_found(&current.snapshot, model)
}
