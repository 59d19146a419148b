//! All that is known under one name: its built-in, its versions from files, and the file that lies there now.
//!
//! Invariants:
//! - A file has one fate at a time, and it is decided once for a content: only what could not be read, or may still
//!   be growing, is read again.
//! - A fate never touches a version that is loaded; only a good file, a deleted one, a pin and the two verdicts of
//!   those who run versions do (`refuse`, `roll_back`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::compile::sha256;
use super::folder::{self, Stamp};
use super::store::{Row, State, What};
use super::version::{Source, Version};
use super::{Kind, Refusal, Runtime, Stage};

/// How long a file that ends in the middle may lie still before it is called broken.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of one name: the newest, what runs while that is being started, and the last one that ran well.
const VERSIONS_KEPT: usize = 3;

/// All that is known under one name.
#[derive(Default)]
pub(super) struct Shelf {
    built_in: Option<Arc<Version>>,
    /// From files, the newest last.
    versions: Vec<Arc<Version>>,
    /// The file that lies there now.
    file: Option<File>,
    pin: Option<String>,
    /// Contents that were rolled back, and why.
    quarantine: BTreeMap<String, String>,
}

struct File {
    stamp: Stamp,
    fate: Fate,
}

/// What became of a file.
enum Fate {
    /// It is to be read by the next look, whatever came of the last.
    Unread,
    /// It moves, or has lain there incomplete since.
    Pending {
        since: Instant,
    },
    /// It is one of the versions.
    Taken {
        sha256: String,
    },
    Refused {
        sha256: Option<String>,
        refusal: Refusal,
    },
    RolledBack {
        sha256: String,
    },
}

impl Fate {
    fn sha256(&self) -> Option<&str> {
        match self {
            Self::Unread | Self::Pending { .. } => None,
            Self::Refused { sha256, .. } => sha256.as_deref(),
            Self::Taken { sha256 } | Self::RolledBack { sha256 } => Some(sha256),
        }
    }
}

impl Shelf {
    pub fn new(built_in: Option<Arc<Version>>) -> Self {
        Self { built_in, ..Self::default() }
    }

    /// What is to run: the newest that may.
    pub fn current(&self) -> Option<&Arc<Version>> {
        self.versions.iter().rev().chain(&self.built_in).find(|version| self.is_pinned(&version.sha256))
    }

    fn is_pinned(&self, sha256: &str) -> bool {
        self.pin.as_ref().is_none_or(|pin| pin == sha256)
    }

    pub fn is_empty(&self) -> bool {
        self.built_in.is_none() && self.versions.is_empty() && self.file.is_none() && self.quarantine.is_empty()
    }

    /// Only this content from now on. The file is looked at again, for another answer may be due.
    pub fn pin(&mut self, pin: Option<&String>) {
        if self.pin.as_ref() != pin {
            self.pin = pin.cloned();
            self.file.iter_mut().for_each(|file| file.fate = Fate::Unread);
        }
    }

    /// There is no file of this name.
    pub fn lost(&mut self, runtime: &Runtime) -> Option<What> {
        self.file.take()?;
        if self.versions.is_empty() {
            return None;
        }
        let Some(built_in) = &mut self.built_in else { return Some(What::Kept) };
        *built_in = built_in.again(runtime);
        self.versions.clear();
        None
    }

    /// There is a file of this name.
    pub fn look(&mut self, runtime: &Runtime, name: &str, path: &Path, now: Instant) -> Option<What> {
        let Some(stamp) = Stamp::of(path) else { return self.lost(runtime) };
        let since = match &self.file {
            Some(File { stamp: seen, fate }) if *seen == stamp => match fate {
                Fate::Pending { since } => *since,
                // It could not even be read: what stands against that need not show in the stamp.
                Fate::Unread | Fate::Refused { sha256: None, .. } => now,
                Fate::Taken { .. } | Fate::Refused { .. } | Fate::RolledBack { .. } => return None,
            },
            _ => now,
        };
        let fate = match folder::read(name, path, stamp) {
            Ok(Some(bytes)) => self.fate(runtime, name, &bytes),
            Ok(None) => Fate::Pending { since },
            Err(refusal) => Fate::Refused { sha256: None, refusal },
        };
        let is_patient = now.duration_since(since) < PATIENCE;
        let fate = match fate {
            Fate::Refused { refusal, .. } if refusal.stage == Stage::Truncated && is_patient => Fate::Pending { since },
            fate => fate,
        };
        let what = self.news(&fate);
        self.file = Some(File { stamp, fate });
        what
    }

    /// What is to be told of a file's new fate: a refusal, once.
    fn news(&self, fate: &Fate) -> Option<What> {
        let Fate::Refused { sha256, refusal } = fate else { return None };
        let is_known = self.refused() == Some((sha256.as_deref(), refusal));
        (!is_known).then(|| What::Refused(refusal.clone()))
    }

    /// What is to become of a file with these bytes. A good one is current when this returns.
    fn fate(&mut self, runtime: &Runtime, name: &str, bytes: &[u8]) -> Fate {
        let sha256 = sha256(bytes);
        if self.quarantine.contains_key(&sha256) {
            return Fate::RolledBack { sha256 };
        }
        if !self.is_pinned(&sha256) {
            let refusal = Refusal::new(Stage::Pin, format!("its SHA-256 is {sha256}, `plugins.pins` has another"));
            return Fate::Refused { sha256: Some(sha256), refusal };
        }
        if self.current().is_some_and(|version| version.sha256 == sha256) {
            return Fate::Taken { sha256 };
        }
        if let Some((_, refusal)) = self.refused().filter(|(refused, _)| *refused == Some(&sha256)) {
            return Fate::Refused { refusal: refusal.clone(), sha256: Some(sha256) };
        }
        match runtime.compile(name, Source::File, bytes).and_then(|version| self.fitting(version)) {
            Ok(version) => {
                self.versions.push(version);
                let superfluous = self.versions.len().saturating_sub(VERSIONS_KEPT);
                self.versions.drain(..superfluous);
                Fate::Taken { sha256 }
            }
            Err(refusal) => Fate::Refused { sha256: Some(sha256), refusal },
        }
    }

    /// A name keeps its kind for as long as anything is loaded under it.
    fn fitting(&self, version: Arc<Version>) -> Result<Arc<Version>, Refusal> {
        let kind = self.versions.last().or(self.built_in.as_ref()).map_or(version.kind, |version| version.kind);
        if kind == version.kind {
            return Ok(version);
        }
        let [is, wants] = [version.kind, kind].map(Kind::name);
        Err(Refusal::new(Stage::Kind, format!("it is a {is}, what runs under this name is a {wants}")))
    }

    /// The refusal of the file that lies there, and its content where that could be read.
    fn refused(&self) -> Option<(Option<&str>, &Refusal)> {
        match &self.file.as_ref()?.fate {
            Fate::Refused { sha256, refusal } => Some((sha256.as_deref(), refusal)),
            _ => None,
        }
    }

    /// Forgets a refusal: the next look is as the first.
    pub fn reconsider(&mut self) {
        if let Some(File { fate: fate @ Fate::Refused { .. }, .. }) = &mut self.file {
            *fate = Fate::Unread;
        }
    }

    /// A version of this content could not be started.
    pub fn refuse(&mut self, sha256: &str, refusal: Refusal) {
        self.versions.retain(|version| version.sha256 != sha256);
        self.judge(sha256, || Fate::Refused { sha256: Some(sha256.to_owned()), refusal });
    }

    /// A version of this content is not to run again. What ran before it comes back as a new version.
    pub fn roll_back(&mut self, runtime: &Runtime, sha256: &str, why: &str) {
        let was_current = self.current().is_some_and(|version| version.sha256 == sha256);
        if self.built_in.as_ref().is_none_or(|built_in| built_in.sha256 != sha256) {
            self.quarantine.insert(sha256.to_owned(), why.to_owned());
            self.judge(sha256, || Fate::RolledBack { sha256: sha256.to_owned() });
        }
        self.versions.retain(|version| version.sha256 != sha256);
        if was_current && let Some(back) = self.versions.last_mut().or(self.built_in.as_mut()) {
            *back = back.again(runtime);
        }
    }

    /// Changes the fate of the file if it is this content.
    fn judge(&mut self, sha256: &str, fate: impl FnOnce() -> Fate) {
        if let Some(file) = self.file.as_mut().filter(|file| file.fate.sha256() == Some(sha256)) {
            file.fate = fate();
        }
    }

    pub fn rows(&self, name: &str, running: &[u64]) -> impl Iterator<Item = Row> {
        let file = self.file.as_ref().and_then(|file| self.file_row(name, &file.fate));
        let trouble = file.as_ref().and_then(|row| row.last_error.clone());
        let version = self.current().map(|version| Row {
            name: name.to_owned(),
            state: if running.contains(&version.generation) { State::Running } else { State::Loaded },
            sha256: Some(version.sha256.clone()),
            last_error: version
                .last_error()
                .or(trouble)
                .or_else(|| self.is_kept().then(|| "its file was deleted".to_owned())),
            version: Some(Arc::clone(version)),
        });
        version.into_iter().chain(file)
    }

    fn is_kept(&self) -> bool {
        self.file.is_none() && !self.versions.is_empty()
    }

    fn file_row(&self, name: &str, fate: &Fate) -> Option<Row> {
        let (state, last_error) = match fate {
            Fate::Unread | Fate::Taken { .. } => return None,
            Fate::Pending { .. } => (State::Pending, None),
            Fate::Refused { refusal, .. } => (State::Refused, Some(refusal.to_string())),
            Fate::RolledBack { sha256 } => (State::RolledBack, self.quarantine.get(sha256).cloned()),
        };
        let sha256 = fate.sha256().map(str::to_owned);
        Some(Row { name: name.to_owned(), state, sha256, last_error, version: None })
    }
}
