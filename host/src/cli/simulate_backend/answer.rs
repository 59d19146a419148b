//! Generated answers in the words of each API and engine: streamed token by token, or whole.
//!
//! An API is a [`Dialect`], and one file; a [`Reply`] is what stays the same over one answer. Events are made one by one
//! from the state of the generation, so that nothing is kept but the text.

mod chat;
mod messages;
mod ollama;
mod responses;
mod single;
mod text;

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};

pub(super) use chat::LLAMA_CPP_FINGERPRINT;
pub(super) use single::{Other, pictures, silent_wav, tokenized, transcript, vectors_and_ranks};

use super::asked::Asked;
use super::engine::Engine;
use super::generation::Generation;
use super::refusal::{Family, Refusal};
use super::routes::Work;
use super::unix_seconds;

/// The API an answer is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Chat,
    Completion,
    Responses,
    Messages,
    OllamaChat,
    OllamaGenerate,
}

impl Dialect {
    /// `None` for work whose answer is no generated text.
    pub(super) const fn of(work: Work) -> Option<Self> {
        match work {
            Work::Chat => Some(Self::Chat),
            Work::Completion => Some(Self::Completion),
            Work::Responses => Some(Self::Responses),
            Work::Messages => Some(Self::Messages),
            Work::OllamaChat => Some(Self::OllamaChat),
            Work::OllamaGenerate => Some(Self::OllamaGenerate),
            _ => None,
        }
    }

    /// Ollama streams unless told not to, everybody else the other way round.
    pub(super) fn streams(self, asked: &Asked) -> bool {
        asked.stream.unwrap_or(self.is_ollama())
    }

    pub(super) const fn is_ollama(self) -> bool {
        matches!(self, Self::OllamaChat | Self::OllamaGenerate)
    }

    const fn family(self) -> Family {
        match self {
            Self::Messages => Family::Anthropic,
            Self::OllamaChat | Self::OllamaGenerate => Family::Native,
            _ => Family::OpenAi,
        }
    }
}

/// What one answer says in each of its parts.
pub(super) struct Reply {
    pub engine: Engine,
    pub dialect: Dialect,
    /// The model's name as this engine writes it.
    pub model: String,
    /// The answer's id, without the prefix that says what it is.
    pub id: String,
    /// Id of the one message in the answer, where an API has both.
    pub item_id: String,
    pub created: u64,
    pub prompt_tokens: u64,
    pub limit: Option<u64>,
    pub include_usage: bool,
    pub continuous_usage: bool,
}

impl Reply {
    /// A reply to `asked`; `client_id` is the request's own id, which vLLM takes over.
    pub(super) fn new(engine: Engine, dialect: Dialect, model: String, client_id: Option<&str>, asked: &Asked) -> Self {
        let id = match client_id {
            Some(id) if engine == Engine::Vllm => id.to_owned(),
            _ if engine == Engine::LlamaCpp => random_id(32),
            _ => format!("{:016x}", fastrand::u64(..)),
        };
        Self {
            engine,
            dialect,
            model,
            id,
            item_id: format!("msg_{}", random_id(24)),
            created: unix_seconds(),
            prompt_tokens: asked.prompt_tokens,
            limit: asked.limit,
            include_usage: asked.include_usage,
            continuous_usage: asked.continuous_usage,
        }
    }

    /// The whole answer at once.
    pub(super) fn whole(&self, said: &Generation) -> Value {
        match self.dialect {
            Dialect::Chat => chat::whole(self, said),
            Dialect::Completion => text::whole(self, said),
            Dialect::Responses => responses::whole(self, said),
            Dialect::Messages => messages::whole(self, said),
            Dialect::OllamaChat | Dialect::OllamaGenerate => ollama::whole(self, said),
        }
    }

    /// Ollama's answer to a request about nothing: the model is loaded.
    pub(super) fn loaded(&self) -> Value {
        ollama::loaded(self)
    }

    fn opening(&self) -> Vec<Bytes> {
        match self.dialect {
            Dialect::Chat => chat::opening(self),
            Dialect::Responses => responses::opening(self),
            Dialect::Messages => messages::opening(self),
            Dialect::Completion | Dialect::OllamaChat | Dialect::OllamaGenerate => Vec::new(),
        }
    }

    fn token(&self, token: &str, said: &Generation) -> Bytes {
        match self.dialect {
            Dialect::Chat => chat::token(self, token, said),
            Dialect::Completion => text::token(self, token, said),
            Dialect::Responses => responses::token(self, token, said),
            Dialect::Messages => messages::token(self, token),
            Dialect::OllamaChat | Dialect::OllamaGenerate => ollama::token(self, token),
        }
    }

    fn closing(&self, said: &Generation) -> Vec<Bytes> {
        match self.dialect {
            Dialect::Chat => chat::closing(self, said),
            Dialect::Completion => text::closing(self, said),
            Dialect::Responses => responses::closing(self, said),
            Dialect::Messages => messages::closing(self, said),
            Dialect::OllamaChat | Dialect::OllamaGenerate => vec![ollama::last_line(self, said)],
        }
    }

    /// How a stream of this engine ends when the engine dies under it. Only the Python engines say `[DONE]` after it.
    fn broken(&self) -> Vec<Bytes> {
        let (_, body) =
            Refusal::EngineDead.answer(self.engine, self.dialect.family(), std::slice::from_ref(&self.model));
        let error = body.unwrap_or_default();
        match self.dialect {
            Dialect::OllamaChat | Dialect::OllamaGenerate => vec![ndjson(&error)],
            Dialect::Messages | Dialect::Responses => vec![event("error", &error)],
            // SGLang's errors are bare, but wrapped where they are events.
            _ if self.engine == Engine::Sglang => vec![sse(&json!({"error": error})), done()],
            _ if self.engine == Engine::Vllm || self.engine == Engine::OpenAi => vec![sse(&error), done()],
            _ => vec![sse(&error)],
        }
    }

    fn total_tokens(&self, said: &Generation) -> u64 {
        self.prompt_tokens + said.said()
    }
}

/// A streamed answer: the generation and what is left to send of it.
pub(super) struct Stream {
    generation: Generation,
    reply: Reply,
    pending: VecDeque<Bytes>,
    /// The engine dies once this many tokens are said.
    dies_after: Option<u64>,
    over: bool,
}

impl Stream {
    pub(super) fn new(generation: Generation, reply: Reply, dies_after: Option<u64>) -> Self {
        Self { generation, reply, pending: VecDeque::new(), dies_after, over: false }
    }

    /// Waits until there is something to send: the slot, and the first token.
    pub(super) async fn begin(&mut self) {
        if self.pending.is_empty() && !self.over {
            self.advance().await;
        }
    }

    /// The next event, and the stream after it; `None` behind the last one.
    pub(super) async fn step(mut self) -> Option<(Bytes, Self)> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some((event, self));
            }
            if self.over {
                return None;
            }
            self.advance().await;
        }
    }

    async fn advance(&mut self) {
        if self.dies_after.is_some_and(|tokens| self.generation.said() >= tokens) {
            self.generation.slot_taken().await;
            self.generation.break_on_purpose();
            self.pending.extend(self.reply.broken());
            self.over = true;
            return;
        }
        match self.generation.token().await {
            Some(token) => {
                if self.generation.said() == 1 {
                    self.pending.extend(self.reply.opening());
                }
                self.pending.push_back(self.reply.token(&token, &self.generation));
            }
            None => {
                self.pending.extend(self.reply.closing(&self.generation));
                self.over = true;
            }
        }
    }
}

/// One unnamed server-sent event.
fn sse(data: &Value) -> Bytes {
    format!("data: {data}\n\n").into()
}

/// One named server-sent event.
fn event(name: &str, data: &Value) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}

fn ndjson(line: &Value) -> Bytes {
    format!("{line}\n").into()
}

fn done() -> Bytes {
    Bytes::from_static(b"data: [DONE]\n\n")
}

fn random_id(length: usize) -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(length).collect()
}

/// llama.cpp's account of its time, which ends every answer of its own.
fn timings(reply: &Reply, said: &Generation) -> Value {
    let (_, running) = said.elapsed();
    let ms = running.as_secs_f64() * 1000.0;
    json!({"cache_n": 0, "prompt_n": reply.prompt_tokens, "predicted_n": said.said(), "predicted_ms": ms})
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::gpu::Pace;
    use super::super::slots::Slots;
    use super::super::speech::Speech;
    use super::*;

    async fn streamed(engine: Engine, work: Work, dies_after: Option<u64>) -> String {
        let asked = Asked { prompt_tokens: 7, include_usage: true, ..Asked::default() };
        let place = Slots::plain(1, None, 100).enter("", 7, 2).unwrap();
        let pace = Pace {
            first_token: Duration::ZERO,
            token_interval: Duration::ZERO,
            prefill_rate: None,
            batch_cost: Duration::ZERO,
        };
        let generation = Generation::new(place, Speech::new("a b", 2, None, false), pace);
        let dialect = Dialect::of(work).unwrap();
        let mut reply = Reply::new(engine, dialect, "m".to_owned(), None, &asked);
        (reply.id, reply.item_id, reply.created) = ("ID".to_owned(), "msg_I".to_owned(), 1);
        let mut next = Stream::new(generation, reply, dies_after).step().await;
        let mut all = String::new();
        while let Some((bytes, stream)) = next {
            all.push_str(std::str::from_utf8(&bytes).unwrap());
            next = stream.step().await;
        }
        all
    }

    #[tokio::test]
    async fn a_vllm_chat_stream_is_what_was_recorded() {
        let head = r#"{"id":"chatcmpl-ID","object":"chat.completion.chunk","created":1,"model":"m","choices":["#;
        let expected = [
            format!(
                r#"data: {head}{{"index":0,"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}],"prompt_token_ids":null,"prompt_text":null}}"#
            ),
            format!(
                r#"data: {head}{{"index":0,"delta":{{"content":"a "}},"logprobs":null,"finish_reason":null,"token_ids":null}}]}}"#
            ),
            format!(
                r#"data: {head}{{"index":0,"delta":{{"content":"b"}},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null}}]}}"#
            ),
            format!(
                r#"data: {head}],"usage":{{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2}},"system_fingerprint":"vllm-0.32.0-simulated"}}"#
            ),
            "data: [DONE]".to_owned(),
        ];
        let all = streamed(Engine::Vllm, Work::Chat, None).await;
        assert_eq!(all.split_terminator("\n\n").collect::<Vec<_>>(), expected);
    }

    #[tokio::test]
    async fn a_dying_vllm_ends_its_stream_well_formed() {
        let all = streamed(Engine::Vllm, Work::Chat, Some(1)).await;
        let events: Vec<_> = all.split_terminator("\n\n").collect();
        assert_eq!(events.len(), 4);
        assert!(events[2].starts_with(r#"data: {"error":{"message":"EngineCore encountered an issue."#));
        assert_eq!(events[3], "data: [DONE]");
        let first = streamed(Engine::Vllm, Work::Chat, Some(0)).await;
        assert!(first.starts_with("data: {\"error\":"));
    }

    #[tokio::test]
    async fn every_event_of_every_engine_is_json() {
        use clap::ValueEnum as _;
        for engine in Engine::value_variants() {
            for work in
                [Work::Chat, Work::Completion, Work::Responses, Work::Messages, Work::OllamaChat, Work::OllamaGenerate]
            {
                let all = streamed(*engine, work, None).await;
                let named: Vec<_> = all.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
                let lines = all.lines().filter(|line| !line.is_empty() && !line.starts_with("event: "));
                let json =
                    lines.map(|line| line.strip_prefix("data: ").unwrap_or(line)).filter(|line| *line != "[DONE]");
                for (index, line) in json.enumerate() {
                    let value: Value =
                        serde_json::from_str(line).unwrap_or_else(|error| panic!("{engine:?} {line}: {error}"));
                    // A named event says its name twice.
                    assert!(named.is_empty() || value["type"] == named[index], "{line}");
                }
                assert!(all.contains("\"a \"") && all.contains("\"b\""), "{engine:?} {work:?} {all}");
            }
        }
    }
}
