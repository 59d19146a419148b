//! Backends that somebody wants empty: no new request goes to them, what runs finishes.
//!
//! Invariants:
//! - It holds at once, whatever else control is doing: no snapshot is built for it.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::reload::{Changed, Refused};
use super::status::Status;
use crate::edge::{Member, Shared};

/// Their names; each is of the fleet, or of the one that is being built.
#[derive(Default)]
pub struct Drained(Mutex<BTreeSet<String>>);

impl Drained {
    pub fn holds(&self, name: &str) -> bool {
        self.names().contains(name)
    }

    /// Who wanted a backend empty has what they wanted once it is gone.
    pub fn keep_only(&self, fleet: &[Member]) {
        self.names().retain(|name| fleet.iter().any(|member| member.config.name == *name));
    }

    fn names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a backend of the fleet run empty, or lets it take requests again.
pub fn drain(shared: &Shared, status: &Status, name: &str, is_drain: bool) -> Result<Changed, Refused> {
    let snapshot = shared.snapshot.load_full();
    let member = snapshot.fleet.iter().find(|member| member.config.name == name).ok_or(Refused::Unknown)?;
    let changed = if is_drain {
        status.drained.names().insert(name.to_owned());
        member.backend.drain();
        // Whoever waits for this one alone has to look for another.
        shared.queue.release_stranded();
        Changed::Drained
    } else {
        status.drained.names().remove(name);
        member.backend.undrain();
        Changed::Undrained
    };
    status.events.fleet(name, changed.name());
    Ok(changed)
}
