//! Reading requests from a connection: heads by httparse, bodies by length or by chunks.

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;

/// More fields than any client of the suite sends.
const MOST_FIELDS: usize = 128;

/// The peer ended the connection, in order or not.
pub struct Gone;

/// The reading half of a connection, with what was read ahead.
pub struct Inbox {
    stream: OwnedReadHalf,
    ahead: BytesMut,
}

pub struct Head {
    pub method: String,
    pub target: String,
    pub bytes: Bytes,
    pub expects_continue: bool,
    length: Length,
}

enum Length {
    Known(usize),
    Chunked,
}

impl Inbox {
    pub fn new(stream: OwnedReadHalf) -> Self {
        Self { stream, ahead: BytesMut::new() }
    }

    pub async fn head(&mut self) -> Result<Head, Gone> {
        loop {
            if let Some(head) = parse(&mut self.ahead) {
                return Ok(head);
            }
            self.more().await?;
        }
    }

    /// Reads a body to its end into `body`, which holds what came also where the peer leaves in the middle.
    pub async fn body(&mut self, head: &Head, body: &mut BytesMut) -> Result<(), Gone> {
        match head.length {
            Length::Known(length) => self.exactly(length, body).await,
            Length::Chunked => loop {
                let size = self.line().await?;
                let size = usize::from_str_radix(size.trim(), 16).expect("the size of a chunk");
                self.exactly(size, body).await?;
                assert_eq!(self.line().await?, "", "a chunk ends with its line");
                if size == 0 {
                    return Ok(());
                }
            },
        }
    }

    /// Returns when the peer leaves.
    pub async fn gone(&mut self) {
        while self.more().await.is_ok() {}
    }

    async fn exactly(&mut self, mut count: usize, into: &mut BytesMut) -> Result<(), Gone> {
        while count > 0 {
            if self.ahead.is_empty() {
                self.more().await?;
            }
            let part = self.ahead.split_to(count.min(self.ahead.len()));
            count -= part.len();
            into.extend_from_slice(&part);
        }
        Ok(())
    }

    async fn line(&mut self) -> Result<String, Gone> {
        loop {
            if let Some(end) = self.ahead.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.ahead.split_to(end);
                self.ahead.advance(2);
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<(), Gone> {
        match self.stream.read_buf(&mut self.ahead).await {
            Ok(0) | Err(_) => Err(Gone),
            Ok(_) => Ok(()),
        }
    }
}

fn parse(ahead: &mut BytesMut) -> Option<Head> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let size = match request.parse(ahead).expect("the proxy sends well-formed heads") {
        httparse::Status::Complete(size) => size,
        httparse::Status::Partial => return None,
    };
    let value = |name: &str| {
        let field = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        Some(String::from_utf8_lossy(field.value).to_ascii_lowercase())
    };
    let length = match value("transfer-encoding") {
        Some(coding) => {
            assert_eq!(coding, "chunked", "the only coding that an engine takes");
            Length::Chunked
        }
        None => Length::Known(value("content-length").map_or(0, |length| length.parse().expect("a length"))),
    };
    let method = request.method.unwrap_or_default().to_owned();
    let target = request.path.unwrap_or_default().to_owned();
    let expects_continue = value("expect").is_some();
    Some(Head { method, target, bytes: ahead.split_to(size).freeze(), expects_continue, length })
}
