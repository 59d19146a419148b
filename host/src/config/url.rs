//! Base addresses of backends: `http://host[:port][/prefix]` or `https://…`, taken apart and written in one way only.
//!
//! Two texts that name the same server in the same way of speaking (letter case, `:80`, a trailing `/` or
//! `/v1`, forms of an IPv6 address) become equal values. A mistake never quotes more than the host or the
//! port, for what stands around them may be a password.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::BackendUrl;

/// A name of the DNS is no longer than this.
const HOST_LIMIT_BYTES: usize = 253;

/// Why a text is no base address of a backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UrlMistake(String);

fn mistake(message: impl Into<String>) -> UrlMistake {
    UrlMistake(message.into())
}

impl FromStr for BackendUrl {
    type Err = UrlMistake;

    fn from_str(text: &str) -> Result<Self, UrlMistake> {
        let (is_https, rest) = scheme(text)?;
        // Anywhere, not only before the first `/`: a password may hold one.
        if rest.contains('@') {
            return Err(mistake("a user name or password does not belong in an address; give the backend an api_key"));
        }
        if rest.contains('#') {
            return Err(mistake("a backend's address has no fragment (#…)"));
        }
        if rest.contains('?') {
            return Err(mistake("a backend's address has no query (?…)"));
        }
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (host, port) = host_and_port(authority)?;
        let port = port.unwrap_or(if is_https { 443 } else { 80 });
        Ok(Self { is_https, host, port, prefix: prefix(path)? })
    }
}

/// Whether it is `https`, and what stands behind the scheme.
fn scheme(text: &str) -> Result<(bool, &str), UrlMistake> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(mistake("should begin with http:// or https://, as in \"http://10.0.0.11:8000\""));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "http" => Ok((false, rest)),
        "https" => Ok((true, rest)),
        _ => Err(mistake("backends are spoken to by http:// or https://, as in \"http://10.0.0.11:8000\"")),
    }
}

/// Host (lower case, without brackets) and port of an authority without user info.
fn host_and_port(authority: &str) -> Result<(String, Option<u16>), UrlMistake> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) =
                rest.split_once(']').ok_or_else(|| mistake("the bracket of the IPv6 address is not closed"))?;
            (ipv6(address)?, port)
        }
        None => {
            let (name, port) = authority.find(':').map_or((authority, ""), |at| authority.split_at(at));
            if port[port.len().min(1)..].contains(':') {
                return Err(mistake("an IPv6 address stands in brackets, as in \"http://[::1]:8000\""));
            }
            (host_name(name)?, port)
        }
    };
    Ok((host, port_number(port)?))
}

fn ipv6(address: &str) -> Result<String, UrlMistake> {
    let address: Ipv6Addr = address.parse().map_err(|_| mistake(format!("{address:?} is not an IPv6 address")))?;
    Ok(address.to_string())
}

fn host_name(name: &str) -> Result<String, UrlMistake> {
    if name.is_empty() {
        return Err(mistake("has no host, as in \"http://10.0.0.11:8000\""));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if name.len() > HOST_LIMIT_BYTES || !name.bytes().all(allowed) {
        return Err(mistake(format!("{name:?} is not the name of a host")));
    }
    // A name whose last label is a number can only be meant as an address, and a resolver would be asked for it in vain.
    let last_label = name.rsplit('.').next().unwrap_or(name);
    if last_label.bytes().all(|byte| byte.is_ascii_digit()) && name.parse::<Ipv4Addr>().is_err() {
        return Err(mistake(format!("{name:?} is not an IPv4 address")));
    }
    Ok(name.to_ascii_lowercase())
}

/// The number in `:8000`; `None` for nothing at all.
fn port_number(text: &str) -> Result<Option<u16>, UrlMistake> {
    if text.is_empty() {
        return Ok(None);
    }
    let digits = text.strip_prefix(':').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).filter(|port| *port != 0).map(Some).ok_or_else(|| {
        mistake(format!("the port should be a number from 1 to 65535, not {:?}", text.trim_start_matches(':')))
    })
}

fn prefix(path: &str) -> Result<String, UrlMistake> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:%/".contains(&byte);
    if !path.bytes().all(allowed) {
        return Err(mistake("its path holds characters that must be percent-encoded"));
    }
    let path = path.trim_end_matches('/');
    Ok(path.strip_suffix("/v1").unwrap_or(path).trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_an_address_becomes_one() {
        for (text, meant) in [
            ("http://10.0.0.11:8000", "http://10.0.0.11:8000"),
            ("http://10.0.0.11:8000/", "http://10.0.0.11:8000"),
            ("http://10.0.0.11:8000/v1", "http://10.0.0.11:8000"),
            ("http://10.0.0.11:8000/v1/", "http://10.0.0.11:8000"),
            ("HTTP://GPU-A.local", "http://gpu-a.local:80"),
            ("http://gpu_a:80", "http://gpu_a:80"),
            ("http://gpu/engines/a/v1", "http://gpu:80/engines/a"),
            ("http://gpu/v1/engines", "http://gpu:80/v1/engines"),
            ("http://gpu/apiv1", "http://gpu:80/apiv1"),
            ("http://[::1]:8000/v1", "http://[::1]:8000"),
            ("http://[2001:DB8:0:0::1]", "http://[2001:db8::1]:80"),
            ("https://GPU-A.local/v1", "https://gpu-a.local:443"),
            ("HTTPS://gpu:80", "https://gpu:80"),
        ] {
            let url: BackendUrl = text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(url.to_string(), meant, "{text}");
        }
    }

    #[test]
    fn brackets_are_no_part_of_the_host() {
        let url: BackendUrl = "http://[::1]:8000/a/".parse().unwrap();
        assert_eq!((url.host.as_str(), url.port, url.prefix.as_str()), ("::1", 8000, "/a"));
    }

    #[test]
    fn whatever_is_no_plain_http_address_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "should begin with http://"),
            ("10.0.0.11:8000", "should begin with http://"),
            ("unix://run/gpu.sock", "http:// or https://"),
            ("http://", "no host"),
            ("http://:8000", "no host"),
            ("http:///v1", "no host"),
            ("http://gpu a:8000", "not the name of a host"),
            ("http://10.0.0.300:8000", "not an IPv4 address"),
            ("http://::1:8000", "in brackets"),
            ("http://[::1:8000", "not closed"),
            ("http://[gpu]:8000", "not an IPv6 address"),
            ("http://[::1]8000", "the port should be"),
            ("http://gpu:", "the port should be"),
            ("http://gpu:0", "the port should be"),
            ("http://gpu:+80", "the port should be"),
            ("http://gpu:65536", "the port should be"),
            ("http://gpu/a b", "percent-encoded"),
            ("http://gpu/?key=1", "no query"),
            ("http://gpu#top", "no fragment"),
            ("http://user:hunter2@gpu:8000", "api_key"),
            ("http://user:a/hunter2@gpu:8000", "api_key"),
        ] {
            let why = text.parse::<BackendUrl>().map(|url| url.to_string()).unwrap_err().to_string();
            assert!(why.contains(reason), "{text}: {why}");
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
