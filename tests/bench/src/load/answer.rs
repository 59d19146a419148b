//! Answers as they come off a connection: the head, and the body out of its chunks.

use tokio::net::TcpStream;

use super::tally::Failure;
use crate::wire::{FIELDS, Inbox};

pub struct Head {
    pub status: u16,
    pub framing: Framing,
    pub closes: bool,
}

/// How a body ends.
#[derive(Clone, Copy)]
pub enum Framing {
    Length(usize),
    Chunked,
}

pub async fn head(stream: &mut TcpStream, inbox: &mut Inbox) -> Result<Head, Failure> {
    loop {
        if let Some((head, bytes)) = parse(inbox.unused())? {
            inbox.used(bytes);
            return Ok(head);
        }
        inbox.receive(stream).await.map_err(|_| Failure::BrokenOff)?;
    }
}

fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, Failure> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut answer = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(used) = answer.parse(bytes).map_err(|_| Failure::Malformed)? else {
        return Ok(None);
    };
    let mut head = Head { status: answer.code.unwrap_or_default(), framing: Framing::Length(0), closes: false };
    for field in answer.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") {
            let length = std::str::from_utf8(field.value).ok().and_then(|digits| digits.parse().ok());
            head.framing = Framing::Length(length.ok_or(Failure::Malformed)?);
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            head.framing = Framing::Chunked;
        } else if field.name.eq_ignore_ascii_case("connection") {
            head.closes = field.value.eq_ignore_ascii_case(b"close");
        }
    }
    Ok(Some((head, used)))
}

/// Reads a body to its end, and hands it on as it comes.
pub async fn body(
    stream: &mut TcpStream,
    inbox: &mut Inbox,
    framing: Framing,
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut left = match framing {
        Framing::Length(length) => Left::Bytes(length),
        Framing::Chunked => Left::ChunkHead,
    };
    loop {
        while let Some((used, data, next)) = left.step(inbox.unused())? {
            if data > 0 {
                take(&inbox.unused()[..data])?;
            }
            inbox.used(used);
            left = next;
        }
        if matches!(left, Left::Nothing) {
            return Ok(());
        }
        inbox.receive(stream).await.map_err(|_| Failure::BrokenOff)?;
    }
}

/// What of a body is still to come.
#[derive(Clone, Copy)]
enum Left {
    Bytes(usize),
    ChunkHead,
    ChunkBytes(usize),
    /// The line's end after a chunk.
    ChunkEnd,
    /// The line's end after the last chunk; nobody here sends trailers.
    LastEnd,
    Nothing,
}

impl Left {
    /// Bytes to use, how many of them are data, and what is left then; `None` where more must come first.
    fn step(self, bytes: &[u8]) -> Result<Option<(usize, usize, Self)>, Failure> {
        Ok(match self {
            Self::Nothing => None,
            Self::Bytes(0) => Some((0, 0, Self::Nothing)),
            Self::ChunkBytes(0) => Some((0, 0, Self::ChunkEnd)),
            Self::Bytes(_) | Self::ChunkBytes(_) if bytes.is_empty() => None,
            Self::Bytes(left) => {
                let count = left.min(bytes.len());
                Some((count, count, Self::Bytes(left - count)))
            }
            Self::ChunkBytes(left) => {
                let count = left.min(bytes.len());
                Some((count, count, Self::ChunkBytes(left - count)))
            }
            Self::ChunkEnd if bytes.len() >= 2 => Some((2, 0, Self::ChunkHead)),
            Self::LastEnd if bytes.len() >= 2 => Some((2, 0, Self::Nothing)),
            Self::ChunkEnd | Self::LastEnd => None,
            Self::ChunkHead => match httparse::parse_chunk_size(bytes).map_err(|_| Failure::Malformed)? {
                httparse::Status::Complete((used, 0)) => Some((used, 0, Self::LastEnd)),
                httparse::Status::Complete((used, size)) => {
                    let size = usize::try_from(size).map_err(|_| Failure::Malformed)?;
                    Some((used, 0, Self::ChunkBytes(size)))
                }
                httparse::Status::Partial => None,
            },
        })
    }
}
