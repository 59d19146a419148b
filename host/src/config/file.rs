//! What was typed: the file as it stands, table by table. Everything may be left out; defaults come later.
//!
//! An unknown key is refused in every table. What a single value may look like is in `notation`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use serde::de::value::Error as ProbeError;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::BackendUrl;
use super::access::{Domains, ImagePolicy, KeyHash};
use super::names::{BackendName, Name, Names, PluginName};
use super::networks::Networks;
use super::notation::{
    Amount, EngineChoice, FilePath, Folder, Fraction, HostName, Pin, Positive, Settings, Size, TrustedKeys, Written,
};
use super::secret::SecretSource;

/// A key that may be left out.
type Typed<T> = Option<Written<T>>;

/// The whole file.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub listen: Typed<SocketAddr>,
    pub admin: Typed<SocketAddr>,
    pub tls: Option<Tls>,
    pub admin_token: Typed<SecretSource>,
    pub workers: Typed<u32>,
    pub reveal: Typed<bool>,
    pub trusted_proxies: Typed<Networks>,
    pub keys: Tables<Key>,
    pub images: Images,
    pub plugins: Plugins,
    pub models: BTreeMap<Written<Name>, Written<Names>>,
    pub backends: Tables<Backend>,
    pub capacity: Capacity,
    pub queue: Queue,
    pub failover: Failover,
    pub timeouts: Timeouts,
    pub limits: Limits,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table, begun by [[keys]]")]
pub(super) struct Key {
    pub name: Typed<BackendName>,
    pub sha256: Typed<KeyHash>,
    pub requests_per_minute: Typed<NonZeroU32>,
    pub concurrency: Typed<NonZeroU32>,
    pub bytes_per_minute: Typed<Size>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Images {
    pub policy: Typed<ImagePolicy>,
    pub domains: Typed<Domains>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Tls {
    pub cert: Typed<FilePath>,
    pub key: Typed<FilePath>,
    pub client_ca: Typed<FilePath>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Plugins {
    pub dir: Typed<Folder>,
    pub policy: Typed<PluginName>,
    pub translator: Typed<PluginName>,
    pub settings: BTreeMap<Written<PluginName>, Written<Settings>>,
    pub limits: PluginLimits,
    pub pins: BTreeMap<Written<PluginName>, Written<Pin>>,
    pub trusted_keys: Typed<TrustedKeys>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct PluginLimits {
    pub fuel: Typed<NonZeroU64>,
    pub memory: Typed<Size>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table, begun by [[backends]]")]
pub(super) struct Backend {
    pub name: Typed<BackendName>,
    pub url: Typed<BackendUrl>,
    pub metrics_url: Typed<BackendUrl>,
    pub tls: Option<BackendTls>,
    pub engine: Typed<EngineChoice>,
    pub slots: Typed<NonZeroU32>,
    pub weight: Typed<NonZeroU32>,
    pub tier: Typed<u32>,
    pub labels: BTreeMap<Written<Name>, Written<Name>>,
    pub models: BTreeMap<Written<Name>, Written<Name>>,
    pub api_key: Typed<SecretSource>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table such as { ca = \"PATH\" }")]
pub(super) struct BackendTls {
    pub ca: Typed<FilePath>,
    pub client_cert: Typed<FilePath>,
    pub client_key: Typed<FilePath>,
    pub server_name: Typed<HostName>,
    pub insecure: Typed<bool>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Capacity {
    pub poll_interval: Typed<Positive>,
    pub stale_after: Typed<Positive>,
    pub max_waiting: Typed<u32>,
    pub max_kv_cache: Typed<Fraction>,
    pub replicas: Typed<NonZeroU32>,
    pub replica: Typed<NonZeroU32>,
    pub slow_start: Typed<Duration>,
    pub cost: Cost,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Cost {
    pub image: Typed<Amount>,
    pub mib: Typed<Amount>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Queue {
    pub size: Typed<u32>,
    pub bytes: Typed<Size>,
    pub timeout: Typed<Positive>,
    pub spill_after: Typed<Duration>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Failover {
    pub attempts: Typed<NonZeroU32>,
    pub retry_unanswered: Typed<bool>,
    pub eject_after: Typed<NonZeroU32>,
    pub eject_for: Typed<Positive>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Timeouts {
    pub connect: Typed<Positive>,
    pub first_byte: Typed<Positive>,
    pub between_chunks: Typed<Positive>,
    pub client: Typed<Positive>,
    pub drain: Typed<Duration>,
    pub drain_delay: Typed<Duration>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Limits {
    pub body: Typed<Size>,
    pub bodies_in_flight: Typed<Size>,
}

/// A list of tables, a type of its own for the sake of one message: single brackets are the commonest slip of all.
#[derive(Debug)]
pub(super) struct Tables<T>(pub Vec<T>);

/// A table of such a list.
pub(super) trait Table {
    /// What begins one.
    const BEGUN_BY: &'static str;
}

impl Table for Backend {
    const BEGUN_BY: &'static str = "[[backends]]";
}

impl Table for Key {
    const BEGUN_BY: &'static str = "[[keys]]";
}

impl<T> Default for Tables<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Table + Deserialize<'de>> Deserialize<'de> for Tables<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Self::default())
    }
}

impl<'de, T: Table + Deserialize<'de>> Visitor<'de> for Tables<T> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of tables, each begun by {} in double brackets", T::BEGUN_BY)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self, A::Error> {
        while let Some(table) = list.next_element()? {
            self.0.push(table);
        }
        Ok(self)
    }
}

/// The keys of a table.
pub(super) type Keys = &'static [&'static str];

/// Every table with fixed keys, and these. In all others (`models`, `labels`, …) the keys are the user's own.
pub(super) fn tables() -> [(&'static str, Keys); 14] {
    [
        ("", keys_of::<File>()),
        ("keys", keys_of::<Key>()),
        ("images", keys_of::<Images>()),
        ("tls", keys_of::<Tls>()),
        ("plugins", keys_of::<Plugins>()),
        ("plugins.limits", keys_of::<PluginLimits>()),
        ("backends", keys_of::<Backend>()),
        ("backends.tls", keys_of::<BackendTls>()),
        ("capacity", keys_of::<Capacity>()),
        ("capacity.cost", keys_of::<Cost>()),
        ("queue", keys_of::<Queue>()),
        ("failover", keys_of::<Failover>()),
        ("timeouts", keys_of::<Timeouts>()),
        ("limits", keys_of::<Limits>()),
    ]
}

/// What serde's derive says the keys are, so that no second list can disagree with the structs above.
fn keys_of<'de, T: Deserialize<'de>>() -> Keys {
    let keys = Cell::new(Keys::default());
    // The answer is the error: the probe has nothing to be made a `T` of.
    let _ = T::deserialize(Probe(&keys));
    keys.get()
}

/// Reads nothing, but learns which keys would be read.
struct Probe<'a>(&'a Cell<Keys>);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = ProbeError;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, ProbeError> {
        Err(ProbeError::custom("a probe holds no value"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        keys: Keys,
        visitor: V,
    ) -> Result<V::Value, ProbeError> {
        self.0.set(keys);
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
