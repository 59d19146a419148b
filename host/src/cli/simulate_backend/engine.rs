//! The engines that can be simulated, and what distinguishes them as HTTP servers.

use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, SERVER, VARY};

/// Whose wire format a simulation speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// vLLM 0.32: head of a stream at once, waits without limit, 404 for another model's name
    Vllm,
    /// SGLang 0.5: answers to any model's name and echoes it
    Sglang,
    /// llama.cpp's server: no byte before the first token, answers under its own alias
    LlamaCpp,
    /// Ollama: its own /api and the OpenAI one, reports no load
    Ollama,
    /// Anything else with OpenAI's API: reports nothing but its models
    #[value(name = "openai")]
    OpenAi,
}

impl Engine {
    /// As it is written on the command line and in the proxy's configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::LlamaCpp => "llama-cpp",
            Self::Ollama => "ollama",
            Self::OpenAi => "openai",
        }
    }

    /// Whether the head of a stream leaves before there is a slot; the others send nothing until the first token.
    pub(super) const fn streams_head_at_once(self) -> bool {
        matches!(self, Self::Vllm | Self::OpenAi)
    }

    /// cpp-httplib and Go write `Content-Type`, uvicorn writes `content-type`.
    pub(super) const fn capitalises_headers(self) -> bool {
        matches!(self, Self::LlamaCpp | Self::Ollama)
    }

    /// llama.cpp's server sends no date.
    pub(super) const fn sends_date(self) -> bool {
        !matches!(self, Self::LlamaCpp)
    }

    /// How long an idle connection stays: uvicorn and cpp-httplib close after 5 s, under the feet of any pool.
    pub(super) const fn keep_alive(self) -> Duration {
        match self {
            Self::Vllm | Self::Sglang | Self::LlamaCpp => Duration::from_secs(5),
            Self::Ollama | Self::OpenAi => Duration::from_secs(60),
        }
    }

    /// Adds the headers that this engine puts on every answer.
    pub(super) fn sign(self, failed: bool, headers: &mut HeaderMap) {
        match self {
            Self::Vllm | Self::Sglang => {
                headers.insert(SERVER, HeaderValue::from_static("uvicorn"));
                if self == Self::Vllm {
                    headers.insert(VARY, HeaderValue::from_static("Origin"));
                }
            }
            Self::LlamaCpp => {
                headers.insert(SERVER, HeaderValue::from_static("llama.cpp"));
                headers.insert("access-control-allow-origin", HeaderValue::from_static(""));
                if headers.get(CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream") {
                    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
                }
                if failed {
                    headers.insert(CONNECTION, HeaderValue::from_static("close"));
                } else {
                    let keep_alive = HeaderName::from_static("keep-alive");
                    headers.insert(keep_alive, HeaderValue::from_static("timeout=5, max=100"));
                }
            }
            Self::Ollama | Self::OpenAi => {}
        }
    }

    /// The content type of a JSON answer, which is not spelt the same everywhere.
    pub(super) const fn json_type(self, native: bool) -> &'static str {
        match self {
            Self::LlamaCpp => "application/json; charset=utf-8",
            Self::Ollama if native => "application/json; charset=utf-8",
            _ => "application/json",
        }
    }

    /// The content type of a stream of server-sent events.
    pub(super) const fn sse_type(self) -> &'static str {
        match self {
            Self::LlamaCpp | Self::Ollama => "text/event-stream",
            Self::Vllm | Self::Sglang | Self::OpenAi => "text/event-stream; charset=utf-8",
        }
    }
}
