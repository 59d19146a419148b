//! Names of models, backends and plugins: what each may be made of.
//!
//! They end in paths, headers, metrics and files, so each is bounded in length and letters before it gets there.

use toml::Value;

use super::notation::{Notation, Wrong, describe, text};

/// Model names and the like, native or public.
const NAME_LIMIT_BYTES: usize = 256;

/// Names of backends and plugins, which appear in metrics, headers and paths.
pub(super) const SHORT_NAME_LIMIT_BYTES: usize = 128;

/// A public or native name of a model, or either side of a label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name(pub String);

impl Notation for Name {
    const FORM: &'static str = "a text of 1 to 256 bytes without control characters";

    fn read(value: &Value) -> Result<Self, Wrong> {
        let name = text(value)?;
        let fits = (1..=NAME_LIMIT_BYTES).contains(&name.len()) && !name.chars().any(char::is_control);
        if fits { Ok(Self(name.to_owned())) } else { Err(Wrong::Form) }
    }
}

/// The native names of a model, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names(pub Vec<String>);

impl Notation for Names {
    const FORM: &'static str =
        "a list of names, best first, such as [\"Qwen/Qwen2.5-VL-7B-Instruct\", \"qwen2.5vl:7b\"]";

    fn read(value: &Value) -> Result<Self, Wrong> {
        let names = value.as_array().filter(|names| !names.is_empty()).ok_or(Wrong::Form)?;
        let name = |value| match Name::read(value) {
            Ok(Name(name)) => Ok(name),
            Err(_) => Err(Wrong::Because(format!("each name should be {}, not {}", Name::FORM, describe(value)))),
        };
        Ok(Self(names.iter().map(name).collect::<Result<_, _>>()?))
    }
}

/// The name of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BackendName(pub String);

impl Notation for BackendName {
    const FORM: &'static str = "a name of 1 to 128 bytes made of letters, digits and . _ : @ / -";

    fn read(value: &Value) -> Result<Self, Wrong> {
        short_name(value, b"._:@/-").map(Self)
    }
}

/// The name of a plugin, which is also the stem of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PluginName(pub String);

impl From<PluginName> for String {
    fn from(name: PluginName) -> Self {
        name.0
    }
}

impl Notation for PluginName {
    const FORM: &'static str =
        "a plugin's name of 1 to 128 bytes made of letters, digits and . _ - (not first), without .wasm";

    fn read(value: &Value) -> Result<Self, Wrong> {
        let name = short_name(value, b"._-")?;
        let is_plain = name.starts_with(|first: char| first.is_ascii_alphanumeric()) && !name.ends_with(".wasm");
        if is_plain { Ok(Self(name)) } else { Err(Wrong::Form) }
    }
}

fn short_name(value: &Value, marks: &[u8]) -> Result<String, Wrong> {
    let name = text(value)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || marks.contains(&byte);
    let fits = (1..=SHORT_NAME_LIMIT_BYTES).contains(&name.len()) && name.bytes().all(allowed);
    if fits { Ok(name.to_owned()) } else { Err(Wrong::Form) }
}
