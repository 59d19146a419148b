//! The one clock of the live numbers: milliseconds since the process began, so that an instant fits an atomic. And a thread's own,
//! which stands still while others have its processor.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// 9999-12-31T23:59:59Z, in seconds since 1970.
const LAST_SECOND: u64 = 253_402_300_799;

/// Milliseconds since the first call in this process; never goes back.
pub fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    millis(START.get_or_init(Instant::now).elapsed())
}

/// Processor time that this thread has used so far.
pub fn thread_time() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(used.tv_sec).unwrap_or(0), u32::try_from(used.tv_nsec).unwrap_or(0))
}

/// The nearest moment that RFC 3339 has a date for, of those since 1970: a wall clock may be set to anything, and what began before
/// it was set may seem to be from before 1970. `humantime` panics at such a date, and at one after the year 9999.
pub fn datable(at: SystemTime) -> SystemTime {
    at.clamp(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(LAST_SECOND))
}

/// Whole milliseconds of a duration, as they are kept in atomics.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whole microseconds of a duration, capped at what a column or an atomic of 32 bits holds (71 minutes).
pub fn micros32(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_has_a_date() {
        let second = Duration::from_secs(1);
        let written = |at| humantime::format_rfc3339_millis(datable(at)).to_string();
        assert_eq!(written(UNIX_EPOCH - second), "1970-01-01T00:00:00.000Z");
        assert_eq!(written(UNIX_EPOCH + second), "1970-01-01T00:00:01.000Z");
        assert_eq!(written(UNIX_EPOCH + Duration::from_secs(LAST_SECOND + 1)), "9999-12-31T23:59:59.000Z");
    }
}
