//! What a plugin is told once, before anything else.

use serde::de::DeserializeOwned;

/// What a plugin is told once, before anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// The name it runs under: its file name without `.wasm`.
    pub name: String,
    /// Its `[plugins.settings.NAME]` table as one JSON object; `{}` where there is none.
    pub settings_json: String,
    /// Which of the instances this is: 0 ≤ `shard` < `shards`.
    pub shard: u32,
    /// How many instances there are: one a worker thread.
    pub shards: u32,
}

impl Setup {
    /// The settings as `T`. The error names the plugin and the place, for the operator to read; with
    /// `#[serde(deny_unknown_fields)]` on `T` it also finds misspelt keys.
    pub fn settings<T: DeserializeOwned>(&self) -> Result<T, String> {
        serde_json::from_str(&self.settings_json).map_err(|error| format!("settings of {}: {error}", self.name))
    }

    /// A setup for a test: the only instance of a plugin named `example`, with these settings.
    pub fn example(settings_json: &str) -> Self {
        Self { name: "example".to_owned(), settings_json: settings_json.to_owned(), shard: 0, shards: 1 }
    }
}
