//! The token counts an answer carries, picked up as it passes.
//!
//! Invariants: the answer is searched at the speed of memory for the one key that precedes the counts, and only
//! what follows it is read; a key cannot be met inside a text, where its quotes would be escaped. The counts are
//! the backend's word, good for metrics and for nothing that is paid.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use crate::edge::json::{Piece, Scanner, Token};

/// Tokens read and written, as the backend counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// In the prompt.
    pub input: u64,
    /// In the answer.
    pub output: u64,
}

/// Where an API puts its counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// In an object `usage`, at any depth: OpenAI, Anthropic.
    Usage,
    /// In the last object itself, behind `total_duration`: Ollama.
    Object,
}

impl Counts {
    /// An object up to and with the key that precedes the counts; the key is searched for, then all of it is
    /// given to the scanner before what follows the key.
    fn opening(self) -> &'static [u8] {
        match self {
            Self::Usage => br#"{"usage""#,
            Self::Object => br#"{"total_duration""#,
        }
    }

    /// Searches for that key. Made once: a finder is larger than all else that is kept of an answer.
    fn key(self) -> &'static Finder<'static> {
        static OF_USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(&Counts::Usage.opening()[1..]));
        static OF_OBJECT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(&Counts::Object.opening()[1..]));
        match self {
            Self::Usage => &OF_USAGE,
            Self::Object => &OF_OBJECT,
        }
    }

    /// The depth inside the object with the counts, counted from the opening.
    fn depth(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::Object => 1,
        }
    }
}

/// A count, to come as the next value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    Input,
    Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Searching, with so many bytes of the key seen.
    Search(usize),
    /// Reading what follows the key.
    Read,
}

/// The counts of one answer.
#[derive(Debug)]
pub struct Usage {
    counts: Counts,
    key: &'static Finder<'static>,
    state: State,
    scanner: Scanner,
    expected: Option<Count>,
    tokens: Option<Tokens>,
}

impl Usage {
    /// The counts of an answer before its first byte.
    pub fn new(counts: Counts) -> Self {
        Self {
            counts,
            key: counts.key(),
            state: State::Search(0),
            scanner: Scanner::new(),
            expected: None,
            tokens: None,
        }
    }

    /// The last counts met; later ones include earlier ones wherever an API gives several.
    pub fn tokens(&self) -> Option<Tokens> {
        self.tokens
    }

    /// Reads the next chunk of the answer.
    pub fn feed(&mut self, chunk: &[u8]) {
        let mut at = 0;
        while at < chunk.len() {
            at = match self.state {
                State::Search(0) => self.search(chunk, at),
                State::Search(matched) => self.complete(chunk, at, matched),
                State::Read => self.read(chunk, at),
            };
        }
    }

    /// Searches for the key; returns how far the chunk is done with.
    fn search(&mut self, chunk: &[u8], from: usize) -> usize {
        let rest = chunk.get(from..).unwrap_or_default();
        if let Some(found) = self.key.find(rest) {
            self.found();
            return from + found + self.key.needle().len();
        }
        let key = self.key.needle();
        // The key's start may be the chunk's end.
        let matched = (1..key.len()).find(|len| key.get(..*len).is_some_and(|start| rest.ends_with(start)));
        self.state = State::Search(matched.unwrap_or_default());
        chunk.len()
    }

    /// Goes on with a key that began in an earlier chunk.
    fn complete(&mut self, chunk: &[u8], at: usize, matched: usize) -> usize {
        if self.key.needle().get(matched) != chunk.get(at) {
            // Only the key's quote can begin it anew, and the search will find it.
            self.state = State::Search(0);
            return at;
        }
        self.state = State::Search(matched + 1);
        if matched + 1 == self.key.needle().len() {
            self.found();
        }
        at + 1
    }

    fn found(&mut self) {
        self.scanner.reset();
        self.expected = None;
        self.state = State::Read;
        let mut opening = Piece::new(self.counts.opening(), 0);
        while self.scanner.next(&mut opening).is_some() {}
    }

    fn read(&mut self, chunk: &[u8], from: usize) -> usize {
        let mut piece = Piece { bytes: chunk, at: from, base: 0 };
        while let Some(token) = self.scanner.next(&mut piece) {
            let depth = self.scanner.depth();
            if token == Token::Number
                && let Some(count) = self.expected
            {
                self.count(count, &piece);
            }
            self.expected = None;
            if token == Token::Key && depth == self.counts.depth() {
                self.expected = count(self.scanner.text(&piece));
                self.scanner.keep(self.expected.is_some());
            } else if depth < self.counts.depth() {
                // Behind the counts, or there is no object with any.
                self.state = State::Search(0);
                return piece.at;
            }
        }
        if self.scanner.failure().is_some() {
            self.state = State::Search(0);
        }
        piece.at
    }

    fn count(&mut self, count: Count, piece: &Piece<'_>) {
        let text = std::str::from_utf8(self.scanner.text(piece)).unwrap_or_default();
        let Ok(number) = text.parse() else { return };
        let tokens = self.tokens.get_or_insert_default();
        match count {
            Count::Input => tokens.input = number,
            Count::Output => tokens.output = number,
        }
    }
}

/// What the member of this name counts.
fn count(key: &[u8]) -> Option<Count> {
    match key {
        b"prompt_tokens" | b"input_tokens" | b"prompt_eval_count" => Some(Count::Input),
        b"completion_tokens" | b"output_tokens" | b"eval_count" => Some(Count::Output),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use crate::edge::json::samples;

    use super::*;

    fn read(counts: Counts, pieces: &[&[u8]]) -> Option<Tokens> {
        let mut usage = Usage::new(counts);
        pieces.iter().for_each(|piece| usage.feed(piece));
        usage.tokens()
    }

    fn check(counts: Counts, answer: &str, expected: Option<(u64, u64)>) {
        let expected = expected.map(|(input, output)| Tokens { input, output });
        assert_eq!(read(counts, &[answer.as_bytes()]), expected, "{answer}");
        samples::each_division(&mut Rng::with_seed(1), answer.as_bytes(), |pieces| {
            assert_eq!(read(counts, pieces), expected, "{pieces:?}");
        });
    }

    #[test]
    fn usage() {
        for (answer, tokens) in [
            (r#"{"usage":{"prompt_tokens":12,"total_tokens":15,"completion_tokens":3}}"#, Some((12, 3))),
            (
                r#"{"usage" : { "input_tokens" : 12 , "details":{"output_tokens":9}, "output_tokens" : 3 }, "x":1}"#,
                Some((12, 3)),
            ),
            (
                "data: {\"usage\":null}\n\ndata: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n",
                Some((1, 2)),
            ),
            (
                r#"{"message":{"usage":{"input_tokens":25,"output_tokens":1}}} {"usage":{"output_tokens":15}}"#,
                Some((25, 15)),
            ),
            (r#"{"usage":{"prompt_tokens":7}}"#, Some((7, 0))),
            (r#""usa"usag"usage":{"prompt_tokens":7}"#, Some((7, 0))),
            (r#"{"usage":{"prompt_tokens":1.5,"completion_tokens":-1}}"#, None),
            (r#"{"usage":{"prompt_tokens":"7","x":{"prompt_tokens":7}}}"#, None),
            (r#"{"usage":[{"prompt_tokens":7}],"prompt_tokens":7}"#, None),
            (r#"{"usage":{"prompt_tokens":[7]}}"#, None),
            (r#"{"content":"\"usage\":{\"prompt_tokens\":7}"}"#, None),
            (r#"{"usage","prompt_tokens":7}"#, None),
            ("", None),
        ] {
            check(Counts::Usage, answer, tokens);
        }
    }

    #[test]
    fn last_object() {
        let lines = "{\"done\":false}\n{\"done\":true,\"total_duration\":5,\"load_duration\":1,\"prompt_eval_count\":26,\"prompt_eval_duration\":3,\"eval_count\":259,\"eval_duration\":4}\n";
        check(Counts::Object, lines, Some((26, 259)));
        check(Counts::Object, r#"{"eval_count":1,"usage":{"eval_count":2}}"#, None);
    }
}
