//! The raw requests: what a client sends, byte for byte, what it must read, and how many requests may reach a backend.
//!
//! Statuses stand in the order of the answers on the connection; `|` parts what is right in more ways than one.

pub struct Case {
    pub name: &'static str,
    pub raw: &'static str,
    pub statuses: &'static str,
    /// Requests that the backend must have seen, exactly.
    pub reached: usize,
}

/// 19 bytes, 13 in hex.
macro_rules! body {
    () => {
        "{\"model\":\"qwen-vl\"}"
    };
}

/// A chat with these fields, each with its line end, and whatever comes behind the head.
macro_rules! chat {
    ($fields:expr, $behind:expr) => {
        concat!("POST /v1/chat/completions HTTP/1.1\r\nHost: corpus\r\n", $fields, "\r\n", $behind)
    };
}

/// A whole chat with a length and these further fields.
macro_rules! sized {
    ($fields:expr) => {
        chat!(concat!("Content-Length: 19\r\n", $fields), body!())
    };
}

/// A chat in chunks: these bytes are its body.
macro_rules! chunked {
    ($body:expr) => {
        chat!("Transfer-Encoding: chunked\r\n", $body)
    };
}

/// A whole body in one chunk.
macro_rules! one_chunk {
    () => {
        concat!("13\r\n", body!(), "\r\n0\r\n\r\n")
    };
}

/// A chat whose first line this is.
macro_rules! line {
    ($line:expr) => {
        concat!($line, "\r\nHost: corpus\r\nContent-Length: 19\r\n\r\n", body!())
    };
}

/// A chat with these lines in place of its `Host`.
macro_rules! host {
    ($lines:expr) => {
        concat!("POST /v1/chat/completions HTTP/1.1\r\n", $lines, "Content-Length: 19\r\n\r\n", body!())
    };
}

/// What is hidden behind a request, in the hope that somebody takes it for the next one.
macro_rules! smuggled {
    () => {
        concat!("POST /v1/embeddings HTTP/1.1\r\nHost: smuggled\r\nContent-Length: 19\r\n\r\n", body!())
    };
}

const fn case(name: &'static str, raw: &'static str, statuses: &'static str, reached: usize) -> Case {
    Case { name, raw, statuses, reached }
}

pub const CASES: &[Case] = &[
    // Lengths (RFC 9110 §8.6, RFC 9112 §6.2).
    case("a length", sized!(""), "200", 1),
    case("a length of nothing", chat!("Content-Length: 0\r\n", ""), "400", 0),
    case("no length at all", chat!("", ""), "400|411", 0),
    case("a length with a sign", chat!("Content-Length: +19\r\n", body!()), "400", 0),
    case("a negative length", chat!("Content-Length: -19\r\n", body!()), "400", 0),
    case("a length in hex", chat!("Content-Length: 0x13\r\n", body!()), "400", 0),
    case("a length of two words", chat!("Content-Length: 1 9\r\n", body!()), "400", 0),
    case("a length with letters", chat!("Content-Length: 19a\r\n", body!()), "400", 0),
    case("a length with a point", chat!("Content-Length: 19.0\r\n", body!()), "400", 0),
    case("an empty length", chat!("Content-Length: \r\n", body!()), "400", 0),
    case("a list of equal lengths", chat!("Content-Length: 19, 19\r\n", body!()), "400", 0),
    case("a list of lengths", chat!("Content-Length: 19, 20\r\n", body!()), "400", 0),
    case("equal lengths", chat!("Content-Length: 19\r\nContent-Length: 19\r\n", body!()), "200", 1),
    case("different lengths", chat!("Content-Length: 19\r\nContent-Length: 20\r\n", body!()), "400", 0),
    case("a length longer than any number", chat!("Content-Length: 99999999999999999999999\r\n", body!()), "400", 0),
    case("the largest length", chat!("Content-Length: 18446744073709551615\r\n", body!()), "400|413|431", 0),
    case("a length over the limit", chat!("Content-Length: 999999999\r\n", body!()), "413", 0),
    case("a length behind a tab", chat!("Content-Length:\t19\t\r\n", body!()), "200", 1),
    case("a length with leading zeros", chat!("Content-Length: 0019\r\n", body!()), "200", 1),
    case("a length before a space", chat!("Content-Length : 19\r\n", body!()), "400", 0),
    case("a length that others may read", sized!("Content_Length: 5\r\n"), "200", 1),
    // Codings (RFC 9112 §6.1).
    case("chunks", chunked!(one_chunk!()), "200", 1),
    case("chunks in capitals", chat!("Transfer-Encoding: CHUNKED\r\n", one_chunk!()), "200", 1),
    case("chunks behind a tab", chat!("Transfer-Encoding:\tchunked\r\n", one_chunk!()), "200", 1),
    case("gzip", chat!("Transfer-Encoding: gzip\r\n", one_chunk!()), "400|501", 0),
    case("gzip in chunks", chat!("Transfer-Encoding: gzip, chunked\r\n", one_chunk!()), "400|501", 0),
    case("chunks in gzip", chat!("Transfer-Encoding: chunked, gzip\r\n", one_chunk!()), "400|501", 0),
    case("chunks in chunks", chat!("Transfer-Encoding: chunked, chunked\r\n", one_chunk!()), "400|501", 0),
    case("chunks behind a comma", chat!("Transfer-Encoding: ,chunked\r\n", one_chunk!()), "400|501", 0),
    case("chunks before a comma", chat!("Transfer-Encoding: chunked,\r\n", one_chunk!()), "400|501", 0),
    case(
        "chunks in two fields",
        chat!("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", one_chunk!()),
        "400|501",
        0,
    ),
    case(
        "chunks and identity",
        chat!("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", one_chunk!()),
        "400|501",
        0,
    ),
    case("identity", chat!("Transfer-Encoding: identity\r\nContent-Length: 19\r\n", body!()), "400|501", 0),
    case("almost chunks", chat!("Transfer-Encoding: xchunked\r\n", one_chunk!()), "400|501", 0),
    case("quoted chunks", chat!("Transfer-Encoding: \"chunked\"\r\n", one_chunk!()), "400|501", 0),
    case("chunks with a weight", chat!("Transfer-Encoding: chunked;q=1\r\n", one_chunk!()), "400|501", 0),
    case("chunks behind a vertical tab", chat!("Transfer-Encoding: \x0bchunked\r\n", one_chunk!()), "400|501", 0),
    case("an empty coding", chat!("Transfer-Encoding: \r\nContent-Length: 19\r\n", body!()), "400|501", 0),
    case("a coding before a space", chat!("Transfer-Encoding : chunked\r\n", one_chunk!()), "400", 0),
    case("a folded coding", chat!("Transfer-Encoding:\r\n chunked\r\n", one_chunk!()), "400", 0),
    case("a coding that others may read", sized!("Transfer_Encoding: chunked\r\n"), "200", 1),
    case(
        "a coding in HTTP/1.0",
        concat!(
            "POST /v1/chat/completions HTTP/1.0\r\nHost: corpus\r\nTransfer-Encoding: chunked\r\n\r\n",
            one_chunk!()
        ),
        "400",
        0,
    ),
    case(
        "a length and chunks",
        chat!("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", concat!(one_chunk!(), smuggled!())),
        "200|400",
        1,
    ),
    case(
        "chunks and a length",
        chat!("Transfer-Encoding: chunked\r\nContent-Length: 100\r\n", concat!(one_chunk!(), smuggled!())),
        "200|400",
        1,
    ),
    case(
        "a length of nothing and chunks",
        chat!("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", concat!(one_chunk!(), smuggled!())),
        "200|400",
        1,
    ),
    // Chunks (RFC 9112 §7.1).
    case("many chunks", chunked!("1\r\n{\r\n12\r\n\"model\":\"qwen-vl\"}\r\n0\r\n\r\n"), "200", 1),
    case("a chunk with an extension", chunked!(concat!("13;a=b;c=\"d\"\r\n", body!(), "\r\n0\r\n\r\n")), "200", 1),
    case("a size with zeros", chunked!(concat!("000013\r\n", body!(), "\r\n0000\r\n\r\n")), "200", 1),
    case("trailers", chunked!(concat!("13\r\n", body!(), "\r\n0\r\nX-Trailer: 1\r\n\r\n")), "200", 1),
    case(
        "trailers that would frame",
        chunked!(concat!("13\r\n", body!(), "\r\n0\r\nContent-Length: 5\r\nHost: evil\r\n\r\n")),
        "200|400",
        1,
    ),
    case("a size before a bare line feed", chunked!(concat!("13\n", body!(), "\r\n0\r\n\r\n")), "400", 0),
    case("an extension with a bare line feed", chunked!(concat!("13;a\nb\r\n", body!(), "\r\n0\r\n\r\n")), "400", 0),
    case("a size with a sign", chunked!(concat!("+13\r\n", body!(), "\r\n0\r\n\r\n")), "400", 0),
    case("a negative size", chunked!(concat!("-13\r\n", body!(), "\r\n0\r\n\r\n")), "400", 0),
    case("a size with a prefix", chunked!(concat!("0x13\r\n", body!(), "\r\n0\r\n\r\n")), "400", 0),
    case("a size behind a space", chunked!(concat!(" 13\r\n", body!(), "\r\n0\r\n\r\n")), "400", 0),
    case("a size past 64 bits", chunked!(concat!("10000000000000013\r\n", body!(), "\r\n0\r\n\r\n")), "400", 0),
    case("no size", chunked!(concat!("\r\n", body!(), "\r\n0\r\n\r\n")), "400", 0),
    case("a chunk longer than its size", chunked!(concat!("12\r\n", body!(), "\r\n0\r\n\r\n")), "400", 0),
    case("a chunk without its line end", chunked!(concat!("13\r\n", body!(), "0\r\n\r\n")), "400", 0),
    case("a chunk before a bare line feed", chunked!(concat!("13\r\n", body!(), "\n0\r\n\r\n")), "400", 0),
    case("an end of bare line feeds", chunked!(concat!("13\r\n", body!(), "\r\n0\n\n")), "400", 0),
    // Host (RFC 9112 §3.2).
    case("no host", host!(""), "400", 0),
    case("two hosts", host!("Host: corpus\r\nHost: other\r\n"), "400", 0),
    case("a host twice", host!("Host: corpus\r\nHost: corpus\r\n"), "400", 0),
    case("an empty host", host!("Host: \r\n"), "200", 1),
    case("a host by number", host!("Host: [::1]:8080\r\n"), "200", 1),
    case("a host with a space", host!("Host: a b\r\n"), "400", 0),
    case("a host with a user", host!("Host: me@corpus\r\n"), "400", 0),
    case("a host with a path", host!("Host: corpus/v1\r\n"), "400", 0),
    case("a list of hosts", host!("Host: corpus,other\r\n"), "400", 0),
    case("a host with a port of letters", host!("Host: corpus:port\r\n"), "400", 0),
    case("a host before a space", host!("Host : corpus\r\n"), "400", 0),
    case(
        "no host in HTTP/1.0",
        concat!("POST /v1/chat/completions HTTP/1.0\r\nContent-Length: 19\r\n\r\n", body!()),
        "200",
        1,
    ),
    // Targets (RFC 9112 §3.2).
    case("an absolute target", line!("POST http://other.test/v1/chat/completions HTTP/1.1"), "200", 1),
    case("an absolute target without a path", line!("POST http://other.test HTTP/1.1"), "404|405", 0),
    case("an absolute target with a user", line!("POST http://me@other.test/v1/chat/completions HTTP/1.1"), "400", 0),
    case("a target of another scheme", line!("POST ftp://other.test/v1/chat/completions HTTP/1.1"), "400", 0),
    case("a path that goes up", line!("POST /v1/../v1/chat/completions HTTP/1.1"), "404", 0),
    case("a path that goes up in disguise", line!("POST /v1/%2e%2e/v1/chat/completions HTTP/1.1"), "404", 0),
    case("a path with two slashes", line!("POST //v1/chat/completions HTTP/1.1"), "404|400", 0),
    case("a path with a backslash", line!("POST /v1\\chat/completions HTTP/1.1"), "404|400", 0),
    case("a path with a zero", line!("POST /v1/chat/completions%00 HTTP/1.1"), "404", 0),
    case("a path with a letter in disguise", line!("POST /v1/chat/%63ompletions HTTP/1.1"), "404", 0),
    case("a path with a parameter", line!("POST /v1/chat/completions;a=b HTTP/1.1"), "404", 0),
    case("the proxy itself", "OPTIONS * HTTP/1.1\r\nHost: corpus\r\n\r\n", "204|200", 0),
    case("a star that is none", "GET * HTTP/1.1\r\nHost: corpus\r\n\r\n", "400|404", 0),
    case("a tunnel", "CONNECT other.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n", "405", 0),
    case("a tunnel to a path", "CONNECT /v1/chat/completions HTTP/1.1\r\nHost: corpus\r\n\r\n", "405|400", 0),
    case("a trace", "TRACE /v1/chat/completions HTTP/1.1\r\nHost: corpus\r\nMax-Forwards: 5\r\n\r\n", "405", 0),
    case("options of a path", "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: corpus\r\n\r\n", "405", 0),
    case("a head", "HEAD /v1/chat/completions HTTP/1.1\r\nHost: corpus\r\n\r\n", "405", 0),
    // Lines (RFC 9112 §2 and §3).
    case("a method in small letters", line!("post /v1/chat/completions HTTP/1.1"), "405", 0),
    case("two spaces", line!("POST  /v1/chat/completions HTTP/1.1"), "400", 0),
    case("a tab for a space", line!("POST\t/v1/chat/completions HTTP/1.1"), "400", 0),
    case("a space in the target", line!("POST /v1/chat/completions x HTTP/1.1"), "400", 0),
    case("a version to come", line!("POST /v1/chat/completions HTTP/1.2"), "400|505", 0),
    case("a version that is not of this form", line!("POST /v1/chat/completions HTTP/2.0"), "400|505", 0),
    case("a version in small letters", line!("POST /v1/chat/completions http/1.1"), "400|505", 0),
    case("no version", line!("POST /v1/chat/completions"), "400", 0),
    case("garbage", "GARBAGE\r\n\r\n", "400", 0),
    case("the beginning of TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03\r\n\r\n", "400", 0),
    case("empty lines before a request", concat!("\r\n\r\n", sized!("")), "200", 1),
    case("a zero in a value", sized!("X-Odd: a\0b\r\n"), "400", 0),
    case("a carriage return in a value", sized!("X-Odd: a\rContent-Length: 5\r\n"), "400", 0),
    case("a control character in a value", sized!("X-Odd: a\x01b\r\n"), "400", 0),
    case("a delete in a value", sized!("X-Odd: a\x7fb\r\n"), "400", 0),
    case("letters past ASCII in a value", sized!("X-Odd: caf\u{e9}\r\n"), "200", 1),
    case("a zero in a name", sized!("X-O\0dd: a\r\n"), "400", 0),
    case("a space in a name", sized!("X Odd: a\r\n"), "400", 0),
    case("letters past ASCII in a name", sized!("X-Caf\u{e9}: a\r\n"), "400", 0),
    case("no name", sized!(": a\r\n"), "400", 0),
    case("no colon", sized!("X-Odd\r\n"), "400", 0),
    case("a folded value", sized!("X-Odd: a\r\n b\r\n"), "400", 0),
    case(
        "a folded first line",
        concat!("POST /v1/chat/completions HTTP/1.1\r\n Host: corpus\r\nContent-Length: 19\r\n\r\n", body!()),
        "400",
        0,
    ),
    // What belongs to one hop (RFC 9110 §7.6.1).
    case(
        "names that cannot be named away",
        sized!("Connection: close, Host, Content-Length, X-Forwarded-For, Via, X-Request-Id\r\n"),
        "200",
        1,
    ),
    case(
        "an upgrade to HTTP/2",
        sized!("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
        "200",
        1,
    ),
    case(
        "an upgrade to a socket",
        sized!("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n"),
        "200",
        1,
    ),
    case(
        "everything of one hop",
        sized!(
            "Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\nTE: trailers\r\nTrailer: X-T\r\n"
        ),
        "200",
        1,
    ),
    case(
        "forged ways",
        sized!(
            "X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n"
        ),
        "200",
        1,
    ),
    // Expectations (RFC 9110 §10.1.1).
    case("an expectation", sized!("Expect: 100-continue\r\n"), "200", 1),
    case("an expectation that nobody knows", sized!("Expect: the-unexpected\r\n"), "417", 0),
    case(
        "an expectation in HTTP/1.0",
        concat!(
            "POST /v1/chat/completions HTTP/1.0\r\nHost: corpus\r\nExpect: 100-continue\r\nContent-Length: 19\r\n\r\n",
            body!()
        ),
        "200",
        1,
    ),
    // Bodies.
    case("a coded body", sized!("Content-Encoding: gzip\r\n"), "415", 0),
    case(
        "a coded body behind one that is not",
        sized!("Content-Encoding: identity\r\nContent-Encoding: gzip\r\n"),
        "415",
        0,
    ),
    case("two models", chat!("Content-Length: 31\r\n", "{\"model\":\"qwen-vl\",\"model\":\"x\"}"), "400", 0),
    case(
        "two models, one in disguise",
        chat!("Content-Length: 36\r\n", "{\"model\":\"qwen-vl\",\"\\u006dodel\":\"x\"}"),
        "400",
        0,
    ),
    case("a mark of byte order", chat!("Content-Length: 22\r\n", concat!("\u{feff}", body!())), "400", 0),
    case("no number", chat!("Content-Length: 27\r\n", "{\"model\":\"qwen-vl\",\"n\":NaN}"), "400", 0),
    // One after the other.
    case("two requests at once", concat!(sized!(""), sized!("")), "200 200", 2),
    case("a request before garbage", concat!(sized!(""), "GARBAGE\r\n\r\n"), "200 400", 1),
    case(
        "a body where there is none to be expected",
        concat!("GET /v1/models HTTP/1.1\r\nHost: corpus\r\nContent-Length: 19\r\n\r\n", body!()),
        "200",
        0,
    ),
    case(
        "a request in the body of another",
        concat!("GET /v1/models HTTP/1.1\r\nHost: corpus\r\nContent-Length: 87\r\n\r\n", smuggled!()),
        "200",
        0,
    ),
];
