//! The hold of one request on one slot.

use std::sync::Arc;

use super::backend::Backend;
use crate::clock::now_ms;

/// One request's hold on a slot. Dropping it frees the slot and wakes whoever is first in line for it.
#[derive(Debug)]
pub struct Lease {
    pub backend: Arc<Backend>,
    since_ms: u64,
    held: bool,
}

impl Lease {
    /// For `Backend::claim`, which has taken the slot.
    pub(super) fn new(backend: &Arc<Backend>) -> Self {
        Self { backend: Arc::clone(backend), since_ms: now_ms(), held: true }
    }

    /// Frees the slot without looking for a waiter: for the one who is doing just that.
    pub(super) fn release_quietly(mut self) {
        self.held = false;
        self.backend.give_back(None);
    }

    /// Gives the slot to whoever stands in line behind this ticket: for a policy that would rather wait. Those before it
    /// have been asked, and are asked again at the next event.
    pub fn pass_on(mut self, ticket: u64) {
        self.held = false;
        self.backend.give_back(None);
        self.backend.wake_behind(ticket);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.held {
            let held_ms = now_ms().saturating_sub(self.since_ms);
            self.backend.give_back(Some(u32::try_from(held_ms).unwrap_or(u32::MAX)));
            self.backend.wake();
        }
    }
}
