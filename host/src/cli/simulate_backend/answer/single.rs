//! Answers that are no generated text: vectors, ranks, scores, token lists, pictures, transcripts, sound.
//!
//! All of it follows from the request alone, so that the same text has the same vector on every simulated engine.

use serde_json::{Value, json};

use super::super::asked::Asked;
use super::super::engine::Engine;
use super::super::routes::Work;
use super::super::unix_seconds;
use super::random_id;

/// What such an answer needs to know.
pub(in super::super) struct Other<'a> {
    pub engine: Engine,
    pub model: &'a str,
    pub asked: &'a Asked,
}

/// Length of a vector when the request asks for none.
const DIMENSIONS: usize = 8;
/// Longer vectors are for nobody.
const DIMENSION_LIMIT: usize = 4096;
/// Token lists end here.
const TOKEN_LIMIT: u64 = 100_000;

/// Embeddings, ranks and scores.
pub(in super::super) fn vectors_and_ranks(work: Work, other: &Other<'_>) -> Value {
    match work {
        Work::Embeddings => embeddings(other),
        Work::OllamaEmbed => json!({"model": other.model, "embeddings": vectors(other.asked),
            "total_duration": 1_000_000, "load_duration": 100_000, "prompt_eval_count": other.asked.prompt_tokens}),
        Work::Rerank => ranks(other),
        _ => scores(other),
    }
}

fn embeddings(other: &Other<'_>) -> Value {
    let item = |(index, vector): (usize, Vec<f32>)| {
        let embedding = if other.asked.base64 { json!(floats_as_base64(&vector)) } else { json!(vector) };
        match other.engine {
            Engine::Vllm => json!({"index": index, "object": "embedding", "embedding": embedding}),
            Engine::LlamaCpp => json!({"embedding": embedding, "index": index, "object": "embedding"}),
            _ => json!({"object": "embedding", "embedding": embedding, "index": index}),
        }
    };
    let items: Vec<_> = vectors(other.asked).into_iter().enumerate().map(item).collect();
    match other.engine {
        Engine::Vllm => json!({"id": format!("embd-{}", random_id(16)), "object": "list", "created": unix_seconds(),
            "model": other.model, "data": items, "usage": vllm_usage(other.asked)}),
        Engine::LlamaCpp => {
            json!({"model": other.model, "object": "list", "usage": short_usage(other.asked), "data": items})
        }
        _ => json!({"object": "list", "data": items, "model": other.model, "usage": short_usage(other.asked)}),
    }
}

fn ranks(other: &Other<'_>) -> Value {
    let texts = &other.asked.texts;
    let mut ranked: Vec<(usize, f64)> = texts.iter().map(|text| score(text)).enumerate().collect();
    ranked.sort_by(|one, two| two.1.total_cmp(&one.1));
    let text = |index: usize| texts.get(index).map_or("", String::as_str);
    match other.engine {
        Engine::Sglang => ranked
            .iter()
            .map(|(index, score)| json!({"score": score, "document": text(*index), "index": index, "meta_info": {}}))
            .collect(),
        Engine::LlamaCpp => json!({"model": other.model, "object": "list", "usage": short_usage(other.asked),
            "results": ranked.iter().map(|(index, score)| json!({"index": index, "relevance_score": score}))
                .collect::<Vec<_>>()}),
        _ => json!({"id": format!("score-{}", random_id(16)), "model": other.model, "usage": short_usage(other.asked),
            "results": ranked.iter().map(|(index, score)| json!({"index": index,
                "document": {"text": text(*index), "multi_modal": null}, "relevance_score": score}))
                .collect::<Vec<_>>()}),
    }
}

fn scores(other: &Other<'_>) -> Value {
    let scores: Vec<_> = other.asked.texts.iter().map(|text| score(text)).collect();
    if other.engine == Engine::Sglang {
        return json!({"scores": scores, "model": other.model, "usage": null, "object": "scoring"});
    }
    let items =
        scores.iter().enumerate().map(|(index, score)| json!({"index": index, "object": "score", "score": score}));
    json!({"id": format!("score-{}", random_id(16)), "object": "list", "created": unix_seconds(), "model": other.model,
        "data": items.collect::<Vec<_>>(), "usage": vllm_usage(other.asked)})
}

/// A list of tokens, or how many there are.
pub(in super::super) fn tokenized(work: Work, other: &Other<'_>) -> Value {
    let count = other.asked.prompt_tokens;
    let tokens: Vec<u64> = (0..count.min(TOKEN_LIMIT)).collect();
    match (work, other.engine) {
        (Work::CountTokens, _) => json!({"input_tokens": count}),
        (_, Engine::LlamaCpp) => json!({"tokens": tokens}),
        (_, Engine::Sglang) => json!({"tokens": tokens, "count": count, "max_model_len": 131_072}),
        _ => json!({"count": count, "max_model_len": 131_072, "tokens": tokens, "token_strs": null}),
    }
}

fn vllm_usage(asked: &Asked) -> Value {
    json!({"prompt_tokens": asked.prompt_tokens, "total_tokens": asked.prompt_tokens, "completion_tokens": 0,
        "prompt_tokens_details": null, "completion_tokens_details": null})
}

fn short_usage(asked: &Asked) -> Value {
    json!({"prompt_tokens": asked.prompt_tokens, "total_tokens": asked.prompt_tokens})
}

fn vectors(asked: &Asked) -> Vec<Vec<f32>> {
    let dimensions = asked.dimensions.unwrap_or(DIMENSIONS).clamp(1, DIMENSION_LIMIT);
    asked.texts.iter().map(|text| vector(text, dimensions)).collect()
}

/// A vector of length 1 that is the same for the same text.
fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed(text));
    let raw: Vec<f32> = (0..dimensions).map(|_| random.f32() - 0.5).collect();
    let length = raw.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    raw.iter().map(|x| x / length).collect()
}

fn score(text: &str) -> f64 {
    fastrand::Rng::with_seed(seed(text)).f64()
}

/// FNV-1a: small, and the same on every machine.
fn seed(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Little-endian floats as base64, the form OpenAI's SDK asks for.
fn floats_as_base64(floats: &[f32]) -> String {
    let bytes: Vec<u8> = floats.iter().flat_map(|float| float.to_le_bytes()).collect();
    base64(&bytes)
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32| ALPHABET.get(bits as usize & 63).map_or('A', |digit| char::from(*digit));
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            text.push(if place <= chunk.len() { digit(bits >> (18 - 6 * place)) } else { '=' });
        }
    }
    text
}

/// As many pictures as were asked for, all of the same pixel.
pub(in super::super) fn pictures(other: &Other<'_>) -> Value {
    let copies = other.asked.copies.clamp(1, PICTURE_LIMIT);
    let pictures: Vec<_> = std::iter::repeat_with(|| json!({"b64_json": ONE_PIXEL_PNG})).take(copies).collect();
    json!({"created": unix_seconds(), "data": pictures})
}

const ONE_PIXEL_PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
/// OpenAI's own limit.
const PICTURE_LIMIT: usize = 10;

/// What was heard, in vLLM's shape.
pub(in super::super) fn transcript(text: &str) -> Value {
    json!({"text": text, "usage": {"type": "duration", "seconds": 1}})
}

/// Silence that lasts as long as the text would: 8-bit mono at 8 kHz.
pub(in super::super) fn silent_wav(text: &str) -> Vec<u8> {
    const RATE: u32 = 8000;
    // Fifteen characters a second, a minute at most.
    let samples = u32::try_from(text.len()).unwrap_or(u32::MAX).saturating_mul(RATE / 15).min(60 * RATE);
    let mut wav = Vec::with_capacity(44 + samples as usize);
    wav.extend_from_slice(b"RIFF");
    wav.extend_from_slice(&(36 + samples).to_le_bytes());
    wav.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    wav.extend_from_slice(&RATE.to_le_bytes());
    wav.extend_from_slice(&RATE.to_le_bytes());
    wav.extend_from_slice(b"\x01\0\x08\0data");
    wav.extend_from_slice(&samples.to_le_bytes());
    wav.resize(44 + samples as usize, 0x80);
    wav
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_base64() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[test]
    fn the_same_text_has_the_same_vector_of_length_one() {
        let vector_of = |text| vector(text, 16);
        assert_eq!(vector_of("a"), vector_of("a"));
        assert_ne!(vector_of("a"), vector_of("b"));
        assert!((vector_of("a").iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn a_wav_says_its_own_length() {
        let wav = silent_wav("hello there");
        assert_eq!(u32::from_le_bytes([wav[40], wav[41], wav[42], wav[43]]) as usize, wav.len() - 44);
        assert_eq!(u32::from_le_bytes([wav[4], wav[5], wav[6], wav[7]]) as usize, wav.len() - 8);
    }
}
