//! What `/api/fleet` counts is what the backends hold, at every instant of a load with streams, leaving clients and
//! failovers: neither more nor less, whoever looks.
//!
//! The numbers are looked at without a pause, each look between two instants. Clients write down when they asked, left
//! and had their whole answer, and backends when a request entered and left. From that it follows what the proxy must
//! have counted all through a look (who was at a backend before it and after it) and what it may have counted at most
//! (who had asked and had not got everything back). A count that is 1 off, for good or for a while, is outside of it,
//! where nobody else is in doubt: clients rest between two requests, for whoever waits for the very slot that is free
//! too late hides that. The load goes on until such looks were had right after every kind of event.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::*;

const SLOTS: [(&str, u32); 3] = [("a", 4), ("b", 3), ("c", 2)];
/// As many as there are slots, with the two that leave: somebody waits only while a backend is busy by its own word.
const STAYING: usize = 7;
/// Their rests are shorter, and all of different lengths.
const REST_MS: usize = 600;
/// The connection of a request that is given up is closed just before its slot is free; the machine may be very busy.
const GIVEN_BACK_US: u128 = 250_000;
/// The same where the backend never saw the request.
const FORGOTTEN_US: u128 = 2_000_000;
/// What is given back late is seen by looks this soon after.
const SOON_US: u128 = 100_000;
/// Backends' journals come through pipes, which are read by then.
const WRITTEN_US: u128 = 2_000_000;
const LOST: &str = "no poison";

/// By the clock of the journals.
fn now_us() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros()
}

/// One request, as its client saw it.
#[derive(Clone, Copy, Default)]
struct Asked {
    at_us: u128,
    /// The whole answer had come.
    answered_us: Option<u128>,
    /// The client left.
    left_us: Option<u128>,
    /// Where an answer came that says so.
    attempts: Option<u32>,
    /// Its client leaves at an instant that nobody knows: it may be counted, and need not be.
    is_fickle: bool,
}

/// All requests by their ids.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<HashMap<String, Asked>>>);

impl Log {
    fn note(&self, id: &str, change: impl FnOnce(&mut Asked)) {
        change(self.0.lock().expect(LOST).entry(id.to_owned()).or_default());
    }

    fn asks(&self) -> String {
        let mut log = self.0.lock().expect(LOST);
        let id = format!("r{}", log.len());
        log.insert(id.clone(), Asked { at_us: now_us(), ..Asked::default() });
        id
    }

    fn head(&self, id: &str, response: &reqwest::Response) {
        let attempts =
            response.headers().get("x-vision-proxy-attempts").and_then(|told| told.to_str().ok()?.parse().ok());
        self.note(id, |asked| asked.attempts = attempts);
    }
}

/// Asks, and reads to the end.
async fn stays(client: &Client, log: &Log, body: Value) {
    let id = log.asks();
    let request = client.post(CHAT, body.to_string()).header("x-request-id", &id);
    let response = soon("a head", request.send()).await.expect("an answer");
    assert_eq!(response.status(), 200, "{response:?}");
    log.head(&id, &response);
    soon("the end", response.bytes()).await.expect("a whole answer");
    log.note(&id, |asked| asked.answered_us = Some(now_us()));
}

/// Asks, and leaves in the middle of the answer or before it.
async fn leaves(client: &Client, log: &Log, has_head: bool) {
    let id = log.asks();
    let sending = client.post(CHAT, stream_body().to_string()).header("x-request-id", &id).send();
    if has_head {
        let response = soon("a head", sending).await.expect("an answer");
        log.head(&id, &response);
        let mut events = Events::from(response);
        events.next().await;
        log.note(&id, |asked| asked.left_us = Some(now_us()));
    } else {
        log.note(&id, |asked| asked.is_fickle = true);
        _ = tokio::time::timeout(Duration::from_millis(20), sending).await;
        log.note(&id, |asked| asked.left_us = Some(now_us()));
    }
}

/// One look at `/api/fleet`.
struct Look {
    begun_us: u128,
    ended_us: u128,
    in_flight: BTreeMap<String, usize>,
    waiting: usize,
}

async fn look(proxy: &Proxy) -> Look {
    let begun_us = now_us();
    let fleet = proxy.admin_json("/api/fleet").await;
    let ended_us = now_us();
    let number = |value: &Value| usize::try_from(value.as_u64().expect("a number")).expect("a small number");
    let backends = fleet["backends"].as_array().expect("a list");
    let name = |backend: &Value| backend["name"].as_str().expect("a name").to_owned();
    let in_flight = backends.iter().map(|backend| (name(backend), number(&backend["in_flight"]))).collect();
    Look { begun_us, ended_us, in_flight, waiting: number(&fleet["queue"]["waiting"]) }
}

/// A request's stay at a backend.
struct Stay {
    backend: &'static str,
    entered_us: u128,
    left_us: u128,
}

/// Every request's stays, in order; who has not left yet has no end.
fn stays_of(servers: &[Simulated]) -> HashMap<String, Vec<Stay>> {
    let mut all: HashMap<String, Vec<Stay>> = HashMap::new();
    for server in servers {
        for step in server.journal() {
            let stays = all.entry(step.request).or_default();
            match step.change.as_str() {
                "entered" => stays.push(Stay { backend: server.name, entered_us: step.at_us, left_us: u128::MAX }),
                "left" => {
                    let open = stays.iter_mut().rfind(|stay| stay.backend == server.name);
                    open.expect("it entered before").left_us = step.at_us;
                }
                _ => {}
            }
        }
    }
    all.values_mut().for_each(|stays| stays.sort_by_key(|stay| stay.entered_us));
    all
}

/// What the proxy may have counted while somebody looked.
#[derive(Default)]
struct Bounds<'a> {
    /// By backend: who was there all the time.
    certain: BTreeMap<&'static str, usize>,
    /// Who had a hold on something, or may have had.
    alive: usize,
    /// Who may have been counted twice, for numbers are read one after another and it went from one to the next.
    moving: usize,
    /// Of those who were there all the time, who had failed elsewhere before.
    failed_over: Vec<&'a str>,
    /// Whose answer had just come whole.
    just_answered: Vec<&'a str>,
    /// Whose slot must have been given back just now at the latest, for its client had left.
    just_left: Vec<&'a str>,
}

fn bounds<'a>(look: &Look, log: &'a HashMap<String, Asked>, stays: &HashMap<String, Vec<Stay>>) -> Bounds<'a> {
    let mut bounds = Bounds::default();
    for (id, asked) in log {
        let stays = stays.get(id).map(Vec::as_slice).unwrap_or_default();
        let last = stays.last();
        let gone_us = match (asked.answered_us, asked.left_us, last) {
            (Some(answered), ..) => answered,
            (None, Some(left), None) => left + FORGOTTEN_US,
            (None, Some(left), Some(stay)) => left.max(stay.left_us).saturating_add(GIVEN_BACK_US),
            (None, None, _) => u128::MAX,
        };
        if gone_us < look.begun_us {
            let just = if asked.left_us.is_some() { &mut bounds.just_left } else { &mut bounds.just_answered };
            just.extend((gone_us + SOON_US > look.begun_us).then_some(id.as_str()));
            continue;
        }
        if asked.at_us > look.ended_us {
            continue;
        }
        bounds.alive += 1;
        // An attempt that failed may be known to be over here before the backend writes it down.
        let is_there = |stay: &&Stay| stay.entered_us < look.begun_us && stay.left_us > look.ended_us;
        let is_later = |at: Option<u128>| at.is_none_or(|at| at > look.ended_us);
        let is_held = !asked.is_fickle && is_later(asked.left_us) && is_later(asked.answered_us);
        let was_there = stays.iter().any(|stay| stay.entered_us < look.begun_us);
        match last.filter(is_there).filter(|_| is_held) {
            Some(stay) => {
                *bounds.certain.entry(stay.backend).or_default() += 1;
                let has_failed = asked.attempts.is_some_and(|attempts| attempts > 1);
                bounds.failed_over.extend(has_failed.then_some(id.as_str()));
            }
            // Handed a slot, or sent elsewhere.
            None if !was_there || asked.attempts != Some(1) => bounds.moving += 1,
            None => {}
        }
    }
    bounds
}

/// Requires that a look saw what was there; true where nothing was in doubt.
fn agrees(look: &Look, bounds: &Bounds<'_>) -> bool {
    let Bounds { certain, alive, moving, .. } = bounds;
    let all_certain: usize = certain.values().sum();
    let doubtful = alive - all_certain + moving;
    let told = format!(
        "/api/fleet said {:?} and {} waiting; at backends all the time {certain:?}, alive {alive}, moving {moving}",
        look.in_flight, look.waiting
    );
    for (name, in_flight) in &look.in_flight {
        let certain = certain.get(name.as_str()).copied().unwrap_or_default();
        assert!(*in_flight >= certain, "{name} holds more than is counted: {told}");
        assert!(*in_flight <= certain + doubtful, "{name} holds less than is counted: {told}");
    }
    let counted = look.in_flight.values().sum::<usize>() + look.waiting;
    assert!(counted <= alive + moving, "somebody is counted twice, or still: {told}");
    all_certain + look.waiting == alive + moving
}

/// Whom looks saw that left no doubt: each saw every backend's count to the digit.
#[derive(Default)]
struct Seen {
    failed_over: HashSet<String>,
    just_answered: HashSet<String>,
    just_left: HashSet<String>,
    /// Looks of any kind in which somebody stood in line.
    lines: usize,
}

impl Seen {
    fn note(&mut self, look: &Look, bounds: &Bounds<'_>) {
        self.lines += usize::from(look.waiting > 0);
        if !agrees(look, bounds) {
            return;
        }
        let Bounds { failed_over, just_answered, just_left, .. } = bounds;
        let all = [
            (&mut self.failed_over, failed_over),
            (&mut self.just_answered, just_answered),
            (&mut self.just_left, just_left),
        ];
        for (all, now) in all {
            all.extend(now.iter().copied().map(str::to_owned));
        }
    }

    /// Several of each kind: a count that is off in some of them only would have been seen to be.
    fn is_enough(&self) -> bool {
        self.failed_over.len() >= 3 && self.just_answered.len() >= 15 && self.just_left.len() >= 4 && self.lines > 0
    }
}

/// Clients that ask again and again, and a backend that fails now and then.
fn load(proxy: &Proxy, servers: &[Simulated], log: &Log) -> JoinSet<()> {
    let mut load = JoinSet::new();
    for number in 0..STAYING {
        let (client, log) = (proxy.another_client(), log.clone());
        let body = if number % 2 == 0 { chat_body() } else { stream_body() };
        load.spawn(async move {
            for turn in 0.. {
                stays(&client, &log, body.clone()).await;
                let rest_ms = (number * 83 + turn * 131) % REST_MS;
                tokio::time::sleep(Duration::from_millis(rest_ms as u64)).await;
            }
        });
    }
    for has_head in [true, false] {
        let (client, log) = (proxy.another_client(), log.clone());
        load.spawn(async move {
            loop {
                leaves(&client, &log, has_head).await;
                stays(&client, &log, stream_body()).await;
            }
        });
    }
    // One at a time, for a request that fails everywhere has no good end.
    let faults = servers[0].faults();
    load.spawn(async move {
        let kinds = ["close-before-answer,count=1", "status=500,count=1", "status=503,retry_after=1,count=1"];
        for turn in 0.. {
            tokio::time::sleep(Duration::from_millis(900)).await;
            faults.fails(kinds[turn % kinds.len()]).await;
        }
    });
    load
}

#[tokio::test]
async fn what_is_counted_is_what_backends_hold_at_every_instant() {
    let mut servers = Vec::new();
    for (name, slots) in SLOTS {
        servers.push(Simulated::with_journal(name, slots).await);
    }
    let entries: String = servers.iter().map(Simulated::entry).collect();
    let proxy = Proxy::start(&format!("[failover]\neject_after = 1000\n{entries}")).await;
    let log = Log::default();
    let mut load = load(&proxy, &servers, &log);
    let mut looks = Vec::new();
    let mut seen = Seen::default();
    wait::patiently(Duration::from_secs(90), "enough was seen", async || {
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < Duration::from_secs(1) {
            looks.push(look(&proxy).await);
        }
        if let Some(failed) = load.try_join_next() {
            failed.expect("clients that go on");
        }
        let (asked, stays) = (log.0.lock().expect(LOST).clone(), stays_of(&servers));
        let is_written = |look: &mut Look| look.ended_us + WRITTEN_US < now_us();
        for look in looks.extract_if(.., is_written) {
            seen.note(&look, &bounds(&look, &asked, &stays));
        }
        seen.is_enough()
    })
    .await;
    load.shutdown().await;
    proxy.falls_idle().await;
}
