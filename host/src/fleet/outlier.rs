//! Whether a backend fails too often, though never often enough in a row: the success rate of a window.
//!
//! Pure: the clock and the counters are parameters. Counters only grow; the window is the difference between what
//! they are and what they were.

use std::collections::VecDeque;

/// How far back the window reaches.
const WINDOW_MS: u64 = 30_000;
/// Between two marks, so that a window is a dozen of them.
const STEP_MS: u64 = 2_500;
/// Fewer attempts than this prove nothing.
const ENOUGH: u64 = 20;
/// A backend is an outlier where a smaller part than this succeeds, in percent.
const LEAST_SUCCESS_PERCENT: u64 = 50;

/// Attempts since a backend was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attempts {
    pub ended: u64,
    pub failed: u64,
}

/// What the counters were at moments of the last half minute, and once before it.
#[derive(Debug, Clone, Default)]
pub struct Window {
    marks: VecDeque<(u64, Attempts)>,
}

impl Window {
    /// Takes note of the counters.
    pub fn note(&mut self, now_ms: u64, attempts: Attempts) {
        if self.marks.back().is_none_or(|(at, _)| at + STEP_MS <= now_ms) {
            self.marks.push_back((now_ms, attempts));
        }
        while self.marks.get(1).is_some_and(|(at, _)| at + WINDOW_MS <= now_ms) {
            self.marks.pop_front();
        }
    }

    /// Whether too many of the attempts since the window began have failed.
    pub fn is_outlier(&self, attempts: Attempts) -> bool {
        let before = self.marks.front().map_or(attempts, |(_, before)| *before);
        let failed = attempts.failed.saturating_sub(before.failed);
        let ended = attempts.ended.saturating_sub(before.ended).max(failed);
        ended >= ENOUGH && (ended - failed) * 100 < ended * LEAST_SUCCESS_PERCENT
    }

    /// A window that begins now: what was before is settled.
    pub fn begin_anew(&mut self, now_ms: u64, attempts: Attempts) {
        self.marks.clear();
        self.note(now_ms, attempts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn attempts(ended: u64, failed: u64) -> Attempts {
        Attempts { ended, failed }
    }

    fn from_nothing() -> Window {
        let mut window = Window::default();
        window.note(0, attempts(0, 0));
        window
    }

    #[test]
    fn half_of_enough_attempts_must_succeed() {
        for (ended, failed, is_outlier) in
            [(20, 10, false), (20, 11, true), (19, 19, false), (100, 50, false), (100, 51, true), (0, 0, false)]
        {
            assert_eq!(from_nothing().is_outlier(attempts(ended, failed)), is_outlier, "{failed} of {ended}");
        }
    }

    #[test]
    fn a_window_without_a_beginning_proves_nothing() {
        assert!(!Window::default().is_outlier(attempts(1_000, 1_000)));
    }

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let mut window = from_nothing();
        window.note(10_000, attempts(1_000, 0));
        assert!(!window.is_outlier(attempts(1_030, 30)), "a thousand good ones are in the window");
        window.note(41_000, attempts(1_000, 0));
        assert!(window.is_outlier(attempts(1_030, 30)));
    }

    #[test]
    fn marks_are_few_however_often_they_are_noted() {
        let mut window = Window::default();
        for now in 0..200_000 {
            window.note(now, attempts(now, 0));
        }
        assert!(window.marks.len() <= 14, "{}", window.marks.len());
    }

    #[test]
    fn a_new_beginning_forgets() {
        let mut window = from_nothing();
        window.begin_anew(5_000, attempts(50, 50));
        assert!(!window.is_outlier(attempts(60, 55)));
    }
}
