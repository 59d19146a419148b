//! What engines say of themselves: which questions to ask each, and how to read the answers into a [`Report`].
//!
//! Pure: no I/O, no state, no clock. The poller asks the [`questions`] in order and hands the answers in.
//!
//! - Unknown is a third state: what is absent, malformed or impossible reads as `None`, never as idle or full.
//! - No answer makes a reader panic or keep more than 4,096 names of 256 bytes.
//! - A question that got no answer is simply not read: a report of one round holds what that round learned.
//!
//! A new engine is one file with its `QUESTIONS`, an arm in [`questions`] and in [`why_no_load`], and its lines in
//! [`PROBES`].

mod llama_cpp;
mod lm_studio;
mod lmdeploy;
mod nim;
mod ollama;
mod openai;
mod plausible;
mod prometheus;
mod served;
mod sglang;
mod tgi;
mod triton;
mod trtllm;
mod vllm;

use serde_json::Value;

use crate::config::Engine;

pub use served::ServedModel;

/// The longest answer worth reading, in bytes. A vLLM writes 57 kB of metrics for one engine, so that one with 64
/// data-parallel engines stays below. The poller drops what is longer: half an answer would be half the load.
pub const ANSWER_LIMIT_BYTES: usize = 4 << 20;

/// One answer of a backend, complete.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// HTTP status.
    pub status: u16,
    /// The whole body, decoded, at most [`ANSWER_LIMIT_BYTES`].
    pub body: &'a [u8],
}

impl Answer<'_> {
    /// Whether it is an answer to the question at all (2xx), not an error.
    fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as JSON, if it is an answer and JSON.
    fn json(&self) -> Option<Value> {
        if self.ok() { serde_json::from_slice(self.body).ok() } else { None }
    }
}

/// One thing to ask an engine: a `GET`.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// Path and query, to be put behind the backend's prefix.
    pub path: &'static str,
    /// Whether it is worth asking, after what this round has learned: a source that is only second best, or would
    /// disturb the engine, is left alone while a better one answers.
    pub wanted: fn(&Report) -> bool,
    /// Reads the answer into the report of this round.
    pub read: fn(&Answer<'_>, &mut Report),
}

/// What an engine says of itself. `None` is unknown: never idle, never full.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Whether it could serve now.
    pub health: Health,
    /// Requests it works on, whoever sent them.
    pub running: Option<u32>,
    /// Requests that wait inside it, whoever sent them.
    pub waiting: Option<u32>,
    /// Requests it works on at once, at most; never 0.
    pub limit: Option<u32>,
    /// How full the KV-cache is, 0 to 1; of several the fullest.
    pub kv_cache_used: Option<f64>,
    /// Whether its load may be that of a while ago. Such a load must not keep requests away for good: it is only by
    /// requests that it would change.
    pub load_may_be_old: bool,
    /// What it serves. `Some` of an empty list: it says that it serves nothing.
    pub models: Option<Vec<ServedModel>>,
    /// It only passes requests on to other processes, one for each model: the queries to be put behind the paths of
    /// [`OF_EACH_MODEL`] for what each of these has to say.
    pub routed: Option<Vec<String>>,
}

impl Report {
    /// Whether nothing speaks against sending it requests: most questions are only worth asking then.
    pub fn may_serve(&self) -> bool {
        !matches!(self.health, Health::NotReady(_))
    }

    /// Takes over what a router says of each of its models: the load of all, and the slots of the one with the fewest.
    pub fn sum_up(&mut self, of_models: &[Self]) {
        self.running = of_models.iter().map(|of_model| of_model.running).sum();
        self.waiting = of_models.iter().map(|of_model| of_model.waiting).sum();
        let limits: Option<Vec<u32>> = of_models.iter().map(|of_model| of_model.limit).collect();
        self.limit = limits.and_then(|limits| limits.into_iter().min());
    }
}

/// Whether an engine could serve.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Health {
    /// It was not asked, or has not answered.
    #[default]
    Unknown,
    /// It answers.
    Ready,
    /// It answers, but cannot serve yet or any more; the reason is short and for people.
    NotReady(String),
}

impl Health {
    /// What the answer to a health question means. Only a server error speaks against an engine: a 401 or 404 comes
    /// from one that is up, and 429 from one that is busy, which is not broken.
    fn of(answer: &Answer<'_>) -> Self {
        if answer.status < 500 { Self::Ready } else { Self::NotReady(reason(answer)) }
    }
}

/// Why an engine is not ready: its own words, if they are fit for a log line, else the status.
fn reason(answer: &Answer<'_>) -> String {
    let body: Value = serde_json::from_slice(answer.body).unwrap_or_default();
    let said = ["/error/message", "/error", "/message", "/detail"].iter().find_map(|at| body.pointer(at)?.as_str());
    match said {
        Some(words) if plausible::text(words) => words.to_owned(),
        _ => format!("answered {}", answer.status),
    }
}

/// What to ask an engine, in order. The first question is about its health; never empty.
pub fn questions(engine: Engine) -> &'static [Question] {
    match engine {
        Engine::Vllm => vllm::QUESTIONS,
        Engine::Sglang => sglang::QUESTIONS,
        Engine::LlamaCpp => llama_cpp::QUESTIONS,
        Engine::Ollama => ollama::QUESTIONS,
        Engine::Tgi => tgi::QUESTIONS,
        Engine::TrtLlm => trtllm::QUESTIONS,
        Engine::Triton => triton::QUESTIONS,
        Engine::LmDeploy => lmdeploy::QUESTIONS,
        Engine::LmStudio => lm_studio::QUESTIONS,
        Engine::Nim => nim::QUESTIONS,
        Engine::OpenAi => openai::QUESTIONS,
    }
}

/// What a router is asked of each of its models; only llama.cpp has one.
pub const OF_EACH_MODEL: &[Question] = llama_cpp::OF_EACH_MODEL;

/// Why an engine that reports its load may not do so; `None` for one that never reports any.
pub fn why_no_load(engine: Engine) -> Option<&'static str> {
    match engine {
        Engine::Vllm => Some(vllm::NO_LOAD),
        Engine::Sglang => Some(sglang::NO_LOAD),
        Engine::LlamaCpp => Some(llama_cpp::NO_LOAD),
        Engine::Tgi => Some(tgi::NO_LOAD),
        Engine::TrtLlm => Some(trtllm::NO_LOAD),
        Engine::Triton => Some(triton::NO_LOAD),
        Engine::LmDeploy => Some(lmdeploy::NO_LOAD),
        Engine::Nim => Some(nim::NO_LOAD),
        Engine::Ollama | Engine::LmStudio | Engine::OpenAi => None,
    }
}

/// One way to recognise an engine.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Path of the `GET` whose answer tells.
    pub path: &'static str,
    /// What the backend runs if the answer says yes.
    pub engine: Engine,
    /// Whether the answer is that engine's, whatever its status.
    pub is: fn(&Answer<'_>) -> bool,
}

/// How to find out what a backend runs: the first probe that says yes wins; none: [`Engine::OpenAi`], and only for the
/// time being while it is not [`Health::Ready`], for an engine that starts may not know itself yet.
///
/// A path is asked at most once, when its first probe comes up. The list of models comes first: most engines sign it, and
/// it needs no flag. A NIM passes on the list of the engine inside it, signature and all, so that it is asked who it is
/// before a vLLM or SGLang is believed. The list goes before Ollama's greeting, which SGLang may be told to give. Greetings
/// and metrics tell where the list is behind a key that we do not have; Triton's metrics may hold those of a vLLM.
/// Ollama's `/api/version` is no sign: other programs have one. Old TGIs have no list.
pub const PROBES: &[Probe] = &[
    Probe { path: openai::MODELS, engine: Engine::LlamaCpp, is: |answer| openai::all_owned_by(answer, "llamacpp") },
    Probe { path: openai::MODELS, engine: Engine::LlamaCpp, is: llama_cpp::is_loading },
    Probe { path: openai::MODELS, engine: Engine::TrtLlm, is: |answer| openai::all_owned_by(answer, "tensorrt_llm") },
    Probe { path: openai::MODELS, engine: Engine::Triton, is: |answer| openai::all_owned_by(answer, triton::OWNER) },
    Probe { path: openai::MODELS, engine: Engine::LmDeploy, is: |answer| openai::all_owned_by(answer, "lmdeploy") },
    Probe {
        path: openai::MODELS,
        engine: Engine::LmStudio,
        is: |answer| openai::all_owned_by(answer, lm_studio::OWNER),
    },
    Probe { path: openai::MODELS, engine: Engine::Tgi, is: tgi::lists_itself },
    Probe { path: nim::METADATA, engine: Engine::Nim, is: nim::describes_itself },
    Probe { path: openai::MODELS, engine: Engine::Vllm, is: |answer| openai::all_owned_by(answer, "vllm") },
    Probe { path: openai::MODELS, engine: Engine::Sglang, is: |answer| openai::all_owned_by(answer, "sglang") },
    Probe { path: "/", engine: Engine::Ollama, is: |answer| greets(answer, "Ollama is running") },
    Probe { path: "/", engine: Engine::Sglang, is: |answer| greets(answer, "SGLang is running") },
    Probe { path: METRICS, engine: Engine::Triton, is: |answer| prometheus::has(answer, "nv_inference_") },
    Probe { path: METRICS, engine: Engine::Vllm, is: |answer| prometheus::has(answer, "vllm:") },
    Probe { path: METRICS, engine: Engine::Sglang, is: |answer| prometheus::has(answer, "sglang:") },
    Probe { path: METRICS, engine: Engine::Sglang, is: |answer| prometheus::has(answer, "sglang_") },
    Probe { path: METRICS, engine: Engine::LlamaCpp, is: |answer| prometheus::has(answer, "llamacpp:") },
    Probe { path: METRICS, engine: Engine::LmDeploy, is: |answer| prometheus::has(answer, "lmdeploy:") },
    Probe { path: METRICS, engine: Engine::Tgi, is: |answer| prometheus::has(answer, "tgi_") },
    Probe { path: tgi::INFO, engine: Engine::Tgi, is: tgi::describes_itself },
];

/// Whether the answer to `/` is this greeting and nothing else, as text or as JSON.
fn greets(answer: &Answer<'_>, words: &str) -> bool {
    let said = answer.body.trim_ascii();
    let said = said.strip_prefix(b"\"").and_then(|said| said.strip_suffix(b"\"")).unwrap_or(said);
    answer.ok() && said == words.as_bytes()
}

/// Whether this is the path of a page of metrics, which an engine may keep at another address.
pub fn is_metrics(path: &str) -> bool {
    path.ends_with(METRICS)
}

/// Where most engines keep their metrics.
const METRICS: &str = "/metrics";

#[cfg(test)]
mod tests;
