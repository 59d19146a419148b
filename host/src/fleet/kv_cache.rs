//! How many guessed tokens of ours fit into a backend's KV-cache: measured, not told. Pure.
//!
//! Before a request runs, its tokens are only guessed, and engines differ in what a token takes: in the size of their
//! cache, in the prompts that share its blocks, in when they set memory aside. But they report which part of it is in
//! use, and we know what we guessed of the requests that are there. Of many reports together, the one divided by the
//! other is the part that a guessed token takes.

/// How much of what earlier reports showed is left after another.
const KEPT: f64 = 15.0 / 16.0;
/// While a report was made no more than this part of our tokens may have come or gone: of which of those it tells is not known.
const STEADY: u32 = 8;
/// Reports until there is something to go by.
const ENOUGH: u32 = 3;
/// Where requests wait inside an engine whose cache is as full as this, they wait for memory: it was filled too far.
const NEARLY_FULL: f64 = 0.7;
/// So much larger than measured requests are taken to be after each such report, a third more at the most; and this part of
/// it is forgotten at each other one.
const CAUTION_STEP: f64 = 0.04;
const CAUTION_MOST: f64 = 0.33;
const CAUTION_KEPT: f64 = 0.99;

/// What a report shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// The part of the cache, 0 to 1, that all requests use, and that ours do.
    pub by_all: f64,
    pub used: f64,
    /// Tokens that were guessed of ours.
    pub tokens: u32,
    /// How many of them came or went while it was asked.
    pub moved: u32,
    /// Some may wait inside the engine and use nothing yet.
    pub some_wait: bool,
}

/// What has been seen of a backend's cache, newer reports counting more, and such with many requests.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct KvCache {
    used: f64,
    tokens: f64,
    reports: u32,
    caution: f64,
}

impl KvCache {
    /// The part of the cache that a guessed token takes; `None` before that is known.
    pub fn part_of_token(self) -> Option<f64> {
        (self.reports >= ENOUGH && self.used > 0.0).then(|| self.used / self.tokens * (1.0 + self.caution))
    }

    /// After a report.
    pub fn after(self, seen: Seen) -> Self {
        let lacks_memory = seen.some_wait && seen.by_all > NEARLY_FULL;
        let more = if lacks_memory { self.caution + CAUTION_STEP } else { self.caution * CAUTION_KEPT };
        let caution = more.min(CAUTION_MOST);
        let tokens = f64::from(seen.tokens);
        // What waits inside would make all others look smaller than they are.
        let misleads = seen.some_wait && seen.used * self.tokens < self.used * tokens;
        let is_blurred = seen.moved > seen.tokens / STEADY && self.reports >= ENOUGH;
        if seen.tokens == 0 || seen.used <= 0.0 || misleads || is_blurred {
            return Self { caution, ..self };
        }
        Self {
            used: self.used * KEPT + seen.used,
            tokens: self.tokens * KEPT + tokens,
            reports: self.reports.saturating_add(1),
            caution,
        }
    }

    /// Guessed tokens that this part of the cache takes, fewer than none where the part is; `None` before that is known.
    pub fn room(self, part: f64) -> Option<i64> {
        // A cast from f64 saturates.
        self.part_of_token().map(|of_token| (part / of_token) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(used: f64, tokens: u32) -> Seen {
        Seen { by_all: used, used, tokens, moved: 0, some_wait: false }
    }

    fn after(reports: impl IntoIterator<Item = Seen>) -> KvCache {
        reports.into_iter().fold(KvCache::default(), KvCache::after)
    }

    #[test]
    fn nothing_is_known_before_there_are_reports_of_our_requests() {
        assert_eq!(after([seen(0.5, 100); 2]).room(1.0), None);
        assert_eq!(after([seen(0.0, 100); 9]).room(1.0), None, "not begun");
        assert_eq!(after([seen(0.5, 0); 9]).room(1.0), None, "somebody else's");
    }

    #[test]
    fn a_measured_token_tells_how_many_fit() {
        let cache = after([seen(0.5, 100); 3]);
        assert_eq!((cache.room(1.0), cache.room(0.5), cache.room(-0.1)), (Some(200), Some(100), Some(-20)));
    }

    #[test]
    fn many_requests_say_more_than_few_and_new_ones_more_than_old() {
        let cache = after([seen(0.4, 100), seen(0.004, 10), seen(0.4, 100), seen(0.004, 10)]);
        assert!(cache.room(1.0).is_some_and(|room| (250..300).contains(&room)), "not 1,000: {cache:?}");
        let grown = after([[seen(0.5, 100); 40], [seen(0.5, 400); 40]].concat());
        assert!(grown.room(1.0).is_some_and(|room| (700..=800).contains(&room)), "prefixes are shared now: {grown:?}");
    }

    #[test]
    fn a_report_of_a_moment_in_which_much_came_or_went_says_nothing_new() {
        let cache = after([seen(0.5, 100); 3]);
        let blurred = |moved| cache.after(Seen { moved, ..seen(0.25, 100) });
        assert_eq!(blurred(13), cache);
        assert!(blurred(12).room(1.0) > cache.room(1.0));
        assert!(after([Seen { moved: 99, ..seen(0.5, 100) }; 3]).room(1.0).is_some(), "better than nothing");
    }

    #[test]
    fn a_line_inside_makes_nobody_look_smaller() {
        let cache = after([seen(0.5, 100); 3]);
        assert_eq!(cache.after(Seen { some_wait: true, ..seen(0.6, 1_000) }), cache);
        let larger = cache.after(Seen { some_wait: true, ..seen(1.0, 100) });
        assert!(larger.room(1.0) < cache.room(1.0));
    }

    #[test]
    fn a_cache_that_was_filled_too_far_is_filled_less_for_a_while() {
        let cache = after([seen(0.5, 100); 3]);
        let line = Seen { some_wait: true, by_all: 0.9, ..seen(0.5, 100) };
        let wary = (0..99).fold(cache, |cache, _| cache.after(line));
        assert_eq!(wary.room(1.0), Some(150), "{wary:?}");
        let later = (0..500).fold(wary, |cache, _| cache.after(seen(0.5, 100)));
        assert_eq!(later.room(1.0), Some(199), "{later:?}");
    }
}
