//! An answer in one piece: status, content type, body.

use bytes::Bytes;
use hyper::Response;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::Value;

use super::Simulation;
use super::body::Body;
use super::refusal::{Family, Refusal};
use super::routes;

/// A whole answer, before it is a response.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Whole {
    pub status: u16,
    /// Empty: no content type at all.
    pub kind: &'static str,
    pub body: Bytes,
}

const TEXT: &str = "text/plain; charset=utf-8";

impl Whole {
    pub(super) fn text(kind: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status: 200, kind, body: body.into() }
    }

    pub(super) const fn empty(status: u16) -> Self {
        Self { status, kind: "", body: Bytes::new() }
    }

    /// JSON in the engine's own content type; `path` tells its own API from OpenAI's.
    pub(super) fn json(simulation: &Simulation, path: &str, body: &Value) -> Self {
        let native = routes::family(path) == Family::Native;
        Self { status: 200, kind: simulation.engine.json_type(native), body: body.to_string().into() }
    }

    /// A refusal by an engine that serves `models`.
    pub(super) fn refused(simulation: &Simulation, path: &str, models: &[String], refusal: &Refusal) -> Self {
        let (status, body) = refusal.answer(simulation.engine, routes::family(path), models);
        match body {
            Ok(json) => Self { status, ..Self::json(simulation, path, &json) },
            Err(text) => Self { status, ..Self::text(TEXT, text) },
        }
    }

    /// The same, said of another model.
    pub(super) fn of_another(self, models: &[String], other: &str) -> Self {
        let text = String::from_utf8_lossy(&self.body).into_owned();
        let body = models.iter().fold(text, |text, own| text.replace(own.as_str(), other)).into();
        Self { body, ..self }
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = Response::new(Body::whole(self.body));
        *response.status_mut() = status;
        if !self.kind.is_empty() {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.kind));
        }
        response
    }
}
