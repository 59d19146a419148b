//! What clients do: a plan made before, the same for every contender, and its requests sent when their time has come.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;

use crate::scenario::{BATCH_COST_MICROS, BURST_EVERY_S, BURST_S, FIRST_TOKEN_MS, Gpu, IMAGE_TOKENS, LONG, Load};

/// The model that every server serves under the same name: not everybody can translate.
pub const MODEL: &str = "model";

/// A request to come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Planned {
    /// Since the beginning.
    pub at: Duration,
    pub prompt_tokens: u32,
    pub images: u32,
    pub tokens: u32,
}

impl Planned {
    /// Tokens of a KV-cache that it takes to its end, as the simulated engines count them.
    pub fn kv_tokens(&self) -> u64 {
        u64::from(self.prompt_tokens + self.images * IMAGE_TOKENS + self.tokens)
    }
}

/// How a request went, in microseconds since 1970.
#[derive(Debug, Clone)]
pub struct Asked {
    pub id: String,
    pub kv_tokens: u64,
    pub sent: u64,
    /// First byte of the answer's body.
    pub first: Option<u64>,
    pub ended: u64,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Complete,
    /// An answer of another status than 200, or none at all.
    Failed,
    /// It had begun.
    Cut,
}

/// Requests a second that a fleet serves with every slot taken.
pub fn capacity(load: Load, gpus: &[Gpu]) -> f64 {
    let tokens = mean(load.tokens) * 0.9 + f64::from(load.tokens.1 * LONG) * 0.1;
    let prompt = mean(load.prompt_tokens) + load.with_images * 2.0 * f64::from(IMAGE_TOKENS);
    let served = gpus.iter().map(|gpu| {
        let others = (gpu.slots - 1) as f64;
        let step = f64::from(gpu.interval_ms) / 1e3 + f64::from(BATCH_COST_MICROS) / 1e6 * others;
        let reading = prompt / f64::from(gpu.prefill_rate);
        gpu.slots as f64 / (f64::from(FIRST_TOKEN_MS) / 1e3 + reading + tokens * step)
    });
    served.sum()
}

fn mean((least, most): (u32, u32)) -> f64 {
    f64::from(least + most) / 2.0
}

/// The requests of so many seconds, in the order they come.
pub fn plan(load: Load, gpus: &[Gpu], seconds: f64, seed: u64) -> Vec<Planned> {
    let mut random = fastrand::Rng::with_seed(seed);
    let rate = capacity(load, gpus) * load.share;
    let mut times = Vec::new();
    let mut at = 0.0;
    while at < seconds {
        times.push(at);
        at += -(1.0 - random.f64()).ln() / (rate * (1.0 - load.in_bursts));
    }
    let burst = (rate * load.in_bursts * BURST_EVERY_S).round() as usize;
    let mut at = BURST_EVERY_S / 2.0;
    while burst > 0 && at < seconds {
        times.extend((0..burst).map(|index| at + BURST_S * index as f64 / burst as f64));
        at += BURST_EVERY_S;
    }
    times.sort_by(f64::total_cmp);
    let planned = times.into_iter().map(|at| Planned {
        at: Duration::from_secs_f64(at),
        prompt_tokens: random.u32(load.prompt_tokens.0..=load.prompt_tokens.1),
        images: if random.f64() < load.with_images { random.u32(1..=3) } else { 0 },
        tokens: if random.f64() < 0.1 { load.tokens.1 * LONG } else { random.u32(load.tokens.0..=load.tokens.1) },
    });
    planned.collect()
}

/// Bytes of an image, as many as a photograph of half a megapixel.
const IMAGE_BYTES: usize = 60_000;

fn body(planned: &Planned) -> Bytes {
    // Four characters are a token to the simulated engines.
    let text = "word".repeat(planned.prompt_tokens as usize);
    let image = || {
        json!({"type": "image_url", "image_url": {"url": format!("data:image/jpeg;base64,{}",
        "QUJD".repeat(IMAGE_BYTES / 3))}})
    };
    let mut content = vec![json!({"type": "text", "text": text})];
    content.extend(std::iter::repeat_with(image).take(planned.images as usize));
    let messages = json!([{"role": "user", "content": content}]);
    json!({"model": MODEL, "stream": true, "max_tokens": planned.tokens, "messages": messages}).to_string().into()
}

/// Sends one request on a connection of its own and reads its answer.
pub async fn ask(to: SocketAddr, id: String, planned: Planned) -> Asked {
    let body = body(&planned);
    let mut asked =
        Asked { id, kv_tokens: planned.kv_tokens(), sent: now(), first: None, ended: 0, outcome: Outcome::Failed };
    let whole = exchange(to, &mut asked, body).await;
    asked.outcome = match whole {
        Ok(true) => Outcome::Complete,
        _ if asked.first.is_some() => Outcome::Cut,
        _ => Outcome::Failed,
    };
    asked.ended = now();
    asked
}

/// Whether the answer came to its end.
async fn exchange(to: SocketAddr, asked: &mut Asked, body: Bytes) -> anyhow::Result<bool> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::post("/v1/chat/completions")
        .header("host", to.to_string())
        .header("content-type", "application/json")
        .header("x-request-id", &asked.id)
        .body(Full::new(body))?;
    let response = sender.send_request(request).await?;
    anyhow::ensure!(response.status() == 200, "answered {}", response.status());
    let mut answer = response.into_body();
    let mut end = Vec::new();
    while let Some(frame) = answer.frame().await {
        let Ok(bytes) = frame?.into_data() else { continue };
        asked.first.get_or_insert_with(now);
        end.extend_from_slice(&bytes);
        let old = end.len().saturating_sub(DONE.len() + 4);
        end.drain(..old);
    }
    connection.abort();
    Ok(end.windows(DONE.len()).any(|window| window == DONE))
}

/// What an OpenAI stream ends with, when it ends as it should.
const DONE: &[u8] = b"[DONE]";

/// Asks a server something that is no load: `GET`, or `POST` where there is a body.
pub async fn call(to: SocketAddr, path: &str, body: Option<String>) -> anyhow::Result<Bytes> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let method = if body.is_some() { "POST" } else { "GET" };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", to.to_string())
        .body(Full::new(Bytes::from(body.unwrap_or_default())))?;
    let response = sender.send_request(request).await?;
    anyhow::ensure!(response.status().is_success(), "{path} answered {}", response.status());
    let bytes = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok(bytes)
}

/// Microseconds since 1970: the one clock that servers and clients share.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: Gpu = Gpu { engine: "vllm", slots: 4, interval_ms: 20, prefill_rate: 40_000, kv_tokens: None };
    const LOAD: Load =
        Load { share: 0.8, in_bursts: 0.5, with_images: 0.5, prompt_tokens: (50, 800), tokens: (10, 40) };

    #[test]
    fn a_plan_is_the_share_it_says_in_order_and_repeatable() {
        let planned = plan(LOAD, &[GPU; 8], 60.0, 7);
        let wanted = 60.0 * 0.8 * capacity(LOAD, &[GPU; 8]);
        assert!((planned.len() as f64 / wanted - 1.0).abs() < 0.1, "{} of {wanted}", planned.len());
        assert!(planned.is_sorted_by_key(|planned| planned.at));
        assert_eq!(planned, plan(LOAD, &[GPU; 8], 60.0, 7));
        let with_images = planned.iter().filter(|planned| planned.images > 0).count();
        assert!((0.4..0.6).contains(&(with_images as f64 / planned.len() as f64)));
    }
}
