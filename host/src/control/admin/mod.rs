//! The admin listener: dashboard, metrics, and the API that shows what the proxy knows.
//!
//! It has its own address and never answers on the first listener. A browser on the same machine is not
//! trusted with it: a foreign `Origin`, or a `Host` that is a name pointed at us, is refused (DNS rebinding).

mod api;
mod decisions;
mod metrics;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::spawn_local;

use super::status::Status;
use crate::config::Secret;
use crate::edge::Shared;
use crate::edge::descriptors::{self, Spare};

/// The live page; it asks the API for everything it shows.
const PAGE: &str = include_str!("page.html");
/// What the page may do: its own script and style, and ask its own server.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'";

/// Descriptors that are kept for this listener.
const SPARE: usize = 8;
/// Whence a browser asks (W3C Fetch Metadata).
const FETCH_SITE: &str = "sec-fetch-site";

type Answer = Response<Full<Bytes>>;

/// What the admin API shows.
pub struct View {
    pub shared: Arc<Shared>,
    pub status: Arc<Status>,
}

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, status: Arc<Status>) {
    let view = Arc::new(View { shared, status });
    let mut spare = Spare::new(SPARE);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Clients took all the others: whoever is to find out why must still get in.
            Err(error) if descriptors::have_run_out(&error) && spare.lend() => continue,
            Err(error) => {
                tracing::warn!("cannot accept (admin): {error}");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        spare.refill();
        let view = Arc::clone(&view);
        spawn_local(async move {
            let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&view, &request))));
            let connection =
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!("admin connection ended: {error}");
            }
        });
    }
}

fn answer(view: &View, request: &Request<Incoming>) -> Answer {
    // What a scraper or a load balancer asks may be asked by any name; it shows nothing and changes nothing.
    let is_guarded = !matches!(request.uri().path(), "/metrics" | "/livez" | "/readyz");
    if let Err(why) = is_own(request.headers())
        && is_guarded
    {
        return error(StatusCode::FORBIDDEN, "forbidden", why);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let config = Arc::clone(&view.shared.snapshot.load().config);
        if !may_change(config.admin_token.as_ref(), request.headers()) {
            return error(StatusCode::UNAUTHORIZED, "invalid_token", "changes need the admin token as bearer token");
        }
        return error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this version only shows");
    }
    let mut answer = match request.uri().path() {
        "/" => page(),
        "/livez" => text(StatusCode::OK, "text/plain", "ok\n"),
        "/readyz" => readyz(view),
        "/metrics" => text(StatusCode::OK, metrics::CONTENT_TYPE, metrics::exposition(view)),
        "/api/fleet" => json(StatusCode::OK, &api::fleet(view)),
        "/api/plugins" => json(StatusCode::OK, &api::plugins(view)),
        "/api/config" => json(StatusCode::OK, &api::config(view)),
        "/api/decisions" => {
            let query = request.uri().query().unwrap_or_default();
            json(StatusCode::OK, &decisions::decisions(view, query))
        }
        _ => error(StatusCode::NOT_FOUND, "unknown_path", "there is nothing at this path"),
    };
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Whether a request brings the token that changes need, where one is configured.
fn may_change(token: Option<&Secret>, headers: &HeaderMap) -> bool {
    let brought = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    token.is_none_or(|token| brought.is_some_and(|brought| token.is(brought)))
}

fn readyz(view: &View) -> Answer {
    if view.status.is_ready() && !view.shared.draining.load(Relaxed) {
        text(StatusCode::OK, "text/plain", "ready\n")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not ready\n")
    }
}

/// Refuses what a web page elsewhere made a browser send.
fn is_own(headers: &HeaderMap) -> Result<(), &'static str> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_address(host) {
        return Err("the Host must be an IP address or localhost");
    }
    // Browsers say so of what a page made them ask; a page's script cannot unsay it.
    if headers.get(FETCH_SITE).is_some_and(|site| site != "same-origin" && site != "none") {
        return Err("requests from other sites are refused");
    }
    match headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or_default()) {
        Some(origin)
            if origin.parse::<Uri>().ok().and_then(|uri| uri.authority().map(|own| own.as_str() == host))
                != Some(true) =>
        {
            Err("requests from other origins are refused")
        }
        _ => Ok(()),
    }
}

/// An IP address or `localhost`, with or without a port: names can be pointed anywhere.
fn is_address(host: &str) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

fn page() -> Answer {
    let mut page = text(StatusCode::OK, "text/html; charset=utf-8", PAGE);
    page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    page
}

fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

fn json(status: StatusCode, body: &Value) -> Answer {
    text(status, "application/json", body.to_string())
}

fn error(status: StatusCode, code: &str, message: &str) -> Answer {
    json(status, &json!({"error": {"message": message, "type": "invalid_request_error", "param": null, "code": code}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host: &'static str, origin: Option<&'static str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static(host));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        }
        is_own(&headers).is_ok()
    }

    #[test]
    fn names_that_can_be_pointed_anywhere_are_refused() {
        for host in ["127.0.0.1:9901", "localhost:9901", "[::1]:9901", "10.0.0.7"] {
            assert!(asked(host, None), "{host}");
        }
        for host in ["evil.example", "evil.example:9901", "", "127.0.0.1.evil.example"] {
            assert!(!asked(host, None), "{host}");
        }
    }

    #[test]
    fn changes_need_the_token_where_there_is_one() {
        let token = Secret::new("t0ken");
        let bearing =
            |value: &'static str| HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
        assert!(may_change(None, &HeaderMap::new()) && may_change(Some(&token), &bearing("Bearer t0ken")));
        assert!(!may_change(Some(&token), &HeaderMap::new()));
        for wrong in ["Bearer t0ke", "Bearer ", "t0ken", "Basic t0ken", "Bearer t0kenn"] {
            assert!(!may_change(Some(&token), &bearing(wrong)), "{wrong}");
        }
    }

    #[test]
    fn pages_of_other_sites_may_not_ask() {
        for (site, may_ask) in [("same-origin", true), ("none", true), ("same-site", false), ("cross-site", false)] {
            let headers = [(header::HOST, "127.0.0.1:9901"), (FETCH_SITE.parse().unwrap(), site)];
            let headers: HeaderMap =
                headers.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
            assert_eq!(is_own(&headers).is_ok(), may_ask, "{site}");
        }
    }

    #[test]
    fn only_the_own_origin_may_ask() {
        assert!(asked("127.0.0.1:9901", Some("http://127.0.0.1:9901")));
        for origin in ["http://127.0.0.1:8080", "https://evil.example", "null"] {
            assert!(!asked("127.0.0.1:9901", Some(origin)), "{origin}");
        }
    }
}
