//! File descriptors: every connection costs one, and the kernel gives only so many.
//!
//! Invariants: what serves clients leaves room for the backends' connections and for the process itself; where
//! descriptors run out all the same, a spare one lets a listener answer instead of turning in a circle.

use std::fs::File;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept for the process itself: listeners, pollers, watched files, plugins, the admin API.
const RESERVE: u64 = 256;
/// Where the system names no limit.
const UNLIMITED: u64 = 1 << 20;
/// EMFILE and ENFILE.
const EXHAUSTED: [i32; 2] = [24, 23];

/// Raises the soft limit of open files to the hard one, for the soft one is made for programs that `select`.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Where that is not allowed, the limit that there is counts.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

/// How many clients may be connected at once: each may need a connection to a backend too.
pub fn client_limit() -> u64 {
    clients_within(getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED))
}

/// How many may be connected to the admin listener at once: half of what is kept for the process.
pub fn admin_limit() -> usize {
    let reserve = reserve_of(getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED));
    usize::try_from(reserve / 2).unwrap_or(usize::MAX).max(1)
}

fn clients_within(descriptors: u64) -> u64 {
    ((descriptors - reserve_of(descriptors)) / 2).max(1)
}

fn reserve_of(descriptors: u64) -> u64 {
    RESERVE.min(descriptors / 2)
}

/// Whether an error says that descriptors have run out.
pub fn have_run_out(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| EXHAUSTED.contains(&code))
}

/// Descriptors that are kept for the moment in which there are no others.
#[derive(Debug)]
pub struct Spare {
    kept: Vec<File>,
    most: usize,
}

impl Spare {
    pub fn new(most: usize) -> Self {
        let mut spare = Self { kept: Vec::new(), most };
        spare.refill();
        spare
    }

    /// Gives one back to the system; false where none is left.
    pub fn lend(&mut self) -> bool {
        self.kept.pop().is_some()
    }

    /// Takes back what was lent, as far as there are descriptors.
    pub fn refill(&mut self) {
        while self.kept.len() < self.most {
            let Ok(file) = File::open("/dev/null") else { return };
            self.kept.push(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_room_for_backends_and_for_the_process() {
        assert_eq!(clients_within(1024), 384);
        assert_eq!(clients_within(20_000), 9_872);
        assert_eq!(clients_within(64), 16);
        assert_eq!(clients_within(1), 1, "somebody must be let in");
    }
}
