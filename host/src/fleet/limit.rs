//! The learned limit of a backend that neither configuration nor engine gives one: additive increase while
//! answers stay quick, multiplicative decrease when the engine pushes back or answers grow slow.
//!
//! Pure: numbers in, numbers out. A limit is kept in 1/256 of a slot, so that growth by less than one
//! slot an answer adds up.

/// Slots granted before anything is known: enough for a small GPU server to batch, few enough that a
/// desktop machine is not buried.
pub const FIRST: u32 = 8;
/// A learned limit never leaves this range; the upper end is what the largest engines batch.
pub const RANGE: std::ops::RangeInclusive<u32> = 1..=1024;
/// An answer is slow when its first byte takes this many times the quickest seen, and then some.
const SLOW_FACTOR: u32 = 4;
/// Differences below this are noise of a machine, not a queue inside the engine.
const SLOW_SLACK_US: u32 = 100_000;

/// One slot in the fixed-point form.
const ONE: u32 = 256;

/// A learned limit and what it was learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    scaled: u32,
    /// Quickest first byte seen, in microseconds; 0 before the first answer.
    floor_us: u32,
}

impl Default for Learned {
    fn default() -> Self {
        Self { scaled: FIRST * ONE, floor_us: 0 }
    }
}

impl Learned {
    /// The limit in whole slots.
    pub fn slots(self) -> u32 {
        self.scaled / ONE
    }

    /// After an answer whose first byte took `first_byte_us`. The limit only moves when it was reached
    /// (`full`): a limit nobody needed says nothing.
    pub fn answered(self, full: bool, first_byte_us: u32) -> Self {
        let floor_us = if self.floor_us == 0 { first_byte_us } else { self.floor_us.min(first_byte_us) };
        let slow = first_byte_us > floor_us.saturating_mul(SLOW_FACTOR).saturating_add(SLOW_SLACK_US);
        let scaled = match (full, slow) {
            (false, _) => self.scaled,
            // One slot more for every full round of the present limit.
            (true, false) => self.scaled + (ONE * ONE / self.scaled.max(1)).max(1),
            (true, true) => self.scaled - self.scaled / 64,
        };
        Self { scaled: bounded(scaled), floor_us }
    }

    /// After a 429 or 503 while `in_flight` requests were at the backend: it takes fewer than that.
    pub fn pushed_back(self, in_flight: u32) -> Self {
        let base = self.scaled.min(in_flight.saturating_mul(ONE));
        Self { scaled: bounded(base - base / 4), ..self }
    }
}

fn bounded(scaled: u32) -> u32 {
    scaled.clamp(RANGE.start() * ONE, RANGE.end() * ONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_by_a_slot_a_round_while_answers_stay_quick() {
        let mut learned = Learned::default();
        for _ in 0..FIRST {
            learned = learned.answered(true, 50_000);
        }
        assert!((FIRST..=FIRST + 1).contains(&learned.slots()));
        for _ in 0..100 {
            learned = learned.answered(true, 50_000);
        }
        assert!(learned.slots() > FIRST + 5, "{learned:?}");
    }

    #[test]
    fn a_limit_that_is_not_reached_stays() {
        let learned = Learned::default().answered(false, 1_000).answered(false, 900_000);
        assert_eq!(learned.slots(), FIRST);
    }

    #[test]
    fn shrinks_when_answers_grow_slow_or_the_engine_pushes_back() {
        let mut learned = Learned::default().answered(true, 10_000);
        for _ in 0..64 {
            learned = learned.answered(true, 2_000_000);
        }
        assert!(learned.slots() < FIRST);
        assert_eq!(Learned::default().pushed_back(8).slots(), 6);
        assert_eq!(Learned::default().pushed_back(2).slots(), 1);
    }

    #[test]
    fn never_leaves_its_range() {
        let mut low = Learned::default();
        let mut high = Learned::default();
        for _ in 0..2_000_000 {
            high = high.answered(true, 1);
            low = low.pushed_back(0);
        }
        assert_eq!(high.slots(), *RANGE.end());
        assert_eq!(low.slots(), *RANGE.start());
    }
}
