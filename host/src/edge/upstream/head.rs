//! The head of an answer: parsed, checked, and made into an answer whose body is framed as it says.

use std::mem::MaybeUninit;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::body::{Home, UpstreamBody};
use super::framing::{Chunks, Framing};
use super::pool::{Peer, Pool};
use super::send::{Answer, Failure};
use crate::edge::wire::Wire;

/// Most header fields of an answer.
const FIELD_LIMIT: usize = 100;

pub(super) enum Parsed {
    Partial,
    Interim { length: usize },
    Final(Head),
}

/// A parsed head, and the first bytes of the body that came with it.
pub(super) struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// HTTP/1.1: the connection persists unless it says otherwise (RFC 9112 §9.3).
    persists: bool,
    pub behind: Bytes,
}

impl Head {
    pub(super) fn parse(read: &[u8]) -> Result<Parsed, Failure> {
        if read.is_empty() {
            return Ok(Parsed::Partial);
        }
        let mut fields = [const { MaybeUninit::uninit() }; FIELD_LIMIT];
        let mut response = httparse::Response::new(&mut []);
        let parser = httparse::ParserConfig::default();
        let length = match parser.parse_response_with_uninit_headers(&mut response, read, &mut fields) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(Parsed::Partial),
            Err(_) => return Err(Failure::Invalid("malformed head")),
        };
        // RFC 9110 §15: others have no meaning that a client could read.
        let code = response.code.filter(|code| (100..600).contains(code));
        let status = code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Failure::Invalid("bad status"))?;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::Invalid("switched protocols unasked"));
        }
        if status.is_informational() {
            return Ok(Parsed::Interim { length });
        }
        // One copy of what was read; every field value and the body's beginning are slices of it.
        let whole = Bytes::copy_from_slice(read);
        let headers = field_map(response.headers, read, &whole)?;
        let persists = response.version == Some(1);
        Ok(Parsed::Final(Self { status, headers, persists, behind: whole.slice(length..) }))
    }

    pub(super) fn into_answer(
        mut self,
        stream: Wire,
        pool: &Rc<Pool>,
        peer: Peer,
        whole: bool,
        between_chunks: Duration,
        method: &Method,
    ) -> Result<Answer, Failure> {
        let framing = self.framing(method)?;
        // Said twice it is still one length, and goes on as one field; an answer without a body has none to tell.
        let has_none = matches!(self.status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT);
        let length = self.headers.remove(header::CONTENT_LENGTH).filter(|_| !has_none);
        length.map(|length| self.headers.insert(header::CONTENT_LENGTH, length));
        let reusable = whole
            && self.persists
            // Its content, which it must not have (RFC 9110 §15.3.6), is not read.
            && self.status != StatusCode::RESET_CONTENT
            && !framing.ends_with_close()
            && !has_token(&self.headers, header::CONNECTION, "close");
        let home = Home { peer, reusable, advertised: advertised(&self.headers) };
        let body = UpstreamBody::begin(stream, framing, &self.behind, pool, home, between_chunks)
            .map_err(|_| Failure::Invalid("broken framing"))?;
        Ok(Answer { status: self.status, headers: self.headers, body })
    }

    /// Where the body ends (RFC 9112 §6.3).
    pub(super) fn framing(&self, method: &Method) -> Result<Framing, Failure> {
        if method == Method::HEAD || matches!(self.status.as_u16(), 204 | 205 | 304) {
            return Ok(Framing::Length(0));
        }
        let codings: Vec<_> = self.headers.get_all(header::TRANSFER_ENCODING).iter().collect();
        match codings.as_slice() {
            [] => {}
            // Two ways of framing at once, or one that HTTP/1.0 does not have: another reader would see another end.
            _ if !self.persists || self.headers.contains_key(header::CONTENT_LENGTH) => {
                return Err(Failure::Invalid("a transfer coding that does not belong there"));
            }
            [only] if only.as_bytes().eq_ignore_ascii_case(b"chunked") => {
                return Ok(Framing::Chunked(Chunks::default()));
            }
            _ => return Err(Failure::Invalid("unknown transfer coding")),
        }
        let mut lengths = self.headers.get_all(header::CONTENT_LENGTH).iter();
        let Some(first) = lengths.next() else { return Ok(Framing::UntilClose) };
        if lengths.any(|other| other != first) {
            return Err(Failure::Invalid("contradicting lengths"));
        }
        let digits = first.as_bytes();
        let length = digits.iter().all(u8::is_ascii_digit).then(|| first.to_str().ok()?.parse().ok()).flatten();
        length.map(Framing::Length).ok_or(Failure::Invalid("bad content-length"))
    }
}

/// The fields as slices of `whole`, which is a copy of `read`.
fn field_map(fields: &[httparse::Header<'_>], read: &[u8], whole: &Bytes) -> Result<HeaderMap, Failure> {
    let mut map = HeaderMap::with_capacity(fields.len() + 4);
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Failure::Invalid("bad field name"))?;
        let start = (field.value.as_ptr() as usize).saturating_sub(read.as_ptr() as usize);
        let end = start + field.value.len();
        let value = if end <= whole.len() { whole.slice(start..end) } else { Bytes::copy_from_slice(field.value) };
        map.append(name, HeaderValue::from_maybe_shared(value).map_err(|_| Failure::Invalid("bad field value"))?);
    }
    Ok(map)
}

/// Whether a list field names a token, whatever the case.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// `Keep-Alive: timeout=5`.
fn advertised(headers: &HeaderMap) -> Option<Duration> {
    let list = headers.get("keep-alive")?.to_str().ok()?;
    let seconds = list.split(',').find_map(|item| item.trim().strip_prefix("timeout="))?;
    seconds.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(wire: &[u8]) -> Result<Head, Failure> {
        match Head::parse(wire)? {
            Parsed::Final(head) => Ok(head),
            Parsed::Partial | Parsed::Interim { .. } => panic!("not a final head"),
        }
    }

    fn framing(fields: &str) -> Result<Framing, Failure> {
        parsed(format!("HTTP/1.1 200 OK\r\n{fields}\r\n").as_bytes())?.framing(&Method::POST)
    }

    #[test]
    fn values_are_those_on_the_wire() {
        let head = parsed(b"HTTP/1.1 200 OK\r\ncontent-type:  text/plain \r\nx-a: 1\r\nX-A: 2\r\n\r\nbody").unwrap();
        assert_eq!(head.headers["content-type"], "text/plain");
        assert_eq!(head.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(head.behind, "body");
    }

    #[test]
    fn a_body_is_framed_as_rfc_9112_says() {
        assert!(matches!(framing("content-length: 5\r\n").unwrap(), Framing::Length(5)));
        assert!(matches!(framing("content-length: 5\r\ncontent-length: 5\r\n").unwrap(), Framing::Length(5)));
        assert!(matches!(framing("transfer-encoding: Chunked\r\n").unwrap(), Framing::Chunked(_)));
        assert!(matches!(framing("").unwrap(), Framing::UntilClose));
        let reset = parsed(b"HTTP/1.1 205 Reset Content\r\ncontent-length: 4\r\n\r\nevil").unwrap();
        assert!(matches!(reset.framing(&Method::POST).unwrap(), Framing::Length(0)));
        for bad in [
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: +5\r\n",
            "content-length: \r\n",
            "content-length: 5, 5\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        ] {
            assert!(framing(bad).is_err(), "{bad}");
        }
        let old = parsed(b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
        assert!(old.framing(&Method::POST).is_err(), "HTTP/1.0 has no chunks");
    }

    #[test]
    fn interim_answers_are_told_from_final_ones() {
        let wire = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
        assert!(matches!(Head::parse(wire).unwrap(), Parsed::Interim { length: 25 }));
        assert!(Head::parse(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").is_err());
        for status in ["000", "099", "600", "999"] {
            assert!(Head::parse(format!("HTTP/1.1 {status} X\r\n\r\n").as_bytes()).is_err(), "{status}");
        }
        assert!(Head::parse(b"SSH-2.0-OpenSSH\r\n").is_err());
    }
}
