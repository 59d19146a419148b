//! What control and the admin page know of a backend: behind a lock, not for the request path.

use std::sync::Arc;
use std::time::SystemTime;

use super::engine::ServedModel;
use super::health::Health;
use super::kv_cache::KvCache;
use super::limit::Learned;
use super::outlier::Window;
use super::room::Share;
use crate::config::Engine;

/// How the proxies that share a fleet divide the slots of a backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sharing {
    /// Proxies besides this one.
    others: u32,
    /// Which of them is this one, from 0, where they are numbered: those before it get what cannot be divided.
    place: Option<u32>,
}

impl Sharing {
    /// Each backend begins to deal with another proxy, by its name, so that not one of them gets all that cannot be divided.
    pub fn of(replicas: u32, replica: Option<u32>, backend: &str) -> Self {
        let replicas = replicas.max(1);
        let first = backend.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % replicas;
        let place = replica.map(|replica| (replica % replicas + first) % replicas);
        Self { others: replicas - 1, place }
    }

    /// This proxy's part; at least one, or some models would be served by nobody here.
    fn part(self, slots: u32) -> u32 {
        let replicas = self.others + 1;
        let gets_more = self.place.is_some_and(|place| place < slots % replicas);
        (slots / replicas + u32::from(gets_more)).max(1)
    }
}

/// What control and the admin page know of a backend.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// What it runs: configured or found out.
    pub engine: Option<Engine>,
    pub configured_slots: Option<u32>,
    pub reported_slots: Option<u32>,
    pub sharing: Sharing,
    pub learned: Learned,
    pub health: Health,
    /// Attempts of the last half minute.
    pub window: Window,
    /// What the reports leave to us.
    pub share: Share,
    /// What our requests take of its KV-cache.
    pub kv_cache: KvCache,
    /// When it was last put out of use; what began before says nothing of it since.
    pub ejected_ms: Option<u64>,
    /// When the learned limit was last lowered.
    pub lowered_ms: u64,
    pub kv_cache_used: Option<f64>,
    /// As last reported; kept while it is down, for a known model is not an unknown one.
    pub models: Arc<Vec<ServedModel>>,
    pub down_since: Option<SystemTime>,
    pub last_error: Option<String>,
}

impl Known {
    /// The number of all its slots where it is somebody's word, and whose. Of two numbers the smaller: a report can only
    /// lower what is configured, and what an engine does not take waits better here than in it.
    fn told(&self) -> Option<(u32, &'static str)> {
        match (self.configured_slots, self.reported_slots) {
            (Some(slots), reported) if reported.is_none_or(|reported| slots <= reported) => Some((slots, "config")),
            (_, reported) => reported.map(|slots| (slots, "reported")),
        }
    }

    /// The number of all its slots where it is somebody's word.
    pub fn told_slots(&self) -> Option<u32> {
        self.told().map(|(slots, _)| slots)
    }

    /// What it runs is this, as far as is known.
    pub fn runs(&mut self, engine: Option<Engine>) {
        if self.engine != engine {
            self.learned = Learned::before(engine);
        }
        self.engine = engine;
    }

    /// This proxy's part of what is free of the KV-cache.
    pub fn part_of(&self, free: f64) -> f64 {
        free / f64::from(self.sharing.others + 1)
    }

    /// The number of slots that are this proxy's part, and where it comes from. What is learned is ours alone.
    pub fn slots(&self) -> (u32, &'static str) {
        let part = |(slots, from)| (self.sharing.part(slots), from);
        self.told().map_or_else(|| (self.learned.slots(), "learned"), part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_proxies_have_all_slots_together_and_no_more() {
        let mut dealt = [0; 3];
        for slots in 3..40 {
            for backend in ["gpu-a", "gpu-b", "10.0.0.7:8000"] {
                let part = |replica| Sharing::of(3, Some(replica), backend).part(slots);
                let parts = [part(1), part(2), part(3)];
                assert_eq!(parts.iter().sum::<u32>(), slots, "{backend}: {parts:?}");
                dealt.iter_mut().zip(parts).for_each(|(dealt, part)| *dealt += part);
            }
        }
        let (least, most) = (dealt.iter().min(), dealt.iter().max());
        assert!(least.zip(most).is_some_and(|(least, most)| most - least < 50), "{dealt:?}");
    }

    #[test]
    fn proxies_without_numbers_leave_what_cannot_be_divided() {
        let parts = |slots| Sharing { others: 1, place: None }.part(slots);
        assert_eq!([1, 2, 3, 8].map(parts), [1, 1, 1, 4]);
    }
}
