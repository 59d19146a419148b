//! What a backend is told of the client (`X-Forwarded-*`, RFC 7239 `Forwarded`): by us, or by a proxy before us that is
//! trusted to know better. Pure.
//!
//! Invariant: nothing that an untrusted peer says of itself reaches a backend.

use std::net::IpAddr;

use http::Version;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use ipnet::IpNet;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Said by some proxies, never by us.
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The peer of a connection, as it is told to backends.
#[derive(Debug)]
pub struct Peer {
    pub address: IpAddr,
    /// The address as a field's value.
    text: HeaderValue,
    /// `http` or `https`.
    scheme: HeaderValue,
}

impl Peer {
    pub fn new(address: IpAddr, scheme: &'static str) -> Self {
        // IPv4 over a socket of IPv6 is written as what it is.
        let address = address.to_canonical();
        let text = HeaderValue::from_str(&address.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        Self { address, text, scheme: HeaderValue::from_static(scheme) }
    }

    /// Whether it is one of those who may speak for others.
    pub fn is_trusted(&self, proxies: &[IpNet]) -> bool {
        proxies.iter().any(|network| network.contains(&self.address))
    }
}

/// The host that the client asked for: the target's, where it names one, else the field's (RFC 9112 §3.2.2).
pub fn host(parts: &Parts) -> Option<HeaderValue> {
    let of_target = parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    of_target.or_else(|| parts.headers.get(header::HOST).cloned())
}

/// Says who asks. What a trusted peer says stays, and it is added to those on the way; what others say is dropped.
pub fn tell(headers: &mut HeaderMap, peer: &Peer, host: Option<HeaderValue>, is_trusted: bool) {
    if is_trusted {
        return add(headers, peer, host);
    }
    let named: Vec<HeaderName> = headers.keys().filter(|name| says_who(name)).cloned().collect();
    for name in named {
        headers.remove(name);
    }
    headers.insert(FOR, peer.text.clone());
    headers.insert(PROTO, peer.scheme.clone());
    if let Some(host) = host {
        headers.insert(HOST, host);
    }
}

fn add(headers: &mut HeaderMap, peer: &Peer, host: Option<HeaderValue>) {
    // Several fields are one list (RFC 9110 §5.3), and another line is an element more.
    headers.append(FOR, peer.text.clone());
    if headers.contains_key(header::FORWARDED)
        && let Ok(element) = HeaderValue::from_str(&element(peer.address))
    {
        headers.append(header::FORWARDED, element);
    }
    headers.entry(PROTO).or_insert_with(|| peer.scheme.clone());
    if let Some(host) = host {
        headers.entry(HOST).or_insert(host);
    }
}

/// RFC 7239 §6: an address of IPv6 stands in brackets and quotes.
fn element(address: IpAddr) -> String {
    if address.is_ipv6() { format!("for=\"[{address}]\"") } else { format!("for={address}") }
}

/// Whether a field says who the client is, or by what way it came.
fn says_who(name: &HeaderName) -> bool {
    *name == header::FORWARDED || *name == REAL_IP || name.as_str().starts_with("x-forwarded-")
}

/// The protocol in which a request was received, as `Via` names it (RFC 9110 §7.6.3).
pub fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2.0",
        _ => "1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a backend reads where a peer says this of itself.
    fn told(peer: &str, fields: &[(&'static str, &'static str)], is_trusted: bool) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let peer = Peer::new(peer.parse().unwrap(), "http");
        tell(&mut headers, &peer, Some(HeaderValue::from_static("api")), is_trusted);
        let mut lines: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
        lines.sort();
        lines
    }

    const SAID: [(&str, &str); 6] = [
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "public"),
        ("x-forwarded-port", "443"),
        ("x-real-ip", "6.6.6.6"),
        ("forwarded", "for=6.6.6.6"),
    ];

    #[test]
    fn what_a_stranger_says_of_itself_is_dropped() {
        let expected = ["x-forwarded-for: \"10.0.0.7\"", "x-forwarded-host: \"api\"", "x-forwarded-proto: \"http\""];
        assert_eq!(told("10.0.0.7", &SAID, false), expected);
        assert_eq!(told("::ffff:10.0.0.7", &[], false), expected);
    }

    #[test]
    fn what_a_trusted_proxy_says_stays_and_it_is_added() {
        let mut expected: Vec<_> = SAID.iter().map(|(name, value)| format!("{name}: \"{value}\"")).collect();
        expected.push("x-forwarded-for: \"fd00::1\"".to_owned());
        expected.push("forwarded: \"for=\\\"[fd00::1]\\\"\"".to_owned());
        expected.sort();
        assert_eq!(told("fd00::1", &SAID, true), expected);
    }

    #[test]
    fn only_those_inside_are_trusted() {
        let proxies = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        for (address, expected) in
            [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("fd00::1", true), ("11.0.0.1", false), ("::1", false)]
        {
            assert_eq!(Peer::new(address.parse().unwrap(), "http").is_trusted(&proxies), expected, "{address}");
        }
        assert!(!Peer::new("10.1.2.3".parse().unwrap(), "http").is_trusted(&[]));
    }
}
