//! The admin listener: dashboard, metrics, and the API that shows what the proxy knows and changes its fleet.
//!
//! It has its own address and never answers on the first listener. A browser on the same machine is not
//! trusted with it: a foreign `Origin`, or a `Host` that is a name pointed at us, is refused (DNS rebinding).

mod api;
mod changes;
mod decisions;
mod events;
mod metrics;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::Instant;

use super::reload::Change;
use super::status::Status;
use super::successor;
use crate::edge::descriptors::{self, Spare};
use crate::edge::{Attended, Shared};

/// The live page; it asks the API for everything it shows.
const PAGE: &str = include_str!("page.html");
/// What the page may do: its own script and style, and ask its own server.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'";

/// Descriptors that are kept for this listener.
const SPARE: usize = 8;
/// Between two words in the log that nobody can be let in.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// How long a connection may say nothing: a scraper asks more often or connects again.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Whence a browser asks (W3C Fetch Metadata).
const FETCH_SITE: &str = "sec-fetch-site";

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What the admin API shows, and whom it asks for changes.
pub struct View {
    pub shared: Arc<Shared>,
    pub status: Arc<Status>,
    changes: mpsc::Sender<Change>,
    /// Places of those who listen to events.
    listeners: Arc<Semaphore>,
}

/// Serves until the process ends, or until it is about to and another process listens on this port too.
pub async fn serve(door: Attended, shared: Arc<Shared>, status: Arc<Status>, changes: mpsc::Sender<Change>) {
    let listeners = Arc::new(Semaphore::new(events::LISTENERS));
    let view = Arc::new(View { shared, status, changes, listeners });
    let mut spare = Spare::new(SPARE);
    let mut open = VecDeque::new();
    let (limit, mut told) = (descriptors::admin_limit(), None::<Instant>);
    loop {
        let accepted = tokio::select! {
            accepted = door.accept() => accepted,
            () = successor::listens(&door, &view.shared.draining) => break,
        };
        match accepted {
            Ok(stream) => {
                make_room(&mut open, limit);
                open.push_back(spawn_local(connection(stream, Arc::clone(&view))));
            }
            // Clients took all the others: whoever is to find out why must still get in.
            Err(error) if descriptors::have_run_out(&error) && spare.lend() => continue,
            Err(error) => {
                if told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
                    told = Some(Instant::now());
                    tracing::warn!("cannot accept (admin): {error}");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        spare.refill();
    }
    door.close(|stream| drop(spawn_local(connection(stream, Arc::clone(&view))))).await;
    tracing::info!("another process listens on the admin port: it is left to it");
}

/// Whoever has been connected longest makes room for one more: so many that idle shut nobody out, a probe least of all.
fn make_room(open: &mut VecDeque<JoinHandle<()>>, limit: usize) {
    if open.len() < limit {
        return;
    }
    open.retain(|connection| !connection.is_finished());
    if open.len() >= limit
        && let Some(oldest) = open.pop_front()
    {
        oldest.abort();
    }
}

async fn connection(stream: TcpStream, view: Arc<View>) {
    let service = service_fn(|request| {
        let view = Arc::clone(&view);
        async move {
            let mut answer = answer(&view, request).await;
            if view.shared.draining.load(Relaxed) {
                // Whoever asks again shall find the process that comes after this one.
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!("admin connection ended: {error}");
    }
}

async fn answer(view: &Arc<View>, request: Request<Incoming>) -> Answer {
    // What a scraper or a load balancer asks may be asked by any name; it shows nothing and changes nothing.
    let is_guarded = !matches!(request.uri().path(), "/metrics" | "/livez" | "/readyz");
    if let Err(why) = is_own(request.headers())
        && is_guarded
    {
        return error(StatusCode::FORBIDDEN, "forbidden", why);
    }
    if request.uri().path().starts_with(changes::PATH) {
        return changes::answer(view, request).await;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return not_allowed("GET, HEAD");
    }
    let mut answer = match request.uri().path() {
        "/" => page(),
        "/livez" => text(StatusCode::OK, "text/plain", "ok\n"),
        "/readyz" => readyz(view),
        "/metrics" => text(StatusCode::OK, metrics::CONTENT_TYPE, metrics::exposition(view)),
        "/api/fleet" => json(StatusCode::OK, &api::fleet(view)),
        "/api/plugins" => json(StatusCode::OK, &api::plugins(view)),
        "/api/config" => json(StatusCode::OK, &api::config(view)),
        "/api/events" => events::answer(view),
        "/api/decisions" => {
            let query = request.uri().query().unwrap_or_default();
            json(StatusCode::OK, &decisions::decisions(view, query))
        }
        _ => error(StatusCode::NOT_FOUND, "unknown_path", "there is nothing at this path"),
    };
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
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
    let mut answer = Response::new(Full::new(body.into()).boxed_unsync());
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

/// The path takes other methods.
fn not_allowed(methods: &'static str) -> Answer {
    let message = format!("this path takes {methods}");
    let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &message);
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    answer
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
