//! What clients do meanwhile, and what each must see: every request has one end, and an answer that ends well is whole and
//! the client's own.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::harm::BACKENDS_KEY;
use super::support::*;

/// As many as the servers have slots, and a few that wait; by turns over HTTP/1.1 and HTTP/2.
const CLIENTS: u64 = 14;
/// Bytes of an image, in base64: more than kernels hold for a connection, so that a fault meets some that are on their way.
const LARGEST_IMAGE: usize = 1_600_000;

/// What is asked about now and then, and the faults that it brings on.
const POISON: &str = "a prompt of the kind that kills";
pub const POISONED: &str = "poison=a prompt of the kind that kills";
pub const DEADLY: &str = "deadly=a prompt of the kind that kills";
/// The key of the clients.
pub const CLIENTS_KEY: &str = "sk-canary-of-the-clients";
/// A word of every prompt.
pub const PROMPT: &str = "canary-of-the-prompts";

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

impl Tally {
    /// How many began, and how many of them went away themselves.
    pub fn begun_and_left(&self) -> (usize, usize) {
        (self.begun.load(SeqCst), self.ended[End::Left as usize].load(SeqCst))
    }
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
    let words = if rng.u8(..100) == 0 { POISON } else { PROMPT };
    let asked = Asked::by_chance(rng, is_stream, words, LARGEST_IMAGE);
    let exchange = async { if is_stream { stream(client, &asked).await } else { answer(client, &asked).await } };
    // Some are impatient, and leave wherever they stand.
    let patience = if rng.u8(..4) == 0 { Duration::from_millis(rng.u64(..40)) } else { Duration::MAX };
    timeout(patience, exchange).await.unwrap_or(End::Left)
}

fn post(client: &Client, asked: &Asked) -> reqwest::RequestBuilder {
    client.post(CHAT, asked.body.clone()).header("authorization", format!("Bearer {CLIENTS_KEY}"))
}

/// Asks for an answer as a whole.
async fn answer(client: &Client, asked: &Asked) -> End {
    match soon("an answer", try_whole(post(client, asked))).await {
        Ok(reply) if reply.status == 200 => {
            asked.is_answered_by(&reply.json());
            End::Whole
        }
        Ok(reply) => refused(&reply),
        Err(why) => broken(&why),
    }
}

/// Asks for an answer as a stream.
async fn stream(client: &Client, asked: &Asked) -> End {
    let response = match soon("a head", post(client, asked).send()).await {
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
    asked.is_answered_by_events(&text);
    End::Whole
}

fn refused(reply: &Reply) -> End {
    assert!(!String::from_utf8_lossy(&reply.body).contains(BACKENDS_KEY), "it tells a secret: {reply:?}");
    // What a server has no content for has none.
    if [204, 304].contains(&reply.status.as_u16()) {
        assert!(reply.body.is_empty(), "{reply:?}");
        return End::Refused;
    }
    assert!(reply.json()["error"]["message"].is_string(), "not an error as clients know them: {reply:?}");
    End::Refused
}

fn broken(why: &reqwest::Error) -> End {
    assert!(!why.is_connect(), "the proxy is not there: {why:?}");
    End::Broken
}
