//! What is counted while counting is on.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::proc;

/// Why an exchange failed.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    Refused,
    BrokenOff,
    Status(u16),
    Malformed,
    WrongModel,
    Incomplete,
}

impl fmt::Display for Failure {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => write!(to, "connection refused"),
            Self::BrokenOff => write!(to, "broken off"),
            Self::Status(status) => write!(to, "status {status}"),
            Self::Malformed => write!(to, "malformed"),
            Self::WrongModel => write!(to, "another model's name"),
            Self::Incomplete => write!(to, "incomplete stream"),
        }
    }
}

#[derive(Default)]
pub struct Tally {
    counts: Cell<bool>,
    cpu_at_begin: Cell<f64>,
    open_streams: Cell<usize>,
    bytes: Cell<usize>,
    events: Cell<u64>,
    answers_ns: RefCell<Vec<u64>>,
    openings_ns: RefCell<Vec<u64>>,
    transits_ns: RefCell<Vec<u64>>,
    failures: RefCell<BTreeMap<String, u64>>,
}

/// What the load generator tells the runner.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    pub seconds: f64,
    pub requests: u64,
    pub request_bytes: usize,
    pub events: u64,
    pub open_streams: usize,
    pub failures: BTreeMap<String, u64>,
    /// From asking to the end of the answer.
    pub answers: Percentiles,
    /// From asking to the first chunk.
    pub openings: Percentiles,
    /// From the backend's write to our read of a chunk.
    pub transits: Percentiles,
    /// Taken by the load generator itself.
    pub cpu_seconds: f64,
}

/// In microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p99: f64,
}

impl Tally {
    pub fn begin(&self) {
        self.cpu_at_begin.set(proc::cpu_seconds(&[std::process::id()]));
        self.counts.set(true);
    }

    pub fn end(&self, elapsed: Duration) -> Measured {
        self.counts.set(false);
        let requests = self.answers_ns.borrow().len() as u64;
        Measured {
            seconds: elapsed.as_secs_f64(),
            requests,
            request_bytes: self.bytes.get(),
            events: self.events.get(),
            open_streams: self.open_streams.get(),
            failures: self.failures.take(),
            answers: Percentiles::of(self.answers_ns.take()),
            openings: Percentiles::of(self.openings_ns.take()),
            transits: Percentiles::of(self.transits_ns.take()),
            cpu_seconds: proc::cpu_seconds(&[std::process::id()]) - self.cpu_at_begin.get(),
        }
    }

    pub fn answered(&self, took: Duration, request_bytes: usize) {
        if self.counts.get() {
            self.answers_ns.borrow_mut().push(nanoseconds(took));
            self.bytes.set(self.bytes.get() + request_bytes);
        }
    }

    /// Counts in the warm-up too: a proxy that fails there has failed.
    pub fn failed(&self, failure: Failure) {
        *self.failures.borrow_mut().entry(failure.to_string()).or_default() += 1;
    }

    pub fn opened(&self, took: Duration) {
        self.open_streams.set(self.open_streams.get() + 1);
        if self.counts.get() {
            self.openings_ns.borrow_mut().push(nanoseconds(took));
        }
    }

    pub fn event(&self, transit_ns: u64) {
        if self.counts.get() {
            self.events.set(self.events.get() + 1);
            self.transits_ns.borrow_mut().push(transit_ns);
        }
    }

    /// How many were opened so far.
    pub fn open_streams(&self) -> usize {
        self.open_streams.get()
    }
}

impl Percentiles {
    fn of(mut all: Vec<u64>) -> Self {
        all.sort_unstable();
        let at = |share: f64| {
            let place = (all.len().saturating_sub(1) as f64 * share).round() as usize;
            all.get(place).map_or(0.0, |ns| *ns as f64 / 1000.0)
        };
        Self { p50: at(0.5), p99: at(0.99) }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
