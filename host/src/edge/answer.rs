//! Answers of the proxy's own: errors in the shape of each API, the model lists, and the greeting.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::response::Body;
use super::route::{Dialect, METHODS, Target};
use super::snapshot::Snapshot;
use crate::error::ProxyError;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// A client shall never wait longer than this because of us.
const LONGEST_RETRY_SECONDS: u64 = 60;

/// An error in the shape that clients of this API read.
pub fn error(error: &ProxyError, dialect: Dialect) -> Response<Body> {
    let message = error.message();
    let body = match dialect {
        Dialect::OpenAi => {
            json!({"error": {"message": message, "type": error.kind(), "param": error.param(), "code": error.code()}})
        }
        Dialect::Anthropic => {
            json!({"type": "error", "error": {"type": anthropic_type(error.status()), "message": message}})
        }
        Dialect::Ollama => json!({"error": message}),
    };
    let mut response = json_answer(error.status(), &body);
    retry_fields(error, response.headers_mut());
    if let ProxyError::MethodNotAllowed { allowed } = error {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    }
    if matches!(error, ProxyError::InvalidApiKey) {
        // RFC 9110 §15.5.2: a 401 says what it would take.
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if matches!(error, ProxyError::BadRequest(_) | ProxyError::UploadTooSlow | ProxyError::BodyBroken) {
        // What follows on this connection may not be what it seems.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// `Retry-After` in whole seconds for everybody, `retry-after-ms` for the OpenAI SDKs, which prefer it; and
/// for what a repetition cannot mend, their `x-should-retry`.
fn retry_fields(error: &ProxyError, headers: &mut HeaderMap) {
    if let Some(after) = error.retry_after() {
        let seconds = after.as_secs_f64().ceil().clamp(1.0, LONGEST_RETRY_SECONDS as f64) as u64;
        let millis = crate::clock::millis(after).min(LONGEST_RETRY_SECONDS * 1000);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        headers.insert("retry-after-ms", HeaderValue::from(millis));
    }
    if error.status().is_client_error() && error.retry_after().is_none() {
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
    }
}

/// Anthropic's error types, by status.
fn anthropic_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}

/// What the proxy knows itself.
///
/// # Errors
/// A model that is not in the catalog.
pub fn own(target: &Target<'_>, snapshot: &Snapshot) -> Result<Response<Body>, ProxyError> {
    let body = match target {
        Target::Models => {
            json!({"object": "list", "data": snapshot.catalog.iter().map(|name| model(snapshot, name)).collect::<Vec<_>>()})
        }
        Target::Model(id) => {
            let name = percent_decoded(id);
            if !snapshot.catalog.iter().any(|listed| listed.as_ref() == name) {
                return Err(model_not_found(snapshot, name));
            }
            model(snapshot, &name)
        }
        Target::OllamaModels => {
            json!({"models": snapshot.catalog.iter().map(|name| json!({"name": name, "model": name})).collect::<Vec<_>>()})
        }
        Target::OllamaVersion => json!({"version": env!("CARGO_PKG_VERSION")}),
        Target::Options => {
            let mut response = Response::new(Body::Whole(Bytes::new()));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(METHODS));
            return Ok(response);
        }
        Target::Hello | Target::Forward(_) => json!({"status": "ok", "server": "vision-proxy"}),
    };
    Ok(json_answer(StatusCode::OK, &body))
}

pub fn model_not_found(snapshot: &Snapshot, model: String) -> ProxyError {
    ProxyError::ModelNotFound { model, served: snapshot.catalog.iter().map(ToString::to_string).collect() }
}

/// One model, with the union of what its backends say of it. Where they differ, the first word stands, but of lengths
/// the smallest: what fits it fits every backend.
fn model(snapshot: &Snapshot, name: &str) -> Value {
    let mut object = json!({"id": name, "object": "model", "created": 0, "owned_by": "vision-proxy"});
    for route in snapshot.routes.get(name).into_iter().flatten() {
        let Some(member) = snapshot.fleet.get(route.backend as usize) else { continue };
        let models = Arc::clone(&member.backend.known().models);
        let details = models.iter().filter(|served| served.native == route.native).flat_map(|served| &served.details);
        for (key, value) in details {
            let Some(object) = object.as_object_mut() else { continue };
            let known = object.entry(key.as_str()).or_insert_with(|| value.clone());
            if key == "max_model_len" && value.as_u64() < known.as_u64() {
                *known = value.clone();
            }
        }
    }
    object
}

fn percent_decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

pub fn json_answer(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::Whole(body.to_string().into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}
