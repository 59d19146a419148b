//! What the mock backend reads of a request.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

use super::answer::Answers;
use crate::wire::{FIELDS, Inbox, number_after};

/// The keys that matter stand this near to the beginning of a body.
pub const OPENING_BYTES: usize = 256;

#[derive(Clone, Copy)]
pub enum Path {
    Chat,
    Health,
    Models,
    Metrics,
    Unknown,
}

pub struct Head {
    pub path: Path,
    pub length: usize,
    /// Whether the client wants the connection closed after the answer.
    pub is_last: bool,
}

/// What a request wants to be answered with.
pub struct Wish {
    opening: Vec<u8>,
    pub stream: Option<Events>,
}

/// A stream of so many chunks.
#[derive(Clone, Copy)]
pub struct Events {
    pub count: u64,
    /// Between two of them; none where they are to come as fast as they go.
    pub pace: Option<Duration>,
}

/// Reads one head. A body without a length is refused: none of the proxies sends one here.
pub async fn head(stream: &mut TcpStream, inbox: &mut Inbox) -> io::Result<Head> {
    loop {
        if let Some((head, bytes)) = parse(inbox.unused())? {
            inbox.used(bytes);
            return Ok(head);
        }
        inbox.receive(stream).await?;
    }
}

fn parse(bytes: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(used) = request.parse(bytes).map_err(io::Error::other)? else { return Ok(None) };
    let mut head = Head { path: path(request.path.unwrap_or_default()), length: 0, is_last: false };
    for field in request.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") {
            let length = std::str::from_utf8(field.value).ok().and_then(|digits| digits.parse().ok());
            head.length = length.ok_or_else(|| io::Error::other("a length that is no number"))?;
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(io::Error::other("a chunked request"));
        } else if field.name.eq_ignore_ascii_case("connection") {
            head.is_last = field.value.eq_ignore_ascii_case(b"close");
        }
    }
    Ok(Some((head, used)))
}

fn path(path: &str) -> Path {
    match path {
        "/v1/chat/completions" => Path::Chat,
        "/health" => Path::Health,
        "/v1/models" => Path::Models,
        "/metrics" => Path::Metrics,
        _ => Path::Unknown,
    }
}

impl Wish {
    pub fn read(opening: &[u8]) -> Self {
        let is_stream = memchr::memmem::find(opening, b"\"stream\":true").is_some();
        let pace = number_after(opening, b"\"pace_us\":").filter(|pace| *pace > 0);
        let events = Events {
            count: number_after(opening, b"\"max_tokens\":").unwrap_or(1),
            pace: pace.map(Duration::from_micros),
        };
        Self { opening: opening.to_vec(), stream: is_stream.then_some(events) }
    }

    pub fn is_for(&self, answers: &Answers) -> bool {
        memchr::memmem::find(&self.opening, answers.named()).is_some()
    }
}
