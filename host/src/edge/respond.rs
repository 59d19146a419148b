//! From a backend's answer to the client's: fields, names, and the body that holds the lease.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::Response;
use http::header::{self, HeaderMap, HeaderValue};
use tokio::time::Instant;

use super::attempt::{Begun, is_event_stream};
use super::client::Exchange;
use super::headers;
use super::response::{Account, Body, Counts, End, Format, LastWord, Nest, Relay, Rename, Usage};
use super::route::{Dialect, Endpoint};
use super::worker::{Candidate, Served};
use crate::config::Ejection;

/// What an answer is dressed with besides the backend's own words.
#[derive(Debug)]
pub struct Dress<'a> {
    pub endpoint: &'static Endpoint,
    pub served: &'a Served,
    pub candidate: &'a Candidate,
    pub request_id: &'a HeaderValue,
    pub attempts: u32,
    /// `reveal` of the configuration.
    pub reveal: bool,
    pub ejection: Ejection,
}

impl Dress<'_> {
    /// The answer of a backend, as the client shall read it.
    pub fn relay(
        &self,
        begun: Begun,
        account: Rc<Account>,
        exchange: Option<Exchange>,
        cut: Rc<Cell<bool>>,
    ) -> Response<Body> {
        let Begun { answer, first, lease, is_stream, .. } = begun;
        let began = (is_stream && answer.status.is_success()).then(Instant::now);
        let format = format_of(&answer.headers);
        let mut response = Response::new(Body::Whole(Bytes::new()));
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        self.fields(response.headers_mut());
        let mut relay = Relay {
            upstream: answer.body,
            rename: format.map(|format| Rename::new(format, self.nest(), self.served.public_json.clone())),
            usage: format.map(|_| Usage::new(self.counts())),
            out: VecDeque::new(),
            backend: Arc::clone(&lease.backend),
            since_ms: lease.since_ms,
            lease: Some(lease),
            last_word: self.last_word(response.headers(), format),
            ejection: self.ejection,
            began,
            cut,
            end: End::Open,
            account,
            exchange,
        };
        relay.account.status.set(response.status().as_u16());
        if let Some(first) = first {
            relay.take_in(first);
        }
        *response.body_mut() = finish(relay, response.headers_mut());
        response
    }

    /// An answer kept from an attempt that another one did not better.
    pub fn pass_on(&self, mut kept: Response<Body>) -> Response<Body> {
        self.fields(kept.headers_mut());
        kept
    }

    fn fields(&self, headers: &mut HeaderMap) {
        headers::to_client(headers, self.request_id);
        if !self.reveal {
            return;
        }
        for (name, value) in
            [(headers::X_BACKEND, &self.candidate.backend_header), (headers::X_MODEL, &self.candidate.native_header)]
        {
            value.as_ref().map(|value| headers.insert(name, value.clone()));
        }
        let first = HeaderValue::from_static("1");
        headers.insert(headers::X_ATTEMPTS, if self.attempts == 1 { first } else { self.attempts.into() });
    }

    /// Where this API repeats the model inside an event.
    fn nest(&self) -> Option<Nest> {
        match self.endpoint.path {
            "/v1/messages" => Some(Nest::Message),
            "/v1/responses" => Some(Nest::Response),
            _ => None,
        }
    }

    /// Where this API counts tokens.
    fn counts(&self) -> Counts {
        match self.endpoint.dialect {
            Dialect::Ollama => Counts::Object,
            Dialect::OpenAi | Dialect::Anthropic => Counts::Usage,
        }
    }

    fn last_word(&self, headers: &HeaderMap, format: Option<Format>) -> LastWord {
        match format {
            _ if is_event_stream(headers) => LastWord::Event(self.endpoint.dialect),
            Some(Format::JsonLines) => LastWord::Line,
            _ => LastWord::Silence,
        }
    }
}

/// How names are found in an answer; `None` where there is nothing to be translated.
fn format_of(headers: &HeaderMap) -> Option<Format> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return None;
    }
    let content_type = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    match essence.to_ascii_lowercase().as_str() {
        "application/json" | "application/problem+json" => Some(Format::Json),
        "text/event-stream" => Some(Format::EventStream),
        "application/x-ndjson" | "application/jsonl" | "application/x-jsonlines" => Some(Format::JsonLines),
        _ => None,
    }
}

/// A body that is complete already goes out with its exact length, but for streams of events; any other as
/// it comes, with the backend's length only where no name can change it.
fn finish(mut relay: Relay, headers: &mut HeaderMap) -> Body {
    if relay.upstream.is_end() && !is_event_stream(headers) {
        relay.settle();
        headers.remove(header::CONTENT_LENGTH);
        return Body::Whole(joined(relay.out));
    }
    if relay.rename.is_some() {
        headers.remove(header::CONTENT_LENGTH);
    }
    Body::Relay(Box::new(relay))
}

fn joined(mut pieces: VecDeque<Bytes>) -> Bytes {
    match pieces.len() {
        0 | 1 => pieces.pop_front().unwrap_or_default(),
        _ => pieces
            .iter()
            .fold(BytesMut::new(), |mut whole, piece| {
                whole.extend_from_slice(piece);
                whole
            })
            .freeze(),
    }
}

/// The answer to `HEAD`: the fields, and nothing of the body (RFC 9110 §9.3.2).
pub fn without_body(response: &mut Response<Body>) {
    if let Body::Whole(bytes) = response.body() {
        let length = HeaderValue::from(bytes.len());
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    *response.body_mut() = Body::Whole(Bytes::new());
}
