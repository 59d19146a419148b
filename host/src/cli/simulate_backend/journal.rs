//! Each request's way through the engine, a line a step on standard output: for those who must know the engine's room
//! at every instant, and not only when they ask.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// A step on a request's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It is inside, and waits.
    Entered,
    /// It has its slot.
    Began,
    /// It is over, or given up.
    Left,
}

/// Writes nothing unless asked to.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pub is_kept: bool,
}

impl Journal {
    /// Writes one line; whoever calls holds the lock on what it counts, so that lines are in order.
    pub(super) fn write(&self, change: Change, caller: &str, running: usize, waiting: usize) {
        if !self.is_kept {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
        // Nobody may be left to read it: that is no reason to stop.
        let _ = std::io::stdout().lock().write_all(line(now, change, caller, running, waiting).as_bytes());
    }
}

fn line(micros: u128, change: Change, caller: &str, running: usize, waiting: usize) -> String {
    let change = match change {
        Change::Entered => "entered",
        Change::Began => "began",
        Change::Left => "left",
    };
    let caller = if caller.is_empty() { "-" } else { caller };
    format!("{micros} {change} {caller} {running} {waiting}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_always_five_words() {
        assert_eq!(line(7, Change::Entered, "a", 1, 2), "7 entered a 1 2\n");
        assert_eq!(line(8, Change::Left, "", 0, 0), "8 left - 0 0\n");
    }
}
