//! What real traffic says of a backend: consecutive failures eject it, a doubling back-off brings it to a
//! trial, one good answer clears it.
//!
//! Pure: the clock and the jitter are parameters. A green health page does not reach this: only traffic does.

use std::time::Duration;

use crate::config::Ejection;

/// Where doubling ends, unless the first time was longer already.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);

/// Where a backend stands with real traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// In use; so many failures since the last good answer.
    #[default]
    Good,
    Failing {
        failures: u32,
    },
    /// Out of use until then; `times` ejections in a row.
    Ejected {
        until_ms: u64,
        times: u32,
    },
}

impl Health {
    /// After a failure that speaks against the backend. `jitter` is 0.0 to 1.0.
    pub fn failed(self, rules: Ejection, now_ms: u64, jitter: f64) -> Self {
        match self {
            Self::Good if rules.after > 1 => Self::Failing { failures: 1 },
            Self::Failing { failures } if failures + 1 < rules.after => Self::Failing { failures: failures + 1 },
            Self::Good | Self::Failing { .. } => Self::ejected(1, rules.first, now_ms, jitter),
            // The trial failed.
            Self::Ejected { until_ms, times } if until_ms <= now_ms => {
                Self::ejected(times + 1, rules.first, now_ms, jitter)
            }
            // A request that was already on its way when the backend was ejected.
            still @ Self::Ejected { .. } => still,
        }
    }

    /// After a good answer.
    pub fn answered(self) -> Self {
        Self::Good
    }

    /// Whether it is out of use now; past its time it may be tried.
    pub fn is_ejected(self, now_ms: u64) -> bool {
        matches!(self, Self::Ejected { until_ms, .. } if now_ms < until_ms)
    }

    /// Until when it is or was out of use; `None` where it is not suspended.
    pub fn ejected_until(self) -> Option<u64> {
        if let Self::Ejected { until_ms, .. } = self { Some(until_ms) } else { None }
    }

    /// `first` is doubled with every ejection that follows without a good answer between.
    fn ejected(times: u32, first: Duration, now_ms: u64, jitter: f64) -> Self {
        let longest = LONGEST_BACK_OFF.max(first);
        let doublings = 1_u32.checked_shl(times - 1).unwrap_or(u32::MAX);
        let capped = first.saturating_mul(doublings).min(longest);
        // Between the whole and one and a half, so that backends that failed together return apart.
        let lasts = capped.saturating_add(capped.mul_f64(0.5 * jitter)).min(longest);
        let lasts_ms = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
        Self::Ejected { until_ms: now_ms.saturating_add(lasts_ms), times }
    }
}

#[cfg(test)]
pub(in crate::fleet) mod tests {
    use super::*;

    /// After so many failures, for a second at first.
    pub(in crate::fleet) fn ejection(after: u32) -> Ejection {
        Ejection { after, first: Duration::from_secs(1) }
    }

    fn failures(count: u32) -> Health {
        (0..count).fold(Health::default(), |health, _| health.failed(ejection(5), 1_000, 0.0))
    }

    #[test]
    fn consecutive_failures_eject_and_one_answer_forgets_them() {
        assert_eq!(failures(4), Health::Failing { failures: 4 });
        assert_eq!(failures(4).answered(), Health::Good);
        assert_eq!(failures(5), Health::Ejected { until_ms: 2_000, times: 1 });
    }

    #[test]
    fn late_failures_do_not_lengthen_an_ejection() {
        assert_eq!(failures(5).failed(ejection(5), 1_500, 0.0), failures(5));
    }

    #[test]
    fn a_failed_trial_doubles_the_back_off_up_to_a_minute() {
        let mut health = failures(5);
        let mut last = 0;
        for expected in [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000] {
            let Health::Ejected { until_ms, .. } = health else { panic!("not ejected: {health:?}") };
            health = health.failed(ejection(5), until_ms, 0.0);
            let Health::Ejected { until_ms: next, .. } = health else { panic!("not ejected: {health:?}") };
            assert_eq!(next - until_ms, expected);
            last = next - until_ms;
        }
        assert_eq!(last, 60_000);
    }

    #[test]
    fn the_first_time_is_configured_and_doubles_up_to_a_minute_or_itself() {
        for (first_ms, expected) in [(20, [20, 40, 80]), (45_000, [45_000, 60_000, 60_000]), (90_000, [90_000; 3])] {
            let rules = Ejection { after: 1, first: Duration::from_millis(first_ms) };
            let (mut health, mut now_ms) = (Health::Good, 0);
            for lasts in expected {
                health = health.failed(rules, now_ms, 0.0);
                assert_eq!(health.ejected_until(), Some(now_ms + lasts), "{rules:?}");
                now_ms += lasts;
            }
        }
        let most = Ejection { after: 1, first: Duration::MAX };
        assert!(Health::Good.failed(most, 1, 1.0).is_ejected(u64::MAX - 1));
        assert!(Health::Ejected { until_ms: 0, times: u32::MAX - 1 }.failed(ejection(1), 1, 1.0).is_ejected(60_000));
    }

    #[test]
    fn one_failure_is_enough_where_it_is_configured_so() {
        assert!(Health::Good.failed(ejection(1), 0, 0.0).is_ejected(999));
        assert!(!Health::Good.failed(ejection(1), 0, 0.0).is_ejected(1_000));
    }
}
