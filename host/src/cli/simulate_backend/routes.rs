//! What a path means to each engine: one table an engine, as its server registers them.
//!
//! vLLM registers only what its model can do; a simulated one can do everything vLLM or vLLM-Omni has a route for.

use hyper::Method;

use super::engine::Engine;
use super::fault::Target;
use super::refusal::Family;

/// A request that makes the engine work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Chat,
    Completion,
    Responses,
    Messages,
    CountTokens,
    Embeddings,
    Rerank,
    Score,
    ImageGeneration,
    ImageEdit,
    Transcription,
    Speech,
    Tokenize,
    OllamaChat,
    OllamaGenerate,
    OllamaEmbed,
}

/// A question about the engine itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Poll {
    Health,
    /// Ollama's `/`.
    Root,
    Version,
    Models,
    /// `/v1/models/NAME`.
    OneModel,
    ModelInfo,
    Metrics,
    /// vLLM's `/load`.
    ServerLoad,
    /// SGLang's `/v1/loads`.
    Loads,
    Slots,
    Props,
    Tags,
    Loaded,
    Show,
}

/// What a method and a path mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Work(Work),
    Poll(Poll),
    WrongMethod,
    None,
}

type Table = &'static [(&'static str, Route)];

const OPENAI: Table = &[
    ("/v1/chat/completions", Route::Work(Work::Chat)),
    ("/v1/completions", Route::Work(Work::Completion)),
    ("/v1/responses", Route::Work(Work::Responses)),
    ("/v1/messages", Route::Work(Work::Messages)),
    ("/v1/embeddings", Route::Work(Work::Embeddings)),
    ("/v1/models", Route::Poll(Poll::Models)),
];

const MEDIA: Table = &[
    ("/v1/images/generations", Route::Work(Work::ImageGeneration)),
    ("/v1/images/edits", Route::Work(Work::ImageEdit)),
    ("/v1/audio/transcriptions", Route::Work(Work::Transcription)),
    ("/v1/audio/translations", Route::Work(Work::Transcription)),
    ("/v1/audio/speech", Route::Work(Work::Speech)),
];

const POOLING: Table = &[
    ("/rerank", Route::Work(Work::Rerank)),
    ("/v1/rerank", Route::Work(Work::Rerank)),
    ("/v2/rerank", Route::Work(Work::Rerank)),
    ("/score", Route::Work(Work::Score)),
    ("/v1/score", Route::Work(Work::Score)),
    ("/tokenize", Route::Work(Work::Tokenize)),
    ("/v1/messages/count_tokens", Route::Work(Work::CountTokens)),
];

const ONE_MODEL: Table = &[("/v1/models/", Route::Poll(Poll::OneModel))];

const VLLM: Table = &[
    ("/health", Route::Poll(Poll::Health)),
    ("/ping", Route::Poll(Poll::Health)),
    ("/version", Route::Poll(Poll::Version)),
    ("/load", Route::Poll(Poll::ServerLoad)),
    ("/metrics", Route::Poll(Poll::Metrics)),
];

const SGLANG: Table = &[
    ("/health", Route::Poll(Poll::Health)),
    ("/health_generate", Route::Poll(Poll::Health)),
    ("/get_model_info", Route::Poll(Poll::ModelInfo)),
    ("/model_info", Route::Poll(Poll::ModelInfo)),
    ("/metrics", Route::Poll(Poll::Metrics)),
    ("/v1/loads", Route::Poll(Poll::Loads)),
];

const LLAMA_CPP: Table = &[
    ("/health", Route::Poll(Poll::Health)),
    ("/v1/health", Route::Poll(Poll::Health)),
    ("/models", Route::Poll(Poll::Models)),
    ("/props", Route::Poll(Poll::Props)),
    ("/slots", Route::Poll(Poll::Slots)),
    ("/metrics", Route::Poll(Poll::Metrics)),
    ("/chat/completions", Route::Work(Work::Chat)),
    ("/reranking", Route::Work(Work::Rerank)),
    ("/v1/reranking", Route::Work(Work::Rerank)),
    ("/rerank", Route::Work(Work::Rerank)),
    ("/v1/rerank", Route::Work(Work::Rerank)),
    ("/tokenize", Route::Work(Work::Tokenize)),
    ("/v1/messages/count_tokens", Route::Work(Work::CountTokens)),
    ("/v1/audio/transcriptions", Route::Work(Work::Transcription)),
];

const OLLAMA: Table = &[
    ("/", Route::Poll(Poll::Root)),
    ("/api/version", Route::Poll(Poll::Version)),
    ("/api/tags", Route::Poll(Poll::Tags)),
    ("/api/ps", Route::Poll(Poll::Loaded)),
    ("/api/show", Route::Poll(Poll::Show)),
    ("/api/chat", Route::Work(Work::OllamaChat)),
    ("/api/generate", Route::Work(Work::OllamaGenerate)),
    ("/api/embed", Route::Work(Work::OllamaEmbed)),
    ("/v1/audio/transcriptions", Route::Work(Work::Transcription)),
];

const fn tables(engine: Engine) -> &'static [Table] {
    match engine {
        Engine::Vllm => &[OPENAI, VLLM, POOLING, MEDIA],
        Engine::Sglang => &[OPENAI, SGLANG, POOLING, MEDIA, ONE_MODEL],
        Engine::LlamaCpp => &[OPENAI, LLAMA_CPP],
        Engine::Ollama => &[OPENAI, OLLAMA, ONE_MODEL],
        Engine::OpenAi => &[OPENAI, MEDIA, ONE_MODEL],
    }
}

/// What this request is to this engine.
pub(super) fn find(engine: Engine, method: &Method, path: &str) -> Route {
    let fits = |known: &str| match known {
        // The one path that ends in a name.
        "/v1/models/" => path.len() > known.len() && path.starts_with(known),
        _ => known == path,
    };
    let mut all = tables(engine).iter().flat_map(|table| table.iter());
    match all.find(|(known, _)| fits(known)) {
        None => Route::None,
        Some((_, route)) if route.takes(method) => *route,
        Some(_) => Route::WrongMethod,
    }
}

impl Route {
    fn takes(self, method: &Method) -> bool {
        match self {
            Self::Work(_) | Self::Poll(Poll::Show) => method == Method::POST,
            Self::Poll(_) => method == Method::GET || method == Method::HEAD,
            Self::WrongMethod | Self::None => false,
        }
    }

    /// What this request is to the faults.
    pub(super) const fn target(self) -> Target {
        match self {
            Self::Work(_) => Target::Generation,
            Self::Poll(Poll::Health | Poll::Root | Poll::Version) => Target::Health,
            Self::Poll(Poll::Models | Poll::OneModel | Poll::ModelInfo | Poll::Tags | Poll::Show) => Target::Models,
            Self::Poll(_) => Target::Capacity,
            Self::WrongMethod | Self::None => Target::Other,
        }
    }
}

/// Which API's shape errors on this path take.
pub(super) fn family(path: &str) -> Family {
    match path {
        "/v1/messages" | "/v1/messages/count_tokens" => Family::Anthropic,
        _ if path.starts_with("/api/") => Family::Native,
        _ => Family::OpenAi,
    }
}

impl Work {
    /// The fields that hold what is worked on, the usual one first.
    pub(super) const fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Chat | Self::Messages | Self::CountTokens | Self::OllamaChat => &["messages"],
            Self::Completion | Self::OllamaGenerate | Self::ImageGeneration | Self::ImageEdit => &["prompt"],
            Self::Responses | Self::Embeddings | Self::OllamaEmbed | Self::Speech => &["input"],
            Self::Rerank => &["documents", "texts"],
            Self::Score => &["text_2", "documents", "items", "data_2"],
            Self::Tokenize => &["prompt", "content", "messages"],
            Self::Transcription => &["file"],
        }
    }

    /// Ollama takes a request about nothing as a wish to load the model.
    pub(super) const fn needs_its_field(self) -> bool {
        !matches!(self, Self::OllamaChat | Self::OllamaGenerate)
    }

    /// Work on a list of texts, each of which has its part in the answer.
    pub(super) const fn works_on_texts(self) -> bool {
        matches!(
            self,
            Self::Embeddings | Self::OllamaEmbed | Self::Rerank | Self::Score | Self::Tokenize | Self::Speech
        )
    }

    /// Counting tokens needs no GPU.
    pub(super) const fn needs_a_slot(self) -> bool {
        !matches!(self, Self::Tokenize | Self::CountTokens)
    }

    /// What the parts of such a request are called, for the text that says what was received.
    pub(super) const fn part_name(self) -> &'static str {
        match self {
            Self::Chat | Self::Messages | Self::OllamaChat => "message(s)",
            Self::Completion | Self::OllamaGenerate | Self::ImageGeneration => "prompt(s)",
            Self::Transcription | Self::ImageEdit => "file(s)",
            _ => "input(s)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_differ_in_what_they_have() {
        let get = |engine, path| find(engine, &Method::GET, path);
        let post = |engine, path| find(engine, &Method::POST, path);
        assert_eq!(get(Engine::Vllm, "/slots"), Route::None);
        assert_eq!(get(Engine::LlamaCpp, "/slots"), Route::Poll(Poll::Slots));
        assert_eq!(get(Engine::Vllm, "/v1/models/a"), Route::None);
        assert_eq!(get(Engine::Ollama, "/v1/models/org/a"), Route::Poll(Poll::OneModel));
        assert_eq!(get(Engine::OpenAi, "/v1/models/"), Route::None);
        assert_eq!(get(Engine::OpenAi, "/health"), Route::None);
        assert_eq!(get(Engine::Vllm, "/v1/chat/completions"), Route::WrongMethod);
        assert_eq!(post(Engine::Ollama, "/api/show"), Route::Poll(Poll::Show));
        assert_eq!(post(Engine::LlamaCpp, "/v1/audio/speech"), Route::None);
    }

    #[test]
    fn no_path_is_registered_twice() {
        use clap::ValueEnum as _;
        for engine in Engine::value_variants() {
            let mut paths: Vec<_> =
                tables(*engine).iter().flat_map(|table| table.iter()).map(|(path, _)| path).collect();
            let all = paths.len();
            paths.sort_unstable();
            paths.dedup();
            assert_eq!(paths.len(), all, "{engine:?}");
        }
    }
}
