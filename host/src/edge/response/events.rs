//! The lines of an event stream (WHATWG HTML §9.2.6), and which bytes of them are data.
//!
//! Invariants: a line's meaning does not depend on how the stream is cut; nothing is held back, not even a
//! carriage return whose line feed is still to come; the data of one event is one document, whose lines are
//! joined by line feeds.

use memchr::memchr2;

use super::document::{Cut, Document};

/// What a line with data begins with.
const FIELD: &[u8] = b"data:";

/// What a stream may begin with, to no meaning.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// How far the line being read is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// At the start of the stream, behind so many bytes of a byte order mark.
    Mark(usize),
    /// At the start of a line; whether a carriage return came just before.
    Start {
        after_return: bool,
    },
    /// Behind so many bytes of [`FIELD`].
    Field(usize),
    Data,
    /// A comment or another field.
    Other,
}

/// The reader of one event stream.
#[derive(Debug)]
pub(super) struct Events {
    line: Line,
}

impl Events {
    pub(super) fn new() -> Self {
        Self { line: Line::Mark(0) }
    }

    /// Reads a chunk of the stream; each event's data goes through `document`.
    pub(super) fn read(&mut self, chunk: &[u8], document: &mut Document, public: &[u8], cuts: &mut Vec<Cut>) {
        let mut at = 0;
        while let Some(byte) = chunk.get(at).copied() {
            at = match self.line {
                Line::Mark(matched) => self.mark(byte, matched, at),
                Line::Start { after_return } => self.start(chunk, at, byte, after_return, document),
                Line::Field(matched) => self.field(byte, matched, at),
                Line::Data | Line::Other => {
                    let rest = chunk.get(at..).unwrap_or_default();
                    let end = memchr2(b'\n', b'\r', rest).map_or(chunk.len(), |end| at + end);
                    if self.line == Line::Data && !document.over() {
                        document.read(chunk.get(..end).unwrap_or_default(), at, public, cuts);
                    }
                    self.end(chunk, end, document, cuts)
                }
            };
        }
    }

    fn mark(&mut self, byte: u8, matched: usize, at: usize) -> usize {
        let marked = BYTE_ORDER_MARK.get(matched) == Some(&byte);
        self.line = match matched {
            _ if marked && matched + 1 < BYTE_ORDER_MARK.len() => Line::Mark(matched + 1),
            _ if marked || matched == 0 => Line::Start { after_return: false },
            // Part of a mark is the name of an unknown field.
            _ => Line::Other,
        };
        at + usize::from(marked)
    }

    #[inline]
    fn start(&mut self, chunk: &[u8], at: usize, byte: u8, after_return: bool, document: &mut Document) -> usize {
        match byte {
            b'\n' if after_return => self.line = Line::Start { after_return: false },
            b'\n' | b'\r' => {
                document.reset();
                self.line = Line::Start { after_return: byte == b'\r' };
            }
            _ if chunk.get(at..).is_some_and(|rest| rest.starts_with(FIELD)) => {
                self.line = Line::Data;
                return at + FIELD.len();
            }
            _ => {
                self.line = Line::Field(0);
                return at;
            }
        }
        at + 1
    }

    fn field(&mut self, byte: u8, matched: usize, at: usize) -> usize {
        let more = FIELD.get(matched) == Some(&byte);
        self.line = match matched + 1 {
            next if more && next < FIELD.len() => Line::Field(next),
            _ if more => Line::Data,
            // Also where the name stands alone: an empty line of data is white space to JSON.
            _ => Line::Other,
        };
        at + usize::from(more)
    }

    /// Ends the line at `end`, unless that is only the end of the chunk.
    #[inline]
    fn end(&mut self, chunk: &[u8], end: usize, document: &mut Document, cuts: &mut Vec<Cut>) -> usize {
        let Some(byte) = chunk.get(end) else { return end };
        if self.line == Line::Data && !document.over() {
            // Breaks a string, as it must; nothing can be found in it, so nothing is cut from it.
            document.read(b"\n", 0, b"", cuts);
        }
        self.line = Line::Start { after_return: *byte == b'\r' };
        end + 1
    }
}
