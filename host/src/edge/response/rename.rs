//! Sets the model name in an answer to the one the client asked for, while the answer passes.
//!
//! Invariants: a byte that is not part of a replaced name leaves with the chunk that brought it, unchanged and in
//! order; nothing is held, so there is nothing to finish; where chunks are cut changes no byte of the answer. A
//! name is replaced at its first quote, whatever it turns out to be, since the new one is known by then.

use std::collections::VecDeque;

use bytes::Bytes;
use memchr::memchr;

use super::document::{Cut, Document};
use super::events::Events;

pub use super::document::Nest;

/// From this length on, bytes are handed on as a slice of their chunk; shorter runs are copied together, for a
/// frame more costs hyper more than copying these does.
const SLICE_BYTES: usize = 4 << 10;

/// How the answer's documents follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One document.
    Json,
    /// The data of each event of a `text/event-stream` is one.
    EventStream,
    /// Each line is one.
    JsonLines,
}

#[derive(Debug)]
enum Framing {
    Json,
    EventStream(Events),
    JsonLines,
}

/// The renaming of one answer.
#[derive(Debug)]
pub struct Rename {
    framing: Framing,
    document: Document,
    /// The public name as JSON, quotes included.
    public: Bytes,
    /// What is to be cut from the chunk at hand.
    cuts: Vec<Cut>,
    /// Where short runs are put together.
    joined: Vec<u8>,
}

impl Rename {
    /// Replaces the top-level `model` of each document by `public`, which is a JSON string, and the one that `nest` says.
    pub fn new(format: Format, nest: Option<Nest>, public: Bytes) -> Self {
        let framing = match format {
            Format::Json => Framing::Json,
            Format::EventStream => Framing::EventStream(Events::new()),
            Format::JsonLines => Framing::JsonLines,
        };
        Self { framing, document: Document::new(nest), public, cuts: Vec::new(), joined: Vec::new() }
    }

    /// Takes the next chunk of the answer; adds what it becomes to `out`, which may be nothing.
    pub fn feed(&mut self, chunk: Bytes, out: &mut VecDeque<Bytes>) {
        self.cuts.clear();
        match &mut self.framing {
            Framing::Json => self.document.read(&chunk, 0, &self.public, &mut self.cuts),
            Framing::EventStream(events) => events.read(&chunk, &mut self.document, &self.public, &mut self.cuts),
            Framing::JsonLines => read_lines(&chunk, &mut self.document, &self.public, &mut self.cuts),
        }
        if !self.cuts.is_empty() {
            self.pass_cut(&chunk, out);
        } else if !chunk.is_empty() {
            out.push_back(chunk);
        }
    }

    fn pass_cut(&mut self, chunk: &Bytes, out: &mut VecDeque<Bytes>) {
        let mut from = 0;
        for cut in &self.cuts {
            pass(chunk, from, cut.start, &mut self.joined, out);
            if cut.replaced {
                self.joined.extend_from_slice(&self.public);
            }
            from = cut.end;
        }
        pass(chunk, from, chunk.len(), &mut self.joined, out);
        flush(&mut self.joined, out);
    }
}

/// Each line is a document; what precedes its end is read before it, even where the end has not come.
fn read_lines(chunk: &[u8], document: &mut Document, public: &[u8], cuts: &mut Vec<Cut>) {
    let mut at = 0;
    while let Some(rest) = chunk.get(at..).filter(|rest| !rest.is_empty()) {
        let end = memchr(b'\n', rest).map(|end| at + end);
        if !document.over() {
            document.read(chunk.get(..end.unwrap_or(chunk.len())).unwrap_or_default(), at, public, cuts);
        }
        if end.is_some() {
            document.reset();
        }
        at = end.map_or(chunk.len(), |end| end + 1);
    }
}

/// Passes the bytes from `start` to `end` on, behind what is joined already.
fn pass(chunk: &Bytes, start: usize, end: usize, joined: &mut Vec<u8>, out: &mut VecDeque<Bytes>) {
    let Some(run) = chunk.get(start..end) else { return };
    if run.len() < SLICE_BYTES {
        joined.extend_from_slice(run);
    } else {
        flush(joined, out);
        out.push_back(chunk.slice_ref(run));
    }
}

/// Passes on what is joined. The buffer stays for the next chunk, unless it is so large that a stream that idles
/// should not keep it.
fn flush(joined: &mut Vec<u8>, out: &mut VecDeque<Bytes>) {
    if joined.len() > SLICE_BYTES {
        out.push_back(Bytes::from(std::mem::take(joined)));
    } else if !joined.is_empty() {
        out.push_back(Bytes::copy_from_slice(joined));
        joined.clear();
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use crate::edge::json::samples;

    use super::*;

    const FORMATS: [Format; 3] = [Format::Json, Format::EventStream, Format::JsonLines];
    const NESTS: [Option<Nest>; 3] = [None, Some(Nest::Message), Some(Nest::Response)];
    const PUBLIC_JSON: &str = r#""public \"é\"""#;

    fn feed(rename: &mut Rename, chunk: &[u8]) -> VecDeque<Bytes> {
        let mut out = VecDeque::new();
        rename.feed(Bytes::copy_from_slice(chunk), &mut out);
        assert!(out.iter().all(|chunk| !chunk.is_empty()));
        out
    }

    fn renamed(format: Format, nest: Option<Nest>, pieces: &[&[u8]]) -> Vec<u8> {
        let mut rename = Rename::new(format, nest, Bytes::from_static(PUBLIC_JSON.as_bytes()));
        pieces.iter().flat_map(|piece| feed(&mut rename, piece)).flatten().collect()
    }

    fn check(format: Format, nest: Option<Nest>, input: &str, output: &str) {
        let out = renamed(format, nest, &[input.as_bytes()]);
        assert_eq!(String::from_utf8_lossy(&out), output, "{format:?} {nest:?} {input}");
        samples::each_division(&mut Rng::with_seed(1), input.as_bytes(), |pieces| {
            let out = renamed(format, nest, pieces);
            assert_eq!(String::from_utf8_lossy(&out), output, "{format:?} {nest:?} {pieces:?}");
        });
    }

    fn check_all(nest: Option<Nest>, input: &str) {
        let output = input.replace("OLD", PUBLIC_JSON);
        let input = input.replace("OLD", r#""a/\"b\u00e9""#);
        for format in FORMATS {
            let framed = |document: &str| match format {
                Format::EventStream => format!("data: {document}\n\n"),
                Format::Json | Format::JsonLines => document.to_owned(),
            };
            check(format, nest, &framed(&input), &framed(&output));
        }
    }

    #[test]
    fn documents() {
        for input in [
            r#"{"model":OLD}"#,
            r#"{ "id" : 1 , "model" : OLD , "choices" : [ { "model" : "x" } ] }"#,
            r#"{"choices":[{"message":{"content":"\"model\":\"x\"","model":"x"}}],"mod\u0065l":OLD}"#,
            r#"{"message":{"model":"x"},"response":{"model":"x"},"model":OLD}"#,
            r#"{"model":null,"x":{"model":"x"}}"#,
            r#"{"model":["x"],"model":{"model":"x"},"model":OLD}"#,
            r#"{"x":"model","y":"x"}"#,
            r#"{"model ":"x","Model":"x","mode":"x"}"#,
            r"{}",
            "",
        ] {
            check_all(None, input);
        }
        for input in [
            r#"{"type":"message_start","message":{"id":"x","model":OLD,"x":{"model":"x"}}}"#,
            r#"{"model":OLD,"message":{"x":{"model":"x"},"model":OLD}}"#,
            r#"{"message":{"model":OLD},"model":OLD,"x":{"model":"x"}}"#,
            r#"{"message":[{"model":"x"}],"response":{"model":"x"},"x":{"message":{"model":"x"}}}"#,
            r#"{"message":{"content":[{"text":"\"model\":\"x\"","message":{"model":"x"}}]}}"#,
        ] {
            check_all(Some(Nest::Message), input);
            let input = input.replace("response", "other").replace("message", "response");
            check_all(Some(Nest::Response), &input);
        }
    }

    #[test]
    fn what_is_no_answer_passes() {
        for nest in NESTS {
            for input in [
                r#"[{"model":"x"}]"#,
                r#""model""#,
                "17",
                "plain text with \"model\":\"x\"",
                r#"{"model" "x"}"#,
                r#"{model:"x"}"#,
                r#"{,"model":"x"}"#,
                r#"{"a":01,"model":"x"}"#,
                "\u{feff}{\"model\":\"x\"}",
                "<html>\"model\":\"x\"</html>",
            ] {
                for format in [Format::Json, Format::JsonLines] {
                    check(format, nest, input, input);
                }
                let event = format!("data: {input}\n\n");
                check(Format::EventStream, nest, &event, &event);
            }
        }
        // Behind the end of the document, and behind what breaks it.
        check_all(None, r#"{"model":OLD}{"model":"x"}"#);
        check_all(None, r#"{"model":OLD} trailing"#);
        check_all(Some(Nest::Message), r#"{"model":OLD,NaN,"message":{"model":"x"}}"#);
    }

    #[test]
    fn a_name_that_breaks_is_replaced_as_far_as_it_goes() {
        check(
            Format::Json,
            None,
            "{\"model\":\"a\u{1}b\",\"c\":1}",
            &format!("{{\"model\":{PUBLIC_JSON}\u{1}b\",\"c\":1}}"),
        );
        check(Format::Json, None, r#"{"model":"a\xb"}"#, &format!(r#"{{"model":{PUBLIC_JSON}xb"}}"#));
        check(Format::Json, None, r#"{"model":"a"#, &format!(r#"{{"model":{PUBLIC_JSON}"#));
        check(
            Format::EventStream,
            None,
            "data: {\"model\":\"a\ndata: b\"}\n\n",
            &format!("data: {{\"model\":{PUBLIC_JSON}\ndata: b\"}}\n\n"),
        );
    }

    #[test]
    fn event_streams() {
        for input in [
            "data: {'model':OLD}",
            "data:{'model':OLD}",
            "data:   {'model':OLD}",
            "event: x|id: 1|: {'model':'x'}|data: {'model':OLD}|retry: 5",
            "data: {'model':|data: OLD|data:}",
            "data|data: {'model':|data|: comment|data: OLD}|event: x",
            "data: {'model':OLD}||data: {'model':OLD}||data: [DONE]",
            "data: [DONE]||data: {'model':OLD}",
            "data: {'x':1||data: {'model':OLD}",
            "||||data: {'model':OLD}",
            "data: x|data: {'model':'x'}",
            "data: {'x':|id: 1||data: 'y','model':'x'}",
            "dat: {'model':'x'}",
            "datax: {'model':'x'}",
            "data : {'model':'x'}",
            " data: {'model':'x'}",
            "Data: {'model':'x'}",
            ":data: {'model':'x'}",
            "d|da|dat|datum: {'model':'x'}",
            "{'model':'x'}",
        ] {
            for end in ["\n", "\r\n", "\r"] {
                let stream = format!("{input}||").replace('|', end).replace('\'', "\"");
                check(Format::EventStream, None, &stream.replace("OLD", "\"x\""), &stream.replace("OLD", PUBLIC_JSON));
            }
        }
    }

    #[test]
    fn a_byte_order_mark_may_begin_a_stream_and_nothing_else() {
        let event = "data: {\"model\":\"x\"}\n\n";
        let renamed = event.replace("\"x\"", PUBLIC_JSON);
        check(Format::EventStream, None, &format!("\u{feff}{event}"), &format!("\u{feff}{renamed}"));
        check(Format::EventStream, None, &format!("{event}\u{feff}{event}"), &format!("{renamed}\u{feff}{event}"));
        check(Format::EventStream, None, &format!("\u{feff}\u{feff}{event}"), &format!("\u{feff}\u{feff}{event}"));
    }

    #[test]
    fn lines() {
        let input = "{\"model\":OLD}\n\n{\"x\":{\"model\":\"x\"},\"model\":OLD}\r\n[{\"model\":\"x\"}]\nnot json\n{\"x\":\n\"model\":\"x\"}\n{\"model\":OLD}";
        check(Format::JsonLines, None, &input.replace("OLD", "\"old\""), &input.replace("OLD", PUBLIC_JSON));
    }

    #[test]
    fn what_breaks_one_document_leaves_the_next_alone() {
        for broken in
            ["{\"model\":OLD", "{\"model\":", "{\"model\":OLDx", "{\"message\":{\"model\":OLD", "{\"message\":{"]
        {
            for next in ["{\"model\":OLD}", "\"x\"", "[{\"model\":\"x\"}]", "{\"x\":\"model\"}"] {
                let input = format!("{broken}\n{next}\n");
                check(
                    Format::JsonLines,
                    Some(Nest::Message),
                    &input.replace("OLD", "\"old\""),
                    &input.replace("OLD", PUBLIC_JSON),
                );
            }
        }
        for next in ["\"x\"", "{\"x\":\"y\"}", "{\"model\":OLD}"] {
            let next = next.replace("OLD", PUBLIC_JSON);
            let event = |name: &str| format!("data: {{\"model\":{name}\n\ndata: {next}\n\n");
            check(Format::EventStream, None, &event("\"old"), &event(PUBLIC_JSON));
        }
    }

    #[test]
    fn nothing_is_delayed_but_the_name() {
        let input = r#"{"id":1,"model":"old-name","x":"y"}"#;
        let start = input.find("\"old-name\"").unwrap();
        let end = start + "\"old-name\"".len();
        let mut rename = Rename::new(Format::Json, None, Bytes::from_static(PUBLIC_JSON.as_bytes()));
        let mut sent = Vec::new();
        for (at, byte) in input.bytes().enumerate() {
            sent.extend(feed(&mut rename, &[byte]).into_iter().flatten());
            let name = if at < start { "" } else { PUBLIC_JSON };
            let rest = if at < end { "" } else { &input[end..=at] };
            assert_eq!(String::from_utf8_lossy(&sent), format!("{}{name}{rest}", &input[..start.min(at + 1)]));
        }
    }

    /// An answer whose names are `"@@"`, which no sample contains.
    fn answer(rng: &mut Rng, nest: Option<Nest>) -> String {
        let mut members: Vec<String> = (0..rng.usize(..4)).map(|at| samples::other_member(rng, at, 2)).collect();
        for key in [&["message"][..], &["response"], &["message", "response"], &[]][rng.usize(..4)] {
            let wanted = matches!((*key, nest), ("message", Some(Nest::Message)) | ("response", Some(Nest::Response)));
            let mut inner = vec![samples::other_member(rng, 0, 1)];
            inner.push(samples::member(rng, "model", if wanted { "\"@@\"" } else { "\"x\"" }));
            rng.shuffle(&mut inner);
            let inner = samples::object(rng, &inner);
            members.push(samples::member(rng, key, &inner));
        }
        members.push(samples::member(rng, "model", "\"@@\""));
        rng.shuffle(&mut members);
        samples::object(rng, &members)
    }

    fn framed(rng: &mut Rng, format: Format, documents: &[String]) -> String {
        let end = rng.choice(["\n", "\r\n", "\r"]).unwrap();
        let lines = |text: &str, end: &str| text.replace("\r\n", "\n").replace('\n', end);
        let mut out = String::new();
        for document in documents {
            match format {
                Format::Json => return document.clone(),
                Format::JsonLines => out += &(lines(document, " ") + ["\n", "\r\n"][rng.usize(..2)]),
                Format::EventStream => {
                    for field in ["event: x", ": \"model\":\"x\"", "id"].into_iter().filter(|_| rng.u8(..3) == 0) {
                        out += &format!("{field}{end}");
                    }
                    let field = rng.choice(["data:", "data: "]).unwrap();
                    out += &format!("{field}{}{end}{end}", lines(document, &format!("{end}{field}")));
                }
            }
        }
        out
    }

    #[test]
    fn only_the_names_change_wherever_it_is_cut() {
        let mut rng = Rng::with_seed(1);
        for _ in 0..25 {
            for format in FORMATS {
                let nest = rng.choice(NESTS).unwrap();
                let documents: Vec<_> = (0..rng.usize(1..3)).map(|_| answer(&mut rng, nest)).collect();
                let stream = framed(&mut rng, format, &documents);
                let old = samples::text(&mut rng);
                let old = samples::string(&mut rng, &old);
                check(format, nest, &stream.replace("\"@@\"", &old), &stream.replace("\"@@\"", PUBLIC_JSON));
                check(format, nest, &stream.replace("\"@@\"", PUBLIC_JSON), &stream.replace("\"@@\"", PUBLIC_JSON));
            }
        }
    }

    #[test]
    fn broken_answers_come_out_the_same_wherever_they_are_cut() {
        let mut rng = Rng::with_seed(2);
        for _ in 0..25 {
            for format in FORMATS {
                let nest = rng.choice(NESTS).unwrap();
                let documents = [answer(&mut rng, nest), answer(&mut rng, nest)];
                let stream = framed(&mut rng, format, &documents);
                let stream = samples::broken(&mut rng, &stream);
                let whole = renamed(format, nest, &[&stream]);
                samples::each_division(&mut rng, &stream, |pieces| assert_eq!(renamed(format, nest, pieces), whole));
            }
        }
    }

    #[test]
    fn frames() {
        let event = |name: &str| format!("data: {{\"id\":1,\"model\":{name},\"x\":\"{}\"}}\n\n", "y".repeat(200));
        let lies_in = |part: &Bytes, whole: &Bytes| whole.as_ptr_range().contains(&part.as_ptr());
        let feed = |chunk: &Bytes| {
            let mut out = VecDeque::new();
            Rename::new(Format::EventStream, None, Bytes::from_static(PUBLIC_JSON.as_bytes()))
                .feed(chunk.clone(), &mut out);
            out
        };
        // A chunk that is right already passes as it is.
        let equal = Bytes::from(event(PUBLIC_JSON).repeat(9));
        let out = feed(&equal);
        assert_eq!((out.len(), out[0].as_ptr()), (1, equal.as_ptr()));
        // Small runs leave together, however many events there are.
        let other = Bytes::from(event("\"x\"").repeat(90));
        let out = feed(&other);
        assert_eq!((out.len(), out[0].len()), (1, event(PUBLIC_JSON).len() * 90));
        // Long runs are not copied.
        let long = Bytes::from(event("\"x\"").replace("yy", &"y".repeat(100)));
        let out = feed(&long);
        assert_eq!(out.len(), 2);
        assert!(!lies_in(&out[0], &long) && lies_in(&out[1], &long));
        // A chunk within the name becomes nothing.
        let mut rename = Rename::new(Format::Json, None, Bytes::from_static(PUBLIC_JSON.as_bytes()));
        let mut out = VecDeque::new();
        for chunk in ["{\"model\":\"a", "bc", ""] {
            rename.feed(Bytes::from(chunk), &mut out);
        }
        assert_eq!(out.len(), 1);
    }
}
