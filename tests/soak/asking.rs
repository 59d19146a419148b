//! What clients do meanwhile, and what each must see: every request has one end, and an answer that ends well is whole and
//! the client's own.
//!
//! The simulated servers answer with the number of bytes they received, and every request has a length of its own: what
//! belongs to another, or lacks a part, is noticed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use fastrand::Rng;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::support::*;

/// As many as the servers have slots, and a few that wait; by turns over HTTP/1.1 and HTTP/2.
const CLIENTS: u64 = 14;

/// How a request ended, for whoever made it.
#[derive(Clone, Copy, Debug)]
enum End {
    Whole,
    /// By an error in place of an answer.
    Refused,
    /// Visibly, in the middle.
    Broken,
    /// The client went away first.
    Left,
}

/// How many began, and how many ended in each way.
#[derive(Debug, Default)]
pub struct Tally {
    begun: AtomicUsize,
    ended: [AtomicUsize; 4],
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [whole, refused, broken, left] = self.ended.each_ref().map(|count| count.load(SeqCst));
        let begun = self.begun.load(SeqCst);
        write!(formatter, "{begun} requests: {whole} whole, {refused} refused, {broken} broken off, {left} left")
    }
}

/// Clients at work.
pub struct Asking {
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
    clients: JoinSet<()>,
}

impl Asking {
    pub fn begin(proxy: &Proxy, seed: u64) -> Self {
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let client = if number % 2 == 0 { Client::http1(proxy.listen) } else { Client::h2c(proxy.listen) };
            let mut rng = Rng::with_seed(seed.wrapping_add(number + 1));
            let (stop, tally) = (Arc::clone(&stop), Arc::clone(&tally));
            clients.spawn(async move {
                while !stop.load(SeqCst) {
                    tally.begun.fetch_add(1, SeqCst);
                    let end = exchange(&client, &mut rng).await;
                    tally.ended[end as usize].fetch_add(1, SeqCst);
                    if matches!(end, End::Refused) {
                        // Far less than any `Retry-After` asks for, and enough that refusals are not all there is.
                        sleep(Duration::from_millis(50)).await;
                    }
                }
            });
        }
        Self { stop, tally, clients }
    }

    /// Fails where a client saw what it must not see: it would not go on.
    pub fn goes_on(&mut self) {
        if let Some(client) = self.clients.try_join_next() {
            panic!("a client ended: {client:?}");
        }
    }

    /// Lets each client end what it does; what all of them saw.
    pub async fn ends_well(self) -> Arc<Tally> {
        self.stop.store(true, SeqCst);
        self.clients.join_all().await;
        let ended: usize = self.tally.ended.iter().map(|count| count.load(SeqCst)).sum();
        assert_eq!(ended, self.tally.begun.load(SeqCst), "a request without an end: {}", self.tally);
        assert!(self.tally.ended[End::Whole as usize].load(SeqCst) > 0, "nothing was answered: {}", self.tally);
        self.tally
    }
}

/// One request, and how it ended.
async fn exchange(client: &Client, rng: &mut Rng) -> End {
    let is_stream = rng.bool();
    let asked = Asked::by_chance(rng, is_stream);
    let exchange = async { if is_stream { stream(client, &asked).await } else { answer(client, &asked).await } };
    // Some are impatient, and leave wherever they stand.
    let patience = if rng.u8(..4) == 0 { Duration::from_millis(rng.u64(..40)) } else { Duration::MAX };
    timeout(patience, exchange).await.unwrap_or(End::Left)
}

/// A chat, and what is said to it by whoever received every byte of it.
struct Asked {
    body: String,
    answer: String,
}

impl Asked {
    fn by_chance(rng: &mut Rng, is_stream: bool) -> Self {
        let images = if rng.u8(..5) == 0 { rng.usize(1..3) } else { 0 };
        let text = format!(r#"{{"type":"text","text":"{}"}}"#, "x".repeat(rng.usize(1..4096)));
        let image = |_| {
            let base64 = base64_text(4 * rng.usize(1_000..400_000));
            format!(r#",{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{base64}"}}}}"#)
        };
        let images_text: String = (0..images).map(image).collect();
        let content = format!("[{text}{images_text}]");
        let body =
            format!(r#"{{"stream":{is_stream},"messages":[{{"role":"user","content":{content}}}],"model":"{MODEL}"}}"#);
        let bytes = as_native(&body).len();
        Self { body, answer: format!("vllm received 1 message(s), {images} image(s), {bytes} body bytes") }
    }
}

/// Asks for an answer as a whole.
async fn answer(client: &Client, asked: &Asked) -> End {
    match soon("an answer", try_whole(client.post(CHAT, asked.body.clone()))).await {
        Ok(reply) if reply.status == 200 => {
            let answer = reply.json();
            assert_eq!(answer["model"], MODEL);
            assert_eq!(answer["choices"][0]["message"]["content"], asked.answer);
            End::Whole
        }
        Ok(reply) => refused(&reply),
        Err(why) => broken(&why),
    }
}

/// Asks for an answer as a stream.
async fn stream(client: &Client, asked: &Asked) -> End {
    let response = match soon("a head", client.post(CHAT, asked.body.clone()).send()).await {
        Ok(response) => response,
        Err(why) => return broken(&why),
    };
    let (status, headers) = (response.status(), response.headers().clone());
    let (text, is_cut) = Events::from(response).rest_or_break().await;
    if status != 200 {
        return if is_cut { End::Broken } else { refused(&Reply { status, headers, body: text.into() }) };
    }
    let (is_done, is_error) = (text.ends_with("data: [DONE]\n\n"), text.contains("\"error\""));
    assert!(is_done || is_cut || is_error, "cut off without a word: {text}");
    assert!(!(is_done && is_cut), "ended well and broke off: {text}");
    if !is_done || is_error {
        return End::Broken;
    }
    assert_eq!(said(&text), asked.answer);
    End::Whole
}

/// What the events of a stream say, one after the other.
fn said(stream: &str) -> String {
    let events = stream.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|event| *event != "[DONE]");
    let words = events.map(|event| {
        let event: Value = serde_json::from_str(event).expect("an event of JSON");
        assert_eq!(event["model"], MODEL);
        event["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
    });
    words.collect()
}

fn refused(reply: &Reply) -> End {
    assert!(reply.json()["error"]["message"].is_string(), "not an error as clients know them: {reply:?}");
    End::Refused
}

fn broken(why: &reqwest::Error) -> End {
    assert!(!why.is_connect(), "the proxy is not there: {why:?}");
    End::Broken
}
