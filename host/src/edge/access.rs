//! Who may ask, and how much: client keys and their limits.
//!
//! Invariants: a key is known by its SHA-256 alone, and digests are compared in constant time; a request without a
//! key costs one hash and no byte of its body; what a key has used outlives snapshots, so that a reload forgives
//! nothing; a request's hold is a value that gives itself back.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::clock::now_ms;
use crate::config::KeyConfig;
use crate::error::{KeyLimit, ProxyError};

/// Where clients of the OpenAI, Anthropic and Azure APIs put their key.
pub const CREDENTIALS: [HeaderName; 3] =
    [header::AUTHORIZATION, HeaderName::from_static("x-api-key"), HeaderName::from_static("api-key")];

/// Longer than any key; more would only be hashed.
const KEY_LIMIT_BYTES: usize = 1024;
/// Limits by the minute: what a key does not use within one is lost.
const MINUTE_NS: u64 = 60_000_000_000;
/// Nobody knows when one of a key's own requests ends: soon enough to be cheap for both.
const CONCURRENCY_RETRY: Duration = Duration::from_secs(1);

/// The keys of one snapshot.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    /// In the order of their digests.
    keys: Vec<Arc<Key>>,
    /// Requests that brought none of them.
    strangers: Arc<AtomicU64>,
}

/// A key, and what it has used.
#[derive(Debug)]
pub struct Key {
    config: KeyConfig,
    meter: Arc<Meter>,
}

/// What a key has used, over all workers and snapshots.
#[derive(Debug, Default)]
struct Meter {
    in_flight: AtomicU32,
    requests: Bucket,
    bytes: Bucket,
    /// In the order of [`KeyLimit::ALL`].
    refusals: [AtomicU64; KeyLimit::ALL.len()],
}

impl Keyring {
    /// The keys of a new configuration. Who keeps its name keeps what it has used, also with another key.
    pub fn renewed(&self, configs: &[KeyConfig]) -> Self {
        let meter = |name: &str| self.keys.iter().find(|key| key.config.name == name).map(|key| Arc::clone(&key.meter));
        let key = |config: &KeyConfig| {
            Arc::new(Key { config: config.clone(), meter: meter(&config.name).unwrap_or_default() })
        };
        let mut keys: Vec<_> = configs.iter().map(key).collect();
        keys.sort_unstable_by_key(|key| key.config.sha256);
        Self { keys, strangers: Arc::clone(&self.strangers) }
    }

    /// Whose key the request brings; `None` where nobody needs one. Which of the fields it stands in is the client's
    /// choice: SDKs put a placeholder into one and the key into another.
    ///
    /// # Errors
    /// Keys are configured, and this request brings none of them.
    pub fn owner(&self, headers: &HeaderMap) -> Result<Option<Arc<Key>>, ProxyError> {
        if self.keys.is_empty() {
            return Ok(None);
        }
        let mut brought = CREDENTIALS.into_iter().filter_map(|name| token(&name, headers.get(&name)?.as_bytes()));
        let found = brought.find_map(|token| self.find(token));
        found.map(|key| Some(Arc::clone(key))).ok_or_else(|| {
            self.strangers.fetch_add(1, Relaxed);
            ProxyError::InvalidApiKey
        })
    }

    /// Finds a key by its digest. The search by the first bytes tells nobody anything: whoever could choose the digest
    /// of what they send had no need to guess.
    fn find(&self, token: &[u8]) -> Option<&Arc<Key>> {
        if token.is_empty() || token.len() > KEY_LIMIT_BYTES {
            return None;
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        let first = |digest: &[u8; 32]| digest.first_chunk::<8>().copied();
        let from = self.keys.partition_point(|key| first(&key.config.sha256) < first(&digest));
        let mut alike = self.keys.iter().skip(from).take_while(|key| first(&key.config.sha256) == first(&digest));
        alike.find(|key| key.config.sha256.ct_eq(&digest).into())
    }

    /// Refused requests: whose key (empty: nobody's), why, how many.
    pub fn refusals(&self) -> Vec<(String, &'static str, u64)> {
        let limits = |key: &Arc<Key>| {
            let count = |limit: KeyLimit| key.meter.refusals.get(limit as usize).map_or(0, |count| count.load(Relaxed));
            KeyLimit::ALL.map(|limit| (limit.name(), count(limit)))
        };
        let strangers = (String::new(), "invalid", self.strangers.load(Relaxed));
        let of_keys =
            self.keys.iter().flat_map(|key| limits(key).map(|(why, count)| (key.name().to_owned(), why, count)));
        std::iter::once(strangers).chain(of_keys).collect()
    }
}

/// The key within a field's value.
fn token<'a>(name: &HeaderName, value: &'a [u8]) -> Option<&'a [u8]> {
    if *name != header::AUTHORIZATION {
        return Some(value);
    }
    // The scheme's name is of any case, and one space or more may follow (RFC 9110 §11.4).
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

impl Key {
    /// Whose it is.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// A number that stands for its owner in every worker and snapshot.
    pub fn tenant(&self) -> u64 {
        Arc::as_ptr(&self.meter) as u64
    }

    /// Lets a request in that announces a body of so many bytes, as far as its limits go. What it announces is charged
    /// at once, so that many uploads at a time cannot go past the limit together.
    ///
    /// # Errors
    /// The limit that it is over, and when it will not be.
    pub fn admit(self: &Arc<Self>, announced_bytes: u64) -> Result<Permit, ProxyError> {
        let (config, meter, now) = (&self.config, &self.meter, now_ms().saturating_mul(1_000_000));
        let over = |limit: KeyLimit, wait: Duration| {
            if let Some(count) = meter.refusals.get(limit as usize) {
                count.fetch_add(1, Relaxed);
            }
            // Not all of its clients at the same moment.
            ProxyError::KeyLimited { limit, retry_after: wait.mul_f64(1.0 + fastrand::f64() / 4.0) }
        };
        let others = meter.in_flight.fetch_add(1, Relaxed);
        let permit = Permit { key: Arc::clone(self), unread_bytes: Cell::new(0) };
        if config.concurrency.is_some_and(|limit| others >= limit) {
            return Err(over(KeyLimit::Concurrency, CONCURRENCY_RETRY));
        }
        // A body may be larger than what is left, else the largest would never get in: the next ones pay for it.
        if let Some(limit) = config.bytes_per_minute {
            meter.bytes.has_room(now, 1, limit).map_err(|wait| over(KeyLimit::Bytes, wait))?;
        }
        if let Some(limit) = config.requests_per_minute {
            meter.requests.take(now, 1, limit.into()).map_err(|wait| over(KeyLimit::Requests, wait))?;
        }
        permit.charge(announced_bytes);
        permit.unread_bytes.set(announced_bytes);
        Ok(permit)
    }
}

/// A request that was let in, until the last byte of its answer.
#[derive(Debug)]
pub struct Permit {
    key: Arc<Key>,
    /// Charged, and not read yet.
    unread_bytes: Cell<u64>,
}

impl Permit {
    /// So much more of the body is read: what it has beyond its announcement is charged too.
    pub fn has_read(&self, bytes: u64) {
        let unread = self.unread_bytes.get();
        self.unread_bytes.set(unread.saturating_sub(bytes));
        self.charge(bytes.saturating_sub(unread));
    }

    fn charge(&self, bytes: u64) {
        if let Some(limit) = self.key.config.bytes_per_minute.filter(|_| bytes > 0) {
            self.key.meter.bytes.charge(now_ms().saturating_mul(1_000_000), bytes, limit);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.key.meter.in_flight.fetch_sub(1, Relaxed);
        // What was announced and never came.
        let unread = self.unread_bytes.get();
        if let Some(limit) = self.key.config.bytes_per_minute.filter(|_| unread > 0) {
            self.key.meter.bytes.give_back(unread, limit);
        }
    }
}

/// A bucket that holds what may be used in a minute and fills evenly: the instant at which it is full again, in
/// nanoseconds of the clock. (The generic cell rate algorithm: one number, hence one atomic.)
#[derive(Debug, Default)]
struct Bucket(AtomicU64);

impl Bucket {
    /// Takes so much, where it is there.
    ///
    /// # Errors
    /// How long until it is.
    fn take(&self, now_ns: u64, amount: u64, per_minute: u64) -> Result<(), Duration> {
        let taken = |full_at: u64| {
            let full_at = full_at.max(now_ns).saturating_add(refill_ns(amount, per_minute));
            (full_at <= now_ns + MINUTE_NS).then_some(full_at)
        };
        let refused = |full_at: u64| wait(full_at, now_ns, amount, per_minute);
        self.0.fetch_update(Relaxed, Relaxed, taken).map(drop).map_err(refused)
    }

    /// Whether so much is there.
    ///
    /// # Errors
    /// How long until it is.
    fn has_room(&self, now_ns: u64, amount: u64, per_minute: u64) -> Result<(), Duration> {
        let wait = wait(self.0.load(Relaxed), now_ns, amount, per_minute);
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// Takes so much, there or not.
    fn charge(&self, now_ns: u64, amount: u64, per_minute: u64) {
        let charged = |full_at: u64| Some(full_at.max(now_ns).saturating_add(refill_ns(amount, per_minute)));
        // It always has an answer.
        let _ = self.0.fetch_update(Relaxed, Relaxed, charged);
    }

    /// Undoes a charge. What has flowed in since is not given twice: nothing is fuller than full.
    fn give_back(&self, amount: u64, per_minute: u64) {
        let given = |full_at: u64| Some(full_at.saturating_sub(refill_ns(amount, per_minute)));
        // It always has an answer.
        let _ = self.0.fetch_update(Relaxed, Relaxed, given);
    }
}

/// How long it takes until so much is there.
fn wait(full_at_ns: u64, now_ns: u64, amount: u64, per_minute: u64) -> Duration {
    let full_at = full_at_ns.max(now_ns).saturating_add(refill_ns(amount, per_minute));
    Duration::from_nanos(full_at.saturating_sub(now_ns + MINUTE_NS))
}

/// How long so much takes to flow in.
fn refill_ns(amount: u64, per_minute: u64) -> u64 {
    let ns = u128::from(amount) * u128::from(MINUTE_NS) / u128::from(per_minute.max(1));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn config(name: &str, key: &str) -> KeyConfig {
        KeyConfig {
            name: name.into(),
            sha256: Sha256::digest(key).into(),
            requests_per_minute: None,
            concurrency: None,
            bytes_per_minute: None,
        }
    }

    fn limited(limit: impl FnOnce(&mut KeyConfig)) -> Arc<Key> {
        let mut config = config("a", "k");
        limit(&mut config);
        Arc::clone(&Keyring::default().renewed(&[config]).keys[0])
    }

    fn brought(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    /// The limit that refuses a request, and how long; at least so long as it says, at most a quarter more.
    #[track_caller]
    fn assert_over(admitted: Result<Permit, ProxyError>, expected: KeyLimit, wait: Duration) {
        let Err(ProxyError::KeyLimited { limit, retry_after }) = admitted else { panic!("let in: {admitted:?}") };
        assert_eq!(limit, expected);
        let least = wait.saturating_sub(Duration::from_millis(2));
        assert!((least..=wait.mul_f64(1.26)).contains(&retry_after), "{retry_after:?} for {wait:?}");
    }

    #[test]
    fn a_key_is_known_wherever_clients_put_it() {
        let ring = Keyring::default().renewed(&[config("a", "one"), config("b", "two"), config("c", "three")]);
        for (fields, owner) in [
            (&[("authorization", "Bearer one")][..], Some("a")),
            (&[("authorization", "bearer  two")], Some("b")),
            (&[("x-api-key", "three")], Some("c")),
            (&[("api-key", "one")], Some("a")),
            (&[("authorization", "Bearer placeholder"), ("x-api-key", "two")], Some("b")),
            (&[], None),
            (&[("authorization", "one")], None),
            (&[("authorization", "Basic one")], None),
            (&[("authorization", "Bearer ")], None),
            (&[("authorization", "Bearer")], None),
            (&[("x-api-key", "")], None),
            (&[("x-api-key", "on")], None),
            (&[("x-api-key", "onee")], None),
            (&[("cookie", "one")], None),
        ] {
            let found = ring.owner(&brought(fields)).map(|key| key.map(|key| key.name().to_owned()));
            assert_eq!(found, owner.map(|name| Some(name.to_owned())).ok_or(ProxyError::InvalidApiKey), "{fields:?}");
        }
        assert_eq!(ring.refusals()[0], (String::new(), "invalid", 9));
        assert!(Keyring::default().owner(&HeaderMap::new()).is_ok_and(|key| key.is_none()), "nobody needs one");
    }

    #[test]
    fn digests_that_begin_alike_are_told_apart() {
        let mut near = config("near", "one");
        near.sha256[31] ^= 1;
        let ring = Keyring::default().renewed(&[near, config("a", "one")]);
        assert_eq!(ring.find(b"one").map(|key| key.name()), Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_flow_in_evenly_up_to_those_of_a_minute() {
        now_ms();
        let key = limited(|key| key.requests_per_minute = Some(30));
        for _ in 0..30 {
            assert!(key.admit(0).is_ok());
        }
        assert_over(key.admit(0), KeyLimit::Requests, Duration::from_secs(2));
        tokio::time::advance(Duration::from_millis(1_990)).await;
        assert_over(key.admit(0), KeyLimit::Requests, Duration::from_millis(10));
        tokio::time::advance(Duration::from_millis(20)).await;
        assert!(key.admit(0).is_ok());
        assert_over(key.admit(0), KeyLimit::Requests, Duration::from_millis(1_990));
        tokio::time::advance(Duration::from_secs(600)).await;
        assert_eq!((0..100).filter(|_| key.admit(0).is_ok()).count(), 30, "what was not used is lost");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_larger_than_the_rest_gets_in_and_the_next_ones_pay() {
        now_ms();
        let key = limited(|key| key.bytes_per_minute = Some(600));
        key.admit(500).unwrap().has_read(500);
        let chunked = key.admit(0).unwrap();
        chunked.has_read(700);
        // 1,200 of 600: a minute until there is anything again.
        assert_over(key.admit(0), KeyLimit::Bytes, Duration::from_secs(60));
        tokio::time::advance(Duration::from_secs(61)).await;
        let announced = key.admit(10).unwrap();
        announced.has_read(10);
        assert_over(key.admit(1), KeyLimit::Bytes, Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_announced_is_held_and_what_never_came_is_given_back() {
        now_ms();
        let key = limited(|key| key.bytes_per_minute = Some(600));
        let begun = key.admit(1_200).unwrap();
        begun.has_read(100);
        begun.has_read(500);
        assert_over(key.admit(0), KeyLimit::Bytes, Duration::from_secs(60));
        drop(begun);
        // Of 600, 600 were read.
        assert_over(key.admit(0), KeyLimit::Bytes, Duration::from_millis(100));
        tokio::time::advance(Duration::from_secs(60)).await;
        let slow = key.admit(600).unwrap();
        tokio::time::advance(Duration::from_secs(90)).await;
        drop(slow);
        key.admit(600).unwrap().has_read(600);
        assert_over(key.admit(0), KeyLimit::Bytes, Duration::from_millis(100));
    }

    #[test]
    fn as_many_at_once_as_allowed() {
        let key = limited(|key| key.concurrency = Some(2));
        let held = [key.admit(0).unwrap(), key.admit(0).unwrap()];
        assert_over(key.admit(0), KeyLimit::Concurrency, CONCURRENCY_RETRY);
        drop(held);
        let _held = [key.admit(0).unwrap(), key.admit(0).unwrap()];
        assert_over(key.admit(0), KeyLimit::Concurrency, CONCURRENCY_RETRY);
    }

    #[test]
    fn what_is_refused_for_one_limit_costs_nothing_of_another() {
        let key = limited(|key| (key.concurrency, key.requests_per_minute) = (Some(1), Some(2)));
        let held = key.admit(0).unwrap();
        for _ in 0..10 {
            assert_over(key.admit(0), KeyLimit::Concurrency, CONCURRENCY_RETRY);
        }
        drop(held);
        assert!(key.admit(0).is_ok());
        assert_over(key.admit(0), KeyLimit::Requests, Duration::from_secs(30));
        assert_eq!(key.meter.in_flight.load(Relaxed), 0);
    }

    #[test]
    fn a_reload_forgives_nothing_and_counts_on() {
        let mut of_a = config("a", "k");
        of_a.requests_per_minute = Some(1);
        let old = Keyring::default().renewed(&[of_a.clone(), config("b", "l")]);
        old.keys.iter().for_each(|key| drop(key.admit(0)));
        of_a.sha256 = Sha256::digest("new").into();
        let new = old.renewed(&[of_a]);
        let fields = brought(&[("x-api-key", "new")]);
        let key = new.owner(&fields).unwrap().unwrap();
        assert_over(key.admit(0), KeyLimit::Requests, Duration::from_secs(60));
        assert!(new.owner(&brought(&[("x-api-key", "k")])).is_err(), "the old key is gone");
        assert!(old.owner(&fields).is_err());
        assert_eq!(new.refusals()[..2], [(String::new(), "invalid", 2), ("a".into(), "requests", 1)]);
    }
}
