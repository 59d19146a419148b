//! A changed fleet: its new backends are asked, the snapshot is swapped, and what lives outside the snapshot follows.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Reload, is_in, members};
use crate::config::{Config, Mistakes};
use crate::control::poll;
use crate::control::registered::Registered;
use crate::edge::Member;

/// A new backend gets requests after it has been asked once, or after this long.
const FIRST_POLLS: Duration = Duration::from_secs(2);

impl Reload {
    /// Brings the fleet into use that these ask for, or leaves everything as it was.
    pub(super) async fn adopt(&mut self, config: Arc<Config>, registered: Registered) -> Result<(), Mistakes> {
        let old = self.shared.snapshot.load_full();
        let fleet = members(&config, &registered, [&old.fleet, &self.retired], &self.shared.queue)?;
        self.ask_first(&fleet).await;
        for member in fleet.iter().filter(|member| self.status.drained.holds(&member.config.name)) {
            // One that is new under its name too, before a request can find it.
            member.backend.drain();
        }
        let swapped = self.swap(Arc::clone(&config), fleet.clone()).await;
        match swapped {
            Ok(()) => {
                self.registered = registered;
                self.take_effect(&config, &fleet, &old.fleet);
            }
            Err(_) => self.poll_only(&old.fleet),
        }
        swapped
    }

    /// Asks each new backend once, for a bounded time: what it serves must be known before requests come for it.
    pub async fn ask_first(&mut self, fleet: &[Member]) {
        let (first, mut asked) = mpsc::unbounded_channel();
        let config = Arc::clone(&self.shared.snapshot.load().config);
        for member in fleet.iter().filter(|member| member.backend.is_unknown()) {
            member.backend.configure(member.config.slots, member.config.engine, &config.capacity);
            self.poll(member, &first);
        }
        drop(first);
        // Nothing is ever sent: the channel closes when the last poller lets go of it.
        let _ = timeout(FIRST_POLLS, asked.recv()).await;
    }

    /// What is to be done now and then: idle connections of the pollers are looked through, removed backends forgotten.
    pub fn sweep(&mut self) {
        self.pool.sweep();
        self.let_go();
    }

    /// Lets go of removed backends that hold no request any more, and of snapshots that no worker has.
    pub(super) fn let_go(&mut self) {
        self.past.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        self.retired.retain(|gone| {
            let is_drained = gone.backend.in_flight() == 0;
            if is_drained {
                tracing::info!(backend = %gone.backend.name, "drained");
            }
            !is_drained
        });
        self.status.retired.store(Arc::new(self.retired.clone()));
    }

    /// Polls exactly these from now on.
    fn poll_only(&mut self, fleet: &[Member]) {
        self.polling.retain(|id, _| fleet.iter().any(|member| member.backend.id == *id));
        let (first, _) = mpsc::unbounded_channel();
        for member in fleet {
            self.poll(member, &first);
        }
    }

    fn poll(&mut self, member: &Member, first: &mpsc::UnboundedSender<()>) {
        let start = || {
            poll::start(
                member.clone(),
                Arc::clone(&self.shared),
                Rc::clone(&self.pool),
                first.clone(),
                self.changed.clone(),
            )
        };
        self.polling.entry(member.backend.id).or_insert_with(start);
    }

    /// What lives outside the snapshot follows it.
    fn take_effect(&mut self, config: &Config, fleet: &[Member], old: &[Member]) {
        self.shared.queue.resize(config.queue.size, config.queue.bytes);
        self.shared.bodies.resize(config.limits.bodies_in_flight_bytes);
        for member in fleet {
            member.backend.configure(member.config.slots, member.config.engine, &config.capacity);
            // Somebody may have wanted it empty, or back, while the snapshot was built.
            if self.status.drained.holds(&member.config.name) {
                member.backend.drain();
            } else {
                member.backend.undrain();
            }
            let is_other = |old: &Member| old.config != member.config || old.authorization != member.authorization;
            if old.iter().any(|old| old.backend.id == member.backend.id && is_other(old)) {
                // Polled anew, with what is configured now.
                self.polling.remove(&member.backend.id);
            }
        }
        for gone in old.iter().filter(|old| !is_in(fleet, old)) {
            tracing::info!(backend = %gone.backend.name, in_flight = gone.backend.in_flight(), "removed: draining");
            gone.backend.drain();
            self.retired.push(gone.clone());
        }
        self.retired.retain(|gone| !is_in(fleet, gone));
        self.status.drained.keep_only(fleet);
        self.let_go();
        self.show_registered();
        self.shared.queue.release_stranded();
        self.poll_only(fleet);
    }
}
