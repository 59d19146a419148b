//! OpenAI's Responses API: named events that count themselves, the model's name inside `response`, no `[DONE]`.
//!
//! llama.cpp writes less into each than the others do.

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::engine::Engine;
use super::super::generation::Generation;
use super::super::speech::Finish;
use super::super::unix_seconds;
use super::{Reply, event};

/// Events before the first delta, which is therefore number 4.
const OPENING_EVENTS: u64 = 4;

pub(super) fn whole(reply: &Reply, said: &Generation) -> Value {
    let output = json!([item(reply, "completed", &json!([part(reply, said.text())]))]);
    if reply.engine == Engine::LlamaCpp {
        return json!({"completed_at": unix_seconds(), "created_at": reply.created, "id": format!("resp_{}", reply.id),
            "model": reply.model, "object": "response", "output": output, "status": "completed",
            "usage": usage(reply, said)});
    }
    response(reply, &output, Some(said))
}

pub(super) fn opening(reply: &Reply) -> Vec<Bytes> {
    let response = response(reply, &json!([]), None);
    let item = item(reply, "in_progress", &json!([]));
    vec![
        numbered(reply, 0, "response.created", json!({"response": response})),
        numbered(reply, 1, "response.in_progress", json!({"response": response})),
        numbered(reply, 2, "response.output_item.added", json!({"output_index": 0, "item": item})),
        numbered(reply, 3, "response.content_part.added", in_part(reply, "part", &part(reply, ""))),
    ]
}

pub(super) fn token(reply: &Reply, token: &str, said: &Generation) -> Bytes {
    let number = OPENING_EVENTS + said.said() - 1;
    numbered(reply, number, "response.output_text.delta", in_part(reply, "delta", &json!(token)))
}

pub(super) fn closing(reply: &Reply, said: &Generation) -> Vec<Bytes> {
    let part = part(reply, said.text());
    let item = item(reply, "completed", &json!([part]));
    let number = OPENING_EVENTS + said.said();
    let completed = json!({"response": response(reply, &json!([item]), Some(said))});
    vec![
        numbered(reply, number, "response.output_text.done", in_part(reply, "text", &json!(said.text()))),
        numbered(reply, number + 1, "response.content_part.done", in_part(reply, "part", &part)),
        numbered(reply, number + 2, "response.output_item.done", json!({"output_index": 0, "item": item})),
        // vLLM ends a cut answer with this event too, and says in its status that it is incomplete.
        numbered(reply, number + 3, "response.completed", completed),
    ]
}

/// An event with its name and, but for llama.cpp, its number in it.
fn numbered(reply: &Reply, number: u64, name: &str, mut data: Value) -> Bytes {
    if let Some(data) = data.as_object_mut() {
        data.shift_insert(0, "type".to_owned(), json!(name));
        if reply.engine == Engine::LlamaCpp {
            for unsaid in ["output_index", "content_index", "logprobs"] {
                data.shift_remove(unsaid);
            }
        } else {
            data.insert("sequence_number".to_owned(), json!(number));
        }
    }
    event(name, &data)
}

/// What an event about the one part of the one item says.
fn in_part(reply: &Reply, name: &str, value: &Value) -> Value {
    let mut data = json!({"content_index": 0, "item_id": reply.item_id, "output_index": 0});
    data[name] = value.clone();
    if name != "part" {
        data["logprobs"] = json!([]);
    }
    data
}

fn part(reply: &Reply, text: &str) -> Value {
    match reply.engine {
        Engine::LlamaCpp if text.is_empty() => json!({"type": "output_text", "text": ""}),
        _ => json!({"type": "output_text", "annotations": [], "logprobs": [], "text": text}),
    }
}

fn item(reply: &Reply, status: &str, content: &Value) -> Value {
    json!({"id": reply.item_id, "content": content, "role": "assistant", "status": status, "type": "message"})
}

fn response(reply: &Reply, output: &Value, said: Option<&Generation>) -> Value {
    let cut = said.is_some_and(|said| said.finish() == Finish::Length);
    let status = match said {
        None => "in_progress",
        // Ollama and llama.cpp call a cut answer complete.
        Some(_) if cut && matches!(reply.engine, Engine::Vllm | Engine::Sglang | Engine::OpenAi) => "incomplete",
        Some(_) => "completed",
    };
    let id = format!("resp_{}", reply.id);
    if reply.engine == Engine::LlamaCpp {
        return match said {
            None => json!({"id": id, "object": "response", "status": status}),
            Some(said) => json!({"id": id, "object": "response", "created_at": reply.created, "status": status,
                "model": reply.model, "output": output, "usage": usage(reply, said)}),
        };
    }
    let incomplete = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
    json!({
        "id": id, "created_at": reply.created, "incomplete_details": incomplete, "instructions": null,
        "metadata": null, "model": reply.model, "object": "response", "output": output,
        "parallel_tool_calls": true, "temperature": 1.0, "tool_choice": "none", "tools": [], "top_p": 1.0,
        "background": false, "max_output_tokens": reply.limit, "max_tool_calls": null, "previous_response_id": null,
        "prompt": null, "reasoning": null, "service_tier": "auto", "status": status, "text": null,
        "top_logprobs": null, "truncation": "disabled", "usage": said.map(|said| usage(reply, said)), "user": null,
    })
}

fn usage(reply: &Reply, said: &Generation) -> Value {
    let mut usage = json!({"input_tokens": reply.prompt_tokens, "output_tokens": said.said(),
        "total_tokens": reply.total_tokens(said), "input_tokens_details": {"cached_tokens": 0}});
    if reply.engine != Engine::LlamaCpp {
        usage["output_tokens_details"] = json!({"reasoning_tokens": 0});
    }
    usage
}
