//! `GET /api/events`: what changes, as server-sent events.
//!
//! The first event says how every backend stands; from then on each change of a state is told, and what happens to the
//! configuration, the plugins and the fleet. States are looked at a few times a second: one that comes and goes between
//! two looks is not told. A listener that reads too slowly loses events, and is told how many.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::spawn_local;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::{Answer, View, error};
use crate::control::events::Event;
use crate::edge::Member;

/// Listeners at once; more are dashboards that nobody closed.
pub const LISTENERS: usize = 32;
/// Between two looks at the states.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A comment is sent after so much silence, so that nobody between takes the connection for dead.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A listener that takes nothing for this long is gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// The stream, where there is room for one more listener.
pub fn answer(view: &Arc<View>) -> Answer {
    let Ok(place) = Arc::clone(&view.listeners).try_acquire_owned() else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "too_many_listeners", "32 listen already");
    };
    // One piece on its way: what comes meanwhile waits where it is bounded.
    let (give, pieces) = mpsc::channel(1);
    let listener = Listener { view: Arc::clone(view), told: view.status.events.listen(), seen: BTreeMap::new(), give };
    spawn_local(listener.run(place));
    let mut answer = Response::new(Pieces(pieces).boxed_unsync());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer
}

/// One who listens.
struct Listener {
    view: Arc<View>,
    told: Receiver<Event>,
    /// State of each backend, as it was told last, by its id.
    seen: BTreeMap<u64, (Arc<str>, &'static str)>,
    give: mpsc::Sender<Bytes>,
}

impl Listener {
    /// Tells until the listener is gone; its place is free then.
    async fn run(mut self, _place: OwnedSemaphorePermit) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = Instant::now();
        let mut piece = self.first();
        loop {
            if !piece.is_empty() {
                if !matches!(timeout(PATIENCE, self.give.send(piece.into())).await, Ok(Ok(()))) {
                    return;
                }
                said = Instant::now();
            }
            let give = self.give.clone();
            piece = tokio::select! {
                told = self.told.recv() => heard(told),
                _ = look.tick() => match self.changes() {
                    silence if silence.is_empty() && said.elapsed() >= HEARTBEAT => ": still here\n\n".to_owned(),
                    changes => changes,
                },
                () = give.closed() => return,
            };
        }
    }

    /// How every backend stands.
    fn first(&mut self) -> String {
        let members = self.members();
        let state = |member: &Member| json!({"backend": member.config.name, "state": member.backend.state().name()});
        let all: Vec<Value> = members.iter().map(state).collect();
        self.seen = members.iter().map(seen).collect();
        written("states", json!({"backends": all}))
    }

    /// Every state that is another one than was told last.
    fn changes(&mut self) -> String {
        let members = self.members();
        let now: BTreeMap<_, _> = members.iter().map(seen).collect();
        let gone = self.seen.iter().filter(|(id, _)| !now.contains_key(id));
        let gone = gone.map(|(_, (name, was))| json!({"backend": **name, "state": "gone", "was": was, "why": null}));
        let other = members.iter().filter_map(|member| {
            let was = self.seen.get(&member.backend.id).map(|(_, was)| *was);
            let state = member.backend.state().name();
            let why = member.backend.known().last_error.clone();
            (was != Some(state)).then(|| json!({"backend": member.config.name, "state": state, "was": was, "why": why}))
        });
        let text = gone.chain(other).map(|said| written("backend", said)).collect();
        self.seen = now;
        text
    }

    /// The fleet, and those that left it and still hold requests.
    fn members(&self) -> Vec<Member> {
        let snapshot = self.view.shared.snapshot.load();
        let retired = self.view.status.retired.load();
        snapshot.fleet.iter().chain(retired.iter()).cloned().collect()
    }
}

fn seen(member: &Member) -> (u64, (Arc<str>, &'static str)) {
    (member.backend.id, (Arc::clone(&member.backend.name), member.backend.state().name()))
}

/// The next event, or how many this listener was too slow for.
fn heard(told: Result<Event, RecvError>) -> String {
    match told {
        Ok(event) => written(event.kind, event.said),
        Err(RecvError::Lagged(events)) => written("lost", json!({"events": events})),
        // The source lives as long as the process.
        Err(RecvError::Closed) => String::new(),
    }
}

/// One event as it stands in the stream. JSON text holds no line break.
fn written(kind: &str, mut said: Value) -> String {
    said["at"] = humantime::format_rfc3339_millis(crate::clock::datable(SystemTime::now())).to_string().into();
    format!("event: {kind}\ndata: {said}\n\n")
}

/// The body of the stream.
struct Pieces(mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::events::Events;

    #[tokio::test]
    async fn a_slow_listener_loses_the_oldest_and_is_told_how_many() {
        let events = Events::default();
        let mut told = events.listen();
        for number in 0..300 {
            events.fleet(&format!("gpu-{number}"), "drained");
        }
        let lost = heard(told.recv().await);
        assert!(lost.starts_with("event: lost\ndata: {\"events\":44,"), "{lost}");
        let next = heard(told.recv().await);
        assert!(next.starts_with("event: fleet\ndata: {\"backend\":\"gpu-44\","), "{next}");
    }
}
