//! Everything the proxy answers in its own name, in the order a request meets it.
//!
//! One enum; what follows from a cause (status, code, type, text, whether a client should try again) is a
//! total function of it, so that a new cause does not compile until each is decided. No text names a
//! backend's address.

use std::time::Duration;

use http::StatusCode;

/// Why the proxy itself answers instead of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyError {
    /// The head is not one a gateway may forward (RFC 9110, RFC 9112).
    BadRequest(&'static str),
    /// Keys are configured, and the request brings none of them.
    InvalidApiKey,
    UnknownPath,
    MethodNotAllowed {
        /// Those that it takes, as `Allow` lists them.
        allowed: &'static str,
    },
    /// `Expect` asks for something that is not `100-continue`.
    ExpectationFailed,
    /// It has passed through this process more than once.
    LoopDetected,
    /// Its key is over one of its limits.
    KeyLimited {
        limit: KeyLimit,
        retry_after: Duration,
    },
    /// A compressed request body cannot be routed, nor bounded.
    UnsupportedEncoding,
    /// What the body lacks to be routed.
    Unroutable(Unroutable),
    RequestTooLarge {
        limit_bytes: u64,
    },
    /// `limits.bodies_in_flight` is used up, or file descriptors are.
    Overloaded,
    /// The client stopped in the middle of its body.
    BodyBroken,
    /// The client sends its body slower than anybody needs to.
    UploadTooSlow,
    ModelNotFound {
        model: String,
        served: Vec<String>,
    },
    NoBackendAvailable {
        model: String,
    },
    /// A policy refused it.
    Rejected(StatusCode),
    /// The queue is full, or the wait was too long.
    Saturated {
        retry_after: Duration,
    },
    Unreachable,
    /// Every backend that was tried refused the key that the proxy has for it.
    UpstreamUnauthorized,
    InvalidResponse,
    UpstreamTimeout,
}

/// What a client's key may run out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyLimit {
    Requests,
    Concurrency,
    Bytes,
}

impl KeyLimit {
    pub const ALL: [Self; 3] = [Self::Requests, Self::Concurrency, Self::Bytes];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Concurrency => "concurrency",
            Self::Bytes => "bytes",
        }
    }
}

/// Why a body cannot be routed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unroutable {
    /// The error code the client reads, such as `missing_model`.
    pub code: &'static str,
    pub message: String,
    /// The request parameter at fault.
    pub param: Option<&'static str>,
}

impl ProxyError {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::Unroutable(_) | Self::BodyBroken => StatusCode::BAD_REQUEST,
            Self::InvalidApiKey => StatusCode::UNAUTHORIZED,
            Self::UnknownPath | Self::ModelNotFound { .. } => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::ExpectationFailed => StatusCode::EXPECTATION_FAILED,
            Self::LoopDetected => StatusCode::LOOP_DETECTED,
            Self::UnsupportedEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::RequestTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UploadTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Overloaded | Self::NoBackendAvailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Rejected(status) => *status,
            Self::KeyLimited { .. } | Self::Saturated { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unreachable | Self::UpstreamUnauthorized | Self::InvalidResponse => StatusCode::BAD_GATEWAY,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The stable machine-readable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::InvalidApiKey => "invalid_api_key",
            Self::UnknownPath => "unknown_path",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::ExpectationFailed => "expectation_failed",
            Self::LoopDetected => "loop_detected",
            Self::KeyLimited { .. } => "rate_limit_exceeded",
            Self::UnsupportedEncoding => "unsupported_content_encoding",
            Self::Unroutable(why) => why.code,
            Self::RequestTooLarge { .. } => "request_too_large",
            Self::Overloaded => "proxy_overloaded",
            Self::BodyBroken => "incomplete_body",
            Self::UploadTooSlow => "request_timeout",
            Self::ModelNotFound { .. } => "model_not_found",
            Self::NoBackendAvailable { .. } => "no_backend_available",
            Self::Rejected(_) => "rejected_by_policy",
            Self::Saturated { .. } => "backends_saturated",
            Self::Unreachable => "upstream_unreachable",
            Self::UpstreamUnauthorized => "upstream_unauthorized",
            Self::InvalidResponse => "upstream_invalid_response",
            Self::UpstreamTimeout => "upstream_timeout",
        }
    }

    /// The class of error, as OpenAI names them.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::KeyLimited { .. } => "rate_limit_error",
            Self::Overloaded | Self::Saturated { .. } => "overloaded_error",
            _ if self.status().is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The request parameter at fault, where there is one.
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Self::Unroutable(why) => why.param,
            Self::ModelNotFound { .. } => Some("model"),
            _ => None,
        }
    }

    /// What the client is told. Never an address, never the cause of a fault inside.
    pub fn message(&self) -> String {
        match self {
            Self::BadRequest(why) => (*why).to_owned(),
            Self::InvalidApiKey => {
                "This needs a valid API key, sent as `Authorization: Bearer …`, `x-api-key` or `api-key`.".into()
            }
            Self::UnknownPath => {
                "There is nothing at this path. The API is under /v1/ (OpenAI, Anthropic) and /api/ (Ollama).".into()
            }
            Self::MethodNotAllowed { .. } => "This path does not take this method.".into(),
            Self::ExpectationFailed => "The only expectation understood is 100-continue.".into(),
            Self::LoopDetected => "The request goes in a circle: it has come by here before.".into(),
            Self::KeyLimited { limit, .. } => {
                format!("This API key is over its limit: {}. Try again later.", over(*limit))
            }
            Self::UnsupportedEncoding => "Send the body without a content-encoding.".into(),
            Self::Unroutable(why) => why.message.clone(),
            Self::RequestTooLarge { limit_bytes } => format!("The body is larger than {limit_bytes} bytes."),
            Self::Overloaded => "The proxy holds as much as it can. Try again shortly.".into(),
            Self::BodyBroken => "The body ended before it was complete.".into(),
            Self::UploadTooSlow => "The body came too slowly.".into(),
            Self::ModelNotFound { model, served } => not_found(model, served),
            Self::NoBackendAvailable { model } => format!("No backend that serves the model `{model}` is up."),
            Self::Rejected(_) => "The balancing policy refused this request.".into(),
            Self::Saturated { .. } => "Every backend that serves this model is busy. Try again later.".into(),
            Self::Unreachable => "No backend answered this request.".into(),
            Self::UpstreamUnauthorized => {
                "The backend refused the proxy's own key. Tell whoever runs the proxy.".into()
            }
            Self::InvalidResponse => "The backend's answer could not be understood.".into(),
            Self::UpstreamTimeout => "The backend did not begin to answer in time.".into(),
        }
    }

    /// When the client may try again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::KeyLimited { retry_after, .. } | Self::Saturated { retry_after } => Some(*retry_after),
            Self::Overloaded | Self::NoBackendAvailable { .. } => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

fn over(limit: KeyLimit) -> &'static str {
    match limit {
        KeyLimit::Requests => "too many requests in a minute",
        KeyLimit::Concurrency => "too many requests at once",
        KeyLimit::Bytes => "too many bytes of requests in a minute",
    }
}

/// Names at most so many models, so that a large fleet does not make a large error.
const NAMED_MODELS: usize = 50;

fn not_found(model: &str, served: &[String]) -> String {
    if served.is_empty() {
        return format!("The model `{model}` does not exist: no backend lists a model yet.");
    }
    let names = served.iter().take(NAMED_MODELS).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if served.len() > NAMED_MODELS { ", …" } else { "" };
    format!("The model `{model}` does not exist. Served are: {names}{more}.")
}
