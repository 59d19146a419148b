//! Text completions, the older API: as chat, with `text` where that has a message.

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::engine::Engine;
use super::super::generation::Generation;
use super::chat::{LLAMA_CPP_FINGERPRINT, VLLM_FINGERPRINT, usage};
use super::{Reply, done, sse, timings};

pub(super) fn whole(reply: &Reply, said: &Generation) -> Value {
    let finish = Some(said.finish().name());
    let mut answer = chunk(reply, &json!([choice(reply.engine, said.text(), finish)]));
    answer["usage"] = usage(reply, said, true);
    match reply.engine {
        Engine::Vllm => {
            answer["service_tier"] = Value::Null;
            answer["system_fingerprint"] = json!(VLLM_FINGERPRINT);
            answer["kv_transfer_params"] = Value::Null;
        }
        Engine::LlamaCpp => answer["timings"] = timings(reply, said),
        _ => {}
    }
    answer
}

pub(super) fn token(reply: &Reply, token: &str, said: &Generation) -> Bytes {
    let last = reply.engine == Engine::Vllm && said.is_complete();
    let finish = last.then(|| said.finish().name());
    let mut chunk = chunk(reply, &json!([choice(reply.engine, token, finish)]));
    match reply.engine {
        Engine::Vllm if last && !reply.include_usage => chunk["system_fingerprint"] = json!(VLLM_FINGERPRINT),
        Engine::Sglang => chunk["usage"] = Value::Null,
        // Ollama fills in zeros until it knows.
        Engine::Ollama if reply.include_usage => {
            chunk["usage"] = json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0});
        }
        _ => {}
    }
    sse(&chunk)
}

pub(super) fn closing(reply: &Reply, said: &Generation) -> Vec<Bytes> {
    let mut events = Vec::new();
    let mut used = reply.include_usage;
    if reply.engine != Engine::Vllm {
        let mut last = chunk(reply, &json!([choice(reply.engine, "", Some(said.finish().name()))]));
        if reply.engine == Engine::LlamaCpp {
            // Here llama.cpp has no event of its own for the usage.
            last["usage"] = usage(reply, said, false);
            last["timings"] = timings(reply, said);
            used = false;
        }
        events.push(sse(&last));
    }
    if used {
        let mut last = chunk(reply, &json!([]));
        last["usage"] = usage(reply, said, false);
        if reply.engine == Engine::Vllm {
            last["system_fingerprint"] = json!(VLLM_FINGERPRINT);
        }
        events.push(sse(&last));
    }
    events.push(done());
    events
}

fn choice(engine: Engine, text: &str, finish: Option<&str>) -> Value {
    match engine {
        Engine::Vllm => json!({"index": 0, "text": text, "logprobs": null, "finish_reason": finish,
            "stop_reason": null, "prompt_token_ids": null, "token_ids": null}),
        Engine::LlamaCpp => json!({"text": text, "index": 0, "logprobs": null, "finish_reason": finish}),
        Engine::Sglang => {
            json!({"index": 0, "text": text, "logprobs": null, "finish_reason": finish, "matched_stop": null})
        }
        Engine::Ollama => json!({"text": text, "index": 0, "finish_reason": finish}),
        Engine::OpenAi => json!({"text": text, "index": 0, "logprobs": null, "finish_reason": finish}),
    }
}

fn chunk(reply: &Reply, choices: &Value) -> Value {
    const OBJECT: &str = "text_completion";
    let (created, model) = (reply.created, &reply.model);
    match reply.engine {
        Engine::LlamaCpp => json!({"choices": choices, "created": created, "model": model,
            "system_fingerprint": LLAMA_CPP_FINGERPRINT, "object": OBJECT, "id": format!("chatcmpl-{}", reply.id)}),
        Engine::Sglang => {
            json!({"id": reply.id, "object": OBJECT, "created": created, "model": model, "choices": choices})
        }
        Engine::Ollama => json!({"id": format!("cmpl-{}", reply.id), "object": OBJECT, "created": created,
            "choices": choices, "model": model, "system_fingerprint": "fp_ollama"}),
        Engine::Vllm | Engine::OpenAi => json!({"id": format!("cmpl-{}", reply.id), "object": OBJECT,
            "created": created, "model": model, "choices": choices}),
    }
}
