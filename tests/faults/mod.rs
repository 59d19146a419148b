//! Backends that misbehave, one fault after another, before clients that never pause.
//!
//! Whatever one of two servers does, the invariants of `docs/reliability.md` hold: what can be answered is answered,
//! what breaks off breaks off visibly, no server ever holds more than its slots, and everything is given back.

mod poison;
mod processes;
mod switch;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use fastrand::Rng;

use crate::support::*;

/// Slots of each of the two servers: half of the clients must be able to use either alone.
const SLOTS: u32 = 4;
const CLIENTS: usize = 6;
/// Bytes of an image, in base64.
const LARGEST_IMAGE: usize = 400_000;
/// Quick polls, so that a return is soon noticed; short patience with what hangs.
const TOP: &str = "[capacity]\npoll_interval = \"200ms\"\nstale_after = \"1s\"\nslow_start = \"500ms\"\n\
                   [timeouts]\nfirst_byte = \"1s\"\nbetween_chunks = \"1s\"\n";

/// A proxy before two servers: one that will fail, and a sound one.
async fn beside_a_sound_one() -> (Proxy, [Simulated; 2]) {
    let servers = [Simulated::start("failing", SLOTS).await, Simulated::start("sound", SLOTS).await];
    let proxy = Proxy::start(&format!("{TOP}{}{}", servers[0].entry(), servers[1].entry())).await;
    (proxy, servers)
}

/// What clients saw that did not end well, but visibly.
#[derive(Clone, Default)]
struct Losses(Arc<AtomicUsize>);

impl Losses {
    fn count(&self) -> usize {
        self.0.load(SeqCst)
    }

    fn note(&self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Two requests of lengths by chance, one for a whole answer and one for a stream.
fn asked() -> [Asked; 2] {
    [false, true].map(|is_stream| Asked::by_chance(&mut Rng::new(), is_stream, "", LARGEST_IMAGE))
}

/// Clients that chat and stream by turns, and of which each gets its own answer to everything.
fn unharmed(proxy: &Proxy) -> Load {
    Load::by(proxy, CLIENTS, |client| async move {
        let [chat, stream] = asked();
        chat.is_answered_by(&whole(client.post(CHAT, chat.body.clone())).await.ok().json());
        let text = Events::of(client.post(CHAT, stream.body.clone())).await.rest().await;
        assert!(text.ends_with("data: [DONE]\n\n"), "cut off: {text}");
        stream.is_answered_by_events(&text);
    })
}

/// Clients that chat and stream by turns. What does not end well must be told apart from what does, and what does is their
/// own.
fn visibly(proxy: &Proxy, losses: &Losses) -> Load {
    let losses = losses.clone();
    Load::by(proxy, CLIENTS, move |client| {
        let losses = losses.clone();
        async move {
            let [chat, stream] = asked();
            match soon("an answer", try_whole(client.post(CHAT, chat.body.clone()))).await {
                Ok(reply) if reply.status == 200 => chat.is_answered_by(&reply.json()),
                // What an engine has no content for has none.
                Ok(reply) if [204, 304].contains(&reply.status.as_u16()) => {
                    assert!(reply.body.is_empty(), "{reply:?}");
                    losses.note();
                }
                Ok(reply) => {
                    assert!(reply.json()["error"]["message"].is_string(), "no error as clients know them: {reply:?}");
                    losses.note();
                }
                Err(_) => losses.note(),
            }
            let response = soon("a head", client.post(CHAT, stream.body.clone()).send()).await;
            match response {
                Ok(response) if response.status() == 200 => {
                    let (text, broke) = Events::from(response).rest_or_break().await;
                    let is_done = text.ends_with("data: [DONE]\n\n");
                    assert!(is_done || broke || text.contains("\"error\""), "cut off without a word: {text}");
                    assert!(!(is_done && broke), "ended well and broke off: {text}");
                    match is_done && !text.contains("\"error\"") {
                        true => stream.is_answered_by_events(&text),
                        false => losses.note(),
                    }
                }
                _ => losses.note(),
            }
        }
    })
}

/// After everything: nothing is held, and neither server ever had more than its slots.
async fn all_is_well(proxy: &Proxy, servers: &[Simulated]) {
    proxy.falls_idle().await;
    for server in servers {
        assert_eq!(server.count("max_waiting").await, 0, "{} was over-filled", server.name);
        let told = proxy.backend(server.name).await;
        assert_eq!(told["in_flight"], 0, "{told}");
    }
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.value("vision_proxy_queue_waiting", &[]), Some(0.0));
}
