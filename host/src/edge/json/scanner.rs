//! The tokenizer itself: one state, one byte looked at, until a token is whole.
//!
//! Invariants: a token, its offsets and its text are the same wherever the pieces are cut; nothing read is read
//! again; a failure is final. What is open is a stack of bits, so that depth costs no memory.

use std::ops::Range;

use super::number::Digits;
use super::text::{Text, run_end};
use super::{DEPTH_LIMIT, Piece, Reason, Syntax, TEXT_LIMIT, Token};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A value must come.
    Value,
    /// Behind `[`: a value or `]`.
    FirstValue,
    /// Behind a comma in an object: a key must come.
    Key,
    /// Behind `{`: a key or `}`.
    FirstKey,
    Colon,
    /// Behind a value in a container: a comma or the end of it.
    AfterValue,
    /// Inside a key or a string.
    String,
    /// Behind a backslash.
    Escape,
    /// Behind `\u`, with so many digits and this value of them.
    Hex(u8, u16),
    Number(Digits),
    /// Inside `true`, `false` or `null`, with so many letters read.
    Literal(Token, u8),
    Done,
    Failed,
}

/// The tokenizer. Give it the pieces of one document in order; [`Scanner::reset`] starts the next document.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    depth: u8,
    /// The innermost container in the lowest bit, set where it is an object.
    containers: u128,
    /// Whether the string being read is a key or a value.
    string: Token,
    start: usize,
    end: usize,
    /// Offset behind the last piece that was read to its end.
    read: usize,
    keep: bool,
    text: Text,
    failure: Option<Syntax>,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Scanner {
    /// A scanner before its first document.
    pub fn new() -> Self {
        Self::keeping(TEXT_LIMIT)
    }

    /// The same, where texts are cut at another length.
    pub fn keeping(text_limit: usize) -> Self {
        Self {
            state: State::Value,
            depth: 0,
            containers: 0,
            string: Token::Key,
            start: 0,
            end: 0,
            read: 0,
            keep: false,
            text: Text::new(text_limit),
            failure: None,
        }
    }

    /// Forgets the document, keeps the buffer.
    pub fn reset(&mut self) {
        self.state = State::Value;
        self.depth = 0;
        self.keep = false;
        self.failure = None;
    }

    /// How many objects and arrays are open.
    #[inline]
    pub fn depth(&self) -> u8 {
        self.depth
    }

    /// Where the last token stands in the document; a string with its quotes.
    #[inline]
    pub fn range(&self) -> Range<usize> {
        self.start..self.end
    }

    /// Whether the texts of the strings and numbers that follow will be asked for; those of keys always may be.
    #[inline]
    pub fn keep(&mut self, keep: bool) {
        self.keep = keep;
    }

    /// The last token's text with its escapes decoded, cut at [`TEXT_LIMIT`] (perhaps within a character);
    /// empty if it was not kept. `piece` is the one that brought the token.
    #[inline]
    pub fn text<'a>(&'a self, piece: &Piece<'a>) -> &'a [u8] {
        self.text.get(piece)
    }

    /// The offset of the string value that has begun and not ended, if the document stands inside one.
    pub fn open_string(&self) -> Option<usize> {
        let inside = matches!(self.state, State::String | State::Escape | State::Hex(..));
        (inside && self.string == Token::String).then_some(self.start)
    }

    /// Whether everything read so far is one whole document.
    pub fn finish(&self) -> Result<(), Syntax> {
        match self.state {
            State::Done => Ok(()),
            // A bare number has no last byte of its own: the end of the input is its end.
            State::Number(digits) if self.depth == 0 && digits.complete() => Ok(()),
            _ => Err(self.failure.unwrap_or(Syntax { reason: Reason::End, offset: self.read })),
        }
    }

    /// The next token; `None` when the piece is used up, or when the document is wrong ([`Scanner::failure`]).
    // One byte in a register: with the error in it the answer would go through memory, at twice the time a token.
    #[inline]
    pub fn next(&mut self, piece: &mut Piece<'_>) -> Option<Token> {
        let token = self.step(piece);
        if token.is_none() {
            self.read = piece.base + piece.at;
        }
        token
    }

    /// Where the document is wrong, as far as it was read; it stays so, and no token comes any more.
    #[inline]
    pub fn failure(&self) -> Option<Syntax> {
        self.failure
    }

    fn step(&mut self, piece: &mut Piece<'_>) -> Option<Token> {
        loop {
            match self.state {
                State::String => return self.string(piece),
                State::Escape | State::Hex(..) => return self.resume_escape(piece),
                State::Number(digits) => return self.number(piece, digits),
                State::Literal(token, matched) => return self.literal(piece, token, matched),
                State::Failed => return None,
                _ => {}
            }
            let byte = piece.peek()?;
            match (self.state, byte) {
                (State::FirstKey | State::Key, b'"') => return self.open(piece, Token::Key),
                (State::Colon, b':') => self.pass(piece, State::Value),
                (State::Value | State::FirstValue, _) => return self.value(piece, byte),
                (State::AfterValue, b',') if self.in_object() => self.pass(piece, State::Key),
                (State::AfterValue, b',') => self.pass(piece, State::Value),
                (State::AfterValue, b'}') if self.in_object() => return self.leave(piece, Token::ObjectEnd),
                (State::AfterValue, b']') if !self.in_object() => return self.leave(piece, Token::ArrayEnd),
                (State::FirstKey, b'}') => return self.leave(piece, Token::ObjectEnd),
                (State::Done, _) => return self.fail(piece, Reason::Trailing),
                _ => return self.fail(piece, Reason::Unexpected),
            }
        }
    }

    #[inline]
    fn in_object(&self) -> bool {
        self.containers & 1 == 1
    }

    #[inline]
    fn pass(&mut self, piece: &mut Piece<'_>, state: State) {
        piece.at += 1;
        self.state = state;
    }

    #[cold]
    fn fail(&mut self, piece: &Piece<'_>, reason: Reason) -> Option<Token> {
        let syntax = Syntax { reason, offset: piece.base + piece.at };
        self.state = State::Failed;
        self.failure = Some(syntax);
        None
    }

    /// Ends the token before the piece's position.
    #[inline]
    fn emit(&mut self, piece: &Piece<'_>, token: Token, state: State) -> Option<Token> {
        self.end = piece.base + piece.at;
        self.state = state;
        Some(token)
    }

    #[inline]
    fn after_value(&self) -> State {
        if self.depth == 0 { State::Done } else { State::AfterValue }
    }

    #[inline]
    fn value(&mut self, piece: &mut Piece<'_>, byte: u8) -> Option<Token> {
        self.start = piece.base + piece.at;
        match byte {
            b'"' => self.open(piece, Token::String),
            b'{' => self.enter(piece, Token::Object, State::FirstKey),
            b'[' => self.enter(piece, Token::Array, State::FirstValue),
            b']' if self.state == State::FirstValue => self.leave(piece, Token::ArrayEnd),
            b't' => self.literal(piece, Token::True, 0),
            b'f' => self.literal(piece, Token::False, 0),
            b'n' => self.literal(piece, Token::Null, 0),
            b'-' | b'0'..=b'9' => {
                self.text.begin(self.keep);
                self.number(piece, Digits::Start)
            }
            _ => self.fail(piece, Reason::Unexpected),
        }
    }

    #[inline]
    fn enter(&mut self, piece: &mut Piece<'_>, token: Token, state: State) -> Option<Token> {
        if self.depth == DEPTH_LIMIT {
            return self.fail(piece, Reason::Depth);
        }
        self.depth += 1;
        self.containers = self.containers << 1 | u128::from(token == Token::Object);
        piece.at += 1;
        self.emit(piece, token, state)
    }

    #[inline]
    fn leave(&mut self, piece: &mut Piece<'_>, token: Token) -> Option<Token> {
        self.start = piece.base + piece.at;
        self.depth -= 1;
        self.containers >>= 1;
        piece.at += 1;
        self.emit(piece, token, self.after_value())
    }

    #[inline]
    fn open(&mut self, piece: &mut Piece<'_>, token: Token) -> Option<Token> {
        self.start = piece.base + piece.at;
        piece.at += 1;
        self.string = token;
        self.state = State::String;
        self.text.begin(self.keep || token == Token::Key);
        self.string(piece)
    }

    #[inline]
    fn string(&mut self, piece: &mut Piece<'_>) -> Option<Token> {
        loop {
            let run = piece.at..run_end(piece.bytes, piece.at);
            piece.at = run.end;
            match piece.bytes.get(run.end) {
                Some(b'"') => {
                    self.text.close(piece, run);
                    piece.at += 1;
                    let state = if self.string == Token::Key { State::Colon } else { self.after_value() };
                    return self.emit(piece, self.string, state);
                }
                Some(b'\\') => {
                    self.text.spill(piece.slice(run));
                    self.pass(piece, State::Escape);
                    self.escape(piece)?;
                }
                Some(_) => return self.fail(piece, Reason::Control),
                None => {
                    self.text.spill(piece.slice(run));
                    return None;
                }
            }
        }
    }

    /// Goes on in a string whose last piece ended within an escape.
    fn resume_escape(&mut self, piece: &mut Piece<'_>) -> Option<Token> {
        self.escape(piece)?;
        self.string(piece)
    }

    /// Reads the escape to its end; `None` when the piece ends before, or the escape is none.
    fn escape(&mut self, piece: &mut Piece<'_>) -> Option<()> {
        loop {
            let byte = *piece.bytes.get(piece.at)?;
            let state = match self.state {
                State::Hex(digits, value) => {
                    match char::from(byte).to_digit(16).and_then(|digit| u16::try_from(digit).ok()) {
                        Some(digit) if digits == 3 => {
                            self.text.unit(value << 4 | digit);
                            State::String
                        }
                        Some(digit) => State::Hex(digits + 1, value << 4 | digit),
                        None => return self.fail(piece, Reason::Escape).map(drop),
                    }
                }
                _ if byte == b'u' => State::Hex(0, 0),
                _ if self.text.escape(byte) => State::String,
                _ => return self.fail(piece, Reason::Escape).map(drop),
            };
            self.pass(piece, state);
            if state == State::String {
                return Some(());
            }
        }
    }

    #[inline]
    fn number(&mut self, piece: &mut Piece<'_>, mut digits: Digits) -> Option<Token> {
        let from = piece.at;
        loop {
            if digits.repeats() {
                let rest = piece.bytes.get(piece.at..).unwrap_or_default();
                piece.at += rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
            }
            let Some(byte) = piece.bytes.get(piece.at) else {
                self.state = State::Number(digits);
                self.text.spill(piece.slice(from..piece.at));
                return None;
            };
            match digits.next(*byte) {
                Some(next) => digits = next,
                None if digits.complete() => {
                    self.text.close(piece, from..piece.at);
                    return self.emit(piece, Token::Number, self.after_value());
                }
                None => return self.fail(piece, Reason::Unexpected),
            }
            piece.at += 1;
        }
    }

    #[inline]
    fn literal(&mut self, piece: &mut Piece<'_>, token: Token, matched: u8) -> Option<Token> {
        let word: &[u8] = match token {
            Token::True => b"true",
            Token::False => b"false",
            _ => b"null",
        };
        for (letters, letter) in word.iter().enumerate().skip(usize::from(matched)) {
            match piece.bytes.get(piece.at) {
                Some(byte) if byte == letter => piece.at += 1,
                Some(_) => return self.fail(piece, Reason::Unexpected),
                None => {
                    self.state = State::Literal(token, u8::try_from(letters).unwrap_or_default());
                    return None;
                }
            }
        }
        self.emit(piece, token, self.after_value())
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IgnoredAny;
    use serde_json::{Map, Value};

    use super::super::samples;
    use super::*;

    /// All that a scanner says of a document.
    #[derive(Debug, Default, PartialEq)]
    struct Heard {
        tokens: Vec<(Token, Range<usize>, u8, Vec<u8>)>,
        failure: Option<Syntax>,
        end: Option<Syntax>,
    }

    fn scan(pieces: &[&[u8]]) -> Heard {
        let mut scanner = Scanner::new();
        scanner.keep(true);
        let mut heard = Heard::default();
        let mut base = 0;
        for bytes in pieces {
            let mut piece = Piece::new(bytes, base);
            while let Some(token) = scanner.next(&mut piece) {
                let spoken = matches!(token, Token::Key | Token::String | Token::Number);
                let text = if spoken { scanner.text(&piece).to_vec() } else { Vec::new() };
                heard.tokens.push((token, scanner.range(), scanner.depth(), text));
            }
            if scanner.failure().is_none() {
                assert_eq!(piece.at, bytes.len());
            }
            base += bytes.len();
        }
        heard.failure = scanner.failure();
        heard.end = scanner.finish().err();
        heard
    }

    fn accepted(bytes: &[u8]) -> bool {
        scan(&[bytes]).end.is_none()
    }

    /// The value that the tokens spell.
    fn rebuilt(heard: &Heard) -> Value {
        fn text(bytes: &[u8]) -> String {
            String::from_utf8(bytes.to_vec()).unwrap()
        }
        fn value<'a>(tokens: &mut impl Iterator<Item = &'a (Token, Range<usize>, u8, Vec<u8>)>) -> Option<Value> {
            let (token, _, _, said) = tokens.next().unwrap();
            Some(match token {
                Token::Object => {
                    let mut members = Map::new();
                    loop {
                        let (token, _, _, key) = tokens.next().unwrap();
                        if *token == Token::ObjectEnd {
                            break Value::Object(members);
                        }
                        assert_eq!(*token, Token::Key);
                        members.insert(text(key), value(tokens).unwrap());
                    }
                }
                Token::Array => Value::Array(std::iter::from_fn(|| value(tokens)).collect()),
                Token::String => Value::String(text(said)),
                // Kept as text, so that two spellings are two numbers and none is too large.
                Token::Number => Value::String(format!("number {}", text(said))),
                Token::True => Value::Bool(true),
                Token::False => Value::Bool(false),
                Token::Null => Value::Null,
                Token::ArrayEnd => return None,
                Token::Key | Token::ObjectEnd => panic!("{token:?} is no value"),
            })
        }
        // The number of a document that is only one has no token: nothing ends it.
        let mut tokens = heard.tokens.iter();
        let rebuilt = value(&mut tokens).unwrap();
        assert_eq!(tokens.next(), None);
        rebuilt
    }

    #[test]
    fn valid_documents() {
        for json in [
            "{}",
            " [ ] ",
            "\r\n\t{ \"\" : [ ] }\n",
            "0",
            "-0",
            "1e400",
            "\"\"",
            "true",
            "null ",
            "[1,2.5,-3e+7,0.0E-0]",
            r#"{"a":1,"a":2}"#,
            r#"["\ud83d\ude00","\ud800","\udc00\ud800x","\u0000"]"#,
            "[\"\u{7f}\u{80}\u{2028}\"]",
        ] {
            assert!(accepted(json.as_bytes()), "{json}");
        }
    }

    #[test]
    fn invalid_documents() {
        use Reason::{Control, Depth, End, Escape, Trailing, Unexpected};
        for (json, reason, offset) in [
            ("", End, 0),
            ("  ", End, 2),
            ("{", End, 1),
            ("\u{feff}{}", Unexpected, 0),
            ("{}{}", Trailing, 2),
            ("{} x", Trailing, 3),
            ("[1,]", Unexpected, 3),
            ("{\"a\":1,}", Unexpected, 7),
            ("{,}", Unexpected, 1),
            ("[,1]", Unexpected, 1),
            ("[1 2]", Unexpected, 3),
            ("{\"a\" 1}", Unexpected, 5),
            ("{\"a\":}", Unexpected, 5),
            ("{a:1}", Unexpected, 1),
            ("{'a':1}", Unexpected, 1),
            ("{1:1}", Unexpected, 1),
            ("[}", Unexpected, 1),
            ("{]", Unexpected, 1),
            ("[1}", Unexpected, 2),
            ("{\"a\":1]", Unexpected, 6),
            ("NaN", Unexpected, 0),
            ("nul", End, 3),
            ("nulL", Unexpected, 3),
            ("truefalse", Trailing, 4),
            ("Infinity", Unexpected, 0),
            ("-Infinity", Unexpected, 1),
            ("01", Trailing, 1),
            ("[01]", Unexpected, 2),
            ("1.", End, 2),
            ("[1.]", Unexpected, 3),
            ("[.5]", Unexpected, 1),
            ("[+1]", Unexpected, 1),
            ("[1e]", Unexpected, 3),
            ("[-]", Unexpected, 2),
            ("[0x1]", Unexpected, 2),
            ("[1]//", Trailing, 3),
            ("[/**/]", Unexpected, 1),
            ("\"a", End, 2),
            ("\"a\nb\"", Control, 2),
            ("\"\0\"", Control, 1),
            (r#""\x""#, Escape, 2),
            (r#""\u12g4""#, Escape, 5),
            (r#""\u+123""#, Escape, 3),
            (r#""\U0041""#, Escape, 2),
            ("\u{a0}1", Unexpected, 0),
            ("\0{}", Unexpected, 0),
        ] {
            assert_eq!(scan(&[json.as_bytes()]).end, Some(Syntax { reason, offset }), "{json:?}");
        }
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(accepted(deep(128).as_bytes()));
        assert_eq!(scan(&[deep(129).as_bytes()]).end, Some(Syntax { reason: Depth, offset: 128 }));
    }

    #[test]
    fn nesting_is_kept_over_all_depths() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            let kinds: Vec<bool> = (0..128).map(|_| rng.bool()).collect();
            let open: String = kinds.iter().map(|object| if *object { "{\"k\":" } else { "[" }).collect();
            let close: String = kinds.iter().rev().map(|object| if *object { '}' } else { ']' }).collect();
            assert!(accepted(format!("{open}0{close}").as_bytes()));
            let at = rng.usize(..128);
            let wrong: String = close
                .char_indices()
                .map(|(i, char)| if i == at { ['}', ']'][usize::from(char == '}')] } else { char })
                .collect();
            assert!(!accepted(format!("{open}0{wrong}").as_bytes()));
        }
    }

    #[test]
    fn reads_what_serde_reads_and_wherever_it_is_cut() {
        let mut rng = fastrand::Rng::with_seed(2);
        for _ in 0..500 {
            let json = samples::value(&mut rng, 4);
            let whole = scan(&[json.as_bytes()]);
            assert_eq!(whole.end, None, "{json}");
            samples::each_division(&mut rng, json.as_bytes(), |pieces| assert_eq!(scan(pieces), whole, "{json}"));
            if whole.tokens.is_empty() {
                continue;
            }
            // serde_json refuses numbers that are too large, so they are compared as text.
            let as_text: String = respelled(&json, &whole);
            assert_eq!(rebuilt(&whole), serde_json::from_str::<Value>(&as_text).unwrap(), "{json}");
        }
    }

    /// The document with its numbers written as strings, as [`rebuilt`] has them.
    fn respelled(json: &str, heard: &Heard) -> String {
        let mut out = String::new();
        let mut from = 0;
        for (token, range, ..) in &heard.tokens {
            if *token == Token::Number {
                out += &json[from..range.start];
                out += &format!("\"number {}\"", &json[range.clone()]);
                from = range.end;
            }
        }
        out + &json[from..]
    }

    #[test]
    fn refuses_what_serde_refuses_and_wherever_it_is_cut() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut refused = 0;
        for round in 0..20_000 {
            let json = samples::value(&mut rng, 3);
            let json = samples::broken(&mut rng, &json);
            let whole = scan(&[&json]);
            let valid = serde_json::from_slice::<IgnoredAny>(&json).is_ok();
            assert_eq!(whole.end.is_none(), valid, "{:?}", String::from_utf8_lossy(&json));
            refused += u32::from(!valid);
            if round % 16 == 0 {
                samples::each_division(&mut rng, &json, |pieces| {
                    assert_eq!(scan(pieces), whole, "{:?}", String::from_utf8_lossy(&json));
                });
            }
        }
        assert!((2_000..19_000).contains(&refused), "{refused} of 20,000 were invalid: the samples show nothing");
    }

    #[test]
    fn long_strings_end_where_they_end() {
        let mut rng = fastrand::Rng::with_seed(4);
        for len in (0..200).chain([1023, 1024, 1025, 16_383, 16_384, 16_385, 16_440, 50_000]) {
            let mut json = vec![b'x'; len];
            json.insert(0, b'"');
            json.push(b'"');
            let heard = scan(&[&json]);
            assert_eq!((heard.end, heard.tokens[0].1.clone()), (None, 0..len + 2));
            assert_eq!(heard.tokens[0].3.len(), len.min(TEXT_LIMIT));
            let at = rng.usize(..=len);
            assert_eq!(scan(&[&json[..at], &json[at..]]), heard);
            if len > 0 {
                let at = rng.usize(1..=len);
                json[at] = rng.u8(..b' ');
                assert_eq!(scan(&[&json]).end, Some(Syntax { reason: Reason::Control, offset: at }));
                json[at] = b'"';
                assert_eq!(scan(&[&json]).failure, Some(Syntax { reason: Reason::Trailing, offset: at + 1 }));
                json[at] = rng.u8(0x80..);
                assert_eq!(scan(&[&json]).end, None);
            }
        }
    }

    #[test]
    fn texts_are_cut_at_their_limit() {
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..200 {
            let text = "é\n😀x".repeat(rng.usize(60..400));
            let json = samples::string(&mut rng, &text);
            let heard = scan(&[json.as_bytes()]);
            assert_eq!(heard.tokens[0].3, text.as_bytes()[..text.len().min(TEXT_LIMIT)]);
            let at = rng.usize(..json.len());
            assert_eq!(scan(&[&json.as_bytes()[..at], &json.as_bytes()[at..]]), heard);
        }
    }

    #[test]
    fn texts_are_kept_on_demand_only() {
        let mut scanner = Scanner::new();
        let mut piece = Piece::new(br#"{"k\u0065y":"v\n"}"#, 0);
        let mut texts = Vec::new();
        while let Some(token) = scanner.next(&mut piece) {
            if matches!(token, Token::Key | Token::String) {
                texts.push(scanner.text(&piece).to_vec());
            }
        }
        assert_eq!(texts, [&b"key"[..], b""]);
    }

    #[test]
    fn halves_of_pairs_alone_are_replaced() {
        for (json, text) in [
            (r#""\ud83d\ude00""#, "😀"),
            (r#""\ud83d""#, "\u{fffd}"),
            (r#""\ud83dx""#, "\u{fffd}x"),
            (r#""\ud83d\u0041""#, "\u{fffd}A"),
            (r#""\ud83d\n""#, "\u{fffd}\n"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
            (r#""\ude00\ud83d""#, "\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(scan(&[json.as_bytes()]).tokens[0].3, text.as_bytes(), "{json}");
        }
    }

    #[test]
    fn a_reset_scanner_knows_nothing() {
        let mut rng = fastrand::Rng::with_seed(6);
        let mut used = Scanner::new();
        for _ in 0..500 {
            let json = samples::value(&mut rng, 3);
            let json = samples::broken(&mut rng, &json);
            let mut fresh = Scanner::new();
            used.reset();
            used.keep(true);
            fresh.keep(true);
            let (mut left, mut right) = (Piece::new(&json, 0), Piece::new(&json, 0));
            while let Some(token) = fresh.next(&mut right) {
                assert_eq!(
                    (used.next(&mut left), used.range(), used.depth()),
                    (Some(token), fresh.range(), fresh.depth())
                );
                assert_eq!(used.text(&left), fresh.text(&right));
            }
            assert_eq!(
                (used.next(&mut left), used.finish(), used.open_string()),
                (None, fresh.finish(), fresh.open_string())
            );
            // Half a pair must not wait for its other half in the next document.
            used.reset();
            used.keep(true);
            assert_eq!(used.next(&mut Piece::new(br#""\ud83d"#, 0)), None);
        }
        used.reset();
        used.keep(true);
        let mut piece = Piece::new(br#""\ude00""#, 0);
        assert_eq!(used.next(&mut piece), Some(Token::String));
        assert_eq!(used.text(&piece), "\u{fffd}".as_bytes());
    }
}
