//! The events of one stream: counted, timed and checked.

use tokio::time::Instant;

use super::client::Job;
use super::tally::Failure;
use crate::wire::{now_ns, number_after};

const STAMP: &[u8] = b"\"content\":\"";

pub struct Events<'a> {
    job: &'a Job,
    expected: u64,
    since: Instant,
    seen: u64,
    is_done: bool,
    /// The beginning of an event whose end has not come.
    partial: Vec<u8>,
}

impl<'a> Events<'a> {
    pub fn new(job: &'a Job, expected: u64, since: Instant) -> Self {
        Self { job, expected, since, seen: 0, is_done: false, partial: Vec::new() }
    }

    pub fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let now = now_ns();
        if self.partial.is_empty() {
            let used = self.whole_events(bytes, now)?;
            self.partial.extend_from_slice(&bytes[used..]);
        } else {
            let mut text = std::mem::take(&mut self.partial);
            text.extend_from_slice(bytes);
            let used = self.whole_events(&text, now)?;
            text.drain(..used);
            self.partial = text;
        }
        Ok(())
    }

    /// How many bytes were whole events.
    fn whole_events(&mut self, text: &[u8], now: u64) -> Result<usize, Failure> {
        let mut used = 0;
        while let Some(length) = memchr::memmem::find(&text[used..], b"\n\n") {
            self.event(&text[used..used + length], now)?;
            used += length + 2;
        }
        Ok(used)
    }

    fn event(&mut self, event: &[u8], now: u64) -> Result<(), Failure> {
        let Some(sent) = number_after(event, STAMP) else {
            self.is_done |= event.ends_with(b"[DONE]");
            return Ok(());
        };
        if self.seen == 0 {
            self.job.is_named_in(event)?;
            self.job.tally().opened(self.since.elapsed());
        }
        self.seen += 1;
        self.job.tally().event(now.saturating_sub(sent));
        Ok(())
    }

    /// The body is over: nothing may be missing.
    pub fn end(&self) -> Result<(), Failure> {
        if self.is_done && self.seen == self.expected { Ok(()) } else { Err(Failure::Incomplete) }
    }
}
