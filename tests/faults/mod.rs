//! Backends that misbehave, one fault after another, before clients that never pause.
//!
//! Whatever one of two servers does, the invariants of `docs/reliability.md` hold: what can be answered is answered,
//! what breaks off breaks off visibly, no server ever holds more than its slots, and everything is given back.

mod processes;
mod switch;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::support::*;

/// Slots of each of the two servers: half of the clients must be able to use either alone.
const SLOTS: u32 = 4;
const CLIENTS: usize = 6;
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

/// Clients that chat and stream by turns. What does not end well must be told apart from what does.
fn visibly(proxy: &Proxy, losses: &Losses) -> Load {
    let losses = losses.clone();
    Load::by(proxy, CLIENTS, move |client| {
        let losses = losses.clone();
        async move {
            match soon("an answer", try_whole(client.post(CHAT, chat_body().to_string()))).await {
                Ok(reply) if reply.status == 200 => assert_eq!(reply.json()["model"], MODEL),
                Ok(reply) => {
                    assert!(reply.json()["error"]["message"].is_string(), "no error of ours: {reply:?}");
                    losses.note();
                }
                Err(_) => losses.note(),
            }
            let stream = soon("a head", client.post(CHAT, stream_body().to_string()).send()).await;
            match stream {
                Ok(response) if response.status() == 200 => {
                    let (text, broke) = Events::from(response).rest_or_break().await;
                    let is_whole = text.ends_with("data: [DONE]\n\n");
                    assert!(is_whole || broke || text.contains("\"error\""), "cut off without a word: {text}");
                    assert!(!(is_whole && broke), "ended well and broke off: {text}");
                    if !is_whole {
                        losses.note();
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
