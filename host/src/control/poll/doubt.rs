//! When a backend whose engine was found out is asked again what it runs, and when it is said that its load is missing.
//!
//! Pure: no I/O, and polls for a clock. Another engine may come to stand behind an address without a moment in which
//! nothing answered; then the answers cease to look like those of the one before.

use std::collections::BTreeSet;

use crate::config::Engine;
use crate::fleet::engine::{Report, ServedModel, why_no_load};

/// Polls in a row before anything is made of what they lack: one answer missed is no news.
const ODD_POLLS: u32 = 3;
/// Polls between two recognitions. An engine that never tells its load is doubted for good, and recognising may cost five
/// questions.
const REST_POLLS: u32 = 10;

/// What a poller remembers of the answers so far.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    polls_since_recognised: u32,
    /// Who signed the list of models in the first poll since.
    owners: Option<BTreeSet<String>>,
    /// Somebody else signs it now.
    is_signed_otherwise: bool,
    /// Polls in a row that brought less than this engine has to say.
    odd_polls: u32,
    /// Polls in a row without the load that this engine reports.
    loadless_polls: u32,
    /// It was said that the load is missing.
    said_missing: bool,
}

/// What is worth a line in the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// No load, likely for this reason.
    LoadMissing(&'static str),
    LoadBack,
}

impl Doubts {
    /// Whether it should be asked again what it runs.
    pub(super) fn are_due(&self) -> bool {
        let odd = self.is_signed_otherwise || self.odd_polls >= ODD_POLLS;
        odd && self.polls_since_recognised >= REST_POLLS
    }

    /// It was asked what it runs.
    pub(super) fn dispelled(&mut self) {
        let (loadless_polls, said_missing) = (self.loadless_polls, self.said_missing);
        *self = Self { loadless_polls, said_missing, ..Self::default() };
    }

    /// Takes a poll into account.
    pub(super) fn weigh(&mut self, engine: Engine, report: &Report) -> Option<News> {
        self.polls_since_recognised = self.polls_since_recognised.saturating_add(1);
        let has_load = report.running.is_some() || report.waiting.is_some();
        let why = why_no_load(engine).filter(|_| !has_load);
        let odd = !report.may_serve() || report.models.is_none() || why.is_some();
        self.odd_polls = if odd { self.odd_polls.saturating_add(1) } else { 0 };
        if let Some(models) = &report.models {
            let owners = owners(models);
            self.is_signed_otherwise = *self.owners.get_or_insert_with(|| owners.clone()) != owners;
        }
        // What cannot serve is not asked for its load.
        if report.may_serve() { self.load_news(why, has_load) } else { None }
    }

    fn load_news(&mut self, why: Option<&'static str>, has_load: bool) -> Option<News> {
        let Some(why) = why else {
            self.loadless_polls = 0;
            // Another engine, which has none to report, may have come in between.
            return (std::mem::take(&mut self.said_missing) && has_load).then_some(News::LoadBack);
        };
        self.loadless_polls = self.loadless_polls.saturating_add(1);
        let is_news = self.loadless_polls >= ODD_POLLS && !self.said_missing;
        self.said_missing |= is_news;
        is_news.then_some(News::LoadMissing(why))
    }
}

fn owners(models: &[ServedModel]) -> BTreeSet<String> {
    let owners: BTreeSet<&str> = models.iter().filter_map(|model| model.details.get("owned_by")?.as_str()).collect();
    owners.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::engine::Health;

    fn signed(owner: &str) -> Report {
        let mut model = ServedModel { native: "m".into(), ..ServedModel::default() };
        model.details.insert("owned_by".into(), owner.into());
        Report { health: Health::Ready, running: Some(0), models: Some(vec![model]), ..Report::default() }
    }

    fn loadless() -> Report {
        Report { running: None, ..signed("vllm") }
    }

    /// Doubts that have rested since the last recognition.
    fn rested(engine: Engine, report: &Report) -> Doubts {
        let mut doubts = Doubts::default();
        for _ in 0..REST_POLLS {
            assert_eq!(doubts.weigh(engine, report), None);
        }
        assert!(!doubts.are_due());
        doubts
    }

    #[test]
    fn another_signature_is_doubted_at_once() {
        let mut doubts = rested(Engine::Vllm, &signed("vllm"));
        doubts.weigh(Engine::Vllm, &signed("llamacpp"));
        assert!(doubts.are_due());
        doubts.weigh(Engine::Vllm, &signed("vllm"));
        assert!(!doubts.are_due(), "it was for a moment");
        doubts.weigh(Engine::Vllm, &signed("llamacpp"));
        doubts.dispelled();
        doubts.weigh(Engine::LlamaCpp, &signed("llamacpp"));
        assert!(!doubts.are_due());
    }

    #[test]
    fn what_an_engine_has_to_say_may_be_missing_for_a_moment() {
        let not_ready = Report { health: Health::NotReady("answered 500".into()), ..Report::default() };
        let no_list = Report { models: None, ..signed("vllm") };
        for lacking in [loadless(), no_list, not_ready] {
            let mut doubts = rested(Engine::Vllm, &signed("vllm"));
            for _ in 1..ODD_POLLS {
                doubts.weigh(Engine::Vllm, &lacking);
                assert!(!doubts.are_due(), "{lacking:?}");
            }
            doubts.weigh(Engine::Vllm, &lacking);
            assert!(doubts.are_due(), "{lacking:?}");
            doubts.weigh(Engine::Vllm, &signed("vllm"));
            assert!(!doubts.are_due(), "{lacking:?}");
        }
    }

    #[test]
    fn a_doubt_that_stays_is_followed_every_so_often() {
        let mut doubts = Doubts::default();
        let due = (1..=50).filter(|_| {
            doubts.weigh(Engine::Vllm, &loadless());
            let due = doubts.are_due();
            if due {
                doubts.dispelled();
            }
            due
        });
        assert_eq!(due.collect::<Vec<_>>(), [10, 20, 30, 40, 50]);
    }

    #[test]
    fn a_missing_load_is_said_once_until_it_is_back() {
        let mut doubts = Doubts::default();
        let mut news = |report: &Report| (0..9).filter_map(|_| doubts.weigh(Engine::Vllm, report)).collect::<Vec<_>>();
        let reason = why_no_load(Engine::Vllm).unwrap();
        assert_eq!(news(&signed("vllm")), []);
        assert_eq!(news(&loadless()), [News::LoadMissing(reason)]);
        assert_eq!(news(&loadless()), []);
        assert_eq!(news(&Report { health: Health::NotReady("asleep".into()), ..Report::default() }), []);
        assert_eq!(news(&signed("vllm")), [News::LoadBack]);
        assert_eq!(news(&loadless()), [News::LoadMissing(reason)]);
        doubts.dispelled();
        assert_eq!(doubts.weigh(Engine::Vllm, &loadless()), None, "to recognise it again is no news");
    }

    #[test]
    fn every_engine_that_owes_a_load_is_named_once() {
        for engine in Engine::ALL {
            let mut doubts = Doubts::default();
            let news = (0..50).filter_map(|_| doubts.weigh(engine, &loadless()));
            assert_eq!(
                news.collect::<Vec<_>>(),
                Vec::from_iter(why_no_load(engine).map(News::LoadMissing)),
                "{engine:?}"
            );
        }
    }

    #[test]
    fn an_engine_without_load_owes_none() {
        let mut doubts = Doubts::default();
        let news = (0..3).filter_map(|_| doubts.weigh(Engine::Vllm, &loadless()));
        assert_eq!(news.count(), 1);
        doubts.dispelled();
        for _ in 0..50 {
            assert_eq!(doubts.weigh(Engine::Ollama, &loadless()), None);
            assert!(!doubts.are_due());
        }
    }
}
