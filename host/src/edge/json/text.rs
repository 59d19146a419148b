//! The text of a key or a value: found in the piece where it lies there as it is, put together where it does not.
//!
//! Invariants: the buffer holds at most `limit` bytes and one character, and grows to that once; a half of a
//! surrogate pair alone becomes U+FFFD, which is what lenient parsers read.

use std::ops::Range;

use memchr::memchr2;

use super::Piece;

#[derive(Debug)]
pub(super) struct Text {
    /// Bytes kept of a text.
    limit: usize,
    wanted: bool,
    /// Whether the text does not lie in one piece as it is, so that `buffer` holds it.
    spilled: bool,
    /// Where it lies in the piece that brought its end, if it was not spilled.
    plain: Range<usize>,
    buffer: Vec<u8>,
    /// The first half of a surrogate pair whose second half has not come; 0 for none.
    high: u16,
}

impl Text {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, wanted: false, spilled: false, plain: 0..0, buffer: Vec::new(), high: 0 }
    }

    #[inline]
    pub(super) fn begin(&mut self, wanted: bool) {
        self.wanted = wanted;
        self.spilled = false;
        self.plain = 0..0;
    }

    /// The text ends behind `run`, bytes of this piece that stand for themselves.
    #[inline]
    pub(super) fn close(&mut self, piece: &Piece<'_>, run: Range<usize>) {
        match (self.wanted, self.spilled) {
            (true, true) => {
                self.spill(piece.slice(run));
                self.settle();
            }
            (true, false) => self.plain = run,
            (false, _) => {}
        }
    }

    #[inline]
    pub(super) fn get<'a>(&'a self, piece: &Piece<'a>) -> &'a [u8] {
        let text = if self.spilled { self.buffer.as_slice() } else { piece.slice(self.plain.clone()) };
        text.get(..self.limit).unwrap_or(text)
    }

    /// Adds bytes that stand for themselves.
    #[inline]
    pub(super) fn spill(&mut self, run: &[u8]) {
        if !self.spilled {
            self.spilled = true;
            self.buffer.clear();
            self.high = 0;
        }
        if self.wanted && !run.is_empty() {
            self.settle();
            let room = self.limit.saturating_sub(self.buffer.len());
            self.buffer.extend_from_slice(run.get(..room).unwrap_or(run));
        }
    }

    /// Adds what a backslash and `byte` stand for; false where that is nothing.
    #[inline]
    pub(super) fn escape(&mut self, byte: u8) -> bool {
        let decoded = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            _ => return false,
        };
        self.spill(&[decoded]);
        true
    }

    /// Adds one UTF-16 unit, which JSON writes as `\u` and four digits.
    pub(super) fn unit(&mut self, unit: u16) {
        if !self.wanted {
            return;
        }
        let high = std::mem::take(&mut self.high);
        match (high, unit) {
            (0xd800..=0xdbff, 0xdc00..=0xdfff) => {
                let pair = 0x10000 + (u32::from(high - 0xd800) << 10 | u32::from(unit - 0xdc00));
                self.char(pair);
            }
            (_, 0xd800..=0xdbff) => {
                self.lone(high);
                self.high = unit;
            }
            _ => {
                self.lone(high);
                self.char(u32::from(unit));
            }
        }
    }

    /// Gives up waiting for the second half of a pair.
    fn settle(&mut self) {
        let high = std::mem::take(&mut self.high);
        self.lone(high);
    }

    fn lone(&mut self, high: u16) {
        if high != 0 {
            self.char(u32::from(high));
        }
    }

    fn char(&mut self, code: u32) {
        if self.buffer.len() < self.limit {
            let char = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
            self.buffer.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
}

/// Strings longer than this many words of 8 bytes are left to `memchr`, whose call costs more than these do.
const SHORT_WORDS: usize = 6;

/// How much of a long string is searched for its end, and then for control characters, before the next block: what
/// the second look reads still lies in the cache of the first.
const BLOCK: usize = 16 << 10;

/// The index of the first byte from `from` on that does not stand for itself in a string (`"`, `\` or a control
/// character), or the length.
#[inline]
pub(super) fn run_end(bytes: &[u8], from: usize) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    let (words, tail) = rest.as_chunks::<8>();
    let mut at = from;
    for word in words.iter().take(SHORT_WORDS) {
        let hits = specials(u64::from_le_bytes(*word));
        if hits != 0 {
            return at + (hits.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    if words.len() > SHORT_WORDS {
        return long_run_end(bytes, at);
    }
    at + tail.iter().position(|byte| special(*byte)).unwrap_or(tail.len())
}

fn long_run_end(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let block = rest.get(..BLOCK).unwrap_or(rest);
        let end = memchr2(b'"', b'\\', block).unwrap_or(block.len());
        let run = block.get(..end).unwrap_or_default();
        // A minimum is one instruction for 16 bytes; a search that may stop early is not.
        if run.iter().fold(u8::MAX, |least, byte| least.min(*byte)) < b' ' {
            return at + run.iter().position(|byte| *byte < b' ').unwrap_or(end);
        }
        at += end;
        if end < block.len() {
            break;
        }
    }
    at
}

fn special(byte: u8) -> bool {
    matches!(byte, b'"' | b'\\' | 0..b' ')
}

/// Bit 7 of each byte of the word that is special; of the bits above the lowest one that is set, some may be wrong.
#[inline]
fn specials(word: u64) -> u64 {
    let every = |byte: u8| u64::from_ne_bytes([byte; 8]);
    let zero = |word: u64| word.wrapping_sub(every(1)) & !word;
    let control = word.wrapping_sub(every(b' ')) & !word;
    (zero(word ^ every(b'"')) | zero(word ^ every(b'\\')) | control) & every(0x80)
}
