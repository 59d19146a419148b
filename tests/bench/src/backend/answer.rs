//! What the mock backend answers, written once and sent many times.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::request::{Events, Path};
use crate::wire::now_ns;

/// Chunks of one stream before the others of an unpaced run have their turn.
const AT_ONCE: u64 = 16;
const SENTENCE: &str = "The picture shows a small red bicycle that leans on a white wall. ";
const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
    cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";

/// Answers under one model's name.
pub struct Answers {
    named: Vec<u8>,
    chat: Vec<u8>,
    models: Vec<u8>,
    /// A chunk is this, the time, and `event_end`.
    event_begin: String,
    event_end: &'static str,
    last_event: String,
}

impl Answers {
    pub fn new(model: &str) -> Self {
        let chat = json!({
            "id": "chatcmpl-bench", "object": "chat.completion", "created": 1_700_000_000, "model": model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": SENTENCE.repeat(5)},
                "logprobs": null, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 42, "completion_tokens": 64, "total_tokens": 106},
        });
        let models = json!({"object": "list", "data": [{"id": model, "object": "model", "created": 1_700_000_000,
            "owned_by": "vllm", "root": model, "max_model_len": 8192}]});
        let event = format!(
            "data: {{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\
             \"model\":\"{model}\",\"choices\":[{{\"index\":0,\"delta\":{{"
        );
        Self {
            named: format!("\"model\":\"{model}\"").into_bytes(),
            chat: whole("200 OK", "application/json", &chat.to_string()),
            models: whole("200 OK", "application/json", &models.to_string()),
            last_event: format!("{event}}},\"logprobs\":null,\"finish_reason\":\"stop\"}}]}}\n\ndata: [DONE]\n\n"),
            event_begin: format!("{event}\"content\":\""),
            event_end: "\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
        }
    }

    /// How a request for this model names it.
    pub fn named(&self) -> &[u8] {
        &self.named
    }

    pub fn chat(&self) -> &[u8] {
        &self.chat
    }

    /// The answer to anything but a chat.
    pub fn of(&self, path: Path, running: u32) -> Vec<u8> {
        match path {
            Path::Models => self.models.clone(),
            Path::Health => whole("200 OK", "application/json", ""),
            Path::Metrics => whole("200 OK", "text/plain; version=0.0.4", &load(running)),
            Path::Chat | Path::Unknown => whole("404 Not Found", "application/json", "{\"error\":\"unknown\"}"),
        }
    }

    /// One write a chunk, as engines do it.
    pub async fn stream(&self, stream: &mut TcpStream, events: Events) -> io::Result<()> {
        stream.write_all(STREAM_HEAD).await?;
        let mut clock = events.pace.map(clock);
        let mut chunk = Vec::with_capacity(512);
        for sent in 0..events.count {
            match &mut clock {
                Some(clock) if sent > 0 => drop(clock.tick().await),
                None if sent % AT_ONCE == AT_ONCE - 1 => tokio::task::yield_now().await,
                _ => {}
            }
            let now = now_ns().to_string();
            let length = self.event_begin.len() + now.len() + self.event_end.len();
            chunk.clear();
            write!(chunk, "{length:x}\r\n{}{now}{}\r\n", self.event_begin, self.event_end)?;
            stream.write_all(&chunk).await?;
        }
        let last = format!("{:x}\r\n{}\r\n0\r\n\r\n", self.last_event.len(), self.last_event);
        stream.write_all(last.as_bytes()).await
    }
}

fn clock(pace: Duration) -> tokio::time::Interval {
    let mut clock = interval_at(Instant::now() + pace, pace);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    clock
}

fn whole(status: &str, media_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: {media_type}\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

/// What a poller reads of vLLM's metrics.
fn load(running: u32) -> String {
    format!(
        "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{model_name=\"bench\"}} {running}.0\n\
         # TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{{model_name=\"bench\"}} 0.0\n\
         # TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{{model_name=\"bench\"}} 0.1\n"
    )
}
