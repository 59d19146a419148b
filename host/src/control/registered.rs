//! Backends that were registered while the proxy runs, and until when.
//!
//! They live as long as the process: a node that registers itself does so again, and whoever registers one for good
//! writes it to the configuration file. What the file lists is the file's.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{BackendConfig, Registration};

/// More would rather be a mistake of whoever registers them: each is polled, and told to every plugin.
pub const LIMIT: usize = 1024;
/// A timer that fires later than this has not been late: the process stood still, and so did those who would renew.
const LATE: Duration = Duration::from_secs(1);

/// The registered backends, by name.
#[derive(Debug, Clone, Default)]
pub struct Registered {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    backend: BackendConfig,
    ttl: Option<Duration>,
    until: Option<Instant>,
}

/// What a registration changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It was not there.
    New,
    /// It was there, and is something else now.
    Changed,
    /// It stays as it was, for longer.
    Renewed,
}

impl Registered {
    /// Takes a registration over.
    pub fn put(&mut self, Registration { backend, ttl }: Registration, now: Instant) -> Taken {
        let until = ttl.map(|ttl| now + ttl);
        let name = backend.name.clone();
        let before = self.entries.insert(name, Entry { backend: backend.clone(), ttl, until });
        match before {
            None => Taken::New,
            Some(before) if before.backend == backend => Taken::Renewed,
            Some(_) => Taken::Changed,
        }
    }

    /// Takes one off; false where there is none of that name.
    pub fn remove(&mut self, name: &str) -> bool {
        self.entries.remove(name).is_some()
    }

    /// Takes off what was not renewed in time, and names it.
    pub fn expire(&mut self, now: Instant) -> Vec<String> {
        let late = self.next().map_or(Duration::ZERO, |due| now.saturating_duration_since(due));
        if late > LATE {
            self.postpone(now);
        }
        let is_over = |_: &String, entry: &mut Entry| entry.until.is_some_and(|until| until <= now);
        self.entries.extract_if(.., is_over).map(|(name, _)| name).collect()
    }

    /// Begins the time of each anew.
    pub fn postpone(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            entry.until = entry.ttl.map(|ttl| now + ttl);
        }
    }

    /// When the next one is over.
    pub fn next(&self) -> Option<Instant> {
        self.entries.values().filter_map(|entry| entry.until).min()
    }

    /// Leaves to the configuration what it lists itself, by name or address, and names it.
    pub fn yield_to(&mut self, configured: &[BackendConfig]) -> Vec<String> {
        let is_listed = |name: &String, entry: &mut Entry| {
            configured.iter().any(|other| other.name == *name || other.url == entry.backend.url)
        };
        self.entries.extract_if(.., is_listed).map(|(name, _)| name).collect()
    }

    pub fn backends(&self) -> impl Iterator<Item = &BackendConfig> {
        self.entries.values().map(|entry| &entry.backend)
    }

    pub fn holds(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Each name, and until when it is there; `None` without end.
    pub fn ends(&self) -> BTreeMap<String, Option<Instant>> {
        self.entries.iter().map(|(name, entry)| (name.clone(), entry.until)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, parse};
    use tokio::time::advance;

    const SECOND: Duration = Duration::from_secs(1);

    fn backends(count: usize) -> Vec<BackendConfig> {
        let tables = (0..count).map(|at| format!("[[backends]]\nname = \"{at}\"\nurl = \"http://gpu-{at}\"\n"));
        parse(&tables.collect::<String>(), None, &Overrides::default()).unwrap().backends
    }

    fn registered(ttls: &[Option<u32>]) -> Registered {
        let mut registered = Registered::default();
        for (backend, ttl) in backends(ttls.len()).into_iter().zip(ttls) {
            let taken = registered.put(Registration { backend, ttl: ttl.map(|ttl| SECOND * ttl) }, Instant::now());
            assert_eq!(taken, Taken::New);
        }
        registered
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_renewed_goes_and_what_is_stays() {
        let mut registered = registered(&[Some(3), Some(3), None]);
        advance(SECOND * 2).await;
        let renewed = Registration { backend: backends(1).remove(0), ttl: Some(SECOND * 3) };
        assert_eq!(registered.put(renewed, Instant::now()), Taken::Renewed);
        advance(SECOND).await;
        assert_eq!(registered.expire(Instant::now()), ["1"]);
        advance(SECOND * 2).await;
        assert_eq!(registered.expire(Instant::now()), ["0"]);
        assert_eq!((registered.next(), registered.holds("2")), (None, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_stood_still_begins_their_time_anew() {
        let mut registered = registered(&[Some(2), Some(4)]);
        advance(SECOND * 60).await;
        assert!(registered.expire(Instant::now()).is_empty(), "nobody's heartbeat could be heard");
        advance(SECOND * 2).await;
        assert_eq!(registered.expire(Instant::now()), ["0"]);
        advance(SECOND * 2).await;
        assert_eq!(registered.expire(Instant::now()), ["1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_configuration_lists_is_the_configurations() {
        let mut registered = registered(&[None, None, None]);
        let mut listed = backends(2);
        listed[1].name = "another".into();
        assert_eq!(registered.yield_to(&listed), ["0", "1"], "one by its name, one by its address");
        assert_eq!(registered.backends().map(|backend| backend.name.as_str()).collect::<Vec<_>>(), ["2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn another_address_or_slots_are_a_change() {
        let mut registered = registered(&[None]);
        let mut backend = backends(1).remove(0);
        backend.slots = Some(3);
        assert_eq!(registered.put(Registration { backend, ttl: None }, Instant::now()), Taken::Changed);
    }
}
