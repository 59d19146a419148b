//! The frames: what a client sends, and how that ends, by the sections of RFC 9113.
//!
//! `200` is an answer from the backend, which saw the request; another status is the proxy's own. `connection …` ends all of
//! it, a code by itself the stream alone. `|` parts what is right in more ways than one.

use crate::support::CHAT;
use crate::support::frames::*;

/// The stream of a case's request, and that of a request behind it.
pub const STREAM: u32 = 1;
pub const LAST: u32 = 101;

/// Of the stream; the connection may be ended for it, too (§5.4.1), as it is where the reader of fields finds it.
const MALFORMED: &str = "PROTOCOL_ERROR|connection PROTOCOL_ERROR";
/// Of errors of a connection any code will do that says it is the client's.
const UNREADABLE: &str = "connection COMPRESSION_ERROR|connection PROTOCOL_ERROR";
const MISSIZED: &str = "connection FRAME_SIZE_ERROR|connection PROTOCOL_ERROR";
/// Malformed, and the library reads past it; as past all trailers, so that nobody behind it sees them.
const UNSEEN: &str = "200|PROTOCOL_ERROR|connection PROTOCOL_ERROR";

const BODY: &[u8] = b"{\"model\":\"qwen-vl\"}";
const METHOD: (&str, &str) = (":method", "POST");
const SCHEME: (&str, &str) = (":scheme", "http");
const PATH: (&str, &str) = (":path", CHAT);
const AUTHORITY: (&str, &str) = (":authority", "corpus");

pub struct Case {
    pub name: &'static str,
    opening: Vec<u8>,
    frames: Vec<u8>,
    pub ends: &'static str,
    /// Lines of the request that the backend sees.
    pub sees: &'static [&'static str],
}

impl Case {
    /// All that is sent: a request behind it, too.
    pub fn bytes(&self) -> Vec<u8> {
        let last = fields(&[(":method", "GET"), SCHEME, (":path", "/health"), AUTHORITY]);
        [&self.opening[..], &self.frames, &frame(HEADERS, END_HEADERS | END_STREAM, LAST, &last)].concat()
    }

    fn sees(self, sees: &'static [&'static str]) -> Self {
        Self { sees, ..self }
    }

    fn opened_by(self, opening: Vec<u8>) -> Self {
        Self { opening, ..self }
    }
}

fn case(name: &'static str, frames: impl AsRef<[u8]>, ends: &'static str) -> Case {
    Case { name, opening: opening(&[]), frames: frames.as_ref().to_vec(), ends, sees: &[] }
}

fn head(all: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, STREAM, &fields(all))
}

/// The head of a chat with these further fields.
fn chat_head(more: &[(&str, &str)]) -> Vec<u8> {
    head(&[&[METHOD, SCHEME, PATH, AUTHORITY], more].concat())
}

/// Its body, and the end of its stream.
fn body() -> Vec<u8> {
    frame(DATA, END_STREAM, STREAM, BODY)
}

/// A whole chat with these further fields.
fn chat(more: &[(&str, &str)]) -> Vec<u8> {
    [chat_head(more), body()].concat()
}

/// A whole chat with these fields and no others.
fn made_of(all: &[(&str, &str)]) -> Vec<u8> {
    [head(all), body()].concat()
}

/// A whole chat but for its end, which these frames are to bring.
fn before(frames: impl AsRef<[u8]>) -> Vec<u8> {
    [&chat_head(&[]), &frame(DATA, 0, STREAM, BODY), frames.as_ref()].concat()
}

fn behind(frames: impl AsRef<[u8]>) -> Vec<u8> {
    [frames.as_ref(), &chat(&[])].concat()
}

fn trailers(all: &[(&str, &str)]) -> Vec<u8> {
    before(frame(HEADERS, END_HEADERS | END_STREAM, STREAM, &fields(all)))
}

pub fn cases() -> Vec<Case> {
    let parts = [openings(), frames(), continuations(), data(), streams(), windows(), settings(), others()];
    let more = [names(), values(), hop_by_hop(), missing(), authorities(), paths(), methods(), lengths(), endings()];
    parts.into_iter().chain(more).flatten().collect()
}

/// §3.4.
fn openings() -> Vec<Case> {
    vec![
        // The library does not insist on the settings that belong to it.
        case("a preface alone", chat(&[]), "200|connection PROTOCOL_ERROR").opened_by(PREFACE.to_vec()),
        case("a preface that is none", chat(&[]), "connection |connection PROTOCOL_ERROR")
            .opened_by([b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", &frame(SETTINGS, 0, 0, &[])[..]].concat()),
        case("a preface twice", behind(PREFACE), MISSIZED),
    ]
}

/// §4.1, §4.2, §5.5, §6.
fn frames() -> Vec<Case> {
    let padded = |pad: u8, rest: &[u8], zeros: usize| [&[pad], rest, &vec![0; zeros]].concat();
    let head = fields(&[METHOD, SCHEME, PATH, AUTHORITY]);
    let with = |flags, payload: &[u8]| [frame(HEADERS, END_HEADERS | flags, STREAM, payload), body()].concat();
    let prioritised = |on: u32| [&on.to_be_bytes()[..], &[15], &head].concat();
    vec![
        case("a chat", chat(&[]), "200").sees(&["content-length: 39", "x-forwarded-host: corpus"]),
        case("a frame of an unknown kind", behind(frame(0xbe, 0xff, 0, b"what?")), "200"),
        case("one within a stream", before([frame(0xbe, 0, 1, b"what?"), frame(DATA, 1, 1, b"")].concat()), "200"),
        case("unknown flags", with(0x52, &head), "200"),
        case("a head with padding", with(PADDED, &padded(3, &head, 3)), "200"),
        case("a head of padding alone", with(PADDED, &[200, 0, 0]), "connection PROTOCOL_ERROR"),
        case("a head that lacks its padding", with(PADDED, &[]), MISSIZED),
        case("a head with a priority", with(WITH_PRIORITY, &prioritised(0)), "200"),
        // Deprecated, and by RFC 7540 §5.3.1 an error.
        case(
            "a head that depends on itself",
            with(WITH_PRIORITY, &prioritised(STREAM)),
            "200|PROTOCOL_ERROR|connection PROTOCOL_ERROR",
        ),
        case("a head that is too short for its priority", with(WITH_PRIORITY, &[0, 0]), MISSIZED),
        case(
            "a frame that is too large",
            before(frame(DATA, 1, 1, &vec![b' '; 16_385])),
            "connection FRAME_SIZE_ERROR",
        ),
        case("the largest frame", before(frame(DATA, 1, 1, &vec![b' '; 16_384])), "200"),
        case("a priority of an idle stream", behind(frame(PRIORITY, 0, 9, &[0, 0, 0, 0, 1])), "200"),
        case(
            "a priority of the connection",
            behind(frame(PRIORITY, 0, 0, &[0, 0, 0, 9, 1])),
            "connection PROTOCOL_ERROR",
        ),
    ]
}

/// §4.3, §6.10.
fn continuations() -> Vec<Case> {
    let block = fields(&[METHOD, SCHEME, PATH, AUTHORITY]);
    let (first, second) = block.split_at(block.len() / 2);
    let begun = |next: Vec<u8>| [frame(HEADERS, 0, STREAM, first), next, body()].concat();
    let block = |block: &[u8]| [frame(HEADERS, END_HEADERS, STREAM, block), body()].concat();
    vec![
        case("a head in two parts", begun(frame(CONTINUATION, END_HEADERS, 1, second)), "200"),
        case(
            "a head in parts of nothing",
            begun([frame(CONTINUATION, 0, 1, b""), frame(CONTINUATION, END_HEADERS, 1, second)].concat()),
            "200",
        ),
        case("a head that data breaks off", begun(vec![]), "connection PROTOCOL_ERROR"),
        case("a head that a ping breaks off", begun(frame(PING, 0, 0, &[0; 8])), "connection PROTOCOL_ERROR"),
        case("a head that is unknown to go on", begun(frame(0xbe, 0, 1, b"")), "connection PROTOCOL_ERROR"),
        case("a head that goes on elsewhere", begun(frame(CONTINUATION, 4, 3, second)), "connection PROTOCOL_ERROR"),
        case("a head that goes on nowhere", begun(frame(CONTINUATION, 4, 0, second)), "connection PROTOCOL_ERROR"),
        case("what continues nothing", behind(frame(CONTINUATION, 4, 1, second)), "connection PROTOCOL_ERROR"),
        case("what continues a whole head", before(frame(CONTINUATION, 5, 1, b"")), "connection PROTOCOL_ERROR"),
        case("an index of nothing", block(&[0x80]), UNREADABLE),
        case("an index past the table", block(&[0xff, 0x80, 0x01]), UNREADABLE),
        case("a field without its value", block(b"\x00\x01a"), UNREADABLE),
        case("a field longer than its block", block(b"\x00\x01a\x7e1"), UNREADABLE),
        case("an index without an end", block(&[0xff; 12]), UNREADABLE),
        case("a table larger than it may be", block(&[0x3f, 0xff, 0xff, 0x7f]), UNREADABLE),
        case("bad letters in Huffman's code", block(b"\x00\x01a\x84\xff\xff\xff\xff"), UNREADABLE),
    ]
}

/// §6.1, §8.1.
fn data() -> Vec<Case> {
    let padded = [&[4][..], BODY, &[0; 4]].concat();
    let begin = chat_head(&[]);
    let with = |flags, payload: &[u8]| [&begin[..], &frame(DATA, END_STREAM | flags, STREAM, payload)].concat();
    let bytes = BODY.chunks(1).flat_map(|byte| frame(DATA, 0, 1, byte)).collect::<Vec<_>>();
    vec![
        case("data with padding", with(PADDED, &padded), "200").sees(&["content-length: 39"]),
        case("data of padding alone", with(PADDED, &[4, 0, 0, 0]), "connection PROTOCOL_ERROR"),
        case("data as long as its padding", with(PADDED, &[1, 0]), "400"),
        case("data that lacks its padding", with(PADDED, &[]), MISSIZED),
        case("data byte by byte", [&begin[..], &bytes, &frame(DATA, 1, 1, b"")].concat(), "200"),
        case("data of nothing", with(0, b""), "400"),
        case("data of the connection", behind(frame(DATA, 0, 0, BODY)), "connection PROTOCOL_ERROR"),
        case("data of an idle stream", behind(frame(DATA, 0, 9, BODY)), "connection PROTOCOL_ERROR"),
        case("data of a stream of ours", behind(frame(DATA, 0, 2, BODY)), "connection PROTOCOL_ERROR"),
    ]
}

/// §5.1, §5.1.1, §6.2, §6.4, §6.6.
fn streams() -> Vec<Case> {
    let block = fields(&[METHOD, SCHEME, PATH, AUTHORITY]);
    let whole = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &block);
    let closed = "STREAM_CLOSED|connection STREAM_CLOSED|connection PROTOCOL_ERROR";
    vec![
        case("a head of the connection", behind(whole(0)), "connection PROTOCOL_ERROR"),
        case("a head of a stream of ours", behind(whole(2)), "connection PROTOCOL_ERROR"),
        case("a head of an older stream", [whole(3), chat(&[])].concat(), "connection PROTOCOL_ERROR"),
        case("data behind the end", [chat(&[]), frame(DATA, 0, 1, BODY)].concat(), closed),
        case("a head behind the end", [chat(&[]), whole(1)].concat(), closed),
        case("a reset of an idle stream", behind(frame(RST_STREAM, 0, 9, &[0, 0, 0, 8])), "connection PROTOCOL_ERROR"),
        case("a reset of the connection", behind(frame(RST_STREAM, 0, 0, &[0, 0, 0, 8])), "connection PROTOCOL_ERROR"),
        case("a short reset", before(frame(RST_STREAM, 0, 1, &[0])), MISSIZED),
        case(
            "a promise",
            before(frame(PUSH_PROMISE, 4, 1, &[&[0, 0, 0, 2], &block[..]].concat())),
            "connection PROTOCOL_ERROR",
        ),
    ]
}

/// §6.9.
fn windows() -> Vec<Case> {
    let window = |stream, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    vec![
        case("a window of the connection", behind(window(0, 1)), "200"),
        case("a window of nothing", before(window(1, 0)), MALFORMED),
        case("a window of nothing for all", behind(window(0, 0)), "connection PROTOCOL_ERROR"),
        case("a window of an idle stream", behind(window(9, 1)), "connection PROTOCOL_ERROR"),
        case("a window past its limit", before(window(1, 0x7fff_ffff)), "FLOW_CONTROL_ERROR"),
        case("a window past its limit for all", behind(window(0, 0x7fff_ffff)), "connection FLOW_CONTROL_ERROR"),
        case("a short window", behind(frame(WINDOW_UPDATE, 0, 0, &[1])), MISSIZED),
    ]
}

/// §6.5.
fn settings() -> Vec<Case> {
    let set = |key: u8, value: u32| behind(frame(SETTINGS, 0, 0, &[&[0, key], &value.to_be_bytes()[..]].concat()));
    vec![
        case("an unknown setting", set(0xbe, 1), "200"),
        case("settings of a stream", behind(frame(SETTINGS, 0, 1, b"")), "connection PROTOCOL_ERROR"),
        case("settings cut short", behind(frame(SETTINGS, 0, 0, &[0; 5])), MISSIZED),
        case("an acknowledgement that says something", behind(frame(SETTINGS, ACK, 0, &[0; 6])), MISSIZED),
        case("half a push", set(2, 2), "connection PROTOCOL_ERROR"),
        case(
            "a window past its limit from the first",
            set(4, 0x8000_0000),
            "connection FLOW_CONTROL_ERROR|connection PROTOCOL_ERROR",
        ),
        case("frames that are too small", set(5, 16_383), "connection PROTOCOL_ERROR"),
        case("frames that are too large", set(5, 0x0100_0000), "connection PROTOCOL_ERROR"),
    ]
}

/// §6.7, §6.8.
fn others() -> Vec<Case> {
    vec![
        case("a ping", behind(frame(PING, 0, 0, &[0; 8])), "200"),
        case("an answer to no ping", behind(frame(PING, ACK, 0, &[7; 8])), "200"),
        case("a ping of a stream", behind(frame(PING, 0, 1, &[0; 8])), "connection PROTOCOL_ERROR"),
        case("a short ping", behind(frame(PING, 0, 0, &[0; 7])), MISSIZED),
        case("a farewell of a stream", behind(frame(GOAWAY, 0, 1, &[0; 8])), "connection PROTOCOL_ERROR"),
        case("a short farewell", behind(frame(GOAWAY, 0, 0, &[0; 7])), MISSIZED),
    ]
}

/// §8.2.1.
fn names() -> Vec<Case> {
    let named = |name| chat(&[(name, "1")]);
    vec![
        case("a name in small letters", named("x-odd"), "200").sees(&["x-odd: 1"]),
        case("a name in capitals", named("X-Odd"), MALFORMED),
        case("a name with one capital", named("x-oDd"), MALFORMED),
        case("no name", named(""), MALFORMED),
        case("a name with a space", named("x odd"), MALFORMED),
        case("a name before a space", named("x-odd "), MALFORMED),
        case("a name with a colon", named("x:odd"), MALFORMED),
        case("a name with a line end", named("x\r\nodd"), MALFORMED),
        case("a name with a zero", named("x\0odd"), MALFORMED),
        case("a name past ASCII", named("x-caf\u{e9}"), MALFORMED),
        case("a delete in a name", named("x\x7fodd"), MALFORMED),
        case("a length that others may read", named("content_length"), "200"),
        case("a coding that others may read", chat(&[("transfer_encoding", "chunked")]), "200"),
    ]
}

/// §8.2.1, §8.2.3.
fn values() -> Vec<Case> {
    let valued = |value| chat(&[("x-odd", value)]);
    vec![
        case("no value", valued(""), "200"),
        case("a value with a line end", valued("a\r\nx-more: 1"), MALFORMED),
        case("a value with a line feed", valued("a\nx-more: 1"), MALFORMED),
        case("a value with a carriage return", valued("a\rx-more: 1"), MALFORMED),
        case("a value with a zero", valued("a\0b"), MALFORMED),
        // Malformed too, where it begins or ends with a space; read by HTTP/1.1 as without.
        case("a value between spaces", valued(" a "), "200|PROTOCOL_ERROR"),
        case("a value past ASCII", valued("caf\u{e9}"), "200"),
        case("cookies in crumbs", chat(&[("cookie", "a=1"), ("cookie", "b=2")]), "200").sees(&["cookie: a=1; b=2"]),
        case("a head of 40,000 bytes", head_of_many(40), "431"),
    ]
}

/// More than one frame holds.
fn head_of_many(thousands: usize) -> Vec<u8> {
    let value = "x".repeat(1000);
    let long = fields(&vec![("x-long", value.as_str()); thousands]);
    let rest = long.chunks(16_000).map(|part| frame(CONTINUATION, 0, STREAM, part));
    let begin = frame(HEADERS, 0, STREAM, &fields(&[METHOD, SCHEME, PATH, AUTHORITY]));
    let end = frame(CONTINUATION, END_HEADERS, STREAM, b"");
    [begin, rest.collect::<Vec<_>>().concat(), end, body()].concat()
}

/// §8.2.2.
fn hop_by_hop() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, field) in [
        ("connection", ("connection", "close")),
        ("a connection that names a field", ("connection", "x-odd")),
        ("keep-alive", ("keep-alive", "timeout=5")),
        ("proxy-connection", ("proxy-connection", "keep-alive")),
        ("chunks", ("transfer-encoding", "chunked")),
        ("a coding that is none", ("transfer-encoding", "identity")),
        ("an upgrade", ("upgrade", "websocket")),
        ("te for gzip", ("te", "gzip")),
        ("te for trailers and gzip", ("te", "trailers, gzip")),
    ] {
        cases.push(case(name, chat(&[field]), "PROTOCOL_ERROR"));
    }
    cases.push(case("te for trailers", chat(&[("te", "trailers")]), "200"));
    cases.push(case("an expectation", chat(&[("expect", "100-continue")]), "200"));
    cases.push(case("an unknown expectation", chat(&[("expect", "the-unexpected")]), "417"));
    cases
}

/// §8.3, §8.3.1: each once, none that is unknown, before all other fields.
fn missing() -> Vec<Case> {
    let chat_and = |more| made_of(&[METHOD, SCHEME, PATH, AUTHORITY, more]);
    vec![
        case("no method", made_of(&[SCHEME, PATH, AUTHORITY]), "PROTOCOL_ERROR"),
        case("no scheme", made_of(&[METHOD, PATH, AUTHORITY]), "PROTOCOL_ERROR"),
        case("no path", made_of(&[METHOD, SCHEME, AUTHORITY]), "PROTOCOL_ERROR"),
        case("no field at all", made_of(&[]), "PROTOCOL_ERROR"),
        case("two methods", chat_and(METHOD), "PROTOCOL_ERROR"),
        case("two methods that differ", chat_and((":method", "GET")), "PROTOCOL_ERROR"),
        case("two schemes", chat_and(SCHEME), "PROTOCOL_ERROR"),
        case("two paths", chat_and((":path", "/v1/embeddings")), "PROTOCOL_ERROR"),
        case("two authorities", chat_and((":authority", "other")), "PROTOCOL_ERROR"),
        case("an answer's status", chat_and((":status", "200")), "PROTOCOL_ERROR"),
        case("an unknown pseudo field", chat_and((":odd", "1")), MALFORMED),
        case("a protocol without a tunnel", chat_and((":protocol", "websocket")), "PROTOCOL_ERROR"),
        case("a pseudo field in capitals", made_of(&[(":METHOD", "POST"), SCHEME, PATH, AUTHORITY]), MALFORMED),
        case("a path behind a field", made_of(&[METHOD, SCHEME, AUTHORITY, ("a", "1"), PATH]), "PROTOCOL_ERROR"),
        case("a path behind it again", chat(&[("a", "1"), (":path", "/v1/embeddings")]), "PROTOCOL_ERROR"),
    ]
}

/// §8.3.1, RFC 9110 §7.2.
fn authorities() -> Vec<Case> {
    let at = |authority| made_of(&[METHOD, SCHEME, PATH, (":authority", authority)]);
    let and_host = |host| chat(&[("host", host)]);
    let host_alone = |host| made_of(&[METHOD, SCHEME, PATH, ("host", host)]);
    vec![
        case("a host alone", host_alone("field"), "200").sees(&["x-forwarded-host: field"]),
        case("a malformed host alone", host_alone("a b"), "400|PROTOCOL_ERROR"),
        case("neither", made_of(&[METHOD, SCHEME, PATH]), "400|PROTOCOL_ERROR"),
        case("an authority and the same host", and_host("corpus"), "200").sees(&["x-forwarded-host: corpus"]),
        case("the same in capitals", and_host("CORPUS"), "200").sees(&["x-forwarded-host: corpus"]),
        case("an authority and another host", and_host("other"), "400|PROTOCOL_ERROR"),
        case("an authority and another port", and_host("corpus:81"), "400|PROTOCOL_ERROR"),
        case("an authority and two hosts", chat(&[("host", "corpus"), ("host", "corpus")]), "400|PROTOCOL_ERROR"),
        case("an empty authority", at(""), "400|PROTOCOL_ERROR"),
        case("an authority with a port", at("corpus:8080"), "200").sees(&["x-forwarded-host: corpus:8080"]),
        case("an authority by number", at("[::1]:8080"), "200"),
        case("an authority with a user", at("me@corpus"), "400|PROTOCOL_ERROR"),
        case("an authority with a path", at("corpus/v1"), "400|PROTOCOL_ERROR"),
        case("an authority with a space", at("a b"), "400|PROTOCOL_ERROR"),
        case("an authority with a line end", at("a\r\nx-odd: 1"), "400|PROTOCOL_ERROR"),
        case("a list of authorities", at("corpus,other"), "400|PROTOCOL_ERROR"),
        case("an authority with a port of letters", at("corpus:port"), "400|PROTOCOL_ERROR"),
    ]
}

/// §8.3.1: absolute, and without a fragment.
fn paths() -> Vec<Case> {
    let to = |path| made_of(&[METHOD, SCHEME, (":path", path), AUTHORITY]);
    vec![
        case("an empty path", to(""), "PROTOCOL_ERROR"),
        case("a path without a slash", to("v1/chat/completions"), "400|404|PROTOCOL_ERROR"),
        case("a star", to("*"), "400|404|405|PROTOCOL_ERROR"),
        // Which is for the client alone, and goes no further.
        case("a path with a fragment", to("/v1/chat/completions#part"), "200|400|PROTOCOL_ERROR"),
        case("a path with a space", to("/v1/chat/completions HTTP/1.1"), "PROTOCOL_ERROR"),
        case("a path with a line end", to("/v1/chat/completions HTTP/1.1\r\nx-odd: 1"), "PROTOCOL_ERROR"),
        case("a path with a zero", to("/v1/chat/completions\0"), "PROTOCOL_ERROR"),
        case("a path with a tab", to("/v1/chat/completions\t"), "PROTOCOL_ERROR"),
        case("an absolute target", to("http://other/v1/chat/completions"), "400|404|PROTOCOL_ERROR"),
        case("the same target", to("http://corpus/v1/chat/completions"), "400|404|PROTOCOL_ERROR"),
        case("a path with two slashes", to("//v1/chat/completions"), "400|404|PROTOCOL_ERROR"),
        case("a path that names a host", to("//other/v1/chat/completions"), "400|404|PROTOCOL_ERROR"),
        case("a path that goes up", to("/v1/../v1/chat/completions"), "400|404"),
        case("a path with a letter in disguise", to("/v1/chat/%63ompletions"), "400|404"),
    ]
}

/// §8.3.1, §8.5.
fn methods() -> Vec<Case> {
    let by = |method| made_of(&[(":method", method), SCHEME, PATH, AUTHORITY]);
    let over = |scheme| made_of(&[METHOD, (":scheme", scheme), PATH, AUTHORITY]);
    vec![
        case("a method in small letters", by("post"), "405"),
        case("an unknown method", by("MAKE"), "405"),
        case("an empty method", by(""), MALFORMED),
        case("a method with a space", by("POST /v1"), MALFORMED),
        case("a method with a line end", by("POST\r\nx"), MALFORMED),
        case("a trace", by("TRACE"), "405"),
        case("a tunnel with a path", by("CONNECT"), "PROTOCOL_ERROR|405"),
        case("a tunnel", made_of(&[(":method", "CONNECT"), AUTHORITY]), "405"),
        // As who ends TLS before us may say.
        case("https", over("https"), "200"),
        case("a scheme in capitals", over("HTTP"), "200|400|PROTOCOL_ERROR"),
        case("another scheme", over("ftp"), "400|PROTOCOL_ERROR"),
        case("an empty scheme", over(""), "400|PROTOCOL_ERROR"),
        case("a scheme with a space", over("ht tp"), "400|PROTOCOL_ERROR"),
    ]
}

/// §8.1.1: what is announced is what comes.
fn lengths() -> Vec<Case> {
    let long = |length| chat(&[("content-length", length)]);
    let empty = [METHOD, SCHEME, PATH, AUTHORITY, ("content-length", "19")];
    vec![
        case("a length", long("19"), "200").sees(&["content-length: 39"]),
        case("a length that is too short", long("18"), "PROTOCOL_ERROR"),
        case("a length that is too long", long("20"), "PROTOCOL_ERROR"),
        case("a length of nothing before something", long("0"), "PROTOCOL_ERROR|400"),
        case("a length and no body", frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&empty)), "PROTOCOL_ERROR"),
        case("a length and trailers alone", with_trailers_alone(&empty), "PROTOCOL_ERROR"),
        case("a length with a sign", long("+19"), "PROTOCOL_ERROR|400"),
        case("a negative length", long("-19"), "PROTOCOL_ERROR|400"),
        case("a length in hex", long("0x13"), "PROTOCOL_ERROR|400"),
        case("a length of two words", long("1 9"), "PROTOCOL_ERROR|400"),
        case("an empty length", long(""), "PROTOCOL_ERROR|400"),
        case("a list of equal lengths", long("19, 19"), "PROTOCOL_ERROR|400"),
        case("a length past 64 bits", long("99999999999999999999999"), "PROTOCOL_ERROR|400|413"),
        case("a length over the limit", long("999999999"), "413|PROTOCOL_ERROR"),
        case("equal lengths", chat(&[("content-length", "19"), ("content-length", "19")]), "200|400|PROTOCOL_ERROR"),
        case("different lengths", chat(&[("content-length", "19"), ("content-length", "20")]), "400|PROTOCOL_ERROR"),
        case(
            "different lengths again",
            chat(&[("content-length", "20"), ("content-length", "19")]),
            "400|PROTOCOL_ERROR",
        ),
    ]
}

fn with_trailers_alone(all: &[(&str, &str)]) -> Vec<u8> {
    [head(all), frame(HEADERS, END_HEADERS | END_STREAM, STREAM, &fields(&[("x-trailer", "1")]))].concat()
}

/// §8.1: trailers.
fn endings() -> Vec<Case> {
    let unended = frame(HEADERS, END_HEADERS, STREAM, &fields(&[("x-trailer", "1")]));
    vec![
        case("trailers", trailers(&[("x-trailer", "1")]), "200"),
        case("trailers of nothing", trailers(&[]), "200"),
        case("trailers that would frame", trailers(&[("content-length", "5"), ("host", "evil")]), "200|PROTOCOL_ERROR"),
        case("trailers that do not end", before([unended, frame(DATA, 1, 1, b"")].concat()), MALFORMED),
        case("trailers with a pseudo field", trailers(&[(":path", "/v1/embeddings")]), UNSEEN),
        case("trailers with a status", trailers(&[(":status", "200")]), UNSEEN),
        case("trailers in capitals", trailers(&[("X-Trailer", "1")]), MALFORMED),
        case("trailers with a line end", trailers(&[("x-trailer", "1\r\nx-odd: 1")]), MALFORMED),
        case("trailers of a connection", trailers(&[("transfer-encoding", "chunked")]), "200|PROTOCOL_ERROR"),
    ]
}
