//! A backend's answer on its way to the client: names translated, the slot held until the backend is done.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::time::Instant;

use super::Interrupted;
use super::rename::Rename;
use super::usage::Usage;
use crate::config::Ejection;
use crate::edge::access::Permit;
use crate::edge::client::Exchange;
use crate::edge::decisions::Decisions;
use crate::edge::route::Dialect;
use crate::edge::upstream::{Broken, UpstreamBody};
use crate::fleet::{Backend, Lease};
use crate::metrics::{CLIENT_GONE, Series};

/// Counts a request once, when the last who holds it lets go, however it ended.
#[derive(Debug)]
pub struct Account {
    /// Whose request it is, as far as that is known yet.
    pub series: RefCell<Arc<Series>>,
    /// The status the client read; [`CLIENT_GONE`] until there is one.
    pub status: Cell<u16>,
    pub started: Instant,
    /// How the exchange ended, as decisions tell it; that the client left, until it is known.
    pub outcome: Cell<&'static str>,
    /// Where decisions are kept, and the number of this one.
    pub decisions: Arc<Decisions>,
    pub number: Cell<Option<u64>>,
    /// What it holds of its key's limits.
    pub permit: RefCell<Option<Permit>>,
}

impl Account {
    pub fn new(series: &Arc<Series>, decisions: &Arc<Decisions>, started: Instant) -> Rc<Self> {
        Rc::new(Self {
            series: RefCell::new(Arc::clone(series)),
            status: Cell::new(CLIENT_GONE),
            started,
            outcome: Cell::new("client_gone"),
            decisions: Arc::clone(decisions),
            number: Cell::new(None),
            permit: RefCell::default(),
        })
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let series = self.series.borrow();
        series.request(self.status.get());
        let took = self.started.elapsed();
        series.request_seconds.observe(took);
        if let Some(number) = self.number.get() {
            self.decisions.end(number, self.outcome.get(), took);
        }
    }
}

/// How an interrupted stream is told of in its own form, where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastWord {
    Event(Dialect),
    Line,
    /// The body just ends, visibly cut.
    Silence,
}

/// The body that holds the lease.
#[derive(Debug)]
pub struct Relay {
    pub upstream: UpstreamBody,
    /// `None` where the body passes as it is.
    pub rename: Option<Rename>,
    /// Counts tokens, where the answer is of a form that may tell them.
    pub usage: Option<Usage>,
    /// Ready to go out.
    pub out: VecDeque<Bytes>,
    /// Given back when the backend has sent its last byte, or with the body.
    pub lease: Option<Lease>,
    pub backend: Arc<Backend>,
    /// When the lease was claimed.
    pub since_ms: u64,
    pub last_word: LastWord,
    pub ejection: Ejection,
    /// When a stream that succeeds began.
    pub began: Option<Instant>,
    /// The process ends: what the backend may still have to say is not waited for.
    pub cut: Rc<Cell<bool>>,
    pub end: End,
    pub account: Rc<Account>,
    /// Until it is dropped the client is watched.
    pub exchange: Option<Exchange>,
}

/// Where the end of a body stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Open,
    /// The backend is done; what is in `out` still goes.
    Complete,
    /// The last word is said; it must be flushed before the connection is cut, and the head, where that is not out yet.
    Flushing,
    Cut,
}

impl Relay {
    pub fn is_end(&self) -> bool {
        self.end == End::Complete && self.out.is_empty()
    }

    /// The next piece for the client.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Interrupted>>> {
        loop {
            if let Some(chunk) = self.out.pop_front() {
                return Poll::Ready(Some(Ok(chunk)));
            }
            match self.end {
                End::Open if self.cut.get() => {
                    self.say_last_word();
                    continue;
                }
                End::Open => {}
                End::Complete => return Poll::Ready(None),
                End::Flushing => {
                    // hyper flushes when a body has nothing more for now, and drops what it buffered on an error.
                    self.end = End::Cut;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                End::Cut => {
                    self.exchange.as_ref().inspect(|exchange| exchange.is_cut());
                    return Poll::Ready(Some(Err(Interrupted)));
                }
            }
            match ready!(self.upstream.poll_piece(cx)) {
                Some(Ok(piece)) => self.take_in(piece),
                Some(Err(broken)) => self.interrupted(broken),
                None => self.complete(),
            }
        }
    }

    /// Translates a piece; once the backend has sent its last one, its slot is free.
    pub fn take_in(&mut self, piece: Bytes) {
        if let Some(usage) = &mut self.usage {
            usage.feed(&piece);
        }
        match &mut self.rename {
            Some(rename) => rename.feed(piece, &mut self.out),
            None => self.out.push_back(piece),
        }
        if self.upstream.is_complete() {
            self.free_slot();
        }
    }

    /// The backend has done its part: what it failed before is forgotten, and its tokens count. An answer that blames
    /// the request says nothing of the backend.
    pub fn settle(&mut self) {
        if self.account.status.get() < 400 {
            self.backend.completed(self.since_ms);
        }
        self.free_slot();
        self.account.outcome.set("answered");
        self.count_tokens();
    }

    /// The backend has sent its last byte.
    fn free_slot(&mut self) {
        match self.lease.take() {
            Some(lease) if self.account.status.get() < 400 => {
                if let (None, Some(tokens)) = (self.began, self.usage.as_ref().and_then(Usage::tokens)) {
                    lease.wrote(tokens.output);
                }
                lease.end_well();
            }
            other => drop(other),
        }
    }

    /// Adds the tokens of a complete answer to the model's.
    fn count_tokens(&self) {
        if let Some(tokens) = self.usage.as_ref().and_then(Usage::tokens) {
            let series = self.account.series.borrow();
            series.prompt_tokens.fetch_add(tokens.input, Relaxed);
            series.completion_tokens.fetch_add(tokens.output, Relaxed);
            let more = tokens.output.checked_sub(1).and_then(|more| u32::try_from(more).ok()).filter(|more| *more > 0);
            if let Some((began, more)) = self.began.zip(more) {
                series.time_per_output_token.observe(began.elapsed() / more);
            }
        }
    }

    fn complete(&mut self) {
        self.settle();
        self.end = End::Complete;
    }

    fn interrupted(&mut self, broken: Broken) {
        // Before its slot is free for others.
        self.backend.failed(&broken.to_string(), self.ejection, self.since_ms);
        self.say_last_word();
    }

    /// No more comes from the backend, whoever is to blame.
    fn say_last_word(&mut self) {
        self.lease = None;
        self.account.outcome.set("interrupted");
        let word = self.last_word.text();
        self.end = End::Flushing;
        if !word.is_empty() {
            self.out.push_back(Bytes::from_static(word.as_bytes()));
        }
    }
}

impl LastWord {
    /// Begins with what ends an event or line that was cut, so that it stands by itself.
    fn text(self) -> &'static str {
        match self {
            Self::Event(Dialect::Anthropic) => {
                "\n\nevent: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"The answer was interrupted.\"}}\n\n"
            }
            Self::Event(Dialect::OpenAi | Dialect::Ollama) => {
                "\n\ndata: {\"error\":{\"message\":\"The answer was interrupted.\",\"type\":\"server_error\",\"param\":null,\"code\":\"upstream_interrupted\"}}\n\n"
            }
            Self::Line => "\n{\"error\":\"the answer was interrupted\"}\n",
            Self::Silence => "",
        }
    }
}
