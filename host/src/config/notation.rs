//! How single values are written: numbers, durations, sizes, addresses. Names and secrets have rooms of their own.
//!
//! A value is checked while the file is read, so a bad one is a mistake at its own place, and what comes out
//! is a type that holds only good ones. A text that may be a secret is never quoted.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde::de::{Deserialize, Deserializer, Error};
use toml::Value;

use super::{BackendUrl, Engine, suggest};

/// No configured time is longer: what is added to an instant must not overflow, and no timeout means months.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// As much of a mistaken text as a message quotes.
const QUOTE_LIMIT_CHARS: usize = 60;

/// A way of writing a value in the file.
pub(super) trait Notation: Sized {
    /// What stands after "should be".
    const FORM: &'static str;

    /// The value that was written so.
    fn read(value: &Value) -> Result<Self, Wrong>;
}

/// What is wrong with a value.
pub(super) enum Wrong {
    /// It is not of the form at all, which is told beside what stands there.
    Form,
    /// Something that takes its own words.
    Because(String),
}

/// A value in its notation, as serde meets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Written<T>(pub T);

impl<'de, T: Notation> Deserialize<'de> for Written<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Whatever TOML can say is a `Value`, but for integers beyond 64 bits.
        let value = Value::deserialize(deserializer).map_err(|_| D::Error::custom("this number is too large"))?;
        T::read(&value).map(Self).map_err(|wrong| match wrong {
            Wrong::Form => D::Error::custom(format!("should be {}, not {}", T::FORM, describe(&value))),
            Wrong::Because(why) => D::Error::custom(why),
        })
    }
}

/// What stands there instead of what should.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(truth) => truth.to_string(),
        Value::Datetime(_) => "a date".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
    }
}

fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTE_LIMIT_CHARS) {
        Some((end, _)) => format!("{:?}", format!("{}…", &text[..end])),
        None => format!("{text:?}"),
    }
}

/// The text of a value that has to be one.
pub(super) fn text(value: &Value) -> Result<&str, Wrong> {
    value.as_str().ok_or(Wrong::Form)
}

fn whole<T: TryFrom<i64>>(value: &Value) -> Result<T, Wrong> {
    value.as_integer().and_then(|number| T::try_from(number).ok()).ok_or(Wrong::Form)
}

impl Notation for bool {
    const FORM: &'static str = "true or false";

    fn read(value: &Value) -> Result<Self, Wrong> {
        value.as_bool().ok_or(Wrong::Form)
    }
}

impl Notation for u32 {
    const FORM: &'static str = "a whole number from 0 to 4294967295";

    fn read(value: &Value) -> Result<Self, Wrong> {
        whole(value)
    }
}

impl Notation for NonZeroU32 {
    const FORM: &'static str = "a whole number from 1 to 4294967295";

    fn read(value: &Value) -> Result<Self, Wrong> {
        Self::new(whole(value)?).ok_or(Wrong::Form)
    }
}

impl Notation for NonZeroU64 {
    const FORM: &'static str = "a whole number of at least 1";

    fn read(value: &Value) -> Result<Self, Wrong> {
        Self::new(whole(value)?).ok_or(Wrong::Form)
    }
}

/// A number, written with a point or without.
fn number(value: &Value) -> Result<f64, Wrong> {
    let whole = || whole::<i32>(value).ok().map(f64::from);
    value.as_float().or_else(whole).ok_or(Wrong::Form)
}

/// Above 0, at most 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fraction(pub f64);

impl From<Fraction> for f64 {
    fn from(fraction: Fraction) -> Self {
        fraction.0
    }
}

impl Notation for Fraction {
    const FORM: &'static str = "a number above 0 and at most 1, such as 0.95";

    fn read(value: &Value) -> Result<Self, Wrong> {
        let number = number(value)?;
        if number > 0.0 && number <= 1.0 { Ok(Self(number)) } else { Err(Wrong::Form) }
    }
}

/// At least 0, at most a million.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Amount(pub f64);

impl From<Amount> for f64 {
    fn from(amount: Amount) -> Self {
        amount.0
    }
}

impl Notation for Amount {
    const FORM: &'static str = "a number from 0 to 1000000, such as 0.5";

    fn read(value: &Value) -> Result<Self, Wrong> {
        let number = number(value)?;
        if (0.0..=1e6).contains(&number) { Ok(Self(number)) } else { Err(Wrong::Form) }
    }
}

impl Notation for Duration {
    const FORM: &'static str = "a duration such as \"1s\" or \"300ms\"";

    fn read(value: &Value) -> Result<Self, Wrong> {
        let duration = humantime::parse_duration(text(value)?).map_err(|_| Wrong::Form)?;
        if duration > LONGEST {
            return Err(Wrong::Because(
                "is longer than 30 days; in a duration \"M\" is a month and \"m\" a minute".to_owned(),
            ));
        }
        Ok(duration)
    }
}

/// A duration longer than none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Positive(pub Duration);

impl From<Positive> for Duration {
    fn from(positive: Positive) -> Self {
        positive.0
    }
}

impl Notation for Positive {
    const FORM: &'static str = "a duration above zero such as \"1s\" or \"300ms\"";

    fn read(value: &Value) -> Result<Self, Wrong> {
        let duration = Duration::read(value)?;
        if duration.is_zero() { Err(Wrong::Form) } else { Ok(Self(duration)) }
    }
}

/// A size in bytes, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub u64);

impl From<Size> for u64 {
    fn from(size: Size) -> Self {
        size.0
    }
}

impl Notation for Size {
    const FORM: &'static str = "a size such as \"64MiB\"";

    fn read(value: &Value) -> Result<Self, Wrong> {
        let size: bytesize::ByteSize = text(value)?.parse().map_err(|_| Wrong::Form)?;
        if size.as_u64() == 0 { Err(Wrong::Form) } else { Ok(Self(size.as_u64())) }
    }
}

impl Notation for SocketAddr {
    const FORM: &'static str = "an IP address with a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"";

    fn read(value: &Value) -> Result<Self, Wrong> {
        text(value)?.parse().map_err(|_| Wrong::Form)
    }
}

impl Notation for BackendUrl {
    const FORM: &'static str = "an address such as \"http://10.0.0.11:8000\"";

    fn read(value: &Value) -> Result<Self, Wrong> {
        text(value)?.parse().map_err(|why: super::UrlMistake| Wrong::Because(why.to_string()))
    }
}

/// The value of `engine`; `None` is `"auto"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EngineChoice(pub Option<Engine>);

impl EngineChoice {
    const AUTO: &str = "auto";

    /// Every name `engine` may have.
    fn names() -> Vec<&'static str> {
        std::iter::once(Self::AUTO).chain(Engine::ALL.into_iter().map(Engine::name)).collect()
    }
}

impl Notation for EngineChoice {
    const FORM: &'static str = "the name of an engine, such as \"vllm\" or \"auto\"";

    fn read(value: &Value) -> Result<Self, Wrong> {
        let name = text(value)?;
        if name == Self::AUTO {
            return Ok(Self(None));
        }
        if let Some(engine) = Engine::ALL.into_iter().find(|engine| engine.name() == name) {
            return Ok(Self(Some(engine)));
        }
        let names = Self::names();
        let hint = match suggest::nearest(name, &names) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("known are {}; \"openai\" fits whatever else speaks that API", names.join(", ")),
        };
        Err(Wrong::Because(format!("unknown engine {}; {hint}", quote(name))))
    }
}

/// A SHA-256 as 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pin(pub String);

impl Notation for Pin {
    const FORM: &'static str = "sha256: and 64 hex digits, as `vision-proxy plugin inspect` prints it";

    fn read(value: &Value) -> Result<Self, Wrong> {
        let digits = text(value)?.strip_prefix("sha256:").ok_or(Wrong::Form)?;
        let fits = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if fits { Ok(Self(digits.to_ascii_lowercase())) } else { Err(Wrong::Form) }
    }
}

/// Public keys of minisign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TrustedKeys(pub Vec<String>);

impl From<TrustedKeys> for Vec<String> {
    fn from(keys: TrustedKeys) -> Self {
        keys.0
    }
}

impl Notation for TrustedKeys {
    const FORM: &'static str =
        "a list of minisign public keys, the second line of a `.pub` file: 56 characters that begin with RW";

    fn read(value: &Value) -> Result<Self, Wrong> {
        let is_key = |key: &&str| minisign_verify::PublicKey::from_base64(key).is_ok();
        let key = |value| Ok(text(value).ok().filter(is_key).ok_or(Wrong::Form)?.to_owned());
        value.as_array().ok_or(Wrong::Form)?.iter().map(key).collect::<Result<_, _>>().map(Self)
    }
}

/// The path of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Folder(pub PathBuf);

impl From<Folder> for PathBuf {
    fn from(folder: Folder) -> Self {
        folder.0
    }
}

impl Notation for Folder {
    const FORM: &'static str = "the path of a folder, such as \"plugins\"";

    fn read(value: &Value) -> Result<Self, Wrong> {
        let path = text(value)?;
        if path.is_empty() || path.contains('\0') { Err(Wrong::Form) } else { Ok(Self(path.into())) }
    }
}

/// The path of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FilePath(pub PathBuf);

impl Notation for FilePath {
    const FORM: &'static str = "the path of a file";

    fn read(value: &Value) -> Result<Self, Wrong> {
        let path = text(value)?;
        if path.is_empty() || path.contains('\0') { Err(Wrong::Form) } else { Ok(Self(path.into())) }
    }
}

/// A name that a certificate may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostName(pub ServerName<'static>);

impl Notation for HostName {
    const FORM: &'static str = "the name of a host or an IP address, such as \"gpu-a.internal\"";

    fn read(value: &Value) -> Result<Self, Wrong> {
        ServerName::try_from(text(value)?.to_owned()).map(Self).map_err(|_| Wrong::Form)
    }
}

/// `[plugins.settings.NAME]`, as the JSON that the plugin gets.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings(pub serde_json::Value);

impl Notation for Settings {
    const FORM: &'static str = "a table of that plugin's settings";

    fn read(value: &Value) -> Result<Self, Wrong> {
        if value.is_table() { json(value).map(Self) } else { Err(Wrong::Form) }
    }
}

/// Dates become text. What JSON has no word for (`nan`, `inf`) is a mistake.
fn json(value: &Value) -> Result<serde_json::Value, Wrong> {
    Ok(match value {
        Value::String(text) => text.as_str().into(),
        Value::Integer(number) => (*number).into(),
        Value::Float(number) => serde_json::Number::from_f64(*number)
            .ok_or_else(|| {
                Wrong::Because(format!("{number} cannot be handed to a plugin, for JSON has no such number"))
            })?
            .into(),
        Value::Boolean(truth) => (*truth).into(),
        Value::Datetime(date) => date.to_string().into(),
        Value::Array(items) => serde_json::Value::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        Value::Table(table) => {
            let entries = table.iter().map(|(key, value)| Ok((key.clone(), json(value)?)));
            serde_json::Value::Object(entries.collect::<Result<_, Wrong>>()?)
        }
    })
}
