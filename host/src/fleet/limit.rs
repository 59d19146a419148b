//! The learned limit of a backend that neither configuration nor engine gives one: additive increase while nothing
//! waits inside the engine, multiplicative decrease when something does or the engine pushes back.
//!
//! Pure: numbers and instants in, numbers out. An engine that reports its line is believed. Of any other it shows in how
//! long answers take, against the quickest seen: the time to the first byte of a stream, the time for each token of
//! any other answer. Judged are rounds of as many answers as there are slots, and only by those that were asked for after
//! the limit last changed. No line, however long it stays, makes the floors rise; only an experiment does: where two
//! decreases in a row have not made answers quicker, it was no line that made them slow.

use crate::config::Engine;

/// Slots granted before anything is known: enough for a small GPU server to batch, few enough that a
/// desktop machine is not buried.
pub const FIRST: u32 = 8;
/// Slots of an Ollama and an LM Studio that nobody has set up otherwise: `OLLAMA_NUM_PARALLEL`, and "Max Concurrent
/// Predictions".
const FIRST_OF_OLLAMA: u32 = 1;
const FIRST_OF_LM_STUDIO: u32 = 4;
/// A learned limit never leaves this range; the upper end is what the largest engines batch.
pub const RANGE: std::ops::RangeInclusive<u32> = 1..=1024;
/// A stream begins late when its first byte takes this many times the quickest seen, and the slack.
const FIRST_BYTE_FACTOR: u64 = 4;
/// Tokens come slowly when each takes so many halves of the quickest seen, and their answer the slack: a full batch
/// costs some of a GPU's speed, and a line as long as the slots doubles the time.
const TOKEN_HALVES: u64 = 5;
/// Differences below this are noise of a machine or a longer prompt, not a line inside the engine.
const SLACK_US: u64 = 50_000;
/// Fewer answers than this say nothing, however few slots there are: prompts and answers differ. Before anything was found
/// to be too much, what is wrong by chance is soon put right.
const SMALLEST_ROUND: u32 = 8;
const SMALLEST_FIRST_ROUND: u32 = 4;
/// A floor falls by no more than this part of it at an answer: one that is shorter than all others is no measure of them.
const FLOOR_STEP: u64 = 8;
/// A number that was too many is tried again after this long: the engine may have got more room.
const TRY_AGAIN_MS: u64 = 30_000;
/// After so many decreases in a row a line would be shorter by nearly half, and by a fifth at the very least.
const STEPS_TO_TELL: u8 = 2;

/// A good answer, as far as it tells of a line inside the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// When its request got its slot.
    pub sent_ms: u64,
    /// It got the last one: a limit that nobody reaches is not raised.
    pub was_full: bool,
    pub took: Took,
}

/// What of an answer is measured, from its request sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Took {
    /// Microseconds to the first byte of a stream.
    FirstByte(u64),
    /// Microseconds to the last byte of an answer that came as a whole, and its tokens.
    Whole { us: u64, tokens: u64 },
}

/// A learned limit and what it was learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    slots: u32,
    /// Quickest first byte of a stream, and quickest token of other answers, in microseconds; 0 before the first.
    first_byte_us: u64,
    token_us: u64,
    round: Round,
    /// So many were too many, at this time.
    wall: Option<(u32, u64)>,
    decline: Option<Decline>,
}

/// The answers since the limit last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Round {
    since_ms: u64,
    answers: u32,
    full: u32,
    /// Of its streams the quickest first byte, for in a line everybody waits: of those that got the last slot, if any did,
    /// which come first as `false`.
    first_byte_us: Option<(bool, u64)>,
    /// Of its other answers: how many, and their times and tokens added up.
    wholes: u64,
    whole_us: u64,
    tokens: u64,
}

/// Decreases in a row because answers were slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Decline {
    /// How slow they were, and how many slots there were, at the first.
    permille: u64,
    slots: u32,
    steps: u8,
}

impl Default for Learned {
    fn default() -> Self {
        Self::before(None)
    }
}

impl Learned {
    /// Before anything is learned of this engine.
    pub fn before(engine: Option<Engine>) -> Self {
        let slots = match engine {
            Some(Engine::Ollama) => FIRST_OF_OLLAMA,
            Some(Engine::LmStudio) => FIRST_OF_LM_STUDIO,
            _ => FIRST,
        };
        let round = Round::default();
        Self { slots, first_byte_us: 0, token_us: 0, round, wall: None, decline: None }
    }

    /// The limit.
    pub fn slots(self) -> u32 {
        self.slots
    }

    /// After a good answer, with so many requests still in flight. `reports`: the engine tells of its line itself, so
    /// that nothing is concluded from how long answers take.
    pub fn answered(self, answer: Answer, reports: bool, in_flight: u32, now_ms: u64) -> Self {
        let mut next = self.with_floors(answer.took);
        if reports || answer.sent_ms <= next.round.since_ms {
            return next;
        }
        next.round.add(answer);
        let smallest = if next.wall.is_none() { SMALLEST_FIRST_ROUND } else { SMALLEST_ROUND };
        if next.round.answers < next.slots.max(smallest) {
            return next;
        }
        let permille = next.slowness();
        if permille > 1_000 {
            return next.slowed(permille, in_flight, now_ms);
        }
        next.decline = None;
        if next.round.full * 2 >= next.round.answers { next.grown(1, now_ms) } else { next.begun_anew(now_ms) }
    }

    /// After a report that nothing waits inside the engine, though all slots were taken before it was asked. Growth is
    /// quick until the first line was met.
    pub fn had_room(self, now_ms: u64) -> Self {
        self.grown(self.slots / 2, now_ms)
    }

    /// After a 429 or 503, or a report of a line, while `in_flight` requests were at the backend: it takes fewer than
    /// that. Few in flight may be the rest of many, so that half of the limit is the least that is believed.
    pub fn pushed_back(self, in_flight: u32, now_ms: u64) -> Self {
        let base = in_flight.clamp(self.slots.div_ceil(2), self.slots);
        Self { slots: bounded(base - base.div_ceil(4)), wall: Some((base, now_ms)), ..self }.begun_anew(now_ms)
    }

    fn with_floors(self, took: Took) -> Self {
        let lower = |floor: u64, seen: u64| match floor {
            0 => seen.max(1),
            floor => seen.clamp((floor - floor / FLOOR_STEP).max(1), floor),
        };
        let (mut first_byte_us, mut token_us) = (self.first_byte_us, self.token_us);
        match took {
            Took::FirstByte(us) => first_byte_us = lower(first_byte_us, us),
            Took::Whole { us, tokens } => token_us = lower(token_us, us / tokens.max(1)),
        }
        // Measured by another floor, what came before says nothing.
        let is_same = (first_byte_us, token_us) == (self.first_byte_us, self.token_us);
        Self { first_byte_us, token_us, decline: self.decline.filter(|_| is_same), ..self }
    }

    /// How long the answers of this round took, in permille of what is still quick; of streams and others the quicker.
    fn slowness(self) -> u64 {
        let Round { first_byte_us, wholes, whole_us, tokens, .. } = self.round;
        let quick_us = self.first_byte_us * FIRST_BYTE_FACTOR + SLACK_US;
        let streams = first_byte_us.map(|(_, us)| us * 1_000 / quick_us);
        // An engine may claim any number of tokens.
        let quick_us = (self.token_us.saturating_mul(tokens) / 2).saturating_mul(TOKEN_HALVES);
        let quick_us = quick_us.saturating_add(SLACK_US * wholes);
        let others = (wholes > 0).then(|| whole_us * 1_000 / quick_us);
        streams.into_iter().chain(others).min().unwrap_or(0)
    }

    fn slowed(self, permille: u64, in_flight: u32, now_ms: u64) -> Self {
        let decline = match self.decline {
            Some(decline) if decline.steps < STEPS_TO_TELL => Decline { steps: decline.steps + 1, ..decline },
            Some(decline) if permille * 5 > decline.permille * 4 => return self.excused(decline, permille, now_ms),
            _ => Decline { permille, slots: self.slots, steps: 1 },
        };
        // Some of those that were too many may have ended by now.
        let were_there = if self.round.full > 0 { self.slots } else { in_flight };
        Self { decline: Some(decline), ..self }.pushed_back(were_there, now_ms)
    }

    /// Fewer slots did not make answers quicker: requests are others now, or the engine is. This is the new usual.
    fn excused(self, decline: Decline, permille: u64, now_ms: u64) -> Self {
        let raised = |floor: u64| floor * permille / 500;
        let (first_byte_us, token_us) = (raised(self.first_byte_us), raised(self.token_us));
        Self { slots: decline.slots, first_byte_us, token_us, wall: None, decline: None, ..self }.begun_anew(now_ms)
    }

    /// More slots: so many where no number is known to be too many, half the way to one that is, and one beyond it.
    fn grown(self, step: u32, now_ms: u64) -> Self {
        let (more, wall) = match self.wall {
            None => (step.max(1), None),
            Some((wall, _)) if self.slots + 1 < wall => (((wall - 1 - self.slots) / 2).max(1), self.wall),
            Some((_, met_ms)) if now_ms < met_ms + TRY_AGAIN_MS => (0, self.wall),
            Some(_) => (1, None),
        };
        Self { slots: bounded(self.slots + more), wall, ..self }.begun_anew(now_ms)
    }

    fn begun_anew(self, now_ms: u64) -> Self {
        Self { round: Round { since_ms: now_ms, ..Round::default() }, ..self }
    }
}

impl Round {
    fn add(&mut self, answer: Answer) {
        self.answers += 1;
        self.full += u32::from(answer.was_full);
        match answer.took {
            Took::FirstByte(us) => {
                let seen = (!answer.was_full, us);
                self.first_byte_us = Some(self.first_byte_us.map_or(seen, |quickest| quickest.min(seen)));
            }
            Took::Whole { us, tokens } => {
                self.wholes += 1;
                self.whole_us += us;
                self.tokens = self.tokens.saturating_add(tokens);
            }
        }
    }
}

fn bounded(slots: u32) -> u32 {
    slots.clamp(*RANGE.start(), *RANGE.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An engine that runs so many requests at once, the next ones waiting inside in order.
    #[derive(Clone, Copy)]
    struct Engine {
        slots: usize,
        first_byte_ms: u64,
        /// From its slot to its last byte, of 20 tokens on average.
        answer_ms: u64,
        is_streamed: bool,
        reports: bool,
        /// Prompts and answers are of all lengths, and one in fifty is a ping.
        is_varied: bool,
    }

    const SMALL: Engine =
        Engine { slots: 2, first_byte_ms: 50, answer_ms: 450, is_streamed: true, reports: false, is_varied: false };
    const LARGE: Engine = Engine { slots: 16, ..SMALL };

    struct Request {
        sent_ms: u64,
        was_full: bool,
        begun_ms: Option<u64>,
        first_byte_ms: u64,
        tokens: u64,
    }

    impl Engine {
        /// Time to the first byte, and tokens.
        fn lengths(self, random: &mut fastrand::Rng) -> (u64, u64) {
            match self.is_varied {
                false => (self.first_byte_ms, 20),
                true if random.u8(..50) == 0 => (self.first_byte_ms / 4, 2),
                true => {
                    let prompt = self.first_byte_ms as f64 * (0.3 + 3.0 * random.f64().powi(2));
                    (prompt as u64, 1 + (-20.0 * (1.0 - random.f64()).ln()) as u64)
                }
            }
        }
    }

    /// What became of the limit: at the end of each second the limit, and in how many of its milliseconds requests
    /// waited inside.
    struct Seen {
        limits: Vec<u32>,
        waited_ms: Vec<u32>,
    }

    /// 24 clients that ask again as soon as they are answered, before this engine for so many seconds, a millisecond a
    /// step.
    fn closed_loop(engine: Engine, mut learned: Learned, from_s: u64, seconds: u64) -> (Learned, Seen) {
        let (mut inside, mut random) = (Vec::<Request>::new(), fastrand::Rng::with_seed(7));
        let (mut seen, mut waited_ms, mut full_since) = (Seen { limits: vec![], waited_ms: vec![] }, 0, u64::MAX);
        for now in from_s * 1_000 + 1..=(from_s + seconds) * 1_000 {
            let mut ask = |inside: &mut Vec<Request>, learned: Learned| {
                while inside.len() < 24.min(learned.slots() as usize) {
                    let was_full = inside.len() + 1 >= learned.slots() as usize;
                    let (first_byte_ms, tokens) = engine.lengths(&mut random);
                    inside.push(Request { sent_ms: now, was_full, begun_ms: None, first_byte_ms, tokens });
                }
            };
            ask(&mut inside, learned);
            let mut done = Vec::new();
            for (at, request) in inside.iter_mut().enumerate().take(engine.slots) {
                let age = now - *request.begun_ms.get_or_insert(now);
                let token_ms = (engine.answer_ms - engine.first_byte_ms) / 20;
                let is_done = age == request.first_byte_ms + request.tokens * token_ms;
                done.extend(is_done.then_some(at));
                let us = (now - request.sent_ms) * 1_000;
                let took = match engine.is_streamed {
                    true if age == request.first_byte_ms => Took::FirstByte(us),
                    false if is_done => Took::Whole { us, tokens: request.tokens },
                    _ => continue,
                };
                let answer = Answer { sent_ms: request.sent_ms, was_full: request.was_full, took };
                learned = learned.answered(answer, engine.reports, learned.slots().min(24), now);
            }
            let waiting = inside.len().saturating_sub(engine.slots);
            waited_ms += u32::from(waiting > 0);
            // A freed slot is handed over before the next one is free.
            for at in done.into_iter().rev() {
                inside.remove(at);
                ask(&mut inside, learned);
            }
            // A poll a second, which takes a while.
            let is_full = inside.len() + 2 > learned.slots() as usize;
            match now % 1_000 {
                900 => full_since = if is_full { now } else { u64::MAX },
                0 if engine.reports && waiting > 0 => learned = learned.pushed_back(inside.len() as u32, now),
                0 if engine.reports && full_since < now && is_full => learned = learned.had_room(now),
                _ => {}
            }
            if now % 1_000 == 0 {
                seen.limits.push(learned.slots());
                seen.waited_ms.push(std::mem::take(&mut waited_ms));
            }
        }
        (learned, seen)
    }

    fn limits(engine: Engine, seconds: u64) -> Vec<u32> {
        closed_loop(engine, Learned::default(), 0, seconds).1.limits
    }

    #[test]
    fn an_engine_may_claim_any_number_of_tokens() {
        let mut learned = Learned::default();
        for tokens in [u64::MAX, 1, u64::MAX / 2, 0].into_iter().cycle().take(40) {
            let answer = Answer { sent_ms: 1, was_full: true, took: Took::Whole { us: 1_000_000, tokens } };
            learned = learned.answered(answer, false, 8, 0);
        }
        assert!(RANGE.contains(&learned.slots()));
    }

    #[test]
    fn a_small_engine_is_not_buried_however_long_its_line_stays() {
        let streamed = limits(SMALL, 600);
        assert!(streamed[12..].iter().all(|limit| (2..=4).contains(limit)), "{streamed:?}");
        let whole = limits(Engine { is_streamed: false, ..SMALL }, 600);
        assert!(whole[12..].iter().all(|limit| (2..=6).contains(limit)), "{whole:?}");
        let one = limits(Engine { slots: 1, ..SMALL }, 600);
        assert!(one[40..].iter().all(|limit| (1..=2).contains(limit)), "{one:?}");
    }

    #[test]
    fn a_large_engine_is_not_throttled_and_grows_by_a_slot_a_round() {
        for is_streamed in [true, false] {
            let seen = limits(Engine { is_streamed, ..LARGE }, 30);
            assert!(seen[29] >= 12, "{seen:?}");
            // A round takes 450 ms at least.
            assert!(seen.windows(2).all(|pair| pair[1] <= pair[0] + 3), "{seen:?}");
        }
    }

    #[test]
    fn what_an_engine_reports_is_come_close_to_and_held() {
        for slots in [4, 16] {
            let (_, seen) = closed_loop(Engine { slots, reports: true, ..SMALL }, Learned::default(), 0, 120);
            let settled = &seen.limits[10..];
            let at_best = settled.iter().filter(|limit| **limit as usize == slots).count();
            assert!(at_best * 10 >= settled.len() * 8, "{:?}", seen.limits);
            assert!(seen.waited_ms[10..].iter().sum::<u32>() < 110_000 / 12, "{:?}", seen.waited_ms);
        }
    }

    #[test]
    fn an_engine_that_got_more_room_is_found_out() {
        let (learned, _) = closed_loop(SMALL, Learned::default(), 0, 30);
        let (_, seen) = closed_loop(LARGE, learned, 30, 120);
        assert!(seen.limits[119] >= 12, "{:?}", seen.limits);
    }

    #[test]
    fn longer_prompts_are_no_line() {
        let (learned, _) = closed_loop(LARGE, Learned::default(), 0, 30);
        let slow = Engine { first_byte_ms: 2_000, answer_ms: 3_000, ..LARGE };
        let (_, seen) = closed_loop(slow, learned, 30, 120);
        assert!(seen.limits[119] >= 12, "{:?}", seen.limits);
    }

    #[test]
    fn requests_of_all_lengths_bury_and_throttle_nobody() {
        for (slots, is_streamed) in [(2, true), (2, false), (8, true), (8, false), (16, true), (16, false)] {
            let engine = Engine { slots, is_streamed, is_varied: true, answer_ms: 2_050, ..SMALL };
            let seen = limits(engine, 900);
            let mean = f64::from(seen[100..].iter().sum::<u32>()) / 800.0 / slots as f64;
            assert!((0.9..2.2).contains(&mean), "{slots} {is_streamed} {mean}: {seen:?}");
        }
    }

    #[test]
    fn one_too_many_is_taken_back_and_no_more() {
        let answer = |at, us| Answer { sent_ms: at, was_full: true, took: Took::FirstByte(us) };
        let (mut learned, mut at) = (Learned::before(Some(crate::config::Engine::Ollama)), 1);
        let mut hear = |learned: Learned, us| {
            at += 1;
            learned.answered(answer(at, us), false, 2, at)
        };
        while learned.slots() < 3 {
            learned = hear(learned, 50_000);
        }
        // When it is judged, one of the three has just ended.
        while learned.slots() == 3 {
            learned = hear(learned, 900_000);
        }
        assert_eq!(learned.slots(), 2);
    }

    #[test]
    fn a_limit_that_is_not_reached_stays() {
        let answer = |at| Answer { sent_ms: at, was_full: false, took: Took::FirstByte(1_000) };
        let learned = (1..100).fold(Learned::default(), |learned, at| learned.answered(answer(at), false, 3, at + 1));
        assert_eq!(learned.slots(), FIRST);
    }

    #[test]
    fn what_was_asked_for_before_the_limit_changed_says_nothing_of_it() {
        let learned = Learned::default().pushed_back(8, 500);
        let answer = Answer { sent_ms: 500, was_full: true, took: Took::FirstByte(1_000) };
        let learned = (0..100).fold(learned, |learned, _| learned.answered(answer, false, 6, 600));
        assert_eq!(learned.slots(), 6);
    }

    #[test]
    fn shrinks_by_a_quarter_when_the_engine_pushes_back() {
        assert_eq!(Learned::default().pushed_back(8, 1).slots(), 6);
        assert_eq!(Learned::default().pushed_back(1, 1).slots(), 3, "the rest of four");
    }

    #[test]
    fn never_leaves_its_range() {
        let high = (0..50).fold(Learned::default(), |learned, at| learned.had_room(at));
        let low = (0..50).fold(Learned::default(), |learned, at| learned.pushed_back(0, at));
        assert_eq!((high.slots(), low.slots()), (*RANGE.end(), *RANGE.start()));
    }
}
