//! llama.cpp's models, properties, slots and metrics.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use super::super::Simulation;
use super::super::slots::Work;
use super::super::whole::Whole;
use super::{Question, Report};

/// Context of one slot.
const SLOT_CONTEXT: u64 = 16_384;

pub(super) fn models(simulation: &Simulation) -> Value {
    let name = simulation.own_model();
    let inputs = if simulation.vision { json!(["text", "image"]) } else { json!(["text"]) };
    let capabilities = if simulation.vision { json!(["completion", "multimodal"]) } else { json!(["completion"]) };
    json!({
        "models": [{"name": name, "model": name, "modified_at": "", "size": "", "digest": "", "type": "model",
            "description": "", "tags": [""], "capabilities": capabilities, "parameters": "", "details":
            {"parent_model": "", "format": "gguf", "family": "", "families": [""], "parameter_size": "",
            "quantization_level": ""}}],
        "object": "list",
        "data": [{"id": name, "aliases": simulation.models, "tags": [], "object": "model",
            "architecture": {"input_modalities": inputs, "output_modalities": ["text"]}, "created": simulation.born,
            "owned_by": "llamacpp", "meta": {"vocab_type": 1, "n_vocab": 354, "n_ctx": SLOT_CONTEXT,
            "n_ctx_train": 131_072, "n_embd": 64, "n_params": 127_552, "size": 510_208, "ftype": "all F32"}}],
    })
}

pub(super) fn props(simulation: &Simulation) -> Value {
    let name = simulation.own_model();
    json!({
        "default_generation_settings": {"params": {"temperature": 0.8, "top_k": 40, "max_tokens": -1,
            "n_predict": -1, "stream": false}, "n_ctx": SLOT_CONTEXT},
        "total_slots": simulation.slots.load().slots, "model_alias": name, "model_ftype": "all F32",
        "model_path": format!("/models/{name}.gguf"),
        "modalities": {"vision": simulation.vision, "video": false, "audio": false},
        "media_marker": "<__media__>", "endpoint_slots": true, "endpoint_props": false, "endpoint_metrics": true,
        "ui": true, "chat_template": "", "bos_token": "<s>", "eos_token": "</s>",
        "build_info": super::super::answer::LLAMA_CPP_FINGERPRINT, "is_sleeping": false,
    })
}

/// The slots one by one; with `fail_on_no_slot` an error when none is free.
pub(super) fn slots(simulation: &Simulation, question: &Question<'_>) -> Whole {
    let load = simulation.slots.load();
    if question.query.split('&').any(|pair| pair == "fail_on_no_slot=1") && load.running >= load.slots {
        return Whole::refused(simulation, question.path, &simulation.models, &super::super::refusal::Refusal::Busy);
    }
    // After a shrink a request may still run in a slot that is no more.
    let shown = load.works.last().map_or(load.slots, |(last, _)| load.slots.max(last + 1));
    let running = |id: usize| load.works.iter().find(|(slot, _)| *slot == id).map(|(_, work)| work);
    let slots: Vec<_> = (0..shown).map(|id| slot(id, running(id).map(AsRef::as_ref))).collect();
    Whole::json(simulation, question.path, &json!(slots))
}

fn slot(id: usize, work: Option<&Work>) -> Value {
    let Some(work) = work else {
        return json!({"id": id, "n_ctx": SLOT_CONTEXT, "speculative": false, "is_processing": false});
    };
    let decoded = work.decoded.load(Relaxed);
    json!({"id": id, "n_ctx": SLOT_CONTEXT, "speculative": false, "is_processing": true, "id_task": work.id,
        "n_prompt_tokens": work.prompt_tokens + decoded, "n_prompt_tokens_processed": work.prompt_tokens,
        "n_prompt_tokens_cache": 0, "params": {"max_tokens": work.token_limit, "n_predict": work.token_limit},
        "next_token": [{"has_next_token": true, "has_new_line": false,
            "n_remain": work.token_limit.saturating_sub(decoded), "n_decoded": decoded}]})
}

pub(super) fn metrics(simulation: &Simulation) -> String {
    let load = simulation.slots.load();
    let counts = load.counts;
    let mut report = Report::new("llamacpp:", String::new());
    let prompt_help = "Number of prompt tokens processed, excluding cached tokens";
    report.sample("counter", "prompt_tokens_total", prompt_help, counts.prompt_tokens);
    report.sample("counter", "tokens_predicted_total", "Number of generation tokens processed", counts.decoded_tokens);
    report.sample("gauge", "requests_processing", "Number of requests processing", load.running);
    report.sample("gauge", "requests_deferred", "Number of requests deferred", load.waiting);
    report.text
}
