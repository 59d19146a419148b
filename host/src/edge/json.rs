//! A resumable, validating JSON tokenizer: a document is read in the pieces it arrives in.
//!
//! Invariants: the tokens, their offsets, their texts and the first error do not depend on where the pieces
//! are cut; what was read is never read again; no token allocates; the grammar is RFC 8259's and nothing
//! beside it (no NaN, trailing comma, comment, byte order mark or second document). Bytes from 0x80 up inside
//! strings are taken as they are: whoever asks for a text checks that it is UTF-8.

mod number;
#[cfg(test)]
pub(crate) mod samples;
mod scanner;
mod text;

use std::fmt;
use std::ops::Range;

pub use scanner::Scanner;

/// How many objects and arrays may be open at once; the parsers behind us stop at 128 or later.
pub const DEPTH_LIMIT: u8 = 128;

/// Bytes of decoded text kept of one key or value: what the longest reader, the hash of a prompt's start, asks
/// for, where it does not ask for more. A longer text is cut there, so a reader with a lower limit still sees that it is
/// too long.
pub const TEXT_LIMIT: usize = 1024;

/// What was read last. [`Scanner::range`] says where it stands, [`Scanner::text`] how it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// `{`; the object is counted in [`Scanner::depth`].
    Object,
    /// `}`; the object is no longer counted.
    ObjectEnd,
    /// `[`
    Array,
    /// `]`
    ArrayEnd,
    /// A member's name; its value is the next token.
    Key,
    /// A string that is a value.
    String,
    /// Any number, its value not computed.
    Number,
    /// `true`
    True,
    /// `false`
    False,
    /// `null`
    Null,
}

/// Why a document is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A byte that cannot stand there.
    Unexpected,
    /// Something after the end of the document.
    Trailing,
    /// The document ends too soon.
    End,
    /// A raw control character inside a string.
    Control,
    /// An escape that JSON does not know.
    Escape,
    /// More than [`DEPTH_LIMIT`] open objects and arrays.
    Depth,
}

/// Where a document stops being JSON: the offset is that of the first byte that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Syntax {
    /// What is wrong.
    pub reason: Reason,
    /// Counted from the start of the document.
    pub offset: usize,
}

impl fmt::Display for Syntax {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.reason {
            Reason::Unexpected => "unexpected character",
            Reason::Trailing => "something follows the end of the document",
            Reason::End => "the document ends too soon",
            Reason::Control => "control character inside a string",
            Reason::Escape => "unknown escape inside a string",
            Reason::Depth => "nested too deeply",
        };
        write!(out, "{what} at byte {}", self.offset)
    }
}

impl std::error::Error for Syntax {}

/// What lies before the scanner.
#[derive(Debug)]
pub struct Piece<'a> {
    /// A piece of the document.
    pub bytes: &'a [u8],
    /// How far it is read.
    pub at: usize,
    /// Where its first byte stands in the document.
    pub base: usize,
}

impl<'a> Piece<'a> {
    /// All of `bytes`, unread.
    pub fn new(bytes: &'a [u8], base: usize) -> Self {
        Self { bytes, at: 0, base }
    }

    fn slice(&self, range: Range<usize>) -> &'a [u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// The next byte that is no white space, not yet taken.
    #[inline]
    fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.bytes.get(self.at)?;
            if byte > b' ' || !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.at += 1;
        }
    }
}
