//! The ways a simulated engine fails, how they are written, and which request meets which.
//!
//! Written the same way on the command line (`status=503,retry_after=1,count=3`) and in JSON
//! (`{"fault":"status","status":503,"retry_after":"1","count":3}`). The first active fault that fits a request is
//! taken; a counted one is forgotten when it is used up.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Value, json};

/// One way to fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Accept, then close at once.
    Refuse,
    /// Read the request, then close.
    CloseBeforeAnswer,
    /// RST when the head has arrived.
    Reset,
    /// Take the request and a slot, and never send a byte.
    Hang,
    /// Answer with this status in the engine's own shape.
    Status { status: u16, retry_after: Option<String> },
    /// Answer with something that is not HTTP.
    Garbage,
    /// Close after so many bytes of the answer's body.
    CloseAfterBytes(u64),
    /// RST after so many chunks: events or lines; a whole answer is one.
    ResetAfterChunks(u64),
    /// Send so many chunks, then nothing, slot held.
    StallAfterChunks(u64),
    /// A stream of status 200 whose first event is an error.
    ErrorEvent,
    /// An error event after so many tokens.
    ErrorMidStream(u64),
    /// Answer polls late.
    SlowHealth(Duration),
    /// Nonsense where the load is reported.
    BadMetrics(BadMetrics),
    /// Still loading its model.
    Loading,
    /// Answer with this status when the head has arrived, and read no more of the request than came with it.
    Early(u16),
    /// Behind each answer another one that nobody asked for.
    Twice,
    /// Answer with this status, which has no body, and send one all the same.
    StrayBody(u16),
    /// Send whoever asks elsewhere, with this status.
    Redirect(u16),
    /// Another model has taken the place of those it was started with.
    OtherModel(String),
    /// Close, without an answer, on a request that holds this text.
    Poison(String),
    /// Die, as a whole, of a request that holds this text.
    Deadly(String),
}

/// What is wrong with a load report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadMetrics {
    /// A web page, with status 200.
    Html,
    /// Numbers that are none.
    Nan,
    /// A report that never ends.
    Endless,
    /// A report without a word about load.
    Empty,
    /// More than it can have, for every number.
    High,
    /// Nothing to do, whatever it does.
    Zero,
    /// Beyond every integer.
    Huge,
}

/// Which requests a fault may meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Only {
    /// Requests that generate.
    Chat,
    /// Polls: health, models, load.
    Health,
    /// Every request but `/__simulate/…`.
    All,
}

/// What a request is to the faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Generation,
    Health,
    Models,
    Capacity,
    /// Anything else, unknown paths too.
    Other,
}

/// A fault as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    kind: Kind,
    only: Only,
    /// Requests it still applies to; `None`: until it is cleared.
    left: Option<u64>,
}

/// A fault that could not be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown(String);

impl fmt::Display for Unknown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Unknown {}

const KINDS: &str = "refuse, close-before-answer, reset, hang, status=CODE, garbage, close-after-bytes=N, \
     reset-after-chunks=N, stall-after-chunks=N, error-event, error-mid-stream[=TOKENS], slow-health[=TIME], \
     bad-metrics[=html|nan|endless|empty|high|zero|huge], loading, early[=CODE], twice, stray-body[=CODE], \
     redirect[=CODE], other-model[=NAME], poison[=TEXT], deadly[=TEXT]";

/// What the argument of a fault may be called in JSON.
const ARG_NAMES: [&str; 9] = ["arg", "status", "bytes", "chunks", "tokens", "delay", "metrics", "model", "text"];

impl FromStr for Fault {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        Self::build(text, std::iter::empty())
    }
}

impl Fault {
    /// Reads the JSON form; `{"fault":null}` is `None`. The kind may be written as on the command line.
    pub(super) fn from_json(json: &Value) -> Result<Option<Self>, Unknown> {
        let keys = json.as_object().ok_or_else(|| Unknown("a fault is a JSON object".to_owned()))?;
        let kind = match keys.get("fault") {
            Some(Value::Null) => return Ok(None),
            Some(Value::String(kind)) => kind,
            _ => return Err(Unknown(format!("\"fault\" must be null or one of {KINDS}"))),
        };
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let given = keys.iter().filter(|(name, value)| *name != "fault" && !value.is_null());
        let given: Vec<_> = given.map(|(name, value)| (name.as_str(), plain(value))).collect();
        Self::build(kind, given.iter().map(|(name, value)| (*name, value.as_str()))).map(Some)
    }

    /// From `KIND[=ARG][,NAME=VALUE]...` and what JSON says beside it.
    fn build<'a>(text: &'a str, beside: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self, Unknown> {
        let mut parts = text.split(',').map(|part| part.split_once('=').unwrap_or((part, "")));
        let (kind, arg) = parts.next().unwrap_or_default();
        let (args, settings): (Vec<_>, Vec<_>) = parts.chain(beside).partition(|(name, _)| ARG_NAMES.contains(name));
        let kind = Kind::parse(kind, args.last().map_or(arg, |(_, arg)| arg))?;
        let mut fault = Self { only: kind.usual_only(), kind, left: None };
        for (name, value) in settings {
            match (name, &mut fault.kind) {
                ("count", _) => fault.left = Some(number(name, value)?),
                ("only", _) => fault.only = Only::parse(value)?,
                ("retry_after", Kind::Status { retry_after, .. }) => *retry_after = Some(value.to_owned()),
                _ => return Err(Unknown(format!("{name:?} means nothing to this fault"))),
            }
        }
        Ok(fault)
    }

    fn meets(&self, target: Target) -> bool {
        let kind_fits = match self.kind {
            Kind::BadMetrics(_) => target == Target::Capacity,
            Kind::SlowHealth(_) => matches!(target, Target::Health | Target::Models | Target::Capacity),
            _ => true,
        };
        kind_fits && self.only.covers(target)
    }

    fn to_json(&self) -> Value {
        json!({"fault": self.kind.name(), "arg": self.kind.arg(), "only": self.only.name(), "left": self.left})
    }
}

impl Kind {
    fn parse(kind: &str, arg: &str) -> Result<Self, Unknown> {
        let number_or = |otherwise: u64| if arg.is_empty() { Ok(otherwise) } else { number(kind, arg) };
        let status_or = |otherwise: u16| if arg.is_empty() { Ok(otherwise) } else { status(arg) };
        let text_or = |otherwise: &str| if arg.is_empty() { otherwise } else { arg }.to_owned();
        Ok(match kind {
            "refuse" => Self::Refuse,
            "close-before-answer" => Self::CloseBeforeAnswer,
            "reset" => Self::Reset,
            "hang" => Self::Hang,
            "status" => Self::Status { status: status(arg)?, retry_after: None },
            "garbage" => Self::Garbage,
            "close-after-bytes" => Self::CloseAfterBytes(number(kind, arg)?),
            "reset-after-chunks" => Self::ResetAfterChunks(number(kind, arg)?),
            "stall-after-chunks" => Self::StallAfterChunks(number(kind, arg)?),
            "error-event" => Self::ErrorEvent,
            "error-mid-stream" => Self::ErrorMidStream(number_or(3)?),
            "slow-health" => Self::SlowHealth(time(arg)?),
            "bad-metrics" => Self::BadMetrics(BadMetrics::parse(arg)?),
            "loading" => Self::Loading,
            "early" => Self::Early(status_or(413)?),
            "twice" => Self::Twice,
            "stray-body" => Self::StrayBody(status_or(204)?),
            "redirect" => Self::Redirect(status_or(307)?),
            "other-model" => Self::OtherModel(text_or("another-model")),
            "poison" => Self::Poison(text_or("poison")),
            "deadly" => Self::Deadly(text_or("poison")),
            _ => return Err(Unknown(format!("no fault {kind:?}; there are {KINDS}"))),
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::CloseBeforeAnswer => "close-before-answer",
            Self::Reset => "reset",
            Self::Hang => "hang",
            Self::Status { .. } => "status",
            Self::Garbage => "garbage",
            Self::CloseAfterBytes(_) => "close-after-bytes",
            Self::ResetAfterChunks(_) => "reset-after-chunks",
            Self::StallAfterChunks(_) => "stall-after-chunks",
            Self::ErrorEvent => "error-event",
            Self::ErrorMidStream(_) => "error-mid-stream",
            Self::SlowHealth(_) => "slow-health",
            Self::BadMetrics(_) => "bad-metrics",
            Self::Loading => "loading",
            Self::Early(_) => "early",
            Self::Twice => "twice",
            Self::StrayBody(_) => "stray-body",
            Self::Redirect(_) => "redirect",
            Self::OtherModel(_) => "other-model",
            Self::Poison(_) => "poison",
            Self::Deadly(_) => "deadly",
        }
    }

    fn arg(&self) -> Value {
        match self {
            Self::Status { status, .. } | Self::Early(status) | Self::StrayBody(status) | Self::Redirect(status) => {
                json!(status)
            }
            Self::OtherModel(text) | Self::Poison(text) | Self::Deadly(text) => json!(text),
            Self::CloseAfterBytes(n) | Self::ResetAfterChunks(n) => json!(n),
            Self::StallAfterChunks(n) | Self::ErrorMidStream(n) => json!(n),
            Self::SlowHealth(delay) => json!(humantime::format_duration(*delay).to_string()),
            Self::BadMetrics(kind) => json!(kind.name()),
            _ => Value::Null,
        }
    }

    /// What a fault meets when nobody says: polls would eat the count of one that is meant for clients.
    const fn usual_only(&self) -> Only {
        match self {
            Self::Refuse | Self::Loading | Self::OtherModel(_) => Only::All,
            Self::SlowHealth(_) | Self::BadMetrics(_) => Only::Health,
            _ => Only::Chat,
        }
    }
}

impl BadMetrics {
    fn parse(text: &str) -> Result<Self, Unknown> {
        let all = [Self::Html, Self::Nan, Self::Endless, Self::Empty, Self::High, Self::Zero, Self::Huge];
        match text {
            "" => Ok(Self::Html),
            _ => all
                .into_iter()
                .find(|kind| kind.name() == text)
                .ok_or_else(|| Unknown(format!("no bad metrics {text:?}"))),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Html => "html",
            Self::Nan => "nan",
            Self::Endless => "endless",
            Self::Empty => "empty",
            Self::High => "high",
            Self::Zero => "zero",
            Self::Huge => "huge",
        }
    }
}

impl Only {
    fn parse(text: &str) -> Result<Self, Unknown> {
        let all = [Self::Chat, Self::Health, Self::All];
        let found = all.into_iter().find(|only| only.name() == text);
        found.ok_or_else(|| Unknown(format!("\"only\" is chat, health or all, not {text:?}")))
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Health => "health",
            Self::All => "all",
        }
    }

    const fn covers(self, target: Target) -> bool {
        match self {
            Self::All => true,
            Self::Chat => matches!(target, Target::Generation),
            Self::Health => matches!(target, Target::Health | Target::Models | Target::Capacity),
        }
    }
}

fn number(name: &str, text: &str) -> Result<u64, Unknown> {
    text.parse().map_err(|_| Unknown(format!("{name} needs a whole number, not {text:?}")))
}

fn status(text: &str) -> Result<u16, Unknown> {
    let code = text.parse().ok().filter(|code| (200..=999).contains(code));
    code.ok_or_else(|| Unknown(format!("status needs a code from 200 to 999, not {text:?}")))
}

fn time(text: &str) -> Result<Duration, Unknown> {
    // Longer than a poller that asks every second and gives up before the next time.
    let text = if text.is_empty() { "3s" } else { text };
    humantime::parse_duration(text).map_err(|error| Unknown(format!("{text:?} is no time: {error}")))
}

/// The faults that are active now.
#[derive(Debug)]
pub(super) struct Faults(Vec<Fault>);

/// More at once would only hide each other.
const FAULT_LIMIT: usize = 16;

impl Faults {
    pub(super) fn new(mut faults: Vec<Fault>) -> Self {
        faults.truncate(FAULT_LIMIT);
        faults.retain(|fault| fault.left != Some(0));
        Self(faults)
    }

    /// The fault this request meets, which is used up by one.
    pub(super) fn take(&mut self, target: Target) -> Option<Kind> {
        self.take_if(|fault| fault.meets(target))
    }

    /// Whether a connection is to be refused before it says anything, and so before anybody knows what it wants.
    pub(super) fn take_refusal(&mut self) -> bool {
        self.take_if(|fault| fault.kind == Kind::Refuse && fault.only == Only::All).is_some()
    }

    /// Whether [`Faults::take_refusal`] would refuse.
    pub(super) fn would_refuse(&self) -> bool {
        self.0.iter().any(|fault| fault.kind == Kind::Refuse && fault.only == Only::All)
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"faults": self.0.iter().map(Fault::to_json).collect::<Vec<_>>()})
    }

    fn take_if(&mut self, fits: impl Fn(&Fault) -> bool) -> Option<Kind> {
        let at = self.0.iter().position(fits)?;
        let fault = self.0.get_mut(at)?;
        let kind = fault.kind.clone();
        if let Some(left) = &mut fault.left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.0.remove(at);
            }
        }
        Some(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Fault {
        text.parse().unwrap()
    }

    #[test]
    fn both_notations_mean_the_same() {
        for (text, json) in [
            ("status=503,retry_after=1,count=3", json!({"fault":"status","status":503,"retry_after":"1","count":3})),
            ("hang,only=all", json!({"fault":"hang","only":"all"})),
            ("close-after-bytes=500", json!({"fault":"close-after-bytes","bytes":500})),
            ("slow-health=2s", json!({"fault":"slow-health","delay":"2s","count":null})),
            ("bad-metrics=nan", json!({"fault":"bad-metrics","metrics":"nan"})),
            ("error-mid-stream", json!({"fault":"error-mid-stream","tokens":3})),
            ("other-model=a/b:1,only=chat", json!({"fault":"other-model","model":"a/b:1","only":"chat"})),
            ("deadly=poison", json!({"fault":"deadly"})),
        ] {
            assert_eq!(Fault::from_json(&json).unwrap(), Some(parse(text)), "{text}");
        }
        let mixed = Fault::from_json(&json!({"fault": "status=503,only=all", "count": 1}));
        assert_eq!(mixed.unwrap(), Some(parse("status=503,count=1,only=all")));
        assert_eq!(Fault::from_json(&json!({"fault": null})), Ok(None));
    }

    #[test]
    fn every_kind_in_the_list_is_understood_and_says_its_name() {
        for usage in KINDS.split(", ") {
            let (kind, arg) = match usage.split_once(['=', '[']) {
                Some((kind, arg)) if arg.contains("html") => (kind, "html"),
                Some((kind, arg)) if arg.contains("TIME") => (kind, "1s"),
                Some((kind, _)) => (kind, "500"),
                None => (usage, ""),
            };
            assert_eq!(Kind::parse(kind, arg).unwrap().name(), kind);
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for text in
            ["explode", "status", "status=99", "hang,retry_after=1", "hang,only=some", "reset-after-chunks=x", ""]
        {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
        assert!(Fault::from_json(&json!({"status": 500})).is_err());
        assert!(Fault::from_json(&json!({"fault":"hang","typo":1})).is_err());
    }

    #[test]
    fn polls_do_not_eat_the_count_of_a_fault_for_clients() {
        let mut faults = Faults::new(vec![parse("status=500,count=2")]);
        assert_eq!(faults.take(Target::Health), None);
        assert!(faults.take(Target::Generation).is_some());
        assert!(faults.take(Target::Generation).is_some());
        assert_eq!(faults.take(Target::Generation), None);
    }

    #[test]
    fn bad_metrics_leave_health_alone_and_do_not_hide_the_next_fault() {
        let mut faults = Faults::new(vec![parse("bad-metrics=html"), parse("loading")]);
        assert_eq!(faults.take(Target::Health), Some(Kind::Loading));
        assert_eq!(faults.take(Target::Capacity), Some(Kind::BadMetrics(BadMetrics::Html)));
    }

    #[test]
    fn a_counted_refusal_ends() {
        let mut faults = Faults::new(vec![parse("refuse,count=1")]);
        assert!(faults.would_refuse());
        assert!(faults.take_refusal());
        assert!(!faults.take_refusal());
    }
}
