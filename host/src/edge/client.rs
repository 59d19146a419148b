//! A client's connection, and how its leaving is noticed in every phase.
//!
//! hyper stops reading a connection while a request is handled, and with one unread byte behind the
//! request it never learns that the client left. So the connection is shared with a watch that reads a
//! little ahead, into a bounded buffer, as long as an exchange is under way: the end of the stream
//! ends the connection's future, and with it everything done for it.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::wire::Wire;

/// Read ahead at most; a client that sends more behind a request than this waits, unwatched, for its answer.
const AHEAD_LIMIT: usize = 16 * 1024;
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
}

/// An exchange under way; dropped with the last byte of its answer.
#[derive(Debug)]
pub struct Exchange(Rc<Shared>);

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.exchanges.set(self.0.exchanges.get() - 1);
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
        let shared = Shared { stream: RefCell::new(stream), ahead: RefCell::default(), exchanges: Cell::new(0) };
        Self(Rc::new(shared))
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

    /// From now on the client is watched, until the exchange is dropped.
    pub fn exchange(&self) -> Exchange {
        self.0.exchanges.set(self.0.exchanges.get() + 1);
        Exchange(Rc::clone(&self.0))
    }

    /// Drives a connection until it ends or, while an exchange is under way, its client is gone.
    pub async fn drive<E>(&self, mut connection: Pin<&mut impl Future<Output = Result<(), E>>>) -> Result<(), E> {
        std::future::poll_fn(|cx| {
            loop {
                if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                    return Poll::Ready(result);
                }
                if self.0.exchanges.get() == 0 {
                    return Poll::Pending;
                }
                match ready!(self.poll_watch(cx)) {
                    Seen::Gone => return Poll::Ready(Ok(())),
                    Seen::Bytes => {}
                }
            }
        })
        .await
    }

    fn poll_watch(&self, cx: &mut Context<'_>) -> Poll<Seen> {
        let mut ahead = self.0.ahead.borrow_mut();
        if ahead.len() >= AHEAD_LIMIT {
            return Poll::Pending;
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
            return Pin::new(&mut *self.0.stream.borrow_mut()).poll_read(cx, buffer);
        }
        let take = ahead.len().min(buffer.remaining());
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
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_write_vectored(cx, slices)
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
