//! One attempt: a request over one connection, up to the head of its answer.

use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice, Write as _};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use tokio::io::AsyncWrite;
use tokio::time::timeout;

use super::body::UpstreamBody;
use super::connect::{connect, refused_certificate};
use super::head::{Head, Parsed};
use super::pool::{Peer, Pool};
use crate::config::{BackendUrl, Timeouts};
use crate::edge::snapshot::Member;
use crate::edge::wire::Wire;

/// Largest head of an answer, in bytes.
const HEAD_LIMIT: usize = 64 * 1024;
/// Interim answers (1xx) before the final one.
const INTERIM_LIMIT: usize = 8;
/// A connection that takes no more has ended: what was said before is there to be read but for a turn of this thread.
const LAST_WORD: Duration = Duration::from_millis(250);
/// Pieces handed to one vectored write; the kernel takes 1,024 and more gains nothing.
const SLICES: usize = 32;

/// A request, ready for the wire.
#[derive(Debug)]
pub struct Outgoing<'a> {
    pub method: &'a Method,
    /// Path and query; the backend's prefix is put before it.
    pub target: &'a str,
    /// End-to-end fields only; `host` and `content-length` are added here.
    pub headers: &'a HeaderMap,
    pub body: &'a [Bytes],
}

/// The head of an answer, and its body as it comes.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: UpstreamBody,
}

/// Why an attempt brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// This machine has run out of something: nobody's fault over there.
    #[error("cannot connect for want of local resources: {0}")]
    Local(io::Error),
    #[error("cannot connect: {0}")]
    Connect(io::ErrorKind),
    /// Nothing was sent: it is not who it should be, or we are not for it.
    #[error("no TLS: {0}")]
    Tls(String),
    #[error("connecting timed out")]
    ConnectTimeout,
    /// The connection ended before a byte of an answer. `idle`: how long a kept one had been idle; the backend may just
    /// have closed it for that.
    #[error("the connection ended before an answer")]
    Unanswered { idle: Option<Duration> },
    #[error("not an HTTP answer: {0}")]
    Invalid(&'static str),
}

/// Sends a request to a backend and reads the head of its answer. How long that may take is the caller's to say.
///
/// # Errors
/// [`Failure`] says how far it came; the connection is closed.
pub async fn send(
    pool: &Rc<Pool>,
    to: &Member,
    request: &Outgoing<'_>,
    timeouts: &Timeouts,
    fresh: bool,
) -> Result<Answer, Failure> {
    let idle = if fresh { None } else { pool.take(to) };
    let (kept, idle) = idle.unzip();
    let mut stream = match kept {
        Some(stream) => stream,
        // Boxed, as all that happens rarely: a request that needs none of it does not carry it along.
        None => Box::pin(connected(pool, to, timeouts)).await?,
    };
    let head = head(request, &to.config.url);
    let (head, whole) = exchange(&mut stream, pool, &head, request.body, idle).await?;
    head.into_answer(stream, pool, Peer::of(to), whole, timeouts.between_chunks, request.method)
}

async fn connected(pool: &Pool, to: &Member, timeouts: &Timeouts) -> Result<Wire, Failure> {
    loop {
        let connected = timeout(timeouts.connect, connect(pool, &to.config)).await;
        match connected.map_err(|_| Failure::ConnectTimeout)? {
            // What idle connections hold may be what is missing.
            Err(Failure::Local(_)) if pool.give_up() => {}
            connected => return connected,
        }
    }
}

/// What it means that a connection ended before an answer; without an error it ended in order.
fn unanswered(error: Option<&io::Error>, idle: Option<Duration>) -> Failure {
    let refused = error.filter(|_| idle.is_none()).and_then(refused_certificate);
    refused.unwrap_or(Failure::Unanswered { idle })
}

/// The request line and the fields.
fn head(request: &Outgoing<'_>, url: &BackendUrl) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    for part in [request.method.as_str(), " ", &url.prefix, request.target, " HTTP/1.1\r\nhost: "] {
        out.extend_from_slice(part.as_bytes());
    }
    // Into memory: it cannot fail.
    let _ = write!(out, "{}\r\n", url.authority());
    for (name, value) in request.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    let length: usize = request.body.iter().map(Bytes::len).sum();
    if length > 0 || !matches!(*request.method, Method::GET | Method::HEAD) {
        let _ = write!(out, "content-length: {length}\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// Sends a request and reads the head of its answer; whether the whole request went out before that. A backend may answer
/// before it has read everything (413, 401): then the rest is not sent, for nobody reads it.
async fn exchange(
    stream: &mut Wire,
    pool: &Pool,
    head: &[u8],
    body: &[Bytes],
    idle: Option<Duration>,
) -> Result<(Head, bool), Failure> {
    let mut held = Held { stream, is_heard: false };
    let mut heard = Heard { idle, ..Heard::default() };
    let answered = match write(held.stream, head, body, pool, &mut heard).await? {
        Written::Whole => {
            let head = heard.head(held.stream, pool).await?;
            held.is_heard = true;
            return Ok((head, true));
        }
        Written::Answered(head) => head,
        // It takes no more, perhaps for a reason that it gave: that came before the end, but it may not be seen yet.
        Written::Refused(error) => match timeout(LAST_WORD, heard.head(held.stream, pool)).await {
            Ok(Err(Failure::Unanswered { .. })) | Err(_) => return Err(unanswered(Some(&error), idle)),
            Ok(answered) => answered?,
        },
    };
    Ok((answered, false))
}

/// A connection whose request may not have been read to its end.
struct Held<'a> {
    stream: &'a mut Wire,
    is_heard: bool,
}

impl Drop for Held<'_> {
    /// An end in order would stand in line behind what the backend does not read, and it would go on working.
    fn drop(&mut self) {
        if !self.is_heard {
            // An error means that it is closed already.
            let _ = self.stream.tcp().set_zero_linger();
        }
    }
}

/// How writing ended.
enum Written {
    Whole,
    /// The backend answered before it had read it all.
    Answered(Head),
    /// The connection takes no more.
    Refused(io::Error),
}

/// Writes head and body, and listens meanwhile.
async fn write(
    stream: &mut Wire,
    head: &[u8],
    body: &[Bytes],
    pool: &Pool,
    heard: &mut Heard,
) -> Result<Written, Failure> {
    let mut left = Left { head, body, done: 0 };
    loop {
        match poll_fn(|cx| left.poll(stream, pool, heard, cx)).await {
            Ok(Step::Wrote(written)) => left.advance(written),
            Ok(Step::Out) => return Ok(Written::Whole),
            Ok(Step::Heard(answered)) => {
                if let Some(head) = answered? {
                    return Ok(Written::Answered(head));
                }
            }
            Err(error) => return Ok(Written::Refused(error)),
        }
    }
}

/// One step of writing.
enum Step {
    Wrote(usize),
    /// All of it has left, and nothing waits to be encrypted or sent.
    Out,
    /// It said something meanwhile.
    Heard(Result<Option<Head>, Failure>),
}

/// What is still to be written.
struct Left<'a> {
    head: &'a [u8],
    body: &'a [Bytes],
    /// Bytes of the first piece of the body that are out already.
    done: usize,
}

impl Left<'_> {
    fn is_empty(&self) -> bool {
        self.head.is_empty() && self.body.is_empty()
    }

    /// Writes, and listens only where that has to wait.
    fn poll(&self, stream: &mut Wire, pool: &Pool, heard: &mut Heard, cx: &mut Context<'_>) -> Poll<io::Result<Step>> {
        let step = if self.is_empty() {
            Pin::new(&mut *stream).poll_flush(cx).map_ok(|()| Step::Out)
        } else {
            self.poll_write(stream, cx).map_ok(Step::Wrote)
        };
        if step.is_ready() {
            return step;
        }
        let heard = ready!(pool.poll_read(stream, cx, |read| heard.take(read)))?;
        Poll::Ready(heard.map(Step::Heard).ok_or(ErrorKind::UnexpectedEof.into()))
    }

    fn poll_write(&self, stream: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let first = self.body.first().map(|piece| piece.get(self.done..).unwrap_or_default());
        let others = self.body.iter().skip(1).map(|piece| &**piece);
        let pieces = std::iter::once(self.head).chain(first).chain(others).filter(|piece| !piece.is_empty());
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        match slices.get(..count) {
            Some([only]) => Pin::new(stream).poll_write(cx, only),
            several => Pin::new(stream).poll_write_vectored(cx, several.unwrap_or_default()),
        }
    }

    /// Takes what was written off the front.
    fn advance(&mut self, written: usize) {
        let of_head = written.min(self.head.len());
        self.head = self.head.get(of_head..).unwrap_or_default();
        self.done += written - of_head;
        while let Some((first, rest)) = self.body.split_first().filter(|(first, _)| self.done >= first.len()) {
            if !self.head.is_empty() {
                break;
            }
            self.done -= first.len();
            self.body = rest;
        }
    }
}

/// What was heard of an answer, up to the end of its head.
#[derive(Default)]
pub(super) struct Heard {
    /// The beginning of a head.
    partial: Vec<u8>,
    /// Interim answers that were passed over.
    interim: usize,
    /// How long the connection had been idle.
    idle: Option<Duration>,
}

impl Heard {
    /// Takes what was read; the final head once it is whole.
    pub(super) fn take(&mut self, read: &[u8]) -> Result<Option<Head>, Failure> {
        let mut before = std::mem::take(&mut self.partial);
        // Mostly all of it comes at once: then it is parsed where it was read to.
        let mut left = if before.is_empty() {
            read
        } else {
            before.extend_from_slice(read);
            &before
        };
        loop {
            match Head::parse(left)? {
                Parsed::Final(head) => return Ok(Some(head)),
                Parsed::Interim { length } if self.interim < INTERIM_LIMIT => {
                    self.interim += 1;
                    left = left.get(length..).unwrap_or_default();
                }
                Parsed::Interim { .. } => return Err(Failure::Invalid("endless interim answers")),
                Parsed::Partial if left.len() > HEAD_LIMIT => return Err(Failure::Invalid("head too large")),
                Parsed::Partial => {
                    self.partial = left.to_vec();
                    return Ok(None);
                }
            }
        }
    }

    /// Reads on to the end of the final head.
    async fn head(&mut self, stream: &mut Wire, pool: &Pool) -> Result<Head, Failure> {
        loop {
            match pool.read(stream, |read| self.take(read)).await {
                Ok(Some(answered)) => {
                    if let Some(head) = answered? {
                        return Ok(head);
                    }
                }
                _ if !self.partial.is_empty() => return Err(Failure::Invalid("head cut short")),
                Ok(None) => return Err(unanswered(None, self.idle)),
                Err(error) => return Err(unanswered(Some(&error), self.idle)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_bytes_come_off_the_front() {
        let body = [Bytes::from("abc"), Bytes::new(), Bytes::from("de"), Bytes::from("f")];
        let whole = b"headabcdef";
        for first in 0..=whole.len() {
            for second in 0..=whole.len() - first {
                let mut left = Left { head: b"head", body: &body, done: 0 };
                left.advance(first);
                left.advance(second);
                let rest = left.body.iter().flat_map(|piece| piece.iter()).skip(left.done);
                let rest: Vec<u8> = left.head.iter().chain(rest).copied().collect();
                assert_eq!(rest, whole[first + second..], "{first} {second}");
                assert_eq!(left.is_empty(), rest.is_empty());
            }
        }
    }
}
