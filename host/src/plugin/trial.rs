//! What plugins are tried with before the first request.
//!
//! Invariants:
//! - It does not depend on the fleet of the day: the same content is taken today and tomorrow, or refused both times.

use super::bindings::{Backend, Fleet, Request, Traits};

/// A request like most.
pub(super) const PLAIN: Request = Request {
    sequence: 0,
    random: 0x5eed,
    affinity: 0,
    prefix: 0,
    now_ms: 1,
    model: 0,
    body_kib: 1,
    images: 0,
    attempt: 0,
    traits: Traits::STREAMING,
};

/// A request in which every number is the largest there is.
pub(super) const EXTREME: Request = Request {
    sequence: u64::MAX,
    random: u64::MAX,
    affinity: u64::MAX,
    prefix: u64::MAX,
    now_ms: u64::MAX,
    model: u32::MAX,
    body_kib: u32::MAX,
    images: u32::MAX,
    attempt: u32::MAX,
    traits: Traits::RETRY,
};

/// Eight backends that differ in what a policy may look at.
pub(super) fn made_up_fleet() -> Fleet {
    made_up_fleet_of(MADE_UP_BACKENDS)
}

/// So many such backends.
pub(super) fn made_up_fleet_of(backends: u32) -> Fleet {
    let backend = |at: u32| Backend {
        name: format!("trial-{at}"),
        hash: u64::from(at).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        engine: ["vllm", "ollama", "unknown"][at as usize % 3].to_owned(),
        weight: at,
        labels: if at == 0 { Vec::new() } else { vec![("zone".to_owned(), format!("z{}", at % 2))] },
        serves: vec!["native".to_owned()],
        names: vec![("public".to_owned(), "native".to_owned())],
    };
    Fleet { generation: 1, models: vec!["public".to_owned()], backends: (0..backends).map(backend).collect() }
}

const MADE_UP_BACKENDS: u32 = 8;

/// One candidate, several that differ, several that are equal, and the largest numbers there are.
pub(super) fn made_up_rows(columns: usize) -> [Vec<u32>; 5] {
    let all = 0..MADE_UP_BACKENDS;
    [
        rows(3..4, columns, |_| 1),
        rows(all.clone(), columns, |backend| backend * 100),
        rows(all.clone(), columns, |_| 7),
        rows(all.clone(), columns, |_| 0),
        rows(all, columns, |_| u32::MAX),
    ]
}

/// A row for each of these backends, with the same number in all its columns.
pub(super) fn rows(backends: std::ops::Range<u32>, columns: usize, number: impl Fn(u32) -> u32) -> Vec<u32> {
    backends.flat_map(|backend| std::iter::once(backend).chain(std::iter::repeat_n(number(backend), columns))).collect()
}
