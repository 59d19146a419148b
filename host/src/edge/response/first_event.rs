//! Whether an event stream begins with an error, so that the request can still be tried elsewhere.
//!
//! Invariant: a verdict does not change when more of the stream is shown.

use memchr::memchr2;

use crate::edge::json::{Piece, Scanner, Token};

/// How much of a stream may be held back to find out: an error is far shorter, and an event that is longer is
/// content.
const LIMIT: usize = 16 << 10;

/// Whether the first event with data in a stream that begins with `bytes` is an error: it is of type `error`, or
/// its data is an object with an `error` that is not null. `None`: more bytes are needed to tell.
pub fn first_event_is_error(bytes: &[u8]) -> Option<bool> {
    let shown = bytes.get(..LIMIT).unwrap_or(bytes);
    let mut rest = shown.strip_prefix(b"\xef\xbb\xbf").unwrap_or(shown);
    let mut event = Event::default();
    while let Some((line, next)) = split_line(rest) {
        rest = next;
        if !line.is_empty() {
            event.line(line);
        } else if event.has_data {
            return Some(event.is_error || event.has_error);
        } else {
            // An event without data is none, whatever its type.
            event.is_error = false;
        }
    }
    (bytes.len() >= LIMIT).then_some(false)
}

/// The first line, and what follows its end; `None` where the end is not shown.
fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr2(b'\n', b'\r', bytes)?;
    let (line, rest) = bytes.split_at_checked(end)?;
    Some((line, rest.strip_prefix(b"\r\n").or_else(|| rest.get(1..))?))
}

/// What is known of an event.
#[derive(Default)]
struct Event {
    /// Whether its type is `error`.
    is_error: bool,
    has_data: bool,
    /// Whether its data has an `error`.
    has_error: bool,
    scanner: Scanner,
    /// Whether the value that comes next is that of `error`.
    expected: bool,
}

impl Event {
    fn line(&mut self, line: &[u8]) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (field, value) = line.split_at_checked(colon).unwrap_or_default();
        let value = value.strip_prefix(b":").unwrap_or_default();
        match field {
            b"event" => self.is_error = value.strip_prefix(b" ").unwrap_or(value) == b"error",
            b"data" => {
                self.has_data = true;
                self.read(value);
                self.read(b"\n");
            }
            _ => {}
        }
    }

    fn read(&mut self, text: &[u8]) {
        let mut piece = Piece::new(text, 0);
        while let Some(token) = self.scanner.next(&mut piece) {
            self.has_error |= self.expected && token != Token::Null;
            self.expected = token == Token::Key && self.scanner.depth() == 1 && self.scanner.text(&piece) == b"error";
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_come_with_the_end_of_the_event_and_stay() {
        for (stream, verdict) in [
            ("data: {'error':{'message':'x'}}||", true),
            ("data:{'object':'x','err\\u006fr':'x'}||", true),
            ("event: error|data: {'type':'x'}||", true),
            ("data: x|event:error||", true),
            ("event: error||event: error|data: x||", true),
            (": ping||id: 1||retry: 5||data: {'error':|data: 1}||", true),
            ("event: x|event: error|data||", true),
            ("data: {'error':true,,||", true),
            ("data: {'error':null}||", false),
            ("data: {'x|data: ':0,'error':1}||", false),
            ("data: {'x':{'error':1},'y':'error','z':['error',1]}||", false),
            ("data: [{'error':1}]||", false),
            ("data: {'x':'\\'error\\':1'}||", false),
            ("data: {'x':1}||data: {'error':1}||", false),
            ("data: [DONE]||", false),
            ("data: error||", false),
            ("event: error||data: x||", false),
            ("event: errors|data: x||", false),
            ("event:  error|data: x||", false),
            ("event: error|event|data: x||", false),
            ("error: x|data||", false),
        ] {
            for end in ["\n", "\r\n", "\r"] {
                for mark in ["", "\u{feff}"] {
                    let stream = format!("{mark}{stream}").replace('|', end).replace('\'', "\"");
                    assert_eq!(first_event_is_error(stream.as_bytes()), Some(verdict), "{stream:?}");
                    let mut told = None;
                    for len in 0..=stream.len() {
                        let now = first_event_is_error(&stream.as_bytes()[..len]);
                        assert!(told.is_none() || now == told, "{stream:?} at {len}");
                        told = now;
                    }
                }
            }
        }
    }

    #[test]
    fn more_is_asked_for_up_to_the_limit() {
        for stream in ["", "\u{feff}", "data: {\"error\":1}\n", "event: error\n\n", ": x\n\n\n", "data"] {
            assert_eq!(first_event_is_error(stream.as_bytes()), None, "{stream:?}");
        }
        let mut long = format!("data: {{\"error\":\"{}", "x".repeat(LIMIT)).into_bytes();
        assert_eq!(first_event_is_error(&long[..LIMIT - 1]), None);
        assert_eq!(first_event_is_error(&long[..LIMIT]), Some(false));
        long.extend_from_slice(b"\"}\n\n");
        assert_eq!(first_event_is_error(&long), Some(false));
    }
}
