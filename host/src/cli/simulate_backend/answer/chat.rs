//! Chat completions as each engine writes them.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::super::engine::Engine;
use super::super::generation::Generation;
use super::{Reply, done, sse, timings};

pub(super) fn whole(reply: &Reply, said: &Generation) -> Value {
    let (text, finish) = (said.text(), said.finish().name());
    let id = format!("chatcmpl-{}", reply.id);
    let (created, model, usage) = (reply.created, &reply.model, usage(reply, said, true));
    match reply.engine {
        Engine::Vllm => json!({
            "id": id, "object": "chat.completion", "created": created, "model": model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text, "refusal": null,
                "annotations": null, "audio": null, "function_call": null, "reasoning": null}, "logprobs": null,
                "finish_reason": finish, "stop_reason": null, "token_ids": null, "routed_experts": null}],
            "service_tier": null, "system_fingerprint": VLLM_FINGERPRINT, "usage": usage, "prompt_logprobs": null,
            "prompt_token_ids": null, "prompt_text": null, "kv_transfer_params": null,
        }),
        Engine::LlamaCpp => json!({
            "choices": [{"finish_reason": finish, "index": 0, "message": {"role": "assistant", "content": text}}],
            "created": created, "model": model, "system_fingerprint": LLAMA_CPP_FINGERPRINT,
            "object": "chat.completion", "usage": usage, "id": id, "timings": timings(reply, said),
        }),
        Engine::Sglang => json!({
            "id": reply.id, "object": "chat.completion", "created": created, "model": model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text, "reasoning_content": null,
                "tool_calls": null}, "logprobs": null, "finish_reason": finish, "matched_stop": null}],
            "usage": usage, "metadata": {"weight_version": "default"},
        }),
        Engine::Ollama => json!({
            "id": id, "object": "chat.completion", "created": created, "model": model,
            "system_fingerprint": "fp_ollama", "choices": [{"index": 0,
                "message": {"role": "assistant", "content": text}, "finish_reason": finish}], "usage": usage,
        }),
        Engine::OpenAi => json!({
            "id": id, "object": "chat.completion", "created": created, "model": model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text, "refusal": null,
                "annotations": []}, "logprobs": null, "finish_reason": finish}],
            "usage": usage, "service_tier": "default", "system_fingerprint": null,
        }),
    }
}

pub(super) const VLLM_FINGERPRINT: &str = "vllm-0.32.0-simulated";
pub(in super::super) const LLAMA_CPP_FINGERPRINT: &str = "b0-simulated";

/// The event that names the role; Ollama names it in the first token's event instead.
pub(super) fn opening(reply: &Reply) -> Vec<Bytes> {
    let delta = match reply.engine {
        Engine::Vllm => json!({"role": "assistant", "content": ""}),
        Engine::LlamaCpp => json!({"role": "assistant", "content": null}),
        Engine::Sglang => json!({"role": "assistant", "content": "", "reasoning_content": null, "tool_calls": null}),
        Engine::OpenAi => json!({"role": "assistant", "content": "", "refusal": null}),
        Engine::Ollama => return Vec::new(),
    };
    let usage = reply.continuous_usage.then(|| counted(reply.prompt_tokens, 0, true));
    let mut chunk = chunk(reply, &choice(reply.engine, delta, None), usage);
    if reply.engine == Engine::Vllm {
        // Only here has vLLM no `token_ids` but says twice that it does not show the prompt.
        if let Some(choice) = chunk.pointer_mut("/choices/0").and_then(Value::as_object_mut) {
            choice.shift_remove("token_ids");
        }
        chunk["prompt_token_ids"] = Value::Null;
        chunk["prompt_text"] = Value::Null;
    }
    vec![sse(&chunk)]
}

pub(super) fn token(reply: &Reply, token: &str, said: &Generation) -> Bytes {
    let delta = match reply.engine {
        Engine::Sglang => json!({"role": null, "content": token, "reasoning_content": null, "tool_calls": null}),
        Engine::Ollama if said.said() == 1 => json!({"role": "assistant", "content": token}),
        _ => json!({"content": token}),
    };
    // vLLM ends with its last token, the others with an event of its own.
    let last = reply.engine == Engine::Vllm && said.is_complete();
    let finish = last.then(|| said.finish().name());
    let usage = reply.continuous_usage.then(|| counted(reply.prompt_tokens, said.said(), true));
    let mut chunk = chunk(reply, &choice(reply.engine, delta, finish), usage);
    if last && !reply.include_usage {
        chunk["system_fingerprint"] = json!(VLLM_FINGERPRINT);
    }
    sse(&chunk)
}

pub(super) fn closing(reply: &Reply, said: &Generation) -> Vec<Bytes> {
    let mut events = Vec::new();
    if reply.engine != Engine::Vllm {
        let delta = match reply.engine {
            Engine::Sglang => json!({"role": null, "content": null, "reasoning_content": null, "tool_calls": null}),
            _ => json!({}),
        };
        let mut chunk = chunk(reply, &choice(reply.engine, delta, Some(said.finish().name())), None);
        if reply.engine == Engine::LlamaCpp && !reply.include_usage {
            chunk["timings"] = timings(reply, said);
        }
        events.push(sse(&chunk));
    }
    if reply.include_usage {
        let mut chunk = chunk(reply, &json!([]), Some(usage(reply, said, false)));
        match reply.engine {
            Engine::Vllm => chunk["system_fingerprint"] = json!(VLLM_FINGERPRINT),
            Engine::LlamaCpp => chunk["timings"] = timings(reply, said),
            _ => {}
        }
        events.push(sse(&chunk));
    }
    events.push(done());
    events
}

/// The list of the one choice of a chunk.
fn choice(engine: Engine, delta: Value, finish: Option<&str>) -> Value {
    let mut choice = match engine {
        Engine::LlamaCpp => json!({"finish_reason": finish, "index": 0, "delta": delta}),
        Engine::Ollama => json!({"index": 0, "delta": delta, "finish_reason": finish}),
        _ => json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}),
    };
    match engine {
        Engine::Vllm => {
            if finish.is_some() {
                choice["stop_reason"] = Value::Null;
            }
            choice["token_ids"] = Value::Null;
        }
        Engine::Sglang => choice["matched_stop"] = Value::Null,
        _ => {}
    }
    json!([choice])
}

fn chunk(reply: &Reply, choices: &Value, usage: Option<Value>) -> Value {
    const OBJECT: &str = "chat.completion.chunk";
    let id = if reply.engine == Engine::Sglang { reply.id.clone() } else { format!("chatcmpl-{}", reply.id) };
    let (created, model) = (reply.created, &reply.model);
    let mut chunk = match reply.engine {
        Engine::LlamaCpp => json!({"choices": choices, "created": created, "id": id, "model": model,
            "system_fingerprint": LLAMA_CPP_FINGERPRINT, "object": OBJECT}),
        Engine::Ollama => json!({"id": id, "object": OBJECT, "created": created, "model": model,
            "system_fingerprint": "fp_ollama", "choices": choices}),
        Engine::OpenAi => json!({"id": id, "object": OBJECT, "created": created, "model": model,
            "service_tier": "default", "system_fingerprint": null, "choices": choices}),
        Engine::Vllm | Engine::Sglang => {
            json!({"id": id, "object": OBJECT, "created": created, "model": model, "choices": choices})
        }
    };
    match (usage, reply.engine) {
        (Some(usage), _) => chunk["usage"] = usage,
        // Present in every chunk, as a null.
        (None, Engine::Sglang) => chunk["usage"] = Value::Null,
        (None, Engine::OpenAi) if reply.include_usage => chunk["usage"] = Value::Null,
        _ => {}
    }
    chunk
}

/// What was used; `whole` for an answer in one piece, which says more.
pub(super) fn usage(reply: &Reply, said: &Generation, whole: bool) -> Value {
    let (prompt, completion, total) = (reply.prompt_tokens, said.said(), reply.total_tokens(said));
    match reply.engine {
        Engine::Vllm => {
            let mut usage = counted(prompt, completion, whole);
            if whole && let Some(usage) = usage.as_object_mut() {
                insert_before_last(usage, "prompt_tokens_details", Value::Null);
            }
            usage
        }
        Engine::LlamaCpp => json!({"completion_tokens": completion, "prompt_tokens": prompt, "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": 0}}),
        Engine::Sglang => json!({"prompt_tokens": prompt, "total_tokens": total, "completion_tokens": completion,
            "prompt_tokens_details": null, "reasoning_tokens": 0}),
        Engine::Ollama => json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}),
        Engine::OpenAi => json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0,
                "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}}),
    }
}

/// vLLM's counts, with the details that all but the last event of a stream carry.
fn counted(prompt: u64, completion: u64, detailed: bool) -> Value {
    let mut usage =
        json!({"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion});
    if detailed {
        usage["completion_tokens_details"] = Value::Null;
    }
    usage
}

fn insert_before_last(object: &mut Map<String, Value>, name: &str, value: Value) {
    object.shift_insert(object.len() - 1, name.to_owned(), value);
}
