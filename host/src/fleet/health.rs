//! What real traffic says of a backend: consecutive failures eject it, a doubling back-off brings it to a
//! trial, one good answer clears it.
//!
//! Pure: the clock and the jitter are parameters. A green health page does not reach this: only traffic does.

/// First time out of use, doubled with every ejection that follows without a good answer between.
const FIRST_BACK_OFF_MS: u64 = 1_000;
const LONGEST_BACK_OFF_MS: u64 = 60_000;

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
    pub fn failed(self, eject_after: u32, now_ms: u64, jitter: f64) -> Self {
        match self {
            Self::Good if eject_after > 1 => Self::Failing { failures: 1 },
            Self::Failing { failures } if failures + 1 < eject_after => Self::Failing { failures: failures + 1 },
            Self::Good | Self::Failing { .. } => Self::ejected(1, now_ms, jitter),
            // The trial failed.
            Self::Ejected { until_ms, times } if until_ms <= now_ms => Self::ejected(times + 1, now_ms, jitter),
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

    fn ejected(times: u32, now_ms: u64, jitter: f64) -> Self {
        let doubled = FIRST_BACK_OFF_MS << (times - 1).min(6);
        let capped = doubled.min(LONGEST_BACK_OFF_MS);
        // Between the whole and one and a half, so that backends that failed together return apart.
        let spread = (capped as f64 * 0.5 * jitter) as u64;
        Self::Ejected { until_ms: now_ms + (capped + spread).min(LONGEST_BACK_OFF_MS), times }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(count: u32) -> Health {
        (0..count).fold(Health::default(), |health, _| health.failed(5, 1_000, 0.0))
    }

    #[test]
    fn consecutive_failures_eject_and_one_answer_forgets_them() {
        assert_eq!(failures(4), Health::Failing { failures: 4 });
        assert_eq!(failures(4).answered(), Health::Good);
        assert_eq!(failures(5), Health::Ejected { until_ms: 2_000, times: 1 });
    }

    #[test]
    fn late_failures_do_not_lengthen_an_ejection() {
        assert_eq!(failures(5).failed(5, 1_500, 0.0), failures(5));
    }

    #[test]
    fn a_failed_trial_doubles_the_back_off_up_to_a_minute() {
        let mut health = failures(5);
        let mut last = 0;
        for expected in [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000] {
            let Health::Ejected { until_ms, .. } = health else { panic!("not ejected: {health:?}") };
            health = health.failed(5, until_ms, 0.0);
            let Health::Ejected { until_ms: next, .. } = health else { panic!("not ejected: {health:?}") };
            assert_eq!(next - until_ms, expected);
            last = next - until_ms;
        }
        assert_eq!(last, LONGEST_BACK_OFF_MS);
    }

    #[test]
    fn one_failure_is_enough_where_it_is_configured_so() {
        assert!(Health::Good.failed(1, 0, 0.0).is_ejected(999));
        assert!(!Health::Good.failed(1, 0, 0.0).is_ejected(1_000));
    }
}
