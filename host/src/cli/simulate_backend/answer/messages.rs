//! Anthropic's Messages API: named events, the model's name inside `message_start`, no `[DONE]`.

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::engine::Engine;
use super::super::generation::Generation;
use super::super::speech::Finish;
use super::{Reply, event};

pub(super) fn whole(reply: &Reply, said: &Generation) -> Value {
    let mut message = message(reply, &json!([{"type": "text", "text": said.text()}]), json!(stop_reason(said)));
    message["usage"] = usage(reply, said.said());
    if matches!(reply.engine, Engine::Vllm | Engine::Ollama)
        && let Some(message) = message.as_object_mut()
    {
        message.shift_remove("stop_sequence");
    }
    message
}

pub(super) fn opening(reply: &Reply) -> Vec<Bytes> {
    let start = json!({"type": "message_start", "message": message(reply, &json!([]), Value::Null)});
    let block = json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}});
    vec![event("message_start", &start), event("content_block_start", &block)]
}

pub(super) fn token(reply: &Reply, token: &str) -> Bytes {
    let delta = json!({"type": "text_delta", "text": token});
    let data = match reply.engine {
        Engine::Vllm => json!({"type": "content_block_delta", "delta": delta, "index": 0}),
        _ => json!({"type": "content_block_delta", "index": 0, "delta": delta}),
    };
    event("content_block_delta", &data)
}

pub(super) fn closing(reply: &Reply, said: &Generation) -> Vec<Bytes> {
    let usage = match reply.engine {
        Engine::LlamaCpp => json!({"output_tokens": said.said()}),
        _ => usage(reply, said.said()),
    };
    let delta = json!({"type": "message_delta",
        "delta": {"stop_reason": stop_reason(said), "stop_sequence": null}, "usage": usage});
    vec![
        event("content_block_stop", &json!({"type": "content_block_stop", "index": 0})),
        event("message_delta", &delta),
        event("message_stop", &json!({"type": "message_stop"})),
    ]
}

fn message(reply: &Reply, content: &Value, stop_reason: Value) -> Value {
    let id = match reply.engine {
        Engine::Vllm | Engine::LlamaCpp => format!("chatcmpl-{}", reply.id),
        _ => format!("msg_{}", reply.id),
    };
    json!({"id": id, "type": "message", "role": "assistant", "content": content, "model": reply.model,
        "stop_reason": stop_reason, "stop_sequence": null, "usage": usage(reply, 0)})
}

fn usage(reply: &Reply, output: u64) -> Value {
    match reply.engine {
        Engine::LlamaCpp => {
            json!({"cache_read_input_tokens": 0, "input_tokens": reply.prompt_tokens, "output_tokens": output})
        }
        _ => json!({"input_tokens": reply.prompt_tokens, "output_tokens": output}),
    }
}

fn stop_reason(said: &Generation) -> &'static str {
    match said.finish() {
        Finish::Stop => "end_turn",
        Finish::Length => "max_tokens",
    }
}
