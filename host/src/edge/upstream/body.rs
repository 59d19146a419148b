//! The body of a backend's answer, as it comes.

use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, Sleep};

use super::framing::{Framing, Progress};
use super::pool::{Peer, Pool};
use crate::edge::wire::Wire;

/// Why a body ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("the backend closed the connection in the middle of its answer")]
    Closed,
    #[error("the backend broke the framing of its answer")]
    Framing,
    #[error("the backend stopped sending")]
    Stalled,
}

/// An answer's body. Holds no buffer while it waits; dropping it before its end closes the connection.
#[derive(Debug)]
pub struct UpstreamBody {
    /// `None` once the body is complete: the connection is back in the pool, or closed.
    stream: Option<Wire>,
    framing: Framing,
    /// Payload that was read already.
    first: Bytes,
    pool: Rc<Pool>,
    home: Home,
    /// A piece has been handed on.
    begun: bool,
    between_chunks: Duration,
    silence: Option<Silence>,
}

/// Where the connection goes after the last byte.
#[derive(Debug, Clone, Copy)]
pub(super) struct Home {
    pub peer: Peer,
    pub reusable: bool,
    /// `Keep-Alive: timeout` of the answer.
    pub advertised: Option<Duration>,
}

/// The time-out between two pieces: one timer for the whole body, moved on only when it fires.
#[derive(Debug)]
struct Silence {
    timer: std::pin::Pin<Box<Sleep>>,
    last: Instant,
}

impl UpstreamBody {
    /// A body whose head was just read, with what came behind it.
    ///
    /// # Errors
    /// Where that already breaks the framing.
    pub(super) fn begin(
        stream: Wire,
        framing: Framing,
        behind_head: &Bytes,
        pool: &Rc<Pool>,
        home: Home,
        between_chunks: Duration,
    ) -> Result<Self, Broken> {
        let mut body = Self {
            stream: Some(stream),
            framing,
            first: Bytes::new(),
            pool: Rc::clone(pool),
            home,
            begun: false,
            between_chunks,
            silence: None,
        };
        let progress = match &mut body.framing {
            Framing::Length(0) => Progress::Done { rest: behind_head.len() },
            Framing::Length(left) if behind_head.len() as u64 <= *left => {
                // All of it is payload, and stays where it is.
                *left -= behind_head.len() as u64;
                body.first = behind_head.clone();
                if *left == 0 { Progress::Done { rest: 0 } } else { Progress::More }
            }
            framing => {
                let mut payload = BytesMut::with_capacity(behind_head.len());
                let progress = framing.decode(behind_head, &mut payload).map_err(|_| Broken::Framing)?;
                body.first = payload.freeze();
                progress
            }
        };
        body.at_end(progress);
        Ok(body)
    }

    /// Whether the last byte has been received (though perhaps not yet handed on).
    pub fn is_complete(&self) -> bool {
        self.stream.is_none()
    }

    /// Whether everything has been handed on.
    pub fn is_end(&self) -> bool {
        self.is_complete() && self.first.is_empty()
    }

    /// The next piece; `None` after the last.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        if !self.first.is_empty() {
            self.begun = true;
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.first))));
        }
        loop {
            let Some(mut stream) = self.stream.take() else { return Poll::Ready(None) };
            let pool = Rc::clone(&self.pool);
            let mut payload = BytesMut::new();
            let read = pool.poll_read(&mut stream, cx, |read| {
                payload.reserve(read.len());
                self.framing.decode(read, &mut payload)
            });
            let progress = match read {
                Poll::Pending => {
                    self.stream = Some(stream);
                    if !self.begun {
                        // Until the first piece the caller's own deadline counts.
                        return Poll::Pending;
                    }
                    ready!(self.poll_silence(cx));
                    return Poll::Ready(Some(Err(Broken::Stalled)));
                }
                Poll::Ready(Ok(None)) if self.framing.ends_with_close() => return Poll::Ready(None),
                Poll::Ready(Ok(None) | Err(_)) => return Poll::Ready(Some(Err(Broken::Closed))),
                Poll::Ready(Ok(Some(progress))) => progress,
            };
            if let Some(silence) = &mut self.silence {
                silence.last = Instant::now();
            }
            let Ok(progress) = progress else { return Poll::Ready(Some(Err(Broken::Framing))) };
            self.stream = Some(stream);
            self.at_end(progress);
            if !payload.is_empty() {
                self.begun = true;
                return Poll::Ready(Some(Ok(payload.freeze())));
            }
        }
    }

    /// The same for async code.
    pub async fn piece(&mut self) -> Option<Result<Bytes, Broken>> {
        std::future::poll_fn(|cx| self.poll_piece(cx)).await
    }

    /// Looks behind the piece that was handed on last, without waiting.
    ///
    /// # Errors
    /// Where it is known that no more of the body comes, though it should.
    pub fn look_ahead(&mut self) -> Result<(), Broken> {
        match self.poll_piece(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(piece))) => self.first = piece,
            Poll::Ready(Some(Err(broken))) => return Err(broken),
            Poll::Ready(None) | Poll::Pending => {}
        }
        Ok(())
    }

    /// At the end of the body gives the connection back.
    fn at_end(&mut self, progress: Progress) {
        if let Progress::Done { rest } = progress
            && let Some(stream) = self.stream.take()
            && self.home.reusable
            && rest == 0
        {
            self.pool.put(self.home.peer, stream, self.home.advertised);
        }
    }

    /// Ready when nothing came for too long.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let allowed = self.between_chunks;
        let now = Instant::now();
        let silence =
            self.silence.get_or_insert_with(|| Silence { timer: Box::pin(tokio::time::sleep(allowed)), last: now });
        loop {
            ready!(silence.timer.as_mut().poll(cx));
            let deadline = silence.last + allowed;
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            silence.timer.as_mut().reset(deadline);
        }
    }
}
