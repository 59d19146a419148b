//! What the mock backend and the load generator share of HTTP/1.1: bytes that came in and were not yet used.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};

/// Room made before each read. Small enough for ten thousand idle streams, large enough for many chunks at once.
const READ_BYTES: usize = 8 * 1024;
/// Connections that may wait to be accepted; thousands of streams are opened within seconds.
const BACKLOG: u32 = 4096;
/// More header fields than any of these proxies sends.
pub const FIELDS: usize = 48;

/// Received and not yet used, of one connection.
#[derive(Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    used: usize,
}

impl Inbox {
    pub fn unused(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    pub fn used(&mut self, count: usize) {
        self.used += count;
        if self.used == self.bytes.len() {
            self.bytes.clear();
            self.used = 0;
        }
    }

    /// Waits for more bytes; the end of the connection is an error.
    pub async fn receive(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        if self.used > 0 {
            self.bytes.drain(..self.used);
            self.used = 0;
        }
        self.bytes.reserve(READ_BYTES);
        match stream.read_buf(&mut self.bytes).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// A listener on a free port of the loopback interface.
pub fn listen() -> io::Result<tokio::net::TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    socket.listen(BACKLOG)
}

/// The wall clock, which two processes share: chunks carry it to tell how long they were on their way.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// The number that follows this key in JSON written without spaces.
pub fn number_after(json: &[u8], key: &[u8]) -> Option<u64> {
    let at = memchr::memmem::find(json, key)? + key.len();
    let digits = json[at..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(None, |number: Option<u64>, digit| {
        Some(number.unwrap_or(0).saturating_mul(10).saturating_add(u64::from(digit - b'0')))
    })
}
