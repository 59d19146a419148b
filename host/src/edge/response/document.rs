//! Finds the model names in one JSON document of an answer, to be cut out as the document passes.
//!
//! Invariants: nothing is held back; a cut covers a name's value, quotes included, and nothing else; where the
//! cuts lie in the document does not depend on how it is divided into pieces; what is not JSON, or no object, is
//! never cut from where that shows.

use crate::edge::json::{Piece, Reason, Scanner, Token};

/// The member that holds a second `model`, beside the one at the top level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nest {
    /// `message.model`: Anthropic's Messages.
    Message,
    /// `response.model`: OpenAI's Responses.
    Response,
}

impl Nest {
    fn key(self) -> &'static [u8] {
        match self {
            Self::Message => b"message",
            Self::Response => b"response",
        }
    }
}

/// Bytes of a chunk that are not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub start: usize,
    pub end: usize,
    /// Whether the public name is written in their place; if not, it was when the value began.
    pub replaced: bool,
}

/// How far one document is read.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    top_found: bool,
    nested_found: bool,
    /// Whether there is nothing more to find.
    over: bool,
    /// Whether the member of the top level being read is the one that nests a name.
    in_nest: bool,
    /// Whether the value that comes next is a name.
    expected: bool,
    /// Whether the start of a name was cut, and its end has not come.
    cutting: bool,
}

/// The walk through one document after the other.
#[derive(Debug)]
pub(super) struct Document {
    scanner: Scanner,
    nest: Option<Nest>,
    progress: Progress,
}

impl Document {
    pub(super) fn new(nest: Option<Nest>) -> Self {
        Self { scanner: Scanner::new(), nest, progress: Progress::default() }
    }

    /// Starts the next document.
    #[inline]
    pub(super) fn reset(&mut self) {
        self.scanner.reset();
        self.progress = Progress::default();
    }

    /// Whether the rest of this document may pass unread.
    #[inline]
    pub(super) fn over(&self) -> bool {
        self.progress.over
    }

    /// Reads the bytes of `chunk` from `from` to its end; adds to `cuts` the names that are not `public` already.
    pub(super) fn read(&mut self, chunk: &[u8], from: usize, public: &[u8], cuts: &mut Vec<Cut>) {
        // Offsets count from the start of this chunk; what began in an earlier one is known by `cutting`.
        let mut piece = Piece { bytes: chunk, at: from, base: 0 };
        while !self.progress.over {
            match self.scanner.next(&mut piece) {
                Some(Token::Key) => self.key(&piece),
                Some(Token::String) if self.progress.expected => {
                    let name = self.scanner.range();
                    if self.progress.cutting || chunk.get(name.clone()) != Some(public) {
                        self.cut(from, name.end, cuts);
                    }
                    self.name_ended();
                }
                Some(_) => self.progress.expected = false,
                None => return self.stopped(from, chunk.len(), cuts),
            }
        }
    }

    /// The chunk is read to its end, or the document is wrong.
    fn stopped(&mut self, from: usize, len: usize, cuts: &mut Vec<Cut>) {
        match self.scanner.failure() {
            Some(syntax) => {
                // The cut of a name that breaks ends where it would have ended had the rest come later.
                if self.progress.expected && matches!(syntax.reason, Reason::Control | Reason::Escape) {
                    self.cut(from, syntax.offset, cuts);
                }
                self.progress.over = true;
            }
            None if self.progress.expected && self.scanner.open_string().is_some() => {
                self.cut(from, len, cuts);
                self.progress.cutting = true;
            }
            None => {}
        }
    }

    /// A key in an object of an array has the wrong depth, or no member that nests a name before it.
    fn key(&mut self, piece: &Piece<'_>) {
        let key = self.scanner.text(piece);
        match self.scanner.depth() {
            1 => {
                self.progress.expected = key == b"model";
                self.progress.in_nest = self.nest.is_some_and(|nest| nest.key() == key);
            }
            2 => self.progress.expected = self.progress.in_nest && key == b"model",
            _ => {}
        }
    }

    /// Cuts the name being read out of the chunk, up to `end`; `from` is where the reading of the chunk began.
    fn cut(&self, from: usize, end: usize, cuts: &mut Vec<Cut>) {
        let start = if self.progress.cutting { from } else { self.scanner.range().start };
        if start < end {
            cuts.push(Cut { start, end, replaced: !self.progress.cutting });
        }
    }

    fn name_ended(&mut self) {
        let progress = &mut self.progress;
        if self.scanner.depth() == 1 {
            progress.top_found = true;
        } else {
            progress.nested_found = true;
        }
        progress.over = progress.top_found && (progress.nested_found || self.nest.is_none());
        progress.expected = false;
        progress.cutting = false;
    }
}
