//! One attempt: the request to one backend, up to the first byte of its answer's body.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use memchr::memmem;
use tokio::time::{Instant, timeout, timeout_at};

use super::headers;
use super::request::RequestBody;
use super::response::{Body, first_event_is_error};
use super::retry::{self, Cause};
use super::snapshot::Member;
use super::upstream::{self, Answer, Broken, Failure, Outgoing};
use super::worker::{Candidate, Worker};
use crate::config::Timeouts;
use crate::fleet::{Backend, Lease};

/// A kept connection that ends this soon was closed for its age; later, the request has been read.
const CLOSED_FOR_AGE: Duration = Duration::from_millis(50);
/// No server closes idle connections sooner. One that ends under a request after a shorter rest has not aged: the
/// request or the backend is at fault.
const SHORTEST_KEEP_ALIVE: Duration = Duration::from_millis(500);
/// How often a request that waits for its answer looks whether its backend is still there.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A trial is given up after the longer of this and some times the backend's usual time to the first byte, failures counted
/// in: another backend then does what was asked of it.
const TRIAL_PATIENCE: Duration = Duration::from_secs(5);
const TRIAL_PATIENCE_FACTOR: u32 = 4;
/// An error's body is kept up to this size, to be passed on where the next backend does no better.
const KEPT_ERROR_BYTES: usize = 64 * 1024;
/// An error whose body is larger, or takes longer than this, is passed on without it.
const KEPT_ERROR_TIME: Duration = Duration::from_secs(2);

/// The type of event streams; of any case, as all types are (RFC 9110 §8.3.1).
const EVENT_STREAM: &[u8] = b"text/event-stream";

/// What is sent, whichever backend it goes to.
#[derive(Debug)]
pub struct Sending<'a> {
    pub method: &'a Method,
    pub target: &'a str,
    pub headers: HeaderMap,
    pub body: &'a RequestBody,
    /// Whether a second run changes no state.
    pub repeatable: bool,
    /// Whether it may be sent again once it was sent, by its nature and by configuration.
    pub may_repeat: bool,
    /// Whether kept connections are not to be trusted any more: one has just turned out to be closed.
    pub fresh: bool,
}

/// An answer that has begun: its head, and the first piece of its body.
#[derive(Debug)]
pub struct Begun {
    pub answer: Answer,
    /// `None`: the body is empty.
    pub first: Option<Bytes>,
    pub lease: Lease,
    /// From the first byte sent to the first byte of the body.
    pub took: Duration,
    pub is_stream: bool,
}

/// An attempt that another backend may do better.
#[derive(Debug)]
pub struct Ended {
    pub cause: Cause,
    /// For the log and the admin page; never for a client.
    pub why: String,
    pub lease: Lease,
    /// It went over a kept connection, and that ended: another one may do better.
    pub was_kept: bool,
    /// How long the backend wants to be left alone.
    pub pause: Duration,
    /// The answer it did give.
    pub answer: Option<Response<Body>>,
}

/// Runs one attempt on the backend that the lease is for.
pub async fn attempt(
    worker: &Worker,
    member: &Member,
    candidate: &Candidate,
    lease: Lease,
    sending: &mut Sending<'_>,
    timeouts: &Timeouts,
) -> Result<Begun, Box<Ended>> {
    let clients_own = member.authorization.as_ref().map(|own| {
        let clients_own = headers::take_credentials(&mut sending.headers);
        sending.headers.insert(header::AUTHORIZATION, own.clone());
        clients_own
    });
    let begun = Instant::now();
    let patience = Patience {
        backend: Arc::clone(&lease.backend),
        deadline: begun + time_to_first_byte(&lease, timeouts),
        may_leave: sending.may_repeat,
    };
    lease.backend.attempted();
    let sent = patience.with(pin!(send(worker, member, candidate, sending, timeouts, begun))).await;
    if let Some(clients_own) = clients_own {
        // The key of this backend must not go with the next attempt.
        sending.headers.remove(header::AUTHORIZATION);
        sending.headers.extend(clients_own);
    }
    let mut answer = match sent {
        Ok(Ok(answer)) => answer,
        Ok(Err(failure)) => return Err(Ended::failed(&failure, lease)),
        Err(lost) => return Err(Ended::lost(lost, lease)),
    };
    match answer.status.as_u16() {
        401 | 403 if member.authorization.is_some() => {
            // It was not the client's key, and what it says may quote ours.
            let why = format!("it refused the api_key configured for it ({})", answer.status);
            return Err(Ended::new(Cause::Unauthorized, why, lease));
        }
        429 | 503 | 529 => return Err(Ended::busy(&answer, lease)),
        500 | 502 | 504..=528 | 530..=599 => return Err(Box::pin(Ended::answered(answer, Bytes::new(), lease)).await),
        // No engine does: something else stands there. Where it sends to is nobody's to know, and the client is not to go.
        300..=303 | 305..=399 => {
            return Err(Ended::new(Cause::Invalid, format!("it sends elsewhere ({})", answer.status), lease));
        }
        _ => {}
    }
    let is_stream = is_event_stream(&answer.headers);
    let first = match patience.with(pin!(first_piece(&mut answer, is_stream))).await {
        Ok(Ok(None)) if is_stream => {
            return Err(Ended::new(Cause::Unanswered, "its stream ended before it began".into(), lease));
        }
        Ok(Ok(first)) => first,
        Ok(Err(why)) => return Err(Ended::new(Cause::Unanswered, why, lease)),
        Err(lost) => return Err(Ended::lost(lost, lease)),
    };
    let opening = first.as_deref().unwrap_or_default();
    let is_error = is_stream && first_event_is_error(opening) == Some(true);
    if is_error || lacks_the_model(answer.status, opening, &candidate.native) {
        return Err(Box::pin(Ended::answered(answer, first.unwrap_or_default(), lease)).await);
    }
    Ok(Begun { answer, first, lease, took: begun.elapsed(), is_stream })
}

/// How long the first byte is waited for from the backend that the lease is for.
fn time_to_first_byte(lease: &Lease, timeouts: &Timeouts) -> Duration {
    let usual = Duration::from_micros(lease.backend.first_byte_us().into());
    let trial = TRIAL_PATIENCE.max(usual * TRIAL_PATIENCE_FACTOR);
    if lease.is_trial() { timeouts.first_byte.min(trial) } else { timeouts.first_byte }
}

/// How long the first byte of an answer is waited for.
struct Patience {
    backend: Arc<Backend>,
    deadline: Instant,
    /// Whether the request may go elsewhere before that, where its backend takes no connections any more: an engine that
    /// shuts down may sit on what it has accepted without a word (vLLM with its default time-out).
    may_leave: bool,
}

/// Why an answer is no longer waited for.
enum Lost {
    Late,
    Gone,
}

impl Patience {
    async fn with<T>(&self, mut work: Pin<&mut impl Future<Output = T>>) -> Result<T, Lost> {
        loop {
            let look = if self.may_leave { self.deadline.min(Instant::now() + LOOK_EVERY) } else { self.deadline };
            match timeout_at(look, work.as_mut()).await {
                Ok(done) => return Ok(done),
                Err(_) if look >= self.deadline => return Err(Lost::Late),
                Err(_) if self.backend.is_gone() => return Err(Lost::Gone),
                Err(_) => {}
            }
        }
    }
}

async fn send(
    worker: &Worker,
    member: &Member,
    candidate: &Candidate,
    sending: &Sending<'_>,
    timeouts: &Timeouts,
    begun: Instant,
) -> Result<Answer, Failure> {
    let chunks = sending.body.with_model(&candidate.native, &candidate.native_json);
    let request = Outgoing { method: sending.method, target: sending.target, headers: &sending.headers, body: &chunks };
    // A kept connection may just be closing, and then nobody knows whether the request was read.
    let fresh = !sending.may_repeat || sending.fresh;
    let failure = match upstream::send(&worker.pool, member, &request, timeouts, fresh).await {
        Err(Failure::Unanswered { idle: Some(idle) })
            if idle >= SHORTEST_KEEP_ALIVE && begun.elapsed() < CLOSED_FOR_AGE =>
        {
            Failure::Unanswered { idle: None }
        }
        sent => return sent,
    };
    // The same backend tells whether that was its age, or the request has ended it: it may end one other, not two.
    match Box::pin(upstream::send(&worker.pool, member, &request, timeouts, true)).await {
        Err(Failure::Connect(_)) => Err(failure),
        again => again,
    }
}

/// The first piece of the body; of an event stream so much that its first event can be told from an error. Any other that
/// breaks off right behind it is not begun.
async fn first_piece(answer: &mut Answer, is_stream: bool) -> Result<Option<Bytes>, String> {
    let Some(first) = answer.body.piece().await else { return Ok(None) };
    let mut first = first.map_err(|broken| broken.to_string())?;
    if !is_stream {
        answer.body.look_ahead().map_err(|broken| broken.to_string())?;
    }
    while is_stream && first_event_is_error(&first).is_none() {
        let Some(more) = answer.body.piece().await else { break };
        let more = more.map_err(|broken| broken.to_string())?;
        let mut joined = BytesMut::from(first);
        joined.extend_from_slice(&more);
        first = joined.freeze();
    }
    Ok(Some(first))
}

/// Whether a backend says that it does not know the model that is asked of it: another has taken its place. All engines name
/// the model then; a 404 that does not is about something else, and the client's own.
fn lacks_the_model(status: StatusCode, body: &[u8], native: &[u8]) -> bool {
    let is_name = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"-_./:".contains(byte));
    let before = |at: usize| body.get(..at).and_then(<[u8]>::last);
    let stands_alone = |at: usize| !is_name(before(at)) && !is_name(body.get(at + native.len()));
    status == StatusCode::NOT_FOUND && memmem::find_iter(body, native).any(stands_alone)
}

pub fn is_event_stream(headers: &HeaderMap) -> bool {
    let essence = |value: &HeaderValue| {
        value.as_bytes().get(..EVENT_STREAM.len()).is_some_and(|begins| begins.eq_ignore_ascii_case(EVENT_STREAM))
    };
    headers.get(header::CONTENT_TYPE).is_some_and(essence)
}

impl Ended {
    fn new(cause: Cause, why: String, lease: Lease) -> Box<Self> {
        Box::new(Self { cause, why, lease, was_kept: false, pause: Duration::ZERO, answer: None })
    }

    fn failed(failure: &Failure, lease: Lease) -> Box<Self> {
        let cause = match failure {
            Failure::Local(_) => Cause::Local,
            Failure::Connect(_) | Failure::Tls(_) | Failure::ConnectTimeout => Cause::Connect,
            Failure::Unanswered { .. } => Cause::Unanswered,
            Failure::Invalid(_) => Cause::Invalid,
        };
        let was_kept = matches!(failure, Failure::Unanswered { idle: Some(_) });
        Box::new(Self { was_kept, ..*Self::new(cause, failure.to_string(), lease) })
    }

    fn lost(lost: Lost, lease: Lease) -> Box<Self> {
        match lost {
            // A trial shall cost nobody an answer: another backend does what was asked of it.
            Lost::Late if lease.is_trial() => {
                Self::new(Cause::Unanswered, "no answer to the trial in time".into(), lease)
            }
            Lost::Late => Self::new(Cause::Timeout, "no answer in time".into(), lease),
            Lost::Gone => Self::new(Cause::Unanswered, "it takes no connections any more".into(), lease),
        }
    }

    /// It has no room; how it says so is of no interest to the client.
    fn busy(answer: &Answer, lease: Lease) -> Box<Self> {
        let pause = retry::pause(&answer.headers, SystemTime::now());
        Box::new(Self { pause, ..*Self::new(Cause::Busy, format!("it answered {}", answer.status), lease) })
    }

    /// An error that another backend may not have; it is kept for the client where all have it.
    async fn answered(answer: Answer, first: Bytes, lease: Lease) -> Box<Self> {
        let why = if answer.status == StatusCode::OK {
            "its stream began with an error".into()
        } else {
            format!("it answered {}", answer.status)
        };
        let cause = if answer.status == StatusCode::NOT_FOUND { Cause::NoModel } else { Cause::ServerError };
        match keep(answer, first).await {
            Some(kept) => Box::new(Self { answer: Some(kept), ..*Self::new(cause, why, lease) }),
            None => Self::new(Cause::Invalid, format!("{why}, and broke off"), lease),
        }
    }
}

/// An error answer, whole, so that its connection and slot are free while another backend is asked; `None` where it broke off.
async fn keep(mut answer: Answer, first: Bytes) -> Option<Response<Body>> {
    let is_stream = is_event_stream(&answer.headers);
    let mut body = BytesMut::from(first);
    let read = async {
        while let Some(piece) = answer.body.piece().await {
            let piece = piece?;
            if body.len() + piece.len() > KEPT_ERROR_BYTES {
                return Ok(false);
            }
            body.extend_from_slice(&piece);
        }
        Ok::<_, Broken>(true)
    };
    match timeout(KEPT_ERROR_TIME, read).await {
        // The first event of a stream says all there is to say.
        Ok(Ok(true)) => {}
        _ if is_stream => {}
        Ok(Err(_)) => return None,
        // Left away rather than waited for or cut: its status is what matters.
        Ok(Ok(false)) | Err(_) => body.clear(),
    }
    let mut response = Response::new(Body::Whole(body.freeze()));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response.headers_mut().remove(header::CONTENT_LENGTH);
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_404_is_about_the_model_where_it_names_it() {
        let names =
            |body: &str, native: &str| lacks_the_model(StatusCode::NOT_FOUND, body.as_bytes(), native.as_bytes());
        for body in [
            r#"{"error":{"message":"The model `a/b:1` does not exist. Valid aliases: c.","type":"NotFoundError"}}"#,
            r#"{"error":"model 'a/b:1' not found"}"#,
            r#"{"error":{"message":"The model a/b:1 does not exist"}}"#,
            "a/b:1",
        ] {
            assert!(names(body, "a/b:1"), "{body}");
        }
        for body in [r#"{"detail":"Not Found"}"#, "404 page not found", r#"{"error":"model 'a/b:12' not found"}"#, ""] {
            assert!(!names(body, "a/b:1"), "{body}");
        }
        assert!(!names(r#"{"detail":"Not Found"}"#, "t"), "a short name stands in any text");
        assert!(!lacks_the_model(StatusCode::BAD_REQUEST, b"`a`", b"a"));
    }
}
