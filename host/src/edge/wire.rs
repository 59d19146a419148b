//! A connection, in clear text or by TLS, to a client or a backend.
//!
//! An enum and no trait object, so that clear text costs what it did.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// What bytes come and go by. Dropping it closes it at once, without the last word of TLS.
#[derive(Debug)]
pub enum Wire {
    Plain(TcpStream),
    /// In a box, for its state has a kilobyte and most connections are plain.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// What is below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Whether it is open, with no byte that nobody asked for. For one that nobody waits on.
    pub fn is_silent(&mut self) -> bool {
        match self {
            Self::Plain(stream) => {
                matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            // What TLS says for itself, such as tickets of a session, is taken on the way.
            Self::Tls(stream) => {
                let (mut space, mut cx) = ([0], Context::from_waker(Waker::noop()));
                Pin::new(stream).poll_read(&mut cx, &mut ReadBuf::new(&mut space)).is_pending()
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => poll_read_records(Pin::new(stream), cx, buffer),
        }
    }
}

/// Reads on while there is something: one record at a time, as TLS gives them, each event of a burst would become a
/// write of its own.
fn poll_read_records(
    mut stream: Pin<&mut TlsStream<TcpStream>>,
    cx: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let begun = buffer.filled().len();
    loop {
        let before = buffer.filled().len();
        match stream.as_mut().poll_read(cx, buffer) {
            Poll::Ready(Ok(())) if buffer.filled().len() > before && buffer.remaining() > 0 => {}
            // An end or an error is told again to whoever asks next.
            Poll::Pending | Poll::Ready(Err(_)) if before > begun => return Poll::Ready(Ok(())),
            other => return other,
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
