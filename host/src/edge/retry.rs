//! Whether a request may be tried on another backend after an attempt ended so. Pure.
//!
//! RFC 9110 §9.2.2 forbids a gateway to repeat a POST blindly. Ours are not blind: an endpoint that only
//! generates keeps nothing, so a second run costs time and changes no state; what stores something is
//! never sent twice.

use std::time::Duration;

use http::{HeaderMap, header};

use crate::config::Failover;
use crate::error::ProxyError;
use crate::metrics::AttemptEnd;

/// How long a backend is left alone that says it is busy and not for how long.
const DEFAULT_PAUSE: Duration = Duration::from_secs(1);
/// However soon it says: at once would be the same backend again.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// However long it says.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Longer than this is no word of an engine that is busy; as if it had said nothing.
const ABSURD_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// A request under which so many backends broke is itself to blame.
const KILLS: u32 = 2;

/// Why an attempt brought nothing that could be passed on without asking another backend first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nothing was sent, for want of something on this machine: file descriptors, ports.
    Local,
    /// Nothing was sent.
    Connect,
    /// It was sent, and the connection ended before a byte of the answer's body.
    Unanswered,
    /// What came was no answer, or one that sends elsewhere.
    Invalid,
    /// Nothing came in time; the work may still be going on.
    Timeout,
    /// 429, 503, or the 529 of some gateways: refused for want of room.
    Busy,
    /// 401 or 403 to the key that the proxy itself has for it.
    Unauthorized,
    /// Another 5xx, or a stream whose first event is an error.
    ServerError,
    /// 404 for the model that it is there for: nothing was run.
    NoModel,
}

impl Cause {
    pub fn counted_as(self) -> AttemptEnd {
        match self {
            Self::Local | Self::Connect => AttemptEnd::Connect,
            Self::Unanswered => AttemptEnd::Unanswered,
            Self::Invalid => AttemptEnd::Invalid,
            Self::Timeout => AttemptEnd::Timeout,
            Self::Busy => AttemptEnd::Busy,
            Self::Unauthorized => AttemptEnd::Unauthorized,
            Self::ServerError | Self::NoModel => AttemptEnd::ServerError,
        }
    }
}

/// What happened to a request so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct History {
    pub attempts: u32,
    /// Those of them that ended at a backend without room, where the request could wait for some.
    refusals: u32,
    /// Backends whose connection ended under it.
    kills: u32,
    server_errors: u32,
    last: Option<Cause>,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Another backend.
    Elsewhere,
    /// The answer that the attempt did bring goes to the client.
    PassOn,
    Fail(ProxyError),
}

impl History {
    /// Takes note of an ended attempt and says what follows. `repeatable`: a second run changes no state. `may_wait`: it
    /// may stand in line; then to be told that there is no room uses up nothing but its time there.
    pub fn after(&mut self, cause: Cause, rules: &Failover, repeatable: bool, may_wait: bool) -> Verdict {
        self.last = Some(cause);
        self.refusals += u32::from(cause == Cause::Busy && may_wait);
        self.kills += u32::from(cause == Cause::Unanswered);
        self.server_errors += u32::from(matches!(cause, Cause::ServerError | Cause::Invalid));
        let again = match cause {
            Cause::Local | Cause::Connect | Cause::Busy | Cause::Unauthorized | Cause::NoModel => true,
            Cause::Unanswered => repeatable && rules.retry_unanswered && self.kills < KILLS,
            Cause::ServerError | Cause::Invalid => repeatable && self.server_errors < 2,
            Cause::Timeout => false,
        };
        match (again && self.counted() < rules.attempts, cause) {
            (true, _) => Verdict::Elsewhere,
            (false, Cause::ServerError | Cause::NoModel) => Verdict::PassOn,
            (false, _) => Verdict::Fail(self.error()),
        }
    }

    /// What the client is told where no attempt is left to be made.
    pub fn error(&self) -> ProxyError {
        match self.last {
            Some(Cause::Invalid) => ProxyError::InvalidResponse,
            Some(Cause::Timeout) => ProxyError::UpstreamTimeout,
            Some(Cause::Unauthorized) => ProxyError::UpstreamUnauthorized,
            Some(Cause::Busy) => ProxyError::Saturated { retry_after: DEFAULT_PAUSE },
            Some(Cause::Local) => ProxyError::Overloaded,
            Some(Cause::Connect | Cause::Unanswered | Cause::ServerError | Cause::NoModel) | None => {
                ProxyError::Unreachable
            }
        }
    }

    /// How much of `failover.attempts` is used up.
    pub fn counted(&self) -> u32 {
        self.attempts - self.refusals
    }

    /// Whether anything was tried and failed.
    pub fn has_failed(&self) -> bool {
        self.last.is_some()
    }
}

/// How long a backend that says it is busy is left alone: `Retry-After` in seconds or as a date (RFC 9110 §10.2.3).
pub fn pause(headers: &HeaderMap, now: std::time::SystemTime) -> Duration {
    let text = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::trim);
    let seconds = |text: &str| text.parse().ok().map(Duration::from_secs);
    let date =
        |text: &str| httpdate::parse_http_date(text).ok().map(|date| date.duration_since(now).unwrap_or_default());
    text.and_then(|text| seconds(text).or_else(|| date(text)))
        .filter(|pause| *pause <= ABSURD_PAUSE)
        .unwrap_or(DEFAULT_PAUSE)
        .clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Ejection;

    const RULES: Failover = Failover {
        attempts: 3,
        retry_unanswered: true,
        ejection: Ejection { after: 5, first: Duration::from_secs(1) },
    };

    /// The verdicts on causes that follow each other.
    fn verdicts(causes: &[Cause], repeatable: bool) -> Vec<Verdict> {
        verdicts_of(causes, repeatable, false)
    }

    fn verdicts_of(causes: &[Cause], repeatable: bool, may_wait: bool) -> Vec<Verdict> {
        let mut history = History::default();
        let mut after = |cause: &Cause| {
            history.attempts += 1;
            history.after(*cause, &RULES, repeatable, may_wait)
        };
        causes.iter().map(&mut after).collect()
    }

    #[test]
    fn what_was_not_sent_is_tried_up_to_the_limit() {
        use Cause::Connect;
        let expected = [Verdict::Elsewhere, Verdict::Elsewhere, Verdict::Fail(ProxyError::Unreachable)];
        assert_eq!(verdicts(&[Connect, Connect, Connect], true), expected);
        assert_eq!(verdicts(&[Connect, Connect, Connect], false), expected);
    }

    #[test]
    fn who_is_busy_is_waited_for_where_there_is_a_line_and_uses_up_no_attempt() {
        use Cause::{Busy, Connect};
        let busy = [Busy; 3];
        let full = Verdict::Fail(ProxyError::Saturated { retry_after: DEFAULT_PAUSE });
        assert_eq!(verdicts_of(&busy, true, false), [Verdict::Elsewhere, Verdict::Elsewhere, full]);
        assert_eq!(verdicts_of(&[Busy; 9], false, true), vec![Verdict::Elsewhere; 9]);
        let broken = [Busy, Connect, Busy, Connect, Busy, Connect];
        assert_eq!(verdicts_of(&broken, true, true).last(), Some(&Verdict::Fail(ProxyError::Unreachable)));
    }

    #[test]
    fn a_request_that_kills_two_backends_is_not_tried_on_a_third() {
        use Cause::Unanswered;
        assert_eq!(
            verdicts(&[Unanswered, Unanswered], true),
            [Verdict::Elsewhere, Verdict::Fail(ProxyError::Unreachable)]
        );
    }

    #[test]
    fn a_server_error_is_tried_once_elsewhere_and_then_passed_on() {
        use Cause::ServerError;
        assert_eq!(verdicts(&[ServerError, ServerError], true), [Verdict::Elsewhere, Verdict::PassOn]);
        assert_eq!(verdicts(&[ServerError], false), [Verdict::PassOn]);
    }

    #[test]
    fn a_model_that_is_not_there_is_looked_for_elsewhere_up_to_the_limit() {
        use Cause::NoModel;
        let expected = [Verdict::Elsewhere, Verdict::Elsewhere, Verdict::PassOn];
        assert_eq!(verdicts(&[NoModel, NoModel, NoModel], true), expected);
        assert_eq!(verdicts(&[NoModel, NoModel, NoModel], false), expected, "nothing was run");
    }

    #[test]
    fn what_stores_is_never_sent_twice_but_may_be_refused_twice() {
        use Cause::{Busy, Connect, Unanswered};
        assert_eq!(
            verdicts(&[Busy, Connect, Unanswered], false),
            [Verdict::Elsewhere, Verdict::Elsewhere, Verdict::Fail(ProxyError::Unreachable)]
        );
    }

    #[test]
    fn a_refused_key_of_ours_is_that_backends_failure_alone() {
        use Cause::Unauthorized;
        assert_eq!(
            verdicts(&[Unauthorized, Unauthorized, Unauthorized], false),
            [Verdict::Elsewhere, Verdict::Elsewhere, Verdict::Fail(ProxyError::UpstreamUnauthorized)]
        );
    }

    #[test]
    fn a_timeout_is_final_for_the_work_may_be_going_on() {
        assert_eq!(verdicts(&[Cause::Timeout], true), [Verdict::Fail(ProxyError::UpstreamTimeout)]);
    }

    #[test]
    fn pauses_are_read_and_capped() {
        let pause_of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            pause(&headers, std::time::UNIX_EPOCH + Duration::from_secs(784_111_777))
        };
        assert_eq!(pause_of("7"), Duration::from_secs(7));
        assert_eq!(pause_of("Sun, 06 Nov 1994 08:49:47 GMT"), Duration::from_secs(10));
        assert_eq!(pause_of("Tue, 06 Nov 1984 08:49:47 GMT"), SHORTEST_PAUSE);
        assert_eq!(pause_of("3600"), LONGEST_PAUSE);
        assert_eq!(pause_of("0"), SHORTEST_PAUSE);
        for odd in ["-5", "soon", "1.5", "99999999999", "Sun, 06 Nov 2094 08:49:47 GMT"] {
            assert_eq!(pause_of(odd), DEFAULT_PAUSE, "{odd}");
        }
        assert_eq!(pause(&HeaderMap::new(), std::time::UNIX_EPOCH), DEFAULT_PAUSE);
    }
}
