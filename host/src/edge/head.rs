//! Whether a request's head is one that a gateway may act on: the checks that cost nothing, before anything is read.
//! hyper has checked the rest. Pure.

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Version};

use super::headers::passed_through_us;
use super::route::METHODS;
use crate::error::ProxyError;

/// Times that a request may have passed through this very process: once may be meant, twice is a circle.
const PASSES: usize = 1;

/// Checks a head.
///
/// # Errors
/// Why it is answered here and goes nowhere.
pub fn check(parts: &Parts) -> Result<(), ProxyError> {
    if let Some(why) = ambiguity(parts) {
        return Err(ProxyError::BadRequest(why));
    }
    // RFC 9110 §9.3.6 and §9.3.8: neither is for a gateway, whatever the path.
    if matches!(parts.method, Method::CONNECT | Method::TRACE) {
        return Err(ProxyError::MethodNotAllowed { allowed: METHODS });
    }
    let expects_other = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if parts.headers.get_all(header::EXPECT).iter().any(expects_other) {
        return Err(ProxyError::ExpectationFailed);
    }
    if passed_through_us(&parts.headers) > PASSES {
        return Err(ProxyError::LoopDetected);
    }
    Ok(())
}

/// Why two readers could read this head in two ways; `None` where they cannot.
fn ambiguity(parts: &Parts) -> Option<&'static str> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    // HTTP/2 has `:authority` instead, which hyper puts into the URI.
    let is_missing = match parts.version {
        Version::HTTP_11 => host.is_none(),
        Version::HTTP_2 => host.is_none() && parts.uri.authority().is_none(),
        _ => false,
    };
    if is_missing || hosts.next().is_some() {
        return Some("There must be exactly one Host field.");
    }
    if host.is_some_and(|host| host.to_str().map_or(true, |host| !is_authority(host))) {
        return Some("The Host field is malformed.");
    }
    if parts.uri.authority().is_some_and(|authority| !is_authority(authority.as_str())) {
        return Some("The target must name a host and perhaps a port, and no user.");
    }
    // In HTTP/1.1 the target outweighs the field (RFC 9112 §3.2.2); in HTTP/2 the two must be one (RFC 9113 §8.3.1).
    if let (Version::HTTP_2, Some(authority), Some(host)) = (parts.version, parts.uri.authority(), host)
        && !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())
    {
        return Some("The Host field names another host than the target.");
    }
    if parts.uri.scheme_str().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        return Some("The target is of an unknown scheme.");
    }
    has_other_coding(&parts.headers).then_some("The only transfer coding understood is chunked, once.")
}

/// A host and perhaps a port (RFC 9110 §7.2); empty where the target has no authority.
fn is_authority(text: &str) -> bool {
    let Ok(authority) = text.parse::<Authority>() else { return text.is_empty() };
    let Some(port) = text.strip_prefix(authority.host()) else { return false };
    let is_port =
        |port: &str| port.is_empty() || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok());
    // A list is valid by the letter, and somebody behind us would take the other host of the two.
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)) && !text.contains(',')
}

fn has_other_coding(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    codings.next().is_some_and(|only| !only.as_bytes().eq_ignore_ascii_case(b"chunked")) || codings.next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn refused(method: &str, target: &str, fields: &[(&str, &str)]) -> Option<u16> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap().into_parts().0).err().map(|error| error.status().as_u16())
    }

    #[test]
    fn what_is_clear_passes() {
        for fields in [
            &[("host", "api")][..],
            &[("host", "[::1]:8080"), ("expect", "100-Continue")],
            &[("host", "api"), ("transfer-encoding", "Chunked"), ("x_mine", "1")],
            &[("host", ""), ("via", "1.1 vision-proxy, 1.1 nginx, 1.1 vision-proxy-00000000")],
        ] {
            assert_eq!(refused("POST", "/v1/chat/completions", fields), None, "{fields:?}");
        }
        assert_eq!(refused("POST", "http://api/v1/chat/completions", &[("host", "other")]), None);
    }

    #[test]
    fn http_2_names_its_host_too() {
        for (target, is_clear) in
            [("http://api/v1/models", true), ("http://a,b/v1/models", false), ("/v1/models", false)]
        {
            let request = Request::builder().version(Version::HTTP_2).uri(target).body(()).unwrap();
            assert_eq!(check(&request.into_parts().0).is_ok(), is_clear, "{target}");
        }
    }

    #[test]
    fn what_two_readers_would_read_differently_is_refused() {
        let host = ("host", "api");
        for (fields, status) in [
            (&[][..], 400),
            (&[host, host], 400),
            (&[("host", "a b")], 400),
            (&[("host", "me@api")], 400),
            (&[("host", "api:port")], 400),
            (&[("host", "api:99999999")], 400),
            (&[("host", "api:+80")], 400),
            (&[("host", "api,other")], 400),
            (&[host, ("transfer-encoding", "chunked, chunked")], 400),
            (&[host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], 400),
            (&[host, ("expect", "the-unexpected")], 417),
        ] {
            assert_eq!(refused("POST", "/v1/chat/completions", fields), Some(status), "{fields:?}");
        }
        assert_eq!(refused("POST", "http://me@api/v1/chat/completions", &[host]), Some(400));
        assert_eq!(refused("POST", "http://a,b/v1/chat/completions", &[host]), Some(400));
        assert_eq!(refused("POST", "http://api:99999/v1/chat/completions", &[host]), Some(400));
        assert_eq!(refused("POST", "ftp://api/v1/chat/completions", &[host]), Some(400));
        assert_eq!(refused("TRACE", "/anything", &[host]), Some(405));
    }
}
