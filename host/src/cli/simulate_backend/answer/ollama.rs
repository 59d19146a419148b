//! Ollama's own API: lines of JSON, the last of which says `done` and what it took.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::generation::Generation;
use super::{Dialect, Reply, ndjson};

/// The one answer to `"stream": false`: the last line, with everything that was said in it.
pub(super) fn whole(reply: &Reply, said: &Generation) -> Value {
    last(reply, said, said.text())
}

pub(super) fn token(reply: &Reply, token: &str) -> Bytes {
    ndjson(&line(reply, token, false))
}

pub(super) fn last_line(reply: &Reply, said: &Generation) -> Bytes {
    ndjson(&last(reply, said, ""))
}

pub(super) fn loaded(reply: &Reply) -> Value {
    let mut line = line(reply, "", true);
    line["done_reason"] = json!("load");
    line
}

fn last(reply: &Reply, said: &Generation, text: &str) -> Value {
    let (total, running) = said.elapsed();
    let mut line = line(reply, text, true);
    line["done_reason"] = json!(said.finish().name());
    if reply.dialect == Dialect::OllamaGenerate {
        line["context"] = json!([1, 2, 3]);
    }
    line["total_duration"] = nanos(total);
    line["load_duration"] = nanos(total.saturating_sub(running));
    line["prompt_eval_count"] = json!(reply.prompt_tokens);
    line["prompt_eval_duration"] = nanos(running / 10);
    line["eval_count"] = json!(said.said());
    line["eval_duration"] = nanos(running - running / 10);
    line
}

fn line(reply: &Reply, text: &str, done: bool) -> Value {
    let created_at = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
    match reply.dialect {
        Dialect::OllamaGenerate => {
            json!({"model": reply.model, "created_at": created_at, "response": text, "done": done})
        }
        _ => json!({"model": reply.model, "created_at": created_at,
            "message": {"role": "assistant", "content": text}, "done": done}),
    }
}

fn nanos(duration: Duration) -> Value {
    json!(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}
