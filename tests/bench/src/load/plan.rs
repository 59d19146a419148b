//! What load to make, and the bytes of its requests.

use serde::{Deserialize, Serialize};

/// A base64 image says nothing; this is as good as one.
const PIXELS: &str = "iVBORw0KGgoAAAANSUhEUgAABAAAAAQACAIAAADwf7zUAAAgAElEQVR4nOzde3xU";
const QUESTION: &str = "Describe in one sentence what a reverse proxy does, for a reader who knows HTTP.";

/// One load, from its beginning to its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub target: String,
    /// Asked for, and expected in every answer.
    pub model: String,
    pub connections: usize,
    /// Counted.
    pub seconds: f64,
    /// Before that.
    pub warm_seconds: f64,
    pub kind: Kind,
}

/// What a connection does.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// Small chats, one after the other.
    Chat,
    /// Small chats at a fixed rate, over all connections.
    Rate { per_second: f64 },
    /// Chats with an image of so many bytes, one after the other.
    Vision { bytes: usize },
    /// Small chats, each on a new connection.
    Connects,
    /// Streams of so many chunks, one after the other. `opens_first`: all are open before counting begins.
    Streams { events: u64, pace_us: u64, opens_first: bool },
}

impl Plan {
    /// One whole request. What the mock backend heeds stands at the beginning of the body.
    pub fn request(&self) -> Vec<u8> {
        let model = &self.model;
        let knobs = match self.kind {
            Kind::Streams { events, pace_us, .. } => {
                format!("\"stream\":true,\"max_tokens\":{events},\"pace_us\":{pace_us}")
            }
            _ => "\"stream\":false,\"max_tokens\":64".to_owned(),
        };
        let content = match self.kind {
            Kind::Vision { bytes } => format!(
                "[{{\"type\":\"text\",\"text\":\"What is in this picture?\"}},{{\"type\":\"image_url\",\"image_url\":\
                 {{\"url\":\"data:image/png;base64,{}\"}}}}]",
                PIXELS.repeat(bytes / PIXELS.len())
            ),
            _ => format!("\"{QUESTION}\""),
        };
        let body = format!(
            "{{\"model\":\"{model}\",{knobs},\"temperature\":0.7,\"messages\":[{{\"role\":\"system\",\"content\":\
             \"You are a helpful assistant.\"}},{{\"role\":\"user\",\"content\":{content}}}]}}"
        );
        let close = if self.is_new_each_time() { "connection: close\r\n" } else { "" };
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\naccept: */*\r\n\
             {close}content-length: {}\r\n\r\n{body}",
            self.target,
            body.len()
        )
        .into_bytes()
    }

    pub fn is_new_each_time(&self) -> bool {
        matches!(self.kind, Kind::Connects)
    }
}
