//! A client that sends exact bytes, cut where the test says, and reads the exact bytes of an answer.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rustls::ClientConfig;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Reply, soon};

pub struct Raw {
    stream: Box<dyn Wire>,
    ahead: BytesMut,
}

/// In the clear or by TLS.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {
    fn socket(&self) -> SockRef<'_>;
}

impl Wire for TcpStream {
    fn socket(&self) -> SockRef<'_> {
        self.into()
    }
}

impl Wire for TlsStream<TcpStream> {
    fn socket(&self) -> SockRef<'_> {
        self.get_ref().0.into()
    }
}

async fn connected(address: SocketAddr) -> TcpStream {
    let stream = soon("a connection", TcpStream::connect(address)).await.expect("connect");
    stream.set_nodelay(true).expect("no delay");
    stream
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Self {
        Self { stream: Box::new(connected(address).await), ahead: BytesMut::new() }
    }

    /// By TLS, or why there is none.
    pub async fn connect_tls(address: SocketAddr, tls: ClientConfig) -> io::Result<Self> {
        let connector = TlsConnector::from(Arc::new(tls));
        let stream = connected(address).await;
        let stream = soon("a handshake", connector.connect(address.ip().into(), stream)).await?;
        Ok(Self { stream: Box::new(stream), ahead: BytesMut::new() })
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = async {
            self.stream.write_all(bytes.as_ref()).await?;
            self.stream.flush().await
        };
        soon("room to send", sent).await.expect("send");
    }

    /// Sends what the peer may cut short, as it does with a body that it refuses.
    pub async fn send_if_wanted(&mut self, bytes: impl AsRef<[u8]>) {
        // An error is the peer's refusal; its answer is there to be read.
        _ = soon("room to send", self.stream.write_all(bytes.as_ref())).await;
    }

    /// Reads until the answer holds this text; returns all up to its end.
    pub async fn read_until(&mut self, text: &str) -> Bytes {
        loop {
            if let Some(at) = self.ahead.windows(text.len()).position(|window| window == text.as_bytes()) {
                return self.ahead.split_to(at + text.len()).freeze();
            }
            assert!(self.more().await, "the connection ended before {text:?}: {:?}", self.ahead);
        }
    }

    /// One whole answer, by its own framing.
    pub async fn reply(&mut self) -> Reply {
        let mut reply = self.head().await;
        reply.body = match (reply.header("content-length").to_owned(), reply.header("transfer-encoding")) {
            (_, "chunked") => self.chunked_body().await,
            (length, _) if !length.is_empty() => self.exactly(length.parse().expect("a length")).await,
            _ if matches!(reply.status.as_u16(), 204 | 304) => Bytes::new(),
            _ => self.rest().await.0,
        };
        reply
    }

    /// The head of an answer, its body left to be read; heads of 1xx answers are passed over.
    pub async fn head(&mut self) -> Reply {
        loop {
            let head = self.read_until("\r\n\r\n").await;
            let reply = parse(&head);
            if !reply.status.is_informational() {
                return reply;
            }
        }
    }

    /// Everything until the peer ends the connection, and whether that was in order (FIN).
    pub async fn rest(&mut self) -> (Bytes, bool) {
        loop {
            match soon("the end of a connection", self.stream.read_buf(&mut self.ahead)).await {
                Ok(0) => return (self.ahead.split().freeze(), true),
                Ok(_) => {}
                Err(_) => return (self.ahead.split().freeze(), false),
            }
        }
    }

    /// Leaves in order (FIN); returns when it did.
    pub fn leave(self) -> Instant {
        drop(self.stream);
        Instant::now()
    }

    /// Leaves without order (RST); returns when it did.
    pub fn reset(self) -> Instant {
        self.stream.socket().set_linger(Some(Duration::ZERO)).expect("linger");
        self.leave()
    }

    /// Says that it will send no more, and goes on reading: the half-close that counts as gone.
    pub async fn finish(&mut self) -> Instant {
        // An error means that the peer was quicker to end it.
        _ = self.stream.shutdown().await;
        Instant::now()
    }

    async fn chunked_body(&mut self) -> Bytes {
        let mut body = BytesMut::new();
        loop {
            let line = self.read_until("\r\n").await;
            let size =
                std::str::from_utf8(line.trim_ascii()).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
            let size = size.unwrap_or_else(|| panic!("no size of a chunk: {line:?}"));
            body.extend_from_slice(&self.exactly(size).await);
            assert_eq!(self.read_until("\r\n").await, "\r\n", "a chunk ends with its line");
            if size == 0 {
                return body.freeze();
            }
        }
    }

    /// The next so many bytes.
    pub async fn exactly(&mut self, count: usize) -> Bytes {
        while self.ahead.len() < count {
            assert!(self.more().await, "the answer is short: {} of {count} bytes", self.ahead.len());
        }
        self.ahead.split_to(count).freeze()
    }

    /// Reads once; false where the connection ended.
    async fn more(&mut self) -> bool {
        let read = soon("more of an answer", self.stream.read_buf(&mut self.ahead)).await;
        read.expect("a connection that is not reset") > 0
    }
}

/// A head with these fields and a `Host`, the blank line included.
pub fn request_head(method: &str, path: &str, fields: &[(&str, &str)]) -> String {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nHost: proxy.test\r\n{fields}\r\n")
}

/// A POST of JSON text with a `Content-Length`.
pub fn sized_request(path: &str, body: &str) -> String {
    let length = body.len().to_string();
    request_head("POST", path, &[("Content-Type", "application/json"), ("Content-Length", &length)]) + body
}

/// The head of a POST of JSON text in chunks.
pub fn chunked_head(path: &str) -> String {
    request_head("POST", path, &[("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")])
}

/// These pieces as the chunks of a whole body; empty ones are left out, for they would end it.
pub fn in_chunks<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
        bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        bytes.extend_from_slice(piece);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

fn parse(head: &[u8]) -> Reply {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    let status = response.parse(head);
    assert!(status.is_ok_and(|status| status.is_complete()), "no head: {}", String::from_utf8_lossy(head));
    let mut headers = HeaderMap::new();
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).expect("a name");
        headers.append(name, HeaderValue::from_bytes(field.value).expect("a value"));
    }
    let status = StatusCode::from_u16(response.code.unwrap_or_default()).expect("a status");
    Reply { status, headers, body: Bytes::new() }
}
