//! Changes through the admin API: `PUT` and `DELETE /api/backends/{name}`, `POST …/drain` and `…/undrain`.
//!
//! Who may: whoever has the token, where one is configured (that no page of another site asks is seen to before). What is wanted is read here
//! and made by `Reload`, the one who swaps snapshots; what needs no snapshot is made at once.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;

use super::{Answer, View, error, json, not_allowed};
use crate::config::{self, Mistakes, Secret};
use crate::control::drained;
use crate::control::reload::{Change, Changed, Refused, Wish};
use crate::control::watch::folder_of;

/// Where the names of backends begin.
pub const PATH: &str = "/api/backends/";
/// Largest body: thousands of names of models.
const BODY_LIMIT: usize = 64 * 1024;
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers a request below [`PATH`].
pub async fn answer(view: &View, request: Request<Incoming>) -> Answer {
    if let Some(refused) = refused(request.headers(), view.shared.snapshot.load().config.admin_token.as_ref()) {
        return refused;
    }
    match change(view, request).await {
        Ok(answer) | Err(answer) => answer,
    }
}

async fn change(view: &View, request: Request<Incoming>) -> Result<Answer, Answer> {
    let rest = request.uri().path().strip_prefix(PATH).unwrap_or_default().to_owned();
    let (name, action) = match rest.rsplit_once('/') {
        Some((name, action @ ("drain" | "undrain"))) => (name.to_owned(), Some(action.to_owned())),
        _ => (rest, None),
    };
    let name = percent_decode_str(&name).decode_utf8().map_err(|_| unknown(""))?.into_owned();
    let wish = match (action.as_deref(), request.method()) {
        (Some(action), &Method::POST) => {
            let made = drained::drain(&view.shared, &view.status, &name, action == "drain");
            return Ok(told(view, &name, made));
        }
        (Some(_), _) => return Err(not_allowed("POST")),
        (None, &Method::DELETE) => Wish::Delete,
        (None, &Method::PUT) => Wish::Register(Box::new(registration(view, &name, request.into_body()).await?)),
        (None, _) => return Err(not_allowed("PUT, DELETE")),
    };
    let (answer, made) = oneshot::channel();
    let sent = view.changes.try_send(Change { name: name.clone(), wish, answer });
    sent.map_err(|unsent| match unsent {
        TrySendError::Full(_) => unavailable("too many changes wait to be made: come again"),
        TrySendError::Closed(_) => unavailable("the proxy is ending"),
    })?;
    Ok(told(view, &name, made.await.map_err(|_| unavailable("the proxy is ending"))?))
}

fn told(view: &View, name: &str, made: Result<Changed, Refused>) -> Answer {
    match made {
        Ok(changed) => done(view, name, changed),
        Err(refused) => why_not(name, refused),
    }
}

/// The answer to whoever may change nothing.
fn refused(headers: &HeaderMap, token: Option<&Secret>) -> Option<Answer> {
    let token = token?;
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).and_then(bearer);
    if given.is_some_and(|given| token.is(given)) {
        return None;
    }
    let mut refused =
        error(StatusCode::UNAUTHORIZED, "unauthorized", "changes need `Authorization: Bearer ADMIN_TOKEN`");
    refused.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    Some(refused)
}

/// The token of `Bearer TOKEN`; the scheme in any case (RFC 9110 §11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

async fn registration(view: &View, name: &str, body: Incoming) -> Result<config::Registration, Answer> {
    let whole = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_LIMIT).collect()).await;
    let whole = whole
        .map_err(|_| error(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the body took longer than ten seconds"))?;
    let body: Bytes = match whole {
        Ok(body) => body.to_bytes(),
        Err(why) if why.is::<http_body_util::LengthLimitError>() => {
            let message = "a backend is described in less than 64 KiB";
            return Err(error(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message));
        }
        Err(_) => return Err(error(StatusCode::BAD_REQUEST, "invalid_body", "the body broke off")),
    };
    let folder = view.status.config_path.as_deref().map(folder_of).unwrap_or_default();
    config::registration(name, &body, &folder).map_err(|mistakes| bad(StatusCode::BAD_REQUEST, &mistakes))
}

/// What was changed, and how the backend stands now.
fn done(view: &View, name: &str, changed: Changed) -> Answer {
    let status = if changed == Changed::Registered { StatusCode::CREATED } else { StatusCode::OK };
    let fleet = super::api::fleet(view);
    let shown = fleet["backends"].as_array().and_then(|all| all.iter().find(|backend| backend["name"] == name));
    json(status, &json!({"what": changed.name(), "backend": shown}))
}

fn why_not(name: &str, refused: Refused) -> Answer {
    let conflict = |message: &str| error(StatusCode::CONFLICT, "conflict", message);
    match refused {
        Refused::Unknown => unknown(name),
        Refused::Configured => conflict(&format!(
            "{name:?} is in the configuration (file or command line): change it there; to take it out of use, drain it"
        )),
        Refused::AddressTaken(other) => {
            conflict(&format!("{other:?} has this url: list a server once, or its slots would count twice"))
        }
        Refused::TooMany => conflict("too many backends are registered"),
        Refused::NotBuilt(mistakes) => bad(StatusCode::CONFLICT, &mistakes),
    }
}

fn unknown(name: &str) -> Answer {
    error(StatusCode::NOT_FOUND, "unknown_backend", &format!("there is no backend {name:?} that could be changed so"))
}

fn unavailable(message: &str) -> Answer {
    error(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
}

/// Every mistake: for people in one message, for programs one by one.
fn bad(status: StatusCode, mistakes: &Mistakes) -> Answer {
    let all: Vec<_> = mistakes.all.iter().map(|one| json!({"key": one.key, "message": one.message})).collect();
    let message = mistakes.to_string();
    let error = json!({"message": message, "type": "invalid_request_error", "param": null, "code": "invalid_backend"});
    json(status, &json!({"error": error, "errors": all}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(fields: &[(&'static str, &'static str)], token: Option<&str>) -> u16 {
        let headers =
            fields.iter().map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)));
        let token = token.map(Secret::new);
        refused(&headers.collect(), token.as_ref()).map_or(200, |answer| answer.status().as_u16())
    }

    #[test]
    fn the_token_is_asked_for_where_there_is_one() {
        assert_eq!(asked(&[], None), 200);
        for (value, status) in [
            ("Bearer s3", 200),
            ("bearer s3", 200),
            ("Bearer s3 ", 200),
            ("Bearer s4", 401),
            ("s3", 401),
            ("Basic s3", 401),
            ("Bearer ", 401),
        ] {
            assert_eq!(asked(&[("authorization", value)], Some("s3")), status, "{value}");
        }
        assert_eq!(asked(&[], Some("s3")), 401);
    }
}
