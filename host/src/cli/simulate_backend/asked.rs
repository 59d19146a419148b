//! What a request asks for, read from its body: JSON as a whole, or multipart.
//!
//! A simulated engine may parse what the proxy never does; a body is bounded before it comes here. Images are measured,
//! not decoded: that their base64 is whole proves that they arrived.

mod multipart;

use serde_json::Value;

use super::refusal::Refusal;
use super::routes::Work;

/// A request's body, understood.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub model: Option<String>,
    /// Absent and false are not the same to Ollama.
    pub stream: Option<bool>,
    pub include_usage: bool,
    /// vLLM's `continuous_usage_stats`: usage in every chunk.
    pub continuous_usage: bool,
    /// The most tokens it wants.
    pub limit: Option<u64>,
    /// A limit below 1: an error to some engines, "no limit" to others.
    pub odd_limit: Option<i64>,
    /// `ignore_eos`: go on until the limit.
    pub endless: bool,
    /// Messages, prompts, inputs or files, whatever this kind of request is made of.
    pub parts: usize,
    pub images: Vec<Media>,
    /// What embeddings, rankings, scores and tokenizers work on.
    pub texts: Vec<String>,
    pub prompt_tokens: u64,
    /// Pictures wanted.
    pub copies: usize,
    /// Vectors as base64 instead of numbers.
    pub base64: bool,
    pub dimensions: Option<usize>,
    /// `json`, `text`, `wav`, …
    pub response_format: Option<String>,
}

/// An image or a file, measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Media {
    /// `image/png`; `url` for one that would have to be fetched, `file` where nothing is said.
    pub kind: String,
    pub bytes: u64,
}

/// Tokens an image costs: what a LLaVA projector makes of one tile.
const IMAGE_TOKENS: u64 = 576;
/// Characters of text in a token, roughly.
const TOKEN_CHARS: u64 = 4;

/// Reads the body of a request for `work`.
pub(super) fn read(work: Work, content_type: &str, body: &[u8]) -> Result<Asked, Refusal> {
    if content_type.starts_with("multipart/form-data") {
        return multipart::read(content_type, body).map(Asked::costed);
    }
    let json = serde_json::from_slice(body).map_err(|error| Refusal::not_json(body, &error))?;
    from_json(work, &json).map(Asked::costed)
}

fn from_json(work: Work, json: &Value) -> Result<Asked, Refusal> {
    let options = json.get("options").unwrap_or(&Value::Null);
    let stream_options = json.get("stream_options").unwrap_or(&Value::Null);
    let limits = ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"];
    let limit = limits.iter().find_map(|name| json.get(*name)).or_else(|| options.get("num_predict"));
    let limit = limit.and_then(Value::as_i64);
    let mut asked = Asked {
        model: text_at(json, "model"),
        stream: json.get("stream").and_then(Value::as_bool),
        include_usage: flag_at(stream_options, "include_usage"),
        continuous_usage: flag_at(stream_options, "continuous_usage_stats"),
        limit: limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0),
        odd_limit: limit.filter(|limit| *limit <= 0),
        endless: flag_at(json, "ignore_eos"),
        copies: json.get("n").and_then(Value::as_u64).map_or(1, |n| usize::try_from(n).unwrap_or(1)),
        base64: json.get("encoding_format").is_some_and(|format| format == "base64"),
        dimensions: json.get("dimensions").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()),
        response_format: text_at(json, "response_format"),
        ..Asked::default()
    };
    asked.take_parts(work, json)?;
    Ok(asked)
}

impl Asked {
    /// Fills in what the request is made of: the field that this kind of work cannot do without.
    fn take_parts(&mut self, work: Work, json: &Value) -> Result<(), Refusal> {
        let fields = work.fields();
        let Some((field, parts)) = fields.iter().find_map(|name| Some((*name, json.get(*name)?))) else {
            return match fields.first() {
                Some(field) if work.needs_its_field() => Err(Refusal::Missing(field)),
                _ => Ok(()),
            };
        };
        if field == "messages" && !parts.is_array() {
            return Err(Refusal::NotAList(field));
        }
        self.parts = parts.as_array().map_or(1, Vec::len);
        self.walk(field, parts)?;
        for beside in ["query", "text_1", "system", "instructions"] {
            if let Some(value) = json.get(beside) {
                self.walk(beside, value)?;
            }
        }
        if let Some(images) = json.get("images") {
            self.walk("images", images)?;
        }
        if let Some(texts) = work.works_on_texts().then(|| parts.as_array()).flatten() {
            self.texts =
                texts.iter().map(|text| text.as_str().map_or_else(|| text.to_string(), str::to_owned)).collect();
        } else if work.works_on_texts() {
            self.texts = vec![parts.as_str().unwrap_or_default().to_owned()];
        }
        Ok(())
    }

    /// Collects images and counts text in a part, however the API nests them. serde_json bounds the depth.
    fn walk(&mut self, name: &str, value: &Value) -> Result<(), Refusal> {
        match (name, value) {
            ("images", Value::Array(images)) => {
                for image in images {
                    self.images.push(Media::from_url(image.as_str().unwrap_or_default())?);
                }
            }
            (
                "content" | "text" | "prompt" | "input" | "documents" | "query" | "text_1" | "text_2" | "system"
                | "instructions",
                Value::String(text),
            ) => self.prompt_tokens += (text.len() as u64).div_ceil(TOKEN_CHARS),
            (_, Value::Array(values)) => {
                for value in values {
                    self.walk(name, value)?;
                }
            }
            (_, Value::Object(fields)) => match image_in(value) {
                Some(image) => self.images.push(image?),
                None => {
                    for (name, value) in fields {
                        self.walk(name, value)?;
                    }
                }
            },
            _ => {}
        }
        Ok(())
    }

    fn costed(mut self) -> Self {
        // A chat template costs a few tokens a message; no request is free.
        self.prompt_tokens += 1 + 3 * self.parts as u64 + IMAGE_TOKENS * self.images.len() as u64;
        self
    }
}

/// The image a content part is, in the notation of any of the APIs; `None` for a part that is something else.
fn image_in(part: &Value) -> Option<Result<Media, Refusal>> {
    match part.get("type")?.as_str()? {
        "image_url" | "input_image" => {
            let url = part.get("image_url")?;
            Some(Media::from_url(url.as_str().or_else(|| url.get("url")?.as_str())?))
        }
        "image" => {
            let source = part.get("source")?;
            let media = match source.get("data").and_then(Value::as_str) {
                Some(base64) => Media::from_base64(text_at(source, "media_type").unwrap_or_default(), base64),
                None => Media::from_url(source.get("url")?.as_str()?),
            };
            Some(media)
        }
        _ => None,
    }
}

impl Media {
    /// Measures a `data:` URL or bare base64 (Ollama's way); an address is taken as it is.
    fn from_url(url: &str) -> Result<Self, Refusal> {
        if url.starts_with("http://") || url.starts_with("https://") {
            return Ok(Self { kind: "url".to_owned(), bytes: 0 });
        }
        match url.strip_prefix("data:").map(|rest| rest.split_once(',')) {
            Some(Some((head, base64))) => {
                let kind = head.split(';').next().unwrap_or_default();
                Self::from_base64(kind.to_owned(), base64)
            }
            Some(None) => Err(Refusal::BadImage),
            None => Self::from_base64("file".to_owned(), url),
        }
    }

    fn from_base64(kind: String, base64: &str) -> Result<Self, Refusal> {
        let bytes = base64_bytes(base64.as_bytes()).filter(|bytes| *bytes > 0);
        bytes.map(|bytes| Self { kind, bytes }).ok_or(Refusal::BadImage)
    }
}

/// How many bytes the base64 stands for, `None` where it is damaged.
fn base64_bytes(base64: &[u8]) -> Option<u64> {
    let padding = base64.iter().rev().take(2).take_while(|byte| **byte == b'=').count();
    let digits = base64.get(..base64.len() - padding)?;
    let whole = digits.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_'));
    let rest = digits.len() % 4;
    (whole && rest != 1).then(|| digits.len() as u64 / 4 * 3 + (rest as u64).saturating_sub(1))
}

fn text_at(json: &Value, name: &str) -> Option<String> {
    json.get(name).and_then(Value::as_str).map(str::to_owned)
}

fn flag_at(json: &Value, name: &str) -> bool {
    json.get(name).and_then(Value::as_bool).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ask(work: Work, json: &Value) -> Asked {
        read(work, "application/json", json.to_string().as_bytes()).unwrap()
    }

    const PNG: &str = "data:image/png;base64,iVBORw0KGgo=";

    #[test]
    fn images_are_found_in_every_notation() {
        let chat = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"},
            {"type": "image_url", "image_url": {"url": PNG}}]}]});
        let responses = json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PNG}]}]});
        let messages = json!({"messages": [{"role": "user", "content": [{"type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}]}]});
        for (work, json) in [(Work::Chat, chat), (Work::Responses, responses), (Work::Messages, messages)] {
            assert_eq!(ask(work, &json).images, [Media { kind: "image/png".to_owned(), bytes: 8 }], "{work:?}");
        }
        let ollama = json!({"messages": [{"role": "user", "content": "hi", "images": ["iVBORw0KGgo="]}]});
        assert_eq!(ask(Work::OllamaChat, &ollama).images[0].bytes, 8);
        let generate = json!({"prompt": "hi", "images": ["iVBORw0KGgo=", "AAAA"]});
        assert_eq!(ask(Work::OllamaGenerate, &generate).images.len(), 2);
    }

    #[test]
    fn a_damaged_image_is_noticed() {
        for url in ["data:image/png;base64,iVBO\u{1}w0K", "data:image/png;base64,AAAAA", "data:image/png", "data:,", ""]
        {
            let chat = json!({"messages": [{"content": [{"type": "image_url", "image_url": {"url": url}}]}]});
            let refusal = read(Work::Chat, "application/json", chat.to_string().as_bytes()).unwrap_err();
            assert!(matches!(refusal, Refusal::BadImage), "{url}");
        }
    }

    #[test]
    fn a_mention_of_an_image_is_not_an_image() {
        let chat = json!({"messages": [{"role": "user", "content": "{\"type\":\"image_url\"}"}],
            "tools": [{"type": "image_url", "image_url": {"url": PNG}}]});
        assert_eq!(ask(Work::Chat, &chat).images, []);
    }

    #[test]
    fn base64_is_measured() {
        for (text, bytes) in
            [("", Some(0)), ("QQ==", Some(1)), ("QUI=", Some(2)), ("QUJD", Some(3)), ("QUJDRA", Some(4))]
        {
            assert_eq!(base64_bytes(text.as_bytes()), bytes, "{text}");
        }
        assert_eq!(base64_bytes(b"QUJDR"), None);
        assert_eq!(base64_bytes(b"Q=JD"), None);
    }

    #[test]
    fn limits_go_by_many_names() {
        for name in ["max_tokens", "max_completion_tokens"] {
            assert_eq!(ask(Work::Chat, &json!({"messages": [], name: 7})).limit, Some(7));
        }
        assert_eq!(ask(Work::Responses, &json!({"input": "x", "max_output_tokens": 7})).limit, Some(7));
        let unlimited = json!({"prompt": "x", "options": {"num_predict": -1}});
        assert_eq!(ask(Work::OllamaGenerate, &unlimited).limit, None);
        let odd = ask(Work::Chat, &json!({"messages": [], "max_tokens": -1}));
        assert_eq!((odd.limit, odd.odd_limit), (None, Some(-1)));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(matches!(read(Work::Chat, "", b"{}"), Err(Refusal::Missing("messages"))));
        assert!(matches!(read(Work::Chat, "", br#"{"messages":"x"}"#), Err(Refusal::NotAList("messages"))));
        assert!(matches!(read(Work::Chat, "", b"{bad"), Err(Refusal::NotJson { .. })));
        assert!(read(Work::OllamaChat, "", b"{}").is_ok());
    }
}
