//! What applications send and engines answer: the few documents that the whole suite speaks of.

use serde_json::{Value, json};

use super::{Answer, Request};

/// The public name that clients use.
pub const MODEL: &str = "qwen-vl";
/// What the backends call it, unless a test says otherwise.
pub const NATIVE: &str = "Qwen/Qwen2.5-VL-7B-Instruct";

pub const CHAT: &str = "/v1/chat/completions";
pub const MESSAGES: &str = "/v1/messages";
pub const RESPONSES: &str = "/v1/responses";

pub fn chat_body() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "hello"}]})
}

pub fn stream_body() -> Value {
    json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "hello"}]})
}

/// An answered chat, by a model of this name.
pub fn completion(model: &str) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1_795_345_817, "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}})
}

/// One event of a streamed chat.
pub fn delta(model: &str, content: &str) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_795_345_817, "model": model,
        "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": null}]})
}

/// A stream of these words, well ended.
pub fn stream_of<'a>(words: impl IntoIterator<Item = &'a str>) -> Answer {
    words.into_iter().fold(Answer::stream(), |answer, word| answer.event(&delta(NATIVE, word))).done()
}

/// A stream that sends one word, waits at the gate, then sends another and ends well.
pub fn stream_held_at(gate: &super::Gate) -> Answer {
    Answer::stream().event(&delta(NATIVE, "one")).hold(gate).event(&delta(NATIVE, "two")).done()
}

/// What a backend answers that no test scripted: the chat it was asked for, under the name it was asked by.
pub fn engine_answer(request: &Request) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let model = body["model"].as_str().unwrap_or(NATIVE);
    if body["stream"] == true {
        return ["o", "k"].iter().fold(Answer::stream(), |answer, word| answer.event(&delta(model, word))).done();
    }
    Answer::json(200, completion(model).to_string())
}

/// As many bytes of base64 text, the same every time, never the same twice in a row.
pub fn base64_text(bytes: usize) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ bytes as u64;
    let mut text = String::with_capacity(bytes);
    while text.len() < bytes {
        // xorshift64: cheap, and long enough that no two parts of an image are alike.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let letters = (0..10).map(|letter| LETTERS[(state >> (6 * letter)) as usize & 63] as char);
        text.extend(letters.take(bytes - text.len()));
    }
    text
}

/// A chat with these images inline, and the model named last: the worst place for whoever scans.
pub fn vision_body(images: &[String]) -> String {
    let part =
        |image: &String| format!(r#"{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{image}"}}}}"#);
    let parts = images.iter().map(part).collect::<Vec<_>>().join(",");
    let question = r#"{"type":"text","text":"what is this?"}"#;
    format!(r#"{{"messages":[{{"role":"user","content":[{question},{parts}]}}],"model":"{MODEL}"}}"#)
}

/// The same document as a backend must receive it: its own name in place of the public one, else no byte changed.
pub fn as_native(document: &str) -> String {
    assert_eq!(document.matches(&format!("\"{MODEL}\"")).count(), 1, "the name must stand there once");
    document.replace(&format!("\"{MODEL}\""), &format!("\"{NATIVE}\""))
}

/// A chat that a real engine answers with exactly so many tokens, the same ones every time.
pub fn chat_of(tokens: u32) -> Value {
    json!({"model": MODEL, "max_tokens": tokens, "ignore_eos": true, "temperature": 0,
        "messages": [{"role": "user", "content": "hello"}]})
}

/// The same, streamed and with its usage.
pub fn stream_of_tokens(tokens: u32) -> Value {
    let mut body = chat_of(tokens);
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    body
}

/// A chat about a picture that decoders take: 640 x 480 pixels of noise, 1.2 MB as text.
pub fn chat_about_a_picture(tokens: u32) -> Value {
    /// The head of such a BMP file; its length, 54 bytes, is one that base64 does not pad.
    const HEAD: &str = "Qk02EA4AAAAAADYAAAAoAAAAgAIAAOABAAABABgAAAAAAAAQDgATCwAAEwsAAAAAAAAAAAAA";
    let url = format!("data:image/bmp;base64,{HEAD}{}", base64_text(640 * 480 * 4));
    let mut body = chat_of(tokens);
    body["messages"][0]["content"] =
        json!([{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": url}}]);
    body
}
