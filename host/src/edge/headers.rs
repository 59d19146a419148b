//! Which fields cross the proxy, in both directions (RFC 9110 §7.6). Pure.

use std::sync::LazyLock;

use http::Version;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::forwarded::protocol;

use super::access::CREDENTIALS;

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
const NOT_FORWARDED: [HeaderName; 5] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::ACCEPT_ENCODING,
    HeaderName::from_static("http2-settings"),
];

/// What `Connection` cannot name away: where a message goes, how long it is, what it is and who sends it.
const END_TO_END: [HeaderName; 10] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    header::VIA,
    header::FORWARDED,
    X_REQUEST_ID,
];

/// This process in `Via`, by the protocol of the request. The number tells processes apart, so that one may stand behind
/// another and a circle is still seen.
static VIA: LazyLock<[(Version, HeaderValue); 3]> = LazyLock::new(|| {
    let own = format!("vision-proxy-{:08x}", fastrand::u32(..));
    [Version::HTTP_11, Version::HTTP_2, Version::HTTP_10].map(|version| {
        let value = HeaderValue::from_str(&format!("{} {own}", protocol(version)));
        (version, value.unwrap_or(HeaderValue::from_static("1.1 vision-proxy")))
    })
});

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const X_BACKEND: HeaderName = HeaderName::from_static("x-vision-proxy-backend");
pub const X_MODEL: HeaderName = HeaderName::from_static("x-vision-proxy-model");
pub const X_ATTEMPTS: HeaderName = HeaderName::from_static("x-vision-proxy-attempts");
/// Longest request id that is taken over from a client.
const REQUEST_ID_LIMIT: usize = 64;

/// Makes a client's fields those of a request to a backend, but for what is told of the client (`forwarded`).
pub fn to_backend(headers: &mut HeaderMap, version: Version, request_id: &HeaderValue) {
    strip(headers, &NOT_FORWARDED);
    if let Some((_, via)) = VIA.iter().find(|(of, _)| *of == version).or(VIA.first()) {
        headers.append(header::VIA, via.clone());
    }
    headers.insert(X_REQUEST_ID, request_id.clone());
    join_cookies(headers);
}

/// HTTP/2 may divide cookies among fields, and they must be one again where it is not spoken (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

/// How often a request has passed through this process, as its `Via` says.
pub fn passed_through_us(headers: &HeaderMap) -> usize {
    let mut lists = headers.get_all(header::VIA).iter().peekable();
    if lists.peek().is_none() {
        return 0;
    }
    let by = |entry: &str| entry.split_ascii_whitespace().nth(1).unwrap_or_default().to_owned();
    let own = VIA.first().and_then(|(_, via)| via.to_str().ok()).map(by).unwrap_or_default();
    lists
        .filter_map(|list| list.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter(|entry| by(entry) == own)
        .count()
}

/// Underscores in place of dashes: many backends cannot tell the two apart, and would take a forged field for one that
/// says where a message goes, how it is read, or who sends it.
fn is_look_alike(name: &HeaderName) -> bool {
    let name = name.as_str();
    if !name.contains('_') {
        return false;
    }
    let meant = name.replace('_', "-");
    meant.starts_with("x-forwarded-")
        || meant.starts_with("x-vision-proxy-")
        || meant == "x-real-ip"
        || [&HOP_BY_HOP[..], &NOT_FORWARDED, &END_TO_END].iter().any(|list| list.iter().any(|known| *known == *meant))
}

/// Takes the fields out in which a client says who it is: they go only to whom they are meant for.
pub fn take_credentials(headers: &mut HeaderMap) -> HeaderMap {
    let names: Vec<HeaderName> = headers.keys().filter(|name| CREDENTIALS.contains(name)).cloned().collect();
    names.into_iter().filter_map(|name| headers.remove(&name).map(|value| (name, value))).collect()
}

/// Makes a backend's fields those of an answer to the client.
pub fn to_client(headers: &mut HeaderMap, request_id: &HeaderValue) {
    strip(headers, &[X_BACKEND, X_MODEL, X_ATTEMPTS]);
    headers.insert(X_REQUEST_ID, request_id.clone());
}

/// Removes the fields of this hop, `others`, and those that `Connection` names, but for what it cannot name away.
fn strip(headers: &mut HeaderMap, others: &[HeaderName]) {
    let mut named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| !END_TO_END.contains(name) && !name.as_str().starts_with("x-forwarded-"))
        .collect();
    // There are fewer fields than names that they might have, and comparing is cheaper than hashing.
    let is_of_this_hop = |name: &&HeaderName| HOP_BY_HOP.contains(name) || others.contains(name) || is_look_alike(name);
    named.extend(headers.keys().filter(is_of_this_hop).cloned());
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
    // By hand, for every request has one and the machinery of formats is slow.
    let mut id = *b"req-00000000000000000000000000000000";
    let mut bits = fastrand::u128(..);
    for digit in id.iter_mut().skip("req-".len()) {
        *digit = b"0123456789abcdef".get((bits & 15) as usize).copied().unwrap_or(b'0');
        bits >>= 4;
    }
    HeaderValue::from_bytes(&id).unwrap_or(HeaderValue::from_static("req-0"))
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
            ("accept-encoding", "gzip"),
            ("x_forwarded_for", "6.6.6.6"),
            ("content_length", "1"),
            ("x_mine", "3"),
        ]);
        to_backend(&mut headers, Version::HTTP_11, &HeaderValue::from_static("r"));
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "via", "x-other", "x-request-id", "x_mine"]);
    }

    #[test]
    fn a_circle_is_seen_and_a_namesake_is_none() {
        let mut headers = map(&[("via", "1.1 vision-proxy, 1.1 vision-proxy-0123456, 1.1 nginx")]);
        assert_eq!(passed_through_us(&headers), 0);
        for (times, version) in [Version::HTTP_11, Version::HTTP_2, Version::HTTP_10].into_iter().enumerate() {
            to_backend(&mut headers, version, &HeaderValue::from_static("r"));
            assert_eq!(passed_through_us(&headers), times + 1);
        }
    }

    #[test]
    fn only_harmless_request_ids_are_taken_over() {
        assert_eq!(request_id(&map(&[("x-request-id", "my-id_1.2")])), "my-id_1.2");
        for odd in ["a b", "", "a\"b", "0123456789012345678901234567890123456789012345678901234567890123456789"] {
            assert!(request_id(&map(&[("x-request-id", odd)])).to_str().unwrap().starts_with("req-"), "{odd}");
        }
    }
}
