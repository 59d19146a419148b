//! How many slots an engine's own report leaves to us. Pure: clock and chance are parameters.
//!
//! A report can only lower what a backend has; it never raises it. It tells of everybody's requests, ours among them,
//! so that load from elsewhere (another replica of this proxy, a direct user) takes room from us. Ours that came since
//! are counted by ourselves: a stale report starts no herd. That others hold less is believed when two reports say so.
//!
//! Replicas see each other a report late. So what others leave is given up at once and taken half at a time, or they
//! would all fill what was free, then all retreat, for ever. The last slot is taken by chance, but by who has none.

use super::cost::{Cost, Held};

/// What a report says, beside what we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported {
    /// Requests in the engine, whoever sent them: at work, and waiting inside it.
    pub running: Option<u32>,
    pub waiting: Option<u32>,
    /// The most requests of ours while it was asked.
    pub ours: u32,
    /// Slots that ours take now.
    pub taken: u32,
    /// Somebody has waited for very long who could go here.
    pub is_starving: bool,
    /// A coin that was tossed.
    pub is_heads: bool,
}

/// What is left to us until the next report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// The most slots that ours may take; `None`: the report says nothing against any number.
    pub ceiling: Option<u32>,
    /// The report showed nobody but us, and no line.
    alone: bool,
    /// Slots that others did not hold by the report.
    left: u32,
}

impl Share {
    /// After a report. `slots`: what the backend has, where that is a word of configuration or engine. A learned number
    /// is none: it grows only while it is reached, and the engine's line tells whether that is too much.
    pub fn after(self, reported: Reported, slots: Option<u32>, max_waiting: u32) -> Self {
        // So many of ours must end before the engine has nothing in line; only then is there room for another.
        let too_many = reported.waiting.unwrap_or(0).saturating_sub(max_waiting);
        let by_line = (too_many > 0).then(|| reported.taken.saturating_sub(too_many));
        let Some((slots, running)) = slots.zip(reported.running) else {
            return Self { ceiling: by_line, ..Self::default() };
        };
        let others = running.saturating_add(reported.waiting.unwrap_or(0)).saturating_sub(reported.ours);
        let alone = others == 0 && too_many == 0;
        let (left_now, before) = (slots.saturating_sub(others), self.ceiling.unwrap_or(slots));
        // Between two requests of somebody who keeps an engine full there is a moment in which it is not.
        let left = if left_now > before { left_now.min(self.left).max(before) } else { left_now };
        let mut ceiling = match left {
            left if left <= before => left,
            _ if alone && self.alone => slots,
            left if left == before + 1 && before > 0 && !reported.is_heads => before,
            left => before + (left - before).div_ceil(2),
        };
        if ceiling == 0 && too_many == 0 && reported.is_starving {
            // Two replicas that would each fill every slot come to share so. The engine has it in line for a moment.
            ceiling = 1;
        }
        let ceiling = ceiling.min(by_line.unwrap_or(slots));
        Self { ceiling: (ceiling < slots).then_some(ceiling), alone, left: left_now }
    }
}

/// What ours may take of a backend at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub slots: u32,
    /// Guessed tokens; any number where nobody knows.
    pub tokens: u32,
}

impl Room {
    /// Whether another request fits. One that costs more than others leave to us, or than has grown back, may have all of
    /// that to itself. It holds what it costs, so that none of ours comes to it where more is left.
    pub fn fits(self, held: Held, cost: Cost) -> bool {
        let beside_others =
            || held.slots + cost.slots <= self.slots && self.tokens - held.tokens.min(self.tokens) >= cost.tokens;
        (held.requests == 0 && self.slots > 0) || beside_others()
    }

    /// Whether anything is left.
    pub fn has_any(self, held: Held) -> bool {
        held.slots < self.slots && (held.requests == 0 || held.tokens < self.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(running: u32, waiting: u32, ours: u32) -> Reported {
        Reported {
            running: Some(running),
            waiting: Some(waiting),
            ours,
            taken: ours,
            is_starving: false,
            is_heads: true,
        }
    }

    /// The ceiling after the first report.
    fn ceiling(reported: Reported, slots: Option<u32>, max_waiting: u32) -> Option<u32> {
        Share::default().after(reported, slots, max_waiting).ceiling
    }

    #[test]
    fn what_others_hold_is_not_ours_to_take() {
        assert_eq!(ceiling(at(0, 0, 0), Some(8), 0), None);
        assert_eq!(ceiling(at(3, 0, 3), Some(8), 0), None);
        assert_eq!(ceiling(at(5, 0, 3), Some(8), 0), Some(6));
        assert_eq!(ceiling(at(20, 0, 3), Some(8), 0), Some(0));
        let starving = Reported { is_starving: true, ..at(20, 0, 3) };
        assert_eq!(ceiling(starving, Some(8), 0), Some(1), "one of many, for who has waited for very long");
    }

    #[test]
    fn a_line_inside_the_engine_must_be_gone_first() {
        assert_eq!(ceiling(at(4, 2, 6), Some(16), 0), Some(4));
        assert_eq!(ceiling(at(4, 2, 6), Some(16), 2), None);
        assert_eq!(ceiling(at(4, 5, 6), Some(16), 2), Some(3), "13 for the others, 3 for the line");
        assert_eq!(ceiling(at(4, 9, 0), Some(16), 0), Some(0));
    }

    #[test]
    fn a_learned_number_is_held_back_by_the_line_alone() {
        assert_eq!(ceiling(at(30, 0, 2), None, 0), None);
        assert_eq!(ceiling(at(30, 1, 2), None, 0), Some(1));
    }

    #[test]
    fn what_is_not_reported_says_nothing() {
        let silent = Reported { running: None, waiting: None, ..at(0, 0, 3) };
        assert_eq!(ceiling(silent, Some(8), 0), None);
        assert_eq!(ceiling(Reported { waiting: Some(1), ..silent }, Some(8), 0), Some(2));
        assert_eq!(ceiling(Reported { running: Some(9), ..silent }, Some(8), 0), Some(2));
    }

    #[test]
    fn what_others_leave_is_taken_half_at_a_time_and_whole_once_they_are_gone() {
        let mut share = Share::default().after(at(9, 0, 1), Some(8), 0);
        assert_eq!(share.ceiling, Some(0));
        let mut next = |running| {
            share = share.after(at(running, 0, 0), Some(8), 0);
            share.ceiling
        };
        assert_eq!([next(7), next(8), next(7), next(8)], [Some(0); 4], "a gap is not yet room");
        assert_eq!([next(2), next(2), next(2), next(2), next(5)], [Some(0), Some(3), Some(5), Some(6), Some(3)]);
        assert_eq!([next(0), next(0)], [Some(3), None]);
    }

    /// Two replicas before one engine of so many slots, each with more requests than that: what each takes, a report
    /// at a time. Requests are short: all that is taken ends before the next report.
    fn two_replicas(slots: u32, together: bool) -> Vec<(u32, u32)> {
        let mut shares = [Share::default(); 2];
        let mut taken = [slots, if together { slots } else { 0 }];
        let (mut seen, mut coin) = (Vec::new(), fastrand::Rng::with_seed(u64::from(slots)));
        for _ in 1..100 {
            let all: u32 = taken.iter().sum();
            let (running, waiting) = (all.min(slots), all.saturating_sub(slots));
            for (share, taken) in shares.iter_mut().zip(&mut taken) {
                let reported = Reported { is_starving: true, is_heads: coin.bool(), ..at(running, waiting, *taken) };
                *share = share.after(reported, Some(slots), 0);
                // It fills what it may.
                *taken = share.ceiling.unwrap_or(slots);
            }
            seen.push((taken[0], taken[1]));
        }
        seen
    }

    #[test]
    fn replicas_come_to_share_without_a_line_and_without_a_gap() {
        for slots in [2, 4, 7, 32] {
            for together in [true, false] {
                let seen = two_replicas(slots, together);
                for (one, other) in &seen[40..] {
                    assert!(*one > 0 && *other > 0, "{slots} {together}: {seen:?}");
                    assert_eq!(one + other, slots, "{slots} {together}: {seen:?}");
                }
            }
        }
    }
}
