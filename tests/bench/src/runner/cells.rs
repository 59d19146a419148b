//! What is measured: cells of subjects that are compared with each other.

use super::change::Change;
use super::peers::Peer;
use crate::load::Kind;

/// Connections at full speed.
const MANY: usize = 64;
/// Connections that a low rate is spread over.
const FEW: usize = 8;
const LOW_RATE: f64 = 200.0;
const VISION_BYTES: usize = 2_000_000;
const CONNECTING: usize = 32;
/// Streams without pace end and begin again; paced ones outlast their cell.
const SHORT_STREAM: u64 = 200;
const ENDLESS: u64 = 1_000_000;
/// A stream that is only held says something once a second.
const HELD_PACE_US: u64 = 1_000_000;

pub struct Cell {
    pub name: &'static str,
    pub about: &'static str,
    pub subjects: Vec<Subject>,
}

/// One of those that are compared.
pub struct Subject {
    pub name: String,
    pub peer: Peer,
    pub backends: usize,
    pub workers: usize,
    pub change: Option<Change>,
    /// Whether it is about the number of cores.
    pub scales: bool,
    pub work: Work,
}

#[derive(Clone, Copy)]
pub enum Work {
    Load {
        connections: usize,
        kind: Kind,
    },
    /// Resident memory, idle and with so many open streams.
    Memory {
        streams: [usize; 2],
        pace_us: u64,
    },
    /// One policy call with so many backends.
    Policy {
        backends: usize,
    },
}

/// Every cell there is, in order. `is_quick` has few streams.
pub fn all(is_quick: bool) -> Vec<Cell> {
    let chat = Work::Load { connections: MANY, kind: Kind::Chat };
    let load = |connections, kind| Work::Load { connections, kind };
    let vision = |connections| load(connections, Kind::Vision { bytes: VISION_BYTES });
    let paced = |connections, pace_us| load(connections, Kind::Streams { events: ENDLESS, pace_us, opens_first: true });
    let unpaced = Kind::Streams { events: SHORT_STREAM, pace_us: 0, opens_first: false };
    let (hundred, thousand, most) = if is_quick { (20, 100, 300) } else { (100, 1_000, 9_000) };
    let held = Work::Memory { streams: [thousand, most], pace_us: HELD_PACE_US };
    vec![
        proxies("chat", "small chats, 64 connections at full speed", chat, true),
        proxies("latency", "small chats at 200 a second", load(FEW, Kind::Rate { per_second: LOW_RATE }), true),
        proxies("vision-4", "2 MB vision bodies, 4 connections", vision(4), true),
        proxies("vision-1", "2 MB vision bodies, 1 connection", vision(1), true),
        proxies("sse", "100 streams of 200 chunks, as fast as they go", load(hundred, unpaced), true),
        proxies("streams-100", "100 streams, 50 chunks a second each", paced(hundred, 20_000), true),
        proxies("streams-1000", "1,000 streams, 20 chunks a second each", paced(thousand, 50_000), true),
        proxies(
            "connections",
            "small chats, each on a new connection, 32 at a time",
            load(CONNECTING, Kind::Connects),
            true,
        ),
        proxies("memory", "resident memory, idle and with open streams", held, false),
        fleets(chat, is_quick),
        changes("swap", "small chats while the policy is swapped every 200 ms", chat, Change::Plugin),
        changes("reload", "small chats while the configuration changes every 200 ms", chat, Change::Config),
        workers(chat),
        policies(),
    ]
}

fn proxies(name: &'static str, about: &'static str, work: Work, with_direct: bool) -> Cell {
    // How nginx treats bodies matters where they are large.
    let has_bodies = matches!(work, Work::Load { kind: Kind::Vision { .. }, .. });
    let measured = |peer: &Peer| match peer {
        Peer::Direct => with_direct,
        Peer::NginxUnbuffered => has_bodies,
        _ => true,
    };
    let peers = Peer::ALL.into_iter().filter(measured);
    Cell { name, about, subjects: peers.map(|peer| Subject::of(peer.name(), peer, work)).collect() }
}

fn fleets(chat: Work, is_quick: bool) -> Cell {
    let sizes: &[usize] = if is_quick { &[3, 10, 100] } else { &[3, 1, 10, 100, 1_000] };
    let of_size = |backends: &usize| Subject {
        backends: *backends,
        ..Subject::of(
            if *backends == 1 { "1 backend".into() } else { format!("{backends} backends") },
            Peer::VisionProxy,
            chat,
        )
    };
    let about = "small chats, by the number of backends";
    Cell { name: "backends", about, subjects: sizes.iter().map(of_size).collect() }
}

fn changes(name: &'static str, about: &'static str, chat: Work, change: Change) -> Cell {
    let undisturbed = Subject::of("undisturbed", Peer::VisionProxy, chat);
    let changing = Subject { change: Some(change), ..Subject::of("changing", Peer::VisionProxy, chat) };
    Cell { name, about, subjects: vec![undisturbed, changing] }
}

fn workers(chat: Work) -> Cell {
    let with = |workers: usize| Subject {
        workers,
        scales: true,
        ..Subject::of(format!("workers = {workers}"), Peer::VisionProxy, chat)
    };
    Cell { name: "cores", about: "small chats, one worker and two", subjects: vec![with(1), with(2)] }
}

fn policies() -> Cell {
    let with =
        |backends: usize| Subject::of(format!("{backends} backends"), Peer::VisionProxy, Work::Policy { backends });
    let about = "one call of the policy round-robin";
    Cell { name: "policy", about, subjects: [8, 64, 1_000].map(with).into() }
}

impl Subject {
    fn of(name: impl Into<String>, peer: Peer, work: Work) -> Self {
        // Three backends: enough for a choice.
        Self { name: name.into(), peer, backends: 3, workers: 1, change: None, scales: false, work }
    }
}
