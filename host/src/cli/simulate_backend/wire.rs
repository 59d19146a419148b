//! The socket under hyper, which can be told to break: reset instead of close, speak something that is not HTTP, or say
//! more than it was asked.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How a connection will end; set by the exchange, obeyed by the wire.
#[derive(Debug, Default)]
pub(super) struct Switch(AtomicU8);

const RESET: u8 = 1;
const GARBAGE: u8 = 2;
const STRAY: u8 = 3;

impl Switch {
    /// Closing the connection becomes a reset.
    pub(super) fn reset(&self) {
        self.0.store(RESET, Relaxed);
    }

    /// Whatever is written next goes out as garbage.
    pub(super) fn garbage(&self) {
        self.0.store(GARBAGE, Relaxed);
    }

    /// With what is written next goes an answer that nobody asked for.
    pub(super) fn stray(&self) {
        self.0.store(STRAY, Relaxed);
    }

    /// Whether that is to be sent now, once.
    fn takes_stray(&self) -> bool {
        self.0.compare_exchange(STRAY, 0, Relaxed, Relaxed).is_ok()
    }

    fn is(&self, what: u8) -> bool {
        self.0.load(Relaxed) == what
    }
}

/// Looks like the start of something, which is worse than noise: a lenient parser would wait for the rest.
const NOT_HTTP: &[u8] = b"\x16\x03\x01HTPT/9.9 perhaps\r\ncontent-length: -1\r\n\r\n\0\0\0";

/// Whole, and like any other: who takes it for the next answer gives it to somebody.
const STRAY_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 113\r\n\r\n\
    {\"model\":\"stray\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"stray\"},\"finish_reason\":\"stop\"}]}";

/// A connection.
pub(super) struct Wire {
    stream: TcpStream,
    switch: Arc<Switch>,
    garbage_sent: usize,
    /// Taken from hyper, and to be written before anything else.
    held: Bytes,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, switch: Arc<Switch>) -> Self {
        Self { stream, switch, garbage_sent: 0, held: Bytes::new() }
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held))?;
            self.held.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.switch.is(RESET) {
            // Without it the peer sees an orderly end instead; nobody is left to tell.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_held(cx))?;
        if self.switch.takes_stray() {
            // In one piece with the end of the true answer: what comes later, nobody can tell from the next.
            self.held = [buf, STRAY_ANSWER].concat().into();
            // What the socket does not take now goes out with the flush.
            let _ = self.poll_held(cx)?;
            return Poll::Ready(Ok(buf.len()));
        }
        if !self.switch.is(GARBAGE) {
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        }
        while let Some(rest) = NOT_HTTP.get(self.garbage_sent..).filter(|rest| !rest.is_empty()) {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            self.garbage_sent += written;
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.switch.is(RESET) {
            // A shutdown sends the FIN that the reset on drop must not follow.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stray_answer_is_whole() {
        let text = std::str::from_utf8(STRAY_ANSWER).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
