//! The hold of one request on its slots.

use std::sync::Arc;
use std::time::Duration;

use super::backend::Backend;
use super::cost::Cost;
use super::limit::{Answer, Took};
use super::queue::Turn;
use crate::clock::{micros32, now_ms};

/// One request's hold on a slot, or on several where it costs more. Dropping it frees them and wakes whoever is first
/// in line for them.
#[derive(Debug)]
pub struct Lease {
    pub backend: Arc<Backend>,
    /// When it was claimed, by [`now_ms`].
    pub since_ms: u64,
    /// What it takes.
    cost: Cost,
    /// It is the trial of a backend that was put out of use.
    is_trial: bool,
    /// It got the last slots of the backend's limit.
    was_full: bool,
    /// Its answer came whole: how long that took tells how long slots are held.
    is_whole: bool,
    held: bool,
}

impl Lease {
    /// For `Backend::claim`, which has taken the slots.
    pub(super) fn new(backend: &Arc<Backend>, cost: Cost, is_trial: bool) -> Self {
        let (backend, was_full) = (Arc::clone(backend), backend.is_full());
        Self { backend, since_ms: now_ms(), cost, is_trial, was_full, is_whole: false, held: true }
    }

    /// Whether it is the trial of a backend that was put out of use.
    pub fn is_trial(&self) -> bool {
        self.is_trial
    }

    /// Slots that it takes.
    pub fn slots(&self) -> u32 {
        self.cost.slots
    }

    /// The first byte of a good answer came after `first_byte`; of a stream, where `is_stream`.
    pub fn began(&self, first_byte: Duration, is_stream: bool) {
        self.backend.began(first_byte);
        if is_stream {
            self.answered(Took::FirstByte(u64::from(micros32(first_byte))));
        }
    }

    /// The last byte of a good answer came that was no stream, with so many tokens.
    pub fn wrote(&self, tokens: u64) {
        if tokens > 0 {
            let us = now_ms().saturating_sub(self.since_ms).saturating_mul(1_000);
            self.answered(Took::Whole { us, tokens });
        }
    }

    fn answered(&self, took: Took) {
        self.backend.answered(Answer { sent_ms: self.since_ms, was_full: self.was_full, took });
    }

    /// Frees the slots after a whole, good answer.
    pub fn end_well(mut self) {
        self.is_whole = true;
    }

    /// Frees the slots without looking for a waiter: for the one who is doing just that.
    pub(super) fn release_quietly(mut self) {
        self.held = false;
        self.backend.give_back(self.cost, None, self.is_trial);
        self.backend.show();
    }

    /// Gives the slots to whoever stands in line behind this turn: for a policy that would rather wait. Those before it
    /// have been asked, and are asked again at the next event.
    pub fn pass_on(mut self, turn: Turn) {
        self.held = false;
        self.backend.give_back(self.cost, None, self.is_trial);
        self.backend.wake_behind(turn);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.held {
            let held_ms = u32::try_from(now_ms().saturating_sub(self.since_ms)).unwrap_or(u32::MAX);
            self.backend.give_back(self.cost, self.is_whole.then_some(held_ms), self.is_trial);
            self.backend.wake();
        }
    }
}
