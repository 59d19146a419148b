//! How each engine says no: the same reason in five wordings.
//!
//! Recorded from vLLM 0.32 and llama.cpp, read in the sources of SGLang and Ollama. Where an engine has no words of its
//! own for a reason, it uses those of its kin.

use serde_json::{Value, json};

use super::engine::Engine;

/// Why a request is refused.
#[derive(Debug)]
pub(super) enum Refusal {
    NoRoute {
        method: String,
        path: String,
    },
    WrongMethod,
    TooLarge,
    WrongType,
    BadForm,
    NotJson {
        empty: bool,
        column: usize,
        reason: String,
    },
    Missing(&'static str),
    NotAList(&'static str),
    BadLimit(i64),
    BadImage,
    TextOnly,
    NoModel(String),
    Busy,
    Loading,
    /// A simulated failure with this status.
    Failure(u16),
    /// The engine behind the server died.
    EngineDead,
}

/// Which API's shape an error takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    OpenAi,
    /// `/v1/messages`.
    Anthropic,
    /// Ollama's own `/api`.
    Native,
}

/// A refusal as it goes out: status, and a body of JSON or of text.
pub(super) type Answer = (u16, Result<Value, String>);

/// What an engine says, before it has a shape.
struct Wording {
    status: u16,
    kind: String,
    message: String,
    param: Option<&'static str>,
    code: Option<&'static str>,
}

fn say(status: u16, kind: &str, message: impl Into<String>) -> Wording {
    Wording { status, kind: kind.to_owned(), message: message.into(), param: None, code: None }
}

impl Refusal {
    pub(super) fn not_json(body: &[u8], error: &serde_json::Error) -> Self {
        Self::NotJson { empty: body.is_empty(), column: error.column(), reason: error.to_string() }
    }

    /// The answer of `engine`, which serves `models`, in the shape of `family`.
    pub(super) fn answer(&self, engine: Engine, family: Family, models: &[String]) -> Answer {
        if let Some(bare) = self.bare(engine) {
            return bare;
        }
        let own = models.first().map_or("", String::as_str);
        let wording = match engine {
            Engine::Vllm => self.in_vllm(models),
            Engine::Sglang => self.in_sglang(own),
            Engine::LlamaCpp => self.in_llama_cpp(),
            Engine::Ollama => self.in_ollama(family),
            Engine::OpenAi => self.in_openai(),
        };
        (wording.status, Ok(wording.shape(engine, family)))
    }

    /// Answers that come from the framework under the engine and have its shape.
    fn bare(&self, engine: Engine) -> Option<Answer> {
        let (status, detail) = match self {
            Self::NoRoute { .. } => (404, "Not Found"),
            Self::WrongMethod => (405, "Method Not Allowed"),
            _ => return None,
        };
        match engine {
            Engine::Vllm | Engine::Sglang => Some((status, Ok(json!({"detail": detail})))),
            Engine::Ollama if status == 404 => Some((404, Err("404 page not found".to_owned()))),
            Engine::Ollama => Some((405, Err("405 method not allowed".to_owned()))),
            // llama.cpp knows no wrong methods, only routes it has not.
            Engine::LlamaCpp => {
                let error = json!({"message": "File Not Found", "type": "not_found_error", "code": 404});
                Some((404, Ok(json!({"error": error}))))
            }
            Engine::OpenAi => None,
        }
    }

    fn in_vllm(&self, models: &[String]) -> Wording {
        let own = models.first().map_or("", String::as_str);
        let invalid = |problem: String| say(400, "Bad Request", format!("1 validation error:\n  {problem}"));
        match self {
            Self::NoModel(asked) => Wording {
                param: Some("model"),
                ..say(
                    404,
                    "NotFoundError",
                    format!("The model `{asked}` does not exist. Valid aliases: {}.", models.join(", ")),
                )
            },
            Self::Busy => say(503, "Service Unavailable", BUSY_VLLM),
            Self::TextOnly => say(400, "BadRequestError", format!("{own} is not a multimodal model")),
            Self::BadImage => {
                say(400, "BadRequestError", "Failed to load image: cannot identify image file <_io.BytesIO object>")
            }
            Self::BadLimit(got) => Wording {
                param: Some("max_tokens"),
                ..say(
                    400,
                    "BadRequestError",
                    format!("max_tokens must be at least 1, got {got}. (parameter=max_tokens, value={got})"),
                )
            },
            Self::WrongType => invalid("Unsupported Media Type: Only 'application/json' is allowed".to_owned()),
            Self::NotJson { empty: true, .. } => Wording {
                param: Some("body"),
                ..invalid("{'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'}".to_owned())
            },
            Self::NotJson { column, reason, .. } => invalid(format!(
                "{{'type': 'json_invalid', 'loc': 'body.{column}', 'msg': 'JSON decode error', 'ctx': {{'error': '{reason}'}}}}"
            )),
            Self::Missing(field) => Wording {
                param: Some(field),
                ..invalid(format!("{{'type': 'missing', 'loc': 'body.{field}', 'msg': 'Field required'}}"))
            },
            Self::NotAList(field) => Wording {
                param: Some(field),
                ..invalid(format!(
                    "{{'type': 'list_type', 'loc': 'body.{field}', 'msg': 'Input should be a valid list'}}"
                ))
            },
            Self::EngineDead => say(500, "InternalServerError", DEAD_VLLM),
            _ => self.plain("BadRequestError", "InternalServerError"),
        }
    }

    fn in_sglang(&self, own: &str) -> Wording {
        match self {
            Self::Busy => say(503, "503", "The request queue is full."),
            Self::TextOnly => say(400, "BadRequestError", format!("{own} does not support image input")),
            Self::EngineDead => say(500, "InternalServerError", "Internal server error: the scheduler died"),
            _ => self.plain("BadRequestError", "InternalServerError"),
        }
    }

    fn in_llama_cpp(&self) -> Wording {
        match self {
            Self::Busy => say(503, "unavailable_error", "no slot available"),
            Self::Loading => say(503, "unavailable_error", "Loading model"),
            Self::TextOnly => say(
                500,
                "server_error",
                "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
            ),
            Self::BadImage => say(400, "invalid_request_error", "Failed to load image or audio file"),
            Self::NotJson { empty: true, .. } => say(400, "invalid_request_error", EMPTY_LLAMA_CPP),
            Self::NotJson { column, reason, .. } => say(
                400,
                "invalid_request_error",
                format!("[json.exception.parse_error.101] parse error at line 1, column {column}: {reason}"),
            ),
            Self::Missing(field) => say(400, "invalid_request_error", format!("'{field}' is required")),
            Self::NotAList(field) => say(400, "invalid_request_error", format!("Expected '{field}' to be an array")),
            Self::Failure(503) => say(503, "unavailable_error", "simulated failure"),
            _ => self.plain("invalid_request_error", "server_error"),
        }
    }

    fn in_ollama(&self, family: Family) -> Wording {
        let mut wording = match self {
            Self::NoModel(asked) => say(404, "", format!("model '{asked}' not found")),
            Self::Busy => say(503, "", "server busy, please try again.  maximum pending requests exceeded"),
            Self::TextOnly => say(500, "", "this model is missing data required for image input"),
            Self::NotJson { empty: true, .. } => say(400, "", "missing request body"),
            Self::EngineDead => say(500, "", "an error was encountered while running the model"),
            _ => self.plain("", ""),
        };
        let overloaded = family == Family::Anthropic && wording.status == 503;
        wording.kind = match wording.status {
            400 => "invalid_request_error",
            404 => "not_found_error",
            _ if overloaded => "overloaded_error",
            _ => "api_error",
        }
        .to_owned();
        wording
    }

    fn in_openai(&self) -> Wording {
        const INVALID: &str = "invalid_request_error";
        match self {
            Self::NoModel(asked) => Wording {
                code: Some("model_not_found"),
                ..say(404, INVALID, format!("The model `{asked}` does not exist or you do not have access to it."))
            },
            Self::Busy => Wording {
                code: Some("rate_limit_exceeded"),
                ..say(429, "requests", "Rate limit reached. Please try again in 1s.")
            },
            Self::TextOnly => say(400, INVALID, "Invalid content type. image_url is only supported by certain models."),
            Self::NoRoute { method, path } => say(404, INVALID, format!("Invalid URL ({method} {path})")),
            Self::WrongMethod => say(405, INVALID, "Not allowed for this URL."),
            Self::NotJson { .. } => say(400, INVALID, "We could not parse the JSON body of your request."),
            Self::Missing(field) => Wording {
                param: Some(field),
                code: Some("missing_required_parameter"),
                ..say(400, INVALID, format!("Missing required parameter: '{field}'."))
            },
            _ => self.plain(INVALID, "server_error"),
        }
    }

    /// Plain words for what an engine has no words of its own for.
    fn plain(&self, client_kind: &str, server_kind: &str) -> Wording {
        match self {
            Self::TooLarge => say(413, client_kind, "request body too large"),
            Self::Loading => say(503, server_kind, "the model is still loading"),
            Self::Busy => say(503, server_kind, "busy"),
            Self::EngineDead => say(500, server_kind, "the engine died"),
            Self::NoRoute { .. } | Self::WrongMethod => say(404, client_kind, "not found"),
            Self::NoModel(asked) => say(404, client_kind, format!("model {asked} not found")),
            Self::BadForm | Self::WrongType => say(400, client_kind, "malformed form"),
            Self::NotJson { reason, .. } => say(400, client_kind, format!("invalid JSON: {reason}")),
            Self::Missing(field) => say(400, client_kind, format!("{field} is required")),
            Self::NotAList(field) => say(400, client_kind, format!("{field} must be a list")),
            Self::BadLimit(got) => say(400, client_kind, format!("max_tokens must be at least 1, got {got}.")),
            Self::BadImage => say(400, client_kind, "cannot decode the image"),
            Self::TextOnly => say(400, client_kind, "this model takes no images"),
            Self::Failure(status) => {
                let kind = if *status < 500 { client_kind } else { server_kind };
                say(*status, kind, format!("simulated failure {status}"))
            }
        }
    }
}

const BUSY_VLLM: &str = "The engine is currently busy and cannot accept new requests. \
     Please try again later or on a different instance.";
const DEAD_VLLM: &str = "EngineCore encountered an issue. See stack trace (above) for the root cause.";
const EMPTY_LLAMA_CPP: &str = "[json.exception.parse_error.101] parse error at line 1, column 1: attempting to parse an \
     empty input; check that your input string or stream contains the expected JSON";

impl Wording {
    fn shape(&self, engine: Engine, family: Family) -> Value {
        let Self { status, kind, message, param, code } = self;
        match (engine, family) {
            (Engine::LlamaCpp, _) => json!({"error": {"code": status, "message": message, "type": kind}}),
            (Engine::Ollama, Family::Native) => json!({"error": message}),
            (Engine::Ollama, Family::Anthropic) => json!({"type": "error",
                "error": {"type": kind, "message": message}, "request_id": "req_simulated"}),
            (_, Family::Anthropic) => json!({"type": "error", "error": {"type": kind, "message": message}}),
            (Engine::Sglang, _) => {
                json!({"object": "error", "message": message, "type": kind, "param": param, "code": status})
            }
            (Engine::Vllm, _) => json!({"error": {"message": message, "type": kind,
                "param": self.param.map(Self::vllm_param), "code": status}}),
            _ => json!({"error": {"message": message, "type": kind, "param": param, "code": code}}),
        }
    }

    /// vLLM names fields by their place in the body.
    fn vllm_param(param: &str) -> String {
        match param {
            "model" | "max_tokens" | "body" => param.to_owned(),
            field => format!("body.{field}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(refusal: &Refusal, engine: Engine, family: Family) -> String {
        let (status, body) = refusal.answer(engine, family, &["tiny-a".to_owned()]);
        format!("{status} {}", body.map_or_else(|text| text, |json| json.to_string()))
    }

    #[test]
    fn what_was_recorded_is_repeated_to_the_letter() {
        let cases = [
            (
                Refusal::NoModel("nope".to_owned()),
                Engine::Vllm,
                Family::OpenAi,
                r#"404 {"error":{"message":"The model `nope` does not exist. Valid aliases: tiny-a.","type":"NotFoundError","param":"model","code":404}}"#,
            ),
            (
                Refusal::NoModel("nope".to_owned()),
                Engine::Vllm,
                Family::Anthropic,
                r#"404 {"type":"error","error":{"type":"NotFoundError","message":"The model `nope` does not exist. Valid aliases: tiny-a."}}"#,
            ),
            (
                Refusal::Busy,
                Engine::Vllm,
                Family::OpenAi,
                r#"503 {"error":{"message":"The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.","type":"Service Unavailable","param":null,"code":503}}"#,
            ),
            (
                Refusal::TextOnly,
                Engine::Vllm,
                Family::OpenAi,
                r#"400 {"error":{"message":"tiny-a is not a multimodal model","type":"BadRequestError","param":null,"code":400}}"#,
            ),
            (
                Refusal::TextOnly,
                Engine::LlamaCpp,
                Family::OpenAi,
                r#"500 {"error":{"code":500,"message":"image input is not supported - hint: if this is unexpected, you may need to provide the mmproj","type":"server_error"}}"#,
            ),
            (
                Refusal::Missing("messages"),
                Engine::LlamaCpp,
                Family::OpenAi,
                r#"400 {"error":{"code":400,"message":"'messages' is required","type":"invalid_request_error"}}"#,
            ),
            (
                Refusal::Loading,
                Engine::LlamaCpp,
                Family::OpenAi,
                r#"503 {"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#,
            ),
            (
                Refusal::WrongMethod,
                Engine::LlamaCpp,
                Family::OpenAi,
                r#"404 {"error":{"message":"File Not Found","type":"not_found_error","code":404}}"#,
            ),
            (Refusal::WrongMethod, Engine::Vllm, Family::OpenAi, r#"405 {"detail":"Method Not Allowed"}"#),
            (
                Refusal::NoModel("x".to_owned()),
                Engine::Ollama,
                Family::Native,
                r#"404 {"error":"model 'x' not found"}"#,
            ),
            (
                Refusal::Busy,
                Engine::Ollama,
                Family::OpenAi,
                r#"503 {"error":{"message":"server busy, please try again.  maximum pending requests exceeded","type":"api_error","param":null,"code":null}}"#,
            ),
        ];
        for (refusal, engine, family, expected) in cases {
            assert_eq!(text(&refusal, engine, family), expected);
        }
    }
}
