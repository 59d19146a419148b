//! For the fuzzer and its replayed corpus: an answer read from the bytes that a backend wrote, without a connection.

use bytes::BytesMut;
use http::{HeaderMap, Method};

use super::framing::Progress;
use super::send::Heard;

/// What an attempt makes of those bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Reading {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub end: End,
}

/// Whether the body is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// So many bytes lie behind it.
    Reached { behind: usize },
    /// More of it is to come.
    Awaited,
    /// It lasts until the connection is closed.
    WithClose,
    /// Its framing is broken.
    Broken,
}

/// Reads an answer from bytes that came in these pieces; `None` where they are none, or the beginning of one.
pub fn read_answer(method: &Method, pieces: &[&[u8]]) -> Option<Reading> {
    let mut pieces = pieces.iter();
    let mut heard = Heard::default();
    let head = pieces.by_ref().find_map(|piece| heard.take(piece).transpose())?.ok()?;
    let mut framing = head.framing(method).ok()?;
    let mut body = BytesMut::new();
    let mut end = if framing.ends_with_close() { End::WithClose } else { End::Awaited };
    for piece in std::iter::once(&&*head.behind).chain(pieces) {
        if let End::Reached { behind } = &mut end {
            *behind += piece.len();
        } else if end != End::Broken {
            match framing.decode(piece, &mut body) {
                Ok(Progress::Done { rest }) => end = End::Reached { behind: rest },
                Ok(Progress::More) => {}
                Err(_) => end = End::Broken,
            }
        }
    }
    Some(Reading { status: head.status.as_u16(), headers: head.headers, body: body.to_vec(), end })
}
