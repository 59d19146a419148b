//! Which fields cross the proxy, in both directions (RFC 9110 §7.6). Pure.

use std::net::IpAddr;

use http::Version;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::Authority;

use super::proxy::Client;

/// Fields of one hop; never forwarded.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Request fields that the proxy says itself or that must not reach a backend. `accept-encoding` among them:
/// a compressed answer could be neither translated nor flushed event by event.
const NOT_FORWARDED: [HeaderName; 9] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::ACCEPT_ENCODING,
    header::FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("http2-settings"),
];

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const X_BACKEND: HeaderName = HeaderName::from_static("x-vision-proxy-backend");
pub const X_MODEL: HeaderName = HeaderName::from_static("x-vision-proxy-model");
pub const X_ATTEMPTS: HeaderName = HeaderName::from_static("x-vision-proxy-attempts");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Longest request id that is taken over from a client.
const REQUEST_ID_LIMIT: usize = 64;

/// Why two readers could read this head in two ways; `None` where they cannot. hyper has checked the rest.
pub fn ambiguity(parts: &Parts) -> Option<&'static str> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    // HTTP/2 has `:authority` instead, which hyper puts into the URI.
    if (host.is_none() && parts.version == Version::HTTP_11) || hosts.next().is_some() {
        return Some("There must be exactly one Host field.");
    }
    if host.is_some_and(|host| !is_authority(host)) {
        return Some("The Host field is malformed.");
    }
    let mut codings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_plain =
        codings.next().is_none_or(|only| only.as_bytes().eq_ignore_ascii_case(b"chunked")) && codings.next().is_none();
    (!is_plain).then_some("The only transfer coding understood is chunked, once.")
}

/// A host and perhaps a port (RFC 9110 §7.2); empty where the target has no authority.
fn is_authority(host: &HeaderValue) -> bool {
    let text = host.to_str().unwrap_or("@");
    text.is_empty() || (!text.contains('@') && text.parse::<Authority>().is_ok())
}

/// An address as a field's value.
pub fn of_address(address: IpAddr) -> HeaderValue {
    HeaderValue::from_str(&address.to_string()).unwrap_or(HeaderValue::from_static("unknown"))
}

/// Makes a client's fields those of a request to a backend.
pub fn to_backend(headers: &mut HeaderMap, client: &Client, host: Option<HeaderValue>, request_id: &HeaderValue) {
    strip(headers, &NOT_FORWARDED);
    headers.insert(X_FORWARDED_FOR, client.forwarded_for.clone());
    headers.insert(X_FORWARDED_PROTO, client.proto.clone());
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host);
    }
    headers.append(header::VIA, HeaderValue::from_static("1.1 vision-proxy"));
    headers.insert(X_REQUEST_ID, request_id.clone());
}

/// Makes a backend's fields those of an answer to the client.
pub fn to_client(headers: &mut HeaderMap, request_id: &HeaderValue) {
    strip(headers, &[X_BACKEND, X_MODEL, X_ATTEMPTS]);
    headers.insert(X_REQUEST_ID, request_id.clone());
}

/// Removes the fields of this hop, `others`, and those that `Connection` names. It can name away only what is of
/// no consequence: not the fields that say where a request goes, how long it is or who sends it.
fn strip(headers: &mut HeaderMap, others: &[HeaderName]) {
    let mut named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| {
            ![header::HOST, header::CONTENT_LENGTH, header::CONTENT_TYPE, header::AUTHORIZATION, X_REQUEST_ID]
                .contains(name)
        })
        .collect();
    // There are fewer fields than names that they might have, and comparing is cheaper than hashing.
    named.extend(headers.keys().filter(|name| HOP_BY_HOP.contains(name) || others.contains(name)).cloned());
    for name in &named {
        headers.remove(name);
    }
}

/// The client's request id where it is harmless in a log line, else a new one.
pub fn request_id(headers: &HeaderMap) -> HeaderValue {
    let harmless = |value: &&HeaderValue| {
        (1..=REQUEST_ID_LIMIT).contains(&value.len())
            && value.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    headers.get(X_REQUEST_ID).filter(harmless).cloned().unwrap_or_else(new_request_id)
}

fn new_request_id() -> HeaderValue {
    let id = format!("req-{:032x}", fastrand::u128(..));
    HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("req-0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn what_belongs_to_one_hop_stays_there() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Mine, authorization"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("authorization", "Bearer k"),
            ("x-other", "2"),
            ("x-forwarded-for", "6.6.6.6"),
            ("accept-encoding", "gzip"),
        ]);
        let address = IpAddr::from([127, 0, 0, 1]);
        let proto = HeaderValue::from_static("https");
        let client = Client { address, forwarded_for: of_address(address), proto, watched: None };
        to_backend(&mut headers, &client, Some(HeaderValue::from_static("api")), &HeaderValue::from_static("r"));
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "authorization",
                "via",
                "x-forwarded-for",
                "x-forwarded-host",
                "x-forwarded-proto",
                "x-other",
                "x-request-id"
            ]
        );
        assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
        assert_eq!(headers["x-forwarded-proto"], "https");
    }

    #[test]
    fn only_harmless_request_ids_are_taken_over() {
        assert_eq!(request_id(&map(&[("x-request-id", "my-id_1.2")])), "my-id_1.2");
        for odd in ["a b", "", "a\"b", "0123456789012345678901234567890123456789012345678901234567890123456789"] {
            assert!(request_id(&map(&[("x-request-id", odd)])).to_str().unwrap().starts_with("req-"), "{odd}");
        }
    }
}
