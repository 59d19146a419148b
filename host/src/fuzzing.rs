//! What `make fuzz` feeds with bytes nobody would think of: everything that reads what strangers write. Compiled for
//! that and for the tests alone.
//!
//! Each function takes any bytes and panics where a promise does not hold; the fuzzer begins with the files of
//! `tests/fuzz/corpus`, which the tests replay. What it finds is written down there, so that it stays found.

use std::collections::VecDeque;
use std::fmt::Debug;

use bytes::Bytes;
use http::Method;
use serde_json::Value;

use crate::config::{self, Engine, ImagePolicy, Images};
use crate::edge::fuzzed::{BodyScan, End, Facts, Format, MultipartScan, Nest, Reading, Rename, read_answer, splice};
use crate::fleet::engine::{Answer, Health, PROBES, Report, questions};
use crate::plugin::fuzzed::{check_format, key};

/// Another name than any that a body brings, in JSON and as it is.
const NAME: &str = "\"a new \\\"name\\\"\"";
const BARE_NAME: &str = "a new \"name\"";
/// Up to so many bytes every place is cut at; beyond, so many places, evenly apart.
const PLACES: usize = 256;
/// The boundary of every form here.
const FORM: &str = "multipart/form-data; boundary=XyX";
static PASS: Images = Images { policy: ImagePolicy::Pass, domains: Vec::new() };
static INLINE: Images = Images { policy: ImagePolicy::DataOnly, domains: Vec::new() };

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its corpus.
pub const TARGETS: [(&str, Target); 7] = [
    ("scan_splice", scan_splice),
    ("multipart", multipart),
    ("rename", rename),
    ("answer", answer),
    ("metrics", metrics),
    ("config", configuration),
    ("plugin_loader", plugin_loader),
];

/// The same bytes in pieces: cut in two at many places, and into single bytes.
fn divisions(bytes: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let step = bytes.len().div_ceil(PLACES).max(1);
    let in_two = (0..=bytes.len()).step_by(step).map(|at| {
        let (before, behind) = bytes.split_at(at);
        vec![before, behind]
    });
    in_two.chain([bytes.chunks(1).collect()])
}

/// A JSON body: what is found does not depend on the cuts, agrees with a parser, and the splice changes the name alone.
pub fn scan_splice(body: &[u8]) {
    let scan = |images: &'static Images, pieces: &[&[u8]]| {
        let mut scan = BodyScan::new(images);
        pieces.iter().try_for_each(|piece| scan.feed(piece))?;
        scan.finish()
    };
    let Ok(facts) = scanned_everywhere(body, scan) else { return };
    let spliced = spliced_everywhere(body, &facts, NAME.as_bytes());
    let again = scan(&PASS, &[&spliced]).map(|facts| facts.model);
    assert_eq!(again.as_deref(), Ok(BARE_NAME));
    // What is no text, or a number no parser can hold, is left to the backend.
    let Ok(mut parsed) = serde_json::from_slice::<Value>(body) else { return };
    assert_eq!(parsed["model"], facts.model);
    assert_eq!(parsed["stream"].as_bool(), facts.stream);
    parsed["model"] = BARE_NAME.into();
    assert_eq!(serde_json::from_slice::<Value>(&spliced).ok(), Some(parsed));
}

/// A form: what is found does not depend on the cuts, is what stands there, and the splice changes the name alone.
pub fn multipart(body: &[u8]) {
    let scan = |images: &'static Images, pieces: &[&[u8]]| {
        let mut scan = MultipartScan::new(FORM, images)?;
        pieces.iter().try_for_each(|piece| scan.feed(piece))?;
        scan.finish()
    };
    let Ok(facts) = scanned_everywhere(body, scan) else { return };
    assert_eq!(body.get(facts.model_range.clone()), Some(facts.model.as_bytes()));
    let spliced = spliced_everywhere(body, &facts, BARE_NAME.as_bytes());
    let again = scan(&PASS, &[&spliced]);
    let expected = Facts { model: BARE_NAME.to_owned(), ..facts };
    let expected_range = expected.model_range.start..expected.model_range.start + BARE_NAME.len();
    assert_eq!(again, Ok(Facts { model_range: expected_range, ..expected }));
}

/// What a scan finds, which is the same however the body was cut, also where images are judged.
fn scanned_everywhere<T: PartialEq + Debug>(body: &[u8], scan: impl Fn(&'static Images, &[&[u8]]) -> T) -> T {
    let (whole, inline) = (scan(&PASS, &[body]), scan(&INLINE, &[body]));
    for pieces in divisions(body) {
        assert_eq!(scan(&PASS, &pieces), whole);
        assert_eq!(scan(&INLINE, &pieces), inline);
    }
    whole
}

/// The body with the name replaced, which is the same however it was cut.
fn spliced_everywhere(body: &[u8], facts: &Facts, name: &'static [u8]) -> Vec<u8> {
    let mut expected = body.to_vec();
    expected.splice(facts.model_range.clone(), name.iter().copied());
    for pieces in divisions(body) {
        let chunks: Vec<Bytes> = pieces.into_iter().map(Bytes::copy_from_slice).collect();
        let (spliced, length) = splice(&chunks, facts.model_range.clone(), Bytes::from_static(name));
        assert_eq!((spliced.concat(), length), (expected.clone(), expected.len()));
    }
    expected
}

/// An answer, behind a byte that says how it is written: what comes out does not depend on the cuts, and of a document
/// that a parser reads the names change and nothing else.
pub fn rename(input: &[u8]) {
    let (how, body) = input.split_first().map_or((0, input), |(how, body)| (*how, body));
    let format = [Format::EventStream, Format::Json, Format::JsonLines][usize::from(how % 3)];
    let nest = [None, Some(Nest::Message), Some(Nest::Response)][usize::from(how / 3 % 3)];
    let renamed = |pieces: &[&[u8]]| {
        let (mut rename, mut out) = (Rename::new(format, nest, Bytes::from_static(NAME.as_bytes())), VecDeque::new());
        pieces.iter().for_each(|piece| rename.feed(Bytes::copy_from_slice(piece), &mut out));
        assert!(out.iter().all(|chunk| !chunk.is_empty()), "an empty chunk would end the answer");
        out.into_iter().flatten().collect::<Vec<u8>>()
    };
    let whole = renamed(&[body]);
    for pieces in divisions(body) {
        assert_eq!(renamed(&pieces), whole);
    }
    let Ok(mut parsed) = serde_json::from_slice::<Value>(body) else { return };
    if format == Format::Json {
        let nested = match nest {
            None => None,
            Some(Nest::Message) => Some("/message/model"),
            Some(Nest::Response) => Some("/response/model"),
        };
        for at in nested.into_iter().chain(["/model"]) {
            if let Some(name) = parsed.pointer_mut(at).filter(|name| name.is_string()) {
                *name = BARE_NAME.into();
            }
        }
        assert_eq!(serde_json::from_slice::<Value>(&whole).ok(), Some(parsed));
    }
}

/// What a backend writes, behind a byte that says what it was asked: what is read does not depend on the cuts, two readers
/// would find the same end, and what comes out in chunks of another size means the same.
pub fn answer(input: &[u8]) {
    let (how, wire) = input.split_first().map_or((b'0', input), |(how, wire)| (*how, wire));
    let method = [Method::POST, Method::HEAD, Method::GET][usize::from(how % 3)].clone();
    let read = read_answer(&method, &[wire]);
    for pieces in divisions(wire) {
        assert_eq!(read_answer(&method, &pieces), read);
    }
    let Some(Reading { status, headers, body, end }) = read else { return };
    assert!((200..600).contains(&status), "{status}");
    let field = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let (length, coding) = (field("content-length"), field("transfer-encoding"));
    if method == Method::HEAD || matches!(status, 204 | 205 | 304) {
        assert!(body.is_empty() && matches!(end, End::Reached { .. }));
        return;
    }
    assert!(length.is_none() || coding.is_none(), "two ends");
    match (length, end) {
        (Some(length), End::Reached { .. }) => assert_eq!(length.parse(), Ok(body.len())),
        (Some(length), End::Awaited) => assert!(length.parse::<u64>().is_ok_and(|length| length > body.len() as u64)),
        (Some(_), _) => panic!("a length that ends otherwise: {end:?}"),
        (None, End::Reached { .. }) => {
            let chunks: String =
                body.chunks(7).map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), ".".repeat(chunk.len()))).collect();
            let again = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n");
            let again = read_answer(&Method::POST, &[again.as_bytes()]).map(|again| (again.body.len(), again.end));
            assert_eq!(again, Some((body.len(), End::Reached { behind: 0 })));
        }
        (None, End::Broken | End::Awaited) => assert!(coding.is_some()),
        (None, End::WithClose) => assert!(coding.is_none()),
    }
}

/// A page of any engine, behind a byte that says its status: whatever it says, the report is a sensible one.
pub fn metrics(input: &[u8]) {
    let (status, body) = input.split_first().map_or((b'0', input), |(status, body)| (*status, body));
    let answer = Answer { status: [200, 404, 429, 500, 503][usize::from(status % 5)], body };
    for probe in PROBES {
        (probe.is)(&answer);
    }
    for engine in Engine::ALL {
        let mut report = Report::default();
        for question in questions(engine) {
            (question.read)(&answer, &mut report);
        }
        assert_ne!(report.limit, Some(0));
        assert!(report.kv_cache_used.is_none_or(|used| (0.0..=1.0).contains(&used)), "{report:?}");
        let models = report.models.unwrap_or_default();
        assert!(models.len() <= 4_096 && models.iter().all(|model| (1..=256).contains(&model.native.len())));
        if let Health::NotReady(why) = report.health {
            assert!(!why.is_empty() && !why.contains(char::is_control), "{why:?}");
        }
    }
}

/// A configuration file: a good one, or one whose mistakes are told.
pub fn configuration(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Err(mistakes) = config::parse(text, None, &config::Overrides::default()) {
        assert!(!mistakes.all.is_empty());
        assert!(mistakes.all.iter().all(|mistake| !mistake.message.is_empty()), "{mistakes}");
        let lines = text.lines().count().max(1);
        assert!(mistakes.all.iter().all(|mistake| mistake.line.is_none_or(|line| (1..=lines).contains(&line))));
    }
}

/// The file of a plugin, with its preamble or with one that is put before it: what is complete is known by what it holds
/// and not by its custom sections, and what breaks off is never taken for complete.
pub fn plugin_loader(content: &[u8]) {
    /// How a component begins.
    const PREAMBLE: &[u8; 8] = b"\0asm\x0d\0\x01\0";
    for content in [content.to_vec(), [PREAMBLE, content].concat()] {
        let sum = key(&content);
        assert!(sum.len() == 64 && sum.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')), "{sum}");
        if check_format(&content).is_err() {
            continue;
        }
        // A custom section of the empty name.
        let named = [&content[..], &[0, 1, 0]].concat();
        assert!(check_format(&named).is_ok() && key(&named) == sum);
        // One of five bytes that breaks off after three.
        assert!(check_format(&[&content[..], &[1, 5, 0, 0]].concat()).is_err());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_seed_is_read_again() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        for (name, target) in TARGETS {
            let mut seeds = 0;
            for entry in fs::read_dir(corpus.join(name)).unwrap() {
                let path = entry.unwrap().path();
                // Shown where the next line panics.
                println!("{}", path.display());
                target(&fs::read(&path).unwrap());
                seeds += 1;
            }
            assert!(seeds > 0, "no seeds for {name}");
        }
    }

    /// Seeds that no reader takes would begin at nothing.
    #[test]
    fn some_seeds_are_good() {
        let seed = |name: &str| {
            fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(name)).unwrap()
        };
        let mut scan = BodyScan::new(&PASS);
        scan.feed(&seed("scan_splice/chat")).unwrap();
        assert_eq!(scan.finish().unwrap().model, "qwen-vl");
        let mut scan = MultipartScan::new(FORM, &PASS).unwrap();
        scan.feed(&seed("multipart/image")).unwrap();
        assert_eq!(scan.finish().unwrap().model, "qwen-vl");
        for (name, body) in [("length", "{\"model\":\"qwen\"}"), ("chunks", "data: {\"a\":\"b\"}\n\ndata: [DONE]\n\n")]
        {
            let read = read_answer(&Method::POST, &[&seed(&format!("answer/{name}"))[1..]]).unwrap();
            assert_eq!((read.body.as_slice(), read.end), (body.as_bytes(), End::Reached { behind: 0 }), "{name}");
        }
        let config = String::from_utf8(seed("config/small")).unwrap();
        assert_eq!(config::parse(&config, None, &config::Overrides::default()).unwrap().backends.len(), 2);
        let sections = [b"\0asm\x0d\0\x01\0", &seed("plugin_loader/sections")[..]].concat();
        assert_eq!(check_format(&sections), Ok(()));
    }
}
