//! The engines that a backend may run, and what they are called.

/// The software a backend runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Engine {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// llama.cpp's `llama-server`.
    LlamaCpp,
    /// Ollama.
    Ollama,
    /// Hugging Face's Text Generation Inference.
    Tgi,
    /// TensorRT-LLM's own server, `trtllm-serve`.
    TrtLlm,
    /// NVIDIA Triton by its OpenAI frontend.
    Triton,
    /// LMDeploy.
    LmDeploy,
    /// LM Studio.
    LmStudio,
    /// NVIDIA NIM.
    Nim,
    /// Anything else that speaks the OpenAI API.
    OpenAi,
}

impl Engine {
    /// Every engine.
    pub const ALL: [Self; 11] = [
        Self::Vllm,
        Self::Sglang,
        Self::LlamaCpp,
        Self::Ollama,
        Self::Tgi,
        Self::TrtLlm,
        Self::Triton,
        Self::LmDeploy,
        Self::LmStudio,
        Self::Nim,
        Self::OpenAi,
    ];

    /// Its name in the configuration, the admin API and towards plugins.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::LlamaCpp => "llama-cpp",
            Self::Ollama => "ollama",
            Self::Tgi => "tgi",
            Self::TrtLlm => "trtllm",
            Self::Triton => "triton",
            Self::LmDeploy => "lmdeploy",
            Self::LmStudio => "lm-studio",
            Self::Nim => "nim",
            Self::OpenAi => "openai",
        }
    }
}
