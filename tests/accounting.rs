//! Wherever a client stands and however it leaves, its request is cancelled at the backend, and its slot and its place in
//! line come back once: what the proxy counts is what the backends hold, and nothing when all is over.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::*;

/// The promise is 100 ms (`cancellation`); the machine may be very busy here, and leaks last for ever.
const SOON: Duration = Duration::from_secs(2);

/// Where a request stands when its client leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Uploading,
    Queued,
    Connecting,
    AwaitingHead,
    AwaitingBody,
    Idle,
    Busy,
}

/// How it leaves.
#[derive(Clone, Copy, Debug)]
enum Leaving {
    Fin,
    Rst,
    HalfClosed,
    /// In order, with the beginning of a further request behind this one.
    FinBehind(&'static str),
    /// By HTTP/2: the stream alone, while the connection goes on.
    Reset,
}

const PHASES: [Phase; 7] = [
    Phase::Uploading,
    Phase::Queued,
    Phase::Connecting,
    Phase::AwaitingHead,
    Phase::AwaitingBody,
    Phase::Idle,
    Phase::Busy,
];
const WAYS: [Leaving; 6] = [
    Leaving::Fin,
    Leaving::Rst,
    Leaving::HalfClosed,
    Leaving::FinBehind("\r\n"),
    Leaving::FinBehind("GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"),
    Leaving::Reset,
];

impl Phase {
    fn answer(self) -> Answer {
        let begun = Answer::stream().event(&delta(NATIVE, "one"));
        match self {
            Self::AwaitingBody => Answer::stream().stall(),
            Self::Idle => begun.stall(),
            Self::Busy => begun.repeated([b':'; 4096], usize::MAX),
            _ => Answer::nothing().stall(),
        }
    }

    /// Requests that must be at the backend before the client leaves, its own and the one that fills the only slot.
    fn held(self) -> usize {
        match self {
            Self::Uploading | Self::Connecting => 0,
            _ => 1,
        }
    }

    /// Slots in use then.
    fn in_flight(self) -> usize {
        if self == Self::Uploading { 0 } else { 1 }
    }

    fn waiting(self) -> u64 {
        u64::from(self == Self::Queued)
    }

    /// What the client sends.
    fn request(self) -> String {
        let whole = sized_request(CHAT, &stream_body().to_string());
        let sent = if self == Self::Uploading { whole.len() - 5 } else { whole.len() };
        whole[..sent].to_owned()
    }
}

/// What the proxy counts: requests at the backend, and in line.
async fn counted(proxy: &Proxy) -> (usize, u64) {
    let fleet = proxy.admin_json("/api/fleet").await;
    let in_flight = fleet["backends"][0]["in_flight"].as_u64().expect("a number");
    (usize::try_from(in_flight).expect("a small number"), fleet["queue"]["waiting"].as_u64().expect("a number"))
}

/// Lets one client leave; `others` requests are at the backend besides.
async fn leaves(proxy: &Proxy, backend: &Backend, phase: Phase, way: Leaving) {
    let what = format!("{phase:?}, {way:?}");
    let is_there =
        async || backend.in_flight() == phase.held() && counted(proxy).await == (phase.in_flight(), phase.waiting());
    let left = if matches!(way, Leaving::Reset) {
        let client = Client::h2c(proxy.listen);
        let pending =
            tokio::spawn(async move { client.post(CHAT, stream_body().to_string()).send().await?.bytes().await });
        eventually(&what, is_there).await;
        pending.abort();
        Instant::now()
    } else {
        let mut raw = Raw::connect(proxy.listen).await;
        let behind = if let Leaving::FinBehind(behind) = way { behind } else { "" };
        raw.send(phase.request() + behind).await;
        eventually(&what, is_there).await;
        match way {
            Leaving::Rst => raw.reset(),
            Leaving::HalfClosed => {
                let left = raw.finish().await;
                is_over(proxy, backend, phase, &what).await;
                assert!(left.elapsed() < SOON, "{what}: {:?}", left.elapsed());
                return;
            }
            _ => raw.leave(),
        }
    };
    is_over(proxy, backend, phase, &what).await;
    assert!(left.elapsed() < SOON, "{what}: {:?}", left.elapsed());
}

/// Everything of the client is given back; in the line's phase the one before it stays.
async fn is_over(proxy: &Proxy, backend: &Backend, phase: Phase, what: &str) {
    let stays = usize::from(phase == Phase::Queued);
    eventually(what, async || backend.in_flight() == stays && counted(proxy).await == (stays, 0)).await;
}

#[tokio::test]
async fn whoever_leaves_gives_everything_back_once() {
    for phase in PHASES {
        let top = format!("[timeouts]\nconnect = \"60s\"\n{RARE_POLLS}");
        let (proxy, [backend]) = proxied(&top, [Setup::named("a").slots(1)]).await;
        let hung = if phase == Phase::Connecting { Some(backend.hang().await) } else { None };
        backend.always(phase.answer());
        let descriptors = proxy.descriptors();
        let before = if phase == Phase::Queued { Some(proxy.client.begin_chat()) } else { None };
        eventually("the slot is taken", async || backend.in_flight() == usize::from(before.is_some())).await;
        for way in WAYS {
            // What comes behind a body that is not complete is a part of it; HTTP/2 sends bodies whole.
            let is_moot = phase == Phase::Uploading && matches!(way, Leaving::FinBehind(_) | Leaving::Reset);
            if !is_moot {
                leaves(&proxy, &backend, phase, way).await;
            }
        }
        if let Some(before) = before {
            before.leave().await;
        }
        drop(hung);
        proxy.falls_idle().await;
        eventually("no client is connected", async || {
            proxy.metrics().await.value("vision_proxy_client_connections", &[]) == Some(0.0)
        })
        .await;
        assert_eq!(backend.in_flight(), 0);
        // One more may be kept: a connection for the polls.
        let given_back = async || proxy.descriptors() <= descriptors + 1;
        eventually(&format!("{phase:?}: descriptors are given back"), given_back).await;
    }
}
