//! Addresses of backends that are known by a name: looked up once for all workers, and again after a few seconds.
//!
//! The system's resolver blocks, for half a minute where name servers are silent. So each name is looked up on a thread of its
//! own, once at a time, which nobody has to wait for: neither a worker, nor another name, nor the end of the process.
//! While it is silent or fails, what it said last goes on for a minute. What it says is gone is gone.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dns_lookup::{AddrFamily, AddrInfoHints, LookupError, LookupErrorKind, SockType, getaddrinfo};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// An answer is used for this long before it is asked for again.
const FRESH: Duration = Duration::from_secs(5);
/// An old answer is used for this long where no other comes.
const KEPT: Duration = Duration::from_secs(60);
/// Who has an old answer waits for a new one no longer than this: name servers nearby take a few milliseconds.
const PATIENCE: Duration = Duration::from_millis(100);
/// A name that could not be looked up, or has no address, is not looked up again sooner.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Names under way at once. Each is a thread, for as long as the resolver is silent.
const UNDER_WAY_LIMIT: usize = 64;
/// Names that are remembered; of a fleet whose nodes have ever new names, old ones are forgotten.
const NAMES_LIMIT: usize = 4096;

type Addresses = Arc<[IpAddr]>;
/// What a lookup brought, and when: no addresses means that there are none; `None` that it failed.
type Outcome = (Option<Addresses>, Instant);

/// What is known of names.
#[derive(Debug, Default)]
pub struct Names(Mutex<HashMap<String, Entry>>);

#[derive(Debug, Default)]
struct Entry {
    /// The last good answer, and when it came.
    known: Option<(Addresses, Instant)>,
    failed: Option<Instant>,
    under_way: Option<UnderWay>,
}

#[derive(Debug, Clone)]
struct UnderWay {
    since: Instant,
    /// Its outcome, once there is one.
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Entry {
    /// Takes over what the lookup under way has brought by now.
    fn settle(&mut self) {
        let Some(UnderWay { since, outcome }) = self.under_way.clone() else { return };
        // A lookup that ended without a word has panicked.
        let has_died = outcome.has_changed().is_err() && outcome.borrow().is_none();
        let Some((found, at)) = outcome.borrow().clone().or(has_died.then_some((None, since))) else { return };
        self.under_way = None;
        match found {
            Some(addresses) => (self.known, self.failed) = (Some((addresses, at)), None),
            None => self.failed = Some(at),
        }
    }

    /// The addresses, where they are not older than that.
    fn known(&self, age: Duration) -> Option<Addresses> {
        self.known.as_ref().filter(|(_, at)| at.elapsed() < age).map(|(addresses, _)| Arc::clone(addresses))
    }

    /// The same, where they need not be asked for again.
    fn fresh(&self) -> Option<Addresses> {
        self.known(FRESH).filter(|addresses| !addresses.is_empty()).or_else(|| self.known(AGAIN_AFTER))
    }

    /// Whether it is time to ask.
    fn is_due(&self) -> bool {
        let failed_lately = self.failed.is_some_and(|at| at.elapsed() < AGAIN_AFTER);
        self.under_way.is_none() && self.fresh().is_none() && !failed_lately
    }
}

impl Names {
    /// The addresses of a host, at least one. As long as it takes, where none are known: the caller bounds it.
    ///
    /// # Errors
    /// Where it has none, or they cannot be found out.
    pub async fn resolve(&self, host: &str) -> io::Result<Addresses> {
        let (under_way, old) = {
            let mut entries = self.lock();
            let entry = ask(&mut entries, host);
            if let Some(addresses) = entry.fresh() {
                return there(addresses);
            }
            (entry.under_way.clone(), entry.known(KEPT))
        };
        if let Some(UnderWay { since, mut outcome }) = under_way {
            let end = async {
                // It ends either way.
                let _ = outcome.wait_for(Option::is_some).await;
            };
            match old {
                Some(_) => drop(timeout_at(since + PATIENCE, end).await),
                None => end.await,
            }
        }
        let mut entries = self.lock();
        let entry = entries.entry(host.to_owned()).or_default();
        entry.settle();
        entry.known(KEPT).map_or_else(|| Err(ErrorKind::AddrNotAvailable.into()), there)
    }

    /// What is known of a host now; asks anew in the background where that is old.
    pub fn last_known(&self, host: &str) -> Option<Addresses> {
        ask(&mut self.lock(), host).known(KEPT)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn there(addresses: Addresses) -> io::Result<Addresses> {
    if addresses.is_empty() { Err(ErrorKind::AddrNotAvailable.into()) } else { Ok(addresses) }
}

/// The entry of a host; a lookup is begun where it is due.
fn ask<'a>(entries: &'a mut HashMap<String, Entry>, host: &str) -> &'a mut Entry {
    if entries.len() >= NAMES_LIMIT && !entries.contains_key(host) {
        entries.retain(|_, entry| entry.under_way.is_some());
    }
    let under_way = entries.values().filter(|entry| entry.under_way.is_some()).count();
    let entry = entries.entry(host.to_owned()).or_default();
    entry.settle();
    if entry.is_due() && under_way < UNDER_WAY_LIMIT {
        match begin(host) {
            Ok(outcome) => entry.under_way = Some(UnderWay { since: Instant::now(), outcome }),
            Err(error) => {
                tracing::warn!(host, "no thread to look up a name: {error}");
                entry.failed = Some(Instant::now());
            }
        }
    }
    entry
}

/// Looks a host up on a thread of its own.
fn begin(host: &str) -> io::Result<watch::Receiver<Option<Outcome>>> {
    let (tell, outcome) = watch::channel(None);
    let host = host.to_owned();
    std::thread::Builder::new().name("lookup".into()).spawn(move || {
        let found = look_up(&host);
        let _ = found.as_ref().inspect_err(|error| tracing::debug!(host, "not found: {error}"));
        // Nobody may be interested any more.
        let _ = tell.send(Some((found.ok(), Instant::now())));
    })?;
    Ok(outcome)
}

/// The addresses of a host; none, where it has none. Takes as long as the resolver does.
fn look_up(host: &str) -> io::Result<Addresses> {
    match ask_system(host, None) {
        // By itself it does not mean that: where one kind of address could not be found out, and there is none of the other,
        // glibc says the same. So each is asked for alone.
        Err(error) if means_none(&error) => {
            let mut all = Vec::new();
            for family in [AddrFamily::Inet, AddrFamily::Inet6] {
                match ask_system(host, Some(family)) {
                    Ok(found) => all.extend(found),
                    Err(error) if means_none(&error) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(all.into())
        }
        found => Ok(found?.into()),
    }
}

/// What is an error to the C library, and to us an answer: there is no such name, or it has no address.
fn means_none(error: &LookupError) -> bool {
    matches!(error.kind(), LookupErrorKind::NoName | LookupErrorKind::NoData)
}

/// Addresses of one kind, or of all. Not by the standard library, which does not tell errors apart.
fn ask_system(host: &str, family: Option<AddrFamily>) -> Result<Vec<IpAddr>, LookupError> {
    let (address, socktype) = (family.map_or(0, i32::from), SockType::Stream.into());
    let hints = AddrInfoHints { address, socktype, ..AddrInfoHints::default() };
    let found = getaddrinfo(Some(host), None, Some(hints))?;
    Ok(found.map(|one| Ok(one?.sockaddr.ip())).collect::<io::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const A: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1))];

    /// An entry with a lookup under way since now, and its end.
    fn asked(entry: &mut Entry) -> watch::Sender<Option<Outcome>> {
        let (tell, outcome) = watch::channel(None);
        entry.under_way = Some(UnderWay { since: Instant::now(), outcome });
        tell
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_fresh_for_a_while_and_then_asked_for_again() {
        let mut entry = Entry::default();
        assert!(entry.is_due());
        let tell = asked(&mut entry);
        assert!(!entry.is_due(), "one lookup at a time");
        tell.send(Some((Some(A.into()), Instant::now()))).unwrap();
        entry.settle();
        assert_eq!(entry.known(FRESH).as_deref(), Some(&A[..]));
        assert!(!entry.is_due());
        advance(FRESH).await;
        assert!(entry.is_due() && entry.known(FRESH).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_resolver_is_silent_or_fails_the_old_answer_goes_on_for_a_minute() {
        let mut entry = Entry { known: Some((A.into(), Instant::now())), ..Entry::default() };
        advance(FRESH).await;
        let silent = asked(&mut entry);
        entry.settle();
        assert_eq!(entry.known(KEPT).as_deref(), Some(&A[..]));
        silent.send(Some((None, Instant::now()))).unwrap();
        entry.settle();
        assert!(!entry.is_due() && entry.known(KEPT).is_some(), "not again at once");
        advance(AGAIN_AFTER).await;
        assert!(entry.is_due());
        advance(KEPT).await;
        assert!(entry.known(KEPT).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_answer_is_an_answer() {
        let mut entry = Entry { known: Some((A.into(), Instant::now())), ..Entry::default() };
        advance(FRESH).await;
        asked(&mut entry).send(Some((Some([].into()), Instant::now()))).unwrap();
        entry.settle();
        let known = entry.known(KEPT).expect("an answer");
        assert!(there(known).is_err(), "what is gone is not connected to");
        assert!(!entry.is_due());
        advance(AGAIN_AFTER).await;
        assert!(entry.is_due(), "it may come back any moment");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_that_dies_is_a_failure() {
        let mut entry = Entry::default();
        drop(asked(&mut entry));
        entry.settle();
        assert!(entry.under_way.is_none() && entry.failed.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_an_old_answer_waits_a_moment_for_the_new_one_and_others_wait_on() {
        let names = Names::default();
        let since = Instant::now();
        names.lock().insert("gpu".into(), Entry { known: Some((A.into(), since)), ..Entry::default() });
        advance(FRESH).await;
        let silent = asked(names.lock().get_mut("gpu").unwrap());
        assert_eq!(names.resolve("gpu").await.unwrap()[..], A);
        assert_eq!(since.elapsed(), FRESH + PATIENCE);
        assert_eq!(names.resolve("gpu").await.unwrap()[..], A);
        assert_eq!(since.elapsed(), FRESH + PATIENCE, "nobody waits twice for the same silence");
        names.lock().get_mut("gpu").unwrap().known = None;
        assert!(tokio::time::timeout(KEPT, names.resolve("gpu")).await.is_err());
        silent.send(Some((Some(A.into()), Instant::now()))).unwrap();
        assert!(names.resolve("gpu").await.is_ok());
    }

    #[tokio::test]
    async fn the_system_is_asked() {
        let names = Names::default();
        assert!(names.resolve("localhost").await.unwrap().iter().all(IpAddr::is_loopback));
        assert!(names.resolve("no-such-host.invalid").await.is_err());
    }
}
