//! When a client that finds no room shall come again, by what is known of the backends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::now_ms;
use crate::fleet::Backend;

/// Nobody is told to come again later than this: both OpenAI SDKs ignore what is longer.
const LONGEST_SECONDS: f64 = 60.0;
/// Nobody is told to come again sooner.
const SHORTEST_SECONDS: f64 = 0.05;
/// How long others are thought to hold a slot, at the least: nobody says.
const OTHERS_HOLD_SECONDS: f64 = 10.0;

/// How slots come free.
#[derive(Debug, Default)]
pub struct Outlook {
    /// By time.
    openings: Vec<Opening>,
}

/// From some time on slots of a backend come free: so many at once, and so many a second.
#[derive(Debug)]
struct Opening {
    in_seconds: f64,
    at_once: f64,
    per_second: f64,
}

impl Opening {
    /// Slots that are ours come free as ours did so far. Those that others hold do as well, but no sooner than others are
    /// thought to need. One that wants to be left alone has nothing for anybody until then.
    fn of(backend: &Arc<Backend>) -> Self {
        let (room, slots) = (backend.room(), backend.slots());
        let hold = backend.mean_hold().as_secs_f64().max(0.001);
        let others = f64::from(slots.saturating_sub(room)) / hold.max(OTHERS_HOLD_SECONDS);
        let pause = backend.pause_left();
        let at_once = if pause.is_zero() { 0 } else { room.saturating_sub(backend.taken()) };
        Self { in_seconds: pause.as_secs_f64(), at_once: at_once.into(), per_second: f64::from(room) / hold + others }
    }
}

impl Outlook {
    /// Of those that are sound; where none is, of those that are up, for then they stay in use.
    pub fn of(backends: &[Arc<Backend>]) -> Self {
        let is_any_sound = backends.iter().any(|backend| backend.is_sound());
        let counts = |backend: &&Arc<Backend>| if is_any_sound { backend.is_sound() } else { backend.is_up() };
        let mut openings: Vec<_> = backends.iter().filter(counts).map(Opening::of).collect();
        openings.sort_by(|one, other| one.in_seconds.total_cmp(&other.in_seconds));
        Self { openings }
    }

    /// After how many seconds so many slots have come free.
    fn seconds_until(&self, slots: f64) -> f64 {
        let (mut at, mut freed, mut per_second) = (0.0, 0.0, 0.0);
        for opening in &self.openings {
            let by_then = freed + per_second * (opening.in_seconds - at);
            if by_then >= slots {
                break;
            }
            (at, freed) = (opening.in_seconds, by_then + opening.at_once);
            per_second += opening.per_second;
        }
        at + (slots - freed).max(0.0) / per_second.max(1e-3)
    }

    /// Slots that come free in a second now.
    fn per_second(&self) -> f64 {
        self.openings.iter().filter(|opening| opening.in_seconds <= 0.0).map(|opening| opening.per_second).sum()
    }

    /// Slots that come free as long as anybody is told to wait.
    fn within_the_longest(&self) -> f64 {
        let by_then =
            |opening: &Opening| opening.at_once + opening.per_second * (LONGEST_SECONDS - opening.in_seconds).max(0.0);
        self.openings.iter().map(by_then).sum()
    }
}

/// What clients of a model were promised that were told to come again.
#[derive(Debug, Default)]
pub struct Promises {
    owed: Mutex<Owed>,
}

#[derive(Debug, Default)]
struct Owed {
    slots: f64,
    at_ms: u64,
}

impl Promises {
    /// When a client that finds no room shall come again: each is promised slots of its own, one after another as they
    /// come free, behind those who wait. What was promised falls due as time passes, at the rate of the moment.
    /// `jitter`, 0 to 1, moves it by up to a quarter: later, but never past the longest.
    pub fn promise(&self, outlook: &Outlook, waiting: usize, cost: u32, jitter: f64) -> Duration {
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now_ms();
        let due = now.saturating_sub(owed.at_ms) as f64 / 1e3 * outlook.per_second();
        let cost = f64::from(cost);
        // More than could be promised within the longest time is not kept in mind.
        let slots = ((owed.slots - due).max(0.0) + cost).min(outlook.within_the_longest().max(cost));
        *owed = Owed { slots, at_ms: now };
        let seconds = outlook.seconds_until(waiting as f64 + slots);
        let spread = if seconds < LONGEST_SECONDS / 1.25 {
            seconds * (1.0 + jitter / 4.0)
        } else {
            LONGEST_SECONDS * (1.0 - jitter / 4.0)
        };
        Duration::from_secs_f64(spread.max(SHORTEST_SECONDS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Queue;
    use crate::fleet::engine::Report;
    use crate::fleet::slots;
    use crate::fleet::tests::{backend_with, limits};

    /// So many slots a second, from now on.
    fn steady(per_second: f64) -> Outlook {
        Outlook { openings: vec![Opening { in_seconds: 0.0, at_once: 0.0, per_second }] }
    }

    #[tokio::test(start_paused = true)]
    async fn clients_are_told_to_come_one_after_another_as_slots_come_free() {
        let promises = Promises::default();
        let millis = |waiting| promises.promise(&steady(10.0), waiting, 1, 0.0).as_millis();
        assert_eq!([(); 3].map(|()| millis(0)), [100, 200, 300]);
        assert_eq!(millis(5), 900, "behind those who wait");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(millis(0), 100, "what was promised has fallen due");
        assert_eq!(promises.promise(&steady(10.0), 0, 4, 0.0).as_millis(), 500, "who costs more waits longer");
    }

    #[tokio::test(start_paused = true)]
    async fn one_slow_moment_is_soon_forgotten() {
        let promises = Promises::default();
        assert!(promises.promise(&steady(0.01), 0, 1, 0.0) > Duration::from_secs(59));
        assert!(promises.promise(&steady(10.0), 0, 1, 0.0) < Duration::from_millis(250));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_sent_away_for_more_than_a_minute_or_less_than_a_moment() {
        let promises = Promises::default();
        assert_eq!(promises.promise(&steady(1e6), 0, 1, 0.0), Duration::from_millis(50));
        assert_eq!(promises.promise(&Outlook::default(), 0, 1, 0.0), Duration::from_secs(60));
        assert_eq!(promises.promise(&steady(1.0), usize::MAX, 1, 1.0), Duration::from_secs(45), "and not all at once");
        assert!(Promises::default().promise(&steady(1.0), 0, 1, 1.0) > Duration::from_millis(1_200));
    }

    fn first_promise(backends: &[Arc<Backend>]) -> f64 {
        Promises::default().promise(&Outlook::of(backends), 0, 1, 0.0).as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_told_to_come_before_a_backend_that_wants_to_be_left_alone_takes_anything() {
        let queue = Queue::new(0, 0);
        let backends = [backend_with(&queue, 2), backend_with(&queue, 2)];
        backends[0].pushed_back(Duration::from_secs(20));
        backends[1].pushed_back(Duration::from_secs(30));
        let (promises, outlook) = (Promises::default(), Outlook::of(&backends));
        let told = [(); 7].map(|()| promises.promise(&outlook, 0, 1, 0.0).as_secs_f64());
        assert!((20.0..20.1).contains(&told[0]) && told[1] == told[0], "two slots: {told:?}");
        assert!(told.is_sorted() && told[2] > 20.1 && told[6] < 30.0, "as they come free again: {told:?}");
        drop(Backend::claim(&backends[1], slots(1)));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(first_promise(&backends) < 5.0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_hold_comes_free_when_they_are_done() {
        let queue = Queue::new(0, 0);
        let [full, free] = [(); 2].map(|()| backend_with(&queue, 2));
        for _ in 0..40 {
            // Ours take no time.
            Backend::claim(&full, slots(1)).unwrap().end_well();
            Backend::claim(&free, slots(1)).unwrap().end_well();
        }
        assert!(first_promise(&[Arc::clone(&full)]) < 0.1);
        full.asking();
        full.reported_in(&Report { running: Some(2), ..Report::default() }, &limits());
        assert_eq!((full.room(), first_promise(&[Arc::clone(&full)])), (0, 5.0));
        assert!(first_promise(&[full, free]) < 0.1);
    }

    #[tokio::test(start_paused = true)]
    async fn before_anything_was_measured_an_answer_is_thought_to_take_some_seconds() {
        let queue = Queue::new(0, 0);
        let backend = backend_with(&queue, 1);
        assert!((2.0..10.0).contains(&first_promise(&[Arc::clone(&backend)])));
        for _ in 0..40 {
            Backend::claim(&backend, slots(1)).unwrap().end_well();
        }
        assert!(first_promise(&[backend]) < 0.2, "it gives way to what is measured");
    }
}
