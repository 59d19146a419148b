//! How many slots an engine's own report leaves to us. Pure.
//!
//! A report can only lower what a backend has; it never raises it. It tells of everybody's requests, ours among them,
//! so that load from elsewhere (another replica of this proxy, a direct user) takes room from us. Ours that came since
//! are counted by ourselves: a stale report starts no herd.

/// What a report says, beside what we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported {
    /// Requests in the engine, whoever sent them: at work, and waiting inside it.
    pub running: Option<u32>,
    pub waiting: Option<u32>,
    /// The most requests of ours at one time since the report before: some engines tell of a moment ago.
    pub ours: u32,
    /// Slots that ours take now.
    pub taken: u32,
}

/// The most slots that ours may take until the next report; `None`: the report says nothing against any number.
///
/// `slots`: what the backend has, where that is a word of configuration or engine. A learned number is none: it grows
/// only while it is reached, and the engine's queue tells whether that is too much.
pub fn ceiling(reported: Reported, slots: Option<u32>, max_waiting: u32) -> Option<u32> {
    let waiting = reported.waiting.unwrap_or(0);
    let by_others = slots.zip(reported.running).and_then(|(slots, running)| {
        let others = running.saturating_add(waiting).saturating_sub(reported.ours);
        (others > 0).then(|| slots.saturating_sub(others))
    });
    // So many of ours must end before the engine has nothing in line; only then is there room for another.
    let too_many = waiting.saturating_sub(max_waiting);
    let by_line = (too_many > 0).then(|| reported.taken.saturating_sub(too_many));
    match (by_others, by_line) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(running: u32, waiting: u32, ours: u32) -> Reported {
        Reported { running: Some(running), waiting: Some(waiting), ours, taken: ours }
    }

    #[test]
    fn what_others_hold_is_not_ours_to_take() {
        assert_eq!(ceiling(at(0, 0, 0), Some(8), 0), None);
        assert_eq!(ceiling(at(3, 0, 3), Some(8), 0), None);
        assert_eq!(ceiling(at(5, 0, 3), Some(8), 0), Some(6));
        assert_eq!(ceiling(at(20, 0, 3), Some(8), 0), Some(0));
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
        let silent = Reported { running: None, waiting: None, ours: 3, taken: 3 };
        assert_eq!(ceiling(silent, Some(8), 0), None);
        assert_eq!(ceiling(Reported { waiting: Some(1), ..silent }, Some(8), 0), Some(2));
        assert_eq!(ceiling(Reported { running: Some(9), ..silent }, Some(8), 0), Some(2));
    }
}
