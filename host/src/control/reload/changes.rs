//! Changes of the fleet that come through the admin API: backends that are registered, renewed, deleted.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Reload;
use crate::config::{Mistakes, Registration};
use crate::control::registered::{self, Registered, Taken};

/// What somebody wants, and who waits for the answer.
#[derive(Debug)]
pub struct Change {
    /// The backend's name.
    pub name: String,
    pub wish: Wish,
    pub answer: oneshot::Sender<Result<Changed, Refused>>,
}

/// What is wanted of a backend.
#[derive(Debug)]
pub enum Wish {
    Register(Box<Registration>),
    Delete,
}

/// What was changed, as the answer says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    Registered,
    /// Registered before, and something else now.
    Replaced,
    Renewed,
    Deleted,
    Drained,
    Undrained,
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq)]
pub enum Refused {
    /// There is no such backend.
    Unknown,
    /// The configuration lists it.
    Configured,
    /// Another backend has this address.
    AddressTaken(String),
    TooMany,
    /// The fleet could not be built so, all else stays as it was.
    NotBuilt(Mistakes),
}

impl Reload {
    /// Makes these changes: one new fleet for all of them, so that a rack that starts costs no more than a node.
    pub async fn change(&mut self, changes: Vec<Change>) {
        let mut registered = self.registered.clone();
        let now = Instant::now();
        let mut made: Vec<_> =
            changes.iter().map(|change| self.make(&mut registered, &change.name, &change.wish, now)).collect();
        let alters = |made: &Result<Changed, Refused>| {
            matches!(made, Ok(Changed::Registered | Changed::Replaced | Changed::Deleted))
        };
        if made.iter().any(alters) {
            let config = Arc::clone(&self.shared.snapshot.load().config);
            if let Err(mistakes) = self.adopt(config, registered).await {
                tracing::error!("the fleet stays as it was: {mistakes}");
                made.iter_mut()
                    .filter(|made| alters(made))
                    .for_each(|made| *made = Err(Refused::NotBuilt(mistakes.clone())));
            }
        } else {
            self.registered = registered;
            self.show_registered();
        }
        for (Change { name, answer, .. }, made) in changes.into_iter().zip(made) {
            match &made {
                Ok(Changed::Renewed) | Err(_) => {}
                Ok(changed) => self.status.events.fleet(&name, changed.name()),
            }
            // Whoever asked may be gone; it is done all the same.
            let _ = answer.send(made);
        }
    }

    /// One change of the registrations to be.
    fn make(&self, registered: &mut Registered, name: &str, wish: &Wish, now: Instant) -> Result<Changed, Refused> {
        let snapshot = self.shared.snapshot.load_full();
        let is_configured = snapshot.config.backends.iter().any(|backend| backend.name == name);
        match wish {
            Wish::Register(_) | Wish::Delete if is_configured => Err(Refused::Configured),
            Wish::Register(registration) => {
                let url = &registration.backend.url;
                let others = snapshot.config.backends.iter().chain(registered.backends());
                if let Some(other) = others.filter(|other| other.name != name).find(|other| other.url == *url) {
                    return Err(Refused::AddressTaken(other.name.clone()));
                }
                if registered.count() >= registered::LIMIT && !registered.holds(name) {
                    return Err(Refused::TooMany);
                }
                Ok(match registered.put((**registration).clone(), now) {
                    Taken::New => Changed::Registered,
                    Taken::Changed => Changed::Replaced,
                    Taken::Renewed => Changed::Renewed,
                })
            }
            Wish::Delete => {
                if registered.remove(name) {
                    Ok(Changed::Deleted)
                } else {
                    Err(Refused::Unknown)
                }
            }
        }
    }

    /// Until the next registration is over; for ever where none ends.
    pub async fn registration_ends(&self) {
        match self.registered.next() {
            Some(end) => tokio::time::sleep_until(end).await,
            None => std::future::pending().await,
        }
    }

    /// Takes backends out that were not renewed in time.
    pub async fn expire(&mut self) {
        let mut registered = self.registered.clone();
        let over = registered.expire(Instant::now());
        if over.is_empty() {
            self.registered = registered;
            return self.show_registered();
        }
        let config = Arc::clone(&self.shared.snapshot.load().config);
        match self.adopt(config, registered).await {
            Ok(()) => over.iter().for_each(|name| self.status.events.fleet(name, "expired")),
            Err(mistakes) => {
                tracing::error!("backends that were not renewed cannot be taken out: {mistakes}");
                self.registered.postpone(Instant::now());
            }
        }
    }

    /// Shows the admin page what is registered.
    pub(super) fn show_registered(&self) {
        self.status.registered.store(Arc::new(self.registered.ends()));
    }
}

impl Changed {
    /// In events and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Replaced => "replaced",
            Self::Renewed => "renewed",
            Self::Deleted => "deleted",
            Self::Drained => "drained",
            Self::Undrained => "undrained",
        }
    }
}
