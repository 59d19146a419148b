//! Chats of which no two are alike, and answers of simulated servers that tell whose they are.
//!
//! A simulated server answers with the number of bytes it received: an answer that belongs to another request, or that
//! two answers were joined to, or to a request that lacks a part, is noticed.

use fastrand::Rng;
use serde_json::Value;

use super::bodies::{MODEL, as_native, base64_text};

/// A chat, and what is said to it by whoever received every byte of it.
pub struct Asked {
    pub body: String,
    /// What the answer says.
    pub answer: String,
}

impl Asked {
    /// A chat with these words, of a length by chance; a fifth of them with images of up to so many bytes.
    pub fn by_chance(rng: &mut Rng, is_stream: bool, words: &str, image_bytes: usize) -> Self {
        let images = if rng.u8(..5) == 0 { rng.usize(1..3) } else { 0 };
        let text = format!(r#"{{"type":"text","text":"{words}{}"}}"#, "x".repeat(rng.usize(1..4096)));
        let image = |_| {
            let base64 = base64_text(4 * rng.usize(1_000..image_bytes / 4));
            format!(r#",{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{base64}"}}}}"#)
        };
        let images_text: String = (0..images).map(image).collect();
        let content = format!("[{text}{images_text}]");
        let body =
            format!(r#"{{"stream":{is_stream},"messages":[{{"role":"user","content":{content}}}],"model":"{MODEL}"}}"#);
        let bytes = as_native(&body).len();
        Self { body, answer: format!("vllm received 1 message(s), {images} image(s), {bytes} body bytes") }
    }

    /// Fails where this is not the answer to it, from its first word to its last.
    pub fn is_answered_by(&self, answer: &Value) {
        assert_eq!(answer["model"], MODEL);
        assert_eq!(answer["choices"][0]["message"]["content"], self.answer);
    }

    /// The same of a stream that ended well.
    pub fn is_answered_by_events(&self, stream: &str) {
        let events = stream.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|event| *event != "[DONE]");
        let words = events.map(|event| {
            let event: Value = serde_json::from_str(event).expect("an event of JSON");
            assert_eq!(event["model"], MODEL);
            event["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
        });
        assert_eq!(words.collect::<String>(), self.answer);
    }
}
