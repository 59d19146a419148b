//! The hold of one request on its slots.

use std::sync::Arc;

use super::backend::Backend;
use super::queue::Turn;
use crate::clock::now_ms;

/// One request's hold on a slot, or on several where it costs more. Dropping it frees them and wakes whoever is first in line for them.
#[derive(Debug)]
pub struct Lease {
    pub backend: Arc<Backend>,
    /// Slots that it takes.
    cost: u32,
    since_ms: u64,
    held: bool,
}

impl Lease {
    /// For `Backend::claim`, which has taken the slots.
    pub(super) fn new(backend: &Arc<Backend>, cost: u32) -> Self {
        Self { backend: Arc::clone(backend), cost, since_ms: now_ms(), held: true }
    }

    /// Slots that it takes.
    pub fn cost(&self) -> u32 {
        self.cost
    }

    /// Frees the slot without looking for a waiter: for the one who is doing just that.
    pub(super) fn release_quietly(mut self) {
        self.held = false;
        self.backend.give_back(self.cost, None);
    }

    /// Gives the slot to whoever stands in line behind this turn: for a policy that would rather wait. Those before it
    /// have been asked, and are asked again at the next event.
    pub fn pass_on(mut self, turn: Turn) {
        self.held = false;
        self.backend.give_back(self.cost, None);
        self.backend.wake_behind(turn);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.held {
            let held_ms = now_ms().saturating_sub(self.since_ms);
            self.backend.give_back(self.cost, Some(u32::try_from(held_ms).unwrap_or(u32::MAX)));
            self.backend.wake();
        }
    }
}
