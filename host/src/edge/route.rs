//! Which path is which: what is forwarded, and how; what the proxy answers itself.
//!
//! Paths are compared byte for byte as they came, so that the proxy and a backend never read one path in
//! two ways; what is not in the table goes nowhere.

use http::Method;

use crate::error::ProxyError;

/// Whose manners a path has: the shape of errors and where an answer nests its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    OpenAi,
    Anthropic,
    Ollama,
}

/// What the policy is told of the kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Text,
    Embedding,
    Audio,
    Vision,
}

/// A path that is forwarded to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    pub path: &'static str,
    pub dialect: Dialect,
    pub work: Work,
    /// Whether an answer is streamed when the request does not say (Ollama's way).
    pub streams_by_default: bool,
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    Forward(&'static Endpoint),
    /// `GET /v1/models`
    Models,
    /// `GET /v1/models/{id}`, the id as it came.
    Model(&'a str),
    /// Ollama's `GET /api/tags` and `GET /api/ps`: the public models in its form.
    OllamaModels,
    /// Ollama's `GET /api/version`.
    OllamaVersion,
    /// `GET /` and `GET /health`, which clients and load balancers ask.
    Hello,
    /// `OPTIONS *`: of the proxy itself, and never forwarded (RFC 9110 §9.3.7).
    Options,
}

/// Every method that some path takes, as in `Allow`.
pub const METHODS: &str = "GET, HEAD, POST, OPTIONS";

/// Why a request is for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unrouted {
    UnknownPath,
    /// The methods it takes, as in `Allow`.
    WrongMethod(&'static str),
}

const fn openai(path: &'static str, work: Work) -> Endpoint {
    Endpoint { path, dialect: Dialect::OpenAi, work, streams_by_default: false }
}

const fn anthropic(path: &'static str) -> Endpoint {
    Endpoint { path, dialect: Dialect::Anthropic, work: Work::Text, streams_by_default: false }
}

const fn ollama(path: &'static str, work: Work, streams_by_default: bool) -> Endpoint {
    Endpoint { path, dialect: Dialect::Ollama, work, streams_by_default }
}

/// Every forwarded path, the most used first. All are `POST`.
const ENDPOINTS: &[Endpoint] = &[
    openai("/v1/chat/completions", Work::Text),
    openai("/v1/completions", Work::Text),
    openai("/v1/embeddings", Work::Embedding),
    openai("/v1/responses", Work::Text),
    anthropic("/v1/messages"),
    anthropic("/v1/messages/count_tokens"),
    openai("/v1/rerank", Work::Embedding),
    openai("/v2/rerank", Work::Embedding),
    openai("/rerank", Work::Embedding),
    openai("/v1/score", Work::Embedding),
    openai("/score", Work::Embedding),
    openai("/pooling", Work::Embedding),
    openai("/classify", Work::Embedding),
    openai("/v1/moderations", Work::Text),
    openai("/v1/images/generations", Work::Vision),
    openai("/v1/images/edits", Work::Vision),
    openai("/v1/images/variations", Work::Vision),
    openai("/v1/audio/speech", Work::Audio),
    openai("/v1/audio/transcriptions", Work::Audio),
    openai("/v1/audio/translations", Work::Audio),
    openai("/tokenize", Work::Text),
    openai("/detokenize", Work::Text),
    ollama("/api/chat", Work::Text, true),
    ollama("/api/generate", Work::Text, true),
    ollama("/api/embed", Work::Embedding, false),
    ollama("/api/embeddings", Work::Embedding, false),
    ollama("/api/show", Work::Text, false),
];

/// Finds what a request is for.
///
/// # Errors
/// [`Unrouted`] for a path that is nowhere, or a method it does not take.
pub fn target<'a>(method: &Method, path: &'a str) -> Result<Target<'a>, Unrouted> {
    if let Some(endpoint) = ENDPOINTS.iter().find(|endpoint| endpoint.path == path) {
        return if method == Method::POST { Ok(Target::Forward(endpoint)) } else { Err(Unrouted::WrongMethod("POST")) };
    }
    if path == "*" {
        return if method == Method::OPTIONS { Ok(Target::Options) } else { Err(Unrouted::UnknownPath) };
    }
    let own = match path {
        "/v1/models" => Target::Models,
        "/api/tags" | "/api/ps" => Target::OllamaModels,
        "/api/version" => Target::OllamaVersion,
        "/" | "/health" => Target::Hello,
        _ => Target::Model(path.strip_prefix("/v1/models/").filter(|id| !id.is_empty()).ok_or(Unrouted::UnknownPath)?),
    };
    if matches!(*method, Method::GET | Method::HEAD) { Ok(own) } else { Err(Unrouted::WrongMethod("GET, HEAD")) }
}

impl From<Unrouted> for ProxyError {
    fn from(unrouted: Unrouted) -> Self {
        match unrouted {
            Unrouted::UnknownPath => Self::UnknownPath,
            Unrouted::WrongMethod(allowed) => Self::MethodNotAllowed { allowed },
        }
    }
}

/// In whose shape an error on this path is answered.
pub fn dialect(path: &str) -> Dialect {
    if path.starts_with("/api/") {
        Dialect::Ollama
    } else if path == "/v1/messages" || path.starts_with("/v1/messages/") {
        Dialect::Anthropic
    } else {
        Dialect::OpenAi
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_matched_byte_for_byte() {
        assert!(matches!(target(&Method::POST, "/v1/chat/completions"), Ok(Target::Forward(_))));
        for path in [
            "/v1/chat/completions/",
            "//v1/chat/completions",
            "/V1/chat/completions",
            "/v1/../v1/models",
            "/v1/models/",
            "/api/pull",
        ] {
            assert_eq!(target(&Method::POST, path), Err(Unrouted::UnknownPath), "{path}");
        }
    }

    #[test]
    fn a_model_id_may_hold_slashes() {
        assert_eq!(target(&Method::GET, "/v1/models/Qwen/Qwen2.5-VL"), Ok(Target::Model("Qwen/Qwen2.5-VL")));
    }

    #[test]
    fn a_known_path_says_which_methods_it_takes() {
        assert_eq!(target(&Method::GET, "/v1/completions"), Err(Unrouted::WrongMethod("POST")));
        assert_eq!(target(&Method::DELETE, "/v1/models"), Err(Unrouted::WrongMethod("GET, HEAD")));
    }

    #[test]
    fn the_table_and_the_error_shapes_agree() {
        for endpoint in ENDPOINTS {
            assert_eq!(dialect(endpoint.path), endpoint.dialect, "{}", endpoint.path);
        }
    }
}
