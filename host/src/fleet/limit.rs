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

    /// After a good answer. The limit only moves when it was reached (`full`): a limit nobody needed says
    /// nothing. `first_byte_us` is given for streams alone: the first byte of any other answer comes at its end
    /// and says how long it was. `has_room`: the engine says that nothing waits inside it, so that growth need
    /// not be careful.
    pub fn answered(self, full: bool, first_byte_us: Option<u32>, has_room: bool) -> Self {
        let floor_us = first_byte_us.map_or(self.floor_us, |seen| self.floor_after(seen));
        let is_slow =
            first_byte_us.is_some_and(|seen| seen > floor_us.saturating_mul(SLOW_FACTOR).saturating_add(SLOW_SLACK_US));
        let scaled = match (full, is_slow) {
            (false, _) => self.scaled,
            (true, false) if has_room => self.scaled + ONE,
            // One slot more for every full round of the present limit.
            (true, false) => self.scaled + (ONE * ONE / self.scaled.max(1)).max(1),
            (true, true) => self.scaled - self.scaled / 64,
        };
        Self { scaled: bounded(scaled), floor_us }
    }

    /// The floor follows what is seen now, slowly: requests change, and a floor of another time would make every
    /// answer slow for ever.
    fn floor_after(self, seen_us: u32) -> u32 {
        match self.floor_us {
            0 => seen_us,
            floor if seen_us <= floor => seen_us,
            floor => floor + (seen_us - floor) / 32,
        }
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

    fn after(times: usize, learned: Learned, full: bool, first_byte_us: u32) -> Learned {
        (0..times).fold(learned, |learned, _| learned.answered(full, Some(first_byte_us), false))
    }

    #[test]
    fn grows_by_a_slot_a_round_while_answers_stay_quick() {
        let learned = after(FIRST as usize, Learned::default(), true, 50_000);
        assert!((FIRST..=FIRST + 1).contains(&learned.slots()));
        assert!(after(100, learned, true, 50_000).slots() > FIRST + 5);
    }

    #[test]
    fn grows_by_a_slot_an_answer_where_the_engine_has_room() {
        let learned = (0..20).fold(Learned::default(), |learned, _| learned.answered(true, None, true));
        assert_eq!(learned.slots(), FIRST + 20);
    }

    #[test]
    fn a_limit_that_is_not_reached_stays() {
        assert_eq!(after(9, after(1, Learned::default(), false, 1_000), false, 900_000).slots(), FIRST);
    }

    #[test]
    fn shrinks_when_streams_begin_late_or_the_engine_pushes_back() {
        let quick = after(1, Learned::default(), true, 10_000);
        assert!(after(5, quick, true, 2_000_000).slots() < FIRST);
        assert_eq!(Learned::default().pushed_back(8).slots(), 6);
        assert_eq!(Learned::default().pushed_back(2).slots(), 1);
    }

    #[test]
    fn one_quick_answer_does_not_make_every_other_slow_for_ever() {
        let learned = after(2_000, after(1, Learned::default(), true, 5_000), true, 600_000);
        assert!(learned.slots() > FIRST, "{learned:?}");
    }

    #[test]
    fn never_leaves_its_range() {
        let high = (0..5_000).fold(Learned::default(), |learned, _| learned.answered(true, None, true));
        let low = (0..50).fold(Learned::default(), |learned, _| learned.pushed_back(0));
        assert_eq!((high.slots(), low.slots()), (*RANGE.end(), *RANGE.start()));
    }
}
