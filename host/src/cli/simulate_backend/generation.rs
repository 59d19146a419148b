//! An answer over time: wait for the slot, then one token after another at the engine's pace.
//!
//! Times are instants counted on from the slot, not sleeps added up, so that a slow reader does not slow the engine's
//! clock and a thousand tokens take a thousand intervals.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::gpu::Pace;
use super::slots::Place;
use super::speech::{Finish, Speech};

/// One running request. Dropping it gives its place back.
pub(super) struct Generation {
    place: Place,
    speech: Speech,
    pace: Pace,
    arrived: Instant,
    started: Option<Instant>,
    /// When the next token has its time; `None` before the slot is taken.
    due: Option<Instant>,
    said: u64,
    text: String,
}

impl Generation {
    pub(super) fn new(place: Place, speech: Speech, pace: Pace) -> Self {
        Self { place, speech, pace, arrived: Instant::now(), started: None, due: None, said: 0, text: String::new() }
    }

    /// The next token, once its time has come; `None` after the last one, whose slot is free by then.
    ///
    /// Safe to drop and call again: a token counts only when it is returned.
    pub(super) async fn token(&mut self) -> Option<String> {
        if self.said == self.speech.tokens() {
            return None;
        }
        self.slot_taken().await;
        let due = *self.due.get_or_insert_with(|| {
            self.place.read_prompt(self.pace.prefill(self.place.prompt_tokens())) + self.pace.first_token
        });
        sleep_until(due).await;
        self.due = Some(due + self.pace.step(self.place.running()));
        let token = self.speech.token(self.said);
        self.said += 1;
        self.text.push_str(&token);
        self.place.count_token();
        if self.said == self.speech.tokens() {
            self.place.finish(self.speech.finish());
        }
        Some(token)
    }

    /// Says everything.
    pub(super) async fn say_everything(&mut self) {
        while self.token().await.is_some() {}
    }

    /// Waits for the slot and gives the instant it was granted.
    pub(super) async fn slot_taken(&mut self) -> Instant {
        if let Some(started) = self.started {
            return started;
        }
        self.place.granted().await;
        *self.started.insert(Instant::now())
    }

    /// A fault ends this one; see [`Place::break_on_purpose`].
    pub(super) fn break_on_purpose(&mut self) {
        self.place.break_on_purpose();
    }

    pub(super) const fn said(&self) -> u64 {
        self.said
    }

    /// Whether the token said last was the last one.
    pub(super) const fn is_complete(&self) -> bool {
        self.said == self.speech.tokens()
    }

    /// Everything said so far.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) const fn finish(&self) -> Finish {
        self.speech.finish()
    }

    /// Time since the request arrived, and since it got its slot.
    pub(super) fn elapsed(&self) -> (Duration, Duration) {
        let running = self.started.map_or(Duration::ZERO, |started| started.elapsed());
        (self.arrived.elapsed(), running)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::super::slots::Slots;
    use super::*;

    const PACE: Pace = Pace {
        first_token: Duration::from_millis(50),
        token_interval: Duration::from_millis(10),
        prefill_rate: None,
        batch_cost: Duration::ZERO,
    };

    fn generation(slots: &std::sync::Arc<Slots>, tokens: u64) -> Generation {
        paced(slots, tokens, PACE)
    }

    fn paced(slots: &std::sync::Arc<Slots>, tokens: u64, pace: Pace) -> Generation {
        let place = slots.enter("", 100, tokens).unwrap();
        Generation::new(place, Speech::new("a b c", tokens, None, false), pace)
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_come_at_the_engines_pace_and_the_slot_is_free_with_the_last() {
        let slots = Slots::plain(1, None, 100);
        let mut generation = generation(&slots, 3);
        let start = Instant::now();
        assert_eq!(generation.token().await.as_deref(), Some("a "));
        assert_eq!(start.elapsed().as_millis(), 50);
        // A slow reader finds the second token ready and the third one on time.
        tokio::time::sleep(Duration::from_millis(15)).await;
        generation.token().await;
        assert_eq!(start.elapsed().as_millis(), 65);
        generation.token().await;
        assert_eq!(start.elapsed().as_millis(), 70);
        assert_eq!(slots.load().running, 0);
        assert_eq!(generation.token().await, None);
        assert_eq!(generation.text(), "a b c");
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_starts_with_the_slot() {
        let slots = Slots::plain(1, None, 100);
        let first = generation(&slots, 3);
        let mut second = generation(&slots, 3);
        let start = Instant::now();
        let later = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            drop(first);
        });
        second.token().await;
        assert_eq!(start.elapsed().as_millis(), 250);
        later.await.unwrap();
        drop(second);
        assert_eq!(slots.load().counts.cancelled, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn prompts_are_read_in_turn_and_a_batch_speaks_slower() {
        let slots = Slots::plain(2, None, 100);
        let pace = Pace { prefill_rate: NonZeroU32::new(1000), batch_cost: Duration::from_millis(5), ..PACE };
        let (mut first, mut second) = (paced(&slots, 2, pace), paced(&slots, 2, pace));
        let start = Instant::now();
        tokio::join!(first.token(), second.token());
        assert_eq!(start.elapsed().as_millis(), 250, "the second prompt is read by 200 ms");
        first.token().await;
        assert_eq!(start.elapsed().as_millis(), 250, "said 15 ms after its first, at 165 ms");
        second.token().await;
        assert_eq!(start.elapsed().as_millis(), 265);
    }
}
