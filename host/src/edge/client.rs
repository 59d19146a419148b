//! A client's connection, and how its leaving is noticed in every phase.
//!
//! hyper stops reading a connection while a request is handled, and with one unread byte behind the
//! request it never learns that the client left. So the connection is shared with a watch that reads a
//! little ahead, into a bounded buffer, as long as an exchange is under way: the end of the stream
//! ends the connection's future, and with it everything done for it.
//!
//! So do two kinds of slowness that hyper lets pass: a head that is begun and not finished, and an answer
//! that the client does not take.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::time::{Instant, Interval, Sleep, interval, timeout};

use super::wire::Wire;

/// Read ahead at most; what a client sends behind a request beyond this waits in the kernel for its answer.
const AHEAD_LIMIT: usize = 16 * 1024;
/// How often it is looked whether a client of which no more is read has left: half of how soon that is to be noticed.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What is still taken of a body that was refused: few clients look for an answer before they have sent all of it, so that
/// this is more than most send, and the time and the silence say who would never end.
const LINGER_BYTES: usize = 256 << 20;
const LINGER_TIME: Duration = Duration::from_secs(30);
const LINGER_SILENCE: Duration = Duration::from_secs(2);
/// From the first byte of a head to its last: no client needs so long, and one that dawdles holds a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// What opens an HTTP/2 connection with prior knowledge (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client's connection, shared between hyper and the watch. Both run in the same task.
#[derive(Debug, Clone)]
pub struct ClientStream(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    stream: RefCell<Wire>,
    ahead: RefCell<BytesMut>,
    /// Exchanges whose request has been read and whose answer has not ended.
    exchanges: Cell<u32>,
    /// Requests whose head has been read and that have no answer yet.
    unanswered: Cell<u32>,
    /// The last request has a body that was not read to its end.
    body_unread: Cell<bool>,
    /// When the first byte of a head came that is not complete.
    head_begun: Cell<Option<Instant>>,
    /// Since when the client takes nothing of what is ready for it.
    blocked: Cell<Option<Instant>>,
    /// Only by a connection that is broken off can the client see that its answer is not whole.
    breaks_off: Cell<bool>,
}

/// An exchange under way; dropped with the last byte of its answer.
#[derive(Debug)]
pub struct Exchange {
    shared: Rc<Shared>,
    /// The end of the connection is the end of the answer: HTTP/1.0 knows no chunks.
    ends_with_close: bool,
}

impl Exchange {
    /// The answer ends before it is whole: a client that would not see it otherwise is sent a reset.
    pub fn is_cut(&self) {
        self.shared.breaks_off.set(self.ends_with_close);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.shared.exchanges.set(self.shared.exchanges.get() - 1);
    }
}

/// A request from its head to the head of its answer: until then what the client sends is no new head.
#[derive(Debug)]
pub struct Unanswered(Rc<Shared>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.unanswered.set(self.0.unanswered.get() - 1);
    }
}

/// What the watch saw.
enum Seen {
    Gone,
    /// Something was read ahead: hyper may have waited for it.
    Bytes,
}

impl ClientStream {
    pub fn new(stream: Wire) -> Self {
        Self(Rc::new(Shared {
            stream: RefCell::new(stream),
            ahead: RefCell::default(),
            exchanges: Cell::new(0),
            unanswered: Cell::new(0),
            body_unread: Cell::new(false),
            head_begun: Cell::new(None),
            blocked: Cell::new(None),
            breaks_off: Cell::new(false),
        }))
    }

    pub fn is_tls(&self) -> bool {
        matches!(&*self.0.stream.borrow(), Wire::Tls(_))
    }

    /// Reads just enough to tell HTTP/2 from HTTP/1; nothing is lost.
    ///
    /// # Errors
    /// Where the client leaves before it says.
    pub async fn speaks_http2(&mut self) -> io::Result<bool> {
        let mut seen = BytesMut::with_capacity(1024);
        let http2 = loop {
            if seen.len() >= PREFACE.len() || !PREFACE.starts_with(&seen) {
                break seen.starts_with(PREFACE);
            }
            if self.read_buf(&mut seen).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        self.0.ahead.replace(seen);
        Ok(http2)
    }

    /// Has the kernel end the connection where the client acknowledges nothing for so long.
    pub fn acknowledge_within(&self, limit: Duration) {
        // Where the kernel does not know how, our own watch is all there is.
        let _ = SockRef::from(self.0.stream.borrow().tcp()).set_tcp_user_timeout(Some(limit));
    }

    /// A head has been read, behind which a body comes or none.
    pub fn unanswered(&self, has_body: bool) -> Unanswered {
        self.0.body_unread.set(has_body);
        self.0.head_begun.set(None);
        self.0.unanswered.set(self.0.unanswered.get() + 1);
        Unanswered(Rc::clone(&self.0))
    }

    /// The last request has a body that was not read to its end.
    pub fn is_body_unread(&self) -> bool {
        self.0.body_unread.get()
    }

    /// The body has been read to its end.
    pub fn has_read_body(&self) {
        self.0.body_unread.set(false);
    }

    /// Once it was answered before its body was read: takes what still comes of that. Closed with something unread, the
    /// connection would be reset, and the answer lost (RFC 9112 §9.6).
    pub async fn linger(mut self) {
        if !self.0.body_unread.get() {
            return;
        }
        let taken = async {
            self.shutdown().await?;
            let (mut scratch, mut left) = (vec![0; AHEAD_LIMIT], LINGER_BYTES);
            while left > 0 {
                match timeout(LINGER_SILENCE, self.read(&mut scratch)).await?? {
                    0 => break,
                    read => left = left.saturating_sub(read),
                }
            }
            io::Result::Ok(())
        };
        // Whoever has not done by then, or is gone, has no use for more.
        let _ = timeout(LINGER_TIME, taken).await;
    }

    /// From now on the client is watched, until the exchange is dropped.
    pub fn exchange(&self, ends_with_close: bool) -> Exchange {
        self.0.exchanges.set(self.0.exchanges.get() + 1);
        Exchange { shared: Rc::clone(&self.0), ends_with_close }
    }

    /// Returns once there has been no exchange, nor a head begun, for so long; half of it is enough behind an exchange.
    pub async fn quiet_for(&self, time: Duration) {
        let is_quiet = || self.0.exchanges.get() + self.0.unanswered.get() == 0 && self.0.head_begun.get().is_none();
        let mut was_quiet = false;
        loop {
            tokio::time::sleep(time / 2).await;
            if was_quiet && is_quiet() {
                return;
            }
            was_quiet = is_quiet();
        }
    }

    /// Drives a connection until it ends or its client is gone: while an exchange is under way, and in any case once it
    /// has not finished a head in time or has taken nothing for as long as `stall`.
    pub async fn drive<E>(
        &self,
        stall: Duration,
        mut connection: Pin<&mut impl Future<Output = Result<(), E>>>,
    ) -> Result<(), E> {
        let (mut timer, mut look) = (None, None);
        std::future::poll_fn(|cx| {
            loop {
                if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                    if self.0.breaks_off.get() {
                        self.break_off();
                    }
                    return Poll::Ready(result);
                }
                if self.poll_overdue(stall, &mut timer, cx).is_ready() {
                    self.break_off();
                    return Poll::Ready(Ok(()));
                }
                if self.0.exchanges.get() == 0 {
                    return Poll::Pending;
                }
                match ready!(self.poll_watch(&mut look, cx)) {
                    Seen::Gone => return Poll::Ready(Ok(())),
                    Seen::Bytes => {}
                }
            }
        })
        .await
    }

    /// Ready when the client is later than it may be. There is a timer only where a client was slow once.
    fn poll_overdue(&self, stall: Duration, timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
        let head = self.0.head_begun.get().map(|begun| begun + HEAD_TIMEOUT);
        let write = self.0.blocked.get().map(|since| since + stall);
        let Some(deadline) = head.into_iter().chain(write).min() else { return Poll::Pending };
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    }

    /// Makes the coming end of the connection a reset, which also drops what the kernel still holds for the client.
    fn break_off(&self) {
        self.0.body_unread.set(false);
        // An error means that it is closed already.
        let _ = self.0.stream.borrow().tcp().set_zero_linger();
    }

    /// Whether the kernel took what was written.
    fn note_write<T>(&self, written: Poll<T>) -> Poll<T> {
        if written.is_ready() {
            self.0.blocked.set(None);
        } else if self.0.blocked.get().is_none() {
            self.0.blocked.set(Some(Instant::now()));
        }
        written
    }

    /// Whether what was just read begins a head.
    fn note_read(&self, read: usize) {
        let is_head = self.0.exchanges.get() == 0 && self.0.unanswered.get() == 0;
        if read > 0 && is_head && self.0.head_begun.get().is_none() {
            self.0.head_begun.set(Some(Instant::now()));
        }
    }

    /// Whether the kernel has seen the end of the connection, behind whatever is unread.
    fn has_left(&self) -> bool {
        let stream = self.0.stream.borrow();
        // Not for what is to be read, which there is: the end comes with every interest.
        let ready = pin!(stream.tcp().ready(Interest::PRIORITY)).poll(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    fn poll_watch(&self, look: &mut Option<Interval>, cx: &mut Context<'_>) -> Poll<Seen> {
        let mut ahead = self.0.ahead.borrow_mut();
        if ahead.len() >= AHEAD_LIMIT {
            let look = look.get_or_insert_with(|| interval(LOOK_EVERY));
            while !self.has_left() {
                ready!(look.poll_tick(cx));
            }
            return Poll::Ready(Seen::Gone);
        }
        let mut space = [const { MaybeUninit::uninit() }; 1024];
        let mut buffer = ReadBuf::uninit(&mut space);
        match ready!(Pin::new(&mut *self.0.stream.borrow_mut()).poll_read(cx, &mut buffer)) {
            Ok(()) if buffer.filled().is_empty() => Poll::Ready(Seen::Gone),
            Ok(()) => {
                ahead.extend_from_slice(buffer.filled());
                Poll::Ready(Seen::Bytes)
            }
            Err(_) => Poll::Ready(Seen::Gone),
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut ahead = self.0.ahead.borrow_mut();
        if ahead.is_empty() {
            let before = buffer.filled().len();
            let read = Pin::new(&mut *self.0.stream.borrow_mut()).poll_read(cx, buffer);
            self.note_read(buffer.filled().len() - before);
            return read;
        }
        let take = ahead.len().min(buffer.remaining());
        self.note_read(take);
        buffer.put_slice(ahead.get(..take).unwrap_or_default());
        ahead.advance(take);
        if ahead.is_empty() {
            // Gives the memory back: most connections never need it again.
            *ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut *self.0.stream.borrow_mut()).poll_write(cx, bytes);
        self.note_write(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut *self.0.stream.borrow_mut()).poll_write_vectored(cx, slices);
        self.note_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_shutdown(cx)
    }
}
