//! When faults are too many: five within a minute.
//!
//! Invariants:
//! - Pure: it is told the time.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// The recent faults of one running version.
#[derive(Debug, Default)]
pub struct Strikes {
    recent: VecDeque<Instant>,
}

impl Strikes {
    /// A version with so many faults …
    pub const LIMIT: usize = 5;
    /// … within this time is rolled back.
    pub const WINDOW: Duration = Duration::from_secs(60);

    /// Counts a fault. True where it is one too many: then the count starts anew.
    pub fn strike(&mut self, now: Instant) -> bool {
        self.recent.retain(|&then| now.duration_since(then) < Self::WINDOW);
        self.recent.push_back(now);
        let out = self.recent.len() >= Self::LIMIT;
        if out {
            self.recent.clear();
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fifth_fault_within_a_minute_is_one_too_many() {
        let start = Instant::now();
        let second = |at| start + Duration::from_secs(at);
        let mut strikes = Strikes::default();
        assert_eq!([0, 1, 2, 59].map(|at| strikes.strike(second(at))), [false; 4]);
        assert!(!strikes.strike(second(60)), "the first is a minute old");
        assert!(strikes.strike(second(60)));
        assert_eq!([61, 62, 63, 64].map(|at| strikes.strike(second(at))), [false; 4], "and from the start");
        assert!(strikes.strike(second(65)));
    }
}
