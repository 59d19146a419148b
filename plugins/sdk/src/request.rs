//! One request in numbers, and the answer to it.

use crate::{Candidate, Policy};

/// One request, in numbers. It never carries a prompt, a key or a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Counts the picks of this model over all workers, from 0: `sequence % rows` is strict round robin without
    /// shared memory. It wraps at 2^64.
    pub sequence: u64,
    /// 64 fresh random bits, for random choices and for breaking ties. Not for secrets.
    pub random: u64,
    /// A hash of the session key the client sent, if it sent one. The same key gives the same hash over restarts.
    pub affinity: Option<u64>,
    /// A hash of the start of the prompt (its first 1,024 bytes of text), if it was seen. Requests that share a
    /// long beginning share it.
    pub prefix: Option<u64>,
    /// Milliseconds of a clock that never goes back. Its start means nothing.
    pub now_ms: u64,
    /// Index into [`Fleet::models`](crate::Fleet::models); `None` where the name is not among them.
    pub model: Option<usize>,
    /// Size of the request body in KiB, rounded up.
    pub body_kib: u32,
    /// How many images the body carries, by URL or inline.
    pub images: u32,
    /// 0 for the first backend this request tries, 1 for the second, …
    pub attempt: u32,
    /// What kind of request it is.
    pub traits: Traits,
}

impl Request {
    /// A plain first request for a test; change what matters with `Request { images: 2, ..Request::example() }`.
    pub fn example() -> Self {
        Self {
            sequence: 0,
            random: 0,
            affinity: None,
            prefix: None,
            now_ms: 0,
            model: Some(0),
            body_kib: 1,
            images: 0,
            attempt: 0,
            traits: Traits::default(),
        }
    }
}

/// What kind of request it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traits {
    /// The client asked for a stream.
    pub streaming: bool,
    /// It carries images.
    pub vision: bool,
    /// It asks for embeddings.
    pub embedding: bool,
    /// It carries audio.
    pub audio: bool,
    /// An earlier attempt failed.
    pub retry: bool,
}

/// The answer to a pick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// This row, counted from 0 in the rows of this call. Not the backend's index.
    Pick(u32),
    /// No opinion: the host's own round robin picks.
    Abstain,
    /// Rather wait than take any of these: the request is asked about again when a slot is released or a report
    /// arrives. Bounded by `queue.timeout`.
    Hold,
    /// Refuse the request with this status, 400 to 599.
    Reject(u16),
}

/// Picks the candidate found, or abstains where none was.
impl<P: Policy> From<Option<Candidate<'_, P>>> for Decision {
    fn from(found: Option<Candidate<'_, P>>) -> Self {
        found.map_or(Self::Abstain, |candidate| Self::Pick(candidate.row()))
    }
}
