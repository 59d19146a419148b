//! What a simulated GPU can do: how long a prompt and a token take it, and how many tokens its memory holds.
//!
//! Pure. The model is the least that tells good balancing from bad: prompts are read one after another, as each of them
//! keeps the whole GPU busy; tokens are said together, each step the slower the more sequences take part; memory is
//! set aside for a whole request before it runs, so that none has to be thrown out half said. Left out is that
//! reading a prompt holds up those who speak: engines cut it into small pieces against that.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

/// How fast a simulated engine is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub first_token: Duration,
    pub token_interval: Duration,
    /// Tokens of prompts it reads a second; `None`: any number in no time.
    pub prefill_rate: Option<NonZeroU32>,
    /// What each further running request adds to the time between two tokens.
    pub batch_cost: Duration,
}

impl Pace {
    /// Time to read a prompt, which images are a part of.
    pub(super) fn prefill(self, prompt_tokens: u64) -> Duration {
        let Some(rate) = self.prefill_rate else { return Duration::ZERO };
        Duration::from_nanos(prompt_tokens.saturating_mul(1_000_000_000) / u64::from(rate.get()))
    }

    /// Time from one token of a request to its next, where so many requests run, itself among them.
    pub(super) fn step(self, running: usize) -> Duration {
        let others = u32::try_from(running.saturating_sub(1)).unwrap_or(u32::MAX);
        self.token_interval + self.batch_cost.saturating_mul(others)
    }
}

/// When a prompt is read that takes so long: behind those before it, which keep the GPU busy until `busy_until`.
pub(super) fn read_by(busy_until: Option<Instant>, now: Instant, takes: Duration) -> Instant {
    busy_until.map_or(now, |busy| busy.max(now)) + takes
}

/// The memory for the tokens of running requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cache {
    pub tokens: u64,
    /// Whether a request waits for memory, or only shows what it takes.
    pub is_bound: bool,
}

impl Cache {
    /// Whether a request that needs so many tokens may begin where others were promised so many. One that is larger
    /// than the whole cache runs alone.
    pub(super) const fn takes(self, promised: u64, needed: u64) -> bool {
        !self.is_bound || promised == 0 || promised.saturating_add(needed) <= self.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        first_token: Duration::from_millis(50),
        token_interval: Duration::from_millis(10),
        prefill_rate: NonZeroU32::new(8000),
        batch_cost: Duration::from_micros(500),
    };

    #[test]
    fn a_prompt_takes_as_long_as_its_tokens() {
        assert_eq!(PACE.prefill(0), Duration::ZERO);
        assert_eq!(PACE.prefill(200), Duration::from_millis(25));
        assert_eq!(PACE.prefill(200 + 2 * 576), Duration::from_millis(169), "two images");
        assert_eq!(Pace { prefill_rate: None, ..PACE }.prefill(u64::MAX), Duration::ZERO);
        assert!(PACE.prefill(u64::MAX) > Duration::from_secs(1_000_000));
    }

    #[test]
    fn a_batch_slows_everybody_and_yet_says_more() {
        assert_eq!(PACE.step(1), Duration::from_millis(10));
        assert_eq!(PACE.step(0), PACE.step(1));
        assert_eq!(PACE.step(9), Duration::from_millis(14));
        let tokens_a_second = |running: usize| running as f64 / PACE.step(running).as_secs_f64();
        assert!((1..64).all(|running| tokens_a_second(running + 1) > tokens_a_second(running)));
    }

    #[tokio::test(start_paused = true)]
    async fn prompts_are_read_one_after_another() {
        let now = Instant::now();
        let takes = Duration::from_millis(20);
        let first = read_by(None, now, takes);
        assert_eq!(first, now + takes);
        assert_eq!(read_by(Some(first), now, takes), now + 2 * takes);
        let idle = first + takes;
        assert_eq!(read_by(Some(first), idle, takes), idle + takes);
    }

    #[test]
    fn memory_is_promised_whole_and_never_twice() {
        let cache = Cache { tokens: 100, is_bound: true };
        assert!(cache.takes(60, 40) && !cache.takes(60, 41));
        assert!(cache.takes(0, 1000), "larger than the cache: alone");
        assert!(!cache.takes(1, u64::MAX));
        assert!(Cache { is_bound: false, ..cache }.takes(1000, 1000));
    }
}
